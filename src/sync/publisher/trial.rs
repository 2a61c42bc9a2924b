//! `Trial`: what is tried beside what everybody has, and what waits to be tried.
//!
//! A change comes in by [`State::arrive`] and goes to one of three places: to everybody (it is exempt, goes past canaries, or has
//! passed elsewhere already), to what is tried (it belongs to the candidate), or into the queue. The record that all control
//! planes share moves it on ([`State::follow_record`]). Work is proportional to what changes: each data plane knows by name what
//! may differ for it between the two states.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use tracing::{error, info};

use super::plane::{Plane, Side};
use super::state::{PlaneId, State};
use super::track::{Entry, Track, read};
use crate::model::{Kind, Revision};
use crate::store::{Event, Listing, Stored};
use crate::sync::canary::{CanarySettings, Known, Phase, Record, Report, as_of, is_exempt};
use crate::sync::delta::Key;
use crate::sync::scope::Rules;

/// So many writes that went past canaries are remembered by number.
const PAST: usize = 256;
/// With more changes in the queue only the newest of each resource is kept.
const QUEUED: usize = 10_000;

/// What is tried.
pub(super) struct Trial {
    pub(super) track: Track,
    pub(super) newest: Revision,
    pub(super) counts_every: u32,
    pub(super) watched: Duration,
    prefix: String,
    record: Record,
    /// What the track has and the stable one has not, by resource.
    differs: HashMap<Key, Change, RandomState>,
    /// What is newer than the candidate, in order.
    waiting: VecDeque<Change>,
    /// When the newest of it came.
    arrived: Instant,
    /// Since when anything waits.
    queued: Instant,
    /// What was stopped has been written anew.
    is_corrected: bool,
    /// Writes that went past canaries, or are about to come and to do so.
    beside: BTreeSet<Revision>,
    /// Writes of something that waits for no canary.
    exempt: BTreeSet<Revision>,
}

#[derive(Clone)]
struct Change {
    key: Key,
    revision: Revision,
    /// `None`: it is gone.
    stored: Option<Stored>,
}

/// A whole store, as it came and as everybody has it.
pub(super) struct Whole {
    newest: Revision,
    record: Record,
    skips: BTreeSet<Revision>,
    stood: Vec<Entry>,
    tried: Vec<Entry>,
    differing: Vec<Change>,
    waiting: Vec<Change>,
}

impl Whole {
    /// `known` is what is known of what everybody has.
    pub(super) fn of(listing: &Listing, known: Known, prefix: &str) -> Self {
        let Known { record, skips, past } = known;
        let (stable, candidate) = (record.stable, record.candidate.max(record.stable));
        let (stood, unknown) = as_of((listing, prefix), &past, stable, &skips);
        let (tried, _) = as_of((listing, prefix), &past, candidate, &skips);
        for (kind, id) in &unknown {
            error!(%kind, %id, stable, "what everybody has of it is not remembered; what is newer counts");
        }
        let entries =
            |all: &[Stored]| all.iter().filter_map(|stored| read(prefix, stored)).collect();
        // Of what is gone nobody knows any more when it went.
        let differing = changes((&stood, &tried), stable + 1, prefix);
        let waiting = changes((&tried, &listing.entries), candidate + 1, prefix);
        let (stood, tried) = (entries(&stood), entries(&tried));
        Self { newest: listing.revision, record, skips, stood, tried, differing, waiting }
    }
}

/// What is to be done next, as this control plane sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sync) struct Outlook {
    /// The newest revision that would be tried.
    pub(in crate::sync) revision: Revision,
    /// The lots of the data planes here that it concerns, lowest first, and whether each bears the labels.
    pub(in crate::sync) concerned: Vec<(u64, bool)>,
    /// How many data planes are connected here.
    pub(in crate::sync) data_planes: u64,
}

impl Trial {
    pub(super) fn new(rules: Rules, settings: &CanarySettings, prefix: &str) -> Self {
        Self {
            track: Track::new(rules),
            newest: 0,
            counts_every: settings.counts_every(),
            watched: settings.watched(),
            prefix: prefix.to_owned(),
            record: Record::default(),
            differs: HashMap::default(),
            waiting: VecDeque::new(),
            arrived: Instant::now(),
            queued: Instant::now(),
            is_corrected: false,
            beside: BTreeSet::new(),
            exempt: BTreeSet::new(),
        }
    }

