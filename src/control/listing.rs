//! What a client asks of a list: filters and pages.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use regex::Regex;
use serde_json::{Value, json};

use super::answer::Answer;
use super::index::id_text;
use crate::model::Kind;
use crate::store::Stored;

/// A request's query, decoded.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let decode = |part: &str| -> String {
            let spaced: Cow<'_, str> =
                if part.contains('+') { part.replace('+', " ").into() } else { part.into() };
            percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Self(pairs.collect())
    }

    /// All of it.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The first value of that name.
    pub(super) fn find(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// `{"key", "value", "createdIndex", "modifiedIndex"}`.
pub(super) fn node(kind: Kind, stored: Stored) -> Value {
    json!({
        "key": stored.key,
        "value": shown(kind, stored.value),
        "createdIndex": stored.created,
        "modifiedIndex": stored.modified,
    })
}

/// A value as clients may see it: never a private key.
pub(super) fn shown(kind: Kind, mut value: Value) -> Value {
    if kind == Kind::Ssls
        && let Some(fields) = value.as_object_mut()
    {
        fields.shift_remove("key");
        fields.shift_remove("keys");
    }
    for tls in ["/tls", "/upstream/tls"] {
        if let Some(fields) = value.pointer_mut(tls).and_then(Value::as_object_mut) {
            fields.shift_remove("client_key");
        }
    }
    value
}

/// Takes out of a secret manager what opens it.
pub(super) fn hide_secrets(kind: Kind, value: &mut Value) {
    if kind != Kind::Secrets {
        return;
    }
    let Some(fields) = value.as_object_mut() else { return };
    for name in ["token", "access_key_id", "secret_access_key", "session_token"] {
        fields.shift_remove(name);
    }
    if let Some(account) = fields.get_mut("auth_config").and_then(Value::as_object_mut) {
        account.shift_remove("private_key");
    }
}

/// The list of those entries that the query asks for.
pub(super) fn list(kind: Kind, entries: Vec<Stored>, query: &Query) -> Answer {
    let mut entries: Vec<Stored> =
        entries.into_iter().filter(|stored| wanted(kind, &stored.value, query)).collect();
    let total = entries.len();
    if let (Some(page), Some(size)) = (query.find("page"), query.find("page_size")) {
        let Some(size) = size.parse().ok().filter(|size| (10..=500_usize).contains(size)) else {
            let text = Value::from("page_size must be between 10 and 500");
            return Answer::json(http::StatusCode::BAD_REQUEST, text);
        };
        let page = page.parse::<usize>().unwrap_or(1).max(1);
        entries.sort_by_key(|stored| stored.created);
        entries = entries.into_iter().skip((page - 1).saturating_mul(size)).take(size).collect();
    }
    let list: Vec<Value> = entries.into_iter().map(|stored| node(kind, stored)).collect();
    Answer::ok(json!({"total": total, "list": list}))
}

fn wanted(kind: Kind, value: &Value, query: &Query) -> bool {
    // A pattern that does not compile finds nothing, as in APISIX.
    let finds = |pattern: &str, text: Option<&str>| {
        text.is_some_and(|text| Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text)))
    };
    if let Some(pattern) = query.find("name")
        && !finds(pattern, value.get("name").and_then(Value::as_str))
    {
        return false;
    }
    if let Some(label) = query.find("label")
        && value.get("labels").and_then(|labels| labels.get(label)).is_none()
    {
        return false;
    }
    if !matches!(kind, Kind::Routes | Kind::StreamRoutes) {
        return true;
    }
    if kind == Kind::Routes
        && let Some(pattern) = query.find("uri")
    {
        let many = value.get("uris").and_then(Value::as_array).into_iter().flatten();
        let mut all = value.get("uri").into_iter().chain(many);
        if !all.any(|uri| finds(pattern, uri.as_str())) {
            return false;
        }
    }
    if let Some(filter) = query.find("filter") {
        let filter = Query::parse(filter);
        for field in ["service_id", "upstream_id"] {
            if let Some(id) = filter.find(field)
                && value.get(field).and_then(id_text).as_deref() != Some(id)
            {
                return false;
            }
        }
    }
    true
}
