//! `Cursor`: how far the log was handed over to one destination, and the file that remembers it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The place behind a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// The hash of the first record of the file that the record stands in: the file's name changes when it is put aside.
    pub(super) file: String,
    /// Where the record's line ends in it.
    pub(super) offset: u64,
    /// The record's number.
    pub(super) seq: u64,
    /// The record's hash.
    pub(super) hash: String,
}

/// The file of one destination's cursor: JSON, `0600`, replaced as a whole.
#[derive(Clone, Debug)]
pub(super) struct CursorFile {
    path: PathBuf,
}

impl CursorFile {
    pub(super) fn of(folder: &Path, name: &str) -> Self {
        Self { path: folder.join(format!("{name}.json")) }
    }

    /// What was remembered; `None` when nothing was yet.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub(super) fn read(&self) -> io::Result<Option<Cursor>> {
        match fs::read(&self.path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Remembers. The disk is not asked to keep it at once: after a crash of the machine some records are handed over again.
    pub(super) fn write(&self, cursor: &Cursor) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let fresh = self.path.with_extension("fresh");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec(cursor)?)?;
        fs::rename(&fresh, &self.path)
    }
}