    /// A data plane came.
    pub(super) fn enter(&mut self, id: PlaneId, plane: &mut Plane, stable: &Track) {
        let scope = self.track.scopes.enter(plane.greeting.role, &plane.spiffe_id);
        self.track.members.entry(scope).or_default().insert(id);
        plane.trial_scope = Some(scope);
        if self.differs.is_empty() {
            return;
        }
        let here: HashSet<&Key, RandomState> = self.track.scopes.all(scope).collect();
        let there: HashSet<&Key, RandomState> = stable.scopes.all(plane.scope).collect();
        let changed = self.differs.keys().filter(|key| here.contains(key) || there.contains(key));
        plane.concern =
            here.symmetric_difference(&there).copied().chain(changed).cloned().collect();
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn is_canary(&self, plane: &Plane) -> bool {
        let Record { phase, threshold, labels, .. } = &self.record;
        *phase == Phase::Trying
            && plane.carries_traffic()
            && !plane.concern.is_empty()
            && match labels.is_empty() {
                true => plane.lot() <= *threshold,
                false => plane.bears(labels),
            }
    }

    /// Did everything of this revision go past canaries?
    pub(super) fn went_past(&self, revision: Revision) -> bool {
        (self.beside.contains(&revision) || self.exempt.contains(&revision))
            && revision <= self.newest
            && !self.waiting.iter().any(|change| change.revision == revision)
            && !self.differs.values().any(|change| change.revision == revision)
    }

    pub(super) fn past(&self) -> Vec<Revision> {
        let all = self.beside.union(&self.exempt).copied();
        all.filter(|revision| self.went_past(*revision)).collect()
    }

    /// What the data planes of either state may be said to have.
    fn revisions(&self) -> (Revision, Revision) {
        let before = |first: Revision| first.saturating_sub(1);
        let trial = self.waiting.front().map_or(self.newest, |first| before(first.revision));
        let stable = self.differs.values().map(|change| change.revision).min();
        (stable.map_or(trial, |first| before(first).min(trial)), trial)
    }

    fn queue(&mut self, change: Change) {
        self.arrived = Instant::now();
        if self.waiting.is_empty() {
            self.queued = self.arrived;
        }
        self.waiting.push_back(change);
        if self.waiting.len() > QUEUED {
            let mut newest: HashMap<Key, usize, RandomState> = HashMap::default();
            for (at, change) in self.waiting.iter().enumerate() {
                newest.insert(change.key.clone(), at);
            }
            let mut at = 0;
            self.waiting.retain(|change| {
                at += 1;
                newest[&change.key] == at - 1
            });
        }
    }
}

impl State {
    /// A change came out of the store.
    pub(super) fn arrive(&mut self, event: &Event) {
        let Some(trial) = &mut self.trial else { return };
        trial.newest = trial.newest.max(event.revision());
        let (text, revision, stored) = match event {
            Event::Put(stored) => (&stored.key, stored.modified, Some(stored.clone())),
            Event::Delete { key, revision } => (key, *revision, None),
            Event::Reset(_) => return,
        };
        let key = text.strip_prefix(trial.prefix.as_str()).and_then(Kind::split_key);
        if let Some(key) = key {
            let change = Change { key, revision, stored };
            let exempt = is_exempt(change.key.0);
            if exempt {
                remember(&mut trial.exempt, revision);
            }
            if exempt || trial.beside.contains(&revision) || revision <= trial.record.stable {
                self.pass(&change);
            } else if revision <= trial.record.candidate {
                self.try_out(&change);
                self.draw();
            } else {
                trial.queue(change);
            }
        }
        self.level();
    }

    /// The whole store was read.
    pub(super) fn arrive_whole(&mut self, whole: Whole) {
        let Some(trial) = &mut self.trial else { return };
        let Whole { newest, record, skips, stood, tried, differing, waiting } = whole;
        trial.newest = newest;
        trial.beside.extend(&skips);
        trial.waiting = waiting.into();
        trial.differs = differing.into_iter().map(|change| (change.key.clone(), change)).collect();
        let (stable, candidate) = (record.stable, record.candidate.max(record.stable));
        trial.record = record;
        self.swap(Side::Trial, tried, candidate);
        self.swap(Side::Stable, stood, stable);
        // Whoever is connected already may differ in anything.
        let ids: Vec<PlaneId> = self.planes.keys().copied().collect();
        if let Some(trial) = &mut self.trial {
            for id in ids {
                let Some(plane) = self.planes.get_mut(&id) else { continue };
                if let Some(scope) = plane.trial_scope.take() {
                    trial.track.leave(scope, id);
                }
                plane.concern.clear();
                trial.enter(id, plane, &self.stable);
            }
        }
        self.draw();
        self.level();
        self.loaded();
    }

