//! Rules 27 to 50 where the runner's certificates do not reach: moments, strict mode, odd roots, facts of a peer.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};
use wardgate::conformance::{Domain, Signer, authority, extension, names, uri};
use wardgate::identity::{Flaw, Purpose, Rules, TrustBundle};

use crate::{Judge, domain};

const ID: &str = "spiffe://a.test/web";

type Change = fn(&mut CertificateParams);

fn shaped(root: Change, intermediate: Change) -> Domain {
    Domain::shaped("a.test".parse().unwrap(), root, intermediate).unwrap()
}

fn signed(domain: &Domain, change: Change) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    let mut params = domain.leaf("/web").unwrap();
    change(&mut params);
    domain.sign(&params).unwrap().chain
}

/// The extension of key usage as rcgen does not write it: digitalSignature, not critical.
fn lax_key_usage(params: &mut CertificateParams) {
    params.key_usages.clear();
    params.custom_extensions.push(extension(&[2, 5, 29, 15], false, vec![3, 2, 7, 0x80]));
}

fn lax_names(params: &mut CertificateParams) {
    params.subject_alt_names.clear();
    params.custom_extensions.push(names(false, &[(6, ID.as_bytes())]));
}

#[test]
fn strict_mode_asks_of_peers_what_the_specification_asks_of_issuers() {
    let a = domain("a.test");
    let strict = Rules { strict: true, ..Rules::default() };
    let named_subject: Change = |p| {
        lax_names(p);
        p.distinguished_name.push(DnType::CommonName, "web");
    };
    let rules: &[(&str, Change, &str)] = &[
        ("33 a critical key usage", |_| {}, "ok"),
        ("33 a key usage that is not critical", lax_key_usage, "key_usage_not_critical"),
        ("41 critical names beside an empty subject", |_| {}, "ok"),
        ("41 names not critical beside an empty subject", lax_names, "names_not_critical"),
        ("41 names not critical beside a subject", named_subject, "ok"),
    ];
    for (rule, change, expected) in rules {
        let chain = signed(&a, *change);
        assert_eq!(Judge::ruled([a.bundle()], strict).code(&chain), *expected, "{rule}, strict");
        assert_eq!(Judge::of([a.bundle()]).code(&chain), "ok", "{rule}, by default");
    }
}

#[test]
fn validity_is_exact_to_the_second_and_leeway_reaches_backwards_only() {
    let a = domain("a.test");
    // A leaf within the authorities' time on both sides.
    let chain = signed(&a, |p| {
        p.not_before = OffsetDateTime::now_utc() + Duration::minutes(10);
        p.not_after = p.not_before + Duration::minutes(10);
    });
    let (from, until) = validity(&chain[0]);
    let code = |leeway: u8, now: i64| {
        let rules = Rules { not_before_leeway: leeway, ..Rules::default() };
        Judge::ruled([a.bundle()], rules).at(now).code(&chain)
    };
    for (rule, leeway, now, expected) in [
        ("38 a second too early", 0, from - 1, "not_yet_valid"),
        ("38 the first second", 0, from, "ok"),
        ("37 the last second", 0, until, "ok"),
        ("37 a second too late", 0, until + 1, "expired"),
        ("40 no leeway by default", 0, from - 30, "not_yet_valid"),
        ("40 within the leeway", 30, from - 30, "ok"),
        ("40 a second before the leeway", 30, from - 31, "not_yet_valid"),
        ("40 more than 60 counts as 60", 255, from - 60, "ok"),
        ("40 more than 60 counts as 60", 255, from - 61, "not_yet_valid"),
        ("40 none after notAfter", 60, until + 1, "expired"),
    ] {
        assert_eq!(code(leeway, now), expected, "{rule}");
    }
}

#[test]
fn leeway_is_for_authorities_as_well_and_never_lengthens_their_time() {
    let soon: Change = |p| p.not_before = OffsetDateTime::now_utc() + Duration::seconds(30);
    let lenient = Rules { not_before_leeway: 60, ..Rules::default() };
    for (what, young) in [("intermediate", shaped(|_| {}, soon)), ("root", shaped(soon, |_| {}))] {
        let chain = signed(&young, |_| {});
        let code = |rules| Judge::ruled([young.bundle()], rules).code(&chain);
        assert_eq!(code(Rules::default()), "authority_not_yet_valid", "40 {what}");
        assert_eq!(code(lenient), "ok", "40 {what}");
    }
    let old: Change = |p| p.not_after = OffsetDateTime::now_utc() - Duration::seconds(5);
    for (what, old) in [("intermediate", shaped(|_| {}, old)), ("root", shaped(old, |_| {}))] {
        let chain = signed(&old, |_| {});
        let code = Judge::ruled([old.bundle()], lenient).code(&chain);
        assert_eq!(code, "authority_expired", "39, 40 {what}");
    }
}

