//! Named values of a request (headers, parameters of the query, claims), and what a rule asks of them.
//!
//! A name can have several values. To allow, all of them must fit; to refuse, one suffices.

use super::rule::{Wrong, each};
use crate::model::{PolicyAction, ValueMatch};

/// The longest text that a rule compares.
const MAX_TEXT: usize = 4096;

/// A text that a rule means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Exactly(Box<str>),
    /// `prefix*`
    Prefix(Box<str>),
    /// `*suffix`
    Suffix(Box<str>),
    /// `*`: any that is not empty.
    Any,
}

impl Text {
    /// Reads what an operator wrote.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("\"{}\": {what}", text.escape_debug()));
        if text.len() > MAX_TEXT {
            return Err(format!("a value has at most {MAX_TEXT} bytes"));
        }
        if text.chars().any(char::is_control) {
            return wrong("a value has no control characters");
        }
        let parsed = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            _ if text == "*" => Self::Any,
            (None, None) => Self::Exactly(text.into()),
            (None, Some(prefix)) => Self::Prefix(prefix.into()),
            (Some(suffix), None) => Self::Suffix(suffix.into()),
            (Some(_), Some(_)) => {
                return wrong("a star stands at the start or at the end, not both");
            }
        };
        let (Self::Exactly(rest) | Self::Prefix(rest) | Self::Suffix(rest)) = &parsed else {
            return Ok(parsed);
        };
        if rest.contains('*') {
            return wrong("a star stands only at the start or at the end, for any rest");
        }
        Ok(parsed)
    }

    pub(super) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exactly(text) => text.as_bytes() == value,
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
            Self::Any => !value.is_empty(),
        }
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// One entry of `headers`, `query` or `claims`.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: Box<str>,
    pub(super) values: Box<[Text]>,
    not_values: Box<[Text]>,
    present: Option<bool>,
}

impl Wanted {
    /// Reads an entry; `field` is its place in the rule.
    pub(super) fn compile(field: &str, entry: &ValueMatch) -> Result<Self, Wrong> {
        let ValueMatch { name, values, not_values, present } = entry;
        if name.is_empty() || name.len() > 256 {
            return Err(Wrong::new(format!("{field}.name"), "has 1 to 256 bytes"));
        }
        let asks_value = !(values.is_empty() && not_values.is_empty());
        match present {
            None if !asks_value => {
                let what = "asks nothing: values, not_values or present is expected";
                return Err(Wrong::new(field, what));
            }
            Some(false) if asks_value => {
                let what =
                    "false asks that it is absent, and what is absent has no values to compare";
                return Err(Wrong::new(format!("{field}.present"), what));
            }
            _ => {}
        }
        Ok(Self {
            name: name.as_str().into(),
            values: each(&format!("{field}.values"), values, Text::parse)?,
            not_values: each(&format!("{field}.not_values"), not_values, Text::parse)?,
            present: *present,
        })
    }

    /// Nothing seen yet.
    pub(super) fn start(&self) -> Seen<'_> {
        Seen {
            wanted: self,
            is_there: false,
            has_value: false,
            all_fit: true,
            one_fits: false,
            all_excluded: true,
            one_excluded: false,
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |texts: &[Text]| {
            texts.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(" or ")
        };
        f.write_str(&self.name)?;
        match self.present {
            Some(true) => f.write_str(" is there")?,
            Some(false) => f.write_str(" is absent")?,
            None => {}
        }
        if !self.values.is_empty() {
            write!(f, " is {}", list(&self.values))?;
        }
        if !self.not_values.is_empty() {
            write!(f, " is not {}", list(&self.not_values))?;
        }
        Ok(())
    }
}

/// What has been seen of a name's values.
#[derive(Debug)]
pub(super) struct Seen<'w> {
    wanted: &'w Wanted,
    is_there: bool,
    has_value: bool,
    /// Every value is certainly one of `values`; one may be.
    all_fit: bool,
    one_fits: bool,
    /// Every value is certainly one of `not_values`; one may be.
    all_excluded: bool,
    one_excluded: bool,
}

impl Seen<'_> {
    /// It is there, whatever its values.
    pub(super) fn is_there(&mut self) {
        self.is_there = true;
    }

    /// A value that has one reading.
    pub(super) fn value(&mut self, value: &[u8]) {
        let among = |list: &[Text]| list.iter().any(|text| text.matches(value));
        let (fits, excluded) = (among(&self.wanted.values), among(&self.wanted.not_values));
        self.take((fits, fits), (excluded, excluded));
    }

    /// A line of a header: one value, or several with commas between them. Programs differ in that (RFC 9110, section 5.3).
    pub(super) fn line(&mut self, line: &[u8]) {
        if memchr::memchr(b',', line).is_none() {
            return self.value(line);
        }
        let judge = |list: &[Text]| {
            let among = |value: &[u8]| list.iter().any(|text| text.matches(value));
            let mut members = line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            let as_written =
                list.iter().any(|text| matches!(text, Text::Exactly(_)) && text.matches(line));
            let certain = as_written || (among(line) && members.clone().all(among));
            (certain, among(line) || members.any(among))
        };
        let (fits, excluded) = (judge(&self.wanted.values), judge(&self.wanted.not_values));
        self.take(fits, excluded);
    }

    /// A value that is no text.
    pub(super) fn unclear_value(&mut self) {
        self.take((false, true), (false, true));
    }

    fn take(&mut self, fits: (bool, bool), excluded: (bool, bool)) {
        (self.is_there, self.has_value) = (true, true);
        self.all_fit &= fits.0;
        self.one_fits |= fits.1;
        self.all_excluded &= excluded.0;
        self.one_excluded |= excluded.1;
    }

    /// Does the entry hold, now that all values were seen?
    pub(super) fn holds(&self, action: PolicyAction) -> bool {
        let Wanted { values, not_values, present, .. } = self.wanted;
        if present.is_some_and(|present| present != self.is_there) {
            return false;
        }
        match action {
            PolicyAction::Allow => {
                (values.is_empty() || (self.has_value && self.all_fit))
                    && (not_values.is_empty() || (self.has_value && !self.one_excluded))
            }
            PolicyAction::Deny => {
                (values.is_empty() || !self.has_value || self.one_fits)
                    && (not_values.is_empty() || !self.has_value || !self.all_excluded)
            }
        }
    }
}
