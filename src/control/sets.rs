//! A whole set of resources, as a body says it: an object with the kinds as fields, each a list. JSON or YAML.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::index::Place;
use crate::identity::TrustDomain;
use crate::model::{Id, Invalid, Kind};
use crate::sync::file::item_name;

/// What APISIX has and this version has not: an empty list of them is as good as none.
const MISSING_KINDS: [&str; 4] = ["stream_routes", "protos", "secrets", "plugins"];

/// Is it a kind of APISIX that this version does not have?
pub(super) fn is_missing_kind(name: &str) -> bool {
    MISSING_KINDS.contains(&name) && Kind::named(name).is_none()
}

/// One resource of a set.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) place: Place,
    /// As it is stored: without times, with the id that its kind bears.
    pub(super) value: Value,
    /// Where it stands in the set.
    pub(super) at: At,
}

/// Where something stands in a set: in which list, at which place from 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) list: String,
    pub(super) index: usize,
}

/// What is wrong with a set, as `configs/validate` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    /// Where; `None` for what is not in the set itself.
    pub(super) at: Option<At>,
    pub(super) place: Option<(Kind, String)>,
    pub(super) error: String,
}

impl Flaw {
    pub(super) fn of(item: &Item, error: impl Into<String>) -> Self {
        Self::at(&item.at, Some((item.place.0, item.place.1.to_string())), error)
    }

    fn at(at: &At, place: Option<(Kind, String)>, error: impl Into<String>) -> Self {
        Self { at: Some(at.clone()), place, error: error.into() }
    }

    fn shown(&self) -> Value {
        let kind = self.place.as_ref().map(|(kind, _)| kind.name());
        json!({
            "resource_type": self.at.as_ref().map(|at| at.list.as_str()).or(kind),
            "resource_id": self.place.as_ref().map(|(_, id)| id),
            "index": self.at.as_ref().map(|at| at.index),
            "error": self.error,
        })
    }
}

/// 400 with all that is wrong.
pub(super) fn refusal(flaws: &[Flaw]) -> Answer {
    Answer::json(http::StatusCode::BAD_REQUEST, refusal_body(flaws))
}

pub(super) fn refusal_body(flaws: &[Flaw]) -> Value {
    let errors: Vec<Value> = flaws.iter().map(Flaw::shown).collect();
    json!({"error_msg": "Configuration validation failed", "errors": errors})
}

/// Reads a body by its Content-Type: YAML when that says so, JSON otherwise.
pub(super) fn parse(headers: &HeaderMap, bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_yaml = content_type.is_some_and(|content_type| {
        ["application/yaml", "application/x-yaml", "text/yaml"]
            .iter()
            .any(|yaml| content_type.trim().to_ascii_lowercase().starts_with(yaml))
    });
    let value = if is_yaml {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
        // Its text stays out of error messages: it has secrets.
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_events: 20_000_000,
                max_nodes: 10_000_000,
                max_total_scalar_bytes: 1 << 28,
                max_documents: 1,
            },
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
    } else {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    };
    match value? {
        Value::Object(fields) => Ok(fields),
        Value::Null => Ok(Map::new()),
        _ => Err("expected an object with the kinds as its fields".into()),
    }
}

/// The items of a set in which each bears its own id.
///
/// # Errors
/// Everything that is wrong: an unknown field, no list, an item without a good id, an id that is there twice.
pub(super) fn read(top: Map<String, Value>) -> Result<Vec<Item>, Vec<Flaw>> {
    let (mut items, mut flaws) = (Vec::new(), Vec::new());
    for (list, values) in top {
        let here = |index| At { list: list.clone(), index };
        let values = match values {
            Value::Array(values) => values,
            Value::Null => Vec::new(),
            _ => {
                flaws.push(Flaw::at(&here(0), None, format!("{list}: expected a list")));
                continue;
            }
        };
        let Some(kind) = Kind::named(&list) else {
            if !(is_missing_kind(&list) && values.is_empty()) {
                flaws.push(Flaw::at(&here(0), None, unknown(&list)));
            }
            continue;
        };
        for (index, value) in values.into_iter().enumerate() {
            let has_name = match kind {
                Kind::Consumers => true,
                _ => value.get("id").is_some_and(|id| !id.is_null()),
            };
            let at = here(index);
            match has_name.then(|| item(kind, value, at.clone())) {
                None => flaws.push(Flaw::at(&at, None, "id is required")),
                Some(Err((id, Invalid(why)))) => {
                    flaws.push(Flaw::at(&at, id.map(|id| (kind, id)), why));
                }
                Some(Ok(item)) => items.push(item),
            }
        }
    }
    flaws.extend(duplicates(&items));
    if flaws.is_empty() { Ok(items) } else { Err(flaws) }
}

