//! The caller's side of one exchange over HTTP/2.

use std::task::{Context, Poll, ready};

use http::HeaderMap;

use super::message::{Body, write_fields, write_status};
use crate::pipeline::{Head, Known};
use crate::proxy::http::switch::Wish;
use crate::proxy::http::{BodyLength, Broken, Downstream, Piece, Side};
use crate::rt::http2::Reason;

/// The caller's side of one exchange over HTTP/2.
pub(super) struct Caller {
    pub(super) body: Body,
    pub(super) length: BodyLength,
    pub(super) is_head: bool,
    /// CONNECT, and its `:protocol`.
    pub(super) connect: Option<Option<String>>,
    /// The stream carries another protocol.
    pub(super) is_tunnel: bool,
    /// `Expect: 100-continue`, not answered yet.
    pub(super) expects_continue: bool,
    /// The response has begun.
    pub(super) has_begun: bool,
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl Side for Caller {
    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Piece<'_>, Broken>> {
        if self.connect.is_some() && !self.is_tunnel {
            // What comes is no body, and waits for the switch.
            return Poll::Ready(Ok(Piece::End));
        }
        self.body.poll_data(context)
    }

    fn consume(&mut self, count: usize) {
        self.received += count as u64;
        self.body.stream.consume(count);
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.body.trailers()
    }

    fn poll_send(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        if !self.has_begun {
            return Poll::Ready(Err(Broken::Protocol("no response was begun".into())));
        }
        if self.is_head {
            return Poll::Ready(Ok(data.len()));
        }
        let count = ready!(self.body.poll_send(context, data))?;
        self.sent += count as u64;
        Poll::Ready(Ok(count))
    }

    /// The connection's own task writes.
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(
        &mut self,
        _: &mut Context<'_>,
        trailers: Option<HeaderMap>,
    ) -> Poll<Result<(), Broken>> {
        Poll::Ready(if self.has_begun { self.body.finish(trailers) } else { Ok(()) })
    }
}

impl Downstream for Caller {
    fn request_body(&self) -> BodyLength {
        if self.connect.is_some() { BodyLength::None } else { self.length }
    }

    fn wish(&self) -> Option<Wish<'_>> {
        Some(match self.connect.as_ref()? {
            Some(protocol) => Wish::Extended(protocol),
            None => Wish::Connect,
        })
    }

    fn start_tunnel(&mut self, head: &Head) -> Result<(), Broken> {
        self.start_response(head, BodyLength::Unknown)?;
        self.is_tunnel = true;
        Ok(())
    }

    fn start_response(&mut self, head: &Head, body: BodyLength) -> Result<(), Broken> {
        if !(100..1000).contains(&head.status()) {
            return Err(Broken::Protocol("the status does not fit HTTP/2".into()));
        }
        let bodiless = self.is_head || head.status() == 304;
        let is_ended = bodiless || body == BodyLength::None;
        let announced = head.known(Known::ContentLength).filter(|_| bodiless);
        self.body.stream.send_head(is_ended, &mut |block| {
            write_status(block, head.status());
            write_fields(block, head, body);
            if let (BodyLength::None, Some(length)) = (body, announced) {
                block.field(b"content-length", length);
            }
        })?;
        self.body.announce(match body {
            BodyLength::Known(length) if !is_ended => Some(length),
            _ => None,
        });
        self.has_begun = true;
        Ok(())
    }

    fn interim(&mut self, head: &Head) {
        // Who has gone gets none.
        let _ = self.body.stream.send_head(false, &mut |block| {
            write_status(block, head.status());
            write_fields(block, head, BodyLength::None);
        });
    }

    /// A stream is one exchange, and its end is told with it.
    fn is_last(&mut self) {}

    fn invite_body(&mut self) {
        if std::mem::take(&mut self.expects_continue) {
            self.interim(&Head::response(100));
        }
    }

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.body.stream.poll_gone(context)
    }

    fn abort(&mut self) {
        self.body.stream.reset(match (self.is_tunnel, &self.connect) {
            // RFC 9113 section 8.5, and RFC 8441 section 5.
            (true, Some(None)) => Reason::CONNECT_ERROR,
            (true, _) => Reason::CANCEL,
            (false, _) => Reason::INTERNAL_ERROR,
        });
    }

    fn cut(&mut self) {
        self.abort();
    }

    fn is_http2(&self) -> bool {
        true
    }

    fn counts(&self) -> (u64, u64) {
        (self.received, self.sent)
    }
}
