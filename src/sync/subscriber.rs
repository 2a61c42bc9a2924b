//! The data plane's end: follows a control plane, whatever comes between, and keeps the last good copy.
//!
//! The first batch is the last good copy, if there is one. Then the subscriber connects, tells what is in force, receives what
//! differs, and answers when the reader has; when the connection ends it begins again. A control plane that is away, however
//! long, takes nothing away.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use foldhash::fast::RandomState;
use futures_util::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::sleep_until;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tracing::{error, info, warn};

use super::canary::Counts;
use super::delta::{Key, Version};
use super::generated::feed as wire;
use super::generated::feed::feed_client::FeedClient;
use super::generated::feed::from_data_plane::Message;
use super::last_good::{LastGood, Raw, RawState, Saved};
use super::probation::{HeldOff, Probation, Sum};
use super::scope::Role;
use super::{Applied, Batch, Feed};
use crate::model::{Change, Id, Invalid, Kind, Rejected, Resource, Revision};
use crate::rt::{Backoff, Live, Publisher, Tasks, causes, unix_seconds};

/// The longest message that a control plane may send. It splits what is longer, but not a single resource.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Resources that one Hello names before it goes on in the next.
const HELLO_VERSIONS: usize = 20_000;

/// Tells what this data plane has counted since its process started. Asked every few seconds, where the control plane wants it.
pub type Count = Arc<dyn Fn() -> Counts + Send + Sync>;

/// What a subscriber is told at its start.
#[derive(Clone)]
pub struct Settings {
    /// What this data plane is.
    pub role: Role,
    /// Its name for people: the node, the pod. Visible ASCII, at most 253 bytes.
    pub node: String,
    /// Its version.
    pub version: String,
    /// How long a connection may take to be established, handshake included.
    pub connect_within: Duration,
    /// How often a silent control plane is pinged; one that does not answer within the same time again is left.
    pub keep_alive: Duration,
    /// The first and the longest time between two attempts.
    pub retry: (Duration, Duration),
    /// The shortest time between two writes of the last good copy.
    pub save_after: Duration,
    /// How long a new stream may say nothing before another control plane is tried: one may have no store. For ever when not given.
    pub first_within: Option<Duration>,
    /// What its settings say of it, by which it may be among the first that get a change.
    pub labels: BTreeMap<String, String>,
    /// What it has counted; nothing where nobody counts.
    pub count: Option<Count>,
}

impl Settings {
    /// The usual times.
    pub fn new(role: Role, node: impl Into<String>) -> Self {
        Self {
            role,
            node: node.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            connect_within: Duration::from_secs(10),
            keep_alive: Duration::from_secs(10),
            retry: (Duration::from_millis(100), Duration::from_secs(10)),
            save_after: Duration::from_secs(1),
            first_within: None,
            labels: BTreeMap::new(),
            count: None,
        }
    }

    /// With these labels, and with what it counts.
    #[must_use]
    pub fn with_counts(self, labels: BTreeMap<String, String>, count: Count) -> Self {
        Self { labels, count: Some(count), ..self }
    }

    /// With so many other control planes to go to. With one of them at least, one that is dead without a word is left soon.
    #[must_use]
    pub fn with_others(self, others: usize) -> Self {
        match others {
            0 => self,
            _ => Self {
                keep_alive: Duration::from_millis(700),
                first_within: Some(Duration::from_secs(10)),
                ..self
            },
        }
    }

    /// After so long at most a control plane that is dead without a word is left, and the next one asked.
    pub fn leaves_within(&self) -> Duration {
        self.keep_alive * 2 + self.retry.0
    }
}

/// Makes connections to a control plane. It answers for the control plane being the right one: mTLS with its SPIFFE ID.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// The established connection, TLS taken off.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// One more connection.
    ///
    /// # Errors
    /// Nobody answers, or the handshake fails.
    async fn connect(&self) -> io::Result<Self::Stream>;
}

