//! An ingress without any certificate gets one, keeps it, renews it, and says what is wrong when it does not.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::pebble::{Pebble, programs};
use crate::world::{App, Part, Process, World, eventually, eventually_async, get};

/// A world with a Pebble and an app.
struct Edge {
    pebble: Pebble,
    app: App,
    world: World,
}

impl Edge {
    fn new() -> Option<Self> {
        let programs = programs()?;
        let world = World::new();
        Some(Self { pebble: Pebble::new(&programs, &world), app: App::echo("app"), world })
    }

    /// An ingress with both doors, whose routes all lead callers of plain HTTP away.
    fn ingress(&self, acme: &Value) -> Part<'_> {
        let route = json!({
            "id": "1", "uri": "/*",
            "plugins": { "redirect": { "http_to_https": true } },
            "upstream": { "nodes": { self.app.address.to_string(): 1 } },
        });
        self.world
            .ingress()
            .set("ingress.https", &json!("127.0.0.1:0"))
            .set("ingress.acme", acme)
            .set("status", &json!("127.0.0.1:0"))
            .resources(&json!({ "routes": [route] }))
    }
}

/// The ports for plain HTTP and for TLS.
fn ports(ingress: &Process) -> (u16, u16) {
    (ingress.address_of("ingress", 0).port(), ingress.address_of("ingress", 1).port())
}

/// The serial number of the certificate that is shown for this name, if one is.
fn serial(port: u16, name: &str) -> Option<String> {
    let shaken = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", name])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .expect("openssl is needed by this test");
    if !String::from_utf8_lossy(&shaken.stdout).contains("BEGIN CERTIFICATE") {
        return None;
    }
    let mut child = Command::new("openssl")
        .args(["x509", "-noout", "-serial"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &shaken.stdout).unwrap();
    let output = child.wait_with_output().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The status of a request by curl, which verifies the certificate against `root`.
fn curl(port: u16, name: &str, root: &Path) -> String {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"])
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1"), "--cacert"])
        .arg(root)
        .args(["--output", "/dev/null", "--write-out", "%{http_code}"])
        .arg(format!("https://{name}:{port}/x"))
        .output()
        .expect("curl is needed by this test");
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

async fn report(ingress: &Process) -> Value {
    let all = get(ingress.address("status"), "/acme").await.json();
    all["certificates"].as_object().and_then(|all| all.values().next().cloned()).unwrap_or_default()
}

fn wait_for_certificate(port: u16, name: &str) -> String {
    eventually(&format!("a certificate for {name}"), || serial(port, name))
}

#[tokio::test]
async fn a_certificate_is_obtained_over_plain_http_before_redirects_and_survives_a_restart() {
    let Some(mut edge) = Edge::new() else { return };
    let names = ["shop.example", "www.shop.example"];
    let acme = edge.pebble.settings(&names, &["http-01"]);
    let ingress = edge.ingress(&acme).start();
    let (http, https) = ports(&ingress);
    assert_eq!(serial(https, "shop.example"), None, "the authority is not there yet");
    ingress.logs("no certificate by ACME");
    edge.pebble.run(http, 1, &json!({}));
    let first = wait_for_certificate(https, "shop.example");
    assert_eq!(serial(https, "www.shop.example").as_ref(), Some(&first), "one for both names");
    assert_eq!(serial(https, "other.example"), None);
    let root = edge.pebble.root();
    for name in names {
        assert_eq!(curl(https, name, &root), "200");
    }
    // Whatever is no challenge is redirected as before; a challenge that is none of ours as well.
    for path in ["/", "/.well-known/acme-challenge/unknown", "/.well-known/acme-challenge/"] {
        assert_eq!(get(ingress.address("ingress"), path).await.status, 301, "{path}");
    }
    let report = eventually_async("the report", || async {
        Some(report(&ingress).await).filter(|report| report["not_after"].is_i64())
    })
    .await;
    assert_eq!((&report["domains"], report.get("failed")), (&json!(names), None), "{report}");
    let (due, end) = (report["due"].as_i64().unwrap(), report["not_after"].as_i64().unwrap());
    let left = end - due;
    assert!((7_776_000 / 3 - 60..=7_776_000 * 2 / 5 + 60).contains(&left), "{left} s are left");
    let identity = get(ingress.address("status"), "/identity").await.json();
    assert_eq!(identity["public_certificates"][0]["names"], json!(names), "{identity}");
    let metrics = get(ingress.address("status"), "/metrics").await.text();
    assert!(metrics.contains("wardgate_acme_orders_total{outcome=\"issued\"} 1\n"), "{metrics}");

    // Keys are for nobody else's eyes, and in no log.
    let mut files = vec![ingress.state.join("acme")];
    while let Some(path) = files.pop() {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|file| file.unwrap().path()));
        }
    }
    assert!(!ingress.said().contains("PRIVATE KEY"));

    // Without an authority a restart begins from what was kept.
    edge.pebble.stop();
    drop(ingress);
    let again = edge.ingress(&acme).start();
    let (_, https) = ports(&again);
    assert_eq!(wait_for_certificate(https, "shop.example"), first);
}

