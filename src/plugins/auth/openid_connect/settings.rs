//! The settings of `openid-connect`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::pipeline::Redacted;
use crate::plugins::auth::asking::yes;
use crate::plugins::auth::client::{AssertionAlgorithm, ClientAuth};
use crate::plugins::auth::jose::Algorithm;
use crate::plugins::auth::session::Session;

/// Callers must present an access token of an OpenID provider, or log in there.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::plugins::auth) struct Config {
    /// Who we are for the provider.
    #[schemars(length(min = 1))]
    pub(super) client_id: String,
    /// Our secret at the provider. A client without one is public: it names itself and no more.
    #[serde(default)]
    pub(super) client_secret: Option<Redacted<String>>,
    /// The URL of the provider's discovery document.
    #[schemars(length(min = 1))]
    pub(super) discovery: String,
    /// Callers must present a token; nobody is sent to log in.
    #[serde(default)]
    pub(super) bearer_only: bool,
    /// What becomes of callers without a token and a session: `auth` sends them to log in, which `session` is needed for.
    #[serde(default)]
    pub(super) unauth_action: UnauthAction,
    /// How what is known of people who have logged in is kept. Nobody can log in without it.
    #[serde(default)]
    pub(super) session: Option<Session>,
    /// Where the provider sends people back to: a URL of ours on this route, or a path on the host that was asked. When not given
    /// it is the path that was asked with `/.apisix/redirect` behind it.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub(super) redirect_uri: Option<String>,
    /// What people are asked to agree to.
    #[serde(default = "default_scope")]
    #[schemars(length(min = 1))]
    pub(super) scope: String,
    /// Parameters beside those of the protocol when people are sent to the provider: texts, numbers or booleans.
    #[serde(default)]
    pub(super) authorization_params: Option<BTreeMap<String, Parameter>>,
    /// Proves to the provider that whoever brings the code has asked for it (RFC 7636, S256).
    #[serde(default)]
    pub(super) use_pkce: bool,
    /// Ties the ID token to the login.
    #[serde(default)]
    pub(super) use_nonce: bool,
    /// Hands the parameters of a login to the provider itself, and not by way of the browser (RFC 9126).
    #[serde(default)]
    pub(super) par: Option<Par>,
    /// How we prove who we are at the token and the revocation endpoint.
    #[serde(default)]
    pub(super) token_endpoint_auth_method: ClientAuth,
    /// With `private_key_jwt`: our private key as PEM, of RSA or P-256.
    #[serde(default)]
    pub(super) client_rsa_private_key: Option<Redacted<String>>,
    /// What the provider knows that key by.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub(super) client_rsa_private_key_id: Option<String>,
    /// What the token that proves who we are is signed with: `RS256` with a key, `HS256` with the secret when not given.
    #[serde(default)]
    pub(super) client_jwt_assertion_alg: Option<AssertionAlgorithm>,
    /// Whom that token is made out to: the endpoint that is asked when not given.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub(super) client_jwt_assertion_audience: Option<String>,
    /// Seconds that it is good for.
    #[serde(default = "default_assertion")]
    #[schemars(range(min = 1))]
    pub(super) client_jwt_assertion_expires_in: u32,
    /// The path that ends the session.
    #[serde(default = "default_logout")]
    #[schemars(regex(pattern = "^/"))]
    pub(super) logout_path: String,
    /// Where people are sent who have logged out.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub(super) post_logout_redirect_uri: Option<String>,
    /// Has the provider forget the session's tokens when somebody logs out (RFC 7009).
    #[serde(default)]
    pub(super) revoke_tokens_on_logout: bool,
    /// Gets a new access token when the session's is over. Where that is not possible the caller has to log in again.
    #[serde(default = "yes")]
    pub(super) renew_access_token_on_expiry: bool,
    /// Seconds that an access token lives where the provider does not say it: 3600 when not given.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(super) access_token_expires_in: Option<u32>,
    /// Seconds before its end at which an access token is renewed.
    #[serde(default)]
    pub(super) access_token_expires_leeway: u32,
    /// Seconds after which the provider is asked again, without a question to the person, who somebody is.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(super) refresh_session_interval: Option<u32>,
    /// Only `false`: to send people to log in who have a session never ends.
    #[serde(default)]
    pub(super) force_reauthorize: bool,
    /// What the refusal's `WWW-Authenticate` names.
    #[serde(default = "default_realm")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r#"^[^"\\]+$"#))]
    pub(super) realm: String,
    /// Verifies callers' tokens with the keys that the provider publishes.
    #[serde(default)]
    pub(super) use_jwks: bool,
    /// Verifies callers' tokens, and ID tokens, with this public key or certificate, as PEM.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub(super) public_key: Option<String>,
    /// The one algorithm that tokens may be signed with; any that fits the key when not given.
    #[serde(default)]
    pub(super) token_signing_alg_values_expected: Option<Algorithm>,
    /// Only `false`: a token that nobody signed proves nothing.
    #[serde(default)]
    pub(super) accept_none_alg: bool,
    /// A token is verified anew each time, whatever this says.
    #[serde(default)]
    #[expect(dead_code, reason = "both values are kept to")]
    pub(super) jwt_verification_cache_ignore: bool,
    /// Routes that name the same segment, and the same provider, share what is known of the provider.
    #[serde(default)]
    pub(super) cache_segment: Option<String>,
    /// Seconds by which our clock and the provider's may differ.
    #[serde(default = "default_slack")]
    pub(super) iat_slack: u32,
    /// Seconds for which the provider's keys are kept.
    #[serde(default = "default_keys")]
    #[schemars(range(min = 1))]
    pub(super) jwk_expires_in: u32,
    /// Where the provider is asked about tokens that are not verified with a key; the discovery document says it when not given.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub(super) introspection_endpoint: Option<String>,
    /// How we prove to the provider who we are when we ask about a token.
    #[serde(default)]
    pub(super) introspection_endpoint_auth_method: ClientAuth,
    /// Seconds for which an answer about a token is kept, while the token lives; with 0 each request is asked about.
    #[serde(default)]
    pub(super) introspection_interval: u32,
    /// The field of the answer that says when the token ends.
    #[serde(default = "default_expiry")]
    #[schemars(length(min = 1))]
    pub(super) introspection_expiry_claim: String,
    /// Headers of the request that go along when the provider is asked about a token.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub(super) introspection_addon_headers: Option<Vec<String>>,
    /// Scopes that a token, or a login, must have.
    #[serde(default)]
    pub(super) required_scopes: Vec<String>,
    /// What the claims must say.
    #[serde(default)]
    pub(super) claim_validator: ClaimValidator,
    /// A JSON Schema: of a token's claims; of a login's `user`, `access_token` and `id_token` as one object.
    #[serde(default)]
    pub(super) claim_schema: Option<Map<String, Value>>,
    /// Gives the upstream the access token.
    #[serde(default = "yes")]
    pub(super) set_access_token_header: bool,
    /// Gives it in `Authorization` instead of `X-Access-Token`.
    #[serde(default)]
    pub(super) access_token_in_authorization_header: bool,
    /// Gives the upstream the claims of the ID token, in `X-ID-Token`.
    #[serde(default = "yes")]
    pub(super) set_id_token_header: bool,
    /// Gives the upstream the ID token itself, in `X-Raw-ID-Token`.
    #[serde(default)]
    pub(super) set_raw_id_token_header: bool,
    /// Gives the upstream the refresh token, in `X-Refresh-Token`.
    #[serde(default)]
    pub(super) set_refresh_token_header: bool,
    /// Gives the upstream what the provider says about the token or the person, in `X-Userinfo`.
    #[serde(default = "yes")]
    pub(super) set_userinfo_header: bool,
    /// The provider's certificate must be one that the system trusts.
    #[serde(default = "yes")]
    pub(super) ssl_verify: bool,
    /// Seconds that the provider may take.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1))]
    pub(super) timeout: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum UnauthAction {
    #[default]
    Auth,
    Deny,
    Pass,
}

