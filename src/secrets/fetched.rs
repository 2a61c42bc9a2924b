//! A secret as its manager keeps it: an object of fields, or a text.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::Error;
use crate::model::Redacted;

/// A secret.
pub(super) enum Fetched {
    /// Fields.
    Object(Map<String, Value>),
    /// A text, which may be a JSON object.
    Text(Redacted<String>),
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("••••")
    }
}

impl Fetched {
    /// One field, or all of the text.
    pub(super) fn pick(&self, key: Option<&str>) -> Result<Arc<Redacted<String>>, Error> {
        let text = match (self, key) {
            (Self::Text(text), None) => text.reveal().clone(),
            (Self::Object(fields), Some(key)) => of_field(fields, key)?,
            (Self::Text(text), Some(key)) => match serde_json::from_str::<Value>(text.reveal()) {
                Ok(Value::Object(fields)) => of_field(&fields, key)?,
                _ => return Err(Error::NoObject(key.to_owned())),
            },
            (Self::Object(_), None) => return Err(Error::NoText(String::new())),
        };
        Ok(Arc::new(Redacted::new(text)))
    }
}

fn of_field(fields: &Map<String, Value>, key: &str) -> Result<String, Error> {
    match fields.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(Value::Null | Value::Array(_) | Value::Object(_)) => {
            Err(Error::NoText(key.to_owned()))
        }
        None => Err(Error::NoField(key.to_owned())),
    }
}
