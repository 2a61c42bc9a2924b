//! The settings file as it is written: environment variables put in, and what differs between two readings.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::settings::{Error, Settings};
use crate::sync::file::{Environment, resolve};

/// A settings file that was read.
#[derive(Clone, Debug)]
pub struct SettingsFile {
    /// Which file.
    pub path: PathBuf,
    /// What it says, variables put in.
    pub(super) value: Value,
    /// The same as settings.
    pub settings: Settings,
}

impl SettingsFile {
    /// Reads a file. `${{NAME}}` in a text is the environment variable of that name, `${{NAME:=default}}` has a default; a text
    /// that had a variable and then reads as a number, `true` or `false` is one.
    ///
    /// # Errors
    /// The file cannot be read, wants a variable that is not set, or is not of this shape.
    pub fn read(path: &Path, environment: &Environment) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text, environment)
    }

    fn parse(path: &Path, text: &str, environment: &Environment) -> Result<Self, Error> {
        let wrong = |detail: String| Error::Parse { path: path.to_owned(), detail };
        let parsed = |error: serde_saphyr::Error| {
            let named = error.location().and_then(|place| key_at(text, place.line()));
            wrong(match named {
                Some(key) => format!("{key}: {error}"),
                None => error.to_string(),
            })
        };
        let (settings, value) = if text.contains("${{") {
            let value: Value = yaml(text).map_err(parsed)?;
            let (value, missing) = resolve(value, environment);
            if let Some(name) = missing {
                return Err(Error::Variable { path: path.to_owned(), name });
            }
            let settings = serde_json::from_value(value.clone());
            (settings.map_err(|error| wrong(error.to_string()))?, value)
        } else {
            // Straight from the text: an error can name the line.
            let settings: Settings = yaml(text).map_err(parsed)?;
            (settings, yaml(text).map_err(parsed)?)
        };
        settings.trust_domain()?;
        Ok(Self { path: path.to_owned(), value, settings })
    }

    /// The settings, named with dots, that are not as in `other`.
    pub(super) fn differing(&self, other: &Self) -> Vec<String> {
        let mut names = Vec::new();
        compare("", &self.value, &other.value, &mut names);
        names
    }

    /// Takes one setting over from `other`.
    pub(super) fn adopt(&mut self, name: &str, other: &Self) {
        let pointer = |name: &str| format!("/{}", name.replace('.', "/"));
        if let Some(value) = other.value.pointer(&pointer(name)).cloned() {
            return put(&mut self.value, name, value);
        }
        let (parent, last) = name.rsplit_once('.').unwrap_or(("", name));
        let place = if parent.is_empty() { String::new() } else { pointer(parent) };
        let Some(Value::Object(fields)) = self.value.pointer_mut(&place) else { return };
        fields.shift_remove(last);
        // A block of which nothing is left goes where the other has none.
        if fields.is_empty() && !parent.is_empty() && other.value.pointer(&place).is_none() {
            self.adopt(parent, other);
        }
    }
}

/// The text stays out of error messages: it may have secrets.
fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { with_snippet: false })
}

/// The key of a line, so that an error names what is wrong. Its value is not shown: it may be a secret.
fn key_at(text: &str, line: impl TryInto<usize>) -> Option<&str> {
    let line = text.lines().nth(line.try_into().ok()?.checked_sub(1)?)?;
    let (key, _) = line.split_once(':')?;
    let key = key.trim().trim_start_matches("- ").trim_matches(['"', '\'']);
    let is_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
    (!key.is_empty() && key.chars().all(is_name)).then_some(key)
}

fn compare(at: &str, one: &Value, other: &Value, names: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(fields), Value::Object(others)) => {
            let mut keys: Vec<&String> = fields.keys().chain(others.keys()).collect();
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                let name = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                let field = |fields: &serde_json::Map<String, Value>| {
                    fields.get(key).cloned().unwrap_or(Value::Null)
                };
                compare(&name, &field(fields), &field(others), names);
            }
        }
        // A block that was not there: its fields are named.
        (Value::Object(fields), Value::Null) | (Value::Null, Value::Object(fields))
            if !fields.is_empty() =>
        {
            for key in fields.keys() {
                names.push(if at.is_empty() { key.clone() } else { format!("{at}.{key}") });
            }
        }
        _ if one != other => names.push(at.to_owned()),
        _ => {}
    }
}

fn put(within: &mut Value, name: &str, value: Value) {
    let mut place = within;
    for part in name.split('.') {
        if !place.is_object() {
            *place = Value::Object(serde_json::Map::new());
        }
        place = &mut place[part];
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn environment() -> Environment {
        Arc::new(|name| match name {
            "DOMAIN" => Some("shop.test".to_owned()),
            "WORKERS" => Some("3".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    fn read(text: &str) -> Result<SettingsFile, Error> {
        SettingsFile::parse(Path::new("a.yaml"), text, &environment())
    }

    #[test]
    fn variables_stand_for_texts_numbers_and_parts_of_texts() {
        let file = read(
            "role: sidecar\ntrust_domain: ${{DOMAIN}}\nworkers: ${{WORKERS}}\n\
             state_dir: /var/${{NONE:=lib}}/${{DOMAIN}}\ndrain_seconds: ${{NONE:=7}}\n",
        )
        .unwrap();
        let Settings { trust_domain, workers, state_dir, drain_seconds, .. } = file.settings;
        assert_eq!((&*trust_domain, workers, drain_seconds), ("shop.test", Some(3), 7));
        assert_eq!(state_dir, Path::new("/var/lib/shop.test"));
    }

    #[test]
    fn an_error_names_the_variable_or_the_field() {
        let sentence = |text: &str| read(text).unwrap_err().to_string();
        assert_eq!(
            sentence("trust_domain: ${{NOT_SET}}"),
            "the settings file a.yaml: the environment variable NOT_SET is not set, and ${{NOT_SET}} has no default"
        );
        let wrong = sentence("trust_domain: ${{DOMAIN}}\nworkerz: 1");
        assert!(wrong.contains("unknown field `workerz`"), "{wrong}");
        let wrong = sentence("trust_domain: shop.test\nworkerz: 1");
        assert!(wrong.contains("line 2") && wrong.contains("workerz"), "{wrong}");
        assert!(sentence("trust_domain: \"${{EMPTY}}\"").starts_with("setting trust_domain"));
    }

    #[test]
    fn what_differs_is_named_and_can_be_taken_over_one_by_one() {
        let old = "trust_domain: a.test\naudit: { stdout: true }\nworkers: 1\ndrain_seconds: 5";
        let new = "trust_domain: a.test\nlog: { filter: debug }\nworkers: 2\ndrain_seconds: 9";
        let (mut old, new) = (read(old).unwrap(), read(new).unwrap());
        assert_eq!(new.differing(&old), ["audit.stdout", "drain_seconds", "log.filter", "workers"]);
        for name in ["audit.stdout", "drain_seconds", "log.filter"] {
            old.adopt(name, &new);
        }
        assert_eq!(new.differing(&old), ["workers"]);
        assert!(new.differing(&new).is_empty());
    }
}
