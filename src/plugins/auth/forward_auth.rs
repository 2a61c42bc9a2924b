//! `forward-auth`: another server decides, request by request.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::Deserialize;

use super::asking::{
    Reach, copy_request, default_keepalive_pool, default_keepalive_timeout, default_timeout,
    lawful, readable_name, yes,
};
use crate::pipeline::{
    Access, Answer, Build, Exchange, Fault, FieldValue, Flow, Hooks, Invalid, Plugin, Question,
    Reply, Server, Template, Vouched, field_name, host_of,
};

/// Asks a server whether a request may pass: a status below 300 lets it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The server's URL.
    #[schemars(length(min = 1))]
    uri: String,
    /// Lets requests pass while the server gives no answer.
    #[serde(default)]
    allow_degradation: bool,
    /// The status of a request that the server gave no answer for.
    #[serde(default = "default_status")]
    #[schemars(range(min = 200, max = 599))]
    status_on_error: u16,
    /// The server's certificate must be one that the system trusts.
    #[serde(default = "yes")]
    ssl_verify: bool,
    /// How the server is asked; `POST` sends it the request's body as well.
    #[serde(default)]
    request_method: RequestMethod,
    /// Headers of the request that the server gets.
    #[serde(default)]
    request_headers: Vec<String>,
    /// Headers that the server gets besides, with variables in their values.
    #[serde(default)]
    #[schemars(extend("minProperties" = 1))]
    extra_headers: Option<BTreeMap<String, String>>,
    /// Headers of the server's answer that the upstream gets. What callers send under these names is removed.
    #[serde(default)]
    upstream_headers: Vec<String>,
    /// Headers of the server's answer that a refused caller gets.
    #[serde(default)]
    client_headers: Vec<String>,
    /// Bytes of a body that is sent to the server; a longer one is answered with 413.
    #[serde(default = "default_body")]
    #[schemars(range(min = 1))]
    max_req_body_size: u64,
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

const fn default_status() -> u16 {
    403
}
const fn default_body() -> u64 {
    64 << 20
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum RequestMethod {
    #[default]
    Get,
    Post,
}

pub(super) struct ForwardAuth {
    server: Arc<Server>,
    allow_degradation: bool,
    status_on_error: u16,
    /// Bytes of the body that is sent along.
    body: Option<u64>,
    request_headers: Vec<HeaderName>,
    extra_headers: Vec<(HeaderName, Template)>,
    upstream_headers: Vec<Box<str>>,
    client_headers: Vec<HeaderName>,
}

impl Plugin for ForwardAuth {
    const NAME: &'static str = "forward-auth";
    const PRIORITY: i32 = 2002;
    const EXAMPLE: &'static str = r#"{"uri": "http://127.0.0.1:9000/check", "request_headers": ["Authorization"], "upstream_headers": ["X-User-ID"], "client_headers": ["Location"]}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        let reach = Reach {
            field: "uri",
            url: &config.uri,
            timeout: config.timeout,
            ssl_verify: config.ssl_verify,
            keepalive: config.keepalive,
            keepalive_timeout: config.keepalive_timeout,
            keepalive_pool: config.keepalive_pool,
        };
        if !(200..=599).contains(&config.status_on_error) {
            return Err(Invalid::new("status_on_error: 200 to 599 is expected"));
        }
        if config.max_req_body_size == 0 {
            return Err(Invalid::new("max_req_body_size: at least 1 byte is expected"));
        }
        if config.extra_headers.as_ref().is_some_and(BTreeMap::is_empty) {
            return Err(Invalid::new("extra_headers: at least one is expected"));
        }
        let readable = |field: &str, names: &[String]| {
            names.iter().map(|name| readable_name(field, name)).collect::<Result<Vec<_>, _>>()
        };
        let extra = |(name, value): (String, String)| {
            let template = FieldValue::Text(value)
                .template()
                .map_err(|why| Invalid::new(format!("extra_headers.{name}: {why}")))?;
            Ok((readable_name("extra_headers", &name)?, template))
        };
        let upstream = |name: &String| {
            field_name(name).map_err(|why| Invalid::new(format!("upstream_headers: {why}")))
        };
        let posts = config.request_method == RequestMethod::Post;
        let plugin = Self {
            server: reach.server(build)?,
            allow_degradation: config.allow_degradation,
            status_on_error: config.status_on_error,
            body: posts.then_some(config.max_req_body_size),
            request_headers: readable("request_headers", &config.request_headers)?,
            extra_headers: config
                .extra_headers
                .into_iter()
                .flatten()
                .map(extra)
                .collect::<Result<_, Invalid>>()?,
            upstream_headers: config
                .upstream_headers
                .iter()
                .map(upstream)
                .collect::<Result<_, _>>()?,
            client_headers: readable("client_headers", &config.client_headers)?,
        };
        let hooks = Hooks::of(plugin).access();
        Ok(if posts { hooks.reading_body().done() } else { hooks.done() })
    }
}

