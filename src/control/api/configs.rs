//! `POST /apisix/admin/configs/validate`: a whole configuration judged without being stored, with all that is wrong in it.

use std::collections::HashSet;

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::super::ControlPlane;
use super::super::answer::Answer;
use super::super::index::id_text;
use crate::model::{Id, Kind};

impl ControlPlane {
    /// Judges shapes and plugins of everything, references of nothing, as APISIX does.
    pub(in crate::control) fn validate_configs(
        &self,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Answer, Answer> {
        let Value::Object(sets) = read(headers, body)? else {
            return Err(Answer::bad("invalid request body: expected an object"));
        };
        let mut errors = Vec::new();
        for (name, value) in &sets {
            if let Some(kind) = name.strip_suffix("_conf_version") {
                if Kind::named(kind).is_some() && !value.is_number() {
                    let found = lua_type(value);
                    let why = format!("{name} must be a number, got {found}");
                    errors.push(json!({"resource_type": kind, "error": why}));
                }
                continue;
            }
            // What is no kind is let pass: files have other fields beside.
            let Some(kind) = Kind::named(name) else { continue };
            match value {
                Value::Array(items) => self.judge_items(kind, items, &mut errors),
                Value::Null => {}
                _ => {
                    let why = format!("{name}: expected an array, got {}", lua_type(value));
                    errors.push(json!({"resource_type": name, "error": why}));
                }
            }
        }
        if errors.is_empty() {
            return Ok(Answer::ok(json!({})));
        }
        let text = "Configuration validation failed";
        Err(Answer::json(StatusCode::BAD_REQUEST, json!({"error_msg": text, "errors": errors})))
    }

    fn judge_items(&self, kind: Kind, items: &[Value], errors: &mut Vec<Value>) {
        let mut seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let id = item.get("id").and_then(id_text);
            let username = item.get("username").and_then(id_text);
            let named = id.clone().or(username.filter(|_| kind == Kind::Consumers));
            let mut note = |why: String| {
                let mut error = Map::new();
                error.insert("resource_type".into(), json!(kind.name()));
                if let Some(named) = &named {
                    error.insert("resource_id".into(), json!(named));
                }
                error.insert("index".into(), json!(index));
                error.insert("error".into(), json!(why));
                errors.push(Value::Object(error));
            };
            if let Err(why) = self.judge_item(kind, id.as_deref(), item) {
                note(format!("invalid {kind} at index {index}, err: {why}"));
            }
            if let Some(named) = &named
                && !seen.insert(named.clone())
            {
                let what = match (kind, &id) {
                    (Kind::Consumers, Some(_)) => "credential id",
                    (Kind::Consumers, None) => "username",
                    _ => "id",
                };
                note(format!("found duplicate {what} {named} in {kind}"));
            }
        }
    }

    fn judge_item(&self, kind: Kind, id: Option<&str>, item: &Value) -> Result<(), String> {
        let mut item = item.clone();
        let is_credential = id.is_some_and(|id| id.contains("/credentials/"));
        let kind = match kind {
            Kind::Consumers if is_credential => Kind::Credentials,
            kind => kind,
        };
        let in_path = matches!(kind, Kind::Credentials | Kind::Secrets | Kind::PluginMetadata);
        if in_path {
            let id = id.ok_or_else(|| format!("missing {} id", kind.singular()))?;
            let lawful = Id::parse(id).ok().filter(|id| Kind::split_key(&kind.key(id)).is_some());
            if lawful.is_none() {
                return Err(format!("invalid {} id: {id}", kind.singular()));
            }
            if let Some(fields) = item.as_object_mut() {
                fields.shift_remove("id");
            }
        }
        // ADC and APISIX's own files number what they hold.
        if let Some(fields) = item.as_object_mut() {
            fields.shift_remove("modifiedIndex");
        }
        self.judge_shape(kind, id.unwrap_or_default(), &item).map(drop).map_err(|invalid| invalid.0)
    }
}

fn read(headers: &HeaderMap, body: &[u8]) -> Result<Value, Answer> {
    let wrong = |why: &dyn std::fmt::Display| Answer::bad(format!("invalid request body: {why}"));
    if body.is_empty() {
        return Err(wrong(&"empty request body"));
    }
    let kind = headers.get("content-type").and_then(|value| value.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/yaml")) {
        return serde_json::from_slice(body).map_err(|error| wrong(&error));
    }
    let text = std::str::from_utf8(body).map_err(|_| wrong(&"invalid yaml request body"))?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_documents: 1, },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| wrong(&format!("invalid yaml request body: {error}")))
}

fn lua_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) | Value::Object(_) => "table",
    }
}
