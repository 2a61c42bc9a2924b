//! Service discovery: nodes that registries know appear, change and disappear without a new revision; a registry that is away
//! changes nothing, and is heard again when it is back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use hickory_resolver::proto::rr::RecordType;

use crate::registries::{
    ClusterDouble, Consul, ConsulDouble, DnsDouble, EurekaDouble, NacosDouble, RealConsul, Server,
    whole,
};
use crate::world::{App, PATIENCE, Process, World, eventually, eventually_async, get};

/// An ingress with one route for each path, whose upstream names a service.
fn ingress(world: &World, discovery: &Value, routes: &[(&str, Value)]) -> Process {
    part(world, discovery, routes).start()
}

fn part<'w>(
    world: &'w World,
    discovery: &Value,
    routes: &[(&str, Value)],
) -> crate::world::Part<'w> {
    let route = |(path, upstream): &(&str, Value)| json!({ "id": path.trim_matches('/'), "uri": path, "upstream": upstream });
    let routes: Vec<Value> = routes.iter().map(route).collect();
    world.ingress().set("discovery", discovery).resources(&json!({ "routes": routes }))
}

fn of(kind: &str, service: &str) -> Value {
    json!({ "service_name": service, "discovery_type": kind })
}

/// Who answers so many requests, by name; by status where nobody does.
async fn served(ingress: &Process, path: &str, requests: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..requests {
        let answer = get(ingress.address("ingress"), path).await;
        let name = match answer.status {
            200 => answer.json()["app"].as_str().unwrap().to_owned(),
            status => status.to_string(),
        };
        *seen.entry(name).or_default() += 1;
    }
    seen
}

