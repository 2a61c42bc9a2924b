//! TLS that is passed through (`ingress.passthrough`): the server's name is read from the client's first message, policy decides
//! about the connection, and every byte goes to the server as it came. Whoever the client proves to be, it proves to the server.

use std::net::SocketAddr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::introduction::{Introductions, ProxyProtocolSettings};
use super::relay::Target;
use crate::model::Invalid;
use crate::rt::client_hello::{self, MAX_HELLO, folded};

/// One listener of which TLS is passed through.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PassthroughSettings {
    /// Where clients come in. Policies call it by this port.
    pub listen: SocketAddr,
    /// Where their connections go, by server name.
    #[schemars(length(min = 1))]
    pub routes: Vec<PassthroughRoute>,
    /// Where the PROXY protocol is spoken to us; nowhere when not given.
    #[serde(default)]
    pub proxy_protocol: Option<ProxyProtocolSettings>,
}

/// Where TLS connections for some servers go.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PassthroughRoute {
    /// Server names, exact or `*.suffix` for one or more labels before it. The longest that fits counts, an exact one first.
    #[schemars(length(min = 1))]
    pub server_names: Vec<String>,
    /// The server, `host:port`.
    pub to: String,
}

/// Where the connections of a listener go.
#[derive(Debug, Default)]
pub struct Passthrough {
    exact: Vec<(Box<str>, Arc<Target>)>,
    /// Without the star: `.example.com`. Longest first.
    suffixes: Vec<(Box<str>, Arc<Target>)>,
}

/// One listener, as a data plane takes it.
#[derive(Clone, Debug)]
pub struct PassthroughDoor {
    /// Where clients come in.
    pub listen: SocketAddr,
    /// Where their connections go.
    pub routes: Arc<Passthrough>,
    /// Who may introduce connections.
    pub introductions: Option<Arc<Introductions>>,
}

impl PassthroughSettings {
    /// As a data plane takes them.
    ///
    /// # Errors
    /// The sentence names the listener and the field.
    pub fn parse(all: &[Self]) -> Result<Vec<PassthroughDoor>, Invalid> {
        let door = |(at, settings): (usize, &Self)| {
            settings.door().map_err(|error| Invalid(format!("[{at}].{error}")))
        };
        all.iter().enumerate().map(door).collect()
    }

    fn door(&self) -> Result<PassthroughDoor, Invalid> {
        let introductions = self.proxy_protocol.as_ref().map(ProxyProtocolSettings::parse);
        let introductions = introductions
            .transpose()
            .map_err(|error| Invalid(format!("proxy_protocol.{error}")))?
            .map(Arc::new);
        let routes = Arc::new(Passthrough::new(&self.routes)?);
        Ok(PassthroughDoor { listen: self.listen, routes, introductions })
    }
}

impl Passthrough {
    fn new(routes: &[PassthroughRoute]) -> Result<Self, Invalid> {
        let mut passthrough = Self::default();
        if routes.is_empty() {
            return Err(Invalid::new("routes: at least one route is expected"));
        }
        for (at, route) in routes.iter().enumerate() {
            let target = Target::parse(&route.to)
                .map_err(|error| Invalid(format!("routes[{at}].to: {error}")))?;
            let target = Arc::new(target);
            if route.server_names.is_empty() {
                let why = format!("routes[{at}].server_names: at least one name is expected");
                return Err(Invalid(why));
            }
            for name in &route.server_names {
                passthrough
                    .add(name, &target)
                    .map_err(|why| Invalid(format!("routes[{at}].server_names: {name:?} {why}")))?;
            }
        }
        passthrough.suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        Ok(passthrough)
    }

    fn add(&mut self, name: &str, target: &Arc<Target>) -> Result<(), &'static str> {
        let (list, name) = match name.strip_prefix("*.") {
            None => (&mut self.exact, folded(name)),
            Some(rest) => (&mut self.suffixes, folded(rest).map(|rest| format!(".{rest}").into())),
        };
        let name: Box<str> = name.ok_or("is no server name; expected a name or *.suffix")?;
        if list.iter().any(|(known, _)| *known == name) {
            return Err("stands there already");
        }
        list.push((name, target.clone()));
        Ok(())
    }

    /// Where connections for this server go; the name is in lower case.
    pub(in crate::proxy) fn find(&self, name: &str) -> Option<&Arc<Target>> {
        let exact = self.exact.iter().find(|(known, _)| **known == *name);
        let suffix = || {
            self.suffixes
                .iter()
                .find(|(suffix, _)| name.len() > suffix.len() && name.ends_with(&**suffix))
        };
        exact.or_else(suffix).map(|(_, target)| target)
    }
}

