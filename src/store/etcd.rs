//! etcd 3.4 and later over its native gRPC, in APISIX's key layout.
//!
//! Several endpoints are tried in turn. A write is sent again only when it certainly was not sent before. The watch asks
//! for progress, goes on where it was after a broken connection, and starts again with a `Reset` when etcd has compacted
//! the past away or is not the one it was (another cluster, a lower revision, or a past that differs: a restored backup).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::{Commit, Error, Event, Expect, Listing, Store, Stored, Watch, Write, Written};
use crate::model::{Redacted, Revision};
use crate::rt::Backoff;
use crate::rt::crypto::{tls_provider, tls_signing_key};

mod generated {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    #![allow(clippy::wildcard_imports, clippy::missing_errors_doc, reason = "written by a machine")]
    include!("generated/etcd.rs");
}

use generated::auth_client::AuthClient;
use generated::compare::{CompareResult, CompareTarget, TargetUnion};
use generated::key_event::EventType;
use generated::kv_client::KvClient;
use generated::lease_client::LeaseClient;
use generated::request_op::Request as Operation;
use generated::response_op::Response as Outcome;
use generated::watch_client::WatchClient;
use generated::watch_request::RequestUnion;

/// Entries that one answer to [`Store::list`] may hold; more are asked for in pages of one revision.
const PAGE: i64 = 1000;
/// The largest answer that is taken: a page of the largest values (1.5 MiB) would be more, a page of real ones is far less.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// Etcd limits requests to 1.5 MiB by default, so all of a cluster's history fits its answers many times over.
const LIST_WITHIN: Duration = Duration::from_secs(60);

/// How to reach etcd.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The members: `http://host:2379` or `https://host:2379`.
    #[schemars(length(min = 1))]
    pub endpoints: Vec<String>,
    /// The user, when etcd has authentication on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Redacted<String>>,
    /// Certificates, for `https` endpoints.
    #[serde(default)]
    pub tls: TlsFiles,
    /// Seconds that etcd has to answer a request.
    #[serde(default = "default_timeout_seconds")]
    #[schemars(range(min = 1, max = 600))]
    pub timeout_seconds: u64,
}

const fn default_timeout_seconds() -> u64 {
    5
}

/// The files for `https` endpoints; read once at start.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// PEM of the authorities that etcd's certificate must come from; the system's when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM of the certificate chain that we present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM of its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

impl Settings {
    /// Plain connections to these endpoints.
    pub fn plain(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            user: None,
            password: None,
            tls: TlsFiles::default(),
            timeout_seconds: default_timeout_seconds(),
        }
    }
}

/// The store. It connects when it is first asked, and again whenever that is needed.
pub struct Etcd {
    client: Arc<Client>,
}

struct Client {
    members: Vec<Member>,
    credentials: Option<(String, Redacted<String>)>,
    within: Duration,
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

impl Etcd {
    /// Reads the settings and the files they name. Does not connect.
    ///
    /// # Errors
    /// An endpoint is not a URL of the form that the settings ask for, or a file cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
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
        let current = Mutex::new(Current::default());
        Ok(Self { client: Arc::new(Client { members, credentials, within, current }) })
    }

