//! References to secrets: what they stand for is fetched by the data plane, kept out of whatever is stored or shown, replaced
//! when it changes, and refused when it is not known.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use wardgate::rt::Tasks;

use super::tls_edge::Certificate;
use super::world::{Admin, Answer, App, Process, World, eventually_async, get, run, send};

#[allow(dead_code, reason = "what else is told of a request is for the tests of other managers")]
#[path = "../support/secret_servers.rs"]
mod servers;

use servers::Vault;

use super::upstream_tls::{Authority, Pair};

const JACK: &str = "$secret://vault/1/jack/key";

/// A control plane, an ingress that it feeds, an application, and a Vault.
struct Edge {
    world: World,
    _control: Process,
    ingress: Process,
    admin: Admin,
    app: App,
    vault: Vault,
}

impl Edge {
    fn new() -> Self {
        Self::with(|_| json!({}))
    }

    /// With further settings of secrets.
    fn with(further: impl Fn(&World) -> Value) -> Self {
        let world = World::new();
        let control = world.control().start();
        let admin = control.admin();
        let mut secrets =
            json!({ "refresh_seconds": 1, "retry_seconds": 1, "environment": ["EDGE_*"] });
        for (name, value) in further(&world).as_object().unwrap() {
            secrets[name] = value.clone();
        }
        let certificate = Certificate::of(&["shop.test"]);
        let ingress = world
            .ingress()
            .set("ingress.https", &json!("127.0.0.1:0"))
            .set("secrets", &secrets)
            .set("status", &json!("127.0.0.1:0"))
            .env("EDGE_CERT", &certificate.chain)
            .env("EDGE_KEY", &certificate.key)
            .env("EDGE_REMAINING", "x-left-for-you")
            .env("OTHER_KEY", "not for resources")
            .fed_by(&control)
            .start();
        let (app, vault) = (App::echo("app"), Vault::start("hvs.token-of-vault"));
        Self { world, _control: control, ingress, admin, app, vault }
    }

    async fn put(&self, path: &str, body: &Value) {
        let revision = self.admin.put(path, body).await;
        self.admin.applied(revision, 1).await;
    }

    async fn route(&self, id: &str, plugins: Value) {
        let upstream = json!({ "nodes": { self.app.address.to_string(): 1 } });
        let route = json!({ "uri": format!("/{id}"), "upstream": upstream, "plugins": plugins });
        self.put(&format!("/routes/{id}"), &route).await;
    }

    async fn ask(&self, path: &str, key: &str) -> Answer {
        send(self.ingress.address("ingress"), "GET", path, &[("apikey", key)], "").await
    }

    /// Why the ingress refuses this resource; `None` when it does not.
    async fn refusal(&self, kind: &str, id: &str) -> Option<String> {
        let told = get(self.ingress.address("status"), "/status/process").await.json();
        let refused = told["configuration"][0]["refused"].as_array().unwrap().clone();
        let one = refused.into_iter().find(|one| one["kind"] == kind && one["id"] == id)?;
        Some(one["reason"].as_str().unwrap().to_owned())
    }
}

