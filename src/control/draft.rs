//! A state as it would be: all that is stored, with some of it changed. It is judged as a whole, and written as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use http::StatusCode;
use serde_json::{Value, json};

use super::ControlPlane;
use super::answer::Answer;
use super::history::Author;
use super::index::{Fact, Place, facts};
use super::sets::Flaw;
use crate::model::{Body, Id, Kind, Rejected, Resource, Revision, SslType};
use crate::store::{self, Commit, Expect, Stored, Write};

/// etcd takes 128 operations at once where its operator has not said otherwise.
const OPERATIONS_AT_ONCE: usize = 120;
/// And a request of 1.5 MiB.
const BYTES_AT_ONCE: usize = 1_000_000;

/// All resources that are stored.
pub(super) type State = BTreeMap<Place, Stored>;

/// What is to change: new values, and what goes.
pub(super) struct Draft<'a> {
    pub(super) state: &'a State,
    pub(super) changes: BTreeMap<Place, Option<Value>>,
}

/// How strictly a draft is judged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum References {
    /// What is named must be there, and what is used stays.
    Checked,
    /// As APISIX's standalone mode: what is named and missing makes its route answer an error.
    Free,
}

/// How much of a kind would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shrink {
    pub(super) kind: Kind,
    pub(super) of: usize,
    pub(super) deleted: usize,
}

impl Shrink {
    pub(super) fn shown(self) -> Value {
        json!({"kind": self.kind.name(), "of": self.of, "deleted": self.deleted})
    }
}

impl Draft<'_> {
    /// The value that would stand there.
    fn after(&self, place: &Place) -> Option<&Value> {
        match self.changes.get(place) {
            Some(change) => change.as_ref(),
            None => self.state.get(place).map(|stored| &stored.value),
        }
    }

    /// Everything that would stand, and whether it is changed.
    fn all_after(&self) -> impl Iterator<Item = (&Place, &Value, bool)> {
        let changed = self.changes.iter();
        let changed = changed.filter_map(|(place, value)| Some((place, value.as_ref()?, true)));
        let kept = self.state.iter().filter(|(place, _)| !self.changes.contains_key(*place));
        kept.map(|(place, stored)| (place, &stored.value, false)).chain(changed)
    }

    /// Kinds of which more than half would go, of those that have at least `least` resources of which two or more go.
    pub(super) fn shrinks(&self, least: usize) -> Vec<Shrink> {
        let mut found = Vec::new();
        for kind in Kind::ALL {
            let of = self.state.keys().filter(|(other, _)| *other == kind).count();
            let gone = self.changes.iter().filter(|(place, value)| {
                place.0 == kind && value.is_none() && self.state.contains_key(*place)
            });
            let deleted = gone.count();
            if deleted >= 2 && of >= least && deleted * 2 > of {
                found.push(Shrink { kind, of, deleted });
            }
        }
        found
    }

    /// Whatever names something that would not be there.
    fn dangling(&self, flaws: &mut Vec<Flaw>) {
        for (place, value) in &self.changes {
            let Some(value) = value else { continue };
            for fact in facts(place.0, &place.1, value) {
                let Fact::Refers(kind, id) = fact else { continue };
                let there = Id::parse(&id).is_ok_and(|id| self.after(&(kind, id)).is_some());
                match kind {
                    _ if there => {}
                    // Our own domain need not be declared: the trial knows which one that is.
                    Kind::TrustDomains => {}
                    Kind::Consumers => flaws.push(about(place, "consumer not found")),
                    _ => {
                        let name = kind.singular();
                        let why = format!(
                            "failed to fetch {name} info by {name} id [{id}], response code: 404"
                        );
                        flaws.push(about(place, why));
                    }
                }
            }
            for id in client_certificates(value) {
                let client = self.after(&(Kind::Ssls, id.clone())).map(|ssl| {
                    Body::parse(Kind::Ssls, ssl).is_ok_and(
                        |body| matches!(body, Body::Ssl(ssl) if ssl.ssl_type == SslType::Client),
                    )
                });
                let why = match client {
                    Some(true) => continue,
                    Some(false) => "wrong ssl type",
                    None => "response code: 404",
                };
                let why = format!("failed to fetch ssl info by ssl id [{id}], {why}");
                flaws.push(about(place, why));
            }
        }
        let gone: BTreeSet<(Kind, &str)> = self
            .changes
            .iter()
            .filter(|(_, value)| value.is_none())
            .map(|(place, _)| (place.0, place.1.as_str()))
            .collect();
        if gone.is_empty() {
            return;
        }
        for (place, value, is_changed) in self.all_after() {
            // What is changed was looked at above.
            if is_changed {
                continue;
            }
            for fact in facts(place.0, &place.1, value) {
                let Fact::Refers(kind, id) = fact else { continue };
                if kind != Kind::TrustDomains && gone.contains(&(kind, id.as_str())) {
                    let (user, user_id) = (place.0.singular(), &place.1);
                    let what = kind.singular();
                    flaws.push(Flaw {
                        at: None,
                        place: Some((kind, id)),
                        error: format!(
                            "can not delete this {what}, {user} [{user_id}] is still using it now"
                        ),
                    });
                }
            }
        }
    }

    /// Keys that two have, and plugins that two global rules have.
    fn clashes(&self, flaws: &mut Vec<Flaw>) {
        let concerned =
            |kind| matches!(kind, Kind::Consumers | Kind::Credentials | Kind::GlobalRules);
        let puts = |(place, value): (&Place, &Option<Value>)| concerned(place.0) && value.is_some();
        if !self.changes.iter().any(puts) {
            return;
        }
        let mut holders: HashMap<Fact, Vec<&Place>> = HashMap::new();
        for (place, value, _) in self.all_after().filter(|(place, ..)| concerned(place.0)) {
            for fact in facts(place.0, &place.1, value) {
                if !matches!(fact, Fact::Refers(..)) {
                    holders.entry(fact).or_default().push(place);
                }
            }
        }
        for (fact, places) in holders.iter().filter(|(_, places)| places.len() > 1) {
            for place in places.iter().filter(|place| self.changes.contains_key(**place)) {
                let Some(other) = places.iter().find(|other| *other != place) else { continue };
                let why = match fact {
                    Fact::GlobalPlugin(plugin) => format!(
                        "plugin '{plugin}' already exists in global rule with id '{}'",
                        other.1
                    ),
                    Fact::AuthKey { plugin, .. } => {
                        let consumer = other.1.as_str().split('/').next().unwrap_or_default();
                        format!("duplicate key of plugin {plugin} found with consumer: {consumer}")
                    }
                    Fact::Refers(..) => continue,
                };
                flaws.push(about(place, why));
            }
        }
    }

    /// What would stand, compiled with the data plane's code: unchanged and changed. What cannot be read stays out: data planes
    /// quarantine it.
    fn resources(&self) -> (Vec<Resource>, Vec<Resource>) {
        let (mut kept, mut changed) = (Vec::new(), Vec::new());
        for (place, value, is_changed) in self.all_after() {
            if let Ok(body) = Body::parse(place.0, value) {
                let resource = Resource { kind: place.0, id: place.1.clone(), revision: 0, body };
                if is_changed { changed.push(resource) } else { kept.push(resource) }
            }
        }
        (kept, changed)
    }
}

