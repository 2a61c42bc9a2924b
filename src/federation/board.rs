//! What is known of each declared trust domain, for people, probes and scrapers.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::observe::{MetricKind, Registry};
use crate::rt::Clock;

/// How it stands with a declared trust domain in one part of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DomainReport {
    /// `sidecar`, `ingress`, `control` or `issuer`.
    pub part: String,
    /// The trust domain.
    pub trust_domain: String,
    /// `resource`, `endpoint`, `source` (only revocation is declared), or `broken`.
    pub origin: &'static str,
    /// Where the bundle is fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Is there a bundle, so that somebody of the domain can be trusted?
    pub has_bundle: bool,
    /// How many roots it has.
    pub roots: usize,
    /// `spiffe_sequence` of the bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// When the bundle was fetched last, seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetched_at: Option<i64>,
    /// When it will be fetched again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_at: Option<i64>,
    /// Fetches that failed since the last good one.
    pub failures: u64,
    /// Why the last fetch failed, or what is broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The last error may be an attack: a rollback, or another bundle under the same number.
    pub alarm: bool,
    /// What revocation lists mean: `off`, `soft`, `hard`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocation: Option<&'static str>,
    /// Its revocation lists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lists: Vec<ListReport>,
}

/// How it stands with a source of revocation lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ListReport {
    /// `resource`, a path or a URL.
    pub from: String,
    /// When the newest list was made, seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub this_update: Option<i64>,
    /// When the next one is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_update: Option<i64>,
    /// Why there is none, or no newer one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// All reports of a process, and their metrics. Clones are the same board.
#[derive(Clone, Debug)]
pub struct Board {
    shared: Arc<Shared>,
    registry: Registry,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Shared {
    reports: Mutex<Reports>,
}

/// By part and trust domain.
type Reports = BTreeMap<(String, String), DomainReport>;

impl Board {
    /// An empty board whose metrics are in `registry`.
    pub fn new(registry: &Registry) -> Self {
        for (name, kind, help) in [
            (
                "wardgate_federation_bundle_age_seconds",
                MetricKind::Gauge,
                "Seconds since the bundle of a trust domain was fetched.",
            ),
            (
                "wardgate_federation_bundle_sequence",
                MetricKind::Gauge,
                "spiffe_sequence of the bundle in force.",
            ),
            (
                "wardgate_federation_fetch_failures",
                MetricKind::Gauge,
                "Fetches that failed since the last good one.",
            ),
            (
                "wardgate_federation_alarm",
                MetricKind::Gauge,
                "1 while the last fetch looked like an attack: rollback, or other content under the same sequence.",
            ),
            (
                "wardgate_federation_errors_total",
                MetricKind::Counter,
                "Fetches that failed, by reason.",
            ),
        ] {
            registry.describe(name, kind, help);
        }
        Self { shared: Arc::default(), registry: registry.clone(), clock: Clock::system() }
    }

    /// All reports.
    pub fn reports(&self) -> Vec<DomainReport> {
        self.shared.reports.lock().values().cloned().collect()
    }

    /// The reports of a part are these and no others.
    pub(super) fn set(&self, part: &str, reports: Vec<DomainReport>) {
        let mut all = self.shared.reports.lock();
        let mut new = Vec::new();
        let mut gone: Vec<(String, String)> =
            all.keys().filter(|key| key.0 == part).cloned().collect();
        for report in reports {
            let key = (part.to_owned(), report.trust_domain.clone());
            gone.retain(|other| *other != key);
            if report.url.is_some() {
                new.push(key.clone());
            }
            all.insert(key, report);
        }
        for key in gone {
            all.remove(&key);
        }
        drop(all);
        for key in new {
            self.measure(&key);
        }
    }

    /// One more failed fetch.
    pub(super) fn failed(&self, trust_domain: &str, reason: &str) {
        let labels = [("trust_domain", trust_domain), ("reason", reason)];
        self.registry.counter("wardgate_federation_errors_total", &labels).increment();
    }

    /// The same name and labels are the same series: doing it again changes nothing.
    #[expect(clippy::cast_precision_loss, reason = "metrics' values")]
    fn measure(&self, key: &(String, String)) {
        type Read = fn(&DomainReport, i64) -> f64;
        let reads: [(&str, Read); 4] = [
            ("wardgate_federation_bundle_age_seconds", |report, now| {
                report.fetched_at.map_or(f64::INFINITY, |at| (now - at).max(0) as f64)
            }),
            ("wardgate_federation_bundle_sequence", |report, _| {
                report.sequence.map_or(f64::NAN, |sequence| sequence as f64)
            }),
            ("wardgate_federation_fetch_failures", |report, _| report.failures as f64),
            ("wardgate_federation_alarm", |report, _| f64::from(u8::from(report.alarm))),
        ];
        for (name, read) in reads {
            let labels = [("part", key.0.as_str()), ("trust_domain", key.1.as_str())];
            let (shared, clock, key) =
                (Arc::downgrade(&self.shared), self.clock.clone(), key.clone());
            self.registry.computed(name, &labels, MetricKind::Gauge, move || {
                let Some(shared) = shared.upgrade() else { return f64::NAN };
                let reports = shared.reports.lock();
                reports.get(&key).map_or(f64::NAN, |report| read(report, clock.now()))
            });
        }
    }
}
