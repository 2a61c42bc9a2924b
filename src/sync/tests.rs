//! Publisher and subscriber over real sockets, with a line of text in the handshake's place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Response, Status, Streaming};

use super::generated::feed as wire;
use super::generated::feed::feed_client::FeedClient;
use super::generated::feed::feed_server::{Feed as FeedService, FeedServer};
use super::generated::feed::from_data_plane::Message;
use super::last_good::{LastGood, Saved};
use super::publisher::{Convergence, PeerStream, Publisher};
use super::scope::Role;
use super::subscriber::{Connect, Settings, Subscriber};
use super::{Applied, Batch, Feed};
use crate::model::{Body, Change, Id, Kind, Rejected, Resource, Revision};
use crate::rt::{Drain, Tasks};
use crate::store::memory::Memory;
use crate::store::{Expect, Store};

mod canary;
mod moving;

const CART: &str = "spiffe://shop/cart";
const WEB: &str = "spiffe://shop/web";
const EDGE: &str = "spiffe://shop/wardgate/ingress";
const SOON: Duration = Duration::from_secs(10);

/// A store, and the control plane that stands before it at the moment.
struct World {
    store: Arc<Memory>,
    address: watch::Sender<SocketAddr>,
    control: Option<Control>,
}

struct Control {
    publisher: Publisher,
    drain: Drain,
    _tasks: Tasks,
}

impl World {
    async fn new() -> Self {
        let mut world = Self {
            store: Arc::new(Memory::new()),
            address: watch::channel("127.0.0.1:1".parse().unwrap()).0,
            control: None,
        };
        world.start().await;
        world
    }

    /// Starts a control plane on a port of its own.
    async fn start(&mut self) {
        self.start_without_store().await;
        self.follow();
    }

    async fn start_without_store(&mut self) {
        let authorize = |id: &str, role: Role| match role {
            Role::Sidecar => id.starts_with("spiffe://shop/"),
            Role::Ingress => id == EDGE,
            Role::Issuer => false,
        };
        let publisher = Publisher::new(super::scope::tests::rules(), Arc::new(authorize));
        self.start_with(publisher).await;
    }

    async fn start_with(&mut self, publisher: Publisher) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.address.send_replace(listener.local_addr().unwrap());
        let drain = Drain::new();
        let mut tasks = Tasks::new();
        let (serving, guard) = (publisher.clone(), drain.guard());
        tasks.add(async move { serving.serve(handshakes(listener), guard).await.unwrap() });
        self.control = Some(Control { publisher, drain, _tasks: tasks });
    }

    fn follow(&mut self) {
        let control = self.control.as_mut().unwrap();
        let (publisher, guard) = (control.publisher.clone(), control.drain.guard());
        let store = self.store.clone();
        control
            ._tasks
            .add(async move { publisher.follow(&*store, "/apisix", guard).await.unwrap() });
    }

    async fn stop(&mut self) {
        let control = self.control.take().unwrap();
        assert!(control.drain.drain(SOON).await, "the control plane ends when it is asked to");
    }

    fn publisher(&self) -> &Publisher {
        &self.control.as_ref().unwrap().publisher
    }

    async fn put(&self, name: &str, value: Value) -> Revision {
        let stored =
            self.store.put(&format!("/apisix/{name}"), &value, Expect::Anything, None).await;
        stored.unwrap().modified
    }

    async fn delete(&self, name: &str) {
        self.store.delete(&format!("/apisix/{name}"), Expect::Anything).await.unwrap();
    }

    async fn applied(&self, revision: Revision) -> Convergence {
        let convergence = self.publisher().wait_applied(revision, SOON).await;
        assert!(convergence.has_applied(revision), "{convergence:?}");
        convergence
    }

    fn data_plane(&self, role: Role, spiffe_id: &str) -> DataPlane {
        self.data_plane_with(role, spiffe_id, None)
    }

    fn data_plane_with(
        &self,
        role: Role,
        spiffe_id: &str,
        last_good: Option<(LastGood, Option<Saved>)>,
    ) -> DataPlane {
        let connect = Dial { address: self.address.subscribe(), spiffe_id: spiffe_id.into() };
        DataPlane::new(Subscriber::start(quick(role), connect, last_good))
    }
}

fn quick(role: Role) -> Settings {
    let retry = (Duration::from_millis(5), Duration::from_millis(20));
    Settings { retry, save_after: Duration::from_millis(1), ..Settings::new(role, "node-1") }
}

