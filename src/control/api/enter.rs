//! The door of the Admin API: every request is guarded, measured, authenticated, answered, and noted.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::response::Response;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, CONTENT_TYPE, COOKIE, HOST, HeaderValue,
    ORIGIN, SERVER, VARY,
};
use http::{HeaderMap, Method, StatusCode};
use serde_json::json;

use super::super::access::{Pressure, Principal, Role, hash};
use super::super::answer::Answer;
use super::super::listing::Query;
use super::super::serve::Proven;
use super::super::{AdminRecord, ControlPlane, records};
use super::dispatch::{Admitted, is_question};

/// What clients of APISIX probe for, and what it really is.
const SERVER_NAME: &str = concat!("APISIX/3.18.0 (Wardgate/", env!("CARGO_PKG_VERSION"), ")");

/// What tells of a request that somebody handed on.
const FORWARDED: [&str; 5] =
    ["x-forwarded-for", "forwarded", "via", "x-forwarded-host", "x-real-ip"];

impl ControlPlane {
    /// The Admin API as a router. It must be served with connection information
    /// (`into_make_service_with_connect_info::<SocketAddr>`), and with [`Proven`] in the request's extensions where the handshake
    /// proved who calls; [`ControlPlane::serve`] does the first.
    pub fn router(self: Arc<Self>) -> axum::Router {
        axum::Router::new().fallback(enter).with_state(self)
    }
}

/// Every request comes in here.
async fn enter(
    State(plane): State<Arc<ControlPlane>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let method = head.method;
    let path = head.uri.path().to_owned();
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let authority = head.uri.authority().map(http::uri::Authority::as_str);
    let headers = head.headers;
    let caller = Caller {
        client,
        proven: head.extensions.get::<Proven>(),
        reads: matches!(method, Method::GET | Method::HEAD) || is_question(&path),
    };
    let page = plane.page(&headers);
    let mut principal = None;
    let guarded = plane.guard(authority, &headers, client);
    let answer = match guarded.and_then(|()| plane.measure(client)) {
        Err(refusal) => refusal,
        Ok(()) if method == Method::HEAD && is_root(&path) => Answer::empty(StatusCode::OK),
        Ok(()) if method == Method::OPTIONS && page.is_some() => Answer::empty(StatusCode::OK),
        Ok(()) if !is_root(&path) && !path.starts_with("/apisix/admin/") => {
            Answer::error(StatusCode::NOT_FOUND, "404 Route Not Found")
        }
        Ok(()) => match plane.authenticate(&caller, &headers, &query) {
            Err(refusal) => refusal,
            Ok(known) => {
                let known = principal.insert(known);
                let admitted = Admitted {
                    method: &method,
                    path: &path,
                    headers: &headers,
                    query: &query,
                    principal: known,
                };
                let answer = plane.answer(admitted, body).await;
                let mut answer = answer.unwrap_or_else(|answer| answer);
                answer.goes_past =
                    !caller.reads && answer.revision.is_some() && plane.goes_past(&headers, &query);
                answer
            }
        },
    };
    let who_failed = answer.status == StatusCode::UNAUTHORIZED;
    if !caller.reads || who_failed || records::is_question(&path, &query) {
        plane.audit.admin(&AdminRecord {
            principal: principal.as_ref().map(|known| known.name.as_str()),
            client,
            method: method.as_str(),
            path: &path,
            status: answer.status.as_u16(),
            revision: answer.revision,
            digest: answer.digest.clone(),
            difference: answer.difference.clone(),
            reason: answer.reason(),
        });
    }
    let mut response = answer.into_response();
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    if principal.is_some() {
        headers.insert("x-api-version", HeaderValue::from_static("v3"));
    }
    if let Some(origin) = page {
        share(headers, origin);
    }
    response
}

/// Lets a page of this origin read the answer. It has to show a key itself: no cookie is lent to it.
fn share(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(VARY, HeaderValue::from_static("origin"));
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "X-API-KEY, Content-Type, X-Digest"),
        (ACCESS_CONTROL_EXPOSE_HEADERS, "*"),
        (ACCESS_CONTROL_MAX_AGE, "3600"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn is_root(path: &str) -> bool {
    matches!(path, "/apisix/admin" | "/apisix/admin/")
}

/// Who is at the other end, before it said anything.
struct Caller<'a> {
    client: SocketAddr,
    proven: Option<&'a Proven>,
    /// It asks for nothing to be changed.
    reads: bool,
}

