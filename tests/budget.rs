//! What must not be asked of memory, counted by the allocator itself: policy and the decision log add no allocation to a request,
//! and a changed route costs the same among few and among many. And what a request may ask of memory and of the kernel at all,
//! counted at the workers of data planes that run.
mod running;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use running::{Plane, Stand, Strace, Version};

use wardgate::identity::SpiffeId;
use wardgate::model::{Body, Change, Id, IdentityPolicy, Kind, Labels, Resource};
use wardgate::observe::{
    AuditLane, AuditLog, AuditSettings, DecisionRecord, DenialId, EndsFacts, Nearest, Posture,
    Registry,
};
use wardgate::policy::{Action, Content, Fields, Policy, RouteFacts, Token, other_readings};
use wardgate::snapshot::{Keeper, RouterKind, RouterSettings};

/// The system's allocator, counting what each thread asks for.
struct Counting;

/// Allocations by thread, for those who ask from another one. A thread takes a place with its first allocation.
static PLACES: [Place; 256] =
    [const { Place { thread: AtomicU32::new(0), count: AtomicU64::new(0) } }; 256];
static TAKEN: AtomicU32 = AtomicU32::new(0);

struct Place {
    /// The system's number.
    thread: AtomicU32,
    count: AtomicU64,
}

/// What one thread, if any, holds: how many pieces of each size, in steps of [`STEP`] bytes. The last ones are all that are larger.
static WATCHED: AtomicU32 = AtomicU32::new(0);
static HELD: [AtomicI64; 1024] = [const { AtomicI64::new(0) }; 1024];
const STEP: usize = 16;

/// Counts what the watched thread takes (1) or gives back (-1).
fn hold(bytes: usize, pieces: i64) {
    let watched = WATCHED.load(Ordering::Relaxed);
    if watched != 0 && THREAD.try_with(|thread| thread.get() == watched).unwrap_or(false) {
        let size = bytes.div_ceil(STEP).min(HELD.len() - 1);
        HELD[size].fetch_add(pieces, Ordering::Relaxed);
    }
}

/// Counts one allocation of this thread.
fn count_one(bytes: usize) {
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    let _ = BYTES.try_with(|count| count.set(count.get() + bytes));
    let _ = PLACE.try_with(|place| {
        if place.get() == u32::MAX {
            place.set(TAKEN.fetch_add(1, Ordering::Relaxed));
            if let Some(place) = PLACES.get(place.get() as usize) {
                let thread = this_thread();
                place.thread.store(thread, Ordering::Relaxed);
                let _ = THREAD.try_with(|known| known.set(thread));
            }
        }
        if let Some(place) = PLACES.get(place.get() as usize) {
            place.count.fetch_add(1, Ordering::Relaxed);
        }
    });
}

/// The system's number of this thread.
#[expect(unsafe_code, reason = "no argument, cannot fail, allocates nothing")]
fn this_thread() -> u32 {
    // SAFETY: as above.
    unsafe { libc::gettid() }.unsigned_abs()
}

/// What a thread has asked for so far.
fn allocations_of(thread: u32) -> u64 {
    let place = PLACES.iter().find(|place| place.thread.load(Ordering::Relaxed) == thread);
    place.expect("a thread with a place").count.load(Ordering::Relaxed)
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static PLACE: Cell<u32> = const { Cell::new(u32::MAX) };
    static THREAD: Cell<u32> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "passes every call on unchanged; only counts beside it")]
// SAFETY: all calls go to the system's allocator with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one(layout.size());
        hold(layout.size(), 1);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(layout.size(), -1);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_one(size);
        hold(layout.size(), -1);
        hold(size, 1);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// One header field.
struct OneField;

impl Fields for OneField {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        if name == "x-role" {
            see(b"user");
        }
    }
}

