//! `Target`: what is asked about. What it leaves out is not known, and stays a condition in the answer.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::{Action, Fields, Request, RouteFacts, Token};
use crate::model::{Id, Labels};

/// A route, as far as policies look at it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRoute {
    /// Its id.
    pub id: Id,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// A request, or a connection, of which some things are known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    /// A connection whose content we do not read (layer 4), no HTTP request.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub connection: bool,
    /// The method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The host, with or without port. Of a connection: the server name that its client asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The path, as sent, without the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The query, without its question mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The listener's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// All header fields, name and value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<(String, String)>>,
    /// The protocol that the connection is to be switched to, in lower case; `connect` for a tunnel. None: a plain request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<String>,
    /// The claims of the caller's token, which a plugin has verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<Map<String, Value>>,
    /// The route that the request matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<TargetRoute>,
    /// It matches no route.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_route: bool,
    /// The connection's other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The caller that a trusted sender named; as `source` where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpAddr>,
    /// When, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix_seconds: Option<i64>,
    /// The connection's lot, 0 to 99, for rules in canary mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lot: Option<u8>,
}

/// Which facts of an action are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) method: bool,
    pub(super) host: bool,
    pub(super) path: bool,
    pub(super) query: bool,
    pub(super) port: bool,
    pub(super) headers: bool,
    pub(super) upgrade: bool,
    pub(super) claims: bool,
    pub(super) route: bool,
    pub(super) source: bool,
    pub(super) remote: bool,
    pub(super) time: bool,
}

impl Target {
    pub(super) fn known(&self) -> Known {
        // What a connection does not have is known to be absent.
        let l4 = self.connection;
        Known {
            method: l4 || self.method.is_some(),
            host: self.host.is_some(),
            path: l4 || self.path.is_some(),
            query: l4 || self.query.is_some(),
            port: self.port.is_some(),
            headers: l4 || self.headers.is_some(),
            upgrade: true,
            claims: l4 || self.claims.is_some(),
            route: l4 || self.no_route || self.route.is_some(),
            source: self.source.is_some(),
            remote: self.remote.is_some() || self.source.is_some(),
            time: self.unix_seconds.is_some(),
        }
    }

    /// The header fields.
    pub(super) fn fields(&self) -> Listed<'_> {
        Listed(self.headers.as_deref().unwrap_or_default())
    }

    /// The action; what is not known is absent.
    pub(super) fn action<'a>(&'a self, fields: &'a Listed<'a>) -> Action<'a> {
        let text = |text: &'a Option<String>| text.as_deref();
        let mut action = match self.connection {
            true => Action::connection(self.port.unwrap_or_default()),
            false => Action::http(
                self.port.unwrap_or_default(),
                text(&self.method).unwrap_or_default(),
                text(&self.host).unwrap_or_default(),
                text(&self.path).unwrap_or_default(),
            ),
        };
        match &mut action.content {
            super::super::Content::Connection { server_name } => *server_name = text(&self.host),
            super::super::Content::Request(request) => {
                let facts =
                    |route: &'a TargetRoute| RouteFacts { id: &route.id, labels: &route.labels };
                *request = Request {
                    query: text(&self.query),
                    fields,
                    upgrade: text(&self.upgrade),
                    token: self.claims.as_ref().map_or(Token::Absent, Token::Verified),
                    route: self.route.as_ref().map(facts),
                    ..*request
                };
            }
        }
        action.source = self.source;
        action.remote = self.remote;
        action.unix_seconds = self.unix_seconds.unwrap_or_default();
        action.lot = self.lot.unwrap_or_default();
        action
    }
}

/// Header fields as a list.
#[derive(Debug)]
pub(super) struct Listed<'a>(&'a [(String, String)]);

impl Fields for Listed<'_> {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        for (found, value) in self.0 {
            if found.eq_ignore_ascii_case(name) {
                see(value.as_bytes());
            }
        }
    }
}
