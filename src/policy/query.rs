//! The query of a request: parameters by name, decoded.

use smallvec::SmallVec;

/// A decoded name or value; what is this long allocates nothing.
type Decoded = SmallVec<[u8; 128]>;

/// Can the query be read in one way only?
///
/// Not where an escape is malformed, what was encoded is no UTF-8, or a raw semicolon stands, which some programs take for `&`.
pub(super) fn is_clear(query: &str) -> bool {
    if !query.bytes().any(|byte| matches!(byte, b'%' | b';')) {
        return true;
    }
    if query.contains(';') {
        return false;
    }
    let clear = |part: &str| {
        !part.contains('%') || decode(part).is_some_and(|text| std::str::from_utf8(&text).is_ok())
    };
    parameters(query).all(|(name, value)| clear(name) && clear(value))
}

/// Shows each value of the parameter of that name, decoded, in a query that [`is_clear`].
pub(super) fn each(query: &str, name: &str, mut see: impl FnMut(&[u8])) {
    for (found, value) in parameters(query) {
        let is_meant = match is_plain(found) {
            true => found == name,
            false => decode(found).is_some_and(|found| *found == *name.as_bytes()),
        };
        if !is_meant {
            continue;
        }
        match is_plain(value) {
            true => see(value.as_bytes()),
            false => decode(value).iter().for_each(|value| see(value)),
        }
    }
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').unwrap_or((part, "")))
}

fn is_plain(part: &str) -> bool {
    !part.bytes().any(|byte| matches!(byte, b'%' | b'+'))
}

/// `None` when an escape is malformed.
fn decode(part: &str) -> Option<Decoded> {
    let mut out = Decoded::new();
    let mut bytes = part.bytes();
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            _ => byte,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(query: &str, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        each(query, name, |value| found.push(String::from_utf8(value.to_vec()).unwrap()));
        found
    }

    #[test]
    fn parameters_are_lists_of_decoded_values() {
        for (query, expected) in [
            ("", vec![]),
            ("b=1", vec![]),
            ("a=1", vec!["1"]),
            ("a=1&b=2&a=3", vec!["1", "3"]),
            ("a", vec![""]),
            ("a=", vec![""]),
            ("&&a=1&", vec!["1"]),
            ("a=1=2", vec!["1=2"]),
            ("%61=x%20y+z", vec!["x y z"]),
            ("a=%C3%A4", vec!["ä"]),
            ("A=1", vec![]),
            ("a%3D1=2", vec![]),
        ] {
            assert!(is_clear(query), "{query}");
            assert_eq!(values(query, "a"), expected, "{query}");
        }
    }

    #[test]
    fn what_reads_differently_is_unclear() {
        for query in ["a=%", "a=%4", "%zz=1", "b=%zz&a=1", "a=%c0%af", "a=%ff", "a=1;a=2"] {
            assert!(!is_clear(query), "{query}");
        }
    }
}
