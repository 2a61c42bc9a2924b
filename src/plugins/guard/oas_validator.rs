//! `oas-validator`: requests are what an OpenAPI document says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::openapi::{Document, Request, Skips};
use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Head, Hooks, Invalid, Known, Plugin, Question, Server,
    Terms,
};
use crate::plugins::bounds;

/// Refuses requests that are not what an OpenAPI document (3.0 or 3.1) says: path and method, parameters, body. Either `spec` or
/// `spec_url`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["spec"]}, {"required": ["spec_url"]}]))]
pub(super) struct Config {
    /// The document, as JSON in a text.
    #[serde(default)]
    #[schemars(length(min = 1))]
    spec: Option<String>,
    /// Where the document is: `http://` or `https://`. It is fetched with the first request, and again when `spec_url_ttl` of the
    /// metadata is over; what was fetched last goes on to hold when that fails.
    #[serde(default)]
    #[schemars(regex(pattern = "^https?://"))]
    spec_url: Option<String>,
    /// Headers that the server of `spec_url` is asked with.
    #[serde(default)]
    spec_url_request_headers: BTreeMap<String, String>,
    /// The certificate of `spec_url`'s server must be one that the system trusts.
    #[serde(default = "yes")]
    ssl_verify: bool,
    /// Milliseconds within which `spec_url` must answer.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1000, max = 60000))]
    timeout: u32,
    /// Tells refused callers what is wrong.
    #[serde(default)]
    verbose_errors: bool,
    /// Does not look at parameters in the path.
    #[serde(default)]
    skip_path_params_validation: bool,
    /// Does not look at the query.
    #[serde(default)]
    skip_query_param_validation: bool,
    /// Does not look at headers and cookies.
    #[serde(default)]
    skip_request_header_validation: bool,
    /// Does not look at the body.
    #[serde(default)]
    skip_request_body_validation: bool,
    /// Refuses requests of which the document does not speak.
    #[serde(default = "yes")]
    reject_if_not_match: bool,
    /// The status of a refusal.
    #[serde(default = "default_status")]
    #[schemars(range(min = 400, max = 599))]
    rejection_status_code: u16,
    /// Bytes of a body that is looked at; a larger one is answered 413.
    #[serde(default = "default_size")]
    #[schemars(range(min = 1))]
    max_req_body_size: u64,
}

/// What holds for all that fetch their document.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    /// Seconds after which a document is fetched again.
    #[serde(default = "default_ttl")]
    #[schemars(range(min = 1))]
    spec_url_ttl: u32,
}

const fn yes() -> bool {
    true
}
const fn default_timeout() -> u32 {
    10_000
}
const fn default_status() -> u16 {
    400
}
const fn default_size() -> u64 {
    64 << 20
}
const fn default_ttl() -> u32 {
    3600
}

pub(super) struct OasValidator {
    source: Source,
    skips: Skips,
    verbose: bool,
    rejects_unknown: bool,
    status: u16,
    max_size: u64,
}

enum Source {
    Given(Arc<Document>),
    Fetched { fetched: Arc<Fetched>, question: Question, ttl: Duration },
}

/// A document somewhere else. Kept from revision to revision, as long as its place stays the same.
struct Fetched {
    server: Server,
    known: Mutex<Option<Fetch>>,
    /// Who fetches; others wait for it where nothing is known yet.
    fetching: tokio::sync::Mutex<()>,
}

/// What the last attempt brought.
#[derive(Clone)]
struct Fetch {
    document: Result<Arc<Document>, String>,
    /// When it is asked again.
    until: Instant,
}

/// Until it is asked again where that failed.
const AGAIN: Duration = Duration::from_secs(1);

