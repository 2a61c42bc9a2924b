//! Whether a control plane's store answers: who has lost it goes on with what was read, and says so.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::observe::{MetricKind, Readiness, Registry};
use crate::rt::{DrainGuard, Live, Publisher as Told, Tasks, unix_seconds};
use crate::store::Store;
use crate::sync::publisher::Publisher;

/// How often the store is asked for a sign of life.
const EVERY: Duration = Duration::from_secs(1);
/// So many times in a row it may fail to give one: a member that is left for the next one is no loss.
const FAILURES: u32 = 2;
const REACHABLE: &str = "wardgate_store_reachable";
/// Its name among the things that a process does without.
const NAME: &str = "store";

/// How it stands with the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Since when it does not answer, in seconds since 1970, and what was said last; nothing while it answers.
    pub(super) lost: Option<(i64, String)>,
}

/// Asks the store as long as the control plane runs.
pub(super) fn watch(
    (store, prefix): (Arc<dyn Store>, &str),
    publisher: Publisher,
    (readiness, registry): (&Readiness, &Registry),
    mut drain: DrainGuard,
    tasks: &mut Tasks,
) -> Live<Reach> {
    let (told, live) = Told::new(Reach::default());
    registry.describe(REACHABLE, MetricKind::Gauge, "1 while the control plane's store answers.");
    let seen = live.clone();
    let reachable = move || f64::from(u8::from(seen.load().lost.is_none()));
    registry.computed(REACHABLE, &[], MetricKind::Gauge, reachable);
    let (place, readiness) = (format!("{prefix}-fleet/none"), readiness.clone());
    tasks.add(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0;
        loop {
            tokio::select! {
                () = drain.asked() => return,
                _ = ticks.tick() => {}
            }
            let answer = tokio::select! {
                () = drain.asked() => return,
                answer = store.get(&place) => answer,
            };
            let lost = told.live().load().lost.clone();
            match answer {
                Ok(_) => {
                    failures = 0;
                    if lost.is_some() {
                        tracing::info!("the store answers again");
                        told.set(Reach::default());
                    }
                    readiness.does_without(NAME, None);
                }
                Err(error) => {
                    failures += 1;
                    if failures < FAILURES {
                        continue;
                    }
                    let since = lost.map_or_else(unix_seconds, |(since, _)| since);
                    let now = Reach { lost: Some((since, error.to_string())) };
                    if told.live().load().lost.is_none() {
                        tracing::error!(%error, "the store does not answer; data planes are fed what was read");
                    }
                    told.set(now);
                    let what = match publisher.is_loaded() {
                        true => format!(
                            "it does not answer; data planes are fed what was read up to revision {}",
                            publisher.reached()
                        ),
                        false => "it does not answer, and was not read yet".to_owned(),
                    };
                    readiness.does_without(NAME, Some(what));
                }
            }
        }
    });
    live
}
