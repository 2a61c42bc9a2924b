//! Simulated data planes: each with an identity, a connection and a keeper of its own, as a sidecar has.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use wardgate::identity::{Identity, SpiffeId, TrustBundles};
use wardgate::issuer::Authority;
use wardgate::mtls::MeshStream;
use wardgate::mtls::{Alpn, Connector, ExpectedPeers};
use wardgate::observe::Registry;
use wardgate::rt::{Clock, Live, Tasks};
use wardgate::snapshot::Keeper;
use wardgate::sync::scope::Role;
use wardgate::sync::subscriber::{Connect, Settings, Subscriber};
use wardgate::sync::{Applied, Feed};

use super::stand::Stand;
use super::world::allow;
use super::writers::{Load, Writers};

/// A data plane has put a revision into force.
struct InForce {
    plane: usize,
    revision: u64,
    at: Instant,
}

pub(crate) struct Fleet {
    domain: &'static str,
    count: usize,
    events: mpsc::Receiver<InForce>,
    _tasks: Tasks,
}

struct Dial {
    address: SocketAddr,
    connector: Connector,
    expected: Arc<ExpectedPeers>,
}

#[async_trait]
impl Connect for Dial {
    type Stream = MeshStream<TcpStream>;

    async fn connect(&self) -> io::Result<Self::Stream> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let connected = self.connector.connect(tcp, &self.expected, Alpn::Http2).await;
        connected.map(|(stream, _)| stream).map_err(io::Error::other)
    }
}

impl Fleet {
    /// Connects so many, and waits until each has something in force.
    pub(crate) async fn connect(stand: &Stand, count: usize) -> Self {
        let authority = Authority::open(&stand.world.authority(), Clock::system()).unwrap();
        let bundles: TrustBundles = [stand.world.bundle()].into_iter().collect();
        let control: SpiffeId = stand.world.id("/wardgate/control").parse().unwrap();
        let expected = Arc::new(ExpectedPeers::exactly(&control));
        let (told, events) = mpsc::channel(count * 4);
        let mut tasks = Tasks::new();
        for plane in 0..count {
            let me: SpiffeId = stand.world.id(&format!("/w/{plane}")).parse().unwrap();
            let svid = authority.issue(&me, Duration::from_secs(6 * 3600), &[]).unwrap();
            let identity = Identity::new(svid, bundles.clone());
            let connector = Connector::new(Live::fixed(identity));
            let dial = Dial { address: stand.feed, connector, expected: expected.clone() };
            let settings = Settings::new(Role::Sidecar, format!("plane-{plane}"));
            let mut feed = Subscriber::start(settings, dial, None);
            let mut keeper = Keeper::new(wardgate::plugins::ALL, Some(me), Registry::new());
            let told = told.clone();
            tasks.add(async move {
                loop {
                    let batch = feed.next().await;
                    let revision = batch.revision;
                    let applied = keeper.apply(batch.changes, revision);
                    let at = Instant::now();
                    assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
                    feed.applied(Applied { revision, ..Applied::default() });
                    if told.send(InForce { plane, revision, at }).await.is_err() {
                        return;
                    }
                }
            });
        }
        let mut fleet = Self { domain: stand.world.domain, count, events, _tasks: tasks };
        fleet.all_reach(0).await;
        fleet
    }

    /// Waits until each has reached the revision; when each had.
    async fn all_reach(&mut self, revision: u64) -> Vec<Instant> {
        let mut seen: Vec<Option<Instant>> = vec![None; self.count];
        let mut left = self.count;
        while left > 0 {
            let event = tokio::time::timeout(Duration::from_secs(120), self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("{left} data planes lag behind")).unwrap();
            if event.revision >= revision && seen[event.plane].is_none() {
                seen[event.plane] = Some(event.at);
                left -= 1;
            }
        }
        seen.into_iter().flatten().collect()
    }

    /// Changes what concerns everybody; from the write's first byte until it was in force, for each.
    pub(crate) async fn everybody(&mut self, writers: &Writers, change: usize) -> Vec<Duration> {
        let caller = format!("spiffe://{}/caller-{change}", self.domain);
        // All of them, and not the ingress: its callers have no identity.
        let workloads = format!("spiffe://{}/w/*", self.domain);
        let policy = allow("everybody", &[&workloads], &[&caller]);
        let began = Instant::now();
        let revision = writers.put("/identity_policies/everybody", &policy).await;
        let seen = self.all_reach(revision).await;
        seen.into_iter().map(|at| at.duration_since(began)).collect()
    }

    /// Changes what concerns one of them.
    pub(crate) async fn only_one(
        &mut self,
        writers: &Writers,
        load: &Load,
        change: usize,
    ) -> Duration {
        let number = change * 10 % load.routes;
        let (path, body) = load.route(self.domain, number, &format!("change {change}"));
        let began = Instant::now();
        let revision = writers.put(&path, &body).await;
        loop {
            let event = tokio::time::timeout(Duration::from_secs(60), self.events.recv()).await;
            let event = event.expect("it comes into force").unwrap();
            if event.revision >= revision {
                assert_eq!(event.plane, number / 10 % load.planes, "nobody else is concerned");
                return event.at.duration_since(began);
            }
        }
    }

    /// Lets data planes go on while something else is measured.
    pub(crate) async fn draining<T>(&mut self, measured: impl Future<Output = T>) -> T {
        let mut measured = std::pin::pin!(measured);
        loop {
            tokio::select! {
                done = &mut measured => return done,
                _ = self.events.recv() => {}
            }
        }
    }
}
