//! APISIX's API-driven standalone mode: `GET`, `PUT` and `HEAD /apisix/admin/configs`.
//!
//! The configuration comes whole, by whoever holds it (ADC's `apisix-standalone` backend, the APISIX ingress controller), and rests in
//! memory: after a restart nothing is there, every `*_conf_version` is 0, and data planes keep what they have until the first PUT.
//!
//! A PUT bears its digest in `X-Digest`; one that is in force already answers 204. Each list has a version: a lower one is refused, the
//! same one leaves the list as it is, none counts one up. References are not checked, as in APISIX; everything else is, and compiled.

use std::collections::{BTreeMap, BTreeSet};

use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value, json};
use tokio::sync::{Mutex, watch};

use super::ControlPlane;
use super::access::Principal;
use super::answer::Answer;
use super::apply::located;
use super::configs::WholeCall;
use super::draft::{Draft, References, State};
use super::index::Place;
use super::listing::{hide_secrets, shown};
use super::sets::{self, At, Flaw, Item, bare, keep_hidden};
use crate::model::Kind;
use crate::store::{Expect, Write};

/// Where one resource is written in vain.
pub(super) const COMES_WHOLE: &str =
    "this control plane is standalone: its configuration comes whole, by PUT /apisix/admin/configs";

/// The digest's and the time's fields, in heads and (as APISIX has it) in the body.
const DIGEST: (&str, &str) = ("x-digest", "X-Digest");
const LAST_MODIFIED: (&str, &str) = ("x-last-modified", "X-Last-Modified");
/// Says that a PUT is meant to take away more than half.
const ALLOW_SHRINK: &str = "x-wardgate-allow-shrink";
/// Of fewer resources of a kind, any number may go at once: whoever syncs a handful of them must be able to empty it.
const GUARDED_FROM: usize = 10;

/// The lists that APISIX has.
const THEIRS: [&str; 12] = [
    "routes",
    "services",
    "upstreams",
    "consumers",
    "consumer_groups",
    "plugin_configs",
    "global_rules",
    "plugin_metadata",
    "ssls",
    "stream_routes",
    "protos",
    "secrets",
];

/// APISIX's API-driven standalone mode (`deployment.role: traditional` with `config_provider: yaml` there).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StandaloneSettings {
    /// Refuses a PUT that takes away more than half of a kind that has ten resources or more, unless it says
    /// `X-Wardgate-Allow-Shrink: true`.
    pub shrink_guard: bool,
}

impl Default for StandaloneSettings {
    fn default() -> Self {
        Self { shrink_guard: true }
    }
}

/// What was put last.
pub(super) struct Standalone {
    settings: StandaloneSettings,
    config: Mutex<Config>,
    /// Has anything been put?
    has_come: watch::Sender<bool>,
}

#[derive(Clone, Default)]
struct Config {
    lists: BTreeMap<String, List>,
    digest: Option<String>,
    last_modified: Option<i64>,
}

#[derive(Clone)]
struct List {
    version: Number,
    /// As they came.
    raw: Vec<Value>,
    items: Vec<Item>,
}

impl Default for List {
    fn default() -> Self {
        Self { version: 0.into(), raw: Vec::new(), items: Vec::new() }
    }
}

impl Standalone {
    pub(super) fn new(settings: StandaloneSettings) -> Self {
        Self { settings, config: Mutex::default(), has_come: watch::channel(false).0 }
    }

    /// `HEAD /apisix/admin/configs`.
    pub(super) async fn head(&self) -> Answer {
        let mut answer = Answer::empty(StatusCode::OK);
        answer.headers = self.config.lock().await.headers();
        answer
    }
}

impl Config {
    fn headers(&self) -> Vec<(&'static str, String)> {
        let digest = self.digest.clone().map(|digest| (DIGEST.0, digest));
        let time = self.last_modified.map(|time| (LAST_MODIFIED.0, time.to_string()));
        digest.into_iter().chain(time).collect()
    }

    fn shown(&self, principal: &Principal) -> Value {
        let mut told = Map::new();
        for name in lists() {
            let list = self.lists.get(name).cloned().unwrap_or_default();
            if !list.raw.is_empty() {
                let kind = Kind::named(name);
                let value = |value: Value| match kind {
                    Some(kind) => {
                        let mut value = shown(kind, value);
                        // Who may not write secrets is not shown them.
                        if principal.writes(kind).is_err() {
                            hide_secrets(kind, &mut value);
                        }
                        value
                    }
                    None => value,
                };
                told.insert(name.into(), list.raw.into_iter().map(value).collect());
            }
            told.insert(version_field(name), Value::Number(list.version));
        }
        if let (Some(digest), Some(time)) = (&self.digest, self.last_modified) {
            told.insert(DIGEST.1.into(), json!(digest));
            told.insert(LAST_MODIFIED.1.into(), json!(time));
        }
        Value::Object(told)
    }
}