/// How the feed stands, for readiness and status pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedStatus {
    /// Is there a control plane that answers?
    pub is_connected: bool,
    /// Since when this has been so, in seconds since 1970.
    pub since: i64,
    /// The revision in force; 0 for none.
    pub revision: Revision,
    /// Why the last connection failed or ended; none while connected.
    pub error: Option<String>,
    /// Why the last good copy could not be written the last time; none when it could.
    pub save_error: Option<String>,
    /// When the control plane was heard last, in seconds since 1970; before the first time, as the last good copy has it.
    pub heard_at: i64,
    /// What is not taken because the process died with it again and again.
    pub held_off: Option<HeldOff>,
}

/// A feed from a control plane. Dropping it ends the connection.
pub struct Subscriber {
    offers: mpsc::Receiver<Offer>,
    answer: Option<oneshot::Sender<Applied>>,
    status: Live<FeedStatus>,
    shared: Arc<Shared>,
    place: Option<Arc<LastGood>>,
    tasks: Tasks,
}

/// A batch for the reader, and where the answer goes.
struct Offer {
    batch: Batch,
    answer: oneshot::Sender<Applied>,
}

impl Subscriber {
    /// Starts to follow the control plane that `connect` reaches. `last_good` is what [`LastGood::open`] gave.
    pub fn start(
        settings: Settings,
        connect: impl Connect,
        last_good: Option<(LastGood, Option<Saved>)>,
    ) -> Self {
        // One batch at a time: the next one is asked for when this one was answered.
        let (sender, offers) = mpsc::channel(1);
        let since = unix_seconds();
        let (place, newest) =
            last_good.map_or((None, None), |(place, saved)| (Some(Arc::new(place)), saved));
        let (saved, held_off) = place.as_ref().map_or((None, None), |place| place.first(newest));
        let heard_at = saved.as_ref().map_or(since, |saved| saved.saved_at.min(since));
        let first = FeedStatus { since, heard_at, held_off, ..FeedStatus::default() };
        let (publisher, status) = Publisher::new(first);
        let probation = place.as_ref().and_then(|place| place.probation().cloned());
        let shared = Arc::new(Shared {
            held: Mutex::new(Saved::default()),
            is_unsaved: AtomicBool::new(false),
            unsaved: Notify::new(),
            report: Mutex::default(),
            reported: Notify::new(),
            turn: Mutex::new(()),
            status: publisher,
        });
        let mut tasks = Tasks::new();
        if let Some(place) = place.clone() {
            tasks.add(keep_saved(shared.clone(), place, settings.save_after));
        }
        if let Some(probation) = probation.clone() {
            let shared = shared.clone();
            tasks.add(async move {
                probation.watch(|| !shared.is_unsaved.load(Ordering::Acquire)).await;
            });
        }
        let worker = Worker {
            instance: uuid::Uuid::new_v4().to_string(),
            settings,
            connect: Arc::new(connect),
            offers: sender,
            shared: shared.clone(),
            waiting: RawState::default(),
            refused: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            leaving: HashSet::default(),
            unused: BTreeMap::new(),
            sum: Sum::default(),
            probation,
        };
        tasks.add(worker.run(saved));
        Self { offers, answer: None, status, shared, place, tasks }
    }

    /// How the feed stands.
    pub fn status(&self) -> Live<FeedStatus> {
        self.status.clone()
    }

    /// Ends the feed, and writes the last good copy if the newest state is not in it yet.
    pub async fn close(self) {
        let Self { shared, place, tasks, .. } = self;
        drop(tasks);
        if let Some(place) = place {
            shared.save(&place).await;
        }
    }
}

#[async_trait]
impl Feed for Subscriber {
    async fn next(&mut self) -> Batch {
        match self.offers.recv().await {
            Some(offer) => {
                self.answer = Some(offer.answer);
                offer.batch
            }
            // The worker runs as long as we live.
            None => std::future::pending().await,
        }
    }

