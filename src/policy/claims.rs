//! Claims of a caller's verified token, as rules name them.

use serde_json::{Map, Value};

use super::rule::Wrong;
use super::values::{Seen, Wanted};
use crate::model::{PolicyAction, ValueMatch};

/// One entry of `from.claims`.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) wanted: Wanted,
    /// The way to it: member names, or places in a list.
    way: Box<[Box<str>]>,
}

/// The claim whose text is a list with blanks between its items (RFC 8693, section 4.2).
const SCOPE: &str = "scope";

impl Claim {
    pub(super) fn compile(field: &str, entry: &ValueMatch) -> Result<Self, Wrong> {
        let wanted = Wanted::compile(field, entry)?;
        let way = way(&entry.name).map_err(|why| Wrong::new(format!("{field}.name"), why))?;
        Ok(Self { wanted, way })
    }

    /// Does the entry hold for these claims?
    pub(super) fn holds(&self, claims: &Map<String, Value>, action: PolicyAction) -> bool {
        let mut seen = self.wanted.start();
        if let Some(value) = self.find(claims) {
            let is_scope = matches!(&*self.way, [name] if **name == *SCOPE);
            see(&mut seen, value, is_scope);
        }
        seen.holds(action)
    }

    fn find<'c>(&self, claims: &'c Map<String, Value>) -> Option<&'c Value> {
        let (first, rest) = self.way.split_first()?;
        rest.iter().try_fold(claims.get(&**first)?, |value, name| match value {
            Value::Object(members) => members.get(&**name),
            Value::Array(items) => items.get(place(name)?),
            _ => None,
        })
    }
}

fn see(seen: &mut Seen<'_>, value: &Value, is_scope: bool) {
    match value {
        // As if it were not there.
        Value::Null => {}
        Value::String(text) if is_scope => {
            seen.is_there();
            text.split_ascii_whitespace().for_each(|item| seen.value(item.as_bytes()));
        }
        Value::String(text) => seen.value(text.as_bytes()),
        Value::Bool(true) => seen.value(b"true"),
        Value::Bool(false) => seen.value(b"false"),
        Value::Number(number) => {
            use std::io::Write as _;
            // The longest number has fewer digits.
            let mut text = [0; 64];
            let mut rest = &mut text[..];
            match write!(rest, "{number}") {
                Ok(()) => {
                    let length = 64 - rest.len();
                    seen.value(&text[..length]);
                }
                Err(_) => seen.unclear_value(),
            }
        }
        Value::Array(items) => {
            seen.is_there();
            for item in items {
                match item {
                    Value::Null | Value::Array(_) | Value::Object(_) => seen.unclear_value(),
                    item => see(seen, item, false),
                }
            }
        }
        Value::Object(_) => seen.unclear_value(),
    }
}

/// A JSON pointer (RFC 6901), or the name of a member.
fn way(name: &str) -> Result<Box<[Box<str>]>, String> {
    let Some(pointer) = name.strip_prefix('/') else { return Ok([name.into()].into()) };
    let part = |part: &str| {
        let mut rest = part;
        while let Some((_, behind)) = rest.split_once('~') {
            if !behind.starts_with(['0', '1']) {
                return Err(format!(
                    "\"{}\": in a JSON pointer ~ is followed by 0 or 1 (RFC 6901)",
                    name.escape_debug()
                ));
            }
            rest = behind;
        }
        Ok(part.replace("~1", "/").replace("~0", "~").into())
    };
    pointer.split('/').map(part).collect()
}

/// A place in a list: digits without a leading zero.
fn place(text: &str) -> Option<usize> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok())?
}
