//! Private keys: what the program says shows none of them, and nobody else of its user looks into its memory.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::world::{App, Process, World, allow, eventually, get, send, wardgate};

/// Something that must not be seen, in all the ways in which a program might show bytes.
struct Secret {
    name: String,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    fn of(name: &str, bytes: &[u8]) -> Self {
        let mut forms = vec![
            bytes.to_vec(),
            hex::encode(bytes).into_bytes(),
            hex::encode_upper(bytes).into_bytes(),
            hex_with(bytes, ":"),
            // `{:?}` of a slice, and of `bytes::Bytes`. Blanks are taken out of what is searched.
            bytes[..12].iter().map(u8::to_string).collect::<Vec<_>>().join(",").into_bytes(),
            bytes[..12].iter().flat_map(|byte| std::ascii::escape_default(*byte)).collect(),
        ];
        // Within a longer text its base64 begins at any of three places.
        for shift in 0..3 {
            let shifted = [&vec![0; shift], bytes].concat();
            let (from, whole) = ((shift * 8).div_ceil(6), shifted.len() * 8 / 6);
            for alphabet in [STANDARD, URL_SAFE] {
                forms.push(alphabet.encode(&shifted).as_bytes()[from..whole].to_vec());
            }
        }
        forms.dedup();
        Self { name: name.to_owned(), forms }
    }

    /// The scalar of an ECDSA key, which is in each of its encodings.
    fn key(name: &str, pem: &[u8]) -> Self {
        let key = PrivateKeyDer::from_pem_slice(pem).unwrap();
        let der = key.secret_der();
        let mark = [2, 1, 1, 4, 32];
        let at = der.windows(mark.len()).position(|bytes| bytes == mark).expect("ECDSA P-256");
        Self::of(name, &der[at + mark.len()..][..32])
    }

    fn is_in(&self, text: &[u8]) -> bool {
        self.forms.iter().any(|form| contains(text, form))
    }
}

fn hex_with(bytes: &[u8], between: &str) -> Vec<u8> {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(between).into_bytes()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

/// Without what breaks lines, plain and as JSON writes it.
fn joined(text: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | b'\n' | b'\r' => {}
            b'\\' if matches!(bytes.peek(), Some(b'n' | b'r')) => drop(bytes.next()),
            other => joined.push(other),
        }
    }
    joined
}

/// All that processes have said and written, by where.
#[derive(Default)]
struct Heard(BTreeMap<String, Vec<u8>>);

impl Heard {
    fn process(&mut self, process: &Process) {
        self.0.insert(
            format!("{}: standard output", process.name),
            process.lines().join("\n").into(),
        );
        self.0.insert(format!("{}: standard error", process.name), process.errors().into());
        for path in files_in(&process.state) {
            let bytes = std::fs::read(&path).unwrap();
            self.0.insert(format!("{}: {}", process.name, path.display()), bytes);
        }
    }

    async fn status(&mut self, process: &Process) {
        for path in [
            "/status",
            "/status/ready",
            "/metrics",
            "/apisix/prometheus/metrics",
            "/debug",
            "/identity",
        ] {
            let answer = get(process.address("status"), path).await;
            self.0.insert(format!("{} {path}", process.name), answer.body.to_vec());
        }
    }

    /// Where it can be seen.
    fn places_of(&self, secret: &Secret) -> Vec<&str> {
        let seen = |text: &[u8]| secret.is_in(text) || secret.is_in(&joined(text));
        self.0.iter().filter(|(_, text)| seen(text)).map(|(place, _)| place.as_str()).collect()
    }

    fn places_with(&self, mark: &str) -> Vec<&str> {
        let seen = |text: &[u8]| {
            contains(text, mark.as_bytes()) || contains(&joined(text), mark.as_bytes())
        };
        self.0.iter().filter(|(_, text)| seen(text)).map(|(place, _)| place.as_str()).collect()
    }
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_in(&path)),
            false => found.push(path),
        }
    }
    found
}

