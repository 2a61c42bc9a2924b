//! Text that came from a log or a peer, made safe for a terminal.

use serde_json::Value;

/// The text with everything escaped that could move a cursor, change colours, or reorder or hide characters.
pub(super) fn safe(text: &str) -> String {
    text.chars()
        .flat_map(|char| {
            let hostile = char.is_control()
                || matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
            let escaped = hostile.then(|| char.escape_unicode());
            let plain = (!hostile).then_some(char);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// A field of a record as text, safe for a terminal; a number as its digits.
pub(super) fn field(record: &Value, pointer: &str) -> Option<String> {
    match record.pointer(pointer)? {
        Value::String(text) => Some(safe(text)),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_a_log_reaches_the_terminal_as_a_command() {
        assert_eq!(safe("/a b/ü"), "/a b/ü");
        assert_eq!(safe("\u{1b}[2J\n\u{202e}x"), "\\u{1b}[2J\\u{a}\\u{202e}x");
        let record = serde_json::json!({"src": {"addr": "a\rb"}, "status": 403, "o": {}});
        assert_eq!(field(&record, "/src/addr").unwrap(), "a\\u{d}b");
        assert_eq!(field(&record, "/status").unwrap(), "403");
        assert_eq!((field(&record, "/o"), field(&record, "/absent")), (None, None));
    }
}
