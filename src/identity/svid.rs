//! `Svid`: our own X.509-SVID, checked before it is used.

use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use super::chain::{Leaf, check_sizes};
use super::{Error, Flaw, Presented, Purpose, SpiffeId};

/// An X.509-SVID with its private key. Debug output never shows the key; dropping it wipes the key.
pub struct Svid {
    /// Whom it names.
    pub id: SpiffeId,
    /// The chain, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key, PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// The leaf's serial number, lower-case hexadecimal.
    pub serial: String,
    /// Start of validity, seconds since 1970.
    pub not_before: i64,
    /// End of validity, seconds since 1970.
    pub not_after: i64,
}

impl Svid {
    /// Takes a chain, leaf first, and the leaf's private key.
    ///
    /// Checked is all that needs no authority and no clock: the leaf is an X.509-SVID for both directions, each next
    /// certificate is an authority that bears the issuer's name, and the key belongs to the leaf. A root at the end is
    /// left out: peers ignore it, and handshakes are shorter without.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn new(
        mut chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, Error> {
        // Wiped also when a rule below refuses it.
        let key = Zeroizing::new(key);
        check_sizes(chain.iter())?;
        let leaf =
            Leaf::read(chain.first().ok_or(Flaw::NoCertificate)?, &mut Presented::default())?;
        leaf.allows(Purpose::Server)?;
        leaf.allows(Purpose::Client)?;
        if check_order(&chain)? {
            chain.pop();
        }
        let pair = rcgen::KeyPair::try_from(&*key).map(Zeroizing::new).map_err(|_| Error::Key)?;
        if pair.public_key_raw() != leaf.public_key {
            return Err(Error::KeyMismatch);
        }
        Ok(Self {
            id: leaf.id,
            chain,
            key: key.clone_key(),
            serial: leaf.serial,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        })
    }

    /// From PEM: the certificates leaf first, and one private key.
    ///
    /// # Errors
    /// The PEM holds something else, or [`Svid::new`] refuses it.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| Error::Pem {
            expected: "one unencrypted private key",
            found: error.to_string(),
        })?;
        Self::new(chain, key)
    }

    /// From DER as the Workload API carries it: certificates one after another, and a PKCS#8 key.
    ///
    /// # Errors
    /// A part is not DER, bytes trail, or [`Svid::new`] refuses it.
    pub fn from_der(chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        let chain = concatenated(chain).map_err(|_| Flaw::Malformed { detail: "the chain" })?;
        Self::new(chain, PrivateKeyDer::Pkcs8(key.to_vec().into()))
    }

    /// How long it lives altogether.
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.not_after - self.not_before).unwrap_or(0))
    }

    /// The seconds until peers begin to refuse it; negative when that was in the past.
    pub fn seconds_left(&self, now: i64) -> i64 {
        self.not_after - now
    }

    /// The chain as PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|certificate| pem_text("CERTIFICATE", certificate)).collect()
    }

    /// The private key as PEM. The caller keeps it secret; it is wiped when dropped.
    pub fn key_pem(&self) -> Zeroizing<String> {
        let label = match self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        Zeroizing::new(pem_text(label, self.key.secret_der()))
    }
}

impl Clone for Svid {
    fn clone(&self) -> Self {
        Self {
            id: self.id.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            serial: self.serial.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }
}

impl Drop for Svid {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// When to renew a certificate: at half its `lifetime`, up to a tenth of that earlier, so that a fleet does not renew at once.
///
/// `spread` is in 0.0..=1.0; what lies outside is clamped. The result counts from the start of validity.
/// ```
/// # use std::time::Duration;
/// # use wardgate::identity::renew_after;
/// assert_eq!(renew_after(Duration::from_secs(3600), 0.0), Duration::from_secs(1800));
/// assert_eq!(renew_after(Duration::from_secs(3600), 1.0), Duration::from_secs(1620));
/// ```
pub fn renew_after(lifetime: Duration, spread: f64) -> Duration {
    let spread = if spread.is_nan() { 0.0 } else { spread.clamp(0.0, 1.0) };
    (lifetime / 2).mul_f64(1.0 - spread / 10.0)
}

/// Each certificate is issued by the next, by name; signatures are judged with the bundle. Is the last one a root?
fn check_order(chain: &[CertificateDer<'_>]) -> Result<bool, Error> {
    let mut issuer: Option<Vec<u8>> = None;
    let mut ends_with_root = false;
    for (at, der) in chain.iter().enumerate() {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|_| Flaw::Malformed { detail: "a certificate of the chain" })?;
        let fits = issuer.is_none_or(|issuer| issuer == certificate.subject().as_raw());
        if !fits || ends_with_root {
            return Err(Error::ChainOrder { position: at + 1 });
        }
        if at > 0 && !certificate.is_ca() {
            return Err(Flaw::NotAnAuthority.into());
        }
        ends_with_root = at > 0 && certificate.subject().as_raw() == certificate.issuer().as_raw();
        issuer = Some(certificate.issuer().as_raw().to_vec());
    }
    Ok(ends_with_root)
}

/// All certificates of a PEM text; other sections are passed over.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let expected = "at least one certificate";
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::Pem { expected, found: error.to_string() })?;
    if found.is_empty() {
        return Err(Error::Pem { expected, found: "none".into() });
    }
    Ok(found)
}

