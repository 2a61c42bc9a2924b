//! What a publisher knows: one state of everything declared, or two where pushes have canaries, and the data planes that follow.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tonic::Status;
use tracing::warn;

use super::plane::{Counted, Greeting, Plane, Side, UnderWay};
use super::track::{Entry, News, Track, read};
use super::trial::Trial;
use super::{Convergence, DataPlane};
use crate::model::{Id, Kind, Rejected, Revision};
use crate::rt::unix_seconds;
use crate::store::Event;
use crate::sync::canary::Counts;
use crate::sync::delta::{Delta, Key, Versions};
use crate::sync::fleet::Presence;
use crate::sync::generated::feed as wire;
use crate::sync::scope::Rules;

/// JSON bytes after which a delta goes on in a further message.
const PART_BYTES: usize = 1 << 20;
/// The most refusals of one data plane that are kept, and the most bytes of each sentence.
const MAX_REFUSALS: usize = 4096;
const MAX_REASON_BYTES: usize = 1024;

pub(super) type PlaneId = u64;

pub(super) struct State {
    /// What everybody has.
    pub(super) stable: Track,
    /// Where pushes have canaries: what is tried, and what waits.
    pub(super) trial: Option<Box<Trial>>,
    /// An empty store and a store that was not read yet are two things: nobody is told to drop everything before this holds.
    pub(super) is_loaded: bool,
    pub(super) planes: BTreeMap<PlaneId, Plane>,
    next_plane: PlaneId,
}

