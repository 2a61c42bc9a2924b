//! The control plane at scale: `benches/control/run.sh`, see README.md beside it.
//!
//! Real processes of the real binary, a real etcd, real gRPC over real mTLS. The simulated data planes are the house's own
//! subscribers in this process, each with an SVID, a connection and a keeper of its own.

#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "figures for people"
)]
#![allow(clippy::large_futures, reason = "a bench has the stack for it")]
#![allow(unused_imports, reason = "the tests' world has more than is needed here")]

mod fleet;
mod options;
mod stand;
mod writers;

#[path = "../../tests/support/etcd.rs"]
mod etcd_server;
#[path = "../../tests/gateway/world.rs"]
mod world;

use std::time::{Duration, Instant};

use serde_json::json;

use fleet::Fleet;
use options::Options;
use stand::{Stand, StoreKind, settled_kib};
use writers::{Load, Writers};

fn main() {
    let Some(options) = Options::parse(std::env::args().skip(1)) else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        let mut tables = Vec::new();
        for kind in options.stores.clone() {
            tables.push((kind, measure(kind, &options).await));
        }
        print(&options, &tables);
    });
}

/// What was measured, and the figure.
type Rows = Vec<(String, String)>;

fn print(options: &Options, tables: &[(StoreKind, Rows)]) {
    println!("\n{options}\n");
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in tables.iter().flat_map(|(_, rows)| rows) {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    let cells = |what: &str, cell: &dyn Fn(&(StoreKind, Rows)) -> String| {
        let cells: Vec<String> = tables.iter().map(cell).collect();
        println!("| {what} | {} |", cells.join(" | "));
    };
    cells("what", &|(kind, _)| kind.name().to_owned());
    cells("---", &|_| "---:".to_owned());
    for name in names {
        cells(name, &|(_, rows)| {
            let row = rows.iter().find(|(other, _)| other == name);
            row.map_or_else(|| "-".to_owned(), |(_, figure)| figure.clone())
        });
    }
}

async fn measure(kind: StoreKind, options: &Options) -> Rows {
    let mut rows = Rows::new();
    let mut told = |what: &str, figure: String| {
        eprintln!("[{}] {what}: {figure}", kind.name());
        rows.push((what.to_owned(), figure));
    };
    let mut stand = Stand::new(kind);
    let control = stand.start_control();

    // A data plane with one route: what all the others are compared with.
    let writers = Writers::new(stand.admin, 16);
    writers.put("/routes/app", &stand.app_route()).await;
    let (ingress, _) = stand.start_ingress("small");
    let (small, small_control) =
        (settled_kib(ingress.pid()).await, settled_kib(control.pid()).await);
    drop(ingress);

    // ------------------------------------------------------------ fill, load, memory
    let began = Instant::now();
    let upstreams = options.upstreams;
    writers
        .each(upstreams, move |number| {
            let node =
                format!("10.{}.{}.{}:80", number >> 16 & 255, number >> 8 & 255, number & 255);
            (format!("/upstreams/u{number}"), json!({ "nodes": { node: 1 } }))
        })
        .await;
    let load = Load { routes: options.routes, upstreams, planes: options.planes };
    let domain = stand.world.domain;
    writers.each(load.routes, move |number| load.route(domain, number, "filled")).await;
    let total = load.routes + upstreams;
    let rate = total as f64 / began.elapsed().as_secs_f64();
    told("writes a second while filling, 16 at once", format!("{rate:.0}"));

    let (ingress, cold) = stand.start_ingress("large");
    told("a new data plane with all of it: to ready", seconds(cold));
    let large = settled_kib(ingress.pid()).await;
    let public = load.public_routes();
    let route = (large.saturating_sub(small)) as f64 / public as f64;
    told("data plane: RSS", format!("{:.0} MiB", large as f64 / 1024.0));
    told("data plane: a route, its share of the upstreams included", format!("{route:.2} KiB"));
    drop(ingress);

    drop(control);
    let (ingress, warm) = stand.start_ingress("large");
    told("a data plane without control plane, from its last good copy: to ready", seconds(warm));
    let began = Instant::now();
    let control = stand.start_control();
    let admin = stand.admin();
    let newest = writers.put("/routes/app", &stand.app_route()).await;
    admin.applied(newest, 1).await;
    told(
        "a control plane's start, until its first write is in force at that data plane",
        seconds(began.elapsed()),
    );
    let full = settled_kib(control.pid()).await;
    let each = full.saturating_sub(small_control) as f64 / total as f64;
    told("control plane: RSS", format!("{:.0} MiB", full as f64 / 1024.0));
    told("control plane: a resource", format!("{each:.2} KiB"));

    // ------------------------------------------------------------ convergence
    let began = Instant::now();
    let mut fleet = Fleet::connect(&stand, options.planes).await;
    told("simulated data planes: all connected and in force", seconds(began.elapsed()));
    let fed = settled_kib(control.pid()).await;
    let each = fed.saturating_sub(full) as f64 / options.planes as f64;
    told("control plane: a connected data plane", format!("{each:.0} KiB"));
    let mut all = Vec::new();
    for change in 0..options.changes {
        all.extend(fleet.everybody(&writers, change).await);
    }
    told("one change → effective on all data planes: p50 / p99", percentiles(&mut all));
    let mut one = Vec::new();
    for change in 0..options.changes * 10 {
        one.push(fleet.only_one(&writers, &load, change).await);
    }
    told("one change → effective on the one sidecar: p50 / p99", percentiles(&mut one));

    // ------------------------------------------------------------ sustained writes
    let pids = [control.pid(), ingress.pid()];
    let sustained = fleet
        .draining(writers.sustained(&load, domain, options.rate, options.seconds, &pids))
        .await;
    let achieved = sustained.written as f64 / sustained.took.as_secs_f64();
    told(
        &format!("{} writes a second for {} s: achieved, failed", options.rate, options.seconds),
        format!("{achieved:.0}, {}", sustained.failed),
    );
    let mut latencies = sustained.latencies;
    told("sustained writes: latency from when it was due, p50 / p99", percentiles(&mut latencies));
    for (name, series) in ["control plane", "data plane"].iter().zip(&sustained.rss_kib) {
        told(&format!("{name}: RSS in the second / the last quarter of it"), quarters(series));
    }
    let newest = writers.put("/routes/app", &stand.app_route()).await;
    let began = Instant::now();
    admin.applied(newest, 1 + options.planes).await;
    told("after it: until everybody is in step", seconds(began.elapsed()));
    drop(fleet);

    // ------------------------------------------------------------ the store goes away
    if kind == StoreKind::Etcd {
        let outage = stand.outage(&writers, &ingress, Duration::from_secs(options.down)).await;
        told(
            &format!("etcd killed for {} s: requests meanwhile, failed", options.down),
            format!("{}, {}", outage.requests, outage.failed),
        );
        told("acknowledged writes before it: there afterwards", outage.kept);
        told(
            "after its return: until a write is in force at the data plane",
            seconds(outage.returned),
        );
    }
    rows
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn percentiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: f64| {
        let at = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len());
        times[at - 1].as_secs_f64() * 1e3
    };
    format!("{:.1} / {:.1} ms", at(0.5), at(0.99))
}

fn quarters(series: &[u64]) -> String {
    let quarter = (series.len() / 4).max(1);
    let middle = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part.get(part.len() / 2).copied().unwrap_or_default() as f64 / 1024.0
    };
    let second = &series[quarter.min(series.len() - 1)..(2 * quarter).min(series.len())];
    let last = &series[series.len().saturating_sub(quarter)..];
    format!("{:.1} / {:.1} MiB", middle(second), middle(last))
}
