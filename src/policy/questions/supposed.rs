//! `explain`: what a request would meet that is only supposed. Its route is found by whoever has a router.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::can_i::CanI;
use super::lint::Surroundings;
use super::policies::Policies;
use super::scene::Scene;
use super::target::{Target, TargetRoute};
use crate::identity::SpiffeId;
use crate::model::{Body, Id, Listeners, Resource};

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
    /// The route that it is supposed to take, by its id, wherever the router would send it; `none`: none, so that a sidecar
    /// without an application of its own answers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
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
    /// The router would do something else than what is supposed, or what is told rests on settings that are not known here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Does a policy select the route? At the ingress others are open.
    pub governed: bool,
}

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
            "open": open, "forwarded": allowed && walked.upstream.is_some() && walked.fault.is_none(),
        }))
    };
    Some(explained())
}

/// Policies and what is around them.
pub fn scene(resources: &[Resource], now: i64) -> Scene {
    let service_labels = |id: Option<&Id>| {
        resources.iter().find_map(|one| match &one.body {
            Body::Service(service) if Some(&one.id) == id => Some(service.labels.clone()),
            _ => None,
        })
    };
    let (mut policies, mut modes) = (Vec::new(), Vec::new());
    let (mut workloads, mut routes) = (Vec::new(), Vec::new());
    for resource in resources {
        match &resource.body {
            Body::IdentityPolicy(policy) => {
                policies.push((resource.id.clone(), resource.revision, (**policy).clone()));
            }
            Body::IdentityMode(mode) => modes.push((resource.id.clone(), (**mode).clone())),
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
        modes,
        now,
    };
    Scene { policies: Policies::new(policies), around }
}
