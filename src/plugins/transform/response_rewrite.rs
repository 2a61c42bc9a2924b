//! `response-rewrite`: another status, other headers, another body.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use std::sync::Arc;

use super::body::{self, Coding};
use crate::pipeline::{
    BodyFilter, Build, Exchange, Expr, Fault, FieldValue, Hooks, Invalid, Pattern, PatternOptions,
    Plugin, Replacement, ResponseBody, ResponseHead, Template, field_name,
};

/// What callers read in place of what came, where `vars` holds.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The status.
    #[serde(default)]
    #[schemars(range(min = 200, max = 598))]
    status_code: Option<u16>,
    /// The body. Not together with `filters`.
    #[serde(default)]
    body: Option<String>,
    /// `body` is base64.
    #[serde(default)]
    body_base64: bool,
    /// Replacements in the body, one after the other. The body is held back until it is complete.
    #[serde(default)]
    #[schemars(length(min = 1))]
    filters: Option<Vec<Filter>>,
    /// Headers: `add` (texts `name: value`), `set` and `remove`, in this order; or a map of headers to set.
    #[serde(default)]
    headers: Option<Headers>,
    /// Only where this expression holds when the response's head is there.
    #[serde(default)]
    #[schemars(with = "Option<Vec<Value>>")]
    vars: Option<Value>,
    /// Bytes that `filters` hold back at most; a longer body cannot be served.
    #[serde(default = "default_size")]
    #[schemars(range(min = 1))]
    max_resp_body_size: usize,
}

const fn default_size() -> usize {
    64 << 20
}

/// A replacement in the body.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// What is searched.
    #[schemars(length(min = 1))]
    regex: String,
    /// What stands in its place; `$1` for groups.
    replace: String,
    /// The first match, or all of them.
    #[serde(default)]
    scope: Scope,
    /// `ngx.re`'s letters: i, m, s, x; j and o mean nothing here.
    #[serde(default = "default_options")]
    options: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Scope {
    #[default]
    Once,
    Global,
}

fn default_options() -> String {
    "jo".into()
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Headers {
    Edits(Edits),
    Flat(BTreeMap<String, FieldValue>),
}

/// Edits of headers, done in this order.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Edits {
    /// `name: value`, appended behind what is there.
    #[serde(default)]
    add: Vec<String>,
    /// In place of what is there.
    #[serde(default)]
    set: BTreeMap<String, FieldValue>,
    /// Taken off.
    #[serde(default)]
    remove: Vec<String>,
}

pub(super) struct ResponseRewrite {
    condition: Option<Expr>,
    status: Option<u16>,
    add: Vec<(Box<str>, Template)>,
    set: Vec<(Box<str>, Template)>,
    remove: Vec<Box<str>>,
    change: Change,
}

enum Change {
    None,
    Body(Bytes),
    Filters(Arc<[Compiled]>, usize),
}

struct Compiled {
    pattern: Pattern,
    by: Replacement,
    scope: Scope,
}

impl Plugin for ResponseRewrite {
    const NAME: &'static str = "response-rewrite";
    const PRIORITY: i32 = 899;
    const EXAMPLE: &'static str = r#"{
        "headers": {"set": {"X-Served-By": "$balancer_ip:$balancer_port"}, "remove": ["X-Powered-By"]},
        "vars": [["status", "==", 200]]
    }"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.status_code.is_some_and(|status| !(200..=598).contains(&status)) {
            return Err(Invalid::new("status_code: a status from 200 to 598 is expected"));
        }
        let condition = config.vars.as_ref().map(Expr::parse).transpose();
        let condition = condition.map_err(|why| Invalid::new(format!("vars: {why}")))?;
        let change = change(&config)?;
        let changes_body = !matches!(change, Change::None);
        let mut plugin = Self {
            condition,
            status: config.status_code,
            add: Vec::new(),
            set: Vec::new(),
            remove: Vec::new(),
            change,
        };
        match &config.headers {
            None => {}
            Some(Headers::Flat(headers)) => plugin.set = set("headers", headers)?,
            Some(Headers::Edits(edits)) => {
                plugin.add = edits.add.iter().map(|line| add(line)).collect::<Result<_, _>>()?;
                plugin.set = set("headers.set", &edits.set)?;
                let name = |name: &String| {
                    field_name(name)
                        .map_err(|error| Invalid::new(format!("headers.remove: {error}")))
                };
                plugin.remove = edits.remove.iter().map(name).collect::<Result<_, _>>()?;
            }
        }
        let hooks = Hooks::of(plugin).response_head();
        Ok(if changes_body { hooks.response_body().done() } else { hooks.done() })
    }
}