fn about(place: &Place, error: impl Into<String>) -> Flaw {
    Flaw { at: None, place: Some((place.0, place.1.to_string())), error: error.into() }
}

/// The certificates that upstreams in this resource show to their servers.
fn client_certificates(value: &Value) -> Vec<Id> {
    ["/tls/client_cert_id", "/upstream/tls/client_cert_id"]
        .into_iter()
        .filter_map(|pointer| value.pointer(pointer).and_then(super::index::id_text))
        .filter_map(|id| Id::parse(&id).ok())
        .collect()
}

impl ControlPlane {
    /// Everything that is stored, at one revision.
    pub(super) async fn state(&self) -> Result<(State, Revision), store::Error> {
        let listing = self.store.list(&format!("{}/", self.prefix)).await?;
        let place = |stored: Stored| {
            let place = stored.key.strip_prefix(self.prefix.as_str()).and_then(Kind::split_key)?;
            Some((place, stored))
        };
        Ok((listing.entries.into_iter().filter_map(place).collect(), listing.revision))
    }

    /// May this draft stand? Each change by itself, what they refer to, what must be unique, and all of it compiled.
    pub(super) async fn judge_draft(
        &self,
        draft: &Draft<'_>,
        references: References,
    ) -> Result<Vec<Flaw>, Answer> {
        let mut flaws = Vec::new();
        for (place, value) in &draft.changes {
            if let Some(value) = value
                && let Err(invalid) = self.judge_shape(place.0, place.1.as_str(), value)
            {
                flaws.push(about(place, invalid.0));
            }
        }
        if references == References::Checked {
            draft.dangling(&mut flaws);
        }
        draft.clashes(&mut flaws);
        if !flaws.is_empty() {
            return Ok(flaws);
        }
        let (kept, changed) = draft.resources();
        let rejected = self.try_whole(kept, changed).await?;
        let (own, others): (Vec<Rejected>, Vec<Rejected>) = rejected
            .into_iter()
            .partition(|one| draft.changes.contains_key(&(one.kind, one.id.clone())));
        flaws.extend(own.into_iter().map(|one| about(&(one.kind, one.id), one.reason)));
        if flaws.is_empty() && !others.is_empty() {
            // Was it refused before, by whoever wrote it past us? Then it is not this draft's doing.
            let untouched = Draft { state: draft.state, changes: BTreeMap::new() };
            let before = self.try_whole(untouched.resources().0, Vec::new()).await?;
            let known = |one: &Rejected| {
                before.iter().any(|other| (other.kind, &other.id) == (one.kind, &one.id))
            };
            flaws.extend(others.into_iter().filter(|one| !known(one)).map(|one| {
                let why = format!("would no longer be accepted: {}", one.reason);
                about(&(one.kind, one.id), why)
            }));
        }
        Ok(flaws)
    }

