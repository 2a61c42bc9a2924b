//! `limit-req` and `limit-conn` with a real Redis: exact over several gateways, places that a dead gateway held, Redis away, and every
//! field of the place where they count.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::plugin_limits::slow;
use super::plugins::Edge;
use super::redis_server::RedisServer;
use super::world::{App, Connection, PATIENCE, World, eventually, eventually_async, get};

/// Settings with these fields beside.
fn with(settings: &Value, more: &Value) -> Value {
    let mut all = settings.clone();
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

/// Two pass, within a day.
pub(crate) fn two_requests(place: &Value) -> Value {
    let limit = json!({ "rate": 0.00001, "burst": 1, "key": "arg_k", "nodelay": true, "rejected_code": 429, "rejected_msg": "slowly" });
    json!({ "limit-req": with(&limit, place) })
}

/// One at once.
pub(crate) fn one_at_once(place: &Value) -> Value {
    let limit = json!({ "conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "arg_k", "rejected_code": 429, "rejected_msg": "busy" });
    json!({ "limit-conn": with(&limit, place) })
}

#[tokio::test(flavor = "multi_thread")]
async fn several_gateways_together_let_through_exactly_what_there_is() {
    const GATEWAYS: usize = 8;
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let (app, (slow, waiting, open)) = (App::echo("app"), slow());
    let redis = RedisServer::start(&[]);
    let mut gateways: Vec<_> = (0..GATEWAYS)
        .map(|at| world.ingress().named(&format!("ingress{at}")).fed_by(&control).launch())
        .collect();
    gateways.iter().for_each(super::world::Process::wait_ready);
    let place = json!({ "policy": "redis", "redis_host": "127.0.0.1", "redis_port": redis.port, "redis_timeout": 30_000 });
    let place = |more: Value| with(&place, &more);
    let req = json!({ "rate": 0.00001, "burst": 99, "key": "uri", "nodelay": true, "rejected_code": 429 });
    let conn = json!({ "conn": 6, "burst": 4, "default_conn_delay": 0.001, "only_use_default_delay": true, "key": "uri", "rejected_code": 429 });
    let one = json!({ "conn": 1, "burst": 0, "default_conn_delay": 0.001, "key": "uri", "rejected_code": 429 });
    let mut revision = 0;
    for (name, app, plugins) in [
        ("req", &app, json!({ "limit-req": with(&req, &place(json!({}))) })),
        ("conn", &slow, json!({ "limit-conn": with(&conn, &place(json!({}))) })),
        ("lasting", &slow, json!({ "limit-conn": with(&one, &place(json!({}))) })),
        ("passing", &slow, json!({ "limit-conn": with(&one, &place(json!({ "key_ttl": 2 }))) })),
    ] {
        let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
        let route = json!({ "uri": format!("/{name}"), "upstream": upstream, "plugins": plugins });
        revision = admin.put(&format!("/routes/{name}"), &route).await;
    }
    admin.applied(revision, GATEWAYS).await;

    // A bucket of a hundred that does not drain.
    let passed = Arc::<AtomicUsize>::default();
    let asking = gateways.iter().flat_map(|gateway| [gateway; 2]).map(|gateway| {
        let (address, passed) = (gateway.address("ingress"), passed.clone());
        wardgate::rt::spawn(async move {
            let mut connection = Connection::plain(address).await;
            for _ in 0..10 {
                match connection.get("/req").await.status {
                    200 => drop(passed.fetch_add(1, Ordering::Relaxed)),
                    status => assert_eq!(status, 429),
                }
            }
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.unwrap();
    }
    assert_eq!(passed.load(Ordering::Relaxed), 100);

    // Ten places, asked for by forty at once; whoever has one keeps it until all others were refused.
    for round in 0..2 {
        let (passed, refused) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let asking = gateways.iter().flat_map(|gateway| [gateway; 5]).map(|gateway| {
            let address = gateway.address("ingress");
            let (passed, refused) = (passed.clone(), refused.clone());
            wardgate::rt::spawn(async move {
                match get(address, "/conn").await.status {
                    200 => passed.fetch_add(1, Ordering::SeqCst),
                    429 => refused.fetch_add(1, Ordering::SeqCst),
                    status => panic!("{status}"),
                };
            })
        });
        let asking: Vec<_> = asking.collect();
        eventually_async("ten are in, thirty are refused", || async {
            let told = (waiting.load(Ordering::SeqCst), refused.load(Ordering::SeqCst));
            assert!(told.0 <= 10 && told.1 <= 30, "round {round}: {told:?}");
            (told == (10, 30)).then_some(())
        })
        .await;
        open.store(true, Ordering::SeqCst);
        for asked in asking {
            asked.await.unwrap();
        }
        assert_eq!(passed.load(Ordering::SeqCst), 10);
        open.store(false, Ordering::SeqCst);
        // Each place was given back.
        let name = "plugin-limit-conn:routes/conn/:conn:conn:/conn";
        eventually("nobody is in any more", || {
            (redis.ask(&format!("ZCARD {name}")) == ":0").then_some(())
        });
    }

    // A gateway dies with two places: one is given up soon, the other in an hour.
    let last = gateways.pop().unwrap();
    let address = last.address("ingress");
    let holding: Vec<_> = ["/lasting", "/passing"]
        .into_iter()
        .map(|path| {
            wardgate::rt::spawn(async move {
                let mut connection = Connection::plain(address).await;
                drop(connection.try_send("GET", path, &[], "").await);
            })
        })
        .collect();
    eventually_async("both are in", || async {
        (waiting.load(Ordering::SeqCst) == 2).then_some(())
    })
    .await;
    let mut last = last;
    last.kill();
    for held in holding {
        held.await.unwrap();
    }
    open.store(true, Ordering::SeqCst);
    let other = gateways[0].address("ingress");
    eventually_async("the dead gateway's place is given up", || async {
        (get(other, "/passing").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(get(other, "/lasting").await.status, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_away_is_an_answer_and_never_a_hang() {
    let edge = Edge::new();
    let mut redis = RedisServer::start(&["--requirepass", "sesame"]);
    let place = json!({ "policy": "redis", "redis_host": "127.0.0.1", "redis_port": redis.port, "redis_username": "default",
        "redis_password": "sesame", "redis_database": 2, "redis_timeout": 300, "redis_keepalive_timeout": 5000, "redis_keepalive_pool": 4,
        "redis_ssl": false, "redis_ssl_verify": false });
    let lenient = with(&place, &json!({ "allow_degradation": true }));
    let routes = [
        ("/req", two_requests(&place)),
        ("/conn", one_at_once(&place)),
        ("/lenient-req", two_requests(&lenient)),
        ("/lenient-conn", one_at_once(&lenient)),
        (
            "/rules",
            json!({ "limit-conn": with(&place, &json!({ "default_conn_delay": 0.1, "key_ttl": 60,
            "rules": [{ "conn": 1, "burst": 0, "key": "$arg_k" }, { "conn": "2", "burst": 0, "key": "$arg_l" }] })) }),
        ),
    ];
    for (path, plugins) in &routes {
        edge.route(&path[1..], path, plugins.clone()).await;
    }
    let all = async |key: &str| {
        let mut statuses = Vec::new();
        for (path, _) in &routes {
            statuses.push(edge.get(&format!("{path}?k={key}&l=1")).await.status);
        }
        statuses
    };
    assert_eq!(all("a").await, [200; 5]);
    for path in ["/conn", "/lenient-conn", "/rules"] {
        eventually_async("places are given back", || async {
            (edge.get(&format!("{path}?k=a&l=1")).await.status == 200).then_some(())
        })
        .await;
    }
    assert_eq!(edge.get("/req?k=a").await.status, 200);
    let refused = edge.get("/req?k=a").await;
    assert_eq!((refused.status, refused.json()), (429, json!({ "error_msg": "slowly" })));
    // Who has no key counts by address, apart from who names that address as a key.
    assert_eq!(
        [edge.get("/req?k=127.0.0.1").await.status, edge.get("/req").await.status],
        [200; 2]
    );
    assert_eq!(
        [edge.get("/req?k=127.0.0.1").await.status, edge.get("/req").await.status],
        [200; 2]
    );
    assert_eq!(edge.get("/req").await.status, 429);
    // It hears and does not answer.
    redis.freeze();
    let since = Instant::now();
    assert_eq!(all("b").await, [500, 500, 200, 200, 500]);
    assert!(since.elapsed() < PATIENCE);
    let told = edge.get("/req?k=b").await;
    assert_eq!(told.json(), json!({ "error_msg": "failed to limit req" }));
    assert_eq!(edge.get("/conn?k=b").await.json(), json!({ "error_msg": "failed to limit conn" }));
    redis.thaw();
    // What was taken without an answer is given back.
    for path in ["/conn?k=b", "/rules?k=b&l=1"] {
        eventually_async("it is asked again", || async {
            (edge.get(path).await.status == 200).then_some(())
        })
        .await;
    }
    // Nobody is there any more; connections that were kept are dead. Then one that has forgotten everything, scripts included.
    redis.stop();
    assert_eq!(all("c").await, [500, 500, 200, 200, 500]);
    redis.resume();
    assert_eq!(all("c").await, [200; 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_above_the_rate_waits_for_its_turn_by_redis_clock() {
    let edge = Edge::new();
    let redis = RedisServer::start(&[]);
    let place = json!({ "policy": "redis", "redis_host": "127.0.0.1", "redis_port": redis.port, "redis_timeout": 20_000 });
    let patient = with(
        &json!({ "rate": 10, "burst": 2, "key": "$arg_a $arg_b", "key_type": "var_combination" }),
        &place,
    );
    edge.route("1", "/patient", json!({ "limit-req": patient })).await;
    let start = Instant::now();
    let ask = || edge.get("/patient?a=1");
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    assert_eq!([one.status, two.status, three.status], [200; 3]);
    assert!(start.elapsed().as_millis() >= 199, "the third waits for two turns");
    // The bucket drains: whoever was above the rate passes later.
    eventually_async("there is room again", || async { (ask().await.status == 200).then_some(()) })
        .await;
    let table = |plugin: &str| {
        let good = match plugin {
            "limit-req" => json!({ "rate": 1, "burst": 0, "key": "uri" }),
            _ => json!({ "conn": 1, "burst": 0, "default_conn_delay": 1, "key": "uri" }),
        };
        let of = |more: Value| with(&good, &more);
        let redis = |field: &str, value: Value| {
            with(
                &of(json!({ "policy": "redis", "redis_host": "127.0.0.1" })),
                &json!({ field: value }),
            )
        };
        [
            (of(json!({ "policy": "redis" })), "redis_host: is required"),
            (of(json!({ "policy": "redis-cluster" })), "redis_cluster_nodes: is required"),
            (of(json!({ "policy": "redis-sentinel" })), "redis_sentinels: is required"),
            (of(json!({ "redis_host": "127.0.0.1" })), "redis_host: has no meaning"),
            (redis("policy", json!("memcached")), "policy"),
            (redis("redis_host", json!("a b")), "redis_host: 'a b' is no host"),
            (redis("redis_host", json!(1)), "redis_host"),
            (redis("redis_port", json!(0)), "redis_port"),
            (redis("redis_port", json!(70_000)), "redis_port"),
            (redis("redis_username", json!("")), "redis_username"),
            (redis("redis_password", json!(1)), "redis_password"),
            (redis("redis_database", json!(-1)), "redis_database"),
            (redis("redis_timeout", json!(0)), "redis_timeout"),
            (redis("redis_ssl", json!("yes")), "redis_ssl"),
            (redis("redis_ssl_verify", json!(1)), "redis_ssl_verify"),
            (redis("redis_keepalive_timeout", json!(0)), "redis_keepalive_timeout"),
            (redis("redis_keepalive_pool", json!(0)), "redis_keepalive_pool"),
            (redis("redis_cluster_name", json!("a")), "redis_cluster_name: has no meaning"),
            (redis("redis_cluster_nodes", json!([])), "redis_cluster_nodes"),
            (redis("redis_cluster_ssl", json!(true)), "redis_cluster_ssl: has no meaning"),
            (
                redis("redis_cluster_ssl_verify", json!(true)),
                "redis_cluster_ssl_verify: has no meaning",
            ),
            (redis("redis_sentinels", json!([{ "host": "127.0.0.1" }])), "redis_sentinels"),
            (redis("redis_nothing", json!(1)), "redis_nothing"),
            (redis("key_ttl", json!(0)), "key_ttl"),
        ]
    };
    edge.refuses("limit-req", &table("limit-req")).await;
    edge.refuses("limit-conn", &table("limit-conn")).await;
}