    fn applied(&mut self, applied: Applied) {
        match self.answer.take() {
            // The worker has given up on this batch only when it has ended itself.
            Some(answer) => drop(answer.send(applied)),
            None => self.shared.report(applied),
        }
    }
}

struct Shared {
    /// What is in force: told to the control plane, and kept on disk.
    held: Mutex<Saved>,
    /// Is there something in `held` that was not given to the disk yet?
    is_unsaved: AtomicBool,
    unsaved: Notify,
    /// What came to be refused, or no longer, without a batch; the control plane has not heard of it yet.
    report: Mutex<Option<Applied>>,
    reported: Notify,
    /// Held by the one that writes.
    turn: Mutex<()>,
    status: Publisher<FeedStatus>,
}

impl Shared {
    fn report(&self, mut applied: Applied) {
        let mut report = self.report.lock();
        if let Some(before) = report.take() {
            applied.restored.extend(before.restored);
        }
        *report = Some(applied);
        drop(report);
        self.reported.notify_one();
    }

    fn update(&self, change: impl FnOnce(&mut FeedStatus)) {
        let mut status = FeedStatus::clone(&self.status.live().load());
        change(&mut status);
        self.status.set(status);
    }

    /// Writes what is newest, if it is not written yet. `false` when another process has the pen.
    async fn save(self: &Arc<Self>, place: &Arc<LastGood>) -> bool {
        if !self.is_unsaved.swap(false, Ordering::AcqRel) {
            return true;
        }
        let (shared, place) = (self.clone(), place.clone());
        let write = move || {
            // A write goes on when the task that waits for it has been dropped. The next one waits for its turn, and each
            // writes what is newest when it begins.
            let _turn = shared.turn.lock();
            let saved = shared.held.lock().clone();
            place.save(&saved)
        };
        let written = tokio::task::spawn_blocking(write).await;
        let problem = match written {
            Ok(Ok(true)) => None,
            Ok(Ok(false)) => {
                self.is_unsaved.store(true, Ordering::Release);
                return false;
            }
            Ok(Err(problem)) => Some(causes(&problem)),
            Err(panic) => Some(panic.to_string()),
        };
        if let Some(error) = &problem {
            error!(error, "the last good copy was not written");
            // The next change, or the end, tries again.
            self.is_unsaved.store(true, Ordering::Release);
        }
        self.update(|status| status.save_error = problem);
        true
    }
}

/// How often it is noted on the last good copy that nothing has changed.
const CONFIRM_EVERY: Duration = Duration::from_secs(30);

/// Writes what is in force: at once when it changes, but not oftener than each `after`, nor for more than a twentieth of the
/// time: among a hundred thousand resources a copy costs more than the changes that it is for.
async fn keep_saved(shared: Arc<Shared>, place: Arc<LastGood>, after: Duration) {
    loop {
        if tokio::time::timeout(CONFIRM_EVERY, shared.unsaved.notified()).await.is_err() {
            let status = shared.status.live().load();
            if status.is_connected && status.held_off.is_none() {
                place.confirm();
            }
            continue;
        }
        let began = tokio::time::Instant::now();
        while !shared.save(&place).await {
            place.pen().up().await;
        }
        tokio::time::sleep(after.max(began.elapsed() * 19)).await;
    }
}

struct Worker<C> {
    settings: Settings,
    instance: String,
    connect: Arc<C>,
    offers: mpsc::Sender<Offer>,
    shared: Arc<Shared>,
    /// Versions that the reader refuses: not in force, but they may come into force when what they refer to changes.
    waiting: RawState,
    /// What the reader has refused, also in earlier batches.
    refused: BTreeMap<Key, Rejected>,
    /// Versions that nobody here can read, by kind and id as the control plane named them.
    unreadable: BTreeMap<(String, String), wire::Refusal>,
    /// What was deleted, which the reader does not take yet.
    leaving: HashSet<Key, RandomState>,
    /// The versions of what is declared and cannot be read, where another one is held.
    unused: BTreeMap<Key, Version>,
    /// The sum over all that is declared.
    sum: Sum,
    probation: Option<Arc<Probation>>,
}

