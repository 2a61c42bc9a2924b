//! A registry's server, and a line to it: one connection that is kept between requests.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::Error;
use crate::model::Redacted;
use crate::mtls::{self, Alpn, OriginConnector};
use crate::rt::{Conversation, whole};

/// Bytes of an answer at most.
const MAX_ANSWER: usize = 64 << 20;
/// A connection on which nothing comes for this long is probed by the system: a registry may go without a word.
const PROBE_AFTER: Duration = Duration::from_secs(30);

/// How long a server may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Within {
    /// To connect, handshake included.
    pub(super) connect: Duration,
    /// To answer.
    pub(super) answer: Duration,
}

/// Who vouches for a server's name.
#[derive(Clone, Debug)]
pub(super) enum Authorities {
    /// The system's.
    System,
    /// Those of this file, read at each handshake.
    File(PathBuf),
    /// Nobody: the operator wants no verification.
    None,
}

/// A registry's server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// `scheme://host:port`, for logs: without user and password.
    pub(super) name: String,
    authority: String,
    host: String,
    port: u16,
    is_tls: bool,
    authorities: Authorities,
    /// What stands before each path, without a slash at its end.
    base: String,
    /// Who we are, from the URL.
    user: Option<(Redacted<String>, Redacted<String>)>,
    within: Within,
}

impl Server {
    /// `http://[user:password@]host[:port][/base]`.
    ///
    /// # Errors
    /// It is no such URL; the error names `field`.
    pub(super) fn parse(
        field: &str,
        url: &str,
        authorities: Authorities,
        within: Within,
    ) -> Result<Self, Error> {
        // The text itself may hold a password.
        let wrong = || Error::setting(field, "expected http://host:port or https://host:port");
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (place, path) = rest.split_at(end);
        let (user, place) = match place.rsplit_once('@') {
            None => (None, place),
            Some((user, place)) => {
                let (user, password) = user.split_once(':').ok_or_else(wrong)?;
                (Some((decoded(user), decoded(password))), place)
            }
        };
        let uri: Uri = format!("{scheme}://{place}/").parse().map_err(|_| wrong())?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        let is_path = path.bytes().all(|b| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&b));
        if !is_path {
            return Err(wrong());
        }
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self {
            name: format!("{scheme}://{place}"),
            authority: place.to_owned(),
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            is_tls,
            authorities,
            base: path.trim_end_matches('/').to_owned(),
            user,
            within,
        })
    }

    /// The same with `path` behind what stands before each path already.
    pub(super) fn below(mut self, path: &str) -> Self {
        for part in path.split('/').filter(|part| !part.is_empty()) {
            self.base.push('/');
            self.base.push_str(part);
        }
        self
    }

    /// User and password of the URL.
    pub(super) fn user(&self) -> Option<(&str, &str)> {
        self.user.as_ref().map(|(user, password)| (&**user.reveal(), &**password.reveal()))
    }

    /// How long it may take to answer what does not wait by itself.
    pub(super) fn answers_within(&self) -> Duration {
        self.within.answer
    }

    /// An answer that is not what the interface says.
    pub(super) fn shape(&self, path: &str, why: impl Into<String>) -> Error {
        Error::Shape { server: self.name.clone(), path: bare(path), why: why.into() }
    }

    async fn connect(&self) -> Result<Conversation, Error> {
        let within = self.within.connect;
        let connected = tokio::time::timeout(within, self.connect_in_time()).await;
        connected.unwrap_or_else(|_| Err(Error::Late { server: self.name.clone(), within }))
    }

    async fn connect_in_time(&self) -> Result<Conversation, Error> {
        let server = || self.name.clone();
        let unreached = |source| Error::Connect { server: server(), source };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreached)?;
        let _ = tcp.set_nodelay(true);
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(PROBE_AFTER)
            .with_interval(PROBE_AFTER / 3)
            .with_retries(3);
        let _ = socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
        let broken = |source| Error::Exchange { server: server(), source };
        if !self.is_tls {
            return Conversation::over(tcp).await.map_err(broken);
        }
        let refused = |source| Error::Handshake { server: server(), source };
        match &self.authorities {
            Authorities::System => {
                let tls = mtls::connect_web(tcp, &self.host, None).await.map_err(refused)?;
                Conversation::over(tls).await.map_err(broken)
            }
            Authorities::File(path) => {
                let roots = tokio::fs::read(path)
                    .await
                    .map_err(|source| Error::Read { path: path.clone(), source })?;
                let tls = mtls::connect_private(tcp, &self.host, &roots, Alpn::Http1)
                    .await
                    .map_err(refused)?;
                Conversation::over(tls).await.map_err(broken)
            }
            Authorities::None => {
                let anybody = OriginConnector::new(None, None).map_err(refused)?;
                let tls = anybody.connect(tcp, &self.host, Alpn::Http1).await.map_err(refused)?;
                Conversation::over(tls).await.map_err(broken)
            }
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) method: Method,
    /// Path and query, below what stands before each path.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) within: Duration,
}

