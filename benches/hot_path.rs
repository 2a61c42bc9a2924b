//! What a request and a connection cost, part by part: `cargo bench --bench hot_path`.

mod policy;
mod record;

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use wardgate::identity::{Identity, Refresh, TokenRules, Tokens, TrustBundles};
use wardgate::model::{Body, Change, Id, Kind, Listeners, Resource};
use wardgate::mtls::{Acceptor, Alpn, Connector, ExpectedPeers};
use wardgate::observe::Registry;
use wardgate::pipeline::{Access, Chain, Client, Exchange, Fault, Flow, Head, Hooks, Link};
use wardgate::roles::{Authority, Embedded, Plan, World, loopback};
use wardgate::rt::{Clock, Live, Tasks};
use wardgate::snapshot::{Keeper, Place, Router, RouterKind};

fn id(text: &str) -> Id {
    Id::parse(text).expect("a valid id")
}

/// A look-up must cost the same in a small table and in a large one.
fn router(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("router/find");
    for count in [100_u32, 10_000, 1_000_000] {
        let mut router: Router<u32> = Router::default();
        let kind = RouterKind::default();
        for number in 0..count {
            let host = format!("host{}.example", number % 1000);
            let path = match number % 3 {
                0 => format!("/api/v1/service{number}/*"),
                _ => format!("/api/v1/service{number}/items"),
            };
            let place =
                Place::parse(kind, [host.as_str()], [path.as_str()], 0).expect("a valid place");
            router.insert(kind, &id(&number.to_string()), &place, number);
        }
        // One that exists in every table, in the middle of the smallest.
        let (host, path) = ("host50.example", "/api/v1/service50/items");
        assert_eq!(
            router.find(host, path.as_bytes(), |_| true).map(|found| *found.value),
            Some(50)
        );
        group.bench_function(BenchmarkId::new("exact", count), |bencher| {
            bencher.iter(|| {
                router.find(black_box(host), black_box(path.as_bytes()), |_| true).map(|f| *f.value)
            });
        });
        let (host, path) = ("host51.example", "/api/v1/service51/a/b/c");
        group.bench_function(BenchmarkId::new("prefix", count), |bencher| {
            bencher.iter(|| {
                router.find(black_box(host), black_box(path.as_bytes()), |_| true).map(|f| *f.value)
            });
        });
    }
    group.finish();
}

/// Where the path decides: a path that very many hosts have costs no walk past all of them.
fn router_by_path(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("router/find host of one path");
    for count in [100_u32, 10_000, 1_000_000] {
        let kind = RouterKind::Uri;
        let mut router: Router<u32> = Router::default();
        for number in 0..count {
            let host = format!("host{number}.example");
            let place = Place::parse(kind, [host.as_str()], ["/*"], 0).expect("a valid place");
            router.insert(kind, &id(&number.to_string()), &place, number);
        }
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                let found = router.find(black_box("host50.example"), black_box(b"/a/b"), |_| true);
                found.map(|found| *found.value)
            });
        });
    }
    group.finish();
}

/// One place changed in a router that a snapshot shares.
fn router_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("router/change 1 of");
    group.sample_size(20);
    for (name, wildcard) in [("hosts", ""), ("wildcard hosts", "*.")] {
        for count in [100_u32, 100_000, 1_000_000] {
            let kind = RouterKind::HostUri;
            let place = |number: u32| {
                let host = format!("{wildcard}host{number}.example");
                Place::parse(kind, [host.as_str()], ["/api/*"], 0).expect("a valid place")
            };
            let before = resident_bytes();
            let mut router: Router<u32> = Router::default();
            for number in 0..count {
                router.insert(kind, &id(&number.to_string()), &place(number), number);
            }
            report(&format!("router of {name}"), count.into(), before);
            let (changed, name_of) = (place(50), id("50"));
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| {
                    let shared = router.clone();
                    router.remove(kind, &name_of, &changed);
                    router.insert(kind, &name_of, &changed, 50);
                    shared
                });
            });
        }
    }
    group.finish();
}

/// Memory of this process that is in use, as the system counts it.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * 4096
}

#[expect(clippy::print_stderr, reason = "a figure that criterion does not take")]
fn report(what: &str, count: u64, before: u64) {
    let grown = resident_bytes().saturating_sub(before);
    eprintln!("{what}: {count} routes in {} MiB, {} bytes each", grown >> 20, grown / count);
}