fn policies() -> Vec<(Id, IdentityPolicy)> {
    let rules: Vec<serde_json::Value> = (0..10_000)
        .map(|at| {
            serde_json::json!({"from": {"principals": [format!("spiffe://shop/w{at}")]},
                "to": {"methods": ["GET"], "paths": ["/invoices/{id}"]}})
        })
        .collect();
    // All that a rule can look at beside the path.
    let by_everything: Vec<serde_json::Value> = (0..10_000)
        .map(|at| {
            serde_json::json!({"from": {"namespaces": [format!("n{at}"), "prod"], "ip_blocks": ["10.0.0.0/8"],
                    "claims": [{"name": "role", "values": ["user"]}, {"name": "/n/0", "values": ["7"]}]},
                "to": {"hosts": ["*.internal"], "methods": ["GET"], "paths": [format!("/orders/{at}/**")]},
                "when": {"headers": [{"name": "x-role", "values": ["user"]}], "query": [{"name": "page", "values": ["a b"]}],
                    "times": [{"days": ["mon"], "from": "08:00", "zone": "Europe/Berlin"}]}})
        })
        .collect();
    let captured = serde_json::json!({"action": "allow", "rules": [{
        "from": {"principals": ["spiffe://shop/ns/{t}/sa/{who}"]},
        "to": {"hosts": ["{who}.internal"], "paths": ["/t/{t}/**"], "not_paths": ["/t/{who}/**"]}}]});
    let deny = serde_json::json!({"action": "deny", "selector": {"labels": {"team": "pay"}},
        "rules": [{"to": {"paths": ["/admin/**"], "hosts": ["*.internal"]}}]});
    let watch = serde_json::json!({"action": "deny", "mode": "observe", "rules": [{"to": {"methods": ["PUT"]}}]});
    let allow = serde_json::json!({"action": "allow", "rules": rules});
    let everything = serde_json::json!({"action": "allow", "rules": by_everything});
    [
        ("allow", allow),
        ("deny", deny),
        ("everything", everything),
        ("names", captured),
        ("watch", watch),
    ]
    .into_iter()
    .map(|(id, text)| {
        let policy = serde_json::from_value(text).expect("a policy");
        (Id::parse(id).expect("an id"), policy)
    })
    .collect()
}

