//! `openid-connect`: callers are known by the access token of an OpenID provider.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderName;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::asking::{copy_request, kept_server, lawful, readable_name, yes};
use super::jose::{Algorithm, Token, VerifyingKey, is_timely};
use super::provider::{Provider, Unavailable};
use crate::pipeline::{
    Build, Exchange, ExternalUser, Fault, Flow, Head, Hooks, Invalid, Plugin, Question, Redacted,
    Reply, Rewrite, Server, Terms,
};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::unix_seconds;

/// Callers must present an access token of an OpenID provider.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Who we are for the provider.
    #[schemars(length(min = 1))]
    client_id: String,
    /// Our secret at the provider; introspection needs it.
    #[serde(default)]
    client_secret: Option<Redacted<String>>,
    /// The URL of the provider's discovery document.
    #[schemars(length(min = 1))]
    discovery: String,
    /// Callers must present a token. The login of people in browsers is not in this version: this or `unauth_action` is set.
    #[serde(default)]
    bearer_only: bool,
    /// What becomes of callers without a token, where `bearer_only` does not refuse them.
    #[serde(default)]
    unauth_action: UnauthAction,
    /// What the refusal's `WWW-Authenticate` names.
    #[serde(default = "default_realm")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r#"^[^"\\]+$"#))]
    realm: String,
    /// Verifies tokens with the keys that the provider publishes.
    #[serde(default)]
    use_jwks: bool,
    /// Verifies tokens with this public key or certificate, as PEM.
    #[serde(default)]
    #[schemars(length(min = 1))]
    public_key: Option<String>,
    /// The one algorithm that tokens may be signed with; any that fits the key when not given.
    #[serde(default)]
    token_signing_alg_values_expected: Option<Algorithm>,
    /// Seconds by which our clock and the provider's may differ.
    #[serde(default = "default_slack")]
    iat_slack: u32,
    /// Seconds for which the provider's keys are kept.
    #[serde(default = "default_keys")]
    #[schemars(range(min = 1))]
    jwk_expires_in: u32,
    /// Where the provider is asked about tokens that are not verified with a key; the discovery document says it when not given.
    #[serde(default)]
    #[schemars(length(min = 1))]
    introspection_endpoint: Option<String>,
    /// How we prove to the provider who we are when we ask about a token.
    #[serde(default)]
    introspection_endpoint_auth_method: ClientAuth,
    /// Seconds for which an answer about a token is kept, while the token lives; with 0 each request is asked about.
    #[serde(default)]
    introspection_interval: u32,
    /// The field of the answer that says when the token ends.
    #[serde(default = "default_expiry")]
    #[schemars(length(min = 1))]
    introspection_expiry_claim: String,
    /// Headers of the request that go along when the provider is asked about a token.
    #[serde(default)]
    #[schemars(length(min = 1))]
    introspection_addon_headers: Option<Vec<String>>,
    /// Scopes that a token must have.
    #[serde(default)]
    required_scopes: Vec<String>,
    /// What the claims must say.
    #[serde(default)]
    claim_validator: ClaimValidator,
    /// A JSON Schema that the claims must satisfy.
    #[serde(default)]
    claim_schema: Option<Map<String, Value>>,
    /// Gives the upstream the token.
    #[serde(default = "yes")]
    set_access_token_header: bool,
    /// Gives it in `Authorization` instead of `X-Access-Token`.
    #[serde(default)]
    access_token_in_authorization_header: bool,
    /// Gives the upstream what the provider said about the token, in `X-Userinfo`.
    #[serde(default = "yes")]
    set_userinfo_header: bool,
    /// The provider's certificate must be one that the system trusts.
    #[serde(default = "yes")]
    ssl_verify: bool,
    /// Seconds that the provider may take.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1))]
    timeout: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum UnauthAction {
    #[default]
    Auth,
    Deny,
    Pass,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ClientAuth {
    #[default]
    ClientSecretBasic,
    ClientSecretPost,
}

/// What the claims must say.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ClaimValidator {
    /// Whom the token is for.
    #[serde(default)]
    audience: Audience,
    /// Who issued it.
    #[serde(default)]
    issuer: Issuer,
}

