//! One resource, or a list of them: read, made, replaced, changed, removed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::super::access::Principal;
use super::super::answer::Answer;
use super::super::history::Author;
use super::super::listing::{self, Query};
use super::super::{ControlPlane, patch};
use super::body::{configuration, refuse_times, stamp};
use super::kinds::Target;
use crate::model::{Id, Kind, Revision};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::store::{self, Expect, Stored};

/// A write that lost against others is judged anew this many times.
const ATTEMPTS: usize = 5;

/// A request about resources.
pub(super) struct Call<'a> {
    pub(super) method: &'a Method,
    pub(super) query: &'a Query,
    pub(super) body: Option<Value>,
    /// After so many seconds what is written vanishes.
    pub(super) ttl: Option<u64>,
    pub(super) wait: Option<Duration>,
    /// Who calls.
    pub(super) author: Author<'a>,
    /// What it may do.
    pub(super) principal: &'a Principal,
}

impl Call<'_> {
    /// May the caller make `after` of `before`?
    fn may(
        &self,
        (kind, id): (Kind, &Id),
        before: Option<&Value>,
        after: Option<&Value>,
    ) -> Result<(), Answer> {
        self.principal.changes(kind, id, before, after).map_err(Answer::forbidden)
    }
}

impl ControlPlane {
    /// The whole key of a resource.
    pub(in crate::control) fn key(&self, kind: Kind, id: &Id) -> String {
        format!("{}{}", self.prefix, kind.key(id))
    }

    pub(super) async fn serve_resource(
        &self,
        target: Target<'_>,
        call: Call<'_>,
    ) -> Result<Answer, Answer> {
        let name = target.row.name;
        let not_supported = || Answer::not_supported(call.method.as_str(), name);
        match *call.method {
            Method::GET => self.read(&target, &call).await,
            Method::DELETE => {
                let answer = self.remove(&target, &call).await?;
                Ok(self.await_applied(answer, call.wait).await)
            }
            Method::POST if !target.row.post => Err(not_supported()),
            Method::PATCH if !target.row.patch => Err(not_supported()),
            Method::POST | Method::PUT | Method::PATCH => {
                // Before anything of the resource is looked at, so that a refusal tells nothing of it.
                call.principal.writes(target.row.kind).map_err(Answer::forbidden)?;
                let answer = if call.method == Method::POST {
                    self.create(&target, &call).await?
                } else if call.method == Method::PUT {
                    self.replace(&target, &call).await?
                } else {
                    self.change(&target, &call).await?
                };
                Ok(self.await_applied(answer, call.wait).await)
            }
            _ => Err(Answer::error(StatusCode::NOT_FOUND, "not found")),
        }
    }

    async fn read(&self, target: &Target<'_>, call: &Call<'_>) -> Result<Answer, Answer> {
        let (kind, principal) = (target.row.kind, call.principal);
        if !principal.reads(kind) {
            return Err(Answer::forbidden(format!("{kind} are out of this key's scope")));
        }
        // Who may not write secrets is not shown them.
        let shown = |mut stored: Stored| {
            if principal.writes(kind).is_err() {
                listing::hide_secrets(kind, &mut stored.value);
            }
            stored
        };
        if let Some(id) = target.id {
            // An id that cannot be is not there either.
            let Some(id) = target.full_id(id) else { return Err(Answer::key_not_found()) };
            let stored = self.store.get(&self.key(kind, &id)).await?;
            let stored = stored.filter(|stored| principal.sees(kind, &id, &stored.value));
            let stored = stored.ok_or_else(Answer::key_not_found)?;
            return Ok(Answer::ok(listing::node(kind, shown(stored))));
        }
        let prefix = format!("{}{}", self.prefix, target.listed());
        let mut entries = self.store.list(&prefix).await?.entries;
        entries.retain(|stored| {
            let key = stored.key.strip_prefix(self.prefix.as_str()).and_then(Kind::split_key);
            key.is_some_and(|(found, id)| found == kind && principal.sees(kind, &id, &stored.value))
        });
        if target.consumer().is_some() && entries.is_empty() {
            return Err(Answer::key_not_found());
        }
        let entries = entries.into_iter().map(shown).collect();
        Ok(listing::list(kind, entries, call.query))
    }

