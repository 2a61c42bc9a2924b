//! `traffic-split`: parts of the traffic to other upstreams.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::weights::Weights;
use crate::pipeline::{
    Access, Build, Destination, Exchange, Expr, Fault, Flow, Hooks, Id, Invalid, Plugin, Upstream,
};
use crate::plugins::bounds;

/// Sends parts of the traffic to other upstreams: the first rule that matches chooses by weight. Where none does, the route's own
/// upstream serves.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The rules, asked in their order.
    #[serde(default)]
    rules: Vec<Rule>,
}

/// Whose requests go where.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// The rule is for requests for which one of these holds; for all when not given.
    #[serde(default, rename = "match")]
    matches: Option<Vec<Match>>,
    /// Where they go; not given: to the route's own upstream.
    #[serde(default = "own_upstream")]
    #[schemars(length(min = 1, max = 20))]
    weighted_upstreams: Vec<Weighted>,
}

/// A condition.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Match {
    /// An expression as in a route's `vars`.
    #[serde(default)]
    #[schemars(with = "Option<Vec<Value>>")]
    vars: Option<Value>,
}

/// A part of the traffic.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Weighted {
    /// The upstream itself, with all the fields of an upstream.
    #[serde(default)]
    #[schemars(with = "Upstream")]
    upstream: Option<Box<Upstream>>,
    /// The id of a declared upstream. Neither: the route's own.
    #[serde(default)]
    #[schemars(with = "Id")]
    upstream_id: Option<Id>,
    /// How much of the traffic, in proportion to the others.
    #[serde(default = "one")]
    #[schemars(range(min = 0))]
    weight: u32,
}

const fn one() -> u32 {
    1
}

fn own_upstream() -> Vec<Weighted> {
    vec![Weighted { upstream: None, upstream_id: None, weight: 1 }]
}

pub(super) struct TrafficSplit(Vec<Split>);

struct Split {
    /// One of these holds; empty: always.
    any_of: Vec<Expr>,
    weights: Weights,
    /// `None`: the route's own upstream.
    to: Vec<Option<Destination>>,
}

impl Plugin for TrafficSplit {
    const NAME: &'static str = "traffic-split";
    const PRIORITY: i32 = 966;
    const EXAMPLE: &'static str = r#"{"rules": [{
        "match": [{"vars": [["http_x_canary", "==", "1"]]}],
        "weighted_upstreams": [
            {"upstream": {"type": "roundrobin", "nodes": {"127.0.0.1:8001": 1}}, "weight": 1},
            {"weight": 9}
        ]
    }]}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        let rules = config.rules.into_iter().enumerate();
        let splits: Vec<Split> =
            rules.map(|(at, rule)| Split::compile(at, rule, build)).collect::<Result<_, _>>()?;
        Ok(Hooks::of(Self(splits)).access().done())
    }
}

impl Split {
    fn compile(at: usize, rule: Rule, build: &Build<'_>) -> Result<Self, Invalid> {
        let field = format!("rules[{at}].weighted_upstreams");
        if !(1..=20).contains(&rule.weighted_upstreams.len()) {
            return Err(Invalid::new(format!("{field}: 1 to 20 entries are expected")));
        }
        let matches = rule.matches.unwrap_or_default();
        let always = matches.iter().any(|one| one.vars.is_none());
        let condition = |(place, one): (usize, &Match)| {
            let vars = one.vars.as_ref()?;
            Some(bounds::condition(&format!("rules[{at}].match[{place}].vars"), vars))
        };
        let any_of: Vec<Expr> =
            matches.iter().enumerate().filter_map(condition).collect::<Result<_, _>>()?;
        let weights = Weights::new(rule.weighted_upstreams.iter().map(|one| one.weight));
        let weights = weights.ok_or_else(|| {
            Invalid::new(format!("{field}: one weight at least is expected to be above 0"))
        })?;
        let to = rule.weighted_upstreams.into_iter().enumerate().map(|(place, one)| {
            let field = format!("{field}[{place}]");
            match (one.upstream, one.upstream_id) {
                (None, None) => Ok(None),
                // As in APISIX, the id goes before what stands beside it.
                (_, Some(id)) => Ok(Some(Destination::Declared(build.targets.declared(id)))),
                (Some(upstream), None) => {
                    // Who gets the certificate, and when it is another one, is known of declared upstreams only.
                    if upstream.tls.as_ref().is_some_and(|tls| tls.client_cert_id.is_some()) {
                        return Err(Invalid::new(format!(
                            "{field}.upstream.tls.client_cert_id: declare the upstream, and name it by upstream_id"
                        )));
                    }
                    let name = format!(
                        "{}/{} {}{} rule {at} upstream {place}",
                        build.kind,
                        build.owner,
                        build.part,
                        TrafficSplit::NAME
                    );
                    let target = build.targets.own(&name, *upstream);
                    let target =
                        target.map_err(|why| bounds::at(&format!("{field}.upstream"), &why));
                    Ok(Some(Destination::Own(target?)))
                }
            }
        });
        let to = to.collect::<Result<_, _>>()?;
        Ok(Self { any_of: if always { Vec::new() } else { any_of }, weights, to })
    }