/// Whom the token is for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Audience {
    /// The claim that says it.
    #[serde(default = "default_audience")]
    claim: String,
    /// The claim must be there.
    #[serde(default)]
    required: bool,
    /// The claim must name `client_id`.
    #[serde(default)]
    match_with_client_id: bool,
}

impl Default for Audience {
    fn default() -> Self {
        Self { claim: default_audience(), required: false, match_with_client_id: false }
    }
}

/// Who issued the token.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Issuer {
    /// One of these; the issuer of the discovery document when not given.
    #[serde(default)]
    valid_issuers: Option<Vec<String>>,
}

fn default_realm() -> String {
    "apisix".into()
}
const fn default_slack() -> u32 {
    120
}
const fn default_keys() -> u32 {
    86_400
}
fn default_expiry() -> String {
    "exp".into()
}
fn default_audience() -> String {
    "aud".into()
}
const fn default_timeout() -> u32 {
    3
}

/// How a token is verified.
enum Way {
    Keys,
    PublicKey(VerifyingKey),
    Introspection(Introspection),
}

struct Introspection {
    /// The server that the settings name.
    own: Option<Arc<Server>>,
    client_id: String,
    secret: Redacted<String>,
    auth: ClientAuth,
    along: Vec<HeaderName>,
    expiry_claim: String,
    keep_for: Duration,
    kept: Arc<Mutex<Kept>>,
}

/// Answers about tokens, by the token's SHA-256.
type Kept = HashMap<[u8; 32], (Instant, Arc<Map<String, Value>>)>;

/// Answers that are kept at a time.
const MOST_KEPT: usize = 10_000;

pub(super) struct OpenidConnect {
    provider: Arc<Provider>,
    way: Way,
    bearer_only: bool,
    unauth_action: UnauthAction,
    realm: String,
    only: Option<Algorithm>,
    slack: f64,
    required_scopes: Vec<String>,
    client_id: String,
    claims: ClaimValidator,
    schema: Option<jsonschema::Validator>,
    set_access_token: bool,
    in_authorization: bool,
    set_userinfo: bool,
}

impl Plugin for OpenidConnect {
    const NAME: &'static str = "openid-connect";
    const PRIORITY: i32 = 2599;
    const EXAMPLE: &'static str = r#"{"client_id": "shop", "discovery": "https://id.example/.well-known/openid-configuration", "bearer_only": true, "use_jwks": true}"#;
    type Config = Config;

