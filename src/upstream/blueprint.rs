//! `Blueprint`: how the endpoints of a cluster are made of its nodes, whoever names the nodes.

use std::net::IpAddr;
use std::sync::Arc;

use super::endpoint::EndpointParts;
use super::nodes::address;
use super::origin_tls::public_tls;
use super::{Endpoint, Members, Roster, Security};
use crate::identity::SpiffePattern;
use crate::model::{
    Balance, Invalid, Node, ProxyProtocol, Scheme, Upstream, UpstreamIdentity, UpstreamTls,
};
use crate::mtls::ExpectedPeers;

/// What an upstream says of all its nodes, compiled once.
#[derive(Debug)]
pub(super) struct Blueprint {
    cluster: String,
    balance: Balance,
    default_port: u16,
    is_mesh: bool,
    introduction: Option<ProxyProtocol>,
    /// Of nodes without SPIFFE IDs of their own. The error is for such nodes only.
    security: Result<Security, Invalid>,
}

impl Blueprint {
    /// # Errors
    /// The sentence names the field.
    pub(super) fn compile(
        cluster: &str,
        upstream: &Upstream,
        roster: &Roster,
    ) -> Result<Self, Invalid> {
        let secured = matches!(upstream.scheme, Scheme::Https | Scheme::Grpcs);
        let none = UpstreamTls::default();
        let tls = upstream.tls.as_ref().unwrap_or(&none);
        let security = match tls.identity {
            Some(UpstreamIdentity::Svid) => {
                only_our_identity(tls)?;
                expected(&tls.spiffe_ids).map(Security::Mesh)
            }
            None if !tls.spiffe_ids.is_empty() => return Err(ids_without_identity()),
            None if secured => Ok(Security::Public(public_tls(tls, roster)?)),
            None => {
                only_with_tls(tls)?;
                Ok(Security::Plain)
            }
        };
        Ok(Self {
            cluster: cluster.to_owned(),
            balance: upstream.balance,
            default_port: if secured { 443 } else { 80 },
            is_mesh: tls.identity.is_some(),
            introduction: upstream.proxy_protocol,
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

    /// Can these nodes be used, wherever their names lead?
    ///
    /// # Errors
    /// One of them cannot, or there are more than fit.
    pub(super) fn judge(&self, nodes: &[Node]) -> Result<(), Invalid> {
        Members::judge_count(nodes.len())?;
        nodes.iter().try_for_each(|node| self.security(node).map(drop))
    }

    /// The members that these nodes make. `resolved` knows the addresses of names; names that it does not know make none.
    /// Endpoints keep their state in `roster` by their places.
    ///
    /// # Errors
    /// A node cannot be used, or there are more than fit.
    pub(super) fn members(
        &self,
        nodes: &[Node],
        mut resolved: impl FnMut(&str) -> Option<Arc<[IpAddr]>>,
        roster: &Roster,
    ) -> Result<Members, Invalid> {
        let mut endpoints = Vec::with_capacity(nodes.len());
        for node in nodes {
            let security = self.security(node)?;
            match address(&node.host) {
                Some(address) => endpoints.push(self.endpoint(node, address, security, roster)),
                None => endpoints.extend(
                    resolved(&node.host)
                        .iter()
                        .flat_map(|addresses| addresses.iter())
                        .map(|address| self.endpoint(node, *address, security.clone(), roster)),
                ),
            }
        }
        let members = Members::new(endpoints.into(), self.balance)?;
        Ok(members.of_nodes(!nodes.is_empty()))
    }

    fn security(&self, node: &Node) -> Result<Security, Invalid> {
        match node.spiffe_ids.is_empty() {
            true => self.security.clone(),
            false if self.is_mesh => expected(&node.spiffe_ids).map(Security::Mesh),
            false => Err(ids_without_identity()),
        }
    }

    fn endpoint(
        &self,
        node: &Node,
        address: IpAddr,
        security: Security,
        roster: &Roster,
    ) -> Arc<Endpoint> {
        let port = node.port.unwrap_or(self.default_port);
        let place = format!("{} {address} {port}", node.host);
        Arc::new(Endpoint::new(EndpointParts {
            host: &node.host,
            address,
            port,
            weight: node.weight,
            priority: node.priority,
            security,
            introduction: self.introduction,
            default_port: self.default_port,
            is_timed: self.balance == Balance::Ewma,
            state: roster.state(&self.cluster, &place),
        }))
    }
}

fn ids_without_identity() -> Invalid {
    Invalid::new("tls.spiffe_ids: needs tls.identity: svid beside it")
}

/// What else could be shown or believed has no place where identities are.
fn only_our_identity(tls: &UpstreamTls) -> Result<(), Invalid> {
    let given = [
        ("tls.client_cert", tls.client_cert.is_some()),
        ("tls.client_key", tls.client_key.is_some()),
        ("tls.client_cert_id", tls.client_cert_id.is_some()),
        ("tls.ca_certs", !tls.ca_certs.is_empty()),
        ("tls.verify", tls.verify == Some(false)),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(Invalid(format!(
            "{field}: has no place beside tls.identity: svid, which shows our SVID and verifies the peer's"
        ))),
        None => Ok(()),
    }
}

fn only_with_tls(tls: &UpstreamTls) -> Result<(), Invalid> {
    let given = [
        ("tls.client_cert", tls.client_cert.is_some()),
        ("tls.client_key", tls.client_key.is_some()),
        ("tls.client_cert_id", tls.client_cert_id.is_some()),
        ("tls.ca_certs", !tls.ca_certs.is_empty()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(Invalid(format!("{field}: needs scheme https or grpcs"))),
        None => Ok(()),
    }
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
