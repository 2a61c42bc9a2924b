//! `csrf`: requests that change something come from pages that have read our cookie (a signed double-submit token).

use std::fmt::Write as _;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Redacted, ResponseHead, Variable,
    field_name,
};
use crate::plugins::bounds;
use crate::rt;
use crate::rt::crypto::{hmac, rand};

/// Requests other than GET, HEAD and OPTIONS need a token: the same in a header as in a cookie, which every answer sets.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Signs the tokens. All gateways of one site have the same.
    #[schemars(with = "String", length(min = 1))]
    key: Redacted<String>,
    /// The name of the header and of the cookie.
    #[serde(default = "default_name")]
    #[schemars(length(min = 1))]
    name: String,
    /// Seconds for which a token is good; 0: always.
    #[serde(default = "default_expires")]
    #[schemars(range(min = 0))]
    expires: u32,
}

fn default_name() -> String {
    "apisix-csrf-token".into()
}
const fn default_expires() -> u32 {
    7200
}

pub(super) struct Csrf {
    key: hmac::Key,
    name: String,
    cookie: Variable,
    expires: u32,
}

/// A token, as JSON in base64.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    random: String,
    /// When it was made, in Unix seconds; APISIX's name for it.
    expires: i64,
    /// HMAC-SHA256 over the two, in hexadecimal.
    sign: String,
}

/// A longer one is none of ours.
const MAX_TOKEN: usize = 1024;

impl Plugin for Csrf {
    const NAME: &'static str = "csrf";
    const PRIORITY: i32 = 2980;
    const EXAMPLE: &'static str =
        r#"{"key": "a-long-random-secret", "name": "x-csrf-token", "expires": 3600}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.key.reveal().is_empty() {
            return Err(Invalid::new("key: an empty key would let everybody sign"));
        }
        field_name(&config.name).map_err(|why| bounds::at("name", &why))?;
        let plugin = Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, config.key.reveal().as_bytes()),
            cookie: Variable::parse(&format!("cookie_{}", config.name))?,
            name: config.name,
            expires: config.expires,
        };
        Ok(Hooks::of(plugin).access().response_head().done())
    }
}

#[async_trait]
impl Access for Csrf {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        if matches!(exchange.request.method(), "GET" | "HEAD" | "OPTIONS") {
            return Ok(Flow::Next);
        }
        Ok(match self.judge(exchange, rt::unix_seconds()) {
            Ok(()) => Flow::Next,
            Err(why) => Flow::json(401, &json!({ "error_msg": why })),
        })
    }
}

impl Csrf {
    fn judge(&self, exchange: &Exchange, now: i64) -> Result<(), &'static str> {
        let header = exchange.request.text(&self.name).filter(|token| !token.is_empty());
        let header = header.ok_or("no csrf token in headers")?;
        let cookie = self.cookie.read(exchange).ok_or("no csrf cookie")?;
        if header.as_bytes() != cookie.text().as_bytes() {
            return Err("csrf token mismatch");
        }
        match self.is_good(header, now) {
            true => Ok(()),
            false => Err("Failed to verify the csrf token signature"),
        }
    }

    fn is_good(&self, text: &str, now: i64) -> bool {
        if text.len() > MAX_TOKEN {
            return false;
        }
        let Ok(json) = STANDARD.decode(text) else { return false };
        let Ok(token) = serde_json::from_slice::<Token>(&json) else { return false };
        let Ok(sign) = hex::decode(&token.sign) else { return false };
        // The comparison takes the same time however much of it is right.
        let is_ours =
            hmac::verify(&self.key, message(&token.random, token.expires).as_bytes(), &sign);
        let age = now.saturating_sub(token.expires);
        is_ours.is_ok() && (self.expires == 0 || age <= i64::from(self.expires))
    }

    fn token(&self, now: i64) -> Result<String, Fault> {
        let failed = || Fault::gateway("no token can be made", "the system has no random numbers");
        let random = rand::generate::<[u8; 16]>(&rand::SystemRandom::new());
        let random = hex::encode(random.map_err(|_| failed())?.expose());
        let sign = hmac::sign(&self.key, message(&random, now).as_bytes());
        let token = Token { random, expires: now, sign: hex::encode(sign) };
        let json = serde_json::to_vec(&token);
        Ok(STANDARD
            .encode(json.map_err(|why| Fault::gateway("no token can be made", why.to_string()))?))
    }
}

fn message(random: &str, made: i64) -> String {
    format!("{made}.{random}")
}

