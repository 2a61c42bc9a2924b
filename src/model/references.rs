//! Where a resource may bear references to secrets: settings of plugins and their metadata, certificates and their keys.

use std::fmt;

use serde_json::{Map, Value};

use super::{Body, PluginSet, Redacted, SecretReference, Ssl, Upstream};

/// A reference that a resource bears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Borne {
    /// Where it stands: `plugins.key-auth.key`.
    pub field: String,
    /// What it says; or, when it begins like a reference and is none, what was expected.
    pub reference: Result<SecretReference, String>,
}

impl Body {
    /// The references that the resource bears. A manager of secrets bears none that others need: what stands in its own fields
    /// is its own matter.
    pub fn references(&self) -> Vec<Borne> {
        let mut found = Vec::new();
        let mut see = |at: &At<'_>, text: &str| note(&mut found, at, text);
        match self {
            Self::Route(route) => {
                see_plugins(route.plugins.as_ref(), &mut see);
                see_upstream(Some(&At::field("upstream")), route.upstream.as_deref(), &mut see);
            }
            Self::Service(service) => {
                see_plugins(service.plugins.as_ref(), &mut see);
                see_upstream(Some(&At::field("upstream")), service.upstream.as_deref(), &mut see);
            }
            Self::Upstream(upstream) => see_upstream(None, Some(upstream), &mut see),
            Self::Consumer(consumer) => see_plugins(consumer.plugins.as_ref(), &mut see),
            Self::Credential(credential) => see_plugins(Some(&credential.plugins), &mut see),
            Self::ConsumerGroup(config) | Self::PluginConfig(config) => {
                see_plugins(Some(&config.plugins), &mut see);
            }
            Self::GlobalRule(rule) => see_plugins(Some(&rule.plugins), &mut see),
            Self::PluginMetadata(value) => see_members(None, value.as_object(), &mut see),
            Self::Ssl(ssl) => see_ssl(ssl, &mut see),
            Self::Secret(_)
            | Self::Proto(_)
            | Self::StreamRoute(_)
            | Self::IdentityPolicy(_)
            | Self::IdentityMode(_)
            | Self::Workload(_)
            | Self::TrustDomain(_)
            | Self::Revocation(_) => {}
        }
        found
    }
}

/// Puts something in the place of each text; `None` leaves it.
pub type Replace<'r> = dyn FnMut(&str) -> Option<String> + 'r;

impl Ssl {
    /// Replaces texts in which references may stand.
    pub fn replace(&mut self, with: &mut Replace<'_>) {
        let plain = |text: &mut String, with: &mut Replace<'_>| {
            if let Some(new) = with(text) {
                *text = new;
            }
        };
        plain(&mut self.cert, with);
        self.certs.iter_mut().for_each(|text| plain(text, with));
        for key in std::iter::once(&mut self.key).chain(&mut self.keys) {
            if let Some(new) = with(key.reveal()) {
                *key = Redacted::new(new);
            }
        }
        if let Some(client) = &mut self.client {
            plain(&mut client.ca, with);
        }
    }

    /// The references that it bears.
    pub fn references(&self) -> Vec<Borne> {
        let mut found = Vec::new();
        see_ssl(self, &mut |at, text| note(&mut found, at, text));
        found
    }
}

impl Upstream {
    /// Replaces texts in which references may stand.
    pub fn replace(&mut self, with: &mut Replace<'_>) {
        let Some(tls) = &mut self.tls else { return };
        if let Some(new) = tls.client_cert.as_deref().and_then(&mut *with) {
            tls.client_cert = Some(new);
        }
        if let Some(new) = tls.client_key.as_ref().and_then(|key| with(key.reveal())) {
            tls.client_key = Some(Redacted::new(new));
        }
    }

    /// The references that it bears.
    pub fn references(&self) -> Vec<Borne> {
        let mut found = Vec::new();
        see_upstream(None, Some(self), &mut |at, text| note(&mut found, at, text));
        found
    }
}

impl SecretReference {
    /// The references in a value, each with the field at which it stands.
    pub fn all_in(value: &Value) -> Vec<Borne> {
        let mut found = Vec::new();
        see_value(None, value, &mut |at, text| note(&mut found, at, text));
        found
    }

