//! Declared trust in the roles: where what is declared comes from, and where the trust that follows from it goes.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::process::Shared;
use super::settings::Settings;
use crate::federation::{self, Federation, Reach};
use crate::identity::{Identity, TrustBundles};
use crate::model::{Body, Change, Id, Kind, Rejected, Resource};
use crate::rt::{Clock, Live, Publisher, Tasks};
use crate::store::{Event, Store, Stored};

/// The federation of one part of a process, resting on its identity. To be called within a runtime.
pub(super) fn federation(
    settings: &Settings,
    part: &str,
    reach: Reach,
    source: Live<Identity>,
    shared: &Shared,
) -> Federation {
    let own = federation::Settings {
        part: part.to_owned(),
        folder: settings.state_dir.join(format!("trust-{part}")),
        reach,
        rules: settings.verification.rules(),
        clock: Clock::system(),
        board: shared.board.clone(),
        lane: Some(shared.audit.control().clone()),
    };
    Federation::start(source, own)
}

/// Follows what a store declares about trust: for a control plane, which has no feed.
pub(super) fn follow_store(
    store: &Arc<dyn Store>,
    prefix: &str,
    federation: &Federation,
    tasks: &mut Tasks,
) {
    for kind in [Kind::TrustDomains, Kind::Revocations] {
        let (store, prefix, federation) = (store.clone(), prefix.to_owned(), federation.clone());
        tasks.add(async move {
            let mut watch = store.watch(&format!("{prefix}/{}/", kind.name()), 0);
            let mut known = BTreeSet::new();
            while let Some(event) = watch.next().await {
                let (changes, unreadable) = read(&prefix, kind, event, &mut known);
                for rejected in
                    federation.declare(&changes, &unreadable, false).iter().chain(&unreadable)
                {
                    tracing::warn!(
                        kind = %rejected.kind, id = %rejected.id, revision = rejected.revision,
                        "what is declared about trust is refused: {}", rejected.reason
                    );
                }
            }
        });
    }
}

fn read(
    prefix: &str,
    kind: Kind,
    event: Event,
    known: &mut BTreeSet<Id>,
) -> (Vec<Change>, Vec<Rejected>) {
    let (mut changes, mut unreadable) = (Vec::new(), Vec::new());
    let id_of = |key: &str| {
        let (found, id) = key.strip_prefix(prefix).and_then(Kind::split_key)?;
        (found == kind).then_some(id)
    };
    let mut put = |stored: &Stored, changes: &mut Vec<Change>| {
        let id = id_of(&stored.key)?;
        let revision = stored.modified;
        let body = Body::parse(kind, &stored.value).or_else(|invalid| {
            let reason = invalid.to_string();
            unreadable.push(Rejected { kind, id: id.clone(), revision, reason });
            Body::closed(kind, &stored.value).ok_or(())
        });
        if let Ok(body) = body {
            changes.push(Change::Put(Resource { kind, id: id.clone(), revision, body }));
        }
        Some(id)
    };
    match event {
        Event::Put(stored) => known.extend(put(&stored, &mut changes)),
        Event::Delete { key, .. } => {
            if let Some(id) = id_of(&key) {
                known.remove(&id);
                changes.push(Change::Delete(kind, id));
            }
        }
        Event::Reset(listing) => {
            let entries = &listing.entries;
            let now: BTreeSet<Id> =
                entries.iter().filter_map(|stored| put(stored, &mut changes)).collect();
            let gone = known.difference(&now).cloned();
            changes.extend(gone.map(|id| Change::Delete(kind, id)));
            *known = now;
        }
    }
    (changes, unreadable)
}

/// The bundles of other trust domains that an identity has, kept current: what an issuer hands on to its workloads.
pub(super) fn foreign_bundles(
    mut identity: Live<Identity>,
    tasks: &mut Tasks,
) -> Live<TrustBundles> {
    let (publisher, live) = Publisher::new(foreign(&identity.load()));
    tasks.add(async move {
        while identity.changed().await {
            let next = foreign(&identity.load());
            if next != *publisher.live().load() {
                publisher.set(next);
            }
        }
    });
    live
}

fn foreign(identity: &Identity) -> TrustBundles {
    let own = identity.id().trust_domain();
    identity.trust.bundles.iter().filter(|bundle| bundle.domain != own).cloned().collect()
}
