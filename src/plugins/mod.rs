//! Every plugin of this build.

use crate::pipeline::Entry;

/// The table of every plugin.
pub fn all() -> &'static [Entry] {
    &[]
}
