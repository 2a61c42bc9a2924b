//! What an operator sets about access to the Admin API.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Principal, Role, Scope};
use crate::identity::{SpiffeId, SpiffePattern};

/// Who reaches the Admin API, and how.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// TLS on the Admin API's port. Without it the port must be on loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSettings>,
    /// Whom a SPIFFE ID makes what, without a key; the first that fits counts. They need `tls` with our SVID.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerSettings>,
    /// Web pages of these origins (`https://dashboard.example`) may call. No others may, and no CORS headers are sent to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<String>,
    /// Addresses or networks of reverse proxies before the Admin API. From anybody else a request that was forwarded (it bears
    /// `X-Forwarded-For`, `Forwarded` or `Via`) is refused: no route of a data plane leads here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxies: Vec<String>,
    /// Requests a second from one address, twice as many at once; 429 beyond. 0: no limit.
    pub requests_per_second: u32,
    /// Wrong keys a minute from one address, after which no key of it is looked at; 429. 0: no limit.
    pub failures_per_minute: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tls: None,
            peers: Vec::new(),
            origins: Vec::new(),
            proxies: Vec::new(),
            requests_per_second: 1000,
            failures_per_minute: 60,
        }
    }
}

/// TLS on the Admin API's port: with our own SVID, or with a certificate of a public name.
///
/// With our SVID, callers may show theirs, and are then whom `peers` says. With `certificate` and `key` they need an admin key.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// The certificate's chain, PEM, leaf first; read anew when it changes. Our SVID when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// What callers with a SPIFFE ID may do.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerSettings {
    /// The SPIFFE ID, or a pattern.
    pub spiffe_id: String,
    /// What they may do.
    pub role: Role,
    /// To what; everything when not given.
    #[serde(default, skip_serializing_if = "Scope::is_open")]
    pub scope: Scope,
}

impl Settings {
    /// Do they make sense?
    ///
    /// # Errors
    /// The field, and what was expected.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        Peers::of(&self.peers).map_err(|why| ("control.access.peers", why))?;
        networks(&self.proxies).map_err(|why| ("control.access.proxies", why))?;
        for origin in &self.origins {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if host.is_none_or(|host| host.is_empty() || host.contains(['/', '*', ' '])) {
                let why = format!("{origin:?}: expected https://host or https://host:port");
                return Err(("control.access.origins", why));
            }
        }
        let of_svid = match &self.tls {
            None => false,
            Some(TlsSettings { certificate: None, key: None }) => true,
            Some(TlsSettings { certificate: Some(_), key: Some(_) }) => false,
            Some(_) => {
                let why = "give certificate and key, or neither: then it is our SVID";
                return Err(("control.access.tls", why.into()));
            }
        };
        if !self.peers.is_empty() && !of_svid {
            let why = "SPIFFE IDs are proved over control.access.tls with our SVID: set it to {}";
            return Err(("control.access.peers", why.into()));
        }
        Ok(())
    }
}

/// Networks, as settings name them.
pub(crate) type Network = IpNet;

pub(crate) fn networks(texts: &[String]) -> Result<Vec<Network>, String> {
    let network = |text: &String| {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        address
            .or_else(|_| text.parse::<IpNet>())
            .map_err(|_| format!("{text:?} is neither an address nor a network"))
    };
    texts.iter().map(network).collect()
}

/// What SPIFFE IDs may do.
#[derive(Debug)]
pub(crate) struct Peers(Vec<(SpiffePattern, Role, Scope)>);

impl Peers {
    pub(crate) fn of(settings: &[PeerSettings]) -> Result<Self, String> {
        let peer = |PeerSettings { spiffe_id, role, scope }: &PeerSettings| {
            let pattern: SpiffePattern =
                spiffe_id.parse().map_err(|why| format!("{spiffe_id:?}: {why}"))?;
            scope.check()?;
            Ok((pattern, *role, scope.clone()))
        };
        settings.iter().map(peer).collect::<Result<_, String>>().map(Self)
    }

    pub(crate) fn find(&self, id: &SpiffeId) -> Option<Principal> {
        let (_, role, scope) = self.0.iter().find(|(pattern, ..)| pattern.matches(id))?;
        Some(Principal { name: id.as_str().to_owned(), role: *role, scope: scope.clone() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(value: Value) -> Result<(), String> {
        let settings: Settings = serde_json::from_value(value).unwrap();
        settings.check().map_err(|(field, why)| format!("{field}: {why}"))
    }

    #[test]
    fn settings_that_cannot_hold_what_they_say_are_refused() {
        assert_eq!(check(json!({})), Ok(()));
        let peer = json!([{"spiffe_id": "spiffe://shop/ops/*", "role": "operator"}]);
        assert_eq!(check(json!({"tls": {}, "peers": peer})), Ok(()));
        for (value, why) in [
            (json!({"peers": peer}), "control.access.peers: SPIFFE IDs are proved over"),
            (json!({"tls": {}, "peers": [{"spiffe_id": "shop", "role": "admin"}]}), "\"shop\""),
            (
                json!({"tls": {}, "peers": [{"spiffe_id": "spiffe://a/b", "role": "admin", "scope": {"kinds": ["x"]}}]}),
                "\"x\" is no kind",
            ),
            (json!({"tls": {"certificate": "/a"}}), "control.access.tls: give certificate and key"),
            (json!({"proxies": ["10.0.0.0/99"]}), "control.access.proxies: "),
            (json!({"origins": ["*"]}), "control.access.origins: \"*\": expected https://host"),
            (json!({"origins": ["https://a/b"]}), "control.access.origins: "),
        ] {
            let error = check(value).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_first_pattern_that_fits_says_who_it_is() {
        let peers: Vec<PeerSettings> = serde_json::from_value(json!([
            {"spiffe_id": "spiffe://shop/ops/alice", "role": "admin"},
            {"spiffe_id": "spiffe://shop/ops/*", "role": "viewer"},
        ]))
        .unwrap();
        let peers = Peers::of(&peers).unwrap();
        let role = |id: &str| peers.find(&id.parse().unwrap()).map(|found| found.role);
        assert_eq!(role("spiffe://shop/ops/alice"), Some(Role::Admin));
        assert_eq!(role("spiffe://shop/ops/bob"), Some(Role::Viewer));
        assert_eq!(role("spiffe://shop/web"), None);
    }
}
