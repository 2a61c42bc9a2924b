//! `Head`: a message head as routing, policy and plugins see it: spans over the bytes that it came in.

use std::fmt;

/// A stretch of a head's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    length: u32,
}

impl Span {
    const fn range(self) -> std::ops::Range<usize> {
        let start = self.start as usize;
        start..start + self.length as usize
    }
}

/// The fields that the proxy itself must know, told apart once when a field is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields' own names")]
pub enum Known {
    Other,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Upgrade,
    Te,
    Trailer,
    KeepAlive,
    ProxyConnection,
    Expect,
    ForwardedClientCert,
    ForwardedFor,
    ForwardedProto,
    ForwardedHost,
    ForwardedPort,
    Forwarded,
    RealIp,
    Server,
    Date,
    /// A name that claims an identity; never taken from outside.
    IdentityClaim,
    /// `X-Consumer-…` and the like: claims that only our own ingress may make.
    ConsumerClaim,
    /// `X-Forwarded-For`, `-Proto`, `-Host`, `-Port` or `X-Real-IP` with an underscore: no sender's, but many applications make
    /// no difference.
    ForwardedAlias,
    /// Further names by which proxies tell whom they speak for (`X-Forwarded-Ssl`, `True-Client-IP`, …).
    OriginClaim,
    /// A name by which callers ask applications to take another method than the request's (`X-HTTP-Method-Override` and its like).
    MethodOverride,
}

impl Known {
    /// Tells a field by its name, without regard to case.
    pub fn of(name: &[u8]) -> Self {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        match name.len() {
            2 if is("te") => Self::Te,
            4 if is("host") => Self::Host,
            4 if is("date") => Self::Date,
            6 if is("expect") => Self::Expect,
            6 if is("server") => Self::Server,
            7 if is("upgrade") => Self::Upgrade,
            7 if is("trailer") => Self::Trailer,
            9 if is("forwarded") => Self::Forwarded,
            9 if is("x-real-ip") => Self::RealIp,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::KeepAlive,
            14 if is("content-length") => Self::ContentLength,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            16 if is("proxy-connection") => Self::ProxyConnection,
            16 if is("x-forwarded-host") => Self::ForwardedHost,
            16 if is("x-forwarded-port") => Self::ForwardedPort,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("x-forwarded-proto") => Self::ForwardedProto,
            23 if is("x-forwarded-client-cert") => Self::ForwardedClientCert,
            _ => Self::claim(name),
        }
    }

    /// Names by which gateways and applications tell each other who calls. `_` counts as `-`: some servers make no difference.
    fn claim(name: &[u8]) -> Self {
        let starts = |wanted: &str| {
            name.len() >= wanted.len()
                && name.iter().zip(wanted.as_bytes()).all(|(found, wanted)| {
                    let found = if *found == b'_' { b'-' } else { found.to_ascii_lowercase() };
                    found == *wanted
                })
        };
        let is = |wanted: &str| name.len() == wanted.len() && starts(wanted);
        match name.first() {
            Some(b'x' | b'X') => {
                if starts("x-consumer-") || is("x-credential-identifier") || is("x-userinfo") {
                    return Self::ConsumerClaim;
                }
                if starts("x-spiffe-")
                    || starts("x-ssl-")
                    || starts("x-wardgate-")
                    || starts("x-client-cert")
                    || is("x-forwarded-client-cert")
                {
                    return Self::IdentityClaim;
                }
                if starts("x-forwarded-") {
                    return match &name[12..] {
                        rest if is_one_of(rest, &["for", "proto", "host", "port"]) => {
                            Self::ForwardedAlias
                        }
                        _ => Self::OriginClaim,
                    };
                }
                if is("x-http-method-override") || is("x-http-method") || is("x-method-override") {
                    return Self::MethodOverride;
                }
                if is("x-real-ip") {
                    return Self::ForwardedAlias;
                }
                if ORIGIN_CLAIMS.iter().any(|claim| is(claim)) {
                    return Self::OriginClaim;
                }
            }
            Some(b'c' | b'C') if is("client-ip") || is("cf-connecting-ip") => {
                return Self::OriginClaim;
            }
            Some(b't' | b'T') if is("true-client-ip") => return Self::OriginClaim,
            Some(b'f' | b'F')
                if is("forwarded-for") || is("fastly-client-ip") || is("front-end-https") =>
            {
                return Self::OriginClaim;
            }
            Some(b'c' | b'C') if is("client-cert") || is("client-cert-chain") => {
                return Self::IdentityClaim;
            }
            Some(b's' | b'S') if starts("ssl-client-") => return Self::IdentityClaim,
            Some(b'l' | b'L') if starts("l5d-client-id") => return Self::IdentityClaim,
            _ => {}
        }
        Self::Other
    }

