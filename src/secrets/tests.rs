//! Each manager against a server that is as strict as its maker's, and what the feed makes of their answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::servers::{Heard, Server, Vault};
use super::environment::Environment;
use super::feed::ResolvedFeed;
use super::manager::{Manager, Means};
use super::safe::Safe;
use super::settings::SecretSettings;
use super::transport::Transport;
use crate::model::{Body, Change, Id, Kind, Rejected, Resource, SecretReference};
use crate::observe::Registry;
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::crypto::{hmac, signature};
use crate::rt::{Clock, causes};
use crate::sync::{Applied, Batch, Feed};

#[path = "../../tests/support/secret_servers.rs"]
mod servers;

/// 2023-11-14T22:13:20Z.
const NOW: i64 = 1_700_000_000;

fn means(settings: &SecretSettings, clock: &Clock) -> Means {
    let lookup = |name: &str| match name {
        "TOKEN" => Ok("hvs.good".to_owned()),
        _ => Err(std::env::VarError::NotPresent),
    };
    Means {
        environment: Environment::with(&["TOKEN".to_owned()], lookup),
        transport: Transport::new(settings),
        clock: clock.clone(),
    }
}

/// What a manager that is declared so says of `path/key`.
async fn ask(
    declared: &Value,
    means: &Means,
    path: &str,
    key: Option<&str>,
) -> Result<String, String> {
    let Ok(Body::Secret(declared)) = Body::parse(Kind::Secrets, declared) else {
        panic!("no manager: {declared}")
    };
    let manager = Manager::new(&declared);
    let fetched = manager.fetch(path, means).await.map_err(|error| causes(&error))?;
    let picked = fetched.pick(key).map_err(|error| causes(&error))?;
    Ok(picked.reveal().clone())
}

#[tokio::test]
async fn vault_is_asked_in_both_versions_of_its_engine_and_what_it_refuses_is_told() {
    let vault = Vault::start("hvs.good");
    let means = means(&SecretSettings::default(), &Clock::fixed(NOW));
    vault.put("kv", "gate/jack", &json!({"key": "one", "n": 7, "o": {}}));
    // A secret of version 1 that looks like one of version 2.
    vault.put("kv", "gate/odd", &json!({"data": "own", "metadata": "too"}));
    vault.put("team/secret", "gate/jack", &json!({"key": "old"}));
    vault.put("team/secret", "gate/jack", &json!({"key": "two"}));
    vault.put("team/secret", "gate/gone", &Value::Null);
    let with = |change: Value| {
        let mut declared = vault.manager("kv/gate");
        for (name, value) in change.as_object().unwrap() {
            declared[name] = value.clone();
        }
        declared
    };
    let server = format!("http://{}", vault.server.address);
    for (change, path, key, expected) in [
        (json!({}), "jack", "key", Ok("one")),
        (json!({}), "jack", "n", Ok("7")),
        (json!({}), "odd", "data", Ok("own")),
        (json!({"uri": format!("{server}/")}), "jack", "key", Ok("one")),
        (json!({"token": "$env://TOKEN"}), "jack", "key", Ok("one")),
        (json!({"prefix": "/team/secret/gate/"}), "jack", "key", Ok("two")),
        (json!({"prefix": "team/secret/data/gate"}), "jack", "key", Ok("two")),
        (json!({}), "jack", "none", Err("the secret has no field \"none\"")),
        (json!({}), "jack", "o", Err("the field \"o\" of the secret is no text")),
        (json!({}), "nobody", "key", Err("has no secret at kv/gate/nobody")),
        (
            json!({"prefix": "team/secret"}),
            "gate/gone",
            "key",
            Err("or its newest version is deleted"),
        ),
        (json!({"token": "hvs.bad"}), "jack", "key", Err("answered 403: permission denied")),
        (json!({"namespace": "a"}), "jack", "key", Err("answered 403: permission denied")),
        (
            json!({"token": "$env://HOME"}),
            "jack",
            "key",
            Err("token: the environment variable HOME is not among"),
        ),
        (
            json!({"uri": "http://10.255.0.1:8200"}),
            "jack",
            "key",
            Err("is plain http:// and not on loopback"),
        ),
        (
            json!({"uri": "http://127.0.0.1:1"}),
            "jack",
            "key",
            Err("http://127.0.0.1:1 cannot be reached"),
        ),
    ] {
        let found = ask(&with(change.clone()), &means, path, Some(key)).await;
        match expected {
            Ok(text) => assert_eq!(found.as_deref(), Ok(text), "{change} {path}"),
            Err(says) => {
                let why = found.unwrap_err();
                assert!(why.contains(says), "{change} {path}: {why}");
                assert!(!why.contains("hvs."), "{why}");
            }
        }
    }
    vault.state().namespace = Some("teams/a".into());
    let namespaced = with(json!({"namespace": "teams/a"}));
    assert_eq!(ask(&namespaced, &means, "jack", Some("key")).await.as_deref(), Ok("one"));
    // Whoever may not ask what engines there are has written the path as the engine wants it.
    vault.state().hides_mounts = true;
    assert_eq!(ask(&namespaced, &means, "jack", Some("key")).await.as_deref(), Ok("one"));
    vault.state().is_sealed = true;
    let why = ask(&namespaced, &means, "jack", Some("key")).await.unwrap_err();
    assert_eq!(why, format!("{server} answered 503: Vault is sealed"));
}

