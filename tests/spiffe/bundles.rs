//! Rules 51 to 75: whose authorities count, and how they are written.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};
use wardgate::conformance::Domain;
use wardgate::identity::{
    BundleDocument, BundleMap, Error, Purpose, Succession, TrustBundle, TrustBundles, TrustDomain,
};

use crate::{Judge, bundles, domain};

fn parse(document: &Value) -> Result<BundleDocument, Error> {
    BundleDocument::parse("a.test".parse().unwrap(), document.to_string().as_bytes())
}

fn x5c(domain: &Domain) -> String {
    STANDARD.encode(domain.root().certificate())
}

#[test]
fn a_bundle_speaks_for_its_own_domain_only_in_both_directions() {
    let (a, b) = (domain("a.test"), domain("b.test"));
    let both = Judge::of([a.bundle(), b.bundle()]);
    let (of_a, of_b) = (a.leaf("/web").unwrap(), b.leaf("/web").unwrap());
    let with_a = [a.intermediate().certificate().clone()];
    let rules = [
        ("51 a's own", a.sign(&of_a).unwrap(), "ok"),
        ("51 b's own", b.sign(&of_b).unwrap(), "ok"),
        ("53 b signs for a", b.sign(&of_a).unwrap(), "unknown_authority"),
        ("53 a signs for b", a.sign(&of_b).unwrap(), "unknown_authority"),
        (
            "53 b signs for a, a's intermediate beside",
            b.sign(&of_a).unwrap().followed_by(with_a),
            "unknown_authority",
        ),
    ];
    for (rule, credential, expected) in rules {
        for purpose in [Purpose::Client, Purpose::Server] {
            let code = both.code_as(&credential.chain, purpose);
            assert_eq!(code, expected, "{rule}, {purpose}");
        }
    }
    let chain = a.sign(&of_a).unwrap().chain;
    assert_eq!(Judge::of([b.bundle()]).code(&chain), "unknown_trust_domain", "52 no bundle");
    assert_eq!(Judge::of([]).code(&chain), "unknown_trust_domain", "52 no bundles at all");
}

#[test]
fn names_that_look_like_addresses_or_hosts_are_names() {
    for name in ["192.0.2.1", "localhost", "127.0.0.1", "a_b", "-", "xn--bcher-kva.example", "a."] {
        let domain = domain(name);
        let chain = domain.sign(&domain.leaf("/web").unwrap()).unwrap().chain;
        assert_eq!(Judge::of([domain.bundle()]).code(&chain), "ok", "9, 10 {name}");
    }
    // No two spellings are one name.
    let long = domain("a.test");
    let chain = long.sign(&long.leaf("/web").unwrap()).unwrap().chain;
    let dotted = TrustBundle::new("a.test.".parse().unwrap(), long.bundle().roots);
    assert_eq!(Judge::of([dotted]).code(&chain), "unknown_trust_domain", "10 a dot at the end");
    let widest = domain(&"d".repeat(255));
    let chain = widest.sign(&widest.leaf("/web").unwrap()).unwrap().chain;
    assert_eq!(Judge::of([widest.bundle()]).code(&chain), "ok", "19 a name of 255 bytes");
}

/// A few authorities, made once: what is random is who holds which.
static POOL: LazyLock<Vec<Domain>> =
    LazyLock::new(|| (0..4).map(|n| domain(&format!("pool{n}.test"))).collect());
