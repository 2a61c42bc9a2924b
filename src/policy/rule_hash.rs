//! What a rule says, in sixteen digits: the decision log names by it the text that decided, whatever becomes of it later.

use std::io;

use serde::Serialize;

use crate::model::{From, Mode, PolicyAction, PolicyRule, To, When};
use crate::rt::crypto::digest::{Context, SHA256};

/// What counts of a rule: not its name, and its mode as it is in force.
#[derive(Serialize)]
struct Said<'r> {
    action: PolicyAction,
    mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'r From>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'r To>,
    #[serde(skip_serializing_if = "Option::is_none")]
    when: Option<&'r When>,
}

/// The first 16 digits of the SHA-256 of `{"action","mode","from","to","when"}`: JSON without blanks, fields in the order of the
/// schema, absent ones left out. `mode` is the rule's own, else its policy's.
pub(super) fn of(action: PolicyAction, mode: Mode, rule: &PolicyRule) -> Box<str> {
    let PolicyRule { from, to, when, name: _, mode: _ } = rule;
    let said = Said { action, mode, from: from.as_ref(), to: to.as_ref(), when: when.as_ref() };
    let mut digesting = Digesting(Context::new(&SHA256));
    serde_json::to_writer(&mut digesting, &said).expect("a rule is JSON, and a digest takes all");
    hex::encode(&digesting.0.finish().as_ref()[..8]).into()
}

struct Digesting(Context);

impl io::Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_is_known_by_what_it_says_and_not_by_its_name() {
        let hash = |action, mode, text| of(action, mode, &serde_json::from_value(text).unwrap());
        let read =
            || json!({"from": {"principals": ["spiffe://shop/web"]}, "to": {"methods": ["GET"]}});
        let of_read = hash(PolicyAction::Allow, Mode::Enforce, read());
        let text = r#"{"action":"allow","mode":"enforce","from":{"principals":["spiffe://shop/web"]},"to":{"methods":["GET"]}}"#;
        let by_hand = crate::rt::crypto::digest::digest(&SHA256, text.as_bytes());
        assert_eq!(*of_read, hex::encode(by_hand)[..16]);

        let mut named = read();
        named["name"] = "read".into();
        // Its own mode was taken account of by who calls.
        named["mode"] = "observe".into();
        assert_eq!(hash(PolicyAction::Allow, Mode::Enforce, named), of_read);
        let mut other = read();
        other["to"]["methods"] = json!(["GET", "PUT"]);
        for changed in [
            hash(PolicyAction::Deny, Mode::Enforce, read()),
            hash(PolicyAction::Allow, Mode::Canary(10), read()),
            hash(PolicyAction::Allow, Mode::Enforce, other),
        ] {
            assert_ne!(changed, of_read);
        }
    }
}