/// One route changed among many: what the data plane does for it.
fn keeper(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("keeper/apply 1 of");
    group.sample_size(20);
    for count in [100_u64, 10_000, 100_000, 1_000_000] {
        let route = |number: u64, revision: u64| {
            // A tenth has an upstream of its own.
            let mut value = json!({"uri": format!("/service{number}/*"),
                "host": format!("h{}", number % 100), "upstream_id": "1"});
            if number.is_multiple_of(10) {
                value["upstream"] = json!({"nodes": {"127.0.0.1:80": 1}});
            }
            let body = Body::parse(Kind::Routes, &value).expect("a valid route");
            Change::Put(Resource {
                kind: Kind::Routes,
                id: id(&number.to_string()),
                revision,
                body,
            })
        };
        let before = resident_bytes();
        let mut keeper = Keeper::new(wardgate::plugins::ALL, None, Registry::new());
        let upstream = json!({"nodes": {"127.0.0.1:80": 1}});
        let body = Body::parse(Kind::Upstreams, &upstream).expect("a valid upstream");
        let upstream = Resource { kind: Kind::Upstreams, id: id("1"), revision: 1, body };
        keeper.apply(vec![Change::Put(upstream)], 1);
        for start in (1..=count).step_by(1000) {
            let end = count.min(start + 999);
            keeper.apply((start..=end).map(|number| route(number, 1)).collect(), 1);
        }
        report("keeper", count, before);
        let mut revision = 1;
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                revision += 1;
                keeper.apply(vec![route(50, revision)], revision)
            });
        });
    }
    group.finish();
}

struct Nothing;

#[async_trait]
impl Access for Nothing {
    async fn access(&self, _: &mut Exchange) -> Result<Flow, Fault> {
        Ok(Flow::Next)
    }
}

/// The chain of no hooks is the proof that what is absent costs nothing.
fn chain(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chain/access");
    let client = Client {
        connection: 1,
        door: Listeners::Ingress,
        address: loopback(1),
        local: loopback(2),
        introduced: None,
        peer: None,
        me: None,
        tls: false,
        sni: None,
    };
    let mut exchange = Exchange::new(Arc::new(client));
    exchange.request = Head::request("GET", "/", "a");
    for count in [0, 5, 20] {
        let link = |_| {
            Link::new("bench", 0, None, Hooks::of(Nothing).access().done()).expect("a valid link")
        };
        let chain = Chain::new((0..count).map(link));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter_custom(|times| {
                runtime.block_on(async {
                    let started = std::time::Instant::now();
                    for _ in 0..times {
                        if chain.has_access() {
                            let _ = black_box(chain.access(&mut exchange).await);
                        }
                        black_box(&chain);
                    }
                    started.elapsed()
                })
            });
        });
    }
    group.finish();
}

fn identity(authority: &Authority, name: &str) -> Live<Identity> {
    let id = authority.domain().workload(name).expect("a valid name");
    let svid = authority.issue(&id, Duration::from_secs(3600), &[]).expect("an SVID");
    let bundles: TrustBundles = [authority.bundle()].into_iter().collect();
    Live::fixed(Identity::new(svid, bundles))
}

/// Both sides of a full mTLS handshake with SPIFFE verification, in memory.
fn handshake(criterion: &mut Criterion) {
    let authority = Authority::in_memory("bench.local".parse().expect("a name"), Clock::system())
        .expect("an authority");
    let acceptor = Acceptor::new(identity(&authority, "/billing"));
    let connector = Connector::new(identity(&authority, "/shop"));
    let billing = authority.domain().workload("/billing").expect("a valid name");
    let expected = Arc::new(ExpectedPeers::exactly(&billing));
    criterion.bench_function("handshake/both sides", |bencher| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        bencher.iter(|| {
            runtime.block_on(async {
                let (near, far) = tokio::io::duplex(64 * 1024);
                let (accepted, connected) = tokio::join!(
                    acceptor.accept(far),
                    connector.connect(near, &expected, Alpn::Http1)
                );
                assert!(accepted.is_ok() && connected.is_ok());
            });
        });
    });
}

