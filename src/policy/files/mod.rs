//! Policies as files: YAML or JSON text becomes policies, each with its place; a mistake names its line and its field. A door:
//! it defines nothing itself.
//!
//! Reading folders is the caller's: this room does no I/O.

mod declared;
mod document;

pub use declared::{Declared, Placed};
pub use document::{Flaw, Place};
pub(super) use document::{Node, documents};
