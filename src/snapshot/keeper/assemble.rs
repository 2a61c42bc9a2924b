//! Putting what changed together with what it refers to, and publishing the whole.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Applied, Keeper, RouteSlot, Timed, Work};
use crate::identity::SpiffeId;
use crate::model::{Id, Kind, Listeners, Recording, Revision, Route, Service, Status, Upstream};
use crate::pipeline::{
    Chain, Exchange, Fault, Flow, Hooks, Link, Rewrite, RouteInfo, Side, Target,
};
use crate::policy::{Modes, Policy};
use crate::snapshot::compile::{hash_template, host_names};
use crate::snapshot::compiled::{Broken, CompiledRoute, MergedChains, Snapshot};
use crate::snapshot::merge;
use crate::upstream::Cluster;

impl Keeper {
    /// Puts together what changed and publishes it.
    pub(super) fn assemble(&mut self, mut work: Work, revision: Revision) -> Applied {
        let mut restored = Vec::new();
        for name in &work.people {
            let person = self.person(name);
            Arc::make_mut(&mut self.people).set_person(name, person);
        }
        for id in &work.routes {
            self.assemble_route(id);
        }
        if work.policies {
            let settled = self.policies.settle();
            work.rejected.extend(settled.rejected);
            restored = settled.restored;
            if settled.is_changed {
                let (policies, me) = (self.policies.in_force(), identity_of(self.me.as_ref()));
                self.policy = Arc::new(Policy::compile(policies, &me).0);
            }
        }
        if work.modes {
            let modes =
                self.declared_modes.iter().map(|(id, (revision, body))| (id, *revision, &**body));
            self.modes = Arc::new(Modes::compile(modes, &identity_of(self.me.as_ref())).0);
        }
        self.current = Arc::new(Snapshot {
            revision,
            policy: self.policy.clone(),
            modes: self.modes.clone(),
            sites: self.ssls.sites().clone(),
            consumers: self.people.clone(),
            global: self.global(),
            path_rules: self.router.path_rules(),
            routers: self.routers.clone(),
            people: self.people.clone(),
            named: Arc::new(self.named.found(|id| self.named_upstream(id))),
        });
        Applied { snapshot: self.current.clone(), rejected: work.rejected, restored }
    }

    /// All global rules as one chain. APISIX drops a plugin that is in two of them; here both run: to drop one would open a door.
    fn global(&self) -> Chain {
        let mut links: Vec<Link> = Vec::new();
        for (id, slot) in &self.global_rules {
            match &slot.compiled {
                Ok(of_rule) => links.extend(of_rule.values().cloned()),
                Err(reason) => links.push(closed(format!("global rule {id}: {reason}"))),
            }
        }
        Chain::new(links)
    }

    fn assemble_route(&mut self, id: &Id) {
        let Some(mut slot) = self.routes.remove(id) else { return };
        self.take_from_door(id, slot.placed.take().as_ref());
        let mut references = Vec::new();
        let (compiled, timed) = self.compiled_route(id, &slot, &mut references);
        slot.timed = timed.map(Box::new);
        let old = std::mem::replace(&mut slot.refers_to, references.into());
        self.forget_references(id, &old);
        for reference in slot.refers_to.iter() {
            self.users.entry(reference.clone()).or_default().insert(id.clone());
        }
        let service = self.service_of(&slot.body);
        let workshop = self.workshop(&self.kept, &self.roster);
        let place = match &slot.broken {
            None => workshop.place(&slot.body, service).ok(),
            Some(_) => None,
        };
        let place = place.or_else(|| workshop.readable_place(&slot.body, service));
        if let Some(place) = place.filter(|_| self.applies(&slot)) {
            let door = slot.body.listener();
            slot.placed = Some((door, compiled.info.clone()));
            self.routers.of_mut(door).insert(self.router.http, id, &place, Arc::new(compiled));
        }
        self.routes.insert(id.clone(), slot);
    }

    fn service_of(&self, route: &Route) -> Option<&Service> {
        let id = route.service_id.as_ref()?;
        self.services.get(id).map(|slot| &*slot.body)
    }

