//! Frames that go.

use super::super::frame;
use super::super::hpack::{Encoder, is_sendable};
use super::Core;

impl Core {
    /// Writes a block of fields.
    pub(in crate::rt::http2) fn write_block(
        &mut self,
        stream: u32,
        is_end: bool,
        write: &mut dyn FnMut(&mut Block<'_>),
    ) {
        let start = self.out.len();
        self.out.extend_from_slice(&[0; frame::HEAD]);
        self.encoder.begin(&mut self.out);
        write(&mut Block { encoder: &mut self.encoder, out: &mut self.out, left_out: b"" });
        let end = if is_end { frame::END_STREAM } else { 0 };
        let length = self.out.len() - start - frame::HEAD;
        if length <= self.peer.frame {
            let head = frame::head(length, frame::HEADERS, end | frame::END_HEADERS, stream);
            self.out[start..start + frame::HEAD].copy_from_slice(&head);
        } else {
            let block = self.out.split_off(start + frame::HEAD);
            self.out.truncate(start);
            let mut parts = block.chunks(self.peer.frame).peekable();
            let (mut kind, mut flags) = (frame::HEADERS, end);
            while let Some(part) = parts.next() {
                let last = if parts.peek().is_none() { frame::END_HEADERS } else { 0 };
                frame::write(&mut self.out, kind, flags | last, stream, part);
                (kind, flags) = (frame::CONTINUATION, 0);
            }
        }
        self.wake();
    }

    /// Takes as much of a body as may go out now; 0 when nothing may, and then the stream waits.
    pub(in crate::rt::http2) fn write_data(&mut self, at: u32, data: &[u8]) -> usize {
        let buffered = self.settings.send_buffer.saturating_sub(self.waiting());
        let Some(slot) = &mut self.slots[at as usize] else { return 0 };
        let room = self.send.room().min(slot.send.room()).min(buffered).min(self.peer.frame);
        let count = room.min(data.len());
        if count == 0 {
            if !self.blocked.contains(&at) {
                self.blocked.push(at);
            }
            return 0;
        }
        slot.last = Some((self.taken, self.out.len()));
        slot.send.take(count);
        self.send.take(count);
        frame::write(&mut self.out, frame::DATA, 0, slot.id, &data[..count]);
        self.wake();
        count
    }

    /// Ends what goes out on a stream: with its last frame if that has not gone yet, else with one more.
    pub(in crate::rt::http2) fn write_end(&mut self, at: u32) {
        let Some(slot) = &mut self.slots[at as usize] else { return };
        slot.is_sent = true;
        match slot.last.take().filter(|(taken, _)| *taken == self.taken) {
            Some((_, place)) => self.out[place + 4] |= frame::END_STREAM,
            None => frame::write(&mut self.out, frame::DATA, frame::END_STREAM, slot.id, &[]),
        }
        self.wake();
        self.settle(at);
    }

    /// More may go out: whoever waits tries again.
    pub(super) fn unblock(&mut self) {
        for at in std::mem::take(&mut self.blocked) {
            if let Some(slot) = &mut self.slots[at as usize] {
                slot.wake();
            }
        }
    }
}

/// A block of fields that is being written.
pub struct Block<'a> {
    encoder: &'a mut Encoder,
    out: &'a mut Vec<u8>,
    left_out: &'static [u8],
}

impl Block<'_> {
    /// Adds a field; its name is written in lower case. One that no wire may carry is left out.
    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        let is_left_out = !self.left_out.is_empty() && name.eq_ignore_ascii_case(self.left_out);
        if !is_left_out && is_sendable(name, value) {
            self.encoder.field(self.out, name, value, is_secret(name));
        }
    }

    /// Fields of that name that come further on are left out.
    pub fn leave_out(&mut self, name: &'static [u8]) {
        self.left_out = name;
    }
}

/// Credentials get into no table: who can guess at what is in one could find them out.
fn is_secret(name: &[u8]) -> bool {
    let is = |secret: &str| name.eq_ignore_ascii_case(secret.as_bytes());
    match name.len() {
        6 => is("cookie"),
        10 => is("set-cookie"),
        13 => is("authorization"),
        19 => is("proxy-authorization"),
        _ => false,
    }
}
