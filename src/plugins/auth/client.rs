//! `Client`: who we are for a provider, and how we prove it (OpenID Connect Core 1.0, section 9; RFC 7523).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::asking::lawful;
use super::browser::{encode, random};
use super::jose::Algorithm;
use super::provider::Unavailable;
use super::signing::SigningKey;
use crate::pipeline::{Invalid, Question, Redacted};
use crate::rt::unix_seconds;

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ClientAuth {
    #[default]
    ClientSecretBasic,
    ClientSecretPost,
    PrivateKeyJwt,
    ClientSecretJwt,
}

impl ClientAuth {
    fn name(self) -> &'static str {
        match self {
            Self::ClientSecretBasic => "client_secret_basic",
            Self::ClientSecretPost => "client_secret_post",
            Self::PrivateKeyJwt => "private_key_jwt",
            Self::ClientSecretJwt => "client_secret_jwt",
        }
    }
}

/// What a token that proves who we are is signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub(super) enum AssertionAlgorithm {
    #[serde(rename = "HS256")]
    Hs256,
    #[serde(rename = "HS512")]
    Hs512,
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "RS512")]
    Rs512,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "ES512")]
    Es512,
}

impl From<AssertionAlgorithm> for Algorithm {
    fn from(algorithm: AssertionAlgorithm) -> Self {
        match algorithm {
            AssertionAlgorithm::Hs256 => Self::Hs256,
            AssertionAlgorithm::Hs512 => Self::Hs512,
            AssertionAlgorithm::Rs256 => Self::Rs256,
            AssertionAlgorithm::Rs512 => Self::Rs512,
            AssertionAlgorithm::Es256 => Self::Es256,
            AssertionAlgorithm::Es512 => Self::Es512,
        }
    }
}

/// What the settings say of tokens that prove who we are.
pub(super) struct Assertion<'c> {
    pub(super) algorithm: Option<AssertionAlgorithm>,
    pub(super) audience: Option<String>,
    pub(super) expires_in: u32,
    pub(super) private_key: Option<&'c Redacted<String>>,
    pub(super) key_id: Option<String>,
}

/// A client of a provider.
pub(super) struct Client {
    pub(super) id: String,
    secret: Option<Redacted<String>>,
    private: Option<SigningKey>,
    shared: Option<SigningKey>,
    key_id: Option<String>,
    audience: Option<String>,
    lives: i64,
}

impl Client {
    pub(super) fn new(
        id: String,
        secret: Option<&Redacted<String>>,
        assertion: Assertion<'_>,
    ) -> Result<Self, Invalid> {
        if id.is_empty() {
            return Err(Invalid::new("client_id: at least one character is expected"));
        }
        if assertion.expires_in == 0 {
            return Err(Invalid::new("client_jwt_assertion_expires_in: at least 1 s is expected"));
        }
        let asked = assertion.algorithm.map(Algorithm::from);
        let (of_secret, of_key) = match asked {
            Some(algorithm) if algorithm.is_shared() => (Some(algorithm), None),
            asked => (None, asked),
        };
        let private = assertion.private_key.map(|pem| {
            let algorithm = of_key.unwrap_or(Algorithm::Rs256);
            SigningKey::private(algorithm, pem.reveal())
                .map_err(|why| Invalid::new(format!("client_rsa_private_key: {why}")))
        });
        let shared = secret.and_then(|secret| {
            SigningKey::shared(of_secret.unwrap_or(Algorithm::Hs256), secret.reveal())
        });
        Ok(Self {
            id,
            secret: secret.map(|secret| Redacted::new(secret.reveal().clone())),
            private: private.transpose()?,
            shared,
            key_id: assertion.key_id,
            audience: assertion.audience,
            lives: i64::from(assertion.expires_in),
        })
    }

    /// Can it prove itself so? Without a secret it is a public client, which names itself and no more.
    pub(super) fn can(&self, field: &str, auth: ClientAuth) -> Result<(), Invalid> {
        let missing = match auth {
            ClientAuth::PrivateKeyJwt if self.private.is_none() => "client_rsa_private_key",
            ClientAuth::ClientSecretJwt if self.shared.is_none() => "client_secret",
            ClientAuth::ClientSecretPost if self.secret.is_none() => "client_secret",
            _ => return Ok(()),
        };
        Err(Invalid::new(format!("{field}: {} wants {missing}", auth.name())))
    }

    /// Has it anything to prove itself with?
    pub(super) fn is_public(&self) -> bool {
        self.secret.is_none() && self.private.is_none()
    }

    /// Asks with a form, and proves who asks. `url` is whom the proof is made out to.
    pub(super) fn question(
        &self,
        auth: ClientAuth,
        url: &str,
        mut form: String,
    ) -> Result<Question, Unavailable> {
        let id = encode(&self.id);
        // Nothing may be in a form twice (RFC 6749, section 3.2).
        let name = match form.split('&').any(|pair| pair.starts_with("client_id=")) {
            true => String::new(),
            false => format!("&client_id={id}"),
        };
        let mut line = None;
        match (auth, &self.secret) {
            (ClientAuth::ClientSecretBasic, Some(secret)) => {
                // RFC 6749, section 2.3.1: both are encoded as in forms.
                let pair = Redacted::new(format!("{id}:{}", encode(secret.reveal())));
                line = Some(Redacted::new(format!("Basic {}", STANDARD.encode(pair.reveal()))));
            }
            (ClientAuth::ClientSecretPost, Some(secret)) => {
                let secret = encode(secret.reveal());
                form.push_str(&format!("{name}&client_secret={secret}"));
            }
            (ClientAuth::ClientSecretBasic | ClientAuth::ClientSecretPost, None) => {
                form.push_str(&name);
            }
            (ClientAuth::PrivateKeyJwt | ClientAuth::ClientSecretJwt, _) => {
                let assertion = self.assertion(auth, url)?;
                form.push_str(&format!(
                    "{name}&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion={}",
                    assertion.reveal()
                ));
            }
        }
        let mut question = Question::post("", "application/x-www-form-urlencoded", form);
        if let Some(mut line) = line.and_then(|line| lawful(line.reveal().as_bytes())) {
            line.set_sensitive(true);
            question.headers.insert(AUTHORIZATION, line);
        }
        Ok(question)
    }

    fn assertion(&self, auth: ClientAuth, url: &str) -> Result<Redacted<String>, Unavailable> {
        let key = match auth {
            ClientAuth::PrivateKeyJwt => &self.private,
            _ => &self.shared,
        };
        let none = || Unavailable::because("there is no key that proves who we are");
        let key = key.as_ref().ok_or_else(none)?;
        let mut header = json!({ "typ": "JWT", "alg": key.algorithm().name() });
        if let Some(id) = self.key_id.as_ref().filter(|_| auth == ClientAuth::PrivateKeyJwt) {
            header["kid"] = id.as_str().into();
        }
        let now = unix_seconds();
        let claims = json!({
            "iss": self.id, "sub": self.id, "aud": self.audience.as_deref().unwrap_or(url),
            "jti": random()?, "iat": now, "exp": now + self.lives,
        });
        key.token(&header, &claims).ok_or_else(none)
    }
}
