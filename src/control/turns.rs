//! `Turns`: who may write here at the same time.

use std::hash::{BuildHasher, RandomState};

use tokio::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::model::{Id, Kind};

/// So many resources may be written at once.
const AT_ONCE: usize = 64;

/// From the check of what a write rests on to the store's answer nobody else writes here what could make the check untrue. A turn is
/// held across that answer on purpose: who waits for the store lets others wait for it as well.
pub(super) struct Turns {
    all: RwLock<()>,
    /// Each resource belongs to one of these.
    ones: [Mutex<()>; AT_ONCE],
    hasher: RandomState,
}

/// Held by whoever writes.
#[expect(dead_code, reason = "what counts is how long it is held")]
pub(super) enum Turn<'a> {
    Alone(RwLockWriteGuard<'a, ()>),
    Beside(RwLockReadGuard<'a, ()>, Option<MutexGuard<'a, ()>>),
}

impl Turns {
    pub(super) fn new() -> Self {
        let ones = std::array::from_fn(|_| Mutex::new(()));
        Self { all: RwLock::new(()), ones, hasher: RandomState::new() }
    }

    /// Nobody else writes.
    pub(super) async fn alone(&self) -> Turn<'_> {
        Turn::Alone(self.all.write().await)
    }

    /// Nobody else writes this resource, and nobody takes away what it may name; one without an id is new. What must be judged
    /// against all others of its kind is written alone.
    pub(super) async fn of(&self, kind: Kind, id: Option<&Id>) -> Turn<'_> {
        let is_judged_by_itself =
            matches!(kind, Kind::Routes | Kind::Services | Kind::Upstreams | Kind::PluginConfigs);
        if !is_judged_by_itself {
            return self.alone().await;
        }
        let shared = self.all.read().await;
        let Some(id) = id else { return Turn::Beside(shared, None) };
        let hash = self.hasher.hash_one((kind, id)).to_ne_bytes();
        let one = usize::from(hash[0]) % AT_ONCE;
        Turn::Beside(shared, Some(self.ones[one].lock().await))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn resources_that_are_judged_by_themselves_are_written_side_by_side_and_each_by_one() {
        let turns = Turns::new();
        let id = |text: &str| Id::parse(text).unwrap();
        let ids: Vec<Id> = (0..40).map(|number| id(&format!("r{number}"))).collect();
        let first = turns.of(Kind::Routes, Some(&ids[0])).await;
        let beside =
            ids.iter().filter(|id| turns.of(Kind::Routes, Some(id)).now_or_never().is_some());
        assert!(beside.count() > 20, "hardly anybody may write beside the first");
        for (kind, id) in [(Kind::Routes, &ids[0]), (Kind::Consumers, &ids[1])] {
            assert!(turns.of(kind, Some(id)).now_or_never().is_none(), "{kind} {id}");
        }
        assert!(turns.alone().now_or_never().is_none());
        drop(first);
        let alone = turns.alone().now_or_never();
        assert!(alone.is_some());
        assert!(turns.of(Kind::Upstreams, None).now_or_never().is_none());
    }
}
