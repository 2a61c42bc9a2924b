//! Chains that are judged: the rules with their numbers.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, OtherNameValue, SanType,
};

use crate::rt::crypto::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::*;
use crate::identity::forge::{Forge, authority, dns, leaf, uri};
use crate::identity::{Peer, Trust, TrustBundles};
use crate::rt::unix_seconds;

const ID: &str = "spiffe://a.test/web";

fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds.try_into().unwrap()))
}

fn judge(
    bundles: &TrustBundles,
    chain: &[CertificateDer<'_>],
    purpose: Purpose,
    now: i64,
) -> Result<Peer, Flaw> {
    let mut presented = Presented::default();
    Trust::from(bundles.clone()).verifier().verify(
        &chain[0],
        &chain[1..],
        purpose,
        at(now),
        &mut presented,
    )
}

/// The verdict's code over a chain, as client, now: `ok` or the flaw's code.
fn code(bundles: &TrustBundles, chain: &[CertificateDer<'_>]) -> &'static str {
    match judge(bundles, chain, Purpose::Client, unix_seconds()) {
        Ok(_) => "ok",
        Err(flaw) => flaw.code(),
    }
}

#[test]
fn each_rule_about_the_leaf_refuses_by_its_own_name() {
    let a = Forge::new("a.test");
    type Change = fn(&mut CertificateParams);
    let rules: &[(&str, Change, &str)] = &[
        ("the good one", |_| {}, "ok"),
        ("22 no URI name", |p| p.subject_alt_names.clear(), "no_uri_name"),
        ("22 DNS name only", |p| p.subject_alt_names = vec![dns("web.a.test")], "no_uri_name"),
        (
            "73 common name only",
            |p| {
                p.subject_alt_names.clear();
                p.distinguished_name.push(DnType::CommonName, ID);
            },
            "no_uri_name",
        ),
        ("74 as a DNS name", |p| p.subject_alt_names = vec![dns(ID)], "no_uri_name"),
        (
            "74 as an other name",
            |p| {
                let value = OtherNameValue::Utf8String(ID.into());
                p.subject_alt_names = vec![SanType::OtherName((vec![1, 2, 3], value))];
            },
            "no_uri_name",
        ),
        (
            "23 two SPIFFE IDs",
            |p| p.subject_alt_names.push(uri("spiffe://a.test/other")),
            "several_uri_names",
        ),
        ("23 equal twice", |p| p.subject_alt_names.push(uri(ID)), "several_uri_names"),
        (
            "23 a SPIFFE ID and another URI",
            |p| p.subject_alt_names.push(uri("https://a.test/web")),
            "several_uri_names",
        ),
        ("24 https", |p| p.subject_alt_names = vec![uri("https://a.test/web")], "not_a_spiffe_id"),
        (
            "75 trailing newline",
            |p| p.subject_alt_names = vec![uri("spiffe://a.test/web\n")],
            "not_a_spiffe_id",
        ),
        (
            "75 NUL",
            |p| p.subject_alt_names = vec![uri("spiffe://a.test/web\0.evil")],
            "not_a_spiffe_id",
        ),
        (
            "7 upper case",
            |p| p.subject_alt_names = vec![uri("spiffe://A.test/web")],
            "not_a_spiffe_id",
        ),
        ("25 DNS beside it", |p| p.subject_alt_names.push(dns("web.a.test")), "ok"),
        (
            "26 no path",
            |p| p.subject_alt_names = vec![uri("spiffe://a.test")],
            "spiffe_id_without_path",
        ),
        (
            "26 a slash for a path",
            |p| p.subject_alt_names = vec![uri("spiffe://a.test/")],
            "not_a_spiffe_id",
        ),
        ("27 cA absent", |p| p.is_ca = IsCa::NoCa, "ok"),
        (
            "27 cA true",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            "authority_as_leaf",
        ),
        (
            "28 keyCertSign",
            |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
            "leaf_signs_certificates",
        ),
        ("29 cRLSign", |p| p.key_usages.push(KeyUsagePurpose::CrlSign), "leaf_signs_revocations"),
        ("31 no key usage", |p| p.key_usages.clear(), "no_key_usage"),
        (
            "32 no digitalSignature",
            |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
            "no_digital_signature",
        ),
        (
            "34 server only, as client",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            "wrong_extended_key_usage",
        ),
        (
            "34 anyExtendedKeyUsage is none of the two",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any],
            "wrong_extended_key_usage",
        ),
        ("35 no extended key usage", |p| p.extended_key_usages.clear(), "ok"),
        ("37 expired", |p| p.not_after = p.not_before + time::Duration::seconds(1), "expired"),
        (
            "38 not yet valid",
            |p| p.not_before = p.not_after - time::Duration::seconds(60),
            "not_yet_valid",
        ),
        (
            "47 unknown critical extension",
            |p| {
                let mut unknown =
                    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
                unknown.set_criticality(true);
                p.custom_extensions.push(unknown);
            },
            "critical_extension",
        ),
        (
            "47 unknown extension that is not critical",
            |p| {
                let oid = [1, 3, 6, 1, 4, 1, 99999, 1];
                p.custom_extensions.push(CustomExtension::from_oid_content(&oid, vec![5, 0]));
            },
            "ok",
        ),
        (
            "23 a second extension of names",
            |p| {
                let second = vec![0x30, 0x03, 0x86, 0x01, b'x'];
                let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], second);
                p.custom_extensions.push(names);
            },
            "malformed_certificate",
        ),
        (
            "49 many names",
            |p| p.subject_alt_names.extend((0..40).map(|n| dns(&format!("n{n}.a.test")))),
            "too_many_names",
        ),
        (
            "49 a large certificate",
            |p| {
                let oid = [1, 3, 6, 1, 4, 1, 99999, 2];
                let filler = CustomExtension::from_oid_content(&oid, vec![0; 17_000]);
                p.custom_extensions.push(filler);
            },
            "certificate_too_large",
        ),
    ];
    for (rule, change, expected) in rules {
        let mut params = leaf(ID);
        change(&mut params);
        assert_eq!(code(&a.bundles(), &a.sign(&params).chain), *expected, "{rule}");
    }
}

