//! The SPIFFE Workload API on a Unix socket: a caller is attested, and gets and keeps the identities it is registered for.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use super::socket_authority::SocketAuthority;
use super::source::{changed, pause, spread};
use super::{
    Announcement, Attestor, Authority, Caller, Entries, Error, Evidence, Keys, RegistrationEntry,
    UnixAttestor,
};
use crate::identity::workload_proto::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use crate::identity::workload_proto::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest,
    X509svidResponse,
};
use crate::identity::{Svid, TrustBundles};
use crate::rt::{DrainGuard, Live, Sockets, Tasks};

mod jwt;

/// Callers at once; the next ones wait in the socket's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Calls at once of one caller.
const MAX_CALLS: u32 = 16;

/// The server of the SPIFFE Workload API. Any local process may connect; what it gets is decided by its attestation.
pub struct WorkloadApi {
    path: PathBuf,
    listener: UnixListener,
    sockets: Sockets,
    service: Service,
}

impl fmt::Debug for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApi").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What every call needs.
#[derive(Clone)]
struct Service {
    authority: Arc<Authority>,
    announced: Live<Announcement>,
    entries: Live<Entries>,
    federated: Live<TrustBundles>,
    jwt_keys: Live<Keys>,
    attestor: Arc<dyn Attestor>,
    guard: Option<DrainGuard>,
}

impl WorkloadApi {
    /// Takes the socket at `path`, which any local process may then connect to. Its directory is made when it is missing; a
    /// socket that nobody serves any more is replaced. To be called within a runtime.
    ///
    /// `federated` are the bundles of other trust domains; a workload gets those that its entries name.
    ///
    /// # Errors
    /// Another process serves the socket, something else is in its place, or the file system refuses.
    pub fn bind(
        path: &Path,
        authority: Arc<Authority>,
        entries: Live<Entries>,
        federated: Live<TrustBundles>,
    ) -> Result<Self, Error> {
        Self::bind_among(&Sockets::new(), path, authority, entries, federated)
    }

    /// As [`WorkloadApi::bind`]; the socket may have been handed to this process, and may be handed on.
    ///
    /// # Errors
    /// As [`WorkloadApi::bind`].
    pub fn bind_among(
        sockets: &Sockets,
        path: &Path,
        authority: Arc<Authority>,
        entries: Live<Entries>,
        federated: Live<TrustBundles>,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        let listener = sockets.unix("workload", path, listen, failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let attestor = Arc::new(UnixAttestor::new(entries.clone()));
        authority.jwt().tend()?;
        let (announced, jwt_keys) = (authority.announced(), authority.jwt().keys());
        let service =
            Service { authority, announced, entries, federated, jwt_keys, attestor, guard: None };
        Ok(Self { path: path.to_owned(), listener, sockets: sockets.clone(), service })
    }

    /// Attests with `attestor` instead of by Unix user, group and program.
    #[must_use]
    pub fn attesting_with(mut self, attestor: Arc<dyn Attestor>) -> Self {
        self.service.attestor = attestor;
        self
    }

    /// Serves until the end is asked for; then streams end, and the socket is removed unless another process serves it.
    ///
    /// # Errors
    /// The server fails as a whole.
    pub async fn serve(self, mut guard: DrainGuard) -> Result<(), Error> {
        let Self { path, listener, sockets, mut service } = self;
        tokio::select! {
            () = sockets.opened() => {}
            () = guard.asked() => return Ok(()),
        }
        service.guard = Some(guard.clone());
        let mut tending = Tasks::new();
        tending.add(tend(service.authority.clone()));
        let api = SpiffeWorkloadApiServer::new(service).max_decoding_message_size(64 * 1024);
        let served = Server::builder()
            .max_concurrent_streams(MAX_CALLS)
            .timeout(Duration::from_secs(10))
            .add_service(api)
            .serve_with_incoming_shutdown(incoming(listener), guard.asked())
            .await;
        if !sockets.do_live_on() {
            let _ = std::fs::remove_file(&path);
        }
        served.map_err(|source| Error::Serve { path, source })
    }
}

/// Keeps the keys for JWT-SVIDs up to date also while nobody asks for a token.
async fn tend(authority: Arc<Authority>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        if let Err(error) = authority.jwt().tend() {
            tracing::error!(%error, "the keys of JWT-SVIDs cannot be kept up to date");
        }
    }
}

fn listen(path: &Path) -> Result<std::os::unix::net::UnixListener, Error> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    if let Some(directory) = path.parent()
        && !directory.as_os_str().is_empty()
        && !directory.exists()
    {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(|source| Error::Write { path: directory.to_owned(), source })?;
    }
    match path.symlink_metadata() {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::NotASocket { path: path.to_owned() });
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) => return Err(Error::SocketTaken { path: path.to_owned() }),
            Err(error) => return Err(failed(error)),
        },
        Err(_) => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
    let everybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(path, everybody).map_err(failed)?;
    Ok(listener)
}

