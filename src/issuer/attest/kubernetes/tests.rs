//! Tokens good and bad, before an API server that is a small HTTP server of this test.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;
use crate::identity::forge::Folder;
use crate::issuer::{Error, ProofFlaw, Selector};
use crate::rt::Tasks;

const NOW: i64 = 1_800_000_000;
const AUDIENCE: &str = "wardgate";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

// An RSA key's modulus and a token that it signed, made once with openssl; the private half is gone.
const RSA_MODULUS: &str = "-yFFij55IvARbBTFmgBFZrAO0fixFPPl-Kg4wUlr4SipyK_L4Z6vCvobz8PczZROkhxZQgRMYk5qVZ92Epb7lDeJ9vDVxJ_vifu_-eQzWuneIT\
    uxcBObdUYXP-czxyJWDQY43uFbiRM8rJqaQtz1E6jUixGyg08Va23pqKz38JW1hG8WcYH0PmXJN-O-owJjFOz5FzQK9RzOxnBrjD4J3IFr6AMu\
    Wtdgb0xJW4X6-gJ6kpVDygWhFzYFm3r6gIZvlUafx0EIsrEiawFJsSe3JDAGnLLH91G-UkO1xIWhyuco0A7he44iciYzLah006-yowaq9DpeKp\
    0jCzbrtqdfFQ";
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InIifQ.eyJpc3MiOiJodHRwczovL2t1YmVybmV0ZXMuZGVmYXVsdC5zdmMuY2x1c3Rlci5sb2NhbCIsImF\
    1ZCI6WyJ3YXJkZ2F0ZSJdLCJleHAiOjE4MDAwMDM2MDAsIm5iZiI6MTgwMDAwMDAwMCwiaWF0IjoxODAwMDAwMDAwLCJzdWIiOiJzeXN0ZW06c\
    2VydmljZWFjY291bnQ6c2hvcDp3ZWIiLCJrdWJlcm5ldGVzLmlvIjp7Im5hbWVzcGFjZSI6InNob3AiLCJzZXJ2aWNlYWNjb3VudCI6eyJuYW1\
    lIjoid2ViIiwidWlkIjoiMGI2ZTNhMWUtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMDAxIn0sInBvZCI6eyJuYW1lIjoid2ViLTdmIiwidWlkI\
    joiMGI2ZTNhMWUtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMDAyIn19fQ.9-phPq-QretHXb-ohOjFzmGdblMd_UwVuEDO9WOfarn2aNrpsVAH\
    02wlmSdgpI3zvoDvF0cmyHmve3yXJ8i-xXothla7rfXua_ElGfrbNz-fvqe325eJ3zrD_ihJJ8229HXsSJiPPA6GP6Gc3GFh-fH8862m2G8x2P\
    65GjigUoEOh94CuoCLboQs9jhAx3LVd30BbyYrQ8gk7Ic_ZNQpmkvQz-hALVMV7984lRUIwGqb9Dnbv2PhHHA24u9hJp1CHOsw3osWVpo0lVzQ\
    Jjwhg3ybz2JeSC5ES54mqXa4r5mw632TwhcjQkAaeUkaU_sMVt2Jd5OKQxoD31YPonY-iA";

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A cluster's keys, and tokens signed with one of them.
struct Signer(EcdsaKeyPair);

fn rsa_jwk() -> Value {
    json!({ "kty": "RSA", "kid": "r", "use": "sig", "alg": "RS256", "n": RSA_MODULUS, "e": "AQAB" })
}

impl Signer {
    fn new() -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap())
    }

    fn jwk(&self) -> Value {
        let point = self.0.public_key().as_ref();
        let (x, y) = (text(&point[1..33]), text(&point[33..]));
        json!({ "kty": "EC", "kid": "e", "use": "sig", "alg": "ES256", "crv": "P-256", "x": x, "y": y })
    }

    fn jwks(&self) -> Value {
        json!({ "keys": [rsa_jwk(), self.jwk()] })
    }

    fn sign_text(&self, signed: &str) -> String {
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", text(signature.as_ref()))
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let (header, claims) = (header.to_string(), claims.to_string());
        self.sign_text(&format!("{}.{}", text(header.as_bytes()), text(claims.as_bytes())))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({ "alg": "ES256", "kid": "e" }), claims)
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": [AUDIENCE], "exp": NOW + 3600, "nbf": NOW, "iat": NOW,
        "sub": "system:serviceaccount:shop:web",
        "kubernetes.io": {
            "namespace": "shop",
            "serviceaccount": { "name": "web", "uid": "0b6e3a1e-0000-4000-8000-000000000001" },
            "pod": { "name": "web-7f", "uid": "0b6e3a1e-0000-4000-8000-000000000002" },
            "node": { "name": "n1", "uid": "0b6e3a1e-0000-4000-8000-000000000003" },
        },
    })
}

