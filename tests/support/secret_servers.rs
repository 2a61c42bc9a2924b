//! Servers of secrets as their makers' interfaces describe them, on threads of their own: HashiCorp Vault's key-value engine, and
//! whatever a closure answers.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Map, Value, json};

/// A request as it was heard.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Heard {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// An HTTP server that answers each connection once.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Heard) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (is_over, answer) = (Arc::new(AtomicBool::new(false)), Arc::new(answer));
        let over = is_over.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let answer = answer.clone();
                std::thread::spawn(move || stream.map(|stream| serve(stream, &*answer)));
            }
        });
        Self { address, is_over }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the listener, which then closes.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&Heard) -> (u16, Value)) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut first = line.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (status, value) = answer(&Heard { method, target, headers, body });
    let text = if value.is_null() { String::new() } else { value.to_string() };
    let mut stream = reader.into_inner();
    let head = format!(
        "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(text.as_bytes()).ok()
}

/// A Vault.
pub(crate) struct Vault {
    pub(crate) server: Server,
    state: Arc<Mutex<VaultState>>,
}

/// The fields of a version, unless it was deleted.
type Version = Option<Map<String, Value>>;

/// What it has and how it is.
pub(crate) struct VaultState {
    pub(crate) token: String,
    pub(crate) namespace: Option<String>,
    pub(crate) is_sealed: bool,
    /// Mounts of key-value engines, without slashes at their ends, with their versions.
    pub(crate) mounts: Vec<(String, u8)>,
    /// The versions of each secret by mount and path; one that was deleted is empty.
    pub(crate) secrets: BTreeMap<(String, String), Vec<Version>>,
    /// The token may not ask what engines there are.
    pub(crate) hides_mounts: bool,
}

impl Vault {
    pub(crate) fn start(token: &str) -> Self {
        let state = Arc::new(Mutex::new(VaultState {
            token: token.to_owned(),
            namespace: None,
            is_sealed: false,
            mounts: vec![("kv".into(), 1), ("team/secret".into(), 2)],
            secrets: BTreeMap::new(),
            hides_mounts: false,
        }));
        let shared = state.clone();
        let server = Server::start(move |heard| shared.lock().unwrap().answer(heard));
        Self { server, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, VaultState> {
        self.state.lock().unwrap()
    }

    /// Writes a version of a secret.
    pub(crate) fn put(&self, mount: &str, path: &str, fields: &Value) {
        let fields = fields.as_object().cloned();
        self.state().secrets.entry((mount.into(), path.into())).or_default().push(fields);
    }

    /// The resource by which it is declared.
    pub(crate) fn manager(&self, prefix: &str) -> Value {
        let uri = format!("http://{}", self.server.address);
        json!({ "uri": uri, "prefix": prefix, "token": self.state().token })
    }
}

impl VaultState {
    fn answer(&self, heard: &Heard) -> (u16, Value) {
        let errors = |status: u16, errors: Value| (status, json!({ "errors": errors }));
        if self.is_sealed {
            return errors(503, json!(["Vault is sealed"]));
        }
        if heard.header("x-vault-token") != Some(&self.token)
            || heard.header("x-vault-namespace") != self.namespace.as_deref()
        {
            return errors(403, json!(["permission denied"]));
        }
        if heard.method != "GET" {
            return errors(405, json!(["unsupported operation"]));
        }
        if let Some(path) = heard.target.strip_prefix("/v1/sys/internal/ui/mounts/") {
            return match self.mount_of(path).filter(|_| !self.hides_mounts) {
                Some((mount, version)) => {
                    let options = json!({ "version": version.to_string() });
                    let path = format!("{mount}/");
                    (200, json!({ "data": { "type": "kv", "path": path, "options": options } }))
                }
                None => errors(403, json!(["preflight capability check returned 403"])),
            };
        }
        let Some(path) = heard.target.strip_prefix("/v1/") else { return errors(404, json!([])) };
        let Some((mount, version)) = self.mount_of(path) else {
            let why = format!("no handler for route {path:?}. route entry not found.");
            return errors(404, json!([why]));
        };
        let rest = path[mount.len()..].trim_start_matches('/');
        let versions = |rest: &str| self.secrets.get(&(mount.clone(), rest.to_owned()));
        if version == 1 {
            return match versions(rest).and_then(|versions| versions.last()) {
                Some(Some(fields)) => (
                    200,
                    json!({ "lease_duration": 2_764_800, "renewable": false, "data": fields, "warnings": null }),
                ),
                _ => errors(404, json!([])),
            };
        }
        let Some(rest) = rest.strip_prefix("data/") else {
            let warning = "Invalid path for a versioned K/V secrets engine.";
            return (404, json!({ "warnings": [warning] }));
        };
        let Some(versions) = versions(rest) else { return errors(404, json!([])) };
        let last = versions.last().cloned().flatten();
        let status = if last.is_some() { 200 } else { 404 };
        let deleted = if last.is_some() { "" } else { "2026-01-01T00:00:00Z" };
        let metadata = json!({
            "created_time": "2026-01-01T00:00:00Z", "custom_metadata": null, "destroyed": false,
            "deletion_time": deleted, "version": versions.len(),
        });
        (status, json!({ "data": { "data": last, "metadata": metadata }, "warnings": null }))
    }

    fn mount_of(&self, path: &str) -> Option<(String, u8)> {
        let holds = |(mount, _): &&(String, u8)| path.starts_with(&format!("{mount}/"));
        self.mounts.iter().find(holds).cloned()
    }
}
