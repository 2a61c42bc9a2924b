//! One compiled, immutable revision of everything.
mod router;
pub use router::{Found, Place, Router, RouterKind};
