//! `PeerStream`: an established connection, and who is at its other end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// An established connection, with the SPIFFE ID that its handshake verified.
#[derive(Debug)]
pub struct PeerStream<S> {
    /// The bytes, TLS taken off.
    pub stream: S,
    /// Who is at the other end.
    pub spiffe_id: Arc<str>,
}

/// The verified SPIFFE ID of a connection, as tonic carries it to the service.
#[derive(Clone, Debug)]
pub struct VerifiedPeer(pub(super) Arc<str>);

impl VerifiedPeer {
    /// The SPIFFE ID.
    pub fn spiffe_id(&self) -> &Arc<str> {
        &self.0
    }
}

impl<S> Connected for PeerStream<S> {
    type ConnectInfo = VerifiedPeer;
    fn connect_info(&self) -> VerifiedPeer {
        VerifiedPeer(self.spiffe_id.clone())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PeerStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeerStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
