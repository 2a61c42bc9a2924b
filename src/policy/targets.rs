//! `Targets`: what is called.

use super::action::{Facts, Request};
use super::captures::Captures;
use super::decision::Clause;
use super::host::HostPattern;
use super::path::{Look, Template};
use super::rule::{Wrong, each};
use crate::model::{PolicyAction, To};

/// What is called.
#[derive(Debug, Default)]
pub(super) struct Targets {
    pub(super) hosts: Box<[HostPattern]>,
    pub(super) not_hosts: Box<[HostPattern]>,
    pub(super) ports: Box<[u16]>,
    pub(super) not_ports: Box<[u16]>,
    pub(super) methods: Box<[Box<str>]>,
    pub(super) not_methods: Box<[Box<str>]>,
    pub(super) paths: Box<[Template]>,
    pub(super) not_paths: Box<[Template]>,
    /// gRPC methods, as the paths that they are called by.
    pub(super) grpc: Box<[Template]>,
    pub(super) not_grpc: Box<[Template]>,
    pub(super) upgrades: Box<[Box<str>]>,
}

/// Any protocol.
const ANY: &str = "*";

impl Targets {
    pub(super) fn compile(to: &To) -> Result<Self, Wrong> {
        for (field, ports) in [("to.ports", &to.ports), ("to.not_ports", &to.not_ports)] {
            if let Some(at) = ports.iter().position(|port| *port == 0) {
                return Err(Wrong::new(format!("{field}[{at}]"), "a port is 1 to 65535"));
            }
        }
        let path = |text: &str| Template::parse(text, to.ignore_case);
        let grpc = |text: &str| grpc(text, to.ignore_case);
        Ok(Self {
            hosts: each("to.hosts", &to.hosts, HostPattern::parse)?,
            not_hosts: each("to.not_hosts", &to.not_hosts, HostPattern::parse)?,
            ports: to.ports.as_slice().into(),
            not_ports: to.not_ports.as_slice().into(),
            methods: each("to.methods", &to.methods, method)?,
            not_methods: each("to.not_methods", &to.not_methods, method)?,
            paths: each("to.paths", &to.paths, path)?,
            not_paths: each("to.not_paths", &to.not_paths, path)?,
            grpc: each("to.grpc", &to.grpc, grpc)?,
            not_grpc: each("to.not_grpc", &to.not_grpc, grpc)?,
            upgrades: each("to.upgrades", &to.upgrades, upgrade)?,
        })
    }

    /// The first part that does not hold for this action, without those that look at the path.
    pub(super) fn fails_beside_paths(
        &self,
        facts: &Facts<'_>,
        action: PolicyAction,
        captures: Option<&Captures>,
    ) -> Option<Clause> {
        let allow = action == PolicyAction::Allow;
        if !self.ports.is_empty() && !self.ports.contains(&facts.port) {
            return Some(Clause::Ports);
        }
        if self.not_ports.contains(&facts.port) {
            return Some(Clause::NotPorts);
        }
        match &facts.http {
            Some(http) => {
                if let Some(clause) = self.fails_by_head(http, allow) {
                    return Some(clause);
                }
            }
            // Layer 4: whatever is asked of HTTP is absent.
            None if allow && !(self.methods.is_empty() && self.not_methods.is_empty()) => {
                return Some(match self.methods.is_empty() {
                    true => Clause::NotMethods,
                    false => Clause::Methods,
                });
            }
            None if allow && !self.upgrades.is_empty() => return Some(Clause::Upgrades),
            None => {}
        }
        if self.hosts.is_empty() && self.not_hosts.is_empty() {
            return None;
        }
        let among = |list: &[HostPattern]| {
            facts.host().map(|host| list.iter().any(|pattern| pattern.matches(host)))
        };
        if !self.hosts.is_empty() && !among(&self.hosts).unwrap_or(!allow) {
            return Some(Clause::Hosts);
        }
        // Those with names that are compared are judged with the names.
        let elsewhere =
            captures.is_some_and(|captures| captures.in_not_hosts) && facts.host().is_some();
        if !self.not_hosts.is_empty() && !elsewhere && among(&self.not_hosts).unwrap_or(allow) {
            return Some(Clause::NotHosts);
        }
        None
    }

    fn fails_by_head(&self, http: &Request<'_>, allow: bool) -> Option<Clause> {
        // Methods differ by case, but not for every program behind us.
        let listed = |list: &[Box<str>], wide: bool| {
            list.iter().any(|method| match wide {
                true => method.eq_ignore_ascii_case(http.method),
                false => **method == *http.method,
            })
        };
        if !self.methods.is_empty() && !listed(&self.methods, !allow) {
            return Some(Clause::Methods);
        }
        if listed(&self.not_methods, allow) {
            return Some(Clause::NotMethods);
        }
        let may_switch = |name: &str| {
            self.upgrades.iter().any(|entry| **entry == *ANY || entry.eq_ignore_ascii_case(name))
        };
        let holds = match http.upgrade {
            // A permission of its own: what names no protocol switches to none.
            None => self.upgrades.is_empty(),
            Some(_) if self.upgrades.is_empty() => !allow,
            // A client may offer several.
            Some(names) if allow => names.split(',').all(|name| may_switch(name.trim())),
            Some(names) => names.split(',').any(|name| may_switch(name.trim())),
        };
        (!holds).then_some(Clause::Upgrades)
    }

