//! Checks as they are compiled: what counts as what, and what a probe sends.

use std::sync::Arc;
use std::time::Duration;

use super::condition::Verdict;
use crate::model::{
    ActiveCheck, CheckType, Checks, Invalid, PassiveCheck, Scheme, Upstream, UpstreamTls,
};
use crate::upstream::origin_tls::public_tls;
use crate::upstream::{PublicTls, Roster};

/// What was found of an endpoint, by a probe or by a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It answered with this status.
    Status(u16),
    /// It took a connection; nothing was asked.
    Connected,
    /// There is no connection, or no answer over it.
    Unreachable,
    /// It took too long.
    Late,
}

impl Seen {
    /// Is it what outlier detection counts as a failure?
    pub(in crate::upstream) fn is_failure(self) -> bool {
        match self {
            Self::Status(status) => status >= 500,
            Self::Connected => false,
            Self::Unreachable | Self::Late => true,
        }
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Connected => f.write_str("connected"),
            Self::Unreachable => f.write_str("no connection or no answer"),
            Self::Late => f.write_str("late"),
        }
    }
}

/// A set of statuses from 200 to 599.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Statuses([u64; 7]);

impl Statuses {
    fn of(field: &str, statuses: &[u16]) -> Result<Self, Invalid> {
        let mut set = Self::default();
        for status in statuses {
            if !(200..=599).contains(status) {
                return Err(Invalid(format!("{field}: expected 200 to 599, got {status}")));
            }
            let at = usize::from(status - 200);
            set.0[at / 64] |= 1 << (at % 64);
        }
        Ok(set)
    }

    fn contains(&self, status: u16) -> bool {
        let at = usize::from(status.wrapping_sub(200));
        self.0.get(at / 64).is_some_and(|bits| bits & (1 << (at % 64)) != 0)
    }
}

/// What counts as what, and how often it takes that.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Thresholds {
    reads_status: bool,
    healthy: Statuses,
    unhealthy: Statuses,
    successes: u8,
    http_failures: u8,
    tcp_failures: u8,
    timeouts: u8,
}

impl Thresholds {
    /// What it counts as, and how often that must happen; `None` when it says nothing.
    pub(in crate::upstream) fn verdict(&self, seen: Seen) -> Option<(Verdict, u8)> {
        match seen {
            Seen::Status(_) if !self.reads_status => Some((Verdict::Success, self.successes)),
            Seen::Status(status) if self.healthy.contains(status) => {
                Some((Verdict::Success, self.successes))
            }
            Seen::Status(status) if self.unhealthy.contains(status) => {
                Some((Verdict::HttpFailure, self.http_failures))
            }
            Seen::Status(_) => None,
            Seen::Connected => Some((Verdict::Success, self.successes)),
            Seen::Unreachable => Some((Verdict::TcpFailure, self.tcp_failures)),
            Seen::Late => Some((Verdict::Timeout, self.timeouts)),
        }
    }

    fn of_active(check: &ActiveCheck) -> Result<Self, Invalid> {
        let (healthy, unhealthy) = (&check.healthy, &check.unhealthy);
        let statuses = |part: &str, statuses: &[u16]| {
            Statuses::of(&format!("checks.active.{part}.http_statuses"), statuses)
        };
        for (field, number) in [
            ("healthy.successes", healthy.successes),
            ("unhealthy.http_failures", unhealthy.http_failures),
            ("unhealthy.tcp_failures", unhealthy.tcp_failures),
            ("unhealthy.timeouts", unhealthy.timeouts),
        ] {
            if !(1..=254).contains(&number) {
                let why = format!("checks.active.{field}: expected 1 to 254, got {number}");
                return Err(Invalid(why));
            }
        }
        Ok(Self {
            reads_status: check.kind != CheckType::Tcp,
            healthy: statuses("healthy", &healthy.http_statuses)?,
            unhealthy: statuses("unhealthy", &unhealthy.http_statuses)?,
            successes: healthy.successes,
            http_failures: unhealthy.http_failures,
            tcp_failures: unhealthy.tcp_failures,
            timeouts: unhealthy.timeouts,
        })
    }

    fn of_passive(check: &PassiveCheck) -> Result<Self, Invalid> {
        let (healthy, unhealthy) = (&check.healthy, &check.unhealthy);
        let statuses = |part: &str, statuses: &[u16]| {
            Statuses::of(&format!("checks.passive.{part}.http_statuses"), statuses)
        };
        for (field, number) in [
            ("healthy.successes", healthy.successes),
            ("unhealthy.http_failures", unhealthy.http_failures),
            ("unhealthy.tcp_failures", unhealthy.tcp_failures),
            ("unhealthy.timeouts", unhealthy.timeouts),
        ] {
            if number > 254 {
                let why = format!("checks.passive.{field}: expected 0 to 254, got {number}");
                return Err(Invalid(why));
            }
        }
        Ok(Self {
            reads_status: check.kind != CheckType::Tcp,
            healthy: statuses("healthy", &healthy.http_statuses)?,
            unhealthy: statuses("unhealthy", &unhealthy.http_statuses)?,
            successes: healthy.successes,
            http_failures: unhealthy.http_failures,
            tcp_failures: unhealthy.tcp_failures,
            timeouts: unhealthy.timeouts,
        })
    }
}

