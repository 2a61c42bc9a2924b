//! A trust domain, and processes of the real binary in it.
//!
//! ```text
//! let world = World::new();
//! let app = App::echo("invoices");
//! let billing = world.sidecar("/billing").app(&app).resources(&json!({ "identity_policies": [..] })).start();
//! let answer = world.peer("/shop").get(&billing, "/invoices/7").await;
//! ```

#![allow(dead_code, unreachable_pub, reason = "each file of the binary uses its part")]

use std::convert::Infallible;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use wardgate::identity::{Identity, Svid, TrustBundle, TrustBundles};
use wardgate::mtls::MeshStream;
use wardgate::mtls::{Alpn, Connector, ExpectedPeers};
use wardgate::rt::Live;

/// How long anything may take before a test gives up: long, since the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

const DOMAIN: &str = "shop.test";

/// Waits until `look` finds something.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        #[expect(clippy::disallowed_methods, reason = "a test waits for another process")]
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The same for what has to be asked over a socket.
pub async fn eventually_async<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `within` [`PATIENCE`], or the test fails.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// The binary, with nothing of the caller's environment that would change what it does.
pub fn wardgate() -> Command {
    wardgate_at(Path::new(env!("CARGO_BIN_EXE_wardgate")))
}

/// The same for a copy of the binary.
pub fn wardgate_at(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in [
        "WARDGATE_LOG",
        "WARDGATE_ADMIN",
        "WARDGATE_KEY",
        "WARDGATE_AUDIT",
        "WARDGATE_CONFIG",
        "WARDGATE_CA_PASSPHRASE",
        "WARDGATE_ALLOW_CORE_DUMPS",
    ] {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Runs a command of the binary to its end.
pub fn run<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ended {
    Ended::of(&wardgate().args(arguments).output().unwrap())
}

/// A command that ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// It must have ended well; what it printed.
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self.out
    }
}

/// A trust domain with its authority, and a folder for everything.
pub struct World {
    pub folder: PathBuf,
    pub domain: &'static str,
}

impl World {
    pub fn new() -> Self {
        Self::of(DOMAIN)
    }

    pub fn of(domain: &'static str) -> Self {
        let folder = crate::etcd_server::new_folder("gateway");
        let world = Self { folder, domain };
        let authority = world.authority();
        run(["identity", "init", "--dir", authority.to_str().unwrap(), "--trust-domain", domain])
            .good();
        world
    }

    pub fn authority(&self) -> PathBuf {
        self.folder.join("authority")
    }

    /// The SPIFFE ID with this path.
    pub fn id(&self, path: &str) -> String {
        format!("spiffe://{}{path}", self.domain)
    }

    /// The folder with svid.pem, key.pem and bundle.pem of this path; issued when it is not there yet.
    pub fn files(&self, path: &str) -> PathBuf {
        let folder = self.folder.join(format!("id{}", path.replace('/', "-")));
        if !folder.exists() {
            self.issue(path, &folder, 3600);
        }
        folder
    }

    /// Issues an identity (again).
    pub fn issue(&self, path: &str, folder: &Path, ttl: u32) {
        let (authority, id, ttl) = (self.authority(), self.id(path), ttl.to_string());
        let (authority, folder) = (authority.to_str().unwrap(), folder.to_str().unwrap());
        run(["identity", "issue", "--dir", authority, "--id", &id, "--out", folder, "--ttl", &ttl])
            .good();
    }

    pub fn identity(&self, path: &str) -> Identity {
        let folder = self.files(path);
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let svid = Svid::from_pem(&read("svid.pem"), &read("key.pem")).unwrap();
        Identity::new(svid, [self.bundle()].into_iter().collect::<TrustBundles>())
    }

    pub fn bundle(&self) -> TrustBundle {
        let text = std::fs::read(self.authority().join("root.pem")).unwrap();
        TrustBundle::from_text(self.domain.parse().unwrap(), &text).unwrap()
    }

