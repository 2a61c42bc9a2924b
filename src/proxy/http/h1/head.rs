//! Reading HTTP/1.1 heads, strictly: what RFC 9112 calls ambiguous is refused, never repaired. No I/O.

use crate::pipeline::{Head, Known};

/// Bytes that a head may have at most.
pub const MAX_HEAD: usize = 64 * 1024;
/// Fields that a head may have at most.
pub const MAX_FIELDS: usize = 128;

/// How a message's body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

/// Why a head is refused: the status that the sender gets, and the sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refused {
    /// The status that answers it.
    pub status: u16,
    /// What is wrong.
    pub sentence: &'static str,
}

const fn bad(sentence: &'static str) -> Refused {
    Refused { status: 400, sentence }
}

/// What a request's head says beside what [`Head`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    /// Bytes that the head took.
    pub length: usize,
    /// How its body ends.
    pub framing: Framing,
    /// May the connection be used again?
    pub keep_alive: bool,
    /// HTTP/1.0: no chunks and no interim responses towards it.
    pub http10: bool,
    /// The names of an `Upgrade` field, when `Connection` names it too.
    pub upgrade: bool,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    /// `TE: trailers`; never in HTTP/1.0.
    pub takes_trailers: bool,
}

/// What a response's head says beside what [`Head`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFacts {
    /// Bytes that the head took.
    pub length: usize,
    /// How its body ends.
    pub framing: Framing,
    /// May the connection be used again?
    pub keep_alive: bool,
    /// `101` with an `Upgrade` field that `Connection` names.
    pub upgrade: bool,
}

/// Where the head in `bytes` ends, once all of it is there. `scanned` bytes were looked at before.
///
/// # Errors
/// It is larger than [`MAX_HEAD`], or a line ends with a bare LF.
fn end_of_head(bytes: &[u8], scanned: usize) -> Result<Option<usize>, Refused> {
    const TOO_LARGE: Refused = Refused { status: 431, sentence: "the head is too large" };
    // Line ends that were looked at before are not looked at again; the last one may have been the first of two.
    let from = scanned.saturating_sub(3);
    for at in memchr::memchr_iter(b'\n', &bytes[from..]).map(|at| from + at) {
        if at >= MAX_HEAD {
            return Err(TOO_LARGE);
        }
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(bad("a line ends with a bare LF"));
        }
        if at >= 3 && bytes[at - 3..at] == *b"\r\n\r" {
            return Ok(Some(at + 1));
        }
    }
    if bytes.len() >= MAX_HEAD { Err(TOO_LARGE) } else { Ok(None) }
}

fn parse_error(error: httparse::Error) -> Refused {
    match error {
        httparse::Error::TooManyHeaders => Refused { status: 431, sentence: "too many fields" },
        httparse::Error::Version => Refused { status: 505, sentence: "only HTTP/1.0 and HTTP/1.1" },
        httparse::Error::HeaderName => bad("a field name is not a token"),
        httparse::Error::HeaderValue => bad("a field value has a control character"),
        httparse::Error::NewLine => bad("a line does not end with CR LF"),
        httparse::Error::Status => bad("the status is not a number"),
        httparse::Error::Token => bad("the first line is malformed"),
    }
}

/// Fields that decide about framing and the connection, gathered while the fields are read.
#[derive(Default)]
struct Gathered {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade_named: bool,
    upgrade_field: bool,
    te_trailers: bool,
}

impl Gathered {
    fn take(&mut self, known: Known, value: &[u8], raw: &[u8]) -> Result<(), Refused> {
        if matches!(known, Known::ContentLength | Known::TransferEncoding)
            && !ends_its_line(value, raw)
        {
            return Err(bad("white space behind a framing field"));
        }
        match known {
            Known::ContentLength if self.length.is_some() => {
                return Err(bad("more than one Content-Length"));
            }
            Known::ContentLength => self.length = Some(content_length(value)?),
            Known::TransferEncoding if self.chunked => {
                return Err(bad("more than one Transfer-Encoding"));
            }
            Known::TransferEncoding if value.eq_ignore_ascii_case(b"chunked") => {
                self.chunked = true;
            }
            Known::TransferEncoding => {
                return Err(Refused {
                    status: 400,
                    sentence: "the one known Transfer-Encoding is chunked",
                });
            }
            Known::Connection => {
                for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    self.close |= token.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                    self.upgrade_named |= token.eq_ignore_ascii_case(b"upgrade");
                }
            }
            Known::Upgrade => self.upgrade_field = true,
            Known::Te => self.te_trailers |= names_trailers(value),
            _ => {}
        }
        Ok(())
    }
}

/// Is `trailers` among what a `TE` field names (RFC 9110 section 10.1.4)?
pub(in crate::proxy) fn names_trailers(te: &[u8]) -> bool {
    let mut names = te.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    names.any(|name| name.eq_ignore_ascii_case(b"trailers"))
}

