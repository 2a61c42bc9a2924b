//! Everything that is declared, compiled: one immutable [`Snapshot`] a revision, and the [`Keeper`] that makes the next one.
//!
//! This room does no I/O. It is a door: it defines nothing itself.

#[cfg(test)]
mod agreement;
mod client_certificates;
mod compile;
mod compiled;
mod consumers;
mod freshness;
mod keeper;
mod merge;
mod named;
mod patterns;
mod router;
mod secrets;
mod ssls;

pub use compiled::{CompiledRoute, Merged, Snapshot, UnreadablePath};
pub use freshness::Freshness;
pub use keeper::{Applied, Declared, Keeper};
pub use router::{Found, Place, Router, RouterKind, RouterSettings};
pub use secrets::Clear;
