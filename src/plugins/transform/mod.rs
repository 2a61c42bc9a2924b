//! In what shape.

use crate::pipeline::Entry;

mod response_rewrite;

pub(super) const ROWS: &[Entry] = &[Entry::of::<response_rewrite::ResponseRewrite>()];
