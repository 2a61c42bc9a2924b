//! `Cluster`: a compiled upstream, which picks an endpoint for each attempt.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::{Endpoint, Members, Roster, Security};
use crate::identity::SpiffePattern;
use crate::model::{
    Balance, HashOn, Invalid, KeepalivePool, Node, Nodes, PassHost, Scheme, Timeout, Upstream,
    UpstreamIdentity, UpstreamTls,
};
use crate::mtls::ExpectedPeers;
use crate::rt::Live;

/// The endpoints that this request has tried already.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// Those of changing members: a request sees the same ones to its end.
    members: Option<Arc<Members>>,
    at: SmallVec<[u16; 8]>,
}

impl Tried {
    pub(super) fn contains(&self, at: u16) -> bool {
        self.at.contains(&at)
    }

    pub(super) fn add(&mut self, at: u16) {
        self.at.push(at);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.at.len()
    }
}

/// Who serves a cluster.
#[derive(Debug)]
enum Serving {
    /// The nodes that are written there.
    Fixed(Members),
    /// Whoever was found last.
    #[expect(dead_code, reason = "names and discovery come with the next changes")]
    Changing(Live<Members>),
}

/// A compiled upstream.
#[derive(Debug)]
pub struct Cluster {
    /// The upstream's id, or its carrier's.
    pub name: String,
    /// What it speaks.
    pub scheme: Scheme,
    /// Which Host it reads.
    pub pass_host: PassHost,
    /// The Host for `pass_host: rewrite`.
    pub host: Option<String>,
    /// Attempts beyond the first.
    pub retries: u32,
    /// After this no further attempt starts.
    pub retry_within: Option<Duration>,
    /// To establish a connection, handshake included.
    pub connect_within: Duration,
    /// Between two writes.
    pub send_within: Duration,
    /// Between two reads.
    pub read_within: Duration,
    /// How many connections wait for their next request.
    pub keepalive: KeepalivePool,
    /// What a ring hashes: a template of variables, read from each exchange.
    pub hash_key: Option<String>,
    serving: Serving,
}

impl Cluster {
    /// Compiles an upstream. `timeout` is the route's, which wins. What outlives this revision is in `roster`.
    ///
    /// # Errors
    /// The sentence names the field.
    pub fn compile(
        name: &str,
        upstream: &Upstream,
        timeout: Option<Timeout>,
        roster: &Roster,
    ) -> Result<Arc<Self>, Invalid> {
        let nodes = nodes(upstream)?;
        let endpoints: Box<[Arc<Endpoint>]> = nodes
            .iter()
            .map(|node| endpoint(name, upstream, node, roster).map(Arc::new))
            .collect::<Result<_, _>>()?;
        let others = u32::try_from(endpoints.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let members = Members::new(endpoints, upstream.balance)?;
        let timeout = timeout.or(upstream.timeout).unwrap_or_default();
        Ok(Arc::new(Self {
            name: name.to_owned(),
            scheme: upstream.scheme,
            pass_host: upstream.pass_host,
            host: host_rewrite(upstream)?,
            retries: upstream.retries.unwrap_or(others),
            retry_within: upstream
                .retry_timeout
                .filter(|seconds| *seconds > 0.0)
                .map(|seconds| seconds_of("retry_timeout", seconds))
                .transpose()?,
            connect_within: seconds_of("timeout.connect", timeout.connect)?,
            send_within: seconds_of("timeout.send", timeout.send)?,
            read_within: seconds_of("timeout.read", timeout.read)?,
            keepalive: upstream.keepalive_pool.unwrap_or_default(),
            hash_key: hash_key(upstream)?,
            serving: Serving::Fixed(members),
        }))
    }

    /// An endpoint that `tried` does not hold yet; it is added there. `key` is what a ring hashes.
    pub fn pick(&self, key: &[u8], tried: &mut Tried) -> Option<Arc<Endpoint>> {
        let key = self.hash_key.as_ref().map(|_| key);
        match &self.serving {
            Serving::Fixed(members) => members.pick(key, tried).cloned(),
            Serving::Changing(live) => {
                let members = tried.members.get_or_insert_with(|| live.load()).clone();
                members.pick(key, tried).cloned()
            }
        }
    }

    /// All endpoints by now.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        match &self.serving {
            Serving::Fixed(members) => members.endpoints().to_vec(),
            Serving::Changing(live) => live.load().endpoints().to_vec(),
        }
    }

    /// Does the upstream speak HTTP/2?
    pub fn speaks_http2(&self) -> bool {
        matches!(self.scheme, Scheme::Grpc | Scheme::Grpcs)
    }
}

