//! `Archive`: the records of all data planes in one embedded database file.
//!
//! What was taken is on the disk (fsync) before anybody is told so. Records are taken in groups, one commit a group, so that many
//! data planes share one wait for the disk. Questions read beside that, each a state of the file that does not change under them.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable};
use tokio::sync::watch;

use super::error::{ArchiveError, failed};
use super::settings::ArchiveSettings;
use super::tables::{
    CHAINS, COUNTERS, COUNTERSIGNATURES, ChainFacts, FINDINGS, FORMAT, Names, SEGMENTS, Segment,
    TOLD,
};
use crate::observe::{AuditLane, Counter, Countersigner, Gauge, MetricKind, Registry};

/// The archive's file, opened. Clones are the same archive.
#[derive(Clone)]
pub struct Archive {
    pub(super) inner: Arc<Inner>,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

pub(super) struct Inner {
    pub(super) path: PathBuf,
    pub(super) database: Database,
    pub(super) settings: ArchiveSettings,
    pub(super) state: Mutex<State>,
    /// Held by the one that writes.
    pub(super) signer: Mutex<Option<Countersigner>>,
    /// The number behind the newest record: rings when there are more.
    pub(super) newest: watch::Sender<u64>,
    pub(super) lane: Option<AuditLane>,
    pub(super) metrics: Option<ArchiveMetrics>,
}

/// What is known without asking the file. Only the one writer changes it, after its commit.
#[derive(Default)]
pub(super) struct State {
    pub(super) chains: BTreeMap<u32, ChainFacts>,
    /// The chains of an origin and node, the newest last.
    pub(super) of_origin: HashMap<(String, String), Vec<u32>>,
    pub(super) segments: BTreeMap<u32, Segment>,
    pub(super) next_record: u64,
    pub(super) next_chain: u32,
    pub(super) next_finding: u64,
}

impl State {
    pub(super) fn add(&mut self, facts: ChainFacts) {
        let key = (facts.origin.clone(), facts.node.clone());
        let chains = self.of_origin.entry(key).or_default();
        if !chains.contains(&facts.chain) {
            chains.push(facts.chain);
        }
        self.chains.insert(facts.chain, facts);
    }
}

const RECORDS: &str = "wardgate_archive_records_total";
const ALARMS: &str = "wardgate_archive_alarms_total";
const RETIRED: &str = "wardgate_archive_retired_total";
const BYTES: &str = "wardgate_archive_bytes";

/// The archive in figures.
#[derive(Clone, Debug)]
pub(super) struct ArchiveMetrics {
    pub(super) records: Arc<Counter>,
    pub(super) alarms: Arc<Counter>,
    pub(super) retired: Arc<Counter>,
    pub(super) bytes: Arc<Gauge>,
}

impl ArchiveMetrics {
    fn new(registry: &Registry) -> Self {
        for (name, kind, help) in [
            (RECORDS, MetricKind::Counter, "Records of decision logs taken into the archive."),
            (
                ALARMS,
                MetricKind::Counter,
                "Gaps, rewritten pasts and bad seals found in collected decision logs.",
            ),
            (RETIRED, MetricKind::Counter, "Records deleted from the archive by its retention."),
            (BYTES, MetricKind::Gauge, "Bytes of records in the archive, their index included."),
        ] {
            registry.describe(name, kind, help);
        }
        Self {
            records: registry.counter(RECORDS, &[]),
            alarms: registry.counter(ALARMS, &[]),
            retired: registry.counter(RETIRED, &[]),
            bytes: registry.gauge(BYTES, &[]),
        }
    }
}

impl Archive {
    /// Opens the file, or makes it (and its folder) when it does not exist. Blocks.
    ///
    /// # Errors
    /// The file is damaged, in use by another process, or cannot be read or made.
    pub fn open(path: &Path, settings: ArchiveSettings) -> Result<Self, ArchiveError> {
        let database = match path.try_exists() {
            Ok(true) => open_existing(path)?,
            Ok(false) => create(path)?,
            Err(error) => {
                return Err(ArchiveError::File { path: path.into(), why: error.to_string() });
            }
        };
        let state = read_state(path, &database)?;
        let newest = watch::channel(state.next_record).0;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                database,
                settings,
                state: Mutex::new(state),
                signer: Mutex::new(None),
                newest,
                lane: None,
                metrics: None,
            }),
        })
    }

    /// Countersigns seals with this, tells alarms in this log, and counts in these metrics. To be called before it is shared.
    #[must_use]
    pub fn with(mut self, signer: Countersigner, lane: AuditLane, registry: &Registry) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.signer = Mutex::new(Some(signer));
            inner.lane = Some(lane);
            let metrics = ArchiveMetrics::new(registry);
            inner.metrics = Some(metrics);
            inner.show_bytes();
        }
        self
    }

    /// All chains, by number.
    pub fn chains(&self) -> Vec<ChainFacts> {
        self.inner.state.lock().chains.values().cloned().collect()
    }

    /// One chain.
    pub fn chain(&self, chain: u32) -> Option<ChainFacts> {
        self.inner.state.lock().chains.get(&chain).cloned()
    }

    /// The number behind the newest record, and a bell for more.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.inner.newest.subscribe()
    }

    /// Bytes of records, their index included.
    pub fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
}

