//! One fetch over HTTP or HTTPS: bounded in time, bytes, redirects, and in where it may go (83 to 85, 88).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Error;
use crate::identity::{SpiffeId, Trust, fetchable};
use crate::mtls;
use crate::rt::{Conversation, Unread, whole};

/// What a fetch may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the body (88).
    pub max_bytes: usize,
    /// From the first look-up to the last byte, all redirects included (88).
    pub within: Duration,
    /// Redirects (85).
    pub redirects: usize,
}

impl Limits {
    /// Of a bundle.
    pub const BUNDLE: Self =
        Self { max_bytes: 1 << 20, within: Duration::from_secs(20), redirects: 3 };
    /// Of a revocation list.
    pub const LIST: Self =
        Self { max_bytes: 8 << 20, within: Duration::from_secs(60), redirects: 3 };
}

/// How the server is known; the same for the first address and for each redirect (83).
#[derive(Clone, Copy, Debug)]
pub(super) enum Server<'a> {
    /// By its public name.
    Web { authorities: Option<&'a [CertificateDer<'static>]> },
    /// By its SPIFFE ID.
    Spiffe { trust: &'a Trust, id: &'a SpiffeId },
}

/// What is fetched, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'a> {
    pub(super) url: &'a Uri,
    pub(super) server: Server<'a>,
    /// `https` alone, or `http` as well.
    pub(super) schemes: &'static [&'static str],
    pub(super) accept: &'static str,
    pub(super) allow_redirects: bool,
    pub(super) allow_private: bool,
    pub(super) limits: Limits,
}

/// Fetches. Nothing of a redirect is remembered: the next fetch begins at the URL that was declared (84).
pub(super) async fn fetch(order: &Order<'_>) -> Result<Bytes, Error> {
    let within = order.limits.within;
    match tokio::time::timeout(within, follow(order)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::TooLate { seconds: within.as_secs() }),
    }
}

async fn follow(order: &Order<'_>) -> Result<Bytes, Error> {
    let mut url = order.url.clone();
    for redirects in 0.. {
        let target = match ask(order, &url).await? {
            Answer::Body(body) => return Ok(body),
            Answer::Elsewhere(target) => target,
        };
        let refuse = |why: &str| Error::Redirect { target: target.clone(), why: why.into() };
        if !order.allow_redirects {
            return Err(refuse("allow_redirects is off"));
        }
        if redirects >= order.limits.redirects {
            return Err(refuse("there were too many already"));
        }
        let next = resolved(&url, &target).map_err(|why| refuse(&why))?;
        // A plain target would take away what the first request was protected by.
        let schemes = if url.scheme_str() == Some("https") { &["https"] } else { order.schemes };
        url = fetchable(&next, schemes).map_err(|why| refuse(&why))?;
    }
    unreachable!("the loop ends by itself")
}

enum Answer {
    Body(Bytes),
    Elsewhere(String),
}

async fn ask(order: &Order<'_>, url: &Uri) -> Result<Answer, Error> {
    let host = url.host().unwrap_or_default().to_owned();
    let is_tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let tcp = connect(&host, port, order.allow_private).await?;
    let failed = |source| Error::Handshake { host: host.clone(), source };
    match (is_tls, order.server) {
        (false, _) => exchange(order, url, &host, tcp).await,
        (true, Server::Web { authorities }) => {
            let tls = mtls::connect_web(tcp, &host, authorities).await.map_err(failed)?;
            exchange(order, url, &host, tls).await
        }
        (true, Server::Spiffe { trust, id }) => {
            let tls = mtls::connect_spiffe(tcp, &host, trust, id).await.map_err(failed)?;
            exchange(order, url, &host, tls).await
        }
    }
}

/// Connects to an address that was looked at: the name is not asked for again, so that it cannot answer differently.
async fn connect(host: &str, port: u16, allow_private: bool) -> Result<TcpStream, Error> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let resolve = |source| Error::Resolve { host: host.to_owned(), source };
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((bare, port)).await.map_err(resolve)?.collect();
    let private = addresses.iter().find(|address| is_private(address.ip()));
    // One private address among public ones is no accident either.
    if let Some(address) = private.filter(|_| !allow_private) {
        return Err(Error::PrivateAddress { host: host.to_owned(), address: address.ip() });
    }
    let mut last = resolve(std::io::ErrorKind::NotFound.into());
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => {
                let _ = tcp.set_nodelay(true);
                return Ok(tcp);
            }
            Err(source) => last = Error::Connect { address, source },
        }
    }
    Err(last)
}

