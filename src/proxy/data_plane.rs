//! `DataPlane`: the doors of one workload or ingress, served by worker threads of their own.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::connection::DoorSecurity;
use super::introduction::Introductions;
use super::limits::Limits;
use super::listener::Listener;
use super::metrics::ProxyMetrics;
use super::relay::Target;
use super::senders::Senders;
use super::sources::Sources;
use super::worker::Worker;
use crate::identity::{Identity, Refresh, Tokens};
use crate::model::Listeners;
use crate::mtls::{Challenges, Proofs};
use crate::observe::AuditLog;
use crate::rt::{Clock, Drain, Live, Sockets, socket};
use crate::snapshot::Snapshot;
use crate::upstream::Connect;

/// Why a data plane cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A door's address.
    #[error(transparent)]
    Listen(#[from] socket::Error),
    /// The system gives no thread or no event queue.
    #[error("cannot start a worker")]
    Worker(#[source] std::io::Error),
}

/// A place where connections come in.
#[derive(Clone)]
pub struct Door {
    /// Its name among the listening sockets of the process: `inbound`, `outbound`, `http`, `https`, `tcp:<name>`,
    /// `passthrough`.
    pub name: Cow<'static, str>,
    /// Which routes it serves.
    pub listener: Listeners,
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// What protects it.
    pub security: DoorSecurity,
    /// Where its bytes go unread; nowhere where HTTP is spoken.
    pub relay_to: Option<Arc<Target>>,
    /// Who may introduce connections by the PROXY protocol; nobody when not given.
    pub introductions: Option<Arc<Introductions>>,
}

/// What a data plane is made of.
pub struct Parts {
    /// Its doors.
    pub doors: Vec<Door>,
    /// The compiled configuration and its successors.
    pub snapshot: Live<Snapshot>,
    /// Who we are; none for an ingress without SVID.
    pub identity: Option<Live<Identity>>,
    /// Asks the identity's source for newer bundles.
    pub refresh: Refresh,
    /// How upstreams are reached.
    pub connect: Connect,
    /// What authorities that give public certificates are answered; nobody is without.
    pub challenges: Option<Challenges>,
    /// Where decisions are written.
    pub audit: AuditLog,
    /// What is counted.
    pub metrics: Arc<ProxyMetrics>,
    /// Time limits and bounds.
    pub limits: Limits,
    /// Who may speak for others in fields of a request.
    pub senders: Arc<Senders>,
    /// Where listening sockets come from.
    pub sockets: Sockets,
    /// Threads.
    pub workers: usize,
}

/// The running doors of one workload or ingress.
pub struct DataPlane {
    addresses: Vec<(Listeners, SocketAddr)>,
    relays: Vec<(String, SocketAddr)>,
    threads: Vec<Thread>,
    sockets: Sockets,
}

struct Thread {
    worker: Arc<Worker>,
    drain: Option<Drain>,
    /// Dropped to end the thread's runtime.
    stop: oneshot::Sender<()>,
    handle: std::thread::JoinHandle<()>,
}

impl DataPlane {
    /// Binds all doors, then starts the workers.
    ///
    /// # Errors
    /// An address cannot be listened on; the error names it. Nothing runs then.
    pub fn start(parts: &Parts) -> Result<Self, Error> {
        let workers = parts.workers.max(1);
        let (mut addresses, mut relays) = (Vec::new(), Vec::new());
        let mut sockets: Vec<Vec<(Listener, std::net::TcpListener)>> =
            (0..workers).map(|_| Vec::new()).collect();
        for door in &parts.doors {
            let listener = Listener {
                door: door.listener,
                security: door.security.clone(),
                relay_to: door.relay_to.clone(),
                introductions: door.introductions.clone(),
                me: parts.identity.clone(),
                open: Arc::default(),
            };
            let bound = parts.sockets.tcp(&door.name, door.address, workers)?;
            let address = bound[0][0].local_addr().map_err(Error::Worker)?;
            if door.relay_to.is_some() || matches!(door.security, DoorSecurity::Through(_)) {
                relays.push((door.name.clone().into_owned(), address));
            } else {
                addresses.push((door.listener, address));
            }
            for (mine, bound) in sockets.iter_mut().zip(bound) {
                mine.extend(bound.into_iter().map(|socket| (listener.clone(), socket)));
            }
        }
        let sources = Sources::new(parts.limits.source);
        let start = |(number, sockets)| thread(parts, number, sockets, sources.clone());
        let threads = sockets
            .into_iter()
            .enumerate()
            .map(|each| start(each).map_err(Error::Worker))
            .collect::<Result<_, _>>()?;
        Ok(Self { addresses, relays, threads, sockets: parts.sockets.clone() })
    }

    /// Where a door of HTTP listens.
    pub fn address(&self, door: Listeners) -> Option<SocketAddr> {
        self.addresses.iter().find(|(listener, _)| *listener == door).map(|(_, address)| *address)
    }

    /// Where the doors listen whose bytes are passed on unread, by the names of their sockets.
    pub fn relays(&self) -> &[(String, SocketAddr)] {
        &self.relays
    }

    /// Where all doors of HTTP listen.
    pub fn addresses(&self) -> &[(Listeners, SocketAddr)] {
        &self.addresses
    }

    /// What the connections of each worker rest on.
    pub fn proofs(&self) -> impl Iterator<Item = Arc<Proofs>> + '_ {
        self.threads.iter().map(|thread| thread.worker.watch.proofs.clone())
    }

    /// Stops accepting, lets exchanges finish, at most `within`. `false` when some were cut off.
    ///
    /// # Panics
    /// Never: worker threads catch nothing and are joined.
    pub async fn drain(self, within: Duration) -> bool {
        // Where another process goes on nobody waits for our end: callers have time to come back once more, and are told then.
        let idle = if self.sockets.do_live_on() { within / 2 } else { Duration::ZERO };
        for thread in &self.threads {
            thread.worker.start_draining(idle);
        }
        let mut clean = true;
        let deadline = tokio::time::Instant::now() + within;
        for mut thread in self.threads {
            if let Some(drain) = thread.drain.take() {
                clean &= drain
                    .drain(deadline.saturating_duration_since(tokio::time::Instant::now()))
                    .await;
            }
            drop(thread.stop);
            let handle = thread.handle;
            let joined = tokio::task::spawn_blocking(move || handle.join()).await;
            clean &= matches!(joined, Ok(Ok(())));
        }
        clean
    }
}

