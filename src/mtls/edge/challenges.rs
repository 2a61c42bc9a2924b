//! `Challenges`: what we answer an authority that wants to see that a name is ours (RFC 8555 section 8, RFC 8737).

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::mtls::Error;
use crate::mtls::provider::{certified, provider};

/// The answers of the moment. Clones share them; whoever looks takes no lock.
#[derive(Clone, Debug, Default)]
pub struct Challenges(Arc<ArcSwap<Held>>);

#[derive(Clone, Debug, Default)]
struct Held {
    /// By token.
    http: HashMap<String, Arc<str>>,
    /// By name, in lower case.
    tls: HashMap<String, Arc<ServerConfig>>,
}

/// Where an authority asks over plain HTTP; its token follows.
const WELL_KNOWN: &str = "/.well-known/acme-challenge/";
/// The protocol in which it asks over TLS.
pub(super) const ALPN: &[u8] = b"acme-tls/1";

impl Challenges {
    /// Answers for this token over HTTP from now on.
    pub fn offer_http(&self, token: &str, key_authorization: &str) {
        self.change(|held| {
            held.http.insert(token.to_owned(), key_authorization.into());
        });
    }

    /// Answers for this name over TLS from now on. `digest` is SHA-256 of the key authorization.
    ///
    /// # Errors
    /// No certificate can be made for the name.
    pub fn offer_tls(&self, name: &str, digest: &[u8; 32]) -> Result<(), Error> {
        let config = certificate(name, digest)?;
        self.change(|held| {
            held.tls.insert(name.to_ascii_lowercase(), config.clone());
        });
        Ok(())
    }

    /// Answers for this token no longer.
    pub fn withdraw_http(&self, token: &str) {
        self.change(|held| {
            held.http.remove(token);
        });
    }

    /// Answers for this name over TLS no longer.
    pub fn withdraw_tls(&self, name: &str) {
        self.change(|held| {
            held.tls.remove(&name.to_ascii_lowercase());
        });
    }

    /// What a request for this path is answered with, where it is one of ours.
    pub fn over_http(&self, path: &str) -> Option<Arc<str>> {
        let token = path.strip_prefix(WELL_KNOWN)?;
        self.0.load().http.get(token).cloned()
    }

    pub(super) fn over_tls(&self, name: &str) -> Option<Arc<ServerConfig>> {
        self.0.load().tls.get(name).cloned()
    }

    fn change(&self, change: impl Fn(&mut Held)) {
        self.0.rcu(|held| {
            let mut held = Held::clone(held);
            change(&mut held);
            held
        });
    }
}

/// A certificate that says nothing but the answer (RFC 8737 section 3).
fn certificate(name: &str, digest: &[u8; 32]) -> Result<Arc<ServerConfig>, Error> {
    let wrong = |error: rcgen::Error| Error::PublicCertificate {
        names: name.to_owned(),
        detail: format!("no certificate for tls-alpn-01 can be made: {error}"),
    };
    let mut params = CertificateParams::new([name.to_owned()]).map_err(wrong)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(wrong)?;
    let signed = params.self_signed(&key).map_err(wrong)?;
    let der = Zeroizing::new(key.serialize_der());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(&der[..]));
    let own = SingleCertAndKey::from(certified(vec![signed.der().clone()], &key)?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(Error::Own)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(own));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}
