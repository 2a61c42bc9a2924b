//! `attach-consumer-label`: tells the upstream labels of the consumer.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pipeline::{Build, Exchange, Fault, Flow, Forward, Hooks, Invalid, Plugin, field_name};

/// Puts labels of the consumer into headers of the request. What callers send under these names is removed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Headers, each with the name of a label behind a dollar. Without such a label there is no such header.
    #[schemars(extend("minProperties" = 1))]
    headers: BTreeMap<String, LabelName>,
}

/// A label's name behind a dollar.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
struct LabelName(#[schemars(regex(pattern = r"^\$.+"))] String);

pub(super) struct AttachConsumerLabel {
    /// Headers and labels.
    headers: Vec<(Box<str>, String)>,
}

impl Plugin for AttachConsumerLabel {
    const NAME: &'static str = "attach-consumer-label";
    const PRIORITY: i32 = 2399;
    const EXAMPLE: &'static str = r#"{"headers": {"X-Consumer-Department": "$department"}}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.headers.is_empty() {
            return Err(Invalid::new("headers: at least one is expected"));
        }
        let one = |(header, LabelName(label)): (String, LabelName)| {
            let name =
                field_name(&header).map_err(|why| Invalid::new(format!("headers: {why}")))?;
            match label.strip_prefix('$').filter(|label| !label.is_empty()) {
                Some(label) => Ok((name, label.to_owned())),
                None => Err(Invalid::new(format!(
                    "headers.{header}: a label's name behind a dollar is expected"
                ))),
            }
        };
        let headers = config.headers.into_iter().map(one).collect::<Result<_, _>>()?;
        Ok(Hooks::of(Self { headers }).forward().done())
    }
}

#[async_trait]
impl Forward for AttachConsumerLabel {
    async fn forward(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        for (header, label) in &self.headers {
            exchange.request.remove(header);
            let consumer = exchange.consumer.as_deref();
            if let Some(value) = consumer.and_then(|consumer| consumer.labels.get(label)) {
                exchange.request.set(header, value.as_bytes());
            }
        }
        Ok(Flow::Next)
    }
}
