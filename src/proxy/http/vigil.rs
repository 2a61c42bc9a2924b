//! `Vigil`: what ends an exchange before its time: its time limit, an upstream that is no longer proved, a change of policy.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

use super::judge::{Asked, ConnectionStanding, Judge};
use crate::mtls::Proof;
use crate::observe::{ConnectionRecord, Full};
use crate::pipeline::{Exchange, Reply};
use crate::proxy::worker::Worker;
use crate::rt::Watchdog;

/// Why an exchange ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Alarm {
    /// Its time limit is over.
    Late,
    /// The connection to the upstream has lost its proof, and its time to finish is over.
    Unproved,
    /// Policy refuses by now what it allowed at the start, and the time to finish is over.
    Refused,
}

/// Looks after one exchange. Costs a look at two numbers each time while nothing has changed.
pub(in crate::proxy) struct Vigil<'a> {
    worker: &'a Worker,
    connection: &'a ConnectionStanding,
    pub(in crate::proxy) watchdog: &'a mut Watchdog,
    /// Which policy decided last, as [`Watch::policies`](crate::proxy::proof::Watch::policies) counts them.
    decided: u64,
    upstream: Option<Arc<Proof>>,
    /// Until when it may finish although policy refuses it.
    refused: Option<Pin<Box<Sleep>>>,
}

impl<'a> Vigil<'a> {
    /// For an exchange that this policy allowed.
    pub(in crate::proxy) fn new(
        worker: &'a Worker,
        connection: &'a ConnectionStanding,
        watchdog: &'a mut Watchdog,
        decided: u64,
    ) -> Self {
        Self { worker, connection, watchdog, decided, upstream: None, refused: None }
    }

    /// Whose exchange it is.
    pub(in crate::proxy) fn worker(&self) -> &'a Worker {
        self.worker
    }

    /// Sets or clears the time limit.
    pub(in crate::proxy) fn set(&mut self, deadline: Option<Instant>) {
        self.watchdog.set(deadline);
    }

    /// The exchange uses this connection from here on.
    pub(in crate::proxy) fn over(&mut self, upstream: Option<Arc<Proof>>) {
        self.upstream = upstream;
    }

    /// Must the connection to the upstream not be used any more? Asked before bytes are moved.
    pub(in crate::proxy) fn is_unproved(&self) -> bool {
        self.upstream.as_ref().is_some_and(|proof| proof.is_cut())
    }

    /// The policy that decided last.
    pub(in crate::proxy) fn decided(&self) -> u64 {
        self.decided
    }

    /// Ready when the exchange must end; `asked` is what policy decided on at its start.
    pub(in crate::proxy) fn poll<'e>(
        &mut self,
        context: &mut Context<'_>,
        asked: impl FnOnce() -> Asked<'e>,
    ) -> Poll<Alarm> {
        if self.is_unproved() {
            return Poll::Ready(Alarm::Unproved);
        }
        if self.worker.watch.policies() != self.decided {
            self.decide_again(&asked());
        }
        if let Some(refused) = &mut self.refused
            && refused.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Alarm::Refused);
        }
        self.watchdog.poll(context).map(|()| Alarm::Late)
    }

    #[cold]
    fn decide_again(&mut self, asked: &Asked<'_>) {
        self.decided = self.worker.watch.policies();
        let snapshot = self.worker.snapshot();
        let judge = Judge { worker: self.worker, snapshot: &snapshot, connection: self.connection };
        if judge.permits(judge.decide(asked), asked.client) {
            self.refused = None;
        } else if self.refused.is_none() {
            let within = self.worker.limits.proof.drain_within;
            self.refused = Some(Box::pin(tokio::time::sleep(within)));
        }
    }

    /// The answer to a caller whose exchange was refused before it was answered, and the record of that.
    pub(in crate::proxy) fn refuse(&self, exchange: &Exchange) -> Box<Reply> {
        let snapshot = self.worker.snapshot();
        let judge = Judge { worker: self.worker, snapshot: &snapshot, connection: self.connection };
        judge.refuse(exchange, judge.decide(&Asked::of(exchange)))
    }

    /// The records of an exchange that is broken off because policy refuses it by now: the decision, and what became of it.
    pub(in crate::proxy) fn record_refusal(&self, asked: &Asked<'_>) -> Result<(), Full> {
        let snapshot = self.worker.snapshot();
        let judge = Judge { worker: self.worker, snapshot: &snapshot, connection: self.connection };
        judge.record(asked, judge.decide(asked), None)?;
        if !asked.is_http2 {
            // The connection ends with it, and has a record of its own.
            return Ok(());
        }
        self.worker.lane.connection(&ConnectionRecord {
            side: Some("accepted"),
            reason: Some(crate::mtls::Lapse::PolicyChanged.code()),
            protocol: Some("h2"),
            ..ConnectionRecord::of(self.connection.ends(), "exchange_end")
        })
    }
}