const NAMES: [&str; 4] = ["a.test", "b.test", "c.test", "pool0.test"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Rule 54: whatever the bundles are, an authority vouches for a trust domain only when it is in that domain's bundle.
    #[test]
    fn random_bundles_are_never_merged(
        // For each name: no bundle, or the authorities that are in it, as bits.
        held in proptest::collection::vec(proptest::option::of(0_u8..16), NAMES.len()),
        as_server in any::<bool>(),
        as_map in any::<bool>(),
    ) {
        let has = |name: usize, authority: usize| {
            held[name].is_some_and(|bits| bits & (1 << authority) != 0)
        };
        let all = NAMES.iter().enumerate().filter(|(at, _)| held[*at].is_some()).map(|(at, name)| {
            let holds = POOL.iter().enumerate().filter(|(authority, _)| has(at, *authority));
            let roots = holds.map(|(_, domain)| domain.root().certificate().clone());
            TrustBundle::new(name.parse().unwrap(), roots.collect())
        });
        let mut held: TrustBundles = all.collect();
        if as_map {
            // The same by way of a document.
            let documents = held.iter().map(|bundle| BundleDocument {
                bundle: bundle.clone(),
                sequence: Some(1),
                refresh_after: std::time::Duration::from_secs(300),
            });
            let text = documents.collect::<BundleMap>().to_json().unwrap().to_string();
            held = BundleMap::parse(text.as_bytes()).unwrap().bundles();
        }
        let judge = Judge::of(held.iter().cloned());
        let purpose = if as_server { Purpose::Server } else { Purpose::Client };
        for (at, name) in NAMES.iter().enumerate() {
            let id = format!("spiffe://{name}/web");
            for (authority, domain) in POOL.iter().enumerate() {
                // By the root: an intermediate bears its own domain's ID, which would refuse by another rule.
                let chain = domain.root().sign(&wardgate::conformance::leaf(&id).unwrap()).unwrap();
                let accepted = judge.code_as(&chain.chain, purpose) == "ok";
                prop_assert_eq!(accepted, has(at, authority), "54 {} by {}", name, domain.name());
            }
        }
    }
}

#[test]
fn a_key_in_two_bundles_is_noticed() {
    let (a, b) = (domain("a.test"), domain("b.test"));
    let mut all = bundles([a.bundle(), b.bundle()]);
    assert!(all.shared_keys().is_empty(), "55");
    all.insert(TrustBundle::new(b.name().clone(), a.bundle().roots));
    assert_eq!(
        all.shared_keys(),
        [(a.name().clone(), b.name().clone())],
        "55 one key, two domains"
    );
}

#[test]
fn which_entries_of_a_document_count() {
    let (one, other) = (x5c(&domain("a.test")), x5c(&domain("b.test")));
    let key = json!({ "kty": "EC", "use": "x509-svid", "x5c": [one] });
    let with = |name: &str, value: Value| {
        let mut changed = key.clone();
        changed[name] = value;
        changed
    };
    let without = |name: &str| {
        let mut changed = key.clone();
        changed.as_object_mut().unwrap().remove(name);
        changed
    };
    for (rule, entry, counted) in [
        ("63 kid is not required", key.clone(), 1),
        ("63 kid does no harm", with("kid", "x".into()), 1),
        ("59 unknown kty", with("kty", "QQ".into()), 0),
        ("59 missing kty", without("kty"), 0),
        ("60 missing use", without("use"), 0),
        ("60 null use", with("use", Value::Null), 0),
        ("60 unknown use", with("use", "sig".into()), 0),
        ("60 use of another kind of SVID", with("use", "wit-svid".into()), 0),
        ("61 use is compared with case", with("use", "X509-SVID".into()), 0),
        ("62 x5c missing", without("x5c"), 0),
        ("62 x5c empty", with("x5c", json!([])), 0),
        ("62 x5c no list", with("x5c", one.clone().into()), 0),
        ("62 only the first of x5c", with("x5c", json!([one, other])), 1),
        ("65 unknown members", with("colour", "green".into()), 1),
    ] {
        let parsed = parse(&json!({ "keys": [entry], "extra": { "x": [1] } })).unwrap();
        assert_eq!(parsed.bundle.roots.len(), counted, "{rule}");
    }
    let jwt = json!({ "kty": "EC", "use": "jwt-svid", "kid": "k", "x5c": [one] });
    let parsed = parse(&json!({ "keys": [jwt] })).unwrap();
    assert!(parsed.bundle.roots.is_empty(), "64 a JWT key never vouches for certificates");
}

