//! `wardgate policy replay`: what other policies would have decided about what really happened.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::past::{PastArgs, moment, read_set};
use crate::audit::learn::{Change, Tried, replay};
use crate::cli::admin::AdminArgs;
use crate::cli::audit::Output;
use crate::cli::text::safe;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate policy replay -f policies/ --log .wardgate/audit.jsonl      would these policies decide alike?
  wardgate policy replay -f new/ --against old/ --since 7d             what does the change do to the last week?

Header fields, queries, claims and the time of day are not in the log: what depends on them is told apart.

Exit codes: 0 everything is decided alike, 4 something is not.")]
pub(super) struct ReplayArgs {
    /// The policies to try: files, or folders; those of the control plane where none are named.
    #[arg(short, long = "file", value_name = "PATH")]
    file: Vec<PathBuf>,
    /// Compare with what these policies say, in place of what happened.
    #[arg(long, value_name = "PATH")]
    against: Vec<PathBuf>,
    #[command(flatten)]
    past: PastArgs,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate policy replay`. Exit code 4: something would be decided otherwise.
pub(super) async fn run(
    args: &ReplayArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let set = read_set(&args.file, &args.admin).await?;
    let old = match args.against.is_empty() {
        true => None,
        false => Some(read_set(&args.against, &args.admin).await?),
    };
    let mut all = set.policies.clone();
    all.extend(old.iter().flat_map(|old| old.policies.clone()));
    let observations = args.past.read(&all)?;
    let ingresses = args.past.ingresses();
    let tried = Tried { policies: &set.policies, labels: &set.labels, ingresses };
    let against =
        old.as_ref().map(|old| Tried { policies: &old.policies, labels: &old.labels, ingresses });
    let found = replay(&observations, tried, against);
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?,
        Output::Text => {
            writeln!(out, "{} requests, {} decided alike", found.requests, found.same)?;
            print(out, "would be refused", &found.newly_denied)?;
            print(out, "would be allowed", &found.newly_allowed)?;
            print(out, "depends on what the log does not tell", &found.unknown)?;
            let skipped = found.skipped;
            if skipped != Default::default() {
                writeln!(
                    out,
                    "\nnot decided again: {} with hidden fields, {} to a workload without identity",
                    skipped.hidden, skipped.without_workload
                )?;
            }
        }
    }
    Ok(if found.changes_nothing() { ExitCode::SUCCESS } else { ExitCode::from(4) })
}

/// A table of changes under its title; nothing when there are none.
pub(super) fn print(
    out: &mut (dyn Write + Send),
    title: &str,
    changes: &[Change],
) -> std::io::Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title}:")?;
    for change in changes {
        let src = change.src.as_deref().unwrap_or("(no identity)");
        let method = change.method.as_deref().unwrap_or("(connection)");
        let why = match &change.rule {
            Some((policy, rule)) => format!("{} by {policy}/{rule}", change.now),
            None => change.now.to_owned(),
        };
        writeln!(
            out,
            "  {:>7}  {} -> {}  {} {}  {}  last {}",
            change.evidence.count,
            safe(src),
            safe(&change.dst),
            safe(method),
            safe(&change.path),
            safe(&why),
            moment(change.evidence.last)
        )?;
    }
    Ok(())
}
