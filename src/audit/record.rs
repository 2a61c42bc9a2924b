//! `Record`: what a line of the log says, as far as questions look at it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A record, read from its line. Fields that the record does not have are absent; fields that no question asks for are not read.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    /// Its number in the chain.
    pub seq: u64,
    /// When it happened, as written.
    pub time: String,
    /// `decision`, `connection`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The process that wrote it.
    #[serde(default)]
    pub boot_id: String,
    /// `allow` or `deny`.
    #[serde(default)]
    pub outcome: Option<String>,
    /// What happened, for types that have more than one thing to tell.
    #[serde(default)]
    pub event: Option<String>,
    /// Why it was refused: a stable code.
    #[serde(default)]
    pub reason: Option<String>,
    /// What the refused caller was told.
    #[serde(default)]
    pub denial_id: Option<String>,
    /// The route that matched.
    #[serde(default)]
    pub route_id: Option<String>,
    /// `http/1.1`, `h2`, `tcp`.
    #[serde(default)]
    pub protocol: Option<String>,
    /// As received.
    #[serde(default)]
    pub method: Option<String>,
    /// As received; what is not UTF-8 shows as U+FFFD.
    #[serde(default)]
    pub host: Option<String>,
    /// As received, without the query; what is not UTF-8 shows as U+FFFD.
    #[serde(default)]
    pub path: Option<String>,
    #[serde(default)]
    method_b64: Option<String>,
    #[serde(default)]
    host_b64: Option<String>,
    #[serde(default)]
    path_b64: Option<String>,
    /// What was answered.
    #[serde(default)]
    pub status: Option<u16>,
    /// `enforce`, or what else decided.
    #[serde(default)]
    pub mode: Option<String>,
    /// The policy whose rule decided.
    #[serde(default)]
    pub policy_id: Option<String>,
    /// The rule that decided.
    #[serde(default)]
    pub rule: Option<String>,
    /// The auth plugin that refused.
    #[serde(default)]
    pub plugin: Option<String>,
    /// How many requests the record stands for; absent: one.
    #[serde(default)]
    pub count: Option<u64>,
    /// The caller's address, where a trusted sender named another than the connection's other end.
    #[serde(default)]
    pub caller: Option<IpAddr>,
    /// The caller.
    #[serde(default)]
    pub src: Source,
    /// Whom it called.
    #[serde(default)]
    pub dst: Target,
    /// What observed policies would have changed.
    #[serde(default)]
    pub would_be: Option<WouldBe>,
    /// The rule that came nearest to allowing.
    #[serde(default)]
    pub nearest: Option<Nearest>,
}

/// Who called.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Source {
    /// As the handshake proved it.
    #[serde(default)]
    pub spiffe_id: Option<String>,
    /// Claimed, and not believed.
    #[serde(default)]
    pub presented_id: Option<String>,
    /// The socket's other end.
    #[serde(default, deserialize_with = "socket_or_host")]
    pub addr: Option<SocketAddr>,
}

/// A record of many requests names the host alone: several connections carried them. Its port is 0 then.
fn socket_or_host<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let Some(text) = Option::<Cow<'de, str>>::deserialize(deserializer)? else { return Ok(None) };
    let host = || Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, 0));
    let address = text.parse().ok().or_else(host);
    address.map(Some).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no address")))
}

/// Who was called.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Target {
    /// The workload.
    #[serde(default)]
    pub spiffe_id: Option<String>,
    /// Its listener's port.
    #[serde(default)]
    pub port: Option<u16>,
}

/// What observed policies would have decided.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct WouldBe {
    /// `allow` or `deny`.
    pub outcome: String,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// The policy that would have decided.
    #[serde(default)]
    pub policy_id: Option<String>,
    /// The rule that would have decided.
    #[serde(default)]
    pub rule: Option<String>,
}

/// The rule that came nearest to allowing.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Nearest {
    /// Its policy.
    pub policy_id: String,
    /// The rule.
    #[serde(default)]
    pub rule: String,
    /// The part of it that did not hold.
    #[serde(default)]
    pub clause: String,
}

impl Record {
    /// Reads a line; `None` when it is no record.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    /// When it happened, in milliseconds since 1970; 0 when its time cannot be read.
    pub fn unix_millis(&self) -> u64 {
        unix_millis(&self.time).unwrap_or_default()
    }

    /// How many requests it stands for.
    pub fn count(&self) -> u64 {
        self.count.unwrap_or(1).max(1)
    }

    /// Are method, host and path the very bytes that were received, or were some of them no text?
    pub fn is_exact(&self) -> bool {
        self.method_b64.is_none() && self.host_b64.is_none() && self.path_b64.is_none()
    }

    /// The path's bytes as they were received.
    pub fn path_bytes(&self) -> Option<Cow<'_, [u8]>> {
        match &self.path_b64 {
            Some(text) => BASE64.decode(text).ok().map(Cow::Owned),
            None => self.path.as_deref().map(|path| Cow::Borrowed(path.as_bytes())),
        }
    }

    /// Who called: proved, or else claimed.
    pub fn caller_id(&self) -> Option<&str> {
        self.src.spiffe_id.as_deref().or(self.src.presented_id.as_deref())
    }
}

/// A record's time in milliseconds since 1970.
pub fn unix_millis(rfc3339: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(rfc3339, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// Milliseconds since 1970 as a record's time.
pub fn time_text(unix_millis: u64) -> String {
    let nanos = i128::from(unix_millis) * 1_000_000;
    let time =
        OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    time.format(format).unwrap_or_default()
}
