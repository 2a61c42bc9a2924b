//! `batch-requests`: several requests in one, asked in the caller's name one after the other.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::pipeline::{
    Build, Exchange, Fault, Flow, Head, Hooks, InnerAnswer, InnerRequest, Invalid, Known, Plugin,
    Unread, Within,
};
use crate::plugins::bounds;

/// Several requests in one, at a route with `public-api`: `POST /apisix/batch-requests`. Each goes the whole way, as if the caller
/// had sent it: identity, route, policy, plugins. The plugin itself has nothing to set.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {}

/// What holds for all batches.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    /// Bytes of a batch.
    #[serde(default = "default_size")]
    #[schemars(range(min = 1))]
    max_body_size: u64,
}

const fn default_size() -> u64 {
    1 << 20
}

/// Where batches are taken.
pub(super) const PATH: &str = "/apisix/batch-requests";
/// Requests of one batch.
const MOST: usize = 128;
/// Bytes of all answers together.
const MOST_ANSWERED: usize = 16 << 20;
/// Milliseconds for all of them.
const MOST_TIME: u64 = 600_000;
/// What of a query is not written as it is.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) struct BatchRequests;

impl Plugin for BatchRequests {
    const NAME: &'static str = "batch-requests";
    const PRIORITY: i32 = 4010;
    const EXAMPLE: &'static str = "{}";
    type Config = Config;

    fn compile(_: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        Batches::compile(build.metadata)?;
        Ok(Hooks::none())
    }
}

/// What a caller sends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    /// For all of them, where they do not say otherwise.
    #[serde(default)]
    query: BTreeMap<String, Value>,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    /// Milliseconds for all of them together.
    #[serde(default = "default_timeout")]
    timeout: u64,
    pipeline: Vec<Request>,
}

