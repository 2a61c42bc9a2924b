//! One data plane's stream: its Hello, then deltas one way, and answers and counts the other.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::Notify;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::Shared;
use super::connection::VerifiedPeer;
use super::plane::Greeting;
use super::state::PlaneId;
use crate::model::{Id, Kind};
use crate::rt::DrainGuard;
use crate::sync::delta::{Version, Versions};
use crate::sync::generated::feed as wire;
use crate::sync::generated::feed::feed_server::Feed;
use crate::sync::generated::feed::from_data_plane::Message;
use crate::sync::scope::Role;

/// The most resources that a data plane may say it has.
const MAX_HELD: usize = 4 << 20;
/// The most labels of a data plane.
const MAX_LABELS: usize = 64;
/// How long a new stream may take to say Hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// The gRPC service.
pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
    pub(super) drain: DrainGuard,
}

#[tonic::async_trait]
impl Feed for Service {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<wire::Delta, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::FromDataPlane>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let spiffe_id =
            request.extensions().get::<VerifiedPeer>().map(|peer| peer.0.clone()).ok_or_else(
                || Status::unauthenticated("the connection has no verified identity"),
            )?;
        let mut inbound = request.into_inner();
        let hello = tokio::time::timeout(HELLO_WITHIN, hello(&mut inbound));
        let (greeting, has) =
            hello.await.map_err(|_| Status::deadline_exceeded("no Hello within 10 seconds"))??;
        let role = greeting.role;
        if !(self.shared.authorize)(&spiffe_id, role) {
            warn!(peer = %spiffe_id, %role, "a peer asked for a feed that it may not have");
            return Err(Status::permission_denied(format!(
                "{spiffe_id} may not be a data plane of role {role}"
            )));
        }
        info!(peer = %spiffe_id, %role, node = greeting.node, has = has.len(), "a data plane joined the feed");
        self.shared.catch_up(greeting.revision).await;
        let (plane, wake) = self.shared.enter(spiffe_id, greeting, has);
        let session = Session {
            shared: self.shared.clone(),
            drain: self.drain.clone(),
            plane,
            wake,
            inbound,
            parts: VecDeque::new(),
            is_over: false,
        };
        let deltas = stream::unfold(session, |mut session| async move {
            session.next().await.map(|delta| (delta, session))
        });
        Ok(Response::new(Box::pin(deltas)))
    }
}

async fn hello(
    inbound: &mut Streaming<wire::FromDataPlane>,
) -> Result<(Greeting, Versions), Status> {
    let expected = || Status::invalid_argument("the first message must be a Hello");
    let mut greeting = None;
    let mut has = Versions::default();
    loop {
        let message = inbound.message().await?.and_then(|message| message.message);
        let Some(Message::Hello(hello)) = message else { return Err(expected()) };
        for held in hello.have {
            // What this control plane cannot name it can neither send nor delete.
            let Some(kind) = Kind::named(&held.kind) else { continue };
            if has.len() + held.versions.len() > MAX_HELD {
                return Err(Status::resource_exhausted("more resources than any data plane has"));
            }
            has.extend(held.versions.into_iter().filter_map(|version| {
                let wire::HeldVersion { id, revision, fingerprint } = version;
                Some(((kind, Id::parse(&id).ok()?), Version { revision, fingerprint }))
            }));
        }
        if greeting.is_none() {
            let role = Role::named(&hello.role).ok_or_else(|| {
                Status::invalid_argument("role must be sidecar, ingress or issuer")
            })?;
            greeting = Some(Greeting {
                role,
                node: name("node", hello.node)?,
                version: name("version", hello.version)?,
                instance: name("instance", hello.instance)?,
                revision: hello.revision,
                labels: hello.labels.into_iter().take(MAX_LABELS).collect(),
            });
        }
        if let Some(greeting) = greeting.take_if(|_| !hello.more) {
            return Ok((greeting, has));
        }
    }
}

/// Names go into logs and onto the dashboard.
fn name(field: &str, text: String) -> Result<String, Status> {
    if text.len() <= 253 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(Status::invalid_argument(format!("{field} must be at most 253 visible ASCII letters")))
    }
}

/// One data plane's stream. Dropped when the data plane is gone.
struct Session {
    shared: Arc<Shared>,
    drain: DrainGuard,
    plane: PlaneId,
    wake: Arc<Notify>,
    inbound: Streaming<wire::FromDataPlane>,
    parts: VecDeque<wire::Delta>,
    is_over: bool,
}

impl Session {
    async fn next(&mut self) -> Option<Result<wire::Delta, Status>> {
        loop {
            if self.is_over {
                return None;
            }
            if let Some(part) = self.parts.pop_front() {
                return Some(Ok(part));
            }
            if self.is_replaced() {
                return self.end(Status::aborted("another stream of this process took over"));
            }
            if let Some(parts) = self.next_delta() {
                self.parts = parts;
                continue;
            }
            let message = tokio::select! {
                biased;
                () = self.drain.asked() => {
                    return self.end(Status::unavailable("the control plane is going away"));
                }
                message = self.inbound.message() => message,
                () = self.wake.notified() => continue,
            };
            match message.ok().flatten().map(|message| message.message) {
                Some(Some(Message::Ack(ack))) => {
                    let answered = self.shared.state.lock().answered(self.plane, ack);
                    self.shared.advance();
                    if let Err(status) = answered {
                        return self.end(status);
                    }
                }
                Some(Some(Message::Counts(counts))) => {
                    self.shared.state.lock().counted(self.plane, counts);
                }
                Some(_) => return self.end(Status::invalid_argument("expected an Ack")),
                None => return None,
            }
        }
    }

    fn is_replaced(&self) -> bool {
        self.shared.state.lock().planes.get(&self.plane).is_none_or(|plane| plane.is_replaced)
    }

    fn next_delta(&self) -> Option<VecDeque<wire::Delta>> {
        let delta = self.shared.state.lock().next_delta(self.plane);
        if delta.is_none() {
            // Perhaps what had changed has changed back: then nothing is waited for any more.
            self.shared.advance();
        }
        delta
    }

    #[expect(clippy::unnecessary_wraps, reason = "what next returns")]
    fn end(&mut self, status: Status) -> Option<Result<wire::Delta, Status>> {
        self.is_over = true;
        Some(Err(status))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.leave(self.plane);
    }
}
