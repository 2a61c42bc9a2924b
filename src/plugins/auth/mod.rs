//! Who calls.

use crate::pipeline::Entry;

mod key_auth;

pub(super) const ROWS: &[Entry] =
    &[Entry::of::<key_auth::KeyAuth>().credential::<key_auth::Credential>("key")];
