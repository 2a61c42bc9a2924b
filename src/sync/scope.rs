//! What a data plane needs, and nothing else: a sidecar never holds another workload's routes, consumers or secrets. No I/O.
//!
//! | kind | who receives it |
//! |---|---|
//! | routes | without `workload_selector`: the ingress. With one: the role of its `listener`, of the SPIFFE IDs it names (none: all) |
//! | services, upstreams, plugin_configs | who has a route (service, plugin) that names them |
//! | consumers, credentials | who has a route, service, plugin config or global rule with an auth plugin that they have a credential for |
//! | consumer_groups | who has a consumer of the group |
//! | identity_policies | sidecars and the ingress, of the SPIFFE IDs that `selector.workloads` names (none: all) |
//! | identity_modes | sidecars and the ingress, of the SPIFFE IDs that `workloads` names (none: all) |
//! | plugin_metadata | the ingress; a sidecar only of plugins that it runs |
//! | global_rules, ssls | the ingress alone: in APISIX they belong to the gateway, and a sidecar has no public listener |
//! | ssls of type `client` | who has an upstream that names them |
//! | secrets | who has something that bears a reference to them |
//! | workloads | the issuer alone |
//! | trust_domains, revocations | everybody: whom to trust no longer is for all to know |
//!
//! Disabled routes, certificates and plugins are needed by nobody. What cannot be read goes to whoever it would have gone to, as far
//! as that can be told ([`Scopes::put_unreadable`]): who would have been kept out by it must not be let in.
//!
//! A change costs what it concerns. Each resource is a node with references; a data plane's scope counts, for each node, how
//! often it is chosen or referred to. A change walks only the scopes that hold the node, and a change of a selector asks only
//! the data planes that it names, or, where it has a wildcard, each scope once.
//!
//! SPIFFE ID patterns are read by a function that comes in by argument ([`Rules::pattern`]): `identity::SpiffePattern` stands
//! on a higher floor.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde_json::Value;

use super::delta::Key;
use crate::model::{Body, Id, Invalid, Kind, Listeners, PluginSet, Route, Status, Upstream};

/// What a data plane is, which decides what it may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Beside one workload.
    Sidecar,
    /// At the edge.
    Ingress,
    /// It issues identities and needs the registration entries.
    Issuer,
}

impl Role {
    /// The role's name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Ingress => "ingress",
            Self::Issuer => "issuer",
        }
    }

    /// The role of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Sidecar, Self::Ingress, Self::Issuer].into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which SPIFFE IDs are meant.
#[derive(Clone)]
pub enum Pattern {
    /// One, spelled as handshakes spell it. Found by a look-up.
    Exactly(Arc<str>),
    /// Those for which the function holds. Asked once for each scope.
    Meets(Arc<dyn Fn(&str) -> bool + Send + Sync>),
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(id) => write!(f, "Exactly({id})"),
            Self::Meets(_) => f.write_str("Meets(..)"),
        }
    }
}

impl Pattern {
    fn means(&self, spiffe_id: &str) -> bool {
        match self {
            Self::Exactly(id) => **id == *spiffe_id,
            Self::Meets(meets) => meets(spiffe_id),
        }
    }
}

/// Reads a SPIFFE ID pattern; the error is the sentence for the operator.
pub type PatternReader = Arc<dyn Fn(&str) -> Result<Pattern, String> + Send + Sync>;

/// What this room cannot know by itself.
#[derive(Clone)]
pub struct Rules {
    /// Reads a SPIFFE ID pattern.
    pub pattern: PatternReader,
    /// The plugins that find a consumer by a credential: `key-auth` and its like.
    pub auth_plugins: Vec<Arc<str>>,
    /// Plugins that find a consumer by another plugin's credentials, and that other plugin.
    pub borrowers: Vec<(Arc<str>, Arc<str>)>,
}

/// The scope of one role with one SPIFFE ID; its replicas share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(u32);

/// A resource of a scope that is new to it, different, or gone from it.
pub type Touched = (ScopeId, Key);

/// All scopes over all resources.
pub struct Scopes {
    rules: Rules,
    facts: HashMap<Key, Facts, RandomState>,
    /// Who has credentials for an auth plugin.
    bearers: HashMap<Arc<str>, BTreeSet<Key>, RandomState>,
    /// Chosen by a SPIFFE ID.
    chosen_exactly: HashMap<Arc<str>, BTreeSet<Key>, RandomState>,
    /// Chosen by a wildcard, or by nothing but the role.
    chosen_openly: BTreeMap<Role, BTreeSet<Key>>,
    /// Who needs a node, and for how many reasons. Also for nodes that do not exist: they may come.
    needed_by: HashMap<Node, BTreeMap<ScopeId, u32>, RandomState>,
    scopes: BTreeMap<ScopeId, Scope>,
    by_identity: HashMap<Arc<str>, Vec<ScopeId>, RandomState>,
    by_role: BTreeMap<Role, BTreeSet<ScopeId>>,
    next: u32,
}

