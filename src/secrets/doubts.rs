//! What can be told of references without asking anybody: `wardgate check`.

use std::collections::BTreeSet;

use super::Error;
use super::environment::Environment;
use super::settings::SecretSettings;
use crate::model::{Change, Id, Kind, Rejected, Resource, SecretReference};

/// References that cannot be resolved whatever managers say: to managers that are not declared among the changes, and to variables
/// that the settings do not allow.
pub fn doubts(changes: &[Change], settings: &SecretSettings) -> Vec<Rejected> {
    let resources = || {
        changes.iter().filter_map(|change| match change {
            Change::Put(resource) => Some(resource),
            Change::Delete(..) => None,
        })
    };
    let managers: BTreeSet<&Id> =
        resources().filter(|one| one.kind == Kind::Secrets).map(|one| &one.id).collect();
    // Whether a variable is set is for the process itself to see, which may have another environment.
    let environment = Environment::with(&settings.environment, |_| Ok("{}".to_owned()));
    let mut found = Vec::new();
    for Resource { kind, id, revision, body } in resources() {
        for borne in body.references() {
            let Ok(reference) = borne.reference else { continue };
            let why = match &reference {
                SecretReference::Managed { manager, .. } => (!managers.contains(manager))
                    .then(|| Error::NoManager(manager.to_string()).to_string()),
                SecretReference::Environment { name, .. } => {
                    environment.read(name, None).err().map(|error| error.to_string())
                }
            };
            let Some(why) = why else { continue };
            let field = borne.field;
            let reason = format!("{field}: the reference {reference} cannot be resolved: {why}");
            found.push(Rejected { kind: *kind, id: id.clone(), revision: *revision, reason });
        }
    }
    found
}
