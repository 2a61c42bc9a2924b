//! `ChainVerifier`: a trust, compiled, that judges chains.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::rt::crypto::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::known::KnownPeers;
use super::leaf::{Leaf, check_sizes};
use super::path::{Anchors, Conditions};
use super::{Flaw, Presented, Purpose};
use crate::identity::{DenyList, Peer, RevocationLists, Rules, Trust, TrustDomain};

/// A trust, compiled: authorities and revocation lists parsed once, each usable for its own trust domain only (51 to 54).
#[derive(Debug)]
pub struct ChainVerifier {
    by_domain: HashMap<TrustDomain, Anchors>,
    denied: DenyList,
    rules: Rules,
    /// A leaf was seen that strict mode would refuse: told once, since a peer could fill the log with it.
    told_of_lax: AtomicBool,
    known: KnownPeers,
}

impl ChainVerifier {
    /// Parses the bundles' authorities. One that cannot serve as a trust anchor is left out; a bundle without a usable one
    /// vouches for nobody (57, 58). A revocation list that cannot be read is left out and logged.
    pub fn new(trust: &Trust) -> Self {
        let none = RevocationLists::default();
        let by_domain = trust.bundles.iter().map(|bundle| {
            let lists = trust.revocation.by_domain.get(&bundle.domain).unwrap_or(&none);
            (bundle.domain.clone(), Anchors::of(bundle, lists))
        });
        Self {
            by_domain: by_domain.collect(),
            denied: trust.revocation.denied.clone(),
            rules: trust.rules,
            told_of_lax: AtomicBool::new(false),
            known: KnownPeers::default(),
        }
    }

    /// Verifies a presented chain for one direction of a connection. One that was good before is looked at no closer until it ends,
    /// unless revocation lists concern it: they have times of their own.
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
    ) -> Result<Arc<Peer>, Flaw> {
        if let Some(peer) = self.known.find(leaf, intermediates, purpose, now, presented) {
            return Ok(peer);
        }
        check_sizes(std::iter::once(leaf).chain(intermediates))?;
        let sha256 = hex::encode(digest(&SHA256, leaf));
        presented.sha256 = Some(sha256.clone());
        let facts = Leaf::read(leaf, presented)?;
        facts.allows(purpose)?;
        if let (true, Some(flaw)) = (self.rules.strict, &facts.lax) {
            return Err(flaw.clone());
        }
        let conditions = Conditions {
            now: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            leeway: self.rules.leeway().into(),
            denied: &self.denied,
        };
        facts.is_current(conditions.now, conditions.leeway)?;

        let domain = facts.id.trust_domain();
        let roots = match self.by_domain.get(&domain) {
            Some(roots) if !roots.is_empty() => roots,
            _ => return Err(Flaw::NoBundle { domain }),
        };
        self.check_denied(&facts, &domain)?;
        let not_after = roots.path(leaf, intermediates, purpose, &facts, conditions)?;
        self.tell_of_lax(&facts);
        let peer = Arc::new(Peer {
            id: facts.id,
            serial: facts.serial,
            spki_sha256: facts.spki_sha256,
            sha256,
            not_after,
            issuer_ski: facts.issuer_ski,
            bundle_revision: roots.revision.clone(),
            purpose,
            chain: std::iter::once(leaf)
                .chain(intermediates)
                .map(|one| one.clone().into_owned())
                .collect(),
        });
        if !roots.minds_lists() {
            self.known.add(&peer, presented, now);
        }
        Ok(peer)
    }

    /// What the specification asks of issuers only, and strict mode of everybody (33, 41): told once.
    fn tell_of_lax(&self, leaf: &Leaf) {
        let Some(flaw) = &leaf.lax else { return };
        if !self.told_of_lax.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                id = %leaf.id, serial = %leaf.serial, reason = flaw.code(),
                "a certificate was accepted that strict mode would refuse; further ones are not logged"
            );
        }
    }

    /// The deny list, for the leaf: before any signature is checked.
    fn check_denied(&self, leaf: &Leaf, domain: &TrustDomain) -> Result<(), Flaw> {
        if self.denied.ids.contains(&leaf.id) {
            return Err(Flaw::DeniedId);
        }
        if !self.denied.serials.is_empty()
            && self.denied.serials.contains(&(domain.clone(), leaf.serial.clone()))
        {
            return Err(Flaw::DeniedSerial);
        }
        if self.denied.keys.contains(&leaf.spki_sha256) {
            return Err(Flaw::DeniedKey);
        }
        Ok(())
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
