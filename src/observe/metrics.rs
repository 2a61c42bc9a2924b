//! Metrics: our own registry and Prometheus' text format, because APISIX's metric names do not fit the official crate.
//!
//! A series is looked up once, when configuration is compiled; counting is one atomic addition to a cell of the thread's own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// Threads beyond this share cells.
const MAX_CELLS: usize = 8;

/// A cell that shares its cache line with no other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Lone<T>(T);

/// The cell of this thread among `cells`.
fn own<T>(cells: &[Lone<T>]) -> &T {
    thread_local! {
        static THREAD: Cell<usize> = {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            Cell::new(NEXT.fetch_add(1, Ordering::Relaxed))
        };
    }
    // The number of cells is a power of two.
    &cells[THREAD.get() & (cells.len() - 1)].0
}

fn cells<T: Default>() -> Box<[Lone<T>]> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    (0..threads.next_power_of_two().min(MAX_CELLS)).map(|_| Lone::default()).collect()
}

/// Something that only grows.
#[derive(Debug)]
pub struct Counter {
    cells: Box<[Lone<AtomicU64>]>,
}

impl Counter {
    fn new() -> Self {
        Self { cells: cells() }
    }

    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, amount: u64) {
        own(&self.cells).fetch_add(amount, Ordering::Relaxed);
    }

    /// All of them.
    pub fn value(&self) -> u64 {
        self.cells.iter().map(|cell| cell.0.load(Ordering::Relaxed)).sum()
    }
}

/// Something that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge {
    bits: AtomicU64,
}

impl Gauge {
    /// The value is now this.
    pub fn set(&self, value: f64) {
        self.bits.store(value.to_bits(), Ordering::Relaxed);
    }

    /// So much more, or less.
    pub fn add(&self, amount: f64) {
        add_float(&self.bits, amount);
    }

    /// The value.
    pub fn value(&self) -> f64 {
        f64::from_bits(self.bits.load(Ordering::Relaxed))
    }
}

fn add_float(bits: &AtomicU64, amount: f64) {
    let add = |old: u64| Some((f64::from_bits(old) + amount).to_bits());
    let _ = bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
}

/// How values are distributed over buckets.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds, ascending.
    bounds: Arc<[f64]>,
    cells: Box<[Lone<Distribution>]>,
}

#[derive(Debug, Default)]
struct Distribution {
    /// One a bound, and one for what is above all. Made at the first use of the cell.
    counts: std::sync::OnceLock<Box<[AtomicU64]>>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: Arc<[f64]>) -> Self {
        Self { bounds, cells: cells() }
    }

    /// One more value.
    pub fn observe(&self, value: f64) {
        let cell = own(&self.cells);
        let counts = cell
            .counts
            .get_or_init(|| (0..=self.bounds.len()).map(|_| AtomicU64::new(0)).collect());
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        counts[bucket].fetch_add(1, Ordering::Relaxed);
        add_float(&cell.sum, value);
    }

    /// The counts of the buckets, not summed up, and the sum of all values.
    fn read(&self) -> (Vec<u64>, f64) {
        let mut totals = vec![0; self.bounds.len() + 1];
        let mut sum = 0.0;
        for cell in &self.cells {
            for (total, count) in totals.iter_mut().zip(cell.0.counts.get().into_iter().flatten()) {
                *total += count.load(Ordering::Relaxed);
            }
            sum += f64::from_bits(cell.0.sum.load(Ordering::Relaxed));
        }
        (totals, sum)
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.read().0.iter().sum()
    }
}

/// What a computed value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Its values fall into buckets.
    Histogram,
}

impl MetricKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

enum Series {
    Counter(Arc<Counter>),
    Gauge(Arc<Gauge>),
    Histogram(Arc<Histogram>),
    Computed(Arc<dyn Fn() -> f64 + Send + Sync>),
}

struct Family {
    kind: MetricKind,
    help: String,
    /// By their labels as they are written: `a="b",c="d"`.
    series: BTreeMap<String, Series>,
    /// Whoever knows rows that come and go.
    gathered: Vec<Gather>,
}

