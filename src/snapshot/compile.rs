//! A resource to its compiled parts. Nothing here looks at other resources but at plugin metadata.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::client_certificates::equipped;
use super::consumers::Held;
use super::merge::{Links, Plugins};
use super::named::Named;
use super::router::{Place, RouterKind};
use super::secrets::{Cleared, Secrets};
use super::ssls::Ssls;
use crate::identity::SpiffePattern;
use crate::model::{
    Id, Invalid, Kind, Listeners, Method, OneOrMany, PluginMeta, PluginSet, Recording, Route,
    Service, Timeout, Upstream,
};
use crate::observe::Registry;
use crate::pipeline::{
    Build, Entry, Exchange, Expr, Hooks, Kept, Link, Networks, Target, Targets, Template,
};
use crate::upstream::{Cluster, HashKey, Roster};

/// The table of plugins, with what compiling one needs beside its settings.
pub(super) struct Workshop<'a> {
    pub(super) table: &'a HashMap<&'static str, &'static Entry>,
    pub(super) metadata: &'a BTreeMap<Id, Arc<Value>>,
    pub(super) metrics: &'a Registry,
    pub(super) kept: &'a Kept,
    pub(super) router: RouterKind,
    pub(super) roster: &'a Roster,
    pub(super) ssls: &'a Ssls,
    pub(super) secrets: &'a Secrets,
    pub(super) named: &'a Named,
}

/// What must hold beside host and path.
#[derive(Debug)]
pub(super) struct Conditions {
    methods: Option<u16>,
    networks: Option<Networks>,
    vars: Option<Expr>,
}

impl Conditions {
    /// Nothing where nothing must hold: most of a hundred thousand routes are host and path alone.
    fn of(
        methods: Option<u16>,
        networks: Option<Networks>,
        vars: Option<Expr>,
    ) -> Option<Arc<Self>> {
        let is_any = methods.is_some() || networks.is_some() || vars.is_some();
        is_any.then(|| Arc::new(Self { methods, networks, vars }))
    }

    pub(super) fn hold(&self, method: Option<u16>, exchange: &Exchange) -> bool {
        self.methods.is_none_or(|mask| method.is_some_and(|bit| mask & bit != 0))
            && self
                .networks
                .as_ref()
                .is_none_or(|networks| networks.contains(exchange.remote().ip()))
            && self.vars.as_ref().is_none_or(|vars| vars.holds(exchange))
    }
}

/// A route's own parts.
#[derive(Debug)]
pub(super) struct RouteParts {
    pub(super) conditions: Option<Arc<Conditions>>,
    pub(super) plugins: Plugins,
    /// Its inline upstream.
    pub(super) cluster: Option<Arc<Cluster>>,
    /// Whom it is for; empty means everybody.
    pub(super) workloads: Vec<SpiffePattern>,
}

/// A service's own parts.
#[derive(Debug)]
pub(super) struct ServiceParts {
    pub(super) plugins: Plugins,
    /// Its inline upstream.
    pub(super) cluster: Option<Arc<Cluster>>,
}

/// Names a field in a sentence from further below.
fn at(field: &str) -> impl Fn(Invalid) -> Invalid + '_ {
    move |error| Invalid(format!("{field}: {error}"))
}

