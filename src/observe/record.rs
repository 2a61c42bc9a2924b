//! Records of the audit log: what each says. `docs/audit.md` is their reference.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ends::Ends;
use super::json::Fields;
use super::redact::{ADDRESS, Redaction};

/// A number for a new connection, unique in this process.
pub fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub(super) fn millis(unix_seconds: i64) -> u64 {
    u64::try_from(unix_seconds).unwrap_or_default().saturating_mul(1000)
}

/// A handshake that was refused, or a first flight that was none.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeRefusedRecord<'a> {
    /// See [`next_connection_id`].
    pub conn_id: u64,
    /// The caller was let in all the same, as nobody: the identity mode is `observe`.
    pub is_observed: bool,
    /// The socket's other end.
    pub src_addr: SocketAddr,
    /// The identity that was presented and not believed, if any could be read.
    pub presented_id: Option<&'a str>,
    /// The serial number of the certificate that was presented.
    pub presented_serial: Option<&'a str>,
    /// The key that signed it, as it says itself.
    pub presented_issuer_ski: Option<&'a str>,
    /// Our own identity.
    pub dst_spiffe_id: Option<&'a str>,
    /// The listener's port.
    pub dst_port: u16,
    /// A stable code: `no_certificate`, `expired`, ...
    pub reason: &'a str,
    /// A sentence for people.
    pub detail: Option<&'a str>,
}

/// A handshake that failed on a connection which we made: somebody else than whom we wanted, or we are not wanted there.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamRefusedRecord<'a> {
    /// See [`next_connection_id`].
    pub conn_id: u64,
    /// Our own identity.
    pub src_spiffe_id: Option<&'a str>,
    /// Where we connected to.
    pub upstream: &'a str,
    /// Whom we wanted there, as patterns.
    pub expected_id: &'a str,
    /// The identity that was presented and not believed, or not expected, if any could be read.
    pub presented_id: Option<&'a str>,
    /// The serial number of the certificate that was presented.
    pub presented_serial: Option<&'a str>,
    /// The key that signed it, as it says itself.
    pub presented_issuer_ski: Option<&'a str>,
    /// A stable code: `unexpected_peer`, `expired`, `refused_by_peer`, ...
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
    /// The revisions of their bundles, in the same order, separated by blanks.
    pub bundle_revisions: Option<&'a str>,
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
    /// `applied`, `refused`, `restored` (from the last good copy), `expiring` (a public certificate), `held_off` (by the
    /// crash-loop guard).
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
    /// SHA-256 of the JSON before, a line feed, and the JSON after, lower-case hexadecimal.
    pub diff_sha256: Option<&'a str>,
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
    /// Somebody else's signature over a seal of ours.
    Countersigned,
}

impl Type {
    const ALL: [Self; 11] = [
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
        Self::Countersigned,
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
            Self::Seal | Self::Countersigned => "seal",
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
    fn write(&self, fields: &mut Fields<'_>, redaction: &Redaction);
}

pub(super) const fn outcome(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

impl Record for HandshakeRefusedRecord<'_> {
    const TYPE: Type = Type::HandshakeRefused;

    // Whoever may open a connection may cause any number of these: they must not fill the room of decisions.
    fn is_reserved(&self) -> bool {
        false
    }

    fn write(&self, fields: &mut Fields<'_>, redaction: &Redaction) {
        fields.number("conn_id", self.conn_id);
        fields.object("src", |src| {
            let id = ("presented_id", "presented_id_hmac");
            redaction.principal(None, src, id, self.presented_id);
            if self.presented_serial.is_some() {
                let serial = ("serial", "serial_hmac");
                src.object("cert", |cert| {
                    redaction.principal(None, cert, serial, self.presented_serial);
                    cert.some_text("issuer_ski", self.presented_issuer_ski);
                });
            }
            redaction.socket(None, src, ADDRESS, self.src_addr);
        });
        fields.object("dst", |dst| {
            dst.some_text("spiffe_id", self.dst_spiffe_id);
            dst.number("port", self.dst_port);
        });
        redaction.write_key(None, fields);
        fields.text("outcome", outcome(self.is_observed));
        fields.some_text("mode", self.is_observed.then_some("observe"));
        fields.text("reason", self.reason);
        redaction.sentence(fields, self.detail);
    }
}

impl Record for UpstreamRefusedRecord<'_> {
    const TYPE: Type = Type::HandshakeRefused;

    // As those of connections that come in: a caller's requests make us connect.
    fn is_reserved(&self) -> bool {
        false
    }

    fn write(&self, fields: &mut Fields<'_>, redaction: &Redaction) {
        fields.number("conn_id", self.conn_id);
        fields.text("side", "originated");
        fields.object("src", |src| src.some_text("spiffe_id", self.src_spiffe_id));
        fields.object("dst", |dst| {
            let expected = ("expected_id", "expected_id_hmac");
            redaction.principal(None, dst, expected, Some(self.expected_id));
            let id = ("presented_id", "presented_id_hmac");
            redaction.principal(None, dst, id, self.presented_id);
            if self.presented_serial.is_some() {
                let serial = ("serial", "serial_hmac");
                dst.object("cert", |cert| {
                    redaction.principal(None, cert, serial, self.presented_serial);
                    cert.some_text("issuer_ski", self.presented_issuer_ski);
                });
            }
        });
        fields.text("upstream", self.upstream);
        redaction.write_key(None, fields);
        fields.text("outcome", outcome(false));
        fields.text("reason", self.reason);
        redaction.sentence(fields, self.detail);
    }
}

impl Record for ConnectionRecord<'_> {
    const TYPE: Type = Type::Connection;

