//! `fault-injection`: makes a part of the requests late, or fail.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::pipeline::{
    Build, Exchange, Expr, Fault, FieldValue, Flow, Hooks, Invalid, Plugin, Reply, Rewrite,
    Template, field_name,
};
use crate::plugins::bounds;

/// Delays requests, answers them in the upstream's place, or both. One of the two at least is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub(super) struct Config {
    /// Answers in the upstream's place.
    #[serde(default)]
    #[schemars(with = "Abort")]
    abort: Option<Abort>,
    /// Lets requests wait.
    #[serde(default)]
    #[schemars(with = "Delay")]
    delay: Option<Delay>,
}

/// The answer in the upstream's place.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Abort {
    /// Its status.
    #[schemars(range(min = 200, max = 599))]
    http_status: u16,
    /// Its body, a text with variables.
    #[serde(default)]
    body: Option<String>,
    /// Its headers; texts may have variables.
    #[serde(default)]
    #[schemars(extend("minProperties" = 1))]
    headers: Option<BTreeMap<String, FieldValue>>,
    /// How many of a hundred requests; all when not given.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    percentage: Option<u8>,
    /// Expressions as in `vars`; one of them must hold.
    #[serde(default)]
    #[schemars(with = "Option<Vec<Vec<Value>>>", length(max = 20))]
    vars: Option<Vec<Value>>,
}

/// How long requests wait.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Delay {
    /// Seconds; a part of one is fine.
    #[schemars(range(min = 0))]
    duration: f64,
    /// How many of a hundred requests; all when not given.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    percentage: Option<u8>,
    /// Expressions as in `vars`; one of them must hold.
    #[serde(default)]
    #[schemars(with = "Option<Vec<Vec<Value>>>", length(max = 20))]
    vars: Option<Vec<Value>>,
}

pub(super) struct FaultInjection {
    delay: Option<(Share, Duration)>,
    abort: Option<(Share, Answer)>,
}

/// Which requests it is about.
struct Share {
    percentage: Option<u8>,
    any_of: Option<Vec<Expr>>,
}

struct Answer {
    status: u16,
    body: Template,
    headers: Vec<(Box<str>, Template)>,
}

impl Plugin for FaultInjection {
    const NAME: &'static str = "fault-injection";
    const PRIORITY: i32 = 11000;
    const EXAMPLE: &'static str = r#"{
        "delay": {"duration": 0.2, "percentage": 10},
        "abort": {"http_status": 503, "body": "try $uri later", "percentage": 1, "vars": [[["arg_test", "==", "1"]]]}
    }"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.abort.is_none() && config.delay.is_none() {
            return Err(Invalid::new("one of abort and delay at least is expected"));
        }
        let delay = config.delay.as_ref().map(|delay| {
            let share = Share::parse("delay", delay.percentage, delay.vars.as_deref())?;
            let wait = Duration::try_from_secs_f64(delay.duration)
                .map_err(|why| Invalid::new(format!("delay.duration: {why}")))?;
            Ok((share, wait))
        });
        let abort = config.abort.as_ref().map(|abort| {
            let share = Share::parse("abort", abort.percentage, abort.vars.as_deref())?;
            Ok((share, Answer::parse(abort)?))
        });
        let plugin = Self { delay: delay.transpose()?, abort: abort.transpose()? };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

impl Share {
    fn parse(of: &str, percentage: Option<u8>, vars: Option<&[Value]>) -> Result<Self, Invalid> {
        if let Some(percentage) = percentage {
            bounds::number(&format!("{of}.percentage"), percentage, 0..=100)?;
        }
        let conditions = vars.map(|vars| {
            if vars.len() > 20 {
                return Err(Invalid::new(format!("{of}.vars: at most 20 entries are expected")));
            }
            let condition =
                |(at, one): (usize, &Value)| bounds::condition(&format!("{of}.vars[{at}]"), one);
            vars.iter().enumerate().map(condition).collect::<Result<Vec<_>, _>>()
        });
        Ok(Self { percentage, any_of: conditions.transpose()? })
    }

    fn has(&self, exchange: &Exchange) -> bool {
        let meant = |any: &Vec<Expr>| any.iter().any(|condition| condition.holds(exchange));
        self.percentage.is_none_or(|percentage| fastrand::u8(1..=100) <= percentage)
            && self.any_of.as_ref().is_none_or(meant)
    }
}

impl Answer {
    fn parse(abort: &Abort) -> Result<Self, Invalid> {
        let body = Template::parse(abort.body.as_deref().unwrap_or_default())
            .map_err(|why| bounds::at("abort.body", &why))?;
        if abort.headers.as_ref().is_some_and(BTreeMap::is_empty) {
            return Err(Invalid::new("abort.headers: at least one is expected"));
        }
        let header = |(name, value): (&String, &FieldValue)| {
            let refuse = |why: Invalid| bounds::at("abort.headers", &why);
            Ok((field_name(name).map_err(refuse)?, value.template().map_err(refuse)?))
        };
        let headers = abort.headers.iter().flatten().map(header).collect::<Result<_, _>>()?;
        let status = bounds::number("abort.http_status", abort.http_status, 200..=599)?;
        Ok(Self { status, body, headers })
    }