impl Workshop<'_> {
    /// Compiles a set of plugins. On a consumer the auth plugins among them are credentials and left out.
    pub(super) fn links(&self, kind: Kind, id: &Id, set: &PluginSet) -> Result<Links, Invalid> {
        let mut links = Links::new();
        for (name, settings) in set {
            let entry = self.entry(name)?;
            if kind == Kind::Consumers && entry.credential.is_some() {
                continue;
            }
            let refuse = |error: Invalid| refused(entry, &error);
            let metadata = self.metadata.get(entry.metadata_of.unwrap_or(name.as_str()));
            let metadata = metadata.map(|value| self.secrets.put_into_copy(value)).transpose();
            let metadata = metadata.map_err(|error| refuse(at("metadata")(error)))?;
            let build = Build {
                kind,
                owner: id,
                plugin: entry.name,
                metadata: metadata.as_ref().map(|(value, _)| &**value),
                targets: self,
                part: "",
                metrics: self.metrics,
                kept: self.kept,
            };
            let mut config = Value::Object(settings.config.clone());
            let cleared = self.secrets.put_into(&mut config).map_err(refuse)?;
            let of_metadata = metadata.as_ref().map(|(_, cleared)| cleared);
            let hooks = match (entry.compile)(&config, &build) {
                Ok(hooks) => hooks,
                // What fits is for those to tell who know what it is.
                Err(_) if cleared.is_trusted() || of_metadata.is_some_and(Cleared::is_trusted) => {
                    Hooks::none()
                }
                Err(error) => {
                    let error = cleared.veil(error);
                    return Err(refuse(match of_metadata {
                        Some(cleared) => cleared.veil(error),
                        None => error,
                    }));
                }
            };
            let link = link(entry, kind, settings.meta.as_ref(), hooks).map_err(refuse)?;
            links.insert(entry.name, link);
        }
        Ok(links)
    }

    fn entry(&self, name: &str) -> Result<&'static Entry, Invalid> {
        let found = self.table.get(name).copied();
        found.ok_or_else(|| Invalid::new(format!("unknown plugin [{name}]")))
    }

    /// What a consumer or credential declares for auth plugins.
    pub(super) fn credentials(&self, set: &PluginSet) -> Result<Vec<Held>, Invalid> {
        let mut held = Vec::new();
        for (name, settings) in set {
            let entry = self.entry(name)?;
            let (Some(check), Some(key)) = (entry.check_credential, entry.credential_key) else {
                continue;
            };
            let mut value = Value::Object(settings.config.clone());
            let cleared =
                self.secrets.put_into(&mut value).map_err(|error| refused(entry, &error))?;
            let judged = match entry.ready_credential {
                Some(ready) => ready(&value).map(Some),
                None => check(&value).map(|()| None),
            };
            let ready = match judged {
                Err(error) if !cleared.is_trusted() => {
                    return Err(refused(entry, &cleared.veil(error)));
                }
                judged => judged.unwrap_or_default(),
            };
            let key = value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            if key.is_empty() {
                return Err(refused(entry, &Invalid::new("an empty key would admit everybody")));
            }
            let is_pattern = entry.credential_is_pattern && !cleared.is_trusted();
            let pattern = is_pattern.then(|| key.parse()).transpose().map_err(|why| {
                refused(entry, &cleared.veil(Invalid::new(format!("{key}: {why}"))))
            })?;
            let settings = Arc::new(value);
            held.push(Held { plugin: entry.name, key, settings, ready, pattern });
        }
        Ok(held)
    }

    /// A credential is exactly one auth plugin's.
    pub(super) fn credential(&self, set: &PluginSet) -> Result<Vec<Held>, Invalid> {
        let held = self.credentials(set)?;
        if set.len() != 1 || held.len() != 1 {
            return Err(Invalid::new("plugins: a credential has exactly one auth plugin"));
        }
        Ok(held)
    }

    /// Judges a plugin's metadata; gives it without what the server wrote into it.
    pub(super) fn metadata(&self, id: &Id, value: &Value) -> Result<Arc<Value>, Invalid> {
        let entry = self.entry(id.as_str())?;
        let mut own = value.clone();
        if let Some(fields) = own.as_object_mut() {
            fields.retain(|name, _| !matches!(&**name, "id" | "create_time" | "update_time"));
        }
        let Some(check) = entry.check_metadata else {
            return Err(Invalid::new(format!("plugin {id} has no metadata")));
        };
        let (clear, cleared) =
            self.secrets.put_into_copy(&own).map_err(|error| refused(entry, &error))?;
        match check(&clear) {
            Err(error) if !cleared.is_trusted() => Err(refused(entry, &cleared.veil(error))),
            _ => Ok(Arc::new(own)),
        }
    }

    pub(super) fn route(&self, id: &Id, route: &Route) -> Result<RouteParts, Invalid> {
        if route.uri.is_some() == route.uris.is_some() {
            return Err(Invalid::new("uri: exactly one of uri and uris is expected"));
        }
        one_of_two("host", route.host.is_some(), "hosts", route.hosts.is_some())?;
        one_of_two(
            "remote_addr",
            route.remote_addr.is_some(),
            "remote_addrs",
            route.remote_addrs.is_some(),
        )?;
        let names_connect = |methods: &Vec<Method>| methods.contains(&Method::Connect);
        if route.enable_connect == Some(true) && !route.methods.as_ref().is_some_and(names_connect)
        {
            let sentence = "enable_connect: methods is expected to name CONNECT";
            return Err(Invalid::new(sentence));
        }
        if route.audit == Some(Recording::Required) && route.listener() == Listeners::Outbound {
            let sentence = "audit: required is for doors where policy decides; the outbound listener has no decisions to record";
            return Err(Invalid::new(sentence));
        }
        Place::parse(self.router, route.host_list().iter(), route.paths().iter(), route.priority)?;
        let none = PluginSet::new();
        let cluster = route.upstream.as_ref().map(|upstream| {
            self.cluster(&format!("routes/{id}"), upstream, route.timeout).map_err(at("upstream"))
        });
        Ok(RouteParts {
            conditions: Conditions::of(methods(route), networks(route)?, vars(route)?),
            plugins: self.links(Kind::Routes, id, route.plugins.as_ref().unwrap_or(&none))?.into(),
            cluster: cluster.transpose()?,
            workloads: workloads(route)?,
        })
    }

    /// Compiles an upstream, `timeout` being the route's.
    pub(super) fn cluster(
        &self,
        name: &str,
        upstream: &Upstream,
        timeout: Option<Timeout>,
    ) -> Result<Arc<Cluster>, Invalid> {
        let (upstream, cleared) = self.secrets.upstream(equipped(upstream, self.ssls))?;
        let cluster = Cluster::compile(name, &upstream, timeout, self.roster)
            .map_err(|error| cleared.veil(error))?;
        hash_template(&cluster).map_err(at("key"))?;
        Ok(cluster)
    }

    /// What is left of a route that does not compile: enough to stand in its place and refuse.
    ///
    /// A condition that cannot be read is taken to hold, so that no other route answers what this one would have guarded.
    pub(super) fn route_in_name_only(route: &Route) -> RouteParts {
        RouteParts {
            conditions: Conditions::of(
                methods(route),
                networks(route).unwrap_or_default(),
                vars(route).unwrap_or_default(),
            ),
            plugins: Plugins::none(),
            cluster: None,
            workloads: workloads(route).unwrap_or_default(),
        }
    }

    /// Where a route stands. `hosts` are its service's, for a route that names none.
    pub(super) fn place(&self, route: &Route, service: Option<&Service>) -> Result<Place, Invalid> {
        let (own, inherited) = hosts(route, service);
        let hosts = own.iter().chain(inherited.iter().map(String::as_str));
        Place::parse(self.router, hosts, route.paths().iter(), route.priority)
    }

    /// Where a route stands as far as its hosts and paths can be read; `None` when nothing is left.
    pub(super) fn readable_place(&self, route: &Route, service: Option<&Service>) -> Option<Place> {
        let (own, inherited) = hosts(route, service);
        let hosts: Vec<&str> = own.iter().chain(inherited.iter().map(String::as_str)).collect();
        let reads = |hosts: &[&str], path: &str| {
            Place::parse(self.router, hosts.iter().copied(), [path], 0).is_ok()
        };
        let readable: Vec<&str> =
            hosts.iter().copied().filter(|host| reads(&[host], "/")).collect();
        if readable.is_empty() && !hosts.is_empty() {
            return None;
        }
        let paths = route.paths();
        let paths = paths.iter().filter(|path| reads(&[], path));
        Place::parse(self.router, readable, paths, route.priority).ok()
    }

    pub(super) fn service(&self, id: &Id, service: &Service) -> Result<ServiceParts, Invalid> {
        let hosts = service.hosts.iter().flatten().map(String::as_str);
        Place::parse(self.router, hosts, ["/"], 0).map_err(at("hosts"))?;
        let none = PluginSet::new();
        let cluster = service.upstream.as_ref().map(|upstream| {
            self.cluster(&format!("services/{id}"), upstream, None).map_err(at("upstream"))
        });
        Ok(ServiceParts {
            plugins: self
                .links(Kind::Services, id, service.plugins.as_ref().unwrap_or(&none))?
                .into(),
            cluster: cluster.transpose()?,
        })
    }
}

