//! `Course`: brings changes to canaries and on, or back. One task a control plane; the record in the store is what holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use super::choice::{Concerned, choose};
use super::judge::{Evidence, Verdict, judge};
use super::past::{Known, Past};
use super::record::{Phase, Record};
use super::report::{Report, Span};
use super::settings::CanarySettings;
use crate::model::Revision;
use crate::rt::{DrainGuard, Live, Publisher as Told, unix_seconds};
use crate::store::{self, Event, Expect, Store, Stored, Write};
use crate::sync::fleet::{Fleet, Presence};
use crate::sync::publisher::{Outlook, Publisher};

/// Writes that belong together are tried together: so long nothing new may come before they are, and so long they wait at most.
const SETTLES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// So long other control planes are waited for to say which of their data planes a change concerns.
const OTHERS_WITHIN: Duration = Duration::from_secs(3);
/// After a start data planes are waited for so long, where there have been any: what concerns nobody then may concern these.
const RETURN_WITHIN: Duration = Duration::from_secs(15);
/// A canary that was not seen for so long is lost; for half of the time for which canaries are watched where that is less.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// So many marks are removed at once.
const REMOVED_AT_ONCE: usize = 100;

/// Where the record lies.
pub fn state_key(prefix: &str) -> String {
    format!("{prefix}-canary/state")
}

fn skips_folder(prefix: &str) -> String {
    format!("{prefix}-canary/skips/")
}

/// The write by which everything in the same commit goes past canaries; `by` says so.
pub fn skipping(prefix: &str, by: &str) -> Write {
    Write {
        key: format!("{}{}", skips_folder(prefix), uuid::Uuid::now_v7()),
        value: Some(json!({ "by": by, "time": unix_seconds() })),
        expect: Expect::Anything,
        ttl: None,
    }
}

fn record_in(stored: &Stored) -> Option<Record> {
    match Record::deserialize(&stored.value) {
        Ok(record) => Some(record),
        Err(error) => {
            error!(key = stored.key, %error, "the record of canary pushes cannot be read");
            None
        }
    }
}

/// What is known of what everybody has, for a control plane that has just read everything at `newest`.
///
/// # Errors
/// The store or what it remembers cannot be read.
pub(crate) async fn known(
    store: &dyn Store,
    prefix: &str,
    past: &dyn Past,
    newest: Revision,
) -> Result<Known, store::Error> {
    let (place, folder) = (state_key(prefix), skips_folder(prefix));
    let mut known = Known { record: first(newest), skips: BTreeSet::new(), past: Vec::new() };
    let mut is_first = true;
    for stored in store.list(&format!("{prefix}-canary/")).await?.entries {
        if stored.key.starts_with(&folder) {
            known.skips.insert(stored.modified);
        } else if stored.key == place
            && let Some(record) = record_in(&stored)
        {
            (known.record, is_first) = (record, false);
        }
    }
    if !is_first && known.record.stable < newest {
        known.past = past.of_changed_since(known.record.stable).await?;
    }
    Ok(known)
}

fn first(newest: Revision) -> Record {
    Record::passed(newest, unix_seconds(), "it stood when canary pushes were turned on")
}

/// How a canary push stands, as this control plane knows it.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// The record; none before the store was read.
    pub record: Option<Record>,
    /// What all control planes see of canaries and others, while something is tried.
    pub report: Report,
    /// Canaries that are lost.
    pub lost: Vec<String>,
    /// For how long they are watched by now.
    pub watched: Duration,
}

/// Brings changes to canaries and on, or back.
pub struct Course {
    store: Arc<dyn Store>,
    prefix: String,
    settings: CanarySettings,
    publisher: Publisher,
    fleet: Option<Fleet>,
    told: Told<Figures>,
    /// The record, and the revision that wrote it.
    record: Option<(Record, Revision)>,
    watching: Option<Watching>,
    /// Since when something is due.
    due: Option<Instant>,
    started: Instant,
}

/// What was seen since a candidate is tried.
struct Watching {
    candidate: (Revision, i64),
    began: Instant,
    canaries: BTreeMap<String, Seen>,
    most_others: u64,
}

struct Seen {
    instance: String,
    restarts: u32,
    last: Instant,
    /// What it counted in this life, and in those before.
    span: Span,
    earlier: Span,
}

impl Course {
    /// Of a publisher that was made [`Publisher::with_canaries`]. `fleet` are the other control planes over the same store.
    pub fn new(
        (store, prefix): (Arc<dyn Store>, &str),
        settings: CanarySettings,
        publisher: Publisher,
        fleet: Option<Fleet>,
    ) -> Self {
        Self {
            store,
            prefix: prefix.to_owned(),
            settings,
            publisher,
            fleet,
            told: Told::new(Figures::default()).0,
            record: None,
            watching: None,
            due: None,
            started: Instant::now(),
        }
    }

    /// How it stands.
    pub fn figures(&self) -> Live<Figures> {
        self.told.live()
    }

