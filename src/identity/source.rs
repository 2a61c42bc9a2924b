//! `Identity`: an SVID with the bundles that belong to it, and the sources that keep it current.

use super::{SpiffeId, Svid, TrustBundles};
use crate::rt::Live;

/// All that a handshake needs: our own SVID and whom we trust. Replaced as a whole.
#[derive(Debug)]
pub struct Identity {
    /// Our own certificate and key.
    pub svid: Svid,
    /// The trust domains that we can verify.
    pub bundles: TrustBundles,
}

impl Identity {
    /// Who we are.
    pub fn id(&self) -> &SpiffeId {
        &self.svid.id
    }
}

/// Something that keeps an identity current. A source exists only once its first identity is valid.
pub trait IdentitySource: Send + Sync {
    /// The current identity and its successors.
    fn identity(&self) -> Live<Identity>;
}
