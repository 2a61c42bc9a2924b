//! gRPC: which exchanges are calls, their deadlines, and what a call is answered that we answer ourselves.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::time::Instant;

use crate::pipeline::{Exchange, Head, Reply};

const TIMEOUT: &str = "grpc-timeout";
const DEADLINE_EXCEEDED: u8 = 4;
const OVERDUE: &str = "the deadline is over";

/// When the call's time is over, counted from the arrival of its head. A time that cannot be read is the app's to judge.
pub(super) fn deadline(exchange: &Exchange) -> Option<Instant> {
    let timeout = exchange.request.value(TIMEOUT).and_then(timeout)?;
    exchange.times.started.checked_add(timeout).filter(|_| is_call(exchange))
}

/// The time that `grpc-timeout` gives: at most eight digits and a unit.
fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Tells the next one how much of the time is left, so that it gives up no later than the caller.
pub(super) fn shorten(request: &mut Head, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    request.set(TIMEOUT, written(left).as_bytes());
}

/// In the finest unit in which it has eight digits, rounded down.
fn written(time: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let units = [(1, 'n'), (1_000, 'u'), (1_000_000, 'm'), (1_000_000_000, 'S')];
    let fits = |(nanos, _): &(u128, char)| time.as_nanos() / nanos <= MOST;
    let (nanos, unit) = units.into_iter().find(fits).unwrap_or((3_600_000_000_000, 'H'));
    format!("{}{unit}", (time.as_nanos() / nanos).min(MOST))
}

/// The answer to a call whose time is over.
pub(super) fn overdue() -> Reply {
    refusal(DEADLINE_EXCEEDED, OVERDUE)
}

/// The end of an answer that has begun, for a call whose time is over.
pub(super) fn overdue_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", u16::from(DEADLINE_EXCEEDED).into());
    trailers.insert("grpc-message", HeaderValue::from_static(OVERDUE));
    trailers
}

/// Is it a gRPC call?
pub(super) fn is_call(exchange: &Exchange) -> bool {
    exchange.request.value("content-type").is_some_and(|value| {
        value
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// A trailers-only answer: what a gRPC client can read.
pub(super) fn refusal(code: u8, message: &str) -> Reply {
    Reply::empty(200)
        .with("Content-Type", "application/grpc")
        .with("grpc-status", itoa::Buffer::new().format(code))
        .with("grpc-message", message)
}

/// A refusal that a gRPC client can read: its status as a code, its sentence as the message, its other fields as metadata.
pub(super) fn translated(reply: Reply) -> Reply {
    const UNSAFE: &AsciiSet = &CONTROLS.add(b'%');
    let sentence = serde_json::from_slice::<serde_json::Value>(&reply.body).ok().and_then(|body| {
        let found = body.get("message").or_else(|| body.get("error_msg"))?;
        found.as_str().map(str::to_owned)
    });
    let text = sentence.unwrap_or_else(|| String::from_utf8_lossy(&reply.body).trim().to_owned());
    let end = text.char_indices().nth(1000).map_or(text.len(), |(at, _)| at);
    let message = utf8_percent_encode(&text[..end], UNSAFE).to_string();
    let mut answer = refusal(code_of(reply.status), &message);
    let kept = reply.fields.into_iter();
    answer.fields.extend(kept.filter(|(name, _)| !name.eq_ignore_ascii_case("content-type")));
    answer
}

/// The gRPC code of an HTTP status, as the gRPC specification maps them.
pub(super) const fn code_of(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_eight_digits_at_most_and_a_unit() {
        for (value, expected) in [
            ("1n", Some(Duration::from_nanos(1))),
            ("250u", Some(Duration::from_micros(250))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("0S", Some(Duration::ZERO)),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("+5S", None),
            ("-5S", None),
            ("1.5S", None),
            ("123456789S", None),
            ("5 S", None),
        ] {
            assert_eq!(timeout(value.as_bytes()), expected, "{value:?}");
        }
    }

    #[test]
    fn what_is_left_is_written_as_exactly_as_eight_digits_allow_and_never_longer() {
        for (left, expected) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(9), "9000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(u64::MAX), "99999999H"),
        ] {
            assert_eq!(written(left), expected, "{left:?}");
            assert!(timeout(expected.as_bytes()).unwrap() <= left);
        }
    }
}
