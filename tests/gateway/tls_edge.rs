//! The public edge: certificates of `ssls` resources, chosen by server name, read by OpenSSL and curl.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::mesh::Wire;
use crate::world::{Admin, App, PATIENCE, Process, World, eventually};

/// A certificate that signs itself, as PEM.
pub(crate) struct Certificate {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Certificate {
    pub(crate) fn of(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Self { chain: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    /// For who shall trust it.
    pub(crate) fn chain(&self) -> &str {
        &self.chain
    }

    pub(crate) fn resource(&self, names: &[&str]) -> Value {
        json!({ "snis": names, "cert": self.chain, "key": self.key })
    }

    /// The certificate in a file, for who shall trust it.
    pub(crate) fn file(&self, world: &World, name: &str) -> PathBuf {
        let path = world.folder.join(name);
        std::fs::write(&path, &self.chain).unwrap();
        path
    }
}

/// An ingress with a TLS door before an app, and the control plane that feeds it.
pub(crate) struct Edge {
    pub(crate) app: App,
    pub(crate) ingress: Process,
    pub(crate) admin: Admin,
    _control: Process,
    pub(crate) world: World,
}

impl Edge {
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With these settings of the ingress.
    pub(crate) async fn with(settings: &[(&str, Value)]) -> Self {
        let world = World::new();
        let app = App::echo("app");
        let control = world.control().start();
        let mut part = world
            .ingress()
            .set("ingress.http", &Value::Null)
            .set("ingress.https", &json!("127.0.0.1:0"));
        for (name, value) in settings {
            part = part.set(name, value);
        }
        let ingress = part.fed_by(&control).start();
        let admin = control.admin();
        let edge = Self { app, ingress, admin, _control: control, world };
        let upstream = json!({ "nodes": { edge.app.address.to_string(): 1 } });
        edge.put("/routes/1", &json!({ "uri": "/*", "upstream": upstream })).await;
        edge
    }

    pub(crate) async fn put(&self, path: &str, value: &Value) {
        let revision = self.admin.put(path, value).await;
        self.admin.applied(revision, 1).await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.ingress.address("ingress")
    }

    /// What OpenSSL's client says of a handshake.
    pub(crate) fn handshake(&self, options: &[&str]) -> Shaken {
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &self.address().to_string(), "-showcerts"])
            .args(options)
            .stdin(Stdio::null())
            .output()
            .expect("openssl is needed by this test");
        Shaken(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A request by curl, which trusts that file and takes `name` for the edge.
    fn curl(&self, name: &str, trusted: &std::path::Path, options: &[&str]) -> Option<Value> {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"])
            .args(["--resolve", &format!("{name}:{}:127.0.0.1", self.address().port())])
            .arg("--cacert")
            .arg(trusted)
            .args(options)
            .arg(format!("https://{name}:{}/x", self.address().port()))
            .output()
            .expect("curl is needed by this test");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then(|| serde_json::from_str(&text).expect(&text))
    }
}

/// A handshake as OpenSSL's client tells of it.
pub(crate) struct Shaken(pub(crate) String);

impl Shaken {
    /// Is it this certificate that was shown?
    pub(crate) fn shows(&self, certificate: &Certificate) -> bool {
        let body: String =
            certificate.chain.lines().filter(|line| !line.starts_with('-')).collect();
        let shown: String = self
            .0
            .lines()
            .skip_while(|line| !line.starts_with("-----BEGIN CERTIFICATE"))
            .skip(1)
            .take_while(|line| !line.starts_with('-'))
            .collect();
        !shown.is_empty() && shown == body
    }

    pub(crate) fn refused(&self) -> bool {
        !self.0.contains("-----BEGIN CERTIFICATE")
    }
}

#[tokio::test]
async fn the_server_name_chooses_the_certificate_and_a_name_without_one_is_refused() {
    let edge = Edge::new().await;
    assert!(edge.handshake(&["-servername", "shop.example"]).refused(), "none is there yet");
    let (exact, below, other) = (
        Certificate::of(&["shop.example"]),
        Certificate::of(&["*.shop.example"]),
        Certificate::of(&["other.example", "third.example"]),
    );
    edge.put("/ssls/1", &exact.resource(&["shop.example"])).await;
    edge.put("/ssls/2", &below.resource(&["*.shop.example"])).await;
    edge.put("/ssls/3", &other.resource(&["other.example", "third.example"])).await;
    for (name, expected) in [
        ("shop.example", Some(&exact)),
        ("SHOP.Example", Some(&exact)),
        ("www.shop.example", Some(&below)),
        ("other.example", Some(&other)),
        ("third.example", Some(&other)),
        ("a.b.shop.example", None),
        ("xshop.example", None),
        ("nobody.example", None),
    ] {
        let shaken = edge.handshake(&["-servername", name]);
        match expected {
            Some(certificate) => assert!(shaken.shows(certificate), "{name}: {}", shaken.0),
            None => assert!(shaken.refused(), "{name}: {}", shaken.0),
        }
    }
    assert!(edge.handshake(&["-noservername"]).refused());

    let any = Certificate::of(&["fallback.example"]);
    edge.put("/ssls/4", &any.resource(&["*"])).await;
    assert!(edge.handshake(&["-noservername"]).shows(&any));
    assert!(edge.handshake(&["-servername", "nobody.example"]).shows(&any));
    assert!(edge.handshake(&["-servername", "shop.example"]).shows(&exact));
    assert_eq!(edge.app.requests(), 0);
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    let edge = Edge::new().await;
    let certificate = Certificate::of(&["shop.example"]);
    edge.put("/ssls/1", &certificate.resource(&["shop.example"])).await;
    let name = ["-servername", "shop.example"];
    for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let shaken = edge.handshake(&[name[0], name[1], option]);
        assert!(shaken.shows(&certificate), "{option}: {}", shaken.0);
        assert!(shaken.0.contains(&format!("New, {version}, Cipher is")), "{}", shaken.0);
    }
    let old = ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
    assert!(edge.handshake(&[&name[..], &old[..]].concat()).refused());
    // What has no forward secrecy or no authenticated encryption is not offered.
    for cipher in ["AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "AES128-GCM-SHA256"] {
        let shaken = edge.handshake(&[name[0], name[1], "-tls1_2", "-cipher", cipher]);
        assert!(shaken.refused(), "{cipher}: {}", shaken.0);
    }
}

/// A certificate with an RSA key, made by OpenSSL.
fn rsa(world: &World, name: &str) -> Certificate {
    let (key, chain) = (world.folder.join("rsa-key.pem"), world.folder.join("rsa.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x"])
        .args(["-addext", &format!("subjectAltName=DNS:{name}"), "-keyout"])
        .args([key.to_str().unwrap(), "-out", chain.to_str().unwrap()])
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    Certificate { chain: read(&chain), key: read(&key) }
}

#[tokio::test]
async fn of_several_certificates_for_a_name_the_client_gets_one_that_it_can_verify() {
    let edge = Edge::new().await;
    let (rsa, ecdsa) = (rsa(&edge.world, "shop.example"), Certificate::of(&["shop.example"]));
    edge.put("/ssls/1", &rsa.resource(&["shop.example"])).await;
    for option in ["-tls1_2", "-tls1_3"] {
        let shaken = edge.handshake(&["-servername", "shop.example", option]);
        assert!(shaken.shows(&rsa), "RSA alone, {option}: {}", shaken.0);
    }
    let mut both = rsa.resource(&["shop.example"]);
    (both["certs"], both["keys"]) = (json!([ecdsa.chain]), json!([ecdsa.key]));
    edge.put("/ssls/1", &both).await;
    for (options, expected) in [
        (&["-tls1_3"][..], &ecdsa),
        (&["-tls1_2"], &ecdsa),
        (&["-tls1_3", "-sigalgs", "ECDSA+SHA256:RSA-PSS+SHA256"], &ecdsa),
        (&["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"], &rsa),
        (&["-tls1_2", "-sigalgs", "RSA-PSS+SHA256:RSA+SHA256"], &rsa),
        (&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], &rsa),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], &ecdsa),
    ] {
        let shaken = edge.handshake(&[&["-servername", "shop.example"], options].concat());
        assert!(shaken.shows(expected), "{options:?}: {}", shaken.0);
    }
    // Keys never come out again.
    let shown = edge.admin.get("/ssls/1").await.to_string();
    assert!(shown.contains("BEGIN CERTIFICATE") && !shown.contains("PRIVATE KEY"), "{shown}");
}

