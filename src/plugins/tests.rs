//! What holds for every row of the table, and what the plugins' own tests compile with.
#![expect(clippy::needless_pass_by_value, reason = "tests write their JSON in place")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::ALL;
use crate::pipeline::tests::exchange;
use crate::pipeline::{
    Build, Chain, Entry, Flow, Hooks, Id, Invalid, Kept, Kind, Link, NoTargets, Plugin, Registry,
};

mod reference;

/// Compiles one plugin's settings as route `r1` carries them.
pub(super) fn hooks<P: Plugin>(config: &Value, kept: &Kept) -> Result<Hooks, Invalid> {
    let owner = Id::parse("r1").unwrap();
    (Entry::of::<P>().compile)(config, &build(&owner, P::NAME, None, kept))
}

pub(super) fn build<'a>(
    owner: &'a Id,
    plugin: &'static str,
    metadata: Option<&'a Value>,
    kept: &'a Kept,
) -> Build<'a> {
    static METRICS: LazyLock<Registry> = LazyLock::new(Registry::new);
    Build {
        kind: Kind::Routes,
        owner,
        plugin,
        metadata,
        targets: &NoTargets,
        part: "",
        kept,
        metrics: &METRICS,
    }
}

/// A chain of this one plugin.
pub(super) fn chain(name: &'static str, hooks: Hooks) -> Chain {
    Chain::new([Link::new(name, 0, None, hooks).unwrap()])
}

/// A chain of this one plugin, with fresh state.
pub(super) fn compile<P: Plugin>(config: Value) -> Chain {
    let hooks = hooks::<P>(&config, &Kept::default());
    chain(P::NAME, hooks.unwrap_or_else(|error| panic!("{config}: {error}")))
}

/// Why these settings are refused.
pub(super) fn refused<P: Plugin>(config: Value) -> String {
    match hooks::<P>(&config, &Kept::default()) {
        Ok(_) => panic!("{config} is accepted"),
        Err(error) => error.to_string(),
    }
}

/// APISIX 3.18's numbers; those of our own stand among their like.
const PRIORITIES: &[(&str, i32)] = &[
    ("api-breaker", 1005),
    ("batch-requests", 4010),
    ("brotli", 996),
    ("client-control", 22000),
    ("cors", 4000),
    ("csrf", 2980),
    ("echo", 412),
    ("fault-injection", 11000),
    ("acl", 2410),
    ("attach-consumer-label", 2399),
    ("authz-casdoor", 2559),
    ("authz-keycloak", 2000),
    ("cas-auth", 2597),
    ("dingtalk-auth", 2430),
    ("feishu-auth", 2420),
    ("basic-auth", 2520),
    ("consumer-restriction", 2400),
    ("forward-auth", 2002),
    ("gzip", 995),
    ("hmac-auth", 2530),
    ("ip-restriction", 3000),
    ("jwe-decrypt", 2509),
    ("jwt-auth", 2510),
    ("key-auth", 2500),
    ("ldap-auth", 2540),
    ("ldap-auth-advanced", 2541),
    ("limit-conn", 1003),
    ("limit-count", 1002),
    ("limit-req", 1001),
    ("mocking", 10900),
    ("multi-auth", 2600),
    ("oas-validator", 512),
    ("opa", 2001),
    ("openid-connect", 2599),
    ("prometheus", 500),
    ("proxy-buffering", 21991),
    ("proxy-cache", 1085),
    ("proxy-control", 21990),
    ("proxy-mirror", 1010),
    ("proxy-rewrite", 1008),
    ("public-api", 501),
    ("real-ip", 23000),
    ("redirect", 900),
    ("referer-restriction", 2990),
    ("request-id", 12015),
    ("request-validation", 2800),
    ("response-rewrite", 899),
    ("spiffe-auth", 2545),
    ("spiffe-jwt", 2512),
    ("traffic-label", 967),
    ("traffic-split", 966),
    ("ua-restriction", 2999),
    ("uri-blocker", 2900),
    ("workflow", 1006),
    ("wolf-rbac", 2555),
];

#[test]
fn every_plugin_has_apisixs_name_and_priority_once() {
    let rows: BTreeMap<&str, i32> = ALL.iter().map(|row| (row.name, row.priority)).collect();
    assert_eq!(rows, PRIORITIES.iter().copied().collect());
    assert_eq!(rows.len(), ALL.len());
}

