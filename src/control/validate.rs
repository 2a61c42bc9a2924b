//! May this write stand? Its shape, what it refers to, its plugins, what must be unique, and a trial compile.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::LazyLock;

use http::StatusCode;
use ipnet::IpNet;
use regex::Regex;
use serde_json::Value;

use super::answer::Answer;
use super::certificates;
use super::index::{Fact, auth_key};
use super::protos;
use super::wording::Checker;
use super::{ControlPlane, Error, PluginPart};
use crate::identity::{DeclaredDomain, Denial, SpiffeId, SpiffePattern, TrustDomain, WrongField};
use crate::model::{
    Balance, Body, HashOn, Id, Invalid, Kind, ManagerType, Nodes, OneOrMany, PassHost, Resource,
    Upstream,
};
use crate::policy;

/// What the fields of a kind must look like.
pub(super) struct Shapes {
    kinds: HashMap<Kind, Checker>,
    /// Each manager of secrets has its own fields.
    managers: BTreeMap<ManagerType, Checker>,
}

impl Shapes {
    pub(super) fn new() -> Result<Self, Error> {
        let compiled = Kind::ALL.into_iter().map(|kind| {
            let checker = Checker::new(kind.schema());
            let wrong = |why| Error::Schema { name: kind.name().into(), why };
            Ok((kind, checker.map_err(wrong)?))
        });
        let kinds = compiled.collect::<Result<_, _>>()?;
        let managers = ManagerType::ALL.into_iter().map(|manager| {
            let checker = Checker::new(manager.schema());
            let wrong = |why| Error::Schema { name: format!("secrets/{manager}"), why };
            Ok((manager, checker.map_err(wrong)?))
        });
        Ok(Self { kinds, managers: managers.collect::<Result<_, _>>()? })
    }

    pub(super) fn schema(&self, kind: Kind) -> Option<&Value> {
        self.kinds.get(&kind).map(Checker::schema)
    }

    /// Judges fields and parses them.
    pub(super) fn check(&self, kind: Kind, value: &Value) -> Result<Body, Invalid> {
        if kind == Kind::Routes {
            for (one, many) in [("host", "hosts"), ("remote_addr", "remote_addrs")] {
                if value.get(one).is_some() && value.get(many).is_some() {
                    return Err(Invalid(format!("only one of {one} or {many} is allowed")));
                }
            }
        }
        unsupported(kind, value).map_err(in_configuration)?;
        if kind == Kind::Secrets {
            return self.check_manager(value).map_err(in_configuration);
        }
        if let Some(checker) = self.kinds.get(&kind) {
            checker.check(value).map_err(in_configuration)?;
        }
        let body = Body::parse(kind, value).map_err(in_configuration)?;
        sensible(&body)?;
        Ok(body)
    }

    /// A manager of secrets looks as its type wants it, which its id names, or its fields do.
    fn check_manager(&self, value: &Value) -> Result<Body, Invalid> {
        let mut bare = value.clone();
        // Its id has two parts; the schema of ids knows one.
        let id = bare.as_object_mut().and_then(|fields| fields.shift_remove("id"));
        let named = id.as_ref().and_then(Value::as_str).and_then(|id| id.split_once('/'));
        let checker = named
            .and_then(|(manager, _)| ManagerType::named(manager))
            .and_then(|manager| self.managers.get(&manager));
        if let Some(checker) = checker {
            checker.check(&bare)?;
        }
        let body = Body::parse(Kind::Secrets, &bare)?;
        if let (Some((manager, _)), Body::Secret(secret)) = (named, &body)
            && secret.manager().name() != manager
        {
            return Err(Invalid(format!(
                "these are the fields of {}, and the id is one of {manager}",
                secret.manager()
            )));
        }
        if let Body::Secret(secret) = &body {
            secret.check()?;
        }
        Ok(body)
    }
}

pub(super) fn in_configuration(mut invalid: Invalid) -> Invalid {
    invalid.0.insert_str(0, "invalid configuration: ");
    invalid
}

pub(super) fn at(field: &str, why: impl std::fmt::Display) -> Invalid {
    Invalid(format!("property \"{field}\" validation failed: {why}"))
}

pub(super) fn item(index: usize, why: impl std::fmt::Display) -> Invalid {
    Invalid(format!("failed to validate item {}: {why}", index + 1))
}

