//! `limit-count` with counters in a real Redis: one server, a cluster, sentinels; several gateways; Redis away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::plugins::Edge;
use super::redis_server::RedisServer;
use super::world::{App, Connection, PATIENCE, World, eventually, eventually_async, free_port};

fn limit(more: &Value) -> Value {
    let mut limit = json!({ "count": 2, "time_window": 600, "rejected_code": 429, "key_type": "constant", "key": "all" });
    limit.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "limit-count": limit })
}

/// The statuses of three requests, and what was told of the first.
async fn three(edge: &Edge, path: &str) -> ([u16; 3], Option<String>) {
    let first = edge.get(path).await;
    let left = first.header("x-ratelimit-remaining").map(str::to_owned);
    ([first.status, edge.get(path).await.status, edge.get(path).await.status], left)
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_in_redis_under_either_window_and_behind_a_password() {
    let edge = Edge::new();
    let redis = RedisServer::start(&["--requirepass", "sesame"]);
    let place = json!({ "policy": "redis", "redis_host": "127.0.0.1", "redis_port": redis.port, "redis_password": "sesame",
        "redis_username": "default", "redis_database": 3, "redis_timeout": 20_000, "redis_keepalive_timeout": 5000,
        "redis_keepalive_pool": 4, "redis_ssl": false, "redis_ssl_verify": false, "sync_interval": -1 });
    let mut sliding = place.clone();
    sliding["window_type"] = json!("sliding");
    edge.route("1", "/fixed", limit(&place)).await;
    edge.route("2", "/sliding", limit(&sliding)).await;
    for path in ["/fixed", "/sliding"] {
        assert_eq!(three(&edge, path).await, ([200, 200, 429], Some("1".into())), "{path}");
        let refused = edge.get(path).await;
        let reset: u64 = refused.header("x-ratelimit-reset").unwrap().parse().unwrap();
        assert!((1..=600).contains(&reset), "{reset}");
    }
    // A short window ends.
    let mut short = limit(&place);
    short["limit-count"]["time_window"] = json!(1);
    edge.route("3", "/short", short).await;
    assert_eq!(edge.get("/short").await.status, 200);
    eventually_async("the window ends and another begins", || async {
        let answer = edge.get("/short").await;
        (answer.status == 200 && answer.header("x-ratelimit-remaining") == Some("1")).then_some(())
    })
    .await;
    // A wrong password is no way in.
    let mut wrong = place.clone();
    wrong["redis_password"] = json!("wrong");
    edge.route("4", "/wrong", limit(&wrong)).await;
    let answer = edge.get("/wrong").await;
    assert_eq!(
        (answer.status, answer.json()),
        (500, json!({ "error_msg": "failed to limit count" }))
    );
    let with = |field: &str, value: Value| {
        let mut limit =
            json!({ "count": 1, "time_window": 1, "policy": "redis", "redis_host": "127.0.0.1" });
        limit[field] = value;
        limit
    };
    let of = |policy: &str| json!({ "count": 1, "time_window": 1, "policy": policy });
    edge.refuses(
        "limit-count",
        &[
            (of("redis"), "redis_host: is required"),
            (of("redis-cluster"), "redis_cluster_nodes: is required"),
            (of("redis-sentinel"), "redis_sentinels: is required"),
            (
                json!({ "count": 1, "time_window": 1, "redis_host": "127.0.0.1" }),
                "redis_host: has no meaning",
            ),
            (with("policy", json!("memcached")), "policy"),
            (with("redis_host", json!("a b")), "redis_host: 'a b' is no host"),
            (with("redis_host", json!(1)), "redis_host"),
            (with("redis_port", json!(0)), "redis_port"),
            (with("redis_port", json!(70_000)), "redis_port"),
            (with("redis_username", json!("")), "redis_username"),
            (with("redis_password", json!(1)), "redis_password"),
            (with("redis_database", json!(-1)), "redis_database"),
            (with("redis_timeout", json!(0)), "redis_timeout"),
            (with("redis_ssl", json!("yes")), "redis_ssl"),
            (with("redis_ssl_verify", json!(1)), "redis_ssl_verify"),
            (with("redis_keepalive_timeout", json!(0)), "redis_keepalive_timeout"),
            (with("redis_keepalive_pool", json!(0)), "redis_keepalive_pool"),
            (with("redis_cluster_name", json!("a")), "redis_cluster_name: has no meaning"),
            (with("redis_cluster_nodes", json!([])), "redis_cluster_nodes"),
            (with("redis_sentinels", json!([{ "host": "127.0.0.1" }])), "redis_sentinels"),
            (with("redis_role", json!("slave")), "redis_role"),
            (with("sync_interval", json!(0.5)), "sync_interval"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_gateways_together_let_through_exactly_what_there_is() {
    const GATEWAYS: usize = 8;
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let app = App::echo("app");
    let redis = RedisServer::start(&[]);
    let gateways: Vec<_> = (0..GATEWAYS)
        .map(|at| world.ingress().named(&format!("ingress{at}")).fed_by(&control).launch())
        .collect();
    gateways.iter().for_each(super::world::Process::wait_ready);
    let plugins = |window: &str| {
        limit(
            &json!({ "count": 100, "policy": "redis", "redis_host": "127.0.0.1", "redis_port": redis.port,
            "window_type": window, "redis_timeout": 30_000 }),
        )
    };
    for window in ["fixed", "sliding"] {
        let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
        let route = json!({ "uri": format!("/{window}"), "upstream": upstream, "plugins": plugins(window) });
        let revision = admin.put(&format!("/routes/{window}"), &route).await;
        admin.applied(revision, GATEWAYS).await;
        let passed = Arc::<AtomicUsize>::default();
        let asking = gateways.iter().flat_map(|gateway| [gateway; 2]).map(|gateway| {
            let (address, passed) = (gateway.address("ingress"), passed.clone());
            wardgate::rt::spawn(async move {
                let mut connection = Connection::plain(address).await;
                for _ in 0..10 {
                    match connection.get(&format!("/{window}")).await.status {
                        200 => drop(passed.fetch_add(1, Ordering::Relaxed)),
                        status => assert_eq!(status, 429),
                    }
                }
            })
        });
        for asked in asking.collect::<Vec<_>>() {
            asked.await.unwrap();
        }
        assert_eq!(passed.load(Ordering::Relaxed), 100, "{window}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_away_is_an_answer_and_never_a_hang() {
    let edge = Edge::new();
    let mut redis = RedisServer::start(&[]);
    let place = json!({ "policy": "redis", "redis_host": "127.0.0.1", "redis_port": redis.port, "redis_timeout": 300 });
    let mut lenient = place.clone();
    lenient["allow_degradation"] = json!(true);
    edge.route("1", "/strict", limit(&place)).await;
    edge.route("2", "/lenient", limit(&lenient)).await;
    let both = async || (edge.get("/strict").await.status, edge.get("/lenient").await.status);
    assert_eq!(both().await, (200, 200));
    // It hears and does not answer.
    redis.freeze();
    let since = Instant::now();
    assert_eq!(both().await, (500, 200));
    assert!(since.elapsed() < PATIENCE);
    redis.thaw();
    eventually_async("it is asked again", || async {
        let answer = edge.get("/strict").await;
        matches!(answer.status, 200 | 429).then_some(())
    })
    .await;
    // Nobody is there any more; connections that were kept are dead.
    redis.stop();
    assert_eq!(both().await, (500, 200));
    redis.resume();
    // It has forgotten everything, scripts included.
    assert_eq!(three(&edge, "/strict").await.0, [200, 200, 429]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_asked_where_the_key_is() {
    let edge = Edge::new();
    // The bus' port is not left to be 10000 above the other: there may be no such port.
    let buses = [free_port(), free_port()].map(|bus| bus.to_string());
    let node = |bus| RedisServer::start(&["--cluster-enabled", "yes", "--cluster-port", bus]);
    let (one, other) = (node(&buses[0]), node(&buses[1]));
    assert_eq!(one.ask("CLUSTER ADDSLOTSRANGE 0 8191"), "+OK");
    assert_eq!(other.ask("CLUSTER ADDSLOTSRANGE 8192 16383"), "+OK");
    let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", other.port, buses[1]);
    assert_eq!(one.ask(&meet), "+OK");
    for node in [&one, &other] {
        eventually("the cluster stands", || {
            (node.ask("SET a 1").starts_with(['+']) || node.ask("SET a 1").starts_with("-MOVED"))
                .then_some(())
        });
    }
    let place = json!({ "policy": "redis-cluster", "redis_cluster_name": "c", "redis_timeout": 20_000,
        "redis_cluster_nodes": [format!("127.0.0.1:{}", one.port)], "redis_cluster_ssl": false, "redis_cluster_ssl_verify": false });
    let mut limit = limit(&place);
    limit["limit-count"]["key_type"] = json!("var");
    limit["limit-count"]["key"] = json!("arg_k");
    edge.route("1", "/c", limit).await;
    for key in 0..12 {
        assert_eq!(three(&edge, &format!("/c?k={key}")).await.0, [200, 200, 429], "{key}");
    }
    // So are the other two limits.
    edge.route("2", "/req", super::plugin_redis_limits::two_requests(&place)).await;
    edge.route("3", "/conn", super::plugin_redis_limits::one_at_once(&place)).await;
    for key in 0..6 {
        assert_eq!(three(&edge, &format!("/req?k={key}")).await.0, [200, 200, 429], "{key}");
        eventually_async("the place is given back", || async {
            (edge.get(&format!("/conn?k={key}")).await.status == 200).then_some(())
        })
        .await;
    }
    // Both have some of the keys.
    for node in [&one, &other] {
        assert_ne!(node.ask("DBSIZE"), ":0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_name_the_server() {
    let edge = Edge::new();
    let redis = RedisServer::start(&[]);
    let sentinel = RedisServer::sentinel(&redis);
    let place = |name: &str| {
        json!({ "policy": "redis-sentinel", "redis_sentinels": [{ "host": "127.0.0.1", "port": 1 }, { "host": "127.0.0.1", "port": sentinel.port }],
            "redis_master_name": name, "redis_role": "master", "redis_connect_timeout": 10_000, "redis_read_timeout": 10_000,
            "redis_keepalive_timeout": 5000, "redis_database": 1 })
    };
    edge.route("1", "/s", limit(&place("mymaster"))).await;
    edge.route("2", "/nobody", limit(&place("other"))).await;
    assert_eq!(three(&edge, "/s").await.0, [200, 200, 429]);
    assert_eq!(edge.get("/nobody").await.status, 500);
    edge.route("3", "/req", super::plugin_redis_limits::two_requests(&place("mymaster"))).await;
    edge.route("4", "/conn", super::plugin_redis_limits::one_at_once(&place("mymaster"))).await;
    assert_eq!(three(&edge, "/req?k=1").await.0, [200, 200, 429]);
    assert_eq!(edge.get("/conn?k=1").await.status, 200);
}
