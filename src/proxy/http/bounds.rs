//! What of a request of HTTP/2 is larger than allowed, and the answer to it. The `h2` crate bounds the head as a whole.

use bytes::Bytes;
use h2::server::SendResponse;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};

use super::grpc;
use super::h1::{HeadLimits, LONG_FIELD, LONG_TARGET, MANY_FIELDS, Refused};

/// Why the head is refused, if it is.
pub(in crate::proxy) fn refused(parts: &Parts, limits: &HeadLimits) -> Option<Refused> {
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > limits.target {
        return Some(LONG_TARGET);
    }
    if parts.headers.len() > limits.fields {
        return Some(MANY_FIELDS);
    }
    // No field is longer than all of the head.
    let is_long = limits.field < limits.bytes
        && parts
            .headers
            .iter()
            .any(|(name, value)| name.as_str().len() + value.len() > limits.field);
    is_long.then_some(LONG_FIELD)
}

/// Answers so that the caller can read it, a gRPC client too.
pub(in crate::proxy) fn answer(parts: &Parts, refused: Refused, respond: &mut SendResponse<Bytes>) {
    let mut response = Response::new(());
    let fields = response.headers_mut();
    fields.insert(http::header::SERVER, HeaderValue::from_static("Wardgate"));
    let is_grpc = parts
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert("grpc-status", u16::from(grpc::code_of(refused.status)).into());
        fields.insert("grpc-message", HeaderValue::from_static(refused.sentence));
        // Who has gone gets no answer.
        let _ = respond.send_response(response, true);
        return;
    }
    let body = format!("{}\n", serde_json::json!({ "error_msg": refused.sentence }));
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(http::header::CONTENT_LENGTH, body.len().into());
    *response.status_mut() =
        StatusCode::from_u16(refused.status).unwrap_or(StatusCode::BAD_REQUEST);
    if let Ok(mut stream) = respond.send_response(response, false) {
        let _ = stream.send_data(body.into(), true);
    }
}
