//! `Proof`: what a live connection rests on. `Proofs`: those of one worker.
//!
//! A proof only remembers: its conditions, whether one of them fell, and whom to wake then. Who watches the conditions tells it
//! ([`Proof::falls`], [`Proof::cut`]). Whatever carries a connection looks at it, and needs no timer and no task of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::ExpectedPeers;
use crate::identity::{Flaw, Identity, Peer, SpiffeId};
use crate::model::{Listeners, Strictness};

/// Why a connection has lost its proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lapse {
    /// The peer's certificate, or an authority in its chain, is over.
    PeerExpired = 1,
    /// The SVID of ours that the connection was made with is over.
    OwnSvidExpired,
    /// Our identity was taken away by its source.
    Withdrawn,
    /// No authority that we trust by now vouches for the peer.
    BundleChanged,
    /// A revocation list speaks against the peer, or none speaks for it where one must.
    Revoked,
    /// The deny list names the peer.
    DeniedByList,
    /// No rule can allow the peer anything any more; of an exchange: policy refuses by now what it allowed at the start.
    PolicyChanged,
    /// The connection is as old as one may become.
    MaxAge,
    /// The caller has no identity, and its door asks for more than when it was let in.
    ModeTightened,
}

impl Lapse {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::PeerExpired,
        Self::OwnSvidExpired,
        Self::Withdrawn,
        Self::BundleChanged,
        Self::Revoked,
        Self::DeniedByList,
        Self::PolicyChanged,
        Self::MaxAge,
        Self::ModeTightened,
    ];

    /// The stable name, for records and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::PeerExpired => "peer_expired",
            Self::OwnSvidExpired => "own_svid_expired",
            Self::Withdrawn => "withdrawn",
            Self::BundleChanged => "bundle_changed",
            Self::Revoked => "revoked",
            Self::DeniedByList => "denied_by_list",
            Self::PolicyChanged => "policy_changed",
            Self::MaxAge => "max_age",
            Self::ModeTightened => "identity_mode",
        }
    }

    /// Its place in [`Lapse::ALL`].
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// Was trust or permission taken away? The others came with time, and everybody knew beforehand.
    pub const fn is_taken(self) -> bool {
        !matches!(self, Self::PeerExpired | Self::OwnSvidExpired | Self::MaxAge)
    }

    /// May a request that is on its way still be answered? Who is at the other end is proved as before: policy answers it.
    pub const fn is_gentle(self) -> bool {
        matches!(self, Self::PolicyChanged | Self::MaxAge)
    }

    fn of_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

impl From<&Flaw> for Lapse {
    fn from(flaw: &Flaw) -> Self {
        match flaw {
            Flaw::Expired | Flaw::AuthorityExpired => Self::PeerExpired,
            Flaw::Revoked
            | Flaw::AuthorityRevoked
            | Flaw::RevocationUnknown
            | Flaw::RevocationExpired => Self::Revoked,
            Flaw::DeniedSerial | Flaw::DeniedKey | Flaw::DeniedId => Self::DeniedByList,
            _ => Self::BundleChanged,
        }
    }
}

/// Who made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It came in through this door.
    Accepted(Listeners),
    /// We made it.
    Originated,
}

impl Opening {
    /// `accepted` or `originated`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Originated => "originated",
        }
    }
}

/// What a connection is when it begins.
#[derive(Clone, Debug)]
pub struct Begun {
    /// The connection's number in this process.
    pub number: u64,
    /// Who made it.
    pub opening: Opening,
    /// The socket's own end.
    pub local: SocketAddr,
    /// The socket's other end.
    pub remote: SocketAddr,
    /// Whom the handshake proved; nobody on a plain connection.
    pub peer: Option<Arc<Peer>>,
    /// Of a connection that we made: whom we wanted there.
    pub expected: Option<Arc<ExpectedPeers>>,
    /// Of a caller that was let in without an identity at a door of the mesh: how strict the door was.
    pub lax: Option<Strictness>,
    /// Who we were in the handshake, and when the SVID that we showed ends, seconds since 1970.
    pub own: Option<(SpiffeId, i64)>,
    /// When it began, seconds since 1970.
    pub since: i64,
    /// When it is too old, seconds since 1970.
    pub old_at: Option<i64>,
}

impl Begun {
    /// Who we are by `identity`, for [`Begun::own`].
    pub fn own(identity: &Identity) -> (SpiffeId, i64) {
        (identity.id().clone(), identity.svid.not_after)
    }

