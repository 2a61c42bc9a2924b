//! `Provider`: an OpenID provider as its discovery document describes it, with its keys. Both are kept, and fetched again when they
//! are old or when a token names a key that is not among them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::browser::web_url;
use super::jose::{Algorithm, Token, VerifyingKey};
use crate::pipeline::{Answer, Invalid, Question, Server, Terms};

/// How long a discovery document is believed.
const DOCUMENT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Tokens that name unknown keys have keys fetched at most this often.
const KEYS_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What a provider says of itself (OpenID Connect Discovery 1.0, section 3).
#[derive(Debug, Default, Deserialize)]
struct Document {
    #[serde(default)]
    issuer: String,
    jwks_uri: Option<String>,
    introspection_endpoint: Option<String>,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    userinfo_endpoint: Option<String>,
    end_session_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    pushed_authorization_request_endpoint: Option<String>,
    resource_registration_endpoint: Option<String>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// The document with the servers that it names.
pub(super) struct Described {
    pub(super) issuer: String,
    keys: Option<Endpoint>,
    pub(super) introspection: Option<Endpoint>,
    pub(super) token: Option<Endpoint>,
    pub(super) userinfo: Option<Endpoint>,
    pub(super) revocation: Option<Endpoint>,
    pub(super) pushing: Option<Endpoint>,
    /// Keycloak's, where resources are known by paths (UMA 2.0).
    pub(super) resources: Option<Endpoint>,
    /// Where browsers are sent to log in.
    pub(super) authorization: Option<String>,
    /// Where browsers are sent to log out.
    pub(super) end_session: Option<String>,
    /// The provider says with each answer that it is the one (RFC 9207).
    pub(super) names_itself: bool,
    until: Instant,
}

/// A server with the URL that it was named by.
pub(super) struct Endpoint {
    pub(super) url: String,
    pub(super) server: Arc<Server>,
}

impl Endpoint {
    pub(super) fn new(url: &str, server: Arc<Server>) -> Self {
        Self { url: url.to_owned(), server }
    }

    /// Asks; no answer at all is the provider's failure.
    pub(super) async fn ask(&self, question: &Question) -> Result<Answer, Unavailable> {
        let answer = self.server.ask(question).await;
        answer
            .map_err(|why| Unavailable::because(&format!("{}: {}", self.server.name(), why.told())))
    }
}

struct Keys {
    all: Vec<(Option<String>, Option<Algorithm>, VerifyingKey)>,
    fetched: Instant,
}

/// An OpenID provider.
pub(super) struct Provider {
    discovery: Server,
    is_secure: bool,
    terms: Terms,
    keys_for: Duration,
    document_for: Duration,
    described: RwLock<Option<Arc<Described>>>,
    keys: RwLock<Option<Arc<Keys>>>,
    /// Whoever fetches.
    fetching: Mutex<()>,
}

/// The provider cannot be asked, or says nothing that can be used; the cause, for the log.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub(super) struct Unavailable {
    cause: String,
    /// What the caller gets.
    pub(super) status: u16,
}

impl Unavailable {
    pub(super) fn because(cause: &str) -> Self {
        Self { cause: cause.to_owned(), status: 503 }
    }

    /// It is not the provider, but where sessions are.
    pub(super) fn of_session(cause: &str) -> Self {
        Self { cause: cause.to_owned(), status: 500 }
    }
}

impl Provider {
    /// The provider whose discovery document is at `url`.
    pub(super) fn new(url: &str, terms: Terms, keys_for: Duration) -> Result<Self, Invalid> {
        Ok(Self {
            discovery: Server::new("discovery", url, terms)?,
            is_secure: url.starts_with("https://"),
            terms,
            keys_for,
            document_for: DOCUMENT_FOR,
            described: RwLock::default(),
            keys: RwLock::default(),
            fetching: Mutex::default(),
        })
    }

    /// The same, whose document is believed for so long.
    pub(super) fn believed_for(self, document_for: Duration) -> Self {
        Self { document_for, ..self }
    }

    /// What the provider says of itself.
    pub(super) async fn described(&self) -> Result<Arc<Described>, Unavailable> {
        let known = || self.described.read().clone().filter(|one| one.until > Instant::now());
        if let Some(known) = known() {
            return Ok(known);
        }
        let _fetching = self.fetching.lock().await;
        // Somebody else may have fetched it meanwhile.
        if let Some(known) = known() {
            return Ok(known);
        }
        let document: Document = fetch(&self.discovery).await?;
        if document.issuer.is_empty() {
            return Err(Unavailable::because("the discovery document names no issuer"));
        }
        let named = |field, url: &Option<String>| self.named(field, url.as_deref());
        let sent_to = |field, url: Option<String>| self.sent_to(field, url);
        let described = Arc::new(Described {
            issuer: document.issuer,
            keys: named("jwks_uri", &document.jwks_uri)?,
            introspection: named("introspection_endpoint", &document.introspection_endpoint)?,
            token: named("token_endpoint", &document.token_endpoint)?,
            userinfo: named("userinfo_endpoint", &document.userinfo_endpoint)?,
            revocation: named("revocation_endpoint", &document.revocation_endpoint)?,
            pushing: named(
                "pushed_authorization_request_endpoint",
                &document.pushed_authorization_request_endpoint,
            )?,
            resources: named(
                "resource_registration_endpoint",
                &document.resource_registration_endpoint,
            )?,
            authorization: sent_to("authorization_endpoint", document.authorization_endpoint)?,
            end_session: sent_to("end_session_endpoint", document.end_session_endpoint)?,
            names_itself: document.authorization_response_iss_parameter_supported,
            until: Instant::now() + self.document_for,
        });
        *self.described.write() = Some(described.clone());
        Ok(described)
    }

