//! `Consumers`: who calls, found by credential or by name, and what plugins they bring.

use std::collections::{BTreeMap, HashMap};
use std::hash::RandomState;
use std::sync::Arc;

use serde_json::Value;

use super::compiled::Broken;
use super::merge::Links;
use super::patterns::Patterns;
use crate::identity::{SpiffeId, SpiffePattern};
use crate::model::{Id, Kind};
use crate::pipeline::{Consumer, Directory, Ready};
use crate::rt::Shards;

/// Consumers, their credentials and their groups, of one snapshot. Cheap to copy.
#[derive(Clone, Debug, Default)]
pub(super) struct Consumers {
    people: Shards<Arc<Person>>,
    /// By plugin, then by key. The hash is keyed: whoever guesses keys learns nothing from its timing.
    keys: BTreeMap<&'static str, Shards<Arc<Holder>, RandomState>>,
    /// The same by plugin, for keys that are SPIFFE patterns.
    patterns: BTreeMap<&'static str, Patterns<Arc<Holder>>>,
    groups: HashMap<Id, Result<Arc<Links>, Broken>>,
}

/// A consumer in force.
#[derive(Debug)]
pub(super) struct Person {
    pub(super) consumer: Arc<Consumer>,
    /// The consumer as each of its credentials presents it, by the credential's id.
    pub(super) presented: HashMap<Box<str>, Arc<Consumer>>,
    pub(super) links: Arc<Links>,
}

/// Whose a key is.
#[derive(Debug)]
struct Holder {
    /// The consumer or credential that declares it.
    resource: (Kind, Id),
    name: Box<str>,
    credential: Option<Box<str>>,
    settings: Arc<Value>,
    ready: Option<Ready>,
}

/// What a consumer or credential declares for one auth plugin.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) plugin: &'static str,
    pub(super) key: String,
    pub(super) settings: Arc<Value>,
    /// What its plugin made of them, where it does.
    pub(super) ready: Option<Ready>,
    /// The key as a pattern, where it is one.
    pub(super) pattern: Option<SpiffePattern>,
}

/// The consumer's name and the credential's own id, of a credential's key.
pub(super) fn split_credential(id: &Id) -> (&str, Option<&str>) {
    match id.as_str().split_once("/credentials/") {
        Some((name, credential)) => (name, Some(credential)),
        None => (id.as_str(), None),
    }
}

impl Consumers {
    /// The consumer that has one of these keys already, unless it is the same resource.
    pub(super) fn clash(
        &self,
        resource: &(Kind, Id),
        held: &[Held],
    ) -> Option<(&'static str, &str)> {
        held.iter().find_map(|held| {
            let holder = self.keys.get(held.plugin)?.find(&held.key)?;
            (holder.resource != *resource).then_some((held.plugin, &*holder.name))
        })
    }

    pub(super) fn take_keys(&mut self, resource: &(Kind, Id), held: &[Held]) {
        let (name, credential) = split_credential(&resource.1);
        for held in held {
            let holder = Arc::new(Holder {
                resource: resource.clone(),
                name: name.into(),
                credential: credential.map(Into::into),
                settings: held.settings.clone(),
                ready: held.ready.clone(),
            });
            if let Some(pattern) = &held.pattern {
                self.patterns.entry(held.plugin).or_default().insert(pattern, holder.clone());
            }
            self.keys.entry(held.plugin).or_default().insert(&held.key, holder);
        }
    }

    pub(super) fn release_keys(&mut self, resource: &(Kind, Id), held: &[Held]) {
        for held in held {
            if let Some(keys) = self.keys.get_mut(held.plugin)
                && keys.find(&held.key).is_some_and(|holder| holder.resource == *resource)
            {
                keys.remove(&held.key);
                if let (Some(pattern), Some(patterns)) =
                    (&held.pattern, self.patterns.get_mut(held.plugin))
                {
                    patterns.remove(pattern);
                }
            }
        }
    }

    pub(super) fn set_person(&mut self, name: &str, person: Option<Person>) {
        match person {
            Some(person) => self.people.insert(name, Arc::new(person)),
            None => self.people.remove(name),
        }
    }

    pub(super) fn set_group(&mut self, id: &Id, links: Option<Result<Arc<Links>, Broken>>) {
        match links {
            Some(links) => self.groups.insert(id.clone(), links),
            None => self.groups.remove(id),
        };
    }

    /// What a consumer brings itself.
    pub(super) fn links(&self, name: &str) -> Option<&Arc<Links>> {
        self.people.find(name).map(|person| &person.links)
    }

    /// What a group brings.
    pub(super) fn group(&self, id: &Id) -> Result<&Arc<Links>, Broken> {
        match self.groups.get(id) {
            Some(Ok(links)) => Ok(links),
            Some(Err(broken)) => Err(broken.clone()),
            None => Err(Broken::new(503, format!("consumer group {id} does not exist"))),
        }
    }
}

impl Directory for Consumers {
    fn find(&self, plugin: &str, key: &str) -> Option<(Arc<Consumer>, Arc<Value>)> {
        let holder = self.keys.get(plugin)?.find(key)?;
        Some((self.presented(holder)?, holder.settings.clone()))
    }

    fn ready(&self, plugin: &str, key: &str) -> Option<(Arc<Consumer>, Ready)> {
        let holder = self.keys.get(plugin)?.find(key)?;
        Some((self.presented(holder)?, holder.ready.clone()?))
    }

    fn of_identity(&self, plugin: &str, id: &SpiffeId) -> Option<(Arc<Consumer>, Arc<Value>)> {
        let holder = self.patterns.get(plugin)?.find(id)?;
        Some((self.presented(holder)?, holder.settings.clone()))
    }

    fn named(&self, name: &str) -> Option<Arc<Consumer>> {
        self.people.find(name).map(|person| person.consumer.clone())
    }
}

impl Consumers {
    /// The consumer as this credential presents it.
    fn presented(&self, holder: &Holder) -> Option<Arc<Consumer>> {
        let person = self.people.find(&holder.name)?;
        let consumer = match &holder.credential {
            None => &person.consumer,
            Some(credential) => person.presented.get(credential)?,
        };
        Some(consumer.clone())
    }
}
