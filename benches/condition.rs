//! What a condition in CEL costs: a decision with it against one without.

#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use wardgate::identity::SpiffeId;
use wardgate::model::{Id, IdentityPolicy};
use wardgate::policy::{Action, Content, Fields, Policy, Token};

struct Headers;

impl Fields for Headers {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        if name.eq_ignore_ascii_case("x-role") {
            see(b"reader");
            see(b"admin");
        }
    }
}

const CONDITIONS: [(&str, Option<&str>); 7] = [
    ("none", None),
    ("comparison", Some("port == 15006")),
    ("path", Some("request.path.startsWith('/invoices/')")),
    ("pattern", Some("request.path.matches('^/invoices/[0-9]+$')")),
    ("claim", Some("'ops' in token.claims.groups")),
    ("header", Some("'admin' in request.headers['x-role']")),
    ("loop", Some("request.headers['x-role'].exists(role, role.startsWith('adm'))")),
];

fn conditions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("condition");
    let me: SpiffeId = "spiffe://shop/billing".parse().unwrap();
    let web: SpiffeId = "spiffe://shop/web".parse().unwrap();
    let claims = serde_json::json!({"sub": "a", "groups": ["dev", "ops"]});
    let claims = claims.as_object().unwrap();
    for (name, condition) in CONDITIONS {
        let when = condition.map(|cel| serde_json::json!({ "cel": cel }));
        let mut rule = serde_json::json!({"from": {"principals": ["spiffe://shop/web"]}});
        if let Some(when) = when {
            rule["when"] = when;
        }
        let policy = serde_json::json!({"action": "allow", "rules": [rule]});
        let policy: IdentityPolicy = serde_json::from_value(policy).unwrap();
        let id = Id::parse("bench").unwrap();
        let (policy, rejected) = Policy::compile([(&id, 1, &policy)], &me);
        assert!(rejected.is_empty(), "{rejected:?}");
        let standing = policy.standing_of(Some(&web));
        let mut action = Action::http(15006, "GET", "billing", "/invoices/7");
        if let Content::Request(request) = &mut action.content {
            (request.fields, request.token) = (&Headers, Token::Verified(claims));
        }
        assert!(policy.decide(&standing, &action).is_allowed(), "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter(|| policy.decide(black_box(&standing), black_box(&action)));
        });
    }
    group.finish();
}

criterion_group!(benches, conditions);
criterion_main!(benches);
