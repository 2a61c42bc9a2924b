//! Registries as their documentation describes them: servers in this process that speak their interfaces, count what they are
//! asked, go away and come back. And a real Consul where there is one.

#![allow(unreachable_pub, reason = "as in world.rs")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::world::{free_port, send};

pub type Body = UnsyncBoxBody<Bytes, Infallible>;
type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Handler = Arc<dyn Fn(Asked) -> Answering + Send + Sync>;

/// A request, read wholly.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Asked {
    async fn read(request: Request<Incoming>) -> Self {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            method: head.method.to_string(),
            path: decoded(head.uri.path()),
            query: form(head.uri.query().unwrap_or_default()),
            headers: head.headers.iter().map(header).collect(),
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    }

    pub fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        self.parameter(name).trim_end_matches('s').parse().unwrap_or(0)
    }
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

pub fn form(text: &str) -> BTreeMap<String, String> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    };
    text.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

pub fn whole(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// A server that keeps its address while it goes away and comes back.
pub struct Server {
    pub address: SocketAddr,
    handler: Handler,
    asked: Arc<Mutex<Vec<Asked>>>,
    certificate: Option<Arc<rustls::ServerConfig>>,
    running: Option<(tokio::sync::oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Server {
    pub fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Asked) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::with(None, answer)
    }

    /// The same over TLS.
    pub fn with<F, R>(certificate: Option<Arc<rustls::ServerConfig>>, answer: F) -> Self
    where
        F: Fn(Asked) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |asked| Box::pin(answer(asked)));
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut server =
            Self { address, handler, asked: Arc::default(), certificate, running: None };
        server.come_back();
        server
    }

    /// Closes its listener and all connections.
    pub fn go_away(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    pub fn come_back(&mut self) {
        let listener = crate::world::eventually("the port is free again", || {
            std::net::TcpListener::bind(self.address).ok()
        });
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (handler, asked) = (self.handler.clone(), self.asked.clone());
        let tls = self.certificate.clone().map(tokio_rustls::TlsAcceptor::from);
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let mut connections = wardgate::rt::Tasks::new();
                let accepting = async {
                    loop {
                        let (tcp, _) = listener.accept().await.unwrap();
                        let (handler, asked, tls) = (handler.clone(), asked.clone(), tls.clone());
                        let service = service_fn(move |request| {
                            let (handler, asked) = (handler.clone(), asked.clone());
                            async move {
                                let request = Asked::read(request).await;
                                asked.lock().unwrap().push(request.clone());
                                Ok::<_, Infallible>(handler(request).await)
                            }
                        });
                        connections.add(async move {
                            let builder =
                                hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                            match tls {
                                None => {
                                    drop(
                                        builder.serve_connection(TokioIo::new(tcp), service).await,
                                    );
                                }
                                Some(tls) => {
                                    let Ok(tcp) = tls.accept(tcp).await else { return };
                                    drop(
                                        builder.serve_connection(TokioIo::new(tcp), service).await,
                                    );
                                }
                            }
                        });
                    }
                };
                tokio::select! {
                    () = accepting => {}
                    _ = stopped => {}
                }
            });
        });
        self.running = Some((stop, thread));
    }

    pub fn url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// What it was asked, to its end.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How often it was asked for a path that begins so.
    pub fn count(&self, path: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path.starts_with(path)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.go_away();
    }
}

/// State that requests wait on.
struct Changing<T> {
    state: Mutex<T>,
    version: watch::Sender<()>,
}

impl<T> Changing<T> {
    fn new(state: T) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state), version: watch::channel(()).0 })
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap()
    }

    fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.lock());
        self.version.send_replace(());
        result
    }

    /// Waits until `is_so`, and for `within` at most.
    async fn until(&self, within: Duration, is_so: impl Fn(&T) -> bool) {
        let mut version = self.version.subscribe();
        let changed = async { while !is_so(&self.lock()) && version.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(within, changed).await;
    }
}

