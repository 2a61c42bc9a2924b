//! `consumer-restriction`: admits or refuses by consumer, consumer group, service or route.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::pipeline::{Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin};

/// Which consumers may call. At least one of the three lists is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [
    {"required": ["blacklist"]}, {"required": ["whitelist"]}, {"required": ["allowed_by_methods"]}
]))]
pub(super) struct Config {
    /// What the lists name.
    #[serde(default, rename = "type")]
    kind: Of,
    /// These may not call.
    #[serde(default)]
    #[schemars(length(min = 1))]
    blacklist: Option<Vec<String>>,
    /// Only these may call.
    #[serde(default)]
    #[schemars(length(min = 1))]
    whitelist: Option<Vec<String>>,
    /// Which methods some of them may use; those of the whitelist may use all, and so may those that nothing is said of.
    #[serde(default)]
    allowed_by_methods: Option<Vec<Allowed>>,
    /// The status of a refusal.
    #[serde(default = "default_code")]
    #[schemars(range(min = 200, max = 599))]
    rejected_code: u16,
    /// What a refused caller reads.
    #[serde(default)]
    rejected_msg: Option<String>,
}

const fn default_code() -> u16 {
    403
}

/// What one may use.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Allowed {
    /// Who.
    user: String,
    /// The methods.
    #[schemars(length(min = 1))]
    methods: Vec<Method>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Method {
    Get,
    Post,
    Put,
    Delete,
    Patch,
    Head,
    Options,
    Connect,
    Trace,
    Purge,
}

impl Method {
    const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Patch => "PATCH",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Connect => "CONNECT",
            Self::Trace => "TRACE",
            Self::Purge => "PURGE",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Of {
    #[default]
    ConsumerName,
    ServiceId,
    RouteId,
    ConsumerGroupId,
}

impl Of {
    const fn name(self) -> &'static str {
        match self {
            Self::ConsumerName => "consumer_name",
            Self::ServiceId => "service_id",
            Self::RouteId => "route_id",
            Self::ConsumerGroupId => "consumer_group_id",
        }
    }

    fn read(self, exchange: &Exchange) -> Option<&str> {
        let (consumer, route) = (exchange.consumer.as_deref(), exchange.route.as_deref());
        match self {
            Self::ConsumerName => consumer.map(|consumer| consumer.name.as_str()),
            Self::ConsumerGroupId => consumer?.group.as_ref().map(|id| id.as_str()),
            Self::ServiceId => route?.service.as_ref().map(|id| id.as_str()),
            Self::RouteId => route.map(|route| route.id.as_str()),
        }
    }
}

pub(super) struct ConsumerRestriction {
    kind: Of,
    blacklist: Vec<String>,
    whitelist: Vec<String>,
    by_methods: Vec<Allowed>,
    status: u16,
    refusal: Value,
}

impl Plugin for ConsumerRestriction {
    const NAME: &'static str = "consumer-restriction";
    const PRIORITY: i32 = 2400;
    const EXAMPLE: &'static str = r#"{"whitelist": ["jack"], "allowed_by_methods": [{"user": "jill", "methods": ["GET"]}], "rejected_msg": "not for you"}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        let Config { kind, blacklist, whitelist, allowed_by_methods, .. } = config;
        if blacklist.is_none() && whitelist.is_none() && allowed_by_methods.is_none() {
            return Err(Invalid::new(
                "at least one of blacklist, whitelist and allowed_by_methods is expected",
            ));
        }
        for (field, list) in [("blacklist", &blacklist), ("whitelist", &whitelist)] {
            if list.as_ref().is_some_and(Vec::is_empty) {
                return Err(Invalid::new(format!("{field}: at least one name is expected")));
            }
        }
        if !(200..=599).contains(&config.rejected_code) {
            return Err(Invalid::new("rejected_code: 200 to 599 is expected"));
        }
        let message =
            config.rejected_msg.unwrap_or_else(|| format!("The {} is forbidden.", kind.name()));
        let plugin = Self {
            kind,
            blacklist: blacklist.unwrap_or_default(),
            whitelist: whitelist.unwrap_or_default(),
            by_methods: allowed_by_methods.unwrap_or_default(),
            status: config.rejected_code,
            refusal: json!({ "message": message }),
        };
        Ok(Hooks::of(plugin).access().done())
    }
}

#[async_trait]
impl Access for ConsumerRestriction {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let Some(who) = self.kind.read(exchange) else {
            let kind = self.kind.name();
            let message =
                format!("The request is rejected, please check the {kind} for this request");
            return Ok(Flow::json(401, &json!({ "message": message })));
        };
        let admits = self.admits(who, exchange.request.method());
        Ok(if admits { Flow::Next } else { Flow::json(self.status, &self.refusal) })
    }
}

impl ConsumerRestriction {
    fn admits(&self, who: &str, method: &str) -> bool {
        let names = |list: &[String]| list.iter().any(|name| name == who);
        if names(&self.blacklist) {
            return false;
        }
        if names(&self.whitelist) {
            return true;
        }
        let own = self.by_methods.iter().find(|allowed| allowed.user == who);
        let may_use = own.is_none_or(|own| own.methods.iter().any(|one| one.name() == method));
        self.whitelist.is_empty() && may_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;

    #[test]
    fn the_lists_are_judged_together() {
        let lists = |blacklist: &[&str], whitelist: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let methods = vec![Method::Get];
            ConsumerRestriction {
                kind: Of::default(),
                blacklist: owned(blacklist),
                whitelist: owned(whitelist),
                by_methods: vec![Allowed { user: "reader".into(), methods }],
                status: 403,
                refusal: json!({}),
            }
        };
        for (blacklist, whitelist, who, method, admitted) in [
            (&["b"][..], &[][..], "b", "GET", false),
            (&["b"], &[], "a", "GET", true),
            (&[], &["a"], "a", "PUT", true),
            (&[], &["a"], "b", "GET", false),
            (&["a"], &["a"], "a", "GET", false),
            (&[], &[], "reader", "GET", true),
            (&[], &[], "reader", "POST", false),
            (&[], &[], "other", "POST", true),
            (&[], &["reader"], "reader", "POST", true),
        ] {
            let found = lists(blacklist, whitelist).admits(who, method);
            assert_eq!(found, admitted, "{blacklist:?} {whitelist:?} {who} {method}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "at least one of"),
            (json!({"blacklist": []}), "blacklist"),
            (json!({"whitelist": ["a"], "rejected_code": 199}), "rejected_code"),
            (json!({"whitelist": ["a"], "rejected_code": 600}), "rejected_code"),
            (json!({"whitelist": ["a"], "type": "user"}), "unknown variant `user`"),
            (
                json!({"allowed_by_methods": [{"user": "a", "methods": ["get"]}]}),
                "unknown variant `get`",
            ),
            (json!({"allowed_by_methods": [{"methods": ["GET"]}]}), "user"),
        ] {
            let error = refused::<ConsumerRestriction>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
