//! HTTP towards an authority: one connection a request, HTTPS alone, bounded in time and bytes.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;

use crate::mtls::connect_web;
use crate::rt::Tasks;

/// One exchange, from the name to the last byte.
const WITHIN: Duration = Duration::from_secs(30);
/// Bytes of an answer: a chain of certificates is a few thousand.
const MAX_ANSWER: usize = 256 * 1024;

/// What carries requests to the authority.
#[derive(Clone, Default)]
pub(super) struct Transport {
    /// Who vouches for the authority; the system's authorities when none are named.
    authorities: Option<Arc<[CertificateDer<'static>]>>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0} is no https:// URL")]
    Url(Uri),
    #[error("{host} cannot be resolved")]
    Resolve { host: String, source: std::io::Error },
    #[error("{host} cannot be reached")]
    Connect { host: String, source: std::io::Error },
    #[error("{host} cannot be trusted, or does not speak TLS")]
    Tls { host: String, source: crate::mtls::Error },
    #[error("the exchange with {host} failed")]
    Exchange { host: String, source: hyper::Error },
    #[error("the answer of {host} broke off or is longer than {MAX_ANSWER} bytes")]
    Body { host: String },
    #[error("{host} did not answer within {WITHIN:?}")]
    Late { host: String },
}

impl Transport {
    pub(super) fn trusting(authorities: Option<Vec<CertificateDer<'static>>>) -> Self {
        Self { authorities: authorities.map(Into::into) }
    }

    async fn exchange(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        match tokio::time::timeout(WITHIN, self.send(&host, request)).await {
            Ok(done) => done,
            Err(_) => Err(Error::Late { host }),
        }
    }

    async fn send(
        self,
        host: &str,
        mut request: Request<BodyWrapper<Bytes>>,
    ) -> Result<BytesResponse, Error> {
        let named = || host.to_owned();
        let url = request.uri().clone();
        let authority = url.authority().filter(|_| url.scheme_str() == Some("https"));
        let authority = authority.ok_or_else(|| Error::Url(url.clone()))?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(443);
        let resolved = tokio::net::lookup_host((bare, port)).await;
        let resolved: Vec<SocketAddr> =
            resolved.map_err(|source| Error::Resolve { host: named(), source })?.collect();
        let tcp = TcpStream::connect(&resolved[..])
            .await
            .map_err(|source| Error::Connect { host: named(), source })?;
        let tls = connect_web(tcp, host, self.authorities.as_deref())
            .await
            .map_err(|source| Error::Tls { host: named(), source })?;
        let failed = |source| Error::Exchange { host: named(), source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(failed)?;
        let mut driver = Tasks::new();
        driver.add(async move { drop(connection.await) });
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            request.headers_mut().insert(HOST, host);
        }
        let target = url.path_and_query().map_or("/", PathAndQuery::as_str);
        *request.uri_mut() = target.parse().map_err(|_| Error::Url(url.clone()))?;
        let (parts, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|_| Error::Body { host: named() })?.to_bytes();
        Ok(BytesResponse { parts, body: Box::new(body) })
    }
}

impl HttpClient for Transport {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let exchange = self.clone().exchange(request);
        Box::pin(async move {
            exchange.await.map_err(|error| instant_acme::Error::Other(Box::new(error)))
        })
    }
}