    /// The first of the conditions that time ends, and which it is.
    pub fn ends(&self) -> Option<(i64, Lapse)> {
        let own = self.own.as_ref().map(|(_, end)| (*end, Lapse::OwnSvidExpired));
        let peer = self.peer.as_ref().map(|peer| (peer.not_after, Lapse::PeerExpired));
        let age = self.old_at.map(|end| (end, Lapse::MaxAge));
        [peer, own, age].into_iter().flatten().min_by_key(|(end, _)| *end)
    }
}

/// What one connection rests on, and whether it still does.
///
/// Everything that carries the connection holds it; the registry lets it go with the last of them.
pub struct Proof {
    /// What the connection was when it began.
    pub begun: Begun,
    /// 0 while it stands.
    lapse: AtomicU8,
    is_cut: AtomicBool,
    is_busy: AtomicBool,
    /// The revision of trust that the peer was judged by last.
    judged: AtomicU64,
    waiting: Mutex<Waiting>,
    proofs: Arc<Proofs>,
    slot: usize,
}

/// The tasks that carry a connection.
#[derive(Default)]
struct Waiting {
    main: Option<Waker>,
    /// Further ones, one for each stream.
    others: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// The revision that a connection without a peer is judged by: every one.
const ALWAYS: u64 = u64::MAX;

impl Proof {
    /// Which condition fell, if one did: the first. No further request is taken then.
    pub fn lapse(&self) -> Option<Lapse> {
        Lapse::of_number(self.lapse.load(Ordering::Relaxed))
    }

    /// Is the time to finish over as well? Whatever is left ends at once.
    pub fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    /// Does it stand, judged by this revision of trust?
    pub fn stands(&self, revision: u64) -> bool {
        self.lapse.load(Ordering::Relaxed) == 0 && self.is_judged(revision)
    }

    /// Was the peer judged by this revision of trust?
    pub fn is_judged(&self, revision: u64) -> bool {
        self.judged.load(Ordering::Relaxed) >= revision
    }

    /// The peer was found good by this revision of trust.
    pub fn judged(&self, revision: u64) {
        self.judged.fetch_max(revision, Ordering::Relaxed);
    }

    /// A condition falls; wakes whoever carries the connection. `false` when one had fallen before.
    pub fn falls(&self, lapse: Lapse) -> bool {
        let first =
            self.lapse.compare_exchange(0, lapse as u8, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            self.wake(true);
        }
        first.is_ok()
    }

    /// The time to finish is over; wakes whoever carries the connection.
    pub fn cut(&self) {
        if !self.is_cut.swap(true, Ordering::Relaxed) {
            self.wake(true);
        }
    }

    /// The task that carries the connection: it is woken when a condition falls and when the time to finish is over. One at a
    /// time; a task need not say it twice.
    pub fn attend(&self, waker: &Waker) {
        let mut waiting = self.waiting.lock();
        match &mut waiting.main {
            Some(there) if there.will_wake(waker) => {}
            main => *main = Some(waker.clone()),
        }
    }

    /// The same for the task that polls this.
    pub fn attended(&self) -> impl Future<Output = ()> + '_ {
        std::future::poll_fn(|context| {
            self.attend(context.waker());
            Poll::Ready(())
        })
    }

    /// Nobody carries the connection now: the task that did may be gone, and need not be kept in memory.
    pub fn forget_attendant(&self) {
        self.waiting.lock().main = None;
    }

    /// A task that carries a part of the connection, as long as the result lives.
    pub fn accompany(self: &Arc<Self>, waker: &Waker) -> Accompanied {
        let mut waiting = self.waiting.lock();
        let slot = waiting.free.pop().unwrap_or_else(|| {
            waiting.others.push(None);
            waiting.others.len() - 1
        });
        waiting.others[slot] = Some(waker.clone());
        drop(waiting);
        Accompanied { proof: self.clone(), slot }
    }

    /// Is something under way that a change of policy may end?
    pub fn set_busy(&self, is_busy: bool) {
        self.is_busy.store(is_busy, Ordering::Relaxed);
    }

    /// Wakes who carries something that is under way.
    pub fn wake_busy(&self) {
        self.wake(self.is_busy.load(Ordering::Relaxed));
    }

