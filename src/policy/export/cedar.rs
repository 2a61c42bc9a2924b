//! Cedar's policies and the schema that they are valid under.
//!
//! An allow rule becomes a `permit`, a deny rule a `forbid`: Cedar, too, refuses by default, and a `forbid` wins. What Cedar cannot
//! say is left out in the safe direction: such an allow rule as a whole, of a deny rule the part.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::cedar_text::{all, any, literal, pattern, set};
use crate::model::{
    From, Id, IdentityPolicy, Mode, PolicyAction, PolicyRule, PolicySelector, To, ValueMatch, When,
};

/// Policies in Cedar.
#[derive(Clone, Debug)]
pub struct Cedar {
    /// The policies' text.
    pub policies: String,
    /// The schema's text, in Cedar's own form.
    pub schema: String,
    /// Sentences: what means another thing in Cedar.
    pub differences: Vec<String>,
}

/// Writes policies in Cedar.
///
/// Who asks Cedar gives `principal` (the caller, or `Wardgate::Nobody`), `resource` (the workload) and, in the context, the path only
/// where it has one reading (docs/policy.md): everything else is refused without asking.
pub fn export_cedar<'a>(policies: impl IntoIterator<Item = (&'a Id, &'a IdentityPolicy)>) -> Cedar {
    let mut export = Export::default();
    for (id, policy) in policies {
        export.policy(id, policy);
    }
    let schema = export.schema();
    Cedar { policies: export.text, schema, differences: export.differences }
}

#[derive(Default)]
struct Export {
    text: String,
    differences: Vec<String>,
    /// Names of headers, parameters and claims that policies ask for: the schema names each.
    names: BTreeMap<&'static str, BTreeSet<String>>,
}

/// The conditions of one rule.
struct Conditions {
    action: PolicyAction,
    /// Of the caller.
    identity: Vec<String>,
    /// Of the connection: ports and addresses.
    connection: Vec<String>,
    /// Of the request.
    http: Vec<String>,
    /// What Cedar cannot say: the field and why.
    unsaid: Vec<(&'static str, &'static str)>,
    /// What Cedar says otherwise, in the safe direction.
    otherwise: Vec<(&'static str, &'static str)>,
}

impl Export {
    fn policy(&mut self, id: &Id, policy: &IdentityPolicy) {
        for (at, rule) in policy.rules.iter().enumerate() {
            let name = rule.name.clone().unwrap_or_else(|| (at + 1).to_string());
            let name = format!("{id}/{name}");
            match rule.mode.unwrap_or(policy.mode) {
                Mode::Enforce => {}
                Mode::Observe => {
                    self.differs(&name, "mode", "is only watched: it is not handed on");
                    continue;
                }
                Mode::Canary(_) if policy.action == PolicyAction::Allow => {
                    self.differs(&name, "mode", "canary cannot be said: the rule is left out");
                    continue;
                }
                Mode::Canary(_) => {
                    self.differs(&name, "mode", "canary cannot be said: the rule always refuses");
                }
            }
            self.rule(&name, policy, rule);
        }
    }

    fn differs(&mut self, rule: &str, field: &str, sentence: &str) {
        self.differences.push(format!("{rule}: {field} {sentence}"));
    }

    fn rule(&mut self, name: &str, policy: &IdentityPolicy, rule: &PolicyRule) {
        let mut conditions = Conditions {
            action: policy.action,
            identity: Vec::new(),
            connection: Vec::new(),
            http: Vec::new(),
            unsaid: Vec::new(),
            otherwise: Vec::new(),
        };
        let resource = conditions.selector(&policy.selector);
        let nothing = (From::default(), To::default(), When::default());
        let from = rule.from.as_ref().unwrap_or(&nothing.0);
        let to = rule.to.as_ref().unwrap_or(&nothing.1);
        let when = rule.when.as_ref().unwrap_or(&nothing.2);
        let captures = captures(from, to);
        conditions.from(from);
        conditions.to(to);
        conditions.when(when);
        if captures {
            conditions.cannot("from.principals", "a name that must be equal in from and to");
        }
        let lists = [("claims", &from.claims), ("headers", &when.headers), ("query", &when.query)];
        for (of, list) in lists {
            for asked in list {
                self.names.entry(of).or_default().insert(asked.name.clone());
                conditions.values(of, asked);
            }
        }
        let allows = policy.action == PolicyAction::Allow;
        for (field, why) in &conditions.unsaid {
            let sentence = match allows {
                true => format!("cannot be said ({why}): the rule is left out"),
                false => format!(
                    "cannot be said ({why}): the part is left out, and the rule refuses more"
                ),
            };
            self.differs(name, field, &sentence);
        }
        for (field, sentence) in &conditions.otherwise {
            self.differs(name, field, sentence);
        }
        if allows && !conditions.unsaid.is_empty() {
            return;
        }
        self.write(name, &conditions, &resource);
    }

