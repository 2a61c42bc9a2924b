//! `accept` and `connect`: rustls' handshake over a stream, up to the keys of the connection.

use std::io;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ExtractedSecrets, HandshakeKind, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::stream::{Kernel, MeshStream, Received, Settled};

/// More than the largest handshake message that rustls takes (64 KiB), in as many records as it likes.
const MAX_INCOMING: usize = 96 << 10;
/// What a read asks for.
const READ: usize = 4096;

/// Either side of rustls' connection without buffers.
trait Side: Sized {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;

    fn into_keys(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel): (_, KernelConnection<_>) =
            self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Server(kernel)))
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel): (_, KernelConnection<_>) =
            self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Client(kernel)))
    }
}

/// Shakes hands as the server. `config` allows that its secrets are taken ([`ServerConfig::enable_secret_extraction`]).
pub(in crate::mtls) async fn accept<S>(
    config: Arc<ServerConfig>,
    stream: S,
) -> io::Result<MeshStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    shake(UnbufferedServerConnection::new(config).map_err(broken)?, stream).await
}

/// Shakes hands as the client. `config` allows that its secrets are taken.
pub(in crate::mtls) async fn connect<S>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: S,
) -> io::Result<MeshStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    shake(UnbufferedClientConnection::new(config, name).map_err(broken)?, stream).await
}

/// As rustls' own streams say it, so that whoever reads causes finds it.
pub(super) fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What a step of the handshake asks for.
enum Next {
    Step,
    Send,
    Receive,
    Done,
    Failed(rustls::Error),
}

async fn shake<C, S>(mut tls: C, mut stream: S) -> io::Result<MeshStream<S>>
where
    C: Side,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut incoming, mut outgoing, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let mut has_ended = false;
    loop {
        let UnbufferedStatus { mut discard, state } = tls.process(&mut incoming);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(part)) => encode(part, &mut outgoing),
            Ok(ConnectionState::TransmitTlsData(part)) => {
                part.done();
                Next::Send
            }
            // The peer may send at once behind its last message.
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    Some(Err(error)) => break Next::Failed(error),
                    None => break Next::Step,
                }
            },
            Ok(ConnectionState::BlockedHandshake) => Next::Receive,
            Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
            // It had nothing to say, or said it all at once.
            Ok(ConnectionState::PeerClosed) => {
                has_ended = true;
                Next::Step
            }
            Ok(ConnectionState::Closed) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"));
            }
            Ok(_) => Next::Failed(rustls::Error::General("early data was not asked for".into())),
            Err(error) => Next::Failed(error),
        };
        incoming.drain(..discard);
        match next {
            Next::Step => {}
            Next::Send => send(&mut stream, &mut outgoing).await?,
            // We may send before the peer has said its last word; that is not the end.
            Next::Done if !tls.common().is_handshaking() => break,
            Next::Receive | Next::Done if has_ended => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"));
            }
            Next::Receive | Next::Done => receive(&mut stream, &mut incoming).await?,
            Next::Failed(error) => {
                tell(&mut tls, &mut incoming, &mut stream, outgoing).await;
                return Err(broken(error));
            }
        }
    }
    // A resumed session has passed by the verifier. No configuration of the mesh resumes any; should one ever, it ends here.
    if tls.common().handshake_kind() == Some(HandshakeKind::Resumed) {
        return Err(broken(rustls::Error::General("the mesh resumes no session".into())));
    }
    // The room of the handshake goes with it.
    incoming.shrink_to_fit();
    let settled = Settled::of(tls.common());
    let (secrets, kernel) = tls.into_keys().map_err(broken)?;
    let received = Received { part: incoming, plain, has_ended };
    MeshStream::new(stream, secrets, kernel, settled, received).map_err(broken)
}

fn encode<D>(mut part: EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> Next {
    let from = out.len();
    let mut room = 0;
    loop {
        out.resize(from + room, 0);
        match part.encode(&mut out[from..]) {
            Ok(written) => {
                out.truncate(from + written);
                return Next::Step;
            }
            Err(EncodeError::InsufficientSize(needed)) if needed.required_size > room => {
                room = needed.required_size;
            }
            Err(error) => return Next::Failed(rustls::Error::General(error.to_string())),
        }
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, outgoing: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(outgoing).await?;
    outgoing.clear();
    stream.flush().await
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S, incoming: &mut Vec<u8>) -> io::Result<()> {
    if incoming.len() >= MAX_INCOMING {
        let reason = rustls::InvalidMessage::HandshakePayloadTooLarge;
        return Err(broken(rustls::Error::InvalidMessage(reason)));
    }
    incoming.reserve(READ);
    match stream.read_buf(incoming).await? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")),
        _ => Ok(()),
    }
}

/// Tells the peer why it ends, as far as it still listens.
async fn tell<C: Side, S: AsyncWrite + Unpin>(
    tls: &mut C,
    incoming: &mut [u8],
    stream: &mut S,
    mut outgoing: Vec<u8>,
) {
    // As long as something is to be sent, what came is not looked at again.
    while tls.common().wants_write()
        && let UnbufferedStatus { state: Ok(ConnectionState::EncodeTlsData(part)), .. } =
            tls.process(incoming)
        && matches!(encode(part, &mut outgoing), Next::Step)
    {}
    let _ = send(stream, &mut outgoing).await;
}
