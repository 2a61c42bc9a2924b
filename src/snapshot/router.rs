//! `Router<T>`: host and path to route, in time that does not grow with the number of routes.
//!
//! The rules are APISIX's (`lua-resty-radixtree`): the exact host before the longest wildcard before no host; the exact path
//! before the longest prefix; where other conditions fail, the next best is tried; `priority` orders only routes of one
//! host and path. Everything is shared between versions of a router: an insertion copies the nodes on its way, nothing else.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use crate::model::{Id, Invalid};
use crate::rt::Shards;

/// What a path may say and how hosts count; the names of `apisix.router.http`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
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

/// Where one value stands in a router: every host with every path.
#[derive(Clone, Debug)]
pub struct Place {
    hosts: Vec<Host>,
    paths: Vec<Path>,
    priority: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// In lower case.
    Exact(Box<str>),
    /// What the host must end with.
    Suffix(Box<str>),
}

#[derive(Clone, Debug)]
struct Path {
    /// Up to the first parameter or star.
    literal: Box<[u8]>,
    rest: Rest,
}

#[derive(Clone, Debug)]
enum Rest {
    /// The path ends here.
    Nothing,
    /// Anything may follow.
    Anything,
    /// These parts follow.
    Parts(Arc<[Part]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
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
        let paths: Vec<Path> =
            paths.into_iter().map(|path| parse_path(kind, path)).collect::<Result<_, _>>()?;
        if paths.is_empty() {
            return Err(Invalid::new("uri: a route needs a path"));
        }
        Ok(Self { hosts, paths, priority })
    }
}

fn parse_host(text: &str) -> Result<Host, Invalid> {
    let refuse = |why: &str| Err(Invalid::new(format!("host '{text}': {why}")));
    let lower = text.to_ascii_lowercase();
    let (host, wildcard) = match lower.strip_prefix('*') {
        Some(rest) => (rest, true),
        None => (&*lower, false),
    };
    if host.is_empty() && !wildcard {
        return refuse("is empty");
    }
    if host.contains('*') {
        return refuse("a star stands at the start");
    }
    let fits =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'[' | b']' | b':');
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
                return Ok(Path { literal, rest: Rest::Anything });
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
        return Ok(Path { literal, rest: Rest::Nothing });
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
    Ok(Path { literal, rest: Rest::Parts(parts.into()) })
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

/// Does `path` follow the parts? Tells `caught` each parameter's bytes.
fn follow<'p>(parts: &[Part], path: &'p [u8], caught: &mut Vec<&'p [u8]>) -> bool {
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

/// One value at one host and path.
#[derive(Clone, Debug)]
struct Entry<T> {
    value: T,
    id: Id,
    priority: i64,
    host: Option<u16>,
    path: u16,
    parts: Option<Arc<[Part]>>,
    /// In kinds where the host is one condition among others.
    hosts: Option<Arc<[Host]>>,
}

/// What stands at one path, in the order in which it is tried.
type Bucket<T> = Vec<Entry<T>>;

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
        let mut caught = Vec::new();
        follow(parts, path.get(start..).unwrap_or_default(), &mut caught);
        let names = parts.iter().filter_map(|part| match part {
            Part::Literal(_) => None,
            Part::Segment(name) | Part::Tail(name) => Some(&**name),
        });
        names.zip(caught).collect()
    }
}

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
    exact: Shards<Tree<T>>,
    suffixes: Arc<HashMap<Box<str>, Tree<T>, RandomState>>,
    /// The lengths of the suffixes that exist, longest first.
    lengths: Arc<[usize]>,
    anywhere: Tree<T>,
}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Self {
            exact: Shards::default(),
            suffixes: Arc::default(),
            lengths: Arc::default(),
            anywhere: Tree::default(),
        }
    }
}

