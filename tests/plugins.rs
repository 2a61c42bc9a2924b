//! The real plugins through the real keeper: which settings win, in which order they run, what stays.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::sync::Arc;

use serde_json::{Value, json};
use wardgate::model::{Body, Change, Kind, Listeners, Resource};
use wardgate::observe::Registry;
use wardgate::pipeline::{Client, Exchange, Fault, Flow, Head};
use wardgate::plugins::ALL;
use wardgate::snapshot::Keeper;

struct World {
    keeper: Keeper,
    metrics: Registry,
}

/// What a request got: the status of an answer of the gateway's, or 0 when it would have gone upstream.
struct Answer {
    status: u16,
    exchange: Exchange,
}

impl World {
    fn new(resources: &[(&str, Value)]) -> Self {
        let metrics = Registry::new();
        let mut world = Self { keeper: Keeper::new(ALL, None, metrics.clone()), metrics };
        for (key, body) in resources {
            world.put(key, body);
        }
        world
    }

    fn put(&mut self, key: &str, body: &Value) {
        let (kind, id) = Kind::split_key(key).unwrap();
        let body = Body::parse(kind, body).unwrap_or_else(|error| panic!("{key}: {error}"));
        let revision = self.keeper.current().revision + 1;
        let change = Change::Put(Resource { kind, id, revision, body });
        self.keeper.trial(&change).unwrap_or_else(|error| panic!("{key}: {error}"));
        let applied = self.keeper.apply(vec![change], revision);
        assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
    }

    async fn ask(&self, target: &str, key: &str) -> Answer {
        self.ask_from("192.0.2.7:40000", target, key).await
    }

    /// One request as the data plane's flow runs it, without network.
    async fn ask_from(&self, address: &str, target: &str, key: &str) -> Answer {
        let snapshot = self.keeper.current().clone();
        let mut exchange = Exchange::new(Arc::new(Client {
            connection: 1,
            door: Listeners::Ingress,
            address: address.parse().unwrap(),
            local: "192.0.2.1:9080".parse().unwrap(),
            introduced: None,
            peer: None,
            me: None,
            tls: false,
            sni: None,
        }));
        exchange.request = Head::request("GET", target, "shop");
        if !key.is_empty() {
            exchange.request.append("apikey", key.as_bytes());
        }
        exchange.consumers = Some(snapshot.consumers.clone());
        let route = snapshot
            .route(Listeners::Ingress, &mut exchange)
            .expect("a path")
            .expect("a route matches");
        assert!(route.fault().is_none());
        let mut merged = None;
        let outcome: Result<Flow, Fault> = async {
            for flow in [
                snapshot.global.rewrite(&mut exchange).await?,
                route.chain.rewrite(&mut exchange).await?,
            ] {
                if matches!(flow, Flow::Reply(_)) {
                    return Ok(flow);
                }
            }
            if let Some(consumer) = exchange.consumer.clone() {
                merged = snapshot.chain_for(route, &consumer)?;
            }
            if let Some(merged) = &merged
                && let Flow::Reply(reply) = merged.late.rewrite(&mut exchange).await?
            {
                return Ok(Flow::Reply(reply));
            }
            if let Flow::Reply(reply) = snapshot.global.access(&mut exchange).await? {
                return Ok(Flow::Reply(reply));
            }
            let chain = merged.as_ref().map_or(&*route.chain, |merged| &merged.chain);
            chain.access(&mut exchange).await
        }
        .await;
        let status = match outcome.unwrap() {
            Flow::Next => 0,
            Flow::Reply(reply) => reply.status,
        };
        exchange.response = Head::response(if status == 0 { 200 } else { status });
        let chain = merged.as_ref().map_or(&*route.chain, |merged| &merged.chain);
        for chain in [&snapshot.global, chain] {
            chain.response_head(&mut exchange).unwrap();
        }
        for chain in [&snapshot.global, chain] {
            chain.log(&exchange);
        }
        Answer { status, exchange }
    }
}

fn upstream() -> Value {
    json!({"nodes": {"127.0.0.1:80": 1}})
}

fn consumer(name: &str, plugins: &Value) -> (String, Value) {
    let mut all = plugins.clone();
    all["key-auth"] = json!({"key": format!("{name}'s key")});
    (format!("/consumers/{name}"), json!({"username": name, "plugins": all}))
}

#[tokio::test]
async fn ip_restriction_runs_after_key_auth_in_spite_of_its_higher_number() {
    let world = World::new(&[(
        "/routes/1",
        json!({"uri": "/*", "upstream": upstream(), "plugins": {
            "key-auth": {}, "ip-restriction": {"whitelist": ["10.0.0.0/8"]}
        }}),
    )]);
    // Nobody knows the caller: it is told so before its address is looked at.
    assert_eq!(world.ask("/", "").await.status, 401);
    let mut world = world;
    let (key, ann) = consumer("ann", &json!({}));
    world.put(&key, &ann);
    assert_eq!(world.ask("/", "ann's key").await.status, 403);
    assert_eq!(world.ask_from("10.1.1.1:9", "/", "ann's key").await.status, 0);
}

