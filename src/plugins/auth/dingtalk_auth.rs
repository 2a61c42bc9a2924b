//! `dingtalk-auth`: people come with a code of DingTalk's, which says who they are.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::asking::{kept_server, yes};
use super::badge::{CodeEntrance, CodeSettings, Secrets, failed, invalid_code};
use super::browser::encode;
use super::cookies::write_lines;
use super::entrance::named;
use super::provider::{Endpoint, Unavailable};
use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Question, Redacted, ResponseHead,
    Rewrite, Terms,
};
use crate::plugins::bounds;
use crate::rt::unix_seconds;

/// Callers must come with a code of DingTalk's, or have come with one before.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Who we are for DingTalk.
    #[schemars(length(min = 1))]
    app_key: String,
    /// Our secret there.
    #[schemars(length(min = 1))]
    app_secret: Redacted<String>,
    /// What the cookie is sealed with: 8 to 32 characters.
    #[schemars(length(min = 8, max = 32))]
    secret: Redacted<String>,
    /// What cookies may have been sealed with before.
    #[serde(default)]
    #[schemars(inner(length(min = 8, max = 32)))]
    secret_fallbacks: Vec<Redacted<String>>,
    /// Where people are sent who come without a code.
    #[schemars(length(min = 1))]
    redirect_uri: String,
    /// The header that has the code.
    #[serde(default = "default_header")]
    #[schemars(length(min = 1))]
    code_header: String,
    /// The argument that has the code, where the header is missing.
    #[serde(default = "default_query")]
    #[schemars(length(min = 1))]
    code_query: String,
    /// Where we get a token of our own.
    #[serde(default = "default_token")]
    #[schemars(length(min = 1))]
    access_token_url: String,
    /// Who is asked whom a code stands for.
    #[serde(default = "default_user")]
    #[schemars(length(min = 1))]
    userinfo_url: String,
    /// Gives the upstream what DingTalk says of the person, in `X-Userinfo`.
    #[serde(default = "yes")]
    set_userinfo_header: bool,
    /// Seconds after which people have to come with a code again.
    #[serde(default = "default_expires")]
    #[schemars(range(min = 1))]
    cookie_expires_in: u32,
    /// Milliseconds that DingTalk may take for an answer.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1))]
    timeout: u32,
    /// Its certificate must be one that the system trusts.
    #[serde(default = "yes")]
    ssl_verify: bool,
}

fn default_header() -> String {
    "X-DingTalk-Code".into()
}
fn default_query() -> String {
    "code".into()
}
fn default_token() -> String {
    "https://api.dingtalk.com/v1.0/oauth2/accessToken".into()
}
fn default_user() -> String {
    "https://oapi.dingtalk.com/topapi/v2/user/getuserinfo".into()
}
const fn default_expires() -> u32 {
    86_400
}
const fn default_timeout() -> u32 {
    6000
}

pub(super) struct DingtalkAuth {
    entrance: CodeEntrance,
    app: Redacted<String>,
    tokens: Endpoint,
    users: Endpoint,
    /// Our token, and when it is over.
    token: Arc<Mutex<Option<OwnToken>>>,
}

/// Our token, and when it is over.
type OwnToken = (Redacted<String>, i64);

