//! Where to.

use crate::pipeline::Entry;

mod proxy_rewrite;
mod redirect;
mod request_id;

pub(super) const ROWS: &[Entry] = &[
    Entry::of::<proxy_rewrite::ProxyRewrite>(),
    Entry::of::<redirect::Redirect>(),
    Entry::of::<request_id::RequestIdPlugin>(),
];
