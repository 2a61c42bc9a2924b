//! `Keyed`: some state for each key that requests name. Shared by all workers; bounded, since callers may choose the key.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// State that means nothing any more some day.
pub(super) trait Passing {
    /// When it is as if it had never been.
    fn forgotten_at(&self) -> Instant;
}

/// A key's name: two keyed hashes, since a client's key may be long. Nobody outside finds two keys of one name.
pub(super) type Name = u128;

/// State by key.
pub(super) struct Keyed<V> {
    hashers: [RandomState; 2],
    shards: Box<[Mutex<Shard<V>>]>,
    max_keys_a_shard: usize,
}

struct Shard<V> {
    kept: HashMap<Name, V, foldhash::fast::RandomState>,
    /// At this size what has passed is swept out.
    sweep_at: usize,
    swept: Option<Instant>,
}

const SHARDS: usize = 64;
/// Callers may choose the key, so its number is bounded: 64 times this.
const MAX_KEYS_A_SHARD: usize = 16_384;
/// A shard full of what has not passed is not swept more often than this: a sweep looks at all of it.
const SWEEP_AFTER: Duration = Duration::from_secs(1);

impl<V: Passing> Default for Keyed<V> {
    fn default() -> Self {
        Self::with_room(MAX_KEYS_A_SHARD)
    }
}

impl<V: Passing> Keyed<V> {
    pub(super) fn with_room(max_keys_a_shard: usize) -> Self {
        let shard = || Mutex::new(Shard { kept: HashMap::default(), sweep_at: 0, swept: None });
        let shards = (0..SHARDS).map(|_| shard()).collect();
        Self { hashers: [RandomState::new(), RandomState::new()], shards, max_keys_a_shard }
    }

    /// The name of a key.
    pub(super) fn name(&self, key: impl Hash) -> Name {
        let [high, low] = [0, 1].map(|at: usize| self.hashers[at].hash_one(&key));
        u128::from(high) << 64 | u128::from(low)
    }

    /// Changes what `name` has, or what `make` makes where it has nothing.
    ///
    /// When more keys are in use than there is room for, that one of the few looked at is given up which passes first.
    pub(super) fn change<R>(
        &self,
        name: Name,
        now: Instant,
        make: impl FnOnce() -> V,
        change: impl FnOnce(&mut V) -> R,
    ) -> R {
        let mut shard = self.shard(name).lock();
        if let Some(kept) = shard.kept.get_mut(&name) {
            return change(kept);
        }
        shard.make_room(self.max_keys_a_shard, now);
        change(shard.kept.entry(name).or_insert_with(make))
    }

    /// Looks at what `name` has, if it has anything, and forgets it when `look` says so.
    pub(super) fn look<R>(&self, name: Name, look: impl FnOnce(&mut V) -> (R, Keep)) -> Option<R> {
        let mut shard = self.shard(name).lock();
        let (result, keep) = look(shard.kept.get_mut(&name)?);
        if keep == Keep::No {
            shard.kept.remove(&name);
        }
        Some(result)
    }

    fn shard(&self, name: Name) -> &Mutex<Shard<V>> {
        &self.shards[usize::from(name.to_be_bytes()[0]) % SHARDS]
    }

    /// How many keys have something.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().kept.len()).sum()
    }
}

/// Is what was looked at still wanted?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Yes,
    No,
}

impl<V: Passing> Shard<V> {
    fn make_room(&mut self, max: usize, now: Instant) {
        if self.kept.len() < self.sweep_at.max(64) {
            return;
        }
        if self.swept.is_none_or(|swept| now >= swept + SWEEP_AFTER) || self.kept.len() < max {
            self.kept.retain(|_, kept| kept.forgotten_at() > now);
            self.sweep_at = (self.kept.len() * 2).min(max);
            self.swept = Some(now);
        }
        if self.kept.len() >= max {
            let seen = self.kept.iter().take(16);
            let first = seen.min_by_key(|(_, kept)| kept.forgotten_at());
            if let Some(name) = first.map(|(name, _)| *name) {
                self.kept.remove(&name);
            }
        }
    }
}