/// Where a key was shown.
enum Shown<'a> {
    Plainly(&'a str),
    /// The browser sends it along, whoever makes it do so.
    InCookie(&'a str),
}

impl ControlPlane {
    /// Keeps web pages out, those of other origins and those whose name was rebound to this address, and what was forwarded.
    fn guard(
        &self,
        authority: Option<&str>,
        headers: &HeaderMap,
        client: SocketAddr,
    ) -> Result<(), Answer> {
        let refuse = |text: &str| Err(Answer::forbidden(text));
        let header = |name| headers.get(name).map(|value: &HeaderValue| value.to_str());
        let host = match (authority, header(HOST)) {
            (Some(authority), _) => authority,
            (None, Some(Ok(host))) => host,
            (None, Some(Err(_))) => return refuse("the Host header cannot be read"),
            (None, None) => return refuse("the Host header is missing"),
        };
        let name = host_name(host);
        let known = name.eq_ignore_ascii_case("localhost")
            // A page's name that was rebound is a name, so plain addresses are safe.
            || name.parse::<std::net::IpAddr>().is_ok()
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name));
        if !known {
            return refuse("the Admin API is not served under this host; see the setting hosts");
        }
        let from_proxy = || {
            let address = client.ip().to_canonical();
            self.access.proxies.iter().any(|network| network.contains(&address))
        };
        if FORWARDED.iter().any(|name| headers.contains_key(*name)) && !from_proxy() {
            return refuse(
                "a request that was forwarded is refused here; see the setting control.access.proxies",
            );
        }
        match header(ORIGIN) {
            None => Ok(()),
            Some(Ok(origin))
                if origin_host(origin).is_some_and(|from| from.eq_ignore_ascii_case(host)) =>
            {
                Ok(())
            }
            Some(_) if self.page(headers).is_some() => Ok(()),
            Some(_) => refuse("requests from web pages of another origin are refused"),
        }
    }

    /// The origin of a page elsewhere that may call.
    fn page(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        let text = origin.to_str().ok()?;
        let known = self.access.origins.iter().any(|known| known.eq_ignore_ascii_case(text));
        known.then(|| origin.clone())
    }

    /// Not too much from one place.
    fn measure(&self, client: SocketAddr) -> Result<(), Answer> {
        self.access
            .limits
            .asks(client.ip())
            .map_err(|Pressure(wait)| Answer::too_many("too many requests from this address", wait))
    }

    fn authenticate(
        &self,
        caller: &Caller<'_>,
        headers: &HeaderMap,
        query: &Query,
    ) -> Result<Principal, Answer> {
        let refuse = |why: &str| {
            let body = json!({"error_msg": "failed to check token", "description": why});
            Answer::json(StatusCode::UNAUTHORIZED, body)
        };
        let principal = match shown_key(headers, query) {
            Some(shown) => {
                self.access.limits.may_try(caller.client.ip()).map_err(|Pressure(wait)| {
                    Answer::too_many("too many wrong keys from this address", wait)
                })?;
                let key = match shown {
                    Shown::Plainly(key) => key,
                    Shown::InCookie(key) => {
                        own_page(headers, caller.reads)?;
                        key
                    }
                };
                self.holder(key).ok_or_else(|| {
                    self.access.limits.failed(caller.client.ip());
                    refuse("wrong apikey")
                })?
            }
            None => {
                let known = caller.proven.and_then(|Proven(id)| self.access.peers.find(id));
                known.ok_or_else(|| refuse("missing apikey"))?
            }
        };
        if principal.role == Role::Viewer && !caller.reads {
            return Err(refuse("invalid method for role viewer"));
        }
        Ok(principal)
    }

    /// Whose key is this?
    fn holder(&self, key: &str) -> Option<Principal> {
        let presented = hash(key);
        let stored = self.access.stored.find(&presented, self.clock.now());
        self.access.keys.find_hash(&presented).cloned().or(stored)
    }
}

/// The query wins over the header, the header over the cookie, as in APISIX.
fn shown_key<'a>(headers: &'a HeaderMap, query: &'a Query) -> Option<Shown<'a>> {
    let header = headers.get("x-api-key").and_then(|value| value.to_str().ok());
    let plainly = query.find("api_key").or(header).map(Shown::Plainly);
    plainly.or_else(|| cookie(headers, "x_api_key").map(Shown::InCookie))
}

/// A browser sends a cookie for whoever makes it ask: then only our own page may, and a change must be one that no form of
/// another page could send.
fn own_page(headers: &HeaderMap, reads: bool) -> Result<(), Answer> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("sec-fetch-site") {
        None | Some("same-origin" | "none") => {}
        Some(_) => {
            return Err(Answer::forbidden("a key in a cookie is for pages of this origin alone"));
        }
    }
    // The guard has compared the origin, if one was sent.
    let is_json = text(CONTENT_TYPE.as_str()).is_some_and(|kind| {
        kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json")
    });
    if reads || headers.contains_key(ORIGIN) || is_json {
        return Ok(());
    }
    Err(Answer::forbidden(
        "a change with the key in a cookie needs the header Origin, or Content-Type: application/json",
    ))
}

fn cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';'));
    pairs
        .find_map(|pair| pair.trim().split_once('=').filter(|(name, _)| *name == wanted))
        .map(|(_, value)| value)
}

/// The host without its port and brackets.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    host.split(':').next().unwrap_or_default()
}

fn origin_host(origin: &str) -> Option<&str> {
    origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_origins_are_read_as_browsers_write_them() {
        for (host, name) in [("a:1", "a"), ("a", "a"), ("[::1]:9180", "::1"), ("[::1]", "::1")] {
            assert_eq!(host_name(host), name);
        }
        assert_eq!(origin_host("https://a:1"), Some("a:1"));
        assert_eq!(origin_host("null"), None);
    }
}
