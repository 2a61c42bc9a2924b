//! `real-ip`: who calls, where somebody in front of us says so.

use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Networks, Plugin, Rewrite, Variable,
};
use crate::plugins::bounds;

/// Takes the caller's address from the request. Without `trusted_addresses` anybody can name any address.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The variable that has the address, without the dollar: `http_x_forwarded_for`, `arg_realip` ..
    #[schemars(length(min = 1))]
    source: String,
    /// Addresses and networks whose word is taken; everybody's when not given.
    #[serde(default)]
    #[schemars(length(min = 1))]
    trusted_addresses: Option<Vec<String>>,
    /// With `http_x_forwarded_for`: the last address that is not a trusted one, in place of the last.
    #[serde(default)]
    recursive: bool,
}

pub(super) struct RealIp {
    source: Source,
    trusted: Option<Networks>,
    recursive: bool,
}

enum Source {
    ForwardedFor,
    Variable(Variable),
}

impl Plugin for RealIp {
    const NAME: &'static str = "real-ip";
    const PRIORITY: i32 = 23000;
    const EXAMPLE: &'static str = r#"{"source": "http_x_forwarded_for", "trusted_addresses": ["10.0.0.0/8"], "recursive": true}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        let source = match &*config.source {
            "http_x_forwarded_for" => Source::ForwardedFor,
            name => {
                Source::Variable(Variable::parse(name).map_err(|why| bounds::at("source", &why))?)
            }
        };
        let trusted = config.trusted_addresses.as_ref().map(|texts| {
            bounds::some("trusted_addresses", texts)?;
            Networks::parse(texts.iter().map(String::as_str))
                .map_err(|why| bounds::at("trusted_addresses", &why))
        });
        let plugin = Self { source, trusted: trusted.transpose()?, recursive: config.recursive };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

#[async_trait]
impl Rewrite for RealIp {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        if let Some(caller) = self.find(exchange) {
            exchange.caller = Some(caller);
        }
        Ok(Flow::Next)
    }
}

impl RealIp {
    fn find(&self, exchange: &Exchange) -> Option<SocketAddr> {
        let trusts = |address: IpAddr| {
            self.trusted.as_ref().is_some_and(|trusted| trusted.contains(address))
        };
        if self.trusted.is_some() && !trusts(exchange.remote().ip()) {
            return None;
        }
        match &self.source {
            Source::Variable(variable) => address(&variable.read(exchange)?.text()),
            Source::ForwardedFor => {
                // From the last line's last address backwards: each proxy writes behind the one before it.
                let lines: Vec<&[u8]> = exchange.request.all("x-forwarded-for").collect();
                let mut earliest = None;
                for part in lines.iter().rev().flat_map(|line| line.rsplit(|b| *b == b',')) {
                    // What is behind something unreadable may be anything.
                    let Some(found) = std::str::from_utf8(part).ok().and_then(address) else {
                        break;
                    };
                    earliest = Some(found);
                    if !self.recursive || !trusts(found.ip()) {
                        break;
                    }
                }
                earliest
            }
        }
    }
}

/// An address, with or without port; port 0 stands for none.
fn address(text: &str) -> Option<SocketAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some((address, 0).into());
    }
    text.parse().ok().filter(|address: &SocketAddr| address.port() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;

    #[tokio::test]
    async fn the_caller_is_whom_a_trusted_sender_names() {
        const OWN: &str = "192.0.2.7:40000";
        let last = json!({"source": "http_x_forwarded_for", "trusted_addresses": ["192.0.2.0/24", "10.0.0.1"]});
        let mut recursive = last.clone();
        recursive["recursive"] = json!(true);
        let stranger =
            json!({"source": "http_x_forwarded_for", "trusted_addresses": ["10.0.0.0/8"]});
        let argument = json!({"source": "arg_ip"});
        for (config, target, lines, caller) in [
            (&last, "/", vec!["1.1.1.1, 10.0.0.1"], "10.0.0.1:0"),
            (&recursive, "/", vec!["1.1.1.1, 10.0.0.1"], "1.1.1.1:0"),
            (&recursive, "/", vec!["9.9.9.9, 1.1.1.1", "10.0.0.1"], "1.1.1.1:0"),
            (&recursive, "/", vec!["192.0.2.3, 10.0.0.1"], "192.0.2.3:0"),
            (&recursive, "/", vec!["1.1.1.1, junk, 10.0.0.1"], "10.0.0.1:0"),
            (&last, "/", vec![], OWN),
            (&last, "/", vec!["junk"], OWN),
            (&last, "/", vec!["1.1.1.1,"], OWN),
            (&stranger, "/", vec!["1.1.1.1"], OWN),
            (&argument, "/?ip=1.1.1.1", vec![], "1.1.1.1:0"),
            (&argument, "/?ip=1.1.1.1:77", vec![], "1.1.1.1:77"),
            (&argument, "/?ip=[::1]:77", vec![], "[::1]:77"),
            (&argument, "/?ip=[::1]", vec![], "[::1]:0"),
            (&argument, "/?ip=1.1.1.1:0", vec![], OWN),
            (&argument, "/?ip=1.1.1.1:99999", vec![], OWN),
            (&argument, "/?ip=1.1.1.999", vec![], OWN),
            (&argument, "/", vec![], OWN),
        ] {
            let mut exchange = exchange("GET", target, "h");
            for line in &lines {
                exchange.request.append("X-Forwarded-For", line.as_bytes());
            }
            compile::<RealIp>(config.clone()).rewrite(&mut exchange).await.unwrap();
            assert_eq!(exchange.remote().to_string(), caller, "{config} {target} {lines:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "missing field `source`"),
            (json!({"source": ""}), "source: unknown variable"),
            (json!({"source": "remote_adr"}), "source: unknown variable 'remote_adr'"),
            (
                json!({"source": "arg_a", "trusted_addresses": []}),
                "trusted_addresses: at least one",
            ),
            (json!({"source": "arg_a", "trusted_addresses": ["a"]}), "trusted_addresses: 'a'"),
            (json!({"source": "arg_a", "recursive": 1}), "boolean"),
        ] {
            let error = refused::<RealIp>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
