//! `DecisionRecord`: what was decided about a request or a connection, in its own record or counted in one of many.

use std::net::SocketAddr;

use super::denial::DenialId;
use super::ends::Ends;
use super::json::Fields;
use super::record::{Record, Type, outcome};
use super::redact::{CALLER, PathRedaction, Redaction};
use super::shape;

/// A request's fields, as the log asks for them.
pub trait RequestHead: std::fmt::Debug {
    /// The first value of a field; `name` is in lower case.
    fn first(&self, name: &str) -> Option<&[u8]>;
}

/// Longer ids of requests are none.
const LONGEST_REQUEST_ID: usize = 128;

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
    /// The start of its SHA-256, lower-case hexadecimal, where it is known.
    pub hash: Option<&'a str>,
    /// Who gave it; only when its signature was good.
    pub issuer: Option<&'a str>,
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
/// # use wardgate::observe::{AuditLog, AuditSettings, DecisionRecord, EndsFacts, Posture, next_connection_id};
/// # let lane = AuditLog::open(AuditSettings::default(), &Posture::default()).unwrap().lane();
/// let caller = "127.0.0.1:9".parse().unwrap();
/// let ends = lane.ends(&EndsFacts {
///     src_spiffe_id: Some("spiffe://shop/web"), ..EndsFacts::of(next_connection_id(), caller, 15006)
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
    /// The service that the route belongs to.
    pub service_id: Option<&'a str>,
    /// The upstream resource that the route names.
    pub upstream_id: Option<&'a str>,
    /// Where the request goes.
    pub upstream: Option<&'a str>,
    /// The path template that matched, as the rule or the route writes it.
    pub template: Option<&'a str>,
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
    /// What the rule says, by the start of its SHA-256.
    pub rule_hash: Option<&'a str>,
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
    /// The token that the caller presented: a plugin refused it, or the decision rests on it. Not in the record of many.
    pub token: Option<TokenFacts<'a>>,
    /// The request's own fields: its id, its trace, and the headers that the settings choose are read there when the record is
    /// written, and nothing of that in a request whose record is only counted.
    pub head: Option<&'a dyn RequestHead>,
    /// Tells the other ways in which the path can be read, none for a plain one. Asked when a record of its own is written.
    pub readings: Option<fn(path: &str) -> Vec<String>>,
    /// The record must be written singly, and stands in the room of refusals: its route asks for `audit: required`.
    pub must_stand: bool,
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
            service_id: None,
            upstream_id: None,
            upstream: None,
            template: None,
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
            rule_hash: None,
            policy_revision: None,
            denial_id: None,
            nearest: None,
            config_revision: 0,
            plugin: None,
            token: None,
            head: None,
            readings: None,
            must_stand: false,
            caller: None,
        }
    }
}

impl Record for DecisionRecord<'_> {
    const TYPE: Type = Type::Decision;

    fn is_reserved(&self) -> bool {
        !self.allowed || self.must_stand
    }

    fn write(&self, fields: &mut Fields<'_>, redaction: &Redaction) {
        let tenant = self.ends.tenant;
        fields.raw(self.ends.text());
        self.write_where(fields);
        self.write_asked(fields);
        if !self.method.is_empty() {
            redaction.path(tenant, fields, self.path, self.template);
            self.write_readings(fields, redaction);
        }
        fields.some_number("status", self.status);
        self.write_decision(fields);
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
        if let Some(token) = &self.token {
            fields.object("token", |fields| {
                fields.some_text("hash", token.hash);
                fields.some_text("issuer", token.issuer);
                redaction.principal(tenant, fields, ("subject", "subject_hmac"), token.subject);
                redaction.principal(tenant, fields, ("id", "id_hmac"), token.id);
            });
        }
        if let Some(head) = self.head {
            write_trace(head, fields);
            redaction.headers(tenant, fields, head);
        }
        if let Some(caller) = self.caller {
            redaction.ip(tenant, fields, CALLER, caller.ip());
        }
        fields.number("config_revision", self.config_revision);
    }
}

