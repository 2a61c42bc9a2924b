//! Records of the audit log: what each says. `docs/audit.md` is their reference.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::denial::DenialId;
use super::json::Fields;

/// A number for a new connection, unique in this process.
pub fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Both ends of a connection, as its handshake proved them.
#[derive(Clone, Copy, Debug)]
pub struct EndsFacts<'a> {
    /// See [`next_connection_id`].
    pub conn_id: u64,
    /// The caller's identity, if it has one.
    pub src_spiffe_id: Option<&'a str>,
    /// The serial number of its certificate, lower-case hexadecimal.
    pub src_serial: Option<&'a str>,
    /// SHA-256 of its public key, lower-case hexadecimal.
    pub src_spki_sha256: Option<&'a str>,
    /// When its proof ends, seconds since 1970.
    pub src_not_after: Option<i64>,
    /// The socket's other end, or whom a balancer introduced there.
    pub src_addr: SocketAddr,
    /// The balancer that introduced it.
    pub src_via: Option<SocketAddr>,
    /// Our own identity.
    pub dst_spiffe_id: Option<&'a str>,
    /// The listener's port.
    pub dst_port: u16,
}

/// [`EndsFacts`] as every record of the connection says them: written once, copied from then on.
#[derive(Clone, Debug)]
pub struct Ends(Box<[u8]>);

impl Ends {
    /// Writes them down.
    pub fn new(facts: &EndsFacts<'_>) -> Self {
        let mut out = Vec::with_capacity(384);
        let mut fields = Fields::first(&mut out);
        fields.number("conn_id", facts.conn_id);
        fields.object("src", |src| {
            src.some_text("spiffe_id", facts.src_spiffe_id);
            if facts.src_serial.is_some() || facts.src_spki_sha256.is_some() {
                src.object("cert", |cert| {
                    cert.some_text("serial", facts.src_serial);
                    cert.some_text("spki_sha256", facts.src_spki_sha256);
                    if let Some(seconds) = facts.src_not_after {
                        cert.time("not_after", millis(seconds));
                    }
                });
            }
            src.text("addr", &facts.src_addr.to_string());
            if let Some(via) = facts.src_via {
                src.text("via", &via.to_string());
            }
        });
        fields.object("dst", |dst| {
            dst.some_text("spiffe_id", facts.dst_spiffe_id);
            dst.number("port", facts.dst_port);
        });
        Self(out.into())
    }
}

fn millis(unix_seconds: i64) -> u64 {
    u64::try_from(unix_seconds).unwrap_or_default().saturating_mul(1000)
}

/// The rule that came nearest to allowing.
#[derive(Clone, Copy, Debug)]
pub struct Nearest<'a> {
    /// The policy's id.
    pub policy_id: &'a str,
    /// The rule's name or number.
    pub rule: &'a str,
    /// The part of the rule that did not hold.
    pub clause: &'a str,
}

/// A token, by what may be written down of it: never its text.
#[derive(Clone, Copy, Debug)]
pub struct TokenFacts<'a> {
    /// The start of its SHA-256, lower-case hexadecimal.
    pub hash: &'a str,
    /// Whom it names; only when its signature was good.
    pub subject: Option<&'a str>,
    /// Its `jti`; only when its signature was good.
    pub id: Option<&'a str>,
}

/// What would have been decided if observed policies were enforced.
#[derive(Clone, Copy, Debug)]
pub struct WouldBe<'a> {
    /// Allowed or not.
    pub allowed: bool,
    /// Why not.
    pub reason: Option<&'a str>,
    /// The policy and the rule that would have decided.
    pub rule: Option<(&'a str, &'a str)>,
}