    /// Claims an identity: removed from what comes in, set by us alone.
    pub const fn is_identity(self) -> bool {
        matches!(self, Self::IdentityClaim | Self::ForwardedClientCert)
    }

    /// Belongs to one connection and is never forwarded (RFC 9110 section 7.6.1).
    pub const fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::Te
                | Self::TransferEncoding
                | Self::Upgrade
        )
    }
}

/// Of [`Known::OriginClaim`], those that begin with an X and not with `X-Forwarded-`.
const ORIGIN_CLAIMS: [&str; 12] = [
    "x-forwarded",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-original-host",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-port",
    "x-remote-addr",
    "x-remote-ip",
    "x-scheme",
    "x-url-scheme",
];

fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|wanted| name.eq_ignore_ascii_case(wanted.as_bytes()))
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Span,
    value: Span,
    known: Known,
    gone: bool,
    /// It was there when the head was settled.
    settled: bool,
}

/// One field line of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name, in the sender's spelling.
    pub name: &'a str,
    /// The value, without the white space around it. Any bytes but CR, LF and NUL.
    pub value: &'a [u8],
    /// Which one it is.
    pub known: Known,
}

/// A request's or response's head. Reused from message to message: clearing it keeps its memory.
///
/// Edits leave the received bytes where they are and put new ones behind them. Fields keep their order; every value of a
/// name can be reached; names are compared without case.
/// ```
/// # use wardgate::pipeline::Head;
/// let mut head = Head::request("GET", "/a?b=1", "shop");
/// head.append("accept", b"text/html");
/// head.set("Accept", b"*/*");
/// assert_eq!((head.path(), head.query(), head.text("ACCEPT")), ("/a", Some("b=1"), Some("*/*")));
/// ```
#[derive(Clone, Default)]
pub struct Head {
    bytes: Vec<u8>,
    method: Span,
    target: Span,
    /// Length of the path within the target.
    path: u32,
    authority: Span,
    status: u16,
    fields: Vec<Entry>,
    /// See [`Head::settle`]: the target, and the length of its path.
    settled: Option<(Span, u32)>,
    /// Values that settled fields had before they were replaced, by the field's place.
    replaced: Vec<(u32, Span)>,
}

impl Head {
    /// A request head without fields.
    pub fn request(method: &str, target: &str, authority: &str) -> Self {
        let mut head = Self::default();
        head.set_method(method);
        head.set_target(target);
        head.set_authority(authority);
        head
    }

    /// A response head without fields.
    pub fn response(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.replaced.clear();
        self.settled = None;
        (self.method, self.target, self.authority) = Default::default();
        (self.path, self.status) = (0, 0);
    }

    /// Gives back memory that an unusually large message took.
    pub fn shrink(&mut self) {
        if self.bytes.capacity() > 16 * 1024 || self.fields.capacity() > 256 {
            *self = Self::default();
        }
    }

    /// Takes a parsed request line and fields in one copy. `raw` is the head as received; every other slice must lie in it.
    ///
    /// The caller has checked that method, target and names are ASCII without control bytes.
    pub(crate) fn adopt(&mut self, raw: &[u8], method: &[u8], target: &[u8]) {
        self.clear();
        self.bytes.extend_from_slice(raw);
        self.method = within(raw, method);
        self.target = within(raw, target);
        self.find_path();
    }

    /// The same for a response.
    pub(crate) fn adopt_status(&mut self, raw: &[u8], status: u16) {
        self.clear();
        self.bytes.extend_from_slice(raw);
        self.status = status;
    }

