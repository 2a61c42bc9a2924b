//! `Router<T>`: host and path to route, in time that does not grow with the number of routes.
//!
//! The rules are APISIX's (`lua-resty-radixtree`): the exact host before the longest wildcard before no host; the exact path
//! before the longest prefix; where other conditions fail, the next best is tried; `priority` orders only routes of one
//! host and path. Everything is shared between versions of a router: an insertion copies the nodes on its way, nothing else.

mod bucket;
mod place;
mod radix;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::bucket::{Bucket, Entry, reversed};
pub use self::place::Place;
use self::place::{Caught, Host, Part, Path, Rest, follow};
use self::radix::{End, Radix};
use crate::model::Id;
use crate::pipeline::PathRules;
use crate::rt::Shards;

/// What a path may say and how hosts count; the names of `apisix.router.http`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouterKind {
    /// The host decides first, then the path. A colon in a path is a colon.
    #[default]
    #[serde(rename = "radixtree_host_uri")]
    HostUri,
    /// The path decides; the host is one of the other conditions.
    #[serde(rename = "radixtree_uri")]
    Uri,
    /// The same, and `:name` stands for one segment of the path.
    #[serde(rename = "radixtree_uri_with_parameter")]
    UriWithParameter,
}

/// How requests find their routes: the same for all routes of a process. Control planes and data planes have the same settings;
/// a data plane refuses by name a route that its own kind of router cannot place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouterSettings {
    /// The kind of router, as `apisix.router.http` names it.
    pub http: RouterKind,
    /// A slash at the end of a request's path does not count: `/foo/` finds the route of `/foo`.
    pub delete_uri_tail_slash: bool,
    /// Reads paths as servlets do: `;` and what follows it in a segment does not count.
    pub normalize_uri_like_servlet: bool,
    /// An encoded slash (`%2F`) is part of its segment and does not end it. Routes write it in upper case.
    pub match_uri_encoded_slash: bool,
}

impl RouterSettings {
    /// How paths are read.
    pub fn path_rules(&self) -> PathRules {
        PathRules {
            delete_tail_slash: self.delete_uri_tail_slash,
            like_servlet: self.normalize_uri_like_servlet,
            keep_encoded_slash: self.match_uri_encoded_slash,
        }
    }
}

/// What a search found.
#[derive(Debug)]
pub struct Found<'a, T> {
    /// The value.
    pub value: &'a T,
    /// Which of its hosts matched.
    pub host: Option<usize>,
    /// Which of its paths matched.
    pub path: usize,
    /// The length of the literal part, and what follows it.
    parameters: Option<(usize, &'a [Part])>,
}

impl<T> Found<'_, T> {
    /// The parameters of the path, in their order. Allocates only when there are some.
    pub fn parameters<'p>(&self, path: &'p [u8]) -> Vec<(&str, &'p [u8])> {
        let Some((start, parts)) = self.parameters else { return Vec::new() };
        let mut caught = Caught::new();
        follow(parts, path.get(start..).unwrap_or_default(), &mut caught);
        let names = parts.iter().filter_map(|part| match part {
            Part::Literal(_) => None,
            Part::Segment(name) | Part::Tail(name) => Some(&**name),
        });
        names.zip(caught).collect()
    }
}

/// The paths of one host, or of all.
type Paths<T> = Radix<Bucket<T>>;

/// Routes by host and path. Cloning is cheap and shares everything.
/// ```
/// # use wardgate::snapshot::{Place, Router, RouterKind};
/// # use wardgate::model::Id;
/// let kind = RouterKind::HostUri;
/// let mut router = Router::default();
/// let place = Place::parse(kind, ["*.shop"], ["/cart/*"], 0).unwrap();
/// router.insert(kind, &Id::parse("1").unwrap(), &place, "cart");
/// let found = router.find("www.shop", b"/cart/7", |_| true).unwrap();
/// assert_eq!(*found.value, "cart");
/// assert!(router.find("shop", b"/cart/7", |_| true).is_none());
/// ```
#[derive(Clone, Debug)]
pub struct Router<T> {
    exact: Shards<Paths<T>>,
    /// By the reversed suffix.
    wildcards: Radix<Paths<T>>,
    anywhere: Paths<T>,
}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Self { exact: Shards::default(), wildcards: Radix::default(), anywhere: Radix::default() }
    }
}

