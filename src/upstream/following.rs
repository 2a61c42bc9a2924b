//! `Following`: the members of a cluster whose nodes somebody else names, and may name otherwise a moment later.

use std::any::Any;
use std::sync::Arc;

use super::blueprint::Blueprint;
use super::{Attended, Members, Roster};
use crate::model::Node;
use crate::rt::{Live, Publisher};

/// The nodes that are known by now. `None`: whoever knows them has not answered yet. An empty list is an answer.
pub(super) type Found = Option<Arc<[Node]>>;

/// Who names the nodes of a cluster.
pub(super) struct Source {
    /// The nodes of each moment.
    pub(super) found: Live<Found>,
    /// Held for as long as the nodes are followed: what keeps `found` current, mostly something that a [`Roster`] keeps.
    #[expect(dead_code, reason = "held, not read")]
    pub(super) held: Arc<dyn Any + Send + Sync>,
}

/// Members that follow their [`Source`].
pub(super) struct Following {
    blueprint: Blueprint,
    source: Source,
    roster: Roster,
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
            let roster = roster.clone();
            let following = Self { blueprint, source, roster, publisher, members };
            following.look();
            following
        };
        roster.keep(&format!("members of {key}"), make, |following| async move {
            let mut found = following.source.found.clone();
            // It may have changed before anybody waited for it.
            following.look();
            while found.changed().await {
                following.look();
            }
        })
    }

    /// The members of each moment.
    pub(super) fn members(&self) -> &Live<Members> {
        &self.members
    }

    fn look(&self) {
        let Some(nodes) = &*self.source.found.load() else { return };
        match self.blueprint.members(nodes, &self.roster) {
            Ok(members) => self.publisher.set(members),
            Err(error) => tracing::warn!(
                cluster = self.blueprint.cluster(),
                "the nodes that were found cannot be used, those before stay: {error}"
            ),
        }
    }
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
    use serde_json::json;

    fn list(nodes: serde_json::Value) -> Found {
        Some(serde_json::from_value::<Vec<Node>>(nodes).unwrap().into())
    }

    #[tokio::test]
    async fn members_follow_the_list_and_endpoints_keep_their_state_by_place() {
        let roster = Roster::attending();
        let mut tasks = Tasks::new();
        tasks.add(roster.clone().run());
        let (publisher, found) = Publisher::new(None);
        let upstream = serde_json::from_value(json!({"scheme": "http"})).unwrap();
        let blueprint = || Blueprint::compile("u", &upstream).unwrap();
        let source = || Source { found: found.clone(), held: Arc::new(()) };
        let following = Following::keep("u", blueprint(), source(), &roster);
        let mut members = following.members().clone();
        assert!(!members.load().are_known());

        publisher.set(list(json!([{"host": "10.0.0.1", "port": 8080, "weight": 1}])));
        assert!(members.changed().await && members.load().are_known());
        let busy = members.load().endpoints()[0].busy();

        publisher.set(list(json!([
            {"host": "10.0.0.2", "port": 8080, "weight": 1},
            {"host": "10.0.0.1", "port": 8080, "weight": 7}
        ])));
        assert!(members.changed().await);
        let now = members.load();
        let seen: Vec<_> = now.endpoints().iter().map(|e| (&*e.host, e.weight, e.load())).collect();
        assert_eq!(seen, [("10.0.0.2", 1, 0), ("10.0.0.1", 7, 1)]);
        drop(busy);

        // The next revision finds them as they are, without a wait.
        let next = Following::keep("u", blueprint(), source(), &roster);
        assert!(Arc::ptr_eq(&next, &following));
        let trial = Following::keep("another", blueprint(), source(), &roster.for_trial());
        assert_eq!(trial.members().load().endpoints().len(), 2);

        publisher.set(list(json!([])));
        assert!(members.changed().await);
        assert!(members.load().are_known() && members.load().endpoints().is_empty());
    }
}
