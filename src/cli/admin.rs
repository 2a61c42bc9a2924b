//! The Admin API for the verbs that ask it.

use std::future::Future;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::cli::client::Admin;

/// Where the Admin API is.
#[derive(Args, Debug)]
pub(in crate::cli) struct AdminArgs {
    /// The Admin API, as http://127.0.0.1:9180; https:// with the identity in WARDGATE_IDENTITY, or a public name's certificate
    #[arg(long, env = "WARDGATE_ADMIN", value_name = "URL")]
    admin: Option<String>,
    /// The Admin API's key
    #[arg(long, env = "WARDGATE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
}

impl AdminArgs {
    /// Was an Admin API named?
    pub(in crate::cli) fn is_given(&self) -> bool {
        self.admin.is_some()
    }

    pub(in crate::cli) fn open(&self) -> anyhow::Result<Admin> {
        let Some(url) = &self.admin else {
            bail!("the Admin API is not named: --admin URL or WARDGATE_ADMIN")
        };
        match &self.key {
            Some(key) => Admin::new(url, key),
            None if Admin::has_identity(url) => Admin::new(url, ""),
            None => bail!(
                "the Admin API wants a key (--key or WARDGATE_KEY), or an identity (WARDGATE_IDENTITY, over https)"
            ),
        }
    }
}

/// Runs what waits for a network; the verbs themselves do not.
pub(in crate::cli) fn wait<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start a runtime")?.block_on(work)
}

/// Asks, and turns a refusal into an error with the Admin API's sentence.
pub(in crate::cli) async fn ask(
    admin: &Admin,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let answer = admin.call(method, path, body).await?;
    let value = answer.json().unwrap_or_default();
    match answer.status {
        200..300 => Ok(value),
        404 => bail!("there is no {}", path.trim_start_matches('/')),
        status => {
            let why = ["error_msg", "description", "message"];
            let why = why.into_iter().find_map(|field| value[field].as_str());
            bail!(
                "the Admin API refused {method} {path} with {status}: {}",
                why.unwrap_or("without a reason")
            )
        }
    }
}

/// The resources of a kind: id and value.
pub(in crate::cli) async fn list(
    admin: &Admin,
    kind: &str,
) -> anyhow::Result<Vec<(String, Value)>> {
    let answer = ask(admin, "GET", &format!("/{kind}"), None).await?;
    let entries = answer["list"].as_array().cloned().unwrap_or_default();
    let item = |entry: Value| {
        let key = entry["key"].as_str()?;
        Some((key.rsplit('/').next()?.to_owned(), entry["value"].clone()))
    };
    Ok(entries.into_iter().filter_map(item).collect())
}
