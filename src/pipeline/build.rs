//! `Build`: what a plugin may ask for while it is compiled; `Kept`: state that outlives revisions by name.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde_json::Value;

use super::{CacheZone, CacheZones, Targets};
use crate::model::{Id, Kind};
use crate::observe::Registry;

/// Whose state it is: one resource's, or everybody's who names the same group.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Owner {
    Resource(Kind, Id),
    Group,
}

type KeptKey = (Owner, &'static str, String, TypeId);

#[derive(Default)]
struct Slots {
    by_key: HashMap<KeptKey, Weak<dyn Any + Send + Sync>>,
    /// As many as this, and those without a user are looked for.
    full_at: usize,
}

impl Slots {
    fn put(&mut self, key: KeptKey, slot: Weak<dyn Any + Send + Sync>) {
        // The whole is looked at each time that it has doubled: a change among many pays for itself alone.
        if self.by_key.len() >= self.full_at.max(64) {
            self.by_key.retain(|_, slot| slot.strong_count() > 0);
            self.full_at = 2 * self.by_key.len();
        }
        self.by_key.insert(key, slot);
    }
}

/// State kept from revision to revision as long as a snapshot uses it.
#[derive(Clone, Default)]
pub struct Kept {
    slots: Arc<Mutex<Slots>>,
    /// Where answers are stored; it is the process', and no revision's.
    zones: CacheZones,
    /// Looks state up and leaves none behind.
    trial: bool,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kept({})", self.slots.lock().by_key.len())
    }
}

impl Kept {
    /// The same state, for a compilation whose result is thrown away: what it makes anew is not kept.
    #[must_use]
    pub fn for_trial(&self) -> Self {
        Self { slots: self.slots.clone(), zones: self.zones.clone(), trial: true }
    }

    /// The same state, with these zones for answers that are stored.
    #[must_use]
    pub fn with_zones(self, zones: CacheZones) -> Self {
        Self { zones, ..self }
    }
}

/// What a plugin may ask for while it is compiled.
pub struct Build<'a> {
    /// The resource that carries the plugin.
    pub kind: Kind,
    /// Its id.
    pub owner: &'a Id,
    /// The plugin's name.
    pub plugin: &'static str,
    /// The plugin's gateway-wide metadata, if there is some.
    pub metadata: Option<&'a Value>,
    /// Makes targets of upstreams.
    pub targets: &'a dyn Targets,
    /// Which part of the plugin's settings it is, where plugins stand in plugins; empty otherwise.
    pub part: &'a str,
    /// The process' metrics.
    pub metrics: &'a Registry,
    /// State kept from revision to revision.
    pub kept: &'a Kept,
}

impl std::fmt::Debug for Build<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Build({} of {}/{})", self.plugin, self.kind, self.owner)
    }
}

impl<'a> Build<'a> {
    /// The same for a plugin within the plugin: `part` tells its state from that of others there.
    #[must_use]
    pub fn within(&self, part: &'a str, plugin: &'static str) -> Self {
        Self { part, plugin, metadata: None, ..*self }
    }
}

impl Build<'_> {
    /// The state `key` of this owner's plugin: what the previous revision used, or `make`'s.
    ///
    /// Two owners never share it; the last snapshot that uses it drops it.
    pub fn keep<T: Send + Sync + 'static>(&self, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
        match self.part {
            "" => self.slot(Owner::Resource(self.kind, self.owner.clone()), key, make),
            part => {
                let key = format!("{part} {key}");
                self.slot(Owner::Resource(self.kind, self.owner.clone()), &key, make)
            }
        }
    }

    /// The zone of this name.
    pub fn zone(&self, name: &str) -> Option<Arc<CacheZone>> {
        self.kept.zones.find(name)
    }

    /// The state of a `group` that several resources name: the same for all of them.
    pub fn keep_group<T: Send + Sync + 'static>(
        &self,
        group: &str,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        self.slot(Owner::Group, group, make)
    }

    fn slot<T: Send + Sync + 'static>(
        &self,
        owner: Owner,
        key: &str,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let slot = (owner, self.plugin, key.to_owned(), TypeId::of::<T>());
        let mut slots = self.kept.slots.lock();
        if let Some(kept) = slots.by_key.get(&slot).and_then(Weak::upgrade)
            && let Ok(kept) = kept.downcast::<T>()
        {
            return kept;
        }
        let made = Arc::new(make());
        if !self.kept.trial {
            let erased: Arc<dyn Any + Send + Sync> = made.clone();
            slots.put(slot, Arc::downgrade(&erased));
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build<'a>(kept: &'a Kept, owner: &'a Id) -> Build<'a> {
        static METRICS: std::sync::LazyLock<Registry> = std::sync::LazyLock::new(Registry::new);
        Build {
            kind: Kind::Routes,
            owner,
            plugin: "p",
            metadata: None,
            targets: &crate::pipeline::NoTargets,
            part: "",
            kept,
            metrics: &METRICS,
        }
    }

    #[test]
    fn kept_state_survives_a_revision_is_not_shared_and_dies_with_its_last_user() {
        let kept = Kept::default();
        let (one, two) = (Id::parse("1").unwrap(), Id::parse("2").unwrap());
        let first = build(&kept, &one).keep("window", || 7);
        let again = build(&kept, &one).keep("window", || 8);
        let other = build(&kept, &two).keep("window", || 9);
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!((*first, *other), (7, 9));
        assert_eq!(*build(&kept, &one).keep("other", || 1), 1);
        drop((first, again));
        assert_eq!(*build(&kept, &one).keep("window", || 8), 8);
    }

    #[test]
    fn slots_without_a_user_are_forgotten_as_others_come() {
        let kept = Kept::default();
        let lasting: Vec<_> = (1..=10)
            .map(|number| build(&kept, &Id::from(number)).keep("window", || number))
            .collect();
        for number in 11..10_000 {
            assert_eq!(*build(&kept, &Id::from(number)).keep("window", || number), number);
        }
        assert!(kept.slots.lock().by_key.len() <= 65, "{kept:?}");
        for (number, held) in (1..=10).zip(lasting) {
            assert!(Arc::ptr_eq(&held, &build(&kept, &Id::from(number)).keep("window", || 0)));
        }
    }

    #[test]
    fn a_group_is_shared_and_a_trial_leaves_nothing_behind() {
        let kept = Kept::default();
        let (one, two) = (Id::parse("1").unwrap(), Id::parse("2").unwrap());
        let first = build(&kept, &one).keep_group("g", || 7);
        assert!(Arc::ptr_eq(&first, &build(&kept, &two).keep_group("g", || 8)));
        let trial = kept.for_trial();
        assert_eq!(*build(&trial, &two).keep_group("g", || 8), 7);
        let made = build(&trial, &one).keep("window", || 1);
        assert_eq!(*build(&kept, &one).keep("window", || 2), 2);
        assert_eq!(*made, 1);
    }
}