    fn is_reserved(&self) -> bool {
        matches!(self.event, "forced_close" | "exchange_end")
    }

    fn write(&self, fields: &mut Fields<'_>, redaction: &Redaction) {
        fields.raw(self.ends.text());
        fields.text("event", self.event);
        fields.some_text("side", self.side);
        let serial = ("peer_serial", "peer_serial_hmac");
        redaction.principal(self.ends.tenant, fields, serial, self.peer_serial);
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

    fn write(&self, fields: &mut Fields<'_>, _: &Redaction) {
        fields.text("event", self.event);
        fields.text("spiffe_id", self.spiffe_id);
        fields.some_text("serial", self.serial);
        if let Some(seconds) = self.not_after {
            fields.time("not_after", millis(seconds));
        }
        fields.some_text("trust_domains", self.trust_domains);
        fields.some_text("bundle_revisions", self.bundle_revisions);
        fields.some_text("detail", self.detail);
    }
}

impl Record for IssuerRecord<'_> {
    const TYPE: Type = Type::Issuer;

    // Whoever may open a connection may cause any number of refusals: they must not fill the room of what was given.
    fn is_reserved(&self) -> bool {
        self.reason.is_none()
    }

    fn write(&self, fields: &mut Fields<'_>, redaction: &Redaction) {
        fields.text("event", self.event);
        if let Some(address) = self.src_addr {
            fields.object("src", |src| redaction.socket(None, src, ADDRESS, address));
        }
        fields.some_text("proof", self.proof);
        redaction.principal(None, fields, ("spiffe_id", "spiffe_id_hmac"), self.spiffe_id);
        redaction.principal(None, fields, ("serial", "serial_hmac"), self.serial);
        if let Some(seconds) = self.not_after {
            fields.time("not_after", millis(seconds));
        }
        fields.text("outcome", outcome(self.reason.is_none()));
        fields.some_text("reason", self.reason);
        redaction.sentence(fields, self.detail);
    }
}

impl Record for ConfigRecord<'_> {
    const TYPE: Type = Type::Config;

    fn is_reserved(&self) -> bool {
        true
    }

    fn write(&self, fields: &mut Fields<'_>, _: &Redaction) {
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

    fn write(&self, fields: &mut Fields<'_>, redaction: &Redaction) {
        fields.some_text("principal", self.principal);
        if let Some(address) = self.src_addr {
            fields.object("src", |src| redaction.socket(None, src, ADDRESS, address));
        }
        fields.text("method", self.method);
        fields.bytes("path", "path_b64", self.path);
        fields.number("status", self.status);
        fields.some_number("revision", self.revision);
        fields.some_text("body_sha256", self.body_sha256);
        fields.some_text("diff_sha256", self.diff_sha256);
        fields.some_text("reason", self.reason);
    }
}
