//! Requests within a request: a plugin asks them in its caller's name, and they go the whole way as the caller's own would.

use std::any::Any;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::flow;
use super::judge::ConnectionStanding;
use super::switch::Wish;
use super::{BodyLength, Broken, Downstream, Piece, Side};
use crate::mtls::Proof;
use crate::pipeline::{
    Client, Exchange, Head, Inner, InnerAnswer, InnerAnswers, InnerRequest, Known, Within,
};
use crate::proxy::worker::Worker;
use crate::rt::Watchdog;

/// Where the plugins of one exchange ask further requests.
pub(super) struct InnerDoor {
    worker: Arc<Worker>,
    client: Arc<Client>,
    standing: ConnectionStanding,
    proof: Arc<Proof>,
    original: Head,
}

impl InnerDoor {
    /// For the caller of this exchange, whose head no plugin has changed yet.
    pub(super) fn new(
        worker: &Arc<Worker>,
        exchange: &Exchange,
        standing: &ConnectionStanding,
        proof: &Arc<Proof>,
    ) -> Self {
        Self {
            worker: worker.clone(),
            client: exchange.client.clone(),
            standing: standing.clone(),
            proof: proof.clone(),
            original: exchange.request.clone(),
        }
    }
}

impl Inner for InnerDoor {
    fn original(&self) -> &Head {
        &self.original
    }

    fn ask(&self, request: InnerRequest) -> InnerAnswers {
        let (sender, answer) = oneshot::channel();
        let run = self.run(request);
        // In a task of its own: should its asker stop waiting, it still ends as exchanges end, with all that hooks do then.
        self.worker.spawn(async move {
            let _ = sender.send(run.await);
        });
        Box::pin(async move { answer.await.ok().flatten() })
    }

    fn ask_aside(&self, request: InnerRequest, lasting: Arc<dyn Any + Send + Sync>) {
        let run = self.run(request);
        self.worker.spawn(async move {
            drop(run.await);
            drop(lasting);
        });
    }
}

impl InnerDoor {
    fn run(&self, request: InnerRequest) -> InnerAnswers {
        let (worker, client) = (self.worker.clone(), self.client.clone());
        let (mut standing, proof) = (self.standing.clone(), self.proof.clone());
        Box::pin(async move {
            let mut exchange = worker.lend_exchange(&client);
            let mut caller = InnerCaller::of(&request);
            exchange.request = request.head;
            exchange.request.remove_known(Known::ContentLength);
            exchange.request.remove_known(Known::TransferEncoding);
            exchange.within = Some(request.within);
            let mut watchdog = Watchdog::new();
            let after = flow::exchange(
                &worker,
                &mut exchange,
                &mut caller,
                &mut standing,
                &mut watchdog,
                &proof,
            );
            drop(Box::pin(after).await);
            worker.take_back(exchange);
            caller.answer()
        })
    }
}

/// The caller's side of such a request: its body is there already, and its answer is collected.
struct InnerCaller {
    request: Bytes,
    length: BodyLength,
    is_head: bool,
    /// Nobody reads the answer.
    discards: bool,
    most: usize,
    head: Option<Head>,
    body: BytesMut,
    sent: u64,
    is_whole: bool,
}

impl InnerCaller {
    fn of(request: &InnerRequest) -> Self {
        Self {
            request: request.body.clone(),
            length: match request.body.len() {
                0 => BodyLength::None,
                length => BodyLength::Known(length as u64),
            },
            is_head: request.head.method() == "HEAD",
            discards: request.within == Within::Refresh,
            most: request.most,
            head: None,
            body: BytesMut::new(),
            sent: 0,
            is_whole: false,
        }
    }

    fn answer(self) -> Option<InnerAnswer> {
        let head = self.head.filter(|_| self.is_whole)?;
        Some(InnerAnswer { head, body: self.body.freeze() })
    }
}

impl Side for InnerCaller {
    fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<Result<Piece<'_>, Broken>> {
        Poll::Ready(Ok(match self.request.is_empty() {
            true => Piece::End,
            false => Piece::Data(&self.request),
        }))
    }

    fn consume(&mut self, count: usize) {
        let _ = self.request.split_to(count);
    }

    fn poll_send(&mut self, _: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        self.sent += data.len() as u64;
        if !self.discards && !self.is_head {
            if self.body.len() + data.len() > self.most {
                let cause = "the answer is longer than its asker keeps".to_owned();
                return Poll::Ready(Err(Broken::Protocol(cause)));
            }
            self.body.extend_from_slice(data);
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(
        &mut self,
        _: &mut Context<'_>,
        _: Option<http::HeaderMap>,
    ) -> Poll<Result<(), Broken>> {
        self.is_whole = self.head.is_some();
        Poll::Ready(Ok(()))
    }
}

impl Downstream for InnerCaller {
    fn request_body(&self) -> BodyLength {
        self.length
    }

    fn wish(&self) -> Option<Wish<'_>> {
        None
    }

    fn start_response(&mut self, head: &Head, _: BodyLength) -> Result<(), Broken> {
        self.head = Some(head.clone());
        Ok(())
    }

    fn start_tunnel(&mut self, _: &Head) -> Result<(), Broken> {
        Err(Broken::Protocol("nothing is switched here".to_owned()))
    }

    fn interim(&mut self, _: &Head) {}

    fn invite_body(&mut self) {}

    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn is_last(&mut self) {}

    fn abort(&mut self) {
        (self.head, self.is_whole) = (None, false);
    }

    fn cut(&mut self) {}

    fn is_http2(&self) -> bool {
        false
    }

    fn counts(&self) -> (u64, u64) {
        (0, self.sent)
    }
}