/// Refuses by name what APISIX has and this version has not: an operator must not think that it works.
fn unsupported(kind: Kind, value: &Value) -> Result<(), Invalid> {
    let none = |fields: &[(&str, &str)]| {
        let found = fields.iter().find(|(field, _)| value.get(*field).is_some());
        match found {
            Some((field, what)) => Err(Invalid(format!(
                "property \"{field}\" is not supported by this version of Wardgate: {what}"
            ))),
            None => Ok(()),
        }
    };
    match kind {
        Kind::Routes => {
            none(&[
                ("script", "Lua"),
                ("script_id", "Lua"),
                ("filter_func", "Lua; use vars"),
                ("service_protocol", "name the protocol in the upstream's scheme"),
            ])?;
        }
        Kind::Services => none(&[("script", "Lua")])?,
        Kind::Ssls => {
            none(&[
                ("ssl", "OCSP stapling is a setting of the ingress, ingress.ocsp_stapling"),
                ("gm", "GM certificates"),
                ("exptime", "the certificate says itself when it ends"),
                ("validity_start", "the certificate says itself when it begins"),
                ("validity_end", "the certificate says itself when it ends"),
            ])?;
        }
        Kind::Upstreams => {
            if let Some(name) = value.get("scheme").and_then(Value::as_str)
                && ["tcp", "tls", "udp", "kafka"].contains(&name)
            {
                let why = format!("\"{name}\" is not supported by this version of Wardgate");
                return Err(at("scheme", why));
            }
        }
        _ => {}
    }
    if matches!(kind, Kind::Routes | Kind::Services)
        && let Some(upstream) = value.get("upstream")
    {
        unsupported(Kind::Upstreams, upstream).map_err(|why| at("upstream", why))?;
    }
    let plugins = value.get("plugins").and_then(Value::as_object);
    for (name, config) in plugins.into_iter().flatten() {
        if config.get("_meta").is_some_and(|meta| meta.get("pre_function").is_some()) {
            let why = "property \"pre_function\" is not supported by this version of Wardgate: Lua";
            return Err(at("plugins", at(name, at("_meta", why))));
        }
    }
    Ok(())
}

/// What a schema cannot say.
fn sensible(body: &Body) -> Result<(), Invalid> {
    match body {
        Body::Route(route) => {
            networks("remote_addr", &route.networks()).map_err(in_configuration)?;
            if let Some(selector) = &route.workload_selector {
                patterns("spiffe_ids", &selector.spiffe_ids)
                    .map_err(|why| in_configuration(at("workload_selector", why)))?;
            }
            route.upstream.as_deref().map_or(Ok(()), sensible_upstream)
        }
        Body::Service(service) => service.upstream.as_deref().map_or(Ok(()), sensible_upstream),
        Body::Upstream(upstream) => sensible_upstream(upstream),
        Body::Ssl(ssl) => certificates::sensible(ssl),
        Body::IdentityPolicy(policy) => policy::check(policy).map_err(in_configuration),
        Body::IdentityMode(mode) => policy::check_mode(mode).map_err(in_configuration),
        Body::Workload(workload) => {
            let id = workload.spiffe_id.parse::<SpiffeId>();
            let wrong = |why: &dyn std::fmt::Display| {
                let why = format!("{:?} is not a SPIFFE ID: {why}", workload.spiffe_id);
                in_configuration(at("spiffe_id", why))
            };
            match id {
                Ok(id) if id.path().is_empty() => {
                    Err(wrong(&"a workload has a path within its trust domain"))
                }
                Ok(_) => Ok(()),
                Err(why) => Err(wrong(&why)),
            }
        }
        Body::TrustDomain(declared) => {
            let domain = declared.id.as_ref().and_then(|id| id.as_str().parse().ok());
            let domain: TrustDomain = domain.ok_or_else(|| {
                let why = "it is required, and must be a trust domain's name";
                in_configuration(at("id", why))
            })?;
            DeclaredDomain::new(domain, declared).map(drop).map_err(wrong_field)
        }
        Body::Revocation(declared) => Denial::new(declared).map(drop).map_err(wrong_field),
        Body::Consumer(_)
        | Body::Credential(_)
        | Body::ConsumerGroup(_)
        | Body::PluginConfig(_)
        | Body::GlobalRule(_)
        | Body::PluginMetadata(_)
        | Body::Secret(_) => Ok(()),
        Body::Proto(proto) => {
            protos::check(&proto.content).map_err(|why| Invalid(format!("invalid content: {why}")))
        }
        Body::StreamRoute(route) => {
            for (field, text) in
                [("remote_addr", &route.remote_addr), ("server_addr", &route.server_addr)]
            {
                networks(field, &OneOrMany(&[], text.as_ref())).map_err(in_configuration)?;
            }
            let upstream = route.upstream.as_ref().map(|upstream| &upstream.upstream);
            upstream.map_or(Ok(()), sensible_upstream)
        }
    }
}

