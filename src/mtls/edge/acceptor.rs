//! `EdgeAcceptor`: the server's half of a handshake with the public.

use std::io;
use std::sync::Arc;

use rustls::server::{Acceptor, ClientHello};
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::challenges::{ALPN, Challenges};
use super::clients::not_after;
use super::{ClientRule, EdgeTls, Site, Sites};
use crate::mtls::{Error, Refusal};
use crate::rt::Live;

/// Accepts public connections: the server name decides who answers, under which rules.
#[derive(Clone, Debug)]
pub struct EdgeAcceptor {
    sites: Live<Sites>,
    tls: Arc<EdgeTls>,
    challenges: Option<Challenges>,
}

/// What a public handshake has settled.
#[derive(Debug)]
pub struct EdgeSession {
    /// Who answered.
    pub site: Arc<Site>,
    /// The sites that were in force.
    pub sites: Arc<Sites>,
    /// The server name, in lower case: the client's, or the fallback for a client that named none.
    pub name: Option<Box<str>>,
    /// Was the name the client's?
    pub is_named: bool,
    /// Until when the client's certificate proves it, seconds since 1970; `None` when it has proved nothing.
    pub proved_until: Option<i64>,
}

impl EdgeSession {
    /// Whose certificates the handshake asked for.
    pub fn rule(&self) -> Option<&ClientRule> {
        self.site.client().map(Arc::as_ref)
    }
}

/// Alerts that rustls does not send for us: fatal, `unrecognized_name` (RFC 6066) and `missing_extension` (RFC 8446).
const UNRECOGNIZED_NAME: u8 = 112;
const MISSING_EXTENSION: u8 = 109;

impl EdgeAcceptor {
    /// With the sites of each moment. Without `challenges`, no authority is answered.
    pub fn new(sites: Live<Sites>, tls: Arc<EdgeTls>, challenges: Option<Challenges>) -> Self {
        Self { sites, tls, challenges }
    }

    /// Shakes hands. The caller limits the time. `None` when an authority came with its challenge: then all is said.
    ///
    /// # Errors
    /// Nobody answers for the server name, the client did not show what it must, or the handshake failed.
    pub async fn accept<S>(&self, stream: S) -> Result<Option<(TlsStream<S>, EdgeSession)>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let start = match LazyConfigAcceptor::new(Acceptor::default(), stream).await {
            Ok(start) => start,
            Err(error) => return Err(failed(error)),
        };
        if let Some(challenges) = &self.challenges
            && let Some(config) = challenge(challenges, &start.client_hello())
        {
            let mut stream = start.into_stream(config).await.map_err(failed)?;
            // It has seen the certificate; RFC 8737 has nothing said after that.
            let _ = stream.shutdown().await;
            return Ok(None);
        }
        let sites = self.sites.load();
        let named: Option<Box<str>> =
            start.client_hello().server_name().map(|name| super::sites::folded(name).into());
        let is_named = named.is_some();
        let name = named.or_else(|| self.tls.fallback.clone());
        let site = match &name {
            Some(name) => sites.find(name),
            None => sites.any(),
        };
        let Some(site) = site.filter(|site| !site.is_closed()).cloned() else {
            let (alert, refusal) = match name {
                _ if sites.is_empty() => (UNRECOGNIZED_NAME, Refusal::NoPublicCertificate),
                Some(name) => (UNRECOGNIZED_NAME, Refusal::UnknownServerName { name }),
                None => (MISSING_EXTENSION, Refusal::NoServerName),
            };
            refuse(start, alert).await;
            return Err(Error::refused(refusal));
        };
        let stream = start.into_stream(site.config.clone()).await.map_err(failed)?;
        let proved_until = match site.client() {
            None => None,
            Some(rule) => proved(rule, stream.get_ref().1.peer_certificates()),
        };
        let session = EdgeSession { site, sites, name, is_named, proved_until };
        Ok(Some((stream, session)))
    }
}

/// An authority offers this one protocol, and the name of which it wants to know (RFC 8737 section 3).
fn challenge(
    challenges: &Challenges,
    hello: &ClientHello<'_>,
) -> Option<Arc<rustls::ServerConfig>> {
    let mut offered = hello.alpn()?;
    let asks = offered.next() == Some(ALPN) && offered.next().is_none();
    challenges.over_tls(hello.server_name().filter(|_| asks)?)
}

/// Until when the client is who it showed; what a lenient rule let pass in the handshake is judged here.
fn proved(
    rule: &ClientRule,
    shown: Option<&[rustls_pki_types::CertificateDer<'static>]>,
) -> Option<i64> {
    let (leaf, intermediates) = shown?.split_first()?;
    if rule.is_lenient() {
        rule.judge(leaf, intermediates, UnixTime::now()).ok()?;
    }
    not_after(leaf)
}

fn failed(error: io::Error) -> Error {
    match crate::mtls::refusal(&error) {
        Some(refusal) => Error::refused(refusal),
        None => Error::Network(error),
    }
}

/// Says why, as far as TLS has a word for it, and ends the connection.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(start: StartHandshake<S>, alert: u8) {
    let mut stream = start.io;
    let record = [21, 3, 3, 0, 2, 2, alert];
    // Who does not take it does not need it.
    if stream.write_all(&record).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}
