//! The past of policies: every revision with author and time, over the Admin API, on the stores that keep it.

use super::*;
use admin::Answer;

fn allow(path: &str) -> Value {
    json!({"action": "allow", "rules": [{"to": {"paths": [path]}}]})
}

/// The answer's list as (id, action, author).
fn told(answer: &Answer) -> Vec<(String, String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list = answer.json()["list"].as_array().unwrap().clone();
    list.iter()
        .map(|one| (text(&one["id"]).unwrap(), text(&one["action"]).unwrap(), text(&one["author"])))
        .collect()
}

/// Everything that the history promises, on any store.
async fn keeps_the_past(world: &World, store: &dyn Store) {
    const P: &str = "/identity_policies/p";
    let paths = async || {
        let now = world.get(P).await.json();
        now["value"]["rules"][0]["to"]["paths"][0].as_str().map(str::to_owned)
    };
    let revision = |answer: &Answer| -> u64 {
        answer.headers["x-wardgate-revision"].to_str().unwrap().parse().unwrap()
    };
    let first = revision(&world.ask("PUT", P, &allow("/one")).await);
    let second = revision(&world.ask("PUT", P, &allow("/two")).await);
    let third = revision(&world.ask("PATCH", P, &json!({"desc": "third"})).await);
    world.put("/identity_policies/q", allow("/q")).await;
    let fourth = revision(&world.delete(P).await);
    assert!(first < second && second < third && third < fourth);

    let all = world.get("/history/identity_policies/p").await;
    let put = |author: &str| ("p".to_owned(), "put".to_owned(), Some(author.to_owned()));
    let deleted = ("p".to_owned(), "delete".to_owned(), Some("root".to_owned()));
    assert_eq!(told(&all), [deleted, put("root"), put("root"), put("root")]);
    let revisions: Vec<u64> = all.json()["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["revision"].as_u64().unwrap())
        .collect();
    assert_eq!(revisions, [fourth, third, second, first], "each is the store's own revision");
    assert_eq!(all.json()["list"][0]["time"], BORN);
    let as_of = |at: u64| format!("/history/identity_policies/p/{at}");
    let one = world.get(&as_of(second)).await.json();
    assert_eq!(one["value"]["rules"], allow("/two")["rules"]);
    assert_eq!(world.get(&as_of(fourth)).await.json()["action"], "delete");
    assert_eq!(world.get(&as_of(first - 1)).await.status.as_u16(), 404);

    // The whole set at a moment, by revision and by time.
    let set = world.get(&format!("/history/identity_policies?at={third}")).await.json();
    assert_eq!((set["total"].as_u64(), &set["list"][0]["id"]), (Some(1), &json!("p")));
    let set = world.get("/history/identity_policies?at=2100-01-01T00:00:00Z").await.json();
    assert_eq!((set["total"].as_u64(), &set["list"][0]["id"]), (Some(1), &json!("q")));

    // Back to the second revision: told first, then done, and remembered as what it is.
    let back = "/history/identity_policies/p/rollback";
    let dry = world.ask("POST", back, &json!({"to": second, "dry_run": true})).await;
    assert_eq!(
        dry.json()["changes"],
        json!([{"id": "p", "action": "create", "from": null, "to": second}])
    );
    assert_eq!(world.get(P).await.status.as_u16(), 404);
    let done = world.ask("POST", back, &json!({"to": second})).await;
    assert_eq!((done.status.as_u16(), paths().await.as_deref()), (200, Some("/two")));
    let newest = world.get("/history/identity_policies/p?limit=1").await.json();
    assert_eq!(newest["list"][0]["rollback_to"], second);
    assert_eq!(newest["list"][0]["revision"], done.json()["revision"]);
    let again = world.ask("POST", back, &json!({"to": second})).await;
    assert_eq!(again.json()["changes"], json!([]), "nothing to do");

    // All policies at once: what came later goes, what was is there again.
    let whole =
        world.ask("POST", "/history/identity_policies/rollback", &json!({"to": first})).await;
    assert_eq!(whole.status.as_u16(), 200, "{}", whole.text);
    assert_eq!(whole.json()["commits"], 1);
    assert_eq!(paths().await.as_deref(), Some("/one"));
    assert_eq!(world.get("/identity_policies/q").await.status.as_u16(), 404);

    // Past the Admin API: no author, but not forgotten.
    let value = json!({"id": "r", "action": "deny", "rules": [{}]});
    let written = store
        .put("/apisix/identity_policies/r", &value, Expect::Anything, None)
        .await
        .unwrap()
        .modified;
    let seen = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let answer = world.get("/history/identity_policies/r").await;
            if answer.status.as_u16() == 200 {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let seen = seen.await.unwrap();
    assert_eq!(told(&seen), [("r".to_owned(), "put".to_owned(), None)]);
    assert_eq!(seen.json()["list"][0]["revision"], written);
}

#[tokio::test]
async fn every_revision_of_a_policy_is_kept_and_can_be_put_back() {
    let store = Arc::new(Memory::new());
    keeps_the_past(&World::with(store.clone()).await, &*store).await;
}

#[tokio::test]
async fn the_past_is_kept_on_etcd_as_well() {
    let server = EtcdServer::start();
    let store = Arc::new(Etcd::new(&Settings::plain([server.url()])).unwrap());
    keeps_the_past(&World::with(store.clone()).await, &*store).await;
}

#[tokio::test]
async fn what_makes_no_sense_of_the_past_is_said_by_name() {
    let world = world().await;
    world.put("/identity_policies/p", allow("/a")).await;
    for (method, path, body, status, says) in [
        ("GET", "/history/rotues", json!(null), 404, "no history is kept of rotues"),
        ("GET", "/history/identity_policies?at=soon", json!(null), 400, "RFC 3339"),
        ("GET", "/history/identity_policies?limit=x", json!(null), 400, "limit"),
        ("GET", "/history/identity_policies/none", json!(null), 404, "Key not found"),
        ("POST", "/history/identity_policies/rollback", json!({"to": 0}), 404, "begins later"),
        ("POST", "/history/identity_policies/rollback", json!({"too": 1}), 400, "too"),
        ("POST", "/history/identity_policies/rollback", json!({"to": []}), 400, "to"),
        ("DELETE", "/history/identity_policies/p", json!(null), 404, "not found"),
    ] {
        let answer = world.ask(method, path, &body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.text);
        assert!(answer.text.contains(says), "{method} {path}: {}", answer.text);
    }
    let by_viewer = world
        .send(
            "POST",
            "/apisix/admin/history/identity_policies/rollback",
            &[("x-api-key", VIEWER)],
            "{\"to\": 1}",
        )
        .await;
    assert_eq!(by_viewer.status.as_u16(), 401);
}

#[tokio::test]
async fn the_past_of_every_kind_is_kept_with_its_authors() {
    let store = Arc::new(Memory::new());
    let world = World::with(store.clone()).await;
    world.put("/upstreams/u", upstream()).await;
    let first = world.put("/routes/r", json!({"uri": "/1", "upstream_id": "u"})).await;
    assert_eq!(first["value"]["uri"], "/1");
    let one = world.get("/routes/r").await.json()["modifiedIndex"].as_u64().unwrap();
    world.ask("PATCH", "/routes/r", &json!({"uri": "/2"})).await;
    world.put("/consumers/john", json!({"username": "john"})).await;
    let credential = json!({"plugins": {"key-auth": {"key": "k"}}});
    world.put("/consumers/john/credentials/c", credential).await;
    world.delete("/consumers/john").await;
    let all = world.get("/history?limit=100").await.json();
    let told: Vec<String> = all["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let text = |field: &str| one[field].as_str().unwrap();
            format!("{} {}/{} {}", text("action"), text("kind"), text("id"), text("author"))
        })
        .collect();
    assert_eq!(
        told,
        [
            "delete consumers/john root",
            "delete credentials/john/credentials/c root",
            "put credentials/john/credentials/c root",
            "put consumers/john root",
            "put routes/r root",
            "put routes/r root",
            "put upstreams/u root",
        ]
    );
    let held = world.get("/history/credentials/john%2Fcredentials%2Fc").await.json();
    assert_eq!(held["total"], 2);

    // What others use does not go by a rollback either.
    let before = world.ask("POST", "/history/upstreams/rollback", &json!({"to": 1})).await;
    assert_eq!(before.status.as_u16(), 404, "nothing is remembered of that time");
    let back = world.ask("POST", "/history/routes/r/rollback", &json!({"to": one})).await;
    assert_eq!(back.status.as_u16(), 200, "{}", back.text);
    assert_eq!(world.get("/routes/r").await.json()["value"]["uri"], "/1");

    // Past the Admin API: seen as it happens, and nothing of ours is told twice.
    let value = json!({"id": "by-hand", "uri": "/h", "upstream_id": "u"});
    let written =
        store.put("/apisix/routes/by-hand", &value, Expect::Anything, None).await.unwrap().modified;
    let seen = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let answer = world.get("/history/routes/by-hand").await;
            if answer.status.as_u16() == 200 {
                return answer.json();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let seen = seen.await.unwrap();
    assert_eq!(
        (&seen["list"][0]["revision"], &seen["list"][0]["author"]),
        (&json!(written), &json!(null))
    );
    assert_eq!(world.get("/history/routes/r").await.json()["total"], 3);
}

#[tokio::test]
async fn what_is_not_remembered_is_not_guessed() {
    let store = Arc::new(Memory::new());
    // There before anybody remembered.
    let put = async |value: Value| {
        store.put("/apisix/upstreams/old", &value, Expect::Anything, None).await.unwrap().modified
    };
    put(json!({"id": "old", "nodes": {"a:1": 1}})).await;
    let untouched = put(json!({"id": "old", "nodes": {"a:2": 1}})).await;
    let world = World::with(store.clone()).await;
    world.put("/upstreams/new", upstream()).await;
    let now = world.get("/upstreams/new").await.json()["modifiedIndex"].as_u64().unwrap();
    assert!(untouched < now);
    // It stands as it stood: a rollback of all leaves it.
    world.put("/upstreams/newer", upstream()).await;
    let back = world.ask("POST", "/history/rollback", &json!({"to": now})).await.json();
    assert_eq!(
        back["changes"],
        json!([{"id": "newer", "kind": "upstreams", "action": "delete",
                "from": back["changes"][0]["from"], "to": 0}])
    );
    assert_eq!(world.get("/upstreams/old").await.status.as_u16(), 200);
    // Once it has changed, nobody knows what it said.
    world.put("/upstreams/old", upstream()).await;
    let back = world.ask("POST", "/history/rollback", &json!({"to": now})).await;
    assert_eq!(back.status.as_u16(), 409);
    assert!(back.text.contains("not remembered of upstreams/old"), "{}", back.text);
}

#[tokio::test]
async fn of_each_resource_the_newest_revisions_are_kept() {
    let store = Arc::new(Memory::new());
    let world = World::with(store.clone()).await;
    for number in 1..=150 {
        world.put("/upstreams/u", json!({"nodes": {format!("a:{number}"): 1}})).await;
    }
    let kept = store.list("/apisix-history/upstreams/u/").await.unwrap().entries.len();
    // Which write forgets is left to chance: of a hundred writes one does, but for once in 600,000 runs.
    assert!((20..120).contains(&kept), "{kept}");
    let newest = world.get("/history/upstreams/u?limit=1").await.json();
    assert_eq!(newest["list"][0]["value"]["nodes"], json!({"a:150": 1}));
}
