//! What a data plane has against what it should have: the least to send. No I/O.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;

use crate::model::{Id, Kind, Revision};
use crate::rt::crypto::digest;

/// A resource's name over all kinds.
pub type Key = (Kind, Id);

/// One version of one resource.
///
/// The revision alone would do while a store only goes forward. The fingerprint tells versions apart that a store restored
/// from a backup, or another store, has given the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// The store's revision that wrote it.
    pub revision: Revision,
    /// The first eight bytes of the SHA-256 of its JSON text.
    pub fingerprint: u64,
}

impl Version {
    /// The version whose JSON text is `json`.
    pub fn of(revision: Revision, json: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, json);
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_ref()[..8]);
        Self { revision, fingerprint: u64::from_be_bytes(first) }
    }
}

/// Resources by name, in the version that somebody has or should have.
pub type Versions = HashMap<Key, Version, RandomState>;

/// What must be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// New or different resources, referenced kinds before those that refer to them.
    pub puts: Vec<(Key, Version)>,
    /// Resources that are gone, the other way round.
    pub deletes: Vec<Key>,
}

impl Delta {
    /// The least that turns `has` into `wanted`.
    /// ```
    /// # use wardgate::sync::delta::{Delta, Version, Versions};
    /// # use wardgate::model::{Id, Kind};
    /// let key = (Kind::Routes, Id::parse("1").unwrap());
    /// let wanted = Versions::from_iter([(key.clone(), Version::of(7, b"{}"))]);
    /// let mut has = Versions::default();
    /// let delta = Delta::between(&has, &wanted);
    /// delta.apply(&mut has);
    /// assert_eq!(has, wanted);
    /// assert!(Delta::between(&has, &wanted).is_empty());
    /// ```
    pub fn between(has: &Versions, wanted: &Versions) -> Self {
        Self::within(has.keys().chain(wanted.keys()), has, |key| wanted.get(key).copied())
    }

    /// The same for these keys only, when all others are known to be equal. A key may be named twice.
    pub fn within<'a>(
        keys: impl Iterator<Item = &'a Key>,
        has: &Versions,
        wanted: impl Fn(&Key) -> Option<Version>,
    ) -> Self {
        let mut delta = Self::default();
        let keys: BTreeSet<(usize, &Key)> = keys.map(|key| (rank(key.0), key)).collect();
        for (_, key) in keys {
            match (has.get(key).copied(), wanted(key)) {
                (found, Some(version)) if found != Some(version) => {
                    delta.puts.push((key.clone(), version));
                }
                (Some(_), None) => delta.deletes.push(key.clone()),
                _ => {}
            }
        }
        delta.deletes.reverse();
        delta
    }

    /// Nothing to send?
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty()
    }

    /// What somebody has after taking the delta.
    pub fn apply(&self, has: &mut Versions) {
        for key in &self.deletes {
            has.remove(key);
        }
        for (key, version) in &self.puts {
            has.insert(key.clone(), *version);
        }
    }
}

/// A kind's place in [`Kind::ALL`], where referenced kinds come first.
fn rank(kind: Kind) -> usize {
    Kind::ALL.iter().position(|other| *other == kind).unwrap_or(Kind::ALL.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn versions() -> impl Strategy<Value = Versions> {
        let key = (0..Kind::ALL.len(), 0..6u8)
            .prop_map(|(kind, id)| (Kind::ALL[kind], Id::parse(&id.to_string()).unwrap()));
        let version = (1..4u64, 0..2u64)
            .prop_map(|(revision, fingerprint)| Version { revision, fingerprint });
        proptest::collection::vec((key, version), 0..40).prop_map(Versions::from_iter)
    }

    proptest! {
        #[test]
        fn applying_the_delta_gives_what_is_wanted_and_nothing_in_it_is_needless(has in versions(), wanted in versions()) {
            let delta = Delta::between(&has, &wanted);
            let mut after = has.clone();
            delta.apply(&mut after);
            prop_assert_eq!(&after, &wanted);
            for (key, version) in &delta.puts {
                prop_assert_ne!(has.get(key), Some(version));
            }
            for key in &delta.deletes {
                prop_assert!(has.contains_key(key) && !wanted.contains_key(key));
            }
            prop_assert!(Delta::between(&after, &wanted).is_empty());
        }

        #[test]
        fn a_delta_within_the_keys_that_differ_is_the_whole_delta(has in versions(), wanted in versions()) {
            let differ: Vec<Key> = has
                .keys()
                .chain(wanted.keys())
                .filter(|key| has.get(*key) != wanted.get(*key))
                .cloned()
                .collect();
            let within = Delta::within(differ.iter(), &has, |key| wanted.get(key).copied());
            prop_assert_eq!(within, Delta::between(&has, &wanted));
        }
    }

    #[test]
    fn what_is_referred_to_comes_before_what_refers_to_it_and_leaves_after_it() {
        let key = |kind| (kind, Id::parse("1").unwrap());
        let version = Version::of(1, b"{}");
        let all = Versions::from_iter([
            (key(Kind::Routes), version),
            (key(Kind::Upstreams), version),
            (key(Kind::Services), version),
        ]);
        let none = Versions::default();
        let kinds: Vec<Kind> =
            Delta::between(&none, &all).puts.iter().map(|((kind, _), _)| *kind).collect();
        assert_eq!(kinds, [Kind::Upstreams, Kind::Services, Kind::Routes]);
        let kinds: Vec<Kind> =
            Delta::between(&all, &none).deletes.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [Kind::Routes, Kind::Services, Kind::Upstreams]);
    }

    #[test]
    fn the_same_revision_with_other_contents_is_another_version() {
        assert_ne!(Version::of(7, b"{\"a\":1}"), Version::of(7, b"{\"a\":2}"));
        assert_ne!(Version::of(7, b"{}"), Version::of(8, b"{}"));
        assert_eq!(Version::of(7, b"{}"), Version::of(7, b"{}"));
    }
}