/// Why a stream ended.
enum End {
    /// It could not be established, broke, or the control plane ended it.
    Failed(String),
    /// Our own reader is gone.
    Over,
}

/// A delta on its way from its messages to the reader.
#[derive(Default)]
struct Incoming {
    nonce: u64,
    puts: Vec<(Key, Raw)>,
    deletes: Vec<Key>,
    revision: Revision,
    complete: bool,
    /// All that it names, whether it can be read or not.
    named: HashSet<Key, RandomState>,
    /// The names of its deletions, also of those that have no name here.
    names_gone: Vec<(String, String)>,
    unreadable: Vec<wire::Refusal>,
    /// The texts of those unreadable ones that have a name here.
    opaque: Vec<(Key, Raw)>,
    batch: Batch,
}

impl<C: Connect> Worker<C> {
    async fn run(mut self, saved: Option<Saved>) {
        if let Some(saved) = saved {
            info!(
                revision = saved.revision,
                resources = saved.resources.len(),
                "starting from the last good copy"
            );
            let mut incoming =
                Incoming { complete: true, revision: saved.revision, ..Incoming::default() };
            for (key, raw) in saved.resources {
                incoming.put(key, raw);
            }
            self.count(&incoming);
            // What is held off stays marked: what takes its place is on no probation.
            let holds_off = self.shared.status.live().load().held_off.is_some();
            if let Some(probation) = self.probation.as_ref().filter(|_| !holds_off) {
                probation.resume(self.sum, incoming.revision);
            }
            if self.take(incoming).await.is_none() {
                return;
            }
        }
        let (first, longest) = self.settings.retry;
        let mut backoff = Backoff::new(first, longest);
        loop {
            match self.follow(&mut backoff).await {
                End::Over => return,
                End::Failed(error) => {
                    warn!(error, "the feed is down; what is in force stays in force");
                    self.shared.update(|status| {
                        if status.is_connected {
                            status.since = unix_seconds();
                            status.heard_at = status.since;
                        }
                        status.is_connected = false;
                        status.error = Some(error);
                    });
                }
            }
            backoff.wait().await;
        }
    }

    /// One connection, from its first byte to its end.
    async fn follow(&mut self, backoff: &mut Backoff) -> End {
        let stream = match self.open().await {
            Ok(stream) => stream,
            Err(error) => return End::Failed(error),
        };
        let (mut deltas, answers) = stream;
        let mut incoming = Incoming::default();
        let mut silent_until =
            self.settings.first_within.map(|within| tokio::time::Instant::now() + within);
        let mut holds_off = false;
        // How often the control plane wants to hear what was counted, and when it hears it next.
        let (mut counts_every, mut counts_at) = (0, None);
        loop {
            let message = tokio::select! {
                message = deltas.message() => message,
                () = sleep_until(counts_at.unwrap_or_else(tokio::time::Instant::now)),
                    if counts_at.is_some() =>
                {
                    counts_at = next_counts(counts_every);
                    // While there is no room an answer is on its way; the next counts tell of these as well.
                    if let Some(counts) = self.counts() {
                        let _ = answers.try_send(from_us(Message::Counts(counts)));
                    }
                    continue;
                }
                () = sleep_until(silent_until.unwrap_or_else(tokio::time::Instant::now)),
                    if silent_until.is_some() =>
                {
                    let why = "the control plane has nothing to say; it may not reach its store";
                    return End::Failed(why.into());
                }
                () = self.shared.reported.notified() => {
                    let report = self.shared.report.lock().take();
                    let Some(ack) = report.map(|report| self.report(report)) else { continue };
                    if answers.send(from_us(Message::Ack(ack))).await.is_err() {
                        return End::Failed("the control plane ended the stream".into());
                    }
                    continue;
                }
            };
            silent_until = None;
            let delta = match message {
                Ok(Some(delta)) => delta,
                Ok(None) => return End::Failed("the control plane ended the stream".into()),
                Err(status) => return End::Failed(causes(&status)),
            };
            let is_last = !delta.more;
            if is_last && self.settings.count.is_some() && delta.counts_every != counts_every {
                counts_every = delta.counts_every;
                counts_at = (counts_every > 0).then(tokio::time::Instant::now);
            }
            if let Err(why) = incoming.add(delta) {
                return End::Failed(why);
            }
            if !is_last {
                continue;
            }
            backoff.reset();
            let nonce = incoming.nonce;
            if holds_off {
                // The control plane takes what was held off for taken: with what is in force now it begins anew.
                return End::Failed(
                    "what was held off is another one now, and is read anew".into(),
                );
            }
            let ack = match self.held_off(&incoming) {
                Some(ack) => {
                    holds_off = true;
                    incoming = Incoming::default();
                    ack
                }
                None => {
                    self.begin(&incoming);
                    let taken = self.take(mem::take(&mut incoming)).await;
                    let Some(ack) = taken else { return End::Over };
                    self.shared.is_unsaved.store(true, Ordering::Release);
                    self.shared.unsaved.notify_one();
                    ack
                }
            };
            let ack = wire::Ack { nonce, ..ack };
            self.shared.update(|status| {
                if !status.is_connected {
                    status.since = unix_seconds();
                }
                status.is_connected = true;
                status.error = None;
            });
            // No room would mean that the connection takes nothing any more: its end is about to be read.
            if answers.send(from_us(Message::Ack(ack))).await.is_err() {
                return End::Failed("the control plane ended the stream".into());
            }
        }
    }

