//! `Limits`: how much of everything is allowed; `LimitSettings`: what an operator says of it. `docs/limits.md` lists them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::http::h1::HeadLimits;
use super::proof::ProofLimits;

/// Time limits and bounds of a data plane's connections. A number without a bound is its type's largest.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a TLS handshake, the PROXY header before it included.
    pub handshake_within: Duration,
    /// For a request's head, from its first byte; for the first byte of a new connection.
    pub head_within: Duration,
    /// For a caller to send a further part of a request's body.
    pub body_within: Duration,
    /// For a caller to take a further part of an answer.
    pub send_within: Duration,
    /// Between two requests of a connection.
    pub idle_within: Duration,
    /// For a tunnel in which nothing moves.
    pub tunnel_idle: Duration,
    /// How long an idle connection waits for one more request when the process drains.
    pub drain_idle: Duration,
    /// Bytes of a body in a second that a caller must send when it is waited for; 0: none.
    pub request_rate: u32,
    /// Bytes of an answer in a second that a caller must take when it is waited for; 0: none.
    pub response_rate: u32,
    /// Of a request's head.
    pub request_head: HeadLimits,
    /// Of an answer's head.
    pub response_head: HeadLimits,
    /// Bytes of a request's body.
    pub request_body: u64,
    /// Bytes of an answer's body.
    pub response_body: u64,
    /// Requests that one connection may carry.
    pub requests: u64,
    /// Streams that one connection of HTTP/2 may have open.
    pub streams: u32,
    /// Streams that one connection of HTTP/2 may give up, when those are more than half of all.
    pub resets: u32,
    /// Connections of all doors.
    pub max_connections: usize,
    /// Connections of one door.
    pub max_of_door: usize,
    /// What one source address may have.
    pub source: SourceLimits,
    /// How long connections may live, and how long they may take to end.
    pub proof: ProofLimits,
}

/// What one source address may have. An IPv6 source is its /64: a host has that many addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceLimits {
    /// Connections at one time; 0: no bound.
    pub connections: u32,
    /// TLS handshakes in a second, after a burst of twice as many; 0: no bound.
    pub handshakes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_within: Duration::from_secs(5),
            head_within: Duration::from_secs(30),
            body_within: Duration::from_secs(60),
            send_within: Duration::from_secs(60),
            idle_within: Duration::from_secs(75),
            tunnel_idle: Duration::from_secs(3600),
            drain_idle: Duration::from_secs(1),
            request_rate: 0,
            response_rate: 0,
            request_head: HeadLimits::default(),
            response_head: HeadLimits::default(),
            request_body: u64::MAX,
            response_body: u64::MAX,
            requests: u64::MAX,
            streams: 256,
            resets: 500,
            max_connections: 65_536,
            max_of_door: usize::MAX,
            source: SourceLimits::default(),
            proof: ProofLimits::default(),
        }
    }
}