#[tokio::test]
async fn nothing_that_is_said_or_written_shows_a_private_key() {
    let world = World::new();
    let app = App::echo("app");
    let uid = rustix::process::getuid().as_raw();
    let loud = "trace";
    let socket = world.folder.join("workload.sock");
    let issuer = world
        .part("issuer", "/wardgate/issuer")
        .without("identity")
        .set("status", &json!("127.0.0.1:0"))
        .set(
            "issuer",
            &json!({
                "socket": socket, "authority": world.authority(),
                "entries": [{
                    "spiffe_id": world.id("/billing"), "selectors": [format!("unix:uid:{uid}")],
                    "ttl": 4,
                }],
            }),
        )
        .env("WARDGATE_LOG", loud)
        .start();
    let control =
        world.control().set("status", &json!("127.0.0.1:0")).env("WARDGATE_LOG", loud).start();
    let ingress = world
        .ingress()
        .set("status", &json!("127.0.0.1:0"))
        .set("ingress.https", &json!("127.0.0.1:0"))
        .fed_by(&control)
        .env("WARDGATE_LOG", loud)
        .start();
    let billing = world
        .sidecar("/billing")
        .app(&app)
        .set("status", &json!("127.0.0.1:0"))
        .set(
            "identity",
            &json!({
                "source": "workload_api", "socket": format!("unix:{}", socket.display()),
            }),
        )
        .resources(&json!({
            "identity_policies": [allow("p", &[&world.id("/billing")], &[&world.id("/shop")])],
        }))
        .env("WARDGATE_LOG", loud)
        .start();
    let shop = world
        .sidecar("/shop")
        .set("status", &json!("127.0.0.1:0"))
        .resources(&json!({
            "routes": [{
                "id": "b", "uri": "/*", "workload_selector": { "listener": "outbound" },
                "upstream": {
                    "nodes": { billing.address("inbound").to_string(): 1 },
                    "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
                },
            }],
        }))
        .env("WARDGATE_LOG", loud)
        .start();

    // Work of every kind: calls, refusals, a certificate written and read, one that is refused, an identity renewed.
    let mut heard = Heard::default();
    let admin = control.admin();
    let public = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).unwrap();
    let (cert, key) = (public.cert.pem(), public.signing_key.serialize_pem());
    let revision =
        admin.put("/ssls/1", &json!({ "sni": "shop.example", "cert": cert, "key": key })).await;
    admin.applied(revision, 1).await;
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    for wrong in [
        json!({ "sni": "x.example", "cert": cert, "key": other }),
        json!({ "sni": "x.example", "cert": cert, "key": other.replace("\n", "") }),
        json!({ "sni": "x.example", "cert": other, "key": key }),
        json!({ "sni": "x.example", "cert": cert, "key": key, "unknown": key }),
    ] {
        for (method, path) in [("PUT", "/ssls/2"), ("POST", "/schema/validate/ssls")] {
            let answer = admin.ask(method, path, Some(&wrong)).await;
            assert!(answer.status >= 400, "{method} {path}: {}", answer.text());
            heard.0.insert(
                format!("answer to {method} {path} {}", heard.0.len()),
                answer.body.to_vec(),
            );
        }
    }
    for path in ["/ssls/1", "/ssls", "/routes", "/schema/ssl", "/revisions/1"] {
        let answer = admin.ask("GET", path, None).await;
        heard.0.insert(format!("answer to GET {path}"), answer.body.to_vec());
    }
    assert_eq!(send(shop.address("outbound"), "GET", "/", &[], "").await.status, 200);
    assert_eq!(world.peer("/stranger").get(&billing, "/").await.status, 403);
    billing.record("another certificate", |record| record["event"] == "rotated");
    std::fs::write(world.files("/shop").join("key.pem"), &other).unwrap();
    shop.logs("new identity files refused");

    for process in [&issuer, &control, &ingress, &billing, &shop] {
        heard.status(process).await;
        heard.process(process);
    }
    for (place, text) in &heard.0 {
        let is_log =
            ["issuer", "control"].iter().any(|name| *place == format!("{name}: standard error"));
        assert!(!is_log || contains(text, b"TRACE"), "{place} is not as loud as it can be");
    }

    let read = |path: PathBuf| std::fs::read(path).unwrap();
    let sealing = String::from_utf8(read(control.state.join("sealing.key"))).unwrap();
    let mut secrets = vec![
        Secret::key(
            "the control plane's key",
            &read(world.files("/wardgate/control").join("key.pem")),
        ),
        Secret::key("the ingress' key", &read(world.files("/wardgate/ingress").join("key.pem"))),
        Secret::key("a key that does not fit", other.as_bytes()),
        Secret::of("the sealing key", &STANDARD.decode(sealing.trim()).unwrap()),
    ];
    let authority = files_in(&world.authority());
    let signing = authority.iter().map(|path| (path, read(path.clone())));
    let signing = signing.filter(|(_, content)| contains(content, b"PRIVATE KEY"));
    secrets.extend(signing.map(|(path, content)| Secret::key(&path.to_string_lossy(), &content)));
    assert!(secrets.len() >= 6, "the root's and the intermediate's: {authority:?}");
    for secret in &secrets {
        let mut places = heard.places_of(secret);
        places
            .retain(|place| !(secret.name == "the sealing key" && place.ends_with("/sealing.key")));
        assert!(places.is_empty(), "113 {} is shown by {places:#?}", secret.name);
    }
    // Also keys that only the issuer and its caller know: how every P-256 key begins, and how a PEM does.
    let pkcs8 =
        hex::decode("308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420")
            .unwrap();
    for begin in [
        hex::encode(&pkcs8),
        STANDARD.encode(&pkcs8),
        "PRIVATE KEY".to_owned(),
        "PRIVATEKEY".to_owned(),
    ] {
        let mut places = heard.places_with(&begin);
        places.retain(|place| !place.ends_with("last-good-ingress"));
        assert!(places.is_empty(), "a private key is shown by {places:#?}");
    }
    // The one file that holds one: what the ingress needs to start while its control plane is away. It also proves that the
    // search finds what is there.
    let public = Secret::key("the public certificate's key", key.as_bytes());
    let places = heard.places_of(&public);
    let [place] = places[..] else { panic!("{places:#?}") };
    assert!(place.ends_with("last-good-ingress"), "{place}");
    let mode =
        std::fs::metadata(ingress.state.join("last-good-ingress")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// The owner of what `/proc` shows of a process: its user, or root when it may not be looked into.
fn owner_of_memory(process: &Process) -> u32 {
    std::fs::metadata(format!("/proc/{}/environ", process.pid())).unwrap().uid()
}

/// The largest core file that a process may write.
fn core_limit(process: &Process) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    line.split_whitespace().skip(4).take(2).collect::<Vec<_>>().join(" ")
}

