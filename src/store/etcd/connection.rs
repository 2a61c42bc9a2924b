//! Connections to etcd's members: one at a time, the next one when it fails, with the token that etcd asks for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tracing::debug;

use super::Settings;
use super::tls::tls_config;
use super::wire::generated::auth_client::AuthClient;
use super::wire::generated::kv_client::KvClient;
use super::wire::{generated, innermost, meaning, was_not_sent};
use crate::model::Redacted;
use crate::store::Error;

/// The largest answer that is taken: a page of the largest values (1.5 MiB) would be more, a page of real ones is far less.
pub(super) const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

pub(super) struct Client {
    members: Vec<Member>,
    credentials: Option<(String, Redacted<String>)>,
    pub(super) within: Duration,
    /// So long a watch may say nothing.
    pub(super) silence: Duration,
    current: Mutex<Current>,
}

/// One endpoint, ready to be dialled.
struct Member {
    name: String,
    endpoint: Endpoint,
    tls: Option<(TlsConnector, ServerName<'static>, String)>,
}

#[derive(Default)]
struct Current {
    /// The member in use, or the next to try.
    member: usize,
    connected: Option<Connected>,
    /// How often a connection was made.
    generation: u64,
}

impl Member {
    fn new(url: &str, tls: Option<&TlsConnector>, within: Duration) -> Result<Self, Error> {
        let wrong = |why: &str| {
            Error::Settings(format!(
                "etcd endpoint {url:?}: {why}; expected http://host:port or https://host:port"
            ))
        };
        let uri: http::Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("unknown scheme")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("a path is not used"));
        }
        let host = uri.host().ok_or_else(|| wrong("no host"))?.to_owned();
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(2379));
        let tls = match tls.filter(|_| secure) {
            Some(connector) => {
                let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(bare).map_err(|_| wrong("not a server name"))?;
                Some((connector.clone(), name, address.clone()))
            }
            None => None,
        };
        // TLS is done by our own connector, so the transport below sees plain HTTP/2 either way.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| wrong(&error.to_string()))?
            .connect_timeout(within.min(Duration::from_secs(3)))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            // etcd closes connections that ping it without an open stream; a watch is one.
            .keep_alive_while_idle(false)
            .tcp_nodelay(true);
        Ok(Self { name: url.to_owned(), endpoint, tls })
    }

    async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let Some((connector, name, address)) = self.tls.clone() else {
            return self.endpoint.connect().await;
        };
        let dial = tower::service_fn(move |_: http::Uri| {
            let (connector, name, address) = (connector.clone(), name.clone(), address.clone());
            async move {
                let stream = TcpStream::connect(&address).await?;
                stream.set_nodelay(true)?;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        self.endpoint.connect_with_connector(dial).await
    }
}

/// A connection to one member, with the token that it asks for.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    generation: u64,
}

impl Connected {
    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(super) fn with_token<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

/// May a request that failed be sent once more?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// It changes nothing.
    Always,
    /// Only when it certainly did not reach etcd.
    IfUnsent,
}

impl Client {
    /// Reads the settings and the files they name. Does not connect.
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        if settings.endpoints.is_empty() {
            return Err(Error::Settings("etcd needs at least one endpoint".into()));
        }
        let within = Duration::from_secs(settings.timeout_seconds.max(1));
        let tls = if settings.endpoints.iter().any(|url| url.starts_with("https://")) {
            Some(TlsConnector::from(Arc::new(tls_config(&settings.tls)?)))
        } else {
            None
        };
        let members = settings
            .endpoints
            .iter()
            .map(|url| Member::new(url, tls.as_ref(), within))
            .collect::<Result<_, _>>()?;
        let credentials = match (&settings.user, &settings.password) {
            (Some(user), Some(password)) => Some((user.clone(), password.clone())),
            (None, None) => None,
            _ => return Err(Error::Settings("etcd needs both user and password, or none".into())),
        };
        let silence = Duration::from_secs(settings.watch_silence_seconds.max(1));
        let current = Mutex::new(Current::default());
        Ok(Self { members, credentials, within, silence, current })
    }

    /// The connection in use, or a new one to the first member that answers.
    pub(super) async fn connected(&self) -> Result<Connected, Error> {
        let mut reasons = Vec::new();
        let start = {
            let current = self.current.lock();
            if let Some(connected) = &current.connected {
                return Ok(connected.clone());
            }
            current.member
        };
        for offset in 0..self.members.len() {
            let index = (start + offset) % self.members.len();
            let member = &self.members[index];
            match self.dial(member).await {
                Ok(mut connected) => {
                    let mut current = self.current.lock();
                    current.member = index;
                    current.generation += 1;
                    connected.generation = current.generation;
                    current.connected = Some(connected.clone());
                    return Ok(connected);
                }
                Err(Error::Unreachable(why)) => reasons.push(format!("{}: {why}", member.name)),
                Err(error) => return Err(error),
            }
        }
        Err(Error::Unreachable(reasons.join("; ")))
    }

    async fn dial(&self, member: &Member) -> Result<Connected, Error> {
        let channel = tokio::time::timeout(self.within, member.connect())
            .await
            .map_err(|_| Error::Unreachable("no answer in time".into()))?
            .map_err(|error| Error::Unreachable(innermost(&error)))?;
        let Some((name, password)) = &self.credentials else {
            return Ok(Connected { channel, token: None, generation: 0 });
        };
        let (name, password) = (name.clone(), password.reveal().clone());
        let request = generated::AuthenticateRequest { name, password };
        let mut client = AuthClient::new(channel.clone());
        let answer = tokio::time::timeout(self.within, client.authenticate(request))
            .await
            .map_err(|_| Error::Unreachable("no answer in time".into()))?
            .map_err(|status| meaning(&status))?;
        let token = answer
            .into_inner()
            .token
            .parse()
            .map_err(|_| Error::Refused("etcd gave a token that is no header value".into()))?;
        Ok(Connected { channel, token: Some(token), generation: 0 })
    }

    /// The member does not answer as it should: the next request goes to the next one.
    pub(super) fn give_up_on(&self, failed: &Connected) {
        let mut current = self.current.lock();
        // Somebody else may have found out before and connected anew.
        if current.connected.as_ref().is_some_and(|now| now.generation == failed.generation) {
            current.connected = None;
            current.member = (current.member + 1) % self.members.len();
        }
    }

    pub(super) async fn ask<T, F>(
        &self,
        again: Again,
        request: impl Fn(Connected) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        self.ask_within(self.within, again, request).await
    }

    pub(super) async fn ask_within<T, F>(
        &self,
        within: Duration,
        again: Again,
        request: impl Fn(Connected) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        // One attempt a member, one more for a token that ran out.
        let mut attempts = self.members.len() + 1;
        loop {
            let connected = self.connected().await?;
            attempts -= 1;
            let status = match tokio::time::timeout(within, request(connected.clone())).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            let retry = match status.code() {
                Code::Unauthenticated => self.credentials.is_some(),
                Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled => {
                    again == Again::Always || was_not_sent(&status)
                }
                _ if status.message().contains("auth store is old") => true,
                _ => return Err(meaning(&status)),
            };
            self.give_up_on(&connected);
            if !retry || attempts == 0 {
                return Err(meaning(&status));
            }
            debug!(%status, "etcd: trying again");
        }
    }
}