struct Scope {
    role: Role,
    spiffe_id: Arc<str>,
    needs: HashSet<Node, RandomState>,
    /// Connected data planes.
    members: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Node {
    Resource(Key),
    /// All consumers and credentials that this auth plugin may find.
    Bearers(Arc<str>),
}

/// What the scopes must know of a resource.
#[derive(Debug)]
struct Facts {
    choice: Choice,
    refers_to: BTreeSet<Node>,
    /// The auth plugins that it has credentials for.
    bears: BTreeSet<Arc<str>>,
}

/// Who needs a resource for its own sake.
#[derive(Debug, Default)]
struct Choice {
    roles: Vec<Role>,
    /// Empty means everybody of these roles.
    identities: Vec<Pattern>,
    /// The patterns as they are written: what tells two choices apart.
    written: Vec<String>,
}

impl PartialEq for Choice {
    fn eq(&self, other: &Self) -> bool {
        self.roles == other.roles && self.written == other.written
    }
}

impl Scopes {
    /// No resources and no data planes.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            facts: HashMap::default(),
            bearers: HashMap::default(),
            chosen_exactly: HashMap::default(),
            chosen_openly: BTreeMap::new(),
            needed_by: HashMap::default(),
            scopes: BTreeMap::new(),
            by_identity: HashMap::default(),
            by_role: BTreeMap::new(),
            next: 0,
        }
    }

    /// A data plane of this role and identity came.
    pub fn enter(&mut self, role: Role, spiffe_id: &str) -> ScopeId {
        let known = self.by_identity.get(spiffe_id).into_iter().flatten().copied();
        for id in known {
            if let Some(scope) = self.scopes.get_mut(&id).filter(|scope| scope.role == role) {
                scope.members += 1;
                return id;
            }
        }
        let id = ScopeId(self.next);
        self.next += 1;
        let spiffe_id: Arc<str> = spiffe_id.into();
        let scope = Scope { role, spiffe_id, needs: HashSet::default(), members: 1 };
        let chosen: BTreeSet<Key> = self
            .chosen_exactly
            .get(&scope.spiffe_id)
            .into_iter()
            .chain(self.chosen_openly.get(&role))
            .flatten()
            .filter(|key| self.facts[*key].choice.chooses(&scope))
            .cloned()
            .collect();
        self.by_identity.entry(scope.spiffe_id.clone()).or_default().push(id);
        self.by_role.entry(role).or_default().insert(id);
        self.scopes.insert(id, scope);
        let mut unheard = Vec::new();
        for key in chosen {
            self.acquire(id, &Node::Resource(key), &mut unheard);
        }
        id
    }

    /// A data plane left. With the last of a scope the scope goes.
    pub fn leave(&mut self, id: ScopeId) {
        let Some(scope) = self.scopes.get_mut(&id) else { return };
        scope.members -= 1;
        if scope.members > 0 {
            return;
        }
        let Some(scope) = self.scopes.remove(&id) else { return };
        for node in &scope.needs {
            if let Some(needed_by) = self.needed_by.get_mut(node) {
                needed_by.remove(&id);
                if needed_by.is_empty() {
                    self.needed_by.remove(node);
                }
            }
        }
        if let Some(scopes) = self.by_role.get_mut(&scope.role) {
            scopes.remove(&id);
        }
        if let Some(scopes) = self.by_identity.get_mut(&scope.spiffe_id) {
            scopes.retain(|other| *other != id);
            if scopes.is_empty() {
                self.by_identity.remove(&scope.spiffe_id);
            }
        }
    }

    /// A resource is new or different: which scopes does that touch?
    ///
    /// # Errors
    /// A selector cannot be read. Nothing has changed then.
    pub fn put(&mut self, key: &Key, body: &Body) -> Result<Vec<Touched>, Invalid> {
        let facts = Facts::of(&key.1, body, &self.rules)?;
        Ok(self.replace(key, facts))
    }

    /// A resource that cannot be read: every data plane that it would concern must know that it is there, so that it can refuse
    /// it by name and keep closed what it might have closed. What is needed by whoever names it goes there and nowhere else.
    pub fn put_unreadable(&mut self, key: &Key) -> Vec<Touched> {
        let choice = Choice::everybody(match key.0 {
            Kind::IdentityPolicies | Kind::IdentityModes => ENFORCING,
            Kind::TrustDomains | Kind::Revocations => ALL,
            Kind::GlobalRules => &[Role::Ingress],
            Kind::Workloads => &[Role::Issuer],
            _ => &[],
        });
        self.replace(key, Facts { choice, refers_to: BTreeSet::new(), bears: BTreeSet::new() })
    }

    /// Can this SPIFFE ID pattern be read?
    pub fn reads_pattern(&self, text: &str) -> bool {
        (self.rules.pattern)(text).is_ok()
    }

    /// A resource is gone: which scopes does that touch?
    pub fn delete(&mut self, key: &Key) -> Vec<Touched> {
        let nothing =
            Facts { choice: Choice::default(), refers_to: BTreeSet::new(), bears: BTreeSet::new() };
        let touched = self.replace(key, nothing);
        self.facts.remove(key);
        touched
    }

    /// Does the scope need this resource?
    pub fn needs(&self, id: ScopeId, key: &Key) -> bool {
        let Some(scope) = self.scopes.get(&id) else { return false };
        self.facts.contains_key(key) && scope.needs.contains(&Node::Resource(key.clone()))
    }

    /// All that the scope needs and that exists.
    pub fn all(&self, id: ScopeId) -> impl Iterator<Item = &Key> {
        let nodes = self.scopes.get(&id).into_iter().flat_map(|scope| &scope.needs);
        nodes.filter_map(|node| match node {
            Node::Resource(key) if self.facts.contains_key(key) => Some(key),
            Node::Resource(_) | Node::Bearers(_) => None,
        })
    }

    fn replace(&mut self, key: &Key, new: Facts) -> Vec<Touched> {
        let mut touched = Vec::new();
        let node = Node::Resource(key.clone());
        let old_choice = self.facts.get(key).map(|old| &old.choice);
        let (mut chosen_before, mut chosen_after) = (BTreeSet::new(), BTreeSet::new());
        // Most changes leave the selector as it was; then nobody is asked.
        if old_choice != Some(&new.choice) {
            chosen_before = old_choice.map(|old| self.chosen_by(old)).unwrap_or_default();
            chosen_after = self.chosen_by(&new.choice);
            self.index(key, &new.choice);
        }
        let (refers_to, bears) = (new.refers_to.clone(), new.bears.clone());
        let old = self.facts.insert(key.clone(), new);
        let (old_refers_to, old_bears) =
            old.map(|old| (old.refers_to, old.bears)).unwrap_or_default();

        // Who has it already: what it newly refers to comes before what it no longer refers to goes, so that nothing is
        // dropped and taken again.
        for scope in self.needing(&node) {
            touched.push((scope, key.clone()));
            for added in refers_to.difference(&old_refers_to) {
                self.acquire(scope, added, &mut touched);
            }
            for removed in old_refers_to.difference(&refers_to) {
                self.release(scope, removed, &mut touched);
            }
        }
        // Who chooses it for its own sake.
        for scope in chosen_after.difference(&chosen_before) {
            self.acquire(*scope, &node, &mut touched);
        }
        for scope in chosen_before.difference(&chosen_after) {
            self.release(*scope, &node, &mut touched);
        }
        // Who has an auth plugin that may find it.
        for plugin in bears.difference(&old_bears) {
            self.bearers.entry(plugin.clone()).or_default().insert(key.clone());
            for scope in self.needing(&Node::Bearers(plugin.clone())) {
                self.acquire(scope, &node, &mut touched);
            }
        }
        for plugin in old_bears.difference(&bears) {
            if let Some(bearers) = self.bearers.get_mut(plugin) {
                bearers.remove(key);
            }
            for scope in self.needing(&Node::Bearers(plugin.clone())) {
                self.release(scope, &node, &mut touched);
            }
        }
        // A resource may be concerned for several reasons at once.
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    fn needing(&self, node: &Node) -> Vec<ScopeId> {
        self.needed_by.get(node).into_iter().flat_map(BTreeMap::keys).copied().collect()
    }

    fn chosen_by(&self, choice: &Choice) -> BTreeSet<ScopeId> {
        let chooses = |id: &ScopeId| choice.chooses(&self.scopes[id]);
        match choice.exact() {
            Some(identities) => identities
                .filter_map(|id| self.by_identity.get(id))
                .flatten()
                .copied()
                .filter(chooses)
                .collect(),
            None => {
                let of_role = |role| self.by_role.get(role).into_iter().flatten().copied();
                choice.roles.iter().flat_map(of_role).filter(chooses).collect()
            }
        }
    }

    /// Enters a resource's choice where a data plane that comes will look; the one before it is taken out.
    fn index(&mut self, key: &Key, choice: &Choice) {
        if let Some(old) = self.facts.get(key) {
            match old.choice.exact() {
                Some(identities) => {
                    for id in identities {
                        if let Some(keys) = self.chosen_exactly.get_mut(id) {
                            keys.remove(key);
                            if keys.is_empty() {
                                self.chosen_exactly.remove(id);
                            }
                        }
                    }
                }
                None => {
                    for role in &old.choice.roles {
                        if let Some(keys) = self.chosen_openly.get_mut(role) {
                            keys.remove(key);
                        }
                    }
                }
            }
        }
        match choice.exact() {
            Some(identities) => {
                for id in identities {
                    self.chosen_exactly.entry(id.clone()).or_default().insert(key.clone());
                }
            }
            None => {
                for role in &choice.roles {
                    self.chosen_openly.entry(*role).or_default().insert(key.clone());
                }
            }
        }
    }

    fn acquire(&mut self, id: ScopeId, node: &Node, touched: &mut Vec<Touched>) {
        let count = self.needed_by.entry(node.clone()).or_default().entry(id).or_insert(0);
        *count += 1;
        if *count > 1 {
            return;
        }
        if let Some(scope) = self.scopes.get_mut(&id) {
            scope.needs.insert(node.clone());
        }
        for next in self.reached_from(id, node, touched) {
            self.acquire(id, &next, touched);
        }
    }

    fn release(&mut self, id: ScopeId, node: &Node, touched: &mut Vec<Touched>) {
        let Some(needed_by) = self.needed_by.get_mut(node) else { return };
        let Some(count) = needed_by.get_mut(&id) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        needed_by.remove(&id);
        if needed_by.is_empty() {
            self.needed_by.remove(node);
        }
        if let Some(scope) = self.scopes.get_mut(&id) {
            scope.needs.remove(node);
        }
        for next in self.reached_from(id, node, touched) {
            self.release(id, &next, touched);
        }
    }

    /// Notes that the node came into the scope or left it, and tells what comes or leaves with it.
    fn reached_from(&self, id: ScopeId, node: &Node, touched: &mut Vec<Touched>) -> Vec<Node> {
        match node {
            Node::Resource(key) => {
                let Some(facts) = self.facts.get(key) else { return Vec::new() };
                touched.push((id, key.clone()));
                facts.refers_to.iter().cloned().collect()
            }
            Node::Bearers(plugin) => {
                let bearers = self.bearers.get(plugin).into_iter().flatten();
                bearers.cloned().map(Node::Resource).collect()
            }
        }
    }
}

