//! Serving a client's HTTP/1.1 connection: read a head, let the flow answer it, read the next.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::connection::{Http1, Incoming};
use super::head::{Framing, Refused, RequestFacts, read_request_within};
use super::write::{self, ResponseLine};
use crate::mtls::{Lapse, Proof};
use crate::pipeline::{Client, Exchange, Head, Reply};
use crate::proxy::connection::Served;
use crate::proxy::http::flow::{self, After};
use crate::proxy::http::judge::ConnectionStanding;
use crate::proxy::http::switch::Wish;
use crate::proxy::http::{BodyLength, Broken, Downstream, Piece, Side, tunnel};
use crate::proxy::worker::Worker;
use crate::rt::{Watchdog, coarse_now};
use crate::upstream::Stream;

/// The caller's side of one exchange.
pub(in crate::proxy) struct Caller<'a> {
    http: &'a mut Http1,
    worker: &'a Worker,
    /// What the connection rests on.
    proof: &'a Proof,
    facts: RequestFacts,
    /// The request's method was HEAD.
    is_head: bool,
    /// It was CONNECT.
    is_connect: bool,
    /// The connection must end with this response.
    close: bool,
    /// The response is not whole.
    aborted: bool,
    invited: bool,
}

impl Side for Caller<'_> {
    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Piece<'_>, Broken>> {
        self.http.poll_data(context)
    }

    fn consume(&mut self, count: usize) {
        self.http.consume(count);
    }

    fn trailers(&mut self) -> Option<http::HeaderMap> {
        self.http.trailers()
    }

    fn poll_send(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        self.http.poll_send(context, data)
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.http.poll_flush(context)
    }

    fn poll_finish(
        &mut self,
        context: &mut Context<'_>,
        trailers: Option<http::HeaderMap>,
    ) -> Poll<Result<(), Broken>> {
        // RFC 9110 section 6.5.1: who does not ask for trailers may have a parser that knows none.
        self.http.poll_finish(context, trailers.filter(|_| self.facts.takes_trailers))
    }
}

