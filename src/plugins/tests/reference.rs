//! Writes the page of the plugins: a section for each that has none yet, from its doc comments and its schema.
//!
//! `WARDGATE_REGENERATE=1 cargo test --lib plugins::` does it. What stands in the page already is left as it is, unless its
//! section ends with the mark of a written one.

use std::fmt::Write as _;

use serde_json::Value;

use super::ALL;
use crate::pipeline::Entry;

const MARK: &str = "<!-- from the doc comments -->";

/// The section of a plugin.
fn section(entry: &Entry) -> String {
    let mut out = format!("## {}\n\n", entry.name);
    let schema = (entry.schema)().to_value();
    let _ = writeln!(out, "{} **Priority** {}.\n", line(&schema), entry.priority);
    table(&schema, &mut out);
    if let Some(credential) = entry.credential {
        out.push_str("A consumer or a credential carries:\n\n");
        table(&credential().to_value(), &mut out);
    }
    if let Some(metadata) = entry.metadata {
        let _ = writeln!(out, "Gateway-wide (`/apisix/admin/plugin_metadata/{}`):\n", entry.name);
        table(&metadata().to_value(), &mut out);
    }
    let example: Value = serde_json::from_str(entry.example).unwrap();
    let _ = writeln!(
        out,
        "```json\n{{\"uri\": \"/*\", \"plugins\": {{\"{}\": {example}}}}}\n```\n{MARK}\n",
        entry.name
    );
    out
}

fn line(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ")
}

/// The fields, those of objects within them behind their own with a dot between.
fn table(schema: &Value, out: &mut String) {
    if schema["properties"].as_object().is_none_or(serde_json::Map::is_empty) {
        return;
    }
    out.push_str("| field | type | default | what it does |\n|---|---|---|---|\n");
    rows("", schema, schema, out, 0);
    out.push('\n');
}

fn rows(prefix: &str, schema: &Value, root: &Value, out: &mut String, depth: usize) {
    let required = |name: &str| {
        schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name))
    };
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let default = match field.get("default") {
            Some(Value::Null) | None if required(name) => "required".to_owned(),
            Some(Value::Null) | None => "-".to_owned(),
            Some(Value::String(text)) if !text.is_empty() => format!("`{text}`"),
            Some(other) => format!("`{other}`"),
        };
        let kind = kind(field, root).replace('|', "\\|");
        let _ = writeln!(
            out,
            "| `{prefix}{name}` | {kind} | {default} | {} |",
            line(field).replace('|', "\\|")
        );
        let inner = resolved(field, root);
        let inner = match inner.get("items") {
            Some(items) => (format!("{prefix}{name}[]."), resolved(items, root)),
            None => (format!("{prefix}{name}."), inner),
        };
        if depth < 3 && inner.1.get("properties").is_some() {
            rows(&inner.0, inner.1, root, out, depth + 1);
        }
    }
}

/// What a reference refers to, and what an option may be when it is something.
fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    if let Some(pointer) = schema["$ref"].as_str() {
        return resolved(root.pointer(pointer.trim_start_matches('#')).unwrap_or(schema), root);
    }
    let some = |one: &&Value| one["type"] != "null";
    match schema["anyOf"].as_array() {
        Some(any) if any.len() == 2 && any.iter().filter(some).count() == 1 => {
            any.iter().find(some).map_or(schema, |one| resolved(one, root))
        }
        _ => schema,
    }
}

fn kind(schema: &Value, root: &Value) -> String {
    let schema = resolved(schema, root);
    if let Some(values) = schema["enum"].as_array() {
        return values
            .iter()
            .filter(|one| !one.is_null())
            .map(|one| format!("`{}`", one.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(", ");
    }
    if let Some(one) = schema.get("const") {
        return format!("`{}`", one.as_str().unwrap_or_default());
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(kinds) = schema[key].as_array().filter(|_| schema.get("type").is_none()) {
            let kinds = kinds.iter().filter(|one| one["type"] != "null");
            return kinds.map(|one| kind(one, root)).collect::<Vec<_>>().join(" or ");
        }
    }
    let name = match &schema["type"] {
        Value::Array(types) => {
            types.iter().find_map(|one| one.as_str().filter(|one| *one != "null"))
        }
        other => other.as_str(),
    };
    let bounds = |from: &str, to: &str| {
        let read = |key: &str| schema.get(key).filter(|value| value.is_number()).map(trimmed);
        match (read(from), read(to)) {
            (Some(from), Some(to)) => format!(", {from} to {to}"),
            (Some(from), None) if from != "0" => format!(", {from} or more"),
            (None, Some(to)) => format!(", {to} at most"),
            _ => String::new(),
        }
    };
    match name {
        Some("string") => format!("text{}", bounds("minLength", "maxLength")),
        Some("integer") => format!("whole number{}", bounds("minimum", "maximum")),
        Some("number") => format!("number{}", bounds("minimum", "maximum")),
        Some("boolean") => "boolean".to_owned(),
        Some("array") => match schema.get("items") {
            Some(items) if items.is_object() => {
                format!("list of {}{}", kind(items, root), bounds("minItems", "maxItems"))
            }
            _ => format!("list{}", bounds("minItems", "maxItems")),
        },
        Some("object") => "object".to_owned(),
        _ => "anything".to_owned(),
    }
}

fn trimmed(number: &Value) -> String {
    let text = number.to_string();
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// The page with a section for every plugin.
fn written(page: &str) -> String {
    let mut page = page.to_owned();
    for entry in ALL {
        let title = format!("\n## {}\n", entry.name);
        let fresh = section(entry);
        match page.find(&title) {
            None => {
                page.truncate(page.trim_end().len());
                page.push_str("\n\n");
                page.push_str(fresh.trim_end());
                page.push('\n');
            }
            Some(at) => {
                let start = at + 1;
                let end =
                    page[start..].find("\n## ").map_or(page.len(), |length| start + length + 1);
                if page[start..end].contains(MARK) {
                    let fresh =
                        if end == page.len() { format!("{}\n", fresh.trim_end()) } else { fresh };
                    page.replace_range(start..end, &fresh);
                }
            }
        }
    }
    page
}

#[test]
fn the_page_says_what_the_doc_comments_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/plugin-reference.md");
    let page = std::fs::read_to_string(path).unwrap();
    let fresh = written(&page);
    if std::env::var_os("WARDGATE_REGENERATE").is_some() {
        std::fs::write(path, &fresh).unwrap();
        return;
    }
    assert!(
        fresh == page,
        "docs/plugin-reference.md is not what the types say: WARDGATE_REGENERATE=1 cargo test --lib plugins::"
    );
}