/// A decision about one request or, at layer 4, about one connection.
///
/// ```
/// # use wardgate::observe::{DecisionRecord, Ends, EndsFacts, next_connection_id};
/// let ends = Ends::new(&EndsFacts {
///     conn_id: next_connection_id(), src_spiffe_id: Some("spiffe://shop/web"), src_serial: None, src_spki_sha256: None,
///     src_not_after: None, src_addr: "127.0.0.1:9".parse().unwrap(), src_via: None, dst_spiffe_id: None, dst_port: 15006,
/// });
/// let record = DecisionRecord { method: b"GET", path: b"/", policy_id: Some("p"), ..DecisionRecord::of(&ends, true) };
/// # let _ = record;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct DecisionRecord<'a> {
    /// Who, and to whom.
    pub ends: &'a Ends,
    /// Allowed or refused.
    pub allowed: bool,
    /// The route that matched.
    pub route_id: Option<&'a str>,
    /// Where the request goes.
    pub upstream: Option<&'a str>,
    /// `http/1.1`, `h2`, `tcp`.
    pub protocol: &'a str,
    /// As received; empty at layer 4.
    pub method: &'a [u8],
    /// As received.
    pub host: &'a [u8],
    /// As received, without the query.
    pub path: &'a [u8],
    /// The status that the caller got, if it is known already.
    pub status: Option<u16>,
    /// `enforce`, or what else decided.
    pub mode: &'a str,
    /// What observed policies would have changed.
    pub would_be: Option<WouldBe<'a>>,
    /// Why it was refused: a stable code.
    pub reason: Option<&'a str>,
    /// The policy whose rule decided.
    pub policy_id: Option<&'a str>,
    /// The rule that decided, by name or number.
    pub rule: Option<&'a str>,
    /// The store's revision of that policy.
    pub policy_revision: Option<u64>,
    /// What the refused caller was told.
    pub denial_id: Option<DenialId>,
    /// What came nearest to allowing.
    pub nearest: Option<Nearest<'a>>,
    /// The revision of the configuration that decided.
    pub config_revision: u64,
    /// The plugin that decided, when it was no policy.
    pub plugin: Option<&'a str>,
    /// The token that the caller presented.
    pub token: Option<TokenFacts<'a>>,
    /// The request's id, if it bears one.
    pub request_id: Option<&'a str>,
    /// Who called, where a trusted sender named somebody else than the connection's other end.
    pub caller: Option<SocketAddr>,
}

impl<'a> DecisionRecord<'a> {
    /// A record that says nothing yet but who, to whom, and whether.
    pub const fn of(ends: &'a Ends, allowed: bool) -> Self {
        Self {
            ends,
            allowed,
            route_id: None,
            upstream: None,
            protocol: "http/1.1",
            method: b"",
            host: b"",
            path: b"",
            status: None,
            mode: "enforce",
            would_be: None,
            reason: None,
            policy_id: None,
            rule: None,
            policy_revision: None,
            denial_id: None,
            nearest: None,
            config_revision: 0,
            plugin: None,
            token: None,
            request_id: None,
            caller: None,
        }
    }
}

/// A handshake that was refused, or a first flight that was none.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeRefusedRecord<'a> {
    /// See [`next_connection_id`].
    pub conn_id: u64,
    /// The socket's other end.
    pub src_addr: SocketAddr,
    /// The identity that was presented and not believed, if any could be read.
    pub presented_id: Option<&'a str>,
    /// The serial number of the certificate that was presented.
    pub presented_serial: Option<&'a str>,
    /// Our own identity.
    pub dst_spiffe_id: Option<&'a str>,
    /// The listener's port.
    pub dst_port: u16,
    /// A stable code: `no_certificate`, `expired`, ...
    pub reason: &'a str,
    /// A sentence for people.
    pub detail: Option<&'a str>,
}