impl Targets for Workshop<'_> {
    fn own(&self, name: &str, upstream: Upstream) -> Result<Arc<Target>, Invalid> {
        Target::of(self.cluster(name, &upstream, None)?).map(Arc::new)
    }

    fn declared(&self, id: Id) -> Arc<Id> {
        self.named.hold(id)
    }
}

/// What the cluster's ring hashes, if it has one.
///
/// # Errors
/// It names an unknown variable. A cluster of [`Workshop::cluster`] names none.
pub(super) fn hash_template(cluster: &Cluster) -> Result<Option<Template>, Invalid> {
    Ok(match &cluster.hash_key {
        None => None,
        Some(HashKey::Variable(name)) => Some(Template::of_variable(name)?),
        Some(HashKey::Text(text)) => Some(Template::parse(text)?),
    })
}

fn link(
    entry: &'static Entry,
    kind: Kind,
    meta: Option<&PluginMeta>,
    hooks: Hooks,
) -> Result<Link, Invalid> {
    let mut link = Link::new(entry.name, entry.priority, meta, hooks)?;
    if entry.authenticates {
        link = link.authenticating();
    }
    if kind == Kind::GlobalRules && entry.prefers_route {
        link = link.preferring_route();
    }
    Ok(link)
}

fn refused(entry: &Entry, error: &Invalid) -> Invalid {
    Invalid(format!("failed to check the configuration of plugin {} err: {error}", entry.name))
}

