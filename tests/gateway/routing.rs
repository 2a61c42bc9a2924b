//! How a request finds its route, and what a route is made of: kinds of routers, paths, hosts, conditions, and what services,
//! plugin configs, consumers and upstreams bring.

use serde_json::{Value, json};

use super::world::{Answer, App, Process, World, get, raw_to, send};

/// An ingress with these resources, and settings of the router where they are given.
fn ingress(world: &World, router: Option<Value>, resources: &Value) -> Process {
    let part = world.ingress().resources(resources);
    let part = match router {
        Some(router) => part.set("router", &router),
        None => part,
    };
    part.start()
}

/// A route to `app` that writes its id into the request.
fn route(app: &App, id: &str, fields: &Value) -> Value {
    let mut route = json!({
        "id": id,
        "upstream": { "nodes": { app.address.to_string(): 1 } },
        "plugins": { "proxy-rewrite": { "headers": { "set": { "x-route": id, "x-uri": "$uri" } } } },
    });
    for (name, value) in fields.as_object().unwrap() {
        route[name] = value.clone();
    }
    route
}

/// The routes of a table: id and fields.
fn routes(app: &App, table: &[(&str, Value)]) -> Value {
    let all: Vec<Value> = table.iter().map(|(id, fields)| route(app, id, fields)).collect();
    json!({ "routes": all })
}

/// Which route answered, or the status.
fn answered(answer: &Answer) -> String {
    match answer.status {
        200 => answer.json()["headers"]["x-route"].as_str().unwrap_or("none").to_owned(),
        status => status.to_string(),
    }
}

async fn ask(ingress: &Process, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    send(ingress.address("ingress"), method, path, headers, "").await
}

/// One request as raw bytes: a path that no client library would send.
async fn ask_raw(ingress: &Process, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let answer = raw_to(ingress.address("ingress"), request.as_bytes()).await;
    let status = answer.split(' ').nth(1).and_then(|text| text.parse().ok());
    (status.unwrap_or_else(|| panic!("{path}: {answer}")), answer)
}