#[tokio::test]
async fn versions_suites_http2_and_the_fallback_are_settings_and_a_name_may_choose_its_versions() {
    let edge = Edge::with(&[(
        "ingress.tls",
        json!({
            "ciphers": ["TLS_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"],
            "fallback_sni": "shop.example",
            "http2": false,
        }),
    )])
    .await;
    let certificate = Certificate::of(&["shop.example"]);
    edge.put("/ssls/1", &certificate.resource(&["shop.example"])).await;
    let mut old = certificate.resource(&["old.example"]);
    old["ssl_protocols"] = json!(["TLSv1.2"]);
    edge.put("/ssls/2", &old).await;
    let mut new = certificate.resource(&["new.example"]);
    new["ssl_protocols"] = json!(["TLSv1.3"]);
    edge.put("/ssls/3", &new).await;
    for (name, option, agreed) in [
        ("shop.example", "-tls1_3", Some("New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384")),
        ("shop.example", "-tls1_2", Some("New, TLSv1.2, Cipher is ECDHE-ECDSA-AES256-GCM-SHA384")),
        ("old.example", "-tls1_2", Some("New, TLSv1.2")),
        ("old.example", "-tls1_3", None),
        ("new.example", "-tls1_2", None),
        ("new.example", "-tls1_3", Some("New, TLSv1.3")),
    ] {
        let shaken = edge.handshake(&["-servername", name, option]);
        match agreed {
            Some(agreed) => assert!(shaken.0.contains(agreed), "{name} {option}: {}", shaken.0),
            None => assert!(shaken.refused(), "{name} {option}: {}", shaken.0),
        }
    }
    let name = ["-servername", "shop.example"];
    assert!(
        edge.handshake(
            &[&name[..], &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]].concat()
        )
        .refused()
    );
    assert!(edge.handshake(&["-noservername"]).shows(&certificate), "the fallback");
    assert!(edge.handshake(&["-servername", "nobody.example"]).refused(), "no fallback for others");
    let agreed = edge.handshake(&[&name[..], &["-alpn", "h2,http/1.1"]].concat());
    assert!(agreed.0.contains("ALPN protocol: http/1.1"), "{}", agreed.0);

    let mut older = certificate.resource(&["older.example"]);
    older["ssl_protocols"] = json!(["TLSv1.1", "TLSv1.2"]);
    let refused = edge.admin.ask("PUT", "/ssls/4", Some(&older)).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("TLSv1.1"), "{}", refused.text());
    for (setting, value, sentence) in [
        ("ciphers", json!(["RC4-SHA"]), "RC4-SHA"),
        ("protocols", json!(["TLSv1.1"]), "TLSv1.1"),
        ("fallback_sni", json!("*"), "no server name"),
    ] {
        let field = format!("ingress.tls.{setting}");
        let ended = edge
            .world
            .ingress()
            .named("wrong")
            .set("ingress.tls", &json!({}))
            .set(&field, &value)
            .resources(&json!({}))
            .fails();
        assert!(ended.err.contains(sentence) && ended.err.contains(setting), "{}", ended.err);
    }
}

