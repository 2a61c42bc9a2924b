//! `Keeper`: takes changes, compiles what they touch, and makes the next snapshot. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::compile::{RouteParts, ServiceParts, Workshop, check_ssl, host_names};
use super::compiled::{Broken, CompiledRoute, Routers, Snapshot};
use super::consumers::{Consumers, Held, Person, split_credential};
use super::merge::{self, Links};
use super::router::{Place, RouterKind};
use crate::identity::SpiffeId;
use crate::model::{
    self, Body, Change, Id, IdentityPolicy, Invalid, Kind, Listeners, PluginConfig, PluginSet,
    Rejected, Resource, Revision, Route, Service, Ssl, Status, Timeout, Upstream,
};
use crate::observe::Registry;
use crate::pipeline::{
    Chain, Consumer, Entry, Exchange, Fault, Flow, Hooks, Kept, Link, Rewrite, RouteInfo, Side,
    Template,
};
use crate::policy::{self, Policy};
use crate::upstream::Cluster;

/// What came of some changes.
#[derive(Debug)]
pub struct Applied {
    /// The next revision of everything.
    pub snapshot: Arc<Snapshot>,
    /// What was not taken, and why. Its previous version stays in force; where there is none, its place refuses.
    pub rejected: Vec<Rejected>,
}

/// Holds what is declared, compiled, and makes snapshots of it.
///
/// A change recompiles the resource itself; whatever refers to it is only put together anew. What cannot be compiled keeps
/// its previous version. Where there is none, nothing passes unprotected: a route answers 503, a global rule makes all
/// routes answer 503, a consumer does not exist, a policy denies.
pub struct Keeper {
    table: HashMap<&'static str, &'static Entry>,
    me: Option<SpiffeId>,
    router: RouterKind,
    metrics: Registry,
    kept: Kept,
    metadata: BTreeMap<Id, Arc<Value>>,
    upstreams: BTreeMap<Id, Slot<Upstream, Arc<Cluster>>>,
    services: BTreeMap<Id, Slot<Service, ServiceParts>>,
    plugin_configs: BTreeMap<Id, Slot<PluginConfig, Links>>,
    groups: BTreeMap<Id, Slot<PluginConfig, Arc<Links>>>,
    global_rules: BTreeMap<Id, Slot<model::GlobalRule, Links>>,
    consumers: BTreeMap<Id, Slot<model::Consumer, ConsumerParts>>,
    credentials: BTreeMap<Id, Slot<model::Credential, Vec<Held>>>,
    policies: BTreeMap<Id, (Revision, Box<IdentityPolicy>)>,
    ssls: BTreeMap<Id, Arc<Ssl>>,
    routes: BTreeMap<Id, RouteSlot>,
    /// Which routes refer to a resource, whether it exists or not.
    users: HashMap<(Kind, Id), BTreeSet<Id>>,
    routers: Routers,
    people: Arc<Consumers>,
    policy: Arc<Policy>,
    certificates: Arc<[Arc<Ssl>]>,
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
    source: (Kind, Id, Revision),
    timeout: Timeout,
    cluster: Arc<Cluster>,
}