impl Downstream for Caller<'_> {
    fn request_body(&self) -> BodyLength {
        match self.facts.framing {
            Framing::None => BodyLength::None,
            Framing::Length(length) => BodyLength::Known(length),
            Framing::Chunked | Framing::UntilClose => BodyLength::Unknown,
        }
    }

    fn wish(&self) -> Option<Wish<'_>> {
        match (self.is_connect, self.facts.upgrade) {
            (true, _) => Some(Wish::Connect),
            (false, true) => Some(Wish::Upgrade),
            (false, false) => None,
        }
    }

    fn start_tunnel(&mut self, head: &Head) -> Result<(), Broken> {
        let http10 = self.facts.http10;
        let line = ResponseLine { tunnel: true, http10, ..ResponseLine::default() };
        write::response(self.http.output(), &line, head);
        self.http.open_tunnel();
        Ok(())
    }

    fn start_response(&mut self, head: &Head, body: BodyLength) -> Result<(), Broken> {
        let status = head.status();
        let bodiless = self.is_head || status == 304;
        // What is left of the request's body would be read as the next request: then this one is the last.
        // So it is where bytes of another protocol may follow a CONNECT already.
        self.close |= !self.facts.keep_alive
            || self.is_connect
            || self.worker.is_draining()
            || self.proof.lapse().is_some()
            || (body == BodyLength::Unknown && self.facts.http10 && !bodiless);
        let line = ResponseLine {
            body,
            http10: self.facts.http10,
            close: self.close,
            trailers: self.facts.takes_trailers,
            tunnel: false,
            bodiless,
        };
        self.worker.buffers.lend(self.http.output());
        let body = write::response(self.http.output(), &line, head);
        self.http.announce(body, !self.facts.http10, bodiless);
        Ok(())
    }

    fn interim(&mut self, head: &Head) {
        if !self.facts.http10 {
            let line = ResponseLine { bodiless: true, ..ResponseLine::default() };
            write::response(self.http.output(), &line, head);
        }
    }

    fn invite_body(&mut self) {
        if self.facts.expects_continue && !self.invited {
            self.invited = true;
            self.http.output().extend(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.http.ended {
            return Poll::Ready(());
        }
        // Bytes behind the body are the next request; they wait in the buffer as long as it has room.
        while !self.http.input.space().is_empty() {
            match self.http.poll_fill(context) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Pending
    }

    fn is_last(&mut self) {
        self.close = true;
    }

    fn abort(&mut self) {
        self.close = true;
        self.aborted = true;
        self.http.ended = true;
    }

    fn cut(&mut self) {
        self.http.stream.reset_on_close();
    }

    fn is_http2(&self) -> bool {
        false
    }

    fn is_http10(&self) -> bool {
        self.facts.http10
    }

    fn counts(&self) -> (u64, u64) {
        (self.http.received, self.http.sent)
    }
}

/// What came instead of a request's head.
enum Next {
    Request(RequestFacts, Box<Exchange>),
    Closed,
    Late,
    /// The connection has lost its proof.
    Unproved,
    /// Nothing, and it may go on waiting.
    Quiet,
    Refused(Refused),
}

/// Serves one connection until its end. What only requests need is given back while none come: an idle connection keeps little.
pub(in crate::proxy) async fn serve(
    worker: &Arc<Worker>,
    stream: Stream,
    client: Arc<Client>,
    mut standing: ConnectionStanding,
    proof: &Arc<Proof>,
    served: &mut Served,
) {
    let mut connection = Connection {
        worker,
        client: &client,
        proof,
        served,
        http: Http1::new(stream),
        watchdog: Watchdog::new(),
        draining: pin!(worker.draining()),
        idle_until: coarse_now() + worker.limits.head_within,
    };
    loop {
        let next = connection.next_head(None).await;
        if let Ended::Whole = Box::pin(connection.serve(&mut standing, next)).await {
            return;
        }
    }
}

/// One connection, between its requests and in them.
struct Connection<'a, D> {
    worker: &'a Arc<Worker>,
    client: &'a Arc<Client>,
    proof: &'a Arc<Proof>,
    served: &'a mut Served,
    http: Http1,
    watchdog: Watchdog,
    /// Ready when the worker drains.
    draining: Pin<&'a mut D>,
    /// Until when it may be idle.
    idle_until: Instant,
}

/// How long a connection that has carried a request is ready for the next one with all that it needs.
const READY: Duration = Duration::from_secs(1);

/// What is over.
enum Ended {
    /// The connection.
    Whole,
    /// Its requests, for now.
    Requests,
}

impl<D: Future<Output = ()>> Connection<'_, D> {
    /// Serves what came, and what follows soon.
    async fn serve(&mut self, standing: &mut ConnectionStanding, mut next: Next) -> Ended {
        loop {
            next = match next {
                Next::Request(facts, exchange) => {
                    if !self.exchange(standing, facts, exchange).await {
                        return Ended::Whole;
                    }
                    self.idle_until = coarse_now() + self.worker.limits.idle_within;
                    self.next_head(Some(READY)).await
                }
                Next::Quiet => return Ended::Requests,
                over => {
                    self.end(over).await;
                    return Ended::Whole;
                }
            };
        }
    }

    /// Answers one request; `true` when the connection may carry another one.
    async fn exchange(
        &mut self,
        standing: &mut ConnectionStanding,
        facts: RequestFacts,
        mut exchange: Box<Exchange>,
    ) -> bool {
        let Self { worker, proof, served, http, watchdog, .. } = self;
        served.requests += 1;
        let mut caller = Caller {
            is_head: exchange.request.method() == "HEAD",
            is_connect: exchange.request.method() == "CONNECT",
            http,
            worker,
            proof,
            facts,
            close: served.requests >= worker.limits.requests,
            aborted: false,
            invited: false,
        };
        proof.set_busy(true);
        let after =
            flow::exchange(worker, &mut exchange, &mut caller, standing, watchdog, proof).await;
        served.bytes_in += exchange.bytes_in;
        served.bytes_out += exchange.bytes_out;
        worker.take_back(exchange);
        let after = match after {
            After::Tunnel(tunnel) => {
                caller.http.release(&worker.buffers);
                let before = caller.counts();
                let carried =
                    tunnel::carry(worker, &mut caller, self.client, standing, proof, *tunnel);
                served.ended = carried.await;
                let (received, sent) = caller.counts();
                served.bytes_in += received - before.0;
                served.bytes_out += sent - before.1;
                return false;
            }
            after => after,
        };
        let (close, aborted) = (caller.close, caller.aborted);
        if matches!(after, After::Refused) {
            served.ended = Some(Lapse::PolicyChanged);
        }
        if served.ended.is_some() || proof.is_cut() {
            http.stream.reset_on_close();
            return false;
        }
        match after {
            After::Next if !close && http.is_body_taken() => {}
            _ if aborted && http.break_off() => return false,
            After::Next | After::Close | After::Refused | After::Tunnel(_) => {
                linger(worker, http).await;
                return false;
            }
        }
        proof.set_busy(false);
        true
    }

    /// Says what there is to say instead of an answer.
    async fn end(&mut self, why: Next) {
        let Self { worker, client, http, .. } = self;
        match why {
            Next::Request(..) | Next::Quiet | Next::Closed => http.release(&worker.buffers),
            Next::Late | Next::Unproved if http.input.is_empty() => {
                // TLS' farewell tells it from a connection that was broken off.
                let _ = tokio::time::timeout(FAREWELL, http.stream.shutdown()).await;
            }
            // What has come of a request is not looked at.
            Next::Unproved => linger(worker, http).await,
            Next::Late => {
                let late = Refused { status: 408, sentence: "the request's head took too long" };
                refuse(worker, http, late).await;
                let _ = tokio::time::timeout(FAREWELL, http.stream.shutdown()).await;
            }
            Next::Refused(refused) => {
                worker.note_malformed(client, refused.sentence);
                refuse(worker, http, refused).await;
                linger(worker, http).await;
            }
        }
    }

    /// Waits for a request's head, at most so long when `within` says so. While nothing is there, no buffer is held.
    async fn next_head(&mut self, within: Option<Duration>) -> Next {
        let Self { worker, client, proof, http, watchdog, draining, idle_until, .. } = self;
        let limits = &worker.limits;
        let quiet = within.map(|within| coarse_now() + within).filter(|at| at < idle_until);
        watchdog.set(Some(quiet.unwrap_or(*idle_until)));
        let mut scanned = 0;
        let mut leaving = None;
        let mut lent: Option<Box<Exchange>> = None;
        poll_fn(|context| {
            let ends = proof.lapse();
            if ends.is_some_and(|lapse| !lapse.is_gentle()) {
                if let Some(exchange) = lent.take() {
                    worker.take_back(exchange);
                }
                return Poll::Ready(Next::Unproved);
            }
            loop {
                if !http.input.is_empty() {
                    if scanned == 0 {
                        watchdog.set(Some(coarse_now() + limits.head_within));
                    }
                    let mut exchange = lent.take().unwrap_or_else(|| worker.lend_exchange(client));
                    let read = read_request_within(
                        http.input.data(),
                        scanned,
                        &limits.request_head,
                        &mut exchange.request,
                    );
                    match read {
                        // Trust may have changed since the connection was looked at.
                        Ok(Some(_))
                            if worker
                                .watch
                                .lapse(proof)
                                .is_some_and(|lapse| !lapse.is_gentle()) =>
                        {
                            worker.take_back(exchange);
                            return Poll::Ready(Next::Unproved);
                        }
                        Ok(Some(facts)) => {
                            http.input.consume(facts.length);
                            http.incoming = Incoming::from(facts.framing);
                            // Counted from here: what was read beyond the head belongs to the body or the next request.
                            http.received = facts.length as u64;
                            http.sent = 0;
                            return Poll::Ready(Next::Request(facts, exchange));
                        }
                        Ok(None) => scanned = http.input.data().len(),
                        Err(refused) => {
                            worker.take_back(exchange);
                            return Poll::Ready(Next::Refused(refused));
                        }
                    }
                    lent = Some(exchange);
                }
                worker.buffers.lend(&mut http.input);
                match http.poll_fill(context) {
                    Poll::Ready(Ok(0)) if http.input.is_empty() => {
                        return Poll::Ready(Next::Closed);
                    }
                    Poll::Ready(Ok(0)) => {
                        let refused = Refused { status: 400, sentence: "the head is cut off" };
                        return Poll::Ready(Next::Refused(refused));
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Next::Closed),
                    Poll::Pending => {
                        http.release(&worker.buffers);
                        break;
                    }
                }
            }
            // A drain lets an idle connection carry one more request for a moment: what is already on its way is not lost. So does
            // an end that takes nothing from whom we know at the other end.
            let leaves = ends.is_some() || draining.as_mut().poll(context).is_ready();
            if http.input.is_empty() && leaves {
                // Before it would be cut off.
                let within = ends.map_or_else(
                    || worker.drain_idle(),
                    |lapse| limits.drain_idle.min(limits.proof.within(lapse) / 2),
                );
                let until = *leaving.get_or_insert_with(|| coarse_now() + within);
                watchdog.set(Some(until.min(*idle_until)));
            }
            let is_quiet = quiet.is_some() && scanned == 0 && leaving.is_none();
            watchdog.poll(context).map(|()| if is_quiet { Next::Quiet } else { Next::Late })
        })
        .await
    }
}