#[tokio::test]
async fn the_default_router_looks_at_the_host_first_then_at_the_exact_path_then_at_the_longest_prefix()
 {
    let world = World::new();
    let app = App::echo("app");
    let ingress = ingress(
        &world,
        None,
        &routes(
            &app,
            &[
                ("all", json!({ "uri": "/*" })),
                ("exact", json!({ "uri": "/a/b" })),
                ("prefix", json!({ "uri": "/a/*", "priority": 100 })),
                ("longer", json!({ "uri": "/a/b*", "priority": -1 })),
                ("post", json!({ "uri": "/a/b", "methods": ["POST"], "priority": 1 })),
                ("first", json!({ "uri": "/tie", "desc": "by its id before the next" })),
                ("second", json!({ "uri": "/tie" })),
                ("higher", json!({ "uri": "/high", "priority": 2 })),
                ("a-lower", json!({ "uri": "/high", "priority": 1 })),
                ("host", json!({ "uri": "/*", "host": "Shop.Test", "priority": -9 })),
                ("wild", json!({ "uri": "/*", "hosts": ["*.shop.test", "x.test"] })),
                ("deep", json!({ "uri": "/*", "host": "*.eu.shop.test" })),
                ("colon", json!({ "uri": "/c/:id" })),
                ("off", json!({ "uri": "/a/b/c", "status": 0 })),
                ("get", json!({ "uri": "/get", "methods": ["GET"] })),
                ("near", json!({ "uri": "/near", "remote_addrs": ["127.0.0.0/8", "::1"] })),
                ("far", json!({ "uri": "/far", "remote_addr": "192.0.2.1" })),
            ],
        ),
    );
    for (method, host, path, expected) in [
        ("GET", "a", "/a/b", "exact"),
        ("POST", "a", "/a/b", "post"),
        ("GET", "a", "/a/bc", "longer"),
        ("GET", "a", "/a/x", "prefix"),
        ("GET", "a", "/a/", "prefix"),
        ("GET", "a", "/a", "all"),
        ("GET", "a", "/tie", "first"),
        ("GET", "a", "/high", "higher"),
        ("GET", "shop.test", "/a/b", "host"),
        ("GET", "SHOP.test:8080", "/", "host"),
        ("GET", "shop.test.", "/", "host"),
        ("GET", "www.shop.test", "/", "wild"),
        ("GET", "a.b.shop.test", "/", "wild"),
        ("GET", "X.test", "/", "wild"),
        ("GET", "a.b.eu.shop.test", "/", "deep"),
        ("GET", "eu.shop.test", "/", "wild"),
        ("GET", "notshop.test", "/", "all"),
        ("GET", "a", "/c/7", "all"),
        ("GET", "a", "/c/:id", "colon"),
        // A route that is off is as if it were not there.
        ("GET", "a", "/a/b/c", "longer"),
        ("GET", "a", "/get", "get"),
        ("POST", "a", "/get", "all"),
        ("GET", "a", "/near", "near"),
        ("GET", "a", "/far", "all"),
        // Read as nginx reads it.
        ("GET", "a", "/x/..//a/%62", "exact"),
        ("GET", "a", "/a%2Fb", "exact"),
    ] {
        let answer = ask(&ingress, method, path, &[("host", host)]).await;
        assert_eq!(answered(&answer), expected, "{method} {host}{path}");
        // And forwarded as it came.
        assert_eq!(answer.json()["path"], path, "{host}");
    }
    // HEAD is not implied by GET: the catch-all answered it.
    let before = app.requests();
    assert_eq!(ask(&ingress, "HEAD", "/get", &[]).await.status, 200);
    assert_eq!(app.requests(), before + 1);
    for path in ["/..", "/a/../..", "/%00"] {
        assert_eq!(ask_raw(&ingress, path).await.0, 400, "{path}");
    }
}

#[tokio::test]
async fn the_head_of_a_route_for_get_alone_is_no_route() {
    let world = World::new();
    let app = App::echo("app");
    let table = [("get", json!({ "uri": "/get", "methods": ["GET"] }))];
    let ingress = ingress(&world, None, &routes(&app, &table));
    let not_found = get(ingress.address("ingress"), "/other").await;
    assert_eq!(not_found.json(), json!({ "error_msg": "404 Route Not Found" }));
    for (method, status) in [("GET", 200), ("HEAD", 404), ("POST", 404), ("PROPFIND", 404)] {
        assert_eq!(ask(&ingress, method, "/get", &[]).await.status, status, "{method}");
    }
}

#[tokio::test]
async fn where_the_path_decides_the_host_is_one_condition_among_others() {
    let world = World::new();
    let app = App::echo("app");
    let table = [
        ("host", json!({ "uri": "/*", "host": "shop.test" })),
        ("path", json!({ "uri": "/a/*" })),
        ("high", json!({ "uri": "/*", "priority": 5, "hosts": ["*.shop.test"] })),
        ("all", json!({ "uri": "/*", "priority": -1 })),
    ];
    let router = json!({ "http": "radixtree_uri" });
    let ingress = ingress(&world, Some(router), &routes(&app, &table));
    for (host, path, expected) in [
        ("shop.test", "/x", "host"),
        ("shop.test", "/a/x", "path"),
        ("www.shop.test", "/x", "high"),
        ("other", "/x", "all"),
    ] {
        let answer = ask(&ingress, "GET", path, &[("host", host)]).await;
        assert_eq!(answered(&answer), expected, "{host}{path}");
    }
}

