//! Header fields as operators write them into plugin settings.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Exchange, Known, Template};
use crate::model::Invalid;

/// A field's value as settings write it: a text, in which variables are filled in, or a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum FieldValue {
    /// A text with variables.
    Text(String),
    /// A number, written as it stands.
    Number(serde_json::Number),
}

impl FieldValue {
    /// Compiles the value; no control characters may stand in it.
    ///
    /// # Errors
    /// An unknown variable, or a byte that no field may have.
    pub fn template(&self) -> Result<Template, Invalid> {
        let text = match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        };
        if text.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
            return Err(Invalid::new("a header's value has no control characters"));
        }
        Template::parse(&text)
    }
}

/// A field's name that a plugin may set: a token, and none that says where a message ends, whose connection it is on, or who
/// the caller is.
///
/// # Errors
/// The sentence quotes the name.
pub fn field_name(text: &str) -> Result<Box<str>, Invalid> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.is_empty() || !text.bytes().all(token) {
        return Err(Invalid::new(format!("'{text}' is no header name")));
    }
    let known = Known::of(text.as_bytes());
    if known.is_hop_by_hop() || known == Known::ContentLength {
        return Err(Invalid::new(format!("'{text}' belongs to the framing of messages")));
    }
    if known.is_identity() {
        return Err(Invalid::new(format!("'{text}' says who calls: no plugin may set it")));
    }
    Ok(text.into())
}

impl Template {
    /// The text for `exchange`, in a String of its own.
    pub fn text(&self, exchange: &Exchange) -> String {
        let mut out = String::new();
        self.render(exchange, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_set_only_what_is_theirs_to_set() {
        for good in ["X-A", "Host", "Content-Type", "x_b", "X-Consumer-Username"] {
            assert!(field_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a b",
            "a:",
            "ä",
            "a\r\n",
            "Content-Length",
            "transfer-encoding",
            "Connection",
            "TE",
            "X-Forwarded-Client-Cert",
            "x_forwarded_client_cert",
            "X-Spiffe-Id",
        ] {
            assert!(field_name(bad).is_err(), "{bad}");
        }
        assert!(FieldValue::Text("a\r\nb: c".into()).template().is_err());
        assert!(FieldValue::Text("$nothing".into()).template().is_err());
        assert_eq!(FieldValue::Number(7.into()).template().unwrap().fixed(), Some("7"));
    }
}
