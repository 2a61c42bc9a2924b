//! `openid-connect`: callers are known by the access token of an OpenID provider, or log in there.

mod flow;
mod party;
mod renewal;
mod settings;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use self::flow::{Login, Person, Step};
use self::settings::{Config, UnauthAction};
use self::tokens::{Refused, Tokens};
use super::browser::answer;
use super::client::{Assertion, Client};
use super::cookies::{send_along, write_lines};
use super::provider::{Provider, Unavailable};
use crate::pipeline::{
    Build, Exchange, ExternalUser, Fault, Flow, Head, Hooks, Invalid, Plugin, Reply, ResponseHead,
    Rewrite, Terms,
};

pub(super) struct OpenidConnect {
    provider: Arc<Provider>,
    tokens: Tokens,
    login: Option<Login>,
    bearer_only: bool,
    unauth_action: UnauthAction,
    realm: String,
    set_access_token: bool,
    in_authorization: bool,
    set_id_token: bool,
    set_raw_id_token: bool,
    set_refresh_token: bool,
    set_userinfo: bool,
}

impl Plugin for OpenidConnect {
    const NAME: &'static str = "openid-connect";
    const PRIORITY: i32 = 2599;
    const EXAMPLE: &'static str = r#"{"client_id": "shop", "client_secret": "s3cret-of-the-shop", "discovery": "https://id.example/.well-known/openid-configuration", "redirect_uri": "https://shop.example/callback", "use_pkce": true, "session": {"secret": "a-secret-of-32-characters-or-more"}}"#;
    type Config = Config;

    fn compile(mut config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        let unfit = |c: char| matches!(c, '"' | '\\') || c.is_control();
        if !(1..=128).contains(&config.realm.len()) || config.realm.contains(unfit) {
            return Err(Invalid::new(
                "realm: 1 to 128 bytes without quotes, backslashes and control characters are expected",
            ));
        }
        if config.timeout == 0 || config.jwk_expires_in == 0 {
            return Err(Invalid::new("timeout and jwk_expires_in: at least 1 s is expected"));
        }
        if config.accept_none_alg {
            return Err(Invalid::new("accept_none_alg: a token that nobody signed proves nothing"));
        }
        if config.force_reauthorize {
            return Err(Invalid::new(
                "force_reauthorize: people who come back logged in would be sent away again",
            ));
        }
        let assertion = Assertion {
            algorithm: config.client_jwt_assertion_alg,
            audience: config.client_jwt_assertion_audience.take(),
            expires_in: config.client_jwt_assertion_expires_in,
            private_key: config.client_rsa_private_key.as_ref(),
            key_id: config.client_rsa_private_key_id.take(),
        };
        let client =
            Client::new(config.client_id.clone(), config.client_secret.as_ref(), assertion)?;
        let client = Arc::new(client);
        let terms = Terms {
            within: Duration::from_secs(u64::from(config.timeout)),
            verify: config.ssl_verify,
            keep: Some((Duration::from_secs(60), 5)),
        };
        let keys_for = Duration::from_secs(u64::from(config.jwk_expires_in));
        let provider = Provider::new(&config.discovery, terms, keys_for)?;
        let segment = config.cache_segment.as_deref().unwrap_or_default();
        let name = format!("provider {segment} {} {terms:?} {keys_for:?}", config.discovery);
        // Routes with the same provider ask it once for its keys.
        let provider = build.keep_group(&name, || provider);
        let login = Login::new(&mut config, &client, terms, build)?;
        let logs_in = login.is_some();
        let tokens = Tokens::new(&mut config, provider.clone(), client, terms, logs_in, build)?;
        let plugin = Self {
            provider,
            tokens,
            login,
            bearer_only: config.bearer_only,
            unauth_action: config.unauth_action,
            realm: config.realm,
            set_access_token: config.set_access_token_header,
            in_authorization: config.access_token_in_authorization_header,
            set_id_token: config.set_id_token_header,
            set_raw_id_token: config.set_raw_id_token_header,
            set_refresh_token: config.set_refresh_token_header,
            set_userinfo: config.set_userinfo_header,
        };
        let hooks = Hooks::of(plugin).rewrite();
        Ok(if logs_in { hooks.response_head().done() } else { hooks.done() })
    }
}

/// Headers that say who calls: nobody's to say but ours.
const OURS: [&str; 5] =
    ["X-Access-Token", "X-Userinfo", "X-ID-Token", "X-Refresh-Token", "X-Raw-ID-Token"];

