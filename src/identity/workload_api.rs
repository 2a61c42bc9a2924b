//! Identity source: the SPIFFE Workload API, served by SPIRE's agent or by our own issuer.
//!
//! Each message is the full state and replaces the former as a whole, after it was validated; a message that is refused
//! changes nothing. When the API says that we have no identity any more, ours is withdrawn. When it only goes away, ours
//! stays, and we come back to it with growing pauses.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use schemars::JsonSchema;
use serde::Deserialize;
use spiffe::transport::Endpoint;
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Context};
use tokio::time::timeout;

use super::source::warn_of_shared_keys;
use super::{Error, Identity, IdentitySource, Svid, TrustBundle, TrustBundles};
use crate::rt::{Backoff, Clock, Live, Publisher, Tasks};

/// Where the Workload API is and which of its SVIDs is ours.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadApiSettings {
    /// `unix:/absolute/path`, a bare absolute path, or `tcp:ADDRESS:PORT`; the environment's `SPIFFE_ENDPOINT_SOCKET` when
    /// not given.
    #[serde(default)]
    pub socket: Option<String>,
    /// Take the SVID with this SPIFFE ID; the API's default (its first) when not given.
    #[serde(default)]
    pub spiffe_id: Option<String>,
    /// Take the SVID with this hint.
    #[serde(default)]
    pub hint: Option<String>,
    /// How long a start waits for the first valid identity, in seconds.
    #[serde(default = "thirty")]
    pub first_within_seconds: u64,
}

impl Default for WorkloadApiSettings {
    fn default() -> Self {
        Self { socket: None, spiffe_id: None, hint: None, first_within_seconds: thirty() }
    }
}

fn thirty() -> u64 {
    30
}

/// How long one attempt to reach the API may take.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// The pause after an answer that trying again will hardly change.
const LONG_PAUSE: Duration = Duration::from_secs(60);

/// An identity kept current from the Workload API. The stream ends when this is dropped.
#[derive(Debug)]
pub struct WorkloadApiSource {
    live: Live<Identity>,
    _watch: Tasks,
}

impl WorkloadApiSource {
    /// Waits for the first valid identity and follows the API's stream from then on.
    ///
    /// # Errors
    /// The address cannot be used, the API refuses the call as such, or no valid identity comes in the settings' time.
    pub async fn start(settings: WorkloadApiSettings, clock: Clock) -> Result<Self, Error> {
        let within = Duration::from_secs(settings.first_within_seconds);
        let api = Subscription::new(settings, clock)?;
        let mut last = None;
        let first = timeout(within, api.first(&mut last)).await;
        let (stream, identity) = match first {
            Ok(found) => found?,
            Err(_) => {
                let source = last.map(Box::new);
                return Err(Error::NotInTime { origin: api.address, within, source });
            }
        };
        let (publisher, live) = Publisher::new(identity);
        let mut watch = Tasks::new();
        watch.add(api.follow(stream, publisher));
        Ok(Self { live, _watch: watch })
    }
}

impl IdentitySource for WorkloadApiSource {
    fn identity(&self) -> Live<Identity> {
        self.live.clone()
    }
}

type Contexts = Pin<Box<dyn Stream<Item = Result<X509Context, WorkloadApiError>> + Send>>;

struct Subscription {
    address: String,
    endpoint: Endpoint,
    settings: WorkloadApiSettings,
    clock: Clock,
}

impl Subscription {
    fn new(settings: WorkloadApiSettings, clock: Clock) -> Result<Self, Error> {
        let from_environment = || std::env::var("SPIFFE_ENDPOINT_SOCKET").unwrap_or_default();
        let given = settings.socket.clone().unwrap_or_else(from_environment);
        let address = if given.starts_with('/') { format!("unix:{given}") } else { given };
        let endpoint =
            Endpoint::parse(&address).map_err(|_| Error::Address { address: address.clone() })?;
        Ok(Self { address, endpoint, settings, clock })
    }

