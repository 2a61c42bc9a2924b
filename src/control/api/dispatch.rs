//! Which part of the Admin API answers a request.

use axum::body::Body;
use http::{HeaderMap, Method, StatusCode};
use percent_encoding::percent_decode_str;

use super::super::access::Principal;
use super::super::answer::Answer;
use super::super::canary::skips;
use super::super::history::Author;
use super::super::listing::Query;
use super::super::standalone::COMES_WHOLE;
use super::super::{ControlPlane, configs};
use super::body::{read_body, ttl, wait};
use super::kinds::Target;
use super::resources::Call;

/// A request that was let in.
pub(super) struct Admitted<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) query: &'a Query,
    pub(super) principal: &'a Principal,
}

/// A question changes nothing, whatever its method: it has a body.
pub(super) fn is_question(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    path.starts_with("/apisix/admin/questions/")
        || path.starts_with("/apisix/admin/schema/validate/")
        || configs::is_question(path)
}

impl ControlPlane {
    pub(super) async fn answer(
        &self,
        admitted: Admitted<'_>,
        body: Body,
    ) -> Result<Answer, Answer> {
        let Admitted { method, path, headers, query, principal } = admitted;
        let skips = skips(headers, query)?;
        if configs::is_here(path) {
            let call = (method, path, skips);
            return self.answer_configs(call, headers, query, body, principal).await;
        }
        let path = path.strip_prefix("/apisix/admin").unwrap_or_default();
        let segments: Vec<String> = path
            .trim_matches('/')
            .split('/')
            .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
            .collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        if let Some(answer) = self.answer_about_shapes(method, &segments, query) {
            return Ok(answer);
        }
        match segments[..] {
            ["schema", "validate", name] => {
                let value = read_body(body).await?;
                return self.validate_only(method, name, value);
            }
            ["access", ref rest @ ..] => {
                let body = read_body(body).await?;
                return self.answer_access(method, rest, body, principal).await;
            }
            // A whole set is read and written by who may read and write everything.
            ["configs", ..] if method != Method::GET && !principal.is_full_admin() => {
                return Err(Answer::forbidden(
                    "a whole set is the matter of role admin without a scope",
                ));
            }
            // What follows tells of all resources at once.
            ["audit" | "canary" | "configs" | "questions" | "history" | "revisions", ..]
                if !principal.is_unscoped() =>
            {
                return Err(Answer::forbidden("a caller with a scope reads resources alone"));
            }
            ["store", what] if method == Method::POST => {
                if !principal.is_full_admin() {
                    return Err(Answer::forbidden(
                        "the store is the matter of role admin without a scope",
                    ));
                }
                return self.at_rest(what).await;
            }
            ["audit", ref what @ ..] if method == Method::GET => {
                return self.answer_records(what, query).await;
            }
            ["questions", ref rest @ ..] => {
                let body = read_body(body).await?;
                return self.answer_question(method, rest, query, body).await;
            }
            _ if self.standalone.is_some() && method != Method::GET => {
                return Err(Answer::error(StatusCode::NOT_FOUND, COMES_WHOLE));
            }
            ["history", ref rest @ ..] => {
                let body = read_body(body).await?;
                return self.answer_history(method, rest, query, body, (principal, skips)).await;
            }
            ["canary", ref rest @ ..] => {
                let body = read_body(body).await?;
                return self.answer_canary(method, rest, body, principal).await;
            }
            ["revisions", revision] if method == Method::GET => {
                return self.answer_revision(revision, query).await;
            }
            ["revisions", ..] => return Err(Answer::error(StatusCode::NOT_FOUND, "not found")),
            _ => {}
        }
        let target = Target::of(&segments).ok_or_else(|| {
            let name = segments.first().copied().unwrap_or_default();
            Answer::error(StatusCode::NOT_FOUND, format!("Unsupported resource type: {name}"))
        })?;
        let body = match *method {
            Method::POST | Method::PUT | Method::PATCH => read_body(body).await?,
            _ => None,
        };
        let (ttl, wait) = (ttl(query)?, wait(query)?);
        let author = Author { name: &principal.name, rollback_to: None, skips };
        let call = Call { method, query, body, ttl, wait, author, principal };
        self.serve_resource(target, call).await
    }
}
