//! `Exchange`: one request and its answer on their way.

use std::any::Any;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{Destination, Expr, Head, Inner, PathRules, RequestBody, Within};
use crate::identity::{JwtSvid, Peer, SpiffeId, Tokens};
use crate::model::{Id, Labels, Listeners};

/// The caller's connection, the same for all its exchanges.
#[derive(Clone, Debug)]
pub struct Client {
    /// The connection's number in this process.
    pub connection: u64,
    /// Which door it came through.
    pub door: Listeners,
    /// Who connected: the socket's other end, or whom a trusted balancer introduced there (PROXY protocol). Never taken from
    /// a field of a request: [`Exchange::remote`] is what those of trusted senders may say.
    pub address: SocketAddr,
    /// The socket's own end.
    pub local: SocketAddr,
    /// Who introduced the connection, and as one to where.
    pub introduced: Option<Introduced>,
    /// Whom the handshake proved, on mTLS.
    pub peer: Option<Arc<Peer>>,
    /// Our own identity, where we have one.
    pub me: Option<SpiffeId>,
    /// Is it TLS?
    pub tls: bool,
    /// The server name that the client asked for.
    pub sni: Option<Box<str>>,
}

/// Of a connection that came through a balancer: what its PROXY header said beside the caller's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduced {
    /// The socket's other end: the balancer.
    pub by: SocketAddr,
    /// Where the caller had connected to.
    pub destination: SocketAddr,
}

/// What plugins may know of the matched route.
#[derive(Clone, Debug)]
pub struct RouteInfo {
    /// Its id.
    pub id: Id,
    /// Its name.
    pub name: Option<String>,
    /// Its labels, with its service's behind them.
    pub labels: Labels,
    /// Its service's id.
    pub service: Option<Id>,
    /// The upstream that it or its service names.
    pub upstream: Option<Id>,
    /// What is allowed is on record before it has effect.
    pub must_record: bool,
    /// Its service's name.
    pub service_name: Option<String>,
    /// Its paths, as the route writes them.
    pub paths: Vec<String>,
    /// Its hosts, as the route or its service writes them.
    pub hosts: Vec<String>,
    /// The plugins that run on it, by name: its own, its plugin config's and its service's.
    pub plugins: Vec<&'static str>,
}

/// A consumer as found by a credential.
#[derive(Clone, Debug, Default)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: Option<Id>,
    /// Its labels.
    pub labels: Labels,
    /// The id of the credential that was presented, when it is a credential of its own.
    pub credential: Option<String>,
}

/// A credential as its plugin made it ready for use, once a revision: the plugin knows its type.
pub type Ready = Arc<dyn Any + Send + Sync>;

/// Credentials to consumers, of one snapshot.
pub trait Directory: Send + Sync {
    /// The consumer whose credential for `plugin` has `key`, and that credential's settings.
    fn find(&self, plugin: &str, key: &str) -> Option<(Arc<Consumer>, Arc<Value>)>;
    /// The consumer whose credential for `plugin` has a SPIFFE pattern that means `id`; of several the most particular one.
    fn of_identity(&self, plugin: &str, id: &SpiffeId) -> Option<(Arc<Consumer>, Arc<Value>)>;
    /// As [`Directory::find`], with the credential as its plugin made it ready ([`Credential`]).
    ///
    /// [`Credential`]: super::Credential
    fn ready(&self, plugin: &str, key: &str) -> Option<(Arc<Consumer>, Ready)>;
    /// The consumer of that name.
    fn named(&self, name: &str) -> Option<Arc<Consumer>>;
}

/// Where a response came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponseSource {
    /// From the gateway: a plugin, a policy, no route.
    #[default]
    Gateway,
    /// From the gateway because the upstream failed.
    Failure,
    /// From the upstream.
    Upstream,
}

