//! Questions about policies, answered by the rules that data planes enforce: `/apisix/admin/questions/...`.

use std::sync::Arc;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ControlPlane;
use super::answer::Answer;
use super::history::At;
use super::listing::Query;
use crate::identity::SpiffeId;
use crate::model::{Body, Id, IdentityPolicy, Kind, Resource, Revision};
use crate::policy::questions::{Policies, Scene, Supposed, TargetRoute, Walked, ask, scene};
use crate::store::{self, Store};

/// The kinds that routing and policy look at.
const KINDS: [Kind; 9] = [
    Kind::Upstreams,
    Kind::Services,
    Kind::PluginMetadata,
    Kind::PluginConfigs,
    Kind::GlobalRules,
    Kind::Routes,
    Kind::IdentityPolicies,
    Kind::IdentityModes,
    Kind::Workloads,
];

impl ControlPlane {
    /// `/apisix/admin/questions/<question>`
    pub(super) async fn answer_question(
        &self,
        method: &Method,
        segments: &[&str],
        query: &Query,
        body: Option<Value>,
    ) -> Result<Answer, Answer> {
        let not_found = || Answer::error(StatusCode::NOT_FOUND, "not found");
        let [question] = segments else { return Err(not_found()) };
        if !matches!(*method, Method::POST | Method::GET) {
            return Err(not_found());
        }
        let body = body.unwrap_or_else(|| json!({}));
        let at = query.find("at").map(At::parse).transpose().map_err(Answer::bad)?;
        if *question == "diff" {
            return self.answer_difference(body).await;
        }
        let declared = self.declared(at).await?;
        let (trial, now) = (self.trial.clone(), self.clock.now());
        let question = (*question).to_owned();
        let answer = aside(move || {
            let scene = declared.scene(now);
            let walk = |workload: &SpiffeId, supposed: &Supposed| {
                trial.walk(&declared.resources, workload, supposed).unwrap_or_else(|| Walked {
                    fault: Some("this control plane finds no routes".into()),
                    ..Walked::default()
                })
            };
            ask(&question, &body, &scene, &walk)
        });
        match answer.await? {
            None => Err(not_found()),
            Some(Ok(answer)) => Ok(Answer::ok(answer)),
            Some(Err(why)) => Err(Answer::bad(why)),
        }
    }

    /// Each side is given as policies, as a moment, or left out: as they stand.
    async fn answer_difference(&self, body: Value) -> Result<Answer, Answer> {
        let asked = Compared::deserialize(&body)
            .map_err(|error| Answer::bad(format!("the question cannot be read: {error}")))?;
        let (old, old_routes) = self.side(asked.old, asked.old_at).await?;
        let (new, new_routes) = self.side(asked.new, asked.new_at).await?;
        let routes = new_routes.or(old_routes);
        let now = self.clock.now();
        let difference = aside(move || old.difference(&new, routes.as_deref(), now)).await?;
        let answer = serde_json::to_value(difference)
            .map_err(|error| Answer::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(Answer::ok(answer))
    }

    async fn side(
        &self,
        given: Option<Vec<IdentityPolicy>>,
        at: Option<String>,
    ) -> Result<(Policies, Option<Vec<TargetRoute>>), Answer> {
        if let Some(list) = given {
            return Ok((given_policies(list).map_err(Answer::bad)?, None));
        }
        let at = at.as_deref().map(At::parse).transpose().map_err(Answer::bad)?;
        let Scene { policies, around } = self.declared(at).await?.scene(self.clock.now());
        Ok((policies, around.routes))
    }

    /// Everything that routing and policy look at; policies as of a moment, if one is given.
    async fn declared(&self, at: Option<At>) -> Result<Arc<Declared>, Answer> {
        let Some(at) = at else {
            return self.asked.declared(&*self.store, &self.prefix).await;
        };
        let mut entries = Vec::new();
        for kind in KINDS {
            if super::history::is_complete(kind) {
                let state = self.state_at(kind, at).await?;
                let named = state.into_iter();
                entries.extend(named.map(|(id, (revision, value))| (kind, id, revision, value)));
            } else {
                entries.extend(listed(&*self.store, &self.prefix, kind).await?);
            }
        }
        aside(move || Arc::new(Declared::of(entries))).await
    }
}

type Entry = (Kind, Id, Revision, Value);

async fn listed(store: &dyn Store, prefix: &str, kind: Kind) -> Result<Vec<Entry>, store::Error> {
    let entries = store.list(&format!("{prefix}/{}/", kind.name())).await?.entries;
    let named = entries.into_iter().filter_map(|stored| {
        let (found, id) = Kind::split_key(stored.key.strip_prefix(prefix)?)?;
        (found == kind).then_some((kind, id, stored.modified, stored.value))
    });
    Ok(named.collect())
}

/// What questions are asked about.
#[derive(Debug)]
struct Declared {
    resources: Vec<Resource>,
    /// Made at some time before.
    scene: Scene,
}

impl Declared {
    /// What cannot be read is left out, but for policies, which then stand for what they may have kept out.
    fn of(entries: Vec<Entry>) -> Self {
        let read = |(kind, id, revision, value): Entry| {
            let refuses = || {
                // As data planes take it: it refuses everybody.
                let text = json!({ "action": "deny", "rules": [] });
                Body::parse(kind, &text).ok().filter(|_| kind == Kind::IdentityPolicies)
            };
            let body = Body::parse(kind, &value).ok().or_else(refuses)?;
            Some(Resource { kind, id, revision, body })
        };
        let resources: Vec<Resource> = entries.into_iter().filter_map(read).collect();
        let scene = scene(&resources, 0);
        Self { resources, scene }
    }

