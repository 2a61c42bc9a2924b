//! `Policies`: what is declared about who may do what, and what of it is in force: whole revisions, never parts of one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{Id, IdentityPolicy, Kind, Rejected, Revision};
use crate::policy::{self, PolicyKeys, SignedSet};

type Version = (Revision, Arc<IdentityPolicy>);

/// The identity policies of a data plane.
///
/// They come into force together: while one of those that are declared is bad, nothing else of them changes either, and the last
/// set without a mistake stays in force. Half a change could allow what the whole does not. A policy that is bad and was never
/// in force stands closed beside that set: a deny policy refuses everybody, an allow policy admits nobody.
///
/// With trusted keys a policy must be signed, and the set whole and no older than the one in force; nothing that is not
/// has any effect then, not even that of standing closed.
#[derive(Debug, Default)]
pub(super) struct Policies {
    keys: PolicyKeys,
    declared: BTreeMap<Id, Stated>,
    /// The last set that was taken as a whole; at the start, what could be read.
    good: BTreeMap<Id, Version>,
    in_force: BTreeMap<Id, Version>,
    /// Good changes that wait for bad ones to go.
    waiting: BTreeSet<Id>,
}

#[derive(Debug)]
struct Stated {
    version: Version,
    flaw: Option<String>,
}

/// What became of changes.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Is something else in force?
    pub(super) is_changed: bool,
    /// What is not in force as it is declared, and why.
    pub(super) rejected: Vec<Rejected>,
    /// What waited and is in force now.
    pub(super) restored: Vec<(Kind, Id)>,
}

impl Policies {
    /// None yet. With `keys` only those count that one of them has signed.
    pub(super) fn trusting(keys: PolicyKeys) -> Self {
        Self { keys, ..Self::default() }
    }

    /// A policy is new or different; [`Policies::settle`] tells what comes of it.
    pub(super) fn put(&mut self, id: Id, revision: Revision, body: Arc<IdentityPolicy>) {
        let flaw = policy::check(&body).err().map(|invalid| invalid.0);
        self.declared.insert(id, Stated { version: (revision, body), flaw });
    }

    /// A policy is gone. Tells whether there was one.
    pub(super) fn delete(&mut self, id: &Id) -> bool {
        self.declared.remove(id).is_some() || self.good.contains_key(id)
    }

    /// What is in force, as [`policy::Policy::compile`] takes it.
    pub(super) fn in_force(&self) -> impl Iterator<Item = (&Id, Revision, &IdentityPolicy)> {
        self.in_force.iter().map(|(id, (revision, body))| (id, *revision, &**body))
    }

    /// Decides what of the declared policies is in force, after all changes of one revision.
    pub(super) fn settle(&mut self) -> Settled {
        let flaws = self.flaws();
        let culprit = flaws.iter().next().map(|(id, _)| id.clone());
        let is_first = self.good.is_empty();
        let mut next: BTreeMap<Id, Version> = match &culprit {
            Some(_) if !is_first => self.good.clone(),
            _ => self.sound(&flaws),
        };
        self.good.clone_from(&next);
        // Nobody knows what it would have kept out. Of signed policies it is known: what the last signed set keeps out.
        if self.keys.is_empty() {
            for (id, stated) in self.declared.iter().filter(|(id, _)| flaws.contains_key(*id)) {
                next.entry(id.clone()).or_insert_with(|| stated.version.clone());
            }
        }
        let mut settled = Settled {
            is_changed: next != self.in_force,
            rejected: self.rejected(&flaws),
            restored: Vec::new(),
        };
        self.in_force = next;
        let waiting = self.differing(&flaws);
        if let Some(culprit) = culprit {
            settled.rejected.extend(waiting.iter().map(|id| self.told_to_wait(id, &culprit)));
        }
        let before = std::mem::replace(&mut self.waiting, waiting);
        let restored = before.difference(&self.waiting).filter(|id| !flaws.contains_key(*id));
        settled.restored = restored.map(|id| (Kind::IdentityPolicies, id.clone())).collect();
        settled
    }

    /// What is wrong, by policy.
    fn flaws(&self) -> BTreeMap<Id, String> {
        let mut flaws: BTreeMap<Id, String> = self
            .declared
            .iter()
            .filter_map(|(id, stated)| Some((id.clone(), stated.flaw.clone()?)))
            .collect();
        if !self.keys.is_empty() {
            let sound = self.declared.iter().filter(|(id, _)| !flaws.contains_key(*id));
            let declared = sound.map(|(id, stated)| (id, &*stated.version.1)).collect();
            let good = self.good.iter().map(|(id, (_, body))| (id, &**body)).collect();
            let found = SignedSet { declared, in_force: good }.flaws(&self.keys);
            flaws.extend(found);
        }
        flaws
    }

    fn sound(&self, flaws: &BTreeMap<Id, String>) -> BTreeMap<Id, Version> {
        let sound = self.declared.iter().filter(|(id, _)| !flaws.contains_key(*id));
        sound.map(|(id, stated)| (id.clone(), stated.version.clone())).collect()
    }

