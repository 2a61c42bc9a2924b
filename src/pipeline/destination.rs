//! `Target` and `Destination`: where a plugin sends a request in place of the route's upstream.

use std::sync::Arc;

use super::Template;
use crate::model::{Id, Invalid, Upstream};
use crate::upstream::{Cluster, HashKey, Roster};

/// A compiled upstream, and what its hash ring turns on.
#[derive(Debug)]
pub struct Target {
    /// Who serves.
    pub cluster: Arc<Cluster>,
    /// What the ring turns on, where there is one.
    pub hash_key: Option<Template>,
}

/// Where a plugin sends a request.
#[derive(Clone, Debug)]
pub enum Destination {
    /// To an upstream of the plugin's own settings.
    Own(Arc<Target>),
    /// To a declared upstream, as the exchange's snapshot has it.
    Declared(Arc<Id>),
}

/// Makes targets of what plugins say of upstreams.
pub trait Targets {
    /// Compiles an upstream that stands in a plugin's settings. `name` tells it from all others.
    ///
    /// # Errors
    /// The sentence names the upstream's field.
    fn own(&self, name: &str, upstream: Upstream) -> Result<Arc<Target>, Invalid>;

    /// Keeps the upstream of this id at hand in snapshots as long as somebody holds the result.
    fn declared(&self, id: Id) -> Arc<Id>;
}

impl Target {
    /// # Errors
    /// The ring's key names an unknown variable.
    pub fn of(cluster: Arc<Cluster>) -> Result<Self, Invalid> {
        let hash_key = match &cluster.hash_key {
            None => None,
            Some(HashKey::Variable(name)) => Some(Template::of_variable(name)?),
            Some(HashKey::Text(text)) => Some(Template::parse(text)?),
        };
        Ok(Self { cluster, hash_key })
    }
}

/// Compiles targets whom nobody will serve: for judging settings.
#[derive(Clone, Copy, Debug)]
pub struct NoTargets;

impl Targets for NoTargets {
    fn own(&self, name: &str, upstream: Upstream) -> Result<Arc<Target>, Invalid> {
        let cluster = Cluster::compile(name, &upstream, None, &Roster::default())?;
        Target::of(cluster).map(Arc::new)
    }

    fn declared(&self, id: Id) -> Arc<Id> {
        Arc::new(id)
    }
}
