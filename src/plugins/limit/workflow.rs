//! `workflow`: what is done with a request, by conditions.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::limit_conn::LimitConn;
use super::limit_count::LimitCount;
use crate::pipeline::{
    Access, Build, Chain, Entry, Exchange, Expr, Fault, Flow, Hooks, Invalid, Link, Log, Plugin,
    Reply, ResponseHead,
};
use crate::plugins::bounds;

/// Does with a request what the first rule says whose case it is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The rules, asked in their order.
    rules: Vec<Rule>,
}

/// A case, and what is done in it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// An expression as in a route's `vars`; every request when not given.
    #[serde(default)]
    #[schemars(with = "Option<Vec<Value>>", length(min = 1))]
    case: Option<Value>,
    /// Pairs of a name and its settings: `["return", {"code": 403}]`, `["limit-count", {..}]`, `["limit-conn", {..}]`. The first
    /// that answers ends it.
    #[schemars(with = "Vec<Vec<Value>>", inner(length(min = 1)))]
    actions: Vec<Vec<Value>>,
}

/// The settings of `return`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Return {
    code: u16,
}

pub(super) struct Workflow(Vec<Case>);

struct Case {
    condition: Option<Expr>,
    actions: Vec<Action>,
}

enum Action {
    Return(Reply),
    Plugin(Chain),
}

impl Plugin for Workflow {
    const NAME: &'static str = "workflow";
    const PRIORITY: i32 = 1006;
    const EXAMPLE: &'static str = r#"{"rules": [
        {"case": [["uri", "==", "/closed"]], "actions": [["return", {"code": 403}]]},
        {"case": [["arg_v", "==", "2"]], "actions": [["limit-count", {"count": 2, "time_window": 60, "rejected_code": 429}]]}
    ]}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        let case = |(at, rule): (usize, &Rule)| {
            let condition = rule.case.as_ref();
            let condition =
                condition.map(|case| bounds::condition(&format!("rules[{at}].case"), case));
            bounds::some(&format!("rules[{at}].actions"), &rule.actions)?;
            let action = |(place, action): (usize, &Vec<Value>)| {
                let part = format!("rules[{at}].actions[{place}]");
                Action::compile(&part, action, build)
            };
            let actions = rule.actions.iter().enumerate().map(action);
            Ok(Case {
                condition: condition.transpose()?,
                actions: actions.collect::<Result<_, _>>()?,
            })
        };
        let cases = config.rules.iter().enumerate().map(case).collect::<Result<_, _>>()?;
        Ok(Hooks::of(Self(cases)).access().response_head().log().done())
    }
}

impl Action {
    fn compile(part: &str, action: &[Value], build: &Build<'_>) -> Result<Self, Invalid> {
        let expected = "a pair of a name and its settings is expected";
        let [Value::String(name), settings @ ..] = action else {
            return Err(Invalid::new(format!("{part}: {expected}")));
        };
        let none = json!({});
        let settings = match settings {
            [] => &none,
            [settings] => settings,
            _ => return Err(Invalid::new(format!("{part}: {expected}"))),
        };
        let refuse = |why: Invalid| bounds::at(&format!("{part} ({name})"), &why);
        let entry = match name.as_str() {
            "return" => {
                let Return { code } = Return::deserialize(settings)
                    .map_err(|why| refuse(Invalid(why.to_string())))?;
                let code = bounds::number("code", code, 200..=599).map_err(refuse)?;
                let body = json!({ "error_msg": "rejected by workflow" });
                return Ok(Self::Return(Reply::json(code, &body)));
            }
            "limit-count" => Entry::of::<LimitCount>(),
            "limit-conn" => Entry::of::<LimitConn>(),
            _ => {
                return Err(Invalid::new(format!(
                    "{part}: '{name}' is not one of return, limit-count, limit-conn"
                )));
            }
        };
        let hooks = (entry.compile)(settings, &build.within(part, entry.name)).map_err(refuse)?;
        let link = Link::new(entry.name, entry.priority, None, hooks).map_err(refuse)?;
        Ok(Self::Plugin(Chain::new([link])))
    }
}

impl Workflow {
    /// The plugins of all rules. Those that did not run find nothing of their own to tell.
    fn plugins(&self) -> impl Iterator<Item = &Chain> {
        let actions = self.0.iter().flat_map(|case| &case.actions);
        actions.filter_map(|action| match action {
            Action::Plugin(chain) => Some(chain),
            Action::Return(_) => None,
        })
    }
}

