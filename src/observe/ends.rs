//! `Ends`: who is at the two ends of a connection, written once and copied into each of its records.

use std::net::SocketAddr;
use std::ops::Range;

use smallvec::{SmallVec, smallvec};

use super::json::Fields;
use super::record::millis;
use super::redact::{ADDRESS, Redaction, Tenant, VIA};
use crate::rt::crypto::digest::{Context, SHA256};

/// What a handshake settled beside identities.
#[derive(Clone, Copy, Debug, Default)]
pub struct TlsFacts<'a> {
    /// `1.3` or `1.2`.
    pub version: Option<&'a str>,
    /// The cipher suite, as IANA names it.
    pub suite: Option<&'a str>,
    /// The key exchange, as IANA names its group.
    pub group: Option<&'a str>,
    /// The server name that the client asked for.
    pub sni: Option<&'a str>,
    /// The protocol that was agreed.
    pub alpn: Option<&'a str>,
}

/// Both ends of a connection, as its handshake proved them.
#[derive(Clone, Copy, Debug)]
pub struct EndsFacts<'a> {
    /// See [`super::next_connection_id`].
    pub conn_id: u64,
    /// The caller's identity, if it has one.
    pub src_spiffe_id: Option<&'a str>,
    /// The serial number of its certificate, lower-case hexadecimal.
    pub src_serial: Option<&'a str>,
    /// SHA-256 of its public key, lower-case hexadecimal.
    pub src_spki_sha256: Option<&'a str>,
    /// When its proof ends, seconds since 1970.
    pub src_not_after: Option<i64>,
    /// The key that signed its certificate, as that certificate names it (its authority key identifier), lower-case hexadecimal.
    pub src_issuer_ski: Option<&'a str>,
    /// The trust bundle that vouched for it, by its revision.
    pub src_bundle_revision: Option<&'a str>,
    /// The socket's other end, or whom a balancer introduced there.
    pub src_addr: SocketAddr,
    /// The balancer that introduced it.
    pub src_via: Option<SocketAddr>,
    /// Our own identity; of a connection that we made, the other end's.
    pub dst_spiffe_id: Option<&'a str>,
    /// Of a connection that we made: whom we wanted there, as patterns.
    pub dst_expected_id: Option<&'a str>,
    /// The address that the caller connected to, where a balancer told it.
    pub dst_original: Option<SocketAddr>,
    /// The listener's port.
    pub dst_port: u16,
    /// We made the connection: `src` is ourselves.
    pub is_originated: bool,
    /// What the handshake settled, if there was one.
    pub tls: Option<TlsFacts<'a>>,
}

impl<'a> EndsFacts<'a> {
    /// A connection of which nothing is known but its number, where it comes from, and the port that it came to.
    pub const fn of(conn_id: u64, src_addr: SocketAddr, dst_port: u16) -> Self {
        Self {
            conn_id,
            src_spiffe_id: None,
            src_serial: None,
            src_spki_sha256: None,
            src_not_after: None,
            src_issuer_ski: None,
            src_bundle_revision: None,
            src_addr,
            src_via: None,
            dst_spiffe_id: None,
            dst_expected_id: None,
            dst_original: None,
            dst_port,
            is_originated: false,
            tls: None,
        }
    }
}

/// [`EndsFacts`] as every record of the connection says them: written once, copied from then on. A lane makes them
/// ([`super::AuditLane::ends`]), because it knows what must not be written.
#[derive(Clone, Debug)]
pub struct Ends {
    text: Box<[u8]>,
    /// The parts of the text that only this connection has, in their order: its number, and around addresses what makes them
    /// those of sockets.
    own: SmallVec<[Range<usize>; 5]>,
    /// The same for every connection of this caller from this host to this door.
    who: [u8; 16],
    pub(super) tenant: Tenant,
}

