//! Frames that come: what they change, and what the peer must not do.

use std::task::Waker;

use super::super::frame::{self, FrameHead, LARGEST};
use super::super::{Error, Fields, Reason};
use super::{
    CONTINUED, Core, FAREWELL, Fatal, INTERIM, Leaving, Pending, Request, narrow, protocol,
};

/// What a block says besides its fields.
struct Unpacked {
    fields: Fields,
    is_lawful: bool,
    is_too_large: bool,
    length: Option<u64>,
}

impl Core {
    /// Takes one frame in; `Some` is a new request.
    pub(in crate::rt::http2) fn take(
        &mut self,
        head: FrameHead,
        payload: &[u8],
    ) -> Result<Option<Request>, Fatal> {
        if self.pending.is_some() && head.kind != frame::CONTINUATION {
            return Err(protocol("a block of fields was broken off"));
        }
        if !self.peer.is_settled && head.kind != frame::SETTINGS {
            return Err(protocol("the first frame is not SETTINGS"));
        }
        match head.kind {
            frame::DATA => self.data(head, payload)?,
            frame::HEADERS => return self.headers(head, payload),
            frame::CONTINUATION => return self.continuation(head, payload),
            frame::PRIORITY => self.priority(head, payload)?,
            frame::RST_STREAM => self.was_reset(head, payload)?,
            frame::SETTINGS => self.configured(head, payload)?,
            frame::PUSH_PROMISE => return Err(protocol("a push that nobody allowed")),
            frame::PING => self.ping(head, payload)?,
            frame::GOAWAY => self.goodbye(head, payload)?,
            frame::WINDOW_UPDATE => self.window(head, payload)?,
            _ => self.idle()?,
        }
        Ok(None)
    }

    fn data(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream == 0 {
            return Err(protocol("DATA on no stream"));
        }
        if !self.receive.take(payload.len()) {
            return Err(Fatal(Reason::FLOW_CONTROL_ERROR, "more data than the window"));
        }
        let body = unpadded(head, payload)?;
        let Some(at) = self.ids.get(&head.stream).copied() else {
            self.give_back(payload.len());
            return self.on_no_stream(head.stream, false);
        };
        let Some(slot) = &mut self.slots[at as usize] else { return Ok(()) };
        let is_end = head.has(frame::END_STREAM);
        let wrong = if slot.is_received {
            Some((Reason::STREAM_CLOSED, "data behind the end"))
        } else if !slot.receive.take(payload.len()) {
            Some((Reason::FLOW_CONTROL_ERROR, "more data than the stream's window"))
        } else if !slot.has_head {
            Some((Reason::PROTOCOL_ERROR, "data before the head"))
        } else if slot.left.is_some_and(|left| left < body.len() as u64) {
            Some((Reason::PROTOCOL_ERROR, "the body is longer than announced"))
        } else if is_end && slot.left.is_some_and(|left| left > body.len() as u64) {
            Some((Reason::PROTOCOL_ERROR, "the body is shorter than announced"))
        } else {
            None
        };
        if let Some((reason, what)) = wrong {
            self.give_back(payload.len());
            self.reset(at, reason, Error::Broken(what));
            return Ok(());
        }
        if let Some(left) = &mut slot.left {
            *left -= body.len() as u64;
        }
        slot.data.extend_from_slice(body);
        slot.is_received = is_end;
        slot.wake();
        if payload.len() > body.len() {
            self.used(at, payload.len() - body.len());
        }
        if is_end {
            self.settle(at);
        }
        if body.is_empty() && !is_end {
            return self.idle();
        }
        self.is_useful();
        Ok(())
    }