#[async_trait]
impl Access for Workflow {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let is_it = |case: &&Case| {
            case.condition.as_ref().is_none_or(|condition| condition.holds(exchange))
        };
        let Some(case) = self.0.iter().find(is_it) else { return Ok(Flow::Next) };
        for action in &case.actions {
            let flow = match action {
                Action::Return(reply) => Flow::Reply(Box::new(reply.clone())),
                Action::Plugin(chain) => chain.access(exchange).await?,
            };
            if matches!(flow, Flow::Reply(_)) {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }
}

impl ResponseHead for Workflow {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        self.plugins().try_for_each(|chain| chain.response_head(exchange))
    }
}

impl Log for Workflow {
    fn log(&self, exchange: &Exchange) {
        self.plugins().for_each(|chain| chain.log(exchange));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};

    /// The status of one more request, 0 when it passes, and what is left of its limit.
    async fn ask(chain: &Chain, target: &str) -> (u16, Option<String>) {
        let mut exchange = exchange("GET", target, "h");
        let status = match chain.access(&mut exchange).await.unwrap() {
            Flow::Next => 0,
            Flow::Reply(reply) => reply.status,
        };
        chain.response_head(&mut exchange).unwrap();
        let left = exchange.response.text("x-ratelimit-remaining").map(str::to_owned);
        if exchange.request.query() != Some("hold") {
            chain.log(&exchange);
        } else {
            // Still under way.
            std::mem::forget(exchange);
        }
        (status, left)
    }

    #[tokio::test]
    async fn the_first_rule_whose_case_it_is_says_what_is_done() {
        let count = |count: u32| json!(["limit-count", {"count": count, "time_window": 60, "rejected_code": 429}]);
        let chain = compile::<Workflow>(json!({"rules": [
            {"case": [["uri", "==", "/closed"]], "actions": [["return", {"code": 403}]]},
            {"case": [["uri", "==", "/one"]], "actions": [count(1)]},
            {"case": [["uri", "==", "/two"]], "actions": [count(2), ["return", {"code": 201}]]},
            {"case": [["uri", "==", "/conn"]], "actions": [["limit-conn", {"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "uri"}]]}
        ]}));
        assert_eq!(ask(&chain, "/closed").await, (403, None));
        assert_eq!(ask(&chain, "/open").await, (0, None));
        assert_eq!(ask(&chain, "/one").await, (0, Some("0".into())));
        assert_eq!(ask(&chain, "/one").await, (429, Some("0".into())));
        // Each rule counts for itself, though the keys are the same.
        assert_eq!(ask(&chain, "/two").await, (201, Some("1".into())));
        assert_eq!(ask(&chain, "/two").await, (201, Some("0".into())));
        assert_eq!(ask(&chain, "/two").await, (429, Some("0".into())));
        assert_eq!(ask(&chain, "/conn").await.0, 0);
        assert_eq!(ask(&chain, "/conn?hold").await.0, 0, "the first one is over");
        assert_eq!(ask(&chain, "/conn").await.0, 503);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let with = |actions: Value| json!({"rules": [{"actions": actions}]});
        for (config, says) in [
            (json!({}), "missing field `rules`"),
            (json!({"rules": [{}]}), "missing field `actions`"),
            (with(json!([])), "rules[0].actions: at least one"),
            (with(json!([[]])), "rules[0].actions[0]: a pair"),
            (with(json!([["return", {"code": 403}, 1]])), "rules[0].actions[0]: a pair"),
            (with(json!([["return"]])), "rules[0].actions[0] (return): missing field `code`"),
            (
                with(json!([["return", {"code": 99}]])),
                "rules[0].actions[0] (return): code: a number from 200",
            ),
            (with(json!([["proxy-rewrite", {}]])), "'proxy-rewrite' is not one of"),
            (
                with(json!([["limit-count", {"count": 0, "time_window": 1}]])),
                "rules[0].actions[0] (limit-count): count: a number from 1",
            ),
            (with(json!([["limit-conn", {}]])), "(limit-conn): missing field"),
            (
                json!({"rules": [{"case": ["x"], "actions": [["return", {"code": 403}]]}]}),
                "rules[0].case",
            ),
        ] {
            let error = refused::<Workflow>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
