//! A control plane on a real socket with a small catalog of plugins, and a client for it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use wardgate::control::access::{AdminKeys, KeySettings, Role, Settings};
use wardgate::control::standalone::StandaloneSettings;
use wardgate::control::{
    AdminRecord, AuditTrail, ControlPlane, Convergence, DataPlaneState, Parts, PluginCatalog,
    PluginFacts, PluginPart, Trial,
};
use wardgate::model::{Body, Invalid, Resource};
use wardgate::rt::{Clock, Drain};
use wardgate::store::Store;

pub const ADMIN: &str = "admin-key-of-at-least-32-characters";
pub const VIEWER: &str = "viewer-key-of-at-least-32-character";

/// Four plugins, as the real catalog describes them.
struct Catalog;

impl PluginCatalog for Catalog {
    fn plugins(&self) -> Vec<PluginFacts> {
        let facts = |name: &str, priority, properties: Value, required: Value| PluginFacts {
            name: name.into(),
            priority,
            schema: json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false}),
            credential: None,
            metadata: None,
        };
        let text = json!({"type": "string", "minLength": 1});
        let list = json!({"type": "array", "items": {"type": "string"}, "minItems": 1});
        let mut key_auth =
            facts("key-auth", 2500, json!({"header": text, "query": text}), json!([]));
        key_auth.credential = Some(json!({
            "type": "object", "properties": {"key": text}, "required": ["key"], "additionalProperties": false,
        }));
        let mut prometheus =
            facts("prometheus", 500, json!({"prefer_name": {"type": "boolean"}}), json!([]));
        prometheus.metadata = Some(json!({
            "type": "object", "properties": {"prefix": text}, "additionalProperties": false,
        }));
        vec![
            facts("request-id", 12015, json!({"header_name": text}), json!([])),
            key_auth,
            facts("ip-restriction", 3000, json!({"whitelist": list, "blacklist": list}), json!([])),
            prometheus,
        ]
    }

    fn check(&self, plugin: &str, _: PluginPart, config: &Value) -> Result<(), String> {
        if plugin == "ip-restriction"
            && config.get("whitelist").is_some() == config.get("blacklist").is_some()
        {
            return Err("give either whitelist or blacklist".into());
        }
        Ok(())
    }
}

/// Tries `vars`, as a data plane's compiler would, and remembers what it was given.
#[derive(Default)]
pub struct Trials(pub Mutex<Vec<(String, Vec<String>)>>);

impl Trial for Trials {
    fn check(&self, candidate: &Resource, referred: &[Resource]) -> Result<(), Invalid> {
        let name = |resource: &Resource| format!("{}/{}", resource.kind, resource.id);
        self.0.lock().unwrap().push((name(candidate), referred.iter().map(name).collect()));
        match &candidate.body {
            Body::Route(route) => match route.vars.as_deref().and_then(Value::as_array) {
                Some(vars) if vars.iter().any(|rule| !rule.is_array()) => Err(Invalid::new(
                    "failed to validate the 'vars' expression: rule should be wrapped inside brackets",
                )),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// A record, owned.
#[derive(Clone, Debug, PartialEq)]
pub struct Noted {
    pub principal: Option<String>,
    pub what: String,
    pub status: u16,
    pub revision: Option<u64>,
    pub digest: Option<String>,
    pub difference: Option<String>,
    pub reason: Option<String>,
}

#[derive(Default)]
pub struct Trail(pub Mutex<Vec<Noted>>);

impl AuditTrail for Trail {
    fn admin(&self, record: &AdminRecord<'_>) {
        assert!(record.client.ip().is_loopback());
        self.0.lock().unwrap().push(Noted {
            principal: record.principal.map(str::to_owned),
            what: format!("{} {}", record.method, record.path),
            status: record.status,
            revision: record.revision,
            digest: record.digest.clone(),
            difference: record.difference.clone(),
            reason: record.reason.clone(),
        });
    }
}

#[derive(Default)]
pub struct Planes(pub Mutex<Vec<DataPlaneState>>);

impl Convergence for Planes {
    fn data_planes(&self) -> Vec<DataPlaneState> {
        self.0.lock().unwrap().clone()
    }
}

/// The control plane under test.
pub struct World {
    pub address: SocketAddr,
    pub clock: Clock,
    pub trail: Arc<Trail>,
    pub trials: Arc<Trials>,
    pub planes: Arc<Planes>,
    pub drain: Drain,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    pub fn pair(&self) -> (u16, Value) {
        (self.status.as_u16(), self.json())
    }
}

impl World {
    pub async fn with(store: Arc<dyn Store>) -> Self {
        Self::start(store, Settings::default(), None).await
    }

    /// With settings of access.
    pub async fn guarded(store: Arc<dyn Store>, access: Settings) -> Self {
        Self::start(store, access, None).await
    }

    /// In APISIX's API-driven standalone mode.
    pub async fn standalone(settings: StandaloneSettings) -> Self {
        let store = Arc::new(wardgate::store::memory::Memory::new());
        Self::start(store, Settings::default(), Some(settings)).await
    }

    async fn start(
        store: Arc<dyn Store>,
        access: Settings,
        standalone: Option<StandaloneSettings>,
    ) -> Self {
        let keys = [
            KeySettings::new("root", ADMIN, Role::Admin),
            KeySettings::new("eyes", VIEWER, Role::Viewer),
        ];
        let (trail, trials, planes) =
            (Arc::<Trail>::default(), Arc::<Trials>::default(), Arc::<Planes>::default());
        let clock = Clock::fixed(1_700_000_000);
        let plane = ControlPlane::new(Parts {
            store,
            prefix: "/apisix".into(),
            keys: AdminKeys::of(&keys).unwrap(),
            hosts: vec!["control.example".into()],
            access,
            catalog: Arc::new(Catalog),
            trial: trials.clone(),
            audit: trail.clone(),
            convergence: Some(planes.clone()),
            archive: None,
            clock: clock.clone(),
            history: wardgate::control::history::HistorySettings::default(),
            standalone,
            canaries: None,
        })
        .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Drain::new();
        wardgate::rt::spawn(plane.serve(listener, drain.guard()));
        Self { address, clock, trail, trials, planes, drain }
    }

    /// One request on a connection of its own.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        let connection = wardgate::rt::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", self.address.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let exchange = async {
            let (head, body) = sender.send_request(request).await.unwrap().into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            Answer { status: head.status, headers: head.headers, text }
        };
        let answer = tokio::time::timeout(Duration::from_secs(30), exchange).await.unwrap();
        connection.abort();
        answer
    }

    /// A request as the administrator.
    pub async fn ask(&self, method: &str, path: &str, body: &Value) -> Answer {
        let bytes = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, &format!("/apisix/admin{path}"), &[("x-api-key", ADMIN)], bytes).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &Value::Null).await
    }

    /// A write that must succeed.
    pub async fn put(&self, path: &str, body: Value) -> Value {
        let answer = self.ask("PUT", path, &body).await;
        assert!(answer.status.is_success(), "PUT {path}: {} {}", answer.status, answer.text);
        answer.json()
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, &Value::Null).await
    }
}
