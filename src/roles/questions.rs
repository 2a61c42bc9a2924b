//! What a supposed request meets: its route, the plugins on it and its upstream, found by the data plane's own router.

use std::net::SocketAddr;
use std::sync::Arc;

use super::data_plane::APP_ROUTE;
use crate::identity::SpiffeId;
use crate::model::{Change, Id, Listeners, Resource};
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
    let me = (supposed.door != Listeners::Ingress).then(|| workload.clone());
    let mut keeper = Keeper::new(table, me.clone(), Registry::default()).with_router(router);
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
    let address = target.source.map_or(SocketAddr::from(([127, 0, 0, 1], 0)), |ip| (ip, 0).into());
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
    exchange.request = Head::request(&text(&target.method, "GET"), &path, &text(&target.host, ""));
    for (name, value) in target.headers.iter().flatten() {
        exchange.request.append(name, value.as_bytes());
    }
    let global = snapshot.global.plugins().iter().map(|name| (*name).to_owned());
    let mut walked = Walked { plugins: global.collect(), ..Walked::default() };
    match snapshot.route(supposed.door, &mut exchange) {
        Err(_) => walked.fault = Some("the path cannot be read: 400".into()),
        // A sidecar may have a route of its own, which its settings make and nobody else knows.
        Ok(None) if supposed.door == Listeners::Inbound => {
            let labels = Default::default();
            walked.route = Id::parse(APP_ROUTE).ok().map(|id| TargetRoute { id, labels });
            walked.upstream = Some("the application that the sidecar's settings name".into());
        }
        Ok(None) => walked.fault = Some("no route matches: 404".into()),
        Ok(Some(route)) => {
            let info = &route.info;
            walked.route = Some(TargetRoute { id: info.id.clone(), labels: info.labels.clone() });
            walked.plugins.extend(info.plugins.iter().map(|name| (*name).to_owned()));
            walked.fault = route.fault().map(|fault| fault.cause);
            match &route.cluster {
                Some(cluster) => {
                    walked.upstream = Some(cluster.name.clone());
                    let nodes = cluster.endpoints();
                    walked.nodes = nodes.iter().map(|node| node.address().to_string()).collect();
                }
                None if walked.fault.is_none() => {
                    walked.fault = Some(route.cluster_fault().cause);
                }
                None => {}
            }
            let facts = RouteFacts { id: &info.id, labels: &info.labels };
            // At a public door nobody's own policies are compiled but those about everybody and about routes.
            walked.governed = supposed.door != Listeners::Ingress || snapshot.policy.governs(facts);
        }
    }
    walked
}