#[test]
fn a_decision_and_its_record_allocate_nothing() {
    let texts = policies();
    let me: SpiffeId = "spiffe://shop/billing".parse().unwrap();
    let (policy, rejected) = Policy::compile(texts.iter().map(|(id, text)| (id, 1, text)), &me);
    assert!(rejected.is_empty());
    let caller: SpiffeId = "spiffe://shop/w9876".parse().unwrap();
    let standing = policy.standing_of(Some(&caller));
    let labels = Labels::from([("team".to_string(), "pay".to_string())]);
    let route_id = Id::parse("1").unwrap();
    let route = Some(RouteFacts { id: &route_id, labels: &labels });
    let ask =
        |method| Action::http(15006, method, "billing.internal:80", "/invoices/7").on_route(route);
    assert!(policy.decide(&standing, &ask("GET")).is_allowed());
    assert!(!policy.decide(&standing, &ask("DELETE")).is_allowed());

    let count = allocations(|| {
        for _ in 0..1000 {
            let allowed = policy.decide(&standing, &ask("GET"));
            let rule = allowed.outcome.rule().and_then(|rule| policy.rule(rule)).unwrap();
            // What the rule says was worked out when it was compiled.
            assert_eq!((rule.hash.len(), rule.is_canary), (16, false));
            let refused = policy.decide(&standing, &ask("DELETE"));
            assert!(!refused.is_allowed());
            assert!(policy.nearest(&standing, &ask("DELETE")).is_some());
        }
    });
    assert_eq!(count, 0, "decisions");

    let claims = serde_json::json!({"role": ["user"], "n": [7]});
    let web: SpiffeId = "spiffe://shop/ns/prod/sa/web".parse().unwrap();
    let standing = policy.standing_of(Some(&web));
    let ask = |path| {
        let mut action = Action::http(15006, "GET", "web.internal:80", path);
        action.source = Some([10, 1, 2, 3].into());
        // A Monday in March.
        action.unix_seconds = 1_772_452_800;
        if let Content::Request(request) = &mut action.content {
            request.fields = &OneField;
            request.query = Some("x=1&page=a%20b");
            request.token = Token::Verified(claims.as_object().unwrap());
        }
        action
    };
    let count = allocations(|| {
        for _ in 0..1000 {
            assert!(policy.decide(&standing, &ask("/orders/9999/lines/1")).is_allowed());
            assert!(policy.decide(&standing, &ask("/t/prod/x")).is_allowed());
            assert!(!policy.decide(&standing, &ask("/t/web/x")).is_allowed());
        }
    });
    assert_eq!(count, 0, "decisions by everything");

    let folder = std::env::temp_dir().join(format!("wardgate-budget-{}", std::process::id()));
    let settings = AuditSettings {
        path: Some(folder.join("audit.jsonl")),
        single_denies: u32::MAX,
        ..AuditSettings::default()
    };
    let audit = AuditLog::open(settings, &Posture::default()).unwrap();
    let lane = audit.lane();
    let ends = lane.ends(&EndsFacts {
        src_spiffe_id: Some(caller.as_str()),
        src_serial: Some("0a1b2c"),
        src_spki_sha256: Some("ff"),
        src_not_after: Some(1_795_262_400),
        src_issuer_ski: Some("0123456789abcdef0123456789abcdef01234567"),
        src_bundle_revision: Some("0123456789abcdef"),
        dst_spiffe_id: Some(me.as_str()),
        ..EndsFacts::of(1, "127.0.0.1:40000".parse().unwrap(), 15006)
    });
    let allow = |lane: &AuditLane, number: usize| {
        // Each path is another one, and all have one shape.
        const DIGITS: &[u8; 10] = b"0123456789";
        let mut path = *b"/invoices/000000";
        path[10..].iter_mut().rev().fold(number, |left, digit| {
            *digit = DIGITS[left % 10];
            left / 10
        });
        let record = DecisionRecord {
            method: b"GET",
            host: b"billing.internal:80",
            path: &path,
            policy_id: Some("allow"),
            rule: Some("9877"),
            rule_hash: Some("0123456789abcdef"),
            readings: Some(other_readings),
            ..DecisionRecord::of(&ends, true)
        };
        lane.decision(&record).unwrap();
    };
    allow(&lane, 0);
    allow(&lane, 1);
    let count = allocations(|| (0..1000).for_each(|number| allow(&lane, number)));
    assert_eq!(count, 0, "decisions that are counted");
    let record = |lane: &AuditLane, count: usize| {
        for _ in 0..count {
            lane.decision(&DecisionRecord {
                method: b"DELETE",
                host: b"billing.internal:80",
                path: b"/invoices/7",
                reason: Some("no_rule"),
                readings: Some(other_readings),
                denial_id: Some(DenialId::new()),
                nearest: Some(Nearest { policy_id: "allow", rule: "9877", clause: "methods" }),
                ..DecisionRecord::of(&ends, false)
            })
            .unwrap();
        }
    };
    // Buffers grow to what the traffic needs, and keep it: the lane's own and the one that the thread swaps in.
    let settled = (0..50).any(|_| {
        let count = allocations(|| record(&lane, 500));
        audit.flush(Duration::from_secs(30)).unwrap();
        count == 0
    });
    assert!(settled, "records");

    let counter = Registry::new().counter("c", &[]);
    let count = allocations(|| counter.increment());
    assert_eq!(count, 0, "counters");
    drop((audit, lane));
    std::fs::remove_dir_all(folder).unwrap();
}

/// The route with this number in a world where all routes stand in one way.
type Standing = fn(u64) -> serde_json::Value;

fn put(standing: Standing, number: u64, revision: u64) -> Change {
    let mut route = standing(number);
    route["name"] = format!("revision {revision}").into();
    let body = Body::parse(Kind::Routes, &route).expect("a valid route");
    Change::Put(Resource { kind: Kind::Routes, id: Id::from(number), revision, body })
}

