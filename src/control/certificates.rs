//! May this `ssl` resource stand? In the order and the words of APISIX, where it has any.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::validate::{at, in_configuration};
use crate::model::{Borne, Id, Invalid, Redacted, SecretReference, Ssl, SslType, TlsVersion};
use crate::rt::crypto::tls_signing_key;

/// Certificates that an ingress has from an authority have such ids; what is declared must not be taken for one.
pub(super) fn lawful_id(id: &Id) -> Result<(), Invalid> {
    match id.as_str().starts_with("acme.") {
        false => Ok(()),
        true => {
            let why = "ids that begin with acme. belong to certificates that an ingress obtains";
            Err(in_configuration(at("id", why)))
        }
    }
}

/// What a schema cannot say: each certificate and its key can be read and belong together, and so on.
///
/// What references to secrets stand for is not known here: data planes judge it, and only the references are judged.
pub(super) fn sensible(ssl: &Ssl) -> Result<(), Invalid> {
    for Borne { field, reference } in ssl.references() {
        reference.map_err(|why| in_configuration(at(&field, why)))?;
    }
    fits(&ssl.cert, &ssl.key)?;
    if ssl.certs.len() != ssl.keys.len() {
        return Err(Invalid::new("mismatched number of certs and keys"));
    }
    for (index, (chain, key)) in ssl.pairs().skip(1).enumerate() {
        fits(chain, key).map_err(|why| {
            Invalid(format!("failed to handle cert-key pair[{}]: {why}", index + 1))
        })?;
    }
    if ssl.ssl_type == SslType::Client {
        return no_server(ssl);
    }
    if let Some(client) = &ssl.client {
        known_chain(&client.ca)
            .map_err(|why| Invalid(format!("failed to validate client_cert: {why}")))?;
    }
    let asked = ssl.ssl_protocols.as_deref();
    if asked.is_some_and(|asked| asked.contains(&TlsVersion::Tls11)) {
        let why =
            "\"TLSv1.1\" is not supported by Wardgate (RFC 8996); expected TLSv1.2 or TLSv1.3";
        return Err(in_configuration(at("ssl_protocols", why)));
    }
    if asked.is_some_and(<[_]>::is_empty) {
        let why = "expect array to have at least 1 items";
        return Err(in_configuration(at("ssl_protocols", why)));
    }
    Ok(())
}

/// What says something of a listener alone means nothing on a certificate for upstreams; nobody may think that it does.
/// Names are let pass, as clients of APISIX send them with both types.
fn no_server(ssl: &Ssl) -> Result<(), Invalid> {
    let found = [
        ("client", ssl.client.is_some()),
        ("ssl_protocols", ssl.ssl_protocols.is_some()),
        ("certs", !ssl.certs.is_empty()),
    ];
    match found.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((field, _)) => {
            let why = "it has no meaning on a certificate of type client";
            Err(in_configuration(at(field, why)))
        }
    }
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let chain = chain.map_err(|error| Invalid(format!("failed to parse cert: {error}")))?;
    if chain.is_empty() {
        return Err(Invalid::new("failed to parse cert: no PEM certificate in it"));
    }
    Ok(chain)
}

/// As [`chain`]; nothing of a reference.
fn known_chain(pem: &str) -> Result<Option<Vec<CertificateDer<'static>>>, Invalid> {
    match SecretReference::of(pem) {
        Some(_) => Ok(None),
        None => chain(pem).map(Some),
    }
}

fn fits(pem: &str, key: &Redacted<String>) -> Result<(), Invalid> {
    let chain = known_chain(pem)?;
    if SecretReference::of(key.reveal()).is_some() {
        return Ok(());
    }
    // Never the cause: it could show a part of the key.
    let key = PrivateKeyDer::from_pem_slice(key.reveal().as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| Invalid::new("failed to parse key: expected one PEM private key"))?;
    let Some(chain) = chain else { return Ok(()) };
    tls_signing_key(&key)
        .and_then(|key| rustls::sign::CertifiedKey::new(chain, key).keys_match())
        .map_err(|error| Invalid(format!("cert and key cannot be used together: {error}")))
}
