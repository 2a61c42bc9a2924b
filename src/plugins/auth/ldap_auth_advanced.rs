//! `ldap-auth-advanced`: a directory is searched for the caller, and knows its password.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::entrance::{Entrance, directory, found, name_and_password, named};
use super::ldap::{User, default_port, directory_server};
use super::ldap_auth::attribute;
use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, LdapAccess, LdapFound, LdapSearch, LdapServer,
    LdapTls, Plugin, Redacted, Reply, Rewrite,
};
use crate::plugins::bounds;

/// Callers present a user name and a password in `Proxy-Authorization` or `Authorization`. The directory is searched for the one entry
/// of that name, and must know the password as that entry's.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The directory's host, or `host:port`; the port is 389 when not given, with `use_ldaps` 636.
    #[schemars(length(min = 1, max = 256))]
    ldap_uri: String,
    /// The entry below which users are, at any depth.
    #[schemars(length(min = 1, max = 4096))]
    base_dn: String,
    /// The attribute that has the user name.
    #[serde(default = "default_attribute")]
    #[schemars(
        length(max = 256),
        regex(
            pattern = r"^(?:[A-Za-z][A-Za-z0-9-]*|(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+)(?:;[A-Za-z0-9-]+)*$"
        )
    )]
    attribute: String,
    /// Who searches; nobody in particular when not given.
    #[serde(default)]
    #[schemars(length(min = 1, max = 4096))]
    bind_dn: Option<String>,
    /// The password of `bind_dn`. Required beside it.
    #[serde(default)]
    #[schemars(with = "Option<String>", length(min = 1, max = 4096))]
    ldap_password: Option<Redacted<String>>,
    /// Whether a consumer must have the user's distinguished name. Without, everybody whom the directory knows may pass; whoever has a
    /// consumer is still known by it.
    #[serde(default = "yes")]
    consumer_required: bool,
    /// The scheme of the credentials.
    #[serde(default)]
    header_type: HeaderType,
    /// TLS from the first byte on (LDAPS). Not beside `use_starttls`.
    #[serde(default)]
    use_ldaps: bool,
    /// TLS by StartTLS, before anything else is said.
    #[serde(default)]
    use_starttls: bool,
    /// With TLS: the directory's certificate must be one that the system trusts, with its host's name.
    #[serde(default = "yes")]
    ssl_verify: bool,
    /// Milliseconds within which the directory has to answer.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1, max = 60000))]
    timeout: u32,
    /// Keeps connections for the next caller.
    #[serde(default = "yes")]
    keepalive: bool,
    /// Plugins of the same directory and name share their connections.
    #[serde(default)]
    #[schemars(length(min = 1, max = 256))]
    keepalive_pool_name: Option<String>,
    /// How many connections are kept.
    #[serde(default = "default_pool_size")]
    #[schemars(range(min = 1))]
    keepalive_pool_size: u32,
    /// Milliseconds that a connection is kept.
    #[serde(default = "default_keepalive")]
    #[schemars(range(min = 1000))]
    keepalive_timeout: u32,
    /// How many entries the directory gives at most. With more than one entry of the name nobody is let in.
    #[serde(default = "default_size_limit")]
    #[schemars(range(min = 2))]
    size_limit: u32,
    /// Seconds that the directory searches at most; 0: as long as it likes.
    #[serde(default = "default_time_limit")]
    #[schemars(range(min = 0))]
    time_limit: u32,
    /// What the refusal's `WWW-Authenticate` names.
    #[serde(default = "default_realm")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r#"^[^"\\]+$"#))]
    realm: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum HeaderType {
    /// `Authorization: ldap <base64>`.
    #[default]
    Ldap,
    /// `Authorization: Basic <base64>`.
    Basic,
}

const fn yes() -> bool {
    true
}
fn default_attribute() -> String {
    "cn".into()
}
fn default_realm() -> String {
    "ldap".into()
}
const fn default_timeout() -> u32 {
    10_000
}
const fn default_pool_size() -> u32 {
    5
}
const fn default_keepalive() -> u32 {
    60_000
}
const fn default_size_limit() -> u32 {
    2
}
const fn default_time_limit() -> u32 {
    5
}

