//! `wardgate policy history` and `rollback`: who changed what, and putting it back.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use crate::cli::admin::AdminArgs;
use crate::cli::audit::Output;
use crate::cli::config::{Past, show_history, show_rollback};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate policy history                         all changes, newest first
  wardgate policy history billing-read            one policy's, with its text
  wardgate policy history --at 2026-11-20T18:00:00Z   the policies as they stood then")]
pub(super) struct HistoryArgs {
    /// One policy.
    id: Option<String>,
    /// The whole set as it stood at a revision or time (RFC 3339).
    #[arg(long, value_name = "WHEN", conflicts_with = "id")]
    at: Option<String>,
    /// So many changes at most.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate policy rollback billing-read --to 1041
  wardgate policy rollback --to 2026-11-20T18:00:00Z --dry-run    all policies; tell only

Without an id all policies are put back: what has come since is removed.")]
pub(super) struct RollbackArgs {
    /// One policy; all of them when it is left out.
    id: Option<String>,
    /// The revision or time (RFC 3339) to go back to.
    #[arg(long, value_name = "WHEN")]
    to: String,
    /// Only tell what would change.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate policy history`.
pub(super) async fn history(
    args: &HistoryArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let admin = args.admin.open()?;
    let wanted = (args.at.as_deref(), args.limit);
    show_history(&admin, &past(args.id.as_deref()), wanted, args.output, out).await
}

/// Runs `wardgate policy rollback`.
pub(super) async fn rollback(
    args: &RollbackArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let admin = args.admin.open()?;
    let wanted = (args.to.as_str(), args.dry_run);
    show_rollback(&admin, &past(args.id.as_deref()), wanted, args.output, out).await
}

fn past(id: Option<&str>) -> Past<'_> {
    Past { kind: Some("identity_policies"), id, heading: "POLICY" }
}