fn wrong_field(WrongField { field, why }: WrongField) -> Invalid {
    let inward = field.split('.').rev().fold(why, |why, name| at(name, why).0);
    in_configuration(Invalid(inward))
}

fn patterns(field: &str, texts: &[String]) -> Result<(), Invalid> {
    for (index, text) in texts.iter().enumerate() {
        text.parse::<SpiffePattern>().map_err(|why| {
            at(field, item(index, format!("{text:?} is not a SPIFFE ID pattern: {why}")))
        })?;
    }
    Ok(())
}

fn networks(field: &str, texts: &OneOrMany<'_>) -> Result<(), Invalid> {
    for text in texts.iter() {
        if text.parse::<IpAddr>().is_err() && text.parse::<IpNet>().is_err() {
            let why = "object matches none of the required";
            return Err(match texts.1 {
                Some(_) => at(field, why),
                None => {
                    let index = texts.0.iter().position(|other| other == text).unwrap_or(0);
                    at(&format!("{field}s"), item(index, why))
                }
            });
        }
    }
    Ok(())
}

static HASHED_VARIABLE: LazyLock<Regex> = LazyLock::new(|| {
    let names = "uri|server_name|server_addr|request_uri|remote_port|remote_addr|query_string|host|hostname|mqtt_client_id";
    Regex::new(&format!("^(({names})|arg_[0-9a-zA-Z_-]+)$")).expect("a good pattern")
});
static HASHED_NAME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("^[a-zA-Z0-9-_]+$").expect("a good pattern"));

fn sensible_upstream(upstream: &Upstream) -> Result<(), Invalid> {
    if let Some(nodes) = &upstream.nodes {
        sensible_nodes(nodes).map_err(|why| in_configuration(at("nodes", why)))?;
    }
    if upstream.pass_host == PassHost::Rewrite
        && upstream.upstream_host.as_ref().is_none_or(String::is_empty)
    {
        let text = "`upstream_host` can't be empty when `pass_host` is `rewrite`";
        return Err(Invalid::new(text));
    }
    if let Some(tls) = &upstream.tls {
        patterns("spiffe_ids", &tls.spiffe_ids).map_err(|why| in_configuration(at("tls", why)))?;
        let all_nodes_say = match &upstream.nodes {
            Some(Nodes::List(nodes)) => {
                !nodes.is_empty() && nodes.iter().all(|node| !node.spiffe_ids.is_empty())
            }
            _ => false,
        };
        if tls.identity.is_some() && tls.spiffe_ids.is_empty() && !all_nodes_say {
            let why = "property \"spiffe_ids\" is required when \"identity\" is set: \
                       whom do we expect at the other end?";
            return Err(in_configuration(at("tls", why)));
        }
    }
    if upstream.balance != Balance::Chash {
        return Ok(());
    }
    let Some(key) = &upstream.key else {
        return match upstream.hash_on {
            HashOn::Consumer => Ok(()),
            _ => Err(Invalid::new("missing key")),
        };
    };
    let pattern = match upstream.hash_on {
        HashOn::Vars => &HASHED_VARIABLE,
        HashOn::Header | HashOn::Cookie => &HASHED_NAME,
        HashOn::Consumer | HashOn::VarsCombinations => return Ok(()),
    };
    if pattern.is_match(key) {
        return Ok(());
    }
    let text = format!("failed to match pattern {:?} with {key:?}", pattern.as_str());
    Err(in_configuration(Invalid(text)))
}

