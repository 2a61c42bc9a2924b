//! How declared state reaches a data plane, and how the data plane answers: the contract.
//!
//! A [`Feed`] is where a data plane reads. There are two: [`subscriber`] follows a control plane over gRPC and keeps the last
//! good copy on disk ([`last_good`]), and [`mod@file`] follows a resources file. At the other end of the subscriber stands the
//! [`publisher`], which follows a store, works out what each data plane needs ([`scope`]) and sends the least ([`delta`]).
//!
//! This room is below the trust floor: connections come in ready made, with the SPIFFE ID that their handshake verified.

use async_trait::async_trait;

use crate::model::{Change, Id, Kind, Rejected, Revision};

pub mod canary;
pub mod delta;
pub mod file;
pub mod fleet;
mod generated;
pub mod last_good;
pub mod probation;
pub mod publisher;
pub mod scope;
pub mod subscriber;
#[cfg(test)]
mod tests;

/// Declared state over time, and the way back.
///
/// The reader calls `next`, puts the batch into force, calls `applied`, and begins again.
#[async_trait]
pub trait Feed: Send {
    /// Waits for the next batch, for ever if need be: a feed whose source is away is silent, not over.
    ///
    /// Cancel safe: a batch that was not returned is returned by the next call.
    async fn next(&mut self) -> Batch;

    /// Answers the batch that `next` returned last. Until then nothing counts as in force, and no further batch comes.
    ///
    /// Once more without a batch in between, it tells that something else is refused by now, or no longer.
    fn applied(&mut self, applied: Applied);
}

/// Changes that belong together: they come into force at once or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What is new, different or gone.
    pub changes: Vec<Change>,
    /// What is there in a version that cannot be read. The version before it, if there is one, stays in force.
    pub unreadable: Vec<Rejected>,
    /// The revision that the state has with this batch.
    pub revision: Revision,
    /// A full state: every resource that neither `changes` nor `unreadable` names is gone.
    pub complete: bool,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The revision that is in force now.
    pub revision: Revision,
    /// What the reader found that it cannot put into force: resources of this batch, or others that suffer from it. Each counts
    /// as refused until a later batch brings it anew or deletes it, or until it is `restored`.
    pub rejected: Vec<Rejected>,
    /// What was refused earlier and is in force now although it did not change itself: something that it refers to has. May
    /// name more than was ever refused.
    pub restored: Vec<(Kind, Id)>,
}
