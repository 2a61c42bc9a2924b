//! `Keeper`: takes changes, compiles what they touch, and makes the next snapshot. No I/O.

mod assemble;
mod declared;
mod policies;
#[cfg(test)]
mod rebuild;
#[cfg(test)]
mod tests;
mod trial;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::Value;

use super::client_certificates::named;
use super::compile::{RouteParts, ServiceParts, Workshop};
use super::compiled::{Broken, Routers, Snapshot};
use super::consumers::{Consumers, Held, Person, split_credential};
use super::freshness::Freshness;
use super::merge::{Links, Plugins};
use super::named::Named;
use super::router::{Place, RouterSettings};
use super::secrets::{Clear, Secrets};
use super::ssls::Ssls;
use crate::identity::SpiffeId;
use crate::model::{
    self, Body, Change, Id, IdentityMode, Invalid, Kind, Listeners, PluginConfig, PluginSet,
    Rejected, Resource, Revision, Route, SecretReference, Service, SslType, Timeout, Upstream,
};
use crate::mtls::EdgeTls;
use crate::observe::Registry;
use crate::pipeline::{CacheZones, Chain, Consumer, Entry, Kept, PathRules, RouteInfo};
use crate::policy::{self, Modes, Policy, PolicyKeys};
use crate::upstream::{Cluster, Roster};

use policies::Policies;

pub use declared::Declared;

/// What came of some changes.
#[derive(Debug)]
pub struct Applied {
    /// The next revision of everything.
    pub snapshot: Arc<Snapshot>,
    /// What was not taken, and why. Its previous version stays in force; where there is none, its place refuses.
    pub rejected: Vec<Rejected>,
    /// What was not taken earlier and is in force now, although it did not change itself.
    pub restored: Vec<(Kind, Id)>,
}

/// Holds what is declared, compiled, and makes snapshots of it.
///
/// A change recompiles the resource itself; whatever refers to it is only put together anew. What cannot be compiled keeps
/// its previous version. Where there is none, nothing passes unprotected: a route answers 503, a global rule makes all
/// routes answer 503, a consumer does not exist, a policy denies. Identity policies come into force together, or not at all.
pub struct Keeper {
    table: HashMap<&'static str, &'static Entry>,
    me: Option<SpiffeId>,
    router: RouterSettings,
    metrics: Registry,
    kept: Kept,
    roster: Roster,
    secrets: Secrets,
    /// The upstreams that plugins name.
    named: Named,
    freshness: Arc<Freshness>,
    metadata: BTreeMap<Id, Arc<Value>>,
    upstreams: BTreeMap<Id, Slot<Upstream, Arc<Cluster>>>,
    services: BTreeMap<Id, Slot<Service, ServiceParts>>,
    plugin_configs: BTreeMap<Id, Slot<PluginConfig, Plugins>>,
    groups: BTreeMap<Id, Slot<PluginConfig, Arc<Links>>>,
    global_rules: BTreeMap<Id, Slot<model::GlobalRule, Links>>,
    consumers: BTreeMap<Id, Slot<model::Consumer, ConsumerParts>>,
    credentials: BTreeMap<Id, Slot<model::Credential, Vec<Held>>>,
    policies: Policies,
    declared_modes: BTreeMap<Id, (Revision, Box<IdentityMode>)>,
    ssls: Ssls,
    routes: BTreeMap<Id, Box<RouteSlot>>,
    /// Which routes refer to a resource, whether it exists or not.
    users: HashMap<(Kind, Id), BTreeSet<Id>>,
    routers: Routers,
    people: Arc<Consumers>,
    policy: Arc<Policy>,
    modes: Arc<Modes>,
    current: Arc<Snapshot>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper")
            .field("revision", &self.current.revision)
            .field("routes", &self.routes.len())
            .finish_non_exhaustive()
    }
}

/// What a consumer brings: plugins and credentials.
type ConsumerParts = (Arc<Links>, Vec<Held>);