const fn default_timeout() -> u64 {
    30_000
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    #[serde(default)]
    #[expect(dead_code, reason = "there is no connection whose version it could be; any is taken")]
    version: Option<Version>,
    #[serde(default)]
    method: Method,
    path: String,
    #[serde(default)]
    query: BTreeMap<String, Value>,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    #[serde(default)]
    #[expect(dead_code, reason = "nothing is asked over TLS: the request stays in the process")]
    ssl_verify: Option<bool>,
    #[serde(default)]
    body: String,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
struct Version;

impl TryFrom<Value> for Version {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, &'static str> {
        match value.as_f64() {
            Some(1.0 | 1.1) => Ok(Self),
            _ => Err("version: 1.0 or 1.1 is expected"),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Method {
    #[default]
    Get,
    Post,
    Put,
    Delete,
    Patch,
    Head,
    Options,
    Trace,
}

impl Method {
    const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Patch => "PATCH",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
        }
    }
}

/// Answers batches.
pub(super) struct Batches {
    max_body_size: u64,
}

fn refuse(status: u16, why: &str) -> Flow {
    Flow::json(status, &json!({ "error_msg": why }))
}

impl Batches {
    /// By the gateway-wide metadata.
    pub(super) fn compile(metadata: Option<&Value>) -> Result<Self, Invalid> {
        let Some(metadata) = metadata else { return Ok(Self { max_body_size: default_size() }) };
        let metadata = Metadata::deserialize(metadata);
        let Metadata { max_body_size } =
            metadata.map_err(|error| Invalid::new(error.to_string()))?;
        bounds::number("max_body_size", max_body_size, 1..=u64::MAX)?;
        Ok(Self { max_body_size })
    }

    /// Answers the batch in the request's body.
    pub(super) async fn answer(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let Some(inner) = exchange.inner.clone() else {
            return Ok(refuse(400, "a request of a batch is no batch itself"));
        };
        let body = match exchange.read_body(self.max_body_size).await {
            Ok(body) => body,
            Err(Unread::TooLarge) => return Ok(refuse(413, "the batch is too large")),
            Err(other) => return Err(other.into()),
        };
        if body.is_empty() {
            return Ok(refuse(
                400,
                "no request body, you should give at least one pipeline setting",
            ));
        }
        let batch = match serde_json::from_slice::<Batch>(&body) {
            Ok(batch) => batch,
            Err(error) => return Ok(refuse(400, &format!("bad request body: {error}"))),
        };
        let requests = match requests(&batch, inner.original()) {
            Ok(requests) => requests,
            Err(why) => return Ok(refuse(400, &format!("bad request body: {why}"))),
        };
        let deadline = Instant::now() + Duration::from_millis(batch.timeout);
        let mut left = MOST_ANSWERED;
        let mut answers = Vec::with_capacity(requests.len());
        let late = || json!({ "status": 504, "reason": "upstream timeout" });
        for (head, body) in requests {
            if Instant::now() >= deadline {
                // It is not even asked.
                answers.push(late());
                continue;
            }
            let request = InnerRequest { within: Within::Batch, head, body, most: left };
            let answer = timeout_at(deadline, inner.ask(request)).await;
            answers.push(match answer {
                Err(_) => late(),
                Ok(None) => {
                    json!({ "status": 502, "reason": "the answer broke off, or is too long" })
                }
                Ok(Some(answer)) => {
                    left = left.saturating_sub(answer.body.len());
                    told(&answer)
                }
            });
        }
        Ok(Flow::json(200, &Value::Array(answers)))
    }
}

/// The requests of a batch, all judged before the first is asked.
fn requests(batch: &Batch, outer: &Head) -> Result<Vec<(Head, Bytes)>, String> {
    if !(1..=MOST).contains(&batch.pipeline.len()) {
        return Err(format!("pipeline: 1 to {MOST} requests are expected"));
    }
    if !(1..=MOST_TIME).contains(&batch.timeout) {
        return Err(format!("timeout: 1 to {MOST_TIME} milliseconds are expected"));
    }
    let request = |(at, request): (usize, &Request)| {
        let place = |why: String| format!("pipeline[{at}].{why}");
        let target = target(request, &batch.query).map_err(place)?;
        let mut host = outer.authority();
        let mut fields = BTreeMap::new();
        for (name, value) in batch.headers.iter().chain(&request.headers) {
            let value = text(value).ok_or_else(|| {
                place(format!("headers: '{name}' is no text, number or truth value"))
            })?;
            fields.insert(name.to_ascii_lowercase(), value);
        }
        let named = fields.remove("host");
        if let Some(named) = &named {
            let lawful = |b: u8| b.is_ascii_graphic() && !b"/?#@\\,\"<>".contains(&b);
            if named.is_empty() || !named.bytes().all(lawful) {
                return Err(place("headers: 'host' is no host".to_owned()));
            }
            host = named;
        }
        let mut head = Head::request(request.method.name(), &target, host);
        for field in outer.fields() {
            let name = field.name.to_ascii_lowercase();
            let is_ours = name.starts_with("content-")
                // What they answer must be text.
                || name == "accept-encoding"
                || is_of_the_connection(field.known)
                || fields.contains_key(&name);
            if !is_ours {
                head.append(field.name, field.value);
            }
        }
        for (name, value) in &fields {
            check_field(name, value).map_err(place)?;
            head.append(name, value.as_bytes());
        }
        Ok((head, Bytes::copy_from_slice(request.body.as_bytes())))
    };
    batch.pipeline.iter().enumerate().map(request).collect()
}

fn is_of_the_connection(known: Known) -> bool {
    known.is_hop_by_hop() || matches!(known, Known::ContentLength | Known::Expect | Known::Trailer)
}

fn check_field(name: &str, value: &str) -> Result<(), String> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("headers: '{}' is no name of a header", name.escape_default()));
    }
    if is_of_the_connection(Known::of(name.as_bytes())) {
        return Err(format!("headers: '{name}' belongs to the connection"));
    }
    if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
        return Err(format!("headers: the value of '{name}' has control characters"));
    }
    Ok(())
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn target(request: &Request, common: &BTreeMap<String, Value>) -> Result<String, String> {
    let lawful = |b: u8| (0x21..=0x7e).contains(&b) && b != b'#';
    if !request.path.starts_with('/') || !request.path.bytes().all(lawful) {
        return Err("path: '/' and what may stand in a path are expected".to_owned());
    }
    let mut target = request.path.clone();
    let mut query = common.clone();
    query.extend(request.query.clone());
    for (name, value) in &query {
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            let value = text(value)
                .ok_or_else(|| format!("query: '{name}' is no text, number or truth value"))?;
            target.push(if target.contains('?') { '&' } else { '?' });
            target.extend(utf8_percent_encode(name, IN_QUERY));
            target.push('=');
            target.extend(utf8_percent_encode(&value, IN_QUERY));
        }
    }
    Ok(target)
}

