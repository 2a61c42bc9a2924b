//! Watch.

use crate::pipeline::Entry;

mod prometheus;

pub(super) const ROWS: &[Entry] =
    &[Entry::of::<prometheus::Prometheus>().metadata::<prometheus::Metadata>().preferring_route()];
