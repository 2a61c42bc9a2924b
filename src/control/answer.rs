//! What the Admin API answers with, in APISIX's bodies.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use serde_json::{Value, json};

use crate::model::{Invalid, Revision};
use crate::store;

/// An answer, good or bad.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    body: Option<Box<Value>>,
    /// The revision that a write made.
    pub(super) revision: Option<Revision>,
    /// Did the data planes apply it in the time that the client gave?
    pub(super) applied: Option<bool>,
    /// SHA-256 of what was stored, in hex.
    pub(super) digest: Option<String>,
    /// Further fields of the head.
    pub(super) headers: Vec<(&'static str, String)>,
    /// A body that is not JSON, and its type.
    pub(super) other: Option<Box<(&'static str, String)>>,
    /// SHA-256 of what was there before and what is there now, in hex.
    pub(super) difference: Option<String>,
    /// In how many seconds to try again.
    retry_after: Option<u32>,
    /// The write went past canaries: its record says so.
    pub(super) goes_past: bool,
}

impl Answer {
    pub(super) fn json(status: StatusCode, body: Value) -> Self {
        Self { body: Some(Box::new(body)), ..Self::empty(status) }
    }

    pub(super) fn ok(body: Value) -> Self {
        Self::json(StatusCode::OK, body)
    }

    pub(super) fn empty(status: StatusCode) -> Self {
        Self {
            status,
            body: None,
            revision: None,
            applied: None,
            digest: None,
            headers: Vec::new(),
            other: None,
            difference: None,
            retry_after: None,
            goes_past: false,
        }
    }

    /// `{"error_msg": ...}`.
    pub(super) fn error(status: StatusCode, text: impl Into<String>) -> Self {
        Self::json(status, json!({"error_msg": text.into()}))
    }

    pub(super) fn bad(text: impl Into<String>) -> Self {
        Self::error(StatusCode::BAD_REQUEST, text)
    }

    pub(super) fn forbidden(text: impl Into<String>) -> Self {
        Self::error(StatusCode::FORBIDDEN, text)
    }

    pub(super) fn too_many(text: &str, wait: Duration) -> Self {
        let seconds = wait.as_secs().saturating_add(1);
        let retry_after = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
        Self { retry_after, ..Self::error(StatusCode::TOO_MANY_REQUESTS, text) }
    }

    /// Why the caller was not let do it, if it was not; otherwise what is to be known of it.
    pub(super) fn reason(&self) -> Option<String> {
        if self.goes_past {
            return Some("the write goes past canaries".to_owned());
        }
        // Others may quote what was sent, and records hold no secrets.
        let refused = matches!(
            self.status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS
        );
        let body = self.body.as_ref().filter(|_| refused)?;
        let texts = ["error_msg", "description", "message"];
        let texts: Vec<&str> =
            texts.iter().filter_map(|name| body.get(name).and_then(Value::as_str)).collect();
        (!texts.is_empty()).then(|| texts.join(": "))
    }

    pub(super) fn key_not_found() -> Self {
        Self::json(StatusCode::NOT_FOUND, json!({"message": "Key not found"}))
    }

    pub(super) fn not_supported(method: &str, kind: &str) -> Self {
        let text = format!("not supported `{method}` method for {kind}");
        Self::error(StatusCode::METHOD_NOT_ALLOWED, text)
    }

    pub(super) fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Some(revision) = self.revision {
            headers.insert(HeaderName::from_static("x-wardgate-revision"), revision.into());
        }
        if let Some(applied) = self.applied {
            let value = HeaderValue::from_static(if applied { "true" } else { "false" });
            headers.insert(HeaderName::from_static("x-wardgate-applied"), value);
        }
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        if let Some((content_type, body)) = self.other.map(|other| *other) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            *response.body_mut() = Body::from(body);
            return response;
        }
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, wait.into());
        }
        match self.body.map(|body| *body) {
            None => {}
            // APISIX sends a few bare texts, and a line feed after every body.
            Some(Value::String(text)) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                *response.body_mut() = Body::from(text + "\n");
            }
            Some(body) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                *response.body_mut() = Body::from(format!("{body}\n"));
            }
        }
        response
    }
}

impl From<Invalid> for Answer {
    fn from(invalid: Invalid) -> Self {
        Self::bad(invalid.0)
    }
}

impl From<store::Error> for Answer {
    fn from(error: store::Error) -> Self {
        // All of them are 503 as in APISIX: the request may be right, the store does not take it now.
        tracing::warn!(%error, "the store did not do what the Admin API asked");
        Self::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}