    /// Makes etcd forget the past up to now, for all its users. Watches that are behind start again with a `Reset`.
    ///
    /// # Errors
    /// etcd is unreachable or refuses.
    pub async fn compact(&self) -> Result<(), Error> {
        let now = self.client.range(range_of(b"\0".to_vec(), Vec::new(), 1)).await?;
        let revision = header(now.header.as_ref()).revision;
        self.client
            .ask(Again::IfUnsent, |channel| async move {
                let request = generated::CompactionRequest { revision, physical: true };
                channel.kv().compact(channel.with_token(request)).await
            })
            .await
            .map(|_| ())
    }
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

fn tls_config(files: &TlsFiles) -> Result<rustls::ClientConfig, Error> {
    let unusable = |path: &Path, why: &dyn std::fmt::Display| {
        Error::Settings(format!("etcd tls: {}: {why}", path.display()))
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, Error> {
        CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| unusable(path, &error))
    };
    let mut roots = rustls::RootCertStore::empty();
    match &files.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(path, &error))?;
            }
        }
        None => {
            let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(Error::Settings("etcd tls: no authority to verify etcd by; set tls.ca".into()));
    }
    let provider = tls_provider();
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Settings(format!("etcd tls: {error}")))?
        .with_root_certificates(roots);
    let mut config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let secret = PrivateKeyDer::from_pem_file(key)
                .map(Zeroizing::new)
                .map_err(|error| unusable(key, &error))?;
            let secret = tls_signing_key(&secret).map_err(|error| unusable(key, &error))?;
            let own = CertifiedKey::new(certificates(cert)?, secret);
            own.keys_match().map_err(|error| unusable(cert, &error))?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
        }
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(Error::Settings("etcd tls: cert and key go together".into())),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A connection to one member, with the token that it asks for.
#[derive(Clone)]
struct Connected {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    generation: u64,
}

impl Connected {
    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    fn with_token<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

/// May a request that failed be sent once more?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// It changes nothing.
    Always,
    /// Only when it certainly did not reach etcd.
    IfUnsent,
}

impl Client {
    /// The connection in use, or a new one to the first member that answers.
    async fn connected(&self) -> Result<Connected, Error> {
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
    fn give_up_on(&self, failed: &Connected) {
        let mut current = self.current.lock();
        // Somebody else may have found out before and connected anew.
        if current.connected.as_ref().is_some_and(|now| now.generation == failed.generation) {
            current.connected = None;
            current.member = (current.member + 1) % self.members.len();
        }
    }

    async fn ask<T, F>(&self, again: Again, request: impl Fn(Connected) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        self.ask_within(self.within, again, request).await
    }

    async fn ask_within<T, F>(
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

    async fn range(
        &self,
        request: generated::RangeRequest,
    ) -> Result<generated::RangeResponse, Error> {
        self.ask(Again::Always, |channel| {
            let request = request.clone();
            async move { channel.kv().range(channel.with_token(request)).await }
        })
        .await
    }

    async fn transact<'k>(
        &self,
        expected: impl Iterator<Item = (&'k str, Expect)>,
        success: Vec<Operation>,
    ) -> Result<generated::TxnResponse, Error> {
        let compare = expected.filter_map(|(key, expect)| {
            let (target, union) = match expect {
                Expect::Anything => return None,
                Expect::Absent => (CompareTarget::Create, TargetUnion::CreateRevision(0)),
                Expect::Revision(revision) => {
                    (CompareTarget::Mod, TargetUnion::ModRevision(signed(revision)))
                }
            };
            Some(generated::Compare {
                result: CompareResult::Equal.into(),
                target: target.into(),
                key: key.into(),
                target_union: Some(union),
            })
        });
        let request = generated::TxnRequest {
            compare: compare.collect(),
            success: success
                .into_iter()
                .map(|operation| generated::RequestOp { request: Some(operation) })
                .collect(),
            failure: Vec::new(),
        };
        let response = self
            .ask(Again::IfUnsent, |channel| {
                let request = request.clone();
                async move { channel.kv().txn(channel.with_token(request)).await }
            })
            .await?;
        if response.succeeded { Ok(response) } else { Err(Error::Conflict) }
    }

    /// All entries below a prefix at one revision, in pages; and the cluster they came from.
    async fn list(&self, prefix: &str) -> Result<(Listing, u64), Error> {
        let (first, end) = bounds(prefix);
        'anew: for _ in 0..3 {
            let mut listing = Listing::default();
            let mut from = first.clone();
            loop {
                let mut request = range_of(from.clone(), end.clone(), PAGE);
                request.revision = signed(listing.revision);
                let page = self
                    .ask_within(LIST_WITHIN, Again::Always, |channel| {
                        let request = request.clone();
                        async move { channel.kv().range(channel.with_token(request)).await }
                    })
                    .await;
                let page = match page {
                    // The pages' revision was compacted between two of them.
                    Err(Error::Refused(why)) if is_compacted(&why) => continue 'anew,
                    page => page?,
                };
                let header = header(page.header.as_ref());
                if listing.revision == 0 {
                    listing.revision = unsigned(header.revision);
                }
                if let Some(last) = page.kvs.last() {
                    from = last.key.clone();
                    from.push(0);
                }
                listing.entries.extend(page.kvs.iter().filter_map(stored_or_skipped));
                if !page.more {
                    return Ok((listing, header.cluster_id));
                }
            }
        }
        Err(Error::Unreachable("etcd compacts faster than it can be read".into()))
    }

    /// Tells changes until the reader goes.
    async fn follow(&self, prefix: String, from: Revision, events: mpsc::Sender<Event>) {
        let mut reader = Reader { position: from, ..Reader::default() };
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            match self.follow_once(&prefix, &mut reader, &events, &mut backoff).await {
                End::ReaderGone => return,
                End::Reset(why) => {
                    info!(why, "etcd: reading everything anew");
                    reader = Reader::default();
                }
                End::Broken(error) => {
                    warn!(%error, "etcd: the watch is interrupted; it goes on when etcd answers");
                    backoff.wait().await;
                }
            }
        }
    }