fn sensible_nodes(nodes: &Nodes) -> Result<(), Invalid> {
    match nodes {
        Nodes::Map(nodes) => nodes.keys().try_for_each(|address| {
            let (host, port) = split_address(address)?;
            if let Some(port) = port
                && port.parse::<u16>().ok().is_none_or(|port| port == 0)
            {
                return Err(Invalid(format!("{address:?}: the port is 1 to 65535")));
            }
            sensible_host(host)
        }),
        Nodes::List(nodes) => nodes.iter().enumerate().try_for_each(|(index, node)| {
            sensible_host(&node.host).map_err(|why| item(index, at("host", why)))?;
            patterns("spiffe_ids", &node.spiffe_ids).map_err(|why| item(index, why))
        }),
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn split_address(address: &str) -> Result<(&str, Option<&str>), Invalid> {
    if let Some(end) = address.find(']') {
        let (host, rest) = address.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(Invalid(format!("{address:?} is not an address"))),
        };
    }
    match address.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Ok((address, None)),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((address, None)),
    }
}

fn sensible_host(host: &str) -> Result<(), Invalid> {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match inner {
        Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => Ok(()),
        Some(inner) => Err(Invalid(format!("{inner:?} is not an IPv6 address"))),
        None if host.parse::<std::net::Ipv6Addr>().is_ok() => {
            Err(Invalid(format!("an IPv6 address is written in brackets: [{host}]")))
        }
        None if !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) =>
        {
            Ok(())
        }
        None => Err(Invalid(format!("{host:?} is neither a name nor an address"))),
    }
}

impl ControlPlane {
    /// Shape and plugins, without a look into the store: what `schema/validate` answers.
    pub(super) fn judge_shape(&self, kind: Kind, id: &str, value: &Value) -> Result<Body, Invalid> {
        let body = self.shapes.check(kind, value)?;
        self.judge_plugins(kind, id, value)?;
        Ok(body)
    }

    fn judge_plugins(&self, kind: Kind, id: &str, value: &Value) -> Result<(), Invalid> {
        if kind == Kind::PluginMetadata {
            let mut settings = value.clone();
            if let Some(fields) = settings.as_object_mut() {
                fields.shift_remove("id");
            }
            return self.plugins.check_metadata(id, &settings);
        }
        if kind == Kind::StreamRoutes {
            // None of the plugins is one for connections.
            let plugins = value.get("plugins").and_then(Value::as_object);
            return match plugins.and_then(|plugins| plugins.keys().next()) {
                Some(name) => Err(Invalid(format!("unknown plugin [{name}]"))),
                None => Ok(()),
            };
        }
        let holds_credentials = matches!(kind, Kind::Consumers | Kind::Credentials);
        let part = if holds_credentials { PluginPart::Credential } else { PluginPart::Config };
        let plugins = value.get("plugins").and_then(Value::as_object);
        let mut count = 0;
        for (name, config) in plugins.into_iter().flatten() {
            count += 1;
            self.plugins.check(name, part, config).map_err(|invalid| match holds_credentials {
                true => Invalid(format!("invalid plugins configuration: {invalid}")),
                false => invalid,
            })?;
            let authenticates =
                self.plugins.find(name).is_some_and(super::plugins::Plugin::authenticates);
            if kind == Kind::Credentials && !authenticates {
                let text = "only supports auth type plugins in consumer credential";
                return Err(Invalid::new(text));
            }
        }
        if kind == Kind::Credentials && count != 1 {
            let why = format!("expected exactly one auth plugin, found {count}");
            return Err(in_configuration(at("plugins", why)));
        }
        Ok(())
    }

    /// Everything, in APISIX's order: fields, then references, then plugins; then what must be unique, and the trial.
    pub(super) async fn judge(&self, kind: Kind, id: &Id, value: &Value) -> Result<(), Answer> {
        let body = self.shapes.check(kind, value)?;
        if kind == Kind::Ssls {
            certificates::lawful_id(id)?;
        }
        // Consumers are the exception: their plugins come before their group.
        let plugins_first = kind == Kind::Consumers;
        if plugins_first {
            self.judge_plugins(kind, id.as_str(), value)?;
        }
        let mut referred = self.references(id, &body).await?;
        if !plugins_first {
            self.judge_plugins(kind, id.as_str(), value)?;
        }
        self.judge_uniqueness(kind, id, value).await?;
        self.add_metadata(value, &mut referred).await?;
        let candidate = Resource { kind, id: id.clone(), revision: 0, body };
        self.trial.check(&candidate, &referred)?;
        Ok(())
    }

    /// Waits until the index has seen what this process wrote.
    pub(super) async fn fresh_index(&self) -> Result<&super::index::Index, Answer> {
        let written = self.written.load(std::sync::atomic::Ordering::Acquire);
        self.index.reaches(written).await.map_err(|_| {
            let text = "the store is unreachable: its newest state has not arrived";
            Answer::error(StatusCode::SERVICE_UNAVAILABLE, text)
        })?;
        Ok(&self.index)
    }