#[derive(Default)]
struct Zone {
    records: BTreeMap<(String, RecordType), Vec<(u32, RData)>>,
    is_silent: bool,
    asked: Vec<(String, RecordType)>,
}

/// A DNS server over UDP.
pub struct DnsDouble {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

impl DnsDouble {
    pub fn start() -> Self {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::<Mutex<Zone>>::default();
        let known = zone.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let answer = known.lock().unwrap().answer(&buffer[..length]);
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, zone }
    }

    /// This machine's address for a name, which holds for a second.
    pub fn set_here(&self, name: &str) {
        let here = RData::A(A(std::net::Ipv4Addr::LOCALHOST));
        self.set(name, RecordType::A, vec![here]);
    }

    /// Priority, weight, port and host of each server.
    pub fn set_services(&self, name: &str, services: &[(u16, u16, u16, &str)]) {
        let record = |(priority, weight, port, host): &(u16, u16, u16, &str)| {
            RData::SRV(SRV::new(*priority, *weight, *port, Name::from_utf8(host).unwrap()))
        };
        self.set(name, RecordType::SRV, services.iter().map(record).collect());
    }

    fn set(&self, name: &str, kind: RecordType, records: Vec<RData>) {
        let records = records.into_iter().map(|record| (1, record)).collect();
        self.zone.lock().unwrap().records.insert((format!("{name}."), kind), records);
    }

    /// Answers nothing any more, or answers again.
    pub fn is_silent(&self, is_silent: bool) {
        self.zone.lock().unwrap().is_silent = is_silent;
    }

    /// The types that were asked for of a name.
    pub fn asked(&self, name: &str) -> Vec<RecordType> {
        let name = format!("{name}.");
        let zone = self.zone.lock().unwrap();
        zone.asked.iter().filter(|(asked, _)| *asked == name).map(|(_, kind)| *kind).collect()
    }
}

impl Zone {
    fn answer(&mut self, question: &[u8]) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).ok()?;
        let query = question.queries.first()?.clone();
        let name = query.name().to_utf8().to_ascii_lowercase();
        self.asked.push((name.clone(), query.query_type()));
        if self.is_silent {
            return None;
        }
        let mut answer = Message::response(question.id, question.op_code);
        answer.add_query(query.clone());
        match self.records.get(&(name.clone(), query.query_type())) {
            Some(records) => {
                for (ttl, data) in records {
                    let owner = query.name().clone();
                    answer.add_answer(Record::from_rdata(owner, *ttl, data.clone()));
                }
            }
            None if self.records.keys().any(|(known, _)| *known == name) => {}
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        answer.to_vec().ok()
    }
}

/// What tests do with a Consul, whichever it is.
pub trait Consul {
    fn url(&self) -> String;
    fn register(&self, service: &str, id: &str, port: u16);
    fn deregister(&self, id: &str);
    fn put(&self, key: &str, value: &str);
    fn remove(&self, key: &str);
    fn go_away(&mut self);
    /// With what it knew before.
    fn come_back(&mut self);
}

#[derive(Default)]
struct ConsulState {
    /// Raft's.
    index: u64,
    /// Of the last change of services, of checks, of keys.
    services_at: u64,
    checks_at: u64,
    keys_at: u64,
    /// By id: service and port.
    instances: BTreeMap<String, (String, u16)>,
    /// By id: is its check critical?
    critical: BTreeMap<String, bool>,
    keys: BTreeMap<String, String>,
    token: Option<String>,
}

/// Consul's HTTP API: catalog, health and KV with blocking queries.
pub struct ConsulDouble {
    pub server: Server,
    state: Arc<Changing<ConsulState>>,
}

impl ConsulDouble {
    pub fn start() -> Self {
        Self::with(None)
    }

    pub fn with(certificate: Option<Arc<rustls::ServerConfig>>) -> Self {
        let state = ConsulState {
            index: 10,
            services_at: 10,
            checks_at: 10,
            keys_at: 10,
            ..ConsulState::default()
        };
        let state = Changing::new(state);
        let known = state.clone();
        let server = Server::with(certificate, move |asked| consul(known.clone(), asked));
        Self { server, state }
    }

