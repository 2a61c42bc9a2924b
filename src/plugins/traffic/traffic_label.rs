//! `traffic-label`: headers that tell upstreams which part of the traffic a request belongs to.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::weights::Weights;
use crate::pipeline::{
    Access, Build, Exchange, Expr, Fault, FieldValue, Flow, Hooks, Invalid, Plugin, Template,
    field_name,
};
use crate::plugins::bounds;

/// Sets headers of the request: the first rule that matches chooses one of its actions by weight.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The rules, asked in their order.
    #[schemars(length(min = 1))]
    rules: Vec<Rule>,
}

/// Whose requests are labelled how.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// An expression as in a route's `vars`; the rule is for all requests when not given.
    #[serde(default, rename = "match")]
    #[schemars(with = "Option<Vec<Value>>", length(min = 1))]
    matches: Option<Value>,
    /// What may be done; one of them is.
    #[schemars(length(min = 1))]
    actions: Vec<Action>,
}

/// What is done.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Action {
    /// Headers to set; texts may have variables. Not given: nothing is done.
    #[serde(default)]
    #[schemars(extend("minProperties" = 1))]
    set_headers: Option<BTreeMap<String, FieldValue>>,
    /// How often, in proportion to the others.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    weight: u32,
}

const fn one() -> u32 {
    1
}

pub(super) struct TrafficLabel(Vec<Label>);

struct Label {
    condition: Option<Expr>,
    weights: Weights,
    actions: Vec<Vec<(Box<str>, Template)>>,
}

impl Plugin for TrafficLabel {
    const NAME: &'static str = "traffic-label";
    const PRIORITY: i32 = 967;
    const EXAMPLE: &'static str = r#"{"rules": [{
        "match": [["uri", "==", "/headers"]],
        "actions": [{"set_headers": {"X-Server-Id": 100}, "weight": 3}, {"set_headers": {"X-Api-Version": "v2"}}]
    }]}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        bounds::some("rules", &config.rules)?;
        let rules = config.rules.iter().enumerate();
        let labels = rules.map(|(at, rule)| Label::compile(&format!("rules[{at}]"), rule));
        Ok(Hooks::of(Self(labels.collect::<Result<_, _>>()?)).access().done())
    }
}

impl Label {
    fn compile(field: &str, rule: &Rule) -> Result<Self, Invalid> {
        bounds::some(&format!("{field}.actions"), &rule.actions)?;
        let condition = rule.matches.as_ref();
        let condition =
            condition.map(|matches| bounds::condition(&format!("{field}.match"), matches));
        let weight = |(at, action): (usize, &Action)| {
            bounds::number(&format!("{field}.actions[{at}].weight"), action.weight, 1..=u32::MAX)
        };
        let weights: Vec<u32> =
            rule.actions.iter().enumerate().map(weight).collect::<Result<_, _>>()?;
        let action = |(at, action): (usize, &Action)| {
            let field = format!("{field}.actions[{at}].set_headers");
            if action.set_headers.as_ref().is_some_and(BTreeMap::is_empty) {
                return Err(Invalid::new(format!("{field}: at least one is expected")));
            }
            let header = |(name, value): (&String, &FieldValue)| {
                let refuse = |why: Invalid| bounds::at(&field, &why);
                Ok((field_name(name).map_err(refuse)?, value.template().map_err(refuse)?))
            };
            action.set_headers.iter().flatten().map(header).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            condition: condition.transpose()?,
            weights: Weights::new(weights)
                .ok_or_else(|| Invalid::new(format!("{field}.actions: a weight is expected")))?,
            actions: rule.actions.iter().enumerate().map(action).collect::<Result<_, _>>()?,
        })
    }
}

#[async_trait]
impl Access for TrafficLabel {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let is_for = |label: &&Label| {
            label.condition.as_ref().is_none_or(|condition| condition.holds(exchange))
        };
        if let Some(label) = self.0.iter().find(is_for) {
            for (name, value) in &label.actions[label.weights.choose()] {
                let value = value.text(exchange);
                exchange.request.set(name, value.as_bytes());
            }
        }
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
    async fn the_first_rule_that_matches_labels_by_weight() {
        let chain = compile::<TrafficLabel>(json!({"rules": [
            {
                "match": ["OR", ["arg_v", "==", "1"], ["arg_w", "==", "1"]],
                "actions": [{"set_headers": {"X-A": "$arg_v", "X-B": 7}, "weight": 3}, {"weight": 1}]
            },
            {"actions": [{"set_headers": {"X-Other": "$uri"}}]}
        ]}));
        let mut labelled = 0;
        for _ in 0..40 {
            let mut exchange = exchange("GET", "/?v=1", "h");
            chain.access(&mut exchange).await.unwrap();
            assert_eq!(exchange.request.value("x-other"), None);
            if exchange.request.text("x-a") == Some("1")
                && exchange.request.text("x-b") == Some("7")
            {
                labelled += 1;
            }
        }
        assert_eq!(labelled, 30);
        let mut exchange = exchange("GET", "/a", "h");
        exchange.request.append("x-other", b"forged");
        chain.access(&mut exchange).await.unwrap();
        assert_eq!(exchange.request.all("x-other").collect::<Vec<_>>(), [b"/a"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let with = |rule: Value| json!({"rules": [rule]});
        for (config, says) in [
            (json!({}), "missing field `rules`"),
            (json!({"rules": []}), "rules: at least one"),
            (with(json!({"actions": []})), "rules[0].actions: at least one"),
            (with(json!({"actions": [{"weight": 0}]})), "rules[0].actions[0].weight"),
            (with(json!({"actions": [{"set_headers": {}}]})), "rules[0].actions[0].set_headers"),
            (
                with(json!({"actions": [{"set_headers": {"A": "b\r\nc"}}]})),
                "rules[0].actions[0].set_headers: a header's value",
            ),
            (
                with(json!({"actions": [{"set_headers": {"X-Forwarded-Client-Cert": "a"}}]})),
                "says who calls",
            ),
            (with(json!({"match": ["x"], "actions": [{}]})), "rules[0].match"),
        ] {
            let error = refused::<TrafficLabel>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
