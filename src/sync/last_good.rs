//! The last good copy: what was in force, on disk, so that a data plane can start while the control plane is away.
//!
//! The file is one line of JSON about the whole (format, owner, revision, SHA-256 of the rest) and one JSON array per resource:
//! `["routes","7",42,{..}]`. It holds secrets and is readable by its owner alone (mode 0600). A new copy is written beside it,
//! flushed to the disk and renamed into its place, so that there is always a whole one.
//!
//! **Damage.** A file that is not what it says, or that another data plane wrote, is an error that names it. It is not used, not
//! overwritten and not moved: it may be evidence, or an operator may repair it. Copies go to `<path>.new` meanwhile, and a start
//! finds them there. Moving the damaged file away (or deleting it) ends this: the next copy goes to `<path>` again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tracing::error;

use super::Batch;
use super::delta::{Key, Version};
use super::probation::{HeldOff, Probation, Sum};
use crate::model::{Body, Change, Id, Invalid, Kind, Rejected, Resource, Revision};
use crate::rt::crypto::digest::{self, SHA256};
use crate::rt::unix_seconds;

/// Why a last good copy cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file, or its folder, cannot be read or written.
    #[error("cannot use the last good copy {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a whole last good copy.
    #[error(
        "the last good copy {path} is damaged: {why}. It is left as it is and not used; new copies go beside it, with .new at the end of the name. Move it away to end this"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Both the file and the one beside it are damaged, so there is no place for a new one.
    #[error(
        "the last good copy {path} and the one beside it (.new) are damaged: nothing is overwritten, so no copy is kept. Move them away"
    )]
    NoPlace {
        /// The file.
        path: PathBuf,
    },
}

/// One resource as it came: its JSON text and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Which version this is.
    pub version: Version,
    /// Its JSON text.
    pub json: Arc<[u8]>,
}

impl Raw {
    /// A copy of `json` that keeps no larger buffer alive.
    pub(super) fn copied(revision: Revision, json: &[u8]) -> Self {
        Self { version: Version::of(revision, json), json: json.into() }
    }

    /// The resource that the text says.
    ///
    /// # Errors
    /// The text is not JSON, or not of the kind's shape.
    pub(super) fn parse(&self, key: &Key) -> Result<Resource, Invalid> {
        let value: Value = serde_json::from_slice(&self.json)
            .map_err(|error| Invalid::new(format!("not JSON: {error}")))?;
        let (kind, id) = key.clone();
        Ok(Resource { body: Body::parse(kind, &value)?, kind, id, revision: self.version.revision })
    }

    /// What stands in the place of a resource that the text should say and does not, see [`Body::closed`].
    pub(super) fn closed(&self, key: &Key) -> Option<Resource> {
        let value: Value = serde_json::from_slice(&self.json).ok()?;
        let (kind, id) = key.clone();
        let body = Body::closed(kind, &value)?;
        Some(Resource { kind, id, revision: self.version.revision, body })
    }
}

/// Resources by name. A tree: a table of a hundred thousand would be half empty.
pub type RawState = BTreeMap<Key, Raw>;

/// What a last good copy holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The revision that was in force.
    pub revision: Revision,
    /// When it was written, or last known to be what is declared, in seconds since 1970.
    pub saved_at: i64,
    /// The resources that were in force.
    pub resources: RawState,
}

impl Saved {
    /// The sum over its resources.
    pub(super) fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for (key, raw) in &self.resources {
            sum.add(key, raw.version);
        }
        sum
    }

    /// The copy as a full state.
    pub fn batch(&self) -> Batch {
        let mut batch = Batch { revision: self.revision, complete: true, ..Batch::default() };
        for (key, raw) in &self.resources {
            match raw.parse(key) {
                Ok(resource) => batch.changes.push(Change::Put(resource)),
                Err(Invalid(reason)) => {
                    batch.changes.extend(raw.closed(key).map(Change::Put));
                    batch.unreadable.push(Rejected {
                        kind: key.0,
                        id: key.1.clone(),
                        revision: raw.version.revision,
                        reason,
                    });
                }
            }
        }
        batch
    }
}

