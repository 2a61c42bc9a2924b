//! `Buffer`: bytes between a socket and a codec; `Buffers`: a worker's spare ones.

use parking_lot::Mutex;

/// What a buffer starts with: room for a whole record of TLS, which is then opened in it.
const FIRST: usize = 17 * 1024;
/// What it grows to while reads fill it.
const LARGEST: usize = 8 * FIRST;
/// Spare buffers that a worker keeps.
const SPARE: usize = 256;

/// Bytes that came and were not used yet, or that are to go and have not gone yet.
///
/// The memory behind is initialised once and stays so: no read clears it.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read left hardly any space.
    was_filled: bool,
    /// What was used is still in front.
    keeps: bool,
}

impl Buffer {
    /// What is in it.
    pub(in crate::proxy) fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(in crate::proxy) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// `count` bytes at the front were used.
    pub(in crate::proxy) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.start == self.end && !self.keeps {
            (self.start, self.end) = (0, 0);
        }
    }

    /// From here on what is put in can be had again by [`Buffer::kept`], used or not, as long as there is room for all of it.
    pub(in crate::proxy) fn keep(&mut self) {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        self.keeps = self.start == 0;
    }

    /// Something passed by the buffer, or nobody asks for what was used any more.
    pub(in crate::proxy) fn forget(&mut self) {
        self.keeps = false;
    }

    /// All that was put in since [`Buffer::keep`]; `None` when it did not fit.
    pub(in crate::proxy) fn kept(&self) -> Option<&[u8]> {
        self.keeps.then(|| &self.bytes[..self.end])
    }

    /// Where the next read goes: all that is free, made larger when the last read filled it. Empty at the bound.
    pub(in crate::proxy) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 && self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            self.keeps = false;
        }
        let full = self.end == self.bytes.len();
        if self.bytes.is_empty() {
            self.bytes.resize(FIRST, 0);
        } else if (full || self.was_filled) && self.bytes.len() < LARGEST {
            let length = (self.bytes.len() * 2).min(LARGEST);
            self.bytes.resize(length, 0);
            self.was_filled = false;
        }
        &mut self.bytes[self.end..]
    }

    /// A read put `count` bytes into the space.
    pub(in crate::proxy) fn filled(&mut self, count: usize) {
        self.end += count;
        // Of TLS it never takes quite all: records end before it.
        self.was_filled = self.bytes.len() - self.end < self.bytes.len() / 8;
    }

    /// Puts bytes behind what is there; grows as needed.
    pub(in crate::proxy) fn extend(&mut self, data: &[u8]) {
        let mut end = self.end + data.len();
        if end > self.bytes.len() && self.start > 0 {
            // What was used makes room first: a reader that never empties the buffer must not make it grow for ever.
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            self.keeps = false;
            end = self.end + data.len();
        }
        if end > self.bytes.len() {
            let length = end.next_power_of_two().max(FIRST);
            self.bytes.resize(length, 0);
        }
        self.bytes[self.end..end].copy_from_slice(data);
        self.end = end;
    }
}

/// A worker's spare buffers.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Buffers {
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// Gives `buffer` memory if it has none.
    pub(in crate::proxy) fn lend(&self, buffer: &mut Buffer) {
        if buffer.bytes.is_empty()
            && let Some(bytes) = self.spare.lock().pop()
        {
            buffer.bytes = bytes;
        }
    }

    /// Takes the memory of an empty buffer back.
    pub(in crate::proxy) fn give_back(&self, buffer: &mut Buffer) {
        let bytes = std::mem::take(&mut buffer.bytes);
        *buffer = Buffer::default();
        let mut spare = self.spare.lock();
        if bytes.len() == FIRST && spare.len() < SPARE {
            spare.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_keeps_what_was_not_used_grows_while_reads_fill_it_and_is_bounded() {
        let mut buffer = Buffer::default();
        assert_eq!(buffer.space().len(), FIRST);
        buffer.filled(FIRST);
        buffer.consume(FIRST - 3);
        assert_eq!(buffer.space().len(), 2 * FIRST - 3);
        assert_eq!(buffer.data().len(), 3);
        while !buffer.space().is_empty() {
            let count = buffer.space().len();
            buffer.filled(count);
        }
        assert_eq!(buffer.data().len(), LARGEST);
        buffer.consume(LARGEST);
        let buffers = Buffers::default();
        buffers.give_back(&mut buffer);
        assert!(buffers.spare.lock().is_empty(), "grown memory is freed, not kept");
        buffer.extend(b"abc");
        assert_eq!(buffer.data(), b"abc");
    }

    #[test]
    fn a_buffer_keeps_what_was_used_as_long_as_it_has_room_for_it() {
        let mut buffer = Buffer::default();
        buffer.extend(b"before");
        buffer.consume(6);
        buffer.keep();
        buffer.extend(b"head");
        buffer.consume(4);
        assert!(buffer.is_empty());
        buffer.extend(b"body");
        assert_eq!((buffer.data(), buffer.kept()), (&b"body"[..], Some(&b"headbody"[..])));
        buffer.extend(&[0; FIRST]);
        assert_eq!((buffer.data().len(), buffer.kept()), (FIRST + 4, None));
        buffer.consume(FIRST + 4);
        buffer.keep();
        buffer.extend(b"next");
        assert_eq!(buffer.kept(), Some(&b"next"[..]));
        buffer.forget();
        assert_eq!(buffer.kept(), None);
    }

    #[test]
    fn a_buffer_that_is_never_emptied_does_not_grow() {
        let mut buffer = Buffer::default();
        buffer.extend(&[0; FIRST]);
        for round in 0..1000_u32 {
            buffer.consume(FIRST - 4);
            buffer.extend(&[1; FIRST - 8]);
            buffer.extend(&round.to_be_bytes());
            assert_eq!(buffer.data().len(), FIRST);
        }
        assert!(buffer.bytes.len() <= 2 * FIRST, "{}", buffer.bytes.len());
        assert_eq!(buffer.data()[FIRST - 4..], 999_u32.to_be_bytes());
    }
}
