//! Admin keys over the Admin API: made, rotated, revoked, listed; shown once, kept as hashes. `/apisix/admin/access/...`

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::ControlPlane;
use super::super::access::{Previous, Principal, Role, Scope, StoredKey, generate, hash};
use super::super::answer::Answer;
use crate::model::Revision;
use crate::store::{self, Expect};

/// How long the old key is good after a rotation when nobody says otherwise, and at the most, in seconds.
const USUAL_GRACE: u64 = 3600;
const MOST_GRACE: u64 = 30 * 24 * 3600;
/// The longest life of a key that has an end, in seconds.
const MOST_LIFE: u64 = 10 * 365 * 24 * 3600;

/// A key to make.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    role: Role,
    #[serde(default)]
    scope: Scope,
    /// Seconds from now.
    expires_in: Option<u64>,
}

/// A rotation.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rotation {
    /// Seconds for which the old key is good as well.
    grace: Option<u64>,
}

impl ControlPlane {
    /// `/apisix/admin/access/...`
    pub(super) async fn answer_access(
        &self,
        method: &Method,
        segments: &[&str],
        body: Option<Value>,
        principal: &Principal,
    ) -> Result<Answer, Answer> {
        if let (&Method::GET, ["whoami"]) = (method, segments) {
            let Principal { name, role, scope } = principal;
            return Ok(Answer::ok(json!({"name": name, "role": role, "scope": scope})));
        }
        if !principal.is_full_admin() {
            return Err(Answer::forbidden(
                "admin keys are the matter of role admin without a scope",
            ));
        }
        match (method, segments) {
            (&Method::GET, ["keys"]) => Ok(self.list_keys()),
            (&Method::POST, ["keys"]) => self.make_key(read(body)?, principal).await,
            (&Method::POST, ["keys", name, "rotate"]) => {
                let rotation = if body.is_some() { read(body)? } else { Rotation::default() };
                self.rotate_key(name, &rotation).await
            }
            (&Method::DELETE, ["keys", name]) => self.revoke_key(name).await,
            _ => Err(Answer::error(StatusCode::NOT_FOUND, "not found")),
        }
    }

    fn list_keys(&self) -> Answer {
        let of_settings = self.access.keys.holders().map(|Principal { name, role, scope }| {
            json!({"name": name, "role": role, "scope": scope, "kept": "settings"})
        });
        let stored = self.access.stored.all();
        let list: Vec<Value> = of_settings.chain(stored.iter().map(shown)).collect();
        Answer::ok(json!({"total": list.len(), "list": list}))
    }

    async fn make_key(&self, wanted: Wanted, author: &Principal) -> Result<Answer, Answer> {
        let Wanted { name, role, scope, expires_in } = wanted;
        let lawful = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@');
        if !(1..=64).contains(&name.len()) || !name.bytes().all(lawful) {
            return Err(Answer::bad("name: expected 1 to 64 of a-z A-Z 0-9 - _ . @"));
        }
        scope.check().map_err(Answer::bad)?;
        if expires_in.is_some_and(|seconds| !(1..=MOST_LIFE).contains(&seconds)) {
            return Err(Answer::bad(format!("expires_in: expected 1 to {MOST_LIFE} seconds")));
        }
        if self.access.keys.holders().any(|holder| holder.name == name) {
            return Err(conflict(&name));
        }
        let now = self.clock.now();
        let (key, sha256) = new_key()?;
        let stored = StoredKey {
            name,
            sha256,
            role,
            scope,
            author: author.name.clone(),
            created: now,
            rotated: None,
            expires: expires_in.map(|seconds| now.saturating_add_unsigned(seconds)),
            previous: None,
        };
        match self.write_key(&stored, Expect::Absent).await {
            Err(store::Error::Conflict) => Err(conflict(&stored.name)),
            Err(error) => Err(error.into()),
            Ok(revision) => {
                self.in_force(revision).await?;
                Ok(told(StatusCode::CREATED, &stored, &key, revision))
            }
        }
    }