/// The roles that decide by policy.
const ENFORCING: &[Role] = &[Role::Sidecar, Role::Ingress];
/// Everybody.
const ALL: &[Role] = &[Role::Sidecar, Role::Ingress, Role::Issuer];

impl Choice {
    fn of(roles: &[Role], written: &[String], rules: &Rules) -> Result<Self, String> {
        let read = |text: &String| (rules.pattern)(text).map_err(|why| format!("{text:?}: {why}"));
        let identities = written.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { roles: roles.to_vec(), identities, written: written.to_vec() })
    }

    fn everybody(roles: &[Role]) -> Self {
        Self { roles: roles.to_vec(), ..Self::default() }
    }

    fn chooses(&self, scope: &Scope) -> bool {
        self.roles.contains(&scope.role)
            && (self.identities.is_empty()
                || self.identities.iter().any(|pattern| pattern.means(&scope.spiffe_id)))
    }

    /// The identities that are named, when there are some and none is a wildcard.
    fn exact(&self) -> Option<impl Iterator<Item = &Arc<str>>> {
        let exact = |pattern: &Pattern| matches!(pattern, Pattern::Exactly(_));
        if self.identities.is_empty() || !self.identities.iter().all(exact) {
            return None;
        }
        Some(self.identities.iter().filter_map(|pattern| match pattern {
            Pattern::Exactly(id) => Some(id),
            Pattern::Meets(_) => None,
        }))
    }
}

