//! What the plugins that ask another server share: how it is reached, and which of its header fields may go on.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::pipeline::{Build, Exchange, Invalid, Known, Server, Terms};

/// How a server is reached, as APISIX's settings say it.
pub(super) struct Reach<'c> {
    /// The field that has the URL.
    pub(super) field: &'static str,
    pub(super) url: &'c str,
    /// Milliseconds.
    pub(super) timeout: u64,
    pub(super) ssl_verify: bool,
    pub(super) keepalive: bool,
    /// Milliseconds.
    pub(super) keepalive_timeout: u64,
    pub(super) keepalive_pool: usize,
}

impl Reach<'_> {
    /// The server. It is kept from revision to revision, with its connections, as long as nothing of this changes.
    pub(super) fn server(&self, build: &Build<'_>) -> Result<Arc<Server>, Invalid> {
        if !(1..=60_000).contains(&self.timeout) {
            return Err(Invalid::new("timeout: 1 to 60000 ms are expected"));
        }
        if self.keepalive_timeout < 1000 {
            return Err(Invalid::new("keepalive_timeout: at least 1000 ms are expected"));
        }
        if self.keepalive_pool == 0 {
            return Err(Invalid::new("keepalive_pool: at least 1 is expected"));
        }
        let kept = (Duration::from_millis(self.keepalive_timeout), self.keepalive_pool);
        kept_server(
            build,
            self.field,
            self.url,
            Terms {
                within: Duration::from_millis(self.timeout),
                verify: self.ssl_verify,
                keep: self.keepalive.then_some(kept),
            },
        )
    }
}

/// The server at `url`, with the connections that the revision before had.
pub(super) fn kept_server(
    build: &Build<'_>,
    field: &str,
    url: &str,
    terms: Terms,
) -> Result<Arc<Server>, Invalid> {
    let server = Server::new(field, url, terms)?;
    Ok(build.keep(&format!("{url} {terms:?}"), || server))
}

/// A header's name that may be taken from a request, or from another server's answer to a caller: any but those of framing.
pub(super) fn readable_name(field: &str, text: &str) -> Result<HeaderName, Invalid> {
    let known = Known::of(text.as_bytes());
    let name: Result<HeaderName, _> = text.parse();
    match name {
        Ok(name) if !known.is_hop_by_hop() && known != Known::ContentLength => Ok(name),
        Ok(_) => Err(Invalid::new(format!("{field}: '{text}' belongs to the framing of messages"))),
        Err(_) => Err(Invalid::new(format!("{field}: '{text}' is no header name"))),
    }
}

/// Adds every value that the request has of this header.
pub(super) fn copy_request(exchange: &Exchange, name: &HeaderName, to: &mut HeaderMap) {
    if *name == http::header::HOST {
        to.extend(
            lawful(exchange.request.authority().as_bytes()).map(|value| (name.clone(), value)),
        );
        return;
    }
    for value in exchange.request.all(name.as_str()).filter_map(lawful) {
        to.append(name.clone(), value);
    }
}

/// A field's value, unless it has bytes that none may have.
pub(super) fn lawful(value: &[u8]) -> Option<HeaderValue> {
    HeaderValue::from_bytes(value).ok()
}

pub(super) const fn yes() -> bool {
    true
}
pub(super) const fn default_timeout() -> u64 {
    3000
}
pub(super) const fn default_keepalive_timeout() -> u64 {
    60_000
}
pub(super) const fn default_keepalive_pool() -> usize {
    5
}
