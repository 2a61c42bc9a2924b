//! `Shards`: a map that is cheap to copy: a change copies one of its parts, all else is shared.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

type Shard<V, S> = HashMap<Box<str>, V, S>;

/// Names to values, in parts that versions share.
///
/// ```
/// # use wardgate::rt::Shards;
/// let mut names = Shards::<u32>::default();
/// names.insert("a", 1);
/// let before = names.clone();
/// names.insert("a", 2);
/// assert_eq!((before.find("a"), names.find("a")), (Some(&1), Some(&2)));
/// ```
#[derive(Clone, Debug)]
pub struct Shards<V, S = foldhash::fast::RandomState> {
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

    /// The value of this name.
    pub fn find(&self, key: &str) -> Option<&V> {
        self.parts.get(self.part(key))?.get(key)
    }

    /// The value of this name, the default one when there was none.
    ///
    /// # Panics
    /// Never: the parts were just made this map's alone.
    pub fn entry(&mut self, key: &str) -> &mut V
    where
        V: Default,
    {
        self.writable(key).entry(key.into()).or_default()
    }

    /// Gives a name a value, in place of an earlier one.
    ///
    /// # Panics
    /// Never: the parts were just made this map's alone.
    pub fn insert(&mut self, key: &str, value: V) {
        self.writable(key).insert(key.into(), value);
    }

    /// Forgets a name.
    ///
    /// # Panics
    /// Never: the parts were just made this map's alone.
    pub fn remove(&mut self, key: &str) {
        self.writable(key).remove(key);
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.parts.iter().flat_map(|part| part.values())
    }

    /// Has no name a value?
    pub fn is_empty(&self) -> bool {
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
