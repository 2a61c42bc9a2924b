//! What plugins that change bodies ask of the answer's head, and bodies without their coding.

use std::io::{self, Read};

use crate::pipeline::{Exchange, Head};

/// A coding that can be taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Brotli,
}

/// How the body is coded, when that can be taken off: one coding, and one that we know.
pub(super) fn coding(exchange: &Exchange) -> Option<Coding> {
    let lines = exchange.response.all("content-encoding");
    let mut codings = lines
        .flat_map(|line| line.split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
    let (one, None) = (codings.next()?, codings.next()) else { return None };
    let is = |name: &str| one.eq_ignore_ascii_case(name.as_bytes());
    match () {
        () if is("gzip") || is("x-gzip") => Some(Coding::Gzip),
        () if is("br") => Some(Coding::Brotli),
        () => None,
    }
}

/// The body without its coding, when that has no more than `most` bytes.
///
/// # Errors
/// It is not coded so, is cut off, or is too long.
pub(super) fn decoded(body: &[u8], coding: Coding, most: usize) -> io::Result<Vec<u8>> {
    let read = |reader: &mut dyn Read| {
        let mut out = Vec::new();
        // One byte more tells what is too long from what just fits.
        reader.take(most as u64 + 1).read_to_end(&mut out)?;
        match out.len() > most {
            true => Err(io::Error::other("it is too long without its coding")),
            false => Ok(out),
        }
    };
    match coding {
        Coding::Gzip => read(&mut flate2::read::MultiGzDecoder::new(body)),
        Coding::Brotli => read(&mut ::brotli::Decompressor::new(body, 4096)),
    }
}

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