    /// From here on nobody is answered without it.
    pub fn require_token(&self, token: &str) {
        self.state.lock().token = Some(token.to_owned());
    }

    pub fn set_critical(&self, id: &str, is_critical: bool) {
        self.state.change(|state| {
            state.index += 1;
            state.checks_at = state.index;
            state.critical.insert(id.to_owned(), is_critical);
        });
    }

    /// As after the loss of all servers' data: everything begins anew.
    pub fn begin_anew(&self) {
        self.state.change(|state| {
            *state = ConsulState {
                index: 2,
                services_at: 2,
                checks_at: 2,
                keys_at: 2,
                ..ConsulState::default()
            };
        });
    }
}

impl Consul for ConsulDouble {
    fn url(&self) -> String {
        self.server.url()
    }

    fn register(&self, service: &str, id: &str, port: u16) {
        self.state.change(|state| {
            state.index += 1;
            (state.services_at, state.checks_at) = (state.index, state.index);
            state.instances.insert(id.to_owned(), (service.to_owned(), port));
        });
    }

    fn deregister(&self, id: &str) {
        self.state.change(|state| {
            state.index += 1;
            (state.services_at, state.checks_at) = (state.index, state.index);
            state.instances.remove(id);
        });
    }

    fn put(&self, key: &str, value: &str) {
        self.state.change(|state| {
            state.index += 1;
            state.keys_at = state.index;
            state.keys.insert(key.to_owned(), value.to_owned());
        });
    }

    fn remove(&self, key: &str) {
        self.state.change(|state| {
            state.index += 1;
            state.keys_at = state.index;
            state.keys.remove(key);
        });
    }

    fn go_away(&mut self) {
        self.server.go_away();
    }

    fn come_back(&mut self) {
        self.server.come_back();
    }
}

async fn consul(state: Arc<Changing<ConsulState>>, asked: Asked) -> Response<Body> {
    let token = state.lock().token.clone();
    if token.is_some() && asked.headers.get("x-consul-token") != token.as_ref() {
        return whole(403, "Permission denied");
    }
    let path = asked.path.clone();
    let at = move |state: &ConsulState| match &*path {
        "/v1/catalog/services" => state.services_at,
        path if path.starts_with("/v1/kv/") => state.keys_at,
        _ => state.checks_at,
    };
    let index = asked.number("index");
    if index > 0 {
        let wait = asked.number("wait").clamp(1, 600);
        // Another past lets go of those who wait as well.
        state.until(Duration::from_secs(wait), |state| at(state) != index).await;
    }
    let state = state.lock();
    let passing = |id: &&String| !state.critical.get(*id).copied().unwrap_or(false);
    let (status, body) = match asked.path.strip_prefix("/v1/").unwrap_or_default() {
        "catalog/services" => {
            let mut names: BTreeMap<&str, [&str; 0]> =
                state.instances.values().map(|(service, _)| (&**service, [])).collect();
            names.insert("consul", []);
            (200, json!(names))
        }
        "health/state/any" => (200, json!([{"CheckID": "serfHealth", "Status": "passing"}])),
        path => match (path.strip_prefix("health/service/"), path.strip_prefix("kv/")) {
            (Some(name), _) => {
                assert_eq!(asked.parameter("passing"), "true");
                let entries: Vec<Value> = state
                    .instances
                    .iter()
                    .filter(|(id, (service, _))| service == name && passing(id))
                    .map(|(id, (service, port))| {
                        json!({
                            "Node": {"Node": "n", "Address": "127.0.0.1"},
                            "Service": {"ID": id, "Service": service, "Address": "127.0.0.1",
                                        "Port": port, "Weights": {"Passing": 1, "Warning": 1}},
                            "Checks": [],
                        })
                    })
                    .collect();
                (200, json!(entries))
            }
            (_, Some(prefix)) => {
                assert_eq!(asked.parameter("recurse"), "true");
                let pairs: Vec<Value> = state
                    .keys
                    .iter()
                    .filter(|(key, _)| key.starts_with(prefix))
                    .map(|(key, value)| {
                        json!({"Key": key, "Value": STANDARD.encode(value), "Flags": 0,
                               "CreateIndex": 1, "ModifyIndex": 1, "LockIndex": 0})
                    })
                    .collect();
                (if pairs.is_empty() { 404 } else { 200 }, json!(pairs))
            }
            _ => (404, Value::Null),
        },
    };
    let body = if status == 404 { String::new() } else { body.to_string() };
    let mut response = whole(status, body);
    response.headers_mut().insert("x-consul-index", at(&state).into());
    response
}

