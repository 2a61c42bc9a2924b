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

use super::proto::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use super::proto::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse,
    X509svid, X509svidRequest, X509svidResponse,
};
use super::source::{changed, pause};
use super::{Attestor, Authority, Caller, Entries, Error, RegistrationEntry, UnixAttestor};
use crate::identity::{Svid, TrustBundles};
use crate::rt::{DrainGuard, Live};

/// Callers at once; the next ones wait in the socket's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Calls at once of one caller.
const MAX_CALLS: u32 = 16;

/// The server of the SPIFFE Workload API. Any local process may connect; what it gets is decided by its attestation.
pub struct WorkloadApi {
    path: PathBuf,
    listener: UnixListener,
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
    entries: Live<Entries>,
    federated: Live<TrustBundles>,
    attestor: Arc<dyn Attestor>,
    guard: Option<DrainGuard>,
}

impl WorkloadApi {
    /// Takes the socket at `path`, which any local process may then connect to. Its directory is made when it is missing; a
    /// socket that nobody serves any more is replaced. To be called within a runtime.
    ///
    /// `federated` are the bundles of other trust domains that every workload may verify with.
    ///
    /// # Errors
    /// Another process serves the socket, something else is in its place, or the file system refuses.
    pub fn bind(
        path: &Path,
        authority: Arc<Authority>,
        entries: Live<Entries>,
        federated: Live<TrustBundles>,
    ) -> Result<Self, Error> {
        let listener = listen(path)?;
        let attestor = Arc::new(UnixAttestor::new(entries.clone()));
        let service = Service { authority, entries, federated, attestor, guard: None };
        Ok(Self { path: path.to_owned(), listener, service })
    }

    /// Attests with `attestor` instead of by Unix user, group and program.
    #[must_use]
    pub fn attesting_with(mut self, attestor: Arc<dyn Attestor>) -> Self {
        self.service.attestor = attestor;
        self
    }

    /// Serves until the end is asked for; then streams end, and the socket is removed.
    ///
    /// # Errors
    /// The server fails as a whole.
    pub async fn serve(self, mut guard: DrainGuard) -> Result<(), Error> {
        let Self { path, listener, mut service } = self;
        service.guard = Some(guard.clone());
        let api = SpiffeWorkloadApiServer::new(service).max_decoding_message_size(64 * 1024);
        let served = Server::builder()
            .max_concurrent_streams(MAX_CALLS)
            .timeout(Duration::from_secs(10))
            .add_service(api)
            .serve_with_incoming_shutdown(incoming(listener), guard.asked())
            .await;
        let _ = std::fs::remove_file(&path);
        served.map_err(|source| Error::Serve { path, source })
    }
}

fn listen(path: &Path) -> Result<UnixListener, Error> {
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
    let listener = UnixListener::bind(path).map_err(failed)?;
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
    stream: UnixStream,
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
        Ok(Subscription { service: self.clone(), caller, sent: None, is_over: false })
    }

    /// All that is trusted: our own domain and, beside it, the others.
    fn bundles(&self) -> TrustBundles {
        let mut bundles = TrustBundles::clone(&self.federated.load());
        bundles.insert(self.authority.bundle());
        bundles
    }
}

/// One open stream of a caller.
struct Subscription {
    service: Service,
    caller: Arc<Caller>,
    sent: Option<Sent>,
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
            let bundles = self.service.bundles();
            let Some(sent) = &self.sent else { return Some(Ok((entries, bundles))) };
            let is_due = sent.renew_at.is_some_and(|at| at <= Instant::now());
            if is_due || sent.entries != entries || sent.bundles != bundles {
                return Some(Ok((entries, bundles)));
            }
            let renew_at = sent.renew_at;
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
        for entry in &entries {
            let issued =
                self.service.authority.issue(&entry.spiffe_id, entry.ttl, &entry.dns_names);
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
            svids.push(message(&svid, bundle.clone()));
        }
        let federated_bundles = bundles
            .iter()
            .filter(|other| other.domain != own.domain)
            .map(|other| (other.domain.id().to_string(), other.to_der()))
            .collect();
        let renew_at = entries.iter().map(|entry| pause(entry.ttl)).min();
        let renew_at = renew_at.map(|pause| Instant::now() + pause);
        self.sent = Some(Sent { entries, bundles, renew_at });
        Some(Ok(X509svidResponse { svids, crl: Vec::new(), federated_bundles }))
    }

    async fn next_bundles(&mut self) -> Option<Result<X509BundlesResponse, Status>> {
        loop {
            let (entries, bundles) = match self.due().await? {
                Ok(due) => due,
                Err(status) => return Some(Err(status)),
            };
            // Other entries do not change what this stream tells.
            let is_news = self.sent.as_ref().is_none_or(|sent| sent.bundles != bundles);
            let told: HashMap<_, _> = bundles
                .iter()
                .map(|bundle| (bundle.domain.id().to_string(), bundle.to_der()))
                .collect();
            self.sent = Some(Sent { entries, bundles, renew_at: None });
            if is_news {
                return Some(Ok(X509BundlesResponse { crl: Vec::new(), bundles: told }));
            }
        }
    }
}

fn message(svid: &Svid, bundle: Vec<u8>) -> X509svid {
    X509svid {
        spiffe_id: svid.id.to_string(),
        x509_svid: svid.chain.iter().flat_map(|one| one.iter().copied()).collect(),
        x509_svid_key: svid.key.secret_der().to_vec(),
        bundle,
        hint: String::new(),
    }
}

/// Without its key.
impl fmt::Debug for X509svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

/// Without its token.
impl fmt::Debug for Jwtsvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwtsvid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn no_jwt() -> Status {
    Status::unimplemented(
        "this issuer has X.509-SVIDs only; it does not issue or validate JWT-SVIDs yet",
    )
}

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
        self.subscribe(&request)?;
        Err(no_jwt())
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.subscribe(&request)?;
        Err(no_jwt())
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        self.subscribe(&request)?;
        Err(no_jwt())
    }
}
