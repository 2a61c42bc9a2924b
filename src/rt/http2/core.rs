//! What a connection knows: its streams, both directions' tables and windows, and the frames that wait to go out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::flow::{INITIAL, ReceiveWindow, SendWindow};
use super::frame::{self, FrameHead, LARGEST};
use super::hpack::{Decoder, Encoder, is_sendable};
use super::{Error, Fields, Reason, Settings};

pub(super) type Shared = Arc<Mutex<Core>>;

/// The connection ends: what the peer did breaks more than a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fatal(pub(super) Reason, pub(super) &'static str);

pub(super) fn protocol(what: &'static str) -> Fatal {
    Fatal(Reason::PROTOCOL_ERROR, what)
}

/// Interim heads of one stream that nobody has taken yet.
const INTERIM: usize = 16;
/// Frames that change nothing, within [`PATIENCE`] and since the last one that did. Half of what remains is forgiven with each
/// that does.
const IDLE_FRAMES: u32 = 1000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Streams that we reset and whose frames may still be on their way.
const FORGOTTEN: usize = 128;
/// CONTINUATION frames of one block.
const CONTINUED: u32 = 64;
/// The opaque bytes of the PING whose answer says that a goodbye has arrived.
const FAREWELL: [u8; 8] = *b"goodbye.";

/// A stream.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: u32,
    pub(super) receive: ReceiveWindow,
    pub(super) send: SendWindow,
    /// What has come of the body.
    pub(super) data: Vec<u8>,
    pub(super) interim: VecDeque<Fields>,
    pub(super) head: Option<Fields>,
    pub(super) trailers: Option<Fields>,
    /// The final head has come.
    has_head: bool,
    /// Bytes of the body that are still to come, where that was announced.
    left: Option<u64>,
    /// The answer has no body, whatever it announces.
    is_bodiless: bool,
    /// Everything has come; everything has gone out.
    pub(super) is_received: bool,
    pub(super) is_sent: bool,
    /// It ended early.
    pub(super) error: Option<Error>,
    pub(super) waker: Option<Waker>,
    /// It counts among the open ones.
    is_open: bool,
    /// An exchange has it.
    is_held: bool,
    /// Where its last frame of data stands, as long as that has not gone out.
    last: Option<(u64, usize)>,
}

impl Slot {
    pub(super) fn wait(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// What the peer has told.
#[derive(Debug)]
pub(super) struct Peer {
    window: i64,
    pub(super) frame: usize,
    pub(super) streams: usize,
    pub(super) extended_connect: bool,
    pub(super) is_settled: bool,
}

/// How far our goodbye has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    /// Said, without saying which stream is the last: some may be on their way.
    Announced,
    /// Those that come now are refused.
    Final,
}

/// A block of fields of which more comes.
#[derive(Debug)]
struct Pending {
    stream: u32,
    is_end: bool,
    depends_on_itself: bool,
    bytes: Vec<u8>,
    frames: u32,
}

/// A request's head.
pub(super) struct Request {
    pub(super) slot: u32,
    pub(super) fields: Fields,
    pub(super) is_ended: bool,
}

/// What a block says besides its fields.
struct Unpacked {
    fields: Fields,
    is_lawful: bool,
    is_too_large: bool,
    length: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Core {
    is_server: bool,
    pub(super) settings: Settings,
    /// Frames that the driver has not taken yet, and how often it has taken some.
    pub(super) out: Vec<u8>,
    pub(super) taken: u64,
    /// Bytes that the driver has taken, and the system has not.
    pub(super) writing: usize,
    pub(super) encoder: Encoder,
    send: SendWindow,
    pub(super) peer: Peer,
    decoder: Decoder,
    receive: ReceiveWindow,
    pending: Option<Pending>,
    pub(super) slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    ids: HashMap<u32, u32, foldhash::fast::RandomState>,
    /// The newest stream of the peer's, and the next one of ours.
    peer_last: u32,
    own_next: u32,
    pub(super) open: usize,
    /// Streams that an exchange has.
    pub(super) held: usize,
    forgotten: VecDeque<u32>,
    /// Streams that have more to send than they may.
    blocked: Vec<u32>,
    pub(super) leaving: Leaving,
    /// The peer's goodbye: its code.
    gone: Option<Reason>,
    pub(super) failed: Option<Error>,
    waker: Option<Waker>,
    is_woken: bool,
    pub(super) openers: usize,
    pub(super) settling: Vec<Waker>,
    idle_frames: u32,
    idle_since: Option<Instant>,
    spare: Vec<Fields>,
}

impl Core {
    pub(super) fn new(is_server: bool, settings: Settings) -> Self {
        let mut core = Self {
            is_server,
            settings,
            out: Vec::new(),
            taken: 0,
            writing: 0,
            encoder: Encoder::default(),
            send: SendWindow::new(INITIAL),
            // RFC 9113 has no limit before the first SETTINGS; a burst must not run into the one that they bring.
            peer: Peer {
                window: INITIAL,
                frame: LARGEST,
                streams: 100,
                extended_connect: false,
                is_settled: false,
            },
            decoder: Decoder::default(),
            receive: ReceiveWindow::new(settings.connection_window),
            pending: None,
            slots: Vec::new(),
            free: Vec::new(),
            ids: HashMap::default(),
            peer_last: 0,
            own_next: 1,
            open: 0,
            held: 0,
            forgotten: VecDeque::new(),
            blocked: Vec::new(),
            leaving: Leaving::No,
            gone: None,
            failed: None,
            waker: None,
            is_woken: false,
            openers: 0,
            settling: Vec::new(),
            idle_frames: 0,
            idle_since: None,
            spare: Vec::new(),
        };
        core.introduce();
        core
    }

