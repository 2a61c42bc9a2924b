//! Lanes: how workers hand records to a thread that writes them, without system calls, allocation or waiting.
//!
//! A worker appends framed records to its own buffer under its own lock. The thread swaps the buffers against its empty one
//! every twenty milliseconds while there is traffic, and sleeps when there is none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::decision::DecisionRecord;
use super::redact::Redaction;
use super::tally::{Counting, Noted, Tally};
use crate::rt::{coarse_unix_millis, unix_millis};

/// There is no room for a record that must not be lost. The caller refuses what the record was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the decision log has no room left")]
pub struct Full;

/// The log could not be written within the time given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log could not be written in time")]
pub struct Stalled;

/// How often the thread looks while there is traffic.
const EVERY: Duration = Duration::from_millis(20);
/// How long it waits after a failed write.
const RETRY: Duration = Duration::from_millis(500);
/// How long it tries to write what is left when it has to end.
const LAST_TRIES: u32 = 4;
/// Length, time and kind.
pub(super) const HEADER: usize = 13;

/// How much may wait for the thread, in bytes and for each lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// For all records.
    pub(super) common: usize,
    /// On top, for records that must not be lost.
    pub(super) reserved: usize,
}

/// What was dropped of one lane since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) common: u64,
    pub(super) reserved: u64,
    pub(super) first_millis: u64,
    pub(super) last_millis: u64,
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    lost: Lost,
    tally: Tally,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.lost == Lost::default()
    }
}

/// A worker's end.
pub(super) struct Lane {
    pending: Mutex<Pending>,
    lanes: Arc<Lanes>,
}

/// All lanes of one log.
pub(super) struct Lanes {
    lanes: Mutex<Vec<Arc<Lane>>>,
    room: Room,
    /// The thread is at work and will look again by itself.
    awake: AtomicBool,
    closed: AtomicBool,
    thread: OnceLock<Thread>,
    lost: AtomicU64,
    flush_wanted: AtomicU64,
    flushed: Mutex<u64>,
    flushed_changed: Condvar,
    /// The same for who must not block its thread.
    told: watch::Sender<Told>,
    /// When the next window of a tally ends, in milliseconds since 1970; `u64::MAX`: none is open.
    due: AtomicU64,
    /// The windows of all tallies are to end now.
    end_windows: AtomicBool,
}

/// What became of what was asked to be written, by ticket.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// Everything up to here is written.
    written: u64,
    /// For everything up to here it was tried once at least and did not work.
    failed: u64,
}

/// One record, as the thread receives it.
pub(super) struct Frame<'f> {
    pub(super) kind: u8,
    pub(super) unix_millis: u64,
    pub(super) body: &'f [u8],
}

/// What the thread does with records.
pub(super) trait Sink {
    /// Does what was asked of it from outside.
    fn attend(&mut self) {}
    /// May nothing be taken now? What comes waits in the lanes.
    fn is_held(&self) -> bool {
        false
    }
    /// The last batch is out; a new one may begin.
    fn ready(&mut self) {}
    /// Takes a record into the next batch.
    fn take(&mut self, frame: &Frame<'_>);
    /// Records were dropped.
    fn lost(&mut self, lost: Lost);
    /// What waited is in the batch. `closing`: nothing comes any more.
    fn taken(&mut self, _closing: bool) {}
    /// How long the thread may sleep although nothing comes; `None`: until something does.
    fn sleeps(&self) -> Option<Duration> {
        None
    }
    /// Writes the batch out; `false` when something of it is left. `awaited`: somebody waits for it to be safe.
    fn write(&mut self, awaited: bool) -> bool;
    /// What went out is where it belongs.
    fn is_safe(&self) -> bool {
        true
    }
}

impl Lane {
    /// Counts a decision, or says that it has a record of its own.
    pub(super) fn note(
        &self,
        record: &DecisionRecord<'_>,
        counting: &Counting,
        redaction: &Redaction,
    ) -> Noted {
        let now = coarse_unix_millis();
        let mut pending = self.pending.lock();
        // What is counted now would never be told.
        if self.lanes.closed.load(Ordering::Acquire) {
            return Noted::Single;
        }
        let before = pending.tally.due();
        let noted = pending.tally.note(record, now, counting, redaction);
        let due = pending.tally.due();
        drop(pending);
        if let Some(due) = due.filter(|_| due != before) {
            self.lanes.due.fetch_min(due, Ordering::AcqRel);
            // It may sleep for longer than that.
            self.lanes.wake();
        }
        noted
    }

