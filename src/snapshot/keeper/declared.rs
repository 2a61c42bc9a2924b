//! What a keeper holds, as it was declared, defaults filled in: for the control API.

use serde::Serialize;
use serde_json::Value;

use super::Keeper;
use crate::model::{Id, Kind, Revision};

/// A resource in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Its id.
    pub id: Id,
    /// The store's revision of it.
    pub revision: Revision,
    /// What it says. It may hold secrets.
    pub value: Value,
}

impl Keeper {
    /// The resources of a kind that are in force, in the order of their ids: routes, services, upstreams and metadata of
    /// plugins. Nothing of other kinds.
    pub fn in_force(&self, kind: Kind) -> Vec<Declared> {
        match kind {
            Kind::Routes => {
                all(self.routes.iter().map(|(id, slot)| (id, slot.revision, &*slot.body)))
            }
            Kind::Services => {
                all(self.services.iter().map(|(id, slot)| (id, slot.revision, &*slot.body)))
            }
            Kind::Upstreams => {
                all(self.upstreams.iter().map(|(id, slot)| (id, slot.revision, &*slot.body)))
            }
            Kind::PluginMetadata => all(self.metadata.iter().map(|(id, value)| (id, 0, &**value))),
            _ => Vec::new(),
        }
    }
}

fn all<'k, B: Serialize + 'k>(
    slots: impl Iterator<Item = (&'k Id, Revision, &'k B)>,
) -> Vec<Declared> {
    let declared = |(id, revision, body): (&Id, Revision, &B)| {
        let mut value = serde_json::to_value(body).ok()?;
        value["id"] = id.as_str().into();
        Some(Declared { id: id.clone(), revision, value })
    };
    slots.filter_map(declared).collect()
}