#[tokio::test]
async fn a_session_is_resumed_as_long_as_nothing_of_its_own_resource_changes() {
    let edge = Edge::new().await;
    let (one, other) = (Certificate::of(&["one.example"]), Certificate::of(&["two.example"]));
    edge.put("/ssls/1", &one.resource(&["one.example"])).await;
    edge.put("/ssls/2", &other.resource(&["two.example"])).await;
    let session = edge.world.folder.join("session.pem");
    let file = session.to_str().unwrap();
    let resumes = |option: &str, name: &str| {
        let shaken = edge.handshake(&["-servername", name, option, "-sess_in", file]);
        shaken.0.contains("Reused, TLSv1")
    };
    for option in ["-tls1_2", "-tls1_3"] {
        // The ticket comes behind the handshake in TLS 1.3: an answer is waited for.
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &edge.address().to_string(), option, "-ign_eof"])
            .args(["-servername", "one.example", "-sess_out", file])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        use std::io::Write as _;
        let request = b"GET / HTTP/1.1\r\nHost: one.example\r\nConnection: close\r\n\r\n";
        child.stdin.take().unwrap().write_all(request).unwrap();
        assert!(child.wait().unwrap().success(), "{option}");
        assert!(resumes(option, "one.example"), "{option}");
        // Another resource changes: the session stays. Its own changes: it does not.
        edge.put("/ssls/2", &Certificate::of(&["two.example"]).resource(&["two.example"])).await;
        assert!(resumes(option, "one.example"), "{option} after another's change");
        assert!(!resumes(option, "two.example"), "{option} under another name");
        edge.put("/ssls/1", &Certificate::of(&["one.example"]).resource(&["one.example"])).await;
        assert!(!resumes(option, "one.example"), "{option} after its own change");
    }
}

