//! A small HTTP client for commands that ask a running process.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

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
    send_within(WITHIN, authority, host, (method, path), headers, body).await
}

async fn send_within(
    within: Duration,
    authority: &str,
    host: &str,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    let exchange = async {
        let tcp = TcpStream::connect(authority)
            .await
            .with_context(|| format!("nobody answers at {authority}"))?;
        tcp.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
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
    };
    match tokio::time::timeout(within, exchange).await {
        Ok(answer) => answer,
        Err(_) => bail!("{authority} did not answer within {} s", within.as_secs()),
    }
}

/// The Admin API of a control plane.
pub(crate) struct Admin {
    authority: String,
    key: String,
}

impl Admin {
    /// At `url` (`http://host:port`), with an admin key.
    pub(crate) fn new(url: &str, key: &str) -> anyhow::Result<Self> {
        let Some(authority) = url.strip_prefix("http://") else {
            bail!("the Admin API's address {url:?} is not http://host:port");
        };
        Ok(Self { authority: authority.trim_end_matches('/').to_owned(), key: key.to_owned() })
    }

    /// Asks; `path` is below `/apisix/admin`.
    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let path = format!("/apisix/admin{path}");
        let headers = [("x-api-key", self.key.as_str())];
        send(&self.authority, &self.authority, method, &path, &headers, body).await
    }

    /// Asks what takes long.
    pub(crate) async fn call_long(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let path = format!("/apisix/admin{path}");
        let headers = [("x-api-key", self.key.as_str())];
        let authority = &self.authority;
        send_within(LONG, authority, authority, (method, &path), &headers, body).await
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