/// An answer as callers read it. A body that is no text is base64, and said to be.
fn told(answer: &InnerAnswer) -> Value {
    let mut headers = serde_json::Map::new();
    for field in answer.head.fields() {
        let value = Value::from(String::from_utf8_lossy(field.value));
        match headers.get_mut(field.name) {
            None => drop(headers.insert(field.name.to_owned(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(one) => *one = json!([one.take(), value]),
        }
    }
    let status = answer.head.status();
    let reason =
        http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut told =
        json!({ "status": status, "reason": reason.unwrap_or_default(), "headers": headers });
    match std::str::from_utf8(&answer.body) {
        Ok("") => {}
        Ok(text) => told["body"] = text.into(),
        Err(_) => {
            told["body"] = STANDARD.encode(&answer.body).into();
            told["body_base64"] = true.into();
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(batch: Value) -> Result<Vec<(Head, Bytes)>, String> {
        let mut outer = Head::request("POST", PATH, "shop");
        for (name, value) in [
            ("Apikey", "k"),
            ("Content-Type", "application/json"),
            ("Accept-Encoding", "br"),
            ("X-A", "1"),
        ] {
            outer.append(name, value.as_bytes());
        }
        let batch: Batch = serde_json::from_value(batch).map_err(|error| error.to_string())?;
        requests(&batch, &outer)
    }

    #[test]
    fn each_request_is_what_the_caller_could_have_sent_itself() {
        let batch = json!({
            "query": {"a": 1, "b": "x y"}, "headers": {"x-b": true, "Host": "other"},
            "pipeline": [
                {"path": "/p?c=2", "query": {"b": ["&", "="]}, "headers": {"X-A": "2"}},
                {"method": "POST", "path": "/q", "body": "text", "version": 1.1, "ssl_verify": false}
            ]
        });
        let requests = read(batch).unwrap();
        let (first, body) = &requests[0];
        assert_eq!(
            (first.method(), first.target(), first.authority()),
            ("GET", "/p?c=2&a=1&b=%26&b=%3D", "other")
        );
        assert_eq!(first.all("x-a").collect::<Vec<_>>(), [b"2"]);
        assert_eq!(
            (first.text("apikey"), first.text("x-b"), first.value("content-type")),
            (Some("k"), Some("true"), None)
        );
        assert_eq!((first.value("accept-encoding"), body.len()), (None, 0));
        let (second, body) = &requests[1];
        assert_eq!(
            (second.method(), second.target(), &body[..]),
            ("POST", "/q?a=1&b=x%20y", &b"text"[..])
        );
        assert_eq!(second.text("x-a"), Some("1"));
    }

    #[test]
    fn what_no_caller_may_send_is_refused_before_anything_is_asked() {
        for (batch, says) in [
            (json!({}), "missing field `pipeline`"),
            (json!({"pipeline": []}), "pipeline: 1 to 128"),
            (json!({"pipeline": vec![json!({"path": "/"}); 129]}), "pipeline: 1 to 128"),
            (json!({"pipeline": [{}]}), "missing field `path`"),
            (
                json!({"pipeline": [{"path": "http://127.0.0.1:9180/apisix/admin"}]}),
                "pipeline[0].path",
            ),
            (json!({"pipeline": [{"path": "/a b"}]}), "pipeline[0].path"),
            (json!({"pipeline": [{"path": "/a\r\nHost: b"}]}), "pipeline[0].path"),
            (json!({"pipeline": [{"path": "/", "method": "CONNECT"}]}), "unknown variant"),
            (json!({"pipeline": [{"path": "/", "version": 2}]}), "version: 1.0 or 1.1"),
            (json!({"pipeline": [{"path": "/", "body": {}}]}), "invalid type"),
            (json!({"pipeline": [{"path": "/", "query": {"a": {}}}]}), "pipeline[0].query: 'a'"),
            (
                json!({"pipeline": [{"path": "/", "headers": {"a b": "c"}}]}),
                "pipeline[0].headers: 'a b'",
            ),
            (
                json!({"pipeline": [{"path": "/", "headers": {"a": "b\r\nc: d"}}]}),
                "pipeline[0].headers: the value",
            ),
            (
                json!({"pipeline": [{"path": "/", "headers": {"a": null}}]}),
                "pipeline[0].headers: 'a'",
            ),
            (
                json!({"pipeline": [{"path": "/", "headers": {"host": "a/b"}}]}),
                "pipeline[0].headers: 'host'",
            ),
            (
                json!({"pipeline": [{"path": "/", "headers": {"Content-Length": 3}}]}),
                "belongs to the connection",
            ),
            (
                json!({"pipeline": [{"path": "/"}], "headers": {"Transfer-Encoding": "chunked"}}),
                "belongs to the connection",
            ),
            (
                json!({"pipeline": [{"path": "/"}], "headers": {"Upgrade": "websocket"}}),
                "belongs to the connection",
            ),
            (json!({"pipeline": [{"path": "/"}], "timeout": 0}), "timeout: 1 to"),
            (json!({"pipeline": [{"path": "/"}], "more": 1}), "unknown field"),
        ] {
            let why = read(batch.clone()).unwrap_err();
            assert!(why.contains(says), "{batch}: {why}");
        }
        assert!(Batches::compile(Some(&json!({"max_body_size": 0}))).is_err());
        assert!(Batches::compile(Some(&json!({"max_body": 1}))).is_err());
    }
}
