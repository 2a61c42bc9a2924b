//! `uri-blocker`: refuses requests by their path and query.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Pattern, PatternOptions, Plugin, Reply, Rewrite,
    Variable,
};
use crate::plugins::bounds;

/// Refuses requests whose path and query a regular expression matches, as they were sent or as they are read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Regular expressions; one match refuses.
    #[schemars(inner(length(min = 1, max = 4096)), extend("uniqueItems" = true))]
    block_rules: Vec<String>,
    /// The status of a refusal.
    #[serde(default = "default_code")]
    #[schemars(range(min = 200, max = 599))]
    rejected_code: u16,
    /// What a refused caller reads, as `error_msg`; an empty body when not given.
    #[serde(default)]
    #[schemars(length(min = 1))]
    rejected_msg: Option<String>,
    /// The expressions match without regard to case.
    #[serde(default)]
    case_insensitive: bool,
}

const fn default_code() -> u16 {
    403
}

pub(super) struct UriBlocker {
    patterns: Vec<Pattern>,
    request_uri: Variable,
    refusal: Reply,
}

impl Plugin for UriBlocker {
    const NAME: &'static str = "uri-blocker";
    const PRIORITY: i32 = 2900;
    const EXAMPLE: &'static str =
        r#"{"block_rules": ["root\\.exe", "\\.\\./", "[?&]debug="], "rejected_msg": "no"}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        let options =
            PatternOptions { ignore_case: config.case_insensitive, ..PatternOptions::default() };
        let pattern = |(at, rule): (usize, &String)| {
            bounds::pattern(&format!("block_rules[{at}]"), rule, options)
        };
        let patterns = config.block_rules.iter().enumerate().map(pattern);
        bounds::number("rejected_code", config.rejected_code, 200..=599)?;
        if let Some(text) = &config.rejected_msg {
            bounds::text("rejected_msg", text, 1..=usize::MAX)?;
        }
        let plugin = Self {
            patterns: patterns.collect::<Result<_, _>>()?,
            request_uri: Variable::parse("request_uri")?,
            refusal: match &config.rejected_msg {
                Some(text) => Reply::json(config.rejected_code, &json!({ "error_msg": text })),
                None => Reply::empty(config.rejected_code),
            },
        };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

#[async_trait]
impl Rewrite for UriBlocker {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let matches = |text: &str| self.patterns.iter().any(|rule| rule.is_match(text.as_bytes()));
        let raw = exchange.request.target();
        // What was sent may be another spelling of what is read, and the other way round: neither is a way past the rules.
        let blocked = matches(raw)
            || self.request_uri.read(exchange).is_some_and(|read| {
                let read = read.text();
                read != raw && matches(&read)
            });
        Ok(if blocked { Flow::Reply(Box::new(self.refusal.clone())) } else { Flow::Next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use crate::plugins::tests::{compile, refused};

    #[tokio::test]
    async fn paths_are_refused_however_they_are_spelled() {
        for (config, target, passes) in [
            (json!({"block_rules": ["root.exe"]}), "/a/root.exe?x", false),
            (json!({"block_rules": ["root.exe"]}), "/a/ROOT.exe", true),
            (json!({"block_rules": ["root.exe"], "case_insensitive": true}), "/a/ROOT.exe", false),
            (json!({"block_rules": ["^/admin"]}), "/%61dmin", false),
            (json!({"block_rules": ["^/admin"]}), "//admin", false),
            (json!({"block_rules": ["^/admin"]}), "/x/../admin", false),
            (json!({"block_rules": [r"\.\./"]}), "/x/../admin", false),
            (json!({"block_rules": ["[?&]debug="]}), "/a?b=1&debug=1", false),
            (json!({"block_rules": ["a", "^/z$"]}), "/z", false),
            (
                json!({"block_rules": ["(a|a)*b"]}),
                "/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac",
                true,
            ),
            (json!({"block_rules": []}), "/", true),
        ] {
            let mut exchange = exchange("GET", target, "h");
            let flow = compile::<UriBlocker>(config.clone()).rewrite(&mut exchange).await.unwrap();
            assert_eq!(matches!(flow, Flow::Next), passes, "{config} {target}");
        }
    }

    #[tokio::test]
    async fn the_refusal_reads_as_configured() {
        for (config, status, body) in [
            (json!({"block_rules": ["a"]}), 403, ""),
            (
                json!({"block_rules": ["a"], "rejected_code": 404, "rejected_msg": "no"}),
                404,
                "{\"error_msg\":\"no\"}\n",
            ),
        ] {
            let mut exchange = exchange("GET", "/a", "h");
            let reply = reply(compile::<UriBlocker>(config).rewrite(&mut exchange).await.unwrap());
            assert_eq!((reply.status, &reply.body[..]), (status, body.as_bytes()));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "missing field `block_rules`"),
            (json!({"block_rules": "a"}), "invalid type"),
            (json!({"block_rules": ["a", ""]}), "block_rules[1]: 1 to 4096"),
            (json!({"block_rules": ["a".repeat(4097)]}), "block_rules[0]"),
            (json!({"block_rules": ["("]}), "block_rules[0]: the regular expression"),
            (json!({"block_rules": ["(?!a)b"]}), "look-around"),
            (
                json!({"block_rules": ["a"], "rejected_code": 199}),
                "rejected_code: a number from 200",
            ),
            (json!({"block_rules": ["a"], "rejected_code": 600}), "rejected_code"),
            (json!({"block_rules": ["a"], "rejected_msg": ""}), "rejected_msg"),
        ] {
            let error = refused::<UriBlocker>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
