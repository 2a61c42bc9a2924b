//! `OutputBoard`: how it stands with everything that follows the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::observe::{MetricKind, Registry};
use crate::rt::{unix_millis, unix_seconds};

/// How it stands with one output.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OutputReport {
    /// The output's name.
    pub name: String,
    /// The number of the last record that is behind it: delivered, refused, or not wanted.
    pub seq: u64,
    /// Records that were handed over since the start of the process.
    pub delivered: u64,
    /// Records that the other side will never take.
    pub undeliverable: u64,
    /// Records that were gone before they were delivered: retired, or taken away.
    pub missing: u64,
    /// Lines that were not what was written, and were passed over.
    pub damaged: u64,
    /// Records that wait.
    pub lag_records: u64,
    /// How long the oldest of them has waited.
    pub lag_seconds: f64,
    /// Since when nothing arrives, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<i64>,
    /// Why the last try failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Reports of all outputs of a process; clones are the same board.
#[derive(Clone, Debug, Default)]
pub struct OutputBoard {
    rows: Arc<Mutex<BTreeMap<String, Arc<Progress>>>>,
}

impl OutputBoard {
    /// An empty board, whose rows show as metrics.
    pub fn new(registry: &Registry) -> Self {
        let board = Self::default();
        board.shows(registry, COUNTERS, MetricKind::Counter);
        board.shows(registry, GAUGES, MetricKind::Gauge);
        board
    }

    fn shows(&self, registry: &Registry, metrics: &'static [Metric], kind: MetricKind) {
        for (name, help, value) in metrics {
            registry.describe(name, kind, help);
            let board = self.clone();
            registry.gathered(name, kind, move |row| {
                for report in board.reports() {
                    row(&[("output", &report.name)], value(&report));
                }
            });
        }
    }

    /// How it stands with each.
    pub fn reports(&self) -> Vec<OutputReport> {
        self.rows.lock().iter().map(|(name, progress)| progress.report(name)).collect()
    }

    /// Forgets an output that the settings have no more.
    pub fn forget(&self, name: &str) {
        self.rows.lock().remove(name);
    }

    /// The row of an output, which goes on where it was when there was one before.
    pub(super) fn row(&self, name: &str) -> Arc<Progress> {
        self.rows.lock().entry(name.to_owned()).or_default().clone()
    }
}

/// A metric's name, its meaning, and its value in a report.
type Metric = (&'static str, &'static str, fn(&OutputReport) -> f64);

#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point numbers")]
const COUNTERS: &[Metric] = &[
    (
        "wardgate_audit_output_delivered_total",
        "Records of the decision log that an output has handed over.",
        |report| report.delivered as f64,
    ),
    (
        "wardgate_audit_undeliverable_total",
        "Records of the decision log that an output's other side will never take.",
        |report| report.undeliverable as f64,
    ),
    (
        "wardgate_audit_output_missing_total",
        "Records of the decision log that were gone before an output could hand them over.",
        |report| report.missing as f64,
    ),
    (
        "wardgate_audit_output_damaged_total",
        "Lines of the decision log that an output passed over, since they are not what was written.",
        |report| report.damaged as f64,
    ),
];

#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point numbers")]
const GAUGES: &[Metric] = &[
    (
        "wardgate_audit_output_lag_records",
        "Records of the decision log that wait for an output.",
        |report| report.lag_records as f64,
    ),
    (
        "wardgate_audit_output_lag_seconds",
        "How long the oldest record that waits for an output has waited.",
        |report| report.lag_seconds,
    ),
    (
        "wardgate_audit_output_failing",
        "1 while an output's other side does not take records.",
        |report| f64::from(u8::from(report.failing_since.is_some())),
    ),
];

/// What a follower writes down.
#[derive(Debug, Default)]
pub(super) struct Progress {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    report: OutputReport,
    newest: u64,
    /// When the oldest record that waits happened, in milliseconds since 1970.
    waiting_since: Option<u64>,
}

impl Progress {
    fn report(&self, name: &str) -> OutputReport {
        let state = self.state.lock();
        let waited = state.waiting_since.map_or(0, |since| unix_millis().saturating_sub(since));
        OutputReport {
            name: name.to_owned(),
            lag_records: state.newest.saturating_sub(state.report.seq),
            lag_seconds: std::time::Duration::from_millis(waited).as_secs_f64(),
            ..state.report.clone()
        }
    }

    pub(super) fn waits_since(&self, time: Option<&str>) {
        let parsed = time.and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
        let millis = parsed.map(|time| time.unix_timestamp_nanos() / 1_000_000);
        self.state.lock().waiting_since = millis.and_then(|millis| u64::try_from(millis).ok());
    }

    /// All records up to this one are behind the output.
    pub(super) fn is_at(&self, seq: u64) {
        let mut state = self.state.lock();
        state.report.seq = seq;
    }

    /// Nothing waits.
    pub(super) fn is_level(&self) {
        let mut state = self.state.lock();
        (state.newest, state.waiting_since) = (state.report.seq, None);
    }

    /// The log has records up to this one.
    pub(super) fn newest_is(&self, seq: u64) {
        let mut state = self.state.lock();
        state.newest = seq;
    }

    pub(super) fn delivered(&self, records: u64) {
        self.state.lock().report.delivered += records;
    }

    pub(super) fn undeliverable(&self, records: u64) {
        self.state.lock().report.undeliverable += records;
    }

    pub(super) fn passed_over(&self, missing: u64, damaged: u64) {
        let mut state = self.state.lock();
        state.report.missing += missing;
        state.report.damaged += damaged;
    }

    /// A try failed; `true` for the first one of a row.
    pub(super) fn fails(&self, why: String) -> bool {
        let report = &mut self.state.lock().report;
        report.error = Some(why);
        let is_first = report.failing_since.is_none();
        report.failing_since.get_or_insert_with(unix_seconds);
        is_first
    }

    /// It works; `true` when it did not before.
    pub(super) fn works(&self) -> bool {
        let report = &mut self.state.lock().report;
        report.error = None;
        report.failing_since.take().is_some()
    }
}
