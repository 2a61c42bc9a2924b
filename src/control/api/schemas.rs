//! What the Admin API tells about plugins and shapes: `plugins/...` and `schema/...`.

use std::sync::LazyLock;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::super::answer::Answer;
use super::super::listing::Query;
use super::super::{ControlPlane, PluginPart};
use super::kinds::TABLE;
use crate::model::{Kind, ManagerType};

/// The list of plugins as APISIX keeps it in its store.
static PLUGIN_LIST: LazyLock<Value> = LazyLock::new(|| {
    json!({"type": "array", "items": {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 1}, "stream": {"type": "boolean"}},
        "required": ["name"],
    }})
});

impl ControlPlane {
    /// `None` when it is none of them, or needs the body.
    pub(super) fn answer_about_shapes(
        &self,
        method: &Method,
        segments: &[&str],
        query: &Query,
    ) -> Option<Answer> {
        let not_found = || Answer::error(StatusCode::NOT_FOUND, "not found");
        Some(match (segments, method) {
            (["plugins", "reload"], &Method::PUT) => Answer::json(StatusCode::OK, "done".into()),
            (["plugins", "reload"], _) => {
                let text = format!(
                    "please use PUT method to reload the plugins, {method} method is not allowed."
                );
                Answer::error(StatusCode::METHOD_NOT_ALLOWED, text)
            }
            (["plugins", "list"], &Method::GET) => {
                match query.find("subsystem").unwrap_or("http") {
                    "http" => Answer::ok(self.plugins.names()),
                    "stream" => Answer::ok(json!([])),
                    _ => Answer::json(StatusCode::BAD_REQUEST, "invalid subsystem passed".into()),
                }
            }
            (["plugins"] | ["schema", "plugins"], &Method::GET) => self.all_plugins(query),
            (["plugins", name, ..] | ["schema", "plugins", name, ..], &Method::GET) => {
                self.plugin_schema(name, query)
            }
            (["schema", "validate", _], &Method::POST) => return None,
            (["schema", name, ..], &Method::GET) if *name != "validate" => match self.shape(name) {
                Some(schema) => Answer::ok(schema),
                None => self.plugin_schema(name, query),
            },
            (["schema", "validate", ..], &Method::GET) => not_found(),
            (["plugins" | "schema", ..], _) => not_found(),
            _ => return None,
        })
    }

    fn all_plugins(&self, query: &Query) -> Answer {
        match query.find("subsystem") {
            None | Some("http" | "stream") => {}
            Some(other) => return Answer::bad(format!("unsupported subsystem: {other}")),
        }
        match (query.find("all"), query.find("subsystem")) {
            (Some("true"), Some("stream")) => Answer::ok(json!({})),
            (Some("true"), _) => Answer::ok(self.plugins.all()),
            _ => Answer::bad("not found plugin name"),
        }
    }

    /// The schema of a kind, by its name there.
    fn shape(&self, name: &str) -> Option<Value> {
        if name == "plugins" {
            return Some(PLUGIN_LIST.clone());
        }
        if let Some(manager) = name.strip_prefix("secret_").and_then(ManagerType::named) {
            return Some(manager.schema());
        }
        let row = TABLE.iter().find(|row| row.schema == name)?;
        self.shapes.schema(row.kind).cloned()
    }

    fn plugin_schema(&self, name: &str, query: &Query) -> Answer {
        let subsystem = query.find("subsystem").unwrap_or("http");
        if !matches!(subsystem, "http" | "stream") {
            return Answer::bad(format!("unsupported subsystem: {subsystem}"));
        }
        let plugin = self.plugins.find(name).filter(|_| subsystem == "http");
        let Some(plugin) = plugin else {
            let text = format!("plugin not found in subsystem {subsystem}");
            return Answer::error(StatusCode::NOT_FOUND, text);
        };
        let part = match query.find("schema_type") {
            Some("consumer") => PluginPart::Credential,
            Some("metadata") => PluginPart::Metadata,
            _ => PluginPart::Config,
        };
        match plugin.published(part) {
            Some(schema) => Answer::ok(schema),
            None => Answer::bad("not found schema"),
        }
    }

    /// `POST /apisix/admin/schema/validate/<kind>`: shape and plugins only.
    pub(super) fn validate_only(
        &self,
        method: &Method,
        name: &str,
        value: Option<Value>,
    ) -> Result<Answer, Answer> {
        if method != Method::POST {
            return Err(Answer::error(StatusCode::NOT_FOUND, "not found"));
        }
        let Some(kind) = Kind::named(name) else {
            let text = format!("Unsupported resource type: {name}");
            return Err(Answer::error(StatusCode::NOT_FOUND, text));
        };
        let value = value.ok_or_else(|| Answer::bad("missing configurations"))?;
        let id = value.get("id").and_then(Value::as_str).unwrap_or_default();
        match self.judge_shape(kind, id, &value) {
            Ok(_) => Ok(Answer::empty(StatusCode::OK)),
            Err(invalid) => {
                let text = invalid.0;
                let bare = text.strip_prefix("invalid configuration: ").unwrap_or(&text);
                Err(Answer::bad(bare))
            }
        }
    }
}