    async fn rotate_key(&self, name: &str, rotation: &Rotation) -> Result<Answer, Answer> {
        let grace = rotation.grace.unwrap_or(USUAL_GRACE);
        if grace > MOST_GRACE {
            return Err(Answer::bad(format!("grace: expected 0 to {MOST_GRACE} seconds")));
        }
        let place = self.stored_place(name)?;
        let before = self.store.get(&place).await?.ok_or_else(Answer::key_not_found)?;
        let mut stored = StoredKey::deserialize(&before.value)
            .map_err(|error| Answer::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
        let now = self.clock.now();
        let (key, sha256) = new_key()?;
        let old = std::mem::replace(&mut stored.sha256, sha256);
        let until = now.saturating_add_unsigned(grace);
        stored.previous = (grace > 0).then_some(Previous { sha256: old, until });
        stored.rotated = Some(now);
        let revision = self.write_key(&stored, Expect::Revision(before.modified)).await?;
        self.in_force(revision).await?;
        Ok(told(StatusCode::OK, &stored, &key, revision))
    }

    async fn revoke_key(&self, name: &str) -> Result<Answer, Answer> {
        let place = self.stored_place(name)?;
        let removed = self.store.delete(&place, Expect::Anything).await?;
        let revision = removed.ok_or_else(Answer::key_not_found)?;
        self.in_force(revision).await?;
        let mut answer = Answer::ok(json!({"deleted": "1", "name": name}));
        answer.revision = Some(revision);
        Ok(answer)
    }

    fn stored_place(&self, name: &str) -> Result<String, Answer> {
        if self.access.keys.holders().any(|holder| holder.name == name) {
            let why = "it stands in the settings, or was generated at the first start (then remove \
                       admin-key.sha256 from the state folder, and start again to have a new one)";
            return Err(Answer::bad(format!("admin key {name:?} is not kept in the store: {why}")));
        }
        if name.is_empty() || name.contains('/') {
            return Err(Answer::key_not_found());
        }
        Ok(self.access.stored.place(name))
    }

    async fn write_key(&self, key: &StoredKey, expect: Expect) -> Result<Revision, store::Error> {
        let place = self.access.stored.place(&key.name);
        Ok(self.store.put(&place, &json!(key), expect, None).await?.modified)
    }

    /// What is answered is so: a revoked key opens nothing here any more.
    async fn in_force(&self, revision: Revision) -> Result<(), Answer> {
        match self.access.stored.reaches(revision).await {
            true => Ok(()),
            false => {
                let text =
                    "it is written, but not seen here yet: the store's changes do not arrive";
                Err(Answer::error(StatusCode::SERVICE_UNAVAILABLE, text))
            }
        }
    }
}

fn new_key() -> Result<(String, String), Answer> {
    let key = generate()
        .map_err(|error| Answer::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let hashed = hex::encode(hash(&key));
    Ok((key, hashed))
}

fn shown(key: &StoredKey) -> Value {
    let StoredKey { name, role, scope, author, created, rotated, expires, previous, .. } = key;
    let mut shown = json!({
        "name": name, "role": role, "scope": scope, "kept": "store", "author": author,
        "created": created,
    });
    for (field, time) in [
        ("rotated", rotated),
        ("expires", expires),
        ("previous_until", &previous.as_ref().map(|previous| previous.until)),
    ] {
        if let Some(time) = time {
            shown[field] = json!(time);
        }
    }
    shown
}

/// The one time that the key itself is said.
fn told(status: StatusCode, stored: &StoredKey, key: &str, revision: Revision) -> Answer {
    let mut body = shown(stored);
    body["key"] = json!(key);
    let mut answer = Answer::json(status, body);
    answer.revision = Some(revision);
    answer
}

fn conflict(name: &str) -> Answer {
    let text = format!("there is an admin key {name:?} already: rotate or revoke it");
    Answer::error(StatusCode::CONFLICT, text)
}

fn read<T: for<'de> Deserialize<'de>>(body: Option<Value>) -> Result<T, Answer> {
    let body = body.ok_or_else(|| Answer::bad("missing configurations"))?;
    serde_json::from_value(body).map_err(|error| Answer::bad(error.to_string()))
}
