//! How much.

use crate::pipeline::Entry;

mod amount;
mod api_breaker;
mod count_settings;
mod counter;
mod keyed;
mod limit_conn;
mod limit_count;
mod limit_req;
mod place;
mod refusal;
mod remote;
mod under_way;
mod workflow;

pub(super) const ROWS: &[Entry] = &[
    Entry::of::<api_breaker::ApiBreaker>(),
    Entry::of::<limit_conn::LimitConn>(),
    Entry::of::<limit_count::LimitCount>().metadata::<limit_count::Metadata>(),
    Entry::of::<limit_req::LimitReq>(),
    Entry::of::<workflow::Workflow>(),
];
