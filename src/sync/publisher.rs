//! The control plane's end: follows the store and sends each data plane the least that it lacks of what it needs.
//!
//! One watch a process, one entry per resource, one delta under way per data plane. What changes while a delta is under way
//! is only noted by name, so a slow data plane costs no more than the names of what it needs, and gets the newest version of
//! each when it is ready again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, mem};

use bytes::Bytes;
use foldhash::fast::RandomState;
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::delta::{Delta, Key, Version, Versions};
use super::generated::feed as wire;
use super::generated::feed::feed_server::{Feed, FeedServer};
use super::generated::feed::from_data_plane::Message;
use super::scope::{Role, Rules, ScopeId, Scopes, Touched};
use crate::model::{Body, Id, Kind, Rejected, Revision};
use crate::rt::{DrainGuard, unix_seconds};
use crate::store::{Event, Store, Stored};

/// JSON bytes after which a delta goes on in a further message.
const PART_BYTES: usize = 1 << 20;
/// The longest message that a data plane may send.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// The most resources that a data plane may say it has.
const MAX_HELD: usize = 4 << 20;
/// The most refusals of one data plane that are kept, and the most bytes of each sentence.
const MAX_REFUSALS: usize = 4096;
const MAX_REASON_BYTES: usize = 1024;
/// How long a new stream may take to say Hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long a data plane that has been told a newer revision by another control plane is waited with for ours to come.
pub(super) const CATCH_UP_WITHIN: Duration = Duration::from_millis(500);
/// A data plane that does not answer a ping within twice this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

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

/// An established connection, with the SPIFFE ID that its handshake verified.
#[derive(Debug)]
pub struct PeerStream<S> {
    /// The bytes, TLS taken off.
    pub stream: S,
    /// Who is at the other end.
    pub spiffe_id: Arc<str>,
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
    /// What it refuses. The version before each is in force there.
    pub rejected: Vec<Rejected>,
    /// Resources sent on this connection, and deletions.
    pub sent: u64,
}

impl Convergence {
    /// Has everybody answered the state of this revision?
    pub fn has_applied(&self, revision: Revision) -> bool {
        self.revision >= revision && self.data_planes.iter().all(|plane| plane.applied >= revision)
    }
}

impl Publisher {
    /// A publisher that has read nothing yet: data planes may connect and wait.
    pub fn new(rules: Rules, authorize: Authorize) -> Self {
        let state = State {
            revision: 0,
            is_loaded: false,
            resources: HashMap::default(),
            unreadable: BTreeMap::new(),
            scopes: Scopes::new(rules),
            planes: BTreeMap::new(),
            members: BTreeMap::new(),
            next_plane: 0,
        };
        let shared = Shared { state: Mutex::new(state), authorize, progress: watch::channel(0).0 };
        Self { shared: Arc::new(shared) }
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
            self.shared.take_in(event, prefix);
        }
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
    pub(super) fn reset(&self, listing: crate::store::Listing, prefix: &str) {
        self.shared.take_in(Event::Reset(listing), prefix);
    }
}

struct Shared {
    state: Mutex<State>,
    authorize: Authorize,
    /// Counts whatever may bring [`Publisher::wait_applied`] further.
    progress: watch::Sender<u64>,
}

struct State {
    revision: Revision,
    /// An empty store and a store that was not read yet are two things: nobody is told to drop everything before this holds.
    is_loaded: bool,
    resources: HashMap<Key, Published, RandomState>,
    unreadable: BTreeMap<Key, Rejected>,
    scopes: Scopes,
    planes: BTreeMap<PlaneId, Plane>,
    members: BTreeMap<ScopeId, BTreeSet<PlaneId>>,
    next_plane: PlaneId,
}

type PlaneId = u64;

struct Published {
    version: Version,
    json: Bytes,
}

impl Published {
    fn of(revision: Revision, json: Bytes) -> Self {
        Self { version: Version::of(revision, &json), json }
    }
}

