//! `who-can` over 10,000 rules: `cargo bench --bench questions`.

#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]

use criterion::{Criterion, criterion_group, criterion_main};
use wardgate::model::Id;
use wardgate::policy::questions::{Policies, Target};

fn policies() -> Policies {
    Policies::new((0..100).map(|policy| {
        let rules: Vec<serde_json::Value> = (0..100)
            .map(|rule| {
                let path = if rule % 2 == 0 { "/invoices/{id}".to_owned() } else { format!("/other-{rule}/**") };
                let principal = format!("spiffe://shop/team-{policy}/service-{rule}");
                serde_json::json!({"from": {"principals": [principal]}, "to": {"methods": ["GET"], "paths": [path]}})
            })
            .collect();
        let action = if policy % 10 == 9 { "deny" } else { "allow" };
        let text = serde_json::json!({"action": action, "rules": rules});
        (Id::parse(&format!("p{policy}")).unwrap(), 1, serde_json::from_value(text).unwrap())
    }))
}

fn who_can(criterion: &mut Criterion) {
    let policies = policies();
    let me = "spiffe://shop/billing".parse().unwrap();
    let target = Target {
        method: Some("GET".into()),
        path: Some("/invoices/7".into()),
        ..Target::default()
    };
    criterion.bench_function("who-can, 10,000 rules", |bench| {
        bench.iter(|| policies.who_can(&me, &target));
    });
}

criterion_group!(benches, who_can);
criterion_main!(benches);