    /// Compiling everything takes long: beside whoever waits for an answer.
    async fn try_whole(
        &self,
        kept: Vec<Resource>,
        changed: Vec<Resource>,
    ) -> Result<Vec<Rejected>, Answer> {
        let trial = self.trial.clone();
        let tried = tokio::task::spawn_blocking(move || trial.check_whole(kept, changed)).await;
        tried.map_err(|error| {
            tracing::error!(%error, "the trial of a whole set broke off");
            Answer::error(StatusCode::INTERNAL_SERVER_ERROR, "the trial broke off; see the log")
        })
    }

    /// The writes that make the draft's changes, each with what remembers it, in an order in which nothing ever refers to what
    /// is not there.
    pub(super) fn writes_of<'a>(
        &self,
        draft: &Draft<'_>,
        author: impl Fn(&Place) -> Author<'a>,
    ) -> Vec<(Place, Vec<Write>)> {
        let rank = |kind: Kind| Kind::ALL.iter().position(|other| *other == kind).unwrap_or(0);
        let mut changes: Vec<(&Place, &Option<Value>)> = draft.changes.iter().collect();
        changes.sort_by_key(|(place, value)| match value {
            Some(_) => (false, rank(place.0)),
            None => (true, usize::MAX - rank(place.0)),
        });
        let write = |(place, value): (&Place, &Option<Value>)| {
            let before = draft.state.get(place).map(|stored| stored.modified);
            let expect = before.map_or(Expect::Absent, Expect::Revision);
            let key = self.key(place.0, &place.1);
            let mut writes = vec![Write { key, value: value.clone(), expect, ttl: None }];
            let (kind, id) = (place.0, &place.1);
            writes.extend(self.remembering(kind, id, value.as_ref(), before, author(place)));
            writes.extend(self.going_past(author(place)));
            (place.clone(), writes)
        };
        changes.into_iter().map(write).collect()
    }

    /// Makes all writes in one revision. A store that takes only so many at once gets them in several when `split` says so;
    /// what belongs to one resource stays together. Tells the last revision and how many there were.
    ///
    /// # Errors
    /// As [`store::Store::commit`]; in the middle of several, what was written before stays.
    pub(super) async fn commit_all(
        &self,
        groups: Vec<(Place, Vec<Write>)>,
        split: bool,
    ) -> Result<(Revision, usize), TooMuch> {
        let places: Vec<Place> = groups.iter().map(|(place, _)| place.clone()).collect();
        let all = |groups: &[(Place, Vec<Write>)]| -> Vec<Write> {
            groups.iter().flat_map(|(_, writes)| writes.iter().cloned()).collect()
        };
        let done = match self.store.commit(all(&groups)).await {
            Ok(Commit { revision, .. }) => (revision, 1),
            Err(store::Error::Refused(why)) if is_too_much(&why) => {
                if !split {
                    return Err(TooMuch::Store(why));
                }
                let mut revision = 0;
                let parts = parts(groups);
                let count = parts.len();
                for (made, part) in parts.into_iter().enumerate() {
                    let commit = self.store.commit(part).await;
                    revision = match commit {
                        Ok(commit) => commit.revision,
                        Err(error) if made == 0 => return Err(TooMuch::Other(error)),
                        Err(error) => return Err(TooMuch::Partly(made, count, error)),
                    };
                    self.has_written(revision);
                }
                (revision, count)
            }
            Err(error) => return Err(TooMuch::Other(error)),
        };
        self.has_written(done.0);
        self.forget_old(&places).await;
        Ok(done)
    }
}

/// Why a set of writes was not made.
#[derive(Debug)]
pub(super) enum TooMuch {
    /// The store does not take so much at once, and splitting was not allowed.
    Store(String),
    /// It ended after so many revisions of so many.
    Partly(usize, usize, store::Error),
    /// As any write.
    Other(store::Error),
}

