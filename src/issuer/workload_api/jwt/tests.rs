//! The JWT half of the Workload API at both ends: our server, a server that does as a test says, and our client.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::Stream;
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::{Code, Request, Response};

use super::*;
use crate::identity::forge::{Folder, Forge};
use crate::identity::token_forge::TokenWorld;
use crate::identity::workload_proto::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use crate::identity::workload_proto::{
    JwtBundlesRequest, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use crate::identity::{
    Identity, IdentitySource, JwtBundleSource, JwtSvids, TokenFlaw, WorkloadApiSettings,
};
use crate::issuer::{Authority, Entries, RegistrationEntry, WorkloadApi};
use crate::rt::{Clock, Drain, Live, Publisher, Tasks, spawn};

const SOON: Duration = Duration::from_secs(20);
const WEB: &str = "spiffe://a.test/web";

type Answers = Pin<Box<dyn Stream<Item = Result<JwtBundlesResponse, Status>> + Send>>;

/// What the next call of `FetchJWTBundles` gets: a refusal, or a stream that the test feeds.
type Script = Arc<Mutex<Vec<Result<mpsc::Receiver<Result<JwtBundlesResponse, Status>>, Status>>>>;

/// A Workload API that does as it is told.
struct Stub {
    script: Script,
    calls: Arc<AtomicUsize>,
    tokens: Mutex<Vec<Result<Jwtsvid, Status>>>,
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Stub {
    type FetchX509SVIDStream = ReceiverStream<Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = ReceiverStream<Result<X509BundlesResponse, Status>>;
    type FetchJWTBundlesStream = Answers;

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        assert_eq!(request.get_ref().audience.len(), 1);
        self.calls.fetch_add(1, Ordering::Relaxed);
        let next = self.tokens.lock().pop();
        next.unwrap_or(Err(Status::unavailable("nothing left")))
            .map(|svid| Response::new(JwtsvidResponse { svids: vec![svid] }))
    }
    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Answers>, Status> {
        assert_eq!(request.metadata().get("workload.spiffe.io").unwrap(), "true", "90");
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut script = self.script.lock();
        let next =
            if script.is_empty() { Err(Status::unavailable("later")) } else { script.remove(0) };
        next.map(|answers| Response::new(Box::pin(ReceiverStream::new(answers)) as Answers))
    }
    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// A stub on a socket.
struct Api {
    folder: Folder,
    script: Script,
    calls: Arc<AtomicUsize>,
    _serving: Tasks,
}

impl Api {
    fn start(tokens: Vec<Result<Jwtsvid, Status>>) -> Self {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
        let (script, calls) = (Script::default(), Arc::<AtomicUsize>::default());
        let stub =
            Stub { script: script.clone(), calls: calls.clone(), tokens: Mutex::new(tokens) };
        let mut serving = Tasks::new();
        serving.add(async move {
            let server = Server::builder().add_service(SpiffeWorkloadApiServer::new(stub));
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        Self { folder, script, calls, _serving: serving }
    }

    fn settings(&self) -> WorkloadApiSettings {
        settings(&self.folder.path().join("api.sock"))
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// The next call opens a stream that is fed by what is returned.
    fn opens(&self) -> mpsc::Sender<Result<JwtBundlesResponse, Status>> {
        let (sender, answers) = mpsc::channel(8);
        self.script.lock().push(Ok(answers));
        sender
    }

    fn refuses(&self, status: Status) {
        self.script.lock().push(Err(status));
    }
}

fn settings(socket: &Path) -> WorkloadApiSettings {
    let socket = Some(format!("unix:{}", socket.display()));
    WorkloadApiSettings { socket, first_within_seconds: 10, ..WorkloadApiSettings::default() }
}

/// Whatever the X.509 half says.
struct Base(Publisher<Identity>);

impl Base {
    fn new() -> Self {
        Self(Publisher::new(Forge::new("a.test").identity("/wardgate/ingress", &[])).0)
    }
}

impl IdentitySource for Base {
    fn identity(&self) -> Live<Identity> {
        self.0.live()
    }
}

fn bundles(sets: &[(&str, Value)]) -> JwtBundlesResponse {
    let sets =
        sets.iter().map(|(domain, keys)| ((*domain).to_owned(), keys.to_string().into_bytes()));
    JwtBundlesResponse { bundles: sets.collect() }
}

fn keys(ids: &[&str]) -> Value {
    let key = |id: &&str| json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": id });
    json!({ "keys": ids.iter().map(key).collect::<Vec<_>>() })
}

/// `a.test: k1 k2; b.test: k3`, as an identity has them.
fn known(identity: &Identity) -> String {
    let sets = identity.trust.bundles.iter().filter(|bundle| !bundle.jwt_authorities.is_empty());
    let sets = sets.map(|bundle| {
        let ids: Vec<&str> = bundle.jwt_authorities.iter().map(|key| &*key.key_id).collect();
        format!("{}: {}", bundle.domain, ids.join(" "))
    });
    sets.collect::<Vec<_>>().join("; ")
}

async fn until(live: &mut Live<Identity>, wanted: &str) -> Arc<Identity> {
    let search = async {
        loop {
            let current = live.load();
            if known(&current) == wanted {
                return current;
            }
            assert!(live.changed().await, "the source is gone");
        }
    };
    timeout(SOON, search).await.unwrap_or_else(|_| panic!("never {wanted:?}"))
}

#[tokio::test]
async fn rules_100_101_104_each_message_is_the_full_state_and_a_bad_one_is_none() {
    let api = Api::start(Vec::new());
    let stream = api.opens();
    stream
        .send(Ok(bundles(&[
            ("spiffe://a.test", keys(&["one"])),
            ("spiffe://b.test", keys(&["two"])),
        ])))
        .await
        .unwrap();
    let base = Base::new();
    let (publisher, svid) = (base.0.live(), base.0.live().load().svid.serial.clone());
    let source = JwtBundleSource::over(Box::new(base), &api.settings()).await.unwrap();
    let mut live = source.identity();
    let first = until(&mut live, "a.test: one; b.test: two").await;
    assert_eq!(first.svid.serial, svid);
    let bundle = |identity: &Identity, domain: &str| {
        identity.trust.bundles.find(&domain.parse().unwrap()).cloned()
    };
    assert_eq!(bundle(&first, "a.test").unwrap().roots.len(), 1, "110 the roots stay");
    assert_eq!(
        bundle(&first, "b.test").unwrap().roots.len(),
        0,
        "110 keys for tokens are no roots"
    );

    for (bad, rule) in [
        (bundles(&[]), "104 empty"),
        (bundles(&[("spiffe://a.test", json!({}))]), "104 no key set"),
        (bundles(&[("spiffe://A.test", keys(&["x"]))]), "104 no trust domain"),
        (bundles(&[("spiffe://a.test", keys(&["x"])), ("b.test", json!(7))]), "104 half good"),
    ] {
        stream.send(Ok(bad)).await.unwrap();
        stream.send(Ok(bundles(&[("spiffe://a.test", keys(&["one", "more"]))]))).await.unwrap();
        until(&mut live, "a.test: one more").await;
        stream.send(Ok(bundles(&[("spiffe://a.test", keys(&["one"]))]))).await.unwrap();
        let now = until(&mut live, "a.test: one").await;
        assert!(bundle(&now, "b.test").is_none(), "{rule}, 101 gone with its domain");
    }
    stream.send(Ok(bundles(&[("spiffe://a.test", json!({ "keys": [] }))]))).await.unwrap();
    until(&mut live, "").await;
    assert_eq!(publisher.load().trust.bundles.len(), 1, "the source below was never touched");
    assert_eq!(api.calls(), 1, "96 one stream");
}

#[tokio::test]
async fn a_renewed_identity_keeps_the_keys_and_a_withdrawn_one_trusts_nobody() {
    let api = Api::start(Vec::new());
    let stream = api.opens();
    stream.send(Ok(bundles(&[("spiffe://a.test", keys(&["one"]))]))).await.unwrap();
    let forge = Forge::new("a.test");
    let (publisher, _) = Publisher::new(forge.identity("/x", &[]));
    let publisher = Arc::new(publisher);
    struct Shared(Arc<Publisher<Identity>>);
    impl IdentitySource for Shared {
        fn identity(&self) -> Live<Identity> {
            self.0.live()
        }
    }
    let below = Box::new(Shared(publisher.clone()));
    let source = JwtBundleSource::over(below, &api.settings()).await.unwrap();
    let mut live = source.identity();
    let first = until(&mut live, "a.test: one").await;

    let renewed = Identity { svid: forge.svid("/x"), trust: publisher.live().load().trust.clone() };
    let serial = renewed.svid.serial.clone();
    publisher.set(renewed);
    while live.load().svid.serial != serial {
        assert!(timeout(SOON, live.changed()).await.unwrap());
    }
    assert!(Arc::ptr_eq(&live.load().trust, &first.trust), "nothing of the trust changed");

    let withdrawn = publisher.live().load().withdrawn();
    publisher.set(withdrawn);
    while !live.load().is_withdrawn() {
        assert!(timeout(SOON, live.changed()).await.unwrap());
    }
    publisher.set(forge.identity("/x", &[]));
    until(&mut live, "a.test: one").await;
}

#[tokio::test]
async fn rules_98_99_103_a_lost_stream_is_opened_again_a_denial_counts_and_some_answers_are_final()
{
    let api = Api::start(Vec::new());
    let first = api.opens();
    first.send(Ok(bundles(&[("spiffe://a.test", keys(&["one"]))]))).await.unwrap();
    let source = JwtBundleSource::over(Box::new(Base::new()), &api.settings()).await.unwrap();
    let mut live = source.identity();
    until(&mut live, "a.test: one").await;

    // Gone and back: the keys stay meanwhile.
    api.refuses(Status::unavailable("restarting"));
    let second = api.opens();
    drop(first);
    second.send(Ok(bundles(&[("spiffe://a.test", keys(&["one", "two"]))]))).await.unwrap();
    until(&mut live, "a.test: one two").await;

    // A denial on a running stream is asked again, and is nothing when the answer is another.
    let again = api.opens();
    second.send(Err(Status::permission_denied("signing anew"))).await.unwrap();
    again.send(Ok(bundles(&[("spiffe://a.test", keys(&["again"]))]))).await.unwrap();
    assert!(timeout(SOON, live.changed()).await.unwrap());
    assert_eq!(known(&live.load()), "a.test: again", "103 the keys were not taken away meanwhile");

    // Said twice it takes them away, and is not for ever.
    api.refuses(Status::permission_denied("no identity issued"));
    again.send(Err(Status::permission_denied("no identity issued"))).await.unwrap();
    until(&mut live, "").await;
    let third = api.opens();
    third.send(Ok(bundles(&[("spiffe://a.test", keys(&["three"]))]))).await.unwrap();
    until(&mut live, "a.test: three").await;

    // The API has no such profile: nobody asks again.
    third.send(Err(Status::unimplemented("no JWT"))).await.unwrap();
    until(&mut live, "").await;
    let calls = api.calls();
    source.refresh().ask(&"a.test".parse().unwrap()).await;
    assert_eq!(api.calls(), calls, "99 not even when forced");
}

#[tokio::test]
async fn rule_125_a_forced_refresh_is_a_new_call() {
    let api = Api::start(Vec::new());
    let first = api.opens();
    first.send(Ok(bundles(&[("spiffe://a.test", keys(&["one"]))]))).await.unwrap();
    let source = JwtBundleSource::over(Box::new(Base::new()), &api.settings()).await.unwrap();
    let live = source.identity();
    assert_eq!(known(&live.load()), "a.test: one", "the start has waited for it");
    let second = api.opens();
    second.send(Ok(bundles(&[("spiffe://a.test", keys(&["two"]))]))).await.unwrap();
    assert!(source.refresh().ask(&"a.test".parse().unwrap()).await);
    assert_eq!(known(&live.load()), "a.test: two");
    assert_eq!(api.calls(), 2);
}

#[tokio::test]
async fn a_token_of_our_own_is_kept_until_half_of_its_life_and_used_until_its_end_when_there_is_no_other()
 {
    let world = TokenWorld::new("a.test");
    let own = |subject: &str| {
        Ok(Jwtsvid {
            spiffe_id: WEB.into(),
            svid: world.token(subject, &["billing"]),
            hint: String::new(),
        })
    };
    // From the last to the first.
    let api = Api::start(vec![own("spiffe://a.test/other"), own(WEB), own(WEB)]);
    let clock = Clock::fixed(Clock::system().now());
    let svids = JwtSvids::new(&api.settings(), clock.clone()).unwrap();
    let first = svids.fetch("billing").await.unwrap();
    assert_eq!(first.id.as_str(), WEB);
    assert!(!format!("{first:?}").contains(first.text.reveal()), "128");
    clock.advance(140);
    assert_eq!(svids.fetch("billing").await.unwrap().text, first.text);
    assert_eq!(api.calls(), 1);
    clock.advance(20);
    let second = svids.fetch("billing").await.unwrap();
    assert_eq!(api.calls(), 2);
    // A token for somebody else is refused, and the good one goes on as long as it lives.
    assert_eq!(svids.fetch("billing").await.unwrap().text, second.text);
    assert_eq!(api.calls(), 3);
    clock.advance(200);
    assert!(svids.fetch("billing").await.unwrap_err().report().contains("nothing left"));
}

/// Our own server.
struct Ours {
    folder: Folder,
    authority: Arc<Authority>,
    entries: Publisher<Entries>,
    federated: Publisher<TrustBundles>,
    _drain: Drain,
}

impl Ours {
    fn start() -> Self {
        let folder = Folder::new();
        let domain = "a.test".parse().unwrap();
        let authority = Arc::new(Authority::in_memory(domain, Clock::system()).unwrap());
        let (entries, live_entries) = Publisher::new(Entries::default());
        let (federated, live_federated) = Publisher::new(TrustBundles::default());
        let drain = Drain::new();
        let path = folder.path().join("api.sock");
        let api = WorkloadApi::bind(&path, authority.clone(), live_entries, live_federated);
        drop(spawn(api.unwrap().serve(drain.guard())));
        Self { folder, authority, entries, federated, _drain: drain }
    }

    fn register(&self, ids: &[&str]) {
        let uid = rustix::process::geteuid().as_raw();
        let entry = |id: &&str| {
            let declared = json!({
                "spiffe_id": id,
                "selectors": [format!("unix:uid:{uid}")],
                "federates_with": ["b.test"],
            });
            let workload = serde_json::from_value(declared).unwrap();
            RegistrationEntry::new(&workload, self.authority.domain()).unwrap()
        };
        self.entries.set(ids.iter().map(entry).collect());
    }

    fn address(&self) -> String {
        format!("unix:{}", self.folder.path().join("api.sock").display())
    }

    async fn client(&self) -> spiffe::WorkloadApiClient {
        spiffe::WorkloadApiClient::connect_to(self.address()).await.unwrap()
    }
}

fn code_of(error: &spiffe::WorkloadApiError) -> Option<Code> {
    match error {
        spiffe::WorkloadApiError::PermissionDenied(_)
        | spiffe::WorkloadApiError::NoIdentityIssued => Some(Code::PermissionDenied),
        spiffe::WorkloadApiError::Transport(spiffe::transport::TransportError::Status(status)) => {
            Some(Code::from_i32(status.code() as i32))
        }
        _ => None,
    }
}

#[tokio::test]
async fn a_registered_caller_gets_tokens_that_the_published_keys_verify() {
    let ours = Ours::start();
    ours.register(&[WEB, "spiffe://a.test/second"]);
    let client = ours.client().await;
    let all = client.fetch_all_jwt_svids(["billing"], None).await.unwrap();
    let ids: Vec<String> = all.iter().map(|svid| svid.spiffe_id().to_string()).collect();
    assert_eq!(ids, [WEB, "spiffe://a.test/second"]);
    let second = "spiffe://a.test/second".parse().unwrap();
    let one = client.fetch_jwt_svid(["billing", "shop"], Some(&second)).await.unwrap();
    assert_eq!(one.spiffe_id(), &second);
    assert_eq!(one.audience(), ["billing", "shop"]);

    let sets = client.fetch_jwt_bundles().await.unwrap();
    let domain = spiffe::TrustDomain::new("a.test").unwrap();
    assert!(sets.get(&domain).unwrap().find_jwt_authority(one.key_id()).is_some());

    let validated = client.validate_jwt_token("shop", one.token()).await.unwrap();
    assert_eq!(validated.spiffe_id(), &second);
    let other = client.validate_jwt_token("elsewhere", one.token()).await.unwrap_err();
    assert_eq!(code_of(&other), Some(Code::InvalidArgument), "{other:?}");

    // The same by our own eyes.
    let trust = Trust::from([ours.authority.bundle()].into_iter().collect::<TrustBundles>());
    let svid = trust.token_verifier().prove(one.token()).unwrap();
    assert_eq!(svid.audiences, ["billing", "shop"]);
}

#[tokio::test]
async fn who_asks_wrongly_or_without_being_entitled_hears_it_by_its_code() {
    let ours = Ours::start();
    let client = ours.client().await;
    let unregistered = client.fetch_jwt_svid(["billing"], None).await.unwrap_err();
    assert_eq!(code_of(&unregistered), Some(Code::PermissionDenied), "{unregistered:?}");
    let unregistered = client.fetch_jwt_bundles().await.unwrap_err();
    assert_eq!(code_of(&unregistered), Some(Code::PermissionDenied), "{unregistered:?}");
    ours.register(&[WEB]);
    let foreign = "spiffe://a.test/other".parse().unwrap();
    let foreign = client.fetch_jwt_svid(["billing"], Some(&foreign)).await.unwrap_err();
    assert_eq!(code_of(&foreign), Some(Code::PermissionDenied), "{foreign:?}");
    for audience in [vec![], vec![""], vec!["a"; 33], vec![&*"a".repeat(2000)]] {
        let wrong = client.fetch_jwt_svid(&audience, None).await.unwrap_err();
        assert_eq!(code_of(&wrong), Some(Code::InvalidArgument), "{audience:?} {wrong:?}");
    }
    for (audience, token) in [("", "a.b.c"), ("billing", "a.b.c"), ("billing", "")] {
        let wrong = client.validate_jwt_token(audience, token).await;
        assert!(wrong.is_err(), "{audience:?} {token:?}");
    }
}

#[tokio::test]
async fn the_stream_of_keys_tells_of_every_change_of_keys_and_of_nothing_else() {
    let ours = Ours::start();
    ours.register(&[WEB]);
    let settings = settings(&ours.folder.path().join("api.sock"));
    let source = JwtBundleSource::over(Box::new(Base::new()), &settings).await.unwrap();
    let mut live = source.identity();
    let own = ours.authority.jwt().authorities()[0].key_id.clone();
    until(&mut live, &format!("a.test: {own}")).await;

    let world = TokenWorld::new("b.test");
    ours.federated.set([world.bundle()].into_iter().collect());
    let both = format!("a.test: {own}; b.test: k");
    until(&mut live, &both).await;
    // A federated domain's token is verified in the caller's stead, with that domain's keys.
    let client = ours.client().await;
    let foreign = world.token("spiffe://b.test/web", &["billing"]);
    let validated = client.validate_jwt_token("billing", &foreign).await.unwrap();
    assert_eq!(validated.spiffe_id().to_string(), "spiffe://b.test/web");
    let forged = world.token("spiffe://a.test/web", &["billing"]);
    assert!(client.validate_jwt_token("billing", &forged).await.is_err(), "119");
    let trust = &live.load().trust;
    assert_eq!(
        trust.token_verifier().prove(&forged).unwrap_err(),
        TokenFlaw::UnknownKey { domain: "a.test".parse().unwrap() },
        "119"
    );
    ours.federated.set(TrustBundles::default());
    until(&mut live, &format!("a.test: {own}")).await;
}
