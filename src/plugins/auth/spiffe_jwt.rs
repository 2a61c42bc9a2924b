//! `spiffe-jwt`: callers are known by a JWT-SVID.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, JwtSvid, MAX_LEEWAY, Plugin, Refusal, Reply,
    Rewrite, SpiffePattern, TokenRules, TrustDomain, argument, field_name,
};

/// Callers must present a JWT-SVID (a token of a trust domain that we hold the keys of), made out to us.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Who we are for a token: one of these must stand in its `aud`, to the letter.
    #[schemars(length(min = 1))]
    audiences: Vec<String>,
    /// The header that carries the token, behind the word `Bearer`; in a header of another name the word may be missing.
    #[serde(default = "default_header")]
    header: String,
    /// Every workload of these trust domains may call. At least one of `trust_domains` and `spiffe_ids` is given.
    #[serde(default)]
    trust_domains: Vec<String>,
    /// Workloads with these SPIFFE IDs may call; in a pattern `*` stands for one segment, and a last `**` for one or more.
    #[serde(default)]
    spiffe_ids: Vec<String>,
    /// Leaves the token in the request that goes upstream, where it can be used again.
    #[serde(default)]
    forward: bool,
    /// Takes tokens that are made out to others as well.
    #[serde(default)]
    allow_several_audiences: bool,
    /// Refuses tokens that live longer than this, in seconds.
    #[serde(default = "default_max_lifetime")]
    #[schemars(range(min = 1))]
    max_lifetime: u32,
    /// Seconds by which our clock and the issuer's may differ.
    #[serde(default = "default_leeway")]
    #[schemars(range(max = 60))]
    leeway: u8,
    /// Refuses callers whose SPIFFE ID is no consumer's (by the credential of `spiffe-auth`); without it they pass without one.
    #[serde(default)]
    consumer_required: bool,
    /// What the refusal's `WWW-Authenticate` names.
    #[serde(default = "default_realm")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r#"^[^"\\]+$"#))]
    realm: String,
}

fn default_header() -> String {
    "Authorization".into()
}
fn default_max_lifetime() -> u32 {
    86_400
}
fn default_leeway() -> u8 {
    10
}
fn default_realm() -> String {
    "spiffe".into()
}

pub(super) struct SpiffeJwt {
    rules: TokenRules,
    header: String,
    /// Other headers may carry a token without the word `Bearer`.
    is_authorization: bool,
    trust_domains: Vec<TrustDomain>,
    spiffe_ids: Vec<SpiffePattern>,
    forward: bool,
    consumer_required: bool,
    challenge: String,
}

/// Whose credentials consumers are found by.
const CREDENTIALS: &str = "spiffe-auth";

impl Plugin for SpiffeJwt {
    const NAME: &'static str = "spiffe-jwt";
    const PRIORITY: i32 = 2512;
    const EXAMPLE: &'static str = r#"{"audiences": ["https://api.shop.example"], "spiffe_ids": ["spiffe://shop.example/ns/*/sa/web"]}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.audiences.is_empty() || config.audiences.iter().any(String::is_empty) {
            return Err(Invalid::new("audiences: at least one is expected, none of them empty"));
        }
        field_name(&config.header).map_err(|why| Invalid::new(format!("header: {why}")))?;
        if config.trust_domains.is_empty() && config.spiffe_ids.is_empty() {
            return Err(Invalid::new(
                "spiffe_ids: nobody could call; at least one of trust_domains and spiffe_ids is expected",
            ));
        }
        if config.leeway > MAX_LEEWAY {
            return Err(Invalid::new(format!(
                "leeway: {}: at most {MAX_LEEWAY} s are expected",
                config.leeway
            )));
        }
        if config.max_lifetime == 0 {
            return Err(Invalid::new("max_lifetime: at least 1 s is expected"));
        }
        let realm = &config.realm;
        let unfit = |c: char| matches!(c, '"' | '\\') || c.is_control();
        if !(1..=128).contains(&realm.len()) || realm.contains(unfit) {
            return Err(Invalid::new(
                "realm: 1 to 128 bytes without quotes, backslashes and control characters are expected",
            ));
        }
        fn all<T: std::str::FromStr<Err: std::fmt::Display>>(
            field: &str,
            texts: &[String],
        ) -> Result<Vec<T>, Invalid> {
            let one = |text: &String| {
                text.parse().map_err(|why| Invalid::new(format!("{field}: {text:?}: {why}")))
            };
            texts.iter().map(one).collect()
        }
        let plugin = Self {
            challenge: format!("Bearer realm=\"{realm}\""),
            is_authorization: config.header.eq_ignore_ascii_case("authorization"),
            trust_domains: all("trust_domains", &config.trust_domains)?,
            spiffe_ids: all("spiffe_ids", &config.spiffe_ids)?,
            header: config.header,
            forward: config.forward,
            consumer_required: config.consumer_required,
            rules: TokenRules {
                audiences: config.audiences,
                several_audiences: config.allow_several_audiences,
                leeway: config.leeway,
                max_lifetime: Some(config.max_lifetime),
            },
        };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