struct RouteSlot {
    revision: Revision,
    body: Arc<Route>,
    parts: Arc<RouteParts>,
    /// Why the parts are in name only.
    broken: Option<String>,
    timed: Option<Timed>,
    placed: Option<(Listeners, Place)>,
    refers_to: Vec<(Kind, Id)>,
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
    certificates: bool,
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
        let policy = Arc::new(Policy::compile([], &identity_of(me.as_ref())).0);
        let people = Arc::new(Consumers::default());
        let certificates: Arc<[Arc<Ssl>]> = Arc::default();
        let current = Arc::new(Snapshot {
            revision: 0,
            policy: policy.clone(),
            certificates: certificates.clone(),
            consumers: people.clone(),
            global: Chain::default(),
            routers: Routers::default(),
            people: people.clone(),
            merged: Default::default(),
        });
        Self {
            table: table.iter().map(|entry| (entry.name, entry)).collect(),
            me,
            router: RouterKind::default(),
            metrics,
            kept: Kept::default(),
            metadata: BTreeMap::new(),
            upstreams: BTreeMap::new(),
            services: BTreeMap::new(),
            plugin_configs: BTreeMap::new(),
            groups: BTreeMap::new(),
            global_rules: BTreeMap::new(),
            consumers: BTreeMap::new(),
            credentials: BTreeMap::new(),
            policies: BTreeMap::new(),
            ssls: BTreeMap::new(),
            routes: BTreeMap::new(),
            users: HashMap::new(),
            routers: Routers::default(),
            people,
            policy,
            certificates,
            current,
        }
    }

    /// With another kind of router. Set before anything is applied.
    #[must_use]
    pub fn with_router(self, router: RouterKind) -> Self {
        Self { router, ..self }
    }

    /// The newest snapshot.
    pub fn current(&self) -> &Arc<Snapshot> {
        &self.current
    }

    fn workshop<'a>(&'a self, kept: &'a Kept) -> Workshop<'a> {
        Workshop {
            table: &self.table,
            metadata: &self.metadata,
            metrics: &self.metrics,
            kept,
            router: self.router,
        }
    }

    /// Would this change be taken? Nothing is changed by asking.
    ///
    /// # Errors
    /// It would not; the sentence is the one that [`Keeper::apply`] would reject it with, or says whose key or plugin it has.
    pub fn trial(&self, change: &Change) -> Result<(), Invalid> {
        let Change::Put(Resource { kind, id, body, .. }) = change else { return Ok(()) };
        let kept = self.kept.for_trial();
        let workshop = self.workshop(&kept);
        let set = |set: &PluginSet| workshop.links(*kind, id, set).map(drop);
        match body {
            Body::Route(route) => workshop.route(id, route).map(drop),
            Body::Service(service) => workshop.service(id, service).map(drop),
            Body::Upstream(upstream) => cluster(id, upstream).map(drop),
            Body::PluginConfig(config) | Body::ConsumerGroup(config) => set(&config.plugins),
            Body::GlobalRule(rule) => {
                set(&rule.plugins)?;
                self.twice_in_global_rules(id, &rule.plugins)
            }
            Body::Consumer(consumer) => {
                let none = PluginSet::new();
                let plugins = consumer.plugins.as_ref().unwrap_or(&none);
                set(plugins)?;
                self.no_clash(&(*kind, id.clone()), &workshop.credentials(plugins)?)
            }
            Body::Credential(credential) => {
                let held = workshop.credential(&credential.plugins)?;
                self.no_clash(&(*kind, id.clone()), &held)
            }
            Body::PluginMetadata(value) => self.try_metadata(id, value, &kept),
            Body::Ssl(ssl) => check_ssl(ssl),
            Body::IdentityPolicy(policy) => policy::check(policy),
            Body::Workload(_) | Body::TrustDomain(_) | Body::Revocation(_) => Ok(()),
        }
    }

    /// What stands in the place of resources that are there and cannot be read, where no previous version does: a policy
    /// that refuses everybody, a global rule that answers 503. Nobody knows what they would have kept out.
    ///
    /// # Panics
    /// Never: the stand-ins are of their kinds' shapes.
    pub fn stand_ins(&self, unreadable: &[Rejected]) -> Vec<Change> {
        let stand_in = |rejected: &Rejected| {
            let Rejected { kind, id, revision, .. } = rejected;
            let body = match kind {
                Kind::IdentityPolicies if !self.policies.contains_key(id) => {
                    // Without a rule it is broken, and a broken deny policy holds against everybody.
                    Body::parse(*kind, &json!({ "action": "deny", "rules": [] }))
                }
                Kind::GlobalRules if !self.global_rules.contains_key(id) => {
                    Body::parse(*kind, &json!({ "plugins": { "unreadable": {} } }))
                }
                _ => return None,
            };
            let body = body.expect("it is of the kind's shape");
            Some(Change::Put(Resource { kind: *kind, id: id.clone(), revision: *revision, body }))
        };
        unreadable.iter().filter_map(stand_in).collect()
    }

    /// The plugins that have this metadata must still compile with it.
    fn try_metadata(&self, id: &Id, value: &Value, kept: &Kept) -> Result<(), Invalid> {
        let mut metadata = self.metadata.clone();
        metadata.insert(id.clone(), self.workshop(kept).metadata(id, value)?);
        let workshop = Workshop { metadata: &metadata, ..self.workshop(kept) };
        for (kind, owner, set) in self.carriers(id.as_str()) {
            workshop.links(kind, &owner, &set).map_err(|error| {
                Invalid(format!("{} [{owner}] would break: {error}", kind.singular()))
            })?;
        }
        Ok(())
    }

    fn no_clash(&self, resource: &(Kind, Id), held: &[Held]) -> Result<(), Invalid> {
        match self.people.clash(resource, held) {
            None => Ok(()),
            Some((plugin, name)) => Err(Invalid(format!(
                "duplicate key of plugin {plugin} found with consumer: {name}"
            ))),
        }
    }

    fn twice_in_global_rules(&self, id: &Id, set: &PluginSet) -> Result<(), Invalid> {
        for (other, slot) in &self.global_rules {
            let twice = set.keys().find(|name| slot.body.plugins.contains_key(*name));
            if let Some(name) = twice.filter(|_| other != id) {
                return Err(Invalid(format!(
                    "plugin '{name}' already exists in global rule with id '{other}'"
                )));
            }
        }
        Ok(())
    }

    /// Every resource that carries a plugin of that name, with its whole set.
    fn carriers(&self, plugin: &str) -> Vec<(Kind, Id, PluginSet)> {
        let mut found = Vec::new();
        let mut look = |kind: Kind, id: &Id, set: Option<&PluginSet>| {
            if let Some(set) = set.filter(|set| set.contains_key(plugin)) {
                found.push((kind, id.clone(), set.clone()));
            }
        };
        for (id, slot) in &self.routes {
            look(Kind::Routes, id, slot.body.plugins.as_ref());
        }
        for (id, slot) in &self.services {
            look(Kind::Services, id, slot.body.plugins.as_ref());
        }
        for (id, slot) in &self.plugin_configs {
            look(Kind::PluginConfigs, id, Some(&slot.body.plugins));
        }
        for (id, slot) in &self.groups {
            look(Kind::ConsumerGroups, id, Some(&slot.body.plugins));
        }
        for (id, slot) in &self.global_rules {
            look(Kind::GlobalRules, id, Some(&slot.body.plugins));
        }
        for (id, slot) in &self.consumers {
            look(Kind::Consumers, id, slot.body.plugins.as_ref());
        }
        found
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
        let kept = self.kept.clone();
        let workshop = self.workshop(&kept);
        let key = (kind, &id, revision);
        match body {
            Body::PluginMetadata(value) => match workshop.metadata(&id, &value) {
                Ok(value) => {
                    self.metadata.insert(id.clone(), value);
                    work.plugins.insert(id);
                }
                Err(error) => work.reject(kind, &id, revision, &error),
            },
            Body::Upstream(body) => {
                let compiled = cluster(&id, &body);
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
                let compiled = workshop.links(kind, &id, &body.plugins);
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
            Body::Ssl(body) => match check_ssl(&body) {
                Ok(()) => {
                    self.ssls.insert(id, body.into());
                    work.certificates = true;
                }
                Err(error) => work.reject(kind, &id, revision, &error),
            },
            Body::IdentityPolicy(body) => {
                if let Err(error) = policy::check(&body) {
                    work.reject(kind, &id, revision, &error);
                    let previous = self.policies.get(&id);
                    if previous.is_some_and(|(_, body)| policy::check(body).is_ok()) {
                        return;
                    }
                }
                self.policies.insert(id, (revision, body));
                work.policies = true;
            }
            Body::Route(body) => {
                let parts = workshop.route(&id, &body);
                self.put_route(id, revision, body.into(), parts, work);
            }
            // Registration entries are the issuer's; trust is composed with the identity.
            Body::Workload(_) | Body::TrustDomain(_) | Body::Revocation(_) => {}
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
        let parts = Arc::new(parts);
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
                    refers_to: Vec::new(),
                };
                self.routes.insert(id.clone(), slot);
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
            Kind::Ssls => work.certificates |= self.ssls.remove(id).is_some(),
            Kind::IdentityPolicies => work.policies |= self.policies.remove(id).is_some(),
            Kind::Routes => self.delete_route(id, work),
            Kind::Workloads | Kind::TrustDomains | Kind::Revocations => {}
        }
        self.mark_users(kind, id, work);
    }

    fn delete_route(&mut self, id: &Id, work: &mut Work) {
        let Some(slot) = self.routes.remove(id) else { return };
        if let Some((door, place)) = &slot.placed {
            self.routers.of_mut(*door).remove(self.router, id, place);
        }
        self.forget_references(id, &slot.refers_to);
        work.routes.remove(id);
    }

    /// The routes that refer to a resource are put together anew.
    fn mark_users(&self, kind: Kind, id: &Id, work: &mut Work) {
        work.routes.extend(self.users.get(&(kind, id.clone())).into_iter().flatten().cloned());
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
            Kind::Upstreams
            | Kind::Credentials
            | Kind::PluginMetadata
            | Kind::Ssls
            | Kind::IdentityPolicies
            | Kind::Workloads
            | Kind::TrustDomains
            | Kind::Revocations => return None,
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

    /// Puts together what changed and publishes it.
    fn assemble(&mut self, work: Work, revision: Revision) -> Applied {
        for name in &work.people {
            let person = self.person(name);
            Arc::make_mut(&mut self.people).set_person(name, person);
        }
        for id in &work.routes {
            self.assemble_route(id);
        }
        if work.policies {
            let policies =
                self.policies.iter().map(|(id, (revision, body))| (id, *revision, &**body));
            self.policy = Arc::new(Policy::compile(policies, &identity_of(self.me.as_ref())).0);
        }
        if work.certificates {
            let enabled = self.ssls.values().filter(|ssl| ssl.status == Status::Enabled);
            self.certificates = enabled.cloned().collect();
        }
        self.current = Arc::new(Snapshot {
            revision,
            policy: self.policy.clone(),
            certificates: self.certificates.clone(),
            consumers: self.people.clone(),
            global: self.global(),
            routers: self.routers.clone(),
            people: self.people.clone(),
            merged: Default::default(),
        });
        self.kept.sweep();
        Applied { snapshot: self.current.clone(), rejected: work.rejected }
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
        if let Some((door, place)) = slot.placed.take() {
            self.routers.of_mut(door).remove(self.router, id, &place);
        }
        let mut references = Vec::new();
        let (compiled, timed) = self.compiled_route(id, &slot, &mut references);
        slot.timed = timed;
        let old = std::mem::replace(&mut slot.refers_to, references);
        self.forget_references(id, &old);
        for reference in &slot.refers_to {
            self.users.entry(reference.clone()).or_default().insert(id.clone());
        }
        let service = self.service_of(&slot.body);
        let workshop = self.workshop(&self.kept);
        let place = match &slot.broken {
            None => workshop.place(&slot.body, service).ok(),
            Some(_) => None,
        };
        let place = place.or_else(|| workshop.readable_place(&slot.body, service));
        if let Some(place) = place.filter(|_| self.applies(&slot)) {
            let door = slot.body.listener();
            self.routers.of_mut(door).insert(self.router, id, &place, Arc::new(compiled));
            slot.placed = Some((door, place));
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
        let links =
            merge::of_route(&slot.parts.links, config, service.map(|(_, _, parts)| &parts.links));
        let chain = Chain::new(links.values().cloned());

        let mut timed = None;
        let target = if let Some(upstream) = &route.upstream_id {
            references.push((Kind::Upstreams, upstream.clone()));
            self.upstream(upstream, slot, &mut timed)
        } else if let Some(cluster) = &slot.parts.cluster {
            Ok(cluster.clone())
        } else if let Some((service_id, service, parts)) = service {
            if let Some(upstream) = &service.upstream_id {
                references.push((Kind::Upstreams, upstream.clone()));
                self.upstream(upstream, slot, &mut timed)
            } else if let (Some(upstream), Some(cluster)) = (&service.upstream, &parts.cluster) {
                let revision = self.services.get(service_id).map_or(0, |slot| slot.revision);
                let source = (Kind::Services, service_id.clone(), revision);
                in_time(source, upstream, cluster, slot, &mut timed)
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
        let mut labels = service_body.map(|service| service.labels.clone()).unwrap_or_default();
        labels.extend(route.labels.iter().map(|(name, value)| (name.clone(), value.clone())));
        let info = RouteInfo {
            id: id.clone(),
            name: route.name.clone(),
            labels,
            service: route.service_id.clone(),
            service_name: service_body.and_then(|service| service.name.clone()),
            paths: route.paths().iter().map(str::to_owned).collect(),
            hosts: host_names(route, service_body),
            plugins: chain.plugins().to_vec(),
        };
        let websocket = route
            .enable_websocket
            .or_else(|| service_body.and_then(|service| service.enable_websocket));
        // Judged when the upstream was: a key that is no template is refused there.
        let hash_key =
            cluster.as_ref().and_then(|cluster: &Arc<Cluster>| cluster.hash_key.as_deref());
        let hash_key = hash_key.and_then(|key| Template::parse(key).ok());
        let compiled = CompiledRoute {
            hash_key,
            info: Arc::new(info),
            revision: slot.revision,
            has_auth: chain.authenticates(),
            chain,
            cluster,
            websocket: websocket.unwrap_or(false),
            connect: route.enable_connect == Some(true),
            links,
            conditions: slot.parts.conditions.clone(),
            broken,
            no_cluster,
        };
        (compiled, timed)
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
            Ok(cluster) => {
                let source = (Kind::Upstreams, id.clone(), slot.revision);
                in_time(source, &slot.body, cluster, route, timed)
            }
            Err(why) => Err(Broken::new(503, format!("upstream {id}: {why}"))),
        }
    }
}

/// The shared cluster, or one with the route's own time limits, which stays as long as what it is made of.
fn in_time(
    source: (Kind, Id, Revision),
    upstream: &Upstream,
    shared: &Arc<Cluster>,
    route: &RouteSlot,
    timed: &mut Option<Timed>,
) -> Result<Arc<Cluster>, Broken> {
    let Some(timeout) = route.body.timeout else { return Ok(shared.clone()) };
    let same = |known: &&Timed| known.source == source && known.timeout == timeout;
    let cluster = match route.timed.as_ref().filter(same) {
        Some(known) => known.cluster.clone(),
        None => {
            let name = format!("{}/{}", source.0, source.1);
            Cluster::compile(&name, upstream, Some(timeout))
                .map_err(|error| Broken::new(503, format!("{name}: {error}")))?
        }
    };
    *timed = Some(Timed { source, timeout, cluster: cluster.clone() });
    Ok(cluster)
}

fn cluster(id: &Id, upstream: &Upstream) -> Result<Arc<Cluster>, Invalid> {
    Cluster::compile(&format!("upstreams/{id}"), upstream, None)
}

/// Whom policies are compiled for.
fn identity_of(me: Option<&SpiffeId>) -> SpiffeId {
    me.cloned().unwrap_or_else(|| {
        "spiffe://nobody.invalid".parse().expect("a trust domain's own name is a SPIFFE ID")
    })
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

#[cfg(test)]
mod tests;
