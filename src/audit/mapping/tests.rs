//! Records that the real log wrote, in the words of others: as they stand in `golden/`, and as those others want them.
//!
//! After a change of a table or of a record: `WARDGATE_REGENERATE=1 cargo test --lib mapping`, and read the difference.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::table::{Source, Table};
use super::{Format, Here, Severity, open_telemetry, syslog};
use crate::identity::forge::Forge;
use crate::observe::{
    AdminRecord, AuditLane, AuditLog, AuditSettings, ConfigRecord, ConnectionRecord,
    DecisionRecord, DenialId, EndsFacts, HandshakeRefusedRecord, IdentityRecord, IssuerRecord,
    Nearest, Posture, TlsFacts, TokenFacts, WouldBe, record_types,
};
use crate::rt::Live;

/// One record of each kind, as the log writes it.
fn written() -> Vec<Value> {
    static WRITTEN: OnceLock<Vec<Value>> = OnceLock::new();
    WRITTEN.get_or_init(write).clone()
}

fn write() -> Vec<Value> {
    let folder = std::env::temp_dir().join(format!("wardgate-mapping-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("audit.jsonl");
    // A torn end makes a record of loss.
    std::fs::write(&path, "{\"seq\":").unwrap();
    let settings = AuditSettings { path: Some(path.clone()), ..AuditSettings::default() };
    let posture = Posture {
        role: "sidecar".into(),
        spiffe_id: None,
        facts: vec![("trust_domain", "shop.test".into())],
    };
    let log = AuditLog::open(settings, &posture).unwrap();
    write_all(log.control());
    log.seal_as(Live::fixed(Forge::new("shop.test").identity("/billing", &[])));
    drop(log);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    text.lines().map(|line| normal(serde_json::from_str(line).unwrap())).collect()
}

fn write_all(lane: &AuditLane) {
    let caller = "10.0.0.9:40000".parse().unwrap();
    let ends = lane.ends(&EndsFacts {
        src_spiffe_id: Some("spiffe://shop.test/web"),
        src_serial: Some("0a1b"),
        src_spki_sha256: Some("c0ffee"),
        src_not_after: Some(1_800_000_000),
        src_via: Some("10.0.0.1:443".parse().unwrap()),
        dst_spiffe_id: Some("spiffe://shop.test/billing"),
        tls: Some(TlsFacts {
            version: Some("1.3"),
            suite: Some("TLS_AES_128_GCM_SHA256"),
            group: Some("X25519"),
            ..TlsFacts::default()
        }),
        ..EndsFacts::of(7, caller, 15006)
    });
    let request = DecisionRecord {
        route_id: Some("r1"),
        upstream: Some("127.0.0.1:8080"),
        method: b"GET",
        host: b"billing",
        path: b"/invoices/7",
        policy_id: Some("p"),
        rule: Some("read"),
        policy_revision: Some(12),
        config_revision: 34,
        ..DecisionRecord::of(&ends, true)
    };
    lane.decision(&request).unwrap();
    // The second of its kind is counted.
    lane.decision(&request).unwrap();
    lane.decision(&DecisionRecord {
        method: b"DELETE",
        status: Some(403),
        allowed: false,
        policy_id: None,
        rule: None,
        policy_revision: None,
        reason: Some("no_rule"),
        denial_id: Some(DenialId::new()),
        nearest: Some(Nearest { policy_id: "p", rule: "read", clause: "methods" }),
        would_be: Some(WouldBe { allowed: true, reason: None, rule: Some(("observed", "all")) }),
        token: Some(TokenFacts { hash: "abcd", subject: Some("alice"), id: None }),
        caller: Some("192.0.2.7:1".parse().unwrap()),
        ..request
    })
    .unwrap();
    let plain = lane.ends(&EndsFacts {
        dst_spiffe_id: Some("spiffe://shop.test/billing"),
        ..EndsFacts::of(7, caller, 15006)
    });
    lane.decision(&DecisionRecord {
        protocol: "tcp",
        reason: Some("no_identity"),
        ..DecisionRecord::of(&plain, false)
    })
    .unwrap();
    lane.handshake_refused(&HandshakeRefusedRecord {
        is_observed: false,
        conn_id: 8,
        src_addr: "[2001:db8::1]:5000".parse().unwrap(),
        presented_id: Some("spiffe://elsewhere.test/web"),
        presented_serial: Some("ff"),
        dst_spiffe_id: Some("spiffe://shop.test/billing"),
        dst_port: 15006,
        reason: "unknown_trust_domain",
        detail: Some("nobody vouches for elsewhere.test"),
    })
    .unwrap();
    lane.connection(&ConnectionRecord {
        side: Some("accepted"),
        reason: Some("peer_expired"),
        protocol: Some("h2"),
        requests: Some(3),
        bytes_in: Some(100),
        bytes_out: Some(200),
        duration_ms: Some(1500),
        ..ConnectionRecord::of(&ends, "forced_close")
    })
    .unwrap();
    for (event, detail) in [("rotated", None), ("bundle_refused", Some("an older one"))] {
        lane.identity(&IdentityRecord {
            event,
            spiffe_id: "spiffe://shop.test/billing",
            serial: Some("0c"),
            not_after: Some(1_800_000_000),
            trust_domains: Some("shop.test"),
            detail,
        })
        .unwrap();
    }
    for (event, reason) in [("enrolled", None), ("refused", Some("bad_token"))] {
        lane.issuer(&IssuerRecord {
            event,
            src_addr: Some("10.0.0.9:40001".parse().unwrap()),
            proof: Some("join_token"),
            spiffe_id: Some("spiffe://shop.test/new"),
            serial: Some("0d"),
            not_after: None,
            reason,
            detail: None,
        })
        .unwrap();
    }
    let applied = ConfigRecord {
        event: "applied",
        revision: 35,
        changes: Some(2),
        kind: None,
        id: None,
        reason: None,
    };
    lane.config(&applied).unwrap();
    lane.config(&ConfigRecord {
        event: "refused",
        kind: Some("routes"),
        id: Some("7"),
        reason: Some("no upstream"),
        ..applied
    })
    .unwrap();
    lane.admin(&AdminRecord {
        principal: Some("deploy"),
        src_addr: Some("127.0.0.1:50000".parse().unwrap()),
        method: "PUT",
        path: b"/apisix/admin/routes/7",
        status: 201,
        revision: Some(36),
        body_sha256: Some("beef"),
        diff_sha256: None,
        reason: None,
    })
    .unwrap();
}

/// What is another one at each run, made the same.
fn normal(mut record: Value) -> Value {
    for (field, value) in [
        ("time", "2026-01-02T03:04:05.678Z"),
        ("boot_id", "00000000000000b1"),
        ("event_id", "00000000-0000-7000-8000-000000000001"),
        ("version", "0.0.0"),
        ("engine_version", "0.0.0"),
        ("first", "2026-01-02T03:04:05.000Z"),
        ("last", "2026-01-02T03:04:05.600Z"),
        ("denial_id", "d-0000000000"),
        ("certificate_sha256", "5e"),
        ("signature", "c2ln"),
        ("prev", "11"),
        ("hash", "22"),
    ] {
        if record[field].is_string() {
            record[field] = json!(value);
        }
    }
    for field in ["pid", "uptime_ms"] {
        if record[field].is_number() {
            record[field] = json!(1);
        }
    }
    if record["certificates"].is_array() {
        record["certificates"] = json!(["Y2VydA=="]);
    }
    record
}

/// Records that the real log writes only in times that a test does not wait for.
fn others() -> Vec<Value> {
    let head = |seq: u64, kind: &str| json!({ "seq": seq, "time": "2026-01-02T03:04:05.678Z", "type": kind, "boot_id": "b", "prev": "1", "hash": "2" });
    let with = |mut record: Value, more: Value| {
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        record
    };
    vec![
        with(
            head(90, "loss"),
            json!({ "event": "dropped", "lost": 4, "lost_denies": 1,
            "first_lost": "2026-01-02T03:04:05.000Z", "last_lost": "2026-01-02T03:04:05.500Z" }),
        ),
        with(
            head(91, "posture"),
            json!({ "event": "rotated", "opens": true, "continues": "audit-000001.jsonl" }),
        ),
        head(92, "of_tomorrow"),
    ]
}

fn here() -> Here {
    Here { node: Some("node-1".into()) }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/audit/mapping/golden").join(name)
}

/// Compares with a file of one JSON object a line, or writes it anew.
fn holds_golden(name: &str, told: &[Value]) {
    let text: String = told.iter().map(|one| format!("{one}\n")).collect();
    // The version is the build's.
    let text = text.replace(&format!("\"{}\"", env!("CARGO_PKG_VERSION")), "\"BUILD\"");
    let path = golden(name);
    if std::env::var_os("WARDGATE_REGENERATE").is_some() {
        return std::fs::write(path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (number, (expected, found)) in expected.lines().zip(text.lines()).enumerate() {
        let [expected, found]: [Value; 2] =
            [expected, found].map(|line| serde_json::from_str(line).unwrap());
        assert_eq!(found, expected, "{name}:{}", number + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{name}");
}

fn all() -> Vec<Value> {
    written().into_iter().chain(others()).collect()
}

fn told(format: Format, records: &[Value]) -> Vec<Value> {
    let tell = |record: &Value| {
        serde_json::from_str(&format.tell(&record.to_string(), &here()).unwrap()).unwrap()
    };
    records.iter().map(tell).collect()
}

#[test]
fn each_type_of_record_is_told_as_it_stands_in_the_golden_files() {
    let records = all();
    for kind in record_types() {
        assert!(records.iter().any(|record| record["type"] == kind), "no record of type {kind}");
    }
    holds_golden("wardgate.jsonl", &told(Format::Wardgate, &records));
    holds_golden("ocsf.jsonl", &told(Format::Ocsf, &records));
    holds_golden("ecs.jsonl", &told(Format::Ecs, &records));
    let otel: Vec<Value> = records.iter().map(|record| open_telemetry(record, &here())).collect();
    holds_golden("otel.jsonl", &otel);
    let fields: Vec<Value> = records.iter().map(|record| syslog(record, &here())).collect();
    holds_golden("syslog.jsonl", &fields);
}

/// Of each class that we use: its category, its number, and what OCSF 1.6 requires of it beyond the base event.
const CLASSES: &[(u64, u64, &[&str], &[&str])] = &[
    (0, 0, &[], &[]),
    (1, 1008, &[], &["log_name", "log_provider", "log_type_id"]),
    (3, 3002, &["user"], &["service", "dst_endpoint"]),
    (3, 3004, &["entity"], &[]),
    (4, 4001, &[], &["src_endpoint", "dst_endpoint"]),
    (4, 4002, &[], &["http_request", "http_response"]),
    (6, 6002, &["app"], &[]),
    (6, 6003, &["actor", "api", "src_endpoint"], &[]),
];

#[test]
fn ocsf_has_what_each_class_requires() {
    let mut seen = std::collections::BTreeSet::new();
    for (record, event) in all().iter().zip(told(Format::Ocsf, &all())) {
        let number = |field: &str| {
            event[field].as_u64().unwrap_or_else(|| panic!("{field} of {record}: {event:#}"))
        };
        let class = number("class_uid");
        let (category, _, required, one_of) =
            *CLASSES.iter().find(|one| one.1 == class).unwrap_or_else(|| panic!("{class}"));
        seen.insert(class);
        assert_eq!(number("category_uid"), category, "{event:#}");
        assert_eq!(number("type_uid"), class * 100 + number("activity_id"), "{event:#}");
        assert!((1..=6).contains(&number("severity_id")), "{event:#}");
        assert_eq!(number("time"), 1_767_323_045_678, "milliseconds: {event:#}");
        assert_eq!(event["metadata"]["version"], "1.6.0");
        assert_eq!(event["metadata"]["product"]["vendor_name"], "Wardgate");
        assert!(event["metadata"]["product"]["name"].is_string());
        for field in required {
            assert!(!event[*field].is_null(), "{class} requires {field}: {event:#}");
        }
        let has_one = one_of.is_empty() || one_of.iter().any(|field| !event[*field].is_null());
        assert!(has_one, "{class} requires one of {one_of:?}: {event:#}");
        if number("activity_id") == 99 {
            assert!(event["activity_name"].is_string(), "99 has a name: {event:#}");
        }
        // What stands in objects that have requirements of their own.
        if let Some(tls) = event["tls"].as_object() {
            assert!(tls["version"].is_string(), "{event:#}");
        }
        if let Some(info) = event["connection_info"].as_object() {
            assert!(info["direction_id"].is_u64(), "{event:#}");
        }
        for user in [&event["user"], &event["actor"]["user"]] {
            assert!(user.is_null() || user["uid"].is_string() || user["name"].is_string());
        }
    }
    assert_eq!(seen.len(), CLASSES.len(), "each class is used: {seen:?}");
}

#[test]
fn ocsf_says_who_decided_what_about_whom() {
    let records = written();
    let events = told(Format::Ocsf, &records);
    let of = |fits: &dyn Fn(&Value) -> bool| {
        let at = records.iter().position(fits).expect("such a record");
        &events[at]
    };
    let allowed = of(&|record| record["method"] == "GET");
    assert_eq!((&allowed["class_uid"], &allowed["activity_id"]), (&json!(4002), &json!(3)));
    assert_eq!(allowed["actor"]["user"]["uid"], "spiffe://shop.test/web");
    assert_eq!(allowed["src_endpoint"]["ip"], "10.0.0.9");
    assert_eq!(allowed["http_request"]["url"]["path"], "/invoices/7");
    let first = &allowed["authorizations"][0];
    assert_eq!((&first["decision"], &first["policy"]["uid"]), (&json!("allowed"), &json!("p")));
    assert_eq!(first["policy"]["version"], "12");
    assert_eq!(first["policy"]["is_applied"], true);
    let denied = of(&|record| record["method"] == "DELETE");
    assert_eq!((&denied["action_id"], &denied["status_code"]), (&json!(2), &json!("no_rule")));
    assert_eq!(denied["authorizations"][1]["policy"]["is_applied"], false);
    assert_eq!(denied["src_endpoint"]["ip"], "192.0.2.7", "whom a trusted proxy named");
    assert_eq!(denied["src_endpoint"]["intermediate_ips"], json!(["10.0.0.9", "10.0.0.1"]));
    let refused = of(&|record| record["type"] == "handshake_refused");
    assert_eq!(refused["type_uid"], 300_201);
    assert_eq!(refused["status_code"], "unknown_trust_domain");
}

#[test]
fn whatever_a_table_does_not_know_is_refused_by_name() {
    for (text, expected) in [
        ("[]", "expected"),
        ("{\"records\": {}, \"other\": 1, \"more\": 2}", "\"more\" is no part of a table"),
        ("{\"records\": {\"x\": \"$y\"}, \"other\": 1}", "x: \"$y\" is no field"),
        ("{\"records\": {\"x\": {\"$of\": []}}, \"other\": 1}", "x: $of is no operation"),
        ("{\"records\": {\"x\": {\"$part\": \"y\"}}, \"other\": 1}", "x: there is no part \"y\""),
        (
            "{\"parts\": {\"y\": {\"$part\": \"y\"}}, \"records\": {\"x\": {\"$part\": \"y\"}}, \"other\": 1}",
            "without an end",
        ),
        (
            "{\"records\": {\"x\": {\"$first\": [], \"$sum\": []}}, \"other\": 1}",
            "are not one operation",
        ),
    ] {
        let refused = Table::read(text).unwrap_err();
        assert!(refused.contains(expected), "{text}: {refused}");
    }
}

#[test]
fn templates_leave_out_what_a_record_does_not_have() {
    let table = Table::read(
        r#"{ "records": {}, "other": {
            "a": "$/a", "list": ["$/a", "$/b"], "empty": { "x": "$/a" }, "joined": { "$join": ["$/b", "$/a"] },
            "millis": { "$millis": "$/t" }, "sum": { "$sum": [1, "$/n"] }, "port": { "$port": "$/s" },
            "case": { "$case": "$/b", "B": { "$first": ["$/a", "found"] } },
            "merged": { "$merge": [{ "x": { "y": 1 } }, { "x": { "z": 2 } }, "$/a"] }
        } }"#,
    )
    .unwrap();
    let record =
        json!({ "b": "B", "t": "1970-01-01T00:00:01.5Z", "n": 2, "s": "[::ffff:1.2.3.4]:5" });
    let filled = table.map(Source { record: &record, here: &Value::Null });
    let expected = json!({
        "list": ["B"], "millis": 1500, "sum": 3, "port": 5, "case": "found", "merged": { "x": { "y": 1, "z": 2 } },
    });
    assert_eq!(filled, expected);
}

#[test]
fn what_is_refused_or_lost_matters_more_than_what_is_allowed() {
    let of = |record: Value| Severity::of(&record);
    let allowed = of(json!({ "type": "decision", "outcome": "allow" }));
    let denied = of(json!({ "type": "decision", "outcome": "deny" }));
    assert!(allowed < denied && denied < of(json!({ "type": "loss" })));
    let forced = of(json!({ "type": "connection", "event": "forced_close" }));
    assert!(of(json!({ "type": "connection", "event": "close" })) < forced);
}