fn change(config: &Config) -> Result<Change, Invalid> {
    match (&config.body, &config.filters) {
        (Some(_), Some(_)) => Err(Invalid::new("only one of body and filters is expected")),
        (None, None) => Ok(Change::None),
        (Some(body), None) if config.body_base64 => {
            let decoded = STANDARD.decode(body);
            let decoded = decoded.map_err(|why| Invalid::new(format!("body: no base64: {why}")))?;
            if decoded.is_empty() {
                return Err(Invalid::new("body: is empty"));
            }
            Ok(Change::Body(decoded.into()))
        }
        (Some(body), None) => Ok(Change::Body(body.clone().into())),
        (None, Some(filters)) => {
            if filters.is_empty() {
                return Err(Invalid::new("filters: at least one is expected"));
            }
            if config.max_resp_body_size == 0 {
                return Err(Invalid::new("max_resp_body_size: a number from 1 is expected"));
            }
            let at = |error: Invalid| Invalid::new(format!("filters: {error}"));
            let compile = |filter: &Filter| {
                if filter.regex.is_empty() {
                    return Err(Invalid::new("filters: an empty regex matches everywhere"));
                }
                let options = PatternOptions::parse(&filter.options).map_err(at)?;
                let pattern = Pattern::parse(&filter.regex, options).map_err(at)?;
                let by = Replacement::parse(&filter.replace, &pattern).map_err(at)?;
                Ok(Compiled { pattern, by, scope: filter.scope })
            };
            let filters = filters.iter().map(compile).collect::<Result<_, _>>()?;
            Ok(Change::Filters(filters, config.max_resp_body_size))
        }
    }
}

fn set(
    at: &str,
    fields: &BTreeMap<String, FieldValue>,
) -> Result<Vec<(Box<str>, Template)>, Invalid> {
    let refuse = |error: Invalid| Invalid::new(format!("{at}: {error}"));
    let compile = |(name, value): (&String, &FieldValue)| {
        Ok((field_name(name).map_err(refuse)?, value.template().map_err(refuse)?))
    };
    fields.iter().map(compile).collect()
}

fn add(line: &str) -> Result<(Box<str>, Template), Invalid> {
    let refuse = |error: Invalid| Invalid::new(format!("headers.add: {error}"));
    let Some((name, value)) = line.split_once(':') else {
        return Err(Invalid::new(format!(
            "headers.add: '{line}' is not of the form 'name: value'"
        )));
    };
    let value = FieldValue::Text(value.trim().to_owned());
    Ok((field_name(name.trim()).map_err(refuse)?, value.template().map_err(refuse)?))
}

impl ResponseHead for ResponseRewrite {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        if self.condition.as_ref().is_some_and(|condition| !exchange.judge(condition)) {
            return Ok(());
        }
        if let Change::Filters(filters, _) = &self.change
            && body::is_encoded(exchange)
            && body::may_be_there(exchange)
        {
            // To search in compressed bytes would find nothing and let pass what was to be replaced.
            let Some(coding) = body::coding(exchange) else {
                let encoding = exchange.response.text("content-encoding").unwrap_or("?");
                let cause = format!("filters cannot read a body encoded as {encoding}");
                return Err(Fault::gateway("the response cannot be rewritten", cause));
            };
            let decoding = (Arc::as_ptr(filters).cast::<()>().addr(), coding);
            match exchange.notes.find_mut::<Decoded>() {
                Some(decoded) => decoded.0.push(decoding),
                None => exchange.notes.leave(Decoded(vec![decoding])),
            }
        }
        let rendered = |fields: &[(Box<str>, Template)]| -> Vec<String> {
            fields.iter().map(|(_, value)| value.text(exchange)).collect()
        };
        let (added, to_set) = (rendered(&self.add), rendered(&self.set));
        let response = &mut exchange.response;
        if let Some(status) = self.status {
            response.set_status(status);
        }
        if !matches!(self.change, Change::None) {
            body::is_another(response);
        }
        for ((name, _), value) in self.add.iter().zip(added) {
            response.append(name, value.as_bytes());
        }
        for ((name, _), value) in self.set.iter().zip(to_set) {
            response.set(name, value.as_bytes());
        }
        for name in &self.remove {
            response.remove(name);
        }
        Ok(())
    }
}

impl ResponseBody for ResponseRewrite {
    fn filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        if self.condition.as_ref().is_some_and(|condition| !exchange.judged(condition)) {
            return None;
        }
        if !body::may_be_there(exchange) {
            return None;
        }
        match &self.change {
            Change::None => None,
            Change::Body(body) => Some(Box::new(Replace { body: Some(body.clone()) })),
            Change::Filters(filters, limit) => Some(Box::new(Search {
                coding: exchange.notes.find::<Decoded>().and_then(|decoded| decoded.by(filters)),
                filters: filters.clone(),
                limit: *limit,
                held: BytesMut::new(),
            })),
        }
    }
}