    /// What goes out first.
    fn introduce(&mut self) {
        if !self.is_server {
            self.out.extend_from_slice(frame::PREFACE);
        }
        let list_size = u32::try_from(self.settings.list_size).unwrap_or(u32::MAX);
        let mut told = vec![
            (frame::SET_WINDOW, self.settings.stream_window),
            (frame::SET_LIST_SIZE, list_size),
        ];
        match self.is_server {
            true => told.push((frame::SET_STREAMS, self.settings.streams)),
            false => told.push((frame::SET_PUSH, 0)),
        }
        if self.is_server && self.settings.extended_connect {
            told.push((frame::SET_CONNECT, 1));
        }
        let payload = told.iter().flat_map(|(name, value)| {
            let ([a, b], [w, x, y, z]) = (name.to_be_bytes(), value.to_be_bytes());
            [a, b, w, x, y, z]
        });
        let payload: Vec<u8> = payload.collect();
        frame::write(&mut self.out, frame::SETTINGS, 0, 0, &payload);
        let more = i64::from(self.settings.connection_window) - INITIAL;
        if let Ok(more @ 1..) = u32::try_from(more) {
            frame::write(&mut self.out, frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
    }

    // ---- the driver ----

    pub(super) fn attend(&mut self, waker: &Waker) {
        self.is_woken = false;
        if !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    /// There is something to write, or to do.
    pub(super) fn wake(&mut self) {
        if !self.is_woken
            && let Some(waker) = &self.waker
        {
            self.is_woken = true;
            waker.wake_by_ref();
        }
    }

    /// The driver has written all that it took.
    pub(super) fn written(&mut self) {
        self.writing = 0;
        self.unblock();
    }

    /// Bytes that wait for the peer to take them.
    pub(super) fn waiting(&self) -> usize {
        self.out.len() + self.writing
    }

    /// As many exchanges are under way as there may be streams, and more, since streams that were given up still occupy theirs.
    pub(super) fn is_crowded(&self) -> bool {
        self.is_server && self.held >= self.settings.streams as usize + 32
    }

    /// Nothing more will happen: the goodbye was said, and all streams are over.
    pub(super) fn is_over(&self) -> bool {
        let says_goodbye = match self.is_server {
            true => self.leaving == Leaving::Final || self.gone.is_some(),
            false => self.openers == 0 || self.gone.is_some(),
        };
        says_goodbye && self.open == 0 && self.held == 0 && self.waiting() == 0
    }

    /// The connection is lost or given up: every stream learns why.
    pub(super) fn fail(&mut self, error: &Error) {
        self.failed.get_or_insert_with(|| error.clone());
        for at in 0..self.slots.len() {
            if let Some(slot) = &mut self.slots[at] {
                slot.error.get_or_insert_with(|| error.clone());
                slot.wake();
            }
            self.settle(narrow(at));
        }
        self.settling.drain(..).for_each(Waker::wake);
    }

    /// Ends the connection because of what the peer did.
    pub(super) fn condemn(&mut self, Fatal(reason, what): Fatal) -> Error {
        self.say_goodbye(self.peer_last, reason);
        let error = Error::Fatal(reason, what);
        self.fail(&error);
        error
    }

    pub(super) fn say_goodbye(&mut self, last: u32, reason: Reason) {
        let [a, b, c, d] = last.to_be_bytes();
        let [w, x, y, z] = reason.0.to_be_bytes();
        frame::write(&mut self.out, frame::GOAWAY, 0, 0, &[a, b, c, d, w, x, y, z]);
    }

    /// Says that no further streams shall come (RFC 9113 section 6.8).
    pub(super) fn leave(&mut self) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Announced;
            self.say_goodbye(0x7fff_ffff, Reason::NO_ERROR);
            frame::write(&mut self.out, frame::PING, 0, 0, &FAREWELL);
        }
    }

    /// A frame that changed nothing.
    fn idle(&mut self) -> Result<(), Fatal> {
        self.idle_frames += 1;
        if self.idle_frames < IDLE_FRAMES {
            return Ok(());
        }
        let now = Instant::now();
        let since = self.idle_since.replace(now);
        if since.is_some_and(|since| now - since < PATIENCE) {
            return Err(Fatal(Reason::ENHANCE_YOUR_CALM, "too many frames that change nothing"));
        }
        self.idle_frames = 0;
        Ok(())
    }

    fn is_useful(&mut self) {
        self.idle_frames /= 2;
    }

    // ---- frames that come ----

    /// Takes one frame in; `Some` is a new request.
    pub(super) fn take(
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

    // ---- streams ----

    /// A new stream.
    fn enter(&mut self, id: u32, left: Option<u64>) -> u32 {
        let slot = Slot {
            id,
            receive: ReceiveWindow::new(self.settings.stream_window),
            send: SendWindow::new(self.peer.window),
            data: Vec::new(),
            interim: VecDeque::new(),
            head: None,
            trailers: None,
            has_head: false,
            left,
            is_bodiless: false,
            is_received: false,
            is_sent: false,
            error: None,
            waker: None,
            is_open: true,
            is_held: true,
            last: None,
        };
        self.open += 1;
        self.held += 1;
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = Some(slot);
                at
            }
            None => {
                self.slots.push(Some(slot));
                narrow(self.slots.len() - 1)
            }
        };
        self.ids.insert(id, at);
        at
    }

