//! Istio's AuthorizationPolicy, PeerAuthentication and RequestAuthentication.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::draft::Draft;
use super::istio_modes::{Request, import_modes, import_requests};
use super::objects::{Object, objects};
use super::options::ImportOptions;
use super::report::{Import, Weight};
use super::wildcard::{Wildcard, any_of, one_of, quoted};
use crate::model::{
    IdentityPolicy, Invalid, Labels, Mode, PolicyAction, PolicySelector, ValueMatch,
};
use crate::policy::check;
use crate::policy::files::Flaw;

/// What differs for every policy of Istio.
const GENERAL: &[&str] = &[
    "Nothing is allowed by default. In Istio a workload that no ALLOW policy selects is open; here it refuses everybody.",
    "What is absent never allows and always refuses: a deny rule that asks for an identity, a claim or something of HTTP also refuses \
     who or what has none.",
    "Paths are judged on all their readings (docs/policy.md): `//admin` or `/%61dmin` does not get around a deny rule on `/admin`, \
     and a final slash does not either.",
    "Hosts are compared without case, port and one final dot.",
    "A field that a request has several times is judged value by value, not as one text with commas: to allow, all of them must fit; \
     to deny, one suffices.",
    "A request that wants to switch its protocol (WebSocket, CONNECT) needs a rule with `to.upgrades`.",
    "`ports` are those of the sidecar's listener. Where one listener takes the traffic of all ports, name the original ones there.",
    "Namespaces and service accounts in allow rules are those of the workload's own trust domain.",
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AuthorizationPolicy {
    #[serde(default)]
    selector: Option<Selector>,
    #[serde(default)]
    target_ref: Option<TargetRef>,
    #[serde(default)]
    target_refs: Vec<TargetRef>,
    #[serde(default)]
    action: Action,
    #[serde(default)]
    provider: Option<Provider>,
    #[serde(default)]
    rules: Vec<Rule>,
}

/// The labels of workloads.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Selector {
    #[serde(default)]
    pub(super) match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TargetRef {
    #[serde(default)]
    #[expect(dead_code, reason = "the kind alone tells them apart")]
    group: Option<String>,
    kind: String,
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    from: Vec<From>,
    #[serde(default)]
    to: Vec<To>,
    #[serde(default)]
    when: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    #[serde(default)]
    source: Source,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Source {
    principals: Vec<String>,
    not_principals: Vec<String>,
    request_principals: Vec<String>,
    not_request_principals: Vec<String>,
    namespaces: Vec<String>,
    not_namespaces: Vec<String>,
    service_accounts: Vec<String>,
    not_service_accounts: Vec<String>,
    trust_domains: Vec<String>,
    not_trust_domains: Vec<String>,
    ip_blocks: Vec<String>,
    not_ip_blocks: Vec<String>,
    remote_ip_blocks: Vec<String>,
    not_remote_ip_blocks: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    #[serde(default)]
    operation: Operation,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Operation {
    hosts: Vec<String>,
    not_hosts: Vec<String>,
    ports: Vec<String>,
    not_ports: Vec<String>,
    methods: Vec<String>,
    not_methods: Vec<String>,
    paths: Vec<String>,
    not_paths: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Condition {
    key: String,
    #[serde(default)]
    values: Vec<String>,
    #[serde(default)]
    not_values: Vec<String>,
}

/// Workloads that an object is about.
pub(super) enum Workloads {
    /// These patterns; none: all of them.
    Known(Vec<String>),
    /// It is not known which of these.
    Among(Vec<String>),
}

/// Reads Istio's objects (file names and texts).
///
/// # Errors
/// Texts that are no objects, fields that are not known, and policies that could not stand; each with its place.
pub fn import_istio(
    texts: &[(String, String)],
    options: &ImportOptions,
) -> Result<Import, Vec<Flaw>> {
    let objects = objects(texts)?;
    let mut import = Import { general: GENERAL, ..Import::default() };
    let (mut flaws, mut peers, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    let mut scopes = Scopes::default();
    for object in &objects {
        let outcome = match (object.group.as_str(), object.kind.as_str()) {
            ("security.istio.io", "AuthorizationPolicy") => {
                import_policy(object, options, &mut import, &mut scopes)
            }
            ("security.istio.io", "PeerAuthentication") => {
                object.spec().map(|spec| peers.push((object, spec)))
            }
            ("security.istio.io", "RequestAuthentication") => {
                object.spec::<Request>().map(|spec| requests.push((object, spec)))
            }
            (group, kind) => {
                let sentence = format!("{kind} of {group} says nothing of policy; left out");
                import.differs(Weight::Note, object, "kind", sentence);
                Ok(())
            }
        };
        flaws.extend(outcome.err());
    }
    scopes.tell(&mut import);
    flaws.extend(import_modes(&peers, options, &mut import).err());
    import_requests(&requests, &mut import);
    if flaws.is_empty() { Ok(import) } else { Err(flaws) }
}

/// The workloads of a selector or of targets.
pub(super) fn workloads(
    object: &Object,
    options: &ImportOptions,
    selector: Option<&Selector>,
    targets: &[&TargetRef],
) -> Workloads {
    let in_root = object.namespace == options.root_namespace;
    let all = match in_root {
        true => Vec::new(),
        false => vec![options.namespace(&object.namespace)],
    };
    if !targets.is_empty() {
        let mut known = Vec::new();
        for target in targets {
            let label = BTreeMap::from([(target.kind.to_lowercase(), target.name.clone())]);
            let namespace = target.namespace.as_deref().unwrap_or(&object.namespace);
            match options.bearers(namespace, &label) {
                Some(ids) => known.extend(ids),
                None => return Workloads::Among(all),
            }
        }
        return Workloads::Known(known);
    }
    match selector.map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty()) {
        None => Workloads::Known(all),
        Some(labels) => match options.bearers(&object.namespace, labels) {
            Some(ids) => Workloads::Known(ids),
            None => Workloads::Among(all),
        },
    }
}

/// Which workloads had an ALLOW policy, and which had policies without one: these were open.
#[derive(Default)]
struct Scopes {
    allowed: Vec<Vec<String>>,
    others: Vec<(String, Vec<String>)>,
}

impl Scopes {
    fn tell(&self, import: &mut Import) {
        for (title, workloads) in &self.others {
            let covered = self.allowed.iter().any(|allowed| {
                allowed.is_empty()
                    || (!workloads.is_empty() && workloads.iter().all(|one| allowed.contains(one)))
            });
            if !covered {
                let whom = if workloads.is_empty() { "all workloads".into() } else { workloads.join(", ") };
                import.differs_as_a_whole(
                    Weight::Stricter,
                    format!(
                        "{title}: no ALLOW policy here selects {whom}, so Istio allows what is not denied; here nothing is \
                         allowed until a policy says so"
                    ),
                );
            }
        }
    }
}

fn import_policy(
    object: &Object,
    options: &ImportOptions,
    import: &mut Import,
    scopes: &mut Scopes,
) -> Result<(), Flaw> {
    let spec: AuthorizationPolicy = object.spec()?;
    let targets: Vec<&TargetRef> = spec.target_ref.iter().chain(&spec.target_refs).collect();
    let action = match spec.action {
        Action::Allow => PolicyAction::Allow,
        Action::Deny | Action::Custom => PolicyAction::Deny,
        Action::Audit => {
            let sentence = "AUDIT decides nothing; every decision is in the decision log (docs/audit.md)";
            import.differs(Weight::Note, object, "spec.action", sentence);
            return Ok(());
        }
    };
    let found = workloads(object, options, spec.selector.as_ref(), &targets);
    let field = if targets.is_empty() { "spec.selector" } else { "spec.targetRefs" };
    let workloads = match (found, action) {
        (Workloads::Known(workloads), _) => workloads,
        (Workloads::Among(_), PolicyAction::Allow) => {
            import.differs(
                Weight::Stricter,
                object,
                field,
                "we select by SPIFFE ID: which workloads these are is not known, so the policy is left out and allows nothing; \
                 say it with --map label=value=ID",
            );
            return Ok(());
        }
        (Workloads::Among(all), PolicyAction::Deny) => {
            import.differs(
                Weight::Stricter,
                object,
                field,
                "we select by SPIFFE ID: which workloads these are is not known, so the policy refuses at all that they may be; \
                 say it with --map label=value=ID",
            );
            all
        }
    };
    match action {
        PolicyAction::Allow => scopes.allowed.push(workloads.clone()),
        PolicyAction::Deny => scopes.others.push((object.title(), workloads.clone())),
    }
    if spec.rules.is_empty() {
        let sentence = match action {
            PolicyAction::Allow => "allows nothing, as is the default here: no policy is needed",
            PolicyAction::Deny => "has no rule and refuses nothing: no policy is needed",
        };
        import.differs(Weight::Note, object, "spec.rules", sentence);
        return Ok(());
    }
    if spec.action == Action::Custom {
        let provider = spec.provider.unwrap_or_default().name;
        import.differs(
            Weight::Stricter,
            object,
            "spec.action",
            format!(
                "CUSTOM asks the provider \"{provider}\", which a policy cannot: what it had to decide is refused. Ask it in the \
                 routes' plugins (opa, forward-auth), then delete this policy"
            ),
        );
    }
    let mut rules = Vec::new();
    for (at, rule) in spec.rules.iter().enumerate() {
        for draft in drafts(at, rule, action, options, object) {
            let name = draft.name.clone();
            report(&draft, &format!("spec.rules[{at}]"), object, import);
            match draft.rule() {
                Some(rule) if rule.when.as_ref().is_some_and(too_long) => {
                    let sentence = format!("{name}: its condition is longer than 2,048 bytes");
                    return Err(object.flaw(sentence));
                }
                Some(rule) => rules.push(rule),
                None => {}
            }
        }
    }
    if rules.is_empty() {
        return Ok(());
    }
    let mut mode = Mode::Enforce;
    if object.annotations.get("istio.io/dry-run").is_some_and(|value| value == "true") {
        mode = Mode::Observe;
        import.differs(Weight::Note, object, "istio.io/dry-run", "becomes mode: observe");
    }
    let policy = IdentityPolicy {
        id: Some(object.id("istio")?),
        name: None,
        desc: None,
        labels: Labels::default(),
        selector: PolicySelector { workloads, ..PolicySelector::default() },
        action,
        mode,
        rules,
        create_time: None,
        update_time: None,
    };
    check(&policy).map_err(|Invalid(sentence)| object.flaw(format!("as our policy: {sentence}")))?;
    import.policies.push((format!("{}, {}", object.title(), object.place), policy));
    Ok(())
}

fn too_long(when: &crate::model::When) -> bool {
    when.cel.as_ref().is_some_and(|cel| cel.len() > 2048)
}

fn report(draft: &Draft, rule: &str, object: &Object, import: &mut Import) {
    for (field, why) in &draft.unsaid {
        let field = format!("{rule}.{field}");
        let sentence = match draft.allows() {
            true => format!("{why}: the rule is left out, and what it allowed is refused"),
            false => format!("{why}: this part is left out, and the rule refuses whatever its other parts mean"),
        };
        import.differs(Weight::Stricter, object, field, sentence);
    }
    for (field, sentence) in &draft.stricter {
        import.differs(Weight::Stricter, object, format!("{rule}.{field}"), sentence.clone());
    }
    for (field, sentence) in &draft.notes {
        import.differs(Weight::Note, object, format!("{rule}.{field}"), sentence.clone());
    }
}

/// One of our rules for each pair of a source and an operation.
fn drafts(
    at: usize,
    rule: &Rule,
    action: PolicyAction,
    options: &ImportOptions,
    object: &Object,
) -> Vec<Draft> {
    let (anybody, anything) = (Source::default(), Operation::default());
    let sources: Vec<&Source> = match rule.from.as_slice() {
        [] => vec![&anybody],
        from => from.iter().map(|from| &from.source).collect(),
    };
    let operations: Vec<&Operation> = match rule.to.as_slice() {
        [] => vec![&anything],
        to => to.iter().map(|to| &to.operation).collect(),
    };
    let mut drafts = Vec::new();
    for (from, source) in sources.iter().enumerate() {
        for (to, operation) in operations.iter().enumerate() {
            let mut name = format!("rule-{}", at + 1);
            if sources.len() > 1 {
                name += &format!("-from-{}", from + 1);
            }
            if operations.len() > 1 {
                name += &format!("-to-{}", to + 1);
            }
            let mut draft = Draft::new(name, action);
            let mut istio = Istio { draft: &mut draft, options, object };
            istio.source(source, &format!("from[{from}].source"));
            istio.operation(operation, &format!("to[{to}].operation"));
            for (at, condition) in rule.when.iter().enumerate() {
                istio.condition(condition, &format!("when[{at}]"));
            }
            drafts.push(draft);
        }
    }
    drafts
}

struct Istio<'a> {
    draft: &'a mut Draft,
    options: &'a ImportOptions,
    object: &'a Object,
}

impl Istio<'_> {
    fn source(&mut self, source: &Source, field: &str) {
        let sub = |name: &str| format!("{field}.{name}");
        self.principals(&source.principals, &sub("principals"));
        self.not_principals(&source.not_principals, &sub("notPrincipals"));
        self.request_principals(&source.request_principals, &source.not_request_principals, &sub("requestPrincipals"));
        self.namespaces(&source.namespaces, &sub("namespaces"));
        self.not_namespaces(&source.not_namespaces, &sub("notNamespaces"));
        self.service_accounts(&source.service_accounts, false, &sub("serviceAccounts"));
        self.service_accounts(&source.not_service_accounts, true, &sub("notServiceAccounts"));
        if !source.trust_domains.is_empty() {
            match source.trust_domains.iter().any(|name| name.contains('*')) {
                true => self.draft.require(one_of("source.trust_domain", &source.trust_domains)),
                false => self.draft.from.trust_domains.clone_from(&source.trust_domains),
            }
        }
        if !source.not_trust_domains.is_empty() {
            match source.not_trust_domains.iter().any(|name| name.contains('*')) {
                true => self.draft.forbid("source.trust_domain", &source.not_trust_domains),
                false => self.draft.from.not_trust_domains.clone_from(&source.not_trust_domains),
            }
        }
        let from = &mut self.draft.from;
        from.ip_blocks.extend_from_slice(&source.ip_blocks);
        from.not_ip_blocks.extend_from_slice(&source.not_ip_blocks);
        from.remote_ip_blocks.extend_from_slice(&source.remote_ip_blocks);
        from.not_remote_ip_blocks.extend_from_slice(&source.not_remote_ip_blocks);
    }

    /// A principal as a pattern of ours; `None`: only CEL says it.
    fn pattern(&self, principal: &str) -> Option<String> {
        let id = |rest: &str| {
            let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
            // In Istio `cluster.local` is the mesh's trust domain, whatever it is called.
            let domain = match domain {
                "cluster.local" => self.options.trust_domain.as_str(),
                domain => domain,
            };
            format!("spiffe://{domain}/{path}")
        };
        let pattern = match Wildcard::of(principal) {
            Wildcard::Exact(exact) => id(exact),
            Wildcard::Prefix(prefix) if prefix.ends_with('/') && prefix.contains('/') => {
                // Stars stand for whole segments, and an ID never ends with a slash: `a/*` is all below a.
                format!("{}**", id(prefix))
            }
            _ => return None,
        };
        pattern.parse::<crate::identity::SpiffePattern>().is_ok().then_some(pattern)
    }

    /// A principal as a condition on `source.id`.
    fn principal_cel(&self, principal: &str) -> String {
        let domain = self.options.trust_domain.as_str();
        let spelled = |text: &str| match text.strip_prefix("cluster.local/") {
            Some(rest) => format!("spiffe://{domain}/{rest}"),
            None => format!("spiffe://{text}"),
        };
        match Wildcard::of(principal) {
            Wildcard::Exact(text) => Wildcard::Exact(&spelled(text)).cel("source.id"),
            Wildcard::Prefix(text) => Wildcard::Prefix(&spelled(text)).cel("source.id"),
            other => other.cel("source.id"),
        }
    }

    fn principals(&mut self, principals: &[String], field: &str) {
        if principals.is_empty() {
            return;
        }
        let patterns: Option<Vec<String>> =
            principals.iter().map(|principal| self.pattern(principal)).collect();
        match patterns {
            Some(patterns) if self.draft.from.principals.is_empty() => {
                self.draft.from.principals = patterns;
            }
            _ => {
                let conditions: Vec<_> =
                    principals.iter().map(|principal| self.principal_cel(principal)).collect();
                self.draft.require(any_of(&conditions));
                self.draft.note(field, "said in CEL: our patterns have stars for whole segments only");
            }
        }
    }

    fn not_principals(&mut self, principals: &[String], field: &str) {
        if principals.is_empty() {
            return;
        }
        let patterns: Option<Vec<String>> =
            principals.iter().map(|principal| self.pattern(principal)).collect();
        match patterns {
            Some(patterns) => self.draft.from.not_principals.extend(patterns),
            None => {
                let conditions: Vec<_> =
                    principals.iter().map(|principal| self.principal_cel(principal)).collect();
                self.draft.require(format!("!({})", any_of(&conditions)));
                self.draft.note(field, "said in CEL: our patterns have stars for whole segments only");
            }
        }
    }

    /// `issuer/subject` of a verified token.
    fn request_principals(&mut self, wanted: &[String], unwanted: &[String], field: &str) {
        let subject = "(token.claims.iss + \"/\" + token.claims.sub)";
        let anyone = |texts: &[String]| texts.iter().any(|text| text == "*");
        let present = |present| ValueMatch {
            name: "iss".into(),
            present: Some(present),
            ..ValueMatch::default()
        };
        if anyone(wanted) {
            self.draft.claim(present(true));
        } else if !wanted.is_empty() {
            self.draft.require(one_of(subject, wanted));
        }
        if anyone(unwanted) {
            self.draft.claim(present(false));
        } else if !unwanted.is_empty() {
            self.draft.forbid(subject, unwanted);
        }
        if !(wanted.is_empty() && unwanted.is_empty()) {
            self.draft.note(field, "asks for a token that a plugin of the route has verified");
        }
    }

    fn namespaces(&mut self, namespaces: &[String], field: &str) {
        if namespaces.is_empty() {
            return;
        }
        if namespaces.iter().any(|name| name == "*") {
            return self.principals(&["*".to_owned()], field);
        }
        // A list of an allow rule may be narrower than before (our own trust domain), one of a deny rule may not.
        if self.draft.allows() && self.draft.from.namespaces.is_empty() {
            self.draft.from.namespaces = namespaces.to_vec();
        } else {
            self.draft.require(one_of("source.namespace", namespaces));
        }
    }

    fn not_namespaces(&mut self, namespaces: &[String], field: &str) {
        if namespaces.is_empty() {
            return;
        }
        if self.draft.allows() || namespaces.iter().any(|name| name == "*") {
            self.draft.forbid("source.namespace", namespaces);
            self.draft.note(field, "said in CEL, so that it means every trust domain");
        } else {
            self.draft.from.not_namespaces.extend_from_slice(namespaces);
        }
    }

    fn service_accounts(&mut self, accounts: &[String], not: bool, field: &str) {
        if accounts.is_empty() {
            return;
        }
        // Without a namespace it is the policy's.
        let full: Vec<(String, String)> = accounts
            .iter()
            .map(|account| match account.split_once('/') {
                Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
                None => (self.object.namespace.clone(), account.clone()),
            })
            .collect();
        let plain = !accounts.iter().any(|account| account.contains('*'));
        let joined = full.iter().map(|(namespace, name)| format!("{namespace}/{name}"));
        let from = &mut self.draft.from;
        if plain && not != self.draft.action.eq(&PolicyAction::Allow) {
            match not {
                true => from.not_service_accounts.extend(joined),
                false => from.service_accounts.extend(joined),
            }
            return;
        }
        let conditions: Vec<String> = full
            .iter()
            .map(|(namespace, name)| {
                let namespace = Wildcard::of(namespace).cel("source.namespace");
                let name = Wildcard::of(name).cel("source.service_account");
                format!("({namespace} && {name})")
            })
            .collect();
        let condition = any_of(&conditions);
        self.draft.require(if not { format!("!({condition})") } else { condition });
        self.draft.note(field, "said in CEL, so that it means every trust domain");
    }

    fn operation(&mut self, operation: &Operation, field: &str) {
        let sub = |name: &str| format!("{field}.{name}");
        self.hosts(&operation.hosts, &operation.not_hosts, &sub("hosts"));
        self.ports(&operation.ports, false, &sub("ports"));
        self.ports(&operation.not_ports, true, &sub("notPorts"));
        self.methods(&operation.methods, &operation.not_methods, &sub("methods"));
        self.paths(&operation.paths, &sub("paths"));
        self.not_paths(&operation.not_paths, &sub("notPaths"));
    }

    fn hosts(&mut self, wanted: &[String], unwanted: &[String], field: &str) {
        // `example.com:*` beside `example.com` is how Istio's users say what ours says anyway.
        let portless = |hosts: &[String]| -> Vec<String> {
            let mut portless: Vec<String> = Vec::new();
            for host in hosts {
                let host = host.strip_suffix(":*").unwrap_or(host).to_lowercase();
                if !portless.contains(&host) {
                    portless.push(host);
                }
            }
            portless
        };
        let plain = |hosts: &[String]| {
            hosts.iter().all(|host| match Wildcard::of(host) {
                Wildcard::Exact(host) => !host.contains(':'),
                Wildcard::Suffix(suffix) => suffix.starts_with('.') && !suffix.contains('*'),
                Wildcard::Any | Wildcard::Prefix(_) => false,
            })
        };
        let (wanted, unwanted) = (portless(wanted), portless(unwanted));
        let ported = |hosts: &[String]| hosts.iter().any(|host| host.contains(':'));
        if ported(&wanted) || ported(&unwanted) {
            return self.draft.cannot_say(field, "hosts with one port are not told apart");
        }
        match wanted.as_slice() {
            [] => {}
            wanted if plain(wanted) => self.draft.to.hosts.extend_from_slice(wanted),
            wanted => {
                self.draft.require(one_of("request.host", wanted));
                self.draft.note(field, "said in CEL: our hosts have a star as the whole first label only");
            }
        }
        match unwanted.as_slice() {
            [] => {}
            unwanted if plain(unwanted) => self.draft.to.not_hosts.extend_from_slice(unwanted),
            unwanted => self.draft.forbid("request.host", unwanted),
        }
    }

    fn ports(&mut self, texts: &[String], not: bool, field: &str) {
        if texts.is_empty() {
            return;
        }
        let ports: Option<Vec<u16>> = texts.iter().map(|port| port.parse().ok().filter(|port| *port > 0)).collect();
        let Some(ports) = ports else {
            return self.draft.cannot_say(field, "a port is 1 to 65535");
        };
        let to = &mut self.draft.to;
        match not {
            true => to.not_ports.extend(ports),
            false if to.ports.is_empty() => to.ports = ports,
            false => {
                to.ports.retain(|port| ports.contains(port));
                // No port is both.
                self.draft.never |= self.draft.to.ports.is_empty();
            }
        }
    }

    fn methods(&mut self, wanted: &[String], unwanted: &[String], field: &str) {
        let plain = |methods: &[String]| {
            methods.iter().all(|method| {
                !method.contains('*') && method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
            })
        };
        match wanted {
            [] => {}
            wanted if plain(wanted) => self.draft.to.methods.extend_from_slice(wanted),
            wanted => {
                self.draft.require(one_of("request.method", wanted));
                self.draft.note(field, "said in CEL: our methods have no stars");
            }
        }
        match unwanted {
            [] => {}
            unwanted if plain(unwanted) => self.draft.to.not_methods.extend_from_slice(unwanted),
            unwanted => self.draft.forbid("request.method", unwanted),
        }
    }

    fn paths(&mut self, paths: &[String], field: &str) {
        if paths.is_empty() {
            return;
        }
        let said: Vec<PathText> = paths.iter().map(|path| path_text(path)).collect();
        let templates: Option<Vec<String>> =
            said.iter().map(|path| path.template.clone()).collect();
        let exact = said.iter().all(|path| path.exact) && templates.is_some();
        if let Some(templates) = templates {
            self.draft.to.paths = templates;
        }
        if exact {
            return;
        }
        if !self.draft.allows() && !self.draft.to.paths.is_empty() {
            let sentence = "`/a/**` means `/a` as well, which `/a/*` does not in Istio";
            return self.draft.refuses_more(field, sentence);
        }
        let conditions: Vec<String> = said.into_iter().map(|path| path.cel).collect();
        self.draft.require(any_of(&conditions));
        self.draft.note(field, "said in CEL where our templates do not mean the same");
    }

    fn not_paths(&mut self, paths: &[String], field: &str) {
        if paths.is_empty() {
            return;
        }
        let said: Vec<PathText> = paths.iter().map(|path| path_text(path)).collect();
        let templates: Option<Vec<String>> =
            said.iter().map(|path| path.template.clone()).collect();
        let exact = said.iter().all(|path| path.exact);
        match templates {
            // What an allow rule excludes may be more than before.
            Some(templates) if exact || self.draft.allows() => {
                self.draft.to.not_paths = templates;
                if !exact {
                    let sentence = "`/a/**` excludes `/a` as well, which `/a/*` does not in Istio";
                    self.draft.refuses_more(field, sentence);
                }
            }
            _ => {
                let conditions: Vec<String> = said.into_iter().map(|path| path.cel).collect();
                self.draft.require(format!("!({})", any_of(&conditions)));
                self.draft.note(field, "said in CEL where our templates do not mean the same");
            }
        }
    }

    fn condition(&mut self, condition: &Condition, field: &str) {
        let Condition { key, values, not_values } = condition;
        let named = |prefix: &str| {
            let rest = key.strip_prefix(prefix)?.strip_suffix(']')?;
            Some(rest.split("][").map(str::to_owned).collect::<Vec<_>>())
        };
        let field = format!("{field} {key}");
        if let Some(names) = named("request.headers[") {
            let [name] = names.as_slice() else {
                return self.draft.cannot_say(field, "a header has one name");
            };
            return self.draft.when.headers.push(ValueMatch {
                name: name.to_lowercase(),
                values: values.clone(),
                not_values: not_values.clone(),
                present: None,
            });
        }
        if let Some(names) = named("request.auth.claims[") {
            return self.claims(&names, values, not_values, &field);
        }
        match key.as_str() {
            "source.ip" => {
                self.addresses(values, not_values, &field, |from| (&mut from.ip_blocks, &mut from.not_ip_blocks));
            }
            "remote.ip" => {
                self.addresses(values, not_values, &field, |from| {
                    (&mut from.remote_ip_blocks, &mut from.not_remote_ip_blocks)
                });
            }
            "source.namespace" => {
                self.namespaces(values, &field);
                self.not_namespaces(not_values, &field);
            }
            "source.principal" => {
                self.principals(values, &field);
                self.not_principals(not_values, &field);
            }
            "source.serviceAccount" => {
                self.service_accounts(values, false, &field);
                self.service_accounts(not_values, true, &field);
            }
            "source.trustDomain" => {
                if !values.is_empty() {
                    self.draft.require(one_of("source.trust_domain", values));
                }
                if !not_values.is_empty() {
                    self.draft.forbid("source.trust_domain", not_values);
                }
            }
            "request.auth.principal" => self.request_principals(values, not_values, &field),
            "request.auth.audiences" => self.claims(&["aud".into()], values, not_values, &field),
            "request.auth.presenter" => self.claims(&["azp".into()], values, not_values, &field),
            "destination.port" => {
                self.ports(values, false, &field);
                self.ports(not_values, true, &field);
            }
            "connection.sni" => {
                if !values.is_empty() {
                    self.draft.require(one_of("connection.server_name", values));
                }
                if !not_values.is_empty() {
                    self.draft.forbid("connection.server_name", not_values);
                }
                let sentence = "the server name is known of TLS that is passed through only: of a request it cannot be told, which \
                                never allows and always refuses";
                self.draft.refuses_more(field, sentence);
            }
            key if key.starts_with("experimental.envoy.filters.") => {
                self.draft.cannot_say(field, "what filters of Envoy note is not known here");
            }
            "destination.ip" => {
                self.draft.cannot_say(field, "the destination's address is not among what rules ask for");
            }
            _ => self.draft.cannot_say(field, "this key is not known"),
        }
    }

    fn addresses(
        &mut self,
        values: &[String],
        not_values: &[String],
        field: &str,
        lists: fn(&mut crate::model::From) -> (&mut Vec<String>, &mut Vec<String>),
    ) {
        let (blocks, not_blocks) = lists(&mut self.draft.from);
        not_blocks.extend_from_slice(not_values);
        if values.is_empty() {
            return;
        }
        if blocks.is_empty() {
            blocks.extend_from_slice(values);
        } else {
            self.draft.cannot_say(field, "networks stand in `from` already, and both must hold");
        }
    }

    /// A claim, possibly within others.
    fn claims(&mut self, names: &[String], values: &[String], not_values: &[String], field: &str) {
        let name = match names {
            [one] if !one.starts_with('/') => one.clone(),
            several => {
                let escaped = several.iter().map(|name| name.replace('~', "~0").replace('/', "~1"));
                escaped.map(|name| format!("/{name}")).collect()
            }
        };
        let any_value = values.iter().any(|value| value == "*");
        let mut claim = ValueMatch { name, not_values: not_values.to_vec(), ..ValueMatch::default() };
        if any_value {
            claim.present = Some(true);
        } else if !self.draft.allows() {
            claim.values = values.to_vec();
        } else if !values.is_empty() {
            // Of a claim with several values, ours must all be listed; in Istio one suffices.
            let subject = names.iter().fold("token.claims".to_owned(), |subject, name| {
                format!("{subject}[{}]", quoted(name))
            });
            let plain = one_of(&subject, values);
            let listed = match values.iter().all(|value| !value.contains('*')) {
                true => {
                    let each: Vec<_> =
                        values.iter().map(|value| format!("{} in {subject}", quoted(value))).collect();
                    any_of(&each)
                }
                false => format!("{subject}.exists(value, {})", one_of("value", values)),
            };
            self.draft.require(format!("({plain} || {listed})"));
            self.draft.note(field, "said in CEL: one value of a list of claims suffices");
        }
        if claim.present.is_some() || !claim.values.is_empty() || !claim.not_values.is_empty() {
            self.draft.claim(claim);
        }
        self.draft.note(field, "asks for a token that a plugin of the route has verified");
    }
}

/// A path of Istio in our words.
struct PathText {
    /// A template that means at least as much; `None`: none does.
    template: Option<String>,
    /// Does the template mean the same?
    exact: bool,
    /// The same in CEL.
    cel: String,
}

fn path_text(path: &str) -> PathText {
    let subject = "request.path";
    if path.contains("{*}") || path.contains("{**}") {
        return templated(path);
    }
    let cel = Wildcard::of(path).cel(subject);
    match Wildcard::of(path) {
        Wildcard::Any | Wildcard::Prefix("/") => {
            PathText { template: Some("/**".into()), exact: true, cel }
        }
        Wildcard::Exact(path) => {
            let template = is_template(path).then(|| path.to_owned());
            let exact = template.is_some();
            PathText { template, exact, cel }
        }
        Wildcard::Prefix(prefix) if prefix.ends_with('/') => {
            let template = format!("{prefix}**");
            let template = is_template(&template).then_some(template);
            PathText { template, exact: false, cel }
        }
        Wildcard::Prefix(_) | Wildcard::Suffix(_) => PathText { template: None, exact: false, cel },
    }
}

/// `/tenants/{*}/files/{**}`.
fn templated(path: &str) -> PathText {
    let mut pattern = String::from("^");
    let mut rest = path;
    while let Some(at) = rest.find("{*") {
        pattern += &regex::escape(&rest[..at]);
        rest = match rest[at..].strip_prefix("{*}") {
            Some(after) => {
                pattern += "[^/]+";
                after
            }
            None => match rest[at..].strip_prefix("{**}") {
                Some(after) => {
                    pattern += ".*";
                    after
                }
                None => {
                    pattern += &regex::escape("{*");
                    &rest[at + 2..]
                }
            },
        };
    }
    pattern += &regex::escape(rest);
    pattern.push('$');
    let cel = format!("request.path.matches({})", quoted(&pattern));
    let template = path.replace("{*}", "*").replace("{**}", "**");
    let whole = path.split('/').all(|segment| matches!(segment, "{*}" | "{**}") || !segment.contains('{'));
    let inner = template.strip_suffix("/**").unwrap_or(&template);
    let usable = whole && !inner.contains("**") && is_template(&template);
    let exact = usable && !template.ends_with("**");
    PathText { template: usable.then_some(template), exact, cel }
}

/// Can it stand as a template, and does it mean itself?
fn is_template(path: &str) -> bool {
    !path.contains('{') && crate::policy::path::Template::parse(path).is_ok()
}
