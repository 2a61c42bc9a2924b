//! One probe of one endpoint, over the connections that requests use.

use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ActiveChecks, Seen};
use crate::model::CheckType;
use crate::rt::causes;
use crate::upstream::{Connect, Endpoint, Error, Protocol, Security, Stream};

/// An answer's head is read up to here.
const MAX_HEAD: usize = 16 * 1024;
/// Fields of an answer's head, at most.
const MAX_FIELDS: usize = 128;
/// 1xx answers before the final one, at most.
const MAX_INTERIM: usize = 8;

/// What a probe found, and the reason in words.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) seen: Seen,
    pub(super) cause: String,
}

/// Probes `endpoint`; takes no longer than the checks allow.
pub(super) async fn probe(connect: &Connect, checks: &ActiveChecks, endpoint: &Endpoint) -> Found {
    let found = tokio::time::timeout(checks.within, attempt(connect, checks, endpoint)).await;
    match found {
        Ok(Ok(seen)) => Found { seen, cause: format!("probe: {seen}") },
        Ok(Err(Broken::Connect(Error::Late { .. }))) | Err(_) => {
            Found { seen: Seen::Late, cause: format!("probe: no answer in {:?}", checks.within) }
        }
        Ok(Err(Broken::Connect(error))) => {
            Found { seen: Seen::Unreachable, cause: format!("probe: {}", causes(&error)) }
        }
        Ok(Err(Broken::Answer(why))) => {
            Found { seen: Seen::Unreachable, cause: format!("probe: no valid answer: {why}") }
        }
    }
}

/// Why a probe has no status.
enum Broken {
    Connect(Error),
    Answer(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Answer(error.to_string())
    }
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        Self::Answer(error.to_string())
    }
}

async fn attempt(
    connect: &Connect,
    checks: &ActiveChecks,
    endpoint: &Endpoint,
) -> Result<Seen, Broken> {
    let place = endpoint.as_probed(checks.port, security(checks, endpoint));
    let host = checks.host.as_deref().unwrap_or_else(|| place.host_field());
    let protocol = if checks.http2 { Protocol::Http2 } else { Protocol::Http1 };
    let established = connect.to(&place, host, protocol, checks.within).await;
    let stream = established.map_err(Broken::Connect)?.stream;
    if checks.kind == CheckType::Tcp {
        return Ok(Seen::Connected);
    }
    let is_secure = !matches!(place.security, Security::Plain);
    let status = match checks.http2 {
        true => ask_http2(stream, checks, host, is_secure).await?,
        false => ask_http1(stream, checks, host).await?,
    };
    Ok(Seen::Status(status))
}

/// What protects a probe. A workload's SVID is asked for whatever the check speaks: an impostor is not healthy.
fn security(checks: &ActiveChecks, endpoint: &Endpoint) -> Security {
    match (&endpoint.security, &checks.tls) {
        (Security::Mesh(expected), _) => Security::Mesh(expected.clone()),
        (_, Some(tls)) => Security::Public(tls.clone()),
        (_, None) => Security::Plain,
    }
}

async fn ask_http1(mut stream: Stream, checks: &ActiveChecks, host: &str) -> Result<u16, Broken> {
    let mut request = format!("{} {} HTTP/1.1\r\n", checks.method, checks.path);
    let mut line = |name: &str, value: &str| {
        request.push_str(name);
        request.push_str(": ");
        request.push_str(value);
        request.push_str("\r\n");
    };
    if !checks.fields.iter().any(|(name, _)| name == "host") {
        line("Host", host);
    }
    line("Connection", "close");
    for (name, value) in &checks.fields {
        line(name, value);
    }
    if !checks.body.is_empty() {
        line("Content-Length", itoa::Buffer::new().format(checks.body.len()));
    }
    request.push_str("\r\n");
    request.push_str(&checks.body);
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::with_capacity(1024);
    for _ in 0..MAX_INTERIM {
        let (status, length) = read_status(&mut stream, &mut head).await?;
        if status >= 200 {
            return Ok(status);
        }
        head.drain(..length);
    }
    Err(Broken::Answer("too many interim answers".into()))
}

/// The status of the head that `head` begins with, and that head's length; reads until it is there.
async fn read_status(stream: &mut Stream, head: &mut Vec<u8>) -> Result<(u16, usize), Broken> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(head) {
            Ok(httparse::Status::Complete(length)) => {
                return Ok((response.code.unwrap_or_default(), length));
            }
            Ok(httparse::Status::Partial) if head.len() > MAX_HEAD => {
                return Err(Broken::Answer("the head is too long".into()));
            }
            Ok(httparse::Status::Partial) => {}
            Err(error) => return Err(Broken::Answer(error.to_string())),
        }
        if stream.read_buf(head).await? == 0 {
            return Err(Broken::Answer("the connection was closed".into()));
        }
    }
}

async fn ask_http2(
    stream: Stream,
    checks: &ActiveChecks,
    host: &str,
    is_secure: bool,
) -> Result<u16, Broken> {
    let invalid = |error: http::Error| Broken::Answer(error.to_string());
    let scheme = if is_secure { "https" } else { "http" };
    let mut request = http::Request::builder()
        .method(checks.method)
        .uri(format!("{scheme}://{host}{}", checks.path));
    for (name, value) in checks.fields.iter().filter(|(name, _)| name != "host") {
        request = request.header(name, value);
    }
    let request = request.body(()).map_err(invalid)?;
    let (send, connection) = h2::client::handshake(stream).await?;
    let answer = async {
        let mut send = send.ready().await?;
        let (answer, mut body) = send.send_request(request, checks.body.is_empty())?;
        if !checks.body.is_empty() {
            body.send_data(Bytes::copy_from_slice(checks.body.as_bytes()), true)?;
        }
        Ok(answer.await?.status().as_u16())
    };
    // The connection moves only as it is polled, and ends with this probe.
    let (mut connection, mut answer) = (std::pin::pin!(connection), std::pin::pin!(answer));
    poll_fn(|context| {
        let ended = connection.as_mut().poll(context);
        if let std::task::Poll::Ready(status) = answer.as_mut().poll(context) {
            return std::task::Poll::Ready(status);
        }
        ended.map(|ended| match ended {
            Ok(()) => Err(Broken::Answer("the connection was closed".into())),
            Err(error) => Err(error.into()),
        })
    })
    .await
}
