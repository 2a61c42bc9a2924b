//! The last good copy: what was in force, on disk, so that a data plane can start while the control plane is away.
//!
//! The file is one line of JSON about the whole (format, owner, revision, SHA-256 of the rest) and one JSON array per resource:
//! `["routes","7",42,{..}]`. It holds secrets and is readable by its owner alone (mode 0600). A new copy is written beside it,
//! flushed to the disk and renamed into its place, so that there is always a whole one.
//!
//! **Damage.** A file that is not what it says, or that another data plane wrote, is an error that names it. It is not used, not
//! overwritten and not moved: it may be evidence, or an operator may repair it. Copies go to `<path>.new` meanwhile, and a start
//! finds them there. Moving the damaged file away (or deleting it) ends this: the next copy goes to `<path>` again.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use foldhash::fast::RandomState;
use ring::digest::{self, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::error;

use super::Batch;
use super::delta::{Key, Version};
use crate::model::{Body, Change, Id, Invalid, Kind, Rejected, Resource, Revision};
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
    pub json: Bytes,
}

impl Raw {
    /// A copy of `json` that keeps no larger buffer alive.
    pub(super) fn copied(revision: Revision, json: &[u8]) -> Self {
        Self { version: Version::of(revision, json), json: Bytes::copy_from_slice(json) }
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
}

/// Resources by name.
pub type RawState = HashMap<Key, Raw, RandomState>;

/// What a last good copy holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The revision that was in force.
    pub revision: Revision,
    /// When it was written, in seconds since 1970.
    pub saved_at: i64,
    /// The resources that were in force.
    pub resources: RawState,
}

impl Saved {
    /// The copy as a full state.
    pub fn batch(&self) -> Batch {
        let mut batch = Batch { revision: self.revision, complete: true, ..Batch::default() };
        for (key, raw) in &self.resources {
            match raw.parse(key) {
                Ok(resource) => batch.changes.push(Change::Put(resource)),
                Err(Invalid(reason)) => batch.unreadable.push(Rejected {
                    kind: key.0,
                    id: key.1.clone(),
                    revision: raw.version.revision,
                    reason,
                }),
            }
        }
        batch
    }
}

/// The place of a data plane's last good copy. One process at a time uses it.
#[derive(Debug)]
pub struct LastGood {
    path: PathBuf,
    owner: String,
    damage: Option<Error>,
    /// Where the next copy goes; none when everything is damaged.
    place: Option<PathBuf>,
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
        Ok((Self { path, owner: owner.to_owned(), damage, place }, saved))
    }

    /// What was wrong with the file at [`LastGood::open`], for a health check.
    pub fn damage(&self) -> Option<&Error> {
        self.damage.as_ref()
    }

    /// Writes a new copy in the place of the one before: whole, or not at all. Blocks.
    ///
    /// # Errors
    /// The system refuses, or there is no place for a copy because everything there is damaged.
    pub fn save(&self, saved: &Saved) -> Result<(), Error> {
        let Some(place) = &self.place else {
            return Err(Error::NoPlace { path: self.path.clone() });
        };
        self.write(place, saved).map_err(|source| Error::File { path: place.clone(), source })?;
        if *place == self.path {
            // A copy that was written beside an earlier, damaged file is older than this one.
            let _ = fs::remove_file(beside(&self.path));
        }
        Ok(())
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
        Ok(bytes) => parse(&bytes, owner)
            .map(Some)
            .map_err(|why| Error::Damaged { path: path.to_owned(), why }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
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
