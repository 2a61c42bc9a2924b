//! A whole set at once: what differs is worked out by the server, judged together, and written in one revision.

use super::*;
use admin::Answer;

async fn apply(world: &World, query: &str, set: &Value) -> Answer {
    world.ask("POST", &format!("/configs/apply{query}"), set).await
}

fn route(id: &str, upstream: &str) -> Value {
    json!({"id": id, "uri": format!("/{id}"), "upstream_id": upstream})
}

fn nodes(port: u16) -> Value {
    json!({format!("127.0.0.1:{port}"): 1})
}

fn names(told: &Value) -> Vec<String> {
    let list = told.as_array().unwrap();
    let text = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
    list.iter().map(|one| format!("{}/{}", text(one, "kind"), text(one, "id"))).collect()
}

/// Everything that apply promises, on any store.
async fn applies(world: &World, store: &dyn Store) {
    let set = json!({
        "routes": [route("a", "u"), route("b", "u")],
        "upstreams": [{"id": "u", "nodes": nodes(1)}],
        "consumers": [
            {"username": "john"},
            {"id": "john/credentials/k", "plugins": {"key-auth": {"key": "s3cret"}}},
        ],
        "global_rules": [{"id": "g", "plugins": {"request-id": {}}}],
    });
    // First told, then done: all of it in one revision, in whatever order it was said.
    let (status, told) = world.ask("POST", "/configs/diff?owner=team-a", &set).await.pair();
    assert_eq!((status, told["dry_run"].as_bool()), (200, Some(true)));
    assert_eq!(told["created"].as_array().unwrap().len(), 6, "{told}");
    assert_eq!(world.get("/routes").await.json()["total"], 0);
    let done = apply(world, "?owner=team-a", &set).await;
    assert_eq!(done.status.as_u16(), 200, "{}", done.text);
    let told = done.json();
    assert_eq!((&told["commits"], &told["unchanged"]), (&json!(1), &json!(0)));
    let revision = told["revision"].as_u64().unwrap();
    assert_eq!(done.headers["x-wardgate-revision"], revision.to_string().as_str());
    let all = store.list("/apisix/").await.unwrap().entries;
    assert_eq!(all.len(), 6);
    assert!(all.iter().all(|stored| stored.modified == revision), "{all:?}");
    let a = world.get("/routes/a").await.json();
    assert_eq!(a["value"]["labels"], json!({"wardgate.io/owner": "team-a"}));
    assert_eq!(
        (&a["value"]["create_time"], &a["value"]["update_time"]),
        (&json!(BORN), &json!(BORN))
    );

    // Again: there is nothing to do, and nothing is written.
    let (_, again) = apply(world, "?owner=team-a", &set).await.pair();
    assert_eq!((&again["commits"], &again["unchanged"]), (&json!(0), &json!(6)), "{again}");
    assert_eq!(world.get("/routes/a").await.json()["modifiedIndex"], revision);

    // What differs is told by field, without secrets; prune takes what this owner no longer says, and nobody else's.
    world.put("/routes/theirs", json!({"uri": "/t", "upstream_id": "u"})).await;
    world.put("/routes/mine-by-hand", json!({"uri": "/h", "upstream_id": "u"})).await;
    let next = json!({
        "routes": [route("a", "v")],
        "upstreams": [{"id": "u", "nodes": nodes(1)}, {"id": "v", "nodes": nodes(2)}],
        "consumers": [
            {"username": "john"},
            {"id": "john/credentials/k", "plugins": {"key-auth": {"key": "other"}}},
        ],
        "global_rules": [],
    });
    let done = apply(world, "?owner=team-a&prune=true", &next).await;
    assert_eq!(done.status.as_u16(), 200, "{}", done.text);
    let told = done.json();
    assert_eq!(names(&told["created"]), ["upstreams/v"]);
    assert_eq!(names(&told["deleted"]), ["routes/b", "global_rules/g"]);
    let mut updated = told["updated"].as_array().unwrap().clone();
    updated.sort_by_key(|one| one["id"].to_string());
    assert_eq!(
        updated[0]["changes"],
        json!([{"path": "/upstream_id", "op": "replace", "before": "u", "after": "v"}])
    );
    assert_eq!(
        updated[1]["changes"],
        json!([{"path": "/plugins/key-auth/key", "op": "replace", "secret": true}])
    );
    assert!(!done.text.contains("s3cret") && !done.text.contains("other"), "{}", done.text);
    assert_eq!(world.get("/routes").await.json()["total"], 3, "a, theirs, mine-by-hand");

    // The past knows who did it, and takes all of it back at once.
    let past = world.get("/history/routes/a").await.json();
    assert_eq!((&past["total"], &past["list"][0]["author"]), (&json!(2), &json!("root")));
    let back = world.ask("POST", "/history/rollback", &json!({"to": revision})).await;
    assert_eq!(back.status.as_u16(), 200, "{}", back.text);
    assert_eq!(back.json()["commits"], 1);
    let ids: Vec<Value> = world.get("/routes").await.json()["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["value"]["id"].clone())
        .collect();
    assert_eq!(ids, [json!("a"), json!("b")]);
    assert_eq!(world.get("/upstreams").await.json()["total"], 1);
    assert_eq!(world.get("/global_rules/g").await.status.as_u16(), 200);
}

#[tokio::test]
async fn a_set_is_applied_in_one_revision() {
    let store = Arc::new(Memory::new());
    applies(&World::with(store.clone()).await, &*store).await;
}

#[tokio::test]
async fn a_set_is_applied_in_one_revision_of_etcd() {
    let server = EtcdServer::start();
    let store = Arc::new(Etcd::new(&Settings::plain([server.url()])).unwrap());
    let world = World::with(store.clone()).await;
    applies(&world, &*store).await;

    // etcd takes 128 operations at once: what is more must be allowed to come in several revisions.
    let many: Value = (0..100).map(|number| route(&format!("r{number}"), "u")).collect();
    let set = json!({"routes": many});
    let refused = apply(&world, "", &set).await;
    assert_eq!(refused.status.as_u16(), 413, "{}", refused.text);
    assert!(refused.text.contains("split=true"), "{}", refused.text);
    assert_eq!(world.get("/routes").await.json()["total"], 2, "nothing was written");
    let split = apply(&world, "?split=true", &set).await.json();
    assert_eq!(split["commits"], 2, "{split}");
    assert_eq!(world.get("/routes").await.json()["total"], 102);
}

#[tokio::test]
async fn what_another_owner_wrote_is_left_alone_unless_it_is_taken_over() {
    let world = world().await;
    let set = |port| {
        json!({
            "upstreams": [{"id": "u", "nodes": nodes(port)}],
            "global_rules": [{"id": "g", "plugins": {"request-id": {"header_name": format!("x-{port}")}}}],
        })
    };
    assert_eq!(apply(&world, "?owner=a", &set(1)).await.status.as_u16(), 200);
    let refused = apply(&world, "?owner=b", &set(2)).await;
    assert_eq!(refused.status.as_u16(), 409);
    let told = refused.json();
    assert_eq!(names(&told["conflicts"]), ["upstreams/u", "global_rules/g"]);
    assert_eq!(told["conflicts"][0]["owner"], "a");
    assert!(told["error_msg"].as_str().unwrap().contains("take_over=true"), "{told}");
    assert_eq!(world.get("/upstreams/u").await.json()["value"]["nodes"], nodes(1));
    // Neither does who applies without a name.
    assert_eq!(apply(&world, "", &set(2)).await.status.as_u16(), 409);
    // A look at it is no error.
    let look = world.ask("POST", "/configs/diff?owner=b", &set(2)).await;
    assert_eq!((look.status.as_u16(), names(&look.json()["conflicts"]).len()), (200, 2));

    assert_eq!(apply(&world, "?owner=b&take_over=true", &set(2)).await.status.as_u16(), 200);
    // Now it is b's, and a's prune leaves it.
    let pruned = apply(&world, "?owner=a&prune=true", &json!({})).await.json();
    assert_eq!(pruned["deleted"], json!([]));
    let pruned = apply(&world, "?owner=b&prune=true&allow_shrink=true", &json!({})).await.json();
    assert_eq!(names(&pruned["deleted"]).len(), 2, "{pruned}");
    // What comes in the place of one that is gone is nobody's.
    world.put("/global_rules/g", json!({"plugins": {"request-id": {}}})).await;
    let pruned = apply(&world, "?owner=b&prune=true", &json!({})).await.json();
    assert_eq!(pruned["deleted"], json!([]));
    let wrong =
        json!({"upstreams": [{"id": "u", "nodes": {}, "labels": {"wardgate.io/owner": "z"}}]});
    let (status, told) = apply(&world, "?owner=a", &wrong).await.pair();
    assert_eq!((status, &told["errors"][0]["index"]), (400, &json!(0)), "{told}");
}

#[tokio::test]
async fn a_prune_of_more_than_half_of_a_kind_must_be_meant() {
    let world = world().await;
    let upstreams = |count: u16| -> Value {
        (0..count).map(|number| json!({"id": number + 1, "nodes": nodes(1)})).collect()
    };
    apply(&world, "?owner=a", &json!({"upstreams": upstreams(4)})).await;
    let refused = apply(&world, "?owner=a&prune=true", &json!({"upstreams": upstreams(1)})).await;
    assert_eq!(refused.status.as_u16(), 409);
    let told = refused.json();
    assert_eq!(told["shrinks"], json!([{"kind": "upstreams", "of": 4, "deleted": 3}]));
    assert_eq!(world.get("/upstreams").await.json()["total"], 4);
    let half = apply(&world, "?owner=a&prune=true", &json!({"upstreams": upstreams(2)})).await;
    assert_eq!(half.status.as_u16(), 200, "half is not more than half");
    let all = apply(&world, "?owner=a&prune=true&allow_shrink=true", &json!({})).await;
    assert_eq!(all.status.as_u16(), 200);
    assert_eq!(world.get("/upstreams").await.json()["total"], 0);
}

#[tokio::test]
async fn a_set_stands_or_falls_as_a_whole() {
    let world = world().await;
    world.put("/upstreams/u", upstream()).await;
    world.put("/routes/uses", json!({"uri": "/", "upstream_id": "u"})).await;
    let refused = async |query: &str, set: Value| {
        let answer = apply(&world, query, &set).await;
        assert_eq!(answer.status.as_u16(), 400, "{}", answer.text);
        let told = answer.json();
        let first = told["errors"][0].clone();
        let text = |field: &str| first[field].as_str().unwrap_or_default().to_owned();
        (text("resource_type"), first["index"].as_u64(), text("error"))
    };
    let said =
        |list: &str, index: u64, error: &str| (list.to_owned(), Some(index), error.to_owned());
    let good = json!({"id": "good", "uri": "/g", "upstream_id": "u"});
    assert_eq!(
        refused("", json!({"routes": [good, route("bad", "none")]})).await,
        said(
            "routes",
            1,
            "failed to fetch upstream info by upstream id [none], response code: 404"
        )
    );
    assert_eq!(
        refused(
            "",
            json!({"routes": [good, {"id": "b", "uri": "/", "plugins": {"ip-restriction": {}}}]})
        )
        .await,
        said(
            "routes",
            1,
            "failed to check the configuration of plugin ip-restriction err: give either whitelist or blacklist"
        )
    );
    // The data plane's own compiler has the last word.
    assert_eq!(
        refused(
            "",
            json!({"routes": [good, {"id": "v", "uri": "/", "upstream_id": "u", "vars": ["x"]}]})
        )
        .await,
        said(
            "routes",
            1,
            "failed to validate the 'vars' expression: rule should be wrapped inside brackets"
        )
    );
    let twins = json!({"consumers": [
        {"username": "a", "plugins": {"key-auth": {"key": "k"}}},
        {"username": "b", "plugins": {"key-auth": {"key": "k"}}},
    ]});
    let (_, _, why) = refused("", twins).await;
    assert!(why.starts_with("duplicate key of plugin key-auth found with consumer: "), "{why}");
    // What others use stays.
    apply(
        &world,
        "?owner=a&take_over=true",
        &json!({"upstreams": [{"id": "u", "nodes": nodes(9)}]}),
    )
    .await;
    assert_eq!(
        refused("?owner=a&prune=true", json!({})).await,
        (
            "upstreams".into(),
            None,
            "can not delete this upstream, route [uses] is still using it now".into()
        )
    );
    assert_eq!(world.get("/routes").await.json()["total"], 1, "of no set anything was written");
    for (query, says) in [
        ("?prune=true", "prune needs owner"),
        ("?purne=true", "unknown argument purne"),
        ("?split=1", "split"),
    ] {
        let answer = apply(&world, query, &json!({})).await;
        assert_eq!(answer.status.as_u16(), 400);
        assert!(answer.text.contains(says), "{}", answer.text);
    }
    let by_viewer = async |path: &str| {
        world
            .send("POST", &format!("/apisix/admin/configs/{path}"), &[("x-api-key", VIEWER)], "{}")
            .await
    };
    assert_eq!(by_viewer("apply").await.status.as_u16(), 401);
    assert_eq!(by_viewer("diff").await.status.as_u16(), 200);
}

#[tokio::test]
async fn a_dump_is_applied_back_unchanged() {
    let world = world().await;
    let (cert, key) = certificate("a.test");
    world.put("/ssls/1", json!({"sni": "a.test", "cert": cert, "key": key})).await;
    world.put("/upstreams/u", upstream()).await;
    world.put("/routes/r", json!({"uri": "/", "upstream_id": "u", "labels": {"a": "b"}})).await;
    world.put("/consumers/john", json!({"username": "john"})).await;
    let credential = json!({"plugins": {"key-auth": {"key": "k"}}});
    world.put("/consumers/john/credentials/c", credential).await;
    world.put("/plugin_metadata/prometheus", json!({"prefix": "p"})).await;
    world.put("/global_rules/g", json!({"plugins": {"request-id": {}}})).await;
    world.put("/identity_policies/p", json!({"action": "deny", "rules": [{}]})).await;
    world.ask("POST", "/services", &json!({"upstream_id": "u"})).await;

    let dump = world.get("/configs/dump").await;
    assert!(!dump.text.contains("PRIVATE"), "{}", dump.text);
    assert!(dump.headers.contains_key("x-wardgate-revision"));
    let dump = dump.json();
    assert_eq!(dump["consumers"][1]["id"], "john/credentials/c");
    assert_eq!(
        dump["routes"],
        json!([{"uri": "/", "upstream_id": "u", "labels": {"a": "b"}, "id": "r"}])
    );
    let told = world.ask("POST", "/configs/diff", &dump).await.json();
    let nothing = |field: &str| told[field] == json!([]);
    assert!(nothing("created") && nothing("updated") && nothing("deleted"), "{told}");
    assert_eq!(told["unchanged"], 9);
    // And into an empty store, but for the private key that no answer shows.
    let other = super::world().await;
    let (status, told) = apply(&other, "", &dump).await.pair();
    assert_eq!((status, &told["errors"][0]["resource_type"]), (400, &json!("ssls")), "{told}");
    let mut dump = dump;
    dump["ssls"][0]["key"] = json!(key);
    let answer = apply(&other, "", &dump).await;
    assert_eq!(answer.json()["created"].as_array().map(Vec::len), Some(9), "{}", answer.text);
}

#[tokio::test]
async fn two_that_apply_at_once_both_win_or_one_is_told() {
    let store = Arc::new(Memory::new());
    let (one, other) = (World::with(store.clone()).await, World::with(store.clone()).await);
    let sets = (0..10_u16).map(|number| {
        let world = if number % 2 == 0 { &one } else { &other };
        let set = json!({"upstreams": [{"id": "u", "nodes": nodes(number + 1)}]});
        async move { apply(world, "", &set).await.status.as_u16() }
    });
    let answers = futures_util::future::join_all(sets).await;
    assert!(answers.iter().all(|status| [200, 503].contains(status)), "{answers:?}");
    assert!(answers.contains(&200));
}