    /// Tries until there is an identity, or until trying again cannot help.
    async fn first(&self, last: &mut Option<Error>) -> Result<(Contexts, Identity), Error> {
        let mut backoff = pauses();
        loop {
            let attempt = async {
                let mut stream = self.open().await?;
                let context = match stream.next().await {
                    Some(context) => context.map_err(|error| self.failed(error))?,
                    None => return Err(Error::StreamEnded { address: self.address.clone() }),
                };
                let identity = self.identity_in(&context, None)?;
                Ok((stream, identity))
            };
            match attempt.await {
                Ok(found) => return Ok(found),
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(error = error.report(), "waiting for an identity");
                    *last = Some(error);
                }
            }
            backoff.wait().await;
        }
    }

    /// Follows the stream for ever; opens it again when it ends.
    async fn follow(self, mut stream: Contexts, publisher: Publisher<Identity>) {
        let mut backoff = pauses();
        loop {
            while let Some(message) = stream.next().await {
                match message {
                    Ok(context) => {
                        self.publish(&context, &publisher);
                        backoff.reset();
                    }
                    Err(error) if ends_stream(&error) => {
                        self.lost(error, &publisher);
                        break;
                    }
                    // One malformed message is discarded as a whole; the next may be good.
                    Err(error) => {
                        let error = self.failed(error).report();
                        tracing::error!(
                            error,
                            "the Workload API's message refused; keeping the identity in use"
                        );
                    }
                }
            }
            stream = loop {
                backoff.wait().await;
                match self.open().await {
                    Ok(stream) => break stream,
                    Err(Error::WorkloadApi { source, .. }) => {
                        let hopeless = source.is_invalid_argument();
                        self.lost(*source, &publisher);
                        if hopeless {
                            tokio::time::sleep(LONG_PAUSE).await;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(error = error.report(), "cannot reach the Workload API");
                    }
                }
            };
        }
    }

    fn publish(&self, context: &X509Context, publisher: &Publisher<Identity>) {
        let current = publisher.live().load();
        match self.identity_in(context, Some(&current)) {
            Ok(next) => {
                tracing::info!(id = %next.svid.id, serial = %next.svid.serial, "identity renewed by the Workload API");
                publisher.set(next);
            }
            Err(error) => tracing::error!(
                error = error.report(),
                "the Workload API's identity refused; keeping the identity in use"
            ),
        }
    }

    /// The stream is over. A denial is a statement about us and takes the identity away; everything else is not.
    fn lost(&self, error: WorkloadApiError, publisher: &Publisher<Identity>) {
        let denied = is_denial(&error);
        let error = self.failed(error).report();
        let current = publisher.live().load();
        if denied && !current.is_withdrawn() {
            tracing::error!(error, id = %current.id(), "the Workload API withdrew our identity");
            publisher.set(current.withdrawn());
        } else {
            tracing::warn!(error, "the Workload API's stream ended; trying again");
        }
    }

    async fn open(&self) -> Result<Contexts, Error> {
        if let Endpoint::Unix(path) = &self.endpoint {
            check_directory(path).await?;
        }
        let opening = async {
            let client = WorkloadApiClient::connect(self.endpoint.clone()).await?;
            let stream: Contexts = Box::pin(client.stream_x509_contexts().await?);
            Ok(stream)
        };
        match timeout(OPEN_WITHIN, opening).await {
            Ok(opened) => opened.map_err(|error| self.failed(error)),
            Err(_) => Err(Error::NotInTime {
                origin: self.address.clone(),
                within: OPEN_WITHIN,
                source: None,
            }),
        }
    }

    fn failed(&self, error: WorkloadApiError) -> Error {
        Error::WorkloadApi { address: self.address.clone(), source: Box::new(error) }
    }

    fn identity_in(
        &self,
        context: &X509Context,
        previous: Option<&Identity>,
    ) -> Result<Identity, Error> {
        let wanted = |svid: &&std::sync::Arc<spiffe::X509Svid>| {
            let id = self.settings.spiffe_id.as_ref();
            let hint = self.settings.hint.as_deref();
            id.is_none_or(|id| *id == svid.spiffe_id().to_string())
                && hint.is_none_or(|hint| svid.hint() == Some(hint))
        };
        let Some(chosen) = context.svids().iter().find(wanted) else {
            return Err(match (&self.settings.spiffe_id, &self.settings.hint) {
                (Some(expected), _) => Error::OtherId {
                    found: context
                        .default_svid()
                        .map_or_else(|| "nobody".into(), |svid| svid.spiffe_id().to_string()),
                    expected: expected.clone(),
                },
                (None, hint) => Error::NoHint { hint: hint.clone().unwrap_or_default() },
            });
        };
        let chain = chosen.cert_chain().iter();
        let chain = chain.map(|one| CertificateDer::from(one.as_bytes().to_vec())).collect();
        let key = PrivateKeyDer::Pkcs8(chosen.private_key().as_bytes().to_vec().into());
        let svid = Svid::new(chain, key)?;

        let mut bundles = TrustBundles::default();
        for (domain, bundle) in context.bundle_set().iter() {
            let name = domain.as_str();
            let domain = name.parse().map_err(|_| Error::TrustDomain { name: name.to_owned() })?;
            let roots = bundle.authorities().iter();
            let roots = roots.map(|one| CertificateDer::from(one.as_bytes().to_vec())).collect();
            bundles.insert(TrustBundle::new(domain, roots));
        }
        let next = Identity::successor(previous, svid, bundles, self.clock.now())?;
        warn_of_shared_keys(&next.trust.bundles);
        Ok(next)
    }
}

fn pauses() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

/// Trying again gives the same answer.
fn is_final(error: &Error) -> bool {
    match error {
        Error::Address { .. } | Error::SocketDirectory { .. } => true,
        Error::WorkloadApi { source, .. } => source.is_invalid_argument(),
        _ => false,
    }
}

fn is_denial(error: &WorkloadApiError) -> bool {
    matches!(error, WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_))
}

/// The transport's and the API's errors end the stream; what only concerns one message does not.
fn ends_stream(error: &WorkloadApiError) -> bool {
    is_denial(error) || matches!(error, WorkloadApiError::Transport(_))
}

/// Whoever may write to the socket's directory can be our Workload API. A sticky directory protects what is in it.
async fn check_directory(socket: &Path) -> Result<(), Error> {
    let Some(directory) = socket.parent() else { return Ok(()) };
    // What cannot be seen is left to the connection attempt, whose error is clearer.
    let Ok(found) = tokio::fs::metadata(directory).await else { return Ok(()) };
    let (for_others, sticky) = (found.mode() & 0o002 != 0, found.mode() & 0o1000 != 0);
    if for_others && !sticky {
        return Err(Error::SocketDirectory { directory: directory.to_owned() });
    }
    Ok(())
}
