//! `request-validation`: requests are what a JSON schema says.

use async_trait::async_trait;
use jsonschema::{Draft, PatternOptions as SchemaPatterns, Validator};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::plain_json;
use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Reply, Rewrite, Unread, arguments,
};
use crate::plugins::bounds;

/// Refuses requests whose headers or body are not what a JSON schema (draft 7) says. One of the two schemas at least is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["header_schema"]}, {"required": ["body_schema"]}]))]
pub(super) struct Config {
    /// The schema of the headers: an object of texts, of lists where a header came in several lines.
    #[serde(default)]
    header_schema: Option<Map<String, Value>>,
    /// The schema of the body: JSON, or a form where the content type says so.
    #[serde(default)]
    body_schema: Option<Map<String, Value>>,
    /// Bytes of a body that is looked at; a larger one is answered 413.
    #[serde(default = "default_size")]
    #[schemars(range(min = 1))]
    max_req_body_size: u64,
    /// The status of a refusal.
    #[serde(default = "default_code")]
    #[schemars(range(min = 200, max = 599))]
    rejected_code: u16,
    /// What a refused caller reads; what is wrong when not given.
    #[serde(default)]
    #[schemars(length(min = 1, max = 256))]
    rejected_msg: Option<String>,
}

const fn default_size() -> u64 {
    64 << 20
}
const fn default_code() -> u16 {
    400
}

pub(super) struct RequestValidation {
    headers: Option<Headers>,
    body: Option<Validator>,
    max_size: u64,
    status: u16,
    message: Option<String>,
}

struct Headers {
    validator: Validator,
    /// Names as the schema spells them: a header is known under its own spelling there, whatever the sender's.
    names: Vec<String>,
}

impl Plugin for RequestValidation {
    const NAME: &'static str = "request-validation";
    const PRIORITY: i32 = 2800;
    const EXAMPLE: &'static str = r#"{
        "header_schema": {"type": "object", "required": ["X-Tenant"], "properties": {"X-Tenant": {"type": "string", "pattern": "^[a-z]+$"}}},
        "body_schema": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "maxLength": 80}}},
        "rejected_code": 422
    }"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        bounds::number("max_req_body_size", config.max_req_body_size, 1..=u64::MAX)?;
        bounds::number("rejected_code", config.rejected_code, 200..=599)?;
        if let Some(text) = &config.rejected_msg {
            bounds::text("rejected_msg", text, 1..=256)?;
        }
        let headers = config.header_schema.map(|schema| {
            let names = names_in(&schema);
            Ok(Headers { validator: validator("header_schema", schema)?, names })
        });
        let body = config.body_schema.map(|schema| validator("body_schema", schema));
        let plugin = Self {
            headers: headers.transpose()?,
            body: body.transpose()?,
            max_size: config.max_req_body_size,
            status: config.rejected_code,
            message: config.rejected_msg,
        };
        if plugin.headers.is_none() && plugin.body.is_none() {
            return Err(Invalid::new("one of header_schema and body_schema at least is expected"));
        }
        Ok(Hooks::of(plugin).rewrite().reading_body().done())
    }
}

/// Patterns run without backtracking, and references stay inside: nothing is fetched.
fn validator(field: &str, schema: Map<String, Value>) -> Result<Validator, Invalid> {
    jsonschema::options()
        .with_draft(Draft::Draft7)
        .with_pattern_options(SchemaPatterns::regex())
        .build(&Value::Object(schema))
        .map_err(|why| Invalid::new(format!("{field}{}: {why}", why.instance_path())))
}