/// A real Consul, where one was built: `WARDGATE_CONSUL` names the program.
pub struct RealConsul {
    program: PathBuf,
    folder: PathBuf,
    ports: [u16; 4],
    child: Option<Child>,
}

impl RealConsul {
    /// `None`: there is none, and the reader has been told.
    pub fn start() -> Option<Self> {
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("consul/consul");
        let program = std::env::var_os("WARDGATE_CONSUL").map_or(built, PathBuf::from);
        if !program.exists() {
            use std::io::Write as _;
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED {test}: no Consul; tests/consul/build builds it"
            );
            return None;
        }
        let folder = crate::etcd_server::new_folder("consul");
        let ports = std::array::from_fn(|_| free_port());
        let mut consul = Self { program, folder, ports, child: None };
        consul.come_back();
        Some(consul)
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports[0]));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (method, path, body) = (method.to_owned(), path.to_owned(), body.to_owned());
        // Callers are async themselves: the question has a thread of its own.
        std::thread::spawn(move || {
            runtime.block_on(async {
                if tokio::net::TcpStream::connect(address).await.is_err() {
                    return (0, String::new());
                }
                let answer = send(address, &method, &path, &[], body).await;
                (answer.status, answer.text())
            })
        })
        .join()
        .unwrap_or_default()
    }

    fn good(&self, method: &str, path: &str, body: &str) {
        let (status, text) = self.ask(method, path, body);
        assert_eq!(status, 200, "{method} {path}: {text}");
    }
}

impl Consul for RealConsul {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    fn register(&self, service: &str, id: &str, port: u16) {
        let body = json!({"ID": id, "Name": service, "Address": "127.0.0.1", "Port": port});
        self.good("PUT", "/v1/agent/service/register", &body.to_string());
    }

    fn deregister(&self, id: &str) {
        self.good("PUT", &format!("/v1/agent/service/deregister/{id}"), "");
    }

    fn put(&self, key: &str, value: &str) {
        self.good("PUT", &format!("/v1/kv/{key}"), value);
    }

    fn remove(&self, key: &str) {
        self.good("DELETE", &format!("/v1/kv/{key}"), "");
    }