impl From<TooMuch> for Answer {
    fn from(why: TooMuch) -> Self {
        match why {
            TooMuch::Store(why) => Self::error(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "nothing was written: the store does not take so much in one revision ({why}). \
                     Raise etcd's --max-txn-ops and --max-request-bytes, or allow several revisions with split=true"
                ),
            ),
            TooMuch::Partly(made, of, error) => Self::error(
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "{made} of {of} revisions were written, then: {error}. Sending the set again completes it"
                ),
            ),
            TooMuch::Other(error) => error.into(),
        }
    }
}

fn is_too_much(why: &str) -> bool {
    ["too many operations", "request is too large", "larger than max"]
        .iter()
        .any(|words| why.contains(words))
}

fn parts(groups: Vec<(Place, Vec<Write>)>) -> Vec<Vec<Write>> {
    let mut parts: Vec<Vec<Write>> = Vec::new();
    let mut bytes = 0;
    for (_, writes) in groups {
        let size: usize = writes
            .iter()
            .map(|write| {
                let value = write.value.as_ref().map_or(0, |value| value.to_string().len());
                write.key.len() + value + 64
            })
            .sum();
        match parts.last_mut() {
            Some(part)
                if part.len() + writes.len() <= OPERATIONS_AT_ONCE
                    && bytes + size <= BYTES_AT_ONCE =>
            {
                bytes += size;
                part.extend(writes);
            }
            _ => {
                bytes = size;
                parts.push(writes);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(key: &str, value: Value) -> Stored {
        Stored { key: key.into(), value, created: 1, modified: 1 }
    }

    fn place(kind: Kind, id: &str) -> Place {
        (kind, Id::parse(id).unwrap())
    }

    fn routes(count: usize) -> State {
        (0..count)
            .map(|number| {
                let place = place(Kind::Routes, &number.to_string());
                (place, stored("", json!({"uri": "/", "upstream_id": "u"})))
            })
            .collect()
    }

    #[test]
    fn more_than_half_of_a_kind_is_a_shrink() {
        for (of, deleted, least, shrinks) in [
            (4, 2, 0, false),
            (4, 3, 0, true),
            (1, 1, 0, false),
            (2, 2, 0, true),
            (9, 9, 10, false),
        ] {
            let state = routes(of);
            let gone = state.keys().take(deleted).map(|place| (place.clone(), None));
            let draft = Draft { state: &state, changes: gone.collect() };
            assert_eq!(!draft.shrinks(least).is_empty(), shrinks, "{deleted} of {of}");
        }
    }

    #[test]
    fn what_is_named_must_be_there_and_what_is_used_stays() {
        let mut state = routes(1);
        state.insert(place(Kind::Upstreams, "u"), stored("", json!({"nodes": {}})));
        let judge = |changes: Vec<(Place, Option<Value>)>| {
            let draft = Draft { state: &state, changes: changes.into_iter().collect() };
            let mut flaws = Vec::new();
            draft.dangling(&mut flaws);
            flaws.into_iter().map(|flaw| flaw.error).collect::<Vec<_>>()
        };
        let gone = (place(Kind::Upstreams, "u"), None);
        assert_eq!(
            judge(vec![gone.clone()]),
            ["can not delete this upstream, route [0] is still using it now"]
        );
        // With its user it may go; in its user's stead something else may be named that comes along.
        assert!(judge(vec![gone.clone(), (place(Kind::Routes, "0"), None)]).is_empty());
        let other = |id: &str| (place(Kind::Routes, "0"), Some(json!({"upstream_id": id})));
        assert_eq!(
            judge(vec![gone.clone(), other("v")]),
            ["failed to fetch upstream info by upstream id [v], response code: 404"]
        );
        let new = (place(Kind::Upstreams, "v"), Some(json!({"nodes": {}})));
        assert!(judge(vec![gone, other("v"), new]).is_empty());
    }

    #[test]
    fn a_store_that_takes_little_at_once_gets_whole_resources() {
        let write = |bytes: usize| Write {
            key: "k".into(),
            value: Some(json!("x".repeat(bytes))),
            expect: Expect::Anything,
            ttl: None,
        };
        let groups = |count: usize, bytes: usize| -> Vec<_> {
            (0..count)
                .map(|number| {
                    let place = place(Kind::Routes, &number.to_string());
                    (place, vec![write(bytes), write(1)])
                })
                .collect()
        };
        let sizes = |parts: Vec<Vec<Write>>| parts.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(parts(groups(130, 1))), [120, 120, 20]);
        assert_eq!(sizes(parts(groups(5, 400_000))), [4, 4, 2]);
    }
}