    /// Is the route in force, and for this workload?
    fn applies(&self, slot: &RouteSlot) -> bool {
        let declared = slot.body.workload_selector.as_ref();
        let for_all = declared.is_none_or(|selector| selector.spiffe_ids.is_empty());
        // Patterns that cannot be read leave none: a broken route then stands everywhere, and refuses.
        let unreadable = slot.broken.is_some() && slot.parts.workloads.is_empty();
        let for_me = || {
            let me = self.me.as_ref();
            me.is_some_and(|me| slot.parts.workloads.iter().any(|pattern| pattern.matches(me)))
        };
        slot.body.status == Status::Enabled && (for_all || unreadable || for_me())
    }

    fn compiled_route(
        &self,
        id: &Id,
        slot: &RouteSlot,
        references: &mut Vec<(Kind, Id)>,
    ) -> (CompiledRoute, Option<Timed>) {
        let route = &*slot.body;
        let mut broken = slot.broken.as_ref().map(|why| Broken::new(503, format!("route: {why}")));
        let mut note = |found: Broken| {
            if broken.is_none() {
                broken = Some(found);
            }
        };
        // As in APISIX, a missing plugin config is found before a missing service.
        let config = route.plugin_config_id.as_ref().and_then(|config| {
            references.push((Kind::PluginConfigs, config.clone()));
            match self.plugin_configs.get(config) {
                None => note(Broken::new(503, format!("plugin config {config} does not exist"))),
                Some(slot) => match &slot.compiled {
                    Ok(links) => return Some(links),
                    Err(why) => note(Broken::new(503, format!("plugin config {config}: {why}"))),
                },
            }
            None
        });
        let service = route.service_id.as_ref().and_then(|service| {
            references.push((Kind::Services, service.clone()));
            match self.services.get(service) {
                None => note(Broken::new(404, format!("service {service} does not exist"))),
                Some(slot) => match &slot.compiled {
                    Ok(parts) => return Some((service, &slot.body, parts)),
                    Err(why) => note(Broken::new(503, format!("service {service}: {why}"))),
                },
            }
            None
        });
        let of_service = service.map(|(_, _, parts)| &parts.plugins);
        let plugins = merge::of_route(&slot.parts.plugins, config, of_service);
        let chain = &plugins.chain;

        let mut timed = None;
        let target = if let Some(upstream) = &route.upstream_id {
            references.push((Kind::Upstreams, upstream.clone()));
            self.upstream(upstream, slot, &mut timed)
        } else if let Some(cluster) = &slot.parts.cluster {
            Ok(cluster.clone())
        } else if let Some((_, service, parts)) = service {
            if let Some(upstream) = &service.upstream_id {
                references.push((Kind::Upstreams, upstream.clone()));
                self.upstream(upstream, slot, &mut timed)
            } else if let (Some(upstream), Some(cluster)) = (&service.upstream, &parts.cluster) {
                self.in_time(upstream, cluster, slot, &mut timed)
            } else {
                Err(Broken::new(503, "neither the route nor its service has an upstream"))
            }
        } else {
            Err(Broken::new(503, "the route has no upstream"))
        };
        let (cluster, no_cluster) = match target {
            Ok(cluster) => (Some(cluster), None),
            Err(broken) => (None, Some(broken)),
        };
        let service_body = service.map(|(_, body, _)| &**body);
        let recording = route.audit.or_else(|| service_body.and_then(|service| service.audit));
        let mut labels = service_body.map(|service| service.labels.clone()).unwrap_or_default();
        labels.extend(route.labels.iter().map(|(name, value)| (name.clone(), value.clone())));
        let info = RouteInfo {
            id: id.clone(),
            name: route.name.clone(),
            labels,
            service: route.service_id.clone(),
            upstream: match &route.upstream {
                Some(_) if route.upstream_id.is_none() => None,
                _ => route
                    .upstream_id
                    .clone()
                    .or_else(|| service_body.and_then(|service| service.upstream_id.clone())),
            },
            // Where policy does not decide there is nothing to record; a route that asks for it there itself is refused.
            must_record: recording == Some(Recording::Required)
                && route.listener() != Listeners::Outbound,
            service_name: service_body.and_then(|service| service.name.clone()),
            paths: route.paths().iter().map(str::to_owned).collect(),
            hosts: host_names(route, service_body),
            plugins: chain.plugins().to_vec(),
        };
        let max_age = route
            .max_config_age
            .or_else(|| service_body.and_then(|service| service.max_config_age));
        let websocket = route
            .enable_websocket
            .or_else(|| service_body.and_then(|service| service.enable_websocket));
        // Judged when the upstream was: there every key is one.
        let hash_key = cluster.as_deref().and_then(|cluster| hash_template(cluster).ok().flatten());
        let compiled = CompiledRoute {
            hash_key,
            info: Arc::new(info),
            revision: slot.revision,
            has_auth: chain.authenticates(),
            chain: plugins.chain,
            cluster,
            websocket: websocket.unwrap_or(false),
            connect: route.enable_connect == Some(true),
            links: plugins.links,
            merged: MergedChains::default(),
            conditions: slot.parts.conditions.clone(),
            broken: broken.map(Box::new),
            no_cluster: no_cluster.map(Box::new),
            stale: max_age.map(|limit| self.freshness.limited_to(limit)),
        };
        (compiled, timed)
    }