#[async_trait]
impl Rewrite for SpiffeJwt {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let (Some(tokens), Some(consumers)) = (exchange.tokens.clone(), exchange.consumers.clone())
        else {
            let cause = "without an identity of our own there are no keys to verify tokens with";
            return Err(Fault::gateway("tokens cannot be verified", cause));
        };
        let token = match self.presented(exchange) {
            Ok(token) => token,
            Err(reason) => return Ok(self.refuse(exchange, refusal(reason))),
        };
        let svid = match tokens.verify(token, &self.rules).await {
            Ok(svid) => svid,
            Err(refused) => {
                let reason = refused.flaw.code();
                let (token_hash, token) = (Some(refused.hash), refused.svid);
                let refusal = Refusal { token_hash, token, ..refusal(reason) };
                return Ok(self.refuse(exchange, refusal));
            }
        };
        let about = |reason| Refusal {
            token_hash: Some(svid.hash.clone()),
            token: Some(svid.clone()),
            ..refusal(reason)
        };
        if !self.admits(&svid) {
            return Ok(self.refuse(exchange, about("token_subject_not_allowed")));
        }
        let consumer = consumers.of_identity(CREDENTIALS, &svid.id);
        if consumer.is_none() && self.consumer_required {
            return Ok(self.refuse(exchange, about("identity_of_no_consumer")));
        }
        if !self.forward {
            // In the request itself: plugins that run later, variables and logs do not see it either (127, 128).
            exchange.request.remove(&self.header);
        }
        exchange.token = Some(svid);
        if let Some((consumer, _)) = consumer {
            exchange.attach(consumer);
        }
        Ok(Flow::Next)
    }
}

const fn refusal(reason: &'static str) -> Refusal {
    Refusal { plugin: SpiffeJwt::NAME, reason, token_hash: None, token: None }
}

/// The reason of a refusal that is no bad token but none at all.
const MISSING: &str = "token_missing";

