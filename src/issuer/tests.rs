//! The Workload API end to end: our server on a real socket, our client (the `spiffe` crate) at the other end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use spiffe::{WorkloadApiClient, WorkloadApiError};
use tokio::time::timeout;

use super::{Authority, Entries, Error, IssuerSource, RegistrationEntry, WorkloadApi};
use crate::identity::forge::{Folder, Forge};
use crate::identity::{
    Identity, IdentitySource, TrustBundles, TrustDomain, WorkloadApiSettings, WorkloadApiSource,
};
use crate::mtls::{Acceptor, Alpn, Connector, ExpectedPeers};
use crate::rt::{Clock, Drain, Live, Publisher, spawn};

const SOON: Duration = Duration::from_secs(10);

/// An issuer on a socket in a folder of its own.
struct World {
    folder: Folder,
    authority: Arc<Authority>,
    entries: Publisher<Entries>,
    federated: Publisher<TrustBundles>,
    drain: Drain,
    serving: tokio::task::JoinHandle<Result<(), Error>>,
}

impl World {
    fn start() -> Self {
        let folder = Folder::new();
        let authority = Arc::new(Authority::in_memory(domain(), Clock::system()).unwrap());
        let (entries, live_entries) = Publisher::new(Entries::default());
        let (federated, live_federated) = Publisher::new(TrustBundles::default());
        let drain = Drain::new();
        let path = folder.path().join("workload/api.sock");
        let api = WorkloadApi::bind(&path, authority.clone(), live_entries, live_federated);
        let serving = spawn(api.unwrap().serve(drain.guard()));
        Self { folder, authority, entries, federated, drain, serving }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("workload/api.sock")
    }

    fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    fn settings(&self) -> WorkloadApiSettings {
        WorkloadApiSettings {
            socket: Some(self.address()),
            first_within_seconds: 10,
            ..WorkloadApiSettings::default()
        }
    }

    async fn source(&self) -> WorkloadApiSource {
        WorkloadApiSource::start(self.settings(), Clock::system()).await.unwrap()
    }

