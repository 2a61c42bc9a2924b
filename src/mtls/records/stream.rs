//! `MeshStream`: bytes over the records of a TLS 1.3 connection.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, CommonState, ExtractedSecrets, PeerMisbehaved};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::handshake::broken;
use super::keys::{APPLICATION_DATA, HEADER, MAX_CONTENT, MAX_SEALED, Opener, Sealer, Secrets};

/// Content types (RFC 8446 appendix B.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
/// Messages after the handshake (appendix B.3).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// The largest message after the handshake that is read.
const MAX_MESSAGE: usize = 64 << 10;
/// The least space of a reader that records are opened in without a buffer of our own between.
const DIRECT: usize = 2048;
/// What one write takes at most, in whole records.
const MAX_WRITE: usize = 8 * MAX_CONTENT;
/// Records in a row that carry nothing for the reader, after which it is no conversation any more.
const MAX_QUIET: u8 = 32;
/// After so many records a key is replaced: far below what AES-GCM allows, 2^24.5 (RFC 8446 section 5.5).
const REKEY_AFTER: u64 = if cfg!(test) { 50 } else { 1 << 23 };

thread_local! {
    /// Where a thread seals what it sends.
    static SEALED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The application protocol that was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreed {
    /// None.
    Nothing,
    /// `http/1.1`.
    Http1,
    /// `h2`.
    Http2,
    /// One that is not spoken here.
    Other,
}

/// What a handshake settled.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// The cipher suite, by its IANA name.
    pub suite: Option<&'static str>,
    /// The key exchange, by its IANA name.
    pub group: Option<&'static str>,
    /// The protocol.
    pub alpn: Agreed,
}

impl Settled {
    pub(super) fn of(connection: &CommonState) -> Self {
        let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
        let group = connection.negotiated_key_exchange_group();
        Self {
            suite: suite.and_then(|suite| suite.as_str()),
            group: group.and_then(|group| group.name().as_str()),
            alpn: match connection.alpn_protocol() {
                None => Agreed::Nothing,
                Some(b"http/1.1") => Agreed::Http1,
                Some(b"h2") => Agreed::Http2,
                Some(_) => Agreed::Other,
            },
        }
    }
}

/// What rustls keeps of a connection: the secrets that later keys are made of.
pub(super) enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Kernel {
    fn next_sending(&mut self) -> Result<Secrets, rustls::Error> {
        match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        }
    }

    fn next_receiving(&mut self) -> Result<Secrets, rustls::Error> {
        match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        }
    }
}

/// Why records cannot be read any further.
enum Fault {
    /// The peer did what it must not: it is told by this alert.
    Ours(AlertDescription, rustls::Error),
    /// The peer said so.
    Theirs(AlertDescription),
}

impl Fault {
    fn of(alert: AlertDescription, reason: &str) -> Self {
        Self::Ours(alert, rustls::Error::General(reason.into()))
    }

    fn unexpected(reason: &str) -> Self {
        Self::of(AlertDescription::UnexpectedMessage, reason)
    }

    fn inner(error: rustls::Error) -> Self {
        Self::Ours(AlertDescription::InternalError, error)
    }
}

/// What came together with the end of the handshake.
pub(super) struct Received {
    /// Records that are not opened yet.
    pub(super) part: Vec<u8>,
    /// Data that is.
    pub(super) plain: Vec<u8>,
    /// The peer has said that nothing follows.
    pub(super) has_ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Open,
    /// The peer said that nothing follows.
    Ended,
    Broken,
}

/// A mesh connection: reads and writes are records of TLS 1.3.
///
/// Whole records are opened where the reader wants its bytes, and sealed where the thread keeps room for that. What the socket
/// does not take at once, and the pieces of records that came in part, are held until they are complete.
pub struct MeshStream<S>(Box<Records<S>>);

struct Records<S> {
    stream: S,
    opener: Opener,
    sealer: Sealer,
    kernel: Kernel,
    settled: Settled,
    /// The beginning of a record whose end has not come.
    part: Vec<u8>,
    /// What was opened and had no place with the reader yet.
    plain: Vec<u8>,
    /// How much of it was read.
    taken: usize,
    /// Sealed, and not sent yet.
    unsent: Vec<u8>,
    /// How much of it was sent.
    sent: usize,
    /// The beginning of a message after the handshake.
    message: Vec<u8>,
    reading: Reading,
    /// Records in a row without anything for the reader.
    quiet: u8,
    /// We have said that nothing follows.
    said_end: bool,
}

impl<S> std::fmt::Debug for MeshStream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshStream").field("settled", &self.0.settled).finish_non_exhaustive()
    }
}

