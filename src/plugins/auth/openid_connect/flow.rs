//! `Login`: people in browsers log in at an OpenID provider (OpenID Connect Core 1.0, section 3.1; PKCE, RFC 7636; PAR, RFC 9126).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::party::{Party, Told, none, user};
use super::renewal::{Renewals, Renewed};
use super::settings::{Config, UnauthAction};
use super::tokens::Tokens;
use crate::pipeline::{Build, Exchange, Invalid, Reply, Terms, argument};
use crate::plugins::auth::asking::kept_server;
use crate::plugins::auth::browser::{
    Callback, encode, page_to, random, redirect, target_of, web_url, with_arguments, with_cookies,
};
use crate::plugins::auth::client::{Client, ClientAuth};
use crate::plugins::auth::cookies::{Jar, Seal};
use crate::plugins::auth::entrance::is_same;
use crate::plugins::auth::jose::Token;
use crate::plugins::auth::provider::{Endpoint, Provider, Unavailable};
use crate::plugins::auth::session::{Found, Sessions};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::unix_seconds;

/// Behind the path that was asked, where the settings name no callback. APISIX's.
const SUFFIX: &str = "/.apisix/redirect";
/// Seconds that somebody may take to log in.
const LOGIN_SECONDS: i64 = 600;
/// Logins that one browser may have begun and not ended: one a tab.
const MOST_PENDING: usize = 4;
/// Seconds that an access token lives where nobody says it.
const TOKEN_SECONDS: u32 = 3600;

/// What a parameter of the settings must not replace: each is part of what makes a login safe.
const OURS: [&str; 11] = [
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "nonce",
    "redirect_uri",
    "request",
    "request_uri",
    "response_mode",
    "response_type",
    "scope",
    "state",
];

/// What a login needs.
pub(super) struct Login {
    party: Party,
    callback: Callback,
    logout: String,
    after_logout: Option<String>,
    scope: String,
    more: Vec<(String, String)>,
    pkce: bool,
    nonce: bool,
    pushes: Option<(Option<Endpoint>, ClientAuth)>,
    wants_user: bool,
    renews: bool,
    token_lives: i64,
    token_leeway: i64,
    revokes: bool,
    asks_again_after: Option<i64>,
    sessions: Sessions,
    pending: Jar,
    seal: Seal,
    renewals: Arc<Renewals>,
}

/// A login that was begun, as the browser keeps it.
#[derive(Serialize, Deserialize)]
struct Attempt {
    state: String,
    nonce: String,
    verifier: String,
    /// The callback, as the provider was told it.
    callback: String,
    /// Where the caller wanted to.
    target: String,
    until: i64,
    /// The person was not to be asked anything.
    silent: bool,
}

/// What is kept of somebody who is logged in.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(rename = "i")]
    id_token: String,
    #[serde(rename = "a")]
    access_token: String,
    #[serde(rename = "f", skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    /// When the access token is over.
    #[serde(rename = "e")]
    ends: i64,
    #[serde(rename = "p", skip_serializing_if = "Option::is_none")]
    user: Option<Value>,
    /// What was agreed to, where the provider says it.
    #[serde(rename = "s", skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    /// When the provider last said who it is.
    #[serde(rename = "t")]
    told: i64,
}

/// Who is logged in.
pub(super) struct Person {
    pub(super) claims: Map<String, Value>,
    pub(super) user: Option<Value>,
    pub(super) id_token: String,
    /// None where it is over and is not to be renewed.
    pub(super) access_token: Option<String>,
    pub(super) refresh_token: Option<String>,
    /// What the person has agreed to.
    pub(super) scope: String,
    /// Lines of `Set-Cookie` for the answer: what is kept has changed.
    pub(super) cookies: Vec<String>,
}

/// What becomes of a request without a token.
pub(super) enum Step {
    /// Somebody is logged in.
    Known(Box<Person>),
    /// The answer.
    Reply(Reply),
    /// Nobody is logged in.
    Nobody,
}

