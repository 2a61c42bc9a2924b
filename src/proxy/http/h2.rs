//! HTTP/2: the `h2` crate driven directly. Both sides of an exchange, and serving a client's connection.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::bounds;
use super::flow;
use super::h1::{HeadLimits, RequestLine};
use super::origin::{Answer, MAX_INTERIM, early_end};
use super::{BodyLength, Broken, Downstream, Piece, Side};
use crate::mtls::Proof;
use crate::pipeline::{Client, Exchange, Head, Known};
use crate::proxy::connection::Served;
use crate::proxy::worker::Worker;
use crate::rt::Watchdog;
use crate::upstream;

/// Bytes of a body that may be on their way on one stream, and on one connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes that are queued for a peer that does not take them.
const SEND_BUFFER: usize = 128 * 1024;

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        // RFC 9113 sections 6.8 and 8.7: a goodbye fails only the streams that were not looked at.
        let refused = error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM);
        if error.is_remote() && refused {
            return Self::Refused;
        }
        Self::Protocol(error.to_string())
    }
}

/// A body that comes over a stream.
struct Receiving {
    stream: RecvStream,
    piece: Bytes,
    trailers: Option<HeaderMap>,
    in_trailers: bool,
}

impl Receiving {
    fn new(stream: RecvStream) -> Self {
        Self { stream, piece: Bytes::new(), trailers: None, in_trailers: false }
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Piece<'_>, Broken>> {
        while self.piece.is_empty() {
            if self.in_trailers {
                self.trailers = ready!(self.stream.poll_trailers(context))?;
                return Poll::Ready(Ok(Piece::End));
            }
            match ready!(self.stream.poll_data(context)) {
                Some(piece) => self.piece = piece?,
                None => self.in_trailers = true,
            }
        }
        Poll::Ready(Ok(Piece::Data(&self.piece)))
    }

    fn consume(&mut self, count: usize) {
        self.piece.advance(count);
        // Only what was passed on makes room for more: that is the back pressure.
        let _ = self.stream.flow_control().release_capacity(count);
    }
}

/// A body that goes over a stream.
struct Sending {
    stream: SendStream<Bytes>,
    /// Bytes that are still to come, where that was announced.
    left: Option<u64>,
    is_over: bool,
    /// What was sent, as long as it may have to be sent again.
    kept: Option<Vec<Bytes>>,
}

/// Bytes of a request's body that are kept until the answer begins: the stream may be refused untouched.
const KEPT: usize = 64 * 1024;

impl Sending {
    fn poll_send(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        if self.left.is_some_and(|left| left < data.len() as u64) {
            return Poll::Ready(Err(Broken::Protocol("the body is longer than announced".into())));
        }
        if self.stream.capacity() == 0 {
            self.stream.reserve_capacity(data.len());
            loop {
                match ready!(self.stream.poll_capacity(context)) {
                    Some(Ok(0)) => {}
                    Some(Ok(_)) => break,
                    Some(Err(error)) => return Poll::Ready(Err(error.into())),
                    None => {
                        return Poll::Ready(Err(Broken::Protocol("the stream is closed".into())));
                    }
                }
            }
        }
        let count = self.stream.capacity().min(data.len());
        if let Some(left) = &mut self.left {
            *left -= count as u64;
            self.is_over = *left == 0;
        }
        let piece = Bytes::copy_from_slice(&data[..count]);
        if let Some(kept) = &mut self.kept {
            if kept.iter().map(Bytes::len).sum::<usize>() + count <= KEPT && kept.len() < 64 {
                kept.push(piece.clone());
            } else {
                self.kept = None;
            }
        }
        self.stream.send_data(piece, self.is_over)?;
        Poll::Ready(Ok(count))
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        if self.is_over {
            return Ok(());
        }
        if self.left.is_some_and(|left| left > 0) {
            return Err(Broken::Protocol("the body is shorter than announced".into()));
        }
        self.is_over = true;
        match trailers.filter(|trailers| !trailers.is_empty()) {
            Some(trailers) => self.stream.send_trailers(lawful_trailers(trailers))?,
            None => self.stream.send_data(Bytes::new(), true)?,
        }
        Ok(())
    }
}

