//! A mesh connection after its handshake: TLS 1.3 records opened and sealed in the bytes' own place. A door: it defines nothing
//! itself.
//!
//! rustls shakes hands, judges, and derives every key (RFC 8446 section 7), those of later key updates too. What is ours is the
//! record layer (section 5): framing, nonces, alerts and the messages after the handshake. It allocates nothing for a record
//! that arrives in one piece and holds no buffer while nothing is under way.

mod handshake;
mod keys;
mod stream;
#[cfg(test)]
mod tests;

pub(super) use handshake::{accept, connect};
pub use stream::{Agreed, MeshStream, Settled};
