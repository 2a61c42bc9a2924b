//! What operators say about the archive.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// The archive of all decision logs. See `docs/audit-collection.md`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveSettings {
    /// Takes the records of data planes, and our own. Without it there is no archive, and data planes are told so.
    pub enabled: bool,
    /// The file; `audit-archive.redb` in `state_dir` when not given.
    pub path: Option<PathBuf>,
    /// Bytes of records, their index included, that are kept; then the oldest go. At least 1 MiB. The file is larger by what its pages
    /// leave free.
    #[schemars(range(min = 1_048_576))]
    pub retain_bytes: u64,
    /// Days that records are kept; 0: as long as there is room.
    pub retain_days: u32,
}

impl Default for ArchiveSettings {
    fn default() -> Self {
        Self { enabled: true, path: None, retain_bytes: 4 << 30, retain_days: 90 }
    }
}

impl ArchiveSettings {
    /// Can these settings be used?
    ///
    /// # Errors
    /// They cannot; the error names the setting and says what was expected.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.retain_bytes < 1 << 20 {
            let problem = format!("{}; expected at least 1048576", self.retain_bytes);
            return Err(("control.audit.retain_bytes", problem));
        }
        Ok(())
    }

    /// How many bytes one segment may have.
    pub(super) fn segment_bytes(&self) -> u64 {
        (self.retain_bytes / 32).clamp(64 << 10, 256 << 20)
    }

    /// How long a segment may be added to, in milliseconds.
    pub(super) fn segment_millis(&self) -> u64 {
        match self.retain_days {
            0 => u64::MAX,
            days => u64::from(days) * DAY / 32,
        }
    }

    /// How long records are kept, in milliseconds.
    pub(super) fn retain_millis(&self) -> Option<u64> {
        (self.retain_days > 0).then(|| u64::from(self.retain_days) * DAY)
    }
}

const DAY: u64 = 86_400_000;
