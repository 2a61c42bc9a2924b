//! `opa`: Open Policy Agent decides, request by request.

use std::sync::Arc;

use async_trait::async_trait;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::asking::{
    Reach, default_keepalive_pool, default_keepalive_timeout, default_timeout, lawful,
    readable_name, yes,
};
use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Question, Reply, Server, Vouched,
    arguments, field_name, host_of,
};
use crate::rt::unix_seconds;

/// Asks Open Policy Agent whether a request may pass.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The server's URL.
    #[schemars(length(min = 1))]
    host: String,
    /// The policy: a path below `/v1/data/`.
    #[schemars(length(min = 1))]
    policy: String,
    /// The server's certificate must be one that the system trusts.
    #[serde(default = "yes")]
    ssl_verify: bool,
    /// Headers of the decision that the upstream gets. What callers send under these names is removed.
    #[serde(default)]
    #[schemars(length(min = 1))]
    send_headers_upstream: Option<Vec<String>>,
    /// Tells the policy of the route.
    #[serde(default)]
    with_route: bool,
    /// Tells the policy of the service.
    #[serde(default)]
    with_service: bool,
    /// Tells the policy of the consumer.
    #[serde(default)]
    with_consumer: bool,
    /// Milliseconds that the server may take.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1, max = 60000))]
    timeout: u64,
    /// Keeps connections to the server open.
    #[serde(default = "yes")]
    keepalive: bool,
    /// Milliseconds that a connection may wait for the next question.
    #[serde(default = "default_keepalive_timeout")]
    #[schemars(range(min = 1000))]
    keepalive_timeout: u64,
    /// Connections that may wait.
    #[serde(default = "default_keepalive_pool")]
    #[schemars(range(min = 1))]
    keepalive_pool: usize,
}

pub(super) struct Opa {
    server: Arc<Server>,
    path: String,
    send_upstream: Vec<Box<str>>,
    with_route: bool,
    with_service: bool,
    with_consumer: bool,
}

/// What the policy says.
#[derive(Deserialize)]
struct Decision {
    result: Option<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(default)]
    allow: bool,
    reason: Option<Value>,
    headers: Option<Map<String, Value>>,
    status_code: Option<u16>,
}

impl Plugin for Opa {
    const NAME: &'static str = "opa";
    const PRIORITY: i32 = 2001;
    const EXAMPLE: &'static str =
        r#"{"host": "http://127.0.0.1:8181", "policy": "shop/http", "with_consumer": true}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        const KEPT: &AsciiSet =
            &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
        let policy = config.policy.trim_matches('/');
        if policy.is_empty() || policy.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(Invalid::new("policy: a path below /v1/data/ is expected"));
        }
        let reach = Reach {
            field: "host",
            url: &config.host,
            timeout: config.timeout,
            ssl_verify: config.ssl_verify,
            keepalive: config.keepalive,
            keepalive_timeout: config.keepalive_timeout,
            keepalive_pool: config.keepalive_pool,
        };
        let names = config.send_headers_upstream;
        if names.as_ref().is_some_and(Vec::is_empty) {
            return Err(Invalid::new("send_headers_upstream: at least one is expected"));
        }
        let name = |name: &String| {
            field_name(name).map_err(|why| Invalid::new(format!("send_headers_upstream: {why}")))
        };
        let plugin = Self {
            server: reach.server(build)?,
            path: format!("/v1/data/{}", utf8_percent_encode(policy, KEPT)),
            send_upstream: names.iter().flatten().map(name).collect::<Result<_, _>>()?,
            with_route: config.with_route,
            with_service: config.with_service,
            with_consumer: config.with_consumer,
        };
        Ok(Hooks::of(plugin).access().done())
    }
}

#[async_trait]
impl Access for Opa {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let input = json!({ "input": self.input(exchange) }).to_string();
        let question = Question::post(&*self.path, "application/json", input);
        let refuse = |status| Ok(Flow::Reply(Box::new(Reply::empty(status))));
        let server = || self.server.name();
        let answer = match self.server.ask(&question).await {
            Ok(answer) => answer,
            Err(why) => {
                tracing::warn!(server = %server(), why = %why.told(), "opa gives no decision");
                return refuse(403);
            }
        };
        let decision = serde_json::from_slice(&answer.body).ok();
        let Some(Decision { result: Some(outcome) }) = decision else {
            tracing::warn!(server = %server(), status = answer.status, "opa's decision is none");
            return refuse(503);
        };
        if !outcome.allow {
            return Ok(Flow::Reply(Box::new(refusal(outcome))));
        }
        let mut vouched = exchange.notes.find::<Vouched>().cloned().unwrap_or_default();
        for name in &self.send_upstream {
            exchange.request.remove(name);
            let told = outcome.headers.iter().flatten();
            let told = told.filter(|(told, _)| told.eq_ignore_ascii_case(name));
            for value in told.filter_map(|(_, value)| text(value)) {
                exchange.request.append(name, value.as_bytes());
                vouched.add(name, value.as_bytes());
            }
        }
        exchange.notes.leave(vouched);
        Ok(Flow::Next)
    }
}

/// A value that can be a header's.
fn text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    lawful(text.as_bytes()).map(|_| text)
}

