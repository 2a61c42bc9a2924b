//! Certificates that are about to end: said once for each certificate and threshold, in the log, in the decision log and as a
//! metric.

use std::collections::HashMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::MissedTickBehavior;

use super::identities::{Identities, Seen, rfc3339};
use super::process::Shared;
use crate::mtls::PublicCertificate;
use crate::observe::{ConfigRecord, IdentityRecord, MetricKind};
use crate::rt::Live;

/// When to warn that a certificate ends.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WarningSettings {
    /// How long before the end of a public certificate: `7d`, `12h`, `30m`, `45s`, or a number of seconds.
    #[serde(default = "before_the_end")]
    pub public_certificates: Vec<TimeLeft>,
    /// Which parts of an SVID's life may pass before it is renewed, each between 0 and 1. Renewal is due at half of it.
    #[serde(default = "parts_of_a_life")]
    pub svid: Vec<LifePart>,
}

impl Default for WarningSettings {
    fn default() -> Self {
        Self { public_certificates: before_the_end(), svid: parts_of_a_life() }
    }
}

const DAY: i64 = 86_400;

fn before_the_end() -> Vec<TimeLeft> {
    [7, 3, 1].map(|days| TimeLeft { seconds: days * DAY }).to_vec()
}

fn parts_of_a_life() -> Vec<LifePart> {
    [0.5, 0.75, 0.9].map(LifePart).to_vec()
}

/// A span of time before an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct TimeLeft {
    seconds: i64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Seconds(u32),
    Text(String),
}

impl TryFrom<Written> for TimeLeft {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        let text = match written {
            Written::Seconds(seconds) => return Ok(Self { seconds: seconds.into() }),
            Written::Text(text) => text,
        };
        let wrong = || format!("{text:?}: expected a number with d, h, m or s behind it, as 7d");
        let unit = match text.bytes().last() {
            Some(b'd') => DAY,
            Some(b'h') => 3600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(wrong()),
        };
        let digits = &text[..text.len() - 1];
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: u32 = digits.parse().ok().filter(|_| is_number).ok_or_else(wrong)?;
        Ok(Self { seconds: i64::from(number) * unit })
    }
}

impl std::fmt::Display for TimeLeft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.seconds {
            days if days > 0 && days % DAY == 0 => write!(f, "{}d", days / DAY),
            seconds => write!(f, "{seconds}s"),
        }
    }
}

impl JsonSchema for TimeLeft {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TimeLeft".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "oneOf": [
                { "type": "string", "pattern": "^[0-9]+[dhms]$" },
                { "type": "integer", "minimum": 0, "maximum": u32::MAX },
            ]
        })
    }
}

/// A part of a certificate's life, above 0 and below 1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(try_from = "f64")]
#[schemars(inline, extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
pub struct LifePart(f64);

impl TryFrom<f64> for LifePart {
    type Error = String;
    fn try_from(part: f64) -> Result<Self, String> {
        let is_part = part > 0.0 && part < 1.0;
        if is_part { Ok(Self(part)) } else { Err(format!("{part}: expected above 0 and below 1")) }
    }
}

/// How often certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// An SVID that comes into use so soon after the start of its validity is new: authorities date them back.
const DATED_BACK: i64 = 60;

/// Warns for ever. By the wall clock at each look, so that a suspend or a clock that was set delays nothing.
pub(super) async fn watch(settings: Live<WarningSettings>, shared: Shared) {
    let metric = "wardgate_expiry_warnings_total";
    let help = "Warnings that a certificate ends and was not renewed.";
    shared.registry.describe(metric, MetricKind::Counter, help);
    let mut said = Said::default();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for warning in said.due(&settings.load(), &shared.identities) {
            warning.say(&shared);
            let labels = [("kind", warning.kind()), ("threshold", &*warning.threshold)];
            shared.registry.counter(metric, &labels).increment();
        }
    }
}

/// What was said about which certificate: how many of the thresholds.
#[derive(Default)]
struct Said(HashMap<String, usize>);

struct Warning {
    of: Of,
    threshold: String,
    seconds_left: i64,
}

enum Of {
    Svid(Seen),
    Public(std::sync::Arc<PublicCertificate>),
}

impl Said {
    /// The warnings that are due and were not given. Of several thresholds that passed at once the last one is said.
    fn due(&mut self, settings: &WarningSettings, identities: &Identities) -> Vec<Warning> {
        let now = identities.clock().now();
        let mut due = Vec::new();
        let mut known = HashMap::new();
        let mut look = |key: String, passed: usize| {
            let before = self.0.get(&key).copied().unwrap_or(0);
            known.insert(key, passed.max(before));
            passed > before
        };
        for seen in identities.in_use() {
            let svid = &seen.identity.svid;
            let parts = ascending(&settings.svid);
            let passed = parts.iter().filter(|part| is_past(**part, &seen, now)).count();
            if look(format!("svid {} {}", svid.id, svid.serial), passed) {
                let threshold = parts[passed - 1].to_string();
                due.push(Warning {
                    threshold,
                    seconds_left: svid.not_after - now,
                    of: Of::Svid(seen),
                });
            }
        }
        for certificate in identities.certificates() {
            let left = certificate.not_after() - now;
            let mut spans = settings.public_certificates.clone();
            spans.sort_unstable_by_key(|span| std::cmp::Reverse(span.seconds));
            let passed = spans.iter().filter(|span| left <= span.seconds).count();
            if look(format!("public {}", certificate.sha256()), passed) {
                let threshold = spans[passed - 1].to_string();
                due.push(Warning { threshold, seconds_left: left, of: Of::Public(certificate) });
            }
        }
        self.0 = known;
        due
    }
}

