//! `X-Forwarded-…`, `X-Real-IP`, `Forwarded`: what a sender says of the way that a request came, and what we say of it.
//!
//! An ingress alone has to do with it. In the mesh these fields pass, and nobody goes by them.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::model::Listeners;
use crate::pipeline::{Client, Exchange, Head, Known};
use crate::proxy::senders::{self, Senders};

/// How a connection's sender is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belief {
    /// We are no edge: nothing is changed.
    Inside,
    /// `trusted_addresses` is not set: where from and how we know ourselves; the way before us is continued.
    Unset,
    /// It is one of `trusted_addresses`.
    Trusted,
    /// It is none of them: it speaks for nobody.
    Untrusted,
}

/// What holds for all requests of a connection.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Forwarding {
    belief: Belief,
    senders: Arc<Senders>,
    /// The sender may name the caller's address.
    names_caller: bool,
    /// The field by which others may name the caller, and this sender may not.
    strips: Option<Box<str>>,
    sender: IpAddr,
    /// The sender's address and our port, as text.
    address: Box<str>,
    port: Box<str>,
    is_tls: bool,
}

impl Forwarding {
    pub(in crate::proxy) fn of(client: &Client, senders: &Arc<Senders>) -> Self {
        let sender = client.address.ip().to_canonical();
        let belief = match (client.door, senders.trusts(sender)) {
            (Listeners::Inbound | Listeners::Outbound, _) => Belief::Inside,
            (Listeners::Ingress, None) => Belief::Unset,
            (Listeners::Ingress, Some(true)) => Belief::Trusted,
            (Listeners::Ingress, Some(false)) => Belief::Untrusted,
        };
        Self {
            belief,
            senders: senders.clone(),
            strips: match belief {
                Belief::Inside => None,
                _ => senders.field_refused_of(sender).map(Into::into),
            },
            names_caller: belief != Belief::Inside && senders.real_ip(sender).is_some(),
            sender,
            address: sender.to_string().into(),
            port: client.local.port().to_string().into(),
            is_tls: client.tls,
        }
    }

    /// Takes note of what the sender says and may say, before anything is taken off.
    pub(super) fn hear(&self, exchange: &mut Exchange) {
        if self.names_caller
            && let Some(real_ip) = self.senders.real_ip(self.sender)
        {
            exchange.caller = real_ip.find(&exchange.request);
        }
        if self.belief == Belief::Trusted {
            exchange.forwarded_tls = forwarded_tls(&exchange.request);
        }
    }

    /// Is such a field taken off on arrival?
    pub(super) fn refuses(&self, known: Known) -> bool {
        match (self.belief, known) {
            (Belief::Inside, _) => false,
            // No honest proxy writes it so, and applications may take it for the honest one.
            (_, Known::ForwardedAlias) => true,
            (Belief::Unset, Known::Forwarded) => true,
            (Belief::Untrusted, _) => matches!(
                known,
                Known::Forwarded
                    | Known::ForwardedFor
                    | Known::ForwardedProto
                    | Known::ForwardedHost
                    | Known::ForwardedPort
                    | Known::RealIp
                    | Known::OriginClaim
            ),
            _ => false,
        }
    }

    /// Says how the request came to us, unless a trusted sender has said how it came to it: before routing, so that nobody goes
    /// by what an untrusted one says.
    pub(super) fn correct(&self, exchange: &mut Exchange) {
        if self.belief == Belief::Inside {
            return;
        }
        let request = &mut exchange.request;
        if let Some(name) = &self.strips {
            request.remove(name);
        }
        let keeps = self.belief == Belief::Trusted;
        let ours = |request: &Head, known| !keeps || request.known(known).is_none();
        if ours(request, Known::ForwardedProto) {
            let scheme: &[u8] = if self.is_tls { b"https" } else { b"http" };
            request.set_known(Known::ForwardedProto, "X-Forwarded-Proto", scheme);
        }
        if ours(request, Known::ForwardedPort) {
            request.set_known(Known::ForwardedPort, "X-Forwarded-Port", self.port.as_bytes());
        }
        if ours(request, Known::ForwardedHost) {
            request.set_authority_as(Known::ForwardedHost, "X-Forwarded-Host");
        }
    }

    /// Tells the upstream who called and which way the request came.
    pub(super) fn tell(&self, exchange: &mut Exchange) {
        if self.belief == Belief::Inside {
            return;
        }
        let caller = exchange.caller;
        let request = &mut exchange.request;
        match caller {
            None => request.set_known(Known::RealIp, "X-Real-IP", self.address.as_bytes()),
            Some(caller) => {
                // No address is longer than 45 bytes.
                let mut text = std::io::Cursor::new([0_u8; 48]);
                let _ = write!(text, "{}", caller.ip().to_canonical());
                let length = usize::try_from(text.position()).unwrap_or_default();
                request.set_known(Known::RealIp, "X-Real-IP", &text.get_ref()[..length]);
            }
        }
        // The way goes on with the one who sent it to us, whomever that one speaks for.
        match request.known(Known::ForwardedFor) {
            None => request.append("X-Forwarded-For", self.address.as_bytes()),
            Some(_) => {
                let mut way = SmallVec::<[u8; 256]>::new();
                for hop in request.all("X-Forwarded-For") {
                    way.extend_from_slice(hop);
                    way.extend_from_slice(b", ");
                }
                way.extend_from_slice(self.address.as_bytes());
                request.set_known(Known::ForwardedFor, "X-Forwarded-For", &way);
            }
        }
        if self.belief == Belief::Trusted && request.known(Known::Forwarded).is_some() {
            self.continue_forwarded(request);
        }
    }

    /// Adds our part to `Forwarded`. What is none is taken off: behind an open quote ours would be read as a part of it.
    #[cold]
    fn continue_forwarded(&self, request: &mut Head) {
        let is_whole = request.all("Forwarded").all(|line| senders::elements(line).is_some());
        let mut way = Vec::new();
        if is_whole {
            for line in request.all("Forwarded") {
                way.extend_from_slice(line);
                way.extend_from_slice(b", ");
            }
        }
        let scheme = if self.is_tls { "https" } else { "http" };
        let node = match self.sender {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("\"[{address}]\""),
        };
        let _ = write!(way, "for={node};host=\"{}\";proto={scheme}", request.authority());
        request.set_known(Known::Forwarded, "Forwarded", &way);
    }
}

/// What the one `X-Forwarded-Proto` says; of several, or of anything but the two schemes, nothing is believed.
fn forwarded_tls(request: &Head) -> Option<bool> {
    let mut values = request.all("X-Forwarded-Proto");
    let value = values.next().filter(|_| values.next().is_none())?;
    match value {
        value if value.eq_ignore_ascii_case(b"https") => Some(true),
        value if value.eq_ignore_ascii_case(b"http") => Some(false),
        _ => None,
    }
}

/// The ends that a PROXY header to an upstream names.
pub(in crate::proxy) fn introduction(exchange: &Exchange) -> crate::upstream::Introduction {
    let client = &exchange.client;
    let destination: SocketAddr =
        client.introduced.map_or(client.local, |introduced| introduced.destination);
    crate::upstream::Introduction { source: exchange.remote(), destination }
}