fn changed(pointer: &str, value: Value) -> Value {
    let mut claims = claims();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    claims.pointer_mut(parent).unwrap()[name] = value;
    claims
}

fn settings(extra: &Value) -> KubernetesSettings {
    let mut all = json!({ "name": "prod", "audience": AUDIENCE });
    all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

fn attestor(extra: &Value) -> Result<KubernetesAttestor, Error> {
    KubernetesAttestor::new(settings(extra), "a.test".parse().unwrap())
}

fn selectors(texts: &[&str]) -> BTreeSet<Selector> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn all_of_web() -> BTreeSet<Selector> {
    selectors(&[
        "k8s:cluster:prod",
        "k8s:ns:shop",
        "k8s:sa:web",
        "k8s:pod-name:web-7f",
        "k8s:pod-uid:0b6e3a1e-0000-4000-8000-000000000002",
    ])
}

/// With keys from a file.
struct ByFile {
    _folder: Folder,
    path: PathBuf,
    signer: Signer,
    attestor: KubernetesAttestor,
}

impl ByFile {
    fn new() -> Self {
        let (folder, signer) = (Folder::new(), Signer::new());
        let path = folder.path().join("jwks.json");
        std::fs::write(&path, signer.jwks().to_string()).unwrap();
        let attestor = attestor(&json!({ "mode": "jwks", "jwks_file": path })).unwrap();
        Self { _folder: folder, path, signer, attestor }
    }

    async fn refused(&self, token: &str) -> &'static str {
        self.attestor.attest(token, NOW).await.unwrap_err().code()
    }
}

#[tokio::test]
async fn a_projected_token_shows_cluster_namespace_account_and_pod() {
    let by_file = ByFile::new();
    let ByFile { signer, attestor, .. } = &by_file;
    for token in [
        signer.token(&claims()),
        RSA_TOKEN.to_owned(),
        signer.token(&changed("/aud", json!(AUDIENCE))),
        format!("{}\n", signer.token(&claims())),
    ] {
        assert_eq!(attestor.attest(&token, NOW).await.unwrap(), all_of_web());
    }
    let mut unbound = claims();
    unbound["kubernetes.io"].as_object_mut().unwrap().remove("pod");
    let shown = attestor.attest(&signer.token(&unbound), NOW).await.unwrap();
    assert_eq!(shown, selectors(&["k8s:cluster:prod", "k8s:ns:shop", "k8s:sa:web"]));
}

#[tokio::test]
async fn a_token_that_does_not_say_what_it_must_is_refused_by_name() {
    let by_file = ByFile::new();
    for (claims, code) in [
        (changed("/aud", json!(["https://kubernetes.default.svc"])), "token_audience"),
        (changed("/aud", json!([])), "token_audience"),
        (changed("/aud", json!("wardgate2")), "token_audience"),
        (changed("/aud", json!(null)), "token_malformed"),
        (changed("/iss", json!("https://elsewhere")), "token_issuer"),
        (changed("/iss", json!(format!("{ISSUER}/"))), "token_issuer"),
        (changed("/exp", json!(NOW)), "token_expired"),
        (changed("/exp", json!(NOW - 1)), "token_expired"),
        (changed("/exp", json!("never")), "token_malformed"),
        (changed("/exp", json!(null)), "token_malformed"),
        (changed("/nbf", json!(NOW + 31)), "token_not_yet_valid"),
        (changed("/iat", json!(NOW + 31)), "token_not_yet_valid"),
        (changed("/sub", json!("system:serviceaccount:shop:admin")), "token_subject"),
        (changed("/sub", json!("alice")), "token_subject"),
        (changed("/kubernetes.io/namespace", json!("kube-system")), "token_subject"),
        (changed("/kubernetes.io", json!(null)), "token_malformed"),
        (changed("/kubernetes.io/serviceaccount", json!({ "name": "web" })), "token_malformed"),
        (changed("/kubernetes.io/pod", json!({ "name": "../x", "uid": "u" })), "token_subject"),
    ] {
        let token = by_file.signer.token(&claims);
        assert_eq!(by_file.refused(&token).await, code, "{claims}");
    }
    let mut legacy = claims();
    legacy.as_object_mut().unwrap().remove("exp");
    assert_eq!(by_file.refused(&by_file.signer.token(&legacy)).await, "token_malformed");
}

