//! `RequestBody`: the request's body for hooks that ask for it, read when they do and not before.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use parking_lot::Mutex;

use super::{Exchange, Fault};

/// The part of a request's body that hooks have asked for. Whoever runs the hooks brings it in while they wait; it still goes
/// upstream.
///
/// There is one only while a chain runs whose plugins said that they read bodies ([`HooksOf::reading_body`]).
///
/// [`HooksOf::reading_body`]: super::HooksOf::reading_body
#[derive(Clone, Debug, Default)]
pub struct RequestBody(Option<Arc<Mutex<Reading>>>);

#[derive(Debug, Default)]
struct Reading {
    bytes: BytesMut,
    /// The bytes, when they are all there; shared with what goes upstream.
    whole: Option<Bytes>,
    trailers: Option<HeaderMap>,
    failure: Option<Unread>,
    /// The hook that waits, and how many bytes it takes.
    waiting: Option<(u64, Waker)>,
}

impl Reading {
    fn length(&self) -> u64 {
        self.whole.as_ref().map_or(self.bytes.len(), Bytes::len) as u64
    }
}

/// Why a hook does not get the body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It has more bytes than the hook, or the gateway, takes.
    #[error("the request's body is too large")]
    TooLarge,
    /// The caller took too long to send it.
    #[error("the request's body took too long")]
    Late,
    /// It broke off, or breaks the rules of the protocol.
    #[error("the request's body is malformed: {0}")]
    Malformed(String),
    /// The hook's plugin never said that it reads bodies.
    #[error("nobody brings the request's body in")]
    Unannounced,
}

impl From<Unread> for Fault {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::TooLarge => Self::client(413, "the request's body is too large"),
            Unread::Late => Self::client(408, "the request's body took too long"),
            Unread::Malformed(cause) => {
                Self { cause, ..Self::client(400, "the request's body is malformed") }
            }
            Unread::Unannounced => {
                Self::gateway("the request's body cannot be read", unread.to_string())
            }
        }
    }
}

/// What was read of a body: it goes upstream before the rest.
#[derive(Debug, Default)]
pub struct ReadBody {
    /// The bytes.
    pub bytes: Bytes,
    /// Are these all?
    pub is_over: bool,
    /// What came behind them.
    pub trailers: Option<HeaderMap>,
}

impl Exchange {
    /// The whole body of the request, if it has no more than `most` bytes. Waits for the caller to send it. The request can
    /// still be forwarded.
    ///
    /// # Errors
    /// It is longer, late or broken.
    pub async fn read_body(&self, most: u64) -> Result<Bytes, Unread> {
        let announced = self.request.text("content-length").and_then(|text| text.parse().ok());
        if announced.is_some_and(|length: u64| length > most) {
            return Err(Unread::TooLarge);
        }
        let reading = self.body.0.as_ref().ok_or(Unread::Unannounced)?;
        poll_fn(|context| {
            let mut reading = reading.lock();
            if reading.length() > most {
                return Poll::Ready(Err(Unread::TooLarge));
            }
            if let Some(failure) = &reading.failure {
                return Poll::Ready(Err(failure.clone()));
            }
            if let Some(whole) = &reading.whole {
                return Poll::Ready(Ok(whole.clone()));
            }
            reading.waiting = Some((most, context.waker().clone()));
            Poll::Pending
        })
        .await
    }
}

impl RequestBody {
    /// Nothing of it has been read.
    pub fn unread() -> Self {
        Self(Some(Arc::default()))
    }

    /// Can hooks ask for it?
    pub fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// Does a hook wait for more of it?
    pub fn is_wanted(&self) -> bool {
        self.0.as_ref().is_some_and(|reading| {
            let reading = reading.lock();
            reading.waiting.is_some() && reading.whole.is_none() && reading.failure.is_none()
        })
    }

    /// Bytes that were read so far.
    pub fn length(&self) -> u64 {
        self.0.as_ref().map_or(0, |reading| reading.lock().length())
    }

    /// More of it came.
    pub fn add(&self, data: &[u8]) {
        self.change(|reading| reading.bytes.extend_from_slice(data));
    }

    /// It is over.
    pub fn end(&self, trailers: Option<HeaderMap>) {
        self.change(|reading| {
            (reading.whole, reading.trailers) = (Some(reading.bytes.split().freeze()), trailers);
        });
    }

    /// It will never be over.
    pub fn fail(&self, failure: Unread) {
        self.change(|reading| reading.failure = Some(failure));
    }

    fn change(&self, change: impl FnOnce(&mut Reading)) {
        let Some(reading) = &self.0 else { return };
        let mut reading = reading.lock();
        change(&mut reading);
        if let Some((_, waker)) = reading.waiting.take() {
            waker.wake();
        }
    }

    /// What goes upstream before the rest of the body. Hooks cannot ask for it any more.
    pub fn take(&mut self) -> Option<ReadBody> {
        let reading = self.0.take()?;
        let mut reading = reading.lock();
        let trailers = reading.trailers.take();
        Some(match reading.whole.take() {
            Some(bytes) => ReadBody { bytes, is_over: true, trailers },
            None => ReadBody { bytes: reading.bytes.split().freeze(), is_over: false, trailers },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;

    #[tokio::test]
    async fn a_hook_gets_the_whole_body_and_it_still_goes_upstream() {
        let mut exchange = exchange("POST", "/", "h");
        exchange.body = RequestBody::unread();
        let body = exchange.body.clone();
        let reader = exchange.read_body(10);
        let writer = async {
            while !body.is_wanted() {
                tokio::task::yield_now().await;
            }
            body.add(b"hello ");
            assert_eq!(body.length(), 6);
            body.add(b"you");
            body.end(None);
        };
        let (read, ()) = tokio::join!(reader, writer);
        assert_eq!(read.unwrap(), "hello you");
        assert_eq!(exchange.read_body(10).await.unwrap(), "hello you", "and once more");
        assert_eq!(exchange.read_body(8).await, Err(Unread::TooLarge));
        let taken = exchange.body.take().unwrap();
        assert_eq!((&taken.bytes[..], taken.is_over), (&b"hello you"[..], true));
        assert_eq!(exchange.read_body(10).await, Err(Unread::Unannounced));
    }

    #[tokio::test]
    async fn what_announces_too_much_is_not_even_waited_for() {
        let mut exchange = exchange("POST", "/", "h");
        exchange.request.append("Content-Length", b"11");
        exchange.body = RequestBody::unread();
        assert_eq!(exchange.read_body(10).await, Err(Unread::TooLarge));
        assert_eq!(Fault::from(Unread::TooLarge).status, 413);
        exchange.body.fail(Unread::Late);
        assert_eq!(exchange.read_body(11).await, Err(Unread::Late));
    }
}