    fn write(&self, exchange: &Exchange) -> Reply {
        let mut reply = Reply::empty(self.status);
        reply.body = self.body.text(exchange).into();
        for (name, value) in &self.headers {
            reply = reply.with(name, &value.text(exchange));
        }
        reply
    }
}

#[async_trait]
impl Rewrite for FaultInjection {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        if let Some((share, wait)) = &self.delay
            && share.has(exchange)
        {
            tokio::time::sleep(*wait).await;
        }
        if let Some((share, answer)) = &self.abort
            && share.has(exchange)
        {
            return Ok(Flow::Reply(Box::new(answer.write(exchange))));
        }
        Ok(Flow::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;
    use tokio::time::Instant;

    #[tokio::test]
    async fn what_is_aborted_reads_as_configured() {
        let config = json!({"abort": {
            "http_status": 418, "body": "no $uri to $arg_who", "headers": {"X-A": "$uri", "X-B": 7}
        }});
        let mut exchange = exchange("GET", "/a?who=me", "h");
        let reply = reply(compile::<FaultInjection>(config).rewrite(&mut exchange).await.unwrap());
        assert_eq!((reply.status, &reply.body[..]), (418, &b"no /a to me"[..]));
        let headers: Vec<_> =
            reply.fields.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(headers, [("X-A", "/a"), ("X-B", "7")]);
    }

    #[tokio::test]
    async fn a_share_of_those_that_are_meant() {
        for (share, from, to) in [
            (json!({}), 400, 400),
            (json!({"percentage": 0}), 0, 0),
            (json!({"percentage": 100}), 400, 400),
            (json!({"percentage": 50}), 100, 300),
            (json!({"vars": []}), 0, 0),
            (json!({"vars": [[["arg_a", "==", "2"]], [["arg_a", "==", "1"]]]}), 400, 400),
            (json!({"vars": [[["arg_a", "==", "2"]]]}), 0, 0),
            (json!({"percentage": 0, "vars": [[["arg_a", "==", "1"]]]}), 0, 0),
        ] {
            let mut config = json!({"abort": {"http_status": 500}});
            config["abort"].as_object_mut().unwrap().extend(share.as_object().unwrap().clone());
            let chain = compile::<FaultInjection>(config);
            let mut aborted = 0;
            for _ in 0..400 {
                let mut exchange = exchange("GET", "/?a=1", "h");
                let flow = chain.rewrite(&mut exchange).await.unwrap();
                aborted += u32::from(matches!(flow, Flow::Reply(_)));
            }
            assert!((from..=to).contains(&aborted), "{share}: {aborted}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_delayed_goes_on_after_that() {
        for (config, seconds) in [
            (json!({"delay": {"duration": 2.5}}), 2.5),
            (json!({"delay": {"duration": 2.5, "percentage": 0}}), 0.0),
            (json!({"delay": {"duration": 2.5, "vars": [[["arg_a", "==", "2"]]]}}), 0.0),
        ] {
            let before = Instant::now();
            let mut exchange = exchange("GET", "/?a=1", "h");
            let flow = compile::<FaultInjection>(config.clone()).rewrite(&mut exchange).await;
            assert!(matches!(flow.unwrap(), Flow::Next));
            let waited = before.elapsed().as_secs_f64();
            assert!((waited - seconds).abs() < 0.01, "{config}: {waited}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let many: Vec<_> = (0..21).map(|_| json!([["arg_a", "==", "1"]])).collect();
        for (config, says) in [
            (json!({}), "one of abort and delay"),
            (json!({"abort": {}}), "missing field `http_status`"),
            (json!({"abort": {"http_status": 199}}), "abort.http_status"),
            (json!({"abort": {"http_status": 600}}), "abort.http_status"),
            (
                json!({"abort": {"http_status": 200, "percentage": 101}}),
                "abort.percentage: a number from 0 to 100",
            ),
            (
                json!({"abort": {"http_status": 200, "body": "$nothing"}}),
                "abort.body: unknown variable",
            ),
            (json!({"abort": {"http_status": 200, "headers": {}}}), "abort.headers"),
            (
                json!({"abort": {"http_status": 200, "headers": {"A": "b\r\nC: d"}}}),
                "abort.headers: a header's value",
            ),
            (
                json!({"abort": {"http_status": 200, "headers": {"Content-Length": 1}}}),
                "abort.headers: 'Content-Length'",
            ),
            (json!({"abort": {"http_status": 200, "vars": [["a"]]}}), "abort.vars[0]"),
            (json!({"delay": {"duration": -1}}), "delay.duration"),
            (json!({"delay": {"duration": 1e300}}), "delay.duration"),
            (json!({"delay": {"duration": 1, "vars": many}}), "delay.vars: at most 20"),
            (json!({"delay": {"duration": 1, "percentage": -1}}), "invalid value"),
        ] {
            let error = refused::<FaultInjection>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
