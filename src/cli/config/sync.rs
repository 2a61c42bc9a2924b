//! `wardgate sync`: what an owner wrote is as its files say, and stays so.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::apply::{Asked, SetArgs, differs, print};
use crate::cli::audit::Output;
use crate::cli::command::asked_to_end;
use crate::cli::text::safe;

/// Make what an owner wrote be as its files say: apply with prune, once or again and again
///
/// With --watch the files are read again and again: what has changed in them is applied, and what was changed at the control plane
/// past them is put back. A round that fails is told, and the next one tries again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate sync -f config/ --owner shop
  wardgate sync -f config/ --owner shop --watch --every 30

Exit codes: 0 in sync; 1 refused. With --watch it ends when it is asked to, with the outcome of the last round.")]
pub(in crate::cli) struct SyncArgs {
    #[command(flatten)]
    set: SetArgs,
    /// Go on, and keep it so
    #[arg(long)]
    watch: bool,
    /// How often to look, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "watch",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: u64,
    /// Let a store that takes little at once have it in several revisions
    #[arg(long)]
    split: bool,
}

/// Runs `wardgate sync`. Exit code 1: refused.
///
/// # Errors
/// No owner is named; without --watch also: a file cannot be read, or nobody answers.
pub(in crate::cli) async fn sync(
    args: &SyncArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    if args.set.owner.is_none() {
        anyhow::bail!("sync removes what its owner no longer says: name the owner with --owner");
    }
    if !args.watch {
        let is_good = round(args, true, out).await?;
        return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut end = std::pin::pin!(asked_to_end());
    let mut is_first = true;
    let mut failure: Option<String> = None;
    loop {
        match round(args, is_first, out).await {
            Ok(true) => failure = None,
            Ok(false) => failure = Some(String::new()),
            Err(error) => {
                // The same failure again is no news.
                let now = format!("{error:#}");
                if failure.as_ref() != Some(&now) {
                    writeln!(out, "failed, and tried again: {}", safe(&now))?;
                }
                failure = Some(now);
            }
        }
        out.flush()?;
        is_first = false;
        tokio::select! {
            asked = &mut end => {
                asked?;
                return Ok(if failure.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            () = tokio::time::sleep(Duration::from_secs(args.every)) => {}
        }
    }
}

/// One round; tells whether it is as the files say now.
async fn round(
    args: &SyncArgs,
    is_first: bool,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<bool> {
    let asked = Asked { prune: true, split: args.split, wait: None };
    let (gathered, told) = args.set.ask("apply", asked).await?;
    if is_first || told.is_refused || differs(&told.body) {
        match args.set.output {
            Output::Json => writeln!(out, "{}", told.body)?,
            Output::Text => {
                print(&gathered, &told, out)?;
                match told.is_refused {
                    true => {
                        let why = told.body["error_msg"].as_str().unwrap_or("refused");
                        writeln!(out, "nothing was written: {}", safe(why))?;
                    }
                    false => writeln!(out, "in sync at revision {}", told.body["revision"])?,
                }
            }
        }
    }
    Ok(!told.is_refused)
}
