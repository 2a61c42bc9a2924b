//! Who a workload is: SPIFFE IDs, SVIDs, trust bundles, and where they come from. A door: it defines nothing itself.

mod budget;
mod bundle;
mod bundle_map;
mod chain;
mod composed;
mod declared;
mod error;
mod files;
#[cfg(test)]
pub(crate) mod forge;
mod jwt;
mod jwt_bundles;
mod pattern;
mod peer;
mod refresh;
mod revocation;
mod revocation_list;
mod source;
mod spiffe_id;
mod strict_json;
mod svid;
#[cfg(test)]
pub(crate) mod token_forge;
mod tokens;
mod trust;
mod workload_api;
mod workload_endpoint;
mod workload_message;
#[cfg(test)]
mod workload_tests;
// The SPIFFE Workload API's messages, client and server. tests/codegen.rs holds it to proto/workload.proto.
#[rustfmt::skip]
#[path = "generated/workload.rs"]
#[allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths, dead_code, clippy::all,
    clippy::semicolon_if_nothing_returned, clippy::wildcard_imports, clippy::missing_errors_doc, reason = "generated")]
pub(crate) mod workload_proto;

pub use budget::{Budget, Limit};
pub use bundle::{BundleDocument, JwtAuthority, Succession, TrustBundle, TrustBundles};
pub use bundle_map::BundleMap;
pub use chain::{ChainVerifier, Flaw, Presented, Purpose};
pub use composed::{Composed, DeclaredTrust};
pub use declared::{
    BundleOrigin, DatedList, DeclaredDomain, DeclaredRevocation, Denial, Endpoint, EndpointServer,
    WrongField, fetchable, serial_number,
};
pub use error::Error;
pub use files::{FileSettings, FileSource};
pub use jwt::{JwtSvid, MAX_LEEWAY, TokenFlaw, TokenRules, TokenText, TokenVerifier};
pub use jwt_bundles::{JwtBundleSource, JwtSvids, OwnToken};
pub use pattern::SpiffePattern;
pub use peer::Peer;
pub use refresh::{Refresh, Refreshing};
pub use revocation::{DenyList, RevocationLists, RevocationMode, Revocations};
pub use revocation_list::{ListOrigin, RevocationList};
pub use source::{Identity, IdentitySource};
pub use spiffe_id::{SpiffeId, TrustDomain};
pub use strict_json::parse as strict_json;
pub use svid::{Svid, renew_after};
pub use tokens::{RefusedToken, Tokens};
pub use trust::{Rules, Trust};
pub use workload_api::{WorkloadApiSettings, WorkloadApiSource};
