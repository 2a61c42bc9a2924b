//! Hop-by-hop fields and identity fields: what is taken off on arrival and put on before sending.

use std::fmt::Write as _;
use std::sync::Arc;

use tokio::time::Instant;

use super::forwarded::Forwarding;
use super::switch::Switch;
use crate::pipeline::{Client, Exchange, Head, Known};
use crate::proxy::senders::Senders;

/// What the fields of one hop said before they were taken off.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Hop {
    /// `TE: trailers`: gRPC asks for it.
    pub(in crate::proxy) te_trailers: bool,
    /// The protocol that `Upgrade` names.
    pub(in crate::proxy) upgrade: Option<Vec<u8>>,
    /// What the exchange may turn into, once that is decided.
    pub(in crate::proxy) switch: Option<Switch>,
    /// When the time that the caller gives is over; gRPC alone has one.
    pub(in crate::proxy) deadline: Option<Instant>,
}

/// Takes off a message's hop-by-hop fields (RFC 9110 section 7.6.1), those that `Connection` names included.
fn take_hop(head: &mut Head) -> Hop {
    let mut hop = Hop::default();
    if !head.has(Known::is_hop_by_hop) {
        return hop;
    }
    let mut named: Vec<Vec<u8>> = Vec::new();
    for field in head.fields() {
        match field.known {
            Known::Te => hop.te_trailers |= super::h1::names_trailers(field.value),
            Known::Upgrade => hop.upgrade = Some(field.value.to_vec()),
            Known::Connection => {
                for token in field.value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    // Framing, Host and what we set ourselves is ours to decide, whatever a peer names here.
                    let known = Known::of(token);
                    if !token.is_empty()
                        && !known.is_hop_by_hop()
                        && known == Known::Other
                        && !is_option(token)
                    {
                        named.push(token.to_vec());
                    }
                }
            }
            _ => {}
        }
    }
    head.remove_where(|field| {
        field.known.is_hop_by_hop()
            || named.iter().any(|name| field.name.as_bytes().eq_ignore_ascii_case(name))
    });
    hop
}

fn is_option(token: &[u8]) -> bool {
    token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"keep-alive")
}

/// What happens to a request's head on arrival, before anybody looks at it.
pub(in crate::proxy) fn receive(exchange: &mut Exchange, told: &Told) -> Hop {
    let hop = take_hop(&mut exchange.request);
    told.forwarding.hear(exchange);
    let consumers_trusted = is_ingress(&exchange.client);
    let drop = |known: Known| {
        known.is_identity()
            || known == Known::Expect
            || (known == Known::ConsumerClaim && !consumers_trusted)
            || told.forwarding.refuses(known)
    };
    if exchange.request.has(drop) {
        exchange.request.remove_where(|field| drop(field.known));
    }
    told.forwarding.correct(exchange);
    hop
}

/// Claims about consumers are taken from our own trust domain's ingress only, as the handshake proved it.
fn is_ingress(client: &Client) -> bool {
    let (Some(peer), Some(me)) = (&client.peer, &client.me) else { return false };
    peer.id.trust_domain_name() == me.trust_domain_name() && peer.id.path() == "/wardgate/ingress"
}

/// What happens to a response's head on arrival.
pub(in crate::proxy) fn receive_response(head: &mut Head) {
    take_hop(head);
}

/// The `x-forwarded-client-cert` of a connection, as Envoy writes it; `None` without a peer.
///
/// SPIFFE IDs and digests have no byte that would need quoting.
fn client_certificate(client: &Client) -> Option<String> {
    let peer = client.peer.as_ref()?;
    let mut field = String::new();
    if let Some(me) = &client.me {
        let _ = write!(field, "By={me};");
    }
    let _ = write!(field, "Hash={};URI={}", peer.sha256, peer.id);
    Some(field)
}

/// What every request of a connection tells the upstream about its caller: written once.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Told {
    client_certificate: Option<String>,
    forwarding: Forwarding,
}

impl Told {
    /// For a connection whose handshake is over.
    pub(in crate::proxy) fn new(client: &Client, senders: &Arc<Senders>) -> Self {
        Self {
            client_certificate: client_certificate(client),
            forwarding: Forwarding::of(client, senders),
        }
    }
}

/// Puts on what tells the upstream about the caller.
pub(in crate::proxy) fn send(exchange: &mut Exchange, told: &Told) {
    if let Some(value) = &told.client_certificate {
        exchange.request.append("x-forwarded-client-cert", value.as_bytes());
    }
    told.forwarding.tell(exchange);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_one_hop_ends_there_and_nobody_can_take_off_what_is_ours() {
        let mut head = Head::request("GET", "/", "a");
        for (name, value) in [
            ("Connection", "close, X-Own, content-length, x-forwarded-client-cert"),
            ("X-Own", "1"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("Upgrade", "websocket"),
            ("Content-Length", "3"),
            ("X-Forwarded-Client-Cert", "URI=spiffe://a/b"),
            ("X-End", "2"),
        ] {
            head.append(name, value.as_bytes());
        }
        let hop = take_hop(&mut head);
        assert!(hop.te_trailers);
        assert_eq!(hop.upgrade.as_deref(), Some(&b"websocket"[..]));
        let names: Vec<_> = head.fields().map(|field| field.name.to_owned()).collect();
        assert_eq!(names, ["Content-Length", "X-Forwarded-Client-Cert", "X-End"]);
    }

    #[test]
    fn claims_of_identity_are_known_in_every_spelling() {
        for name in [
            "x-forwarded-client-cert",
            "X_Forwarded_Client_Cert",
            "Client-Cert",
            "x-ssl-client-verify",
            "X-SPIFFE-ID",
            "l5d-client-id",
            "SSL_CLIENT_CERT",
        ] {
            assert!(Known::of(name.as_bytes()).is_identity(), "{name}");
        }
        for name in ["x-consumer-username", "X_Consumer_Custom_ID", "X-Credential-Identifier"] {
            assert_eq!(Known::of(name.as_bytes()), Known::ConsumerClaim, "{name}");
        }
        for name in ["x-consume", "accept", "x-spiff", "client-certs"] {
            assert_eq!(Known::of(name.as_bytes()), Known::Other, "{name}");
        }
    }
}