impl State {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            stable: Track::new(rules),
            trial: None,
            is_loaded: false,
            planes: BTreeMap::new(),
            next_plane: 0,
        }
    }

    /// The newest revision of the store that was seen.
    pub(super) fn newest(&self) -> Revision {
        self.trial.as_ref().map_or(self.stable.revision, |trial| trial.newest)
    }

    /// Where nothing is tried: a change is everybody's at once.
    pub(super) fn take(&mut self, event: Event, prefix: &str) {
        match event {
            Event::Put(stored) => {
                self.stable.revision = stored.modified;
                if let Some(entry) = read(prefix, &stored) {
                    self.put(Side::Stable, entry);
                }
            }
            Event::Delete { key, revision } => {
                self.stable.revision = revision;
                if let Some(key) = key.strip_prefix(prefix).and_then(Kind::split_key) {
                    self.delete(Side::Stable, &key);
                }
            }
            // Reading all of it takes long: it comes by `swap`.
            Event::Reset(_) => {}
        }
    }

    pub(super) fn loaded(&mut self) {
        self.is_loaded = true;
        for plane in self.planes.values() {
            plane.wake.notify_one();
        }
    }

    pub(super) fn swap(&mut self, side: Side, entries: Vec<Entry>, revision: Revision) {
        let Some(track) = self.track_mut(side) else { return };
        track.revision = revision;
        for key in track.gone(&entries) {
            self.delete(side, &key);
        }
        for entry in entries {
            self.put(side, entry);
        }
    }

    fn track_mut(&mut self, side: Side) -> Option<&mut Track> {
        match side {
            Side::Stable => Some(&mut self.stable),
            Side::Trial => self.trial.as_mut().map(|trial| &mut trial.track),
        }
    }

    pub(super) fn track(&self, side: Side) -> &Track {
        match (side, &self.trial) {
            (Side::Trial, Some(trial)) => &trial.track,
            (Side::Stable, _) | (Side::Trial, None) => &self.stable,
        }
    }

    pub(super) fn put(&mut self, side: Side, entry: Entry) {
        let key = entry.key.clone();
        let Some(news) = self.track_mut(side).map(|track| track.put(entry)) else { return };
        self.tell(side, &key, news);
    }

    pub(super) fn delete(&mut self, side: Side, key: &Key) {
        let Some(news) = self.track_mut(side).map(|track| track.delete(key)) else { return };
        self.tell(side, key, news);
    }

    /// Notes for each data plane concerned what it must be told.
    fn tell(&mut self, side: Side, key: &Key, News { touched, is_mended }: News) {
        let (track, is_gated) = match (side, &self.trial) {
            (Side::Trial, Some(trial)) => (&trial.track, true),
            (_, trial) => (&self.stable, trial.is_some()),
        };
        let revision = track.revision;
        if is_mended {
            let holders = self.planes.values_mut().filter(|plane| plane.side == side);
            for plane in holders.filter(|plane| plane.has.contains_key(key)) {
                plane.note(key.clone(), revision);
            }
        }
        for (scope, key) in touched {
            for id in track.members.get(&scope).into_iter().flatten() {
                let Some(plane) = self.planes.get_mut(id) else { continue };
                if is_gated {
                    plane.concern.insert(key.clone());
                }
                if plane.side == side {
                    plane.note(key.clone(), revision);
                }
            }
        }
    }

    pub(super) fn enter(
        &mut self,
        spiffe_id: Arc<str>,
        greeting: Greeting,
        has: Versions,
    ) -> (PlaneId, Arc<Notify>) {
        for plane in self.planes.values_mut() {
            let same = plane.spiffe_id == spiffe_id && plane.greeting.instance == greeting.instance;
            if same && !greeting.instance.is_empty() {
                plane.is_replaced = true;
                plane.wake.notify_one();
            }
        }
        let id = self.next_plane;
        self.next_plane += 1;
        let scope = self.stable.scopes.enter(greeting.role, &spiffe_id);
        self.stable.members.entry(scope).or_default().insert(id);
        let wake = Arc::new(Notify::new());
        let mut plane = Plane {
            spiffe_id,
            greeting,
            scope,
            trial_scope: None,
            side: Side::Stable,
            concern: HashSet::default(),
            connected_since: unix_seconds(),
            has,
            is_greeted: false,
            changed: HashSet::default(),
            changed_since: None,
            under_way: None,
            nonce: 0,
            rejected: Vec::new(),
            sent: 0,
            is_replaced: false,
            wake: wake.clone(),
            counted: Counted::default(),
        };
        if let Some(trial) = &mut self.trial {
            trial.enter(id, &mut plane, &self.stable);
            if trial.is_canary(&plane) {
                plane.side = Side::Trial;
                plane.begin_watch();
            }
        }
        self.planes.insert(id, plane);
        (id, wake)
    }

    pub(super) fn leave(&mut self, id: PlaneId) -> Option<Plane> {
        let plane = self.planes.remove(&id)?;
        self.stable.leave(plane.scope, id);
        if let (Some(trial), Some(scope)) = (&mut self.trial, plane.trial_scope) {
            trial.track.leave(scope, id);
        }
        Some(plane)
    }

    /// The next delta for a data plane: none while one is under way, or when it lacks nothing.
    pub(super) fn next_delta(&mut self, id: PlaneId) -> Option<VecDeque<wire::Delta>> {
        let plane = self.planes.get_mut(&id)?;
        if !self.is_loaded || plane.under_way.is_some() {
            return None;
        }
        let (track, scope) = match (plane.side, &self.trial, plane.trial_scope) {
            (Side::Trial, Some(trial), Some(scope)) => (&trial.track, scope),
            _ => (&self.stable, plane.scope),
        };
        let wanted = |key: &Key| track.wanted(scope, key, plane.has.get(key).copied());
        let is_first = !mem::replace(&mut plane.is_greeted, true);
        let changed = mem::take(&mut plane.changed);
        let since = plane.changed_since.take().unwrap_or(track.revision);
        let (delta, complete) = if is_first {
            let keys = plane.has.keys().chain(track.scopes.all(scope));
            (Delta::within(keys, &plane.has, wanted), plane.has.is_empty())
        } else {
            (Delta::within(changed.iter(), &plane.has, wanted), false)
        };
        // The first one goes out even when it is empty: it tells that there is nothing to tell.
        if delta.is_empty() && !is_first {
            return None;
        }
        delta.apply(&mut plane.has);
        plane.nonce += 1;
        // Until the first answer nothing is known to be in force there.
        let since = if is_first { 1 } else { since };
        plane.under_way = Some(UnderWay { since, nonce: plane.nonce });
        plane.sent += u64::try_from(delta.puts.len() + delta.deletes.len()).unwrap_or(u64::MAX);
        let counts_every = self.trial.as_ref().map_or(0, |trial| trial.counts_every);
        Some(parts(track, &delta, (plane.nonce, complete, counts_every)))
    }

    pub(super) fn answered(&mut self, id: PlaneId, ack: wire::Ack) -> Result<(), Status> {
        let Some(plane) = self.planes.get_mut(&id) else { return Ok(()) };
        // Without a nonce it answers no delta: something that was sent before is refused by now, or no longer.
        if ack.nonce != 0 {
            match plane.under_way.take() {
                Some(under_way) if under_way.nonce == ack.nonce => {}
                _ => {
                    return Err(Status::invalid_argument("acknowledges a delta that was not sent"));
                }
            }
        }
        let refusals = ack.rejected.into_iter().take(MAX_REFUSALS).filter_map(|refusal| {
            // A kind or an id that we do not know we cannot have sent.
            Some(Rejected {
                kind: Kind::named(&refusal.kind)?,
                id: Id::parse(&refusal.id).ok()?,
                revision: refusal.revision,
                reason: shortened(refusal.reason),
            })
        });
        let before = mem::replace(&mut plane.rejected, refusals.collect());
        for refusal in plane.rejected.iter().filter(|refusal| !before.contains(refusal)) {
            let Rejected { kind, id, revision, reason } = refusal;
            let (peer, node) = (&plane.spiffe_id, &plane.greeting.node);
            warn!(%peer, node, %kind, %id, revision, reason, "a data plane refuses a resource");
        }
        Ok(())
    }

    pub(super) fn counted(&mut self, id: PlaneId, counts: wire::Counts) {
        let within = self.trial.as_ref().map_or(Duration::ZERO, |trial| trial.watched);
        let Some(plane) = self.planes.get_mut(&id) else { return };
        let wire::Counts { decided, denied, requests, failed } = counts;
        plane.counted.tell(Counts { decided, denied, requests, failed }, Instant::now(), within);
    }

    /// Has this data plane answered everything of this revision? What went past a canary is not told by its revision.
    fn has(&self, plane: &Plane, revision: Revision) -> bool {
        plane.applied(self.track(plane.side).revision) >= revision
            || (plane.is_settled() && self.went_past(revision))
    }

    /// How far the data planes are, all together.
    pub(super) fn presence(&self) -> Presence {
        let (mut applied, mut refused) = (BTreeMap::new(), BTreeMap::new());
        let mut presence = Presence { revision: self.newest(), ..Presence::default() };
        let past = self.trial.as_ref().map_or_else(Vec::new, |trial| trial.past());
        let mut are_settled = true;
        for plane in self.planes.values().filter(|plane| !plane.is_replaced) {
            presence.data_planes += 1;
            presence.refusing += u64::from(!plane.rejected.is_empty());
            let own = plane.applied(self.track(plane.side).revision);
            *applied.entry(own).or_insert(0) += 1;
            are_settled &= plane.is_settled();
            let revisions: BTreeSet<Revision> =
                plane.rejected.iter().map(|one| one.revision).collect();
            for revision in revisions {
                *refused.entry(revision).or_insert(0) += 1;
            }
        }
        presence.applied = Presence::counted(applied);
        presence.refused = Presence::counted(refused);
        if are_settled {
            presence.beside = past;
        }
        let report = self.report();
        presence.report = (!report.canaries.is_empty() || report.others > 0).then_some(report);
        presence
    }

    fn went_past(&self, revision: Revision) -> bool {
        self.trial.as_ref().is_some_and(|trial| trial.went_past(revision))
    }

    /// As [`Convergence::has_applied`], and without a copy of everything: it is asked at each answer.
    pub(super) fn has_applied(&self, revision: Revision) -> bool {
        let mut planes = self.planes.values().filter(|plane| !plane.is_replaced);
        self.newest() >= revision && planes.all(|plane| self.has(plane, revision))
    }

    pub(super) fn convergence(&self) -> Convergence {
        let past: Vec<Revision> = self.trial.as_ref().map_or_else(Vec::new, |trial| trial.past());
        let mut data_planes: Vec<DataPlane> = self
            .planes
            .values()
            .filter(|plane| !plane.is_replaced)
            .map(|plane| DataPlane {
                spiffe_id: plane.spiffe_id.clone(),
                node: plane.greeting.node.clone(),
                version: plane.greeting.version.clone(),
                role: plane.greeting.role,
                connected_since: plane.connected_since,
                applied: plane.applied(self.track(plane.side).revision),
                beside: if plane.is_settled() { past.clone() } else { Vec::new() },
                is_canary: plane.side == Side::Trial,
                rejected: plane.rejected.clone(),
                sent: plane.sent,
            })
            .collect();
        data_planes.sort_by(|a, b| (&a.spiffe_id, &a.node).cmp(&(&b.spiffe_id, &b.node)));
        let unreadable = self.track(Side::Trial).unreadable.values().cloned().collect();
        Convergence { revision: self.newest(), data_planes, unreadable }
    }
}