/// Accepts connections whose first line is the SPIFFE ID.
fn handshakes(listener: TcpListener) -> impl futures_util::Stream<Item = PeerStream<TcpStream>> {
    stream::unfold(listener, |listener| async {
        loop {
            let (mut stream, _) = listener.accept().await.ok()?;
            let mut line = Vec::new();
            while let Ok(byte) = stream.read_u8().await {
                if byte == b'\n' {
                    let spiffe_id = String::from_utf8(line).unwrap().into();
                    return Some((PeerStream { stream, spiffe_id }, listener));
                }
                line.push(byte);
            }
        }
    })
}

struct Dial {
    address: watch::Receiver<SocketAddr>,
    spiffe_id: String,
}

#[async_trait]
impl Connect for Dial {
    type Stream = TcpStream;
    async fn connect(&self) -> io::Result<TcpStream> {
        let address = *self.address.borrow();
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("{}\n", self.spiffe_id).as_bytes()).await?;
        Ok(stream)
    }
}

/// Reads a feed as a keeper does, and refuses what it is told to refuse.
struct DataPlane {
    feed: Subscriber,
    state: BTreeMap<String, Resource>,
    refuses: BTreeSet<(String, Revision)>,
    restores: Vec<(Kind, Id)>,
}

impl DataPlane {
    fn new(feed: Subscriber) -> Self {
        Self { feed, state: BTreeMap::new(), refuses: BTreeSet::new(), restores: Vec::new() }
    }

    async fn next(&mut self) -> Batch {
        tokio::time::timeout(SOON, self.feed.next()).await.expect("a batch comes")
    }

    fn apply(&mut self, batch: &Batch) {
        let name = |kind: Kind, id: &Id| format!("{kind}/{id}");
        if batch.complete {
            let unreadable = batch.unreadable.iter().map(|refusal| name(refusal.kind, &refusal.id));
            let named: BTreeSet<String> = names(batch).into_iter().chain(unreadable).collect();
            self.state.retain(|name, _| named.contains(name));
        }
        let mut rejected = Vec::new();
        for change in &batch.changes {
            match change {
                Change::Put(resource) => {
                    let Resource { kind, id, revision, .. } = resource;
                    if self.refuses.contains(&(name(*kind, id), *revision)) {
                        let reason = "refused by the test".into();
                        rejected.push(Rejected {
                            kind: *kind,
                            id: id.clone(),
                            revision: *revision,
                            reason,
                        });
                    } else {
                        self.state.insert(name(*kind, id), resource.clone());
                    }
                }
                Change::Delete(kind, id) => {
                    self.state.remove(&name(*kind, id));
                }
            }
        }
        let restored = std::mem::take(&mut self.restores);
        self.feed.applied(Applied { revision: batch.revision, rejected, restored });
    }

    async fn step(&mut self) -> Batch {
        let batch = self.next().await;
        self.apply(&batch);
        batch
    }

    /// Takes what comes, in the background.
    fn run(mut self) -> Tasks {
        let mut tasks = Tasks::new();
        tasks.add(async move {
            loop {
                let batch = self.feed.next().await;
                self.apply(&batch);
            }
        });
        tasks
    }
}

fn names(batch: &Batch) -> Vec<String> {
    let mut names: Vec<String> = batch
        .changes
        .iter()
        .map(|change| match change {
            Change::Put(resource) => format!("{}/{}", resource.kind, resource.id),
            Change::Delete(kind, id) => format!("-{kind}/{id}"),
        })
        .collect();
    names.sort();
    names
}

fn route(uri: &str) -> Value {
    json!({"uri": uri, "upstream": {"nodes": {"127.0.0.1:1": 1}}})
}

fn route_of(workload: &str, uri: &str) -> Value {
    let mut route = route(uri);
    route["workload_selector"] = json!({"spiffe_ids": [workload]});
    route
}

