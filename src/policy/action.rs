//! `Action`: what a caller asks for, in the facts that rules look at.

use std::cell::OnceCell;

use super::host;
use super::path::{Readings, read};
use crate::model::{Id, Labels};

/// The route that a request matched, as far as selectors look at it.
#[derive(Clone, Copy, Debug)]
pub struct RouteFacts<'a> {
    /// Its id.
    pub id: &'a Id,
    /// Its labels, those of its service included if the caller merges them.
    pub labels: &'a Labels,
}

/// What a caller asks for.
#[derive(Clone, Copy, Debug)]
pub enum Action<'a> {
    /// A connection whose content we do not read (layer 4).
    ///
    /// A rule that names hosts, methods or paths never allows it and, as a deny rule, always refuses it.
    Connect {
        /// The listener's port.
        port: u16,
    },
    /// An HTTP request.
    Http {
        /// The listener's port.
        port: u16,
        /// The method as received.
        method: &'a str,
        /// The authority as received, with or without port.
        host: &'a str,
        /// The path as received, undecoded, without the query.
        path: &'a str,
        /// The route that matched; `None` when none did, which leaves policies out that select by route or label.
        route: Option<RouteFacts<'a>>,
    },
}

/// What a rule reads of HTTP.
#[derive(Clone, Copy)]
pub(super) struct HttpFacts<'a> {
    pub(super) method: &'a str,
    pub(super) host: &'a str,
    pub(super) path: &'a str,
}

/// An action while it is decided: what has to be worked out is worked out once, and only if a rule asks for it.
pub(super) struct Facts<'a> {
    pub(super) port: u16,
    pub(super) http: Option<HttpFacts<'a>>,
    pub(super) route: Option<RouteFacts<'a>>,
    host: OnceCell<Option<&'a str>>,
    readings: OnceCell<Readings<'a>>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(action: &Action<'a>) -> Self {
        let (port, http, route) = match *action {
            Action::Connect { port } => (port, None, None),
            Action::Http { port, method, host, path, route } => {
                (port, Some(HttpFacts { method, host, path }), route)
            }
        };
        Self { port, http, route, host: OnceCell::new(), readings: OnceCell::new() }
    }

    /// Layer 4: the request, and so its route, is not known.
    pub(super) fn is_connect(&self) -> bool {
        self.http.is_none()
    }

    /// The host's name without port and final dot; `None` when it is no host name.
    pub(super) fn host(&self) -> Option<&'a str> {
        *self.host.get_or_init(|| host::name(self.http?.host))
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
}
