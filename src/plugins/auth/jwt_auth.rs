//! `jwt-auth`: callers are known by a signed token, which names the consumer whose key it is signed with.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Deserialize;

use super::entrance::{
    Entrance, cookie, directory, found, named, remove_argument, remove_cookie, token_in,
};
use super::jose::{Algorithm, Token, VerifyingKey, is_timely};
use crate::pipeline::{
    Build, Consumer, Directory, Exchange, Fault, Flow, Hooks, Invalid, Plugin, Redacted, Rewrite,
    argument,
};
use crate::rt::unix_millis;

/// Callers must present a token that a consumer has signed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The header that carries the token, with or without the word `Bearer`; it goes before the query.
    #[serde(default = "default_header")]
    #[schemars(length(min = 1))]
    header: String,
    /// The argument of the query that carries the token; it goes before the cookie.
    #[serde(default = "default_name")]
    #[schemars(length(min = 1))]
    query: String,
    /// The cookie that carries the token.
    #[serde(default = "default_name")]
    #[schemars(length(min = 1))]
    cookie: String,
    /// Takes the token off before the request goes upstream, wherever it stands.
    #[serde(default)]
    hide_credentials: bool,
    /// The claim that names the consumer by its `key`.
    #[serde(default = "default_claim")]
    #[schemars(length(min = 1))]
    key_claim_name: String,
    /// Makes the token's claims the caller's claims: what policies and plugins that run later go by.
    #[serde(default)]
    store_in_ctx: bool,
    /// Which of the claims `exp` and `nbf` are looked at, where the token has them; both when not given.
    #[serde(default)]
    #[schemars(extend("uniqueItems" = true))]
    claims_to_verify: Option<Vec<Claim>>,
    /// The consumer that callers without a valid token count as; without it they are refused.
    #[serde(default)]
    #[schemars(length(min = 1))]
    anonymous_consumer: Option<String>,
    /// What the refusal's `WWW-Authenticate` names.
    #[serde(default = "default_name")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r#"^[^"\\]+$"#))]
    realm: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Claim {
    Exp,
    Nbf,
}

fn default_header() -> String {
    "authorization".into()
}
fn default_name() -> String {
    "jwt".into()
}
fn default_claim() -> String {
    "key".into()
}

/// What a consumer or credential carries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    /// What the token's claim `key_claim_name` says, unique among all consumers.
    #[schemars(length(min = 1))]
    key: String,
    /// What tokens are signed with: this one algorithm and no other.
    #[serde(default)]
    algorithm: Algorithm,
    /// The secret that HS256, HS384 and HS512 sign with.
    #[serde(default)]
    #[schemars(length(min = 1))]
    secret: Option<Redacted<String>>,
    /// The secret is base64.
    #[serde(default)]
    base64_secret: bool,
    /// The public key as PEM, for the other algorithms.
    #[serde(default)]
    #[schemars(length(min = 1))]
    public_key: Option<String>,
    /// How long tokens live, in seconds, for those who sign them. Nothing here signs any: it has no effect, as in APISIX.
    #[serde(default = "default_exp", rename = "exp")]
    #[schemars(range(min = 1))]
    exp: u64,
    /// Seconds by which our clock and the signer's may differ.
    #[serde(default)]
    lifetime_grace_period: u32,
}

fn default_exp() -> u64 {
    86_400
}

/// A consumer's key, ready to verify.
pub(super) struct ReadyKey {
    algorithm: Algorithm,
    key: VerifyingKey,
    leeway: f64,
}

impl crate::pipeline::Credential for Credential {
    type Ready = ReadyKey;

