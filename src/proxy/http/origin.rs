//! `Origin`: the upstream's side of one exchange, in whichever protocol it speaks.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::h1::{HeadLimits, Http1, RequestLine, UpstreamHttp1};
use super::h2::UpstreamHttp2;
use super::{BodyLength, Broken, Piece, Side};
use crate::pipeline::Head;

/// Interim responses that one request may get.
pub(super) const MAX_INTERIM: u8 = 8;

/// What an upstream answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Answer {
    /// A 1xx; the final answer is still to come.
    Interim,
    /// The final one, and its body.
    Final(BodyLength),
    /// 101, or a success that answers CONNECT: from here on the bytes belong to another protocol.
    Switched,
}

/// The upstream's side of one exchange.
#[expect(clippy::large_enum_variant, reason = "the common one costs a request no allocation")]
pub(in crate::proxy) enum Origin {
    Http1(UpstreamHttp1),
    Http2(Box<UpstreamHttp2>),
}

impl Origin {
    pub(in crate::proxy) fn http1(http: Http1, limits: HeadLimits) -> Self {
        Self::Http1(UpstreamHttp1::new(http, limits))
    }

    /// Begins the request; its head goes out with the first bytes of the body, or with the flush.
    pub(in crate::proxy) fn send(
        &mut self,
        line: &RequestLine<'_>,
        head: &Head,
    ) -> Result<(), Broken> {
        match self {
            Self::Http1(origin) => {
                origin.send(line, head);
                Ok(())
            }
            Self::Http2(origin) => origin.send(line, head),
        }
    }

    /// The connection carries no HTTP: the request is not sent, and taken for answered.
    pub(in crate::proxy) fn switch_at_once(&mut self) {
        if let Self::Http1(origin) = self {
            origin.switch_at_once();
        }
    }

    /// Has the peer of a connection of HTTP/2 said that it knows extended CONNECT (RFC 8441 section 3)?
    pub(in crate::proxy) fn offers_extended_connect(&self) -> bool {
        matches!(self, Self::Http2(origin) if origin.offers_extended_connect())
    }

    /// The answer's head, once it is there; `method` is the request's.
    pub(in crate::proxy) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        method: &str,
        head: &mut Head,
    ) -> Poll<Result<Answer, Broken>> {
        match self {
            Self::Http1(origin) => origin.poll_head(context, method, head),
            Self::Http2(origin) => origin.poll_head(context, method, head),
        }
    }

    /// All that was taken of the request's body, for another try; `None` when that is not kept.
    pub(in crate::proxy) fn hand_back(&mut self) -> Option<Bytes> {
        match self {
            Self::Http1(origin) => origin.hand_back(),
            Self::Http2(origin) => origin.hand_back(),
        }
    }

    /// Can the upstream not have acted on the request? Either it says so, or it closed before a byte of it arrived there: then
    /// the request may be sent again, whatever its method (RFC 9110 section 9.2.2).
    pub(in crate::proxy) fn is_untouched(&self, broken: &Broken) -> bool {
        match (self, broken) {
            (_, Broken::Refused) => true,
            (Self::Http1(origin), Broken::Io(cause)) => origin.is_untouched(cause),
            _ => false,
        }
    }

    /// Has a byte of an answer arrived? Then the upstream has acted on the request.
    pub(in crate::proxy) fn has_answered(&self) -> bool {
        match self {
            Self::Http1(origin) => origin.has_answered(),
            Self::Http2(_) => false,
        }
    }
}

impl Origin {
    /// Not a byte more goes out, not even those that the system holds. A shared connection sees to that itself.
    pub(in crate::proxy) fn reset_on_close(&self) {
        if let Self::Http1(origin) = self {
            origin.http.stream.reset_on_close();
        }
    }
}

impl Side for Origin {
    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Piece<'_>, Broken>> {
        match self {
            Self::Http1(origin) => origin.http.poll_data(context),
            Self::Http2(origin) => origin.poll_data(context),
        }
    }

    fn consume(&mut self, count: usize) {
        match self {
            Self::Http1(origin) => origin.http.consume(count),
            Self::Http2(origin) => origin.consume(count),
        }
    }

    fn trailers(&mut self) -> Option<http::HeaderMap> {
        match self {
            Self::Http1(origin) => origin.http.trailers(),
            Self::Http2(origin) => origin.trailers(),
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        match self {
            Self::Http1(origin) => origin.http.poll_send(context, data),
            Self::Http2(origin) => origin.poll_send(context, data),
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self {
            Self::Http1(origin) => origin.http.poll_flush(context),
            Self::Http2(origin) => origin.poll_flush(context),
        }
    }

    fn poll_finish(
        &mut self,
        context: &mut Context<'_>,
        trailers: Option<http::HeaderMap>,
    ) -> Poll<Result<(), Broken>> {
        match self {
            Self::Http1(origin) => origin.http.poll_finish(context, trailers),
            Self::Http2(origin) => origin.poll_finish(context, trailers),
        }
    }
}

pub(super) fn early_end() -> Broken {
    Broken::Io(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the upstream closed the connection before it answered",
    ))
}
