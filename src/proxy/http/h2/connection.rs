//! What a connection of HTTP/2 has on either side: bounds, its turn among the tasks, its bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mtls::Proof;
use crate::proxy::http::h1::HeadLimits;
use crate::upstream;

/// Bytes of a body that may be on their way on one stream, and on one connection.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
pub(super) const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes that are queued for a peer that does not take them.
pub(super) const SEND_BUFFER: usize = 128 * 1024;

/// Bytes of a head's decoded fields, with 32 more for each, as the setting of that name counts them.
pub(super) fn list_size(limits: HeadLimits) -> u32 {
    u32::try_from(limits.bytes).unwrap_or(u32::MAX)
}

/// Puts a connection's turn behind the tasks that are ready now, so that what they send goes out in one write.
#[derive(Default)]
pub(super) struct Turn {
    yielded: bool,
}

impl Turn {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.yielded = !self.yielded;
        if self.yielded {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// A connection's bytes, as long as it may carry any.
pub(super) struct Proved {
    stream: upstream::Stream,
    proof: Option<Arc<Proof>>,
}

impl Proved {
    pub(super) fn new(stream: upstream::Stream, proof: Option<Arc<Proof>>) -> Self {
        Self { stream, proof }
    }

    fn is_cut(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.is_cut())
    }

    /// Its bytes; an error when they are not to be moved any more.
    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut upstream::Stream>> {
        match self.is_cut() {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(Pin::new(&mut self.get_mut().stream)),
        }
    }
}

impl AsyncRead for Proved {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Proved {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, data)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

impl Drop for Proved {
    fn drop(&mut self) {
        if self.is_cut() {
            // Not a byte more goes out, not even those that the system holds.
            self.stream.reset_on_close();
        }
    }
}