/// How much of everything is allowed. What each refusal looks like: `docs/limits.md`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Bytes of a request's head, 1024 to 122880; of HTTP/2 after decompression, with 32 more for each field. 431.
    pub head_bytes: u32,
    /// Bytes of a request's target (path and query), 64 to `head_bytes`. 414.
    pub target_bytes: u32,
    /// Bytes of one field of a head, name and value, 64 to 122880. 431 in requests, 502 in answers.
    pub field_bytes: u32,
    /// Fields of a head, 8 to 256. 431 in requests, 502 in answers.
    pub fields: u32,
    /// Bytes of a request's body; 0: no bound. 413, at once when the length is announced. Plugins may set it for a route.
    pub request_body_bytes: u64,
    /// Bytes of the head of an upstream's answer, 1024 to 122880. 502.
    pub response_head_bytes: u32,
    /// Bytes of the body of an upstream's answer; 0: no bound. 502 when the length is announced; cut off when it is not.
    pub response_body_bytes: u64,
    /// Seconds for a TLS handshake, with the PROXY header before it.
    pub handshake_seconds: f64,
    /// Seconds for a request's head from its first byte, and for the first byte of a new connection. 408.
    pub head_seconds: f64,
    /// Seconds for a caller to send a further part of a request's body. 408. `timeout.send` of the upstream, where shorter, wins.
    pub body_seconds: f64,
    /// Seconds for a caller to take a further part of an answer; then it is cut off.
    pub send_seconds: f64,
    /// Bytes in a second that a caller must send of a body on average; 0: no bound. With it, `body_seconds` is what a caller may
    /// be waited for in all, and each byte earns time back. Callers of streaming gRPC that are silent for long need 0. 408.
    pub request_bytes_per_second: u32,
    /// The same for taking an answer, with `send_seconds`.
    pub response_bytes_per_second: u32,
    /// Seconds between two requests of a connection.
    pub idle_seconds: f64,
    /// Seconds in which nothing moves in a tunnel (WebSocket, CONNECT).
    pub tunnel_idle_seconds: f64,
    /// Requests of one connection; 0: no bound. The last answer says that it is the last.
    pub requests_per_connection: u64,
    /// Connections that all doors of a data plane have open. Further ones are closed at once.
    pub connections: u32,
    /// Connections that one door has open; 0: no bound of its own.
    pub connections_per_listener: u32,
    /// Connections that one source address (of IPv6: its /64) has open; 0: no bound. Counts who connects, or whom a balancer
    /// introduces by the PROXY protocol: behind other balancers all callers are one source.
    pub connections_per_source: u32,
    /// TLS handshakes that one source address begins in a second, after a burst of twice as many; 0: no bound.
    pub handshakes_per_source: u32,
    /// Limits of HTTP/2.
    pub http2: Http2LimitSettings,
}

/// Limits of HTTP/2.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http2LimitSettings {
    /// Streams that one connection has open, 1 to 65535.
    pub streams: u32,
    /// Streams that one connection may give up before it is ended (ENHANCE_YOUR_CALM), when those are more than half of all.
    pub resets: u32,
}

impl Default for Http2LimitSettings {
    fn default() -> Self {
        let limits = Limits::default();
        Self { streams: limits.streams, resets: limits.resets }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        let limits = Limits::default();
        let narrow = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self {
            head_bytes: narrow(limits.request_head.bytes),
            target_bytes: narrow(limits.request_head.target),
            field_bytes: narrow(limits.request_head.field),
            fields: narrow(limits.request_head.fields),
            request_body_bytes: 0,
            response_head_bytes: narrow(limits.response_head.bytes),
            response_body_bytes: 0,
            handshake_seconds: limits.handshake_within.as_secs_f64(),
            head_seconds: limits.head_within.as_secs_f64(),
            body_seconds: limits.body_within.as_secs_f64(),
            send_seconds: limits.send_within.as_secs_f64(),
            request_bytes_per_second: limits.request_rate,
            response_bytes_per_second: limits.response_rate,
            idle_seconds: limits.idle_within.as_secs_f64(),
            tunnel_idle_seconds: limits.tunnel_idle.as_secs_f64(),
            requests_per_connection: 0,
            connections: narrow(limits.max_connections),
            connections_per_listener: 0,
            connections_per_source: limits.source.connections,
            handshakes_per_source: limits.source.handshakes,
            http2: Http2LimitSettings::default(),
        }
    }
}

/// A limit that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidLimit {
    /// The setting's name, with dots.
    pub field: &'static str,
    /// What was found, and what is expected.
    pub problem: String,
}

