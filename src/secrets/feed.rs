//! `ResolvedFeed`: a feed whose batches come when what their references stand for is known, and that brings resources once more
//! when it has changed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::{Future, pending};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::safe::{Asked, Key, Place, Safe};
use crate::model::{Body, Change, Kind, Redacted, Rejected, Resource, Revision, SecretReference};
use crate::sync::{Applied, Batch, Feed};

/// How long the first batch waits for secrets: nothing is served without it.
const FIRST_WITHIN: Duration = Duration::from_secs(5);
/// How long a later one does. What is known by then comes into force, the rest when it is known.
const WITHIN: Duration = Duration::from_secs(2);
/// Questions under way at once.
const AT_ONCE: usize = 8;

/// A feed whose references are known, as far as they can be, when its batches come.
///
/// A batch waits for answers to first questions, for seconds at most. What of it says whom to trust no longer, and who may do
/// what, waits for nobody: it is given ahead. Afterwards secrets are asked for again in the background; a resource whose secret
/// has changed comes once more, in a batch of this feed's own.
pub struct ResolvedFeed {
    inner: Box<dyn Feed>,
    safe: Safe,
    bearers: BTreeMap<Key, Bearer>,
    waiting: Option<Waiting>,
    /// Bearers of references that stand for something else by now.
    changed: BTreeSet<Key>,
    /// What was given in batches of our own, which the feed has not heard of yet.
    restored: BTreeSet<Key>,
    revision: Revision,
    questions: FuturesUnordered<Pin<Box<dyn Future<Output = Asked> + Send>>>,
}

/// A resource that bears references.
struct Bearer {
    resource: Resource,
    references: Vec<SecretReference>,
    /// What they stood for when it was given the last time.
    seen: Vec<Result<Arc<Redacted<String>>, String>>,
}

struct Waiting {
    batch: Batch,
    /// What does not wait.
    ahead: Option<Batch>,
    places: Vec<Place>,
    until: Instant,
}

impl Bearer {
    fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.references.iter().filter_map(|reference| match reference {
            SecretReference::Managed { manager, path, .. } => Some((manager.clone(), path.clone())),
            SecretReference::Environment { .. } => None,
        })
    }

    fn now(&self, safe: &Safe) -> Vec<Result<Arc<Redacted<String>>, String>> {
        self.references.iter().map(|reference| safe.clear(reference)).collect()
    }
}

impl ResolvedFeed {
    /// What `inner` brings, when what it refers to is in `safe`.
    pub fn new(inner: Box<dyn Feed>, safe: Safe) -> Self {
        Self {
            inner,
            safe,
            bearers: BTreeMap::new(),
            waiting: None,
            changed: BTreeSet::new(),
            restored: BTreeSet::new(),
            revision: 0,
            questions: FuturesUnordered::new(),
        }
    }

    /// Takes a batch in. From here on it is kept: whoever stops waiting for `next` loses nothing.
    fn receive(&mut self, batch: Batch) {
        let mut named: HashSet<Key> =
            batch.unreadable.iter().map(|one| (one.kind, one.id.clone())).collect();
        let mut places = Vec::new();
        // Managers first: what refers to them asks them.
        for change in &batch.changes {
            match change {
                Change::Put(Resource { kind, id, body, .. }) => {
                    named.insert((*kind, id.clone()));
                    if let Body::Secret(manager) = body {
                        self.safe.put_manager(id, manager.as_ref().clone());
                    }
                }
                Change::Delete(Kind::Secrets, id) => {
                    self.changed.extend(self.safe.delete_manager(id));
                }
                Change::Delete(..) => {}
            }
        }
        for change in &batch.changes {
            match change {
                Change::Put(resource) => places.extend(self.note(resource)),
                Change::Delete(kind, id) => self.forget(&(*kind, id.clone())),
            }
        }
        if batch.complete {
            let gone: Vec<Key> =
                self.bearers.keys().filter(|key| !named.contains(*key)).cloned().collect();
            gone.iter().for_each(|key| self.forget(key));
            for id in self.safe.managers() {
                if !named.contains(&(Kind::Secrets, id.clone())) {
                    self.changed.extend(self.safe.delete_manager(&id));
                }
            }
        }
        let is_first = self.revision == 0;
        let ahead = (!is_first).then(|| ahead(&batch, self.revision)).flatten();
        self.revision = batch.revision;
        let until = Instant::now() + if is_first { FIRST_WITHIN } else { WITHIN };
        self.waiting = Some(Waiting { batch, ahead, places, until });
    }

