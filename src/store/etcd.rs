//! etcd 3.4 and later over its native gRPC, in APISIX's key layout.
//!
//! Several endpoints are tried in turn. A write is sent again only when it certainly was not sent before. The watch asks
//! for progress, goes on where it was after a broken connection, and starts again with a `Reset` when etcd has compacted
//! the past away or is not the one it was (another cluster, a lower revision, or a past that differs: a restored backup).

mod connection;
mod copy;
mod tls;
mod watch;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::connection::{Again, Client};
use self::wire::generated::compare::{CompareResult, CompareTarget, TargetUnion};
use self::wire::generated::lease_client::LeaseClient;
use self::wire::generated::request_op::Request as Operation;
use self::wire::generated::response_op::Response as Outcome;
use self::wire::{
    bounds, generated, header, is_compacted, range_of, signed, stored, stored_or_skipped, unsigned,
};
use super::image::Image;
use super::{Commit, Error, Expect, Listing, Store, Stored, Watch, Write, Written};
use crate::model::{Redacted, Revision};

pub use self::tls::TlsFiles;

/// Entries that one answer to [`Store::list`] may hold; more are asked for in pages of one revision.
const PAGE: i64 = 1000;
/// Etcd limits requests to 1.5 MiB by default, so all of a cluster's history fits its answers many times over.
const LIST_WITHIN: Duration = Duration::from_secs(60);

/// How to reach etcd.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The members: `http://host:2379` or `https://host:2379`.
    #[schemars(length(min = 1))]
    pub endpoints: Vec<String>,
    /// The user, when etcd has authentication on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Redacted<String>>,
    /// Certificates, for `https` endpoints.
    #[serde(default)]
    pub tls: TlsFiles,
    /// Seconds that etcd has to answer a request.
    #[serde(default = "default_timeout_seconds")]
    #[schemars(range(min = 1, max = 600))]
    pub timeout_seconds: u64,
    /// Seconds after which a watch that says nothing is begun anew at the next member. Three times as often etcd is asked for a
    /// sign of life.
    #[serde(default = "default_watch_silence_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub watch_silence_seconds: u64,
}

const fn default_timeout_seconds() -> u64 {
    5
}

const fn default_watch_silence_seconds() -> u64 {
    60
}

impl Settings {
    /// Plain connections to these endpoints.
    pub fn plain(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            user: None,
            password: None,
            tls: TlsFiles::default(),
            timeout_seconds: default_timeout_seconds(),
            watch_silence_seconds: default_watch_silence_seconds(),
        }
    }
}

/// The store. It connects when it is first asked, and again whenever that is needed.
pub struct Etcd {
    client: Arc<Client>,
}

impl Etcd {
    /// Reads the settings and the files they name. Does not connect.
    ///
    /// # Errors
    /// An endpoint is not a URL of the form that the settings ask for, or a file cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        Ok(Self { client: Arc::new(Client::new(settings)?) })
    }

    /// Makes etcd forget the past up to now, for all its users. Watches that are behind start again with a `Reset`.
    ///
    /// # Errors
    /// etcd is unreachable or refuses.
    pub async fn compact(&self) -> Result<(), Error> {
        let now = self.client.range(range_of(b"\0".to_vec(), Vec::new(), 1)).await?;
        let revision = header(now.header.as_ref()).revision;
        self.client
            .ask(Again::IfUnsent, |channel| async move {
                let request = generated::CompactionRequest { revision, physical: true };
                channel.kv().compact(channel.with_token(request)).await
            })
            .await
            .map(|_| ())
    }
}

impl Client {
    /// Asks for a range of keys.
    async fn range(
        &self,
        request: generated::RangeRequest,
    ) -> Result<generated::RangeResponse, Error> {
        self.ask(Again::Always, |channel| {
            let request = request.clone();
            async move { channel.kv().range(channel.with_token(request)).await }
        })
        .await
    }

    async fn transact<'k>(
        &self,
        expected: impl Iterator<Item = (&'k str, Expect)>,
        success: Vec<Operation>,
    ) -> Result<generated::TxnResponse, Error> {
        let compare = expected.filter_map(|(key, expect)| {
            let (target, union) = match expect {
                Expect::Anything => return None,
                Expect::Absent => (CompareTarget::Create, TargetUnion::CreateRevision(0)),
                Expect::Revision(revision) => {
                    (CompareTarget::Mod, TargetUnion::ModRevision(signed(revision)))
                }
            };
            Some(generated::Compare {
                result: CompareResult::Equal.into(),
                target: target.into(),
                key: key.into(),
                target_union: Some(union),
            })
        });
        let request = generated::TxnRequest {
            compare: compare.collect(),
            success: success
                .into_iter()
                .map(|operation| generated::RequestOp { request: Some(operation) })
                .collect(),
            failure: Vec::new(),
        };
        let response = self
            .ask(Again::IfUnsent, |channel| {
                let request = request.clone();
                async move { channel.kv().txn(channel.with_token(request)).await }
            })
            .await?;
        if response.succeeded { Ok(response) } else { Err(Error::Conflict) }
    }

