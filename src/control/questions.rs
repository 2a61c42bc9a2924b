//! Questions about policies, answered by the rules that data planes enforce: `/apisix/admin/questions/...`.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ControlPlane;
use super::answer::Answer;
use super::history::At;
use super::listing::Query;
use crate::identity::SpiffeId;
use crate::model::{Body, Id, IdentityPolicy, Kind, Resource, Revision};
use crate::policy::questions::{Policies, Scene, Supposed, TargetRoute, Walked, ask, scene};

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
        let resources = self.declared(at).await?;
        let (trial, now) = (self.trial.clone(), self.clock.now());
        let question = (*question).to_owned();
        let answer = aside(move || {
            let scene = scene(&resources, now);
            let walk = |workload: &SpiffeId, supposed: &Supposed| {
                trial.walk(&resources, workload, supposed).unwrap_or_else(|| Walked {
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
        let resources = self.declared(at).await?;
        let Scene { policies, around } = scene(&resources, self.clock.now());
        Ok((policies, around.routes))
    }

    /// Everything that routing and policy look at; policies as of a moment, if one is given. What cannot be read is left out,
    /// but for policies, which then stand for what they may have kept out.
    async fn declared(&self, at: Option<At>) -> Result<Vec<Resource>, Answer> {
        let mut found = Vec::new();
        for kind in KINDS {
            let values: Vec<(Id, Revision, Value)> = match at {
                Some(at) if super::history::is_complete(kind) => {
                    let state = self.state_at(kind, at).await?;
                    state.into_iter().map(|(id, (revision, value))| (id, revision, value)).collect()
                }
                _ => {
                    let prefix = format!("{}/{}/", self.prefix, kind.name());
                    let entries = self.store.list(&prefix).await?.entries;
                    let named = entries.into_iter().filter_map(|stored| {
                        let key = stored.key.strip_prefix(self.prefix.as_str())?;
                        let (found, id) = Kind::split_key(key)?;
                        (found == kind).then_some((id, stored.modified, stored.value))
                    });
                    named.collect()
                }
            };
            for (id, revision, value) in values {
                let body = match Body::parse(kind, &value) {
                    Ok(body) => body,
                    Err(_) if kind == Kind::IdentityPolicies => {
                        // As data planes take it: it refuses everybody.
                        let refuses = json!({ "action": "deny", "rules": [] });
                        match Body::parse(kind, &refuses) {
                            Ok(body) => body,
                            Err(_) => continue,
                        }
                    }
                    Err(_) => continue,
                };
                found.push(Resource { kind, id, revision, body });
            }
        }
        Ok(found)
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
