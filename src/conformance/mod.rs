//! SPIFFE conformance of any proxy: fixtures, cases, a runner, a report. A door: it defines nothing itself.
//!
//! The cases know certificates and what a rule expects of whoever verifies them. Nothing here knows how Wardgate verifies:
//! a proxy is judged by what it does on the wire.

mod cases;
mod error;
mod fixtures;
mod forge;
mod inbound;
mod outbound;
mod report;
mod tls;

pub use cases::{CASES, Case, Expectation, Feature, Level, Side};
pub use error::Error;
pub use fixtures::Fixtures;
pub use forge::{Credential, Domain, Signer, authority, extension, leaf, names, uri};
pub use inbound::Inbound;
pub use outbound::Outbound;
pub use report::{Report, Row, Seen, Verdict};
