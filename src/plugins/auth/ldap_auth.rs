//! `ldap-auth`: a directory knows the caller's password.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::entrance::{Entrance, directory, found, name_and_password, named};
use super::ldap::{User, default_port, directory_server};
use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, LdapAccess, LdapFound, LdapServer, LdapTls,
    Plugin, Rewrite, dn_escaped,
};

/// Callers present a user name and a password (HTTP Basic); the directory must know them, and a consumer the user's distinguished name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The entry below which users are: they are called `<uid>=<user name>,<base_dn>`.
    #[schemars(length(min = 1))]
    base_dn: String,
    /// The directory's host, or `host:port`; the port is 389 when not given, with `use_tls` 636.
    #[schemars(length(min = 1))]
    ldap_uri: String,
    /// TLS from the first byte on (LDAPS).
    #[serde(default)]
    use_tls: bool,
    /// With `use_tls`: the directory's certificate must be one that the system trusts, with its host's name.
    #[serde(default)]
    tls_verify: bool,
    /// The attribute that a user's name begins with.
    #[serde(default = "default_uid")]
    #[schemars(length(min = 1, max = 256))]
    uid: String,
    /// Takes the header `Authorization` off before the request goes upstream.
    #[serde(default)]
    hide_credentials: bool,
    /// What the refusal's `WWW-Authenticate` names.
    #[serde(default = "default_realm")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r#"^[^"\\]+$"#))]
    realm: String,
}

fn default_uid() -> String {
    "cn".into()
}
fn default_realm() -> String {
    "ldap".into()
}

pub(super) struct LdapAuth {
    entrance: Entrance,
    server: Arc<LdapServer>,
    uid: String,
    base: String,
    hide_credentials: bool,
}

impl Plugin for LdapAuth {
    const NAME: &'static str = "ldap-auth";
    const PRIORITY: i32 = 2540;
    const EXAMPLE: &'static str = r#"{"base_dn": "ou=users,dc=example,dc=org",
        "ldap_uri": "ldap.example.org:636", "use_tls": true, "tls_verify": true, "uid": "uid"}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        named("base_dn", &config.base_dn, 4096)?;
        attribute("uid", &config.uid)?;
        let tls = config.use_tls.then_some(LdapTls::First);
        let terms = LdapAccess {
            host: String::new(),
            port: default_port(tls),
            tls,
            verify: config.tls_verify,
            within: Duration::from_secs(10),
            keep: Some((Duration::from_secs(60), 5)),
        };
        let plugin = Self {
            entrance: Entrance::new("Basic", &config.realm, None)?,
            server: directory_server(build, &config.ldap_uri, "", &terms)?,
            uid: config.uid,
            base: config.base_dn,
            hide_credentials: config.hide_credentials,
        };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

/// An attribute's name or number, with its options (RFC 4512, section 2.5).
pub(super) fn attribute(field: &str, name: &str) -> Result<(), Invalid> {
    let wrong = || Invalid::new(format!("{field}: '{name}' is no attribute's name"));
    let mut parts = name.split(';');
    let kind = parts.next().unwrap_or_default();
    let keychar = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let is_name = kind.starts_with(|c: char| c.is_ascii_alphabetic()) && kind.bytes().all(keychar);
    let number = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let is_number = kind.contains('.') && kind.split('.').all(number);
    let good = name.len() <= 256
        && (is_name || is_number)
        && parts.all(|option| !option.is_empty() && option.bytes().all(keychar));
    if good { Ok(()) } else { Err(wrong()) }
}

#[async_trait]
impl Rewrite for LdapAuth {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let line = exchange.request.value("authorization");
        let (name, password) = match name_and_password(line, "basic") {
            Ok(presented) => presented,
            Err(why) => return Ok(self.entrance.refuse(why.told())),
        };
        let refused = || Ok(self.entrance.refuse("Invalid user authorization"));
        if name.is_empty() {
            return refused();
        }
        let user = format!("{}={},{}", self.uid, dn_escaped(&name), self.base);
        match self.server.bind(&user, &password).await {
            Ok(LdapFound::Known(_)) => {}
            Ok(LdapFound::Nobody) => return refused(),
            Err(why) => return Err(Fault::gateway("the directory cannot be asked", why.told())),
        }
        let directory = directory(exchange)?;
        let Some((consumer, _)) = found::<User>(&*directory, Self::NAME, &user) else {
            return refused();
        };
        if self.hide_credentials {
            exchange.request.remove("authorization");
        }
        self.entrance.end(exchange, Ok(consumer))
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
        for (config, says) in [
            (json!({"ldap_uri": "a"}), "base_dn"),
            (json!({"base_dn": "dc=a"}), "ldap_uri"),
            (with("base_dn", json!("")), "base_dn"),
            (with("ldap_uri", json!("ldap://a")), "ldap_uri: 'ldap://a' is no host"),
            (with("ldap_uri", json!("")), "ldap_uri"),
            (with("uid", json!("")), "uid"),
            (with("uid", json!("cn=a,ou")), "uid: 'cn=a,ou' is no attribute's name"),
            (with("use_tls", json!("yes")), "boolean"),
            (with("tls_verify", json!(1)), "boolean"),
            (with("hide_credentials", json!(1)), "boolean"),
            (with("realm", json!("a\"b")), "realm"),
            (with("realm", json!("")), "realm"),
            (with("bind_dn", json!("cn=a")), "unknown field `bind_dn`"),
        ] {
            let error = refused::<LdapAuth>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
        let row = crate::plugins::ALL.iter().find(|row| row.name == "ldap-auth").unwrap();
        for credential in [json!({}), json!({"user_dn": ""}), json!({"user_dn": 1})] {
            let error = (row.check_credential.unwrap())(&credential).unwrap_err().to_string();
            assert!(error.contains("user_dn") || error.contains("string"), "{credential}: {error}");
        }
    }

    #[test]
    fn attributes_have_names_or_numbers() {
        for good in ["cn", "sAMAccountName", "user-id", "2.5.4.3", "cn;lang-de", "0.9.2342"] {
            assert!(attribute("uid", good).is_ok(), "{good}");
        }
        for bad in
            ["", "1", "-a", "a b", "a=b", "cn)(uid=*", "2.05", "2.", "cn;", "cn;a b", "cn*", "ců"]
        {
            assert!(attribute("uid", bad).is_err(), "{bad}");
        }
    }
}
