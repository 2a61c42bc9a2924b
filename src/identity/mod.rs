//! Who a workload is: SPIFFE IDs, SVIDs, trust bundles, and where they come from. A door: it defines nothing itself.

mod bundle;
mod chain;
mod error;
mod files;
#[cfg(test)]
pub(crate) mod forge;
mod pattern;
mod peer;
mod revocation;
mod source;
mod spiffe_id;
mod svid;
mod trust;
mod workload_api;

pub use bundle::{BundleDocument, JwtAuthority, TrustBundle, TrustBundles};
pub use chain::{ChainVerifier, Flaw, Presented, Purpose};
pub use error::Error;
pub use files::{FileSettings, FileSource};
pub use pattern::SpiffePattern;
pub use peer::Peer;
pub use revocation::{DenyList, RevocationLists, RevocationMode, Revocations};
pub use source::{Identity, IdentitySource};
pub use spiffe_id::{SpiffeId, TrustDomain};
pub use svid::{Svid, renew_after};
pub use trust::{Rules, Trust};
pub use workload_api::{WorkloadApiSettings, WorkloadApiSource};
