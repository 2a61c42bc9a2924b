//! Files of resources, gathered into one set.
//!
//! A document of a file is one of these:
//!
//! - the kinds as lists, as in APISIX's `apisix.yaml` and in what `wardgate dump` writes (`#END` may stand at the end);
//! - one resource with its `kind`: `kind: route`;
//! - an identity policy, as policy files have it;
//! - ADC's `adc.yaml`: services with their routes, consumers with their credentials.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::adc;
use crate::cli::policy::{SourceText, read_texts};
use crate::model::Kind;
use crate::sync::file::{process_environment, resolve};

/// Lists of APISIX that need not be kinds of ours: the server tells what it does not have.
const THEIRS: [&str; 4] = ["stream_routes", "protos", "secrets", "plugins"];

/// All that some files say.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// By kind, lists.
    pub(super) set: Map<String, Value>,
    /// Which file each item of a list came from.
    origins: Vec<(String, Vec<String>)>,
}

impl Gathered {
    /// Reads files, and all `*.yaml`, `*.yml` and `*.json` below folders. `-` is the standard input.
    ///
    /// # Errors
    /// One cannot be read or is none of these; the error names it.
    pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut gathered = Self::default();
        for SourceText { name, text } in read_texts(paths)? {
            gathered.add(&name, &text).with_context(|| format!("cannot use {name}"))?;
        }
        Ok(gathered)
    }

    /// Where an item of a list is written.
    pub(super) fn origin(&self, list: &str, index: usize) -> Option<&str> {
        let (_, files) = self.origins.iter().find(|(name, _)| name == list)?;
        files.get(index).map(String::as_str)
    }

    pub(super) fn add(&mut self, file: &str, text: &str) -> anyhow::Result<()> {
        if [".test.yaml", ".test.yml"].iter().any(|ending| file.ends_with(ending)) {
            return Ok(());
        }
        for document in documents(text)? {
            let (document, missing) = resolve(document, &process_environment());
            if let Some(name) = missing {
                bail!(
                    "the environment variable {name} is not set, and ${{{{{name}}}}} has no default"
                );
            }
            match document {
                Value::Null => {}
                Value::Object(fields) => self.add_document(file, fields)?,
                _ => bail!("expected an object with the kinds as its fields"),
            }
        }
        Ok(())
    }

    fn add_document(&mut self, file: &str, mut fields: Map<String, Value>) -> anyhow::Result<()> {
        if let Some(kind) = fields.get("kind").and_then(Value::as_str) {
            if kind == "policy_test" {
                return Ok(());
            }
            let Some(found) = singular(kind) else {
                bail!("kind: no kind of resource is called {kind:?}");
            };
            fields.shift_remove("kind");
            self.push(file, found.name(), Value::Object(fields));
            return Ok(());
        }
        let is_list =
            |name: &String| Kind::named(name).is_some() || THEIRS.contains(&name.as_str());
        if !fields.keys().any(is_list) && fields.contains_key("id") && fields.contains_key("rules")
        {
            self.push(file, Kind::IdentityPolicies.name(), Value::Object(fields));
            return Ok(());
        }
        let lists = if adc::is_adc(&fields) { adc::converted(fields)? } else { fields };
        for (list, values) in lists {
            let is_version = list.ends_with("_conf_version");
            if is_version || list == "X-Digest" || list == "X-Last-Modified" {
                // What a standalone backend answers beside the lists.
                continue;
            }
            if !is_list(&list) {
                bail!("{list}: no kind of resource has this name");
            }
            match values {
                Value::Null => {}
                Value::Array(values) => {
                    for value in values {
                        self.push(file, &list, value);
                    }
                    // An empty list is said, too.
                    self.set.entry(list).or_insert_with(|| json!([]));
                }
                _ => bail!("{list}: expected a list"),
            }
        }
        Ok(())
    }

    fn push(&mut self, file: &str, list: &str, value: Value) {
        if let Some(values) = self.set.entry(list).or_insert_with(|| json!([])).as_array_mut() {
            values.push(value);
        }
        match self.origins.iter_mut().find(|(name, _)| name == list) {
            Some((_, files)) => files.push(file.to_owned()),
            None => self.origins.push((list.to_owned(), vec![file.to_owned()])),
        }
    }
}

/// `route`, `plugin_config`: how APISIX's schemas call one of a kind.
fn singular(name: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.singular().replace(' ', "_") == name)
}

/// The documents of a text. JSON is YAML, but for characters that YAML wants escaped.
pub(super) fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    if text.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(vec![value]);
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 100_000_000,
            max_nodes: 50_000_000,
            max_total_scalar_bytes: 1 << 30,
            max_documents: 100_000,
        },
        with_snippet: false,
    };
    let read = serde_saphyr::from_str_multiple_with_options::<Value, Vec<Value>>(text, options);
    read.map_err(|error| anyhow::anyhow!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_be_any_of_the_shapes() {
        let mut all = Gathered::default();
        all.add("apisix.yaml", "routes:\n  - id: a\n    uri: /\nplugins: []\n#END\n").unwrap();
        all.add("one.yaml", "kind: plugin_config\nid: p\nplugins: {}\n---\nkind: route\nid: b\n")
            .unwrap();
        all.add("policy.yaml", "id: read\naction: allow\nrules: [{}]\n").unwrap();
        all.add("cases.test.yaml", "cases: []\n").unwrap();
        all.add("standalone.json", r#"{"routes": [], "routes_conf_version": 7, "X-Digest": "d"}"#)
            .unwrap();
        let ids = |list: &str| -> Vec<&str> {
            let values = all.set[list].as_array().unwrap();
            values.iter().map(|value| value["id"].as_str().unwrap()).collect()
        };
        assert_eq!(ids("routes"), ["a", "b"]);
        assert_eq!(ids("plugin_configs"), ["p"]);
        assert_eq!(ids("identity_policies"), ["read"]);
        assert_eq!(all.origin("routes", 1), Some("one.yaml"));

        let wrong = |text: &str| Gathered::default().add("f", text).unwrap_err().to_string();
        assert!(wrong("rotues: []").contains("rotues: no kind"));
        assert!(wrong("kind: rout\nid: a").contains("\"rout\""));
        assert!(wrong("routes: {}").contains("expected a list"));
        assert!(wrong("routes:\n  - id: ${{NO_SUCH_NAME}}\n").contains("NO_SUCH_NAME"));
        assert!(wrong("[").contains("line 1"));
    }
}