#[test]
fn every_row_has_a_doc_line_a_documented_schema_and_an_example_that_compiles() {
    let owner = Id::parse("r1").unwrap();
    for row in ALL {
        let name = row.name;
        let schemas = [Some(row.schema), row.credential, row.metadata];
        for schema in schemas.into_iter().flatten() {
            let schema = schema().to_value();
            assert!(schema["description"].is_string(), "{name}: no doc line");
            assert_eq!(schema["type"], "object", "{name}");
            assert_eq!(schema["additionalProperties"], false, "{name} takes unknown fields");
            let fields = schema["properties"].as_object();
            for (field, about) in fields.into_iter().flatten() {
                assert!(about["description"].is_string(), "{name}.{field}: no doc line");
            }
            jsonschema::validator_for(&schema).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let example: Value = serde_json::from_str(row.example)
            .unwrap_or_else(|error| panic!("{name}: the example is not JSON: {error}"));
        let validator = jsonschema::validator_for(&(row.schema)().to_value()).unwrap();
        let against: Vec<String> = validator.iter_errors(&example).map(|e| e.to_string()).collect();
        assert!(against.is_empty(), "{name}: {against:?}");
        let kept = Kept::default();
        let compile = |config: &Value| (row.compile)(config, &build(&owner, name, None, &kept));
        compile(&example).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut with_more = example.clone();
        with_more["no_such_field"] = json!(1);
        let error = compile(&with_more).unwrap_err().to_string();
        assert!(error.contains("no_such_field"), "{name}: {error}");
        for broken in [json!(null), json!([]), json!("x"), json!(1)] {
            assert!(compile(&broken).is_err(), "{name} takes {broken}");
        }
    }
}

#[tokio::test]
async fn what_meta_says_holds_for_each_plugin() {
    let owner = Id::parse("r1").unwrap();
    for row in ALL {
        let (name, kept) = (row.name, Kept::default());
        let example: Value = serde_json::from_str(row.example).unwrap();
        let link = |meta: Value| {
            let hooks = (row.compile)(&example, &build(&owner, name, None, &kept)).unwrap();
            let meta = serde_json::from_value(meta).unwrap();
            Link::new(name, row.priority, Some(&meta), hooks).unwrap()
        };
        let off = link(json!({"disable": true}));
        assert!(off.is_disabled() && Chain::new([off]).plugins().is_empty(), "{name}");
        let last = Link::new("other", row.priority - 1, None, Hooks::none()).unwrap();
        let sorted = Chain::new([link(json!({"priority": row.priority - 2})), last]);
        assert_eq!(sorted.plugins(), ["other", name]);

        let never = Chain::new([link(json!({"filter": [["arg_never", "==", "1"]]}))]);
        let mut exchange = exchange("OPTIONS", "/?a=1", "h");
        exchange.request.append("Origin", b"http://a");
        let before = format!("{:?}", exchange.request);
        for flow in [
            never.rewrite(&mut exchange).await,
            never.access(&mut exchange).await,
            never.forward(&mut exchange).await,
        ] {
            assert!(matches!(flow, Ok(Flow::Next)), "{name}");
        }
        exchange.response.set_status(200);
        never.response_head(&mut exchange).unwrap();
        never.log(&exchange);
        assert_eq!(before, format!("{:?}", exchange.request), "{name}");
        assert_eq!(exchange.response.fields().count(), 0, "{name}");
        assert!(!exchange.rewritten.is_any() && exchange.consumer.is_none(), "{name}");

        let dressed = Chain::new([link(json!({"error_response": {"told": "by us"}}))]);
        let mut exchange = self::exchange("GET", "/", "h");
        let flow = match dressed.rewrite(&mut exchange).await {
            Ok(Flow::Next) => dressed.access(&mut exchange).await,
            flow => flow,
        };
        if let Ok(Flow::Reply(reply)) = flow
            && reply.status >= 400
        {
            assert_eq!(&reply.body[..], b"{\"told\":\"by us\"}\n", "{name}");
        }
    }
}

#[test]
fn names_are_file_names() {
    let names: BTreeSet<&str> = ALL.iter().map(|row| row.name).collect();
    assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
}

#[test]
fn the_reference_tells_of_each_plugin_and_each_field() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/plugin-reference.md");
    let page = std::fs::read_to_string(page).unwrap();
    for entry in ALL {
        let title = format!("\n## {}\n", entry.name);
        let (_, section) = page.split_once(&title).unwrap_or_else(|| panic!("no{title}"));
        let section = section.split("\n## ").next().unwrap();
        assert!(section.contains(&format!("**Priority** {}.", entry.priority)), "{}", entry.name);
        let parts = [Some(entry.schema), entry.credential, entry.metadata];
        for schema in parts.into_iter().flatten() {
            // A plugin on a route may have no field at all.
            let schema = schema().to_value();
            for (field, _) in schema["properties"].as_object().into_iter().flatten() {
                let row = format!("| `{field}` |");
                assert!(section.contains(&row), "{}: no row for {field}", entry.name);
            }
        }
        assert!(section.contains("```json\n"), "{}: no example", entry.name);
        for example in section.split("```json\n").skip(1) {
            let example = example.split("```").next().unwrap();
            let example: Value = serde_json::from_str(example).unwrap();
            let is_consumer = example.get("username").is_some();
            if let Some(config) = example["plugins"].get(entry.name).filter(|_| !is_consumer) {
                let owner = Id::parse("r1").unwrap();
                let kept = Kept::default();
                if let Err(why) = (entry.compile)(config, &build(&owner, entry.name, None, &kept)) {
                    panic!("{}: {config}: {why}", entry.name);
                }
            }
        }
    }
}