fn ascending(parts: &[LifePart]) -> Vec<f64> {
    let mut parts: Vec<f64> = parts.iter().map(|part| part.0).collect();
    parts.sort_unstable_by(f64::total_cmp);
    parts
}

/// Has this part of its life passed? A fiftieth later (at most a minute), so that who renews exactly then is not named late.
fn is_past(part: f64, seen: &Seen, now: i64) -> bool {
    let svid = &seen.identity.svid;
    let is_new = seen.since - svid.not_before <= DATED_BACK;
    let begin = if is_new { seen.since.max(svid.not_before) } else { svid.not_before };
    #[expect(clippy::cast_precision_loss, reason = "seconds of a life")]
    let (life, age) = ((svid.not_after - begin) as f64, (now - begin) as f64);
    age >= life * part + (life / 50.0).min(60.0)
}

impl Warning {
    fn kind(&self) -> &'static str {
        match self.of {
            Of::Svid(_) => "svid",
            Of::Public(_) => "public_certificate",
        }
    }

    fn say(&self, shared: &Shared) {
        let lane = shared.audit.control();
        let (threshold, left) = (&*self.threshold, self.seconds_left);
        // What is lost of the records is counted in the log itself.
        match &self.of {
            Of::Svid(seen) => {
                let svid = &seen.identity.svid;
                let detail = format!("{threshold} of its life have passed, {left} s are left");
                tracing::warn!(
                    id = %svid.id, serial = %svid.serial, threshold, seconds_left = left,
                    "our SVID was not renewed in time"
                );
                let _ = lane.identity(&IdentityRecord {
                    event: "expiring",
                    spiffe_id: svid.id.as_str(),
                    serial: Some(&svid.serial),
                    not_after: Some(svid.not_after),
                    trust_domains: None,
                    bundle_revisions: None,
                    detail: Some(&detail),
                });
            }
            Of::Public(certificate) => {
                let names = certificate.names().join(" ");
                let end = rfc3339(certificate.not_after());
                let detail = format!("the certificate for {names} ends at {end}, in {left} s");
                tracing::warn!(
                    names,
                    serial = certificate.serial(),
                    threshold,
                    seconds_left = left,
                    "a public certificate ends soon"
                );
                let _ = lane.config(&ConfigRecord {
                    event: "expiring",
                    revision: 0,
                    changes: None,
                    kind: Some("ssls"),
                    id: certificate.id(),
                    reason: Some(&detail),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Forge;
    use crate::observe::Registry;
    use crate::rt::{Clock, Publisher, unix_seconds};

    fn thresholds(said: &mut Said, identities: &Identities) -> Vec<String> {
        let due = said.due(&WarningSettings::default(), identities);
        due.into_iter().map(|warning| warning.threshold).collect()
    }

    #[test]
    fn an_svid_that_is_not_renewed_is_named_once_for_each_threshold() {
        let clock = Clock::fixed(unix_seconds());
        let identities = Identities::new(&Registry::new(), clock.clone());
        let forge = Forge::new("a.test");
        let first = forge.identity("/web", &[]);
        let life = first.svid.not_after - clock.now();
        let (publisher, live) = Publisher::new(first);
        identities.watch(live);
        let mut said = Said::default();
        let mut seen = Vec::new();
        for _ in 0..100 {
            seen.extend(thresholds(&mut said, &identities));
            clock.advance(life / 100);
        }
        assert_eq!(seen, ["0.5", "0.75", "0.9"]);
        // A clock that leaps says the worst only, and a new certificate begins anew.
        publisher.set(forge.identity("/web", &[]));
        assert_eq!(thresholds(&mut said, &identities), ["0.9"]);
        assert_eq!(thresholds(&mut said, &identities), [""; 0]);
    }

    #[test]
    fn who_renews_at_half_of_the_life_is_never_named() {
        let clock = Clock::fixed(unix_seconds());
        let identities = Identities::new(&Registry::new(), clock.clone());
        let identity = Forge::new("a.test").identity("/web", &[]);
        let life = identity.svid.not_after - clock.now();
        identities.watch(Live::fixed(identity));
        clock.advance(life / 2);
        assert_eq!(thresholds(&mut Said::default(), &identities), [""; 0]);
    }

    #[test]
    fn thresholds_are_read_strictly() {
        let read = |text: &str| serde_json::from_str::<WarningSettings>(text);
        let good =
            read(r#"{"public_certificates": ["14d", "36h", "90m", "5s", 60], "svid": [0.6]}"#);
        let spans: Vec<i64> = good.unwrap().public_certificates.iter().map(|s| s.seconds).collect();
        assert_eq!(spans, [14 * DAY, 36 * 3600, 5400, 5, 60]);
        for bad in [
            r#"{"svid": [0]}"#,
            r#"{"svid": [1.0]}"#,
            r#"{"svid": [-0.5]}"#,
            r#"{"public_certificates": ["7"]}"#,
            r#"{"public_certificates": ["d"]}"#,
            r#"{"public_certificates": ["+7d"]}"#,
            r#"{"public_certificates": ["7 d"]}"#,
            r#"{"public_certificates": [-1]}"#,
            r#"{"svids": []}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