/// A connection that opened, closed or was closed by us.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionRecord<'a> {
    /// Who, and to whom.
    pub ends: &'a Ends,
    /// `open`, `close`, `forced_close`; `exchange_end` when only one exchange of it was ended by us.
    pub event: &'a str,
    /// `accepted` or `originated`.
    pub side: Option<&'a str>,
    /// The serial number of the certificate that the other end showed, lower-case hexadecimal.
    pub peer_serial: Option<&'a str>,
    /// Why it was closed: a stable code, as `peer_expired`.
    pub reason: Option<&'a str>,
    /// `http/1.1`, `h2`, `tcp`.
    pub protocol: Option<&'a str>,
    /// Requests that it carried.
    pub requests: Option<u64>,
    /// Bytes from the caller.
    pub bytes_in: Option<u64>,
    /// Bytes to the caller.
    pub bytes_out: Option<u64>,
    /// How long it lived, in milliseconds.
    pub duration_ms: Option<u64>,
}

impl<'a> ConnectionRecord<'a> {
    /// A record that says nothing yet but who, to whom, and what.
    pub const fn of(ends: &'a Ends, event: &'a str) -> Self {
        Self {
            ends,
            event,
            side: None,
            peer_serial: None,
            reason: None,
            protocol: None,
            requests: None,
            bytes_in: None,
            bytes_out: None,
            duration_ms: None,
        }
    }
}

/// A change of our own identity or of whom we trust.
#[derive(Clone, Copy, Debug)]
pub struct IdentityRecord<'a> {
    /// `first`, `rotated`, `bundle_changed`, `withdrawn`, `restored`, `expiring`; `bundle_refused` for an alarm about a fetched bundle.
    pub event: &'a str,
    /// Who we are.
    pub spiffe_id: &'a str,
    /// The serial number of our certificate.
    pub serial: Option<&'a str>,
    /// When it ends, seconds since 1970.
    pub not_after: Option<i64>,
    /// The trust domains that we can verify, separated by blanks.
    pub trust_domains: Option<&'a str>,
    /// A sentence for people.
    pub detail: Option<&'a str>,
}

/// What the issuer gave to a caller from another machine, or refused.
#[derive(Clone, Copy, Debug)]
pub struct IssuerRecord<'a> {
    /// `enrolled`, `renewed`, `refused`.
    pub event: &'a str,
    /// The socket's other end.
    pub src_addr: Option<SocketAddr>,
    /// What the caller showed: `join_token`, `kubernetes`, `svid`, `none`.
    pub proof: Option<&'a str>,
    /// The identity that was given, or that it was about as far as that is known.
    pub spiffe_id: Option<&'a str>,
    /// The serial number of the new certificate.
    pub serial: Option<&'a str>,
    /// When it ends, seconds since 1970.
    pub not_after: Option<i64>,
    /// Why it was refused: a stable code.
    pub reason: Option<&'a str>,
    /// A sentence for people.
    pub detail: Option<&'a str>,
}

/// A change of the configuration that was applied or refused.
#[derive(Clone, Copy, Debug)]
pub struct ConfigRecord<'a> {
    /// `applied`, `refused`, `restored` (from the last good copy), `expiring` (a public certificate).
    pub event: &'a str,
    /// The store's revision.
    pub revision: u64,
    /// How many resources changed.
    pub changes: Option<u64>,
    /// Of a refused resource: its kind.
    pub kind: Option<&'a str>,
    /// Of a refused resource: its id.
    pub id: Option<&'a str>,
    /// Why it was refused.
    pub reason: Option<&'a str>,
}

/// A call of the Admin API.
#[derive(Clone, Copy, Debug)]
pub struct AdminRecord<'a> {
    /// Who called: the key's name or a SPIFFE ID; `None` when nobody could be told.
    pub principal: Option<&'a str>,
    /// The socket's other end.
    pub src_addr: Option<SocketAddr>,
    /// The method.
    pub method: &'a str,
    /// The path, without the query.
    pub path: &'a [u8],
    /// What was answered.
    pub status: u16,
    /// The store's revision that the call made.
    pub revision: Option<u64>,
    /// SHA-256 of the body, lower-case hexadecimal.
    pub body_sha256: Option<&'a str>,
    /// Why it was refused.
    pub reason: Option<&'a str>,
}