#[tokio::test]
async fn a_consumers_settings_replace_the_routes_for_that_consumer() {
    let mut world = World::new(&[(
        "/routes/1",
        json!({"uri": "/*", "upstream": upstream(), "plugins": {
            "key-auth": {},
            "ip-restriction": {"blacklist": ["192.0.2.7"]}
        }}),
    )]);
    let (key, body) = consumer("ann", &json!({"ip-restriction": {"whitelist": ["192.0.2.7"]}}));
    world.put(&key, &body);
    let (key, body) = consumer("bob", &json!({}));
    world.put(&key, &body);
    assert_eq!(world.ask("/", "ann's key").await.status, 0);
    assert_eq!(world.ask("/", "bob's key").await.status, 403);
    assert_eq!(world.ask_from("192.0.2.8:1", "/", "ann's key").await.status, 403);
    assert_eq!(world.ask_from("192.0.2.8:1", "/", "bob's key").await.status, 0);
}

#[tokio::test(start_paused = true)]
async fn what_only_the_consumer_brings_runs_too_and_counts_across_routes() {
    let route =
        |uri: &str| json!({"uri": uri, "upstream": upstream(), "plugins": {"key-auth": {}}});
    let mut world = World::new(&[("/routes/1", route("/a")), ("/routes/2", route("/b"))]);
    let limited = json!({
        "limit-count": {"count": 2, "time_window": 60, "rejected_code": 429},
        "proxy-rewrite": {"headers": {"set": {"X-Tier": "gold"}}}
    });
    let (key, body) = consumer("ann", &limited);
    world.put(&key, &body);
    let answer = world.ask("/a", "ann's key").await;
    assert_eq!(answer.status, 0);
    assert_eq!(answer.exchange.request.text("x-tier"), Some("gold"));
    assert_eq!(answer.exchange.response.text("x-ratelimit-remaining"), Some("1"));
    assert_eq!(world.ask("/b", "ann's key").await.status, 0);
    let refused = world.ask("/a", "ann's key").await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.exchange.response.text("x-ratelimit-remaining"), Some("0"));
    // A new snapshot, and another message: the count goes on.
    let mut changed = limited;
    changed["limit-count"]["rejected_msg"] = json!("slow down");
    let (key, body) = consumer("ann", &changed);
    world.put(&key, &body);
    assert_eq!(world.ask("/b", "ann's key").await.status, 429);
}

#[tokio::test(start_paused = true)]
async fn a_services_limit_is_its_routes_together_and_a_routes_own_is_its_own() {
    let limit = json!({"limit-count": {"count": 1, "time_window": 60}});
    let world = World::new(&[
        ("/services/s", json!({"upstream": upstream(), "plugins": limit})),
        ("/routes/1", json!({"uri": "/a", "service_id": "s"})),
        ("/routes/2", json!({"uri": "/b", "service_id": "s"})),
        ("/routes/3", json!({"uri": "/c", "service_id": "s", "plugins": limit})),
        (
            "/routes/4",
            json!({"uri": "/d", "service_id": "s", "plugins": {
                "limit-count": {"count": 1, "time_window": 60, "_meta": {"disable": true}}
            }}),
        ),
    ]);
    assert_eq!(world.ask("/a", "").await.status, 0);
    assert_eq!(world.ask("/b", "").await.status, 503);
    assert_eq!(world.ask("/c", "").await.status, 0);
    assert_eq!(world.ask("/c", "").await.status, 503);
    // Disabled on the route cancels the service's.
    assert_eq!(world.ask("/d", "").await.status, 0);
    assert_eq!(world.ask("/d", "").await.status, 0);
}

#[tokio::test]
async fn prometheus_counts_an_exchange_once_where_global_rule_and_route_both_have_it() {
    let world = World::new(&[
        ("/global_rules/1", json!({"plugins": {"prometheus": {}, "request-id": {}}})),
        ("/routes/1", json!({"uri": "/a", "upstream": upstream(), "plugins": {"prometheus": {}}})),
        ("/routes/2", json!({"uri": "/b", "upstream": upstream()})),
    ]);
    let answer = world.ask("/a", "").await;
    assert!(answer.exchange.response.value("x-request-id").is_some());
    world.ask("/b", "").await;
    let text = world.metrics.render();
    let counts: Vec<&str> =
        text.lines().filter(|line| line.starts_with("apisix_http_status{")).collect();
    assert_eq!(counts.len(), 2, "{text}");
    assert!(counts.iter().all(|line| line.ends_with(" 1")), "{text}");
}

#[tokio::test]
async fn metadata_changes_reach_routes_that_stand_already() {
    let mut world = World::new(&[(
        "/routes/1",
        json!({"uri": "/*", "upstream": upstream(), "plugins": {"limit-count": {"count": 9, "time_window": 60}}}),
    )]);
    assert_eq!(world.ask("/", "").await.exchange.response.text("x-ratelimit-limit"), Some("9"));
    world.put("/plugin_metadata/limit-count", &json!({"id": "limit-count", "limit_header": "X-L"}));
    let answer = world.ask("/", "").await;
    assert_eq!(answer.exchange.response.text("x-l"), Some("9"));
    assert_eq!(answer.exchange.response.text("x-ratelimit-remaining"), Some("7"));
}
