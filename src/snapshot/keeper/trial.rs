//! Judging changes without taking them, and what stands in for what cannot be read.

use serde_json::{Value, json};

use super::Keeper;
use crate::model::{Body, Change, Id, Invalid, Kind, PluginSet, Rejected, Resource};
use crate::pipeline::Kept;
use crate::policy;
use crate::snapshot::compile::Workshop;
use crate::snapshot::consumers::Held;

impl Keeper {
    /// Would this change be taken? Nothing is changed by asking.
    ///
    /// # Errors
    /// It would not; the sentence is the one that [`Keeper::apply`] would reject it with, or says whose key or plugin it has.
    pub fn trial(&self, change: &Change) -> Result<(), Invalid> {
        let Change::Put(Resource { kind, id, body, .. }) = change else { return Ok(()) };
        let (kept, roster) = (self.kept.for_trial(), self.roster.for_trial());
        let workshop = self.workshop(&kept, &roster);
        let set = |set: &PluginSet| workshop.links(*kind, id, set).map(drop);
        match body {
            Body::Route(route) => workshop.route(id, route).map(drop),
            Body::Service(service) => workshop.service(id, service).map(drop),
            Body::Upstream(upstream) => {
                workshop.cluster(&format!("upstreams/{id}"), upstream, None).map(drop)
            }
            Body::PluginConfig(config) | Body::ConsumerGroup(config) => set(&config.plugins),
            Body::GlobalRule(rule) => {
                set(&rule.plugins)?;
                self.twice_in_global_rules(id, &rule.plugins)
            }
            Body::Consumer(consumer) => {
                let none = PluginSet::new();
                let plugins = consumer.plugins.as_ref().unwrap_or(&none);
                set(plugins)?;
                self.no_clash(&(*kind, id.clone()), &workshop.credentials(plugins)?)
            }
            Body::Credential(credential) => {
                let held = workshop.credential(&credential.plugins)?;
                self.no_clash(&(*kind, id.clone()), &held)
            }
            Body::PluginMetadata(value) => self.try_metadata(id, value, &kept),
            Body::Ssl(ssl) => match self.secrets.ssl(ssl)? {
                Some(clear) => self.ssls.trial(id, &clear),
                None => Ok(()),
            },
            Body::IdentityPolicy(policy) => policy::check(policy),
            Body::IdentityMode(mode) => policy::check_mode(mode),
            Body::Workload(_)
            | Body::TrustDomain(_)
            | Body::Revocation(_)
            | Body::Secret(_)
            | Body::Proto(_) => Ok(()),
            Body::StreamRoute(_) => Err(no_stream_proxy()),
        }
    }

    /// What stands in the place of resources that are there and cannot be read, where no previous version does: a policy
    /// that refuses everybody, a global rule that answers 503. Nobody knows what they would have kept out. Of a policy the
    /// keeper hears in any case: it holds back the revision that it belongs to.
    ///
    /// # Panics
    /// Never: the stand-ins are of their kinds' shapes.
    pub fn stand_ins(&self, unreadable: &[Rejected]) -> Vec<Change> {
        let stand_in = |rejected: &Rejected| {
            let Rejected { kind, id, revision, .. } = rejected;
            let body = match kind {
                Kind::IdentityPolicies => {
                    // Without a rule it is broken, and a broken deny policy holds against everybody.
                    Body::parse(*kind, &json!({ "action": "deny", "rules": [] }))
                }
                // The closest that there is.
                Kind::IdentityModes if !self.declared_modes.contains_key(id) => {
                    Body::parse(*kind, &json!({ "mode": "strict" }))
                }
                Kind::GlobalRules if !self.global_rules.contains_key(id) => {
                    Body::parse(*kind, &json!({ "plugins": { "unreadable": {} } }))
                }
                _ => return None,
            };
            let body = body.expect("it is of the kind's shape");
            Some(Change::Put(Resource { kind: *kind, id: id.clone(), revision: *revision, body }))
        };
        unreadable.iter().filter_map(stand_in).collect()
    }

    /// The plugins that have this metadata must still compile with it.
    fn try_metadata(&self, id: &Id, value: &Value, kept: &Kept) -> Result<(), Invalid> {
        let mut metadata = self.metadata.clone();
        metadata.insert(id.clone(), self.workshop(kept, &self.roster).metadata(id, value)?);
        let workshop = Workshop { metadata: &metadata, ..self.workshop(kept, &self.roster) };
        for (kind, owner, set) in self.carriers(id.as_str()) {
            workshop.links(kind, &owner, &set).map_err(|error| {
                Invalid(format!("{} [{owner}] would break: {error}", kind.singular()))
            })?;
        }
        Ok(())
    }

    pub(super) fn no_clash(&self, resource: &(Kind, Id), held: &[Held]) -> Result<(), Invalid> {
        match self.people.clash(resource, held) {
            None => Ok(()),
            Some((plugin, name)) => Err(Invalid(format!(
                "duplicate key of plugin {plugin} found with consumer: {name}"
            ))),
        }
    }

    fn twice_in_global_rules(&self, id: &Id, set: &PluginSet) -> Result<(), Invalid> {
        for (other, slot) in &self.global_rules {
            let twice = set.keys().find(|name| slot.body.plugins.contains_key(*name));
            if let Some(name) = twice.filter(|_| other != id) {
                return Err(Invalid(format!(
                    "plugin '{name}' already exists in global rule with id '{other}'"
                )));
            }
        }
        Ok(())
    }

    /// Every resource that carries a plugin of that name, or one that reads its metadata, with its whole set.
    pub(super) fn carriers(&self, plugin: &str) -> Vec<(Kind, Id, PluginSet)> {
        let mut found = Vec::new();
        let reads = |name: &String| {
            let entry = self.table.get(name.as_str());
            name == plugin || entry.is_some_and(|entry| entry.metadata_of == Some(plugin))
        };
        let mut look = |kind: Kind, id: &Id, set: Option<&PluginSet>| {
            if let Some(set) = set.filter(|set| set.keys().any(reads)) {
                found.push((kind, id.clone(), set.clone()));
            }
        };
        for (id, slot) in &self.routes {
            look(Kind::Routes, id, slot.body.plugins.as_ref());
        }
        for (id, slot) in &self.services {
            look(Kind::Services, id, slot.body.plugins.as_ref());
        }
        for (id, slot) in &self.plugin_configs {
            look(Kind::PluginConfigs, id, Some(&slot.body.plugins));
        }
        for (id, slot) in &self.groups {
            look(Kind::ConsumerGroups, id, Some(&slot.body.plugins));
        }
        for (id, slot) in &self.global_rules {
            look(Kind::GlobalRules, id, Some(&slot.body.plugins));
        }
        for (id, slot) in &self.consumers {
            look(Kind::Consumers, id, slot.body.plugins.as_ref());
        }
        found
    }
}

/// A stream route that is kept and that no data plane serves would be a connection that nobody answers.
pub(super) fn no_stream_proxy() -> Invalid {
    let why = "stream mode is disabled, can not add stream routes: this version of Wardgate has no \
               stream proxy; see sidecar.tcp in the settings";
    Invalid::new(why)
}
