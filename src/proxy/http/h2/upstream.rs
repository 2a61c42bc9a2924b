//! The upstream's side of one exchange over HTTP/2, and its connections.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use super::connection::{Proved, settings};
use super::message::{Body, length_of, write_fields};
use crate::mtls::Proof;
use crate::pipeline::Head;
use crate::proxy::http::h1::RequestLine;
use crate::proxy::http::origin::{Answer, MAX_INTERIM, early_end};
use crate::proxy::http::{BodyLength, Broken, Piece};
use crate::proxy::worker::Worker;
use crate::rt::http2::{Connection, Fields, Opener};
use crate::upstream;

/// Bytes of a request's body that are kept until the answer begins: the stream may be refused untouched.
const KEPT: usize = 64 * 1024;

/// The upstream's side of one exchange over HTTP/2.
pub(in crate::proxy) struct UpstreamHttp2 {
    opener: Opener,
    body: Option<Body>,
    /// What was sent of the body, as long as it may have to be sent again.
    kept: Option<Vec<u8>>,
    has_head: bool,
    secure: bool,
    interim: u8,
    /// The request asks for a switch, which is not answered yet.
    asks_to_switch: bool,
    /// Counts this stream on its connection.
    connection: Arc<()>,
}

/// A response's head as ours.
fn adopt(head: &mut Head, fields: &Fields) {
    let status =
        fields.get(b":status").and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    let raw = fields.raw();
    head.adopt_status(raw, status.unwrap_or(0));
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(b":")) {
        head.adopt_field(raw, name, value);
    }
}

impl UpstreamHttp2 {
    /// A stream to be opened on a shared connection.
    pub(in crate::proxy) fn new(opener: Opener, connection: Arc<()>, secure: bool) -> Self {
        Self {
            opener,
            body: None,
            kept: None,
            has_head: false,
            secure,
            interim: 0,
            asks_to_switch: false,
            connection,
        }
    }

    pub(in crate::proxy) fn offers_extended_connect(&self) -> bool {
        self.opener.offers_extended_connect()
    }

    /// Is it a stream of that connection?
    pub(in crate::proxy) fn is_on(&self, connection: &Arc<()>) -> bool {
        Arc::ptr_eq(&self.connection, connection)
    }

    pub(in crate::proxy) fn send(
        &mut self,
        line: &RequestLine<'_>,
        head: &Head,
    ) -> Result<(), Broken> {
        let scheme: &[u8] = if self.secure { b"https" } else { b"http" };
        self.asks_to_switch = line.switch.is_some();
        let asks_to_switch = self.asks_to_switch;
        let is_ended = line.body == BodyLength::None && !asks_to_switch;
        let stream = self.opener.open(line.method == "HEAD", is_ended, &mut |block| {
            // RFC 8441 section 5: the stream is the handshake, and no key proves that it was understood.
            let method = if asks_to_switch { "CONNECT" } else { line.method };
            block.field(b":method", method.as_bytes());
            block.field(b":scheme", scheme);
            block.field(b":authority", line.host.as_bytes());
            block.field(b":path", line.target.as_bytes());
            if asks_to_switch {
                block.field(b":protocol", b"websocket");
                block.leave_out(b"sec-websocket-key");
            }
            write_fields(block, head, line.body);
            if line.te_trailers {
                block.field(b"te", b"trailers");
            }
        })?;
        let mut body = Body::of(stream);
        body.announce(match line.body {
            BodyLength::Known(length) => Some(length),
            BodyLength::None | BodyLength::Unknown => None,
        });
        self.body = Some(body);
        self.kept = Some(Vec::new());
        Ok(())
    }

    /// What was sent of the body, where all of it is still there.
    pub(in crate::proxy) fn hand_back(&mut self) -> Option<Bytes> {
        self.kept.take().map(Bytes::from)
    }

    pub(in crate::proxy) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        _method: &str,
        head: &mut Head,
    ) -> Poll<Result<Answer, Broken>> {
        let Some(body) = self.body.as_mut().filter(|_| !self.has_head) else {
            return Poll::Ready(Err(early_end()));
        };
        let fields = ready!(body.stream.poll_head(context))?;
        adopt(head, &fields);
        body.stream.recycle(fields);
        if head.status() < 200 {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Poll::Ready(Err(Broken::Protocol("too many interim responses".into())));
            }
            return Poll::Ready(Ok(Answer::Interim));
        }
        self.has_head = true;
        self.kept = None;
        if std::mem::take(&mut self.asks_to_switch) && (200..300).contains(&head.status()) {
            return Poll::Ready(Ok(Answer::Switched));
        }
        Poll::Ready(Ok(Answer::Final(length_of(head, body.stream.is_received()))))
    }

    pub(in crate::proxy) fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Piece<'_>, Broken>> {
        match &mut self.body {
            Some(body) => body.poll_data(context),
            None => Poll::Ready(Ok(Piece::End)),
        }
    }

    pub(in crate::proxy) fn consume(&mut self, count: usize) {
        if let Some(body) = &mut self.body {
            body.stream.consume(count);
        }
    }

    pub(in crate::proxy) fn trailers(&mut self) -> Option<HeaderMap> {
        self.body.as_mut()?.trailers()
    }

    pub(in crate::proxy) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, Broken>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(Err(Broken::Protocol("no request was begun".into())));
        };
        let count = ready!(body.poll_send(context, data))?;
        match &mut self.kept {
            Some(kept) if kept.len() + count <= KEPT => kept.extend_from_slice(&data[..count]),
            _ => self.kept = None,
        }
        Poll::Ready(Ok(count))
    }

    /// The connection's own task writes.
    pub(in crate::proxy) fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    pub(in crate::proxy) fn poll_finish(
        &mut self,
        _: &mut Context<'_>,
        trailers: Option<HeaderMap>,
    ) -> Poll<Result<(), Broken>> {
        if self.asks_to_switch {
            // What may follow is no body.
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(self.body.as_mut().map_or(Ok(()), |body| body.finish(trailers)))
    }
}

/// Begins HTTP/2 on a new connection to an upstream; the connection's task runs on this worker. With a time limit in `settled`
/// it waits until the peer's settings are known.
pub(in crate::proxy) async fn originate(
    worker: &Arc<Worker>,
    stream: upstream::Stream,
    proof: Option<Arc<Proof>>,
    settled: Option<Duration>,
) -> Result<Opener, Broken> {
    let (opener, mut connection) = Connection::client(settings(worker.limits.response_head, 0));
    worker.spawn(async move {
        let mut stream = Proved::new(stream, proof.clone());
        if let Some(proof) = &proof {
            proof.attended().await;
        }
        let is_cut = || proof.as_ref().is_some_and(|proof| proof.is_cut());
        poll_fn(|context| {
            if is_cut() {
                return Poll::Ready(());
            }
            connection.poll(&mut stream, context).map(drop)
        })
        .await;
    });
    if let Some(within) = settled {
        tokio::time::timeout(within, opener.settled()).await.map_err(|_| early_end())??;
    }
    Ok(opener)
}