pub(super) struct LdapAuthAdvanced {
    entrance: Entrance,
    challenge: String,
    scheme: &'static str,
    server: Arc<LdapServer>,
    by: Option<(String, Redacted<String>)>,
    base: String,
    attribute: String,
    entries: u32,
    seconds: u32,
    consumer_required: bool,
}

impl Plugin for LdapAuthAdvanced {
    const NAME: &'static str = "ldap-auth-advanced";
    const PRIORITY: i32 = 2541;
    const EXAMPLE: &'static str = r#"{"ldap_uri": "ldap.example.org", "use_starttls": true,
        "base_dn": "ou=users,dc=example,dc=org", "attribute": "uid", "header_type": "basic",
        "bind_dn": "cn=gateway,dc=example,dc=org", "ldap_password": "of the gateway"}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        check(&config)?;
        let tls = match (config.use_ldaps, config.use_starttls) {
            (false, false) => None,
            (true, false) => Some(LdapTls::First),
            (false, true) => Some(LdapTls::Started),
            (true, true) => {
                return Err(Invalid::new("use_starttls: has no meaning beside use_ldaps"));
            }
        };
        let kept = (
            Duration::from_millis(config.keepalive_timeout.into()),
            usize::try_from(config.keepalive_pool_size).unwrap_or(usize::MAX),
        );
        let terms = LdapAccess {
            host: String::new(),
            port: default_port(tls),
            tls,
            verify: config.ssl_verify,
            within: Duration::from_millis(config.timeout.into()),
            keep: config.keepalive.then_some(kept),
        };
        let pool = config.keepalive_pool_name.as_deref().unwrap_or_default();
        let scheme = match config.header_type {
            HeaderType::Ldap => "ldap",
            HeaderType::Basic => "Basic",
        };
        let plugin = Self {
            entrance: Entrance::new(scheme, &config.realm, None)?,
            challenge: format!("{scheme} realm=\"{}\"", config.realm),
            scheme,
            server: directory_server(build, &config.ldap_uri, pool, &terms)?,
            by: config.bind_dn.zip(config.ldap_password),
            base: config.base_dn,
            attribute: config.attribute,
            entries: config.size_limit,
            seconds: config.time_limit,
            consumer_required: config.consumer_required,
        };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

fn check(config: &Config) -> Result<(), Invalid> {
    named("ldap_uri", &config.ldap_uri, 256)?;
    named("base_dn", &config.base_dn, 4096)?;
    attribute("attribute", &config.attribute)?;
    match (&config.bind_dn, &config.ldap_password) {
        (Some(name), Some(password)) => {
            named("bind_dn", name, 4096)?;
            // Without one it would bind as nobody, and succeed.
            named("ldap_password", password.reveal(), 4096)?;
        }
        (Some(_), None) => {
            return Err(Invalid::new("ldap_password: is required beside bind_dn"));
        }
        (None, Some(_)) => return Err(Invalid::new("bind_dn: is required beside ldap_password")),
        (None, None) => {}
    }
    if let Some(name) = &config.keepalive_pool_name {
        named("keepalive_pool_name", name, 256)?;
    }
    bounds::number("timeout", config.timeout, 1..=60_000)?;
    bounds::number("keepalive_pool_size", config.keepalive_pool_size, 1..=u32::MAX)?;
    bounds::number("keepalive_timeout", config.keepalive_timeout, 1000..=u32::MAX)?;
    // RFC 4511, section 4.5.1.4: these are 31 bits.
    bounds::number("size_limit", config.size_limit, 2..=0x7fff_ffff)?;
    bounds::number("time_limit", config.time_limit, 0..=0x7fff_ffff)?;
    Ok(())
}

