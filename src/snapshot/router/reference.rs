//! The rules said slowly: every route is looked at, and the candidates are sorted. The router must try the same ones in the same
//! order, find the same parameters, and after any changes be what a router made anew would be.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use parking_lot::Mutex;
use proptest::prelude::*;
use regex::bytes::Regex;

use super::*;

#[derive(Clone, Debug)]
struct Declared {
    hosts: Vec<String>,
    paths: Vec<String>,
    priority: i64,
}

/// How good a match is: the smaller the better.
type Rank = (HostRank, PathRank, Reverse<i64>, Reverse<usize>, String, usize, usize);
/// Exact, then the longest wildcard, then none; all the same where hosts are a condition.
type HostRank = (u8, usize);
/// Exact, then the longest literal part.
type PathRank = (bool, Reverse<usize>);

/// One step of a search: which route, by which of its paths, and what the parameters are.
type Step = (String, usize, Vec<(String, String)>);

fn steps(
    kind: RouterKind,
    routes: &BTreeMap<String, Declared>,
    host: &str,
    path: &str,
) -> Vec<Step> {
    let mut candidates: Vec<(Rank, Step)> = Vec::new();
    for (id, route) in routes {
        let mut hosts: Vec<(HostRank, usize)> = Vec::new();
        for (at, wanted) in route.hosts.iter().enumerate() {
            match wanted.strip_prefix('*') {
                Some(suffix) if host.ends_with(suffix) => {
                    hosts.push(((1, usize::MAX - suffix.len()), at));
                }
                None if wanted == host => hosts.push(((0, 0), at)),
                _ => {}
            }
        }
        if route.hosts.is_empty() {
            hosts.push(((2, 0), 0));
        }
        if kind != RouterKind::HostUri {
            // One condition among others: it holds or not.
            hosts.truncate(1);
            hosts.iter_mut().for_each(|(rank, _)| *rank = (0, 0));
        }
        for (host_rank, host_at) in hosts {
            for (path_at, wanted) in route.paths.iter().enumerate() {
                let Some((rank, caught)) = fit(kind, wanted, path) else { continue };
                let (priority, length) = (Reverse(route.priority), Reverse(wanted.len()));
                let rank = (host_rank, rank, priority, length, id.clone(), path_at, host_at);
                candidates.push((rank, (id.clone(), path_at, caught)));
            }
        }
    }
    candidates.sort();
    candidates.into_iter().map(|(_, step)| step).collect()
}

/// As `lua-resty-radixtree` does it: by a regular expression made of the path's segments.
fn fit(kind: RouterKind, wanted: &str, path: &str) -> Option<(PathRank, Vec<(String, String)>)> {
    let is_parameter =
        |segment: &str| kind == RouterKind::UriWithParameter && segment.starts_with(':');
    if let Some(prefix) = wanted.strip_suffix('*')
        && !prefix.contains('*')
        && !prefix.split('/').any(is_parameter)
    {
        return path.starts_with(prefix).then(|| ((true, Reverse(prefix.len())), Vec::new()));
    }
    let (mut names, mut expression, mut literal) = (Vec::new(), Vec::new(), 0);
    for segment in wanted.split('/') {
        let name = match segment.strip_prefix('*') {
            Some("") => Some(":ext"),
            Some(name) => Some(name),
            None if is_parameter(segment) => Some(&segment[1..]),
            None => None,
        };
        expression.push(match name {
            Some(_) if segment.starts_with('*') => "(.*)".to_owned(),
            Some(_) => "([^/]+)".to_owned(),
            None => regex::escape(segment),
        });
        if names.is_empty() && name.is_none() {
            literal += segment.len() + 1;
        }
        names.extend(name.map(str::to_owned));
    }
    if names.is_empty() {
        return (wanted == path).then(|| ((false, Reverse(0)), Vec::new()));
    }
    let groups = compiled(&expression.join("/"));
    let groups = groups.captures(path.as_bytes())?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let texts: Vec<String> =
        groups.iter().skip(1).map(|group| text(group.unwrap().as_bytes())).collect();
    Some(((true, Reverse(literal)), names.into_iter().zip(texts).collect()))
}

