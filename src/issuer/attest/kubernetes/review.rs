//! TokenReview: the API server says whose a token is (`authentication.k8s.io/v1`).

use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

use super::api_server::ApiServer;
use super::attestor::Account;
use super::token::short;
use crate::issuer::ProofFlaw;

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    authenticated: bool,
    user: User,
    audiences: Vec<String>,
    error: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

/// Whose is the token, by the API server's word?
///
/// # Errors
/// It does not vouch for the token, not for our audience, or not for a service account; or it does not answer.
pub(super) async fn review(
    server: &ApiServer,
    token: &str,
    audience: &str,
) -> Result<Account, ProofFlaw> {
    let question = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": { "token": token.trim_ascii(), "audiences": [audience] },
    });
    let answer = server.call("POST", PATH, Some(&question)).await?;
    let review: Review = serde_json::from_value(answer).map_err(|error| {
        tracing::error!(%error, "the API server's answer is no TokenReview");
        ProofFlaw::Unavailable { detail: "the API server's answer is no TokenReview".into() }
    })?;
    judge(review.status, audience)
}

fn judge(status: Status, audience: &str) -> Result<Account, ProofFlaw> {
    let Status { authenticated, user, audiences, error } = status;
    if !authenticated || !error.is_empty() {
        let detail = if error.is_empty() { "not authenticated".into() } else { short(&error) };
        return Err(ProofFlaw::NotAuthenticated { detail });
    }
    // An API server that does not understand audiences names none: such a token may be meant for anybody.
    if !audiences.iter().any(|one| one == audience) {
        return Err(ProofFlaw::Audience { found: short(&format!("{audiences:?}")) });
    }
    let detail = "the API server names another kind of user";
    let account = user.username.strip_prefix("system:serviceaccount:");
    let account = account.and_then(|rest| rest.split_once(':'));
    let (namespace, name) = account.ok_or(ProofFlaw::Subject { detail })?;
    let extra = |name: &str| {
        let key = format!("authentication.kubernetes.io/{name}");
        user.extra.get(&key).and_then(|values| values.first()).cloned()
    };
    let (pod_name, pod_uid) = (extra("pod-name"), extra("pod-uid"));
    Account::new(namespace.into(), name.into(), &user.uid, pod_name, pod_uid)
}
