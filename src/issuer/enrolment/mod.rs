//! Enrolment from other machines: a proof against an identity, once; then renewal with the identity itself. A door: it defines
//! nothing itself.
//!
//! `service.rs` is the issuer's side behind `listener.rs`; `client.rs` the other one, which `source.rs` keeps current and
//! `state.rs` keeps on disk.

mod client;
mod key;
mod listener;
mod message;
mod service;
mod settings;
mod source;
mod state;
#[cfg(test)]
mod tests;
mod throttle;
mod ticket;

pub use client::{Enrolled, IssuerClient, Proof, issuer_id};
pub use key::{certificate_request, new_key};
pub use listener::Enrolment;
pub use message::TrustNews;
pub use service::EnrolmentParts;
pub use settings::EnrolSettings;
pub use source::EnrolSource;
