//! `wardgate explain`: why something was refused, and the smallest change that would allow it. A door: it defines nothing itself.

mod advice;
mod command;
mod denial;
mod standing;

pub(super) use command::{ExplainArgs, run};
