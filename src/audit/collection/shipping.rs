//! The data plane's end of the shipping: a destination for the log's records, and the countersignatures that come back.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use super::collector::Collector;
use super::intake::Origin;
use crate::audit::destination::{Destination, Line, Undelivered};
use crate::audit::generated::records as wire;
use crate::audit::generated::records::answer::Answer as Kind;
use crate::audit::generated::records::from_data_plane::Message;
use crate::audit::generated::records::records_client::RecordsClient;
use crate::observe::{AuditLane, Countersignature, CountersignedRecord};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::{Tasks, causes};

/// How long a connection may take to be established, handshake included.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How often a silent control plane is pinged; one that does not answer within the same time again is left.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long an answer may take: it waits for the control plane's disk.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The shortest time between two countersignatures that our own log notes: the newest stands for all before it.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// How often the signer's certificates stand beside its signature.
const SHOW_EVERY: Duration = Duration::from_secs(3600);

/// Makes connections to the control plane. It answers for the control plane being the right one: mTLS with its SPIFFE ID.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// The established connection, TLS taken off.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// One more connection.
    ///
    /// # Errors
    /// Nobody answers, or the handshake fails.
    async fn dial(&self) -> io::Result<Self::Stream>;
}

/// Ships records to the control plane.
pub struct Shipping<D> {
    dial: Arc<D>,
    node: String,
    open: Option<Open>,
    countersigned: watch::Sender<Option<Countersignature>>,
    _tasks: Tasks,
}

/// An open stream.
struct Open {
    batches: mpsc::Sender<wire::FromDataPlane>,
    answers: Streaming<wire::Answer>,
}

impl<D: Dial> Shipping<D> {
    /// To the control plane that `dial` reaches, as this node. What it countersigns is noted in `lane`'s log.
    pub fn new(dial: D, node: impl Into<String>, lane: AuditLane) -> Self {
        let (countersigned, newest) = watch::channel(None);
        let mut tasks = Tasks::new();
        tasks.add(note(newest, lane));
        Self { dial: Arc::new(dial), node: node.into(), open: None, countersigned, _tasks: tasks }
    }

    async fn connect(&self) -> Result<Open, String> {
        let dial = self.dial.clone();
        let connector = tower::service_fn(move |_| {
            let dial = dial.clone();
            async move { dial.dial().await.map(TokioIo::new) }
        });
        // The address is the connector's business; HTTP/2 wants a name all the same.
        let endpoint = Endpoint::from_static("http://control-plane.invalid")
            .connect_timeout(CONNECT_WITHIN)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let opening = async {
            let channel = endpoint.connect_with_connector(connector).await;
            let channel = channel.map_err(|error| causes(&error))?;
            // One batch is under way at a time.
            let (batches, queue) = mpsc::channel(2);
            let hello =
                wire::Hello { node: self.node.clone(), version: env!("CARGO_PKG_VERSION").into() };
            let hello = wire::FromDataPlane { message: Some(Message::Hello(hello)) };
            batches.send(hello).await.map_err(|error| error.to_string())?;
            let answers = RecordsClient::new(channel)
                .max_encoding_message_size(usize::MAX)
                .ship(ReceiverStream::new(queue))
                .await
                .map_err(|status| causes(&status))?;
            Ok(Open { batches, answers: answers.into_inner() })
        };
        let within = tokio::time::timeout(CONNECT_WITHIN, opening);
        within.await.unwrap_or_else(|_| {
            Err(format!("no connection within {} seconds", CONNECT_WITHIN.as_secs()))
        })
    }

    async fn exchange(&mut self, lines: Vec<Bytes>) -> Result<Kind, String> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect().await?,
        };
        let batch = wire::FromDataPlane { message: Some(Message::Batch(wire::Batch { lines })) };
        let sent = open.batches.send(batch).await;
        sent.map_err(|_| "the control plane ended the stream".to_owned())?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, open.answers.message()).await;
        let answer = answer.map_err(|_| "the control plane does not answer".to_owned())?;
        let answer = answer.map_err(|status| causes(&status))?;
        let answer = answer.and_then(|answer| answer.answer);
        let answer = answer.ok_or("the control plane ended the stream")?;
        self.open = Some(open);
        Ok(answer)
    }
}

