//! A whole set at once: what differs from what is stored is worked out here, judged together, and written in one revision.
//!
//! - `POST /apisix/admin/configs/apply` writes, `POST /apisix/admin/configs/diff` only tells (a viewer may ask it).
//! - `GET /apisix/admin/configs/dump` gives everything at one revision, in the shape that `apply` takes.
//!
//! Who applies may say who it is (`owner=NAME`): its resources bear the label [`OWNER`], and those kinds that have no labels are noted
//! beside the resources. `prune=true` removes what this owner wrote and no longer says. What another owner wrote is left alone
//! unless `take_over=true`. Where more than half of a kind would go, `allow_shrink=true` must say that it is meant.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::ControlPlane;
use super::access::Principal;
use super::answer::Answer;
use super::changes::differences;
use super::configs::WholeCall;
use super::draft::{Draft, References, Shrink, State};
use super::history::Author;
use super::index::Place;
use super::listing::{Query, hide_secrets, shown};
use super::sets::{self, At, Flaw, Item, bare, keep_hidden};
use crate::model::{Id, Kind, Revision};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::store::{self, Expect, Stored, Write};

/// The label that says who a resource belongs to.
pub(super) const OWNER: &str = "wardgate.io/owner";
/// So often a set is worked out anew when somebody else writes meanwhile.
const ATTEMPTS: usize = 5;

/// What a request asks for beside the set.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    owner: Option<String>,
    prune: bool,
    take_over: bool,
    allow_shrink: bool,
    split: bool,
}

impl Options {
    fn read(query: &Query) -> Result<Self, Answer> {
        let mut options = Self::default();
        for (name, value) in query.pairs() {
            let flag = match name {
                "prune" => &mut options.prune,
                "take_over" => &mut options.take_over,
                "allow_shrink" => &mut options.allow_shrink,
                "split" => &mut options.split,
                "owner" if is_owner(value) => {
                    options.owner = Some(value.to_owned());
                    continue;
                }
                "owner" => {
                    return Err(Answer::bad(
                        "invalid argument owner: should be 1 to 63 of a-z A-Z 0-9 - _ . /",
                    ));
                }
                "api_key" | "wait" | "timeout" => continue,
                _ => return Err(Answer::bad(format!("unknown argument {name}"))),
            };
            *flag = match value {
                "true" => true,
                "false" => false,
                _ => {
                    let text = format!("invalid argument {name}: should be true or false");
                    return Err(Answer::bad(text));
                }
            };
        }
        if options.prune && options.owner.is_none() {
            let text = "prune needs owner: only what that owner wrote is removed";
            return Err(Answer::bad(text));
        }
        Ok(options)
    }
}

fn is_owner(text: &str) -> bool {
    let lawful = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    (1..=63).contains(&text.len()) && text.bytes().all(lawful)
}

/// What a set would do.
struct Plan {
    changes: BTreeMap<Place, Option<Value>>,
    created: Vec<Place>,
    updated: Vec<(Place, Revision, Vec<Value>)>,
    deleted: Vec<(Place, Revision)>,
    unchanged: usize,
    /// What another owner wrote and would change.
    conflicts: Vec<(Place, String)>,
    /// Whose owner is noted beside them, and who that is from now on.
    noted: BTreeMap<Place, Option<String>>,
}

/// Who owns what has no labels: by place, with the revision of the note.
type Notes = BTreeMap<Place, (String, Revision)>;