impl<T: Clone> Router<T> {
    /// Puts a value into its places. The same id must not be there yet.
    pub fn insert(&mut self, kind: RouterKind, id: &Id, place: &Place, value: T) {
        let entry = |path: usize, host: Option<usize>, hosts: Option<Arc<[Host]>>| Entry {
            value: value.clone(),
            id: id.clone(),
            priority: place.priority,
            host: host.map(narrow),
            path: narrow(path),
            parts: match &place.paths[path].rest {
                Rest::Parts(parts) => Some(parts.clone()),
                Rest::Nothing | Rest::Anything => None,
            },
            hosts,
        };
        for (at, path) in place.paths.iter().enumerate() {
            if kind == RouterKind::HostUri {
                for (host_at, host) in place.hosts.iter().enumerate() {
                    self.tree(host).insert(path, entry(at, Some(host_at), None));
                }
                if place.hosts.is_empty() {
                    self.anywhere.insert(path, entry(at, None, None));
                }
            } else {
                let hosts = (!place.hosts.is_empty()).then(|| place.hosts.clone().into());
                self.anywhere.insert(path, entry(at, None, hosts));
            }
        }
    }

    /// Takes a value out of its places.
    pub fn remove(&mut self, kind: RouterKind, id: &Id, place: &Place) {
        for path in &place.paths {
            if kind == RouterKind::HostUri && !place.hosts.is_empty() {
                for host in &place.hosts {
                    if self.tree(host).remove(path, id) {
                        self.drop_tree(host);
                    }
                }
            } else {
                self.anywhere.remove(path, id);
            }
        }
    }

    fn tree(&mut self, host: &Host) -> &mut Tree<T> {
        match host {
            Host::Exact(host) => self.exact.entry(host),
            Host::Suffix(suffix) => {
                let suffixes = Arc::make_mut(&mut self.suffixes);
                if !suffixes.contains_key(suffix) {
                    suffixes.insert(suffix.clone(), Tree::default());
                    self.lengths = lengths(suffixes.keys());
                }
                suffixes.entry(suffix.clone()).or_default()
            }
        }
    }

    fn drop_tree(&mut self, host: &Host) {
        match host {
            Host::Exact(host) => self.exact.remove(host),
            Host::Suffix(suffix) => {
                let suffixes = Arc::make_mut(&mut self.suffixes);
                suffixes.remove(suffix);
                self.lengths = lengths(suffixes.keys());
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
        if let Some(tree) = self.exact.find(host)
            && let Some(found) = tree.find(host, path, &mut accept)
        {
            return Some(found);
        }
        for length in self.lengths.iter() {
            let suffix = host.len().checked_sub(*length).and_then(|start| host.get(start..));
            if let Some(tree) = suffix.and_then(|suffix| self.suffixes.get(suffix))
                && let Some(found) = tree.find(host, path, &mut accept)
            {
                return Some(found);
            }
        }
        self.anywhere.find(host, path, &mut accept)
    }
}

fn lengths<'a>(suffixes: impl Iterator<Item = &'a Box<str>>) -> Arc<[usize]> {
    let mut lengths: Vec<usize> = suffixes.map(|suffix| suffix.len()).collect();
    lengths.sort_unstable_by_key(|length| Reverse(*length));
    lengths.dedup();
    lengths.into()
}

fn narrow(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

/// The paths of one host: a radix tree over bytes.
#[derive(Clone, Debug)]
struct Tree<T>(Option<Arc<Node<T>>>);

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self(None)
    }
}

#[derive(Clone, Debug)]
struct Node<T> {
    /// What leads from the parent here.
    label: Box<[u8]>,
    /// Paths that end here.
    exact: Bucket<T>,
    /// Paths whose literal part ends here, and which go on.
    open: Bucket<T>,
    /// First bytes of the children's labels, sorted; in step with `children`.
    first: smallvec::SmallVec<[u8; 16]>,
    children: Vec<Arc<Self>>,
}

impl<T> Node<T> {
    fn new(label: &[u8]) -> Self {
        Self {
            label: label.into(),
            exact: Vec::new(),
            open: Vec::new(),
            first: smallvec::SmallVec::new(),
            children: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.open.is_empty() && self.children.is_empty()
    }
}

impl<T: Clone> Tree<T> {
    fn insert(&mut self, path: &Path, entry: Entry<T>) {
        let root = self.0.get_or_insert_with(|| Arc::new(Node::new(b"")));
        let node = Arc::make_mut(root).reach(&path.literal);
        let bucket = match path.rest {
            Rest::Nothing => &mut node.exact,
            Rest::Anything | Rest::Parts(_) => &mut node.open,
        };
        let order = |entry: &Entry<T>| (Reverse(entry.priority), entry.id.clone(), entry.path);
        let at = bucket.partition_point(|other| order(other) <= order(&entry));
        bucket.insert(at, entry);
    }