    async fn follow_once(
        &self,
        prefix: &str,
        reader: &mut Reader,
        events: &mpsc::Sender<Event>,
        backoff: &mut Backoff,
    ) -> End {
        if reader.position == 0 {
            let (listing, cluster) = match self.list(prefix).await {
                Ok(listed) => listed,
                Err(error) => return End::Broken(error),
            };
            reader.position = listing.revision;
            reader.cluster = Some(cluster);
            reader.witness =
                listing.entries.iter().max_by_key(|stored| stored.modified).map(|stored| Witness {
                    key: stored.key.clone(),
                    revision: stored.modified,
                    present: true,
                });
            if events.send(Event::Reset(listing)).await.is_err() {
                return End::ReaderGone;
            }
        } else {
            match self.is_the_same(reader).await {
                Ok(None) => {}
                Ok(Some(why)) => return End::Reset(why),
                Err(error) => return End::Broken(error),
            }
        }
        let (key, range_end) = bounds(prefix);
        let create = generated::WatchCreateRequest {
            key,
            range_end,
            start_revision: signed(reader.position + 1),
            progress_notify: true,
            fragment: true,
            ..generated::WatchCreateRequest::default()
        };
        let connected = match self.connected().await {
            Ok(connected) => connected,
            Err(error) => return End::Broken(error),
        };
        // The sending half stays open as long as the watch: etcd ends it otherwise.
        let (requests, outgoing) = mpsc::channel(1);
        let create =
            generated::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        if requests.send(create).await.is_err() {
            return End::Broken(Error::Unreachable("the watch was not sent".into()));
        }
        let mut request = connected.with_token(ReceiverStream::new(outgoing));
        // A member that lost its leader says so instead of staying silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut client =
            WatchClient::new(connected.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
        let broken = |status: &Status| {
            self.give_up_on(&connected);
            End::Broken(meaning(status))
        };
        let mut answers = match tokio::time::timeout(self.within, client.watch(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return broken(&status),
            Err(_) => return broken(&Status::deadline_exceeded("no answer in time")),
        };
        loop {
            let answer = match answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return broken(&Status::unavailable("etcd ended the watch")),
                Err(status) => return broken(&status),
            };
            backoff.reset();
            let header = header(answer.header.as_ref());
            if answer.compact_revision > 0 {
                return End::Reset("the past was compacted");
            }
            if unsigned(header.revision) < reader.position {
                return End::Reset("etcd's revision went back: a restored backup");
            }
            if answer.canceled {
                return broken(&Status::unavailable(answer.cancel_reason));
            }
            if answer.created {
                reader.cluster.get_or_insert(header.cluster_id);
                continue;
            }
            let mut last = None;
            for event in answer.events {
                let Some((event, witness)) = told(event) else { continue };
                last = Some(witness);
                if let Some(event) = event
                    && events.send(event).await.is_err()
                {
                    return End::ReaderGone;
                }
            }
            // A revision may come in several fragments; only after the last one nothing of it is missing.
            match last {
                Some(witness) if !answer.fragment => {
                    reader.position = witness.revision;
                    reader.witness = Some(witness);
                }
                // No events and no fragment: progress.
                None if !answer.fragment => reader.position = unsigned(header.revision),
                _ => {}
            }
        }
    }

    /// Is this the etcd whose past the reader knows? Otherwise, why not.
    async fn is_the_same(&self, reader: &Reader) -> Result<Option<&'static str>, Error> {
        let request = match &reader.witness {
            Some(witness) => generated::RangeRequest {
                key: witness.key.clone().into(),
                revision: signed(witness.revision),
                ..generated::RangeRequest::default()
            },
            None => range_of(b"\0".to_vec(), Vec::new(), 1),
        };
        let answer = match self.range(request).await {
            Err(Error::Refused(why)) if is_compacted(&why) => {
                return Ok(Some("the past was compacted"));
            }
            Err(Error::Refused(why)) if why.contains("future revision") => {
                return Ok(Some("etcd's revision went back: a restored backup"));
            }
            answer => answer?,
        };
        let header = header(answer.header.as_ref());
        if reader.cluster.is_some_and(|cluster| cluster != header.cluster_id) {
            return Ok(Some("another etcd cluster answers"));
        }
        if unsigned(header.revision) < reader.position {
            return Ok(Some("etcd's revision went back: a restored backup"));
        }
        let Some(witness) = &reader.witness else { return Ok(None) };
        let found = answer.kvs.first().map(|found| unsigned(found.mod_revision));
        let same = if witness.present { found == Some(witness.revision) } else { found.is_none() };
        Ok((!same).then_some("etcd's past is not the one that was read: a restored backup"))
    }
}

