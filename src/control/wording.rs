//! A JSON Schema that judges, and says what is wrong in the words of APISIX's validator, which clients and tests know.

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use serde_json::Value;

use crate::model::{Invalid, SecretReference};

/// A compiled schema.
pub(super) struct Checker {
    schema: Value,
    validator: Validator,
}

impl Checker {
    /// Compiles `schema` (draft 7). Patterns run without backtracking; references stay inside.
    pub(super) fn new(schema: Value) -> Result<Self, String> {
        let validator = jsonschema::options()
            .with_draft(Draft::Draft7)
            .with_pattern_options(PatternOptions::regex())
            .build(&schema)
            .map_err(|error| error.to_string())?;
        Ok(Self { schema, validator })
    }

    /// The schema itself.
    pub(super) fn schema(&self) -> &Value {
        &self.schema
    }

    /// Judges `value`; the sentence is about the first thing that is wrong, in the order in which APISIX looks.
    pub(super) fn check(&self, value: &Value) -> Result<(), Invalid> {
        if self.validator.is_valid(value) {
            return Ok(());
        }
        let first = self
            .validator
            .iter_errors(value)
            .filter(|error| !is_about_reference(error, value))
            .min_by_key(|error| order(error.evaluation_path().as_str()));
        match first {
            Some(error) => Err(Invalid(self.sentence(&error, value))),
            None => Ok(()),
        }
    }

    /// Where it is wrong, from the outside in, then what.
    fn sentence(&self, error: &ValidationError<'_>, value: &Value) -> String {
        // Of definitions that are referred to as well: the way that led there is what the operator wrote.
        let schema_path: Vec<String> = unescaped(error.evaluation_path().as_str());
        let instance_path: Vec<String> = unescaped(error.instance_path().as_str());
        let mut instance = instance_path.iter();
        let mut sentence = String::new();
        let mut steps = schema_path.iter().peekable();
        while let Some(keyword) = steps.next() {
            if steps.peek().is_none() {
                break; // The keyword that is not satisfied.
            }
            match keyword.as_str() {
                "properties" => {
                    let name = steps.next().map_or("", String::as_str);
                    instance.next();
                    sentence += &format!("property \"{name}\" validation failed: ");
                }
                "patternProperties" => {
                    let pattern = steps.next().map_or("", String::as_str);
                    let name = instance.next().map_or("", String::as_str);
                    sentence += &format!("failed to validate {name} (matching {pattern:?}): ");
                }
                "additionalProperties" => {
                    let name = instance.next().map_or("", String::as_str);
                    sentence += &format!("failed to validate additional property {name}: ");
                }
                "items" => {
                    let index = instance.next().and_then(|index| index.parse::<usize>().ok());
                    if steps.peek().is_some_and(|next| next.parse::<usize>().is_ok()) {
                        steps.next();
                    }
                    sentence += &format!("failed to validate item {}: ", index.unwrap_or(0) + 1);
                }
                // What of it did not match is not said.
                clause @ ("then" | "else") => {
                    return sentence + &format!("{clause} clause did not match");
                }
                "allOf" => {
                    let index = steps.next().and_then(|index| index.parse::<usize>().ok());
                    sentence += &format!("allOf {} failed: ", index.unwrap_or(0) + 1);
                }
                _ => {}
            }
        }
        let place = part(value, &instance_path);
        sentence + &self.complaint(error, place.unwrap_or(&Value::Null))
    }

