//! TCP, TLS or mTLS to an endpoint, and the one stream type that both sides of the proxy use.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::{Endpoint, Security};
use crate::identity::{Identity, Peer};
use crate::model::ProxyProtocol;
use crate::mtls::{self, Alpn, Connector};
use crate::rt::{causes, proxy_protocol};

/// For whom a connection is, as a PROXY header says it.
pub type Introduction = proxy_protocol::Ends;

/// A connection's bytes: plain, or TLS from either side.
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS that we originated.
    Originated(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// TLS of the mesh, from either side.
    Mesh(Box<mtls::MeshStream<TcpStream>>),
    /// TLS that we terminate.
    Terminated(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Mesh(tls) => tls.get_ref(),
            Self::Originated(tls) => tls.get_ref().0,
            Self::Terminated(tls) => tls.get_ref().0,
        }
    }

    /// Closing it resets it: what the system still holds is thrown away, and the other end cannot take the end for a good one.
    pub fn reset_on_close(&self) {
        // Where that fails the socket is broken already.
        let _ = socket2::SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Has something arrived, the end included? Looks at a flag; makes no system call.
    pub fn poll_arrived(&self, context: &mut Context<'_>) -> Poll<()> {
        if let Self::Mesh(tls) = self
            && tls.holds_received()
        {
            return Poll::Ready(());
        }
        self.tcp().poll_read_ready(context).map(|_| ())
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Stream(tcp)",
            Self::Mesh(_) => "Stream(mesh)",
            Self::Originated(_) => "Stream(tls, originated)",
            Self::Terminated(_) => "Stream(tls, terminated)",
        })
    }
}

macro_rules! each {
    ($stream:expr, $inner:ident => $do:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($inner) => $do,
            Stream::Mesh($inner) => $do,
            Stream::Originated($inner) => $do,
            Stream::Terminated($inner) => $do,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, inner => Pin::new(inner).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, inner => Pin::new(inner).poll_write(context, data))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, inner => Pin::new(inner).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, inner => Pin::new(inner).poll_shutdown(context))
    }
}

/// What will be spoken over a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Why an endpoint cannot be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection.
    #[error("{endpoint}: {source}")]
    Connect {
        /// The endpoint.
        endpoint: String,
        /// What the system said.
        source: io::Error,
    },
    /// A connection, and no TLS over it: also when the peer is not whom we expect.
    #[error("{endpoint}: the TLS handshake failed: {reason}")]
    Handshake {
        /// The endpoint.
        endpoint: String,
        /// What failed.
        reason: String,
        /// The error itself.
        error: Box<mtls::Error>,
    },
    /// It took too long.
    #[error("{endpoint}: no connection within {within:?}")]
    Late {
        /// The endpoint.
        endpoint: String,
        /// The limit.
        within: Duration,
    },
    /// Its TLS cannot be set up: nobody vouches for it, or the certificate to show does not exist.
    #[error("{endpoint}: {reason}")]
    Unusable {
        /// The endpoint.
        endpoint: String,
        /// What is missing.
        reason: Arc<str>,
    },
    /// mTLS is asked for and this process has no identity.
    #[error("{endpoint}: mTLS needs an SVID, and this process has no identity")]
    NoIdentity {
        /// The endpoint.
        endpoint: String,
    },
}

/// A new connection.
#[derive(Debug)]
pub struct Established {
    /// Its bytes.
    pub stream: Stream,
    /// Whom the handshake proved, on mTLS, and who we were when it began.
    pub proved: Option<(Arc<Peer>, Arc<Identity>)>,
}

/// Makes connections for all workers of a data plane.
#[derive(Clone)]
pub struct Connect {
    mesh: Option<Connector>,
}

impl Connect {
    /// With the identity that mTLS needs; without one only plain and public upstreams can be reached.
    pub fn new(mesh: Option<Connector>) -> Self {
        Self { mesh }
    }

    /// Connects on our own account, handshake included. `sent_host` is the `Host` that the request will be sent with: a public
    /// server has to prove that name.
    ///
    /// # Errors
    /// Always before a byte of the request was sent: another endpoint may be tried.
    pub async fn to(
        &self,
        endpoint: &Endpoint,
        sent_host: &str,
        protocol: Protocol,
        within: Duration,
    ) -> Result<Established, Error> {
        self.introducing(endpoint, sent_host, protocol, within, None).await
    }

    /// Connects for a caller, whom a PROXY header introduces where the endpoint wants one.
    ///
    /// # Errors
    /// Always before a byte of the request was sent: another endpoint may be tried.
    pub async fn introducing(
        &self,
        endpoint: &Endpoint,
        sent_host: &str,
        protocol: Protocol,
        within: Duration,
        caller: Option<Introduction>,
    ) -> Result<Established, Error> {
        let name = || endpoint.authority();
        let established = self.handshake(endpoint, sent_host, protocol, caller);
        match tokio::time::timeout(within, established).await {
            Ok(established) => established,
            Err(_) => Err(Error::Late { endpoint: name(), within }),
        }
    }

    async fn handshake(
        &self,
        endpoint: &Endpoint,
        sent_host: &str,
        protocol: Protocol,
        caller: Option<Introduction>,
    ) -> Result<Established, Error> {
        let name = || endpoint.authority();
        let connector =
            match &endpoint.security {
                Security::Public(tls) => Some(tls.connector.as_ref().map_err(|reason| {
                    Error::Unusable { endpoint: name(), reason: reason.clone() }
                })?),
                Security::Plain | Security::Mesh(_) => None,
            };
        let mut tcp = TcpStream::connect(endpoint.address())
            .await
            .map_err(|source| Error::Connect { endpoint: name(), source })?;
        // Small writes are whole messages here; waiting for more only adds latency.
        let _ = tcp.set_nodelay(true);
        if let Some(version) = endpoint.introduction {
            let version = match version {
                ProxyProtocol::V1 => proxy_protocol::Version::V1,
                ProxyProtocol::V2 => proxy_protocol::Version::V2,
            };
            let header = proxy_protocol::write(version, caller);
            tcp.write_all(&header)
                .await
                .map_err(|source| Error::Connect { endpoint: name(), source })?;
        }
        let alpn = match protocol {
            Protocol::Http1 => Alpn::Http1,
            Protocol::Http2 => Alpn::Http2,
        };
        let failed = |error: mtls::Error| Error::Handshake {
            endpoint: name(),
            reason: causes(&error),
            error: error.into(),
        };
        if let Some(connector) = connector {
            let server_name = endpoint.server_name(sent_host);
            let tls = connector.connect(tcp, server_name, alpn).await.map_err(failed)?;
            return Ok(Established { stream: Stream::Originated(Box::new(tls)), proved: None });
        }
        let Security::Mesh(expected) = &endpoint.security else {
            return Ok(Established { stream: Stream::Tcp(tcp), proved: None });
        };
        let mesh = self.mesh.as_ref().ok_or_else(|| Error::NoIdentity { endpoint: name() })?;
        let before = mesh.identity().load();
        let (tls, peer) = mesh.connect(tcp, expected, alpn).await.map_err(failed)?;
        let stream = Stream::Mesh(Box::new(tls));
        Ok(Established { stream, proved: Some((peer, before)) })
    }
}
