//! OCSP stapling, with OpenSSL as the authority's responder and as the client.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

use crate::world::{App, Process, World, eventually, eventually_async, free_port, get};

/// An authority with a responder, and a certificate for `shop.example` that names it.
struct Authority {
    folder: PathBuf,
    port: u16,
    chain: String,
    key: String,
    serial: String,
    responder: Option<Child>,
}

/// AuthorityInfoAccess with one OCSP responder; texts below 128 bytes.
fn access(url: &str) -> CustomExtension {
    let element = |tag: u8, content: &[u8]| [&[tag, content.len() as u8], content].concat();
    let method = element(6, &[0x2b, 6, 1, 5, 5, 7, 0x30, 1]);
    let one = element(0x30, &[method, element(0x86, url.as_bytes())].concat());
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], element(0x30, &one))
}

impl Authority {
    fn new(world: &World) -> Self {
        let (folder, port) = (world.folder.clone(), free_port());
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        root.distinguished_name.push(rcgen::DnType::CommonName, "ocsp root");
        let root_key = KeyPair::generate().unwrap();
        let root_certificate = root.self_signed(&root_key).unwrap();
        let issuer = Issuer::from_params(&root, &root_key);
        let mut leaf = CertificateParams::new(["shop.example".to_owned()]).unwrap();
        leaf.custom_extensions = vec![access(&format!("http://127.0.0.1:{port}/ocsp"))];
        leaf.serial_number = Some(vec![0x4a, 0x11, 0x22, 0x33].into());
        let key = KeyPair::generate().unwrap();
        let certificate = leaf.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join("ca.pem"), root_certificate.pem()).unwrap();
        std::fs::write(folder.join("ca-key.pem"), root_key.serialize_pem()).unwrap();
        let chain = certificate.pem() + &root_certificate.pem();
        let serial = "4A112233".to_owned();
        Self { folder, port, chain, key: key.serialize_pem(), serial, responder: None }
    }

    /// Answers from now on, with an answer that holds for so many minutes.
    fn respond(&mut self, state: &str) {
        self.silence();
        let (flag, revoked) = match state {
            "good" => ("V", String::new()),
            _ => ("R", "240101000000Z".to_owned()),
        };
        let line =
            format!("{flag}\t400101000000Z\t{revoked}\t{}\tunknown\t/CN=shop\n", self.serial);
        std::fs::write(self.folder.join("index.txt"), line).unwrap();
        let file = |name: &str| self.folder.join(name);
        let log = std::fs::File::create(file("ocsp.log")).unwrap();
        let responder = Command::new("openssl")
            .args(["ocsp", "-port", &self.port.to_string(), "-nmin", "5", "-index"])
            .arg(file("index.txt"))
            .arg("-CA")
            .arg(file("ca.pem"))
            .arg("-rsigner")
            .arg(file("ca.pem"))
            .arg("-rkey")
            .arg(file("ca-key.pem"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.responder = Some(responder);
        // A connection that says nothing would hang it.
        eventually("the responder listens", || {
            let said = std::fs::read_to_string(file("ocsp.log")).unwrap();
            said.contains("waiting for OCSP client connections").then_some(())
        });
    }

    fn silence(&mut self) {
        if let Some(mut responder) = self.responder.take() {
            let _ = responder.kill();
            let _ = responder.wait();
        }
    }

    fn ssl(&self, id: &str) -> Value {
        json!({ "id": id, "sni": "shop.example", "cert": self.chain, "key": self.key })
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.silence();
    }
}

/// What OpenSSL's client says of a handshake.
fn handshake(ingress: &Process, world: &World) -> String {
    let to = ingress.address("ingress");
    let output = Command::new("openssl")
        .args([
            "s_client",
            "-status",
            "-servername",
            "shop.example",
            "-verify_return_error",
            "-CAfile",
        ])
        .arg(world.folder.join("ca.pem"))
        .args(["-connect", &to.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ingress(world: &World, private: bool, ssl: &Value) -> Process {
    let app = App::echo("app");
    let route =
        json!({ "id": "1", "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } } });
    world
        .ingress()
        .set("ingress.http", &Value::Null)
        .set("ingress.https", &json!("127.0.0.1:0"))
        .set("ingress.ocsp_private_addresses", &json!(private))
        .set("status", &json!("127.0.0.1:0"))
        .resources(&json!({ "routes": [route], "ssls": [ssl] }))
        .start()
}

#[tokio::test]
async fn the_issuers_answer_is_stapled_and_stays_while_the_responder_is_away() {
    let world = World::new();
    let mut authority = Authority::new(&world);
    // No responder yet: handshakes do not wait for it.
    let ingress = ingress(&world, true, &authority.ssl("1"));
    let first = handshake(&ingress, &world);
    assert!(first.contains("OCSP response: no response sent"), "{first}");
    assert!(first.contains("Verify return code: 0"), "{first}");
    ingress.logs("no new OCSP answer");

    authority.respond("good");
    let shown = eventually("a stapled answer", || {
        Some(handshake(&ingress, &world)).filter(|said| !said.contains("no response sent"))
    });
    assert!(shown.contains("OCSP Response Status: successful"), "{shown}");
    assert!(shown.contains("Cert Status: good"), "{shown}");
    let status = get(ingress.address("status"), "/identity").await.json();
    assert!(status["public_certificates"][0]["ocsp_until"].is_string(), "{status:#}");
    let metrics = get(ingress.address("status"), "/metrics").await.text();
    assert!(metrics.contains("wardgate_ocsp_fetches_total{outcome=\"good\"} 1\n"), "{metrics}");

    authority.silence();
    // A resource that is written anew keeps what was fetched for its certificate.
    let mut again = authority.ssl("1");
    again["labels"] = json!({ "written": "again" });
    ingress.write_resources(&json!({ "ssls": [again] }));
    ingress.logs("configuration applied");
    eventually("the answer is there still", || {
        Some(handshake(&ingress, &world)).filter(|said| said.contains("Cert Status: good"))
    });
}

#[tokio::test]
async fn what_the_issuer_has_revoked_is_said_and_not_stapled() {
    let world = World::new();
    let mut authority = Authority::new(&world);
    authority.respond("revoked");
    let ingress = ingress(&world, true, &authority.ssl("1"));
    ingress.logs("the issuer has revoked the certificate");
    assert!(handshake(&ingress, &world).contains("OCSP response: no response sent"));
}

#[tokio::test]
async fn a_responder_at_a_private_address_is_not_asked_unless_allowed() {
    let world = World::new();
    let mut authority = Authority::new(&world);
    authority.respond("good");
    let ingress = ingress(&world, false, &authority.ssl("1"));
    ingress.logs("127.0.0.1 is no public address");
    eventually_async("a failure is counted", || async {
        let metrics = get(ingress.address("status"), "/metrics").await.text();
        metrics.contains("wardgate_ocsp_fetches_total{outcome=\"failed\"} 1\n").then_some(())
    })
    .await;
    assert!(handshake(&ingress, &world).contains("OCSP response: no response sent"));
}