fn one_of_two(one: &str, has_one: bool, many: &str, has_many: bool) -> Result<(), Invalid> {
    if has_one && has_many {
        return Err(Invalid(format!("{one}: only one of {one} and {many} is expected")));
    }
    Ok(())
}

/// The route's own hosts, or else its service's.
fn hosts<'a>(route: &'a Route, service: Option<&'a Service>) -> (OneOrMany<'a>, &'a [String]) {
    let own = route.host_list();
    let inherits = own.iter().next().is_none();
    let inherited = service.filter(|_| inherits).and_then(|service| service.hosts.as_deref());
    (own, inherited.unwrap_or_default())
}

/// The hosts that hold for a route, as they are written.
pub(super) fn host_names(route: &Route, service: Option<&Service>) -> Vec<String> {
    let (own, inherited) = hosts(route, service);
    own.iter().map(str::to_owned).chain(inherited.iter().cloned()).collect()
}

fn methods(route: &Route) -> Option<u16> {
    let methods = route.methods.as_ref().filter(|methods| !methods.is_empty())?;
    Some(methods.iter().copied().map(Method::mask).fold(0, |mask, bit| mask | bit))
}

fn networks(route: &Route) -> Result<Option<Networks>, Invalid> {
    let networks = Networks::parse(route.networks().iter()).map_err(at("remote_addrs"))?;
    Ok((!networks.is_empty()).then_some(networks))
}

fn vars(route: &Route) -> Result<Option<Expr>, Invalid> {
    let parse = |vars| Expr::parse(vars).map_err(|why| Invalid(format!("vars: {why}")));
    route.vars.as_deref().map(parse).transpose()
}

fn workloads(route: &Route) -> Result<Vec<SpiffePattern>, Invalid> {
    let texts = route.workload_selector.iter().flat_map(|selector| &selector.spiffe_ids);
    let parse = |text: &String| {
        text.parse()
            .map_err(|why| Invalid(format!("workload_selector.spiffe_ids: '{text}': {why}")))
    };
    texts.map(parse).collect()
}