    /// Somebody with an identity of this world.
    pub fn peer(&self, path: &str) -> Peer {
        Peer::with(self.identity(path))
    }

    /// A sidecar of the workload with this path. It has an identity, both doors on free ports, and nothing else.
    pub fn sidecar(&self, path: &str) -> Part<'_> {
        self.part("sidecar", path)
            .set("sidecar", &json!({ "inbound": "127.0.0.1:0", "outbound": "127.0.0.1:0" }))
    }

    /// An ingress with a plain door; `ingress.https` is set when it is wanted.
    pub fn ingress(&self) -> Part<'_> {
        self.part("ingress", "/wardgate/ingress")
            .set("ingress", &json!({ "http": "127.0.0.1:0", "https": null }))
    }

    /// A control plane with an embedded store.
    pub fn control(&self) -> Part<'_> {
        self.part("control", "/wardgate/control")
            .set("control", &json!({ "admin": "127.0.0.1:0", "feed": "127.0.0.1:0" }))
    }

    /// A process of a role, named by the last segment of its identity's path.
    pub fn part(&self, role: &str, path: &str) -> Part<'_> {
        let name = path.trim_matches('/').replace('/', "-");
        let files = self.files(path);
        let state = self.folder.join(format!("state-{name}"));
        let settings = json!({
            "role": role,
            "trust_domain": self.domain,
            "state_dir": state,
            "node": name,
            "identity": {
                "source": "files",
                "certificate": files.join("svid.pem"),
                "key": files.join("key.pem"),
                "bundle": files.join("bundle.pem"),
                "first_within_seconds": 5,
            },
            "workers": 1,
            "drain_seconds": 5,
            // Tests ask for the record of one request.
            "decision_log": { "allows": "each" },
        });
        let program = PathBuf::from(env!("CARGO_BIN_EXE_wardgate"));
        let id = self.id(path);
        Part { world: self, name, id, settings, state, program, environment: Vec::new() }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the world's folder is kept: {}", self.folder.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// A process before its start.
pub struct Part<'w> {
    world: &'w World,
    pub name: String,
    pub id: String,
    pub settings: Value,
    pub state: PathBuf,
    program: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Part<'_> {
    /// Sets one setting; dots separate names.
    pub fn set(mut self, name: &str, value: &Value) -> Self {
        let pointer = format!("/{}", name.replace('.', "/"));
        if let Some(slot) = self.settings.pointer_mut(&pointer) {
            *slot = value.clone();
            return self;
        }
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        let parent = self.settings.pointer_mut(parent).expect("the part before the last dot");
        parent[last] = value.clone();
        self
    }

    /// Takes a setting away.
    pub fn without(mut self, name: &str) -> Self {
        self.settings.as_object_mut().unwrap().remove(name);
        self
    }

    /// The process' name, by which its folder and files are called.
    pub fn named(mut self, name: &str) -> Self {
        self.state = self.world.folder.join(format!("state-{name}"));
        self.settings["state_dir"] = json!(self.state);
        self.settings["node"] = json!(name);
        name.clone_into(&mut self.name);
        self
    }

    /// Runs a copy of the binary: attestation can tell it from others.
    pub fn program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// With this in its environment.
    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// The workload behind a sidecar.
    pub fn app(self, app: &App) -> Self {
        let url = format!("http://{}", app.address);
        self.set("sidecar.app", &json!(url))
    }

    /// Configuration from a file that has these resources.
    pub fn resources(self, resources: &Value) -> Self {
        let path = self.resources_file();
        write_resources(&path, resources);
        self.set("resources", &json!(path))
    }

    fn resources_file(&self) -> PathBuf {
        self.world.folder.join(format!("{}-resources.yaml", self.name))
    }

    /// Configuration from a control plane.
    pub fn fed_by(self, control: &Process) -> Self {
        self.set("control_plane", &json!({ "address": control.address("feed").to_string() }))
    }

    pub fn settings_file(&self) -> PathBuf {
        let path = self.world.folder.join(format!("{}.yaml", self.name));
        std::fs::write(&path, serde_json::to_string_pretty(&self.settings).unwrap()).unwrap();
        path
    }

    /// Starts it and waits until it is ready.
    pub fn start(&self) -> Process {
        let process = self.launch();
        process.wait_ready();
        process
    }

    /// Starts it and does not wait.
    pub fn launch(&self) -> Process {
        let path = self.settings_file();
        let mut command = wardgate_at(&self.program);
        command.arg("run").arg("-c").arg(&path).env("WARDGATE_LOG", "info");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::launch(&self.name, command, &self.world.folder);
        process.id.clone_from(&self.id);
        process.state.clone_from(&self.state);
        process.settings_file = path;
        process.resources_file = self.resources_file();
        process
    }

    /// Starts it where it must not come up; how it ended.
    pub fn fails(&self) -> Ended {
        let mut process = self.launch();
        let code = process.wait().code();
        assert_ne!(code, Some(0), "it should not have come up: {}", process.said());
        Ended { code, out: process.lines().join("\n"), err: process.errors() }
    }
}