impl DecisionRecord<'_> {
    fn write_readings(&self, fields: &mut Fields<'_>, redaction: &Redaction) {
        let Some(readings) = self.readings.filter(|_| redaction.paths == PathRedaction::Keep)
        else {
            return;
        };
        let readings = std::str::from_utf8(self.path).map(readings).unwrap_or_default();
        if !readings.is_empty() {
            fields.texts("path_readings", readings.into_iter());
        }
    }

    fn write_where(&self, fields: &mut Fields<'_>) {
        fields.some_text("route_id", self.route_id);
        fields.some_text("service_id", self.service_id);
        fields.some_text("upstream_id", self.upstream_id);
        fields.some_text("upstream", self.upstream);
        fields.text("protocol", self.protocol);
    }

    fn write_decision(&self, fields: &mut Fields<'_>) {
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
        fields.some_text("rule_hash", self.rule_hash);
        fields.some_number("policy_revision", self.policy_revision);
        fields.some_text("plugin", self.plugin);
    }

    /// What tells this decision from others, in few bytes: those with the same key are the same but for their time. Allocates
    /// nothing once `key` has grown.
    ///
    /// `shaped`: where no template says which paths are the same, their shape does; else all paths are.
    pub(super) fn write_key(&self, shaped: bool, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.ends.who());
        key.extend_from_slice(&self.config_revision.to_le_bytes());
        key.extend_from_slice(&self.policy_revision.unwrap_or_default().to_le_bytes());
        key.extend_from_slice(&self.status.unwrap_or_default().to_le_bytes());
        let would_be = self.would_be.as_ref();
        key.push(match would_be {
            None => 0,
            Some(WouldBe { allowed: false, .. }) => 1,
            Some(WouldBe { allowed: true, .. }) => 2,
        });
        match self.caller.map(|caller| caller.ip()) {
            None => key.push(0),
            Some(std::net::IpAddr::V4(ip)) => {
                key.push(4);
                key.extend_from_slice(&ip.octets());
            }
            Some(std::net::IpAddr::V6(ip)) => {
                key.push(6);
                key.extend_from_slice(&ip.octets());
            }
        }
        let (would_policy, would_rule) = would_be.and_then(|would| would.rule).unzip();
        let texts = [
            self.route_id,
            self.policy_id,
            self.rule,
            self.reason,
            self.upstream,
            self.template,
            self.plugin,
            would_be.and_then(|would| would.reason),
            would_policy,
            would_rule,
            Some(self.mode),
            Some(self.protocol),
        ];
        let bytes = texts.into_iter().map(|text| text.unwrap_or_default().as_bytes());
        for part in bytes.chain([self.method, self.host]) {
            // Each part has its length before it, so that no two lists of parts are one text. What is longer than the
            // length's two bytes tell is told apart by its start and its real length modulo 64 Ki.
            key.extend_from_slice(&u16::try_from(part.len() & 0xffff).unwrap_or(0).to_le_bytes());
            key.extend_from_slice(&part[..part.len().min(LONGEST_PART)]);
        }
        if shaped && self.is_shaped() {
            shape::write(self.path, key);
        }
    }

    fn is_shaped(&self) -> bool {
        self.template.is_none_or(|template| template.ends_with('*')) && !self.method.is_empty()
    }

    /// Method and host; at layer 4 the server name, where there is one.
    fn write_asked(&self, fields: &mut Fields<'_>) {
        if !self.method.is_empty() {
            fields.bytes("method", "method_b64", self.method);
        }
        if !(self.method.is_empty() && self.host.is_empty()) {
            fields.bytes("host", "host_b64", self.host);
        }
    }

    /// What the record of many such decisions says, but how many they were and when.
    pub(super) fn write_shared(
        &self,
        shaped: bool,
        fields: &mut Fields<'_>,
        redaction: &Redaction,
    ) {
        fields.raw(&self.ends.shared());
        self.write_where(fields);
        self.write_asked(fields);
        if !self.method.is_empty() {
            if redaction.paths == PathRedaction::Keep {
                // The first one's, for all.
                fields.bytes("path", "path_b64", self.path);
            }
            if redaction.paths != PathRedaction::Hmac {
                match self.template {
                    _ if shaped && self.is_shaped() && redaction.paths == PathRedaction::Keep => {
                        fields.text("template", &shape::template(self.path));
                    }
                    template => fields.some_text("template", template),
                }
            }
        }
        fields.some_number("status", self.status);
        self.write_decision(fields);
        if let Some(caller) = self.caller {
            redaction.ip(self.ends.tenant, fields, CALLER, caller.ip());
        }
        fields.number("config_revision", self.config_revision);
    }
}

/// Longer texts of a key are told apart by their start.
const LONGEST_PART: usize = 256;

/// The ids by which others know the request: its own, and its trace's (W3C Trace Context). Copied, never trusted.
fn write_trace(head: &dyn RequestHead, fields: &mut Fields<'_>) {
    if let Some(id) = head.first("x-request-id").filter(|id| id.len() <= LONGEST_REQUEST_ID) {
        fields.bytes("request_id", "request_id_b64", id);
    }
    let Some((trace, span)) = head.first("traceparent").and_then(trace_of) else { return };
    fields.text("trace_id", trace);
    fields.text("span_id", span);
}

/// Trace and span of a `traceparent`: `00-<32 digits>-<16 digits>-<2 digits>`.
fn trace_of(value: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, length: usize| {
        text.len() == length
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
            && (length == 2 || text.bytes().any(|byte| byte != b'0'))
    };
    (is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && parts.next().is_some())
        .then_some((trace, span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_copied_only_when_it_is_one() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = format!("00-{trace}-00f067aa0ba902b7-01");
        assert_eq!(trace_of(good.as_bytes()), Some((trace, "00f067aa0ba902b7")));
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b\"-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace_of(bad.as_bytes()), None, "{bad}");
        }
    }
}