impl Question {
    pub(super) fn get(server: &Server, path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            within: server.answers_within(),
        }
    }

    /// A form that is posted.
    pub(super) fn post(server: &Server, path: impl Into<String>, form: String) -> Self {
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        Self {
            method: Method::POST,
            body: form.into(),
            headers: [(CONTENT_TYPE, form_type)].into_iter().collect(),
            ..Self::get(server, path)
        }
    }

    /// With a header, when there is one.
    pub(super) fn with(mut self, name: http::HeaderName, value: Option<HeaderValue>) -> Self {
        self.headers.extend(value.map(|value| (name, value)));
        self
    }

    /// With user and password in a header (RFC 7617).
    pub(super) fn with_basic(self, user: Option<(&str, &str)>) -> Self {
        let value = user.and_then(|(user, password)| {
            let text = STANDARD.encode(format!("{user}:{password}"));
            secret_value(&format!("Basic {text}"))
        });
        self.with(AUTHORIZATION, value)
    }
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A connection to a server that is kept between requests, and made anew when it broke.
pub(super) struct Line {
    pub(super) server: Arc<Server>,
    kept: Option<Conversation>,
}

impl Line {
    pub(super) fn to(server: Arc<Server>) -> Self {
        Self { server, kept: None }
    }

    /// Asks, and reads the whole answer. Whoever gives up waiting closes the connection.
    pub(super) async fn ask(&mut self, question: &Question) -> Result<Answer, Error> {
        let late = Error::Late { server: self.server.name.clone(), within: question.within };
        let whole_time = question.within + self.server.within.connect;
        let exchange = async {
            let (conversation, response) = self.open(question).await?;
            let (head, body) = response.into_parts();
            let body = whole(body, MAX_ANSWER)
                .await
                .map_err(|source| Error::Unread { server: self.server.name.clone(), source })?;
            self.kept = Some(conversation);
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(whole_time, exchange).await.unwrap_or(Err(late))
    }

    /// Asks, and reads the JSON of an answer with status 200.
    pub(super) async fn json<T: DeserializeOwned>(
        &mut self,
        question: &Question,
    ) -> Result<T, Error> {
        let answer = self.ask(question).await?;
        self.parse(question, &answer)
    }

    /// The JSON of an answer with status 200.
    pub(super) fn parse<T: DeserializeOwned>(
        &self,
        question: &Question,
        answer: &Answer,
    ) -> Result<T, Error> {
        if answer.status != StatusCode::OK {
            return Err(self.status(question, answer));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| self.server.shape(&question.path, error.to_string()))
    }

    /// An answer with another status than expected.
    pub(super) fn status(&self, question: &Question, answer: &Answer) -> Error {
        Error::Status {
            server: self.server.name.clone(),
            path: bare(&question.path),
            status: answer.status.as_u16(),
        }
    }

    /// Asks, and waits for the head of the answer; its body is the caller's, as is the connection.
    pub(super) async fn open(
        &mut self,
        question: &Question,
    ) -> Result<(Conversation, Response<Incoming>), Error> {
        // Taken out: whoever stops waiting must not leave half an exchange to the next one.
        if let Some(mut kept) = self.kept.take().filter(|kept| !kept.is_over()) {
            // It may have been closed while nobody looked; then nobody has heard the question.
            if let Ok(response) = kept.ask(self.request(question)).await {
                return Ok((kept, response));
            }
        }
        let mut fresh = self.server.connect().await?;
        let response = fresh.ask(self.request(question)).await;
        let response = response
            .map_err(|source| Error::Exchange { server: self.server.name.clone(), source })?;
        Ok((fresh, response))
    }

    /// Takes a connection back whose answer was read to its end.
    pub(super) fn keep(&mut self, conversation: Conversation) {
        self.kept = Some(conversation);
    }

    fn request(&self, question: &Question) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(question.body.clone()));
        *request.method_mut() = question.method.clone();
        let target = format!("{}{}", self.server.base, question.path);
        // What is put into paths is encoded, and the base was judged.
        *request.uri_mut() = target.parse().unwrap_or_else(|_| Uri::from_static("/"));
        let headers = request.headers_mut();
        headers.extend(question.headers.clone());
        if let Ok(authority) = HeaderValue::from_str(&self.server.authority) {
            headers.insert(HOST, authority);
        }
        let agent = concat!("wardgate/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        request
    }
}

/// A header that no log shows.
pub(super) fn secret_value(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A text in a path or a query.
pub(super) fn encoded(text: &str) -> String {
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(text, KEPT).to_string()
}

fn decoded(text: &str) -> Redacted<String> {
    Redacted::new(percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned())
}

/// A path without its query, which may hold a token.
fn bare(path: &str) -> String {
    path.split('?').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Within =
        Within { connect: Duration::from_secs(1), answer: Duration::from_secs(1) };

    #[test]
    fn a_url_gives_place_base_and_user_and_no_error_repeats_a_password() {
        let parse = |url: &str| Server::parse("x.host", url, Authorities::System, WITHIN);
        let server = parse("http://me:p%40ss:word@[::1]:8761/eureka/").unwrap();
        assert_eq!((&*server.name, &*server.host, server.port), ("http://[::1]:8761", "::1", 8761));
        assert_eq!(server.user(), Some(("me", "p@ss:word")));
        assert_eq!(server.base, "/eureka");
        assert_eq!(server.below("/nacos/v1/").base, "/eureka/nacos/v1");
        assert_eq!(parse("https://consul.test").unwrap().port, 443);
        for wrong in ["consul:8500", "ftp://a", "http://", "http://a:b@", "http://u:secret@a b/"] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.starts_with("setting discovery.x.host: expected"), "{wrong}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(!format!("{:?}", parse("http://u:secret@a").unwrap()).contains("secret"));
    }
}
