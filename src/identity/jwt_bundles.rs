//! JWT-SVIDs from the Workload API: the keys that verify them, beside the X.509 identity, and tokens of our own.
//!
//! The X.509 source knows nothing of tokens. [`JwtBundleSource`] stands over it, is the only one that publishes what others
//! read, and puts the keys of `FetchJWTBundles` into whatever the source below publishes: two streams, one writer.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Code, Status, Streaming};

use super::jwt::read_unproved;
use super::workload_endpoint::{Client, WorkloadEndpoint};
use super::workload_proto::{JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest};
use super::{
    Error, Identity, IdentitySource, JwtAuthority, Refresh, Refreshing, SpiffeId, TokenText, Trust,
    TrustBundle, TrustDomain, WorkloadApiSettings,
};
use crate::rt::{Backoff, Clock, Live, Publisher, Tasks};

/// How long the answer to a call may take. SPIRE's agent waits until its server has signed.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long keys that were denied on a running stream may wait for the answer to a second question: SPIRE's agent denies for a
/// moment while it has SVIDs signed anew.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// How long a start, or whoever waits for a forced refresh, waits for keys. The identity does not depend on them.
const FIRST_WITHIN: Duration = Duration::from_secs(2);
/// The keys for tokens, by trust domain: one message, in full.
type KeySets = BTreeMap<TrustDomain, Vec<JwtAuthority>>;

/// An identity source with the Workload API's keys for JWT-SVIDs added to it. All ends when this is dropped.
pub struct JwtBundleSource {
    live: Live<Identity>,
    refresh: Refresh,
    /// Dropped after the task that reads from it.
    _following: Tasks,
    _base: Box<dyn IdentitySource>,
}

impl fmt::Debug for JwtBundleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtBundleSource").field("live", &self.live).finish_non_exhaustive()
    }
}

impl JwtBundleSource {
    /// Adds the keys that the API of these settings tells to what `base` publishes. Waits a moment for the first ones; an API
    /// that has none, or is gone, leaves the identity as `base` has it.
    ///
    /// # Errors
    /// The address cannot be used.
    pub async fn over(
        base: Box<dyn IdentitySource>,
        settings: &WorkloadApiSettings,
    ) -> Result<Self, Error> {
        let mut stream = KeyStream::new(Api::new(settings)?);
        let first = timeout(FIRST_WITHIN, stream.next()).await.ok();
        let below = base.identity();
        let (publisher, live) = Publisher::of(below.load());
        let (refresh, refreshing) = Refresh::new();
        let mut following = Following { below, stream, keys: KeySets::new(), publisher };
        if let Some(news) = first {
            following.take(news);
        }
        let mut tasks = Tasks::new();
        tasks.add(following.run(refreshing));
        Ok(Self { live, refresh, _following: tasks, _base: base })
    }
}

impl IdentitySource for JwtBundleSource {
    fn identity(&self) -> Live<Identity> {
        self.live.clone()
    }
    fn refresh(&self) -> Refresh {
        self.refresh.clone()
    }
}

/// The one writer.
struct Following {
    below: Live<Identity>,
    stream: KeyStream,
    keys: KeySets,
    publisher: Publisher<Identity>,
}

impl Following {
    async fn run(mut self, mut refreshing: Refreshing) {
        let mut below_lives = true;
        loop {
            tokio::select! {
                alive = self.below.changed(), if below_lives => {
                    below_lives = alive;
                    self.publish();
                }
                news = self.stream.next() => self.take(news),
                () = refreshing.asked() => {
                    // A new call is answered with the full state as it is now.
                    self.stream.reopen();
                    if !self.stream.never
                        && let Ok(news) = timeout(FIRST_WITHIN, self.stream.next()).await
                    {
                        self.take(news);
                    }
                    refreshing.served();
                }
            }
        }
    }

    fn take(&mut self, news: KeySets) {
        if news != self.keys {
            let domains: Vec<&str> = news.keys().map(TrustDomain::as_str).collect();
            tracing::info!(domains = domains.join(" "), "keys for JWT-SVIDs from the Workload API");
            self.keys = news;
            self.publish();
        }
    }

    fn publish(&self) {
        let below = self.below.load();
        let previous = self.publisher.live().load();
        self.publisher.set_arc(with_keys(&below, &self.keys, &previous));
    }
}

