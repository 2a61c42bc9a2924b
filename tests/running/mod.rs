//! An ingress and two sidecars in this process, as `wardgate run` would start them, under load from another one.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use wardgate::model::Listeners;
use wardgate::roles::{Running, SettingsFile};
use wardgate::rt::Sockets;

const DOMAIN: &str = "shop.test";
const BODY: &str = include_str!("../../LICENSE").split_at(1024).0;

/// A data plane with one worker.
pub(crate) struct Plane {
    pub(crate) name: String,
    _running: Running,
    pub(crate) door: SocketAddr,
    inner: SocketAddr,
    /// The system's number of its worker's thread.
    pub(crate) worker: u32,
}

/// Everything that runs, in the order of a request.
pub(crate) struct Stand {
    pub(crate) outbound: Plane,
    pub(crate) inbound: Plane,
    pub(crate) ingress: Plane,
    runtime: Runtime,
    folder: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// One at a time: workers are known by what was not there before.
static ALONE: Mutex<()> = Mutex::new(());

impl Drop for Stand {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Stand {
    /// With everything on: identities verified, policy decided, decisions on file, metrics counted.
    pub(crate) fn start() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = std::env::temp_dir().join(format!("wardgate-running-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let app = runtime.block_on(app());
        let authority = folder.join("authority");
        wardgate(&["identity", "init", "--dir", text(&authority), "--trust-domain", DOMAIN]);
        for name in ["billing", "shop", "ingress"] {
            let id = format!("spiffe://{DOMAIN}/{name}");
            let out = folder.join(name);
            wardgate(&[
                "identity",
                "issue",
                "--dir",
                text(&authority),
                "--id",
                &id,
                "--out",
                text(&out),
            ]);
        }
        let start = |name, doors, resources| plane(&runtime, &folder, name, &doors, &resources);
        let pool = json!({ "size": 320, "idle_timeout": 600, "requests": 1_000_000_000 });
        let upstream = |id, scheme, node: SocketAddr| json!({ "id": id, "scheme": scheme, "nodes": { node.to_string(): 1 }, "keepalive_pool": pool });
        // One way of HTTP/1.1 and one of HTTP/2, each of its own version to the end.
        let routes = |listener| {
            ["h1", "h2"].map(|version| {
                json!({ "id": version, "uri": format!("/{version}/*"), "upstream_id": version,
                    "workload_selector": { "listener": listener } })
            })
        };
        let inbound = start(
            "billing",
            json!({ "role": "sidecar", "sidecar": { "inbound": "127.0.0.1:0", "outbound": "127.0.0.1:0" } }),
            json!({
                "routes": routes("inbound"),
                "upstreams": [upstream("h1", "http", app), upstream("h2", "grpc", app)],
                "identity_policies": [{ "id": "use", "action": "allow", "rules": [{
                    "from": { "principals": [format!("spiffe://{DOMAIN}/shop")] },
                    "to": { "methods": ["GET"], "paths": ["/*/items/{id}"] },
                }] }],
            }),
        );
        let far = |id, scheme| {
            let mut far = upstream(id, scheme, inbound.inner);
            far["tls"] =
                json!({ "identity": "svid", "spiffe_ids": [format!("spiffe://{DOMAIN}/billing")] });
            far
        };
        let outbound = start(
            "shop",
            json!({ "role": "sidecar", "sidecar": { "inbound": "127.0.0.1:0", "outbound": "127.0.0.1:0" } }),
            json!({ "routes": routes("outbound"), "upstreams": [far("h1", "https"), far("h2", "grpcs")] }),
        );
        let ingress = start(
            "ingress",
            json!({ "role": "ingress", "ingress": { "http": "127.0.0.1:0", "https": null } }),
            json!({
                "routes": [{ "id": "app", "uri": "/*", "upstream_id": "app" }],
                "upstreams": [upstream("app", "http", app)],
            }),
        );
        Self { outbound, inbound, ingress, runtime, folder, _alone: alone }
    }

    /// So many requests over some connections at once, of which each must be answered with 200 and the whole body.
    pub(crate) fn ask(&self, plane: &Plane, version: Version, requests: u64) {
        let url = format!("http://{}/{}/items/7", plane.door, version.path());
        let requests_text = requests.to_string();
        let out = Command::new("h2load")
            .args(version.load())
            .args(["-t", "1", "-n", &requests_text, &url])
            .output()
            .expect("h2load is there: ./test installs it (nghttp2-client)");
        let report = String::from_utf8_lossy(&out.stdout);
        assert!(
            report.contains(&format!("status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx")),
            "{report}"
        );
        let data = format!("({}) data", requests * BODY.len() as u64);
        assert!(report.contains(&data), "expected {data}:\n{report}");
    }
}

/// A connection that is held.
pub(crate) type Connection = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

impl Stand {
    /// So many connections over mTLS at the inbound door, which have carried a request each and wait.
    pub(crate) fn hold(&self, count: usize) -> Vec<Connection> {
        let config = Arc::new(self.caller());
        let one = async || {
            let tcp = tokio::net::TcpStream::connect(self.inbound.inner).await.unwrap();
            let name = rustls::pki_types::ServerName::try_from("billing").unwrap();
            let connector = tokio_rustls::TlsConnector::from(config.clone());
            let mut tls = connector.connect(name, tcp).await.unwrap();
            tls.write_all(b"GET /h1/items/7 HTTP/1.1\r\nHost: billing\r\n\r\n").await.unwrap();
            let mut answer = vec![0; 16 * 1024];
            let mut length = 0;
            while !answer[..length].ends_with(BODY.as_bytes()) {
                let count = tls.read(&mut answer[length..]).await.unwrap();
                assert!(count > 0, "{}", String::from_utf8_lossy(&answer[..length]));
                length += count;
            }
            assert!(answer.starts_with(b"HTTP/1.1 200"));
            tls
        };
        self.runtime.block_on(async {
            let mut held = Vec::new();
            for _ in 0..count {
                held.push(one().await);
            }
            held
        })
    }

