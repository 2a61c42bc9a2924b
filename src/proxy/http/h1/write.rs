//! Writing HTTP/1.1 heads and chunks: a head once into the buffer, the body behind it. No I/O.

use crate::pipeline::{Head, Known};
use crate::proxy::buffer::Buffer;
use crate::proxy::http::BodyLength;
use crate::proxy::http::switch::Switch;

/// One chunk around `data`; nothing for no data, since an empty chunk ends a body.
pub(super) fn chunk(out: &mut Buffer, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let mut line = [0_u8; 18];
    let mut at = 16;
    line[16..].copy_from_slice(b"\r\n");
    let mut left = data.len();
    while left > 0 {
        at -= 1;
        line[at] = b"0123456789abcdef"[left & 15];
        left >>= 4;
    }
    out.extend(&line[at..]);
    out.extend(data);
    out.extend(b"\r\n");
}

fn field(out: &mut Buffer, name: &str, value: &[u8]) {
    out.extend(name.as_bytes());
    out.extend(b": ");
    out.extend(value);
    out.extend(b"\r\n");
}

fn content_length(out: &mut Buffer, length: u64) {
    field(out, "content-length", itoa::Buffer::new().format(length).as_bytes());
}

/// What goes out beside the fields of a request's head.
pub(in crate::proxy) struct RequestLine<'a> {
    pub(in crate::proxy) method: &'a str,
    pub(in crate::proxy) target: &'a str,
    pub(in crate::proxy) host: &'a str,
    pub(in crate::proxy) body: BodyLength,
    /// What to ask to switch to.
    pub(in crate::proxy) switch: Option<Switch>,
    /// The caller takes trailers.
    pub(in crate::proxy) te_trailers: bool,
}

/// A request's head, and how its body is framed. Hop-by-hop fields are gone from `head` already.
pub(super) fn request(out: &mut Buffer, line: &RequestLine<'_>, head: &Head) -> BodyLength {
    let (method, target) = match line.switch {
        Some(Switch::Connect) => ("CONNECT", line.host),
        Some(Switch::WebSocket) | None => (line.method, line.target),
    };
    out.extend(method.as_bytes());
    out.extend(b" ");
    out.extend(target.as_bytes());
    out.extend(b" HTTP/1.1\r\n");
    field(out, "host", line.host.as_bytes());
    head.lines(|known| known != Known::ContentLength, |piece| out.extend(piece));
    let body = framed(line.body, head.has(|known| known == Known::Trailer));
    match body {
        // RFC 9110 section 8.6: methods that anticipate a body say that there is none.
        BodyLength::None if matches!(line.method, "POST" | "PUT" | "PATCH") => {
            content_length(out, 0);
        }
        BodyLength::None => {}
        BodyLength::Known(length) => content_length(out, length),
        BodyLength::Unknown => field(out, "transfer-encoding", b"chunked"),
    }
    if line.te_trailers {
        field(out, "te", b"trailers");
    }
    match (line.switch, line.te_trailers) {
        (Some(Switch::WebSocket), te) => {
            field(out, "connection", if te { b"upgrade, te" } else { b"upgrade" });
            field(out, "upgrade", b"websocket");
        }
        (_, true) => field(out, "connection", b"te"),
        (_, false) => {}
    }
    out.extend(b"\r\n");
    body
}

/// In HTTP/1.1 only chunks have trailers behind them; a message of HTTP/2 that announces some may have a length as well.
fn framed(body: BodyLength, trailers: bool) -> BodyLength {
    match body {
        BodyLength::Known(_) if trailers => BodyLength::Unknown,
        body => body,
    }
}

/// How a response's head is written.
#[derive(Default)]
pub(super) struct ResponseLine {
    pub(super) body: BodyLength,
    /// The client speaks HTTP/1.0: no chunks.
    pub(super) http10: bool,
    /// The connection ends with this response.
    pub(super) close: bool,
    /// The client takes trailers.
    pub(super) trailers: bool,
    /// No message follows: the answer has no framing.
    pub(super) tunnel: bool,
    /// The answer to HEAD, or 304: the length that a body would have had is told, the body is not sent.
    pub(super) bodiless: bool,
}

/// A response's head, and how its body is framed. Hop-by-hop fields are gone from `head` already, but for `Upgrade` of a 101.
pub(super) fn response(out: &mut Buffer, line: &ResponseLine, head: &Head) -> BodyLength {
    let status = head.status();
    out.extend(b"HTTP/1.1 ");
    out.extend(itoa::Buffer::new().format(status).as_bytes());
    out.extend(b" ");
    let reason =
        http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    out.extend(reason.unwrap_or_default().as_bytes());
    out.extend(b"\r\n");
    let tells_length = line.bodiless && line.body == BodyLength::None;
    head.lines(|known| known != Known::ContentLength || tells_length, |piece| out.extend(piece));
    let trailers = head.has(|known| known == Known::Trailer);
    let body = framed(line.body, trailers && line.trailers && !line.bodiless);
    match body {
        _ if status == 101 => field(out, "connection", b"upgrade"),
        _ if line.tunnel => {}
        BodyLength::None if line.bodiless || status < 200 || status == 204 => {}
        BodyLength::None => content_length(out, 0),
        BodyLength::Known(length) => content_length(out, length),
        BodyLength::Unknown if line.http10 => {}
        BodyLength::Unknown => field(out, "transfer-encoding", b"chunked"),
    }
    match (line.close, line.http10) {
        // The connection no longer carries HTTP: nothing to say about it.
        _ if line.tunnel => {}
        (true, _) => field(out, "connection", b"close"),
        // Clients of HTTP/1.0 take silence for the end of the connection.
        (false, true) => field(out, "connection", b"keep-alive"),
        (false, false) => {}
    }
    out.extend(b"\r\n");
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_chunks_are_written_once_and_framed_by_us() {
        let mut head = Head::response(200);
        head.append("Content-Length", b"999");
        head.append("X-A", b"1");
        let mut out = Buffer::default();
        let line =
            ResponseLine { body: BodyLength::Unknown, close: true, ..ResponseLine::default() };
        response(&mut out, &line, &head);
        chunk(&mut out, &[b'a'; 17]);
        chunk(&mut out, b"");
        let expected = "HTTP/1.1 200 OK\r\nX-A: 1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n11\r\naaaaaaaaaaaaaaaaa\r\n";
        assert_eq!(std::str::from_utf8(out.data()).unwrap(), expected);
    }

    #[test]
    fn a_head_answer_keeps_the_length_that_it_speaks_of() {
        let mut head = Head::response(200);
        head.append("Content-Length", b"999");
        let mut out = Buffer::default();
        let line =
            ResponseLine { body: BodyLength::None, bodiless: true, ..ResponseLine::default() };
        response(&mut out, &line, &head);
        assert_eq!(out.data(), b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n");
    }
}
