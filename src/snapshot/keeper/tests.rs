#![expect(clippy::needless_pass_by_value, reason = "tests write their JSON in place")]

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::pipeline::tests::{client, exchange};
use crate::pipeline::{
    Access, Build, Client, Exchange, Fault, Flow, Hooks, Plugin, Reply, Rewrite, RouteInfo, Side,
};

/// Writes its tag and the number of exchanges it has seen into the request.
struct Tag {
    tag: String,
    seen: Arc<AtomicUsize>,
}

/// Settings of the tests' plugins.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TagConfig {
    tag: String,
}

impl Plugin for Tag {
    const NAME: &'static str = "tag";
    const PRIORITY: i32 = 10;
    const EXAMPLE: &'static str = r#"{"tag": "x"}"#;
    type Config = TagConfig;
    fn compile(config: TagConfig, build: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.tag == "never" || build.metadata.is_some_and(|all| all["forbid"] == *config.tag) {
            return Err(Invalid::new("tag: this one is never compiled"));
        }
        let seen = build.keep("seen", AtomicUsize::default);
        Ok(Hooks::of(Self { tag: config.tag, seen }).rewrite().access().done())
    }
}

/// Gateway-wide settings of `tag`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TagMetadata {
    #[serde(rename = "forbid")]
    _forbid: String,
}

#[async_trait]
impl Rewrite for Tag {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        exchange.request.append("ran", format!("{} {seen}", self.tag).as_bytes());
        Ok(Flow::Next)
    }
}

#[async_trait]
impl Access for Tag {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        exchange.request.append("admitted", self.tag.as_bytes());
        Ok(Flow::Next)
    }
}

/// Finds the consumer whose key is in the header `key`.
struct Auth;

/// Nothing to set.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AuthConfig {}

/// A key.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AuthCredential {
    #[serde(rename = "key")]
    _key: String,
}

impl Plugin for Auth {
    const NAME: &'static str = "auth";
    const PRIORITY: i32 = 5;
    const EXAMPLE: &'static str = "{}";
    type Config = AuthConfig;
    fn compile(_: AuthConfig, _: &Build<'_>) -> Result<Hooks, Invalid> {
        Ok(Hooks::of(Self).rewrite().done())
    }
}

#[async_trait]
impl Rewrite for Auth {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let key = exchange.request.text("key").unwrap_or_default().to_owned();
        match exchange.consumers.as_ref().unwrap().find("auth", &key) {
            Some((consumer, _)) => {
                exchange.attach(consumer);
                Ok(Flow::Next)
            }
            None => Ok(Flow::Reply(Box::new(Reply::empty(401)))),
        }
    }
}

pub(super) static TABLE: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    vec![
        Entry::of::<Tag>().metadata::<TagMetadata>(),
        Entry::of::<Auth>().credential::<AuthCredential>("key"),
    ]
});

/// A keeper, fed with JSON as the Admin API takes it.
struct World {
    keeper: Keeper,
    revision: Revision,
}

fn put(key: &str, body: Value, revision: Revision) -> Change {
    let (kind, id) = Kind::split_key(key).unwrap_or_else(|| panic!("{key}"));
    let body = Body::parse(kind, &body).unwrap_or_else(|error| panic!("{key}: {error}"));
    Change::Put(Resource { kind, id, revision, body })
}

fn delete(key: &str) -> Change {
    let (kind, id) = Kind::split_key(key).unwrap();
    Change::Delete(kind, id)
}

impl World {
    fn new() -> Self {
        Self::of(Some("spiffe://shop/cart"))
    }

    fn of(me: Option<&str>) -> Self {
        let me = me.map(|me| me.parse().unwrap());
        Self { keeper: Keeper::new(&TABLE, me, Registry::new()), revision: 0 }
    }

    /// Applies one change; gives the reasons of rejections.
    fn put(&mut self, key: &str, body: Value) -> Vec<String> {
        self.revision += 1;
        let change = put(key, body, self.revision);
        self.apply(vec![change])
    }

    fn delete(&mut self, key: &str) {
        assert!(self.apply(vec![delete(key)]).is_empty());
    }