/// One connected data plane, as the publisher sees it.
struct Plane {
    spiffe_id: Arc<str>,
    greeting: Greeting,
    scope: ScopeId,
    connected_since: i64,
    /// What it has once it has taken what was sent.
    has: Versions,
    /// Has it been sent its first delta?
    is_greeted: bool,
    /// What changed since the last delta was sent, and the revision of the first such change.
    changed: HashSet<Key, RandomState>,
    changed_since: Option<Revision>,
    under_way: Option<UnderWay>,
    nonce: u64,
    rejected: Vec<Rejected>,
    sent: u64,
    /// Another stream of the same process took over.
    is_replaced: bool,
    wake: Arc<Notify>,
}

struct UnderWay {
    /// The revision of the first change in it.
    since: Revision,
    nonce: u64,
}

/// What a data plane says of itself.
struct Greeting {
    role: Role,
    node: String,
    version: String,
    instance: String,
    /// The revision that is in force there; 0 for none.
    revision: Revision,
}

impl Shared {
    fn take_in(&self, event: Event, prefix: &str) {
        match event {
            Event::Put(stored) => {
                let revision = stored.modified;
                if let Some(entry) = read(prefix, &stored) {
                    let mut state = self.state.lock();
                    state.revision = revision;
                    state.put(entry);
                } else {
                    self.state.lock().revision = revision;
                }
            }
            Event::Delete { key, revision } => {
                let mut state = self.state.lock();
                state.revision = revision;
                if let Some(key) = key.strip_prefix(prefix).and_then(Kind::split_key) {
                    state.delete(&key);
                }
            }
            Event::Reset(listing) => {
                // Reading takes long; nobody waits for the lock meanwhile.
                let read = listing.entries.into_iter().filter_map(|stored| read(prefix, &stored));
                let entries: Vec<Entry> = read.collect();
                let mut state = self.state.lock();
                state.revision = listing.revision;
                state.swap(entries);
                state.is_loaded = true;
                for plane in state.planes.values() {
                    plane.wake.notify_one();
                }
            }
        }
        self.advance();
    }

