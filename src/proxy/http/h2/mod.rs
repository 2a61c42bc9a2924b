//! HTTP/2 over our own frames (`rt::http2`): what its messages mean to the flow. A door: it defines nothing itself.

mod caller;
mod connection;
mod message;
mod request;
mod serve;
mod upstream;

pub(in crate::proxy) use serve::serve;
pub(in crate::proxy) use upstream::{UpstreamHttp2, originate};