/// Probes as they are compiled.
#[derive(Debug)]
pub(in crate::upstream) struct ActiveChecks {
    pub(super) kind: CheckType,
    pub(super) within: Duration,
    pub(super) concurrency: usize,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    /// Of https probes, but to workloads: what the upstream shows and trusts, verified as the check says.
    pub(super) tls: Option<PublicTls>,
    pub(super) method: &'static str,
    pub(super) path: String,
    /// Names in lower case, and values.
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: String,
    pub(super) thresholds: Thresholds,
    every: [Duration; 2],
    /// The upstream itself speaks HTTP/2, and so do probes of its own port.
    pub(super) http2: bool,
}

impl ActiveChecks {
    /// # Errors
    /// The sentence names the field.
    pub(in crate::upstream) fn compile(
        checks: &Checks,
        upstream: &Upstream,
        roster: &Roster,
    ) -> Result<(Arc<Self>, Option<Thresholds>), Invalid> {
        let check = &checks.active;
        let field = |name: &str, why: &str| Invalid(format!("checks.active.{name}: {why}"));
        let within = Duration::try_from_secs_f64(check.timeout)
            .ok()
            .filter(|within| !within.is_zero() && *within <= Duration::from_secs(3600))
            .ok_or_else(|| field("timeout", "expected seconds above 0, and at most 3600"))?;
        if check.concurrency == 0 {
            return Err(field("concurrency", "expected 1 or more, got 0"));
        }
        if check.port == Some(0) {
            return Err(field("port", "expected 1 to 65535, got 0"));
        }
        if check.healthy.interval == 0 {
            return Err(field("healthy.interval", "expected 1 or more seconds, got 0"));
        }
        if check.unhealthy.interval == 0 {
            return Err(field("unhealthy.interval", "expected 1 or more seconds, got 0"));
        }
        let visible = |text: &str| text.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
        if !check.http_path.starts_with('/') || !visible(&check.http_path) {
            return Err(field("http_path", "expected a path that begins with /, without blanks"));
        }
        if let Some(host) = &check.host
            && (host.is_empty() || !visible(host))
        {
            return Err(field("host", "expected a host name"));
        }
        let fields = check.req_headers.iter().map(|line| header(line)).collect::<Result<_, _>>()?;
        let thresholds = Thresholds::of_active(check)?;
        let passive = checks.passive.as_ref().map(Thresholds::of_passive).transpose()?;
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
        let speaks_http2 = matches!(upstream.scheme, Scheme::Grpc | Scheme::Grpcs);
        let made = Self {
            kind: check.kind,
            within,
            concurrency: usize::try_from(check.concurrency).unwrap_or(usize::MAX),
            host: check.host.clone(),
            port: check.port,
            tls: public(check, upstream, roster)?,
            method: check.http_method.name(),
            path: check.http_path.clone(),
            fields,
            body: check.http_req_body.clone(),
            thresholds,
            every: [seconds(check.unhealthy.interval), seconds(check.healthy.interval)],
            http2: speaks_http2 && check.port.is_none(),
        };
        Ok((Arc::new(made), passive))
    }

    /// The time between two probes of an endpoint that is usable, or not.
    pub(super) fn every(&self, is_usable: bool) -> Duration {
        self.every[usize::from(is_usable)]
    }

    /// The type's name, as APISIX shows it.
    pub(super) fn type_name(&self) -> &'static str {
        match self.kind {
            CheckType::Http => "http",
            CheckType::Https => "https",
            CheckType::Tcp => "tcp",
        }
    }
}

/// TLS of https probes: as requests have it, certificate and authorities included, but verified as the check says.
fn public(
    check: &ActiveCheck,
    upstream: &Upstream,
    roster: &Roster,
) -> Result<Option<PublicTls>, Invalid> {
    let own = upstream.tls.clone().unwrap_or_default();
    if check.kind != CheckType::Https || own.identity.is_some() {
        return Ok(None);
    }
    let verify = Some(check.https_verify_certificate);
    public_tls(&UpstreamTls { verify, ..own }, roster).map(Some)
}

