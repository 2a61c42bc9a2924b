//! Watch.

use crate::pipeline::Entry;

pub(super) const ROWS: &[Entry] = &[];