/// As root's processes belong to root in any case, this one runs as somebody else then.
#[test]
fn nobody_of_the_same_user_looks_into_the_memory_unless_it_was_opened() {
    let world = World::new();
    let root = rustix::process::getuid().is_root();
    let user = if root { 65_534 } else { rustix::process::getuid().as_raw() };
    // A copy that this user may execute, wherever the build is.
    let program = world.folder.join("wardgate");
    std::fs::copy(wardgate().get_program(), &program).unwrap();
    let launch = |name: &'static str, opened: Option<&str>| {
        let part = world.sidecar("/billing").named(name).set("status", &json!("127.0.0.1:0"));
        let settings = part.resources(&json!({})).settings_file();
        if root {
            let all = files_in(&world.folder);
            for path in all.iter().chain([&world.folder, &world.files("/billing")]) {
                std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
            }
        }
        let mut command = std::process::Command::new(&program);
        command.arg("run").arg("-c").arg(settings).env_remove("WARDGATE_ALLOW_CORE_DUMPS");
        command.envs(opened.map(|value| ("WARDGATE_ALLOW_CORE_DUMPS", value)));
        command.stdin(std::process::Stdio::null());
        if root {
            command.uid(user).gid(user);
        }
        Process::launch(name, command, &world.folder)
    };
    let closed = launch("closed", None);
    closed.wait_ready();
    assert_eq!((owner_of_memory(&closed), core_limit(&closed).as_str()), (0, "0 0"));

    let opened = launch("opened", Some("1"));
    opened.wait_ready();
    assert_eq!(owner_of_memory(&opened), user);

    let mut neither = launch("neither", Some("perhaps"));
    assert_eq!(neither.wait().code(), Some(1));
    assert!(neither.errors().contains("WARDGATE_ALLOW_CORE_DUMPS"), "{}", neither.errors());
    let _: Option<Value> = eventually("the end", || Some(None));
}
