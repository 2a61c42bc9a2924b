//! Who of several nodes gets a request: by a hash, by what is under way, by how soon they answer; and whom we expect there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use wardgate::rt::Tasks;

use crate::mesh::{RawApp, merged};
use crate::world::{App, PATIENCE, Process, World, allow, eventually, eventually_async, get, send};

fn ingress(world: &World, name: &str, upstream: &Value) -> Process {
    let route = json!({ "id": "all", "uri": "/*", "upstream": upstream });
    world.ingress().named(name).resources(&json!({ "routes": [route] })).start()
}

/// An app that answers with its name, after `after`.
fn named(name: &'static str, after: Duration) -> RawApp {
    RawApp::serving(move |stream| {
        while stream.request().is_some() {
            #[expect(clippy::disallowed_methods, reason = "an app that is slow")]
            std::thread::sleep(after);
            stream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()));
        }
    })
}

fn nodes(apps: &[RawApp]) -> Value {
    apps.iter()
        .map(|app| (app.address.to_string(), json!(1)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Who answers this request.
async fn who(door: SocketAddr, path: &str, headers: &[(&str, &str)]) -> String {
    let answer = send(door, "GET", path, headers, "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

#[tokio::test]
async fn a_key_stays_with_its_node_wherever_it_is_read() {
    let world = World::new();
    let apps = ["one", "two", "three"].map(|name| named(name, Duration::ZERO));
    for (hash_on, key) in [
        ("header", "X-User"),
        ("cookie", "user"),
        ("vars", "arg_user"),
        ("vars", "uri"),
        ("vars", "host"),
        ("vars_combinations", "$host$arg_user"),
    ] {
        let upstream =
            json!({ "type": "chash", "hash_on": hash_on, "key": key, "nodes": nodes(&apps) });
        let ingress =
            ingress(&world, &format!("{hash_on}-{key}").replace(['$', '_'], ""), &upstream);
        let door = ingress.address("ingress");
        let mut by_user = BTreeMap::<usize, BTreeSet<String>>::new();
        for user in (0..30).chain(0..30) {
            let (text, cookie) = (format!("u{user}"), format!("a=b; user=u{user}"));
            let path = if key == "uri" { format!("/{text}") } else { format!("/?user={text}") };
            let host = if key == "host" { text.as_str() } else { "shop.example" };
            let headers = [("host", host), ("x-user", &text), ("cookie", &cookie)];
            by_user.entry(user).or_default().insert(who(door, &path, &headers).await);
        }
        assert!(by_user.values().all(|nodes| nodes.len() == 1), "{key}: {by_user:?}");
        let all: BTreeSet<_> = by_user.into_values().flatten().collect();
        assert_eq!(all.len(), 3, "{key}: 30 users are spread over all");
        // Who brings no key is known by the address.
        if matches!(hash_on, "header" | "cookie") {
            let mut nodes = BTreeSet::new();
            for number in 0..6 {
                nodes.insert(who(door, &format!("/{number}"), &[]).await);
            }
            assert_eq!(nodes.len(), 1, "{key}");
        }
    }
}

#[tokio::test]
async fn consumers_stay_with_their_node() {
    let world = World::new();
    let apps = ["one", "two", "three"].map(|name| named(name, Duration::ZERO));
    let upstream = json!({ "type": "chash", "hash_on": "consumer", "nodes": nodes(&apps) });
    let consumers: Vec<Value> = (0..20)
        .map(|number| {
            let key = format!("the-key-of-{number}");
            json!({ "username": format!("u{number}"), "plugins": { "key-auth": { "key": key } } })
        })
        .collect();
    let route =
        json!({ "id": "all", "uri": "/*", "upstream": upstream, "plugins": { "key-auth": {} } });
    let resources = json!({ "routes": [route], "consumers": consumers });
    let ingress = world.ingress().resources(&resources).start();
    let mut seen = BTreeMap::<usize, BTreeSet<String>>::new();
    for number in (0..20).chain(0..20) {
        let key = format!("the-key-of-{number}");
        let node = who(ingress.address("ingress"), "/", &[("apikey", &key)]).await;
        seen.entry(number).or_default().insert(node);
    }
    assert!(seen.values().all(|nodes| nodes.len() == 1), "{seen:?}");
    assert!(seen.into_values().flatten().collect::<BTreeSet<_>>().len() > 1);
}

#[tokio::test]
async fn the_node_that_answers_sooner_gets_most_of_the_requests() {
    let world = World::new();
    let apps = [named("slow", Duration::from_secs(1)), named("quick", Duration::ZERO)];
    let ingress = ingress(&world, "i", &json!({ "type": "ewma", "nodes": nodes(&apps) }));
    let mut slow = 0;
    for _ in 0..20 {
        slow += usize::from(who(ingress.address("ingress"), "/", &[]).await == "slow");
    }
    assert!(slow <= 5, "{slow} of 20 went to the slow one");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_decides_over_revisions_too() {
    let world = World::new();
    // Each tells that a request has come, and keeps it until it is let go.
    let (came, comes) = mpsc::channel();
    let let_go = Arc::<AtomicBool>::default();
    let apps = ["one", "two"].map(|name| {
        let (came, let_go) = (came.clone(), let_go.clone());
        RawApp::serving(move |stream| {
            while stream.request().is_some() {
                came.send(name).unwrap();
                eventually("to be let go", || let_go.load(Ordering::SeqCst).then_some(()));
                stream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        })
    });
    let upstream = json!({ "type": "least_conn", "nodes": nodes(&apps) });
    let ingress = ingress(&world, "i", &upstream);
    let door = ingress.address("ingress");
    let mut waiting = Vec::new();
    let mut seen = BTreeMap::<&str, usize>::new();
    for number in 0..6 {
        if number == 3 {
            // Another revision knows what is under way.
            let changed = merged(upstream.clone(), &json!({ "retries": 0 }));
            let route = json!({ "id": "all", "uri": "/*", "upstream": changed });
            ingress.write_resources(&json!({ "routes": [route] }));
            ingress.logs("revision=2");
        }
        waiting.push(wardgate::rt::spawn(async move { get(door, "/").await.status }));
        let name = tokio::task::block_in_place(|| comes.recv_timeout(PATIENCE).unwrap());
        *seen.entry(name).or_default() += 1;
    }
    assert_eq!(seen, BTreeMap::from([("one", 3), ("two", 3)]));
    let_go.store(true, Ordering::SeqCst);
    for answer in waiting {
        assert_eq!(answer.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn after_the_time_for_further_nodes_none_is_tried() {
    let world = World::new();
    let seen = Arc::<Mutex<usize>>::default();
    let apps = [(); 3].map(|()| {
        let seen = seen.clone();
        RawApp::serving(move |stream| {
            if stream.request().is_some() {
                *seen.lock().unwrap() += 1;
                #[expect(clippy::disallowed_methods, reason = "an app that is slow")]
                std::thread::sleep(Duration::from_millis(300));
            }
        })
    });
    let upstream = json!({ "nodes": nodes(&apps) });
    let hurried = merged(upstream.clone(), &json!({ "retry_timeout": 0.1 }));
    for (name, upstream, tries) in [
        ("patient", &upstream, 3),
        ("unlimited", &merged(upstream.clone(), &json!({ "retry_timeout": 0 })), 3),
        ("hurried", &hurried, 1),
    ] {
        *seen.lock().unwrap() = 0;
        let ingress = ingress(&world, name, upstream);
        assert_eq!(get(ingress.address("ingress"), "/").await.status, 502, "{name}");
        assert_eq!(*seen.lock().unwrap(), tries, "{name}");
    }
}

#[tokio::test]
async fn each_node_may_have_an_identity_of_its_own() {
    let world = World::new();
    let apps = ["a", "b"].map(App::echo);
    let shop = world.id("/shop");
    let sidecars: Vec<Process> = ["/a", "/b"]
        .iter()
        .zip(&apps)
        .map(|(path, app)| {
            let policy = allow("p", &[&world.id(path)], &[&shop]);
            let resources = json!({ "identity_policies": [policy] });
            world.sidecar(path).app(app).resources(&resources).start()
        })
        .collect();
    let node = |at: usize, ids: Value| {
        let port = sidecars[at].address("inbound").port();
        json!({ "host": "127.0.0.1", "port": port, "weight": 1, "spiffe_ids": ids })
    };
    let none = json!([]);
    for (name, of_all, nodes, status) in [
        (
            "own",
            none.clone(),
            [node(0, json!([world.id("/a")])), node(1, json!([world.id("/b")]))],
            200,
        ),
        // What a node says wins over what the upstream says.
        (
            "over",
            json!([world.id("/nobody")]),
            [node(0, json!([world.id("/a")])), node(1, json!([world.id("/b")]))],
            200,
        ),
        (
            "swapped",
            none,
            [node(0, json!([world.id("/b")])), node(1, json!([world.id("/a")]))],
            502,
        ),
    ] {
        let mut tls = json!({ "identity": "svid" });
        if of_all != json!([]) {
            tls["spiffe_ids"] = of_all;
        }
        let route = json!({
            "id": "r", "uri": "/*", "workload_selector": { "listener": "outbound" },
            "upstream": { "nodes": nodes, "tls": tls },
        });
        let before = [apps[0].requests(), apps[1].requests()];
        let caller =
            world.sidecar("/shop").named(name).resources(&json!({ "routes": [route] })).start();
        for _ in 0..4 {
            assert_eq!(get(caller.address("outbound"), "/").await.status, status, "{name}");
        }
        let came = [apps[0].requests() - before[0], apps[1].requests() - before[1]];
        assert_eq!(came, if status == 200 { [2, 2] } else { [0, 0] }, "{name}");
    }
}

/// An app on HTTP/2; how many connections have come, and how many have ended.
async fn http2_app(tasks: &mut Tasks) -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (came, ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let counted = (came.clone(), ended.clone());
    tasks.add(async move {
        let mut connections = Tasks::new();
        while let Ok((tcp, _)) = listener.accept().await {
            counted.0.fetch_add(1, Ordering::SeqCst);
            let ended = counted.1.clone();
            connections.add(async move {
                if let Ok(mut connection) = h2::server::handshake(tcp).await {
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        respond.send_response(http::Response::new(()), true).unwrap();
                    }
                }
                ended.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    (address, came, ended)
}

#[tokio::test]
async fn connections_that_exchanges_share_are_kept_as_the_pool_says_too() {
    let world = World::new();
    let mut tasks = Tasks::new();
    for (name, pool, connections) in [
        ("default", json!({}), 1),
        ("two", json!({ "requests": 2 }), 3),
        ("idle", json!({ "idle_timeout": 1 }), 1),
    ] {
        let (app, came, ended) = http2_app(&mut tasks).await;
        let upstream =
            json!({ "scheme": "grpc", "nodes": { app.to_string(): 1 }, "keepalive_pool": pool });
        let ingress = ingress(&world, name, &upstream);
        // All at once would be able to share one.
        for _ in 0..6 {
            assert_eq!(get(ingress.address("ingress"), "/").await.status, 200, "{name}");
        }
        let came = came.load(Ordering::SeqCst);
        // A slow machine may let the idle time pass between two requests.
        assert!(came == connections || name == "idle", "{name}: {came}");
        let all_but_the_last = if name == "idle" { came } else { connections - 1 };
        eventually_async("those that were used up end", || async {
            (ended.load(Ordering::SeqCst) == all_but_the_last).then_some(())
        })
        .await;
    }
}