    fn counts(&self) -> Option<wire::Counts> {
        let Counts { decided, denied, requests, failed } = self.settings.count.as_ref()?();
        Some(wire::Counts { decided, denied, requests, failed })
    }

    async fn open(
        &self,
    ) -> Result<(tonic::Streaming<wire::Delta>, mpsc::Sender<wire::FromDataPlane>), String> {
        let Settings { connect_within, keep_alive, .. } = self.settings;
        let connect = self.connect.clone();
        let connector = tower::service_fn(move |_| {
            let connect = connect.clone();
            async move { connect.connect().await.map(TokioIo::new) }
        });
        // The address is the connector's business; HTTP/2 wants a name all the same.
        let endpoint = Endpoint::from_static("http://control-plane.invalid")
            .connect_timeout(connect_within)
            .http2_keep_alive_interval(keep_alive)
            .keep_alive_timeout(keep_alive)
            .keep_alive_while_idle(true)
            .initial_connection_window_size(4 << 20)
            .initial_stream_window_size(4 << 20);
        let channel =
            tokio::time::timeout(connect_within, endpoint.connect_with_connector(connector))
                .await
                .map_err(|_| {
                    format!("no connection within {} seconds", connect_within.as_secs_f32())
                })?
                .map_err(|error| causes(&error))?;
        // One delta is under way at a time, and so is one answer.
        let (answers, queue) = mpsc::channel(1);
        let outgoing = stream::iter(self.hello()).chain(ReceiverStream::new(queue));
        let deltas = FeedClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(usize::MAX)
            .follow(outgoing)
            .await
            .map_err(|status| causes(&status))?;
        Ok((deltas.into_inner(), answers))
    }

    /// The sum over all that is declared once this is taken.
    fn sum_with(&self, incoming: &Incoming) -> Sum {
        let mut sum = if incoming.complete { Sum::default() } else { self.sum };
        let held = self.shared.held.lock();
        let known = |key: &Key| {
            let held = || self.waiting.get(key).or_else(|| held.resources.get(key));
            let held = || held().filter(|_| !self.leaving.contains(key)).map(|raw| raw.version);
            self.unused.get(key).copied().or_else(held).filter(|_| !incoming.complete)
        };
        let new = incoming.puts.iter().chain(&incoming.opaque);
        let new = new.map(|(key, raw)| (key, Some(raw.version)));
        for (key, version) in new.chain(incoming.deletes.iter().map(|key| (key, None))) {
            if let Some(before) = known(key) {
                sum.take(key, before);
            }
            if let Some(version) = version {
                sum.add(key, version);
            }
        }
        sum
    }