    fn is_for(&self, exchange: &Exchange) -> bool {
        self.any_of.is_empty() || self.any_of.iter().any(|condition| condition.holds(exchange))
    }
}

#[async_trait]
impl Access for TrafficSplit {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        if let Some(split) = self.0.iter().find(|split| split.is_for(exchange)) {
            exchange.destination.clone_from(&split.to[split.weights.choose()]);
        }
        Ok(Flow::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Chain;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;

    fn name(destination: Option<&Destination>) -> String {
        match destination {
            None => "own".to_owned(),
            Some(Destination::Own(target)) => target.cluster.name.clone(),
            Some(Destination::Declared(id)) => id.to_string(),
        }
    }

    async fn goes(chain: &Chain, target: &str) -> String {
        let mut exchange = exchange("GET", target, "h");
        chain.access(&mut exchange).await.unwrap();
        name(exchange.destination.as_ref())
    }

    #[tokio::test]
    async fn the_first_rule_that_matches_chooses_by_weight() {
        let chain = compile::<TrafficSplit>(json!({"rules": [
            {
                "match": [{"vars": [["arg_a", "==", "1"], ["arg_b", "==", "1"]]}, {"vars": [["arg_c", "==", "1"]]}],
                "weighted_upstreams": [
                    {"upstream": {"nodes": {"127.0.0.1:1": 1}}, "weight": 3}, {"upstream_id": 7, "weight": 2}, {"weight": 5}
                ]
            },
            {"match": [{"vars": [["arg_c", "==", "2"]]}], "weighted_upstreams": [{"upstream_id": "x"}]},
            {"match": [{"vars": [["arg_c", "==", "3"]]}]}
        ]}));
        for target in ["/?a=1&b=1", "/?c=1"] {
            let mut seen = std::collections::BTreeMap::new();
            for _ in 0..100 {
                *seen.entry(goes(&chain, target).await).or_insert(0) += 1;
            }
            let own = "routes/r1 traffic-split rule 0 upstream 0".to_owned();
            assert_eq!(
                seen,
                [(own, 30), ("7".to_owned(), 20), ("own".to_owned(), 50)].into(),
                "{target}"
            );
        }
        assert_eq!(goes(&chain, "/?a=1").await, "own");
        assert_eq!(goes(&chain, "/?c=2").await, "x");
        assert_eq!(goes(&chain, "/?c=3").await, "own");
        assert_eq!(goes(&compile::<TrafficSplit>(json!({})), "/").await, "own");
        let always = json!({"rules": [{"match": [{}], "weighted_upstreams": [{"upstream_id": 1}, {"weight": 0}]}]});
        assert_eq!(goes(&compile::<TrafficSplit>(always), "/").await, "1");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let to = |to: Value| json!({"rules": [{"weighted_upstreams": to}]});
        for (config, says) in [
            (json!({"rules": {}}), "invalid type"),
            (to(json!([])), "rules[0].weighted_upstreams: 1 to 20"),
            (to((0..21).map(|_| json!({"weight": 1})).collect()), "1 to 20"),
            (to(json!([{"weight": 0}])), "rules[0].weighted_upstreams: one weight"),
            (to(json!([{"weight": -1}])), "invalid value"),
            (to(json!([{"upstream": {"nodes": {"127.0.0.1:1": 1}, "type": "what"}}])), "what"),
            (
                to(
                    json!([{"upstream": {"nodes": {"127.0.0.1:1": 1}, "type": "chash", "key": "nothing"}}]),
                ),
                "rules[0].weighted_upstreams[0].upstream: ",
            ),
            (to(json!([{"upstream_id": "a b"}])), "property \"id\" validation failed"),
            (
                to(
                    json!([{"upstream": {"nodes": {"127.0.0.1:1": 1}, "scheme": "https", "tls": {"client_cert_id": "c"}}}]),
                ),
                "upstream.tls.client_cert_id: declare the upstream",
            ),
            (json!({"rules": [{"match": [{"vars": ["x"]}]}]}), "rules[0].match[0].vars: "),
        ] {
            let error = refused::<TrafficSplit>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