impl Inner {
    pub(super) fn failed(&self, error: impl Into<redb::Error>) -> ArchiveError {
        failed(&self.path, error)
    }

    pub(super) fn show_bytes(&self) {
        if let Some(metrics) = &self.metrics {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            metrics.bytes.set(self.bytes() as f64);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.state.lock().segments.values().map(|segment| segment.bytes).sum()
    }
}

/// Makes a new file under another name and moves it to its place when it is whole: a crash leaves none or a good one.
fn create(path: &Path) -> Result<Database, ArchiveError> {
    let file = |why: std::io::Error| ArchiveError::File { path: path.into(), why: why.to_string() };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(file)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let made = make(path, &new).and_then(|()| {
        // A hard link fails when another process was faster; a rename would overwrite its file.
        std::fs::hard_link(&new, path).map_err(file)
    });
    let removed = std::fs::remove_file(&new).map_err(file);
    made.and(removed)?;
    open_existing(path)
}

fn make(path: &Path, new: &Path) -> Result<(), ArchiveError> {
    let fail = |error: redb::Error| failed(path, error);
    // It tells who called whom: it is for its owner alone.
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(new);
    let file =
        file.map_err(|why| ArchiveError::File { path: path.into(), why: why.to_string() })?;
    let backend = FileBackend::new(file).map_err(|error| fail(error.into()))?;
    let backed = Database::builder().create_with_backend(backend);
    let database = backed.map_err(|error| fail(error.into()))?;
    let mut transaction = database.begin_write().map_err(|error| fail(error.into()))?;
    transaction.set_quick_repair(true);
    {
        let mut counters = transaction.open_table(COUNTERS).map_err(|error| fail(error.into()))?;
        counters.insert("format", FORMAT).map_err(|error| fail(error.into()))?;
        transaction.open_table(CHAINS).map_err(|error| fail(error.into()))?;
        transaction.open_table(SEGMENTS).map_err(|error| fail(error.into()))?;
        transaction.open_table(COUNTERSIGNATURES).map_err(|error| fail(error.into()))?;
        transaction.open_table(FINDINGS).map_err(|error| fail(error.into()))?;
        transaction.open_table(TOLD).map_err(|error| fail(error.into()))?;
    }
    transaction.commit().map_err(|error| fail(error.into()))?;
    database.close().map_err(|error| fail(error.into()))
}

fn open_existing(path: &Path) -> Result<Database, ArchiveError> {
    // Not checked page by page as the store is: it is many times as large, each page that is read is checked then, and
    // `audit verify` reads them all.
    Database::builder().open(path).map_err(|error| failed(path, error))
}

fn read_state(path: &Path, database: &Database) -> Result<State, ArchiveError> {
    let damaged = |why: String| ArchiveError::Damaged { path: path.to_owned(), why };
    let transaction = database.begin_read().map_err(|error| failed(path, error))?;
    let counters = transaction.open_table(COUNTERS).map_err(|error| failed(path, error))?;
    let counter = |name: &str| -> Result<Option<u64>, ArchiveError> {
        let value = counters.get(name).map_err(|error| failed(path, error))?;
        Ok(value.map(|value| value.value()))
    };
    match counter("format")? {
        Some(FORMAT) => {}
        Some(format) => {
            let why =
                format!("its format is {format}, this version of Wardgate reads format {FORMAT}");
            return Err(ArchiveError::File { path: path.to_owned(), why });
        }
        None => return Err(damaged("it has no format".into())),
    }
    let mut state = State {
        next_record: counter("next_record")?.unwrap_or(1),
        next_finding: counter("next_finding")?.unwrap_or(1),
        next_chain: 1,
        ..State::default()
    };
    let chains = transaction.open_table(CHAINS).map_err(|error| failed(path, error))?;
    for row in chains.iter().map_err(|error| failed(path, error))? {
        let (chain, json) = row.map_err(|error| failed(path, error))?;
        let facts: ChainFacts = serde_json::from_slice(json.value())
            .map_err(|error| damaged(format!("chain {}: {error}", chain.value())))?;
        state.add(facts);
    }
    let next_chain = counter("next_chain")?.and_then(|next| u32::try_from(next).ok());
    state.next_chain = next_chain.unwrap_or(1);
    let segments = transaction.open_table(SEGMENTS).map_err(|error| failed(path, error))?;
    for row in segments.iter().map_err(|error| failed(path, error))? {
        let (segment, row) = row.map_err(|error| failed(path, error))?;
        let names = Names::of(segment.value());
        // All tables of a segment are made and dropped with its row.
        transaction.open_table(names.records()).map_err(|error| failed(path, error))?;
        state.segments.insert(segment.value(), Segment::of(row.value()));
    }
    Ok(state)
}