    fn apply(&mut self, changes: Vec<Change>) -> Vec<String> {
        let applied = self.keeper.apply(changes, self.revision);
        assert_eq!(applied.snapshot.revision, self.revision);
        applied.rejected.into_iter().map(|rejected| rejected.reason).collect()
    }

    fn route(&self, target: &str) -> Option<(Arc<RouteInfo>, Exchange)> {
        self.route_at(Listeners::Ingress, target)
    }

    fn route_at(&self, door: Listeners, target: &str) -> Option<(Arc<RouteInfo>, Exchange)> {
        let mut exchange = exchange("GET", target, "h");
        exchange.route = None;
        let route = self.keeper.current().route(door, &mut exchange).unwrap()?;
        Some((route.info.clone(), exchange))
    }

    /// The id of the route that answers.
    fn found(&self, target: &str) -> Option<String> {
        self.route(target).map(|(info, _)| info.id.to_string())
    }

    /// What the flow would do up to the upstream: the status that it answers, or the cluster's name and what ran.
    async fn ask(&self, target: &str, key: &str) -> Result<(String, Vec<String>), u16> {
        let snapshot = self.keeper.current().clone();
        let mut exchange = exchange("GET", target, "h");
        exchange.consumers = Some(snapshot.consumers.clone());
        exchange.request.append("key", key.as_bytes());
        let status = |result: Result<Flow, Fault>| match result {
            Ok(Flow::Next) => Ok(()),
            Ok(Flow::Reply(reply)) => Err(reply.status),
            Err(fault) => Err(fault.status),
        };
        status(snapshot.global.rewrite(&mut exchange).await)?;
        let Ok(Some(route)) = snapshot.route(Listeners::Ingress, &mut exchange) else {
            return Err(404);
        };
        if let Some(fault) = route.fault() {
            assert_eq!(fault.side, Side::Gateway);
            return Err(fault.status);
        }
        status(route.chain.rewrite(&mut exchange).await)?;
        let consumer = exchange.consumer.clone();
        let merged = consumer
            .and_then(|consumer| snapshot.chain_for(route, &consumer).transpose())
            .transpose()
            .map_err(|fault| fault.status)?;
        if let Some(merged) = &merged {
            status(merged.late.rewrite(&mut exchange).await)?;
        }
        let chain = merged.as_ref().map_or(&*route.chain, |merged| &merged.chain);
        status(chain.access(&mut exchange).await)?;
        let texts = |name: &str| {
            let values = exchange.request.all(name);
            values.map(|v| String::from_utf8(v.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        let ran = [texts("ran"), texts("admitted")].concat();
        match &route.cluster {
            Some(cluster) => Ok((cluster.name.clone(), ran)),
            None => Err(route.cluster_fault().status),
        }
    }
}

fn nodes() -> Value {
    json!({"nodes": {"127.0.0.1:80": 1}})
}

fn tagged(tag: &str) -> Value {
    json!({"tag": {"tag": tag}})
}

#[tokio::test]
async fn a_route_finds_its_plugins_and_upstream_by_reference() {
    let mut world = World::new();
    // In whatever order they come.
    world.revision = 9;
    let rejected = world.apply(vec![
        put("/routes/1", json!({"uri": "/a", "service_id": "s", "plugin_config_id": "p"}), 9),
        put("/services/s", json!({"upstream_id": "u", "plugins": tagged("service")}), 9),
        put("/plugin_configs/p", json!({"plugins": tagged("config")}), 9),
        put("/upstreams/u", nodes(), 9),
        put(
            "/routes/2",
            json!({"uri": "/b", "service_id": "s", "plugins": tagged("own"), "upstream": nodes()}),
            9,
        ),
        put("/routes/3", json!({"uri": "/c", "service_id": "s"}), 9),
    ]);
    assert_eq!(rejected, [""; 0]);
    let ran = |tag: &str, seen: u8| vec![format!("{tag} {seen}"), tag.to_owned()];
    assert_eq!(world.ask("/a", "").await, Ok(("upstreams/u".into(), ran("config", 1))));
    assert_eq!(world.ask("/b", "").await, Ok(("routes/2".into(), ran("own", 1))));
    assert_eq!(world.ask("/c", "").await, Ok(("upstreams/u".into(), ran("service", 1))));
}

#[tokio::test]
async fn what_is_missing_answers_as_apisix_does_and_heals_when_it_comes() {
    let mut world = World::new();
    world.put("/routes/1", json!({"uri": "/upstream", "upstream_id": "u", "plugins": tagged("a")}));
    world.put("/routes/2", json!({"uri": "/service", "service_id": "s"}));
    world.put("/routes/3", json!({"uri": "/config", "plugin_config_id": "p", "upstream": nodes()}));
    world.put("/routes/4", json!({"uri": "/none", "plugins": tagged("b")}));
    for (path, status) in
        [("/upstream", 502), ("/service", 404), ("/config", 503), ("/none", 503), ("/else", 404)]
    {
        assert_eq!(world.ask(path, "").await, Err(status), "{path}");
    }
    world.put("/upstreams/u", nodes());
    world.put("/services/s", json!({"upstream_id": "u"}));
    world.put("/plugin_configs/p", json!({"plugins": {}}));
    for path in ["/upstream", "/service", "/config"] {
        assert!(world.ask(path, "").await.is_ok(), "{path}");
    }
    world.delete("/upstreams/u");
    world.delete("/plugin_configs/p");
    for (path, status) in [("/upstream", 502), ("/service", 502), ("/config", 503)] {
        assert_eq!(world.ask(path, "").await, Err(status), "{path}");
    }
}

#[tokio::test]
async fn what_is_rejected_keeps_its_previous_version() {
    let mut world = World::new();
    world.put("/routes/1", json!({"uri": "/a", "plugins": tagged("good"), "upstream": nodes()}));
    let rejected = world
        .put("/routes/1", json!({"uri": "/b", "plugins": tagged("never"), "upstream": nodes()}));
    assert_eq!(
        rejected,
        ["failed to check the configuration of plugin tag err: tag: this one is never compiled"]
    );
    assert_eq!(world.ask("/b", "").await, Err(404));
    assert_eq!(world.ask("/a", "").await.unwrap().1, ["good 1", "good"]);
    for broken in [
        json!({"uri": "/a", "plugins": {"no-such": {}}}),
        json!({"uri": "/a", "vars": [["x"]]}),
        json!({"uri": "/a", "remote_addr": "nowhere"}),
        json!({"uri": "/a*b"}),
        json!({"uri": "/a", "uris": ["/b"]}),
        json!({"uri": "/a", "host": "a", "hosts": ["b"]}),
        json!({"uri": "/a", "plugins": {"tag": {"tag": "x", "more": 1}}}),
        json!({"uri": "/a", "plugins": {"tag": {"tag": "x", "_meta": {"filter": ["a"]}}}}),
        json!({"uri": "/a", "upstream": {"type": "chash"}}),
        json!({"uri": "/a", "workload_selector": {"spiffe_ids": ["web-*"]}}),
    ] {
        let error = world.keeper.trial(&put("/routes/1", broken.clone(), 1)).unwrap_err();
        assert_eq!(world.put("/routes/1", broken.clone()), [error.to_string()], "{broken}");
        assert!(world.ask("/a", "").await.is_ok(), "{broken}");
    }
    // The others of a batch are taken.
    world.revision += 1;
    let rejected = world.apply(vec![
        put("/routes/1", json!({"uri": "/a", "plugins": {"no-such": {}}}), 50),
        put("/routes/2", json!({"uri": "/two", "upstream": nodes()}), 50),
    ]);
    assert_eq!(rejected, ["unknown plugin [no-such]"]);
    assert_eq!(world.found("/two").unwrap(), "2");
}

#[tokio::test]
async fn a_broken_route_without_a_previous_version_stands_in_its_place_and_refuses() {
    let mut world = World::new();
    world.put("/routes/all", json!({"uri": "/*", "upstream": nodes()}));
    world.put(
        "/routes/admin",
        json!({"uri": "/admin/*", "plugins": tagged("never"), "upstream": nodes()}),
    );
    // It must not fall through to the open route.
    assert_eq!(world.ask("/admin/x", "").await, Err(503));
    assert!(world.ask("/x", "").await.is_ok());
    // A condition that cannot be read holds; a path that can be read counts beside one that cannot.
    world.put("/routes/v", json!({"uris": ["/v", "/v*v"], "vars": "?", "upstream": nodes()}));
    assert_eq!(world.ask("/v", "").await, Err(503));
    world.put(
        "/routes/admin",
        json!({"uri": "/admin/*", "plugins": tagged("good"), "upstream": nodes()}),
    );
    assert!(world.ask("/admin/x", "").await.is_ok());
    // The same for what a route refers to.
    world.put("/services/s", json!({"plugins": tagged("never"), "upstream": nodes()}));
    world.put("/routes/s", json!({"uri": "/s", "service_id": "s"}));
    assert_eq!(world.ask("/s", "").await, Err(503));
    world.put("/plugin_configs/p", json!({"plugins": tagged("never")}));
    world.put("/routes/p", json!({"uri": "/p", "plugin_config_id": "p", "upstream": nodes()}));
    assert_eq!(world.ask("/p", "").await, Err(503));
    world.put("/upstreams/u", json!({"type": "chash"}));
    world.put("/routes/u", json!({"uri": "/u", "upstream_id": "u"}));
    assert_eq!(world.ask("/u", "").await, Err(503));
}

#[tokio::test]
async fn a_broken_global_rule_without_a_previous_version_closes_the_gateway() {
    let mut world = World::new();
    world.put("/routes/1", json!({"uri": "/a", "upstream": nodes()}));
    world.put("/global_rules/1", json!({"plugins": tagged("never")}));
    assert_eq!(world.ask("/a", "").await, Err(503));
    world.put("/global_rules/1", json!({"plugins": tagged("global")}));
    assert_eq!(world.ask("/a", "").await.unwrap().1, ["global 1"]);
    assert_eq!(world.put("/global_rules/1", json!({"plugins": tagged("never")})).len(), 1);
    assert_eq!(world.ask("/a", "").await.unwrap().1, ["global 2"]);
    // A plugin in two of them is refused at the write; if it happens all the same, both run.
    let second = put("/global_rules/2", json!({"plugins": tagged("second")}), 9);
    let error = world.keeper.trial(&second).unwrap_err().to_string();
    assert_eq!(error, "plugin 'tag' already exists in global rule with id '1'");
    let again = put("/global_rules/1", json!({"plugins": tagged("again")}), 9);
    assert_eq!(world.keeper.trial(&again), Ok(()));
    world.apply(vec![second]);
    assert_eq!(world.ask("/a", "").await.unwrap().1, ["global 3", "second 1"]);
    world.delete("/global_rules/1");
    world.delete("/global_rules/2");
    assert_eq!(world.ask("/a", "").await.unwrap().1, [""; 0]);
}

#[tokio::test]
async fn state_survives_a_revision_is_not_shared_by_owners_and_dies_with_its_last_user() {
    let mut world = World::new();
    world.put("/routes/1", json!({"uri": "/a", "plugins": tagged("one"), "upstream": nodes()}));
    world.put("/routes/2", json!({"uri": "/b", "plugins": tagged("two"), "upstream": nodes()}));
    assert_eq!(world.ask("/a", "").await.unwrap().1[0], "one 1");
    assert_eq!(world.ask("/a", "").await.unwrap().1[0], "one 2");
    world.put("/routes/1", json!({"uri": "/a", "plugins": tagged("new"), "upstream": nodes()}));
    assert_eq!(world.ask("/a", "").await.unwrap().1[0], "new 3");
    assert_eq!(world.ask("/b", "").await.unwrap().1[0], "two 1");
    world.delete("/routes/1");
    world.put("/routes/1", json!({"uri": "/a", "plugins": tagged("reborn"), "upstream": nodes()}));
    assert_eq!(world.ask("/a", "").await.unwrap().1[0], "reborn 1");
    // A service's state is its routes' together.
    world.put("/services/s", json!({"plugins": tagged("s"), "upstream": nodes()}));
    world.put("/routes/3", json!({"uri": "/c", "service_id": "s"}));
    world.put("/routes/4", json!({"uri": "/d", "service_id": "s"}));
    assert_eq!(world.ask("/c", "").await.unwrap().1[0], "s 1");
    assert_eq!(world.ask("/d", "").await.unwrap().1[0], "s 2");
}

#[tokio::test]
async fn only_what_changed_is_compiled_and_all_else_is_the_same_object() {
    let mut world = World::new();
    world.put("/upstreams/u", nodes());
    world.put("/services/s", json!({"upstream_id": "u", "plugins": {"auth": {}}}));
    world.put(
        "/routes/1",
        json!({"uri": "/a", "service_id": "s", "timeout": {"connect": 1, "send": 1, "read": 1}}),
    );
    world.put("/routes/2", json!({"uri": "/b", "upstream_id": "u"}));
    let before = world.keeper.current().clone();
    let look = |snapshot: &Snapshot, path: &str| {
        let mut exchange = exchange("GET", path, "h");
        let route = snapshot.route(Listeners::Ingress, &mut exchange).unwrap().unwrap();
        (route.info.clone(), route.cluster.clone().unwrap())
    };
    world.put("/services/s", json!({"upstream_id": "u", "plugins": {}}));
    let after = world.keeper.current().clone();
    let (old, new) = (look(&before, "/a"), look(&after, "/a"));
    // Put together anew, with the cluster that it had.
    assert!(!Arc::ptr_eq(&old.0, &new.0) && Arc::ptr_eq(&old.1, &new.1));
    // It is one of its own: the route has time limits.
    assert!(!Arc::ptr_eq(&new.1, &look(&after, "/b").1));
    let (old, new) = (look(&before, "/b"), look(&after, "/b"));
    assert!(Arc::ptr_eq(&old.0, &new.0) && Arc::ptr_eq(&old.1, &new.1));
    world.put("/upstreams/u", nodes());
    let newest = look(world.keeper.current(), "/b");
    assert!(!Arc::ptr_eq(&newest.1, &new.1));
    assert!(Arc::ptr_eq(&before.policy, &world.keeper.current().policy));
    assert!(Arc::ptr_eq(&before.sites, &world.keeper.current().sites));
}

#[test]
fn a_door_has_its_own_routes_and_a_workload_those_that_mean_it() {
    let mut world = World::new();
    for (key, body) in [
        ("/routes/public", json!({"uri": "/x", "upstream": nodes()})),
        ("/routes/in", json!({"uri": "/x", "upstream": nodes(), "workload_selector": {}})),
        (
            "/routes/out",
            json!({"uri": "/x", "upstream": nodes(), "workload_selector": {"listener": "outbound", "spiffe_ids": ["spiffe://shop/*"]}}),
        ),
        (
            "/routes/other",
            json!({"uri": "/y", "upstream": nodes(), "workload_selector": {"spiffe_ids": ["spiffe://shop/web"]}}),
        ),
        ("/routes/off", json!({"uri": "/z", "upstream": nodes(), "status": 0})),
    ] {
        assert!(world.put(key, body).is_empty(), "{key}");
    }
    let at = |world: &World, door, target: &str| {
        world.route_at(door, target).map(|(info, _)| info.id.to_string())
    };
    assert_eq!(at(&world, Listeners::Ingress, "/x").as_deref(), Some("public"));
    assert_eq!(at(&world, Listeners::Inbound, "/x").as_deref(), Some("in"));
    assert_eq!(at(&world, Listeners::Outbound, "/x").as_deref(), Some("out"));
    assert_eq!(at(&world, Listeners::Inbound, "/y"), None);
    assert_eq!(at(&world, Listeners::Ingress, "/z"), None);
    world.put("/routes/in", json!({"uri": "/x", "upstream": nodes()}));
    assert_eq!(at(&world, Listeners::Inbound, "/x"), None);

    let mut nobody = World::of(None);
    nobody.put("/routes/other", json!({"uri": "/y", "upstream": nodes(), "workload_selector": {"spiffe_ids": ["spiffe://shop/web"]}}));
    assert_eq!(at(&nobody, Listeners::Inbound, "/y"), None);
}

#[test]
fn methods_addresses_and_vars_are_conditions_and_the_next_route_is_tried() {
    let mut world = World::new();
    for (key, body) in [
        ("/routes/1", json!({"uri": "/x", "methods": ["POST"], "upstream": nodes()})),
        ("/routes/2", json!({"uri": "/x", "remote_addrs": ["10.0.0.0/8"], "upstream": nodes()})),
        ("/routes/3", json!({"uri": "/x", "vars": [["arg_v", "==", "3"]], "upstream": nodes()})),
        ("/routes/4", json!({"uri": "/*", "upstream": nodes(), "priority": 100})),
    ] {
        assert!(world.put(key, body).is_empty(), "{key}");
    }
    assert_eq!(world.found("/x?v=3").as_deref(), Some("3"));
    assert_eq!(world.found("/x").as_deref(), Some("4"));
    let mut post = exchange("POST", "/x?v=3", "h");
    let route = world.keeper.current().route(Listeners::Ingress, &mut post).unwrap().unwrap();
    assert_eq!(route.info.id.as_str(), "1");
    let mut near = exchange("GET", "/x?v=3", "h");
    near.client = Arc::new(Client { address: "10.1.1.1:1".parse().unwrap(), ..client() });
    let route = world.keeper.current().route(Listeners::Ingress, &mut near).unwrap().unwrap();
    assert_eq!(route.info.id.as_str(), "2");
}

#[test]
fn the_exchange_learns_what_matched() {
    let mut world = World::new();
    world.keeper = Keeper::new(&TABLE, None, Registry::new()).with_router(RouterSettings {
        http: crate::snapshot::RouterKind::UriWithParameter,
        ..RouterSettings::default()
    });
    world.put("/services/s", json!({"hosts": ["a.b", "*.h"], "name": "svc", "labels": {"a": "1", "b": "1"}, "upstream": nodes()}));
    world.put("/routes/1", json!({"uris": ["/none", "/u/:id/*rest"], "service_id": "s", "labels": {"b": "2"}, "name": "users"}));
    let mut exchange = exchange("GET", "/u/7%20/x//y?q", "Www.H:80");
    let route = world.keeper.current().route(Listeners::Ingress, &mut exchange).unwrap().unwrap();
    assert_eq!((route.has_auth, route.websocket), (false, false));
    assert_eq!((exchange.matched_path, exchange.matched_host), (1, Some(1)));
    let param = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(exchange.params, [param("id", "7 "), param("rest", "x/y")]);
    let info = exchange.route.unwrap();
    assert_eq!(info.hosts, ["a.b", "*.h"]);
    assert_eq!(info.service_name.as_deref(), Some("svc"));
    assert_eq!(info.labels, [param("a", "1"), param("b", "2")].into());
}

#[tokio::test]
async fn consumers_are_found_by_key_and_bring_their_plugins() {
    let mut world = World::new();
    world.put("/routes/1", json!({"uri": "/a", "plugins": {"auth": {}}, "upstream": nodes()}));
    world.put(
        "/routes/2",
        json!({"uri": "/b", "plugins": {"auth": {}, "tag": {"tag": "route"}}, "upstream": nodes()}),
    );
    assert_eq!(world.ask("/a", "k1").await, Err(401));
    world.put(
        "/consumers/bob",
        json!({"username": "bob", "plugins": {"auth": {"key": "k1"}, "tag": {"tag": "bob"}}}),
    );
    world.put("/consumers/bob/credentials/one", json!({"plugins": {"auth": {"key": "k2"}}}));
    world.put(
        "/consumers/ann",
        json!({"username": "ann", "plugins": {"auth": {"key": "k3"}}, "group_id": "g"}),
    );
    // What came with the consumer alone rewrites late; what the route has as well has rewritten already.
    assert_eq!(world.ask("/a", "k1").await.unwrap().1, ["bob 1", "bob"]);
    assert_eq!(world.ask("/a", "k2").await.unwrap().1, ["bob 2", "bob"]);
    assert_eq!(world.ask("/b", "k1").await.unwrap().1, ["route 1", "bob"]);
    // A group that does not exist refuses.
    assert_eq!(world.ask("/a", "k3").await, Err(503));
    world.put("/consumer_groups/g", json!({"plugins": tagged("group")}));
    assert_eq!(world.ask("/a", "k3").await.unwrap().1, ["group 1", "group"]);
    assert_eq!(world.ask("/b", "k3").await.unwrap().1, ["route 2", "group"]);
    let (found, settings) = world.keeper.current().consumers.find("auth", "k2").unwrap();
    assert_eq!((found.name.as_str(), found.credential.as_deref()), ("bob", Some("one")));
    assert_eq!(*settings, json!({"key": "k2"}));
    // Without its consumer a credential opens nothing.
    world.delete("/consumers/bob");
    assert_eq!(world.ask("/a", "k2").await, Err(401));
    assert_eq!(world.ask("/a", "k1").await, Err(401));
}

#[tokio::test]
async fn a_key_belongs_to_one_consumer_and_may_move_within_a_batch() {
    let mut world = World::new();
    world.put("/routes/1", json!({"uri": "/a", "plugins": {"auth": {}}, "upstream": nodes()}));
    let consumer = |name: &str, key: &str| {
        put(
            &format!("/consumers/{name}"),
            json!({"username": name, "plugins": {"auth": {"key": key}}}),
            1,
        )
    };
    assert!(world.apply(vec![consumer("ann", "a"), consumer("bob", "b")]).is_empty());
    let taken = "duplicate key of plugin auth found with consumer: ann";
    assert_eq!(world.keeper.trial(&consumer("bob", "a")).unwrap_err().to_string(), taken);
    assert_eq!(world.keeper.trial(&consumer("ann", "a")), Ok(()));
    assert_eq!(world.apply(vec![consumer("bob", "a")]), [taken]);
    let who = |world: &World, key: &str| {
        world.keeper.current().consumers.find("auth", key).map(|(found, _)| found.name.clone())
    };
    // The refused one keeps its previous key.
    assert_eq!(
        (who(&world, "a").as_deref(), who(&world, "b").as_deref()),
        (Some("ann"), Some("bob"))
    );
    assert!(world.apply(vec![consumer("ann", "b"), consumer("bob", "a")]).is_empty());
    assert_eq!(
        (who(&world, "a").as_deref(), who(&world, "b").as_deref()),
        (Some("bob"), Some("ann"))
    );
    for (plugins, says) in [
        (json!({"auth": {"key": ""}}), "an empty key"),
        (json!({"auth": {"key": "$secret://vault/1/a"}}), "cannot be resolved"),
        (json!({"auth": {"kee": "x"}}), "unknown field `kee`"),
        (json!({"tag": {"tag": "x"}}), "exactly one auth plugin"),
        (json!({}), "exactly one auth plugin"),
    ] {
        let change = put("/consumers/ann/credentials/c", json!({"plugins": plugins}), 1);
        let error = world.keeper.trial(&change).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(world.apply(vec![change]), [error]);
    }
    assert_eq!(world.ask("/a", "$secret://vault/1/a").await, Err(401));
}

#[tokio::test]
async fn metadata_reaches_every_carrier_and_may_not_break_one() {
    let mut world = World::new();
    world.put("/routes/1", json!({"uri": "/a", "plugins": tagged("red"), "upstream": nodes()}));
    world.put("/services/s", json!({"plugins": tagged("blue"), "upstream": nodes()}));
    let forbid = |tag: &str| put("/plugin_metadata/tag", json!({"id": "tag", "forbid": tag}), 3);
    assert_eq!(world.keeper.trial(&forbid("green")), Ok(()));
    let error = world.keeper.trial(&forbid("blue")).unwrap_err().to_string();
    assert!(error.starts_with("service [s] would break: failed to check"), "{error}");
    let unknown = put("/plugin_metadata/tag", json!({"allow": "x"}), 3);
    assert!(world.keeper.trial(&unknown).is_err());
    assert_eq!(world.apply(vec![forbid("red")]).len(), 1);
    // It keeps the hooks that it had.
    assert_eq!(world.ask("/a", "").await.unwrap().1, ["red 1", "red"]);
    assert_eq!(world.put("/routes/1", json!({"uri": "/b", "plugins": tagged("red")})).len(), 1);
    assert!(
        world
            .put("/routes/1", json!({"uri": "/b", "plugins": tagged("tan"), "upstream": nodes()}))
            .is_empty()
    );
    assert_eq!(world.ask("/b", "").await.unwrap().1, ["tan 2", "tan"]);
}

#[tokio::test]
async fn a_trial_changes_nothing() {
    let mut world = World::new();
    world.put("/routes/1", json!({"uri": "/a", "plugins": tagged("one"), "upstream": nodes()}));
    let before = world.keeper.current().clone();
    let change =
        put("/routes/1", json!({"uri": "/b", "plugins": tagged("two"), "upstream": nodes()}), 7);
    assert_eq!(world.keeper.trial(&change), Ok(()));
    assert_eq!(world.keeper.trial(&delete("/routes/1")), Ok(()));
    assert!(Arc::ptr_eq(&before, world.keeper.current()));
    assert_eq!(world.ask("/a", "").await.unwrap().1[0], "one 1");
}

#[test]
fn policies_and_certificates_are_part_of_a_snapshot() {
    let mut world = World::new();
    let policy = |rules: Value| json!({"action": "allow", "rules": rules});
    assert!(world.put("/identity_policies/p", policy(json!([{}, {"name": "b"}]))).is_empty());
    assert_eq!(world.keeper.current().policy.rule_count(), 2);
    assert_eq!(world.put("/identity_policies/p", policy(json!([]))).len(), 1);
    assert_eq!(world.keeper.current().policy.rule_count(), 2);
    world.delete("/identity_policies/p");
    assert_eq!(world.keeper.current().policy.rule_count(), 0);

    let made = rcgen::generate_simple_self_signed(["a.b".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let ssl =
        |status: u8, sni: &str| json!({"cert": cert, "key": key, "sni": sni, "status": status});
    assert!(world.put("/ssls/1", ssl(1, "a.b")).is_empty());
    assert!(world.put("/ssls/2", ssl(0, "c.d")).is_empty());
    let served = |world: &World, name: &str| world.keeper.current().sites.find(name).cloned();
    let first = served(&world, "a.b").unwrap();
    assert!(served(&world, "c.d").is_none(), "status 0");
    // What is refused leaves the version before, and what is the same changes nothing: sessions and stapled answers stay.
    let two_ways = json!({"cert": cert, "key": key, "sni": "a.b", "snis": ["b"]});
    assert_eq!(world.put("/ssls/1", two_ways).len(), 1);
    assert_eq!(world.put("/ssls/1", json!({"cert": cert, "key": "k", "sni": "a.b"})).len(), 1);
    assert!(world.put("/ssls/1", ssl(1, "a.b")).is_empty());
    assert!(Arc::ptr_eq(&first, &served(&world, "a.b").unwrap()));
    // A certificate that stays takes its stapled answer along.
    let mut relabelled = ssl(1, "a.b");
    relabelled["labels"] = json!({"a": "b"});
    world.put("/ssls/1", relabelled);
    let second = served(&world, "a.b").unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert!(Arc::ptr_eq(&first.certificates()[0], &second.certificates()[0]));
    let client = json!({"cert": cert, "key": key, "type": "client"});
    assert!(world.put("/ssls/1", client).is_empty());
    assert!(served(&world, "a.b").is_none(), "it is for upstreams by now");
    world.delete("/ssls/1");
    assert!(
        world
            .put(
                "/workloads/w",
                json!({"spiffe_id": "spiffe://shop/a", "selectors": ["unix:uid:1"]})
            )
            .is_empty()
    );
}

#[test]
fn among_ten_thousand_routes_a_change_touches_one() {
    let mut world = World::new();
    let route = |at: usize| {
        let body = json!({"uri": format!("/r/{at}"), "upstream": nodes()});
        put(&format!("/routes/{at}"), body, 1)
    };
    assert!(world.apply((0..10_000).map(route).collect()).is_empty());
    let before: Vec<_> =
        (0..10_000).map(|at| world.route(&format!("/r/{at}")).unwrap().0).collect();
    world.put("/routes/77", json!({"uri": "/r/77", "plugins": tagged("x"), "upstream": nodes()}));
    for (at, before) in before.iter().enumerate() {
        let now = world.route(&format!("/r/{at}")).unwrap().0;
        assert_eq!(Arc::ptr_eq(before, &now), at != 77, "{at}");
    }
}