/// A resource and what was made of it. The error is why it does not compile and no previous version did.
struct Slot<B, C> {
    revision: Revision,
    body: Arc<B>,
    compiled: Result<C, String>,
}

/// The cluster of a route with time limits of its own, and what it was compiled from.
struct Timed {
    source: Arc<Cluster>,
    timeout: Timeout,
    cluster: Arc<Cluster>,
}

struct RouteSlot {
    revision: Revision,
    body: Arc<Route>,
    parts: RouteParts,
    /// Why the parts are in name only.
    broken: Option<String>,
    timed: Option<Box<Timed>>,
    /// At which door it stands, and under which hosts and paths.
    placed: Option<(Listeners, Arc<RouteInfo>)>,
    refers_to: Box<[(Kind, Id)]>,
}

/// What an `apply` has found out so far.
#[derive(Default)]
struct Work {
    rejected: Vec<Rejected>,
    /// Routes to be put together anew.
    routes: BTreeSet<Id>,
    /// Plugins whose metadata changed.
    plugins: BTreeSet<Id>,
    /// Names of consumers to be put together anew.
    people: BTreeSet<String>,
    policies: bool,
    modes: bool,
    /// Certificates for upstreams that are others now.
    client_certificates: BTreeSet<Id>,
}

impl Work {
    fn reject(&mut self, kind: Kind, id: &Id, revision: Revision, error: &Invalid) {
        self.rejected.push(Rejected { kind, id: id.clone(), revision, reason: error.0.clone() });
    }
}

/// Puts a new version into its slot, or keeps the previous one where the new one does not compile. Tells whether the slot changed.
fn settle<B, C>(
    slots: &mut BTreeMap<Id, Slot<B, C>>,
    work: &mut Work,
    (kind, id, revision): (Kind, &Id, Revision),
    body: Arc<B>,
    compiled: Result<C, Invalid>,
) -> bool {
    let compiled = match compiled {
        Ok(compiled) => Ok(compiled),
        Err(error) => {
            work.reject(kind, id, revision, &error);
            if slots.get(id).is_some_and(|slot| slot.compiled.is_ok()) {
                return false;
            }
            Err(error.0)
        }
    };
    slots.insert(id.clone(), Slot { revision, body, compiled });
    true
}

impl Keeper {
    /// Nothing declared yet. `me` is the workload that this data plane serves; without one, routes that name workloads do not
    /// apply and policies are compiled for nobody. Plugins count in `metrics`.
    pub fn new(table: &'static [Entry], me: Option<SpiffeId>, metrics: Registry) -> Self {
        let policy = Arc::new(Policy::compile([], &assemble::identity_of(me.as_ref())).0);
        let people = Arc::new(Consumers::default());
        let current = Arc::new(Snapshot {
            revision: 0,
            policy: policy.clone(),
            modes: Arc::default(),
            sites: Arc::default(),
            consumers: people.clone(),
            global: Chain::default(),
            path_rules: PathRules::default(),
            routers: Routers::default(),
            people: people.clone(),
            named: Arc::default(),
        });
        Self {
            table: table.iter().map(|entry| (entry.name, entry)).collect(),
            me,
            router: RouterSettings::default(),
            metrics,
            kept: Kept::default(),
            roster: Roster::default(),
            secrets: Secrets::default(),
            named: Named::default(),
            freshness: Arc::default(),
            metadata: BTreeMap::new(),
            upstreams: BTreeMap::new(),
            services: BTreeMap::new(),
            plugin_configs: BTreeMap::new(),
            groups: BTreeMap::new(),
            global_rules: BTreeMap::new(),
            consumers: BTreeMap::new(),
            credentials: BTreeMap::new(),
            policies: Policies::default(),
            declared_modes: BTreeMap::new(),
            ssls: Ssls::default(),
            routes: BTreeMap::new(),
            users: HashMap::new(),
            routers: Routers::default(),
            people,
            policy,
            modes: Arc::default(),
            current,
        }
    }

