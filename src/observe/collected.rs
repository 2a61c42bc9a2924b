//! What a control plane notes about the logs that it collects.

use super::json::Fields;
use super::record::{Record, Type};
use super::redact::Redaction;

/// Something about a collected log, or about the archive that it lies in.
#[derive(Clone, Copy, Debug)]
pub struct CollectionRecord<'a> {
    /// `alarm`: a log is not what was written. `retired`: records were deleted because they were old, or too many.
    pub event: &'a str,
    /// Of an alarm: `gap`, `rewritten`, `begun_anew`, `bad_seal`, `unreadable`, `too_many_chains`.
    pub code: Option<&'a str>,
    /// Whose log.
    pub origin: Option<&'a str>,
    /// On which node.
    pub node: Option<&'a str>,
    /// The first and the last record that it is about.
    pub seqs: Option<(u64, u64)>,
    /// How many records.
    pub records: Option<u64>,
    /// A sentence for people.
    pub detail: Option<&'a str>,
}

impl Record for CollectionRecord<'_> {
    const TYPE: Type = Type::Loss;

    fn is_reserved(&self) -> bool {
        true
    }

    fn write(&self, fields: &mut Fields<'_>, _: &Redaction) {
        fields.text("event", self.event);
        fields.some_text("alarm", self.code);
        fields.some_text("origin", self.origin);
        fields.some_text("node", self.node);
        fields.some_number("from_seq", self.seqs.map(|(from, _)| from));
        fields.some_number("to_seq", self.seqs.map(|(_, to)| to));
        fields.some_number("records", self.records);
        fields.some_text("detail", self.detail);
    }
}
