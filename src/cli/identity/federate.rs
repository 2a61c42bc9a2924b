//! `wardgate identity federate`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::text::date;
use crate::cli::admin::{AdminArgs, ask, list, wait};
use crate::cli::client::send;
use crate::identity::{SpiffeId, TrustDomain};

/// How a bundle endpoint's server is known.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Profile {
    /// By the public name in its URL
    HttpsWeb,
    /// By its SPIFFE ID
    HttpsSpiffe,
}

#[derive(Debug, Subcommand)]
pub(super) enum FederateVerb {
    /// Trust another trust domain whose bundle is fetched from its bundle endpoint
    Add {
        /// The trust domain
        #[arg(value_parser = super::command::trust_domain)]
        trust_domain: TrustDomain,
        /// The bundle endpoint, https
        #[arg(long)]
        url: String,
        /// How its server is known
        #[arg(long, value_enum)]
        profile: Profile,
        /// With https_spiffe: exactly who answers there
        #[arg(long, value_name = "SPIFFE-ID", value_parser = super::command::spiffe_id)]
        spiffe_id: Option<SpiffeId>,
        /// The domain's bundle until the first one is fetched (PEM or a SPIFFE bundle document); with https_spiffe and a server
        /// of the very domain it is needed
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
        /// With https_web: the authorities (PEM) that may vouch for the server, in place of the system's
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// Seconds between two fetches, in place of what the document says
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(10..=86_400))]
        refresh_hint: Option<u32>,
        /// The endpoint may have a private address
        #[arg(long)]
        allow_private: bool,
        /// Follow no redirects
        #[arg(long)]
        no_redirects: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// List the declared trust domains; with --status, how it stands with them in a running process
    List {
        /// The status port of a process, as 127.0.0.1:15020
        #[arg(long, value_name = "ADDRESS")]
        status: Option<String>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Trust it no longer, at once, everywhere
    Remove {
        /// The trust domain
        #[arg(value_parser = super::command::trust_domain)]
        trust_domain: TrustDomain,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Let every process fetch the bundle now
    Refresh {
        /// The trust domain
        #[arg(value_parser = super::command::trust_domain)]
        trust_domain: TrustDomain,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

pub(super) fn federate(verb: &FederateVerb, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match verb {
        FederateVerb::Add {
            trust_domain,
            url,
            profile,
            spiffe_id,
            bundle,
            ca,
            refresh_hint,
            allow_private,
            no_redirects,
            admin,
        } => {
            let mut endpoint = json!({
                "url": url,
                "profile": match profile {
                    Profile::HttpsWeb => "https_web",
                    Profile::HttpsSpiffe => "https_spiffe",
                },
            });
            if let Some(id) = spiffe_id {
                endpoint["spiffe_id"] = id.as_str().into();
            }
            for (field, file) in [("bundle", bundle), ("ca", ca)] {
                if let Some(file) = file {
                    let text = std::fs::read_to_string(file)
                        .with_context(|| format!("cannot read {}", file.display()))?;
                    endpoint[field] = text.into();
                }
            }
            if *allow_private {
                endpoint["allow_private"] = true.into();
            }
            if *no_redirects {
                endpoint["allow_redirects"] = false.into();
            }
            let mut declared = json!({ "endpoint": endpoint });
            if let Some(hint) = refresh_hint {
                declared["refresh_hint"] = (*hint).into();
            }
            let admin = admin.open()?;
            let path = format!("/trust_domains/{trust_domain}");
            wait(async { ask(&admin, "PUT", &path, Some(&declared)).await })?;
            writeln!(
                out,
                "Declared trust domain {trust_domain}; its bundle is fetched from {url}"
            )?;
        }
        FederateVerb::List { status: Some(address), .. } => return state(address, out),
        FederateVerb::List { status: None, admin } => {
            let admin = admin.open()?;
            let declared = wait(async { list(&admin, "trust_domains").await })?;
            for (domain, value) in &declared {
                writeln!(out, "{domain}  {}", origin(value))?;
                if let Some(mode) = value["revocation"].as_object() {
                    let mode = mode.get("mode").and_then(Value::as_str).unwrap_or("soft");
                    writeln!(out, "  revocation {mode}")?;
                }
            }
            if declared.is_empty() {
                writeln!(out, "no trust domain is declared")?;
            }
        }
        FederateVerb::Remove { trust_domain, admin } => {
            let admin = admin.open()?;
            let path = format!("/trust_domains/{trust_domain}");
            wait(async { ask(&admin, "DELETE", &path, None).await })?;
            writeln!(out, "Trust domain {trust_domain} is declared no longer")?;
        }
        FederateVerb::Refresh { trust_domain, admin } => {
            let admin = admin.open()?;
            let path = format!("/trust_domains/{trust_domain}");
            wait(async {
                let found = ask(&admin, "GET", &path, None).await?;
                let mut value = found["value"].clone();
                if value["endpoint"].is_null() {
                    bail!("{trust_domain} is declared without an endpoint: nothing is fetched");
                }
                for field in ["create_time", "update_time"] {
                    if let Some(fields) = value.as_object_mut() {
                        fields.shift_remove(field);
                    }
                }
                // A new revision of the same is told to every process, and each fetches what is declared anew.
                ask(&admin, "PUT", &path, Some(&value)).await
            })?;
            writeln!(out, "Every process fetches the bundle of {trust_domain} now")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn origin(declared: &Value) -> String {
    match (&declared["bundle"], &declared["endpoint"]) {
        (Value::Null, Value::Null) => "bundle from where identities come from".into(),
        (Value::Null, endpoint) => {
            let text = |field: &str| endpoint[field].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", text("profile"), text("url"), text("spiffe_id")).trim_end().into()
        }
        _ => "bundle in the resource".into(),
    }
}

/// How it stands in a running process; exit code 1 when a domain has no bundle or raised an alarm.
fn state(address: &str, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let answer = wait(async { send(address, address, "GET", "/federation", &[], None).await })?;
    if answer.status != 200 {
        bail!("{address} answered {}: is it a status port?", answer.status);
    }
    let answer = answer.json()?;
    let mut is_well = true;
    for report in answer["trust_domains"].as_array().into_iter().flatten() {
        let text =
            |field: &str| report[field].as_str().unwrap_or_default().escape_debug().to_string();
        let has_bundle = report["has_bundle"] == true;
        let alarm = report["alarm"] == true;
        is_well &= has_bundle && !alarm;
        let state = match (has_bundle, alarm) {
            (_, true) => "ALARM",
            (true, false) => "trusted",
            (false, false) => "NO BUNDLE",
        };
        writeln!(out, "{}  {state}  ({}, {})", text("trust_domain"), text("part"), text("origin"))?;
        writeln!(out, "  roots {}  sequence {}", report["roots"], report["sequence"])?;
        if let Some(at) = report["fetched_at"].as_i64() {
            writeln!(out, "  fetched {}", date(at))?;
        }
        if report["failures"].as_u64().unwrap_or_default() > 0 {
            writeln!(out, "  {} failures since", report["failures"])?;
        }
        if !report["last_error"].is_null() {
            writeln!(out, "  last error: {}", text("last_error"))?;
        }
        for list in report["lists"].as_array().into_iter().flatten() {
            let end = list["next_update"].as_i64().map_or_else(|| "none".into(), date);
            let from = list["from"].as_str().unwrap_or_default().escape_debug();
            writeln!(out, "  revocation list {from}, next update {end}")?;
            if let Some(error) = list["error"].as_str() {
                writeln!(out, "    {}", error.escape_debug())?;
            }
        }
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
