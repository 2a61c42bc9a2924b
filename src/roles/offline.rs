//! The control plane's judgement without a control plane: for files, before anybody is asked to take them.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::catalog::{Catalog, KeeperTrial};
use super::error::Error;
use crate::control::access::{self, AdminKeys};
use crate::control::history::HistorySettings;
use crate::control::{AdminRecord, AuditTrail, ControlPlane, Parts};
use crate::identity::TrustDomain;
use crate::observe::Registry;
use crate::pipeline::CacheZones;
use crate::rt::Clock;
use crate::snapshot::RouterSettings;
use crate::store::DEFAULT_PREFIX;
use crate::store::memory::Memory;

/// Judges a set of resources as a control plane that has nothing yet would judge it; the error inside is what it would answer. Of a
/// part, what it refers to need not be there.
///
/// # Errors
/// A schema of this build is broken.
pub async fn judge_offline(
    set: Map<String, Value>,
    domain: TrustDomain,
    is_part: bool,
) -> Result<Result<(), Value>, Error> {
    let registry = Registry::new();
    let plane = ControlPlane::new(Parts {
        store: Arc::new(Memory::new()),
        prefix: DEFAULT_PREFIX.to_owned(),
        keys: AdminKeys::of(&[])?,
        access: access::Settings::default(),
        hosts: Vec::new(),
        catalog: Arc::new(Catalog {
            table: crate::plugins::ALL,
            registry: registry.clone(),
            zones: CacheZones::default(),
        }),
        trial: Arc::new(KeeperTrial {
            table: crate::plugins::ALL,
            router: RouterSettings::default(),
            domain,
            registry,
            zones: CacheZones::default(),
        }),
        audit: Arc::new(Nobody),
        convergence: None,
        archive: None,
        clock: Clock::system(),
        history: HistorySettings { revisions: 0 },
        standalone: None,
        canaries: None,
    })?;
    Ok(plane.judge_set(set, is_part).await)
}

/// Nobody calls, so that nothing is to be noted.
struct Nobody;

impl AuditTrail for Nobody {
    fn admin(&self, _: &AdminRecord<'_>) {}
}
