//! What a connection of HTTP/2 has on either side: bounds, and its bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mtls::Proof;
use crate::proxy::http::h1::HeadLimits;
use crate::rt::http2::Settings;
use crate::upstream;

/// What we tell a peer whose heads have these limits, with so many streams of its own.
pub(super) fn settings(limits: HeadLimits, streams: u32) -> Settings {
    Settings {
        stream_window: 256 * 1024,
        connection_window: 1024 * 1024,
        streams,
        list_size: limits.bytes,
        send_buffer: 128 * 1024,
        extended_connect: true,
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
