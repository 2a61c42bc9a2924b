//! What a connection knows: its streams, both directions' tables and windows, and the frames that wait to go out.

mod incoming;
mod outgoing;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::flow::{INITIAL, ReceiveWindow, SendWindow};
use super::hpack::{Decoder, Encoder};
use super::{Error, Fields, Reason, Settings};
use super::{frame, spare};

pub use outgoing::Block;

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
                frame: frame::LARGEST,
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
        spare::lend(&mut self.out);
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
}

/// A place among the streams, which are bounded far below that.
fn narrow(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