async fn app(tasks: &mut Tasks) -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tasks.add(async move {
        let mut connections = Tasks::new();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n{}", "x".repeat(1024));
        while let Ok((mut tcp, _)) = listener.accept().await {
            let answer = answer.clone();
            connections.add(async move {
                let mut buffer = [0; 4096];
                while tcp.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                    if tcp.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// One request: client, outbound sidecar, mTLS, inbound sidecar, application. Wall time over loopback.
fn proxied(criterion: &mut Criterion) {
    let folder = std::env::temp_dir().join(format!("wardgate-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut tasks = Tasks::new();
    let (embedded, outbound) = runtime.block_on(async {
        let world = World {
            trust_domain: "bench.local".into(),
            state_dir: folder.clone(),
            keep_authority: false,
            admin_port: 0,
            status_port: None,
        };
        let mut embedded = Embedded::start(&world).await.expect("a world");
        let app = app(&mut tasks).await;
        let free = Some(loopback(0));
        let plan = Plan { inbound: free, app: Some(format!("http://{app}")), ..Plan::default() };
        let inbound = embedded.sidecar("billing", &plan).expect("a sidecar").address(Listeners::Inbound);
        let plan = Plan { outbound: free, ..Plan::default() };
        let outbound = embedded.sidecar("shop", &plan).expect("a sidecar").address(Listeners::Outbound);
        let store = embedded.control.store().clone();
        let route = json!({"uri": "/*", "workload_selector": {"listener": "outbound"}, "upstream": {
            "nodes": {inbound.expect("a door").to_string(): 1},
            "tls": {"identity": "svid", "spiffe_ids": ["spiffe://bench.local/billing"]}}});
        let policy = json!({"action": "allow", "rules": [{"from": {"principals": ["spiffe://bench.local/shop"]}}]});
        let any = wardgate::store::Expect::Anything;
        store.put("/apisix/routes/1", &route, any, None).await.expect("a write");
        let stored = store.put("/apisix/identity_policies/1", &policy, any, None).await.expect("a write");
        assert!(embedded.converged(stored.modified, Duration::from_secs(10)).await);
        (embedded, outbound.expect("a door"))
    });
    let mut client = runtime.block_on(TcpStream::connect(outbound)).expect("a connection");
    client.set_nodelay(true).expect("an option");
    criterion.bench_function("proxied request/mesh hop", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                client
                    .write_all(b"GET /x HTTP/1.1\r\nhost: billing\r\n\r\n")
                    .await
                    .expect("a write");
                let (mut buffer, mut count) = ([0; 4096], 0);
                while count < 1024 || !buffer[..count].ends_with(b"xxxx") {
                    count += client.read(&mut buffer[count..]).await.expect("a read");
                }
                assert!(buffer.starts_with(b"HTTP/1.1 200"));
            });
        });
    });
    drop(client);
    runtime.block_on(embedded.drain(Duration::from_secs(2)));
    let _ = std::fs::remove_dir_all(folder);
}

/// A token at its first use, and whenever it comes again.
fn token(criterion: &mut Criterion) {
    let domain = "bench.local".parse().expect("a trust domain");
    let authority = Authority::in_memory(domain, Clock::system()).expect("an authority");
    let id = authority.domain().workload("/shop").expect("an id");
    let audiences = ["billing".to_owned()];
    let issued = authority.jwt().issue(&id, &audiences, Duration::from_secs(300));
    let issued = issued.expect("a token");
    let svid = authority.issue(&id, Duration::from_secs(3600), &[]).expect("an identity");
    let bundles: TrustBundles = [authority.bundle()].into_iter().collect();
    let identity = Live::fixed(Identity::new(svid, bundles));
    let trust = identity.load().trust.clone();
    let mut group = criterion.benchmark_group("token");
    group.bench_function("prove ES256", |bencher| {
        bencher.iter(|| trust.token_verifier().prove(black_box(issued.text.reveal())).is_ok());
    });
    let tokens = Tokens::new(&identity, Clock::system(), Refresh::default());
    let rules = TokenRules {
        audiences: audiences.to_vec(),
        several_audiences: false,
        leeway: 0,
        max_lifetime: Some(3600),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    group.bench_function("verify a known one", |bencher| {
        bencher.iter(|| {
            runtime.block_on(tokens.verify(black_box(issued.text.reveal()), &rules)).is_ok()
        });
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    router(criterion);
    router_by_path(criterion);
    router_change(criterion);
    keeper(criterion);
    policy::decisions(criterion);
    record::decision_and_record(criterion);
    chain(criterion);
    handshake(criterion);
    token(criterion);
    proxied(criterion);
}

criterion_group!(benches, all);
criterion_main!(benches);
