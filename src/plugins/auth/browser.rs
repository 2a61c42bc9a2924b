//! What the plugins by which people log in share towards the browser: redirects, random values, and where somebody may be sent.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::provider::Unavailable;
use crate::pipeline::{Exchange, Flow, Invalid, Reply, encode_path, encode_unsafe};
use crate::rt::crypto::rand::{SecureRandom as _, SystemRandom};

/// What a query and a form keep as it is (RFC 3986, section 2.3).
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A value of a query or a form.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, FORM).to_string()
}

/// 256 random bits as text that needs no encoding anywhere.
pub(super) fn random() -> Result<String, Unavailable> {
    let mut bytes = [0; 32];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| Unavailable::because("the system has no random numbers"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// A URL with an argument more.
pub(super) fn with_arguments(url: &str, arguments: &str) -> String {
    let (url, fragment) = match url.split_once('#') {
        Some((url, fragment)) => (url, format!("#{fragment}")),
        None => (url, String::new()),
    };
    let separator = match url.split_once('?') {
        None => "?",
        Some((_, "")) => "",
        Some(_) => "&",
    };
    format!("{url}{separator}{arguments}{fragment}")
}

/// 302, kept by no cache.
pub(super) fn redirect(to: &str, cookies: Vec<String>) -> Reply {
    let reply = Reply::empty(302).with("Location", &encode_unsafe(to));
    with_cookies(reply.with("Cache-Control", "no-store"), cookies)
}

/// A page that goes on by itself. A redirect that began on another site brings no strict cookie along; what a page of ours goes on
/// to does.
pub(super) fn page_to(to: &str, cookies: Vec<String>) -> Reply {
    let mut safe = String::new();
    for c in encode_unsafe(to).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    let page = format!(
        "<!DOCTYPE html><meta http-equiv=\"refresh\" content=\"0;url={safe}\"><a href=\"{safe}\">Continue</a>\n"
    );
    let reply = Reply { status: 200, body: page.into(), ..Reply::default() }
        .with("Content-Type", "text/html; charset=utf-8")
        .with("Content-Security-Policy", "default-src 'none'")
        .with("Cache-Control", "no-store");
    with_cookies(reply, cookies)
}

/// The same answer with these lines of `Set-Cookie`.
pub(super) fn with_cookies(mut reply: Reply, cookies: Vec<String>) -> Reply {
    reply.fields.extend(cookies.into_iter().map(|line| ("Set-Cookie".to_owned(), line)));
    reply
}

pub(super) fn answer(reply: Reply) -> Flow {
    Flow::Reply(Box::new(reply))
}

/// Bytes of a target that somebody is brought back to.
const MAX_TARGET: usize = 1024;

/// Where somebody is brought back to after the login: what was asked for, but for a form, which is not sent again.
pub(super) fn target_of(exchange: &Exchange) -> String {
    let request = &exchange.request;
    let target = match request.method() {
        "GET" | "HEAD" if request.target().len() <= MAX_TARGET => request.target(),
        _ => request.path(),
    };
    if target.len() > MAX_TARGET { "/".to_owned() } else { local(target).to_owned() }
}

/// A target of our own. What a browser reads as another host is none.
pub(super) fn local(target: &str) -> &str {
    let mut bytes = target.bytes().filter(|byte| !byte.is_ascii_control() && *byte != b' ');
    let is_ours = bytes.next() == Some(b'/') && !matches!(bytes.next(), Some(b'/' | b'\\'));
    if is_ours { target } else { "/" }
}

/// Scheme and host that the caller asked.
pub(super) fn origin_of(exchange: &Exchange) -> String {
    let scheme = if exchange.is_secure() { "https" } else { "http" };
    format!("{scheme}://{}", exchange.request.authority())
}

/// A URL of ours that a provider sends people back to.
pub(super) enum Callback {
    /// As it stands; the path of it.
    Whole(String, String),
    /// A path on whatever host was asked.
    Path(String),
    /// Behind whatever path was asked.
    Behind(&'static str),
}

impl Callback {
    pub(super) fn parse(field: &str, text: &str) -> Result<Self, Invalid> {
        let wrong = || {
            Invalid::new(format!(
                "{field}: https://host/path, http://host/path or a path is expected"
            ))
        };
        if text.starts_with('/') && local(text) == text && text.parse::<http::Uri>().is_ok() {
            return Ok(Self::Path(text.to_owned()));
        }
        let path = path_of(text).ok_or_else(wrong)?;
        Ok(Self::Whole(text.to_owned(), path))
    }

    /// Has the provider sent the caller back with this?
    pub(super) fn is_at(&self, path: &[u8]) -> bool {
        match self {
            Self::Whole(_, own) | Self::Path(own) => own.as_bytes() == path,
            Self::Behind(suffix) => path.ends_with(suffix.as_bytes()),
        }
    }

    /// The URL, as the provider is told it.
    pub(super) fn url(&self, exchange: &Exchange) -> String {
        match self {
            Self::Whole(url, _) => url.clone(),
            Self::Path(path) => format!("{}{path}", origin_of(exchange)),
            Self::Behind(suffix) => {
                let path = exchange.uri().unwrap_or_default();
                let path = encode_path(&path);
                let path = path.strip_suffix('/').unwrap_or(&path);
                format!("{}{path}{suffix}", origin_of(exchange))
            }
        }
    }
}

/// The path of a URL of http, without a user in it.
pub(super) fn path_of(url: &str) -> Option<String> {
    let parsed: http::Uri = url.parse().ok()?;
    let authority = parsed.authority()?.as_str();
    let is_web = matches!(parsed.scheme_str(), Some("http" | "https"));
    (is_web && !authority.is_empty() && !authority.contains('@')).then(|| parsed.path().to_owned())
}

/// A URL that a browser may be sent to.
pub(super) fn web_url(field: &str, url: &str) -> Result<(), Invalid> {
    let wrong = || Invalid::new(format!("{field}: https://host or http://host is expected"));
    path_of(url).map(drop).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;

    #[test]
    fn nobody_is_sent_to_another_host() {
        for (target, sent) in [
            ("/a?b=c", "/a?b=c"),
            ("/", "/"),
            ("//evil", "/"),
            ("/\\evil", "/"),
            ("/\t/evil", "/"),
            ("\\\\evil", "/"),
            ("http://evil/", "/"),
            ("javascript:x", "/"),
            ("*", "/"),
            ("", "/"),
        ] {
            assert_eq!(local(target), sent, "{target:?}");
        }
        let long = format!("/a?{}", "x".repeat(2000));
        assert_eq!(target_of(&exchange("GET", &long, "h")), "/a");
        assert_eq!(target_of(&exchange("POST", "/a?b", "h")), "/a");
        assert_eq!(target_of(&exchange("GET", "/a?b", "h")), "/a?b");
        assert_eq!(target_of(&exchange("GET", &"/x".repeat(2000), "h")), "/");
    }

    #[test]
    fn a_page_has_no_way_out_of_its_attribute() {
        let reply = page_to("/a?b=\"><script>&c='", Vec::new());
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        assert!(text.contains("url=/a?b=%22%3E%3Cscript%3E&amp;c=&#39;\">"), "{text}");
    }

    #[test]
    fn arguments_come_before_the_fragment() {
        for (url, told) in [
            ("http://a/b", "http://a/b?x=1"),
            ("http://a/b?", "http://a/b?x=1"),
            ("http://a/b?c=d", "http://a/b?c=d&x=1"),
            ("http://a/b#f", "http://a/b?x=1#f"),
        ] {
            assert_eq!(with_arguments(url, "x=1"), told);
        }
    }

    #[test]
    fn people_come_back_to_where_the_settings_say() {
        let mut asked = exchange("GET", "/a%20b/", "shop.example:8080");
        let whole = Callback::parse("redirect_uri", "https://h/cb").unwrap();
        let path = Callback::parse("redirect_uri", "/cb").unwrap();
        let behind = Callback::Behind("/.apisix/redirect");
        assert_eq!(whole.url(&asked), "https://h/cb");
        assert_eq!(path.url(&asked), "http://shop.example:8080/cb");
        assert_eq!(behind.url(&asked), "http://shop.example:8080/a%20b/.apisix/redirect");
        asked.forwarded_tls = Some(true);
        assert_eq!(path.url(&asked), "https://shop.example:8080/cb");
        assert!(whole.is_at(b"/cb") && path.is_at(b"/cb") && !path.is_at(b"/cb/"));
        assert!(behind.is_at(b"/a/.apisix/redirect") && !behind.is_at(b"/a"));
        for wrong in ["cb", "//evil/cb", "ftp://a/b", "https://u:p@a/b", "/a b", ""] {
            assert!(Callback::parse("redirect_uri", wrong).is_err(), "{wrong}");
        }
    }
}
