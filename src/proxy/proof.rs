//! `Proof`: what a mesh connection rests on. A connection does not outlive it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::identity::{Identity, Peer, TrustDomain};
use crate::rt::{Cached, Live, unix_seconds};

/// Seconds beyond which the end of a proof is no concern of a connection.
const LONGEST: i64 = 10 * 365 * 24 * 3600;

/// What a connection rests on: both certificates, and the bundle that vouches for the peer's. A plain one rests on nothing.
pub(in crate::proxy) struct Proof {
    not_after: i64,
    trust: Option<Trust>,
}

/// Whom we trusted when we last looked.
struct Trust {
    current: Cached<Identity>,
    seen: Arc<Identity>,
    domain: TrustDomain,
}

impl Proof {
    /// For a connection whose handshake began when our identity was `before`.
    pub(in crate::proxy) fn new(
        peer: Option<&Peer>,
        identity: Option<&Live<Identity>>,
        before: Option<Arc<Identity>>,
    ) -> Self {
        let (Some(peer), Some(identity), Some(seen)) = (peer, identity, before) else {
            return Self { not_after: i64::MAX, trust: None };
        };
        let not_after = peer.not_after.min(seen.svid.not_after);
        let trust = Trust { current: identity.cached(), seen, domain: peer.id.trust_domain() };
        Self { not_after, trust: Some(trust) }
    }

    /// When the first of the certificates is over; `None` when that is further away than any connection lives.
    pub(in crate::proxy) fn ends_at(&self) -> Option<Instant> {
        let left = self.not_after.saturating_sub(unix_seconds()).max(0);
        (left < LONGEST).then(|| Instant::now() + Duration::from_secs(left.unsigned_abs()))
    }

    /// Is one of the certificates over? The connection then ends with its next answer.
    pub(in crate::proxy) fn is_expired(&self) -> bool {
        unix_seconds() >= self.not_after
    }

    /// Was trust taken away: our identity as a whole, or an authority of the peer's trust domain? Nothing more is served then.
    pub(in crate::proxy) fn has_fallen(&mut self) -> bool {
        let Some(trust) = &mut self.trust else { return false };
        let now = trust.current.load();
        if Arc::ptr_eq(now, &trust.seen) {
            return false;
        }
        let roots = |identity: &Identity| {
            identity.trust.bundles.find(&trust.domain).map(|bundle| bundle.roots.clone())
        };
        let (then, now_trusted) = (roots(&trust.seen), roots(now).unwrap_or_default());
        // One authority more, as before a rotation, takes nothing away.
        if then.unwrap_or_default().iter().any(|root| !now_trusted.contains(root)) {
            return true;
        }
        trust.seen = now.clone();
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Forge;
    use crate::identity::{Purpose, TrustBundle, TrustBundles};
    use crate::rt::Publisher;

    #[test]
    fn a_proof_stands_through_renewals_and_falls_with_the_bundle() {
        let (a, b) = (Forge::new("a.test"), Forge::new("b.test"));
        let peer = Peer {
            id: "spiffe://a.test/web".parse().unwrap(),
            serial: String::new(),
            spki_sha256: String::new(),
            sha256: String::new(),
            not_after: i64::MAX,
            purpose: Purpose::Client,
            chain: Arc::default(),
        };
        let (publisher, live) = Publisher::new(a.identity("/me", &[]));
        let proof = || Proof::new(Some(&peer), Some(&live), Some(live.load()));
        let mut first = proof();
        assert!(!first.has_fallen() && !first.is_expired());

        publisher.set(a.identity("/me", &[&b]));
        let roots = vec![a.root.clone(), b.root.clone()];
        let both = TrustBundle::new(a.domain.clone(), roots);
        let svid = a.svid("/me");
        publisher.set(Identity::new(svid, [both].into_iter().collect::<TrustBundles>()));
        let mut second = proof();
        assert!(!first.has_fallen(), "renewed, another domain, one authority more");

        // The authority that is taken away need not be the one that vouched for this peer.
        publisher.set(a.identity("/me", &[&b]));
        assert!(second.has_fallen());
        let mut third = proof();
        assert!(!third.has_fallen());
        publisher.set(live.load().withdrawn());
        assert!(third.has_fallen());

        let mut ended = a.identity("/me", &[]);
        ended.svid.not_after = unix_seconds();
        publisher.set(ended);
        assert!(proof().is_expired(), "our own certificate counts as well");
        assert!(!Proof::new(None, None, None).is_expired());
    }
}