/// Connections with their callers. One that cannot be attested is closed; a failing `accept` is waited out.
fn incoming(listener: UnixListener) -> impl Stream<Item = Result<Connection, io::Error>> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    unfold((listener, places), |(listener, places)| async {
        loop {
            let place = places.clone().acquire_owned().await.ok()?;
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the Workload API cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match Caller::of(&stream) {
                Ok(caller) => {
                    let caller = Arc::new(caller);
                    let stream = SocketAuthority::new(stream);
                    let connection = Connection { stream, caller, _place: place };
                    return Some((Ok(connection), (listener, places)));
                }
                Err(error) => tracing::warn!(%error, "a caller of the Workload API was sent away"),
            }
        }
    })
}

/// A connection and who is behind it.
struct Connection {
    stream: SocketAuthority<UnixStream>,
    caller: Arc<Caller>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Arc<Caller>;
    fn connect_info(&self) -> Arc<Caller> {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Service {
    /// The caller of a request that bears the header which keeps browsers and forgers of requests out.
    fn subscribe<T>(&self, request: &Request<T>) -> Result<Subscription, Status> {
        let header = request.metadata().get("workload.spiffe.io");
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument(
                "security header missing from request: expected workload.spiffe.io: true",
            ));
        }
        let caller = request.extensions().get::<Arc<Caller>>();
        let caller = caller.ok_or_else(|| Status::internal("the caller is not known"))?.clone();
        let (heard, soon) = (self.announced.load(), None);
        Ok(Subscription { service: self.clone(), caller, sent: None, heard, soon, is_over: false })
    }

    /// What a caller with these entries verifies with: our own domain's bundle and, of the others, those that its entries name.
    fn bundles(&self, entries: &[Arc<RegistrationEntry>]) -> TrustBundles {
        let federated = self.federated.load();
        let named = entries.iter().flat_map(|entry| &entry.federates_with);
        let mut bundles: TrustBundles =
            named.filter_map(|domain| federated.find(domain).cloned()).collect();
        bundles.insert(self.authority.bundle());
        bundles
    }
}

/// One open stream of a caller.
struct Subscription {
    service: Service,
    caller: Arc<Caller>,
    sent: Option<Sent>,
    /// What the authority had announced when the caller was told last.
    heard: Arc<Announcement>,
    /// When to tell it what is new and not urgent.
    soon: Option<Instant>,
    is_over: bool,
}

/// What the caller has.
struct Sent {
    entries: Vec<Arc<RegistrationEntry>>,
    bundles: TrustBundles,
    renew_at: Option<Instant>,
}