    /// With another kind of router, or other readings of paths. Set before anything is applied.
    #[must_use]
    pub fn with_router(mut self, router: RouterSettings) -> Self {
        self.router = router;
        self.apply(Vec::new(), 0);
        self
    }

    /// With upstreams that are attended to. Set before anything is applied.
    #[must_use]
    pub fn with_roster(self, roster: Roster) -> Self {
        Self { roster, ..self }
    }

    /// With what public clients are offered. Set before anything is applied.
    #[must_use]
    pub fn with_edge(self, tls: Arc<EdgeTls>) -> Self {
        Self { ssls: Ssls::new(tls), ..self }
    }

    /// With these zones for answers that plugins store. Set before anything is applied.
    #[must_use]
    pub fn with_cache_zones(self, zones: CacheZones) -> Self {
        Self { kept: self.kept.clone().with_zones(zones), ..self }
    }

    /// With somebody who knows what references to secrets stand for. Without, whatever bears one is refused.
    #[must_use]
    pub fn with_secrets(self, clear: Clear) -> Self {
        Self { secrets: Secrets::Known(clear), ..self }
    }

    /// For judging what others will carry out: what references to secrets stand for is taken to fit.
    #[must_use]
    pub fn trusting_references(self) -> Self {
        Self { secrets: Secrets::Trusted, ..self }
    }

    /// With policies that one of these keys must have signed. Set before anything is applied.
    #[must_use]
    pub fn with_policy_keys(self, keys: PolicyKeys) -> Self {
        Self { policies: Policies::trusting(keys), ..self }
    }

    /// With a feed that may fall silent: routes may limit how old what they were made of may be. Set before anything is applied.
    #[must_use]
    pub fn with_freshness(self, freshness: Arc<Freshness>) -> Self {
        Self { freshness, ..self }
    }

    /// The newest snapshot.
    pub fn current(&self) -> &Arc<Snapshot> {
        &self.current
    }

