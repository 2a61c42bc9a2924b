//! Who may do what to whom. What stands here is only what `snapshot` needs to name; the room itself is written elsewhere.

use crate::identity::SpiffeId;
use crate::model::{Id, IdentityPolicy, Invalid, Kind, Rejected, Revision};

/// The policies that one workload enforces, compiled.
#[derive(Debug)]
pub struct Policy {
    rules: usize,
}

/// May this policy stand?
///
/// # Errors
/// The sentence names the field and what was expected.
pub fn check(policy: &IdentityPolicy) -> Result<(), Invalid> {
    if policy.rules.is_empty() {
        return Err(Invalid::new("rules: at least one rule is expected"));
    }
    Ok(())
}

impl Policy {
    /// Compiles the policies that select `me`; names those that are not valid.
    pub fn compile<'a>(
        policies: impl IntoIterator<Item = (&'a Id, Revision, &'a IdentityPolicy)>,
        _me: &SpiffeId,
    ) -> (Self, Vec<Rejected>) {
        let (mut rules, mut rejected) = (0, Vec::new());
        for (id, revision, policy) in policies {
            rules += policy.rules.len();
            if let Err(Invalid(reason)) = check(policy) {
                let kind = Kind::IdentityPolicies;
                rejected.push(Rejected { kind, id: id.clone(), revision, reason });
            }
        }
        (Self { rules }, rejected)
    }

    /// How many rules select this workload.
    pub fn rule_count(&self) -> usize {
        self.rules
    }
}
