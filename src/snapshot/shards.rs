//! `Shards`: a map that is cheap to copy: a change copies one of its parts, all else is shared.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

type Shard<V, S> = HashMap<Box<str>, V, S>;

/// Names to values, in parts that versions share.
#[derive(Clone, Debug)]
pub(super) struct Shards<V, S = foldhash::fast::RandomState> {
    hasher: S,
    parts: Arc<[Arc<Shard<V, S>>]>,
}

const PARTS: usize = 256;

impl<V, S: Default> Default for Shards<V, S> {
    fn default() -> Self {
        Self { hasher: S::default(), parts: Arc::default() }
    }
}

impl<V: Clone, S: BuildHasher + Clone> Shards<V, S> {
    fn part(&self, key: &str) -> usize {
        // The top bits: the maps inside use the low ones.
        (self.hasher.hash_one(key) >> 48) as usize % PARTS
    }

    pub(super) fn find(&self, key: &str) -> Option<&V> {
        self.parts.get(self.part(key))?.get(key)
    }

    pub(super) fn entry(&mut self, key: &str) -> &mut V
    where
        V: Default,
    {
        self.writable(key).entry(key.into()).or_default()
    }

    pub(super) fn insert(&mut self, key: &str, value: V) {
        self.writable(key).insert(key.into(), value);
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.writable(key).remove(key);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.is_empty())
    }

    fn writable(&mut self, key: &str) -> &mut Shard<V, S> {
        if self.parts.is_empty() {
            let hasher = &self.hasher;
            self.parts =
                (0..PARTS).map(|_| Arc::new(HashMap::with_hasher(hasher.clone()))).collect();
        }
        let at = self.part(key);
        if Arc::get_mut(&mut self.parts).is_none() {
            self.parts = self.parts.iter().cloned().collect();
        }
        let parts = Arc::get_mut(&mut self.parts).expect("it was just made ours alone");
        Arc::make_mut(&mut parts[at])
    }
}
