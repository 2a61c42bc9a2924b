//! Every revision of every resource, with its author and time: listed, read as of then, and rolled back.
//!
//! Each write and the entry that remembers it are one revision of the store. What is written past the Admin API is remembered as
//! soon as a control plane sees it, without an author. The entries lie beside the resources' prefix (`/apisix-history/`), so that
//! nobody who follows the resources reads them.
//!
//! Of what decides who may do what, all that ever was is kept (`COMPLETE`); of other kinds the newest revisions of each resource.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ControlPlane;
use super::access::Principal;
use super::answer::Answer;
use super::draft::{Draft, References};
use super::index::Place;
use super::listing::{Query, shown};
use super::sets::bare;
use crate::model::{Id, Kind, Revision};
use crate::rt::Clock;
use crate::store::{self, Commit, Event, Expect, Listing, Store, Stored, Write, Written};
use crate::sync::canary::skipping;

mod past;

pub use self::past::RememberedPast;

/// The kinds whose past is kept whole.
pub(super) const COMPLETE: [Kind; 2] = [Kind::IdentityPolicies, Kind::IdentityModes];

/// How often a write is tried when somebody else writes the same resource.
const ATTEMPTS: usize = 10;

/// Every so manieth write of a resource looks whether older revisions can be forgotten: reading them costs as much as a write.
const FORGETS_EVERY: u8 = 8;
/// So many of them are forgotten at once.
const FORGOTTEN_AT_ONCE: usize = 100;

/// How long the entry that remembers a write may come after it.
const SETTLES_WITHIN: Duration = Duration::from_millis(500);

/// What an operator sets about the past.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HistorySettings {
    /// So many revisions of each resource are kept at least; 0 keeps none. Of identity policies and identity modes all are.
    #[schemars(range(max = 1000))]
    pub revisions: usize,
}

impl Default for HistorySettings {
    fn default() -> Self {
        Self { revisions: 20 }
    }
}

/// Is the whole past of the kind kept?
pub(super) fn is_complete(kind: Kind) -> bool {
    COMPLETE.contains(&kind)
}

/// What an entry says, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    kind: String,
    id: String,
    /// Whose key it was; absent when it was written past the Admin API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    /// Seconds since 1970.
    time: i64,
    /// The revision of a write that was seen afterwards; otherwise the entry's own is the write's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<Revision>,
    /// The revision whose state was put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rollback_to: Option<Revision>,
    /// The revision of the value that this one replaced; absent where there was none, or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<Revision>,
    /// What the resource said from then on; `None`: it was gone.
    value: Option<Value>,
}

/// One remembered revision of a resource.
#[derive(Clone, Debug)]
struct Remembered {
    revision: Revision,
    entry: Entry,
}

impl Remembered {
    fn read(stored: &Stored) -> Option<Self> {
        let entry = Entry::deserialize(&stored.value).ok()?;
        Some(Self { revision: entry.revision.unwrap_or(stored.modified), entry })
    }

    fn shown(&self, kind: Kind, whole: bool) -> Value {
        let Entry { id, author, time, rollback_to, value, .. } = &self.entry;
        let kind_name = kind.name();
        let action = if value.is_some() { "put" } else { "delete" };
        let mut shown = json!({
            "revision": self.revision, "kind": kind_name, "id": id, "action": action, "time": time,
            "author": author,
        });
        if let Some(to) = rollback_to {
            shown["rollback_to"] = json!(to);
        }
        if let (true, Some(value)) = (whole, value) {
            shown["value"] = self::shown(kind, value.clone());
        }
        shown
    }
}

/// A moment of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// When the store was at this revision.
    Revision(Revision),
    /// At this time, seconds since 1970.
    Time(i64),
}