#[test]
fn a_document_without_keys_is_none_and_one_with_no_key_trusts_nobody() {
    let a = domain("a.test");
    for (rule, document) in [
        ("56 keys missing", json!({})),
        ("56 keys no list", json!({ "keys": 1 })),
        ("56 keys null", json!({ "keys": null })),
        ("56 no object", json!([1])),
    ] {
        assert!(parse(&document).is_err(), "{rule}");
    }
    assert!(BundleDocument::parse("a.test".parse().unwrap(), b"\xff").is_err(), "56 no JSON");
    let chain = a.sign(&a.leaf("/web").unwrap()).unwrap().chain;
    let unusable = json!({ "keys": [{ "kty": "QQ", "use": "x509-svid", "x5c": [x5c(&a)] }] });
    for (rule, document) in [("57 no keys", json!({ "keys": [] })), ("58 no usable key", unusable)]
    {
        let bundle = parse(&document).unwrap().bundle;
        assert_eq!(Judge::of([bundle]).code(&chain), "unknown_trust_domain", "{rule}");
    }
    let junk = json!({ "keys": [{ "kty": "EC", "use": "x509-svid", "x5c": ["AAAA"] }] });
    assert!(parse(&junk).is_err(), "62 an authority that is no certificate");
    let twice = br#"{"keys": [], "keys": []}"#;
    let error = BundleDocument::parse("a.test".parse().unwrap(), twice).unwrap_err().to_string();
    assert!(error.contains("\"keys\" is there twice"), "56 {error}");
}

#[test]
fn the_sequence_has_64_bits_and_the_hint_its_bounds() {
    let sequence = |value: Value| parse(&json!({ "keys": [], "spiffe_sequence": value }));
    assert_eq!(sequence(json!(u64::MAX)).unwrap().sequence, Some(u64::MAX), "66");
    for wrong in [json!(-1), json!(1.5), json!("1"), json!(1e30)] {
        assert!(sequence(wrong.clone()).is_err(), "66 {wrong}");
    }
    let hint = |value: Value| {
        let document = json!({ "keys": [], "spiffe_refresh_hint": value });
        parse(&document).map(|document| document.refresh_after.as_secs())
    };
    assert_eq!(parse(&json!({ "keys": [] })).unwrap().refresh_after.as_secs(), 300, "69 default");
    for (given, taken) in [(60, 60), (0, 10), (9, 10), (86_400, 86_400), (1_000_000, 86_400)] {
        assert_eq!(hint(json!(given)).unwrap(), taken, "69, 70");
    }
    assert!(hint(json!("soon")).is_err(), "69");
}

#[test]
fn an_older_document_takes_the_place_of_none() {
    let (a, b) = (domain("a.test"), domain("b.test"));
    let key = |domain: &Domain| json!({ "kty": "EC", "use": "x509-svid", "x5c": [x5c(domain)] });
    let document = |keys: &[&Domain], sequence: Option<u64>| {
        let keys: Vec<Value> = keys.iter().map(|domain| key(domain)).collect();
        let mut document = json!({ "keys": keys });
        if let Some(sequence) = sequence {
            document["spiffe_sequence"] = sequence.into();
        }
        parse(&document).unwrap()
    };
    let stored = document(&[&a], Some(7));
    let verdict = |next: &BundleDocument| match next.succeeds(&stored) {
        Ok(Succession::Same) => "same",
        Ok(Succession::Newer) => "newer",
        Err(Error::SequenceRollback { .. }) => "rollback",
        Err(Error::SequenceReused { .. }) => "reused",
        Err(other) => panic!("{other}"),
    };
    for (rule, next, expected) in [
        ("67 a higher sequence", document(&[&b], Some(8)), "newer"),
        ("67 a higher sequence of the same", document(&[&a], Some(8)), "same"),
        ("67 a lower sequence", document(&[&b], Some(6)), "rollback"),
        ("67 a lower sequence of the same", document(&[&a], Some(6)), "rollback"),
        ("67 the sequence is gone", document(&[&b], None), "rollback"),
        ("68 the same again", document(&[&a], Some(7)), "same"),
        ("68 the same sequence, other content", document(&[&b], Some(7)), "reused"),
        ("68 the same sequence, more content", document(&[&a, &b], Some(7)), "reused"),
    ] {
        assert_eq!(verdict(&next), expected, "{rule}");
    }
    let error = document(&[&b], Some(6)).succeeds(&stored).unwrap_err().to_string();
    assert!(error.contains("6, older than 7"), "67 {error}");
    let (one, other) = (document(&[&a, &b], Some(1)), document(&[&b, &a], Some(1)));
    assert_eq!(one.succeeds(&other).unwrap(), Succession::Same, "68 order is no content");
    let without = document(&[&a], None);
    assert_eq!(
        document(&[&b], None).succeeds(&without).unwrap(),
        Succession::Newer,
        "67 never any"
    );
    assert_eq!(document(&[&b], Some(1)).succeeds(&without).unwrap(), Succession::Newer, "67 new");
}