#[async_trait]
impl Rewrite for LdapAuthAdvanced {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let request = &exchange.request;
        let presented = match name_and_password(request.value("proxy-authorization"), self.scheme) {
            Err(_) => name_and_password(request.value("authorization"), self.scheme),
            presented => presented,
        };
        let Ok((name, password)) = presented else {
            return Ok(self.entrance.refuse("Authorization required"));
        };
        let search = LdapSearch {
            by: self.by.as_ref().map(|(name, password)| (&**name, &**password.reveal())),
            base: &self.base,
            attribute: &self.attribute,
            value: &name,
            entries: self.entries,
            seconds: self.seconds,
        };
        let user = match self.server.find(search, &password).await {
            Ok(LdapFound::Known(user)) => user,
            Ok(LdapFound::Nobody) => return Ok(self.refused()),
            Err(why) => return Err(Fault::gateway("the directory cannot be asked", why.told())),
        };
        let directory = directory(exchange)?;
        match found::<User>(&*directory, Self::NAME, &user) {
            Some((consumer, _)) => self.entrance.end(exchange, Ok(consumer)),
            None if self.consumer_required => Ok(self.refused()),
            None => {
                // Nobody in particular, and what the caller says of itself is not that either.
                for name in
                    ["X-Consumer-Username", "X-Credential-Identifier", "X-Consumer-Custom-ID"]
                {
                    exchange.request.remove(name);
                }
                Ok(Flow::Next)
            }
        }
    }
}

impl LdapAuthAdvanced {
    /// Who is not let in is not told why.
    fn refused(&self) -> Flow {
        Flow::Reply(Box::new(Reply::empty(401).with("WWW-Authenticate", &self.challenge)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;
    use serde_json::{Value, json};

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let with = |field: &str, value: Value| {
            let mut config = json!({"base_dn": "dc=a", "ldap_uri": "a"});
            config[field] = value;
            config
        };
        let long = |length: usize| json!("a".repeat(length));
        for (config, says) in [
            (json!({"ldap_uri": "a"}), "base_dn"),
            (json!({"base_dn": "dc=a"}), "ldap_uri"),
            (with("base_dn", json!("")), "base_dn"),
            (with("base_dn", long(4097)), "base_dn"),
            (with("ldap_uri", json!("ldaps://a")), "ldap_uri"),
            (with("ldap_uri", long(257)), "ldap_uri"),
            (with("attribute", json!("")), "attribute"),
            (with("attribute", json!("cn)(uid=*")), "attribute"),
            (with("attribute", long(257)), "attribute"),
            (with("bind_dn", json!("cn=a")), "ldap_password: is required beside bind_dn"),
            (with("ldap_password", json!("a")), "bind_dn: is required beside ldap_password"),
            (
                json!({"base_dn": "dc=a", "ldap_uri": "a", "bind_dn": "cn=a", "ldap_password": ""}),
                "ldap_password",
            ),
            (
                json!({"base_dn": "dc=a", "ldap_uri": "a", "bind_dn": "", "ldap_password": "a"}),
                "bind_dn",
            ),
            (
                json!({"base_dn": "dc=a", "ldap_uri": "a", "use_ldaps": true, "use_starttls": true}),
                "use_starttls: has no meaning beside use_ldaps",
            ),
            (with("consumer_required", json!("no")), "boolean"),
            (with("header_type", json!("bearer")), "unknown variant `bearer`"),
            (with("use_ldaps", json!(1)), "boolean"),
            (with("use_starttls", json!(1)), "boolean"),
            (with("ssl_verify", json!(1)), "boolean"),
            (with("timeout", json!(0)), "timeout"),
            (with("timeout", json!(60_001)), "timeout"),
            (with("keepalive", json!(1)), "boolean"),
            (with("keepalive_pool_name", json!("")), "keepalive_pool_name"),
            (with("keepalive_pool_name", long(257)), "keepalive_pool_name"),
            (with("keepalive_pool_size", json!(0)), "keepalive_pool_size"),
            (with("keepalive_timeout", json!(999)), "keepalive_timeout"),
            (with("size_limit", json!(1)), "size_limit"),
            (with("size_limit", json!(0x8000_0000_u32)), "size_limit"),
            (with("time_limit", json!(-1)), "invalid value"),
            (with("realm", json!("a\\b")), "realm"),
            (with("hide_credentials", json!(true)), "unknown field `hide_credentials`"),
        ] {
            let error = refused::<LdapAuthAdvanced>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