    /// Takes the id's entries at `path` out; tells whether the tree is empty now.
    fn remove(&mut self, path: &Path, id: &Id) -> bool {
        let Some(root) = &mut self.0 else { return true };
        let root = Arc::make_mut(root);
        root.remove(&path.literal, id);
        if root.is_empty() {
            self.0 = None;
        }
        self.0.is_none()
    }

    fn find<'a>(
        &'a self,
        host: &str,
        path: &[u8],
        accept: &mut impl FnMut(&T) -> bool,
    ) -> Option<Found<'a, T>> {
        let mut node = &**self.0.as_ref()?;
        // Prefixes on the way, shortest first; the deepest is tried first.
        let mut open: smallvec::SmallVec<[(usize, &'a Bucket<T>); 8]> = smallvec::SmallVec::new();
        let mut at = 0;
        loop {
            if !node.open.is_empty() {
                open.push((at, &node.open));
            }
            let rest = &path[at..];
            let Some(first) = rest.first() else {
                if let Some(found) = choose(&node.exact, at, host, path, accept) {
                    return Some(found);
                }
                break;
            };
            let Ok(child) = node.first.binary_search(first) else { break };
            let child = &*node.children[child];
            if !rest.starts_with(&child.label) {
                break;
            }
            at += child.label.len();
            node = child;
        }
        open.into_iter().rev().find_map(|(at, bucket)| choose(bucket, at, host, path, accept))
    }
}

fn choose<'a, T>(
    bucket: &'a Bucket<T>,
    at: usize,
    host: &str,
    path: &[u8],
    accept: &mut impl FnMut(&T) -> bool,
) -> Option<Found<'a, T>> {
    bucket.iter().find_map(|entry| {
        let mut matched = entry.host.map(usize::from);
        if let Some(hosts) = &entry.hosts {
            matched = Some(hosts.iter().position(|wanted| wanted.admits(host))?);
        }
        let parts = entry.parts.as_deref();
        if let Some(parts) = parts
            && !follow(parts, &path[at..], &mut Vec::new())
        {
            return None;
        }
        accept(&entry.value).then(|| Found {
            value: &entry.value,
            host: matched,
            path: entry.path.into(),
            parameters: parts.map(|parts| (at, parts)),
        })
    })
}

impl Host {
    fn admits(&self, host: &str) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *host,
            Self::Suffix(suffix) => host.ends_with(&**suffix),
        }
    }
}

impl<T: Clone> Node<T> {
    /// The node at `path`, made where it is missing.
    fn reach(&mut self, path: &[u8]) -> &mut Self {
        let Some(first) = path.first() else { return self };
        let at = match self.first.binary_search(first) {
            Err(at) => {
                self.first.insert(at, *first);
                self.children.insert(at, Arc::new(Self::new(path)));
                return Arc::make_mut(&mut self.children[at]);
            }
            Ok(at) => at,
        };
        let child = Arc::make_mut(&mut self.children[at]);
        let common = child.label.iter().zip(path).take_while(|(a, b)| a == b).count();
        if common < child.label.len() {
            let mut upper = Self::new(&path[..common]);
            upper.first.push(child.label[common]);
            let mut lower = std::mem::replace(child, upper);
            lower.label = lower.label[common..].into();
            child.children.push(Arc::new(lower));
        }
        child.reach(&path[common..])
    }

    fn remove(&mut self, path: &[u8], id: &Id) {
        let Some(first) = path.first() else {
            self.exact.retain(|entry| entry.id != *id);
            self.open.retain(|entry| entry.id != *id);
            return;
        };
        let Ok(at) = self.first.binary_search(first) else { return };
        if !path.starts_with(&self.children[at].label) {
            return;
        }
        let child = Arc::make_mut(&mut self.children[at]);
        let rest = &path[child.label.len()..];
        child.remove(rest, id);
        if child.is_empty() {
            self.first.remove(at);
            self.children.remove(at);
        } else if child.exact.is_empty() && child.open.is_empty() && child.children.len() == 1 {
            let mut only = child.children.remove(0);
            let merged = [&*child.label, &*only.label].concat();
            Arc::make_mut(&mut only).label = merged.into();
            self.children[at] = only;
        }
    }
}

#[cfg(test)]
mod tests;
