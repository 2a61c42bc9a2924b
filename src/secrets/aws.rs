//! AWS Secrets Manager: `GetSecretValue`, signed with Signature Version 4.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

use super::Error;
use super::environment::Environment;
use super::fetched::Fetched;
use super::signature::{Signer, timestamp};
use super::transport::{Answer, Question, Transport, secret_header, url};
use crate::model::{AwsSecrets, Redacted};
use crate::rt::Clock;

const SERVICE: &str = "secretsmanager";

/// An account of AWS in one region.
pub(super) struct Aws {
    declared: AwsSecrets,
}

impl Aws {
    pub(super) fn new(declared: AwsSecrets) -> Self {
        Self { declared }
    }

    pub(super) async fn fetch(
        &self,
        name: &str,
        environment: &Environment,
        transport: &Transport,
        clock: &Clock,
    ) -> Result<Fetched, Error> {
        let question = self.question(name, environment, clock)?;
        let answer = transport.ask(question).await?;
        if answer.status != StatusCode::OK {
            return Err(refusal(name, &answer));
        }
        let expected = "a secret's value";
        let secret: SecretValue = answer.json(expected)?;
        let shape = || Error::Shape { server: answer.server.clone(), expected };
        match (secret.text, secret.binary) {
            (Some(text), _) => Ok(Fetched::Text(text)),
            (None, Some(binary)) => {
                let bytes = STANDARD.decode(binary.reveal()).map_err(|_| shape())?;
                let text = String::from_utf8(bytes).map_err(|_| {
                    Error::Absent(format!("the secret {name} is binary; expected a text"))
                })?;
                Ok(Fetched::Text(Redacted::new(text)))
            }
            (None, None) => Err(shape()),
        }
    }

    fn question(
        &self,
        name: &str,
        environment: &Environment,
        clock: &Clock,
    ) -> Result<Question, Error> {
        let AwsSecrets { access_key_id, secret_access_key, session_token, region, .. } =
            &self.declared;
        let id = environment.own("access_key_id", access_key_id)?;
        let secret = environment.own("secret_access_key", secret_access_key.reveal())?;
        let usual = format!("https://{SERVICE}.{region}.amazonaws.com");
        let base = self.declared.endpoint_url.as_deref().unwrap_or(&usual);
        let url = url("endpoint_url", base, "/")?;
        let at =
            OffsetDateTime::from_unix_timestamp(clock.now()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let body = json!({ "SecretId": name }).to_string();
        let plain = |field, text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| Error::Field { field, why: "it holds what no header can".into() })
        };
        let mut headers = HeaderMap::new();
        let authority = url.authority().map_or("", http::uri::Authority::as_str);
        headers.insert(HOST, plain("endpoint_url", authority)?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.1"));
        headers.insert("x-amz-target", HeaderValue::from_static("secretsmanager.GetSecretValue"));
        headers.insert("x-amz-date", plain("region", &timestamp(at))?);
        if let Some(token) = session_token {
            let token = environment.own("session_token", token.reveal())?;
            headers.insert("x-amz-security-token", secret_header("session_token", token.reveal())?);
        }
        let signer = Signer {
            access_key_id: id.reveal(),
            secret_access_key: &secret,
            region,
            service: SERVICE,
            at,
        };
        let authorization = signer.authorization(&Method::POST, &url, &headers, body.as_bytes());
        headers.insert(AUTHORIZATION, secret_header("access_key_id", &authorization)?);
        Ok(Question { method: Method::POST, url, headers, body: body.into() })
    }
}

#[derive(Deserialize)]
struct SecretValue {
    #[serde(rename = "SecretString")]
    text: Option<Redacted<String>>,
    #[serde(rename = "SecretBinary")]
    binary: Option<Redacted<String>>,
}

/// What AWS' errors say: their type, which may have a namespace before it, and a sentence.
fn refusal(name: &str, answer: &Answer) -> Error {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Told {
        #[serde(rename = "__type")]
        kind: String,
        #[serde(alias = "Message")]
        message: String,
    }
    let Told { kind, message } = serde_json::from_slice(&answer.body).unwrap_or_default();
    let kind = kind.rsplit('#').next().unwrap_or_default();
    match kind {
        "ResourceNotFoundException" => {
            Error::Absent(format!("{} has no secret {name}", answer.server))
        }
        "" => answer.refused(&message),
        kind => answer.refused(&format!("{kind}: {message}")),
    }
}
