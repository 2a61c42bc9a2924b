//! Tokens that prove who calls (`spiffe-jwt`), and workloads as consumers (`spiffe-auth`): issuer, gateway and callers as real
//! processes, with the `spiffe` crate as the client of the Workload API.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use spiffe::{JwtSvid, WorkloadApiClient};

use crate::world::{App, Part, Process, World, allow, eventually_async, get, raw_to, send, soon};

const US: &str = "https://api.shop.test";

fn socket(world: &World) -> PathBuf {
    world.folder.join("workload.sock")
}

fn entry(world: &World, path: &str) -> Value {
    let uid = rustix::process::getuid().as_raw();
    json!({ "spiffe_id": world.id(path), "selectors": [format!("unix:uid:{uid}")] })
}

/// An issuer of identities for the ingress and for `/web` and `/batch`.
fn issuer<'w>(world: &'w World, jwt: &Value) -> Part<'w> {
    let paths = ["/wardgate/ingress", "/web", "/batch"];
    let entries: Vec<Value> = paths.iter().map(|path| entry(world, path)).collect();
    let issuer = json!({
        "socket": socket(world), "authority": world.authority(), "entries": entries, "jwt": jwt,
    });
    world.part("issuer", "/wardgate/issuer").without("identity").set("issuer", &issuer)
}

/// An ingress with its identity from the Workload API.
fn ingress(world: &World) -> Part<'_> {
    let source = json!({
        "source": "workload_api",
        "socket": format!("unix:{}", socket(world).display()),
        "spiffe_id": world.id("/wardgate/ingress"),
        "first_within_seconds": 20,
    });
    world.ingress().set("identity", &source)
}

fn route(app: &App, plugins: &Value) -> Value {
    json!({
        "id": "api", "uri": "/*", "plugins": plugins,
        "upstream": { "nodes": { app.address.to_string(): 1 } },
    })
}

async fn client(world: &World) -> WorkloadApiClient {
    let address = format!("unix:{}", socket(world).display());
    WorkloadApiClient::connect_to(address).await.unwrap()
}

async fn token(
    client: &WorkloadApiClient,
    world: &World,
    path: &str,
    audiences: &[&str],
) -> JwtSvid {
    let id = world.id(path).parse().unwrap();
    soon("a token", client.fetch_jwt_svid(audiences, Some(&id))).await.unwrap()
}

async fn call(ingress: &Process, token: &str) -> crate::world::Answer {
    let bearer = format!("Bearer {token}");
    send(ingress.address("ingress"), "GET", "/", &[("authorization", &bearer)], "").await
}

fn denial_of(process: &Process, answer: &crate::world::Answer) -> Value {
    process.record_with("/denial_id", &json!(answer.denial()))
}

