//! Texts of Cedar: literals, sets and patterns.

/// A text as a literal.
pub(super) fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for char in text.chars() {
        match char {
            '"' => literal.push_str("\\\""),
            '\\' => literal.push_str("\\\\"),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            char if char.is_control() => literal.push_str(&format!("\\u{{{:x}}}", u32::from(char))),
            char => literal.push(char),
        }
    }
    literal.push('"');
    literal
}

/// A pattern of `like`: these parts with a star between them.
pub(super) fn pattern(parts: &[&str]) -> String {
    let parts: Vec<String> = parts
        .iter()
        .map(|part| {
            let quoted = literal(part);
            quoted[1..quoted.len() - 1].replace('*', "\\*")
        })
        .collect();
    format!("\"{}\"", parts.join("*"))
}

/// A set of texts.
pub(super) fn set<T: AsRef<str>>(texts: &[T]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| literal(text.as_ref())).collect();
    format!("[{}]", texts.join(", "))
}

/// One of these holds.
pub(super) fn any(conditions: &[String]) -> String {
    match conditions {
        [one] => one.clone(),
        several => format!("({})", several.join(" || ")),
    }
}

/// All of these hold.
pub(super) fn all(conditions: &[String]) -> String {
    match conditions {
        [one] => one.clone(),
        several => format!("({})", several.join(" && ")),
    }
}