fn write_resources(path: &Path, resources: &Value) {
    let fresh = path.with_extension("fresh");
    std::fs::write(&fresh, format!("{resources:#}\n#END\n")).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

/// A running process of the binary, killed when it is dropped.
pub struct Process {
    pub name: String,
    pub id: String,
    pub state: PathBuf,
    pub settings_file: PathBuf,
    resources_file: PathBuf,
    errors: PathBuf,
    child: Child,
    said: Arc<Said>,
}

#[derive(Default)]
struct Said {
    /// The lines of standard output, and whether it has ended.
    lines: Mutex<(Vec<String>, bool)>,
    news: Condvar,
}

impl Process {
    pub fn launch(name: &str, mut command: Command, folder: &Path) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let errors = folder.join(format!("{name}-{number}.err"));
        let log = std::fs::File::create(&errors).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let said = Arc::<Said>::default();
        let (out, hearing) = (child.stdout.take().unwrap(), said.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                hearing.lines.lock().unwrap().0.push(line);
                hearing.news.notify_all();
            }
            hearing.lines.lock().unwrap().1 = true;
            hearing.news.notify_all();
        });
        Self {
            name: name.to_owned(),
            id: String::new(),
            state: PathBuf::new(),
            settings_file: PathBuf::new(),
            resources_file: PathBuf::new(),
            errors,
            child,
            said,
        }
    }

    /// The first line of standard output that fits, as soon as it is there.
    pub fn line(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.said.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.0.iter().find(|line| fits(line)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.1 || left.is_zero() {
                drop(lines);
                panic!("{} never said {what:?}: {}", self.name, self.said());
            }
            lines = self.said.news.wait_timeout(lines, left).unwrap().0;
        }
    }

    pub fn lines(&self) -> Vec<String> {
        self.said.lines.lock().unwrap().0.clone()
    }

    /// What it has logged.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// All it has said so far.
    pub fn said(&self) -> String {
        format!("\n{}\n{}", self.lines().join("\n"), self.errors())
    }

    pub fn wait_ready(&self) {
        self.line("ready", |line| line == "ready");
    }

    pub fn is_ready(&self) -> bool {
        self.lines().iter().any(|line| line == "ready")
    }

    /// Waits until its log has a line with this text.
    pub fn logs(&self, text: &str) -> String {
        eventually(&format!("{} logs {text:?}", self.name), || {
            self.errors().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    /// Where one of its listeners is: `inbound`, `outbound`, `ingress`, `admin`, `feed`, `status`.
    pub fn address(&self, listener: &str) -> SocketAddr {
        self.address_of(listener, 0)
    }

    /// The second `ingress` listener is that for TLS, when there are both.
    pub fn address_of(&self, listener: &str, number: usize) -> SocketAddr {
        let prefix = format!("{listener} listens on ");
        self.line(&prefix, |line| line.starts_with(&prefix));
        let lines = self.lines();
        let mut found = lines.iter().filter_map(|line| line.strip_prefix(&prefix));
        found.nth(number).expect("so many listeners").parse().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, as an orchestrator does.
    pub fn ask_to_end(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Has it ended, and not been waited for yet?
    pub fn has_ended(&self) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        state.is_ok_and(|state| state.contains(") Z "))
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let status = eventually(&format!("the end of {name}"), || self.child.try_wait().unwrap());
        // What it said last.
        let lines = self.said.lines.lock().unwrap();
        drop(self.said.news.wait_timeout_while(lines, PATIENCE, |lines| !lines.1).unwrap());
        status
    }

    /// Waits for its end, when others may still write where it wrote.
    pub fn wait_alone(&mut self) -> ExitStatus {
        let name = self.name.clone();
        eventually(&format!("the end of {name}"), || self.child.try_wait().unwrap())
    }

    /// Ends it gracefully.
    pub fn end(&mut self) -> ExitStatus {
        self.ask_to_end();
        self.wait()
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Writes the resources file anew; the process looks at it each second.
    pub fn write_resources(&self, resources: &Value) {
        write_resources(&self.resources_file, resources);
    }

    pub fn audit_file(&self) -> PathBuf {
        self.state.join("audit.jsonl")
    }

    /// The records of its decision log.
    pub fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.audit_file()).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The first record that fits, as soon as it is written.
    pub fn record(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("a record of {} with {what}", self.name), || {
            self.audit().into_iter().find(|record| fits(record))
        })
    }

    /// The first record whose field at `pointer` has this value.
    pub fn record_with(&self, pointer: &str, value: &Value) -> Value {
        self.record(&format!("{pointer} = {value}"), |record| {
            record.pointer(pointer) == Some(value)
        })
    }

    /// The admin key that this very start generated.
    pub fn key(&self) -> String {
        let line = self.line("admin key", |line| line.starts_with("admin key"));
        line.rsplit(' ').next().unwrap().to_owned()
    }

    /// The Admin API, with the key that this start generated.
    pub fn admin(&self) -> Admin {
        Admin { address: self.address("admin"), key: self.key() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} said:{}", self.name, self.said());
        }
    }
}

/// The Admin API of a control plane.
#[derive(Clone)]
pub struct Admin {
    pub address: SocketAddr,
    pub key: String,
}

impl Admin {
    /// One request; `path` is below `/apisix/admin`.
    pub async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let path = format!("/apisix/admin{path}");
        send(self.address, method, &path, &[("x-api-key", &self.key)], body).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, None).await;
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.text());
        answer.json()
    }

    /// A write that must succeed; the store's revision after it.
    pub async fn put(&self, path: &str, body: &Value) -> u64 {
        let answer = self.ask("PUT", path, Some(body)).await;
        assert!(answer.status < 300, "PUT {path}: {} {}", answer.status, answer.text());
        answer.revision()
    }

    pub async fn delete(&self, path: &str) -> u64 {
        let answer = self.ask("DELETE", path, None).await;
        assert_eq!(answer.status, 200, "DELETE {path}: {}", answer.text());
        answer.revision()
    }

    /// Waits until so many data planes have acknowledged the revision.
    pub async fn applied(&self, revision: u64, planes: usize) -> Value {
        eventually_async(&format!("{planes} data planes run revision {revision}"), || async {
            let state = self.get(&format!("/revisions/{revision}")).await;
            (state["applied"].as_u64() >= Some(planes as u64)).then_some(state)
        })
        .await
    }
}