    fn advance(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    /// Waits until the store's revision is one that a data plane had from another control plane, which may be ahead by a moment:
    /// what it has in force must not be taken back for that moment. A store that began anew stays behind, so only so long.
    async fn catch_up(&self, revision: Revision) {
        let mut progress = self.progress.subscribe();
        let reached = async {
            while self.state.lock().revision < revision {
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
        let mut state = self.state.lock();
        for plane in state.planes.values_mut() {
            let same = plane.spiffe_id == spiffe_id && plane.greeting.instance == greeting.instance;
            if same && !greeting.instance.is_empty() {
                plane.is_replaced = true;
                plane.wake.notify_one();
            }
        }
        let id = state.next_plane;
        state.next_plane += 1;
        let scope = state.scopes.enter(greeting.role, &spiffe_id);
        let wake = Arc::new(Notify::new());
        let plane = Plane {
            spiffe_id,
            greeting,
            scope,
            connected_since: unix_seconds(),
            has,
            is_greeted: false,
            changed: HashSet::default(),
            changed_since: None,
            under_way: None,
            nonce: 0,
            rejected: Vec::new(),
            sent: 0,
            is_replaced: false,
            wake: wake.clone(),
        };
        state.members.entry(scope).or_default().insert(id);
        state.planes.insert(id, plane);
        (id, wake)
    }

    fn leave(&self, id: PlaneId) {
        let mut state = self.state.lock();
        let Some(plane) = state.planes.remove(&id) else { return };
        if let Some(members) = state.members.get_mut(&plane.scope) {
            members.remove(&id);
            if members.is_empty() {
                state.members.remove(&plane.scope);
            }
        }
        state.scopes.leave(plane.scope);
        drop(state);
        info!(peer = %plane.spiffe_id, node = plane.greeting.node, "a data plane left the feed");
        self.advance();
    }
}

/// A stored resource, as far as it can be read.
struct Entry {
    key: Key,
    published: Published,
    body: Result<Body, String>,
}

fn read(prefix: &str, stored: &Stored) -> Option<Entry> {
    // Whatever else lives under the prefix (placeholders, kinds that we do not know) is not ours to publish.
    let key = stored.key.strip_prefix(prefix).and_then(Kind::split_key)?;
    let json = json_text(&stored.value);
    let body = Body::parse(key.0, &stored.value).map_err(|invalid| invalid.to_string());
    Some(Entry { key, published: Published::of(stored.modified, json), body })
}

/// Kinds that every data plane must know of, readable or not, so that it keeps closed what they might have closed.
fn is_for_everybody(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::IdentityPolicies | Kind::IdentityModes | Kind::TrustDomains | Kind::Revocations
    )
}

fn json_text(value: &Value) -> Bytes {
    value.to_string().into()
}

impl State {
    fn swap(&mut self, entries: Vec<Entry>) {
        let named: HashSet<&Key, RandomState> = entries.iter().map(|entry| &entry.key).collect();
        let known = self.resources.keys().chain(self.unreadable.keys());
        let gone: BTreeSet<Key> = known.filter(|key| !named.contains(key)).cloned().collect();
        for key in gone {
            self.delete(&key);
        }
        for entry in entries {
            self.put(entry);
        }
    }

    fn put(&mut self, Entry { key, mut published, body }: Entry) {
        let known = self.resources.get(&key).map(|known| known.version);
        if known == Some(published.version) {
            return;
        }
        let read = match &body {
            Ok(body) => self.scopes.put(&key, body).map_err(|invalid| invalid.to_string()),
            Err(why) => Err(why.clone()),
        };
        let touched = match read {
            Ok(touched) => {
                if self.unreadable.remove(&key).is_some() {
                    self.tell_holders(&key);
                }
                touched
            }
            Err(reason) => {
                let (kind, id) = key.clone();
                let revision = published.version.revision;
                warn!(%kind, %id, revision, reason, "a resource of the store cannot be read");
                let rejected = Rejected { kind, id, revision, reason };
                let was_unreadable = self.unreadable.insert(key.clone(), rejected).is_some();
                let before = self.resources.contains_key(&key) && !was_unreadable;
                if before && !is_for_everybody(kind) {
                    return;
                }
                // Whoever would serve a route must know of it, so that no broader one takes its requests.
                match self.closed(kind, &mut published).map(|closed| self.scopes.put(&key, &closed))
                {
                    Some(Ok(touched)) => touched,
                    Some(Err(_)) | None => self.scopes.put_unreadable(&key),
                }
            }
        };
        self.resources.insert(key, published);
        self.note(touched);
    }

    /// What would stand in the place of a resource that cannot be read. Where nobody can tell whose it is, no more than its place
    /// is published: it goes to workloads that it was perhaps not meant for.
    fn closed(&self, kind: Kind, published: &mut Published) -> Option<Body> {
        let value: Value = serde_json::from_slice(&published.json).ok()?;
        let is_pattern = |text: &str| self.scopes.reads_pattern(text);
        let Some(place) = Body::closed_for_all(kind, &value, is_pattern) else {
            return if is_for_everybody(kind) { None } else { Body::closed(kind, &value) };
        };
        *published = Published::of(published.version.revision, json_text(&place));
        Body::parse(kind, &place).ok()
    }

    /// What could not be read took nothing away from those that had it, wherever they are; now it can, or is gone.
    fn tell_holders(&mut self, key: &Key) {
        for plane in self.planes.values_mut().filter(|plane| plane.has.contains_key(key)) {
            plane.changed_since.get_or_insert(self.revision);
            plane.changed.insert(key.clone());
            plane.wake.notify_one();
        }
    }

    fn delete(&mut self, key: &Key) {
        if self.unreadable.remove(key).is_some() {
            self.tell_holders(key);
        }
        self.resources.remove(key);
        let touched = self.scopes.delete(key);
        self.note(touched);
    }

    /// Notes for each data plane concerned what it must be told.
    fn note(&mut self, touched: Vec<Touched>) {
        for (scope, key) in touched {
            for id in self.members.get(&scope).into_iter().flatten() {
                let Some(plane) = self.planes.get_mut(id) else { continue };
                plane.changed_since.get_or_insert(self.revision);
                plane.changed.insert(key.clone());
                plane.wake.notify_one();
            }
        }
    }

    /// The next delta for a data plane: none while one is under way, or when it lacks nothing.
    fn next_delta(&mut self, id: PlaneId) -> Option<VecDeque<wire::Delta>> {
        let plane = self.planes.get_mut(&id)?;
        if !self.is_loaded || plane.under_way.is_some() {
            return None;
        }
        let wanted = |key: &Key| {
            if self.scopes.needs(plane.scope, key) {
                return self.resources.get(key).map(|published| published.version);
            }
            // Nobody can tell whose it is: it takes nothing away.
            plane.has.get(key).copied().filter(|_| self.unreadable.contains_key(key))
        };
        let is_first = !mem::replace(&mut plane.is_greeted, true);
        let changed = mem::take(&mut plane.changed);
        let since = plane.changed_since.take().unwrap_or(self.revision);
        let (delta, complete) = if is_first {
            let keys = plane.has.keys().chain(self.scopes.all(plane.scope));
            (Delta::within(keys, &plane.has, wanted), plane.has.is_empty())
        } else {
            (Delta::within(changed.iter(), &plane.has, wanted), false)
        };
        // The first one goes out even when it is empty: it tells that there is nothing to tell.
        if delta.is_empty() && !is_first {
            return None;
        }
        delta.apply(&mut plane.has);
        plane.nonce += 1;
        // Until the first answer nothing is known to be in force there.
        let since = if is_first { 1 } else { since };
        plane.under_way = Some(UnderWay { since, nonce: plane.nonce });
        plane.sent += u64::try_from(delta.puts.len() + delta.deletes.len()).unwrap_or(u64::MAX);
        let nonce = plane.nonce;
        Some(self.parts(&delta, nonce, complete))
    }

    fn parts(&self, delta: &Delta, nonce: u64, complete: bool) -> VecDeque<wire::Delta> {
        let empty = || wire::Delta { nonce, more: true, ..wire::Delta::default() };
        let mut parts = VecDeque::new();
        let (mut part, mut bytes) = (empty(), 0);
        let mut count = |part: &mut wire::Delta, more: usize| {
            bytes += more;
            if bytes >= PART_BYTES {
                bytes = 0;
                parts.push_back(mem::replace(part, empty()));
            }
        };
        for (kind, id) in &delta.deletes {
            part.deletes.push(wire::Name { kind: kind.name().into(), id: id.to_string() });
            count(&mut part, 32);
        }
        for (key, version) in &delta.puts {
            let Some(published) = self.resources.get(key) else { continue };
            part.puts.push(wire::Put {
                kind: key.0.name().into(),
                id: key.1.to_string(),
                revision: version.revision,
                json: published.json.clone(),
            });
            count(&mut part, published.json.len() + 32);
        }
        part.more = false;
        part.revision = self.revision;
        part.complete = complete;
        parts.push_back(part);
        parts
    }

    fn answered(&mut self, id: PlaneId, ack: wire::Ack) -> Result<(), Status> {
        let Some(plane) = self.planes.get_mut(&id) else { return Ok(()) };
        // Without a nonce it answers no delta: something that was sent before is refused by now, or no longer.
        if ack.nonce != 0 {
            match plane.under_way.take() {
                Some(under_way) if under_way.nonce == ack.nonce => {}
                _ => {
                    return Err(Status::invalid_argument("acknowledges a delta that was not sent"));
                }
            }
        }
        let refusals = ack.rejected.into_iter().take(MAX_REFUSALS).filter_map(|refusal| {
            // A kind or an id that we do not know we cannot have sent.
            Some(Rejected {
                kind: Kind::named(&refusal.kind)?,
                id: Id::parse(&refusal.id).ok()?,
                revision: refusal.revision,
                reason: shortened(refusal.reason),
            })
        });
        let before = mem::replace(&mut plane.rejected, refusals.collect());
        for refusal in plane.rejected.iter().filter(|refusal| !before.contains(refusal)) {
            let Rejected { kind, id, revision, reason } = refusal;
            let (peer, node) = (&plane.spiffe_id, &plane.greeting.node);
            warn!(%peer, node, %kind, %id, revision, reason, "a data plane refuses a resource");
        }
        Ok(())
    }

    /// As [`Convergence::has_applied`], and without a copy of everything: it is asked at each answer.
    fn has_applied(&self, revision: Revision) -> bool {
        let mut planes = self.planes.values().filter(|plane| !plane.is_replaced);
        self.revision >= revision && planes.all(|plane| plane.applied(self.revision) >= revision)
    }

    fn convergence(&self) -> Convergence {
        let mut data_planes: Vec<DataPlane> = self
            .planes
            .values()
            .filter(|plane| !plane.is_replaced)
            .map(|plane| DataPlane {
                spiffe_id: plane.spiffe_id.clone(),
                node: plane.greeting.node.clone(),
                version: plane.greeting.version.clone(),
                role: plane.greeting.role,
                connected_since: plane.connected_since,
                applied: plane.applied(self.revision),
                rejected: plane.rejected.clone(),
                sent: plane.sent,
            })
            .collect();
        data_planes.sort_by(|a, b| (&a.spiffe_id, &a.node).cmp(&(&b.spiffe_id, &b.node)));
        let unreadable = self.unreadable.values().cloned().collect();
        Convergence { revision: self.revision, data_planes, unreadable }
    }
}

impl Plane {
    fn applied(&self, current: Revision) -> Revision {
        if !self.is_greeted {
            return 0;
        }
        let waits_for =
            [self.under_way.as_ref().map(|under_way| under_way.since), self.changed_since];
        waits_for.into_iter().flatten().min().map_or(current, |first| first.saturating_sub(1))
    }
}

fn shortened(mut reason: String) -> String {
    let end = (0..=MAX_REASON_BYTES).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
    reason.truncate(end);
    reason
}

/// The gRPC service.
struct Service {
    shared: Arc<Shared>,
    drain: DrainGuard,
}

#[tonic::async_trait]
impl Feed for Service {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<wire::Delta, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::FromDataPlane>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let spiffe_id =
            request.extensions().get::<VerifiedPeer>().map(|peer| peer.0.clone()).ok_or_else(
                || Status::unauthenticated("the connection has no verified identity"),
            )?;
        let mut inbound = request.into_inner();
        let hello = tokio::time::timeout(HELLO_WITHIN, hello(&mut inbound));
        let (greeting, has) =
            hello.await.map_err(|_| Status::deadline_exceeded("no Hello within 10 seconds"))??;
        let role = greeting.role;
        if !(self.shared.authorize)(&spiffe_id, role) {
            warn!(peer = %spiffe_id, %role, "a peer asked for a feed that it may not have");
            return Err(Status::permission_denied(format!(
                "{spiffe_id} may not be a data plane of role {role}"
            )));
        }
        info!(peer = %spiffe_id, %role, node = greeting.node, has = has.len(), "a data plane joined the feed");
        self.shared.catch_up(greeting.revision).await;
        let (plane, wake) = self.shared.enter(spiffe_id, greeting, has);
        let session = Session {
            shared: self.shared.clone(),
            drain: self.drain.clone(),
            plane,
            wake,
            inbound,
            parts: VecDeque::new(),
            is_over: false,
        };
        let deltas = stream::unfold(session, |mut session| async move {
            session.next().await.map(|delta| (delta, session))
        });
        Ok(Response::new(Box::pin(deltas)))
    }
}

async fn hello(
    inbound: &mut Streaming<wire::FromDataPlane>,
) -> Result<(Greeting, Versions), Status> {
    let expected = || Status::invalid_argument("the first message must be a Hello");
    let mut greeting = None;
    let mut has = Versions::default();
    loop {
        let message = inbound.message().await?.and_then(|message| message.message);
        let Some(Message::Hello(hello)) = message else { return Err(expected()) };
        for held in hello.have {
            // What this control plane cannot name it can neither send nor delete.
            let Some(kind) = Kind::named(&held.kind) else { continue };
            if has.len() + held.versions.len() > MAX_HELD {
                return Err(Status::resource_exhausted("more resources than any data plane has"));
            }
            has.extend(held.versions.into_iter().filter_map(|version| {
                let wire::HeldVersion { id, revision, fingerprint } = version;
                Some(((kind, Id::parse(&id).ok()?), Version { revision, fingerprint }))
            }));
        }
        if greeting.is_none() {
            let role = Role::named(&hello.role).ok_or_else(|| {
                Status::invalid_argument("role must be sidecar, ingress or issuer")
            })?;
            greeting = Some(Greeting {
                role,
                node: name("node", hello.node)?,
                version: name("version", hello.version)?,
                instance: name("instance", hello.instance)?,
                revision: hello.revision,
            });
        }
        if let Some(greeting) = greeting.take_if(|_| !hello.more) {
            return Ok((greeting, has));
        }
    }
}

/// Names go into logs and onto the dashboard.
fn name(field: &str, text: String) -> Result<String, Status> {
    if text.len() <= 253 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(Status::invalid_argument(format!("{field} must be at most 253 visible ASCII letters")))
    }
}

