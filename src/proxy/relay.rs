//! Layer 4: policy decides about a whole connection before a byte of it is read or passed on; then its bytes go both ways,
//! unread, until both directions have ended or the connection has lost what it rests on.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::buffer::Buffer;
use super::connection::Served;
use super::http::judge::{ConnectionStanding, circumstances, decided, observes};
use super::passthrough;
use super::worker::Worker;
use crate::model::{Invalid, Listeners};
use crate::mtls::{Lapse, Proof};
use crate::observe::{DecisionRecord, DenialId, Full, Nearest};
use crate::pipeline::Client;
use crate::policy::{Action, Content, Decision};
use crate::rt::Watchdog;
use crate::snapshot::Snapshot;
use crate::upstream::Stream;

/// How long a connection to the other end may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// For telling both ends of a relay that it ends.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Where a relay's connections go: `host:port`. A name is resolved for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(Box<str>);

impl Target {
    /// Reads it.
    ///
    /// # Errors
    /// It has no host, or no port.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid(format!("{text:?} is no target; expected host:port"));
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => crate::rt::client_hello::folded(host).is_some() || is_ipv4(host),
        };
        if is_port && is_host { Ok(Self(text.into())) } else { Err(wrong()) }
    }

    pub(in crate::proxy) fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_ipv4(host: &str) -> bool {
    host.parse::<std::net::Ipv4Addr>().is_ok()
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Outcome {
    /// Policy refused it: not a byte was passed on.
    Denied,
    /// What was allowed could not be recorded, or the other end could not be reached.
    Failed,
    /// Its bytes were passed on.
    Carried,
}

/// One connection on its way to its target.
pub(in crate::proxy) struct Relay<'a> {
    pub(in crate::proxy) worker: &'a Worker,
    pub(in crate::proxy) client: &'a Client,
    pub(in crate::proxy) standing: ConnectionStanding,
    pub(in crate::proxy) proof: &'a Arc<Proof>,
    pub(in crate::proxy) target: &'a Target,
    /// The server that a TLS client asks for, where we pass TLS through.
    pub(in crate::proxy) server_name: Option<&'a str>,
}

