//! `Remote`: the other end of an output, reached over TCP or TLS.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::settings::OutputTls;
use crate::identity::Identity;
use crate::mtls::{
    Alpn, ClientCertificate, Connector, ExpectedPeers, OriginConnector, PublicRoots,
};
use crate::rt::{Live, causes, unix_seconds};

/// From the look-up of the name to the end of the handshake.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// A connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The other end of an output.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    host: String,
    port: u16,
    security: Security,
}

#[derive(Clone, Debug)]
enum Security {
    None,
    /// Known by a public name.
    Web {
        settings: Arc<OutputTls>,
        svid: Option<Live<Identity>>,
    },
    /// Known by its SPIFFE ID.
    Mesh {
        connector: Connector,
        expected: Arc<ExpectedPeers>,
    },
}

/// What a connection rests on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Basis {
    /// The version of our identity.
    identity: Option<u64>,
    /// When the other side's proof ends, in seconds since 1970.
    until: Option<i64>,
}

impl Remote {
    /// The end at `host`:`port`, over TLS when `tls` is given.
    ///
    /// # Errors
    /// The settings contradict each other, name files that cannot be used, or want an identity that there is none of.
    pub(super) fn new(
        host: &str,
        port: u16,
        tls: Option<&OutputTls>,
        identity: Option<&Live<Identity>>,
    ) -> Result<Self, String> {
        let remote = |security| Self { host: host.to_owned(), port, security };
        let Some(tls) = tls else { return Ok(remote(Security::None)) };
        tls.check()?;
        let identity = match (tls.needs_identity(), identity) {
            (true, None) => return Err("tls: this process has no identity to present".into()),
            (true, identity) => identity,
            (false, _) => None,
        };
        if let (Some(identity), false) = (identity, tls.spiffe_ids.is_empty()) {
            let expected = ExpectedPeers::new(tls.patterns()?).map_err(|error| causes(&error))?;
            let connector = Connector::new(identity.clone());
            return Ok(remote(Security::Mesh { connector, expected: Arc::new(expected) }));
        }
        let security = Security::Web { settings: Arc::new(tls.clone()), svid: identity.cloned() };
        let made = remote(security);
        // What cannot be used shall be an error of the start.
        made.origin()?;
        Ok(made)
    }

    /// Its name, as HTTP's `Host` has it when the port is the usual one.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Connects.
    ///
    /// # Errors
    /// Nobody answers in time, or is not whom we expect.
    pub(super) async fn connect(&self, alpn: Alpn) -> Result<(Box<dyn Stream>, Basis), String> {
        let address = format!("{}:{}", self.host, self.port);
        match tokio::time::timeout(CONNECT_WITHIN, self.reach(alpn)).await {
            Ok(reached) => reached.map_err(|why| format!("{address}: {why}")),
            Err(_) => Err(format!("{address}: no connection within {CONNECT_WITHIN:?}")),
        }
    }

    async fn reach(&self, alpn: Alpn) -> Result<(Box<dyn Stream>, Basis), String> {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((bare, self.port)).await.map_err(|error| error.to_string())?;
        let _ = tcp.set_nodelay(true);
        match &self.security {
            Security::None => Ok((Box::new(tcp), Basis { identity: None, until: None })),
            Security::Web { settings, svid } => {
                let identity = svid.as_ref().map(Live::version);
                let name = settings.server_name.as_deref().unwrap_or(bare);
                let tls = self.origin()?.connect(tcp, name, alpn).await;
                let tls = tls.map_err(|error| causes(&error))?;
                Ok((Box::new(tls), Basis { identity, until: None }))
            }
            Security::Mesh { connector, expected } => {
                let identity = Some(connector.identity().version());
                let (tls, peer) =
                    connector.connect(tcp, expected, alpn).await.map_err(|error| causes(&error))?;
                Ok((Box::new(tls), Basis { identity, until: Some(peer.not_after) }))
            }
        }
    }

    /// Reads the files.
    fn origin(&self) -> Result<OriginConnector, String> {
        let Security::Web { settings, svid } = &self.security else {
            return Err("not known by a public name".into());
        };
        let told = |error: crate::mtls::Error| format!("tls: {}", causes(&error));
        let roots = match &settings.ca {
            Some(path) => PublicRoots::from_file(path),
            None => PublicRoots::system(),
        };
        let certificate = match (&settings.certificate, &settings.key, svid) {
            (Some(chain), Some(key), _) => {
                let read = |path: &std::path::PathBuf| {
                    std::fs::read(path).map_err(|error| format!("tls: {}: {error}", path.display()))
                };
                let key = zeroize::Zeroizing::new(read(key)?);
                Some(ClientCertificate::from_pem(&read(chain)?, &key).map_err(told)?)
            }
            (_, _, Some(identity)) => {
                Some(ClientCertificate::of(&identity.load().svid).map_err(told)?)
            }
            _ => None,
        };
        OriginConnector::new(Some(&roots.map_err(told)?), certificate.as_ref()).map_err(told)
    }

    /// Does a connection still rest on what holds now? One that does not is to be made anew.
    pub(super) fn holds(&self, basis: Basis) -> bool {
        let current = match &self.security {
            Security::None => None,
            Security::Web { svid, .. } => svid.as_ref().map(Live::version),
            Security::Mesh { connector, .. } => Some(connector.identity().version()),
        };
        current == basis.identity && basis.until.is_none_or(|until| unix_seconds() < until)
    }
}