#[tokio::test]
async fn parameters_of_a_path_are_caught_and_can_be_used() {
    let world = World::new();
    let app = App::echo("app");
    let with = |uri: &str, name: &str| {
        let set = json!({ "x-route": uri, "x-param": format!("${{uri_param_{name}}}") });
        json!({ "uri": uri, "plugins": { "proxy-rewrite": { "headers": { "set": set } } } })
    };
    let table = [
        ("1", with("/user/:id", "id")),
        ("2", with("/user/:id/posts/:post", "post")),
        ("3", with("/user/me", "id")),
        ("4", with("/files/*path", "path")),
        ("5", with("/mid/*inside/end", "inside")),
        ("6", with("/user/*", "id")),
    ];
    let router = json!({ "http": "radixtree_uri_with_parameter" });
    let ingress = ingress(&world, Some(router), &routes(&app, &table));
    for (path, route, caught) in [
        ("/user/7", "/user/:id", Some("7")),
        ("/user/a%20b", "/user/:id", Some("a b")),
        ("/user/7/posts/9", "/user/:id/posts/:post", Some("9")),
        ("/user/me", "/user/me", None),
        ("/user/7/x", "/user/*", None),
        ("/files/a/b.txt", "/files/*path", Some("a/b.txt")),
        ("/mid/a/b/end", "/mid/*inside/end", Some("a/b")),
    ] {
        let answer = get(ingress.address("ingress"), path).await;
        assert_eq!(answered(&answer), route, "{path}");
        let seen = answer.json()["headers"]["x-param"].as_str().map(str::to_owned);
        assert_eq!(seen.filter(|text| !text.is_empty()).as_deref(), caught, "{path}");
    }
    assert_eq!(get(ingress.address("ingress"), "/mid/end").await.status, 404);
}

#[tokio::test]
async fn the_options_change_how_paths_are_matched_and_not_what_is_forwarded() {
    let world = World::new();
    let app = App::echo("app");
    let table = [
        ("a", json!({ "uri": "/a" })),
        ("b", json!({ "uri": "/a/b" })),
        ("one", json!({ "uri": "/blog/:name" })),
        ("two", json!({ "uri": "/blog/:name/:page" })),
    ];
    let resources = routes(&app, &table);
    for (option, requests) in [
        (
            "delete_uri_tail_slash",
            &[("/a/", "a", "/a"), ("/a/b/", "b", "/a/b"), ("/a;x", "404", ""), ("/a", "a", "/a")][..],
        ),
        (
            "normalize_uri_like_servlet",
            &[
                ("/a;v=1", "a", "/a"),
                ("/a;v=1/b;w", "b", "/a/b"),
                ("/a/..;/a", "400", ""),
                ("/;x/a", "400", ""),
                ("/a/", "404", ""),
            ],
        ),
        (
            "match_uri_encoded_slash",
            &[
                ("/blog/cat%2fdog", "one", "/blog/cat/dog"),
                ("/blog/cat/dog", "two", "/blog/cat/dog"),
                ("/blog/x%2F..%2Fdog", "one", "/blog/dog"),
                ("/a%2Fb", "404", ""),
            ],
        ),
        (
            "none",
            &[
                ("/a/", "404", ""),
                ("/a;v=1", "404", ""),
                ("/blog/cat%2Fdog", "two", "/blog/cat/dog"),
            ],
        ),
    ] {
        let mut router = json!({ "http": "radixtree_uri_with_parameter" });
        if option != "none" {
            router[option] = json!(true);
        }
        let part = world.ingress().named(option).resources(&resources).set("router", &router);
        let ingress = part.start();
        for (path, expected, uri) in requests {
            let answer = get(ingress.address("ingress"), path).await;
            assert_eq!(answered(&answer), *expected, "{option}: {path}");
            if answer.status == 200 {
                let seen = answer.json();
                assert_eq!(seen["path"], *path, "{option}: forwarded as it came");
                assert_eq!(seen["headers"]["x-uri"], *uri, "{option}: {path}");
            }
        }
    }
}