/// When the steps of an exchange happened.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The request's head was complete.
    pub started: Instant,
    /// The request went to the upstream.
    pub forwarded: Option<Instant>,
    /// The upstream's head was complete.
    pub answered: Option<Instant>,
}

/// Values that plugins leave for their later phases, by type.
#[derive(Default)]
pub struct Notes(Vec<Box<dyn Any + Send + Sync>>);

impl Notes {
    /// Leaves `note`, in place of an earlier one of its type.
    pub fn leave<T: Any + Send + Sync>(&mut self, note: T) {
        match self.0.iter_mut().find_map(|kept| kept.downcast_mut::<T>()) {
            Some(kept) => *kept = note,
            None => self.0.push(Box::new(note)),
        }
    }

    /// The note of this type.
    pub fn find<T: Any>(&self) -> Option<&T> {
        self.0.iter().find_map(|kept| kept.downcast_ref())
    }

    /// Takes the note of this type away.
    pub fn forget<T: Any>(&mut self) {
        self.0.retain(|kept| !kept.is::<T>());
    }

    /// The note of this type, to add to it.
    pub fn find_mut<T: Any>(&mut self) -> Option<&mut T> {
        self.0.iter_mut().find_map(|kept| kept.downcast_mut())
    }
}

/// A note: the id that a plugin gave the request or took from it; what `$apisix_request_id` reads.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// A note: what an identity provider says of a caller that is no consumer; what `acl` goes by.
#[derive(Clone, Debug)]
pub struct ExternalUser(pub Value);

/// A note: what an authorization service has said of the caller for the upstream to read, as names and values. Answers may
/// differ by it.
#[derive(Clone, Debug, Default)]
pub struct Vouched(pub Vec<u8>);

impl Vouched {
    /// One field of it.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.0.extend_from_slice(&(part.len() as u64).to_le_bytes());
            self.0.extend_from_slice(part);
        }
    }
}

/// A note: why an auth plugin refused the caller. It becomes a record of the decision log.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Which plugin it was.
    pub plugin: &'static str,
    /// A stable code.
    pub reason: &'static str,
    /// The refused token, by the start of its SHA-256.
    pub token_hash: Option<String>,
    /// Whom the token names and its `jti`, when its signature was good.
    pub token: Option<Arc<JwtSvid>>,
}

impl std::fmt::Debug for Notes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Notes({})", self.0.len())
    }
}

/// What goes upstream in place of what came. The request itself stays as it was, for variables and logs.
#[derive(Clone, Debug, Default)]
pub struct Rewritten {
    /// Path and query.
    pub target: Option<String>,
    /// The host.
    pub host: Option<String>,
    /// The method.
    pub method: Option<String>,
}

