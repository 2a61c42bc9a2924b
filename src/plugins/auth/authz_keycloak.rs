//! `authz-keycloak`: Keycloak says what the bearer of a token may do (User-Managed Access 2.0).

use std::time::Duration;

use async_trait::async_trait;
use http::header::AUTHORIZATION;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::asking::{default_keepalive_pool, default_keepalive_timeout, kept_server, lawful, yes};
use super::badge::failed;
use super::browser::{answer, encode, web_url};
use super::provider::{Endpoint, Provider, Unavailable};
use crate::pipeline::{
    Access, Answer, Build, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Question, Redacted,
    Reply, Terms, argument,
};
use crate::plugins::bounds;
use crate::rt::unix_seconds;

/// Keycloak must say that the bearer of the caller's token has a permission for what is asked.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Who we are for Keycloak: whose permissions are asked about.
    #[schemars(length(min = 1, max = 100))]
    client_id: String,
    /// Our secret there: `lazy_load_paths` and tokens by password need it.
    #[serde(default)]
    #[schemars(length(min = 1, max = 100))]
    client_secret: Option<Redacted<String>>,
    /// The URL of Keycloak's discovery document. This or `token_endpoint` is given.
    #[serde(default)]
    #[schemars(length(min = 1, max = 4096))]
    discovery: Option<String>,
    /// Where permissions are asked for; the discovery document says it when not given.
    #[serde(default)]
    #[schemars(length(min = 1, max = 4096))]
    token_endpoint: Option<String>,
    /// Where resources are looked up by their paths; the discovery document says it when not given.
    #[serde(default)]
    #[schemars(length(min = 1, max = 4096))]
    resource_registration_endpoint: Option<String>,
    /// How permissions are asked for: there is one way.
    #[serde(default)]
    #[expect(dead_code, reason = "there is one")]
    grant_type: GrantType,
    /// What the caller must have a permission for, as `resource` or `resource#scope`; any of them.
    #[serde(default)]
    #[schemars(inner(length(min = 1, max = 100)), extend("uniqueItems" = true))]
    permissions: Vec<String>,
    /// Keycloak's resources with this path are asked about, in place of `permissions`.
    #[serde(default)]
    lazy_load_paths: bool,
    /// The request's method is the scope that is asked for.
    #[serde(default)]
    http_method_as_scope: bool,
    /// What becomes of requests for which there is no permission to ask for: they are refused, or Keycloak decides.
    #[serde(default)]
    policy_enforcement_mode: Enforcement,
    /// Where callers are sent who may not; they get a 403 when not given.
    #[serde(default)]
    #[schemars(length(min = 1, max = 2048))]
    access_denied_redirect_uri: Option<String>,
    /// A path of ours: whoever posts a form with `username` and `password` there gets a token of Keycloak's.
    #[serde(default)]
    #[schemars(length(min = 1, max = 4096))]
    password_grant_token_generation_incoming_uri: Option<String>,
    /// Bytes that such a form may have.
    #[serde(default = "default_body")]
    #[schemars(range(min = 1))]
    max_req_body_size: u64,
    /// Seconds for which the discovery document is believed.
    #[serde(default = "default_ttl")]
    #[schemars(range(min = 1))]
    cache_ttl_seconds: u32,
    /// Seconds that our own token lives where Keycloak does not say it.
    #[serde(default = "default_access")]
    #[schemars(range(min = 1))]
    access_token_expires_in: u32,
    /// Seconds before its end at which it is renewed.
    #[serde(default)]
    access_token_expires_leeway: u32,
    /// Seconds that our own refresh token lives where Keycloak does not say it.
    #[serde(default = "default_refresh")]
    #[schemars(range(min = 1))]
    refresh_token_expires_in: u32,
    /// Seconds before its end from which it is used no more.
    #[serde(default)]
    refresh_token_expires_leeway: u32,
    /// Milliseconds that Keycloak may take for an answer.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1000))]
    timeout: u32,
    /// Its certificate must be one that the system trusts.
    #[serde(default = "yes")]
    ssl_verify: bool,
    /// Connections stay open for the next question.
    #[serde(default = "yes")]
    keepalive: bool,
    /// Milliseconds that one waits for it.
    #[serde(default = "default_keepalive_timeout")]
    #[schemars(range(min = 1000))]
    keepalive_timeout: u64,
    /// How many wait.
    #[serde(default = "default_keepalive_pool")]
    #[schemars(range(min = 1))]
    keepalive_pool: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