/// Gives rows, each by its labels and its value, to whom it is called with.
type Gather = Box<dyn Fn(&mut dyn FnMut(&[(&str, &str)], f64)) + Send + Sync>;

/// All metrics of a process. Clones are the same registry.
///
/// Labels come from configuration, never from what a client sends. The same name and labels give the same series.
/// ```
/// # use wardgate::observe::Registry;
/// let registry = Registry::new();
/// let found = registry.counter("apisix_http_status", &[("code", "200"), ("route", "1")]);
/// found.increment();
/// assert!(registry.render().contains("apisix_http_status{code=\"200\",route=\"1\"} 1\n"));
/// ```
#[derive(Clone)]
pub struct Registry {
    families: Arc<Mutex<BTreeMap<String, Family>>>,
    /// Series that were refused: too many of one name, or a name that cannot be.
    refused: Arc<AtomicU64>,
    max_series: usize,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("names", &self.families.lock().len())
            .finish_non_exhaustive()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// No metric yet; at most 100,000 series a name.
    pub fn new() -> Self {
        Self::bounded(100_000)
    }

    /// No metric yet; at most so many series a name. Further ones count, but are not shown; how many is shown.
    pub fn bounded(max_series: usize) -> Self {
        Self { families: Arc::default(), refused: Arc::default(), max_series }
    }

    /// What a metric is for, as scrapers show it.
    pub fn describe(&self, name: &str, kind: MetricKind, help: &str) {
        let mut families = self.families.lock();
        let family = families.entry(name.into()).or_insert_with(|| Family::new(kind));
        family.help = help.into();
    }

    /// A counter. Resolve it once and keep it.
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> Arc<Counter> {
        self.series(
            name,
            labels,
            MetricKind::Counter,
            || Series::Counter(Arc::new(Counter::new())),
            |series| match series {
                Series::Counter(counter) => Some(counter.clone()),
                Series::Gauge(_) | Series::Histogram(_) | Series::Computed(_) => None,
            },
        )
        .unwrap_or_else(|| Arc::new(Counter::new()))
    }

    /// A gauge. Resolve it once and keep it.
    pub fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> Arc<Gauge> {
        self.series(
            name,
            labels,
            MetricKind::Gauge,
            || Series::Gauge(Arc::default()),
            |series| match series {
                Series::Gauge(gauge) => Some(gauge.clone()),
                Series::Counter(_) | Series::Histogram(_) | Series::Computed(_) => None,
            },
        )
        .unwrap_or_default()
    }

    /// A histogram with these upper bounds. Resolve it once and keep it. The first one of its labels sets the bounds.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)], bounds: &[f64]) -> Arc<Histogram> {
        let mut sorted: Vec<f64> =
            bounds.iter().copied().filter(|bound| bound.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        sorted.dedup();
        let made = Arc::new(Histogram::new(sorted.into()));
        self.series(
            name,
            labels,
            MetricKind::Histogram,
            || Series::Histogram(made.clone()),
            |series| match series {
                Series::Histogram(histogram) => Some(histogram.clone()),
                Series::Counter(_) | Series::Gauge(_) | Series::Computed(_) => None,
            },
        )
        .unwrap_or(made)
    }

    /// A value that is worked out whenever somebody looks; it replaces an earlier one of the same labels. NaN is not shown.
    ///
    /// `value` must be quick and must not use the registry.
    pub fn computed(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        kind: MetricKind,
        value: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let value: Arc<dyn Fn() -> f64 + Send + Sync> = Arc::new(value);
        let text = label_text(labels);
        let mut families = self.families.lock();
        let family = families.entry(name.into()).or_insert_with(|| Family::new(kind));
        if is_name(name) && text.is_some() && family.kind == kind && kind != MetricKind::Histogram {
            family.series.insert(text.unwrap_or_default(), Series::Computed(value));
        } else {
            drop(families);
            self.refuse(name, "the name, its labels or its kind cannot be");
        }
    }

