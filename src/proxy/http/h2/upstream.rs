//! The upstream's side of one exchange over HTTP/2, and its connections.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use http::header::HeaderValue;
use http::{HeaderMap, Method, Request, Uri, Version};

use super::body::{Receiving, Sending, announce, fields, length_of};
use super::connection::{CONNECTION_WINDOW, MAX_FIELDS, Proved, SEND_BUFFER, STREAM_WINDOW, Turn};
use crate::mtls::Proof;
use crate::pipeline::Head;
use crate::proxy::http::h1::RequestLine;
use crate::proxy::http::origin::{Answer, MAX_INTERIM, early_end};
use crate::proxy::http::{BodyLength, Broken, Piece};
use crate::proxy::worker::Worker;
use crate::upstream;

/// The upstream's side of one exchange over HTTP/2.
pub(in crate::proxy) struct UpstreamHttp2 {
    send: SendRequest<Bytes>,
    response: Option<ResponseFuture>,
    sending: Option<Sending>,
    receiving: Option<Receiving>,
    secure: bool,
    interim: u8,
    /// The request asks for a switch, which is not answered yet.
    asks_to_switch: bool,
    /// Counts this stream on its connection.
    connection: Arc<()>,
}

/// A response's head as ours.
fn adopt(head: &mut Head, parts: &http::response::Parts) {
    head.clear();
    head.set_status(parts.status.as_u16());
    for (name, value) in &parts.headers {
        head.append(name.as_str(), value.as_bytes());
    }
}

impl UpstreamHttp2 {
    /// A stream to be opened on a shared connection that is ready for one.
    pub(in crate::proxy) fn new(
        send: SendRequest<Bytes>,
        connection: Arc<()>,
        secure: bool,
    ) -> Self {
        let (response, sending, receiving) = (None, None, None);
        Self {
            send,
            response,
            sending,
            receiving,
            secure,
            interim: 0,
            asks_to_switch: false,
            connection,
        }
    }

    pub(in crate::proxy) fn offers_extended_connect(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
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
        let malformed = |what: &str| Broken::Protocol(format!("{what} does not fit HTTP/2"));
        let scheme = if self.secure { "https" } else { "http" };
        let mut request = Request::new(());
        *request.version_mut() = Version::HTTP_2;
        *request.method_mut() =
            Method::from_bytes(line.method.as_bytes()).map_err(|_| malformed("the method"))?;
        *request.uri_mut() = Uri::builder()
            .scheme(scheme)
            .authority(line.host)
            .path_and_query(line.target)
            .build()
            .map_err(|_| malformed("the target"))?;
        fields(head, request.headers_mut());
        announce(request.headers_mut(), line.body);
        if line.te_trailers {
            request.headers_mut().insert(http::header::TE, HeaderValue::from_static("trailers"));
        }
        self.asks_to_switch = line.switch.is_some();
        if self.asks_to_switch {
            // RFC 8441 section 5: the stream is the handshake, and no key proves that it was understood.
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(Protocol::from_static("websocket"));
            request.headers_mut().remove(http::header::SEC_WEBSOCKET_KEY);
        }
        let ended = line.body == BodyLength::None && !self.asks_to_switch;
        let (response, stream) = self.send.send_request(request, ended)?;
        let left = match line.body {
            BodyLength::Known(length) => Some(length),
            BodyLength::None | BodyLength::Unknown => None,
        };
        self.sending = Some(Sending::new(stream, left, ended, Some(Vec::new())));
        self.response = Some(response);
        Ok(())
    }

    /// What was sent of the body, where all of it is still there.
    pub(in crate::proxy) fn hand_back(&mut self) -> Option<Bytes> {
        let kept = self.sending.as_mut()?.kept.take()?;
        Some(match &*kept {
            [only] => only.clone(),
            several => several.concat().into(),
        })
    }

