//! `Roster`: what of upstreams outlives revisions, and what goes on for them beside requests.
//!
//! Compiling does no I/O. What needs some (asking resolvers and registries, probing nodes) is written down here while a cluster
//! is compiled, and run by [`Roster::run`] for as long as a snapshot uses it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::endpoint::EndpointState;
use super::{Connect, Discovery, Resolver};
use crate::mtls::PublicRoots;
use crate::rt::{Publisher, Tasks};

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct Book {
    states: HashMap<(String, String), Weak<EndpointState>>,
    attended: HashMap<(String, TypeId), Weak<dyn Any + Send + Sync>>,
    waiting: Vec<Work>,
    /// So many entries were left when they were last looked through.
    in_use: usize,
}

impl Book {
    /// Forgets what nobody uses any more, each time that the entries have doubled: a change costs no look at all of them.
    fn sweep_sometimes(&mut self) {
        if self.states.len() + self.attended.len() > 2 * self.in_use + 64 {
            self.sweep();
        }
    }

    fn known<T: Send + Sync + 'static>(&self, key: &(String, TypeId)) -> Option<Arc<Attended<T>>> {
        let known = self.attended.get(key).and_then(Weak::upgrade)?;
        known.downcast().ok()
    }

    fn sweep(&mut self) {
        self.states.retain(|_, state| state.strong_count() > 0);
        self.attended.retain(|_, attended| attended.strong_count() > 0);
        self.in_use = self.states.len() + self.attended.len();
    }
}

/// What of upstreams outlives revisions. Clones are the same roster.
#[derive(Clone, Default)]
pub struct Roster {
    book: Arc<Mutex<Book>>,
    begun: Arc<Notify>,
    /// Nobody runs what is written down: a control plane compiles to judge, and serves no requests.
    attends: bool,
    discovery: Option<Discovery>,
    /// How nodes are probed; nobody does where there is none.
    connect: Option<Connect>,
    /// Checks that upstreams declare are not carried out.
    no_checks: bool,
    names: Option<Resolver>,
    roots: Option<PublicRoots>,
}

impl std::fmt::Debug for Roster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let book = self.book.lock();
        f.debug_struct("Roster")
            .field("endpoints", &book.states.len())
            .field("attended", &book.attended.len())
            .finish_non_exhaustive()
    }
}

/// Something that is attended to beside requests for as long as somebody holds it.
pub struct Attended<T> {
    value: Arc<T>,
    /// Whoever attends to it waits for the end of this.
    _held: Publisher<()>,
}

impl<T: std::fmt::Debug> std::fmt::Debug for Attended<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.value.fmt(f)
    }
}

impl<T> Deref for Attended<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl Roster {
    /// A roster whose work is done by [`Roster::run`]. `Roster::default()` is one for trials: nothing is attended to.
    pub fn attending() -> Self {
        Self { attends: true, ..Self::default() }
    }

    /// Who knows services by name. Without, all names are taken, and nobody has nodes.
    #[must_use]
    pub fn with_discovery(self, discovery: Discovery) -> Self {
        Self { discovery: Some(discovery), ..self }
    }

    pub(super) fn discovery(&self) -> Option<&Discovery> {
        self.discovery.as_ref()
    }

    /// Probes nodes over these connections.
    #[must_use]
    pub fn probing(self, connect: Connect) -> Self {
        Self { connect: Some(connect), ..self }
    }

    /// Upstreams' `checks` are read and not carried out.
    #[must_use]
    pub fn without_checks(self) -> Self {
        Self { no_checks: true, ..self }
    }

    pub(super) fn connect(&self) -> Option<Connect> {
        self.connect.clone()
    }

    /// Are upstreams' `checks` carried out?
    pub(super) fn checks(&self) -> bool {
        !self.no_checks
    }

    /// Is what is compiled with it put into force?
    pub(super) fn attends(&self) -> bool {
        self.attends
    }

    /// Who resolves the names of nodes. Without, names have no addresses.
    #[must_use]
    pub fn with_names(self, names: Resolver) -> Self {
        Self { names: Some(names), ..self }
    }

    /// Who vouches for public upstreams that name no authority of their own. Without, nobody does.
    #[must_use]
    pub fn with_public_roots(self, roots: Option<PublicRoots>) -> Self {
        Self { roots, ..self }
    }

    pub(super) fn names(&self) -> Option<&Resolver> {
        self.names.as_ref()
    }

    pub(super) fn public_roots(&self) -> Option<&PublicRoots> {
        self.roots.as_ref()
    }

    /// The same endpoints' states, for a compilation whose result is thrown away.
    #[must_use]
    pub fn for_trial(&self) -> Self {
        Self { attends: false, ..self.clone() }
    }

    /// The state of a cluster's endpoint: the same as long as somebody uses it.
    pub(super) fn state(&self, cluster: &str, place: &str) -> Arc<EndpointState> {
        let key = (cluster.to_owned(), place.to_owned());
        let mut book = self.book.lock();
        if let Some(state) = book.states.get(&key).and_then(Weak::upgrade) {
            return state;
        }
        let state = Arc::new(EndpointState::default());
        if self.attends {
            book.states.insert(key, Arc::downgrade(&state));
            book.sweep_sometimes();
        }
        state
    }

