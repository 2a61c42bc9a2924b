//! Following etcd: a watch that survives broken connections, and knows when it must read everything anew.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::metadata::MetadataValue;
use tracing::{info, warn};

use super::connection::{Client, MAX_ANSWER_BYTES};
use super::wire::generated::key_event::EventType;
use super::wire::generated::watch_client::WatchClient;
use super::wire::generated::watch_request::RequestUnion;
use super::wire::{
    bounds, generated, header, is_compacted, meaning, range_of, signed, stored_or_skipped, unsigned,
};
use crate::model::Revision;
use crate::rt::Backoff;
use crate::store::{Error, Event};

impl Client {
    /// Tells changes until the reader goes.
    pub(super) async fn follow(&self, prefix: String, from: Revision, events: mpsc::Sender<Event>) {
        let mut reader = Reader { position: from, ..Reader::default() };
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            match self.follow_once(&prefix, &mut reader, &events, &mut backoff).await {
                End::ReaderGone => return,
                End::Reset(why) => {
                    info!(why, "etcd: reading everything anew");
                    reader = Reader::default();
                }
                End::Broken(error) => {
                    warn!(%error, "etcd: the watch is interrupted; it goes on when etcd answers");
                    backoff.wait().await;
                }
            }
        }
    }

    async fn follow_once(
        &self,
        prefix: &str,
        reader: &mut Reader,
        events: &mpsc::Sender<Event>,
        backoff: &mut Backoff,
    ) -> End {
        if reader.position == 0 {
            let (listing, cluster) = match self.list(prefix).await {
                Ok(listed) => listed,
                Err(error) => return End::Broken(error),
            };
            reader.position = listing.revision;
            reader.cluster = Some(cluster);
            reader.witness =
                listing.entries.iter().max_by_key(|stored| stored.modified).map(|stored| Witness {
                    key: stored.key.clone(),
                    revision: stored.modified,
                    present: true,
                });
            if events.send(Event::Reset(listing)).await.is_err() {
                return End::ReaderGone;
            }
        } else {
            match self.is_the_same(reader).await {
                Ok(None) => {}
                Ok(Some(why)) => return End::Reset(why),
                Err(error) => return End::Broken(error),
            }
        }
        let (key, range_end) = bounds(prefix);
        let create = generated::WatchCreateRequest {
            key,
            range_end,
            start_revision: signed(reader.position + 1),
            progress_notify: true,
            fragment: true,
            ..generated::WatchCreateRequest::default()
        };
        let connected = match self.connected().await {
            Ok(connected) => connected,
            Err(error) => return End::Broken(error),
        };
        // The sending half stays open as long as the watch: etcd ends it otherwise.
        let (requests, outgoing) = mpsc::channel(1);
        let create =
            generated::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        if requests.send(create).await.is_err() {
            return End::Broken(Error::Unreachable("the watch was not sent".into()));
        }
        let mut request = connected.with_token(ReceiverStream::new(outgoing));
        // A member that lost its leader says so instead of staying silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut client =
            WatchClient::new(connected.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
        let broken = |status: &Status| {
            self.give_up_on(&connected);
            End::Broken(meaning(status))
        };
        let mut answers = match tokio::time::timeout(self.within, client.watch(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return broken(&status),
            Err(_) => return broken(&Status::deadline_exceeded("no answer in time")),
        };
        let mut last_heard = Instant::now();
        let mut ask = tokio::time::interval(self.silence / 3);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let answer = tokio::select! {
                biased;
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => answer,
                    Ok(None) => return broken(&Status::unavailable("etcd ended the watch")),
                    Err(status) => return broken(&status),
                },
                // An etcd that has nothing to tell and one that hangs look the same until it is asked.
                _ = ask.tick() => {
                    if last_heard.elapsed() >= self.silence {
                        return broken(&Status::unavailable("the watch has stalled"));
                    }
                    // One that was not sent yet is as good.
                    let _ = requests.try_send(progress_request());
                    continue;
                }
            };
            backoff.reset();
            let header = header(answer.header.as_ref());
            if answer.compact_revision > 0 {
                return End::Reset("the past was compacted");
            }
            if unsigned(header.revision) < reader.position {
                return End::Reset("etcd's revision went back: a restored backup");
            }
            if answer.canceled {
                return broken(&Status::unavailable(answer.cancel_reason));
            }
            if answer.created {
                reader.cluster.get_or_insert(header.cluster_id);
                continue;
            }
            let mut last = None;
            for event in answer.events {
                let Some((event, witness)) = told(event) else { continue };
                last = Some(witness);
                if let Some(event) = event
                    && events.send(event).await.is_err()
                {
                    return End::ReaderGone;
                }
            }
            // A slow reader is not a silent etcd.
            last_heard = Instant::now();
            // A revision may come in several fragments; only after the last one nothing of it is missing.
            match last {
                Some(witness) if !answer.fragment => {
                    reader.position = witness.revision;
                    reader.witness = Some(witness);
                }
                // No events and no fragment: progress. What was asked for (it names no watch) is a sign of life alone: etcd before
                // 3.4.25 and 3.5.8 may answer it ahead of events that it has not sent yet.
                None if !answer.fragment && answer.watch_id >= 0 => {
                    reader.position = unsigned(header.revision);
                }
                _ => {}
            }
        }
    }

    /// Is this the etcd whose past the reader knows? Otherwise, why not.
    async fn is_the_same(&self, reader: &Reader) -> Result<Option<&'static str>, Error> {
        let request = match &reader.witness {
            Some(witness) => generated::RangeRequest {
                key: witness.key.clone().into(),
                revision: signed(witness.revision),
                ..generated::RangeRequest::default()
            },
            None => range_of(b"\0".to_vec(), Vec::new(), 1),
        };
        let answer = match self.range(request).await {
            Err(Error::Refused(why)) if is_compacted(&why) => {
                return Ok(Some("the past was compacted"));
            }
            Err(Error::Refused(why)) if why.contains("future revision") => {
                return Ok(Some("etcd's revision went back: a restored backup"));
            }
            answer => answer?,
        };
        let header = header(answer.header.as_ref());
        if reader.cluster.is_some_and(|cluster| cluster != header.cluster_id) {
            return Ok(Some("another etcd cluster answers"));
        }
        if unsigned(header.revision) < reader.position {
            return Ok(Some("etcd's revision went back: a restored backup"));
        }
        let Some(witness) = &reader.witness else { return Ok(None) };
        let found = answer.kvs.first().map(|found| unsigned(found.mod_revision));
        let same = if witness.present { found == Some(witness.revision) } else { found.is_none() };
        Ok((!same).then_some("etcd's past is not the one that was read: a restored backup"))
    }
}

