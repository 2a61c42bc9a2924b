//! The rules of the SPIFFE specifications, each with its number: docs/spiffe-conformance.md tells which test holds which.
//!
//! A test's message begins with the number of its rule. `table.rs` compares the document with the tests.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod bundles;
mod chains;
mod ids;
mod openssl;
mod revocation;
mod svids;
mod table;

use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use wardgate::conformance::Domain;
use wardgate::identity::{
    Flaw, Peer, Presented, Purpose, Revocations, Rules, Trust, TrustBundle, TrustBundles,
};
use wardgate::rt::unix_seconds;

/// A trust domain with a root and an intermediate.
fn domain(name: &str) -> Domain {
    Domain::new(name.parse().unwrap()).unwrap()
}

fn bundles(bundles: impl IntoIterator<Item = TrustBundle>) -> TrustBundles {
    bundles.into_iter().collect()
}

/// Whom we trust and how, and the moment at which we are asked.
struct Judge {
    trust: Trust,
    now: i64,
}

impl Judge {
    fn of(all: impl IntoIterator<Item = TrustBundle>) -> Self {
        Self::with(all, Revocations::default())
    }

    fn with(all: impl IntoIterator<Item = TrustBundle>, revocation: Revocations) -> Self {
        let trust = Trust::new(bundles(all), revocation, Rules::default());
        Self { trust, now: unix_seconds() }
    }

    fn ruled(all: impl IntoIterator<Item = TrustBundle>, rules: Rules) -> Self {
        let trust = Trust::new(bundles(all), Revocations::default(), rules);
        Self { trust, now: unix_seconds() }
    }

    fn at(mut self, now: i64) -> Self {
        self.now = now;
        self
    }

    fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        purpose: Purpose,
    ) -> Result<std::sync::Arc<Peer>, Flaw> {
        let seconds = Duration::from_secs(self.now.try_into().unwrap());
        let now = UnixTime::since_unix_epoch(seconds);
        let presented = &mut Presented::default();
        match chain {
            [] => Err(Flaw::NoCertificate),
            [leaf, rest @ ..] => self.trust.verifier().verify(leaf, rest, purpose, now, presented),
        }
    }

    /// `ok`, or the code of the flaw; as client.
    fn code(&self, chain: &[CertificateDer<'_>]) -> &'static str {
        self.code_as(chain, Purpose::Client)
    }

    fn code_as(&self, chain: &[CertificateDer<'_>], purpose: Purpose) -> &'static str {
        match self.judge(chain, purpose) {
            Ok(_) => "ok",
            Err(flaw) => flaw.code(),
        }
    }
}
