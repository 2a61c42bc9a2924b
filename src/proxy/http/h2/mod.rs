//! HTTP/2: the `h2` crate driven directly. A door: it defines nothing itself.

mod body;
mod caller;
mod connection;
mod request;
mod serve;
mod upstream;

pub(in crate::proxy) use serve::serve;
pub(in crate::proxy) use upstream::{UpstreamHttp2, originate};
