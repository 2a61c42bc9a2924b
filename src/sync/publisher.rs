//! The control plane's end: follows the store and sends each data plane the least that it lacks of what it needs.
//!
//! One watch a process, one entry per resource, one delta under way per data plane. What changes while a delta is under way
//! is only noted by name, so a slow data plane costs no more than the names of what it needs, and gets the newest version of
//! each when it is ready again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tonic::service::Routes;
use tonic::transport::Server;
use tracing::{info, warn};

use self::plane::{Greeting, Side};
use self::session::Service;
use self::state::{PlaneId, State};
use self::track::Entry;
use self::trial::{Trial, Whole};
use super::canary::{CanarySettings, Past, Record, Report, known};
use super::delta::Versions;
use super::fleet::Presence;
use super::generated::feed::feed_server::FeedServer;
use super::scope::{Role, Rules};
use crate::model::{Rejected, Revision};
use crate::rt::DrainGuard;
use crate::store::{Event, Listing, Store};

mod connection;
mod plane;
mod session;
mod state;
mod track;
mod trial;

pub use self::connection::{PeerStream, VerifiedPeer};
pub(super) use self::trial::Outlook;

/// The longest message that a data plane may send.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// How long a data plane that has been told a newer revision by another control plane is waited with for ours to come.
pub(super) const CATCH_UP_WITHIN: Duration = Duration::from_millis(500);
/// A data plane that does not answer a ping within twice this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long a store that does not tell what is tried is left alone.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// May a peer of this SPIFFE ID be a data plane of this role?
pub type Authorize = Arc<dyn Fn(&str, Role) -> bool + Send + Sync>;

/// Why the feed cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The gRPC server ended by itself.
    #[error("the feed's server ended")]
    Server(#[source] tonic::transport::Error),
    /// The store that was followed is gone.
    #[error("the store that the feed follows is gone")]
    StoreGone,
}

/// Serves the feed. Cloning is cheap; all clones are one publisher.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

/// Which data plane runs what.
#[derive(Clone, Debug, Default)]
pub struct Convergence {
    /// The store's revision that the publisher has reached; 0 before it has read the store.
    pub revision: Revision,
    /// The connected data planes, by SPIFFE ID and node.
    pub data_planes: Vec<DataPlane>,
    /// Resources of the store that cannot be read. The version before, if the publisher saw one, is still published.
    pub unreadable: Vec<Rejected>,
}

/// One connected data plane.
#[derive(Clone, Debug)]
pub struct DataPlane {
    /// Who its certificate says it is.
    pub spiffe_id: Arc<str>,
    /// What it calls itself.
    pub node: String,
    /// Its version.
    pub version: String,
    /// Its role.
    pub role: Role,
    /// When it connected, in seconds since 1970.
    pub connected_since: i64,
    /// The newest revision of which everything that concerns it was answered; changes that do not concern it count as applied.
    pub applied: Revision,
    /// Newer revisions that it has answered all the same: they went past what is tried.
    pub beside: Vec<Revision>,
    /// Does it try what others do not have yet?
    pub is_canary: bool,
    /// What it refuses. The version before each is in force there.
    pub rejected: Vec<Rejected>,
    /// Resources sent on this connection, and deletions.
    pub sent: u64,
}

impl Convergence {
    /// Has everybody answered the state of this revision?
    pub fn has_applied(&self, revision: Revision) -> bool {
        self.revision >= revision && self.data_planes.iter().all(|plane| plane.has(revision))
    }
}

impl DataPlane {
    /// Has it answered the state of this revision?
    pub fn has(&self, revision: Revision) -> bool {
        self.applied >= revision || self.beside.contains(&revision)
    }
}

