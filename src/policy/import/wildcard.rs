//! Istio's texts with a star, and how CEL says them.

/// A text of Istio: exact, with a star before or behind, or a star alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wildcard<'a> {
    /// Anything that is not empty.
    Any,
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
}

impl<'a> Wildcard<'a> {
    /// In the order in which Istio looks.
    pub(super) fn of(text: &'a str) -> Self {
        if text == "*" {
            Self::Any
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix)
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix)
        } else {
            Self::Exact(text)
        }
    }

    /// The condition that `subject` is such a text.
    pub(super) fn cel(self, subject: &str) -> String {
        match self {
            Self::Any => format!("{subject} != \"\""),
            Self::Exact(text) => format!("{subject} == {}", quoted(text)),
            Self::Prefix(text) => format!("{subject}.startsWith({})", quoted(text)),
            Self::Suffix(text) => format!("{subject}.endsWith({})", quoted(text)),
        }
    }
}

/// A text as a literal of CEL.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// One of these conditions.
pub(super) fn any_of(conditions: &[String]) -> String {
    match conditions {
        [one] => one.clone(),
        several => format!("({})", several.join(" || ")),
    }
}

/// One of these texts is what `subject` is.
pub(super) fn one_of(subject: &str, texts: &[String]) -> String {
    any_of(&texts.iter().map(|text| Wildcard::of(text).cel(subject)).collect::<Vec<_>>())
}

/// None of these texts is what `subject` is.
pub(super) fn none_of(subject: &str, texts: &[String]) -> String {
    format!("!({})", one_of(subject, texts))
}