/// Who writes last good copies: this process, or the one that it takes over from or hands over to. Clones are one pen.
#[derive(Clone, Debug)]
pub struct Pen {
    is_up: watch::Sender<bool>,
    /// Held while a copy is written.
    writing: Arc<Mutex<()>>,
}

impl Default for Pen {
    fn default() -> Self {
        Self { is_up: watch::Sender::new(true), writing: Arc::default() }
    }
}

impl Pen {
    /// From here on nothing is written; waits for what is being written. Blocks.
    pub fn lay_down(&self) {
        self.is_up.send_replace(false);
        drop(self.writing.lock());
    }

    /// Copies are written again, beginning with what was not written meanwhile.
    pub fn take_up(&self) {
        self.is_up.send_replace(true);
    }

    /// May this process write at present?
    pub(super) fn is_up(&self) -> bool {
        *self.is_up.borrow()
    }

    /// Waits until copies may be written.
    pub(super) async fn up(&self) {
        // The sender is our own.
        let _ = self.is_up.subscribe().wait_for(|is_up| *is_up).await;
    }
}

/// The place of a data plane's last good copy. One process at a time uses it, see [`Pen`].
#[derive(Debug)]
pub struct LastGood {
    path: PathBuf,
    pen: Pen,
    owner: String,
    damage: Option<Error>,
    /// Where the next copy goes; none when everything is damaged.
    place: Option<PathBuf>,
    probation: Option<Arc<Probation>>,
}

const FORMAT: &str = "wardgate last good copy";
const FORMAT_VERSION: u32 = 1;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    owner: String,
    revision: Revision,
    resources: usize,
    saved_at: i64,
    sha256: String,
}

