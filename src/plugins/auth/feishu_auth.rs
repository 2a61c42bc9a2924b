//! `feishu-auth`: people come with a code of Feishu's (Lark's), which says who they are.

use std::time::Duration;

use async_trait::async_trait;
use http::header::AUTHORIZATION;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::asking::{kept_server, lawful, yes};
use super::badge::{CodeEntrance, CodeSettings, Secrets, failed, invalid_code};
use super::cookies::write_lines;
use super::entrance::named;
use super::provider::{Endpoint, Unavailable};
use crate::pipeline::{
    Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Question, Redacted, ResponseHead,
    Rewrite, Terms,
};
use crate::plugins::bounds;
use crate::rt::unix_seconds;

/// Callers must come with a code of Feishu's, or have come with one before.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Who we are for Feishu.
    #[schemars(length(min = 1))]
    app_id: String,
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
    /// Where Feishu sends people with a code, as it was told when they were sent there.
    #[schemars(length(min = 1))]
    auth_redirect_uri: String,
    /// The header that has the code.
    #[serde(default = "default_header")]
    #[schemars(length(min = 1))]
    code_header: String,
    /// The argument that has the code, where the header is missing.
    #[serde(default = "default_query")]
    #[schemars(length(min = 1))]
    code_query: String,
    /// Where a code is exchanged for the person's token.
    #[serde(default = "default_token")]
    #[schemars(length(min = 1))]
    access_token_url: String,
    /// Who is asked whom a token stands for.
    #[serde(default = "default_user")]
    #[schemars(length(min = 1))]
    userinfo_url: String,
    /// Gives the upstream what Feishu says of the person, in `X-Userinfo`.
    #[serde(default = "yes")]
    set_userinfo_header: bool,
    /// Seconds after which people have to come with a code again.
    #[serde(default = "default_expires")]
    #[schemars(range(min = 1))]
    cookie_expires_in: u32,
    /// Milliseconds that Feishu may take for an answer.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1))]
    timeout: u32,
    /// Its certificate must be one that the system trusts.
    #[serde(default = "yes")]
    ssl_verify: bool,
}

fn default_header() -> String {
    "X-Feishu-Code".into()
}
fn default_query() -> String {
    "code".into()
}
fn default_token() -> String {
    "https://open.feishu.cn/open-apis/authen/v2/oauth/token".into()
}
fn default_user() -> String {
    "https://open.feishu.cn/open-apis/authen/v1/user_info".into()
}
const fn default_expires() -> u32 {
    86_400
}
const fn default_timeout() -> u32 {
    6000
}

pub(super) struct FeishuAuth {
    entrance: CodeEntrance,
    app_id: String,
    app_secret: Redacted<String>,
    back: String,
    tokens: Endpoint,
    users: Endpoint,
}

impl Plugin for FeishuAuth {
    const NAME: &'static str = "feishu-auth";
    const PRIORITY: i32 = 2420;
    const EXAMPLE: &'static str = r#"{"app_id": "cli_shop", "app_secret": "s3cret-of-the-shop", "secret": "a-secret-of-16-ch", "redirect_uri": "https://accounts.feishu.cn/open-apis/authen/v1/authorize?client_id=cli_shop", "auth_redirect_uri": "https://shop.example/"}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        named("app_id", &config.app_id, usize::MAX)?;
        named("app_secret", config.app_secret.reveal(), usize::MAX)?;
        named("auth_redirect_uri", &config.auth_redirect_uri, usize::MAX)?;
        bounds::number("timeout", config.timeout, 1..=u32::MAX)?;
        let terms = Terms {
            within: Duration::from_millis(config.timeout.into()),
            verify: config.ssl_verify,
            keep: Some((Duration::from_secs(60), 5)),
        };
        let endpoint = |field, url: &str| {
            Ok::<_, Invalid>(Endpoint::new(url, kept_server(build, field, url, terms)?))
        };
        let secrets = Secrets { secret: &config.secret, fallbacks: &config.secret_fallbacks };
        let settings = CodeSettings {
            code_header: config.code_header,
            code_query: config.code_query,
            redirect_uri: config.redirect_uri,
            cookie_expires_in: config.cookie_expires_in,
            set_userinfo_header: config.set_userinfo_header,
        };
        let cookie = "feishu_session";
        let entrance = CodeEntrance::new(Self::NAME, cookie, &config.app_id, secrets, settings)?;
        let plugin = Self {
            entrance,
            tokens: endpoint("access_token_url", &config.access_token_url)?,
            users: endpoint("userinfo_url", &config.userinfo_url)?,
            app_id: config.app_id,
            app_secret: config.app_secret,
            back: config.auth_redirect_uri,
        };
        Ok(Hooks::of(plugin).rewrite().response_head().done())
    }
}

#[async_trait]
impl Rewrite for FeishuAuth {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let now = unix_seconds();
        let code = match self.entrance.enter(exchange, now) {
            Ok(flow) => return Ok(flow),
            Err(None) => return Ok(self.entrance.send_away(exchange)),
            Err(Some(code)) => code,
        };
        let let_in = match self.user(&code).await {
            Ok(Some(user)) => self.entrance.let_in(exchange, user, now),
            Ok(None) => return Ok(invalid_code()),
            Err(cause) => Err(cause),
        };
        let_in.or_else(|cause| failed(Self::NAME, &cause))
    }
}

impl ResponseHead for FeishuAuth {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        write_lines(exchange);
        Ok(())
    }
}

impl FeishuAuth {
    /// Whom the code stands for.
    async fn user(&self, code: &str) -> Result<Option<Value>, Unavailable> {
        #[derive(Deserialize)]
        struct Token {
            access_token: Option<String>,
        }
        #[derive(Deserialize)]
        struct User {
            code: i64,
            data: Option<Value>,
        }
        let question = json!({
            "grant_type": "authorization_code", "client_id": self.app_id,
            "client_secret": self.app_secret.reveal(), "code": code, "redirect_uri": self.back,
        });
        let mut question = Question::post("", "application/json", question.to_string());
        question.is_once = true;
        let answer = self.tokens.ask(&question).await?;
        let unusable =
            |what: &str, status: u16| Unavailable::of_session(&format!("{what} answered {status}"));
        if answer.status >= 500 {
            return Err(unusable("access_token_url", answer.status));
        }
        let token = serde_json::from_slice::<Token>(&answer.body);
        let token = token.map_err(|_| unusable("access_token_url", answer.status))?;
        let Some(token) = token.access_token.filter(|_| answer.status == 200) else {
            return Ok(None);
        };
        let mut question = Question::get("");
        let Some(mut line) = lawful(format!("Bearer {token}").as_bytes()) else { return Ok(None) };
        line.set_sensitive(true);
        question.headers.insert(AUTHORIZATION, line);
        let answer = self.users.ask(&question).await?;
        let user = serde_json::from_slice::<User>(&answer.body).ok();
        let user = user.filter(|_| answer.status == 200);
        let user = user.ok_or_else(|| unusable("userinfo_url", answer.status))?;
        Ok(user.data.filter(|data| user.code == 0 && data.is_object()))
    }
}