    fn go_away(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn come_back(&mut self) {
        let log = std::fs::File::create(self.folder.join("log")).unwrap();
        let config = json!({
            "server": true, "bootstrap_expect": 1, "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1", "data_dir": self.folder.join("data"),
            "disable_update_check": true,
            "ports": {"http": self.ports[0], "server": self.ports[1], "serf_lan": self.ports[2],
                      "serf_wan": self.ports[3], "dns": -1, "grpc": -1, "grpc_tls": -1},
        });
        let file = self.folder.join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let child = Command::new(&self.program)
            .args(["agent", "-config-file", file.to_str().unwrap()])
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        crate::world::eventually("consul has a leader", || {
            let (status, text) = self.ask("GET", "/v1/catalog/services", "");
            (status == 200 && text.contains("consul")).then_some(())
        });
    }
}

impl Drop for RealConsul {
    fn drop(&mut self) {
        self.go_away();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Eureka's `/eureka/apps`.
pub struct EurekaDouble {
    pub server: Server,
    state: Arc<Mutex<Vec<Value>>>,
}

impl EurekaDouble {
    /// Behind user and password.
    pub fn start(user: &'static str, password: &'static str) -> Self {
        let state = Arc::<Mutex<Vec<Value>>>::default();
        let known = state.clone();
        let expected = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let server = Server::start(move |asked| {
            let applications = known.lock().unwrap().clone();
            let is_known = asked.headers.get("authorization") == Some(&expected);
            async move {
                match &*asked.path {
                    _ if !is_known => whole(401, ""),
                    "/eureka/apps" => {
                        let body = json!({"applications": {
                            "versions__delta": "1", "apps__hashcode": "",
                            "application": applications,
                        }});
                        whole(200, body.to_string())
                    }
                    _ => whole(404, ""),
                }
            }
        });
        Self { server, state }
    }

    pub fn set(&self, application: &str, instances: &[(u16, &str, u32)]) {
        let instance = |(port, status, weight): &(u16, &str, u32)| {
            json!({
                "instanceId": format!("i:{port}"), "hostName": "localhost", "app": application,
                "ipAddr": "127.0.0.1", "status": status, "overriddenStatus": "UNKNOWN",
                "port": {"$": port, "@enabled": "true"},
                "securePort": {"$": 443, "@enabled": "false"},
                "metadata": {"weight": weight.to_string()},
            })
        };
        let instances: Vec<Value> = instances.iter().map(instance).collect();
        let mut state = self.state.lock().unwrap();
        state.retain(|other| other["name"] != application);
        state.push(json!({"name": application, "instance": instances}));
    }
}

#[derive(Default)]
struct NacosState {
    /// By namespace, group and service.
    services: BTreeMap<(String, String, String), Vec<Value>>,
    /// The token that is good by now.
    token: u32,
    logins: usize,
}

/// Nacos' API v1 with users and with signatures.
pub struct NacosDouble {
    pub server: Server,
    state: Arc<Mutex<NacosState>>,
}

impl NacosDouble {
    /// Behind user and password; requests must be signed with this pair of keys when there is one.
    pub fn start(
        user: &'static str,
        password: &'static str,
        keys: Option<(&'static str, &'static str)>,
    ) -> Self {
        let state = Arc::<Mutex<NacosState>>::default();
        let known = state.clone();
        let server = Server::start(move |asked| {
            let known = known.clone();
            async move {
                match (&*asked.method, &*asked.path) {
                    ("POST", "/nacos/v1/auth/login") => {
                        let form = form(&asked.body);
                        let is =
                            |name: &str, value: &str| form.get(name).is_some_and(|v| v == value);
                        if !is("username", user) || !is("password", password) {
                            return whole(403, "unknown user!");
                        }
                        let mut state = known.lock().unwrap();
                        state.logins += 1;
                        let token = format!("token {}", state.token);
                        whole(200, json!({"accessToken": token, "tokenTtl": 18000}).to_string())
                    }
                    ("GET", "/nacos/v1/ns/instance/list") => {
                        let state = known.lock().unwrap();
                        let has_token =
                            asked.parameter("accessToken") == format!("token {}", state.token);
                        if !has_token || !keys.is_none_or(|keys| is_signed(&asked, keys)) {
                            return whole(403, "forbidden");
                        }
                        let of = |name| asked.parameter(name).to_owned();
                        let key = (of("namespaceId"), of("groupName"), of("serviceName"));
                        let hosts = state.services.get(&key).cloned().unwrap_or_default();
                        let hosts: Vec<Value> = hosts
                            .into_iter()
                            .filter(|host| {
                                asked.parameter("healthyOnly") != "true" || host["healthy"] == true
                            })
                            .collect();
                        whole(200, json!({"name": key.2, "hosts": hosts}).to_string())
                    }
                    _ => whole(404, ""),
                }
            }
        });
        Self { server, state }
    }

    pub fn set(&self, place: (&str, &str, &str), hosts: &[Value]) {
        let key = (place.0.to_owned(), place.1.to_owned(), place.2.to_owned());
        self.state.lock().unwrap().services.insert(key, hosts.to_vec());
    }

    /// Tokens that were given so far are good no more.
    pub fn forget_tokens(&self) {
        self.state.lock().unwrap().token += 1;
    }

    pub fn logins(&self) -> usize {
        self.state.lock().unwrap().logins
    }
}

fn is_signed(asked: &Asked, (access, secret): (&str, &str)) -> bool {
    use wardgate::rt::crypto::hmac;
    let data = asked.parameter("data");
    let ends = format!("@@{}@@{}", asked.parameter("groupName"), asked.parameter("serviceName"));
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    let signature = STANDARD.decode(asked.parameter("signature")).unwrap_or_default();
    asked.parameter("ak") == access
        && data.ends_with(&ends)
        && hmac::verify(&key, data.as_bytes(), &signature).is_ok()
}

#[derive(Default)]
struct ClusterState {
    version: u64,
    /// What happened from `oldest` on: version, type, object.
    events: Vec<(u64, &'static str, Value)>,
    /// Watches from before this are told that it is gone.
    oldest: u64,
    /// By namespace and name.
    objects: BTreeMap<(String, String), Value>,
    token: String,
    bookmarks: usize,
    /// Ends all watches whose number is below.
    ended: usize,
    watches: usize,
}

/// A Kubernetes API server: lists in pages, and watches with bookmarks.
pub struct ClusterDouble {
    pub server: Server,
    state: Arc<Changing<ClusterState>>,
    plural: &'static str,
}

impl ClusterDouble {
    pub fn start(plural: &'static str, certificate: Option<Arc<rustls::ServerConfig>>) -> Self {
        let state = Changing::new(ClusterState {
            version: 1000,
            oldest: 1000,
            token: "first".into(),
            ..ClusterState::default()
        });
        let known = state.clone();
        let server = Server::with(certificate, move |asked| cluster(known.clone(), plural, asked));
        Self { server, state, plural }
    }

    /// Who has another token from here on is a stranger.
    pub fn set_token(&self, token: &str) {
        token.clone_into(&mut self.state.lock().token);
    }

    /// Endpoints, or the slice of a service that is named as the service.
    pub fn put(&self, namespace: &str, name: &str, ports: &[u16]) {
        let object = match self.plural {
            "endpoints" => json!({
                "metadata": {"namespace": namespace, "name": name},
                "subsets": ports.iter().map(|port| json!({
                    "addresses": [{"ip": "127.0.0.1"}], "ports": [{"name": "http", "port": port}],
                })).collect::<Vec<_>>(),
            }),
            _ => json!({
                "metadata": {"namespace": namespace, "name": format!("{name}-{}", ports[0]),
                             "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
                "ports": ports.iter().map(|port| json!({"name": "http", "port": port}))
                    .collect::<Vec<_>>(),
            }),
        };
        self.event(object, false);
    }

    /// By the object's own name.
    pub fn delete(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let object = self.state.lock().objects[&key].clone();
        self.event(object, true);
    }

    fn event(&self, mut object: Value, is_gone: bool) {
        self.state.change(|state| {
            state.version += 1;
            let metadata = &mut object["metadata"];
            metadata["resourceVersion"] = json!(state.version.to_string());
            let of = |name: &str| metadata[name].as_str().unwrap().to_owned();
            let key = (of("namespace"), of("name"));
            let kind = match (is_gone, state.objects.contains_key(&key)) {
                (true, _) => "DELETED",
                (false, true) => "MODIFIED",
                (false, false) => "ADDED",
            };
            match is_gone {
                true => drop(state.objects.remove(&key)),
                false => drop(state.objects.insert(key, object.clone())),
            }
            state.events.push((state.version, kind, object));
        });
    }

    /// Sends a bookmark on each watch: nothing happened up to a version that is far on.
    pub fn bookmark(&self) -> u64 {
        self.state.change(|state| {
            state.version += 100;
            state.bookmarks += 1;
            state.events.push((
                state.version,
                "BOOKMARK",
                json!({
                    "kind": "Endpoints", "metadata": {"resourceVersion": state.version.to_string()},
                }),
            ));
            state.version
        })
    }

    /// Ends all watches, as an API server does after a while.
    pub fn end_watches(&self) {
        self.state.change(|state| state.ended = state.watches);
    }

    /// What happened is forgotten: watches end, and who would go on from before is told 410.
    pub fn compact(&self) {
        self.state.change(|state| {
            state.version += 100;
            state.oldest = state.version;
            state.events.clear();
            state.ended = state.watches;
        });
    }

    /// The versions from which it was watched.
    pub fn watched_from(&self) -> Vec<u64> {
        let asked = self.server.asked();
        let watches = asked.iter().filter(|asked| asked.parameter("watch") == "true");
        watches.map(|asked| asked.number("resourceVersion")).collect()
    }

    /// How many pages of lists it gave.
    pub fn pages(&self) -> usize {
        let asked = self.server.asked();
        asked.iter().filter(|asked| asked.parameter("watch") != "true").count()
    }
}

/// Pages are small here, however large they are asked for.
const PAGE: usize = 2;

async fn cluster(
    state: Arc<Changing<ClusterState>>,
    plural: &'static str,
    asked: Asked,
) -> Response<Body> {
    let group = match plural {
        "endpoints" => "/api/v1",
        _ => "/apis/discovery.k8s.io/v1",
    };
    let rest = asked.path.strip_prefix(group).unwrap_or_default();
    let namespace = match rest.strip_prefix("/namespaces/") {
        Some(rest) => rest.strip_suffix(&format!("/{plural}")).map(str::to_owned),
        None if rest == format!("/{plural}") => Some(String::new()),
        None => None,
    };
    let status = |code: u16| json!({"kind": "Status", "status": "Failure", "code": code});
    let Some(namespace) = namespace else { return whole(404, status(404).to_string()) };
    let bearer = format!("Bearer {}", state.lock().token);
    if asked.headers.get("authorization") != Some(&bearer) {
        return whole(401, status(401).to_string());
    }
    let not =
        asked.parameter("fieldSelector").strip_prefix("metadata.namespace!=").map(str::to_owned);
    let has = move |object: &Value| {
        let of = object["metadata"]["namespace"].as_str();
        (namespace.is_empty() || of == Some(&*namespace) || of.is_none())
            && (not.is_none() || of != not.as_deref())
    };
    if asked.parameter("watch") != "true" {
        let state = state.lock();
        let objects: Vec<&Value> = state.objects.values().filter(|object| has(object)).collect();
        let begin = asked.number("continue") as usize;
        let items: Vec<&Value> = objects.iter().copied().skip(begin).take(PAGE).collect();
        let more = begin + PAGE < objects.len();
        let next = if more { (begin + PAGE).to_string() } else { String::new() };
        let list = json!({
            "kind": "List", "items": items,
            "metadata": {"resourceVersion": state.version.to_string(), "continue": next},
        });
        return whole(200, list.to_string());
    }
    assert_eq!(asked.parameter("allowWatchBookmarks"), "true");
    let from = asked.number("resourceVersion");
    let (number, oldest) = state.change(|state| {
        state.watches += 1;
        (state.watches, state.oldest)
    });
    if from < oldest {
        let event = json!({"type": "ERROR", "object": status(410)});
        return whole(200, format!("{event}\n"));
    }
    let events = stream::unfold((state, from), move |(state, from)| {
        let has = has.clone();
        async move {
            let due = |state: &ClusterState| {
                state.ended >= number || state.events.iter().any(|(at, ..)| *at > from)
            };
            state.until(Duration::from_secs(600), due).await;
            let (next, is_over) = {
                let known = state.lock();
                let next = known.events.iter().find(|(at, ..)| *at > from).cloned();
                (next, known.ended >= number)
            };
            if is_over {
                return None;
            }
            let (at, kind, object) = next?;
            let text = match has(&object) {
                true => format!("{}\n", json!({"type": kind, "object": object})),
                false => String::new(),
            };
            Some((Ok(Frame::data(Bytes::from(text))), (state, at)))
        }
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(events)))
}
