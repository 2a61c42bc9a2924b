//! `Build`: what a plugin may ask for while it is compiled; `Kept`: state that outlives revisions by name.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde_json::Value;

use crate::model::{Id, Kind};

type KeptKey = (Kind, Id, &'static str, String, TypeId);

/// State kept from revision to revision as long as a snapshot uses it.
#[derive(Clone, Default)]
pub struct Kept {
    slots: Arc<Mutex<HashMap<KeptKey, Weak<dyn Any + Send + Sync>>>>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kept({})", self.slots.lock().len())
    }
}

impl Kept {
    /// Forgets slots whose last user is gone.
    pub fn sweep(&self) {
        self.slots.lock().retain(|_, slot| slot.strong_count() > 0);
    }
}

/// What a plugin may ask for while it is compiled.
#[derive(Debug)]
pub struct Build<'a> {
    /// The resource that carries the plugin.
    pub kind: Kind,
    /// Its id.
    pub owner: &'a Id,
    /// The plugin's name.
    pub plugin: &'static str,
    /// The plugin's gateway-wide metadata, if there is some.
    pub metadata: Option<&'a Value>,
    /// State kept from revision to revision.
    pub kept: &'a Kept,
}

impl Build<'_> {
    /// The state `key` of this owner's plugin: what the previous revision used, or `make`'s.
    ///
    /// Two owners never share it; the last snapshot that uses it drops it.
    pub fn keep<T: Send + Sync + 'static>(&self, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let slot = (self.kind, self.owner.clone(), self.plugin, key.to_owned(), TypeId::of::<T>());
        let mut slots = self.kept.slots.lock();
        if let Some(kept) = slots.get(&slot).and_then(Weak::upgrade)
            && let Ok(kept) = kept.downcast::<T>()
        {
            return kept;
        }
        let made = Arc::new(make());
        let erased: Arc<dyn Any + Send + Sync> = made.clone();
        slots.insert(slot, Arc::downgrade(&erased));
        made
    }
}