pub(super) fn unknown(list: &str) -> String {
    match is_missing_kind(list) {
        true => format!("{list} are not supported by this version of Wardgate"),
        false => format!("{list}: no kind of resource has this name"),
    }
}

/// One item with its name; without an id of its own it is named by its place.
pub(super) fn item(kind: Kind, value: Value, at: At) -> Result<Item, (Option<String>, Invalid)> {
    let told = value.get("id").or_else(|| value.get("username"));
    let told = told.and_then(super::index::id_text);
    let Value::Object(mut fields) = value else {
        return Err((None, Invalid::new("must be an object")));
    };
    let named = item_name(kind, at.index + 1, &mut fields);
    let (kind, id) = named.map_err(|invalid| (told.clone(), invalid))?;
    lawful(kind, &id).map_err(|invalid| (told, invalid))?;
    for theirs in ["create_time", "update_time", "modifiedIndex"] {
        fields.shift_remove(theirs);
    }
    match kind {
        Kind::Consumers => drop(fields.shift_remove("id")),
        _ => drop(fields.insert("id".into(), json!(own_id(kind, &id)))),
    }
    Ok(Item { place: (kind, id), value: Value::Object(fields), at })
}

/// The id as the resource itself bears it: a credential's without its consumer.
pub(super) fn own_id(kind: Kind, id: &Id) -> &str {
    match kind {
        Kind::Credentials => id.as_str().rsplit('/').next().unwrap_or_default(),
        _ => id.as_str(),
    }
}

fn lawful(kind: Kind, id: &Id) -> Result<(), Invalid> {
    let wrong = |why: String| Err(Invalid(format!("invalid configuration: {why}")));
    match kind {
        Kind::Consumers | Kind::Credentials | Kind::PluginMetadata => Ok(()),
        Kind::TrustDomains => match id.as_str().parse::<TrustDomain>() {
            Ok(_) => Ok(()),
            Err(why) => wrong(format!(
                "property \"id\" validation failed: {:?} is not a trust domain's name: {why}",
                id.as_str()
            )),
        },
        Kind::Ssls => super::certificates::lawful_id(id),
        _ if id.as_str().len() > 64 => {
            wrong("property \"id\" validation failed: object matches none of the required".into())
        }
        _ => Ok(()),
    }
}

/// Items whose name an earlier one has, in APISIX's words.
pub(super) fn duplicates(items: &[Item]) -> Vec<Flaw> {
    let mut seen = std::collections::HashSet::new();
    let again = items.iter().filter(|item| !seen.insert(&item.place));
    again.map(|item| Flaw::of(item, duplicate(item))).collect()
}

pub(super) fn duplicate(item: &Item) -> String {
    let what = match item.place.0 {
        Kind::Consumers => "username",
        Kind::Credentials => "credential id",
        _ => "id",
    };
    format!("found duplicate {what} {} in {}", item.place.1, item.at.list)
}

/// A stored value as an item of a set says it: without times, its id as a text. What is equal then is the same resource.
pub(super) fn bare(kind: Kind, id: &Id, value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        for theirs in ["create_time", "update_time"] {
            fields.shift_remove(theirs);
        }
        match kind {
            Kind::Consumers => drop(fields.shift_remove("id")),
            _ => drop(fields.insert("id".into(), json!(own_id(kind, id)))),
        }
    }
    value
}