/// Trailers without the fields that must not come late (RFC 9110 section 6.5.1) or would claim an identity.
fn lawful_trailers(mut trailers: HeaderMap) -> HeaderMap {
    let unlawful: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            let known = Known::of(name.as_str().as_bytes());
            known.is_hop_by_hop()
                || known.is_identity()
                || matches!(known, Known::Host | Known::ContentLength)
                || *name == http::header::AUTHORIZATION
                || *name == http::header::SET_COOKIE
        })
        .cloned()
        .collect();
    for name in unlawful {
        trailers.remove(name);
    }
    trailers
}

/// Fields of a head for a message of HTTP/2: lower case, no field of HTTP/1.1's framing.
fn fields(head: &Head, map: &mut HeaderMap) {
    for field in head.fields() {
        if field.known.is_hop_by_hop() || field.known == Known::ContentLength {
            continue;
        }
        // Names and values were checked when they came in; what a plugin made up and no wire may carry is left out.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value))
        {
            map.append(name, value);
        }
    }
}

fn announce(map: &mut HeaderMap, body: BodyLength) {
    if let BodyLength::Known(length) = body {
        map.insert(http::header::CONTENT_LENGTH, length.into());
    }
}

fn length_of(head: &Head, ended: bool) -> BodyLength {
    let announced = head.known(Known::ContentLength);
    match announced.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()) {
        _ if ended => BodyLength::None,
        Some(length) => BodyLength::Known(length),
        None => BodyLength::Unknown,
    }
}

