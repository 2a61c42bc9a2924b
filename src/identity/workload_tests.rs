//! The Workload API client against an agent that says what it is told to: rules 90 and 96 to 113.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

use super::forge::{Folder, Forge, Signed, leaf};
use super::workload_proto::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use super::workload_proto::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest,
    X509svidResponse,
};
use super::{
    Error, Identity, IdentitySource, Presented, Purpose, RevocationMode, Svid, TrustDomain,
    WorkloadApiSettings, WorkloadApiSource,
};
use crate::rt::{Clock, Live, Tasks};

const SOON: Duration = Duration::from_secs(10);
/// Long enough for something to happen that should not.
const A_WHILE: Duration = Duration::from_millis(150);

type Word = Result<X509svidResponse, Status>;
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// An agent on a socket. Each call for SVIDs waits for the test.
struct Agent {
    folder: Folder,
    calls: mpsc::Receiver<Call>,
    _serving: Tasks,
}

/// A call for SVIDs: what came with it, and where the answer goes.
struct Call {
    header: Option<String>,
    answer: mpsc::Sender<Word>,
}

impl Call {
    async fn say(&self, message: X509svidResponse) {
        self.answer.send(Ok(message)).await.unwrap();
    }

    async fn end(self, status: Status) {
        self.answer.send(Err(status)).await.unwrap();
    }
}

