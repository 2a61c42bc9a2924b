//! A TCP application behind mTLS (`sidecar.tcp`): who connects proves who it is, policy decides about the connection, and its
//! bytes go to the application unread.

use std::net::SocketAddr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::introduction::{Introductions, ProxyProtocolSettings};
use super::relay::Target;
use crate::model::Invalid;

/// One TCP application.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpSettings {
    /// A name for people: letters, digits, `-` and `_`. The listener is called `tcp:<name>`.
    #[schemars(length(min = 1, max = 64))]
    pub name: String,
    /// Where peers reach it over mTLS. Policies call it by this port.
    pub listen: SocketAddr,
    /// The application, `host:port`, over plain TCP.
    pub to: String,
    /// Where the PROXY protocol is spoken to us; nowhere when not given.
    #[serde(default)]
    pub proxy_protocol: Option<ProxyProtocolSettings>,
}

/// One TCP application, as a data plane takes it.
#[derive(Clone, Debug)]
pub struct TcpDoor {
    /// The name of its listening socket.
    pub name: String,
    /// Where peers reach it.
    pub listen: SocketAddr,
    /// The application.
    pub to: Arc<Target>,
    /// Who may introduce connections.
    pub introductions: Option<Arc<Introductions>>,
}

impl TcpSettings {
    /// As a data plane takes them.
    ///
    /// # Errors
    /// The sentence names the application and the field.
    pub fn parse(all: &[Self]) -> Result<Vec<TcpDoor>, Invalid> {
        let mut doors: Vec<TcpDoor> = Vec::with_capacity(all.len());
        for (at, settings) in all.iter().enumerate() {
            let door = settings.door().map_err(|error| Invalid(format!("[{at}].{error}")))?;
            if doors.iter().any(|other| other.name == door.name) {
                return Err(Invalid(format!(
                    "[{at}].name: {:?} is another one's name already",
                    settings.name
                )));
            }
            doors.push(door);
        }
        Ok(doors)
    }

    fn door(&self) -> Result<TcpDoor, Invalid> {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.bytes().all(is_name) {
            return Err(Invalid(format!(
                "name: {:?}; expected up to 64 letters, digits, - and _",
                self.name
            )));
        }
        let introductions = self.proxy_protocol.as_ref().map(ProxyProtocolSettings::parse);
        Ok(TcpDoor {
            name: format!("tcp:{}", self.name),
            listen: self.listen,
            to: Arc::new(Target::parse(&self.to).map_err(|error| Invalid(format!("to: {error}")))?),
            introductions: introductions
                .transpose()
                .map_err(|error| Invalid(format!("proxy_protocol.{error}")))?
                .map(Arc::new),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<TcpDoor>, Invalid> {
        let settings: Vec<TcpSettings> = serde_json::from_str(text).unwrap();
        TcpSettings::parse(&settings)
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let good = parse(r#"[{"name": "db", "listen": "0.0.0.0:15432", "to": "127.0.0.1:5432"}]"#);
        assert_eq!(good.unwrap()[0].name, "tcp:db");
        for (text, part) in [
            (r#"[{"name": "a b", "listen": "0.0.0.0:1", "to": "a:1"}]"#, "[0].name"),
            (r#"[{"name": "a", "listen": "0.0.0.0:1", "to": "a"}]"#, "[0].to: \"a\""),
            (
                r#"[{"name": "a", "listen": "0.0.0.0:1", "to": "a:1"}, {"name": "a", "listen": "0.0.0.0:2", "to": "a:1"}]"#,
                "[1].name: \"a\" is another",
            ),
            (
                r#"[{"name": "a", "listen": "0.0.0.0:1", "to": "a:1", "proxy_protocol": {"trusted": []}}]"#,
                "[0].proxy_protocol.trusted",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