impl At {
    /// Reads `1234` as a revision, and a date and time of RFC 3339 as a time.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(revision) = text.parse() {
            return Ok(Self::Revision(revision));
        }
        let format = &time::format_description::well_known::Rfc3339;
        match time::OffsetDateTime::parse(text, format) {
            Ok(time) => Ok(Self::Time(time.unix_timestamp())),
            Err(_) => Err(format!(
                "{text:?} is neither a revision (a number) nor a time (RFC 3339, as 2026-11-21T10:00:00Z)"
            )),
        }
    }

    fn reaches(self, remembered: &Remembered) -> bool {
        match self {
            Self::Revision(revision) => remembered.revision <= revision,
            Self::Time(time) => remembered.entry.time <= time,
        }
    }
}

/// Where the entries of a kind lie; of one resource, when `id` is given.
fn folder(prefix: &str, kind: Kind, id: Option<&Id>) -> String {
    let kind = kind.name();
    match id {
        Some(id) => format!("{prefix}-history/{kind}/{id}/"),
        None => format!("{prefix}-history/{kind}/"),
    }
}

/// Who writes, and why.
#[derive(Clone, Copy, Debug)]
pub(super) struct Author<'a> {
    pub(super) name: &'a str,
    pub(super) rollback_to: Option<Revision>,
    /// Does the write go past canaries?
    pub(super) skips: bool,
}

impl ControlPlane {
    /// Is anything of the kind's past kept?
    fn remembers(&self, kind: Kind) -> bool {
        is_complete(kind) || self.revisions_kept > 0
    }

    /// The mark by which a write goes past canaries, where there are any and it is to do so.
    pub(super) fn going_past(&self, author: Author<'_>) -> Option<Write> {
        let skips = author.skips && self.canaries.is_some();
        skips.then(|| skipping(&self.prefix, author.name))
    }

    /// The write that remembers a write, where its kind's past is kept; `before` is the revision of what it replaces.
    pub(super) fn remembering(
        &self,
        kind: Kind,
        id: &Id,
        value: Option<&Value>,
        before: Option<Revision>,
        author: Author<'_>,
    ) -> Option<Write> {
        if !self.remembers(kind) {
            return None;
        }
        let entry = Entry {
            kind: kind.name().to_owned(),
            id: id.to_string(),
            author: Some(author.name.to_owned()),
            time: self.clock.now(),
            revision: None,
            rollback_to: author.rollback_to,
            replaces: before,
            value: value.cloned(),
        };
        let key = format!("{}{}", folder(&self.prefix, kind, Some(id)), uuid::Uuid::now_v7());
        Some(Write { key, value: Some(json!(entry)), expect: Expect::Absent, ttl: None })
    }

    /// Writes a resource, and remembers it where its kind's past is kept.
    pub(super) async fn store_put(
        &self,
        (kind, id): (Kind, &Id),
        value: &Value,
        expect: Expect,
        ttl: Option<u64>,
        author: Author<'_>,
    ) -> Result<Stored, store::Error> {
        let key = self.key(kind, id);
        let before = match expect {
            Expect::Revision(before) => Some(before),
            Expect::Absent | Expect::Anything => None,
        };
        let mut writes = vec![Write { key, value: Some(value.clone()), expect, ttl }];
        writes.extend(self.remembering(kind, id, Some(value), before, author));
        writes.extend(self.going_past(author));
        let Commit { written, .. } = self.store.commit(writes).await?;
        self.forget_old(&[(kind, id.clone())]).await;
        match written.into_iter().next() {
            Some(Written::Put(stored)) => Ok(stored),
            _ => Err(store::Error::Refused("the store did not say what it had written".into())),
        }
    }

    /// Removes a resource, and remembers it where its kind's past is kept; `None` when there was none.
    pub(super) async fn store_delete(
        &self,
        (kind, id): (Kind, &Id),
        author: Author<'_>,
    ) -> Result<Option<Revision>, store::Error> {
        let key = self.key(kind, id);
        // Where pushes have canaries everything is remembered.
        if !self.remembers(kind) {
            return self.store.delete(&key, Expect::Anything).await;
        }
        for _ in 0..ATTEMPTS {
            let (expect, before) = match self.store.get(&key).await {
                Ok(None) => return Ok(None),
                Ok(Some(before)) => (Expect::Revision(before.modified), Some(before.modified)),
                // Whatever it is, the operator wants it gone.
                Err(store::Error::NotJson { .. }) => (Expect::Anything, None),
                Err(error) => return Err(error),
            };
            let mut writes = vec![Write { key: key.clone(), value: None, expect, ttl: None }];
            writes.extend(self.remembering(kind, id, None, before, author));
            writes.extend(self.going_past(author));
            match self.store.commit(writes).await {
                Err(store::Error::Conflict) => {}
                done => return done.map(|commit| Some(commit.revision)),
            }
        }
        Err(store::Error::Conflict)
    }