/// One request and its answer. Reused: `forget` empties it for the next one.
pub struct Exchange {
    /// The request as received, with what plugins changed of its fields, and without the credentials that they took out.
    pub request: Head,
    /// The response's head; empty until there is one.
    pub response: Head,
    /// The caller's connection.
    pub client: Arc<Client>,
    /// Does the caller speak HTTP/2?
    pub is_http2: bool,
    /// Who called, where a trusted sender said so in a field of the request (`ingress.real_ip`).
    pub caller: Option<SocketAddr>,
    /// Whether the caller came over TLS, where a trusted sender said so (`X-Forwarded-Proto`).
    pub forwarded_tls: Option<bool>,
    /// Bytes that this request's body may have, in place of the setting `limits.request_body_bytes`; 0: as many as there are.
    pub body_limit: Option<u64>,
    /// The matched route; `None` before routing and when nothing matched.
    pub route: Option<Arc<RouteInfo>>,
    /// Which of the route's paths matched.
    pub matched_path: usize,
    /// Which of the route's hosts matched; `None` for a route without hosts.
    pub matched_host: Option<usize>,
    /// How the process reads paths.
    pub path_rules: PathRules,
    /// Path parameters that the router caught.
    pub params: Vec<(String, String)>,
    /// The consumers of this snapshot.
    pub consumers: Option<Arc<dyn Directory>>,
    /// Where JWT-SVIDs are verified; nowhere without an identity of our own.
    pub tokens: Option<Arc<Tokens>>,
    /// Whom the caller's token names, once a plugin has verified it. It is never the connection's peer.
    pub token: Option<Arc<JwtSvid>>,
    /// The claims of the caller's token, handed over by the auth plugin that has verified it: what policy goes by. Those of
    /// [`Exchange::token`] where no plugin says otherwise.
    pub claims: Option<Arc<Map<String, Value>>>,
    /// The protocol that the request is about to switch its connection to, in lower case; `connect` for a tunnel.
    pub upgrade: Option<Cow<'static, str>>,
    /// Who calls, once an auth plugin knows.
    pub consumer: Option<Arc<Consumer>>,
    /// What goes upstream in place of what came.
    pub rewritten: Rewritten,
    /// Where it goes in place of the route's upstream.
    pub destination: Option<Destination>,
    /// Does the caller speak HTTP/1.0?
    pub is_http10: bool,
    /// Has the request a body?
    pub has_body: bool,
    /// What hooks have asked for of the request's body.
    pub body: RequestBody,
    /// Where hooks ask further requests in the caller's name; there alone where a plugin said that it does.
    pub inner: Option<Arc<dyn Inner>>,
    /// What it is that a hook has asked, when it is no caller's own request.
    pub within: Option<Within>,
    /// What plugins left for their later phases.
    pub notes: Notes,
    /// What conditions said when they were first asked, by the condition's number.
    verdicts: Vec<(u64, bool)>,
    /// When things happened.
    pub times: Times,
    /// Where the response came from.
    pub source: ResponseSource,
    /// The node that was tried last.
    pub endpoint: Option<SocketAddr>,
    /// The statuses that upstream attempts gave, in their order.
    pub upstream_statuses: Vec<u16>,
    /// Bytes of the request, head and body, as received.
    pub bytes_in: u64,
    /// Bytes of the response, head and body, as sent.
    pub bytes_out: u64,
}

impl Rewritten {
    /// Does anything other go upstream than what came?
    pub fn is_any(&self) -> bool {
        self.target.is_some() || self.host.is_some() || self.method.is_some()
    }
}