enum GrantType {
    #[default]
    #[serde(rename = "urn:ietf:params:oauth:grant-type:uma-ticket")]
    UmaTicket,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Enforcement {
    #[default]
    Enforcing,
    Permissive,
}

const fn default_body() -> u64 {
    64 << 20
}
const fn default_ttl() -> u32 {
    86_400
}
const fn default_access() -> u32 {
    300
}
const fn default_refresh() -> u32 {
    3600
}
const fn default_timeout() -> u32 {
    3000
}

/// A form with a name and a password is short, however much is allowed.
const MOST_FORM: u64 = 64 * 1024;

pub(super) struct AuthzKeycloak {
    provider: Option<Provider>,
    tokens: Option<Endpoint>,
    resources: Option<Endpoint>,
    client_id: String,
    client_secret: Option<Redacted<String>>,
    permissions: Vec<String>,
    by_path: bool,
    method_is_scope: bool,
    enforcement: Enforcement,
    denied: Option<String>,
    password_path: Option<String>,
    most_form: u64,
    access_lives: (i64, i64),
    refresh_lives: (i64, i64),
    own: Mutex<Option<Own>>,
}

/// Our own tokens.
struct Own {
    access: Redacted<String>,
    access_until: i64,
    refresh: Option<Redacted<String>>,
    refresh_until: i64,
}

impl Plugin for AuthzKeycloak {
    const NAME: &'static str = "authz-keycloak";
    const PRIORITY: i32 = 2000;
    const EXAMPLE: &'static str = r##"{"client_id": "shop", "token_endpoint": "https://keycloak.example/realms/shop/protocol/openid-connect/token", "permissions": ["cart#view"]}"##;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        config.check()?;
        let terms = Terms {
            within: Duration::from_millis(config.timeout.into()),
            verify: config.ssl_verify,
            keep: config
                .keepalive
                .then(|| (Duration::from_millis(config.keepalive_timeout), config.keepalive_pool)),
        };
        let endpoint = |field, url: &Option<String>| {
            let endpoint = url.as_deref().map(|url| {
                Ok::<_, Invalid>(Endpoint::new(url, kept_server(build, field, url, terms)?))
            });
            endpoint.transpose()
        };
        let day = Duration::from_secs(86_400);
        let believed = Duration::from_secs(config.cache_ttl_seconds.into());
        let provider = config.discovery.as_deref().map(|url| Provider::new(url, terms, day));
        let reads_body = config.password_grant_token_generation_incoming_uri.is_some();
        let plugin = Self {
            provider: provider.transpose()?.map(|provider| provider.believed_for(believed)),
            tokens: endpoint("token_endpoint", &config.token_endpoint)?,
            resources: endpoint(
                "resource_registration_endpoint",
                &config.resource_registration_endpoint,
            )?,
            client_id: config.client_id,
            client_secret: config.client_secret,
            permissions: config.permissions,
            by_path: config.lazy_load_paths,
            method_is_scope: config.http_method_as_scope,
            enforcement: config.policy_enforcement_mode,
            denied: config.access_denied_redirect_uri,
            password_path: config.password_grant_token_generation_incoming_uri,
            most_form: config.max_req_body_size.min(MOST_FORM),
            access_lives: (
                config.access_token_expires_in.into(),
                config.access_token_expires_leeway.into(),
            ),
            refresh_lives: (
                config.refresh_token_expires_in.into(),
                config.refresh_token_expires_leeway.into(),
            ),
            own: Mutex::default(),
        };
        let hooks = Hooks::of(plugin).access();
        Ok(if reads_body { hooks.reading_body().done() } else { hooks.done() })
    }
}