/// AWS' side of the signature: built from what came over the wire, by the fields that the caller says it has signed.
fn verify_aws(heard: &Heard, secret: &str, region: &str) -> Result<(), String> {
    let authorization = heard.header("authorization").ok_or("MissingAuthenticationToken")?;
    let rest = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or("algorithm")?;
    let part = |name: &str| {
        let mut parts = rest.split(", ").filter_map(|part| part.split_once('='));
        parts
            .find(|(other, _)| *other == name)
            .map(|(_, value)| value.to_owned())
            .ok_or(name.to_owned())
    };
    let (credential, names, given) =
        (part("Credential")?, part("SignedHeaders")?, part("Signature")?);
    let date = heard.header("x-amz-date").ok_or("x-amz-date")?;
    let scope = format!("{}/{region}/secretsmanager/aws4_request", &date[..8]);
    if credential != format!("AKIDEXAMPLE/{scope}") {
        return Err(format!("credential {credential}"));
    }
    for demanded in ["host", "x-amz-date"] {
        if !names.split(';').any(|name| name == demanded) {
            return Err(format!("{demanded} is not signed"));
        }
    }
    for (name, _) in &heard.headers {
        if name.starts_with("x-amz-") && !names.split(';').any(|signed| signed == name) {
            return Err(format!("{name} is not signed"));
        }
    }
    let mut canonical = format!("{}\n{}\n\n", heard.method, heard.target);
    for name in names.split(';') {
        canonical +=
            &format!("{name}:{}\n", heard.header(name).ok_or("a signed header is missing")?);
    }
    canonical += &format!("\n{names}\n{}", hex::encode(digest(&SHA256, &heard.body)));
    let text = format!(
        "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
        hex::encode(digest(&SHA256, canonical.as_bytes()))
    );
    let mut key = format!("AWS4{secret}").into_bytes();
    for step in scope.split('/').chain([text.as_str()]) {
        key =
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), step.as_bytes()).as_ref().to_vec();
    }
    if hex::encode(key) == given { Ok(()) } else { Err("SignatureDoesNotMatch".into()) }
}

