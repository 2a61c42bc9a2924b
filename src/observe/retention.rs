//! How long files that were put aside are kept. What is deleted is on record first: a log whose beginning was retired knowingly
//! is told from one whose beginning somebody took away.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::chain::{self, Link, Tail};
use super::error::Error;
use super::heir::Output;
use super::settings::RetainSettings;
use super::writer::Writer;

/// How often it is looked whether a file is too old. What a rotation makes too much goes at once.
const LOOK: Duration = Duration::from_secs(600);

/// A file that was put aside.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Aside {
    path: PathBuf,
    bytes: u64,
    age: Duration,
}

/// How many of the oldest are too much.
fn too_many(files: &[Aside], retain: &RetainSettings) -> usize {
    let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
    let mut left = files.len();
    let is_too_much = |file: &Aside| {
        let by_count = retain.files.is_some_and(|most| left > most as usize);
        let by_size = retain.bytes.is_some_and(|most| bytes > most);
        let day = Duration::from_secs(86_400);
        let by_age = retain.days.is_some_and(|most| file.age >= day * most);
        bytes -= file.bytes;
        left -= 1;
        by_count || by_size || by_age
    };
    files.iter().map(is_too_much).take_while(|too_much| *too_much).count()
}

/// What stood in a file: its first record's number, and its last that holds.
fn contents(path: &Path) -> Option<(u64, Link)> {
    let first = chain::first_seq(path)?;
    match chain::tail(&mut File::open(path).ok()?).ok()? {
        Tail::Sound(last) | Tail::Damaged { last: Some(last), .. } => Some((first, last)),
        Tail::Empty | Tail::Damaged { last: None, .. } => None,
    }
}

impl Writer {
    /// Says which files are deleted; they are when that is written.
    pub(super) fn retire(&mut self) -> Result<(), Error> {
        let is_due = self.looked_at_retention.is_none_or(|looked| looked.elapsed() >= LOOK);
        if !is_due
            || !matches!(self.output, Output::Own)
            || !self.state.retires.load(Ordering::Acquire)
        {
            return Ok(());
        }
        self.looked_at_retention = Some(Instant::now());
        let retain = self.settings.retain.clone();
        if (retain.bytes, retain.days, retain.files) == (None, None, None) {
            return Ok(());
        }
        let Some(log) = self.file.as_ref().map(|file| file.path.clone()) else { return Ok(()) };
        let now = SystemTime::now();
        let aside = |(_, path): (u64, PathBuf)| {
            let metadata = std::fs::metadata(&path).ok()?;
            let age = now.duration_since(metadata.modified().ok()?).unwrap_or_default();
            Some(Aside { path, bytes: metadata.len(), age })
        };
        let files: Vec<Aside> = chain::rotated(&log).into_iter().filter_map(aside).collect();
        let delivered = self.state.holds.delivered().filter(|_| retain.undelivered);
        for file in files.iter().take(too_many(&files, &retain)) {
            let found = contents(&file.path);
            let is_needed = match (found, delivered) {
                (Some((_, last)), Some(delivered)) => last.seq > delivered,
                (None, Some(_)) => true,
                (_, None) => false,
            };
            if is_needed {
                tracing::warn!(file = %file.path.display(), "a file of the audit log is kept although it is due: not all of it is delivered");
                self.retention_waits();
                break;
            }
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.compose_retired(|fields| {
                fields.text("file", &name);
                fields.number("bytes", file.bytes);
                if let Some((first, last)) = found {
                    fields.number("first_seq", first);
                    fields.number("last_seq", last.seq);
                    fields.number("records", (last.seq + 1).saturating_sub(first));
                    fields.hex("last_hash", &last.hash);
                }
            });
            self.retired.push(file.path.clone());
        }
        Ok(())
    }

    /// It is looked again in some time, and not with each batch.
    fn retention_waits(&mut self) {
        let soon = Instant::now().checked_sub(LOOK - Duration::from_secs(5));
        self.looked_at_retention = soon.or_else(|| Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_until_every_limit_is_kept() {
        let file = |number: u32, bytes: u64, days: u64| Aside {
            path: format!("audit-{number:06}.jsonl").into(),
            bytes,
            age: Duration::from_secs(86_400 * days),
        };
        let files = [file(1, 100, 9), file(2, 100, 5), file(3, 100, 1)];
        let retain = RetainSettings::default();
        assert_eq!(too_many(&files, &retain), 0);
        for (limits, gone) in [
            (RetainSettings { files: Some(2), ..retain.clone() }, 1),
            (RetainSettings { files: Some(0), ..retain.clone() }, 3),
            (RetainSettings { bytes: Some(250), ..retain.clone() }, 1),
            (RetainSettings { bytes: Some(99), ..retain.clone() }, 3),
            (RetainSettings { days: Some(5), ..retain.clone() }, 2),
            (RetainSettings { days: Some(30), files: Some(2), ..retain }, 1),
        ] {
            assert_eq!(too_many(&files, &limits), gone, "{limits:?}");
        }
    }
}