impl LimitSettings {
    /// As the data plane takes them.
    ///
    /// # Errors
    /// A number lies outside of what makes sense; the sentence names it.
    pub fn limits(&self, proof: ProofLimits) -> Result<Limits, InvalidLimit> {
        let invalid = |field, problem: String| InvalidLimit { field, problem };
        let within = |field, value: u32, least: u32, most: u32| match value {
            value if (least..=most).contains(&value) => Ok(value as usize),
            _ => Err(invalid(field, format!("{value}; expected {least} to {most}"))),
        };
        let time = |field, seconds: f64| match seconds {
            0.01..=86_400.0 => Ok(Duration::from_secs_f64(seconds)),
            _ => Err(invalid(field, format!("{seconds}; expected seconds from 0.01 to 86400"))),
        };
        let bounded = |bytes: u64| if bytes == 0 { u64::MAX } else { bytes };

        let head = within("limits.head_bytes", self.head_bytes, 1024, MAX_HEAD_BYTES)?;
        // Where the head got smaller and nothing was said of its parts, they are as large as it.
        let part = |bytes: u32| {
            if bytes == Self::default().head_bytes { bytes.min(self.head_bytes) } else { bytes }
        };
        let target = part(self.target_bytes);
        let target = within("limits.target_bytes", target, 64, self.head_bytes)?;
        let field = within("limits.field_bytes", self.field_bytes, 64, MAX_HEAD_BYTES)?;
        let fields = within("limits.fields", self.fields, 8, MAX_FIELD_COUNT)?;
        let answer =
            within("limits.response_head_bytes", self.response_head_bytes, 1024, MAX_HEAD_BYTES)?;
        within("limits.http2.streams", self.http2.streams, 1, 65_535)?;
        within("limits.connections", self.connections, 1, u32::MAX)?;
        Ok(Limits {
            handshake_within: time("limits.handshake_seconds", self.handshake_seconds)?,
            head_within: time("limits.head_seconds", self.head_seconds)?,
            body_within: time("limits.body_seconds", self.body_seconds)?,
            send_within: time("limits.send_seconds", self.send_seconds)?,
            idle_within: time("limits.idle_seconds", self.idle_seconds)?,
            tunnel_idle: time("limits.tunnel_idle_seconds", self.tunnel_idle_seconds)?,
            request_rate: self.request_bytes_per_second,
            response_rate: self.response_bytes_per_second,
            request_head: HeadLimits { bytes: head, target, field, fields },
            response_head: HeadLimits { bytes: answer, target: answer, field, fields },
            request_body: bounded(self.request_body_bytes),
            response_body: bounded(self.response_body_bytes),
            requests: bounded(self.requests_per_connection),
            streams: self.http2.streams,
            resets: self.http2.resets,
            max_connections: self.connections as usize,
            max_of_door: match self.connections_per_listener {
                0 => usize::MAX,
                count => count as usize,
            },
            source: SourceLimits {
                connections: self.connections_per_source,
                handshakes: self.handshakes_per_source,
            },
            proof,
            ..Limits::default()
        })
    }
}

/// A head must fit the largest buffer, with room for what is read behind it.
const MAX_HEAD_BYTES: u32 = 120 * 1024;
/// As many fields as the parser has places for.
const MAX_FIELD_COUNT: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> Result<Limits, InvalidLimit> {
        let settings: LimitSettings = serde_json::from_str(text).unwrap();
        settings.limits(ProofLimits::default())
    }

    #[test]
    fn what_is_not_said_is_as_it_always_was() {
        let (unsaid, always) = (limits("{}").unwrap(), Limits::default());
        assert_eq!(format!("{unsaid:?}"), format!("{always:?}"));
        // A smaller head has smaller parts.
        let small = limits(r#"{"head_bytes": 2048}"#).unwrap().request_head;
        assert_eq!((small.bytes, small.target), (2048, 2048));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, sentence) in [
            (r#"{"head_bytes": 100}"#, "limits.head_bytes: 100; expected 1024 to 122880"),
            (r#"{"target_bytes": 70000}"#, "limits.target_bytes: 70000; expected 64 to 65536"),
            (r#"{"fields": 1000}"#, "limits.fields: 1000; expected 8 to 256"),
            (
                r#"{"head_seconds": 0}"#,
                "limits.head_seconds: 0; expected seconds from 0.01 to 86400",
            ),
            (r#"{"connections": 0}"#, "limits.connections: 0; expected 1 to 4294967295"),
            (r#"{"http2": {"streams": 0}}"#, "limits.http2.streams: 0; expected 1 to 65535"),
        ] {
            assert_eq!(limits(text).unwrap_err().to_string(), sentence);
        }
        assert!(serde_json::from_str::<LimitSettings>(r#"{"head_size": 1}"#).is_err());
    }
}
