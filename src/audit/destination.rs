//! `Destination`: somewhere that records go to.

use std::time::Duration;

use async_trait::async_trait;

/// One record as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number in the chain.
    pub seq: u64,
    /// The line without its end, hash included: byte for byte what is chained.
    pub text: Box<str>,
}

/// Why records did not arrive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Undelivered {
    /// Nobody answers, or not now: try the same records again later.
    #[error("{0}")]
    Later(String),
    /// The other side asks to be left alone for a while: try the same records again after that.
    #[error("{why}")]
    NotBefore {
        /// How long.
        wait: Duration,
        /// What the other side said.
        why: String,
    },
    /// The other side will never take this record; those before it have arrived. Say so in the log, count it and go on behind
    /// it.
    #[error("record {seq} is refused: {why}")]
    Never {
        /// Which one.
        seq: u64,
        /// What the other side said.
        why: String,
    },
    /// The other side took the records but for some, and does not say which: say so, count them and go on behind all.
    #[error("{refused} records are refused: {why}")]
    Partly {
        /// How many it did not take.
        refused: u64,
        /// What the other side said.
        why: String,
    },
}

/// Somewhere that records go to: in order, each at least once, and forgotten here only when they are there.
#[async_trait]
pub trait Destination: Send {
    /// What people call it, as `otlp`: lower-case letters, digits, `-` and `_`. Its cursor's file and its metrics have that name.
    fn name(&self) -> &str;

    /// Hands over some records, in order. When it returns, they are safe on the other side. It may be dropped at
    /// any `await`, when it takes too long: then the same records come again.
    ///
    /// # Errors
    /// They are not: whoever follows the log tries again, with backoff.
    async fn deliver(&mut self, records: &[Line]) -> Result<(), Undelivered>;
}
