//! `Following`: the members of a cluster whose nodes, or whose nodes' addresses, may be others a moment later.

use std::any::Any;
use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::select_all;
use parking_lot::Mutex;

use super::blueprint::Blueprint;
use super::names::Addresses;
use super::nodes::address;
use super::{Attended, Members, Roster};
use crate::model::Node;
use crate::rt::{Live, Publisher};

/// The nodes that are known by now. `None`: whoever knows them has not answered yet. An empty list is an answer.
pub(super) type Found = Option<Arc<[Node]>>;

/// Who names the nodes of a cluster.
pub(super) struct Source {
    /// The nodes of each moment. A host may be a name: it is resolved.
    pub(super) found: Live<Found>,
    /// Held for as long as the nodes are followed: what keeps `found` current, mostly something that a [`Roster`] keeps.
    #[expect(dead_code, reason = "held, not read")]
    pub(super) held: Arc<dyn Any + Send + Sync>,
}

impl Source {
    /// Nodes that are written down, and whose hosts are names.
    pub(super) fn written(nodes: Vec<Node>) -> Self {
        Self { found: Live::fixed(Some(nodes.into())), held: Arc::new(()) }
    }
}

type Names = HashMap<String, Arc<Attended<Addresses>>>;
type Changes = HashMap<String, Live<Option<Arc<[IpAddr]>>>>;

/// Members that follow their [`Source`], and the addresses of the names there.
pub(super) struct Following {
    blueprint: Blueprint,
    source: Source,
    roster: Roster,
    names: Mutex<Names>,
    publisher: Publisher<Members>,
    members: Live<Members>,
}

impl Following {
    /// The members that `source` names, kept current by `roster`. Until the source has answered there are
    /// [none that are known](Members::are_known). A list that cannot be used is logged, and the one before stays.
    ///
    /// `key` names all that `blueprint` and `source` depend on: the same key gives the same members.
    pub(super) fn keep(
        key: &str,
        blueprint: Blueprint,
        source: Source,
        roster: &Roster,
    ) -> Arc<Attended<Self>> {
        let make = || {
            let (publisher, members) = Publisher::new(Members::unknown());
            let (roster, names) = (roster.clone(), Mutex::default());
            let following = Self { blueprint, source, roster, names, publisher, members };
            following.look();
            following
        };
        roster.keep(&format!("members of {key}"), make, Self::attend)
    }

    /// The members of each moment.
    pub(super) fn members(&self) -> &Live<Members> {
        &self.members
    }

    async fn attend(self: Arc<Self>) {
        let mut found = self.source.found.clone();
        let mut changes = Changes::new();
        let mut is_final = false;
        loop {
            self.await_names(&mut changes);
            // After the waiting was prepared: what changes from here on is not missed.
            self.look();
            tokio::select! {
                more = found.changed(), if !is_final => is_final = !more,
                () = any_changed(&mut changes) => {}
            }
        }
    }

    /// Takes new names in and those out that are gone.
    fn await_names(&self, changes: &mut Changes) {
        let names = self.names.lock();
        changes.retain(|name, _| names.contains_key(name));
        for (name, addresses) in &*names {
            changes.entry(name.clone()).or_insert_with(|| addresses.live().clone());
        }
    }

    /// Makes the members of this moment.
    fn look(&self) {
        let Some(nodes) = &*self.source.found.load() else { return };
        let mut names = self.names.lock();
        let mut before = std::mem::take(&mut *names);
        for node in nodes.iter().filter(|node| address(&node.host).is_none()) {
            let known = before.remove(&node.host);
            let addresses = known.unwrap_or_else(|| Addresses::keep(&node.host, &self.roster));
            names.insert(node.host.clone(), addresses);
        }
        let mut is_waiting = false;
        let resolved = |name: &str| {
            let known = names.get(name).and_then(|addresses| (*addresses.live().load()).clone());
            is_waiting |= known.is_none();
            known
        };
        match self.blueprint.members(nodes, resolved, &self.roster) {
            // Nobody yet, and somebody may come at any moment: requests wait for that.
            Ok(members) if members.endpoints().is_empty() && is_waiting => {}
            Ok(members) => self.publisher.set(members),
            Err(error) => tracing::warn!(
                cluster = self.blueprint.cluster(),
                "the nodes that were found cannot be used, those before stay: {error}"
            ),
        }
    }
}