/// An answer, its body read.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The revision that a write through the Admin API made.
    pub fn revision(&self) -> u64 {
        self.header("x-wardgate-revision").expect("a revision").parse().unwrap()
    }

    /// The id of the refusal.
    pub fn denial(&self) -> &str {
        self.header("x-wardgate-denial").expect("a denial id")
    }
}

/// A connection that speaks HTTP/1.1 and stays open.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Connection {
    pub async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        stream: S,
    ) -> Result<Self, hyper::Error> {
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = wardgate::rt::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(Self { sender, driver })
    }

    pub async fn plain(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await.unwrap()
    }

    /// One request; the Host is `localhost` unless `headers` has another one.
    pub async fn try_send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, hyper::Error> {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", "localhost");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        soon("an answer", self.try_send(method, path, headers, body)).await.unwrap()
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One plain request on a connection of its own.
pub async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    Connection::plain(address).await.send(method, path, headers, body).await
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, "GET", path, &[], "").await
}

/// Sends bytes as they are and reads until the other end closes: ask it to.
pub async fn raw<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) -> String {
    let exchange = async {
        // Who refuses early may close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    soon("the end of a raw connection", exchange).await
}

pub async fn raw_to(address: SocketAddr, bytes: &[u8]) -> String {
    raw(TcpStream::connect(address).await.unwrap(), bytes).await
}

/// Somebody with an SVID who calls sidecars.
pub struct Peer {
    connector: Connector,
}

impl Peer {
    pub fn with(identity: Identity) -> Self {
        Self { connector: Connector::new(Live::fixed(identity)) }
    }

    /// A connection to a sidecar's inbound door, after the handshake: the sidecar must be who it is.
    pub async fn stream(
        &self,
        sidecar: &Process,
        alpn: Alpn,
    ) -> std::io::Result<MeshStream<TcpStream>> {
        self.stream_to(sidecar.address("inbound"), &sidecar.id, alpn).await
    }

    pub async fn stream_to(
        &self,
        address: SocketAddr,
        id: &str,
        alpn: Alpn,
    ) -> std::io::Result<MeshStream<TcpStream>> {
        let expected = Arc::new(ExpectedPeers::exactly(&id.parse().unwrap()));
        let tcp = TcpStream::connect(address).await?;
        let shaken = soon("a handshake", self.connector.connect(tcp, &expected, alpn)).await;
        shaken.map(|(stream, _)| stream).map_err(std::io::Error::other)
    }

    pub async fn connect(&self, sidecar: &Process) -> Connection {
        let stream = self.stream(sidecar, Alpn::Http1).await.unwrap();
        Connection::over(stream).await.unwrap()
    }

    /// One request on a connection of its own.
    pub async fn send(
        &self,
        sidecar: &Process,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.connect(sidecar).await.send(method, path, headers, body).await
    }

    pub async fn get(&self, sidecar: &Process, path: &str) -> Answer {
        self.send(sidecar, "GET", path, &[], "").await
    }

    /// Bytes as they are, over mTLS; ask the other end to close.
    pub async fn raw(&self, sidecar: &Process, bytes: &[u8]) -> String {
        raw(self.stream(sidecar, Alpn::Http1).await.unwrap(), bytes).await
    }
}

/// A workload that knows nothing of identities: plain HTTP/1.1, and HTTP/2 without TLS.
pub struct App {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
    /// Ends the app when it is dropped.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl App {
    /// Answers with what it was asked, as JSON: `app`, `method`, `path`, `headers`, `body`.
    pub fn echo(name: &'static str) -> Self {
        Self::serving(move |request: Request<Incoming>| async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let mut headers = serde_json::Map::new();
            for (name, value) in &head.headers {
                let value = String::from_utf8_lossy(value.as_bytes());
                let text = match headers.get(name.as_str()).and_then(Value::as_str) {
                    Some(before) => format!("{before}, {value}"),
                    None => value.into_owned(),
                };
                headers.insert(name.as_str().to_owned(), text.into());
            }
            let path = head.uri.path_and_query().map_or("", |path| path.as_str());
            let echo = json!({
                "app": name, "method": head.method.as_str(), "path": path, "headers": headers,
                "body": String::from_utf8_lossy(&body), "version": format!("{:?}", head.version),
            });
            let json = http::HeaderValue::from_static("application/json");
            let mut response = Response::new(Full::new(Bytes::from(echo.to_string())));
            response.headers_mut().insert(http::header::CONTENT_TYPE, json);
            response
        })
    }

    /// An app with an answer of its own, on a thread of its own: a test may wait without stopping it.
    pub fn serving<F, R, B>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<AtomicUsize>::default();
        let counted = requests.clone();
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let mut connections = wardgate::rt::Tasks::new();
                loop {
                    let tcp = tokio::select! {
                        _ = &mut stopped => return,
                        accepted = listener.accept() => accepted.unwrap().0,
                    };
                    let (answer, counted) = (answer.clone(), counted.clone());
                    let service = service_fn(move |request| {
                        counted.fetch_add(1, Ordering::Relaxed);
                        let answered = answer(request);
                        async move { Ok::<_, Infallible>(answered.await) }
                    });
                    connections.add(async move {
                        let builder =
                            hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                        let io = TokioIo::new(tcp);
                        let _ = builder.serve_connection_with_upgrades(io, service).await;
                    });
                }
            });
        });
        Self { address, requests, _stop: stop }
    }

    /// How many requests have come through to it.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A policy that lets these principals do everything at these workloads.
