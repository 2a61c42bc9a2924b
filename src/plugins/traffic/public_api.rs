//! `public-api`: what plugins have to tell, at a route.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::batch_requests::{self, Batches};
use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Registry, Reply,
};
use crate::plugins::auth::wolf_api::WolfApi;

/// Answers at this route what a plugin has to tell or takes what a plugin takes: `/apisix/prometheus/metrics`, `/apisix/batch-requests`
/// (POST), `/apisix/plugin/wolf-rbac/login` (POST), `/apisix/plugin/wolf-rbac/change_pwd` (PUT), `/apisix/plugin/wolf-rbac/user_info` (GET).
/// Put an auth plugin or a policy beside it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Which one, by its path; the request's own path when not given.
    #[serde(default)]
    uri: Option<String>,
}

/// What there is.
#[derive(Clone, Copy, Debug)]
enum Endpoint {
    Metrics,
    Batches,
    Wolf(WolfApi),
}

const METRICS: &str = "/apisix/prometheus/metrics";

impl Endpoint {
    fn at(path: &str) -> Option<Self> {
        match path {
            METRICS => Some(Self::Metrics),
            batch_requests::PATH => Some(Self::Batches),
            path => WolfApi::at(path).map(Self::Wolf),
        }
    }
}

pub(super) struct PublicApi {
    /// The one that is answered whatever the request's path.
    endpoint: Option<Endpoint>,
    metrics: Registry,
    batches: Batches,
}

impl Plugin for PublicApi {
    const NAME: &'static str = "public-api";
    const PRIORITY: i32 = 501;
    const EXAMPLE: &'static str = r#"{"uri": "/apisix/prometheus/metrics"}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        let endpoint = |uri: &String| {
            let none = || {
                Invalid::new(format!(
                    "uri: there is no '{uri}'; there are {METRICS}, {}, and login, change_pwd and user_info of /apisix/plugin/wolf-rbac/",
                    batch_requests::PATH
                ))
            };
            Endpoint::at(uri).ok_or_else(none)
        };
        let endpoint = config.uri.as_ref().map(endpoint).transpose()?;
        let batches = Batches::compile(build.metadata)?;
        let plugin = Self { endpoint, metrics: build.metrics.clone(), batches };
        Ok(Hooks::of(plugin).access().reading_body().asking_within().done())
    }
}

#[async_trait]
impl Access for PublicApi {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let named = || {
            let path = exchange.uri()?;
            Endpoint::at(std::str::from_utf8(&path).ok()?)
        };
        let reply = match self.endpoint.or_else(named) {
            Some(Endpoint::Metrics) => {
                let mut reply = Reply::text(200, self.metrics.render());
                reply.fields = vec![("Content-Type".into(), "text/plain; version=0.0.4".into())];
                reply
            }
            Some(Endpoint::Batches) if exchange.request.method() == "POST" => {
                return self.batches.answer(exchange).await;
            }
            Some(Endpoint::Wolf(api)) => api.answer(exchange).await?,
            Some(Endpoint::Batches) | None => Reply::empty(404),
        };
        Ok(Flow::Reply(Box::new(reply)))
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
            (json!({}), batch_requests::PATH, 404),
            (json!({"uri": batch_requests::PATH}), "/b", 404),
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