impl Exchange {
    /// An exchange for `client`'s connection.
    pub fn new(client: Arc<Client>) -> Self {
        Self {
            request: Head::default(),
            response: Head::default(),
            client,
            is_http2: false,
            caller: None,
            forwarded_tls: None,
            body_limit: None,
            route: None,
            matched_path: 0,
            matched_host: None,
            path_rules: PathRules::default(),
            params: Vec::new(),
            consumers: None,
            tokens: None,
            token: None,
            claims: None,
            upgrade: None,
            consumer: None,
            rewritten: Rewritten::default(),
            destination: None,
            is_http10: false,
            has_body: false,
            body: RequestBody::default(),
            inner: None,
            within: None,
            notes: Notes::default(),
            verdicts: Vec::new(),
            times: Times { started: Instant::now(), forwarded: None, answered: None },
            source: ResponseSource::Gateway,
            endpoint: None,
            upstream_statuses: Vec::new(),
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// Forgets the last exchange and keeps its memory.
    pub fn forget(&mut self) {
        self.request.clear();
        self.response.clear();
        (self.caller, self.forwarded_tls, self.body_limit) = (None, None, None);
        self.route = None;
        self.matched_path = 0;
        self.matched_host = None;
        self.params.clear();
        (self.token, self.claims, self.upgrade) = (None, None, None);
        self.consumer = None;
        self.rewritten = Rewritten::default();
        self.destination = None;
        self.body = RequestBody::default();
        (self.has_body, self.inner, self.within) = (false, None, None);
        self.notes.0.clear();
        self.verdicts.clear();
        (self.times.forwarded, self.times.answered) = (None, None);
        self.source = ResponseSource::Gateway;
        self.endpoint = None;
        self.upstream_statuses.clear();
        (self.bytes_in, self.bytes_out) = (0, 0);
    }

    /// The request's path as `$uri` has it; `None` when it has no reading.
    pub fn uri(&self) -> Option<Cow<'_, [u8]>> {
        self.path_rules.uri(self.request.path())
    }

    /// The address of who calls: the connection's, or the one that a trusted sender named.
    pub fn remote(&self) -> SocketAddr {
        self.caller.unwrap_or(self.client.address)
    }

    /// The claims of the caller's token, once a plugin has verified it.
    pub fn verified_claims(&self) -> Option<&Map<String, Value>> {
        self.claims.as_deref().or_else(|| self.token.as_ref().map(|token| &token.claims))
    }

    /// Bytes that the request's body may have, where the settings allow `otherwise`.
    pub fn body_limit(&self, otherwise: u64) -> u64 {
        match self.body_limit {
            None => otherwise,
            Some(0) => u64::MAX,
            Some(limit) => limit,
        }
    }

    /// Did the caller come over TLS, to us or to a trusted sender before us?
    pub fn is_secure(&self) -> bool {
        self.forwarded_tls.unwrap_or(self.client.tls)
    }

    /// Asks `condition` once in this exchange: later phases get the first answer, whatever has changed since.
    pub fn judge(&mut self, condition: &Expr) -> bool {
        let known = self.verdict(condition);
        known.unwrap_or_else(|| {
            let holds = condition.holds(self);
            self.verdicts.push((condition.id(), holds));
            holds
        })
    }

    /// The answer that [`Exchange::judge`] got, or the present one when nobody has asked yet.
    pub fn judged(&self, condition: &Expr) -> bool {
        self.verdict(condition).unwrap_or_else(|| condition.holds(self))
    }

    fn verdict(&self, condition: &Expr) -> Option<bool> {
        let known = self.verdicts.iter().find(|(id, _)| *id == condition.id());
        known.map(|(_, holds)| *holds)
    }

    /// Names the consumer, and tells the upstream who it is. What the client said of it is removed.
    pub fn attach(&mut self, consumer: Arc<Consumer>) {
        let request = &mut self.request;
        for name in ["X-Consumer-Username", "X-Credential-Identifier", "X-Consumer-Custom-ID"] {
            request.remove(name);
        }
        request.set("X-Consumer-Username", consumer.name.as_bytes());
        if let Some(credential) = &consumer.credential {
            request.set("X-Credential-Identifier", credential.as_bytes());
        }
        if let Some(custom) = consumer.labels.get("custom_id") {
            request.set("X-Consumer-Custom-ID", custom.as_bytes());
        }
        self.consumer = Some(consumer);
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("request", &self.request)
            .field("response", &self.response)
            .field("route", &self.route.as_ref().map(|route| &route.id))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::pipeline::tests::exchange;

    #[test]
    fn what_a_trusted_sender_or_a_plugin_said_counts_for_one_request() {
        let mut exchange = exchange("GET", "/", "a");
        assert_eq!(exchange.remote(), exchange.client.address);
        assert_eq!((exchange.is_secure(), exchange.body_limit(7)), (false, 7));
        exchange.caller = Some("[2001:db8::1]:0".parse().unwrap());
        (exchange.forwarded_tls, exchange.body_limit) = (Some(true), Some(9));
        assert_eq!(exchange.remote().to_string(), "[2001:db8::1]:0");
        assert_eq!((exchange.is_secure(), exchange.body_limit(7)), (true, 9));
        exchange.body_limit = Some(0);
        assert_eq!(exchange.body_limit(7), u64::MAX);
        exchange.forget();
        assert_eq!(exchange.remote(), exchange.client.address);
        assert_eq!((exchange.is_secure(), exchange.body_limit(7)), (false, 7));
    }
}