#[tokio::test]
async fn a_data_plane_receives_everything_once_and_then_what_changes() {
    let world = World::new().await;
    world.put("routes/1", route("/1")).await;
    world.put("routes/2", route("/2")).await;
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    let first = edge.step().await;
    assert!(first.complete);
    assert_eq!(names(&first), ["routes/1", "routes/2"]);

    let revision = world.put("routes/2", route("/two")).await;
    let second = edge.step().await;
    assert!(!second.complete);
    assert_eq!((names(&second), second.revision), (vec!["routes/2".into()], revision));
    world.delete("routes/1").await;
    assert_eq!(names(&edge.step().await), ["-routes/1"]);

    let convergence = world.applied(revision + 1).await;
    let plane = &convergence.data_planes[0];
    assert_eq!((&*plane.spiffe_id, &*plane.node, plane.role), (EDGE, "node-1", Role::Ingress));
    assert_eq!((plane.applied, plane.sent), (revision + 1, 4));
    assert_eq!(plane.version, env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn a_sidecar_receives_only_its_own_and_changes_elsewhere_count_as_applied() {
    let world = World::new().await;
    world.put("routes/cart", route_of(CART, "/")).await;
    world.put("routes/web", route_of(WEB, "/")).await;
    world
        .put("consumers/bob", json!({"username": "bob", "plugins": {"key-auth": {"key": "bobs"}}}))
        .await;
    let mut cart = world.data_plane(Role::Sidecar, CART);
    assert_eq!(names(&cart.step().await), ["routes/cart"]);
    let revision = world.put("routes/web", route_of(WEB, "/web")).await;
    assert_eq!(world.applied(revision).await.data_planes[0].sent, 1);

    // The route moves in, and what it needs with it.
    let mut with_auth = route_of(CART, "/");
    with_auth["plugins"] = json!({"key-auth": {}});
    world.put("routes/web", with_auth).await;
    assert_eq!(names(&cart.step().await), ["consumers/bob", "routes/web"]);
    world.put("routes/web", route_of(WEB, "/")).await;
    assert_eq!(names(&cart.step().await), ["-consumers/bob", "-routes/web"]);
}

#[tokio::test]
async fn a_data_plane_that_comes_back_receives_only_what_changed_meanwhile() {
    let mut world = World::new().await;
    for number in 0..500 {
        world.put(&format!("routes/{number}"), route("/")).await;
    }
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    assert_eq!(edge.step().await.changes.len(), 500);
    world.stop().await;
    world.put("routes/7", route("/seven")).await;
    world.delete("routes/8").await;
    world.start().await;
    let batch = edge.step().await;
    assert!(!batch.complete);
    assert_eq!(names(&batch), ["-routes/8", "routes/7"]);
    let convergence = world.applied(batch.revision).await;
    assert_eq!(convergence.data_planes[0].sent, 2);
    assert_eq!(edge.state.len(), 499);
}

#[tokio::test]
async fn a_store_with_other_contents_under_the_same_revisions_is_noticed() {
    let mut world = World::new().await;
    world.put("routes/1", route("/old")).await;
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    edge.step().await;
    world.stop().await;
    world.store = Arc::new(Memory::new());
    world.put("routes/1", route("/new")).await;
    world.start().await;
    assert_eq!(names(&edge.step().await), ["routes/1"]);
}

#[tokio::test]
async fn a_data_plane_starts_from_its_last_good_copy_without_a_control_plane_and_goes_on_from_there()
 {
    let folder = Folder::new("restart");
    let path = folder.0.join("last-good");
    let owner = "ingress spiffe://shop/wardgate/ingress";
    let mut world = World::new().await;
    world.put("routes/1", route("/1")).await;
    world.put("routes/2", route("/2")).await;
    let mut edge =
        world.data_plane_with(Role::Ingress, EDGE, Some(LastGood::open(&path, owner).unwrap()));
    let revision = edge.step().await.revision;
    world.applied(revision).await;
    saved(&path, owner, |saved| saved.revision == revision).await;
    drop(edge);
    world.stop().await;

    let mut edge =
        world.data_plane_with(Role::Ingress, EDGE, Some(LastGood::open(&path, owner).unwrap()));
    let from_disk = edge.step().await;
    assert!(from_disk.complete);
    assert_eq!(
        (names(&from_disk), from_disk.revision),
        (vec!["routes/1".into(), "routes/2".into()], revision)
    );
    world.put("routes/3", route("/3")).await;
    world.start().await;
    assert_eq!(names(&edge.step().await), ["routes/3"]);
    saved(&path, owner, |saved| saved.resources.len() == 3).await;
}

#[tokio::test]
async fn the_end_writes_what_was_not_written_yet() {
    let folder = Folder::new("close");
    let path = folder.0.join("last-good");
    let world = World::new().await;
    let connect = Dial { address: world.address.subscribe(), spiffe_id: EDGE.into() };
    let settings = Settings { save_after: Duration::from_secs(3600), ..quick(Role::Ingress) };
    let feed = Subscriber::start(settings, connect, Some(LastGood::open(&path, "x").unwrap()));
    let mut edge = DataPlane::new(feed);
    for number in 0..5 {
        edge.step().await;
        world.put(&format!("routes/{number}"), route("/")).await;
    }
    world.applied(edge.step().await.revision).await;
    edge.feed.close().await;
    assert_eq!(saved(&path, "x", |_| true).await.resources.len(), 5);
}

async fn saved(path: &std::path::Path, owner: &str, holds: impl Fn(&Saved) -> bool) -> Saved {
    for _ in 0..1000 {
        if let Ok((_, Some(saved))) = LastGood::open(path, owner)
            && holds(&saved)
        {
            return saved;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the last good copy is not what it should be");
}

#[tokio::test]
async fn what_a_data_plane_refuses_is_shown_and_the_version_before_stays_the_last_good_one() {
    let folder = Folder::new("refuse");
    let path = folder.0.join("last-good");
    let mut world = World::new().await;
    let good = world.put("routes/1", route("/good")).await;
    let mut edge =
        world.data_plane_with(Role::Ingress, EDGE, Some(LastGood::open(&path, "x").unwrap()));
    edge.step().await;
    world.applied(good).await;
    let bad = good + 1;
    edge.refuses.insert(("routes/1".into(), bad));
    assert_eq!(world.put("routes/1", route("/bad")).await, bad);
    edge.step().await;
    let convergence = world.applied(bad).await;
    let [refusal] = &convergence.data_planes[0].rejected[..] else { panic!("{convergence:?}") };
    assert_eq!((refusal.kind, refusal.id.as_str(), refusal.revision), (Kind::Routes, "1", bad));
    assert_eq!(refusal.reason, "refused by the test");
    let copy = saved(&path, "x", |saved| saved.revision == bad).await;
    let raw = &copy.resources[&(Kind::Routes, Id::parse("1").unwrap())];
    assert_eq!(raw.version.revision, good);

    // Another change does not make it forgotten.
    let other = world.put("routes/2", route("/2")).await;
    edge.step().await;
    assert_eq!(world.applied(other).await.data_planes[0].rejected.len(), 1);
    let copy = saved(&path, "x", |saved| saved.revision == other).await;
    assert_eq!(copy.resources[&(Kind::Routes, Id::parse("1").unwrap())].version.revision, good);

    // It is offered again to a data plane that comes back, and forgotten when it is put right.
    world.stop().await;
    world.start().await;
    assert_eq!(names(&edge.step().await), ["routes/1"]);
    let fixed = world.put("routes/1", route("/fixed")).await;
    edge.step().await;
    assert!(world.applied(fixed).await.data_planes[0].rejected.is_empty());
}

#[tokio::test]
async fn what_changes_while_a_data_plane_is_busy_arrives_once_and_newest() {
    let world = World::new().await;
    world.put("routes/1", route("/0")).await;
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    let busy = edge.next().await;
    let mut newest = 0;
    for number in 1..=50 {
        newest = world.put("routes/1", route(&format!("/{number}"))).await;
    }
    world.put("routes/2", route("/2")).await;
    world.put("routes/3", route("/3")).await;
    world.delete("routes/3").await;
    // The publisher has seen all of it; the data plane has answered none of it.
    let revision = newest + 3;
    while world.publisher().convergence().revision < revision {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(
        !world.publisher().wait_applied(newest, Duration::from_millis(1)).await.has_applied(newest)
    );
    edge.apply(&busy);
    let batch = edge.step().await;
    assert_eq!(names(&batch), ["routes/1", "routes/2"]);
    assert_eq!(edge.state["routes/1"].revision, newest);
    assert_eq!(world.applied(revision).await.data_planes[0].sent, 3);
}

#[tokio::test]
async fn a_large_state_comes_in_parts_and_is_one_batch() {
    let world = World::new().await;
    let long = "x".repeat(2000);
    for number in 0..2000 {
        world.put(&format!("routes/{number}"), route(&format!("/{long}"))).await;
    }
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    let batch = edge.step().await;
    assert!(batch.complete);
    assert_eq!(batch.changes.len(), 2000);

    let mut deltas = raw(&world, EDGE, vec![hello("ingress")]).await.unwrap();
    let (mut parts, mut puts) = (0, 0);
    while let Some(delta) = deltas.message().await.unwrap() {
        parts += 1;
        puts += delta.puts.len();
        if !delta.more {
            assert!(delta.complete && delta.revision > 0);
            break;
        }
        assert!(!delta.complete && delta.revision == 0);
    }
    assert_eq!(puts, 2000);
    assert!(parts > 3, "{parts} parts");
}

#[tokio::test]
async fn a_role_that_the_certificate_may_not_have_is_refused() {
    let world = World::new().await;
    let refused = raw(&world, CART, vec![hello("ingress")]).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "spiffe://shop/cart may not be a data plane of role ingress");
    for (role, first, code) in [
        (CART, hello("king"), Code::InvalidArgument),
        (CART, Message::Ack(wire::Ack::default()), Code::InvalidArgument),
        ("spiffe://elsewhere/cart", hello("sidecar"), Code::PermissionDenied),
    ] {
        assert_eq!(raw(&world, role, vec![first]).await.unwrap_err().code(), code);
    }
    assert!(world.publisher().convergence().data_planes.is_empty());

    let mut status = world.data_plane(Role::Issuer, CART);
    let live = status.feed.status();
    let seen = tokio::time::timeout(SOON, async {
        let mut waiting = live.clone();
        while live.load().error.is_none() {
            waiting.changed().await;
        }
    });
    tokio::select! {
        _ = status.next() => panic!("nothing is fed"),
        seen = seen => seen.unwrap(),
    }
    assert!(live.load().error.as_ref().unwrap().contains("may not be a data plane of role issuer"));
}

#[tokio::test]
async fn an_answer_to_nothing_ends_the_stream() {
    let world = World::new().await;
    let ack = Message::Ack(wire::Ack { nonce: 99, ..wire::Ack::default() });
    let mut deltas = raw(&world, EDGE, vec![hello("ingress"), ack]).await.unwrap();
    let end = loop {
        match deltas.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_process_that_comes_again_replaces_its_earlier_stream() {
    let world = World::new().await;
    let hello = || {
        let Message::Hello(hello) = hello("ingress") else { unreachable!() };
        vec![Message::Hello(wire::Hello { instance: "same".into(), ..hello })]
    };
    let mut first = raw(&world, EDGE, hello()).await.unwrap();
    first.message().await.unwrap();
    let mut second = raw(&world, EDGE, hello()).await.unwrap();
    second.message().await.unwrap();
    assert_eq!(first.message().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(world.publisher().convergence().data_planes.len(), 1);
}

fn hello(role: &str) -> Message {
    Message::Hello(wire::Hello {
        role: role.into(),
        node: "raw".into(),
        version: "0".into(),
        ..wire::Hello::default()
    })
}

/// A client that says just this, and then nothing more.
async fn raw(
    world: &World,
    spiffe_id: &str,
    messages: Vec<Message>,
) -> Result<Streaming<wire::Delta>, Status> {
    let dial = Arc::new(Dial { address: world.address.subscribe(), spiffe_id: spiffe_id.into() });
    let connector = tower::service_fn(move |_| {
        let dial = dial.clone();
        async move { dial.connect().await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://test.invalid")
        .connect_with_connector(connector)
        .await
        .unwrap();
    let messages =
        messages.into_iter().map(|message| wire::FromDataPlane { message: Some(message) });
    let outgoing = stream::iter(messages.collect::<Vec<_>>()).chain(stream::pending());
    Ok(FeedClient::new(channel).follow(outgoing).await?.into_inner())
}

#[tokio::test]
async fn a_control_plane_that_has_not_read_its_store_takes_nothing_away() {
    let mut world = World::new().await;
    world.put("routes/1", route("/1")).await;
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    edge.step().await;
    world.stop().await;
    world.start_without_store().await;
    let publisher = world.publisher().clone();
    while publisher.convergence().data_planes.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(publisher.convergence().data_planes[0].applied, 0);
    assert!(!publisher.convergence().has_applied(1));
    world.put("routes/2", route("/2")).await;
    world.follow();
    assert_eq!(names(&edge.step().await), ["routes/2"], "the first word is the difference");
}

#[tokio::test]
async fn a_store_that_forgot_the_past_is_swapped_in_with_the_least_delta() {
    let world = World::new().await;
    for name in ["1", "2", "3"] {
        world.put(&format!("routes/{name}"), route("/")).await;
    }
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    edge.step().await;
    let mut listing = world.store.list("/apisix/").await.unwrap();
    listing.entries.remove(0);
    listing.entries[0].value = route("/two");
    listing.entries[0].modified += 10;
    listing.revision += 10;
    let revision = listing.revision;
    world.publisher().reset(listing, "/apisix");
    let batch = edge.step().await;
    assert_eq!(
        (names(&batch), batch.revision),
        (vec!["-routes/1".into(), "routes/2".into()], revision)
    );
}

#[tokio::test]
async fn what_cannot_be_read_in_the_store_is_shown_and_a_policy_is_still_announced() {
    let world = World::new().await;
    world.put("routes/1", route("/1")).await;
    world.put("routes/2", json!({"uri": 7})).await;
    world.put("upstreams/", json!("init_dir")).await;
    let policy = world.put("identity_policies/deny", json!({"action": "obliterate"})).await;
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    let batch = edge.step().await;
    assert_eq!(names(&batch), ["routes/1"], "a route without a place is nowhere");
    let [unreadable] = &batch.unreadable[..] else { panic!("{batch:?}") };
    assert_eq!((unreadable.kind, unreadable.id.as_str()), (Kind::IdentityPolicies, "deny"));
    let convergence = world.applied(policy).await;
    let shown: Vec<&str> =
        convergence.unreadable.iter().map(|refusal| refusal.id.as_str()).collect();
    assert_eq!(shown, ["2", "deny"]);
    assert_eq!(convergence.data_planes[0].rejected[0].id.as_str(), "deny");

    // A version that cannot be read leaves the one before in force; one that can be read puts an end to it.
    world.put("routes/1", json!({"uri": 7})).await;
    let revision =
        world.put("identity_policies/deny", json!({"action": "deny", "rules": [{}]})).await;
    assert_eq!(names(&edge.step().await), ["identity_policies/deny"]);
    let convergence = world.applied(revision).await;
    assert!(convergence.data_planes[0].rejected.is_empty());
    let shown: Vec<&str> =
        convergence.unreadable.iter().map(|refusal| refusal.id.as_str()).collect();
    assert_eq!(shown, ["1", "2"]);
}

#[tokio::test]
async fn what_is_declared_about_trust_is_announced_to_everybody_even_if_it_cannot_be_read() {
    let world = World::new().await;
    world.put("trust_domains/b.test", json!({"bundle": "x"})).await;
    world.put("trust_domains/c.test", json!({"trust": "all"})).await;
    world.put("revocations/1", json!({"spiffe_id": "spiffe://shop/lost", "colour": 1})).await;
    world.put("revocations/2", json!({"colour": 1})).await;
    for (role, id) in [(Role::Sidecar, "spiffe://shop/cart"), (Role::Ingress, EDGE)] {
        let batch = world.data_plane(role, id).step().await;
        // What of a revocation can be read stands in its place.
        let mut put = names(&batch);
        put.sort();
        assert_eq!(put, ["revocations/1", "trust_domains/b.test"], "{role}");
        let mut unreadable: Vec<String> =
            batch.unreadable.iter().map(|one| format!("{}/{}", one.kind, one.id)).collect();
        unreadable.sort();
        assert_eq!(
            unreadable,
            ["revocations/1", "revocations/2", "trust_domains/c.test"],
            "{role}"
        );
    }
}

#[tokio::test]
async fn a_route_that_cannot_be_read_stands_closed_where_it_would_be_served() {
    let world = World::new().await;
    let broken = json!({"uri": "/admin/*", "plugins": 7});
    world.put("routes/broad", route("/*")).await;
    world.put("routes/1", broken.clone()).await;
    world.put("routes/2", route("/two")).await;
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    let batch = edge.step().await;
    let closed = batch.changes.iter().find_map(|change| match change {
        Change::Put(Resource { id, body: Body::Route(route), .. }) if id.as_str() == "1" => {
            Some(route)
        }
        _ => None,
    });
    assert_eq!(closed.expect("it is there").uri.as_deref(), Some("/admin/*"));
    assert_eq!(batch.unreadable[0].id.as_str(), "1");

    // Where a version that can be read is in force, it stays.
    let revision = world.put("routes/2", broken).await;
    let convergence = world.applied(revision).await;
    assert!(convergence.unreadable.iter().any(|refusal| refusal.id.as_str() == "2"));
    world.put("routes/1", route("/admin/*")).await;
    assert_eq!(names(&edge.step().await), ["routes/1"]);
}

#[tokio::test]
async fn many_data_planes_converge_and_one_that_hangs_is_the_one_that_shows() {
    let world = World::new().await;
    let first = world.put("routes/all", json!({"uri": "/", "workload_selector": {}})).await;
    let mut running = Vec::new();
    for number in 0..20 {
        running.push(world.data_plane(Role::Sidecar, &format!("spiffe://shop/{number}")).run());
    }
    let mut hangs = world.data_plane(Role::Sidecar, "spiffe://shop/hangs");
    hangs.step().await;
    while world.publisher().convergence().data_planes.len() < 21 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.applied(first).await;
    let second = world.put("routes/all", json!({"uri": "/2", "workload_selector": {}})).await;
    let batch = hangs.next().await;
    assert!(
        !world.publisher().wait_applied(second, Duration::from_millis(1)).await.has_applied(second)
    );
    loop {
        let convergence = world.publisher().convergence();
        let late = |plane: &&super::publisher::DataPlane| plane.applied < second;
        let late: Vec<_> = convergence.data_planes.iter().filter(late).collect();
        if let [hangs] = late[..] {
            assert_eq!(&*hangs.spiffe_id, "spiffe://shop/hangs");
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    hangs.apply(&batch);
    world.applied(second).await;
    // One that leaves is not waited for.
    let third = world.put("routes/all", json!({"uri": "/3", "workload_selector": {}})).await;
    drop(hangs);
    world.applied(third).await;
}

#[tokio::test]
async fn what_comes_into_force_by_another_resource_is_no_longer_refused_and_is_the_last_good_one() {
    let folder = Folder::new("restored");
    let path = folder.0.join("last-good");
    let world = World::new().await;
    let revision = world.put("routes/1", route("/1")).await;
    let mut edge =
        world.data_plane_with(Role::Ingress, EDGE, Some(LastGood::open(&path, "x").unwrap()));
    edge.refuses.insert(("routes/1".into(), revision));
    edge.step().await;
    assert_eq!(world.applied(revision).await.data_planes[0].rejected.len(), 1);
    // It stands closed, and is kept: a start from the copy must find its place closed, too.
    let one = (Kind::Routes, Id::parse("1").unwrap());
    let copy = saved(&path, "x", |saved| saved.revision == revision).await;
    assert!(copy.resources.contains_key(&one));
    edge.restores.push(one.clone());
    let later = world.put("global_rules/1", json!({"plugins": {}})).await;
    edge.step().await;
    assert!(world.applied(later).await.data_planes[0].rejected.is_empty());
    let copy = saved(&path, "x", |saved| saved.revision == later).await;
    assert_eq!(copy.resources[&one].version.revision, revision);
}

#[tokio::test]
async fn what_was_refused_and_is_deleted_while_nobody_listens_is_gone_all_the_same() {
    let mut world = World::new().await;
    world.put("routes/keep", route("/")).await;
    let revision = world.put("routes/bad", route("/bad")).await;
    world.put("identity_policies/worse", json!({"action": "obliterate"})).await;
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    edge.refuses.insert(("routes/bad".into(), revision));
    edge.step().await;
    let refused = world.applied(revision + 1).await;
    assert_eq!(refused.data_planes[0].rejected.len(), 2);
    world.stop().await;
    world.delete("routes/bad").await;
    world.delete("identity_policies/worse").await;
    world.start().await;
    let batch = edge.step().await;
    assert_eq!(names(&batch), ["-identity_policies/worse", "-routes/bad"]);
    assert!(world.applied(batch.revision).await.data_planes[0].rejected.is_empty());
}

/// A control plane of another version: it says what it is told to say.
struct Scripted {
    says: Mutex<Vec<wire::Delta>>,
    hears: mpsc::Sender<Message>,
}

#[tonic::async_trait]
impl FeedService for Scripted {
    type FollowStream =
        std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<wire::Delta, Status>> + Send>>;
    async fn follow(
        &self,
        request: Request<Streaming<wire::FromDataPlane>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let mut inbound = request.into_inner();
        let hears = self.hears.clone();
        let says: Vec<_> = std::mem::take(&mut *self.says.lock()).into_iter().map(Ok).collect();
        let (keep_open, open) = mpsc::channel::<Result<wire::Delta, Status>>(1);
        let mut tasks = Tasks::new();
        tasks.add(async move {
            let _keep_open = keep_open;
            while let Ok(Some(message)) = inbound.message().await {
                let _ = hears.send(message.message.unwrap()).await;
            }
        });
        let open = ReceiverStream::new(open).map(move |delta| {
            let _ = &tasks;
            delta
        });
        Ok(Response::new(Box::pin(stream::iter(says).chain(open))))
    }
}

#[tokio::test]
async fn what_a_newer_control_plane_sends_is_refused_by_name_and_the_rest_is_taken() {
    let put = |kind: &str, id: &str, json: &'static [u8]| wire::Put {
        kind: kind.into(),
        id: id.into(),
        revision: 3,
        json: json.into(),
    };
    let delta = wire::Delta {
        nonce: 1,
        puts: vec![
            put("routes", "1", br#"{"uri": "/"}"#),
            put("unheard_routes", "1", b"{}"),
            put("routes", "a/b", b"{}"),
            put("routes", "2", b"{"),
            put("routes", "3", br#"{"uri": "/", "not_yet_invented": 1}"#),
        ],
        deletes: vec![wire::Name { kind: "unheard_routes".into(), id: "2".into() }],
        revision: 3,
        complete: true,
        more: false,
        counts_every: 0,
    };
    let (sender, mut heard) = mpsc::channel(8);
    let service = Scripted { says: Mutex::new(vec![delta]), hears: sender };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = watch::channel(listener.local_addr().unwrap()).0;
    let mut tasks = Tasks::new();
    tasks.add(async move {
        let incoming = handshakes(listener).map(Ok::<_, io::Error>);
        let server = tonic::transport::Server::builder().add_service(FeedServer::new(service));
        server.serve_with_incoming(incoming).await.unwrap();
    });
    let dial = Dial { address: address.subscribe(), spiffe_id: EDGE.into() };
    let mut edge = DataPlane::new(Subscriber::start(quick(Role::Ingress), dial, None));
    let batch = edge.step().await;
    assert_eq!(names(&batch), ["routes/1", "routes/3"], "the second stands closed");
    assert_eq!(batch.unreadable.len(), 2, "those that have a name here");
    let ack = loop {
        if let Message::Ack(ack) = heard.recv().await.unwrap() {
            break ack;
        }
    };
    let refusals: BTreeMap<String, String> = ack
        .rejected
        .into_iter()
        .map(|refusal| (format!("{}/{}", refusal.kind, refusal.id), refusal.reason))
        .collect();
    let refused: Vec<&str> = refusals.keys().map(String::as_str).collect();
    assert_eq!(refused, ["routes/2", "routes/3", "routes/a/b", "unheard_routes/1"]);
    assert!(refusals["unheard_routes/1"].contains("knows no kind \"unheard_routes\""));
    assert!(refusals["routes/2"].starts_with("not JSON"));
    assert!(refusals["routes/3"].contains("not_yet_invented"));
}

#[tokio::test]
async fn a_control_plane_that_is_dead_without_a_word_is_noticed_and_left() {
    let world = World::new().await;
    world.put("routes/1", route("/1")).await;
    // A wire that can be cut: bytes are still taken, and go nowhere.
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = watch::channel(relay.local_addr().unwrap()).0;
    let (cut, is_cut) = watch::channel(false);
    let far = world.address.subscribe();
    let mut tasks = Tasks::new();
    tasks.add(async move {
        let mut wires = Tasks::new();
        loop {
            let (mut near, _) = relay.accept().await.unwrap();
            let address = *far.borrow();
            let mut is_cut = is_cut.clone();
            wires.add(async move {
                let mut far = TcpStream::connect(address).await.unwrap();
                let cut = async {
                    let _ = is_cut.wait_for(|cut| *cut).await;
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    () = cut => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    let dial = Dial { address: near.subscribe(), spiffe_id: EDGE.into() };
    let settings = Settings { keep_alive: Duration::from_millis(100), ..quick(Role::Ingress) };
    let mut edge = DataPlane::new(Subscriber::start(settings, dial, None));
    edge.step().await;
    let live = edge.feed.status();
    let until = |connected: bool| {
        let mut waiting = live.clone();
        let live = live.clone();
        async move {
            while live.load().is_connected != connected {
                waiting.changed().await;
            }
        }
    };
    tokio::time::timeout(SOON, until(true)).await.unwrap();
    cut.send_replace(true);
    tokio::time::timeout(SOON, until(false)).await.expect("pings are not answered");
    assert!(live.load().error.is_some());
    // Another way to the control plane: the data plane goes on as if nothing had been.
    near.send_replace(*world.address.borrow());
    world.put("routes/2", route("/2")).await;
    loop {
        if names(&edge.step().await).contains(&"routes/2".into()) {
            break;
        }
    }
}

/// A folder for one test.
pub(super) struct Folder(pub(super) std::path::PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let unique = format!("wardgate-sync-{name}-{}", uuid::Uuid::new_v4());
        let folder = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