    /// Counts what is about to be taken into the sum; `false` when that is nothing new.
    fn count(&mut self, incoming: &Incoming) -> bool {
        let sum = self.sum_with(incoming);
        if incoming.complete {
            self.unused.clear();
        }
        for key in incoming.puts.iter().map(|(key, _)| key).chain(&incoming.deletes) {
            self.unused.remove(key);
        }
        let unused = incoming.opaque.iter().map(|(key, raw)| (key.clone(), raw.version));
        self.unused.extend(unused);
        mem::replace(&mut self.sum, sum) != sum
    }

    /// Notes what is about to be taken: the process may not live to tell.
    fn begin(&mut self, incoming: &Incoming) {
        if !self.count(incoming) {
            return;
        }
        let Some(probation) = &self.probation else { return };
        probation.begin(self.sum, incoming.revision);
        if self.shared.status.live().load().held_off.is_some() {
            info!(revision = incoming.revision, "another state than the one held off is taken");
            self.shared.update(|status| status.held_off = None);
        }
    }

    /// The answer to a state that the process died with again and again: all of it is refused, by name.
    fn held_off(&self, incoming: &Incoming) -> Option<wire::Ack> {
        let probation = self.probation.as_ref()?;
        let held_off = self.shared.status.live().load().held_off.clone()?;
        if !probation.holds_off(self.sum_with(incoming)) {
            return None;
        }
        let HeldOff { revision, deaths, in_force } = held_off;
        error!(revision, deaths, in_force, "held off: the process died again and again with it");
        let new = incoming
            .puts
            .iter()
            .chain(&incoming.opaque)
            .map(|(key, raw)| (key, raw.version.revision));
        let gone = incoming.deletes.iter().map(|key| (key, incoming.revision));
        let rejected = new.chain(gone).map(|((kind, id), revision)| wire::Refusal {
            kind: kind.name().into(),
            id: id.to_string(),
            revision,
            reason: format!(
                "held off: this data plane died {deaths} times soon after it took it; revision {in_force} is in force until another one comes"
            ),
        });
        Some(wire::Ack { nonce: 0, revision: in_force, rejected: rejected.collect() })
    }

    /// Stand-ins for what cannot be read and of which no version that can is in force.
    fn closed(&self, opaque: &[(Key, Raw)]) -> Vec<Resource> {
        let held = self.shared.held.lock();
        let in_force =
            |key: &Key| held.resources.get(key).is_some_and(|raw| raw.parse(key).is_ok());
        let closed = opaque.iter().filter(|(key, _)| !in_force(key));
        closed.filter_map(|(key, raw)| raw.closed(key)).collect()
    }