#[async_trait]
impl Rewrite for OpenidConnect {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let token = presented(&exchange.request);
        for name in OURS {
            exchange.request.remove(name);
        }
        if let Some(login) = &self.login {
            let is_token = matches!(token, Presented::Token(_));
            if !(is_token && self.tokens.are_taken()) {
                return self.log_in(login, exchange).await;
            }
            login.hide(exchange);
        }
        let realm = &self.realm;
        let token = match token {
            Presented::Malformed => {
                let text = format!("Bearer realm=\"{realm}\", error=\"invalid_request\"");
                return Ok(challenge(400, &text));
            }
            Presented::None if self.bearer_only || self.unauth_action == UnauthAction::Deny => {
                return Ok(self.unknown());
            }
            Presented::None => return Ok(Flow::Next),
            Presented::Token(token) => token,
        };
        let claims = match self.tokens.verify(&token, exchange).await {
            Ok(claims) => claims,
            Err(why) => return Ok(self.refuse(why)),
        };
        self.give_access_token(exchange, &token);
        if self.set_userinfo && self.tokens.are_asked_about() {
            exchange.request.set("X-Userinfo", told(&claims).as_bytes());
        }
        exchange.notes.leave(ExternalUser(Value::Object((*claims).clone())));
        exchange.claims = Some(claims);
        Ok(Flow::Next)
    }
}

impl ResponseHead for OpenidConnect {
    fn response_head(&self, exchange: &mut Exchange) -> Result<(), Fault> {
        write_lines(exchange);
        Ok(())
    }
}

enum Presented {
    None,
    Malformed,
    Token(String),
}

/// The token of the request.
fn presented(head: &Head) -> Presented {
    let Some(line) = head.value("authorization") else {
        return match head.text("x-access-token") {
            Some(token) => Presented::Token(token.to_owned()),
            None => Presented::None,
        };
    };
    match std::str::from_utf8(line).ok().and_then(|line| line.split_once(' ')) {
        None => Presented::Malformed,
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Presented::Token(token.trim_matches(' ').to_owned())
        }
        Some(_) => Presented::None,
    }
}

/// Claims as the upstream reads them.
fn told(claims: &Map<String, Value>) -> String {
    STANDARD.encode(serde_json::to_string(claims).unwrap_or_default())
}

fn challenge(status: u16, text: &str) -> Flow {
    answer(Reply::empty(status).with("WWW-Authenticate", text))
}

impl OpenidConnect {
    /// Of a caller without a token: somebody who is logged in, or is sent to log in.
    async fn log_in(&self, login: &Login, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let step = match login.step(exchange, &self.provider, &self.tokens).await {
            Ok(Step::Nobody) if self.unauth_action == UnauthAction::Auth => {
                login.begin(exchange, &self.provider).await.map(Step::Reply)
            }
            step => step,
        };
        login.hide(exchange);
        let person = match step {
            Ok(Step::Known(person)) => *person,
            Ok(Step::Reply(reply)) => return Ok(answer(reply)),
            Ok(Step::Nobody) if self.unauth_action == UnauthAction::Pass => return Ok(Flow::Next),
            Ok(Step::Nobody) => return Ok(self.unknown()),
            Err(cause) => return Ok(self.refuse(Refused::Unavailable(cause))),
        };
        Ok(self.let_in(exchange, person))
    }

    /// Somebody is logged in: tells the upstream, where that is enough for this route.
    fn let_in(&self, exchange: &mut Exchange, person: Person) -> Flow {
        let Person { mut claims, user, id_token, access_token, refresh_token, scope, cookies } =
            person;
        send_along(exchange, cookies);
        let fits = self.tokens.fit_schema(|| {
            let mut login = json!({ "id_token": claims });
            if let Some(user) = &user {
                login["user"] = user.clone();
            }
            if let Some(token) = &access_token {
                login["access_token"] = token.as_str().into();
            }
            login
        });
        if let Err(why) = fits {
            return self.refuse(why);
        }
        let request = &mut exchange.request;
        if self.set_id_token {
            request.set("X-ID-Token", told(&claims).as_bytes());
        }
        if self.set_raw_id_token {
            request.set("X-Raw-ID-Token", id_token.as_bytes());
        }
        if let Some(token) = refresh_token.filter(|_| self.set_refresh_token) {
            request.set("X-Refresh-Token", token.as_bytes());
        }
        if let Some(Value::Object(user)) = user.as_ref().filter(|_| self.set_userinfo) {
            request.set("X-Userinfo", told(user).as_bytes());
        }
        if let Some(token) = access_token {
            self.give_access_token(exchange, &token);
        }
        // An ID token says nothing of scopes: they are what the person has agreed to.
        claims.entry("scope").or_insert_with(|| scope.into());
        if let Err(why) = self.tokens.are_enough(&claims) {
            return self.refuse(why);
        }
        let claims = Arc::new(claims);
        let user = user.unwrap_or_else(|| Value::Object((*claims).clone()));
        exchange.notes.leave(ExternalUser(user));
        exchange.claims = Some(claims);
        Flow::Next
    }

    fn give_access_token(&self, exchange: &mut Exchange, token: &str) {
        match (self.set_access_token, self.in_authorization) {
            (false, _) => {}
            (true, true) => {
                exchange.request.set("Authorization", format!("Bearer {token}").as_bytes());
            }
            (true, false) => exchange.request.set("X-Access-Token", token.as_bytes()),
        }
    }

    /// 401 for a caller of whom nothing is known.
    fn unknown(&self) -> Flow {
        challenge(401, &format!("Bearer realm=\"{}\"", self.realm))
    }