    async fn create(&self, target: &Target<'_>, call: &Call<'_>) -> Result<Answer, Answer> {
        let name = target.row.name;
        let mut fields = configuration(call.body.clone())?;
        if target.id.is_some() || fields.contains_key("id") {
            return Err(Answer::bad(format!("wrong {name} id, do not need it")));
        }
        refuse_times(&fields)?;
        let _turn = self.turns.of(target.row.kind, None).await;
        // Judged under a name that no resource bears yet: the real one exists only after a write.
        let nameless = Value::Object(fields.clone());
        call.may((target.row.kind, &Id::from(0)), None, Some(&nameless))?;
        self.judge(target.row.kind, &Id::from(0), &nameless).await?;
        let counter = format!("{}/gen_id", self.prefix);
        let number = self.store.put(&counter, &json!(1), Expect::Anything, None).await?.modified;
        let id = Id::from(number);
        fields.insert("id".into(), json!(id.as_str()));
        stamp(&mut fields, None, self.clock.now());
        let value = Value::Object(fields);
        let place = (target.row.kind, &id);
        let stored = self.store_put(place, &value, Expect::Absent, call.ttl, call.author).await?;
        Ok(self.written(target.row.kind, StatusCode::CREATED, None, stored))
    }

    async fn replace(&self, target: &Target<'_>, call: &Call<'_>) -> Result<Answer, Answer> {
        let kind = target.row.kind;
        let mut fields = configuration(call.body.clone())?;
        let id = target.id_of(&mut fields)?;
        refuse_times(&fields)?;
        let _turn = self.turns.of(kind, Some(&id)).await;
        let judged = Value::Object(fields.clone());
        call.may((kind, &id), None, Some(&judged))?;
        if kind == Kind::Consumers {
            self.judge_username(target, &judged)?;
        }
        self.judge(kind, &id, &judged).await?;
        if let Some(consumer) = target.consumer() {
            let parent = format!("{}/consumers/{consumer}", self.prefix);
            if self.store.get(&parent).await?.is_none() {
                return Err(Answer::error(StatusCode::NOT_FOUND, "consumer not found"));
            }
        }
        let key = self.key(kind, &id);
        // The last PUT wins, as in APISIX; but each replaces what it has seen.
        for _ in 0..ATTEMPTS {
            let (before, expect) = match self.store.get(&key).await {
                Ok(None) => (None, Expect::Absent),
                Ok(Some(before)) => {
                    let expect = Expect::Revision(before.modified);
                    (Some(before), expect)
                }
                // Whatever it is, the operator wants this in its place.
                Err(store::Error::NotJson { .. }) => (None, Expect::Anything),
                Err(error) => return Err(error.into()),
            };
            // What is no JSON bears no labels.
            let old = before.as_ref().map(|before| &before.value);
            let seen = if expect == Expect::Anything { Some(&Value::Null) } else { old };
            call.may((kind, &id), seen, None)?;
            let mut fields = fields.clone();
            if kind != Kind::PluginMetadata {
                stamp(&mut fields, before.as_ref(), self.clock.now());
            }
            let value = Value::Object(fields);
            match self.store_put((kind, &id), &value, expect, call.ttl, call.author).await {
                Err(store::Error::Conflict) => {}
                stored => {
                    let status =
                        if before.is_some() { StatusCode::OK } else { StatusCode::CREATED };
                    return Ok(self.written(kind, status, old, stored?));
                }
            }
        }
        Err(store::Error::Conflict.into())
    }

    fn judge_username(&self, target: &Target<'_>, value: &Value) -> Result<(), Answer> {
        self.shapes.check(Kind::Consumers, value)?;
        let username = value.get("username").and_then(Value::as_str);
        match target.id {
            Some(id) if username != Some(id) => Err(Answer::bad("wrong username")),
            _ => Ok(()),
        }
    }