#[tokio::test]
async fn tricks_with_algorithms_and_keys_do_not_work() {
    let by_file = ByFile::new();
    let ByFile { signer, .. } = &by_file;
    let part = |value: &Value| text(value.to_string().as_bytes());
    let good = signer.token(&claims());
    let (signed, signature) = good.rsplit_once('.').unwrap();

    // No signature, or one with a shared secret: the public key's text, as the classical attack has it.
    for alg in [
        "none", "None", "NONE", "nOnE", "HS256", "HS512", "PS256", "RS384", "RS1", "EdDSA",
        "ES384", "",
    ] {
        let header = part(&json!({ "alg": alg, "kid": "e" }));
        for signature in ["", signature] {
            let token = format!("{header}.{}.{signature}", part(&claims()));
            assert_eq!(by_file.refused(&token).await, "token_algorithm", "{alg}");
        }
    }
    let secret = rsa_jwk().to_string();
    let hs = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let body = format!("{}.{}", part(&json!({ "alg": "HS256", "kid": "r" })), part(&claims()));
    let tag = ring::hmac::sign(&hs, body.as_bytes());
    assert_eq!(by_file.refused(&format!("{body}.{}", text(tag.as_ref()))).await, "token_algorithm");

    // A key of another name or kind, none, or one that the header brings along.
    let strangers = Signer::new();
    let jwk = strangers.jwk();
    for (header, code) in [
        (json!({ "alg": "RS256", "kid": "x" }), "token_key"),
        (json!({ "alg": "RS256", "kid": "e" }), "token_key"),
        (json!({ "alg": "ES256", "kid": "r" }), "token_key"),
        (json!({ "alg": "RS256", "kid": "" }), "token_key"),
        (json!({ "alg": "RS256", "kid": "../../etc/passwd" }), "token_key"),
        (json!({ "alg": "RS256", "kid": "' OR 1=1 --" }), "token_key"),
        (json!({ "alg": "RS256" }), "token_key"),
        (json!({ "alg": "RS256", "kid": ["r"] }), "token_malformed"),
        (json!({ "alg": ["RS256"], "kid": "r" }), "token_malformed"),
        (json!({ "alg": "RS256", "kid": "r", "crit": ["exp"] }), "token_malformed"),
        (json!({ "alg": "RS256", "kid": "r", "crit": [] }), "token_malformed"),
        (json!({ "alg": "ES256", "kid": "e", "jwk": jwk }), "token_signature"),
        (json!({ "alg": "ES256", "kid": "e", "jku": "https://evil.test/jwks" }), "token_signature"),
    ] {
        let token = strangers.sign(&header, &claims());
        assert_eq!(by_file.refused(&token).await, code, "{header}");
    }

    // A good signature for something else.
    let other = signer.token(&changed("/sub", json!("system:serviceaccount:shop:other")));
    let (other, _) = other.rsplit_once('.').unwrap();
    assert_eq!(by_file.refused(&format!("{other}.{signature}")).await, "token_signature");
    let rsa = RSA_TOKEN.rsplit_once('.').unwrap().1;
    let rsa = format!(
        "{}.{}.{rsa}",
        part(&json!({ "alg": "RS256", "kid": "r" })),
        part(&changed("/exp", json!(NOW * 2)))
    );
    assert_eq!(by_file.refused(&rsa).await, "token_signature");
    let header = part(&json!({ "alg": "ES256", "kid": "e" }));
    let twice = claims().to_string().replacen('{', r#"{"aud":["wardgate"],"#, 1);
    let twice = format!("{header}.{}", text(twice.as_bytes()));
    assert_eq!(
        by_file.refused(&signer.sign_text(&twice)).await,
        "token_malformed",
        "a claim twice"
    );

    for (bad, code) in [
        (String::new(), "token_malformed"),
        ("a".into(), "token_malformed"),
        ("..".into(), "token_malformed"),
        (format!("{signed}."), "token_signature"),
        (signed.to_owned(), "token_malformed"),
        (format!("{good}.x"), "token_malformed"),
        (format!("{good}="), "token_malformed"),
        (format!("{signed}.{}", "A".repeat(20_000)), "token_malformed"),
    ] {
        assert_eq!(by_file.refused(&bad).await, code, "{bad:.80}");
    }
}

#[tokio::test]
async fn keys_in_a_file_are_followed_and_a_damaged_file_lets_nobody_in() {
    let by_file = ByFile::new();
    let token = by_file.signer.token(&claims());
    by_file.attestor.attest(&token, NOW).await.unwrap();
    let mut retired = by_file.signer.jwks();
    retired["keys"].as_array_mut().unwrap().pop();
    std::fs::write(&by_file.path, retired.to_string()).unwrap();
    assert_eq!(by_file.refused(&token).await, "token_key");
    for damaged in
        ["", "{", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","kid":"r","k":"AA"}]}"#]
    {
        std::fs::write(&by_file.path, damaged).unwrap();
        assert_eq!(by_file.refused(&token).await, "token_not_checkable", "{damaged}");
    }
    std::fs::remove_file(&by_file.path).unwrap();
    assert_eq!(by_file.refused(&token).await, "token_not_checkable");
    // A key for encryption, or for another algorithm than its kind has, signs nothing.
    for (field, value) in [("use", "enc"), ("alg", "ES384")] {
        let mut key = by_file.signer.jwk();
        key[field] = json!(value);
        std::fs::write(&by_file.path, json!({ "keys": [key, rsa_jwk()] }).to_string()).unwrap();
        assert_eq!(by_file.refused(&token).await, "token_key", "{value}");
    }
}

/// An API server that says what it is told to say.
struct ApiServer {
    address: SocketAddr,
    folder: Folder,
    script: Arc<Script>,
    _serving: Tasks,
}

#[derive(Default)]
struct Script {
    review: Mutex<Option<(u16, Value)>>,
    jwks: Mutex<Value>,
    asked: Mutex<Vec<Value>>,
    fetched: AtomicUsize,
}

fn is_us(headers: &HeaderMap) -> bool {
    headers.get("authorization").is_some_and(|value| value == "Bearer our-own-token")
}

async fn reviewing(
    State(script): State<Arc<Script>>,
    headers: HeaderMap,
    body: String,
) -> Response {
    if !is_us(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    script.asked.lock().push(serde_json::from_str(&body).unwrap());
    let (status, answer) = script.review.lock().clone().unwrap();
    (StatusCode::from_u16(status).unwrap(), answer.to_string()).into_response()
}

async fn keys(State(script): State<Arc<Script>>, headers: HeaderMap) -> Response {
    script.fetched.fetch_add(1, Ordering::Relaxed);
    match is_us(&headers) {
        true => script.jwks.lock().to_string().into_response(),
        false => StatusCode::UNAUTHORIZED.into_response(),
    }
}

impl ApiServer {
    async fn start() -> Self {
        let script = Arc::<Script>::default();
        let app = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(reviewing))
            .route("/openid/v1/jwks", get(keys))
            .with_state(script.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = Tasks::new();
        serving.add(async move { axum::serve(listener, app).await.unwrap() });
        let folder = Folder::new();
        std::fs::write(folder.path().join("token"), "our-own-token\n").unwrap();
        Self { address, folder, script, _serving: serving }
    }

    fn attestor(&self, mode: &str) -> KubernetesAttestor {
        attestor(&json!({
            "mode": mode,
            "api_server": format!("http://{}", self.address),
            "token_file": self.folder.path().join("token"),
        }))
        .unwrap()
    }

    fn says(&self, status: &Value) {
        let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status });
        *self.script.review.lock() = Some((201, review));
    }
}

fn vouched() -> Value {
    json!({
        "authenticated": true,
        "user": {
            "username": "system:serviceaccount:shop:web",
            "uid": "0b6e3a1e-0000-4000-8000-000000000001",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/pod-name": ["web-7f"],
                "authentication.kubernetes.io/pod-uid": ["0b6e3a1e-0000-4000-8000-000000000002"],
            },
        },
        "audiences": [AUDIENCE],
    })
}

