//! The bundle endpoint: our own trust domain's bundle for whoever asks (SPIFFE Federation, section 5; rule 89).
//!
//! The document is made from the authority's bundle at each request, so that it is always current. Its `spiffe_sequence`
//! grows with each change and is kept on disk. It starts at the time of day in seconds and is never below it when it grows: an
//! issuer that lost its state goes on above what it has published before.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::rt::crypto::digest::{SHA256, digest};
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Error;
use super::disk::Shelf;
use crate::identity::{BundleDocument, Identity, TrustBundle};
use crate::mtls::{OpenAcceptor, PublicAcceptor, PublicCertificate, public_server_config};
use crate::rt::{Clock, DrainGuard, Live, Publisher, Sockets, Tasks};

/// Connections at once; further ones wait in the socket's queue.
const MAX_CONNECTIONS: usize = 256;
/// A whole connection: nobody needs longer to read one document.
const CONNECTION_WITHIN: Duration = Duration::from_secs(30);
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// What is under way at the end.
const FINISH_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The bundle endpoint of our own trust domain.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// How the server shows who it is.
    pub profile: ServerProfile,
    /// With `https_web`: the certificate's chain as PEM, leaf first; read again when it changes.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// With `https_web`: its private key as PEM.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// `spiffe_refresh_hint`: how often others shall fetch it, in seconds, 10 to 86400.
    #[serde(default = "five_minutes")]
    #[schemars(range(min = 10, max = 86400))]
    pub refresh_hint: u32,
}

const fn five_minutes() -> u32 {
    300
}

/// How the endpoint's server shows who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServerProfile {
    /// With a public certificate from files.
    HttpsWeb,
    /// With the issuer's own SVID, `spiffe://<trust domain>/wardgate/issuer`.
    HttpsSpiffe,
}

/// What tells of the last change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Published {
    sequence: u64,
    sha256: String,
}

const SHELF_NAME: &str = "published-bundle";

/// Makes the document, and counts its changes.
struct Publication {
    current: Box<dyn Fn() -> TrustBundle + Send + Sync>,
    refresh_after: Duration,
    shelf: Shelf,
    clock: Clock,
    last: Mutex<Option<(Published, Bytes)>>,
}

impl Publication {
    fn document(&self) -> Result<Bytes, Error> {
        let bundle = (self.current)();
        let refresh_after = self.refresh_after;
        let unnumbered = BundleDocument { bundle, sequence: None, refresh_after };
        let content = unnumbered.to_json()?.to_string();
        let sha256 = hex::encode(digest(&SHA256, content.as_bytes()));
        let mut last = self.last.lock();
        if let Some((published, document)) = &*last
            && published.sha256 == sha256
        {
            return Ok(document.clone());
        }
        let known = match &*last {
            Some((published, _)) => Some(published.clone()),
            None => self.known(),
        };
        let published = match known {
            Some(known) if known.sha256 == sha256 => known,
            known => {
                let after = known.map_or(0, |known| known.sequence.saturating_add(1));
                let now = u64::try_from(self.clock.now()).unwrap_or(0);
                let published = Published { sequence: after.max(now), sha256 };
                // Kept before it is published: a number that was given out is never given out again.
                self.shelf.keep(SHELF_NAME, &published, b"")?;
                tracing::info!(sequence = published.sequence, "the published bundle has changed");
                published
            }
        };
        let document = BundleDocument { sequence: Some(published.sequence), ..unnumbered };
        let document = Bytes::from(document.to_json()?.to_string());
        *last = Some((published, document.clone()));
        Ok(document)
    }

    fn known(&self) -> Option<Published> {
        match self.shelf.read::<Published>(SHELF_NAME) {
            Ok(found) => found.map(|(published, _)| published),
            Err(error) => {
                tracing::error!(
                    error = error.report(),
                    "the published bundle's number is lost; the time of day takes its place"
                );
                None
            }
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let plain = |status: StatusCode, text: &'static str| {
            let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
            *response.status_mut() = status;
            let kind = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        };
        if path != "/" {
            return plain(StatusCode::NOT_FOUND, "the bundle is at /\n");
        }
        if method != Method::GET {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "GET is the one method here\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return refused;
        }
        match self.document() {
            Ok(document) => {
                let mut response = Response::new(Full::new(document));
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                response
            }
            Err(error) => {
                tracing::error!(error = error.report(), "the bundle cannot be published");
                plain(StatusCode::SERVICE_UNAVAILABLE, "the bundle cannot be published now\n")
            }
        }
    }
}