    pub(in crate::proxy) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        _method: &str,
        head: &mut Head,
    ) -> Poll<Result<Answer, Broken>> {
        let Some(response) = &mut self.response else { return Poll::Ready(Err(early_end())) };
        if let Poll::Ready(Some(interim)) = response.poll_informational(context) {
            let (parts, ()) = interim?.into_parts();
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Poll::Ready(Err(Broken::Protocol("too many interim responses".into())));
            }
            adopt(head, &parts);
            return Poll::Ready(Ok(Answer::Interim));
        }
        let response = ready!(Pin::new(response).poll(context))?;
        self.response = None;
        if let Some(sending) = &mut self.sending {
            sending.kept = None;
        }
        let (parts, stream) = response.into_parts();
        adopt(head, &parts);
        let length = length_of(head, stream.is_end_stream());
        self.receiving = Some(Receiving::new(stream));
        if std::mem::take(&mut self.asks_to_switch) && (200..300).contains(&head.status()) {
            return Poll::Ready(Ok(Answer::Switched));
        }
        Poll::Ready(Ok(Answer::Final(length)))
    }

    pub(in crate::proxy) fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Piece<'_>, Broken>> {
        match &mut self.receiving {
            Some(receiving) => receiving.poll_data(context),
            None => Poll::Ready(Ok(Piece::End)),
        }
    }

    pub(in crate::proxy) fn consume(&mut self, count: usize) {
        if let Some(receiving) = &mut self.receiving {
            receiving.consume(count);
        }
    }

    pub(in crate::proxy) fn trailers(&mut self) -> Option<HeaderMap> {
        self.receiving.as_mut()?.trailers.take()
    }

    pub(in crate::proxy) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, Broken>> {
        match &mut self.sending {
            Some(sending) => sending.poll_send(context, data),
            None => Poll::Ready(Err(Broken::Protocol("no request was begun".into()))),
        }
    }

    /// The connection's own task writes.
    pub(in crate::proxy) fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(self.sending.as_mut().map_or(Ok(()), Sending::flush))
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
        Poll::Ready(self.sending.as_mut().map_or(Ok(()), |sending| sending.finish(trailers)))
    }
}

impl Drop for UpstreamHttp2 {
    fn drop(&mut self) {
        // An exchange that ends early tells the upstream so; a stream that is over ignores it.
        if let Some(sending) = &mut self.sending
            && !(sending.is_over
                && self.receiving.as_ref().is_some_and(|r| r.stream.is_end_stream()))
        {
            sending.stream.send_reset(Reason::CANCEL);
        }
    }
}

/// Begins HTTP/2 on a new connection to an upstream; the connection's task runs on this worker. With a time limit in `settled`
/// it waits until the peer's settings are known.
pub(in crate::proxy) async fn originate(
    worker: &Arc<Worker>,
    stream: upstream::Stream,
    proof: Option<Arc<Proof>>,
    settled: Option<Duration>,
) -> Result<SendRequest<Bytes>, Broken> {
    let (send, mut connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_FIELDS)
        .max_send_buffer_size(SEND_BUFFER)
        // Until the peer says how many it takes: a burst on a new connection must not run into its limits.
        .initial_max_send_streams(100)
        .enable_push(false)
        .handshake(Proved::new(stream, proof.clone()))
        .await?;
    let ping = settled.and_then(|_| connection.ping_pong());
    worker.spawn(async move {
        let mut connection = pin!(connection);
        let mut turn = Turn::default();
        if let Some(proof) = &proof {
            proof.attended().await;
        }
        let is_cut = || proof.as_ref().is_some_and(|proof| proof.is_cut());
        let _ = poll_fn(|context| {
            if is_cut() {
                return Poll::Ready(Ok(()));
            }
            ready!(turn.poll(context));
            connection.as_mut().poll(context)
        })
        .await;
    });
    if let (Some(mut ping), Some(within)) = (ping, settled) {
        // The settings are the first that a peer sends (RFC 9113 section 3.4), so they come before it answers anything.
        let answered = tokio::time::timeout(within, ping.ping(h2::Ping::opaque())).await;
        answered.map_err(|_| early_end())??;
    }
    Ok(send)
}
