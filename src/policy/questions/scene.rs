//! `Scene`: policies and what there is around them, and the questions about them as JSON: the same for the Admin API and for
//! files.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::can_i::CanI;
use super::lint::Surroundings;
use super::policies::Policies;
use super::what_can::WhatCan;
use super::who_can::WhoCan;
use crate::identity::SpiffeId;

/// Policies, and what there is around them.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// The policies.
    pub policies: Policies,
    /// Workloads, routes, modes and the time.
    pub around: Surroundings,
}

impl Scene {
    /// Answers `who-can` ([`WhoCan`]), `what-can` ([`WhatCan`]), `can-i` ([`CanI`]) or `lint`. `None`: there is no such question.
    ///
    /// # Errors
    /// The question cannot be read, or names a workload that is not known; the sentence names the field.
    pub fn answer(&self, question: &str, body: &Value) -> Option<Result<Value, String>> {
        Some(match question {
            "who-can" => read::<WhoCan>(body).and_then(|asked| {
                let workload = self.workload(&asked.workload)?;
                written(&self.policies.who_can(&workload, &asked.target))
            }),
            "what-can" => read::<WhatCan>(body).and_then(|asked| {
                written(&self.policies.what_can(&id("identity", &asked.identity)?))
            }),
            "can-i" => read::<CanI>(body).and_then(|asked| {
                let workload = self.workload(&asked.workload)?;
                let identity = asked.identity.as_deref().map(|text| id("identity", text));
                let identity = identity.transpose()?;
                written(&self.policies.can_i(&workload, identity.as_ref(), &asked.target))
            }),
            "lint" => written(&serde_json::json!({ "findings": self.policies.lint(&self.around) })),
            _ => return None,
        })
    }

    /// The workload of that SPIFFE ID, or the one known workload whose ID ends so: `billing` is `spiffe://shop/billing`.
    ///
    /// # Errors
    /// None is known, or several are.
    pub fn workload(&self, text: &str) -> Result<SpiffeId, String> {
        if text.starts_with("spiffe://") {
            return id("workload", text);
        }
        let mut known = self.policies.named_workloads();
        known.extend(self.around.workloads.iter().flatten().cloned());
        known.sort();
        known.dedup();
        let end = format!("/{}", text.trim_matches('/'));
        known.retain(|id| id.path().ends_with(&end));
        match &*known {
            [one] => Ok(one.clone()),
            [] => Err(format!(
                "workload: no known workload's ID ends with {end}; give its whole SPIFFE ID"
            )),
            several => {
                let several: Vec<String> = several.iter().map(ToString::to_string).collect();
                Err(format!(
                    "workload: {text} may be {}; give the whole SPIFFE ID",
                    several.join(" or ")
                ))
            }
        }
    }
}

fn id(field: &str, text: &str) -> Result<SpiffeId, String> {
    text.parse().map_err(|error| format!("{field}: {text:?}: {error}"))
}

fn read<T: DeserializeOwned>(body: &Value) -> Result<T, String> {
    T::deserialize(body).map_err(|error| format!("the question cannot be read: {error}"))
}

fn written<T: Serialize>(answer: &T) -> Result<Value, String> {
    serde_json::to_value(answer).map_err(|error| format!("the answer cannot be written: {error}"))
}