impl<S> MeshStream<S> {
    /// After the handshake.
    pub(super) fn new(
        stream: S,
        secrets: ExtractedSecrets,
        kernel: Kernel,
        settled: Settled,
        received: Received,
    ) -> Result<Self, rustls::Error> {
        let Received { part, plain, has_ended } = received;
        let rejected =
            |error: crate::rt::crypto::KeyRejected| rustls::Error::General(error.to_string());
        Ok(Self(Box::new(Records {
            stream,
            opener: Opener::new(secrets.rx).map_err(rejected)?,
            sealer: Sealer::new(secrets.tx).map_err(rejected)?,
            kernel,
            settled,
            part,
            plain,
            taken: 0,
            unsent: Vec::new(),
            sent: 0,
            message: Vec::new(),
            reading: if has_ended { Reading::Ended } else { Reading::Open },
            quiet: 0,
            said_end: false,
        })))
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.0.stream
    }

    /// What the handshake settled.
    pub fn settled(&self) -> Settled {
        self.0.settled
    }

    /// Does something wait here that was received already, the peer's word that nothing follows included?
    pub fn holds_received(&self) -> bool {
        self.0.reading != Reading::Open || !self.0.part.is_empty() || !self.0.plain.is_empty()
    }

    /// The stream and what seals for it, for tests that send what they must not.
    #[cfg(test)]
    pub(super) fn into_forger(self) -> (S, Sealer) {
        let Records { stream, sealer, .. } = *self.0;
        (stream, sealer)
    }
}

impl<S> Records<S> {
    /// Opens the whole records at the front of `bytes`: how much for the reader lies at the front now, and how much of `bytes`
    /// was used for it.
    fn open_all(&mut self, bytes: &mut [u8]) -> Result<(usize, usize), Fault> {
        let (mut out, mut at) = (0, 0);
        while self.reading == Reading::Open
            && let Some(header) = bytes[at..].first_chunk::<HEADER>().copied()
        {
            let length = sealed_length(header)?;
            let end = at + HEADER + length;
            if end > bytes.len() {
                break;
            }
            let from = at + HEADER - out;
            let opened = self.opener.open(header, &mut bytes[out..end], from).map_err(|_| {
                Fault::Ours(AlertDescription::BadRecordMac, rustls::Error::DecryptError)
            })?;
            at = end;
            // The type is the last byte that is not padding.
            let Some(kind_at) = opened.iter().rposition(|byte| *byte != 0) else {
                return Err(Fault::unexpected("a record without a type"));
            };
            if kind_at > MAX_CONTENT {
                let error = rustls::Error::PeerSentOversizedRecord;
                return Err(Fault::Ours(AlertDescription::RecordOverflow, error));
            }
            let (kind, content) = (opened[kind_at], &opened[..kind_at]);
            match kind {
                APPLICATION_DATA if !self.message.is_empty() => {
                    return Err(Fault::unexpected("data within a handshake message"));
                }
                APPLICATION_DATA if !content.is_empty() => {
                    out += content.len();
                    self.quiet = 0;
                    continue;
                }
                APPLICATION_DATA => {}
                ALERT => self.take_alert(content)?,
                HANDSHAKE => self.take_handshake(content)?,
                _ => return Err(Fault::unexpected("a record of an unknown type")),
            }
            self.quiet += 1;
            if self.quiet > MAX_QUIET {
                return Err(Fault::unexpected("too many records without data"));
            }
        }
        // What stands behind the end is nothing (RFC 8446 section 6.1).
        if self.reading != Reading::Open {
            at = bytes.len();
        }
        Ok((out, at))
    }

    fn take_alert(&mut self, content: &[u8]) -> Result<(), Fault> {
        let &[_, description] = content else {
            return Err(Fault::of(AlertDescription::DecodeError, "an alert of another length"));
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => self.reading = Reading::Ended,
            AlertDescription::UserCanceled => {}
            description => return Err(Fault::Theirs(description)),
        }
        Ok(())
    }