    /// Runs until the drain is asked for.
    pub async fn run(mut self, mut drain: DrainGuard) {
        let every = self.settings.watched() / 20;
        let every = every.clamp(Duration::from_millis(100), Duration::from_secs(1));
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = self.store.watch(&format!("{}-canary/", self.prefix), 0);
        let (mut is_read, mut is_stuck) = (false, false);
        loop {
            tokio::select! {
                () = drain.asked() => return,
                event = watch.next() => match event {
                    None => return,
                    Some(event) => {
                        is_read = true;
                        self.hear(event);
                    }
                },
                _ = ticks.tick() => {
                    if !is_read || !self.publisher.is_loaded() {
                        continue;
                    }
                    let done = self.go_on().await;
                    if let (Err(error), false) = (&done, is_stuck) {
                        // Said once: it is tried again and again.
                        warn!(%error, "the canary push cannot go on: the store does not answer");
                    }
                    is_stuck = done.is_err();
                }
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Put(stored) => self.hear_of(&stored),
            Event::Reset(listing) => {
                self.record = None;
                listing.entries.iter().for_each(|stored| self.hear_of(stored));
            }
            Event::Delete { key, .. } if key == state_key(&self.prefix) => self.record = None,
            Event::Delete { .. } => {}
        }
    }

    fn hear_of(&mut self, stored: &Stored) {
        if stored.key.starts_with(&skips_folder(&self.prefix)) {
            self.publisher.let_past(stored.modified);
        } else if stored.key == state_key(&self.prefix)
            && let Some(record) = record_in(stored)
        {
            self.take(record, stored.modified);
        }
    }

    fn take(&mut self, record: Record, modified: Revision) {
        if self.record.as_ref().is_some_and(|(_, known)| *known >= modified) {
            return;
        }
        self.publisher.follow_record(&record);
        self.record = Some((record, modified));
        self.tell();
    }

    fn tell(&self) {
        let mut figures = Figures {
            record: self.record.as_ref().map(|(record, _)| record.clone()),
            ..Figures::default()
        };
        if let Some(watching) = &self.watching {
            figures.report = self.report();
            figures.lost = watching.lost(&self.settings);
            figures.watched = watching.began.elapsed();
        }
        self.told.set(figures);
    }

    async fn go_on(&mut self) -> Result<(), store::Error> {
        let Some((record, _)) = &self.record else {
            let Some(record) = self.publisher.record() else { return Ok(()) };
            return self.write(record, Expect::Absent).await;
        };
        let record = record.clone();
        // Where everything was read anew the publisher may follow an older one.
        self.publisher.follow_record(&record);
        if !record.has_data_planes && self.publisher.data_planes() > 0 {
            return self.change_to(Record { has_data_planes: true, ..record }).await;
        }
        if record.phase == Phase::Trying {
            self.wait_for_more();
            return self.watch_over(&record).await;
        }
        self.watching = None;
        match self.publisher.outlook(&self.settings, SETTLES) {
            None => self.wait_for_more(),
            Some(outlook) => self.try_out(&record, &outlook).await?,
        }
        Ok(())
    }

    /// Nothing is to be tried yet.
    fn wait_for_more(&mut self) {
        self.due = None;
        if let Some(fleet) = &self.fleet {
            fleet.tell_concerned(None);
        }
    }

    /// What the others say of the same revision; `None` while it is worth waiting for one of them.
    fn concerned_elsewhere(&mut self, own: &Concerned) -> Option<(Vec<Concerned>, u64)> {
        let Some(fleet) = &self.fleet else { return Some((Vec::new(), 0)) };
        fleet.tell_concerned(Some(own.clone()));
        let due = *self.due.get_or_insert_with(Instant::now);
        let others = fleet.others();
        let data_planes = others.iter().map(|other| other.data_planes).sum();
        let is_known = |other: &Presence| {
            other.data_planes == 0
                || other.concerned.as_ref().is_some_and(|told| told.revision == own.revision)
        };
        if due.elapsed() < OTHERS_WITHIN && !others.iter().all(is_known) {
            return None;
        }
        let told = others.into_iter().filter_map(|other| other.concerned);
        Some((told.filter(|told| told.revision == own.revision).collect(), data_planes))
    }

    /// Something is to be tried.
    async fn try_out(&mut self, record: &Record, outlook: &Outlook) -> Result<(), store::Error> {
        let own = Concerned::of(outlook);
        let Some((mut all, elsewhere)) = self.concerned_elsewhere(&own) else { return Ok(()) };
        let (revision, now) = (own.revision, unix_seconds());
        all.push(own);
        let concerned: u64 = all.iter().map(|one| one.count).sum();
        if concerned == 0 {
            if record.has_data_planes && self.started.elapsed() < RETURN_WITHIN {
                return Ok(());
            }
            // Nobody is there who could try what takes the place of what was stopped.
            if record.phase == Phase::Stopped && elsewhere + outlook.data_planes == 0 {
                return Ok(());
            }
            let passed = Record::passed(revision, now, "it concerns no connected data plane");
            let has_data_planes = record.has_data_planes;
            return self.change_to(Record { has_data_planes, ..passed }).await;
        }
        let trying = record.try_out(revision, choose(&all, &self.settings), now);
        info!(revision, concerned, "a change is tried by some data planes first");
        self.change_to(trying).await
    }

    /// Something is tried.
    async fn watch_over(&mut self, record: &Record) -> Result<(), store::Error> {
        let report = self.report();
        let candidate = (record.candidate, record.since);
        let watching = match self.watching.take().filter(|known| known.candidate == candidate) {
            Some(known) => self.watching.insert(known),
            None => self.watching.insert(Watching {
                candidate,
                began: Instant::now(),
                canaries: BTreeMap::new(),
                most_others: 0,
            }),
        };
        watching.see(&report);
        let evidence = watching.evidence(&report, &self.settings);
        let verdict = judge(&evidence, &self.settings);
        let now = unix_seconds();
        let next = match verdict {
            Verdict::Wait => {
                self.tell();
                return Ok(());
            }
            Verdict::Pass(why) => {
                info!(revision = record.candidate, why, "a canary push passes to all");
                record.pass(now, why)
            }
            Verdict::Stop(why) => {
                error!(revision = record.candidate, why, "CANARY PUSH STOPPED and taken back");
                Record { seen: Some(report), ..record.stop(now, why) }
            }
        };
        let is_passed = next.phase == Phase::Passed;
        let stable = next.stable;
        self.change_to(next).await?;
        match is_passed {
            true => self.forget_skips(stable).await,
            false => Ok(()),
        }
    }

    /// What all control planes see.
    fn report(&self) -> Report {
        let mut all = self.publisher.report();
        for other in self.fleet.iter().flat_map(Fleet::reports) {
            if other.revision == all.revision {
                all.canaries.extend(other.canaries);
                all.others += other.others;
                all.span += other.span;
            }
        }
        all
    }

    async fn change_to(&mut self, record: Record) -> Result<(), store::Error> {
        let Some((_, modified)) = &self.record else { return Ok(()) };
        self.write(record, Expect::Revision(*modified)).await
    }

    async fn write(&mut self, record: Record, expect: Expect) -> Result<(), store::Error> {
        match self.store.put(&state_key(&self.prefix), &json!(record), expect, None).await {
            Ok(stored) => {
                self.take(record, stored.modified);
                Ok(())
            }
            // Another control plane, or a person, was first: the watch tells what holds.
            Err(store::Error::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Marks of what everybody has anyway are of no use any more.
    async fn forget_skips(&self, stable: Revision) -> Result<(), store::Error> {
        let marks = self.store.list(&skips_folder(&self.prefix)).await?.entries;
        let old = marks.into_iter().filter(|mark| mark.modified <= stable).take(REMOVED_AT_ONCE);
        let removals: Vec<Write> = old
            .map(|mark| Write { key: mark.key, value: None, expect: Expect::Anything, ttl: None })
            .collect();
        if !removals.is_empty() {
            self.store.commit(removals).await?;
        }
        Ok(())
    }
}

impl Watching {
    fn see(&mut self, report: &Report) {
        let now = Instant::now();
        self.most_others = self.most_others.max(report.others);
        for (name, canary) in &report.canaries {
            let seen = self.canaries.entry(name.clone()).or_insert_with(|| Seen {
                instance: canary.instance.clone(),
                restarts: 0,
                last: now,
                span: Span::default(),
                earlier: Span::default(),
            });
            if seen.instance != canary.instance {
                seen.restarts += 1;
                seen.instance.clone_from(&canary.instance);
                seen.earlier += seen.span;
            }
            (seen.last, seen.span) = (now, canary.span);
        }
    }

    fn lost(&self, settings: &CanarySettings) -> Vec<String> {
        let after = LOST_AFTER.min(settings.watched() / 2);
        let lost = |seen: &Seen| seen.last.elapsed() > after || seen.restarts > 1;
        self.canaries.iter().filter(|(_, seen)| lost(seen)).map(|(name, _)| name.clone()).collect()
    }

    fn evidence(&self, report: &Report, settings: &CanarySettings) -> Evidence {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let large = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let mut span = Span::default();
        for seen in self.canaries.values() {
            span += seen.span;
            span += seen.earlier;
        }
        let refused = report.canaries.iter().find_map(|(name, canary)| {
            canary.refuses.as_ref().map(|what| (name.clone(), what.clone()))
        });
        let unanswered = report.canaries.values().filter(|canary| !canary.answered).count();
        Evidence {
            elapsed: self.began.elapsed(),
            canaries: number(self.canaries.len()),
            lost: self.lost(settings),
            unanswered: number(unanswered),
            refused,
            span,
            others: large(self.most_others),
            others_lost: large(self.most_others.saturating_sub(report.others)),
            rest: report.span,
        }
    }
}

/// The record as the Admin API tells it, beside what is seen now.
impl Figures {
    /// As JSON.
    pub fn shown(&self) -> Value {
        let Some(record) = &self.record else { return json!({ "phase": "unknown" }) };
        let mut shown = json!(record);
        if record.phase == Phase::Trying {
            shown["seen"] = json!(self.report);
            shown["lost"] = json!(self.lost);
            shown["watched_seconds"] = json!(self.watched.as_secs());
        }
        shown
    }
}