fn validity(der: &[u8]) -> (i64, i64) {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(der).unwrap();
    (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp())
}

#[test]
fn roots_are_judged_as_well() {
    let no_change: Change = |_| {};
    let rules: &[(&str, Change, Change, &str)] = &[
        ("36 a good root", no_change, no_change, "ok"),
        (
            "36 pathLen of the root",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            no_change,
            "path_length",
        ),
        (
            "36 pathLen that is just enough",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)),
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            "ok",
        ),
        (
            "39 an expired root",
            |p| p.not_after = p.not_before + Duration::seconds(1),
            no_change,
            "authority_expired",
        ),
        ("44 a root without ID", |p| p.subject_alt_names.clear(), no_change, "ok"),
        (
            "44 a slash for a path, as in the specification's example",
            no_change,
            |p| p.subject_alt_names = vec![uri("spiffe://a.test/").unwrap()],
            "ok",
        ),
        (
            "44 a path and a slash",
            no_change,
            |p| p.subject_alt_names = vec![uri("spiffe://a.test/ca/").unwrap()],
            "authority_id_invalid",
        ),
        (
            "44 an ID that is none",
            no_change,
            |p| p.subject_alt_names = vec![uri("SPIFFE://a.test:80").unwrap()],
            "authority_id_invalid",
        ),
        (
            "44 a URI of another scheme",
            no_change,
            |p| p.subject_alt_names = vec![uri("https://a.test/ca").unwrap()],
            "ok",
        ),
        (
            "45 two IDs, one of another trust domain",
            no_change,
            |p| p.subject_alt_names.push(uri("spiffe://b.test").unwrap()),
            "authority_of_other_domain",
        ),
    ];
    for (rule, root, intermediate, expected) in rules {
        let shaped = shaped(*root, *intermediate);
        let chain = signed(&shaped, |_| {});
        assert_eq!(Judge::of([shaped.bundle()]).code(&chain), *expected, "{rule}");
    }
}

#[test]
fn a_leaf_may_be_signed_by_the_root_and_the_presented_root_counts_for_nothing() {
    let a = domain("a.test");
    let direct = a.root().sign(&a.leaf("/web").unwrap()).unwrap().chain;
    assert_eq!(Judge::of([a.bundle()]).code(&direct), "ok", "36 signed by the root");
    let with_root = [signed(&a, |_| {}), vec![a.root().certificate().clone()]].concat();
    assert_eq!(Judge::of([a.bundle()]).code(&with_root), "ok", "43");
    let nobody = TrustBundle::new(a.name().clone(), vec![]);
    assert_eq!(Judge::of([nobody]).code(&with_root), "unknown_trust_domain", "42, 57");
}