impl SpiffeJwt {
    /// The one token of the request.
    fn presented<'e>(&self, exchange: &'e Exchange) -> Result<&'e str, &'static str> {
        // Addresses end up in logs, histories and Referer headers: a token there is lost already (RFC 6750, section 5.3).
        let query = exchange.request.query().unwrap_or_default();
        if argument(query, "access_token").next().is_some() {
            return Err("token_in_query");
        }
        let mut lines = exchange.request.all(&self.header);
        let line = lines.next().ok_or(MISSING)?;
        if lines.next().is_some() {
            return Err("token_twice");
        }
        let line = std::str::from_utf8(line).map_err(|_| "token_not_bearer")?;
        match line.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(token.trim_matches(' '))
            }
            None if !self.is_authorization => Ok(line),
            _ => Err("token_not_bearer"),
        }
    }

    fn admits(&self, svid: &JwtSvid) -> bool {
        let domain = svid.id.trust_domain_name();
        self.trust_domains.iter().any(|known| known.as_str() == domain)
            || self.spiffe_ids.iter().any(|pattern| pattern.matches(&svid.id))
    }

    /// The caller learns whether a token is missing, and nothing of what is wrong with the one it sent; the record says more.
    fn refuse(&self, exchange: &mut Exchange, refusal: Refusal) -> Flow {
        let missing = refusal.reason == MISSING;
        exchange.notes.leave(refusal);
        let (message, challenge) = match missing {
            true => ("Missing token in request", self.challenge.clone()),
            false => {
                ("Invalid token in request", format!("{}, error=\"invalid_token\"", self.challenge))
            }
        };
        let reply = Reply::json(401, &json!({ "message": message }));
        Flow::Reply(Box::new(reply.with("WWW-Authenticate", &challenge)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pipeline::tests::{TokenWorld, exchange, reply};
    use crate::plugins::auth::spiffe_auth::tests::Book;
    use crate::plugins::tests::{compile, refused};

    const US: &str = "https://api.shop";

    fn config() -> serde_json::Value {
        json!({"audiences": [US], "trust_domains": ["shop"]})
    }

    fn asked(world: &TokenWorld, target: &str, lines: &[(&str, &str)]) -> Exchange {
        let mut exchange = exchange("GET", target, "h");
        exchange.consumers = Some(Arc::new(Book));
        exchange.tokens = Some(world.tokens());
        for (name, value) in lines {
            exchange.request.append(name, value.as_bytes());
        }
        exchange
    }

    fn bearer(token: &str) -> String {
        format!("Bearer {token}")
    }

    #[tokio::test]
    async fn a_good_token_names_its_subject_and_goes_no_further() {
        let world = TokenWorld::new("shop");
        let token = world.token("spiffe://shop/web", &[US]);
        for (forward, left) in [(false, 0), (true, 1)] {
            let mut config = config();
            config["forward"] = json!(forward);
            let chain = compile::<SpiffeJwt>(config);
            let mut exchange = asked(&world, "/", &[("authorization", &bearer(&token))]);
            let peer = exchange.client.peer.clone().unwrap();
            assert!(matches!(chain.rewrite(&mut exchange).await.unwrap(), Flow::Next));
            let svid = exchange.token.clone().unwrap();
            assert_eq!(svid.id.as_str(), "spiffe://shop/web");
            assert_eq!(
                exchange.consumer.as_ref().unwrap().name,
                "web",
                "by spiffe-auth's credential"
            );
            assert_eq!(exchange.request.all("authorization").count(), left, "127");
            // What the token says is never said of the connection.
            assert!(Arc::ptr_eq(&peer, exchange.client.peer.as_ref().unwrap()));
            let read = |name: &str| {
                let variable = crate::pipeline::Variable::parse(name).unwrap();
                variable.read(&exchange).map(|value| value.text().into_owned())
            };
            assert_eq!(read("wardgate_token_subject").as_deref(), Some("spiffe://shop/web"));
            assert_eq!(read("wardgate_token_trust_domain").as_deref(), Some("shop"));
            assert_eq!(read("wardgate_token_audience").as_deref(), Some(US));
            assert_eq!(read("wardgate_token_id"), svid.token_id);
            assert_eq!(read("wardgate_token_hash").as_ref(), Some(&svid.hash));
        }
    }

    #[tokio::test]
    async fn whoever_is_refused_learns_nothing_and_the_record_says_why() {
        let world = TokenWorld::new("shop");
        let good = world.token("spiffe://shop/web", &[US]);
        let other = world.token("spiffe://shop/web", &["https://other"]);
        let two = world.token("spiffe://shop/web", &[US, "https://other"]);
        let foreign = TokenWorld::new("elsewhere").token("spiffe://elsewhere/web", &[US]);
        let chain = compile::<SpiffeJwt>(config());
        let in_query = format!("/?access_token={good}");
        let (b, spaced) = (bearer(&good), format!("Bearer {good} x"));
        let basic = "Basic dTpw".to_owned();
        for (target, lines, reason) in [
            ("/", vec![], "token_missing"),
            ("/", vec![&basic], "token_not_bearer"),
            ("/", vec![&good], "token_not_bearer"),
            ("/", vec![&b, &b], "token_twice"),
            ("/", vec![&b, &basic], "token_twice"),
            (&*in_query, vec![], "token_in_query"),
            (&*in_query, vec![&b], "token_in_query"),
            ("/", vec![&spaced], "token_not_compact"),
            ("/", vec![&bearer(&other)], "token_other_audience"),
            ("/", vec![&bearer(&two)], "token_several_audiences"),
            ("/", vec![&bearer(&foreign)], "token_unknown_trust_domain"),
            ("/", vec![&bearer("a.b.c")], "token_malformed"),
        ] {
            let lines: Vec<_> =
                lines.into_iter().map(|value| ("authorization", &**value)).collect();
            let mut exchange = asked(&world, target, &lines);
            let refused = reply(chain.rewrite(&mut exchange).await.unwrap());
            assert_eq!(refused.status, 401, "126 {reason}");
            let missing = reason == "token_missing";
            let (message, challenge) = match missing {
                true => ("Missing token in request", "Bearer realm=\"spiffe\""),
                false => {
                    ("Invalid token in request", "Bearer realm=\"spiffe\", error=\"invalid_token\"")
                }
            };
            assert_eq!(refused.body, format!("{{\"message\":\"{message}\"}}\n"), "{reason}");
            let told = refused.fields.iter().find(|(name, _)| name == "WWW-Authenticate");
            assert_eq!(told.unwrap().1, challenge, "{reason}");
            let note = exchange.notes.find::<Refusal>().unwrap();
            assert_eq!(note.reason, reason);
            let shown = format!("{note:?}");
            assert!(!shown.contains(good.rsplit('.').next().unwrap()), "128 {shown}");
            assert!(exchange.token.is_none() && exchange.consumer.is_none());
        }
    }

    #[tokio::test]
    async fn only_whom_the_route_names_may_call() {
        let world = TokenWorld::new("shop");
        let web = bearer(&world.token("spiffe://shop/web", &[US]));
        let other = bearer(&world.token("spiffe://shop/other", &[US]));
        for (more, line, reason) in [
            (json!({"trust_domains": ["shop"]}), &other, None),
            (json!({"spiffe_ids": ["spiffe://shop/web"]}), &web, None),
            (json!({"spiffe_ids": ["spiffe://shop/*"]}), &other, None),
            (
                json!({"spiffe_ids": ["spiffe://shop/web"]}),
                &other,
                Some("token_subject_not_allowed"),
            ),
            (json!({"trust_domains": ["elsewhere"]}), &web, Some("token_subject_not_allowed")),
            (
                json!({"trust_domains": ["shop"], "consumer_required": true}),
                &other,
                Some("identity_of_no_consumer"),
            ),
            (json!({"trust_domains": ["shop"], "consumer_required": true}), &web, None),
        ] {
            let mut config = json!({"audiences": [US]});
            for (name, value) in more.as_object().unwrap() {
                config[name] = value.clone();
            }
            let chain = compile::<SpiffeJwt>(config);
            let mut exchange = asked(&world, "/", &[("authorization", line)]);
            let flow = chain.rewrite(&mut exchange).await.unwrap();
            assert_eq!(exchange.notes.find::<Refusal>().map(|note| note.reason), reason, "{more}");
            assert_eq!(matches!(flow, Flow::Next), reason.is_none());
        }
    }

    #[tokio::test]
    async fn another_header_may_carry_the_bare_token_and_without_an_identity_nothing_passes() {
        let world = TokenWorld::new("shop");
        let token = world.token("spiffe://shop/web", &[US]);
        let mut config = config();
        config["header"] = json!("X-Workload");
        let chain = compile::<SpiffeJwt>(config);
        for value in [&token, &bearer(&token)] {
            let lines = [("x-workload", &**value), ("authorization", "Basic dTpw")];
            let mut exchange = asked(&world, "/", &lines);
            assert!(matches!(chain.rewrite(&mut exchange).await.unwrap(), Flow::Next));
            assert_eq!(exchange.request.value("x-workload"), None);
            assert!(exchange.request.value("authorization").is_some(), "it is not ours to strip");
        }
        let mut exchange = asked(&world, "/", &[("x-workload", &token)]);
        exchange.tokens = None;
        assert_eq!(chain.rewrite(&mut exchange).await.unwrap_err().status, 500);
    }

    #[test]
    fn settings_that_would_let_anybody_in_are_refused_by_field() {
        for (config, field) in [
            (json!({"trust_domains": ["shop"]}), "audiences"),
            (json!({"audiences": [], "trust_domains": ["shop"]}), "audiences"),
            (json!({"audiences": [""], "trust_domains": ["shop"]}), "audiences"),
            (json!({"audiences": ["a"]}), "spiffe_ids"),
            (json!({"audiences": ["a"], "trust_domains": ["SHOP"]}), "trust_domains"),
            (json!({"audiences": ["a"], "spiffe_ids": ["web"]}), "spiffe_ids"),
            (json!({"audiences": ["a"], "trust_domains": ["s"], "leeway": 61}), "leeway"),
            (
                json!({"audiences": ["a"], "trust_domains": ["s"], "max_lifetime": 0}),
                "max_lifetime",
            ),
            (json!({"audiences": ["a"], "trust_domains": ["s"], "header": "a b"}), "header"),
            (json!({"audiences": ["a"], "trust_domains": ["s"], "realm": "\""}), "realm"),
        ] {
            let error = refused::<SpiffeJwt>(config.clone());
            assert!(error.contains(field), "{config}: {error}");
        }
    }
}
