//! The caller's side of one exchange over HTTP/2.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use h2::ext::Protocol;
use h2::server::SendResponse;
use http::header::HeaderValue;
use http::{HeaderMap, Response, StatusCode};

use super::body::{Receiving, Sending, announce, fields};
use crate::pipeline::{Head, Known};
use crate::proxy::http::switch::Wish;
use crate::proxy::http::{BodyLength, Broken, Downstream, Piece, Side};

/// The caller's side of one exchange over HTTP/2.
pub(super) struct Caller {
    pub(super) receiving: Receiving,
    pub(super) respond: SendResponse<Bytes>,
    pub(super) sending: Option<Sending>,
    pub(super) length: BodyLength,
    pub(super) is_head: bool,
    /// CONNECT, and its `:protocol`.
    pub(super) connect: Option<Option<Protocol>>,
    /// The stream carries another protocol.
    pub(super) is_tunnel: bool,
    /// `Expect: 100-continue`, not answered yet.
    pub(super) expects_continue: bool,
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl Side for Caller {
    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Piece<'_>, Broken>> {
        if self.connect.is_some() && !self.is_tunnel {
            // What comes is no body, and waits for the switch.
            return Poll::Ready(Ok(Piece::End));
        }
        self.receiving.poll_data(context)
    }

    fn consume(&mut self, count: usize) {
        self.received += count as u64;
        self.receiving.consume(count);
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.receiving.trailers.take()
    }

    fn poll_send(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        let Some(sending) = &mut self.sending else {
            return Poll::Ready(Err(Broken::Protocol("no response was begun".into())));
        };
        if self.is_head {
            return Poll::Ready(Ok(data.len()));
        }
        let count = ready!(sending.poll_send(context, data))?;
        self.sent += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(self.sending.as_mut().map_or(Ok(()), Sending::flush))
    }

    fn poll_finish(
        &mut self,
        _: &mut Context<'_>,
        trailers: Option<HeaderMap>,
    ) -> Poll<Result<(), Broken>> {
        Poll::Ready(self.sending.as_mut().map_or(Ok(()), |sending| sending.finish(trailers)))
    }
}

impl Downstream for Caller {
    fn request_body(&self) -> BodyLength {
        if self.connect.is_some() { BodyLength::None } else { self.length }
    }

    fn wish(&self) -> Option<Wish<'_>> {
        Some(match self.connect.as_ref()? {
            Some(protocol) => Wish::Extended(protocol.as_str()),
            None => Wish::Connect,
        })
    }

    fn start_tunnel(&mut self, head: &Head) -> Result<(), Broken> {
        self.start_response(head, BodyLength::Unknown)?;
        self.is_tunnel = true;
        Ok(())
    }

    fn start_response(&mut self, head: &Head, body: BodyLength) -> Result<(), Broken> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(head.status())
            .map_err(|_| Broken::Protocol("the status does not fit HTTP/2".into()))?;
        fields(head, response.headers_mut());
        let bodiless = self.is_head || head.status() == 304;
        if bodiless && body == BodyLength::None {
            if let Some(Ok(length)) = head.known(Known::ContentLength).map(HeaderValue::from_bytes)
            {
                response.headers_mut().insert(http::header::CONTENT_LENGTH, length);
            }
        } else {
            announce(response.headers_mut(), body);
        }
        let ended = bodiless || body == BodyLength::None;
        let stream = self.respond.send_response(response, ended)?;
        let left = match body {
            BodyLength::Known(length) if !ended => Some(length),
            _ => None,
        };
        self.sending = Some(Sending::new(stream, left, ended, None));
        Ok(())
    }

    fn interim(&mut self, head: &Head) {
        if let Ok(status) = StatusCode::from_u16(head.status()) {
            let mut response = Response::new(());
            *response.status_mut() = status;
            fields(head, response.headers_mut());
            let _ = self.respond.send_informational(response);
        }
    }

    fn invite_body(&mut self) {
        if std::mem::take(&mut self.expects_continue) {
            self.interim(&Head::response(100));
        }
    }

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.sending {
            Some(sending) => sending.stream.poll_reset(context).map(|_| ()),
            None => self.respond.poll_reset(context).map(|_| ()),
        }
    }

    fn abort(&mut self) {
        let reason = match (self.is_tunnel, &self.connect) {
            // RFC 9113 section 8.5, and RFC 8441 section 5.
            (true, Some(None)) => Reason::CONNECT_ERROR,
            (true, _) => Reason::CANCEL,
            (false, _) => Reason::INTERNAL_ERROR,
        };
        match &mut self.sending {
            Some(sending) => sending.stream.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
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
