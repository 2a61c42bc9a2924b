//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`): bytes in, ends out, and back. No I/O.
//!
//! A header stands before everything else on a connection, TLS included. It is a door: it defines nothing itself.

mod header;
mod v1;
mod v2;

pub use header::{Beginning, Ends, Header, MAX_HEADER, Malformed, Version, beginning, read, write};
