//! `Fleet`: control planes over one store tell one another, in it, how far their data planes are.
//!
//! Each has one entry, `<prefix>-fleet/<instance>`, which it writes when something changes and otherwise every few seconds, and
//! which ends by itself when it does not. An entry that is not renewed counts no more before that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::warn;

use super::canary::{Concerned, Report};
use super::publisher::Publisher;
use crate::model::Revision;
use crate::rt::DrainGuard;
use crate::store::{Event, Expect, Store, Stored};

/// How often a change is told at the most.
const LOOKS_EVERY: Duration = Duration::from_millis(250);
/// How often is told that nothing has changed.
const RENEWS_EVERY: Duration = Duration::from_secs(2);
/// An entry that was not renewed for so long tells of a control plane that is gone.
const GONE_AFTER: Duration = Duration::from_secs(6);
/// When the store removes it, in seconds.
const ENDS_AFTER: u64 = 15;
/// So many revisions are told of at the most, the oldest first.
const REVISIONS: usize = 64;

/// How far the data planes of one control plane are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Its name for people.
    pub node: String,
    /// The newest revision that it has read.
    pub revision: Revision,
    /// How many data planes are connected to it.
    pub data_planes: u64,
    /// How many of them have answered which revision, the oldest first. Of very many the newest are counted with the last one.
    pub applied: Vec<(Revision, u64)>,
    /// The newest revision that went past what is tried and that all of them have answered.
    #[serde(default)]
    pub beside: Vec<Revision>,
    /// How many of them refuse something.
    pub refusing: u64,
    /// The revisions of what is refused, and by how many.
    #[serde(default)]
    pub refused: Vec<(Revision, u64)>,
    /// What it sees of canaries, while something is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// Which of its data planes the newest change concerns, while that is to be tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concerned: Option<Concerned>,
}

impl Presence {
    /// How many of its data planes have answered this revision.
    pub fn has_applied(&self, revision: Revision) -> u64 {
        if self.beside.contains(&revision) {
            return self.data_planes;
        }
        self.applied
            .iter()
            .filter(|(applied, _)| *applied >= revision)
            .map(|(_, count)| count)
            .sum()
    }

    /// How many of its data planes refuse what this revision wrote.
    pub fn refuses(&self, revision: Revision) -> u64 {
        self.refused
            .iter()
            .filter(|(refused, _)| *refused == revision)
            .map(|(_, count)| count)
            .sum()
    }

    /// Counts by revision, bounded.
    pub(super) fn counted(counts: BTreeMap<Revision, u64>) -> Vec<(Revision, u64)> {
        let mut all: Vec<(Revision, u64)> = counts.into_iter().collect();
        let more: u64 = all.iter().skip(REVISIONS).map(|(_, count)| count).sum();
        all.truncate(REVISIONS);
        if let Some(last) = all.last_mut() {
            last.1 += more;
        }
        all
    }
}

/// The control planes over one store. Clones are the same.
#[derive(Clone)]
pub struct Fleet {
    own: Arc<str>,
    node: Arc<str>,
    others: Arc<Mutex<BTreeMap<String, (Instant, Presence)>>>,
    /// Which of our data planes the newest change concerns.
    concerned: Arc<Mutex<Option<Concerned>>>,
}

impl Fleet {
    /// This control plane among the others; [`Fleet::run`] makes it known.
    pub fn new(node: &str) -> Self {
        let own = uuid::Uuid::new_v4().to_string();
        Self {
            own: own.into(),
            node: node.into(),
            others: Arc::default(),
            concerned: Arc::default(),
        }
    }

    /// The other control planes, as they were heard last.
    pub fn others(&self) -> Vec<Presence> {
        let others = self.others.lock();
        let here = others.values().filter(|(at, _)| at.elapsed() < GONE_AFTER);
        here.map(|(_, presence)| presence.clone()).collect()
    }

    /// What the others are told of the newest change.
    pub(super) fn tell_concerned(&self, concerned: Option<Concerned>) {
        *self.concerned.lock() = concerned;
    }

    pub(super) fn reports(&self) -> Vec<Report> {
        self.others().into_iter().filter_map(|other| other.report).collect()
    }

    /// Tells and hears until the drain is asked for.
    pub async fn run(
        self,
        store: Arc<dyn Store>,
        prefix: String,
        publisher: Publisher,
        mut drain: DrainGuard,
    ) {
        let folder = format!("{prefix}-fleet/");
        let place = format!("{folder}{}", self.own);
        let mut watch = store.watch(&folder, 0);
        let mut told: Option<(Instant, Presence)> = None;
        let mut is_silent = false;
        loop {
            tokio::select! {
                () = drain.asked() => break,
                event = watch.next() => match event {
                    Some(event) => self.hear(&event, &folder),
                    None => return,
                },
                () = tokio::time::sleep(LOOKS_EVERY) => {
                    let presence = Presence {
                        node: self.node.to_string(),
                        concerned: self.concerned.lock().clone(),
                        ..publisher.presence()
                    };
                    let is_told = told.as_ref().is_some_and(|(at, known)| {
                        *known == presence && at.elapsed() < RENEWS_EVERY
                    });
                    if is_told {
                        continue;
                    }
                    let value = json!(presence);
                    match store.put(&place, &value, Expect::Anything, Some(ENDS_AFTER)).await {
                        Ok(_) => {
                            told = Some((Instant::now(), presence));
                            is_silent = false;
                        }
                        // Said once: it is tried again and again.
                        Err(error) if !is_silent => {
                            is_silent = true;
                            warn!(%error, "the other control planes are not told of ours");
                        }
                        Err(_) => {}
                    }
                }
            }
        }
        // Who asks the others meanwhile need not wait for us.
        let _ = store.delete(&place, Expect::Anything).await;
    }

    fn hear(&self, event: &Event, folder: &str) {
        let mut others = self.others.lock();
        let name = |key: &str| key.strip_prefix(folder).map(str::to_owned);
        let mut put = |stored: &Stored| {
            let presence = Presence::deserialize(&stored.value).ok();
            let named = name(&stored.key).filter(|name| **name != *self.own);
            if let (Some(name), Some(presence)) = (named, presence) {
                others.insert(name, (Instant::now(), presence));
            }
        };
        match event {
            Event::Put(stored) => put(stored),
            Event::Reset(listing) => {
                listing.entries.iter().for_each(&mut put);
                let named: Vec<String> =
                    listing.entries.iter().filter_map(|stored| name(&stored.key)).collect();
                others.retain(|name, _| named.contains(name));
            }
            Event::Delete { key, .. } => {
                if let Some(name) = name(key) {
                    others.remove(&name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_many_revisions_the_newest_are_counted_with_the_last_one_that_is_told() {
        let counts: BTreeMap<Revision, u64> = (1..=100).map(|revision| (revision, 1)).collect();
        let applied = Presence::counted(counts);
        let presence = Presence { data_planes: 100, applied, ..Presence::default() };
        assert_eq!(presence.has_applied(1), 100);
        assert_eq!(presence.has_applied(64), 37);
        assert_eq!(presence.has_applied(65), 0, "never more than is so");
    }
}