/// Gives another body; what comes is dropped.
struct Replace {
    body: Option<Bytes>,
}

impl BodyFilter for Replace {
    fn chunk(&mut self, _: Bytes) -> Result<Bytes, Fault> {
        Ok(self.body.take().unwrap_or_default())
    }
    fn finish(&mut self) -> Result<Bytes, Fault> {
        Ok(self.body.take().unwrap_or_default())
    }
}

/// A note: whose filters take which coding off. The head says nothing of it any more.
struct Decoded(Vec<(usize, Coding)>);

impl Decoded {
    fn by(&self, filters: &Arc<[Compiled]>) -> Option<Coding> {
        let own = Arc::as_ptr(filters).cast::<()>().addr();
        self.0.iter().find(|(by, _)| *by == own).map(|(_, coding)| *coding)
    }
}

/// Holds the body back and replaces in it when it is complete.
struct Search {
    /// What is taken off it first.
    coding: Option<Coding>,
    filters: Arc<[Compiled]>,
    limit: usize,
    held: BytesMut,
}

impl BodyFilter for Search {
    fn chunk(&mut self, data: Bytes) -> Result<Bytes, Fault> {
        if self.held.len() + data.len() > self.limit {
            let cause = format!("the body is longer than max_resp_body_size ({})", self.limit);
            return Err(Fault::gateway("the response cannot be rewritten", cause));
        }
        self.held.extend_from_slice(&data);
        Ok(Bytes::new())
    }