impl Facts {
    fn of(id: &Id, body: &Body, rules: &Rules) -> Result<Self, Invalid> {
        let mut facts =
            Self { choice: Choice::default(), refers_to: BTreeSet::new(), bears: BTreeSet::new() };
        match body {
            Body::Route(route) if route.status == Status::Enabled => {
                facts.choice = route_choice(route, rules)?;
                facts.refer(Kind::Services, route.service_id.as_ref());
                facts.refer(Kind::Upstreams, route.upstream_id.as_ref());
                facts.refer(Kind::PluginConfigs, route.plugin_config_id.as_ref());
                facts.show(route.upstream.as_deref());
                facts.run(route.plugins.as_ref(), rules);
            }
            Body::Service(service) => {
                facts.refer(Kind::Upstreams, service.upstream_id.as_ref());
                facts.show(service.upstream.as_deref());
                facts.run(service.plugins.as_ref(), rules);
            }
            Body::PluginConfig(config) => facts.run(Some(&config.plugins), rules),
            Body::GlobalRule(rule) => {
                facts.choice = Choice::everybody(&[Role::Ingress]);
                facts.run(Some(&rule.plugins), rules);
            }
            Body::ConsumerGroup(group) => facts.settle(Some(&group.plugins), rules),
            Body::Consumer(consumer) => {
                facts.refer(Kind::ConsumerGroups, consumer.group_id.as_ref());
                facts.settle(consumer.plugins.as_ref(), rules);
            }
            Body::Credential(credential) => {
                let consumer = id.as_str().split('/').next().unwrap_or_default();
                facts.refer(Kind::Consumers, Id::parse(consumer).ok().as_ref());
                facts.settle(Some(&credential.plugins), rules);
            }
            Body::PluginMetadata(_) => facts.choice = Choice::everybody(&[Role::Ingress]),
            // One for upstreams goes where an upstream names it.
            Body::Ssl(ssl) if ssl.is_served() => {
                facts.choice = Choice::everybody(&[Role::Ingress]);
            }
            Body::IdentityPolicy(policy) => {
                // What a selector that nobody can read selects is not known, so nobody may miss it.
                let named = &policy.selector.workloads;
                facts.choice = Choice::of(ENFORCING, named, rules)
                    .unwrap_or_else(|_| Choice::everybody(ENFORCING));
            }
            Body::IdentityMode(mode) => {
                facts.choice = Choice::of(ENFORCING, &mode.workloads, rules)
                    .unwrap_or_else(|_| Choice::everybody(ENFORCING));
            }
            Body::Workload(_) => facts.choice = Choice::everybody(&[Role::Issuer]),
            Body::TrustDomain(_) | Body::Revocation(_) => facts.choice = Choice::everybody(ALL),
            Body::Upstream(upstream) => facts.show(Some(upstream)),
            Body::Route(_)
            | Body::Ssl(_)
            | Body::Secret(_)
            | Body::Proto(_)
            | Body::StreamRoute(_) => {}
        }
        // Who keeps the secrets that it refers to; also for plugins that are disabled, which are compiled all the same.
        for borne in body.references() {
            if let Ok(reference) = borne.reference {
                facts.refer(Kind::Secrets, reference.manager());
            }
        }
        Ok(facts)
    }

    fn refer(&mut self, kind: Kind, id: Option<&Id>) {
        self.refers_to.extend(id.map(|id| Node::Resource((kind, id.clone()))));
    }

    /// The certificate that an upstream shows to its servers.
    fn show(&mut self, upstream: Option<&Upstream>) {
        let tls = upstream.and_then(|upstream| upstream.tls.as_ref());
        self.refer(Kind::Ssls, tls.and_then(|tls| tls.client_cert_id.as_ref()));
    }

    /// Plugins that run: an auth plugin among them asks for the consumers that it may find.
    fn run(&mut self, plugins: Option<&PluginSet>, rules: &Rules) {
        for (name, settings) in enabled(plugins) {
            self.plugin(name, settings);
            if let Some(auth) = rules.credentials_of(name) {
                self.refers_to.insert(Node::Bearers(auth));
                self.alternatives(settings, rules);
            }
        }
    }

