//! `Stored`: one answer as it is kept, and the reply that is made of it.

use std::sync::Arc;

use bytes::Bytes;

use super::disk::DiskBody;
use super::freshness::{Freshness, date, pieces};
use super::key::{Sum, selection};
use crate::pipeline::{Head, Known};

/// One answer.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) resource: Sum,
    /// The fields that it was chosen by, each with the digest of what the request said in it.
    pub(super) vary: Vec<(String, String)>,
    pub(super) status: u16,
    pub(super) fields: Vec<(String, String)>,
    pub(super) freshness: Freshness,
    pub(super) body: StoredBody,
}

/// Where the body is.
#[derive(Clone, Debug)]
pub(super) enum StoredBody {
    Memory(Bytes),
    File(Arc<DiskBody>),
}

impl StoredBody {
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(file) => file.length,
        }
    }
}

/// What one entry takes beside its texts.
const OVERHEAD: u64 = 512;

impl Stored {
    /// Is it the answer to a request that says this?
    pub(super) fn fits(&self, request: &Head) -> bool {
        self.vary.is_empty() || {
            let names: Vec<String> = self.vary.iter().map(|(name, _)| name.clone()).collect();
            selection(request, &names).is_some_and(|said| said == self.vary)
        }
    }

    /// Bytes of memory, and of disk.
    pub(super) fn takes(&self) -> (u64, u64) {
        let texts: usize = self.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        let varied: usize = self.vary.iter().map(|(name, sum)| name.len() + sum.len()).sum();
        let memory = OVERHEAD + (texts + varied) as u64;
        match &self.body {
            StoredBody::Memory(bytes) => (memory + bytes.len() as u64, 0),
            // Files take whole blocks.
            StoredBody::File(file) => (memory, file.on_disk.next_multiple_of(4096)),
        }
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Can the upstream be asked whether it still holds?
    pub(super) fn has_validator(&self) -> bool {
        self.field("etag").is_some() || self.field("last-modified").is_some()
    }

    /// Has a caller who says this the same already (RFC 9110 section 13.2.2)?
    pub(super) fn is_known_to(&self, conditions: &Conditions) -> bool {
        if self.status != 200 {
            return false;
        }
        if !conditions.none_match.is_empty() {
            let own = self.field("etag").map(weak);
            return conditions.none_match.iter().any(|line| {
                pieces(line.as_bytes()).any(|tag| {
                    tag == b"*"
                        || own.is_some_and(|own| {
                            std::str::from_utf8(tag).is_ok_and(|tag| weak(tag) == own)
                        })
                })
            });
        }
        let since = conditions.modified_since.as_deref().and_then(|text| date(text.as_bytes()));
        let modified = self.field("last-modified").and_then(|text| date(text.as_bytes()));
        matches!((since, modified), (Some(since), Some(modified)) if modified <= since)
    }

    /// The fields after the upstream has said that nothing has changed but what stands in `update` (RFC 9111 section 3.2).
    pub(super) fn updated(&self, update: &Head) -> Option<Vec<(String, String)>> {
        let mut fresh = fields_of(update, false)?;
        fresh.retain(|(name, _)| !describes_body(name));
        let is_new = |name: &str| fresh.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        let kept = self.fields.iter().filter(|(name, _)| !is_new(name)).cloned();
        let mut fields: Vec<(String, String)> = kept.collect();
        fields.extend(fresh);
        Some(fields)
    }

    /// The head that it came with, to be judged anew.
    pub(super) fn head(fields: &[(String, String)], status: u16) -> Head {
        let mut head = Head::response(status);
        for (name, value) in fields {
            head.append(name, value.as_bytes());
        }
        head
    }
}

fn weak(tag: &str) -> &str {
    tag.trim().strip_prefix("W/").unwrap_or(tag.trim())
}

/// A 304 says nothing about the body that is there already.
fn describes_body(name: &str) -> bool {
    ["content-encoding", "content-type", "content-range"]
        .iter()
        .any(|one| name.eq_ignore_ascii_case(one))
}

/// What is stored of a head; nothing when a field could not be given back as it came.
pub(super) fn fields_of(head: &Head, with_cookies: bool) -> Option<Vec<(String, String)>> {
    let mut fields = Vec::new();
    for field in head.fields() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let is_framing = field.known.is_hop_by_hop()
            || matches!(field.known, Known::ContentLength | Known::Trailer);
        if is_framing || is("age") || (is("set-cookie") && !with_cookies) {
            continue;
        }
        fields.push((field.name.to_owned(), std::str::from_utf8(field.value).ok()?.to_owned()));
    }
    Some(fields)
}

/// What a caller says it has already.
#[derive(Clone, Debug, Default)]
pub(super) struct Conditions {
    none_match: Vec<String>,
    modified_since: Option<String>,
}

impl Conditions {
    pub(super) fn of(request: &Head) -> Self {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        Self {
            none_match: request.all("if-none-match").map(text).collect(),
            modified_since: request.value("if-modified-since").map(text),
        }
    }
}

/// An answer whose body is still to come.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) resource: Sum,
    pub(super) vary: Vec<(String, String)>,
    pub(super) status: u16,
    pub(super) fields: Vec<(String, String)>,
    pub(super) freshness: Freshness,
}

impl Draft {
    /// With its body.
    pub(super) fn with(self, body: StoredBody) -> Stored {
        let Self { resource, vary, status, fields, freshness } = self;
        Stored { resource, vary, status, fields, freshness, body }
    }
}
