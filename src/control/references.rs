//! What a resource names: it must be there, and be what it is named for.

use serde_json::Value;

use super::answer::Answer;
use super::{ControlPlane, PluginPart};
use crate::identity::DeclaredDomain;
use crate::model::{Body, DomainTrust, Id, Kind, Resource, SslType, StreamRoute, Upstream};

/// The other trust domain whose bundle verifies the endpoint's server.
fn rests_on(declared: &DomainTrust) -> Option<Id> {
    let domain = declared.id.as_ref()?.as_str().parse().ok()?;
    let declared = DeclaredDomain::new(domain, declared).ok()?;
    Id::parse(declared.rests_on()?.as_str()).ok()
}

impl ControlPlane {
    /// The resources that this one names; all of them must exist.
    pub(super) async fn references(&self, own: &Id, body: &Body) -> Result<Vec<Resource>, Answer> {
        let mut found = Vec::new();
        match body {
            Body::Route(route) => {
                self.refer(Kind::Upstreams, route.upstream_id.as_ref(), &mut found).await?;
                self.refer(Kind::Services, route.service_id.as_ref(), &mut found).await?;
                self.refer(Kind::PluginConfigs, route.plugin_config_id.as_ref(), &mut found)
                    .await?;
                let beyond = found.iter().find_map(|resource| match &resource.body {
                    Body::Service(service) => service.upstream_id.clone(),
                    _ => None,
                });
                // The service was accepted with its upstream; if that was deleted by force, the trial tells.
                if let Some(id) = beyond
                    && let Some(resource) = self.resource(Kind::Upstreams, &id).await?
                {
                    found.push(resource);
                }
                self.refer_to_client(route.upstream.as_deref(), &mut found).await?;
            }
            Body::Service(service) => {
                self.refer(Kind::Upstreams, service.upstream_id.as_ref(), &mut found).await?;
                self.refer_to_client(service.upstream.as_deref(), &mut found).await?;
            }
            Body::Upstream(upstream) => self.refer_to_client(Some(upstream), &mut found).await?,
            Body::Consumer(consumer) => {
                self.refer(Kind::ConsumerGroups, consumer.group_id.as_ref(), &mut found).await?;
            }
            Body::StreamRoute(route) => {
                self.refer(Kind::Upstreams, route.upstream_id.as_ref(), &mut found).await?;
                self.refer(Kind::Services, route.service_id.as_ref(), &mut found).await?;
                self.refer_to_superior(own, route).await?;
            }
            Body::TrustDomain(declared) => {
                // Our own trust domain need not be declared: the trial knows which one that is.
                if let Some(id) = rests_on(declared)
                    && let Some(resource) = self.resource(Kind::TrustDomains, &id).await?
                {
                    found.push(resource);
                }
            }
            _ => {}
        }
        Ok(found)
    }

    async fn refer(
        &self,
        kind: Kind,
        id: Option<&Id>,
        found: &mut Vec<Resource>,
    ) -> Result<(), Answer> {
        let Some(id) = id else { return Ok(()) };
        let Some(resource) = self.resource(kind, id).await? else {
            let name = kind.singular();
            return Err(Answer::bad(format!(
                "failed to fetch {name} info by {name} id [{id}], response code: 404"
            )));
        };
        found.push(resource);
        Ok(())
    }

    /// The certificate that an upstream shows must be one to show.
    async fn refer_to_client(
        &self,
        upstream: Option<&Upstream>,
        found: &mut Vec<Resource>,
    ) -> Result<(), Answer> {
        let tls = upstream.and_then(|upstream| upstream.tls.as_ref());
        let Some(id) = tls.and_then(|tls| tls.client_cert_id.as_ref()) else { return Ok(()) };
        self.refer(Kind::Ssls, Some(id), found).await?;
        match found.last().map(|resource| &resource.body) {
            Some(Body::Ssl(ssl)) if ssl.ssl_type == SslType::Client => Ok(()),
            _ => Err(Answer::bad(format!(
                "failed to fetch ssl info by ssl id [{id}], wrong ssl type"
            ))),
        }
    }

    /// A stream route may be a part of another one, of the same protocol.
    async fn refer_to_superior(&self, own: &Id, route: &StreamRoute) -> Result<(), Answer> {
        let Some(protocol) = &route.protocol else { return Ok(()) };
        let Some(id) = &protocol.superior_id else { return Ok(()) };
        if id == own {
            return Err(Answer::bad("stream route can not set itself as superior_id"));
        }
        let Some(superior) = self.resource(Kind::StreamRoutes, id).await? else {
            return Err(Answer::bad(format!(
                "failed to fetch stream routes[{id}], response code: 404"
            )));
        };
        let Body::StreamRoute(superior) = superior.body else { return Ok(()) };
        match superior.protocol {
            Some(other) if other.name != protocol.name => Err(Answer::bad(format!(
                "protocol mismatch: subordinate protocol [{}] does not match superior protocol [{}]",
                protocol.name, other.name
            ))),
            _ => Ok(()),
        }
    }

    async fn resource(&self, kind: Kind, id: &Id) -> Result<Option<Resource>, Answer> {
        let Some(stored) = self.store.get(&self.key(kind, id)).await? else { return Ok(None) };
        let body = Body::parse(kind, &stored.value).map_err(|why| {
            let name = kind.singular();
            Answer::bad(format!("failed to fetch {name} info by {name} id [{id}]: {why}"))
        })?;
        Ok(Some(Resource { kind, id: id.clone(), revision: stored.modified, body }))
    }

    pub(super) async fn add_metadata(
        &self,
        value: &Value,
        found: &mut Vec<Resource>,
    ) -> Result<(), Answer> {
        let plugins = value.get("plugins").and_then(Value::as_object);
        for (name, _) in plugins.into_iter().flatten() {
            let has_metadata = self
                .plugins
                .find(name)
                .is_some_and(|plugin| plugin.schema(PluginPart::Metadata).is_some());
            if has_metadata
                && let Ok(id) = Id::parse(name)
                && let Some(resource) = self.resource(Kind::PluginMetadata, &id).await?
            {
                found.push(resource);
            }
        }
        Ok(())
    }
}