/// `Name: value`.
fn header(line: &str) -> Result<(String, String), Invalid> {
    let invalid =
        || Invalid(format!("checks.active.req_headers: expected \"Name: value\", got {line:?}"));
    let (name, value) = line.split_once(':').ok_or_else(invalid)?;
    let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
    let is_name = http::HeaderName::from_bytes(name.as_bytes()).is_ok();
    if !is_name || http::HeaderValue::from_str(&value).is_err() {
        return Err(invalid());
    }
    // They would contradict what the probe itself says of its body and its connection.
    if matches!(&*name, "connection" | "content-length" | "transfer-encoding") {
        return Err(Invalid(format!("checks.active.req_headers: {name} is the probe's own")));
    }
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn compile(value: Value) -> Result<(Arc<ActiveChecks>, Option<Thresholds>), Invalid> {
        let upstream = Upstream::default();
        ActiveChecks::compile(
            &serde_json::from_value(value).unwrap(),
            &upstream,
            &Roster::default(),
        )
    }

    #[test]
    fn what_is_seen_counts_as_apisix_counts_it() {
        use Verdict::{HttpFailure, Success, TcpFailure, Timeout};
        let (active, passive) = compile(json!({"active": {}, "passive": {}})).unwrap();
        let passive = passive.unwrap();
        for (seen, by_probe, by_request) in [
            (Seen::Status(200), Some((Success, 2)), Some((Success, 5))),
            (Seen::Status(302), Some((Success, 2)), Some((Success, 5))),
            (Seen::Status(204), None, Some((Success, 5))),
            (Seen::Status(226), None, Some((Success, 5))),
            (Seen::Status(209), None, None),
            (Seen::Status(308), None, Some((Success, 5))),
            (Seen::Status(404), Some((HttpFailure, 5)), None),
            (Seen::Status(429), Some((HttpFailure, 5)), Some((HttpFailure, 5))),
            (Seen::Status(502), Some((HttpFailure, 5)), None),
            (Seen::Status(503), Some((HttpFailure, 5)), Some((HttpFailure, 5))),
            (Seen::Status(505), Some((HttpFailure, 5)), None),
            (Seen::Status(101), None, None),
            (Seen::Status(648), None, None),
            (Seen::Status(700), None, None),
            (Seen::Unreachable, Some((TcpFailure, 2)), Some((TcpFailure, 2))),
            (Seen::Late, Some((Timeout, 3)), Some((Timeout, 7))),
            (Seen::Connected, Some((Success, 2)), Some((Success, 5))),
        ] {
            assert_eq!(active.thresholds.verdict(seen), by_probe, "{seen}");
            assert_eq!(passive.verdict(seen), by_request, "{seen}");
        }
        let (tcp, passive) =
            compile(json!({"active": {"type": "tcp"}, "passive": {"type": "tcp"}})).unwrap();
        assert_eq!(tcp.thresholds.verdict(Seen::Status(500)), Some((Success, 2)));
        assert_eq!(passive.unwrap().verdict(Seen::Status(500)), Some((Success, 5)));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (active, sentence) in [
            (json!({"timeout": 0}), "checks.active.timeout: expected seconds above 0"),
            (json!({"timeout": -1}), "checks.active.timeout: expected seconds above 0"),
            (json!({"concurrency": 0}), "checks.active.concurrency: expected 1 or more, got 0"),
            (json!({"port": 0}), "checks.active.port: expected 1 to 65535, got 0"),
            (json!({"http_path": "a"}), "checks.active.http_path: expected a path"),
            (json!({"http_path": "/a b"}), "checks.active.http_path: expected a path"),
            (json!({"http_path": "/\r\nx: y"}), "checks.active.http_path: expected a path"),
            (json!({"host": "a\r\nb: c"}), "checks.active.host: expected a host name"),
            (json!({"req_headers": ["a"]}), "checks.active.req_headers: expected \"Name: value\""),
            (json!({"req_headers": ["a b: c"]}), "checks.active.req_headers: expected"),
            (json!({"req_headers": ["a: b\r\nc: d"]}), "checks.active.req_headers: expected"),
            (
                json!({"req_headers": ["Content-Length: 3"]}),
                "checks.active.req_headers: content-length is the probe's own",
            ),
            (
                json!({"healthy": {"interval": 0}}),
                "checks.active.healthy.interval: expected 1 or more seconds, got 0",
            ),
            (
                json!({"unhealthy": {"http_statuses": [600]}}),
                "checks.active.unhealthy.http_statuses: expected 200 to 599, got 600",
            ),
            (
                json!({"healthy": {"successes": 0}}),
                "checks.active.healthy.successes: expected 1 to 254, got 0",
            ),
        ] {
            let error = compile(json!({"active": active})).unwrap_err().0;
            assert!(error.starts_with(sentence), "{active}: {error}");
        }
        let error = compile(json!({"active": {}, "passive": {"healthy": {"successes": 255}}}));
        assert_eq!(
            error.unwrap_err().0,
            "checks.passive.healthy.successes: expected 0 to 254, got 255"
        );
        assert!(serde_json::from_value::<Checks>(json!({"passive": {}})).is_err());
        assert!(serde_json::from_value::<Checks>(json!({"active": {"tipe": "tcp"}})).is_err());
    }
}
