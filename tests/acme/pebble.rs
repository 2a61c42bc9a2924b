//! Pebble and its DNS server, as a test wants them.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use crate::world::{World, eventually, free_port, send};

/// Where the programs are; `None` says to leave the test, and has told the reader so.
///
/// Which it never says when `WARDGATE_ACME` asks for these tests: then it fails.
pub fn programs() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("acme");
    let folder = std::env::var_os("WARDGATE_ACME_DIR").map_or(built, PathBuf::from);
    // Written last, when everything else is there.
    if folder.join("stamp").exists() {
        return Some(folder);
    }
    let wanted = std::env::var("WARDGATE_ACME").is_ok_and(|wanted| wanted == "1");
    assert!(!wanted, "no Pebble in {}: run tests/acme/build", folder.display());
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let reason = format!(
        "no Pebble in {}; WARDGATE_ACME=1 ./test builds it and runs this",
        folder.display()
    );
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
    None
}

/// An ACME server and the DNS that it asks, where every name is 127.0.0.1 until told otherwise.
pub struct Pebble {
    programs: PathBuf,
    folder: PathBuf,
    /// Where it listens, and where it is managed.
    port: u16,
    manage: u16,
    dns: Dns,
    child: Option<Child>,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Pebble {
    /// Not started yet: whom it looks at must be known first.
    pub fn new(programs: &Path, world: &World) -> Self {
        let folder = world.folder.join("pebble");
        std::fs::create_dir_all(&folder).unwrap();
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root_key = KeyPair::generate().unwrap();
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
        for (name, text) in
            [("ca.pem", root_pem), ("cert.pem", leaf.pem()), ("key.pem", key.serialize_pem())]
        {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let dns = Dns::start(programs, &folder);
        let (port, manage) = (free_port(), free_port());
        Self { programs: programs.to_owned(), folder, port, manage, dns, child: None }
    }

    /// The settings of an ingress that takes its certificates from here.
    pub fn settings(&self, domains: &[&str], challenges: &[&str]) -> Value {
        json!({
            "directory": format!("https://127.0.0.1:{}/dir", self.port),
            "contacts": ["mailto:ops@wardgate.example"],
            "agree_to_terms": true,
            "certificates": [{ "domains": domains }],
            "challenges": challenges,
            "ca": self.folder.join("ca.pem"),
            "retry_seconds": 1,
        })
    }

    /// Runs from now on, and looks at these ports of whatever name it validates. It has forgotten whatever was before.
    pub fn run(&mut self, http: u16, https: u16, more: &Value) {
        self.stop();
        let mut config = json!({
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", self.manage),
            "certificate": self.folder.join("cert.pem"),
            "privateKey": self.folder.join("key.pem"),
            "httpPort": http,
            "tlsPort": https,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "domainBlocklist": ["blocked.example"],
            "retryAfter": { "authz": 1, "order": 1 },
            "keyAlgorithm": "ecdsa",
            "profiles": { "default": { "description": "", "validityPeriod": 7_776_000 } },
        });
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        let file = self.folder.join("config.json");
        std::fs::write(&file, json!({ "pebble": config }).to_string()).unwrap();
        let log = std::fs::File::create(self.folder.join("pebble.log")).unwrap();
        let child = Command::new(self.programs.join("pebble"))
            .arg("-config")
            .arg(&file)
            .args(["-strict", "-dnsserver", &format!("127.0.0.1:{}", self.dns.port)])
            // It does not sleep to look busy, and refuses every fifth nonce, as RFC 8555 lets it.
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "20")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("Pebble listens", || {
            let address: SocketAddr = format!("127.0.0.1:{}", self.manage).parse().unwrap();
            std::net::TcpStream::connect(address).ok()
        });
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The root above the certificates that it gives, in a file.
    pub fn root(&self) -> PathBuf {
        let file = self.folder.join("issuing-root.pem");
        let url = format!("https://127.0.0.1:{}/roots/0", self.manage);
        let got = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--insecure", "--noproxy", "*", "-o"])
            .arg(&file)
            .arg(url)
            .status();
        assert!(got.expect("curl is needed by this test").success());
        file
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("pebble.log")).unwrap_or_default()
    }

    /// This name leads there from now on; to 127.0.0.1 again when `None`.
    pub async fn resolve(&self, name: &str, address: Option<&str>) {
        let host = format!("{name}.");
        let (path, body) = match address {
            Some(address) => ("/add-a", json!({ "host": host, "addresses": [address] })),
            None => ("/clear-a", json!({ "host": host })),
        };
        let address = format!("127.0.0.1:{}", self.dns.manage).parse().unwrap();
        let answer = send(address, "POST", path, &[], body.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

struct Dns {
    port: u16,
    manage: u16,
    child: Child,
}

impl Dns {
    fn start(programs: &Path, folder: &Path) -> Self {
        let (port, manage) = (free_port(), free_port());
        let log = std::fs::File::create(folder.join("dns.log")).unwrap();
        let child = Command::new(programs.join("pebble-challtestsrv"))
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .args(["-dnsserver", &format!("127.0.0.1:{port}")])
            .args(["-management", &format!("127.0.0.1:{manage}")])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        eventually("the DNS server is there", || {
            std::net::TcpStream::connect(("127.0.0.1", manage)).ok()
        });
        Self { port, manage, child }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