/// DER certificates one after another, nothing between or after them. An error is the position, from 1, that is none.
pub(super) fn concatenated(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, usize> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|_| found.len() + 1)?;
        found.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
        der = rest;
    }
    Ok(found)
}

/// RFC 7468 text: 64 columns.
pub(super) fn pem_text(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let body = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 64);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;

    use super::*;
    use crate::identity::forge::{Forge, Signed, leaf};

    const ID: &str = "spiffe://a.test/web";

    #[test]
    fn an_svid_survives_pem_and_der_and_never_prints_its_key() {
        let a = Forge::new("a.test");
        let svid = a.svid("/web");
        let again = Svid::from_pem(svid.chain_pem().as_bytes(), svid.key_pem().as_bytes()).unwrap();
        assert_eq!((&again.id, &again.chain), (&svid.id, &svid.chain));
        assert_eq!(again.key.secret_der(), svid.key.secret_der());
        let der: Vec<u8> = svid.chain.iter().flat_map(|one| one.to_vec()).collect();
        let again = Svid::from_der(&der, svid.key.secret_der()).unwrap();
        assert_eq!(again.chain, svid.chain);
        let shown = format!("{svid:?}");
        assert!(shown.contains(ID) && !shown.contains("key"), "{shown}");
    }

    #[test]
    fn what_peers_would_refuse_is_refused_at_home_first() {
        let a = Forge::new("a.test");
        let b = Forge::new("b.test");
        let refused = |chain: Vec<CertificateDer<'static>>, key: KeyPair| {
            Svid::new(chain, key.into()).unwrap_err().to_string()
        };
        let Signed { chain, .. } = a.sign(&leaf(ID));
        let other = KeyPair::generate().unwrap();
        assert!(refused(chain, other).contains("does not belong to the leaf"));

        let Signed { mut chain, key } = a.sign(&leaf(ID));
        chain[1] = b.intermediate.clone();
        assert!(refused(chain, key).contains("certificate 2 of the chain did not issue"));

        let Signed { mut chain, key } = a.sign(&leaf(ID));
        chain.reverse();
        assert!(refused(chain, key).contains("belongs to an authority"), "wrong order");

        let Signed { key, .. } = a.sign(&leaf(ID));
        assert!(refused(vec![], key).contains("no certificate"));

        let mut one_way = leaf(ID);
        one_way.extended_key_usages.pop();
        let Signed { chain, key } = a.sign(&one_way);
        assert!(refused(chain, key).contains("client authentication"));

        let Signed { mut chain, key } = a.sign(&leaf(ID));
        chain.push(a.root.clone());
        assert_eq!(Svid::new(chain, key.into()).unwrap().chain.len(), 2, "the root is left out");
    }

    #[test]
    fn damaged_text_names_what_was_expected() {
        let svid = Forge::new("a.test").svid("/web");
        let (chain, key) = (svid.chain_pem(), svid.key_pem());
        let refused = |chain: &str, key: &str| {
            Svid::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string()
        };
        assert!(refused("", &key).contains("expected PEM with at least one certificate"));
        assert!(refused(&chain, "").contains("one unencrypted private key"));
        assert!(refused(&chain, &chain).contains("one unencrypted private key"));
        assert!(refused(&chain[..chain.len() - 40], &key).contains("certificate"));
        let mut der: Vec<u8> = svid.chain.iter().flat_map(|one| one.to_vec()).collect();
        der.push(0);
        assert!(Svid::from_der(&der, svid.key.secret_der()).is_err(), "108 trailing bytes");
    }

    #[test]
    fn renewal_comes_before_half_of_the_lifetime_and_never_before_45_percent() {
        let hour = Duration::from_secs(3600);
        for spread in [-1.0, 0.0, 0.3, 1.0, 7.0, f64::NAN] {
            let after = renew_after(hour, spread);
            assert!(after <= hour / 2 && after >= Duration::from_secs(1620), "{spread} {after:?}");
        }
    }
}