#[async_trait]
impl Access for ForwardAuth {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let mut question = Question::get("");
        question.headers = self.headers(exchange);
        if let Some(most) = self.body {
            question.method = Method::POST;
            question.body = exchange.read_body(most).await?;
        }
        let answer = match self.server.ask(&question).await {
            Ok(answer) => answer,
            Err(why) => {
                tracing::warn!(server = %self.server.name(), why = %why.told(), "forward-auth has no answer");
                if !self.allow_degradation {
                    return Ok(Flow::Reply(Box::new(Reply::empty(self.status_on_error))));
                }
                // Nobody has said these of the caller.
                self.tell_upstream(exchange, &HeaderMap::new());
                return Ok(Flow::Next);
            }
        };
        if answer.status >= 300 {
            return Ok(self.refuse(answer));
        }
        self.tell_upstream(exchange, &answer.headers);
        Ok(Flow::Next)
    }
}

impl ForwardAuth {
    fn headers(&self, exchange: &Exchange) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let request = &exchange.request;
        let scheme = if exchange.is_secure() { "https" } else { "http" };
        let remote = exchange.remote().ip().to_string();
        for (name, value) in [
            ("x-forwarded-proto", scheme),
            ("x-forwarded-method", request.method()),
            ("x-forwarded-host", &*host_of(request.authority())),
            ("x-forwarded-uri", request.target()),
            ("x-forwarded-for", &*remote),
        ] {
            headers.extend(
                lawful(value.as_bytes()).map(|value| (HeaderName::from_static(name), value)),
            );
        }
        if self.body.is_some() {
            copy_request(exchange, &CONTENT_ENCODING, &mut headers);
        }
        for (name, template) in &self.extra_headers {
            if let Some(value) = lawful(template.text(exchange).as_bytes()) {
                headers.insert(name.clone(), value);
            }
        }
        for name in &self.request_headers {
            if !headers.contains_key(name) {
                copy_request(exchange, name, &mut headers);
            }
        }
        headers
    }

    fn tell_upstream(&self, exchange: &mut Exchange, told: &HeaderMap) {
        let mut vouched = exchange.notes.find::<Vouched>().cloned().unwrap_or_default();
        for name in &self.upstream_headers {
            exchange.request.remove(name);
            for value in told.get_all(&**name) {
                exchange.request.append(name, value.as_bytes());
                vouched.add(name, value.as_bytes());
            }
        }
        exchange.notes.leave(vouched);
    }

    fn refuse(&self, answer: Answer) -> Flow {
        let mut reply = Reply { status: answer.status, body: answer.body, ..Reply::default() };
        for name in &self.client_headers {
            for value in answer.headers.get_all(name).iter().filter_map(text) {
                reply.fields.push((name.as_str().to_owned(), value.to_owned()));
            }
        }
        if !reply.body.is_empty() && !self.client_headers.contains(&CONTENT_TYPE) {
            // Else a browser guesses.
            reply = reply.with("Content-Type", "text/plain; charset=utf-8");
        }
        Flow::Reply(Box::new(reply))
    }
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;
    use serde_json::json;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (field, value) in [
            ("uri", json!("ftp://a")),
            ("uri", json!("https://u:p@a")),
            ("status_on_error", json!(600)),
            ("status_on_error", json!(199)),
            ("max_req_body_size", json!(0)),
            ("request_headers", json!(["a b"])),
            ("request_headers", json!(["Transfer-Encoding"])),
            ("extra_headers", json!({})),
            ("extra_headers", json!({"X-A": "$nothing"})),
            ("extra_headers", json!({"X-A": "a\r\nb: c"})),
            ("extra_headers", json!({"Content-Length": "1"})),
            ("upstream_headers", json!(["X-Forwarded-Client-Cert"])),
            ("client_headers", json!(["Content-Length"])),
            ("timeout", json!(0)),
            ("timeout", json!(60001)),
            ("keepalive_timeout", json!(999)),
            ("keepalive_pool", json!(0)),
        ] {
            let mut config = json!({"uri": "http://a"});
            config[field] = value;
            let error = refused::<ForwardAuth>(config.clone());
            assert!(error.contains(field), "{config}: {error}");
        }
    }
}