async fn exchange<S>(order: &Order<'_>, url: &Uri, host: &str, stream: S) -> Result<Answer, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |source| Error::Http { host: host.to_owned(), source };
    let mut conversation = Conversation::over(stream).await.map_err(failed)?;
    let path = url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = url.authority().map_or(host, http::uri::Authority::as_str);
    let mut request = Request::new(Full::default());
    *request.uri_mut() = path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    if let Ok(authority) = HeaderValue::from_str(authority) {
        headers.insert(HOST, authority);
    }
    headers.insert(ACCEPT, HeaderValue::from_static(order.accept));
    let agent = concat!("wardgate/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let (head, body) = conversation.ask(request).await.map_err(failed)?.into_parts();
    match head.status {
        StatusCode::OK => {}
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => {
            let target = head.headers.get(LOCATION).and_then(|value| value.to_str().ok());
            let target = target.ok_or_else(|| Error::Redirect {
                target: String::new(),
                why: "it names no target".into(),
            })?;
            return Ok(Answer::Elsewhere(target.to_owned()));
        }
        status => return Err(Error::Status { host: host.to_owned(), status: status.as_u16() }),
    }
    let max = order.limits.max_bytes;
    match whole(body, max).await {
        Ok(body) => Ok(Answer::Body(body)),
        Err(Unread::TooLong { max }) => Err(Error::TooLarge { max }),
        Err(Unread::Broken(source)) => Err(failed(source)),
    }
}

/// The target of a redirect as a whole URL (RFC 9110, section 10.2.2): whole, of the same scheme, or a path.
fn resolved(base: &Uri, target: &str) -> Result<String, String> {
    if target.contains("://") {
        return Ok(target.to_owned());
    }
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", http::uri::Authority::as_str);
    if target.starts_with("//") {
        return Ok(format!("{scheme}:{target}"));
    }
    if target.starts_with('/') {
        return Ok(format!("{scheme}://{authority}{target}"));
    }
    if target.starts_with('?') {
        return Ok(format!("{scheme}://{authority}{}{target}", base.path()));
    }
    // `mailto:x` is no path.
    let first = target.split(['/', '?']).next().unwrap_or_default();
    if target.is_empty() || first.contains(':') {
        return Err("it is no address to fetch from".into());
    }
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    Ok(format!("{scheme}://{authority}{folder}/{target}"))
}

/// Is this an address that the public internet does not have? Loopback, private and link-local networks, shared address space,
/// multicast, and what is reserved; also where an IPv6 address carries such an IPv4 one.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b))
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let s = address.segments();
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return true;
    }
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_private_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // Mapped and compatible IPv4, NAT64, 6to4.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => inner(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
        [0x64, 0xff9b, 1, ..] => true,
        [0x2002, high, low, ..] => inner(high, low),
        // Unique local, link-local, site-local, documentation, Teredo.
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xff80 == 0xfe80 => true,
        [0x2001, 0 | 0xdb8, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_85_knows_the_addresses_that_are_not_public() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "198.18.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:a00:1::",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(is_private(private.parse().unwrap()), "85 {private}");
        }
        for public in [
            "1.1.1.1",
            "172.32.0.1",
            "172.15.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "192.169.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::",
            "2001:4860::8888",
        ] {
            assert!(!is_private(public.parse().unwrap()), "85 {public}");
        }
    }

    #[test]
    fn rule_83_resolves_targets_against_where_they_came_from() {
        let base: Uri = "https://a.test:8443/x/y?z=1".parse().unwrap();
        for (target, whole) in [
            ("https://b.test/", Ok("https://b.test/")),
            ("//b.test/p", Ok("https://b.test/p")),
            ("/p?q", Ok("https://a.test:8443/p?q")),
            ("p", Ok("https://a.test:8443/x/p")),
            ("?q", Ok("https://a.test:8443/x/y?q")),
            ("", Err(())),
            ("mailto:a@b", Err(())),
        ] {
            assert_eq!(
                resolved(&base, target).map_err(drop),
                whole.map(str::to_owned),
                "83 {target}"
            );
        }
    }
}