/// Where a watch stands.
#[derive(Default)]
struct Reader {
    /// All up to this revision was told; 0 before the first reading.
    position: Revision,
    cluster: Option<u64>,
    witness: Option<Witness>,
}

/// The last change that was told: an etcd that does not remember it is not the one that told it.
struct Witness {
    key: String,
    revision: Revision,
    present: bool,
}

/// Why one connection's watch ended.
enum End {
    ReaderGone,
    Reset(&'static str),
    Broken(Error),
}

/// A change as it came; its event is missing when the value is not JSON and the previous one stays in force.
fn told(event: generated::KeyEvent) -> Option<(Option<Event>, Witness)> {
    let removed = event.r#type() == EventType::Delete;
    let entry = event.kv?;
    let key = String::from_utf8(entry.key.clone()).ok()?;
    let revision = unsigned(entry.mod_revision);
    let witness = Witness { key: key.clone(), revision, present: !removed };
    let event = if removed {
        Some(Event::Delete { key, revision })
    } else {
        stored_or_skipped(&entry).map(Event::Put)
    };
    Some((event, witness))
}

fn stored(entry: &generated::KeyValue) -> Result<Stored, Error> {
    let key = String::from_utf8_lossy(&entry.key).into_owned();
    let Ok(value) = serde_json::from_slice(&entry.value) else {
        return Err(Error::NotJson { key });
    };
    let (created, modified) = (unsigned(entry.create_revision), unsigned(entry.mod_revision));
    Ok(Stored { key, value, created, modified })
}

fn stored_or_skipped(entry: &generated::KeyValue) -> Option<Stored> {
    match stored(entry) {
        Ok(stored) => Some(stored),
        Err(error) => {
            // APISIX's folders are keys with a slash at the end and the value `init_dir`.
            if !matches!(&error, Error::NotJson { key } if key.ends_with('/')) {
                warn!(%error, "etcd: an entry is left out");
            }
            None
        }
    }
}

/// etcd's numbers are signed and never negative.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn header(header: Option<&generated::ResponseHeader>) -> generated::ResponseHeader {
    header.cloned().unwrap_or_default()
}

