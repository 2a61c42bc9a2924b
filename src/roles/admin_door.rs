//! The Admin API's port: plain on loopback, or TLS with our SVID or with a certificate of a public name.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use zeroize::Zeroizing;

use super::proved::Proved;
use super::settings::{ControlSettings, Error as SettingError};
use crate::control::ControlPlane;
use crate::control::access::TlsSettings;
use crate::control::serve::{Greeted, Proven};
use crate::identity::Identity;
use crate::mtls::{Acceptor, Demand, PublicAcceptor, PublicCertificate, public_server_config};
use crate::rt::{DrainGuard, Live, Publisher, Tasks, causes};

/// How often the certificate's files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Bytes of a connection, whatever protects them.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for S {}

/// Do the settings keep the Admin API where its keys cannot be read on the way?
pub(super) fn check(control: &ControlSettings) -> Result<(), SettingError> {
    let wrong = |field, problem| Err(SettingError::Setting { field, problem });
    if let Err((field, problem)) = control.access.check() {
        return wrong(field, problem);
    }
    if control.access.tls.is_none() && !control.admin.ip().is_loopback() {
        let problem = format!(
            "{} is not on loopback: give control.access.tls ({{}} for our SVID, or certificate and key), or keep it on 127.0.0.1",
            control.admin
        );
        return wrong("control.admin", problem);
    }
    Ok(())
}

/// Serves the Admin API until the drain.
///
/// # Errors
/// The certificate cannot be used.
pub(super) fn serve(
    plane: Arc<ControlPlane>,
    listener: TcpListener,
    tls: Option<&TlsSettings>,
    identity: &Live<Identity>,
    drain: DrainGuard,
    tasks: &mut Tasks,
) -> Result<(), SettingError> {
    match tls {
        None => tasks.add(plane.serve(listener, drain)),
        Some(TlsSettings { certificate: Some(certificate), key: Some(key) }) => {
            let (certificate, key) = (certificate.clone(), key.clone());
            let first = read(&certificate, &key).map_err(|problem| SettingError::Setting {
                field: "control.access.tls",
                problem,
            })?;
            let (publisher, live) = Publisher::new(Some(first));
            tasks.add(async move { watch(&certificate, &key, publisher).await });
            let acceptor = PublicAcceptor::new(live);
            tasks.add(plane.serve_greeting(listener, drain, move |tcp, client| {
                let acceptor = acceptor.clone();
                async move { public(&acceptor, tcp, client).await }
            }));
        }
        Some(_) => {
            let (acceptor, identity) = (Acceptor::new(identity.clone()), identity.clone());
            tasks.add(plane.serve_greeting(listener, drain, move |tcp, client| {
                let (acceptor, identity) = (acceptor.clone(), identity.clone());
                async move { mutual(&acceptor, &identity, tcp, client).await }
            }));
        }
    }
    Ok(())
}

async fn public(
    acceptor: &PublicAcceptor,
    tcp: TcpStream,
    client: SocketAddr,
) -> Option<Greeted<Box<dyn Wire>>> {
    let _ = tcp.set_nodelay(true);
    match acceptor.accept(tcp).await {
        Ok(stream) => Some(Greeted { stream: Box::new(stream), proven: None }),
        Err(error) => {
            tracing::debug!(%client, %error, "a handshake with the Admin API failed");
            None
        }
    }
}

/// Whoever shows an SVID is who it says, as long as it is proved; whoever shows none needs a key. A certificate that is not
/// good is no way in.
async fn mutual(
    acceptor: &Acceptor,
    identity: &Live<Identity>,
    tcp: TcpStream,
    client: SocketAddr,
) -> Option<Greeted<Box<dyn Wire>>> {
    let _ = tcp.set_nodelay(true);
    let own = identity.load();
    let accepted = match acceptor.accept_demanding(tcp, Demand::IdentityIfAny).await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::warn!(%client, "the Admin API refused a handshake: {}", causes(&error));
            return None;
        }
    };
    if accepted.let_in.is_some() {
        tracing::warn!(%client, "the Admin API refused a certificate that is not good");
        return None;
    }
    let Some(peer) = accepted.peer else {
        return Some(Greeted { stream: Box::new(accepted.stream), proven: None });
    };
    let proven = Some(Proven(peer.id.clone()));
    let stream = Proved::new(accepted.stream, peer, &own, identity.clone());
    Some(Greeted { stream: Box::new(stream), proven })
}

type PublicConfig = Arc<rustls::ServerConfig>;

fn read(certificate: &Path, key: &Path) -> Result<PublicConfig, String> {
    let bytes =
        |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let (chain, key) = (bytes(certificate)?, Zeroizing::new(bytes(key)?));
    PublicCertificate::from_pem(["*"], &chain, &key)
        .and_then(public_server_config)
        .map_err(|error| format!("{}: {}", certificate.display(), causes(&error)))
}

/// Takes renewed files. One that cannot be used changes nothing, and is looked at again: its key may come a moment later.
async fn watch(certificate: &Path, key: &Path, publisher: Publisher<Option<PublicConfig>>) {
    let stamp = |path: &Path| -> Option<(u64, SystemTime)> {
        let seen = std::fs::metadata(path).ok()?;
        Some((seen.len(), seen.modified().ok()?))
    };
    let look = || (stamp(certificate), stamp(key));
    let mut seen = look();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let found = look();
        if found == seen {
            continue;
        }
        match read(certificate, key) {
            Ok(config) => {
                publisher.set(Some(config));
                tracing::info!("the Admin API's certificate was renewed");
                seen = found;
            }
            Err(problem) => tracing::warn!(problem, "the Admin API keeps its certificate"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(text: &str) -> ControlSettings {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn beyond_loopback_it_speaks_tls() {
        for lawful in [
            "{}",
            r#"{"admin": "127.0.0.1:0"}"#,
            r#"{"admin": "[::1]:9180"}"#,
            r#"{"admin": "0.0.0.0:9180", "access": {"tls": {}}}"#,
        ] {
            assert!(check(&control(lawful)).is_ok(), "{lawful}");
        }
        for open in [r#"{"admin": "0.0.0.0:9180"}"#, r#"{"admin": "10.0.0.1:9180"}"#] {
            let error = check(&control(open)).unwrap_err().to_string();
            assert!(
                error.contains("control.admin") && error.contains("control.access.tls"),
                "{error}"
            );
        }
    }
}
