//! In what shape.

use crate::pipeline::Entry;

mod body;
mod echo;
mod mocking;
mod response_rewrite;

pub(super) const ROWS: &[Entry] = &[
    Entry::of::<echo::Echo>(),
    Entry::of::<mocking::Mocking>(),
    Entry::of::<response_rewrite::ResponseRewrite>(),
];
