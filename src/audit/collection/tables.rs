//! How the archive lies on the disk.
//!
//! Records lie in segments: tables of their own for each, so that the oldest can be dropped whole. What is indexed is one key a
//! value: field, digest of the value, time and number, so that one value's records lie in the order of time.

use redb::TableDefinition;
use serde::{Deserialize, Serialize};

use super::super::record::Record;
use crate::rt::crypto::digest::{SHA256, digest};

/// The layout of this file.
pub(super) const FORMAT: u64 = 1;

/// Names to numbers: format, next record, next chain, next finding.
pub(super) const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// Chain to [`ChainFacts`] as JSON.
pub(super) const CHAINS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("chains");
/// Segment to [`Segment`].
pub(super) const SEGMENTS: TableDefinition<'_, u32, SegmentRow> = TableDefinition::new("segments");
/// Chain and number of a seal to its countersignature as JSON, without certificates.
pub(super) const COUNTERSIGNATURES: TableDefinition<'_, (u32, u64), &[u8]> =
    TableDefinition::new("countersignatures");
/// Number to [`Alarm`] as JSON.
pub(super) const FINDINGS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("findings");
/// What a finding is about, so that nothing is told twice.
pub(super) const TOLD: TableDefinition<'_, &str, ()> = TableDefinition::new("told");

/// First and last record, bytes, earliest and latest time, when it was begun.
pub(super) type SegmentRow = (u64, u64, u64, u64, u64, u64);
/// Chain, number in it, time, line.
pub(super) type RecordRow<'r> = (u32, u64, u64, &'r [u8]);
/// Field, digest, time, number.
pub(super) type IndexKey = [u8; 25];

/// The names of a segment's tables.
pub(super) struct Names {
    records: String,
    index: String,
    places: String,
    certificates: String,
}

impl Names {
    pub(super) fn of(segment: u32) -> Self {
        Self {
            records: format!("records-{segment:08}"),
            index: format!("index-{segment:08}"),
            places: format!("places-{segment:08}"),
            certificates: format!("certificates-{segment:08}"),
        }
    }

    /// Number to record.
    pub(super) fn records(&self) -> TableDefinition<'_, u64, RecordRow<'static>> {
        TableDefinition::new(&self.records)
    }

    /// Index keys.
    pub(super) fn index(&self) -> TableDefinition<'_, &'static IndexKey, ()> {
        TableDefinition::new(&self.index)
    }

    /// Chain and number in it to number.
    pub(super) fn places(&self) -> TableDefinition<'_, (u32, u64), u64> {
        TableDefinition::new(&self.places)
    }

    /// SHA-256 of a leaf, in hexadecimal, to its chain: JSON, base64 of DER, leaf first. All that the segment's seals name.
    pub(super) fn certificates(&self) -> TableDefinition<'_, &'static str, &'static [u8]> {
        TableDefinition::new(&self.certificates)
    }
}

/// A part of the archive that is dropped whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) first: u64,
    /// One behind the last record.
    pub(super) end: u64,
    pub(super) bytes: u64,
    pub(super) earliest: u64,
    pub(super) latest: u64,
    pub(super) begun: u64,
}

impl Segment {
    pub(super) fn begin(first: u64, now: u64) -> Self {
        Self { first, end: first, bytes: 0, earliest: u64::MAX, latest: 0, begun: now }
    }

    pub(super) fn row(&self) -> SegmentRow {
        (self.first, self.end, self.bytes, self.earliest, self.latest, self.begun)
    }

    pub(super) fn of((first, end, bytes, earliest, latest, begun): SegmentRow) -> Self {
        Self { first, end, bytes, earliest, latest, begun }
    }
}

/// What a record is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Field {
    Time,
    Origin,
    Src,
    Dst,
    Denial,
    Route,
    /// Types other than `decision`.
    Kind,
    Reason,
    /// What was refused.
    Denied,
}

/// Field and digest: what the keys of one value have in common.
pub(super) type Value = [u8; 9];

/// The common part of the keys of all records whose field has this value.
pub(super) fn value(field: Field, text: &str) -> Value {
    let mut key = [0; 9];
    // The field's number is its place in the enum.
    key[0] = field as u8;
    if !text.is_empty() {
        key[1..].copy_from_slice(&digest(&SHA256, text.as_bytes()).as_ref()[..8]);
    }
    key
}

/// A value's key for the record `number` of this time.
pub(super) fn key(value: &Value, time: u64, number: u64) -> IndexKey {
    let mut key = [0; 25];
    key[..9].copy_from_slice(value);
    key[9..17].copy_from_slice(&time.to_be_bytes());
    key[17..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Time and number of an index key.
pub(super) fn place(key: &IndexKey) -> (u64, u64) {
    let number = |from: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&key[from..from + 8]);
        u64::from_be_bytes(bytes)
    };
    (number(9), number(17))
}

/// What a record of this origin and type is found by.
pub(super) fn values(origin: &str, kind: &str, record: Option<&Record>) -> Vec<Value> {
    let mut values = vec![value(Field::Time, ""), value(Field::Origin, origin)];
    if kind != "decision" {
        values.push(value(Field::Kind, kind));
    }
    let Some(record) = record else { return values };
    let mut add = |field, text: Option<&str>| {
        if let Some(text) = text {
            values.push(value(field, text));
        }
    };
    add(Field::Src, record.caller_id());
    add(Field::Dst, record.dst.spiffe_id.as_deref());
    add(Field::Denial, record.denial_id.as_deref());
    add(Field::Route, record.route_id.as_deref());
    add(Field::Reason, record.reason.as_deref());
    add(Field::Denied, record.outcome.as_deref().filter(|outcome| *outcome == "deny").map(|_| ""));
    values
}

/// One chain of one origin, as the archive has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainFacts {
    /// Its number in this archive.
    pub chain: u32,
    /// Whose log: the SPIFFE ID that its certificate proved.
    pub origin: String,
    /// The node that it named.
    pub node: String,
    /// The first record that came.
    pub first_seq: u64,
    /// Its hash.
    pub first_hash: String,
    /// The first record that is still kept.
    pub kept_from: u64,
    /// The newest record.
    pub head_seq: u64,
    /// Its hash: what comes next must bear it.
    pub head_hash: String,
    /// When the first record was written.
    pub first_time: String,
    /// When the newest record was written.
    pub head_time: String,
    /// Records that came.
    pub records: u64,
    /// The newest seal that holds; 0 for none.
    pub sealed: u64,
    /// The newest seal that was countersigned; 0 for none.
    pub countersigned: u64,
    /// The chain of this origin that it departs from, when it does.
    pub departs_from: Option<u32>,
    /// What is wrong with it, so many times.
    pub findings: u64,
}

/// Something that is wrong with what came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// When it was found: RFC 3339.
    pub time: String,
    /// Whose log.
    pub origin: String,
    /// On which node.
    pub node: String,
    /// Which chain, as far as that is known.
    pub chain: Option<u32>,
    /// `gap`, `rewritten`, `begun_anew`, `bad_seal`, `unreadable`, `too_many_chains`.
    pub code: String,
    /// The first record that it is about.
    pub seq: u64,
    /// The last record that it is about.
    pub to_seq: u64,
    /// A sentence for people.
    pub what: String,
}

impl Alarm {
    /// What it is about: nothing is told twice.
    pub(super) fn about(&self) -> String {
        let Self { origin, node, chain, code, seq, .. } = self;
        format!("{code} {} {seq} {origin} {node}", chain.unwrap_or_default())
    }
}
