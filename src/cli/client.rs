//! A small HTTP client for commands that ask a running process.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::identity::{FileSettings, FileSource, IdentitySource as _, SpiffeId};
use crate::mtls::{Alpn, Connector, ExpectedPeers, MeshStream, connect_private, connect_web};
use crate::rt::Clock;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(10);
/// And one to a whole configuration, which is compiled first, and perhaps waited for.
const LONG: Duration = Duration::from_secs(180);

/// An answer, its body read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).context("the answer is not JSON")
    }

    /// A field of the answer.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Sends one request to `authority` over plain HTTP/1.1; `host` is what it asks for there.
pub(crate) async fn send(
    authority: &str,
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    within(WITHIN, authority, async {
        let tcp = connect(authority).await?;
        exchange(tcp, host, method, path, headers, body).await
    })
    .await
}

async fn connect(authority: &str) -> anyhow::Result<TcpStream> {
    let tcp = TcpStream::connect(authority)
        .await
        .with_context(|| format!("nobody answers at {authority}"))?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

async fn within<T>(
    patience: Duration,
    authority: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(patience, work).await {
        Ok(done) => done,
        Err(_) => bail!("{authority} did not answer within {} s", patience.as_secs()),
    }
}

/// One request on a connection of its own.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = crate::rt::spawn(connection);
        let text = body.map(ToString::to_string).unwrap_or_default();
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, HeaderValue::from_str(host)?);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(Bytes::from(text)))?).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }
}

/// The folder of an identity (`svid.pem`, `key.pem`, `bundle.pem`) for an Admin API over mTLS.
const IDENTITY: &str = "WARDGATE_IDENTITY";
/// Authorities (PEM) for an Admin API with a certificate of a public name; the system's when not given.
const AUTHORITIES: &str = "WARDGATE_ADMIN_CA";

/// The Admin API of a control plane.
#[derive(Debug)]
pub(crate) struct Admin {
    authority: String,
    key: String,
    way: Way,
}

/// How the Admin API is reached.
#[derive(Debug)]
enum Way {
    Plain,
    /// As whoever the folder names, to the control plane of the same trust domain.
    Mesh(PathBuf),
    /// To whoever owns the name.
    Named(Option<PathBuf>),
}

impl Admin {
    /// At `url`, with an admin key: `http://host:port`, or `https://host:port`. The environment says how the latter is proved.
    pub(crate) fn new(url: &str, key: &str) -> anyhow::Result<Self> {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let (authority, way) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(authority), _) => (authority, Way::Plain),
            (None, Some(authority)) => match path(IDENTITY) {
                Some(folder) => (authority, Way::Mesh(folder.into())),
                None => (authority, Way::Named(path(AUTHORITIES).map(PathBuf::from))),
            },
            (None, None) => {
                bail!(
                    "the Admin API's address {url:?} is not http://host:port or https://host:port"
                )
            }
        };
        let authority = authority.trim_end_matches('/');
        let authority = match (&way, authority.rsplit_once(':')) {
            (Way::Plain, _) => authority.to_owned(),
            (_, Some((_, port))) if port.parse::<u16>().is_ok() => authority.to_owned(),
            _ => format!("{authority}:443"),
        };
        Ok(Self { authority, key: key.to_owned(), way })
    }

    /// Does the environment name an identity, so that no key is needed?
    pub(crate) fn has_identity(url: &str) -> bool {
        url.starts_with("https://") && std::env::var_os(IDENTITY).is_some_and(|it| !it.is_empty())
    }

    /// Asks; `path` is below `/apisix/admin`.
    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        self.call_within(WITHIN, method, path, body).await
    }

    async fn call_within(
        &self,
        patience: Duration,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let path = format!("/apisix/admin{path}");
        let headers = [("x-api-key", self.key.as_str())];
        let headers = if self.key.is_empty() { &headers[..0] } else { &headers[..] };
        let host = self.authority.as_str();
        match &self.way {
            Way::Plain => {
                within(patience, host, async {
                    let tcp = connect(host).await?;
                    exchange(tcp, host, method, &path, headers, body).await
                })
                .await
            }
            Way::Mesh(folder) => {
                within(patience, host, async {
                    let (stream, _source) = mesh(host, folder).await?;
                    exchange(stream, host, method, &path, headers, body).await
                })
                .await
            }
            Way::Named(authorities) => {
                within(patience, host, async {
                    let stream = named(host, authorities.as_deref()).await?;
                    exchange(stream, host, method, &path, headers, body).await
                })
                .await
            }
        }
    }

    /// Asks what takes long.
    pub(crate) async fn call_long(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        self.call_within(LONG, method, path, body).await
    }

    /// Writes a resource.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.call("PUT", path, Some(body)).await?;
        let value = answer.json()?;
        if answer.status >= 300 {
            bail!(
                "the Admin API refused {path}: {}",
                value["error_msg"].as_str().unwrap_or("without a reason")
            );
        }
        Ok(value)
    }

    /// Is the resource there?
    pub(crate) async fn has(&self, path: &str) -> anyhow::Result<bool> {
        Ok(self.call("GET", path, None).await?.status == 200)
    }
}

/// As whoever the folder says, to the control plane of that trust domain and to nobody else.
async fn mesh(
    authority: &str,
    folder: &Path,
) -> anyhow::Result<(MeshStream<TcpStream>, FileSource)> {
    let settings = FileSettings {
        certificate: folder.join("svid.pem"),
        key: folder.join("key.pem"),
        bundle: folder.join("bundle.pem"),
        further_bundles: BTreeMap::new(),
        first_within_seconds: 0,
    };
    let source = FileSource::start(settings, Clock::system())
        .await
        .with_context(|| format!("no usable identity in {}", folder.display()))?;
    let own = source.identity().load();
    let control = format!("spiffe://{}/wardgate/control", own.id().trust_domain_name());
    let expected = Arc::new(ExpectedPeers::exactly(&control.parse::<SpiffeId>()?));
    let connector = Connector::new(source.identity());
    let tcp = connect(authority).await?;
    let (stream, _) = connector
        .connect(tcp, &expected, Alpn::Http1)
        .await
        .with_context(|| format!("no mTLS with {control} at {authority}"))?;
    Ok((stream, source))
}

async fn named(
    authority: &str,
    authorities: Option<&Path>,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let tcp = connect(authority).await?;
    let connected = match authorities {
        None => connect_web(tcp, host, None).await,
        Some(path) => {
            let roots =
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            connect_private(tcp, bare, &roots, Alpn::Http1).await
        }
    };
    connected.with_context(|| {
        format!("no TLS with {authority}: {AUTHORITIES} names its authorities, {IDENTITY} an identity for mTLS")
    })
}
