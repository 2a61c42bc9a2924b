//! Paths and queries as routing, variables and plugins read them. Nothing here changes what is forwarded.

use std::borrow::Cow;

/// The path as nginx' `$uri` has it, which is what routes match: `%xx` decoded once, slashes merged, dot segments removed.
///
/// `None` for what nginx answers with 400: a broken `%xx`, a NUL, a `..` above the root. A target that is no path (`*`) stays
/// as it is. Allocates only when there is something to change.
/// ```
/// # use wardgate::pipeline::normal_path;
/// assert_eq!(normal_path("/a//b/%2e%2e/c").as_deref(), Some(&b"/a/c"[..]));
/// assert_eq!(normal_path("/../a"), None);
/// ```
pub fn normal_path(raw: &str) -> Option<Cow<'_, [u8]>> {
    let bytes = raw.as_bytes();
    if bytes.first() != Some(&b'/') || is_normal(bytes) {
        return Some(Cow::Borrowed(bytes));
    }
    let decoded = decode_strictly(bytes)?;
    let mut normal: Vec<u8> = Vec::with_capacity(decoded.len());
    let mut segments = decoded.split(|b| *b == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b".." => {
                let cut = normal.iter().rposition(|b| *b == b'/')?;
                normal.truncate(cut);
            }
            b"" | b"." => {}
            segment => {
                normal.push(b'/');
                normal.extend_from_slice(segment);
                continue;
            }
        }
        if last {
            normal.push(b'/');
        }
    }
    Some(Cow::Owned(normal))
}

/// How a process reads paths before it matches them; APISIX's global options. None changes what is forwarded.
///
/// Whatever comes out is one of the readings that policy judges, but for a slash at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathRules {
    /// A slash at the end does not count.
    pub delete_tail_slash: bool,
    /// `;` and what follows it in a segment does not count, as in servlets.
    pub like_servlet: bool,
    /// `%2F` is part of its segment and does not end it.
    pub keep_encoded_slash: bool,
}

impl PathRules {
    /// The path as `$uri` has it: [`normal_path`], and what the options make of that.
    ///
    /// `None` for what is answered with 400: what `normal_path` refuses, and parameters that hide dots or an empty segment.
    /// ```
    /// # use wardgate::pipeline::PathRules;
    /// let rules = PathRules { like_servlet: true, delete_tail_slash: true, ..PathRules::default() };
    /// assert_eq!(rules.uri("/a;v=1/b/").as_deref(), Some(&b"/a/b"[..]));
    /// assert_eq!(rules.uri("/a/..;/b"), None);
    /// ```
    pub fn uri(self, raw: &str) -> Option<Cow<'_, [u8]>> {
        let mut path = normal_path(raw)?;
        if self.like_servlet && memchr::memchr(b';', &path).is_some() {
            path = Cow::Owned(without_parameters(&path)?);
        }
        // The root is its slash.
        if self.delete_tail_slash && path.len() > 1 && path.ends_with(b"/") {
            match &mut path {
                Cow::Borrowed(path) => *path = &path[..path.len() - 1],
                Cow::Owned(path) => drop(path.pop()),
            }
        }
        Some(path)
    }

    /// The path that routes match. It differs from [`PathRules::uri`] only where an encoded slash is kept.
    pub fn matched(self, raw: &str) -> Option<Cow<'_, [u8]>> {
        let uri = self.uri(raw)?;
        if self.keep_encoded_slash
            && let Cow::Owned(normal) = &uri
            && let Some(kept) = with_encoded_slashes(raw, normal)
        {
            return Some(Cow::Owned(kept));
        }
        Some(uri)
    }
}

/// Segments without their parameters. `None` where that would make dots or an empty segment of them.
fn without_parameters(path: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(path.len());
    let mut segments = path.split(|b| *b == b'/').peekable();
    while let Some(segment) = segments.next() {
        let (name, has_parameters) = match memchr::memchr(b';', segment) {
            Some(at) => (&segment[..at], true),
            None => (segment, false),
        };
        let hides = matches!(name, b"." | b"..")
            || (name.is_empty() && segments.peek().is_some())
            || [&b"%2e"[..], b"%2e%2e"].iter().any(|dots| name.eq_ignore_ascii_case(dots));
        if has_parameters && hides {
            return None;
        }
        plain.extend_from_slice(name);
        if segments.peek().is_some() {
            plain.push(b'/');
        }
    }
    Some(plain)
}

