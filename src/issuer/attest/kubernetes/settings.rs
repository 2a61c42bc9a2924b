//! What an issuer is told about a Kubernetes cluster whose service accounts may enrol.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// Who says that a token holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KubernetesMode {
    /// The API server, asked for each token: it also knows which pods and accounts are gone. Needs the right to create
    /// `tokenreviews.authentication.k8s.io`.
    #[default]
    TokenReview,
    /// The cluster's published keys, here: no call for each token, but a token holds until it expires.
    Jwks,
}

/// A Kubernetes cluster whose service accounts may enrol.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesSettings {
    /// The cluster's name: callers name it, and it is shown as the selector `k8s:cluster:NAME`.
    #[serde(default = "default_name")]
    pub name: String,
    /// The audience that tokens must be made for. A token for the API server itself is never taken.
    pub audience: String,
    /// Who says that a token holds.
    #[serde(default)]
    pub mode: KubernetesMode,
    /// `https://host:port`; what a pod finds in its environment when not given. Plain `http` is taken for loopback addresses only.
    #[serde(default)]
    pub api_server: Option<String>,
    /// The API server's authorities as PEM; a pod's own file when not given.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Our own bearer token towards the API server, read again for each call; a pod's own file when not given.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Mode `jwks`: the cluster's keys from this file (read again for each token) in place of the API server's `/openid/v1/jwks`.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// Mode `jwks`: what the tokens' `iss` must be.
    #[serde(default = "default_issuer")]
    pub issuer: String,
    /// Gives every service account of the cluster an identity of its own, without an entry:
    /// `spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}`; `{cluster}` is known as well. None when not given.
    #[serde(default)]
    pub id_template: Option<String>,
    /// Seconds that an SVID of the template lives; one hour when not given.
    #[serde(default)]
    #[schemars(range(min = 1, max = 86400))]
    pub ttl: Option<u32>,
    /// Seconds for which an enrolment may be renewed by its SVID alone; then its token must be shown again. Sidecars show it at
    /// each renewal anyway: this bounds what a stolen key is worth, and how long the API server may be away.
    #[serde(default = "default_proof_seconds")]
    pub proof_seconds: u32,
}

fn default_name() -> String {
    "default".into()
}

fn default_issuer() -> String {
    "https://kubernetes.default.svc.cluster.local".into()
}

const fn default_proof_seconds() -> u32 {
    86_400
}