impl Config {
    fn check(&self) -> Result<(), Invalid> {
        bounds::text("client_id", &self.client_id, 1..=100)?;
        if let Some(secret) = &self.client_secret {
            bounds::text("client_secret", secret.reveal(), 1..=100)?;
        }
        for (field, text, most) in [
            ("discovery", &self.discovery, 4096),
            ("token_endpoint", &self.token_endpoint, 4096),
            ("resource_registration_endpoint", &self.resource_registration_endpoint, 4096),
            ("access_denied_redirect_uri", &self.access_denied_redirect_uri, 2048),
            (
                "password_grant_token_generation_incoming_uri",
                &self.password_grant_token_generation_incoming_uri,
                4096,
            ),
        ] {
            if let Some(text) = text {
                bounds::text(field, text, 1..=most)?;
            }
        }
        for (at, permission) in self.permissions.iter().enumerate() {
            bounds::text(&format!("permissions[{at}]"), permission, 1..=100)?;
            if self.permissions[..at].contains(permission) {
                return Err(Invalid::new(format!("permissions[{at}]: it is there twice")));
            }
        }
        for (field, number, least) in [
            ("cache_ttl_seconds", self.cache_ttl_seconds, 1),
            ("access_token_expires_in", self.access_token_expires_in, 1),
            ("refresh_token_expires_in", self.refresh_token_expires_in, 1),
            ("timeout", self.timeout, 1000),
        ] {
            bounds::number(field, number, least..=u32::MAX)?;
        }
        bounds::number("max_req_body_size", self.max_req_body_size, 1..=u64::MAX)?;
        bounds::number("keepalive_timeout", self.keepalive_timeout, 1000..=u64::MAX)?;
        bounds::number("keepalive_pool", self.keepalive_pool, 1..=usize::MAX)?;
        if let Some(url) = &self.access_denied_redirect_uri
            && (!url.starts_with('/') || url.starts_with("//"))
        {
            web_url("access_denied_redirect_uri", url)?;
        }
        if let Some(path) = &self.password_grant_token_generation_incoming_uri {
            if !path.starts_with('/') {
                return Err(Invalid::new(
                    "password_grant_token_generation_incoming_uri: a path is expected",
                ));
            }
            if self.client_secret.is_none() {
                return Err(Invalid::new(
                    "client_secret: password_grant_token_generation_incoming_uri wants it",
                ));
            }
        }
        if self.discovery.is_none() && self.token_endpoint.is_none() {
            return Err(Invalid::new("token_endpoint: this or discovery is expected"));
        }
        if !self.lazy_load_paths {
            return Ok(());
        }
        if !self.permissions.is_empty() {
            return Err(Invalid::new("permissions: with lazy_load_paths they have no meaning"));
        }
        if self.client_secret.is_none() {
            return Err(Invalid::new("client_secret: lazy_load_paths wants it"));
        }
        match (&self.discovery, &self.resource_registration_endpoint) {
            (None, None) => Err(Invalid::new(
                "resource_registration_endpoint: with lazy_load_paths this or discovery is expected",
            )),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Access for AuthzKeycloak {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let path = exchange.uri().unwrap_or_default().into_owned();
        let is_for_password = self.password_path.as_ref().is_some_and(|own| own.as_bytes() == path);
        let decided = if is_for_password && exchange.request.method() == "POST" {
            let body = exchange.read_body(self.most_form).await?;
            self.token_by_password(&String::from_utf8_lossy(&body)).await
        } else {
            let line = exchange.request.text("authorization").filter(|line| !line.is_empty());
            let Some(line) = line else {
                let message = "Missing JWT token in request";
                return Ok(Flow::json(401, &json!({ "message": message })));
            };
            let token = match line.split_once(' ') {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
                _ => line,
            };
            self.decide(token, exchange.request.method(), &path).await
        };
        decided.or_else(|cause| failed(Self::NAME, &cause))
    }
}

impl AuthzKeycloak {
    /// May the bearer do this?
    async fn decide(&self, token: &str, method: &str, path: &[u8]) -> Result<Flow, Unavailable> {
        let looked_up;
        let permissions = match self.by_path {
            false => &self.permissions,
            true => {
                looked_up = self.resources_at(path).await?;
                &looked_up
            }
        };
        if permissions.is_empty() && self.enforcement == Enforcement::Enforcing {
            return Ok(self.denied(None));
        }
        let mut form = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Auma-ticket&audience={}&response_mode=decision",
            encode(&self.client_id)
        );
        for permission in permissions {
            let mark = if permission.contains('#') { ", " } else { "#" };
            let permission = match self.method_is_scope {
                true => encode(&format!("{permission}{mark}{method}")),
                false => encode(permission),
            };
            form.push_str(&format!("&permission={permission}"));
        }
        let mut question = Question::post("", "application/x-www-form-urlencoded", form);
        let Some(mut line) = lawful(format!("Bearer {token}").as_bytes()) else {
            return Ok(Flow::json(401, &json!({ "message": "Missing JWT token in request" })));
        };
        line.set_sensitive(true);
        question.headers.insert(AUTHORIZATION, line);
        let told = self.ask(self.tokens.as_ref(), "token_endpoint", &question).await?;
        match told.status {
            200 => {
                let decision: Option<Value> = serde_json::from_slice(&told.body).ok();
                match decision.and_then(|decision| decision["result"].as_bool()) {
                    Some(true) => Ok(Flow::Next),
                    Some(false) => Ok(self.denied(None)),
                    None => Err(Unavailable::because("token_endpoint gave no decision")),
                }
            }
            403 => Ok(self.denied(Some(told))),
            400..=499 => Ok(answer(relayed(told))),
            status => Err(Unavailable::because(&format!("token_endpoint answered {status}"))),
        }
    }

    /// The caller may not; in Keycloak's words, where it said some.
    fn denied(&self, told: Option<Answer>) -> Flow {
        if let Some(url) = &self.denied {
            return answer(Reply::empty(307).with("Location", url));
        }
        match told {
            Some(told) => answer(relayed(told)),
            None => Flow::json(
                403,
                &json!({ "error": "access_denied", "error_description": "not_authorized" }),
            ),
        }
    }

    /// Keycloak's names for the resources with this path.
    async fn resources_at(&self, path: &[u8]) -> Result<Vec<String>, Unavailable> {
        let own = self.own_token().await?;
        let path = String::from_utf8_lossy(path);
        let query = format!("?matchingUri=true&uri={}", encode(&path));
        let mut question = Question::get(query);
        let line = Redacted::new(format!("Bearer {}", own.reveal()));
        if let Some(mut line) = lawful(line.reveal().as_bytes()) {
            line.set_sensitive(true);
            question.headers.insert(AUTHORIZATION, line);
        }
        let field = "resource_registration_endpoint";
        let told = self.ask(self.resources.as_ref(), field, &question).await?;
        if told.status == 401 {
            *self.own.lock().await = None;
        }
        let names = serde_json::from_slice(&told.body).ok().filter(|_| told.status == 200);
        names.ok_or_else(|| Unavailable::because(&format!("{field} answered {}", told.status)))
    }

    /// Our own token, by which resources are looked up.
    async fn own_token(&self) -> Result<Redacted<String>, Unavailable> {
        let now = unix_seconds();
        let copy = |token: &Redacted<String>| Redacted::new(token.reveal().clone());
        // Whoever comes meanwhile waits for the same.
        let mut own = self.own.lock().await;
        if let Some(own) = own.as_ref().filter(|own| own.access_until > now) {
            return Ok(copy(&own.access));
        }
        let refresh = own.take().filter(|own| own.refresh_until > now).and_then(|own| own.refresh);
        let mut fresh = None;
        if let Some(refresh) = refresh {
            let more = format!("refresh_token&refresh_token={}", encode(refresh.reveal()));
            fresh = self.granted(&more, now).await?.ok();
        }
        let fresh = match fresh {
            Some(fresh) => fresh,
            None => self.granted("client_credentials", now).await?.map_err(|status| {
                Unavailable::because(&format!("token_endpoint gives us no token: {status}"))
            })?,
        };
        let token = copy(&fresh.access);
        *own = Some(fresh);
        Ok(token)
    }

    /// Tokens of our own for a grant; `Err` is the status with which Keycloak refuses.
    async fn granted(&self, grant: &str, now: i64) -> Result<Result<Own, u16>, Unavailable> {
        #[derive(Deserialize)]
        struct Told {
            access_token: String,
            expires_in: Option<i64>,
            refresh_token: Option<String>,
            refresh_expires_in: Option<i64>,
        }
        let form = format!("grant_type={grant}{}", self.ourselves());
        let question = Question::post("", "application/x-www-form-urlencoded", form);
        let answer = self.ask(self.tokens.as_ref(), "token_endpoint", &question).await?;
        let told = serde_json::from_slice::<Told>(&answer.body).ok();
        let Some(told) = told.filter(|_| answer.status == 200) else {
            return Ok(Err(answer.status));
        };
        let until = |told: Option<i64>, (lives, leeway): (i64, i64)| {
            now.saturating_add(told.unwrap_or(lives)).saturating_sub(leeway)
        };
        Ok(Ok(Own {
            access: Redacted::new(told.access_token),
            access_until: until(told.expires_in, self.access_lives),
            refresh: told.refresh_token.map(Redacted::new),
            refresh_until: until(told.refresh_expires_in, self.refresh_lives),
        }))
    }

    /// A token for a name and a password.
    async fn token_by_password(&self, form: &str) -> Result<Flow, Unavailable> {
        let (Some(name), Some(password)) =
            (argument(form, "username").next(), argument(form, "password").next())
        else {
            let message = "a form with username and password is expected";
            return Ok(Flow::json(400, &json!({ "message": message })));
        };
        let form = format!(
            "grant_type=password&username={}&password={}{}",
            encode(&name),
            encode(&password),
            self.ourselves()
        );
        let question = Question::post("", "application/x-www-form-urlencoded", form);
        let told = self.ask(self.tokens.as_ref(), "token_endpoint", &question).await?;
        match told.status {
            ..500 => Ok(answer(relayed(told).with("Cache-Control", "no-store"))),
            status => Err(Unavailable::because(&format!("token_endpoint answered {status}"))),
        }
    }

    fn ourselves(&self) -> String {
        let secret = self.client_secret.as_ref().map(|secret| encode(secret.reveal()));
        let secret = secret.map(|secret| format!("&client_secret={secret}")).unwrap_or_default();
        format!("&client_id={}{secret}", encode(&self.client_id))
    }

    /// Asks an endpoint: the settings', or the one that Keycloak's document names.
    async fn ask(
        &self,
        own: Option<&Endpoint>,
        field: &str,
        question: &Question,
    ) -> Result<Answer, Unavailable> {
        if let Some(own) = own {
            return own.ask(question).await;
        }
        let none = || Unavailable::because(&format!("the discovery document has no {field}"));
        let described = self.provider.as_ref().ok_or_else(none)?.described().await?;
        let endpoint = match field {
            "token_endpoint" => &described.token,
            _ => &described.resources,
        };
        endpoint.as_ref().ok_or_else(none)?.ask(question).await
    }
}

/// What Keycloak said, as the caller's answer.
fn relayed(told: Answer) -> Reply {
    Reply { status: told.status, body: told.body, ..Reply::default() }
        .with("Content-Type", "application/json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let long = "x".repeat(101);
        for (field, more) in [
            ("client_id", json!({"client_id": ""})),
            ("client_id", json!({"client_id": long})),
            ("client_secret", json!({"client_secret": ""})),
            ("token_endpoint", json!({"token_endpoint": null})),
            ("token_endpoint", json!({"token_endpoint": "keycloak"})),
            ("token_endpoint", json!({"token_endpoint": format!("http://a/{}", "x".repeat(4096))})),
            ("discovery", json!({"discovery": "ftp://a"})),
            ("discovery", json!({"discovery": ""})),
            ("uma-ticket", json!({"grant_type": "password"})),
            ("permissions[1]", json!({"permissions": ["a", ""]})),
            ("permissions[1]", json!({"permissions": ["a", "a"]})),
            ("permissions", json!({"permissions": ["a"], "lazy_load_paths": true})),
            ("client_secret", json!({"lazy_load_paths": true})),
            (
                "resource_registration_endpoint",
                json!({"lazy_load_paths": true, "client_secret": "s"}),
            ),
            ("PERMISSIVE", json!({"policy_enforcement_mode": "DISABLED"})),
            ("access_denied_redirect_uri", json!({"access_denied_redirect_uri": "//evil"})),
            ("access_denied_redirect_uri", json!({"access_denied_redirect_uri": ""})),
            (
                "password_grant_token_generation_incoming_uri",
                json!({"password_grant_token_generation_incoming_uri": "x", "client_secret": "s"}),
            ),
            ("client_secret", json!({"password_grant_token_generation_incoming_uri": "/x"})),
            ("max_req_body_size", json!({"max_req_body_size": 0})),
            ("cache_ttl_seconds", json!({"cache_ttl_seconds": 0})),
            ("access_token_expires_in", json!({"access_token_expires_in": 0})),
            ("refresh_token_expires_in", json!({"refresh_token_expires_in": 0})),
            ("timeout", json!({"timeout": 999})),
            ("keepalive_timeout", json!({"keepalive_timeout": 999})),
            ("keepalive_pool", json!({"keepalive_pool": 0})),
        ] {
            let mut config = json!({"client_id": "a", "token_endpoint": "http://a/token"});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let error = refused::<AuthzKeycloak>(config.clone());
            assert!(error.contains(field), "{config}: {error}");
        }
    }
}
