//! `wardgate explain`: why something was refused, and the smallest change that would allow it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::archive::find_denial as find_denial_in_archive;
use super::audit::{DEFAULT_LOG, Output};
use super::text::{field, safe};
use crate::identity::SpiffeId;
use crate::model::{Id, IdentityPolicy};
use crate::observe::find_denial;
use crate::policy::{Action, Policy};

/// Explain a decision.
#[derive(Args, Debug)]
pub(super) struct ExplainArgs {
    #[command(subcommand)]
    command: ExplainCommand,
}

#[derive(Debug, Subcommand)]
enum ExplainCommand {
    /// Explain a refusal by the id that the caller got (header x-wardgate-denial).
    Denial(DenialArgs),
    /// Explain what a request would meet: route, plugins, policy with every rule that was tried, upstream.
    Request(Box<super::questions::RequestArgs>),
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
pub(super) async fn run(
    args: &ExplainArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    match &args.command {
        ExplainCommand::Denial(args) => run_denial(args, out).await,
        ExplainCommand::Request(args) => super::questions::request(args, out).await,
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

/// What a record says of a refusal.
struct Denial<'r> {
    record: &'r Value,
    src: Option<&'r str>,
    method: Option<&'r str>,
    host: Option<&'r str>,
    path: Option<&'r str>,
    port: u16,
    route: Option<&'r str>,
    reason: &'r str,
    /// The rule that refused: policy and rule.
    by: Option<(&'r str, &'r str)>,
    nearest: Option<(&'r str, &'r str, &'r str)>,
}

/// What an operator could do.
#[derive(Debug, Default)]
struct Advice {
    /// Sentences.
    lines: Vec<String>,
    /// The smallest change: which rule, which field, what to add or remove.
    change: Option<String>,
    /// A rule of its own that would allow exactly this.
    rule: Option<Value>,
    /// The policy with the smallest change made, when the policy could be read.
    policy: Option<(String, Value)>,
}

impl<'r> Denial<'r> {
    fn read(record: &'r Value) -> Self {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let pair = |one: &str, other: &str| Some((text(one)?, text(other).unwrap_or("1")));
        Self {
            record,
            src: text("/src/spiffe_id"),
            method: text("/method"),
            host: text("/host"),
            path: text("/path"),
            port: record["dst"]["port"].as_u64().and_then(|port| port.try_into().ok()).unwrap_or(0),
            route: text("/route_id"),
            reason: text("/reason").unwrap_or("no_rule"),
            by: pair("/policy_id", "/rule"),
            nearest: pair("/nearest/policy_id", "/nearest/rule")
                .map(|(policy, rule)| (policy, rule, text("/nearest/clause").unwrap_or_default())),
        }
    }

    /// The policy whose text helps.
    fn policy_to_read(&self) -> Option<&'r str> {
        self.by.map(|(policy, _)| policy).or(self.nearest.map(|(policy, ..)| policy))
    }

    fn print(&self, file: &Path, out: &mut dyn Write) -> std::io::Result<()> {
        let get = |pointer: &str| field(self.record, pointer);
        let join = |parts: &[Option<String>]| {
            parts.iter().flatten().map(String::as_str).collect::<Vec<_>>().join("   ")
        };
        let named = |name: &str, pointer: &str| get(pointer).map(|text| format!("{name} {text}"));
        writeln!(
            out,
            "denial {}   {}",
            get("/denial_id").unwrap_or_default(),
            get("/time").unwrap_or_default()
        )?;
        let hidden = get("/src/spiffe_id_hmac").map(|proof| {
            format!("left out by the settings; wardgate audit match tells whether it is whom you think (hmac {proof})")
        });
        let who = get("/src/spiffe_id")
            .or(hidden)
            .or_else(|| Some("nobody: no certificate was presented".into()));
        writeln!(
            out,
            "  who      {}",
            join(&[
                who,
                named("certificate", "/src/cert/serial"),
                named("valid until", "/src/cert/not_after"),
                named("from", "/src/addr"),
            ])
        )?;
        writeln!(
            out,
            "  to whom  {}",
            join(&[
                get("/dst/spiffe_id"),
                named("port", "/dst/port"),
                named("route", "/route_id"),
                named("upstream", "/upstream"),
            ])
        )?;
        let path = get("/path").or_else(|| get("/template"));
        let path = path.unwrap_or_else(|| "(path left out by the settings)".to_owned());
        let what = get("/method").map(|method| format!("{method} {path}"));
        writeln!(
            out,
            "  what     {}",
            join(&[
                what.or_else(|| Some("a connection".into())),
                named("host", "/host"),
                get("/protocol"),
                named("answered", "/status"),
            ])
        )?;
        if let Some(count) = get("/count") {
            let (first, last) =
                (get("/first").unwrap_or_default(), get("/last").unwrap_or_default());
            writeln!(
                out,
                "  how often  {count} times, {first} to {last}; this is the last one's id"
            )?;
        }
        writeln!(out, "  why      {}: {}", safe(self.reason), sentence(self.reason))?;
        if let Some((policy, rule)) = self.by {
            let revision = named("revision", "/policy_revision");
            writeln!(
                out,
                "  by       {}",
                join(&[Some(format!("policy {}, rule {}", safe(policy), safe(rule))), revision])
            )?;
        }
        if let Some((policy, rule, clause)) = self.nearest {
            let (policy, rule, clause) = (safe(policy), safe(rule), safe(clause));
            writeln!(
                out,
                "  nearest  policy {policy}, rule {rule}: its \"{clause}\" does not hold"
            )?;
        }
        let place = join(&[
            named("configuration revision", "/config_revision"),
            named("record", "/seq"),
            Some(format!("in {}", file.display())),
        ]);
        writeln!(out, "  where    {place}")
    }

    fn advice(&self, standing: Option<&Value>) -> Advice {
        let mut advice = Advice::default();
        match self.reason {
            "denied_by_rule" => {
                let (policy, rule) = self.by.unwrap_or_default();
                advice.lines.push("A deny rule refuses it, and no allow rule outweighs a deny rule.".into());
                if let Some(src) = self.src {
                    let what = format!("policy {policy}, rule {rule}: add \"{src}\" to from.not_principals");
                    advice.change = Some(what);
                    advice.edit(standing, policy, rule, |rule| push(rule, "from", "not_principals", src));
                }
            }
            "no_identity" => advice.lines.push(
                "The caller showed no certificate. Let it call through its sidecar, or with its own SVID (mTLS).".into(),
            ),
            "ambiguous_path" => advice.lines.push(
                "The path can be read in several ways, and rules judge them differently. The caller should send it plain: \
                 decoded where it can be, without //, /./, /../, ; and \\."
                    .into(),
            ),
            "broken_policy" => {
                let (policy, _) = self.by.unwrap_or_default();
                advice.lines.push(format!(
                    "Policy {policy} is not valid, and stands in the way until it is put right: write it anew, the Admin API \
                     names the field."
                ));
            }
            "no_token" => advice.lines.push(
                "A rule asks for claims, and no auth plugin of the route verified a token. Let the caller send one, and see that \
                 the route has the plugin that verifies it."
                    .into(),
            ),
            "unclear_input" => advice.lines.push(
                "A deny rule asks for what cannot be told of this request: its query is not properly encoded or has a raw \
                 semicolon, or the rule's condition has no answer. The caller should send it plain; or say in the rule what \
                 is meant where it is absent."
                    .into(),
            ),
            "upgrade_not_allowed" => {
                let (policy, rule) = self.by.unwrap_or_default();
                advice.lines.push(format!(
                    "Policy {policy}, rule {rule} would hold, but it does not allow to switch to this protocol (WebSocket, an \
                     upgrade, a tunnel). That is a permission of its own: a rule with to.upgrades."
                ));
            }
            _ => self.allowing(standing, &mut advice),
        }
        advice
    }

    /// Nothing allowed it: what would?
    fn allowing(&self, standing: Option<&Value>, advice: &mut Advice) {
        if let Some((policy, rule, clause)) = self.nearest {
            let port = self.port.to_string();
            let account = self.src.and_then(service_account);
            // The field, and what is to be added to it or removed from it.
            let edit = match clause {
                "principals" => self.src.map(|src| ("from", "principals", src, true)),
                "trust_domains" => {
                    self.src.and_then(domain).map(|td| ("from", "trust_domains", td, true))
                }
                "namespaces" => {
                    let namespace =
                        account.as_deref().and_then(|account| account.split('/').next());
                    namespace.map(|namespace| ("from", "namespaces", namespace, true))
                }
                "service_accounts" => {
                    account.as_deref().map(|account| ("from", "service_accounts", account, true))
                }
                "methods" => self.method.map(|method| ("to", "methods", method, true)),
                "not_methods" => self.method.map(|method| ("to", "not_methods", method, false)),
                "paths" => self.path.map(|path| ("to", "paths", path, true)),
                "hosts" => self.host.map(|host| ("to", "hosts", name(host), true)),
                "ports" => Some(("to", "ports", port.as_str(), true)),
                _ => None,
            };
            if let Some((part, list, value, add)) = edit {
                let (verb, preposition) = if add { ("add", "to") } else { ("remove", "from") };
                advice.change = Some(format!(
                    "policy {policy}, rule {rule}: {verb} \"{value}\" {preposition} {part}.{list}"
                ));
                advice.edit(standing, policy, rule, |rule| match add {
                    true => push(rule, part, list, value),
                    false => remove(rule, part, list, value),
                });
            } else if clause == "selector" {
                let route = self.route.unwrap_or("(none matched)");
                advice.change = Some(format!(
                    "policy {policy} does not select route {route}: add it to selector.routes, or give the route its labels"
                ));
            } else if !clause.is_empty() && !clause.starts_with("not_") {
                advice.change = Some(format!(
                    "policy {policy}, rule {rule} asks for other {clause}: widen them there, or write a rule of its own"
                ));
            } else if !clause.is_empty() {
                advice.change = Some(format!(
                    "policy {policy}, rule {rule} excludes it by \"{clause}\": a rule of its own is clearer than to loosen that"
                ));
            }
        }
        let Some(src) = self.src else { return };
        let mut rule = json!({"name": "to-be-named", "from": {"principals": [src]}});
        if let (Some(method), Some(path)) = (self.method, self.path) {
            rule["to"] = json!({"methods": [method], "paths": [path]});
        }
        if self.would_allow(&rule) {
            advice.rule = Some(rule);
        } else {
            advice.lines.push("No rule can mean this path as it was sent: use a template, as /files/{name} or /files/**.".into());
        }
    }

    /// Tries a rule with the engine that decides.
    fn would_allow(&self, rule: &Value) -> bool {
        let policy = json!({"action": "allow", "rules": [rule]});
        let (Ok(policy), Ok(id)) =
            (serde_json::from_value::<IdentityPolicy>(policy), Id::parse("tried"))
        else {
            return false;
        };
        let Some(src) = self.src.and_then(|src| src.parse::<SpiffeId>().ok()) else { return false };
        let (compiled, rejected) = Policy::compile([(&id, 0, &policy)], &src);
        let action = match (self.method, self.path) {
            (Some(method), Some(path)) => {
                let host = self.host.unwrap_or_default();
                Action::http(self.port, method, host, path)
            }
            _ => Action::connection(self.port),
        };
        rejected.is_empty()
            && compiled.decide(&compiled.standing_of(Some(&src)), &action).is_allowed()
    }
}

fn sentence(reason: &str) -> &'static str {
    let known = crate::policy::Reason::ALL.into_iter().find(|known| known.code() == reason);
    known.map_or("see docs/policy.md", |known| known.sentence())
}

fn domain(id: &str) -> Option<&str> {
    id.strip_prefix("spiffe://")?.split('/').next()
}

/// `namespace/name`, of an ID in the shape of Kubernetes.
fn service_account(id: &str) -> Option<String> {
    match id.split('/').collect::<Vec<_>>().as_slice() {
        ["spiffe:", "", _, "ns", namespace, "sa", name] => Some(format!("{namespace}/{name}")),
        _ => None,
    }
}

/// A host without its port.
fn name(host: &str) -> &str {
    host.rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |(name, _)| name)
}

