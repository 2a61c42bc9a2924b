//! `wardgate canary`: how a canary push stands, and a person's word about it.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::admin::{AdminArgs, ask};
use super::audit::Output;

/// Canary pushes: what some data planes try before the others get it
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate canary status
  wardgate canary confirm --revision 812    everybody gets it, also when it was stopped
  wardgate canary abort                     back to what was before
  wardgate canary retry                     try what was stopped once more, with all that is newer

A write to what was stopped takes its place and is tried in turn. A write that must not wait says so:
  curl -X PUT \"$WARDGATE_ADMIN/apisix/admin/identity_policies/p?canary=skip\" ...

Exit codes: 0 done, 1 failed (status: a push was stopped), 2 wrong use.")]
pub(super) struct CanaryArgs {
    #[command(subcommand)]
    verb: CanaryVerb,
}

#[derive(Subcommand, Debug)]
enum CanaryVerb {
    /// How it stands. Exit code 1: a push was stopped
    Status(AskArgs),
    /// Everybody gets what is tried, or was stopped
    Confirm(WordArgs),
    /// Stop what is tried; its canaries go back
    Abort(WordArgs),
    /// Try what was stopped once more, with all that is newer
    Retry(WordArgs),
}

#[derive(Args, Debug)]
struct AskArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Debug)]
struct WordArgs {
    /// The revision that is meant; nothing happens when it is another one by now
    #[arg(long, value_name = "REVISION")]
    revision: Option<u64>,
    #[command(flatten)]
    ask: AskArgs,
}

/// Runs `wardgate canary`.
///
/// # Errors
/// The Admin API cannot be asked, or refuses.
pub(super) async fn run(
    args: &CanaryArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let (verb, word) = match &args.verb {
        CanaryVerb::Status(asked) => {
            let state = ask(&asked.admin.open()?, "GET", "/canary", None).await?;
            print(&state, asked.output, out)?;
            return Ok(match state["phase"] == "stopped" {
                true => ExitCode::FAILURE,
                false => ExitCode::SUCCESS,
            });
        }
        CanaryVerb::Confirm(word) => ("confirm", word),
        CanaryVerb::Abort(word) => ("abort", word),
        CanaryVerb::Retry(word) => ("retry", word),
    };
    let body = match word.revision {
        Some(revision) => json!({ "revision": revision }),
        None => json!({}),
    };
    let admin = word.ask.admin.open()?;
    let state = ask(&admin, "POST", &format!("/canary/{verb}"), Some(&body)).await?;
    print(&state, word.ask.output, out)?;
    Ok(ExitCode::SUCCESS)
}

fn print(state: &Value, output: Output, out: &mut (dyn Write + Send)) -> anyhow::Result<()> {
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(state)?)?,
        Output::Text => writeln!(out, "{}", told(state))?,
    }
    Ok(())
}

/// How it stands, in a sentence or two.
pub(super) fn told(state: &Value) -> String {
    let text = |field: &str| state[field].as_str().unwrap_or_default();
    let number = |field: &str| state[field].as_u64().unwrap_or_default();
    let (stable, candidate) = (number("stable"), number("candidate"));
    let by = state["by"].as_str().map(|by| format!(" by {by}")).unwrap_or_default();
    let seen = &state["seen"];
    let count = |place: &str| seen.pointer(place).and_then(Value::as_u64).unwrap_or_default();
    let mut told = match text("phase") {
        "trying" => {
            let canaries = seen["canaries"].as_object();
            let of = |field: &str| -> u64 {
                let each = canaries.into_iter().flat_map(|all| all.values());
                let counts = each.filter_map(|one| one["span"]["since"][field].as_u64());
                counts.sum()
            };
            format!(
                "revision {candidate} is tried by {} data planes for {} s now, {} others have revision {stable}; since then they denied {} of {} decisions and failed {} of {} requests",
                canaries.map_or(0, serde_json::Map::len),
                number("watched_seconds"),
                count("/others"),
                of("denied"),
                of("decided"),
                of("failed"),
                of("requests"),
            )
        }
        "stopped" => format!(
            "STOPPED{by}: revision {candidate}: {}; everybody has revision {stable}, and nothing newer passes until it is confirmed, retried, or corrected by a write",
            text("reason")
        ),
        "passed" => format!("everybody has revision {stable}{by}: {}", text("reason")),
        _ => "nothing is known yet".to_owned(),
    };
    if let Some(reason) = state["superseded"]["reason"].as_str() {
        let revision = &state["superseded"]["revision"];
        told += &format!("\nit took the place of revision {revision}, which was stopped: {reason}");
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_it_stands_is_told_in_words() {
        let stopped =
            json!({"phase": "stopped", "stable": 7, "candidate": 9, "reason": "denials rose"});
        let text = told(&stopped);
        assert!(
            text.contains("revision 9: denials rose") && text.contains("has revision 7"),
            "{text}"
        );
        let canary =
            json!({"span": {"since": {"decided": 9, "denied": 2, "requests": 8, "failed": 1}}});
        let trying = json!({
            "phase": "trying", "stable": 7, "candidate": 9, "watched_seconds": 3,
            "seen": {"canaries": {"a": canary, "b": canary}, "others": 5},
            "superseded": {"revision": 8, "reason": "aborted"},
        });
        let text = told(&trying);
        assert!(
            text.contains("by 2 data planes")
                && text.contains("4 of 18")
                && text.contains("2 of 16"),
            "{text}"
        );
        assert!(text.contains("the place of revision 8"), "{text}");
    }
}
