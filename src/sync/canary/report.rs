//! What a control plane sees of its data planes while something is tried.

use std::collections::BTreeMap;
use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

/// What a data plane has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Decisions of policy, and handshakes that were refused.
    pub decided: u64,
    /// Those of them that refused somebody.
    pub denied: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Those of them that were answered with 500 or above.
    pub failed: u64,
}

impl Counts {
    /// What came since `earlier`; nothing where a counter began anew.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            decided: self.decided.saturating_sub(earlier.decided),
            denied: self.denied.saturating_sub(earlier.denied),
            requests: self.requests.saturating_sub(earlier.requests),
            failed: self.failed.saturating_sub(earlier.failed),
        }
    }
}

impl Add for Counts {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            decided: self.decided + other.decided,
            denied: self.denied + other.denied,
            requests: self.requests + other.requests,
            failed: self.failed + other.failed,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// What was counted before something was tried, and since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// In a time before.
    pub before: Counts,
    /// Since then.
    pub since: Counts,
}

impl AddAssign for Span {
    fn add_assign(&mut self, other: Self) {
        self.before += other.before;
        self.since += other.since;
    }
}

/// A data plane that tries something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// Its process.
    pub instance: String,
    /// What it counted.
    pub span: Span,
    /// Has it answered everything that it was sent?
    pub answered: bool,
    /// What it refuses and did not refuse before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuses: Option<String>,
}

/// One control plane's view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The revision that is tried.
    pub revision: u64,
    /// The canaries that are connected to it, by SPIFFE ID and node.
    pub canaries: BTreeMap<String, Canary>,
    /// How many others are connected that the change concerns.
    pub others: u64,
    /// What these counted.
    pub span: Span,
}
