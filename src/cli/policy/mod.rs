//! `wardgate policy`: policies as files: checked, tested, brought in from elsewhere, handed on. A door: it defines nothing itself.

mod command;
mod files;
mod validate;

pub(super) use command::{PolicyArgs, run};
