//! `Cluster`: a compiled upstream, which picks an endpoint for each attempt.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::blueprint::Blueprint;
use super::discovery;
use super::following::{Following, Source};
use super::nodes::{address, nodes};
use super::{Attended, Endpoint, Members, Resilience, Roster};
use crate::model::{Balance, HashOn, Invalid, KeepalivePool, PassHost, Scheme, Timeout, Upstream};
use crate::rt::crypto::digest::{SHA256, digest};

/// The endpoints that this request has tried already.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// Those of changing members: a request sees the same ones to its end.
    members: Option<Arc<Members>>,
    at: SmallVec<[u16; 8]>,
    /// Those that may not be used by now are left out.
    only_usable: bool,
}

impl Tried {
    /// May the endpoint at `at` be chosen?
    pub(super) fn admits(&self, endpoints: &[Arc<Endpoint>], at: u16) -> bool {
        let is_left_out = self.only_usable && !endpoints[at as usize].condition().is_usable();
        !is_left_out && !self.at.contains(&at)
    }

    pub(super) fn only_usable(&mut self, only_usable: bool) {
        self.only_usable = only_usable;
    }

    /// Of those that were added after the first `before` only the one at `which` was really tried.
    pub(super) fn keep_one(&mut self, before: usize, which: usize) {
        let kept = self.at[before + which];
        self.at.truncate(before);
        self.at.push(kept);
    }

    pub(super) fn add(&mut self, at: u16) {
        self.at.push(at);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.at.len()
    }
}

/// What a ring hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The variable of this name.
    Variable(String),
    /// A text with variables.
    Text(String),
}

/// Who serves a cluster.
#[derive(Debug)]
enum Serving {
    /// The nodes that are written there.
    Fixed(Members),
    /// Whoever was found last.
    Changing(Arc<Attended<Following>>),
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
    /// Attempts beyond the first; as many as there are other endpoints when not given.
    retries: Option<u32>,
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
    /// What a ring hashes, read from each exchange.
    pub hash_key: Option<HashKey>,
    serving: Serving,
    /// Checks, ejection, limits; nothing where none are declared.
    resilience: Option<Box<Resilience>>,
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
        let serving = serving(name, upstream, roster)?;
        let timeout = timeout.or(upstream.timeout).unwrap_or_default();
        let cluster = Arc::new(Self {
            name: name.to_owned(),
            scheme: upstream.scheme,
            pass_host: upstream.pass_host,
            host: host_rewrite(upstream)?,
            retries: upstream.retries,
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
            serving,
            resilience: Resilience::compile(name, upstream, roster)?,
        });
        Resilience::enter(&cluster, roster);
        Ok(cluster)
    }

    /// An endpoint that `tried` does not hold yet; it is added there. `key` is what a ring hashes.
    pub fn pick(&self, key: &[u8], tried: &mut Tried) -> Option<Arc<Endpoint>> {
        let key = self.hash_key.as_ref().map(|_| key);
        match &self.serving {
            Serving::Fixed(members) => self.pick_of(members, key, tried).cloned(),
            Serving::Changing(following) => {
                let members =
                    tried.members.get_or_insert_with(|| following.members().load()).clone();
                self.pick_of(&members, key, tried).cloned()
            }
        }
    }

    fn pick_of<'a>(
        &self,
        members: &'a Members,
        key: Option<&[u8]>,
        tried: &mut Tried,
    ) -> Option<&'a Arc<Endpoint>> {
        match &self.resilience {
            None => members.pick(key, tried),
            Some(resilience) => resilience.pick(members, key, tried),
        }
    }

    /// Checks, ejection, budget, hedging and limits, where any are declared.
    pub fn resilience(&self) -> Option<&Resilience> {
        self.resilience.as_deref()
    }

    /// How many attempts beyond the first a request has that picked with this `tried`.
    pub fn retries(&self, tried: &Tried) -> u32 {
        let others = || {
            let all = match (&self.serving, &tried.members) {
                (Serving::Fixed(members), _) => members.endpoints().len(),
                (Serving::Changing(_), members) => {
                    members.as_ref().map_or(0, |members| members.endpoints().len())
                }
            };
            u32::try_from(all.saturating_sub(1)).unwrap_or(u32::MAX)
        };
        self.retries.unwrap_or_else(others)
    }

    /// Waits until somebody has said who serves, and for `within` at most. Whoever is known to have fixed nodes, or has
    /// been found before, does not wait at all: ask [`Cluster::is_waiting`] first, which costs a branch.
    pub async fn found(&self, within: Duration) {
        let Serving::Changing(following) = &self.serving else { return };
        let mut members = following.members().clone();
        let known = async { while !members.load().are_known() && members.changed().await {} };
        // Nobody was found in time: then there is nobody to pick.
        let _ = tokio::time::timeout(within, known).await;
    }

    /// Is there a node by now, whether it can be reached or not?
    pub fn has_nodes(&self) -> bool {
        match &self.serving {
            Serving::Fixed(members) => members.has_nodes(),
            Serving::Changing(following) => following.members().load().has_nodes(),
        }
    }

    /// Has nobody said yet who serves?
    pub fn is_waiting(&self) -> bool {
        match &self.serving {
            Serving::Fixed(_) => false,
            Serving::Changing(following) => !following.members().load().are_known(),
        }
    }

    /// All endpoints by now.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        match &self.serving {
            Serving::Fixed(members) => members.endpoints().to_vec(),
            Serving::Changing(following) => following.members().load().endpoints().to_vec(),
        }
    }

    /// Does the upstream speak HTTP/2?
    pub fn speaks_http2(&self) -> bool {
        matches!(self.scheme, Scheme::Grpc | Scheme::Grpcs)
    }
}

