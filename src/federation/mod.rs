//! Trust that is declared: bundles of other trust domains, fetched and kept; revocation lists; the deny list; and the endpoint
//! at which our own bundle is published. A door: it defines nothing itself.
//!
//! What is declared reaches [`Federation`] from the feed, and goes on as one composed identity
//! ([`identity::Composed`](crate::identity::Composed)).

mod board;
mod declarations;
mod disk;
mod endpoint;
mod error;
mod fetch;
mod lists;
mod poll;
#[cfg(test)]
mod tests;

pub use board::{Board, DomainReport, ListReport};
pub use declarations::{Federation, Reach, Settings};
pub use endpoint::{BundleEndpoint, EndpointSettings, ServerProfile};
pub use error::Error;
pub use fetch::{Limits, is_private};
