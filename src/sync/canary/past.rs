//! What stood at an earlier revision: a control plane that starts while something is tried must know what everybody has.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde_json::Value;

use super::record::Record;
use crate::model::{Kind, Revision};
use crate::store::{self, Listing, Stored};
use crate::sync::delta::Key;

/// One revision of a resource that is remembered.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// Which resource.
    pub key: Key,
    /// The revision that wrote it.
    pub revision: Revision,
    /// What it said from then on; `None`: it was gone.
    pub value: Option<Value>,
}

/// Remembers what resources were.
#[async_trait]
pub trait Past: Send + Sync {
    /// All that is remembered of the resources that were changed after `revision`.
    ///
    /// # Errors
    /// It cannot be read.
    async fn of_changed_since(&self, revision: Revision) -> Result<Vec<Remembered>, store::Error>;
}

/// Kinds that wait for no canary: what they say is for now, or for nobody who carries traffic.
pub(crate) fn is_exempt(kind: Kind) -> bool {
    matches!(kind, Kind::Revocations | Kind::Workloads)
}

/// What of `listing` stood at `revision`, with the writes `beside` that went past it. Of what is not remembered so far back the
/// oldest that is known counts; it is named.
pub(crate) fn as_of(
    (listing, prefix): (&Listing, &str),
    past: &[Remembered],
    revision: Revision,
    beside: &BTreeSet<Revision>,
) -> (Vec<Stored>, Vec<Key>) {
    let counts = |one: Revision| one <= revision || beside.contains(&one);
    let mut newest: BTreeMap<&Key, &Remembered> = BTreeMap::new();
    for one in past.iter().filter(|one| counts(one.revision)) {
        let known = newest.entry(&one.key).or_insert(one);
        if known.revision < one.revision {
            *known = one;
        }
    }
    let then = |text: &str, key: &Key| {
        let one = newest.get(key)?;
        let value = one.value.clone();
        let (key, modified) = (text.to_owned(), one.revision);
        Some(value.map(|value| Stored { key, value, created: modified, modified }))
    };
    let (mut stood, mut unknown) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for stored in &listing.entries {
        let Some(key) = stored.key.strip_prefix(prefix).and_then(Kind::split_key) else { continue };
        let is_as_it_was = is_exempt(key.0) || counts(stored.modified);
        match then(&stored.key, &key).filter(|_| !is_as_it_was) {
            _ if is_as_it_was => stood.push(stored.clone()),
            Some(one) => stood.extend(one),
            None if stored.created > revision => {}
            None => {
                unknown.push(key.clone());
                stood.push(stored.clone());
            }
        }
        seen.insert(key);
    }
    for key in newest.keys().filter(|key| !seen.contains(**key) && !is_exempt(key.0)) {
        let text = format!("{prefix}{}", key.0.key(&key.1));
        stood.extend(then(&text, key).flatten());
    }
    (stood, unknown)
}

/// What a control plane knows of the past when it reads the store as a whole.
pub(crate) struct Known {
    pub(crate) record: Record,
    /// Writes that passed by themselves.
    pub(crate) skips: BTreeSet<Revision>,
    pub(crate) past: Vec<Remembered>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Id;

    fn key(name: &str) -> Key {
        let (kind, id) = name.split_once('/').unwrap();
        (Kind::named(kind).unwrap(), Id::parse(id).unwrap())
    }

    fn stored(name: &str, created: Revision, modified: Revision) -> Stored {
        Stored {
            key: format!("/apisix/{name}"),
            value: json!({"now": modified}),
            created,
            modified,
        }
    }

    fn remembered(name: &str, revision: Revision, there: bool) -> Remembered {
        let value = there.then(|| json!({"now": revision}));
        Remembered { key: key(name), revision, value }
    }

    #[test]
    fn what_stood_is_taken_from_what_is_remembered() {
        let entries = vec![
            stored("routes/same", 1, 3),
            stored("routes/changed", 2, 12),
            stored("routes/new", 11, 11),
            stored("routes/skipped", 2, 13),
            stored("routes/unknown", 1, 14),
            stored("revocations/now", 15, 15),
            Stored { key: "/apisix/gen_id".into(), ..stored("routes/x", 1, 1) },
        ];
        let listing = Listing { entries, revision: 15 };
        let past = [
            remembered("routes/changed", 4, true),
            remembered("routes/changed", 9, true),
            remembered("routes/changed", 12, true),
            remembered("routes/new", 11, true),
            remembered("routes/gone", 5, true),
            remembered("routes/gone", 14, false),
            remembered("routes/long-gone", 5, true),
            remembered("routes/long-gone", 6, false),
            remembered("routes/unknown", 14, true),
        ];
        let (stood, unknown) = as_of((&listing, "/apisix"), &past, 10, &BTreeSet::from([13]));
        let mut names: Vec<(String, Revision)> =
            stood.into_iter().map(|one| (one.key, one.modified)).collect();
        names.sort();
        let expected = [
            ("revocations/now", 15),
            ("routes/changed", 9),
            ("routes/gone", 5),
            ("routes/same", 3),
            ("routes/skipped", 13),
            ("routes/unknown", 14),
        ];
        let expected = expected.map(|(name, revision)| (format!("/apisix/{name}"), revision));
        assert_eq!(names, expected);
        assert_eq!(unknown, [key("routes/unknown")]);
    }
}
