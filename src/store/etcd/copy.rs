//! All of etcd's entries as they rest, and all of another store's entries brought into etcd.

use std::collections::{BTreeMap, HashMap};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::connection::{Again, Client};
use super::wire::generated::lease_client::LeaseClient;
use super::wire::generated::request_op::Request as Operation;
use super::wire::{generated, header, range_of, unsigned};
use super::{Etcd, Expect};
use crate::model::Revision;
use crate::store::Error;
use crate::store::image::{Image, ImageEntry, is_under};

/// Fillings that are under way at once.
const AT_ONCE: usize = 128;
/// Operations of one transaction: etcd's default limit.
const OPERATIONS: usize = 128;

impl Client {
    pub(super) async fn image(&self, prefix: &str) -> Result<Image, Error> {
        let whole = self.whole(prefix).await?;
        let mut image = Image { revision: whole.revision, ..Image::default() };
        let mut leases = HashMap::new();
        for entry in whole.entries {
            let key = String::from_utf8_lossy(&entry.key).into_owned();
            let text = String::from_utf8(entry.value)
                .ok()
                .filter(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
            let Some(text) = text else {
                image.skipped.push(key);
                continue;
            };
            let ttl = match (entry.lease, leases.get(&entry.lease)) {
                (0, _) => None,
                (_, Some(known)) => Some(*known),
                (lease, None) => {
                    let left = self.time_to_live(lease).await?;
                    leases.insert(lease, left);
                    Some(left)
                }
            };
            let (created, modified) =
                (unsigned(entry.create_revision), unsigned(entry.mod_revision));
            image.entries.push(ImageEntry { key, text, created, modified, ttl });
        }
        Ok(image)
    }

    /// The seconds that a lease has left, at least one.
    async fn time_to_live(&self, lease: i64) -> Result<u64, Error> {
        let answer = self.ask(Again::Always, |connected| async move {
            let request = generated::LeaseTimeToLiveRequest { id: lease, keys: false };
            let mut client = LeaseClient::new(connected.channel.clone());
            client.lease_time_to_live(connected.with_token(request)).await
        });
        Ok(unsigned(answer.await?.ttl).max(1))
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let now = self.range(range_of(b"\0".to_vec(), Vec::new(), 1)).await?;
        Ok(unsigned(header(now.header.as_ref()).revision))
    }

    /// Makes so many revisions that say nothing.
    async fn fill(&self, key: &str, count: u64) -> Result<(), Error> {
        let one = || {
            Operation::RequestPut(generated::PutRequest {
                key: key.into(),
                value: b"{}".to_vec(),
                ..generated::PutRequest::default()
            })
        };
        stream::iter(0..count)
            .map(|_| self.transact(std::iter::empty(), vec![one()]))
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await
    }
}

impl Etcd {
    /// Brings all entries of an image in, each written by the revision that it says: in a new etcd, what remembers revisions stays
    /// true. In one whose revision is beyond the first of them already, all revisions are later by one number, which is returned.
    ///
    /// Nobody else may write to this etcd meanwhile.
    ///
    /// # Errors
    /// There is something under `prefix` and `overwrite` does not say that it may be removed, somebody else writes, or etcd is
    /// unreachable or refuses. What was written until then is there.
    pub async fn restore(
        &self,
        prefix: &str,
        image: &Image,
        overwrite: bool,
    ) -> Result<u64, Error> {
        let client = &self.client;
        let there = client.whole(prefix).await?.entries;
        let there: Vec<Vec<u8>> = there
            .into_iter()
            .map(|entry| entry.key)
            .filter(|key| std::str::from_utf8(key).is_ok_and(|key| is_under(prefix, key)))
            .collect();
        if !there.is_empty() && !overwrite {
            return Err(Error::NotEmpty(format!("{} keys under {prefix}", there.len())));
        }
        for keys in there.chunks(OPERATIONS) {
            let remove = |key: &Vec<u8>| {
                let key = key.clone();
                Operation::RequestDeleteRange(generated::DeleteRangeRequest {
                    key,
                    ..generated::DeleteRangeRequest::default()
                })
            };
            client.transact(std::iter::empty(), keys.iter().map(remove).collect()).await?;
        }
        // An entry that was changed after its creation is written twice: by both of its revisions.
        let mut writes: BTreeMap<Revision, Vec<&ImageEntry>> = BTreeMap::new();
        for entry in &image.entries {
            writes.entry(entry.created).or_default().push(entry);
            if entry.modified != entry.created {
                writes.entry(entry.modified).or_default().push(entry);
            }
        }
        let mut now = client.revision().await?;
        let first = writes.keys().next().copied().unwrap_or(image.revision);
        let later = (now + 1).saturating_sub(first);
        let filler = format!("{prefix}-migration");
        let mut has_filler = false;
        for (revision, entries) in writes {
            let due = revision + later;
            if due > now + 1 {
                client.fill(&filler, due - now - 1).await?;
                has_filler = true;
            }
            let mut operations = Vec::with_capacity(entries.len());
            for entry in entries {
                operations.push(Operation::RequestPut(generated::PutRequest {
                    key: entry.key.as_str().into(),
                    value: entry.text.as_str().into(),
                    lease: if entry.modified == revision {
                        self.lease(entry.ttl).await?
                    } else {
                        0
                    },
                    ..generated::PutRequest::default()
                }));
            }
            let answer = client.transact(std::iter::empty::<(&str, Expect)>(), operations).await?;
            now = unsigned(header(answer.header.as_ref()).revision);
            if now != due {
                return Err(Error::Refused(format!(
                    "somebody else writes to this etcd: expected revision {due}, found {now}; stop the other writers and begin again with an empty prefix"
                )));
            }
        }
        let end = image.revision + later;
        if has_filler || end > now {
            // The last one removes what filled the gaps.
            client.fill(&filler, (end.saturating_sub(now)).saturating_sub(1).max(1)).await?;
            let request = Operation::RequestDeleteRange(generated::DeleteRangeRequest {
                key: filler.into(),
                ..generated::DeleteRangeRequest::default()
            });
            client.transact(std::iter::empty(), vec![request]).await?;
        }
        Ok(later)
    }
}
