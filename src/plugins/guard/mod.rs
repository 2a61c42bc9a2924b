//! What may pass.

use crate::pipeline::Entry;

mod ip_restriction;

pub(super) const ROWS: &[Entry] = &[Entry::of::<ip_restriction::IpRestriction>()];