    /// Notes what a resource refers to; gives the secrets among it.
    fn note(&mut self, resource: &Resource) -> Vec<Place> {
        let key = (resource.kind, resource.id.clone());
        let references: Vec<SecretReference> =
            resource.body.references().into_iter().filter_map(|one| one.reference.ok()).collect();
        if references.is_empty() {
            self.forget(&key);
            return Vec::new();
        }
        let bearer = Bearer { resource: resource.clone(), references, seen: Vec::new() };
        let places: Vec<Place> = bearer.places().collect();
        // What both versions refer to is not dropped in between.
        places.iter().for_each(|place| self.safe.take_up(place, &key));
        if let Some(old) = self.bearers.insert(key.clone(), bearer) {
            let dropped = old.places().filter(|place| !places.contains(place));
            dropped.for_each(|place| self.safe.lay_down(&place, &key));
        }
        places
    }

    fn forget(&mut self, key: &Key) {
        self.changed.remove(key);
        if let Some(bearer) = self.bearers.remove(key) {
            bearer.places().for_each(|place| self.safe.lay_down(&place, key));
        }
    }

    fn ask_what_is_due(&mut self) {
        while self.questions.len() < AT_ONCE
            && let Some(job) = self.safe.next_job()
        {
            self.questions.push(Box::pin(job.ask()));
        }
    }

    fn learn(&mut self, asked: Asked) {
        for key in self.safe.learn(asked) {
            let Some(bearer) = self.bearers.get(&key) else { continue };
            if bearer.now(&self.safe) != bearer.seen {
                self.changed.insert(key);
            }
        }
    }

    /// The batch that can be given now.
    fn ready(&mut self) -> Option<Batch> {
        if let Some(waiting) = &mut self.waiting {
            let is_over = Instant::now() >= waiting.until;
            if !is_over && waiting.places.iter().any(|place| self.safe.is_awaited(place)) {
                return waiting.ahead.take();
            }
            let Waiting { batch, .. } = self.waiting.take()?;
            for change in &batch.changes {
                if let Change::Put(Resource { kind, id, .. }) = change {
                    self.give(&(*kind, id.clone()));
                }
            }
            return Some(batch);
        }
        let keys = mem::take(&mut self.changed);
        let changes: Vec<Change> =
            keys.iter().filter_map(|key| self.give(key)).map(Change::Put).collect();
        if changes.is_empty() {
            return None;
        }
        self.restored.extend(keys);
        let revision = self.revision;
        Some(Batch { changes, unreadable: Vec::new(), revision, complete: false })
    }

    /// The resource, if it bears references; what they stand for now is what it is given with.
    fn give(&mut self, key: &Key) -> Option<Resource> {
        self.changed.remove(key);
        let bearer = self.bearers.get_mut(key)?;
        bearer.seen = bearer.now(&self.safe);
        Some(bearer.resource.clone())
    }

    fn wakes_at(&self) -> Option<Instant> {
        let due = (self.questions.len() < AT_ONCE).then(|| self.safe.next_due()).flatten();
        let until = self.waiting.as_ref().map(|waiting| waiting.until);
        [due, until].into_iter().flatten().min()
    }
}

#[async_trait]
impl Feed for ResolvedFeed {
    async fn next(&mut self) -> Batch {
        loop {
            self.ask_what_is_due();
            if let Some(batch) = self.ready() {
                return batch;
            }
            let wakes_at = self.wakes_at();
            let wake = async {
                match wakes_at {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            let (is_free, is_asking) = (self.waiting.is_none(), !self.questions.is_empty());
            tokio::select! {
                batch = self.inner.next(), if is_free => self.receive(batch),
                Some(asked) = self.questions.next(), if is_asking => self.learn(asked),
                () = wake => {}
            }
        }
    }

    fn applied(&mut self, mut applied: Applied) {
        // What went ahead of a batch of the feed's own, which still waits here, is not what the feed wants to hear of.
        if self.waiting.is_some() {
            return;
        }
        let refused: HashSet<Key> =
            applied.rejected.iter().map(|one| (one.kind, one.id.clone())).collect();
        let restored = mem::take(&mut self.restored);
        applied.restored.extend(restored.into_iter().filter(|key| !refused.contains(key)));
        self.inner.applied(applied);
    }
}

/// What of a batch says whom to trust no longer, and who may do what.
fn ahead(batch: &Batch, revision: Revision) -> Option<Batch> {
    let is_urgent = |kind: Kind| {
        matches!(
            kind,
            Kind::TrustDomains | Kind::Revocations | Kind::IdentityPolicies | Kind::IdentityModes
        )
    };
    let of = |change: &&Change| match change {
        Change::Put(resource) => is_urgent(resource.kind),
        Change::Delete(kind, _) => is_urgent(*kind),
    };
    let changes: Vec<Change> = batch.changes.iter().filter(of).cloned().collect();
    let unreadable: Vec<Rejected> =
        batch.unreadable.iter().filter(|one| is_urgent(one.kind)).cloned().collect();
    if changes.is_empty() && unreadable.is_empty() {
        return None;
    }
    Some(Batch { changes, unreadable, revision, complete: false })
}
