//! The ledger: every SVID that was issued, to whom and on what evidence. JSON lines, one file for each hour, appended and never
//! changed, so that a reader needs no lock and a crash costs no more than the line that was being written.
//!
//! A file goes when all that it names has expired a day ago, sooner when there are too many of them.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;

use super::super::Error;
use super::certificate::DAY;

/// The ledger's folder in the authority's directory.
const FOLDER: &str = "issued";
/// How long what has expired can still be asked for.
const KEPT_SECONDS: i64 = DAY;
/// From here on what has expired goes at once.
const MANY_BYTES: u64 = 256 << 20;
/// From here on nothing is issued: what cannot be recorded could not be revoked.
const MAX_BYTES: u64 = 1 << 30;
/// What an authority in memory remembers.
const MAX_IN_MEMORY: usize = 100_000;

/// Why somebody was given an identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The way that the request came: `workload api`, `command line`, `own process`.
    pub by: String,
    /// What attestation showed of the caller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<String>,
}

/// What an authority issues for the process that it is in.
const OWN_PROCESS: &str = "own process";

impl Evidence {
    /// The process that the authority is in asks for itself.
    pub fn own_process() -> Self {
        Self::by(OWN_PROCESS)
    }

    /// Evidence of a way alone.
    pub fn by(way: &str) -> Self {
        Self { by: way.to_owned(), selectors: Vec::new() }
    }
}

/// One SVID that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Whom it names.
    pub id: String,
    /// Its serial number, lower-case hexadecimal.
    pub serial: String,
    /// When it was issued, seconds since 1970.
    pub at: i64,
    /// When it ends, seconds since 1970.
    pub not_after: i64,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), lower-case hexadecimal.
    pub key: String,
    /// The root that it chains to, as the authority calls it.
    pub root: String,
    /// The intermediate that signed it, as the authority calls it.
    pub intermediate: String,
    /// Why it was issued.
    #[serde(flatten)]
    pub evidence: Evidence,
}

impl Issued {
    /// Has it not expired yet?
    pub fn is_live(&self, now: i64) -> bool {
        self.not_after >= now
    }
}

/// Of these, in the order in which they were issued, those that somebody may still use: a process that issues for itself drops
/// what it had when it gets another one.
pub(super) fn in_use(mut issued: Vec<Issued>) -> Vec<Issued> {
    let mut newest: BTreeMap<String, usize> = BTreeMap::new();
    for (at, one) in issued.iter().enumerate().filter(|(_, one)| one.evidence.by == OWN_PROCESS) {
        newest.insert(one.id.clone(), at);
    }
    let mut at = 0;
    issued.retain(|one| {
        let is_used = one.evidence.by != OWN_PROCESS || newest.get(&one.id) == Some(&at);
        at += 1;
        is_used
    });
    issued
}

/// The ledger of one authority.
#[derive(Debug)]
pub(super) enum Ledger {
    Memory(Mutex<Vec<Issued>>),
    Directory { folder: PathBuf, writer: Mutex<Writer> },
}

/// The end that lines are appended to.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// The open file and its name.
    open: Option<(String, File)>,
    /// Is there anything that the disk may not have yet?
    is_dirty: bool,
    /// Bytes of all files when they were counted last, and written since.
    bytes: u64,
    /// When the last entry of a file that is no longer written ends.
    ends: BTreeMap<String, i64>,
}

impl Ledger {
    pub(super) fn memory() -> Self {
        Self::Memory(Mutex::default())
    }

    pub(super) fn directory(directory: &Path) -> Self {
        Self::Directory { folder: directory.join(FOLDER), writer: Mutex::default() }
    }

    /// Records that an SVID is issued. To be called before it is handed out: what is not recorded is not issued.
    pub(super) fn record(&self, issued: &Issued) -> Result<(), Error> {
        match self {
            Self::Memory(all) => {
                let mut all = all.lock();
                if all.len() >= MAX_IN_MEMORY {
                    all.retain(|known| known.is_live(issued.at));
                }
                if all.len() >= MAX_IN_MEMORY {
                    return Err(Error::LedgerFull { path: "memory".into() });
                }
                all.push(issued.clone());
                Ok(())
            }
            Self::Directory { folder, writer } => {
                let mut writer = writer.lock();
                if writer.bytes > MAX_BYTES {
                    return Err(Error::LedgerFull { path: folder.clone() });
                }
                let appended = writer.append(folder, issued);
                appended.map_err(|source| Error::Write { path: folder.clone(), source })
            }
        }
    }