fn names_in(schema: &Map<String, Value>) -> Vec<String> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let required = schema.get("required").and_then(Value::as_array);
    let properties = properties.into_iter().flat_map(Map::keys).cloned();
    let required = required.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let mut names: Vec<String> = properties.chain(required).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Headers {
    fn of(&self, exchange: &Exchange) -> Value {
        let mut headers = Map::new();
        let mut add = |name: &str, value: &str| {
            let known = self.names.iter().find(|known| known.eq_ignore_ascii_case(name));
            let name = known.cloned().unwrap_or_else(|| name.to_ascii_lowercase());
            match headers.get_mut(&name) {
                None => drop(headers.insert(name, value.into())),
                Some(Value::Array(values)) => values.push(value.into()),
                Some(first) => *first = Value::Array(vec![first.take(), value.into()]),
            }
        };
        add("host", exchange.request.authority());
        for field in exchange.request.fields() {
            add(field.name, &String::from_utf8_lossy(field.value));
        }
        Value::Object(headers)
    }
}

/// A form's fields: texts, lists where one comes more than once, `true` where one has no value.
fn form(body: &str) -> Value {
    let mut fields = Map::new();
    let with_value = |name: &str| {
        body.split('&').filter_map(|pair| pair.split_once('=')).any(|(known, _)| known == name)
    };
    for (name, value) in arguments(body) {
        let value = match value.is_empty() && !with_value(&name) {
            true => Value::Bool(true),
            false => Value::String(value.into_owned()),
        };
        match fields.get_mut(&*name) {
            None => drop(fields.insert(name.into_owned(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    Value::Object(fields)
}

fn first_error(validator: &Validator, value: &Value) -> Option<String> {
    if validator.is_valid(value) {
        return None;
    }
    let error = validator.iter_errors(value).next()?;
    let path = error.instance_path().to_string();
    let path = path.trim_start_matches('/').replace('/', ".");
    Some(match path.is_empty() {
        true => error.to_string(),
        false => format!("property \"{path}\" validation failed: {error}"),
    })
}

impl RequestValidation {
    fn refuse(&self, why: String) -> Flow {
        Flow::Reply(Box::new(Reply::text(self.status, self.message.clone().unwrap_or(why))))
    }

    async fn body(&self, exchange: &Exchange) -> Result<Result<Value, String>, Unread> {
        let body = exchange.read_body(self.max_size).await?;
        if body.is_empty() {
            return Ok(Err("the request has no body".to_owned()));
        }
        let media = exchange.request.text("content-type").unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim();
        Ok(if media.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            match std::str::from_utf8(&body) {
                Ok(text) => Ok(form(text)),
                Err(why) => Err(format!("the form cannot be read: {why}")),
            }
        } else {
            plain_json::read(&body).map_err(|why| format!("the body is no JSON: {why}"))
        })
    }
}

#[async_trait]
impl Rewrite for RequestValidation {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        if let Some(headers) = &self.headers
            && let Some(why) = first_error(&headers.validator, &headers.of(exchange))
        {
            return Ok(self.refuse(why));
        }
        if let Some(validator) = &self.body {
            let body = match self.body(exchange).await? {
                Ok(body) => body,
                Err(why) => return Ok(self.refuse(why)),
            };
            if let Some(why) = first_error(validator, &body) {
                return Ok(self.refuse(why));
            }
        }
        Ok(Flow::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::RequestBody;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;

    /// The refusal of a request, if it is refused.
    async fn refusal(
        config: &Value,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<(u16, String)> {
        let mut exchange = exchange("POST", "/", "shop");
        for (name, value) in headers {
            exchange.request.append(name, value.as_bytes());
        }
        exchange.body = RequestBody::unread();
        exchange.body.add(body.as_bytes());
        exchange.body.end(None);
        match compile::<RequestValidation>(config.clone()).rewrite(&mut exchange).await.unwrap() {
            Flow::Next => None,
            Flow::Reply(reply) => {
                Some((reply.status, String::from_utf8(reply.body.to_vec()).unwrap()))
            }
        }
    }

    #[tokio::test]
    async fn headers_are_what_the_schema_says_however_they_are_spelled() {
        let config = json!({"header_schema": {
            "type": "object", "required": ["X-Tenant", "host"],
            "properties": {"X-Tenant": {"type": "string", "pattern": "^[a-z]+$"}, "x-n": {"maxLength": 2}}
        }});
        for (headers, passes) in [
            (vec![("x-tenant", "shop")], true),
            (vec![("X-TENANT", "shop"), ("X-N", "12")], true),
            (vec![("x-tenant", "Shop")], false),
            (vec![("x-tenant", "shop"), ("X-N", "123")], false),
            (vec![("x-tenant", "shop"), ("X-Tenant", "other")], false),
            (vec![], false),
        ] {
            assert_eq!(refusal(&config, &headers, "").await.is_none(), passes, "{headers:?}");
        }
    }

    #[tokio::test]
    async fn bodies_are_what_the_schema_says() {
        let config = json!({"body_schema": {
            "type": "object", "required": ["name"],
            "properties": {"name": {"type": "string", "pattern": "^(a+)+$"}, "age": {"minimum": 3}}
        }, "rejected_code": 422});
        let json_type: &[_] = &[("content-type", "application/json")];
        let form_type: &[_] =
            &[("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
        let hostile = format!("{{\"name\": \"{}!\"}}", "a".repeat(50_000));
        for (headers, body, says) in [
            (json_type, r#"{"name": "a", "age": 3}"#, None),
            (&[], r#"{"name": "a"}"#, None),
            (json_type, r#"{"name": "b"}"#, Some("property \"name\" validation failed")),
            (json_type, r#"{"name": "a", "age": 2}"#, Some("property \"age\"")),
            (json_type, r#"{"name": "b", "name": "a"}"#, Some("'name' comes twice")),
            (json_type, "{}", Some("\"name\" is a required property")),
            (json_type, "[]", Some("not of type \"object\"")),
            (json_type, "{", Some("the body is no JSON")),
            (json_type, "", Some("the request has no body")),
            (json_type, &hostile, Some("property \"name\"")),
            (form_type, "name=aa&x=%20y", None),
            (form_type, "name=aa&name=aa", Some("property \"name\"")),
            (form_type, "name", Some("property \"name\"")),
            (form_type, "nam=a", Some("required")),
        ] {
            match (refusal(&config, headers, body).await, says) {
                (None, None) => {}
                (Some((422, text)), Some(says)) if text.contains(says) => {}
                (found, says) => panic!("{body:.60}: {found:.200?}, not {says:?}"),
            }
        }
    }

    #[tokio::test]
    async fn the_refusal_reads_as_configured_and_large_bodies_are_not_read() {
        let config = json!({"body_schema": {"type": "object"}, "rejected_msg": "no", "max_req_body_size": 4});
        assert_eq!(refusal(&config, &[], "[]").await, Some((400, "no".to_owned())));
        let mut exchange = exchange("POST", "/", "h");
        exchange.request.append("Content-Length", b"5");
        let fault = compile::<RequestValidation>(config).rewrite(&mut exchange).await.unwrap_err();
        assert_eq!(fault.status, 413);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "one of header_schema and body_schema"),
            (json!({"body_schema": []}), "invalid type"),
            (json!({"body_schema": {"type": "what"}}), "body_schema/type: "),
            (json!({"body_schema": {"properties": {"a": {"pattern": "("}}}}), "body_schema"),
            (json!({"body_schema": {"$ref": "http://127.0.0.1:1/x"}}), "body_schema"),
            (json!({"header_schema": {"required": "a"}}), "header_schema/required"),
            (json!({"body_schema": {}, "rejected_code": 199}), "rejected_code"),
            (json!({"body_schema": {}, "rejected_msg": ""}), "rejected_msg"),
            (json!({"body_schema": {}, "rejected_msg": "m".repeat(257)}), "rejected_msg"),
            (json!({"body_schema": {}, "max_req_body_size": 0}), "max_req_body_size"),
        ] {
            let error = refused::<RequestValidation>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