    fn compile(config: Config, build: &Build<'_>) -> Result<Hooks, Invalid> {
        if !config.bearer_only && config.unauth_action == UnauthAction::Auth {
            return Err(Invalid::new(
                "unauth_action: auth (the login of people in browsers) is not in this version; bearer_only, deny or pass is expected",
            ));
        }
        let unfit = |c: char| matches!(c, '"' | '\\') || c.is_control();
        if !(1..=128).contains(&config.realm.len()) || config.realm.contains(unfit) {
            return Err(Invalid::new(
                "realm: 1 to 128 bytes without quotes, backslashes and control characters are expected",
            ));
        }
        if config.client_id.is_empty() {
            return Err(Invalid::new("client_id: at least one character is expected"));
        }
        if config.timeout == 0 || config.jwk_expires_in == 0 {
            return Err(Invalid::new("timeout and jwk_expires_in: at least 1 s is expected"));
        }
        if config.token_signing_alg_values_expected.is_some_and(Algorithm::is_shared) {
            return Err(Invalid::new(
                "token_signing_alg_values_expected: an algorithm with a public key is expected",
            ));
        }
        let terms = Terms {
            within: Duration::from_secs(u64::from(config.timeout)),
            verify: config.ssl_verify,
            keep: Some((Duration::from_secs(60), 5)),
        };
        let keys_for = Duration::from_secs(u64::from(config.jwk_expires_in));
        let provider = Provider::new(&config.discovery, terms, keys_for)?;
        let name = format!("provider {} {terms:?} {keys_for:?}", config.discovery);
        // Routes with the same provider ask it once for its keys.
        let provider = build.keep_group(&name, || provider);
        let schema = config.claim_schema.map(|schema| {
            let options =
                jsonschema::options().with_pattern_options(jsonschema::PatternOptions::regex());
            let compiled = options.build(&Value::Object(schema));
            compiled.map_err(|why| Invalid::new(format!("claim_schema: {why}")))
        });
        let way = match (config.public_key, config.use_jwks) {
            (Some(_), true) => {
                return Err(Invalid::new("use_jwks: one of use_jwks and public_key is expected"));
            }
            (Some(pem), false) => Way::PublicKey(
                VerifyingKey::from_pem(&pem)
                    .map_err(|why| Invalid::new(format!("public_key: {why}")))?,
            ),
            (None, true) => Way::Keys,
            (None, false) => {
                let secret = config.client_secret.ok_or_else(|| {
                    Invalid::new("client_secret: the provider is asked about tokens with it, unless use_jwks or public_key is given")
                })?;
                let own = config.introspection_endpoint.as_deref();
                let own = own.map(|url| kept_server(build, "introspection_endpoint", url, terms));
                let along = config.introspection_addon_headers.as_deref().unwrap_or_default();
                let along =
                    along.iter().map(|name| readable_name("introspection_addon_headers", name));
                Way::Introspection(Introspection {
                    own: own.transpose()?,
                    client_id: config.client_id.clone(),
                    secret,
                    auth: config.introspection_endpoint_auth_method,
                    along: along.collect::<Result<_, _>>()?,
                    expiry_claim: config.introspection_expiry_claim,
                    keep_for: Duration::from_secs(u64::from(config.introspection_interval)),
                    // Anew with each revision: what was said under other settings is not known.
                    kept: Arc::default(),
                })
            }
        };
        let plugin = Self {
            provider,
            way,
            bearer_only: config.bearer_only,
            unauth_action: config.unauth_action,
            realm: config.realm,
            only: config.token_signing_alg_values_expected,
            slack: f64::from(config.iat_slack),
            required_scopes: config.required_scopes,
            client_id: config.client_id,
            claims: config.claim_validator,
            schema: schema.transpose()?,
            set_access_token: config.set_access_token_header,
            in_authorization: config.access_token_in_authorization_header,
            set_userinfo: config.set_userinfo_header,
        };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

/// Headers that say who calls: nobody's to say but ours.
const OURS: [&str; 5] =
    ["X-Access-Token", "X-Userinfo", "X-ID-Token", "X-Refresh-Token", "X-Raw-ID-Token"];

/// Why a caller is not let in.
enum Refused {
    /// The token is bad: the stable word for the challenge.
    Token(&'static str),
    /// The token is good, and not for this.
    Forbidden(&'static str),
    /// The provider cannot be asked.
    Unavailable(Unavailable),
}

impl From<Unavailable> for Refused {
    fn from(cause: Unavailable) -> Self {
        Self::Unavailable(cause)
    }
}

#[async_trait]
impl Rewrite for OpenidConnect {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let token = presented(&exchange.request);
        for name in OURS {
            exchange.request.remove(name);
        }
        let realm = &self.realm;
        let challenge = |status, text: &str| {
            let reply = Reply::empty(status).with("WWW-Authenticate", text);
            Ok(Flow::Reply(Box::new(reply)))
        };
        let token = match token {
            Presented::Malformed => {
                return challenge(
                    400,
                    &format!("Bearer realm=\"{realm}\", error=\"invalid_request\""),
                );
            }
            Presented::None if self.bearer_only || self.unauth_action == UnauthAction::Deny => {
                return challenge(401, &format!("Bearer realm=\"{realm}\""));
            }
            Presented::None => return Ok(Flow::Next),
            Presented::Token(token) => token,
        };
        let claims = match self.verify(&token, exchange).await {
            Ok(claims) => claims,
            Err(Refused::Token(why)) => {
                let text = format!(
                    "Bearer realm=\"{realm}\", error=\"invalid_token\", error_description=\"{why}\""
                );
                return challenge(401, &text);
            }
            Err(Refused::Forbidden(why)) => return Ok(Flow::json(403, &json!({ "error": why }))),
            Err(Refused::Unavailable(cause)) => {
                tracing::warn!(%cause, "openid-connect: the provider cannot be asked");
                return Ok(Flow::Reply(Box::new(Reply::empty(503))));
            }
        };
        if self.set_access_token {
            match self.in_authorization {
                true => exchange.request.set("Authorization", format!("Bearer {token}").as_bytes()),
                false => exchange.request.set("X-Access-Token", token.as_bytes()),
            }
        }
        if self.set_userinfo && matches!(self.way, Way::Introspection(_)) {
            let told = STANDARD.encode(Value::Object((*claims).clone()).to_string());
            exchange.request.set("X-Userinfo", told.as_bytes());
        }
        exchange.notes.leave(ExternalUser(Value::Object((*claims).clone())));
        exchange.claims = Some(claims);
        Ok(Flow::Next)
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

impl OpenidConnect {
    async fn verify(
        &self,
        token: &str,
        exchange: &Exchange,
    ) -> Result<Arc<Map<String, Value>>, Refused> {
        let claims = match &self.way {
            Way::Introspection(introspection) => {
                introspection.ask(token, exchange, &self.provider).await?
            }
            Way::Keys | Way::PublicKey(_) => Arc::new(self.proved(token).await?),
        };
        self.judge(&claims)?;
        Ok(claims)
    }

    async fn proved(&self, text: &str) -> Result<Map<String, Value>, Refused> {
        let token = Token::read(text).ok_or(Refused::Token("the token cannot be read"))?;
        let is_signed = match &self.way {
            Way::PublicKey(key) => token.algorithm.is_some_and(|algorithm| {
                self.only.is_none_or(|only| only == algorithm) && token.is_signed_by(key, algorithm)
            }),
            _ => self.provider.has_signed(&token, self.only).await?,
        };
        if !is_signed {
            return Err(Refused::Token("the signature is not the provider's"));
        }
        #[expect(clippy::cast_precision_loss, reason = "seconds of this age are exact")]
        let now = unix_seconds() as f64;
        if !token.claims.contains_key("exp")
            || !is_timely(&token.claims, &["exp", "nbf", "iat"], self.slack, now)
        {
            return Err(Refused::Token("the token is not valid now"));
        }
        let issuer = token.claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        let is_issuer = match &self.claims.issuer.valid_issuers {
            Some(issuers) => issuers.iter().any(|known| known == issuer),
            None => self.provider.described().await?.issuer == issuer,
        };
        if !is_issuer {
            return Err(Refused::Token("the token is another issuer's"));
        }
        Ok(token.claims)
    }

    fn judge(&self, claims: &Map<String, Value>) -> Result<(), Refused> {
        let scopes = claims.get("scope").and_then(Value::as_str).unwrap_or_default();
        let has = |wanted: &String| scopes.split(' ').any(|scope| scope == wanted);
        if !self.required_scopes.iter().all(has) {
            return Err(Refused::Forbidden("required scopes not present"));
        }
        let audience = &self.claims.audience;
        let named = claims.get(&audience.claim);
        if audience.required && named.is_none() {
            return Err(Refused::Forbidden("required audience claim not present"));
        }
        let is_ours = match named {
            Some(Value::String(one)) => *one == self.client_id,
            Some(Value::Array(all)) => all.iter().any(|one| *one == *self.client_id),
            _ => false,
        };
        if audience.match_with_client_id && !is_ours {
            return Err(Refused::Forbidden("mismatched audience"));
        }
        if let Some(schema) = &self.schema
            && !schema.is_valid(&Value::Object(claims.clone()))
        {
            return Err(Refused::Token("the claims are not as they must be"));
        }
        Ok(())
    }
}

impl Introspection {
    /// What the provider says about the token (RFC 7662).
    async fn ask(
        &self,
        token: &str,
        exchange: &Exchange,
        provider: &Provider,
    ) -> Result<Arc<Map<String, Value>>, Refused> {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if let Some((until, claims)) = self.kept.lock().get(&sum)
            && *until > Instant::now()
        {
            return Ok(claims.clone());
        }
        let question = self.question(token, exchange);
        let described;
        let server = match &self.own {
            Some(own) => own,
            None => {
                described = provider.described().await?;
                described.introspection.as_ref().ok_or_else(|| {
                    Unavailable::because("the discovery document has no introspection_endpoint")
                })?
            }
        };
        let answer = server.ask(&question).await;
        let answer = answer.map_err(|why| Unavailable::because(&why.told()))?;
        if answer.status != 200 {
            let why = format!("{} answered {}", server.name(), answer.status);
            return Err(Unavailable::because(&why).into());
        }
        let claims: Map<String, Value> = serde_json::from_slice(&answer.body)
            .map_err(|_| Unavailable::because("the answer about a token is no JSON object"))?;
        if claims.get("active") != Some(&Value::Bool(true)) {
            return Err(Refused::Token("the token is not active"));
        }
        let now = unix_seconds();
        let ends = claims.get(&self.expiry_claim).map(|at| at.as_i64().unwrap_or(0));
        if ends.is_some_and(|at| at <= now) {
            return Err(Refused::Token("the token is not valid now"));
        }
        let claims = Arc::new(claims);
        let left = ends
            .map_or(self.keep_for, |at| self.keep_for.min(Duration::from_secs(at.abs_diff(now))));
        if !left.is_zero() {
            let mut kept = self.kept.lock();
            if kept.len() >= MOST_KEPT {
                kept.retain(|_, (until, _)| *until > Instant::now());
            }
            if kept.len() < MOST_KEPT {
                kept.insert(sum, (Instant::now() + left, claims.clone()));
            }
        }
        Ok(claims)
    }

    fn question(&self, token: &str, exchange: &Exchange) -> Question {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let (id, secret) = (encode(&self.client_id), encode(self.secret.reveal()));
        let mut form = format!("token={}&token_type_hint=access_token", encode(token));
        if self.auth == ClientAuth::ClientSecretPost {
            form.push_str(&format!("&client_id={id}&client_secret={secret}"));
        }
        let mut question = Question::post("", "application/x-www-form-urlencoded", form);
        for name in &self.along {
            copy_request(exchange, name, &mut question.headers);
        }
        if self.auth == ClientAuth::ClientSecretBasic {
            // RFC 6749 section 2.3.1: both are encoded as in forms.
            let basic = format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
            question.headers.extend(lawful(basic.as_bytes()).map(|mut basic| {
                basic.set_sensitive(true);
                (AUTHORIZATION, basic)
            }));
        }
        question
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::refused;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (more, says) in [
            (json!({"bearer_only": false}), "unauth_action: auth"),
            (json!({"unauth_action": "auth", "bearer_only": false}), "unauth_action: auth"),
            (json!({"discovery": "id.example"}), "discovery"),
            (json!({"use_jwks": false}), "client_secret"),
            (json!({"public_key": "x"}), "use_jwks: one of"),
            (json!({"public_key": "x", "use_jwks": false}), "public_key: expected a public key"),
            (json!({"token_signing_alg_values_expected": "HS256"}), "token_signing_alg"),
            (json!({"token_signing_alg_values_expected": "none"}), "unknown variant `none`"),
            (json!({"claim_schema": {"type": 7}}), "claim_schema"),
            (json!({"realm": "\""}), "realm"),
            (json!({"timeout": 0}), "timeout"),
            (json!({"accept_none_alg": true}), "unknown field `accept_none_alg`"),
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