    /// Plugins of a consumer: an auth plugin among them is a credential.
    fn settle(&mut self, plugins: Option<&PluginSet>, rules: &Rules) {
        for (name, settings) in enabled(plugins) {
            self.plugin(name, settings);
            self.bears.extend(rules.auth_plugin(name));
        }
    }

    /// What any plugin may refer to: its metadata, and upstreams by `upstream_id` anywhere in its settings.
    fn plugin(&mut self, name: &str, settings: &serde_json::Map<String, Value>) {
        self.refer(Kind::PluginMetadata, Id::parse(name).ok().as_ref());
        walk(settings, &mut |field, value| {
            if field == "upstream_id" {
                self.refer(Kind::Upstreams, id_in(value).as_ref());
            }
        });
    }

    /// What an auth plugin's settings name: the consumer of callers without a credential, and (in `multi-auth`) other plugins.
    fn alternatives(&mut self, settings: &serde_json::Map<String, Value>, rules: &Rules) {
        walk(settings, &mut |field, value| {
            if field == "anonymous_consumer" {
                self.refer(Kind::Consumers, id_in(value).as_ref());
            }
            self.refers_to.extend(rules.credentials_of(field).map(Node::Bearers));
        });
    }
}

impl Rules {
    fn auth_plugin(&self, name: &str) -> Option<Arc<str>> {
        self.auth_plugins.iter().find(|plugin| ***plugin == *name).cloned()
    }

    /// The plugin by whose credentials the one of that name finds consumers: itself or another.
    fn credentials_of(&self, name: &str) -> Option<Arc<str>> {
        let borrowed = || {
            let found = self.borrowers.iter().find(|(borrower, _)| **borrower == *name);
            found.map(|(_, lender)| lender.clone())
        };
        self.auth_plugin(name).or_else(borrowed)
    }
}

fn route_choice(route: &Route, rules: &Rules) -> Result<Choice, Invalid> {
    let role = match route.listener() {
        Listeners::Ingress => Role::Ingress,
        Listeners::Inbound | Listeners::Outbound => Role::Sidecar,
    };
    let named = route.workload_selector.as_ref().map_or(&[][..], |selector| &selector.spiffe_ids);
    Choice::of(&[role], named, rules)
        .map_err(|why| Invalid::new(format!("workload_selector.spiffe_ids: {why}")))
}

fn enabled(
    plugins: Option<&PluginSet>,
) -> impl Iterator<Item = (&String, &serde_json::Map<String, Value>)> {
    let runs = |meta: &crate::model::PluginMeta| !meta.disable;
    plugins
        .into_iter()
        .flatten()
        .filter(move |(_, settings)| settings.meta.as_ref().is_none_or(runs))
        .map(|(name, settings)| (name, &settings.config))
}

fn walk(fields: &serde_json::Map<String, Value>, see: &mut dyn FnMut(&str, &Value)) {
    for (field, value) in fields {
        see(field, value);
        walk_value(value, see);
    }
}