fn serving(name: &str, upstream: &Upstream, roster: &Roster) -> Result<Serving, Invalid> {
    let blueprint = Blueprint::compile(name, upstream, roster)?;
    if upstream.nodes.is_none() {
        // Whoever comes will be just a place.
        blueprint.takes_any_node()?;
    }
    if let Some(source) = discovery::source(upstream, roster)? {
        let following = Following::keep(&key(name, upstream), blueprint, source, roster);
        return Ok(Serving::Changing(following));
    }
    let nodes = nodes(upstream)?;
    if nodes.iter().all(|node| address(&node.host).is_some()) {
        return blueprint.members(&nodes, |_| None, roster).map(Serving::Fixed);
    }
    blueprint.judge(&nodes)?;
    let following =
        Following::keep(&key(name, upstream), blueprint, Source::written(nodes), roster);
    Ok(Serving::Changing(following))
}

/// All that the members of a cluster depend on.
fn key(name: &str, upstream: &Upstream) -> String {
    let text = zeroize::Zeroizing::new(serde_json::to_string(upstream).unwrap_or_default());
    format!("{name} {}", hex::encode(digest(&SHA256, text.as_bytes())))
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

/// The variables that `hash_on: vars` admits, beside those that begin with `arg_`; as in APISIX.
const HASHED: [&str; 9] = [
    "uri",
    "server_name",
    "server_addr",
    "request_uri",
    "remote_port",
    "remote_addr",
    "query_string",
    "host",
    "hostname",
];

fn hash_key(upstream: &Upstream) -> Result<Option<HashKey>, Invalid> {
    if upstream.balance != Balance::Chash {
        return Ok(None);
    }
    let key = || {
        let key = upstream.key.as_deref();
        key.ok_or_else(|| Invalid::new("key: required when type is chash"))
    };
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(word);
    let named = |prefix: &str, what: &str| {
        let key = key()?;
        let name = key.strip_prefix(prefix).filter(|rest| !rest.is_empty()).unwrap_or(key);
        match is_name(name) {
            true => Ok(HashKey::Variable(format!("{prefix}{name}"))),
            false => Err(Invalid(format!("key: expected the name of a {what}, got {key:?}"))),
        }
    };
    let key = match upstream.hash_on {
        HashOn::Vars => {
            let key = key()?;
            if !key.strip_prefix("arg_").is_some_and(is_name) && !HASHED.contains(&key) {
                return Err(Invalid(format!(
                    "key: expected one of {} or arg_NAME when hash_on is vars, got {key:?}",
                    HASHED.join(", ")
                )));
            }
            HashKey::Variable(key.to_owned())
        }
        HashOn::Header => named("http_", "header")?,
        HashOn::Cookie => named("cookie_", "cookie")?,
        HashOn::Consumer => HashKey::Variable("consumer_name".to_owned()),
        HashOn::VarsCombinations => HashKey::Text(key()?.to_owned()),
    };
    Ok(Some(key))
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
        let cluster =
            cluster(json!({"nodes": {"127.0.0.1:1": 2, "127.0.0.1:2": 1, "127.0.0.1:3": 0}}))
                .unwrap();
        // It begins anywhere in a turn, and goes around.
        let seen = picks(&cluster, 6);
        assert!(
            [[1, 2, 1, 1, 2, 1], [2, 1, 1, 2, 1, 1], [1, 1, 2, 1, 1, 2]]
                .iter()
                .any(|turn| seen == turn),
            "{seen:?}"
        );
    }

    #[test]
    fn a_retry_gets_another_node_and_lower_levels_come_last() {
        let cluster = cluster(json!({"nodes": [
            {"host": "::1", "port": 1, "weight": 1}, {"host": "[::1]", "port": 2, "weight": 1},
            {"host": "127.0.0.1", "port": 3, "weight": 1, "priority": -1}]}))
        .unwrap();
        let mut tried = Tried::default();
        let order: Vec<_> =
            std::iter::from_fn(|| cluster.pick(b"", &mut tried).map(|e| e.port)).collect();
        assert_eq!((order.len(), order[2]), (3, 3));
        assert_eq!(cluster.retries(&tried), 2);
    }

    #[test]
    fn a_ring_sends_a_key_to_one_node_and_moves_few_when_a_node_goes() {
        let ring = |nodes: serde_json::Value| {
            cluster(json!({"type": "chash", "key": "uri", "nodes": nodes})).unwrap()
        };
        let three = ring(json!({"127.0.0.1:1": 1, "127.0.0.1:2": 1, "127.0.0.1:3": 1}));
        let two = ring(json!({"127.0.0.1:1": 1, "127.0.0.1:2": 1}));
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
            cluster(json!({"type": "least_conn", "nodes": {"127.0.0.1:1": 1, "127.0.0.1:2": 2}}))
                .unwrap();
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
                json!({"type": "chash", "key": "mqtt_client_id"}),
                "key: expected one of uri, server_name, server_addr, request_uri, remote_port, remote_addr, \
                 query_string, host, hostname or arg_NAME when hash_on is vars, got \"mqtt_client_id\"",
            ),
            (
                json!({"type": "chash", "hash_on": "header", "key": "a b"}),
                "key: expected the name of a header, got \"a b\"",
            ),
            (
                json!({"nodes": {"shop.test": 1}, "tls": {"client_cert": "x"}}),
                "tls.client_cert: needs scheme https or grpcs",
            ),
            (
                json!({"scheme": "https", "tls": {"client_cert": "x"}}),
                "tls.client_key: required with client_cert",
            ),
            (
                json!({"scheme": "https", "tls": {"ca_certs": ["x"]}}),
                "tls.ca_certs: authorities of public certificates: it holds no certificate",
            ),
            (
                json!({"nodes": [{"host": "shop.test", "weight": 1, "spiffe_ids": ["spiffe://d/a"]}]}),
                "tls.spiffe_ids: needs tls.identity: svid beside it",
            ),
            (
                json!({"tls": {"identity": "svid", "spiffe_ids": ["spiffe://d/a"], "verify": false}}),
                "tls.verify: has no place beside tls.identity: svid, which shows our SVID and verifies the peer's",
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

    #[test]
    fn what_a_ring_hashes_is_a_variable_or_several() {
        let variable = |name: &str| HashKey::Variable(name.to_owned());
        for (hash_on, key, expected) in [
            ("vars", Some("uri"), variable("uri")),
            ("vars", Some("arg_a-B"), variable("arg_a-B")),
            ("header", Some("X-User"), variable("http_X-User")),
            ("header", Some("http_x_user"), variable("http_x_user")),
            ("cookie", Some("sid"), variable("cookie_sid")),
            ("consumer", None, variable("consumer_name")),
            ("vars_combinations", Some("$host$uri"), HashKey::Text("$host$uri".to_owned())),
        ] {
            let value = json!({"type": "chash", "hash_on": hash_on, "key": key});
            assert_eq!(cluster(value).unwrap().hash_key, Some(expected), "{hash_on}");
        }
    }

    #[test]
    fn a_port_that_goes_without_saying_is_not_said() {
        let field = |scheme: &str, node: &str| {
            let nodes = json!({ "scheme": scheme, "nodes": { node: 1 } });
            cluster(nodes).unwrap().endpoints()[0].host_field().to_owned()
        };
        assert_eq!(field("http", "10.0.0.1:80"), "10.0.0.1");
        assert_eq!(field("http", "10.0.0.1:443"), "10.0.0.1:443");
        assert_eq!(field("https", "[::1]"), "[::1]");
        assert_eq!(field("grpc", "[::1]:81"), "[::1]:81");
    }
}
