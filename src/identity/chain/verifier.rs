//! `ChainVerifier`: a trust, compiled, that judges chains.

use std::collections::HashMap;

use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::leaf::{Leaf, check_sizes};
use super::path::Anchors;
use super::{Flaw, Presented, Purpose};
use crate::identity::{Peer, Trust, TrustDomain};

/// A trust, compiled: the authorities parsed once, each usable for its own trust domain only (51 to 54).
#[derive(Debug)]
pub struct ChainVerifier {
    by_domain: HashMap<TrustDomain, Anchors>,
}

impl ChainVerifier {
    /// Parses the bundles' authorities. One that cannot serve as a trust anchor is left out; a bundle without a usable one
    /// vouches for nobody (57, 58).
    pub fn new(trust: &Trust) -> Self {
        let by_domain = trust.bundles.iter();
        let by_domain = by_domain.map(|bundle| (bundle.domain.clone(), Anchors::of(bundle)));
        Self { by_domain: by_domain.collect() }
    }

    /// Verifies a presented chain for one direction of a connection.
    ///
    /// What the leaf shows goes into `presented` in any case.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
        presented: &mut Presented,
    ) -> Result<Peer, Flaw> {
        check_sizes(std::iter::once(leaf).chain(intermediates))?;
        let sha256 = hex::encode(digest(&SHA256, leaf));
        presented.sha256 = Some(sha256.clone());
        let facts = Leaf::read(leaf, presented)?;
        facts.allows(purpose)?;
        facts.is_current(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))?;

        let domain = facts.id.trust_domain();
        let roots = match self.by_domain.get(&domain) {
            Some(roots) if !roots.is_empty() => roots,
            _ => return Err(Flaw::NoBundle { domain }),
        };
        let not_after = roots.path(leaf, intermediates, purpose, now, &facts)?;
        Ok(Peer {
            id: facts.id,
            serial: facts.serial,
            spki_sha256: facts.spki_sha256,
            sha256,
            not_after,
            purpose,
            chain: std::iter::once(leaf)
                .chain(intermediates)
                .map(|one| one.clone().into_owned())
                .collect(),
        })
    }

    /// Would the handshake that proved `peer` succeed now?
    ///
    /// # Errors
    /// The first rule that is broken by now.
    pub fn again(&self, peer: &Peer, now: UnixTime) -> Result<(), Flaw> {
        let (leaf, intermediates) = peer.chain.split_first().ok_or(Flaw::NoCertificate)?;
        self.verify(leaf, intermediates, peer.purpose, now, &mut Presented::default()).map(|_| ())
    }
}