/// Allocations and bytes that one changed route costs among `count`, its snapshot shared with requests under way.
fn change_among(kind: RouterKind, standing: Standing, count: u64) -> (u64, usize) {
    let settings = RouterSettings { http: kind, ..RouterSettings::default() };
    let keeper = Keeper::new(wardgate::plugins::ALL, None, Registry::new());
    let mut keeper = keeper.with_router(settings);
    let under_way = keeper.apply((1..=count).map(|number| put(standing, number, 1)).collect(), 1);
    assert!(under_way.rejected.is_empty(), "{:?}", under_way.rejected);
    // The middle one of several: a map that happens to grow is no rule.
    let mut costs: Vec<(usize, u64)> = (2..=10)
        .map(|revision| {
            let change = vec![put(standing, count / 2, revision)];
            let bytes = BYTES.get();
            let count = allocations(|| drop(keeper.apply(change, revision)));
            (BYTES.get() - bytes, count)
        })
        .collect();
    costs.sort_unstable();
    let (bytes, allocations) = costs[costs.len() / 2];
    (allocations, bytes)
}

#[test]
fn a_changed_route_costs_the_same_among_few_and_among_many() {
    let ways: [(&str, RouterKind, Standing); 5] = [
        (
            "one host, many paths",
            RouterKind::HostUri,
            |number| serde_json::json!({"uri": format!("/{number}/*"), "upstream": {"nodes": {"127.0.0.1:80": 1}}}),
        ),
        (
            "many hosts",
            RouterKind::HostUri,
            |number| serde_json::json!({"uri": "/*", "host": format!("h{number}.example"), "upstream": {"nodes": {"127.0.0.1:80": 1}}}),
        ),
        (
            "many wildcard hosts",
            RouterKind::HostUri,
            |number| serde_json::json!({"uri": "/*", "host": format!("*.h{number}.example"), "upstream": {"nodes": {"127.0.0.1:80": 1}}}),
        ),
        (
            "one path, many hosts",
            RouterKind::Uri,
            |number| serde_json::json!({"uri": "/*", "host": format!("h{number}.example"), "upstream": {"nodes": {"127.0.0.1:80": 1}}}),
        ),
        ("plugins with state", RouterKind::HostUri, |number| {
            let limit = serde_json::json!({"count": 1, "time_window": 60});
            serde_json::json!({"uri": format!("/{number}"), "plugins": {"limit-count": limit}})
        }),
    ];
    for (name, kind, standing) in ways {
        let few = change_among(kind, standing, 400);
        let many = change_among(kind, standing, 6_400);
        // Sixteen times as many routes; a sixteenth of them may lie in the part of a map that is copied.
        assert!(many.0 < 2 * few.0 + 64, "{name}: {few:?} and {many:?} allocations and bytes");
        assert!(many.1 < 3 * few.1 + 16_384, "{name}: {few:?} and {many:?} allocations and bytes");
    }
}

/// What a request may cost the proxies on its way.
struct Budget {
    /// As in benches/mesh: A two sidecars, C an ingress, G two sidecars in HTTP/2.
    way: &'static str,
    version: Version,
    /// Of all workers together.
    allocations: f64,
    /// System calls that move bytes, of each worker.
    transfers: f64,
}

const BUDGETS: [Budget; 3] = [
    Budget { way: "C", version: Version::Http1, allocations: 0.0, transfers: 4.0 },
    Budget { way: "A", version: Version::Http1, allocations: 0.0, transfers: 4.0 },
    // How many frames go out together depends on the pace; at most each by itself.
    Budget { way: "G", version: Version::Http2, allocations: 24.0, transfers: 4.0 },
];

/// Beside what each request costs there is what happens now and then, such as a timer.
const NOW_AND_THEN: f64 = 0.1;
const TRANSFERS: [&str; 10] = [
    "read", "readv", "recvfrom", "recvmsg", "recvmmsg", "write", "writev", "sendto", "sendmsg",
    "sendmmsg",
];
/// Waiting is the less the busier a worker is.
const WAITS: [&str; 3] = ["epoll_wait", "epoll_pwait", "futex"];
/// Others, of which each connection has some.
const OF_A_CONNECTION: u64 = 16;

