//! `Inner`: further requests that a hook asks in its caller's name. They go the whole way: identity, route, policy, plugins.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::Head;

/// What such a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// It is one of several that a caller has sent together.
    Batch,
    /// A stored answer is asked for anew; nobody reads this one.
    Refresh,
}

/// A request in the caller's name.
#[derive(Clone, Debug)]
pub struct InnerRequest {
    /// What it is for.
    pub within: Within,
    /// Its head, as a caller would have sent it.
    pub head: Head,
    /// Its body; with none, it has none.
    pub body: Bytes,
    /// Bytes of the answer's body that are kept; an answer with more is none.
    pub most: usize,
}

/// The answer to one.
#[derive(Clone, Debug)]
pub struct InnerAnswer {
    /// Its head.
    pub head: Head,
    /// Its body.
    pub body: Bytes,
}

/// An answer that will be there.
pub type InnerAnswers = Pin<Box<dyn Future<Output = Option<InnerAnswer>> + Send>>;

/// Asks further requests in a caller's name, on its connection's terms: what policy and plugins would refuse the caller, they
/// refuse here. What is asked so asks nothing further.
pub trait Inner: Send + Sync {
    /// The caller's request as it came, before any plugin.
    fn original(&self) -> &Head;

    /// Asks; nothing when the answer broke off or is too long.
    fn ask(&self, request: InnerRequest) -> InnerAnswers;

    /// Asks, and nobody waits for it. `lasting` is dropped when it is over.
    fn ask_aside(&self, request: InnerRequest, lasting: Arc<dyn std::any::Any + Send + Sync>);
}
