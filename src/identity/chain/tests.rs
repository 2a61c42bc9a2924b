//! What the verifier makes of a chain beside its verdict. The rules with their numbers are in tests/spiffe.

use std::sync::Arc;
use std::time::Duration;

use crate::rt::crypto::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::*;
use crate::identity::forge::{Forge, dns, leaf};
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
) -> Result<Arc<Peer>, Flaw> {
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
fn without_an_intermediate_the_proof_ends_with_the_leaf_or_the_root() {
    let soon = time::OffsetDateTime::now_utc() + time::Duration::minutes(5);
    let a = Forge::shaped("a.test", |p| p.not_after = soon, |_| {});
    let mut params = leaf(ID);
    params.subject_alt_names.push(dns("web.a.test"));
    let chain = a.sign_by_root(&params).chain;
    let peer = judge(&a.bundles(), &chain, Purpose::Client, unix_seconds()).unwrap();
    assert_eq!((peer.not_after, peer.chain.len()), (soon.unix_timestamp(), 1));
}

#[test]
fn a_chain_that_was_good_is_known_until_it_ends_and_only_as_it_was() {
    let a = Forge::new("a.test");
    let chain = a.sign(&leaf(ID)).chain;
    let verifier = ChainVerifier::new(&a.bundles().into());
    let now = unix_seconds();
    let ask = |chain: &[CertificateDer<'_>], purpose, now| {
        let mut presented = Presented::default();
        let peer = verifier.verify(&chain[0], &chain[1..], purpose, at(now), &mut presented);
        (peer, presented)
    };
    let (first, shown) = ask(&chain, Purpose::Client, now);
    let first = first.unwrap();
    let (again, shown_again) = ask(&chain, Purpose::Client, now + 1);
    assert!(Arc::ptr_eq(&first, &again.unwrap()), "it was not judged again");
    assert_eq!(shown, shown_again);
    // The other half of a handshake asks for another usage.
    assert_eq!(ask(&chain, Purpose::Server, now).0.unwrap().purpose, Purpose::Server);
    // Its time is over, or not yet there: both are judged.
    let code = |(peer, _): (Result<Arc<Peer>, Flaw>, Presented)| peer.unwrap_err().code();
    assert_eq!(code(ask(&chain, Purpose::Client, first.not_after + 1)), "expired");
    assert_eq!(code(ask(&chain, Purpose::Client, 1_000_000)), "not_yet_valid");
    // The same leaf with other authorities, or without.
    let mut changed = chain[1].to_vec();
    *changed.last_mut().unwrap() ^= 1;
    for others in [vec![], vec![CertificateDer::from(changed)]] {
        let chain = [vec![chain[0].clone()], others].concat();
        assert!(ask(&chain, Purpose::Client, now).0.is_err());
    }
    // Another trust has not judged it.
    let other = ChainVerifier::new(&Forge::new("a.test").bundles().into());
    assert!(other.again(&first, at(now)).is_err());
}

#[test]
fn what_is_known_does_not_grow_without_bound() {
    let a = Forge::new("a.test");
    let known = known::KnownPeers::default();
    let chain = a.sign(&leaf(ID)).chain;
    let peer = judge(&a.bundles(), &chain, Purpose::Client, unix_seconds()).unwrap();
    let now = at(unix_seconds());
    for number in 0..3000_u32 {
        let leaf = CertificateDer::from(number.to_be_bytes().to_vec());
        let peer = Arc::new(Peer { chain: [leaf.clone()].into(), ..(*peer).clone() });
        known.add(&peer, &Presented::default(), now);
        let mut presented = Presented::default();
        assert!(known.find(&leaf, &[], Purpose::Client, now, &mut presented).is_some());
    }
    assert!(known.len() <= 1024);
}