    /// The outbound sidecar's identity, in a client's hands.
    fn caller(&self) -> rustls::ClientConfig {
        use rustls::pki_types::pem::PemObject as _;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let file = |name| self.folder.join("shop").join(name);
        let chain = CertificateDer::pem_file_iter(file("svid.pem")).unwrap();
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(file("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone());
        let mut config = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }
}

/// Whom this client asks is not what is looked at here.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// In what callers and proxies speak.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Version {
    Http1,
    Http2,
}

impl Version {
    fn path(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
        }
    }

    /// That the load opens.
    pub(crate) fn connections(self) -> u64 {
        match self {
            Self::Http1 => 16,
            Self::Http2 => 8,
        }
    }

    fn load(self) -> &'static [&'static str] {
        match self {
            Self::Http1 => &["--h1", "-c", "16"],
            Self::Http2 => &["-c", "8", "-m", "8"],
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a command of the binary.
fn wardgate(arguments: &[&str]) -> Output {
    let out =
        Command::new(env!("CARGO_BIN_EXE_wardgate")).args(arguments).stdin(Stdio::null()).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

/// Answers everything with 1 KiB, in both versions.
async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(wardgate::rt::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let answer = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(BODY.as_bytes()))))
            });
            drop(wardgate::rt::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(tcp), answer).await;
            }));
        }
    }));
    address
}

/// Starts a data plane from a settings file, and waits until its configuration is in force.
fn plane(runtime: &Runtime, folder: &Path, name: &str, doors: &Value, resources: &Value) -> Plane {
    let file = |ending: &str| folder.join(format!("{name}-{ending}"));
    std::fs::write(file("resources.json"), resources.to_string()).unwrap();
    let mut settings = json!({
        "trust_domain": DOMAIN,
        "state_dir": file("state"),
        "node": name,
        "identity": { "source": "files", "certificate": folder.join(name).join("svid.pem"),
            "key": folder.join(name).join("key.pem"), "bundle": folder.join(name).join("bundle.pem") },
        "resources": file("resources.json"),
        "status": "127.0.0.1:0",
        "workers": 1,
        // Windows do not end while requests are counted.
        "decision_log": { "allows": "aggregated", "window_seconds": 600 },
    });
    settings.as_object_mut().unwrap().extend(doors.as_object().unwrap().clone());
    std::fs::write(file("settings.yaml"), settings.to_string()).unwrap();
    let read =
        SettingsFile::read(&file("settings.yaml"), &wardgate::sync::file::process_environment());
    let settings = read.unwrap().settings;
    let before = workers();
    let running = runtime.block_on(Running::start(&settings, None, Sockets::new())).unwrap();
    let door = |listener| {
        running.doors.iter().find(|(door, _)| *door == listener).map(|(_, address)| *address)
    };
    let inner = door(Listeners::Inbound);
    let door = door(Listeners::Outbound).or(door(Listeners::Ingress)).unwrap();
    let worker = eventually("a worker", || workers().difference(&before).next().copied());
    let status = running.status.unwrap();
    eventually("a data plane that is ready", || is_ready(status).then_some(()));
    let name = name.to_owned();
    Plane { name, _running: running, door, inner: inner.unwrap_or(door), worker }
}

/// The threads of this process that carry traffic.
fn workers() -> BTreeSet<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let is_worker = |task: &PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("worker-"))
    };
    let tasks = tasks.map(|task| task.unwrap().path()).filter(is_worker);
    tasks.map(|task| task.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect()
}

fn is_ready(status: SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut tcp) = std::net::TcpStream::connect(status) else { return false };
    let asked =
        tcp.write_all(b"GET /status/ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    asked.is_ok() && tcp.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
}

pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not in time");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "a test waits for other threads")]
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// System calls of one thread, by name, from now until it is asked for them.
pub(crate) struct Strace(std::process::Child);

impl Strace {
    /// # Panics
    /// strace is missing, or may not look: a guard that cannot count says so.
    pub(crate) fn of(thread: u32) -> Self {
        // Where only children may be traced by default, this process says that strace may.
        rustix::process::set_ptracer(rustix::process::PTracer::Any).ok();
        let mut child = Command::new("strace")
            .args(["-c", "-U", "name,calls", "-p", &thread.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is there: ./test installs it");
        let status = format!("/proc/self/task/{thread}/status");
        eventually("strace", || {
            if let Some(ended) = child.try_wait().unwrap() {
                panic!("strace cannot look at this process ({ended}): it needs the right to trace");
            }
            let text = std::fs::read_to_string(&status).unwrap();
            (!text.contains("TracerPid:\t0\n")).then_some(())
        });
        Self(child)
    }

    pub(crate) fn end(self) -> Vec<(String, u64)> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let out = self.0.wait_with_output().unwrap();
        let table = String::from_utf8_lossy(&out.stderr).into_owned();
        let rows = table.lines().filter_map(|line| {
            let (name, calls) = line.trim().split_once(char::is_whitespace)?;
            let calls = calls.trim().parse().ok()?;
            (name != "total").then(|| (name.to_owned(), calls))
        });
        rows.collect()
    }
}