impl Ends {
    pub(super) fn new(facts: &EndsFacts<'_>, redaction: &Redaction) -> Self {
        let mut out = Vec::with_capacity(640);
        let domain = facts.src_spiffe_id.and_then(trust_domain);
        let tenant = redaction.tenant(domain);
        let mut fields = Fields::first(&mut out);
        fields.number("conn_id", facts.conn_id);
        // The comma behind it goes with it.
        let mut own: SmallVec<[Range<usize>; 5]> = smallvec![0..fields.written() + 1];
        let hidden = |is_ours: bool| if is_ours { &KEEP } else { redaction };
        fields.object("src", |src| {
            let redaction = hidden(facts.is_originated);
            let id = ("spiffe_id", "spiffe_id_hmac");
            redaction.principal(tenant, src, id, facts.src_spiffe_id);
            src.some_text("trust_domain", domain);
            src.text("authn", if facts.src_spiffe_id.is_some() { "mtls" } else { "none" });
            if facts.src_serial.is_some() || facts.src_spki_sha256.is_some() {
                src.object("cert", |cert| {
                    let serial = ("serial", "serial_hmac");
                    redaction.principal(tenant, cert, serial, facts.src_serial);
                    let spki = ("spki_sha256", "spki_sha256_hmac");
                    redaction.principal(tenant, cert, spki, facts.src_spki_sha256);
                    if let Some(seconds) = facts.src_not_after {
                        cert.time("not_after", millis(seconds));
                    }
                    cert.some_text("issuer_ski", facts.src_issuer_ski);
                    cert.some_text("bundle_revision", facts.src_bundle_revision);
                });
            }
            let sockets = [(ADDRESS, Some(facts.src_addr)), (VIA, facts.src_via)];
            for (keys, address) in sockets {
                let Some(address) = address else { continue };
                let from = src.written();
                redaction.socket(tenant, src, keys, address);
                own.extend(own_parts(src.text_from(from), keys.0, from).into_iter().flatten());
            }
        });
        fields.object("dst", |dst| {
            let id = ("spiffe_id", "spiffe_id_hmac");
            hidden(!facts.is_originated).principal(tenant, dst, id, facts.dst_spiffe_id);
            let expected = ("expected_id", "expected_id_hmac");
            redaction.principal(tenant, dst, expected, facts.dst_expected_id);
            dst.number("port", facts.dst_port);
            if let Some(original) = facts.dst_original {
                dst.shown("original", &original);
            }
        });
        if let Some(tls) = &facts.tls {
            fields.object("tls", |fields| {
                fields.some_text("version", tls.version);
                fields.some_text("suite", tls.suite);
                fields.some_text("group", tls.group);
                fields.some_text("sni", tls.sni);
                fields.some_text("alpn", tls.alpn);
            });
        }
        redaction.write_key(tenant, &mut fields);
        fields.text("engine_version", env!("CARGO_PKG_VERSION"));
        let mut ends = Self { text: out.into(), own, who: [0; 16], tenant };
        let mut context = Context::new(&SHA256);
        ends.shared_parts().for_each(|part| context.update(part));
        // What redaction hides still tells callers apart.
        context.update(facts.src_spiffe_id.unwrap_or_default().as_bytes());
        context.update(facts.src_addr.ip().to_string().as_bytes());
        ends.who.copy_from_slice(&context.finish().as_ref()[..16]);
        ends
    }

    /// Everything.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// What all connections of the caller have in common.
    pub(super) fn shared(&self) -> Vec<u8> {
        self.shared_parts().collect::<Vec<_>>().concat()
    }

    fn shared_parts(&self) -> impl Iterator<Item = &[u8]> {
        let starts = self.own.iter().map(|own| own.end);
        let ends = self.own.iter().skip(1).map(|own| own.start).chain([self.text.len()]);
        starts.zip(ends).map(|(start, end)| &self.text[start..end])
    }

    /// Who, in few bytes.
    pub(super) const fn who(&self) -> &[u8; 16] {
        &self.who
    }
}

static KEEP: Redaction = Redaction::KEEP;

/// Of `"addr":"[::1]:80"` the bracket, and what stands behind the address; of an address without a port nothing. `at` is where
/// the text stands.
fn own_parts(text: &[u8], key: &str, at: usize) -> Option<[Range<usize>; 2]> {
    let key = format!("\"{key}\":\"");
    let found = memchr::memmem::find(text, key.as_bytes())? + key.len();
    let address = &text[found..];
    let end = memchr::memchr(b'"', address)?;
    let bracket = memchr::memchr(b']', &address[..end]);
    let port = bracket.or_else(|| memchr::memchr(b':', &address[..end]))?;
    let opens = usize::from(address.starts_with(b"["));
    let from = at + found;
    Some([from..from + opens, from + port..from + end])
}

/// The trust domain of a SPIFFE ID.
fn trust_domain(id: &str) -> Option<&str> {
    id.strip_prefix("spiffe://")?.split('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connections_of_a_caller_share_has_neither_number_nor_port() {
        let ends = |conn_id, address: &str| {
            let facts = EndsFacts {
                src_spiffe_id: Some("spiffe://shop/web"),
                ..EndsFacts::of(conn_id, address.parse().unwrap(), 15006)
            };
            Ends::new(&facts, &Redaction::KEEP)
        };
        for (one, other, host) in [
            ("10.0.0.1:1", "10.0.0.1:65535", "10.0.0.1"),
            ("[fd00::1]:1", "[fd00::1]:65535", "fd00::1"),
        ] {
            let (one, other) = (ends(1, one), ends(22, other));
            assert_ne!(one.text(), other.text());
            assert_eq!(one.who(), other.who());
            let shared = one.shared();
            assert_eq!(shared, other.shared());
            let text = format!("{{{}}}", String::from_utf8(shared).unwrap());
            let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(parsed["src"]["addr"], host);
            assert_eq!(parsed["src"]["trust_domain"], "shop");
            assert_eq!(parsed["src"]["authn"], "mtls");
            assert_eq!(parsed.get("conn_id"), None);
        }
        assert_ne!(ends(1, "10.0.0.1:1").who(), ends(1, "10.0.0.2:1").who());
    }
}