/// APISIX's lists, and behind them ours.
fn lists() -> impl Iterator<Item = &'static str> {
    // Credentials stand in the list of consumers.
    let ours = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Credentials);
    let ours = ours.map(Kind::name).filter(|name| !THEIRS.contains(name));
    THEIRS.into_iter().chain(ours)
}

fn version_field(list: &str) -> String {
    format!("{list}_conf_version")
}

/// The first field that nobody knows.
fn stranger(top: &Map<String, Value>) -> Option<&String> {
    top.keys().find(|field| {
        let list = field.strip_suffix("_conf_version").unwrap_or(field);
        let is_list = lists().any(|known| known == list) || sets::is_missing_kind(list);
        !is_list && ![DIGEST.1, LAST_MODIFIED.1].contains(&field.as_str())
    })
}

fn at_place(item: &At, why: &str) -> Answer {
    Answer::bad(format!("invalid {} at index {}, err: {why}", item.list, item.index))
}

/// The items of a list; those that cannot be named, and what says twice what it is, are flaws.
fn items_of(list: &str, values: &[Value]) -> (Vec<Item>, Vec<Flaw>) {
    let (mut items, mut flaws) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for (index, value) in values.iter().enumerate() {
        let at = At { list: list.to_owned(), index };
        let flaw = |place, error: String| Flaw { at: Some(at.clone()), place, error };
        let Some(kind) = Kind::named(list) else {
            flaws.push(flaw(None, sets::unknown(list)));
            continue;
        };
        match sets::item(kind, value.clone(), at.clone()) {
            Err((id, invalid)) => flaws.push(flaw(id.map(|id| (kind, id)), invalid.0)),
            Ok(item) if !seen.insert(item.place.clone()) => {
                flaws.push(Flaw::of(&item, sets::duplicate(&item)));
            }
            Ok(item) => items.push(item),
        }
    }
    (items, flaws)
}

fn list_of<'a>(top: &'a Map<String, Value>, list: &str) -> Result<&'a [Value], String> {
    match top.get(list) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(values)) => Ok(values),
        // An empty table of Lua is written as an object.
        Some(Value::Object(fields)) if fields.is_empty() => Ok(&[]),
        Some(_) => Err(format!("invalid {list}: expected a list")),
    }
}

impl ControlPlane {
    /// Waits until there is something to tell data planes: in standalone mode that is the first PUT.
    pub async fn has_configuration(&self) {
        if let Some(standalone) = &self.standalone {
            let mut has_come = standalone.has_come.subscribe();
            let _ = has_come.wait_for(|has_come| *has_come).await;
        }
    }

    /// `GET /apisix/admin/configs`.
    pub(super) async fn standalone_get(
        &self,
        standalone: &Standalone,
        headers: &HeaderMap,
        principal: &Principal,
    ) -> Result<Answer, Answer> {
        let config = standalone.config.lock().await;
        let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
        let mut answer = match accept {
            Some(accept) if accept.starts_with("application/yaml") => {
                let text = serde_saphyr::to_string(&config.shown(principal)).map_err(|error| {
                    tracing::error!(%error, "the configuration cannot be written as YAML");
                    Answer::error(StatusCode::INTERNAL_SERVER_ERROR, "failed to encode yaml")
                })?;
                let mut answer = Answer::empty(StatusCode::OK);
                answer.other = Some(Box::new(("application/yaml", text)));
                answer
            }
            _ => Answer::ok(config.shown(principal)),
        };
        answer.headers = config.headers();
        Ok(answer)
    }

