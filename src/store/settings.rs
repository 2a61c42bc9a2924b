//! Which store a process uses.

use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embedded::Embedded;
use super::etcd::Etcd;
use super::{DEFAULT_PREFIX, Error, Store, etcd};

/// Where the state rests, and the prefix of all keys.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A local database file; made when it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// etcd, for production. Exactly one of `file` and `etcd` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<etcd::Settings>,
    /// What all keys start with: `/name`, no slash at the end.
    #[serde(default = "default_prefix")]
    pub prefix: String,
}

fn default_prefix() -> String {
    DEFAULT_PREFIX.to_owned()
}

impl Settings {
    /// A local database file.
    pub fn in_file(path: impl Into<PathBuf>) -> Self {
        Self { file: Some(path.into()), etcd: None, prefix: default_prefix() }
    }

    /// Opens the store. etcd need not answer yet.
    ///
    /// # Errors
    /// The file cannot be used, or the settings make no sense.
    pub async fn open(&self) -> Result<Arc<dyn Store>, Error> {
        if !self.prefix.starts_with('/') || self.prefix.ends_with('/') {
            let prefix = &self.prefix;
            let text = format!("prefix {prefix:?}: expected /name without a slash at the end");
            return Err(Error::Settings(text));
        }
        match (&self.file, &self.etcd) {
            (Some(path), None) => Ok(Arc::new(Embedded::open(path).await?)),
            (None, Some(settings)) => Ok(Arc::new(Etcd::new(settings)?)),
            _ => Err(Error::Settings("give exactly one of file and etcd".into())),
        }
    }
}
