//! `wardgate check`: is everything in order?

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::client::{Admin, send};
use super::paint::Paint;
use crate::roles::{Finding, Grade, Settings, inspect};

/// Is everything in order? Settings, identity, feed, policy, certificates
///
/// With a settings file it looks at what that process rests on, whether it runs or not. With an Admin API it looks at what
/// the control plane knows. Exit code 1 when there is a problem.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate check -c /etc/wardgate/sidecar.yaml
  wardgate check --admin http://127.0.0.1:9180 --key $WARDGATE_KEY")]
pub(super) struct CheckArgs {
    /// The settings file of the process to look at
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The Admin API, as http://127.0.0.1:9180
    #[arg(long, env = "WARDGATE_ADMIN", value_name = "URL")]
    admin: Option<String>,
    /// The Admin API's key
    #[arg(long, env = "WARDGATE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
    /// Look at the settings file alone: no socket, no disk, no network
    #[arg(long, requires = "config")]
    offline: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Short,
    /// For programs
    Json,
}

pub(super) async fn run(args: &CheckArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut findings = Vec::new();
    if let Some(path) = &args.config {
        match Settings::read(path) {
            Ok(settings) if args.offline => findings.push(match settings.check(None) {
                Ok(()) => finding("settings", Grade::Good, "the settings make sense"),
                Err(error) => finding("settings", Grade::Problem, error.to_string()),
            }),
            Ok(settings) => {
                findings.extend(inspect(&settings, None).await);
                if let Some(status) = settings.status {
                    findings.push(look_at_status(&status.to_string()).await);
                    look_at_running_identity(&status.to_string(), &mut findings).await;
                    look_at_federation(&status.to_string(), &mut findings).await;
                    look_at_outputs(&status.to_string(), &mut findings).await;
                    look_at_refusals(&status.to_string(), &mut findings).await;
                    look_at_store(&status.to_string(), &mut findings).await;
                }
            }
            Err(error) => findings.push(finding("settings", Grade::Problem, error.to_string())),
        }
    } else if let Some(admin) = &args.admin {
        let Some(key) = &args.key else {
            bail!("the Admin API wants a key: --key or WARDGATE_KEY")
        };
        look_at_control_plane(&Admin::new(admin, key)?, &mut findings).await;
    } else {
        bail!(
            "nothing to look at: name a settings file (-c FILE) or an Admin API (--admin URL, or WARDGATE_ADMIN)"
        );
    }
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&findings)?)?,
        Output::Short => print(&findings, out)?,
    }
    let problem = findings.iter().any(|finding| finding.grade == Grade::Problem);
    Ok(if problem { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn finding(section: &'static str, grade: Grade, text: impl Into<String>) -> Finding {
    Finding { section, grade, text: text.into(), fix: None }
}

async fn look_at_status(address: &str) -> Finding {
    match send(address, address, "GET", "/status/ready", &[], None).await {
        Err(_) => {
            finding("process", Grade::Warning, format!("not running: nobody answers at {address}"))
        }
        Ok(answer) if answer.status == 200 => finding("process", Grade::Good, "running and ready"),
        Ok(answer) => {
            let why = answer.json().ok().and_then(|body| body["error"].as_str().map(str::to_owned));
            finding(
                "process",
                Grade::Problem,
                format!("running, not ready: {}", why.unwrap_or_default()),
            )
        }
    }
}

/// How long the running process' identities last, and who may look into its memory. Silent when it does not run.
async fn look_at_running_identity(address: &str, findings: &mut Vec<Finding>) {
    let Ok(answer) = send(address, address, "GET", "/identity", &[], None).await else { return };
    let Ok(status) = answer.json() else { return };
    for identity in status["identities"].as_array().into_iter().flatten() {
        let left = identity["budget_seconds"].as_i64().unwrap_or(i64::MIN);
        let id = identity["spiffe_id"].as_str().unwrap_or("?");
        let what = identity["fails_first"].as_str().unwrap_or("?");
        findings.push(match left {
            ..=0 => Finding {
                fix: Some(format!("see why its {what} was not renewed")),
                ..finding(
                    "process",
                    Grade::Problem,
                    format!("peers refuse {id}: its {what} is over"),
                )
            },
            _ => finding(
                "process",
                Grade::Good,
                format!("{id} lasts {left} s; first ends its {what}"),
            ),
        });
    }
    if status["memory_closed"] == false {
        findings.push(Finding {
            fix: Some("start it without WARDGATE_ALLOW_CORE_DUMPS".to_owned()),
            ..finding(
                "process",
                Grade::Warning,
                "its memory, private keys with it, is open to core files and to other processes of its user",
            )
        });
    }
}

/// How it stands with declared trust domains in the running process.
async fn look_at_federation(address: &str, findings: &mut Vec<Finding>) {
    let Ok(answer) = send(address, address, "GET", "/federation", &[], None).await else { return };
    let answer = answer.json().unwrap_or_default();
    for report in answer["trust_domains"].as_array().into_iter().flatten() {
        let text = |field: &str| report[field].as_str().unwrap_or_default();
        let (domain, error) = (text("trust_domain"), text("last_error"));
        let (has_bundle, failures) = (report["has_bundle"] == true, report["failures"].as_u64());
        findings.push(match (report["alarm"] == true, has_bundle, failures) {
            (true, ..) => finding("trust", Grade::Problem, format!("{domain}: ALARM: {error}")),
            (false, false, _) => {
                let text = format!("{domain}: no bundle, nobody of it is trusted: {error}");
                finding("trust", Grade::Problem, text)
            }
            (false, true, Some(failures)) if failures > 0 => {
                let text = format!("{domain}: {failures} fetches failed: {error}");
                finding("trust", Grade::Warning, text)
            }
            _ => finding("trust", Grade::Good, format!("{domain}: {} roots", report["roots"])),
        });
        for list in report["lists"].as_array().into_iter().flatten() {
            if let (Some(from), Some(error)) = (list["from"].as_str(), list["error"].as_str()) {
                let text = format!("{domain}: revocation list {from}: {error}");
                findings.push(finding("trust", Grade::Warning, text));
            }
        }
    }
}

/// Longer than that, something is in the way of an output.
const LAG_SECONDS: f64 = 60.0;

/// How far the outputs of the decision log are.
async fn look_at_outputs(address: &str, findings: &mut Vec<Finding>) {
    let Ok(answer) = send(address, address, "GET", "/status/process", &[], None).await else {
        return;
    };
    let answer = answer.json().unwrap_or_default();
    for report in answer["decision_log"]["outputs"].as_array().into_iter().flatten() {
        let name = report["name"].as_str().unwrap_or("?");
        let count = |field: &str| report[field].as_u64().unwrap_or_default();
        let (waiting, lag) = (count("lag_records"), report["lag_seconds"].as_f64().unwrap_or(0.0));
        let error = report["error"].as_str().unwrap_or("it does not say why");
        findings.push(match report["failing_since"].is_null() {
            false => Finding {
                fix: Some("nothing is lost: records wait in the log's files".to_owned()),
                ..finding(
                    "outputs",
                    Grade::Problem,
                    format!("{name}: {waiting} records wait, {lag:.0} s by now: {error}"),
                )
            },
            true if lag > LAG_SECONDS => finding(
                "outputs",
                Grade::Warning,
                format!("{name}: {waiting} records wait, the oldest for {lag:.0} s"),
            ),
            true => finding(
                "outputs",
                Grade::Good,
                format!("{name}: {} records delivered", count("delivered")),
            ),
        });
        for (field, what) in [
            ("undeliverable", "are refused by the other side for good"),
            ("missing", "were gone before they could be delivered"),
            ("damaged", "are not what was written, and were not delivered"),
        ] {
            if count(field) > 0 {
                let text = format!("{name}: {} records {what}", count(field));
                findings.push(finding("outputs", Grade::Warning, text));
            }
        }
    }
}

/// What of its configuration the running process refuses, and what it holds off.
async fn look_at_refusals(address: &str, findings: &mut Vec<Finding>) {
    let Ok(answer) = send(address, address, "GET", "/status/process", &[], None).await else {
        return;
    };
    let answer = answer.json().unwrap_or_default();
    for feed in answer["feeds"].as_array().into_iter().flatten() {
        if let Some(text) = super::status::held_off(feed) {
            let fix = "find out what of it kills the process, and write a version without that";
            let fix = Some(fix.to_owned());
            findings.push(Finding { fix, ..finding("process", Grade::Problem, text) });
        }
    }
    for plane in answer["configuration"].as_array().into_iter().flatten() {
        for rejected in plane["refused"].as_array().into_iter().flatten() {
            let text = format!("the running process refuses {}", refused(rejected));
            findings.push(finding("process", Grade::Problem, text));
        }
    }
}

/// Whether the running control plane's store answers.
async fn look_at_store(address: &str, findings: &mut Vec<Finding>) {
    let Ok(answer) = send(address, address, "GET", "/status/process", &[], None).await else {
        return;
    };
    let answer = answer.json().unwrap_or_default();
    if answer["store"]["reachable"] == false {
        let since = answer["store"]["since"].as_str().unwrap_or("?");
        let error = answer["store"]["error"].as_str().unwrap_or("it does not say why");
        let text = format!("the store does not answer since {since}: {error}");
        findings.push(Finding {
            fix: Some("data planes are fed what was read; nothing can be written".to_owned()),
            ..finding("process", Grade::Problem, text)
        });
    }
}

async fn look_at_control_plane(admin: &Admin, findings: &mut Vec<Finding>) {
    let policies = match admin.call("GET", "/identity_policies", None).await {
        Err(error) => {
            findings.push(finding("feed", Grade::Problem, format!("{error:#}")));
            return;
        }
        Ok(answer) if answer.status == 401 => {
            findings.push(finding("feed", Grade::Problem, "the Admin API does not take this key"));
            return;
        }
        Ok(answer) => answer.json().unwrap_or_default(),
    };
    findings.push(finding("feed", Grade::Good, "the Admin API answers"));
    let total = policies["total"].as_u64().unwrap_or_default();
    findings.push(match total {
        0 => Finding {
            fix: Some("write an identity policy that allows someone".to_owned()),
            ..finding("policy", Grade::Warning, "no identity policy: sidecars refuse every peer")
        },
        total => finding("policy", Grade::Good, format!("{total} identity policies")),
    });
    look_at_modes(admin, findings).await;
    match admin.call("GET", "/revisions/latest", None).await.and_then(|answer| answer.json()) {
        Ok(state) => look_at_planes(&state, findings),
        Err(error) => findings.push(finding("feed", Grade::Problem, format!("{error:#}"))),
    }
    look_at_canary(admin, findings).await;
}

/// What canaries try, and what was stopped. Silent where pushes have no canaries.
async fn look_at_canary(admin: &Admin, findings: &mut Vec<Finding>) {
    let Ok(answer) = admin.call("GET", "/canary", None).await else { return };
    let Some(state) = answer.json().ok().filter(|_| answer.status == 200) else { return };
    let text = super::canary::told(&state);
    findings.push(match state["phase"].as_str() {
        Some("stopped") => Finding {
            fix: Some("write a correction, or see wardgate canary".to_owned()),
            ..finding("feed", Grade::Problem, text)
        },
        _ => finding("feed", Grade::Good, text),
    });
}

/// Where callers need no identity.
async fn look_at_modes(admin: &Admin, findings: &mut Vec<Finding>) {
    let modes = match admin.call("GET", "/identity_modes", None).await {
        Ok(answer) => answer.json().unwrap_or_default(),
        Err(error) => {
            return findings.push(finding("policy", Grade::Problem, format!("{error:#}")));
        }
    };
    for entry in modes["list"].as_array().into_iter().flatten() {
        let mode = &entry["value"];
        let ports = mode["ports"].as_object().into_iter().flatten();
        let all = ports.map(|(port, mode)| (format!("port {port}"), mode));
        let all = std::iter::once(("all other ports".to_owned(), &mode["mode"])).chain(all);
        let lax: Vec<String> = all
            .filter(|(_, mode)| mode.as_str() != Some("strict"))
            .map(|(place, mode)| format!("{} at {place}", mode.as_str().unwrap_or("?")))
            .collect();
        if !lax.is_empty() {
            let (id, lax) = (mode["id"].as_str().unwrap_or("?"), lax.join(", "));
            findings.push(Finding {
                fix: Some(
                    "set it to strict when the decision log shows nobody who needs less".to_owned(),
                ),
                ..finding("policy", Grade::Warning, format!("identity mode {id}: {lax}"))
            });
        }
    }
}

fn look_at_planes(state: &Value, findings: &mut Vec<Finding>) {
    let planes: Vec<&Value> = state["data_planes"].as_array().into_iter().flatten().collect();
    if planes.is_empty() {
        findings.push(finding("feed", Grade::Warning, "no data plane is connected"));
    }
    let newest = state["revision"].as_u64().unwrap_or_default();
    for plane in planes {
        let name = plane["id"].as_str().unwrap_or("?");
        let applied = plane["revision"].as_u64().unwrap_or_default();
        findings.push(match applied >= newest {
            true => finding("feed", Grade::Good, format!("{name} runs revision {applied}")),
            false => {
                let text = format!("{name} runs revision {applied}, wanted {newest}");
                finding("feed", Grade::Warning, text)
            }
        });
        for rejected in plane["rejected"].as_array().into_iter().flatten() {
            let text = format!("{name} refuses {}", refused(rejected));
            findings.push(Finding {
                fix: Some("its version before is in force there; write one that it takes".into()),
                ..finding("feed", Grade::Problem, text)
            });
        }
    }
    for unreadable in state["unreadable"].as_array().into_iter().flatten() {
        let text = format!("the store has what cannot be read: {}", refused(unreadable));
        findings.push(finding("feed", Grade::Problem, text));
    }
}

/// `revision 7 of routes/1: why`.
fn refused(one: &Value) -> String {
    let text = |field: &str| one[field].as_str().unwrap_or("?");
    let (kind, id, reason) = (text("kind"), text("id"), text("reason"));
    format!("revision {} of {kind}/{id}: {reason}", one["revision"])
}

fn print(findings: &[Finding], out: &mut impl Write) -> std::io::Result<()> {
    let paint = Paint::stdout();
    let mut section = "";
    for finding in findings {
        if finding.section != section {
            section = finding.section;
            writeln!(out, "{}\n{}", paint.bold(section), "-".repeat(section.len()))?;
        }
        let sign = match finding.grade {
            Grade::Good => paint.good("✓"),
            Grade::Warning => paint.warn("!"),
            Grade::Problem => paint.bad("×"),
        };
        writeln!(out, "{sign} {}", super::text::safe(&finding.text))?;
        if let Some(fix) = &finding.fix {
            writeln!(out, "    fix: {fix}")?;
        }
    }
    let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    let (problems, warnings) = (count(Grade::Problem), count(Grade::Warning));
    writeln!(out, "result: {problems} problems, {warnings} warnings")
}
