//! `Site`: one `ssl` resource, ready to shake hands.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::clients::Judge;
use super::{ClientRule, EdgeTls};
use crate::model::{Id, Ssl};
use crate::mtls::{Error, PublicCertificate};

/// What ids of certificates that an authority gave us by ACME begin with. What is declared for a name goes before them.
const OBTAINED: &str = "acme.";

/// An `ssl` resource of type `server`, compiled: its names, its certificates, its clients, and one TLS configuration.
///
/// Sessions are resumed within one site of one revision, and never where client certificates are asked for.
#[derive(Debug)]
pub struct Site {
    id: Box<str>,
    names: Vec<String>,
    certificates: Arc<[Arc<PublicCertificate>]>,
    client: Option<Arc<ClientRule>>,
    is_closed: bool,
    pub(super) config: Arc<ServerConfig>,
}

impl Site {
    /// Compiles a resource. Certificates of `before` (the resource's last version and what was made of it) are taken over where
    /// nothing of them changed, with what was stapled to them.
    ///
    /// # Errors
    /// A name is none, a certificate or key cannot be used, two do not belong together, or `client` or `ssl_protocols` ask for
    /// what is not there. The error says which.
    pub fn compile(
        id: &Id,
        ssl: &Ssl,
        tls: &EdgeTls,
        before: Option<(&Ssl, &Self)>,
    ) -> Result<Self, Error> {
        let names: Vec<&str> = ssl.names().iter().collect();
        let wrong = |detail: String| Error::PublicCertificate { names: names.join(", "), detail };
        if ssl.certs.len() != ssl.keys.len() {
            return Err(wrong("mismatched number of certs and keys".into()));
        }
        let before = before.filter(|(old, _)| old.names().iter().eq(names.iter().copied()));
        let mut certificates = Vec::new();
        for (chain, key) in ssl.pairs() {
            let held = before.and_then(|(old, site)| {
                let at = old.pairs().position(|pair| pair == (chain, key))?;
                site.certificates.iter().find(|made| made.pair() == at).cloned()
            });
            let made = match held {
                Some(held) => held,
                None => {
                    let key = key.reveal().as_bytes();
                    let made = PublicCertificate::from_pem(&names, chain.as_bytes(), key)?;
                    Arc::new(made.of_resource(Some(id.as_str())).of_pair(certificates.len()))
                }
            };
            certificates.push(made);
        }
        // What costs us least first: the first that the client can verify is shown.
        certificates.sort_by_key(|certificate| certificate.is_rsa());
        let client = ssl.client.as_ref().map(ClientRule::compile).transpose().map_err(wrong)?;
        let (certificates, client) = (Arc::from(certificates), client.map(Arc::new));
        let config = config(ssl, tls, &certificates, client.as_ref(), wrong)?;
        let names = names.into_iter().map(super::sites::folded).collect();
        Ok(Self { id: id.as_str().into(), names, certificates, client, is_closed: false, config })
    }

    /// Stands in the place of a resource that cannot be compiled: nobody answers for its names, whoever would for a pattern that
    /// covers them. What it would have asked of clients nobody else asks. `None` when none of its names is one.
    pub fn closed(id: &Id, ssl: &Ssl, tls: &EdgeTls) -> Option<Self> {
        let names = ssl.names();
        let names = names.iter().filter(|name| is_name(name)).map(super::sites::folded);
        let names: Vec<String> = names.collect();
        if names.is_empty() {
            return None;
        }
        let certificates = Arc::from(Vec::new());
        let bare = Ssl { ssl_protocols: None, ..ssl.clone() };
        let wrong = |detail| Error::PublicCertificate { names: String::new(), detail };
        let config = config(&bare, tls, &certificates, None, wrong).ok()?;
        let id = id.as_str().into();
        Some(Self { id, names, certificates, client: None, is_closed: true, config })
    }

    /// Does nobody answer for its names?
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The resource's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its server names, in lower case.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Its certificates.
    pub fn certificates(&self) -> &[Arc<PublicCertificate>] {
        &self.certificates
    }

    /// Whose certificates clients must show.
    pub fn client(&self) -> Option<&Arc<ClientRule>> {
        self.client.as_ref()
    }

    /// Is each of its certificates one for this host (RFC 6125)? `host` is in lower case, without port.
    pub fn covers(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let address: Option<IpAddr> = bare.parse().ok();
        self.certificates.iter().all(|certificate| certificate.covers(host, address))
    }

    /// Of several sites with one name the first in this order is taken.
    pub(super) fn order(&self) -> (bool, &str) {
        (self.id.starts_with(OBTAINED), &self.id)
    }
}

fn config(
    ssl: &Ssl,
    tls: &EdgeTls,
    certificates: &Arc<[Arc<PublicCertificate>]>,
    client: Option<&Arc<ClientRule>>,
    wrong: impl Fn(String) -> Error,
) -> Result<Arc<ServerConfig>, Error> {
    let versions = tls
        .versions(ssl.ssl_protocols.as_deref())
        .map_err(|problem| wrong(format!("ssl_protocols: {problem}")))?;
    let builder = ServerConfig::builder_with_provider(tls.provider.clone())
        .with_protocol_versions(&versions)
        .map_err(Error::Own)?;
    let shown = Arc::new(Shown(certificates.clone()));
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(rule) => builder.with_client_cert_verifier(Arc::new(Judge(rule.clone()))),
    }
    .with_cert_resolver(shown);
    config.alpn_protocols.clone_from(&tls.alpn);
    config.max_early_data_size = 0;
    // Tickets hold the sessions; a store for each of thousands of sites would only take memory.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if client.is_some() {
        // A resumed session would skip the verifier.
        config.send_tls13_tickets = 0;
    } else {
        // Nobody's identity is in such a session, so that resuming it saves two signatures and skips no check.
        config.ticketer = crate::rt::crypto::tls_ticketer().map_err(Error::Own)?;
    }
    Ok(Arc::new(config))
}

/// Of the certificates of a site the first whose signature the client can verify.
#[derive(Debug)]
struct Shown(Arc<[Arc<PublicCertificate>]>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // These are without the schemes that the cipher suites of a TLS 1.2 client rule out.
        let schemes = hello.signature_schemes();
        let keys = || self.0.iter().map(|certificate| certificate.shown());
        keys().find(|key| key.key.choose_scheme(schemes).is_some()).or_else(|| keys().next())
    }
}

/// `*`, or labels of which only the first may be a lone star.
pub(in crate::mtls) fn is_name(name: &str) -> bool {
    let rest = match name {
        "*" => return true,
        _ => name.strip_prefix("*.").unwrap_or(name),
    };
    let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    rest.len() <= 253 && rest.split('.').all(|label| !label.is_empty() && label.bytes().all(byte))
}
