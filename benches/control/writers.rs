//! Who writes: connections to the Admin API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wardgate::rt::Tasks;

use super::stand::rss_kib;
use super::world::{Answer, Connection};

pub(crate) const KEY: &str = "bench-bench-bench-bench-bench-bench";

/// What is declared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) routes: usize,
    pub(crate) upstreams: usize,
    pub(crate) planes: usize,
}

impl Load {
    /// The path and the body of a route. Each tenth is a workload's own; of the others half have a host.
    pub(crate) fn route(&self, domain: &str, number: usize, mark: &str) -> (String, Value) {
        let upstream = format!("u{}", number % self.upstreams);
        let mut route =
            json!({ "uri": format!("/api/{number}/*"), "upstream_id": upstream, "desc": mark });
        if number.is_multiple_of(10) {
            let workload = format!("spiffe://{domain}/w/{}", number / 10 % self.planes);
            route["workload_selector"] =
                json!({ "listener": "outbound", "spiffe_ids": [workload] });
        } else if number.is_multiple_of(2) {
            route["host"] = json!(format!("h{number}.example"));
        }
        (format!("/routes/r{number}"), route)
    }

    /// How many of the routes an ingress is told.
    pub(crate) fn public_routes(&self) -> usize {
        self.routes - self.routes.div_ceil(10)
    }
}

pub(crate) struct Writers {
    address: SocketAddr,
    count: usize,
}

/// What came of writes at a fixed rate.
pub(crate) struct Sustained {
    pub(crate) written: usize,
    pub(crate) failed: usize,
    pub(crate) took: Duration,
    pub(crate) latencies: Vec<Duration>,
    /// Of each process, each second.
    pub(crate) rss_kib: Vec<Vec<u64>>,
}

async fn put(connection: &mut Connection, path: &str, body: &Value) -> Answer {
    let path = format!("/apisix/admin{path}");
    connection.send("PUT", &path, &[("x-api-key", KEY)], body.to_string()).await
}

impl Writers {
    pub(crate) fn new(address: SocketAddr, count: usize) -> Self {
        Self { address, count }
    }

    /// One write; its revision.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> u64 {
        let answer = put(&mut Connection::plain(self.address).await, path, body).await;
        assert!(answer.status < 300, "{path}: {} {}", answer.status, answer.text());
        answer.revision()
    }

    /// So many writes, as fast as they go.
    pub(crate) async fn each(
        &self,
        count: usize,
        what: impl Fn(usize) -> (String, Value) + Clone + Send + 'static,
    ) {
        let next = Arc::<AtomicUsize>::default();
        let mut running = Vec::new();
        for _ in 0..self.count {
            let (next, what, address) = (next.clone(), what.clone(), self.address);
            running.push(wardgate::rt::spawn(async move {
                let mut connection = Connection::plain(address).await;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let (path, body) = what(number);
                    let answer = put(&mut connection, &path, &body).await;
                    assert!(answer.status < 300, "{path}: {} {}", answer.status, answer.text());
                }
            }));
        }
        for writer in running {
            writer.await.unwrap();
        }
    }

    /// Writes at a fixed rate, whatever becomes of those before, over all routes in turn.
    pub(crate) async fn sustained(
        &self,
        load: &Load,
        domain: &'static str,
        rate: u32,
        seconds: u64,
        pids: &[u32],
    ) -> Sustained {
        let total = usize::try_from(u64::from(rate) * seconds).unwrap();
        let next = Arc::<AtomicUsize>::default();
        let began = Instant::now();
        let mut running = Vec::new();
        for _ in 0..self.count {
            let (next, load, address) = (next.clone(), *load, self.address);
            running.push(wardgate::rt::spawn(async move {
                let mut connection = Connection::plain(address).await;
                let (mut latencies, mut failed) = (Vec::new(), 0);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        return (latencies, failed);
                    }
                    let due = began + Duration::from_secs_f64(number as f64 / f64::from(rate));
                    tokio::time::sleep_until(due.into()).await;
                    // A step that has no common divisor with any round number: all routes have their turn.
                    let (path, body) =
                        load.route(domain, number * 7919 % load.routes, &format!("again {number}"));
                    let answer = put(&mut connection, &path, &body).await;
                    if answer.status < 300 {
                        latencies.push(due.elapsed());
                    } else {
                        failed += 1;
                    }
                }
            }));
        }
        let mut rss: Vec<Vec<u64>> = vec![Vec::new(); pids.len()];
        while began.elapsed() < Duration::from_secs(seconds) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for (series, pid) in rss.iter_mut().zip(pids) {
                series.push(rss_kib(*pid));
            }
        }
        let (mut latencies, mut failed) = (Vec::new(), 0);
        for writer in running {
            let (of_one, failures) = writer.await.unwrap();
            latencies.extend(of_one);
            failed += failures;
        }
        Sustained {
            written: latencies.len(),
            failed,
            took: began.elapsed(),
            latencies,
            rss_kib: rss,
        }
    }
}
