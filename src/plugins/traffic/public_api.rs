//! `public-api`: what plugins have to tell, at a route.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::batch_requests::{self, Batches};
use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Registry, Reply,
};

/// Answers at this route what a plugin has to tell, `/apisix/prometheus/metrics`, or takes what a plugin takes, `POST
/// /apisix/batch-requests`. Put an auth plugin or a policy beside it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Which one, by its path; the request's own path when not given.
    #[serde(default)]
    uri: Option<String>,
}

/// What there is.
const METRICS: &str = "/apisix/prometheus/metrics";
const BATCHES: &str = batch_requests::PATH;

pub(super) struct PublicApi {
    uri: Option<String>,
    metrics: Registry,
    batches: Batches,
}

impl Plugin for PublicApi {
    const NAME: &'static str = "public-api";
    const PRIORITY: i32 = 501;
    const EXAMPLE: &'static str = r#"{"uri": "/apisix/prometheus/metrics"}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        if let Some(uri) = config.uri.as_deref().filter(|uri| ![METRICS, BATCHES].contains(uri)) {
            return Err(Invalid::new(format!(
                "uri: there is no '{uri}'; there are {METRICS} and {BATCHES}"
            )));
        }
        let batches = Batches::compile(build.metadata)?;
        let plugin = Self { uri: config.uri, metrics: build.metrics.clone(), batches };
        Ok(Hooks::of(plugin).access().reading_body().asking_within().done())
    }
}

#[async_trait]
impl Access for PublicApi {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let asked = match &self.uri {
            Some(uri) => Some(uri.as_str()),
            None => {
                let path = exchange.uri();
                let is = |known: &&str| path.as_deref() == Some(known.as_bytes());
                [METRICS, BATCHES].into_iter().find(is)
            }
        };
        match asked {
            Some(BATCHES) if exchange.request.method() == "POST" => {
                self.batches.answer(exchange).await
            }
            Some(METRICS) => {
                let mut reply = Reply::text(200, self.metrics.render());
                reply.fields = vec![("Content-Type".into(), "text/plain; version=0.0.4".into())];
                Ok(Flow::Reply(Box::new(reply)))
            }
            _ => Ok(Flow::Reply(Box::new(Reply::empty(404)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;

    #[tokio::test]
    async fn only_what_there_is_is_told() {
        for (config, path, status) in [
            (json!({}), METRICS, 200),
            (json!({}), "/apisix/./prometheus//metrics", 200),
            (json!({}), "/apisix/admin/routes", 404),
            (json!({"uri": METRICS}), "/m", 200),
            (json!({}), BATCHES, 404),
            (json!({"uri": BATCHES}), "/b", 404),
        ] {
            let mut exchange = exchange("GET", path, "h");
            let flow = compile::<PublicApi>(config.clone()).access(&mut exchange).await.unwrap();
            assert_eq!(reply(flow).status, status, "{config} {path}");
        }
        for uri in ["/apisix/admin/routes", "", "/v1/schema"] {
            assert!(refused::<PublicApi>(json!({"uri": uri})).contains("uri: there is no"));
        }
    }
}
