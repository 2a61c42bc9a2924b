//! `wardgate validate`: files, judged as a control plane would judge them, without one.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::apply::print_errors;
use super::files::Gathered;
use crate::cli::audit::Output;
use crate::cli::identity::trust_domain;
use crate::identity::TrustDomain;
use crate::roles::judge_offline;

/// Judge files as a control plane would, without one: fields, plugins, references, and the data plane's own compiler
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate validate -f config/
  wardgate validate -f new-routes.yaml --partial      what it refers to is at the control plane

Exit codes: 0 it can be applied, 1 mistakes.")]
pub(in crate::cli) struct ValidateArgs {
    /// Files, or folders of *.yaml, *.yml and *.json; - is the standard input
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    file: Vec<PathBuf>,
    /// The files are a part: what they refer to need not be in them
    #[arg(long)]
    partial: bool,
    /// The trust domain that they are for; without it, that of the first workload
    #[arg(long, value_name = "NAME", value_parser = trust_domain)]
    trust_domain: Option<TrustDomain>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate validate`. Exit code 1: mistakes.
///
/// # Errors
/// A file cannot be read.
pub(in crate::cli) async fn validate(
    args: &ValidateArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let gathered = Gathered::read(&args.file)?;
    let theirs = || gathered.set.get("workloads").and_then(first_domain);
    let domain = match args.trust_domain.clone().or_else(theirs) {
        Some(domain) => domain,
        None => "example.org".parse()?,
    };
    let judged = judge_offline(gathered.set.clone(), domain, args.partial).await?;
    let count: usize = gathered.set.values().filter_map(Value::as_array).map(Vec::len).sum();
    let (is_good, body) = match judged {
        Ok(()) => (true, json!({ "resources": count, "errors": [] })),
        Err(mut body) => {
            body["resources"] = json!(count);
            (false, body)
        }
    };
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&body)?)?,
        Output::Text => {
            print_errors(&gathered, &body, out)?;
            let mistakes = body["errors"].as_array().map_or(0, Vec::len);
            writeln!(out, "{count} resources, {mistakes} mistakes")?;
        }
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The trust domain of the first registration entry.
fn first_domain(workloads: &Value) -> Option<TrustDomain> {
    let id = workloads.get(0)?.get("spiffe_id")?.as_str()?;
    let id: crate::identity::SpiffeId = id.parse().ok()?;
    id.trust_domain_name().parse().ok()
}