fn push(rule: &mut Value, part: &str, list: &str, value: &str) {
    if !rule[part].is_object() {
        rule[part] = json!({});
    }
    let value = if list == "ports" {
        value.parse::<u16>().map_or(Value::Null, Value::from)
    } else {
        value.into()
    };
    match rule[part][list].as_array_mut() {
        Some(list) => list.push(value),
        None => rule[part][list] = json!([value]),
    }
}

fn remove(rule: &mut Value, part: &str, list: &str, value: &str) {
    if let Some(list) = rule[part][list].as_array_mut() {
        list.retain(|entry| !entry.as_str().is_some_and(|entry| entry.eq_ignore_ascii_case(value)));
    }
}

impl Advice {
    /// Makes the change in the policy as the Admin API gave it.
    fn edit(
        &mut self,
        standing: Option<&Value>,
        id: &str,
        rule: &str,
        change: impl FnOnce(&mut Value),
    ) {
        let Some(mut policy) = standing.cloned() else { return };
        let Some(rules) = policy["rules"].as_array_mut() else { return };
        let at = rules.iter().position(|one| one["name"] == rule);
        let at = at.or_else(|| rule.parse::<usize>().ok()?.checked_sub(1));
        let Some(found) = at.and_then(|at| rules.get_mut(at)) else {
            self.lines
                .push(format!("Policy {id} has no rule {rule} any more: it was changed since."));
            return;
        };
        change(found);
        if let Some(fields) = policy.as_object_mut() {
            for field in ["id", "create_time", "update_time"] {
                fields.shift_remove(field);
            }
        }
        self.policy = Some((id.to_string(), policy));
    }