/// The upstream's side of one exchange over HTTP/2.
pub(in crate::proxy) struct UpstreamHttp2 {
    send: SendRequest<Bytes>,
    response: Option<ResponseFuture>,
    sending: Option<Sending>,
    receiving: Option<Receiving>,
    te_trailers: bool,
    secure: bool,
    interim: u8,
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
        te_trailers: bool,
        secure: bool,
    ) -> Self {
        let (response, sending, receiving) = (None, None, None);
        Self { send, response, sending, receiving, te_trailers, secure, interim: 0, connection }
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
        if self.te_trailers {
            request.headers_mut().insert(http::header::TE, HeaderValue::from_static("trailers"));
        }
        let ended = line.body == BodyLength::None;
        let (response, stream) = self.send.send_request(request, ended)?;
        let left = match line.body {
            BodyLength::Known(length) => Some(length),
            BodyLength::None | BodyLength::Unknown => None,
        };
        self.sending = Some(Sending { stream, left, is_over: ended, kept: Some(Vec::new()) });
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

    /// The connection's own task writes; nothing to do here.
    pub(in crate::proxy) fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    pub(in crate::proxy) fn poll_finish(
        &mut self,
        _: &mut Context<'_>,
        trailers: Option<HeaderMap>,
    ) -> Poll<Result<(), Broken>> {
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

/// Bytes of a head's decoded fields, with 32 more for each, as the setting of that name counts them.
fn list_size(limits: HeadLimits) -> u32 {
    u32::try_from(limits.bytes).unwrap_or(u32::MAX)
}

/// Begins HTTP/2 on a new connection to an upstream; the connection's task runs on this worker.
pub(in crate::proxy) async fn originate(
    worker: &Arc<Worker>,
    stream: upstream::Stream,
    proof: Option<Arc<Proof>>,
) -> Result<SendRequest<Bytes>, Broken> {
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(list_size(worker.limits.response_head))
        .max_send_buffer_size(SEND_BUFFER)
        // Until the peer says how many it takes: a burst on a new connection must not run into its limits.
        .initial_max_send_streams(100)
        .enable_push(false)
        .handshake(Proved::new(stream, proof.clone()))
        .await?;
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
    Ok(send)
}

/// Puts a connection's turn behind the tasks that are ready now, so that what they send goes out in one write.
#[derive(Default)]
struct Turn {
    yielded: bool,
}

impl Turn {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.yielded = !self.yielded;
        if self.yielded {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// The caller's side of one exchange over HTTP/2.
struct Caller {
    receiving: Receiving,
    respond: SendResponse<Bytes>,
    sending: Option<Sending>,
    length: BodyLength,
    is_head: bool,
    received: u64,
    sent: u64,
}

impl Side for Caller {
    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Piece<'_>, Broken>> {
        self.receiving.poll_data(context)
    }

    fn consume(&mut self, count: usize) {
        self.received += count as u64;
        self.receiving.consume(count);
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.receiving.trailers.take()
    }

    fn poll_send(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        let Some(sending) = &mut self.sending else {
            return Poll::Ready(Err(Broken::Protocol("no response was begun".into())));
        };
        if self.is_head {
            return Poll::Ready(Ok(data.len()));
        }
        let count = ready!(sending.poll_send(context, data))?;
        self.sent += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(
        &mut self,
        _: &mut Context<'_>,
        trailers: Option<HeaderMap>,
    ) -> Poll<Result<(), Broken>> {
        Poll::Ready(self.sending.as_mut().map_or(Ok(()), |sending| sending.finish(trailers)))
    }
}

impl Downstream for Caller {
    fn request_body(&self) -> BodyLength {
        self.length
    }

    fn start_response(&mut self, head: &Head, body: BodyLength) -> Result<(), Broken> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(head.status())
            .map_err(|_| Broken::Protocol("the status does not fit HTTP/2".into()))?;
        fields(head, response.headers_mut());
        let bodiless = self.is_head || head.status() == 304;
        if bodiless && body == BodyLength::None {
            if let Some(Ok(length)) = head.known(Known::ContentLength).map(HeaderValue::from_bytes)
            {
                response.headers_mut().insert(http::header::CONTENT_LENGTH, length);
            }
        } else {
            announce(response.headers_mut(), body);
        }
        let ended = bodiless || matches!(body, BodyLength::None | BodyLength::Known(0));
        let stream = self.respond.send_response(response, ended)?;
        let left = match body {
            BodyLength::Known(length) if !ended => Some(length),
            _ => None,
        };
        self.sending = Some(Sending { stream, left, is_over: ended, kept: None });
        Ok(())
    }

    fn interim(&mut self, head: &Head) {
        if let Ok(status) = StatusCode::from_u16(head.status()) {
            let mut response = Response::new(());
            *response.status_mut() = status;
            fields(head, response.headers_mut());
            let _ = self.respond.send_informational(response);
        }
    }

    /// A stream is one exchange, and its end is told with it.
    fn is_last(&mut self) {}

    /// `Expect` is answered by HTTP/2 callers' own flow control: they send when they like.
    fn invite_body(&mut self) {}

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.sending {
            Some(sending) => sending.stream.poll_reset(context).map(|_| ()),
            None => self.respond.poll_reset(context).map(|_| ()),
        }
    }

    fn abort(&mut self) {
        match &mut self.sending {
            Some(sending) => sending.stream.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn is_http2(&self) -> bool {
        true
    }

    fn counts(&self) -> (u64, u64) {
        (self.received, self.sent)
    }
}

/// Why a request of HTTP/2 is malformed (RFC 9113 section 8.1.1): its stream is reset.
fn read_request(parts: &http::request::Parts, head: &mut Head) -> Result<(), &'static str> {
    let uri = &parts.uri;
    head.clear();
    if parts.method == Method::CONNECT {
        return Err("CONNECT is not served here");
    }
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    let is_asterisk = target == "*" && parts.method == Method::OPTIONS;
    if !target.starts_with('/') && !is_asterisk {
        return Err(":path does not start with a slash");
    }
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(":scheme is neither http nor https");
    }
    super::h1::check_target(target.as_bytes()).map_err(|refused| refused.sentence)?;
    head.set_method(parts.method.as_str());
    head.set_target(target);
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err("more than one host");
    }
    let authority = match (uri.authority(), host) {
        (None, None) => return Err("neither :authority nor host"),
        (Some(authority), Some(host))
            if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) =>
        {
            return Err(":authority and host differ");
        }
        (Some(authority), _) => authority.as_str().as_bytes(),
        (None, Some(host)) => host.as_bytes(),
    };
    super::h1::check_host(authority).map_err(|refused| refused.sentence)?;
    if parts.headers.get_all(http::header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err("more than one content-length");
    }
    head.set_authority(std::str::from_utf8(authority).map_err(|_| "the host is not a host")?);
    let mut crumbs = parts.headers.get_all(http::header::COOKIE).iter();
    let mut cookie = crumbs.next().map(|first| first.as_bytes().to_vec());
    for crumb in crumbs {
        let cookie = cookie.get_or_insert_default();
        cookie.extend_from_slice(b"; ");
        cookie.extend_from_slice(crumb.as_bytes());
    }
    for (name, value) in &parts.headers {
        let known = Known::of(name.as_str().as_bytes());
        match known {
            Known::Host => continue,
            // RFC 9113 section 8.2.3: what was split for compression is one field for everybody behind.
            Known::Other if name == http::header::COOKIE => {
                if let Some(whole) = cookie.take() {
                    head.append("cookie", &whole);
                }
                continue;
            }
            Known::Te if value.as_bytes().eq_ignore_ascii_case(b"trailers") => {}
            known if known.is_hop_by_hop() => return Err("a field that belongs to HTTP/1.1"),
            _ => {}
        }
        head.append(name.as_str(), value.as_bytes());
    }
    Ok(())
}

