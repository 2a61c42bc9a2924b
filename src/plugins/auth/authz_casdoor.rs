//! `authz-casdoor`: people log in at Casdoor (OAuth 2.0, authorization code).

use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::asking::kept_server;
use super::badge::{Badge, failed};
use super::browser::{
    answer, encode, path_of, random, redirect, target_of, with_arguments, with_cookies,
};
use super::cookies::SameSite;
use super::entrance::{is_same, named};
use super::provider::{Endpoint, Unavailable};
use crate::pipeline::{
    Access, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Question, Redacted, Reply, Terms,
    argument,
};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::unix_seconds;

/// Callers must have logged in at Casdoor; whoever has not is sent there.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Casdoor's URL, without a slash at its end.
    #[schemars(regex(pattern = "^[^%?]+[^/]$"))]
    endpoint_addr: String,
    /// Who we are for Casdoor.
    client_id: String,
    /// Our secret there.
    client_secret: Redacted<String>,
    /// Where Casdoor sends people back to: a URL of ours on this route.
    #[schemars(regex(pattern = "^[^%?]+[^/]$"))]
    callback_url: String,
}

/// Seconds that somebody may take to log in.
const LOGIN_SECONDS: i64 = 600;

pub(super) struct AuthzCasdoor {
    tokens: Endpoint,
    authorize: String,
    client_id: String,
    client_secret: Redacted<String>,
    callback: String,
    callback_path: String,
    badge: Badge,
    pending: Badge,
}

/// A login that was begun.
#[derive(Serialize, Deserialize)]
struct Attempt {
    state: String,
    target: String,
}

impl Plugin for AuthzCasdoor {
    const NAME: &'static str = "authz-casdoor";
    const PRIORITY: i32 = 2559;
    const EXAMPLE: &'static str = r#"{"endpoint_addr": "https://casdoor.example", "client_id": "shop", "client_secret": "s3cret-of-the-shop", "callback_url": "https://shop.example/callback"}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        for (field, url) in
            [("endpoint_addr", &config.endpoint_addr), ("callback_url", &config.callback_url)]
        {
            if path_of(url).is_none() || url.contains(['%', '?', '#']) || url.ends_with('/') {
                return Err(Invalid::new(format!(
                    "{field}: https://host/path or http://host/path is expected, without %, ?, # and a slash at its end"
                )));
            }
        }
        named("client_id", &config.client_id, usize::MAX)?;
        named("client_secret", config.client_secret.reveal(), usize::MAX)?;
        let callback_path = path_of(&config.callback_url).unwrap_or_default();
        if matches!(&*callback_path, "" | "/") {
            return Err(Invalid::new("callback_url: a URL with a path is expected"));
        }
        let url = format!("{}/api/login/oauth/access_token", config.endpoint_addr);
        let terms = Terms { within: Duration::from_secs(10), verify: true, keep: None };
        let server = kept_server(build, "endpoint_addr", &url, terms)?;
        // Each client has cookies of its own.
        let purpose = format!("authz-casdoor {} {}", config.endpoint_addr, config.client_id);
        let sum = hex::encode(&digest(&SHA256, purpose.as_bytes()).as_ref()[..8]);
        let badge = |name: &str| {
            let secret = config.client_secret.reveal();
            Badge::new(
                &format!("{name}_{sum}"),
                SameSite::Lax,
                None,
                &[secret],
                &format!("{name} {purpose}"),
            )
        };
        let plugin = Self {
            tokens: Endpoint::new(&url, server),
            authorize: format!("{}/login/oauth/authorize", config.endpoint_addr),
            badge: badge("casdoor_session")?,
            pending: badge("casdoor_login")?,
            client_id: config.client_id,
            client_secret: config.client_secret,
            callback_path,
            callback: config.callback_url,
        };
        Ok(Hooks::of(plugin).access().done())
    }
}

