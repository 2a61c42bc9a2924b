//! `multi-auth`: several ways for a caller to be known; the first that succeeds counts.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::ROWS;
use crate::pipeline::{
    Build, Chain, Exchange, Fault, Flow, Hooks, Invalid, Link, Plugin, Refusal, Rewrite,
};

/// Callers must be known to one of several auth plugins.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The auth plugins, tried in this order: objects whose names are those of plugins and whose values are their settings.
    #[schemars(length(min = 2))]
    auth_plugins: Vec<Map<String, Value>>,
}

pub(super) struct MultiAuth {
    /// One chain a plugin.
    ways: Vec<Chain>,
}

impl Plugin for MultiAuth {
    const NAME: &'static str = "multi-auth";
    const PRIORITY: i32 = 2600;
    const EXAMPLE: &'static str =
        r#"{"auth_plugins": [{"key-auth": {}}, {"basic-auth": {"hide_credentials": true}}]}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.auth_plugins.len() < 2 {
            return Err(Invalid::new("auth_plugins: at least two are expected"));
        }
        let mut ways = Vec::new();
        for (at, plugins) in config.auth_plugins.iter().enumerate() {
            let field = |why: String| Invalid::new(format!("auth_plugins[{at}]: {why}"));
            if plugins.is_empty() {
                return Err(field("a plugin's name is expected".into()));
            }
            for (name, settings) in plugins {
                let row = ROWS.iter().find(|row| row.name == name && row.authenticates);
                let row = row
                    .filter(|row| row.name != Self::NAME && row.name != "jwe-decrypt")
                    .ok_or_else(|| field(format!("{name} is no plugin that finds consumers")))?;
                let build = Build { plugin: row.name, metadata: None, ..*build };
                let hooks = (row.compile)(settings, &build)
                    .map_err(|why| field(format!("{name}: {why}")))?;
                ways.push(Chain::new([Link::new(row.name, row.priority, None, hooks)?]));
            }
        }
        let reads_body = ways.iter().any(Chain::reads_body);
        let hooks = Hooks::of(Self { ways }).rewrite();
        Ok(if reads_body { hooks.reading_body().done() } else { hooks.done() })
    }
}

#[async_trait]
impl Rewrite for MultiAuth {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        for way in &self.ways {
            match way.rewrite(exchange).await {
                Ok(Flow::Next) if exchange.consumer.is_some() || exchange.token.is_some() => {
                    // The ways before this one have refused; the caller was not.
                    exchange.notes.forget::<Refusal>();
                    return Ok(Flow::Next);
                }
                Ok(_) => {}
                Err(fault) => {
                    tracing::debug!(plugin = ?way, cause = %fault.cause, "a way to be known failed");
                }
            }
        }
        Ok(Flow::json(401, &json!({ "message": "Authorization Failed" })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;

    #[test]
    fn what_finds_nobody_is_no_way() {
        for (config, says) in [
            (json!({"auth_plugins": [{"key-auth": {}}]}), "auth_plugins: at least two"),
            (json!({"auth_plugins": [{}, {"key-auth": {}}]}), "auth_plugins[0]: a plugin's name"),
            (
                json!({"auth_plugins": [{"key-auth": {}}, {"multi-auth": {}}]}),
                "auth_plugins[1]: multi-auth",
            ),
            (json!({"auth_plugins": [{"key-auth": {}}, {"cors": {}}]}), "auth_plugins[1]: cors"),
            (
                json!({"auth_plugins": [{"key-auth": {}}, {"jwe-decrypt": {}}]}),
                "jwe-decrypt is no plugin",
            ),
            (
                json!({"auth_plugins": [{"key-auth": {"header": 1}}, {"basic-auth": {}}]}),
                "auth_plugins[0]: key-auth",
            ),
            (
                json!({"auth_plugins": [{"key-auth": {"x": 1}}, {"basic-auth": {}}]}),
                "unknown field `x`",
            ),
        ] {
            let error = refused::<MultiAuth>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