    fn rejected(&self, flaws: &BTreeMap<Id, String>) -> Vec<Rejected> {
        let rejected = |(id, reason): (&Id, &String)| Rejected {
            kind: Kind::IdentityPolicies,
            id: id.clone(),
            revision: self.revision_of(id),
            reason: reason.clone(),
        };
        flaws.iter().map(rejected).collect()
    }

    fn revision_of(&self, id: &Id) -> Revision {
        let declared = self.declared.get(id).map(|stated| stated.version.0);
        declared.or_else(|| self.good.get(id).map(|version| version.0)).unwrap_or_default()
    }

    /// What is declared without a mistake and not in force as it is declared; what is in force and no longer declared.
    fn differing(&self, flaws: &BTreeMap<Id, String>) -> BTreeSet<Id> {
        let new = self.declared.iter().filter(|(id, stated)| {
            !flaws.contains_key(*id) && self.good.get(*id) != Some(&stated.version)
        });
        let gone = self.good.keys().filter(|id| !self.declared.contains_key(*id));
        let gone = gone.filter(|id| !flaws.contains_key(*id));
        new.map(|(id, _)| id).chain(gone).cloned().collect()
    }

    fn told_to_wait(&self, id: &Id, culprit: &Id) -> Rejected {
        let what = if self.declared.contains_key(id) { "it" } else { "its deletion" };
        let reason = format!(
            "{what} waits: identity policies come into force together, and [{culprit}] is refused"
        );
        let revision = self.revision_of(id);
        Rejected { kind: Kind::IdentityPolicies, id: id.clone(), revision, reason }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn id(text: &str) -> Id {
        Id::parse(text).unwrap()
    }

    struct World(Policies, Revision);

    impl World {
        fn new() -> Self {
            Self(Policies::default(), 0)
        }

        /// `name` allows `principal`; without one it is bad.
        fn put(&mut self, name: &str, principal: Option<&str>) {
            let rules: Vec<Value> =
                principal.into_iter().map(|one| json!({"from": {"principals": [one]}})).collect();
            let policy = json!({"action": "allow", "rules": rules});
            self.1 += 1;
            self.0.put(id(name), self.1, Arc::new(serde_json::from_value(policy).unwrap()));
        }

        fn settle(&mut self) -> (Vec<String>, Vec<String>) {
            let Settled { rejected, restored, .. } = self.0.settle();
            let rejected =
                rejected.iter().map(|one| format!("{}: {}", one.id, one.reason)).collect();
            (rejected, restored.iter().map(|(_, id)| id.to_string()).collect())
        }

        fn in_force(&self) -> Vec<(String, Revision)> {
            self.0.in_force().map(|(id, revision, _)| (id.to_string(), revision)).collect()
        }
    }

    const WEB: Option<&str> = Some("spiffe://shop/web");

    #[test]
    fn a_bad_policy_holds_the_whole_revision_back_until_it_is_mended() {
        let mut world = World::new();
        world.put("a", WEB);
        world.put("b", WEB);
        assert_eq!(world.settle(), (vec![], vec![]));

        // One revision: `a` turns bad, `b` changes, `c` is new; and then `b` is deleted.
        world.put("a", None);
        world.put("b", Some("spiffe://shop/other"));
        world.put("c", WEB);
        let (rejected, restored) = world.settle();
        assert!(restored.is_empty());
        assert_eq!(world.in_force(), [("a".into(), 1), ("b".into(), 2)], "as before");
        assert_eq!(rejected.len(), 3, "{rejected:?}");
        assert!(rejected[0].starts_with("a: rules: at least one"), "{rejected:?}");
        assert!(rejected[1].starts_with("b: it waits") && rejected[1].contains("[a] is refused"));
        assert!(world.0.delete(&id("b")));
        let (rejected, _) = world.settle();
        assert!(rejected[1].starts_with("b: its deletion waits"), "{rejected:?}");
        assert_eq!(world.in_force().len(), 2);

        world.put("a", WEB);
        let (rejected, restored) = world.settle();
        assert!(rejected.is_empty(), "{rejected:?}");
        assert_eq!(restored, ["b", "c"]);
        assert_eq!(world.in_force(), [("a".into(), 6), ("c".into(), 5)]);
    }

    #[test]
    fn a_new_bad_policy_stands_closed_beside_the_last_good_ones() {
        let mut world = World::new();
        world.put("a", WEB);
        world.settle();
        world.put("b", None);
        world.put("c", WEB);
        assert_eq!(world.settle().0.len(), 2);
        assert_eq!(world.in_force(), [("a".into(), 1), ("b".into(), 2)], "c waits");
        assert!(world.0.delete(&id("b")));
        assert_eq!(world.settle(), (vec![], vec!["c".into()]));
        assert_eq!(world.in_force(), [("a".into(), 1), ("c".into(), 3)]);
    }

    #[test]
    fn at_the_start_what_can_be_read_is_taken_and_then_nothing_changes_until_all_can() {
        let mut world = World::new();
        world.put("a", WEB);
        world.put("b", None);
        assert_eq!(world.settle().0.len(), 1);
        assert_eq!(world.in_force(), [("a".into(), 1), ("b".into(), 2)]);
        world.put("a", Some("spiffe://shop/other"));
        assert_eq!(world.settle().0.len(), 2);
        assert_eq!(world.in_force(), [("a".into(), 1), ("b".into(), 2)]);
    }
}
