//! Who calls.

use crate::pipeline::Entry;

mod key_auth;
mod spiffe_auth;
mod spiffe_jwt;

pub(super) const ROWS: &[Entry] = &[
    Entry::of::<key_auth::KeyAuth>().credential::<key_auth::Credential>("key"),
    Entry::of::<spiffe_auth::SpiffeAuth>()
        .credential_by_identity::<spiffe_auth::Credential>("spiffe_id"),
    Entry::of::<spiffe_jwt::SpiffeJwt>().finding_by("spiffe-auth"),
];
