//! `wardgate policy coverage`: which rules, and which entries of them, were used.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::past::{PastArgs, moment, read_set};
use crate::audit::learn::{Tried, coverage};
use crate::cli::admin::AdminArgs;
use crate::cli::audit::Output;
use crate::cli::text::safe;

#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  wardgate policy coverage -f policies/ --since 30d

A request counts for the rule that decides it.

Exit codes: 0; with --strict 1 when a rule or an entry of a rule was never used.")]
pub(super) struct CoverageArgs {
    /// The policies: files, or folders; those of the control plane where none are named.
    #[arg(short, long = "file", value_name = "PATH")]
    file: Vec<PathBuf>,
    #[command(flatten)]
    past: PastArgs,
    #[command(flatten)]
    admin: AdminArgs,
    /// Fail when something was never used.
    #[arg(long)]
    strict: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate policy coverage`. Exit code 1 with `--strict`: something was never used.
pub(super) async fn run(
    args: &CoverageArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let set = read_set(&args.file, &args.admin).await?;
    let observations = args.past.read(&set.policies)?;
    let ingresses = args.past.ingresses();
    let found =
        coverage(&observations, Tried { policies: &set.policies, labels: &set.labels, ingresses });
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?,
        Output::Text => {
            writeln!(out, "{:>9}  {:>7}  {:<20}  RULE", "REQUESTS", "CALLERS", "LAST")?;
            for rule in &found.rules {
                let (count, last) = match rule.evidence {
                    Some(evidence) => (evidence.count, moment(evidence.last)),
                    None => (0, "never".to_owned()),
                };
                let name = format!("{}/{}", rule.policy, rule.rule);
                writeln!(out, "{count:>9}  {:>7}  {last:<20}  {}", rule.callers, safe(&name))?;
                for list in &rule.partly {
                    let unused: Vec<String> = list.unused.iter().map(|entry| safe(entry)).collect();
                    writeln!(
                        out,
                        "{:43}{}: {} of {} never used: {}",
                        "",
                        list.field,
                        list.unused.len(),
                        list.entries,
                        unused.join(", ")
                    )?;
                }
            }
            writeln!(
                out,
                "{} requests were decided by no rule, {} by what the log does not tell",
                found.undecided, found.unknown
            )?;
        }
    }
    let all_used = found.rules.iter().all(|rule| rule.evidence.is_some() && rule.partly.is_empty());
    Ok(if args.strict && !all_used { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