/// Serves a client's HTTP/2 connection until its end; one task a stream.
pub(in crate::proxy) async fn serve(
    worker: &Arc<Worker>,
    stream: upstream::Stream,
    client: Arc<Client>,
    standing: flow::ConnectionStanding,
    proof: &Arc<Proof>,
    served: &mut Served,
) {
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(worker.limits.streams)
        .max_header_list_size(list_size(worker.limits.request_head))
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(32)
        .max_local_error_reset_streams(Some(128))
        .handshake::<_, Bytes>(Proved::new(stream, Some(proof.clone())));
    let handshake = tokio::time::timeout(worker.limits.head_within, handshake).await;
    let Ok(Ok(mut connection)) = handshake else {
        if proof.lapse().is_none() {
            worker.note_malformed(&client, "the HTTP/2 preface is missing or late");
        }
        return;
    };
    let mut turn = Turn::default();
    let mut draining = pin!(worker.draining());
    let mut watchdog = Watchdog::new();
    let (mut is_leaving, mut is_calmed) = (false, false);
    let open = Arc::new(());
    let cancelled = Arc::new(Cancelled::default());
    loop {
        let next = poll_fn(|context| {
            if proof.is_cut() {
                // The streams' tasks hear of it from the connection.
                return Poll::Ready(None);
            }
            let idle = Arc::strong_count(&open) == 1 && !connection.has_streams();
            if watchdog.deadline().is_none() || !idle {
                watchdog.set(Some(tokio::time::Instant::now() + worker.limits.idle_within));
            }
            let is_idle_for_long = watchdog.poll(context).is_ready();
            if is_leaving && is_idle_for_long {
                // It was told to go, has nothing to do here, and does not go.
                return Poll::Ready(None);
            }
            if !is_leaving {
                let ends = proof.lapse().is_some() || served.requests >= worker.limits.requests;
                if ends || is_idle_for_long || draining.as_mut().poll(context).is_ready() {
                    is_leaving = true;
                    watchdog.set(Some(tokio::time::Instant::now() + worker.limits.head_within));
                    connection.graceful_shutdown();
                }
            }
            if !is_calmed && cancelled.too_many(served.requests, worker.limits.resets) {
                is_calmed = true;
                worker.note_malformed(&client, "too many streams were given up");
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
            ready!(turn.poll(context));
            connection.poll_accept(context)
        })
        .await;
        let (request, mut respond) = match next {
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                worker.note_malformed(&client, &format!("HTTP/2: {error}"));
                return;
            }
            None => return,
        };
        if worker.watch.lapse(proof).is_some_and(|lapse| !lapse.is_gentle()) {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        served.requests += 1;
        watchdog.set(None);
        let (worker, client, guard) = (worker.clone(), client.clone(), open.clone());
        let (standing, cancelled) = (standing.clone(), cancelled.clone());
        let proof = proof.clone();
        worker.clone().spawn(async move {
            let accompanied = poll_fn(|context| Poll::Ready(proof.accompany(context.waker())));
            let accompanied = accompanied.await;
            let stream = Stream { client: &client, proof: &proof, cancelled: &cancelled };
            stream.serve(&worker, standing, request, respond).await;
            drop(accompanied);
            drop(guard);
        });
    }
}

/// Streams that a caller began and gave up: work for us and for upstreams, next to none for it (CVE-2023-44487). The `h2`
/// crate bounds those that it resets before we see them; this counts the others.
#[derive(Default)]
struct Cancelled(AtomicU32);

impl Cancelled {
    /// So many, and more than half of all: no client that wants answers does that.
    fn too_many(&self, all: u64, limit: u32) -> bool {
        let cancelled = u64::from(self.0.load(Ordering::Relaxed));
        cancelled > u64::from(limit) && cancelled * 2 > all
    }
}

/// What the streams of a connection share.
struct Stream<'a> {
    client: &'a Arc<Client>,
    proof: &'a Proof,
    cancelled: &'a Cancelled,
}

