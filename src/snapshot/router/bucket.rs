//! `Bucket`: what stands at one path, in the order in which it is tried.

use std::cmp::Reverse;
use std::sync::Arc;

use smallvec::SmallVec;

use super::place::{Host, Part};
use super::radix::{End, Radix, Slot};
use crate::model::Id;

/// One value at one path, and at one host where it names some.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) value: T,
    pub(super) id: Id,
    pub(super) priority: i64,
    /// The length of the path as it is written.
    pub(super) written: u16,
    /// Which of its paths this is.
    pub(super) path: u16,
    /// Which of its hosts this is.
    pub(super) host: Option<u16>,
    /// What must follow the literal part of the path, where parameters do.
    pub(super) parts: Option<Arc<[Part]>>,
}

impl<T> Entry<T> {
    /// Higher priority first, then the longer path as it is written, then the order of the ids, which is the order in which a
    /// store gives them.
    fn rank(&self) -> (Reverse<i64>, Reverse<u16>, &Id, u16, Option<u16>) {
        (Reverse(self.priority), Reverse(self.written), &self.id, self.path, self.host)
    }
}

/// Entries by rank. Shared, so that a change among many at one place copies pointers alone.
pub(super) type Row<T> = SmallVec<[Arc<Entry<T>>; 2]>;

impl<T> Slot for Row<T> {
    fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

fn put<T>(row: &mut Row<T>, entry: Arc<Entry<T>>) {
    let at = row.partition_point(|other| other.rank() <= entry.rank());
    row.insert(at, entry);
}

fn take<T>(row: &mut Row<T>, id: &Id) {
    row.retain(|entry| entry.id != *id);
}

/// The entries of one path. Where hosts are a condition among others (not the first thing looked at), entries are found by
/// their hosts, so that a path that thousands of hosts have costs no request a walk past all of them.
#[derive(Clone, Debug)]
pub(super) struct Bucket<T> {
    everywhere: Row<T>,
    by_host: Option<Arc<Radix<Row<T>>>>,
}

impl<T> Default for Bucket<T> {
    fn default() -> Self {
        Self { everywhere: Row::new(), by_host: None }
    }
}

impl<T: Clone> Slot for Bucket<T> {
    fn is_empty(&self) -> bool {
        self.everywhere.is_empty() && self.by_host.is_none()
    }
}

impl<T: Clone> Bucket<T> {
    /// Adds an entry, for requests to `host` alone where one is given.
    pub(super) fn put(&mut self, entry: Arc<Entry<T>>, host: Option<&Host>) {
        match host {
            None => put(&mut self.everywhere, entry),
            Some(host) => {
                let by_host = Arc::make_mut(self.by_host.get_or_insert_default());
                let (key, end) = host.key();
                put(by_host.reach(&key, end), entry);
            }
        }
    }

    /// Takes the entries of `id` out, those for `host` where one is given.
    pub(super) fn take(&mut self, id: &Id, host: Option<&Host>) {
        match (host, &mut self.by_host) {
            (None, _) => take(&mut self.everywhere, id),
            (Some(_), None) => {}
            (Some(host), Some(by_host)) => {
                let by_host = Arc::make_mut(by_host);
                let (key, end) = host.key();
                by_host.reduce(&key, end, |row| take(row, id));
                if by_host.is_empty() {
                    self.by_host = None;
                }
            }
        }
    }

    /// The first entry for `host` that `accept` takes.
    pub(super) fn find<'a>(
        &'a self,
        host: &str,
        mut accept: impl FnMut(&'a Entry<T>) -> bool,
    ) -> Option<&'a Entry<T>> {
        let Some(by_host) = &self.by_host else {
            return self.everywhere.iter().map(|entry| &**entry).find(|entry| accept(entry));
        };
        let met = by_host.meet(&reversed(host));
        let mut rows: SmallVec<[&'a [Arc<Entry<T>>]; 8]> = SmallVec::new();
        rows.extend(
            met.exact.into_iter().chain(met.open.iter().map(|(_, row)| *row)).map(|row| &**row),
        );
        rows.push(&self.everywhere);
        let mut before: Option<&Entry<T>> = None;
        loop {
            let heads = rows.iter_mut().filter(|row| !row.is_empty());
            let row = heads.min_by(|a, b| a[0].rank().cmp(&b[0].rank()))?;
            let entry = &*row[0];
            *row = &row[1..];
            // By another of its hosts it was there already.
            let again = before.is_some_and(|it| (&it.id, it.path) == (&entry.id, entry.path));
            if !again && accept(entry) {
                return Some(entry);
            }
            before = Some(entry);
        }
    }
}

/// A host's bytes from its end on: what a wildcard leaves open is the end of the key.
pub(super) fn reversed(host: &str) -> SmallVec<[u8; 64]> {
    host.bytes().rev().collect()
}

impl Host {
    /// Where it stands in a tree of reversed hosts.
    pub(super) fn key(&self) -> (SmallVec<[u8; 64]>, End) {
        match self {
            Self::Exact(host) => (reversed(host), End::Exact),
            Self::Suffix(suffix) => (reversed(suffix), End::Open),
        }
    }
}
