//! What resources were, for a control plane that starts while a canary push is under way.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Remembered as Entry, folder};
use crate::model::{Id, Kind, Revision};
use crate::store::{self, Store};
use crate::sync::canary::{Past, Remembered};

/// The history of a store's resources, as canary pushes ask it.
pub struct RememberedPast {
    store: Arc<dyn Store>,
    prefix: String,
}

impl RememberedPast {
    /// Of the resources below `prefix`.
    pub fn new(store: Arc<dyn Store>, prefix: &str) -> Self {
        Self { store, prefix: prefix.to_owned() }
    }
}

#[async_trait]
impl Past for RememberedPast {
    async fn of_changed_since(&self, revision: Revision) -> Result<Vec<Remembered>, store::Error> {
        let mut all = Vec::new();
        // Kind by kind: the whole past is large, and little of it is asked for.
        for kind in Kind::ALL {
            let entries = self.store.list(&folder(&self.prefix, kind, None)).await?.entries;
            let mut by_id: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
            for one in entries.iter().filter_map(Entry::read) {
                by_id.entry(one.entry.id.clone()).or_default().push(one);
            }
            by_id.retain(|_, known| known.iter().any(|one| one.revision > revision));
            for (id, known) in by_id {
                let Ok(id) = Id::parse(&id) else { continue };
                all.extend(known.into_iter().map(|one| Remembered {
                    key: (kind, id.clone()),
                    revision: one.revision,
                    value: one.entry.value,
                }));
            }
        }
        Ok(all)
    }
}
