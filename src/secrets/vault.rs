//! HashiCorp Vault's key-value engine, version 1 and 2; OpenBao speaks the same.

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Error;
use super::environment::Environment;
use super::fetched::Fetched;
use super::transport::{Answer, Question, Transport, encoded, secret_header, url};
use crate::model::VaultSecrets;

/// A Vault.
pub(super) struct Vault {
    declared: VaultSecrets,
    /// The engine's mount when it is one of version 2 whose paths are written without `data/`; known after the first answer.
    layout: Mutex<Option<Layout>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Layout {
    /// Paths are asked for as they are written.
    AsWritten,
    /// Behind this mount comes `data/`.
    Versioned(String),
}

impl Vault {
    pub(super) fn new(declared: VaultSecrets) -> Self {
        Self { declared, layout: Mutex::new(None) }
    }

    pub(super) async fn fetch(
        &self,
        path: &str,
        environment: &Environment,
        transport: &Transport,
    ) -> Result<Fetched, Error> {
        let headers = self.headers(environment)?;
        let written = join(&self.declared.prefix, path);
        let whole = match self.layout(&written, &headers, transport).await? {
            Layout::AsWritten => written,
            Layout::Versioned(mount) => match written.strip_prefix(&mount) {
                Some(rest) => join(&mount, &format!("data/{}", rest.trim_start_matches('/'))),
                None => written,
            },
        };
        let answer = self.get(&format!("/v1/{}", encoded(&whole)), &headers, transport).await?;
        match answer.status {
            StatusCode::OK => fields(&answer),
            // A version of engine 2 that was deleted says so in its metadata.
            StatusCode::NOT_FOUND if told(&answer).is_empty() => Err(Error::Absent(format!(
                "{} has no secret at {whole}, or its newest version is deleted",
                answer.server
            ))),
            _ => Err(answer.refused(&told(&answer))),
        }
    }

    fn headers(&self, environment: &Environment) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        let token = environment.own("token", self.declared.token.reveal())?;
        headers.insert("x-vault-token", secret_header("token", token.reveal())?);
        // What Vault's agents and proxies ask for against requests that a web page makes them send.
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if let Some(namespace) = &self.declared.namespace {
            let value = HeaderValue::from_str(namespace).map_err(|_| Error::Field {
                field: "namespace",
                why: "it holds what no header can".into(),
            })?;
            headers.insert("x-vault-namespace", value);
        }
        Ok(headers)
    }

    async fn get(
        &self,
        path: &str,
        headers: &HeaderMap,
        transport: &Transport,
    ) -> Result<Answer, Error> {
        let url = url("uri", &self.declared.uri, path)?;
        let (method, headers, body) = (Method::GET, headers.clone(), bytes::Bytes::new());
        transport.ask(Question { method, url, headers, body }).await
    }

    /// What the engine at a path is, asked as Vault's own command line asks.
    async fn layout(
        &self,
        written: &str,
        headers: &HeaderMap,
        transport: &Transport,
    ) -> Result<Layout, Error> {
        // Written as engine 2 wants it, as APISIX's users have to.
        if self.declared.prefix.split('/').skip(1).any(|part| part == "data") {
            return Ok(Layout::AsWritten);
        }
        if let Some(known) = &*self.layout.lock() {
            return Ok(known.clone());
        }
        let path = format!("/v1/sys/internal/ui/mounts/{}", encoded(written));
        let answer = self.get(&path, headers, transport).await?;
        let layout = match answer.status {
            StatusCode::OK => {
                let Mount { data } = answer.json("a mount of an engine")?;
                let is_versioned =
                    data.options.is_some_and(|options| options.version.as_deref() == Some("2"));
                match is_versioned {
                    true => Layout::Versioned(data.path.trim_matches('/').to_owned()),
                    false => Layout::AsWritten,
                }
            }
            // Sealed, or not itself: what it is will be seen when it answers.
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(answer.refused(&told(&answer)));
            }
            // Whoever may not ask that, or asks a Vault that does not know it, has written the path that the engine wants. The
            // next question tells whether the token is good.
            _ => return Ok(Layout::AsWritten),
        };
        *self.layout.lock() = Some(layout.clone());
        Ok(layout)
    }
}

fn join(one: &str, other: &str) -> String {
    format!("{}/{}", one.trim_matches('/'), other.trim_matches('/'))
}

#[derive(Deserialize)]
struct Mount {
    data: MountData,
}

#[derive(Deserialize)]
struct MountData {
    path: String,
    options: Option<MountOptions>,
}

#[derive(Deserialize)]
struct MountOptions {
    version: Option<String>,
}

#[derive(Deserialize)]
struct Reply {
    data: Option<Map<String, Value>>,
}

/// The fields of the secret: what lies in `data`, or with engine 2 in `data.data`, beside its metadata.
fn fields(answer: &Answer) -> Result<Fetched, Error> {
    let expected = "a secret of the key-value engine";
    let shape = || Error::Shape { server: answer.server.clone(), expected };
    let Reply { data } = answer.json(expected)?;
    let mut data = data.ok_or_else(shape)?;
    let is_versioned = data.len() == 2
        && data.get("metadata").is_some_and(|metadata| metadata.get("version").is_some());
    match (is_versioned, data.remove("data")) {
        (true, Some(Value::Object(fields))) => Ok(Fetched::Object(fields)),
        (true, _) => Err(Error::Absent("its newest version is deleted".into())),
        (false, Some(own)) => {
            data.insert("data".into(), own);
            Ok(Fetched::Object(data))
        }
        (false, None) => Ok(Fetched::Object(data)),
    }
}

/// What Vault's errors and warnings say.
fn told(answer: &Answer) -> String {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Told {
        errors: Vec<String>,
        warnings: Option<Vec<String>>,
    }
    let told: Told = serde_json::from_slice(&answer.body).unwrap_or_default();
    let warnings = told.warnings.unwrap_or_default();
    told.errors.into_iter().chain(warnings).collect::<Vec<_>>().join("; ")
}
