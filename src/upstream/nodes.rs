//! The nodes of an upstream in either of APISIX's two forms, as one list.

use std::net::IpAddr;

use crate::model::{Invalid, Node, Nodes, Upstream};

/// The address that a node's host is, brackets or not; `None` for names.
pub(super) fn address(host: &str) -> Option<IpAddr> {
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.parse().ok()
}

/// The nodes as they are written.
///
/// # Errors
/// A place cannot be read.
pub(super) fn nodes(upstream: &Upstream) -> Result<Vec<Node>, Invalid> {
    let map = match &upstream.nodes {
        None => return Ok(Vec::new()),
        Some(Nodes::List(list)) => return Ok(list.clone()),
        Some(Nodes::Map(map)) => map,
    };
    map.iter()
        .map(|(place, weight)| {
            let (host, port) = split_place(place)?;
            Ok(Node {
                host,
                port,
                weight: *weight,
                priority: 0,
                spiffe_ids: Vec::new(),
                metadata: None,
            })
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
