//! `proxy-control`: whether a request's body is there wholly before the upstream sees any of it.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pipeline::{Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin};

/// Whether the upstream waits until a request's body has come wholly. Without this plugin bodies pass as they come.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Collects the body, 64 MiB at most or what `client-control` says; a larger one is answered 413. Slow callers then hold no
    /// connection of the upstream's.
    #[serde(default = "yes")]
    request_buffering: bool,
}

const fn yes() -> bool {
    true
}

/// Bytes that are collected where no limit is set.
const MOST: u64 = 64 << 20;

pub(super) struct ProxyControl;

impl Plugin for ProxyControl {
    const NAME: &'static str = "proxy-control";
    const PRIORITY: i32 = 21990;
    const EXAMPLE: &'static str = r#"{"request_buffering": false}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        Ok(match config.request_buffering {
            true => Hooks::of(Self).access().reading_body().done(),
            false => Hooks::none(),
        })
    }
}

#[async_trait]
impl Access for ProxyControl {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        // In `access`: who is not admitted by then has nothing collected.
        exchange.read_body(exchange.body_limit(MOST).min(MOST)).await?;
        Ok(Flow::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::RequestBody;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;

    #[tokio::test]
    async fn a_body_is_collected_where_the_settings_say_so() {
        for config in [json!({}), json!({"request_buffering": true})] {
            let mut exchange = exchange("POST", "/", "h");
            exchange.body = RequestBody::unread();
            exchange.body.add(b"ab");
            exchange.body.end(None);
            exchange.body_limit = Some(1);
            let chain = compile::<ProxyControl>(config);
            assert_eq!(chain.access(&mut exchange).await.unwrap_err().status, 413);
            exchange.body_limit = None;
            assert!(matches!(chain.access(&mut exchange).await.unwrap(), Flow::Next));
        }
        assert!(!compile::<ProxyControl>(json!({"request_buffering": false})).has_access());
        assert!(refused::<ProxyControl>(json!({"request_buffering": 1})).contains("boolean"));
    }
}
