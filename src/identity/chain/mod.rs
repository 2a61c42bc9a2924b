//! Is this chain an X.509-SVID that a bundle of ours vouches for? The rules of the X509-SVID specification and of RFC 5280.
//!
//! Both ends of every handshake and every identity of our own pass through here. The numbers beside the checks are those
//! of docs/spiffe-conformance.md. No I/O; the time comes in by argument.

mod flaw;
mod known;
mod leaf;
mod path;
mod standing;
#[cfg(test)]
mod tests;
mod verifier;

pub use flaw::Flaw;
pub(super) use leaf::{Leaf, check_sizes};
pub use leaf::{Presented, Purpose};
pub(super) use path::ALGORITHMS;
pub use verifier::ChainVerifier;