impl Plugin for OasValidator {
    const NAME: &'static str = "oas-validator";
    const PRIORITY: i32 = 512;
    const EXAMPLE: &'static str = r#"{"verbose_errors": true, "spec": "{\"openapi\": \"3.1.0\", \"info\": {\"title\": \"shop\", \"version\": \"1\"}, \"paths\": {\"/items/{id}\": {\"get\": {\"parameters\": [{\"name\": \"id\", \"in\": \"path\", \"required\": true, \"schema\": {\"type\": \"integer\"}}], \"responses\": {}}}}}"}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        bounds::number("timeout", config.timeout, 1000..=60_000)?;
        bounds::number("rejection_status_code", config.rejection_status_code, 400..=599)?;
        bounds::number("max_req_body_size", config.max_req_body_size, 1..=u64::MAX)?;
        let source = match (&config.spec, &config.spec_url) {
            (Some(text), None) => {
                if !config.spec_url_request_headers.is_empty() {
                    return Err(Invalid::new("spec_url_request_headers: has no meaning with spec"));
                }
                let document = Document::parse(text.as_bytes());
                Source::Given(Arc::new(
                    document.map_err(|why| Invalid::new(format!("spec: {why}")))?,
                ))
            }
            (None, Some(url)) => fetched(&config, url, build)?,
            _ => return Err(Invalid::new("either spec or spec_url is expected")),
        };
        let plugin = Self {
            source,
            skips: Skips {
                path: config.skip_path_params_validation,
                query: config.skip_query_param_validation,
                headers: config.skip_request_header_validation,
                body: config.skip_request_body_validation,
            },
            verbose: config.verbose_errors,
            rejects_unknown: config.reject_if_not_match,
            status: config.rejection_status_code,
            max_size: config.max_req_body_size,
        };
        Ok(Hooks::of(plugin).access().reading_body().done())
    }
}

fn fetched(config: &Config, url: &str, build: &Build<'_>) -> Result<Source, Invalid> {
    let ttl = match build.metadata {
        None => default_ttl(),
        Some(metadata) => {
            Metadata::deserialize(metadata)
                .map_err(|why| Invalid::new(format!("plugin metadata: {why}")))?
                .spec_url_ttl
        }
    };
    let ttl = bounds::number("plugin metadata: spec_url_ttl", ttl, 1..=u32::MAX)?;
    let mut headers = HeaderMap::new();
    for (name, value) in &config.spec_url_request_headers {
        let field = format!("spec_url_request_headers.{name}");
        let known = Known::of(name.as_bytes());
        let parsed: Result<HeaderName, _> = name.parse();
        let Ok(parsed) = parsed else {
            return Err(Invalid::new(format!("{field}: it is no header name")));
        };
        if known.is_hop_by_hop() || known == Known::ContentLength {
            return Err(Invalid::new(format!("{field}: it belongs to the framing of messages")));
        }
        let value = HeaderValue::from_str(value)
            .map_err(|_| Invalid::new(format!("{field}: a header's value is expected")))?;
        headers.insert(parsed, value);
    }
    let terms = Terms {
        within: Duration::from_millis(config.timeout.into()),
        verify: config.ssl_verify,
        keep: None,
    };
    let server = Server::new("spec_url", url, terms)?;
    // Who asks otherwise may get another document.
    let place = format!("document {url} {terms:?} {:?}", config.spec_url_request_headers);
    let fetched = build.keep(&place, || Fetched {
        server,
        known: Mutex::default(),
        fetching: tokio::sync::Mutex::default(),
    });
    let question = Question { headers, ..Question::get("") };
    Ok(Source::Fetched { fetched, question, ttl: Duration::from_secs(ttl.into()) })
}

impl Source {
    async fn document(&self) -> Result<Arc<Document>, Fault> {
        let fault = |why: String| Fault::gateway("the OpenAPI document cannot be had", why);
        match self {
            Self::Given(document) => Ok(document.clone()),
            Self::Fetched { fetched, question, ttl } => {
                fetched.document(question, *ttl).await.map_err(fault)
            }
        }
    }
}

