//! `wardgate policy`: policies as files: checked, tested, brought in from elsewhere, handed on. A door: it defines nothing itself.

mod command;
mod coverage;
mod diff;
mod export;
mod files;
mod history;
mod import;
mod lint;
mod past;
mod replay;
mod sign;
mod suggest;
mod test;
mod validate;

pub(super) use command::{PolicyArgs, run};
pub(super) use files::{SourceText, read_policies, read_texts, sound_policies};
pub(super) use past::moment;