    async fn change(&self, target: &Target<'_>, call: &Call<'_>) -> Result<Answer, Answer> {
        let (kind, name) = (target.row.kind, target.row.name);
        let Some(id) = target.id else {
            let text = match kind {
                Kind::Secrets => "no secret id".to_owned(),
                _ => format!("missing {name} id"),
            };
            return Err(Answer::bad(text));
        };
        let Some(change) = call.body.clone() else {
            return Err(Answer::bad("missing new configuration"));
        };
        if target.inside.is_empty() && !change.is_object() {
            return Err(Answer::bad("invalid configuration"));
        }
        let Some(id) = target.full_id(id) else { return Err(Answer::key_not_found()) };
        let _turn = self.turns.of(kind, Some(&id)).await;
        let key = self.key(kind, &id);
        let before = self.store.get(&key).await?.ok_or_else(Answer::key_not_found)?;
        let mut value = before.value.clone();
        let gives_time = target.inside.is_empty() && change.get("update_time").is_some();
        if target.inside.is_empty() {
            patch::merge(&mut value, change);
        } else {
            patch::replace(&mut value, target.inside, change).map_err(Answer::bad)?;
        }
        let mut fields = configuration(Some(value))?;
        target.id_of(&mut fields)?;
        let now = json!(self.clock.now());
        fields.entry("create_time").or_insert_with(|| now.clone());
        if !gives_time {
            fields.insert("update_time".into(), now);
        }
        let value = Value::Object(fields);
        call.may((kind, &id), Some(&before.value), Some(&value))?;
        self.judge(kind, &id, &value).await?;
        let expect = Expect::Revision(before.modified);
        let stored = self.store_put((kind, &id), &value, expect, call.ttl, call.author).await?;
        Ok(self.written(kind, StatusCode::OK, Some(&before.value), stored))
    }

    async fn remove(&self, target: &Target<'_>, call: &Call<'_>) -> Result<Answer, Answer> {
        let (kind, name) = (target.row.kind, target.row.name);
        let Some(id) = target.id else {
            return Err(Answer::bad(format!("missing {name} id")));
        };
        let Some(id) = target.full_id(id) else { return Err(Answer::key_not_found()) };
        // What it takes away others may be about to name.
        let _turn = self.turns.alone().await;
        call.principal.writes(kind).map_err(Answer::forbidden)?;
        let before = match self.store.get(&self.key(kind, &id)).await {
            Ok(Some(before)) => before.value,
            Ok(None) => return Err(Answer::key_not_found()),
            // What is no JSON bears no labels.
            Err(store::Error::NotJson { .. }) => Value::Null,
            Err(error) => return Err(error.into()),
        };
        call.may((kind, &id), Some(&before), None)?;
        if call.query.find("force") != Some("true") {
            self.judge_removal(kind, &id).await?;
        }
        let key = self.key(kind, &id);
        if kind == Kind::Consumers {
            // First the credentials: a half-done removal must not leave any to a later consumer of that name.
            let below = self.store.list(&format!("{key}/credentials/")).await?;
            for credential in below.entries {
                let place = credential.key.strip_prefix(self.prefix.as_str());
                if let Some((kind, id)) = place.and_then(Kind::split_key) {
                    self.store_delete((kind, &id), call.author).await?;
                }
            }
        }
        let removed = self.store_delete((kind, &id), call.author).await?;
        let revision = removed.ok_or_else(Answer::key_not_found)?;
        self.has_written(revision);
        let mut answer = Answer::ok(json!({"deleted": "1", "key": key}));
        answer.revision = Some(revision);
        answer.difference = Some(difference(&before, &Value::Null));
        Ok(answer)
    }

    /// The index must see this revision before it is asked again.
    pub(in crate::control) fn has_written(&self, revision: Revision) {
        self.written.fetch_max(revision, Ordering::AcqRel);
    }

    fn written(
        &self,
        kind: Kind,
        status: StatusCode,
        before: Option<&Value>,
        stored: Stored,
    ) -> Answer {
        self.has_written(stored.modified);
        let json = stored.value.to_string();
        let difference = difference(before.unwrap_or(&Value::Null), &stored.value);
        let body = json!({"key": stored.key, "value": listing::shown(kind, stored.value)});
        let mut answer = Answer::json(status, body);
        answer.revision = Some(stored.modified);
        answer.digest = Some(hex::encode(digest(&SHA256, json.as_bytes())));
        answer.difference = Some(difference);
        answer
    }
}

/// What a change was, for its record: SHA-256 of the JSON before, a line feed, and the JSON after, with `null` for nothing.
fn difference(before: &Value, after: &Value) -> String {
    hex::encode(digest(&SHA256, format!("{before}\n{after}").as_bytes()))
}
