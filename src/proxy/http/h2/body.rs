//! Bodies and fields of HTTP/2 messages, whichever side they come from.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::pipeline::{Head, Known};
use crate::proxy::http::{BodyLength, Broken, Piece};

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        // RFC 9113 sections 6.8 and 8.7: a goodbye fails only the streams that were not looked at.
        let refused = error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM);
        if error.is_remote() && refused {
            return Self::Refused;
        }
        Self::Protocol(error.to_string())
    }
}

/// A body that comes over a stream.
pub(super) struct Receiving {
    pub(super) stream: RecvStream,
    piece: Bytes,
    pub(super) trailers: Option<HeaderMap>,
    in_trailers: bool,
}

impl Receiving {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, piece: Bytes::new(), trailers: None, in_trailers: false }
    }

    pub(super) fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Piece<'_>, Broken>> {
        while self.piece.is_empty() {
            if self.in_trailers {
                self.trailers = ready!(self.stream.poll_trailers(context))?;
                return Poll::Ready(Ok(Piece::End));
            }
            match ready!(self.stream.poll_data(context)) {
                Some(piece) => self.piece = piece?,
                None => self.in_trailers = true,
            }
        }
        Poll::Ready(Ok(Piece::Data(&self.piece)))
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.piece.advance(count);
        // Only what was passed on makes room for more: that is the back pressure.
        let _ = self.stream.flow_control().release_capacity(count);
    }
}

/// A body that goes over a stream.
pub(super) struct Sending {
    pub(super) stream: SendStream<Bytes>,
    /// Bytes that are still to come, where that was announced.
    left: Option<u64>,
    /// The last of the bytes that were announced: trailers may follow, and a stream should not need one more frame to end.
    last: Option<Bytes>,
    pub(super) is_over: bool,
    /// What was sent, as long as it may have to be sent again.
    pub(super) kept: Option<Vec<Bytes>>,
}

/// Bytes of a request's body that are kept until the answer begins: the stream may be refused untouched.
const KEPT: usize = 64 * 1024;

impl Sending {
    /// The body behind a head that has been sent; `left` bytes of it where that was announced.
    pub(super) fn new(
        stream: SendStream<Bytes>,
        left: Option<u64>,
        is_over: bool,
        kept: Option<Vec<Bytes>>,
    ) -> Self {
        Self { stream, left, last: None, is_over, kept }
    }

    pub(super) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, Broken>> {
        if self.left.is_some_and(|left| left < data.len() as u64) {
            return Poll::Ready(Err(Broken::Protocol("the body is longer than announced".into())));
        }
        if self.stream.capacity() == 0 {
            self.stream.reserve_capacity(data.len());
            loop {
                match ready!(self.stream.poll_capacity(context)) {
                    Some(Ok(0)) => {}
                    Some(Ok(_)) => break,
                    Some(Err(error)) => return Poll::Ready(Err(error.into())),
                    None => {
                        return Poll::Ready(Err(Broken::Protocol("the stream is closed".into())));
                    }
                }
            }
        }
        let count = self.stream.capacity().min(data.len());
        if let Some(left) = &mut self.left {
            *left -= count as u64;
        }
        let piece = Bytes::copy_from_slice(&data[..count]);
        if let Some(kept) = &mut self.kept {
            if kept.iter().map(Bytes::len).sum::<usize>() + count <= KEPT && kept.len() < 64 {
                kept.push(piece.clone());
            } else {
                self.kept = None;
            }
        }
        if self.left == Some(0) {
            self.last = Some(piece);
        } else {
            self.stream.send_data(piece, false)?;
        }
        Poll::Ready(Ok(count))
    }

    /// Lets go what was held back for the end, which does not come yet.
    pub(super) fn flush(&mut self) -> Result<(), Broken> {
        match self.last.take() {
            Some(last) => Ok(self.stream.send_data(last, false)?),
            None => Ok(()),
        }
    }

    pub(super) fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        if self.is_over {
            return Ok(());
        }
        if self.left.is_some_and(|left| left > 0) {
            return Err(Broken::Protocol("the body is shorter than announced".into()));
        }
        self.is_over = true;
        match trailers {
            Some(trailers) => {
                self.flush()?;
                self.stream.send_trailers(trailers)?;
            }
            None => self.stream.send_data(self.last.take().unwrap_or_default(), true)?,
        }
        Ok(())
    }
}

/// Fields of a head for a message of HTTP/2: lower case, no field of HTTP/1.1's framing.
pub(super) fn fields(head: &Head, map: &mut HeaderMap) {
    for field in head.fields() {
        if field.known.is_hop_by_hop() || field.known == Known::ContentLength {
            continue;
        }
        // Names and values were checked when they came in; what a plugin made up and no wire may carry is left out.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value))
        {
            map.append(name, value);
        }
    }
}

pub(super) fn announce(map: &mut HeaderMap, body: BodyLength) {
    if let BodyLength::Known(length) = body {
        map.insert(http::header::CONTENT_LENGTH, length.into());
    }
}

pub(super) fn length_of(head: &Head, ended: bool) -> BodyLength {
    let announced = head.known(Known::ContentLength);
    match announced.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()) {
        _ if ended => BodyLength::None,
        Some(length) => BodyLength::Known(length),
        None => BodyLength::Unknown,
    }
}
