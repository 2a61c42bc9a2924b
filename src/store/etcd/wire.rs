//! etcd's messages, and what they mean here.

use tonic::{Code, Status};
use tracing::warn;

use crate::store::{Error, Stored};

pub(super) mod generated {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    #![allow(clippy::wildcard_imports, clippy::missing_errors_doc, reason = "written by a machine")]
    include!("../generated/etcd.rs");
}

pub(super) fn stored(entry: &generated::KeyValue) -> Result<Stored, Error> {
    let key = String::from_utf8_lossy(&entry.key).into_owned();
    let Ok(value) = serde_json::from_slice(&entry.value) else {
        return Err(Error::NotJson { key });
    };
    let (created, modified) = (unsigned(entry.create_revision), unsigned(entry.mod_revision));
    Ok(Stored { key, value, created, modified })
}

pub(super) fn stored_or_skipped(entry: &generated::KeyValue) -> Option<Stored> {
    match stored(entry) {
        Ok(stored) => Some(stored),
        Err(error) => {
            // APISIX's folders are keys with a slash at the end and the value `init_dir`.
            if !matches!(&error, Error::NotJson { key } if key.ends_with('/')) {
                warn!(%error, "etcd: an entry is left out");
            }
            None
        }
    }
}

/// etcd's numbers are signed and never negative.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn header(header: Option<&generated::ResponseHeader>) -> generated::ResponseHeader {
    header.cloned().unwrap_or_default()
}

pub(super) fn range_of(key: Vec<u8>, range_end: Vec<u8>, limit: i64) -> generated::RangeRequest {
    generated::RangeRequest { key, range_end, limit, ..generated::RangeRequest::default() }
}

/// The range of all keys with this prefix: up to the prefix with its last byte raised by one.
pub(super) fn bounds(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    if prefix.is_empty() {
        return (vec![0], vec![0]);
    }
    let mut end = prefix.as_bytes().to_vec();
    // A byte of UTF-8 is never 0xff, so the last one can always be raised.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (prefix.into(), end)
}

pub(super) fn is_compacted(why: &str) -> bool {
    why.contains("has been compacted")
}

/// Did the request fail before its first byte could leave?
pub(super) fn was_not_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// What etcd's answer means for the caller.
pub(super) fn meaning(status: &Status) -> Error {
    let text = status.message().trim_start_matches("etcdserver: ").to_owned();
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            let cause = std::error::Error::source(status).map(innermost);
            Error::Unreachable(cause.unwrap_or(text))
        }
        _ => Error::Refused(text),
    }
}
