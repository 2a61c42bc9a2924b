//! `IssuerClient`: the workload's side of one call to an issuer.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::key::certificate_request;
use super::message::TrustNews;
use crate::identity::{SpiffeId, Svid, TrustDomain};
use crate::issuer::Error;
use crate::issuer::wire;
use crate::issuer::wire::issuer_client::IssuerClient as Calls;
use crate::model::Redacted;
use crate::mtls::{Anchor, ExpectedPeers, connect_issuer};
use crate::rt::causes;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// What proves who we are to an issuer that gave us no SVID yet.
#[derive(Clone, Debug)]
pub enum Proof {
    /// A one-time token that an operator minted.
    JoinToken(Redacted<String>),
    /// A projected service-account token.
    Kubernetes {
        /// The cluster, by the issuer's name for it.
        cluster: String,
        /// The token.
        token: Redacted<String>,
    },
}

impl From<&Proof> for wire::Proof {
    fn from(proof: &Proof) -> Self {
        let kind = match proof {
            Proof::JoinToken(token) => wire::proof::Kind::JoinToken(token.reveal().clone()),
            Proof::Kubernetes { cluster, token } => {
                wire::proof::Kind::Kubernetes(wire::KubernetesToken {
                    cluster: cluster.clone(),
                    token: token.reveal().clone(),
                })
            }
        };
        Self { kind: Some(kind) }
    }
}

/// What an issuer gave.
pub struct Enrolled {
    /// The SVID, with the key that it was asked for.
    pub svid: Svid,
    /// How long it lives from its issue on.
    pub lifetime: Duration,
    /// To be shown at the renewal.
    pub ticket: Vec<u8>,
    /// Whom to trust.
    pub trust: TrustNews,
}

impl fmt::Debug for Enrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolled").field("svid", &self.svid).finish_non_exhaustive()
    }
}

/// Whom the issuer of a trust domain has to prove to be: `spiffe://<trust domain>/wardgate/issuer`.
///
/// # Panics
/// Never: the path is a good one for any trust domain.
pub fn issuer_id(domain: &TrustDomain) -> SpiffeId {
    domain.workload("/wardgate/issuer").expect("a good path for any trust domain")
}

/// Calls an issuer, and nobody else: it must prove its SPIFFE ID.
#[derive(Clone, Debug)]
pub struct IssuerClient {
    address: String,
    expected: Arc<ExpectedPeers>,
}

impl IssuerClient {
    /// For the issuer at `address` (`host:port`), who must be `id`.
    pub fn new(address: &str, id: &SpiffeId) -> Self {
        Self { address: address.to_owned(), expected: Arc::new(ExpectedPeers::exactly(id)) }
    }

    /// Gets a first identity for `key`.
    ///
    /// # Errors
    /// [`Error::IssuerUnreachable`], [`Error::IssuerRefused`], or an answer that does not hold.
    pub async fn enrol(
        &self,
        anchor: &Anchor,
        proof: &Proof,
        key: &PrivateKeyDer<'static>,
        wanted: Option<&SpiffeId>,
    ) -> Result<Enrolled, Error> {
        let request = wire::EnrolRequest {
            certificate_request: certificate_request(key)?,
            proof: Some(proof.into()),
            spiffe_id: wanted.map(ToString::to_string).unwrap_or_default(),
        };
        let mut calls = self.calls(anchor, None).await?;
        let answer = self.within(calls.enrol(request)).await?;
        enrolled(answer.into_inner(), key)
    }

    /// Gets the next identity, for a new `key`, by the current one.
    ///
    /// # Errors
    /// As [`IssuerClient::enrol`].
    pub async fn renew(
        &self,
        anchor: &Anchor,
        current: &Svid,
        ticket: &[u8],
        proof: Option<&Proof>,
        key: &PrivateKeyDer<'static>,
    ) -> Result<Enrolled, Error> {
        let request = wire::RenewRequest {
            certificate_request: certificate_request(key)?,
            ticket: ticket.to_vec(),
            proof: proof.map(Into::into),
        };
        let mut calls = self.calls(anchor, Some(current)).await?;
        let answer = self.within(calls.renew(request)).await?;
        enrolled(answer.into_inner(), key)
    }