fn seconds_of(field: &str, seconds: f64) -> Result<Duration, Invalid> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(Invalid::new(format!("{field}: expected seconds above 0, got {seconds}"))),
    }
}

fn host_rewrite(upstream: &Upstream) -> Result<Option<String>, Invalid> {
    match (upstream.pass_host, &upstream.upstream_host) {
        (PassHost::Rewrite, None) => {
            Err(Invalid::new("upstream_host: required when pass_host is rewrite"))
        }
        (PassHost::Rewrite, host) => Ok(host.clone()),
        _ => Ok(None),
    }
}

fn hash_key(upstream: &Upstream) -> Result<Option<String>, Invalid> {
    if upstream.balance != Balance::Chash {
        return Ok(None);
    }
    let key = upstream.key.as_deref();
    let named = |prefix: &str| {
        let key = key.ok_or_else(|| Invalid::new("key: required when type is chash"))?;
        let key = key.strip_prefix(prefix).unwrap_or(key).to_ascii_lowercase();
        Ok(format!("${{{prefix}{}}}", key.replace('-', "_")))
    };
    match upstream.hash_on {
        HashOn::Vars => named("").map(Some),
        HashOn::Header => named("http_").map(Some),
        HashOn::Cookie => {
            let key = key.ok_or_else(|| Invalid::new("key: required when type is chash"))?;
            Ok(Some(format!("${{cookie_{}}}", key.strip_prefix("cookie_").unwrap_or(key))))
        }
        HashOn::Consumer => Ok(Some("${consumer_name}".to_owned())),
        HashOn::VarsCombinations => match key {
            Some(key) => Ok(Some(key.to_owned())),
            None => Err(Invalid::new("key: required when type is chash")),
        },
    }
}

fn nodes(upstream: &Upstream) -> Result<Vec<Node>, Invalid> {
    let map = match &upstream.nodes {
        None => return Ok(Vec::new()),
        Some(Nodes::List(list)) => return Ok(list.clone()),
        Some(Nodes::Map(map)) => map,
    };
    map.iter()
        .map(|(place, weight)| {
            let (host, port) = split_place(place)?;
            Ok(Node { host, port, weight: *weight, priority: 0, spiffe_ids: Vec::new() })
        })
        .collect()
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn split_place(place: &str) -> Result<(String, Option<u16>), Invalid> {
    let invalid = || Invalid::new(format!("nodes: expected host or host:port, got {place:?}"));
    let number = |port: &str| port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(invalid);
    if let Some(rest) = place.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(invalid)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host.to_owned(), Some(number(port)?))),
            None if rest.is_empty() => Ok((host.to_owned(), None)),
            None => Err(invalid()),
        };
    }
    match place.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            Err(Invalid::new(format!("nodes: write the IPv6 address {place:?} in brackets")))
        }
        Some(("", _)) => Err(invalid()),
        Some((host, port)) => Ok((host.to_owned(), Some(number(port)?))),
        None if place.is_empty() => Err(invalid()),
        None => Ok((place.to_owned(), None)),
    }
}

fn endpoint(
    cluster: &str,
    upstream: &Upstream,
    node: &Node,
    roster: &Roster,
) -> Result<Endpoint, Invalid> {
    let secured = matches!(upstream.scheme, Scheme::Https | Scheme::Grpcs);
    let tls = upstream.tls.clone().unwrap_or_default();
    let security = match tls.identity {
        Some(UpstreamIdentity::Svid) => Security::Mesh(expected(&tls, node)?),
        None if !tls.spiffe_ids.is_empty() || !node.spiffe_ids.is_empty() => {
            return Err(Invalid::new("tls.spiffe_ids: needs tls.identity: svid beside it"));
        }
        None if secured => Security::Public { verify: tls.verify.unwrap_or(true) },
        None => Security::Plain,
    };
    let default_port = if secured { 443 } else { 80 };
    let port = node.port.unwrap_or(default_port);
    let state = roster.state(cluster, &format!("{}:{port}", node.host));
    let endpoint = Endpoint::new(&node.host, port, node.weight, node.priority, security, state);
    Ok(endpoint.introduced_by(upstream.proxy_protocol))
}

