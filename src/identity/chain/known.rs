//! `KnownPeers`: chains that were judged good, so that a workload which connects again is not judged from the start.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{Presented, Purpose};
use crate::identity::Peer;

/// So many chains are remembered; the next one begins anew.
const MOST: usize = 1024;

/// Chains that one compiled trust has found good. They are forgotten with it: bundles, lists and rules that change make another.
///
/// That the peer has the leaf's key is proved in each handshake anew. Only what depends on nothing but the chain, the trust and the
/// end of validity is remembered, and a chain is the same when each byte is.
#[derive(Debug, Default)]
pub(super) struct KnownPeers {
    by_leaf: Mutex<HashMap<Box<[u8]>, Known, foldhash::fast::RandomState>>,
}

#[derive(Debug)]
struct Known {
    peer: Arc<Peer>,
    presented: Presented,
    /// When it was judged. A clock that goes back begins anew.
    since: i64,
}

impl KnownPeers {
    /// The peer with just this chain, if it is known and its time is not over; what its leaf shows goes into `presented`.
    pub(super) fn find(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
        presented: &mut Presented,
    ) -> Option<Arc<Peer>> {
        let now = i64::try_from(now.as_secs()).ok()?;
        let known = self.by_leaf.lock();
        let Known { peer, presented: shown, since } = known.get(leaf.as_ref())?;
        let is_same = peer.purpose == purpose
            && peer.chain.get(1..).is_some_and(|others| others == intermediates);
        if !is_same || !(*since..=peer.not_after).contains(&now) {
            return None;
        }
        presented.clone_from(shown);
        Some(peer.clone())
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_leaf.lock().len()
    }

    /// Remembers a chain that was judged good.
    pub(super) fn add(&self, peer: &Arc<Peer>, presented: &Presented, now: UnixTime) {
        let (Some(leaf), Ok(since)) = (peer.chain.first(), i64::try_from(now.as_secs())) else {
            return;
        };
        let mut known = self.by_leaf.lock();
        if known.len() >= MOST {
            known.clear();
        }
        let one = Known { peer: peer.clone(), presented: presented.clone(), since };
        known.insert(leaf.as_ref().into(), one);
    }
}