impl Relay<'_> {
    /// Decides; then carries what was read of the connection already, and all that follows.
    pub(in crate::proxy) async fn run(
        mut self,
        mut caller: Stream,
        first: &[u8],
        served: &mut Served,
    ) -> Outcome {
        // Counted before the snapshot is taken: what an older one decided is asked again.
        let policies = self.worker.watch.policies();
        if self.worker.watch.lapse(self.proof).is_some() {
            return Outcome::Failed;
        }
        let snapshot = self.worker.snapshot();
        let decision = self.decide(&snapshot);
        if !permits(&snapshot, decision, self.client) {
            // A refusal that cannot be recorded is still a refusal.
            let _ = self.record(&snapshot, decision, Some(DenialId::new()));
            if let (Some(_), Stream::Tcp(tcp)) = (self.server_name, &mut caller) {
                passthrough::deny(tcp).await;
            }
            return Outcome::Denied;
        }
        if self.is_ours(decision) && self.record(&snapshot, decision, None).is_err() {
            return Outcome::Failed;
        }
        drop(snapshot);
        let Some(target) = self.connect(first).await else { return Outcome::Failed };
        self.proof.set_busy(true);
        served.bytes_in += first.len() as u64;
        self.carry(caller, target, policies, served).await;
        self.proof.set_busy(false);
        Outcome::Carried
    }

    fn decide(&mut self, snapshot: &Snapshot) -> Decision {
        let policy = &snapshot.policy;
        let action = action(snapshot, self.client, self.server_name);
        let standing = self.standing.of(policy, self.client.peer.as_deref());
        match self.client.door {
            Listeners::Inbound => policy.decide(standing, &action),
            Listeners::Ingress | Listeners::Outbound => policy.decide_public(standing, &action),
        }
    }

    /// Where no policy selects what is public, nothing was decided.
    fn is_ours(&self, decision: Decision) -> bool {
        self.client.door == Listeners::Inbound
            || decision.outcome != crate::policy::Outcome::Allow(None)
            || decision.would_be.is_some()
    }

    fn record(
        &mut self,
        snapshot: &Snapshot,
        decision: Decision,
        denial_id: Option<DenialId>,
    ) -> Result<(), Full> {
        let policy = &*snapshot.policy;
        let is_observed =
            denial_id.is_none() && !decision.is_allowed() && observes(snapshot, self.client);
        let mut nearest = None;
        if !decision.is_allowed() {
            let action = action(snapshot, self.client, self.server_name);
            let standing = self.standing.of(policy, self.client.peer.as_deref());
            nearest = policy.nearest(standing, &action).and_then(|near| {
                let rule = policy.rule(near.rule)?;
                let (policy_id, rule) = (rule.policy.as_str(), rule.rule);
                Some(Nearest { policy_id, rule, clause: near.clause.name() })
            });
        }
        self.worker.metrics.decided(decision.outcome, is_observed);
        self.worker.lane.decision(&DecisionRecord {
            protocol: "tcp",
            host: self.server_name.unwrap_or_default().as_bytes(),
            upstream: Some(self.target.as_str()),
            denial_id,
            nearest,
            config_revision: snapshot.revision,
            ..decided(policy, self.standing.ends(), decision, is_observed)
        })
    }

    /// The connection to the target, with what is to be said there first.
    async fn connect(&self, first: &[u8]) -> Option<TcpStream> {
        let connecting = async {
            let mut target = TcpStream::connect(self.target.as_str()).await?;
            target.set_nodelay(true)?;
            target.write_all(first).await?;
            io::Result::Ok(target)
        };
        let connected = tokio::select! {
            biased;
            _ = poll_fn(|context| self.proof.poll_cut(context)) => return None,
            connected = tokio::time::timeout(CONNECT_WITHIN, connecting) => connected,
        };
        let why = match connected {
            Ok(Ok(target)) => return Some(target),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {CONNECT_WITHIN:?}"),
        };
        self.worker.metrics.unreachable.increment();
        tracing::warn!(target = self.target.as_str(), "a relay's target cannot be reached: {why}");
        None
    }

    async fn carry(
        &mut self,
        mut caller: Stream,
        target: TcpStream,
        mut policies: u64,
        served: &mut Served,
    ) {
        let mut target = Stream::Tcp(target);
        let (worker, proof) = (self.worker, self.proof);
        let (mut there, mut back) = (Half::default(), Half::default());
        let mut watchdog = Watchdog::new();
        watchdog.set(Some(Instant::now() + worker.limits.tunnel_idle));
        let mut draining = pin!(worker.draining());
        let mut refused: Option<Pin<Box<tokio::time::Sleep>>> = None;
        let (mut moved, mut is_draining) = (0, false);
        let ended = poll_fn(|context| {
            proof.attend(context.waker());
            if proof.is_cut() {
                return Poll::Ready(Ended::Unproved);
            }
            let first = there.poll(context, worker, &mut caller, &mut target);
            let second = back.poll(context, worker, &mut target, &mut caller);
            match (first, second) {
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => {
                    return Poll::Ready(Ended::Broken);
                }
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ended::Done),
                _ => {}
            }
            is_draining |= draining.as_mut().poll(context).is_ready();
            let now = there.moved + back.moved;
            if now != moved || (is_draining && watchdog_is_long(&watchdog, worker)) {
                moved = now;
                let idle =
                    if is_draining { worker.drain_idle() } else { worker.limits.tunnel_idle };
                watchdog.set(Some(Instant::now() + idle));
            }
            if worker.watch.policies() != policies {
                policies = worker.watch.policies();
                let snapshot = worker.snapshot();
                let decision = self.decide(&snapshot);
                if permits(&snapshot, decision, self.client) {
                    refused = None;
                } else if refused.is_none() {
                    let within = worker.limits.proof.drain_within;
                    refused = Some(Box::pin(tokio::time::sleep(within)));
                }
            }
            if let Some(refused) = &mut refused
                && refused.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(Ended::Refused);
            }
            watchdog.poll(context).map(|()| Ended::Idle)
        })
        .await;
        served.bytes_in += there.moved;
        served.bytes_out += back.moved;
        there.give_back(worker);
        back.give_back(worker);
        if ended == Ended::Done {
            return;
        }
        if ended == Ended::Idle {
            // Who is told in time need not take it for a failure.
            let _ = tokio::time::timeout(LAST_WORD, async {
                tokio::join!(caller.shutdown(), target.shutdown())
            })
            .await;
            return;
        }
        // Nobody may take this for a good end; not a byte more goes out, not even those that the system holds.
        caller.reset_on_close();
        target.reset_on_close();
        if ended == Ended::Refused {
            served.ended = Some(Lapse::PolicyChanged);
            let snapshot = worker.snapshot();
            let decision = self.decide(&snapshot);
            if !decision.is_allowed() {
                // What is lost is counted in the log itself.
                let _ = self.record(&snapshot, decision, Some(DenialId::new()));
            }
        }
    }
}

