//! Enrolment end to end: our listener on a real socket, good and hostile callers at the other end.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::rt::crypto::rand::SystemRandom;
use crate::rt::crypto::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::*;
use crate::identity::forge::{Folder, Forge};
use crate::identity::{Identity, IdentitySource, SpiffeId, Svid, Trust, TrustBundles, TrustDomain};
use crate::issuer::{
    Authority, DEFAULT_TTL, Entries, Error, IssuerSource, JoinTokens, KubernetesSettings,
    RegistrationEntry, TokenId, TokenOrder, wire,
};
use crate::model::Redacted;
use crate::mtls::Anchor;
use crate::observe::{AuditLog, AuditSettings, Posture};
use crate::rt::{Clock, Drain, Live, Publisher, Tasks};

const SOON: Duration = Duration::from_secs(20);
const WEB: &str = "spiffe://a.test/web";

fn domain() -> TrustDomain {
    "a.test".parse().unwrap()
}

/// An issuer that listens, with everything in a folder of its own.
struct World {
    folder: Folder,
    authority: Arc<Authority>,
    tokens: JoinTokens,
    entries: Publisher<Entries>,
    federated: Publisher<TrustBundles>,
    /// Serial numbers that the issuer denies, as a `revocations` resource makes it.
    denied: Publisher<Vec<String>>,
    clock: Clock,
    address: SocketAddr,
    audit: AuditLog,
    _drain: Drain,
    _own: IssuerSource,
    _serving: Tasks,
}

impl World {
    async fn start() -> Self {
        Self::with(&json!([]), Clock::system()).await
    }

    /// Whose issuer's clock the test moves. TLS goes on by the system's.
    async fn standing_still(kubernetes: &Value) -> Self {
        Self::with(kubernetes, Clock::fixed(crate::rt::unix_seconds())).await
    }