    fn wake(&self, main: bool) {
        let waiting = self.waiting.lock();
        let others = waiting.others.iter().flatten();
        others.chain(waiting.main.as_ref().filter(|_| main)).for_each(Waker::wake_by_ref);
    }

    /// Ready with the reason when the connection must end at once: for what carries bytes and knows no requests.
    pub fn poll_cut(&self, context: &mut Context<'_>) -> Poll<Lapse> {
        self.attend(context.waker());
        match self.lapse().filter(|_| self.is_cut()) {
            Some(lapse) => Poll::Ready(lapse),
            None => Poll::Pending,
        }
    }
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proof")
            .field("number", &self.begun.number)
            .field("lapse", &self.lapse())
            .field("is_cut", &self.is_cut())
            .finish_non_exhaustive()
    }
}

impl Drop for Proof {
    fn drop(&mut self) {
        self.proofs.leave(self.slot);
        self.proofs.live[side(self.begun.opening)].fetch_sub(1, Ordering::Relaxed);
        (self.proofs.on_end)(self);
    }
}

/// Keeps a stream's task among those that are woken.
#[derive(Debug)]
pub struct Accompanied {
    proof: Arc<Proof>,
    slot: usize,
}

impl Drop for Accompanied {
    fn drop(&mut self) {
        let mut waiting = self.proof.waiting.lock();
        waiting.others[self.slot] = None;
        waiting.free.push(self.slot);
    }
}

/// The proofs of one worker's live connections.
pub struct Proofs {
    places: Mutex<Places>,
    live: [AtomicUsize; 2],
    on_end: Box<dyn Fn(&Proof) + Send + Sync>,
}

struct Places {
    /// Side by side, so that looking at ten thousand ends reads two hundred KiB.
    all: Vec<Place>,
    free: Vec<usize>,
    /// No end is earlier.
    earliest: i64,
}

struct Place {
    ends_at: i64,
    proof: Weak<Proof>,
}

impl std::fmt::Debug for Proofs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proofs").field("live", &self.live).finish_non_exhaustive()
    }
}

impl Proofs {
    /// None yet. `on_end` is called with each that its connection has let go.
    pub fn new(on_end: impl Fn(&Proof) + Send + Sync + 'static) -> Arc<Self> {
        let places = Places { all: Vec::new(), free: Vec::new(), earliest: i64::MAX };
        Arc::new(Self {
            places: Mutex::new(places),
            live: Default::default(),
            on_end: Box::new(on_end),
        })
    }

    /// The proof of a new connection whose peer was judged by this revision of trust.
    pub fn enter(self: &Arc<Self>, begun: Begun, judged: u64) -> Arc<Proof> {
        let ends_at = begun.ends().map_or(i64::MAX, |(end, _)| end);
        self.live[side(begun.opening)].fetch_add(1, Ordering::Relaxed);
        let mut places = self.places.lock();
        let slot = places.free.pop().unwrap_or_else(|| {
            places.all.push(Place { ends_at, proof: Weak::new() });
            places.all.len() - 1
        });
        let proof = Arc::new(Proof {
            judged: AtomicU64::new(if begun.peer.is_some() { judged } else { ALWAYS }),
            begun,
            lapse: AtomicU8::new(0),
            is_cut: AtomicBool::new(false),
            is_busy: AtomicBool::new(false),
            waiting: Mutex::default(),
            proofs: self.clone(),
            slot,
        });
        places.all[slot] = Place { ends_at, proof: Arc::downgrade(&proof) };
        places.earliest = places.earliest.min(ends_at);
        proof
    }

    fn leave(&self, slot: usize) {
        let mut places = self.places.lock();
        places.all[slot] = Place { ends_at: i64::MAX, proof: Weak::new() };
        places.free.push(slot);
    }

    /// How many connections of this side live.
    pub fn live(&self, opening: Opening) -> usize {
        self.live[side(opening)].load(Ordering::Relaxed)
    }

    /// Those from place `from` on, at most `count` places of them, and where to go on. `None`: that was all.
    pub fn some(&self, from: usize, count: usize) -> (Vec<Arc<Proof>>, Option<usize>) {
        let places = self.places.lock();
        let rest = places.all.get(from..).unwrap_or_default();
        let found = rest.iter().take(count).filter_map(|place| place.proof.upgrade()).collect();
        // The last owner of one may be who got it here: it is let go when the lock is no longer held.
        (found, (rest.len() > count).then_some(from + count))
    }

