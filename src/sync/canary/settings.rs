//! What an operator sets about canary pushes.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

/// A change goes to some data planes first, and to the others when these refuse and fail no more than before (docs/safety.md).
/// Every control plane over the same store needs the same block.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CanarySettings {
    /// Percent of the data planes that a change concerns which get it first, 1 to 50; at least one of them.
    pub share: u8,
    /// In place of a share: the data planes that bear all these labels (`control_plane.labels` of their settings). Where a change
    /// concerns none of them, a share gets it first.
    pub labels: BTreeMap<String, String>,
    /// Seconds for which they are watched before the others get it, 1 to 86400.
    pub watch_seconds: u32,
    /// With fewer decisions (requests) of the canaries since they have the change, a rise of what is denied (failed) stops nothing.
    pub min_samples: u64,
    /// When more denials stop the push: decisions of policy that refuse, and handshakes that are refused.
    pub denied: Rise,
    /// When more failures stop the push: answers of 500 and above.
    pub failed: Rise,
    /// So many canaries may lose their connection for good, or restart twice, before that stops the push.
    pub lost: u32,
}

/// A rise that is too much: it must exceed both bounds.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rise {
    /// Percentage points above what was to be expected, 0 to 100: what the canaries had before, and as much more as the others
    /// have more by now.
    pub points: f64,
    /// So many times what was to be expected, at least 1.
    pub times: f64,
}

impl Default for CanarySettings {
    fn default() -> Self {
        Self {
            share: 10,
            labels: BTreeMap::new(),
            watch_seconds: 120,
            min_samples: 50,
            denied: Rise { points: 2.0, times: 1.5 },
            failed: Rise { points: 1.0, times: 1.5 },
            lost: 0,
        }
    }
}

impl CanarySettings {
    /// Can it be done so?
    ///
    /// # Errors
    /// The field, and what was expected.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(1..=50).contains(&self.share) {
            return Err(("control.canary.share", format!("{}; expected 1 to 50", self.share)));
        }
        if !(1..=86_400).contains(&self.watch_seconds) {
            let problem = format!("{}; expected 1 to 86400", self.watch_seconds);
            return Err(("control.canary.watch_seconds", problem));
        }
        let rises =
            [("control.canary.denied", self.denied), ("control.canary.failed", self.failed)];
        for (field, Rise { points, times }) in rises {
            if !(0.0..=100.0).contains(&points) {
                return Err((field, format!("points: {points}; expected 0 to 100")));
            }
            if !(1.0..=1e6).contains(&times) {
                return Err((field, format!("times: {times}; expected at least 1")));
            }
        }
        Ok(())
    }

    /// How long canaries are watched.
    pub fn watched(&self) -> Duration {
        Duration::from_secs(self.watch_seconds.into())
    }

    /// How often data planes are asked for what they have counted, in seconds.
    pub fn counts_every(&self) -> u32 {
        (self.watch_seconds / 10).clamp(1, 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        assert!(CanarySettings::default().check().is_ok());
        let with = |change: &dyn Fn(&mut CanarySettings)| {
            let mut settings = CanarySettings::default();
            change(&mut settings);
            settings.check().map_err(|(field, _)| field)
        };
        assert_eq!(with(&|one| one.share = 0), Err("control.canary.share"));
        assert_eq!(with(&|one| one.share = 51), Err("control.canary.share"));
        assert_eq!(with(&|one| one.watch_seconds = 0), Err("control.canary.watch_seconds"));
        assert_eq!(with(&|one| one.denied.points = -1.0), Err("control.canary.denied"));
        assert_eq!(with(&|one| one.failed.times = 0.5), Err("control.canary.failed"));
    }
}
