//! `Denial`: what a record says of a refusal.

use std::io::Write;
use std::path::Path;

use serde_json::Value;

use crate::cli::text::{field, safe};

/// What a record says of a refusal.
pub(super) struct Denial<'r> {
    pub(super) record: &'r Value,
    pub(super) src: Option<&'r str>,
    pub(super) method: Option<&'r str>,
    pub(super) host: Option<&'r str>,
    pub(super) path: Option<&'r str>,
    pub(super) port: u16,
    pub(super) route: Option<&'r str>,
    pub(super) reason: &'r str,
    /// The rule that refused: policy and rule.
    pub(super) by: Option<(&'r str, &'r str)>,
    pub(super) nearest: Option<(&'r str, &'r str, &'r str)>,
}

impl<'r> Denial<'r> {
    pub(super) fn read(record: &'r Value) -> Self {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let pair = |one: &str, other: &str| Some((text(one)?, text(other).unwrap_or("1")));
        Self {
            record,
            src: text("/src/spiffe_id"),
            method: text("/method"),
            host: text("/host"),
            path: text("/path"),
            port: record["dst"]["port"].as_u64().and_then(|port| port.try_into().ok()).unwrap_or(0),
            route: text("/route_id"),
            reason: text("/reason").unwrap_or("no_rule"),
            by: pair("/policy_id", "/rule"),
            nearest: pair("/nearest/policy_id", "/nearest/rule")
                .map(|(policy, rule)| (policy, rule, text("/nearest/clause").unwrap_or_default())),
        }
    }

    /// The policy whose text helps.
    pub(super) fn policy_to_read(&self) -> Option<&'r str> {
        self.by.map(|(policy, _)| policy).or(self.nearest.map(|(policy, ..)| policy))
    }

    pub(super) fn print(&self, file: &Path, out: &mut dyn Write) -> std::io::Result<()> {
        let get = |pointer: &str| field(self.record, pointer);
        let join = |parts: &[Option<String>]| {
            parts.iter().flatten().map(String::as_str).collect::<Vec<_>>().join("   ")
        };
        let named = |name: &str, pointer: &str| get(pointer).map(|text| format!("{name} {text}"));
        writeln!(
            out,
            "denial {}   {}",
            get("/denial_id").unwrap_or_default(),
            get("/time").unwrap_or_default()
        )?;
        let hidden = get("/src/spiffe_id_hmac").map(|proof| {
            format!("left out by the settings; wardgate audit match tells whether it is whom you think (hmac {proof})")
        });
        let who = get("/src/spiffe_id")
            .or(hidden)
            .or_else(|| Some("nobody: no certificate was presented".into()));
        writeln!(
            out,
            "  who      {}",
            join(&[
                who,
                named("certificate", "/src/cert/serial"),
                named("valid until", "/src/cert/not_after"),
                named("from", "/src/addr"),
            ])
        )?;
        writeln!(
            out,
            "  to whom  {}",
            join(&[
                get("/dst/spiffe_id"),
                named("port", "/dst/port"),
                named("route", "/route_id"),
                named("upstream", "/upstream"),
            ])
        )?;
        let path = get("/path").or_else(|| get("/template"));
        let path = path.unwrap_or_else(|| "(path left out by the settings)".to_owned());
        let what = get("/method").map(|method| format!("{method} {path}"));
        writeln!(
            out,
            "  what     {}",
            join(&[
                what.or_else(|| Some("a connection".into())),
                named("host", "/host"),
                get("/protocol"),
                named("answered", "/status"),
            ])
        )?;
        let readings = self.record["path_readings"].as_array().into_iter().flatten();
        let readings: Vec<String> = readings.filter_map(Value::as_str).map(safe).collect();
        if !readings.is_empty() {
            writeln!(out, "           can also be read as {}", readings.join(" or "))?;
        }
        if let Some(count) = get("/count") {
            let (first, last) =
                (get("/first").unwrap_or_default(), get("/last").unwrap_or_default());
            writeln!(
                out,
                "  how often  {count} times, {first} to {last}; this is the last one's id"
            )?;
        }
        writeln!(out, "  why      {}: {}", safe(self.reason), sentence(self.reason))?;
        if let Some((policy, rule)) = self.by {
            let revision = named("revision", "/policy_revision");
            writeln!(
                out,
                "  by       {}",
                join(&[Some(format!("policy {}, rule {}", safe(policy), safe(rule))), revision])
            )?;
        }
        if let Some((policy, rule, clause)) = self.nearest {
            let (policy, rule, clause) = (safe(policy), safe(rule), safe(clause));
            writeln!(
                out,
                "  nearest  policy {policy}, rule {rule}: its \"{clause}\" does not hold"
            )?;
        }
        let place = join(&[
            named("configuration revision", "/config_revision"),
            named("record", "/seq"),
            Some(format!("in {}", file.display())),
        ]);
        writeln!(out, "  where    {place}")
    }
}

fn sentence(reason: &str) -> &'static str {
    let known = crate::policy::Reason::ALL.into_iter().find(|known| known.code() == reason);
    known.map_or("see docs/policy.md", |known| known.sentence())
}