#[async_trait]
impl Access for AuthzCasdoor {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let now = unix_seconds();
        let is_callback =
            exchange.uri().is_some_and(|path| *path == *self.callback_path.as_bytes());
        let reply = if is_callback {
            self.come_back(exchange, now).await
        } else if self.badge.read::<()>(&exchange.request, now).is_some() {
            self.badge.hide(&mut exchange.request);
            self.pending.hide(&mut exchange.request);
            return Ok(Flow::Next);
        } else {
            self.begin(exchange, now)
        };
        match reply {
            Ok(reply) => Ok(answer(reply)),
            Err(cause) => failed(Self::NAME, &cause),
        }
    }
}

impl AuthzCasdoor {
    /// Sends the caller to Casdoor.
    fn begin(&self, exchange: &Exchange, now: i64) -> Result<Reply, Unavailable> {
        let attempt = Attempt { state: random()?, target: target_of(exchange) };
        let asked = format!(
            "response_type=code&scope=read&state={}&client_id={}&redirect_uri={}",
            attempt.state,
            encode(&self.client_id),
            encode(&self.callback)
        );
        let cookies = self.pending.give(exchange, &attempt, now, LOGIN_SECONDS)?;
        Ok(redirect(&with_arguments(&self.authorize, &asked), cookies))
    }

    /// Casdoor has sent the caller back.
    async fn come_back(&self, exchange: &Exchange, now: i64) -> Result<Reply, Unavailable> {
        let query = exchange.request.query().unwrap_or_default();
        let asked = |name: &str| {
            let mut all = argument(query, name);
            all.next().filter(|value| !value.is_empty() && all.next().is_none())
        };
        let attempt = self.pending.read::<Attempt>(&exchange.request, now);
        let is_ours =
            |attempt: &Attempt| asked("state").is_some_and(|state| is_same(&attempt.state, &state));
        let (Some(attempt), Some(code)) = (attempt.filter(is_ours), asked("code")) else {
            let message = "failed when accessing token. Invalid code or state";
            return Ok(Reply::json(400, &json!({ "message": message })));
        };
        let mut cookies = self.pending.clear(exchange);
        let Some(lives) = self.exchange(&code).await? else {
            let message = "failed when accessing token. Invalid code or state";
            return Ok(with_cookies(Reply::json(400, &json!({ "message": message })), cookies));
        };
        cookies.extend(self.badge.give(exchange, &(), now, lives)?);
        Ok(redirect(&attempt.target, cookies))
    }

    /// Seconds that the token lives which Casdoor gives for the code. `None`: it takes no such code.
    async fn exchange(&self, code: &str) -> Result<Option<i64>, Unavailable> {
        #[derive(Deserialize)]
        struct Told {
            access_token: Option<String>,
            expires_in: Option<i64>,
        }
        let form = format!(
            "code={}&grant_type=authorization_code&client_id={}&client_secret={}",
            encode(code),
            encode(&self.client_id),
            encode(self.client_secret.reveal())
        );
        let mut question = Question::post("", "application/x-www-form-urlencoded", form);
        question.is_once = true;
        let answer = self.tokens.ask(&question).await?;
        let unusable =
            || Unavailable::because(&format!("{} answered {}", self.tokens.url, answer.status));
        if !matches!(answer.status, 200 | 400 | 401) {
            return Err(unusable());
        }
        let told: Told = serde_json::from_slice(&answer.body).map_err(|_| unusable())?;
        // Casdoor says what is wrong with a status of 200, and with a token that lives no second.
        let lives = told.expires_in.filter(|lives| *lives > 0);
        Ok(told.access_token.filter(|token| answer.status == 200 && !token.is_empty()).and(lives))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (field, value) in [
            ("endpoint_addr", "casdoor"),
            ("endpoint_addr", "http://a/"),
            ("endpoint_addr", "http://a?b"),
            ("endpoint_addr", "ftp://a"),
            ("endpoint_addr", "http://u:p@a"),
            ("callback_url", "/callback"),
            ("callback_url", "http://a/b%20c"),
            ("callback_url", "http://a/"),
            ("callback_url", "http://a"),
            ("client_id", ""),
            ("client_secret", ""),
        ] {
            let mut config = json!({"endpoint_addr": "http://a", "client_id": "b", "client_secret": "c", "callback_url": "http://d/e"});
            config[field] = value.into();
            let error = refused::<AuthzCasdoor>(config.clone());
            assert!(error.contains(field), "{config}: {error}");
        }
    }
}
