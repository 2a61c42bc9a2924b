//! Named values in the reference.

use serde_json::Value;

use super::paths::unescape;
use super::{Match, like, yes};
use crate::model::{PolicyAction, ValueMatch};
use Match::{No, Unclear, Yes};

/// A value of a name.
pub(super) enum Line {
    /// It has one reading.
    Value(String),
    /// A header's line, which may be a list.
    Header(String),
    /// It is no text.
    NoText,
}

pub(super) fn value_holds(
    entry: &ValueMatch,
    values: Option<Vec<Line>>,
    action: PolicyAction,
) -> bool {
    let is_there = values.is_some();
    let values = values.unwrap_or_default();
    let judge = |list: &[String]| {
        let among = |value: &str| list.iter().any(|text| like(text, value));
        let one = |line: &Line| match line {
            Line::NoText => Unclear,
            Line::Value(value) => yes(among(value)),
            Line::Header(line) => {
                let members: Vec<bool> = line.split(',').map(|part| among(part.trim())).collect();
                let exactly = list.iter().any(|text| !text.contains('*') && text == line);
                match (among(line), members.contains(&true), members.contains(&false)) {
                    (true, _, _) if exactly => Yes,
                    (true, _, false) => Yes,
                    (false, false, _) => No,
                    _ => Unclear,
                }
            }
        };
        let found: Vec<Match> = values.iter().map(one).collect();
        match () {
            () if found.is_empty() => Unclear,
            () if found.iter().all(|found| *found == Yes) => Yes,
            () if found.iter().all(|found| *found == No) => No,
            () => Unclear,
        }
    };
    let deny = action == PolicyAction::Deny;
    let wanted = judge(&entry.values);
    let unwanted = judge(&entry.not_values);
    entry.present.is_none_or(|present| present == is_there)
        && (entry.values.is_empty() || wanted == Yes || (deny && wanted == Unclear))
        && (entry.not_values.is_empty() || unwanted == No || (deny && unwanted == Unclear))
}

pub(super) fn claim_values(found: Option<&Value>, name: &str) -> Option<Vec<Line>> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Line::Value(text.clone()),
        Value::Bool(_) | Value::Number(_) => Line::Value(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => Line::NoText,
    };
    match found? {
        Value::Null => None,
        Value::String(text) if name == "scope" => {
            Some(text.split_whitespace().map(|item| Line::Value(item.to_string())).collect())
        }
        Value::Array(items) => Some(items.iter().map(scalar).collect()),
        value => Some(vec![scalar(value)]),
    }
}

/// `None` when the query is unclear.
pub(super) fn parameters(query: Option<&str>) -> Option<Vec<(String, String)>> {
    let query = query.unwrap_or_default();
    if query.contains(';') {
        return None;
    }
    let decode = |text: &str| unescape(&text.replace('+', " "), |_| true, false);
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Some((decode(name)?, decode(value)?))
        })
        .collect()
}