impl Login {
    /// What the settings say of logging in; nothing where nobody can.
    pub(super) fn new(
        config: &mut Config,
        client: &Arc<Client>,
        terms: Terms,
        build: &Build<'_>,
    ) -> Result<Option<Self>, Invalid> {
        let session = match (config.session.take(), config.bearer_only) {
            (Some(session), false) => session,
            (Some(_), true) => {
                return Err(Invalid::new("session: with bearer_only nobody has one"));
            }
            (None, false) if config.unauth_action == UnauthAction::Auth => {
                return Err(Invalid::new(
                    "session: people who log in have one; session, bearer_only or another unauth_action is expected",
                ));
            }
            (None, _) => return Ok(None),
        };
        let callback = match &config.redirect_uri {
            Some(url) => Callback::parse("redirect_uri", url)?,
            None => Callback::Behind(SUFFIX),
        };
        if !config.logout_path.starts_with('/') {
            return Err(Invalid::new("logout_path: a path is expected"));
        }
        if callback.is_at(config.logout_path.as_bytes()) {
            return Err(Invalid::new("logout_path: it is the path of redirect_uri"));
        }
        if let Some(url) = &config.post_logout_redirect_uri {
            web_url("post_logout_redirect_uri", url)?;
        }
        if client.is_public() && !config.use_pkce {
            return Err(Invalid::new("client_secret: without one use_pkce is expected"));
        }
        if !config.scope.split(' ').any(|scope| scope == "openid") {
            return Err(Invalid::new("scope: openid is expected among them"));
        }
        if config.refresh_session_interval == Some(0) || config.access_token_expires_in == Some(0) {
            return Err(Invalid::new(
                "refresh_session_interval and access_token_expires_in: at least 1 s is expected",
            ));
        }
        client.can("token_endpoint_auth_method", config.token_endpoint_auth_method)?;
        let more = config.authorization_params.take().into_iter().flatten();
        let more = more.map(|(name, value)| match OURS.contains(&&*name) {
            true => Err(Invalid::new(format!("authorization_params.{name}: it is ours to say"))),
            false => Ok((name, value.to_string())),
        });
        let pushes = config.par.take().filter(|par| par.enabled).map(|par| {
            let auth = par.endpoint_auth_method.unwrap_or(config.token_endpoint_auth_method);
            client.can("par.endpoint_auth_method", auth)?;
            let own = par.endpoint.map(|url| {
                let server = kept_server(build, "par.endpoint", &url, terms)?;
                Ok::<_, Invalid>(Endpoint::new(&url, server))
            });
            Ok::<_, Invalid>((own.transpose()?, auth))
        });
        let purpose = format!("openid-connect {} {}", config.discovery, client.id);
        let (sessions, pending, seal) = session.sessions(&purpose, build)?;
        Ok(Some(Self {
            party: Party { client: client.clone(), auth: config.token_endpoint_auth_method },
            callback,
            logout: config.logout_path.clone(),
            after_logout: config.post_logout_redirect_uri.take(),
            scope: config.scope.clone(),
            more: more.collect::<Result<_, _>>()?,
            pkce: config.use_pkce,
            nonce: config.use_nonce,
            pushes: pushes.transpose()?,
            wants_user: config.set_userinfo_header || config.claim_schema.is_some(),
            renews: config.renew_access_token_on_expiry,
            token_lives: config.access_token_expires_in.unwrap_or(TOKEN_SECONDS).into(),
            token_leeway: config.access_token_expires_leeway.into(),
            revokes: config.revoke_tokens_on_logout,
            asks_again_after: config.refresh_session_interval.map(i64::from),
            sessions,
            pending,
            seal,
            renewals: build.keep_group(&purpose, Renewals::default),
        }))
    }

    /// What becomes of a request.
    pub(super) async fn step(
        &self,
        exchange: &Exchange,
        provider: &Provider,
        tokens: &Tokens,
    ) -> Result<Step, Unavailable> {
        let now = unix_seconds();
        let path = exchange.uri().unwrap_or_default();
        if *path == *self.logout.as_bytes() {
            return self.leave(exchange, provider).await.map(Step::Reply);
        }
        if self.callback.is_at(&path) {
            return self.come_back(exchange, provider, tokens, now).await.map(Step::Reply);
        }
        match self.sessions.read::<Kept>(&exchange.request, now).await? {
            None => Ok(Step::Nobody),
            Some(found) => self.go_on(exchange, provider, tokens, found, now).await,
        }
    }

