//! `Server`: a server that a plugin asks while a request waits: bounded in time and bytes, over connections that stay open.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::model::Invalid;
use crate::mtls::{Alpn, public_client_config};
use crate::rt::{self, Conversation, whole};

/// Bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;

/// How a server may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// From connecting to the last byte of the answer.
    pub within: Duration,
    /// The server's certificate must be one that the system trusts. Only an operator's explicit word may turn that off.
    pub verify: bool,
    /// How long a connection may wait for the next question, and how many may; none is kept without.
    pub keep: Option<(Duration, usize)>,
}

/// A server of the operator's, by a URL.
#[derive(Debug)]
pub struct Server {
    url: Uri,
    host: String,
    port: u16,
    is_tls: bool,
    terms: Terms,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    conversation: Conversation,
    until: Instant,
}

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Idle")
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The method.
    pub method: Method,
    /// What comes behind the server's own path; with its query.
    pub path: String,
    /// Header fields beside those of framing.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Asking twice would not be the same as once: a connection that may be broken is not tried.
    pub is_once: bool,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unanswered {
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// Nobody listens there, or the name has no address.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The server did not prove that it is the one, or speaks no TLS.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// This host cannot make the TLS connection.
    #[error("TLS cannot be used")]
    Tls(#[source] crate::mtls::Error),
    /// The connection broke, or it is no HTTP.
    #[error("the server gave no valid answer")]
    Exchange(#[source] hyper::Error),
    /// The body is too long, or broke off.
    #[error("the answer cannot be read")]
    Unread(#[source] rt::Unread),
}

impl Unanswered {
    /// The sentence with its causes, for the log.
    pub fn told(&self) -> String {
        rt::causes(self)
    }
}

impl Question {
    /// Nothing but a path below the server's.
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            is_once: false,
        }
    }

    /// A body of this type.
    pub fn post(path: impl Into<String>, kind: &'static str, body: impl Into<Bytes>) -> Self {
        let mut question = Self { method: Method::POST, body: body.into(), ..Self::get(path) };
        question.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
        question
    }
}

impl Server {
    /// `http://` or `https://`, host, port and whatever path and query.
    ///
    /// # Errors
    /// It is no such URL; the sentence names `field`. It does not repeat the URL, which may hold a password.
    pub fn new(field: &str, url: &str, terms: Terms) -> Result<Self, Invalid> {
        let wrong = || {
            Invalid::new(format!(
                "{field}: http://host or https://host is expected, without a user in it"
            ))
        };
        let url: Uri = url.parse().map_err(|_| wrong())?;
        let is_tls = match url.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = url.authority().ok_or_else(wrong)?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self { host, port, is_tls, terms, idle: Mutex::default(), url })
    }

    /// Scheme, host and port, for logs.
    pub fn name(&self) -> String {
        format!("{}://{}:{}", if self.is_tls { "https" } else { "http" }, self.host, self.port)
    }

    /// Asks, and reads the whole answer, whatever its status. Redirects are not followed.
    ///
    /// # Errors
    /// There is no answer in time, or none that can be read.
    pub async fn ask(&self, question: &Question) -> Result<Answer, Unanswered> {
        let within = self.terms.within;
        let asked = tokio::time::timeout(within, self.exchange(question)).await;
        asked.unwrap_or(Err(Unanswered::Late(within)))
    }

    async fn exchange(&self, question: &Question) -> Result<Answer, Unanswered> {
        let (conversation, response) = self.open(question).await?;
        let (head, body) = response.into_parts();
        let body = whole(body, MAX_ANSWER).await.map_err(Unanswered::Unread)?;
        self.keep(conversation);
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    async fn open(
        &self,
        question: &Question,
    ) -> Result<(Conversation, http::Response<hyper::body::Incoming>), Unanswered> {
        if !question.is_once
            && let Some(mut kept) = self.kept()
        {
            // It may have been closed while nobody looked; then nobody has heard the question.
            if let Ok(response) = kept.ask(self.request(question)).await {
                return Ok((kept, response));
            }
        }
        let mut fresh = self.connect().await?;
        let response = fresh.ask(self.request(question)).await.map_err(Unanswered::Exchange)?;
        Ok((fresh, response))
    }

    fn kept(&self) -> Option<Conversation> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        idle.retain(|idle| idle.until > now && !idle.conversation.is_over());
        idle.pop().map(|idle| idle.conversation)
    }

    fn keep(&self, conversation: Conversation) {
        let Some((within, most)) = self.terms.keep else { return };
        let mut idle = self.idle.lock();
        if idle.len() < most && !conversation.is_over() {
            idle.push(Idle { conversation, until: Instant::now() + within });
        }
    }

    async fn connect(&self) -> Result<Conversation, Unanswered> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await;
        let tcp = tcp.map_err(Unanswered::Connect)?;
        let _ = tcp.set_nodelay(true);
        if !self.is_tls {
            return Conversation::over(tcp).await.map_err(Unanswered::Exchange);
        }
        let config =
            public_client_config(self.terms.verify, Alpn::Http1).map_err(Unanswered::Tls)?;
        let name = rustls_pki_types::ServerName::try_from(self.host.clone())
            .map_err(|error| Unanswered::Handshake(io::Error::other(error)))?;
        let tls = TlsConnector::from(config).connect(name, tcp).await;
        let tls = tls.map_err(Unanswered::Handshake)?;
        Conversation::over(tls).await.map_err(Unanswered::Exchange)
    }

    fn request(&self, question: &Question) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(question.body.clone()));
        *request.method_mut() = question.method.clone();
        let own = self.url.path_and_query().map_or("/", PathAndQuery::as_str);
        let target = match question.path.is_empty() {
            true => own.to_owned(),
            false => format!("{}{}", own.trim_end_matches('/'), question.path),
        };
        // What plugins put into paths is encoded.
        *request.uri_mut() = target.parse().unwrap_or_else(|_| Uri::from_static("/"));
        let headers = request.headers_mut();
        headers.extend(question.headers.clone());
        if !headers.contains_key(HOST)
            && let Some(authority) = self.url.authority()
            && let Ok(authority) = HeaderValue::from_str(authority.as_str())
        {
            headers.insert(HOST, authority);
        }
        let agent = concat!("wardgate/", env!("CARGO_PKG_VERSION"));
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(agent));
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn terms(keep: usize) -> Terms {
        let keep = (keep > 0).then_some((Duration::from_secs(60), keep));
        Terms { within: Duration::from_secs(20), verify: true, keep }
    }

    /// Answers each request with the number of its connection.
    async fn counting() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        crate::rt::spawn(async move {
            let mut tasks = crate::rt::Tasks::new();
            for number in 1.. {
                let (mut tcp, _) = listener.accept().await.unwrap();
                tasks.add(async move {
                    let mut seen = Vec::new();
                    while let Ok(byte) = tcp.read_u8().await {
                        seen.push(byte);
                        if seen.ends_with(b"\r\n\r\n") {
                            let answer =
                                format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
                            tcp.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn connections_are_kept_as_long_as_the_terms_say() {
        let address = counting().await;
        for (keep, expected) in [(1, ["1", "1", "2"]), (0, ["3", "4", "5"])] {
            let server = Server::new("uri", &format!("http://{address}/x"), terms(keep)).unwrap();
            for (at, expected) in expected.into_iter().enumerate() {
                // The third one may be asked once only, and no kept connection is good enough.
                let question = Question { is_once: at == 2, ..Question::get("") };
                assert_eq!(server.ask(&question).await.unwrap().body, expected);
            }
        }
    }

    #[tokio::test]
    async fn nobody_and_silence_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let late = Terms { within: Duration::from_millis(50), ..terms(1) };
        let server = Server::new("uri", &format!("http://{address}"), late).unwrap();
        assert!(matches!(server.ask(&Question::get("")).await, Err(Unanswered::Late(_))));
        drop(listener);
        let server = Server::new("uri", &format!("http://{address}"), terms(1)).unwrap();
        assert!(matches!(server.ask(&Question::get("")).await, Err(Unanswered::Connect(_))));
    }

    #[test]
    fn a_url_is_one_of_http_without_a_user() {
        for good in ["http://a", "https://a:1/b?c=d", "http://[::1]:80/"] {
            assert!(Server::new("uri", good, terms(0)).is_ok(), "{good}");
        }
        for bad in ["", "a", "ftp://a", "http://", "https://u:s3cret@a", "http://a b", "/a"] {
            let why = Server::new("uri", bad, terms(0)).unwrap_err().to_string();
            assert!(why.starts_with("uri: http://host") && !why.contains("s3cret"), "{bad}: {why}");
        }
    }
}