    /// A server that the document names. A plain one would take away what the document was protected by.
    fn named(&self, field: &str, url: Option<&str>) -> Result<Option<Endpoint>, Unavailable> {
        let Some(url) = url else { return Ok(None) };
        self.is_as_secure(field, url)?;
        let server = Server::new(field, url, self.terms).map_err(|why| told(&why))?;
        Ok(Some(Endpoint::new(url, Arc::new(server))))
    }

    /// A URL that browsers are sent to.
    fn sent_to(&self, field: &str, url: Option<String>) -> Result<Option<String>, Unavailable> {
        if let Some(url) = &url {
            self.is_as_secure(field, url)?;
            web_url(field, url).map_err(|why| told(&why))?;
        }
        Ok(url)
    }

    fn is_as_secure(&self, field: &str, url: &str) -> Result<(), Unavailable> {
        if self.is_secure && !url.starts_with("https://") {
            let why = format!("the discovery document's {field} is not https");
            return Err(Unavailable::because(&why));
        }
        Ok(())
    }

    /// Is the token signed by one of the provider's keys, with `only` where that is given?
    pub(super) async fn has_signed(
        &self,
        token: &Token<'_>,
        only: Option<Algorithm>,
    ) -> Result<bool, Unavailable> {
        let Some(algorithm) = token.algorithm.filter(|known| !known.is_shared()) else {
            return Ok(false);
        };
        if only.is_some_and(|only| only != algorithm) {
            return Ok(false);
        }
        let keys = self.keys(self.keys_for).await?;
        if keys.has_signed(token, algorithm) {
            return Ok(true);
        }
        // The provider may have new keys.
        if keys.knows(token) || keys.fetched.elapsed() < KEYS_AGAIN_AFTER {
            return Ok(false);
        }
        Ok(self.keys(KEYS_AGAIN_AFTER).await?.has_signed(token, algorithm))
    }

    async fn keys(&self, not_older: Duration) -> Result<Arc<Keys>, Unavailable> {
        let known = || self.keys.read().clone().filter(|keys| keys.fetched.elapsed() < not_older);
        if let Some(known) = known() {
            return Ok(known);
        }
        let described = self.described().await?;
        let server = described.keys.as_ref();
        let server =
            server.ok_or_else(|| Unavailable::because("the discovery document has no jwks_uri"))?;
        let _fetching = self.fetching.lock().await;
        if let Some(known) = known() {
            return Ok(known);
        }
        let mut set: Map<String, Value> = fetch(&server.server).await?;
        let Some(Value::Array(found)) = set.remove("keys") else {
            return Err(Unavailable::because("the provider's key set has no keys"));
        };
        let key = |key: &Value| {
            let key = key.as_object()?;
            let text = |name: &str| key.get(name).and_then(Value::as_str);
            let algorithm = match text("alg") {
                None => None,
                // A key for something else.
                Some(name) => Some(Algorithm::of(name)?),
            };
            Some((text("kid").map(str::to_owned), algorithm, VerifyingKey::from_jwk(key)?))
        };
        let all = found.iter().filter_map(key).collect();
        let keys = Arc::new(Keys { all, fetched: Instant::now() });
        *self.keys.write() = Some(keys.clone());
        Ok(keys)
    }
}

impl Keys {
    fn knows(&self, token: &Token<'_>) -> bool {
        token
            .key_id
            .as_ref()
            .is_some_and(|wanted| self.all.iter().any(|(id, _, _)| id.as_ref() == Some(wanted)))
    }

    fn has_signed(&self, token: &Token<'_>, algorithm: Algorithm) -> bool {
        let wanted = token.key_id.as_ref();
        self.all.iter().any(|(id, only, key)| {
            (wanted.is_none() || id.is_none() || id.as_ref() == wanted)
                && only.is_none_or(|only| only == algorithm)
                && token.is_signed_by(key, algorithm)
        })
    }
}

fn told(why: &Invalid) -> Unavailable {
    Unavailable::because(&format!("the discovery document: {why}"))
}

async fn fetch<T: for<'de> Deserialize<'de>>(server: &Server) -> Result<T, Unavailable> {
    let name = server.name();
    let unavailable = |why: String| Unavailable::because(&format!("{name}: {why}"));
    let answer = server.ask(&Question::get("")).await;
    let answer = answer.map_err(|why| unavailable(why.told()))?;
    if answer.status != 200 {
        return Err(unavailable(format!("answered {}", answer.status)));
    }
    serde_json::from_slice(&answer.body)
        .map_err(|_| unavailable("answered no JSON that can be used".into()))
}
