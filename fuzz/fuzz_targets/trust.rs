//! What decides about trust is read from bytes of others: revocation lists, bundle documents, bundle maps. Nothing makes their
//! readers panic; a list that its authority did not sign says nothing; what a document reads as, it still is when written.
//!
//! The input's first byte chooses: any list, the good list with bytes of it exchanged (offset and byte), a document, a map.
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::{CertificateRevocationListDer, UnixTime};
use wardgate::conformance::{Credential, Fixtures};
use wardgate::identity::{
    BundleDocument, BundleMap, Presented, Purpose, RevocationList, RevocationLists,
    RevocationMode, Revocations, Rules, Trust, TrustBundles, TrustDomain,
};

struct Fixed {
    bundles: TrustBundles,
    domain: TrustDomain,
    leaf: Credential,
    /// By the root and by the intermediate.
    lists: Vec<CertificateRevocationListDer<'static>>,
    authorities: Vec<rustls_pki_types::CertificateDer<'static>>,
    now: UnixTime,
}

fn fixed() -> &'static Fixed {
    static FIXED: OnceLock<Fixed> = OnceLock::new();
    FIXED.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("wardgate-fuzz-{}", std::process::id()));
        let fixtures = Fixtures::create(&folder).expect("fixtures");
        let _ = std::fs::remove_dir_all(&folder);
        let lists = fixtures.revocation_lists().expect("lists");
        let lists = RevocationList::read(lists.as_bytes()).expect("good lists");
        Fixed {
            bundles: fixtures.bundles().into_iter().collect(),
            domain: fixtures.own.name().clone(),
            leaf: fixtures.revoked().expect("a revoked leaf"),
            lists: lists.iter().map(|list| list.der().clone()).collect(),
            authorities: [fixtures.own.root(), fixtures.own.intermediate()]
                .map(|signer| signer.certificate().clone())
                .to_vec(),
            now: UnixTime::now(),
        }
    })
}

fuzz_target!(|input: &[u8]| {
    let fixed = fixed();
    let Some((&choice, rest)) = input.split_first() else { return };
    match choice % 4 {
        0 => list(fixed, rest.to_vec()),
        1 => {
            let mut der = fixed.lists[usize::from(choice / 4) % 2].to_vec();
            for change in rest.chunks_exact(3) {
                let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % der.len();
                der[at] = change[2];
            }
            list(fixed, der);
        }
        2 => document(fixed, rest),
        _ => map(rest),
    }
});

/// A list speaks only when it is one of the two that the authorities signed.
fn list(fixed: &Fixed, der: Vec<u8>) {
    let der = CertificateRevocationListDer::from(der);
    let known = fixed.lists.contains(&der);
    if let Ok(list) = RevocationList::from_der(der.clone()) {
        let signed = fixed.authorities.iter().any(|authority| list.is_signed_by(authority));
        assert!(!signed || known, "nobody signed it");
        let _ = (list.revokes("0bad0bad"), list.is_current(0), list.issuer().len());
    }
    for mode in [RevocationMode::Soft, RevocationMode::Hard] {
        let lists = RevocationLists { mode, lists: vec![der.clone()] };
        let by_domain = [(fixed.domain.clone(), lists)].into();
        let revocation = Revocations { by_domain, ..Revocations::default() };
        let trust = Trust::new(fixed.bundles.clone(), revocation, Rules::default());
        let verdict = trust.verifier().verify(
            &fixed.leaf.chain[0],
            &fixed.leaf.chain[1..],
            Purpose::Client,
            fixed.now,
            &mut Presented::default(),
        );
        let code = verdict.as_ref().map_or_else(|flaw| flaw.code(), |_| "ok");
        match mode {
            RevocationMode::Soft => assert!(code == "ok" || known, "{code}"),
            _ => assert!(code == "revocation_unknown" || known, "{code}"),
        }
    }
}

fn document(fixed: &Fixed, json: &[u8]) {
    let Ok(read) = BundleDocument::parse(fixed.domain.clone(), json) else { return };
    let seconds = read.refresh_after;
    assert!((Duration::from_secs(10)..=Duration::from_secs(86_400)).contains(&seconds));
    assert!(read.succeeds(&read).is_ok());
    if let Ok(written) = read.to_json() {
        let again = BundleDocument::parse(fixed.domain.clone(), written.to_string().as_bytes());
        assert_eq!(again.expect("what was written can be read").bundle.roots, read.bundle.roots);
    }
}

fn map(json: &[u8]) {
    let Ok(read) = BundleMap::parse(json) else { return };
    assert_eq!(read.bundles().len(), read.documents().len(), "one bundle for each trust domain");
    if let Ok(written) = read.to_json() {
        let again = BundleMap::parse(written.to_string().as_bytes());
        assert_eq!(again.expect("what was written can be read").documents().len(), read.documents().len());
    }
}