    fn to_json(&self) -> Value {
        json!({
            "notes": self.lines,
            "change": self.change,
            "rule": self.rule,
            "policy": self.policy.as_ref().map(|(id, policy)| json!({"id": id, "value": policy})),
        })
    }

    fn print(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        for line in &self.lines {
            writeln!(out, "\n{}", safe(line))?;
        }
        if let Some(change) = &self.change {
            writeln!(out, "\nThe smallest change that would allow it, if it should be allowed:")?;
            writeln!(out, "  {}", safe(change))?;
        }
        if let Some((id, policy)) = &self.policy {
            let text = safe(&serde_json::to_string(policy)?).replace('\'', "'\\''");
            writeln!(
                out,
                "  curl -X PUT \"$WARDGATE_ADMIN/apisix/admin/identity_policies/{}\" \\",
                safe(id)
            )?;
            writeln!(out, "    -H \"X-API-KEY: $WARDGATE_KEY\" -d '{text}'")?;
        }
        if let Some(rule) = &self.rule {
            writeln!(out, "\nA rule that allows just this, for a policy with action \"allow\":")?;
            writeln!(out, "  {}", safe(&serde_json::to_string(rule)?))?;
        }
        Ok(())
    }
}

/// Reads a policy as it stands from the Admin API.
async fn read_policy(admin: &str, key: Option<&str>, id: &str) -> anyhow::Result<Value> {
    const WITHIN: Duration = Duration::from_secs(5);
    let id = Id::parse(id).map_err(|_| anyhow::anyhow!("the record names no policy: {id:?}"))?;
    let uri: http::Uri = admin
        .parse()
        .with_context(|| format!("--admin {admin} is no URL; expected http://HOST:PORT"))?;
    if uri.scheme_str() != Some("http") {
        bail!(
            "--admin {admin}: only http:// is understood here; forward the Admin API's port to this machine"
        );
    }
    let authority = uri.authority().context("--admin names no host")?;
    let address = (authority.host(), authority.port_u16().unwrap_or(80));
    let ask = async {
        let stream = tokio::net::TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot reach the Admin API at {admin}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = crate::rt::spawn(async move {
            let _ = connection.await;
        });
        let mut request = http::Request::get(format!("/apisix/admin/identity_policies/{id}"))
            .header(http::header::HOST, authority.as_str());
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), 4 << 20).collect().await;
        driver.abort();
        let body = body
            .map_err(|error| anyhow::anyhow!("cannot read the Admin API's answer: {error}"))?
            .to_bytes();
        match status.as_u16() {
            200 => {}
            401 => bail!("the Admin API refused the key: give it with --key or WARDGATE_KEY"),
            404 => bail!("policy {id} does not exist any more"),
            other => {
                bail!("the Admin API answered {other}: {}", safe(&String::from_utf8_lossy(&body)))
            }
        }
        let mut answer: Value =
            serde_json::from_slice(&body).context("the Admin API's answer is no JSON")?;
        Ok(answer["value"].take())
    };
    tokio::time::timeout(WITHIN, ask).await.context("the Admin API did not answer within 5 s")?
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