/// One data plane's stream. Dropped when the data plane is gone.
struct Session {
    shared: Arc<Shared>,
    drain: DrainGuard,
    plane: PlaneId,
    wake: Arc<Notify>,
    inbound: Streaming<wire::FromDataPlane>,
    parts: VecDeque<wire::Delta>,
    is_over: bool,
}

impl Session {
    async fn next(&mut self) -> Option<Result<wire::Delta, Status>> {
        loop {
            if self.is_over {
                return None;
            }
            if let Some(part) = self.parts.pop_front() {
                return Some(Ok(part));
            }
            if self.is_replaced() {
                return self.end(Status::aborted("another stream of this process took over"));
            }
            if let Some(parts) = self.next_delta() {
                self.parts = parts;
                continue;
            }
            let message = tokio::select! {
                biased;
                () = self.drain.asked() => {
                    return self.end(Status::unavailable("the control plane is going away"));
                }
                message = self.inbound.message() => message,
                () = self.wake.notified() => continue,
            };
            match message.ok().flatten().map(|message| message.message) {
                Some(Some(Message::Ack(ack))) => {
                    let answered = self.shared.state.lock().answered(self.plane, ack);
                    self.shared.advance();
                    if let Err(status) = answered {
                        return self.end(status);
                    }
                }
                Some(_) => return self.end(Status::invalid_argument("expected an Ack")),
                None => return None,
            }
        }
    }

    fn is_replaced(&self) -> bool {
        self.shared.state.lock().planes.get(&self.plane).is_none_or(|plane| plane.is_replaced)
    }

    fn next_delta(&self) -> Option<VecDeque<wire::Delta>> {
        let delta = self.shared.state.lock().next_delta(self.plane);
        if delta.is_none() {
            // Perhaps what had changed has changed back: then nothing is waited for any more.
            self.shared.advance();
        }
        delta
    }

    #[expect(clippy::unnecessary_wraps, reason = "what next returns")]
    fn end(&mut self, status: Status) -> Option<Result<wire::Delta, Status>> {
        self.is_over = true;
        Some(Err(status))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.leave(self.plane);
    }
}

/// The verified SPIFFE ID of a connection, as tonic carries it to the service.
#[derive(Clone, Debug)]
pub struct VerifiedPeer(Arc<str>);

impl VerifiedPeer {
    /// The SPIFFE ID.
    pub fn spiffe_id(&self) -> &Arc<str> {
        &self.0
    }
}

impl<S> Connected for PeerStream<S> {
    type ConnectInfo = VerifiedPeer;
    fn connect_info(&self) -> VerifiedPeer {
        VerifiedPeer(self.spiffe_id.clone())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PeerStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeerStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