/// `below` with these keys. The same `Trust` as before when nothing of it changed: whoever rests on it need not look again.
fn with_keys(below: &Arc<Identity>, keys: &KeySets, previous: &Identity) -> Arc<Identity> {
    // Nobody without an identity trusts anybody, whatever keys there are.
    if below.is_withdrawn() || keys.is_empty() {
        return below.clone();
    }
    let mut bundles = below.trust.bundles.clone();
    for (domain, authorities) in keys {
        let known = bundles.find(domain).cloned();
        // Keys alone vouch for tokens and for no certificate (110).
        let bundle = known.unwrap_or_else(|| TrustBundle::new(domain.clone(), Vec::new()));
        bundles.insert(TrustBundle { jwt_authorities: authorities.clone(), ..bundle });
    }
    let trust = Trust::new(bundles, below.trust.revocation.clone(), below.trust.rules);
    let trust = if *previous.trust == trust { previous.trust.clone() } else { Arc::new(trust) };
    Arc::new(Identity { svid: below.svid.clone(), trust })
}

/// The stream of `FetchJWTBundles`, opened again whenever it ends.
struct KeyStream {
    api: Api,
    open: Option<Streaming<JwtBundlesResponse>>,
    /// Has the open stream told anything yet?
    has_told: bool,
    not_before: Instant,
    backoff: Backoff,
    /// A running stream ended with a denial: until then a second question may take it back.
    doubt: Option<Instant>,
    /// The API has no JWT-SVIDs: asking again gives the same answer (99).
    never: bool,
}

impl KeyStream {
    fn new(api: Api) -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        Self {
            api,
            open: None,
            has_told: false,
            not_before: Instant::now(),
            backoff,
            doubt: None,
            never: false,
        }
    }

    fn reopen(&mut self) {
        self.open = None;
        self.not_before = Instant::now();
    }

    /// The next full set. Nothing is lost when the caller stops waiting.
    async fn next(&mut self) -> KeySets {
        loop {
            if self.never {
                std::future::pending::<()>().await;
            }
            let event = match self.doubt {
                None => self.event().await,
                Some(until) => match timeout_at(until, self.event()).await {
                    Ok(event) => event,
                    Err(_) => {
                        self.doubt = None;
                        tracing::warn!("the keys for JWT-SVIDs were denied, and not given again");
                        return KeySets::new();
                    }
                },
            };
            let error = match event {
                Ok(message) => match read_message(message) {
                    Ok(sets) => {
                        (self.has_told, self.doubt) = (true, None);
                        self.backoff.reset();
                        return sets;
                    }
                    // Discarded as a whole: the next may be good (104).
                    Err(error) => {
                        let error = error.report();
                        tracing::error!(error, "keys for JWT-SVIDs refused; keeping those in use");
                        continue;
                    }
                },
                Err(error) => error,
            };
            self.open = None;
            if let Some(sets) = self.lost(&error) {
                return sets;
            }
        }
    }

    /// The next message, or why there is none.
    async fn event(&mut self) -> Result<JwtBundlesResponse, Error> {
        if self.open.is_none() {
            sleep_until(self.not_before).await;
            // Set before the attempt: one that is not waited for counts as well.
            self.not_before = Instant::now() + self.backoff.next();
            self.has_told = false;
            self.open = Some(self.api.key_sets().await?);
        }
        let ended = || Error::StreamEnded { address: self.api.address().to_owned() };
        let Some(stream) = &mut self.open else { return Err(ended()) };
        match stream.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(ended()),
            Err(status) => Err(self.api.failed(status)),
        }
    }

    /// A denial is a statement about us: what we were told holds no longer, if it is said twice. Everything else leaves the
    /// keys as they are.
    fn lost(&mut self, error: &Error) -> Option<KeySets> {
        let code = match error {
            Error::JwtApi { source, .. } => Some(source.code()),
            _ => None,
        };
        let error = error.report();
        match code {
            Some(Code::Unimplemented) => {
                tracing::info!(error, "the Workload API has no JWT-SVIDs");
                self.never = true;
                Some(KeySets::new())
            }
            Some(Code::PermissionDenied) if self.has_told => {
                tracing::warn!(error, "the keys for JWT-SVIDs are denied; asking again");
                let now = Instant::now();
                (self.has_told, self.not_before) = (false, now);
                self.doubt = Some(now + CONFIRM_WITHIN);
                None
            }
            Some(Code::PermissionDenied) => {
                tracing::warn!(error, "the Workload API withdrew the keys for JWT-SVIDs");
                self.doubt = None;
                Some(KeySets::new())
            }
            Some(Code::InvalidArgument) => {
                tracing::error!(error, "the Workload API refuses to tell keys for JWT-SVIDs");
                self.never = true;
                None
            }
            _ => {
                tracing::warn!(error, "keys for JWT-SVIDs: trying again");
                None
            }
        }
    }
}

fn read_message(message: JwtBundlesResponse) -> Result<KeySets, Error> {
    if message.bundles.is_empty() {
        return Err(Error::BundleDocument { detail: "the message names no trust domain".into() });
    }
    message
        .bundles
        .into_iter()
        .map(|(name, json)| {
            let plain = name.strip_prefix("spiffe://").unwrap_or(&name);
            let domain = plain.parse().map_err(|_| Error::TrustDomain { name: name.clone() })?;
            Ok((domain, JwtAuthority::parse_set(&json)?))
        })
        .collect()
}

