//! JSON that every reader reads alike.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Reads a body. RFC 8259 leaves open which of two members of one name counts: what was judged here could be another thing to the
/// application, so such an object is refused.
pub(super) fn read(body: &[u8]) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    Once.deserialize(&mut reader)?;
    reader.end()?;
    serde_json::from_slice(body)
}

/// Looks for members that come twice.
struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            members.next_value_seed(Self)?;
            if let Some(twice) = names.replace(name) {
                return Err(A::Error::custom(format_args!("the member '{twice}' comes twice")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_could_be_read_otherwise_is_refused() {
        let text = br#"{"a": [1, -2, 2.5, null, true, "x"], "b": {"a": 1}}"#;
        assert_eq!(read(text).unwrap(), json!({"a": [1, -2, 2.5, null, true, "x"], "b": {"a": 1}}));
        let deep = "[".repeat(10_000);
        for bad in [
            r#"{"a": 1, "a": 2}"#,
            r#"[{"b": {"a": 1, "\u0061": 2}}]"#,
            "{} {}",
            "",
            "{",
            "nan",
            &deep,
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
