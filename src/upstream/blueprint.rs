//! `Blueprint`: how the endpoints of a cluster are made of its nodes, whoever names the nodes.

use std::sync::Arc;

use super::{Endpoint, Members, Roster, Security};
use crate::identity::SpiffePattern;
use crate::model::{Balance, Invalid, Node, Scheme, Upstream, UpstreamIdentity};
use crate::mtls::ExpectedPeers;

/// What an upstream says of all its nodes, compiled once.
#[derive(Debug)]
pub(super) struct Blueprint {
    cluster: String,
    balance: Balance,
    default_port: u16,
    is_mesh: bool,
    /// Of nodes without SPIFFE IDs of their own. The error is for such nodes only.
    security: Result<Security, Invalid>,
}

impl Blueprint {
    /// # Errors
    /// The sentence names the field.
    pub(super) fn compile(cluster: &str, upstream: &Upstream) -> Result<Self, Invalid> {
        let secured = matches!(upstream.scheme, Scheme::Https | Scheme::Grpcs);
        let tls = upstream.tls.clone().unwrap_or_default();
        let security = match tls.identity {
            Some(UpstreamIdentity::Svid) => expected(&tls.spiffe_ids).map(Security::Mesh),
            None if !tls.spiffe_ids.is_empty() => return Err(ids_without_identity()),
            None if secured => Ok(Security::Public { verify: tls.verify.unwrap_or(true) }),
            None => Ok(Security::Plain),
        };
        Ok(Self {
            cluster: cluster.to_owned(),
            balance: upstream.balance,
            default_port: if secured { 443 } else { 80 },
            is_mesh: tls.identity.is_some(),
            security,
        })
    }

    /// Whose endpoints these are.
    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Could a node be used that is just a place?
    ///
    /// # Errors
    /// It could not: the upstream does not say whom to expect there.
    pub(super) fn takes_any_node(&self) -> Result<(), Invalid> {
        self.security.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// The members that these nodes make. Endpoints keep their state in `roster` by their places.
    ///
    /// # Errors
    /// A node cannot be used, or there are more than fit.
    pub(super) fn members(&self, nodes: &[Node], roster: &Roster) -> Result<Members, Invalid> {
        let endpoint = |node| self.endpoint(node, roster).map(Arc::new);
        Members::new(nodes.iter().map(endpoint).collect::<Result<_, _>>()?, self.balance)
    }

    fn endpoint(&self, node: &Node, roster: &Roster) -> Result<Endpoint, Invalid> {
        let security = match node.spiffe_ids.is_empty() {
            true => self.security.clone()?,
            false if self.is_mesh => Security::Mesh(expected(&node.spiffe_ids)?),
            false => return Err(ids_without_identity()),
        };
        let port = node.port.unwrap_or(self.default_port);
        let state = roster.state(&self.cluster, &format!("{}:{port}", node.host));
        Ok(Endpoint::new(&node.host, port, node.weight, node.priority, security, state))
    }
}

fn ids_without_identity() -> Invalid {
    Invalid::new("tls.spiffe_ids: needs tls.identity: svid beside it")
}

fn expected(ids: &[String]) -> Result<Arc<ExpectedPeers>, Invalid> {
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