impl ControlPlane {
    /// Works out, judges and, unless it only tells, writes.
    pub(super) async fn apply(
        &self,
        call: &WholeCall<'_>,
        dry_run: bool,
    ) -> Result<Answer, Answer> {
        let options = Options::read(call.query)?;
        let wait = super::api::body::wait(call.query)?;
        let invalid = |why: String| Answer::bad(format!("invalid request body: {why}"));
        let top = sets::parse(call.headers, &call.body).map_err(invalid)?;
        let items = sets::read(top).map_err(|flaws| sets::refusal(&flaws))?;
        let _alone = self.turns.alone().await;
        for _ in 0..ATTEMPTS {
            let (state, revision) = self.state().await?;
            let notes = self.notes().await?;
            let plan = self.plan(&items, &options, &state, &notes)?;
            let draft = Draft { state: &state, changes: plan.changes.clone() };
            // Also of a mere question: it tells how what is stored differs.
            for ((kind, id), value) in draft.changes.iter().filter(|_| !call.only_asks(dry_run)) {
                let before = state.get(&(*kind, id.clone())).map(|stored| &stored.value);
                let may = call.principal.changes(*kind, id, before, value.as_ref());
                may.map_err(Answer::forbidden)?;
            }
            for (kind, _) in plan.noted.keys().filter(|_| !dry_run) {
                call.principal.writes(*kind).map_err(Answer::forbidden)?;
            }
            let flaws = self.judge_draft(&draft, References::Checked).await?;
            if !flaws.is_empty() {
                return Err(sets::refusal(&located(flaws, &items)));
            }
            let shrinks = match options.allow_shrink {
                true => Vec::new(),
                false => draft.shrinks(0),
            };
            let mut told = plan.shown(&shrinks);
            told["dry_run"] = json!(dry_run);
            told["owner"] = json!(options.owner);
            if dry_run {
                told["revision"] = json!(revision);
                return Ok(Answer::ok(told));
            }
            if let Some(why) = plan.refusal(&shrinks) {
                told["error_msg"] = json!(why);
                return Err(Answer::json(StatusCode::CONFLICT, told));
            }
            if plan.changes.is_empty() && plan.noted.is_empty() {
                told["revision"] = json!(revision);
                told["commits"] = json!(0);
                return Ok(Answer::ok(told));
            }
            let author =
                Author { name: &call.principal.name, rollback_to: None, skips: call.skips };
            let mut writes = self.writes_of(&draft, |_| author);
            for (place, owner) in &plan.noted {
                let write = Write {
                    key: format!("{}{}", self.notes_folder(), place_key(place)),
                    value: owner.as_ref().map(|owner| json!({ "owner": owner })),
                    expect: Expect::Anything,
                    ttl: None,
                };
                match writes.iter_mut().find(|(other, _)| other == place) {
                    Some((_, group)) => group.push(write),
                    None => writes.push((place.clone(), vec![write])),
                }
            }
            let (revision, commits) = match self.commit_all(writes, options.split).await {
                // Somebody else wrote meanwhile: what differs is worked out anew.
                Err(super::draft::TooMuch::Other(store::Error::Conflict)) => continue,
                done => done?,
            };
            told["revision"] = json!(revision);
            told["commits"] = json!(commits);
            let mut answer = Answer::ok(told);
            answer.revision = Some(revision);
            answer.digest = Some(hex::encode(digest(&SHA256, &call.body)));
            return Ok(self.await_applied(answer, wait).await);
        }
        Err(store::Error::Conflict.into())
    }

    /// Judges a set as if nothing were stored. Of a part, what it refers to need not be there.
    ///
    /// # Errors
    /// All that is wrong, as `configs/validate` answers it.
    pub async fn judge_set(&self, set: Map<String, Value>, is_part: bool) -> Result<(), Value> {
        let items = sets::read(set).map_err(|flaws| sets::refusal_body(&flaws))?;
        let state = State::new();
        let changes = items.iter().map(|item| (item.place.clone(), Some(item.value.clone())));
        let draft = Draft { state: &state, changes: changes.collect() };
        let references = if is_part { References::Free } else { References::Checked };
        match self.judge_draft(&draft, references).await {
            Ok(flaws) if flaws.is_empty() => Ok(()),
            Ok(flaws) => Err(sets::refusal_body(&located(flaws, &items))),
            Err(_) => Err(json!({"error_msg": "the trial broke off", "errors": []})),
        }
    }

    fn notes_folder(&self) -> String {
        format!("{}-owners/", self.prefix)
    }

    async fn notes(&self) -> Result<Notes, store::Error> {
        let folder = self.notes_folder();
        let listing = self.store.list(&folder).await?;
        let note = |stored: Stored| {
            let place = Kind::split_key(&format!("/{}", stored.key.strip_prefix(&folder)?))?;
            let owner = stored.value.get("owner")?.as_str()?.to_owned();
            Some((place, (owner, stored.modified)))
        };
        Ok(listing.entries.into_iter().filter_map(note).collect())
    }

    /// Can a resource of this kind bear labels?
    fn bears_labels(&self, kind: Kind) -> bool {
        let schema = self.shapes.schema(kind);
        schema.is_some_and(|schema| schema.pointer("/properties/labels").is_some())
    }

    /// Who owns what is stored there.
    fn owner_of(&self, place: &Place, stored: &Stored, notes: &Notes) -> Option<String> {
        if self.bears_labels(place.0) {
            return label(&stored.value).map(str::to_owned);
        }
        let (owner, noted) = notes.get(place)?;
        // A note about one that was removed since says nothing of the one that came in its place.
        (stored.created <= *noted).then(|| owner.clone())
    }