/// Nothing stands between `value`, a slice of `raw`, and its line's end. Lawful white space there has fooled parsers before.
fn ends_its_line(value: &[u8], raw: &[u8]) -> bool {
    let end = (value.as_ptr() as usize + value.len()).wrapping_sub(raw.as_ptr() as usize);
    raw.get(end) == Some(&b'\r')
}

/// Digits only, and no overflow.
fn content_length(value: &[u8]) -> Result<u64, Refused> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number =
        std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    number.ok_or(bad("Content-Length is not a number"))
}

/// Reads a request's head into `head`. `None` when it is not complete yet.
///
/// # Errors
/// The head breaks a rule of RFC 9112, or is ambiguous.
pub fn read_request(
    bytes: &[u8],
    scanned: usize,
    head: &mut Head,
) -> Result<Option<RequestFacts>, Refused> {
    // RFC 9112 section 2.2: an empty line before the request line is ignored.
    let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let raw = &bytes[skipped..];
    let Some(end) = end_of_head(raw, scanned.saturating_sub(skipped))? else { return Ok(None) };
    let raw = &raw[..end];

    let mut fields = [const { std::mem::MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_request_with_uninit_headers(&mut parsed, raw, &mut fields)
        .map_err(parse_error)?;
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(bad("the request line is malformed"));
    };
    // The whole head was found above: if the parser ended elsewhere, the two readings differ.
    if status != httparse::Status::Complete(end) {
        return Err(bad("the head has two readings"));
    }
    let http10 = version == 0;

    let target = target.as_bytes();
    let (origin, authority) = split_target(method, target)?;
    head.adopt(raw, method.as_bytes(), origin);
    let is_connect = method == "CONNECT";
    if is_connect {
        // It has an authority alone. Routes and rules know it by its method, and by the path that every place has.
        head.set_target("/");
    }
    let mut gathered = Gathered::default();
    let mut host: Option<&[u8]> = None;
    let mut expects_continue = false;
    for field in parsed.headers.iter() {
        let (name, value) = (field.name.as_bytes(), field.value.trim_ascii());
        let known = Known::of(name);
        match known {
            Known::Host if host.is_some() => return Err(bad("more than one Host")),
            Known::Host => {
                check_host(value)?;
                host = Some(value);
                continue;
            }
            Known::Expect if value.eq_ignore_ascii_case(b"100-continue") => expects_continue = true,
            Known::Expect => {
                return Err(Refused {
                    status: 417,
                    sentence: "the one known expectation is 100-continue",
                });
            }
            known => gathered.take(known, value, raw)?,
        }
        head.adopt_field(raw, name, value);
    }
    match (authority, host) {
        (_, None) if !http10 => return Err(bad("no Host")),
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(bad("the request line names another host than Host"));
        }
        (Some(authority), _) => head.adopt_authority(raw, authority),
        (None, Some(host)) => head.adopt_authority(raw, host),
        (None, None) => {}
    }
    let framing = match (gathered.chunked, gathered.length) {
        (true, Some(_)) => return Err(bad("both Transfer-Encoding and Content-Length")),
        (true, None) if http10 => return Err(bad("Transfer-Encoding in HTTP/1.0")),
        (true, None) => Framing::Chunked,
        (false, Some(0) | None) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
    };
    if is_connect && framing != Framing::None {
        return Err(bad("CONNECT with a body"));
    }
    Ok(Some(RequestFacts {
        length: skipped + end,
        framing,
        keep_alive: !gathered.close && (!http10 || gathered.keep_alive),
        http10,
        upgrade: gathered.upgrade_named && gathered.upgrade_field && !http10,
        expects_continue: expects_continue && !http10 && framing != Framing::None,
        takes_trailers: gathered.te_trailers && !http10,
    }))
}

/// The origin-form of a request's target, and the authority that an absolute-form names (RFC 9112 section 3.2).
fn split_target<'a>(
    method: &str,
    target: &'a [u8],
) -> Result<(&'a [u8], Option<&'a [u8]>), Refused> {
    if method == "CONNECT" {
        check_host(target)?;
        return match target.iter().rposition(|b| *b == b':') {
            Some(colon) if target[colon..].len() > 1 && target.last() != Some(&b']') => {
                Ok((target, Some(target)))
            }
            _ => Err(bad("CONNECT needs a host and a port")),
        };
    }
    check_target(target)?;
    if target.first() == Some(&b'/') || (target == b"*" && method == "OPTIONS") {
        return Ok((target, None));
    }
    let schemed = |scheme: &str| {
        let start = target.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme.as_bytes()).then(|| &target[scheme.len()..])
    };
    let rest = schemed("http://")
        .or_else(|| schemed("https://"))
        .ok_or(bad("the target does not start with a slash"))?;
    let slash = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let (authority, origin) = rest.split_at(slash);
    check_host(authority)?;
    match origin.first() {
        Some(b'/') => Ok((origin, Some(authority))),
        _ => Err(bad("the absolute target has no path")),
    }
}