    /// Rows that come and go: `gather` is asked for them whenever somebody looks. Several may know rows of one name.
    ///
    /// `gather` must be quick and must not use the registry. A row with a label that cannot be is left out.
    pub fn gathered(
        &self,
        name: &str,
        kind: MetricKind,
        gather: impl Fn(&mut dyn FnMut(&[(&str, &str)], f64)) + Send + Sync + 'static,
    ) {
        let mut families = self.families.lock();
        let family = families.entry(name.into()).or_insert_with(|| Family::new(kind));
        if is_name(name) && family.kind == kind && kind != MetricKind::Histogram {
            family.gathered.push(Box::new(gather));
        } else {
            drop(families);
            self.refuse(name, "the name or its kind cannot be");
        }
    }

    /// The sum of the counters of a name that bear this label, as `outcome="deny"`; of all of them when it is empty.
    pub fn sum(&self, name: &str, label: &str) -> u64 {
        let families = self.families.lock();
        let series = families.get(name).into_iter().flat_map(|family| &family.series);
        series
            .filter(|(labels, _)| label.is_empty() || labels.split(',').any(|one| one == label))
            .map(|(_, series)| match series {
                Series::Counter(counter) => counter.value(),
                Series::Gauge(_) | Series::Histogram(_) | Series::Computed(_) => 0,
            })
            .sum()
    }

    fn series<T>(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        kind: MetricKind,
        make: impl FnOnce() -> Series,
        pick: impl FnOnce(&Series) -> Option<T>,
    ) -> Option<T> {
        let Some(text) = label_text(labels).filter(|_| is_name(name)) else {
            self.refuse(name, "the name or a label's name cannot be");
            return None;
        };
        let mut families = self.families.lock();
        let family = families.entry(name.into()).or_insert_with(|| Family::new(kind));
        let mut why = "it is of another kind";
        if family.kind == kind {
            if family.series.len() < self.max_series || family.series.contains_key(&text) {
                let series = family.series.entry(text).or_insert_with(make);
                if let Some(found) = pick(series) {
                    return Some(found);
                }
            } else {
                why = "it has too many series";
            }
        }
        drop(families);
        self.refuse(name, why);
        None
    }

    fn refuse(&self, name: &str, why: &str) {
        // Once is enough: the number tells the rest.
        if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!(metric = name, why, "a metric is counted but not shown");
        }
    }

    /// Everything, in Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(4096);
        // Writing into a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        for (name, family) in self.families.lock().iter() {
            let mut rows = String::new();
            for gather in &family.gathered {
                gather(&mut |labels, value| {
                    if let Some(labels) = label_text(labels) {
                        // Writing into a String cannot fail.
                        let _ = sample(&mut rows, name, "", &labels, "", Number(value));
                    }
                });
            }
            if family.series.is_empty() && rows.is_empty() {
                continue;
            }
            if !family.help.is_empty() {
                let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
                writeln!(out, "# HELP {name} {help}")?;
            }
            writeln!(out, "# TYPE {name} {}", family.kind.name())?;
            out.push_str(&rows);
            for (labels, series) in &family.series {
                match series {
                    Series::Counter(counter) => sample(out, name, "", labels, "", counter.value())?,
                    Series::Gauge(gauge) => {
                        sample(out, name, "", labels, "", Number(gauge.value()))?;
                    }
                    Series::Computed(value) => {
                        let value = value();
                        if !value.is_nan() {
                            sample(out, name, "", labels, "", Number(value))?;
                        }
                    }
                    Series::Histogram(histogram) => {
                        let (counts, sum) = histogram.read();
                        let mut total = 0;
                        for (at, count) in counts.iter().enumerate() {
                            total += count;
                            let bound = histogram.bounds.get(at).copied().unwrap_or(f64::INFINITY);
                            let le = format!("le=\"{}\"", Number(bound));
                            sample(out, name, "_bucket", labels, &le, total)?;
                        }
                        sample(out, name, "_sum", labels, "", Number(sum))?;
                        sample(out, name, "_count", labels, "", total)?;
                    }
                }
            }
        }
        let refused = self.refused.load(Ordering::Relaxed);
        if refused > 0 {
            writeln!(out, "# TYPE wardgate_metric_series_refused_total counter")?;
            writeln!(out, "wardgate_metric_series_refused_total {refused}")?;
        }
        Ok(())
    }
}