fn walk_value(value: &Value, see: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => walk(fields, see),
        Value::Array(values) => values.iter().for_each(|value| walk_value(value, see)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn id_in(value: &Value) -> Option<Id> {
    match value {
        Value::String(text) => Id::parse(text).ok(),
        Value::Number(number) => Id::parse(&number.to_string()).ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "tests write json!(..) in place")]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Reads patterns as tests write them: exact, or ending with `/*`.
    pub(crate) fn rules() -> Rules {
        let pattern = |text: &str| {
            if !text.starts_with("spiffe://") {
                return Err("does not start with spiffe://".to_owned());
            }
            Ok(match text.strip_suffix("/*") {
                Some(prefix) => {
                    let prefix = format!("{prefix}/");
                    Pattern::Meets(Arc::new(move |id| id.starts_with(&prefix)))
                }
                None => Pattern::Exactly(text.into()),
            })
        };
        Rules {
            pattern: Arc::new(pattern),
            auth_plugins: vec!["key-auth".into(), "basic-auth".into(), "multi-auth".into()],
            borrowers: vec![("token-auth".into(), "key-auth".into())],
        }
    }

    const CART: &str = "spiffe://shop/cart";
    const WEB: &str = "spiffe://shop/web";
    const EDGE: &str = "spiffe://shop/wardgate/ingress";

    fn key(name: &str) -> Key {
        let (kind, id) = name.split_once('/').unwrap();
        (Kind::named(kind).unwrap(), Id::parse(id).unwrap())
    }

    struct World(Scopes);

    impl World {
        fn new() -> Self {
            Self(Scopes::new(rules()))
        }
        fn put(&mut self, name: &str, value: Value) -> Vec<Touched> {
            let key = key(name);
            let body = Body::parse(key.0, &value).unwrap();
            self.0.put(&key, &body).unwrap()
        }
        fn delete(&mut self, name: &str) -> Vec<Touched> {
            self.0.delete(&key(name))
        }
        fn all(&self, scope: ScopeId) -> Vec<String> {
            let mut all: Vec<String> =
                self.0.all(scope).map(|(kind, id)| format!("{kind}/{id}")).collect();
            all.sort();
            for name in &all {
                assert!(self.0.needs(scope, &key(name)));
            }
            all
        }
    }

    fn route(workload: &str, more: Value) -> Value {
        let mut route = json!({"uri": "/x", "workload_selector": {"spiffe_ids": [workload]}});
        for (field, value) in more.as_object().unwrap() {
            route[field] = value.clone();
        }
        route
    }

    fn shop() -> World {
        let mut world = World::new();
        world.put("upstreams/cart", json!({"nodes": {"127.0.0.1:1": 1}}));
        world.put("upstreams/web", json!({"nodes": {"127.0.0.1:2": 1}}));
        world.put("upstreams/split", json!({"nodes": {"127.0.0.1:3": 1}}));
        world.put("services/cart", json!({"upstream_id": "cart", "plugins": {"key-auth": {}}}));
        world.put("plugin_configs/limits", json!({"plugins": {"limit-count": {"count": 1}}}));
        world.put(
            "routes/cart",
            route(CART, json!({"service_id": "cart", "plugin_config_id": "limits"})),
        );
        world.put(
            "routes/web",
            route(WEB, json!({"upstream_id": "web", "plugins": {"basic-auth": {}, "traffic-split": {"rules": [{"weighted_upstreams": [{"upstream_id": "split"}]}]}}})),
        );
        world.put("routes/public", json!({"uri": "/*", "upstream_id": "web"}));
        world.put(
            "consumers/bob",
            json!({"username": "bob", "group_id": "gold", "plugins": {"key-auth": {"key": "bobs"}}}),
        );
        world.put("consumers/eve", json!({"username": "eve"}));
        world.put(
            "credentials/eve/credentials/one",
            json!({"plugins": {"basic-auth": {"username": "eve", "password": "eves"}}}),
        );
        world.put("consumer_groups/gold", json!({"plugins": {"limit-count": {"count": 9}}}));
        world.put("global_rules/1", json!({"plugins": {"prometheus": {}}}));
        world.put("plugin_metadata/limit-count", json!({"a": 1}));
        world.put("plugin_metadata/http-logger", json!({"a": 1}));
        world.put("ssls/1", json!({"cert": "c", "key": "k", "sni": "shop.test"}));
        world.put("workloads/cart", json!({"spiffe_id": CART, "selectors": ["unix:uid:1"]}));
        let allow = |workloads: Value| json!({"action": "allow", "selector": {"workloads": workloads}, "rules": [{}]});
        world.put("identity_policies/cart", allow(json!([CART])));
        world.put("identity_policies/all", allow(json!([])));
        world.put("identity_modes/cart", json!({"mode": "permissive", "workloads": [CART]}));
        world
    }

    #[test]
    fn what_is_declared_about_trust_concerns_everybody() {
        let mut world = World::new();
        world.put("trust_domains/b.test", json!({"bundle": "x"}));
        world.put("revocations/1", json!({"spiffe_id": CART}));
        world.0.put_unreadable(&key("revocations/2"));
        for (role, id) in
            [(Role::Sidecar, WEB), (Role::Ingress, EDGE), (Role::Issuer, "spiffe://i")]
        {
            let scope = world.0.enter(role, id);
            let all = ["revocations/1", "revocations/2", "trust_domains/b.test"];
            assert_eq!(world.all(scope), all, "{role}");
        }
    }

    #[test]
    fn a_sidecar_receives_what_its_routes_use_and_never_another_workloads_consumers_or_secrets() {
        let mut world = shop();
        let cart = world.0.enter(Role::Sidecar, CART);
        assert_eq!(
            world.all(cart),
            [
                "consumer_groups/gold",
                "consumers/bob",
                "identity_modes/cart",
                "identity_policies/all",
                "identity_policies/cart",
                "plugin_configs/limits",
                "plugin_metadata/limit-count",
                "routes/cart",
                "services/cart",
                "upstreams/cart",
            ]
        );
        let web = world.0.enter(Role::Sidecar, WEB);
        assert_eq!(
            world.all(web),
            [
                "consumers/eve",
                "credentials/eve/credentials/one",
                "identity_policies/all",
                "routes/web",
                "upstreams/split",
                "upstreams/web",
            ]
        );
    }

    #[test]
    fn the_ingress_receives_what_is_public_and_the_issuer_only_registrations() {
        let mut world = shop();
        let edge = world.0.enter(Role::Ingress, EDGE);
        assert_eq!(
            world.all(edge),
            [
                "global_rules/1",
                "identity_policies/all",
                "plugin_metadata/http-logger",
                "plugin_metadata/limit-count",
                "routes/public",
                "ssls/1",
                "upstreams/web",
            ]
        );
        let issuer = world.0.enter(Role::Issuer, "spiffe://shop/wardgate/issuer");
        assert_eq!(world.all(issuer), ["workloads/cart"]);
    }

    #[test]
    fn a_client_certificate_is_for_whom_it_is_shown_by() {
        let mut world = shop();
        let client = json!({"type": "client", "cert": "c", "key": "k"});
        assert_eq!(world.put("ssls/client", client), []);
        let edge = world.0.enter(Role::Ingress, EDGE);
        let cart = world.0.enter(Role::Sidecar, CART);
        assert!(!world.all(edge).contains(&"ssls/client".to_owned()));
        let shows =
            json!({"nodes": {"a": 1}, "scheme": "https", "tls": {"client_cert_id": "client"}});
        world.put("upstreams/cart", shows.clone());
        assert!(world.all(cart).contains(&"ssls/client".to_owned()));
        assert!(!world.all(edge).contains(&"ssls/client".to_owned()));
        world.put("routes/public", json!({"uri": "/*", "upstream": shows}));
        assert!(world.all(edge).contains(&"ssls/client".to_owned()));
        world.put("upstreams/cart", json!({"nodes": {"a": 1}}));
        assert!(!world.all(cart).contains(&"ssls/client".to_owned()));
    }

    #[test]
    fn a_secret_manager_is_for_whom_bears_a_reference_to_it() {
        let mut world = shop();
        let manager = json!({"uri": "https://vault", "prefix": "kv", "token": "t"});
        for name in ["secrets/vault/1", "secrets/vault/2", "secrets/vault/3"] {
            assert_eq!(world.put(name, manager.clone()), []);
        }
        let edge = world.0.enter(Role::Ingress, EDGE);
        let cart = world.0.enter(Role::Sidecar, CART);
        let web = world.0.enter(Role::Sidecar, WEB);
        // bob calls the cart's sidecar alone.
        let key = |text: &str| json!({"username": "bob", "plugins": {"key-auth": {"key": text}}});
        world.put("consumers/bob", key("$secret://vault/1/bob/key"));
        let tls = |text: &str| json!({"nodes": {"a": 1}, "scheme": "https", "tls": {"client_cert": text, "client_key": text}});
        world.put("upstreams/web", tls("$secret://vault/2/web/pem"));
        let managers = |world: &World, scope| -> Vec<String> {
            world.all(scope).into_iter().filter(|name| name.starts_with("secrets/")).collect()
        };
        assert_eq!(managers(&world, cart), ["secrets/vault/1"]);
        assert_eq!(managers(&world, web), ["secrets/vault/2"]);
        assert_eq!(managers(&world, edge), ["secrets/vault/2"]);
        world.put("consumers/bob", key("$env://BOB"));
        assert_eq!(managers(&world, cart), Vec::<String>::new());
    }

    #[test]
    fn a_change_touches_only_whom_it_concerns() {
        let mut world = shop();
        let cart = world.0.enter(Role::Sidecar, CART);
        let web = world.0.enter(Role::Sidecar, WEB);
        let touched = world.put("upstreams/cart", json!({"nodes": {"127.0.0.1:9": 1}}));
        assert_eq!(touched, [(cart, key("upstreams/cart"))]);
        assert_eq!(world.put("ssls/2", json!({"cert": "c", "key": "k", "sni": "x.test"})), []);

        // A second reason to have the upstream, then both go one after the other.
        world.put("routes/second", route(CART, json!({"upstream_id": "cart"})));
        assert_eq!(world.delete("routes/second"), [(cart, key("routes/second"))]);
        let mut gone: Vec<String> = world
            .delete("routes/cart")
            .into_iter()
            .map(|(scope, (kind, id))| {
                assert_eq!(scope, cart);
                format!("{kind}/{id}")
            })
            .collect();
        gone.sort();
        assert_eq!(
            gone,
            [
                "consumer_groups/gold",
                "consumers/bob",
                "plugin_configs/limits",
                "plugin_metadata/limit-count",
                "routes/cart",
                "services/cart",
                "upstreams/cart",
            ]
        );
        assert_eq!(
            world.all(cart),
            ["identity_modes/cart", "identity_policies/all", "identity_policies/cart"]
        );
        assert!(world.all(web).contains(&"consumers/eve".into()));
    }

    #[test]
    fn a_route_that_moves_to_another_workload_leaves_the_first_one_with_all_it_brought() {
        let mut world = shop();
        let cart = world.0.enter(Role::Sidecar, CART);
        let web = world.0.enter(Role::Sidecar, WEB);
        world.put("routes/cart", route(WEB, json!({"service_id": "cart"})));
        assert_eq!(
            world.all(cart),
            ["identity_modes/cart", "identity_policies/all", "identity_policies/cart"]
        );
        assert!(world.all(web).contains(&"consumers/bob".into()));
        world.put("routes/cart", route("spiffe://shop/*", json!({"service_id": "cart"})));
        assert!(world.all(cart).contains(&"consumers/bob".into()));
        world.put(
            "routes/cart",
            route("spiffe://shop/*", json!({"service_id": "cart", "status": 0})),
        );
        assert!(!world.all(cart).contains(&"consumers/bob".into()));
    }

    #[test]
    fn disabled_plugins_ask_for_no_consumers_and_nested_and_anonymous_ones_do() {
        let mut world = shop();
        let scope = world.0.enter(Role::Sidecar, "spiffe://shop/x");
        let plugins = |plugins: Value| route("spiffe://shop/x", json!({"plugins": plugins}));
        world.put("routes/x", plugins(json!({"key-auth": {"_meta": {"disable": true}}})));
        assert_eq!(world.all(scope), ["identity_policies/all", "routes/x"]);
        world.put("routes/x", plugins(json!({"multi-auth": {"auth_plugins": [{"key-auth": {}}]}})));
        assert!(world.all(scope).contains(&"consumers/bob".into()));
        world.put("routes/x", plugins(json!({"token-auth": {}})));
        assert!(world.all(scope).contains(&"consumers/bob".into()), "by another's credentials");
        world.put("routes/x", plugins(json!({"key-auth": {"anonymous_consumer": "eve"}})));
        let all = world.all(scope);
        assert!(all.contains(&"consumers/bob".into()) && all.contains(&"consumers/eve".into()));
        assert!(!all.iter().any(|name| name.starts_with("credentials/")));
    }

    #[test]
    fn a_policy_that_nobody_can_read_goes_to_everybody_and_a_route_to_nobody() {
        let mut world = shop();
        let cart = world.0.enter(Role::Sidecar, CART);
        let edge = world.0.enter(Role::Ingress, EDGE);
        world.put(
            "identity_policies/bad",
            json!({"action": "deny", "selector": {"workloads": ["nonsense"]}, "rules": [{}]}),
        );
        world.0.put_unreadable(&key("identity_policies/worse"));
        for scope in [cart, edge] {
            let all = world.all(scope);
            assert!(all.contains(&"identity_policies/bad".into()));
            assert!(all.contains(&"identity_policies/worse".into()));
        }
        let body = Body::parse(Kind::Routes, &route("nonsense", json!({}))).unwrap();
        let error = world.0.put(&key("routes/cart"), &body).unwrap_err();
        assert!(
            error.to_string().starts_with("workload_selector.spiffe_ids: \"nonsense\""),
            "{error}"
        );
        assert!(world.all(cart).contains(&"routes/cart".into()), "the version before stays");
    }

    #[test]
    fn replicas_share_a_scope_and_the_last_one_takes_it_away() {
        let mut world = shop();
        let first = world.0.enter(Role::Sidecar, CART);
        let second = world.0.enter(Role::Sidecar, CART);
        assert_eq!(first, second);
        assert_ne!(first, world.0.enter(Role::Ingress, CART));
        world.0.leave(first);
        assert!(!world.all(first).is_empty());
        world.0.leave(second);
        assert!(world.all(first).is_empty());
        assert!(world.put("upstreams/cart", json!({"nodes": {"127.0.0.1:9": 1}})).is_empty());
    }

    fn arbitrary() -> impl Strategy<Value = (String, Option<Value>)> {
        let id = || (0..3u8).prop_map(|id| id.to_string());
        let workload = prop_oneof![
            Just(json!([CART])),
            Just(json!([WEB])),
            Just(json!([WEB, CART, CART])),
            Just(json!(["spiffe://shop/*"])),
            Just(json!([])),
        ];
        let plugins = || {
            prop_oneof![
                Just(json!({})),
                Just(json!({"key-auth": {}})),
                Just(json!({"basic-auth": {}, "limit-count": {}})),
                id().prop_map(|id| json!({"traffic-split": {"upstream_id": id}})),
                id().prop_map(|id| json!({"key-auth": {"anonymous_consumer": id}})),
            ]
        };
        let some = prop_oneof![
            (id(), workload, plugins(), id(), id(), 0..2u8).prop_map(
                |(id, workload, plugins, service, upstream, status)| {
                    let value = json!({
                        "uri": "/", "workload_selector": {"spiffe_ids": workload}, "plugins": plugins,
                        "service_id": service, "upstream_id": upstream, "status": status,
                    });
                    (format!("routes/{id}"), value)
                }
            ),
            (id(), plugins()).prop_map(|(id, plugins)| {
                (format!("routes/{id}"), json!({"uri": "/", "plugins": plugins}))
            }),
            (id(), plugins(), id()).prop_map(|(id, plugins, upstream)| {
                (format!("services/{id}"), json!({"plugins": plugins, "upstream_id": upstream}))
            }),
            id().prop_map(|id| (format!("upstreams/{id}"), json!({}))),
            (id(), plugins(), id()).prop_map(|(id, plugins, group)| {
                let value = json!({"username": id, "plugins": plugins, "group_id": group});
                (format!("consumers/{id}"), value)
            }),
            (id(), id(), plugins()).prop_map(|(consumer, id, plugins)| {
                (format!("credentials/{consumer}/credentials/{id}"), json!({"plugins": plugins}))
            }),
            id().prop_map(|id| (format!("consumer_groups/{id}"), json!({"plugins": {}}))),
            (id(), plugins()).prop_map(|(id, plugins)| (format!("global_rules/{id}"), json!({"plugins": plugins}))),
            Just(("plugin_metadata/limit-count".to_owned(), json!({}))),
        ];
        (some, 0..4u8).prop_map(|((name, value), deletes)| (name, (deletes > 0).then_some(value)))
    }

    proptest! {
        #[test]
        fn whatever_happens_a_scope_is_what_it_would_be_from_scratch(
            events in proptest::collection::vec(arbitrary(), 0..60), joins in 0..60usize,
        ) {
            let mut world = World::new();
            let mut last: BTreeMap<String, Value> = BTreeMap::new();
            let who = [(Role::Sidecar, CART), (Role::Sidecar, WEB), (Role::Ingress, EDGE)];
            let mut scopes = Vec::new();
            let mut told: BTreeSet<Touched> = BTreeSet::new();
            for (count, (name, value)) in events.into_iter().enumerate() {
                if count == joins {
                    scopes = who.map(|(role, id)| world.0.enter(role, id)).to_vec();
                }
                let before: Vec<_> = scopes.iter().map(|scope| world.all(*scope)).collect();
                let touched: BTreeSet<Touched> = match value {
                    Some(value) => {
                        last.insert(name.clone(), value.clone());
                        world.put(&name, value)
                    }
                    None => {
                        last.remove(&name);
                        world.delete(&name)
                    }
                }
                .into_iter()
                .collect();
                // Everything that came or went was told.
                for (scope, before) in scopes.iter().zip(before) {
                    let after = world.all(*scope);
                    for name in before.iter().filter(|name| !after.contains(name)).chain(after.iter().filter(|name| !before.contains(name))) {
                        prop_assert!(touched.contains(&(*scope, key(name))), "{} was not told", name);
                    }
                }
                told.extend(touched);
            }
            let mut fresh = World::new();
            for (name, value) in last {
                fresh.put(&name, value);
            }
            for (scope, (role, id)) in scopes.into_iter().zip(who) {
                let from_scratch = fresh.0.enter(role, id);
                prop_assert_eq!(world.all(scope), fresh.all(from_scratch));
                world.0.leave(scope);
            }
            prop_assert!(world.0.needed_by.is_empty());
            prop_assert!(world.0.by_identity.is_empty());
        }
    }
}