fn range_of(key: Vec<u8>, range_end: Vec<u8>, limit: i64) -> generated::RangeRequest {
    generated::RangeRequest { key, range_end, limit, ..generated::RangeRequest::default() }
}

/// The range of all keys with this prefix: up to the prefix with its last byte raised by one.
fn bounds(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    if prefix.is_empty() {
        return (vec![0], vec![0]);
    }
    let mut end = prefix.as_bytes().to_vec();
    // A byte of UTF-8 is never 0xff, so the last one can always be raised.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (prefix.into(), end)
}

fn is_compacted(why: &str) -> bool {
    why.contains("has been compacted")
}

/// Did the request fail before its first byte could leave?
fn was_not_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// What etcd's answer means for the caller.
fn meaning(status: &Status) -> Error {
    let text = status.message().trim_start_matches("etcdserver: ").to_owned();
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            let cause = std::error::Error::source(status).map(innermost);
            Error::Unreachable(cause.unwrap_or(text))
        }
        _ => Error::Refused(text),
    }
}

impl Etcd {
    /// A new lease of so many seconds; 0 where none is asked for.
    async fn lease(&self, ttl: Option<u64>) -> Result<i64, Error> {
        let Some(ttl) = ttl else { return Ok(0) };
        let request = generated::LeaseGrantRequest { ttl: signed(ttl.max(1)), id: 0 };
        let grant = self.client.ask(Again::IfUnsent, |connected| async move {
            let mut client = LeaseClient::new(connected.channel.clone());
            client.lease_grant(connected.with_token(request)).await
        });
        Ok(grant.await?.id)
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Stored>, Error> {
        let answer = self.client.range(range_of(key.into(), Vec::new(), 0)).await?;
        answer.kvs.first().map(stored).transpose()
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.client.list(prefix).await.map(|(listing, _)| listing)
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Commit, Error> {
        let mut operations = Vec::with_capacity(writes.len());
        for Write { key, value, ttl, .. } in &writes {
            let key = key.as_str().into();
            operations.push(match value {
                Some(value) => Operation::RequestPut(generated::PutRequest {
                    key,
                    value: value.to_string().into(),
                    lease: self.lease(*ttl).await?,
                    // It tells since when the key is there.
                    prev_kv: true,
                }),
                None => Operation::RequestDeleteRange(generated::DeleteRangeRequest {
                    key,
                    ..generated::DeleteRangeRequest::default()
                }),
            });
        }
        let expected = writes.iter().map(|write| (write.key.as_str(), write.expect));
        let answer = self.client.transact(expected, operations).await?;
        let revision = unsigned(header(answer.header.as_ref()).revision);
        let outcomes = answer.responses.into_iter().map(|response| response.response);
        let written = writes.into_iter().zip(outcomes).map(|(write, outcome)| match outcome {
            Some(Outcome::ResponsePut(put)) => {
                let created = put.prev_kv.map_or(revision, |entry| unsigned(entry.create_revision));
                let (key, value) = (write.key, write.value.unwrap_or_default());
                Ok(Written::Put(Stored { key, value, created, modified: revision }))
            }
            Some(Outcome::ResponseDeleteRange(gone)) if gone.deleted > 0 => Ok(Written::Removed),
            Some(Outcome::ResponseDeleteRange(_)) => Ok(Written::WasAbsent),
            _ => Err(Error::Refused("etcd did not say what it had written".into())),
        });
        let written = written.collect::<Result<_, Error>>()?;
        Ok(Commit { revision, written })
    }

    fn watch(&self, prefix: &str, from: Revision) -> Watch {
        let (client, prefix) = (self.client.clone(), prefix.to_owned());
        Watch::fed_by(|events| async move { client.follow(prefix, from, events).await })
    }
}
