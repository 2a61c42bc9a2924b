//! Reading blocks of fields.

use super::table::Table;
use super::{TABLE_BYTES, huffman, known};

/// A block that is no HPACK: both sides' tables differ from here on, so the connection ends (RFC 9113 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// One field of a block.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Both are what RFC 9113 section 8.2.1 lets a field have.
    pub is_lawful: bool,
}

/// Reads the blocks of one direction of a connection, in their order.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// Where texts are unpacked: the name, and behind it the value.
    scratch: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: Table::new(TABLE_BYTES), scratch: Vec::new() }
    }
}

impl Decoder {
    /// Reads a whole block, and shows its fields in their order.
    ///
    /// # Errors
    /// It is no HPACK.
    pub fn read(&mut self, block: &[u8], see: &mut dyn FnMut(Read<'_>)) -> Result<(), Malformed> {
        let mut rest = block;
        let mut may_resize = true;
        while let Some(first) = rest.first().copied() {
            match first {
                0x80.. => {
                    see(self.indexed(integer(&mut rest, 7)?)?);
                }
                0x40..0x80 => self.literal(&mut rest, 6, true, see)?,
                0x20..0x40 => {
                    // RFC 7541 section 4.2: only where a block begins.
                    let limit = integer(&mut rest, 5)?;
                    if !may_resize || limit > TABLE_BYTES {
                        return Err(Malformed);
                    }
                    self.table.set_limit(limit);
                    continue;
                }
                ..0x20 => self.literal(&mut rest, 4, false, see)?,
            }
            may_resize = false;
        }
        Ok(())
    }

    /// The field with that index.
    fn indexed(&self, index: usize) -> Result<Read<'_>, Malformed> {
        let at = index.checked_sub(1).ok_or(Malformed)?;
        if let Some((name, value)) = known::FIELDS.get(at) {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            return Ok(Read { name, value, is_lawful: true });
        }
        let found = self.table.get(at - known::FIELDS.len()).ok_or(Malformed)?;
        Ok(Read { name: found.name, value: found.value, is_lawful: found.is_lawful })
    }

    fn literal(
        &mut self,
        rest: &mut &[u8],
        prefix: u32,
        is_kept: bool,
        see: &mut dyn FnMut(Read<'_>),
    ) -> Result<(), Malformed> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let outcome = self.literal_into(rest, prefix, is_kept, &mut scratch, see);
        if scratch.capacity() <= 16 * 1024 {
            self.scratch = scratch;
        }
        outcome
    }

    fn literal_into(
        &mut self,
        rest: &mut &[u8],
        prefix: u32,
        is_kept: bool,
        scratch: &mut Vec<u8>,
        see: &mut dyn FnMut(Read<'_>),
    ) -> Result<(), Malformed> {
        let index = integer(rest, prefix)?;
        // Names of entries are lawful or their entries are not; a new one is looked at here.
        let mut is_lawful;
        if index > 0 {
            let field = self.indexed(index)?;
            is_lawful = field.is_lawful || is_name(field.name);
            scratch.extend_from_slice(field.name);
        } else {
            text(rest, scratch)?;
            is_lawful = is_name(scratch);
        }
        let name_end = scratch.len();
        text(rest, scratch)?;
        let (name, value) = scratch.split_at(name_end);
        is_lawful &= is_value(value);
        if is_kept {
            self.table.insert(name, value, is_lawful);
        }
        see(Read { name, value, is_lawful });
        Ok(())
    }
}

/// An integer with a prefix of so many bits (RFC 7541 section 5.1), at most 2^28.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let (first, mut tail) = rest.split_first().ok_or(Malformed)?;
    let most = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & most;
    if value == most {
        let mut shift = 0;
        loop {
            let (next, behind) = tail.split_first().ok_or(Malformed)?;
            tail = behind;
            value += usize::from(next & 0x7f) << shift;
            shift += 7;
            if next & 0x80 == 0 {
                break;
            }
            if shift > 21 {
                return Err(Malformed);
            }
        }
    }
    *rest = tail;
    Ok(value)
}

/// A text (RFC 7541 section 5.2), added to `into`.
fn text(rest: &mut &[u8], into: &mut Vec<u8>) -> Result<(), Malformed> {
    let is_packed = rest.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (text, behind) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = behind;
    if is_packed {
        return huffman::decode(text, into);
    }
    into.extend_from_slice(text);
    Ok(())
}

/// Lower-case letters and what else a token has (RFC 9110 section 5.6.2); a colon may begin it.
fn is_name(name: &[u8]) -> bool {
    let name = name.strip_prefix(b":").unwrap_or(name);
    !name.is_empty() && name.iter().all(|byte| NAME[usize::from(*byte)])
}

/// Bytes that a name may have.
#[expect(clippy::cast_possible_truncation, reason = "it is below 256")]
static NAME: [bool; 256] = {
    let (mut found, mut byte) = ([false; 256], 0);
    while byte < 256 {
        found[byte] = matches!(byte as u8, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'^' | b'`' | b'|' | b'~');
        byte += 1;
    }
    found
};

/// Visible bytes, spaces and tabs inside (RFC 9110 section 5.5).
fn is_value(value: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !is_blank(value.first())
        && !is_blank(value.last())
        && value.iter().all(|byte| (*byte >= b' ' && *byte != 0x7f) || *byte == b'\t')
}

/// May a field be written so, its name in whatever case?
pub fn is_sendable(name: &[u8], value: &[u8]) -> bool {
    let bare = name.strip_prefix(b":").unwrap_or(name);
    let is_lawful = |byte: &u8| byte.is_ascii_uppercase() || NAME[usize::from(*byte)];
    !bare.is_empty() && bare.iter().all(is_lawful) && is_value(value)
}
