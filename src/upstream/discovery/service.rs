//! `Service`: what an upstream names, as a registry knows it.

use crate::model::{Node, Scheme, Upstream};

/// What an upstream names.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Service {
    /// Its name.
    pub(super) name: String,
    /// Nacos' namespace and group.
    pub(super) namespace: Option<String>,
    pub(super) group: Option<String>,
    /// Nacos: a service may have another port for gRPC.
    pub(super) speaks_grpc: bool,
}

impl Service {
    /// A service that its name alone tells from others.
    pub(super) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// What the upstream names, with all that it says of it.
    pub(super) fn of(name: &str, upstream: &Upstream) -> Self {
        let args = upstream.discovery_args.clone().unwrap_or_default();
        Self {
            name: name.to_owned(),
            namespace: args.namespace_id,
            group: args.group_name,
            speaks_grpc: matches!(upstream.scheme, Scheme::Grpc | Scheme::Grpcs),
        }
    }
}

/// A node that a registry told of. Without a port it is the scheme's.
pub(super) fn node(host: impl Into<String>, port: Option<u16>, weight: u32) -> Node {
    Node { host: host.into(), port, weight, priority: 0, spiffe_ids: Vec::new(), metadata: None }
}

/// Leaves out what cannot be a host: it would stand in `Host` fields.
pub(super) fn sound(mut nodes: Vec<Node>) -> Vec<Node> {
    let is_host = |host: &str| {
        !host.is_empty()
            && host.len() <= 255
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.[]:".contains(&b))
    };
    nodes.retain(|node| {
        let is_sound = is_host(&node.host);
        if !is_sound {
            tracing::warn!(host = ?node.host, "a registry names a node that is no host; it is left out");
        }
        is_sound
    });
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_host_is_left_out() {
        let hosts = ["10.0.0.1", "a.test", "::1", "[::1]", "", "a b", "a\r\nx: y", "a/b", "a@b"];
        let nodes = sound(hosts.map(|host| node(host, None, 1)).into());
        let left: Vec<&str> = nodes.iter().map(|node| &*node.host).collect();
        assert_eq!(left, ["10.0.0.1", "a.test", "::1", "[::1]"]);
    }
}