fn expected(tls: &UpstreamTls, node: &Node) -> Result<Arc<ExpectedPeers>, Invalid> {
    let ids = if node.spiffe_ids.is_empty() { &tls.spiffe_ids } else { &node.spiffe_ids };
    if ids.is_empty() {
        return Err(Invalid::new(
            "tls.spiffe_ids: required with tls.identity: svid; name whom you expect",
        ));
    }
    let pattern = |id: &String| {
        id.parse::<SpiffePattern>()
            .map_err(|error| Invalid::new(format!("tls.spiffe_ids: {id:?}: {error}")))
    };
    let patterns = ids.iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
    ExpectedPeers::new(patterns)
        .map(Arc::new)
        .map_err(|error| Invalid::new(format!("tls.spiffe_ids: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster(value: serde_json::Value) -> Result<Arc<Cluster>, Invalid> {
        let upstream = serde_json::from_value(value).unwrap();
        Cluster::compile("u", &upstream, None, &Roster::default())
    }

    fn picks(cluster: &Cluster, count: usize) -> Vec<u16> {
        (0..count).map(|_| cluster.pick(b"", &mut Tried::default()).unwrap().port).collect()
    }

    #[test]
    fn round_robin_is_smooth_and_leaves_out_weight_zero() {
        let cluster = cluster(json!({"nodes": {"a:1": 2, "b:2": 1, "c:3": 0}})).unwrap();
        assert_eq!(picks(&cluster, 6), [1, 2, 1, 1, 2, 1]);
    }

    #[test]
    fn a_retry_gets_another_node_and_lower_levels_come_last() {
        let cluster = cluster(json!({"nodes": [
            {"host": "a", "port": 1, "weight": 1}, {"host": "b", "port": 2, "weight": 1},
            {"host": "c", "port": 3, "weight": 1, "priority": -1}]}))
        .unwrap();
        let mut tried = Tried::default();
        let order: Vec<_> =
            std::iter::from_fn(|| cluster.pick(b"", &mut tried).map(|e| e.port)).collect();
        assert_eq!((order.len(), order[2]), (3, 3));
        assert_eq!(cluster.retries, 2);
    }

    #[test]
    fn a_ring_sends_a_key_to_one_node_and_moves_few_when_a_node_goes() {
        let ring = |nodes: serde_json::Value| {
            cluster(json!({"type": "chash", "key": "uri", "nodes": nodes})).unwrap()
        };
        let three = ring(json!({"a:1": 1, "b:2": 1, "c:3": 1}));
        let two = ring(json!({"a:1": 1, "b:2": 1}));
        let pick = |cluster: &Cluster, key: u32| {
            cluster.pick(&key.to_be_bytes(), &mut Tried::default()).unwrap().port
        };
        let mut seen = [0; 4];
        for key in 0..3000 {
            let port = pick(&three, key);
            seen[port as usize] += 1;
            assert!(port == 3 || pick(&two, key) == port, "key {key} moved without need");
        }
        assert!(seen[1..].iter().all(|&count| count > 700), "{seen:?}");
    }

    #[test]
    fn the_least_busy_node_for_its_weight_is_chosen() {
        let cluster =
            cluster(json!({"type": "least_conn", "nodes": {"a:1": 1, "b:2": 2}})).unwrap();
        let held: Vec<_> =
            (0..3).map(|_| cluster.pick(b"", &mut Tried::default()).unwrap().busy()).collect();
        let ports: Vec<_> = cluster.endpoints().iter().map(|e| (e.port, e.load())).collect();
        assert_eq!(ports, [(1, 1), (2, 2)]);
        drop(held);
        assert!(cluster.endpoints().iter().all(|e| e.load() == 0));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (value, sentence) in [
            (json!({"nodes": {"::1": 1}}), "nodes: write the IPv6 address \"::1\" in brackets"),
            (json!({"nodes": {"a:0": 1}}), "nodes: expected host or host:port, got \"a:0\""),
            (json!({"nodes": {"a:b": 1}}), "nodes: expected host or host:port, got \"a:b\""),
            (json!({"pass_host": "rewrite"}), "upstream_host: required when pass_host is rewrite"),
            (json!({"type": "chash"}), "key: required when type is chash"),
            (
                json!({"nodes": {"a": 1}, "tls": {"identity": "svid"}}),
                "tls.spiffe_ids: required with tls.identity: svid; name whom you expect",
            ),
            (
                json!({"nodes": {"a": 1}, "tls": {"spiffe_ids": ["spiffe://d/a"]}}),
                "tls.spiffe_ids: needs tls.identity: svid beside it",
            ),
            (
                json!({"timeout": {"connect": 0, "send": 1, "read": 1}}),
                "timeout.connect: expected seconds above 0, got 0",
            ),
        ] {
            assert_eq!(cluster(value.clone()).unwrap_err().0, sentence, "{value}");
        }
        let v6 = cluster(json!({"nodes": {"[::1]:81": 1}})).unwrap();
        assert_eq!(v6.endpoints()[0].authority(), "[::1]:81");
    }
}
