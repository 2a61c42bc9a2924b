//! Trailers: fields behind a body, in both versions. They come when the request was decided on and the head has gone, so only
//! those pass that change nothing about that.

use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};

use crate::pipeline::Known;
use crate::proxy::buffer::Buffer;

/// Without the fields that must not come late (RFC 9110 section 6.5.1) or would claim an identity.
pub(super) fn lawful(mut trailers: HeaderMap) -> Option<HeaderMap> {
    let unlawful: Vec<HeaderName> =
        trailers.keys().filter(|name| !may_come_late(name)).cloned().collect();
    for name in unlawful {
        trailers.remove(name);
    }
    (!trailers.is_empty()).then_some(trailers)
}

/// Framing, routing, credentials, what tells how the content is to be read, and who called belong into the head.
fn may_come_late(name: &HeaderName) -> bool {
    match Known::of(name.as_str().as_bytes()) {
        Known::Other => !matches!(
            *name,
            header::AUTHORIZATION
                | header::PROXY_AUTHORIZATION
                | header::WWW_AUTHENTICATE
                | header::PROXY_AUTHENTICATE
                | header::COOKIE
                | header::SET_COOKIE
                | header::CONTENT_TYPE
                | header::CONTENT_ENCODING
                | header::CONTENT_RANGE
                | header::CACHE_CONTROL
                | header::MAX_FORWARDS
                | header::RANGE
        ),
        Known::Server | Known::Date => true,
        _ => false,
    }
}

/// The trailers of a chunked body; `section` was checked by the decoder, line by line.
pub(super) fn read(section: &[u8]) -> Option<HeaderMap> {
    let mut trailers = HeaderMap::new();
    for line in section.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end) {
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let value = line[colon + 1..].trim_ascii();
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value))
        {
            trailers.append(name, value);
        }
    }
    (!trailers.is_empty()).then_some(trailers)
}

/// The end of a chunked body, with its trailers.
pub(super) fn write(out: &mut Buffer, trailers: Option<&HeaderMap>) {
    out.extend(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        out.extend(name.as_str().as_bytes());
        out.extend(b": ");
        out.extend(value.as_bytes());
        out.extend(b"\r\n");
    }
    out.extend(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_are_read_and_written_and_what_must_not_come_late_is_left_out() {
        let section = b"X-Sum: 7\r\nhost: b\r\nx-sum:8 \r\nContent-Length: 1\r\nAuthorization: x\r\n\
            x-forwarded-for: 1\r\nX-Spiffe-Id: y\r\ntransfer-encoding: chunked\r\ngrpc-status: 0\r\n";
        let read = read(section).unwrap();
        assert_eq!(read.len(), 9);
        let mut out = Buffer::default();
        write(&mut out, lawful(read).as_ref());
        let written = "0\r\nx-sum: 7\r\nx-sum: 8\r\ngrpc-status: 0\r\n\r\n";
        assert_eq!(std::str::from_utf8(out.data()).unwrap(), written);
    }

    #[test]
    fn no_trailers_are_none() {
        assert_eq!(read(b""), None);
        assert_eq!(lawful(HeaderMap::new()), None);
        let mut out = Buffer::default();
        write(&mut out, None);
        assert_eq!(out.data(), b"0\r\n\r\n");
    }
}