    /// Follows whom to trust, beginning with how it is now.
    ///
    /// # Errors
    /// As [`IssuerClient::enrol`].
    pub async fn watch(
        &self,
        anchor: &Anchor,
        current: &Svid,
        ticket: &[u8],
    ) -> Result<Following, Error> {
        let request = wire::WatchRequest { ticket: ticket.to_vec() };
        let mut calls = self.calls(anchor, Some(current)).await?;
        let stream = self.within(calls.watch(request)).await?.into_inner();
        Ok(Following { address: self.address.clone(), stream })
    }

    async fn within<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Error> {
        match tokio::time::timeout(ANSWER_WITHIN, call).await {
            Ok(answer) => answer.map_err(|status| refused(&self.address, &status)),
            Err(_) => Err(unreachable(&self.address, "no answer in time".into())),
        }
    }

    pub(super) async fn calls(
        &self,
        anchor: &Anchor,
        own: Option<&Svid>,
    ) -> Result<Calls<Channel>, Error> {
        let failed = |detail| unreachable(&self.address, detail);
        let shaking = async {
            let tcp = TcpStream::connect(&self.address).await.map_err(|error| error.to_string())?;
            let _ = tcp.set_nodelay(true);
            let shaken = connect_issuer(tcp, anchor, &self.expected, own).await;
            shaken.map(|(stream, _)| stream).map_err(|error| causes(&error))
        };
        let stream = match tokio::time::timeout(CONNECT_WITHIN, shaking).await {
            Ok(stream) => stream.map_err(failed)?,
            Err(_) => return Err(failed("no connection in time".into())),
        };
        // One connection for one channel: a second one would have to be proved anew.
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async move {
                stream.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
            }
        });
        // The connector knows the address; HTTP/2 wants a name all the same.
        let channel = Endpoint::from_static("http://issuer.invalid")
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|error| failed(causes(&error)))?;
        Ok(Calls::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }
}

/// Whom to trust, as it changes.
#[derive(Debug)]
pub struct Following {
    address: String,
    stream: Streaming<wire::Trust>,
}

impl Following {
    /// The next change; `None` when the stream ended without a word, as it does at a restart.
    ///
    /// # Errors
    /// [`Error::IssuerRefused`] when the identity was taken away; otherwise what broke the stream.
    pub async fn next(&mut self) -> Result<Option<TrustNews>, Error> {
        let news = self.stream.message().await;
        Ok(news.map_err(|status| refused(&self.address, &status))?.map(TrustNews::from))
    }
}

fn enrolled(answer: wire::Enrolled, key: &PrivateKeyDer<'static>) -> Result<Enrolled, Error> {
    let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
    // Also refuses a chain for another key than ours.
    let svid = Svid::new(chain, key.clone_key())?;
    Ok(Enrolled {
        svid,
        lifetime: Duration::from_secs(answer.lifetime_seconds.into()),
        ticket: answer.ticket,
        trust: answer.trust.unwrap_or_default().into(),
    })
}

/// A word of the issuer about us, or no word at all.
fn refused(address: &str, status: &Status) -> Error {
    let (address, detail) = (address.to_owned(), status.message().to_owned());
    match status.code() {
        Code::PermissionDenied => Error::IssuerDenied { address, detail },
        Code::Unauthenticated
        | Code::InvalidArgument
        | Code::ResourceExhausted
        | Code::FailedPrecondition => Error::IssuerRefused { address, detail },
        _ => Error::IssuerUnreachable { address, detail: causes(status) },
    }
}

fn unreachable(address: &str, detail: String) -> Error {
    Error::IssuerUnreachable { address: address.to_owned(), detail }
}
