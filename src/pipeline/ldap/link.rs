//! `Link`: one connection to a directory.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::error::Error;
use super::message::{Ended, Request, Response, length, response};
use super::server::{Access, Tls};
use crate::mtls::{Alpn, public_client_config};

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// One connection. Nothing is left to be read between two questions; what breaks off in between is dropped.
pub(super) struct Link {
    stream: BufReader<Box<dyn Stream>>,
    number: u32,
}

/// Why a question has no answer.
pub(super) enum Unanswered {
    /// The connection broke: it may be one that was closed while nobody looked.
    Io(io::Error),
    NoProtocol,
}

impl From<io::Error> for Unanswered {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Unanswered {
    pub(super) fn of(self, server: &str) -> Error {
        match self {
            Self::Io(source) => Error::Unreachable { server: server.to_owned(), source },
            Self::NoProtocol => Error::Protocol(server.to_owned()),
        }
    }
}

/// Bytes of one message: an entry comes without attributes.
const MAX_MESSAGE: usize = 64 * 1024;
/// Messages of one answer; a search ends with two entries.
const MAX_MESSAGES: usize = 1024;
/// Success, of all operations.
const SUCCESS: u32 = 0;

impl Link {
    /// Connects, with TLS where it is asked for: nothing but the question for it goes out in clear.
    pub(super) async fn open(access: &Access) -> Result<Self, Error> {
        let server = access.name();
        let unreachable = |source: io::Error| Error::Unreachable { server: access.name(), source };
        let mut tcp =
            TcpStream::connect((&*access.host, access.port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let Some(tls) = access.tls else {
            let stream: Box<dyn Stream> = Box::new(tcp);
            return Ok(Self { stream: BufReader::new(stream), number: 0 });
        };
        if tls == Tls::Started {
            let asked = started(&mut tcp).await.map_err(|why| why.of(&server))?;
            if asked != SUCCESS {
                return Err(Error::Refused { server, step: "StartTLS", code: asked });
            }
        }
        let config = public_client_config(access.verify, Alpn::None).map_err(Error::Tls)?;
        let name = rustls_pki_types::ServerName::try_from(access.host.clone());
        let name = name.map_err(|why| unreachable(io::Error::other(why)))?;
        let secured = TlsConnector::from(config).connect(name, tcp).await.map_err(unreachable)?;
        // The number goes on behind that of StartTLS.
        let stream: Box<dyn Stream> = Box::new(secured);
        Ok(Self { stream: BufReader::new(stream), number: 1 })
    }

    /// Binds; the result code.
    pub(super) async fn bind(&mut self, name: &str, password: &[u8]) -> Result<u32, Unanswered> {
        let number = self.send(&Request::Bind { name, password }).await?;
        match self.receive(number).await? {
            Response::Ended { of: Ended::Bind, code } => Ok(code),
            _ => Err(Unanswered::NoProtocol),
        }
    }

    /// Searches; the names that were found, and the result code.
    pub(super) async fn search(
        &mut self,
        search: &Request<'_>,
    ) -> Result<(Vec<String>, u32), Unanswered> {
        let number = self.send(search).await?;
        let mut names = Vec::new();
        for _ in 0..MAX_MESSAGES {
            match self.receive(number).await? {
                Response::Entry(name) => names.push(name),
                Response::Reference => {}
                Response::Ended { of: Ended::Search, code } => return Ok((names, code)),
                Response::Ended { .. } => break,
            }
        }
        Err(Unanswered::NoProtocol)
    }

    async fn send(&mut self, request: &Request<'_>) -> Result<u32, Unanswered> {
        self.number = self.number % 0x7fff_ffff + 1;
        let stream = self.stream.get_mut();
        stream.write_all(&request.message(self.number)).await?;
        stream.flush().await?;
        Ok(self.number)
    }

    async fn receive(&mut self, number: u32) -> Result<Response, Unanswered> {
        match read(&mut self.stream).await? {
            (found, response) if found == number => Ok(response),
            // The directory says that it ends the connection (RFC 4511, section 4.4.1).
            (0, _) => Err(Unanswered::Io(io::ErrorKind::ConnectionReset.into())),
            _ => Err(Unanswered::NoProtocol),
        }
    }
}

/// Asks for TLS; the result code. Not one byte more is read than the answer has: what somebody slipped in behind it in clear would
/// have to be a TLS handshake.
async fn started(tcp: &mut TcpStream) -> Result<u32, Unanswered> {
    tcp.write_all(&Request::StartTls.message(1)).await?;
    match read(tcp).await? {
        (1, Response::Ended { of: Ended::Extended, code }) => Ok(code),
        _ => Err(Unanswered::NoProtocol),
    }
}

/// Reads one message.
async fn read<R: AsyncRead + Unpin>(from: &mut R) -> Result<(u32, Response), Unanswered> {
    const SEQUENCE: u8 = 0x30;
    let mut head = [0; 6];
    from.read_exact(&mut head[..2]).await?;
    if head[0] != SEQUENCE {
        return Err(Unanswered::NoProtocol);
    }
    let mut have = 2;
    let length = loop {
        match length(&head[1..have]).ok_or(Unanswered::NoProtocol)? {
            Ok((length, _)) => break length,
            Err(missing) => {
                let more = head.get_mut(have..have + missing).ok_or(Unanswered::NoProtocol)?;
                from.read_exact(more).await?;
                have += missing;
            }
        }
    };
    if length > MAX_MESSAGE {
        return Err(Unanswered::NoProtocol);
    }
    let mut content = vec![0; length];
    from.read_exact(&mut content).await?;
    response(&content).ok_or(Unanswered::NoProtocol)
}