    /// Adds a field whose name and value lie in the `raw` bytes given to `adopt`.
    pub(crate) fn adopt_field(&mut self, raw: &[u8], name: &[u8], value: &[u8]) -> Known {
        let known = Known::of(name);
        let (name, value) = (within(raw, name), within(raw, value));
        self.fields.push(Entry { name, value, known, gone: false, settled: false });
        known
    }

    fn keep(&mut self, bytes: &[u8]) -> Span {
        let span = Span { start: narrow(self.bytes.len()), length: narrow(bytes.len()) };
        self.bytes.extend_from_slice(bytes);
        span
    }

    fn bytes_of(&self, span: Span) -> &[u8] {
        &self.bytes[span.range()]
    }

    fn text_of(&self, span: Span) -> &str {
        // Only checked ASCII gets into these spans; should that ever fail, nothing is better than something wrong.
        std::str::from_utf8(self.bytes_of(span)).unwrap_or_default()
    }

    fn find_path(&mut self) {
        let target = self.bytes_of(self.target);
        self.path = narrow(memchr::memchr(b'?', target).unwrap_or(target.len()));
    }

    /// The request's method.
    pub fn method(&self) -> &str {
        // It is asked for again and again: these need no check.
        match self.bytes_of(self.method) {
            b"GET" => "GET",
            b"POST" => "POST",
            _ => self.text_of(self.method),
        }
    }

    /// Replaces the method.
    pub fn set_method(&mut self, method: &str) {
        self.method = self.keep(method.as_bytes());
    }

    /// Path and query as received, or as rewritten. An origin-form target always starts with a slash.
    pub fn target(&self) -> &str {
        self.text_of(self.target)
    }

    /// Replaces path and query.
    pub fn set_target(&mut self, target: &str) {
        self.target = self.keep(target.as_bytes());
        self.find_path();
    }

    /// The path as received: nothing is decoded.
    pub fn path(&self) -> &str {
        &self.target()[..self.path as usize]
    }

    /// What follows the question mark.
    pub fn query(&self) -> Option<&str> {
        self.target().get(self.path as usize + 1..)
    }

    /// The host that the client named, port included when it gave one.
    pub fn authority(&self) -> &str {
        self.text_of(self.authority)
    }

    /// Replaces the host; the codec writes it as `Host` or `:authority`.
    pub fn set_authority(&mut self, authority: &str) {
        self.authority = self.keep(authority.as_bytes());
    }

    /// Sets a field to the authority; nothing is copied.
    pub(crate) fn set_authority_as(&mut self, known: Known, name: &str) {
        self.remove_known(known);
        let name = self.keep(name.as_bytes());
        let value = self.authority;
        self.fields.push(Entry { name, value, known, gone: false, settled: false });
    }

    /// Takes the authority from bytes of `raw`, see `adopt`.
    pub(crate) fn adopt_authority(&mut self, raw: &[u8], authority: &[u8]) {
        self.authority = within(raw, authority);
    }

    /// The response's status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Replaces the status.
    pub fn set_status(&mut self, status: u16) {
        self.status = status;
    }