    fn complaint(&self, error: &ValidationError<'_>, found: &Value) -> String {
        match error.kind() {
            ValidationErrorKind::Type { kind: TypeKind::Single(expected) } => {
                format!("wrong type: expected {expected}, got {}", lua_type(found))
            }
            ValidationErrorKind::Type { kind: TypeKind::Multiple(expected) } => {
                let names: Vec<String> = expected.iter().map(|one| one.to_string()).collect();
                let names = names.join(", ");
                format!("wrong type: expected one of {names}, got {}", lua_type(found))
            }
            ValidationErrorKind::Required { property } => {
                format!("property {property} is required")
            }
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let name = unexpected.first().map_or("", String::as_str);
                format!("additional properties forbidden, found {name}")
            }
            // Where an object has no field at all.
            ValidationErrorKind::FalseSchema => {
                let path = unescaped(error.instance_path().as_str());
                let first = found.as_object().and_then(|fields| fields.keys().next());
                let name = first.or(path.last()).map_or("", String::as_str);
                format!("additional properties forbidden, found {name}")
            }
            ValidationErrorKind::MinProperties { limit } => {
                format!("expect object to have at least {limit} properties")
            }
            ValidationErrorKind::MaxProperties { limit } => {
                format!("expect object to have at most {limit} properties")
            }
            ValidationErrorKind::MinItems { limit } => {
                format!("expect array to have at least {limit} items")
            }
            ValidationErrorKind::MaxItems { limit } => {
                format!("expect array to have at most {limit} items")
            }
            ValidationErrorKind::UniqueItems => {
                let (one, other) = equal_items(found);
                format!("expected unique items but items {one} and {other} are equal")
            }
            ValidationErrorKind::MinLength { limit } => {
                format!("string too short, expected at least {limit}, got {}", length(found))
            }
            ValidationErrorKind::MaxLength { limit } => {
                format!("string too long, expected at most {limit}, got {}", length(found))
            }
            ValidationErrorKind::Pattern { pattern } => {
                format!("failed to match pattern {pattern:?} with {found}")
            }
            ValidationErrorKind::Minimum { limit } => {
                format!("expected {found} to be greater than {limit}")
            }
            ValidationErrorKind::ExclusiveMinimum { limit } => {
                format!("expected {found} to be strictly greater than {limit}")
            }
            ValidationErrorKind::Maximum { limit } => {
                format!("expected {found} to be smaller than {limit}")
            }
            ValidationErrorKind::ExclusiveMaximum { limit } => {
                format!("expected {found} to be strictly smaller than {limit}")
            }
            ValidationErrorKind::Enum { .. } => "matches none of the enum values".into(),
            ValidationErrorKind::Constant { .. } => "failed to check const value".into(),
            ValidationErrorKind::AnyOf { .. } => {
                let alternatives = self.schema.pointer(error.schema_path().as_str());
                let required: Vec<String> = alternatives
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(|one| one.get("required").map(Value::to_string))
                    .collect();
                let mut text = String::from("object matches none of the required");
                if !required.is_empty() {
                    text += &format!(": {}", required.join(" or "));
                }
                text
            }
            ValidationErrorKind::OneOfNotValid { .. } => {
                "value should match only one schema, but matches none".into()
            }
            ValidationErrorKind::OneOfMultipleValid { context } => {
                let mut valid = context.iter().zip(1..).filter(|(errors, _)| errors.is_empty());
                let (one, other) = (valid.next(), valid.next());
                let number = |found: Option<(&_, i32)>| found.map_or(0, |(_, number)| number);
                format!(
                    "value should match only one schema, but matches both schemas {} and {}",
                    number(one),
                    number(other)
                )
            }
            ValidationErrorKind::Not { .. } => "value wasn't supposed to match schema".into(),
            _ => error.to_string(),
        }
    }
}

fn part<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, step| match value {
        Value::Array(items) => items.get(step.parse::<usize>().ok()?),
        Value::Object(fields) => fields.get(step),
        _ => None,
    })
}

/// Is it about what a reference to a secret looks like? Data planes judge what it stands for; as in APISIX it is not judged here.
fn is_about_reference(error: &ValidationError<'_>, value: &Value) -> bool {
    let found = part(value, &unescaped(error.instance_path().as_str()));
    match error.kind() {
        ValidationErrorKind::MinLength { .. }
        | ValidationErrorKind::MaxLength { .. }
        | ValidationErrorKind::Pattern { .. }
        | ValidationErrorKind::Format { .. }
        | ValidationErrorKind::Enum { .. }
        | ValidationErrorKind::Constant { .. } => {
            found.and_then(Value::as_str).is_some_and(|text| SecretReference::of(text).is_some())
        }
        // It would be one of the shapes but for references.
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            let fits = |errors: &Vec<ValidationError<'_>>| {
                errors.iter().all(|error| is_about_reference(error, value))
            };
            context.iter().any(fits)
        }
        _ => false,
    }
}

/// What comes first for APISIX's validator when several things are wrong: at each level the type, then the fields one by
/// one, then those that should not be there, items, lengths and ranges, the names, and last the combinations.
fn order(path: &str) -> Vec<usize> {
    const ORDER: [&str; 22] = [
        "type",
        "properties",
        "required",
        "patternProperties",
        "additionalProperties",
        "minProperties",
        "maxProperties",
        "minItems",
        "maxItems",
        "items",
        "uniqueItems",
        "minLength",
        "maxLength",
        "pattern",
        "minimum",
        "exclusiveMinimum",
        "maximum",
        "exclusiveMaximum",
        "enum",
        "allOf",
        "anyOf",
        "oneOf",
    ];
    // A name of a field that is also a keyword sorts oddly among its neighbours, and nothing worse.
    path.split('/')
        .skip(1)
        .map(|step| ORDER.iter().position(|keyword| *keyword == step).unwrap_or(ORDER.len()))
        .collect()
}

fn unescaped(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
}

/// The names that the validator's language has for JSON's types.
fn lua_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "userdata",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) | Value::Object(_) => "table",
    }
}

fn length(value: &Value) -> usize {
    value.as_str().map_or(0, |text| text.chars().count())
}

