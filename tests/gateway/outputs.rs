//! The decision log is handed on to collectors that fail, go away and come back: nothing is lost, nothing is out of order, and
//! what comes twice comes around failures.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use prost::Message;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use wardgate::mtls::{Acceptor, provider};
use wardgate::rt::{Live, Tasks};

use self::otlp::any_value::Value as Kind;
use self::otlp::logs_service_server::{LogsService, LogsServiceServer};
use self::otlp::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse, LogRecord,
};
use crate::upstream_tls::{Authority, Pair};
use crate::world::{App, Process, World, allow, eventually, eventually_async, get, run};

#[rustfmt::skip]
#[path = "../../src/audit/generated/otlp.rs"]
#[allow(dead_code, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths, clippy::all, clippy::semicolon_if_nothing_returned,
    clippy::wildcard_imports, reason = "generated")]
mod otlp;

/// What a collector has got: records in the order in which they came.
#[derive(Clone, Default)]
pub(crate) struct Got(Arc<Mutex<Vec<Value>>>);

impl Got {
    pub(crate) fn add(&self, record: Value) {
        self.0.lock().unwrap().push(record);
    }

    pub(crate) fn all(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }

    fn numbers(&self) -> Vec<u64> {
        self.all().iter().map(|record| record["seq"].as_u64().expect("a number")).collect()
    }

    /// Waits until this record is there.
    pub(crate) async fn has(&self, what: &str, seq: u64) {
        eventually_async(&format!("{what} has record {seq}"), || async {
            self.numbers().contains(&seq).then_some(())
        })
        .await;
    }

    /// All of `written` but `without` came, each for the first time behind the one before it.
    fn is_whole(&self, what: &str, written: &[u64], without: &[u64]) {
        let mut first = Vec::new();
        for seq in self.numbers() {
            if !first.contains(&seq) {
                first.push(seq);
            }
        }
        let last = first.last().copied().unwrap_or_default();
        let wanted = |seq: &&u64| **seq <= last && !without.contains(*seq);
        let expected: Vec<u64> = written.iter().filter(wanted).copied().collect();
        assert_eq!(first, expected, "{what}");
    }
}

/// A listener that can be closed and opened again at the same address.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    tasks: Option<Tasks>,
}

impl Door {
    pub(crate) async fn new() -> Self {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        Self { address, tasks: None }
    }

    pub(crate) async fn open<F, R>(&mut self, serve: F)
    where
        F: Fn(TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let address = self.address;
        let listener = eventually_async("the address is free again", || async move {
            TcpListener::bind(address).await.ok()
        })
        .await;
        let mut tasks = Tasks::new();
        tasks.add(async move {
            let mut connections = Tasks::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                connections.add(serve(tcp));
            }
        });
        self.tasks = Some(tasks);
    }

    fn close(&mut self) {
        self.tasks = None;
    }
}

/// What the collector by HTTP answers.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Good,
    Busy,
}

/// A collector by HTTP that takes lines of JSON, none with the path `/poison`, and wants a key.
async fn http_collector(tcp: TcpStream, got: Got, mood: Arc<Mutex<Mood>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (got, mood) = (got.clone(), *mood.lock().unwrap());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let answer = |status: u16| {
                Ok::<_, Infallible>(
                    Response::builder().status(status).body(Full::<Bytes>::default()).unwrap(),
                )
            };
            assert_eq!(head.headers["content-type"], "application/x-ndjson");
            if head.headers.get("authorization").is_none_or(|key| key != "Bearer k3y") {
                return answer(401);
            }
            if mood == Mood::Busy {
                return answer(503);
            }
            let lines = std::str::from_utf8(&body).unwrap().lines();
            let records: Vec<Value> =
                lines.map(|line| serde_json::from_str(line).unwrap()).collect();
            if records.iter().any(|record| record["path"] == "/poison") {
                return answer(400);
            }
            records.into_iter().for_each(|record| got.add(record));
            answer(204)
        }
    });
    let _ =
        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tcp), service).await;
}

/// A collector of OpenTelemetry's logs.
#[derive(Clone)]
pub(crate) struct Collector {
    pub(crate) got: Got,
    pub(crate) resources: Got,
    /// So many records of each request it says it did not take.
    pub(crate) rejects: i64,
}

