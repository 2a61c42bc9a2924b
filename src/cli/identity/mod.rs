//! `wardgate identity`: make an authority, issue identities from it, look into certificates. A door: it defines nothing itself.
//!
//! `command.rs` holds the verbs and their words; each other file does one family of them.

mod command;
mod init;
mod inspect;
mod issue;
mod join;
mod text;

pub(super) use command::{IdentityArgs, run};