impl Family {
    fn new(kind: MetricKind) -> Self {
        Self { kind, help: String::new(), series: BTreeMap::new(), gathered: Vec::new() }
    }
}

fn sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: &str,
    more: &str,
    value: impl std::fmt::Display,
) -> std::fmt::Result {
    let comma = if labels.is_empty() || more.is_empty() { "" } else { "," };
    if labels.is_empty() && more.is_empty() {
        writeln!(out, "{name}{suffix} {value}")
    } else {
        writeln!(out, "{name}{suffix}{{{labels}{comma}{more}}} {value}")
    }
}

/// A number as Prometheus writes it.
struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            value if value.is_nan() => f.write_str("NaN"),
            f64::INFINITY => f.write_str("+Inf"),
            f64::NEG_INFINITY => f.write_str("-Inf"),
            value => write!(f, "{value}"),
        }
    }
}

fn is_name(name: &str) -> bool {
    let first = name.bytes().next();
    first.is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b':')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}

fn label_text(labels: &[(&str, &str)]) -> Option<String> {
    let mut out = String::new();
    for (at, (name, value)) in labels.iter().enumerate() {
        if !is_name(name) || name.contains(':') || *name == "le" {
            return None;
        }
        if at > 0 {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        for char in value.chars() {
            match char {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    Some(out)
}

/// Wardgate's own metrics, resolved once for a process.
#[derive(Clone, Debug)]
pub struct WardgateMetrics {
    registry: Registry,
    /// `wardgate_decisions_total{outcome="allow"}`.
    pub allowed: Arc<Counter>,
    /// `wardgate_connections_open`.
    pub connections_open: Arc<Gauge>,
    /// `wardgate_config_revision`: what this process runs.
    pub config_revision: Arc<Gauge>,
}

impl WardgateMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Self {
        use MetricKind::{Counter, Gauge};
        for (name, kind, help) in [
            ("wardgate_decisions_total", Counter, "Decisions of policy, by outcome and reason."),
            ("wardgate_audit_lost_total", Counter, "Records that the audit log had no room for."),
            ("wardgate_audit_writing", Gauge, "1 while the audit log can be written."),
            ("wardgate_config_revision", Gauge, "Revision of the configuration in force."),
            ("wardgate_handshakes_refused_total", Counter, "Handshakes refused, by reason."),
            ("wardgate_tls_handshakes_total", Counter, "Handshakes accepted, by key exchange."),
            ("wardgate_connections_open", Gauge, "Connections open now."),
        ] {
            registry.describe(name, kind, help);
        }
        Self {
            allowed: registry
                .counter("wardgate_decisions_total", &[("outcome", "allow"), ("reason", "")]),
            connections_open: registry.gauge("wardgate_connections_open", &[]),
            config_revision: registry.gauge("wardgate_config_revision", &[]),
            registry: registry.clone(),
        }
    }

    /// `wardgate_decisions_total{outcome="deny"}` of a reason's code. Resolve it once for each reason.
    pub fn denied(&self, reason: &'static str) -> Arc<Counter> {
        let labels = [("outcome", "deny"), ("reason", reason)];
        self.registry.counter("wardgate_decisions_total", &labels)
    }

    /// `wardgate_handshakes_refused_total` of a reason's code.
    pub fn handshakes_refused(&self, reason: &'static str) -> Arc<Counter> {
        self.registry.counter("wardgate_handshakes_refused_total", &[("reason", reason)])
    }

    /// `wardgate_tls_handshakes_total` of a key exchange. Resolve it once for each.
    pub fn handshakes(&self, group: &'static str) -> Arc<Counter> {
        self.registry.counter("wardgate_tls_handshakes_total", &[("group", group)])
    }

    /// Shows how the audit log fares.
    pub fn watch_audit(&self, audit: &super::AuditLog) {
        let lost = audit.clone();
        #[expect(clippy::cast_precision_loss, reason = "a metric's value")]
        let lost = move || lost.lost() as f64;
        self.registry.computed("wardgate_audit_lost_total", &[], MetricKind::Counter, lost);
        let audit = audit.clone();
        let writing = move || f64::from(u8::from(audit.is_writing()));
        self.registry.computed("wardgate_audit_writing", &[], MetricKind::Gauge, writing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_on_many_threads_is_rendered_as_prometheus_reads_it() {
        let registry = Registry::new();
        registry.describe("requests_total", MetricKind::Counter, "All\nof them.");
        let counter = registry.counter("requests_total", &[("route", "a\"b\\c\n")]);
        let latency = registry.histogram("latency", &[("type", "request")], &[5.0, 1.0, 10.0]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for at in 0..100_u32 {
                        counter.increment();
                        latency.observe(f64::from(at % 20));
                    }
                });
            }
        });
        registry.gauge("open", &[]).set(2.5);
        registry.gauge("open", &[]).add(-1.0);
        registry.computed("budget", &[], MetricKind::Gauge, || f64::INFINITY);
        registry.computed("budget", &[("of", "nobody")], MetricKind::Gauge, || f64::NAN);
        assert_eq!(
            registry.render(),
            "# TYPE budget gauge\nbudget +Inf\n\
             # TYPE latency histogram\n\
             latency_bucket{type=\"request\",le=\"1\"} 40\n\
             latency_bucket{type=\"request\",le=\"5\"} 120\n\
             latency_bucket{type=\"request\",le=\"10\"} 220\n\
             latency_bucket{type=\"request\",le=\"+Inf\"} 400\n\
             latency_sum{type=\"request\"} 3800\n\
             latency_count{type=\"request\"} 400\n\
             # TYPE open gauge\nopen 1.5\n\
             # HELP requests_total All\\nof them.\n\
             # TYPE requests_total counter\n\
             requests_total{route=\"a\\\"b\\\\c\\n\"} 400\n"
        );
        assert_eq!((counter.value(), latency.count()), (400, 400));
    }

    #[test]
    fn rows_that_come_and_go_are_asked_for_when_somebody_looks() {
        let registry = Registry::new();
        let nodes = Arc::new(Mutex::new(vec!["a"]));
        let seen = nodes.clone();
        registry.gathered("up", MetricKind::Gauge, move |row| {
            for node in &*seen.lock() {
                row(&[("node", node)], 1.0);
            }
            row(&[("le", "no such label")], 1.0);
        });
        registry.gathered("up", MetricKind::Gauge, |row| row(&[("node", "z")], 0.0));
        let (one, both) = ("up{node=\"z\"} 0\n", "up{node=\"a\"} 1\nup{node=\"z\"} 0\n");
        assert_eq!(registry.render(), format!("# TYPE up gauge\n{both}"));
        nodes.lock().clear();
        assert_eq!(registry.render(), format!("# TYPE up gauge\n{one}"));
    }

    #[test]
    fn series_are_shared_bounded_and_never_of_two_kinds() {
        let registry = Registry::bounded(2);
        registry.counter("c", &[("a", "1")]).increment();
        registry.counter("c", &[("a", "1")]).increment();
        registry.counter("c", &[("a", "2")]).increment();
        registry.counter("c", &[("a", "3")]).increment();
        registry.gauge("c", &[("a", "1")]).set(7.0);
        registry.counter("no name", &[]).increment();
        registry.counter("c", &[("le", "1")]).increment();
        assert_eq!(
            (registry.sum("c", "a=\"1\""), registry.sum("c", ""), registry.sum("d", "")),
            (2, 3, 0)
        );
        let text = registry.render();
        assert!(text.contains("c{a=\"1\"} 2\nc{a=\"2\"} 1\n"), "{text}");
        assert!(text.contains("wardgate_metric_series_refused_total 4\n"), "{text}");
        assert!(!text.contains("no name") && !text.contains("a=\"3\""), "{text}");
    }
}