/// Asks etcd for a sign of life.
fn progress_request() -> generated::WatchRequest {
    let request = RequestUnion::ProgressRequest(generated::WatchProgressRequest {});
    generated::WatchRequest { request_union: Some(request) }
}

/// Where a watch stands.
#[derive(Default)]
struct Reader {
    /// All up to this revision was told; 0 before the first reading.
    position: Revision,
    cluster: Option<u64>,
    witness: Option<Witness>,
}

/// The last change that was told: an etcd that does not remember it is not the one that told it.
struct Witness {
    key: String,
    revision: Revision,
    present: bool,
}

/// Why one connection's watch ended.
enum End {
    ReaderGone,
    Reset(&'static str),
    Broken(Error),
}

/// A change as it came; its event is missing when the value is not JSON and the previous one stays in force.
fn told(event: generated::KeyEvent) -> Option<(Option<Event>, Witness)> {
    let removed = event.r#type() == EventType::Delete;
    let entry = event.kv?;
    let key = String::from_utf8(entry.key.clone()).ok()?;
    let revision = unsigned(entry.mod_revision);
    let witness = Witness { key: key.clone(), revision, present: !removed };
    let event = if removed {
        Some(Event::Delete { key, revision })
    } else {
        stored_or_skipped(&entry).map(Event::Put)
    };
    Some((event, witness))
}