fn action<'a>(snapshot: &Snapshot, client: &Client, server_name: Option<&'a str>) -> Action<'a> {
    circumstances(&snapshot.policy, client, None, Content::Connection { server_name })
}

fn permits(snapshot: &Snapshot, decision: Decision, client: &Client) -> bool {
    decision.is_allowed() || observes(snapshot, client)
}

/// Is the time that an idle connection has longer than a drain gives it?
fn watchdog_is_long(watchdog: &Watchdog, worker: &Worker) -> bool {
    watchdog.deadline().is_none_or(|at| at > Instant::now() + worker.drain_idle())
}

/// Why a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// Both directions are over.
    Done,
    /// One of the connections broke.
    Broken,
    /// Nothing moved for too long.
    Idle,
    /// It has lost its proof, and had its time to finish.
    Unproved,
    /// Policy refuses it by now, and it had its time to finish.
    Refused,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    buffer: Buffer,
    /// Bytes that went through.
    moved: u64,
    is_over: bool,
    is_shut: bool,
    is_unflushed: bool,
}

impl Half {
    /// Moves what can be moved. Ready when the source has ended and the sink knows.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        worker: &Worker,
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
                self.is_unflushed = true;
            }
            if self.is_over {
                if !self.is_shut {
                    ready!(Pin::new(&mut *sink).poll_flush(context))?;
                    ready!(Pin::new(&mut *sink).poll_shutdown(context))?;
                    self.is_shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            worker.buffers.lend(&mut self.buffer);
            let mut space = ReadBuf::new(self.buffer.space());
            let read = Pin::new(&mut *source).poll_read(context, &mut space);
            let count = space.filled().len();
            match read {
                Poll::Ready(Ok(())) if count == 0 => {
                    self.is_over = true;
                    self.give_back(worker);
                }
                Poll::Ready(Ok(())) => self.buffer.filled(count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // While nothing is there, no buffer is held.
                    self.give_back(worker);
                    if self.is_unflushed {
                        ready!(Pin::new(&mut *sink).poll_flush(context))?;
                        self.is_unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn give_back(&mut self, worker: &Worker) {
        if self.buffer.is_empty() {
            worker.buffers.give_back(&mut self.buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn a_target_is_a_host_and_a_port() {
        for good in ["127.0.0.1:5432", "[::1]:5432", "database:5432", "db.shop.example:1"] {
            assert_eq!(Target::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "database", ":1", "a:0", "a:65536", "::1:80", "http://a:80", "a b:1"] {
            let error = Target::parse(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("host:port"), "{error}");
        }
    }
}