    /// Forgets what is older than the revisions to be kept, of some of these resources: which ones is left to chance, so that each
    /// has its turn. What cannot be forgotten now is at another time.
    pub(super) async fn forget_old(&self, places: &[Place]) {
        for (kind, id) in places {
            let chance = uuid::Uuid::new_v4().as_bytes()[0];
            if is_complete(*kind)
                || self.revisions_kept == 0
                || !chance.is_multiple_of(FORGETS_EVERY)
            {
                continue;
            }
            if let Err(error) = self.forget(*kind, id).await {
                tracing::warn!(%error, "older revisions of a resource cannot be forgotten");
                return;
            }
        }
    }

    async fn forget(&self, kind: Kind, id: &Id) -> Result<(), store::Error> {
        let mut entries = self.store.list(&folder(&self.prefix, kind, Some(id))).await?.entries;
        entries.sort_by_key(|stored| Remembered::read(stored).map_or(0, |one| one.revision));
        let old = entries.len().saturating_sub(self.revisions_kept);
        let forgotten: Vec<Write> = entries
            .into_iter()
            .take(old.min(FORGOTTEN_AT_ONCE))
            .map(|stored| Write {
                key: stored.key,
                value: None,
                expect: Expect::Anything,
                ttl: None,
            })
            .collect();
        if !forgotten.is_empty() {
            self.store.commit(forgotten).await?;
        }
        Ok(())
    }

    /// All that is remembered of a kind or of one resource, newest first.
    async fn remembered(
        &self,
        kind: Kind,
        id: Option<&Id>,
    ) -> Result<Vec<Remembered>, store::Error> {
        let entries = self.store.list(&folder(&self.prefix, kind, id)).await?.entries;
        let mut all: Vec<_> = entries.iter().filter_map(Remembered::read).collect();
        all.sort_by(|a, b| b.revision.cmp(&a.revision).then_with(|| a.entry.id.cmp(&b.entry.id)));
        Ok(all)
    }