    fn finish(&mut self) -> Result<Bytes, Fault> {
        let mut body = self.held.split().freeze();
        if let Some(coding) = self.coding {
            let decoded = body::decoded(&body, coding, self.limit).map_err(|error| {
                Fault::gateway("the response cannot be rewritten", error.to_string())
            })?;
            body = decoded.into();
        }
        for Compiled { pattern, by, scope } in &*self.filters {
            match scope {
                Scope::Once => {
                    if let Some(replaced) = pattern.replace_first(&body, by) {
                        body = replaced.into();
                    }
                }
                Scope::Global => body = pattern.replace_all(&body, by).into(),
            }
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::pipeline::{BodyFilters, Chain};
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;

    fn answered(status: u16) -> Exchange {
        let mut exchange = exchange("GET", "/", "h");
        exchange.response.set_status(status);
        for (name, value) in [("X-Old", "1"), ("Content-Length", "11"), ("ETag", "\"x\"")] {
            exchange.response.append(name, value.as_bytes());
        }
        exchange
    }

    fn body(chain: &Chain, exchange: &Exchange, chunks: &[&'static str]) -> Result<String, Fault> {
        let mut filters = BodyFilters::default();
        chain.filters(exchange, &mut filters);
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&filters.chunk(Bytes::from_static(chunk.as_bytes()))?);
        }
        out.extend_from_slice(&filters.finish()?);
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn status_and_headers_change() {
        let chain = compile::<ResponseRewrite>(json!({
            "status_code": 418,
            "headers": {
                "add": ["X-Old: 2", "Link: <https://a/b>; rel=x"],
                "set": {"X-New": "$request_method $route_id", "X-Number": 5},
                "remove": ["etag"]
            }
        }));
        let mut exchange = answered(200);
        chain.response_head(&mut exchange).unwrap();
        let response = &exchange.response;
        assert_eq!(response.status(), 418);
        assert_eq!(response.all("x-old").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(response.text("link"), Some("<https://a/b>; rel=x"));
        assert_eq!(response.text("x-new"), Some("GET r1"));
        assert_eq!(response.text("x-number"), Some("5"));
        assert_eq!((response.value("etag"), response.text("content-length")), (None, Some("11")));
        assert!(!chain.has_response_body());
    }

    #[test]
    fn another_body_goes_out_in_place_of_the_old_one() {
        for config in [json!({"body": "new"}), json!({"body": "bmV3", "body_base64": true})] {
            let chain = compile::<ResponseRewrite>(config);
            let mut exchange = answered(200);
            exchange.response.append("Content-Encoding", b"gzip");
            chain.response_head(&mut exchange).unwrap();
            assert_eq!(body(&chain, &exchange, &["old ", "body"]).unwrap(), "new");
            assert_eq!(body(&chain, &exchange, &[]).unwrap(), "new");
            for name in ["content-length", "content-encoding", "etag"] {
                assert_eq!(exchange.response.value(name), None, "{name}");
            }
        }
    }

    #[test]
    fn where_there_is_no_body_none_is_put() {
        let chain = compile::<ResponseRewrite>(json!({"body": "new"}));
        for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304)] {
            let mut exchange = answered(status);
            exchange.request.set_method(method);
            chain.response_head(&mut exchange).unwrap();
            let mut filters = BodyFilters::default();
            chain.filters(&exchange, &mut filters);
            assert!(filters.is_empty(), "{method} {status}");
        }
    }

    #[test]
    fn filters_replace_across_chunks() {
        let chain = compile::<ResponseRewrite>(json!({"filters": [
            {"regex": "hel+o", "replace": "bye", "options": "joi"},
            {"regex": "(o)(r)", "scope": "global", "replace": "$2${1}"}
        ]}));
        let mut exchange = answered(200);
        chain.response_head(&mut exchange).unwrap();
        assert_eq!(
            body(&chain, &exchange, &["HEL", "LO hello wor", "ld or"]).unwrap(),
            "bye hello wrold ro"
        );
    }

    #[test]
    fn what_filters_cannot_read_is_not_let_through() {
        let chain = compile::<ResponseRewrite>(json!({
            "filters": [{"regex": "secret", "replace": "-"}], "max_resp_body_size": 8
        }));
        let mut exchange = answered(200);
        chain.response_head(&mut exchange).unwrap();
        assert_eq!(body(&chain, &exchange, &["12345678"]).unwrap(), "12345678");
        assert!(body(&chain, &exchange, &["12345678", "9"]).is_err());
        for coding in ["zstd", "gzip, br", "deflate"] {
            let mut encoded = answered(200);
            encoded.response.append("Content-Encoding", coding.as_bytes());
            let fault = chain.response_head(&mut encoded).unwrap_err();
            assert!(fault.cause.contains(&format!("encoded as {coding}")), "{}", fault.cause);
        }
    }

    #[test]
    fn filters_read_what_is_compressed_and_no_more_of_it_than_their_limit() {
        use std::io::Write as _;
        let gzip = |text: &str| {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            out.write_all(text.as_bytes()).unwrap();
            out.finish().unwrap()
        };
        let brotli = |text: &str| {
            let mut out = ::brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
            out.write_all(text.as_bytes()).unwrap();
            out.into_inner()
        };
        let chain = compile::<ResponseRewrite>(json!({
            "filters": [{"regex": "secret", "replace": "-"}], "max_resp_body_size": 100
        }));
        let rewritten = |coding: &str, coded: Vec<u8>| {
            let mut exchange = answered(200);
            exchange.response.append("Content-Encoding", coding.as_bytes());
            chain.response_head(&mut exchange).unwrap();
            assert_eq!(exchange.response.value("content-encoding"), None);
            let mut filters = BodyFilters::default();
            chain.filters(&exchange, &mut filters);
            assert!(filters.chunk(coded.into())?.is_empty());
            filters.finish()
        };
        assert_eq!(rewritten("gzip", gzip("a secret")).unwrap(), "a -");
        assert_eq!(rewritten("BR", brotli("a secret")).unwrap(), "a -");
        for (coding, coded) in [
            ("gzip", gzip(&"x".repeat(101))),
            ("br", brotli(&"x".repeat(101))),
            ("gzip", b"no gzip".to_vec()),
            ("br", gzip("a secret")),
            ("gzip", gzip("a secret")[..15].to_vec()),
        ] {
            assert!(rewritten(coding, coded).is_err(), "{coding}");
        }
    }

    #[test]
    fn the_condition_is_asked_of_the_response_as_it_came() {
        let chain = compile::<ResponseRewrite>(
            json!({"status_code": 200, "body": "new", "vars": [["status", "==", 500]]}),
        );
        let mut failed = answered(500);
        chain.response_head(&mut failed).unwrap();
        assert_eq!(failed.response.status(), 200);
        assert_eq!(body(&chain, &failed, &["old"]).unwrap(), "new");
        let mut fine = answered(201);
        chain.response_head(&mut fine).unwrap();
        assert_eq!(fine.response.status(), 201);
        assert_eq!(body(&chain, &fine, &["old"]).unwrap(), "old");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({"body": "a", "filters": [{"regex": "a", "replace": "b"}]}), "only one of"),
            (json!({"status_code": 100}), "status_code"),
            (json!({"body": "%", "body_base64": true}), "no base64"),
            (json!({"filters": []}), "at least one"),
            (
                json!({"filters": [{"regex": "(", "replace": ""}]}),
                "filters: the regular expression",
            ),
            (json!({"filters": [{"regex": "a", "replace": "$1"}]}), "names group 1"),
            (json!({"filters": [{"regex": "a", "replace": "", "options": "u"}]}), "'u'"),
            (json!({"vars": ["status", "==", 1]}), "vars: rule should be wrapped"),
            (json!({"headers": {"add": ["nothing"]}}), "not of the form"),
            (json!({"headers": {"set": {"Transfer-Encoding": "x"}}}), "framing"),
        ] {
            let error = refused::<ResponseRewrite>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
