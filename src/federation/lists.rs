//! Revocation lists of a trust domain: in the resource, from files, from URLs.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::rt::crypto::digest::{SHA256, digest};
use http::Uri;
use serde::{Deserialize, Serialize};

use super::board::ListReport;
use super::disk::Shelf;
use super::{Error, Limits};
use crate::identity::{DatedList, ListOrigin, RevocationList, TrustBundle};

/// Where lists come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Resource,
    File(PathBuf),
    Url(Uri),
}

/// What a source of lists has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) origin: Origin,
    /// The last good ones.
    pub(super) lists: Vec<DatedList>,
    pub(super) stamp: Option<Stamp>,
    pub(super) error: Option<String>,
}

/// What tells that a file is another one.
pub(super) type Stamp = (u64, u64, i64, i64);

#[derive(Serialize, Deserialize)]
struct About {
    url: String,
}

impl Source {
    pub(super) fn given(lists: Vec<DatedList>) -> Self {
        Self { origin: Origin::Resource, lists, stamp: None, error: None }
    }

    /// A file, read at once: what it revokes must not get in meanwhile.
    pub(super) fn file(path: PathBuf, before: Option<&Self>) -> Self {
        let mut source = Self {
            lists: before.map(|before| before.lists.clone()).unwrap_or_default(),
            origin: Origin::File(path),
            stamp: None,
            error: None,
        };
        source.look();
        source
    }

    /// A URL, with the list that was fetched last.
    pub(super) fn url(url: &Uri, shelf: &Shelf, before: Option<&Self>) -> Self {
        if let Some(before) = before {
            return before.clone();
        }
        let mut source = Self {
            lists: Vec::new(),
            stamp: None,
            error: Some("not fetched yet".into()),
            origin: Origin::Url(url.clone()),
        };
        match shelf.read::<About>(&shelf_name(url)) {
            Ok(Some((about, bytes))) if about.url == url.to_string() => {
                match DatedList::read(&bytes) {
                    Ok(lists) => source.lists = lists,
                    Err(why) => {
                        tracing::error!(%url, why, "the kept revocation list cannot be used");
                    }
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%url, error = error.report(), "the kept revocation list cannot be used");
            }
        }
        source
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self.origin, Origin::File(_))
    }

    /// Reads the file again when it is another one; tells whether anything changed.
    pub(super) fn look(&mut self) -> bool {
        let Origin::File(path) = &self.origin else { return false };
        let stamp = stamp(path);
        if stamp.is_some() && stamp == self.stamp && self.error.is_none() {
            return false;
        }
        let before = self.clone();
        let Origin::File(path) = &before.origin else { return false };
        self.stamp = stamp;
        match read(path) {
            Ok(lists) => (self.lists, self.error) = (lists, None),
            // The last good lists go on being looked at.
            Err(why) => self.error = Some(why),
        }
        if self.error.is_some() && self.error != before.error {
            let why = self.error.as_deref();
            tracing::error!(file = %path.display(), why, "a revocation list cannot be read; the last good one stays");
        }
        before != *self
    }

    pub(super) fn report(&self) -> ListReport {
        let newest = self.lists.iter().max_by_key(|list| list.this_update);
        ListReport {
            from: match &self.origin {
                Origin::Resource => "resource".into(),
                Origin::File(path) => path.display().to_string(),
                Origin::Url(url) => url.to_string(),
            },
            this_update: newest.map(|list| list.this_update),
            next_update: newest.map(|list| list.next_update),
            error: self.error.clone(),
        }
    }
}

pub(super) fn shelf_name(url: &Uri) -> String {
    format!("list-{}", hex::encode(digest(&SHA256, url.to_string().as_bytes())))
}

/// Keeps what was fetched for the next start.
pub(super) fn keep(shelf: &Shelf, url: &Uri, bytes: &[u8]) -> Result<(), Error> {
    shelf.keep(&shelf_name(url), &About { url: url.to_string() }, bytes)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let seen = fs::metadata(path).ok()?;
    Some((seen.ino(), seen.size(), seen.mtime(), seen.mtime_nsec()))
}

fn read(path: &Path) -> Result<Vec<DatedList>, String> {
    let file = fs::metadata(path).map_err(|error| format!("cannot read it: {error}"))?;
    if !file.is_file() {
        return Err("it is not a file".into());
    }
    let max = u64::try_from(Limits::LIST.max_bytes).unwrap_or(u64::MAX);
    let file = fs::File::open(path).map_err(|error| format!("cannot read it: {error}"))?;
    let mut bytes = Vec::new();
    file.take(max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot read it: {error}"))?;
    if bytes.len() > Limits::LIST.max_bytes {
        return Err(format!("it has more than {max} bytes"));
    }
    DatedList::read(&bytes)
}

/// May what came from `url` take the place of the lists that are held?
///
/// Over plain http anybody on the way can answer: there a list must be signed by an authority of the bundle, else a made-up one
/// would put the good one out of force. And nobody may bring back an older list.
pub(super) fn succeed(
    url: &Uri,
    bytes: &[u8],
    held: &[DatedList],
    bundle: Option<&TrustBundle>,
) -> Result<Vec<DatedList>, Error> {
    let lists = DatedList::read(bytes).map_err(|why| Error::List { why })?;
    for list in &lists {
        let origin = RevocationList::from_der(list.der.clone())
            .map(|list| bundle.map_or(ListOrigin::Unknown, |bundle| list.origin(bundle)))?;
        match origin {
            ListOrigin::Root => {}
            ListOrigin::Forged => {
                return Err(Error::List {
                    why: "the authority that it names did not sign it".into(),
                });
            }
            ListOrigin::Unknown if url.scheme_str() == Some("https") => {}
            ListOrigin::Unknown => {
                let why = "over plain http it must be signed by a root of the trust domain's bundle; use https for lists of others";
                return Err(Error::List { why: why.into() });
            }
        }
    }
    let newest = |lists: &[DatedList]| lists.iter().map(|list| list.this_update).max();
    if newest(&lists) < newest(held) {
        return Err(Error::OlderList);
    }
    Ok(lists)
}
