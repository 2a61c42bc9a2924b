//! `Link`: one connection to a Redis server.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::answer::{Answer, Unread, question, read};
use super::error::Error;
use super::server::Access;
use crate::mtls::{Alpn, public_client_config};

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// One connection, which has introduced itself.
pub(super) struct Link {
    stream: BufReader<Box<dyn Stream>>,
}

/// Nothing is left to be read when a connection goes back; what breaks off in between is dropped.
impl Link {
    /// Connects and introduces us.
    pub(super) async fn open(host: &str, port: u16, access: &Access) -> Result<Self, Error> {
        let server = || format!("{host}:{port}");
        let unreachable = |source: io::Error| Error::Unreachable { server: server(), source };
        let tcp = TcpStream::connect((host, port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let stream: Box<dyn Stream> = match access.tls {
            None => Box::new(tcp),
            Some(verify) => {
                let config = public_client_config(verify, Alpn::None).map_err(Error::Tls)?;
                let name = rustls_pki_types::ServerName::try_from(host.to_owned());
                let name = name.map_err(|why| unreachable(io::Error::other(why)))?;
                let tls = TlsConnector::from(config).connect(name, tcp).await;
                Box::new(tls.map_err(unreachable)?)
            }
        };
        let mut link = Self { stream: BufReader::new(stream) };
        let refused = |answer: Answer| match answer {
            Answer::Refusal(words) => Err(Error::Refused { server: server(), words }),
            _ => Ok(()),
        };
        if let Some(password) = &access.password {
            let password = password.reveal().as_bytes();
            let answer = match &access.user {
                Some(user) => link.ask(&[b"AUTH", user.as_bytes(), password]).await,
                None => link.ask(&[b"AUTH", password]).await,
            };
            refused(answer.map_err(|why| why.of(&server()))?)?;
        }
        if access.database != 0 {
            let database = access.database.to_string();
            let answer = link.ask(&[b"SELECT", database.as_bytes()]).await;
            refused(answer.map_err(|why| why.of(&server()))?)?;
        }
        Ok(link)
    }

    /// Asks, and reads the answer.
    pub(super) async fn ask(&mut self, parts: &[&[u8]]) -> Result<Answer, Unread> {
        let question = question(parts);
        self.stream.get_mut().write_all(&question).await?;
        self.stream.get_mut().flush().await?;
        read(&mut self.stream).await
    }
}

impl Unread {
    pub(super) fn of(self, server: &str) -> Error {
        match self {
            Self::Io(source) => Error::Unreachable { server: server.to_owned(), source },
            Self::NoProtocol => Error::Protocol(server.to_owned()),
        }
    }
}
