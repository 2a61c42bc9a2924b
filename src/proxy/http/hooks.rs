//! Runs the hooks of a chain, and brings the request's body in for those that ask for it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, ready};

use tokio::time::Instant;

use super::pace::Pace;
use super::{Broken, Downstream, Piece};
use crate::pipeline::{Chain, Exchange, Fault, Flow, RequestBody, Unread};
use crate::proxy::limits::Limits;

/// `rewrite`.
pub(super) async fn rewrite<D: Downstream>(
    chain: &Chain,
    exchange: &mut Exchange,
    caller: &mut D,
    limits: &Limits,
) -> Result<Flow, Fault> {
    if !chain.reads_body() {
        return chain.rewrite(exchange).await;
    }
    let body = opened(exchange);
    let most = exchange.body_limit(limits.request_body);
    Box::pin(bringing(&body, most, caller, limits, chain.rewrite(exchange))).await
}

/// `access`.
pub(super) async fn access<D: Downstream>(
    chain: &Chain,
    exchange: &mut Exchange,
    caller: &mut D,
    limits: &Limits,
) -> Result<Flow, Fault> {
    if !chain.reads_body() {
        return chain.access(exchange).await;
    }
    let body = opened(exchange);
    let most = exchange.body_limit(limits.request_body);
    Box::pin(bringing(&body, most, caller, limits, chain.access(exchange))).await
}

fn opened(exchange: &mut Exchange) -> RequestBody {
    if !exchange.body.is_open() {
        exchange.body = RequestBody::unread();
    }
    exchange.body.clone()
}

/// Polls the hooks; while one waits for the body, the caller's side is read.
async fn bringing<D: Downstream, T>(
    body: &RequestBody,
    most: u64,
    caller: &mut D,
    limits: &Limits,
    hooks: impl Future<Output = T>,
) -> T {
    let mut hooks = pin!(hooks);
    let mut pace = Pace::new(limits.body_within, limits.request_rate);
    let mut late = pin!(tokio::time::sleep_until(Instant::now() + limits.body_within));
    let mut is_invited = false;
    poll_fn(|context| {
        loop {
            if let Poll::Ready(done) = hooks.as_mut().poll(context) {
                return Poll::Ready(done);
            }
            if !body.is_wanted() {
                return Poll::Pending;
            }
            if !is_invited {
                is_invited = true;
                caller.invite_body();
            }
            match caller.poll_data(context) {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    let count = data.len();
                    if body.length() + count as u64 > most {
                        body.fail(Unread::TooLarge);
                        continue;
                    }
                    body.add(data);
                    caller.consume(count);
                    pace.rest(Instant::now(), body.length());
                }
                Poll::Ready(Ok(Piece::End)) => {
                    body.end(caller.trailers().and_then(super::trailers::lawful));
                }
                Poll::Ready(Err(broken)) => body.fail(Unread::Malformed(cause(&broken))),
                Poll::Pending => {
                    // The invitation must not wait for what it invites.
                    let _ = caller.poll_flush(context);
                    late.as_mut().reset(pace.wait(Instant::now(), body.length()));
                    ready!(late.as_mut().poll(context));
                    body.fail(Unread::Late);
                }
            }
        }
    })
    .await
}

fn cause(broken: &Broken) -> String {
    broken.to_string()
}