    fn hello(&self) -> Vec<wire::FromDataPlane> {
        let held = self.shared.held.lock();
        let mut by_kind: BTreeMap<&str, Vec<wire::HeldVersion>> = BTreeMap::new();
        for ((kind, id), raw) in &held.resources {
            let (revision, fingerprint) = (raw.version.revision, raw.version.fingerprint);
            let version = wire::HeldVersion { id: id.to_string(), revision, fingerprint };
            by_kind.entry(kind.name()).or_default().push(version);
        }
        // What was refused without a version before it: no version of it is in force, and yet we must hear when it is gone.
        let refused = self.refused.keys().filter(|key| !held.resources.contains_key(*key));
        let refused = refused.map(|(kind, id)| (kind.name(), id.to_string()));
        let unreadable = self
            .unreadable
            .keys()
            .filter(|(kind, id)| {
                key_of(kind, id).is_none_or(|key| !held.resources.contains_key(&key))
            })
            .map(|(kind, id)| (kind.as_str(), id.clone()));
        for (kind, id) in refused.chain(unreadable) {
            let version = wire::HeldVersion { id, revision: 0, fingerprint: 0 };
            by_kind.entry(kind).or_default().push(version);
        }
        let mut hellos: Vec<wire::Hello> = by_kind
            .iter()
            .flat_map(|(kind, versions)| {
                versions.chunks(HELLO_VERSIONS).map(|versions| wire::Held {
                    kind: (*kind).into(),
                    versions: versions.to_vec(),
                })
            })
            .map(|held| wire::Hello { have: vec![held], more: true, ..wire::Hello::default() })
            .collect();
        if hellos.is_empty() {
            hellos.push(wire::Hello::default());
        }
        if let Some(first) = hellos.first_mut() {
            first.role = self.settings.role.name().into();
            first.node = self.settings.node.clone();
            first.version = self.settings.version.clone();
            first.revision = held.revision;
            first.instance = self.instance.clone();
            first.labels = self.settings.labels.clone().into_iter().collect();
        }
        if let Some(last) = hellos.last_mut() {
            last.more = false;
        }
        hellos.into_iter().map(|hello| from_us(Message::Hello(hello))).collect()
    }

    /// Gives a delta to the reader, waits for the answer, and notes what is in force now. `None` when the reader is gone.
    async fn take(&mut self, incoming: Incoming) -> Option<wire::Ack> {
        let Incoming {
            puts,
            deletes,
            revision,
            complete,
            named,
            names_gone,
            unreadable,
            opaque,
            mut batch,
            ..
        } = incoming;
        for refusal in &unreadable {
            let wire::Refusal { kind, id, revision, reason } = refusal;
            warn!(kind, id, revision, reason, "the control plane sent what cannot be read here");
        }
        batch.revision = revision;
        batch.complete = complete;
        batch.changes.extend(deletes.iter().cloned().map(|(kind, id)| Change::Delete(kind, id)));
        batch.changes.extend(self.closed(&opaque).into_iter().map(Change::Put));
        let (answer, answered) = oneshot::channel();
        self.offers.send(Offer { batch, answer }).await.ok()?;
        let applied = answered.await.ok()?;

        if complete {
            self.refused.clear();
            self.unreadable.clear();
        }
        for key in named.iter().chain(&applied.restored) {
            self.refused.remove(key);
        }
        for name in names_gone {
            self.unreadable.remove(&name);
        }
        self.refused.extend(applied.rejected.into_iter().map(by_key));

        let mut held = self.shared.held.lock();
        for key in &applied.restored {
            if self.leaving.remove(key) {
                held.resources.remove(key);
            }
        }
        if complete {
            let refused = &self.refused;
            held.resources.retain(|key, _| named.contains(key) || refused.contains_key(key));
            self.leaving =
                held.resources.keys().filter(|key| !named.contains(*key)).cloned().collect();
            self.waiting.retain(|key, _| named.contains(key));
        }
        for key in deletes {
            self.waiting.remove(&key);
            // A deletion that the reader does not take yet leaves in force what there is.
            if !self.refused.contains_key(&key) {
                held.resources.remove(&key);
            } else if held.resources.contains_key(&key) {
                self.leaving.insert(key);
            }
        }
        for (key, raw) in puts {
            self.leaving.remove(&key);
            self.unreadable.remove(&wire_name(&key));
            self.waiting.insert(key, raw);
        }
        for refusal in unreadable {
            if let Some(key) = key_of(&refusal.kind, &refusal.id) {
                self.waiting.remove(&key);
            }
            self.unreadable.insert((refusal.kind.clone(), refusal.id.clone()), refusal);
        }
        // What cannot be used and has no version before it stands closed. It is kept as well, so that a start without control
        // plane finds it and keeps closed what this start does.
        for (key, raw) in opaque {
            held.resources.entry(key).or_insert(raw);
        }
        held.revision = applied.revision;
        drop(held);
        self.come_into_force();
        self.shared.update(|status| status.revision = applied.revision);
        Some(self.ack(applied.revision))
    }

