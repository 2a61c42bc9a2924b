//! `echo`: a body before, behind or in place of the upstream's.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;

use super::body;
use crate::pipeline::{
    BodyFilter, Build, Exchange, Fault, FieldValue, Hooks, Invalid, Plugin, ResponseBody,
    ResponseHead, field_name,
};
use crate::plugins::bounds;

/// Writes texts before, behind or in place of the answer's body, and sets headers. Texts stand as they are written. One of the
/// three bodies at least is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "anyOf" = [
    {"required": ["before_body"]}, {"required": ["body"]}, {"required": ["after_body"]}
]))]
pub(super) struct Config {
    /// In place of the body.
    #[serde(default)]
    body: Option<String>,
    /// Before the body.
    #[serde(default)]
    before_body: Option<String>,
    /// Behind the body.
    #[serde(default)]
    after_body: Option<String>,
    /// Headers to set.
    #[serde(default)]
    #[schemars(extend("minProperties" = 1))]
    headers: Option<BTreeMap<String, FieldValue>>,
}

pub(super) struct Echo {
    body: Option<Bytes>,
    before: Bytes,
    after: Bytes,
    headers: Vec<(Box<str>, String)>,
}

impl Plugin for Echo {
    const NAME: &'static str = "echo";
    const PRIORITY: i32 = 412;
    const EXAMPLE: &'static str = r#"{"before_body": "<!-- begin -->", "after_body": "<!-- end -->", "headers": {"X-Echo": "yes"}}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.body.is_none() && config.before_body.is_none() && config.after_body.is_none() {
            return Err(Invalid::new(
                "one of before_body, body and after_body at least is expected",
            ));
        }
        if config.headers.as_ref().is_some_and(BTreeMap::is_empty) {
            return Err(Invalid::new("headers: at least one is expected"));
        }
        let header = |(name, value): (&String, &FieldValue)| {
            let name = field_name(name).map_err(|why| bounds::at("headers", &why))?;
            let value = match value {
                FieldValue::Text(text) => text.clone(),
                FieldValue::Number(number) => number.to_string(),
            };
            bounds::field_value("headers", &value)?;
            Ok((name, value))
        };
        let headers = config.headers.iter().flatten().map(header).collect::<Result<_, _>>()?;
        let plugin = Self {
            body: config.body.map(Into::into),
            before: config.before_body.unwrap_or_default().into(),
            after: config.after_body.unwrap_or_default().into(),
            headers,
        };
        Ok(Hooks::of(plugin).response_head().response_body().done())
    }
}

impl ResponseHead for Echo {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        if body::may_be_there(exchange) {
            if self.body.is_none() && body::is_encoded(exchange) {
                // Texts beside compressed bytes are no body of any kind.
                let cause = "before_body and after_body cannot stand beside an encoded body";
                return Err(Fault::gateway("the response cannot be rewritten", cause));
            }
            body::is_another(&mut exchange.response);
        }
        for (name, value) in &self.headers {
            exchange.response.set(name, value.as_bytes());
        }
        Ok(())
    }
}

impl ResponseBody for Echo {
    fn filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        if !body::may_be_there(exchange) {
            return None;
        }
        Some(Box::new(Around {
            before: self.before.clone(),
            instead: self.body.clone(),
            replaces: self.body.is_some(),
            after: self.after.clone(),
        }))
    }
}

/// What is still to be written around the body, or in its place.
struct Around {
    before: Bytes,
    instead: Option<Bytes>,
    replaces: bool,
    after: Bytes,
}

impl Around {
    fn begin(&mut self, data: Bytes) -> Bytes {
        let before = std::mem::take(&mut self.before);
        let body = if self.replaces { self.instead.take().unwrap_or_default() } else { data };
        joined(before, body)
    }
}

impl BodyFilter for Around {
    fn chunk(&mut self, data: Bytes) -> Result<Bytes, Fault> {
        Ok(self.begin(data))
    }

    fn finish(&mut self) -> Result<Bytes, Fault> {
        let begun = self.begin(Bytes::new());
        Ok(joined(begun, std::mem::take(&mut self.after)))
    }
}

fn joined(one: Bytes, other: Bytes) -> Bytes {
    match (one.is_empty(), other.is_empty()) {
        (true, _) => other,
        (_, true) => one,
        (false, false) => [one, other].concat().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::BodyFilters;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};
    use serde_json::{Value, json};

    fn through(config: &Value, pieces: &[&'static str]) -> String {
        let mut exchange = exchange("GET", "/", "h");
        exchange.response.set_status(200);
        exchange.response.append("ETag", b"1");
        let chain = compile::<Echo>(config.clone());
        chain.response_head(&mut exchange).unwrap();
        assert_eq!(exchange.response.value("etag"), None);
        let mut filters = BodyFilters::default();
        chain.filters(&exchange, &mut filters);
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&filters.chunk(Bytes::from_static(piece.as_bytes())).unwrap());
        }
        out.extend_from_slice(&filters.finish().unwrap());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn texts_stand_around_the_body_or_in_its_place() {
        for (config, pieces, whole) in [
            (json!({"before_body": "<"}), vec!["a", "b"], "<ab"),
            (json!({"after_body": ">"}), vec!["a", "b"], "ab>"),
            (json!({"before_body": "<", "after_body": ">"}), vec![], "<>"),
            (json!({"body": "x$uri"}), vec!["a", "b"], "x$uri"),
            (json!({"body": "x", "before_body": "<", "after_body": ">"}), vec!["a", "b"], "<x>"),
            (json!({"body": "x"}), vec![], "x"),
            (json!({"body": ""}), vec!["a"], ""),
        ] {
            assert_eq!(through(&config, &pieces), whole, "{config}");
        }
    }

    #[test]
    fn encoded_bodies_are_not_bent_and_heads_alone_get_no_body() {
        let chain =
            compile::<Echo>(json!({"before_body": "<", "headers": {"X-A": "$uri", "X-B": 1}}));
        let mut encoded = exchange("GET", "/", "h");
        encoded.response.set_status(200);
        encoded.response.append("Content-Encoding", b"gzip");
        assert!(chain.response_head(&mut encoded).is_err());
        let mut head = exchange("HEAD", "/", "h");
        head.response.set_status(200);
        chain.response_head(&mut head).unwrap();
        assert_eq!(head.response.text("x-a"), Some("$uri"));
        assert_eq!(head.response.text("x-b"), Some("1"));
        let mut filters = BodyFilters::default();
        chain.filters(&head, &mut filters);
        assert!(filters.is_empty());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "one of before_body, body and after_body"),
            (json!({"headers": {"a": "b"}}), "one of before_body"),
            (json!({"body": "", "headers": {}}), "headers: at least one"),
            (json!({"body": "", "headers": {"A": "b\r\nC: d"}}), "headers: a header's value"),
            (
                json!({"body": "", "headers": {"Transfer-Encoding": "x"}}),
                "headers: 'Transfer-Encoding'",
            ),
            (json!({"body": 1}), "invalid type"),
        ] {
            let error = refused::<Echo>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