    fn take_handshake(&mut self, content: &[u8]) -> Result<(), Fault> {
        if content.is_empty() {
            return Err(Fault::unexpected("an empty handshake message"));
        }
        let mut message = std::mem::take(&mut self.message);
        message.extend_from_slice(content);
        let mut rest = message.as_slice();
        while let [kind, a, b, c, more @ ..] = rest {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if length > MAX_MESSAGE {
                return Err(Fault::of(AlertDescription::DecodeError, "a message that is too long"));
            }
            let Some((body, more)) = more.split_at_checked(length) else { break };
            match (*kind, &self.kernel) {
                // Nothing is resumed in the mesh.
                (NEW_SESSION_TICKET, Kernel::Client(_)) => {}
                // Keys change between two records, not within one.
                (KEY_UPDATE, _) if more.is_empty() => self.take_key_update(body)?,
                (KEY_UPDATE, _) => {
                    let error = PeerMisbehaved::KeyEpochWithPendingFragment.into();
                    return Err(Fault::Ours(AlertDescription::UnexpectedMessage, error));
                }
                _ => return Err(Fault::unexpected("a message that has no place here")),
            }
            rest = more;
        }
        if !rest.is_empty() {
            self.message = rest.to_vec();
        }
        Ok(())
    }

    fn take_key_update(&mut self, body: &[u8]) -> Result<(), Fault> {
        let answer = match body {
            [0] => false,
            [1] => true,
            _ => return Err(Fault::of(AlertDescription::IllegalParameter, "a wrong key update")),
        };
        let secrets = self.kernel.next_receiving().map_err(Fault::inner)?;
        let opener = Opener::new(secrets);
        self.opener = opener.map_err(|error| Fault::inner(general(&error)))?;
        // Before the next data, which comes behind what waits already (RFC 8446 section 4.6.3).
        if answer && !self.said_end {
            let mut sealed = std::mem::take(&mut self.unsent);
            self.update_key(&mut sealed).map_err(Fault::inner)?;
            self.unsent = sealed;
        }
        Ok(())
    }

    /// Says that our key changes, and changes it.
    fn update_key(&mut self, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let sealed = self.sealer.seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], out);
        sealed.map_err(|error| general(&error))?;
        let secrets = self.kernel.next_sending()?;
        self.sealer = Sealer::new(secrets).map_err(|error| general(&error))?;
        Ok(())
    }

    fn seal(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        if self.sealer.sealed() >= REKEY_AFTER {
            self.update_key(out)?;
        }
        self.sealer.seal(kind, content, out).map_err(|error| general(&error))
    }

    /// How long the record is that begins in `part`, as far as that is known.
    fn wanted(&self) -> Result<usize, Fault> {
        match self.part.first_chunk::<HEADER>() {
            Some(header) => Ok(HEADER + sealed_length(*header)?),
            None => Ok(0),
        }
    }
}

fn general(error: &dyn std::error::Error) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

