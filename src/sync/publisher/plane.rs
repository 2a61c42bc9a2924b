//! `Plane`: one connected data plane, as the publisher sees it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use tokio::sync::Notify;

use crate::model::{Rejected, Revision};
use crate::rt::crypto::digest;
use crate::sync::canary::{Canary, Counts, Span};
use crate::sync::delta::{Key, Versions};
use crate::sync::scope::{Role, ScopeId};

/// Which of the two states a data plane follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Side {
    /// What everybody has.
    #[default]
    Stable,
    /// What is tried.
    Trial,
}

/// One connected data plane.
pub(super) struct Plane {
    pub(super) spiffe_id: Arc<str>,
    pub(super) greeting: Greeting,
    pub(super) scope: ScopeId,
    /// Its scope in what is tried, where anything is.
    pub(super) trial_scope: Option<ScopeId>,
    pub(super) side: Side,
    /// What may differ for it between the two states.
    pub(super) concern: HashSet<Key, RandomState>,
    pub(super) connected_since: i64,
    /// What it has once it has taken what was sent.
    pub(super) has: Versions,
    /// Has it been sent its first delta?
    pub(super) is_greeted: bool,
    /// What changed since the last delta was sent, and the revision of the first such change.
    pub(super) changed: HashSet<Key, RandomState>,
    pub(super) changed_since: Option<Revision>,
    pub(super) under_way: Option<UnderWay>,
    pub(super) nonce: u64,
    pub(super) rejected: Vec<Rejected>,
    pub(super) sent: u64,
    /// Another stream of the same process took over.
    pub(super) is_replaced: bool,
    pub(super) wake: Arc<Notify>,
    pub(super) counted: Counted,
}

pub(super) struct UnderWay {
    /// The revision of the first change in it.
    pub(super) since: Revision,
    pub(super) nonce: u64,
}

/// What a data plane says of itself.
pub(super) struct Greeting {
    pub(super) role: Role,
    pub(super) node: String,
    pub(super) version: String,
    pub(super) instance: String,
    /// The revision that is in force there; 0 for none.
    pub(super) revision: Revision,
    pub(super) labels: BTreeMap<String, String>,
}

/// What a data plane has counted over time.
#[derive(Default)]
pub(super) struct Counted {
    /// Some earlier counts, oldest first.
    earlier: VecDeque<(Instant, Counts)>,
    newest: Option<Counts>,
    mark: Option<Mark>,
}

/// From when on its counts are held against those before.
struct Mark {
    at: Option<Counts>,
    before: Counts,
    refused: Vec<Rejected>,
}

/// So many earlier counts are kept.
const EARLIER: usize = 10;

impl Counted {
    /// It says what it has counted; of the last `within` enough is kept to know what was usual.
    pub(super) fn tell(&mut self, counts: Counts, now: Instant, within: Duration) {
        let spacing = within / u32::try_from(EARLIER).unwrap_or(1);
        let is_due = self.earlier.back().is_none_or(|(at, _)| now.duration_since(*at) >= spacing);
        if is_due {
            if self.earlier.len() > EARLIER {
                self.earlier.pop_front();
            }
            self.earlier.push_back((now, counts));
        }
        self.newest = Some(counts);
        if let Some(mark) = &mut self.mark {
            mark.at.get_or_insert(counts);
        }
    }

    /// From now on is another time. Who has said little so far is measured by all that it ever counted.
    fn begin(&mut self, refused: Vec<Rejected>) {
        let oldest = self.earlier.front().filter(|_| self.earlier.len() > 1);
        let oldest = oldest.map_or_else(Counts::default, |(_, counts)| *counts);
        let before = self.newest.map_or_else(Counts::default, |counts| counts.since(oldest));
        self.mark = Some(Mark { at: self.newest, before, refused });
    }

    fn span(&self) -> Span {
        let Some(mark) = &self.mark else { return Span::default() };
        let since = match (self.newest, mark.at) {
            (Some(newest), Some(at)) => newest.since(at),
            _ => Counts::default(),
        };
        Span { before: mark.before, since }
    }
}

impl Plane {
    /// Its name among canaries.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.spiffe_id, self.greeting.node)
    }

    /// What decides whether it is among the first: the same at every control plane.
    pub(super) fn lot(&self) -> u64 {
        let digest = digest::digest(&digest::SHA256, self.name().as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_ref()[..8]);
        u64::from_be_bytes(first)
    }

    /// What carries no traffic shows nothing that could be watched.
    pub(super) fn carries_traffic(&self) -> bool {
        self.greeting.role != Role::Issuer
    }

    pub(super) fn bears(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.iter().all(|(name, value)| self.greeting.labels.get(name) == Some(value))
    }

    /// It must be told of this, which `revision` changed.
    pub(super) fn note(&mut self, key: Key, revision: Revision) {
        self.changed_since.get_or_insert(revision);
        self.changed.insert(key);
        self.wake.notify_one();
    }

    /// It follows the other state from now on, which has reached `revision`.
    pub(super) fn turn_to(&mut self, side: Side, revision: Revision) {
        if mem::replace(&mut self.side, side) == side {
            return;
        }
        let first = self.changed_since.map_or(revision, |since| since.min(revision));
        for key in self.concern.iter().cloned().collect::<Vec<_>>() {
            self.note(key, first);
        }
    }

    pub(super) fn applied(&self, current: Revision) -> Revision {
        if !self.is_greeted {
            return 0;
        }
        let waits_for =
            [self.under_way.as_ref().map(|under_way| under_way.since), self.changed_since];
        waits_for.into_iter().flatten().min().map_or(current, |first| first.saturating_sub(1))
    }

    /// Has it answered everything that it was sent, and is there nothing to send?
    pub(super) fn is_settled(&self) -> bool {
        self.is_greeted && self.under_way.is_none() && self.changed_since.is_none()
    }

    /// From now on what it counts is held against what it counted before.
    pub(super) fn begin_watch(&mut self) {
        let refused = self.rejected.clone();
        self.counted.begin(refused);
    }

    pub(super) fn end_watch(&mut self) {
        self.counted.mark = None;
    }

    pub(super) fn is_watched(&self) -> bool {
        self.counted.mark.is_some()
    }

    pub(super) fn span(&self) -> Span {
        self.counted.span()
    }

    /// What is seen of it while it tries something.
    pub(super) fn canary(&self) -> Canary {
        let before = self.counted.mark.as_ref().map_or(&[][..], |mark| &mark.refused);
        let refuses = self.rejected.iter().find(|one| !before.contains(one));
        Canary {
            instance: self.greeting.instance.clone(),
            span: self.span(),
            answered: self.is_settled(),
            refuses: refuses.map(|one| format!("{}/{}: {}", one.kind, one.id, one.reason)),
        }
    }
}
