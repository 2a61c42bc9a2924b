//! The proxy's outbound side: each case is a server that the proxy is sent to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::inbound::refusal;
use super::{Case, Credential, Error, Fixtures, Row, Seen, tls};

/// The proxy's outbound listener, and the server that it is sent to.
#[derive(Debug)]
pub struct Outbound {
    proxy: SocketAddr,
    listener: TcpListener,
    path: String,
    host: String,
    patience: Duration,
}

/// A proxy that came to another answer without knocking is asked again so often: it may have set the server aside for a while.
const ATTEMPTS: u32 = 4;

impl Outbound {
    /// Listens where the proxy expects `spiffe://conformance.test/server`. The proxy's own address is set when it is known.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn listen(
        at: SocketAddr,
        path: String,
        host: String,
        patience: Duration,
    ) -> Result<Self, Error> {
        let listener =
            TcpListener::bind(at).await.map_err(|source| Error::Listen { address: at, source })?;
        Ok(Self { proxy: at, listener, path, host, patience })
    }

    /// Where the runner's server listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> Result<SocketAddr, Error> {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        self.listener.local_addr().map_err(|source| Error::Listen { address: unknown, source })
    }

    /// Requests go through this listener of the proxy.
    #[must_use]
    pub fn through(self, proxy: SocketAddr) -> Self {
        Self { proxy, ..self }
    }

    /// Presents the first case, which must be taken: before that, refusals prove nothing.
    ///
    /// # Errors
    /// It is not taken.
    pub async fn baseline(&self, fixtures: &Fixtures) -> Result<(), Error> {
        match self.try_case(&super::CASES[0], fixtures).await?.seen {
            Seen::Accepted(_) => Ok(()),
            other => Err(Error::Baseline { side: "outbound", seen: other.to_string() }),
        }
    }

    /// Presents one case and tells what became of it.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub async fn try_case(&self, case: &'static Case, fixtures: &Fixtures) -> Result<Row, Error> {
        let Credential { chain, key } = case.server(fixtures)?;
        let mut seen = Seen::Unclear("the proxy did not connect".into());
        for attempt in 0..ATTEMPTS {
            let credential = Credential { chain: chain.clone(), key: key.clone_key() };
            seen = self.serve(credential).await?;
            if !matches!(seen, Seen::Unclear(_)) {
                break;
            }
            sleep(Duration::from_millis(200) * 4_u32.pow(attempt)).await;
        }
        Ok(Row { side: "outbound", case, seen })
    }

    /// Sends one request through the proxy and watches what it does at the server.
    async fn serve(&self, credential: Credential) -> Result<Seen, Error> {
        let acceptor = TlsAcceptor::from(Arc::new(tls::server(credential)?));
        // What knocked too late for the case before is not of this one.
        while let Ok(Ok(_)) = timeout(Duration::ZERO, self.listener.accept()).await {}
        let request = self.request();
        let mut request = std::pin::pin!(request);
        let mut answered = false;
        let mut seen = Seen::Unclear("the proxy did not connect".into());
        let watch = async {
            loop {
                tokio::select! {
                    // Knocks first: an answer may be there at the same moment.
                    biased;
                    accepted = self.listener.accept() => {
                        let Ok((tcp, _)) = accepted else { continue };
                        match receive(&acceptor, tcp).await {
                            accepted @ Seen::Accepted(_) => return accepted,
                            // A proxy may try again: it is refused when it gives up.
                            other => seen = other,
                        }
                    }
                    () = &mut request, if !answered => {
                        answered = true;
                    }
                    () = sleep(Duration::from_millis(20)), if answered => return seen,
                }
            }
        };
        let watched = timeout(self.patience, watch).await;
        Ok(watched.unwrap_or_else(|_| Seen::Unclear("no answer in time".into())))
    }

    /// A plain request to the proxy; done when it has answered, or failed to.
    async fn request(&self) {
        let Ok(mut tcp) = TcpStream::connect(self.proxy).await else { return };
        let request = format!(
            "GET {} HTTP/1.1\r\nhost: {}\r\nuser-agent: wardgate-conformance\r\nconnection: close\r\n\r\n",
            self.path, self.host
        );
        if tcp.write_all(request.as_bytes()).await.is_ok() {
            let _ = tcp.read(&mut [0; 1024]).await;
        }
    }
}

/// One connection of the proxy: what is inside, when it gets so far.
async fn receive(acceptor: &TlsAcceptor, tcp: TcpStream) -> Seen {
    let mut stream = match acceptor.accept(tcp).await {
        Ok(stream) => stream,
        Err(error) => return refusal(&error),
    };
    match stream.read(&mut [0; 4096]).await {
        Ok(0) => Seen::Refused("closed after the handshake".into()),
        Ok(_) => {
            // What came is a request, or HTTP/2's preface: either way the proxy trusts us.
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                let _ = stream.write_all(answer).await;
            }
            let _ = stream.shutdown().await;
            Seen::Accepted("a request came through".into())
        }
        Err(error) => refusal(&error),
    }
}