    /// All fields in their order. `Host` is not among them: it is the authority.
    pub fn fields(&self) -> impl Iterator<Item = Field<'_>> {
        self.fields.iter().filter(|entry| !entry.gone).map(|entry| Field {
            name: self.text_of(entry.name),
            value: self.bytes_of(entry.value),
            known: entry.known,
        })
    }

    /// Is there a field of which `is` is true?
    pub(crate) fn has(&self, is: impl Fn(Known) -> bool) -> bool {
        self.fields.iter().any(|entry| !entry.gone && is(entry.known))
    }

    /// The lines of the fields that `keeps` lets through, as HTTP/1.1 has them (RFC 9112 section 5), in pieces. What stands in this
    /// form side by side, as most of what was received does, is one piece.
    pub(crate) fn lines(&self, keeps: impl Fn(Known) -> bool, mut write: impl FnMut(&[u8])) {
        let mut piece = 0..0;
        for entry in self.fields.iter().filter(|entry| !entry.gone && keeps(entry.known)) {
            let (name, value) = (entry.name.range(), entry.value.range());
            let line = name.start..value.end + 2;
            let is_line = self.bytes.get(name.end..value.start) == Some(b": ")
                && self.bytes.get(value.end..line.end) == Some(b"\r\n");
            if is_line && piece.end == line.start {
                piece.end = line.end;
                continue;
            }
            write(&self.bytes[std::mem::take(&mut piece)]);
            if is_line {
                piece = line;
            } else {
                for part in [&self.bytes[name], b": ", &self.bytes[value], b"\r\n"] {
                    write(part);
                }
            }
        }
        write(&self.bytes[piece]);
    }

    /// Every value of `name`, in their order.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.matching(name).map(|entry| self.bytes_of(entry.value))
    }

    fn matching<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Entry> {
        self.fields.iter().filter(move |entry| {
            !entry.gone
                && entry.name.length as usize == name.len()
                && self.bytes_of(entry.name).eq_ignore_ascii_case(name.as_bytes())
        })
    }

    /// The first value of `name`.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// The first value of `name`, when it is UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.value(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The first value of a known field.
    pub fn known(&self, known: Known) -> Option<&[u8]> {
        let entry = self.fields.iter().find(|entry| !entry.gone && entry.known == known)?;
        Some(self.bytes_of(entry.value))
    }

    /// Adds a field behind all others. Bytes that no field may have (CR, LF, NUL) end the value.
    pub fn append(&mut self, name: &str, value: &[u8]) {
        let known = Known::of(name.as_bytes());
        // With what stands around it in a line, so that it is written as one.
        let name = self.keep(name.as_bytes());
        self.bytes.extend_from_slice(b": ");
        let value = self.keep(lawful(value));
        self.bytes.extend_from_slice(b"\r\n");
        self.fields.push(Entry { name, value, known, gone: false, settled: false });
    }

    /// Sets `name` to this one value, in the place of its first occurrence.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        let mut place = None;
        for at in 0..self.fields.len() {
            let entry = &self.fields[at];
            if !entry.gone && self.bytes_of(entry.name).eq_ignore_ascii_case(name.as_bytes()) {
                match place {
                    None => place = Some(at),
                    Some(_) => self.fields[at].gone = true,
                }
            }
        }
        match place {
            Some(at) => self.replace(at, value),
            None => self.append(name, value),
        }
    }

    /// As [`Head::set`], for a field that `name` is known as: found without comparing names.
    pub fn set_known(&mut self, known: Known, name: &str, value: &[u8]) {
        let mut place = None;
        for (at, entry) in self.fields.iter_mut().enumerate() {
            if !entry.gone && entry.known == known {
                match place {
                    None => place = Some(at),
                    Some(_) => entry.gone = true,
                }
            }
        }
        match place {
            Some(at) => self.replace(at, value),
            None => self.append(name, value),
        }
    }

    fn replace(&mut self, at: usize, value: &[u8]) {
        if self.fields[at].settled {
            self.replaced.push((narrow(at), self.fields[at].value));
        }
        self.fields[at].value = self.keep(lawful(value));
    }

    /// Fields and query are what they are now for whoever asks later what the request said, whatever is changed from here on:
    /// see [`Head::each_settled`].
    pub fn settle(&mut self) {
        self.settled = Some((self.target, self.path));
        self.replaced.clear();
        for entry in &mut self.fields {
            entry.settled = !entry.gone;
        }
    }

    /// What followed the question mark when the head was settled; what follows it now when it was not.
    pub fn settled_query(&self) -> Option<&str> {
        let (target, path) = self.settled.unwrap_or((self.target, self.path));
        self.text_of(target).get(path as usize + 1..)
    }

    /// Shows every value of `name` as it was when the head was settled; as it is now when it was not. `Host` is the authority.
    pub fn each_settled(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        if name.eq_ignore_ascii_case("host") {
            return see(self.authority().as_bytes());
        }
        for (at, entry) in self.fields.iter().enumerate() {
            let is_there = if self.settled.is_some() { entry.settled } else { !entry.gone };
            if !is_there || !self.bytes_of(entry.name).eq_ignore_ascii_case(name.as_bytes()) {
                continue;
            }
            // The first replacement knows the value before all of them.
            let before = self.replaced.iter().find(|(place, _)| *place as usize == at);
            see(self.bytes_of(before.map_or(entry.value, |(_, value)| *value)));
        }
    }

    /// Removes every field of that name; tells whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        self.remove_where(|field| field.name.eq_ignore_ascii_case(name))
    }

    /// Removes every field that `gone` says so of; tells whether there was one.
    pub fn remove_where(&mut self, mut gone: impl FnMut(Field<'_>) -> bool) -> bool {
        let mut any = false;
        for at in 0..self.fields.len() {
            let entry = self.fields[at];
            if entry.gone {
                continue;
            }
            let field = Field {
                name: self.text_of(entry.name),
                value: self.bytes_of(entry.value),
                known: entry.known,
            };
            if gone(field) {
                self.fields[at].gone = true;
                any = true;
            }
        }
        any
    }

    /// Removes every occurrence of a known field.
    pub fn remove_known(&mut self, known: Known) {
        for entry in &mut self.fields {
            entry.gone |= entry.known == known;
        }
    }
}