fn refusal(outcome: Outcome) -> Reply {
    // A policy that says a status that none is has still refused.
    let status = outcome.status_code.filter(|status| (200..=599).contains(status)).unwrap_or(403);
    let mut reply = match outcome.reason {
        None | Some(Value::Null) => Reply::empty(status),
        Some(Value::String(reason)) => Reply::text(status, reason),
        Some(reason) => Reply::json(status, &reason),
    };
    for (name, value) in outcome.headers.iter().flatten() {
        if readable_name("headers", name).is_ok()
            && let Some(value) = text(value)
        {
            reply.fields.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            reply.fields.push((name.clone(), value));
        }
    }
    reply
}

impl Opa {
    fn input(&self, exchange: &Exchange) -> Value {
        let request = &exchange.request;
        let (client, remote) = (&exchange.client, exchange.remote());
        let path = exchange.uri().map(|path| String::from_utf8_lossy(&path).into_owned());
        let mut input = json!({
            "type": "http",
            "request": {
                "scheme": if exchange.is_secure() { "https" } else { "http" },
                "method": request.method(),
                "host": host_of(request.authority()),
                "port": client.local.port(),
                "path": path,
                "headers": headers(exchange),
                "query": query(request.query().unwrap_or_default()),
            },
            "var": {
                "server_addr": client.local.ip().to_string(),
                "server_port": client.local.port().to_string(),
                "remote_addr": remote.ip().to_string(),
                "remote_port": remote.port().to_string(),
                "timestamp": unix_seconds(),
            },
        });
        let route = exchange.route.as_deref();
        if let Some(route) = route.filter(|_| self.with_route) {
            input["route"] = json!({
                "id": route.id.as_str(), "name": route.name, "uris": route.paths,
                "hosts": route.hosts, "labels": route.labels, "plugins": route.plugins,
                "service_id": route.service.as_ref().map(|id| id.as_str()),
            });
        }
        if let Some((route, service)) = route
            .filter(|_| self.with_service)
            .and_then(|route| Some((route, route.service.as_ref()?)))
        {
            input["service"] = json!({ "id": service.as_str(), "name": route.service_name });
        }
        if let Some(consumer) = exchange.consumer.as_deref().filter(|_| self.with_consumer) {
            // Never its credentials.
            input["consumer"] = json!({
                "username": consumer.name, "consumer_name": consumer.name,
                "group_id": consumer.group.as_ref().map(|id| id.as_str()),
                "labels": consumer.labels, "credential_id": consumer.credential,
            });
        }
        input
    }
}

/// Header fields by name in lower case; several lines of one name are a list.
fn headers(exchange: &Exchange) -> Map<String, Value> {
    let mut headers = Map::new();
    headers.insert("host".into(), exchange.request.authority().into());
    for field in exchange.request.fields() {
        let value = String::from_utf8_lossy(field.value).into_owned();
        add(&mut headers, field.name.to_ascii_lowercase(), value.into());
    }
    headers
}

/// Arguments by name; several of one name are a list, and one without a value is `true`.
fn query(query: &str) -> Map<String, Value> {
    let mut all = Map::new();
    let has_value = query.split('&').filter(|piece| !piece.is_empty());
    for ((name, value), piece) in arguments(query).zip(has_value) {
        let value = if piece.contains('=') { value.into_owned().into() } else { true.into() };
        add(&mut all, name.into_owned(), value);
    }
    all
}

fn add(all: &mut Map<String, Value>, name: String, value: Value) {
    match all.get_mut(&name) {
        None => {
            all.insert(name, value);
        }
        Some(Value::Array(values)) => values.push(value),
        Some(one) => *one = Value::Array(vec![one.take(), value]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;

    #[test]
    fn what_repeats_is_a_list() {
        let found = query("a=1&b&a=2&c=&a=3");
        assert_eq!(Value::Object(found), json!({"a": ["1", "2", "3"], "b": true, "c": ""}));
    }

    #[test]
    fn a_refusal_reads_as_the_policy_says_and_never_splits_an_answer() {
        let outcome = |value: Value| serde_json::from_value::<Outcome>(value).unwrap();
        let plain = refusal(outcome(json!({"allow": false})));
        assert_eq!((plain.status, plain.body.len()), (403, 0));
        let told = refusal(outcome(json!({
            "status_code": 302, "reason": {"why": 1},
            "headers": {"Location": "http://a", "X-B": "a\r\nb: c", "Content-Length": 7, "X-N": 7}
        })));
        assert_eq!((told.status, &told.body[..]), (302, &b"{\"why\":1}\n"[..]));
        let names: Vec<&str> = told.fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Content-Type", "Location", "X-N"]);
        assert_eq!(refusal(outcome(json!({"status_code": 99}))).status, 403);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (field, value) in [
            ("host", json!("opa:8181")),
            ("policy", json!("")),
            ("policy", json!("/")),
            ("policy", json!("a/../b")),
            ("send_headers_upstream", json!([])),
            ("send_headers_upstream", json!(["Connection"])),
            ("timeout", json!(0)),
            ("keepalive_pool", json!(0)),
        ] {
            let mut config = json!({"host": "http://a", "policy": "p"});
            config[field] = value;
            let error = refused::<Opa>(config.clone());
            assert!(error.contains(field), "{config}: {error}");
        }
    }
}
