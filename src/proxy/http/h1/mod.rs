//! HTTP/1.1, ours: strict framing, one buffer in, one write out. A door: it defines nothing itself.

mod chunk;
mod connection;
mod head;
mod serve;
mod upstream;
mod write;

pub use chunk::{ChunkError, Chunks, Step};
pub(in crate::proxy) use connection::Http1;
pub use head::{
    Framing, MAX_FIELDS, MAX_HEAD, Refused, RequestFacts, ResponseFacts, read_request,
    read_response,
};
pub(in crate::proxy) use head::{check_host, check_target, names_trailers};
pub(in crate::proxy) use serve::serve;
pub(in crate::proxy) use upstream::UpstreamHttp1;
pub(in crate::proxy) use write::RequestLine;
