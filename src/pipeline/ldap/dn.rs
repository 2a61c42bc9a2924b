//! Values in distinguished names (RFC 4514).

/// A value as it stands in a distinguished name: whatever it is, it stays one value of one attribute.
/// ```
/// # use wardgate::pipeline::dn_escaped;
/// assert_eq!(dn_escaped("comma,user"), "comma\\,user");
/// assert_eq!(dn_escaped(" #a=b "), "\\ #a\\=b\\ ");
/// ```
pub fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, c) in value.chars().enumerate() {
        match c {
            // `=` need not be escaped, but APISIX does: what operators wrote as a consumer's name goes on being found.
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=' => out.extend(['\\', c]),
            '#' if at == 0 => out.extend(['\\', c]),
            ' ' if at == 0 || at == last => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\{:02X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_becomes_more_than_a_value() {
        for (value, expected) in [
            ("jane", "jane"),
            ("Jane Doe", "Jane Doe"),
            ("jane,ou=admins", "jane\\,ou\\=admins"),
            ("jane+uid=root", "jane\\+uid\\=root"),
            ("jane\\,ou=admins", "jane\\\\\\,ou\\=admins"),
            ("\"jane\"", "\\\"jane\\\""),
            ("<jane>;x", "\\<jane\\>\\;x"),
            ("#04024869", "\\#04024869"),
            ("a#b", "a#b"),
            (" ", "\\ "),
            ("  jane  ", "\\  jane \\ "),
            ("jane\0", "jane\\00"),
            ("jane\r\n", "jane\\0D\\0A"),
            ("žofie", "žofie"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(escaped(value), expected, "{value:?}");
        }
    }
}
