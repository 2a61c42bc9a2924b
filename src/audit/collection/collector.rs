//! `Collector`: the one writer of the archive. What comes while it waits for the disk goes into its next commit together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::archive::{Archive, Inner};
use super::error::ArchiveError;
use super::intake::{Job, Origin, Taken};
use crate::identity::Identity;
use crate::rt::{Live, Tasks, unix_millis};

/// Batches that wait for the disk; who comes on top waits with its batch in hand.
const WAITING: usize = 16;
/// How often it is looked for what need not be kept any more.
const RETIRE_EVERY: Duration = Duration::from_secs(60);

/// Where records go in. Clones are the same writer.
#[derive(Clone, Debug)]
pub struct Collector {
    archive: Archive,
    jobs: mpsc::Sender<Job>,
    identity: Option<Live<Identity>>,
}

impl Collector {
    /// Starts the writer; it ends when all collectors are gone. `identity` says whom we trust to seal; without one the signatures of
    /// seals are judged, and not who vouches for them.
    pub fn start(archive: Archive, identity: Option<Live<Identity>>, tasks: &mut Tasks) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING);
        tasks.add(write(archive.inner.clone(), waiting));
        Self { archive, jobs, identity }
    }

    /// What it writes.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Takes lines of a log in their order. When it returns, what it says is stored is on the disk.
    ///
    /// # Errors
    /// The archive cannot be written: nothing is known to be stored, and the same lines may come again.
    pub async fn take(&self, origin: Origin, lines: Vec<Bytes>) -> Result<Taken, ArchiveError> {
        let trust = self.identity.as_ref().map(|identity| identity.load().trust.clone());
        let inner = self.archive.inner.clone();
        let preparing = tokio::task::spawn_blocking(move || {
            let prepared = inner.prepare(&origin, lines, trust.as_deref());
            (origin, prepared)
        });
        let (origin, lines) = preparing.await.map_err(|_| ArchiveError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let job = Job { origin, lines, answer };
        self.jobs.send(job).await.map_err(|_| ArchiveError::Closed)?;
        answered.await.map_err(|_| ArchiveError::Closed)?
    }
}

async fn write(inner: Arc<Inner>, mut waiting: mpsc::Receiver<Job>) {
    let mut look = tokio::time::interval(RETIRE_EVERY);
    loop {
        let mut jobs = Vec::new();
        tokio::select! {
            count = waiting.recv_many(&mut jobs, WAITING) => if count == 0 { return },
            _ = look.tick() => {}
        }
        let inner = inner.clone();
        let writing = tokio::task::spawn_blocking(move || {
            if !jobs.is_empty() {
                inner.take(jobs);
            }
            if let Err(error) = inner.retire(unix_millis()) {
                tracing::error!(%error, "old records cannot be deleted from the archive");
            }
        });
        if let Err(error) = writing.await
            && error.is_panic()
        {
            // Whoever waited for this commit asks again.
            tracing::error!(%error, "a commit of the archive failed");
        }
    }
}