/// A target of printable ASCII without fragment and with lawful escapes, whatever the version of HTTP.
pub(in crate::proxy) fn check_target(target: &[u8]) -> Result<(), Refused> {
    if target.iter().any(|b| !(0x21..=0x7e).contains(b) || *b == b'#') {
        return Err(bad("the target has a byte that no target may have"));
    }
    check_escapes(target)
}

/// Every `%` is followed by two hexadecimal digits, and none of them makes a NUL.
fn check_escapes(target: &[u8]) -> Result<(), Refused> {
    for at in memchr::memchr_iter(b'%', target) {
        match target.get(at + 1..at + 3) {
            Some(b"00") => return Err(bad("the target has an escaped NUL")),
            Some([a, b]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {}
            _ => return Err(bad("the target has a malformed percent escape")),
        }
    }
    Ok(())
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`: no user, no list, no white space, no control bytes (RFC 9112 section 3.2).
pub(in crate::proxy) fn check_host(host: &[u8]) -> Result<(), Refused> {
    let invalid = Err(bad("Host is not a host with an optional port"));
    let (name, port) = match host.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = memchr::memchr(b']', rest) else { return invalid };
            let literal = &rest[..end];
            if literal.is_empty()
                || !literal.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
            {
                return invalid;
            }
            match &rest[end + 1..] {
                [] => return Ok(()),
                [b':', port @ ..] => (literal, Some(port)),
                _ => return invalid,
            }
        }
        None => match memchr::memchr(b':', host) {
            Some(at) => (&host[..at], Some(&host[at + 1..])),
            None => (host, None),
        },
    };
    let literal = host.first() == Some(&b'[');
    let named = !name.is_empty()
        && (literal
            || name
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')));
    let ported = port.is_none_or(|port| {
        port.iter().all(u8::is_ascii_digit)
            && std::str::from_utf8(port)
                .is_ok_and(|text| text.is_empty() || text.parse::<u16>().is_ok())
    });
    if named && ported { Ok(()) } else { invalid }
}

/// Reads a response's head into `head`; `method` is the request's. `None` when it is not complete yet.
///
/// # Errors
/// The head breaks a rule of RFC 9112, or is ambiguous: the connection is good for nothing more.
pub fn read_response(
    bytes: &[u8],
    scanned: usize,
    method: &str,
    head: &mut Head,
) -> Result<Option<ResponseFacts>, Refused> {
    let Some(end) = end_of_head(bytes, scanned)? else { return Ok(None) };
    let raw = &bytes[..end];
    let mut fields = [const { std::mem::MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, raw, &mut fields)
        .map_err(parse_error)?;
    let (Some(version), Some(code)) = (parsed.version, parsed.code) else {
        return Err(bad("the status line is malformed"));
    };
    if status != httparse::Status::Complete(end) {
        return Err(bad("the head has two readings"));
    }
    if !(100..=999).contains(&code) {
        return Err(bad("the status is not a number from 100 to 999"));
    }
    let http10 = version == 0;
    head.adopt_status(raw, code);
    let mut gathered = Gathered::default();
    for field in parsed.headers.iter() {
        let (name, value) = (field.name.as_bytes(), field.value.trim_ascii());
        gathered.take(Known::of(name), value, raw)?;
        head.adopt_field(raw, name, value);
    }
    if gathered.chunked && gathered.length.is_some() {
        return Err(bad("both Transfer-Encoding and Content-Length"));
    }
    // What follows a successful answer to CONNECT is no body (RFC 9110 section 9.3.6).
    let switched = method == "CONNECT" && (200..300).contains(&code);
    let bodiless = method == "HEAD" || switched || code < 200 || code == 204 || code == 304;
    let framing = match (gathered.chunked, gathered.length) {
        _ if bodiless => Framing::None,
        (true, _) if http10 => return Err(bad("Transfer-Encoding in HTTP/1.0")),
        (true, _) => Framing::Chunked,
        (false, Some(0)) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    };
    Ok(Some(ResponseFacts {
        length: end,
        framing,
        keep_alive: !gathered.close
            && (!http10 || gathered.keep_alive)
            && framing != Framing::UntilClose,
        upgrade: code == 101 && gathered.upgrade_named && gathered.upgrade_field,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<RequestFacts, Refused> {
        read_request(text.as_bytes(), 0, &mut Head::default()).map(|facts| facts.expect("complete"))
    }

    #[test]
    fn a_plain_request_is_read_with_its_bytes_unchanged() {
        let mut head = Head::default();
        let text = "GET /a%20b?c=d HTTP/1.1\r\nHost: Shop:80\r\nX-A:  1 \r\n\r\nrest";
        let facts = read_request(text.as_bytes(), 0, &mut head).unwrap().unwrap();
        assert_eq!(facts.length, text.len() - 4);
        assert_eq!(
            (head.method(), head.target(), head.authority()),
            ("GET", "/a%20b?c=d", "Shop:80")
        );
        assert_eq!(
            head.fields().map(|f| (f.name, f.value)).collect::<Vec<_>>(),
            [("X-A", &b"1"[..])]
        );
        assert!(facts.keep_alive && facts.framing == Framing::None);
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: 0x5",
            "Content-Length: 5_0",
            "Content-Length: ",
            "Content-Length: 18446744073709551616",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: identity, chunked",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: Chunked\t",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding : chunked",
            "A: 1\r\n folded",
            "A: 1\nB: 2",
            "A: 1\r\n\n",
            "A: 1\rB: 2",
            "A: \0",
            "Host: b",
            "A b: 1",
            ": 1",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            assert!(request(&text).is_err(), "{fields:?}");
        }
        assert!(request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(request("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").is_err());
        assert!(request("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").is_ok());
    }

    #[test]
    fn targets_and_hosts_have_one_reading() {
        for (line, host, fits) in [
            ("GET /", "a", true),
            ("GET /", "a.b:80", true),
            ("GET /", "[::1]:80", true),
            ("GET /", "", false),
            ("GET /", "a b", false),
            ("GET /", "a,b", false),
            ("GET /", "u@a", false),
            ("GET /", "a/b", false),
            ("GET /", "a:b", false),
            ("GET /", "a:99999", false),
            ("GET /", "a\x01", false),
            ("GET http://a/x", "a", true),
            ("GET http://b/x", "a", false),
            ("GET ftp://a/x", "a", false),
            ("GET /x#y", "a", false),
            ("GET /%zz", "a", false),
            ("GET /%u002f", "a", false),
            ("GET /%00", "a", false),
            ("GET x", "a", false),
            ("GET *", "a", false),
            ("OPTIONS *", "a", true),
            ("CONNECT a:80", "a:80", true),
            ("CONNECT [::1]:80", "[::1]:80", true),
            ("CONNECT a:80", "b:80", false),
            ("CONNECT a", "a", false),
            ("CONNECT [::1]", "[::1]", false),
            ("CONNECT a:", "a:", false),
            ("CONNECT /", "a", false),
            ("CONNECT http://a:80/", "a:80", false),
        ] {
            let text = format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(request(&text).is_ok(), fits, "{line} {host:?}: {:?}", request(&text));
        }
        assert!(request("GET / HTTP/1.1\r\n\r\n").is_err(), "no Host");
        assert!(request("GET / HTTP/1.0\r\n\r\n").is_ok(), "HTTP/1.0 needs none");
        assert!(request("GET / HTTP/2.0\r\nHost: a\r\n\r\n").is_err());
    }

    #[test]
    fn a_head_in_pieces_is_complete_only_at_its_end_and_bounded() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(
                read_request(&text[..cut], cut.saturating_sub(1), &mut Head::default()),
                Ok(None),
                "{cut}"
            );
        }
        let large = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &vec![b'a'; MAX_HEAD]].concat();
        assert_eq!(read_request(&large, 0, &mut Head::default()).unwrap_err().status, 431);
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: 1\r\n".repeat(MAX_FIELDS));
        assert_eq!(request(&many).unwrap_err().status, 431);
    }

    #[test]
    fn a_response_body_ends_where_rfc_9112_says() {
        let read = |method: &str, head: &str| {
            let text = format!("HTTP/1.1 {head}\r\n\r\n");
            read_response(text.as_bytes(), 0, method, &mut Head::default())
                .map(|f| f.unwrap().framing)
        };
        assert_eq!(read("GET", "200 OK\r\nContent-Length: 3"), Ok(Framing::Length(3)));
        assert_eq!(read("HEAD", "200 OK\r\nContent-Length: 3"), Ok(Framing::None));
        assert_eq!(read("GET", "204 No Content"), Ok(Framing::None));
        assert_eq!(read("GET", "304 Not Modified\r\nContent-Length: 3"), Ok(Framing::None));
        assert_eq!(read("GET", "200 OK\r\nTransfer-Encoding: chunked"), Ok(Framing::Chunked));
        assert_eq!(read("GET", "200 OK"), Ok(Framing::UntilClose));
        assert!(read("GET", "200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3").is_err());
        assert!(read("GET", "200 OK\r\nContent-Length: 3\r\nContent-Length: 3").is_err());
        assert!(read("GET", "099 Odd").is_err());
    }
}
