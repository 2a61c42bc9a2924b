//! `CacheKey`: under what an answer is stored. Whatever may make answers differ is in it, each part with its length.

use serde_json::Value;

use crate::pipeline::{Exchange, ExternalUser, Head, Known, Vouched};
use crate::rt::crypto::digest::{Context, SHA256};

/// A SHA-256.
pub(super) type Sum = [u8; 32];

/// Under what an answer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheKey {
    /// What is asked for, whoever asks.
    pub(super) resource: Sum,
    /// The same for whom it is kept.
    pub(super) entry: Sum,
}

struct Parts(Context);

impl Parts {
    fn of(kind: &str) -> Self {
        Self(Context::new(&SHA256)).and(kind.as_bytes())
    }

    /// `ab` and `c` are not `a` and `bc`.
    fn and(mut self, part: &[u8]) -> Self {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    fn sum(self) -> Sum {
        let mut sum = Sum::default();
        sum.copy_from_slice(self.0.finish().as_ref());
        sum
    }
}

/// The digest of one text.
#[cfg(test)]
pub(super) fn sum_of(bytes: &[u8]) -> Sum {
    Parts::of("text").and(bytes).sum()
}

impl CacheKey {
    /// The key of this request. `parts` are the operator's, `body` a body that belongs to what is asked for. With `isolated`
    /// answers to one caller are for this caller alone.
    ///
    /// The route is always in it, and so are scheme, authority and the whole of every part: two requests that could be
    /// answered differently by rights have two keys.
    pub fn of(exchange: &Exchange, parts: &[String], body: Option<&[u8]>, isolated: bool) -> Self {
        let mut resource = Parts::of("resource")
            .and(exchange.route.as_ref().map_or("", |route| route.id.as_str()).as_bytes())
            .and(if exchange.is_secure() { b"https" } else { b"http" })
            .and(exchange.request.authority().to_ascii_lowercase().as_bytes());
        for part in parts {
            resource = resource.and(part.as_bytes());
        }
        let resource = resource.sum();
        let mut entry = Parts::of("entry").and(&resource).and(body.unwrap_or_default());
        if isolated {
            entry = entry.and(&caller(exchange));
        }
        Self { resource, entry: entry.sum() }
    }

    /// The key in hexadecimal digits.
    pub fn text(&self) -> String {
        hex::encode(self.entry)
    }
}

/// Who calls, by everything that was found out or is told on: connection, token, consumer, credential.
fn caller(exchange: &Exchange) -> Sum {
    let peer = exchange.client.peer.as_ref().map_or("", |peer| peer.id.as_str());
    let consumer = exchange.consumer.as_ref().map_or("", |consumer| &consumer.name);
    let mut parts = Parts::of("caller").and(peer.as_bytes()).and(consumer.as_bytes());
    parts = parts.and(claims(exchange).as_bytes());
    let user = exchange.notes.find::<ExternalUser>().map(|user| user.0.to_string());
    parts = parts.and(user.unwrap_or_default().as_bytes());
    // What an authorization service has said of the caller, for the upstream to read.
    parts = parts.and(exchange.notes.find::<Vouched>().map_or(&[][..], |vouched| &vouched.0));
    for value in exchange.request.all("authorization") {
        parts = parts.and(value);
    }
    // Behind our own ingress the consumer is known by what that says.
    for field in exchange.request.fields().filter(|field| field.known == Known::ConsumerClaim) {
        parts = parts.and(field.name.to_ascii_lowercase().as_bytes()).and(field.value);
    }
    parts.sum()
}

/// The claims of the caller's token but for those that differ from token to token of one caller.
fn claims(exchange: &Exchange) -> String {
    let Some(claims) = exchange.verified_claims() else { return String::new() };
    let fleeting = ["exp", "iat", "nbf", "jti", "auth_time", "nonce", "at_hash"];
    let mut lasting: Vec<(&String, &Value)> =
        claims.iter().filter(|(name, _)| !fleeting.contains(&name.as_str())).collect();
    lasting.sort_by_key(|(name, _)| *name);
    serde_json::to_string(&lasting).unwrap_or_default()
}

/// What a request says in the fields that an answer's `Vary` names; `None` where nobody can tell.
pub(super) fn selection(request: &Head, names: &[String]) -> Option<Vec<(String, String)>> {
    let of = |name: &String| {
        if changes_on_the_way(name) {
            return None;
        }
        let mut parts = Parts::of("vary");
        for value in request.all(name) {
            parts = parts.and(value);
        }
        Some((name.clone(), hex::encode(parts.sum())))
    };
    names.iter().map(of).collect()
}

/// What we ourselves write between a look into the cache and the upstream: it differs from request to request.
fn changes_on_the_way(name: &str) -> bool {
    matches!(
        Known::of(name.as_bytes()),
        Known::ForwardedClientCert | Known::ForwardedFor | Known::Forwarded | Known::RealIp
    )
}
