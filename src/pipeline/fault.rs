//! `Flow`, `Reply` and `Fault`: what a hook may answer, whose fault a failure is, and what the caller gets to read.

use bytes::Bytes;

use super::BodyStream;

/// What happens after a hook.
#[derive(Debug)]
pub enum Flow {
    /// The exchange goes on.
    Next,
    /// The exchange is answered here; nothing goes upstream.
    Reply(Box<Reply>),
}

impl Flow {
    /// Answers with this status and a JSON body.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::Reply(Box::new(Reply::json(status, body)))
    }

    /// Answers 403 with `{"message": …}`.
    pub fn forbid(message: &str) -> Self {
        Self::json(403, &serde_json::json!({ "message": message }))
    }
}

/// An answer that the gateway itself gives.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Fields; the codec adds the framing.
    pub fields: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
    /// What comes behind it, made while it is sent.
    pub rest: Option<BodyStream>,
    /// It is an upstream's answer that was kept, and no refusal: what holds for answers of upstreams holds for it.
    pub is_kept: bool,
}

impl Reply {
    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// A plain text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        let body: String = body.into();
        Self { status, body: body.into(), ..Self::default() }
            .with("Content-Type", "text/plain; charset=utf-8")
    }

    /// A JSON value.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { status, body: format!("{body}\n").into(), ..Self::default() }
            .with("Content-Type", "application/json")
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller broke a rule of the protocol, or left.
    Client,
    /// We did.
    Gateway,
    /// The other end did.
    Upstream,
}

/// A failed exchange: a sentence for the caller, the cause for the log.
#[derive(Debug)]
pub struct Fault {
    /// Whose fault it is.
    pub side: Side,
    /// The status that the caller gets.
    pub status: u16,
    /// The sentence that the caller reads; never an internal.
    pub sentence: &'static str,
    /// What really happened, for the log.
    pub cause: String,
    /// May the request be tried at another node?
    pub retry: bool,
}

impl Fault {
    /// The caller's fault.
    pub fn client(status: u16, sentence: &'static str) -> Self {
        Self { side: Side::Client, status, sentence, cause: String::new(), retry: false }
    }

    /// Ours.
    pub fn gateway(sentence: &'static str, cause: impl Into<String>) -> Self {
        Self { side: Side::Gateway, status: 500, sentence, cause: cause.into(), retry: false }
    }

    /// Says which plugin it was, for the log.
    #[must_use]
    pub fn of_plugin(mut self, plugin: &str) -> Self {
        self.cause = if self.cause.is_empty() {
            plugin.to_owned()
        } else {
            format!("{plugin}: {}", self.cause)
        };
        self
    }

    /// The upstream's; `retry` when nothing of the request can have been acted on.
    pub fn upstream(
        status: u16,
        sentence: &'static str,
        cause: impl Into<String>,
        retry: bool,
    ) -> Self {
        Self { side: Side::Upstream, status, sentence, cause: cause.into(), retry }
    }
}