impl LastGood {
    /// Opens the copy at `path` for `owner` (role and SPIFFE ID: the copy of one data plane is not for another), and reads it.
    ///
    /// Damage is no error here but a loud log line and [`LastGood::damage`]: the data plane can still start from its control
    /// plane. The folder is made when it is missing.
    ///
    /// # Errors
    /// The file or its folder cannot be read or made.
    pub fn open(path: impl Into<PathBuf>, owner: &str) -> Result<(Self, Option<Saved>), Error> {
        let path = path.into();
        let in_file = |source| Error::File { path: path.clone(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(in_file)?;
        }
        let beside = beside(&path);
        let (damage, saved, place) = match read(&path, owner) {
            Ok(Some(saved)) => (None, Some(saved), Some(path.clone())),
            Ok(None) => (None, read_beside(&beside, owner)?.0, Some(path.clone())),
            Err(damage @ Error::Damaged { .. }) => {
                error!(error = %damage, "damaged last good copy");
                let (saved, is_free) = read_beside(&beside, owner)?;
                (Some(damage), saved, is_free.then_some(beside))
            }
            Err(other) => return Err(other),
        };
        let pen = Pen::default();
        let owner = owner.to_owned();
        Ok((Self { path, pen, owner, damage, place, probation: None }, saved))
    }

    /// Writes with this pen.
    #[must_use]
    pub fn with_pen(self, pen: &Pen) -> Self {
        Self { pen: pen.clone(), ..self }
    }

    /// Guarded against crash loops: a state has stood its probation when the process lives `within` after it. After
    /// [`LastGood::with_pen`].
    #[must_use]
    pub fn with_guard(self, within: Duration) -> Self {
        let probation = Probation::open(&self.path, within, &self.pen);
        Self { probation: Some(Arc::new(probation)), ..self }
    }

    /// What guards against crash loops.
    pub fn probation(&self) -> Option<&Arc<Probation>> {
        self.probation.as_ref()
    }

    /// What to begin with: `newest`, or what was in force before when the process has died with the newest state again and again:
    /// the last copy that stood its probation, and where there is none the newest one that came to the disk.
    pub(super) fn first(&self, newest: Option<Saved>) -> (Option<Saved>, Option<HeldOff>) {
        let Some(probation) = self.probation().filter(|probation| probation.is_looping()) else {
            return (newest, None);
        };
        let proven = read(&probation.proven(), &self.owner).ok().flatten();
        for before in proven.into_iter().chain(newest.clone()) {
            if let Some(held_off) = probation.fall_back(before.sum(), before.revision) {
                return (Some(before), Some(held_off));
            }
        }
        (newest, None)
    }

    /// Notes on the copy that it is still what is declared.
    pub(super) fn confirm(&self) {
        let Some(place) = self.place.as_ref().filter(|_| self.pen.is_up()) else { return };
        // It is not there before the first change; and who cannot write it has been told so.
        if let Ok(file) = OpenOptions::new().write(true).open(place) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// What it writes with.
    pub(super) fn pen(&self) -> &Pen {
        &self.pen
    }

    /// What was wrong with the file at [`LastGood::open`], for a health check.
    pub fn damage(&self) -> Option<&Error> {
        self.damage.as_ref()
    }

    /// Writes a new copy in the place of the one before: whole, or not at all. Blocks. `false` when the pen is laid down.
    ///
    /// # Errors
    /// The system refuses, or there is no place for a copy because everything there is damaged.
    pub fn save(&self, saved: &Saved) -> Result<bool, Error> {
        let _writing = self.pen.writing.lock();
        if !*self.pen.is_up.borrow() {
            return Ok(false);
        }
        let Some(place) = &self.place else {
            return Err(Error::NoPlace { path: self.path.clone() });
        };
        self.write(place, saved).map_err(|source| Error::File { path: place.clone(), source })?;
        if *place == self.path {
            // A copy that was written beside an earlier, damaged file is older than this one.
            let _ = fs::remove_file(beside(&self.path));
        }
        Ok(true)
    }

    fn write(&self, place: &Path, saved: &Saved) -> io::Result<()> {
        let mut body = Vec::new();
        for ((kind, id), raw) in &saved.resources {
            let json: &RawValue = serde_json::from_slice(&raw.json)?;
            serde_json::to_writer(&mut body, &(kind.name(), id, raw.version.revision, json))?;
            body.push(b'\n');
        }
        let header = Header {
            format: FORMAT.into(),
            version: FORMAT_VERSION,
            owner: self.owner.clone(),
            revision: saved.revision,
            resources: saved.resources.len(),
            saved_at: unix_seconds(),
            sha256: hex::encode(digest::digest(&SHA256, &body)),
        };
        let mut temporary = place.as_os_str().to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        // Left behind by a process that was killed and had our number.
        let _ = fs::remove_file(&temporary);
        let written = (|| {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            serde_json::to_writer(&mut file, &header)?;
            file.write_all(b"\n")?;
            file.write_all(&body)?;
            file.sync_all()?;
            fs::rename(&temporary, place)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written?;
        // The rename itself must survive a crash too.
        match place.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            Some(folder) => File::open(folder)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// What the copy beside holds, and whether its place may be written.
fn read_beside(path: &Path, owner: &str) -> Result<(Option<Saved>, bool), Error> {
    match read(path, owner) {
        Ok(saved) => Ok((saved, true)),
        Err(damage @ Error::Damaged { .. }) => {
            error!(error = %damage, "damaged last good copy");
            Ok((None, false))
        }
        Err(other) => Err(other),
    }
}

fn read(path: &Path, owner: &str) -> Result<Option<Saved>, Error> {
    match fs::read(path) {
        Ok(bytes) => {
            let mut saved = parse(&bytes, owner)
                .map_err(|why| Error::Damaged { path: path.to_owned(), why })?;
            saved.saved_at = saved.saved_at.max(confirmed_at(path));
            Ok(Some(saved))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

/// When a copy was last known to be what is declared ([`LastGood::confirm`]), in seconds since 1970; 0 when that cannot be told.
fn confirmed_at(path: &Path) -> i64 {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    let since = modified.ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or_default()
}

fn parse(bytes: &[u8], owner: &str) -> Result<Saved, String> {
    let end = memchr::memchr(b'\n', bytes).ok_or("its first line has no end")?;
    let (header, body) = (&bytes[..end], &bytes[end + 1..]);
    let header: Header =
        serde_json::from_slice(header).map_err(|_| "its first line is not a header of ours")?;
    if header.format != FORMAT || header.version != FORMAT_VERSION {
        let Header { format, version, .. } = header;
        return Err(format!(
            "it says it is {format:?} version {version}, expected {FORMAT:?} version {FORMAT_VERSION}"
        ));
    }
    if header.owner != owner {
        return Err(format!("it belongs to {}, and this is {owner}", header.owner));
    }
    if hex::encode(digest::digest(&SHA256, body)) != header.sha256 {
        return Err("its SHA-256 is not the one that its first line names".into());
    }
    let mut resources = RawState::default();
    type Line<'a> = (&'a str, Id, Revision, &'a RawValue);
    for line in serde_json::Deserializer::from_slice(body).into_iter::<Line<'_>>() {
        let (kind, id, revision, json) = line.map_err(|error| error.to_string())?;
        let kind = Kind::named(kind).ok_or_else(|| format!("it names the kind {kind:?}"))?;
        resources.insert((kind, id), Raw::copied(revision, json.get().as_bytes()));
    }
    if resources.len() != header.resources {
        let found = resources.len();
        return Err(format!("it has {found} resources, its first line says {}", header.resources));
    }
    Ok(Saved { revision: header.revision, saved_at: header.saved_at, resources })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::Folder;
    use super::*;

    const OWNER: &str = "sidecar spiffe://shop/cart";

    fn saved(revision: Revision) -> Saved {
        let raw = |name: &str, json: &str| {
            let (kind, id) = name.split_once('/').unwrap();
            let key = (Kind::named(kind).unwrap(), Id::parse(id).unwrap());
            (key, Raw::copied(revision, json.as_bytes()))
        };
        let resources = RawState::from_iter([
            raw("routes/1", "{\"uri\": \"/1\",\n  \"priority\": 1.0}"),
            raw("consumers/bob", r#"{"username":"bob","plugins":{"key-auth":{"key":"s3cret"}}}"#),
            raw("credentials/bob/credentials/one", r#"{"plugins":{"key-auth":{"key":"x"}}}"#),
        ]);
        Saved { revision, saved_at: 0, resources }
    }

    fn open(path: &Path) -> (LastGood, Option<Saved>) {
        LastGood::open(path, OWNER).unwrap()
    }

    #[test]
    fn what_was_saved_is_read_to_the_byte_and_by_its_owner_alone() {
        let folder = Folder::new("round-trip");
        let path = folder.0.join("below").join("last-good");
        let (place, nothing) = open(&path);
        assert!(nothing.is_none() && place.damage().is_none());
        place.save(&saved(6)).unwrap();
        place.save(&saved(7)).unwrap();
        let (_, found) = open(&path);
        let found = found.unwrap();
        assert_eq!((found.revision, &found.resources), (7, &saved(7).resources));
        assert!(found.saved_at > 1_700_000_000);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 1, "nothing is left beside it");

        let batch = found.batch();
        assert!(batch.complete);
        assert_eq!((batch.revision, batch.changes.len()), (7, 3), "two, and a closed place");
        assert!(batch.unreadable[0].reason.contains("1.0"), "{:?}", batch.unreadable);
    }

    #[test]
    fn with_the_pen_laid_down_nothing_is_written() {
        let folder = Folder::new("pen");
        let path = folder.0.join("last-good");
        let pen = Pen::default();
        let place = open(&path).0.with_pen(&pen);
        assert!(place.save(&saved(6)).unwrap());
        pen.lay_down();
        assert!(!place.save(&saved(7)).unwrap());
        assert_eq!(open(&path).1.unwrap().revision, 6);
        pen.take_up();
        assert!(place.save(&saved(7)).unwrap());
        assert_eq!(open(&path).1.unwrap().revision, 7);
    }

    #[test]
    fn a_damaged_copy_is_named_and_kept_and_the_next_one_goes_beside_it() {
        let folder = Folder::new("damage");
        let path = folder.0.join("last-good");
        open(&path).0.save(&saved(7)).unwrap();
        let good = fs::read(&path).unwrap();
        let cut = good[..good.len() - 20].to_vec();
        let mut changed = good.clone();
        *changed.last_mut().unwrap() = b' ';
        let foreign = String::from_utf8(good.clone()).unwrap().replacen("cart", "card", 1);
        let newer = String::from_utf8(good).unwrap().replacen("\"version\":1", "\"version\":2", 1);
        let damages: [(&[u8], &str); 7] = [
            (b"", "its first line has no end"),
            (b"\0\0\0\n\0", "its first line is not a header of ours"),
            (b"{}\n", "its first line is not a header of ours"),
            (&cut, "its SHA-256 is not the one"),
            (&changed, "its SHA-256 is not the one"),
            (
                foreign.as_bytes(),
                "it belongs to sidecar spiffe://shop/card, and this is sidecar spiffe://shop/cart",
            ),
            (newer.as_bytes(), "version 2, expected \"wardgate last good copy\" version 1"),
        ];
        for (damaged, why) in damages {
            let _ = fs::remove_file(beside(&path));
            fs::write(&path, damaged).unwrap();
            let (place, found) = open(&path);
            assert!(found.is_none());
            let sentence = place.damage().unwrap().to_string();
            assert!(sentence.contains(why), "{sentence}");
            assert!(sentence.contains(path.to_str().unwrap()), "{sentence}");

            place.save(&saved(8)).unwrap();
            assert_eq!(fs::read(&path).unwrap(), damaged, "nothing is overwritten");
            let (again, found) = open(&path);
            assert!(again.damage().is_some());
            assert_eq!(found.unwrap().revision, 8);
        }

        // Moved away by the operator: the copy beside it counts until the next one.
        fs::remove_file(&path).unwrap();
        let (place, found) = open(&path);
        assert_eq!((found.unwrap().revision, place.damage().is_none()), (8, true));
        place.save(&saved(9)).unwrap();
        assert!(!beside(&path).exists());
        assert_eq!(open(&path).1.unwrap().revision, 9);
    }

    #[test]
    fn with_both_damaged_there_is_no_copy_and_an_error_that_says_so() {
        let folder = Folder::new("both");
        let path = folder.0.join("last-good");
        fs::write(&path, "x").unwrap();
        fs::write(beside(&path), "y").unwrap();
        let (place, found) = open(&path);
        assert!(found.is_none());
        assert!(matches!(place.save(&saved(1)).unwrap_err(), Error::NoPlace { .. }));
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(fs::read(beside(&path)).unwrap(), b"y");
    }

    #[test]
    fn a_copy_that_cannot_be_written_leaves_the_one_before() {
        let folder = Folder::new("unwritable");
        let path = folder.0.join("last-good");
        let (place, _) = open(&path);
        place.save(&saved(7)).unwrap();
        let mut bad = saved(8);
        bad.resources.values_mut().next().unwrap().json = b"{".as_slice().into();
        assert!(matches!(place.save(&bad).unwrap_err(), Error::File { .. }));
        assert_eq!(open(&path).1.unwrap().revision, 7);
        let is_folder = LastGood::open(&folder.0, OWNER).unwrap_err();
        assert!(is_folder.to_string().starts_with("cannot use the last good copy"), "{is_folder}");
    }
}
