//! The proxy's inbound side: each case is a client that knocks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Case, Credential, Error, Fixtures, Row, Seen, tls};

/// The proxy's inbound listener, and what to ask it.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// Where it listens.
    pub target: SocketAddr,
    /// The path of the request.
    pub path: String,
    /// The Host of the request.
    pub host: String,
    /// The server name of the handshake; none is sent when not given.
    pub server_name: Option<ServerName<'static>>,
    /// How long one exchange may take.
    pub patience: Duration,
}

impl Inbound {
    /// Presents the first case, which must be taken: before that, refusals prove nothing.
    ///
    /// # Errors
    /// It is not taken.
    pub async fn baseline(&self, fixtures: &Fixtures) -> Result<(), Error> {
        match self.try_case(&super::CASES[0], fixtures).await?.seen {
            Seen::Accepted(_) => Ok(()),
            other => Err(Error::Baseline { side: "inbound", seen: other.to_string() }),
        }
    }

    /// Presents one case and tells what became of it.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub async fn try_case(&self, case: &'static Case, fixtures: &Fixtures) -> Result<Row, Error> {
        let seen = self.knock(case.client(fixtures)?).await?;
        Ok(Row { side: "inbound", case, seen })
    }

    async fn knock(&self, credential: Credential) -> Result<Seen, Error> {
        let mut config = tls::client(credential, &["http/1.1"])?;
        config.enable_sni = self.server_name.is_some();
        let name = self.server_name.clone().unwrap_or_else(|| self.target.ip().into());
        let exchange = async {
            let tcp = match TcpStream::connect(self.target).await {
                Ok(tcp) => tcp,
                Err(error) => return Seen::Unclear(format!("cannot connect: {error}")),
            };
            match TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
                Ok(stream) => self.ask(stream).await,
                Err(error) => refusal(&error),
            }
        };
        let seen = timeout(self.patience, exchange).await;
        Ok(seen.unwrap_or_else(|_| Seen::Unclear("no answer in time".into())))
    }

    /// In TLS 1.3 a client has finished before the server judges its certificate, so that only an answer tells.
    async fn ask(&self, mut stream: tokio_rustls::client::TlsStream<TcpStream>) -> Seen {
        let request = format!(
            "GET {} HTTP/1.1\r\nhost: {}\r\nuser-agent: wardgate-conformance\r\nconnection: close\r\n\r\n",
            self.path, self.host
        );
        // Who refuses may have closed already: reading tells why.
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.flush().await;
        let mut head = Vec::new();
        let mut bytes = [0; 1024];
        loop {
            match stream.read(&mut bytes).await {
                Ok(0) => return Seen::Refused("closed without an answer".into()),
                Ok(count) => head.extend_from_slice(&bytes[..count]),
                Err(error) => return refusal(&error),
            }
            if let Some(seen) = judge(&head) {
                return seen;
            }
        }
    }
}

/// The status line tells; `None` while it is not complete.
fn judge(head: &[u8]) -> Option<Seen> {
    if !head.starts_with(&b"HTTP/1."[..head.len().min(7)]) {
        return Some(Seen::Unclear("the answer is not HTTP/1".into()));
    }
    let status = std::str::from_utf8(head.get(9..12)?).ok().and_then(|text| text.parse().ok());
    let Some(status) = status else {
        return Some(Seen::Unclear("the answer has no status".into()));
    };
    Some(match status {
        // Some proxies finish every handshake and refuse in HTTP; 495 and 496 are nginx's own.
        400 | 401 | 403 | 421 | 495 | 496 => Seen::Refused(format!("HTTP {status}")),
        _ => Seen::Accepted(format!("HTTP {status}")),
    })
}

/// What an error of the stream says about the other end.
pub(super) fn refusal(error: &io::Error) -> Seen {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => return Seen::Refused("closed".into()),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => return Seen::Refused("reset".into()),
        _ => {}
    }
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) => match alert.as_str() {
            Some(name) => Seen::Refused(format!("alert {name}")),
            None => Seen::Refused(format!("alert {}", u8::from(*alert))),
        },
        _ => Seen::Unclear(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_by_its_status_alone() {
        let seen = |head: &str| judge(head.as_bytes());
        assert_eq!(seen("HTTP/1.1 20"), None);
        assert_eq!(seen("HTTP/1.1 200 OK\r\n"), Some(Seen::Accepted("HTTP 200".into())));
        assert_eq!(seen("HTTP/1.1 502 Bad"), Some(Seen::Accepted("HTTP 502".into())));
        assert_eq!(seen("HTTP/1.1 403 no\r\n"), Some(Seen::Refused("HTTP 403".into())));
        assert!(matches!(seen("SSH-2.0-x"), Some(Seen::Unclear(_))));
        assert!(matches!(seen("HTTP/1.1 abc"), Some(Seen::Unclear(_))));
    }

    #[test]
    fn an_alert_is_a_refusal_and_our_own_failure_is_not() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::BadCertificate);
        let seen = refusal(&io::Error::other(alert));
        assert_eq!(seen, Seen::Refused("alert BadCertificate".into()));
        let own = refusal(&io::Error::other(rustls::Error::FailedToGetCurrentTime));
        assert!(matches!(own, Seen::Unclear(_)));
    }
}