/// What the header of a record after the handshake says.
fn sealed_length(header: [u8; HEADER]) -> Result<usize, Fault> {
    if header[0] != APPLICATION_DATA {
        return Err(Fault::unexpected("a record that is not sealed"));
    }
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length > MAX_SEALED {
        let error = rustls::Error::PeerSentOversizedRecord;
        return Err(Fault::Ours(AlertDescription::RecordOverflow, error));
    }
    Ok(length)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Records<S> {
    fn poll_unsent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.unsent.len() {
            let stream = Pin::new(&mut self.stream);
            match ready!(stream.poll_write(context, &self.unsent[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        if !self.unsent.is_empty() {
            (self.unsent, self.sent) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing can be read any more; the peer hears why, as far as it still listens.
    fn fail(&mut self, context: &mut Context<'_>, fault: Fault) -> io::Error {
        self.reading = Reading::Broken;
        let error = match fault {
            Fault::Theirs(alert) => rustls::Error::AlertReceived(alert),
            Fault::Ours(alert, error) => {
                let mut sealed = std::mem::take(&mut self.unsent);
                if self.seal(ALERT, &[2, u8::from(alert)], &mut sealed).is_ok() {
                    self.unsent = sealed;
                    let _ = self.poll_unsent(context);
                }
                self.said_end = true;
                error
            }
        };
        broken(error)
    }

    /// Opens records where the reader wants their content; `None` when there was nothing for it in them.
    fn poll_direct(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Option<()>>> {
        let held = self.part.len();
        let space = buffer.initialize_unfilled();
        let mut read = ReadBuf::new(&mut space[held..]);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        let count = read.filled().len();
        if count == 0 {
            return Poll::Ready(Err(self.cut_off()));
        }
        let bytes = &mut space[..held + count];
        if held > 0 {
            bytes[..held].copy_from_slice(&self.part);
            self.part = Vec::new();
        }
        match self.open_all(bytes) {
            Ok((out, used)) => {
                if used < bytes.len() {
                    self.part = bytes[used..].to_vec();
                }
                buffer.advance(out);
                Poll::Ready(Ok((out > 0).then_some(())))
            }
            Err(fault) => Poll::Ready(Err(self.fail(context, fault))),
        }
    }

    /// The same for a reader with little space: the record is opened here, and read from here.
    fn poll_apart(&mut self, context: &mut Context<'_>, wanted: usize) -> Poll<io::Result<()>> {
        let held = self.part.len();
        let end = wanted.max(held + DIRECT);
        self.part.resize(end, 0);
        let mut read = ReadBuf::new(&mut self.part[held..]);
        let polled = Pin::new(&mut self.stream).poll_read(context, &mut read);
        let count = read.filled().len();
        self.part.truncate(held + count);
        ready!(polled)?;
        if count == 0 {
            return Poll::Ready(Err(self.cut_off()));
        }
        self.open_part(context)
    }

    /// Opens the whole records in `part` into `plain`.
    fn open_part(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = std::mem::take(&mut self.part);
        match self.open_all(&mut bytes) {
            Ok((out, used)) => {
                if used < bytes.len() {
                    self.part = bytes[used..].to_vec();
                }
                if out > 0 {
                    bytes.truncate(out);
                    self.plain = bytes;
                }
                Poll::Ready(Ok(()))
            }
            Err(fault) => Poll::Ready(Err(self.fail(context, fault))),
        }
    }

    /// The connection ended without the peer's word for it: what came may not be all (RFC 8446 section 6.1).
    fn cut_off(&mut self) -> io::Error {
        self.reading = Reading::Broken;
        let reason = "peer closed connection without sending TLS close_notify";
        io::Error::new(io::ErrorKind::UnexpectedEof, reason)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for MeshStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = &mut *self.get_mut().0;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // What was received together with the end of the handshake.
        if stream.plain.is_empty()
            && stream.reading == Reading::Open
            && stream.part.len() > HEADER
            && stream.wanted().is_ok_and(|wanted| wanted <= stream.part.len())
        {
            ready!(stream.open_part(context))?;
        }
        loop {
            if !stream.plain.is_empty() {
                let rest = &stream.plain[stream.taken..];
                let count = rest.len().min(buffer.remaining());
                buffer.put_slice(&rest[..count]);
                stream.taken += count;
                if stream.taken == stream.plain.len() {
                    (stream.plain, stream.taken) = (Vec::new(), 0);
                }
                return Poll::Ready(Ok(()));
            }
            match stream.reading {
                Reading::Open => {}
                Reading::Ended => return Poll::Ready(Ok(())),
                Reading::Broken => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
            }
            let wanted = match stream.wanted() {
                Ok(wanted) => wanted,
                Err(fault) => return Poll::Ready(Err(stream.fail(context, fault))),
            };
            if buffer.remaining() >= wanted.max(DIRECT).max(stream.part.len() + 1) {
                if ready!(stream.poll_direct(context, buffer))?.is_some() {
                    return Poll::Ready(Ok(()));
                }
            } else {
                ready!(stream.poll_apart(context, wanted))?;
            }
            // An answer to a change of keys goes when it can; whoever writes next waits for it.
            if !stream.unsent.is_empty() {
                let _ = stream.poll_unsent(context)?;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for MeshStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = &mut *self.get_mut().0;
        if stream.said_end {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !stream.unsent.is_empty() {
            ready!(stream.poll_unsent(context))?;
        }
        let data = &data[..data.len().min(MAX_WRITE)];
        let mut sealed = SEALED.take();
        sealed.clear();
        for content in data.chunks(MAX_CONTENT) {
            if let Err(error) = stream.seal(APPLICATION_DATA, content, &mut sealed) {
                stream.said_end = true;
                return Poll::Ready(Err(broken(error)));
            }
        }
        let sent = match Pin::new(&mut stream.stream).poll_write(context, &sealed) {
            Poll::Ready(Ok(sent)) => sent,
            Poll::Ready(Err(error)) => {
                stream.said_end = true;
                return Poll::Ready(Err(error));
            }
            Poll::Pending => 0,
        };
        if sent < sealed.len() {
            stream.unsent = sealed[sent..].to_vec();
        }
        SEALED.set(sealed);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = &mut *self.get_mut().0;
        ready!(stream.poll_unsent(context))?;
        Pin::new(&mut stream.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = &mut *self.get_mut().0;
        if !stream.said_end {
            stream.said_end = true;
            let mut sealed = std::mem::take(&mut stream.unsent);
            let close_notify = [1, u8::from(AlertDescription::CloseNotify)];
            stream.seal(ALERT, &close_notify, &mut sealed).map_err(broken)?;
            stream.unsent = sealed;
        }
        ready!(stream.poll_unsent(context))?;
        Pin::new(&mut stream.stream).poll_shutdown(context)
    }
}