#[test]
fn rule_34_asks_for_the_direction_of_the_connection() {
    let a = Forge::new("a.test");
    let mut params = leaf(ID);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let chain = a.sign(&params).chain;
    assert!(judge(&a.bundles(), &chain, Purpose::Server, unix_seconds()).is_ok());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let chain = a.sign(&params).chain;
    let refused = judge(&a.bundles(), &chain, Purpose::Server, unix_seconds()).unwrap_err();
    assert_eq!(refused, Flaw::Purpose { needed: Purpose::Server });
}

#[test]
fn rule_37_and_38_are_exact_to_the_second() {
    let a = Forge::new("a.test");
    let chain = a.sign(&leaf(ID)).chain;
    let facts = Leaf::read(&chain[0], &mut Presented::default()).unwrap();
    let code = |now| match judge(&a.bundles(), &chain, Purpose::Client, now) {
        Ok(_) => "ok",
        Err(flaw) => flaw.code(),
    };
    assert_eq!(code(facts.not_before - 1), "not_yet_valid");
    assert_eq!(code(facts.not_before), "ok");
    assert_eq!(code(facts.not_after), "ok");
    assert_eq!(code(facts.not_after + 1), "expired");
}

#[test]
fn rules_36_to_48_are_about_the_chain() {
    let a = Forge::new("a.test");
    let signed = a.sign(&leaf(ID)).chain;
    let bundles = a.bundles();

    assert_eq!(code(&bundles, &signed[..1]), "unknown_authority", "42 the intermediate is missing");
    let with_root = [signed[0].clone(), signed[1].clone(), a.root.clone()];
    assert_eq!(code(&bundles, &with_root), "ok", "43 the presented root is ignored");
    assert_eq!(code(&bundles, &a.sign_by_root(&leaf(ID)).chain), "ok", "36 signed by the root");
    let own = crate::identity::TrustBundle { roots: vec![], ..a.bundle() };
    let none: TrustBundles = [own].into_iter().collect();
    assert_eq!(code(&none, &with_root), "unknown_trust_domain", "42, 57 a bundle without roots");

    // An impostor with the intermediate's name and another key.
    let impostor = Forge::new("a.test");
    let forged = [impostor.sign(&leaf(ID)).chain[0].clone(), signed[1].clone()];
    assert_eq!(code(&bundles, &forged), "bad_signature", "36 a signature");

    let many = vec![signed[1].clone(); 6];
    let long: Vec<_> = std::iter::once(signed[0].clone()).chain(many).collect();
    assert_eq!(code(&bundles, &long), "too_many_certificates", "49");

    type Change = fn(&mut CertificateParams);
    let no_change: Change = |_| {};
    let uri_constraint: Change = |p| {
        // permittedSubtrees with one URI: host a.test.
        let der = b"\x30\x0c\xa0\x0a\x30\x08\x86\x06a.test".to_vec();
        let mut constraint = CustomExtension::from_oid_content(&[2, 5, 29, 30], der);
        constraint.set_criticality(true);
        p.custom_extensions.push(constraint);
    };
    let rules: &[(&str, Change, Change, &str)] = &[
        (
            "39 expired intermediate",
            no_change,
            |p| p.not_after = p.not_before + time::Duration::seconds(1),
            "authority_expired",
        ),
        (
            "39 intermediate of the future",
            no_change,
            |p| p.not_before = p.not_after - time::Duration::seconds(1),
            "authority_not_yet_valid",
        ),
        (
            "39 expired root",
            |p| p.not_after = p.not_before + time::Duration::seconds(1),
            no_change,
            "authority_expired",
        ),
        (
            "36 pathLen of the root",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            no_change,
            "path_length",
        ),
        ("36 a leaf signs", no_change, |p| p.is_ca = IsCa::ExplicitNoCa, "issuer_not_authority"),
        (
            "36 an authority without keyCertSign",
            no_change,
            |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature],
            "issuer_not_authority",
        ),
        (
            "44 a path in an authority's ID",
            no_change,
            |p| p.subject_alt_names = vec![uri("spiffe://a.test/ca")],
            "authority_id_with_path",
        ),
        (
            "45 an authority of another domain",
            no_change,
            |p| p.subject_alt_names = vec![uri("spiffe://b.test")],
            "authority_of_other_domain",
        ),
        ("45 an authority without ID", no_change, |p| p.subject_alt_names.clear(), "ok"),
        ("46 URI constraint on the root", uri_constraint, no_change, "name_constraint"),
        ("46 URI constraint on the intermediate", no_change, uri_constraint, "name_constraint"),
        (
            "47 critical extension of an intermediate",
            no_change,
            |p| {
                let oid = [1, 3, 6, 1, 4, 1, 99999, 1];
                let mut unknown = CustomExtension::from_oid_content(&oid, vec![5, 0]);
                unknown.set_criticality(true);
                p.custom_extensions.push(unknown);
            },
            "critical_extension",
        ),
    ];
    for (rule, root, intermediate, expected) in rules {
        let shaped = Forge::shaped("a.test", root, intermediate);
        let chain = shaped.sign(&leaf(ID)).chain;
        assert_eq!(code(&shaped.bundles(), &chain), *expected, "{rule}");
    }
}

