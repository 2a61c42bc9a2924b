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
        ("GET", "/history/routes", json!(null), 404, "no history is kept of routes"),
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
