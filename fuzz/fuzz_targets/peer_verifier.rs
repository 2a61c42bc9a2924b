//! Arbitrary certificates never make the verifier panic, and never make it accept anything but the chain that the fixed
//! authority signed.
//!
//! The input's first byte chooses: a chain of arbitrary DER (pieces with a length of two bytes before each), or the good
//! chain with bytes of it exchanged (offset and byte).
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::{CertificateDer, UnixTime};
use wardgate::identity::{Presented, Purpose, TrustBundles};
use wardgate::issuer::{Authority, DEFAULT_TTL};
use wardgate::mtls::PeerVerifier;
use wardgate::rt::Clock;

const NOW: i64 = 1_800_000_000;

struct Fixed {
    verifier: PeerVerifier,
    good: Vec<CertificateDer<'static>>,
}

fn fixed() -> &'static Fixed {
    static FIXED: OnceLock<Fixed> = OnceLock::new();
    FIXED.get_or_init(|| {
        let domain = "fuzz.test".parse().expect("a trust domain");
        let authority = Authority::in_memory(domain, Clock::fixed(NOW)).expect("an authority");
        let id = "spiffe://fuzz.test/web".parse().expect("an ID");
        let svid = authority.issue(&id, DEFAULT_TTL, &[]).expect("an SVID");
        let bundles: TrustBundles = [authority.bundle()].into_iter().collect();
        Fixed { verifier: PeerVerifier::accepting(&bundles.into()), good: svid.chain.clone() }
    })
}

fuzz_target!(|input: &[u8]| {
    let fixed = fixed();
    let Some((&choice, rest)) = input.split_first() else { return };
    let chain = if choice % 2 == 0 { pieces(rest) } else { exchanged(&fixed.good, rest) };
    let Some((leaf, intermediates)) = chain.split_first() else { return };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW.unsigned_abs()));
    let mut presented = Presented::default();
    for purpose in [Purpose::Client, Purpose::Server] {
        let verdict = fixed.verifier.verify(leaf, intermediates, purpose, now, &mut presented);
        if let Ok(peer) = verdict {
            assert_eq!(peer.id.as_str(), "spiffe://fuzz.test/web");
            assert_eq!(leaf, &fixed.good[0], "a leaf was accepted that nobody signed");
        }
    }
    if let Some(shown) = presented.id {
        assert!(shown.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{shown:?} in a log");
    }
});

fn pieces(mut bytes: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut found = Vec::new();
    while let [high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        found.push(CertificateDer::from(rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    found
}

fn exchanged(good: &[CertificateDer<'static>], changes: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut chain: Vec<Vec<u8>> = good.iter().map(|one| one.to_vec()).collect();
    for change in changes.chunks_exact(4) {
        let which = usize::from(change[0]) % chain.len();
        let at = usize::from(u16::from_be_bytes([change[1], change[2]])) % chain[which].len();
        chain[which][at] = change[3];
    }
    chain.into_iter().map(CertificateDer::from).collect()
}
