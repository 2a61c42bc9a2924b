//! `key-auth`: callers are known by a key, in a header or in the query.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Redacted, Reply, Rewrite, argument,
    without_argument,
};

/// Callers must present the key of a consumer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The header that carries the key; it goes before the query.
    #[serde(default = "default_name")]
    header: String,
    /// The argument of the query that carries the key.
    #[serde(default = "default_name")]
    query: String,
    /// Takes the key off before the request goes upstream.
    #[serde(default)]
    hide_credentials: bool,
    /// The consumer that callers without a valid key count as; without it they are refused.
    #[serde(default)]
    #[schemars(length(min = 1))]
    anonymous_consumer: Option<String>,
    /// What the refusal's `WWW-Authenticate` names.
    #[serde(default = "default_realm")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r#"^[^"\\]+$"#))]
    realm: String,
}

fn default_name() -> String {
    "apikey".into()
}
fn default_realm() -> String {
    "key".into()
}

/// What a consumer or credential carries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    /// The key, unique among all consumers.
    #[schemars(length(min = 1))]
    #[serde(rename = "key")]
    _key: Redacted<String>,
}

pub(super) struct KeyAuth {
    header: String,
    query: String,
    hide_credentials: bool,
    anonymous_consumer: Option<String>,
    challenge: String,
}

impl Plugin for KeyAuth {
    const NAME: &'static str = "key-auth";
    const PRIORITY: i32 = 2500;
    const EXAMPLE: &'static str = r#"{"header": "X-API-Key", "hide_credentials": true}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        for (field, value) in [("header", &config.header), ("query", &config.query)] {
            if value.is_empty() {
                return Err(Invalid::new(format!("{field}: a name is expected")));
            }
        }
        let realm = &config.realm;
        let unfit = |c: char| matches!(c, '"' | '\\') || c.is_control();
        if !(1..=128).contains(&realm.len()) || realm.contains(unfit) {
            return Err(Invalid::new(
                "realm: 1 to 128 bytes without quotes, backslashes and control characters are expected",
            ));
        }
        if config.anonymous_consumer.as_deref() == Some("") {
            return Err(Invalid::new("anonymous_consumer: a name is expected"));
        }
        let plugin = Self {
            challenge: format!("apikey realm=\"{realm}\""),
            header: config.header,
            query: config.query,
            hide_credentials: config.hide_credentials,
            anonymous_consumer: config.anonymous_consumer,
        };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

#[async_trait]
impl Rewrite for KeyAuth {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let Some(consumers) = exchange.consumers.clone() else {
            return Err(Fault::gateway("consumers are not known", "the exchange has no directory"));
        };
        let request = &exchange.request;
        let header = request.value(&self.header).map(String::from_utf8_lossy);
        let query = || argument(request.query().unwrap_or_default(), &self.query).next();
        let found = match header.or_else(query) {
            None => Err("Missing API key in request"),
            Some(key) => consumers.find(Self::NAME, &key).ok_or("Invalid API key in request"),
        };
        let consumer = match (found, &self.anonymous_consumer) {
            (Ok((consumer, _)), _) => {
                if self.hide_credentials {
                    self.hide(exchange);
                }
                consumer
            }
            (Err(message), None) => return Ok(self.refuse(message)),
            (Err(_), Some(name)) => match consumers.named(name) {
                Some(consumer) => consumer,
                None => return Ok(self.refuse("Invalid user authorization")),
            },
        };
        exchange.attach(consumer);
        Ok(Flow::Next)
    }
}

impl KeyAuth {
    fn refuse(&self, message: &str) -> Flow {
        let reply = Reply::json(401, &json!({ "message": message }));
        Flow::Reply(Box::new(reply.with("WWW-Authenticate", &self.challenge)))
    }

    /// Takes the key off wherever it may stand, so that the place that was not read does not give it away either.
    fn hide(&self, exchange: &mut Exchange) {
        exchange.request.remove(&self.header);
        if let Some(target) = self.without_key(exchange.request.target()) {
            // In the request itself: `$args`, a redirect's address and logs read it too.
            exchange.request.set_target(&target);
        }
        if let Some(target) = &exchange.rewritten.target
            && let Some(target) = self.without_key(target)
        {
            exchange.rewritten.target = Some(target);
        }
    }

