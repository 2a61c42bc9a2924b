//! The control plane's end of the shipping: a gRPC service beside the feed.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{Stream, stream};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::collector::Collector;
use super::intake::{Origin, Taken};
use crate::audit::generated::records as wire;
use crate::audit::generated::records::answer::Answer as Kind;
use crate::audit::generated::records::from_data_plane::Message;
use crate::audit::generated::records::records_server::{Records, RecordsServer};
use crate::observe::Countersignature;
use crate::rt::DrainGuard;

/// The longest message that a data plane may send: one batch.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The most lines of a batch.
const MAX_LINES: usize = 16_384;
/// How long a new stream may take to say Hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// A node's name is at most this long.
const MAX_NODE: usize = 253;

/// Who is at the other end of the connection: the SPIFFE ID that the handshake verified. Whoever serves the connection puts it
/// into a request's extensions.
#[derive(Clone, Debug)]
pub struct ShippedBy(pub Arc<str>);

/// May a peer of this SPIFFE ID hand over records?
pub type MayShip = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The service, for a gRPC server that knows its peers ([`ShippedBy`]).
pub fn records_service(
    collector: Collector,
    may_ship: MayShip,
    drain: DrainGuard,
) -> RecordsServer<impl Records> {
    RecordsServer::new(Service { collector, may_ship, drain })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
}

struct Service {
    collector: Collector,
    may_ship: MayShip,
    drain: DrainGuard,
}

type Answers = Pin<Box<dyn Stream<Item = Result<wire::Answer, Status>> + Send>>;

#[tonic::async_trait]
impl Records for Service {
    type ShipStream = Answers;

    async fn ship(
        &self,
        request: Request<Streaming<wire::FromDataPlane>>,
    ) -> Result<Response<Answers>, Status> {
        let peer = request.extensions().get::<ShippedBy>().map(|peer| peer.0.clone());
        let peer =
            peer.ok_or_else(|| Status::unauthenticated("the connection has no verified identity"))?;
        if !(self.may_ship)(&peer) {
            warn!(%peer, "a peer wanted to hand over records that it may not");
            return Err(Status::permission_denied(format!("{peer} may not hand over records")));
        }
        let mut inbound = request.into_inner();
        let hello = tokio::time::timeout(HELLO_WITHIN, inbound.message());
        let hello = hello.await.map_err(|_| Status::deadline_exceeded("no Hello in 10 seconds"))?;
        let Some(Message::Hello(hello)) = hello?.and_then(|message| message.message) else {
            return Err(Status::invalid_argument("the first message must be a Hello"));
        };
        let fits = |char: char| char.is_ascii_graphic();
        if hello.node.len() > MAX_NODE || hello.node.is_empty() || !hello.node.chars().all(fits) {
            return Err(Status::invalid_argument(
                "node: expected 1 to 253 visible ASCII characters",
            ));
        }
        info!(%peer, node = hello.node, "a data plane hands over its decision log");
        let session = Session {
            collector: self.collector.clone(),
            origin: Origin { spiffe_id: peer.to_string(), node: hello.node },
            inbound,
            drain: self.drain.clone(),
        };
        let answers = stream::unfold(Some(session), |session| async move {
            let mut session = session?;
            match session.next().await {
                Ok(Some(answer)) => Some((Ok(answer), Some(session))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// One data plane at work.
struct Session {
    collector: Collector,
    origin: Origin,
    inbound: Streaming<wire::FromDataPlane>,
    drain: DrainGuard,
}

impl Session {
    /// The answer to the next batch; none when it is over.
    async fn next(&mut self) -> Result<Option<wire::Answer>, Status> {
        let message = tokio::select! {
            () = self.drain.asked() => return Ok(None),
            message = self.inbound.message() => message?,
        };
        let Some(message) = message else { return Ok(None) };
        let Some(Message::Batch(batch)) = message.message else {
            return Err(Status::invalid_argument("expected a batch"));
        };
        if batch.lines.len() > MAX_LINES {
            return Err(Status::resource_exhausted(format!("more than {MAX_LINES} lines at once")));
        }
        let taken = self.collector.take(self.origin.clone(), batch.lines).await;
        let taken = taken.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Some(answer(taken)))
    }
}

fn answer(taken: Taken) -> wire::Answer {
    let Taken { stored, refused, countersignature } = taken;
    let kind = match refused {
        Some(why) => {
            let index = u32::try_from(stored).unwrap_or(u32::MAX);
            Kind::Refused(wire::Refused { index, why })
        }
        None => Kind::Stored(wire::Stored {
            lines: u32::try_from(stored).unwrap_or(u32::MAX),
            countersignature: countersignature.map(to_wire),
        }),
    };
    wire::Answer { answer: Some(kind) }
}

fn to_wire(made: Countersignature) -> wire::Countersignature {
    let bytes = |text: &String| BASE64.decode(text).unwrap_or_default().into();
    wire::Countersignature {
        certificates: made.certificates.iter().map(bytes).collect(),
        signature: bytes(&made.signature),
        origin: made.origin,
        boot_id: made.boot_id,
        seq: made.seq,
        hash: made.hash,
        time: made.time,
        spiffe_id: made.spiffe_id,
        scheme: made.scheme,
    }
}
