//! What a running issuer does for its authority once a second: takes over what commands changed, replaces intermediates, signs
//! lists, rotates the root by policy, warns of what ends.

use std::sync::Arc;
use std::time::Duration;

use super::super::Error;
use super::authority::{Authority, LIST_LIFETIME};
use super::rotation::RotationPolicy;
use super::state::Phase;
use crate::rt::causes;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How often the ledger lets go what expired, in looks.
const PRUNED_EVERY: u64 = 60;

/// What an issuer's settings say of the care for its authority.
#[derive(Clone, Copy, Debug)]
pub struct Upkeep {
    /// How long a revocation list holds; it is signed anew at half of that.
    pub list_lifetime: Duration,
    /// When the root is replaced without a command; never when not given.
    pub rotation: Option<RotationPolicy>,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self { list_lifetime: Duration::from_secs(LIST_LIFETIME.unsigned_abs()), rotation: None }
    }
}

impl Authority {
    /// Cares for the authority for ever: [`Authority::tend`] once a second.
    pub async fn keep(self: Arc<Self>, upkeep: Upkeep) {
        let mut looks = 0_u64;
        let mut told = Told::default();
        loop {
            let authority = self.clone();
            // Files, and deriving a key from a passphrase: not for the runtime's threads.
            let tended = tokio::task::spawn_blocking(move || {
                if looks.is_multiple_of(PRUNED_EVERY) {
                    authority.ledger.prune(authority.clock().now())?;
                }
                authority.tend(&upkeep)
            });
            let problem = match tended.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(causes(&error)),
                Err(error) => Some(error.to_string()),
            };
            told.problem(problem);
            told.ends(&self, upkeep.rotation.is_some());
            looks += 1;
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Does what is due now. Blocks: files are read, and written where something is due.
    ///
    /// # Errors
    /// What could not be done; what is in force stays so, and the next call tries again.
    pub fn tend(&self, upkeep: &Upkeep) -> Result<(), Error> {
        let now = self.clock().now();
        let lifetime = i64::try_from(upkeep.list_lifetime.as_secs()).unwrap_or(LIST_LIFETIME);
        self.set_list_lifetime(lifetime);
        self.ledger.flush()?;
        let loaded = self.loaded();
        let past = loaded.state.without_past(now).is_some();
        if past || self.is_behind(now) || self.is_renewal_due(&loaded, now) {
            let changing = self.changing()?;
            if let Some(next) = changing.loaded().state.without_past(now) {
                changing.commit(next)?;
            }
            changing.refresh_lists()?;
            // After the lists: they tell whether it was revoked.
            changing.renew_intermediate(now)?;
        }
        match &upkeep.rotation {
            Some(policy) => self.rotate_by(policy),
            None => Ok(()),
        }
    }
}

/// What was logged already: a log has an event once, not each second.
#[derive(Default)]
struct Told {
    problem: Option<String>,
    /// The name of what ends, and how many of the thresholds it has passed.
    ends: Vec<(String, usize)>,
}

/// Shares of a certificate's life after which its end is warned of.
const THRESHOLDS: [(i64, i64); 3] = [(1, 2), (3, 4), (9, 10)];

impl Told {
    fn problem(&mut self, problem: Option<String>) {
        if problem != self.problem {
            match &problem {
                Some(problem) => {
                    tracing::error!(
                        problem,
                        "the authority is not as it should be; it goes on as it was"
                    );
                }
                None => tracing::info!("the authority is in order again"),
            }
            self.problem = problem;
        }
    }

    /// Warns of what nobody replaces but an operator: an upstream's intermediate, and a root without a policy.
    fn ends(&mut self, authority: &Authority, is_rotated: bool) {
        let loaded = authority.loaded();
        let now = authority.clock().now();
        let mut ending = Vec::new();
        let signing = &loaded.signing;
        let root = loaded.root_in(Phase::Active);
        if root.is_some_and(|root| root.signer.is_none()) {
            let facts = &signing.signer.facts;
            let what =
                "the intermediate from upstream: `wardgate identity request` asks for the next one";
            ending.push((signing.signer.name.clone(), facts.not_before, signing.not_after, what));
        }
        if let Some(root) = root.filter(|_| !is_rotated) {
            let what = "the active root: `wardgate identity rotate-root` replaces it";
            ending.push((signing.root.clone(), root.facts.not_before, root.facts.not_after, what));
        }
        let mut passed = Vec::new();
        for (name, from, until, what) in ending {
            let life = until - from;
            let count = THRESHOLDS
                .iter()
                .filter(|(part, of)| now - from >= life.saturating_mul(*part) / of)
                .count();
            let before = self.ends.iter().find(|(known, _)| *known == name).map_or(0, |(_, n)| *n);
            if count > before {
                let (days, hours) = ((until - now) / 86_400, (until - now) % 86_400 / 3600);
                tracing::warn!(name, not_after = until, days, hours, "{what}");
            }
            passed.push((name, count));
        }
        self.ends = passed;
    }
}
