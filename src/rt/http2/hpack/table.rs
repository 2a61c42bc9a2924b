//! A dynamic table (RFC 7541 section 2.3.2): the newest field has the lowest index, the oldest goes first.

use std::collections::VecDeque;

/// Bytes of a dynamic table, as both sides begin with (RFC 9113 section 6.5.2); neither of ours ever grows beyond it.
pub const TABLE_BYTES: usize = 4096;

/// Bytes that count for an entry besides its name and value.
const OVERHEAD: usize = 32;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where its name begins, among all bytes that were ever put in; its value follows.
    start: u64,
    name: u32,
    value: u32,
    /// The name and the value are what fields may have.
    is_lawful: bool,
}

impl Entry {
    fn size(self) -> usize {
        self.name as usize + self.value as usize + OVERHEAD
    }
}

/// The entries, and their bytes in one place: the gone ones are removed from its front in large steps.
#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    bytes: Vec<u8>,
    /// The number of bytes before the first one in `bytes`.
    before: u64,
    size: usize,
    limit: usize,
    /// How many were ever put in.
    inserted: u64,
}

/// A field of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) is_lawful: bool,
}

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        let (entries, bytes) = Default::default();
        Self { entries, bytes, before: 0, size: 0, limit, inserted: 0 }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// How many fields were ever put in: the newest one's number.
    pub(super) fn inserted(&self) -> u64 {
        self.inserted
    }

    /// The field with that index among the table's own, from 0.
    pub(super) fn get(&self, index: usize) -> Option<Found<'_>> {
        let entry = self.entries.get(index)?;
        let start = usize::try_from(entry.start - self.before).ok()?;
        let middle = start + entry.name as usize;
        Some(Found {
            name: &self.bytes[start..middle],
            value: &self.bytes[middle..middle + entry.value as usize],
            is_lawful: entry.is_lawful,
        })
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.make_room(0);
    }

    /// Removes the oldest until so many bytes fit. `false` when they never do.
    fn make_room(&mut self, size: usize) -> bool {
        while self.size + size > self.limit {
            let Some(oldest) = self.entries.pop_back() else { return false };
            self.size -= oldest.size();
        }
        true
    }

    /// Puts a field in, and others out. One that is larger than the table empties it (RFC 7541 section 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8], is_lawful: bool) {
        self.inserted += 1;
        let (Ok(name_length), Ok(value_length)) = (name.len().try_into(), value.len().try_into())
        else {
            return;
        };
        if !self.make_room(name.len() + value.len() + OVERHEAD) {
            return;
        }
        let start = self.before + self.bytes.len() as u64;
        let kept_from = self.entries.back().map_or(start, |oldest| oldest.start);
        let gone = usize::try_from(kept_from - self.before).unwrap_or(0);
        if gone >= 2 * TABLE_BYTES {
            self.bytes.drain(..gone);
            self.before = kept_from;
        }
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        let entry = Entry { start, name: name_length, value: value_length, is_lawful };
        self.size += entry.size();
        self.entries.push_front(entry);
    }
}