    /// Opens a stream of ours.
    pub(super) fn begin(&mut self, is_bodiless: bool) -> Result<u32, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if !self.takes_streams() || self.open >= self.peer.streams {
            return Err(Error::Refused);
        }
        let id = self.own_next;
        self.own_next += 2;
        let at = self.enter(id, None);
        if let Some(slot) = &mut self.slots[at as usize] {
            slot.is_bodiless = is_bodiless;
        }
        Ok(at)
    }

    /// May streams of ours be opened at all?
    pub(super) fn takes_streams(&self) -> bool {
        self.failed.is_none() && self.gone.is_none() && self.own_next < 0x7fff_fff0
    }

    /// A stream that is over does not count any more; one that nobody has is forgotten.
    pub(super) fn settle(&mut self, at: u32) {
        let Some(slot) = &mut self.slots[at as usize] else { return };
        let is_over = (slot.is_received && slot.is_sent) || slot.error.is_some();
        if is_over && slot.is_open {
            slot.is_open = false;
            self.open -= 1;
            self.ids.remove(&slot.id);
        }
        if is_over && !slot.is_held {
            self.slots[at as usize] = None;
            self.free.push(at);
        }
        if self.open == 0 {
            // The driver may have waited for the last one.
            self.wake();
        }
    }

    /// Whoever had it has it no more.
    pub(super) fn release(&mut self, at: u32, unread: usize) {
        let Some(slot) = &mut self.slots[at as usize] else { return };
        slot.is_held = false;
        slot.waker = None;
        self.held -= 1;
        let unread = unread + slot.data.len();
        let is_open = slot.is_open;
        for fields in [slot.head.take(), slot.trailers.take()].into_iter().flatten() {
            self.recycle(fields);
        }
        if is_open {
            // A server that has answered does not need the rest (RFC 9113 section 8.1).
            let is_answered =
                self.is_server && self.slots[at as usize].as_ref().is_some_and(|slot| slot.is_sent);
            let reason = if is_answered { Reason::NO_ERROR } else { Reason::CANCEL };
            self.reset(at, reason, Error::Reset(reason));
        }
        self.settle(at);
        self.give_back(unread);
        if self.is_server && self.held + 1 >= self.settings.streams as usize {
            self.wake();
        }
    }

    /// Resets a stream.
    pub(super) fn reset(&mut self, at: u32, reason: Reason, error: Error) {
        let Some(slot) = &mut self.slots[at as usize] else { return };
        let (id, was_open) = (slot.id, slot.is_open);
        slot.error.get_or_insert(error);
        slot.wake();
        if was_open {
            self.write_reset(id, reason);
        }
        self.settle(at);
    }

    fn write_reset(&mut self, stream: u32, reason: Reason) {
        frame::write(&mut self.out, frame::RST_STREAM, 0, stream, &reason.0.to_be_bytes());
        if self.forgotten.len() == FORGOTTEN {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(stream);
        self.wake();
    }

    /// So many bytes of a stream's body were used.
    pub(super) fn used(&mut self, at: u32, count: usize) {
        if let Some(slot) = &mut self.slots[at as usize]
            && slot.is_open
            && !slot.is_received
            && let Some(by) = slot.receive.give_back(count)
        {
            frame::write(&mut self.out, frame::WINDOW_UPDATE, 0, slot.id, &by.to_be_bytes());
            self.wake();
        }
        self.give_back(count);
    }

    /// So many bytes were used, or thrown away.
    fn give_back(&mut self, count: usize) {
        if count > 0
            && let Some(by) = self.receive.give_back(count)
        {
            frame::write(&mut self.out, frame::WINDOW_UPDATE, 0, 0, &by.to_be_bytes());
            self.wake();
        }
    }

    pub(super) fn recycle(&mut self, mut fields: Fields) {
        if self.spare.len() < 8 {
            fields.clear();
            self.spare.push(fields);
        }
    }

    // ---- frames that go ----

    /// Writes a block of fields.
    pub(super) fn write_block(
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
    pub(super) fn write_data(&mut self, at: u32, data: &[u8]) -> usize {
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
    pub(super) fn write_end(&mut self, at: u32) {
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
    fn unblock(&mut self) {
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

/// A place among the streams, which are bounded far below that.
fn narrow(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn whole_number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}
