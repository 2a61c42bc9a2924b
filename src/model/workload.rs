//! Registration entries (`workloads`): which attested callers get which identity.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Id, Labels};

/// A registration entry of the issuer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Its id; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub desc: Option<String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The identity that is issued.
    pub spiffe_id: String,
    /// What the caller's attestation must show, all of it. A local process: `unix:uid:N`, `unix:gid:N`,
    /// `unix:supplementary_gid:N`, `unix:path:/P`, `unix:sha256:HEX`. From another machine: `join_token:ID`, or `k8s:cluster:NAME`,
    /// `k8s:ns:NAME`, `k8s:sa:NAME`, `k8s:pod-name:NAME`, `k8s:pod-uid:UID`.
    #[schemars(length(min = 1))]
    pub selectors: Vec<String>,
    /// Seconds that an SVID lives; one hour when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 86400))]
    pub ttl: Option<u32>,
    /// DNS names that the SVID also bears.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// What tells this identity from others of the same caller: it goes into the SVID's `hint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub hint: Option<String>,
    /// Other trust domains whose bundles the workload gets as well; none when not given. One that is not known yet is sent
    /// as soon as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub federates_with: Vec<String>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}