#[test]
fn rules_51_to_54_a_bundle_speaks_for_its_own_domain_only() {
    let (a, b) = (Forge::new("a.test"), Forge::new("b.test"));
    let both: TrustBundles = [a.bundle(), b.bundle()].into_iter().collect();
    for purpose in [Purpose::Client, Purpose::Server] {
        let verdict = |bundles: &TrustBundles, chain: &[CertificateDer<'_>]| match judge(
            bundles,
            chain,
            purpose,
            unix_seconds(),
        ) {
            Ok(_) => "ok",
            Err(flaw) => flaw.code(),
        };
        assert_eq!(verdict(&both, &a.sign(&leaf(ID)).chain), "ok");
        assert_eq!(verdict(&both, &b.sign(&leaf("spiffe://b.test/web")).chain), "ok");
        assert_eq!(verdict(&b.bundles(), &a.sign(&leaf(ID)).chain), "unknown_trust_domain", "52");
        let mut crossed = b.sign(&leaf(ID)).chain;
        // Not even when the authority pretends to no trust domain.
        assert_eq!(verdict(&both, &crossed), "unknown_authority", "53 b signs for a");
        crossed[1] = a.intermediate.clone();
        assert_eq!(verdict(&both, &crossed), "unknown_authority", "53 with a's intermediate");
        let foreign = a.sign(&leaf("spiffe://b.test/web")).chain;
        assert_eq!(verdict(&both, &foreign), "unknown_authority", "53 a signs for b");
    }
}