    fn plan(
        &self,
        items: &[Item],
        options: &Options,
        state: &State,
        notes: &Notes,
    ) -> Result<Plan, Answer> {
        let mut plan = Plan {
            changes: BTreeMap::new(),
            created: Vec::new(),
            updated: Vec::new(),
            deleted: Vec::new(),
            unchanged: 0,
            conflicts: Vec::new(),
            noted: BTreeMap::new(),
        };
        let mut flaws = Vec::new();
        for item in items {
            let (kind, id) = &item.place;
            let mut value = item.value.clone();
            let stored = state.get(&item.place);
            let labelled = self.bears_labels(*kind);
            if let Some(owner) = &options.owner
                && labelled
            {
                match label(&value) {
                    Some(other) if other != owner => {
                        let why = format!(
                            "the label {OWNER} says {other:?}, and the set is applied as {owner:?}"
                        );
                        flaws.push(Flaw::of(item, why));
                        continue;
                    }
                    _ => put_label(&mut value, owner),
                }
            }
            let said = match labelled {
                true => label(&value).map(str::to_owned),
                false => options.owner.clone(),
            };
            let Some(stored) = stored else {
                if !labelled && said.is_some() {
                    plan.noted.insert(item.place.clone(), said);
                }
                plan.created.push(item.place.clone());
                let value = stamped(*kind, value, None, self.clock.now());
                plan.changes.insert(item.place.clone(), Some(value));
                continue;
            };
            let stored_shown = shown(*kind, stored.value.clone());
            keep_hidden(&mut value, &stored.value, &stored_shown);
            let owner = self.owner_of(&item.place, stored, notes);
            let before = bare(*kind, id, &stored.value);
            let is_same = before == value;
            let is_ours = owner == said;
            if is_same && (is_ours || (!labelled && said.is_none())) {
                plan.unchanged += 1;
                continue;
            }
            if let Some(other) = owner.filter(|_| !is_ours && !options.take_over) {
                plan.conflicts.push((item.place.clone(), other));
                continue;
            }
            if !labelled && said.is_some() && !is_ours {
                plan.noted.insert(item.place.clone(), said);
            }
            if is_same {
                // Only its owner is another one, and that is noted beside it.
                plan.updated.push((item.place.clone(), stored.modified, Vec::new()));
                continue;
            }
            let (before_shown, after_shown) =
                (shown(*kind, before.clone()), shown(*kind, value.clone()));
            let told = differences((&before, &before_shown), (&value, &after_shown));
            plan.updated.push((item.place.clone(), stored.modified, told));
            let value = stamped(*kind, value, Some(stored), self.clock.now());
            plan.changes.insert(item.place.clone(), Some(value));
        }
        if !flaws.is_empty() {
            return Err(sets::refusal(&flaws));
        }
        if options.prune {
            self.prune(items, options, state, notes, &mut plan);
        }
        Ok(plan)
    }

    /// What the owner wrote and no longer says goes; with a consumer its credentials.
    fn prune(
        &self,
        items: &[Item],
        options: &Options,
        state: &State,
        notes: &Notes,
        plan: &mut Plan,
    ) {
        let said: BTreeSet<&Place> = items.iter().map(|item| &item.place).collect();
        let mut gone: BTreeSet<Place> = BTreeSet::new();
        for (place, stored) in state.iter().filter(|(place, _)| !said.contains(place)) {
            let owner = self.owner_of(place, stored, notes);
            let consumer = match place.0 {
                Kind::Credentials => place.1.as_str().split('/').next(),
                _ => None,
            };
            let with_consumer = consumer.and_then(|name| Id::parse(name).ok()).is_some_and(|id| {
                let consumer = (Kind::Consumers, id);
                let stored = state.get(&consumer).filter(|_| !said.contains(&consumer));
                let owner = stored.and_then(|stored| self.owner_of(&consumer, stored, notes));
                owner.is_some() && owner == options.owner
            });
            if owner == options.owner {
                gone.insert(place.clone());
            } else if with_consumer {
                match owner.filter(|_| !options.take_over) {
                    Some(other) => plan.conflicts.push((place.clone(), other)),
                    None => drop(gone.insert(place.clone())),
                }
            }
        }
        for place in gone {
            if let Some(stored) = state.get(&place) {
                plan.deleted.push((place.clone(), stored.modified));
            }
            if !self.bears_labels(place.0) {
                plan.noted.insert(place.clone(), None);
            }
            plan.changes.insert(place, None);
        }
    }

    /// `GET /apisix/admin/configs/dump`: all there is, at one revision, without times and private keys.
    pub(super) async fn dump(&self, principal: &Principal) -> Result<Answer, Answer> {
        let (state, revision) = self.state().await?;
        let mut answer = Answer::ok(Value::Object(dumped(&state, principal)));
        answer.headers.push(("x-wardgate-revision", revision.to_string()));
        Ok(answer)
    }
}