    /// Sends the caller to the provider.
    pub(super) async fn begin(
        &self,
        exchange: &Exchange,
        provider: &Provider,
    ) -> Result<Reply, Unavailable> {
        let attempts = self.attempts(exchange, unix_seconds());
        self.send_away(exchange, provider, attempts, target_of(exchange), false).await
    }

    async fn send_away(
        &self,
        exchange: &Exchange,
        provider: &Provider,
        mut attempts: Vec<Attempt>,
        target: String,
        silent: bool,
    ) -> Result<Reply, Unavailable> {
        let described = provider.described().await?;
        let server = described.authorization.as_deref();
        let server = server.ok_or_else(|| none("authorization_endpoint"))?;
        let attempt = Attempt {
            state: random()?,
            nonce: random()?,
            verifier: random()?,
            callback: self.callback.url(exchange),
            target,
            until: unix_seconds() + LOGIN_SECONDS,
            silent,
        };
        let asked = self.asked(&attempt);
        let asked = match &self.pushes {
            None => asked,
            Some((own, auth)) => {
                let own = own.as_ref().or(described.pushing.as_ref());
                let endpoint = own.ok_or_else(|| none("pushed_authorization_request_endpoint"))?;
                self.party.pushed(endpoint, *auth, asked).await?
            }
        };
        if attempts.len() >= MOST_PENDING {
            attempts.remove(0);
        }
        attempts.push(attempt);
        let cookies = self.keep_attempts(exchange, &attempts)?;
        Ok(redirect(&with_arguments(server, &asked), cookies))
    }

    /// The parameters of a login.
    fn asked(&self, attempt: &Attempt) -> String {
        let mut asked = format!(
            "response_type=code&client_id={}&redirect_uri={}&scope={}&state={}",
            encode(&self.party.client.id),
            encode(&attempt.callback),
            encode(&self.scope),
            attempt.state,
        );
        if self.nonce {
            asked.push_str(&format!("&nonce={}", attempt.nonce));
        }
        if self.pkce {
            let challenge = digest(&SHA256, attempt.verifier.as_bytes());
            let challenge = URL_SAFE_NO_PAD.encode(challenge);
            asked.push_str(&format!("&code_challenge={challenge}&code_challenge_method=S256"));
        }
        for (name, value) in &self.more {
            if !(attempt.silent && name == "prompt") {
                asked.push_str(&format!("&{}={}", encode(name), encode(value)));
            }
        }
        if attempt.silent {
            asked.push_str("&prompt=none");
        }
        asked
    }

    /// The logins that this browser has begun.
    fn attempts(&self, exchange: &Exchange, now: i64) -> Vec<Attempt> {
        let text = self.pending.text(&exchange.request);
        let opened = text.and_then(|text| self.seal.open(&self.pending.name, &text));
        let attempts = opened.and_then(|text| serde_json::from_slice::<Vec<Attempt>>(&text).ok());
        attempts.into_iter().flatten().filter(|attempt| attempt.until > now).collect()
    }

    fn keep_attempts(
        &self,
        exchange: &Exchange,
        attempts: &[Attempt],
    ) -> Result<Vec<String>, Unavailable> {
        if attempts.is_empty() {
            return Ok(self.pending.clear(exchange));
        }
        let text = serde_json::to_vec(attempts).ok();
        let text = text.and_then(|text| self.seal.close(&self.pending.name, &text));
        let lines = text.and_then(|text| self.pending.put(exchange, &text, Some(LOGIN_SECONDS)));
        lines.ok_or_else(|| Unavailable::of_session("a login cannot be kept in cookies"))
    }