fn text(value: Option<&otlp::AnyValue>) -> Option<Value> {
    match value?.value.as_ref()? {
        Kind::StringValue(text) => Some(json!(text)),
        Kind::IntValue(number) => Some(json!(number)),
        Kind::BoolValue(is) => Some(json!(is)),
        Kind::KvlistValue(list) => Some(object(&list.values)),
        Kind::ArrayValue(list) => {
            Some(list.values.iter().filter_map(|value| text(Some(value))).collect())
        }
        Kind::DoubleValue(_) | Kind::BytesValue(_) => None,
    }
}

fn object(pairs: &[otlp::KeyValue]) -> Value {
    let pair = |pair: &otlp::KeyValue| Some((pair.key.clone(), text(pair.value.as_ref())?));
    Value::Object(pairs.iter().filter_map(pair).collect())
}

/// A log record as the test looks at it: its number beside what was sent.
fn told(record: &LogRecord) -> Value {
    let attributes = object(&record.attributes);
    json!({
        "seq": attributes["wardgate.seq"], "attributes": attributes, "body": text(record.body.as_ref()),
        "severity": record.severity_number, "event": record.event_name, "nanos": record.time_unix_nano,
    })
}

impl Collector {
    fn take(&self, request: &ExportLogsServiceRequest) {
        for logs in &request.resource_logs {
            self.resources.add(object(&logs.resource.as_ref().unwrap().attributes));
            let scopes = logs.scope_logs.iter();
            scopes.flat_map(|scope| &scope.log_records).for_each(|one| self.got.add(told(one)));
        }
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
        let key = request.metadata().get("x-key").cloned();
        if key.is_none_or(|key| key != "otel") {
            return Err(tonic::Status::unauthenticated("no key"));
        }
        self.take(request.get_ref());
        let partial_success = (self.rejects > 0).then(|| ExportLogsPartialSuccess {
            rejected_log_records: self.rejects,
            error_message: "some are too old".to_owned(),
        });
        Ok(tonic::Response::new(ExportLogsServiceResponse { partial_success }))
    }
}

/// The same over HTTP with protobuf; of each request it says that it did not take one record.
async fn protobuf_collector(tcp: TcpStream, collector: Collector) {
    let service = service_fn(move |request: Request<Incoming>| {
        let collector = collector.clone();
        async move {
            assert_eq!(request.uri().path(), "/v1/logs");
            assert_eq!(request.headers()["content-type"], "application/x-protobuf");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            collector.take(&ExportLogsServiceRequest::decode(body).unwrap());
            let error_message = "one is too old".to_owned();
            let partial = ExportLogsPartialSuccess { rejected_log_records: 1, error_message };
            let answer = ExportLogsServiceResponse { partial_success: Some(partial) };
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer.encode_to_vec()))))
        }
    });
    let _ =
        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tcp), service).await;
}

/// TLS with this certificate, for clients that one of these authorities vouches for.
pub(crate) fn tls_of(clients: &str, pair: &Pair) -> TlsAcceptor {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(clients.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
    let chain =
        CertificateDer::pem_slice_iter(pair.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

pub(crate) async fn grpc_collector(tcp: TcpStream, tls: TlsAcceptor, collector: Collector) {
    let Ok(tls) = tls.accept(tcp).await else { return };
    let service = TowerToHyperService::new(LogsServiceServer::new(collector));
    let _ =
        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await;
}

/// A receiver of syslog over TLS that is in the mesh: it counts octets, and reads messages as RFC 5424 has them.
async fn syslog_receiver(tcp: TcpStream, acceptor: Acceptor, got: Got) {
    let Ok((tls, peer)) = acceptor.accept(tcp).await else { return };
    messages(tls, peer.id.as_str(), got).await;
}

/// Messages with counted octets, as RFC 5425 and RFC 6587 have them.
pub(crate) async fn messages(stream: impl AsyncRead + Unpin, peer: &str, got: Got) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = Vec::new();
        match reader.read_until(b' ', &mut length).await {
            Ok(1..) if length.ends_with(b" ") => {}
            _ => return,
        }
        let length = std::str::from_utf8(&length).unwrap().trim_end().parse().unwrap();
        let mut message = vec![0; length];
        if reader.read_exact(&mut message).await.is_err() {
            return;
        }
        got.add(message_of(&message, peer));
    }
}

/// One message, taken apart.
pub(crate) fn message_of(message: &[u8], peer: &str) -> Value {
    let message = std::str::from_utf8(message).unwrap();
    let (head, rest) = message.split_once(" [").unwrap();
    let (fields, body) = rest.split_once("] ").unwrap();
    let record: Value = serde_json::from_str(body).unwrap();
    let seq = record["seq"].clone();
    json!({ "seq": seq, "head": head, "fields": fields, "record": record, "peer": peer })
}

pub(crate) fn billing_policy(world: &World) -> Value {
    json!({ "identity_policies": [allow("p", &[&world.id("/billing")], &[&world.id("/shop")])] })
}

fn written(process: &Process) -> Vec<u64> {
    let mut numbers = Vec::new();
    let files = wardgate::observe::log_files(&process.audit_file());
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        numbers.extend(records.map(|record| record["seq"].as_u64().unwrap()));
    }
    numbers
}