/// Waits until requests are shared so.
async fn until_served(ingress: &Process, path: &str, expected: &[(&str, usize)]) {
    let expected: BTreeMap<String, usize> =
        expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    let requests = expected.values().sum();
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let seen = served(ingress, path, requests).await;
        if seen == expected {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{path}: expected {expected:?}, {seen:?} in the end\n{}",
            ingress.said()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn apps() -> [App; 3] {
    [App::echo("one"), App::echo("two"), App::echo("three")]
}

fn port(app: &App) -> u16 {
    app.address.port()
}

/// A certificate for this machine's loopback address, and the file of its authority.
fn certificate(world: &World) -> (Arc<rustls::ServerConfig>, PathBuf) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let file = world.folder.join("registry-ca.pem");
    std::fs::write(&file, params.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(wardgate::mtls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    (Arc::new(config), file)
}

async fn consul_is_followed(consul: &mut dyn Consul) {
    let world = World::new();
    let [one, two, three] = apps();
    let discovery = json!({ "consul": { "servers": [consul.url()] } });
    let ingress = ingress(&world, &discovery, &[("/a", of("consul", "a b"))]);
    until_served(&ingress, "/a", &[("503", 1)]).await;

    consul.register("a b", "a1", port(&one));
    until_served(&ingress, "/a", &[("one", 2)]).await;
    consul.register("a b", "a2", port(&two));
    until_served(&ingress, "/a", &[("one", 2), ("two", 2)]).await;
    consul.register("a b", "a1", port(&three));
    until_served(&ingress, "/a", &[("three", 2), ("two", 2)]).await;
    consul.deregister("a1");
    until_served(&ingress, "/a", &[("two", 3)]).await;

    consul.go_away();
    ingress.logs("the registry does not answer as it should");
    assert_eq!(served(&ingress, "/a", 3).await, [("two".to_owned(), 3)].into());
    consul.come_back();
    ingress.logs("the registry answers again");
    consul.register("a b", "a3", port(&one));
    until_served(&ingress, "/a", &[("one", 2), ("two", 2)]).await;
}

#[tokio::test]
async fn nodes_of_consul_appear_change_and_disappear() {
    consul_is_followed(&mut ConsulDouble::start()).await;
}

#[tokio::test]
async fn nodes_of_a_real_consul_appear_change_and_disappear() {
    let Some(mut consul) = RealConsul::start() else { return };
    consul_is_followed(&mut consul).await;
}

async fn keys_are_followed(consul: &mut dyn Consul) {
    let world = World::new();
    let [one, two, three] = apps();
    let discovery = json!({ "consul_kv": { "servers": [consul.url()], "prefix": "upstreams" } });
    let service = format!("{}/v1/kv/upstreams/team/shop/", consul.url());
    let ingress = ingress(&world, &discovery, &[("/a", of("consul_kv", &service))]);
    until_served(&ingress, "/a", &[("503", 1)]).await;

    let key = |app: &App| format!("upstreams/team/shop/{}", app.address);
    consul.put(&key(&one), r#"{"weight": 3, "max_fails": 2, "fail_timeout": 1}"#);
    consul.put(&key(&two), r#"{"weight": 1}"#);
    consul.put(&format!("upstreams-of-others/shop/{}", three.address), "{}");
    until_served(&ingress, "/a", &[("one", 6), ("two", 2)]).await;
    consul.put(&key(&one), r#"{"weight": 1}"#);
    until_served(&ingress, "/a", &[("one", 3), ("two", 3)]).await;
    consul.remove(&key(&one));
    until_served(&ingress, "/a", &[("two", 3)]).await;

    consul.go_away();
    ingress.logs("the registry does not answer as it should");
    assert_eq!(served(&ingress, "/a", 3).await, [("two".to_owned(), 3)].into());
    consul.come_back();
    consul.remove(&key(&two));
    until_served(&ingress, "/a", &[("503", 2)]).await;
    consul.put(&key(&three), "{}");
    until_served(&ingress, "/a", &[("three", 2)]).await;
}

#[tokio::test]
async fn keys_of_consul_are_nodes_with_their_weights() {
    keys_are_followed(&mut ConsulDouble::start()).await;
}

#[tokio::test]
async fn keys_of_a_real_consul_are_nodes_with_their_weights() {
    let Some(mut consul) = RealConsul::start() else { return };
    keys_are_followed(&mut consul).await;
}

#[tokio::test]
async fn consul_is_asked_by_one_watch_however_many_upstreams_and_requests_there_are() {
    let world = World::new();
    let [one, two, three] = apps();
    let consul = ConsulDouble::start();
    consul.require_token("a token");
    for (service, app) in [("a", &one), ("b", &two), ("skipped", &three)] {
        consul.register(service, service, port(app));
    }
    let discovery = json!({ "consul": {
        "servers": [consul.url()], "token": "${{CONSUL_TOKEN}}", "skip_services": ["skipped"],
        "default_service": { "host": "127.0.0.1", "port": port(&three) },
    } });
    let routes: Vec<(&str, Value)> = [("/a", "a"), ("/a2", "a"), ("/b", "b"), ("/c", "c")]
        .map(|(path, service)| (path, of("consul", service)))
        .into();
    let ingress = part(&world, &discovery, &routes).env("CONSUL_TOKEN", "a token").start();
    for (path, app) in [("/a", "one"), ("/a2", "one"), ("/b", "two"), ("/c", "three")] {
        until_served(&ingress, path, &[(app, 2)]).await;
    }
    let counts = || {
        ["/v1/catalog/services", "/v1/health/state/any", "/v1/health/service/"]
            .map(|path| consul.server.count(path))
    };
    // Each watch has asked once, and waits for a change by its second question; what the first ones told was looked at.
    let before = eventually_async("the watches wait", || async {
        let now = counts();
        tokio::time::sleep(Duration::from_millis(500)).await;
        (now == counts() && now[..2] == [2, 2]).then_some(now)
    })
    .await;
    assert_eq!(consul.server.count("/v1/health/service/skipped"), 0);
    served(&ingress, "/a", 30).await;
    assert_eq!(counts(), before, "requests ask nothing");

    // A check that fails takes its instance away; the default takes its place.
    consul.set_critical("a", true);
    until_served(&ingress, "/a", &[("three", 2)]).await;
    consul.set_critical("a", false);
    until_served(&ingress, "/a2", &[("one", 2)]).await;
    let after = counts();
    assert!(after[0] - before[0] <= 1 && after[1] - before[1] <= 3, "{before:?} {after:?}");

    // Indices that go back belong to another past.
    consul.begin_anew();
    until_served(&ingress, "/a", &[("three", 2)]).await;
    consul.require_token("a token");
    consul.register("a", "a", port(&two));
    until_served(&ingress, "/a", &[("two", 2)]).await;

    // A token that is good no more changes nothing, and no log shows it.
    consul.require_token("another");
    consul.register("a", "a", port(&one));
    ingress.logs("with status 403");
    assert_eq!(served(&ingress, "/a", 2).await, [("two".to_owned(), 2)].into());
    assert!(!ingress.said().contains("a token"), "{}", ingress.said());
}

#[tokio::test]
async fn without_keepalive_consul_is_asked_at_intervals_and_over_tls_it_must_be_vouched_for() {
    let world = World::new();
    let [one, two, _] = apps();
    let (config, authority) = certificate(&world);
    let consul = ConsulDouble::with(Some(config));
    consul.register("a", "a1", port(&one));
    let discovery = |ca_file: Option<&PathBuf>| {
        json!({ "consul": {
            "servers": [consul.url()], "keepalive": false, "fetch_interval": 1, "ca_file": ca_file,
        } })
    };
    let good = ingress(&world, &discovery(Some(&authority)), &[("/a", of("consul", "a"))]);
    until_served(&good, "/a", &[("one", 2)]).await;
    consul.register("a", "a2", port(&two));
    until_served(&good, "/a", &[("one", 2), ("two", 2)]).await;
    assert_eq!(consul.server.count("/v1/catalog/services"), 0);

    let asked = consul.server.asked().len();
    let routes = [("/a", of("consul", "a"))];
    let stranger = part(&world, &discovery(None), &routes).named("stranger").start();
    let line = stranger.logs("the registry does not answer as it should");
    assert!(line.contains("the handshake with https://127.0.0.1:"), "{line}");
    let from_stranger = consul.server.asked().len() - asked;
    until_served(&stranger, "/a", &[("503", 1)]).await;
    assert!(from_stranger < 100, "it is left alone in between");
}

#[tokio::test]
async fn a_registry_that_is_away_at_the_start_is_waited_for_and_a_dump_bridges_the_time() {
    let world = World::new();
    let [one, two, _] = apps();
    let mut consul = ConsulDouble::start();
    consul.register("a", "a", port(&one));
    consul.go_away();
    let dump = world.folder.join("consul.dump");
    let discovery = json!({ "consul": {
        "servers": [consul.url()], "dump": { "path": dump, "expire": 3600 },
    } });
    let routes = [("/a", of("consul", "a"))];
    let mut first = part(&world, &discovery, &routes).named("first").start();
    until_served(&first, "/a", &[("503", 1)]).await;
    consul.come_back();
    until_served(&first, "/a", &[("one", 2)]).await;
    let dumped = eventually("the file", || {
        let text = std::fs::read_to_string(&dump).ok()?;
        let value: Value = serde_json::from_str(&text).unwrap();
        (value["services"]["a"][0]["port"] == port(&one)).then_some(value)
    });
    assert_eq!(dumped["services"]["a"][0]["host"], "127.0.0.1");
    assert!(dumped["last_update"].as_i64().unwrap() > 1_700_000_000);
    first.end();

    consul.go_away();
    let second = part(&world, &discovery, &routes).named("second").start();
    until_served(&second, "/a", &[("one", 2)]).await;
    consul.deregister("a");
    consul.register("a", "b", port(&two));
    consul.come_back();
    until_served(&second, "/a", &[("two", 2)]).await;
}

#[tokio::test]
async fn of_several_consuls_each_has_services_of_its_own() {
    let world = World::new();
    let [one, two, _] = apps();
    let (here, mut there) = (ConsulDouble::start(), ConsulDouble::start());
    here.register("a", "a", port(&one));
    there.register("b", "b", port(&two));
    let discovery = json!({ "consul": { "servers": [here.url(), there.url()] } });
    let routes = [("/a", of("consul", "a")), ("/b", of("consul", "b"))];
    let ingress = ingress(&world, &discovery, &routes);
    until_served(&ingress, "/a", &[("one", 2)]).await;
    until_served(&ingress, "/b", &[("two", 2)]).await;
    there.go_away();
    here.register("a", "a", port(&two));
    until_served(&ingress, "/a", &[("two", 2)]).await;
    assert_eq!(served(&ingress, "/b", 2).await, [("two".to_owned(), 2)].into());
}

#[tokio::test]
async fn instances_of_eureka_that_are_up_are_nodes_with_their_weights() {
    let world = World::new();
    let [one, two, three] = apps();
    let mut eureka = EurekaDouble::start("reader", "s3cret");
    eureka.set("SHOP", &[(port(&one), "UP", 3), (port(&two), "UP", 1), (port(&three), "DOWN", 1)]);
    let dead = format!("http://127.0.0.1:{}", crate::world::free_port());
    let url = format!("http://reader:${{{{PASSWORD}}}}@{}", eureka.server.address);
    let discovery = json!({ "eureka": {
        "host": [dead, url], "prefix": "/eureka/", "fetch_interval": 1,
    } });
    let routes = [("/a", of("eureka", "SHOP")), ("/b", of("eureka", "NOBODY"))];
    let ingress = part(&world, &discovery, &routes).env("PASSWORD", "s3cret").start();
    until_served(&ingress, "/a", &[("one", 6), ("two", 2)]).await;
    until_served(&ingress, "/b", &[("503", 1)]).await;
    eureka.set("SHOP", &[(port(&one), "OUT_OF_SERVICE", 3), (port(&three), "UP", 1)]);
    until_served(&ingress, "/a", &[("three", 3)]).await;

    eureka.server.go_away();
    ingress.logs("the registry does not answer as it should");
    eureka.set("SHOP", &[(port(&two), "UP", 1)]);
    assert_eq!(served(&ingress, "/a", 2).await, [("three".to_owned(), 2)].into());
    eureka.server.come_back();
    until_served(&ingress, "/a", &[("two", 3)]).await;
    assert!(!ingress.said().contains("s3cret"), "{}", ingress.said());
}

#[tokio::test]
async fn instances_of_nacos_are_asked_for_by_namespace_and_group_with_a_token_and_a_signature() {
    let world = World::new();
    let [one, two, three] = apps();
    let mut nacos = NacosDouble::start("nacos", "p:ss", Some(("an access key", "a secret key")));
    let host = |app: &App, weight: f64, healthy: bool, enabled: bool| {
        json!({ "ip": "127.0.0.1", "port": port(app), "weight": weight, "healthy": healthy,
                "enabled": enabled, "metadata": {} })
    };
    nacos.set(
        ("public", "DEFAULT_GROUP", "shop"),
        &[
            host(&one, 3.0, true, true),
            host(&two, 1.0, true, true),
            host(&three, 1.0, false, true),
            host(&three, 1.0, true, false),
        ],
    );
    nacos.set(("test", "team", "shop"), &[host(&three, 0.5, true, true)]);
    let discovery = json!({ "nacos": {
        "host": [format!("http://nacos:${{{{PASSWORD}}}}@{}", nacos.server.address)],
        "fetch_interval": 1, "access_key": "an access key", "secret_key": "${{SECRET}}",
    } });
    let mut elsewhere = of("nacos", "shop");
    elsewhere["discovery_args"] = json!({ "namespace_id": "test", "group_name": "team" });
    let ingress = part(&world, &discovery, &[("/a", of("nacos", "shop")), ("/b", elsewhere)])
        .env("PASSWORD", "p:ss")
        .env("SECRET", "a secret key")
        .start();
    until_served(&ingress, "/a", &[("one", 6), ("two", 2)]).await;
    until_served(&ingress, "/b", &[("three", 2)]).await;
    nacos.set(
        ("public", "DEFAULT_GROUP", "shop"),
        &[host(&two, 0.0, true, true), host(&three, 1.0, true, true)],
    );
    until_served(&ingress, "/a", &[("three", 3)]).await;
    assert_eq!(nacos.logins(), 1, "a token is used until it ends");

    // Who is forgotten logs in again.
    nacos.forget_tokens();
    nacos.set(("public", "DEFAULT_GROUP", "shop"), &[host(&one, 1.0, true, true)]);
    until_served(&ingress, "/a", &[("one", 3)]).await;
    assert_eq!(nacos.logins(), 2);

    nacos.server.go_away();
    ingress.logs("the registry does not answer as it should");
    nacos.set(("public", "DEFAULT_GROUP", "shop"), &[host(&two, 1.0, true, true)]);
    assert_eq!(served(&ingress, "/a", 2).await, [("one".to_owned(), 2)].into());
    nacos.server.come_back();
    until_served(&ingress, "/a", &[("two", 3)]).await;
    for secret in ["p:ss", "a secret key", "token 0"] {
        assert!(!ingress.said().contains(secret), "{}", ingress.said());
    }
}

#[tokio::test]
async fn endpoints_of_kubernetes_are_listed_once_and_watched_from_there() {
    let world = World::new();
    let [one, two, three] = apps();
    let mut cluster = ClusterDouble::start("endpoints", None);
    cluster.put("shop", "cart", &[port(&one), port(&two)]);
    // More than one page.
    for number in 0..4 {
        cluster.put("shop", &format!("other{number}"), &[1]);
    }
    let discovery = json!({ "kubernetes": {
        "service": { "schema": "http", "host": "127.0.0.1",
                     "port": cluster.server.address.port().to_string() },
        "client": { "token": "${KUBERNETES_TOKEN}" },
        "default_weight": 7,
    } });
    let routes = [
        ("/a", of("kubernetes", "shop/cart:http")),
        ("/b", of("kubernetes", "shop/late:http")),
        ("/c", of("kubernetes", "shop/cart:none")),
    ];
    let ingress = part(&world, &discovery, &routes).env("KUBERNETES_TOKEN", "first").start();
    until_served(&ingress, "/a", &[("one", 2), ("two", 2)]).await;
    until_served(&ingress, "/b", &[("503", 1)]).await;
    until_served(&ingress, "/c", &[("503", 1)]).await;
    assert_eq!(cluster.pages(), 3);

    cluster.put("shop", "cart", &[port(&three)]);
    until_served(&ingress, "/a", &[("three", 3)]).await;
    cluster.put("shop", "late", &[port(&one)]);
    until_served(&ingress, "/b", &[("one", 2)]).await;
    cluster.delete("shop", "late");
    until_served(&ingress, "/b", &[("503", 1)]).await;

    // A watch that ends is taken up where the last event or bookmark was, without a list.
    let version = cluster.bookmark();
    cluster.put("shop", "late", &[port(&two)]);
    until_served(&ingress, "/b", &[("two", 2)]).await;
    cluster.end_watches();
    eventually_async("the next watch", || async {
        cluster.watched_from().contains(&(version + 1)).then_some(())
    })
    .await;
    cluster.put("shop", "cart", &[port(&one)]);
    until_served(&ingress, "/a", &[("one", 3)]).await;
    assert_eq!(cluster.pages(), 3);

    // A version that is gone: listed again.
    cluster.compact();
    eventually_async("another list", || async { (cluster.pages() > 3).then_some(()) }).await;
    cluster.put("shop", "cart", &[port(&two)]);
    until_served(&ingress, "/a", &[("two", 3)]).await;

    cluster.server.go_away();
    ingress.logs("the registry does not answer as it should");
    assert_eq!(served(&ingress, "/a", 2).await, [("two".to_owned(), 2)].into());
    // What happens in the meantime is told on the next watch.
    cluster.put("shop", "cart", &[port(&three)]);
    cluster.server.come_back();
    until_served(&ingress, "/a", &[("three", 3)]).await;
}

#[tokio::test]
async fn slices_of_several_clusters_are_followed_over_tls_with_a_token_that_changes() {
    let world = World::new();
    let [one, two, three] = apps();
    let (config, authority) = certificate(&world);
    let near = ClusterDouble::start("endpointslices", Some(config.clone()));
    let far = ClusterDouble::start("endpointslices", Some(config));
    let token = world.folder.join("token");
    std::fs::write(&token, "first\n").unwrap();
    near.put("shop", "cart", &[port(&one)]);
    near.put("shop", "cart", &[port(&two)]);
    far.put("shop-a", "cart", &[port(&three)]);
    far.put("other", "cart", &[port(&one)]);
    let settings = |id: &str, cluster: &ClusterDouble, selector: Value| {
        json!({
            "id": id,
            "service": { "host": "127.0.0.1", "port": cluster.server.address.port() },
            "client": { "token_file": token, "ca_file": authority },
            "namespace_selector": selector, "watch_endpoint_slices": true,
        })
    };
    let discovery = json!({ "kubernetes": [
        settings("near", &near, json!({ "equal": "shop" })),
        settings("far", &far, json!({ "match": ["shop-[a-z]+"] })),
    ] });
    let routes = [
        ("/a", of("kubernetes", "near/shop/cart:http")),
        ("/b", of("kubernetes", "far/shop-a/cart:http")),
        ("/c", of("kubernetes", "far/other/cart:http")),
    ];
    let ingress = ingress(&world, &discovery, &routes);
    until_served(&ingress, "/a", &[("one", 2), ("two", 2)]).await;
    until_served(&ingress, "/b", &[("three", 2)]).await;
    until_served(&ingress, "/c", &[("503", 1)]).await;
    assert!(near.server.asked().iter().all(|asked| asked.path.contains("/namespaces/shop/")));

    // One slice of two goes.
    near.delete("shop", &format!("cart-{}", port(&one)));
    until_served(&ingress, "/a", &[("two", 3)]).await;

    // The kubelet has replaced the token.
    std::fs::write(&token, "second").unwrap();
    near.set_token("second");
    near.compact();
    near.put("shop", "cart", &[port(&three)]);
    until_served(&ingress, "/a", &[("three", 2), ("two", 2)]).await;
}

#[tokio::test]
async fn records_are_nodes_with_the_ports_weights_and_priorities_of_services() {
    let world = World::new();
    let [one, two, three] = apps();
    let dns = DnsDouble::start();
    dns.set_here("host.test");
    dns.set_services(
        "_http._tcp.shop.test",
        &[
            (10, 3, port(&one), "host.test."),
            (10, 1, port(&two), "host.test."),
            (20, 9, port(&three), "host.test."),
        ],
    );
    let discovery = json!({ "dns": { "servers": [dns.address.to_string()] } });
    let routes = [
        ("/srv", of("dns", "_http._tcp.Shop.test")),
        ("/a", of("dns", &format!("host.test:{}", port(&two)))),
        ("/none", of("dns", "nobody.test")),
    ];
    let ingress = ingress(&world, &discovery, &routes);
    until_served(&ingress, "/srv", &[("one", 6), ("two", 2)]).await;
    until_served(&ingress, "/a", &[("two", 2)]).await;
    until_served(&ingress, "/none", &[("503", 2)]).await;
    // The type that had records is asked for first from then on.
    eventually_async("a name without services is asked for its address first", || async {
        let asked = dns.asked("host.test");
        let at = asked.iter().position(|kind| *kind == RecordType::SRV)?;
        (asked.len() > at + 6 && asked.iter().filter(|kind| **kind == RecordType::SRV).count() == 1)
            .then_some(())
    })
    .await;

    // Who comes later counts when those before are gone.
    dns.set_services(
        "_http._tcp.shop.test",
        &[(10, 1, crate::world::free_port(), "host.test."), (20, 0, port(&three), "host.test.")],
    );
    until_served(&ingress, "/srv", &[("three", 3)]).await;

    dns.is_silent(true);
    ingress.logs("the registry does not answer as it should");
    assert_eq!(served(&ingress, "/srv", 3).await, [("three".to_owned(), 3)].into());
    dns.set_services("_http._tcp.shop.test", &[(1, 1, port(&two), "host.test.")]);
    dns.is_silent(false);
    until_served(&ingress, "/srv", &[("two", 3)]).await;
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_by_name_and_the_version_before_stays() {
    let world = World::new();
    let app = App::echo("before");
    let consul = ConsulDouble::start();
    consul.register("a", "a", port(&app));
    let control = world.control().start();
    let ingress = world
        .ingress()
        .set("discovery", &json!({ "consul": { "servers": [consul.url()] } }))
        .fed_by(&control)
        .start();
    let admin = control.admin();
    let route = json!({ "uri": "/a", "upstream_id": "u" });
    admin.put("/upstreams/u", &of("consul", "a")).await;
    let revision = admin.put("/routes/a", &route).await;
    admin.applied(revision, 1).await;
    until_served(&ingress, "/a", &[("before", 2)]).await;

    // The control plane does not know which registries its data planes have.
    let revision = admin.put("/upstreams/u", &of("eureka", "A")).await;
    let state = admin.applied(revision, 1).await.to_string();
    assert!(
        state.contains("discovery_type: eureka is not among the settings of this process"),
        "{state}"
    );
    assert_eq!(served(&ingress, "/a", 2).await, [("before".to_owned(), 2)].into());

    for (upstream, sentence) in [
        (of("tars", "a"), "discovery_type"),
        (json!({ "service_name": "a" }), "value should match only one schema"),
        (
            json!({ "service_name": "a", "discovery_type": "consul", "nodes": {} }),
            "value should match only one schema",
        ),
        (of("kubernetes", "cart"), "service_name: expected [id/]namespace/name:port"),
        (
            json!({ "service_name": "a", "discovery_type": "consul",
                    "discovery_args": { "group_name": "g" } }),
            "discovery_args: consul takes none",
        ),
    ] {
        let answer = admin.ask("PUT", "/upstreams/x", Some(&upstream)).await;
        assert_eq!(answer.status, 400, "{upstream}: {}", answer.text());
        assert!(answer.text().contains(sentence), "{upstream}: {}", answer.text());
    }
}

#[tokio::test]
async fn settings_that_make_no_sense_keep_the_process_from_starting() {
    let world = World::new();
    for (discovery, sentence) in [
        (
            json!({ "consul": { "servers": [] } }),
            "setting discovery.consul.servers: expected at least one",
        ),
        (json!({ "consul": { "server": ["http://a"] } }), "unknown field `server`"),
        (json!({ "etcd": {} }), "unknown field `etcd`"),
        (
            json!({ "nacos": { "host": ["nacos:8848"] } }),
            "setting discovery.nacos.host: expected http://host:port",
        ),
        (
            json!({ "kubernetes": { "namespace_selectors": {} } }),
            "unknown field `namespace_selectors`",
        ),
    ] {
        let ended = part(&world, &discovery, &[]).fails();
        assert!(ended.err.contains(sentence), "{discovery}: {}", ended.err);
    }
}

#[tokio::test]
async fn a_server_that_speaks_something_else_changes_nothing() {
    let world = World::new();
    let app = App::echo("one");
    let consul = ConsulDouble::start();
    consul.register("a", "a", port(&app));
    let strange = Server::start(|_| async { whole(200, "<html>a login page</html>") });
    let discovery = json!({
        "consul": { "servers": [consul.url(), strange.url()] },
        "eureka": { "host": [strange.url()], "fetch_interval": 1 },
    });
    let routes = [("/a", of("consul", "a")), ("/b", of("eureka", "A"))];
    let ingress = ingress(&world, &discovery, &routes);
    until_served(&ingress, "/a", &[("one", 2)]).await;
    until_served(&ingress, "/b", &[("503", 1)]).await;
    for registry in ["consul", "eureka"] {
        let registry = format!("registry=\"{registry}\"");
        eventually(&registry, || {
            let errors = ingress.errors();
            let mut strange =
                errors.lines().filter(|line| line.contains("something else than expected"));
            strange.any(|line| line.contains(&registry)).then_some(())
        });
    }
}