/// A parameter of a URL.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Parameter {
    Text(String),
    Number(serde_json::Number),
    Flag(bool),
}

impl std::fmt::Display for Parameter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
        }
    }
}

/// Hands the parameters of a login to the provider itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Par {
    /// Does it.
    #[serde(default)]
    pub(super) enabled: bool,
    /// Where to; the discovery document says it when not given.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub(super) endpoint: Option<String>,
    /// How we prove who we are there; as at the token endpoint when not given.
    #[serde(default)]
    pub(super) endpoint_auth_method: Option<ClientAuth>,
}

/// What the claims must say.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimValidator {
    /// Whom the token is for.
    #[serde(default)]
    pub(super) audience: Audience,
    /// Who issued it.
    #[serde(default)]
    pub(super) issuer: Issuer,
}

/// Whom the token is for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Audience {
    /// The claim that says it.
    #[serde(default = "default_audience")]
    pub(super) claim: String,
    /// The claim must be there.
    #[serde(default)]
    pub(super) required: bool,
    /// The claim must name `client_id`.
    #[serde(default)]
    pub(super) match_with_client_id: bool,
}

impl Default for Audience {
    fn default() -> Self {
        Self { claim: default_audience(), required: false, match_with_client_id: false }
    }
}

/// Who issued the token.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Issuer {
    /// One of these; the issuer of the discovery document when not given.
    #[serde(default)]
    pub(super) valid_issuers: Option<Vec<String>>,
}

fn default_scope() -> String {
    "openid".into()
}
fn default_logout() -> String {
    "/logout".into()
}
const fn default_assertion() -> u32 {
    60
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
