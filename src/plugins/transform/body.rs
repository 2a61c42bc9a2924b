//! What plugins that change bodies ask of the answer's head.

use crate::pipeline::{Exchange, Head};

/// Responses to HEAD, and some statuses, have no body (RFC 9112 section 6.3): one must not be put there.
pub(super) fn may_be_there(exchange: &Exchange) -> bool {
    exchange.request.method() != "HEAD"
        && exchange.rewritten.method.as_deref() != Some("HEAD")
        && !matches!(exchange.response.status(), 100..=199 | 204 | 304)
}

/// Is the body compressed, or otherwise not what it means?
pub(super) fn is_encoded(exchange: &Exchange) -> bool {
    exchange
        .response
        .all("content-encoding")
        .any(|value| !value.is_empty() && !value.eq_ignore_ascii_case(b"identity"))
}

/// What described the old body does not describe the new one.
pub(super) fn is_another(response: &mut Head) {
    for name in [
        "Content-Length",
        "Content-Encoding",
        "ETag",
        "Last-Modified",
        "Content-MD5",
        "Digest",
        "Accept-Ranges",
    ] {
        response.remove(name);
    }
}
