//! For places without SPIRE: who asks is attested, gets the identities it is registered for, and keeps them current over the
//! SPIFFE Workload API. A door: it defines nothing itself.

mod attest;
mod authority;
mod enrolment;
mod entries;
mod error;
mod jwt;
mod key;
mod socket_authority;
mod source;
#[cfg(test)]
mod tests;
// tests/codegen.rs holds it to proto/issuer.proto.
#[rustfmt::skip]
#[path = "generated/issuer.rs"]
#[allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths, clippy::all,
    clippy::semicolon_if_nothing_returned, clippy::wildcard_imports, clippy::missing_errors_doc, reason = "generated")]
mod wire;
mod workload_api;

pub use attest::{
    Attestor, Caller, Grant, JoinTokens, KubernetesAttestor, KubernetesMode, KubernetesSettings,
    ProofFlaw, Selector, TokenId, TokenOrder, TokenState, UnixAttestor,
};
pub use authority::{
    Adopted, Announcement, Authority, AuthorityKey, DEFAULT_TTL, Evidence, FileCustody, Finding,
    Issued, KeyCustody, Passphrase, Phase, Reason, Records, Revoked, RootStatus, RotationPolicy,
    Step, Upkeep,
};
pub use enrolment::{
    EnrolSettings, EnrolSource, Enrolled, Enrolment, EnrolmentParts, IssuerClient, Proof,
    TrustNews, certificate_request, issuer_id, new_key,
};
pub use entries::{Entries, RegistrationEntry};
pub use error::Error;
pub use jwt::{IssuedToken, JwtAlgorithm, JwtIssuer, JwtSettings, Keys};
pub use source::IssuerSource;
pub use workload_api::WorkloadApi;