    fn ready(self) -> Result<ReadyKey, Invalid> {
        named("key", &self.key, usize::MAX)?;
        if self.exp == 0 {
            return Err(Invalid::new("exp: at least 1 s is expected"));
        }
        let algorithm = self.algorithm;
        let name = algorithm.name();
        let key = match (algorithm.is_shared(), self.secret, self.public_key) {
            (true, Some(secret), None) => VerifyingKey::secret(match self.base64_secret {
                false => secret.reveal().clone().into_bytes(),
                true => STANDARD
                    .decode(secret.reveal())
                    .map_err(|_| Invalid::new("secret: base64 is expected"))?,
            }),
            (true, None, _) => {
                return Err(Invalid::new(format!("secret: {name} signs with a secret")));
            }
            (false, _, None) => {
                return Err(Invalid::new(format!("public_key: {name} is verified with one")));
            }
            (true, Some(_), Some(_)) => {
                return Err(Invalid::new(format!("public_key: {name} has none")));
            }
            (false, Some(_), Some(_)) => {
                return Err(Invalid::new(format!("secret: {name} has none")));
            }
            (false, None, Some(pem)) => VerifyingKey::from_pem(&pem)
                .map_err(|why| Invalid::new(format!("public_key: {why}")))?,
        };
        if !key.fits(algorithm) {
            let why = match algorithm {
                Algorithm::Es512 => "this build verifies no signatures with P-521",
                _ => "the public key is of another kind",
            };
            return Err(Invalid::new(format!("algorithm: {name}: {why}")));
        }
        if self.base64_secret && !algorithm.is_shared() {
            return Err(Invalid::new(format!("base64_secret: {name} has no secret")));
        }
        Ok(ReadyKey { algorithm, key, leeway: f64::from(self.lifetime_grace_period) })
    }
}

pub(super) struct JwtAuth {
    entrance: Entrance,
    header: String,
    query: String,
    cookie: String,
    hide_credentials: bool,
    key_claim: String,
    store: bool,
    claims: &'static [&'static str],
}

impl Plugin for JwtAuth {
    const NAME: &'static str = "jwt-auth";
    const PRIORITY: i32 = 2510;
    const EXAMPLE: &'static str = r#"{"key_claim_name": "iss", "hide_credentials": true}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        for (field, value) in [
            ("header", &config.header),
            ("query", &config.query),
            ("cookie", &config.cookie),
            ("key_claim_name", &config.key_claim_name),
        ] {
            named(field, value, usize::MAX)?;
        }
        let claims: &[&str] = match config.claims_to_verify.as_deref() {
            None => &["exp", "nbf"],
            Some([]) => &[],
            Some([Claim::Exp]) => &["exp"],
            Some([Claim::Nbf]) => &["nbf"],
            Some([one, other]) if one != other => &["exp", "nbf"],
            Some(_) => {
                return Err(Invalid::new("claims_to_verify: each claim is expected once"));
            }
        };
        let plugin = Self {
            entrance: Entrance::new("Bearer", &config.realm, config.anonymous_consumer)?,
            header: config.header,
            query: config.query,
            cookie: config.cookie,
            hide_credentials: config.hide_credentials,
            key_claim: config.key_claim_name,
            store: config.store_in_ctx,
            claims,
        };
        Ok(Hooks::of(plugin).rewrite().done())
    }
}

#[async_trait]
impl Rewrite for JwtAuth {
    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let directory = directory(exchange)?;
        let known = self.verify(exchange, &*directory);
        let consumer = known.map(|(consumer, claims)| {
            if self.store {
                exchange.claims = Some(Arc::new(claims));
            }
            consumer
        });
        let flow = self.entrance.end(exchange, consumer.map_err(Into::into))?;
        if self.hide_credentials && matches!(flow, Flow::Next) {
            exchange.request.remove(&self.header);
            remove_argument(exchange, &self.query);
            remove_cookie(&mut exchange.request, &self.cookie);
        }
        Ok(flow)
    }
}

type Known = (Arc<Consumer>, serde_json::Map<String, serde_json::Value>);

impl JwtAuth {
    fn verify(
        &self,
        exchange: &Exchange,
        directory: &dyn Directory,
    ) -> Result<Known, &'static str> {
        let request = &exchange.request;
        let query = request.query().unwrap_or_default();
        let text = token_in(request, &self.header)
            .map(Into::into)
            .or_else(|| argument(query, &self.query).next())
            .or_else(|| cookie(request, &self.cookie).map(Into::into));
        let text = text.ok_or("Missing JWT token in request")?;
        let token = Token::read(&text).ok_or("JWT token invalid")?;
        let key = token.claims.get(&self.key_claim).and_then(serde_json::Value::as_str);
        let key = key.ok_or("missing user key in JWT token")?;
        let (consumer, ready) =
            found::<ReadyKey>(directory, Self::NAME, key).ok_or("Invalid user key in JWT token")?;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of this age are exact")]
        let now = unix_millis() as f64 / 1000.0;
        if !token.is_signed_by(&ready.key, ready.algorithm)
            || !is_timely(&token.claims, self.claims, ready.leeway, now)
        {
            return Err("failed to verify jwt");
        }
        Ok((consumer, token.claims))
    }
}
