//! `wardgate policy history` and `rollback`: who changed what, and putting it back.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::past::moment;
use crate::cli::admin::{AdminArgs, ask};
use crate::cli::audit::Output;
use crate::cli::text::safe;

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

/// A path below the Admin API.
fn place(id: Option<&str>, rest: &str) -> String {
    let encode = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let id = id.map(|id| format!("/{}", encode(id))).unwrap_or_default();
    format!("/history/identity_policies{id}{rest}")
}

/// Runs `wardgate policy history`.
pub(super) async fn history(
    args: &HistoryArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let admin = args.admin.open()?;
    let query = match &args.at {
        Some(at) => {
            let set = percent_encoding::NON_ALPHANUMERIC;
            format!("?at={}", percent_encoding::utf8_percent_encode(at, set))
        }
        None => format!("?limit={}", args.limit),
    };
    let answer = ask(&admin, "GET", &place(args.id.as_deref(), &query), None).await?;
    let list = answer["list"].as_array().cloned().unwrap_or_default();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?,
        Output::Text if args.at.is_some() => {
            for one in &list {
                let id = one["id"].as_str().unwrap_or_default();
                writeln!(out, "# {} at revision {}", safe(id), one["revision"])?;
                writeln!(out, "{}", serde_json::to_string_pretty(&one["value"])?)?;
            }
        }
        Output::Text => {
            writeln!(
                out,
                "{:>9}  {:<20}  {:<7}  {:<16}  POLICY",
                "REVISION", "TIME", "ACTION", "BY"
            )?;
            for one in &list {
                let text = |field: &str| safe(one[field].as_str().unwrap_or_default());
                let author = one["author"].as_str().map_or("(past the API)".to_owned(), safe);
                let time = one["time"].as_u64().unwrap_or_default();
                let back = match &one["rollback_to"] {
                    Value::Null => String::new(),
                    to => format!("  (back to {to})"),
                };
                writeln!(
                    out,
                    "{:>9}  {:<20}  {:<7}  {author:<16}  {}{back}",
                    one["revision"],
                    moment(time.saturating_mul(1000)),
                    text("action"),
                    text("id")
                )?;
                if let Value::Object(_) = one["value"] {
                    for line in serde_json::to_string_pretty(&one["value"])?.lines() {
                        writeln!(out, "{:11}{}", "", safe(line))?;
                    }
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `wardgate policy rollback`.
pub(super) async fn rollback(
    args: &RollbackArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let admin = args.admin.open()?;
    let body = json!({"to": args.to, "dry_run": args.dry_run});
    let path = place(args.id.as_deref(), "/rollback");
    let answer = ask(&admin, "POST", &path, Some(&body)).await?;
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?,
        Output::Text => {
            let changes = answer["changes"].as_array().cloned().unwrap_or_default();
            for change in &changes {
                let text = |field: &str| safe(change[field].as_str().unwrap_or_default());
                writeln!(
                    out,
                    "{:<8} {}  as of revision {}",
                    text("action"),
                    text("id"),
                    change["to"]
                )?;
            }
            match (changes.is_empty(), &answer["revision"]) {
                (true, _) => writeln!(out, "nothing to do: it is as it was then")?,
                (false, Value::Null) => writeln!(out, "nothing was written (--dry-run)")?,
                (false, revision) => writeln!(out, "written as revision {revision}")?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