async fn any_changed(changes: &mut Changes) {
    if changes.is_empty() {
        return std::future::pending().await;
    }
    type Change<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
    let each = changes.values_mut().map(|live| Box::pin(live.changed()) as Change<'_>);
    // Whoever is asked for is held, so that none of them is final.
    let _ = select_all(each).await;
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following").field("members", &self.members.load()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::Tasks;
    use crate::upstream::{DnsSettings, Resolver};
    use serde_json::json;

    fn list(nodes: serde_json::Value) -> Found {
        Some(serde_json::from_value::<Vec<Node>>(nodes).unwrap().into())
    }

    fn blueprint(roster: &Roster) -> Blueprint {
        let upstream = serde_json::from_value(json!({"scheme": "http"})).unwrap();
        Blueprint::compile("u", &upstream, roster).unwrap()
    }

    #[tokio::test]
    async fn members_follow_the_list_and_endpoints_keep_their_state_by_place() {
        let roster = Roster::attending();
        let mut tasks = Tasks::new();
        tasks.add(roster.clone().run());
        let (publisher, found) = Publisher::new(None);
        let source = || Source { found: found.clone(), held: Arc::new(()) };
        let following = Following::keep("u", blueprint(&roster), source(), &roster);
        let mut members = following.members().clone();
        assert!(!members.load().are_known());

        publisher.set(list(json!([{"host": "10.0.0.1", "port": 8080, "weight": 1}])));
        assert!(members.changed().await && members.load().are_known());
        let busy = members.load().endpoints()[0].busy();

        publisher.set(list(json!([
            {"host": "10.0.0.2", "port": 8080, "weight": 1},
            {"host": "10.0.0.1", "port": 8080, "weight": 7}
        ])));
        while members.load().endpoints().len() != 2 {
            assert!(members.changed().await);
        }
        let now = members.load();
        let seen: Vec<_> = now.endpoints().iter().map(|e| (&*e.host, e.weight, e.load())).collect();
        assert_eq!(seen, [("10.0.0.2", 1, 0), ("10.0.0.1", 7, 1)]);
        drop(busy);

        // The next revision finds them as they are, without a wait.
        let next = Following::keep("u", blueprint(&roster), source(), &roster);
        assert!(Arc::ptr_eq(&next, &following));
        let trial = Following::keep("another", blueprint(&roster), source(), &roster.for_trial());
        assert_eq!(trial.members().load().endpoints().len(), 2);

        publisher.set(list(json!([])));
        while !members.load().endpoints().is_empty() {
            assert!(members.changed().await);
        }
        assert!(members.load().are_known());
    }

    #[tokio::test]
    async fn a_name_is_as_many_endpoints_as_it_has_addresses() {
        let hosts = tempfile();
        std::fs::write(&hosts, "10.1.0.1 shop.test\n# 10.1.0.9 shop.test\n10.1.0.2 x SHOP.test\n")
            .unwrap();
        let settings = DnsSettings { hosts_file: hosts.clone(), ..DnsSettings::default() };
        let names = Resolver::new(&settings).unwrap();
        let roster = Roster::attending().with_names(names);
        let mut tasks = Tasks::new();
        tasks.add(roster.clone().run());
        let nodes = serde_json::from_value(json!([
            {"host": "shop.test", "port": 81, "weight": 3, "priority": 1},
            {"host": "10.0.0.1", "weight": 1}
        ]));
        let source = Source::written(nodes.unwrap());
        let following = Following::keep("u", blueprint(&roster), source, &roster);
        let mut members = following.members().clone();
        while members.load().endpoints().len() != 3 {
            assert!(members.changed().await);
        }
        let now = members.load();
        let seen: Vec<_> = now
            .endpoints()
            .iter()
            .map(|e| (e.address().to_string(), &*e.host, e.host_field(), e.weight, e.priority))
            .collect();
        assert_eq!(
            seen,
            [
                ("10.1.0.1:81".into(), "shop.test", "shop.test:81", 3, 1),
                ("10.1.0.2:81".into(), "shop.test", "shop.test:81", 3, 1),
                ("10.0.0.1:80".into(), "10.0.0.1", "10.0.0.1", 1, 0),
            ]
        );
        std::fs::remove_file(hosts).unwrap();
    }

    fn tempfile() -> std::path::PathBuf {
        let number = fastrand::u64(..);
        std::env::temp_dir().join(format!("wardgate-hosts-{}-{number}", std::process::id()))
    }
}