#[test]
fn a_bundle_map_is_read_as_a_whole_or_not_at_all() {
    let (a, b) = (domain("a.test"), domain("b.test"));
    let of = |domain: &Domain, hint: u64| {
        json!({ "keys": [{ "kty": "EC", "use": "x509-svid", "x5c": [x5c(domain)] }],
            "spiffe_refresh_hint": hint })
    };
    let map = json!({ "trust_domains": { "b.test": of(&b, 60), "a.test": of(&a, 9000) }, "x": 1 });
    let read = |text: &str| BundleMap::parse(text.as_bytes());
    let found = read(&map.to_string()).unwrap();
    assert_eq!(found.bundles(), bundles([a.bundle(), b.bundle()]), "71");
    let names: Vec<&str> = found.documents().iter().map(|one| one.bundle.domain.as_str()).collect();
    assert_eq!(names, ["a.test", "b.test"], "71");
    assert_eq!(BundleMap::parse(found.to_json().unwrap().to_string().as_bytes()).unwrap(), found);
    // The hints stay with the bundles: the map has none that could follow from them.
    let hints: Vec<u64> = found.documents().iter().map(|one| one.refresh_after.as_secs()).collect();
    assert_eq!(hints, [9000, 60], "73");
    assert_eq!(found.to_json().unwrap().as_object().unwrap().len(), 1, "73 trust_domains alone");

    let twice =
        format!(r#"{{"trust_domains": {{"a.test": {}, "a.test": {}}}}}"#, of(&a, 60), of(&b, 60));
    let error = read(&twice).unwrap_err().to_string();
    assert!(error.contains("\"a.test\" is there twice"), "71 {error}");
    let escaped = twice.replacen("\"a.test\"", "\"\\u0061.test\"", 1);
    assert!(read(&escaped).is_err(), "71 the same name in another spelling");

    for (rule, text) in [
        ("72 one bundle of two is damaged", {
            let mut damaged = map.clone();
            damaged["trust_domains"]["b.test"] = json!({ "keys": 1 });
            damaged.to_string()
        }),
        ("72 a name that is none", {
            let mut damaged = map.clone();
            damaged["trust_domains"]["B.test"] = of(&b, 60);
            damaged.to_string()
        }),
        ("71 no trust_domains", "{}".to_owned()),
        ("71 trust_domains no object", r#"{"trust_domains": []}"#.to_owned()),
        ("72 bytes behind", format!("{map}x")),
    ] {
        assert!(read(&text).is_err(), "{rule}");
    }
    let error = read(&json!({ "trust_domains": { "a.test": 1 } }).to_string()).unwrap_err();
    assert!(error.report().contains("trust domain a.test in the map"), "72 {}", error.report());
    assert!(read(r#"{"trust_domains": {}}"#).unwrap().bundles().is_empty(), "71 nobody");
}

#[test]
fn a_root_that_is_gone_vouches_for_nobody_from_then_on() {
    let (old, new) = (domain("a.test"), domain("a.test"));
    let roots = |of: &[&Domain]| -> TrustBundle {
        let roots = of.iter().map(|domain| domain.root().certificate().clone());
        TrustBundle::new("a.test".parse::<TrustDomain>().unwrap(), roots.collect())
    };
    let chain = old.sign(&old.leaf("/web").unwrap()).unwrap().chain;
    let rotating = Judge::of([roots(&[&old, &new])]);
    let peer = rotating.judge(&chain, Purpose::Client).unwrap();
    let rotated = Judge::of([roots(&[&new])]);
    assert_eq!(rotated.code(&chain), "bad_signature", "74 a new handshake");
    let now = rustls_pki_types::UnixTime::now();
    let verdict = |judge: &Judge| judge.trust.verifier().again(&peer, now).map_err(|f| f.code());
    assert_eq!(verdict(&rotating), Ok(()), "75 a live connection while the root is there");
    assert_eq!(verdict(&rotated), Err("bad_signature"), "75 and when it is gone");
}