fn equal_items(value: &Value) -> (usize, usize) {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    for (at, item) in items.iter().enumerate() {
        if let Some(before) = items[..at].iter().position(|other| other == item) {
            return (before + 1, at + 1);
        }
    }
    (0, 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Kind;

    #[test]
    fn what_is_wrong_is_said_as_apisix_says_it() {
        let upstream = json!({"nodes": {"127.0.0.1:80": 1}, "type": "roundrobin"});
        for (kind, value, sentence) in [
            (
                Kind::Routes,
                json!({"uri": 1, "upstream_id": "1"}),
                r#"property "uri" validation failed: wrong type: expected string, got number"#,
            ),
            (
                Kind::Routes,
                json!({"uri": null, "upstream_id": "1"}),
                r#"property "uri" validation failed: wrong type: expected string, got userdata"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/a", "upstream": upstream, "xx": 1}),
                "additional properties forbidden, found xx",
            ),
            (
                Kind::Routes,
                json!({"uri": "/a"}),
                r#"object matches none of the required: ["plugins","uri"] or ["upstream","uri"] or ["upstream_id","uri"] or ["service_id","uri"] or ["plugins","uris"] or ["upstream","uris"] or ["upstream_id","uris"] or ["service_id","uris"]"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/a", "uris": ["/b"], "upstream": upstream}),
                "allOf 1 failed: value should match only one schema, but matches both schemas 1 and 2",
            ),
            (
                Kind::Routes,
                json!({"upstream": upstream}),
                "allOf 1 failed: value should match only one schema, but matches none",
            ),
            (
                Kind::Routes,
                json!({"uri": "/a", "upstream_id": "1", "methods": ["GET", "FLY"]}),
                r#"property "methods" validation failed: failed to validate item 2: matches none of the enum values"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/a", "upstream_id": "1", "methods": ["GET", "GET"]}),
                r#"property "methods" validation failed: expected unique items but items 1 and 2 are equal"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/a", "upstream_id": "bad id"}),
                r#"property "upstream_id" validation failed: object matches none of the required"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/a", "upstream": {"type": "roundrobin"}}),
                r#"property "upstream" validation failed: value should match only one schema, but matches none"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "", "upstream_id": "1"}),
                r#"property "uri" validation failed: string too short, expected at least 1, got 0"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/a", "upstream_id": "1", "labels": {"a": "b c"}}),
                r#"property "labels" validation failed: failed to validate a (matching ".*"): failed to match pattern "^\\S+$" with "b c""#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/a", "upstream_id": "1", "status": 2}),
                r#"property "status" validation failed: matches none of the enum values"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/a", "upstream_id": "1", "timeout": {"connect": 0, "send": 1, "read": 1}}),
                r#"property "timeout" validation failed: property "connect" validation failed: expected 0 to be strictly greater than 0"#,
            ),
            (
                Kind::Upstreams,
                json!({"nodes": [{"host": "a"}]}),
                r#"property "nodes" validation failed: object matches none of the required"#,
            ),
            (
                Kind::Upstreams,
                json!({"nodes": {}, "retries": -1}),
                r#"property "retries" validation failed: expected -1 to be greater than 0"#,
            ),
            (
                Kind::Upstreams,
                json!({"nodes": {}, "type": "ewme"}),
                r#"property "type" validation failed: matches none of the enum values"#,
            ),
            (Kind::Ssls, json!({"sni": "a"}), "then clause did not match"),
            (Kind::Ssls, json!({"type": "client"}), "else clause did not match"),
            (Kind::Consumers, json!({}), r#"property "username" is required"#),
            (
                Kind::Consumers,
                json!({"username": "a b"}),
                r#"property "username" validation failed: failed to match pattern "^[a-zA-Z0-9_\\-]+$" with "a b""#,
            ),
            (Kind::GlobalRules, json!({}), r#"property "plugins" is required"#),
            (Kind::Routes, json!([]), "wrong type: expected object, got table"),
        ] {
            let checker = Checker::new(kind.schema()).unwrap();
            assert_eq!(checker.check(&value), Err(Invalid::new(sentence)), "{value}");
        }
    }

    #[test]
    fn what_apisix_takes_is_taken() {
        for (kind, value) in [
            (
                Kind::Routes,
                json!({"uri": "/*", "id": 1, "plugins": {}, "host": "*", "vars": [["arg_a", "==", "b"]], "priority": -1}),
            ),
            (
                Kind::Routes,
                json!({"uris": ["/a", "/b"], "hosts": ["*.a.com", "[::1]:80"], "service_id": 3, "status": 0, "labels": {"a": "b"}}),
            ),
            (
                Kind::Upstreams,
                json!({"nodes": [], "type": "chash", "hash_on": "header", "key": "x"}),
            ),
            (
                Kind::Upstreams,
                json!({"nodes": [{"host": "[::1]", "weight": 0, "priority": 1}], "timeout": {"connect": 0.5, "send": 1, "read": 1}}),
            ),
            (Kind::Services, json!({})),
            (Kind::Consumers, json!({"username": "a-b_1", "plugins": {"key-auth": {"key": "k"}}})),
        ] {
            Checker::new(kind.schema())
                .unwrap()
                .check(&value)
                .unwrap_or_else(|e| panic!("{value}: {e}"));
        }
    }
}