    fn without_key(&self, target: &str) -> Option<String> {
        let (path, query) = target.split_once('?')?;
        argument(query, &self.query).next()?;
        let rest = without_argument(query, &self.query);
        let separator = if rest.is_empty() { "" } else { "?" };
        Some(format!("{path}{separator}{rest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use crate::pipeline::{Consumer, Directory, SpiffeId};
    use crate::plugins::tests::compile;
    use serde_json::Value;
    use std::sync::Arc;

    struct Book;
    impl Directory for Book {
        fn find(&self, plugin: &str, key: &str) -> Option<(Arc<Consumer>, Arc<Value>)> {
            let known = plugin == "key-auth" && key == "jack's key";
            known.then(|| (self.named("jack").unwrap(), Arc::new(json!({"key": key}))))
        }
        fn of_identity(&self, _: &str, _: &SpiffeId) -> Option<(Arc<Consumer>, Arc<Value>)> {
            None
        }
        fn ready(&self, _: &str, _: &str) -> Option<(Arc<Consumer>, crate::pipeline::Ready)> {
            None
        }
        fn named(&self, name: &str) -> Option<Arc<Consumer>> {
            let labels = [("custom_id".to_owned(), "7".to_owned())].into();
            let credential = (name == "jack").then(|| "one".to_owned());
            let consumer = Consumer { name: name.into(), labels, credential, group: None };
            ["jack", "anyone"].contains(&name).then(|| Arc::new(consumer))
        }
    }

    fn asked(target: &str, header: Option<&str>) -> Exchange {
        let mut exchange = exchange("GET", target, "h");
        exchange.consumers = Some(Arc::new(Book));
        if let Some(key) = header {
            exchange.request.append("apikey", key.as_bytes());
        }
        exchange
    }

    #[tokio::test]
    async fn a_key_in_header_or_query_names_the_consumer() {
        let chain = compile::<KeyAuth>(json!({}));
        for (target, header) in [
            ("/", Some("jack's key")),
            ("/?apikey=jack%27s+key", None),
            ("/?apikey=x", Some("jack's key")),
        ] {
            let mut exchange = asked(target, header);
            exchange.request.append("X-Consumer-Username", b"root");
            assert!(matches!(chain.rewrite(&mut exchange).await.unwrap(), Flow::Next));
            assert_eq!(exchange.consumer.as_ref().unwrap().name, "jack");
            let names: Vec<_> = exchange.request.all("x-consumer-username").collect();
            assert_eq!(names, [b"jack"]);
            assert_eq!(exchange.request.text("x-credential-identifier"), Some("one"));
            assert_eq!(exchange.request.text("x-consumer-custom-id"), Some("7"));
            assert_eq!(exchange.rewritten.target, None);
        }
    }

    #[tokio::test]
    async fn without_a_valid_key_the_caller_is_told_why_and_how() {
        let chain = compile::<KeyAuth>(json!({"realm": "shop"}));
        for (header, message) in
            [(None, "Missing API key in request"), (Some("no"), "Invalid API key in request")]
        {
            let mut exchange = asked("/", header);
            let reply = reply(chain.rewrite(&mut exchange).await.unwrap());
            assert_eq!(reply.status, 401);
            assert_eq!(reply.body, format!("{{\"message\":\"{message}\"}}\n"));
            let challenge = reply.fields.iter().find(|(name, _)| name == "WWW-Authenticate");
            assert_eq!(challenge.unwrap().1, "apikey realm=\"shop\"");
            assert!(exchange.consumer.is_none());
        }
    }

    #[tokio::test]
    async fn the_key_is_hidden_from_the_upstream_when_asked() {
        let chain = compile::<KeyAuth>(json!({"hide_credentials": true}));
        let mut exchange = asked("/a%20b?x=1&apikey=jack%27s%20key&y=%2F", Some("jack's key"));
        chain.rewrite(&mut exchange).await.unwrap();
        assert_eq!(exchange.request.value("apikey"), None);
        assert_eq!(exchange.request.target(), "/a%20b?x=1&y=%2F");
        let mut only = asked("/a?apikey=jack%27s%20key", None);
        chain.rewrite(&mut only).await.unwrap();
        assert_eq!((only.request.target(), only.rewritten.target.as_deref()), ("/a", None));
        // Not even a plugin that runs later reads it, and what one before made of the query loses it too.
        let mut rewritten = asked("/a?apikey=jack%27s%20key&x=1", None);
        rewritten.rewritten.target = Some("/b?apikey=jack%27s%20key&x=1".into());
        chain.rewrite(&mut rewritten).await.unwrap();
        assert_eq!(rewritten.request.query(), Some("x=1"));
        assert_eq!(rewritten.rewritten.target.as_deref(), Some("/b?x=1"));
    }

    #[tokio::test]
    async fn an_anonymous_consumer_stands_in_and_must_exist() {
        let chain = compile::<KeyAuth>(json!({"anonymous_consumer": "anyone"}));
        for header in [None, Some("no")] {
            let mut exchange = asked("/", header);
            assert!(matches!(chain.rewrite(&mut exchange).await.unwrap(), Flow::Next));
            assert_eq!(exchange.consumer.unwrap().name, "anyone");
        }
        let chain = compile::<KeyAuth>(json!({"anonymous_consumer": "ghost"}));
        let refused = reply(chain.rewrite(&mut asked("/", None)).await.unwrap());
        assert_eq!(refused.status, 401);
    }
}
