//! Where to.

use crate::pipeline::Entry;

mod fault_injection;
mod proxy_rewrite;
mod real_ip;
mod redirect;
mod request_id;

pub(super) const ROWS: &[Entry] = &[
    Entry::of::<fault_injection::FaultInjection>(),
    Entry::of::<proxy_rewrite::ProxyRewrite>(),
    Entry::of::<real_ip::RealIp>(),
    Entry::of::<redirect::Redirect>(),
    Entry::of::<request_id::RequestIdPlugin>(),
];