    /// The provider has sent the caller back.
    async fn come_back(
        &self,
        exchange: &Exchange,
        provider: &Provider,
        tokens: &Tokens,
        now: i64,
    ) -> Result<Reply, Unavailable> {
        let query = exchange.request.query().unwrap_or_default();
        let asked = |name: &str| {
            let mut all = argument(query, name);
            // What is there twice is read otherwise by somebody else.
            all.next().filter(|_| all.next().is_none())
        };
        let state = asked("state").unwrap_or_default();
        let mut attempts = self.attempts(exchange, now);
        // Whoever was not sent from here is led into somebody else's session.
        let Some(at) = attempts.iter().position(|one| is_same(&one.state, &state)) else {
            return Ok(refusal("no login of this browser has this state", Vec::new()));
        };
        // It is good for once.
        let attempt = attempts.remove(at);
        let mut cookies = self.keep_attempts(exchange, &attempts)?;
        let described = provider.described().await?;
        let names_other = match asked("iss") {
            Some(issuer) => issuer != described.issuer,
            None => described.names_itself,
        };
        if names_other {
            return Ok(refusal("another provider answered", cookies));
        }
        if let Some(error) = asked("error") {
            const WANTS_A_PERSON: [&str; 4] = [
                "login_required",
                "interaction_required",
                "consent_required",
                "account_selection_required",
            ];
            if attempt.silent && WANTS_A_PERSON.contains(&&*error) {
                let target = attempt.target;
                return self.send_away(exchange, provider, attempts, target, false).await;
            }
            return Ok(refusal("the provider let nobody in", cookies));
        }
        let Some(code) = asked("code").filter(|code| !code.is_empty()) else {
            return Ok(refusal("the provider gave no code", cookies));
        };
        let mut form = format!(
            "grant_type=authorization_code&code={}&redirect_uri={}",
            encode(&code),
            encode(&attempt.callback)
        );
        if self.pkce {
            form.push_str(&format!("&code_verifier={}", attempt.verifier));
        }
        let Some(told) = self.party.exchange(&described, form).await? else {
            return Ok(refusal("the provider takes no such code", cookies));
        };
        let Some(id_token) = told.id_token.clone() else {
            return Ok(refusal("there is no ID token", cookies));
        };
        let nonce = self.nonce.then_some(&*attempt.nonce);
        let Some(claims) = tokens.identity(&id_token, nonce).await? else {
            return Ok(refusal("the ID token is not for us and now", cookies));
        };
        let user = match self.wants_user {
            false => None,
            true => match user(&described, &told.access_token, &claims).await? {
                Ok(user) => user,
                Err(why) => return Ok(refusal(why, cookies)),
            },
        };
        let kept = Kept {
            ends: self.ends(&told, now),
            id_token,
            access_token: told.access_token,
            refresh_token: told.refresh_token,
            user,
            scope: told.scope,
            told: now,
        };
        cookies.extend(self.sessions.begin(exchange, &kept, now).await?);
        Ok(match self.sessions.is_strict {
            true => page_to(&attempt.target, cookies),
            false => redirect(&attempt.target, cookies),
        })
    }

    /// Somebody has a session.
    async fn go_on(
        &self,
        exchange: &Exchange,
        provider: &Provider,
        tokens: &Tokens,
        mut found: Found<Kept>,
        now: i64,
    ) -> Result<Step, Unavailable> {
        let is_page = matches!(exchange.request.method(), "GET" | "HEAD");
        if is_page && self.asks_again_after.is_some_and(|after| found.value.told + after < now) {
            let (attempts, target) = (self.attempts(exchange, now), target_of(exchange));
            let away = self.send_away(exchange, provider, attempts, target, true).await;
            return away.map(Step::Reply);
        }
        let is_over = found.value.ends <= now;
        let cookies = if is_over && self.renews {
            let Some(renewed) = self.renew(provider, tokens, &found.value, now).await? else {
                return Ok(Step::Nobody);
            };
            renewed.put_into(&mut found.value);
            let changed = self.sessions.change(exchange, &found, now).await?;
            // Somebody has logged out meanwhile.
            let Some(lines) = changed else { return Ok(Step::Nobody) };
            lines
        } else {
            self.sessions.touch(exchange, &found, now).await?
        };
        let Kept { id_token, access_token, refresh_token, user, scope, .. } = found.value;
        // It was proved when the session began, and nobody has changed it since.
        let Some(token) = Token::read(&id_token) else { return Ok(Step::Nobody) };
        let person = Person {
            claims: token.claims,
            user,
            access_token: (!is_over || self.renews).then_some(access_token),
            refresh_token,
            scope: scope.unwrap_or_else(|| self.scope.clone()),
            cookies,
            id_token: id_token.clone(),
        };
        Ok(Step::Known(Box::new(person)))
    }

