//! For places without SPIRE: who asks is attested, gets the identities it is registered for, and keeps them current over the
//! SPIFFE Workload API. A door: it defines nothing itself.

mod attest;
mod authority;
mod entries;
mod error;
mod jwt;
mod key;
mod socket_authority;
mod source;
#[cfg(test)]
mod tests;
mod workload_api;

pub use attest::{Attestor, Caller, Selector, UnixAttestor};
pub use authority::{Authority, DEFAULT_TTL};
pub use entries::{Entries, RegistrationEntry};
pub use error::Error;
pub use jwt::{IssuedToken, JwtAlgorithm, JwtIssuer, JwtSettings, Keys};
pub use source::IssuerSource;
pub use workload_api::WorkloadApi;