    /// Auth keys belong to one consumer, and a plugin to one global rule.
    async fn judge_uniqueness(&self, kind: Kind, id: &Id, value: &Value) -> Result<(), Answer> {
        if !matches!(kind, Kind::Consumers | Kind::Credentials | Kind::GlobalRules) {
            return Ok(());
        }
        let index = self.fresh_index().await?;
        let other = |fact: &Fact| {
            let holders = index.holders(fact);
            holders.into_iter().find(|(other, other_id)| (*other, other_id) != (kind, id))
        };
        let plugins = value.get("plugins").and_then(Value::as_object);
        for (name, config) in plugins.into_iter().flatten() {
            if kind == Kind::GlobalRules {
                if let Some((_, rule)) = other(&Fact::GlobalPlugin(name.clone())) {
                    return Err(Answer::bad(format!(
                        "plugin '{name}' already exists in global rule with id '{rule}'"
                    )));
                }
            } else if let Some(fact) = auth_key(name, config)
                && let Some((_, holder)) = other(&fact)
            {
                let consumer = holder.as_str().split('/').next().unwrap_or_default();
                return Err(Answer::bad(format!(
                    "duplicate key of plugin {name} found with consumer: {consumer}"
                )));
            }
        }
        Ok(())
    }

    /// May this resource go? Not while others use it.
    pub(super) async fn judge_removal(&self, kind: Kind, id: &Id) -> Result<(), Answer> {
        let opening = match kind {
            Kind::Upstreams => "can not delete this upstream,",
            Kind::Services => "can not delete this service directly,",
            Kind::PluginConfigs => "can not delete this plugin config,",
            Kind::ConsumerGroups => "can not delete this consumer group,",
            Kind::Protos => "can not delete this proto,",
            Kind::StreamRoutes => "can not delete this stream route directly,",
            _ => return Ok(()),
        };
        let index = self.fresh_index().await?;
        let users = index.holders(&Fact::Refers(kind, id.as_str().to_owned()));
        // APISIX looks in this order.
        let order = [
            (Kind::Routes, "route"),
            (Kind::StreamRoutes, "stream_route"),
            (Kind::Services, "service"),
            (Kind::PluginConfigs, "plugin_config"),
            (Kind::Consumers, "consumer"),
            (Kind::ConsumerGroups, "consumer_group"),
            (Kind::GlobalRules, "global_rules"),
            (Kind::Credentials, "credential"),
        ];
        for (user_kind, name) in order {
            if let Some((_, user)) = users.iter().find(|(found, _)| *found == user_kind) {
                return Err(Answer::bad(match (kind, user_kind) {
                    (Kind::StreamRoutes, Kind::StreamRoutes) => {
                        format!("{opening} stream route [{user}] is still using it as superior_id")
                    }
                    _ => format!("{opening} {name} [{user}] is still using it now"),
                }));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_makes_no_sense_or_is_not_here_yet_is_refused_by_name() {
        let shapes = Shapes::new().unwrap();
        let node = json!({"a:80": 1});
        let policy = |from: Value| json!({"action": "allow", "rules": [{"from": from}]});
        for (kind, value, sentence) in [
            (
                Kind::Routes,
                json!({"uri": "/", "plugins": {}, "host": "a", "hosts": ["b"]}),
                "only one of host or hosts is allowed",
            ),
            (
                Kind::Routes,
                json!({"uri": "/", "plugins": {}, "remote_addr": "1.2.3"}),
                r#"invalid configuration: property "remote_addr" validation failed: object matches none of the required"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/", "plugins": {}, "remote_addrs": ["::1", "10.0.0.0/99"]}),
                r#"invalid configuration: property "remote_addrs" validation failed: failed to validate item 2: object matches none of the required"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/", "script": "return {}"}),
                r#"invalid configuration: property "script" is not supported by this version of Wardgate: Lua"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/", "upstream": {"nodes": node, "checks": {}}}),
                r#"invalid configuration: property "upstream" validation failed: property "checks" validation failed: property "active" is required"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/", "plugins": {"a": {"_meta": {"pre_function": "return"}}}}),
                r#"invalid configuration: property "plugins" validation failed: property "a" validation failed: property "_meta" validation failed: property "pre_function" is not supported by this version of Wardgate: Lua"#,
            ),
            (
                Kind::Routes,
                json!({"uri": "/", "plugins": {}, "workload_selector": {"spiffe_ids": ["spiffe://d/a-*"]}}),
                r#"invalid configuration: property "workload_selector" validation failed: property "spiffe_ids" validation failed: failed to validate item 1: "spiffe://d/a-*" is not a SPIFFE ID pattern: "#,
            ),
            (
                Kind::Upstreams,
                json!({"nodes": node, "scheme": "kafka"}),
                r#"invalid configuration: property "scheme" validation failed: "kafka" is not supported by this version of Wardgate"#,
            ),
            (Kind::Upstreams, json!({"nodes": node, "type": "chash"}), "missing key"),
            (
                Kind::Upstreams,
                json!({"nodes": node, "type": "chash", "key": "nonsense"}),
                r#"invalid configuration: failed to match pattern "^(("#,
            ),
            (
                Kind::Upstreams,
                json!({"nodes": node, "pass_host": "rewrite"}),
                "`upstream_host` can't be empty when `pass_host` is `rewrite`",
            ),
            (
                Kind::Upstreams,
                json!({"nodes": {"::1": 1}}),
                r#"invalid configuration: property "nodes" validation failed: an IPv6 address is written in brackets: [::1]"#,
            ),
            (
                Kind::Upstreams,
                json!({"nodes": {"a:0": 1}}),
                r#"invalid configuration: property "nodes" validation failed: "a:0": the port is 1 to 65535"#,
            ),
            (
                Kind::Upstreams,
                json!({"nodes": {"a b": 1}}),
                r#"invalid configuration: property "nodes" validation failed: "a b" is neither a name nor an address"#,
            ),
            (
                Kind::Upstreams,
                json!({"nodes": [{"host": "::1", "weight": 1}]}),
                r#"invalid configuration: property "nodes" validation failed: failed to validate item 1: property "host" validation failed: an IPv6 address is written in brackets: [::1]"#,
            ),
            (
                Kind::Upstreams,
                json!({"nodes": node, "tls": {"identity": "svid"}}),
                r#"invalid configuration: property "tls" validation failed: property "spiffe_ids" is required when "identity" is set: whom do we expect at the other end?"#,
            ),
            (
                Kind::Upstreams,
                json!({"nodes": node, "tls": {"spiffe_ids": ["web"]}}),
                r#"invalid configuration: property "tls" validation failed: property "spiffe_ids" validation failed: failed to validate item 1: "web" is not a SPIFFE ID pattern: does not start with spiffe://"#,
            ),
            (
                Kind::IdentityPolicies,
                policy(json!({"principals": ["spiffe://d/a", "spiffe://D/a"]})),
                r#"invalid configuration: rules[0].from.principals[1]: "spiffe://D/a" the trust domain may have only a-z, 0-9, dot, dash and underscore"#,
            ),
            (
                Kind::IdentityPolicies,
                policy(json!({"trust_domains": ["a/b"]})),
                r#"invalid configuration: rules[0].from.trust_domains[0]: "a/b" "#,
            ),
            (
                Kind::Workloads,
                json!({"spiffe_id": "spiffe://d/*", "selectors": ["unix:uid:1"]}),
                r#"invalid configuration: property "spiffe_id" validation failed: "spiffe://d/*" is not a SPIFFE ID: "#,
            ),
            (
                Kind::Workloads,
                json!({"spiffe_id": "spiffe://d", "selectors": ["unix:uid:1"]}),
                r#"invalid configuration: property "spiffe_id" validation failed: "spiffe://d" is not a SPIFFE ID: a workload has a path"#,
            ),
        ] {
            let error = shapes.check(kind, &value).map(|_| ()).unwrap_err();
            assert!(error.0.starts_with(sentence), "{value}\n found: {error}\nwanted: {sentence}");
        }
    }

    #[test]
    fn nodes_are_taken_in_every_form_that_apisix_has() {
        let shapes = Shapes::new().unwrap();
        for nodes in [
            json!({"a.b": 1, "10.0.0.1:80": 0, "[::1]": 1, "[::1]:80": 2}),
            json!([{"host": "[::1]", "port": 80, "weight": 1}, {"host": "a_b", "weight": 1}]),
            json!({}),
            json!([]),
        ] {
            assert!(shapes.check(Kind::Upstreams, &json!({"nodes": nodes})).is_ok(), "{nodes}");
        }
    }
}
