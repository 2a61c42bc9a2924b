//! How strictly workloads ask for identity (`identity_modes`).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Id, Labels};

/// How strictly a workload asks for identity and policy. The order is the order of strictness.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Strictness {
    /// Nothing is refused; what would have been is in the decision log.
    Observe,
    /// Plain connections are accepted as callers without identity; policy decides.
    Permissive,
    /// mTLS with an identity, or nothing.
    #[default]
    Strict,
}

/// How strictly the inbound doors of some workloads ask for identity. Where several are about one port, the strictest holds;
/// where none is, `strict` does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityMode {
    /// Its id; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub desc: Option<String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// SPIFFE ID patterns of the workloads; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<String>,
    /// What holds at ports that are not named below.
    pub mode: Strictness,
    /// What holds at single ports of the listener.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<u16, Strictness>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}
