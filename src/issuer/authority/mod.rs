//! The authority of a trust domain: its keys, its certificates, what it issued, what it revoked, and how its root is replaced.
//! A door: it defines nothing itself.
//!
//! `authority.rs` signs; `state.rs` says which root and which intermediate do so; `files.rs` keeps that in a directory through
//! crashes; `custody.rs` is where private keys are; `rotation.rs` and `upstream.rs` change who signs.

#[expect(clippy::module_inception, reason = "the type that the room is named after")]
mod authority;
mod certificate;
mod custody;
mod files;
mod ledger;
mod lists;
mod loaded;
mod passphrase;
mod records;
mod rotation;
mod state;
#[cfg(test)]
mod tests;
mod upkeep;
mod upstream;

pub use authority::{Announcement, Authority, DEFAULT_TTL};
pub(super) use certificate::MAX_TTL;
pub use custody::{AuthorityKey, FileCustody, KeyCustody};
pub(super) use files::write as write_file;
pub use ledger::{Evidence, Issued};
pub use lists::{Reason, Revoked};
pub use passphrase::Passphrase;
pub use records::{Finding, Records, RootStatus};
pub use rotation::{RotationPolicy, Step};
pub use state::Phase;
pub use upkeep::Upkeep;
pub use upstream::Adopted;