impl crate::policy::Fields for Head {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        self.each_settled(name, see);
    }
}

/// The value up to the first byte that would end the field or the head.
fn lawful(value: &[u8]) -> &[u8] {
    let end = value.iter().position(|b| matches!(b, b'\r' | b'\n' | 0)).unwrap_or(value.len());
    &value[..end]
}

fn narrow(length: usize) -> u32 {
    // Heads are bounded far below this by the codecs; a plugin that adds 4 GiB of fields gets an empty one.
    u32::try_from(length).unwrap_or(0)
}

/// Where `part`, a slice of `raw`, lies in it.
fn within(raw: &[u8], part: &[u8]) -> Span {
    let start = (part.as_ptr() as usize).wrapping_sub(raw.as_ptr() as usize);
    if start > raw.len() || start + part.len() > raw.len() {
        return Span::default();
    }
    Span { start: narrow(start), length: narrow(part.len()) }
}

impl crate::observe::RequestHead for Head {
    fn first(&self, name: &str) -> Option<&[u8]> {
        self.value(name)
    }
}

impl fmt::Debug for Head {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("method", &self.method())
            .field("path", &self.path())
            .field("status", &self.status)
            .field("names", &self.fields().map(|field| field.name).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_keep_order_reach_every_value_and_never_split_a_head() {
        let raw = b"GET /x?y HTTP/1.1\r\nA: 1\r\nB: 2\r\na: 3\r\n\r\n";
        let mut head = Head::default();
        head.adopt(raw, &raw[0..3], &raw[4..8]);
        head.adopt_field(raw, &raw[19..20], &raw[22..23]);
        head.adopt_field(raw, &raw[25..26], &raw[28..29]);
        head.adopt_field(raw, &raw[31..32], &raw[34..35]);
        assert_eq!((head.method(), head.path(), head.query()), ("GET", "/x", Some("y")));
        assert_eq!(head.all("a").collect::<Vec<_>>(), [b"1", b"3"]);
        head.set("a", b"9\r\nevil: 1");
        head.append("C", b"4");
        assert!(head.remove("b"));
        assert!(!head.remove("b"));
        let fields: Vec<_> = head.fields().map(|f| (f.name, f.value)).collect();
        assert_eq!(fields, [("A", &b"9"[..]), ("C", b"4")]);
        head.set_target("/other");
        assert_eq!((head.path(), head.query()), ("/other", None));
    }

    /// What `lines` writes, and into how many pieces.
    fn lines(head: &Head, keeps: impl Fn(Known) -> bool) -> (String, usize) {
        let (mut all, mut pieces) = (Vec::new(), 0);
        head.lines(keeps, |piece| {
            pieces += usize::from(!piece.is_empty());
            all.extend_from_slice(piece);
        });
        (String::from_utf8(all).unwrap(), pieces)
    }

    #[test]
    fn lines_are_those_of_the_fields_and_what_stands_together_is_one_piece() {
        let raw =
            b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nB:2\r\nC:  3\r\nD: 4 \r\nE: 5\r\nF: 6\r\n\r\n";
        let mut head = Head::default();
        head.adopt(raw, &raw[..3], &raw[4..5]);
        let mut at = raw.iter().position(|b| *b == b'A').unwrap();
        for line in raw[at..raw.len() - 4].split(|b| *b == b'\n') {
            let colon = line.iter().position(|b| *b == b':').unwrap();
            let value = line[colon + 1..].trim_ascii();
            let begin = line.len() - line[colon + 1..].trim_ascii_start().len();
            let value = &raw[at + begin..at + begin + value.len()];
            head.adopt_field(raw, &raw[at..at + colon], value);
            at += line.len() + 1;
        }
        let plain = |head: &Head| {
            let line =
                |f: Field<'_>| format!("{}: {}\r\n", f.name, String::from_utf8_lossy(f.value));
            head.fields().map(line).collect::<String>()
        };
        assert_eq!(plain(&head), "A: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\nF: 6\r\n");
        // A; B, C and D each in four parts; E and F together.
        assert_eq!(lines(&head, |_| true), (plain(&head), 1 + 3 * 4 + 1));

        for edit in 0..6_u8 {
            match edit {
                0 => head.append("Content-Length", b"7"),
                1 => head.append("X-End", b"8\r\nevil: 1"),
                2 => head.set("E", b"other"),
                3 => assert!(head.remove("a")),
                4 => head.append("", b""),
                _ => head.set("f", b""),
            }
            assert_eq!(lines(&head, |_| true).0, plain(&head), "{edit}");
        }
        let without = plain(&head).replace("Content-Length: 7\r\n", "");
        assert_eq!(lines(&head, |known| known != Known::ContentLength).0, without);
        let mut own = Head::response(200);
        own.append("A", b"1");
        own.append("B", b"2");
        assert_eq!(lines(&own, |_| true), ("A: 1\r\nB: 2\r\n".to_owned(), 1));
        assert_eq!(lines(&Head::response(200), |_| true), (String::new(), 0));
    }

    #[test]
    fn what_a_request_said_can_be_asked_when_plugins_have_changed_it() {
        let said = |head: &Head, name: &str| {
            let mut all = Vec::new();
            head.each_settled(name, &mut |value| {
                all.push(String::from_utf8_lossy(value).into_owned());
            });
            all.join(" ")
        };
        let mut head = Head::request("GET", "/", "shop:80");
        for (name, value) in [("A", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
            head.append(name, value.as_bytes());
        }
        head.remove("c");
        assert_eq!((said(&head, "A"), said(&head, "host")), ("1 3".into(), "shop:80".into()));
        head.settle();
        head.set("a", b"5");
        head.set("a", b"6");
        head.remove("b");
        head.append("d", b"7");
        head.append("c", b"8");
        let all = ["a", "b", "c", "d"].map(|name| said(&head, name));
        assert_eq!(all, ["1 3", "2", "", ""]);
        assert_eq!(head.text("a"), Some("6"));
        head.clear();
        head.append("a", b"9");
        assert_eq!(said(&head, "a"), "9");
    }

    #[test]
    fn known_fields_are_told_apart_without_case() {
        assert_eq!(Known::of(b"Transfer-ENCODING"), Known::TransferEncoding);
        assert_eq!(Known::of(b"X-Forwarded-Client-Cert"), Known::ForwardedClientCert);
        assert_eq!(Known::of(b"x-forwarded-client-cart"), Known::OriginClaim);
        for (name, known) in [
            ("X-Forwarded-For", Known::ForwardedFor),
            ("X_Forwarded_For", Known::ForwardedAlias),
            ("x-forwarded_for", Known::ForwardedAlias),
            ("X_FORWARDED-PROTO", Known::ForwardedAlias),
            ("x_real_ip", Known::ForwardedAlias),
            ("X-Real_IP", Known::ForwardedAlias),
            ("X-Forwarded-Ssl", Known::OriginClaim),
            ("X_Forwarded_Ssl", Known::OriginClaim),
            ("X-Forwarded", Known::OriginClaim),
            ("True-Client-IP", Known::OriginClaim),
            ("CF_Connecting-IP", Known::OriginClaim),
            ("Client-IP", Known::OriginClaim),
            ("Client-Cert", Known::IdentityClaim),
            ("X-HTTP-Method-Override", Known::MethodOverride),
            ("x_http_method", Known::MethodOverride),
            ("X-Method_Override", Known::MethodOverride),
            ("X-Real-IPs", Known::Other),
            ("X-Request-Id", Known::Other),
        ] {
            assert_eq!(Known::of(name.as_bytes()), known, "{name}");
        }
        assert!(Known::of(b"upgrade").is_hop_by_hop());
    }
}