impl ResponseHead for Csrf {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        let now = rt::unix_seconds();
        let mut cookie = format!("{}={};path=/;SameSite=Lax", self.name, self.token(now)?);
        if self.expires > 0
            && let Some(date) = date(now + i64::from(self.expires))
        {
            let _ = write!(cookie, ";Expires={date}");
        }
        exchange.response.append("Set-Cookie", cookie.as_bytes());
        Ok(())
    }
}

/// As RFC 9110 section 5.6.7 writes dates.
fn date(unix_seconds: i64) -> Option<String> {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    OffsetDateTime::from_unix_timestamp(unix_seconds).ok()?.format(&format).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{exchange, reply};
    use crate::plugins::tests::{compile, refused};

    fn csrf(key: &str, expires: u32) -> Csrf {
        Csrf {
            key: hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()),
            name: "t".into(),
            cookie: Variable::parse("cookie_t").unwrap(),
            expires,
        }
    }

    #[test]
    fn a_token_is_good_for_its_time_and_its_key() {
        let ours = csrf("k", 60);
        let token = ours.token(1000).unwrap();
        assert!(ours.is_good(&token, 1060));
        assert!(!ours.is_good(&token, 1061));
        assert!(csrf("k", 0).is_good(&token, i64::MAX));
        assert!(!csrf("other", 60).is_good(&token, 1000));
        assert_ne!(token, ours.token(1000).unwrap());
        assert_eq!(date(10).as_deref(), Some("Thu, 01 Jan 1970 00:00:10 GMT"));
    }

    #[test]
    fn hostile_tokens_are_not_good() {
        let ours = csrf("k", 60);
        let mut token: Token =
            serde_json::from_slice(&STANDARD.decode(ours.token(1000).unwrap()).unwrap()).unwrap();
        token.expires = 1001;
        let moved = STANDARD.encode(serde_json::to_vec(&token).unwrap());
        for text in [
            "",
            "x",
            "bm90IGpzb24=",
            &STANDARD.encode(b"{}"),
            &STANDARD.encode(br#"{"random":"a","expires":1000,"sign":""}"#),
            &STANDARD.encode(br#"{"random":"a","expires":1000,"sign":"zz"}"#),
            &STANDARD.encode(br#"{"random":"a","expires":9223372036854775807,"sign":"00"}"#),
            &moved,
            &"A".repeat(60_000),
        ] {
            assert!(!ours.is_good(text, 1000), "{text}");
        }
    }

    #[tokio::test]
    async fn changes_need_the_token_twice() {
        let chain = compile::<Csrf>(json!({"key": "k", "name": "t"}));
        let mut first = exchange("GET", "/", "h");
        chain.response_head(&mut first).unwrap();
        let cookie = first.response.text("set-cookie").unwrap().to_owned();
        assert!(cookie.starts_with("t=") && cookie.contains(";path=/;SameSite=Lax;Expires="));
        let token = cookie["t=".len()..].split(';').next().unwrap().to_owned();
        for (method, header, cookie, why) in [
            ("GET", None, None, None),
            ("OPTIONS", None, None, None),
            ("POST", None, None, Some("no csrf token in headers")),
            ("POST", Some(""), None, Some("no csrf token in headers")),
            ("DELETE", Some(&*token), None, Some("no csrf cookie")),
            ("PUT", Some(&*token), Some("other"), Some("csrf token mismatch")),
            (
                "PUT",
                Some("other"),
                Some("other"),
                Some("Failed to verify the csrf token signature"),
            ),
            ("POST", Some(&*token), Some(&*token), None),
        ] {
            let mut exchange = exchange(method, "/", "h");
            if let Some(header) = header {
                exchange.request.append("T", header.as_bytes());
            }
            if let Some(cookie) = cookie {
                exchange.request.append("Cookie", format!("a=b; t={cookie}").as_bytes());
            }
            let flow = chain.access(&mut exchange).await.unwrap();
            match why {
                None => assert!(matches!(flow, Flow::Next), "{method}"),
                Some(why) => {
                    let reply = reply(flow);
                    let body = format!("{}\n", json!({ "error_msg": why }));
                    assert_eq!((reply.status, &reply.body[..]), (401, body.as_bytes()));
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({}), "missing field `key`"),
            (json!({"key": ""}), "key: an empty key"),
            (json!({"key": "k", "name": "a b"}), "name: 'a b' is no header name"),
            (json!({"key": "k", "name": "a\r\nb"}), "name: "),
            (json!({"key": "k", "expires": -1}), "invalid value"),
            (json!({"key": 1}), "invalid type"),
        ] {
            let error = refused::<Csrf>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
