//! Reading a request's head (RFC 9113 section 8.3).

use super::super::h1::{self, HeadLimits, LONG_FIELD, LONG_TARGET, MANY_FIELDS, Refused};
use crate::pipeline::{Head, Known};
use crate::rt::http2::Fields;

/// What a request's head says besides what every version says.
pub(super) struct Asked {
    /// CONNECT, and its `:protocol`.
    pub(super) connect: Option<Option<String>>,
}

#[derive(Default)]
struct Pseudo<'a> {
    method: Option<&'a [u8]>,
    scheme: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    protocol: Option<&'a [u8]>,
}

impl<'a> Pseudo<'a> {
    fn of(fields: &'a Fields) -> Result<Self, &'static str> {
        let mut found = Self::default();
        for (name, value) in fields.iter().take_while(|(name, _)| name.starts_with(b":")) {
            let place = match name {
                b":method" => &mut found.method,
                b":scheme" => &mut found.scheme,
                b":authority" => &mut found.authority,
                b":path" => &mut found.path,
                b":protocol" => &mut found.protocol,
                _ => return Err("a pseudo-header field that requests do not have"),
            };
            if place.replace(value).is_some() {
                return Err("a pseudo-header field twice");
            }
        }
        Ok(found)
    }
}

/// Reads a request's head into `head`. `Err` says why it is malformed (RFC 9113 section 8.1.1): its stream is reset.
///
/// An extended CONNECT (RFC 8441) is the GET that it stands for in HTTP/1.1; a plain one has the path that every place has.
pub(super) fn read_request(fields: &Fields, head: &mut Head) -> Result<Asked, &'static str> {
    let pseudo = Pseudo::of(fields)?;
    let method = pseudo.method.ok_or("no :method")?;
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err("the method is no token");
    }
    let is_connect = method == b"CONNECT";
    let is_extended = is_connect && pseudo.protocol.is_some();
    let is_tunnel = is_connect && !is_extended;
    if pseudo.protocol.is_some() && !is_connect {
        return Err(":protocol without CONNECT");
    }
    if is_connect && fields.get(b"content-length").is_some() {
        return Err("CONNECT with a body");
    }
    let target = match (is_tunnel, pseudo.scheme, pseudo.path) {
        (true, None, None) => &b"/"[..],
        (true, _, _) => return Err("CONNECT with a scheme or a path"),
        (false, Some(b"http" | b"https"), Some(path)) => {
            // What a client keeps to itself is read by nobody.
            &path[..memchr::memchr(b'#', path).unwrap_or(path.len())]
        }
        (false, Some(_), Some(_)) => return Err(":scheme is neither http nor https"),
        (false, _, _) => return Err("no :scheme or no :path"),
    };
    let is_asterisk = target == b"*" && method == b"OPTIONS";
    if target.first() != Some(&b'/') && !is_asterisk {
        return Err(":path does not start with a slash");
    }
    h1::check_target(target).map_err(|refused| refused.sentence)?;
    let raw = fields.raw();
    head.adopt(raw, method, target);
    if is_extended {
        head.set_method("GET");
    }
    if is_tunnel {
        head.set_target("/");
    }
    let (mut host, mut lengths, mut cookies) = (None, 0, 0);
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(b":")) {
        match Known::of(name) {
            Known::Host if host.replace(value).is_some() => return Err("more than one host"),
            Known::Host => continue,
            Known::ContentLength => lengths += 1,
            // RFC 9113 section 8.2.3: what was split for compression is one field for everybody behind.
            Known::Other if name == b"cookie" => {
                cookies += 1;
                if cookies > 1 {
                    continue;
                }
            }
            Known::Te if value.eq_ignore_ascii_case(b"trailers") => {}
            known if known.is_hop_by_hop() => return Err("a field that belongs to HTTP/1.1"),
            _ => {}
        }
        head.adopt_field(raw, name, value);
    }
    if lengths > 1 {
        return Err("more than one content-length");
    }
    if cookies > 1 {
        let crumbs: Vec<&[u8]> =
            fields.iter().filter(|(name, _)| *name == b"cookie").map(|(_, value)| value).collect();
        head.set("cookie", &crumbs.join(&b"; "[..]));
    }
    let authority = match (pseudo.authority, host) {
        (None, None) => return Err("neither :authority nor host"),
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(":authority and host differ");
        }
        (Some(authority), _) => authority,
        (None, Some(host)) => host,
    };
    h1::check_host(authority).map_err(|refused| refused.sentence)?;
    if is_tunnel && !has_port(authority) {
        return Err("CONNECT needs a host and a port");
    }
    head.adopt_authority(raw, authority);
    let protocol = pseudo.protocol.map(|protocol| String::from_utf8_lossy(protocol).into_owned());
    Ok(Asked { connect: is_connect.then_some(protocol) })
}

fn has_port(authority: &[u8]) -> bool {
    let port = memchr::memrchr(b':', authority).map(|colon| &authority[colon + 1..]);
    port.is_some_and(|port| !port.is_empty() && port.iter().all(u8::is_ascii_digit))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

/// What of the head is larger than allowed. The connection bounds it as a whole.
pub(super) fn too_large(fields: &Fields, limits: &HeadLimits) -> Option<Refused> {
    if fields.get(b":path").is_some_and(|path| path.len() > limits.target) {
        return Some(LONG_TARGET);
    }
    if fields.iter().filter(|(name, _)| !name.starts_with(b":")).count() > limits.fields {
        return Some(MANY_FIELDS);
    }
    // No field is longer than all of the head.
    let is_long = limits.field < limits.bytes
        && fields.iter().any(|(name, value)| name.len() + value.len() > limits.field);
    is_long.then_some(LONG_FIELD)
}
