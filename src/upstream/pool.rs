//! Idle connections by endpoint and identity: one pool a worker, lent to one exchange at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::{Introduction, Place, Slot, Stream};
use crate::model::KeepalivePool;
use crate::mtls::Proof;
use crate::rt::http2::Opener;

/// Seconds before the end of its proof in which a connection is not used again: the other side closes it then. Where
/// certificates are short, a quarter of the connection's life.
const MARGIN: i64 = 5;

/// After so long in the pool a connection no longer remembers the task that used it last.
const SETTLED: Duration = Duration::from_secs(1);

/// A connection and how it may be used again.
#[derive(Debug)]
pub struct Idle {
    /// Its bytes.
    pub stream: Stream,
    /// What made it usable.
    pub reuse: Reuse,
}

/// How often a connection was used, and what it rests on.
#[derive(Clone, Debug)]
pub struct Reuse {
    /// Requests it has served.
    pub requests: u32,
    /// What it rests on, towards workloads.
    pub proof: Option<Arc<Proof>>,
    /// For whom it is, where the upstream was told: it serves nobody else.
    pub introduced: Option<Introduction>,
    /// Its part of what the upstream allows, where connections are counted.
    pub slot: Option<Slot>,
}

impl Reuse {
    /// Has its proof fallen?
    pub fn has_fallen(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.lapse().is_some())
    }

    /// Should it be closed when it is idle, because requests of other workers wait for a connection?
    fn is_wanted_elsewhere(&self, own: u32) -> bool {
        self.slot.as_ref().is_some_and(|slot| slot.is_wanted_elsewhere(own))
    }

    /// Does it rest on nothing, or on a proof that holds for some time yet?
    fn holds(&self, now: i64, margin: i64, stands: impl Fn(&Arc<Proof>) -> bool) -> bool {
        let lasts = |proof: &Proof, end: i64| {
            let quarter = (end - proof.begun.since) / 4;
            end > now + quarter.max(1).min(margin)
        };
        self.proof.as_ref().is_none_or(|proof| {
            stands(proof) && proof.begun.ends().is_none_or(|(end, _)| lasts(proof, end))
        })
    }
}

#[derive(Default)]
struct Kept {
    idle: Vec<(Idle, Instant)>,
    limits: KeepalivePool,
    /// Requests of this worker that wait for a connection to come back.
    waiting: u32,
    /// The lock is held while a connection is made, so that a burst makes one.
    http2: Shared,
}

/// The HTTP/2 connections to one endpoint that a worker's exchanges share: one, and more when the peer's limit of streams is
/// reached.
pub type Shared = Arc<tokio::sync::Mutex<Vec<Multiplexed>>>;

/// An HTTP/2 connection that exchanges share.
#[derive(Debug)]
pub struct Multiplexed {
    /// Opens streams.
    pub opener: Opener,
    /// How it may be used again.
    pub reuse: Reuse,
    /// Held by each exchange under way on it; tells connections apart.
    pub streams: Arc<()>,
    /// When the worker last found nobody on it.
    idle_since: Option<Instant>,
}

impl Multiplexed {
    /// A new one, for its first exchange.
    pub fn new(opener: Opener, reuse: Reuse, streams: Arc<()>) -> Self {
        Self { opener, reuse, streams, idle_since: None }
    }

    /// Counts one more exchange; `false` when it has had as many as `limits` give it.
    pub fn takes_one_more(&mut self, limits: KeepalivePool) -> bool {
        let takes = self.reuse.requests < limits.requests;
        self.reuse.requests = self.reuse.requests.saturating_add(1);
        takes
    }

    /// Does the peer take one more stream at once? Behind long ones a queued stream could wait for ever.
    pub fn has_room(&self) -> bool {
        Arc::strong_count(&self.streams) <= self.opener.most_streams()
    }

    /// May it take a further stream, as far as its proof goes?
    pub fn holds(&self, now: i64, stands: impl Fn(&Arc<Proof>) -> bool) -> bool {
        self.reuse.holds(now, 0, stands)
    }

    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.streams) == 1
    }
}

/// A worker's idle connections.
#[derive(Default)]
pub struct Pool {
    places: HashMap<Place, Kept, foldhash::fast::RandomState>,
}

impl Kept {
    /// As in nginx, 0 is no limit.
    fn idle_limit(&self) -> Duration {
        let limit = Duration::try_from_secs_f64(self.limits.idle_timeout);
        limit.ok().filter(|limit| !limit.is_zero()).unwrap_or(Duration::MAX)
    }
}

impl Pool {
    /// No connections yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The newest idle connection of that place that nothing speaks against: no bytes and no end have arrived on it.
    pub fn take(
        &mut self,
        place: Place,
        caller: Option<Introduction>,
        now: i64,
        stands: impl Fn(&Arc<Proof>) -> bool,
        context: &mut Context<'_>,
    ) -> Option<Idle> {
        let kept = self.places.get_mut(&place)?;
        let limit = kept.idle_limit();
        loop {
            let (idle, since) = match caller {
                None => kept.idle.pop()?,
                Some(_) => {
                    let is_for = |(idle, _): &(Idle, Instant)| idle.reuse.introduced == caller;
                    kept.idle.remove(kept.idle.iter().rposition(is_for)?)
                }
            };
            if since.elapsed() < limit
                && idle.reuse.holds(now, MARGIN, &stands)
                && idle.stream.poll_arrived(context).is_pending()
            {
                return Some(idle);
            }
        }
    }