    /// Hands what was recorded over to the disk; without this a loss of power may take the last seconds.
    pub(super) fn flush(&self) -> Result<(), Error> {
        let Self::Directory { folder, writer } = self else { return Ok(()) };
        let mut writer = writer.lock();
        if !std::mem::take(&mut writer.is_dirty) {
            return Ok(());
        }
        let Some((_, file)) = &writer.open else { return Ok(()) };
        let flushed = file.sync_data();
        flushed.map_err(|source| Error::Write { path: folder.clone(), source })
    }

    /// Everything that is recorded, oldest first.
    pub(super) fn read(&self) -> Result<Vec<Issued>, Error> {
        match self {
            Self::Memory(all) => Ok(all.lock().clone()),
            Self::Directory { folder, .. } => read(folder),
        }
    }

    /// What has not expired and fits.
    pub(super) fn live(
        &self,
        now: i64,
        fits: impl Fn(&Issued) -> bool,
    ) -> Result<Vec<Issued>, Error> {
        let mut all = self.read()?;
        all.retain(|issued| issued.is_live(now) && fits(issued));
        Ok(all)
    }

    /// Lets go what expired long ago.
    pub(super) fn prune(&self, now: i64) -> Result<(), Error> {
        match self {
            Self::Memory(all) => {
                all.lock().retain(|issued| issued.is_live(now - KEPT_SECONDS));
                Ok(())
            }
            Self::Directory { folder, writer } => {
                let mut writer = writer.lock();
                let pruned = writer.prune(folder, now);
                pruned.map_err(|source| Error::Write { path: folder.clone(), source })
            }
        }
    }
}

/// Reads the ledger in an authority's directory, whoever writes it.
pub(super) fn read_in(directory: &Path) -> Result<Vec<Issued>, Error> {
    read(&directory.join(FOLDER))
}

fn read(folder: &Path) -> Result<Vec<Issued>, Error> {
    let mut all = Vec::new();
    let failed = |path: &Path, source| Error::Read { path: path.to_owned(), source };
    for name in names(folder).map_err(|source| failed(folder, source))? {
        let path = folder.join(&name);
        let (entries, damaged) = match read_file(&path) {
            Ok(read) => read,
            // Pruned in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(failed(&path, source)),
        };
        if damaged > 0 {
            tracing::warn!(file = %path.display(), damaged, "lines of the ledger that cannot be read");
        }
        all.extend(entries);
    }
    Ok(all)
}

/// The entries of a file, and how many of its whole lines are none.
fn read_file(path: &Path) -> io::Result<(Vec<Issued>, usize)> {
    let mut text = Vec::new();
    File::open(path)?.read_to_end(&mut text)?;
    let (mut entries, mut damaged) = (Vec::new(), 0);
    // What follows the last line feed is being written, or a crash ended it.
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    for line in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(entry) => entries.push(entry),
            Err(_) => damaged += 1,
        }
    }
    Ok((entries, damaged))
}

/// The ledger's files, oldest first.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".jsonl") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The file of an hour: `2026-11-21T15.jsonl`.
fn name_at(seconds: i64) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour].jsonl");
    let moment = OffsetDateTime::from_unix_timestamp(seconds).ok();
    moment.and_then(|moment| moment.format(format).ok()).unwrap_or_else(|| "1970.jsonl".into())
}

impl Writer {
    fn append(&mut self, folder: &Path, issued: &Issued) -> io::Result<()> {
        let name = name_at(issued.at);
        if self.open.as_ref().is_none_or(|(open, _)| *open != name) {
            if let Some((_, former)) = self.open.take() {
                former.sync_data()?;
            }
            self.open = Some((name.clone(), open(folder, &name)?));
            self.bytes = self.bytes.max(size(folder)?);
        }
        let Some((_, file)) = &mut self.open else { return Ok(()) };
        let mut line = serde_json::to_vec(issued)?;
        line.push(b'\n');
        // One call: lines of several processes do not mix.
        if let Err(error) = file.write_all(&line) {
            // Half a line may be there; opening again ends it.
            self.open = None;
            return Err(error);
        }
        self.is_dirty = true;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn prune(&mut self, folder: &Path, now: i64) -> io::Result<()> {
        let current = name_at(now);
        let mut bytes = size(folder)?;
        for name in names(folder)? {
            if name >= current {
                continue;
            }
            let path = folder.join(&name);
            let ends = match self.ends.get(&name) {
                Some(ends) => *ends,
                None => {
                    let (entries, _) = read_file(&path)?;
                    let ends = entries.iter().map(|entry| entry.not_after).max().unwrap_or(0);
                    self.ends.insert(name.clone(), ends);
                    ends
                }
            };
            let kept = if bytes > MANY_BYTES { 0 } else { KEPT_SECONDS };
            if ends + kept < now {
                bytes = bytes.saturating_sub(fs::metadata(&path)?.len());
                fs::remove_file(&path)?;
                self.ends.remove(&name);
            }
        }
        self.bytes = bytes;
        Ok(())
    }
}

fn size(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for name in names(folder)? {
        bytes += fs::metadata(folder.join(name)).map_or(0, |found| found.len());
    }
    Ok(bytes)
}

/// Opens a file at its end; a last line that a crash cut off is ended first.
fn open(folder: &Path, name: &str) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join(name);
    let mut options = OpenOptions::new();
    let mut file = options.create(true).append(true).read(true).mode(0o600).open(path)?;
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Folder;

