//! `client-control`: how large a request's body may be.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pipeline::{Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Rewrite};

/// How large a request's body may be, in place of the process' setting `limits.request_body_bytes`. A larger one is answered 413.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Bytes of the body; 0: as many as there are. Not given: what the process' settings say.
    #[serde(default)]
    #[schemars(range(min = 0))]
    max_body_size: Option<u64>,
}

pub(super) struct ClientControl(u64);

impl Plugin for ClientControl {
    const NAME: &'static str = "client-control";
    const PRIORITY: i32 = 22000;
    const EXAMPLE: &'static str = r#"{"max_body_size": 1048576}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        Ok(match config.max_body_size {
            None => Hooks::none(),
            Some(bytes) => Hooks::of(Self(bytes)).rewrite().done(),
        })
    }
}

#[async_trait]
impl Rewrite for ClientControl {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        exchange.body_limit = Some(self.0);
        Ok(Flow::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;

    #[tokio::test]
    async fn the_route_says_how_large_a_body_may_be() {
        for (config, limit) in [
            (json!({}), 7),
            (json!({"max_body_size": 9}), 9),
            (json!({"max_body_size": 0}), u64::MAX),
        ] {
            let mut exchange = exchange("POST", "/", "h");
            compile::<ClientControl>(config).rewrite(&mut exchange).await.unwrap();
            assert_eq!(exchange.body_limit(7), limit);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({"max_body_size": -1}), "invalid value"),
            (json!({"max_body_size": "1m"}), "invalid type"),
            (json!({"max_body_size": 1.5}), "invalid type"),
        ] {
            let error = refused::<ClientControl>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
