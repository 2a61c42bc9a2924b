//! Questions about policies, answered by the rules that data planes enforce: `/apisix/admin/questions/...`.

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ControlPlane;
use super::answer::Answer;
use super::history::At;
use super::listing::Query;
use crate::identity::SpiffeId;
use crate::model::{Body, Id, IdentityPolicy, Kind, Listeners, Resource, Revision};
use crate::policy::questions::{CanI, Policies, Scene, Surroundings, Target, TargetRoute};

/// A request that is only supposed: what would it meet?
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Supposed {
    /// Which door it comes through.
    #[serde(default)]
    pub door: Listeners,
    /// The workload that is called; the ingress itself at its door.
    pub workload: String,
    /// Who calls; nobody: without an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The request. Its route is found, not given.
    #[serde(default)]
    pub target: Target,
}

/// What a supposed request meets before and after policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Walked {
    /// The route that it matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<TargetRoute>,
    /// Why the route answers nobody, or why no route can match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The plugins that run, global ones first, in their order.
    pub plugins: Vec<String>,
    /// Where it would go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The upstream's nodes, as far as they are known here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Does a policy select the route? At the ingress others are open.
    pub governed: bool,
}

/// The kinds that routing and policy look at.
const KINDS: [Kind; 8] = [
    Kind::Upstreams,
    Kind::Services,
    Kind::PluginMetadata,
    Kind::PluginConfigs,
    Kind::GlobalRules,
    Kind::Routes,
    Kind::IdentityPolicies,
    Kind::Workloads,
];

/// Asks a question of resources, wherever they come from.
///
/// `walk` finds the route of a supposed request, for the question `explain`.
///
/// # Errors
/// The question cannot be read; the sentence names the field. `None`: there is no such question.
pub fn ask(
    question: &str,
    body: &Value,
    scene: &Scene,
    walk: &dyn Fn(&SpiffeId, &Supposed) -> Walked,
) -> Option<Result<Value, String>> {
    if question != "explain" {
        return scene.answer(question, body);
    }
    let explained = || {
        let mut asked = Supposed::deserialize(body)
            .map_err(|error| format!("the question cannot be read: {error}"))?;
        let workload = scene.workload(&asked.workload)?;
        let walked = walk(&workload, &asked);
        asked.target.route.clone_from(&walked.route);
        asked.target.no_route = walked.route.is_none();
        let can_i = CanI {
            workload: workload.to_string(),
            identity: asked.identity.clone(),
            target: asked.target.clone(),
        };
        let question = serde_json::to_value(can_i).map_err(|error| error.to_string())?;
        let policy = scene.answer("can-i", &question).unwrap_or_else(|| Ok(Value::Null))?;
        let open = asked.door == Listeners::Ingress && !walked.governed;
        let allowed = open || policy["allowed"] == true;
        Ok(json!({
            "door": asked.door, "workload": workload.as_str(), "request": walked, "policy": policy,
            "open": open, "forwarded": allowed && walked.route.is_some() && walked.fault.is_none(),
        }))
    };
    Some(explained())
}

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
        let scene = scene(&resources, self.clock.now());
        let walk = |workload: &SpiffeId, supposed: &Supposed| {
            self.trial.walk(&resources, workload, supposed).unwrap_or_else(|| Walked {
                fault: Some("this control plane finds no routes".into()),
                ..Walked::default()
            })
        };
        match ask(question, &body, &scene, &walk) {
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
        let difference = old.difference(&new, routes.as_deref(), self.clock.now());
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
                Some(at) if super::history::is_kept(kind) => {
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

/// Policies and what is around them.
pub fn scene(resources: &[Resource], now: i64) -> Scene {
    let service_labels = |id: Option<&Id>| {
        resources.iter().find_map(|one| match &one.body {
            Body::Service(service) if Some(&one.id) == id => Some(service.labels.clone()),
            _ => None,
        })
    };
    let (mut policies, mut workloads, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    for resource in resources {
        match &resource.body {
            Body::IdentityPolicy(policy) => {
                policies.push((resource.id.clone(), resource.revision, (**policy).clone()));
            }
            Body::Workload(workload) => workloads.extend(workload.spiffe_id.parse::<SpiffeId>()),
            Body::Route(route) => {
                let mut labels = service_labels(route.service_id.as_ref()).unwrap_or_default();
                labels.extend(route.labels.clone());
                routes.push(TargetRoute { id: resource.id.clone(), labels });
            }
            _ => {}
        }
    }
    let around = Surroundings {
        // Where none is declared, workloads are known elsewhere.
        workloads: (!workloads.is_empty()).then_some(workloads),
        routes: Some(routes),
        modes: Vec::new(),
        now,
    };
    Scene { policies: Policies::new(policies), around }
}