    fn workshop<'a>(&'a self, kept: &'a Kept, roster: &'a Roster) -> Workshop<'a> {
        Workshop {
            table: &self.table,
            metadata: &self.metadata,
            metrics: &self.metrics,
            kept,
            router: self.router.http,
            roster,
            ssls: &self.ssls,
            secrets: &self.secrets,
            named: &self.named,
        }
    }

    /// Takes changes in, whatever their order, and makes the next snapshot.
    pub fn apply(&mut self, changes: Vec<Change>, revision: Revision) -> Applied {
        let mut work = Work::default();
        let mut changes = last_of_each(changes);
        // Referenced kinds first, so that what refers to them finds their new version.
        let rank = |change: &Change| {
            let kind = kind_of(change).0;
            Kind::ALL.iter().position(|other| *other == kind)
        };
        changes.sort_by_key(rank);
        let (metadata, changes): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| kind_of(change).0 == Kind::PluginMetadata);
        for change in metadata {
            self.take(change, &mut work);
        }
        self.recompile_carriers(&mut work);
        // A key that moves from one consumer to another in one batch is no clash.
        for change in &changes {
            let (kind, id) = kind_of(change);
            self.release_keys(kind, id);
        }
        for change in changes {
            self.take(change, &mut work);
        }
        self.recompile_clients(&mut work);
        self.assemble(work, revision)
    }

    fn take(&mut self, change: Change, work: &mut Work) {
        match change {
            Change::Put(Resource { kind, id, revision, body }) => {
                self.put(kind, id, revision, body, work);
            }
            Change::Delete(kind, id) => self.delete(kind, &id, work),
        }
    }

    fn put(&mut self, kind: Kind, id: Id, revision: Revision, body: Body, work: &mut Work) {
        let (kept, roster) = (self.kept.clone(), self.roster.clone());
        let workshop = self.workshop(&kept, &roster);
        let key = (kind, &id, revision);
        match body {
            Body::PluginMetadata(value) => match workshop.metadata(&id, &value) {
                Ok(value) => {
                    self.metadata.insert(id.clone(), value);
                    work.plugins.insert(id);
                }
                Err(error) => {
                    work.reject(kind, &id, revision, &error);
                    // Without a version before it, its carriers must not run as if there were none: they fail by it.
                    let bears = SecretReference::first_in(&value).is_some();
                    if bears && !self.metadata.contains_key(&id) {
                        self.metadata.insert(id.clone(), Arc::new(value));
                        work.plugins.insert(id);
                    }
                }
            },
            Body::Upstream(body) => {
                let compiled = workshop.cluster(&format!("upstreams/{id}"), &body, None);
                if settle(&mut self.upstreams, work, key, body.into(), compiled) {
                    self.mark_users(kind, &id, work);
                }
            }
            Body::Service(body) => {
                let compiled = workshop.service(&id, &body);
                if settle(&mut self.services, work, key, body.into(), compiled) {
                    self.mark_users(kind, &id, work);
                }
            }
            Body::PluginConfig(body) => {
                let compiled = workshop.links(kind, &id, &body.plugins).map(Plugins::from);
                if settle(&mut self.plugin_configs, work, key, body.into(), compiled) {
                    self.mark_users(kind, &id, work);
                }
            }
            Body::ConsumerGroup(body) => {
                let compiled = workshop.links(kind, &id, &body.plugins).map(Arc::new);
                if settle(&mut self.groups, work, key, body.into(), compiled) {
                    self.set_group(&id);
                }
            }
            Body::GlobalRule(body) => {
                let compiled = workshop.links(kind, &id, &body.plugins);
                settle(&mut self.global_rules, work, key, body.into(), compiled);
            }
            Body::Consumer(body) => {
                let none = PluginSet::new();
                let plugins = body.plugins.as_ref().unwrap_or(&none);
                let compiled = workshop.links(kind, &id, plugins).and_then(|links| {
                    let held = workshop.credentials(plugins)?;
                    self.no_clash(&(kind, id.clone()), &held)?;
                    Ok((Arc::new(links), held))
                });
                settle(&mut self.consumers, work, key, body.into(), compiled);
                self.take_keys(kind, &id);
                work.people.insert(id.to_string());
            }
            Body::Credential(body) => {
                let compiled = workshop.credential(&body.plugins).and_then(|held| {
                    self.no_clash(&(kind, id.clone()), &held)?;
                    Ok(held)
                });
                settle(&mut self.credentials, work, key, body.into(), compiled);
                self.take_keys(kind, &id);
                work.people.insert(split_credential(&id).0.to_owned());
            }
            Body::Ssl(body) => {
                let concerns = body.ssl_type == SslType::Client || self.ssls.is_client(&id);
                let clear = match self.secrets.ssl(&body) {
                    Ok(Some(clear)) => self.ssls.put(&id, clear.into_owned()),
                    Ok(None) => {
                        self.ssls.trust(&id, *body);
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                match clear {
                    Err(error) => work.reject(kind, &id, revision, &error),
                    Ok(()) if concerns => drop(work.client_certificates.insert(id)),
                    Ok(()) => {}
                }
            }
            Body::IdentityPolicy(body) => {
                self.policies.put(id, revision, body.into());
                work.policies = true;
            }
            Body::IdentityMode(body) => {
                if let Err(error) = policy::check_mode(&body) {
                    work.reject(kind, &id, revision, &error);
                    let previous = self.declared_modes.get(&id);
                    if previous.is_some_and(|(_, body)| policy::check_mode(body).is_ok()) {
                        return;
                    }
                }
                self.declared_modes.insert(id, (revision, body));
                work.modes = true;
            }
            Body::Route(mut body) => {
                let parts = workshop.route(&id, &body);
                self.share_names(&id, &mut body);
                self.put_route(id, revision, body.into(), parts, work);
            }
            // Registration entries are the issuer's; trust is composed with the identity.
            // Whoever reads the feed has put secrets in the place of references.
            Body::Workload(_)
            | Body::TrustDomain(_)
            | Body::Revocation(_)
            | Body::Secret(_)
            // What uses a definition names it.
            | Body::Proto(_) => {}
            Body::StreamRoute(_) => work.reject(kind, &id, revision, &trial::no_stream_proxy()),
        }
    }

    fn put_route(
        &mut self,
        id: Id,
        revision: Revision,
        body: Arc<Route>,
        parts: Result<RouteParts, Invalid>,
        work: &mut Work,
    ) {
        let (parts, broken) = match parts {
            Ok(parts) => (parts, None),
            Err(error) => {
                work.reject(Kind::Routes, &id, revision, &error);
                if self.routes.get(&id).is_some_and(|slot| slot.broken.is_none()) {
                    return;
                }
                (Workshop::route_in_name_only(&body), Some(error.0))
            }
        };
        match self.routes.get_mut(&id) {
            Some(slot) => {
                (slot.revision, slot.body, slot.parts, slot.broken) =
                    (revision, body, parts, broken);
            }
            None => {
                let slot = RouteSlot {
                    revision,
                    body,
                    parts,
                    broken,
                    timed: None,
                    placed: None,
                    refers_to: Box::default(),
                };
                self.routes.insert(id.clone(), Box::new(slot));
            }
        }
        work.routes.insert(id);
    }

    fn delete(&mut self, kind: Kind, id: &Id, work: &mut Work) {
        match kind {
            Kind::PluginMetadata => {
                if self.metadata.remove(id).is_some() {
                    work.plugins.insert(id.clone());
                }
            }
            Kind::Upstreams => drop(self.upstreams.remove(id)),
            Kind::Services => drop(self.services.remove(id)),
            Kind::PluginConfigs => drop(self.plugin_configs.remove(id)),
            Kind::ConsumerGroups => {
                self.groups.remove(id);
                self.set_group(id);
            }
            Kind::GlobalRules => drop(self.global_rules.remove(id)),
            Kind::Consumers => {
                self.release_keys(kind, id);
                self.consumers.remove(id);
                work.people.insert(id.to_string());
            }
            Kind::Credentials => {
                self.release_keys(kind, id);
                self.credentials.remove(id);
                work.people.insert(split_credential(id).0.to_owned());
            }
            Kind::Ssls => {
                if self.ssls.is_client(id) {
                    work.client_certificates.insert(id.clone());
                }
                self.ssls.delete(id);
            }
            Kind::IdentityPolicies => work.policies |= self.policies.delete(id),
            Kind::IdentityModes => work.modes |= self.declared_modes.remove(id).is_some(),
            Kind::Routes => self.delete_route(id, work),
            Kind::Workloads
            | Kind::TrustDomains
            | Kind::Revocations
            | Kind::Secrets
            | Kind::Protos
            | Kind::StreamRoutes => {}
        }
        self.mark_users(kind, id, work);
    }

    fn delete_route(&mut self, id: &Id, work: &mut Work) {
        let Some(slot) = self.routes.remove(id) else { return };
        self.take_from_door(id, slot.placed.as_ref());
        self.forget_references(id, &slot.refers_to);
        work.routes.remove(id);
    }

    /// Takes a route out of its door's router.
    fn take_from_door(&mut self, id: &Id, placed: Option<&(Listeners, Arc<RouteInfo>)>) {
        let Some((door, info)) = placed else { return };
        // Read anew: kept for each route, places would weigh more than what they save.
        let place = Place::readable(self.router.http, &info.hosts, &info.paths);
        self.routers.of_mut(*door).remove(self.router.http, id, &place);
    }

    /// The routes that refer to a resource are put together anew.
    fn mark_users(&self, kind: Kind, id: &Id, work: &mut Work) {
        work.routes.extend(self.users.get(&(kind, id.clone())).into_iter().flatten().cloned());
    }

    /// Names that are there already need no copy of their own: among a hundred thousand routes copies add up.
    fn share_names(&self, id: &Id, route: &mut Route) {
        if let Some(own) = &mut route.id {
            *own = id.clone();
        }
        for (kind, name) in [
            (Kind::Upstreams, &mut route.upstream_id),
            (Kind::Services, &mut route.service_id),
            (Kind::PluginConfigs, &mut route.plugin_config_id),
        ] {
            let Some(name) = name else { continue };
            if let Some(((_, known), _)) = self.users.get_key_value(&(kind, name.clone())) {
                *name = known.clone();
            }
        }
    }

    fn forget_references(&mut self, route: &Id, references: &[(Kind, Id)]) {
        for reference in references {
            if let Some(users) = self.users.get_mut(reference) {
                users.remove(route);
                if users.is_empty() {
                    self.users.remove(reference);
                }
            }
        }
    }

    /// Whatever carries a plugin whose metadata changed is compiled anew.
    fn recompile_carriers(&mut self, work: &mut Work) {
        let plugins = std::mem::take(&mut work.plugins);
        let carriers: BTreeSet<(Kind, Id)> = plugins
            .iter()
            .flat_map(|plugin| self.carriers(plugin.as_str()))
            .map(|(kind, id, _)| (kind, id))
            .collect();
        for (kind, id) in carriers {
            let Some((revision, body)) = self.declared(kind, &id) else { continue };
            self.put(kind, id, revision, body, work);
        }
    }

    /// What names a client certificate that is another one now.
    fn recompile_clients(&mut self, work: &mut Work) {
        let changed = std::mem::take(&mut work.client_certificates);
        if changed.is_empty() {
            return;
        }
        let names_one =
            |upstream: &Upstream| named(upstream).is_some_and(|id| changed.contains(id));
        let inline = |upstream: Option<&Upstream>| upstream.is_some_and(names_one);
        let upstreams = self.upstreams.iter().filter(|(_, slot)| names_one(&slot.body));
        let services =
            self.services.iter().filter(|(_, slot)| inline(slot.body.upstream.as_deref()));
        let routes = self.routes.iter().filter(|(_, slot)| inline(slot.body.upstream.as_deref()));
        let users: Vec<(Kind, Id)> = upstreams
            .map(|(id, _)| (Kind::Upstreams, id.clone()))
            .chain(services.map(|(id, _)| (Kind::Services, id.clone())))
            .chain(routes.map(|(id, _)| (Kind::Routes, id.clone())))
            .collect();
        for (kind, id) in users {
            let Some((revision, body)) = self.declared(kind, &id) else { continue };
            self.put(kind, id, revision, body, work);
        }
    }

    /// What is in force of a resource, as it was declared.
    fn declared(&self, kind: Kind, id: &Id) -> Option<(Revision, Body)> {
        fn of<B: Clone, C>(slot: Option<&Slot<B, C>>) -> Option<(Revision, Box<B>)> {
            slot.map(|slot| (slot.revision, Box::new(B::clone(&slot.body))))
        }
        Some(match kind {
            Kind::Routes => {
                let slot = self.routes.get(id)?;
                (slot.revision, Body::Route(Box::new(Route::clone(&slot.body))))
            }
            Kind::Services => {
                let (revision, body) = of(self.services.get(id))?;
                (revision, Body::Service(body))
            }
            Kind::PluginConfigs => {
                let (revision, body) = of(self.plugin_configs.get(id))?;
                (revision, Body::PluginConfig(body))
            }
            Kind::ConsumerGroups => {
                let (revision, body) = of(self.groups.get(id))?;
                (revision, Body::ConsumerGroup(body))
            }
            Kind::GlobalRules => {
                let (revision, body) = of(self.global_rules.get(id))?;
                (revision, Body::GlobalRule(body))
            }
            Kind::Consumers => {
                let (revision, body) = of(self.consumers.get(id))?;
                (revision, Body::Consumer(body))
            }
            Kind::Upstreams => {
                let (revision, body) = of(self.upstreams.get(id))?;
                (revision, Body::Upstream(body))
            }
            Kind::Credentials
            | Kind::PluginMetadata
            | Kind::Ssls
            | Kind::IdentityPolicies
            | Kind::IdentityModes
            | Kind::Workloads
            | Kind::TrustDomains
            | Kind::Revocations
            | Kind::Secrets
            | Kind::Protos
            | Kind::StreamRoutes => return None,
        })
    }

    /// The keys that a consumer or credential holds at present.
    fn held(&self, kind: Kind, id: &Id) -> Vec<Held> {
        match kind {
            Kind::Consumers => {
                let compiled = self.consumers.get(id).map(|slot| slot.compiled.as_ref());
                compiled.and_then(Result::ok).map(|(_, held)| held.clone()).unwrap_or_default()
            }
            Kind::Credentials => {
                let compiled = self.credentials.get(id).map(|slot| slot.compiled.as_ref());
                compiled.and_then(Result::ok).cloned().unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    fn release_keys(&mut self, kind: Kind, id: &Id) {
        let held = self.held(kind, id);
        if !held.is_empty() {
            Arc::make_mut(&mut self.people).release_keys(&(kind, id.clone()), &held);
        }
    }

    fn take_keys(&mut self, kind: Kind, id: &Id) {
        let resource = (kind, id.clone());
        // A version that stayed because its successor was refused may have lost its key to somebody else meanwhile.
        let mut held = self.held(kind, id);
        held.retain(|held| self.people.clash(&resource, std::slice::from_ref(held)).is_none());
        if !held.is_empty() {
            Arc::make_mut(&mut self.people).take_keys(&resource, &held);
        }
    }

    fn set_group(&mut self, id: &Id) {
        let links = self.groups.get(id).map(|slot| match &slot.compiled {
            Ok(links) => Ok(links.clone()),
            Err(reason) => Err(Broken::new(503, format!("consumer group {id}: {reason}"))),
        });
        Arc::make_mut(&mut self.people).set_group(id, links);
    }

    fn person(&self, name: &str) -> Option<Person> {
        let slot = self.consumers.get(name)?;
        let (links, _) = slot.compiled.as_ref().ok()?;
        let body = &slot.body;
        let consumer = |credential: Option<&str>| Consumer {
            name: name.to_owned(),
            group: body.group_id.clone(),
            labels: body.labels.clone(),
            credential: credential.map(str::to_owned),
        };
        let below = format!("{name}/credentials/");
        let presented = self
            .credentials
            .range::<str, _>((Bound::Included(&*below), Bound::Unbounded))
            .map_while(|(id, _)| id.as_str().strip_prefix(&below))
            .map(|credential| (credential.into(), Arc::new(consumer(Some(credential)))))
            .collect();
        Some(Person { consumer: Arc::new(consumer(None)), presented, links: links.clone() })
    }
}

fn kind_of(change: &Change) -> (Kind, &Id) {
    match change {
        Change::Put(resource) => (resource.kind, &resource.id),
        Change::Delete(kind, id) => (*kind, id),
    }
}

/// Of several changes to one resource the last one counts.
fn last_of_each(changes: Vec<Change>) -> Vec<Change> {
    let mut seen = BTreeSet::new();
    let mut kept: Vec<Change> = changes
        .into_iter()
        .rev()
        .filter(|change| {
            let (kind, id) = kind_of(change);
            seen.insert((kind, id.clone()))
        })
        .collect();
    kept.reverse();
    kept
}
