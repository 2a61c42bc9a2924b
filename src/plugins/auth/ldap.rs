//! What the plugins that ask a directory share: what consumers carry, and how the directory is reached.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::entrance::named;
use crate::pipeline::{Build, Invalid, LdapAccess, LdapServer, LdapTls};

/// What a consumer or credential carries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    /// The user's distinguished name, as the directory has it; unique among all consumers.
    #[schemars(length(min = 1, max = 4096))]
    user_dn: String,
}

/// A consumer is known by its name alone: the directory knows the password.
pub(super) struct User;

impl crate::pipeline::Credential for Credential {
    type Ready = User;

    fn ready(self) -> Result<User, Invalid> {
        named("user_dn", &self.user_dn, 4096).map(|()| User)
    }
}

/// The directory at `host` or `host:port`. It is kept from revision to revision, with its connections, as long as nothing of this
/// changes; plugins that share `pool` share these.
pub(super) fn directory_server(
    build: &Build<'_>,
    uri: &str,
    pool: &str,
    terms: &LdapAccess,
) -> Result<Arc<LdapServer>, Invalid> {
    let (host, port) = place(uri)?;
    let port = port.unwrap_or(terms.port);
    let access = LdapAccess { host, port, ..terms.clone() };
    let name = format!("ldap {pool} {access:?}");
    Ok(build.keep_group(&name, || LdapServer::new(access)))
}

/// The port where none is given.
pub(super) const fn default_port(tls: Option<LdapTls>) -> u16 {
    match tls {
        Some(LdapTls::First) => 636,
        Some(LdapTls::Started) | None => 389,
    }
}

fn place(uri: &str) -> Result<(String, Option<u16>), Invalid> {
    let wrong = || Invalid::new(format!("ldap_uri: '{uri}' is no host or host:port"));
    let (host, port) = match uri.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(wrong)?)),
        None => match uri.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (uri, None),
        },
    };
    let lawful = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
    if host.is_empty() || !host.bytes().all(lawful) {
        return Err(wrong());
    }
    let number = |port: &str| port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    Ok((host.to_owned(), port.map(number).transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_host_and_may_have_a_port() {
        let read = |uri: &str| place(uri).ok().map(|(host, port)| (host, port.unwrap_or(0)));
        for (uri, host, port) in [
            ("ldap.shop.test", "ldap.shop.test", 0),
            ("ldap.shop.test:1389", "ldap.shop.test", 1389),
            ("127.0.0.1:389", "127.0.0.1", 389),
            ("[::1]:389", "::1", 389),
            ("[::1]", "::1", 0),
        ] {
            assert_eq!(read(uri), Some((host.to_owned(), port)), "{uri}");
        }
        for uri in [
            "", ":389", "a:0", "a:b", "a:70000", "ldap://a", "a b", "[::1", "[::1]389", "a/b",
            "::1",
        ] {
            assert_eq!(read(uri), None, "{uri}");
        }
    }
}