/// A client that asks for a server, and what it has sent so far.
pub(in crate::proxy) struct Heard {
    pub(in crate::proxy) server_name: Box<str>,
    pub(in crate::proxy) target: Arc<Target>,
    pub(in crate::proxy) first: Vec<u8>,
}

/// Why a connection goes nowhere.
pub(in crate::proxy) struct Unheard {
    /// A stable code for records; `None` for who said nothing.
    pub(in crate::proxy) code: Option<&'static str>,
    pub(in crate::proxy) sentence: &'static str,
}

const LEFT: Unheard = Unheard {
    code: None,
    sentence: "the connection was closed before its first message was there",
};

/// Fatal alerts: `unrecognized_name` (RFC 6066), `missing_extension` and `access_denied` (RFC 8446 section 6.2).
const UNRECOGNIZED_NAME: u8 = 112;
const MISSING_EXTENSION: u8 = 109;
const ACCESS_DENIED: u8 = 49;

impl Passthrough {
    /// Hears which server the client asks for. The caller limits the time.
    pub(in crate::proxy) async fn hear(&self, tcp: &mut TcpStream) -> Result<Heard, Unheard> {
        let mut first = Vec::with_capacity(2048);
        let hello = loop {
            let room = MAX_HELLO - first.len();
            match (&mut *tcp).take(room as u64).read_buf(&mut first).await {
                Ok(0) | Err(_) => return Err(LEFT),
                Ok(_) => {}
            }
            match client_hello::read(&first) {
                Ok(Some(hello)) => break hello,
                Ok(None) => {}
                Err(malformed) => {
                    let code = Some(malformed.code);
                    return Err(Unheard { code, sentence: malformed.sentence });
                }
            }
        };
        let Some(server_name) = hello.server_name else {
            alert(tcp, MISSING_EXTENSION).await;
            let code = Some("no_server_name");
            return Err(Unheard { code, sentence: "the client named no server" });
        };
        let Some(target) = self.find(&server_name).cloned() else {
            alert(tcp, UNRECOGNIZED_NAME).await;
            let code = Some("unknown_server_name");
            return Err(Unheard {
                code,
                sentence: "no route is for the server that the client named",
            });
        };
        Ok(Heard { server_name, target, first })
    }
}

/// Says that policy refuses, as far as TLS has a word for it.
pub(in crate::proxy) async fn deny(tcp: &mut TcpStream) {
    alert(tcp, ACCESS_DENIED).await;
}

async fn alert(tcp: &mut TcpStream, alert: u8) {
    // Who does not take it does not need it.
    if tcp.write_all(&[21, 3, 3, 0, 2, 2, alert]).await.is_ok() {
        let _ = tcp.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<PassthroughDoor>, Invalid> {
        let settings: Vec<PassthroughSettings> = serde_json::from_str(text).unwrap();
        PassthroughSettings::parse(&settings)
    }

    #[test]
    fn the_most_particular_route_counts() {
        let doors = parse(
            r#"[{"listen": "0.0.0.0:1", "routes": [
                {"server_names": ["*.test"], "to": "any:1"},
                {"server_names": ["*.Shop.test", "plain"], "to": "shop:1"},
                {"server_names": ["db.shop.test."], "to": "db:1"}]}]"#,
        )
        .unwrap();
        let found = |name: &str| doors[0].routes.find(name).map(|target| target.as_str());
        for (name, target) in [
            ("db.shop.test", Some("db:1")),
            ("web.shop.test", Some("shop:1")),
            ("a.b.shop.test", Some("shop:1")),
            ("shop.test", Some("any:1")),
            ("xshop.test", Some("any:1")),
            ("plain", Some("shop:1")),
            ("test", None),
            (".test", None),
            ("other", None),
        ] {
            assert_eq!(found(name), target, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (routes, part) in [
            ("[]", "[0].routes: at least one"),
            (r#"[{"server_names": [], "to": "a:1"}]"#, "routes[0].server_names: at least one"),
            (r#"[{"server_names": ["a.*"], "to": "a:1"}]"#, "\"a.*\" is no server name"),
            (r#"[{"server_names": ["*"], "to": "a:1"}]"#, "\"*\" is no server name"),
            (r#"[{"server_names": ["10.0.0.1"], "to": "a:1"}]"#, "\"10.0.0.1\" is no server"),
            (r#"[{"server_names": ["a", "A."], "to": "a:1"}]"#, "\"A.\" stands there already"),
            (r#"[{"server_names": ["a"], "to": "a"}]"#, "routes[0].to"),
        ] {
            let text = format!(r#"[{{"listen": "0.0.0.0:1", "routes": {routes}}}]"#);
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