    /// Layer 4 first: there a `permit` says nothing of requests, and a `forbid` that asks for one always holds.
    fn write(&mut self, name: &str, conditions: &Conditions, resource: &[String]) {
        let allows = conditions.action == PolicyAction::Allow;
        let effect = if allows { "permit" } else { "forbid" };
        let mut identity = all_or_nothing(&conditions.identity);
        let principal = match (&identity, allows) {
            (Some(_), true) => "principal is Wardgate::Workload",
            (Some(condition), false) => {
                identity = Some(format!("(!(principal is Wardgate::Workload) || {condition})"));
                "principal"
            }
            (None, _) => "principal",
        };
        let mut common = resource.to_vec();
        common.extend(identity);
        common.extend(conditions.connection.iter().cloned());
        let asks_http = conditions.http.iter().any(|condition| condition != NO_UPGRADE);
        let mut requests = common.clone();
        requests.extend(conditions.http.iter().cloned());
        let mut written = Vec::new();
        if !(allows && asks_http) {
            written.push(("Connect", common));
        }
        written.push(("Request", requests));
        for (action, conditions) in written {
            let suffix = if action == "Connect" { " (layer 4)" } else { "" };
            let _ = write!(
                self.text,
                "@id({})\n{effect} (\n  {principal},\n  action == Wardgate::Action::\"{action}\",\n  resource\n)",
                literal(&format!("{name}{suffix}"))
            );
            if !conditions.is_empty() {
                let _ = write!(self.text, " when {{\n  {}\n}}", conditions.join(" &&\n  "));
            }
            self.text.push_str(";\n\n");
        }
    }

    fn schema(&self) -> String {
        let record = |of: &str| {
            let names = self.names.get(of).into_iter().flatten();
            let members: Vec<String> =
                names.map(|name| format!("{}?: Set<String>", literal(name))).collect();
            format!("{{ {} }}", members.join(", ")).replace("{  }", "{}")
        };
        format!(
            "\
namespace Wardgate {{
  // A workload, by its SPIFFE ID. `depth` is the number of slashes of its path.
  entity Workload = {{
    id: String,
    trustDomain: String,
    depth: Long,
    namespace?: String,
    serviceAccount?: String,
  }};
  // A caller without identity.
  entity Nobody;
  type Connection = {{
    port: Long,
    source?: ipaddr,
    remote?: ipaddr,
    serverName?: String,
  }};
  // `path` has one reading, without query; `depth` is the number of its slashes. `host` is in lower case, without port and final dot.
  type Request = {{
    port: Long,
    source?: ipaddr,
    remote?: ipaddr,
    method: String,
    host: String,
    path: String,
    depth: Long,
    upgrade?: String,
    route?: String,
    headers: {headers},
    query: {query},
    claims: {claims},
  }};
  action Connect appliesTo {{
    principal: [Workload, Nobody],
    resource: [Workload],
    context: Connection,
  }};
  action Request appliesTo {{
    principal: [Workload, Nobody],
    resource: [Workload],
    context: Request,
  }};
}}
",
            headers = record("headers"),
            query = record("query"),
            claims = record("claims"),
        )
    }
}

fn all_or_nothing(conditions: &[String]) -> Option<String> {
    (!conditions.is_empty()).then(|| all(conditions))
}

const NO_UPGRADE: &str = "!(context has upgrade)";

impl Conditions {
    fn allows(&self) -> bool {
        self.action == PolicyAction::Allow
    }

    fn cannot(&mut self, field: &'static str, why: &'static str) {
        if !self.unsaid.contains(&(field, why)) {
            self.unsaid.push((field, why));
        }
    }