    /// The resources of a kind as they stood at some moment, with the revisions that wrote them. A resource of which nothing
    /// older is remembered was not there.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) async fn state_at(
        &self,
        kind: Kind,
        at: At,
    ) -> Result<BTreeMap<Id, (Revision, Value)>, store::Error> {
        let all = self.remembered(kind, None).await?;
        Ok(state_at(&all, at)
            .into_iter()
            .filter_map(|(id, newest)| Some((id, (newest.revision, newest.entry.value.clone()?))))
            .collect())
    }

    /// `/apisix/admin/history/...`
    pub(super) async fn answer_history(
        &self,
        method: &Method,
        segments: &[&str],
        query: &Query,
        body: Option<Value>,
        (principal, skips): (&Principal, bool),
    ) -> Result<Answer, Answer> {
        let not_found = || Answer::error(StatusCode::NOT_FOUND, "not found");
        match (method, segments) {
            (&Method::GET, []) => return self.list_everything(query).await,
            (&Method::POST, ["rollback"]) => {
                for kind in Kind::ALL {
                    principal.writes(kind).map_err(Answer::forbidden)?;
                }
                let author = (principal.name.as_str(), skips);
                return self.roll_back(&Kind::ALL, None, body, author).await;
            }
            _ => {}
        }
        let (name, rest) = segments.split_first().ok_or_else(not_found)?;
        let kind = Kind::named(name).filter(|kind| self.remembers(*kind)).ok_or_else(|| {
            let text = match Kind::named(name) {
                None => format!("no history is kept of {name}: no kind of resource has this name"),
                Some(_) => format!(
                    "no history is kept of {name}: the setting control.history.revisions is 0"
                ),
            };
            Answer::error(StatusCode::NOT_FOUND, text)
        })?;
        let id = |text: &str| Id::parse(text).map_err(|_| Answer::key_not_found());
        match (method, rest) {
            (&Method::GET, []) => self.list_history(kind, None, query).await,
            (&Method::GET, [one]) => self.list_history(kind, Some(id(one)?), query).await,
            (&Method::GET, [one, at]) => {
                let at = At::parse(at).map_err(Answer::bad)?;
                let all = self.remembered(kind, Some(&id(one)?)).await?;
                let found = all.iter().find(|remembered| at.reaches(remembered));
                let found = found.ok_or_else(Answer::key_not_found)?;
                Ok(Answer::ok(found.shown(kind, true)))
            }
            (&Method::POST, ["rollback"] | [_, "rollback"]) => {
                principal.writes(kind).map_err(Answer::forbidden)?;
                let only = match rest {
                    [one, _] => Some(id(one)?),
                    _ => None,
                };
                self.roll_back(&[kind], only, body, (&principal.name, skips)).await
            }
            _ => Err(not_found()),
        }
    }

    /// The newest changes of all kinds.
    async fn list_everything(&self, query: &Query) -> Result<Answer, Answer> {
        let limit = limit(query)?;
        let entries = self.store.list(&format!("{}-history/", self.prefix)).await?.entries;
        let mut all: Vec<(Kind, Remembered)> = entries
            .iter()
            .filter_map(Remembered::read)
            .filter_map(|one| Some((Kind::named(&one.entry.kind)?, one)))
            .collect();
        all.sort_by_key(|(_, one)| std::cmp::Reverse(one.revision));
        let list: Vec<Value> =
            all.iter().take(limit).map(|(kind, one)| one.shown(*kind, false)).collect();
        Ok(Answer::ok(json!({"total": all.len(), "list": list})))
    }

    async fn list_history(
        &self,
        kind: Kind,
        id: Option<Id>,
        query: &Query,
    ) -> Result<Answer, Answer> {
        if let (Some(at), None) = (query.find("at"), &id) {
            let at = At::parse(at).map_err(Answer::bad)?;
            let state = self.state_at(kind, at).await?;
            let list: Vec<Value> = state
                .into_iter()
                .map(|(id, (revision, value))| {
                    json!({"id": id, "revision": revision, "value": shown(kind, value)})
                })
                .collect();
            return Ok(Answer::ok(json!({"total": list.len(), "list": list})));
        }
        let limit = limit(query)?;
        let all = self.remembered(kind, id.as_ref()).await?;
        if id.is_some() && all.is_empty() {
            return Err(Answer::key_not_found());
        }
        let whole = id.is_some();
        let list: Vec<Value> = all.iter().take(limit).map(|one| one.shown(kind, whole)).collect();
        Ok(Answer::ok(json!({"total": all.len(), "list": list})))
    }

    /// Puts one resource, or all of some kinds, back to what they were. What would change is judged as any write, and all of it
    /// together.
    async fn roll_back(
        &self,
        kinds: &[Kind],
        only: Option<Id>,
        body: Option<Value>,
        (author, skips): (&str, bool),
    ) -> Result<Answer, Answer> {
        let (at, dry_run) = asked(body)?;
        let _alone = self.turns.alone().await;
        let mut past = Vec::new();
        for kind in kinds.iter().filter(|kind| self.remembers(**kind)) {
            past.push((*kind, self.remembered(*kind, only.as_ref()).await?));
        }
        // A time is the newest revision that it has seen.
        let seen = past.iter().flat_map(|(_, all)| all).filter(|one| at.reaches(one));
        let Some(newest) = seen.map(|one| one.revision).max() else {
            let text = "nothing is remembered of that time: the history begins later";
            return Err(Answer::error(StatusCode::NOT_FOUND, text));
        };
        let to = match at {
            At::Revision(revision) => revision,
            At::Time(_) => newest,
        };
        let (state, _) = self.state().await?;
        let mut draft = Draft { state: &state, changes: BTreeMap::new() };
        let mut sources: HashMap<Place, Revision> = HashMap::new();
        let mut unknown = Vec::new();
        for (kind, all) in &past {
            let then = state_at(all, at);
            for (id, one) in &then {
                let place = (*kind, id.clone());
                let now = state.get(&place);
                let before = now.map(|stored| bare(*kind, id, &stored.value));
                let value = one.entry.value.as_ref();
                if before == value.map(|value| bare(*kind, id, value)) {
                    continue;
                }
                sources.insert(place.clone(), one.revision);
                let value = value.map(|value| restamped(*kind, value, self.clock.now()));
                draft.changes.insert(place, value);
            }
            // Of whatever is not remembered so far back: it stands as it stood, or has come since, or nobody knows.
            for ((_, id), stored) in state.iter().filter(|((found, _), _)| found == kind) {
                let is_meant = only.as_ref().is_none_or(|only| only == id);
                if !is_meant || then.contains_key(id) || stored.modified <= to {
                    continue;
                }
                match stored.created > to {
                    true => drop(draft.changes.insert((*kind, id.clone()), None)),
                    false => unknown.push((*kind, id.clone())),
                }
            }
            let oldest: BTreeMap<&str, &Remembered> =
                all.iter().map(|one| (one.entry.id.as_str(), one)).collect();
            for (id, one) in oldest {
                let Ok(id) = Id::parse(id) else { continue };
                let is_beginning = one.entry.value.is_some() && one.entry.replaces.is_none();
                let place = (*kind, id);
                if one.revision > to && !is_beginning && !state.contains_key(&place) {
                    unknown.push(place);
                }
            }
        }
        if !unknown.is_empty() {
            let names: Vec<String> =
                unknown.iter().take(20).map(|(kind, id)| format!("{kind}/{id}")).collect();
            let text = format!(
                "what was at revision {to} is not remembered of {}; nothing was changed",
                names.join(", ")
            );
            return Err(Answer::error(StatusCode::CONFLICT, text));
        }
        let told: Vec<Value> = draft
            .changes
            .iter()
            .map(|(place, value)| {
                let before = state.get(place).map(|stored| stored.modified);
                let action = match (before, value) {
                    (_, None) => "delete",
                    (None, Some(_)) => "create",
                    (Some(_), Some(_)) => "replace",
                };
                let from = sources.get(place).copied().unwrap_or(0);
                let mut told = json!({"id": place.1, "action": action, "from": before, "to": from});
                if kinds.len() > 1 {
                    told["kind"] = json!(place.0.name());
                }
                told
            })
            .collect();
        let flaws = self.judge_draft(&draft, References::Checked).await?;
        if let [first, ..] = &flaws[..] {
            let mut answer = super::sets::refusal_body(&flaws);
            answer["error_msg"] = json!(first.error);
            return Err(Answer::json(StatusCode::BAD_REQUEST, answer));
        }
        let mut answer = json!({"dry_run": dry_run, "changes": told});
        if dry_run || draft.changes.is_empty() {
            return Ok(Answer::ok(answer));
        }
        let writes = self.writes_of(&draft, |place| Author {
            name: author,
            rollback_to: Some(sources.get(place).copied().unwrap_or(0)),
            skips,
        });
        let (revision, commits) = self.commit_all(writes, true).await?;
        answer["revision"] = json!(revision);
        answer["commits"] = json!(commits);
        let mut answer = Answer::ok(answer);
        answer.revision = Some(revision);
        Ok(answer)
    }
}

