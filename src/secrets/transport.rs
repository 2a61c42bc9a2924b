//! HTTP towards secret managers: one connection a question, bounded in time and bytes, no redirects.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Error;
use super::settings::SecretSettings;
use crate::mtls;
use crate::rt::{Conversation, whole};

/// Bytes of an answer: AWS keeps 64 KiB in a secret, Google as much, Vault 1 MiB in a request.
const MAX_ANSWER: usize = 2 << 20;
/// Characters of another's error that stand in ours.
const MAX_TOLD: usize = 200;

/// How managers are reached.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    within: Duration,
    authorities: Option<PathBuf>,
    allows_plain: bool,
}

/// What is asked.
pub(super) struct Question {
    pub(super) method: Method,
    pub(super) url: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What was answered.
pub(super) struct Answer {
    /// `scheme://host:port` of who answered.
    pub(super) server: String,
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Answer {
    /// The JSON of the answer.
    pub(super) fn json<T: DeserializeOwned>(&self, expected: &'static str) -> Result<T, Error> {
        // Never the cause: it could show a part of the secret.
        serde_json::from_slice(&self.body)
            .map_err(|_| Error::Shape { server: self.server.clone(), expected })
    }

    /// An answer that is none.
    pub(super) fn refused(&self, told: &str) -> Error {
        let told: String = told.chars().filter(|c| !c.is_control()).take(MAX_TOLD).collect();
        let told = match told.is_empty() {
            true if self.status.is_redirection() => {
                "a redirect, which is not followed: name the server that answers itself".into()
            }
            true => self.status.canonical_reason().unwrap_or("no reason given").to_owned(),
            false => told,
        };
        Error::Status { server: self.server.clone(), status: self.status.as_u16(), told }
    }
}

impl Transport {
    pub(super) fn new(settings: &SecretSettings) -> Self {
        Self {
            within: settings.timeout(),
            authorities: settings.ca.clone(),
            allows_plain: settings.plain_http,
        }
    }

    /// Asks, and reads the whole answer, whatever its status.
    pub(super) async fn ask(&self, question: Question) -> Result<Answer, Error> {
        let server = server_of(&question.url);
        let seconds = self.within.as_secs();
        let late = Error::Late { server: server.clone(), seconds };
        tokio::time::timeout(self.within, self.exchange(server, question))
            .await
            .unwrap_or(Err(late))
    }

    async fn exchange(&self, server: String, question: Question) -> Result<Answer, Error> {
        let url = &question.url;
        let host = url.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_tls = url.scheme_str() == Some("https");
        let is_near = bare == "localhost" || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        if !is_tls && !is_near && !self.allows_plain {
            return Err(Error::Plain(server));
        }
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let connected = TcpStream::connect((bare.as_str(), port)).await;
        let tcp = connected.map_err(|source| Error::Connect { server: server.clone(), source })?;
        let _ = tcp.set_nodelay(true);
        if !is_tls {
            return over(tcp, server, question).await;
        }
        let authorities = self.authorities().await?;
        let tls = mtls::connect_web(tcp, &bare, authorities.as_deref()).await;
        let tls = tls.map_err(|source| Error::Handshake { server: server.clone(), source })?;
        over(tls, server, question).await
    }

    /// Read at each handshake, so that a new one holds at once.
    async fn authorities(&self) -> Result<Option<Vec<CertificateDer<'static>>>, Error> {
        let Some(path) = &self.authorities else { return Ok(None) };
        let pem = tokio::fs::read(path).await;
        let pem = pem.map_err(|source| Error::Read { path: path.clone(), source })?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(Some(certificates)),
            _ => Err(Error::File {
                path: path.clone(),
                why: "expected certificates as PEM (setting secrets.ca)".into(),
            }),
        }
    }
}

async fn over<S>(stream: S, server: String, question: Question) -> Result<Answer, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Question { method, url, headers, body } = question;
    let failed = |source| Error::Exchange { server: server.clone(), source };
    let mut conversation = Conversation::over(stream).await.map_err(failed)?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    let target = url.path_and_query().map_or("/", PathAndQuery::as_str);
    *request.uri_mut() = target.parse().unwrap_or_else(|_| Uri::from_static("/"));
    *request.headers_mut() = headers;
    let headers = request.headers_mut();
    if let Some(authority) = url.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        headers.insert(HOST, host);
    }
    let agent = concat!("wardgate/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let (head, body) = conversation.ask(request).await.map_err(failed)?.into_parts();
    let body = whole(body, MAX_ANSWER).await;
    let body = body.map_err(|source| Error::Unread { server: server.clone(), source })?;
    Ok(Answer { server, status: head.status, body })
}

/// A URL of a manager's resource, with a path behind whatever path it has.
pub(super) fn url(field: &'static str, base: &str, path: &str) -> Result<Uri, Error> {
    let wrong = || Error::Field {
        field,
        why: "expected http://host:port or https://host:port, without a user in it".into(),
    };
    let whole: Uri =
        format!("{}{path}", base.trim_end_matches('/')).parse().map_err(|_| wrong())?;
    let named = whole
        .authority()
        .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
    match whole.scheme_str() {
        Some("http" | "https") if named => Ok(whole),
        _ => Err(wrong()),
    }
}

/// `scheme://host:port`, for sentences.
fn server_of(url: &Uri) -> String {
    let authority = url.authority().map_or("", http::uri::Authority::as_str);
    format!("{}://{authority}", url.scheme_str().unwrap_or_default())
}

/// A path whose parts are encoded (RFC 3986, section 2.3), its slashes kept.
pub(super) fn encoded(path: &str) -> String {
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    let parts: Vec<String> =
        path.split('/').map(|part| utf8_percent_encode(part, KEPT).to_string()).collect();
    parts.join("/")
}

/// A header that no log shows.
pub(super) fn secret_header(field: &'static str, text: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::Field { field, why: "it holds what no header can".into() })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_urls_of_http_without_a_user() {
        let parsed = |base: &str| url("uri", base, "/v1/kv/a").map(|url| url.to_string());
        assert_eq!(parsed("https://v:8200/").unwrap(), "https://v:8200/v1/kv/a");
        assert_eq!(parsed("http://[::1]:8200/below").unwrap(), "http://[::1]:8200/below/v1/kv/a");
        for wrong in ["v:8200", "ftp://v", "https://u:p@v", "https://"] {
            let why = parsed(wrong).unwrap_err().to_string();
            assert!(why.starts_with("uri: expected http"), "{wrong}: {why}");
        }
        assert_eq!(encoded("a b/ü~-._"), "a%20b/%C3%BC~-._");
    }
}