    fn selector(&mut self, selector: &PolicySelector) -> Vec<String> {
        let mut conditions = Vec::new();
        if !selector.workloads.is_empty() {
            let workloads = selector.workloads.iter().filter_map(|text| {
                let said = self.id("resource", text);
                if said.is_none() {
                    self.cannot("selector.workloads", "a star before a name, and any rest");
                }
                said
            });
            let workloads: Vec<String> = workloads.collect();
            // A list of which one entry cannot be said would mean fewer workloads: a deny rule means all of them.
            if workloads.len() == selector.workloads.len() {
                conditions.push(any(&workloads));
            }
        }
        if !selector.labels.is_empty() {
            self.cannot("selector.labels", "labels of routes");
        }
        if !selector.routes.is_empty() {
            let routes: Vec<&str> = selector.routes.iter().map(Id::as_str).collect();
            self.http
                .push(format!("(context has route && {}.contains(context.route))", set(&routes)));
        }
        conditions
    }

    /// A pattern of SPIFFE IDs; `None`: `like` would mean more.
    fn id(&self, subject: &str, text: &str) -> Option<String> {
        let path = text.strip_prefix("spiffe://")?;
        let (domain, path) = path.split_once('/').unwrap_or((path, ""));
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        if !segments.iter().any(|segment| is_star(segment)) {
            return Some(format!("{subject}.id == {}", literal(text)));
        }
        starred(
            &format!("spiffe://{domain}"),
            &segments,
            &format!("{subject}.id"),
            &format!("{subject}.depth"),
            false,
        )
    }

    fn from(&mut self, from: &From) {
        let lists = [
            ("from.principals", &from.principals, false),
            ("from.not_principals", &from.not_principals, true),
        ];
        for (field, list, not) in lists {
            let said: Vec<String> =
                list.iter().filter_map(|text| self.id("principal", text)).collect();
            if said.len() < list.len() {
                self.cannot(field, "a star before a name, and any rest");
            } else if !said.is_empty() {
                self.identity.push(negated(any(&said), not));
            }
        }
        for (list, not) in [(&from.trust_domains, false), (&from.not_trust_domains, true)] {
            if !list.is_empty() {
                let condition = format!("{}.contains(principal.trustDomain)", set(list));
                self.identity.push(negated(condition, not));
            }
        }
        self.kubernetes(from);
        let blocks = [
            ("source", &from.ip_blocks, false),
            ("source", &from.not_ip_blocks, true),
            ("remote", &from.remote_ip_blocks, false),
            ("remote", &from.not_remote_ip_blocks, true),
        ];
        for (of, list, not) in blocks.into_iter().filter(|(_, list, _)| !list.is_empty()) {
            let ranges: Vec<_> = list
                .iter()
                .map(|block| format!("context.{of}.isInRange(ip({}))", literal(block)))
                .collect();
            let within = negated(any(&ranges), not);
            self.connection.push(self.present(&format!("context has {of}"), &within));
        }
    }

    /// What is absent never allows and always refuses.
    fn present(&self, present: &str, condition: &str) -> String {
        match self.allows() {
            true => format!("({present} && {condition})"),
            false => format!("(!({present}) || {condition})"),
        }
    }

    fn kubernetes(&mut self, from: &From) {
        let given = [
            &from.namespaces,
            &from.not_namespaces,
            &from.service_accounts,
            &from.not_service_accounts,
        ];
        if given.iter().all(|list| list.is_empty()) {
            return;
        }
        let shaped = "principal has namespace && principal has serviceAccount";
        let own = "principal.trustDomain == resource.trustDomain";
        let home = from.trust_domains.is_empty();
        for (list, not) in [(&from.namespaces, false), (&from.not_namespaces, true)] {
            if list.is_empty() {
                continue;
            }
            let names: Vec<_> = list.iter().map(|name| text("principal.namespace", name)).collect();
            self.in_kubernetes(any(&names), not, shaped, own, home);
        }
        for (list, not) in [(&from.service_accounts, false), (&from.not_service_accounts, true)] {
            if list.is_empty() {
                continue;
            }
            let accounts: Vec<_> = list
                .iter()
                .map(|account| {
                    let (namespace, name) = account.split_once('/').unwrap_or(("", account));
                    let namespace = text("principal.namespace", namespace);
                    let name = text("principal.serviceAccount", name);
                    format!("({namespace} && {name})")
                })
                .collect();
            self.in_kubernetes(any(&accounts), not, shaped, own, home);
        }
    }

    fn in_kubernetes(&mut self, named: String, not: bool, shaped: &str, own: &str, home: bool) {
        let mut parts = vec![shaped.to_owned()];
        if home {
            parts.push(own.to_owned());
        }
        parts.push(named);
        self.identity.push(negated(all(&parts), not));
    }