pub(crate) fn seq_of(process: &Process, path: &str) -> u64 {
    process.record_with("/path", &json!(path))["seq"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collectors_get_every_record_in_order_though_they_and_the_gateway_fail() {
    let world = World::new();
    let app = App::echo("app");
    let authority = Authority::new("collectors");
    let file = |name: &str, text: &str| {
        let path = world.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let client = authority.issue("sidecar", &[]);
    let server = authority.issue("collector", &["collector.test"]);

    let (http, otel, old, syslog) =
        (Got::default(), Got::default(), Got::default(), Got::default());
    let resources = Got::default();
    let mood = Arc::new(Mutex::new(Mood::Busy));
    let [mut http_door, mut otel_door, mut old_door, mut syslog_door] =
        [Door::new().await, Door::new().await, Door::new().await, Door::new().await];
    let acceptor = Acceptor::new(Live::fixed(world.identity("/siem")));
    let tls = tls_of(&authority.pem(), &server);
    let collector = Collector { got: otel.clone(), resources: resources.clone(), rejects: 0 };
    otel_door.open(move |tcp| grpc_collector(tcp, tls.clone(), collector.clone())).await;
    let collector = Collector { got: old.clone(), resources: resources.clone(), rejects: 0 };
    old_door.open(move |tcp| protobuf_collector(tcp, collector.clone())).await;
    let receive = {
        let (acceptor, got) = (acceptor.clone(), syslog.clone());
        move |tcp| syslog_receiver(tcp, acceptor.clone(), got.clone())
    };
    syslog_door.open(receive.clone()).await;

    let token = file("token", "k3y\n");
    let outputs = json!([
        {
            "name": "web",
            "http": {
                "url": format!("http://{}/in", http_door.address),
                "headers": { "authorization": { "file": token, "prefix": "Bearer " } },
            },
        },
        {
            "name": "otel",
            "otlp": {
                "endpoint": format!("https://{}", otel_door.address),
                "headers": { "x-key": "otel" },
                "resource": { "deployment.environment.name": "test" },
                "tls": {
                    "ca": file("ca.pem", &authority.pem()), "server_name": "collector.test",
                    "certificate": file("client.pem", &client.chain), "key": file("client.key", &client.key),
                },
            },
        },
        {
            "name": "refusals",
            "format": "ocsf",
            "only_denied": true,
            "otlp": {
                "endpoint": format!("http://{}/v1/logs", old_door.address), "protocol": "http/protobuf",
            },
        },
        {
            "name": "siem",
            "syslog": {
                "address": format!("tls://{}", syslog_door.address), "facility": "local3",
                "tls": { "spiffe_ids": [world.id("/siem")] },
            },
        },
    ]);
    let part = world
        .sidecar("/billing")
        .app(&app)
        .resources(&billing_policy(&world))
        .set("status", &json!("127.0.0.1:0"))
        .set("audit", &json!({ "outputs": outputs }));
    let mut billing = part.start();
    let (shop, stranger) = (world.peer("/shop"), world.peer("/stranger"));

    // One collector is not there yet; the others do not wait for it.
    shop.get(&billing, "/first").await;
    let denied = stranger.get(&billing, "/denied").await;
    let seq = seq_of(&billing, "/denied");
    otel.has("otel", seq).await;
    syslog.has("siem", seq).await;
    old.has("refusals", seq).await;
    let status = billing.address("status");
    let lags = |report: &Value| {
        report["failing_since"].is_i64() && report["lag_records"].as_u64() > Some(0)
    };
    eventually_async("the output that fails says so", || async {
        let process = get(status, "/status/process").await.json();
        let outputs = process["decision_log"]["outputs"].as_array()?.clone();
        outputs.into_iter().find(|report| report["name"] == "web").filter(lags)
    })
    .await;
    let metrics = get(status, "/metrics").await.text();
    assert!(metrics.contains("wardgate_audit_output_failing{output=\"web\"} 1"), "{metrics}");
    assert!(metrics.contains("wardgate_audit_output_failing{output=\"otel\"} 0"), "{metrics}");
    let settings = std::fs::read_to_string(&billing.settings_file).unwrap();
    let asked = world.folder.join("asked.yaml");
    let settings =
        settings.replace("\"status\": \"127.0.0.1:0\"", &format!("\"status\": \"{status}\""));
    std::fs::write(&asked, settings).unwrap();
    let checked = run(["check", "-c", asked.to_str().unwrap()]);
    assert_eq!(checked.code, Some(1), "{}", checked.out);
    assert!(checked.out.contains("× web: "), "{}", checked.out);
    assert!(checked.out.contains("✓ siem: "), "{}", checked.out);
    assert!(checked.out.contains("refusals: "), "{}", checked.out);

    // It comes, is busy, goes away, and comes back for good.
    let serve = {
        let (got, mood) = (http.clone(), mood.clone());
        move |tcp| http_collector(tcp, got.clone(), mood.clone())
    };
    http_door.open(serve.clone()).await;
    shop.get(&billing, "/while-busy").await;
    eventually_async("the output that finds it busy says so", || async {
        let process = get(status, "/status/process").await.text();
        process.contains("answered 503").then_some(())
    })
    .await;
    http_door.close();
    stranger.get(&billing, "/while-away").await;
    *mood.lock().unwrap() = Mood::Good;
    http_door.open(serve.clone()).await;
    http.has("web", seq_of(&billing, "/while-away")).await;

    // What it will never take is left out, and what comes behind it is not.
    stranger.get(&billing, "/poison").await;
    stranger.get(&billing, "/behind").await;
    let poison = seq_of(&billing, "/poison");
    http.has("web", seq_of(&billing, "/behind")).await;
    billing.logs("never will be");
    let metrics = get(status, "/metrics").await.text();
    assert!(metrics.contains("wardgate_audit_undeliverable_total{output=\"web\"} 1"), "{metrics}");
    assert!(
        !metrics.contains("wardgate_audit_undeliverable_total{output=\"refusals\"} 0"),
        "{metrics}"
    );

    // The gateway is killed while a collector is away; the next one goes on where it was.
    syslog_door.close();
    for number in 0..20 {
        stranger.get(&billing, &format!("/before-{number}")).await;
    }
    billing.kill();
    let mut billing = part.start();
    for number in 0..5 {
        stranger.get(&billing, &format!("/after-{number}")).await;
    }
    syslog_door.open(receive).await;
    let last = seq_of(&billing, "/after-4");
    for (name, got) in [("web", &http), ("otel", &otel), ("siem", &syslog), ("refusals", &old)] {
        got.has(name, last).await;
    }
    // Who ends hands over what is there.
    stranger.get(&billing, "/last").await;
    billing.end();
    let last = seq_of(&billing, "/last");
    for (name, got) in [("web", &http), ("otel", &otel), ("siem", &syslog)] {
        assert!(got.numbers().contains(&last), "{name} has the last one");
    }
    let numbers = written(&billing);
    http.is_whole("web", &numbers, &[poison]);
    otel.is_whole("otel", &numbers, &[]);
    syslog.is_whole("siem", &numbers, &[]);

    // What they got is what was written.
    let records = billing.audit();
    let by_seq = |seq: u64| records.iter().find(|record| record["seq"] == seq).unwrap();
    assert!(http.all().iter().all(|record| record == by_seq(record["seq"].as_u64().unwrap())));
    let id = denied.denial();
    let refusal = |got: &Got, field: &str| {
        got.all().into_iter().find(|one| one.pointer(field) == Some(&json!(id))).unwrap()
    };
    let one = refusal(&otel, "/attributes/wardgate.denial_id");
    assert_eq!((&one["event"], &one["severity"]), (&json!("wardgate.decision"), &json!(13)));
    assert_eq!(one["attributes"]["wardgate.peer.spiffe_id"], json!(world.id("/stranger")));
    assert_eq!(one["attributes"]["url.path"], "/denied");
    let body: Value = serde_json::from_str(one["body"].as_str().unwrap()).unwrap();
    assert_eq!(&body, by_seq(seq), "the body is the line");
    let resource = &resources.all()[0];
    assert_eq!(resource["service.name"], "wardgate");
    assert_eq!(resource["deployment.environment.name"], "test");
    let one = refusal(&old, "/body/unmapped/denial_id");
    assert_eq!((&one["body"]["class_uid"], &one["body"]["action_id"]), (&json!(4002), &json!(2)));
    assert!(old.all().iter().all(|one| one["attributes"]["wardgate.outcome"] == "deny"));
    let one = refusal(&syslog, "/record/denial_id");
    let head = one["head"].as_str().unwrap();
    assert!(head.starts_with("<156>1 20"), "local3 and warning: {head}");
    assert!(head.ends_with(" decision") && head.contains(" billing wardgate "), "{head}");
    let fields = one["fields"].as_str().unwrap();
    assert!(fields.contains("outcome=\"deny\"") && fields.contains("path=\"/denied\""), "{fields}");
    assert_eq!(one["peer"], json!(billing.id), "the receiver knows who tells");

    // The same tables make files for others.
    let log = billing.audit_file();
    let exported =
        run(["audit", "export", "--format", "ocsf", "--denied", log.to_str().unwrap()]).good();
    let classes: Vec<Value> =
        exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        classes.len() > 20 && classes.iter().all(|event| event["action_id"] == 2),
        "{exported}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_changes_the_outputs_and_an_upgrade_hands_them_over() {
    let world = World::new();
    let app = App::echo("app");
    let (got, mood) = (Got::default(), Arc::new(Mutex::new(Mood::Good)));
    let mut door = Door::new().await;
    let serve = {
        let got = got.clone();
        move |tcp| http_collector(tcp, got.clone(), mood.clone())
    };
    door.open(serve).await;
    let output = |name: &str| {
        json!({ "outputs": [{
            "name": name,
            "http": { "url": format!("http://{}/", door.address), "headers": { "authorization": "Bearer k3y" } },
        }] })
    };
    let part = world.sidecar("/billing").app(&app).resources(&billing_policy(&world));
    let mut billing = part.set("audit", &output("web")).start();
    let stranger = world.peer("/stranger");
    stranger.get(&billing, "/before").await;
    got.has("web", seq_of(&billing, "/before")).await;

    // Another name is another output: it begins at the oldest record.
    let before = got.numbers().len();
    let settings = std::fs::read_to_string(&billing.settings_file).unwrap();
    std::fs::write(&billing.settings_file, settings.replace("\"web\"", "\"other\"")).unwrap();
    billing.signal(rustix::process::Signal::HUP);
    eventually("the other output begins anew", || {
        (got.numbers().len() >= 2 * before).then_some(())
    });
    billing.logs("settings read again");
    assert!(got.numbers()[before..].starts_with(&[1, 2]), "{:?}", got.numbers());
    billing.signal(rustix::process::Signal::USR2);
    let took_over = eventually("a new process takes over", || {
        let lines = billing.lines();
        lines.iter().find_map(|line| line.strip_suffix(" has taken over").map(str::to_owned))
    });
    stranger.get(&billing, "/after").await;
    got.has("web", seq_of(&billing, "/after")).await;
    got.is_whole(&took_over, &written(&billing), &[]);
    let cursors = std::fs::read_dir(billing.state.join("outputs")).unwrap().count();
    assert_eq!(cursors, 2, "one of each name");
    billing.end();
}

#[tokio::test]
async fn outputs_that_cannot_be_are_refused_by_name_at_the_start() {
    let world = World::new();
    let app = App::echo("app");
    let refuse = |outputs: Value| {
        let part = world.sidecar("/billing").app(&app).resources(&billing_policy(&world));
        part.set("audit", &json!({ "outputs": outputs })).fails().err
    };
    for (output, expected) in [
        (json!({ "name": "a" }), "a: expected one of otlp, syslog and http"),
        (json!({ "name": "A", "http": { "url": "http://a/" } }), "name \\\"A\\\""),
        (json!({ "name": "a", "http": { "url": "a" } }), "http.url"),
        (
            json!({ "name": "a", "syslog": { "address": "udp://a:514" } }),
            "expected tls://host:port, tcp://host:port or unix:///path",
        ),
        (
            json!({ "name": "a", "http": { "url": "https://a/", "tls": { "ca": "/nowhere.pem" } } }),
            "/nowhere.pem",
        ),
        (
            json!({ "name": "a", "http": { "url": "http://a/" }, "only": ["x"] }),
            "no type of record",
        ),
    ] {
        let said = refuse(json!([output])).replace('\\', "");
        let expected = expected.replace('\\', "");
        assert!(said.contains("audit.outputs") && said.contains(&expected), "{expected}: {said}");
    }
}