impl<T: Clone> Router<T> {
    /// Puts a value into its places. The same id must not be there yet.
    pub fn insert(&mut self, kind: RouterKind, id: &Id, place: &Place, value: T) {
        for (at, path) in place.paths.iter().enumerate() {
            let entry = |host: Option<usize>| {
                Arc::new(Entry {
                    value: value.clone(),
                    id: id.clone(),
                    priority: place.priority,
                    written: path.written,
                    path: narrow(at),
                    host: host.map(narrow),
                    parts: match &path.rest {
                        Rest::Parts(parts) => Some(parts.clone()),
                        Rest::Nothing | Rest::Anything => None,
                    },
                })
            };
            let (key, end) = path.key();
            for (host_at, host) in place.hosts.iter().enumerate() {
                let entry = entry(Some(host_at));
                match kind {
                    RouterKind::HostUri => self.paths(host).reach(key, end).put(entry, None),
                    RouterKind::Uri | RouterKind::UriWithParameter => {
                        self.anywhere.reach(key, end).put(entry, Some(host));
                    }
                }
            }
            if place.hosts.is_empty() {
                self.anywhere.reach(key, end).put(entry(None), None);
            }
        }
    }

    /// Takes a value out of its places.
    pub fn remove(&mut self, kind: RouterKind, id: &Id, place: &Place) {
        for path in place.paths.iter() {
            let (key, end) = path.key();
            for host in place.hosts.iter() {
                match kind {
                    RouterKind::HostUri => self.remove_from_host(host, path, id),
                    RouterKind::Uri | RouterKind::UriWithParameter => {
                        self.anywhere.reduce(key, end, |bucket| bucket.take(id, Some(host)));
                    }
                }
            }
            if place.hosts.is_empty() {
                self.anywhere.reduce(key, end, |bucket| bucket.take(id, None));
            }
        }
    }

    fn paths(&mut self, host: &Host) -> &mut Paths<T> {
        match host {
            Host::Exact(host) => self.exact.entry(host),
            Host::Suffix(_) => {
                let (key, end) = host.key();
                self.wildcards.reach(&key, end)
            }
        }
    }

    fn remove_from_host(&mut self, host: &Host, path: &Path, id: &Id) {
        let (key, end) = path.key();
        let shrink = |paths: &mut Paths<T>| paths.reduce(key, end, |bucket| bucket.take(id, None));
        match host {
            Host::Exact(host) => {
                let paths = self.exact.entry(host);
                shrink(paths);
                if paths.is_empty() {
                    self.exact.remove(host);
                }
            }
            Host::Suffix(_) => {
                let (key, end) = host.key();
                self.wildcards.reduce(&key, end, shrink);
            }
        }
    }

    /// The best value for host (lower case, no port) and path (normalised) that `accept` takes.
    pub fn find<'a>(
        &'a self,
        host: &str,
        path: &[u8],
        mut accept: impl FnMut(&T) -> bool,
    ) -> Option<Found<'a, T>> {
        if let Some(paths) = self.exact.find(host)
            && let Some(found) = search(paths, host, path, &mut accept)
        {
            return Some(found);
        }
        if !self.wildcards.is_empty() {
            let met = self.wildcards.meet(&reversed(host));
            for (_, paths) in met.open.iter().rev() {
                if let Some(found) = search(paths, host, path, &mut accept) {
                    return Some(found);
                }
            }
        }
        search(&self.anywhere, host, path, &mut accept)
    }
}

/// The exact path first, then the prefixes, the longest first.
fn search<'a, T: Clone>(
    paths: &'a Paths<T>,
    host: &str,
    path: &[u8],
    accept: &mut impl FnMut(&T) -> bool,
) -> Option<Found<'a, T>> {
    let met = paths.meet(path);
    let mut choose = |at: usize, bucket: &'a Bucket<T>| {
        let fits = |entry: &'a Entry<T>| {
            let parts = entry.parts.as_deref();
            parts.is_none_or(|parts| follow(parts, &path[at..], &mut Caught::new()))
                && accept(&entry.value)
        };
        bucket.find(host, fits).map(|entry| Found {
            value: &entry.value,
            host: entry.host.map(usize::from),
            path: entry.path.into(),
            parameters: entry.parts.as_deref().map(|parts| (at, parts)),
        })
    };
    let exact = met.exact.and_then(|bucket| choose(path.len(), bucket));
    exact.or_else(|| met.open.iter().rev().find_map(|(at, bucket)| choose(*at, bucket)))
}

impl Path {
    /// Where it stands in a tree of paths.
    fn key(&self) -> (&[u8], End) {
        match self.rest {
            Rest::Nothing => (&self.literal, End::Exact),
            Rest::Anything | Rest::Parts(_) => (&self.literal, End::Open),
        }
    }
}

fn narrow(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
