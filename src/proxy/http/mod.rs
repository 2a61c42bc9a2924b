//! HTTP: what a codec offers to the flow, and the flow itself.

use std::io;
use std::task::{Context, Poll};

use switch::Wish;

use crate::pipeline::Head;

pub(in crate::proxy) mod bounds;
pub(in crate::proxy) mod flow;
pub(in crate::proxy) mod forward;
pub(in crate::proxy) mod forwarded;
mod grpc;
pub mod h1;
pub(in crate::proxy) mod h2;
pub(in crate::proxy) mod headers;
mod hedge;
mod hooks;
mod inner;
pub(in crate::proxy) mod judge;
pub(in crate::proxy) mod origin;
pub(in crate::proxy) mod pace;
pub(in crate::proxy) mod server_name;
pub(in crate::proxy) mod switch;
mod trailers;
pub(in crate::proxy) mod transfer;
pub(in crate::proxy) mod tunnel;
pub(in crate::proxy) mod vigil;

/// Why a body cannot go on.
#[derive(Debug)]
pub(in crate::proxy) enum Broken {
    /// The connection failed or was closed too early.
    Io(io::Error),
    /// The other end broke the protocol.
    Protocol(String),
    /// The other end refused a stream before it did anything with it (RFC 9113 section 8.7).
    Refused,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Protocol(what) => f.write_str(what),
            Self::Refused => f.write_str("the stream was refused"),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What of a body is there to be taken.
pub(in crate::proxy) enum Piece<'a> {
    /// Some bytes; `consume` says how many of them were used.
    Data(&'a [u8]),
    /// The body is over.
    End,
}

/// One side of an exchange: a body comes out of it, and another goes into it.
pub(in crate::proxy) trait Side {
    /// The next bytes of the body that comes from this side.
    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Piece<'_>, Broken>>;
    /// `count` bytes of the last piece were used.
    fn consume(&mut self, count: usize);
    /// The trailers that came behind the body, if any. Valid after [`Piece::End`].
    fn trailers(&mut self) -> Option<http::HeaderMap> {
        None
    }
    /// Sends some bytes of the body that goes to this side; tells how many were taken.
    fn poll_send(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>>;
    /// Lets what was taken so far go out.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>>;
    /// Ends the body that goes to this side, and flushes.
    fn poll_finish(
        &mut self,
        context: &mut Context<'_>,
        trailers: Option<http::HeaderMap>,
    ) -> Poll<Result<(), Broken>>;
}

/// How the body behind a head is announced to the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) enum BodyLength {
    /// There is no body.
    #[default]
    None,
    /// So many bytes.
    Known(u64),
    /// Until it ends.
    Unknown,
}

/// The caller's side.
pub(in crate::proxy) trait Downstream: Side {
    /// How long the request's body is.
    fn request_body(&self) -> BodyLength;
    /// What the request asks to switch to.
    fn wish(&self) -> Option<Wish<'_>>;
    /// Begins the response; the head goes out with the first bytes of the body, or with the flush.
    fn start_response(&mut self, head: &Head, body: BodyLength) -> Result<(), Broken>;
    /// Answers with a switch; from the flush on, what comes and goes are the bytes of another protocol.
    fn start_tunnel(&mut self, head: &Head) -> Result<(), Broken>;
    /// Sends an interim response (1xx) where the protocol can.
    fn interim(&mut self, head: &Head);
    /// The caller waits for `100 Continue` before it sends the body, and we are about to read it.
    fn invite_body(&mut self);
    /// Ready when the caller has gone.
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()>;
    /// The response that is begun next is the connection's last, where the protocol has such a thing: what is left of the
    /// request's body will not be read.
    fn is_last(&mut self);
    /// The response cannot be completed: cut it off so that nobody takes it for whole.
    fn abort(&mut self);
    /// The connection may carry nothing more: not a byte goes out, not even those that the system holds.
    fn cut(&mut self);
    /// Does the caller speak HTTP/2?
    fn is_http2(&self) -> bool;
    /// Does the caller speak HTTP/1.0?
    fn is_http10(&self) -> bool {
        false
    }
    /// Bytes received and sent for this exchange so far.
    fn counts(&self) -> (u64, u64);
}
