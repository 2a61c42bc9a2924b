//! Fields and bodies of HTTP/2 messages, whichever side they come from.

use std::task::{Context, Poll, ready};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::pipeline::{Head, Known};
use crate::proxy::http::{BodyLength, Broken, Piece};
use crate::rt::http2::{Arrived, Block, Error, Fields, Stream};

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused => Self::Refused,
            Error::Io(kind, cause) => Self::Io(std::io::Error::new(kind, cause)),
            other => Self::Protocol(other.to_string()),
        }
    }
}

/// A message's body, either way over one stream.
pub(super) struct Body {
    pub(super) stream: Stream,
    /// Bytes that are still to go out, where that was announced.
    left: Option<u64>,
    /// What came behind the body.
    trailers: Option<HeaderMap>,
}

impl Body {
    pub(super) fn of(stream: Stream) -> Self {
        Self { stream, left: None, trailers: None }
    }

    /// So many bytes will go out, if that is known.
    pub(super) fn announce(&mut self, left: Option<u64>) {
        self.left = left;
    }

    pub(super) fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Piece<'_>, Broken>> {
        // Borrowed twice, one after the other, since the end needs the stream again.
        if matches!(ready!(self.stream.poll_data(context))?, Arrived::End) {
            if let Some(fields) = self.stream.trailers() {
                self.trailers = to_map(&fields);
                self.stream.recycle(fields);
            }
            return Poll::Ready(Ok(Piece::End));
        }
        match ready!(self.stream.poll_data(context))? {
            Arrived::Data(data) => Poll::Ready(Ok(Piece::Data(data))),
            Arrived::End => Poll::Ready(Ok(Piece::End)),
        }
    }

    pub(super) fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    pub(super) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, Broken>> {
        if self.left.is_some_and(|left| left < data.len() as u64) {
            return Poll::Ready(Err(Broken::Protocol("the body is longer than announced".into())));
        }
        let count = ready!(self.stream.poll_send(context, data))?;
        if let Some(left) = &mut self.left {
            *left -= count as u64;
        }
        Poll::Ready(Ok(count))
    }

    pub(super) fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        if self.stream.is_sent() {
            return Ok(());
        }
        if self.left.is_some_and(|left| left > 0) {
            return Err(Broken::Protocol("the body is shorter than announced".into()));
        }
        match trailers {
            None => self.stream.finish()?,
            Some(trailers) => self.stream.send_head(true, &mut |block| {
                for (name, value) in &trailers {
                    block.field(name.as_str().as_bytes(), value.as_bytes());
                }
            })?,
        }
        Ok(())
    }
}

/// Trailers as both versions have them.
fn to_map(fields: &Fields) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in fields.iter() {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    (!map.is_empty()).then_some(map)
}

/// The fields of a head, without those that belong to HTTP/1.1's framing, and the body's length where it is known. What a
/// plugin made up and no wire may carry is left out by the block.
pub(super) fn write_fields(block: &mut Block<'_>, head: &Head, body: BodyLength) {
    for field in head.fields() {
        if !field.known.is_hop_by_hop() && field.known != Known::ContentLength {
            block.field(field.name.as_bytes(), field.value);
        }
    }
    if let BodyLength::Known(length) = body {
        block.field(b"content-length", itoa::Buffer::new().format(length).as_bytes());
    }
}

/// A response's status as a pseudo-header field.
pub(super) fn write_status(block: &mut Block<'_>, status: u16) {
    block.field(b":status", itoa::Buffer::new().format(status).as_bytes());
}

pub(super) fn length_of(head: &Head, is_ended: bool) -> BodyLength {
    let announced = head.known(Known::ContentLength);
    match announced.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()) {
        _ if is_ended => BodyLength::None,
        Some(length) => BodyLength::Known(length),
        None => BodyLength::Unknown,
    }
}
