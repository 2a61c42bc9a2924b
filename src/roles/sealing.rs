//! Which store a control plane has, and the keys that seal it.

use std::sync::Arc;

use super::settings::{ControlSettings, Settings};
use crate::store::sealed::{Sealed, SealingKey, SealingRing};
use crate::store::{self, Error, Store};

/// The store of the settings; a file in `state_dir` when they name none.
pub fn chosen_store(settings: &Settings, control: &ControlSettings) -> store::settings::Settings {
    let usual = || store::settings::Settings::in_file(settings.state_dir.join("store.redb"));
    control.store.clone().unwrap_or_else(usual)
}

/// The keys that the settings name; `sealing.key` in `state_dir` when they name none, made when it is not there.
///
/// # Errors
/// A key cannot be had, or is none.
pub fn sealing_ring(settings: &Settings, control: &ControlSettings) -> Result<SealingRing, Error> {
    let keyring = control.sealing.keyring()?;
    let ring = match (control.sealing.ring()?, &control.sealing_key) {
        (Some(_), Some(_)) => {
            let text = "sealing_key: give either sealing_key or sealing.keys";
            return Err(Error::Settings(text.into()));
        }
        (Some(ring), None) => ring,
        (None, named) => {
            let usual = || settings.state_dir.join("sealing.key");
            SealingKey::open(&named.clone().unwrap_or_else(usual))?.into()
        }
    };
    Ok(ring.reading(keyring))
}

/// A store whose secrets are sealed.
pub fn sealed(inner: Arc<dyn Store>, ring: SealingRing, prefix: &str) -> Arc<dyn Store> {
    Arc::new(Sealed::new(inner, ring, prefix))
}