/// The type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Type {
    Decision,
    HandshakeRefused,
    Connection,
    Identity,
    Config,
    Admin,
    Posture,
    Loss,
    Issuer,
    Seal,
}

impl Type {
    const ALL: [Self; 10] = [
        Self::Decision,
        Self::HandshakeRefused,
        Self::Connection,
        Self::Identity,
        Self::Config,
        Self::Admin,
        Self::Posture,
        Self::Loss,
        Self::Issuer,
        Self::Seal,
    ];

    pub(super) fn of(byte: u8) -> Self {
        Self::ALL.get(usize::from(byte)).copied().unwrap_or(Self::Loss)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::HandshakeRefused => "handshake_refused",
            Self::Connection => "connection",
            Self::Identity => "identity",
            Self::Config => "config",
            Self::Admin => "admin",
            Self::Posture => "posture",
            Self::Loss => "loss",
            Self::Issuer => "issuer",
            Self::Seal => "seal",
        }
    }
}

/// The names of all types of records, as their field `type` has them.
pub fn record_types() -> impl Iterator<Item = &'static str> {
    Type::ALL.into_iter().map(Type::name)
}

/// Something that can be written into the log.
pub(super) trait Record {
    const TYPE: Type;
    /// Has it a place in the reserved room?
    fn is_reserved(&self) -> bool;
    fn write(&self, fields: &mut Fields<'_>);
}

impl Record for DecisionRecord<'_> {
    const TYPE: Type = Type::Decision;

    fn is_reserved(&self) -> bool {
        !self.allowed
    }

    fn write(&self, fields: &mut Fields<'_>) {
        fields.raw(&self.ends.0);
        fields.some_text("route_id", self.route_id);
        fields.some_text("upstream", self.upstream);
        fields.text("protocol", self.protocol);
        if !self.method.is_empty() {
            fields.bytes("method", "method_b64", self.method);
            fields.bytes("host", "host_b64", self.host);
            fields.bytes("path", "path_b64", self.path);
        }
        fields.some_number("status", self.status);
        fields.text("outcome", outcome(self.allowed));
        fields.text("mode", self.mode);
        if let Some(would_be) = &self.would_be {
            fields.object("would_be", |fields| {
                fields.text("outcome", outcome(would_be.allowed));
                fields.some_text("reason", would_be.reason);
                if let Some((policy, rule)) = would_be.rule {
                    fields.text("policy_id", policy);
                    fields.text("rule", rule);
                }
            });
        }
        fields.some_text("reason", self.reason);
        fields.some_text("policy_id", self.policy_id);
        fields.some_text("rule", self.rule);
        fields.some_number("policy_revision", self.policy_revision);
        if let Some(id) = &self.denial_id {
            fields.text("denial_id", id.as_str());
        }
        if let Some(nearest) = &self.nearest {
            fields.object("nearest", |fields| {
                fields.text("policy_id", nearest.policy_id);
                fields.text("rule", nearest.rule);
                fields.text("clause", nearest.clause);
            });
        }
        fields.some_text("plugin", self.plugin);
        if let Some(token) = &self.token {
            fields.object("token", |fields| {
                fields.text("hash", token.hash);
                fields.some_text("subject", token.subject);
                fields.some_text("id", token.id);
            });
        }
        fields.some_text("request_id", self.request_id);
        if let Some(caller) = self.caller {
            fields.text("caller", &caller.ip().to_canonical().to_string());
        }
        fields.number("config_revision", self.config_revision);
    }
}

