//! The JSON Schema of each kind, made from its type: what `GET /apisix/admin/schema/<kind>` shows and every write must match.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::{
    Consumer, ConsumerGroup, Credential, DomainTrust, GlobalRule, IdentityMode, IdentityPolicy,
    Kind, PluginConfig, Proto, Revocation, Route, SecretManager, Service, Ssl, StreamRoute,
    Upstream, Workload,
};

impl Kind {
    /// The kind's JSON Schema (draft 7), without references. A plugin's metadata has its plugin's schema; here it is any object.
    pub fn schema(self) -> Value {
        match self {
            Self::Routes => schema_of::<Route>(),
            Self::Services => schema_of::<Service>(),
            Self::Upstreams => schema_of::<Upstream>(),
            Self::Consumers => schema_of::<Consumer>(),
            Self::Credentials => schema_of::<Credential>(),
            Self::ConsumerGroups => schema_of::<ConsumerGroup>(),
            Self::PluginConfigs => schema_of::<PluginConfig>(),
            Self::GlobalRules => schema_of::<GlobalRule>(),
            Self::PluginMetadata => json!({"type": "object"}),
            Self::Ssls => schema_of::<Ssl>(),
            Self::Secrets => schema_of::<SecretManager>(),
            Self::Protos => schema_of::<Proto>(),
            Self::StreamRoutes => schema_of::<StreamRoute>(),
            Self::IdentityPolicies => schema_of::<IdentityPolicy>(),
            Self::IdentityModes => schema_of::<IdentityMode>(),
            Self::Workloads => schema_of::<Workload>(),
            Self::TrustDomains => schema_of::<DomainTrust>(),
            Self::Revocations => schema_of::<Revocation>(),
        }
    }
}

/// The schema of a type, as the kinds' are.
pub fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    plain(settings.into_generator().into_root_schema_for::<T>())
}

/// What an operator may write: a schema without `null` (a field that is not wanted is left out) and without Rust's number
/// formats. Every plugin's settings are published the same way.
pub fn plain(schema: Schema) -> Value {
    let mut schema = schema.to_value();
    if let Some(top) = schema.as_object_mut() {
        top.remove("title");
        simplify(top);
    }
    schema
}

fn simplify(schema: &mut Map<String, Value>) {
    for keyword in ["properties", "patternProperties", "definitions", "$defs"] {
        if let Some(Value::Object(named)) = schema.get_mut(keyword) {
            for (name, inner) in named.iter_mut() {
                let Some(inner) = inner.as_object_mut() else { continue };
                simplify(inner);
                if name == "labels" {
                    spell_out_labels(inner);
                }
            }
        }
    }
    for keyword in ["items", "additionalProperties", "not", "if", "then", "else"] {
        if let Some(Value::Object(inner)) = schema.get_mut(keyword) {
            simplify(inner);
        }
    }
    for keyword in ["allOf", "anyOf", "oneOf"] {
        if let Some(Value::Array(all)) = schema.get_mut(keyword) {
            all.iter_mut().filter_map(Value::as_object_mut).for_each(simplify);
        }
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if types.len() == 1 {
            let only = types.remove(0);
            schema.insert("type".into(), only);
        }
    }
    if matches!(schema.get("format").and_then(Value::as_str), Some(name) if is_number_format(name))
    {
        schema.remove("format");
    }
    if schema.get("default") == Some(&Value::Null) {
        schema.remove("default");
    }
    unwrap_option(schema);
    fold_names(schema);
}

fn is_number_format(name: &str) -> bool {
    name.starts_with("int") || name.starts_with("uint") || matches!(name, "double" | "float")
}

/// `anyOf: [X, null]` is X.
fn unwrap_option(schema: &mut Map<String, Value>) {
    let Some(Value::Array(all)) = schema.get_mut("anyOf") else { return };
    let before = all.len();
    all.retain(|inner| inner.get("type") != Some(&json!("null")));
    if all.len() < before && all.len() == 1 {
        let only = all.remove(0);
        schema.remove("anyOf");
        if let Value::Object(only) = only {
            for (keyword, value) in only {
                schema.entry(keyword).or_insert(value);
            }
        }
    }
}

/// `oneOf: [{const: "a"}, {const: "b"}]`, how documented names come, is `enum: ["a", "b"]`.
fn fold_names(schema: &mut Map<String, Value>) {
    let Some(Value::Array(all)) = schema.get("oneOf") else { return };
    let mut names = Vec::new();
    for inner in all {
        match (inner.get("const"), inner.get("enum")) {
            (Some(name), None) => names.push(name.clone()),
            (None, Some(Value::Array(more))) => names.extend(more.iter().cloned()),
            _ => return,
        }
    }
    schema.remove("oneOf");
    schema.insert("type".into(), json!("string"));
    schema.insert("enum".into(), Value::Array(names));
}

/// Labels are texts of 1 to 256 characters without white space.
fn spell_out_labels(schema: &mut Map<String, Value>) {
    schema.remove("additionalProperties");
    let value = json!({"type": "string", "minLength": 1, "maxLength": 256, "pattern": r"^\S+$"});
    schema.insert("patternProperties".into(), json!({".*": value}));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kind_takes_null_or_refers_elsewhere() {
        for kind in Kind::ALL {
            let text = kind.schema().to_string();
            assert!(!text.contains("\"null\"") && !text.contains("$ref"), "{kind}: {text}");
        }
    }

    #[test]
    fn every_kind_but_metadata_is_closed() {
        for kind in Kind::ALL {
            let closed = kind.schema()["additionalProperties"] == json!(false);
            assert_eq!(closed, kind != Kind::PluginMetadata, "{kind}");
        }
    }
}
