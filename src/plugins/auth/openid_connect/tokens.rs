//! `Tokens`: whether a token is the provider's, for us and for now; and whether its claims are enough.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderName;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::settings::{ClaimValidator, Config};
use crate::pipeline::{Build, Exchange, Invalid, Terms};
use crate::plugins::auth::asking::{copy_request, kept_server, readable_name};
use crate::plugins::auth::browser::encode;
use crate::plugins::auth::client::{Client, ClientAuth};
use crate::plugins::auth::jose::{Algorithm, Token, VerifyingKey, is_timely};
use crate::plugins::auth::provider::{Endpoint, Provider, Unavailable};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::unix_seconds;

/// How callers' tokens are verified.
enum Way {
    Keys,
    PublicKey,
    Introspection(Introspection),
    /// They are not looked at: people log in.
    None,
}

struct Introspection {
    /// The server that the settings name.
    own: Option<Endpoint>,
    auth: ClientAuth,
    along: Vec<HeaderName>,
    expiry_claim: String,
    keep_for: Duration,
    kept: Mutex<Kept>,
}

/// Answers about tokens, by the token's SHA-256.
type Kept = HashMap<[u8; 32], (Instant, Arc<Map<String, Value>>)>;

/// Answers that are kept at a time.
const MOST_KEPT: usize = 10_000;

/// What tokens must be.
pub(super) struct Tokens {
    provider: Arc<Provider>,
    client: Arc<Client>,
    way: Way,
    public_key: Option<VerifyingKey>,
    only: Option<Algorithm>,
    slack: f64,
    required_scopes: Vec<String>,
    claims: ClaimValidator,
    schema: Option<jsonschema::Validator>,
}

/// Why a caller is not let in.
pub(super) enum Refused {
    /// The token is bad: the stable words for the challenge.
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

impl Tokens {
    pub(super) fn new(
        config: &mut Config,
        provider: Arc<Provider>,
        client: Arc<Client>,
        terms: Terms,
        people_log_in: bool,
        build: &Build<'_>,
    ) -> Result<Self, Invalid> {
        if config.token_signing_alg_values_expected.is_some_and(Algorithm::is_shared) {
            return Err(Invalid::new(
                "token_signing_alg_values_expected: an algorithm with a public key is expected",
            ));
        }
        if config.public_key.is_some() && config.use_jwks {
            return Err(Invalid::new("use_jwks: one of use_jwks and public_key is expected"));
        }
        let schema = config.claim_schema.take().map(|schema| {
            let options =
                jsonschema::options().with_pattern_options(jsonschema::PatternOptions::regex());
            let compiled = options.build(&Value::Object(schema));
            compiled.map_err(|why| Invalid::new(format!("claim_schema: {why}")))
        });
        let public_key = config.public_key.as_deref().map(|pem| {
            VerifyingKey::from_pem(pem).map_err(|why| Invalid::new(format!("public_key: {why}")))
        });
        let way = if public_key.is_some() {
            Way::PublicKey
        } else if config.use_jwks {
            Way::Keys
        } else if people_log_in && config.introspection_endpoint.is_none() {
            Way::None
        } else {
            Way::Introspection(Introspection::new(config, &client, terms, build)?)
        };
        Ok(Self {
            provider,
            client,
            way,
            public_key: public_key.transpose()?,
            only: config.token_signing_alg_values_expected,
            slack: f64::from(config.iat_slack),
            required_scopes: std::mem::take(&mut config.required_scopes),
            claims: std::mem::take(&mut config.claim_validator),
            schema: schema.transpose()?,
        })
    }

    /// Are callers' tokens looked at?
    pub(super) fn are_taken(&self) -> bool {
        !matches!(self.way, Way::None)
    }

    /// Is more known of a token than it says itself?
    pub(super) fn are_asked_about(&self) -> bool {
        matches!(self.way, Way::Introspection(_))
    }

    /// The claims of a caller's token.
    pub(super) async fn verify(
        &self,
        token: &str,
        exchange: &Exchange,
    ) -> Result<Arc<Map<String, Value>>, Refused> {
        let claims = match &self.way {
            Way::Introspection(introspection) => introspection.ask(token, exchange, self).await?,
            Way::Keys | Way::PublicKey | Way::None => Arc::new(self.proved(token).await?),
        };
        self.are_enough(&claims)?;
        if let Some(schema) = &self.schema
            && !schema.is_valid(&Value::Object((*claims).clone()))
        {
            return Err(Refused::Token("the claims are not as they must be"));
        }
        Ok(claims)
    }

    async fn proved(&self, text: &str) -> Result<Map<String, Value>, Refused> {
        let token = Token::read(text).ok_or(Refused::Token("the token cannot be read"))?;
        if !self.is_signed(&token).await? {
            return Err(Refused::Token("the signature is not the provider's"));
        }
        if !self.is_timely(&token.claims) {
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

    async fn is_signed(&self, token: &Token<'_>) -> Result<bool, Unavailable> {
        match &self.public_key {
            Some(key) => Ok(token.algorithm.is_some_and(|algorithm| {
                self.only.is_none_or(|only| only == algorithm) && token.is_signed_by(key, algorithm)
            })),
            None => self.provider.has_signed(token, self.only).await,
        }
    }

    fn is_timely(&self, claims: &Map<String, Value>) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "seconds of this age are exact")]
        let now = unix_seconds() as f64;
        claims.contains_key("exp") && is_timely(claims, &["exp", "nbf", "iat"], self.slack, now)
    }

