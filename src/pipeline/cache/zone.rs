//! `CacheZone`: one place for answers, bounded, with what is least used thrown away first.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;

use super::disk::{Disk, Doomed};
use super::flight::Flights;
use super::key::{CacheKey, Sum};
use super::settings::{CacheSettings, CacheStrategy};
use super::stored::{Stored, StoredBody};
use crate::pipeline::Head;

/// Answers to one request that differ by what `Vary` names.
const MOST_VARIANTS: usize = 32;
/// Resources that are remembered as changed.
const MOST_MARKS: usize = 65_536;
/// The unit that sizes are counted in, so that they fit the index' numbers.
const UNIT: u64 = 256;

/// Where a zone's answers lie.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Memory,
    Disk { size: u64, path: PathBuf, levels: Vec<usize> },
}

/// The zones of a process, by their names.
#[derive(Clone, Debug)]
pub struct CacheZones(Arc<[Arc<CacheZone>]>);

impl Default for CacheZones {
    /// The zones that there are without settings, for judging what names them.
    fn default() -> Self {
        static FOR_JUDGING: OnceLock<CacheZones> = OnceLock::new();
        let zones = || {
            let zones = CacheSettings::default().zones(Path::new(""));
            zones.expect("the default zones are lawful")
        };
        FOR_JUDGING.get_or_init(zones).clone()
    }
}

impl CacheZones {
    pub(super) fn new(zones: Vec<(String, u64, Place)>) -> Self {
        let zone = |(name, memory, place)| Arc::new(CacheZone::new(name, memory, place));
        Self(zones.into_iter().map(zone).collect())
    }

    /// The zone of this name.
    pub fn find(&self, name: &str) -> Option<Arc<CacheZone>> {
        self.0.iter().find(|zone| zone.name == name).cloned()
    }
}

/// One zone. Nothing is opened before it is used.
#[derive(Debug)]
pub struct CacheZone {
    name: String,
    memory: u64,
    place: Place,
    flights: Arc<Flights>,
    /// Bytes of answers on their way into memory.
    collecting: Arc<AtomicU64>,
    /// Answers that are asked for anew beside the traffic.
    refreshing: Arc<AtomicUsize>,
    opened: OnceLock<Option<Opened>>,
}

#[derive(Debug)]
struct Opened {
    index: Arc<Index>,
    disk: Option<Disk>,
}

