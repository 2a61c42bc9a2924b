//! `Acceptor`: the server's half of a mesh handshake, with the current identity.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use tokio::io::{AsyncRead, AsyncWrite};

use super::prepared::Prepared;
use super::provider::{certified_svid, provider};
use super::verifier::{handshake, handshake_demanding};
use super::{Demand, Error, LetIn, MeshStream, PeerVerifier, records};
use crate::identity::{Identity, Peer};
use crate::rt::Live;

/// Accepts mesh connections: presents our SVID, insists on the peer's, and tells who the peer is.
///
/// Clones share one TLS configuration, which is built once for each identity revision.
#[derive(Clone, Debug)]
pub struct Acceptor {
    prepared: Prepared<Arc<ServerConfig>>,
    /// For doors that ask for less, made when one does.
    if_any: Prepared<Arc<ServerConfig>>,
    nothing: Prepared<Arc<ServerConfig>>,
    protocols: &'static [&'static [u8]],
}

/// How a handshake ended at a door that may ask for less than an identity.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The connection.
    pub stream: MeshStream<S>,
    /// Who is at its other end; `None` for nobody.
    pub peer: Option<Arc<Peer>>,
    /// A peer that showed a certificate which is not good, and was let in as nobody all the same.
    pub let_in: Option<LetIn>,
}

impl Acceptor {
    /// Accepts as whoever `identity` says at each handshake; what is spoken is HTTP.
    #[expect(clippy::needless_pass_by_value, reason = "it is kept")]
    pub fn new(identity: Live<Identity>) -> Self {
        Self::speaking(&identity, &[b"h2", b"http/1.1"])
    }

    /// The same where nobody reads what is spoken: no protocol is agreed on.
    #[expect(clippy::needless_pass_by_value, reason = "it is kept")]
    pub fn of_bytes(identity: Live<Identity>) -> Self {
        Self::speaking(&identity, &[])
    }

    fn speaking(identity: &Live<Identity>, protocols: &'static [&'static [u8]]) -> Self {
        let prepared = || Prepared::new(identity.clone());
        Self { prepared: prepared(), if_any: prepared(), nothing: prepared(), protocols }
    }

    /// Shakes hands. The caller limits the time.
    ///
    /// # Errors
    /// The handshake was refused (with the reason and what the peer showed), or the network failed.
    pub async fn accept<S>(&self, stream: S) -> Result<(MeshStream<S>, Arc<Peer>), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let tls = self.tls(Demand::Identity)?;
        handshake(records::accept(tls, stream)).await
    }

    /// Shakes hands at a door that asks for less.
    ///
    /// # Errors
    /// As [`Acceptor::accept`].
    pub async fn accept_demanding<S>(&self, stream: S, demand: Demand) -> Result<Accepted<S>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let tls = self.tls(demand)?;
        let (stream, peer, let_in) =
            handshake_demanding(records::accept(tls, stream), demand).await?;
        Ok(Accepted { stream, peer, let_in })
    }

    fn tls(&self, demand: Demand) -> Result<Arc<ServerConfig>, Error> {
        let prepared = match demand {
            Demand::Identity => &self.prepared,
            Demand::IdentityIfAny => &self.if_any,
            Demand::Nothing => &self.nothing,
        };
        prepared.get(|identity| Ok(Arc::new(config(identity, demand, self.protocols)?)))
    }
}

fn config(identity: &Identity, demand: Demand, protocols: &[&[u8]]) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(PeerVerifier::accepting(&identity.trust).demanding(demand));
    let own = SingleCertAndKey::from(certified_svid(&identity.svid)?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Own)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(own));
    config.ignore_client_order = true;
    // Nothing is resumed: a resumed session would skip the verifier. No data before the peer is known.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    // The records are ours.
    config.enable_secret_extraction = true;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}