    fn to(&mut self, to: &To) {
        for (list, not) in [(&to.ports, false), (&to.not_ports, true)] {
            if !list.is_empty() {
                let ports: Vec<String> = list.iter().map(ToString::to_string).collect();
                let condition = format!("[{}].contains(context.port)", ports.join(", "));
                self.connection.push(negated(condition, not));
            }
        }
        for (list, not) in [(&to.methods, false), (&to.not_methods, true)] {
            if !list.is_empty() {
                self.http.push(negated(format!("{}.contains(context.method)", set(list)), not));
            }
        }
        for (list, not) in [(&to.hosts, false), (&to.not_hosts, true)] {
            if !list.is_empty() {
                let hosts = list.iter().map(|host| text("context.host", &host.to_lowercase()));
                self.http.push(negated(any(&hosts.collect::<Vec<_>>()), not));
            }
        }
        self.paths("to.paths", &to.paths, false, to.ignore_case);
        self.paths("to.not_paths", &to.not_paths, true, to.ignore_case);
        for (list, not) in [(&to.grpc, false), (&to.not_grpc, true)] {
            if !list.is_empty() {
                let paths: Vec<String> = list.iter().map(|method| format!("/{method}")).collect();
                self.paths("to.grpc", &paths, not, false);
            }
        }
        let named = !to.upgrades.iter().any(|name| name == "*");
        match (self.allows(), to.upgrades.is_empty()) {
            (true, true) => self.http.push(NO_UPGRADE.to_owned()),
            (true, false) if named => {
                let listed = format!("{}.contains(context.upgrade)", set(&to.upgrades));
                self.http.push(format!("(!(context has upgrade) || {listed})"));
            }
            (false, false) if named => {
                let listed = format!("{}.contains(context.upgrade)", set(&to.upgrades));
                self.http.push(format!("(context has upgrade && {listed})"));
            }
            (false, false) => self.http.push("context has upgrade".to_owned()),
            _ => {}
        }
    }

    fn paths(&mut self, field: &'static str, list: &[String], not: bool, ignore_case: bool) {
        if list.is_empty() {
            return;
        }
        // Narrower than before is right for what allows, and for what exempts from a refusal.
        let may_be_narrower = self.allows() != not;
        if ignore_case && !may_be_narrower {
            return self.cannot(field, "Cedar compares with case");
        }
        if ignore_case {
            self.otherwise.push((field, "is compared with case"));
        }
        let widely = !self.allows() && !not;
        let said: Option<Vec<String>> =
            list.iter().map(|path| path_condition(path, widely)).collect();
        match said {
            Some(said) => self.http.push(negated(any(&said), not)),
            None => self.cannot(field, "a star before a name, and any rest"),
        }
    }

    fn when(&mut self, when: &When) {
        if !(when.times.is_empty() && when.not_times.is_empty()) {
            self.cannot("when.times", "spans of time");
        }
        if when.cel.is_some() {
            self.cannot("when.cel", "conditions in CEL");
        }
    }

    fn values(&mut self, of: &'static str, asked: &ValueMatch) {
        let starred = |text: &String| text.starts_with('*') || text.ends_with('*');
        if asked.values.iter().chain(&asked.not_values).any(starred) {
            return self.cannot(of, "a value with a star, of several");
        }
        let has = format!("context.{of} has {}", literal(&asked.name));
        let values = format!("context.{of}[{}]", literal(&asked.name));
        if let Some(present) = asked.present {
            self.http.push(negated(format!("({has})"), !present));
        }
        let allows = self.allows();
        if !asked.values.is_empty() {
            let wanted = set(&asked.values);
            let condition = match allows {
                true => format!("({has} && {wanted}.containsAll({values}))"),
                false => format!("(!({has}) || {wanted}.containsAny({values}))"),
            };
            self.http.push(condition);
        }
        if !asked.not_values.is_empty() {
            let unwanted = set(&asked.not_values);
            let condition = match allows {
                true => format!("({has} && !{unwanted}.containsAny({values}))"),
                false => format!("(!({has}) || !{unwanted}.containsAll({values}))"),
            };
            self.http.push(condition);
        }
    }
}

fn negated(condition: impl Into<String>, not: bool) -> String {
    let condition = condition.into();
    if not { format!("!({condition})") } else { condition }
}