    /// What is not refused (any more) is in force.
    fn come_into_force(&mut self) {
        let mut held = self.shared.held.lock();
        for (key, raw) in mem::take(&mut self.waiting) {
            if self.refused.contains_key(&key) {
                held.resources.entry(key.clone()).or_insert_with(|| raw.clone());
                self.waiting.insert(key, raw);
            } else {
                held.resources.insert(key, raw);
            }
        }
    }

    /// The reader refuses something else by now, without a batch.
    fn report(&mut self, applied: Applied) -> wire::Ack {
        for key in &applied.restored {
            self.refused.remove(key);
        }
        self.refused.extend(applied.rejected.into_iter().map(by_key));
        self.come_into_force();
        self.shared.is_unsaved.store(true, Ordering::Release);
        self.shared.unsaved.notify_one();
        let revision = self.shared.held.lock().revision;
        self.ack(revision)
    }

    /// What is refused at this revision; its nonce is the caller's.
    fn ack(&self, revision: Revision) -> wire::Ack {
        let refused = self.refused.values().map(|rejected| wire::Refusal {
            kind: rejected.kind.name().into(),
            id: rejected.id.to_string(),
            revision: rejected.revision,
            reason: rejected.reason.clone(),
        });
        let rejected = self.unreadable.values().cloned().chain(refused).collect();
        wire::Ack { nonce: 0, revision, rejected }
    }
}

impl Incoming {
    /// Adds one message of the delta.
    fn add(&mut self, delta: wire::Delta) -> Result<(), String> {
        if self.nonce != 0 && self.nonce != delta.nonce {
            return Err("the control plane began a delta before it had ended the last one".into());
        }
        self.nonce = delta.nonce;
        self.revision = delta.revision;
        self.complete = delta.complete;
        for wire::Put { kind, id, revision, json } in delta.puts {
            match key_of(&kind, &id) {
                Some(key) => self.put(key, Raw::copied(revision, &json)),
                None => self.unreadable.push(wire::Refusal {
                    reason: unknown_name(&kind),
                    kind,
                    id,
                    revision,
                }),
            }
        }
        for wire::Name { kind, id } in delta.deletes {
            if let Some(key) = key_of(&kind, &id) {
                self.named.insert(key.clone());
                self.deletes.push(key);
            }
            self.names_gone.push((kind, id));
        }
        Ok(())
    }

    fn put(&mut self, key: Key, raw: Raw) {
        self.named.insert(key.clone());
        match raw.parse(&key) {
            Ok(resource) => {
                self.batch.changes.push(Change::Put(resource));
                self.puts.push((key, raw));
            }
            Err(Invalid(reason)) => {
                let (kind, id) = key.clone();
                let revision = raw.version.revision;
                self.opaque.push((key, raw));
                self.unreadable.push(wire::Refusal {
                    kind: kind.name().into(),
                    id: id.to_string(),
                    revision,
                    reason: reason.clone(),
                });
                self.batch.unreadable.push(Rejected { kind, id, revision, reason });
            }
        }
    }
}

fn next_counts(every: u32) -> Option<tokio::time::Instant> {
    (every > 0).then(|| tokio::time::Instant::now() + Duration::from_secs(every.into()))
}

fn from_us(message: Message) -> wire::FromDataPlane {
    wire::FromDataPlane { message: Some(message) }
}

fn by_key(rejected: Rejected) -> (Key, Rejected) {
    ((rejected.kind, rejected.id.clone()), rejected)
}

fn key_of(kind: &str, id: &str) -> Option<Key> {
    Some((Kind::named(kind)?, Id::parse(id).ok()?))
}

fn wire_name((kind, id): &Key) -> (String, String) {
    (kind.name().into(), id.to_string())
}

fn unknown_name(kind: &str) -> String {
    match Kind::named(kind) {
        Some(_) => "its id is not one".into(),
        None => {
            format!("this data plane knows no kind {kind:?}; is it older than its control plane?")
        }
    }
}
