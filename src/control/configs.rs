//! `/apisix/admin/configs`: the whole configuration at once.
//!
//! `configs` itself is APISIX's API-driven standalone mode, and `configs/validate` is APISIX's as well. `configs/apply`, `/diff` and
//! `/dump` are ours.

use axum::body::Body;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;

use super::ControlPlane;
use super::access::Principal;
use super::answer::Answer;
use super::listing::Query;

/// The largest body: 100,000 routes of half a KiB.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Does the path belong here?
pub(super) fn is_here(path: &str) -> bool {
    path == ROOT || path.strip_prefix(ROOT).is_some_and(|rest| rest.starts_with('/'))
}

/// Does it change nothing, whatever its method?
pub(super) fn is_question(path: &str) -> bool {
    let rest = path.strip_prefix(ROOT).map(|rest| rest.trim_end_matches('/'));
    matches!(rest, Some("/validate" | "/diff"))
}

const ROOT: &str = "/apisix/admin/configs";

/// A request about the whole configuration.
pub(super) struct WholeCall<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) query: &'a Query,
    pub(super) body: Vec<u8>,
    /// Who calls, and what it may do.
    pub(super) principal: &'a Principal,
    /// Does the write go past canaries?
    pub(super) skips: bool,
}

impl WholeCall<'_> {
    /// Does somebody only ask who may see everything?
    pub(super) fn only_asks(&self, dry_run: bool) -> bool {
        dry_run && self.principal.is_unscoped()
    }
}

impl ControlPlane {
    pub(super) async fn answer_configs(
        &self,
        (method, path, skips): (&Method, &str, bool),
        headers: &HeaderMap,
        query: &Query,
        body: Body,
        principal: &Principal,
    ) -> Result<Answer, Answer> {
        let rest = path.strip_prefix(ROOT).unwrap_or_default().trim_matches('/');
        let body = match *method {
            Method::PUT | Method::POST => read(body).await?,
            _ => Vec::new(),
        };
        let call = WholeCall { headers, query, body, principal, skips };
        match (method, rest, &self.standalone) {
            // What follows tells of all resources at once, or replaces them.
            (&Method::GET, "dump", _) | (_, "", Some(_)) if !principal.is_unscoped() => {
                Err(Answer::forbidden("a caller with a scope reads resources alone"))
            }
            (&Method::GET, "", Some(standalone)) => {
                self.standalone_get(standalone, headers, principal).await
            }
            (&Method::HEAD, "", Some(standalone)) => Ok(standalone.head().await),
            (&Method::PUT, "", Some(standalone)) => self.standalone_put(standalone, &call).await,
            (_, "", None) => {
                Err(Answer::error(StatusCode::NOT_FOUND, "Unsupported resource type: configs"))
            }
            (&Method::POST, "validate", _) => self.validate_configs(headers, &call.body),
            (&Method::GET, "dump", _) => self.dump(principal).await,
            (&Method::POST, "diff", None) => self.apply(&call, true).await,
            (&Method::POST, "apply", None) => self.apply(&call, false).await,
            (&Method::POST, "diff" | "apply", Some(_)) => {
                Err(Answer::error(StatusCode::NOT_FOUND, super::standalone::COMES_WHOLE))
            }
            _ => Err(Answer::error(StatusCode::NOT_FOUND, "not found")),
        }
    }
}

async fn read(mut body: Body) -> Result<Vec<u8>, Answer> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Answer::bad(format!("invalid request body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY_BYTES {
            return Err(Answer::bad(format!(
                "invalid request body: request size is greater than the maximum size {MAX_BODY_BYTES} allowed"
            )));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}