    /// Waits until what this lane has taken before is written. Wakes the thread at once; blocks nothing.
    pub(super) async fn written(&self, within: Duration) -> Result<(), Stalled> {
        let lanes = &*self.lanes;
        let mut told = lanes.told.subscribe();
        let ticket = lanes.flush_wanted.fetch_add(1, Ordering::AcqRel) + 1;
        lanes.look_again();
        let answer = told.wait_for(|told| told.written >= ticket || told.failed >= ticket);
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(told)) if told.written >= ticket => Ok(()),
            _ => Err(Stalled),
        }
    }

    /// Appends a record whose body `write` produces.
    pub(super) fn push(
        &self,
        kind: u8,
        reserved: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Full> {
        self.push_of(unix_millis(), kind, reserved, write)
    }

    /// As [`Lane::push`], for a record of that time.
    pub(super) fn push_of(
        &self,
        unix_millis: u64,
        kind: u8,
        reserved: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Full> {
        let Room { common, reserved: on_top } = self.lanes.room;
        let mut pending = self.pending.lock();
        let before = pending.bytes.len();
        let limit = if reserved { common + on_top } else { common };
        if before >= limit || self.lanes.closed.load(Ordering::Relaxed) {
            let lost = &mut pending.lost;
            if lost.common + lost.reserved == 0 {
                lost.first_millis = unix_millis;
            }
            lost.last_millis = unix_millis;
            if reserved {
                lost.reserved += 1;
            } else {
                lost.common += 1;
            }
            self.lanes.lost.fetch_add(1, Ordering::Relaxed);
            drop(pending);
            self.lanes.wake();
            return Err(Full);
        }
        pending.bytes.extend_from_slice(&[0; HEADER]);
        write(&mut pending.bytes);
        let length = u32::try_from(pending.bytes.len() - before - HEADER).unwrap_or(u32::MAX);
        let header = &mut pending.bytes[before..before + HEADER];
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[4..12].copy_from_slice(&unix_millis.to_le_bytes());
        header[12] = kind;
        let half = common / 2;
        let hurry = before < half && pending.bytes.len() >= half;
        drop(pending);
        if hurry {
            self.lanes.unpark();
        } else {
            self.lanes.wake();
        }
        Ok(())
    }
}

impl Lanes {
    pub(super) fn new(room: Room) -> Arc<Self> {
        Arc::new(Self {
            lanes: Mutex::default(),
            room,
            awake: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            thread: OnceLock::new(),
            lost: AtomicU64::new(0),
            flush_wanted: AtomicU64::new(0),
            flushed: Mutex::default(),
            flushed_changed: Condvar::new(),
            told: watch::Sender::default(),
            due: AtomicU64::new(u64::MAX),
            end_windows: AtomicBool::new(false),
        })
    }

    pub(super) fn lane(self: &Arc<Self>) -> Arc<Lane> {
        let lane = Arc::new(Lane { pending: Mutex::default(), lanes: self.clone() });
        self.lanes.lock().push(lane.clone());
        lane
    }

    /// Records dropped since the start.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Wakes the thread if it sleeps. While there is traffic this is one load.
    fn wake(&self) {
        // The thread clears `awake` before it looks at the lanes a last time, each under its lock: either it sees the
        // record that was pushed before, or the pusher sees `awake` cleared.
        if !self.awake.load(Ordering::Relaxed) && !self.awake.swap(true, Ordering::AcqRel) {
            self.unpark();
        }
    }

    fn unpark(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Waits until everything that was pushed or counted before is written, at most `within`.
    pub(super) fn flush(&self, within: Duration) -> Result<(), Stalled> {
        self.end_windows.store(true, Ordering::Release);
        self.flush_pushed(within)
    }

    /// Waits until everything that was pushed before is written, at most `within`.
    pub(super) fn flush_pushed(&self, within: Duration) -> Result<(), Stalled> {
        let until = Instant::now() + within;
        let ticket = self.flush_wanted.fetch_add(1, Ordering::AcqRel) + 1;
        self.look_again();
        let mut flushed = self.flushed.lock();
        while *flushed < ticket {
            if self.flushed_changed.wait_until(&mut flushed, until).timed_out() {
                return if *flushed < ticket { Err(Stalled) } else { Ok(()) };
            }
        }
        Ok(())
    }

    /// Makes the thread look again what there is to do.
    pub(super) fn look_again(&self) {
        self.awake.store(true, Ordering::Release);
        self.unpark();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes no more records; the thread writes what is there and ends.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.look_again();
    }

    /// The thread's work, until the log is closed.
    pub(super) fn run(&self, sink: &mut impl Sink) {
        self.thread.get_or_init(std::thread::current);
        let mut spare = Vec::new();
        let mut tries_left = LAST_TRIES;
        let mut written = true;
        loop {
            let closing = self.closed.load(Ordering::Acquire);
            sink.attend();
            if sink.is_held() {
                if closing {
                    return;
                }
                // Whoever asked for it ends it, and wakes us.
                std::thread::park_timeout(RETRY);
                continue;
            }
            let wanted = self.flush_wanted.load(Ordering::Acquire);
            // What could not be written is tried again before more is taken: so much and no more is held in memory.
            let drained = written;
            if drained {
                sink.ready();
            }
            let took = drained && self.drain(sink, &mut spare, closing);
            if drained {
                sink.taken(closing && !took);
            }
            written = sink.write(*self.flushed.lock() < wanted);
            if drained && written && sink.is_safe() {
                self.tell_flushed(wanted);
            }
            if !written || !sink.is_safe() {
                // Nothing that was asked for by now can be written at this time.
                let failed = self.flush_wanted.load(Ordering::Acquire);
                self.told.send_modify(|told| told.failed = failed);
            }
            if closing && !took {
                if drained && written {
                    self.tell_flushed(u64::MAX);
                    return;
                }
                if !written {
                    tries_left -= 1;
                }
                if tries_left == 0 {
                    return;
                }
            }
            if !written {
                std::thread::park_timeout(RETRY);
            } else if took {
                std::thread::park_timeout(EVERY);
            } else {
                self.awake.store(false, Ordering::Release);
                if self.is_idle() {
                    match self.until_due().into_iter().chain(sink.sleeps()).min() {
                        None => std::thread::park(),
                        Some(within) => std::thread::park_timeout(within),
                    }
                }
                self.awake.store(true, Ordering::Release);
            }
        }
    }

    /// How long it is until a window ends.
    fn until_due(&self) -> Option<Duration> {
        let due = self.due.load(Ordering::Acquire);
        (due != u64::MAX).then(|| Duration::from_millis(due.saturating_sub(unix_millis()) + 1))
    }

    fn tell_flushed(&self, ticket: u64) {
        self.told.send_modify(|told| told.written = told.written.max(ticket));
        let mut flushed = self.flushed.lock();
        if *flushed < ticket {
            *flushed = ticket;
            self.flushed_changed.notify_all();
        }
    }

    fn is_idle(&self) -> bool {
        !self.closed.load(Ordering::Acquire)
            && *self.flushed.lock() >= self.flush_wanted.load(Ordering::Acquire)
            && self.lanes.lock().iter().all(|lane| lane.pending.lock().is_empty())
    }

    /// Moves everything that waits into the sink's batch; `false` when nothing waited.
    fn drain(&self, sink: &mut impl Sink, spare: &mut Vec<u8>, closing: bool) -> bool {
        let lanes: Vec<Arc<Lane>> = {
            let mut lanes = self.lanes.lock();
            // A lane that only we hold has no worker any more.
            lanes.retain(|lane| {
                Arc::strong_count(lane) > 1 || {
                    let pending = lane.pending.lock();
                    !pending.is_empty() || !pending.tally.is_empty()
                }
            });
            lanes.clone()
        };
        let now = unix_millis();
        let all = self.end_windows.swap(false, Ordering::AcqRel) || closing;
        self.due.store(u64::MAX, Ordering::Release);
        let mut counted = Vec::new();
        let mut took = false;
        for lane in lanes {
            // One reference is the list's, one is ours.
            let is_left = Arc::strong_count(&lane) <= 2;
            let lost = {
                let mut pending = lane.pending.lock();
                std::mem::swap(&mut pending.bytes, spare);
                pending.tally.end_windows(now, all || is_left, &mut counted);
                if let Some(due) = pending.tally.due() {
                    self.due.fetch_min(due, Ordering::AcqRel);
                }
                std::mem::take(&mut pending.lost)
            };
            took |= !spare.is_empty() || !counted.is_empty();
            for frame in frames(spare).chain(frames(&counted)) {
                sink.take(&frame);
            }
            spare.clear();
            counted.clear();
            if lost != Lost::default() {
                took = true;
                sink.lost(lost);
            }
        }
        took
    }
}

/// Appends one record, as [`frames`] reads it.
pub(super) fn push_frame(out: &mut Vec<u8>, frame: &Frame<'_>) {
    let length = u32::try_from(frame.body.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&frame.unix_millis.to_le_bytes());
    out.push(frame.kind);
    out.extend_from_slice(frame.body);
}

pub(super) fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (unix_millis, rest) = rest.split_first_chunk::<8>()?;
        let (kind, rest) = rest.split_first()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (body, rest) = rest.split_at_checked(length)?;
        bytes = rest;
        Some(Frame { kind: *kind, unix_millis: u64::from_le_bytes(*unix_millis), body })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept {
        bodies: Arc<Mutex<Vec<String>>>,
        stuck: Arc<AtomicBool>,
    }

    impl Sink for Kept {
        fn take(&mut self, frame: &Frame<'_>) {
            self.bodies.lock().push(String::from_utf8(frame.body.to_vec()).unwrap());
        }
        fn lost(&mut self, lost: Lost) {
            self.bodies.lock().push(format!("lost {} {}", lost.common, lost.reserved));
        }
        fn write(&mut self, _: bool) -> bool {
            !self.stuck.load(Ordering::Relaxed)
        }
    }

    const WITHIN: Duration = Duration::from_secs(20);

    #[test]
    fn records_of_all_lanes_arrive_in_their_order_and_the_thread_sleeps_and_wakes() {
        let lanes = Lanes::new(Room { common: 1 << 20, reserved: 0 });
        let mut kept = Kept::default();
        let bodies = kept.bodies.clone();
        let running = lanes.clone();
        let thread = std::thread::spawn(move || running.run(&mut kept));
        let lane = lanes.lane();
        for round in 0..5 {
            for at in 0..10 {
                lane.push(0, false, |out| {
                    out.extend_from_slice(format!("{round} {at}").as_bytes());
                })
                .unwrap();
            }
            lanes.flush(WITHIN).unwrap();
            assert_eq!(bodies.lock().len(), (round + 1) * 10);
            assert_eq!(bodies.lock().last().unwrap(), &format!("{round} 9"));
        }
        // No flush asks for this one: the push itself wakes the thread.
        lane.push(0, false, |out| out.push(b'x')).unwrap();
        let until = Instant::now() + WITHIN;
        while bodies.lock().last().unwrap() != "x" {
            assert!(Instant::now() < until, "the thread was not woken");
            std::thread::yield_now();
        }
        lane.push(0, false, |out| out.push(b'y')).unwrap();
        lanes.close();
        thread.join().unwrap();
        assert_eq!(bodies.lock().last().unwrap(), "y");
        assert_eq!(lane.push(0, true, |_| {}), Err(Full));
    }

    #[test]
    fn a_full_lane_drops_common_records_first_and_counts_them() {
        let lanes = Lanes::new(Room { common: 100, reserved: 100 });
        let lane = lanes.lane();
        let push = |reserved| lane.push(0, reserved, |out| out.extend_from_slice(&[b'a'; 37]));
        // Nobody drains yet: two of fifty bytes fill the common room, two the reserved one.
        assert_eq!([push(false), push(false), push(false)], [Ok(()), Ok(()), Err(Full)]);
        assert_eq!([push(true), push(true), push(true)], [Ok(()), Ok(()), Err(Full)]);
        assert_eq!(lanes.lost(), 2);
        let mut kept = Kept::default();
        let bodies = kept.bodies.clone();
        let running = lanes.clone();
        let thread = std::thread::spawn(move || running.run(&mut kept));
        lanes.flush(WITHIN).unwrap();
        assert_eq!(bodies.lock().last().unwrap(), "lost 1 1");
        assert_eq!(push(false), Ok(()));
        lanes.close();
        thread.join().unwrap();
        assert_eq!(bodies.lock().len(), 6);
    }

    #[test]
    fn what_cannot_be_written_stalls_a_flush_and_loses_nothing_that_was_taken() {
        let lanes = Lanes::new(Room { common: 100, reserved: 0 });
        let mut kept = Kept::default();
        let (bodies, stuck) = (kept.bodies.clone(), kept.stuck.clone());
        stuck.store(true, Ordering::Relaxed);
        let running = lanes.clone();
        let thread = std::thread::spawn(move || running.run(&mut kept));
        let lane = lanes.lane();
        lane.push(0, false, |out| out.push(b'a')).unwrap();
        assert_eq!(lanes.flush(Duration::from_millis(50)), Err(Stalled));
        stuck.store(false, Ordering::Relaxed);
        lanes.flush(WITHIN).unwrap();
        assert_eq!(*bodies.lock(), ["a"]);
        lanes.close();
        thread.join().unwrap();
    }
}