#[tokio::test]
async fn the_api_server_is_asked_for_our_audience_with_our_own_token() {
    let server = ApiServer::start().await;
    server.says(&vouched());
    let attestor = server.attestor("token_review");
    assert_eq!(attestor.attest("the-pods-token\n", NOW).await.unwrap(), all_of_web());
    let asked = server.script.asked.lock().clone();
    let spec = json!({ "token": "the-pods-token", "audiences": [AUDIENCE] });
    let question =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec });
    assert_eq!(asked, [question]);
}

#[tokio::test]
async fn what_the_api_server_does_not_vouch_for_is_refused() {
    let server = ApiServer::start().await;
    let attestor = server.attestor("token_review");
    let with = |pointer: &str, value: Value| {
        let mut status = vouched();
        *status.pointer_mut(pointer).unwrap() = value;
        status
    };
    let mut error = vouched();
    error["error"] = json!("token is about to be revoked");
    for (status, code) in [
        (json!({}), "token_not_authenticated"),
        (json!({ "authenticated": false, "error": "token expired" }), "token_not_authenticated"),
        (with("/authenticated", json!(false)), "token_not_authenticated"),
        (error, "token_not_authenticated"),
        (with("/audiences", json!([])), "token_audience"),
        (with("/audiences", json!(["https://kubernetes.default.svc"])), "token_audience"),
        (with("/user/username", json!("alice")), "token_subject"),
        (with("/user/username", json!("system:node:n1")), "token_subject"),
        (with("/user/username", json!("system:serviceaccount:shop")), "token_subject"),
        (with("/user/username", json!("system:serviceaccount:shop:a:b")), "token_subject"),
        (with("/user/username", json!("system:serviceaccount:sh/op:web")), "token_subject"),
        (with("/user/extra", json!("x")), "token_not_checkable"),
        (with("/authenticated", json!("yes")), "token_not_checkable"),
    ] {
        server.says(&status);
        let flaw = attestor.attest("t", NOW).await.unwrap_err();
        assert_eq!(flaw.code(), code, "{status}");
    }
}

