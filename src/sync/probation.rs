//! The crash-loop guard: a state that kills the process must not kill it for ever.
//!
//! What comes from the control plane is on probation until the process has lived with it for a while. A marker beside the last
//! good copy says which state is; it goes when the time is over, and at an end that was asked for. A start that finds it knows
//! that the process died with that state. After three deaths the next start takes the last state that stood its probation, and
//! holds the other one off until what is declared is something else.
//!
//! | file | |
//! |---|---|
//! | `<last good copy>.trial` | the state on probation, and how often the process has died with it |
//! | `<last good copy>.proven` | the last good copy of a state that stood its probation |
//!
//! The marker is written once for each state, before it is compiled, and not flushed to the disk: it tells of the death of a
//! process, which leaves what it wrote behind, and not of the machine's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{error, warn};

use super::delta::{Key, Version};
use super::last_good::Pen;
use crate::model::Revision;
use crate::rt::crypto::digest::{SHA256, digest};

/// So many deaths with one state are enough.
const DEATHS: u32 = 3;

/// A sum over what is declared: the same for the same resources in the same versions, whatever order they came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Sum(u64);

impl Sum {
    /// With this resource.
    pub(super) fn add(&mut self, key: &Key, version: Version) {
        self.0 = self.0.wrapping_add(Self::of(key, version));
    }

    /// Without it again.
    pub(super) fn take(&mut self, key: &Key, version: Version) {
        self.0 = self.0.wrapping_sub(Self::of(key, version));
    }

    fn of((kind, id): &Key, Version { revision, fingerprint }: Version) -> u64 {
        let text = format!("{kind}/{id} {revision} {fingerprint}");
        let mut first = [0; 8];
        first.copy_from_slice(&digest(&SHA256, text.as_bytes()).as_ref()[..8]);
        u64::from_be_bytes(first)
    }
}

/// A state that the process died with and that is not taken again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldOff {
    /// The revision of the state.
    pub revision: Revision,
    /// How often the process died with it.
    pub deaths: u32,
    /// The revision that is in force in its place.
    pub in_force: Revision,
}

/// What the marker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    /// The state on probation.
    state: Sum,
    revision: Revision,
    deaths: u32,
    /// Whose probation it is.
    pid: u32,
    /// It has failed: another state is in force in its place.
    held_off: bool,
}

/// Watches over the states of one data plane.
#[derive(Debug)]
pub struct Probation {
    copy: PathBuf,
    within: Duration,
    pen: Pen,
    marker: Mutex<Option<Marker>>,
    /// A state has begun its probation.
    begun: Notify,
    /// The process was asked to end: whatever ends it now is no crash.
    is_over: AtomicBool,
}

impl Probation {
    /// The guard beside the last good copy at `copy`: a state has stood its probation when the process lives `within` after it.
    ///
    /// A process that has not the pen (it is about to take over from another one) finds what that one has on probation, which
    /// is no death.
    pub fn open(copy: &Path, within: Duration, pen: &Pen) -> Self {
        let found = read(&beside(copy, "trial"));
        let (copy, pen) = (copy.to_owned(), pen.clone());
        let marker = found.filter(|_| pen.is_up()).map(|found| match found.held_off {
            true => found,
            false => Marker { deaths: found.deaths + 1, ..found },
        });
        let (marker_of, begun) = (Mutex::new(None), Notify::new());
        let probation =
            Self { copy, within, pen, marker: marker_of, begun, is_over: AtomicBool::new(false) };
        if let Some(marker) = marker {
            if !marker.held_off {
                let Marker { revision, deaths, .. } = marker;
                warn!(revision, deaths, "the process died soon after it took this revision");
            }
            probation.write(&marker);
        }
        probation
    }

    /// Has the process died with a state often enough?
    pub(super) fn is_looping(&self) -> bool {
        let marker = self.marker.lock();
        marker.as_ref().is_some_and(|marker| marker.held_off || marker.deaths >= DEATHS)
    }

    /// Where the copy of the last state is that stood its probation, if there is one.
    pub(super) fn proven(&self) -> PathBuf {
        beside(&self.copy, "proven")
    }

    /// The process begins with this state, if that is another one than it died with.
    pub(super) fn fall_back(&self, other: Sum, in_force: Revision) -> Option<HeldOff> {
        let marker = self.marker.lock().clone()?;
        if marker.state == other {
            return None;
        }
        let Marker { revision, deaths, .. } = marker;
        error!(
            revision,
            deaths,
            in_force,
            "CRASH LOOP: the process died again and again soon after it took a revision; the last one that it lived with is in force \
             in its place, until another one comes"
        );
        self.write(&Marker { held_off: true, ..marker });
        Some(HeldOff { revision, deaths, in_force })
    }

