//! Why records cannot be kept or read.

use std::path::{Path, PathBuf};

/// Why the archive cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// Two processes would overwrite each other.
    #[error("the archive {path} belongs to another running process", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is no archive, or not what was written. Nothing was changed.
    #[error("the archive {path} is damaged: {why}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The disk or the system refuses.
    #[error("cannot use the archive {path}: {why}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The process is about to end.
    #[error("the archive is being closed")]
    Closed,
    /// A question that makes no sense.
    #[error("{0}")]
    Question(String),
}

/// What the database's error means for the operator.
pub(super) fn failed(path: &Path, error: impl Into<redb::Error>) -> ArchiveError {
    let path = path.to_owned();
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => ArchiveError::InUse { path },
        redb::Error::Corrupted(why) => ArchiveError::Damaged { path, why },
        redb::Error::RepairAborted => {
            ArchiveError::Damaged { path, why: "repair was not possible".into() }
        }
        redb::Error::Io(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            ArchiveError::Damaged { path, why: error.to_string() }
        }
        error @ (redb::Error::TableDoesNotExist(_) | redb::Error::TableTypeMismatch { .. }) => {
            ArchiveError::Damaged { path, why: error.to_string() }
        }
        error => ArchiveError::File { path, why: error.to_string() },
    }
}
