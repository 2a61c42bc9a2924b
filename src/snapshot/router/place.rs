//! `Place`: hosts and paths as routes write them, read once.

use std::sync::Arc;

use smallvec::SmallVec;

use super::RouterKind;
use crate::model::Invalid;

/// Where one value stands in a router: every host with every path.
#[derive(Clone, Debug)]
pub struct Place {
    pub(super) hosts: Box<[Host]>,
    pub(super) paths: Box<[Path]>,
    pub(super) priority: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// In lower case.
    Exact(Box<str>),
    /// What the host must end with.
    Suffix(Box<str>),
}

#[derive(Clone, Debug)]
pub(super) struct Path {
    /// Up to the first parameter or star.
    pub(super) literal: Box<[u8]>,
    pub(super) rest: Rest,
    /// The length of the path as it is written.
    pub(super) written: u16,
}

#[derive(Clone, Debug)]
pub(super) enum Rest {
    /// The path ends here.
    Nothing,
    /// Anything may follow.
    Anything,
    /// These parts follow.
    Parts(Arc<[Part]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Literal(Box<[u8]>),
    /// One segment, not empty, under this name.
    Segment(Box<str>),
    /// Any number of bytes, slashes among them, under this name.
    Tail(Box<str>),
}

impl Place {
    /// Reads hosts and paths as routes write them. No host means every host.
    ///
    /// # Errors
    /// A host or path that cannot be meant.
    pub fn parse<'a>(
        kind: RouterKind,
        hosts: impl IntoIterator<Item = &'a str>,
        paths: impl IntoIterator<Item = &'a str>,
        priority: i64,
    ) -> Result<Self, Invalid> {
        let hosts = hosts.into_iter().map(parse_host).collect::<Result<_, _>>()?;
        let paths: Box<[Path]> =
            paths.into_iter().map(|path| parse_path(kind, path)).collect::<Result<_, _>>()?;
        if paths.is_empty() {
            return Err(Invalid::new("uri: a route needs a path"));
        }
        Ok(Self { hosts, paths, priority })
    }

    /// The same of those hosts and paths alone that can be meant; for taking out, where priority does not count.
    pub(in crate::snapshot) fn readable(
        kind: RouterKind,
        hosts: &[String],
        paths: &[String],
    ) -> Self {
        let hosts = hosts.iter().filter_map(|host| parse_host(host).ok()).collect();
        let paths = paths.iter().filter_map(|path| parse_path(kind, path).ok()).collect();
        Self { hosts, paths, priority: 0 }
    }
}

