//! `ua-restriction`: admit or refuse callers by what they say they are.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Pattern, PatternOptions, Plugin,
};
use crate::plugins::bounds;

/// Which `User-Agent` may call. Exactly one of the two lists is given. Anybody can write any name: it keeps off nobody who minds.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["allowlist"]}, {"required": ["denylist"]}]))]
pub(super) struct Config {
    /// Regular expressions; a caller that none of them matches is refused.
    #[serde(default)]
    #[schemars(length(min = 1), inner(length(min = 1, max = 4096)))]
    allowlist: Option<Vec<String>>,
    /// Regular expressions; a caller that one of them matches is refused.
    #[serde(default)]
    #[schemars(length(min = 1), inner(length(min = 1, max = 4096)))]
    denylist: Option<Vec<String>>,
    /// Lets callers without the header pass.
    #[serde(default)]
    bypass_missing: bool,
    /// What a refused caller reads.
    #[serde(default = "default_message")]
    #[schemars(length(min = 1, max = 1024))]
    message: String,
}

fn default_message() -> String {
    "Not allowed".into()
}

pub(super) struct UaRestriction {
    patterns: Vec<Pattern>,
    /// A match admits; otherwise a match refuses.
    admits: bool,
    bypass_missing: bool,
    refusal: Value,
}

impl Plugin for UaRestriction {
    const NAME: &'static str = "ua-restriction";
    const PRIORITY: i32 = 2999;
    const EXAMPLE: &'static str =
        r#"{"denylist": ["(?i)python-requests", "curl/\\d+"], "bypass_missing": true}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        let (field, texts, admits) = match (&config.allowlist, &config.denylist) {
            (Some(only), None) => ("allowlist", only, true),
            (None, Some(but)) => ("denylist", but, false),
            _ => return Err(Invalid::new("exactly one of allowlist and denylist is expected")),
        };
        bounds::text("message", &config.message, 1..=1024)?;
        let plugin = Self {
            patterns: bounds::patterns(field, texts, PatternOptions::default())?,
            admits,
            bypass_missing: config.bypass_missing,
            refusal: json!({ "message": config.message }),
        };
        Ok(Hooks::of(plugin).access().done())
    }
}

#[async_trait]
impl Access for UaRestriction {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let mut lines = exchange.request.all("user-agent").peekable();
        let matches = |agent: &[u8]| self.patterns.iter().any(|known| known.is_match(agent));
        let passes = match lines.peek() {
            None => self.bypass_missing,
            // Of several lines all must be good: nobody knows which one the application takes.
            Some(_) => lines.all(|agent| matches(agent) == self.admits),
        };
        Ok(if passes { Flow::Next } else { Flow::json(403, &self.refusal) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};

    #[tokio::test]
    async fn agents_are_admitted_by_what_they_say() {
        let long = "a".repeat(60_000);
        for (config, agents, admitted) in [
            (json!({"allowlist": ["^good/"]}), vec!["good/1"], true),
            (json!({"allowlist": ["^good/"]}), vec!["bad good/1"], false),
            (json!({"allowlist": ["^good/"]}), vec!["good/1", "bad"], false),
            (json!({"denylist": ["bad"]}), vec!["good"], true),
            (json!({"denylist": ["bad"]}), vec!["good", "a bad one"], false),
            (json!({"denylist": ["BAD"]}), vec!["bad"], true),
            (json!({"denylist": ["(?i)BAD"]}), vec!["bad"], false),
            (json!({"denylist": ["bad"]}), vec![], false),
            (json!({"denylist": ["bad"], "bypass_missing": true}), vec![], true),
            (json!({"allowlist": ["a"], "bypass_missing": true}), vec![], true),
            // What explodes elsewhere takes linear time here.
            (json!({"denylist": ["(a+)+$x", "^(a|a)*b$"]}), vec![&*long], true),
        ] {
            let mut exchange = exchange("GET", "/", "h");
            for agent in &agents {
                exchange.request.append("User-Agent", agent.as_bytes());
            }
            let flow = compile::<UaRestriction>(config.clone()).access(&mut exchange).await;
            assert_eq!(matches!(flow.unwrap(), Flow::Next), admitted, "{config}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "exactly one of"),
            (json!({"allowlist": ["a"], "denylist": ["a"]}), "exactly one of"),
            (json!({"allowlist": []}), "allowlist: at least one"),
            (json!({"denylist": ["a", ""]}), "denylist[1]: 1 to 4096"),
            (json!({"denylist": ["("]}), "denylist[0]: the regular expression"),
            (json!({"denylist": [r"(a)\1"]}), "backreferences"),
            (json!({"denylist": ["a"], "message": ""}), "message: 1 to 1024"),
            (json!({"denylist": ["a"], "message": "m".repeat(1025)}), "message"),
            (json!({"denylist": ["a"], "bypass_missing": 1}), "boolean"),
        ] {
            let error = refused::<UaRestriction>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
