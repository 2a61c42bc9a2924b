//! `referer-restriction`: admit or refuse requests by the page that they come from.

use std::collections::HashSet;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::pipeline::{Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin};
use crate::plugins::bounds;

/// Which hosts' pages may send requests here, by `Referer`. Exactly one of the two lists is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["whitelist"]}, {"required": ["blacklist"]}]))]
pub(super) struct Config {
    /// Only these hosts; a leading `*` stands for anything.
    #[serde(default)]
    #[schemars(length(min = 1), inner(regex(pattern = r"^\*?[0-9a-zA-Z\-._\[\]:]+$")))]
    whitelist: Option<Vec<String>>,
    /// All but these hosts; a leading `*` stands for anything.
    #[serde(default)]
    #[schemars(length(min = 1), inner(regex(pattern = r"^\*?[0-9a-zA-Z\-._\[\]:]+$")))]
    blacklist: Option<Vec<String>>,
    /// Lets requests pass whose `Referer` is missing or names no host.
    #[serde(default)]
    bypass_missing: bool,
    /// What a refused caller reads.
    #[serde(default = "default_message")]
    #[schemars(length(min = 1, max = 1024))]
    message: String,
}

fn default_message() -> String {
    "Your referer host is not allowed".into()
}

pub(super) struct RefererRestriction {
    hosts: Hosts,
    admits: bool,
    bypass_missing: bool,
    refusal: Value,
}

/// Names of hosts, and ends of names.
#[derive(Default)]
struct Hosts {
    exact: HashSet<String>,
    ends: Vec<String>,
}

impl Hosts {
    fn parse(field: &str, texts: &[String]) -> Result<Self, Invalid> {
        bounds::some(field, texts)?;
        let mut hosts = Self::default();
        for (at, text) in texts.iter().enumerate() {
            let name = text.strip_prefix('*').unwrap_or(text).to_ascii_lowercase();
            let lawful = |b: u8| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b);
            if name.is_empty() || !name.bytes().all(lawful) {
                return Err(Invalid::new(format!("{field}[{at}]: '{text}' is no host")));
            }
            match text.starts_with('*') {
                true => hosts.ends.push(name),
                false => drop(hosts.exact.insert(name)),
            }
        }
        Ok(hosts)
    }

    fn contain(&self, host: &str) -> bool {
        self.exact.contains(host) || self.ends.iter().any(|end| host.ends_with(&**end))
    }
}

impl Plugin for RefererRestriction {
    const NAME: &'static str = "referer-restriction";
    const PRIORITY: i32 = 2990;
    const EXAMPLE: &'static str =
        r#"{"whitelist": ["shop.example", "*.shop.example"], "bypass_missing": true}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        let (field, texts, admits) = match (&config.whitelist, &config.blacklist) {
            (Some(only), None) => ("whitelist", only, true),
            (None, Some(but)) => ("blacklist", but, false),
            _ => return Err(Invalid::new("exactly one of whitelist and blacklist is expected")),
        };
        bounds::text("message", &config.message, 1..=1024)?;
        let plugin = Self {
            hosts: Hosts::parse(field, texts)?,
            admits,
            bypass_missing: config.bypass_missing,
            refusal: json!({ "message": config.message }),
        };
        Ok(Hooks::of(plugin).access().done())
    }
}

#[async_trait]
impl Access for RefererRestriction {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let mut lines = exchange.request.all("referer").peekable();
        let passes = match lines.peek() {
            None => self.bypass_missing,
            Some(_) => lines.all(|line| match host(line) {
                None => self.bypass_missing,
                Some(host) => self.hosts.contain(&host) == self.admits,
            }),
        };
        Ok(if passes { Flow::Next } else { Flow::json(403, &self.refusal) })
    }
}

/// The host of a URL, in lower case; `None` where it has none that all readers would agree on.
fn host(url: &[u8]) -> Option<String> {
    let url = std::str::from_utf8(url).ok()?;
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = &rest[..end];
    // Who reads a name before an `@` as the host would be led astray; a browser sends neither this nor a backslash.
    if authority.contains(['@', '\\', ' ', '%']) {
        return None;
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let length = rest.find(']')? + 2;
            authority.split_at(length)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_port = |port: &str| port.is_empty() || port.parse::<u16>().is_ok();
    let good = !host.is_empty() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    good.then(|| host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};

    #[tokio::test]
    async fn pages_are_told_apart_by_their_host() {
        let shop = json!({"whitelist": ["shop.example", "*.shop.example", "[::1]"]});
        let not_evil = json!({"blacklist": ["*evil.example"], "bypass_missing": true});
        for (config, referer, passes) in [
            (&shop, Some("https://shop.example/a?b"), true),
            (&shop, Some("https://SHOP.example:8443"), true),
            (&shop, Some("http://www.shop.example/"), true),
            (&shop, Some("http://[::1]:80/"), true),
            (&shop, Some("http://shop.example.evil.example/"), false),
            (&shop, Some("http://evilshop.example/"), false),
            (&shop, Some("http://shop.example@evil.example/"), false),
            (&shop, Some("http://shop.example:80@evil.example/"), false),
            (&shop, Some("http://shop.example:x/"), false),
            (&shop, Some("http://evil.example\\@shop.example/"), false),
            (&shop, Some("http://evil.example?shop.example"), false),
            (&shop, Some("ftp://shop.example/"), false),
            (&shop, Some("shop.example"), false),
            (&shop, Some(""), false),
            (&shop, None, false),
            (&not_evil, Some("http://evil.example/"), false),
            (&not_evil, Some("http://more.evil.example/"), false),
            (&not_evil, Some("http://good.example/"), true),
            (&not_evil, Some("no host"), true),
            (&not_evil, None, true),
        ] {
            let mut exchange = exchange("GET", "/", "h");
            if let Some(referer) = referer {
                exchange.request.append("Referer", referer.as_bytes());
            }
            let flow = compile::<RefererRestriction>(config.clone()).access(&mut exchange).await;
            assert_eq!(matches!(flow.unwrap(), Flow::Next), passes, "{config} {referer:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "exactly one of"),
            (json!({"whitelist": ["a"], "blacklist": ["a"]}), "exactly one of"),
            (json!({"whitelist": []}), "whitelist: at least one"),
            (json!({"blacklist": ["a b"]}), "blacklist[0]: 'a b' is no host"),
            (json!({"blacklist": ["a.*"]}), "blacklist[0]"),
            (json!({"blacklist": ["*"]}), "blacklist[0]"),
            (json!({"whitelist": ["a"], "message": ""}), "message"),
        ] {
            let error = refused::<RefererRestriction>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
