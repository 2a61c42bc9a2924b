//! Copying bytes both ways once nobody reads messages any more: half-close, idle limit.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::buffer::Buffer;
use super::connection::Served;
use super::http::judge::{ConnectionStanding, Kept};
use super::http::vigil::{Alarm, Vigil};
use super::worker::Worker;
use crate::mtls::{Lapse, Proof};
use crate::pipeline::Client;
use crate::rt::Watchdog;
use crate::upstream::{Busy, Stream};

/// The upstream's half of a tunnel.
pub(in crate::proxy) struct Tunnel {
    pub(in crate::proxy) stream: Stream,
    /// What it sent behind its 101.
    pub(in crate::proxy) early: Vec<u8>,
    /// The protocol that is spoken from here on.
    pub(in crate::proxy) protocol: Option<Vec<u8>>,
    /// What its connection rests on.
    pub(in crate::proxy) proof: Option<Arc<Proof>>,
    /// What policy decided on, and which policy did.
    pub(in crate::proxy) kept: Kept,
    pub(in crate::proxy) decided: u64,
    pub(in crate::proxy) _busy: Busy,
}

/// One direction.
struct Direction {
    buffer: Buffer,
    source_ended: bool,
    sink_ended: bool,
    moved: u64,
}

impl Direction {
    fn new(early: &[u8]) -> Self {
        let mut buffer = Buffer::default();
        if !early.is_empty() {
            buffer.extend(early);
        }
        Self { buffer, source_ended: false, sink_ended: false, moved: 0 }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        source: &mut Stream,
        sink: &mut Stream,
    ) -> Poll<io::Result<()>> {
        loop {
            while !self.buffer.is_empty() {
                let count = ready!(Pin::new(&mut *sink).poll_write(context, self.buffer.data()))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.buffer.consume(count);
                self.moved += count as u64;
            }
            if self.source_ended {
                if !self.sink_ended {
                    ready!(Pin::new(&mut *sink).poll_shutdown(context))?;
                    self.sink_ended = true;
                }
                return Poll::Ready(Ok(()));
            }
            let mut target = ReadBuf::new(self.buffer.space());
            match Pin::new(&mut *source).poll_read(context, &mut target) {
                Poll::Ready(read) => {
                    read?;
                    let count = target.filled().len();
                    self.buffer.filled(count);
                    self.source_ended = count == 0;
                }
                Poll::Pending => {
                    ready!(Pin::new(&mut *sink).poll_flush(context))?;
                    return Poll::Pending;
                }
            }
        }
    }
}

/// The caller's half of a tunnel.
pub(in crate::proxy) struct Caller<'a> {
    pub(in crate::proxy) stream: Stream,
    /// What it sent behind its request.
    pub(in crate::proxy) early: Vec<u8>,
    pub(in crate::proxy) client: &'a Client,
    pub(in crate::proxy) standing: &'a ConnectionStanding,
    pub(in crate::proxy) proof: &'a Proof,
}

/// Copies until both directions have ended, one of them fails, nothing moves for too long, one of the connections has lost its
/// proof and had its time to finish, or policy refuses by now what it allowed.
pub(in crate::proxy) async fn tunnel(
    worker: &Worker,
    caller: Caller<'_>,
    mut tunnel: Tunnel,
    served: &mut Served,
) {
    let Caller { stream: mut caller, early, client, standing, proof } = caller;
    let (mut there, mut back) = (Direction::new(&early), Direction::new(&tunnel.early));
    let mut watchdog = Watchdog::new();
    let mut vigil = Vigil::new(worker, standing, &mut watchdog, tunnel.decided);
    vigil.over(tunnel.proof.take());
    let mut moved = (0, 0);
    vigil.set(Some(Instant::now() + worker.limits.tunnel_idle));
    let mut draining = std::pin::pin!(worker.draining());
    let mut asked = false;
    let ended: io::Result<Option<Alarm>> = std::future::poll_fn(|context| {
        if proof.is_cut() || vigil.is_unproved() {
            return Poll::Ready(Ok(Some(Alarm::Unproved)));
        }
        let first = there.poll(context, &mut caller, &mut tunnel.stream)?;
        let second = back.poll(context, &mut tunnel.stream, &mut caller)?;
        if first.is_ready() && second.is_ready() {
            return Poll::Ready(Ok(None));
        }
        if (there.moved, back.moved) != moved {
            moved = (there.moved, back.moved);
            vigil.set(Some(Instant::now() + worker.limits.tunnel_idle));
        }
        if !asked && Future::poll(draining.as_mut(), context).is_ready() {
            asked = true;
            vigil.set(Some(Instant::now() + worker.limits.drain_idle));
        }
        vigil.poll(context, || tunnel.kept.asked(client)).map(|alarm| Ok(Some(alarm)))
    })
    .await;
    if let Ok(Some(alarm @ (Alarm::Unproved | Alarm::Refused))) = ended {
        // Not a byte more goes out, not even those that the system holds.
        caller.reset_on_close();
        tunnel.stream.reset_on_close();
        if alarm == Alarm::Refused {
            served.ended = Some(Lapse::PolicyChanged);
            // What is lost is counted in the log itself.
            let _ = vigil.record_refusal(&tunnel.kept.asked(client));
        }
    }
    served.bytes_in += there.moved;
    served.bytes_out += back.moved;
}
