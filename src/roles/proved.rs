//! `Proved`: a connection between Wardgate's own parts that ends when what it rests on falls, as those of workloads do.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::identity::{Identity, Peer};
use crate::mtls::Lapse;
use crate::rt::{Live, unix_seconds};

/// How long at most between two looks at the clock: what is asleep meanwhile is only late by this.
const LOOK_EVERY: u64 = 30;

type Ended = Pin<Box<dyn Future<Output = Lapse> + Send>>;

/// A stream that breaks off when the peer is not proved any more.
pub(super) struct Proved<S> {
    stream: S,
    ended: Ended,
    lapsed: Option<Lapse>,
}

impl<S> Proved<S> {
    /// Over a stream whose handshake proved `peer` to `own`, with the identity followed from there on.
    pub(super) fn new(
        stream: S,
        peer: Arc<Peer>,
        own: &Arc<Identity>,
        identity: Live<Identity>,
    ) -> Self {
        let ended = Box::pin(lapse(peer, own.svid.not_after, identity));
        Self { stream, ended, lapsed: None }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.lapsed.is_none()
            && let Poll::Ready(lapse) = self.ended.as_mut().poll(context)
        {
            tracing::warn!("a connection of a part of ours ends: {}", lapse.code());
            self.lapsed = Some(lapse);
        }
        match self.lapsed {
            None => Ok(()),
            Some(lapse) => Err(io::Error::other(format!("not proved any more: {}", lapse.code()))),
        }
    }
}

/// Waits until one of the conditions falls.
async fn lapse(peer: Arc<Peer>, own_end: i64, mut identity: Live<Identity>) -> Lapse {
    loop {
        let now = unix_seconds();
        let current = identity.load();
        if current.is_withdrawn() {
            return Lapse::Withdrawn;
        }
        if own_end <= now {
            return Lapse::OwnSvidExpired;
        }
        let since = u64::try_from(now).unwrap_or_default();
        let at = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(since));
        if let Err(flaw) = current.trust.verifier().again(&peer, at) {
            return Lapse::from(&flaw);
        }
        let left = u64::try_from(own_end.min(peer.not_after) - now).unwrap_or_default();
        let look_again = tokio::time::sleep(Duration::from_secs(left.clamp(1, LOOK_EVERY)));
        tokio::select! {
            changed = identity.changed() => {
                if !changed {
                    // Whoever kept the identity is gone: the process ends.
                    return Lapse::Withdrawn;
                }
            }
            () = look_again => {}
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Proved<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Proved<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Whoever only writes is woken by the reading side, which always waits.
        if let Some(lapse) = self.lapsed {
            return Poll::Ready(Err(io::Error::other(lapse.code())));
        }
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
