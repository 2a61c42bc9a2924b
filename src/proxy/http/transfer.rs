//! `Pump`: moves one body from one side to the other, with back pressure, and nothing kept in between.

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::{Broken, Piece, Side, trailers};
use crate::pipeline::{BodyFilters, ReadBody};

/// Which side of a transfer broke.
#[derive(Debug)]
pub(in crate::proxy) enum Failed {
    /// The side that the body comes from.
    Source(Broken),
    /// The side that it goes to.
    Sink(Broken),
    /// A body filter gave up.
    Filter(crate::pipeline::Fault),
    /// The body is longer than its limit.
    TooLarge,
}

/// The state of one body on its way.
#[derive(Debug)]
pub(in crate::proxy) struct Pump {
    /// Bytes that the body may have.
    limit: u64,
    /// Bytes of the body that went through.
    pub(in crate::proxy) moved: u64,
    is_over: bool,
    trailers: Option<http::HeaderMap>,
    /// What a filter made, or another sink had taken before, and this sink has not.
    held: Bytes,
    is_finished: bool,
    is_stuck: bool,
    /// The source has nothing for now.
    is_starved: bool,
}

impl Pump {
    /// For a body of so many bytes at most.
    pub(in crate::proxy) const fn within(limit: u64) -> Self {
        Self {
            limit,
            moved: 0,
            is_over: false,
            trailers: None,
            held: Bytes::new(),
            is_finished: false,
            is_stuck: false,
            is_starved: false,
        }
    }

    /// This was taken from the source before: it goes first.
    pub(in crate::proxy) fn has_read(&mut self, read: ReadBody) {
        (self.held, self.is_over, self.trailers) = (read.bytes, read.is_over, read.trailers);
    }

    /// Of a request without a body that has gone out.
    pub(in crate::proxy) fn of_nothing() -> Self {
        Self { is_over: true, is_finished: true, ..Self::within(u64::MAX) }
    }

    /// Has anything been taken from the source? Then the request cannot be sent again.
    pub(in crate::proxy) fn has_begun(&self) -> bool {
        self.moved > 0
    }

    /// The sink takes nothing more, and the exchange goes on without.
    pub(in crate::proxy) fn get_stuck(&mut self) {
        self.is_stuck = true;
    }

    /// Another sink takes the body from its start; `taken` is what the last one had taken, all of it.
    pub(in crate::proxy) fn begin_again(&mut self, taken: Bytes) {
        self.moved = 0;
        self.held = match (taken.is_empty(), self.held.is_empty()) {
            (true, _) => std::mem::take(&mut self.held),
            (false, true) => taken,
            // The last one had not taken all that the one before it had.
            (false, false) => [taken, std::mem::take(&mut self.held)].concat().into(),
        };
        (self.is_finished, self.is_stuck) = (false, false);
    }

    pub(in crate::proxy) fn is_stuck(&self) -> bool {
        self.is_stuck
    }

    /// Is it the source that everybody waits for?
    pub(in crate::proxy) fn is_starved(&self) -> bool {
        self.is_starved
    }

    pub(in crate::proxy) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Moves what can be moved. Ready when the body is over and has gone out.
    pub(in crate::proxy) fn poll(
        &mut self,
        context: &mut Context<'_>,
        source: &mut impl Side,
        sink: &mut impl Side,
    ) -> Poll<Result<(), Failed>> {
        while !self.held.is_empty() {
            let taken = ready!(sink.poll_send(context, &self.held)).map_err(Failed::Sink)?;
            let _ = self.held.split_to(taken);
            self.moved += taken as u64;
        }
        while !self.is_over {
            let piece = source.poll_data(context);
            self.is_starved = piece.is_pending();
            match piece {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    if data.len() as u64 > self.limit - self.moved {
                        return Poll::Ready(Err(Failed::TooLarge));
                    }
                    let taken = ready!(sink.poll_send(context, data)).map_err(Failed::Sink)?;
                    source.consume(taken);
                    self.moved += taken as u64;
                }
                Poll::Ready(Ok(Piece::End)) => {
                    self.is_over = true;
                    self.trailers = source.trailers().and_then(trailers::lawful);
                }
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(Failed::Source(broken))),
                Poll::Pending => {
                    // Nothing to add for now: what is there must not wait for more.
                    let _ = sink.poll_flush(context).map_err(Failed::Sink)?;
                    return Poll::Pending;
                }
            }
        }
        self.poll_finish(context, sink)
    }

    /// The same through filters.
    pub(in crate::proxy) fn poll_filtered(
        &mut self,
        context: &mut Context<'_>,
        source: &mut impl Side,
        sink: &mut impl Side,
        filters: &mut BodyFilters,
    ) -> Poll<Result<(), Failed>> {
        loop {
            while !self.held.is_empty() {
                let taken = ready!(sink.poll_send(context, &self.held)).map_err(Failed::Sink)?;
                let _ = self.held.split_to(taken);
            }
            if self.is_over {
                return self.poll_finish(context, sink);
            }
            let piece = source.poll_data(context);
            self.is_starved = piece.is_pending();
            match piece {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    let count = data.len();
                    if count as u64 > self.limit - self.moved {
                        return Poll::Ready(Err(Failed::TooLarge));
                    }
                    let filtered = filters.chunk(Bytes::copy_from_slice(data));
                    self.held = filtered.map_err(Failed::Filter)?;
                    source.consume(count);
                    self.moved += count as u64;
                }
                Poll::Ready(Ok(Piece::End)) => {
                    self.is_over = true;
                    self.trailers = source.trailers().and_then(trailers::lawful);
                    self.held = filters.finish().map_err(Failed::Filter)?;
                }
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(Failed::Source(broken))),
                Poll::Pending => {
                    let _ = sink.poll_flush(context).map_err(Failed::Sink)?;
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_finish(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut impl Side,
    ) -> Poll<Result<(), Failed>> {
        if !self.is_finished {
            ready!(sink.poll_finish(context, self.trailers.clone())).map_err(Failed::Sink)?;
            self.is_finished = true;
        }
        Poll::Ready(Ok(()))
    }
}
