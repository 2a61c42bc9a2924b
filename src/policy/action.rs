//! `Action`: what a caller asks for, in the facts that rules look at.

use std::cell::OnceCell;
use std::net::IpAddr;

use super::path::{Readings, read};
use super::rule::LOTS;
use super::{host, query};
use crate::identity::SpiffeId;
use crate::model::{Id, Labels};

/// The route that a request matched, as far as selectors look at it.
#[derive(Clone, Copy, Debug)]
pub struct RouteFacts<'a> {
    /// Its id.
    pub id: &'a Id,
    /// Its labels, those of its service included if the caller merges them.
    pub labels: &'a Labels,
}

/// The header fields of a message, as rules look at them.
pub trait Fields {
    /// Shows each value of the fields of that name, in the order of the message. Names are compared without case.
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8]));
}

/// A message without header fields.
#[derive(Clone, Copy, Debug)]
pub struct NoFields;

impl Fields for NoFields {
    fn each(&self, _name: &str, _see: &mut dyn FnMut(&[u8])) {}
}

/// What is known of a caller's token.
#[derive(Clone, Copy, Debug, Default)]
pub enum Token<'a> {
    /// No plugin has looked at it yet: a rule that asks for claims neither holds nor fails for now.
    Awaited,
    /// There is none that a plugin has verified.
    #[default]
    Absent,
    /// Its claims, which a plugin has verified.
    Verified(&'a serde_json::Map<String, serde_json::Value>),
}

/// An HTTP request, as rules look at it.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The method as received.
    pub method: &'a str,
    /// The authority as received, with or without port.
    pub host: &'a str,
    /// The path as received, undecoded, without the query.
    pub path: &'a str,
    /// The query as received, without its question mark.
    pub query: Option<&'a str>,
    /// The header fields.
    pub fields: &'a dyn Fields,
    /// The protocol that the request wants to switch its connection to, in lower case; `connect` for a tunnel.
    pub upgrade: Option<&'a str>,
    /// The caller's token.
    pub token: Token<'a>,
    /// The route that matched; `None` when none did, which leaves policies out that select by route or label.
    pub route: Option<RouteFacts<'a>>,
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { method, host, path, upgrade, route, .. } = self;
        let mut shown = f.debug_struct("Request");
        shown.field("method", method).field("host", host).field("path", path);
        shown.field("upgrade", upgrade).field("route", route).finish_non_exhaustive()
    }
}

/// What a connection is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// A connection whose content we do not read (layer 4).
    ///
    /// A rule that names what only HTTP has never allows it and, as a deny rule, always refuses it.
    Connection {
        /// The server name that its client asks for in TLS, where we pass TLS through.
        server_name: Option<&'a str>,
    },
    /// An HTTP request.
    Request(Request<'a>),
}

/// What a caller asks for, and under which circumstances.
#[derive(Clone, Copy, Debug)]
pub struct Action<'a> {
    /// The listener's port.
    pub port: u16,
    /// The connection's other end.
    pub source: Option<IpAddr>,
    /// The caller that a trusted sender named; `None`: as `source`.
    pub remote: Option<IpAddr>,
    /// The time of the decision, seconds since 1970.
    pub unix_seconds: i64,
    /// The connection's lot, 0 to 99: a rule in canary mode of N per cent decides for lots below N.
    pub lot: u8,
    /// What is asked for.
    pub content: Content<'a>,
}

impl<'a> Action<'a> {
    /// A connection to this port, of which nothing more is known.
    pub const fn connection(port: u16) -> Self {
        let content = Content::Connection { server_name: None };
        Self { port, source: None, remote: None, unix_seconds: 0, lot: 0, content }
    }

    /// A request to this port without header fields, of which nothing more is known.
    pub const fn http(port: u16, method: &'a str, host: &'a str, path: &'a str) -> Self {
        let request = Request {
            method,
            host,
            path,
            query: None,
            fields: &NoFields,
            upgrade: None,
            token: Token::Absent,
            route: None,
        };
        Self { content: Content::Request(request), ..Self::connection(port) }
    }

    /// The same, of this route. A connection has none.
    pub const fn on_route(mut self, found: Option<RouteFacts<'a>>) -> Self {
        if let Content::Request(request) = &mut self.content {
            request.route = found;
        }
        self
    }

    /// The request, when it is one.
    pub const fn request(&self) -> Option<&Request<'a>> {
        match &self.content {
            Content::Request(request) => Some(request),
            Content::Connection { .. } => None,
        }
    }
}

/// An action while it is decided: what has to be worked out is worked out once, and only if a rule asks for it.
pub(super) struct Facts<'a> {
    pub(super) caller: Option<&'a SpiffeId>,
    pub(super) action: &'a Action<'a>,
    pub(super) port: u16,
    /// Below [`LOTS`].
    pub(super) lot: u8,
    pub(super) http: Option<&'a Request<'a>>,
    pub(super) route: Option<RouteFacts<'a>>,
    host: OnceCell<Option<&'a str>>,
    readings: OnceCell<Readings<'a>>,
    query: OnceCell<Option<&'a str>>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(action: &'a Action<'a>, caller: Option<&'a SpiffeId>) -> Self {
        let http = action.request();
        Self {
            caller,
            action,
            port: action.port,
            lot: action.lot.min(LOTS - 1),
            http,
            route: http.and_then(|http| http.route),
            host: OnceCell::new(),
            readings: OnceCell::new(),
            query: OnceCell::new(),
        }
    }

    /// Layer 4: the request, and so its route, is not known.
    pub(super) fn is_connect(&self) -> bool {
        self.http.is_none()
    }

    /// The host's name without port and final dot; `None` when it is no host name. Of a connection: the server name.
    pub(super) fn host(&self) -> Option<&'a str> {
        *self.host.get_or_init(|| match &self.action.content {
            Content::Request(request) => host::name(request.host),
            Content::Connection { server_name } => host::name((*server_name)?),
        })
    }

    /// All readings of the path.
    pub(super) fn readings(&self) -> &Readings<'a> {
        self.readings.get_or_init(|| self.http.map_or(Readings::Unclear, |http| read(http.path)))
    }

    /// The path, when it reads the same for everybody.
    pub(super) fn plain_path(&self) -> Option<&'a str> {
        self.http?;
        match self.readings() {
            Readings::One(path) => Some(path),
            Readings::Several(_) | Readings::Unclear => None,
        }
    }

    /// The query, when it can be read in one way only. Without one it is empty.
    pub(super) fn query(&self) -> Option<&'a str> {
        *self.query.get_or_init(|| {
            let query = self.http?.query.unwrap_or_default();
            query::is_clear(query).then_some(query)
        })
    }

    /// The caller's token. A connection has none.
    pub(super) fn token(&self) -> Token<'a> {
        self.http.map_or(Token::Absent, |http| http.token)
    }
}