impl Plugin for DingtalkAuth {
    const NAME: &'static str = "dingtalk-auth";
    const PRIORITY: i32 = 2430;
    const EXAMPLE: &'static str = r#"{"app_key": "ding-shop", "app_secret": "s3cret-of-the-shop", "secret": "a-secret-of-16-ch", "redirect_uri": "https://login.dingtalk.com/oauth2/auth"}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        named("app_key", &config.app_key, usize::MAX)?;
        named("app_secret", config.app_secret.reveal(), usize::MAX)?;
        bounds::number("timeout", config.timeout, 1..=u32::MAX)?;
        let terms = Terms {
            within: Duration::from_millis(config.timeout.into()),
            verify: config.ssl_verify,
            keep: Some((Duration::from_secs(60), 5)),
        };
        let endpoint = |field, url: &str| {
            Ok::<_, Invalid>(Endpoint::new(url, kept_server(build, field, url, terms)?))
        };
        let app = json!({ "appKey": config.app_key, "appSecret": config.app_secret.reveal() });
        let secrets = Secrets { secret: &config.secret, fallbacks: &config.secret_fallbacks };
        let settings = CodeSettings {
            code_header: config.code_header,
            code_query: config.code_query,
            redirect_uri: config.redirect_uri,
            cookie_expires_in: config.cookie_expires_in,
            set_userinfo_header: config.set_userinfo_header,
        };
        let cookie = "dingtalk_session";
        let entrance = CodeEntrance::new(Self::NAME, cookie, &config.app_key, secrets, settings)?;
        let plugin = Self {
            entrance,
            app: Redacted::new(app.to_string()),
            tokens: endpoint("access_token_url", &config.access_token_url)?,
            users: endpoint("userinfo_url", &config.userinfo_url)?,
            token: Arc::default(),
        };
        Ok(Hooks::of(plugin).rewrite().response_head().done())
    }
}

#[async_trait]
impl Rewrite for DingtalkAuth {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let now = unix_seconds();
        let code = match self.entrance.enter(exchange, now) {
            Ok(flow) => return Ok(flow),
            Err(None) => return Ok(self.entrance.send_away(exchange)),
            Err(Some(code)) => code,
        };
        let let_in = match self.user(&code, now).await {
            Ok(Some(user)) => self.entrance.let_in(exchange, user, now),
            Ok(None) => return Ok(invalid_code()),
            Err(cause) => Err(cause),
        };
        let_in.or_else(|cause| failed(Self::NAME, &cause))
    }
}

impl ResponseHead for DingtalkAuth {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        write_lines(exchange);
        Ok(())
    }
}

impl DingtalkAuth {
    /// Whom the code stands for.
    async fn user(&self, code: &str, now: i64) -> Result<Option<Value>, Unavailable> {
        #[derive(Deserialize)]
        struct Told {
            errcode: i64,
            result: Option<Value>,
        }
        let token = self.token(now).await?;
        let question = json!({ "code": code }).to_string();
        let mark = if self.users.url.contains('?') { '&' } else { '?' };
        let query = format!("{mark}access_token={}", encode(token.reveal()));
        let mut question = Question::post(query, "application/json", question);
        question.is_once = true;
        let answer = self.users.ask(&question).await?;
        let told = serde_json::from_slice::<Told>(&answer.body).ok();
        let told = told.filter(|_| answer.status == 200).ok_or_else(|| {
            Unavailable::because(&format!("userinfo_url answered {}", answer.status))
        })?;
        if matches!(told.errcode, 40014 | 42001) {
            // Our own token is over before its time.
            *self.token.lock() = None;
            return Err(Unavailable::because("userinfo_url takes our token no longer"));
        }
        Ok(told.result.filter(|user| told.errcode == 0 && user.is_object()))
    }

    /// Our own token.
    async fn token(&self, now: i64) -> Result<Redacted<String>, Unavailable> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Told {
            access_token: String,
            expire_in: i64,
        }
        if let Some((token, until)) = &*self.token.lock()
            && *until > now
        {
            return Ok(Redacted::new(token.reveal().clone()));
        }
        let question = Question::post("", "application/json", self.app.reveal().clone());
        let answer = self.tokens.ask(&question).await?;
        let told = serde_json::from_slice::<Told>(&answer.body).ok();
        let told = told.filter(|_| answer.status == 200).ok_or_else(|| {
            Unavailable::of_session(&format!("access_token_url answered {}", answer.status))
        })?;
        // A minute early: it takes its time on the way.
        let until = now.saturating_add(told.expire_in).saturating_sub(60);
        *self.token.lock() = Some((Redacted::new(told.access_token.clone()), until));
        Ok(Redacted::new(told.access_token))
    }
}