    /// Those whose time is over, each once.
    pub fn over(&self, now: i64) -> Vec<Arc<Proof>> {
        let mut places = self.places.lock();
        if now < places.earliest {
            return Vec::new();
        }
        let (mut found, mut earliest) = (Vec::new(), i64::MAX);
        for place in &mut places.all {
            if place.ends_at <= now {
                place.ends_at = i64::MAX;
                found.extend(place.proof.upgrade());
            }
            earliest = earliest.min(place.ends_at);
        }
        places.earliest = earliest;
        found
    }
}

const fn side(opening: Opening) -> usize {
    match opening {
        Opening::Accepted(_) => 0,
        Opening::Originated => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn woken() -> (Arc<Woken>, Waker) {
        let woken = Arc::<Woken>::default();
        (woken.clone(), woken.into())
    }

    fn begun(number: u64, old_at: Option<i64>) -> Begun {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        Begun {
            lax: None,
            number,
            opening: Opening::Originated,
            local: address,
            remote: address,
            peer: None,
            expected: None,
            own: None,
            since: 0,
            old_at,
        }
    }

    #[test]
    fn the_first_condition_that_falls_is_the_reason_and_everybody_is_woken() {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let kept = ended.clone();
        let proofs =
            Proofs::new(move |proof| kept.lock().push((proof.begun.number, proof.lapse())));
        let proof = proofs.enter(begun(7, None), 1);
        assert!(proof.stands(1) && proof.stands(9), "without a peer no trust matters");
        let ((main, waker), (stream, other)) = (woken(), woken());
        let mut context = Context::from_waker(&waker);
        assert!(proof.poll_cut(&mut context).is_pending());
        let accompanied = proof.accompany(&other);
        let counts = || (main.0.load(Ordering::Relaxed), stream.0.load(Ordering::Relaxed));

        proof.wake_busy();
        assert_eq!(counts(), (0, 1), "an idle connection is not disturbed");
        proof.set_busy(true);
        proof.wake_busy();
        assert_eq!(counts(), (1, 2));
        assert!(proof.falls(Lapse::Revoked) && !proof.falls(Lapse::MaxAge));
        assert_eq!((counts(), proof.lapse()), ((2, 3), Some(Lapse::Revoked)));
        assert!(!proof.stands(0) && proof.poll_cut(&mut context).is_pending());
        drop(accompanied);
        proof.cut();
        proof.cut();
        assert_eq!(counts(), (3, 3));
        assert_eq!(proof.poll_cut(&mut context), Poll::Ready(Lapse::Revoked));

        assert_eq!(proofs.live(Opening::Originated), 1);
        drop(proof);
        assert_eq!(
            (proofs.live(Opening::Originated), &*ended.lock()),
            (0, &vec![(7, Some(Lapse::Revoked))])
        );
    }

    #[test]
    fn ends_are_found_when_they_come_and_places_are_used_again() {
        let proofs = Proofs::new(|_| {});
        let mut kept: Vec<_> =
            (0..10).map(|at| proofs.enter(begun(at, Some(100 + at.cast_signed())), 0)).collect();
        kept.push(proofs.enter(begun(10, None), 0));
        let numbers = |found: Vec<Arc<Proof>>| -> Vec<u64> {
            found.iter().map(|proof| proof.begun.number).collect()
        };
        assert!(proofs.over(99).is_empty());
        assert_eq!(numbers(proofs.over(102)), [0, 1, 2]);
        assert!(proofs.over(102).is_empty(), "each once");
        drop(kept.drain(..5));
        assert_eq!(numbers(proofs.over(200)), [5, 6, 7, 8, 9]);

        kept.push(proofs.enter(begun(11, Some(50)), 0));
        assert_eq!(proofs.places.lock().all.len(), 11);
        assert_eq!(numbers(proofs.over(50)), [11]);
        let (first, next) = proofs.some(0, 6);
        let (second, end) = proofs.some(next.unwrap(), 6);
        assert_eq!((first.len() + second.len(), end), (7, None));
    }

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            Lapse::ALL.iter().map(|one| one.code()).collect();
        assert_eq!(names.len(), Lapse::ALL.len());
        assert!(Lapse::ALL.iter().enumerate().all(|(at, one)| one.index() == at));
        assert_eq!(Lapse::from(&Flaw::Expired), Lapse::PeerExpired);
        assert_eq!(Lapse::from(&Flaw::UnknownAuthority), Lapse::BundleChanged);
    }
}