/// A bundle endpoint at work.
pub struct BundleEndpoint {
    listener: TcpListener,
    address: SocketAddr,
    acceptor: AnyAcceptor,
    publication: Arc<Publication>,
    _watch: Tasks,
}

impl std::fmt::Debug for BundleEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BundleEndpoint").field("address", &self.address).finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum AnyAcceptor {
    Web(PublicAcceptor),
    Spiffe(OpenAcceptor),
}

impl BundleEndpoint {
    /// Takes the address. `current` is the bundle at each moment, `identity` the server's own for `https_spiffe`; the number of
    /// the last change is kept in `folder`. To be called within a runtime.
    ///
    /// # Errors
    /// The settings do not fit one another, the certificate cannot be used, or the address is taken.
    pub fn bind(
        settings: &EndpointSettings,
        current: impl Fn() -> TrustBundle + Send + Sync + 'static,
        identity: Live<Identity>,
        folder: PathBuf,
        clock: Clock,
        sockets: &Sockets,
    ) -> Result<Self, Error> {
        if !(10..=86_400).contains(&settings.refresh_hint) {
            return Err(Error::Setting {
                field: "issuer.bundle_endpoint.refresh_hint",
                problem: "expected 10 to 86400 seconds".into(),
            });
        }
        let mut watch = Tasks::new();
        let acceptor = match (settings.profile, &settings.certificate, &settings.key) {
            (ServerProfile::HttpsWeb, Some(certificate), Some(key)) => {
                let files = Files { certificate: certificate.clone(), key: key.clone() };
                let first = files.read()?;
                let (publisher, live) = Publisher::new(Some(first));
                watch.add(files.watch(publisher));
                AnyAcceptor::Web(PublicAcceptor::new(live))
            }
            (ServerProfile::HttpsWeb, ..) => {
                return Err(Error::Setting {
                    field: "issuer.bundle_endpoint.certificate",
                    problem: "profile https_web needs certificate and key".into(),
                });
            }
            (ServerProfile::HttpsSpiffe, None, None) => {
                AnyAcceptor::Spiffe(OpenAcceptor::new(identity))
            }
            (ServerProfile::HttpsSpiffe, ..) => {
                return Err(Error::Setting {
                    field: "issuer.bundle_endpoint.certificate",
                    problem: "profile https_spiffe shows the issuer's own SVID: leave certificate and key out".into(),
                });
            }
        };
        let taken = |source| Error::File { path: settings.listen.to_string().into(), source };
        let socket = sockets.one("bundle", settings.listen)?;
        let address = socket.local_addr().map_err(taken)?;
        let listener = TcpListener::from_std(socket).map_err(taken)?;
        let publication = Publication {
            current: Box::new(current),
            refresh_after: Duration::from_secs(settings.refresh_hint.into()),
            shelf: Shelf::new(folder),
            clock,
            last: Mutex::default(),
        };
        Ok(Self { listener, address, acceptor, publication: Arc::new(publication), _watch: watch })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the end is asked for; what is under way then has a moment to finish.
    pub async fn serve(self, mut drain: DrainGuard) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = Tasks::new();
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let tcp = tokio::select! {
                () = drain.asked() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((tcp, _)) => tcp,
                    Err(error) => {
                        tracing::warn!(%error, "the bundle endpoint cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let (acceptor, publication) = (self.acceptor.clone(), self.publication.clone());
            connections.add(async move {
                let _place = place;
                let served =
                    tokio::time::timeout(CONNECTION_WITHIN, serve(tcp, acceptor, publication));
                if served.await.is_err() {
                    tracing::debug!("a client of the bundle endpoint was too slow");
                }
            });
        }
        drop(self.listener);
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(FINISH_WITHIN, places.acquire_many(all)).await;
    }
}

async fn serve(tcp: TcpStream, acceptor: AnyAcceptor, publication: Arc<Publication>) {
    let _ = tcp.set_nodelay(true);
    match acceptor {
        AnyAcceptor::Web(acceptor) => {
            if let Ok(Ok(tls)) = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(tcp)).await
            {
                exchange(tls, publication).await;
            }
        }
        AnyAcceptor::Spiffe(acceptor) => {
            if let Ok(Ok(tls)) = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(tcp)).await
            {
                exchange(tls, publication).await;
            }
        }
    }
}

async fn exchange<S>(stream: S, publication: Arc<Publication>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answer = publication.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_WITHIN)
        .max_buf_size(16 * 1024);
    builder.http2().max_concurrent_streams(4).max_header_list_size(16 * 1024);
    // How it ends is the client's affair.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

