//! The Workload API end to end: our server on a real socket, our client (the `spiffe` crate) at the other end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use spiffe::{WorkloadApiClient, WorkloadApiError};
use tokio::time::timeout;

use super::{Authority, Entries, Error, IssuerSource, RegistrationEntry, WorkloadApi};
use crate::identity::forge::{Folder, Forge};
use crate::identity::workload_proto::{
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
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

    /// The messages of a method as they are on the wire.
    async fn stream<Q, A>(&self, method: &'static str, request: Q) -> Messages<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + 'static,
    {
        let path = self.socket();
        let channel = tonic::transport::Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move {
                    let stream = tokio::net::UnixStream::connect(path).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                }
            }))
            .await
            .unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
        let path = http::uri::PathAndQuery::from_static(method);
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        let answer = client.server_streaming(request, path, codec).await.unwrap();
        Messages(answer.into_inner())
    }

    async fn listen(&self) -> Messages<X509svidResponse> {
        self.stream("/SpiffeWorkloadAPI/FetchX509SVID", X509svidRequest {}).await
    }

    async fn listen_for_bundles(&self) -> Messages<X509BundlesResponse> {
        self.stream("/SpiffeWorkloadAPI/FetchX509Bundles", X509BundlesRequest {}).await
    }

    /// Entries for our own user: paths and lifetimes.
    fn register(&self, entries: &[(&str, u32)]) {
        self.entries.set(entries.iter().map(|(path, ttl)| entry(own_uid(), path, *ttl)).collect());
    }
}

struct Messages<A>(tonic::Streaming<A>);

impl<A> Messages<A> {
    async fn next(&mut self) -> A {
        let next = timeout(SOON, self.0.message()).await.expect("no message in time");
        next.unwrap().expect("the stream is over")
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

fn federating(entry: RegistrationEntry, with: &str) -> RegistrationEntry {
    RegistrationEntry { federates_with: [with.parse().unwrap()].into(), ..entry }
}

fn domain() -> TrustDomain {
    "a.test".parse().unwrap()
}

fn own_roots(identity: &Identity) -> usize {
    identity.trust.bundles.find(&domain()).map_or(0, |bundle| bundle.roots.len())
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
    const LIFE: u32 = 6;
    let world = World::start();
    world.register(&[("/web", LIFE)]);
    let source = world.source().await;
    let mut live = source.identity();
    let first = live.load();
    let begun = tokio::time::Instant::now();
    let second = until(&mut live, |next| next.svid.serial != first.svid.serial).await;
    assert!(begun.elapsed() < Duration::from_secs(LIFE.into()), "only after its end");
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
    let federating = federating(ours.clone(), "b.test");
    world.entries.set([ours, entry(own_uid() + 1, "/stranger", 3600)].into_iter().collect());
    timeout(Duration::from_millis(200), live.changed()).await.unwrap_err();

    // Of other trust domains a workload hears only when its entry says so; and as soon as they are known.
    let b = Forge::new("b.test");
    world.federated.set(b.bundles());
    timeout(Duration::from_millis(200), live.changed()).await.unwrap_err();
    world.federated.set(TrustBundles::default());
    world.entries.set([federating].into_iter().collect());
    until(&mut live, |next| next.svid.serial != first.svid.serial).await;
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
async fn a_new_root_and_a_revocation_reach_those_who_listen() {
    let world = World::start();
    world.register(&[("/web", 3600)]);
    let mut listener = world.listen().await;
    let mut bundles = world.listen_for_bundles().await;
    let first = listener.next().await;
    assert_eq!(first.crl.len(), 2, "root and intermediate");
    assert_eq!(bundles.next().await.crl, first.crl);

    world.authority.prepare_root().unwrap();
    let second = listener.next().await;
    assert!(second.svids[0].bundle.len() > first.svids[0].bundle.len());
    assert_eq!(second.crl.len(), 4);
    let told = bundles.next().await;
    assert_eq!(told.bundles["spiffe://a.test"], second.svids[0].bundle);
    // Lists may come a moment after the bundle.
    let lists = if told.crl == second.crl { told.crl } else { bundles.next().await.crl };
    assert_eq!(lists, second.crl);
    world.authority.activate_root(None, true).unwrap();
    // Not at once but spread over a while, which is at most a minute: so the entry that changes brings it here.
    world.register(&[("/web", 1800)]);
    let third = listener.next().await;
    let issuer = |der: &[u8]| {
        use x509_parser::prelude::{FromDer, X509Certificate};
        X509Certificate::from_der(der).unwrap().1.issuer().as_raw().to_vec()
    };
    assert_ne!(issuer(&third.svids[0].x509_svid), issuer(&second.svids[0].x509_svid));
}

#[tokio::test]
async fn a_hint_tells_identities_apart() {
    let world = World::start();
    let hinted = RegistrationEntry { hint: "internal".into(), ..entry(own_uid(), "/db", 3600) };
    world.entries.set([entry(own_uid(), "/web", 3600), hinted].into_iter().collect());
    let settings = WorkloadApiSettings { hint: Some("internal".into()), ..world.settings() };
    let source = WorkloadApiSource::start(settings, Clock::system()).await.unwrap();
    assert_eq!(source.identity().load().id().path(), "/db");
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
    assert_eq!(first.svid.serial, second.svid.serial, "only the bundles are news");
    until(&mut live, |next| next.svid.serial != second.svid.serial).await;
    // Another root signs: it is renewed soon, long before it would be due.
    authority.prepare_root().unwrap();
    let third = until(&mut live, |next| own_roots(next) == 2).await;
    authority.activate_root(None, true).unwrap();
    let before = third.svid.chain[1].clone();
    until(&mut live, |next| next.svid.chain[1] != before).await;
    assert_eq!(live.load().trust.revocation.by_domain[&domain()].lists.len(), 4);

    let stranger = "spiffe://b.test/web".parse().unwrap();
    let none = Live::fixed(TrustBundles::default());
    let error = IssuerSource::start(authority, stranger, lifetime, none).unwrap_err();
    assert!(matches!(error, Error::OtherDomain { .. }));
}
