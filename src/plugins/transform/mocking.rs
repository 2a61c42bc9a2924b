//! `mocking`: answers in place of an upstream that is not there yet.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::pipeline::{
    Access, Build, Exchange, Fault, FieldValue, Flow, Hooks, Invalid, Plugin, Reply, Template,
    field_name,
};
use crate::plugins::bounds;

/// Answers every request with an example, or with something made up by a schema. One of the two is given; the example wins.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["response_example"]}, {"required": ["response_schema"]}]))]
pub(super) struct Config {
    /// Seconds until the answer.
    #[serde(default)]
    #[schemars(range(min = 0, max = 3600))]
    delay: u32,
    /// The status.
    #[serde(default = "default_status")]
    #[schemars(range(min = 200, max = 599))]
    response_status: u16,
    /// `Content-Type` of the answer. With `response_schema` one of JSON, XML, plain text and HTML.
    #[serde(default = "default_type")]
    #[schemars(length(min = 1))]
    content_type: String,
    /// The body, a text with variables.
    #[serde(default)]
    response_example: Option<String>,
    /// A JSON schema (`type`, `properties`, `items`, `example`) by which the body is made up.
    #[serde(default)]
    response_schema: Option<Map<String, Value>>,
    /// Tells with `x-mock-by` that the answer is none of an upstream's.
    #[serde(default = "yes")]
    with_mock_header: bool,
    /// Headers of the answer; texts may have variables.
    #[serde(default)]
    #[schemars(extend("minProperties" = 1))]
    response_headers: Option<BTreeMap<String, FieldValue>>,
}

const fn default_status() -> u16 {
    200
}
fn default_type() -> String {
    "application/json;charset=utf8".into()
}
const fn yes() -> bool {
    true
}

pub(super) struct Mocking {
    delay: Duration,
    status: u16,
    content_type: String,
    body: Body,
    with_mock_header: bool,
    headers: Vec<(Box<str>, Template)>,
}

enum Body {
    Example(Template),
    Made { schema: Shape, as_xml: bool },
}

/// A schema, as far as values are made by it.
enum Shape {
    Text(Option<String>),
    Number(Option<Value>),
    Integer(Option<Value>),
    Boolean(Option<bool>),
    List(Box<Self>),
    Object(Vec<(String, Self)>),
}

/// Deeper schemas are refused: nobody means them, and making a value is recursive.
const MAX_DEPTH: usize = 32;
/// Lists within lists multiply; what is made up has no more parts than this.
const MAX_PARTS: usize = 10_000;

impl Plugin for Mocking {
    const NAME: &'static str = "mocking";
    const PRIORITY: i32 = 10900;
    const EXAMPLE: &'static str = r#"{
        "response_status": 200, "content_type": "application/json",
        "response_example": "{\"path\": \"$uri\"}", "response_headers": {"X-Mock": "1"}
    }"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        bounds::number("delay", config.delay, 0..=3600)?;
        // An answer of 1xx announces another one, and there is none.
        bounds::number("response_status", config.response_status, 200..=599)?;
        bounds::text("content_type", &config.content_type, 1..=usize::MAX)?;
        bounds::field_value("content_type", &config.content_type)?;
        if config.response_headers.as_ref().is_some_and(BTreeMap::is_empty) {
            return Err(Invalid::new("response_headers: at least one is expected"));
        }
        let header = |(name, value): (&String, &FieldValue)| {
            let refuse = |why: Invalid| bounds::at("response_headers", &why);
            Ok((field_name(name).map_err(refuse)?, value.template().map_err(refuse)?))
        };
        let headers =
            config.response_headers.iter().flatten().map(header).collect::<Result<_, _>>()?;
        let plugin = Self {
            delay: Duration::from_secs(config.delay.into()),
            status: config.response_status,
            body: body(&config)?,
            content_type: config.content_type,
            with_mock_header: config.with_mock_header,
            headers,
        };
        Ok(Hooks::of(plugin).access().done())
    }
}