impl Stream<'_> {
    async fn serve(
        &self,
        worker: &Arc<Worker>,
        mut standing: flow::ConnectionStanding,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let (client, cancelled) = (self.client, self.cancelled);
        let (parts, stream) = request.into_parts();
        if let Some(refused) = bounds::refused(&parts, &worker.limits.request_head) {
            worker.note_malformed(client, refused.sentence);
            bounds::answer(&parts, refused, &mut respond);
            return;
        }
        let mut exchange: Box<Exchange> = worker.lend_exchange(client);
        if let Err(sentence) = read_request(&parts, &mut exchange.request) {
            worker.note_malformed(client, sentence);
            worker.take_back(exchange);
            respond.send_reset(Reason::PROTOCOL_ERROR);
            cancelled.0.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut caller = Caller {
            length: length_of(&exchange.request, stream.is_end_stream()),
            is_head: parts.method == Method::HEAD,
            receiving: Receiving::new(stream),
            respond,
            sending: None,
            received: 0,
            sent: 0,
        };
        drop(parts);
        let mut watchdog = Watchdog::new();
        let _ = flow::exchange(
            worker,
            &mut exchange,
            &mut caller,
            &mut standing,
            &mut watchdog,
            false,
            self.proof,
        )
        .await;
        let is_answered = caller.sending.as_ref().is_some_and(|sending| sending.is_over);
        // A caller that still sends what nobody reads is told to stop when the response has gone out and the stream is dropped;
        // resetting it here would drop the response.
        let mut context = Context::from_waker(std::task::Waker::noop());
        if !is_answered && caller.poll_gone(&mut context).is_ready() {
            cancelled.0.fetch_add(1, Ordering::Relaxed);
        }
        worker.take_back(exchange);
    }
}

/// A connection's bytes, as long as it may carry any.
struct Proved {
    stream: upstream::Stream,
    proof: Option<Arc<Proof>>,
}

impl Proved {
    fn new(stream: upstream::Stream, proof: Option<Arc<Proof>>) -> Self {
        Self { stream, proof }
    }

    fn is_cut(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.is_cut())
    }

    /// Its bytes; an error when they are not to be moved any more.
    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut upstream::Stream>> {
        match self.is_cut() {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(Pin::new(&mut self.get_mut().stream)),
        }
    }
}

impl AsyncRead for Proved {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Proved {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, data)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

impl Drop for Proved {
    fn drop(&mut self) {
        if self.is_cut() {
            // Not a byte more goes out, not even those that the system holds.
            self.stream.reset_on_close();
        }
    }
}