impl Publisher {
    /// A publisher that has read nothing yet: data planes may connect and wait.
    pub fn new(rules: Rules, authorize: Authorize) -> Self {
        let state = State::new(rules);
        let shared = Shared {
            state: Mutex::new(state),
            authorize,
            progress: watch::channel(0).0,
            gate: None,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The same where pushes have canaries. What lies in the store below `prefix` is given to everybody only when
    /// [`super::canary::Course`] says so.
    pub fn with_canaries(
        rules: Rules,
        authorize: Authorize,
        (settings, prefix): (&CanarySettings, &str),
        past: Arc<dyn Past>,
    ) -> Self {
        let mut state = State::new(rules.clone());
        state.trial = Some(Box::new(Trial::new(rules, settings, prefix)));
        let progress = watch::channel(0).0;
        let gate = Some(past);
        Self { shared: Arc::new(Shared { state: Mutex::new(state), authorize, progress, gate }) }
    }

    /// Follows `store` below `prefix` (such as `/apisix`) until the drain is asked for.
    ///
    /// # Errors
    /// The store itself is gone. One that is merely unreachable is waited for.
    pub async fn follow(
        &self,
        store: &dyn Store,
        prefix: &str,
        mut drain: DrainGuard,
    ) -> Result<(), Error> {
        let prefix = prefix.trim_end_matches('/');
        let mut watch = store.watch(&format!("{prefix}/"), 0);
        loop {
            let event = tokio::select! {
                () = drain.asked() => return Ok(()),
                event = watch.next() => event.ok_or(Error::StoreGone)?,
            };
            match (&self.shared.gate, event) {
                (Some(past), Event::Reset(listing)) => {
                    let whole = self.arrive_whole(store, prefix, &**past, &listing);
                    tokio::select! {
                        () = drain.asked() => return Ok(()),
                        () = whole => {}
                    }
                }
                (Some(_), event) => self.shared.change(|state| state.arrive(&event)),
                (None, event) => self.shared.take(event, prefix),
            }
        }
    }

    /// Everything was read. What everybody has of it is asked as long as the store does not tell.
    async fn arrive_whole(
        &self,
        store: &dyn Store,
        prefix: &str,
        past: &dyn Past,
        listing: &Listing,
    ) {
        loop {
            match known(store, prefix, past, listing.revision).await {
                Ok(known) => {
                    // Reading takes long; nobody waits for the lock meanwhile.
                    let whole = Whole::of(listing, known, prefix);
                    return self.shared.change(|state| state.arrive_whole(whole));
                }
                Err(error) => {
                    warn!(%error, "the store does not tell what is tried; trying again");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    /// What would be tried now, if anything.
    pub(super) fn outlook(
        &self,
        settings: &CanarySettings,
        settles: (Duration, Duration),
    ) -> Option<Outlook> {
        self.shared.state.lock().outlook(settings, settles)
    }

    /// The record of what is tried has changed.
    pub(super) fn follow_record(&self, record: &Record) {
        self.shared.change(|state| state.follow_record(record));
    }

    /// What this revision wrote waits for no canary.
    pub(super) fn let_past(&self, revision: Revision) {
        self.shared.change(|state| state.let_past(revision));
    }

    /// What is seen of those who try something, and of the others.
    pub(super) fn report(&self) -> Report {
        self.shared.state.lock().report()
    }

    /// The record as it is followed here.
    pub(super) fn record(&self) -> Option<Record> {
        self.shared.state.lock().trial.as_ref().map(|trial| trial.record().clone())
    }

    /// How many data planes are connected here.
    pub(super) fn data_planes(&self) -> u64 {
        u64::try_from(self.shared.state.lock().planes.len()).unwrap_or(u64::MAX)
    }

    /// How far the data planes are, all together.
    pub(super) fn presence(&self) -> Presence {
        self.shared.state.lock().presence()
    }

    /// The newest revision of the store that was seen.
    pub fn reached(&self) -> Revision {
        self.shared.state.lock().newest()
    }

    /// Was the store read?
    pub fn is_loaded(&self) -> bool {
        self.shared.state.lock().is_loaded
    }

    /// Serves data planes on the connections that come, until the drain is asked for; then each stream ends, so that the data
    /// planes turn to another control plane.
    ///
    /// # Errors
    /// The server ends by itself.
    pub async fn serve<S>(
        &self,
        incoming: impl Stream<Item = PeerStream<S>>,
        drain: DrainGuard,
    ) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve_beside(Routes::default(), incoming, drain).await
    }

    /// The same with other services on the same connections; their requests bear a [`VerifiedPeer`].
    ///
    /// # Errors
    /// As [`Publisher::serve`].
    pub async fn serve_beside<S>(
        &self,
        others: Routes,
        incoming: impl Stream<Item = PeerStream<S>>,
        drain: DrainGuard,
    ) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = Service { shared: self.shared.clone(), drain: drain.clone() };
        let service = FeedServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(usize::MAX);
        let mut asked = drain;
        Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .max_concurrent_streams(8)
            .add_routes(others)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming.map(Ok::<_, io::Error>), async move {
                asked.asked().await;
            })
            .await
            .map_err(Error::Server)
    }

    /// Who runs what, now.
    pub fn convergence(&self) -> Convergence {
        self.shared.state.lock().convergence()
    }

    /// Waits until every connected data plane has answered the state of `revision`, at most `within`. The result tells whether
    /// they have ([`Convergence::has_applied`]), who has not, and who refused what.
    pub async fn wait_applied(&self, revision: Revision, within: Duration) -> Convergence {
        let mut progress = self.shared.progress.subscribe();
        let settled = async {
            while !self.shared.state.lock().has_applied(revision) {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(within, settled).await;
        self.convergence()
    }

    /// As if a data plane of this revision had come.
    #[cfg(test)]
    pub(super) async fn caught_up(&self, revision: Revision) {
        self.shared.catch_up(revision).await;
    }

    /// As if the store had answered a watch with this.
    #[cfg(test)]
    pub(super) fn reset(&self, listing: Listing, prefix: &str) {
        self.shared.take(Event::Reset(listing), prefix);
    }
}

struct Shared {
    state: Mutex<State>,
    authorize: Authorize,
    /// Counts whatever may bring [`Publisher::wait_applied`] further.
    progress: watch::Sender<u64>,
    /// Where pushes have canaries: what remembers what resources were.
    gate: Option<Arc<dyn Past>>,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.advance();
    }

    /// Where pushes have no canaries.
    fn take(&self, event: Event, prefix: &str) {
        let Event::Reset(listing) = event else {
            return self.change(|state| state.take(event, prefix));
        };
        // Reading takes long; nobody waits for the lock meanwhile.
        let read = listing.entries.iter().filter_map(|stored| track::read(prefix, stored));
        let entries: Vec<Entry> = read.collect();
        self.change(|state| {
            state.swap(Side::Stable, entries, listing.revision);
            state.loaded();
        });
    }

    fn advance(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    /// Waits until the store's revision is one that a data plane had from another control plane, which may be ahead by a moment:
    /// what it has in force must not be taken back for that moment. A store that began anew stays behind, so only so long.
    async fn catch_up(&self, revision: Revision) {
        let mut progress = self.progress.subscribe();
        let reached = async {
            while self.state.lock().newest() < revision {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(CATCH_UP_WITHIN, reached).await;
    }

    fn enter(
        &self,
        spiffe_id: Arc<str>,
        greeting: Greeting,
        has: Versions,
    ) -> (PlaneId, Arc<Notify>) {
        self.state.lock().enter(spiffe_id, greeting, has)
    }

    fn leave(&self, id: PlaneId) {
        let Some(plane) = self.state.lock().leave(id) else { return };
        info!(peer = %plane.spiffe_id, node = plane.greeting.node, "a data plane left the feed");
        self.advance();
    }
}