fn body(config: &Config) -> Result<Body, Invalid> {
    let schema = config.response_schema.as_ref();
    let schema = schema.map(|schema| Shape::parse("response_schema", schema, 0)).transpose()?;
    match (&config.response_example, schema) {
        (Some(text), _) => {
            let text = Template::parse(text).map_err(|why| bounds::at("response_example", &why))?;
            Ok(Body::Example(text))
        }
        (None, Some(schema)) => {
            let media = config.content_type.split(';').next().unwrap_or_default().trim();
            let as_xml = match &*media.to_ascii_lowercase() {
                "application/xml" | "text/xml" => true,
                "application/json" | "text/plain" | "text/html" => false,
                other => {
                    return Err(Invalid::new(format!(
                        "content_type: '{other}' cannot be made up; use JSON, XML, plain text, HTML, or response_example"
                    )));
                }
            };
            Ok(Body::Made { schema, as_xml })
        }
        (None, None) => {
            Err(Invalid::new("one of response_example and response_schema at least is expected"))
        }
    }
}

impl Shape {
    fn parse(at: &str, schema: &Map<String, Value>, depth: usize) -> Result<Self, Invalid> {
        if depth > MAX_DEPTH {
            return Err(Invalid::new(format!("{at}: schemas nest at most {MAX_DEPTH} deep")));
        }
        let example = schema.get("example");
        let inner = |name: &str, value: &Value| {
            let at = format!("{at}.{name}");
            match value {
                Value::Object(schema) => Self::parse(&at, schema, depth + 1),
                _ => Err(Invalid::new(format!("{at}: a schema is expected"))),
            }
        };
        // As in APISIX, a schema without a type is an object's.
        let kind = schema.get("type").map_or(Some("object"), Value::as_str);
        Ok(match kind {
            Some("string") => Self::Text(example.and_then(Value::as_str).map(str::to_owned)),
            Some("number") => Self::Number(example.filter(|one| one.is_number()).cloned()),
            Some("integer") => Self::Integer(example.filter(|one| one.is_number()).cloned()),
            Some("boolean") => Self::Boolean(example.and_then(Value::as_bool)),
            Some("array") => match schema.get("items") {
                Some(items) => Self::List(Box::new(inner("items", items)?)),
                None => return Err(Invalid::new(format!("{at}.items: a schema is expected"))),
            },
            Some("object") => match schema.get("properties") {
                None => Self::Object(Vec::new()),
                Some(Value::Object(fields)) => {
                    let field = |(name, value): (&String, &Value)| {
                        Ok((name.clone(), inner(&format!("properties.{name}"), value)?))
                    };
                    Self::Object(fields.iter().map(field).collect::<Result<_, _>>()?)
                }
                Some(_) => {
                    return Err(Invalid::new(format!("{at}.properties: an object is expected")));
                }
            },
            _ => {
                return Err(Invalid::new(format!(
                    "{at}.type: one of string, number, integer, boolean, array, object is expected"
                )));
            }
        })
    }

    fn make(&self, parts: &mut usize) -> Value {
        *parts += 1;
        match self {
            Self::Text(Some(example)) => json!(example),
            Self::Text(None) => {
                let length = fastrand::usize(1..=10);
                json!((0..length).map(|_| fastrand::alphabetic()).collect::<String>())
            }
            Self::Number(Some(example)) | Self::Integer(Some(example)) => example.clone(),
            Self::Number(None) => json!(fastrand::f64() * 10_000.0),
            Self::Integer(None) => json!(fastrand::u32(1..=10_000)),
            Self::Boolean(example) => json!(example.unwrap_or_else(fastrand::bool)),
            Self::List(items) => {
                let length = if *parts > MAX_PARTS { 1 } else { fastrand::usize(1..=3) };
                (0..length).map(|_| items.make(parts)).collect()
            }
            Self::Object(fields) => {
                fields.iter().map(|(name, shape)| (name.clone(), shape.make(parts))).collect()
            }
        }
    }
}

/// A value as XML: objects as elements in elements, lists as elements of one name.
fn write_xml(name: &str, value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| write_xml(name, item, out)),
        Value::Object(fields) => {
            let _ = write!(out, "<{name}>");
            fields.iter().for_each(|(name, value)| write_xml(name, value, out));
            let _ = write!(out, "</{name}>");
        }
        Value::String(text) => {
            let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            let _ = write!(out, "<{name}>{text}</{name}>");
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            let _ = write!(out, "<{name}>{value}</{name}>");
        }
    }
}