#[tokio::test]
async fn a_certificate_is_obtained_over_tls_alone_and_a_declared_one_goes_before_it() {
    let Some(mut edge) = Edge::new() else { return };
    let acme = edge.pebble.settings(&["shop.example"], &["tls-alpn-01"]);
    let ingress = edge.ingress(&acme).start();
    let (_, https) = ports(&ingress);
    edge.pebble.run(1, https, &json!({}));
    let obtained = wait_for_certificate(https, "shop.example");
    assert_eq!(curl(https, "shop.example", &edge.pebble.root()), "200");
    // Who is no authority with an open challenge is refused that protocol.
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{https}")])
        .args(["-servername", "shop.example", "-alpn", "acme-tls/1"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(said.contains("no application protocol"), "{said}");

    let made = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).unwrap();
    let own = json!({
        "id": "zz", "sni": "shop.example",
        "cert": made.cert.pem(), "key": made.signing_key.serialize_pem(),
    });
    ingress.write_resources(&json!({ "ssls": [own] }));
    eventually("the declared one", || serial(https, "shop.example").filter(|one| *one != obtained));
    ingress.write_resources(&json!({}));
    eventually("the obtained one again", || {
        serial(https, "shop.example").filter(|one| *one == obtained)
    });
}

#[tokio::test]
async fn a_certificate_is_renewed_in_time_without_a_failed_handshake_even_by_an_authority_that_forgot_us()
 {
    let Some(mut edge) = Edge::new() else { return };
    let acme = edge.pebble.settings(&["shop.example"], &["http-01"]);
    let ingress = edge.ingress(&acme).start();
    let (http, https) = ports(&ingress);
    let brief = json!({ "profiles": { "default": { "description": "", "validityPeriod": 20 } } });
    edge.pebble.run(http, 1, &brief);
    let renewed = |before: &str| {
        eventually("a renewal", || {
            let now = serial(https, "shop.example").expect("there is always one");
            (now != before).then_some(now)
        })
    };
    let first = wait_for_certificate(https, "shop.example");
    let second = renewed(&first);
    // It knows nothing of our account any more.
    edge.pebble.run(http, 1, &brief);
    renewed(&second);
    ingress.logs("the authority does not know our account");
    assert_eq!(curl(https, "shop.example", &edge.pebble.root()), "200");
}

#[tokio::test]
async fn what_the_authority_refuses_is_told_with_its_type_and_detail_and_tried_again() {
    let Some(mut edge) = Edge::new() else { return };
    edge.pebble.resolve("lost.example", Some("127.0.0.2")).await;
    let acme = edge.pebble.settings(&["lost.example"], &["http-01"]);
    let ingress = edge.ingress(&acme).start();
    let (http, https) = ports(&ingress);
    edge.pebble.run(http, 1, &json!({}));
    let failed = eventually_async("a failed validation", || async {
        let failed = report(&ingress).await["failed"].clone();
        failed["problem"].is_string().then_some(failed)
    })
    .await;
    assert_eq!(failed["problem"], "urn:ietf:params:acme:error:connection", "{failed}");
    let sentence = failed["error"].as_str().unwrap();
    assert!(sentence.contains("lost.example by http-01"), "{sentence}");
    assert!(failed["detail"].as_str().unwrap().contains("127.0.0.2"), "{failed}");
    ingress.logs("urn:ietf:params:acme:error:connection");
    // The name leads here by now.
    edge.pebble.resolve("lost.example", None).await;
    wait_for_certificate(https, "lost.example");
    eventually_async("a good report", || async {
        report(&ingress).await.get("failed").is_none().then_some(())
    })
    .await;

    let acme = edge.pebble.settings(&["blocked.example"], &["http-01"]);
    let ingress = edge.ingress(&acme).named("blocked").start();
    let failed = eventually_async("a refused name", || async {
        let failed = report(&ingress).await["failed"].clone();
        failed["problem"].is_string().then_some(failed)
    })
    .await;
    assert_eq!(failed["problem"], "urn:ietf:params:acme:error:rejectedIdentifier", "{failed}");
}

#[tokio::test]
async fn an_account_is_bound_to_one_elsewhere_where_the_authority_asks_for_that() {
    let Some(mut edge) = Edge::new() else { return };
    let acme = edge.pebble.settings(&["shop.example"], &["http-01"]);
    let bare = edge.ingress(&acme).named("bare").start();
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let file = edge.world.folder.join("external");
    std::fs::write(&file, format!("{key}\n")).unwrap();
    let mut bound = acme.clone();
    bound["external_account"] = json!({ "key_id": "kid-1", "key_file": file });
    let ingress = edge.ingress(&bound).start();
    let (http, https) = ports(&ingress);
    let demands = json!({
        "externalAccountBindingRequired": true, "externalAccountMACKeys": { "kid-1": key },
    });
    edge.pebble.run(http, 1, &demands);
    wait_for_certificate(https, "shop.example");
    let failed = eventually_async("a refused account", || async {
        let failed = report(&bare).await["failed"].clone();
        failed["problem"].is_string().then_some(failed)
    })
    .await;
    let kind = failed["problem"].as_str().unwrap();
    assert_eq!(kind, "urn:ietf:params:acme:error:externalAccountRequired", "{failed}");
}

#[tokio::test]
async fn ingresses_that_share_a_folder_order_once_and_answer_for_one_another() {
    let Some(mut edge) = Edge::new() else { return };
    let shared = edge.world.folder.join("shared");
    let with = |challenges: &[&str]| {
        let mut acme = edge.pebble.settings(&["shop.example"], challenges);
        acme["folder"] = json!(shared);
        acme
    };
    let acme = with(&["http-01"]);
    let one = edge.ingress(&acme).named("one").start();
    let two = edge.ingress(&acme).named("two").start();
    let (http, first) = ports(&one);
    let (_, second) = ports(&two);
    // The authority sees the first alone, whichever of the two has ordered.
    edge.pebble.run(http, 1, &json!({}));
    let serial = wait_for_certificate(first, "shop.example");
    eventually("the same at the other", || {
        self::serial(second, "shop.example").filter(|other| *other == serial)
    });
    let orders = edge.pebble.log().matches("new-order").count();
    let issued = edge.pebble.log().matches("Issued certificate").count();
    assert_eq!(issued, 1, "{orders} orders: {}", edge.pebble.log());
}

#[tokio::test]
async fn settings_that_cannot_work_keep_an_ingress_from_starting() {
    let Some(edge) = Edge::new() else { return };
    let good = edge.pebble.settings(&["shop.example"], &["http-01"]);
    for (name, value, sentence) in [
        ("agree_to_terms", json!(false), "agree_to_terms"),
        ("certificates", json!([{ "domains": ["*.shop.example"] }]), "dns-01"),
        ("ca", json!("/nowhere.pem"), "/nowhere.pem"),
        ("challenges", json!(["dns-01"]), "dns-01"),
    ] {
        let mut acme = good.clone();
        acme[name] = value;
        let ended = edge.ingress(&acme).named("wrong").fails();
        assert!(ended.err.contains(sentence), "{name}: {}", ended.err);
    }
}