fn limit(query: &Query) -> Result<usize, Answer> {
    match query.find("limit").map(str::parse::<usize>) {
        None => Ok(usize::MAX),
        Some(Ok(limit)) => Ok(limit),
        Some(Err(_)) => Err(Answer::bad("invalid argument limit: should be a number")),
    }
}

/// The newest entry of each resource that some moment has seen.
fn state_at(newest_first: &[Remembered], at: At) -> BTreeMap<Id, &Remembered> {
    let mut state = BTreeMap::new();
    for remembered in newest_first.iter().filter(|remembered| at.reaches(remembered)) {
        if let Ok(id) = Id::parse(&remembered.entry.id) {
            state.entry(id).or_insert(remembered);
        }
    }
    state
}

fn restamped(kind: Kind, value: &Value, now: i64) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut().filter(|_| kind != Kind::PluginMetadata) {
        fields.insert("update_time".into(), json!(now));
    }
    value
}

/// `{"to": REVISION or TIME, "dry_run": false}`.
fn asked(body: Option<Value>) -> Result<(At, bool), Answer> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        to: Value,
        #[serde(default)]
        dry_run: bool,
    }
    let body = body.ok_or_else(|| {
        Answer::bad("missing body: expected {\"to\": <revision or time>, \"dry_run\": false}")
    })?;
    let Asked { to, dry_run } = Asked::deserialize(&body)
        .map_err(|error| Answer::bad(format!("invalid request body: {error}")))?;
    let to = super::index::id_text(&to)
        .ok_or_else(|| Answer::bad("invalid argument to: should be a revision or a time"))?;
    Ok((At::parse(&to).map_err(Answer::bad)?, dry_run))
}