    /// Everybody gets it, whatever is tried.
    fn pass(&mut self, change: &Change) {
        let Some(trial) = &mut self.trial else { return };
        trial.differs.remove(&change.key);
        // What was written of it before is over.
        trial.waiting.retain(|one| one.key != change.key || one.revision > change.revision);
        let prefix = trial.prefix.clone();
        for side in [Side::Trial, Side::Stable] {
            self.put_on(side, change, &prefix);
        }
    }

    fn put_on(&mut self, side: Side, change: &Change, prefix: &str) {
        let entry = change.stored.as_ref().and_then(|stored| read(prefix, stored));
        match (&change.stored, entry) {
            (None, _) => self.delete(side, &change.key),
            (Some(_), Some(entry)) => self.put(side, entry),
            (Some(_), None) => {}
        }
    }

    fn try_out(&mut self, change: &Change) {
        let Some(trial) = &mut self.trial else { return };
        let prefix = trial.prefix.clone();
        trial.track.revision = trial.track.revision.max(change.revision);
        trial.differs.insert(change.key.clone(), change.clone());
        self.put_on(Side::Trial, change, &prefix);
    }

    /// Brings what waits up to `revision` into what is tried.
    fn advance_to(&mut self, revision: Revision) {
        loop {
            let Some(trial) = &mut self.trial else { return };
            if trial.waiting.front().is_none_or(|first| first.revision > revision) {
                return;
            }
            if let Some(change) = trial.waiting.pop_front() {
                self.try_out(&change);
            }
        }
    }

    /// Everybody has what was tried, up to `revision`.
    fn promote(&mut self, revision: Revision) {
        let Some(trial) = &mut self.trial else { return };
        let prefix = trial.prefix.clone();
        let mut passed: Vec<Change> = Vec::new();
        trial.differs.retain(|_, change| {
            let stays = change.revision > revision;
            if !stays {
                passed.push(change.clone());
            }
            stays
        });
        let is_all = trial.differs.is_empty();
        passed.sort_by_key(|change| change.revision);
        for change in passed {
            // By steps, so that each data plane counts as being behind from the first that concerns it.
            self.stable.revision = self.stable.revision.max(change.revision);
            self.put_on(Side::Stable, &change, &prefix);
        }
        if is_all {
            for plane in self.planes.values_mut() {
                // Both states are the same: nothing is to be told by turning.
                plane.concern.clear();
            }
        }
    }

    /// Who follows what, after the record or what is tried has changed.
    fn draw(&mut self) {
        let Some(trial) = &self.trial else { return };
        let is_trying = trial.record.phase == Phase::Trying;
        for plane in self.planes.values_mut() {
            if trial.is_canary(plane) {
                if plane.side == Side::Stable {
                    plane.turn_to(Side::Trial, self.stable.revision + 1);
                    plane.begin_watch();
                }
            } else {
                plane.turn_to(Side::Stable, self.stable.revision);
                match is_trying && !plane.concern.is_empty() {
                    true if !plane.is_watched() => plane.begin_watch(),
                    true => {}
                    false => plane.end_watch(),
                }
            }
        }
    }

    /// What the two states may be said to have, as revisions.
    fn level(&mut self) {
        let Some(trial) = &mut self.trial else { return };
        (self.stable.revision, trial.track.revision) = trial.revisions();
    }

    /// The record has changed, here or elsewhere.
    pub(super) fn follow_record(&mut self, record: &Record) {
        let Some(trial) = &mut self.trial else { return };
        if trial.record == *record {
            return;
        }
        let was_trying = trial.record.phase == Phase::Trying;
        let Record { phase, stable, candidate, reason, .. } = record;
        info!(?phase, stable, candidate, reason, "the canary push goes on");
        trial.record = record.clone();
        trial.is_corrected = false;
        if was_trying && (record.phase != Phase::Trying) {
            for plane in self.planes.values_mut() {
                plane.end_watch();
            }
        }
        self.advance_to(record.candidate.max(record.stable));
        self.promote(record.stable);
        self.draw();
        self.level();
    }