    fn scene(&self, now: i64) -> Scene {
        let mut scene = self.scene.clone();
        scene.around.now = now;
        scene
    }
}

/// What was asked about last: while the store stands as it stood, the next question costs only itself.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<Option<Last>>);

#[derive(Clone, Debug)]
struct Last {
    /// The store's revision.
    revision: Revision,
    /// Each entry and its revision: others of the store may have changed.
    entries: Vec<(Kind, Id, Revision)>,
    declared: Arc<Declared>,
}

impl Asked {
    async fn declared(&self, store: &dyn Store, prefix: &str) -> Result<Arc<Declared>, Answer> {
        let last = self.0.lock().clone();
        // Where nothing is, a listing tells the revision alone.
        let revision = store.list(&format!("{prefix}/questions/")).await?.revision;
        if let Some(last) = last.as_ref().filter(|last| last.revision == revision) {
            return Ok(last.declared.clone());
        }
        let mut entries = Vec::new();
        for kind in KINDS {
            entries.extend(listed(store, prefix, kind).await?);
        }
        let found: Vec<_> =
            entries.iter().map(|(kind, id, revision, _)| (*kind, id.clone(), *revision)).collect();
        let declared = match last.filter(|last| last.entries == found) {
            Some(last) => last.declared,
            None => aside(move || Arc::new(Declared::of(entries))).await?,
        };
        let last = Last { revision, entries: found, declared: declared.clone() };
        *self.0.lock() = Some(last);
        Ok(declared)
    }
}

/// Works where nobody else waits: a question may take a while.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Answer> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Answer::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// The question `diff`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Compared {
    old: Option<Vec<IdentityPolicy>>,
    old_at: Option<String>,
    new: Option<Vec<IdentityPolicy>>,
    new_at: Option<String>,
}

fn given_policies(list: Vec<IdentityPolicy>) -> Result<Policies, String> {
    let named = list.into_iter().enumerate().map(|(at, policy)| {
        let id = policy.id.clone().ok_or_else(|| format!("policy {at}: id: missing"))?;
        Ok((id, 0, policy))
    });
    Ok(Policies::new(named.collect::<Result<Vec<_>, String>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Expect;
    use crate::store::memory::Memory;

    #[tokio::test]
    async fn policies_are_compiled_once_for_all_questions_while_they_stand() {
        let store = Memory::new();
        let put = async |key: &str, value: Value| {
            store.put(key, &value, Expect::Anything, None).await.unwrap();
        };
        let allow = |who: &str| {
            let rule = json!({"from": {"principals": [who]}});
            json!({"action": "allow", "rules": [rule]})
        };
        put("/apisix/identity_policies/p", allow("spiffe://shop/a")).await;
        let asked = Asked::default();
        let declared = async || asked.declared(&store, "/apisix").await.unwrap();
        let who = |declared: &Declared| {
            let me = "spiffe://shop/me".parse().unwrap();
            let answer = declared.scene(7).policies.who_can(&me, &Default::default());
            answer.grants.into_iter().flat_map(|grant| grant.who).collect::<Vec<_>>()
        };
        let first = declared().await;
        assert_eq!(who(&first), ["spiffe://shop/a"]);
        assert!(Arc::ptr_eq(&first, &declared().await), "the same revision");
        assert_eq!(first.scene(9).around.now, 9);
        // What questions do not look at changes nothing.
        put("/apisix/consumers/c", json!({"username": "c"})).await;
        assert!(Arc::ptr_eq(&first, &declared().await), "another revision of the same policies");
        put("/apisix/identity_policies/p", allow("spiffe://shop/b")).await;
        let second = declared().await;
        assert_eq!(who(&second), ["spiffe://shop/b"]);
        store.delete("/apisix/identity_policies/p", Expect::Anything).await.unwrap();
        assert_eq!(who(&*declared().await), Vec::<String>::new());
    }
}
