//! `Connector`: the client's half of a mesh handshake, which insists on an expected peer.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls_pki_types::{IpAddr, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};

use super::prepared::Prepared;
use super::provider::{certified_svid, provider};
use super::verifier::handshake;
use super::{Agreed, Error, MeshStream, PeerVerifier, Refusal, records};
use crate::identity::{ChainVerifier, Identity, Peer, SpiffeId, SpiffePattern};
use crate::rt::Live;

/// Whom a connection may reach: at least one pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExpectedPeers {
    patterns: Box<[SpiffePattern]>,
}

impl ExpectedPeers {
    /// Peers that one of `patterns` means.
    ///
    /// # Errors
    /// There is no pattern.
    pub fn new(patterns: impl IntoIterator<Item = SpiffePattern>) -> Result<Self, Error> {
        let patterns: Box<[_]> = patterns.into_iter().collect();
        if patterns.is_empty() { Err(Error::NobodyExpected) } else { Ok(Self { patterns }) }
    }

    /// Exactly this peer.
    pub fn exactly(id: &SpiffeId) -> Self {
        Self { patterns: [SpiffePattern::exactly(id)].into() }
    }

    /// As an operator writes them, separated by blanks.
    pub fn text(&self) -> String {
        let texts = self.patterns.iter().map(ToString::to_string);
        texts.collect::<Vec<_>>().join(" ")
    }

    /// Is `id` among them?
    pub fn admits(&self, id: &SpiffeId) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(id))
    }
}

/// The application protocol that a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// Bytes of a protocol without a name.
    None,
    /// `http/1.1`.
    Http1,
    /// `h2`.
    Http2,
}

impl Alpn {
    /// The names offered.
    pub(super) fn offered(self) -> Vec<Vec<u8>> {
        match self {
            Self::None => vec![],
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
        }
    }
}

/// Opens mesh connections: presents our SVID and takes only a peer that is expected.
///
/// Clones share the TLS configurations: one for each identity revision, expectation and protocol.
#[derive(Clone, Debug)]
pub struct Connector {
    prepared: Prepared<Arc<Presenting>>,
}

/// At this many expectations the cache starts afresh: more than a data plane has upstreams, and a bound all the same.
const MAX_CONFIGS: usize = 16_384;

/// What one identity connects with.
struct Presenting {
    own: Arc<SingleCertAndKey>,
    chains: Arc<ChainVerifier>,
    configs: Mutex<Configs>,
}

/// By the address of the expectation, which the entry keeps alive.
type Configs = HashMap<(usize, Alpn), (Arc<ExpectedPeers>, Arc<ClientConfig>)>;

impl Connector {
    /// Connects as whoever `identity` says at each handshake.
    pub fn new(identity: Live<Identity>) -> Self {
        Self { prepared: Prepared::new(identity) }
    }

    /// Who connects.
    pub fn identity(&self) -> &Live<Identity> {
        self.prepared.identity()
    }

    /// Shakes hands with a peer that must be one of `expected`. The caller limits the time.
    ///
    /// Keep one `Arc` for an upstream's expectation: its configuration is found by the `Arc`'s address.
    ///
    /// In TLS 1.3 the handshake ends before the peer has judged our certificate: a refusal by the peer shows as the first
    /// error of the stream, which [`refusal`](super::refusal) reads.
    ///
    /// # Errors
    /// The handshake was refused (with the reason and what the peer showed), or the network failed.
    pub async fn connect<S>(
        &self,
        stream: S,
        expected: &Arc<ExpectedPeers>,
        alpn: Alpn,
    ) -> Result<(MeshStream<S>, Arc<Peer>), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let tls = self.presenting()?.tls(expected, alpn)?;
        // Identities are SPIFFE IDs, not names: rustls wants a name, and we send none.
        let nameless = ServerName::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST));
        let (stream, peer) = handshake(records::connect(tls, nameless, stream)).await?;
        match (alpn, stream.settled().alpn) {
            // A peer without ALPN speaks HTTP/1.1; HTTP/2 must be agreed on.
            (Alpn::Http2, Agreed::Http2) | (Alpn::Http1, Agreed::Http1 | Agreed::Nothing) => {}
            (Alpn::None, Agreed::Nothing) => {}
            _ => return Err(Error::refused(Refusal::NoCommonProtocol)),
        }
        Ok((stream, peer))
    }

    fn presenting(&self) -> Result<Arc<Presenting>, Error> {
        self.prepared.get(|identity| {
            Ok(Arc::new(Presenting {
                own: Arc::new(SingleCertAndKey::from(certified_svid(&identity.svid)?)),
                chains: identity.trust.verifier().clone(),
                configs: Mutex::default(),
            }))
        })
    }
}

impl Presenting {
    fn tls(&self, expected: &Arc<ExpectedPeers>, alpn: Alpn) -> Result<Arc<ClientConfig>, Error> {
        let key = (Arc::as_ptr(expected).addr(), alpn);
        let mut configs = self.configs.lock();
        if let Some((_, tls)) = configs.get(&key) {
            return Ok(tls.clone());
        }
        if configs.len() >= MAX_CONFIGS {
            configs.clear();
        }
        let tls = Arc::new(self.config(expected.clone(), alpn)?);
        configs.insert(key, (expected.clone(), tls.clone()));
        Ok(tls)
    }

    fn config(&self, expected: Arc<ExpectedPeers>, alpn: Alpn) -> Result<ClientConfig, Error> {
        let verifier = Arc::new(PeerVerifier::new(self.chains.clone(), Some(expected)));
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(Error::Own)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(self.own.clone());
        // A resumed session would skip the verifier.
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        // The records are ours.
        config.enable_secret_extraction = true;
        config.enable_sni = false;
        config.alpn_protocols = alpn.offered();
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Forge;

    #[test]
    fn expectations_of_one_upstream_share_one_configuration() {
        let identity = Forge::new("a.test").identity("/web", &[]);
        let client = Connector::new(Live::fixed(identity));
        let expect =
            |pattern: &str| Arc::new(ExpectedPeers::new([pattern.parse().unwrap()]).unwrap());
        let (one, other) = (expect("spiffe://a.test/db"), expect("spiffe://a.test/*"));
        let tls = |expected, alpn| {
            let presenting = client.presenting().unwrap();
            presenting.tls(expected, alpn).unwrap()
        };
        assert!(Arc::ptr_eq(&tls(&one, Alpn::Http1), &tls(&one, Alpn::Http1)));
        assert!(!Arc::ptr_eq(&tls(&one, Alpn::Http1), &tls(&one, Alpn::Http2)));
        assert!(!Arc::ptr_eq(&tls(&one, Alpn::Http1), &tls(&other, Alpn::Http1)));
    }
}
