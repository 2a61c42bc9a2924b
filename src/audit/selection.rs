//! `Selection`: which records an output gets.

use crate::observe::{LineFacts, record_types};

/// Which records of the log are handed over. Records of what was lost always are: whoever gets a part shall know of that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    types: Box<[String]>,
    only_denied: bool,
}

impl Selection {
    /// Records of these types, or of all when none is named; `only_denied` those alone that tell of a refusal.
    ///
    /// # Errors
    /// There is no such type; the sentence names it.
    pub fn new(types: &[String], only_denied: bool) -> Result<Self, String> {
        if let Some(stranger) = types.iter().find(|name| !record_types().any(|one| one == **name)) {
            let known: Vec<&str> = record_types().collect();
            return Err(format!(
                "{stranger:?} is no type of record; expected {}",
                known.join(", ")
            ));
        }
        Ok(Self { types: types.into(), only_denied })
    }

    /// Is this record wanted?
    pub(super) fn admits(&self, facts: &LineFacts) -> bool {
        if facts.kind == "loss" {
            return true;
        }
        let is_of_type = self.types.is_empty() || self.types.contains(&facts.kind);
        is_of_type && (!self.only_denied || facts.outcome.as_deref() == Some("deny"))
    }
}