impl Subscription {
    /// Waits until the caller must hear something new: at once the first time, then when its entries or the bundles changed,
    /// or when its SVIDs are due. `None` when the stream is over.
    async fn due(&mut self) -> Option<Result<(Vec<Arc<RegistrationEntry>>, TrustBundles), Status>> {
        if self.is_over {
            return None;
        }
        loop {
            let entries = match self.entitled().await {
                Ok(entries) => entries,
                Err(status) => {
                    self.is_over = true;
                    return Some(Err(status));
                }
            };
            let announced = self.service.announced.load();
            let bundles = self.service.bundles(&entries);
            let now = Instant::now();
            let renew_at = match &self.sent {
                None => Some(now),
                Some(sent) if sent.entries != entries || sent.bundles != bundles => Some(now),
                // Who is trusted no longer is for all to know at once.
                Some(_) if self.heard.revoked != announced.revoked => Some(now),
                Some(sent) => {
                    let is_news = (&self.heard.root, &self.heard.lists)
                        != (&announced.root, &announced.lists);
                    if is_news && self.soon.is_none() {
                        // Nobody would be the worse for hearing it a little later, and all at once would be a burst.
                        let pause = sent.renew_at.map(|at| at.saturating_duration_since(now));
                        self.soon = Some(now + spread(pause.unwrap_or_default()));
                    }
                    sent.renew_at.into_iter().chain(self.soon).min()
                }
            };
            if renew_at.is_some_and(|at| at <= now) {
                (self.heard, self.soon) = (announced, None);
                return Some(Ok((entries, bundles)));
            }
            let renewal = async {
                match renew_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let asked = async {
                match &mut self.service.guard {
                    Some(guard) => guard.asked().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed(&mut self.service.entries) => {}
                () = changed(&mut self.service.federated) => {}
                () = changed(&mut self.service.jwt_keys) => {}
                () = changed(&mut self.service.announced) => {}
                () = renewal => {}
                () = asked => return None,
            }
        }
    }

    /// The caller's entries now. Attested anew each time: it may have changed its program, or be gone.
    async fn entitled(&self) -> Result<Vec<Arc<RegistrationEntry>>, Status> {
        let shown = self.service.attestor.attest(&self.caller).await.map_err(|error| {
            tracing::warn!(%error, pid = self.caller.pid(), "a caller of the Workload API was sent away");
            Status::permission_denied("no identity issued: the caller cannot be attested")
        })?;
        let entries = self.service.entries.load().matching(&shown);
        if entries.is_empty() {
            tracing::warn!(
                uid = self.caller.uid,
                gid = self.caller.gid,
                pid = self.caller.pid(),
                "no registration entry for this caller of the Workload API"
            );
            return Err(Status::permission_denied("no identity issued"));
        }
        Ok(entries)
    }

    async fn next_svids(&mut self) -> Option<Result<X509svidResponse, Status>> {
        let (entries, bundles) = match self.due().await? {
            Ok(due) => due,
            Err(status) => return Some(Err(status)),
        };
        let own = self.service.authority.bundle();
        let bundle = own.to_der();
        let mut svids = Vec::with_capacity(entries.len());
        let mut renew_at = None;
        for entry in &entries {
            let evidence = Evidence {
                by: "workload api".to_owned(),
                selectors: entry.selectors.iter().map(ToString::to_string).collect(),
            };
            let issued = self.service.authority.issue_to(
                &entry.spiffe_id,
                entry.ttl,
                &entry.dns_names,
                &evidence,
            );
            let svid = match issued {
                Ok(svid) => svid,
                Err(error) => {
                    tracing::error!(%error, id = %entry.spiffe_id, "cannot issue an SVID");
                    self.is_over = true;
                    return Some(Err(Status::unavailable("the authority cannot issue now")));
                }
            };
            tracing::info!(
                id = %svid.id, serial = %svid.serial, pid = self.caller.pid(), uid = self.caller.uid,
                "issued an SVID over the Workload API"
            );
            let left = svid.seconds_left(self.service.authority.clock().now());
            let left = Duration::from_secs(u64::try_from(left).unwrap_or(0));
            let due = Instant::now() + pause(left);
            renew_at = Some(renew_at.map_or(due, |at: Instant| at.min(due)));
            svids.push(message(&svid, &entry.hint, bundle.clone()));
        }
        let federated_bundles = bundles
            .iter()
            .filter(|other| other.domain != own.domain)
            .map(|other| (other.domain.id().to_string(), other.to_der()))
            .collect();
        self.sent = Some(Sent { entries, bundles, renew_at });
        Some(Ok(X509svidResponse { svids, crl: self.lists(), federated_bundles }))
    }

    async fn next_bundles(&mut self) -> Option<Result<X509BundlesResponse, Status>> {
        let mut told_lists = self.sent.is_some().then(|| self.heard.lists.clone());
        loop {
            let (entries, bundles) = match self.due().await? {
                Ok(due) => due,
                Err(status) => return Some(Err(status)),
            };
            // Other entries do not change what this stream tells.
            let is_news = self.sent.as_ref().is_none_or(|sent| sent.bundles != bundles)
                || told_lists.as_ref() != Some(&self.heard.lists);
            told_lists = Some(self.heard.lists.clone());
            let told: HashMap<_, _> = bundles
                .iter()
                .map(|bundle| (bundle.domain.id().to_string(), bundle.to_der()))
                .collect();
            self.sent = Some(Sent { entries, bundles, renew_at: None });
            if is_news {
                return Some(Ok(X509BundlesResponse { crl: self.lists(), bundles: told }));
            }
        }
    }

    /// The revocation lists of our own trust domain.
    fn lists(&self) -> Vec<Vec<u8>> {
        self.heard.lists.iter().map(|list| list.to_vec()).collect()
    }
}

fn message(svid: &Svid, hint: &str, bundle: Vec<u8>) -> X509svid {
    X509svid {
        spiffe_id: svid.id.to_string(),
        x509_svid: svid.chain.iter().flat_map(|one| one.iter().copied()).collect(),
        x509_svid_key: svid.key.secret_der().to_vec(),
        bundle,
        hint: hint.to_owned(),
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let subscription = self.subscribe(&request)?;
        let messages = unfold(subscription, async |mut subscription| {
            Some((subscription.next_svids().await?, subscription))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let subscription = self.subscribe(&request)?;
        let messages = unfold(subscription, async |mut subscription| {
            Some((subscription.next_bundles().await?, subscription))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let subscription = self.subscribe(&request)?;
        subscription.tokens(request.get_ref()).await.map(Response::new)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let subscription = self.subscribe(&request)?;
        let messages = unfold(subscription, async |mut subscription| {
            Some((subscription.next_jwt_bundles().await?, subscription))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let subscription = self.subscribe(&request)?;
        subscription.validate(request.get_ref()).await.map(Response::new)
    }
}
