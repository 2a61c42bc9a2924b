//! Calls to a Kubernetes API server: one request a connection, bounded in time and size.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::uri::{Scheme, Uri};
use http_body_util::Full;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::settings::KubernetesSettings;
use crate::issuer::{Error, ProofFlaw};
use crate::mtls::{Alpn, connect_private};
use crate::rt::{Conversation, causes, whole};

const WITHIN: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// What a pod finds beside its own token.
const IN_POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A cluster's API server.
#[derive(Debug)]
pub(super) struct ApiServer {
    host: String,
    port: u16,
    is_tls: bool,
    ca_file: PathBuf,
    token_file: PathBuf,
}

impl ApiServer {
    /// As the settings name it.
    ///
    /// # Errors
    /// The address is missing, no URL, or plain HTTP to another machine.
    pub(super) fn new(settings: &KubernetesSettings) -> Result<Self, Error> {
        let wrong = |detail: String| Error::Kubernetes {
            cluster: settings.name.clone(),
            field: "api_server",
            detail,
        };
        let given = settings.api_server.clone().or_else(from_environment).ok_or_else(|| {
            wrong(
                "missing; expected https://host:port, or KUBERNETES_SERVICE_HOST as in a pod"
                    .into(),
            )
        })?;
        let shape = || wrong(format!("{given:?} is not https://host:port"));
        let url: Uri = given.parse().map_err(|_| shape())?;
        let (Some(scheme), Some(host)) = (url.scheme(), url.host()) else { return Err(shape()) };
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(shape());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_tls = *scheme == Scheme::HTTPS;
        let is_loopback = host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let is_local = *scheme == Scheme::HTTP && is_loopback;
        if !is_tls && !is_local {
            return Err(wrong(format!(
                "{given:?}: expected https; http is for loopback addresses only"
            )));
        }
        let beside = |given: &Option<PathBuf>, name: &str| {
            given.clone().unwrap_or_else(|| Path::new(IN_POD).join(name))
        };
        Ok(Self {
            port: url.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            host,
            is_tls,
            ca_file: beside(&settings.ca_file, "ca.crt"),
            token_file: beside(&settings.token_file, "token"),
        })
    }

    /// Asks, and reads the JSON of a good answer.
    ///
    /// # Errors
    /// [`ProofFlaw::Unavailable`] for everything that keeps us from an answer: it says nothing of the caller.
    pub(super) async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ProofFlaw> {
        let answer = match tokio::time::timeout(WITHIN, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", WITHIN.as_secs())),
        };
        answer.map_err(|detail| {
            tracing::error!(
                host = self.host,
                port = self.port,
                detail,
                "the Kubernetes API server gives no answer"
            );
            ProofFlaw::Unavailable { detail: format!("the API server: {detail}") }
        })
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, String> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        let _ = tcp.set_nodelay(true);
        if !self.is_tls {
            return self.over(tcp, method, path, body).await;
        }
        let roots = tokio::fs::read(&self.ca_file)
            .await
            .map_err(|error| format!("cannot read {}: {error}", self.ca_file.display()))?;
        let stream = connect_private(tcp, &self.host, &roots, Alpn::Http1)
            .await
            .map_err(|error| causes(&error))?;
        self.over(stream, method, path, body).await
    }

    async fn over<S>(
        &self,
        stream: S,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut conversation =
            Conversation::over(stream).await.map_err(|error| error.to_string())?;
        let host = match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        };
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host)
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, self.bearer().await?);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
        let answer = conversation.ask(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        if !status.is_success() {
            // Ours, not the caller's: 401 and 403 are about our own token and its rights.
            return Err(format!("it answers {method} {path} with {status}"));
        }
        let body = whole(answer.into_body(), MAX_ANSWER_BYTES);
        let body = body.await.map_err(|error| causes(&error))?;
        serde_json::from_slice(&body).map_err(|error| format!("its answer: {error}"))
    }

    /// Our own token; the kubelet replaces the file, so that it is read each time.
    async fn bearer(&self) -> Result<HeaderValue, String> {
        let path = &self.token_file;
        let token = tokio::fs::read_to_string(path)
            .await
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let token = Zeroizing::new(token);
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
            .map_err(|_| format!("{} holds no token", path.display()))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn from_environment() -> Option<String> {
    let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".into());
    Some(match host.contains(':') {
        true => format!("https://[{host}]:{port}"),
        false => format!("https://{host}:{port}"),
    })
}
