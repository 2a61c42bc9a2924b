//! Where to.

use crate::pipeline::Entry;

mod batch_requests;
mod fault_injection;
mod proxy_buffering;
mod proxy_cache;
mod proxy_control;
mod proxy_mirror;
mod proxy_rewrite;
mod public_api;
mod real_ip;
mod redirect;
mod request_id;
mod traffic_label;
mod traffic_split;
mod weights;

pub(super) const ROWS: &[Entry] = &[
    Entry::of::<batch_requests::BatchRequests>().metadata::<batch_requests::Metadata>(),
    Entry::of::<fault_injection::FaultInjection>(),
    Entry::of::<proxy_buffering::ProxyBuffering>(),
    Entry::of::<proxy_cache::ProxyCache>(),
    Entry::of::<proxy_control::ProxyControl>(),
    Entry::of::<public_api::PublicApi>().with_metadata_of("batch-requests"),
    Entry::of::<proxy_mirror::ProxyMirror>(),
    Entry::of::<proxy_rewrite::ProxyRewrite>(),
    Entry::of::<real_ip::RealIp>(),
    Entry::of::<redirect::Redirect>(),
    Entry::of::<request_id::RequestIdPlugin>(),
    Entry::of::<traffic_label::TrafficLabel>(),
    Entry::of::<traffic_split::TrafficSplit>(),
];