#[tokio::test]
async fn aws_gets_a_signature_that_it_can_verify_and_gives_texts_and_fields() {
    let server = Server::start(|heard| {
        let error = |kind: &str, message: &str| {
            (400, json!({ "__type": format!("com.amazonaws#{kind}"), "Message": message }))
        };
        if let Err(why) = verify_aws(heard, "aws-secret", "eu-central-1") {
            return error("InvalidSignatureException", &why);
        }
        let right = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", "secretsmanager.GetSecretValue"),
        ];
        if right.iter().any(|(name, value)| heard.header(name) != Some(value)) {
            return error("UnknownOperationException", "");
        }
        let asked: Value = serde_json::from_slice(&heard.body).unwrap();
        match asked["SecretId"].as_str().unwrap() {
            "prod/db" => {
                (200, json!({ "Name": "prod/db", "SecretString": r#"{"password": "deep"}"# }))
            }
            "pem" => (200, json!({ "SecretString": "whole" })),
            "binary" => (200, json!({ "SecretBinary": STANDARD.encode("bytes") })),
            "session" => (200, json!({ "SecretString": heard.header("x-amz-security-token") })),
            _ => error(
                "ResourceNotFoundException",
                "Secrets Manager can't find the specified secret.",
            ),
        }
    });
    let means = means(&SecretSettings::default(), &Clock::fixed(NOW));
    let declared = |change: Value| {
        let mut declared = json!({
            "access_key_id": "AKIDEXAMPLE", "secret_access_key": "aws-secret", "region": "eu-central-1",
            "endpoint_url": format!("http://{}", server.address), "session_token": "session of aws",
        });
        for (name, value) in change.as_object().unwrap() {
            declared[name] = value.clone();
        }
        declared
    };
    for (change, name, key, expected) in [
        (json!({}), "prod/db", Some("password"), Ok("deep")),
        (json!({}), "pem", None, Ok("whole")),
        (json!({}), "binary", None, Ok("bytes")),
        (json!({}), "session", None, Ok("session of aws")),
        (json!({}), "pem", Some("password"), Err("the secret is no JSON object")),
        (json!({}), "prod/db", Some("user"), Err("the secret has no field \"user\"")),
        (json!({}), "nobody", None, Err("has no secret nobody")),
        (
            json!({"secret_access_key": "wrong"}),
            "pem",
            None,
            Err("answered 400: InvalidSignatureException: SignatureDoesNotMatch"),
        ),
        (
            json!({"region": "us-east-1"}),
            "pem",
            None,
            Err("InvalidSignatureException: credential AKIDEXAMPLE/20231114/us-east-1/"),
        ),
        (
            json!({"secret_access_key": "$env://AWS"}),
            "pem",
            None,
            Err("secret_access_key: the environment variable AWS is not among"),
        ),
    ] {
        let found = ask(&declared(change.clone()), &means, name, key).await;
        match expected {
            Ok(text) => assert_eq!(found.as_deref(), Ok(text), "{change} {name}"),
            Err(says) => {
                let why = found.unwrap_err();
                assert!(why.contains(says), "{change} {name}: {why}");
                assert!(!why.contains("aws-secret"), "{why}");
            }
        }
    }
}

/// The key of RFC 7515, appendix A.2, which everybody knows: n, e, d, p, q, and the three for the Chinese remainder theorem.
const RSA: [&str; 8] = [
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    "AQAB",
    "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
    "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",
    "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc",
    "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0",
    "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU",
    "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U",
];

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = match u16::try_from(content.len()).unwrap().to_be_bytes() {
        [0, length @ 0..=0x7f] => vec![tag, length],
        [0, length] => vec![tag, 0x81, length],
        [high, low] => vec![tag, 0x82, high, low],
    };
    bytes.extend(content);
    bytes
}

fn integer(bytes: &[u8]) -> Vec<u8> {
    let padded = [&[0][..], bytes].concat();
    der(2, if bytes[0] & 0x80 == 0 { bytes } else { &padded })
}

/// PKCS#8 (RFC 5208) around PKCS#1 (RFC 8017, appendix A.1.2), as PEM.
fn rsa_pem() -> String {
    let numbers = RSA.map(|text| integer(&URL_SAFE_NO_PAD.decode(text).unwrap())).concat();
    let pkcs1 = der(0x30, &[integer(&[0]), numbers].concat());
    let rsa_encryption = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1, 5, 0];
    let pkcs8 = der(0x30, &[integer(&[0]), rsa_encryption.to_vec(), der(4, &pkcs1)].concat());
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(pkcs8))
}

/// Google's side of the claim: signature, algorithm, audience, scope, and times.
fn verify_google(form: &[u8], audience: &str) -> Result<(), &'static str> {
    let form = String::from_utf8_lossy(form);
    let field = |name: &str| {
        form.split('&').filter_map(|pair| pair.split_once('=')).find(|(other, _)| *other == name)
    };
    let grant = field("grant_type").ok_or("grant_type")?.1;
    if grant != "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer" {
        return Err("unsupported_grant_type");
    }
    let (signed, given) = field("assertion").ok_or("assertion")?.1.rsplit_once('.').ok_or("jwt")?;
    let [n, e] = [RSA[0], RSA[1]].map(|text| URL_SAFE_NO_PAD.decode(text).unwrap());
    let key = signature::RsaPublicKeyComponents { n, e };
    let given = URL_SAFE_NO_PAD.decode(given).map_err(|_| "base64")?;
    key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &given)
        .map_err(|_| "Invalid JWT Signature.")?;
    let parts: Vec<Value> = signed
        .split('.')
        .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
        .collect();
    let [header, claims] = &parts[..] else { return Err("two parts") };
    let expected = json!({
        "iss": "gate@project.test", "scope": "https://www.googleapis.com/auth/cloud-platform",
        "aud": audience, "iat": claims["iat"], "exp": claims["iat"].as_i64().unwrap() + 3600,
    });
    match header["alg"] == "RS256" && *claims == expected {
        true => Ok(()),
        false => Err("claims"),
    }
}