/// The Vault behind TLS, at an address of its own.
async fn over_tls(vault: SocketAddr, pair: &Pair) -> (SocketAddr, Tasks) {
    let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes()).map(Result::unwrap);
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(wardgate::mtls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.collect(), key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = Tasks::new();
    tasks.add(async move {
        let mut connections = Tasks::new();
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.add(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let Ok(mut plain) = TcpStream::connect(vault).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
            });
        }
    });
    (address, tasks)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_behind_tls_is_believed_by_the_authorities_of_the_settings_and_by_no_others() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let pem = ours.pem();
    let edge = Edge::with(move |world| {
        let ca = world.folder.join("vault-ca.pem");
        fs::write(&ca, &pem).unwrap();
        json!({ "ca": ca })
    });
    let vault = edge.vault.server.address;
    let (good, _good) = over_tls(vault, &ours.issue("vault", &["localhost", "127.0.0.1"])).await;
    let (foreign, _foreign) = over_tls(vault, &theirs.issue("vault", &["127.0.0.1"])).await;
    let (misnamed, _misnamed) = over_tls(vault, &ours.issue("vault", &["other.test"])).await;
    edge.vault.put("team/secret", "gate/jack", &json!({ "key": "key-of-jack" }));
    for (id, address) in [("1", good), ("2", foreign), ("3", misnamed)] {
        let mut manager = edge.vault.manager("team/secret/gate");
        manager["uri"] = json!(format!("https://{address}"));
        edge.put(&format!("/secrets/vault/{id}"), &manager).await;
        let reference = format!("$secret://vault/{id}/jack/key");
        let (name, plugins) = (format!("jack{id}"), json!({ "key-auth": { "key": reference } }));
        edge.put("/consumers", &json!({ "username": name, "plugins": plugins })).await;
    }
    edge.route("private", json!({ "key-auth": {} })).await;
    let admitted = edge.ask("/private", "key-of-jack").await;
    assert_eq!(admitted.status, 200, "{}", admitted.text());
    assert_eq!(admitted.json()["headers"]["x-consumer-username"], "jack1");
    assert_eq!(edge.refusal("consumers", "jack1").await, None);
    for id in ["jack2", "jack3"] {
        let why = edge.refusal("consumers", id).await.expect("nobody believes that server");
        assert!(why.contains("https://127.0.0.1:") && why.contains("ertificate"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn references_in_the_metadata_of_a_plugin_hold_wherever_the_plugin_runs() {
    let edge = Edge::new();
    edge.vault.put("team/secret", "gate/names", &json!({ "limit": "x-first" }));
    edge.put("/secrets/vault/1", &edge.vault.manager("team/secret/gate")).await;
    let names = json!({
        "limit_header": "$secret://vault/1/names/limit", "remaining_header": "$env://EDGE_REMAINING",
    });
    edge.put("/plugin_metadata/limit-count", &names).await;
    let limit = json!({ "count": 1000, "time_window": 600, "rejected_code": 503 });
    edge.route("limited", json!({ "limit-count": limit })).await;
    let answer = edge.ask("/limited", "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("x-first"), Some("1000"), "{:?}", answer.headers);
    assert_eq!(answer.header("x-left-for-you"), Some("999"), "{:?}", answer.headers);
    assert!(
        edge.admin.get("/plugin_metadata/limit-count").await.to_string().contains("$secret://")
    );

    edge.vault.put("team/secret", "gate/names", &json!({ "limit": "x-second" }));
    eventually_async("the new name is in force", || async {
        edge.ask("/limited", "").await.header("x-second").is_some().then_some(())
    })
    .await;

    // What may not be read is refused by name, and what was before stays.
    let other = json!({ "limit_header": "$env://OTHER_KEY" });
    edge.put("/plugin_metadata/limit-count", &other).await;
    let why = edge.refusal("plugin_metadata", "limit-count").await.expect("it is refused");
    assert!(why.contains("limit_header") && why.contains("$env://OTHER_KEY"), "{why}");
    assert!(edge.ask("/limited", "").await.header("x-second").is_some());
}

/// No file below the folder, and nothing that a process said, has the text.
fn is_nowhere(folder: &Path, text: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            is_nowhere(&path, text);
        } else if let Ok(bytes) = fs::read(&path) {
            let is_in = bytes.windows(text.len()).any(|bytes| bytes == text.as_bytes());
            assert!(!is_in, "{text} is in {}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_from_vault_admits_its_consumer_and_a_rotated_one_takes_over_without_a_restart() {
    let edge = Edge::new();
    edge.vault.put("team/secret", "gate/jack", &json!({ "key": "first-key-of-jack" }));
    edge.put("/secrets/vault/1", &edge.vault.manager("team/secret/gate")).await;
    let jack = json!({ "username": "jack", "plugins": { "key-auth": { "key": JACK } } });
    edge.put("/consumers", &jack).await;
    edge.route("private", json!({ "key-auth": {} })).await;
    let admitted = edge.ask("/private", "first-key-of-jack").await;
    assert_eq!(admitted.status, 200, "{}", admitted.text());
    assert_eq!(admitted.json()["headers"]["x-consumer-username"], "jack");
    // The reference itself opens nothing.
    assert_eq!(edge.ask("/private", JACK).await.status, 401);

    edge.vault.put("team/secret", "gate/jack", &json!({ "key": "second-key-of-jack" }));
    eventually_async("the new key is in force", || async {
        (edge.ask("/private", "second-key-of-jack").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(edge.ask("/private", "first-key-of-jack").await.status, 401);

    // Vault is away: what is known stays.
    edge.vault.state().is_sealed = true;
    edge.ingress.logs("Vault is sealed");
    assert_eq!(edge.ask("/private", "second-key-of-jack").await.status, 200);
    // Who is new waits for it, is refused by name at both ends, and is known when it is back.
    let ann = json!({ "username": "ann", "plugins": { "key-auth": { "key": "$secret://vault/1/ann/key" } } });
    edge.put("/consumers", &ann).await;
    let why = edge.refusal("consumers", "ann").await.expect("ann is refused");
    let says = "plugin key-auth err: key: the reference $secret://vault/1/ann/key cannot be resolved: secret manager vault/1: http://127.0.0.1:";
    assert!(why.contains(says) && why.ends_with("answered 503: Vault is sealed"), "{why}");
    let central = async || edge.admin.get("/revisions/latest").await.to_string();
    assert!(central().await.contains("Vault is sealed"), "{}", central().await);
    edge.vault.put("team/secret", "gate/ann", &json!({ "key": "key-of-ann" }));
    edge.vault.state().is_sealed = false;
    eventually_async("ann is known", || async {
        (edge.ask("/private", "key-of-ann").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(edge.refusal("consumers", "ann").await, None);
    eventually_async("the control plane hears of it", || async {
        (!central().await.contains("Vault is sealed")).then_some(())
    })
    .await;

    // The reference is what is stored and shown; what it stands for is nowhere.
    assert!(edge.admin.get("/consumers/jack").await.to_string().contains(JACK));
    let Edge { world, ingress, .. } = &edge;
    for secret in ["first-key-of-jack", "second-key-of-jack", "key-of-ann"] {
        is_nowhere(&world.folder, secret);
        assert!(!ingress.said().contains(secret), "the ingress says {secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_resolved_refuses_and_its_reason_names_field_reference_and_cause() {
    let edge = Edge::new();
    let header =
        |value: &str| json!({ "proxy-rewrite": { "headers": { "set": { "X-Token": value } } } });
    edge.route("open", header("$env://EDGE_CERT/none")).await;
    edge.route("alone", header("$secret://vault/none/a/b")).await;
    edge.route("closed", header("$env://OTHER_KEY")).await;
    for (id, says) in [
        (
            "open",
            "the reference $env://EDGE_CERT/none cannot be resolved: the secret is no JSON object",
        ),
        (
            "alone",
            "headers.set.X-Token: the reference $secret://vault/none/a/b cannot be resolved: there is no secret manager vault/none",
        ),
        (
            "closed",
            "the environment variable OTHER_KEY is not among those of the setting secrets.environment",
        ),
    ] {
        let answer = edge.ask(&format!("/{id}"), "").await;
        assert_eq!(answer.status, 503, "{id}: {}", answer.text());
        let why = edge.refusal("routes", id).await.unwrap_or_default();
        assert!(why.contains(says), "{id}: {why}");
    }
    assert_eq!(edge.app.requests(), 0);
    // With the manager comes the secret, and by it the route.
    edge.vault.state().token = "hvs.x".into();
    edge.vault.put("kv", "a", &json!({ "b": "clear" }));
    edge.put("/secrets/vault/none", &edge.vault.manager("kv")).await;
    eventually_async("the route opens", || async {
        let answer = edge.ask("/alone", "").await;
        (answer.status == 200).then(|| assert_eq!(answer.json()["headers"]["x-token"], "clear"))
    })
    .await;
    // A reference that is none is refused at the write.
    let wrong = header("$secret://vault/1");
    let route = json!({ "uri": "/x", "plugins": wrong, "upstream": { "nodes": { "a": 1 } } });
    let refused = edge.admin.ask("PUT", "/routes/x", Some(&route)).await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.text().contains("headers.set.X-Token: expected $secret://"),
        "{}",
        refused.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_and_its_key_may_stand_in_the_environment() {
    let edge = Edge::new();
    let ssl = json!({ "sni": "shop.test", "cert": "$env://EDGE_CERT", "key": "$ENV://EDGE_KEY" });
    edge.put("/ssls/1", &ssl).await;
    assert_eq!(edge.refusal("ssls", "1").await, None);
    let address = edge.ingress.address_of("ingress", 1).to_string();
    let output = std::process::Command::new("openssl")
        .args(["s_client", "-connect", &address, "-servername", "shop.test"])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl is needed by this test");
    let shaken = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shaken.contains("BEGIN CERTIFICATE"), "{shaken}");
    // One that is not allowed is refused by the setting's name.
    let ssl = json!({ "sni": "other.test", "cert": "$env://EDGE_CERT", "key": "$env://OTHER_KEY" });
    edge.put("/ssls/2", &ssl).await;
    let why = edge.refusal("ssls", "2").await.expect("it is refused");
    assert!(why.starts_with("key: the reference $env://OTHER_KEY cannot be resolved"), "{why}");
    assert!(why.contains("secrets.environment"), "{why}");
}

#[test]
fn validate_and_check_name_the_manager_that_is_missing_and_the_setting() {
    let world = World::new();
    let consumer = |name: &str, key: &str| json!({ "username": name, "plugins": { "key-auth": { "key": key } } });
    let consumers = json!([consumer("jack", JACK), consumer("ann", "$env://ANN")]);
    let set = json!({ "consumers": consumers });
    let path = world.folder.join("set.yaml");
    fs::write(&path, set.to_string()).unwrap();
    let judged = run(["validate", "-f", path.to_str().unwrap()]);
    assert_eq!(judged.code, Some(1), "{judged:?}");
    let says = "failed to fetch secret info by secret id [vault/1], response code: 404";
    assert!(judged.out.contains(says), "{judged:?}");
    let part = world.ingress().resources(&set);
    let checked = run(["check", "-c", part.settings_file().to_str().unwrap()]);
    assert_eq!(checked.code, Some(1), "{checked:?}");
    for says in [
        "consumers jack: plugins.key-auth.key: the reference $secret://vault/1/jack/key cannot be resolved: there is no secret manager vault/1",
        "consumers ann: plugins.key-auth.key: the reference $env://ANN cannot be resolved: the environment variable ANN is not among those of the setting secrets.environment",
    ] {
        assert!(checked.out.contains(says), "{checked:?}");
    }
}