fn parts(
    track: &Track,
    delta: &Delta,
    (nonce, complete, counts_every): (u64, bool, u32),
) -> VecDeque<wire::Delta> {
    let empty = || wire::Delta { nonce, more: true, ..wire::Delta::default() };
    let mut parts = VecDeque::new();
    let (mut part, mut bytes) = (empty(), 0);
    let mut count = |part: &mut wire::Delta, more: usize| {
        bytes += more;
        if bytes >= PART_BYTES {
            bytes = 0;
            parts.push_back(mem::replace(part, empty()));
        }
    };
    for (kind, id) in &delta.deletes {
        part.deletes.push(wire::Name { kind: kind.name().into(), id: id.to_string() });
        count(&mut part, 32);
    }
    for (key, version) in &delta.puts {
        let Some(published) = track.resources.get(key) else { continue };
        part.puts.push(wire::Put {
            kind: key.0.name().into(),
            id: key.1.to_string(),
            revision: version.revision,
            json: published.json.clone(),
        });
        count(&mut part, published.json.len() + 32);
    }
    part.more = false;
    part.revision = track.revision;
    part.complete = complete;
    part.counts_every = counts_every;
    parts.push_back(part);
    parts
}

fn shortened(mut reason: String) -> String {
    let end = (0..=MAX_REASON_BYTES).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
    reason.truncate(end);
    reason
}