#[tokio::test]
async fn both_versions_of_http_are_agreed_on_by_alpn_and_carry_requests() {
    let edge = Edge::new().await;
    let certificate = Certificate::of(&["shop.example"]);
    edge.put("/ssls/1", &certificate.resource(&["shop.example"])).await;
    let trusted = certificate.file(&edge.world, "trusted.pem");
    let port = edge.address().port().to_string();
    for option in ["--http1.1", "--http2"] {
        for body in [&[][..], &["--data", "hello"]] {
            let options = [&[option, "-H", "X-Forwarded-Proto: http"], body].concat();
            let echo = edge.curl("shop.example", &trusted, &options).expect(option);
            let headers = &echo["headers"];
            assert_eq!(headers["x-forwarded-proto"], "https", "{option}");
            assert_eq!(headers["x-forwarded-port"], json!(port), "{option}");
            assert_eq!(headers["host"], json!(format!("shop.example:{port}")), "{option}");
            assert_eq!(headers.get("x-forwarded-client-cert"), None, "nobody was proved");
            assert_eq!(echo["body"], if body.is_empty() { "" } else { "hello" });
        }
    }
    let name = ["-servername", "shop.example", "-alpn"];
    for (offered, agreed) in
        [("h2,http/1.1", "h2"), ("http/1.1", "http/1.1"), ("http/1.1,h2", "h2")]
    {
        let shaken = edge.handshake(&[name[0], name[1], name[2], offered]);
        let expected = format!("ALPN protocol: {agreed}");
        assert!(shaken.0.contains(&expected), "{offered}: {}", shaken.0);
    }
    assert!(!edge.handshake(&[name[0], name[1], name[2], "ftp"]).0.contains("ALPN protocol: "));
}

#[tokio::test]
async fn a_new_certificate_is_served_at_once_and_a_deleted_one_no_longer() {
    let edge = Edge::new().await;
    let (old, new) = (Certificate::of(&["shop.example"]), Certificate::of(&["shop.example"]));
    edge.put("/ssls/1", &old.resource(&["shop.example"])).await;
    let name = ["-servername", "shop.example"];
    assert!(edge.handshake(&name).shows(&old));

    // A connection that was made under the old certificate goes on.
    let mut long = LongConnection::open(&edge);
    assert_eq!(long.ask(), 200);
    edge.put("/ssls/1", &new.resource(&["shop.example"])).await;
    assert!(edge.handshake(&name).shows(&new));
    assert_eq!(long.ask(), 200);

    let revision = edge.admin.delete("/ssls/1").await;
    edge.admin.applied(revision, 1).await;
    assert!(edge.handshake(&name).refused());
    let mut disabled = new.resource(&["shop.example"]);
    disabled["status"] = json!(0);
    edge.put("/ssls/1", &disabled).await;
    assert!(edge.handshake(&name).refused(), "status 0 keeps it out of use");
}

/// `openssl s_client` as a connection that stays open.
pub(crate) struct LongConnection {
    child: std::process::Child,
    answers: std::sync::mpsc::Receiver<String>,
}

impl LongConnection {
    pub(crate) fn open(edge: &Edge) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &edge.address().to_string()])
            .args(["-servername", "shop.example", "-alpn", "http/1.1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let (line, answers) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::io::BufRead as _;
            for read in std::io::BufReader::new(out).lines().map_while(Result::ok) {
                let _ = line.send(read);
            }
        });
        Self { child, answers }
    }

    pub(crate) fn ask(&mut self) -> u16 {
        use std::io::Write as _;
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(b"HEAD / HTTP/1.1\r\nHost: shop.example\r\n\r\n").unwrap();
        input.flush().unwrap();
        let first = self.answers.recv_timeout(PATIENCE).unwrap();
        while !self.answers.recv_timeout(PATIENCE).unwrap().trim().is_empty() {}
        first.strip_prefix("HTTP/1.1 ").expect(&first)[..3].parse().unwrap()
    }
}

impl Drop for LongConnection {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn what_is_no_handshake_gets_no_answer_in_http() {
    let edge = Edge::new().await;
    let certificate = Certificate::of(&["shop.example"]);
    edge.put("/ssls/1", &certificate.resource(&["shop.example"])).await;
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"[..],
        &[0x16, 3, 1, 0xff, 0xff, 1],
        &[0; 600],
    ] {
        let mut wire = Wire::to(edge.address()).await;
        wire.send(bytes).await;
        wire.half_close().await;
        let mut answer = Vec::new();
        while let Some(byte) = wire.try_bytes(1).await {
            answer.extend(byte);
        }
        assert!(!answer.starts_with(b"HTTP"), "{:?}", String::from_utf8_lossy(&answer));
    }
    let trusted = certificate.file(&edge.world, "trusted.pem");
    assert!(edge.curl("shop.example", &trusted, &[]).is_some(), "others are served");
    eventually("the app was asked once", || (edge.app.requests() == 1).then_some(()));
}
