//! Who a workload is: SPIFFE IDs, SVIDs, trust bundles, and where they come from. A door: it defines nothing itself.

mod bundle;
mod pattern;
mod peer;
mod source;
mod spiffe_id;
mod svid;

pub use bundle::{TrustBundle, TrustBundles};
pub use pattern::SpiffePattern;
pub use peer::Peer;
pub use source::{Identity, IdentitySource};
pub use spiffe_id::{SpiffeId, TrustDomain};
pub use svid::Svid;