/// `raw` decoded but for its encoded slashes, where decoding is all that leads from it to `normal`. With any other encoded byte
/// that has a meaning in paths, nothing is kept: programs behind us read such a mixture differently.
fn with_encoded_slashes(raw: &str, normal: &[u8]) -> Option<Vec<u8>> {
    let bytes = raw.as_bytes();
    if decode_strictly(bytes)? != normal {
        return None;
    }
    let mut kept = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'%' {
            kept.push(bytes[at]);
            at += 1;
            continue;
        }
        match hex_pair(bytes.get(at + 1..at + 3)?)? {
            b'/' => kept.extend_from_slice(b"%2F"),
            b'\\' | b'.' | b';' | b'%' | b'?' | b'#' | 0..=0x1f | 0x7f => return None,
            byte => kept.push(byte),
        }
        at += 3;
    }
    Some(kept)
}

fn is_normal(path: &[u8]) -> bool {
    let mut at = 0;
    while let Some(found) = memchr::memchr2(b'/', b'%', &path[at..]) {
        at += found;
        if path[at] == b'%' {
            return false;
        }
        match &path[at + 1..] {
            [b'/', ..] | [b'.'] | [b'.', b'/' | b'%', ..] => return false,
            [b'.', b'.'] | [b'.', b'.', b'/' | b'%', ..] => return false,
            _ => at += 1,
        }
    }
    true
}

fn decode_strictly(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = if bytes[at] == b'%' {
            let byte = hex_pair(bytes.get(at + 1..at + 3)?)?;
            at += 2;
            byte
        } else {
            bytes[at]
        };
        if byte == 0 {
            return None;
        }
        decoded.push(byte);
        at += 1;
    }
    Some(decoded)
}

fn hex_pair(pair: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(pair[0])? << 4 | digit(pair[1])?)
}

/// The host without its port and without a last dot, in lower case. An IPv6 address keeps its brackets.
/// ```
/// # use wardgate::pipeline::host_of;
/// assert_eq!(host_of("Shop.Example.:8080"), "shop.example");
/// assert_eq!(host_of("[::1]:80"), "[::1]");
/// ```
pub fn host_of(authority: &str) -> Cow<'_, str> {
    let end = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']').map_or(authority.len(), |at| at + 2),
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let host = &authority[..end];
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// The arguments of a query, decoded (`%xx`, and `+` as space), in their order. One without `=` has an empty value.
pub fn arguments(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    pieces(query).map(|(_, name, value)| (decode(name), decode(value)))
}

/// Every value of one argument.
pub fn argument<'a>(query: &'a str, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    pieces(query).filter(move |(_, found, _)| decode(found) == name).map(|(_, _, v)| decode(v))
}

/// The query without an argument; the others keep their bytes.
pub fn without_argument(query: &str, name: &str) -> String {
    let mut rest = String::with_capacity(query.len());
    for (piece, found, _) in pieces(query) {
        if decode(found) != name {
            if !rest.is_empty() {
                rest.push('&');
            }
            rest.push_str(piece);
        }
    }
    rest
}

fn pieces(query: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    query.split('&').filter(|piece| !piece.is_empty()).map(|piece| {
        let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
        (piece, name, value)
    })
}

