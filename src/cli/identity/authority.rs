//! Which authority a verb works on, and the passphrase of its keys.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::roles::{Authority, AuthorityError, FileCustody, Passphrase};
use crate::rt::Clock;

/// An authority's directory and what opens its keys.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Where the authority is kept
    #[arg(long, value_name = "DIR", default_value = "certs")]
    pub(super) dir: PathBuf,
    /// A file with the passphrase of its private keys; the environment's WARDGATE_CA_PASSPHRASE when not given
    #[arg(long, value_name = "FILE")]
    pub(super) passphrase_file: Option<PathBuf>,
}

impl Place {
    /// The directory, for sentences.
    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.dir.display()
    }

    /// The keys in the directory.
    pub(super) fn custody(&self) -> Result<Arc<FileCustody>, AuthorityError> {
        let passphrase = Passphrase::find(self.passphrase_file.as_deref())?;
        Ok(Arc::new(FileCustody::new(&self.dir, passphrase)))
    }

    /// The authority, ready to sign.
    pub(super) fn open(&self, clock: &Clock) -> Result<Authority, AuthorityError> {
        Authority::open_with(&self.dir, self.custody()?, clock.clone())
    }
}
