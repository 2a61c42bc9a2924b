//! Carrying bytes both ways once nobody reads messages any more: half-close, idle limit, and the ends that any exchange has.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::Instant;

use super::Downstream;
use super::judge::{ConnectionStanding, Kept};
use super::origin::Origin;
use super::transfer::{Failed, Pump};
use super::vigil::{Alarm, Vigil};
use crate::mtls::{Lapse, Proof};
use crate::pipeline::Client;
use crate::proxy::worker::Worker;
use crate::rt::Watchdog;
use crate::upstream::Busy;

/// The upstream's half of a tunnel.
pub(in crate::proxy) struct Tunnel {
    pub(in crate::proxy) origin: Origin,
    /// The protocol that is spoken from here on, as the upstream names it.
    pub(in crate::proxy) protocol: Option<Vec<u8>>,
    /// What its connection rests on.
    pub(in crate::proxy) proof: Option<Arc<Proof>>,
    /// What policy decided on, and which policy did.
    pub(in crate::proxy) kept: Kept,
    pub(in crate::proxy) decided: u64,
    pub(in crate::proxy) _busy: Busy,
}

/// Carries until both directions have ended, one of them fails, nothing moves for too long, one of the connections has lost its
/// proof and had its time to finish, or policy refuses by now what it allowed: then that is the result.
pub(in crate::proxy) async fn carry<D: Downstream>(
    worker: &Worker,
    caller: &mut D,
    client: &Client,
    standing: &ConnectionStanding,
    proof: &Proof,
    mut tunnel: Tunnel,
) -> Option<Lapse> {
    let (mut there, mut back) = (Pump::default(), Pump::default());
    let mut watchdog = Watchdog::new();
    let mut vigil = Vigil::new(worker, standing, &mut watchdog, tunnel.decided);
    vigil.over(tunnel.proof.take());
    let mut moved = (0, 0);
    vigil.set(Some(Instant::now() + worker.limits.tunnel_idle));
    let mut draining = pin!(worker.draining());
    let mut asked = false;
    let ended: Result<Option<Alarm>, Failed> = poll_fn(|context| {
        if proof.is_cut() || vigil.is_unproved() {
            return Poll::Ready(Ok(Some(Alarm::Unproved)));
        }
        let first = there.poll(context, caller, &mut tunnel.origin)?;
        let second = back.poll(context, &mut tunnel.origin, caller)?;
        if first.is_ready() && second.is_ready() {
            return Poll::Ready(Ok(None));
        }
        // Who has ended its half over HTTP/2 may still give the stream up; in HTTP/1.1 there is nothing more to see of it.
        if there.is_finished() && caller.is_http2() && caller.poll_gone(context).is_ready() {
            let gone = io::Error::from(io::ErrorKind::ConnectionReset);
            return Poll::Ready(Err(Failed::Source(gone.into())));
        }
        if (there.moved, back.moved) != moved {
            moved = (there.moved, back.moved);
            vigil.set(Some(Instant::now() + worker.limits.tunnel_idle));
        }
        if !asked && draining.as_mut().poll(context).is_ready() {
            asked = true;
            vigil.set(Some(Instant::now() + worker.limits.drain_idle));
        }
        vigil.poll(context, || tunnel.kept.asked(client)).map(|alarm| Ok(Some(alarm)))
    })
    .await;
    match ended {
        Ok(None) => None,
        Ok(Some(alarm @ (Alarm::Unproved | Alarm::Refused))) => {
            // Not a byte more goes out, not even those that the system holds.
            caller.cut();
            tunnel.origin.reset_on_close();
            if alarm != Alarm::Refused {
                return None;
            }
            // What is lost is counted in the log itself.
            let _ = vigil.record_refusal(&tunnel.kept.asked(client));
            Some(Lapse::PolicyChanged)
        }
        Ok(Some(Alarm::Late)) | Err(_) => {
            caller.abort();
            None
        }
    }
}