struct Api {
    calls: mpsc::Sender<Call>,
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Api {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let header = request.metadata().get("workload.spiffe.io");
        let header = header.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (answer, words) = mpsc::channel(4);
        self.calls.send(Call { header, answer }).await.unwrap();
        // As SPIRE's agent does, the head of the answer waits for its first word.
        let mut words = ReceiverStream::new(words).peekable();
        if let Some(Err(status)) = Pin::new(&mut words).peek().await {
            return Err(status.clone());
        }
        Ok(Response::new(Box::pin(words)))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn fetch_jwtsvid(
        &self,
        _: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

impl Agent {
    fn start() -> Self {
        let folder = Folder::new();
        let listener = tokio::net::UnixListener::bind(folder.path().join("api.sock")).unwrap();
        let (sender, calls) = mpsc::channel(8);
        let mut serving = Tasks::new();
        serving.add(async move {
            let served = tonic::transport::Server::builder()
                .add_service(SpiffeWorkloadApiServer::new(Api { calls: sender }))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await;
            served.unwrap();
        });
        Self { folder, calls, _serving: serving }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    async fn call(&mut self) -> Call {
        timeout(SOON, self.calls.recv()).await.expect("a call in time").unwrap()
    }

    fn settings(&self) -> WorkloadApiSettings {
        WorkloadApiSettings {
            socket: Some(self.socket().display().to_string()),
            first_within_seconds: 10,
            ..WorkloadApiSettings::default()
        }
    }

    /// A source that has this message's identity; with the call whose stream it follows.
    async fn source(&mut self, message: X509svidResponse) -> (WorkloadApiSource, Call) {
        let starting = WorkloadApiSource::start(self.settings(), Clock::system());
        let answering = async {
            let call = self.call().await;
            call.say(message).await;
            call
        };
        let (source, call) = tokio::join!(starting, answering);
        (source.unwrap(), call)
    }

    /// Why a start with these settings fails when the agent says this.
    async fn refuses(&mut self, settings: WorkloadApiSettings, word: Word) -> String {
        let starting = WorkloadApiSource::start(settings, Clock::system());
        let answering = async {
            loop {
                let call = self.call().await;
                call.answer.send(word.clone()).await.unwrap();
            }
        };
        tokio::select! {
            started = starting => started.unwrap_err().report(),
            () = answering => unreachable!("it answers for ever"),
        }
    }
}

fn entry(svid: &Svid, forge: &Forge) -> X509svid {
    X509svid {
        spiffe_id: svid.id.to_string(),
        x509_svid: svid.chain.iter().flat_map(|one| one.iter().copied()).collect(),
        x509_svid_key: svid.key.secret_der().to_vec(),
        bundle: forge.bundle().to_der(),
        hint: String::new(),
    }
}

fn hinted(svid: &Svid, forge: &Forge, hint: &str) -> X509svid {
    let mut entry = entry(svid, forge);
    hint.clone_into(&mut entry.hint);
    entry
}

fn message(svids: Vec<X509svid>) -> X509svidResponse {
    X509svidResponse { svids, crl: Vec::new(), federated_bundles: HashMap::new() }
}

fn only(svid: &Svid, forge: &Forge) -> X509svidResponse {
    message(vec![entry(svid, forge)])
}

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

/// Nothing new is published for a while.
async fn stays(live: &mut Live<Identity>, rule: &str) {
    let _ = live.load();
    assert!(timeout(A_WHILE, live.changed()).await.is_err(), "{rule}");
}

#[tokio::test]
async fn rule_90_each_call_bears_the_header() {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    let (_source, call) = agent.source(only(&a.svid("/web"), &a)).await;
    assert_eq!(call.header.as_deref(), Some("true"), "90");
    drop(call);
    assert_eq!(agent.call().await.header.as_deref(), Some("true"), "90, 94 again, without TLS");
}

#[tokio::test]
async fn rules_96_and_98_a_stream_that_ends_is_opened_again_and_takes_nothing_away() {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    let first = a.svid("/web");
    let (source, mut call) = agent.source(only(&first, &a)).await;
    let mut live = source.identity();
    for end in [None, Some(Status::unavailable("later")), Some(Status::internal("oh"))] {
        match end {
            None => drop(call),
            Some(status) => call.end(status).await,
        }
        call = agent.call().await;
        stays(&mut live, "96, 98 a stream that ended changed the identity").await;
    }
    let next = a.svid("/web");
    call.say(only(&next, &a)).await;
    until(&mut live, |now| now.svid.serial == next.serial).await;
}

#[tokio::test]
async fn rules_97_and_99_an_answer_that_cannot_change_ends_a_start_and_is_no_reason_to_give_up_later()
 {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    for (rule, status, says) in [
        ("97", Status::invalid_argument("security header missing"), "InvalidArgument: security"),
        ("99", Status::unimplemented("no such call"), "Unimplemented: no such call"),
    ] {
        let error = agent.refuses(agent.settings(), Err(status)).await;
        assert!(error.contains(says), "{rule}: {error}");
        assert!(!error.contains("within"), "{rule} it was not waited for: {error}");
    }
    let (source, call) = agent.source(only(&a.svid("/web"), &a)).await;
    call.end(Status::invalid_argument("what?")).await;
    stays(&mut source.identity(), "97 it took the identity away").await;
}

#[tokio::test]
async fn rule_98_a_start_waits_for_its_registration() {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    let web = a.svid("/web");
    let starting = WorkloadApiSource::start(agent.settings(), Clock::system());
    let answering = async {
        for status in [Status::permission_denied("no identity issued"), Status::unavailable("")] {
            agent.call().await.end(status).await;
        }
        agent.call().await.say(only(&web, &a)).await;
    };
    let (source, ()) = tokio::join!(starting, answering);
    assert_eq!(source.unwrap().identity().load().id().as_str(), "spiffe://a.test/web");

    let short = WorkloadApiSettings { first_within_seconds: 1, ..agent.settings() };
    let error = agent.refuses(short, Err(Status::permission_denied("no identity issued"))).await;
    assert!(error.contains("no identity issued"), "{error}");
}

#[tokio::test]
async fn rules_100_and_101_each_message_is_the_full_state() {
    let (mut agent, a, b) = (Agent::start(), Forge::new("a.test"), Forge::new("b.test"));
    let web = a.svid("/web");
    let mut full = only(&web, &a);
    full.federated_bundles.insert("spiffe://b.test".into(), b.bundle().to_der());
    full.crl.push(a.revocation_list(&[7]));
    let (source, call) = agent.source(full.clone()).await;
    let mut live = source.identity();
    assert!(live.load().trust.bundles.find(&b.domain).is_some());
    assert_eq!(live.load().trust.revocation.by_domain.len(), 1);

    let mut none = full.clone();
    none.federated_bundles.insert("spiffe://b.test".into(), Vec::new());
    call.say(none).await;
    let empty = |now: &Identity| {
        now.trust.bundles.find(&b.domain).is_some_and(|bundle| bundle.roots.is_empty())
    };
    until(&mut live, empty).await;

    call.say(only(&web, &a)).await;
    let now = until(&mut live, |now| now.trust.bundles.find(&b.domain).is_none()).await;
    assert_eq!(now.trust.bundles.len(), 1, "101");
    assert!(now.trust.revocation.by_domain.is_empty(), "100 lists are emptied as well");
}

#[tokio::test]
async fn rule_102_an_svid_that_is_missing_among_others_is_used_no_more() {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    let (web, other) = (a.svid("/web"), a.svid("/other"));
    let (source, call) = agent.source(message(vec![entry(&web, &a), entry(&other, &a)])).await;
    let mut live = source.identity();

    call.say(only(&other, &a)).await;
    agent.call().await.say(only(&other, &a)).await;
    let gone = until(&mut live, Identity::is_withdrawn).await;
    assert_eq!(gone.id(), &web.id, "102 it did not become somebody else");
    stays(&mut live, "102").await;
}

#[tokio::test]
async fn rules_102_and_103_what_was_taken_away_comes_back_when_the_api_says_so() {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    let (web, other) = (a.svid("/web"), a.svid("/other"));
    let (source, call) = agent.source(only(&web, &a)).await;
    let mut live = source.identity();
    call.say(only(&other, &a)).await;
    let call = agent.call().await;
    call.say(only(&other, &a)).await;
    until(&mut live, Identity::is_withdrawn).await;
    call.say(message(vec![entry(&other, &a), entry(&web, &a)])).await;
    let back = until(&mut live, |now| !now.is_withdrawn()).await;
    assert_eq!(back.id(), &web.id, "102 on the same stream, and not as the first");

    call.end(Status::permission_denied("no identity issued")).await;
    agent.call().await.end(Status::permission_denied("no identity issued")).await;
    until(&mut live, Identity::is_withdrawn).await;
    agent.call().await.end(Status::permission_denied("for another reason")).await;
    let call = agent.call().await;
    stays(&mut live, "103").await;
    call.say(only(&web, &a)).await;
    until(&mut live, |now| !now.is_withdrawn()).await;
}

#[tokio::test]
async fn rule_103_a_denial_on_a_running_stream_counts_when_it_is_said_again() {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    let (web, other, next) = (a.svid("/web"), a.svid("/other"), a.svid("/web"));
    let (source, mut call) = agent.source(only(&web, &a)).await;
    let mut live = source.identity();
    let before = live.version();
    for missing in [false, true] {
        if missing {
            call.say(only(&other, &a)).await;
        } else {
            call.end(Status::permission_denied("no identity issued")).await;
        }
        call = agent.call().await;
        stays(&mut live, "103 SPIRE's agent says so while it signs anew").await;
        call.say(only(&next, &a)).await;
        timeout(SOON, live.changed()).await.unwrap();
        assert_eq!(live.load().svid.serial, next.serial);
    }
    assert_eq!(live.version(), before + 2, "103 never withdrawn in between");

    // Nobody says anything any more: then the denial is all that we know.
    call.end(Status::permission_denied("no identity issued")).await;
    let _silent = agent.call().await;
    until(&mut live, Identity::is_withdrawn).await;
}

#[tokio::test]
async fn rules_104_108_and_109_a_message_with_a_fault_is_discarded_as_a_whole() {
    let (mut agent, a, b) = (Agent::start(), Forge::new("a.test"), Forge::new("b.test"));
    let (web, other) = (a.svid("/web"), a.svid("/other"));
    let (source, call) = agent.source(only(&web, &a)).await;
    let mut live = source.identity();
    let with = |change: &dyn Fn(&mut X509svidResponse)| {
        let next = a.svid("/web");
        let mut message = message(vec![entry(&next, &a), entry(&other, &a)]);
        message.federated_bundles.insert("spiffe://b.test".into(), b.bundle().to_der());
        change(&mut message);
        message
    };
    let elsewhere = KeyPair::generate().unwrap();
    type Change<'c> = &'c dyn Fn(&mut X509svidResponse);
    let faults: [(&str, Change<'_>); 17] = [
        ("104 no SVID", &|it| it.svids.clear()),
        ("104 no spiffe_id", &|it| it.svids[0].spiffe_id.clear()),
        ("104 no chain", &|it| it.svids[0].x509_svid.clear()),
        ("104 no key", &|it| it.svids[0].x509_svid_key.clear()),
        ("104 no bundle", &|it| it.svids[0].bundle.clear()),
        ("104 another SVID without a key", &|it| it.svids[1].x509_svid_key.clear()),
        ("104 another SVID without a bundle", &|it| it.svids[1].bundle.clear()),
        ("108 bytes after the chain", &|it| it.svids[0].x509_svid.push(0)),
        ("108 bytes after the bundle", &|it| it.svids[0].bundle.push(0)),
        ("108 no PKCS#8", &|it| it.svids[0].x509_svid_key.truncate(20)),
        ("109 another key", &|it| it.svids[0].x509_svid_key = elsewhere.serialize_der()),
        ("109 spiffe_id of another SVID", &|it| {
            it.svids[0].x509_svid = it.svids[1].x509_svid.clone();
            it.svids[0].x509_svid_key = it.svids[1].x509_svid_key.clone();
        }),
        ("109 its bundle does not vouch for it", &|it| {
            for svid in &mut it.svids {
                svid.bundle = Forge::new("a.test").bundle().to_der();
            }
        }),
        ("53 two bundles for one trust domain", &|it| {
            it.svids[1].bundle = Forge::new("a.test").bundle().to_der();
        }),
        ("104 a federated bundle that is none", &|it| {
            it.federated_bundles.insert("spiffe://b.test".into(), vec![1, 2, 3]);
        }),
        ("104 a federated bundle of nobody", &|it| {
            it.federated_bundles.insert("spiffe://b.test/path".into(), b.bundle().to_der());
        }),
        ("51 one trust domain named twice", &|it| {
            it.federated_bundles.insert("b.test".into(), b.bundle().to_der());
        }),
    ];
    let before = live.version();
    for (rule, change) in faults {
        call.say(with(change)).await;
        stays(&mut live, rule).await;
    }
    assert_eq!(live.load().svid.serial, web.serial);
    let good = with(&|_| {});
    call.say(good).await;
    until(&mut live, |now| now.trust.bundles.find(&b.domain).is_some()).await;
    assert_eq!(live.version(), before + 1, "one of the messages was taken late");
}

#[tokio::test]
async fn rule_53_nobody_federates_our_own_trust_domain_with_another_bundle() {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    let mut forged = only(&a.svid("/web"), &a);
    let other = Forge::new("a.test").bundle().to_der();
    forged.federated_bundles.insert("spiffe://a.test".into(), other);
    let (source, _call) = agent.source(forged).await;
    let trust = source.identity().load().trust.clone();
    assert_eq!(trust.bundles.find(&a.domain), Some(&a.bundle()), "53");
}

#[tokio::test]
async fn rules_105_to_107_say_which_svid_is_ours() {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    let (web, db, cache) = (a.svid("/web"), a.svid("/db"), a.svid("/cache"));
    let long = "h".repeat(1025);
    let all = message(vec![
        hinted(&web, &a, "external"),
        hinted(&db, &a, "internal"),
        hinted(&cache, &a, "internal"),
        hinted(&a.svid("/long"), &a, &long),
    ]);
    let chosen = |id: Option<&str>, hint: Option<&str>| WorkloadApiSettings {
        spiffe_id: id.map(str::to_owned),
        hint: hint.map(str::to_owned),
        first_within_seconds: 1,
        ..agent.settings()
    };
    let cases = [
        ("105 the first", chosen(None, None), Ok("/web")),
        ("106 the first with the hint", chosen(None, Some("internal")), Ok("/db")),
        ("107 by ID", chosen(Some("spiffe://a.test/cache"), None), Ok("/cache")),
        ("107 by both", chosen(Some("spiffe://a.test/cache"), Some("internal")), Ok("/cache")),
        ("107 no such hint", chosen(None, Some("none")), Err("no SVID for hint \"none\"")),
        ("107 no such ID", chosen(Some("spiffe://a.test/x"), None), Err("spiffe://a.test/web")),
        (
            "107 both, at different SVIDs",
            chosen(Some("spiffe://a.test/web"), Some("internal")),
            Err("spiffe://a.test/web with hint \"internal\""),
        ),
        ("107 a long hint", chosen(None, Some(&long)), Err("1 to 1024 bytes")),
        ("107 an empty hint", chosen(None, Some("")), Err("identity.hint")),
        ("107 an ID that is none", chosen(Some("web"), None), Err("identity.spiffe_id")),
    ];
    for (rule, settings, expected) in cases {
        match expected {
            Ok(path) => {
                let starting = WorkloadApiSource::start(settings, Clock::system());
                let answering = async {
                    let call = agent.call().await;
                    call.say(all.clone()).await;
                    call
                };
                let (source, _call) = tokio::join!(starting, answering);
                assert_eq!(source.unwrap().identity().load().id().path(), path, "{rule}");
            }
            Err(says) => {
                let error = agent.refuses(settings, Ok(all.clone())).await;
                assert!(error.contains(says), "{rule}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn rule_111_revocation_lists_count_for_the_trust_domain_whose_authority_signed_them() {
    let (mut agent, a, b) = (Agent::start(), Forge::new("a.test"), Forge::new("b.test"));
    let web = a.svid("/web");
    let (signed, mut second) = (a.revocation_list(&[7]), a.revocation_list(&[9]));
    let forged = Forge::new("a.test").revocation_list(&[8]);
    let mut told = only(&web, &a);
    told.federated_bundles.insert("spiffe://b.test".into(), b.bundle().to_der());
    told.crl = vec![signed.clone(), forged, b"no list".to_vec(), second.clone()];
    let (source, call) = agent.source(told.clone()).await;
    let mut live = source.identity();
    let trust = live.load().trust.clone();
    let domains: Vec<&TrustDomain> = trust.revocation.by_domain.keys().collect();
    assert_eq!(domains, [&a.domain], "111 for nobody else");
    let lists = &trust.revocation.by_domain[&a.domain];
    assert_eq!(lists.mode, RevocationMode::Soft);
    let held = |trust: &super::Trust| {
        let mut held: Vec<Vec<u8>> =
            trust.revocation.by_domain[&a.domain].lists.iter().map(|list| list.to_vec()).collect();
        held.sort();
        held
    };
    let mut expected = vec![signed.clone(), second.clone()];
    expected.sort();
    assert_eq!(
        held(&trust),
        expected,
        "111 forged and malformed ones are left out, the rest counts"
    );

    // The same lists in another order are the same trust: no connection has to be looked at again.
    told.crl = vec![second.clone(), signed.clone(), signed.clone()];
    let before = live.version();
    call.say(told.clone()).await;
    timeout(SOON, live.changed()).await.unwrap();
    assert!(live.version() > before && Arc::ptr_eq(&live.load().trust, &trust));

    second.push(0);
    told.crl = vec![second];
    call.say(told).await;
    let now = until(&mut live, |now| now.trust.revocation.by_domain.is_empty()).await;
    assert!(!now.is_withdrawn(), "111 a malformed list is no reason to discard the message");
}

#[tokio::test]
async fn rule_111_a_list_of_an_intermediate_that_is_not_ours_revokes_whom_it_names() {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    // Our own chain has no intermediate: that there is one shows only when a peer comes with it.
    let Signed { chain, key } = a.sign_by_root(&leaf("spiffe://a.test/web"));
    let web = Svid::new(chain, key.into()).unwrap();
    let peer = |serial: u64| {
        let mut params = leaf("spiffe://a.test/peer");
        params.serial_number = Some(serial.into());
        a.sign(&params).chain
    };
    let mut told = only(&web, &a);
    told.crl = vec![a.revocation_list_by_intermediate(&[7])];
    let (source, _call) = agent.source(told).await;
    let trust = source.identity().load().trust.clone();
    let judged = |chain: Vec<CertificateDer<'static>>| {
        let mut presented = Presented::default();
        let now = UnixTime::now();
        trust.verifier().verify(&chain[0], &chain[1..], Purpose::Client, now, &mut presented)
    };
    assert_eq!(judged(peer(7)).unwrap_err().code(), "revoked");
    assert!(judged(peer(8)).is_ok());
}

#[tokio::test]
async fn rule_112_an_svid_that_is_over_does_not_hold_back_its_bundles() {
    let (mut agent, a, b) = (Agent::start(), Forge::new("a.test"), Forge::new("b.test"));
    let web = a.svid("/web");
    let mut first = only(&web, &a);
    first.federated_bundles.insert("spiffe://b.test".into(), b.bundle().to_der());
    let (source, call) = agent.source(first).await;
    let mut live = source.identity();

    let over = expired(&a, "/web");
    call.say(only(&over, &a)).await;
    let now = until(&mut live, |now| now.trust.bundles.find(&b.domain).is_none()).await;
    assert_eq!(now.svid.serial, web.serial, "112 the SVID in use stays");

    call.end(Status::permission_denied("no identity issued")).await;
    agent.call().await.end(Status::permission_denied("no identity issued")).await;
    until(&mut live, Identity::is_withdrawn).await;
    let call = agent.call().await;
    call.say(only(&over, &a)).await;
    stays(&mut live, "112 what was taken away came back with an SVID that is over").await;
}

#[tokio::test]
async fn rule_113_no_output_has_the_key() {
    let (mut agent, a) = (Agent::start(), Forge::new("a.test"));
    let web = a.svid("/web");
    let told = only(&web, &a);
    let shown = format!("{told:?}");
    let key = format!("{:?}", web.key.secret_der());
    assert!(!shown.contains(key.trim_matches(['[', ']'])), "113");
    let (source, _call) = agent.source(told).await;
    let shown = format!("{source:?} {:?}", source.identity().load());
    assert!(!shown.contains(key.trim_matches(['[', ']'])), "113");
}

#[tokio::test]
async fn nobody_at_the_address_is_said_with_the_systems_word() {
    let folder = Folder::new();
    let settings = WorkloadApiSettings {
        socket: Some(folder.path().join("api.sock").display().to_string()),
        first_within_seconds: 1,
        ..WorkloadApiSettings::default()
    };
    let error = WorkloadApiSource::start(settings, Clock::system()).await.unwrap_err();
    assert!(matches!(error, Error::NotInTime { .. }));
    assert!(error.report().contains("No such file"), "{}", error.report());
}

fn expired(forge: &Forge, path: &str) -> Svid {
    let mut params = leaf(&format!("spiffe://{}{path}", forge.domain));
    params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(2);
    params.not_after = OffsetDateTime::now_utc() - time::Duration::hours(1);
    let Signed { chain, key } = forge.sign(&params);
    Svid::new(chain, key.into()).unwrap()
}