pub fn allow(id: &str, workloads: &[&str], principals: &[&str]) -> Value {
    json!({
        "id": id,
        "selector": { "workloads": workloads },
        "action": "allow",
        "rules": [{ "name": "all", "from": { "principals": principals } }],
    })
}

/// The same, switching protocols included.
pub fn allow_switching(id: &str, workloads: &[&str], principals: &[&str]) -> Value {
    let mut policy = allow(id, workloads, principals);
    let switch = json!({
        "name": "switch", "from": { "principals": principals }, "to": { "upgrades": ["*"] },
    });
    policy["rules"].as_array_mut().unwrap().push(switch);
    policy
}

/// A port that was free a moment ago, for what must be named before it listens.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_sidecar_serves_its_workload_over_mtls_and_calls_out_for_it() {
    let world = World::new();
    let app = App::echo("invoices");
    let billing = world
        .sidecar("/billing")
        .app(&app)
        .resources(&json!({
            "identity_policies": [allow("p", &[&world.id("/billing")], &[&world.id("/shop")])],
        }))
        .start();
    let shop = world
        .sidecar("/shop")
        .resources(&json!({
            "routes": [{
                "id": "billing", "uri": "/*", "host": "billing",
                "workload_selector": { "listener": "outbound" },
                "upstream": {
                    "nodes": { billing.address("inbound").to_string(): 1 },
                    "tls": { "identity": "svid", "spiffe_ids": [world.id("/billing")] },
                },
            }],
        }))
        .start();

    let direct = world.peer("/shop").get(&billing, "/invoices/7").await;
    assert_eq!((direct.status, &direct.json()["path"]), (200, &json!("/invoices/7")));

    let headers = [("host", "billing")];
    let through = send(shop.address("outbound"), "POST", "/invoices?x=1", &headers, "new").await;
    assert_eq!(through.status, 200, "{}", through.text());
    let echo = through.json();
    assert_eq!(echo["method"], "POST");
    assert_eq!(echo["path"], "/invoices?x=1");
    assert_eq!(echo["body"], "new");
    let certificate = echo["headers"]["x-forwarded-client-cert"].as_str().unwrap();
    assert!(certificate.contains(&world.id("/shop")), "{certificate}");
    assert_eq!(app.requests(), 2);
}

#[tokio::test]
async fn a_control_plane_feeds_an_ingress() {
    let world = World::new();
    let app = App::echo("front");
    let control = world.control().start();
    let ingress = world.ingress().fed_by(&control).start();
    let admin = control.admin();
    let route = json!({ "uri": "/*", "upstream": { "nodes": { app.address.to_string(): 1 } } });
    let revision = admin.put("/routes/1", &route).await;
    admin.applied(revision, 1).await;
    let answer = get(ingress.address("ingress"), "/hello").await;
    assert_eq!((answer.status, &answer.json()["app"]), (200, &json!("front")));
}