#[tokio::test]
async fn google_gets_a_claim_that_it_can_verify_once_an_hour_and_gives_newest_versions() {
    let granted = Arc::new(Mutex::new((0, String::new())));
    let audience = Arc::new(Mutex::new(String::new()));
    let (tokens, expected) = (granted.clone(), audience.clone());
    let server = Server::start(move |heard| {
        if heard.target == "/token" {
            return match verify_google(&heard.body, &expected.lock()) {
                Ok(()) => {
                    let mut tokens = tokens.lock();
                    tokens.0 += 1;
                    tokens.1 = format!("ya29.{}", tokens.0);
                    (
                        200,
                        json!({ "access_token": tokens.1, "expires_in": 3599, "token_type": "Bearer" }),
                    )
                }
                Err(why) => (400, json!({ "error": "invalid_grant", "error_description": why })),
            };
        }
        let token = format!("Bearer {}", tokens.lock().1);
        if heard.header("authorization") != Some(&token) {
            return (401, json!({ "error": { "code": 401, "message": "invalid credentials" } }));
        }
        let data = |text: &str| {
            (200, json!({ "name": "n", "payload": { "data": STANDARD.encode(text) } }))
        };
        match heard.target.strip_prefix("/v1/projects/project-1/secrets/") {
            Some("jack/versions/latest:access") => data(r#"{"key": "deep"}"#),
            Some("pem/versions/latest:access") => data("whole"),
            Some("closed/versions/latest:access") => {
                (403, json!({ "error": { "code": 403, "message": "Permission 'access' denied" } }))
            }
            _ => (404, json!({ "error": { "code": 404, "message": "not found" } })),
        }
    });
    let base = format!("http://{}", server.address);
    *audience.lock() = format!("{base}/token");
    let account = json!({
        "client_email": "gate@project.test", "private_key": rsa_pem(), "project_id": "project-1",
        "token_uri": format!("{base}/token"), "entries_uri": format!("{base}/v1"),
    });
    let clock = Clock::fixed(NOW);
    let means = means(&SecretSettings::default(), &clock);
    let declared = json!({ "auth_config": account });
    let mut other_key = declared.clone();
    other_key["auth_config"]["private_key"] =
        json!("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let mut other_mail = declared.clone();
    other_mail["auth_config"]["client_email"] = json!("somebody@else.test");
    for (declared, name, key, expected) in [
        (&declared, "jack", Some("key"), Ok("deep")),
        (&declared, "pem", None, Ok("whole")),
        (
            &declared,
            "nobody",
            None,
            Err("has no version of the secret nobody in project project-1"),
        ),
        (&declared, "closed", None, Err("answered 403: Permission 'access' denied")),
        (&declared, "a/b", None, Err("have no slash in them")),
        (&other_key, "pem", None, Err("is no RSA key as PEM")),
        (&other_mail, "pem", None, Err("answered 400: invalid_grant: claims")),
    ] {
        let found = ask(declared, &means, name, key).await;
        match expected {
            Ok(text) => assert_eq!(found.as_deref(), Ok(text), "{name}"),
            Err(says) => {
                let why = found.unwrap_err();
                assert!(why.contains(says), "{name}: {why}");
            }
        }
    }
    // A file as Google gives it, with more in it than we need; one token serves until its end, and one that was withdrawn is replaced.
    let file = std::env::temp_dir().join(format!("wardgate-gcp-{}.json", std::process::id()));
    let mut of_google = account;
    of_google["type"] = json!("service_account");
    std::fs::write(&file, of_google.to_string()).unwrap();
    let Ok(Body::Secret(of_file)) = Body::parse(Kind::Secrets, &json!({ "auth_file": file }))
    else {
        panic!("a manager")
    };
    let manager = Manager::new(&of_file);
    let before = granted.lock().0;
    let count = || granted.lock().0 - before;
    for (expected, prepare) in [(1, None), (1, None), (2, Some(3600)), (3, Some(0))] {
        match prepare {
            Some(0) => granted.lock().1 = "ya29.withdrawn".into(),
            Some(seconds) => clock.advance(seconds),
            None => {}
        }
        manager.fetch("pem", &means).await.unwrap();
        assert_eq!(count(), expected);
    }
    std::fs::remove_file(&file).unwrap();
}

/// A feed that a test fills.
struct Told {
    batches: mpsc::Receiver<Batch>,
    answers: Arc<Mutex<VecDeque<Applied>>>,
}

#[async_trait]
impl Feed for Told {
    async fn next(&mut self) -> Batch {
        match self.batches.recv().await {
            Some(batch) => batch,
            None => std::future::pending().await,
        }
    }

    fn applied(&mut self, applied: Applied) {
        self.answers.lock().push_back(applied);
    }
}

/// A feed over secrets, and both of its ends.
struct World {
    feed: ResolvedFeed,
    safe: Safe,
    tell: mpsc::Sender<Batch>,
    answers: Arc<Mutex<VecDeque<Applied>>>,
}

impl World {
    fn new(settings: &SecretSettings) -> Self {
        let safe = Safe::new(settings, &Registry::new(), Clock::system());
        let (tell, batches) = mpsc::channel(4);
        let answers = Arc::<Mutex<VecDeque<Applied>>>::default();
        let told = Told { batches, answers: answers.clone() };
        let feed = ResolvedFeed::new(Box::new(told), safe.clone());
        Self { feed, safe, tell, answers }
    }

    async fn tell(&self, revision: u64, changes: Vec<Change>) {
        let batch = Batch { changes, revision, ..Batch::default() };
        self.tell.send(batch).await.unwrap();
    }

    /// The ids of the next batch, put into force; `refused` are those that cannot be.
    async fn next(&mut self, refused: &[&str]) -> (u64, Vec<String>) {
        let next = tokio::time::timeout(Duration::from_secs(20), self.feed.next());
        let batch = next.await.expect("a batch");
        let id = |change: &Change| match change {
            Change::Put(resource) => resource.id.to_string(),
            Change::Delete(_, id) => format!("-{id}"),
        };
        let rejected = refused.iter().map(|id| Rejected {
            kind: Kind::Consumers,
            id: Id::parse(id).unwrap(),
            revision: batch.revision,
            reason: "no".into(),
        });
        let applied = Applied {
            revision: batch.revision,
            rejected: rejected.collect(),
            restored: Vec::new(),
        };
        self.feed.applied(applied);
        (batch.revision, batch.changes.iter().map(id).collect())
    }

    fn clear(&self, reference: &str) -> Result<String, String> {
        let reference = SecretReference::of(reference).unwrap().unwrap();
        self.safe.clear(&reference).map(|value| value.reveal().clone())
    }
}

fn put(kind: Kind, id: &str, value: &Value) -> Change {
    let body = Body::parse(kind, value).unwrap();
    Change::Put(Resource { kind, id: Id::parse(id).unwrap(), revision: 1, body })
}

fn consumer(name: &str, key: &str) -> Change {
    let value = json!({"username": name, "plugins": {"key-auth": {"key": key}}});
    put(Kind::Consumers, name, &value)
}

const JACK: &str = "$secret://vault/1/jack/key";

#[tokio::test]
async fn a_batch_comes_when_its_secrets_are_known_and_once_more_when_they_change() {
    let vault = Vault::start("t");
    vault.put("kv", "jack", &json!({"key": "first"}));
    let settings = SecretSettings { refresh_seconds: 1, ..SecretSettings::default() };
    let mut world = World::new(&settings);
    let manager = put(Kind::Secrets, "vault/1", &vault.manager("kv"));
    world.tell(7, vec![manager.clone(), consumer("jack", JACK), consumer("ann", "plain")]).await;
    assert_eq!(world.next(&[]).await, (7, vec!["vault/1".into(), "jack".into(), "ann".into()]));
    assert_eq!(world.clear(JACK), Ok("first".into()));
    // Rotated: the bearer comes alone, under the revision that it has.
    vault.put("kv", "jack", &json!({"key": "second"}));
    assert_eq!(world.next(&[]).await, (7, vec!["jack".into()]));
    assert_eq!(world.clear(JACK), Ok("second".into()));
    // The feed gave no batch, and hears all the same that jack is in force.
    assert_eq!(world.answers.lock().len(), 2);
    let answered = world.answers.lock().pop_back().unwrap();
    assert_eq!(answered.restored, [(Kind::Consumers, Id::parse("jack").unwrap())]);
    world.tell(8, vec![consumer("ann", "other")]).await;
    assert_eq!(world.next(&[]).await, (8, vec!["ann".into()]));
    // A manager that is gone, and its bearer with it: nobody asks any more, and nothing is kept.
    world.tell(9, vec![Change::Delete(Kind::Consumers, Id::parse("jack").unwrap())]).await;
    assert_eq!(world.next(&[]).await, (9, vec!["-jack".into()]));
    assert_eq!(world.clear(JACK), Err("secret manager vault/1 has not answered yet".into()));
}

#[tokio::test]
async fn what_is_known_stays_while_the_manager_is_away_and_without_it_the_reason_is_told() {
    let vault = Vault::start("t");
    vault.put("kv", "jack", &json!({"key": "good"}));
    let settings =
        SecretSettings { refresh_seconds: 1, retry_seconds: 1, ..SecretSettings::default() };
    let mut world = World::new(&settings);
    let manager = put(Kind::Secrets, "vault/1", &vault.manager("kv"));
    world.tell(1, vec![manager, consumer("jack", JACK)]).await;
    world.next(&[]).await;
    vault.state().is_sealed = true;
    let ann = "$secret://vault/1/ann/key";
    world.tell(2, vec![consumer("ann", ann)]).await;
    assert_eq!(world.next(&["ann"]).await, (2, vec!["ann".into()]));
    assert_eq!(world.clear(JACK), Ok("good".into()));
    let why = world.clear(ann).unwrap_err();
    assert!(why.starts_with("secret manager vault/1: http://127.0.0.1:"), "{why}");
    assert!(why.ends_with("answered 503: Vault is sealed"), "{why}");
    // It opens again: who was waiting comes by itself, who has what it had does not come at all.
    vault.put("kv", "ann", &json!({"key": "late"}));
    vault.state().is_sealed = false;
    assert_eq!(world.next(&[]).await, (2, vec!["ann".into()]));
    assert_eq!(world.clear(ann), Ok("late".into()));
}

#[tokio::test]
async fn a_reference_to_no_manager_waits_for_nobody_and_is_known_when_the_manager_comes() {
    let vault = Vault::start("t");
    vault.put("kv", "jack", &json!({"key": "good"}));
    let mut world = World::new(&SecretSettings::default());
    world.tell(1, vec![consumer("jack", JACK)]).await;
    world.next(&["jack"]).await;
    assert_eq!(world.clear(JACK), Err("there is no secret manager vault/1".into()));
    world.tell(2, vec![put(Kind::Secrets, "vault/1", &vault.manager("kv"))]).await;
    assert_eq!(world.next(&[]).await, (2, vec!["vault/1".into()]));
    assert_eq!(world.next(&[]).await, (2, vec!["jack".into()]));
    assert_eq!(world.clear(JACK), Ok("good".into()));
    // Gone again: its bearer is told why.
    world.tell(3, vec![Change::Delete(Kind::Secrets, Id::parse("vault/1").unwrap())]).await;
    assert_eq!(world.next(&[]).await, (3, vec!["-vault/1".into()]));
    assert_eq!(world.next(&["jack"]).await, (3, vec!["jack".into()]));
    assert_eq!(world.clear(JACK), Err("there is no secret manager vault/1".into()));
}

#[tokio::test]
async fn whom_to_trust_no_longer_waits_for_no_secret() {
    // Takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", silent.local_addr().unwrap());
    let mut world = World::new(&SecretSettings::default());
    world.tell(1, vec![consumer("ann", "plain")]).await;
    world.next(&[]).await;
    let manager = json!({"uri": uri, "prefix": "kv", "token": "t"});
    let denied = json!({"spiffe_id": "spiffe://a.test/web"});
    world
        .tell(
            2,
            vec![
                put(Kind::Secrets, "vault/1", &manager),
                consumer("jack", JACK),
                put(Kind::Revocations, "r", &denied),
            ],
        )
        .await;
    assert_eq!(world.next(&[]).await, (1, vec!["r".into()]));
    assert_eq!(world.answers.lock().len(), 1, "the feed's batch is not answered by that");
    // The whole comes all the same, and what is not known refuses.
    assert_eq!(world.next(&["jack"]).await.1.len(), 3);
    assert_eq!(world.clear(JACK), Err("secret manager vault/1 has not answered yet".into()));
}