/// Tokens of our own, for whoever we call: kept for each audience until half of their life is over.
pub struct JwtSvids {
    api: Api,
    id: Option<SpiffeId>,
    clock: Clock,
    kept: Mutex<HashMap<Box<str>, Arc<OwnToken>>>,
}

/// A token that names us.
#[derive(Clone, Debug)]
pub struct OwnToken {
    /// Whom it names.
    pub id: SpiffeId,
    /// The token.
    pub text: TokenText,
    /// When it ends, seconds since 1970.
    pub expires_at: i64,
    /// When it is to be replaced.
    renew_at: i64,
}

/// Beyond this many audiences, those whose tokens are due are forgotten.
const MAX_KEPT: usize = 1024;

impl fmt::Debug for JwtSvids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvids").field("address", &self.api.address()).finish_non_exhaustive()
    }
}

impl JwtSvids {
    /// Tokens from the API of these settings, for the identity that they choose or else the API's default.
    ///
    /// # Errors
    /// The address or the SPIFFE ID cannot be used.
    pub fn new(settings: &WorkloadApiSettings, clock: Clock) -> Result<Self, Error> {
        let id = settings.spiffe_id.as_ref().map(|text| {
            text.parse::<SpiffeId>()
                .map_err(|_| Error::OtherId { found: text.clone(), expected: "a SPIFFE ID".into() })
        });
        let id = id.transpose()?;
        Ok(Self { api: Api::new(settings)?, id, clock, kept: Mutex::default() })
    }

    /// A token for `audience`. One that is kept is given again until half of its life; when no new one can be had then, it is
    /// given until its end.
    ///
    /// # Errors
    /// There is none, and the API gives none.
    pub async fn fetch(&self, audience: &str) -> Result<Arc<OwnToken>, Error> {
        let now = self.clock.now();
        let kept = self.kept.lock().get(audience).cloned();
        if let Some(token) = kept.as_ref().filter(|token| token.renew_at > now) {
            return Ok(token.clone());
        }
        match self.fetch_new(audience, now).await {
            Ok(token) => {
                let token = Arc::new(token);
                let mut all = self.kept.lock();
                if all.len() >= MAX_KEPT {
                    all.retain(|_, token| token.renew_at > now);
                }
                all.insert(audience.into(), token.clone());
                Ok(token)
            }
            Err(error) => match kept.filter(|token| token.expires_at > now) {
                Some(token) => {
                    tracing::warn!(error = error.report(), "no new JWT-SVID; using the one in use");
                    Ok(token)
                }
                None => Err(error),
            },
        }
    }

    async fn fetch_new(&self, audience: &str, now: i64) -> Result<OwnToken, Error> {
        let request = JwtsvidRequest {
            audience: vec![audience.to_owned()],
            spiffe_id: self.id.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let answer = self.api.call(async |mut client| client.fetch_jwtsvid(request).await).await?;
        let first = answer.svids.into_iter().next();
        let first = first
            .ok_or_else(|| self.api.failed(Status::internal("the answer holds no JWT-SVID")))?;
        // What nobody would accept from us is refused here first.
        let svid = read_unproved(&first.svid)?;
        let expected = self.id.as_ref().unwrap_or(&svid.id);
        if svid.id.as_str() != first.spiffe_id || svid.id != *expected {
            return Err(Error::OtherId {
                found: svid.id.to_string(),
                expected: expected.to_string(),
            });
        }
        let begun = svid.issued_at.unwrap_or(now).min(now);
        Ok(OwnToken {
            renew_at: begun + (svid.expires_at - begun) / 2,
            expires_at: svid.expires_at,
            id: svid.id,
            text: TokenText::new(first.svid),
        })
    }
}

/// Where the API is.
struct Api {
    endpoint: WorkloadEndpoint,
}

impl Api {
    fn new(settings: &WorkloadApiSettings) -> Result<Self, Error> {
        Ok(Self { endpoint: WorkloadEndpoint::of(settings.socket.as_deref())? })
    }

    fn address(&self) -> &str {
        &self.endpoint.text
    }

    async fn key_sets(&self) -> Result<Streaming<JwtBundlesResponse>, Error> {
        self.call(async |mut client| client.fetch_jwt_bundles(JwtBundlesRequest {}).await).await
    }

    /// One call on a connection of its own: what it is about is small and rare.
    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(Client) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Error> {
        let client = self.endpoint.connect().await?;
        match timeout(ANSWER_WITHIN, call(client)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failed(status)),
            Err(_) => Err(self.failed(Status::deadline_exceeded("no answer in time"))),
        }
    }

    fn failed(&self, status: Status) -> Error {
        Error::JwtApi { address: self.address().to_owned(), source: Box::new(status) }
    }
}