const fn outcome(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

impl Record for HandshakeRefusedRecord<'_> {
    const TYPE: Type = Type::HandshakeRefused;

    // Whoever may open a connection may cause any number of these: they must not fill the room of decisions.
    fn is_reserved(&self) -> bool {
        false
    }

    fn write(&self, fields: &mut Fields<'_>) {
        fields.number("conn_id", self.conn_id);
        fields.object("src", |src| {
            src.some_text("presented_id", self.presented_id);
            if self.presented_serial.is_some() {
                src.object("cert", |cert| cert.some_text("serial", self.presented_serial));
            }
            src.text("addr", &self.src_addr.to_string());
        });
        fields.object("dst", |dst| {
            dst.some_text("spiffe_id", self.dst_spiffe_id);
            dst.number("port", self.dst_port);
        });
        fields.text("outcome", "deny");
        fields.text("reason", self.reason);
        fields.some_text("detail", self.detail);
    }
}

impl Record for ConnectionRecord<'_> {
    const TYPE: Type = Type::Connection;

    fn is_reserved(&self) -> bool {
        matches!(self.event, "forced_close" | "exchange_end")
    }

    fn write(&self, fields: &mut Fields<'_>) {
        fields.raw(&self.ends.0);
        fields.text("event", self.event);
        fields.some_text("side", self.side);
        fields.some_text("peer_serial", self.peer_serial);
        fields.some_text("reason", self.reason);
        fields.some_text("protocol", self.protocol);
        fields.some_number("requests", self.requests);
        fields.some_number("bytes_in", self.bytes_in);
        fields.some_number("bytes_out", self.bytes_out);
        fields.some_number("duration_ms", self.duration_ms);
    }
}

impl Record for IdentityRecord<'_> {
    const TYPE: Type = Type::Identity;

    fn is_reserved(&self) -> bool {
        true
    }

    fn write(&self, fields: &mut Fields<'_>) {
        fields.text("event", self.event);
        fields.text("spiffe_id", self.spiffe_id);
        fields.some_text("serial", self.serial);
        if let Some(seconds) = self.not_after {
            fields.time("not_after", millis(seconds));
        }
        fields.some_text("trust_domains", self.trust_domains);
        fields.some_text("detail", self.detail);
    }
}

impl Record for IssuerRecord<'_> {
    const TYPE: Type = Type::Issuer;

    // Whoever may open a connection may cause any number of refusals: they must not fill the room of what was given.
    fn is_reserved(&self) -> bool {
        self.reason.is_none()
    }

    fn write(&self, fields: &mut Fields<'_>) {
        fields.text("event", self.event);
        if let Some(address) = self.src_addr {
            fields.object("src", |src| src.text("addr", &address.to_string()));
        }
        fields.some_text("proof", self.proof);
        fields.some_text("spiffe_id", self.spiffe_id);
        fields.some_text("serial", self.serial);
        if let Some(seconds) = self.not_after {
            fields.time("not_after", millis(seconds));
        }
        fields.text("outcome", outcome(self.reason.is_none()));
        fields.some_text("reason", self.reason);
        fields.some_text("detail", self.detail);
    }
}

impl Record for ConfigRecord<'_> {
    const TYPE: Type = Type::Config;

    fn is_reserved(&self) -> bool {
        true
    }

    fn write(&self, fields: &mut Fields<'_>) {
        fields.text("event", self.event);
        fields.number("revision", self.revision);
        fields.some_number("changes", self.changes);
        fields.some_text("kind", self.kind);
        fields.some_text("id", self.id);
        fields.some_text("reason", self.reason);
    }
}

impl Record for AdminRecord<'_> {
    const TYPE: Type = Type::Admin;

    fn is_reserved(&self) -> bool {
        true
    }

    fn write(&self, fields: &mut Fields<'_>) {
        fields.some_text("principal", self.principal);
        if let Some(address) = self.src_addr {
            fields.object("src", |src| src.text("addr", &address.to_string()));
        }
        fields.text("method", self.method);
        fields.bytes("path", "path_b64", self.path);
        fields.number("status", self.status);
        fields.some_number("revision", self.revision);
        fields.some_text("body_sha256", self.body_sha256);
        fields.some_text("reason", self.reason);
    }
}