#[async_trait]
impl<D: Dial> Destination for Shipping<D> {
    fn name(&self) -> &str {
        "control-plane"
    }

    async fn deliver(&mut self, records: &[Line]) -> Result<(), Undelivered> {
        if records.is_empty() {
            return Ok(());
        }
        let lines: Vec<Bytes> =
            records.iter().map(|line| Bytes::copy_from_slice(line.text.as_bytes())).collect();
        match self.exchange(lines).await.map_err(Undelivered::Later)? {
            Kind::Stored(stored) => {
                if let Some(made) = stored.countersignature.and_then(from_wire) {
                    self.countersigned.send_replace(Some(made));
                }
                Ok(())
            }
            Kind::Refused(wire::Refused { index, why }) => {
                let record = usize::try_from(index).ok().and_then(|index| records.get(index));
                match record {
                    Some(record) => Err(Undelivered::Never { seq: record.seq, why }),
                    None => Err(Undelivered::Later("the control plane's answer is none".into())),
                }
            }
        }
    }
}

fn from_wire(made: wire::Countersignature) -> Option<Countersignature> {
    let leaf = made.certificates.first()?;
    Some(Countersignature {
        certificate_sha256: hex::encode(digest(&SHA256, leaf)),
        certificates: made.certificates.iter().map(|der| BASE64.encode(der)).collect(),
        signature: BASE64.encode(&made.signature),
        origin: made.origin,
        boot_id: made.boot_id,
        seq: made.seq,
        hash: made.hash,
        time: made.time,
        spiffe_id: made.spiffe_id,
        scheme: made.scheme,
    })
}

/// Notes the newest countersignature in our own log, not more often than is useful.
async fn note(mut newest: watch::Receiver<Option<Countersignature>>, lane: AuditLane) {
    let mut shown: Option<(String, Instant)> = None;
    while newest.changed().await.is_ok() {
        let made = newest.borrow_and_update().clone();
        let Some(made) = made else { continue };
        if let Err(why) = made.check(None) {
            tracing::error!(
                seq = made.seq,
                "the control plane's countersignature does not hold: {why}"
            );
            continue;
        }
        let is_shown = shown.as_ref().is_some_and(|(sha256, at)| {
            *sha256 == made.certificate_sha256 && at.elapsed() < SHOW_EVERY
        });
        let record = CountersignedRecord { countersignature: &made, with_certificates: !is_shown };
        if lane.countersigned(&record).is_ok() && !is_shown {
            shown = Some((made.certificate_sha256.clone(), Instant::now()));
        }
        tokio::time::sleep(NOTE_EVERY).await;
    }
}

/// Hands the control plane's own log to its archive.
#[derive(Debug)]
pub struct OwnLog {
    collector: Collector,
    origin: Origin,
}

impl OwnLog {
    /// As this origin.
    pub fn new(collector: Collector, origin: Origin) -> Self {
        Self { collector, origin }
    }
}

#[async_trait]
impl Destination for OwnLog {
    fn name(&self) -> &str {
        "archive"
    }

    async fn deliver(&mut self, records: &[Line]) -> Result<(), Undelivered> {
        let lines: Vec<Bytes> =
            records.iter().map(|line| Bytes::copy_from_slice(line.text.as_bytes())).collect();
        let taken = self.collector.take(self.origin.clone(), lines).await;
        let taken = taken.map_err(|error| Undelivered::Later(causes(&error)))?;
        match (taken.refused, records.get(taken.stored)) {
            (Some(why), Some(record)) => Err(Undelivered::Never { seq: record.seq, why }),
            _ => Ok(()),
        }
    }
}
