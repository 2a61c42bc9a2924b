//! The command: finds the record of a refusal, and tells what it says.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::denial::Denial;
use super::standing::read_policy;
use crate::cli::archive::find_denial as find_denial_in_archive;
use crate::cli::audit::{DEFAULT_LOG, Output};
use crate::cli::questions;
use crate::cli::text::safe;
use crate::observe::find_denial;

/// Explain a decision.
#[derive(Args, Debug)]
pub(in crate::cli) struct ExplainArgs {
    #[command(subcommand)]
    command: ExplainCommand,
}

#[derive(Debug, Subcommand)]
enum ExplainCommand {
    /// Explain a refusal by the id that the caller got (header x-wardgate-denial).
    Denial(DenialArgs),
    /// Explain what a request would meet: route, plugins, policy with every rule that was tried, upstream.
    Request(Box<questions::RequestArgs>),
}

#[derive(Args, Debug)]
struct DenialArgs {
    /// The id, as d-5f2k8m0qrt.
    id: String,
    /// Where to look: audit logs, or folders of them. Files that were rotated from them are searched as well.
    #[arg(long, env = "WARDGATE_AUDIT", default_value = DEFAULT_LOG, value_name = "FILE", value_delimiter = ':')]
    log: Vec<PathBuf>,
    /// The Admin API, to find the record in its archive when no log here has it, and to see the policy as it stands now:
    /// http://127.0.0.1:9180
    #[arg(long, env = "WARDGATE_ADMIN", value_name = "URL")]
    admin: Option<String>,
    /// The Admin API's key.
    #[arg(long, env = "WARDGATE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate explain`. Exit code 1: there is no such denial.
///
/// # Errors
/// A log or the Admin API cannot be read, or `out` cannot be written.
pub(in crate::cli) async fn run(
    args: &ExplainArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    match &args.command {
        ExplainCommand::Denial(args) => run_denial(args, out).await,
        ExplainCommand::Request(args) => questions::request(args, out).await,
    }
}

async fn run_denial(args: &DenialArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let local = find(&args.log, &args.id);
    let found = match (&local, &args.admin) {
        (Ok(None) | Err(_), Some(admin)) => {
            // Without an archive there, the local answer is the answer.
            let central = find_denial_in_archive(admin, args.key.as_deref(), &args.id).await;
            match (central, local) {
                (Ok(Some(found)), _) => Some(found),
                (Ok(None), _) => None,
                (Err(_), Ok(found)) => found,
                (Err(error), Err(_)) => return Err(error),
            }
        }
        _ => local?,
    };
    let Some((file, record)) = found else {
        let looked: Vec<String> = args.log.iter().map(|path| path.display().to_string()).collect();
        writeln!(out, "no denial {} in {}", safe(&args.id), looked.join(", "))?;
        writeln!(
            out,
            "fix: name the log of the sidecar that refused, with --log FILE or WARDGATE_AUDIT; or the control plane that has its \
             records, with --admin URL or WARDGATE_ADMIN"
        )?;
        return Ok(ExitCode::FAILURE);
    };
    let denial = Denial::read(&record);
    let standing = match (&args.admin, denial.policy_to_read()) {
        (Some(admin), Some(id)) => Some(read_policy(admin, args.key.as_deref(), id).await?),
        _ => None,
    };
    let advice = denial.advice(standing.as_ref());
    match args.output {
        Output::Json => {
            let text = json!({"file": file, "record": record, "advice": advice.to_json()});
            writeln!(out, "{}", serde_json::to_string_pretty(&text)?)?;
        }
        Output::Text => {
            denial.print(&file, out)?;
            advice.print(out)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn find(logs: &[PathBuf], id: &str) -> anyhow::Result<Option<(PathBuf, Value)>> {
    let mut unreadable = None;
    for log in logs.iter().flat_map(|log| files(log)) {
        match find_denial(&log, id) {
            Ok(Some(record)) => return Ok(Some((log, record))),
            Ok(None) => {}
            Err(error) => {
                unreadable.get_or_insert(error);
            }
        }
    }
    match unreadable {
        Some(error) => Err(error.into()),
        None => Ok(None),
    }
}

/// The log itself, or the logs of a folder.
fn files(log: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(log) else { return vec![log.to_path_buf()] };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ExplainArgs,
    }

    struct Log(PathBuf);

    impl Log {
        /// A log that holds these records; `explain` reads it without its chain.
        fn of(name: &str, records: &[Value]) -> Self {
            let path =
                std::env::temp_dir().join(format!("wardgate-{name}-{}.jsonl", std::process::id()));
            let lines: Vec<String> = records.iter().map(Value::to_string).collect();
            std::fs::write(&path, lines.join("\n") + "\n").unwrap();
            Self(path)
        }

        async fn explain(&self, more: &[&str]) -> (String, bool) {
            let line = [&["explain", "denial", "--log", self.0.to_str().unwrap()], more].concat();
            let line = Line::try_parse_from(line).unwrap();
            let mut out = Vec::new();
            let code = run(&line.args, &mut out).await.unwrap();
            let found = format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS);
            (String::from_utf8(out).unwrap(), found)
        }
    }

    impl Drop for Log {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "json!() at the call")]
    fn record(id: &str, more: Value) -> Value {
        let mut record = json!({
            "seq": 7, "time": "2026-11-21T12:00:00.000Z", "type": "decision", "denial_id": id, "outcome": "deny",
            "src": {"spiffe_id": "spiffe://shop/web", "cert": {"serial": "0a"}, "addr": "127.0.0.1:9"},
            "dst": {"spiffe_id": "spiffe://shop/billing", "port": 15006},
            "protocol": "h2", "method": "DELETE", "host": "billing:80", "path": "/invoices/7", "status": 403,
            "config_revision": 42,
        });
        for (name, value) in more.as_object().unwrap() {
            record[name] = value.clone();
        }
        record
    }

    #[tokio::test]
    async fn a_denial_is_told_with_the_change_that_would_allow_it() {
        let near =
            |clause: &str| json!({"policy_id": "billing-read", "rule": "read", "clause": clause});
        let log = Log::of(
            "explain",
            &[
                record("d-methods", json!({"reason": "no_rule", "nearest": near("methods")})),
                record("d-principals", json!({"reason": "no_rule", "nearest": near("principals")})),
                record("d-hosts", json!({"reason": "no_rule", "nearest": near("hosts")})),
                record(
                    "d-selector",
                    json!({"reason": "no_rule", "route_id": "5", "nearest": near("selector")}),
                ),
                record(
                    "d-deny",
                    json!({"reason": "denied_by_rule", "policy_id": "no-delete", "rule": "1", "policy_revision": 9}),
                ),
                record(
                    "d-path",
                    json!({"reason": "ambiguous_path", "path": "/invoices//\u{1b}[2J"}),
                ),
                record("d-odd", json!({"reason": "no_rule", "path": "/a;b"})),
                record(
                    "d-nobody",
                    json!({"reason": "no_identity", "src": {"addr": "127.0.0.1:9"}}),
                ),
                record(
                    "d-broken",
                    json!({"reason": "broken_policy", "policy_id": "bad", "rule": "(the whole policy)"}),
                ),
            ],
        );
        for (id, expected) in [
            ("d-methods", "policy billing-read, rule read: add \"DELETE\" to to.methods"),
            ("d-methods", "who      spiffe://shop/web   certificate 0a   from 127.0.0.1:9"),
            ("d-methods", "to whom  spiffe://shop/billing   port 15006"),
            ("d-methods", "what     DELETE /invoices/7   host billing:80   h2   answered 403"),
            ("d-methods", "why      no_rule: no rule allows it"),
            ("d-methods", "nearest  policy billing-read, rule read: its \"methods\" does not hold"),
            (
                "d-methods",
                r#"{"name":"to-be-named","from":{"principals":["spiffe://shop/web"]},"to":{"methods":["DELETE"],"paths":["/invoices/7"]}}"#,
            ),
            ("d-principals", "add \"spiffe://shop/web\" to from.principals"),
            ("d-hosts", "add \"billing\" to to.hosts"),
            ("d-selector", "does not select route 5"),
            ("d-deny", "by       policy no-delete, rule 1   revision 9"),
            (
                "d-deny",
                "policy no-delete, rule 1: add \"spiffe://shop/web\" to from.not_principals",
            ),
            ("d-path", "what     DELETE /invoices//\\u{1b}[2J"),
            ("d-path", "The caller should send it plain"),
            ("d-odd", "No rule can mean this path as it was sent"),
            ("d-nobody", "who      nobody: no certificate was presented"),
            ("d-broken", "Policy bad is not valid"),
        ] {
            let (text, found) = log.explain(&[id]).await;
            assert!(found && text.contains(expected), "{id}: {expected}\n{text}");
        }
        let (text, _) = log.explain(&["d-methods", "-o", "json"]).await;
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(told["record"]["config_revision"], 42);
        assert_eq!(told["advice"]["rule"]["to"]["methods"], json!(["DELETE"]));
        let (text, found) = log.explain(&["d-unknown"]).await;
        assert!(!found && text.contains("no denial d-unknown in"), "{text}");
    }

    #[tokio::test]
    async fn with_the_admin_api_the_changed_policy_is_printed_whole() {
        let policy = json!({"key": "/apisix/identity_policies/billing-read", "value": {
            "id": "billing-read", "create_time": 1, "action": "allow",
            "rules": [{"name": "read", "to": {"methods": ["GET"]}}]}});
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().route(
            "/apisix/admin/identity_policies/billing-read",
            axum::routing::get(move |headers: http::HeaderMap| async move {
                match headers.get("x-api-key").is_some_and(|key| key == "secret") {
                    true => (http::StatusCode::OK, axum::Json(policy)),
                    false => (http::StatusCode::UNAUTHORIZED, axum::Json(json!({}))),
                }
            }),
        );
        let server = crate::rt::spawn(async move { axum::serve(listener, router).await });
        let near = json!({"policy_id": "billing-read", "rule": "read", "clause": "methods"});
        let log = Log::of(
            "explain-admin",
            &[record("d-1", json!({"reason": "no_rule", "nearest": near}))],
        );
        let (text, _) = log.explain(&["d-1", "--admin", &url, "--key", "secret"]).await;
        let expected = r#"-d '{"action":"allow","rules":[{"name":"read","to":{"methods":["GET","DELETE"]}}]}'"#;
        assert!(text.contains(expected), "{text}");

        let args = [
            "explain",
            "denial",
            "--log",
            log.0.to_str().unwrap(),
            "d-1",
            "--admin",
            &url,
            "--key",
            "x",
        ];
        let error =
            run(&Line::try_parse_from(args).unwrap().args, &mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("refused the key"), "{error}");
        server.abort();
    }
}