impl CacheZone {
    fn new(name: String, memory: u64, place: Place) -> Self {
        Self {
            name,
            memory,
            place,
            flights: Arc::default(),
            collecting: Arc::default(),
            refreshing: Arc::default(),
            opened: OnceLock::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is for.
    pub fn strategy(&self) -> CacheStrategy {
        match self.place {
            Place::Memory => CacheStrategy::Memory,
            Place::Disk { .. } => CacheStrategy::Disk,
        }
    }

    pub(super) fn flights(&self) -> &Arc<Flights> {
        &self.flights
    }

    pub(super) fn refreshing(&self) -> &Arc<AtomicUsize> {
        &self.refreshing
    }

    /// Bytes of the largest answer that finds room.
    pub(super) fn most(&self) -> u64 {
        match &self.place {
            Place::Memory => self.memory / 2,
            Place::Disk { size, .. } => size / 2,
        }
    }

    /// What is stored, opened with the first use; nothing when the folder cannot be used.
    fn opened(&self) -> Option<&Opened> {
        let open = || match &self.place {
            Place::Memory => {
                Some(Opened { index: Arc::new(Index::new(self.memory, 0, None)), disk: None })
            }
            // Of zones that are there for judging alone.
            Place::Disk { path, .. } if path.as_os_str().is_empty() => None,
            Place::Disk { size, path, levels } => {
                let doomed = Arc::<Doomed>::default();
                let index = Arc::new(Index::new(self.memory, *size, Some(doomed.clone())));
                match Disk::open(path, levels, index.clone(), doomed) {
                    Ok(disk) => Some(Opened { index, disk: Some(disk) }),
                    Err(error) => {
                        tracing::error!(zone = %self.name, path = %path.display(), %error, "nothing is cached: the folder cannot be used");
                        None
                    }
                }
            }
        };
        self.opened.get_or_init(open).as_ref()
    }

    pub(super) fn index(&self) -> Option<&Arc<Index>> {
        Some(&self.opened()?.index)
    }

    pub(super) fn disk(&self) -> Option<&Disk> {
        self.opened()?.disk.as_ref()
    }

    /// Takes room for bytes on their way into memory; nothing when there is none left.
    pub(super) fn lease(&self) -> Lease {
        Lease { collecting: self.collecting.clone(), most: self.memory, bytes: 0 }
    }
}

/// Room for an answer that is not complete yet. Given back when it is stored or given up.
#[derive(Debug)]
pub(super) struct Lease {
    collecting: Arc<AtomicU64>,
    most: u64,
    bytes: u64,
}

impl Lease {
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        let before = self.collecting.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        before + bytes <= self.most
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.collecting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

type Variants = Arc<Vec<Arc<Stored>>>;

/// What is stored, by key.
pub(super) struct Index {
    entries: Cache<Sum, Variants>,
    changed: Mutex<Changed>,
    doomed: Option<Arc<Doomed>>,
}

/// When resources were last changed through us: what was stored before does not count.
#[derive(Default)]
struct Changed {
    at: HashMap<Sum, u64>,
    /// What was stored before this does not count, whatever it is.
    all: u64,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Index({})", self.entries.entry_count())
    }
}

impl Index {
    /// For so many bytes of memory, and of disk when there is one.
    pub(super) fn new(memory: u64, disk: u64, doomed: Option<Arc<Doomed>>) -> Self {
        // Both bounds hold: a byte of memory weighs as much as the bytes of disk that come on it.
        let weight = move |_: &Sum, variants: &Variants| {
            let (mut in_memory, mut on_disk) = (0, 0);
            for (memory, disk) in variants.iter().map(|stored| stored.takes()) {
                (in_memory, on_disk) = (in_memory + memory, on_disk + disk);
            }
            let weight = match disk {
                0 => in_memory,
                disk => {
                    let scaled =
                        u128::from(in_memory) * u128::from(disk) / u128::from(memory.max(1));
                    on_disk.max(u64::try_from(scaled).unwrap_or(u64::MAX))
                }
            };
            u32::try_from(weight.div_ceil(UNIT)).unwrap_or(u32::MAX)
        };
        let room = if disk == 0 { memory } else { disk };
        let mut builder = Cache::builder()
            .max_capacity(room / UNIT)
            .weigher(weight)
            .eviction_policy(EvictionPolicy::lru());
        if let Some(doomed) = doomed.clone() {
            builder = builder.eviction_listener(move |_, variants: Variants, cause| {
                // What takes the place of something has said itself what goes.
                if cause.was_evicted() {
                    doomed.all_of(&variants);
                }
            });
        }
        Self { entries: builder.build(), changed: Mutex::default(), doomed }
    }

    /// The answer to a request of this key that says this.
    pub(super) fn find(&self, key: &CacheKey, request: &Head) -> Option<Arc<Stored>> {
        let variants = self.entries.get(&key.entry)?;
        let found = variants.iter().find(|stored| stored.fits(request))?.clone();
        (!self.is_outdated(&found)).then_some(found)
    }

    fn is_outdated(&self, stored: &Stored) -> bool {
        let changed = self.changed.lock();
        let since = stored.freshness.since;
        since < changed.all || changed.at.get(&stored.resource).is_some_and(|at| since <= *at)
    }

    /// Stores an answer in place of the one to the same request.
    pub(super) fn put(&self, entry: Sum, stored: &Arc<Stored>) {
        if self.is_outdated(stored) {
            self.doom(std::slice::from_ref(stored));
            return;
        }
        let mut dropped = Vec::new();
        let _ = self.entries.entry(entry).and_compute_with(|held| {
            let mut variants: Vec<Arc<Stored>> =
                held.map(|held| held.into_value().to_vec()).unwrap_or_default();
            // An answer that is chosen by other fields than those before it has been chosen anew.
            let same = |one: &Arc<Stored>| {
                one.vary == stored.vary || names(one) != names(stored) || self.is_outdated(one)
            };
            dropped = variants.extract_if(.., |one| same(one)).collect();
            if variants.len() >= MOST_VARIANTS {
                dropped.push(variants.remove(0));
            }
            variants.push(stored.clone());
            Op::Put(Arc::new(variants))
        });
        // A body that lives on in the new one stays.
        dropped.retain(|old| !same_file(&old.body, &stored.body));
        self.doom(&dropped);
        self.entries.run_pending_tasks();
    }

    /// Removes one answer.
    pub(super) fn remove(&self, entry: Sum, stored: &Arc<Stored>) {
        let mut found = false;
        let _ = self.entries.entry(entry).and_compute_with(|held| {
            let Some(held) = held else { return Op::Nop };
            let mut variants = held.into_value().to_vec();
            let before = variants.len();
            variants.retain(|one| !Arc::ptr_eq(one, stored));
            found = variants.len() < before;
            if variants.is_empty() { Op::Remove } else { Op::Put(Arc::new(variants)) }
        });
        if found {
            self.doom(std::slice::from_ref(stored));
        }
    }

    /// Removes all answers of a key; tells whether there was one that could have been given.
    pub(super) fn purge(&self, entry: &Sum) -> bool {
        let Some(variants) = self.entries.remove(entry) else { return false };
        self.doom(&variants);
        variants.iter().any(|stored| !self.is_outdated(stored))
    }

    /// The resource is not what it was: nothing that was stored of it up to `now` counts, whoever it was stored for.
    pub(super) fn change(&self, resource: Sum, now: u64) {
        let mut changed = self.changed.lock();
        if changed.at.len() >= MOST_MARKS {
            // Rather ask anew for everything than give out what has changed.
            changed.at.clear();
            changed.all = now + 1;
        }
        changed.at.insert(resource, now);
    }

    fn doom(&self, dropped: &[Arc<Stored>]) {
        if let Some(doomed) = &self.doomed {
            doomed.all_of(dropped);
        }
    }

    /// Entries, for tests: what waits to be thrown away is thrown away first.
    #[cfg(test)]
    pub(super) fn count(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.entry_count()
    }
}

fn names(stored: &Stored) -> impl PartialEq + use<> {
    stored.vary.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
}

fn same_file(one: &StoredBody, other: &StoredBody) -> bool {
    matches!((one, other), (StoredBody::File(one), StoredBody::File(other)) if Arc::ptr_eq(one, other))
}
