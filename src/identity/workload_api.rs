//! Identity source: the SPIFFE Workload API, served by SPIRE's agent or by our own issuer.
//!
//! Each message is the full state and replaces the former as a whole, after it was validated; a message that is refused
//! changes nothing. When the API says that we have no identity any more, or not this one, it is asked again at once, and when it
//! says so again, ours is withdrawn. When it only goes away, ours stays, and we come back to it: at once, then with growing
//! pauses.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status, Streaming};

use super::source::warn_of_shared_keys;
use super::workload_endpoint::WorkloadEndpoint;
use super::workload_message::{Delivered, MAX_HINT_BYTES, Wanted};
use super::workload_proto::{X509svidRequest, X509svidResponse};
use super::{Error, Identity, IdentitySource, SpiffeId};
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

/// How long the API may take for its first word on a stream. SPIRE's agent waits until its server has signed.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long an identity that the API took away on a running stream may wait for the answer to a second question.
///
/// SPIRE's agent (1.14) says "no identity issued" on streams that are open while it has SVIDs signed anew by another authority;
/// a new call waits until they are there, and is denied at once when the entry is gone.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// The pause after an answer that trying again will hardly change.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// The pauses between attempts; a stream that lasted longer than the longest begins with none (96).
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// An identity kept current from the Workload API. The stream ends when this is dropped.
#[derive(Debug)]
pub struct WorkloadApiSource {
    live: Live<Identity>,
    _watch: Tasks,
}