    /// Entries for our own user: paths and lifetimes.
    fn register(&self, entries: &[(&str, u32)]) {
        self.entries.set(entries.iter().map(|(path, ttl)| entry(own_uid(), path, *ttl)).collect());
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn entry(uid: u32, path: &str, ttl: u32) -> RegistrationEntry {
    let declared = json!({
        "spiffe_id": format!("spiffe://a.test{path}"),
        "selectors": [format!("unix:uid:{uid}")],
        "ttl": ttl,
    });
    RegistrationEntry::new(&serde_json::from_value(declared).unwrap(), &domain()).unwrap()
}

fn domain() -> TrustDomain {
    "a.test".parse().unwrap()
}

/// The next identity that `wanted` accepts.
async fn until(live: &mut Live<Identity>, wanted: impl Fn(&Identity) -> bool) -> Arc<Identity> {
    let search = async {
        loop {
            let current = live.load();
            if wanted(&current) {
                return current;
            }
            assert!(live.changed().await, "the source is gone");
        }
    };
    timeout(SOON, search).await.expect("no such identity in time")
}

#[tokio::test]
async fn an_entry_that_is_added_later_gives_its_identity_and_the_identity_shakes_hands() {
    let world = World::start();
    let waiting = WorkloadApiSource::start(world.settings(), Clock::system());
    let registering = async {
        tokio::task::yield_now().await;
        world.register(&[("/web", 3600)]);
    };
    let (source, ()) = tokio::join!(waiting, registering);
    let live = source.unwrap().identity();
    assert_eq!(live.load().id().as_str(), "spiffe://a.test/web");

    let db = "spiffe://a.test/db".parse().unwrap();
    let none = Live::fixed(TrustBundles::default());
    let other = IssuerSource::start(world.authority.clone(), db, super::DEFAULT_TTL, none).unwrap();
    let (near, far) = tokio::io::duplex(16 * 1024);
    let expected = Arc::new(ExpectedPeers::exactly(other.identity().load().id()));
    let (connector, acceptor) = (Connector::new(live), Acceptor::new(other.identity()));
    let (near, far) =
        tokio::join!(connector.connect(near, &expected, Alpn::Http2), acceptor.accept(far));
    assert_eq!(near.unwrap().1.id.as_str(), "spiffe://a.test/db");
    assert_eq!(far.unwrap().1.id.as_str(), "spiffe://a.test/web");
}

#[tokio::test]
async fn svids_are_renewed_at_half_of_their_life() {
    let world = World::start();
    world.register(&[("/web", 2)]);
    let source = world.source().await;
    let mut live = source.identity();
    let first = live.load();
    let begun = tokio::time::Instant::now();
    let second = until(&mut live, |next| next.svid.serial != first.svid.serial).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "only after its end");
    assert!(second.svid.not_after > first.svid.not_after);
}

#[tokio::test]
async fn an_entry_that_is_taken_away_takes_the_identity_and_brings_it_back() {
    let world = World::start();
    world.register(&[("/web", 3600)]);
    let source = world.source().await;
    let mut live = source.identity();
    world.register(&[]);
    until(&mut live, Identity::is_withdrawn).await;
    world.register(&[("/web", 3600)]);
    let back = until(&mut live, |next| !next.is_withdrawn()).await;
    assert_eq!(back.id().as_str(), "spiffe://a.test/web");
}

#[tokio::test]
async fn other_entries_do_not_disturb_and_other_bundles_arrive_at_once() {
    let world = World::start();
    world.register(&[("/web", 3600)]);
    let source = world.source().await;
    let mut live = source.identity();
    let first = live.load();
    let ours = entry(own_uid(), "/web", 3600);
    world.entries.set([ours, entry(own_uid() + 1, "/stranger", 3600)].into_iter().collect());
    timeout(Duration::from_millis(200), live.changed()).await.unwrap_err();

    let b = Forge::new("b.test");
    world.federated.set(b.bundles());
    let next = until(&mut live, |next| next.trust.bundles.len() == 2).await;
    assert_eq!(next.trust.bundles.find(&b.domain), Some(&b.bundle()));
    assert_ne!(next.svid.serial, first.svid.serial, "each message is the full state");
    // A bundle that is gone from the next message is unloaded (101).
    world.federated.set(TrustBundles::default());
    until(&mut live, |next| next.trust.bundles.len() == 1).await;
    // Nobody but our authority speaks for our own domain.
    let impostor = Forge::new("a.test");
    world.federated.set(impostor.bundles());
    world.register(&[("/web", 3600), ("/other", 3600)]);
    timeout(Duration::from_millis(300), async {
        loop {
            live.changed().await;
            let current = live.load();
            let ours = current.trust.bundles.find(&domain()).unwrap();
            assert_eq!(ours.roots, world.authority.bundle().roots);
        }
    })
    .await
    .unwrap_err();
}

#[tokio::test]
async fn of_several_identities_the_settings_choose_one() {
    let world = World::start();
    world.register(&[("/web", 3600), ("/db", 3600)]);
    let choose = |id: Option<&str>, hint: Option<&str>| {
        let settings = WorkloadApiSettings {
            spiffe_id: id.map(Into::into),
            hint: hint.map(Into::into),
            first_within_seconds: 1,
            ..world.settings()
        };
        WorkloadApiSource::start(settings, Clock::system())
    };
    let id = |source: &WorkloadApiSource| source.identity().load().id().path().to_owned();
    assert_eq!(id(&choose(None, None).await.unwrap()), "/web", "the first is the default");
    assert_eq!(id(&choose(Some("spiffe://a.test/db"), None).await.unwrap()), "/db");
    let error = choose(Some("spiffe://a.test/x"), None).await.unwrap_err().report();
    assert!(
        error.contains(
            "no SVID for spiffe://a.test/x, only for spiffe://a.test/web, spiffe://a.test/db"
        ),
        "{error}"
    );
    let error = choose(None, Some("internal")).await.unwrap_err().report();
    assert!(error.contains("no SVID for hint \"internal\""), "{error}");
}

#[tokio::test]
async fn the_source_survives_a_restart_of_the_issuer() {
    let world = World::start();
    world.register(&[("/web", 3600)]);
    let source = world.source().await;
    let mut live = source.identity();
    let first = live.load();
    let World { folder, authority, entries, federated, drain, serving } = world;
    assert!(drain.drain(SOON).await, "a stream kept the server");
    serving.await.unwrap().unwrap();
    let path = folder.path().join("workload/api.sock");
    assert!(!path.exists(), "the socket is removed");
    assert_eq!(live.load().svid.serial, first.svid.serial, "what we have stays");

    let drain = Drain::new();
    let (live_entries, live_federated) = (entries.live(), federated.live());
    let api = WorkloadApi::bind(&path, authority, live_entries, live_federated).unwrap();
    let serving = spawn(api.serve(drain.guard()));
    until(&mut live, |next| next.svid.serial != first.svid.serial).await;
    drop(source);
    assert!(drain.drain(SOON).await);
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn callers_are_told_what_is_wrong_with_their_call() {
    let world = World::start();
    let client = WorkloadApiClient::connect_to(world.address()).await.unwrap();
    let denied = client.fetch_x509_svid().await.unwrap_err();
    assert!(matches!(denied, WorkloadApiError::NoIdentityIssued), "{denied}");
    let denied = client.fetch_x509_bundles().await.unwrap_err();
    assert!(matches!(denied, WorkloadApiError::NoIdentityIssued), "{denied}");
    world.register(&[("/web", 3600)]);
    let bundles = client.fetch_x509_bundles().await.unwrap();
    assert_eq!(bundles.iter().count(), 1);
    assert_eq!(client.fetch_all_x509_svids().await.unwrap().len(), 1);

    // Without the header nothing is answered, whatever is asked for.
    let call = |method: &'static str, with_header: bool| {
        let path = world.socket();
        async move {
            let stream = tokio::net::UnixStream::connect(path).await.unwrap();
            let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
            let driving = spawn(async move { connection.await.unwrap() });
            let uri = format!("http://localhost/SpiffeWorkloadAPI/{method}");
            let mut request = http::Request::post(uri)
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            if with_header {
                request = request.header("workload.spiffe.io", "true");
            }
            let (answer, mut body) = send.send_request(request.body(()).unwrap(), false).unwrap();
            body.send_data(bytes::Bytes::from_static(&[0; 5]), true).unwrap();
            let answer = answer.await.unwrap();
            driving.abort();
            let text = |name| answer.headers().get(name).unwrap().to_str().unwrap().to_owned();
            (text("grpc-status"), text("grpc-message"))
        }
    };
    let (status, message) = call("FetchX509SVID", false).await;
    assert_eq!(status, "3", "InvalidArgument");
    assert!(message.contains("security%20header%20missing"), "{message}");
    for method in ["FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"] {
        let (status, message) = call(method, false).await;
        assert_eq!(status, "3", "{method}");
        assert!(message.contains("security%20header%20missing"), "{message}");
    }
    for method in ["FetchJWTSVID", "ValidateJWTSVID"] {
        let (status, message) = call(method, true).await;
        assert_eq!(status, "3", "{method}");
        assert!(message.contains("audience"), "{message}");
    }
}

#[tokio::test]
async fn the_socket_is_taken_from_the_dead_and_never_from_the_living() {
    let world = World::start();
    let bind = |path: &std::path::Path| {
        let entries = Live::fixed(Entries::default());
        let none = Live::fixed(TrustBundles::default());
        WorkloadApi::bind(path, world.authority.clone(), entries, none)
    };
    assert!(matches!(bind(&world.socket()), Err(Error::SocketTaken { .. })));
    let file = world.folder.path().join("notes.txt");
    std::fs::write(&file, "keep me").unwrap();
    assert!(matches!(bind(&file), Err(Error::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "keep me");
    let dead = world.folder.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    bind(&dead).unwrap();
}

#[tokio::test]
async fn a_source_that_gets_nothing_says_where_it_looked_and_what_it_heard() {
    let world = World::start();
    let settings = WorkloadApiSettings { first_within_seconds: 1, ..world.settings() };
    let error = WorkloadApiSource::start(settings, Clock::system()).await.unwrap_err().report();
    assert!(error.contains("no valid identity within 1 s from unix:"), "{error}");
    assert!(error.contains("no identity issued"), "{error}");

    let start = |socket: &str| {
        let settings = WorkloadApiSettings {
            socket: Some(socket.into()),
            first_within_seconds: 1,
            ..WorkloadApiSettings::default()
        };
        WorkloadApiSource::start(settings, Clock::system())
    };
    let nobody = world.folder.path().join("nobody.sock");
    let error = start(nobody.to_str().unwrap()).await.unwrap_err().report();
    assert!(error.contains("nobody.sock"), "{error}");
    for bad in ["", "http://x", "unix:relative", "tcp:host.name:80", "tcp:127.0.0.1:80/path"] {
        let error = start(bad).await.unwrap_err().to_string();
        assert!(error.contains("SPIFFE_ENDPOINT_SOCKET"), "{bad}: {error}");
    }
    let open = world.folder.path().join("open");
    std::fs::create_dir(&open).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&open, everybody).unwrap();
    let error = start(open.join("api.sock").to_str().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("everybody may write to"), "95: {error}");
}

#[tokio::test]
async fn an_identity_in_process_is_renewed_and_follows_the_bundles() {
    let authority = Arc::new(Authority::in_memory(domain(), Clock::system()).unwrap());
    let (federated, bundles) = Publisher::new(TrustBundles::default());
    let id: crate::identity::SpiffeId = "spiffe://a.test/web".parse().unwrap();
    let lifetime = Duration::from_secs(2);
    let source = IssuerSource::start(authority.clone(), id.clone(), lifetime, bundles).unwrap();
    let mut live = source.identity();
    let first = live.load();
    federated.set(Forge::new("b.test").bundles());
    let second = until(&mut live, |next| next.trust.bundles.len() == 2).await;
    until(&mut live, |next| next.svid.serial != second.svid.serial).await;
    assert_ne!(first.svid.serial, second.svid.serial);

    let stranger = "spiffe://b.test/web".parse().unwrap();
    let none = Live::fixed(TrustBundles::default());
    let error = IssuerSource::start(authority, stranger, lifetime, none).unwrap_err();
    assert!(matches!(error, Error::OtherDomain { .. }));
}
