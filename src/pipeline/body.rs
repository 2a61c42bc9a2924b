//! Body filters and watches: they see a response's body chunk by chunk and only where a plugin asked for it.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;

use super::Fault;

/// Changes a body on its way. One object a response.
pub trait BodyFilter: Send {
    /// Takes the next piece and gives what goes on in its place; empty to hold it back.
    ///
    /// # Errors
    /// The body cannot be served; the response is cut off.
    fn chunk(&mut self, data: Bytes) -> Result<Bytes, Fault>;

    /// The body is over; gives what is still to be sent.
    ///
    /// # Errors
    /// The body cannot be served; the response is cut off.
    fn finish(&mut self) -> Result<Bytes, Fault>;
}

/// Sees a body as the upstream sends it, before any filter, and changes nothing. Dropped before its end, the body broke off.
pub trait BodyWatch: Send {
    /// The next piece.
    fn chunk(&mut self, data: &Bytes);

    /// The body is complete.
    fn end(&mut self);
}

/// A body that is made while it is sent.
pub trait BodySource: Send {
    /// Its length in bytes.
    fn length(&self) -> u64;

    /// The next piece, nothing behind the last one.
    ///
    /// # Errors
    /// There is no more although there should be; the response is cut off.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>>;
}

/// A [`BodySource`] on its way into an answer. It is given out once, whoever has copies.
#[derive(Clone)]
pub struct BodyStream(Arc<Mutex<Option<Box<dyn BodySource>>>>);

impl BodyStream {
    /// Of this source.
    pub fn new(source: impl BodySource + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(source)))))
    }

    /// The source, the first time.
    pub fn take(&self) -> Option<Box<dyn BodySource>> {
        self.0.lock().take()
    }
}

impl std::fmt::Debug for BodyStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BodyStream")
    }
}

/// The filters of one response, in running order, and who watches its body.
#[derive(Default)]
pub struct BodyFilters {
    watches: Vec<Box<dyn BodyWatch>>,
    filters: Vec<Box<dyn BodyFilter>>,
}

impl BodyFilters {
    /// Nothing to do: the body passes untouched and unseen.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty() && self.watches.is_empty()
    }

    /// May the body become another one?
    pub fn changes(&self) -> bool {
        !self.filters.is_empty()
    }

    /// Adds a filter behind the others.
    pub fn add(&mut self, filter: Box<dyn BodyFilter>) {
        self.filters.push(filter);
    }

    /// Adds somebody who watches what comes.
    pub fn watch(&mut self, watch: Box<dyn BodyWatch>) {
        self.watches.push(watch);
    }

    /// One piece through all filters.
    ///
    /// # Errors
    /// What a filter says.
    pub fn chunk(&mut self, mut data: Bytes) -> Result<Bytes, Fault> {
        for watch in &mut self.watches {
            watch.chunk(&data);
        }
        for filter in &mut self.filters {
            if data.is_empty() {
                break;
            }
            data = filter.chunk(data)?;
        }
        Ok(data)
    }

    /// The end through all filters: what one still holds passes those behind it.
    ///
    /// # Errors
    /// What a filter says.
    pub fn finish(&mut self) -> Result<Bytes, Fault> {
        for watch in &mut self.watches {
            watch.end();
        }
        let mut held = Bytes::new();
        for filter in &mut self.filters {
            let passed = if held.is_empty() { held } else { filter.chunk(held)? };
            let rest = filter.finish()?;
            held = match (passed.is_empty(), rest.is_empty()) {
                (_, true) => passed,
                (true, false) => rest,
                (false, false) => [passed, rest].concat().into(),
            };
        }
        Ok(held)
    }
}

impl std::fmt::Debug for BodyFilters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BodyFilters({})", self.filters.len())
    }
}