#[test]
fn the_limits_come_before_any_signature() {
    let a = domain("a.test");
    let judge = Judge::of([a.bundle()]);
    let chain = signed(&a, |_| {});
    let filled = |more: usize| [chain.clone(), vec![chain[1].clone(); more]].concat();
    assert_eq!(judge.code(&filled(4)), "ok", "49 six certificates");
    assert_eq!(judge.code(&filled(5)), "too_many_certificates", "49 seven certificates");
    let big = signed(&a, |p| {
        p.custom_extensions.push(extension(&[1, 3, 6, 1, 4, 1, 99_999, 2], false, vec![0; 15_000]));
    });
    let large = [vec![big[0].clone(); 5], chain.clone()].concat();
    assert_eq!(judge.code(&large[..4]), "unknown_authority", "49 four of 15 KiB");
    let junk = vec![rustls_pki_types::CertificateDer::from(vec![0x30; 16_000]); 5];
    let total = [chain[..1].to_vec(), junk].concat();
    assert_eq!(judge.code(&total), "chain_too_large", "49 more than 64 KiB together");
    let dns = |count: usize| {
        let mut params = a.leaf("/web").unwrap();
        for n in 0..count {
            let name = format!("n{n}.a.test").try_into().unwrap();
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        a.sign(&params).unwrap().chain
    };
    assert_eq!(judge.code(&dns(31)), "ok", "49 32 names");
    assert_eq!(judge.code(&dns(32)), "too_many_names", "49 33 names");
}

#[test]
fn authorities_that_sign_each_other_do_not_hold_the_verifier_up() {
    // Four keys, each of which certified each other, in the names of three intermediates: every order is a path to try.
    let name = |n: usize| format!("a.test loop {n}");
    let params = |n: usize| authority(&name(n), &"a.test".parse().unwrap()).unwrap();
    let first: Vec<Signer> = (0..3).map(|n| Signer::root(params(n)).unwrap()).collect();
    let mut crossed = Vec::new();
    for above in 0..3 {
        for below in 0..3 {
            if above != below {
                let key = rcgen::SubjectPublicKeyInfo::from_der(&spki(first[below].certificate()));
                crossed.push(first[above].certify(&params(below), &key.unwrap()).unwrap());
            }
        }
    }
    let a = domain("a.test");
    let leaf = first[0].sign(&a.leaf("/web").unwrap()).unwrap().chain;
    for cut in [&crossed[..5], &crossed[1..6]] {
        let chain = [leaf.clone(), cut.to_vec()].concat();
        let began = std::time::Instant::now();
        let code = Judge::of([a.bundle()]).code(&chain);
        assert!(["unknown_authority", "path_too_costly"].contains(&code), "36, 49 {code}");
        assert!(began.elapsed().as_secs() < 20, "49 bounded work");
    }
}

fn spki(der: &[u8]) -> Vec<u8> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(der).unwrap();
    parsed.public_key().raw.to_vec()
}

#[test]
fn the_direction_decides_which_purpose_is_asked_for() {
    let a = domain("a.test");
    let judge = Judge::of([a.bundle()]);
    let only = |purpose| {
        let mut params = a.leaf("/web").unwrap();
        params.extended_key_usages = vec![purpose];
        a.sign(&params).unwrap().chain
    };
    let server = only(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let client = only(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    assert_eq!(judge.code_as(&server, Purpose::Server), "ok", "34");
    assert_eq!(judge.code_as(&client, Purpose::Client), "ok", "34");
    let refused = judge.judge(&client, Purpose::Server).unwrap_err();
    assert_eq!(refused, Flaw::Purpose { needed: Purpose::Server }, "34");
    let any = only(rcgen::ExtendedKeyUsagePurpose::Any);
    assert_eq!(judge.code(&any), "wrong_extended_key_usage", "34 any is none of the two");
}

#[test]
fn a_key_usage_may_say_more_than_it_must() {
    let a = domain("a.test");
    let chain = signed(&a, |p| {
        p.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        p.key_usages.push(KeyUsagePurpose::KeyAgreement);
    });
    assert_eq!(Judge::of([a.bundle()]).code(&chain), "ok", "32 and further usages of a leaf");
}

#[test]
fn a_second_extension_of_names_does_not_hide_behind_the_first() {
    let a = domain("a.test");
    let chain = signed(&a, |p| {
        p.custom_extensions.push(names(true, &[(6, b"spiffe://a.test/other")]));
    });
    assert_eq!(Judge::of([a.bundle()]).code(&chain), "malformed_certificate", "23, 36");
}

#[test]
fn the_identity_that_policy_sees_is_the_one_that_was_judged() {
    let a = domain("a.test");
    let chain = signed(&a, |p| p.serial_number = Some(vec![0x00, 0xfe, 0x01].into()));
    let judge = Judge::of([a.bundle()]);
    let peer = judge.judge(&chain, Purpose::Client).unwrap();
    assert_eq!((peer.id.as_str(), peer.serial.as_str()), (ID, "fe01"), "50");
    assert_eq!((&*peer.chain, peer.purpose), (&*chain, Purpose::Client), "50");
    let now = std::time::Duration::from_secs(judge.now.unsigned_abs());
    let at = |later: u64| {
        let later = now + std::time::Duration::from_secs(later);
        rustls_pki_types::UnixTime::since_unix_epoch(later)
    };
    let verifier = judge.trust.verifier();
    assert_eq!(verifier.again(&peer, at(0)), Ok(()), "50");
    assert_eq!(verifier.again(&peer, at(4000)), Err(Flaw::Expired), "37, 75");
    let gone = Judge::of([domain("a.test").bundle()]);
    let flaw = gone.trust.verifier().again(&peer, at(0)).unwrap_err();
    assert_eq!(flaw.code(), "bad_signature", "74 a root of that name, and another key");
}