/// Answers a head that was refused, and closes.
async fn refuse(worker: &Worker, http: &mut Http1, refused: Refused) {
    let reply = Reply::json(refused.status, &serde_json::json!({ "error_msg": refused.sentence }));
    let mut head = Head::response(reply.status);
    for (name, value) in &reply.fields {
        head.append(name, value.as_bytes());
    }
    let body = BodyLength::Known(reply.body.len() as u64);
    worker.buffers.lend(http.output());
    let line = ResponseLine { body, close: true, ..ResponseLine::default() };
    write::response(http.output(), &line, &head);
    http.output().extend(&reply.body);
    let flush = poll_fn(|context| http.poll_flush_all(context));
    let _ = tokio::time::timeout(Duration::from_secs(5), flush).await;
}

/// For the last bytes of a connection to be taken by the system.
const FAREWELL: Duration = Duration::from_secs(1);

/// Closes so that the last response arrives: what the client still sends is read and thrown away for a moment,
/// since closing with unread bytes makes the system reset the connection.
async fn linger(worker: &Worker, http: &mut Http1) {
    let _ = tokio::time::timeout(FAREWELL, http.stream.shutdown()).await;
    if !http.ended {
        let mut left = 256 * 1024_usize;
        let drain = poll_fn(|context| {
            loop {
                let unused = http.input.data().len();
                http.input.consume(unused);
                worker.buffers.lend(&mut http.input);
                match std::task::ready!(http.poll_fill(context)) {
                    Ok(count) if count > 0 && left > count => left -= count,
                    _ => return Poll::Ready(()),
                }
            }
        });
        let _ = tokio::time::timeout(FAREWELL, drain).await;
    }
    let unused = http.input.data().len();
    http.input.consume(unused);
    http.release(&worker.buffers);
}
