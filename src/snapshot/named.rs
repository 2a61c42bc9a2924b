//! `Named`: the upstreams that plugins name, kept at hand as long as somebody names them.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::compiled::{Broken, Targets};
use crate::model::Id;
use crate::pipeline::Target;

/// Which upstreams plugins name.
#[derive(Debug, Default)]
pub(super) struct Named(Mutex<HashMap<Id, Weak<Id>>>);

impl Named {
    /// Keeps an upstream at hand until the last holder is gone.
    pub(super) fn hold(&self, id: Id) -> Arc<Id> {
        let mut named = self.0.lock();
        if let Some(held) = named.get(&id).and_then(Weak::upgrade) {
            return held;
        }
        let held = Arc::new(id.clone());
        named.insert(id, Arc::downgrade(&held));
        held
    }

    /// Those that are named by now. Most configurations have none.
    pub(super) fn found(&self, find: impl Fn(&Id) -> Result<Arc<Target>, Broken>) -> Targets {
        let mut named = self.0.lock();
        named.retain(|_, held| held.strong_count() > 0);
        named.keys().map(|id| (id.clone(), find(id))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_names_any_more_is_not_looked_for() {
        let named = Named::default();
        let one = named.hold(Id::from(1));
        let again = named.hold(Id::from(1));
        assert!(Arc::ptr_eq(&one, &again));
        let missing = |_: &Id| Err(Broken::new(500, "gone"));
        assert_eq!(named.found(missing).len(), 1);
        drop((one, again));
        assert!(named.found(missing).is_empty());
    }
}