    fn refuse(&self, why: Refused) -> Flow {
        match why {
            Refused::Token(why) => challenge(
                401,
                &format!(
                    "Bearer realm=\"{}\", error=\"invalid_token\", error_description=\"{why}\"",
                    self.realm
                ),
            ),
            Refused::Forbidden(why) => Flow::json(403, &json!({ "error": why })),
            Refused::Unavailable(cause) => unavailable(&cause),
        }
    }
}

fn unavailable(cause: &Unavailable) -> Flow {
    tracing::warn!(%cause, "openid-connect: the provider, or where sessions are, cannot be asked");
    answer(Reply::empty(cause.status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let session = json!({"secret": "0123456789abcdef"});
        let login = |more: Value| {
            let mut config = json!({"bearer_only": false, "use_pkce": true, "redirect_uri": "https://shop.example/cb", "session": session});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            config
        };
        for (more, says) in [
            (json!({"bearer_only": false}), "session: people who log in"),
            (json!({"unauth_action": "auth", "bearer_only": false}), "session: people who log in"),
            (json!({"session": session}), "session: with bearer_only"),
            (login(json!({"redirect_uri": "cb"})), "redirect_uri"),
            (login(json!({"redirect_uri": "//evil/cb"})), "redirect_uri"),
            (login(json!({"redirect_uri": "https://u:p@a/cb"})), "redirect_uri"),
            (login(json!({"use_pkce": false})), "client_secret: without one use_pkce"),
            (login(json!({"logout_path": "x"})), "logout_path"),
            (login(json!({"logout_path": "/cb"})), "logout_path: it is the path of redirect_uri"),
            (login(json!({"post_logout_redirect_uri": "/bye"})), "post_logout_redirect_uri"),
            (login(json!({"scope": "email"})), "scope: openid"),
            (login(json!({"refresh_session_interval": 0})), "refresh_session_interval"),
            (login(json!({"access_token_expires_in": 0})), "access_token_expires_in"),
            (login(json!({"authorization_params": {"state": "x"}})), "authorization_params.state"),
            (
                login(json!({"authorization_params": {"redirect_uri": "x"}})),
                "authorization_params.redirect_uri",
            ),
            (login(json!({"authorization_params": {"a": {}}})), "Parameter"),
            (login(json!({"token_endpoint_auth_method": "none"})), "unknown variant `none`"),
            (
                login(json!({"token_endpoint_auth_method": "private_key_jwt"})),
                "token_endpoint_auth_method: private_key_jwt wants client_rsa_private_key",
            ),
            (
                login(json!({"token_endpoint_auth_method": "client_secret_jwt"})),
                "token_endpoint_auth_method: client_secret_jwt wants client_secret",
            ),
            (
                login(json!({"token_endpoint_auth_method": "client_secret_post"})),
                "token_endpoint_auth_method: client_secret_post wants client_secret",
            ),
            (
                login(json!({"par": {"enabled": true, "endpoint_auth_method": "private_key_jwt"}})),
                "par.endpoint_auth_method: private_key_jwt wants",
            ),
            (login(json!({"par": {"enabled": true, "endpoint": "x"}})), "par.endpoint"),
            (login(json!({"session": {"secret": "short"}})), "session.secret"),
            (json!({"client_rsa_private_key": "x"}), "client_rsa_private_key: expected a private"),
            (json!({"client_jwt_assertion_expires_in": 0}), "client_jwt_assertion_expires_in"),
            (json!({"client_jwt_assertion_alg": "none"}), "unknown variant `none`"),
            (json!({"client_id": ""}), "client_id"),
            (json!({"force_reauthorize": true}), "force_reauthorize"),
            (json!({"dpop": {"enabled": true}}), "unknown field `dpop`"),
            (json!({"proxy_opts": {}}), "unknown field `proxy_opts`"),
            (json!({"accept_unsupported_alg": true}), "unknown field `accept_unsupported_alg`"),
            (json!({"discovery": "id.example"}), "discovery"),
            (json!({"use_jwks": false}), "client_secret"),
            (json!({"public_key": "x"}), "use_jwks: one of"),
            (json!({"public_key": "x", "use_jwks": false}), "public_key: expected a public key"),
            (json!({"token_signing_alg_values_expected": "HS256"}), "token_signing_alg"),
            (json!({"token_signing_alg_values_expected": "none"}), "unknown variant `none`"),
            (json!({"claim_schema": {"type": 7}}), "claim_schema"),
            (json!({"realm": "\""}), "realm"),
            (json!({"timeout": 0}), "timeout"),
            (json!({"accept_none_alg": true}), "accept_none_alg: "),
            (
                json!({"use_jwks": false, "client_secret": "s", "introspection_addon_headers": ["a b"]}),
                "introspection_addon_headers",
            ),
        ] {
            let mut config = json!({"client_id": "a", "discovery": "https://id.example/d", "bearer_only": true, "use_jwks": true});
            for (name, value) in more.as_object().unwrap() {
                config[name] = value.clone();
            }
            let error = refused::<OpenidConnect>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
