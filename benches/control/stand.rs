//! The processes: a control plane on one of the stores, and a data plane that serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::etcd_server::EtcdServer;
use super::world::{Admin, App, Connection, Process, World, eventually_async};
use super::writers::{KEY, Writers};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    Embedded,
    Etcd,
}

impl StoreKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Etcd => "etcd",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Embedded, Self::Etcd].into_iter().find(|kind| kind.name() == name)
    }
}

pub(crate) struct Stand {
    pub(crate) world: World,
    pub(crate) etcd: Option<EtcdServer>,
    pub(crate) admin: SocketAddr,
    pub(crate) feed: SocketAddr,
    pub(crate) app: App,
}

/// What an outage of the store did.
pub(crate) struct Outage {
    pub(crate) requests: usize,
    pub(crate) failed: usize,
    pub(crate) kept: String,
    pub(crate) returned: Duration,
}

fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Stand {
    pub(crate) fn new(kind: StoreKind) -> Self {
        let etcd = (kind == StoreKind::Etcd).then(|| {
            EtcdServer::start_with(&[
                "--quota-backend-bytes=8589934592",
                "--auto-compaction-mode=periodic",
                "--auto-compaction-retention=1m",
            ])
        });
        let world = World::of("bench.test");
        Self { world, etcd, admin: free(), feed: free(), app: App::echo("app") }
    }

    /// The same control plane each time: same addresses, same state.
    pub(crate) fn start_control(&self) -> Process {
        let key = json!({ "name": "bench", "key": KEY, "role": "admin" });
        let mut control = self
            .world
            .control()
            .set("control.admin", &json!(self.admin))
            .set("control.feed", &json!(self.feed))
            .set("control.keys", &json!([key]))
            .set("control.access", &json!({ "requests_per_second": 0 }))
            .set("decision_log", &json!({ "allows": "aggregated" }));
        if let Some(etcd) = &self.etcd {
            control =
                control.set("control.store", &json!({ "etcd": { "endpoints": [etcd.url()] } }));
        }
        control.start()
    }

    pub(crate) fn admin(&self) -> Admin {
        Admin { address: self.admin, key: KEY.to_owned() }
    }

    /// Starts an ingress; how long it took until it was ready.
    pub(crate) fn start_ingress(&self, name: &str) -> (Process, Duration) {
        let part = self
            .world
            .ingress()
            .named(name)
            .set("control_plane", &json!({ "address": self.feed.to_string() }))
            .set("decision_log", &json!({ "allows": "aggregated" }));
        let began = Instant::now();
        let ingress = part.start();
        (ingress, began.elapsed())
    }

    pub(crate) fn app_route(&self) -> Value {
        json!({ "uri": "/app", "upstream": { "nodes": { self.app.address.to_string(): 1 } } })
    }

    /// Kills the store for a time while requests go on.
    pub(crate) async fn outage(
        &mut self,
        writers: &Writers,
        ingress: &Process,
        down: Duration,
    ) -> Outage {
        let (requests, failed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let over = Arc::<AtomicBool>::default();
        let callers = {
            let (requests, failed, over) = (requests.clone(), failed.clone(), over.clone());
            let door = ingress.address("ingress");
            wardgate::rt::spawn(async move {
                let mut connection = Connection::plain(door).await;
                while !over.load(Ordering::Relaxed) {
                    requests.fetch_add(1, Ordering::Relaxed);
                    match connection.try_send("GET", "/app", &[], "").await {
                        Ok(answer) if answer.status == 200 => {}
                        other => {
                            if failed.fetch_add(1, Ordering::Relaxed) == 0 {
                                eprintln!("a request failed: {other:?}");
                            }
                            connection = Connection::plain(door).await;
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        };
        const WRITES: usize = 200;
        let marked = |number: usize| {
            let body = json!({ "uri": format!("/kept/{number}"), "desc": format!("mark-{number}"), "upstream_id": "u0" });
            (format!("/routes/kept-{number}"), body)
        };
        writers.each(WRITES, marked).await;
        self.etcd.as_mut().unwrap().stop();
        tokio::time::sleep(down).await;
        self.etcd.as_mut().unwrap().resume();
        let began = Instant::now();
        let admin = self.admin();
        let revision = eventually_async("a write after the store's return", || async {
            let answer = admin.ask("PUT", "/routes/app", Some(&self.app_route())).await;
            (answer.status < 300).then(|| answer.revision())
        })
        .await;
        admin.applied(revision, 1).await;
        let returned = began.elapsed();
        let mut kept = 0;
        for number in 0..WRITES {
            let answer = admin.ask("GET", &format!("/routes/kept-{number}"), None).await;
            kept += usize::from(answer.text().contains(&format!("mark-{number}\"")));
        }
        over.store(true, Ordering::Relaxed);
        callers.await.unwrap();
        Outage {
            requests: requests.load(Ordering::Relaxed),
            failed: failed.load(Ordering::Relaxed),
            kept: format!("{kept} of {WRITES}"),
            returned,
        }
    }
}

pub(crate) fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// RSS when it does not fall any more: what reading took is given back a little later.
pub(crate) async fn settled_kib(pid: u32) -> u64 {
    let mut seen = rss_kib(pid);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let now = rss_kib(pid);
        if now + 256 >= seen {
            return now.min(seen);
        }
        seen = now;
    }
    seen
}