#[tokio::test]
async fn a_route_that_the_settings_cannot_place_is_refused_by_name_on_either_side() {
    let world = World::new();
    let kind = json!({ "http": "radixtree_uri_with_parameter" });
    let strict = world.control().named("strict").set("router", &kind).start();
    let bad = json!({ "uri": "/a/:", "upstream": { "nodes": { "127.0.0.1:1": 1 } } });
    let refused = strict.admin().ask("PUT", "/routes/1", Some(&bad)).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("uri '/a/:': a parameter has no name"), "{}", refused.text());

    // The control plane's own kind has no parameters: it takes the route. The data plane names it.
    let control = world.control().start();
    let ingress = world.ingress().fed_by(&control).set("router", &kind).start();
    let admin = control.admin();
    let revision = admin.put("/routes/1", &bad).await;
    let state = admin.applied(revision, 1).await;
    assert!(state.to_string().contains("a parameter has no name"), "{state}");
    assert_eq!(get(ingress.address("ingress"), "/a/x").await.status, 404);

    let unknown = world.ingress().named("bad").resources(&json!({}));
    let ended = unknown.set("router", &json!({ "http": "radixtree" })).fails();
    assert!(ended.err.contains("radixtree") || ended.out.contains("radixtree"), "{ended:?}");
}

