//! `wardgate identity`: make an authority, issue identities from it, look into certificates. A door: it defines nothing itself.
//!
//! `command.rs` holds the verbs and their words; each other file does one family of them.

mod authority;
mod bundle;
mod command;
mod deny;
mod federate;
mod init;
mod inspect;
mod issue;
mod join;
mod revoke;
mod rotate_root;
mod text;
mod upstream;
mod whois;

pub(super) use bundle::read_bundle;
pub(super) use command::{IdentityArgs, run, trust_domain};