/// A name with a star before or behind, or none.
fn text(subject: &str, name: &str) -> String {
    match (name.strip_prefix('*'), name.strip_suffix('*')) {
        (Some(""), _) => format!("{subject} != \"\""),
        (Some(suffix), _) => format!("{subject} like {}", pattern(&["", suffix])),
        (None, Some(prefix)) => format!("{subject} like {}", pattern(&[prefix, ""])),
        (None, None) => format!("{subject} == {}", literal(name)),
    }
}

fn is_star(segment: &str) -> bool {
    segment == "*" || segment == "**" || (segment.starts_with('{') && segment.ends_with('}'))
}

/// Does a name in braces stand in both?
fn captures(from: &From, to: &To) -> bool {
    let names = |texts: &[String]| -> BTreeSet<String> {
        let segments = texts.iter().flat_map(|text| text.split('/'));
        segments.filter(|segment| segment.starts_with('{')).map(str::to_owned).collect()
    };
    !names(&from.principals).is_disjoint(&names(&to.paths))
}

/// A path template. `widely`: with or without a final slash, as deny rules mean it.
fn path_condition(template: &str, widely: bool) -> Option<String> {
    let segments: Vec<&str> = template.split('/').skip(1).collect();
    if segments == ["**"] {
        return Some("context.path like \"/*\"".to_owned());
    }
    if !segments.iter().any(|segment| is_star(segment)) {
        let template = decoded(template);
        let plain = format!("context.path == {}", literal(&template));
        if !widely || template == "/" {
            return Some(plain);
        }
        let bare = template.trim_end_matches('/');
        let slash = format!("context.path == {}", literal(&format!("{bare}/")));
        return Some(any(&[format!("context.path == {}", literal(bare)), slash]));
    }
    starred("", &segments, "context.path", "context.depth", widely)
}

/// `like` has a star for any text, also with slashes: the number of segments makes it mean the same, unless any rest follows.
fn starred(
    root: &str,
    segments: &[&str],
    subject: &str,
    depth: &str,
    widely: bool,
) -> Option<String> {
    let (rest, fixed) = match segments.split_last() {
        Some((&"**", fixed)) => (true, fixed),
        _ => (false, segments),
    };
    let stars = fixed.iter().filter(|segment| is_star(segment)).count();
    let mut parts = vec![root.to_owned()];
    for segment in fixed {
        let last = parts.last_mut().expect("there is always one");
        last.push('/');
        if is_star(segment) {
            parts.push(String::new());
        } else {
            last.push_str(&decoded(segment));
        }
    }
    let count = fixed.len();
    let below = |more: &str| {
        let mut parts = parts.clone();
        parts.last_mut().expect("there is always one").push_str(more);
        parts.push(String::new());
        parts
    };
    let like = |parts: &[String]| {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        format!("{subject} like {}", pattern(&parts))
    };
    if !rest {
        // A star of `like` may be empty, and ours may not: a slash at the end would be enough.
        let ends_with_star = fixed.last().is_some_and(|segment| is_star(segment));
        let whole = match root.is_empty() && ends_with_star && !widely {
            true => format!(" && !({subject} like \"*/\")"),
            false => String::new(),
        };
        let condition = format!("({} && {depth} == {count}{whole})", like(&parts));
        let slash = || {
            let mut parts = parts.clone();
            parts.last_mut().expect("there is always one").push('/');
            format!("({} && {depth} == {})", like(&parts), count + 1)
        };
        return Some(if widely { any(&[condition, slash()]) } else { condition });
    }
    if stars == 0 {
        let exactly = parts.concat();
        let here = format!("{subject} == {}", literal(&exactly));
        let below = like(&below("/"));
        // Of an ID `**` means one segment or more, of a path also none.
        return Some(if root.is_empty() { any(&[here, below]) } else { below });
    }
    // Only stars may stand before any rest, or `like` would find the names further behind.
    let first_star = fixed.iter().position(|segment| is_star(segment)).unwrap_or(count);
    if !fixed[first_star..].iter().all(|segment| is_star(segment)) {
        return None;
    }
    let least = if root.is_empty() { count } else { count + 1 };
    let names: String = parts[0].clone();
    let whole = match root.is_empty() && !widely {
        true => format!(" && ({depth} > {least} || !({subject} like \"*/\"))"),
        false => String::new(),
    };
    Some(format!("({} && {depth} >= {least}{whole})", like(&[names, String::new()])))
}

/// The characters of a template, which has them encoded where it must.
fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}
