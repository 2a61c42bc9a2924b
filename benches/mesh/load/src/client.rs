//! A client of HTTP/1.1 that believes nothing: status and length of each answer must be the expected ones.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::options::{Options, Tls};

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where requests go, and what they are.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    pub request: Arc<[u8]>,
    /// Bytes of each answer's body.
    pub size: u64,
}

impl Target {
    /// `close` asks the server to end the connection after its answer.
    pub fn new(options: &Options, close: bool) -> Result<Self, String> {
        let ending = if close { "Connection: close\r\n" } else { "" };
        let (path, host) = (options.path(), options.host());
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{ending}\r\n").into_bytes();
        let tls = options.tls().map(|tls| connector(&tls)).transpose()?;
        Ok(Self { address: options.to()?, tls, request: request.into(), size: options.size()? })
    }

    pub async fn connect(&self) -> Result<Connection, String> {
        let tcp = TcpStream::connect(self.address).await.map_err(|error| format!("connect: {error}"))?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some((connector, name)) => {
                let shaken = connector.connect(name.clone(), tcp).await;
                Box::new(shaken.map_err(|error| format!("handshake: {error}"))?)
            }
        };
        Ok(Connection { stream, buffer: Vec::new() })
    }
}

/// Full handshakes only: nothing is resumed.
fn connector(tls: &Tls) -> Result<(TlsConnector, ServerName<'static>), String> {
    let text = |error: &dyn std::fmt::Display| format!("{}: {error}", tls.folder.display());
    let mut roots = RootCertStore::empty();
    let bundle = CertificateDer::pem_file_iter(tls.folder.join("bundle.pem")).map_err(|error| text(&error))?;
    for certificate in bundle {
        roots.add(certificate.map_err(|error| text(&error))?).map_err(|error| text(&error))?;
    }
    let file = |ending: &str| tls.folder.join(format!("{}.{ending}", tls.client));
    let chain = CertificateDer::pem_file_iter(file("pem")).map_err(|error| text(&error))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|error| text(&error))?;
    let key = PrivateKeyDer::from_pem_file(file("key")).map_err(|error| text(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| text(&error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| text(&error))?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(tls.server.clone()).map_err(|error| text(&error))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

pub struct Connection {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Connection {
    /// One request and its whole answer.
    pub async fn ask(&mut self, target: &Target) -> Result<(), String> {
        if self.buffer.is_empty() {
            // Large enough that reading 100 MiB costs the load little.
            self.buffer.resize(if target.size > 1 << 20 { 256 << 10 } else { 16 << 10 }, 0);
        }
        self.stream.write_all(&target.request).await.map_err(|error| format!("write: {error}"))?;
        self.stream.flush().await.map_err(|error| format!("flush: {error}"))?;
        let mut filled = 0;
        let head = loop {
            filled += read_some(&mut self.stream, &mut self.buffer[filled..]).await?;
            if let Some(head) = head_of(&self.buffer[..filled], target.size)? {
                break head;
            }
            if filled == self.buffer.len() {
                return Err("an answer's head does not end".to_owned());
            }
        };
        let mut left = (head as u64 + target.size).checked_sub(filled as u64).ok_or("more than the answer came")?;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            left -= read_some(&mut self.stream, &mut self.buffer[..want]).await? as u64;
        }
        Ok(())
    }

    /// Waits for the server's end.
    pub async fn until_closed(&mut self) {
        let mut rest = [0; 256];
        while matches!(self.stream.read(&mut rest).await, Ok(count) if count > 0) {}
    }

    /// Gives back what only busy connections need.
    pub fn rest(&mut self) {
        self.buffer = Vec::new();
    }
}

async fn read_some(stream: &mut Box<dyn Stream>, buffer: &mut [u8]) -> Result<usize, String> {
    match stream.read(buffer).await {
        Ok(0) => Err("the connection ended within an answer".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("read: {error}")),
    }
}

/// The length of the head, once it is whole: it must say 200 and announce `size` bytes.
pub fn head_of(bytes: &[u8], size: u64) -> Result<Option<usize>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = &bytes[..end];
    if !head.starts_with(b"HTTP/1.1 200") {
        return Err(format!("no 200: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(400)])));
    }
    let lengths = head.split(|byte| *byte == b'\n').filter_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        name.eq_ignore_ascii_case(b"content-length:").then_some(value)
    });
    let told = lengths.last().and_then(|value| str::from_utf8(value).ok()?.trim().parse::<u64>().ok());
    if told != Some(size) {
        return Err(format!("expected {size} bytes: {}", String::from_utf8_lossy(head)));
    }
    Ok(Some(end + 4))
}
