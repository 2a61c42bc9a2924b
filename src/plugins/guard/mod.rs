//! What may pass.

use crate::pipeline::Entry;

mod acl;
mod consumer_restriction;
mod ip_restriction;

pub(super) const ROWS: &[Entry] = &[
    Entry::of::<acl::Acl>(),
    Entry::of::<consumer_restriction::ConsumerRestriction>(),
    Entry::of::<ip_restriction::IpRestriction>(),
];
