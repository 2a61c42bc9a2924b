//! What a supposed request meets: its route, the plugins on it and its upstream, found by the data plane's own router.

use std::net::SocketAddr;
use std::sync::Arc;

use super::data_plane::APP_ROUTE;
use crate::identity::SpiffeId;
use crate::model::{Body, Change, Id, Kind, Listeners, Resource};
use crate::observe::Registry;
use crate::pipeline::{Client, Entry, Exchange, Head};
use crate::policy::RouteFacts;
use crate::policy::questions::{Supposed, TargetRoute, Walked};
use crate::snapshot::{Keeper, RouterSettings};

/// Walks a supposed request through the resources. Conditions of routes that look at what is only known at run time (a
/// consumer, a cookie that the question does not have) hold or fail as for a request without it.
pub fn walk(resources: &[Resource], workload: &SpiffeId, supposed: &Supposed) -> Walked {
    walk_with(crate::plugins::ALL, RouterSettings::default(), resources, workload, supposed)
}

/// The same with another table of plugins, or another kind of router.
pub(super) fn walk_with(
    table: &'static [Entry],
    router: RouterSettings,
    resources: &[Resource],
    workload: &SpiffeId,
    supposed: &Supposed,
) -> Walked {
    let walk = Walk { table, router, workload, supposed };
    match supposed.route.as_deref() {
        None => walk.through(resources, true),
        Some(NO_ROUTE) => walk.through(resources, false),
        Some(named) => walk.along(resources, named),
    }
}

/// `--route none`.
const NO_ROUTE: &str = "none";

/// The way of one supposed request.
struct Walk<'a> {
    table: &'static [Entry],
    router: RouterSettings,
    workload: &'a SpiffeId,
    supposed: &'a Supposed,
}

impl Walk<'_> {
    /// Along the route with this id, wherever the router would send the request.
    fn along(&self, resources: &[Resource], named: &str) -> Walked {
        let routed = self.through(resources, true);
        if routed.route.as_ref().is_some_and(|route| route.id.as_str() == named) {
            return Walked { note: None, ..routed };
        }
        let alone: Vec<Resource> = resources
            .iter()
            .filter(|one| one.kind != Kind::Routes || one.id.as_str() == named)
            .cloned()
            .map(for_everything)
            .collect();
        if !alone.iter().any(|one| one.kind == Kind::Routes) {
            let fault = Some(format!("there is no route {named:?}"));
            return Walked { fault, ..Walked::default() };
        }
        let found = self.through(&alone, false);
        if found.route.is_none() {
            let fault =
                Some(format!("route {named} serves another door, another workload, or nobody"));
            return Walked { fault, ..found };
        }
        let instead = match (&routed.route, routed.fault) {
            (Some(route), _) => format!("the router sends this request to route {}", route.id),
            (None, fault) => fault.unwrap_or_else(|| "no route matches: 404".into()),
        };
        Walked { note: Some(format!("supposed; as it is, {instead}")), ..found }
    }

    /// `has_app`: where no declared route matches, a sidecar has one towards its application.
    fn through(&self, resources: &[Resource], has_app: bool) -> Walked {
        let Self { table, router, workload, supposed } = *self;
        let me = (supposed.door != Listeners::Ingress).then(|| workload.clone());
        let mut keeper = Keeper::new(table, me.clone(), Registry::default())
            .with_router(router)
            .trusting_references();
        let changes = resources.iter().cloned().map(Change::Put).collect();
        let snapshot = keeper.apply(changes, 1).snapshot;
        let target = &supposed.target;
        let text = |text: &Option<String>, otherwise: &str| {
            text.clone().unwrap_or_else(|| otherwise.to_owned())
        };
        let mut path = text(&target.path, "/");
        if let Some(query) = target.query.as_ref().filter(|query| !query.is_empty()) {
            path = format!("{path}?{query}");
        }
        let address =
            target.source.map_or(SocketAddr::from(([127, 0, 0, 1], 0)), |ip| (ip, 0).into());
        let client = Client {
            connection: 0,
            door: supposed.door,
            address,
            local: SocketAddr::from(([127, 0, 0, 1], target.port.unwrap_or_default())),
            introduced: None,
            peer: None,
            me,
            tls: supposed.door == Listeners::Inbound,
            sni: None,
        };
        let mut exchange = Exchange::new(Arc::new(client));
        exchange.request =
            Head::request(&text(&target.method, "GET"), &path, &text(&target.host, ""));
        for (name, value) in target.headers.iter().flatten() {
            exchange.request.append(name, value.as_bytes());
        }
        let global = snapshot.global.plugins().iter().map(|name| (*name).to_owned());
        let mut walked = Walked { plugins: global.collect(), ..Walked::default() };
        match snapshot.route(supposed.door, &mut exchange) {
            Err(_) => walked.fault = Some("the path cannot be read: 400".into()),
            // A sidecar may have a route of its own, which its settings make and nobody else knows.
            Ok(None) if supposed.door == Listeners::Inbound && has_app => {
                let labels = Default::default();
                walked.route = Id::parse(APP_ROUTE).ok().map(|id| TargetRoute { id, labels });
                walked.upstream = Some("the application that the sidecar's settings name".into());
                walked.note = Some(format!(
                    "no declared route matches; with `sidecar.app` the sidecar has its own, else it answers 404 (--route {NO_ROUTE})"
                ));
            }
            Ok(None) => walked.fault = Some("no route matches: 404".into()),
            Ok(Some(route)) => {
                let info = &route.info;
                walked.route =
                    Some(TargetRoute { id: info.id.clone(), labels: info.labels.clone() });
                walked.plugins.extend(info.plugins.iter().map(|name| (*name).to_owned()));
                walked.fault = route.fault().map(|fault| fault.cause);
                match &route.cluster {
                    Some(cluster) => {
                        walked.upstream = Some(cluster.name.clone());
                        let nodes = cluster.endpoints();
                        walked.nodes =
                            nodes.iter().map(|node| node.address().to_string()).collect();
                    }
                    None if walked.fault.is_none() => {
                        walked.fault = Some(route.cluster_fault().cause);
                    }
                    None => {}
                }
                let facts = RouteFacts { id: &info.id, labels: &info.labels };
                // At a public door nobody's own policies are compiled but those about everybody and about routes.
                walked.governed =
                    supposed.door != Listeners::Ingress || snapshot.policy.governs(facts);
            }
        }
        walked
    }
}

/// A route that takes whatever comes through its door.
fn for_everything(mut resource: Resource) -> Resource {
    match &mut resource.body {
        Body::Route(route) => {
            (route.uri, route.uris) = (Some("/*".into()), None);
            (route.host, route.hosts) = (None, None);
            (route.remote_addr, route.remote_addrs) = (None, None);
            (route.methods, route.vars) = (None, None);
        }
        Body::Service(service) => service.hosts = None,
        _ => {}
    }
    resource
}