#[tokio::test]
async fn an_api_server_that_gives_no_answer_lets_nobody_in() {
    let server = ApiServer::start().await;
    let attestor = server.attestor("token_review");
    for status in [200, 401, 403, 404, 429, 500, 503] {
        *server.script.review.lock() = Some((status, json!("no")));
        let flaw = attestor.attest("t", NOW).await.unwrap_err();
        assert!(matches!(flaw, ProofFlaw::Unavailable { .. }), "{status}: {flaw}");
    }
    server.says(&vouched());
    attestor.attest("t", NOW).await.unwrap();
    let token = server.folder.path().join("token");
    std::fs::write(&token, "another").unwrap();
    assert_eq!(attestor.attest("t", NOW).await.unwrap_err().code(), "token_not_checkable");
    std::fs::remove_file(&token).unwrap();
    assert_eq!(attestor.attest("t", NOW).await.unwrap_err().code(), "token_not_checkable");
    std::fs::write(&token, "our-own-token").unwrap();
    attestor.attest("t", NOW).await.unwrap();
    drop(server._serving);
    assert_eq!(attestor.attest("t", NOW).await.unwrap_err().code(), "token_not_checkable");
}

#[tokio::test(start_paused = true)]
async fn published_keys_are_fetched_once_and_again_for_a_new_key_but_not_for_every_invented_one() {
    let server = ApiServer::start().await;
    let (attestor, signer) = (server.attestor("jwks"), Signer::new());
    *server.script.jwks.lock() = json!({ "keys": [signer.jwk()] });
    let fetched = || server.script.fetched.load(Ordering::Relaxed);
    let good = signer.token(&claims());
    for _ in 0..3 {
        assert_eq!(attestor.attest(&good, NOW).await.unwrap(), all_of_web());
    }
    assert_eq!(fetched(), 1);
    for kid in ["x", "y", "z"] {
        let invented = signer.sign(&json!({ "alg": "ES256", "kid": kid }), &claims());
        assert_eq!(attestor.attest(&invented, NOW).await.unwrap_err().code(), "token_key");
    }
    assert_eq!(fetched(), 1, "within ten seconds");

    *server.script.jwks.lock() = signer.jwks();
    tokio::time::advance(std::time::Duration::from_secs(11)).await;
    attestor.attest(RSA_TOKEN, NOW).await.unwrap();
    assert_eq!(fetched(), 2);

    // Keys that cannot be refreshed are not used for ever.
    *server.script.jwks.lock() = json!("no");
    tokio::time::advance(std::time::Duration::from_secs(301)).await;
    assert_eq!(attestor.attest(&good, NOW).await.unwrap_err().code(), "token_not_checkable");
}