impl WorkloadApiSource {
    /// Waits for the first valid identity and follows the API's stream from then on.
    ///
    /// The identity keeps its SPIFFE ID for life: when the API gives us another one in its place, ours is withdrawn, since
    /// policies were compiled for it.
    ///
    /// # Errors
    /// The address cannot be used, the API refuses the call as such, or no valid identity comes in the settings' time.
    pub async fn start(settings: WorkloadApiSettings, clock: Clock) -> Result<Self, Error> {
        let within = Duration::from_secs(settings.first_within_seconds);
        let mut api = Subscription::new(&settings, clock)?;
        let mut last = None;
        let first = timeout(within, api.first(&mut last)).await;
        let (stream, identity) = match first {
            Ok(found) => found?,
            Err(_) => {
                let source = last.map(Box::new);
                return Err(Error::NotInTime { origin: api.endpoint.text, within, source });
            }
        };
        api.wanted.id = Some(identity.id().clone());
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

type Messages = Streaming<X509svidResponse>;

struct Subscription {
    endpoint: WorkloadEndpoint,
    wanted: Wanted,
    clock: Clock,
}

impl Subscription {
    fn new(settings: &WorkloadApiSettings, clock: Clock) -> Result<Self, Error> {
        let endpoint = WorkloadEndpoint::of(settings.socket.as_deref())?;
        let invalid = |setting, problem| Error::Wanted { setting, problem };
        let id = settings.spiffe_id.as_deref().map(|text| {
            let id = text.parse::<SpiffeId>();
            id.map_err(|error| {
                invalid("spiffe_id", format!("{text:?} is not a SPIFFE ID: {error}"))
            })
        });
        let hint = settings.hint.clone();
        if hint.as_ref().is_some_and(|hint| hint.is_empty() || hint.len() > MAX_HINT_BYTES) {
            let problem = format!("expected 1 to {MAX_HINT_BYTES} bytes");
            return Err(invalid("hint", problem));
        }
        Ok(Self { endpoint, wanted: Wanted { id: id.transpose()?, hint }, clock })
    }

    /// Tries until there is an identity, or until trying again cannot help.
    async fn first(&self, last: &mut Option<Error>) -> Result<(Messages, Identity), Error> {
        let mut backoff = pauses();
        loop {
            let attempt = async {
                let (stream, message) = self.ask().await?;
                match self.wanted.in_message(&message)? {
                    Delivered::Ours(svid, trust) => {
                        let identity = Identity::successor(None, *svid, *trust, self.clock.now())?;
                        warn_of_shared_keys(&identity.trust.bundles);
                        Ok((stream, identity))
                    }
                    Delivered::Others(ids) => Err(self.not_among(&ids)),
                }
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
    async fn follow(self, mut stream: Messages, publisher: Publisher<Identity>) {
        let mut backoff = pauses();
        let mut opened = Instant::now();
        loop {
            let ended = self.listen(&mut stream, &publisher).await;
            tracing::warn!(error = ended.report(), "no stream of the Workload API; trying again");
            // At once, unless streams end as soon as they begin.
            if opened.elapsed() > PAUSES.1 {
                backoff.reset();
            } else {
                backoff.wait().await;
            }
            stream = self.reopen(&ended, &mut backoff, &publisher).await;
            opened = Instant::now();
        }
    }

    /// Takes each message; why the stream ended, or has to be ended since our SVID is missing from it.
    async fn listen(&self, stream: &mut Messages, publisher: &Publisher<Identity>) -> Error {
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    let missing = self.take(&message, publisher);
                    if let Err(error) = missing
                        && !publisher.live().load().is_withdrawn()
                    {
                        return error;
                    }
                }
                Ok(None) => return self.stream_ended(),
                Err(status) => return self.refused(&status),
            }
        }
    }

    /// Asks until there is an answer. An identity that was taken away when the stream `ended` is withdrawn when it is denied
    /// again, or when no answer comes in time.
    async fn reopen(
        &self,
        ended: &Error,
        backoff: &mut Backoff,
        publisher: &Publisher<Identity>,
    ) -> Messages {
        let mut doubt = takes_away(ended).then(|| Instant::now() + CONFIRM_WITHIN);
        loop {
            let asked = match doubt {
                None => self.ask().await,
                Some(until) => {
                    let late = |_| Err(self.not_in_time(CONFIRM_WITHIN));
                    timeout_at(until, self.ask()).await.unwrap_or_else(late)
                }
            };
            let error = match asked {
                Ok((stream, message)) => {
                    if let Err(missing) = self.take(&message, publisher) {
                        withdraw(&missing, publisher);
                    }
                    return stream;
                }
                Err(error) => error,
            };
            let is_hopeless = is_final(&error);
            if takes_away(&error) {
                withdraw(&error, publisher);
                doubt = None;
            } else {
                tracing::warn!(error = error.report(), "cannot reach the Workload API");
            }
            if doubt.is_some_and(|until| is_hopeless || Instant::now() >= until) {
                withdraw(ended, publisher);
                doubt = None;
            }
            if is_hopeless {
                tokio::time::sleep(LONG_PAUSE).await;
            }
            backoff.wait().await;
        }
    }

    /// Puts a message's identity into the place of the current one.
    ///
    /// # Errors
    /// The message has others' SVIDs, and not ours.
    fn take(
        &self,
        message: &X509svidResponse,
        publisher: &Publisher<Identity>,
    ) -> Result<(), Error> {
        let current = publisher.live().load();
        // What was taken away does not come back with an SVID that is over.
        let previous = (!current.is_withdrawn()).then_some(&*current);
        let next = match self.wanted.in_message(message) {
            Ok(Delivered::Ours(svid, trust)) => {
                Identity::successor(previous, *svid, *trust, self.clock.now())
            }
            Ok(Delivered::Others(ids)) => return Err(self.not_among(&ids)),
            Err(error) => Err(error),
        };
        match next {
            Ok(next) => {
                warn_of_shared_keys(&next.trust.bundles);
                tracing::info!(id = %next.id(), serial = %next.svid.serial, "identity from the Workload API");
                publisher.set(next);
            }
            Err(error) => tracing::error!(
                error = error.report(),
                "the Workload API's message refused; keeping the identity in use"
            ),
        }
        Ok(())
    }

    /// A new stream and the first message on it.
    async fn ask(&self) -> Result<(Messages, X509svidResponse), Error> {
        let mut client = self.endpoint.connect().await?;
        let asking = async {
            let answer = client.fetch_x509svid(X509svidRequest {}).await;
            let mut stream = answer.map_err(|status| self.refused(&status))?.into_inner();
            let message = stream.message().await.map_err(|status| self.refused(&status))?;
            Ok((stream, message.ok_or_else(|| self.stream_ended())?))
        };
        let late = |_| Err(self.not_in_time(ANSWER_WITHIN));
        timeout(ANSWER_WITHIN, asking).await.unwrap_or_else(late)
    }

    fn stream_ended(&self) -> Error {
        Error::StreamEnded { address: self.endpoint.text.clone() }
    }

    fn not_in_time(&self, within: Duration) -> Error {
        Error::NotInTime { origin: self.endpoint.text.clone(), within, source: None }
    }

    fn refused(&self, status: &Status) -> Error {
        Error::WorkloadApi {
            address: self.endpoint.text.clone(),
            code: status.code(),
            message: status.message().to_owned(),
        }
    }

    fn not_among(&self, found: &[SpiffeId]) -> Error {
        let Wanted { id, hint } = &self.wanted;
        let id = id.as_ref().map(ToString::to_string);
        let hint = hint.as_ref().map(|hint| format!("hint {hint:?}"));
        let wanted: Vec<String> = id.into_iter().chain(hint).collect();
        let found: Vec<&str> = found.iter().map(SpiffeId::as_str).collect();
        Error::NotAmong { wanted: wanted.join(" with "), found: found.join(", ") }
    }
}

fn withdraw(reason: &Error, publisher: &Publisher<Identity>) {
    let current = publisher.live().load();
    let error = reason.report();
    if current.is_withdrawn() {
        tracing::warn!(error, id = %current.id(), "still no identity");
    } else {
        tracing::error!(error, id = %current.id(), "the Workload API withdrew our identity");
        publisher.set(current.withdrawn());
    }
}

fn pauses() -> Backoff {
    Backoff::new(PAUSES.0, PAUSES.1)
}

/// Does this say that we are not, or no longer, who we are? All other errors say nothing about us (102, 103).
fn takes_away(error: &Error) -> bool {
    matches!(
        error,
        Error::WorkloadApi { code: Code::PermissionDenied, .. } | Error::NotAmong { .. }
    )
}

/// Trying again gives the same answer (97, 99).
fn is_final(error: &Error) -> bool {
    match error {
        Error::Address { .. } | Error::SocketDirectory { .. } | Error::SocketServer { .. } => true,
        Error::WorkloadApi { code, .. } => {
            matches!(code, Code::InvalidArgument | Code::Unimplemented)
        }
        _ => false,
    }
}
