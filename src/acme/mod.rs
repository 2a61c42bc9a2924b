//! Public certificates by ACME (RFC 8555): an account with an authority, orders, challenges, renewal. The library
//! `instant-acme` knows the protocol; HTTP, TLS, files and times are ours. A door: it defines nothing itself.

mod error;
mod folder;
mod order;
mod renewal;
mod reports;
mod settings;
mod transport;

pub use error::{Error, Problem};
pub use renewal::{Obtained, Renewal};
pub use reports::{Report, Reports};
pub use settings::{AcmeSettings, ChallengeKind, DomainsSettings, ExternalAccountSettings};