fn thread(
    parts: &Parts,
    number: usize,
    sockets: Vec<(Listener, std::net::TcpListener)>,
    sources: Arc<Sources>,
) -> std::io::Result<Thread> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let lane = parts.audit.lane();
    let tokens = parts
        .identity
        .as_ref()
        .map(|identity| Arc::new(Tokens::new(identity, Clock::system(), parts.refresh.clone())));
    let worker = Worker::new(
        parts.limits,
        parts.senders.clone(),
        sources,
        parts.connect.clone(),
        lane,
        parts.metrics.clone(),
        parts.identity.clone(),
        &parts.snapshot,
        tokens,
        parts.challenges.clone(),
    );
    let drain = Drain::new();
    let guard = drain.guard();
    let (stop, stopped) = oneshot::channel::<()>();
    let (mine, snapshot) = (worker.clone(), parts.snapshot.clone());
    let all = parts.sockets.clone();
    let handle = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        runtime.block_on(async move {
            for (listener, socket) in sockets {
                match TcpListener::from_std(socket) {
                    Ok(socket) => {
                        let (worker, all) = (mine.clone(), all.clone());
                        mine.spawn(listener.run(worker, socket, all, guard.clone()));
                    }
                    Err(error) => tracing::error!(%error, "a listening socket cannot be used"),
                }
            }
            drop(guard);
            let sweep = async {
                let mut second = tokio::time::interval(Duration::from_secs(1));
                loop {
                    second.tick().await;
                    mine.pool.lock().sweep();
                }
            };
            let close_fallen = || mine.pool.lock().close_fallen();
            let watch = mine.watch.run(snapshot, &close_fallen);
            // Ends when the sender is dropped; then the runtime drops whatever is left.
            tokio::select! {
                _ = stopped => {}
                () = sweep => {}
                () = watch => {}
            }
        });
        // A name that is just being resolved must not hold up the end.
        runtime.shutdown_background();
    })?;
    Ok(Thread { worker, drain: Some(drain), stop, handle })
}