    /// Keeps a connection for the next exchange, or closes it when the limits say so.
    pub fn put(&mut self, place: Place, idle: Idle, limits: KeepalivePool) {
        let is_used_up = idle.reuse.requests >= limits.requests || idle.reuse.has_fallen();
        if is_used_up {
            return;
        }
        let kept = self.places.entry(place).or_default();
        if idle.reuse.is_wanted_elsewhere(kept.waiting) {
            return;
        }
        kept.limits = limits;
        if kept.idle.len() >= limits.size as usize {
            // The oldest goes: it is the likeliest to be closed by the other side soon.
            kept.idle.remove(0);
        }
        let slot = idle.reuse.slot.clone();
        kept.idle.push((idle, Instant::now()));
        if let Some(slot) = slot {
            slot.is_idle();
        }
    }

    /// One more request waits for a connection to come back, or one less.
    pub fn waits(&mut self, place: Place, begins: bool) {
        let kept = self.places.entry(place).or_default();
        kept.waiting = match begins {
            true => kept.waiting + 1,
            false => kept.waiting.saturating_sub(1),
        };
    }

    /// The HTTP/2 connections of that place that exchanges share.
    pub fn shared(&mut self, place: Place, limits: KeepalivePool) -> Shared {
        let kept = self.places.entry(place).or_default();
        kept.limits = limits;
        kept.http2.clone()
    }

    /// Closes what has been idle for too long. Called once a second by the worker.
    pub fn sweep(&mut self) {
        let now = Instant::now();
        self.places.retain(|_, place| {
            let limit = place.idle_limit();
            let expired = place.idle.partition_point(|(_, since)| now - *since >= limit);
            place.idle.drain(..expired);
            let waiting = place.waiting;
            place.idle.retain(|(idle, _)| !idle.reuse.is_wanted_elsewhere(waiting));
            for (idle, since) in &place.idle {
                if let Some(proof) = idle.reuse.proof.as_ref().filter(|_| now - *since >= SETTLED) {
                    proof.forget_attendant();
                }
            }
            if let Ok(mut shared) = place.http2.try_lock() {
                // One may wait for the next burst; the others have done their part.
                let mut waits = false;
                shared.retain(|each| !each.reuse.has_fallen());
                shared.retain_mut(|each| {
                    let idle = each.is_idle();
                    each.idle_since = each.idle_since.filter(|_| idle).or(idle.then_some(now));
                    let old = each.idle_since.is_some_and(|since| now - since >= limit);
                    let wanted = each.reuse.is_wanted_elsewhere(waiting);
                    let spare = idle && (wanted || std::mem::replace(&mut waits, true));
                    !spare && !old && !each.opener.is_closed()
                });
            }
            let shares = Arc::strong_count(&place.http2) > 1
                || place.http2.try_lock().map_or(true, |shared| !shared.is_empty());
            !place.idle.is_empty() || shares || place.waiting > 0
        });
    }

    /// Closes idle connections whose proof has fallen; shared ones take no further stream, and end with those that they have.
    pub fn close_fallen(&mut self) {
        for place in self.places.values_mut() {
            place.idle.retain(|(idle, _)| !idle.reuse.has_fallen());
            // Whoever holds the lock looks for itself before it uses one.
            if let Ok(mut shared) = place.http2.try_lock() {
                shared.retain(|each| !each.reuse.has_fallen());
            }
        }
    }

    /// Idle HTTP/1.1 connections, of all endpoints.
    pub fn idle_count(&self) -> usize {
        self.places.values().map(|place| place.idle.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mtls::{Begun, Lapse, Opening, Proofs};
    use std::net::SocketAddr;

    /// What a connection rests on that began at 1000 and ends then.
    fn ending(end: i64) -> Reuse {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let begun = Begun {
            lax: None,
            number: 1,
            opening: Opening::Originated,
            local: address,
            remote: address,
            peer: None,
            expected: None,
            own: None,
            since: 1000,
            old_at: Some(end),
        };
        let proof = Some(Proofs::new(|_| {}).enter(begun, 0));
        Reuse { requests: 1, introduced: None, proof, slot: None }
    }

    #[test]
    fn a_connection_is_not_used_again_shortly_before_its_proof_ends() {
        let holds =
            |reuse: &Reuse, now, margin| reuse.holds(now, margin, |proof| proof.lapse().is_none());
        let long = ending(5000);
        assert!(holds(&long, 4994, MARGIN) && !holds(&long, 4995, MARGIN));
        assert!(holds(&long, 4999, 0) && !holds(&long, 5000, 0));
        // Of a short life a quarter, and a second at least.
        let (short, shortest) = (ending(1008), ending(1002));
        assert!(holds(&short, 1005, MARGIN) && !holds(&short, 1006, MARGIN));
        assert!(holds(&shortest, 1000, MARGIN) && !holds(&shortest, 1001, MARGIN));

        assert!(!long.has_fallen());
        long.proof.as_ref().unwrap().falls(Lapse::Withdrawn);
        assert!(long.has_fallen() && !holds(&long, 1000, MARGIN));
        let bare = Reuse { requests: 1, proof: None, introduced: None, slot: None };
        assert!(holds(&bare, i64::MAX, MARGIN));
    }
}
