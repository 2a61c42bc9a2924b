//! `Filter`: which records somebody asks for.

use std::time::Duration;

use super::super::record::{Record, unix_millis};
use super::super::seen::Outcome;

/// What the records must have in common. An empty filter takes all.
///
/// ```
/// use wardgate::audit::Filter;
/// let mut filter = Filter::default();
/// filter.set("outcome", "deny", 0).unwrap();
/// filter.set("src", "spiffe://shop/web", 0).unwrap();
/// assert_eq!(filter.query(), "src=spiffe%3A%2F%2Fshop%2Fweb&outcome=deny");
/// assert!(filter.set("colour", "red", 0).is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Not before, in milliseconds since 1970.
    pub from: Option<u64>,
    /// Before, in milliseconds since 1970.
    pub to: Option<u64>,
    /// Whose log: the SPIFFE ID of the data plane. As [`Filter::src`].
    pub origin: Option<String>,
    /// The node of the data plane.
    pub node: Option<String>,
    /// Who called: a whole SPIFFE ID, one that ends with `*`, or the end of an ID's path, as `billing`.
    pub src: Option<String>,
    /// Whom it called. As [`Filter::src`].
    pub dst: Option<String>,
    /// Allowed or refused.
    pub outcome: Option<Outcome>,
    /// `decision`, `connection`, ...
    pub kind: Option<String>,
    /// Why it was refused.
    pub reason: Option<String>,
    /// The route that matched.
    pub route: Option<String>,
    /// The policy whose rule decided.
    pub policy: Option<String>,
    /// The method.
    pub method: Option<String>,
    /// How the path begins.
    pub path_prefix: Option<String>,
    /// What the refused caller was told.
    pub denial: Option<String>,
}

/// The names under which a filter is asked for.
pub const FILTERS: [&str; 14] = [
    "from",
    "to",
    "origin",
    "node",
    "src",
    "dst",
    "outcome",
    "type",
    "reason",
    "route",
    "policy",
    "method",
    "path_prefix",
    "denial",
];

impl Filter {
    /// Narrows it: `name` is one of [`FILTERS`], times are RFC 3339, seconds since 1970, or a time ago (`90s`, `30m`, `1h`, `7d`)
    /// before `now` (milliseconds since 1970).
    ///
    /// # Errors
    /// There is no such filter, or the value is none; the sentence says what was expected.
    pub fn set(&mut self, name: &str, value: &str, now: u64) -> Result<(), String> {
        let text = || Some(value.to_owned());
        match name {
            "from" => self.from = Some(moment(name, value, now)?),
            "to" => self.to = Some(moment(name, value, now)?),
            "origin" => self.origin = text(),
            "node" => self.node = text(),
            "src" => self.src = text(),
            "dst" => self.dst = text(),
            "outcome" => {
                self.outcome = Some(match value {
                    "allow" => Outcome::Allow,
                    "deny" => Outcome::Deny,
                    _ => return Err(format!("outcome: {value:?}; expected allow or deny")),
                });
            }
            "type" => self.kind = text(),
            "reason" => self.reason = text(),
            "route" => self.route = text(),
            "policy" => self.policy = text(),
            "method" => self.method = text(),
            "path_prefix" => self.path_prefix = text(),
            "denial" => self.denial = text(),
            _ => {
                return Err(format!("{name:?} is no filter; there are {}", FILTERS.join(", ")));
            }
        }
        Ok(())
    }

    /// As the query of a request.
    pub fn query(&self) -> String {
        let number = |value: Option<u64>| value.map(millis_text);
        let outcome = self.outcome.map(|outcome| match outcome {
            Outcome::Allow => "allow".to_owned(),
            Outcome::Deny => "deny".to_owned(),
        });
        let pairs = [
            ("from", number(self.from)),
            ("to", number(self.to)),
            ("origin", self.origin.clone()),
            ("node", self.node.clone()),
            ("src", self.src.clone()),
            ("dst", self.dst.clone()),
            ("outcome", outcome),
            ("type", self.kind.clone()),
            ("reason", self.reason.clone()),
            ("route", self.route.clone()),
            ("policy", self.policy.clone()),
            ("method", self.method.clone()),
            ("path_prefix", self.path_prefix.clone()),
            ("denial", self.denial.clone()),
        ];
        let encode = |(name, value): (&str, Option<String>)| {
            let value = value?;
            let set = percent_encoding::NON_ALPHANUMERIC;
            Some(format!("{name}={}", percent_encoding::utf8_percent_encode(&value, set)))
        };
        pairs.into_iter().filter_map(encode).collect::<Vec<_>>().join("&")
    }

    /// Does a record of this log fit?
    pub fn takes(&self, origin: Option<(&str, &str)>, record: &Record) -> bool {
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        let id = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found.is_some_and(|id| names(wanted, id)))
        };
        let outcome = self.outcome.map(|outcome| match outcome {
            Outcome::Allow => "allow",
            Outcome::Deny => "deny",
        });
        outcome.is_none_or(|outcome| record.outcome.as_deref() == Some(outcome))
            && same(&self.kind, Some(&record.kind))
            && same(&self.denial, record.denial_id.as_deref())
            && same(&self.reason, record.reason.as_deref())
            && same(&self.route, record.route_id.as_deref())
            && same(&self.policy, record.policy_id.as_deref())
            && same(&self.method, record.method.as_deref())
            && id(&self.src, record.caller_id())
            && id(&self.dst, record.dst.spiffe_id.as_deref())
            && id(&self.origin, origin.map(|(id, _)| id))
            && same(&self.node, origin.map(|(_, node)| node))
            && self.path_prefix.as_deref().is_none_or(|prefix| {
                record.path.as_deref().is_some_and(|path| path.starts_with(prefix))
            })
            && self.holds_time(record)
    }

    fn holds_time(&self, record: &Record) -> bool {
        if self.from.is_none() && self.to.is_none() {
            return true;
        }
        let time = record.unix_millis();
        self.from.is_none_or(|from| time >= from) && self.to.is_none_or(|to| time < to)
    }
}

