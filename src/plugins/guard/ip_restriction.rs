//! `ip-restriction`: admit or refuse callers by address.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::pipeline::{Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Networks, Plugin};

/// Which addresses may call. Exactly one of the two lists is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["whitelist"]}, {"required": ["blacklist"]}]))]
pub(super) struct Config {
    /// Only these addresses and networks may call.
    #[serde(default)]
    #[schemars(length(min = 1))]
    whitelist: Option<Vec<String>>,
    /// These addresses and networks may not call.
    #[serde(default)]
    #[schemars(length(min = 1))]
    blacklist: Option<Vec<String>>,
    /// What a refused caller reads.
    #[serde(default = "default_message")]
    #[schemars(length(min = 1, max = 1024))]
    message: String,
    /// The status of a refusal.
    #[serde(default = "default_code")]
    #[schemars(range(min = 403, max = 404))]
    response_code: u16,
}

fn default_message() -> String {
    "Your IP address is not allowed".into()
}
const fn default_code() -> u16 {
    403
}

pub(super) struct IpRestriction {
    rule: Rule,
    status: u16,
    refusal: Value,
}

enum Rule {
    Only(Networks),
    AllBut(Networks),
}

impl Plugin for IpRestriction {
    const NAME: &'static str = "ip-restriction";
    const PRIORITY: i32 = 3000;
    const EXAMPLE: &'static str = r#"{"whitelist": ["10.0.0.0/8", "fd00::/8", "192.0.2.7"]}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        let networks = |field: &str, texts: &[String]| {
            if texts.is_empty() {
                return Err(Invalid::new(format!("{field}: at least one network is expected")));
            }
            Networks::parse(texts.iter().map(String::as_str))
                .map_err(|error| Invalid::new(format!("{field}: {error}")))
        };
        let rule = match (&config.whitelist, &config.blacklist) {
            (Some(only), None) => Rule::Only(networks("whitelist", only)?),
            (None, Some(but)) => Rule::AllBut(networks("blacklist", but)?),
            _ => return Err(Invalid::new("exactly one of whitelist and blacklist is expected")),
        };
        if !(403..=404).contains(&config.response_code) {
            return Err(Invalid::new("response_code: 403 or 404 is expected"));
        }
        if !(1..=1024).contains(&config.message.len()) {
            return Err(Invalid::new("message: 1 to 1024 bytes are expected"));
        }
        let refusal = json!({ "message": config.message });
        Ok(Hooks::of(Self { rule, status: config.response_code, refusal }).access().done())
    }
}

#[async_trait]
impl Access for IpRestriction {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let caller = exchange.remote().ip();
        let admits = match &self.rule {
            Rule::Only(networks) => networks.contains(caller),
            Rule::AllBut(networks) => !networks.contains(caller),
        };
        Ok(if admits { Flow::Next } else { Flow::json(self.status, &self.refusal) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use crate::plugins::tests::{compile, refused};

    #[tokio::test]
    async fn a_caller_is_admitted_by_its_socket_address() {
        for (config, admitted) in [
            (json!({"whitelist": ["192.0.2.0/24"]}), true),
            (json!({"whitelist": ["192.0.2.8"]}), false),
            (json!({"blacklist": ["192.0.2.7"]}), false),
            (json!({"blacklist": ["10.0.0.0/8", "::/0"]}), true),
        ] {
            let mut exchange = exchange("GET", "/", "h");
            exchange.request.append("X-Forwarded-For", b"10.0.0.1");
            let flow =
                compile::<IpRestriction>(config.clone()).access(&mut exchange).await.unwrap();
            assert_eq!(matches!(flow, Flow::Next), admitted, "{config}");
        }
    }

    #[tokio::test]
    async fn the_refusal_reads_as_configured() {
        let config = json!({"whitelist": ["::1"], "message": "no", "response_code": 404});
        let mut exchange = exchange("GET", "/", "h");
        let reply = reply(compile::<IpRestriction>(config).access(&mut exchange).await.unwrap());
        assert_eq!((reply.status, &reply.body[..]), (404, &b"{\"message\":\"no\"}\n"[..]));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "exactly one of"),
            (json!({"whitelist": ["::1"], "blacklist": ["::1"]}), "exactly one of"),
            (json!({"whitelist": []}), "whitelist: at least one"),
            (json!({"blacklist": ["10.0.0.0/40"]}), "blacklist: '10.0.0.0/40'"),
            (json!({"whitelist": ["::1"], "response_code": 200}), "response_code"),
            (json!({"whitelist": ["::1"], "allow": 1}), "unknown field `allow`"),
        ] {
            let error = refused::<IpRestriction>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