impl Fetched {
    async fn document(&self, question: &Question, ttl: Duration) -> Result<Arc<Document>, String> {
        let known = self.known.lock().clone();
        let old = match known {
            Some(fetch) if fetch.until > Instant::now() => return fetch.document,
            Some(fetch) => fetch.document.ok(),
            None => None,
        };
        let _turn = match (&old, self.fetching.try_lock()) {
            (_, Ok(turn)) => turn,
            // Somebody fetches; the old one is good enough until then.
            (Some(old), Err(_)) => return Ok(old.clone()),
            (None, Err(_)) => {
                let turn = self.fetching.lock().await;
                let known = self.known.lock().clone();
                if let Some(fetch) = known.filter(|fetch| fetch.until > Instant::now()) {
                    return fetch.document;
                }
                turn
            }
        };
        let (document, until) = match (self.fetch(question).await, old) {
            (Ok(document), _) => (Ok(document), Instant::now() + ttl),
            (Err(why), Some(old)) => {
                tracing::warn!(server = %self.server.name(), %why, "the OpenAPI document cannot be fetched again");
                (Ok(old), Instant::now() + AGAIN)
            }
            (Err(why), None) => (Err(why), Instant::now() + AGAIN),
        };
        *self.known.lock() = Some(Fetch { document: document.clone(), until });
        document
    }

    async fn fetch(&self, question: &Question) -> Result<Arc<Document>, String> {
        let answer = self.server.ask(question).await.map_err(|why| why.told())?;
        if answer.status != 200 {
            return Err(format!("the server answers {}", answer.status));
        }
        Document::parse(&answer.body).map(Arc::new)
    }
}

impl OasValidator {
    fn refuse(&self, why: &str) -> Flow {
        let detail = if self.verbose { format!(" {why}") } else { String::new() };
        let message = format!("failed to validate request.{detail}");
        Flow::json(self.status, &json!({ "message": message }))
    }
}

/// All lines of a header.
fn header_of(head: &Head) -> impl Fn(&str) -> Option<String> + '_ {
    |name| {
        let lines: Vec<_> = head.all(name).map(String::from_utf8_lossy).collect();
        (!lines.is_empty()).then(|| lines.join(if name == "cookie" { "; " } else { ", " }))
    }
}

fn request<'r>(head: &'r Head, header: &'r dyn Fn(&str) -> Option<String>) -> Request<'r> {
    Request { query: head.query().unwrap_or_default(), header }
}