    fn headers(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Request>, Fatal> {
        if head.stream == 0 || head.stream.is_multiple_of(2) {
            return Err(protocol("HEADERS on a stream that a client may not open"));
        }
        let mut block = unpadded(head, payload)?;
        let mut depends_on_itself = false;
        if head.has(frame::WITH_PRIORITY) {
            let rest = block.get(5..);
            depends_on_itself = frame::number(block) & 0x7fff_ffff == head.stream;
            block = rest.ok_or(Fatal(Reason::FRAME_SIZE_ERROR, "HEADERS without its priority"))?;
        }
        let is_end = head.has(frame::END_STREAM);
        if head.has(frame::END_HEADERS) {
            return self.block(head.stream, is_end, depends_on_itself, block);
        }
        self.pending = Some(Pending {
            stream: head.stream,
            is_end,
            depends_on_itself,
            bytes: block.to_vec(),
            frames: 0,
        });
        Ok(None)
    }

    fn continuation(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Request>, Fatal> {
        let Some(mut pending) = self.pending.take().filter(|one| one.stream == head.stream) else {
            return Err(protocol("CONTINUATION of nothing"));
        };
        pending.frames += 1;
        pending.bytes.extend_from_slice(payload);
        // Packed, a block is shorter than its fields; what goes beyond that is refused before it is there.
        let most = self.settings.list_size.max(LARGEST);
        if pending.frames > CONTINUED || pending.bytes.len() > most {
            return Err(Fatal(Reason::ENHANCE_YOUR_CALM, "a block of fields without end"));
        }
        if !head.has(frame::END_HEADERS) {
            self.pending = Some(pending);
            return Ok(None);
        }
        self.block(pending.stream, pending.is_end, pending.depends_on_itself, &pending.bytes)
    }

    /// Unpacks a block, whatever becomes of it: later ones rest on it.
    fn unpack(&mut self, block: &[u8]) -> Result<Unpacked, Fatal> {
        let mut fields = self.spare.pop().unwrap_or_default();
        let (mut size, mut is_lawful, mut lengths) = (0_usize, true, 0);
        let mut length = None;
        let mut is_behind = false;
        let limit = self.settings.list_size;
        let read = self.decoder.read(block, &mut |field| {
            size = size.saturating_add(field.name.len() + field.value.len() + 32);
            if size > limit {
                return;
            }
            let is_pseudo = field.name.first() == Some(&b':');
            is_lawful &= field.is_lawful && !(is_pseudo && is_behind);
            is_behind |= !is_pseudo;
            if field.name == b"content-length" {
                lengths += 1;
                length = whole_number(field.value);
                is_lawful &= length.is_some() && lengths == 1;
            }
            fields.push(field.name, field.value);
        });
        read.map_err(|_| Fatal(Reason::COMPRESSION_ERROR, "a block of fields is no HPACK"))?;
        Ok(Unpacked { fields, is_lawful, is_too_large: size > limit, length })
    }

    fn block(
        &mut self,
        stream: u32,
        is_end: bool,
        depends_on_itself: bool,
        block: &[u8],
    ) -> Result<Option<Request>, Fatal> {
        let mut unpacked = self.unpack(block)?;
        unpacked.is_lawful &= !depends_on_itself;
        match self.ids.get(&stream).copied() {
            Some(at) => {
                self.is_useful();
                self.further(at, is_end, unpacked);
                Ok(None)
            }
            None if self.is_server && stream > self.peer_last => {
                self.is_useful();
                self.peer_last = stream;
                Ok(self.begun(stream, is_end, unpacked))
            }
            None => {
                self.recycle(unpacked.fields);
                self.on_no_stream(stream, true)?;
                Ok(None)
            }
        }
    }

    /// A request begins.
    fn begun(&mut self, stream: u32, is_end: bool, unpacked: Unpacked) -> Option<Request> {
        let is_full = self.open >= self.settings.streams as usize;
        let is_late = self.leaving == Leaving::Final || self.failed.is_some();
        let refused = if is_full || is_late {
            Some(Reason::REFUSED_STREAM)
        } else if unpacked.is_too_large {
            self.answer_too_large(stream);
            (!is_end).then_some(Reason::NO_ERROR)
        } else if !unpacked.is_lawful
            || (is_end && unpacked.length.is_some_and(|length| length > 0))
        {
            Some(Reason::PROTOCOL_ERROR)
        } else {
            let at = self.enter(stream, unpacked.length.filter(|_| !is_end));
            if let Some(slot) = &mut self.slots[at as usize] {
                (slot.has_head, slot.is_received) = (true, is_end);
            }
            return Some(Request { slot: at, fields: unpacked.fields, is_ended: is_end });
        };
        if let Some(reason) = refused {
            self.write_reset(stream, reason);
        }
        self.recycle(unpacked.fields);
        None
    }

    /// 431 (RFC 6585 section 5), which is all that a client needs.
    fn answer_too_large(&mut self, stream: u32) {
        self.write_block(stream, true, &mut |block| block.field(b":status", b"431"));
    }

    /// A response's head, or trailers.
    fn further(&mut self, at: u32, is_end: bool, unpacked: Unpacked) {
        let Unpacked { fields, is_lawful, is_too_large, length } = unpacked;
        let Some(slot) = &mut self.slots[at as usize] else { return };
        let is_trailers = slot.has_head;
        let status = fields.get(b":status").and_then(whole_number).unwrap_or(0);
        let is_interim = !is_trailers && (100..200).contains(&status);
        let wrong = if slot.is_received {
            Some((Reason::STREAM_CLOSED, "fields behind the end"))
        } else if is_too_large {
            Some((Reason::PROTOCOL_ERROR, "more fields than are taken"))
        } else if !is_lawful {
            Some((Reason::PROTOCOL_ERROR, "fields that none may have"))
        } else if is_trailers && (!is_end || fields.iter().any(|(name, _)| name.starts_with(b":")))
        {
            Some((Reason::PROTOCOL_ERROR, "fields in the middle of a body"))
        } else if is_trailers && slot.left.is_some_and(|left| left > 0) {
            Some((Reason::PROTOCOL_ERROR, "the body is shorter than announced"))
        } else if !is_trailers && !(100..=999).contains(&status) {
            Some((Reason::PROTOCOL_ERROR, "a response without its status"))
        } else if is_interim && (is_end || status == 101 || slot.interim.len() >= INTERIM) {
            Some((Reason::PROTOCOL_ERROR, "an interim response that is none"))
        } else {
            let is_bodiless = slot.is_bodiless || matches!(status, 204 | 304);
            let missing = is_end && !is_bodiless && length.is_some_and(|length| length > 0);
            (!is_trailers && !is_interim && missing)
                .then_some((Reason::PROTOCOL_ERROR, "the body is shorter than announced"))
        };
        if let Some((reason, what)) = wrong {
            self.recycle(fields);
            self.reset(at, reason, Error::Broken(what));
            return;
        }
        if is_trailers {
            slot.trailers = Some(fields);
        } else if is_interim {
            slot.interim.push_back(fields);
        } else {
            slot.has_head = true;
            slot.left = match slot.is_bodiless || matches!(status, 204 | 304) {
                true => Some(0),
                false => length,
            };
            slot.head = Some(fields);
        }
        slot.is_received = is_end;
        slot.wake();
        if is_end {
            self.settle(at);
        }
    }

    /// A frame for a stream that is not there (RFC 9113 section 5.1).
    fn on_no_stream(&mut self, stream: u32, is_headers: bool) -> Result<(), Fatal> {
        let was_there = match self.is_server {
            true => stream <= self.peer_last && !stream.is_multiple_of(2),
            false => stream < self.own_next && !stream.is_multiple_of(2),
        };
        if !was_there {
            return Err(protocol("a frame of a stream that was not begun"));
        }
        if !self.forgotten.contains(&stream) {
            if is_headers {
                return Err(Fatal(Reason::STREAM_CLOSED, "fields on a stream that is over"));
            }
            self.write_reset(stream, Reason::STREAM_CLOSED);
        }
        self.idle()
    }

    fn priority(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream == 0 {
            return Err(protocol("PRIORITY of no stream"));
        }
        let depends_on_itself = frame::number(payload) & 0x7fff_ffff == head.stream;
        if payload.len() != 5 || depends_on_itself {
            let (reason, what) = match payload.len() {
                5 => (Reason::PROTOCOL_ERROR, "a stream that depends on itself"),
                _ => (Reason::FRAME_SIZE_ERROR, "PRIORITY of another length"),
            };
            match self.ids.get(&head.stream).copied() {
                Some(at) => self.reset(at, reason, Error::Broken(what)),
                None => self.write_reset(head.stream, reason),
            }
        }
        self.idle()
    }

    fn was_reset(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if payload.len() != 4 {
            return Err(Fatal(Reason::FRAME_SIZE_ERROR, "RST_STREAM of another length"));
        }
        if head.stream == 0 {
            return Err(protocol("RST_STREAM of no stream"));
        }
        let Some(at) = self.ids.get(&head.stream).copied() else {
            let is_idle = match self.is_server {
                true => head.stream > self.peer_last,
                false => head.stream >= self.own_next,
            };
            if is_idle || head.stream.is_multiple_of(2) {
                return Err(protocol("RST_STREAM of a stream that was not begun"));
            }
            return self.idle();
        };
        if let Some(slot) = &mut self.slots[at as usize] {
            slot.error.get_or_insert(match Reason(frame::number(payload)) {
                Reason::REFUSED_STREAM if !self.is_server => Error::Refused,
                reason => Error::Reset(reason),
            });
            slot.wake();
        }
        self.settle(at);
        Ok(())
    }

    fn configured(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return Err(protocol("SETTINGS of a stream"));
        }
        let is_ack = head.has(frame::ACK);
        if (is_ack && !payload.is_empty()) || !payload.len().is_multiple_of(6) {
            return Err(Fatal(Reason::FRAME_SIZE_ERROR, "SETTINGS of another length"));
        }
        if is_ack {
            return if self.peer.is_settled {
                self.idle()
            } else {
                Err(protocol("an answer to nothing"))
            };
        }
        for setting in payload.chunks_exact(6) {
            let value = frame::number(&setting[2..]);
            self.set(u16::from_be_bytes([setting[0], setting[1]]), value)?;
        }
        frame::write(&mut self.out, frame::SETTINGS, frame::ACK, 0, &[]);
        self.peer.is_settled = true;
        self.settling.drain(..).for_each(Waker::wake);
        self.unblock();
        self.idle()
    }

    fn set(&mut self, name: u16, value: u32) -> Result<(), Fatal> {
        match name {
            frame::SET_TABLE_SIZE => self.encoder.set_limit(value as usize),
            frame::SET_PUSH if value > 1 || (value == 1 && !self.is_server) => {
                return Err(protocol("ENABLE_PUSH of another value"));
            }
            frame::SET_STREAMS => self.peer.streams = value as usize,
            frame::SET_WINDOW => {
                let window = i64::from(value);
                let by = window - self.peer.window;
                self.peer.window = window;
                let mut slots = self.slots.iter_mut().flatten();
                if value > 0x7fff_ffff || !slots.all(|slot| slot.send.change(by)) {
                    return Err(Fatal(Reason::FLOW_CONTROL_ERROR, "a window larger than any"));
                }
            }
            frame::SET_FRAME => {
                if !(16_384..=16_777_215).contains(&value) {
                    return Err(protocol("MAX_FRAME_SIZE of another value"));
                }
                self.peer.frame = value as usize;
            }
            frame::SET_CONNECT => {
                if value > 1 || (value == 0 && self.peer.extended_connect) {
                    return Err(protocol("ENABLE_CONNECT_PROTOCOL of another value"));
                }
                self.peer.extended_connect = value == 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn ping(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return Err(protocol("PING of a stream"));
        }
        if payload.len() != 8 {
            return Err(Fatal(Reason::FRAME_SIZE_ERROR, "PING of another length"));
        }
        if !head.has(frame::ACK) {
            frame::write(&mut self.out, frame::PING, frame::ACK, 0, payload);
        } else if self.leaving == Leaving::Announced && payload == FAREWELL {
            self.leaving = Leaving::Final;
            self.say_goodbye(self.peer_last, Reason::NO_ERROR);
        }
        self.idle()
    }

    fn goodbye(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return Err(protocol("GOAWAY of a stream"));
        }
        if payload.len() < 8 {
            return Err(Fatal(Reason::FRAME_SIZE_ERROR, "GOAWAY of another length"));
        }
        let (last, reason) =
            (frame::number(payload) & 0x7fff_ffff, Reason(frame::number(&payload[4..])));
        self.gone = Some(reason);
        if !self.is_server {
            for at in 0..self.slots.len() {
                let Some(slot) = &mut self.slots[at] else { continue };
                if slot.id > last && slot.is_open {
                    slot.error.get_or_insert(Error::Refused);
                    slot.wake();
                    self.settle(narrow(at));
                }
            }
        }
        self.idle()
    }

    fn window(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if payload.len() != 4 {
            return Err(Fatal(Reason::FRAME_SIZE_ERROR, "WINDOW_UPDATE of another length"));
        }
        let by = i64::from(frame::number(payload) & 0x7fff_ffff);
        if head.stream == 0 {
            if by == 0 {
                return Err(protocol("a window that grows by nothing"));
            }
            if !self.send.change(by) {
                return Err(Fatal(Reason::FLOW_CONTROL_ERROR, "a window larger than any"));
            }
            self.unblock();
            return Ok(());
        }
        let Some(at) = self.ids.get(&head.stream).copied() else {
            let is_idle = match self.is_server {
                true => head.stream > self.peer_last,
                false => head.stream >= self.own_next,
            };
            if is_idle || head.stream.is_multiple_of(2) {
                return Err(protocol("WINDOW_UPDATE of a stream that was not begun"));
            }
            return self.idle();
        };
        let Some(slot) = &mut self.slots[at as usize] else { return Ok(()) };
        if by == 0 {
            let error = Error::Broken("a window that grows by nothing");
            self.reset(at, Reason::PROTOCOL_ERROR, error);
        } else if slot.send.change(by) {
            slot.wake();
        } else {
            let error = Error::Broken("a window larger than any");
            self.reset(at, Reason::FLOW_CONTROL_ERROR, error);
        }
        Ok(())
    }
}

/// What a frame carries, without its padding.
fn unpadded(head: FrameHead, payload: &[u8]) -> Result<&[u8], Fatal> {
    if !head.has(frame::PADDED) {
        return Ok(payload);
    }
    let (padding, rest) =
        payload.split_first().ok_or(Fatal(Reason::FRAME_SIZE_ERROR, "no padding's length"))?;
    let length = rest.len().checked_sub(usize::from(*padding));
    length.map(|length| &rest[..length]).ok_or(protocol("more padding than payload"))
}

fn whole_number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}
