//! Whatever changed in whatever order: what a keeper then has is what a new one makes of the same declarations.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::{Listeners, Resource};
use crate::pipeline::tests::exchange;
use crate::snapshot::RouterKind;

/// What can be declared under a key: `None` takes it away.
fn change() -> impl Strategy<Value = (String, Option<Value>)> {
    let some = |value: Value| Just(Some(value)).boxed();
    // Told apart by their time limits.
    let upstream = |number: u8| {
        let timeout = json!({"connect": number, "send": number, "read": number});
        json!({"nodes": {"127.0.0.1:80": 1}, "timeout": timeout})
    };
    let with = |tag: &str| json!({"response-rewrite": {"headers": {"set": {"x-tag": tag}}}});
    let other = |tag: &str| json!({"request-id": {"header_name": tag}});
    let upstreams = prop_oneof![some(upstream(1)), some(upstream(2)), Just(None)];
    let services = prop_oneof![
        some(json!({"upstream_id": "1", "plugins": with("service")})),
        some(json!({"upstream": upstream(3), "hosts": ["a.b"], "enable_websocket": true})),
        some(json!({"hosts": ["*.b", "c"], "plugins": other("X-Service")})),
        Just(None),
    ];
    let configs = prop_oneof![
        some(json!({"plugins": with("config")})),
        some(json!({"plugins": {"request-id": {"_meta": {"disable": true}}}})),
        Just(None),
    ];
    let place = (
        prop::sample::select(vec!["/x", "/x/*", "/x/y", "/*", "/x/*/z"]),
        prop::option::of(prop::sample::select(vec!["a.b", "*.b", "c"])),
        -1i64..2,
    );
    let refers = (
        prop::option::weighted(0.6, 1u8..3),
        prop::option::weighted(0.4, 1u8..3),
        prop::option::weighted(0.5, 1u8..3),
        any::<bool>(),
        any::<bool>(),
        prop::option::weighted(0.3, 1u8..3),
    );
    let routes = (place, refers, 0u8..10).prop_map(move |(place, refers, status)| {
        let (uri, host, priority) = place;
        let (service, config, upstream_id, own_plugins, own_upstream, timeout) = refers;
        let mut route = json!({"uri": uri, "priority": priority});
        let mut set = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                route[field] = value;
            }
        };
        set("host", host.map(Value::from));
        set("service_id", service.map(Value::from));
        set("plugin_config_id", config.map(Value::from));
        set("upstream_id", upstream_id.map(Value::from));
        set("plugins", own_plugins.then(|| with("route")));
        set("upstream", own_upstream.then(|| upstream(9)));
        set("timeout", timeout.map(|s| json!({"connect": s, "send": s, "read": s})));
        set("status", (status == 0).then(|| json!(0)));
        Some(route)
    });
    let routes = prop_oneof![4 => routes.boxed(), 1 => Just(None).boxed()];
    prop_oneof![
        1 => (1u8..3, upstreams).prop_map(|(id, body)| (format!("/upstreams/{id}"), body)),
        1 => (1u8..3, services).prop_map(|(id, body)| (format!("/services/{id}"), body)),
        1 => (1u8..3, configs).prop_map(|(id, body)| (format!("/plugin_configs/{id}"), body)),
        4 => (1u8..7, routes).prop_map(|(id, body)| (format!("/routes/{id}"), body)),
    ]
}

fn keeper(kind: RouterKind) -> Keeper {
    let settings = RouterSettings { http: kind, ..RouterSettings::default() };
    Keeper::new(crate::plugins::ALL, None, Registry::new()).with_router(settings)
}

fn as_change(key: &str, body: Option<&Value>) -> Change {
    let (kind, id) = Kind::split_key(key).unwrap();
    match body {
        None => Change::Delete(kind, id),
        Some(body) => {
            let body = Body::parse(kind, body).unwrap();
            Change::Put(Resource { kind, id, revision: 1, body })
        }
    }
}

/// What a request meets.
fn outcome(keeper: &Keeper, host: &str, path: &str) -> Option<String> {
    let mut exchange = exchange("GET", path, host);
    let route = keeper.current().route(Listeners::Ingress, &mut exchange).unwrap()?;
    let broken = route.fault().map(|fault| (fault.status, fault.cause));
    let cluster = route.cluster.as_ref();
    let cluster = cluster.map(|cluster| (cluster.name.clone(), cluster.read_within));
    let missing = route.cluster.is_none().then(|| route.cluster_fault().status);
    let (plugins, info) = (route.chain.plugins(), &route.info);
    Some(format!(
        "{broken:?} {cluster:?} {missing:?} {plugins:?} {info:?} {} {:?}",
        route.websocket, exchange.matched_host
    ))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn after_any_changes_a_keeper_is_what_a_new_one_makes_of_the_same_declarations(
        kind in prop_oneof![Just(RouterKind::HostUri), Just(RouterKind::Uri)],
        batches in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..12),
    ) {
        let mut grown = keeper(kind);
        let mut declared: BTreeMap<String, Value> = BTreeMap::new();
        for batch in batches {
            let changes = batch.iter().map(|(key, body)| as_change(key, body.as_ref())).collect();
            let applied = grown.apply(changes, 1);
            prop_assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
            for (key, body) in batch {
                match body {
                    Some(body) => drop(declared.insert(key, body)),
                    None => drop(declared.remove(&key)),
                }
            }
        }
        let mut fresh = keeper(kind);
        fresh.apply(declared.iter().map(|(key, body)| as_change(key, Some(body))).collect(), 1);
        prop_assert_eq!(grown.users.len(), fresh.users.len(), "no reference is left behind");
        for host in ["a.b", "z.b", "c", "d"] {
            for path in ["/x", "/x/y", "/x/1/z", "/q"] {
                let (left, right) = (outcome(&grown, host, path), outcome(&fresh, host, path));
                prop_assert_eq!(left, right, "{}{} of {:?}", host, path, &declared);
            }
        }
    }
}