    /// An upstream that a plugin names.
    fn named_upstream(&self, id: &Id) -> Result<Arc<Target>, Broken> {
        let Some(slot) = self.upstreams.get(id) else {
            return Err(Broken::new(500, format!("upstream {id} does not exist")));
        };
        let cluster = slot.compiled.as_ref();
        let cluster = cluster.map_err(|why| Broken::new(503, format!("upstream {id}: {why}")))?;
        let target = Target::of(cluster.clone());
        target.map(Arc::new).map_err(|why| Broken::new(503, format!("upstream {id}: {why}")))
    }

    /// An upstream's cluster, with the route's time limits where it has some.
    fn upstream(
        &self,
        id: &Id,
        route: &RouteSlot,
        timed: &mut Option<Timed>,
    ) -> Result<Arc<Cluster>, Broken> {
        let Some(slot) = self.upstreams.get(id) else {
            return Err(Broken::new(502, format!("upstream {id} does not exist")));
        };
        match &slot.compiled {
            Ok(cluster) => self.in_time(&slot.body, cluster, route, timed),
            Err(why) => Err(Broken::new(503, format!("upstream {id}: {why}"))),
        }
    }

    /// The shared cluster, or one with the route's own time limits, which stays as long as what it is made of.
    fn in_time(
        &self,
        upstream: &Upstream,
        shared: &Arc<Cluster>,
        route: &RouteSlot,
        timed: &mut Option<Timed>,
    ) -> Result<Arc<Cluster>, Broken> {
        let Some(timeout) = route.body.timeout else { return Ok(shared.clone()) };
        let same = |known: &&Timed| Arc::ptr_eq(&known.source, shared) && known.timeout == timeout;
        let cluster = match route.timed.as_deref().filter(same) {
            Some(known) => known.cluster.clone(),
            None => self
                .workshop(&self.kept, &self.roster)
                .cluster(&shared.name, upstream, Some(timeout))
                .map_err(|error| Broken::new(503, format!("{}: {error}", shared.name)))?,
        };
        *timed = Some(Timed { source: shared.clone(), timeout, cluster: cluster.clone() });
        Ok(cluster)
    }
}

/// Whom policies are compiled for.
pub(super) fn identity_of(me: Option<&SpiffeId>) -> SpiffeId {
    me.cloned().unwrap_or_else(|| {
        "spiffe://nobody.invalid".parse().expect("a trust domain's own name is a SPIFFE ID")
    })
}

/// Stands in the place of a global rule that cannot be compiled: nothing passes it.
struct Closed(String);

#[async_trait]
impl Rewrite for Closed {
    async fn rewrite(&self, _: &mut Exchange) -> Result<Flow, Fault> {
        Err(Fault {
            side: Side::Gateway,
            status: 503,
            sentence: "a global rule is broken",
            cause: self.0.clone(),
            retry: false,
        })
    }
}

fn closed(reason: String) -> Link {
    Link::new("global-rule", i32::MAX, None, Hooks::of(Closed(reason)).rewrite().done())
        .expect("without _meta there is nothing that could be wrong")
}
