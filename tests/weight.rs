//! What a route weighs in a data plane, counted at the allocator: live bytes, not RSS, so that the figure is the same everywhere.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use wardgate::model::{Body, Change, Id, Kind, Resource};
use wardgate::observe::Registry;
use wardgate::snapshot::Keeper;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator that counts")]
// SAFETY: everything is the system's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn put(kind: Kind, id: &str, value: &Value) -> Change {
    let id = Id::parse(id).unwrap();
    Change::Put(Resource { kind, id, revision: 1, body: Body::parse(kind, value).unwrap() })
}

fn upstream(number: usize) -> Change {
    let node = format!("10.0.{}.{}:80", number >> 8 & 255, number & 255);
    put(
        Kind::Upstreams,
        &format!("u{number}"),
        &json!({ "id": format!("u{number}"), "nodes": { node: 1 } }),
    )
}

/// Half with a host of their own, as they stand in a store.
fn route(number: usize, upstreams: usize) -> Change {
    let mut route = json!({
        "id": format!("r{number}"), "uri": format!("/api/{number}/*"), "create_time": 1, "update_time": 1,
        "upstream_id": format!("u{}", number % upstreams), "desc": "as it was declared", "priority": 0, "status": 1,
    });
    if number.is_multiple_of(2) {
        route["host"] = json!(format!("h{number}.example"));
    }
    put(Kind::Routes, &format!("r{number}"), &route)
}

/// One test alone in this binary: others would count in it.
#[test]
fn a_route_and_an_upstream_weigh_little_in_a_data_plane() {
    const UPSTREAMS: usize = 2_000;
    const ROUTES: usize = 10_000;
    let mut keeper = Keeper::new(wardgate::plugins::ALL, None, Registry::new());
    keeper.apply(vec![upstream(0), route(0, 1)], 1);
    let live = || LIVE.load(Ordering::Relaxed);
    let empty = live();
    keeper.apply((1..UPSTREAMS).map(upstream).collect(), 2);
    let with_upstreams = live();
    keeper.apply((1..ROUTES).map(|number| route(number, UPSTREAMS)).collect(), 3);
    let with_routes = live();
    let of_upstream = (with_upstreams - empty) / UPSTREAMS;
    let of_route = (with_routes - with_upstreams) / ROUTES;
    assert!(of_upstream <= 2_048, "an upstream weighs {of_upstream} bytes");
    assert!(of_route <= 1_536, "a route weighs {of_route} bytes");
}
