//! `docs/settings.md` is what the settings' types say. `WARDGATE_REGENERATE=1 cargo test --test settings_reference` writes it.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

const HEAD: &str = "\
# Settings

One YAML file a process: `wardgate run -c FILE`. Unknown keys are refused. `wardgate schema` prints the JSON Schema of the file,
which editors understand. Every port can be 0: a free one is taken and printed.

This page is written from the types; `tests/settings_reference.rs` keeps it so.
";

#[test]
fn the_settings_reference_says_what_the_types_say() {
    let schema = schemars::schema_for!(wardgate::roles::Settings).to_value();
    let mut page = HEAD.to_owned();
    section(&mut page, "The file", &schema);
    let definitions = schema["$defs"].as_object().expect("definitions");
    for (name, definition) in definitions {
        if definition["properties"].is_object() || definition["oneOf"].is_array() {
            section(&mut page, name, definition);
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    if std::env::var_os("WARDGATE_REGENERATE").is_some() {
        std::fs::write(&path, &page).expect("docs can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/settings.md is not what the types say: run WARDGATE_REGENERATE=1 cargo test --test settings_reference"
    );
}

fn section(page: &mut String, name: &str, schema: &Value) {
    let _ = writeln!(page, "\n## {name}\n");
    if let Some(text) = schema["description"].as_str() {
        let _ = writeln!(page, "{}\n", one_line(text));
    }
    if let Some(variants) = schema["oneOf"].as_array() {
        for variant in variants {
            let text = one_line(variant["description"].as_str().unwrap_or_default());
            match variant["const"].as_str() {
                Some(value) => {
                    let _ = writeln!(page, "- `{value}`: {text}");
                }
                None => {
                    let _ = writeln!(page, "\n{text}\n");
                    table(page, variant);
                }
            }
        }
        return;
    }
    table(page, schema);
}

fn table(page: &mut String, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    page.push_str("| setting | type | default | what it is |\n|---|---|---|---|\n");
    for (name, property) in properties {
        let default = match &property["default"] {
            _ if required.contains(&name.as_str()) => "required".to_owned(),
            Value::Null => "none".to_owned(),
            value => format!("`{value}`"),
        };
        let text = one_line(property["description"].as_str().unwrap_or_default());
        let _ = writeln!(page, "| `{name}` | {} | {default} | {text} |", type_of(property));
    }
}

fn type_of(property: &Value) -> String {
    if let Some(target) = property["$ref"].as_str() {
        let name = target.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", name.to_ascii_lowercase());
    }
    if let Some(constant) = property["const"].as_str() {
        return format!("`{constant}`");
    }
    if let Some(variants) = property["anyOf"].as_array() {
        let named: Vec<String> =
            variants.iter().filter(|variant| variant["type"] != "null").map(type_of).collect();
        return named.join(" or ");
    }
    match &property["type"] {
        Value::String(name) if name == "array" => {
            format!("list of {}", type_of(&property["items"]))
        }
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names: Vec<&str> =
                names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect();
            names.join(" or ")
        }
        _ => "any".to_owned(),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
