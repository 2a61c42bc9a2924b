//! `Prepared`: what is made of the current identity once, and again when there is another.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::Error;
use crate::identity::Identity;
use crate::rt::Live;

/// Something made of an identity, kept as long as the identity is the current one. Clones share it.
pub(super) struct Prepared<T> {
    identity: Live<Identity>,
    current: Arc<ArcSwapOption<Made<T>>>,
}

struct Made<T> {
    /// Held, so that its address stays its own as long as this entry lives.
    of: Arc<Identity>,
    made: T,
}

impl<T: Clone> Prepared<T> {
    /// Of whatever `identity` is when it is asked for.
    pub(super) fn new(identity: Live<Identity>) -> Self {
        Self { identity, current: Arc::default() }
    }

    /// The identity that it is made of.
    pub(super) fn identity(&self) -> &Live<Identity> {
        &self.identity
    }

    /// What was made of the current identity, or what `make` makes of it.
    pub(super) fn get(
        &self,
        make: impl FnOnce(&Arc<Identity>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let identity = self.identity.load();
        if let Some(current) = &*self.current.load()
            && Arc::ptr_eq(&current.of, &identity)
        {
            return Ok(current.made.clone());
        }
        let made = make(&identity)?;
        self.current.store(Some(Arc::new(Made { of: identity, made: made.clone() })));
        Ok(made)
    }
}

impl<T> Clone for Prepared<T> {
    fn clone(&self) -> Self {
        Self { identity: self.identity.clone(), current: self.current.clone() }
    }
}

impl<T> std::fmt::Debug for Prepared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("id", self.identity.load().id()).finish_non_exhaustive()
    }
}