/// What no answer shows need not be said again: fields that `stored` has, `shown` has not, and `value` does not name.
pub(super) fn keep_hidden(value: &mut Value, stored: &Value, shown: &Value) {
    let (Value::Object(value), Value::Object(stored)) = (value, stored) else { return };
    for (field, secret) in stored {
        match (value.get_mut(field), shown.get(field)) {
            (None, None) => drop(value.insert(field.clone(), secret.clone())),
            (Some(said), Some(shown)) if shown != secret => {
                match said == shown && !said.is_object() {
                    // It was hidden behind something, and that came back.
                    true => *said = secret.clone(),
                    false => keep_hidden(said, secret, shown),
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::listing::shown;

    fn read_json(value: Value) -> Result<Vec<Item>, Vec<Flaw>> {
        let Value::Object(fields) = value else { panic!("an object") };
        read(fields)
    }

    #[test]
    fn a_set_names_its_resources_as_apisix_names_them() {
        let items = read_json(json!({
            "routes": [{"id": 7, "uri": "/", "create_time": 1, "modifiedIndex": 3}],
            "consumers": [
                {"username": "john", "plugins": {}},
                {"id": "john/credentials/a", "plugins": {"key-auth": {"key": "k"}}},
            ],
            "stream_routes": [], "services": null,
        }))
        .unwrap();
        let told: Vec<(Kind, &str, Value)> = items
            .iter()
            .map(|item| (item.place.0, item.place.1.as_str(), item.value.clone()))
            .collect();
        assert_eq!(
            told,
            [
                (Kind::Routes, "7", json!({"id": "7", "uri": "/"})),
                (Kind::Consumers, "john", json!({"username": "john", "plugins": {}})),
                (
                    Kind::Credentials,
                    "john/credentials/a",
                    json!({"id": "a", "plugins": {"key-auth": {"key": "k"}}})
                ),
            ]
        );
    }

    #[test]
    fn everything_that_is_wrong_with_a_set_is_told_at_once_and_where() {
        let flaws = read_json(json!({
            "routes": [{"uri": "/"}, {"id": "a b"}, {"id": "a", "uri": "/"}, {"id": "a"}, 7],
            "rotues": [], "stream_routes": [{}], "services": {},
            "trust_domains": [{"id": "A"}],
        }))
        .unwrap_err();
        let told: Vec<(String, usize, &str)> = flaws
            .iter()
            .map(|flaw| {
                let at = flaw.at.as_ref().unwrap();
                (at.list.clone(), at.index, flaw.error.split(':').next().unwrap())
            })
            .collect();
        let at = |list: &str, index, error| (list.to_owned(), index, error);
        assert_eq!(
            told,
            [
                at("routes", 0, "id is required"),
                at("routes", 1, "\"a b\" is no id"),
                at("routes", 4, "id is required"),
                at("rotues", 0, "rotues"),
                at("stream_routes", 0, "id is required"),
                at("services", 0, "services"),
                at("trust_domains", 0, "invalid configuration"),
                at("routes", 3, "found duplicate id a in routes"),
            ]
        );
    }

    #[test]
    fn what_no_answer_shows_need_not_be_said_again() {
        let stored = json!({"id": "1", "snis": ["a"], "cert": "C", "key": "PRIVATE",
            "tls": {"client_cert": "C", "client_key": "PRIVATE"}});
        let shown = shown(Kind::Ssls, stored.clone());
        let mut value = json!({"id": "1", "snis": ["b"], "cert": "C", "tls": {"client_cert": "C"}});
        keep_hidden(&mut value, &stored, &shown);
        assert_eq!(
            value,
            json!({"id": "1", "snis": ["b"], "cert": "C", "key": "PRIVATE",
                "tls": {"client_cert": "C", "client_key": "PRIVATE"}})
        );
        let mut other = json!({"id": "1", "cert": "D", "key": "OTHER"});
        keep_hidden(&mut other, &stored, &shown);
        assert_eq!(other, json!({"id": "1", "cert": "D", "key": "OTHER"}));
    }
}
