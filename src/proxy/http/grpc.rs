//! gRPC: which exchanges are calls, and what a call is answered that we answer ourselves.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::pipeline::{Exchange, Reply};

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
