//! In what shape.

use crate::pipeline::Entry;

mod body;
mod brotli;
mod compression;
mod echo;
mod gzip;
mod mocking;
mod response_rewrite;

pub(super) const ROWS: &[Entry] = &[
    Entry::of::<brotli::Brotli>(),
    Entry::of::<echo::Echo>(),
    Entry::of::<gzip::Gzip>(),
    Entry::of::<mocking::Mocking>(),
    Entry::of::<response_rewrite::ResponseRewrite>(),
];
