//! How much.

use crate::pipeline::Entry;

mod counter;
mod limit_count;

pub(super) const ROWS: &[Entry] =
    &[Entry::of::<limit_count::LimitCount>().metadata::<limit_count::Metadata>()];