#[tokio::test]
async fn over_tls_only_the_clusters_own_authority_counts() {
    let folder = Folder::new();
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), rcgen::Issuer::new(params, key))
    };
    let (good_pem, good) = authority("kubernetes");
    let (other_pem, _) = authority("kubernetes");
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(["127.0.0.1".into()]).unwrap();
    let leaf = leaf.signed_by(&key, &good).unwrap();
    let certificate = crate::mtls::PublicCertificate::from_pem(
        ["*"],
        leaf.pem().as_bytes(),
        key.serialize_pem().as_bytes(),
    );
    let config = crate::mtls::public_server_config(certificate.unwrap()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = Tasks::new();
    let app = Router::new().route(
        "/apis/authentication.k8s.io/v1/tokenreviews",
        post(async || json!({ "status": vouched() }).to_string()),
    );
    serving.add(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(tcp).await else { continue };
            let service = hyper_util::service::TowerToHyperService::new(app.clone());
            let stream = hyper_util::rt::TokioIo::new(stream);
            let _ =
                hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
        }
    });
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let token_file = write("token", "our-own-token");
    let with = |host: &str, ca: &str| {
        attestor(&json!({
            "api_server": format!("https://{host}:{}", address.port()),
            "ca_file": write("ca.pem", ca),
            "token_file": token_file,
        }))
        .unwrap()
    };
    assert_eq!(with("127.0.0.1", &good_pem).attest("t", NOW).await.unwrap(), all_of_web());
    for (host, ca) in [("127.0.0.1", &*other_pem), ("localhost", &*good_pem), ("127.0.0.1", "")] {
        let flaw = with(host, ca).attest("t", NOW).await.unwrap_err();
        assert_eq!(flaw.code(), "token_not_checkable", "{host}: {flaw}");
    }
}

#[test]
fn a_template_gives_each_account_its_own_identity_and_nobody_ours() {
    let with = |template: &str| {
        attestor(&json!({ "mode": "jwks", "jwks_file": "/x", "id_template": template, "ttl": 600 }))
    };
    let istio = with("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").unwrap();
    let grant = istio.grant(&all_of_web()).unwrap();
    assert_eq!(grant.spiffe_id.as_str(), "spiffe://a.test/ns/shop/sa/web");
    assert_eq!(grant.ttl.as_secs(), 600);
    let other = selectors(&["k8s:cluster:dev", "k8s:ns:shop", "k8s:sa:web"]);
    assert_eq!(istio.grant(&other), None, "another cluster's account");
    assert_eq!(istio.grant(&selectors(&["k8s:cluster:prod", "k8s:ns:shop"])), None);
    assert_eq!(
        attestor(&json!({ "mode": "jwks", "jwks_file": "/x" })).unwrap().grant(&all_of_web()),
        None
    );

    let short = with("spiffe://a.test/{namespace}/{service_account}").unwrap();
    let ours = selectors(&["k8s:cluster:prod", "k8s:ns:wardgate", "k8s:sa:control"]);
    assert_eq!(
        short.grant(&ours),
        None,
        "whoever may name a namespace must not become the control plane"
    );

    for (template, says) in [
        ("spiffe://a.test/ns/{namespace}", "lacks {service_account}"),
        ("spiffe://a.test/sa/{service_account}", "lacks {namespace}"),
        ("spiffe://b.test/{namespace}/{service_account}", "not in the trust domain"),
        ("{namespace}/{service_account}", "spiffe://"),
        ("spiffe://a.test/{namespace}/{service_account}/{pod}", "id_template"),
        ("spiffe://a.test/wardgate/{namespace}/{service_account}", "reserved"),
    ] {
        let error = with(template).unwrap_err().to_string();
        assert!(error.contains(says), "{template}: {error}");
    }
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    for (extra, says) in [
        (json!({ "api_server": "kubernetes" }), "api_server"),
        (json!({ "api_server": "http://192.0.2.1:8001" }), "http is for loopback"),
        (json!({ "api_server": "ftp://127.0.0.1" }), "api_server"),
        (json!({ "api_server": "https://h/path" }), "api_server"),
        (json!({ "api_server": "https://h", "jwks_file": "/x" }), "jwks_file"),
        (json!({ "api_server": "https://h", "audience": "" }), "audience"),
        (json!({ "api_server": "https://h", "name": "A b" }), "name"),
        (json!({ "api_server": "https://h", "issuer": "" }), "issuer"),
        (json!({ "api_server": "https://h", "ttl": 0 }), "ttl"),
    ] {
        let error = attestor(&extra).unwrap_err().to_string();
        assert!(error.contains("cluster") && error.contains(says), "{extra}: {error}");
    }
    let unknown = json!({ "audience": "a", "audiences": ["a"] });
    assert!(serde_json::from_value::<KubernetesSettings>(unknown).is_err());
}