/// Is this the identity that `wanted` names? A whole SPIFFE ID, one with a final `*`, or the end of an ID's path.
pub fn names(wanted: &str, id: &str) -> bool {
    if let Some(prefix) = wanted.strip_suffix('*') {
        return id.starts_with(prefix);
    }
    if wanted.contains("://") {
        return id == wanted;
    }
    let wanted = wanted.trim_start_matches('/');
    let rest = id.strip_suffix(wanted);
    !wanted.is_empty() && rest.is_some_and(|rest| rest.ends_with('/') && !rest.ends_with("//"))
}

/// Is it one whole identity, which an index finds?
pub(super) fn is_whole(wanted: &str) -> bool {
    wanted.contains("://") && !wanted.ends_with('*')
}

fn moment(name: &str, value: &str, now: u64) -> Result<u64, String> {
    if let Some(millis) = unix_millis(value) {
        return Ok(millis);
    }
    if let Some(ago) = duration(value) {
        return Ok(now.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)));
    }
    let seconds = value.parse::<f64>().ok().filter(|seconds| (0.0..1e12).contains(seconds));
    match seconds {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "its range was checked"
        )]
        Some(seconds) => Ok((seconds * 1000.0).round() as u64),
        None => Err(format!(
            "{name}: {value:?}; expected a time as 2026-11-21T12:00:00Z, seconds since 1970, or a time ago as 30m, 1h, 7d"
        )),
    }
}

fn millis_text(millis: u64) -> String {
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

/// A length of time as people write it: `90s`, `30m`, `1h`, `7d`.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return None,
    };
    Some(Duration::from_secs(number.parse::<u32>().ok()?.into()) * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_named_by_its_id_by_a_prefix_or_by_the_end_of_its_path() {
        let id = "spiffe://shop.test/ns/pay/sa/billing";
        for wanted in [
            "spiffe://shop.test/ns/pay/sa/billing",
            "spiffe://shop.test/ns/*",
            "billing",
            "/sa/billing",
            "sa/billing",
        ] {
            assert!(names(wanted, id), "{wanted}");
        }
        for wanted in
            ["spiffe://shop.test/ns/pay", "illing", "", "/", "pay", "spiffe://other.test/*"]
        {
            assert!(!names(wanted, id), "{wanted}");
        }
        assert!(!names("test", "spiffe://shop.test"), "a trust domain is no path");
    }

    #[test]
    fn times_are_moments_or_a_time_ago() {
        let now = 1_795_262_400_000;
        let at = |text: &str| {
            let mut filter = Filter::default();
            filter.set("from", text, now).map(|()| filter.from.unwrap())
        };
        assert_eq!(at("2026-11-21T12:00:00Z").unwrap(), now);
        assert_eq!(at("1h").unwrap(), now - 3_600_000);
        assert_eq!(at("1795262400.5").unwrap(), now + 500);
        assert!(
            at("yesterday").is_err() && at("-1").is_err() && at("1y").is_err() && at("").is_err()
        );
        let filter = Filter { from: Some(1_500), ..Filter::default() };
        assert_eq!(filter.query(), "from=1%2E500");
    }

    #[test]
    fn a_filter_takes_what_fits_in_all_its_parts() {
        let line = r#"{"seq":3,"time":"2026-11-21T12:00:00.001Z","type":"decision","src":{"spiffe_id":"spiffe://shop/web"},
            "dst":{"spiffe_id":"spiffe://shop/billing"},"method":"GET","path":"/a/b","outcome":"deny","reason":"no_rule","denial_id":"d-1"}"#;
        let record = Record::parse(line).unwrap();
        let takes = |pairs: &[(&str, &str)]| {
            let mut filter = Filter::default();
            for (name, value) in pairs {
                filter.set(name, value, 0).unwrap();
            }
            filter.takes(Some(("spiffe://shop/billing", "node-1")), &record)
        };
        assert!(takes(&[]));
        assert!(takes(&[
            ("src", "web"),
            ("dst", "billing"),
            ("outcome", "deny"),
            ("type", "decision"),
            ("reason", "no_rule"),
            ("path_prefix", "/a"),
            ("denial", "d-1"),
            ("origin", "billing"),
            ("node", "node-1"),
            ("method", "GET"),
            ("from", "2026-11-21T12:00:00Z"),
            ("to", "2026-11-21T12:00:01Z")
        ]));
        for wrong in [
            ("src", "billing"),
            ("outcome", "allow"),
            ("type", "admin"),
            ("path_prefix", "/b"),
            ("denial", "d-2"),
            ("route", "r"),
            ("node", "node-2"),
            ("to", "2026-11-21T12:00:00Z"),
            ("from", "2026-11-21T12:00:01Z"),
        ] {
            assert!(!takes(&[wrong]), "{wrong:?}");
        }
    }
}