    /// New tokens for those that are over. `None`: there is no way to any.
    async fn renew(
        &self,
        provider: &Provider,
        tokens: &Tokens,
        kept: &Kept,
        now: i64,
    ) -> Result<Option<Arc<Renewed>>, Unavailable> {
        let Some(refresh) = kept.refresh_token.as_deref() else { return Ok(None) };
        let fetch = async {
            let form = format!("grant_type=refresh_token&refresh_token={}", encode(refresh));
            let described = provider.described().await?;
            let Some(told) = self.party.exchange(&described, form).await? else { return Ok(None) };
            if let Some(id_token) = &told.id_token {
                // OpenID Connect Core 1.0, section 12.2: of the same person.
                let old = Token::read(&kept.id_token).and_then(|mut old| old.claims.remove("sub"));
                let new = tokens.identity(id_token, None).await?;
                if new.is_none_or(|new| new.get("sub") != old.as_ref()) {
                    return Ok(None);
                }
            }
            let ends = self.ends(&told, now);
            Ok(Some(Renewed { told, ends }))
        };
        self.renewals.once(refresh, fetch).await
    }

    /// Ends the session, here and at the provider.
    async fn leave(&self, exchange: &Exchange, provider: &Provider) -> Result<Reply, Unavailable> {
        let found = self.sessions.read::<Kept>(&exchange.request, unix_seconds()).await?;
        let mut cookies = self.sessions.end(exchange).await?;
        cookies.extend(self.pending.clear(exchange));
        let kept = found.map(|found| found.value);
        // Whoever leaves has left here, whether or not the provider can be told.
        let described = match provider.described().await {
            Ok(described) => Some(described),
            Err(cause) => {
                tracing::warn!(%cause, "openid-connect: the provider is not told of a logout");
                None
            }
        };
        if let (true, Some(described), Some(kept)) = (self.revokes, &described, &kept) {
            let tokens = [
                ("refresh_token", kept.refresh_token.as_deref()),
                ("access_token", Some(&*kept.access_token)),
            ];
            self.party.revoke(described, tokens).await;
        }
        let Some(server) = described.as_ref().and_then(|one| one.end_session.as_deref()) else {
            return Ok(match &self.after_logout {
                Some(url) => redirect(url, cookies),
                None => with_cookies(Reply::text(200, "Logged out\n"), cookies),
            });
        };
        let mut asked = format!("client_id={}", encode(&self.party.client.id));
        if let Some(kept) = &kept {
            asked.push_str(&format!("&id_token_hint={}", encode(&kept.id_token)));
        }
        if let Some(url) = &self.after_logout {
            asked.push_str(&format!("&post_logout_redirect_uri={}", encode(url)));
        }
        Ok(redirect(&with_arguments(server, &asked), cookies))
    }

    /// When an access token has to be renewed.
    fn ends(&self, told: &Told, now: i64) -> i64 {
        let lives = told.expires_in.unwrap_or(self.token_lives);
        now.saturating_add(lives).saturating_sub(self.token_leeway)
    }

    /// Takes what is kept out of the request.
    pub(super) fn hide(&self, exchange: &mut Exchange) {
        self.sessions.hide(&mut exchange.request);
        self.pending.hide(&mut exchange.request);
    }
}

impl Renewed {
    /// Takes the place of what is over.
    fn put_into(&self, kept: &mut Kept) {
        let told = self.told.clone();
        kept.ends = self.ends;
        kept.access_token = told.access_token;
        // A provider that gives no new one leaves the old one good.
        kept.refresh_token = told.refresh_token.or(kept.refresh_token.take());
        kept.id_token = told.id_token.unwrap_or_else(|| std::mem::take(&mut kept.id_token));
        kept.scope = told.scope.or(kept.scope.take());
    }
}

/// A login that came to nothing. Why is for the log.
fn refusal(why: &str, cookies: Vec<String>) -> Reply {
    tracing::debug!(why, "openid-connect: a login failed");
    let reply = Reply::json(401, &json!({ "message": "the login failed" }));
    with_cookies(reply.with("Cache-Control", "no-store"), cookies)
}
