//! Google Secret Manager: a service account's signed claim, the access token that it is exchanged for (RFC 7523), and the newest
//! version of a secret.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use rustls::SignatureScheme;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::Error;
use super::environment::Environment;
use super::fetched::Fetched;
use super::transport::{Answer, Question, Transport, encoded, secret_header, url};
use crate::model::{GcpAccount, GcpSecrets, Redacted};
use crate::rt::Clock;
use crate::rt::crypto::tls_signing_key;

/// Seconds that a claim holds: Google takes no longer ones.
const CLAIM_SECONDS: i64 = 3600;
/// Seconds before its end at which a token is replaced.
const EARLY_SECONDS: i64 = 60;

/// A project of Google Cloud.
pub(super) struct Gcp {
    declared: GcpSecrets,
    token: Mutex<Option<Token>>,
}

#[derive(Clone)]
struct Token {
    text: Redacted<String>,
    until: i64,
}

impl Gcp {
    pub(super) fn new(declared: GcpSecrets) -> Self {
        Self { declared, token: Mutex::new(None) }
    }

    pub(super) async fn fetch(
        &self,
        name: &str,
        environment: &Environment,
        transport: &Transport,
        clock: &Clock,
    ) -> Result<Fetched, Error> {
        if name.contains('/') {
            return Err(Error::Absent(format!(
                "Google's names of secrets have no slash in them, as {name:?} has"
            )));
        }
        let account = self.account(environment).await?;
        let known = self.token.lock().clone().filter(|token| token.until > clock.now());
        let is_known = known.is_some();
        let token = match known {
            Some(token) => token,
            None => self.new_token(&account, transport, clock).await?,
        };
        let mut answer = access(&account, name, &token, transport).await?;
        // It may have been withdrawn before its time.
        if answer.status == StatusCode::UNAUTHORIZED && is_known {
            let token = self.new_token(&account, transport, clock).await?;
            answer = access(&account, name, &token, transport).await?;
        }
        match answer.status {
            StatusCode::OK => payload(name, &answer),
            StatusCode::NOT_FOUND => Err(Error::Absent(format!(
                "{} has no version of the secret {name} in project {}",
                answer.server, account.project_id
            ))),
            _ => Err(answer.refused(&told(&answer))),
        }
    }

    async fn account(&self, environment: &Environment) -> Result<GcpAccount, Error> {
        match (&self.declared.auth_config, &self.declared.auth_file) {
            (Some(account), None) => {
                let key = account.private_key.reveal();
                let private_key = environment.own("auth_config.private_key", key)?;
                Ok(GcpAccount { private_key, ..account.clone() })
            }
            (None, Some(path)) => of_file(path).await,
            (Some(_), Some(_)) | (None, None) => Err(Error::Field {
                field: "auth_config",
                why: "exactly one of auth_config and auth_file is expected".into(),
            }),
        }
    }

    async fn new_token(
        &self,
        account: &GcpAccount,
        transport: &Transport,
        clock: &Clock,
    ) -> Result<Token, Error> {
        let now = clock.now();
        let claim = claim(account, now)?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
        let answer = transport
            .ask(Question {
                method: Method::POST,
                url: url("auth_config.token_uri", &account.token_uri, "")?,
                headers,
                body: format!("grant_type={grant}&assertion={}", claim.reveal()).into(),
            })
            .await?;
        if answer.status != StatusCode::OK {
            return Err(answer.refused(&told(&answer)));
        }
        let Granted { access_token, expires_in } = answer.json("an access token")?;
        let token = Token { text: access_token, until: now + expires_in - EARLY_SECONDS };
        *self.token.lock() = Some(token.clone());
        Ok(token)
    }
}

/// A service account's file as Google gives it: it says more than we need.
async fn of_file(path: &str) -> Result<GcpAccount, Error> {
    let text = tokio::fs::read(path).await.map(Zeroizing::new);
    let text = text.map_err(|source| Error::Read { path: path.into(), source })?;
    // Never the cause: it could show a part of the key.
    let wrong = || Error::File {
        path: path.into(),
        why: "expected a service account's JSON with client_email, private_key and project_id"
            .into(),
    };
    let mut fields: Map<String, Value> = serde_json::from_slice(&text).map_err(|_| wrong())?;
    let known = ["client_email", "private_key", "project_id", "token_uri", "scope", "entries_uri"];
    fields.retain(|name, _| known.contains(&name.as_str()));
    serde_json::from_value(Value::Object(fields)).map_err(|_| wrong())
}

/// The account's signed claim: a JWT with RS256 (RFC 7523, section 3).
fn claim(account: &GcpAccount, now: i64) -> Result<Redacted<String>, Error> {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = json!({
        "iss": account.client_email,
        "scope": account.scope.join(" "),
        "aud": account.token_uri,
        "iat": now,
        "exp": now + CLAIM_SECONDS,
    });
    let signed = format!("{}.{}", part(&json!({"alg": "RS256", "typ": "JWT"})), part(&body));
    let key = PrivateKeyDer::from_pem_slice(account.private_key.reveal().as_bytes());
    let key = Zeroizing::new(key.map_err(|_| Error::Key)?);
    let key = tls_signing_key(&key).map_err(|_| Error::Key)?;
    let signer = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).ok_or(Error::Key)?;
    let signature = signer.sign(signed.as_bytes()).map_err(|_| Error::Key)?;
    Ok(Redacted::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
}

async fn access(
    account: &GcpAccount,
    name: &str,
    token: &Token,
    transport: &Transport,
) -> Result<Answer, Error> {
    let project = encoded(&account.project_id);
    let path = format!("/projects/{project}/secrets/{}/versions/latest:access", encoded(name));
    let mut headers = HeaderMap::new();
    let bearer = Redacted::new(format!("Bearer {}", token.text.reveal()));
    headers.insert(AUTHORIZATION, secret_header("auth_config", bearer.reveal())?);
    transport
        .ask(Question {
            method: Method::GET,
            url: url("auth_config.entries_uri", &account.entries_uri, &path)?,
            headers,
            body: bytes::Bytes::new(),
        })
        .await
}

fn payload(name: &str, answer: &Answer) -> Result<Fetched, Error> {
    #[derive(Deserialize)]
    struct Version {
        payload: Payload,
    }
    #[derive(Deserialize)]
    struct Payload {
        data: Redacted<String>,
    }
    let expected = "a version of a secret";
    let Version { payload } = answer.json(expected)?;
    let bytes = STANDARD
        .decode(payload.data.reveal())
        .map_err(|_| Error::Shape { server: answer.server.clone(), expected })?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::Absent(format!("the secret {name} is binary; expected a text")))?;
    Ok(Fetched::Text(Redacted::new(text)))
}

#[derive(Deserialize)]
struct Granted {
    access_token: Redacted<String>,
    expires_in: i64,
}

/// What Google's errors say: an object with a message, or OAuth's two texts (RFC 6749, section 5.2).
fn told(answer: &Answer) -> String {
    let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match &value["error"] {
        Value::Object(error) => error.get("message").map(text).unwrap_or_default(),
        Value::String(error) => match text(&value["error_description"]) {
            more if more.is_empty() => error.clone(),
            more => format!("{error}: {more}"),
        },
        _ => String::new(),
    }
}
