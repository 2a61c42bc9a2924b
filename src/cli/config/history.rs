//! `wardgate history` and `wardgate rollback`: who changed what, and putting it back.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::cli::admin::{AdminArgs, ask};
use crate::cli::audit::Output;
use crate::cli::client::Admin;
use crate::cli::policy::moment;
use crate::cli::text::safe;

/// Who changed which resource when
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate history                        the newest changes of all kinds
  wardgate history routes                 of one kind
  wardgate history routes/7               of one resource, with its text
  wardgate history routes --at 1041       a kind as it stood at a revision or time (RFC 3339)

Of identity policies and identity modes all revisions are kept, of others the newest (control.history.revisions).")]
pub(in crate::cli) struct HistoryArgs {
    /// A kind, as routes, or one of it, as routes/7; everything when it is left out
    what: Option<String>,
    /// The whole kind as it stood at a revision or time (RFC 3339)
    #[arg(long, value_name = "WHEN", requires = "what")]
    at: Option<String>,
    /// So many changes at most
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Put resources back to what they were
///
/// What would change is judged as any write, all of it together, and written in one revision. What has come since is removed; what
/// nobody remembers is named, and then nothing is changed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate rollback routes/7 --to 1041
  wardgate rollback routes --to 2026-11-20T18:00:00Z --dry-run
  wardgate rollback --to 1041                        everything")]
pub(in crate::cli) struct RollbackArgs {
    /// A kind, as routes, or one of it, as routes/7; everything when it is left out
    what: Option<String>,
    /// The revision or time (RFC 3339) to go back to
    #[arg(long, value_name = "WHEN")]
    to: String,
    /// Only tell what would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Whose past is asked about.
pub(in crate::cli) struct Past<'a> {
    /// The kind; of all when it is none.
    pub(in crate::cli) kind: Option<&'a str>,
    pub(in crate::cli) id: Option<&'a str>,
    /// The heading of what has changed.
    pub(in crate::cli) heading: &'a str,
}

impl Past<'_> {
    fn of(what: Option<&str>) -> Past<'_> {
        let (kind, id) = match what.map(|what| what.split_once('/').ok_or(what)) {
            None => (None, None),
            Some(Err(kind)) => (Some(kind), None),
            // A consumer's credential is asked for where it lies.
            Some(Ok(("consumers", id))) if id.contains("/credentials/") => {
                (Some("credentials"), Some(id))
            }
            Some(Ok((kind, id))) => (Some(kind), Some(id)),
        };
        Past { kind, id, heading: "WHAT" }
    }

    /// A path below the Admin API.
    fn path(&self, rest: &str) -> String {
        let segment = |text: Option<&str>| {
            let encoded = text.map(|text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string());
            encoded.map(|text| format!("/{text}")).unwrap_or_default()
        };
        // Names of kinds need no encoding, and what is none is refused there.
        let kind = self.kind.map(|kind| format!("/{}", kind.replace(['/', '?', '#', ' '], "_")));
        format!("/history{}{}{rest}", kind.unwrap_or_default(), segment(self.id))
    }
}

/// Runs `wardgate history`.
///
/// # Errors
/// Nobody answers, or there is no such past.
pub(in crate::cli) async fn history(
    args: &HistoryArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let past = Past::of(args.what.as_deref());
    let admin = args.admin.open()?;
    show_history(&admin, &past, (args.at.as_deref(), args.limit), args.output, out).await
}

/// Runs `wardgate rollback`.
///
/// # Errors
/// Nobody answers, or it is refused.
pub(in crate::cli) async fn rollback(
    args: &RollbackArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let past = Past::of(args.what.as_deref());
    show_rollback(&args.admin.open()?, &past, (&args.to, args.dry_run), args.output, out).await
}

/// Prints the changes, or the state at a moment.
pub(in crate::cli) async fn show_history(
    admin: &Admin,
    past: &Past<'_>,
    (at, limit): (Option<&str>, usize),
    output: Output,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let query = match at {
        Some(at) => format!("?at={}", utf8_percent_encode(at, NON_ALPHANUMERIC)),
        None => format!("?limit={limit}"),
    };
    let answer = ask(admin, "GET", &past.path(&query), None).await?;
    let list = answer["list"].as_array().cloned().unwrap_or_default();
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?,
        Output::Text if at.is_some() => {
            for one in &list {
                let id = one["id"].as_str().unwrap_or_default();
                writeln!(out, "# {} at revision {}", safe(id), one["revision"])?;
                writeln!(out, "{}", serde_json::to_string_pretty(&one["value"])?)?;
            }
        }
        Output::Text => {
            writeln!(
                out,
                "{:>9}  {:<20}  {:<7}  {:<16}  {}",
                "REVISION", "TIME", "ACTION", "BY", past.heading
            )?;
            for one in &list {
                print_change(one, past, out)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_change(one: &Value, past: &Past<'_>, out: &mut (dyn Write + Send)) -> anyhow::Result<()> {
    let text = |field: &str| safe(one[field].as_str().unwrap_or_default());
    let author = one["author"].as_str().map_or("(past the API)".to_owned(), safe);
    let time = one["time"].as_u64().unwrap_or_default();
    let back = match &one["rollback_to"] {
        Value::Null => String::new(),
        to => format!("  (back to {to})"),
    };
    let name = match past.kind {
        None => format!("{}/{}", text("kind"), text("id")),
        Some(_) => text("id"),
    };
    writeln!(
        out,
        "{:>9}  {:<20}  {:<7}  {author:<16}  {name}{back}",
        one["revision"],
        moment(time.saturating_mul(1000)),
        text("action"),
    )?;
    if let Value::Object(_) = one["value"] {
        for line in serde_json::to_string_pretty(&one["value"])?.lines() {
            writeln!(out, "{:11}{}", "", safe(line))?;
        }
    }
    Ok(())
}

/// Rolls back, or tells what that would do.
pub(in crate::cli) async fn show_rollback(
    admin: &Admin,
    past: &Past<'_>,
    (to, dry_run): (&str, bool),
    output: Output,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let body = json!({"to": to, "dry_run": dry_run});
    let answer = ask(admin, "POST", &past.path("/rollback"), Some(&body)).await?;
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?,
        Output::Text => {
            let changes = answer["changes"].as_array().cloned().unwrap_or_default();
            for change in &changes {
                let text = |field: &str| safe(change[field].as_str().unwrap_or_default());
                let kind = match past.kind {
                    None => format!("{}/", text("kind")),
                    Some(_) => String::new(),
                };
                writeln!(
                    out,
                    "{:<8} {kind}{}  as of revision {}",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_about_becomes_a_path() {
        for (what, path) in [
            (None, "/history"),
            (Some("routes"), "/history/routes"),
            (Some("routes/a.b"), "/history/routes/a%2Eb"),
            (Some("consumers/j/credentials/c"), "/history/credentials/j%2Fcredentials%2Fc"),
        ] {
            assert_eq!(Past::of(what).path(""), path);
        }
    }
}