    /// What is made under this key: the same as long as somebody holds it. `key` has to name all that `make` depends on.
    ///
    /// # Errors
    /// Those of `make`.
    pub(super) fn share<T, E>(
        &self,
        key: &str,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E>
    where
        T: Send + Sync + 'static,
    {
        let key = (key.to_owned(), TypeId::of::<T>());
        let known = self.book.lock().attended.get(&key).and_then(Weak::upgrade);
        if let Some(known) = known.and_then(|known| known.downcast().ok()) {
            return Ok(known);
        }
        let made = Arc::new(make()?);
        if self.attends {
            let mut book = self.book.lock();
            let erased: Arc<dyn Any + Send + Sync> = made.clone();
            book.attended.insert(key, Arc::downgrade(&erased));
            book.sweep_sometimes();
        }
        Ok(made)
    }

    /// What is attended to under this key: the same as long as somebody holds it; else `make`'s, and `attend`'s work goes on
    /// until the last holder is gone. `key` has to name all that `make` and `attend` depend on; `make` may ask this roster.
    pub(super) fn keep<T, F>(
        &self,
        key: &str,
        make: impl FnOnce() -> T,
        attend: impl FnOnce(Arc<T>) -> F,
    ) -> Arc<Attended<T>>
    where
        T: Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let key = (key.to_owned(), TypeId::of::<T>());
        if let Some(known) = self.book.lock().known(&key) {
            return known;
        }
        // Without the lock: it may ask this roster for something.
        let value = Arc::new(make());
        let (held, mut held_by_somebody) = Publisher::new(());
        let attended = Arc::new(Attended { value: value.clone(), _held: held });
        let mut book = self.book.lock();
        if let Some(known) = book.known(&key) {
            return known;
        }
        if self.attends {
            let erased: Arc<dyn Any + Send + Sync> = attended.clone();
            book.attended.insert(key, Arc::downgrade(&erased));
            book.sweep_sometimes();
            let work = attend(value);
            book.waiting.push(Box::pin(async move {
                tokio::select! {
                    () = work => {}
                    _ = held_by_somebody.changed() => {}
                }
            }));
            self.begun.notify_one();
        }
        attended
    }

    /// What is attended to under this key, if anything of this type is.
    pub(super) fn held_under<T: Send + Sync + 'static>(
        &self,
        key: &str,
    ) -> Option<Arc<Attended<T>>> {
        let key = (key.to_owned(), TypeId::of::<T>());
        let known = self.book.lock().attended.get(&key).and_then(Weak::upgrade)?;
        known.downcast().ok()
    }

    /// All of this type that is attended to.
    pub(super) fn held<T: Send + Sync + 'static>(&self) -> Vec<Arc<Attended<T>>> {
        let book = self.book.lock();
        let of_type = book.attended.iter().filter(|((_, kind), _)| *kind == TypeId::of::<T>());
        of_type.filter_map(|(_, held)| held.upgrade()?.downcast().ok()).collect()
    }

    #[cfg(test)]
    pub(super) fn forget_waiting(&self) {
        self.book.lock().waiting.clear();
    }

    /// Does what is written down, until it is dropped.
    pub async fn run(self) {
        let mut tasks = Tasks::new();
        loop {
            let waiting = std::mem::take(&mut self.book.lock().waiting);
            for work in waiting {
                tasks.add(work);
            }
            // Those that ended are taken out as they end.
            tokio::select! {
                () = self.begun.notified() => {}
                () = tasks.any_ended() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_state_outlives_revisions_and_belongs_to_one_cluster() {
        let roster = Roster::attending();
        let first = roster.state("upstreams/1", "a:1");
        assert!(Arc::ptr_eq(&first, &roster.state("upstreams/1", "a:1")));
        assert!(Arc::ptr_eq(&first, &roster.for_trial().state("upstreams/1", "a:1")));
        assert!(!Arc::ptr_eq(&first, &roster.state("upstreams/2", "a:1")));
        drop(first);
        roster.book.lock().sweep();
        assert!(format!("{roster:?}").contains("endpoints: 0"));
    }

    #[tokio::test]
    async fn work_begins_once_and_ends_with_its_last_holder() {
        let roster = Roster::attending();
        let tasks = {
            let mut tasks = Tasks::new();
            tasks.add(roster.clone().run());
            tasks
        };
        let began = Arc::new(AtomicUsize::new(0));
        let keep = |roster: &Roster| {
            let began = began.clone();
            roster.keep(
                "k",
                || Arc::new(()),
                move |value: Arc<Arc<()>>| async move {
                    began.fetch_add(1, Ordering::Relaxed);
                    std::future::pending::<()>().await;
                    drop(value);
                },
            )
        };
        let (one, two) = (keep(&roster), keep(&roster));
        let inner = Arc::downgrade(&**one);
        while began.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        drop(one);
        tokio::task::yield_now().await;
        assert!(inner.upgrade().is_some());
        drop(two);
        while inner.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
        assert_eq!(began.load(Ordering::Relaxed), 1);
        let _trial = keep(&roster.for_trial());
        tokio::task::yield_now().await;
        assert_eq!(began.load(Ordering::Relaxed), 1);
        drop(tasks);
    }
}