#[async_trait]
impl Access for OasValidator {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let document = self.source.document().await?;
        let head = &exchange.request;
        let path = exchange.uri();
        let path = path.as_deref().and_then(|path| std::str::from_utf8(path).ok());
        let meant = path.and_then(|path| document.find(head.method(), path));
        let Some(meant) = meant else {
            return Ok(match self.rejects_unknown {
                true => self.refuse("the document has no such path and method"),
                false => Flow::Next,
            });
        };
        if let Err(why) = meant.check(&request(head, &header_of(head)), self.skips) {
            return Ok(self.refuse(&why));
        }
        if meant.has_body() && !self.skips.body {
            let body = exchange.read_body(self.max_size).await?;
            if let Err(why) = meant.check_body(head.text("content-type"), &body) {
                return Ok(self.refuse(&why));
            }
        }
        Ok(Flow::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use crate::pipeline::{Chain, RequestBody};
    use crate::plugins::tests::{compile, refused};
    use serde_json::Value;

    fn document(version: &str) -> Value {
        json!({
            "openapi": version,
            "servers": [{"url": "https://api.shop.test/v1/"}],
            "paths": {
                "/items": {
                    "parameters": [{"$ref": "#/components/parameters/Page"}],
                    "get": {"parameters": [
                        {"name": "tags", "in": "query", "schema": {"type": "array", "maxItems": 2, "items": {"type": "integer"}}},
                        {"name": "joined", "in": "query", "style": "pipeDelimited", "explode": false, "schema": {"type": "array", "items": {"enum": ["a", "b"]}}},
                        {"name": "deep", "in": "query", "style": "deepObject", "schema": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}},
                        {"name": "q", "in": "query", "allowEmptyValue": true, "schema": {"type": "string", "pattern": "^[a-z]+$"}},
                        {"name": "json", "in": "query", "content": {"application/json": {"schema": {"type": "object", "required": ["a"]}}}},
                        {"name": "X-Tenant", "in": "header", "required": true, "schema": {"type": "string", "minLength": 3}},
                        {"name": "session", "in": "cookie", "schema": {"type": "integer"}}
                    ]},
                    "post": {"requestBody": {"$ref": "#/components/requestBodies/Item"}}
                },
                "/items/{id}": {
                    "get": {"parameters": [{"name": "id", "in": "path", "required": true, "schema": {"type": "integer", "minimum": 1}}]},
                    "put": {"requestBody": {"content": {
                        "application/x-www-form-urlencoded": {"schema": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}, "l": {"type": "array", "items": {"type": "boolean"}}}}},
                        "text/*": {}
                    }}}
                },
                "/items/own": {"get": {}},
                "/files/{name}.json": {"get": {"parameters": [{"name": "name", "in": "path", "required": true, "schema": {"type": "string", "maxLength": 3}}]}}
            },
            "components": {
                "parameters": {"Page": {"name": "page", "in": "query", "schema": {"$ref": "#/components/schemas/Count"}}},
                "requestBodies": {"Item": {"required": true, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Item"}}}}},
                "schemas": {
                    "Count": {"type": "integer", "maximum": 10},
                    "Item": {"type": "object", "required": ["name"], "properties": {
                        "name": {"type": "string"},
                        "parent": {"$ref": "#/components/schemas/Item"},
                        "note": if version.starts_with("3.0") { json!({"type": "string", "nullable": true}) } else { json!({"type": ["string", "null"]}) },
                        "count": if version.starts_with("3.0") { json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}) } else { json!({"type": "integer", "exclusiveMinimum": 1}) }
                    }}
                }
            }
        })
    }

    #[expect(clippy::needless_pass_by_value, reason = "tests write their JSON in place")]
    fn chain(version: &str, more: Value) -> Chain {
        let mut config = json!({"spec": document(version).to_string(), "verbose_errors": true});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        compile::<OasValidator>(config)
    }

    /// Why a request is refused.
    async fn refusal(
        chain: &Chain,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<String> {
        let mut exchange = exchange(method, target, "api.shop.test");
        for (name, value) in headers {
            exchange.request.append(name, value.as_bytes());
        }
        exchange.body = RequestBody::unread();
        exchange.body.add(body.as_bytes());
        exchange.body.end(None);
        match chain.access(&mut exchange).await.unwrap() {
            Flow::Next => None,
            flow @ Flow::Reply(_) => {
                let reply = reply(flow);
                let body: Value = serde_json::from_slice(&reply.body).unwrap();
                Some(format!("{} {}", reply.status, body["message"].as_str().unwrap()))
            }
        }
    }

    #[tokio::test]
    async fn parameters_are_what_the_document_says() {
        for version in ["3.0.3", "3.1.0"] {
            let chain = chain(version, json!({}));
            let tenant = ("x-tenant", "shop");
            for (target, headers, says) in [
                ("/items", vec![tenant], None),
                ("/v1/items?page=10&tags=1&tags=2", vec![tenant], None),
                ("/items?page=11", vec![tenant], Some("parameter 'page' in query")),
                ("/items?page=x", vec![tenant], Some("parameter 'page' in query")),
                ("/items?page=1&page=11", vec![tenant], Some("'page' in query: it cannot be read")),
                ("/items?tags=1&tags=2&tags=3", vec![tenant], Some("'tags'")),
                ("/items?tags=x", vec![tenant], Some("'tags' in query: /0")),
                ("/items?joined=a%7Cb", vec![tenant], None),
                ("/items?joined=a%7Cc", vec![tenant], Some("'joined'")),
                ("/items?deep[n]=1", vec![tenant], None),
                ("/items?deep[n]=x", vec![tenant], Some("'deep'")),
                ("/items?deep[m]=1", vec![tenant], Some("'deep'")),
                ("/items?q=abc&other=1", vec![tenant], None),
                ("/items?q=", vec![tenant], None),
                ("/items?q=ABC", vec![tenant], Some("'q'")),
                ("/items?json=%7B%22a%22:1%7D", vec![tenant], None),
                ("/items?json=%7B%22b%22:1%7D", vec![tenant], Some("'json'")),
                ("/items?json=%7B", vec![tenant], Some("'json' in query: it cannot be read")),
                ("/items", vec![], Some("'X-Tenant' in header: is required")),
                ("/items", vec![("X-TENANT", "ab")], Some("'X-Tenant' in header")),
                ("/items", vec![tenant, ("cookie", "a=b; session=7")], None),
                ("/items", vec![tenant, ("cookie", "session=x")], Some("'session' in cookie")),
                ("/items/7", vec![], None),
                ("/items/%37", vec![], None),
                ("/items/0", vec![], Some("'id' in path")),
                ("/items/x", vec![], Some("'id' in path")),
                ("/items/own", vec![], None),
                ("/files/abc.json", vec![], None),
                ("/files/abcd.json", vec![], Some("'name' in path")),
                ("/files/.json", vec![], Some("no such path")),
                ("/items/7/8", vec![], Some("no such path")),
                ("/v2/items", vec![tenant], Some("no such path")),
                ("/", vec![], Some("no such path")),
            ] {
                let told = refusal(&chain, "GET", target, &headers, "").await;
                match (&told, says) {
                    (None, None) => {}
                    (Some(told), Some(says)) if told.contains(says) => {
                        assert!(told.starts_with("400 failed to validate request. "), "{told}");
                    }
                    _ => panic!("{version} {target} {headers:?}: {told:?}, not {says:?}"),
                }
            }
            assert!(refusal(&chain, "DELETE", "/items", &[tenant], "").await.is_some());
        }
    }

    #[tokio::test]
    async fn bodies_are_what_the_document_says() {
        let json_type = ("content-type", "application/json; charset=utf-8");
        let form_type = ("content-type", "application/x-www-form-urlencoded");
        for version in ["3.0.3", "3.1.0"] {
            let chain = chain(version, json!({"rejection_status_code": 422}));
            for (method, target, kind, body, says) in [
                (
                    "POST",
                    "/items",
                    Some(json_type),
                    r#"{"name": "a", "note": null, "count": 2}"#,
                    None,
                ),
                (
                    "POST",
                    "/items",
                    Some(json_type),
                    r#"{"name": "a", "parent": {"name": "b"}}"#,
                    None,
                ),
                (
                    "POST",
                    "/items",
                    Some(json_type),
                    r#"{"name": "a", "parent": {"name": 1}}"#,
                    Some("/parent/name"),
                ),
                ("POST", "/items", Some(json_type), r#"{"name": null}"#, Some("/name")),
                ("POST", "/items", Some(json_type), r#"{"name": "a", "count": 1}"#, Some("/count")),
                (
                    "POST",
                    "/items",
                    Some(json_type),
                    r#"{"name": 1, "name": "a"}"#,
                    Some("comes twice"),
                ),
                ("POST", "/items", Some(json_type), "{", Some("no JSON")),
                ("POST", "/items", Some(json_type), "", Some("a body is required")),
                ("POST", "/items", Some(form_type), "name=a", Some("is not expected")),
                ("POST", "/items", None, r#"{"name": "a"}"#, Some("is not expected")),
                ("PUT", "/items/1", Some(form_type), "n=1&l=true&l=false", None),
                ("PUT", "/items/1", Some(form_type), "n=1&l=true", None),
                ("PUT", "/items/1", Some(form_type), "n=x", Some("/n")),
                ("PUT", "/items/1", Some(form_type), "l=true", Some("\"n\"")),
                ("PUT", "/items/1", Some(("content-type", "text/plain")), "anything", None),
                ("PUT", "/items/1", None, "", None),
            ] {
                let headers: Vec<_> = kind.into_iter().collect();
                let told = refusal(&chain, method, target, &headers, body).await;
                match (&told, says) {
                    (None, None) => {}
                    (Some(told), Some(says)) if told.contains(says) && told.starts_with("422") => {}
                    _ => panic!("{version} {method} {target} {body}: {told:?}, not {says:?}"),
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_skipped_is_not_looked_at() {
        let all = json!({"skip_path_params_validation": true, "skip_query_param_validation": true,
            "skip_request_header_validation": true, "skip_request_body_validation": true});
        let lenient = chain("3.1.0", all);
        for (method, target) in [("GET", "/items?page=x"), ("GET", "/items/x"), ("POST", "/items")]
        {
            assert_eq!(refusal(&lenient, method, target, &[], "{").await, None, "{target}");
        }
        assert!(refusal(&lenient, "GET", "/nothing", &[], "").await.is_some());
        let open = chain("3.1.0", json!({"reject_if_not_match": false, "verbose_errors": false}));
        assert_eq!(refusal(&open, "GET", "/nothing", &[], "").await, None);
        let told = refusal(&open, "GET", "/items/x", &[], "").await;
        assert_eq!(told.as_deref(), Some("400 failed to validate request."));
        // A body that is too large is not read.
        let small = chain("3.1.0", json!({"max_req_body_size": 2}));
        let mut large = exchange("POST", "/items", "h");
        large.request.append("content-length", b"3");
        large.body = RequestBody::unread();
        assert_eq!(small.access(&mut large).await.unwrap_err().status, 413);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let spec = |change: fn(&mut Value)| {
            let mut document = document("3.1.0");
            change(&mut document);
            json!({"spec": document.to_string()})
        };
        let with = |field: &str, value: Value| {
            let mut config = json!({"spec_url": "http://a/openapi.json"});
            config[field] = value;
            config
        };
        for (config, says) in [
            (json!({}), "either spec or spec_url"),
            (json!({"spec": "{}", "spec_url": "http://a"}), "either spec or spec_url"),
            (json!({"spec": ""}), "spec: it is no JSON"),
            (json!({"spec": "{}"}), "spec: openapi: 3.0 or 3.1"),
            (json!({"spec": r#"{"openapi": "2.0"}"#}), "spec: openapi: 3.0 or 3.1"),
            (json!({"spec": {}}), "expected a string"),
            (
                spec(|d| d["paths"]["/items"]["get"]["parameters"][0]["in"] = json!("body")),
                "'tags': in",
            ),
            (
                spec(|d| d["paths"]["/items"]["get"]["parameters"][0]["style"] = json!("matrix")),
                "style: 'matrix'",
            ),
            (
                spec(|d| {
                    d["paths"]["/items"]["get"]["parameters"][0]["schema"] =
                        json!({"type": "what"});
                }),
                "'tags'",
            ),
            (
                spec(|d| {
                    d["paths"]["/items"]["get"]["parameters"][0]["schema"] =
                        json!({"pattern": "(a)\\1"});
                }),
                "'tags'",
            ),
            (
                spec(|d| {
                    d["paths"]["/items"]["parameters"][0]["$ref"] = json!("#/components/none");
                }),
                "/components/none",
            ),
            (
                spec(|d| {
                    d["paths"]["/items"]["parameters"][0]["$ref"] = json!("http://127.0.0.1:1/x");
                }),
                "leaves the document",
            ),
            (
                spec(|d| {
                    d["components"]["schemas"]["Item"] = json!({"$ref": "http://127.0.0.1:1/x"});
                }),
                "127.0.0.1",
            ),
            (
                spec(|d| {
                    d["components"]["parameters"]["Page"] =
                        json!({"$ref": "#/components/parameters/Page"});
                }),
                "too many references",
            ),
            (spec(|d| d["paths"]["/a/{b}-{c}"] = json!({"get": {}})), "one parameter at most"),
            (with("spec_url", json!("ftp://a")), "spec_url: http://host"),
            (with("spec_url_request_headers", json!({"a b": "c"})), "spec_url_request_headers.a b"),
            (with("spec_url_request_headers", json!({"a": "b\nc"})), "spec_url_request_headers.a"),
            (with("spec_url_request_headers", json!({"Connection": "c"})), "framing"),
            (with("ssl_verify", json!(1)), "boolean"),
            (with("timeout", json!(999)), "timeout"),
            (with("timeout", json!(60_001)), "timeout"),
            (with("rejection_status_code", json!(399)), "rejection_status_code"),
            (with("rejection_status_code", json!(600)), "rejection_status_code"),
            (with("max_req_body_size", json!(0)), "max_req_body_size"),
            (with("verbose_errors", json!("yes")), "boolean"),
            (with("reject_if_not_match", json!("yes")), "boolean"),
            (with("skip", json!(true)), "unknown field `skip`"),
            (
                json!({"spec": "{}", "spec_url_request_headers": {"a": "b"}}),
                "has no meaning with spec",
            ),
        ] {
            let error = refused::<OasValidator>(config.clone());
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
