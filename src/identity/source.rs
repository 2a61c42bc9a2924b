//! `Identity`: an SVID with the bundles that belong to it, and the sources that keep it current.

use std::time::Duration;

use rustls_pki_types::UnixTime;

use std::sync::Arc;

use super::{Error, Flaw, Presented, Purpose, Refresh, SpiffeId, Svid, Trust, TrustBundles};
use crate::rt::Live;

/// All that a handshake needs: our own SVID and whom we trust. Replaced as a whole.
#[derive(Debug)]
pub struct Identity {
    /// Our own certificate and key.
    pub svid: Svid,
    /// Whom we trust. The same `Arc` as long as nothing of it changes: whoever rests on it need not look again.
    pub trust: Arc<Trust>,
}

impl Identity {
    /// An SVID and whom we trust, as they are: nothing is checked.
    pub fn new(svid: Svid, trust: impl Into<Trust>) -> Self {
        Self { svid, trust: Arc::new(trust.into()) }
    }

    /// Who we are.
    pub fn id(&self) -> &SpiffeId {
        &self.svid.id
    }

    /// What follows `previous` when a source delivers `svid` and whom it trusts; validated before anybody publishes it.
    ///
    /// The SVID must be current and its own trust domain's bundle must vouch for it. An SVID that is merely not current does
    /// not hold back the bundles that came with it, since these may take trust away: the previous SVID stays.
    ///
    /// # Errors
    /// The SVID cannot be used. Nothing may be published then.
    pub fn successor(
        previous: Option<&Self>,
        svid: Svid,
        trust: impl Into<Trust>,
        now: i64,
    ) -> Result<Self, Error> {
        let trust = trust.into();
        let verdict = vouch(&svid, &trust.bundles, now);
        let trust = match previous {
            Some(previous) if *previous.trust == trust => previous.trust.clone(),
            _ => Arc::new(trust),
        };
        match (verdict, previous) {
            (Ok(()), _) => Ok(Self { svid, trust }),
            (Err(flaw @ (Flaw::Expired | Flaw::NotYetValid)), Some(previous))
                if previous.svid.id == svid.id =>
            {
                tracing::error!(
                    id = %svid.id, serial = %svid.serial, reason = flaw.code(),
                    "the delivered SVID is not current; keeping the previous one and taking the bundles"
                );
                Ok(Self { svid: previous.svid.clone(), trust })
            }
            (Err(flaw), _) => Err(flaw.into()),
        }
    }

    /// The same SVID that nobody may use any more: without a bundle neither side of a handshake succeeds.
    pub fn withdrawn(&self) -> Self {
        Self { svid: self.svid.clone(), trust: Arc::default() }
    }

    /// Has the source taken this identity away?
    pub fn is_withdrawn(&self) -> bool {
        self.trust.bundles.is_empty()
    }
}

/// Does the SVID's own bundle vouch for it now?
fn vouch(svid: &Svid, bundles: &TrustBundles, now: i64) -> Result<(), Flaw> {
    let own: TrustBundles = bundles.find(&svid.id.trust_domain()).cloned().into_iter().collect();
    let (leaf, intermediates) = svid.chain.split_first().ok_or(Flaw::NoCertificate)?;
    let seconds = u64::try_from(now).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    Trust::from(own)
        .verifier()
        .verify(leaf, intermediates, Purpose::Server, now, &mut Presented::default())
        .map(|_| ())
}

/// Something that keeps an identity current. A source exists only once its first identity is valid.
pub trait IdentitySource: Send + Sync {
    /// The current identity and its successors.
    fn identity(&self) -> Live<Identity>;
    /// A way to ask for newer bundles at once; most sources have none.
    fn refresh(&self) -> Refresh {
        Refresh::default()
    }
}

/// Tells an operator of bundles that share a key: each of the two trust domains can then speak for the other.
pub(super) fn warn_of_shared_keys(bundles: &TrustBundles) {
    for (one, other) in bundles.shared_keys() {
        tracing::warn!(%one, %other, "two trust domains have an authority's key in common");
    }
}