fn decode(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let spaced = text.replace('+', " ");
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(&spaced).collect();
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a path must not have as it is: nginx' escape set for URIs, and what browsers read as something else.
const UNSAFE_IN_PATH: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A decoded path as it goes on the wire.
pub fn encode_path(path: &[u8]) -> String {
    percent_encoding::percent_encode(path, UNSAFE_IN_PATH).to_string()
}

/// What would end or bend a target or a `Location`; encodings that are there already stay.
const UNSAFE_ANYWHERE: &percent_encoding::AsciiSet =
    &percent_encoding::CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\');

/// A target or URL that is encoded already, with what must never be in one made harmless.
pub fn encode_unsafe(url: &str) -> String {
    percent_encoding::utf8_percent_encode(url, UNSAFE_ANYWHERE).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_nginx_reads_them() {
        for (raw, normal) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/.well-known/x", Some("/.well-known/x")),
            ("/...", Some("/...")),
            ("//", Some("/")),
            ("/a//b///c", Some("/a/b/c")),
            ("/a/./b", Some("/a/b")),
            ("/a/.", Some("/a/")),
            ("/a/..", Some("/")),
            ("/a/../", Some("/")),
            ("/a/b/../c", Some("/a/c")),
            ("/a/b/..", Some("/a/")),
            ("/..", None),
            ("/a/../..", None),
            ("/%61", Some("/a")),
            ("/a%2fb", Some("/a/b")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a/.%2e/b", Some("/b")),
            ("/a/%2e./b", Some("/b")),
            ("/a%2F%2Fb", Some("/a/b")),
            ("/%2561", Some("/%61")),
            ("/%00", None),
            ("/%", None),
            ("/%4", None),
            ("/%zz", None),
            ("*", Some("*")),
            ("", Some("")),
        ] {
            let found = normal_path(raw).map(|path| String::from_utf8(path.into_owned()).unwrap());
            assert_eq!(found.as_deref(), normal, "{raw}");
        }
        assert!(matches!(normal_path("/plain/.well-known/..x"), Some(Cow::Borrowed(_))));
    }

    #[test]
    fn the_options_change_what_is_matched_and_what_the_uri_is() {
        let none = PathRules::default();
        let tail = PathRules { delete_tail_slash: true, ..none };
        let servlet = PathRules { like_servlet: true, ..none };
        let slash = PathRules { keep_encoded_slash: true, ..none };
        let all =
            PathRules { delete_tail_slash: true, like_servlet: true, keep_encoded_slash: true };
        for (rules, raw, matched, uri) in [
            (none, "/a;b/", Some("/a;b/"), Some("/a;b/")),
            (tail, "/a/", Some("/a"), Some("/a")),
            (tail, "/a//", Some("/a"), Some("/a")),
            (tail, "/a%2f", Some("/a"), Some("/a")),
            (tail, "/", Some("/"), Some("/")),
            (tail, "/a/b", Some("/a/b"), Some("/a/b")),
            (servlet, "/a;x=1/b;y", Some("/a/b"), Some("/a/b")),
            (servlet, "/a%3Bx/b", Some("/a/b"), Some("/a/b")),
            (servlet, "/a/;x", Some("/a/"), Some("/a/")),
            (servlet, "/a;/", Some("/a/"), Some("/a/")),
            (servlet, "/;x/b", None, None),
            (servlet, "/a/..;/b", None, None),
            (servlet, "/a/.;x/b", None, None),
            (servlet, "/a/%252E;/b", None, None),
            (servlet, "/a/../b;x", Some("/b"), Some("/b")),
            (slash, "/a%2Fb", Some("/a%2Fb"), Some("/a/b")),
            (slash, "/a%2fb%20c", Some("/a%2Fb c"), Some("/a/b c")),
            // What needs more than decoding is read as always.
            (slash, "/a%2F..%2Fb", Some("/b"), Some("/b")),
            (slash, "/x%2Fy/%2e%2e/b", Some("/x/b"), Some("/x/b")),
            (slash, "/a%2F/b", Some("/a/b"), Some("/a/b")),
            (slash, "/a%2Fb%2Ec", Some("/a/b.c"), Some("/a/b.c")),
            (slash, "/a%252Fb", Some("/a%2Fb"), Some("/a%2Fb")),
            (slash, "/a%2", None, None),
            (slash, "/plain", Some("/plain"), Some("/plain")),
            (all, "/a%2Fb", Some("/a%2Fb"), Some("/a/b")),
            (all, "/a%2Fb/", Some("/a/b"), Some("/a/b")),
            (all, "/a%2Fb;x", Some("/a/b"), Some("/a/b")),
            (all, "*", Some("*"), Some("*")),
        ] {
            let text = |path: Option<Cow<'_, [u8]>>| {
                path.map(|path| String::from_utf8(path.into_owned()).unwrap())
            };
            let read = (text(rules.matched(raw)), text(rules.uri(raw)));
            let expected = (matched.map(str::to_owned), uri.map(str::to_owned));
            assert_eq!(read, expected, "{rules:?} {raw}");
        }
    }

    #[test]
    fn a_query_gives_decoded_arguments_and_loses_one_without_touching_the_rest() {
        let query = "a=1&b=x%20y+z&a=2&c&&d=%zz";
        assert_eq!(argument(query, "a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(argument(query, "b").next().unwrap(), "x y z");
        assert_eq!(argument(query, "c").next().unwrap(), "");
        assert_eq!(argument(query, "d").next().unwrap(), "%zz");
        assert_eq!(argument(query, "e").next(), None);
        assert_eq!(arguments("%61=1").next().unwrap().0, "a");
        assert_eq!(without_argument("%61=1&b=%20&a=2&c", "a"), "b=%20&c");
    }
}
