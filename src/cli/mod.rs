//! The command line. A door: it defines nothing itself.

pub mod identity;
