//! One trait a phase, and `Hooks`: what one compiled plugin does in which.

use std::sync::Arc;

use async_trait::async_trait;

use super::{BodyFilter, BodyWatch, Exchange, Fault, Flow, Reply};

/// Before the consumer's plugins are merged in: change the request, find the consumer, answer.
#[async_trait]
pub trait Rewrite: Send + Sync {
    /// The hook.
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault>;
}

/// With the consumer known and its plugins merged: admit, limit, answer.
#[async_trait]
pub trait Access: Send + Sync {
    /// The hook.
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault>;
}

/// Before each attempt: change what goes to this endpoint.
#[async_trait]
pub trait Forward: Send + Sync {
    /// The hook.
    async fn forward(&self, exchange: &mut Exchange) -> Result<Flow, Fault>;
}

/// What becomes of an upstream's answer.
pub enum Taken {
    /// It goes on.
    Passes,
    /// It goes on, and somebody watches its body.
    Watched(Box<dyn BodyWatch>),
    /// The caller gets this in its place.
    Replaced(Box<Reply>),
}

/// The upstream has answered, or failed to, and no plugin has changed anything of that yet.
pub trait Answered: Send + Sync {
    /// The answer's head is there.
    fn answered(&self, exchange: &mut Exchange) -> Taken;

    /// There is no answer. What is given here takes the place of the fault.
    fn failed(&self, exchange: &mut Exchange, fault: &Fault) -> Option<Box<Reply>>;
}

/// The response's head is there and not sent yet: status and fields may change.
pub trait ResponseHead: Send + Sync {
    /// The hook.
    ///
    /// # Errors
    /// The response cannot be served.
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault>;
}

/// Offers a filter for this response's body, or none.
pub trait ResponseBody: Send + Sync {
    /// The hook; runs after all `response_head` hooks.
    fn filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>>;
}

/// Gives the body another coding, behind all filters: no hook looks at a body that is coded.
pub trait Encode: Send + Sync {
    /// The hook; the head is as it goes out. Says in it what it does.
    fn encode(&self, exchange: &mut Exchange) -> Option<Box<dyn BodyFilter>>;
}

/// The exchange is over, however it ended. Enqueue and return; never wait.
pub trait Log: Send + Sync {
    /// The hook.
    fn log(&self, exchange: &Exchange);
}

/// What one compiled plugin does, phase by phase. One object behind one `Arc` serves all its phases.
#[derive(Clone, Default)]
pub struct Hooks {
    pub(super) rewrite: Option<Arc<dyn Rewrite>>,
    pub(super) access: Option<Arc<dyn Access>>,
    pub(super) forward: Option<Arc<dyn Forward>>,
    pub(super) answered: Option<Arc<dyn Answered>>,
    pub(super) response_head: Option<Arc<dyn ResponseHead>>,
    pub(super) response_body: Option<Arc<dyn ResponseBody>>,
    pub(super) encode: Option<Arc<dyn Encode>>,
    pub(super) log: Option<Arc<dyn Log>>,
    pub(super) reads_body: bool,
    pub(super) asks_within: bool,
}

impl Hooks {
    /// Starts the list of phases that `plugin` takes part in.
    pub fn of<P: Send + Sync + 'static>(plugin: P) -> HooksOf<P> {
        HooksOf { plugin: Arc::new(plugin), hooks: Self::default() }
    }

    /// No phase at all: the plugin's presence is what counts.
    pub fn none() -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks")
            .field("rewrite", &self.rewrite.is_some())
            .field("access", &self.access.is_some())
            .field("forward", &self.forward.is_some())
            .field("response_head", &self.response_head.is_some())
            .field("response_body", &self.response_body.is_some())
            .field("log", &self.log.is_some())
            .finish()
    }
}

/// A [`Hooks`] in the making; each phase demands its trait.
pub struct HooksOf<P> {
    plugin: Arc<P>,
    hooks: Hooks,
}

macro_rules! phase {
    ($name:ident, $hook:ident, $doc:literal) => {
        impl<P: $hook + 'static> HooksOf<P> {
            #[doc = $doc]
            #[must_use]
            pub fn $name(mut self) -> Self {
                self.hooks.$name = Some(self.plugin.clone());
                self
            }
        }
    };
}
phase!(rewrite, Rewrite, "Takes part in `rewrite`.");
phase!(access, Access, "Takes part in `access`.");
phase!(forward, Forward, "Takes part in `forward`.");
phase!(answered, Answered, "Takes part when an upstream has answered, or has not.");
phase!(response_head, ResponseHead, "Takes part in `response_head`.");
phase!(response_body, ResponseBody, "Takes part in `response_body`.");
phase!(encode, Encode, "Takes part in `encode`.");
phase!(log, Log, "Takes part in `log`.");

impl<P> HooksOf<P> {
    /// Its `rewrite` and `access` may ask for the request's body ([`Exchange::read_body`]).
    #[must_use]
    pub fn reading_body(mut self) -> Self {
        self.hooks.reads_body = true;
        self
    }

    /// Its hooks may ask further requests in the caller's name ([`Exchange::inner`]).
    #[must_use]
    pub fn asking_within(mut self) -> Self {
        self.hooks.asks_within = true;
        self
    }

    /// The finished list.
    pub fn done(self) -> Hooks {
        self.hooks
    }
}
