//! What it costs to decide and to put the decision on record.

use std::hint::black_box;

use criterion::Criterion;
use serde_json::json;
use wardgate::identity::SpiffeId;
use wardgate::model::{Id, IdentityPolicy};
use wardgate::observe::{
    Allows, AuditLog, AuditSettings, DecisionRecord, EndsFacts, Posture, RetainSettings,
};
use wardgate::policy::{Action, Policy};

/// The whole of decision and record, as a request pays for it: decided, and written to its worker's lane or counted there.
pub(super) fn decision_and_record(criterion: &mut Criterion) {
    let rules: Vec<_> = (0..10_000)
        .map(|number| {
            json!({"from": {"principals": [format!("spiffe://shop/w{number}")]},
                "to": {"methods": ["GET"], "paths": ["/invoices/{id}"]}})
        })
        .collect();
    let text: IdentityPolicy =
        serde_json::from_value(json!({"action": "allow", "rules": rules})).expect("a valid policy");
    let me: SpiffeId = "spiffe://shop/billing".parse().expect("a valid id");
    let name = Id::parse("bench").expect("a valid id");
    let (policy, _) = Policy::compile([(&name, 1, &text)], &me);
    let caller: SpiffeId = "spiffe://shop/w5".parse().expect("a valid id");
    let standing = policy.standing_of(Some(&caller));
    let folder = std::env::temp_dir().join(format!("wardgate-bench-{}", std::process::id()));
    let mut group = criterion.benchmark_group("policy/decide and record");
    for (what, allows) in [("single", Allows::Each), ("counted", Allows::Aggregated)] {
        let path = Some(folder.join(what).join("audit.jsonl"));
        // Small files that are not kept: the bench measures the worker's part, and leaves no gigabytes behind.
        let retain = RetainSettings { files: Some(0), ..RetainSettings::default() };
        let settings = AuditSettings {
            path,
            allows,
            retain,
            rotate_bytes: 16 << 20,
            pending_bytes: 64 << 20,
            ..AuditSettings::default()
        };
        let audit = AuditLog::open(settings, &Posture::default()).expect("a log");
        audit.begin_retention();
        let lane = audit.lane();
        let from = "10.0.0.7:40000".parse().expect("an address");
        let ends = lane.ends(&EndsFacts {
            src_spiffe_id: Some(caller.as_str()),
            src_serial: Some("0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
            src_spki_sha256: Some(
                "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            ),
            src_not_after: Some(1_795_262_400),
            dst_spiffe_id: Some(me.as_str()),
            ..EndsFacts::of(1, from, 15006)
        });
        group.bench_function(what, |bencher| {
            bencher.iter(|| {
                let action = Action::http(15006, "GET", "billing", black_box("/invoices/7"));
                let decision = policy.decide(black_box(&standing), &action);
                let rule = decision.outcome.rule().and_then(|rule| policy.rule(rule));
                lane.decision(&DecisionRecord {
                    route_id: Some("billing"),
                    template: Some("/*"),
                    protocol: "h2",
                    method: b"GET",
                    host: b"billing",
                    path: b"/invoices/7",
                    policy_id: rule.map(|rule| rule.policy.as_str()),
                    rule: rule.map(|rule| rule.rule),
                    policy_revision: rule.map(|rule| rule.revision),
                    config_revision: 7,
                    ..DecisionRecord::of(&ends, decision.is_allowed())
                })
            });
        });
    }
    group.finish();
    let _ = std::fs::remove_dir_all(folder);
}
