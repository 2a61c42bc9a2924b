//! `wardgate policy`: policies as files: checked, tested, brought in from elsewhere, handed on. A door: it defines nothing itself.

mod command;
mod coverage;
mod export;
mod files;
mod history;
mod import;
mod past;
mod replay;
mod suggest;
mod test;
mod validate;

pub(super) use command::{PolicyArgs, run};