#[test]
#[expect(clippy::cast_precision_loss, reason = "thousands")]
fn a_request_costs_the_workers_no_more_than_its_budget() {
    const COUNTED: u64 = 640;
    let stand = Stand::start();
    for Budget { way, version, allocations, transfers } in BUDGETS {
        let planes: &[&Plane] = match way {
            "C" => &[&stand.ingress],
            _ => &[&stand.outbound, &stand.inbound],
        };
        let ask = |requests| stand.ask(planes[0], version, requests);
        ask(COUNTED / 2);
        // Both runs have as many connections: what these cost goes off.
        let asked_for = |requests| {
            let sum = || planes.iter().map(|plane| allocations_of(plane.worker)).sum::<u64>();
            let before = sum();
            ask(requests);
            sum() - before
        };
        let count = || {
            let (few, many) = (asked_for(160), asked_for(160 + COUNTED));
            many.saturating_sub(few) as f64 / COUNTED as f64
        };
        // Whatever else runs on the machine can only add to it, by the pace: what a request costs is the least that is counted.
        let mut each = count();
        for _ in 0..2 {
            if each > allocations + NOW_AND_THEN {
                each = each.min(count());
            }
        }
        assert!(
            each <= allocations + NOW_AND_THEN,
            "{way}: a request allocates {each} times, and may {allocations} times"
        );

        let watched: Vec<Strace> = planes.iter().map(|plane| Strace::of(plane.worker)).collect();
        ask(COUNTED);
        for (plane, strace) in planes.iter().zip(watched) {
            let calls = strace.end();
            let count = |counts: &dyn Fn(&str) -> bool| {
                calls.iter().filter(|(name, _)| counts(name)).map(|(_, calls)| calls).sum::<u64>()
            };
            let each = count(&|name| TRANSFERS.contains(&name)) as f64 / COUNTED as f64;
            // None at all would mean that another thread was looked at.
            assert!(each > 0.0, "{way}, {}: {calls:?}", plane.name);
            assert!(
                each <= transfers + NOW_AND_THEN,
                "{way}, {}: a request takes {each} system calls, and may {transfers}: {calls:?}",
                plane.name
            );
            let others = count(&|name| !TRANSFERS.contains(&name) && !WAITS.contains(&name));
            let may = OF_A_CONNECTION * version.connections() + COUNTED / 10;
            assert!(others <= may, "{way}, {}: {others} other system calls: {calls:?}", plane.name);
        }
    }
}

/// Bytes that the inbound worker may hold for a connection over mTLS that has carried a request and waits for the next, beside
/// what the kernel holds.
const IDLE_CONNECTION: i64 = 7680;

#[test]
fn an_idle_connection_holds_no_more_than_its_budget() {
    const CONNECTIONS: u16 = 128;
    let stand = Stand::start();
    // What the first ones bring into being stays.
    let mut connections = stand.hold(16);
    WATCHED.store(stand.inbound.worker, Ordering::Relaxed);
    connections.extend(stand.hold(CONNECTIONS.into()));
    // Pieces and their sizes.
    let held = || {
        let pieces = HELD.iter().enumerate().map(|(size, count)| {
            (count.load(Ordering::Relaxed), i64::try_from(size * STEP).expect("a size"))
        });
        pieces.filter(|(count, _)| *count != 0).collect::<Vec<_>>()
    };
    let each =
        || held().iter().map(|(count, size)| count * size).sum::<i64>() / i64::from(CONNECTIONS);
    // What is kept for a next request that follows at once is given back soon.
    let deadline = Instant::now() + Duration::from_secs(30);
    while each() > IDLE_CONNECTION {
        let often: Vec<_> =
            held().into_iter().filter(|(count, _)| *count >= i64::from(CONNECTIONS) / 2).collect();
        assert!(
            Instant::now() < deadline,
            "{} bytes each; pieces and their sizes: {often:?}",
            each()
        );
        running::pause();
    }
    assert!(each() > IDLE_CONNECTION / 4, "another thread was looked at: {} bytes each", each());
    WATCHED.store(0, Ordering::Relaxed);
}