    /// Is this the state that is held off?
    pub(super) fn holds_off(&self, state: Sum) -> bool {
        self.marker.lock().as_ref().is_some_and(|marker| marker.held_off && marker.state == state)
    }

    /// The process begins with the state of its last good copy. What it died with may be another one, which never came to the
    /// disk and is about to come again.
    pub(super) fn resume(&self, state: Sum, revision: Revision) {
        if self.marker.lock().is_none() {
            return self.begin(state, revision);
        }
        self.begun.notify_one();
    }

    /// A state is about to be taken.
    pub(super) fn begin(&self, state: Sum, revision: Revision) {
        if !self.pen.is_up() || self.is_over.load(Ordering::Acquire) {
            return;
        }
        let known = self.marker.lock().clone().filter(|marker| marker.state == state);
        let deaths = known.map_or(0, |marker| marker.deaths);
        let pid = std::process::id();
        self.write(&Marker { state, revision, deaths, pid, held_off: false });
        self.begun.notify_one();
    }

    /// Waits for what begins its probation, and notes that it stood it. `is_saved` tells whether the newest state is on disk.
    pub(super) async fn watch(&self, is_saved: impl Fn() -> bool) {
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        loop {
            self.begun.notified().await;
            loop {
                let begun = self.marker.lock().clone().filter(|marker| !marker.held_off);
                let Some(begun) = begun else { break };
                // What lies on the disk now is at least as old.
                let older = self.link();
                tokio::time::sleep(self.within).await;
                while !is_saved() {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                let has_stood = self.marker.lock().as_ref() == Some(&begun);
                let candidate = if has_stood { self.link() } else { older };
                if let Err(error) = candidate.and_then(|candidate| self.prove(&candidate))
                    && error.kind() != io::ErrorKind::NotFound
                {
                    warn!(%error, "what the process lives with could not be noted");
                }
                if has_stood {
                    *self.marker.lock() = None;
                    self.forget();
                    break;
                }
            }
        }
    }

    /// The process ends because it was asked to: nothing has killed it. What is held off stays so.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        let marker = self.marker.lock().take();
        if marker.is_some_and(|marker| !marker.held_off) {
            self.forget();
        }
    }

    /// The copy that is on disk now; later ones take its place and leave it as it is.
    fn link(&self) -> io::Result<PathBuf> {
        let candidate = beside(&self.copy, "candidate");
        if !self.pen.is_up() {
            return Ok(candidate);
        }
        match fs::remove_file(&candidate) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::hard_link(&self.copy, &candidate)?;
        Ok(candidate)
    }

    fn prove(&self, candidate: &Path) -> io::Result<()> {
        if self.pen.is_up() { fs::rename(candidate, beside(&self.copy, "proven")) } else { Ok(()) }
    }

    fn write(&self, marker: &Marker) {
        let marker = Marker { pid: std::process::id(), ..marker.clone() };
        let mut held = self.marker.lock();
        let place = beside(&self.copy, "trial");
        let written = serde_json::to_vec(&marker).map_err(io::Error::from).and_then(|text| {
            let temporary = beside(&self.copy, "trial.tmp");
            fs::write(&temporary, text)?;
            fs::rename(&temporary, &place)
        });
        if let Err(error) = written {
            warn!(%error, place = %place.display(), "a crash would not be counted");
        }
        *held = Some(marker);
    }

    /// Takes the marker away, unless another process has put its own there.
    fn forget(&self) {
        let place = beside(&self.copy, "trial");
        if read(&place).is_some_and(|marker| marker.pid == std::process::id()) {
            let _ = fs::remove_file(place);
        }
    }
}

/// A marker that cannot be read marks nothing: it is no reason not to start.
fn read(place: &Path) -> Option<Marker> {
    serde_json::from_slice(&fs::read(place).ok()?).ok()
}