#[tokio::test]
async fn conditions_on_the_request_mean_what_they_mean_in_apisix() {
    let world = World::new();
    let app = App::echo("app");
    let table: Vec<(Value, &str, bool)> = vec![
        (json!([["arg_n", "==", "jack"]]), "/?n=jack", true),
        (json!([["arg_n", "==", "jack"]]), "/?n=joe", false),
        (json!([["arg_n", "jack"]]), "/?n=jack", true),
        (json!([["arg_n", "==", null]]), "/", true),
        (json!([["arg_n", "==", null]]), "/?n=", false),
        (json!([["arg_n", "~=", "jack"]]), "/", true),
        (json!([["arg_n", "~=", null]]), "/", false),
        (json!([["arg_n", "==", 7]]), "/?n=7.0", true),
        (json!([["arg_n", "==", 7]]), "/?n=x", false),
        (json!([["arg_n", "~=", 7]]), "/?n=x", true),
        (json!([["arg_n", "~=", 7]]), "/", true),
        (json!([["arg_n", ">", 7]]), "/?n=10", true),
        (json!([["arg_n", ">", "7"]]), "/?n=10", true),
        (json!([["arg_n", ">=", 7]]), "/?n=7", true),
        (json!([["arg_n", "<", 7]]), "/?n=x", false),
        (json!([["arg_n", "<", 7]]), "/", false),
        (json!([["arg_n", "<=", 7]]), "/?n=7", true),
        (json!([["arg_n", "~~", "a.k"]]), "/?n=jack!", true),
        (json!([["arg_n", "~~", "^a"]]), "/?n=jack", false),
        (json!([["arg_n", "~~", ".*"]]), "/", false),
        (json!([["arg_n", "~*", "JACK"]]), "/?n=jack", true),
        (json!([["arg_n", "in", ["joe", "jack"]]]), "/?n=jack", true),
        (json!([["arg_n", "IN", ["joe"]]]), "/?n=jack", false),
        (json!([["arg_n", "has", "b"]]), "/?n=a&n=b", true),
        (json!([["arg_n", "has", "c"]]), "/?n=a&n=b", false),
        (json!([["remote_addr", "ipmatch", ["127.0.0.0/8"]]]), "/", true),
        (json!([["remote_addr", "ipmatch", ["10.0.0.0/8", "::1"]]]), "/", false),
        (json!([["arg_n", "!", "==", "jack"]]), "/", true),
        (json!([["arg_n", "!", "in", ["jack"]]]), "/?n=jack", false),
        (json!([["arg_n", "!", "~~", "j"]]), "/", true),
        (json!(["OR", ["arg_n", "==", "a"], ["arg_m", "==", "b"]]), "/?m=b", true),
        (json!(["AND", ["arg_n", "==", "a"], ["arg_m", "==", "b"]]), "/?m=b", false),
        (json!(["!AND", ["arg_n", "==", "a"], ["arg_m", "==", "b"]]), "/?m=b", true),
        (json!(["!OR", ["arg_n", "==", "a"], ["arg_m", "==", "b"]]), "/?m=b", false),
        (
            json!([
                ["arg_m", "b"],
                ["OR", ["arg_n", "a"], ["AND", ["arg_o", "c"], ["arg_p", "d"]]]
            ]),
            "/?m=b&o=c&p=d",
            true,
        ),
        (
            json!(["OR", [["arg_m", "b"], ["arg_n", "a"]], [["arg_o", "c"], ["arg_p", "d"]]]),
            "/?o=c&p=d",
            true,
        ),
        (json!([["http_x_key", "==", "k"]]), "/", true),
        (json!([["cookie_c", "==", "2"]]), "/", true),
        (json!([["http_host", "~~", "^h[0-9]+$"]]), "/", true),
        (json!([["request_method", "==", "GET"]]), "/", true),
        (json!([["uri", "==", "/"]]), "/x/..", true),
        // What only later steps know is absent when a route is looked for.
        (json!([["consumer_name", "==", null], ["balancer_ip", "==", null]]), "/", true),
        (json!([]), "/", true),
    ];
    let resources: Vec<Value> = table
        .iter()
        .enumerate()
        .map(|(at, (vars, ..))| {
            let (id, host) = (format!("r{at}"), format!("h{at}"));
            route(&app, &id, &json!({ "uri": "/*", "host": host, "vars": vars }))
        })
        .collect();
    let ingress = ingress(&world, None, &json!({ "routes": resources }));
    for (at, (vars, path, holds)) in table.iter().enumerate() {
        let host = format!("h{at}");
        let headers = [("host", &*host), ("x-key", "k"), ("cookie", "a=1; c=2")];
        let status = if *holds { 200 } else { 404 };
        let answer = ask(&ingress, "GET", path, &headers).await;
        assert_eq!(answer.status, status, "{vars} on {path}");
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_when_it_is_written_with_a_sentence_that_says_why() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let upstream = json!({ "nodes": { "127.0.0.1:1": 1 } });
    for (fields, says) in [
        (json!({ "vars": ["arg_a", "==", "b"] }), "rule should be wrapped inside brackets"),
        (json!({ "vars": [["arg_a", "=>", "b"]] }), "invalid operator '=>'"),
        (json!({ "vars": [["arg_a", "not", "==", "b"]] }), "bad 'not' expression"),
        (json!({ "vars": ["OR", ["arg_a", "b"]] }), "rule too short"),
        (json!({ "vars": [["arg_a"]] }), "invalid expression"),
        (json!({ "vars": [["arg_a", "~~", "(?=b)"]] }), "look-around"),
        (json!({ "vars": [["remote_addr", "ipmatch", ["10.0.0.0/40"]]] }), "10.0.0.0/40"),
        (json!({ "vars": [["no_such_thing", "==", "b"]] }), "unknown variable 'no_such_thing'"),
        (json!({ "vars": [["post_arg_x", "==", "b"]] }), "before the body has come"),
        (json!({ "vars": [["graphql_operation", "==", "query"]] }), "before the body has come"),
        (json!({ "filter_func": "function(vars) return true end" }), "filter_func"),
        (json!({ "script": "return {}" }), "script"),
        (json!({ "script_id": "1" }), "script_id"),
        (json!({ "uri": "/a/b*c" }), "a star stands at the end"),
        (json!({ "host": "a.test:80" }), "compared without its port"),
        (json!({ "host": "a.*.test" }), "host"),
        (json!({ "remote_addr": "nowhere" }), "remote_addr"),
        (json!({ "methods": ["FETCH"] }), "methods"),
        (json!({ "service_id": "none" }), "none"),
        (json!({ "plugin_config_id": "none" }), "none"),
        (json!({ "upstream_id": "none" }), "none"),
    ] {
        let mut body = json!({ "uri": "/*", "upstream": upstream });
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = admin.ask("PUT", "/routes/1", Some(&body)).await;
        assert_eq!(answer.status, 400, "{fields}");
        assert!(answer.text().contains(says), "{fields}: {}", answer.text());
    }
    assert_eq!(admin.ask("GET", "/routes/1", None).await.status, 404);
}

/// A plugin that writes `tag` into the request and `tag` of this kind.
fn tag(tag: &str) -> Value {
    json!({ "proxy-rewrite": { "headers": { "set": { "x-tag": tag } } } })
}

/// Another plugin, with a tag in the response.
fn mark(tag: &str) -> Value {
    json!({ "response-rewrite": { "headers": { "set": { "x-mark": tag } } } })
}

fn both(one: Value, two: &Value) -> Value {
    let mut all = one;
    for (name, value) in two.as_object().unwrap() {
        all[name] = value.clone();
    }
    all
}

#[tokio::test]
async fn plugins_of_route_plugin_config_and_service_replace_one_another_whole() {
    let world = World::new();
    let app = App::echo("app");
    let nodes = json!({ "nodes": { app.address.to_string(): 1 } });
    let off = json!({ "proxy-rewrite": { "_meta": { "disable": true } } });
    let more = json!({ "proxy-rewrite": { "headers": { "set": { "x-more": "service" } } } });
    let ingress = ingress(
        &world,
        None,
        &json!({
            "services": [
                { "id": "s", "plugins": both(tag("service"), &mark("service")), "upstream": nodes },
                { "id": "more", "plugins": more, "upstream": nodes },
            ],
            "plugin_configs": [{ "id": "c", "plugins": tag("config") }],
            "routes": [
                { "id": "1", "uri": "/service", "service_id": "s" },
                { "id": "2", "uri": "/config", "service_id": "s", "plugin_config_id": "c" },
                { "id": "3", "uri": "/route", "service_id": "s", "plugin_config_id": "c", "plugins": tag("route") },
                { "id": "4", "uri": "/off", "service_id": "s", "plugins": off },
                { "id": "5", "uri": "/whole", "service_id": "more", "plugins": tag("route") },
                { "id": "6", "uri": "/plain", "plugin_config_id": "c", "upstream": nodes },
            ],
        }),
    );
    for (path, tag, mark) in [
        ("/service", Some("service"), Some("service")),
        ("/config", Some("config"), Some("service")),
        ("/route", Some("route"), Some("service")),
        ("/off", None, Some("service")),
        ("/whole", Some("route"), None),
        ("/plain", Some("config"), None),
    ] {
        let answer = get(ingress.address("ingress"), path).await;
        let seen = answer.json();
        assert_eq!(seen["headers"]["x-tag"].as_str(), tag, "{path}");
        assert_eq!(answer.header("x-mark"), mark, "{path}");
        // No field of the service's settings shines through the route's.
        assert_eq!(seen["headers"].get("x-more"), None, "{path}");
    }
}

#[tokio::test]
async fn a_consumers_plugins_win_over_its_groups_and_those_over_the_routes_after_any_other_change()
{
    let world = World::new();
    let app = App::echo("app");
    let person = |name: &str, key: &str, group: Option<&str>, plugins: Value| {
        let plugins = both(json!({ "key-auth": { "key": key } }), &plugins);
        let mut consumer = json!({ "username": name, "plugins": plugins });
        if let Some(group) = group {
            consumer["group_id"] = json!(group);
        }
        consumer
    };
    let resources = |extra: u32| {
        json!({
            "consumer_groups": [{ "id": "g", "plugins": mark("group") }],
            "consumers": [
                person("own", "k-own", Some("g"), mark("consumer")),
                person("grouped", "k-grouped", Some("g"), json!({})),
                person("plain", "k-plain", None, json!({})),
                person("lost", "k-lost", Some("gone"), json!({})),
            ],
            "global_rules": [{ "id": "1", "plugins": { "request-id": {} } }],
            "routes": [
                { "id": "1", "uri": "/*", "plugins": both(json!({ "key-auth": {} }), &mark("route")),
                  "upstream": { "nodes": { app.address.to_string(): 1 } } },
                { "id": "2", "uri": format!("/other/{extra}"), "upstream": { "nodes": { "127.0.0.1:1": 1 } } },
            ],
        })
    };
    let ingress = ingress(&world, None, &resources(0));
    for round in 1..3 {
        for (key, status, mark) in [
            ("k-own", 200, Some("consumer")),
            ("k-grouped", 200, Some("group")),
            ("k-plain", 200, Some("route")),
            ("k-lost", 503, Some("route")),
            ("nobody", 401, Some("route")),
        ] {
            let answer = ask(&ingress, "GET", "/x", &[("apikey", key)]).await;
            assert_eq!((answer.status, answer.header("x-mark")), (status, mark), "{key}");
            // The global rule has run for everybody.
            assert!(answer.header("x-request-id").is_some(), "{key}");
        }
        // For what matches no route as well.
        let answer = ask(&ingress, "PROPFIND", "*", &[]).await;
        assert!(answer.status >= 400);
        // A change elsewhere changes nothing here.
        ingress.write_resources(&resources(round));
        let path = format!("/other/{round}");
        super::world::eventually_async("the change is in force", || async {
            (get(ingress.address("ingress"), &path).await.status == 502).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_unknown_or_missing_answers_with_apisixs_statuses() {
    let world = World::new();
    let nodes = json!({ "nodes": { "127.0.0.1:1": 1 } });
    let ingress = ingress(
        &world,
        None,
        &json!({
            "services": [{ "id": "bare" }, { "id": "lost", "upstream_id": "gone" }],
            "upstreams": [{ "id": "empty", "nodes": {} }],
            "routes": [
                { "id": "1", "uri": "/upstream", "upstream_id": "gone" },
                { "id": "2", "uri": "/upstream-and-own", "upstream_id": "gone", "upstream": nodes },
                { "id": "3", "uri": "/service", "service_id": "gone" },
                { "id": "4", "uri": "/config", "plugin_config_id": "gone", "upstream": nodes },
                { "id": "5", "uri": "/both", "plugin_config_id": "gone", "service_id": "gone" },
                { "id": "6", "uri": "/none", "plugins": tag("x") },
                { "id": "7", "uri": "/bare", "service_id": "bare" },
                { "id": "8", "uri": "/service-upstream", "service_id": "lost" },
                { "id": "9", "uri": "/empty", "upstream_id": "empty" },
                { "id": "10", "uri": "/own-empty", "upstream": { "nodes": {} } },
                // A plugin that answers needs no upstream.
                { "id": "11", "uri": "/answered", "plugins": { "redirect": { "uri": "/x", "ret_code": 307 } } },
            ],
        }),
    );
    for (path, status) in [
        ("/upstream", 502),
        ("/upstream-and-own", 502),
        ("/service", 404),
        ("/config", 503),
        ("/both", 503),
        ("/none", 503),
        ("/bare", 503),
        ("/service-upstream", 502),
        ("/empty", 503),
        ("/own-empty", 503),
        ("/answered", 307),
        ("/elsewhere", 404),
    ] {
        assert_eq!(get(ingress.address("ingress"), path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn the_upstream_is_the_routes_by_reference_then_its_own_then_its_services() {
    let world = World::new();
    let [one, two, three, four] =
        ["by reference", "own", "service's by reference", "service's own"].map(App::echo);
    let nodes = |app: &App| json!({ "nodes": { app.address.to_string(): 1 } });
    let with_id = |id: &str, app: &App| both(json!({ "id": id }), &nodes(app));
    let ingress = ingress(
        &world,
        None,
        &json!({
            "upstreams": [with_id("1", &one), with_id("3", &three)],
            "services": [
                { "id": "both", "upstream_id": "3", "upstream": nodes(&four) },
                { "id": "own", "upstream": nodes(&four) },
            ],
            "routes": [
                { "id": "1", "uri": "/1", "upstream_id": "1", "upstream": nodes(&two), "service_id": "both" },
                { "id": "2", "uri": "/2", "upstream": nodes(&two), "service_id": "both" },
                { "id": "3", "uri": "/3", "service_id": "both" },
                { "id": "4", "uri": "/4", "service_id": "own" },
            ],
        }),
    );
    for (path, app) in [
        ("/1", "by reference"),
        ("/2", "own"),
        ("/3", "service's by reference"),
        ("/4", "service's own"),
    ] {
        assert_eq!(get(ingress.address("ingress"), path).await.json()["app"], app, "{path}");
    }
}

#[tokio::test]
async fn a_service_gives_hosts_labels_and_websocket_to_routes_that_have_none() {
    let world = World::new();
    let app = App::echo("app");
    let nodes = json!({ "nodes": { app.address.to_string(): 1 } });
    let id = |id: &str| json!({ "proxy-rewrite": { "headers": { "set": { "x-route": id, "x-service": "$service_id $service_name" } } } });
    let ingress = ingress(
        &world,
        None,
        &json!({
            "services": [{ "id": "s", "name": "shop", "hosts": ["shop.test", "*.shop.test"], "upstream": nodes,
                "enable_websocket": true }],
            "routes": [
                { "id": "1", "uri": "/*", "service_id": "s", "plugins": id("inherits") },
                { "id": "2", "uri": "/*", "service_id": "s", "host": "own.test", "plugins": id("own"),
                  "enable_websocket": false },
            ],
        }),
    );
    for (host, expected) in [
        ("shop.test", "inherits"),
        ("eu.shop.test", "inherits"),
        ("own.test", "own"),
        ("else.test", "404"),
    ] {
        let answer = ask(&ingress, "GET", "/", &[("host", host)]).await;
        assert_eq!(answered(&answer), expected, "{host}");
        if answer.status == 200 {
            assert_eq!(answer.json()["headers"]["x-service"], "s shop", "{host}");
        }
    }
    // Where it may switch, the request to switch reaches the application.
    for (host, forwarded) in [("shop.test", true), ("own.test", false)] {
        let headers = [
            ("host", host),
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "x"),
        ];
        let seen = ask(&ingress, "GET", "/", &headers).await.json();
        assert_eq!(seen["headers"].get("upgrade").is_some(), forwarded, "{host}: {seen}");
    }
}

#[tokio::test]
async fn a_routes_time_limits_win_over_its_upstreams() {
    let world = World::new();
    let silent = super::mesh::RawApp::serving(|stream| {
        let _ = stream.request();
        // Until the other end closes.
        let _ = stream.request();
    });
    let timeout = |seconds: f64| json!({ "connect": 30, "send": 30, "read": seconds });
    let nodes = json!({ silent.address.to_string(): 1 });
    let slow = json!({ "nodes": nodes, "retries": 0, "timeout": timeout(60.0) });
    let ingress = ingress(
        &world,
        None,
        &json!({
            "upstreams": [both(json!({ "id": "u" }), &slow)],
            "services": [{ "id": "s", "upstream": slow }],
            "routes": [
                { "id": "1", "uri": "/reference", "upstream_id": "u", "timeout": timeout(0.2) },
                { "id": "2", "uri": "/own", "upstream": slow, "timeout": timeout(0.2) },
                { "id": "3", "uri": "/service", "service_id": "s", "timeout": timeout(0.2) },
            ],
        }),
    );
    // Far below the upstream's minute, or the test gives up.
    for path in ["/reference", "/own", "/service"] {
        assert_eq!(get(ingress.address("ingress"), path).await.status, 504, "{path}");
    }
}
