//! Writing blocks of fields.

#![expect(clippy::cast_possible_truncation, reason = "parts of numbers, and of hashes")]

use std::hash::{BuildHasher, Hasher};

use super::table::Table;
use super::{TABLE_BYTES, huffman, known};

/// Fields that are longer are not kept for later blocks.
const LONGEST: usize = 512;
/// Places in which fields of the table are looked for.
const PLACES: usize = 128;

/// Writes the blocks of one direction of a connection, in their order.
pub struct Encoder {
    table: Table,
    /// The peer's limit has changed: the next block says so first. The least since the last block, and the last.
    resize: Option<(usize, usize)>,
    /// By the field's hash: the number of the entry that has it.
    entries: [u32; PLACES],
    /// Hashes of fields that were written once: what comes a second time is kept.
    once: [u32; PLACES],
    state: foldhash::fast::RandomState,
    name: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            table: Table::new(TABLE_BYTES),
            resize: None,
            entries: [0; PLACES],
            once: [0; PLACES],
            state: foldhash::fast::RandomState::default(),
            name: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Encoder {
    /// The peer's table has so many bytes from now on (SETTINGS_HEADER_TABLE_SIZE).
    pub fn set_limit(&mut self, limit: usize) {
        let limit = limit.min(TABLE_BYTES);
        let (least, last) = self.resize.unwrap_or((self.table.limit(), self.table.limit()));
        if limit != last || self.resize.is_some() {
            self.resize = Some((least.min(limit), limit));
        }
    }

    /// Begins a block.
    pub fn begin(&mut self, into: &mut Vec<u8>) {
        let Some((least, last)) = self.resize.take() else { return };
        if least < last {
            integer(into, 0x20, 5, least);
            self.table.set_limit(least);
        }
        integer(into, 0x20, 5, last);
        self.table.set_limit(last);
    }

    /// Writes a field. A secret one is in no table, nor may it get into one further on (RFC 7541 section 7.1.3).
    pub fn field(&mut self, into: &mut Vec<u8>, name: &[u8], value: &[u8], is_secret: bool) {
        if name.iter().any(u8::is_ascii_uppercase) {
            let mut lower = std::mem::take(&mut self.name);
            lower.clear();
            lower.extend(name.iter().map(u8::to_ascii_lowercase));
            self.lower(into, &lower, value, is_secret);
            self.name = lower;
        } else {
            self.lower(into, name, value, is_secret);
        }
    }

    fn lower(&mut self, into: &mut Vec<u8>, name: &[u8], value: &[u8], is_secret: bool) {
        if is_secret || name.len() + value.len() > LONGEST {
            let prefix = if is_secret { 0x10 } else { 0 };
            return self.literal(into, prefix, 4, name, value);
        }
        if let Some(index) = known::whole(name, value) {
            return integer(into, 0x80, 7, index);
        }
        let hash = self.hash(name, value);
        let place = hash as usize % PLACES;
        if let Some(index) = self.index_of(self.entries[place], name, value) {
            return integer(into, 0x80, 7, known::FIELDS.len() + 1 + index);
        }
        if self.once[place] != hash || self.table.limit() == 0 {
            self.once[place] = hash;
            return self.literal(into, 0, 4, name, value);
        }
        self.literal(into, 0x40, 6, name, value);
        self.table.insert(name, value, true);
        self.entries[place] = u32::try_from(self.table.inserted()).unwrap_or(0);
    }

    fn hash(&self, name: &[u8], value: &[u8]) -> u32 {
        let mut hasher = self.state.build_hasher();
        hasher.write(name);
        hasher.write(value);
        let hash = hasher.finish();
        // 0 stands for none.
        ((hash ^ (hash >> 32)) as u32).max(1)
    }

    /// The index of the entry with that number, if it is still there and is this field.
    fn index_of(&self, number: u32, name: &[u8], value: &[u8]) -> Option<usize> {
        if number == 0 {
            return None;
        }
        let index = usize::try_from(self.table.inserted().checked_sub(number.into())?).ok()?;
        let found = self.table.get(index)?;
        (found.name == name && found.value == value).then_some(index)
    }

    fn literal(&self, into: &mut Vec<u8>, prefix: u8, bits: u32, name: &[u8], value: &[u8]) {
        match known::named(name) {
            Some(index) => integer(into, prefix, bits, index),
            None => {
                into.push(prefix);
                text(into, name);
            }
        }
        text(into, value);
    }
}

fn integer(into: &mut Vec<u8>, first: u8, bits: u32, value: usize) {
    let most = (1_usize << bits) - 1;
    if value < most {
        return into.push(first | value as u8);
    }
    into.push(first | most as u8);
    let mut left = value - most;
    while left >= 0x80 {
        into.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    into.push(left as u8);
}

fn text(into: &mut Vec<u8>, text: &[u8]) {
    let packed = huffman::length(text);
    if packed < text.len() {
        integer(into, 0x80, 7, packed);
        huffman::encode(text, into);
    } else {
        integer(into, 0, 7, text.len());
        into.extend_from_slice(text);
    }
}
