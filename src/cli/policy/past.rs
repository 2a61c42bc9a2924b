//! What commands that look into the past share: the log, the policies, the routes' labels, moments.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::files::{sound_policies, walk};
use crate::audit::learn::Observations;
use crate::audit::{Lines, Seen};
use crate::cli::admin::{AdminArgs, list};
use crate::cli::audit::DEFAULT_LOG;
use crate::identity::SpiffeId;
use crate::model::{Id, IdentityPolicy, Labels};

/// Which part of the past.
#[derive(Args, Debug)]
pub(super) struct PastArgs {
    /// Decision logs, or folders of them. Files that were rotated from them are read as well.
    #[arg(long, env = "WARDGATE_AUDIT", default_value = DEFAULT_LOG, value_name = "FILE", value_delimiter = ':')]
    log: Vec<PathBuf>,
    /// Only what happened since then: 30m, 24h, 7d, or RFC 3339.
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// The SPIFFE ID of an ingress: there, what no policy selects is open. May be given several times.
    #[arg(long, value_name = "ID")]
    ingress: Vec<SpiffeId>,
}

impl PastArgs {
    pub(super) fn ingresses(&self) -> &[SpiffeId] {
        &self.ingress
    }

    /// Reads the log. `policies` are what it will be asked about.
    pub(super) fn read(&self, policies: &[(Id, IdentityPolicy)]) -> anyhow::Result<Observations> {
        let since = self.since.as_deref().map(millis_since).transpose()?.unwrap_or_default();
        let by_network = policies.iter().flat_map(|(_, policy)| &policy.rules).any(|rule| {
            rule.from.as_ref().is_some_and(|from| {
                let lists = [
                    &from.ip_blocks,
                    &from.not_ip_blocks,
                    &from.remote_ip_blocks,
                    &from.not_remote_ip_blocks,
                ];
                lists.into_iter().any(|list| !list.is_empty())
            })
        });
        let mut observations =
            if by_network { Observations::with_sources() } else { Observations::new() };
        for log in &self.log {
            for log in logs(log)? {
                for line in Lines::of(&log).seen() {
                    let seen: Seen =
                        line.with_context(|| format!("cannot read {}", log.display()))?;
                    if seen.time >= since {
                        observations.add(&seen);
                    }
                }
            }
        }
        if observations.is_empty() && observations.skipped() == Default::default() {
            let logs: Vec<_> = self.log.iter().map(|log| log.display().to_string()).collect();
            bail!("no decision in {}: name the logs with --log or WARDGATE_AUDIT", logs.join(", "));
        }
        Ok(observations)
    }
}

/// The log itself, or the logs of a folder: those that no other one was rotated from.
fn logs(log: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !log.is_dir() {
        if !log.exists() {
            bail!("there is no log {}; name it with --log or WARDGATE_AUDIT", log.display());
        }
        return Ok(vec![log.to_path_buf()]);
    }
    let mut files = Vec::new();
    walk(log, &["jsonl"], &mut files)?;
    files.sort();
    let rotated: Vec<PathBuf> = files
        .iter()
        .flat_map(|file| {
            let all = crate::observe::log_files(file);
            all[..all.len() - 1].to_vec()
        })
        .collect();
    files.retain(|file| !rotated.contains(file));
    Ok(files)
}

/// `30m`, `24h`, `7d` before now, or a moment; in milliseconds since 1970.
fn millis_since(text: &str) -> anyhow::Result<u64> {
    let unit = text.chars().last().unwrap_or_default();
    let seconds = match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    };
    if let Some(seconds) = seconds
        && let Ok(number) = text[..text.len() - 1].parse::<u64>()
    {
        let ago = number.saturating_mul(seconds).saturating_mul(1000);
        return Ok(crate::rt::unix_millis().saturating_sub(ago));
    }
    let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) else {
        bail!(
            "--since {text}: expected a span as 30m, 24h or 7d, or a moment as 2026-11-21T10:00:00Z"
        );
    };
    Ok(u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).unwrap_or_default())
}

/// A time in milliseconds since 1970, for people.
pub(in crate::cli) fn moment(millis: u64) -> String {
    let seconds = i64::try_from(millis / 1000).unwrap_or_default();
    let moment = OffsetDateTime::from_unix_timestamp(seconds).ok();
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_else(|| millis.to_string())
}

/// A set of policies and what routes bear.
pub(super) struct Set {
    pub(super) policies: Vec<(Id, IdentityPolicy)>,
    pub(super) labels: HashMap<Id, Labels>,
}

/// The policies of files and folders; of the control plane where none are named.
pub(super) async fn read_set(files: &[PathBuf], admin: &AdminArgs) -> anyhow::Result<Set> {
    let mut labels = HashMap::new();
    if admin.is_given() {
        labels = read_labels(admin).await?;
    }
    if !files.is_empty() {
        let declared = sound_policies(files)?;
        let policies = declared.policies.into_iter().map(|placed| (placed.id, placed.body));
        return Ok(Set { policies: policies.collect(), labels });
    }
    if !admin.is_given() {
        bail!("no policies: name files or folders with -f, or the control plane with --admin URL");
    }
    let mut policies = Vec::new();
    for (id, value) in list(&admin.open()?, "identity_policies").await? {
        let policy =
            serde_json::from_value(value).with_context(|| format!("policy {id} cannot be read"))?;
        policies.push((Id::parse(&id).map_err(anyhow::Error::msg)?, policy));
    }
    Ok(Set { policies, labels })
}

/// The labels of routes, those of their services beneath.
async fn read_labels(admin: &AdminArgs) -> anyhow::Result<HashMap<Id, Labels>> {
    let admin = admin.open()?;
    let labels_of = |value: &Value| -> Labels {
        serde_json::from_value(value["labels"].clone()).unwrap_or_default()
    };
    let services: HashMap<String, Labels> = list(&admin, "services")
        .await?
        .into_iter()
        .map(|(id, value)| (id, labels_of(&value)))
        .collect();
    let mut all = HashMap::new();
    for (id, value) in list(&admin, "routes").await? {
        let service = match &value["service_id"] {
            Value::String(id) => services.get(id),
            Value::Number(id) => services.get(&id.to_string()),
            _ => None,
        };
        let mut labels = service.cloned().unwrap_or_default();
        labels.extend(labels_of(&value));
        if let Ok(id) = Id::parse(&id) {
            all.insert(id, labels);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_or_a_moment_says_since_when() {
        let now = crate::rt::unix_millis();
        let hour = millis_since("1h").unwrap();
        assert!((now - 3_600_000..now - 3_590_000).contains(&hour), "{hour}");
        assert_eq!(millis_since("1970-01-01T00:00:01Z").unwrap(), 1000);
        assert_eq!(moment(1000), "1970-01-01T00:00:01Z");
        assert!(millis_since("soon").unwrap_err().to_string().contains("30m"));
    }
}