    /// `PUT /apisix/admin/configs`.
    pub(super) async fn standalone_put(
        &self,
        standalone: &Standalone,
        call: &WholeCall<'_>,
    ) -> Result<Answer, Answer> {
        let wait = super::api::body::wait(call.query)?;
        let header = |name| call.headers.get(name).and_then(|value| value.to_str().ok());
        let digest = header(DIGEST.0).ok_or_else(|| Answer::bad("missing digest header"))?;
        let invalid = |why: String| Answer::bad(format!("invalid request body: {why}"));
        if call.body.is_empty() {
            return Err(invalid("empty request body".into()));
        }
        let top = sets::parse(call.headers, &call.body).map_err(invalid)?;
        let mut config = standalone.config.lock().await;
        if config.digest.as_deref() == Some(digest) {
            return Ok(Answer::empty(StatusCode::NO_CONTENT));
        }
        if let Some(field) = stranger(&top) {
            return Err(invalid(format!("{field}: no kind of resource has this name")));
        }
        let _alone = self.turns.alone().await;
        let next = next_config(&config, &top)?;
        let items: Vec<Item> =
            next.lists.values().flat_map(|list| list.items.iter().cloned()).collect();
        let (state, _) = self.state().await?;
        let draft = Draft { state: &state, changes: differences(&state, &items) };
        let flaws = located(self.judge_draft(&draft, References::Free).await?, &items);
        if let Some(flaw) = flaws.first() {
            return Err(match &flaw.at {
                Some(at) => at_place(at, &flaw.error),
                None => Answer::bad(flaw.error.clone()),
            });
        }
        for ((kind, id), value) in &draft.changes {
            let before = state.get(&(*kind, id.clone())).map(|stored| &stored.value);
            let may = call.principal.changes(*kind, id, before, value.as_ref());
            may.map_err(Answer::forbidden)?;
        }
        let is_meant = header(ALLOW_SHRINK) == Some("true");
        if standalone.settings.shrink_guard
            && !is_meant
            && let Some(shrink) = draft.shrinks(GUARDED_FROM).first()
        {
            return Err(Answer::error(
                StatusCode::CONFLICT,
                format!(
                    "{} of {} {} would be deleted, which is more than half; nothing was changed. \
                     The header {ALLOW_SHRINK}: true says that it is meant",
                    shrink.deleted, shrink.of, shrink.kind
                ),
            ));
        }
        let write = |(place, value): (&Place, &Option<Value>)| Write {
            key: self.key(place.0, &place.1),
            value: value.clone(),
            expect: Expect::Anything,
            ttl: None,
        };
        let writes: Vec<Write> = draft.changes.iter().map(write).collect();
        let mut answer = Answer::empty(StatusCode::ACCEPTED);
        if !writes.is_empty() {
            let revision = self.store.commit(writes).await?.revision;
            self.has_written(revision);
            answer.revision = Some(revision);
        }
        *config = next;
        config.digest = Some(digest.to_owned());
        config.last_modified = Some(self.clock.now());
        answer.digest = Some(digest.to_owned());
        answer.headers = config.headers();
        standalone.has_come.send_replace(true);
        drop(config);
        Ok(self.await_applied(answer, wait).await)
    }
}

/// The configuration with the lists of a PUT in it.
fn next_config(config: &Config, top: &Map<String, Value>) -> Result<Config, Answer> {
    let mut next = Config::default();
    for list in lists() {
        let before = config.lists.get(list).cloned().unwrap_or_default();
        let field = version_field(list);
        let version = match top.get(&field) {
            None | Some(Value::Null) => {
                // A client of APISIX does not know our kinds: what it does not name stays.
                if !THEIRS.contains(&list) && !top.contains_key(list) {
                    next.lists.insert(list.to_owned(), before);
                    continue;
                }
                before.version.as_u64().unwrap_or(0).saturating_add(1).into()
            }
            Some(Value::Number(version)) => version.clone(),
            Some(_) => return Err(Answer::bad(format!("{field} must be a number"))),
        };
        if version.as_f64() < before.version.as_f64() {
            return Err(Answer::bad(format!(
                "{field} must be greater than or equal to ({})",
                before.version
            )));
        }
        if version == before.version {
            next.lists.insert(list.to_owned(), before);
            continue;
        }
        let raw = list_of(top, list).map_err(Answer::bad)?;
        let (items, flaws) = items_of(list, raw);
        if let Some(flaw) = flaws.first() {
            let is_duplicate = flaw.error.starts_with("found duplicate ");
            return Err(match &flaw.at {
                Some(at) if !is_duplicate => at_place(at, &flaw.error),
                _ => Answer::bad(flaw.error.clone()),
            });
        }
        next.lists.insert(list.to_owned(), List { version, raw: raw.to_vec(), items });
    }
    Ok(next)
}

/// What of the store differs from these items.
fn differences(state: &State, items: &[Item]) -> BTreeMap<Place, Option<Value>> {
    let mut changes = BTreeMap::new();
    let mut wanted = BTreeSet::new();
    for item in items {
        let (kind, id) = &item.place;
        wanted.insert(&item.place);
        let mut value = item.value.clone();
        let stored = state.get(&item.place);
        if let Some(stored) = stored {
            keep_hidden(&mut value, &stored.value, &shown(*kind, stored.value.clone()));
        }
        if stored.map(|stored| bare(*kind, id, &stored.value)).as_ref() != Some(&value) {
            changes.insert(item.place.clone(), Some(value));
        }
    }
    let gone = state.keys().filter(|place| !wanted.contains(place));
    changes.extend(gone.map(|place| (place.clone(), None)));
    changes
}
