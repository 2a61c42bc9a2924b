//! The control plane's archive, asked: what commands about decisions have in common.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use super::audit::DEFAULT_LOG;
use super::client::Admin;
use crate::audit::{FILTERS, Filter, Lines, Record};
use crate::rt::unix_millis;

/// Where records are looked for.
#[derive(Args, Debug)]
pub(super) struct Where {
    /// The Admin API of a control plane, whose archive is asked: http://127.0.0.1:9180. Without it the local log is read.
    #[arg(long, env = "WARDGATE_ADMIN", value_name = "URL")]
    pub(super) admin: Option<String>,
    /// The Admin API's key.
    #[arg(long, env = "WARDGATE_KEY", hide_env_values = true, value_name = "KEY")]
    pub(super) key: Option<String>,
    /// A local log, whatever else is set; files that were rotated from it are read as well [default without --admin: the environment's
    /// WARDGATE_AUDIT, or .wardgate/audit.jsonl]
    #[arg(long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,
}

impl Where {
    /// The control plane, if it is to be asked.
    pub(super) fn central(&self) -> anyhow::Result<Option<Admin>> {
        let Some(url) = self.admin.as_ref().filter(|_| self.log.is_none()) else { return Ok(None) };
        Ok(Some(Admin::new(url, self.key.as_deref().unwrap_or_default())?))
    }

    /// The local log.
    pub(super) fn log(&self) -> PathBuf {
        self.log.clone().unwrap_or_else(usual_log)
    }
}

/// The log when none is named.
pub(super) fn usual_log() -> PathBuf {
    std::env::var_os("WARDGATE_AUDIT").map_or_else(|| DEFAULT_LOG.into(), PathBuf::from)
}

/// Which records.
#[derive(Args, Debug, Default)]
pub(super) struct FilterArgs {
    /// Not before: 2026-11-21T12:00:00Z, or a time ago as 30m, 1h, 7d
    #[arg(long, value_name = "TIME")]
    pub(super) from: Option<String>,
    /// Before
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Whose log: SPIFFE ID (* at its end stands for anything), or the end of its path
    #[arg(long, value_name = "ID")]
    origin: Option<String>,
    /// On which node
    #[arg(long)]
    node: Option<String>,
    /// Who called
    #[arg(long, value_name = "ID")]
    pub(super) src: Option<String>,
    /// Whom it called
    #[arg(long, value_name = "ID")]
    pub(super) dst: Option<String>,
    /// allow or deny
    #[arg(long)]
    pub(super) outcome: Option<String>,
    /// decision, handshake_refused, connection, identity, config, admin, posture, loss, issuer, seal
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Why it was refused, as no_rule
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// The route that matched
    #[arg(long, value_name = "ID")]
    route: Option<String>,
    /// The policy whose rule decided
    #[arg(long, value_name = "ID")]
    policy: Option<String>,
    /// The method
    #[arg(long)]
    method: Option<String>,
    /// How the path begins
    #[arg(long = "path", value_name = "PREFIX")]
    pub(super) path_prefix: Option<String>,
    /// The id that a refused caller was told
    #[arg(long, value_name = "ID")]
    denial: Option<String>,
}

impl FilterArgs {
    pub(super) fn filter(&self) -> anyhow::Result<Filter> {
        let mut filter = Filter::default();
        let now = unix_millis();
        let values = [
            &self.from,
            &self.to,
            &self.origin,
            &self.node,
            &self.src,
            &self.dst,
            &self.outcome,
            &self.kind,
            &self.reason,
            &self.route,
            &self.policy,
            &self.method,
            &self.path_prefix,
            &self.denial,
        ];
        for (name, value) in FILTERS.into_iter().zip(values) {
            if let Some(value) = value {
                filter.set(name, value, now).map_err(anyhow::Error::msg)?;
            }
        }
        Ok(filter)
    }
}

/// Asks the archive; `path` is below `/audit`.
pub(super) async fn ask(admin: &Admin, path: &str) -> anyhow::Result<Value> {
    let answer = admin.call("GET", &format!("/audit/{path}"), None).await?;
    if answer.status == 401 {
        bail!("the Admin API does not know the key: see --key and WARDGATE_KEY");
    }
    let value = answer.json()?;
    if answer.status != 200 {
        let why = value["error_msg"].as_str().unwrap_or("without a reason");
        bail!("the control plane does not answer the question: {why}");
    }
    Ok(value)
}

/// The lines of an answer, byte for byte.
pub(super) fn answered(value: &Value) -> impl Iterator<Item = &str> {
    value["records"].as_array().into_iter().flatten().filter_map(|one| one["line"].as_str())
}

/// The archive's records that fit, at most so many, the newest first or the oldest.
pub(super) async fn fetch(
    admin: &Admin,
    filter: &Filter,
    order: &str,
    most: usize,
) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut cursor = String::new();
    while lines.len() < most {
        let limit = (most - lines.len()).min(1000);
        let path =
            format!("records?lines=true&order={order}&limit={limit}&{}{cursor}", filter.query());
        let answer = ask(admin, &path).await?;
        lines.extend(answered(&answer).map(str::to_owned));
        match answer["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    Ok(lines)
}

/// The local log's records that fit, at most so many, the newest first or the oldest.
pub(super) fn read(
    log: &std::path::Path,
    filter: &Filter,
    newest_first: bool,
    most: usize,
) -> anyhow::Result<Vec<String>> {
    let mut lines = std::collections::VecDeque::new();
    for line in Lines::of(log) {
        let line = line?;
        if !Record::parse(&line).is_some_and(|record| filter.takes(None, &record)) {
            continue;
        }
        lines.push_back(line);
        if lines.len() > most {
            if !newest_first {
                lines.pop_back();
                break;
            }
            lines.pop_front();
        }
    }
    let mut lines = Vec::from(lines);
    if newest_first {
        lines.reverse();
    }
    Ok(lines)
}