    /// All entries below a prefix at one revision, in pages; and the cluster they came from.
    async fn list(&self, prefix: &str) -> Result<(Listing, u64), Error> {
        let whole = self.whole(prefix).await?;
        let entries = whole.entries.iter().filter_map(stored_or_skipped).collect();
        Ok((Listing { entries, revision: whole.revision }, whole.cluster))
    }

    async fn whole(&self, prefix: &str) -> Result<Whole, Error> {
        let (first, end) = bounds(prefix);
        'anew: for _ in 0..3 {
            let mut whole = Whole::default();
            let mut from = first.clone();
            loop {
                let mut request = range_of(from.clone(), end.clone(), PAGE);
                request.revision = signed(whole.revision);
                let page = self
                    .ask_within(LIST_WITHIN, Again::Always, |channel| {
                        let request = request.clone();
                        async move { channel.kv().range(channel.with_token(request)).await }
                    })
                    .await;
                let page = match page {
                    // The pages' revision was compacted between two of them.
                    Err(Error::Refused(why)) if is_compacted(&why) => continue 'anew,
                    page => page?,
                };
                let header = header(page.header.as_ref());
                if whole.revision == 0 {
                    whole.revision = unsigned(header.revision);
                }
                whole.cluster = header.cluster_id;
                if let Some(last) = page.kvs.last() {
                    from = last.key.clone();
                    from.push(0);
                }
                whole.entries.extend(page.kvs);
                if !page.more {
                    return Ok(whole);
                }
            }
        }
        Err(Error::Unreachable("etcd compacts faster than it can be read".into()))
    }
}

/// All that lies below a prefix at one revision, as etcd tells it.
#[derive(Default)]
struct Whole {
    entries: Vec<generated::KeyValue>,
    revision: Revision,
    cluster: u64,
}

impl Etcd {
    /// A new lease of so many seconds; 0 where none is asked for.
    async fn lease(&self, ttl: Option<u64>) -> Result<i64, Error> {
        let Some(ttl) = ttl else { return Ok(0) };
        let request = generated::LeaseGrantRequest { ttl: signed(ttl.max(1)), id: 0 };
        let grant = self.client.ask(Again::IfUnsent, |connected| async move {
            let mut client = LeaseClient::new(connected.channel.clone());
            client.lease_grant(connected.with_token(request)).await
        });
        Ok(grant.await?.id)
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Stored>, Error> {
        let answer = self.client.range(range_of(key.into(), Vec::new(), 0)).await?;
        answer.kvs.first().map(stored).transpose()
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        self.client.list(prefix).await.map(|(listing, _)| listing)
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Commit, Error> {
        let mut operations = Vec::with_capacity(writes.len());
        for Write { key, value, ttl, .. } in &writes {
            let key = key.as_str().into();
            operations.push(match value {
                Some(value) => Operation::RequestPut(generated::PutRequest {
                    key,
                    value: value.to_string().into(),
                    lease: self.lease(*ttl).await?,
                    // It tells since when the key is there.
                    prev_kv: true,
                }),
                None => Operation::RequestDeleteRange(generated::DeleteRangeRequest {
                    key,
                    ..generated::DeleteRangeRequest::default()
                }),
            });
        }
        let expected = writes.iter().map(|write| (write.key.as_str(), write.expect));
        let answer = self.client.transact(expected, operations).await?;
        let revision = unsigned(header(answer.header.as_ref()).revision);
        let outcomes = answer.responses.into_iter().map(|response| response.response);
        let written = writes.into_iter().zip(outcomes).map(|(write, outcome)| match outcome {
            Some(Outcome::ResponsePut(put)) => {
                let created = put.prev_kv.map_or(revision, |entry| unsigned(entry.create_revision));
                let (key, value) = (write.key, write.value.unwrap_or_default());
                Ok(Written::Put(Stored { key, value, created, modified: revision }))
            }
            Some(Outcome::ResponseDeleteRange(gone)) if gone.deleted > 0 => Ok(Written::Removed),
            Some(Outcome::ResponseDeleteRange(_)) => Ok(Written::WasAbsent),
            _ => Err(Error::Refused("etcd did not say what it had written".into())),
        });
        let written = written.collect::<Result<_, Error>>()?;
        Ok(Commit { revision, written })
    }

    async fn image(&self, prefix: &str) -> Result<Image, Error> {
        self.client.image(prefix).await
    }

    fn watch(&self, prefix: &str, from: Revision) -> Watch {
        let (client, prefix) = (self.client.clone(), prefix.to_owned());
        Watch::fed_by(|events| async move { client.follow(prefix, from, events).await })
    }
}