    const NOON: i64 = 1_800_000_000;

    fn issued(serial: &str, at: i64, ttl: i64) -> Issued {
        Issued {
            id: "spiffe://a.test/web".into(),
            serial: serial.into(),
            at,
            not_after: at + ttl,
            key: "00".into(),
            root: "root-1".into(),
            intermediate: "intermediate-1".into(),
            evidence: Evidence { by: "workload api".into(), selectors: vec!["unix:uid:1".into()] },
        }
    }

    fn serials(ledger: &Ledger) -> Vec<String> {
        ledger.read().unwrap().into_iter().map(|issued| issued.serial).collect()
    }

    #[test]
    fn what_a_crash_cuts_off_costs_its_own_line_alone() {
        let folder = Folder::new();
        let ledger = Ledger::directory(folder.path());
        ledger.record(&issued("a", NOON, 60)).unwrap();
        let path = folder.path().join(FOLDER).join(name_at(NOON));
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"id\":\"spiffe://a.test/torn").unwrap();
        assert_eq!(serials(&ledger), ["a"], "a reader beside a writer");
        let again = Ledger::directory(folder.path());
        again.record(&issued("b", NOON, 60)).unwrap();
        again.flush().unwrap();
        assert_eq!(serials(&again), ["a", "b"]);
        assert_eq!(read_in(folder.path()).unwrap()[1], issued("b", NOON, 60));
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_expired_goes_after_a_day_and_what_lives_stays() {
        let folder = Folder::new();
        for ledger in [Ledger::directory(folder.path()), Ledger::memory()] {
            ledger.record(&issued("short", NOON, 60)).unwrap();
            ledger.record(&issued("long", NOON + 3600, DAY)).unwrap();
            assert_eq!(ledger.live(NOON + 61, |_| true).unwrap()[0].serial, "long");
            ledger.prune(NOON + 7200).unwrap();
            assert_eq!(serials(&ledger), ["short", "long"], "still asked for");
            ledger.prune(NOON + DAY + 61).unwrap();
            assert_eq!(serials(&ledger), ["long"]);
            ledger.prune(NOON + 3 * DAY).unwrap();
            assert!(serials(&ledger).is_empty());
        }
    }

    #[test]
    fn what_a_process_issued_for_itself_is_dropped_with_the_next() {
        let own = |serial: &str, id: &str| Issued {
            id: id.into(),
            evidence: Evidence::own_process(),
            ..issued(serial, NOON, 60)
        };
        let all = vec![own("a", "me"), issued("b", NOON, 60), own("c", "you"), own("d", "me")];
        let used: Vec<String> = in_use(all).into_iter().map(|one| one.serial).collect();
        assert_eq!(used, ["b", "c", "d"]);
    }

    #[test]
    fn a_ledger_without_room_lets_nothing_be_issued() {
        let folder = Folder::new();
        let ledger = Ledger::directory(folder.path());
        ledger.record(&issued("a", NOON, 60)).unwrap();
        let Ledger::Directory { writer, .. } = &ledger else { panic!("it is on disk") };
        writer.lock().bytes = MAX_BYTES + 1;
        assert!(matches!(ledger.record(&issued("b", NOON, 60)), Err(Error::LedgerFull { .. })));
        ledger.prune(NOON).unwrap();
        ledger.record(&issued("c", NOON, 60)).unwrap();
        assert_eq!(serials(&ledger), ["a", "c"]);
    }
}