#[async_trait]
impl Access for Mocking {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let mut reply = Reply::empty(self.status).with("Content-Type", &self.content_type);
        reply.body = match &self.body {
            Body::Example(text) => text.text(exchange),
            Body::Made { schema, as_xml } => {
                let value = schema.make(&mut 0);
                match as_xml {
                    false => value.to_string(),
                    true => {
                        let mut xml = String::new();
                        write_xml("data", &value, &mut xml);
                        xml
                    }
                }
            }
        }
        .into();
        if self.with_mock_header {
            reply = reply.with("x-mock-by", concat!("Wardgate/", env!("CARGO_PKG_VERSION")));
        }
        for (name, value) in &self.headers {
            let value = value.text(exchange);
            reply.fields.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            reply = reply.with(name, &value);
        }
        Ok(Flow::Reply(Box::new(reply)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use crate::plugins::tests::{compile, refused};

    async fn answered(config: Value) -> Reply {
        let mut exchange = exchange("GET", "/a?b=c", "h");
        reply(compile::<Mocking>(config).access(&mut exchange).await.unwrap())
    }

    #[tokio::test]
    async fn an_example_is_answered_with_its_variables_filled_in() {
        let reply = answered(json!({
            "response_example": "$uri $arg_b", "response_status": 202, "content_type": "text/csv",
            "response_headers": {"X-A": "$arg_b", "X-B": 2}
        }))
        .await;
        assert_eq!((reply.status, &reply.body[..]), (202, &b"/a c"[..]));
        let fields: Vec<_> = reply.fields.iter().map(|(name, value)| (&**name, &**value)).collect();
        let by = concat!("Wardgate/", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            fields,
            [("Content-Type", "text/csv"), ("x-mock-by", by), ("X-A", "c"), ("X-B", "2")]
        );
        let bare = answered(json!({"response_example": "", "with_mock_header": false})).await;
        assert_eq!(bare.fields, [("Content-Type".to_owned(), default_type())]);
    }

    #[tokio::test]
    async fn a_schema_makes_values_of_its_types() {
        let schema = json!({"properties": {
            "text": {"type": "string"}, "fixed": {"type": "string", "example": "a<b"},
            "whole": {"type": "integer"}, "part": {"type": "number"}, "seven": {"type": "integer", "example": 7},
            "flag": {"type": "boolean"}, "yes": {"type": "boolean", "example": true},
            "list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            "empty": {"type": "object"}
        }});
        let reply = answered(json!({"response_schema": schema})).await;
        let made: Value = serde_json::from_slice(&reply.body).unwrap();
        assert!((1..=10).contains(&made["text"].as_str().unwrap().len()));
        assert_eq!(
            (&made["fixed"], &made["seven"], &made["yes"]),
            (&json!("a<b"), &json!(7), &json!(true))
        );
        assert!(made["whole"].is_u64() && made["part"].is_f64() && made["flag"].is_boolean());
        let list = made["list"].as_array().unwrap();
        assert!((1..=3).contains(&list.len()) && list[0]["n"].is_u64());
        let xml =
            answered(json!({"response_schema": schema, "content_type": "text/xml; charset=utf-8"}))
                .await;
        let xml = String::from_utf8(xml.body.to_vec()).unwrap();
        assert!(xml.starts_with("<data><text>") && xml.ends_with("</data>"), "{xml}");
        assert!(xml.contains("<fixed>a&lt;b</fixed><whole>") && xml.contains("<list><n>"), "{xml}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_its_time() {
        let before = tokio::time::Instant::now();
        answered(json!({"response_example": "", "delay": 3})).await;
        assert_eq!(before.elapsed().as_secs(), 3);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let mut deep = json!({"type": "string"});
        for _ in 0..40 {
            deep = json!({"type": "array", "items": deep});
        }
        for (config, says) in [
            (json!({}), "one of response_example and response_schema"),
            (json!({"response_example": "$nothing"}), "response_example: unknown variable"),
            (
                json!({"response_example": "", "response_status": 101}),
                "response_status: a number from 200",
            ),
            (json!({"response_example": "", "delay": 3601}), "delay"),
            (
                json!({"response_example": "", "content_type": "a\r\nb: c"}),
                "content_type: a header's value",
            ),
            (json!({"response_example": "", "response_headers": {}}), "response_headers"),
            (
                json!({"response_example": "", "response_headers": {"A": "b\nc"}}),
                "response_headers",
            ),
            (
                json!({"response_schema": {"type": "string"}, "content_type": "image/png"}),
                "content_type: 'image/png'",
            ),
            (json!({"response_schema": {"type": "what"}}), "response_schema.type"),
            (json!({"response_schema": {"type": "array"}}), "response_schema.items"),
            (
                json!({"response_schema": {"properties": {"a": 1}}}),
                "response_schema.properties.a: a schema",
            ),
            (json!({"response_schema": deep}), "nest at most 32"),
        ] {
            let error = refused::<Mocking>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