    /// Replaces texts anywhere in a value.
    pub fn replace_in(value: &mut Value, with: &mut Replace<'_>) {
        match value {
            Value::String(text) => {
                if let Some(new) = with(text) {
                    *text = new;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| Self::replace_in(item, with)),
            Value::Object(members) => {
                members.values_mut().for_each(|member| Self::replace_in(member, with));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// A place in a resource. Written out only where something is found.
struct At<'a> {
    above: Option<&'a Self>,
    step: Step<'a>,
}

enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

impl<'a> At<'a> {
    const fn field(name: &'a str) -> Self {
        Self { above: None, step: Step::Field(name) }
    }

    const fn below(above: Option<&'a Self>, name: &'a str) -> Self {
        Self { above, step: Step::Field(name) }
    }

    const fn item(above: Option<&'a Self>, index: usize) -> Self {
        Self { above, step: Step::Item(index) }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(above) = self.above {
            above.fmt(f)?;
        }
        match (&self.step, self.above) {
            (Step::Field(name), None) => f.write_str(name),
            (Step::Field(name), Some(_)) => write!(f, ".{name}"),
            (Step::Item(index), _) => write!(f, "[{index}]"),
        }
    }
}

fn note(found: &mut Vec<Borne>, at: &At<'_>, text: &str) {
    if let Some(reference) = SecretReference::of(text) {
        found.push(Borne { field: at.to_string(), reference });
    }
}

type See<'s> = dyn FnMut(&At<'_>, &str) + 's;

fn see_plugins(plugins: Option<&PluginSet>, see: &mut See<'_>) {
    let top = At::field("plugins");
    for (name, settings) in plugins.into_iter().flatten() {
        see_members(Some(&At::below(Some(&top), name)), Some(&settings.config), see);
    }
}

fn see_members(above: Option<&At<'_>>, members: Option<&Map<String, Value>>, see: &mut See<'_>) {
    for (name, value) in members.into_iter().flatten() {
        see_value(Some(&At::below(above, name)), value, see);
    }
}

fn see_value(at: Option<&At<'_>>, value: &Value, see: &mut See<'_>) {
    match value {
        Value::String(text) if text.starts_with('$') => {
            see(at.unwrap_or(&At::field("")), text);
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                see_value(Some(&At::item(at, index)), item, see);
            }
        }
        Value::Object(members) => see_members(at, Some(members), see),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn see_upstream(above: Option<&At<'_>>, upstream: Option<&Upstream>, see: &mut See<'_>) {
    let Some(tls) = upstream.and_then(|upstream| upstream.tls.as_ref()) else { return };
    let at = At::below(above, "tls");
    if let Some(text) = &tls.client_cert {
        see(&At::below(Some(&at), "client_cert"), text);
    }
    if let Some(key) = &tls.client_key {
        see(&At::below(Some(&at), "client_key"), key.reveal());
    }
}

fn see_ssl(ssl: &Ssl, see: &mut See<'_>) {
    see(&At::field("cert"), &ssl.cert);
    see(&At::field("key"), ssl.key.reveal());
    let (certs, keys) = (At::field("certs"), At::field("keys"));
    for (index, text) in ssl.certs.iter().enumerate() {
        see(&At::item(Some(&certs), index), text);
    }
    for (index, key) in ssl.keys.iter().enumerate() {
        see(&At::item(Some(&keys), index), key.reveal());
    }
    if let Some(client) = &ssl.client {
        see(&At::below(Some(&At::field("client")), "ca"), &client.ca);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Kind;

    #[test]
    fn references_are_found_where_they_are_replaced_and_nowhere_else() {
        let fields = |kind: Kind, value: Value| -> Vec<String> {
            let borne = Body::parse(kind, &value).unwrap().references();
            borne
                .into_iter()
                .map(|one| format!("{}={}", one.field, one.reference.is_ok()))
                .collect()
        };
        let upstream = json!({"nodes": {"a:1": 1}, "tls": {"client_cert": "$env://C", "client_key": "$env://K"}});
        let plugins = json!({
            "key-auth": {"key": "$secret://vault/1/a/b"},
            "x": {"list": ["n", {"deep": "$env://"}], "no": "a $env://A"},
        });
        let route = json!({"uri": "$env://NOT_HERE", "plugins": plugins, "upstream": upstream});
        let all = [
            "plugins.key-auth.key=true",
            "plugins.x.list[1].deep=false",
            "upstream.tls.client_cert=true",
            "upstream.tls.client_key=true",
        ];
        assert_eq!(fields(Kind::Routes, route), all);
        assert_eq!(
            fields(Kind::Upstreams, upstream),
            ["tls.client_cert=true", "tls.client_key=true"]
        );
        let ssl = json!({
            "sni": "a", "cert": "$env://A", "key": "$env://B", "certs": ["$env://C"], "keys": ["$env://D"],
            "client": {"ca": "$env://E"},
        });
        assert_eq!(
            fields(Kind::Ssls, ssl),
            ["cert=true", "key=true", "certs[0]=true", "keys[0]=true", "client.ca=true"]
        );
        assert_eq!(fields(Kind::PluginMetadata, json!({"a": {"b": "$env://A"}})), ["a.b=true"]);
        let manager = json!({"uri": "https://v", "prefix": "kv", "token": "$env://T"});
        assert!(fields(Kind::Secrets, manager).is_empty());
    }
}
