//! Linkerd's Server, HTTPRoute, AuthorizationPolicy, MeshTLSAuthentication, NetworkAuthentication and ServerAuthorization.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::draft::Draft;
use super::objects::{Object, objects};
use super::options::ImportOptions;
use super::report::{Import, Weight};
use super::wildcard::quoted;
use crate::model::{
    From, IdentityMode, IdentityPolicy, Invalid, Labels, Mode, PolicyAction, PolicyRule,
    PolicySelector, Strictness, To, ValueMatch,
};
use crate::policy::check;
use crate::policy::files::Flaw;

/// What differs for every policy of Linkerd.
const GENERAL: &[&str] = &[
    "Nothing is allowed by default. In Linkerd a port that no Server selects follows the default policy (all-unauthenticated unless it \
     was set); here it refuses everybody.",
    "Identities are SPIFFE IDs: `web.shop.serviceaccount.identity.linkerd.cluster.local` is `spiffe://<trust domain>/ns/shop/sa/web`.",
    "Callers without mTLS are refused at the door (strict) except on ports where an authorization admits networks without identity: \
     these get an identity mode `permissive`.",
    "Paths are judged on all their readings (docs/policy.md); a path that reads differently for different programs is not allowed.",
    "A request that wants to switch its protocol (WebSocket, CONNECT) needs a rule with `to.upgrades`.",
    "An authorization of a Server holds for all its routes; one of a route for that route only.",
    "Probes of the kubelet have no exemption: they need a rule, or the sidecar's own probe port.",
    "`ports` are those of the sidecar's listener. Where one listener takes the traffic of all ports, name the original ones there.",
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Server {
    pod_selector: Option<PodSelector>,
    external_workload_selector: Option<PodSelector>,
    port: Port,
    proxy_protocol: Option<String>,
    access_policy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct PodSelector {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Name(String),
}

impl Default for Port {
    fn default() -> Self {
        Self::Name(String::new())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Authorization {
    target_ref: Reference,
    required_authentication_refs: Vec<Reference>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Reference {
    group: String,
    kind: String,
    name: String,
    namespace: Option<String>,
    section_name: Option<String>,
    port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct MeshTls {
    identities: Vec<String>,
    identity_refs: Vec<Reference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NetworkAuthentication {
    networks: Vec<Network>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Network {
    cidr: String,
    except: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct HttpRoute {
    parent_refs: Vec<Reference>,
    hostnames: Vec<String>,
    rules: Vec<RouteRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RouteRule {
    matches: Vec<RouteMatch>,
    filters: Vec<serde_json::Value>,
    backend_refs: Vec<serde_json::Value>,
    timeouts: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RouteMatch {
    path: Option<PathMatch>,
    method: Option<String>,
    headers: Vec<NamedMatch>,
    query_params: Vec<NamedMatch>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PathMatch {
    r#type: Option<String>,
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NamedMatch {
    r#type: Option<String>,
    name: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServerAuthorization {
    server: ServerChoice,
    client: Client,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServerChoice {
    name: Option<String>,
    selector: Option<PodSelector>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Client {
    networks: Vec<Network>,
    unauthenticated: bool,
    #[serde(rename = "meshTLS")]
    mesh_tls: Option<ClientMeshTls>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ClientMeshTls {
    #[serde(rename = "unauthenticatedTLS")]
    unauthenticated_tls: bool,
    identities: Vec<String>,
    #[serde(rename = "serviceAccounts")]
    service_accounts: Vec<Reference>,
}

/// A Server that we can say: whose, and where.
struct KnownServer {
    workloads: Vec<String>,
    port: u16,
}

/// Who is admitted: all given parts must hold.
#[derive(Clone, Debug, Default)]
struct Admitted {
    principals: Option<Vec<String>>,
    networks: Option<Vec<Network>>,
}

/// Reads Linkerd's objects (file names and texts).
///
/// # Errors
/// Texts that are no objects, fields that are not known, and policies that could not stand; each with its place.
pub fn import_linkerd(
    texts: &[(String, String)],
    options: &ImportOptions,
) -> Result<Import, Vec<Flaw>> {
    let objects = objects(texts)?;
    let mut linkerd = Linkerd::new(options, &objects)?;
    let mut flaws = Vec::new();
    for object in &objects {
        let outcome = match (object.group.as_str(), object.kind.as_str()) {
            ("policy.linkerd.io", "AuthorizationPolicy") => linkerd.authorization(object),
            ("policy.linkerd.io", "ServerAuthorization") => linkerd.server_authorization(object),
            ("policy.linkerd.io", "Server") => linkerd.access_policy(object),
            (
                "policy.linkerd.io" | "gateway.networking.k8s.io",
                "HTTPRoute" | "MeshTLSAuthentication" | "NetworkAuthentication",
            ) => Ok(()),
            (group, kind) => {
                let sentence = format!(
                    "{kind} of {group} is not brought in; what refers to it allows nothing"
                );
                linkerd.import.differs(Weight::Stricter, object, "kind", sentence);
                Ok(())
            }
        };
        flaws.extend(outcome.err());
    }
    linkerd.open_doors();
    if flaws.is_empty() { Ok(linkerd.import) } else { Err(flaws) }
}

type Key = (String, String);

struct Linkerd<'a> {
    options: &'a ImportOptions,
    import: Import,
    servers: BTreeMap<Key, (&'a Object, Server, Option<KnownServer>)>,
    routes: BTreeMap<Key, (&'a Object, HttpRoute)>,
    mesh_tls: BTreeMap<Key, (&'a Object, MeshTls)>,
    networks: BTreeMap<Key, NetworkAuthentication>,
    /// Ports that admit callers without identity, by their workloads.
    plain: BTreeMap<Vec<String>, BTreeSet<u16>>,
}

impl<'a> Linkerd<'a> {
    fn new(options: &'a ImportOptions, objects: &'a [Object]) -> Result<Self, Vec<Flaw>> {
        let mut linkerd = Self {
            options,
            import: Import { general: GENERAL, ..Import::default() },
            servers: BTreeMap::new(),
            routes: BTreeMap::new(),
            mesh_tls: BTreeMap::new(),
            networks: BTreeMap::new(),
            plain: BTreeMap::new(),
        };
        let flaws: Vec<Flaw> =
            objects.iter().filter_map(|object| linkerd.note(object).err()).collect();
        if flaws.is_empty() { Ok(linkerd) } else { Err(flaws) }
    }

    /// Takes up what others refer to.
    fn note(&mut self, object: &'a Object) -> Result<(), Flaw> {
        let key = (object.namespace.clone(), object.name.clone());
        match (object.group.as_str(), object.kind.as_str()) {
            ("policy.linkerd.io", "Server") => {
                let server: Server = object.spec()?;
                let known = self.known(object, &server);
                self.servers.insert(key, (object, server, known));
            }
            ("policy.linkerd.io" | "gateway.networking.k8s.io", "HTTPRoute") => {
                self.routes.insert(key, (object, object.spec()?));
            }
            ("policy.linkerd.io", "MeshTLSAuthentication") => {
                self.mesh_tls.insert(key, (object, object.spec()?));
            }
            ("policy.linkerd.io", "NetworkAuthentication") => {
                self.networks.insert(key, object.spec()?);
            }
            _ => {}
        }
        Ok(())
    }

    fn known(&mut self, object: &Object, server: &Server) -> Option<KnownServer> {
        let mut stricter = |field: &str, sentence: &str| {
            self.import.differs(Weight::Stricter, object, field, sentence);
        };
        let port = match &server.port {
            Port::Number(port) if *port > 0 => Some(*port),
            Port::Number(_) => None,
            Port::Name(name) => self.options.port(name),
        };
        if port.is_none() {
            stricter(
                "spec.port",
                "which number the port has is not known, so nothing is allowed there; say it with --map port=NAME=NUMBER",
            );
        }
        let selector = server.pod_selector.as_ref().or(server.external_workload_selector.as_ref());
        let selector = selector.filter(|selector| selector.match_expressions.is_empty());
        let workloads = match selector {
            None => {
                stricter(
                    "spec.podSelector",
                    "expressions over labels cannot be said, so nothing is allowed there",
                );
                None
            }
            Some(selector) if selector.match_labels.is_empty() => {
                Some(vec![self.options.namespace(&object.namespace)])
            }
            Some(selector) => {
                let known = self.options.bearers(&object.namespace, &selector.match_labels);
                if known.is_none() {
                    stricter(
                        "spec.podSelector",
                        "we select by SPIFFE ID: which workloads these are is not known, so nothing is allowed there; say it with \
                         --map label=value=ID",
                    );
                }
                known
            }
        };
        Some(KnownServer { workloads: workloads?, port: port? })
    }

    /// What a Server allows beside its authorizations.
    fn access_policy(&mut self, object: &Object) -> Result<(), Flaw> {
        let key = (object.namespace.clone(), object.name.clone());
        let Some((_, server, known)) = self.servers.get(&key) else { return Ok(()) };
        let opaque =
            server.proxy_protocol.as_deref().filter(|name| ["opaque", "TLS"].contains(name));
        if let Some(name) = opaque {
            let sentence = format!(
                "{name}: the content is not read (layer 4); rules for requests do not hold there"
            );
            self.import.differs(Weight::Note, object, "spec.proxyProtocol", sentence);
        }
        let admitted = match server.access_policy.as_deref() {
            None | Some("deny") => return Ok(()),
            Some("all-unauthenticated") => {
                let everywhere = |cidr: &str| Network { cidr: cidr.into(), except: Vec::new() };
                Admitted {
                    principals: None,
                    networks: Some(vec![everywhere("0.0.0.0/0"), everywhere("::/0")]),
                }
            }
            Some("all-authenticated") => {
                Admitted { principals: Some(vec!["*".into()]), networks: None }
            }
            Some(other) => {
                let sentence = format!(
                    "{other} cannot be said (which networks are the cluster's is not known here): nothing is allowed by it"
                );
                self.import.differs(Weight::Stricter, object, "spec.accessPolicy", sentence);
                return Ok(());
            }
        };
        let Some(KnownServer { workloads, port }) = known else { return Ok(()) };
        let (workloads, port) = (workloads.clone(), *port);
        let to = vec![To { ports: vec![port], ..To::default() }];
        self.write(
            object,
            "access",
            workloads,
            &admitted,
            to.into_iter().map(|to| (to, None)).collect(),
            port,
        )
    }

    fn authorization(&mut self, object: &Object) -> Result<(), Flaw> {
        let spec: Authorization = object.spec()?;
        let Some(admitted) = self.admitted(object, &spec.required_authentication_refs) else {
            return Ok(());
        };
        let target = &spec.target_ref;
        let namespace = target.namespace.as_deref().unwrap_or(&object.namespace).to_owned();
        match target.kind.as_str() {
            "Server" => {
                self.for_server(object, &(namespace, target.name.clone()), &admitted, "server")
            }
            "Namespace" => {
                let keys: Vec<Key> =
                    self.servers.keys().filter(|(of, _)| *of == target.name).cloned().collect();
                if keys.is_empty() {
                    let sentence = format!(
                        "namespace {} has no Server among the objects: nothing is allowed",
                        target.name
                    );
                    self.import.differs(Weight::Stricter, object, "spec.targetRef", sentence);
                }
                keys.iter().try_for_each(|key| self.for_server(object, key, &admitted, &key.1))
            }
            "HTTPRoute" => self.for_route(object, &(namespace, target.name.clone()), &admitted),
            other => {
                let sentence = format!(
                    "{other} {} as a target cannot be said: nothing is allowed",
                    target.name
                );
                self.import.differs(Weight::Stricter, object, "spec.targetRef", sentence);
                Ok(())
            }
        }
    }

    /// Who is admitted. `None`: something that is asked for is not known, so nobody.
    fn admitted(&mut self, object: &Object, references: &[Reference]) -> Option<Admitted> {
        let mut admitted = Admitted::default();
        if references.is_empty() {
            let sentence = "without an authentication it allows nothing that can be said: left out";
            self.import.differs(
                Weight::Stricter,
                object,
                "spec.requiredAuthenticationRefs",
                sentence,
            );
            return None;
        }
        for (at, reference) in references.iter().enumerate() {
            let field = format!("spec.requiredAuthenticationRefs[{at}]");
            let namespace = reference.namespace.as_deref().unwrap_or(&object.namespace);
            let key = (namespace.to_owned(), reference.name.clone());
            let twice = match reference.kind.as_str() {
                "MeshTLSAuthentication" | "ServiceAccount" => admitted.principals.is_some(),
                _ => admitted.networks.is_some(),
            };
            let found = match reference.kind.as_str() {
                _ if twice => None,
                "ServiceAccount" => {
                    let account = self.account(namespace, &reference.name);
                    admitted.principals = Some(vec![account]);
                    Some(())
                }
                "MeshTLSAuthentication" => {
                    admitted.principals = self.identities(&key);
                    admitted.principals.as_ref().map(|_| ())
                }
                "NetworkAuthentication" => {
                    admitted.networks = self.networks.get(&key).map(|found| found.networks.clone());
                    admitted.networks.as_ref().map(|_| ())
                }
                _ => None,
            };
            if found.is_none() {
                let sentence = match twice {
                    true => "two authentications of one sort, both of which must hold, cannot be said: nothing is allowed".to_owned(),
                    false => format!("{} {}/{} is not among the objects, or admits nobody: nothing is allowed", reference.kind, key.0, key.1),
                };
                self.import.differs(Weight::Stricter, object, field, sentence);
                return None;
            }
        }
        Some(admitted)
    }

    fn account(&self, namespace: &str, name: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/{name}", self.options.trust_domain.as_str())
    }

    /// Patterns of a MeshTLSAuthentication; `*`: anybody with an identity. What cannot be said is left out.
    fn identities(&mut self, key: &Key) -> Option<Vec<String>> {
        let (object, spec) = self.mesh_tls.get(key)?;
        let object = *object;
        let mut patterns = Vec::new();
        let mut unsaid = Vec::new();
        for (at, identity) in spec.identities.iter().enumerate() {
            match self.identity(identity) {
                Some(pattern) => patterns.push(pattern),
                None => unsaid.push((format!("spec.identities[{at}]"), identity.clone())),
            }
        }
        for (at, reference) in spec.identity_refs.iter().enumerate() {
            match reference.kind.as_str() {
                "ServiceAccount" => {
                    let namespace = reference.namespace.as_deref().unwrap_or(&object.namespace);
                    patterns.push(self.account(namespace, &reference.name));
                }
                "Namespace" => patterns.push(self.options.namespace(&reference.name)),
                other => unsaid.push((format!("spec.identityRefs[{at}]"), other.to_owned())),
            }
        }
        for (field, what) in unsaid {
            let sentence =
                format!("{what} cannot be said as a SPIFFE ID: left out, and not allowed");
            self.import.differs(Weight::Stricter, object, field, sentence);
        }
        (!patterns.is_empty()).then_some(patterns)
    }

    fn identity(&self, identity: &str) -> Option<String> {
        const MIDDLE: &str = ".serviceaccount.identity.";
        if identity == "*" {
            return Some("*".to_owned());
        }
        if identity.starts_with("spiffe://") {
            let usable = identity.parse::<crate::identity::SpiffeId>().is_ok();
            return usable.then(|| identity.to_owned());
        }
        // `web.shop.serviceaccount.identity.linkerd.cluster.local`: names have no dots, namespaces neither.
        let (who, control) = match identity.split_once(MIDDLE) {
            Some((who, control)) => (who, control),
            None => ("", identity.strip_prefix("*.serviceaccount.identity.")?),
        };
        // Linkerd's control plane and the trust domain; another one's identities are another domain's.
        let (_, domain) = control.split_once('.')?;
        if domain != self.options.trust_domain.as_str() {
            return None;
        }
        match who.split_once('.') {
            None if who.is_empty() => Some(format!("spiffe://{domain}/ns/*/sa/*")),
            Some((name, namespace)) if !namespace.contains('.') => {
                Some(format!("spiffe://{domain}/ns/{namespace}/sa/{name}"))
            }
            None if who != "*" => None,
            _ => None,
        }
    }

    fn for_server(
        &mut self,
        object: &Object,
        key: &Key,
        admitted: &Admitted,
        suffix: &str,
    ) -> Result<(), Flaw> {
        let Some((_, _, known)) = self.servers.get(key) else {
            let sentence =
                format!("Server {}/{} is not among the objects: nothing is allowed", key.0, key.1);
            self.import.differs(Weight::Stricter, object, "spec.targetRef", sentence);
            return Ok(());
        };
        // What is not known of a Server was told with the Server.
        let Some(KnownServer { workloads, port }) = known else { return Ok(()) };
        let (workloads, port) = (workloads.clone(), *port);
        let to = To { ports: vec![port], ..To::default() };
        self.write(object, suffix, workloads, admitted, vec![(to, None)], port)
    }

    fn for_route(&mut self, object: &Object, key: &Key, admitted: &Admitted) -> Result<(), Flaw> {
        let Some((route_object, route)) = self.routes.get(key) else {
            let sentence = format!(
                "HTTPRoute {}/{} is not among the objects: nothing is allowed",
                key.0, key.1
            );
            self.import.differs(Weight::Stricter, object, "spec.targetRef", sentence);
            return Ok(());
        };
        let route_object = *route_object;
        let mut targets = Vec::new();
        let mut unsaid = Vec::new();
        for (at, rule) in route.rules.iter().enumerate() {
            if !rule.filters.is_empty() || !rule.backend_refs.is_empty() || rule.timeouts.is_some()
            {
                let sentence =
                    "filters, backends and timeouts say nothing of policy: they belong to routes";
                unsaid.push((Weight::Note, format!("spec.rules[{at}]"), sentence.to_owned()));
            }
            let everything = [RouteMatch::default()];
            let matches = if rule.matches.is_empty() { &everything[..] } else { &rule.matches[..] };
            for (of, matched) in matches.iter().enumerate() {
                match said(matched, &route.hostnames) {
                    Ok(target) => targets.push(target),
                    Err(why) => {
                        let sentence = format!("{why}: left out, and not allowed");
                        let field = format!("spec.rules[{at}].matches[{of}]");
                        unsaid.push((Weight::Stricter, field, sentence));
                    }
                }
            }
        }
        let parents: Vec<Key> = route
            .parent_refs
            .iter()
            .filter(|parent| parent.kind == "Server")
            .map(|parent| {
                let namespace = parent.namespace.as_deref().unwrap_or(&key.0);
                (namespace.to_owned(), parent.name.clone())
            })
            .collect();
        for (weight, field, sentence) in unsaid {
            self.import.differs(weight, route_object, field, sentence);
        }
        if parents.is_empty() {
            let sentence = "the route has no Server as its parent: nothing is allowed";
            self.import.differs(Weight::Stricter, object, "spec.targetRef", sentence);
        }
        for parent in parents {
            let Some((_, _, Some(KnownServer { workloads, port }))) = self.servers.get(&parent)
            else {
                let sentence =
                    format!("Server {}/{} is not known: nothing is allowed", parent.0, parent.1);
                self.import.differs(Weight::Stricter, object, "spec.targetRef", sentence);
                continue;
            };
            let (workloads, port) = (workloads.clone(), *port);
            let targets = targets
                .iter()
                .cloned()
                .map(|(to, more)| (To { ports: vec![port], ..to }, more))
                .collect();
            self.write(object, &parent.1, workloads, admitted, targets, port)?;
        }
        Ok(())
    }

    fn server_authorization(&mut self, object: &Object) -> Result<(), Flaw> {
        let spec: ServerAuthorization = object.spec()?;
        let mut admitted = Admitted::default();
        if !spec.client.networks.is_empty() {
            admitted.networks = Some(spec.client.networks.clone());
        }
        match spec.client.mesh_tls {
            Some(tls) if tls.unauthenticated_tls => {
                let sentence = "TLS without identity cannot be said: nothing is allowed";
                self.import.differs(
                    Weight::Stricter,
                    object,
                    "spec.client.meshTLS.unauthenticatedTLS",
                    sentence,
                );
                return Ok(());
            }
            Some(tls) => {
                let mut patterns = Vec::new();
                for (at, identity) in tls.identities.iter().enumerate() {
                    match self.identity(identity) {
                        Some(pattern) => patterns.push(pattern),
                        None => {
                            let sentence = format!(
                                "{identity} cannot be said as a SPIFFE ID: left out, and not allowed"
                            );
                            let field = format!("spec.client.meshTLS.identities[{at}]");
                            self.import.differs(Weight::Stricter, object, field, sentence);
                        }
                    }
                }
                for account in &tls.service_accounts {
                    let namespace = account.namespace.as_deref().unwrap_or(&object.namespace);
                    patterns.push(self.account(namespace, &account.name));
                }
                if patterns.is_empty() {
                    return Ok(());
                }
                admitted.principals = Some(patterns);
            }
            None if !spec.client.unauthenticated => {
                let sentence = "neither meshTLS nor unauthenticated: nothing is allowed";
                self.import.differs(Weight::Note, object, "spec.client", sentence);
                return Ok(());
            }
            None if admitted.networks.is_none() => {
                let everywhere = |cidr: &str| Network { cidr: cidr.into(), except: Vec::new() };
                admitted.networks = Some(vec![everywhere("0.0.0.0/0"), everywhere("::/0")]);
            }
            None => {}
        }
        let keys: Vec<Key> = match (&spec.server.name, &spec.server.selector) {
            (Some(name), _) => vec![(object.namespace.clone(), name.clone())],
            (None, Some(selector)) if selector.match_expressions.is_empty() => {
                let bears = |server: &Object| {
                    selector
                        .match_labels
                        .iter()
                        .all(|(label, value)| server.labels.get(label) == Some(value))
                };
                let of_here = self.servers.iter().filter(|((namespace, _), (server, ..))| {
                    *namespace == object.namespace && bears(server)
                });
                of_here.map(|(key, _)| key.clone()).collect()
            }
            _ => {
                let sentence = "expressions over labels cannot be said: nothing is allowed";
                self.import.differs(Weight::Stricter, object, "spec.server", sentence);
                return Ok(());
            }
        };
        if keys.is_empty() {
            let sentence = "selects no Server among the objects: nothing is allowed";
            self.import.differs(Weight::Stricter, object, "spec.server", sentence);
        }
        keys.iter().try_for_each(|key| self.for_server(object, key, &admitted, &key.1))
    }

    fn write(
        &mut self,
        object: &Object,
        suffix: &str,
        workloads: Vec<String>,
        admitted: &Admitted,
        targets: Vec<(To, Option<Draft>)>,
        port: u16,
    ) -> Result<(), Flaw> {
        if admitted.principals.is_none() {
            self.plain.entry(workloads.clone()).or_default().insert(port);
        }
        let mut rules: Vec<PolicyRule> = Vec::new();
        for (to, more) in targets {
            for from in callers(admitted) {
                let name = format!("rule-{}", rules.len() + 1);
                let mut draft =
                    more.clone().unwrap_or_else(|| Draft::new(name.clone(), PolicyAction::Allow));
                draft.name = name;
                draft.to = to.clone();
                draft.from = from;
                if draft.from.principals.iter().any(|pattern| pattern == "*") {
                    draft.from.principals.clear();
                    draft.require("source.id != \"\"".to_owned());
                }
                rules.extend(draft.rule());
            }
        }
        if rules.is_empty() {
            return Ok(());
        }
        let mut id = object.id("linkerd")?;
        if suffix != "server" {
            let longer = format!("{id}-{suffix}");
            id = crate::model::Id::parse(&longer)
                .map_err(|error| object.flaw(format!("metadata.name: as an id, {error}")))?;
        }
        let policy = IdentityPolicy {
            id: Some(id),
            name: None,
            desc: None,
            labels: Labels::default(),
            selector: PolicySelector { workloads, ..PolicySelector::default() },
            action: PolicyAction::Allow,
            mode: Mode::Enforce,
            rules,
            signature: None,
            create_time: None,
            update_time: None,
        };
        check(&policy)
            .map_err(|Invalid(sentence)| object.flaw(format!("as our policy: {sentence}")))?;
        self.import.policies.push((format!("{}, {}", object.title(), object.place), policy));
        Ok(())
    }

    /// Ports that admit callers without identity have to take plain connections.
    fn open_doors(&mut self) {
        for (at, (workloads, ports)) in std::mem::take(&mut self.plain).into_iter().enumerate() {
            let id = format!("linkerd-plain-{}", at + 1);
            let mode = IdentityMode {
                id: crate::model::Id::parse(&id).ok(),
                name: None,
                desc: Some(
                    "an authorization of Linkerd admits callers without identity here".into(),
                ),
                labels: Labels::default(),
                workloads,
                mode: Strictness::Strict,
                ports: ports.into_iter().map(|port| (port, Strictness::Permissive)).collect(),
                create_time: None,
                update_time: None,
            };
            self.import.modes.push(("authorizations by network alone".into(), mode));
        }
    }
}

/// One list of callers for each network with exceptions, one for all others.
fn callers(admitted: &Admitted) -> Vec<From> {
    let base =
        From { principals: admitted.principals.clone().unwrap_or_default(), ..From::default() };
    let Some(networks) = &admitted.networks else { return vec![base] };
    let (plain, excepting): (Vec<_>, Vec<_>) =
        networks.iter().partition(|network| network.except.is_empty());
    let mut callers = Vec::new();
    if !plain.is_empty() {
        let ip_blocks = plain.iter().map(|network| network.cidr.clone()).collect();
        callers.push(From { ip_blocks, ..base.clone() });
    }
    callers.extend(excepting.iter().map(|network| From {
        ip_blocks: vec![network.cidr.clone()],
        not_ip_blocks: network.except.clone(),
        ..base.clone()
    }));
    callers
}

/// What a match of a route asks of a request.
fn said(matched: &RouteMatch, hostnames: &[String]) -> Result<(To, Option<Draft>), String> {
    let mut draft = Draft::new(String::new(), PolicyAction::Allow);
    let mut to = To { hosts: hostnames.to_vec(), ..To::default() };
    let path = matched.path.as_ref();
    let value = path.and_then(|path| path.value.clone()).unwrap_or_else(|| "/".to_owned());
    match path.and_then(|path| path.r#type.as_deref()).unwrap_or("PathPrefix") {
        "Exact" => to.paths.push(value),
        "PathPrefix" => to.paths.push(format!("{}/**", value.trim_end_matches('/'))),
        "RegularExpression" => {
            let pattern = quoted(&format!("^(?:{value})$"));
            draft.require(format!("request.path.matches({pattern})"));
        }
        other => return Err(format!("a path of type {other}")),
    }
    to.methods.extend(matched.method.clone());
    let lists = [("request.headers", &matched.headers), ("request.query", &matched.query_params)];
    for (subject, list) in lists {
        for NamedMatch { r#type, name, value } in list {
            let exact = match r#type.as_deref().unwrap_or("Exact") {
                "Exact" => true,
                "RegularExpression" => false,
                other => return Err(format!("a match of type {other}")),
            };
            let is_header = subject == "request.headers";
            let name = if is_header { name.to_lowercase() } else { name.clone() };
            let starred = value.starts_with('*') || value.ends_with('*');
            if exact && !starred {
                let asked =
                    ValueMatch { name, values: vec![value.clone()], ..ValueMatch::default() };
                match is_header {
                    true => draft.when.headers.push(asked),
                    false => draft.when.query.push(asked),
                }
                continue;
            }
            let of = format!("{subject}[{}]", quoted(&name));
            draft.require(match exact {
                true => format!("{of} == [{}]", quoted(value)),
                false => {
                    let pattern = quoted(&format!("^(?:{value})$"));
                    format!("{of}.all(value, value.matches({pattern}))")
                }
            });
        }
    }
    Ok((to, Some(draft)))
}