fn beside(copy: &Path, ending: &str) -> PathBuf {
    let mut name = copy.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::super::tests::Folder;
    use super::*;
    use crate::model::{Id, Kind};

    const WITHIN: Duration = Duration::from_secs(60);

    fn state(number: u64) -> Sum {
        let mut sum = Sum::default();
        sum.add(&(Kind::Routes, Id::parse("1").unwrap()), Version::of(number, b"{}"));
        sum
    }

    fn open(copy: &Path) -> Probation {
        Probation::open(copy, WITHIN, &Pen::default())
    }

    #[test]
    fn a_sum_knows_no_order_and_forgets_what_is_taken() {
        let key = |id: &str| (Kind::Routes, Id::parse(id).unwrap());
        let (mut one, mut other) = (Sum::default(), Sum::default());
        let (a, b) = (Version::of(1, b"a"), Version::of(2, b"b"));
        one.add(&key("a"), a);
        one.add(&key("b"), b);
        other.add(&key("b"), b);
        other.add(&key("a"), a);
        assert_eq!(one, other);
        one.take(&key("a"), a);
        assert_ne!(one, other);
        one.take(&key("b"), b);
        assert_eq!(one, Sum::default());
    }

    #[test]
    fn three_deaths_with_one_state_bring_the_proven_one_back_until_another_comes() {
        let folder = Folder::new("probation");
        let copy = folder.0.join("last-good");
        for death in 0..3 {
            let process = open(&copy);
            assert!(!process.is_looping(), "after {death} deaths");
            // Seven never came to the disk.
            process.resume(state(6), 6);
            process.begin(state(7), 7);
        }
        let process = open(&copy);
        assert!(process.is_looping());
        let held_off = process.fall_back(state(6), 6).unwrap();
        assert_eq!(held_off, HeldOff { revision: 7, deaths: 3, in_force: 6 });
        assert!(process.holds_off(state(7)) && !process.holds_off(state(8)));
        // Neither a death nor an end that was asked for changes that.
        process.end();
        let process = open(&copy);
        assert!(process.is_looping() && process.holds_off(state(7)));

        process.begin(state(8), 8);
        assert!(!process.holds_off(state(7)));
        assert!(!open(&copy).is_looping(), "the next one dies for the first time");
    }

    #[test]
    fn an_end_that_was_asked_for_is_no_death_and_neither_is_a_process_that_takes_over() {
        let folder = Folder::new("no-death");
        let copy = folder.0.join("last-good");
        for _ in 0..5 {
            let process = open(&copy);
            process.begin(state(7), 7);
            process.end();
        }
        assert!(!open(&copy).is_looping());
        let process = open(&copy);
        process.begin(state(7), 7);
        let before = fs::read(beside(&copy, "trial")).unwrap();
        let pen = Pen::default();
        pen.lay_down();
        for _ in 0..5 {
            let heir = Probation::open(&copy, WITHIN, &pen);
            heir.begin(state(7), 7);
            assert!(!heir.is_looping());
        }
        assert_eq!(fs::read(beside(&copy, "trial")).unwrap(), before);
    }

    #[test]
    fn with_the_same_state_there_is_nothing_to_go_back_to_and_a_damaged_marker_marks_nothing() {
        let folder = Folder::new("nothing-proven");
        let copy = folder.0.join("last-good");
        for _ in 0..4 {
            open(&copy).begin(state(7), 7);
        }
        let process = open(&copy);
        assert!(process.is_looping() && process.fall_back(state(7), 7).is_none());
        fs::write(beside(&copy, "trial"), "damaged").unwrap();
        assert!(!open(&copy).is_looping());
    }

    #[tokio::test(start_paused = true)]
    async fn who_lives_long_enough_with_a_state_has_proven_it() {
        let folder = Folder::new("proven");
        let copy = folder.0.join("last-good");
        fs::write(&copy, "seven").unwrap();
        let process = std::sync::Arc::new(open(&copy));
        let watching = process.clone();
        let mut tasks = crate::rt::Tasks::new();
        tasks.add(async move { watching.watch(|| true).await });
        process.begin(state(7), 7);
        tokio::time::sleep(WITHIN / 2).await;
        assert!(beside(&copy, "trial").exists() && !beside(&copy, "proven").exists());
        // Another state comes meanwhile; the first one is proven all the same, the other one not yet.
        fs::write(beside(&copy, "new"), "eight").unwrap();
        fs::rename(beside(&copy, "new"), &copy).unwrap();
        process.begin(state(8), 8);
        tokio::time::sleep(WITHIN).await;
        assert_eq!(fs::read(beside(&copy, "proven")).unwrap(), b"seven");
        assert!(beside(&copy, "trial").exists());
        tokio::time::sleep(WITHIN * 2).await;
        assert_eq!(fs::read(beside(&copy, "proven")).unwrap(), b"eight");
        assert!(!beside(&copy, "trial").exists());
    }
}