#[tokio::test]
async fn a_token_from_the_workload_api_opens_a_route_and_every_other_one_does_not() {
    let world = World::new();
    let issuer = issuer(&world, &json!({})).start();
    let app = App::echo("api");
    let jwt = json!({ "audiences": [US], "spiffe_ids": [world.id("/web")] });
    let ingress = ingress(&world)
        .resources(&json!({
            "routes": [route(&app, &json!({ "spiffe-jwt": jwt, "proxy-rewrite": {
                "headers": { "set": { "X-Caller": "$wardgate_token_subject", "X-Token": "$wardgate_token_id" } },
            }}))],
            "consumers": [{
                "username": "web",
                "plugins": { "spiffe-auth": { "spiffe_id": world.id("/web") } },
            }],
        }))
        .start();
    let client = client(&world).await;
    let good = token(&client, &world, "/web", &[US]).await;
    let answer = call(&ingress, good.token()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let headers = answer.json()["headers"].clone();
    assert_eq!(headers["authorization"], Value::Null, "127 it goes no further");
    assert_eq!(headers["x-caller"], json!(world.id("/web")));
    assert_eq!(headers["x-token"].as_str().unwrap().len(), 36);
    assert_eq!(headers["x-consumer-username"], "web", "by the credential of spiffe-auth");

    let elsewhere = token(&client, &world, "/web", &["https://elsewhere"]).await;
    let both = token(&client, &world, "/web", &[US, "https://elsewhere"]).await;
    let other = token(&client, &world, "/batch", &[US]).await;
    // In the middle of the signature, where each letter stands for six bits of it.
    let mut forged = good.token().to_owned();
    let at = forged.len() - 20;
    let other_letter = if forged[at..].starts_with('A') { "B" } else { "A" };
    forged.replace_range(at..=at, other_letter);
    for (token, reason, subject) in [
        (elsewhere.token(), "token_other_audience", Some("/web")),
        (both.token(), "token_several_audiences", Some("/web")),
        (other.token(), "token_subject_not_allowed", Some("/batch")),
        (&*forged, "token_signature", None),
        ("eyJhbGciOiJub25lIn0.e30.AAAA", "token_algorithm", None),
        ("nonsense", "token_not_compact", None),
    ] {
        let answer = call(&ingress, token).await;
        assert_eq!(answer.status, 401, "{reason}");
        assert_eq!(answer.text(), "{\"message\":\"Invalid token in request\"}\n", "{reason}");
        let challenge = "Bearer realm=\"spiffe\", error=\"invalid_token\"";
        assert_eq!(answer.header("www-authenticate"), Some(challenge), "{reason}");
        let record = denial_of(&ingress, &answer);
        assert_eq!(record["outcome"], "deny", "{reason}");
        assert_eq!(record["reason"], reason);
        assert_eq!(record["plugin"], "spiffe-jwt");
        assert_eq!(record["token"]["hash"].as_str().unwrap().len(), 16);
        let subject = subject.map(|path| json!(world.id(path))).unwrap_or_default();
        assert_eq!(record["token"]["subject"], subject, "{reason}");
    }
    let none = get(ingress.address("ingress"), "/").await;
    assert_eq!(
        (none.status, none.header("www-authenticate")),
        (401, Some("Bearer realm=\"spiffe\""))
    );
    assert_eq!(denial_of(&ingress, &none)["reason"], "token_missing");

    // 111, 126
    let target = format!("/?access_token={}", good.token());
    let answer = get(ingress.address("ingress"), &target).await;
    assert_eq!(denial_of(&ingress, &answer)["reason"], "token_in_query");
    let line = format!("Authorization: Bearer {}\r\n", good.token());
    let twice = format!("GET / HTTP/1.1\r\nHost: h\r\n{line}{line}Connection: close\r\n\r\n");
    let answer = raw_to(ingress.address("ingress"), twice.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert_eq!(app.requests(), 1);

    // 128: neither end has written a token down, whatever happened to it. The query of a request is nobody's to log either.
    let written = format!(
        "{}{}{}",
        ingress.errors(),
        issuer.errors(),
        std::fs::read_to_string(ingress.audit_file()).unwrap()
    );
    for svid in [&good, &elsewhere, &both, &other] {
        let signature = svid.token().rsplit('.').next().unwrap();
        assert!(!written.contains(signature), "128");
    }
}

#[tokio::test]
async fn a_token_that_has_ended_is_refused() {
    let world = World::new();
    let _issuer = issuer(&world, &json!({ "ttl_seconds": 2 })).start();
    let app = App::echo("api");
    let jwt = json!({ "audiences": [US], "trust_domains": [world.domain], "leeway": 0 });
    let resources = json!({ "routes": [route(&app, &json!({ "spiffe-jwt": jwt }))] });
    let ingress = ingress(&world).resources(&resources).start();
    let client = client(&world).await;
    let short = token(&client, &world, "/web", &[US]).await;
    let refused = eventually_async("the token's end", || async {
        let answer = call(&ingress, short.token()).await;
        (answer.status == 401).then_some(answer)
    })
    .await;
    assert_eq!(denial_of(&ingress, &refused)["reason"], "token_expired");
}

#[tokio::test]
async fn a_key_that_is_taken_away_takes_its_tokens_along() {
    let world = World::new();
    let _issuer = issuer(&world, &json!({})).start();
    let app = App::echo("api");
    let jwt = json!({ "audiences": [US], "trust_domains": [world.domain] });
    let resources = json!({ "routes": [route(&app, &json!({ "spiffe-jwt": jwt }))] });
    let ingress = ingress(&world).resources(&resources).start();
    let client = client(&world).await;
    let before = token(&client, &world, "/web", &[US]).await;
    assert_eq!(call(&ingress, before.token()).await.status, 200);
    assert_eq!(call(&ingress, before.token()).await.status, 200, "remembered");

    std::fs::remove_file(world.authority().join("jwt-keys.json")).unwrap();
    let refused = eventually_async("the key's end", || async {
        let answer = call(&ingress, before.token()).await;
        (answer.status == 401).then_some(answer)
    })
    .await;
    assert_eq!(denial_of(&ingress, &refused)["reason"], "token_unknown_key");
    let after = token(&client, &world, "/web", &[US]).await;
    assert_ne!(after.key_id(), before.key_id());
    assert_eq!(call(&ingress, after.token()).await.status, 200);
}

#[tokio::test]
async fn keys_change_without_a_failed_request() {
    let world = World::new();
    let jwt = json!({ "ttl_seconds": 30, "key_seconds": 4, "publish_ahead_seconds": 2 });
    let _issuer = issuer(&world, &jwt).start();
    let app = App::echo("api");
    let jwt = json!({ "audiences": [US], "trust_domains": [world.domain] });
    let resources = json!({ "routes": [route(&app, &json!({ "spiffe-jwt": jwt }))] });
    let ingress = ingress(&world).resources(&resources).start();
    let client = client(&world).await;
    let mut keys = BTreeSet::new();
    let mut earlier = token(&client, &world, "/web", &[US]).await;
    soon("three keys", async {
        while keys.len() < 3 {
            let fresh = token(&client, &world, "/web", &[US]).await;
            for svid in [&fresh, &earlier] {
                let answer = call(&ingress, svid.token()).await;
                assert_eq!(answer.status, 200, "{} {}", svid.key_id(), answer.text());
            }
            if keys.insert(fresh.key_id().to_owned()) {
                earlier = fresh;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn workloads_are_consumers_by_their_identity_and_each_has_its_own_limit() {
    let world = World::new();
    let app = App::echo("billing");
    let limit =
        json!({ "count": 2, "time_window": 3600, "key": "consumer_name", "rejected_code": 429 });
    let consumer = |name: &str, id: &str| {
        json!({
            "username": name,
            "plugins": { "spiffe-auth": { "spiffe_id": world.id(id) }, "limit-count": limit },
        })
    };
    let billing = world
        .sidecar("/billing")
        .resources(&json!({
            "identity_policies": [allow("p", &[&world.id("/billing")], &[&world.id("/**")])],
            "routes": [{
                "id": "r", "uri": "/*", "workload_selector": { "listener": "inbound" },
                "plugins": { "spiffe-auth": {} },
                "upstream": { "nodes": { app.address.to_string(): 1 } },
            }],
            "consumers": [
                consumer("web", "/ns/*/sa/web"),
                consumer("prod-web", "/ns/prod/sa/web"),
                consumer("batch", "/ns/*/sa/batch"),
            ],
        }))
        .start();
    // Each of the first two calls of a consumer passes, whichever workload makes it.
    for (path, name, status) in [
        ("/ns/a/sa/web", "web", 200),
        ("/ns/b/sa/web", "web", 200),
        ("/ns/a/sa/web", "web", 429),
        ("/ns/prod/sa/web", "prod-web", 200),
        ("/ns/prod/sa/web", "prod-web", 200),
        ("/ns/prod/sa/web", "prod-web", 429),
        ("/ns/b/sa/web", "web", 429),
        ("/ns/a/sa/batch", "batch", 200),
    ] {
        let headers = [("x-consumer-username", "root")];
        let answer = world.peer(path).send(&billing, "GET", "/", &headers, "").await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        if status == 200 {
            assert_eq!(answer.json()["headers"]["x-consumer-username"], name, "{path}");
        }
    }
    let stranger = world.peer("/ns/a/sa/other").get(&billing, "/").await;
    assert_eq!(stranger.status, 403, "{}", stranger.text());
    let record = denial_of(&billing, &stranger);
    assert_eq!(
        (&record["plugin"], &record["reason"]),
        (&json!("spiffe-auth"), &json!("identity_of_no_consumer"))
    );
    assert_eq!(record["src"]["spiffe_id"], json!(world.id("/ns/a/sa/other")));
}

#[tokio::test]
async fn two_consumers_never_claim_one_pattern_and_a_route_with_tokens_gets_the_consumers_it_may_find()
 {
    let world = World::new();
    let _issuer = issuer(&world, &json!({})).start();
    let app = App::echo("api");
    let control = world.control().start();
    let admin = control.admin();
    let consumer = |name: &str, id: &str| json!({ "username": name, "plugins": { "spiffe-auth": { "spiffe_id": id } } });
    let web = world.id("/*");
    admin.put("/consumers/web", &consumer("web", &web)).await;
    let same = admin.ask("PUT", "/consumers/other", Some(&consumer("other", &web))).await;
    assert_eq!(same.status, 400, "{}", same.text());
    assert!(same.text().contains("spiffe-auth"), "{}", same.text());
    let wrong = consumer("other", "spiffe://shop.test/web-*");
    let wrong = admin.ask("PUT", "/consumers/other", Some(&wrong)).await;
    assert!(wrong.status == 400 && wrong.text().contains("spiffe_id"), "{}", wrong.text());

    let ingress = ingress(&world).fed_by(&control).start();
    let jwt = json!({
        "audiences": [US], "trust_domains": [world.domain], "consumer_required": true,
    });
    let mut route = route(&app, &json!({ "spiffe-jwt": jwt }));
    route.as_object_mut().unwrap().shift_remove("id");
    let revision = admin.put("/routes/api", &route).await;
    admin.applied(revision, 1).await;
    let client = client(&world).await;
    let svid = token(&client, &world, "/web", &[US]).await;
    let answer = call(&ingress, svid.token()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["headers"]["x-consumer-username"], "web");
}

#[tokio::test]
async fn policy_goes_by_the_claims_that_a_plugin_has_verified_and_waits_for_them() {
    let world = World::new();
    let _issuer = issuer(&world, &json!({})).start();
    let app = App::echo("api");
    let jwt = json!({ "audiences": [US], "trust_domains": [world.domain] });
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let claims = json!([{ "name": "sub", "values": [world.id("/web")] }]);
    let ingress = ingress(&world)
        .resources(&json!({
            "routes": [
                { "id": "api", "uri": "/api", "plugins": { "spiffe-jwt": jwt }, "upstream": upstream },
                { "id": "bare", "uri": "/bare", "upstream": upstream },
                { "id": "moved", "uri": "/moved", "upstream": upstream,
                  "plugins": { "redirect": { "uri": "/secret-place", "ret_code": 302 } } },
            ],
            "identity_policies": [{ "id": "p", "action": "allow", "rules": [
                { "name": "web", "from": { "claims": claims } },
            ]}],
        }))
        .start();
    let client = client(&world).await;
    let web = token(&client, &world, "/web", &[US]).await;
    let batch = token(&client, &world, "/batch", &[US]).await;
    let ask = async |path: &str, token: Option<&JwtSvid>| {
        let bearer = token.map(|token| format!("Bearer {}", token.token()));
        let headers: Vec<(&str, &str)> =
            bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        send(ingress.address("ingress"), "GET", path, &headers, "").await
    };
    let answer = ask("/api", Some(&web)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let record = ingress.record_with("/outcome", &json!("allow"));
    assert_eq!((&record["rule"], &record["path"]), (&json!("web"), &json!("/api")));
    let decisions = |path: &str| {
        let of_path = |record: &&Value| record["type"] == "decision" && record["path"] == path;
        ingress.audit().iter().filter(of_path).count()
    };
    assert_eq!(decisions("/api"), 1, "one record, of the decision that counts");

    let refused = ask("/api", Some(&batch)).await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert_eq!(denial_of(&ingress, &refused)["reason"], "no_rule");
    // The plugin's own refusal comes first.
    let none = ask("/api", None).await;
    assert_eq!((none.status, &denial_of(&ingress, &none)["mode"]), (401, &json!("plugin")));
    // Nobody has verified this one, whatever it says.
    for path in ["/bare", "/moved"] {
        let unverified = ask(path, Some(&web)).await;
        assert_eq!(unverified.status, 403, "{path}: {}", unverified.text());
        assert_eq!(unverified.header("location"), None, "{path}: no answer of a plugin either");
        assert_eq!(denial_of(&ingress, &unverified)["reason"], "no_token", "{path}");
    }
    assert_eq!(app.requests(), 1);
}

#[test]
fn settings_of_tokens_that_contradict_each_other_are_refused_at_the_start_by_field() {
    let world = World::new();
    for (jwt, says) in [
        (json!({ "ttl_seconds": 0 }), "ttl_seconds"),
        (json!({ "ttl_seconds": 100_000 }), "ttl_seconds"),
        (json!({ "key_seconds": 60, "publish_ahead_seconds": 60 }), "publish_ahead_seconds"),
        (json!({ "algorithm": "HS256" }), "algorithm"),
        (json!({ "no_such": 1 }), "no_such"),
    ] {
        let ended = issuer(&world, &jwt).fails();
        assert!(ended.err.contains(says), "{jwt}: {}", ended.err);
    }
}