/// The lists of a state, credentials behind their consumers as APISIX has them.
pub(super) fn dumped(state: &State, principal: &Principal) -> Map<String, Value> {
    let mut lists: Map<String, Value> = Map::new();
    for kind in Kind::ALL {
        for (place, stored) in state.iter().filter(|(place, _)| place.0 == kind) {
            let mut value = shown(kind, bare(kind, &place.1, &stored.value));
            // Who may not write secrets is not shown them.
            if principal.writes(kind).is_err() {
                hide_secrets(kind, &mut value);
            }
            let list = match kind {
                Kind::Credentials => {
                    value["id"] = json!(place.1);
                    Kind::Consumers.name()
                }
                _ => kind.name(),
            };
            let list = lists.entry(list).or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(value);
            }
        }
    }
    lists
}

/// The same flaws with the places of their items.
pub(super) fn located(flaws: Vec<Flaw>, items: &[Item]) -> Vec<Flaw> {
    let by_place: BTreeMap<(Kind, &str), &At> =
        items.iter().map(|item| ((item.place.0, item.place.1.as_str()), &item.at)).collect();
    let mut flaws: Vec<Flaw> = flaws
        .into_iter()
        .map(|flaw| {
            let place = flaw.place.as_ref().map(|(kind, id)| (*kind, id.as_str()));
            let at = place.and_then(|place| by_place.get(&place)).map(|at| (*at).clone());
            Flaw { at: flaw.at.or(at), ..flaw }
        })
        .collect();
    flaws.sort_by(|a, b| (a.at.is_none(), &a.at).cmp(&(b.at.is_none(), &b.at)));
    flaws
}

fn place_key(place: &Place) -> String {
    place.0.key(&place.1).trim_start_matches('/').to_owned()
}

fn label(value: &Value) -> Option<&str> {
    value.get("labels")?.get(OWNER)?.as_str()
}

fn put_label(value: &mut Value, owner: &str) {
    let Some(fields) = value.as_object_mut() else { return };
    let labels = fields.entry("labels").or_insert_with(|| json!({}));
    // What is no object the schema refuses.
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(OWNER.into(), json!(owner));
    }
}

/// A write keeps the time of creation and renews the other.
fn stamped(kind: Kind, mut value: Value, before: Option<&Stored>, now: i64) -> Value {
    if kind != Kind::PluginMetadata
        && let Some(fields) = value.as_object_mut()
    {
        let created = before.and_then(|before| before.value.get("create_time")).cloned();
        fields.insert("create_time".into(), created.unwrap_or_else(|| json!(now)));
        fields.insert("update_time".into(), json!(now));
    }
    value
}

impl Plan {
    fn shown(&self, shrinks: &[Shrink]) -> Value {
        let name = |place: &Place| json!({"kind": place.0.name(), "id": place.1});
        let from = |place: &Place, revision: Revision| json!({"kind": place.0.name(), "id": place.1, "from": revision});
        let updated = self.updated.iter().map(|(place, revision, changes)| {
            let mut told = from(place, *revision);
            told["changes"] = json!(changes);
            told
        });
        let deleted = self.deleted.iter().map(|(place, revision)| from(place, *revision));
        let conflicts = self.conflicts.iter().map(|(place, owner)| {
            let mut told = name(place);
            told["owner"] = json!(owner);
            told
        });
        json!({
            "created": self.created.iter().map(name).collect::<Vec<_>>(),
            "updated": updated.collect::<Vec<_>>(),
            "deleted": deleted.collect::<Vec<_>>(),
            "unchanged": self.unchanged,
            "conflicts": conflicts.collect::<Vec<_>>(),
            "shrinks": shrinks.iter().map(|shrink| shrink.shown()).collect::<Vec<_>>(),
        })
    }

    fn refusal(&self, shrinks: &[Shrink]) -> Option<String> {
        if let [(place, owner), ..] = &self.conflicts[..] {
            let (kind, id) = place;
            let others = match self.conflicts.len() {
                1 => String::new(),
                count => format!(" and {} more belong to others", count - 1),
            };
            return Some(format!(
                "{kind}/{id} belongs to {owner}{others}; nothing was written. take_over=true takes them over"
            ));
        }
        let Shrink { kind, of, deleted } = shrinks.first()?;
        Some(format!(
            "{deleted} of {of} {kind} would be deleted, which is more than half; nothing was written. \
             allow_shrink=true says that it is meant"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_strictly() {
        let read = |text: &str| Options::read(&Query::parse(text)).map_err(|_| ());
        let owner = Some("team-a".to_owned());
        assert_eq!(
            read("owner=team-a&prune=true&api_key=x").unwrap(),
            Options { owner, prune: true, ..Options::default() }
        );
        for wrong in ["prune=true", "prune=yes&owner=a", "owner=", "owner=a%20b", "purne=true"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
