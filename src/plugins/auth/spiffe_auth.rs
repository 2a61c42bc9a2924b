//! `spiffe-auth`: the identity that the handshake proved is a consumer's.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Refusal, Rewrite, SpiffePattern,
};

/// Callers are consumers by the SPIFFE ID of their connection.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The consumer that callers without an identity, or with nobody's, count as; without it they are refused.
    #[serde(default)]
    #[schemars(length(min = 1))]
    anonymous_consumer: Option<String>,
}

/// What a consumer or credential carries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    /// Whose calls are this consumer's: a SPIFFE ID, or a pattern in which `*` stands for one segment and a last `**` for one
    /// or more. No two consumers have the same one; of several that mean a caller, the one counts that is exact further to
    /// the left.
    #[serde(rename = "spiffe_id", deserialize_with = "pattern")]
    #[schemars(
        length(min = 1, max = 2048),
        regex(pattern = r"^spiffe://[a-z0-9._-]+/[A-Za-z0-9._*/-]+$")
    )]
    _spiffe_id: String,
}

fn pattern<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    let wrong = |why: &dyn std::fmt::Display| serde::de::Error::custom(format!("spiffe_id: {why}"));
    let pattern: SpiffePattern = text.parse().map_err(|why| wrong(&why))?;
    let plain = pattern.to_string();
    // One spelling only: by it two consumers are compared.
    if plain != text {
        return Err(wrong(&format!("expected it to be written as {plain}")));
    }
    if plain == pattern.trust_domain().id().as_str() {
        return Err(wrong(&"a trust domain is no workload: a path is expected"));
    }
    Ok(text)
}

pub(super) struct SpiffeAuth {
    anonymous_consumer: Option<String>,
}

impl Plugin for SpiffeAuth {
    const NAME: &'static str = "spiffe-auth";
    const PRIORITY: i32 = 2545;
    const EXAMPLE: &'static str = r#"{"anonymous_consumer": "guest"}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.anonymous_consumer.as_deref() == Some("") {
            return Err(Invalid::new("anonymous_consumer: a name is expected"));
        }
        let plugin = Self { anonymous_consumer: config.anonymous_consumer };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

#[async_trait]
impl Rewrite for SpiffeAuth {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let Some(consumers) = &exchange.consumers else {
            return Err(Fault::gateway("consumers are not known", "the exchange has no directory"));
        };
        let found = match &exchange.client.peer {
            None => Err("no_peer_identity"),
            Some(peer) => {
                consumers.of_identity(Self::NAME, &peer.id).ok_or("identity_of_no_consumer")
            }
        };
        let consumer = match (found, &self.anonymous_consumer) {
            (Ok((consumer, _)), _) => Ok(consumer),
            (Err(reason), None) => Err(reason),
            (Err(_), Some(name)) => consumers.named(name).ok_or("no_anonymous_consumer"),
        };
        match consumer {
            Ok(consumer) => {
                exchange.attach(consumer);
                Ok(Flow::Next)
            }
            Err(reason) => {
                let plugin = Self::NAME;
                exchange.notes.leave(Refusal { plugin, reason, token_hash: None, token: None });
                // Not 401: there is nothing that the caller could send along to change it.
                Ok(Flow::forbid("The caller's identity is no consumer's"))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::pipeline::tests::{client, exchange, reply};
    use crate::pipeline::{Client, Consumer, Directory, SpiffeId};
    use crate::plugins::tests::compile;

    /// `web` is whoever has an ID below `/ns/*/sa/web`.
    pub(in crate::plugins::auth) struct Book;
    impl Directory for Book {
        fn find(&self, _: &str, _: &str) -> Option<(Arc<Consumer>, Arc<Value>)> {
            None
        }
        fn of_identity(&self, plugin: &str, id: &SpiffeId) -> Option<(Arc<Consumer>, Arc<Value>)> {
            let known = plugin == "spiffe-auth" && id.as_str() == "spiffe://shop/web";
            known.then(|| (self.named("web").unwrap(), Arc::default()))
        }
        fn ready(&self, _: &str, _: &str) -> Option<(Arc<Consumer>, crate::pipeline::Ready)> {
            None
        }
        fn named(&self, name: &str) -> Option<Arc<Consumer>> {
            let consumer = Consumer { name: name.into(), ..Consumer::default() };
            ["web", "guest"].contains(&name).then(|| Arc::new(consumer))
        }
    }

    fn from(peer: Option<&str>) -> Exchange {
        let mut exchange = exchange("GET", "/", "h");
        let mut client: Client = client();
        client.peer = client.peer.filter(|_| peer.is_some()).map(|known| {
            let mut known = (*known).clone();
            known.id = peer.unwrap().parse().unwrap();
            Arc::new(known)
        });
        exchange.client = Arc::new(client);
        exchange.consumers = Some(Arc::new(Book));
        exchange
    }

    #[tokio::test]
    async fn the_proved_identity_is_the_consumers_and_no_header_is() {
        let chain = compile::<SpiffeAuth>(json!({}));
        let mut known = from(Some("spiffe://shop/web"));
        known.request.append("X-Consumer-Username", b"root");
        assert!(matches!(chain.rewrite(&mut known).await.unwrap(), Flow::Next));
        assert_eq!(known.consumer.as_ref().unwrap().name, "web");
        assert_eq!(known.request.all("x-consumer-username").collect::<Vec<_>>(), [b"web"]);

        for (peer, reason) in
            [(None, "no_peer_identity"), (Some("spiffe://shop/other"), "identity_of_no_consumer")]
        {
            let mut stranger = from(peer);
            let refused = reply(chain.rewrite(&mut stranger).await.unwrap());
            assert_eq!(refused.status, 403);
            assert_eq!(stranger.notes.find::<Refusal>().unwrap().reason, reason);
            assert!(stranger.consumer.is_none());
        }
    }

    #[tokio::test]
    async fn an_anonymous_consumer_stands_in_and_must_exist() {
        let chain = compile::<SpiffeAuth>(json!({"anonymous_consumer": "guest"}));
        for peer in [None, Some("spiffe://shop/other")] {
            let mut exchange = from(peer);
            assert!(matches!(chain.rewrite(&mut exchange).await.unwrap(), Flow::Next));
            assert_eq!(exchange.consumer.unwrap().name, "guest");
        }
        let chain = compile::<SpiffeAuth>(json!({"anonymous_consumer": "ghost"}));
        assert_eq!(reply(chain.rewrite(&mut from(None)).await.unwrap()).status, 403);
    }

    #[test]
    fn a_credential_is_a_pattern_in_its_one_spelling() {
        let row = crate::plugins::ALL.iter().find(|row| row.name == "spiffe-auth").unwrap();
        let check = |id: &str| (row.check_credential.unwrap())(&json!({ "spiffe_id": id }));
        for good in ["spiffe://a/web", "spiffe://a/ns/*/sa/web", "spiffe://a/**"] {
            check(good).unwrap();
        }
        for bad in ["SPIFFE://a/web", "spiffe://a", "spiffe://A/web", "web", "spiffe://a/w*", ""] {
            let error = check(bad).unwrap_err().to_string();
            assert!(error.contains("spiffe_id"), "{bad}: {error}");
        }
    }
}