    /// This revision goes past canaries.
    pub(super) fn let_past(&mut self, revision: Revision) {
        let Some(trial) = &mut self.trial else { return };
        if !remember(&mut trial.beside, revision) {
            return;
        }
        let mut passing = Vec::new();
        trial.waiting.retain(|change| {
            let passes = change.revision == revision;
            if passes {
                passing.push(change.clone());
            }
            !passes
        });
        passing.extend(trial.differs.values().filter(|one| one.revision == revision).cloned());
        for change in &passing {
            self.pass(change);
        }
        self.level();
    }

    /// What would be tried now, if anything: brings all that waits into what is tried. Nobody follows that yet.
    pub(in crate::sync) fn outlook(
        &mut self,
        settings: &CanarySettings,
        settles: (Duration, Duration),
    ) -> Option<Outlook> {
        let trial = self.trial.as_mut()?;
        let first = trial.waiting.front().map(|change| change.revision);
        let is_due = match trial.record.phase {
            Phase::Trying => false,
            Phase::Passed => first.is_some() || !trial.differs.is_empty(),
            // A write to what was stopped takes its place.
            Phase::Stopped => {
                let differs = &trial.differs;
                let corrects = |change: &Change| differs.contains_key(&change.key);
                trial.is_corrected |= trial.waiting.iter().any(corrects);
                trial.is_corrected
            }
        };
        let (quiet, longest) = settles;
        let is_settled = trial.arrived.elapsed() >= quiet || trial.queued.elapsed() >= longest;
        if !is_due || !self.is_loaded || !is_settled {
            return None;
        }
        let revision = trial.newest;
        self.advance_to(revision);
        self.level();
        let mut concerned: Vec<(u64, bool)> = self
            .planes
            .values()
            .filter(|plane| !plane.is_replaced && self.is_concerned(plane))
            .map(|plane| (plane.lot(), plane.bears(&settings.labels)))
            .collect();
        concerned.sort_unstable();
        let data_planes = u64::try_from(self.planes.len()).unwrap_or(u64::MAX);
        Some(Outlook { revision, concerned, data_planes })
    }

    /// Would it be told anything if it were a canary?
    fn is_concerned(&self, plane: &Plane) -> bool {
        let (Some(trial), Some(scope)) = (&self.trial, plane.trial_scope) else { return false };
        plane.carries_traffic()
            && plane.concern.iter().any(|key| {
                let held = plane.has.get(key).copied();
                trial.track.wanted(scope, key, held) != self.stable.wanted(plane.scope, key, held)
            })
    }

    /// What is seen of those who try it, and of the others.
    pub(super) fn report(&self) -> Report {
        let mut report = Report::default();
        let Some(trial) = &self.trial else { return report };
        report.revision = trial.record.candidate;
        for plane in self.planes.values().filter(|plane| !plane.is_replaced) {
            if plane.side == Side::Trial {
                report.canaries.insert(plane.name(), plane.canary());
            } else if plane.carries_traffic() && !plane.concern.is_empty() {
                report.others += 1;
                report.span += plane.span();
            }
        }
        report
    }
}

fn remember(revisions: &mut BTreeSet<Revision>, revision: Revision) -> bool {
    let is_new = revisions.insert(revision);
    while revisions.len() > PAST {
        revisions.pop_first();
    }
    is_new
}

/// What is in `after` and not so in `before`, and what is gone: that as of the revision `gone`. In order.
fn changes((before, after): (&[Stored], &[Stored]), gone: Revision, prefix: &str) -> Vec<Change> {
    let key_of = |text: &str| text.strip_prefix(prefix).and_then(Kind::split_key);
    let old: HashMap<&str, Revision, RandomState> =
        before.iter().map(|stored| (stored.key.as_str(), stored.modified)).collect();
    let named: HashSet<&str, RandomState> =
        after.iter().map(|stored| stored.key.as_str()).collect();
    let changed = after.iter().filter(|one| old.get(one.key.as_str()) != Some(&one.modified));
    let changed = changed.filter_map(|stored| {
        let (key, revision) = (key_of(&stored.key)?, stored.modified);
        Some(Change { key, revision, stored: Some(stored.clone()) })
    });
    let removed = before.iter().filter(|one| !named.contains(one.key.as_str()));
    let removed = removed.filter_map(|stored| {
        Some(Change { key: key_of(&stored.key)?, revision: gone, stored: None })
    });
    let mut all: Vec<Change> = changed.chain(removed).collect();
    all.sort_by_key(|change| change.revision);
    all
}
