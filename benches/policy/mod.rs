//! What a decision costs among very many rules, and that it allocates nothing: counted by the allocator itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use serde_json::{Value, json};
use wardgate::identity::SpiffeId;
use wardgate::model::{Id, IdentityPolicy};
use wardgate::policy::{Action, Content, Fields, Policy, Token};

/// The system's allocator, counting what this thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "passes every call on unchanged; only counts beside it")]
// SAFETY: all calls go to the system's allocator with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ME: &str = "spiffe://shop/billing";
const CALLER: &str = "spiffe://shop/ns/n5/sa/web";

/// So many rules of one shape.
type Rules = fn(usize) -> Value;

/// What rules can tell their callers and targets by.
const SHAPES: [(&str, Rules); 5] = [
    ("a principal each", |at| {
        json!({"from": {"principals": [format!("spiffe://shop/ns/n{at}/sa/web")]},
            "to": {"methods": ["GET"], "paths": ["/invoices/{id}"]}})
    }),
    ("a namespace each, headers and networks", |at| {
        json!({"from": {"namespaces": [format!("n{at}")], "ip_blocks": ["10.0.0.0/8", "192.0.2.0/24"]},
            "to": {"methods": ["GET"], "paths": ["/invoices/{id}"]},
            "when": {"headers": [{"name": "x-role", "values": ["user", "admin"]}]}})
    }),
    ("one caller, a path each, claims and a query", |at| {
        let path = if at == 5 { "/invoices/{id}".into() } else { format!("/invoices/{at}/lines") };
        json!({"from": {"trust_domains": ["shop"], "claims": [{"name": "role", "values": ["user"]}]},
            "to": {"methods": ["GET"], "paths": [path]},
            "when": {"query": [{"name": "page", "values": ["*"]}], "times": [{"days": ["mon"], "zone": "Europe/Berlin"}]}})
    }),
    ("one caller, a host each", |at| {
        let host = if at == 5 { "billing".into() } else { format!("h{at}.example.com") };
        json!({"to": {"hosts": [host], "methods": ["GET"]}})
    }),
    ("one caller, a path each, captured", |at| {
        let path = if at == 5 { "/invoices/{id}".into() } else { format!("/n{at}/{{t}}") };
        json!({"from": {"principals": ["spiffe://shop/ns/{t}/sa/*"]},
            "to": {"paths": [path], "not_paths": ["/invoices/{t}"], "methods": ["GET"]}})
    }),
];

struct Head;

impl Fields for Head {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        for (found, value) in [("accept", "*/*"), ("x-role", "user"), ("user-agent", "bench")] {
            if found.eq_ignore_ascii_case(name) {
                see(value.as_bytes());
            }
        }
    }
}

/// A decision among rules of each shape. The claim: well under a microsecond among 10,000, and no allocation.
pub(super) fn decisions(criterion: &mut Criterion) {
    let claims = json!({"sub": "web", "role": "user"});
    let claims = claims.as_object().expect("claims");
    let mut group = criterion.benchmark_group("policy/decide");
    for (shape, rule) in SHAPES {
        for count in [10, 1000, 10_000] {
            let rules: Vec<Value> = (0..count).map(rule).collect();
            let text: IdentityPolicy =
                serde_json::from_value(json!({"action": "allow", "rules": rules}))
                    .expect("a policy");
            let me: SpiffeId = ME.parse().expect("a valid id");
            let name = Id::parse("bench").expect("a valid id");
            let (policy, rejected) = Policy::compile([(&name, 1, &text)], &me);
            assert!(rejected.is_empty(), "{rejected:?}");
            let caller: SpiffeId = CALLER.parse().expect("a valid id");
            let standing = policy.standing_of(Some(&caller));
            for (what, method) in [("allow", "GET"), ("deny", "DELETE")] {
                let mut action = Action::http(15006, method, "billing", "/invoices/7");
                action.source = Some([10, 1, 2, 3].into());
                // A Monday.
                action.unix_seconds = 1_772_452_800;
                if let Content::Request(request) = &mut action.content {
                    request.fields = &Head;
                    request.query = Some("page=7&sort=da%74e");
                    request.token = Token::Verified(claims);
                }
                let is_allowed = policy.decide(&standing, &action).is_allowed();
                assert_eq!(is_allowed, what == "allow", "{shape}: {what}");
                let before = ALLOCATIONS.get();
                for _ in 0..1000 {
                    black_box(policy.decide(black_box(&standing), black_box(&action)));
                }
                assert_eq!(ALLOCATIONS.get() - before, 0, "allocations: {shape}, {what}");
                let name = BenchmarkId::new(format!("{shape}/{what}"), count);
                group.bench_function(name, |bencher| {
                    bencher.iter(|| policy.decide(black_box(&standing), black_box(&action)));
                });
            }
        }
    }
    group.finish();
}