/// Thousands of cases have the same few expressions.
fn compiled(expression: &str) -> Regex {
    static KNOWN: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(Mutex::default);
    let make = || Regex::new(&format!("(?s-u)^{expression}$")).unwrap();
    KNOWN.lock().entry(expression.to_owned()).or_insert_with(make).clone()
}

fn tried(
    router: &Router<String>,
    host: &str,
    path: &str,
) -> Vec<(String, usize, Vec<(String, String)>)> {
    let mut order = Vec::new();
    // Taking the nth that is tried shows what it caught.
    loop {
        let mut count = 0;
        let found = router.find(host, path.as_bytes(), |_| {
            count += 1;
            count > order.len()
        });
        let Some(found) = found else { return order };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let caught = found.parameters(path.as_bytes());
        let caught = caught.into_iter().map(|(name, value)| (name.to_owned(), text(value)));
        order.push((found.value.clone(), found.path, caught.collect()));
    }
}

fn place_of(kind: RouterKind, route: &Declared) -> Option<Place> {
    let hosts = route.hosts.iter().map(String::as_str);
    let paths = route.paths.iter().map(String::as_str);
    Place::parse(kind, hosts, paths, route.priority).ok()
}

fn made_anew(kind: RouterKind, routes: &BTreeMap<String, Declared>) -> Router<String> {
    let mut router = Router::default();
    for (id, route) in routes {
        let place = place_of(kind, route).unwrap();
        router.insert(kind, &Id::parse(id).unwrap(), &place, id.clone());
    }
    router
}

fn declared() -> impl Strategy<Value = Declared> {
    let host = "(\\*?\\.?[ab]{1,2}(\\.[ab])?|\\*)";
    let path = "/([ab]{0,2}/){0,2}([ab]{0,2}\\*?|:[xy]|:x/[ab]?|:x/:y|\\*[xy]?|\\*x/[ab]|:y/\\*x)";
    (prop::collection::btree_set(host, 0..3), prop::collection::btree_set(path, 1..3), -1i64..2)
        .prop_map(|(hosts, paths, priority)| Declared {
            hosts: hosts.into_iter().collect(),
            paths: paths.into_iter().collect(),
            priority,
        })
}

proptest! {
    // Each with several requests: some 20,000 searches.
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn the_router_tries_what_the_slow_rules_try_and_changes_leave_what_a_new_one_would_be(
        kind in prop_oneof![
            Just(RouterKind::HostUri), Just(RouterKind::Uri), Just(RouterKind::UriWithParameter)
        ],
        changes in prop::collection::vec((0u8..12, prop::option::weighted(0.8, declared())), 1..40),
        requests in prop::collection::vec(("[ab]{1,2}(\\.[ab]){0,2}", "/[ab/]{0,6}"), 14),
    ) {
        let mut routes: BTreeMap<String, Declared> = BTreeMap::new();
        let mut router = Router::default();
        for (id, route) in changes {
            let id = format!("r{id}");
            let parsed = Id::parse(&id).unwrap();
            if let Some(before) = routes.remove(&id) {
                router.remove(kind, &parsed, &place_of(kind, &before).unwrap());
            }
            let Some(route) = route else { continue };
            if let Some(place) = place_of(kind, &route) {
                router.insert(kind, &parsed, &place, id.clone());
                routes.insert(id, route);
            }
        }
        let fresh = made_anew(kind, &routes);
        prop_assert_eq!(format!("{:?}", router.anywhere), format!("{:?}", fresh.anywhere));
        prop_assert_eq!(format!("{:?}", router.wildcards), format!("{:?}", fresh.wildcards));
        for (host, path) in requests {
            let expected = steps(kind, &routes, &host, &path);
            prop_assert_eq!(tried(&router, &host, &path), expected, "{}{}", host, path);
        }
        for (id, route) in routes {
            router.remove(kind, &Id::parse(&id).unwrap(), &place_of(kind, &route).unwrap());
        }
        prop_assert!(router.anywhere.is_empty() && router.wildcards.is_empty());
        prop_assert!(router.exact.is_empty());
    }
}