    /// The part that looks at the path and does not hold.
    pub(super) fn fails_by_path(
        &self,
        facts: &Facts<'_>,
        action: PolicyAction,
        captures: Option<&Captures>,
    ) -> Option<Clause> {
        let allow = action == PolicyAction::Allow;
        if !self.asks_path() || (facts.is_connect() && !allow) {
            return None;
        }
        let readings = facts.readings();
        let certain = |list: &[Template]| {
            readings.all(|path| list.iter().any(|template| template.matches(path, Look::Strict)))
        };
        let possible = |list: &[Template]| {
            readings.any(|path| list.iter().any(|template| template.matches(path, Look::Wide)))
        };
        let meant = |list: &[Template]| if allow { certain(list) } else { possible(list) };
        let excluded = |list: &[Template]| if allow { possible(list) } else { certain(list) };
        if !self.paths.is_empty() && !meant(&self.paths) {
            return Some(Clause::Paths);
        }
        if !self.not_paths.is_empty()
            && !captures.is_some_and(|captures| captures.in_not_paths)
            && excluded(&self.not_paths)
        {
            return Some(Clause::NotPaths);
        }
        // To refuse, the path suffices: who knows what the program behind takes for a gRPC call.
        let is_call = || facts.http.is_some_and(is_grpc);
        if !self.grpc.is_empty() && !((!allow || is_call()) && meant(&self.grpc)) {
            return Some(Clause::Grpc);
        }
        if !self.not_grpc.is_empty() && (allow || is_call()) && excluded(&self.not_grpc) {
            return Some(Clause::NotGrpc);
        }
        None
    }

    /// Does the rule look at the path?
    pub(super) fn asks_path(&self) -> bool {
        !(self.paths.is_empty()
            && self.not_paths.is_empty()
            && self.grpc.is_empty()
            && self.not_grpc.is_empty())
    }

    /// Does the rule look at header fields?
    pub(super) fn asks_fields(&self) -> bool {
        !(self.grpc.is_empty() && self.not_grpc.is_empty())
    }

    /// Does the rule look at the method?
    pub(super) fn asks_method(&self) -> bool {
        !(self.methods.is_empty() && self.not_methods.is_empty()) || self.asks_fields()
    }

    /// The paths, one of which a request must have: those of `paths`, else those of `grpc`.
    pub(super) fn index_paths(&self) -> &[Template] {
        if self.paths.is_empty() { &self.grpc } else { &self.paths }
    }
}

/// Is it certainly a gRPC request?
fn is_grpc(http: &Request<'_>) -> bool {
    let (mut count, mut fits) = (0, false);
    http.fields.each("content-type", &mut |value| {
        const NAME: &[u8] = b"application/grpc";
        count += 1;
        fits = value.len() >= NAME.len()
            && value[..NAME.len()].eq_ignore_ascii_case(NAME)
            && matches!(value.get(NAME.len()), None | Some(b'+' | b';' | b'-' | b' '));
    });
    http.method == "POST" && count == 1 && fits
}

/// `package.Service/Method` or `package.Service/*`, as the template of its path.
fn grpc(text: &str, ignore_case: bool) -> Result<Template, String> {
    let is_name = |name: &str| {
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
    };
    match text.split_once('/') {
        Some((service, method))
            if service.split('.').all(is_name) && (method == "*" || is_name(method)) =>
        {
            Template::parse(&format!("/{text}"), ignore_case)
        }
        _ => Err(format!(
            "\"{}\" is no gRPC method: package.Service/Method or package.Service/* is expected",
            text.escape_debug()
        )),
    }
}

/// The name of a gRPC method, from the template of its path.
pub(super) fn grpc_name(template: &Template) -> String {
    template.to_string().trim_start_matches('/').to_string()
}

fn is_token(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(fits)
}

/// A protocol's name as in the field Upgrade, or `*`.
fn upgrade(text: &str) -> Result<Box<str>, String> {
    let (name, version) = text.split_once('/').unwrap_or((text, "1"));
    let fits = is_token(name) && is_token(version) && (text == ANY || !text.contains('*'));
    match fits {
        true => Ok(text.to_ascii_lowercase().into()),
        false => Err(format!(
            "\"{}\" is no protocol: websocket, connect, a name as in the field Upgrade, or * is expected",
            text.escape_debug()
        )),
    }
}

fn method(text: &str) -> Result<Box<str>, String> {
    if !is_token(text) {
        return Err(format!("\"{}\" is no method", text.escape_debug()));
    }
    let upper = text.to_ascii_uppercase();
    // Methods are case-sensitive: such a rule would never match, and nobody would see why.
    if upper != text && crate::model::Method::bit(&upper).is_some() {
        return Err(format!("methods are case-sensitive: write {upper}, not {text}"));
    }
    Ok(text.into())
}