    /// The claims of an ID token that the provider has made out to us (OpenID Connect Core 1.0, section 3.1.3.7), with `nonce`
    /// where the login had one.
    pub(super) async fn identity(
        &self,
        text: &str,
        nonce: Option<&str>,
    ) -> Result<Option<Map<String, Value>>, Unavailable> {
        let Some(token) = Token::read(text) else { return Ok(None) };
        if !self.is_signed(&token).await? {
            return Ok(None);
        }
        let issuer = self.provider.described().await?.issuer.clone();
        let claims = token.claims;
        let is =
            |name: &str, wanted: &str| claims.get(name).and_then(Value::as_str) == Some(wanted);
        let id = &*self.client.id;
        let is_ours = match claims.get("aud") {
            Some(Value::String(one)) => one == id,
            Some(Value::Array(all)) => {
                all.iter().any(|one| one == id) && (all.len() == 1 || is("azp", id))
            }
            _ => false,
        };
        let is_listed = self.claims.issuer.valid_issuers.as_ref();
        let is_listed = is_listed.is_none_or(|issuers| issuers.contains(&issuer));
        let is_good = is_ours
            && (!claims.contains_key("azp") || is("azp", id))
            && is_listed
            && is("iss", &issuer)
            && self.is_timely(&claims)
            && claims.get("sub").and_then(Value::as_str).is_some_and(|sub| !sub.is_empty())
            && nonce.is_none_or(|nonce| is("nonce", nonce));
        Ok(is_good.then_some(claims))
    }

    /// Are the claims enough for this route?
    pub(super) fn are_enough(&self, claims: &Map<String, Value>) -> Result<(), Refused> {
        let scopes = claims.get("scope").and_then(Value::as_str).unwrap_or_default();
        self.have_scopes(scopes)?;
        let audience = &self.claims.audience;
        let named = claims.get(&audience.claim);
        if audience.required && named.is_none() {
            return Err(Refused::Forbidden("required audience claim not present"));
        }
        let id = &*self.client.id;
        let is_ours = match named {
            Some(Value::String(one)) => one == id,
            Some(Value::Array(all)) => all.iter().any(|one| one == id),
            _ => false,
        };
        if audience.match_with_client_id && !is_ours {
            return Err(Refused::Forbidden("mismatched audience"));
        }
        Ok(())
    }

    fn have_scopes(&self, scopes: &str) -> Result<(), Refused> {
        let has = |wanted: &String| scopes.split(' ').any(|scope| scope == wanted);
        match self.required_scopes.iter().all(has) {
            true => Ok(()),
            false => Err(Refused::Forbidden("required scopes not present")),
        }
    }

    /// Are the claims of a login as the schema wants them?
    pub(super) fn fit_schema(&self, login: impl FnOnce() -> Value) -> Result<(), Refused> {
        match &self.schema {
            Some(schema) if !schema.is_valid(&login()) => {
                Err(Refused::Token("the claims are not as they must be"))
            }
            _ => Ok(()),
        }
    }
}

impl Introspection {
    fn new(
        config: &Config,
        client: &Client,
        terms: Terms,
        build: &Build<'_>,
    ) -> Result<Self, Invalid> {
        if client.is_public() {
            return Err(Invalid::new(
                "client_secret: the provider is asked about tokens with it, unless use_jwks or public_key is given",
            ));
        }
        let auth = config.introspection_endpoint_auth_method;
        client.can("introspection_endpoint_auth_method", auth)?;
        let own = config.introspection_endpoint.as_deref().map(|url| {
            let server = kept_server(build, "introspection_endpoint", url, terms)?;
            Ok::<_, Invalid>(Endpoint::new(url, server))
        });
        let along = config.introspection_addon_headers.as_deref().unwrap_or_default();
        let along = along.iter().map(|name| readable_name("introspection_addon_headers", name));
        Ok(Self {
            own: own.transpose()?,
            auth,
            along: along.collect::<Result<_, _>>()?,
            expiry_claim: config.introspection_expiry_claim.clone(),
            keep_for: Duration::from_secs(u64::from(config.introspection_interval)),
            // Anew with each revision: what was said under other settings is not known.
            kept: Mutex::default(),
        })
    }

    /// What the provider says about the token (RFC 7662).
    async fn ask(
        &self,
        token: &str,
        exchange: &Exchange,
        tokens: &Tokens,
    ) -> Result<Arc<Map<String, Value>>, Refused> {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if let Some((until, claims)) = self.kept.lock().get(&sum)
            && *until > Instant::now()
        {
            return Ok(claims.clone());
        }
        let described;
        let endpoint = match &self.own {
            Some(own) => own,
            None => {
                described = tokens.provider.described().await?;
                described.introspection.as_ref().ok_or_else(|| {
                    Unavailable::because("the discovery document has no introspection_endpoint")
                })?
            }
        };
        let form = format!("token={}&token_type_hint=access_token", encode(token));
        let mut question = tokens.client.question(self.auth, &endpoint.url, form)?;
        for name in &self.along {
            // What proves who we are is not the caller's to add to.
            if !question.headers.contains_key(name) {
                copy_request(exchange, name, &mut question.headers);
            }
        }
        let answer = endpoint.ask(&question).await?;
        if answer.status != 200 {
            let why = format!("{} answered {}", endpoint.server.name(), answer.status);
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
}