/// The files of an `https_web` certificate.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn read(&self) -> Result<Arc<rustls::ServerConfig>, Error> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| Error::File { path: path.clone(), source })
        };
        let (chain, key) = (read(&self.certificate)?, zeroize::Zeroizing::new(read(&self.key)?));
        let certificate =
            PublicCertificate::from_pem(["*"], &chain, &key).map_err(Error::Certificate)?;
        public_server_config(certificate).map_err(Error::Certificate)
    }

    async fn watch(self, publisher: Publisher<Option<Arc<rustls::ServerConfig>>>) {
        let stamp = |path: &PathBuf| {
            std::fs::metadata(path).ok().and_then(|seen| Some((seen.len(), seen.modified().ok()?)))
        };
        let look = |files: &Self| (stamp(&files.certificate), stamp(&files.key));
        let mut seen = look(&self);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let found = look(&self);
            if found == seen {
                continue;
            }
            match self.read() {
                Ok(config) => {
                    publisher.set(Some(config));
                    tracing::info!("the bundle endpoint's certificate was renewed");
                    seen = found;
                }
                // Looked at again at the next turn: the key may come a moment later.
                Err(error) => tracing::warn!(
                    error = error.report(),
                    "the bundle endpoint keeps its certificate"
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::TrustDomain;
    use crate::identity::forge::{Folder, Forge};

    fn publication(folder: &Folder, clock: &Clock, live: Live<TrustBundle>) -> Publication {
        Publication {
            current: Box::new(move || live.load().as_ref().clone()),
            refresh_after: Duration::from_secs(60),
            shelf: Shelf::new(folder.path().to_owned()),
            clock: clock.clone(),
            last: Mutex::default(),
        }
    }

    fn parsed(publication: &Publication) -> BundleDocument {
        let domain: TrustDomain = "a.test".parse().unwrap();
        BundleDocument::parse(domain, &publication.document().unwrap()).unwrap()
    }

    #[test]
    fn rule_89_the_document_is_current_and_its_number_grows_with_each_change_over_restarts() {
        let (folder, clock) = (Folder::new(), Clock::fixed(1_000));
        let (first, other) = (Forge::new("a.test"), Forge::new("a.test"));
        let (publisher, live) = Publisher::new(first.bundle());
        let served = publication(&folder, &clock, live.clone());
        let sequence = parsed(&served).sequence.unwrap();
        assert_eq!(parsed(&served).sequence, Some(sequence), "the same again");
        assert_eq!(parsed(&served).refresh_after.as_secs(), 60);
        let again = publication(&folder, &clock, live.clone());
        assert_eq!(parsed(&again).sequence, Some(sequence), "also after a restart");

        publisher.set(other.bundle());
        let next = parsed(&again);
        assert_eq!(
            (next.sequence, &next.bundle),
            (Some(sequence + 1), &other.bundle()),
            "89 current"
        );
        publisher.set(first.bundle());
        assert_eq!(parsed(&again).sequence, Some(sequence + 2), "back is a change as well");

        // The state is lost; time goes on.
        clock.advance(60);
        let lost = Folder::new();
        assert!(parsed(&publication(&lost, &clock, live)).sequence > Some(sequence + 2));
    }

    #[test]
    fn rule_89_a_number_that_cannot_be_kept_is_not_given_out() {
        let (folder, clock) = (Folder::new(), Clock::fixed(1_000));
        let live = Live::fixed(Forge::new("a.test").bundle());
        let mut served = publication(&folder, &clock, live);
        served.shelf = Shelf::new("/dev/null/x".into());
        assert_eq!(served.answer(&Method::GET, "/").status(), 503);
    }

    #[test]
    fn rule_89_get_is_the_one_method() {
        let (folder, clock) = (Folder::new(), Clock::fixed(1_000));
        let served = publication(&folder, &clock, Live::fixed(Forge::new("a.test").bundle()));
        let good = served.answer(&Method::GET, "/");
        assert_eq!(
            (good.status().as_u16(), &good.headers()[CONTENT_TYPE]),
            (200, &HeaderValue::from_static("application/json"))
        );
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS] {
            let refused = served.answer(&method, "/");
            assert_eq!(
                (refused.status().as_u16(), &refused.headers()[ALLOW]),
                (405, &HeaderValue::from_static("GET"))
            );
        }
        assert_eq!(served.answer(&Method::GET, "/x").status(), 404);
    }
}
