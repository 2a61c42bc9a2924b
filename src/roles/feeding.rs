//! `Feeding`: what is told about the feeds of a process, and what ends with them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::data_plane::Configuration;
use super::facts::Source;
use super::places::Places;
use super::process::Shared;
use super::settings::{Error, Settings};
use crate::observe::{ConfigRecord, MetricKind};
use crate::policy::PolicyKeys;
use crate::rt::{Live, Tasks, unix_millis, unix_seconds};
use crate::snapshot::Freshness;
use crate::sync::file::FileStatus;
use crate::sync::last_good::{LastGood, Saved};
use crate::sync::probation::{HeldOff, Probation};
use crate::sync::subscriber::FeedStatus;

const HELD_OFF: &str = "wardgate_feed_held_off_revision";
const SILENT: &str = "wardgate_config_silent_seconds";
const REFUSED: &str = "wardgate_config_refused_resources";

/// The feeds of a process, as others are told of them. When it is dropped the process ends, and not by a crash.
#[derive(Default)]
pub(super) struct Feeding {
    tasks: Tasks,
    probations: Vec<Arc<Probation>>,
}

impl Feeding {
    /// The last good copy, guarded against crash loops as the settings say.
    pub(super) fn guarded(
        &mut self,
        seconds: u32,
        last_good: Option<(LastGood, Option<Saved>)>,
    ) -> Option<(LastGood, Option<Saved>)> {
        let (place, saved) = last_good?;
        if seconds == 0 {
            return Some((place, saved));
        }
        let place = place.with_guard(Duration::from_secs(seconds.into()));
        self.probations.extend(place.probation().cloned());
        Some((place, saved))
    }

    /// A feed from a control plane: whether it is heard, and what is held off, is told by metrics and the decision log.
    pub(super) fn follow_control_plane(
        &mut self,
        part: &str,
        (places, status): (Places, Live<FeedStatus>),
        freshness: &Arc<Freshness>,
        shared: &Shared,
    ) {
        let gauge = MetricKind::Gauge;
        let help = "The revision that a data plane does not take because it died with it again and again; 0 for none.";
        shared.registry.describe(HELD_OFF, gauge, help);
        let now = status.clone();
        let revision = move || {
            let held_off = now.load().held_off.as_ref().map(|held_off| held_off.revision);
            #[expect(clippy::cast_precision_loss, reason = "a metric's value")]
            let revision = held_off.unwrap_or_default() as f64;
            revision
        };
        shared.registry.computed(HELD_OFF, &[("part", part)], gauge, revision);
        show_silence(part, freshness, shared);
        let source = Source::ControlPlane(places, status.clone());
        shared.facts.is_fed(part, source);

        tell_freshness(freshness, &status.load());
        let (freshness, shared) = (freshness.clone(), shared.clone());
        let mut status = status;
        self.tasks.add(async move {
            let mut recorded: Option<HeldOff> = None;
            loop {
                let now = status.load();
                tell_freshness(&freshness, &now);
                if now.held_off != recorded {
                    recorded.clone_from(&now.held_off);
                    if let Some(held_off) = &recorded {
                        record(held_off, &shared);
                    }
                }
                if !status.changed().await {
                    return;
                }
            }
        });
    }

    /// A feed from a resources file.
    pub(super) fn follow_file(
        &mut self,
        part: &str,
        (path, status): (PathBuf, Live<FileStatus>),
        freshness: &Arc<Freshness>,
        shared: &Shared,
    ) {
        show_silence(part, freshness, shared);
        shared.facts.is_fed(part, Source::File(path, status.clone()));
        let (freshness, mut status) = (freshness.clone(), status);
        self.tasks.add(async move {
            let mut is_silent = false;
            loop {
                let is_bad = status.load().error.is_some();
                match (is_bad, is_silent) {
                    (true, false) => freshness.silent_since(unix_seconds()),
                    (false, true) => freshness.confirm(),
                    _ => {}
                }
                is_silent = is_bad;
                if !status.changed().await {
                    return;
                }
            }
        });
    }

    /// The process ends because it was asked to.
    pub(super) fn end(&self) {
        for probation in &self.probations {
            probation.end();
        }
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// How much of a data plane's configuration is not in force.
pub(super) fn show_refused(part: &str, configuration: &Live<Configuration>, shared: &Shared) {
    let help = "Resources of which the newest version is not in force in this process.";
    shared.registry.describe(REFUSED, MetricKind::Gauge, help);
    let now = configuration.clone();
    let count = move || f64::from(u32::try_from(now.load().refused.len()).unwrap_or(u32::MAX));
    shared.registry.computed(REFUSED, &[("part", part)], MetricKind::Gauge, count);
}

/// The keys that the settings name.
///
/// # Errors
/// A file cannot be read, or holds no public key of Ed25519 or P-256.
pub(super) fn policy_keys(settings: &Settings) -> Result<PolicyKeys, Error> {
    let mut keys = PolicyKeys::default();
    for path in &settings.policy_keys {
        let wrong = |problem: String| Error::Setting {
            field: "policy_keys",
            problem: format!("{}: {problem}", path.display()),
        };
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        keys.add(&pem).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(keys)
}

fn show_silence(part: &str, freshness: &Arc<Freshness>, shared: &Shared) {
    let help = "Seconds since anything was heard from where the configuration comes from; 0 while it answers.";
    shared.registry.describe(SILENT, MetricKind::Gauge, help);
    let freshness = freshness.clone();
    let silence = move || Duration::from_millis(freshness.age(unix_millis())).as_secs_f64();
    shared.registry.computed(SILENT, &[("part", part)], MetricKind::Gauge, silence);
}

/// What is held off makes what is in force another state than the declared one, however well the control plane is heard.
fn tell_freshness(freshness: &Freshness, status: &FeedStatus) {
    if status.is_connected && status.held_off.is_none() {
        freshness.confirm();
    } else {
        freshness.silent_since(status.heard_at);
    }
}

fn record(held_off: &HeldOff, shared: &Shared) {
    let HeldOff { revision, deaths, in_force } = held_off;
    let reason = format!(
        "the process died {deaths} times soon after it took it; revision {in_force} is in force until another one comes"
    );
    let record = ConfigRecord {
        event: "held_off",
        revision: *revision,
        changes: None,
        kind: None,
        id: None,
        reason: Some(&reason),
    };
    // What is lost here is counted in the log itself.
    let _ = shared.audit.control().config(&record);
}
