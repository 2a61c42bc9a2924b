//! `Party`: what we ask the provider for as its client: tokens, what it knows of a person, that it forgets tokens.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::pipeline::Question;
use crate::plugins::auth::asking::lawful;
use crate::plugins::auth::browser::encode;
use crate::plugins::auth::client::{Client, ClientAuth};
use crate::plugins::auth::provider::{Described, Endpoint, Unavailable};

/// Who we are for the provider, and how we prove it where tokens are given.
pub(super) struct Party {
    pub(super) client: Arc<Client>,
    pub(super) auth: ClientAuth,
}

/// What the token endpoint says (RFC 6749, section 5.1).
#[derive(Clone, Deserialize)]
pub(super) struct Told {
    pub(super) access_token: String,
    token_type: Option<String>,
    pub(super) id_token: Option<String>,
    pub(super) refresh_token: Option<String>,
    pub(super) expires_in: Option<i64>,
    pub(super) scope: Option<String>,
}

impl Party {
    /// Asks the token endpoint. `None`: the provider refuses.
    pub(super) async fn exchange(
        &self,
        described: &Described,
        form: String,
    ) -> Result<Option<Told>, Unavailable> {
        let endpoint = described.token.as_ref().ok_or_else(|| none("token_endpoint"))?;
        let mut question = self.client.question(self.auth, &endpoint.url, form)?;
        // A code is good for once, and so may a refresh token be.
        question.is_once = true;
        let answer = endpoint.ask(&question).await?;
        match answer.status {
            200 => {
                let told = serde_json::from_slice::<Told>(&answer.body).ok();
                let is_bearer = |told: &Told| {
                    let kind = told.token_type.as_deref();
                    kind.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"))
                };
                Ok(told.filter(is_bearer))
            }
            400 | 403 => Ok(None),
            status => {
                let why = format!("{} answered {status}", endpoint.url);
                Err(Unavailable::because(&why))
            }
        }
    }

    /// Hands the parameters to the provider, and gets a name for them.
    pub(super) async fn pushed(
        &self,
        endpoint: &Endpoint,
        auth: ClientAuth,
        asked: String,
    ) -> Result<String, Unavailable> {
        #[derive(Deserialize)]
        struct Pushed {
            request_uri: String,
        }
        let mut question = self.client.question(auth, &endpoint.url, asked)?;
        question.is_once = true;
        let answer = endpoint.ask(&question).await?;
        let pushed = serde_json::from_slice::<Pushed>(&answer.body).ok();
        match pushed.filter(|_| matches!(answer.status, 200 | 201)) {
            Some(Pushed { request_uri }) => {
                let (id, name) = (encode(&self.client.id), encode(&request_uri));
                Ok(format!("client_id={id}&request_uri={name}"))
            }
            None => {
                let why = format!("{} took no parameters: {}", endpoint.url, answer.status);
                Err(Unavailable::because(&why))
            }
        }
    }

    /// Has the provider forget the tokens.
    pub(super) async fn revoke(&self, described: &Described, tokens: [(&str, Option<&str>); 2]) {
        let told = async {
            let endpoint =
                described.revocation.as_ref().ok_or_else(|| none("revocation_endpoint"))?;
            for (kind, token) in tokens {
                let Some(token) = token else { continue };
                let form = format!("token={}&token_type_hint={kind}", encode(token));
                let question = self.client.question(self.auth, &endpoint.url, form)?;
                let answer = endpoint.ask(&question).await?;
                if answer.status != 200 {
                    let why = format!("{} answered {}", endpoint.url, answer.status);
                    return Err(Unavailable::because(&why));
                }
            }
            Ok(())
        };
        if let Err(cause) = told.await {
            tracing::warn!(%cause, "openid-connect: a session's tokens are not revoked");
        }
    }
}

/// What the provider says of the person, who must be the one of the ID token (OpenID Connect Core 1.0, section 5.3.2).
pub(super) async fn user(
    described: &Described,
    access_token: &str,
    claims: &Map<String, Value>,
) -> Result<Result<Option<Value>, &'static str>, Unavailable> {
    let Some(endpoint) = &described.userinfo else { return Ok(Ok(None)) };
    let mut question = Question::get("");
    let Some(mut line) = lawful(format!("Bearer {access_token}").as_bytes()) else {
        return Ok(Err("the access token cannot be sent"));
    };
    line.set_sensitive(true);
    question.headers.insert(AUTHORIZATION, line);
    let answer = endpoint.ask(&question).await?;
    if answer.status != 200 {
        return Ok(Err("the provider says nothing of the person"));
    }
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(user) if user.is_object() && user.get("sub") == claims.get("sub") => Ok(Ok(Some(user))),
        _ => Ok(Err("the provider speaks of another person")),
    }
}

pub(super) fn none(field: &str) -> Unavailable {
    Unavailable::because(&format!("the discovery document has no {field}"))
}