/// Follows what is written and remembers what came past the Admin API. Runs as long as its control plane.
pub(super) async fn follow(store: Arc<dyn Store>, prefix: String, kind: Kind, clock: Clock) {
    let mut watch = store.watch(&format!("{prefix}/{}/", kind.name()), 0);
    let observer = Observer { store, prefix, kind, clock };
    while let Some(event) = watch.next().await {
        // The resource is there in any case; its past is completed as soon as the store takes it.
        while let Err(error) = observer.observe(&event).await {
            tracing::warn!(%error, "the history of policies cannot be completed; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Remembers what is written past the Admin API of the kinds whose past is not complete: from now on, and only what is seen as it
/// happens. A write of ours comes with its entry in the same revision; one that comes alone is somebody else's.
pub(super) async fn follow_rest(store: Arc<dyn Store>, prefix: String, clock: Clock) {
    let mine = format!("{prefix}-history/");
    let from = loop {
        match store.list(&mine_of_nothing(&prefix)).await {
            Ok(listing) => break listing.revision,
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    };
    // Both what is written and what remembers it begin with the prefix.
    let mut watch = store.watch(&prefix, from.max(1));
    let mut waiting = Waiting::default();
    loop {
        let event = match waiting.is_empty() {
            true => watch.next().await.map(Some),
            false => match tokio::time::timeout(SETTLES_WITHIN, watch.next()).await {
                Ok(event) => event.map(Some),
                Err(_) => Some(None),
            },
        };
        let Some(event) = event else { return };
        let settled = match event {
            None => waiting.settle(Revision::MAX),
            Some(event) => {
                let settled = waiting.settle(event.revision());
                waiting.take(event, &prefix, &mine);
                settled
            }
        };
        for ((kind, id), revision, value) in settled {
            let observer = Observer {
                store: store.clone(),
                prefix: prefix.clone(),
                kind,
                clock: clock.clone(),
            };
            while let Err(error) = observer.note(&id, revision, value.as_ref()).await {
                tracing::warn!(%error, "the history cannot be completed; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// A folder in which nothing lies: its listing tells the store's revision and nothing else.
fn mine_of_nothing(prefix: &str) -> String {
    format!("{prefix}-history/nothing/")
}

/// Writes that were seen and whose entries may still come.
#[derive(Default)]
struct Waiting {
    revision: Revision,
    writes: Vec<(Place, Option<Value>)>,
    remembered: Vec<String>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// What nobody remembered, when everything of its revision has been seen: `now` is a later one.
    fn settle(&mut self, now: Revision) -> Vec<(Place, Revision, Option<Value>)> {
        if now <= self.revision {
            return Vec::new();
        }
        let remembered = std::mem::take(&mut self.remembered);
        let is_remembered = |(kind, id): &Place| {
            let folder = format!("{}/{id}/", kind.name());
            remembered.iter().any(|entry| entry.starts_with(&folder))
        };
        let writes = std::mem::take(&mut self.writes);
        let alone = writes.into_iter().filter(|(place, _)| !is_remembered(place));
        alone.map(|(place, value)| (place, self.revision, value)).collect()
    }

    fn take(&mut self, event: Event, prefix: &str, mine: &str) {
        let (key, revision, value) = match event {
            Event::Put(stored) => (stored.key, stored.modified, Some(stored.value)),
            Event::Delete { key, revision } => (key, revision, None),
            // Nobody told what happened in between.
            Event::Reset(listing) => {
                *self = Self { revision: listing.revision, ..Self::default() };
                return;
            }
        };
        self.revision = revision;
        if let Some(entry) = key.strip_prefix(mine) {
            if value.is_some() {
                self.remembered.push(entry.to_owned());
            }
            return;
        }
        let place = key.strip_prefix(prefix).and_then(Kind::split_key);
        if let Some(place) = place.filter(|(kind, _)| !is_complete(*kind)) {
            self.writes.push((place, value));
        }
    }
}

struct Observer {
    store: Arc<dyn Store>,
    prefix: String,
    kind: Kind,
    clock: Clock,
}

impl Observer {
    async fn observe(&self, event: &Event) -> Result<(), store::Error> {
        match event {
            Event::Put(stored) => {
                let Some(id) = self.id_of(&stored.key) else { return Ok(()) };
                self.complete(&id, stored.modified, Some(&stored.value)).await
            }
            Event::Delete { key, revision } => {
                let Some(id) = self.id_of(key) else { return Ok(()) };
                self.complete(&id, *revision, None).await
            }
            Event::Reset(listing) => self.compare(listing).await,
        }
    }

    fn id_of(&self, key: &str) -> Option<Id> {
        let (kind, id) = key.strip_prefix(self.prefix.as_str()).and_then(Kind::split_key)?;
        (kind == self.kind).then_some(id)
    }

    /// Nobody told what happened in between: what stands now must be the newest that is remembered.
    async fn compare(&self, listing: &Listing) -> Result<(), store::Error> {
        let entries = self.store.list(&folder(&self.prefix, self.kind, None)).await?.entries;
        let mut all: Vec<_> = entries.iter().filter_map(Remembered::read).collect();
        all.sort_by_key(|remembered| std::cmp::Reverse(remembered.revision));
        // As of the listing: the history was read after it, and may know more.
        let newest = state_at(&all, At::Revision(listing.revision));
        let mut there = BTreeMap::new();
        for stored in &listing.entries {
            if let Some(id) = self.id_of(&stored.key) {
                there.insert(id, stored);
            }
        }
        for (id, stored) in &there {
            let known = newest.get(id).is_some_and(|known| known.revision >= stored.modified);
            if !known {
                self.note(id, stored.modified, Some(&stored.value)).await?;
            }
        }
        for (id, known) in newest {
            if known.entry.value.is_some() && !there.contains_key(&id) {
                self.note(&id, listing.revision.max(known.revision + 1), None).await?;
            }
        }
        Ok(())
    }

    async fn complete(
        &self,
        id: &Id,
        revision: Revision,
        value: Option<&Value>,
    ) -> Result<(), store::Error> {
        let entries = self.store.list(&folder(&self.prefix, self.kind, Some(id))).await?.entries;
        let mut known = entries.iter().filter_map(Remembered::read);
        if known.any(|known| known.revision == revision) {
            return Ok(());
        }
        self.note(id, revision, value).await
    }

    async fn note(
        &self,
        id: &Id,
        revision: Revision,
        value: Option<&Value>,
    ) -> Result<(), store::Error> {
        let entry = Entry {
            kind: self.kind.name().to_owned(),
            id: id.to_string(),
            author: None,
            time: self.clock.now(),
            revision: Some(revision),
            rollback_to: None,
            replaces: None,
            value: value.cloned(),
        };
        // The same key for all control planes: one of them writes it.
        let folder = folder(&self.prefix, self.kind, Some(id));
        let key = format!("{folder}seen-{revision:020}");
        match self.store.put(&key, &json!(entry), Expect::Absent, None).await {
            Ok(_) | Err(store::Error::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;

    async fn remembered(store: &Memory) -> Vec<(Revision, Option<String>, bool)> {
        let entries = store.list("/apisix-history/").await.unwrap().entries;
        let mut all: Vec<_> = entries.iter().filter_map(Remembered::read).collect();
        all.sort_by_key(|one| one.revision);
        all.into_iter()
            .map(|one| (one.revision, one.entry.author, one.entry.value.is_some()))
            .collect()
    }

    #[tokio::test]
    async fn what_was_written_past_the_admin_api_is_remembered_once_by_all_control_planes() {
        let store = Arc::new(Memory::new());
        let key = "/apisix/identity_policies/p";
        let put = async |text: &str| {
            let value = json!({"action": "allow", "desc": text, "rules": [{}]});
            store.put(key, &value, Expect::Anything, None).await.unwrap().modified
        };
        let first = put("before anybody looked").await;
        let mut tasks = crate::rt::Tasks::new();
        for _ in 0..2 {
            let store: Arc<dyn Store> = store.clone();
            let kind = Kind::IdentityPolicies;
            tasks.add(follow(store, "/apisix".into(), kind, Clock::fixed(7)));
        }
        let until = async |count: usize| {
            for _ in 0..1000 {
                if remembered(&store).await.len() == count {
                    return remembered(&store).await;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("never {count}: {:?}", remembered(&store).await)
        };
        assert_eq!(until(1).await, [(first, None, true)]);
        let second = put("while they look").await;
        assert_eq!(until(2).await[1], (second, None, true));
        let third = store.delete(key, Expect::Anything).await.unwrap().unwrap();
        assert_eq!(until(3).await[2], (third, None, false));
        drop(tasks);

        // What went while nobody looked is seen at the next start.
        let fourth = put("gone before they look again").await;
        store.delete(key, Expect::Anything).await.unwrap();
        put("and back").await;
        let mut tasks = crate::rt::Tasks::new();
        let again: Arc<dyn Store> = store.clone();
        tasks.add(follow(again, "/apisix".into(), Kind::IdentityPolicies, Clock::fixed(8)));
        let all = until(4).await;
        assert!(all[3].0 > fourth && all[3].2);
    }

    #[test]
    fn a_moment_is_a_revision_or_a_time() {
        assert_eq!(At::parse("42"), Ok(At::Revision(42)));
        assert_eq!(At::parse("1970-01-01T00:01:00Z"), Ok(At::Time(60)));
        assert!(At::parse("yesterday").unwrap_err().contains("RFC 3339"));
    }

    #[test]
    fn the_state_at_a_moment_is_the_newest_that_it_has_seen() {
        let one = |revision, id: &str, time, value: Option<Value>| Remembered {
            revision,
            entry: Entry {
                kind: "identity_policies".into(),
                id: id.into(),
                author: None,
                time,
                revision: None,
                rollback_to: None,
                replaces: None,
                value,
            },
        };
        let all = [
            one(9, "a", 90, None),
            one(7, "b", 70, Some(json!(2))),
            one(5, "a", 50, Some(json!(1))),
        ];
        let ids = |at| -> Vec<(String, u64)> {
            let state = state_at(&all, at);
            state.into_iter().map(|(id, one)| (id.to_string(), one.revision)).collect()
        };
        assert!(ids(At::Revision(4)).is_empty());
        assert_eq!(ids(At::Revision(6)), [("a".into(), 5)]);
        assert_eq!(ids(At::Time(70)), [("a".into(), 5), ("b".into(), 7)]);
        assert_eq!(ids(At::Revision(9)), [("a".into(), 9), ("b".into(), 7)]);
    }
}
