//! How it stands with the certificates that an authority shall give: what the status port tells.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use super::Error;
use crate::rt::causes;

/// One certificate.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Its names.
    pub domains: Vec<String>,
    /// When it ends, seconds since 1970; absent while there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<i64>,
    /// When it is asked for next, seconds since 1970.
    pub due: i64,
    /// Why the last order failed; absent when it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
}

/// Why an order failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failed {
    /// The whole sentence.
    pub error: String,
    /// The authority's type of problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What the authority says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl From<&Error> for Failed {
    fn from(error: &Error) -> Self {
        let problem = error.problem();
        Self {
            error: causes(error),
            problem: problem.map(|problem| problem.kind.clone()),
            detail: problem.map(|problem| problem.detail.clone()),
        }
    }
}

/// All of them, by id. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Reports(Arc<Mutex<BTreeMap<String, Report>>>);

impl Reports {
    /// All certificates, by the ids that they have among the `ssls`.
    pub fn all(&self) -> BTreeMap<String, Report> {
        self.0.lock().clone()
    }

    /// Replaces one, given what it was.
    pub(super) fn replace(&self, id: &str, make: impl FnOnce(Option<Report>) -> Report) {
        let mut all = self.0.lock();
        let before = all.remove(id);
        all.insert(id.to_owned(), make(before));
    }
}