    async fn with(kubernetes: &Value, clock: Clock) -> Self {
        let folder = Folder::new();
        let authority = Arc::new(Authority::in_memory(domain(), clock.clone()).unwrap());
        let (federated, live) = Publisher::new(TrustBundles::default());
        let id = issuer_id(&domain());
        let own = IssuerSource::start(authority.clone(), id, DEFAULT_TTL, live).unwrap();
        let (entries, live_entries) = Publisher::new(Entries::default());
        let (denied, serials) = Publisher::new(Vec::new());
        let mut serving = Tasks::new();
        let identity = denying(own.identity(), serials, &mut serving);
        let settings =
            AuditSettings { path: Some(folder.path().join("audit")), ..AuditSettings::default() };
        let posture = Posture { role: "issuer".into(), spiffe_id: None, facts: Vec::new() };
        let audit = AuditLog::open(settings, &posture).unwrap();
        let parts = EnrolmentParts {
            authority: authority.clone(),
            directory: folder.path().to_owned(),
            entries: live_entries,
            identity,
            kubernetes: serde_json::from_value::<Vec<KubernetesSettings>>(kubernetes.clone())
                .unwrap(),
            audit: audit.control().clone(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Drain::new();
        let enrolment = Enrolment::new(listener, parts, drain.guard()).unwrap();
        serving.add(async move { enrolment.serve().await.unwrap() });
        let tokens = JoinTokens::of(folder.path());
        Self {
            folder,
            authority,
            tokens,
            entries,
            federated,
            denied,
            clock,
            address,
            audit,
            _drain: drain,
            _own: own,
            _serving: serving,
        }
    }

    fn anchor(&self) -> Anchor {
        let bundles: TrustBundles = [self.authority.bundle()].into_iter().collect();
        Anchor::Trust(Trust::from(bundles).into())
    }

    fn client(&self) -> IssuerClient {
        IssuerClient::new(&self.address.to_string(), &issuer_id(&domain()))
    }

    /// A token for this identity, or for what entries say.
    fn token(&self, id: Option<&str>, svid_seconds: u64) -> (TokenId, Proof) {
        let order = TokenOrder {
            spiffe_id: id.map(|id| id.parse().unwrap()),
            lifetime: Duration::from_secs(600),
            svid_ttl: Some(Duration::from_secs(svid_seconds)),
            dns_names: vec!["web.shop.test".into()],
        };
        let (id, text) = self.tokens.mint(&order, self.clock.now()).unwrap();
        (id, Proof::JoinToken(Redacted::new(text.to_string())))
    }

    async fn enrol(&self, proof: &Proof) -> Result<Enrolled, Error> {
        self.client().enrol(&self.anchor(), proof, &new_key().unwrap(), None).await
    }

    async fn renew(&self, enrolled: &Enrolled, proof: Option<&Proof>) -> Result<Enrolled, Error> {
        let (svid, ticket) = (&enrolled.svid, &enrolled.ticket);
        self.client().renew(&self.anchor(), svid, ticket, proof, &new_key().unwrap()).await
    }

    fn register(&self, entries: &[(&str, &str)]) {
        let entry = |(id, selector): &(&str, &str)| {
            let declared = json!({
                "spiffe_id": id, "selectors": [selector], "federates_with": ["b.test"],
            });
            let workload = serde_json::from_value(declared).unwrap();
            RegistrationEntry::new(&workload, &domain()).unwrap()
        };
        self.entries.set(entries.iter().map(entry).collect());
    }

    /// What the log says of the issuer, beginning with the oldest.
    fn records(&self) -> Vec<Value> {
        self.audit.flush(SOON).unwrap();
        let text = std::fs::read_to_string(self.folder.path().join("audit")).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|record| record["type"] == "issuer").collect()
    }

    fn settings(&self, proof: &Value) -> EnrolSettings {
        let mut settings = json!({
            "issuer": self.address.to_string(),
            "bundle_pem": self.authority.bundle().to_pem(),
            "first_within_seconds": 3,
        });
        settings.as_object_mut().unwrap().extend(proof.as_object().unwrap().clone());
        serde_json::from_value(settings).unwrap()
    }

    async fn source(&self, settings: &EnrolSettings, state: &str) -> Result<EnrolSource, Error> {
        let state = self.folder.path().join(state);
        EnrolSource::start(settings.clone(), domain(), &state, Clock::system()).await
    }
}

/// The issuer's identity, which trusts these serial numbers no more.
fn denying(
    mut identity: Live<Identity>,
    mut serials: Live<Vec<String>>,
    tasks: &mut Tasks,
) -> Live<Identity> {
    let composed = |identity: &Identity, serials: &[String]| {
        let Trust { bundles, revocation, rules, .. } = &*identity.trust;
        let mut revocation = revocation.clone();
        let named = serials.iter().map(|serial| (domain(), serial.clone()));
        revocation.denied.serials.extend(named);
        Identity::new(identity.svid.clone(), Trust::new(bundles.clone(), revocation, *rules))
    };
    let (publisher, live) = Publisher::new(composed(&identity.load(), &serials.load()));
    tasks.add(async move {
        loop {
            tokio::select! {
                changed = identity.changed() => assert!(changed),
                () = crate::issuer::source::changed(&mut serials) => {}
            }
            publisher.set(composed(&identity.load(), &serials.load()));
        }
    });
    live
}

fn detail(error: &Error) -> &str {
    match error {
        Error::IssuerRefused { detail, .. }
        | Error::IssuerDenied { detail, .. }
        | Error::IssuerUnreachable { detail, .. } => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_join_token_gives_its_identity_once() {
    let world = World::start().await;
    let (id, proof) = world.token(Some(WEB), 600);
    let key = new_key().unwrap();
    let enrol = |key: Zeroizing<PrivateKeyDer<'static>>| {
        let (client, anchor, proof) = (world.client(), world.anchor(), proof.clone());
        async move { client.enrol(&anchor, &proof, &key, None).await }
    };
    let enrolled = enrol(Zeroizing::new(key.clone_key())).await.unwrap();
    assert_eq!((enrolled.svid.id.as_str(), enrolled.lifetime.as_secs()), (WEB, 600));
    let trust = enrolled.trust.trust(&domain()).unwrap();
    assert_eq!(trust.bundles.find(&domain()), Some(&world.authority.bundle()));
    let identity = Identity::successor(None, enrolled.svid, trust, world.clock.now());
    identity.unwrap();

    let again = enrol(new_key().unwrap()).await.unwrap_err();
    assert_eq!(detail(&again), "the proof is not valid");
    // Whose answer got lost asks again with the same key.
    assert_eq!(enrol(key).await.unwrap().svid.id.as_str(), WEB);

    let records = world.records();
    let of = |record: &Value| {
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        (text("event"), text("proof"), text("spiffe_id"), text("reason"))
    };
    let expected = |event: &str, reason: &str| {
        (event.to_owned(), "join_token".to_owned(), WEB.to_owned(), reason.to_owned())
    };
    let all: Vec<_> = records.iter().map(of).collect();
    assert_eq!(
        all,
        [expected("enrolled", ""), expected("refused", "token_used"), expected("enrolled", "")]
    );
    assert!(records[0]["serial"].is_string() && records[0]["src"]["addr"].is_string());
    let log = std::fs::read_to_string(world.folder.path().join("audit")).unwrap();
    let Proof::JoinToken(text) = &proof else { unreachable!() };
    assert!(!log.contains(text.reveal().rsplit_once('_').unwrap().1), "a secret in the log");
    assert_eq!(world.tokens.list().unwrap()[0].id, id);
}

#[tokio::test]
async fn of_many_who_show_one_token_one_gets_an_identity() {
    let world = World::start().await;
    let (_, proof) = world.token(Some(WEB), 600);
    let attempts = (0..6).map(|_| world.enrol(&proof));
    let outcomes = futures_util::future::join_all(attempts).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_token_is_good_for_its_own_identity_only_and_is_not_used_up_by_asking_for_another() {
    let world = World::start().await;
    world.register(&[("spiffe://a.test/admin", "unix:uid:0")]);
    let (_, proof) = world.token(Some(WEB), 600);
    for wanted in
        ["spiffe://a.test/admin", "spiffe://a.test/wardgate/control", "spiffe://b.test/web"]
    {
        let wanted: SpiffeId = wanted.parse().unwrap();
        let (anchor, key) = (world.anchor(), new_key().unwrap());
        let refused = world.client().enrol(&anchor, &proof, &key, Some(&wanted)).await.unwrap_err();
        assert!(matches!(refused, Error::IssuerDenied { .. }), "{refused}");
    }
    let wanted: SpiffeId = WEB.parse().unwrap();
    let (anchor, key) = (world.anchor(), new_key().unwrap());
    world.client().enrol(&anchor, &proof, &key, Some(&wanted)).await.unwrap();
    let records = world.records();
    assert_eq!(records[0]["reason"], "not_registered");
    assert_eq!(records[0]["spiffe_id"], "spiffe://a.test/admin");
}

#[tokio::test]
async fn a_token_without_an_identity_gives_what_entries_say() {
    let world = World::start().await;
    let (id, proof) = world.token(None, 600);
    let refused = world.enrol(&proof).await.unwrap_err();
    assert!(matches!(refused, Error::IssuerDenied { .. }), "{refused}");
    world.register(&[
        ("spiffe://a.test/other", "join_token:0123456789abcdef"),
        (WEB, &format!("join_token:{id}")),
    ]);
    assert_eq!(world.enrol(&proof).await.unwrap().svid.id.as_str(), WEB);
}

#[tokio::test]
async fn an_svid_renews_itself_without_a_token_as_long_as_it_stands() {
    let world = World::standing_still(&json!([])).await;
    let (id, proof) = world.token(Some(WEB), 600);
    let first = world.enrol(&proof).await.unwrap();
    world.clock.advance(700);
    assert!(world.enrol(&proof).await.is_err(), "the token is over");
    world.clock.advance(-700);
    let second = world.renew(&first, None).await.unwrap();
    assert_ne!(second.svid.serial, first.svid.serial);
    assert_ne!(second.svid.key.secret_der(), first.svid.key.secret_der());
    let third = world.renew(&second, None).await.unwrap();
    assert_eq!(third.svid.id.as_str(), WEB);

    // A ticket belongs to its SVID.
    let mixed = Enrolled { ticket: first.ticket.clone(), ..third };
    assert!(detail(&world.renew(&mixed, None).await.unwrap_err()).contains("another SVID"));
    let mut touched =
        Enrolled { ticket: second.ticket.clone(), svid: second.svid.clone(), ..mixed };
    touched.ticket[40] ^= 1;
    assert!(detail(&world.renew(&touched, None).await.unwrap_err()).contains("enrol again"));
    // An SVID that this issuer gave over another way has none.
    let local = world.authority.issue(&WEB.parse().unwrap(), DEFAULT_TTL, &[]).unwrap();
    let local = Enrolled { svid: local, ticket: Vec::new(), ..touched };
    world.renew(&local, None).await.unwrap_err();
    let local = Enrolled { ticket: second.ticket.clone(), ..local };
    assert!(detail(&world.renew(&local, None).await.unwrap_err()).contains("another SVID"));

    world.tokens.revoke(&id).unwrap();
    let revoked = world.renew(&second, None).await.unwrap_err();
    assert!(matches!(revoked, Error::IssuerDenied { .. }), "{revoked}");
    let reasons: Vec<_> = world
        .records()
        .iter()
        .filter_map(|record| record["reason"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(reasons, ["token_expired", "ticket", "ticket", "ticket", "ticket", "token_revoked"]);
}

#[tokio::test]
async fn an_entry_that_is_taken_away_ends_renewal_and_the_stream() {
    let world = World::start().await;
    let (id, proof) = world.token(None, 600);
    let selector = format!("join_token:{id}");
    world.register(&[(WEB, &selector), ("spiffe://a.test/other", &selector)]);
    let enrolled = world.enrol(&proof).await.unwrap();
    let (svid, ticket) = (&enrolled.svid, &enrolled.ticket);
    let mut following = world.client().watch(&world.anchor(), svid, ticket).await.unwrap();
    let soon =
        async |following: &mut client::Following| timeout(SOON, following.next()).await.unwrap();
    let first = soon(&mut following).await.unwrap().unwrap();
    assert_eq!(first, enrolled.trust);
    world.federated.set(Forge::new("b.test").bundles());
    let second = soon(&mut following).await.unwrap().unwrap();
    assert_eq!(second.trust(&domain()).unwrap().bundles.len(), 2);

    world.register(&[("spiffe://a.test/other", &selector)]);
    let denied = soon(&mut following).await.unwrap_err();
    assert!(matches!(denied, Error::IssuerDenied { .. }), "{denied}");
    let denied = world.renew(&enrolled, None).await.unwrap_err();
    assert!(matches!(denied, Error::IssuerDenied { .. }), "{denied}");
}

/// A call as no client of ours makes it.
async fn raw(
    world: &World,
    own: Option<&Svid>,
    call: impl AsyncFnOnce(wire::issuer_client::IssuerClient<tonic::transport::Channel>) -> Status,
) -> Status {
    let calls = world.client().calls(&world.anchor(), own).await.unwrap();
    call(calls.max_encoding_message_size(usize::MAX)).await
}

fn request(csr: Vec<u8>, token: &str) -> wire::EnrolRequest {
    let kind = Some(wire::proof::Kind::JoinToken(token.to_owned()));
    wire::EnrolRequest {
        certificate_request: csr,
        proof: Some(wire::Proof { kind }),
        spiffe_id: String::new(),
    }
}

#[tokio::test]
async fn hostile_requests_get_nothing_and_use_nothing_up() {
    let world = World::start().await;
    let (_, proof) = world.token(Some(WEB), 600);
    let Proof::JoinToken(token) = &proof else { unreachable!() };
    let csr = certificate_request(&new_key().unwrap()).unwrap();
    let enrol = async |request: wire::EnrolRequest| {
        raw(&world, None, async |mut calls| calls.enrol(request).await.unwrap_err()).await
    };
    for bad in [Vec::new(), b"hello".to_vec(), vec![0x30; 20_000], csr[..csr.len() - 1].to_vec()] {
        assert_eq!(enrol(request(bad, token.reveal())).await.code(), Code::InvalidArgument);
    }
    let giant = enrol(request(vec![0; 1 << 20], token.reveal())).await;
    assert_eq!(giant.code(), Code::OutOfRange, "{giant}");
    let none = wire::EnrolRequest { proof: None, ..request(csr.clone(), "") };
    assert_eq!(enrol(none).await.code(), Code::Unauthenticated);
    let wanted =
        wire::EnrolRequest { spiffe_id: "web".into(), ..request(csr.clone(), token.reveal()) };
    assert_eq!(enrol(wanted).await.code(), Code::InvalidArgument);

    // Without a certificate there is nothing to renew, whatever ticket is shown.
    let enrolled = world.enrol(&proof).await.unwrap();
    let ticket = enrolled.ticket.clone();
    let renew =
        wire::RenewRequest { certificate_request: csr, ticket: ticket.clone(), proof: None };
    let refused = raw(&world, None, async |mut calls| calls.renew(renew).await.unwrap_err()).await;
    assert_eq!(refused.code(), Code::Unauthenticated);
    let watch = wire::WatchRequest { ticket };
    let refused = raw(&world, None, async |mut calls| calls.watch(watch).await.unwrap_err()).await;
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn names_in_a_certificate_request_count_for_nothing() {
    let world = World::start().await;
    let (_, proof) = world.token(Some(WEB), 600);
    let Proof::JoinToken(token) = &proof else { unreachable!() };
    let mut wishes = rcgen::CertificateParams::new(["admin.shop.test".into()]).unwrap();
    let uri = "spiffe://a.test/wardgate/control".try_into().unwrap();
    wishes.subject_alt_names.push(rcgen::SanType::URI(uri));
    wishes.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    wishes.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let pair = rcgen::KeyPair::generate().unwrap();
    let csr = wishes.serialize_request(&pair).unwrap().der().to_vec();
    let mut calls = world.client().calls(&world.anchor(), None).await.unwrap();
    let answer = calls.enrol(request(csr, token.reveal())).await.unwrap().into_inner();
    let chain: Vec<_> = answer.chain.into_iter().map(CertificateDer::from).collect();
    let leaf = String::from_utf8_lossy(&chain[0]).into_owned();
    assert!(!leaf.contains("admin") && !leaf.contains("control") && leaf.contains("web.shop.test"));
    assert_eq!(Svid::new(chain, pair.into()).unwrap().id.as_str(), WEB);
}

#[tokio::test]
async fn who_guesses_tokens_has_to_wait_even_with_a_good_one() {
    let world = World::start().await;
    let (_, good) = world.token(Some(WEB), 600);
    let guess =
        Proof::JoinToken(Redacted::new(format!("wgj_0123456789abcdef_{}", hex::encode([7; 32]))));
    for _ in 0..10 {
        assert_eq!(detail(&world.enrol(&guess).await.unwrap_err()), "the proof is not valid");
    }
    for proof in [&guess, &good] {
        assert!(detail(&world.enrol(proof).await.unwrap_err()).contains("too many failures"));
    }
    let records = world.records();
    assert_eq!(records.iter().filter(|record| record["reason"] == "token_unknown").count(), 10);
    assert_eq!(records.iter().filter(|record| record["reason"] == "throttled").count(), 2);
}

#[tokio::test]
async fn nobody_else_is_taken_for_the_issuer() {
    let world = World::start().await;
    let (_, proof) = world.token(Some(WEB), 600);
    let key = new_key().unwrap();
    let stranger = Anchor::Trust(Arc::new(Forge::new("a.test").bundles().into()));
    let refused = world.client().enrol(&stranger, &proof, &key, None).await.unwrap_err();
    assert!(matches!(refused, Error::IssuerUnreachable { .. }), "{refused}");
    // Another workload of the same trust domain is not the issuer.
    let other = IssuerClient::new(&world.address.to_string(), &WEB.parse().unwrap());
    let refused = other.enrol(&world.anchor(), &proof, &key, None).await.unwrap_err();
    assert!(detail(&refused).contains("not who was expected"), "{refused}");
    assert!(world.records().is_empty(), "the token never left");
}

/// A cluster whose keys are in a file, and tokens of its accounts.
struct Cluster {
    key: EcdsaKeyPair,
    path: PathBuf,
    _folder: Folder,
}

impl Cluster {
    fn new() -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = crate::rt::crypto::ecdsa_key(algorithm, key.as_ref()).unwrap();
        let point = key.public_key().as_ref().to_vec();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "k", "x": x, "y": y });
        let folder = Folder::new();
        let path = folder.path().join("jwks.json");
        std::fs::write(&path, json!({ "keys": [jwk] }).to_string()).unwrap();
        Self { key, path, _folder: folder }
    }

    fn settings(&self, proof_seconds: u32) -> Value {
        json!([{
            "audience": "wardgate", "mode": "jwks", "jwks_file": self.path, "proof_seconds": proof_seconds,
            "id_template": "spiffe://a.test/ns/{namespace}/sa/{service_account}", "ttl": 600,
        }])
    }

    fn token(&self, account: &str, from: i64) -> Proof {
        let claims = json!({
            "iss": "https://kubernetes.default.svc.cluster.local", "aud": ["wardgate"],
            "iat": from, "exp": from + 60, "sub": format!("system:serviceaccount:shop:{account}"),
            "kubernetes.io": { "namespace": "shop", "serviceaccount": { "name": account, "uid": "u" } },
        });
        let header = json!({ "alg": "ES256", "kid": "k" });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
        Proof::Kubernetes { cluster: "default".into(), token: Redacted::new(token) }
    }
}

#[tokio::test]
async fn a_service_account_gets_its_identity_and_shows_its_token_again_in_time() {
    let cluster = Cluster::new();
    let world = World::standing_still(&cluster.settings(300)).await;
    let now = world.clock.now();
    let first = world.enrol(&cluster.token("web", now)).await.unwrap();
    assert_eq!(first.svid.id.as_str(), "spiffe://a.test/ns/shop/sa/web");
    assert_eq!(first.lifetime.as_secs(), 600);
    // The token may be shown any number of times while it lasts, and gives nobody else's identity.
    world.enrol(&cluster.token("web", now)).await.unwrap();
    let (anchor, key) = (world.anchor(), new_key().unwrap());
    let admin: SpiffeId = "spiffe://a.test/ns/shop/sa/admin".parse().unwrap();
    let proof = cluster.token("web", now);
    let refused = world.client().enrol(&anchor, &proof, &key, Some(&admin)).await.unwrap_err();
    assert!(matches!(refused, Error::IssuerDenied { .. }), "{refused}");

    let second = world.renew(&first, None).await.unwrap();
    // Each renewal may show the token; what it shows counts then.
    let refused = world.renew(&second, Some(&cluster.token("other", now))).await.unwrap_err();
    assert!(matches!(refused, Error::IssuerDenied { .. }), "{refused}");
    let refused = world.renew(&second, Some(&cluster.token("web", now - 60))).await.unwrap_err();
    assert_eq!(detail(&refused), "the proof is not valid", "expired");

    world.clock.advance(301);
    let refused = world.renew(&second, None).await.unwrap_err();
    assert!(detail(&refused).contains("must be shown again"), "{refused}");
    let later = world.clock.now();
    world.renew(&second, Some(&cluster.token("web", later))).await.unwrap();
    // Keys that cannot be read now: an earlier proof is good as long as it is.
    std::fs::remove_file(&cluster.path).unwrap();
    let refused = world.renew(&second, Some(&cluster.token("web", later))).await.unwrap_err();
    assert!(detail(&refused).contains("must be shown again"), "{refused}");
    let refused = world.enrol(&cluster.token("web", later)).await.unwrap_err();
    assert!(matches!(refused, Error::IssuerUnreachable { .. }), "{refused}");
    world.clock.advance(-301);
    world.renew(&second, Some(&cluster.token("web", now))).await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_is_not_configured_lets_nobody_in() {
    let cluster = Cluster::new();
    let world = World::start().await;
    let refused = world.enrol(&cluster.token("web", world.clock.now())).await.unwrap_err();
    assert_eq!(detail(&refused), "the proof is not valid");
    assert_eq!(world.records()[0]["reason"], "unknown_cluster");
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

/// The settings for a token.
fn by_token(proof: &Proof) -> Value {
    match proof {
        Proof::JoinToken(token) => json!({ "token": token.reveal() }),
        Proof::Kubernetes { .. } => unreachable!(),
    }
}

#[tokio::test]
async fn a_source_renews_and_follows_the_bundles_and_a_restart_begins_with_what_is_on_disk() {
    let world = World::start().await;
    let (id, proof) = world.token(None, 600);
    let selector = format!("join_token:{id}");
    let declared = json!({
        "spiffe_id": WEB, "selectors": [selector], "federates_with": ["b.test"], "ttl": 4,
    });
    let workload = serde_json::from_value(declared).unwrap();
    let entry = RegistrationEntry::new(&workload, &domain()).unwrap();
    world.entries.set([entry].into_iter().collect());
    let settings = world.settings(&by_token(&proof));
    let source = world.source(&settings, "state.json").await.unwrap();
    let mut live = source.identity();
    let first = live.load();
    assert_eq!(first.id().as_str(), WEB);
    let mode = std::fs::metadata(world.folder.path().join("state.json")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    world.federated.set(Forge::new("b.test").bundles());
    until(&mut live, |next| next.trust.bundles.len() == 2).await;
    let renewed = until(&mut live, |next| next.svid.serial != first.svid.serial).await;
    assert_eq!(renewed.trust.bundles.len(), 2);
    drop(source);

    // The token is used up: what is on disk is all there is.
    let again = world.source(&settings, "state.json").await.unwrap();
    assert_eq!(again.identity().load().id().as_str(), WEB);
    assert_eq!(again.identity().load().trust.bundles.len(), 2);
    let elsewhere = world.source(&settings, "other.json").await.unwrap_err();
    let Error::NotInTime { source: Some(last), .. } = elsewhere else { panic!("{elsewhere}") };
    assert_eq!(detail(&last), "the proof is not valid");
    let kept = world.folder.path().join("state.json");
    let kept = EnrolSource::kept(&kept, &domain(), &Clock::system()).unwrap().unwrap();
    assert_eq!(kept.identity().load().id().as_str(), WEB);
}

#[tokio::test]
async fn when_the_root_is_replaced_an_enrolled_workload_follows_before_its_time() {
    let world = World::start().await;
    let (_, proof) = world.token(Some(WEB), 600);
    let source = world.source(&world.settings(&by_token(&proof)), "state.json").await.unwrap();
    let mut live = source.identity();
    let first = live.load();
    world.authority.prepare_root().unwrap();
    let roots = |identity: &Identity| identity.trust.bundles.find(&domain()).unwrap().roots.len();
    let prepared = until(&mut live, |next| roots(next) == 2).await;
    assert_eq!(prepared.svid.serial, first.svid.serial, "nothing is to be renewed yet");
    world.authority.activate_root(Some(Duration::ZERO), true).unwrap();
    let search = async {
        loop {
            let current = live.load();
            if current.svid.chain[1] != first.svid.chain[1] {
                return current;
            }
            live.changed().await;
        }
    };
    // At most a tenth of the life later.
    let renewed = timeout(Duration::from_secs(90), search).await.unwrap();
    assert_eq!(renewed.id().as_str(), WEB);
}

#[tokio::test]
async fn a_revoked_svid_is_not_renewed_and_whoever_can_prove_itself_anew_enrols_again() {
    let cluster = Cluster::new();
    let world = World::with(&cluster.settings(300), Clock::system()).await;
    let proof = cluster.token("web", world.clock.now());
    let enrolled = world.enrol(&proof).await.unwrap();
    let (svid, ticket) = (&enrolled.svid, &enrolled.ticket);
    let mut following = world.client().watch(&world.anchor(), svid, ticket).await.unwrap();
    timeout(SOON, following.next()).await.unwrap().unwrap().unwrap();
    world.denied.set([enrolled.svid.serial.clone()].into());
    let ended = timeout(SOON, following.next()).await.unwrap().unwrap_err();
    assert!(detail(&ended).contains("does not hold any more"), "{ended}");
    world.renew(&enrolled, None).await.unwrap_err();
    world.renew(&enrolled, Some(&proof)).await.unwrap_err();
    assert_eq!(world.enrol(&proof).await.unwrap().svid.id, enrolled.svid.id);
}

#[tokio::test]
async fn an_identity_that_is_taken_away_is_withdrawn_and_one_that_comes_back_is_used() {
    let world = World::start().await;
    let (id, proof) = world.token(None, 600);
    let selector = format!("join_token:{id}");
    world.register(&[(WEB, &selector)]);
    let settings = world.settings(&by_token(&proof));
    let source = world.source(&settings, "state.json").await.unwrap();
    let mut live = source.identity();
    assert!(!live.load().is_withdrawn());
    world.register(&[]);
    until(&mut live, Identity::is_withdrawn).await;
}

#[tokio::test]
async fn an_answer_that_got_lost_is_asked_for_again_with_the_same_key() {
    let world = World::start().await;
    let (_, proof) = world.token(Some(WEB), 600);
    let settings = world.settings(&by_token(&proof));
    // The issuer has heard us, and we never heard of it.
    let file = state::StateFile::new(world.folder.path().join("state.json"));
    let key = file.asking().unwrap();
    world.client().enrol(&world.anchor(), &proof, &key, None).await.unwrap();
    let source = world.source(&settings, "state.json").await.unwrap();
    let identity = source.identity().load();
    assert_eq!(identity.svid.key.secret_der(), key.secret_der());
    assert_ne!(file.asking().unwrap().secret_der(), key.secret_der(), "it was answered");
}

#[tokio::test]
async fn what_is_on_disk_is_used_only_as_far_as_it_can_be_trusted() {
    let world = World::start().await;
    let path = world.folder.path().join("state.json");
    let (_, proof) = world.token(Some(WEB), 600);
    let settings = world.settings(&by_token(&proof));
    let first = world.source(&settings, "state.json").await.unwrap().identity().load();

    // A bundle of the settings that is another one is believed, and the old beginning is not.
    let root = crate::rt::crypto::digest::digest(
        &crate::rt::crypto::digest::SHA256,
        &world.authority.bundle().to_der(),
    );
    let mut by_root = world.settings(&json!({ "token": "x", "bundle_sha256": hex::encode(root) }));
    by_root.bundle_pem = None;
    let again = world.source(&by_root, "state.json").await.unwrap();
    assert_eq!(again.identity().load().id().as_str(), WEB);
    drop(again);
    let stranger = EnrolSettings {
        bundle_pem: Some(Forge::new("a.test").bundle().to_pem()),
        first_within_seconds: 1,
        ..settings.clone()
    };
    let refused = world.source(&stranger, "state.json").await.unwrap_err();
    assert!(matches!(refused, Error::NotInTime { .. }), "{refused}");
    // Nothing is lost by that.
    drop(world.source(&by_root, "state.json").await.unwrap());
    drop(world.source(&settings, "state.json").await.unwrap());

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = world.source(&settings, "state.json").await.unwrap_err();
    assert!(matches!(refused, Error::KeyReadable { .. }), "{refused}");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();

    std::fs::write(&path, "{").unwrap();
    let (_, fresh) = world.token(Some(WEB), 600);
    let settings = world.settings(&by_token(&fresh));
    let anew = world.source(&settings, "state.json").await.unwrap().identity().load();
    assert_ne!(anew.svid.serial, first.svid.serial);
    assert_eq!(std::fs::read(path.with_extension("damaged")).unwrap(), b"{");
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_by_name() {
    let world = World::start().await;
    for (change, says) in [
        (json!({}), "identity.token"),
        (json!({ "token": "a", "token_file": "/b" }), "identity.token"),
        (json!({ "token": "a", "bundle": "/b" }), "identity.bundle"),
        (json!({ "token": "a", "issuer": "host" }), "identity.issuer"),
        (json!({ "token": "a", "issuer": ":9186" }), "identity.issuer"),
        (json!({ "token": "a", "issuer": "host:port" }), "identity.issuer"),
        (json!({ "token": "a", "spiffe_id": "web" }), "identity.spiffe_id"),
        (json!({ "token": "a", "bundle_pem": "hello" }), "identity.bundle_pem"),
        (
            json!({ "token": "a", "bundle_pem": null, "bundle_sha256": "ab" }),
            "identity.bundle_sha256",
        ),
    ] {
        let settings = world.settings(&change);
        let refused = world.source(&settings, "none.json").await.unwrap_err().to_string();
        assert!(refused.contains(says), "{change}: {refused}");
    }
    let shown = format!("{:?}", world.settings(&json!({ "token": "secret-token" })));
    assert!(!shown.contains("secret-token"), "{shown}");
}
