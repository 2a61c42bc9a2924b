//! Which keys seal a store.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Keyring;
use super::key::{SealingKey, SealingRing};
use crate::model::Redacted;
use crate::store::Error;

/// The keys that seal secrets in the store.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SealingSettings {
    /// The first key seals, all of them open. To rotate: put a new key first, restart, run `wardgate store rotate-key`, and take the
    /// old one out.
    #[serde(default)]
    pub keys: Vec<KeySource>,
    /// The keys of APISIX's `data_encryption.keyring`, to read what APISIX has encrypted. Nothing is written with them.
    #[serde(default)]
    pub apisix_keyring: Vec<Redacted<String>>,
}

/// Where a key is: 32 bytes in base64.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KeySource {
    /// A file that only its owner reads; `wardgate store new-key FILE` makes one.
    File(PathBuf),
    /// A variable of the environment.
    Env(String),
}

impl SealingSettings {
    /// The ring of these keys; `None` when none is named.
    ///
    /// # Errors
    /// A key cannot be had, or is none.
    pub fn ring(&self) -> Result<Option<SealingRing>, Error> {
        let keys: Vec<SealingKey> =
            self.keys.iter().map(KeySource::read).collect::<Result<_, _>>()?;
        let mut keys = keys.into_iter();
        Ok(keys.next().map(|first| SealingRing::new(first, keys)))
    }

    /// What reads APISIX's fields.
    ///
    /// # Errors
    /// A key has a wrong length.
    pub fn keyring(&self) -> Result<Keyring, Error> {
        Keyring::new(self.apisix_keyring.iter().map(|key| key.reveal().as_str()))
            .map_err(|why| Error::Settings(format!("sealing.apisix_keyring: {why}")))
    }
}

impl KeySource {
    /// The key of a file or a variable.
    ///
    /// # Errors
    /// It is not there, or is none.
    fn read(&self) -> Result<SealingKey, Error> {
        match self {
            Self::File(path) => SealingKey::read(path),
            Self::Env(name) => match std::env::var(name) {
                Ok(text) => SealingKey::parse(&text).map_err(|why| {
                    Error::Settings(format!("sealing.keys: variable {name}: {why}"))
                }),
                Err(_) => {
                    Err(Error::Settings(format!("sealing.keys: the variable {name} is not set")))
                }
            },
        }
    }
}
