//! Reading a request's head as the `h2` crate gives it.

use h2::ext::Protocol;
use http::Method;

use crate::pipeline::{Head, Known};
use crate::proxy::http::h1;

/// Reads a request's head into `head`. `Err` says why it is malformed (RFC 9113 section 8.1.1): its stream is reset.
///
/// An extended CONNECT (RFC 8441) is the GET that it stands for in HTTP/1.1; a plain one has the path that every place has.
pub(super) fn read_request(
    parts: &http::request::Parts,
    head: &mut Head,
) -> Result<(), &'static str> {
    let uri = &parts.uri;
    head.clear();
    let is_connect = parts.method == Method::CONNECT;
    let is_extended = is_connect && parts.extensions.get::<Protocol>().is_some();
    if is_connect && parts.headers.contains_key(http::header::CONTENT_LENGTH) {
        return Err("CONNECT with a body");
    }
    let target = match is_connect && !is_extended {
        true if uri.port().is_none() => return Err("CONNECT needs a host and a port"),
        true => "/",
        false => uri.path_and_query().map_or("", |target| target.as_str()),
    };
    let is_asterisk = target == "*" && parts.method == Method::OPTIONS;
    if !target.starts_with('/') && !is_asterisk {
        return Err(":path does not start with a slash");
    }
    if (is_extended || !is_connect) && !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(":scheme is neither http nor https");
    }
    h1::check_target(target.as_bytes()).map_err(|refused| refused.sentence)?;
    head.set_method(if is_extended { "GET" } else { parts.method.as_str() });
    head.set_target(target);
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err("more than one host");
    }
    let authority = match (uri.authority(), host) {
        (None, None) => return Err("neither :authority nor host"),
        (Some(authority), Some(host))
            if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) =>
        {
            return Err(":authority and host differ");
        }
        (Some(authority), _) => authority.as_str().as_bytes(),
        (None, Some(host)) => host.as_bytes(),
    };
    h1::check_host(authority).map_err(|refused| refused.sentence)?;
    if parts.headers.get_all(http::header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err("more than one content-length");
    }
    head.set_authority(std::str::from_utf8(authority).map_err(|_| "the host is not a host")?);
    let mut crumbs = parts.headers.get_all(http::header::COOKIE).iter();
    let mut cookie = crumbs.next().map(|first| first.as_bytes().to_vec());
    for crumb in crumbs {
        let cookie = cookie.get_or_insert_default();
        cookie.extend_from_slice(b"; ");
        cookie.extend_from_slice(crumb.as_bytes());
    }
    for (name, value) in &parts.headers {
        let known = Known::of(name.as_str().as_bytes());
        match known {
            Known::Host => continue,
            // RFC 9113 section 8.2.3: what was split for compression is one field for everybody behind.
            Known::Other if name == http::header::COOKIE => {
                if let Some(whole) = cookie.take() {
                    head.append("cookie", &whole);
                }
                continue;
            }
            Known::Te if value.as_bytes().eq_ignore_ascii_case(b"trailers") => {}
            known if known.is_hop_by_hop() => return Err("a field that belongs to HTTP/1.1"),
            _ => {}
        }
        head.append(name.as_str(), value.as_bytes());
    }
    Ok(())
}