#[test]
fn a_peer_bears_the_facts_of_its_leaf_and_the_first_end_of_its_path() {
    let soon = time::OffsetDateTime::now_utc() + time::Duration::minutes(5);
    let a = Forge::shaped("a.test", |_| {}, |p| p.not_after = soon);
    let mut params = leaf(ID);
    params.serial_number = Some(vec![0x00, 0xfe, 0x01].into());
    let chain = a.sign(&params).chain;
    let peer = judge(&a.bundles(), &chain, Purpose::Client, unix_seconds()).unwrap();
    assert_eq!((peer.id.as_str(), peer.serial.as_str()), (ID, "fe01"));
    assert_eq!(peer.not_after, soon.unix_timestamp());
    assert_eq!(peer.sha256, hex::encode(digest(&SHA256, &chain[0])));
    assert_eq!(peer.spki_sha256.len(), 64);
}

#[test]
fn a_refused_leaf_leaves_what_it_showed_and_nothing_that_could_forge_a_log_line() {
    let a = Forge::new("a.test");
    let chain = a.sign(&leaf("spiffe://b.test/x\n{\"forged\":1}")).chain;
    let mut presented = Presented::default();
    let verifier = ChainVerifier::new(&a.bundles().into());
    let now = at(unix_seconds());
    let refused = verifier.verify(&chain[0], &chain[1..], Purpose::Client, now, &mut presented);
    assert_eq!(refused.unwrap_err().code(), "not_a_spiffe_id");
    assert_eq!(presented.id.unwrap(), r#"spiffe://b.test/x\n{\"forged\":1}"#);
    assert!(presented.serial.is_some() && presented.sha256.is_some());
}

#[test]
fn bytes_that_are_no_certificate_are_refused_without_panic() {
    let a = Forge::new("a.test");
    let good = a.sign(&leaf(ID)).chain;
    let mut seed = fastrand::Rng::with_seed(7);
    for _ in 0..3000 {
        let mut der = good[0].to_vec();
        for _ in 0..seed.usize(1..4) {
            let at = seed.usize(..der.len());
            der[at] = seed.u8(..);
        }
        der.truncate(seed.usize(1..=der.len()));
        let changed = der != good[0].as_ref();
        let chain = [CertificateDer::from(der), good[1].clone()];
        let accepted = code(&a.bundles(), &chain) == "ok";
        assert!(!(accepted && changed), "a changed certificate was accepted");
    }
    let mut trailing = good[0].to_vec();
    trailing.push(0);
    let chain = [CertificateDer::from(trailing), good[1].clone()];
    assert_eq!(code(&a.bundles(), &chain), "malformed_certificate");
}

#[test]
fn an_authority_that_presents_itself_is_refused() {
    let a = Forge::new("a.test");
    let chain = [a.intermediate.clone()];
    assert_eq!(code(&a.bundles(), &chain), "authority_as_leaf", "30");
    let mut ca = authority("a workload that is an authority", "a.test");
    ca.subject_alt_names = vec![uri(ID)];
    assert_eq!(code(&a.bundles(), &a.sign(&ca).chain), "authority_as_leaf", "30");
}