fn parse_host(text: &str) -> Result<Host, Invalid> {
    let refuse = |why: &str| Err(Invalid::new(format!("host '{text}': {why}")));
    let lower = text.to_ascii_lowercase();
    let (host, wildcard) = match lower.strip_prefix('*') {
        Some(rest) => (rest, true),
        None => (&*lower, false),
    };
    // Requests' hosts are compared without it.
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() && (!wildcard || lower.len() > 1) {
        return refuse("is empty");
    }
    if host.contains('*') {
        return refuse("a star stands at the start");
    }
    let is_address = !wildcard && host.starts_with('[') && host.ends_with(']');
    if is_address {
        return match host[1..host.len() - 1].parse::<std::net::Ipv6Addr>() {
            Ok(_) => Ok(Host::Exact(host.into())),
            Err(_) => refuse("is no IPv6 address in brackets"),
        };
    }
    if host.contains([':', '[', ']']) {
        return refuse(
            "has a port or a bare IPv6 address; a host is compared without its port, and an IPv6 address stands in brackets",
        );
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !host.bytes().all(fits) {
        return refuse("may have only letters, digits and - _ . [ ] :");
    }
    Ok(if wildcard { Host::Suffix(host.into()) } else { Host::Exact(host.into()) })
}

fn parse_path(kind: RouterKind, text: &str) -> Result<Path, Invalid> {
    let refuse = |why: &str| Err(Invalid::new(format!("uri '{text}': {why}")));
    if text.is_empty() {
        return refuse("is empty");
    }
    let written = u16::try_from(text.len()).unwrap_or(u16::MAX);
    let has_parameters = kind == RouterKind::UriWithParameter;
    // A parameter is a whole segment; a star at the very end needs no slash before it.
    let mut start = text.len();
    for (at, segment) in segments(text) {
        if has_parameters && segment.starts_with(':') {
            start = at;
            break;
        }
        if let Some(star) = segment.find('*') {
            if at + star + 1 == text.len() {
                let literal = text.as_bytes()[..text.len() - 1].into();
                return Ok(Path { literal, rest: Rest::Anything, written });
            }
            if star > 0 {
                return refuse("a star stands at the end, or at the start of a segment");
            }
            start = at;
            break;
        }
    }
    let literal: Box<[u8]> = text.as_bytes()[..start].into();
    if start == text.len() {
        return Ok(Path { literal, rest: Rest::Nothing, written });
    }
    let mut parts = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    let tail = &text[start..];
    for (at, segment) in segments(tail) {
        let part = match segment.as_bytes().first() {
            Some(b':') if has_parameters => Part::Segment(segment[1..].into()),
            Some(b'*') if segment.len() == 1 => Part::Tail(":ext".into()),
            Some(b'*') => Part::Tail(segment[1..].into()),
            _ if segment.contains('*') => {
                return refuse("a star stands at the end, or at the start of a segment");
            }
            _ => {
                let separated = if at == 0 { segment } else { &tail[at - 1..at + segment.len()] };
                push_literal(&mut parts, separated);
                continue;
            }
        };
        if at > 0 {
            push_literal(&mut parts, "/");
        }
        match &part {
            Part::Segment(name) if name.is_empty() => return refuse("a parameter has no name"),
            Part::Segment(name) | Part::Tail(name)
                if name.contains(['*', ':']) && &**name != ":ext" =>
            {
                return refuse("a parameter's name has no star and no colon");
            }
            Part::Segment(_) | Part::Tail(_) | Part::Literal(_) => {}
        }
        let name = if segment.len() == 1 { ":ext" } else { &segment[1..] };
        if names.contains(&name) {
            return refuse("two parameters have one name");
        }
        names.push(name);
        parts.push(part);
    }
    // One star in the middle is searched for in linear time; more would multiply.
    let last = parts.len() - 1;
    let open = parts[..last].iter().filter(|part| matches!(part, Part::Tail(_))).count();
    if open > 1 {
        return refuse("has more than one star before its end");
    }
    Ok(Path { literal, rest: Rest::Parts(parts.into()), written })
}

/// Segments with the place where each starts.
fn segments(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split('/').map(move |segment| {
        let start = at;
        at += segment.len() + 1;
        (start, segment)
    })
}

fn push_literal(parts: &mut Vec<Part>, text: &str) {
    if let Some(Part::Literal(before)) = parts.last_mut() {
        let mut joined = before.to_vec();
        joined.extend_from_slice(text.as_bytes());
        *before = joined.into();
    } else {
        parts.push(Part::Literal(text.as_bytes().into()));
    }
}

/// The bytes that parameters stand for, in their order.
pub(super) type Caught<'p> = SmallVec<[&'p [u8]; 8]>;

/// Does `path` follow the parts? Tells `caught` each parameter's bytes.
pub(super) fn follow<'p>(parts: &[Part], path: &'p [u8], caught: &mut Caught<'p>) -> bool {
    let Some((part, rest)) = parts.split_first() else { return path.is_empty() };
    let depth = caught.len();
    match part {
        Part::Literal(text) => {
            path.strip_prefix(&**text).is_some_and(|path| follow(rest, path, caught))
        }
        Part::Segment(_) => {
            let end = memchr::memchr(b'/', path).unwrap_or(path.len());
            if end == 0 {
                return false;
            }
            caught.push(&path[..end]);
            let fits = follow(rest, &path[end..], caught);
            if !fits {
                caught.truncate(depth);
            }
            fits
        }
        Part::Tail(_) if rest.is_empty() => {
            caught.push(path);
            true
        }
        Part::Tail(_) => {
            // As much as possible; what follows a star begins with a slash.
            for end in memchr::memrchr_iter(b'/', path) {
                caught.push(&path[..end]);
                if follow(rest, &path[end..], caught) {
                    return true;
                }
                caught.truncate(depth);
            }
            false
        }
    }
}
