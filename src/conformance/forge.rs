//! Certificates, good ones and each bad one that a rule is about.
//!
//! What the issuing library would not write goes in as raw extensions: names with any byte in them, a key usage that is not
//! critical, constraints on URIs.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    string::Ia5String,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use super::Error;
use crate::identity::{TrustBundle, TrustDomain};

/// What a peer presents: a chain, leaf first, and the key that proves it. An empty chain presents nothing.
#[derive(Debug)]
pub struct Credential {
    /// The certificates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKeyDer<'static>,
}

impl Credential {
    /// Without any certificate.
    ///
    /// # Errors
    /// There are no random numbers for a key.
    pub fn none() -> Result<Self, Error> {
        Ok(Self { chain: Vec::new(), key: private_key(&KeyPair::generate()?) })
    }

    /// The same with more certificates behind.
    #[must_use]
    pub fn followed_by(mut self, more: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        self.chain.extend(more);
        self
    }
}

/// A certificate with its key that signs others, whether it may or not.
#[derive(Debug)]
pub struct Signer {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    /// Signs itself.
    ///
    /// # Errors
    /// The parameters cannot be written as a certificate.
    pub fn root(params: CertificateParams) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let signed = params.self_signed(&key)?;
        Ok(Self {
            certificate: signed.der().clone(),
            pem: signed.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// A signer whose certificate this one signs.
    ///
    /// # Errors
    /// The parameters cannot be written as a certificate.
    pub fn below(&self, params: CertificateParams) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let signed = params.signed_by(&key, &self.issuer)?;
        Ok(Self {
            certificate: signed.der().clone(),
            pem: signed.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// A leaf, and this signer's certificates behind it are the caller's matter.
    ///
    /// # Errors
    /// The parameters cannot be written as a certificate.
    pub fn sign(&self, params: &CertificateParams) -> Result<Credential, Error> {
        self.sign_with(params, &KeyPair::generate()?)
    }

    /// A leaf with a key of the caller's choice.
    ///
    /// # Errors
    /// The parameters cannot be written as a certificate.
    pub fn sign_with(
        &self,
        params: &CertificateParams,
        key: &KeyPair,
    ) -> Result<Credential, Error> {
        let leaf = params.signed_by(key, &self.issuer)?.der().clone();
        Ok(Credential { chain: vec![leaf], key: private_key(key) })
    }

    /// A certificate for a key that is not at hand: only its public half.
    ///
    /// # Errors
    /// The parameters cannot be written as a certificate.
    pub fn certify(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, Error> {
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What signs: for revocation lists.
    pub fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// It presents itself as if it were a leaf.
    pub fn itself(&self) -> Credential {
        Credential { chain: vec![self.certificate.clone()], key: private_key(self.issuer.key()) }
    }

    /// Writes `name.pem` and `name-key.pem` (mode 0600).
    pub(super) fn write(&self, folder: &Path, name: &str) -> Result<(), Error> {
        let key = zeroize::Zeroizing::new(self.issuer.key().serialize_pem());
        super::fixtures::write(&folder.join(format!("{name}-key.pem")), key.as_bytes(), 0o600)?;
        super::fixtures::write(&folder.join(format!("{name}.pem")), self.pem.as_bytes(), 0o644)
    }

    /// Reads what [`Signer::write`] wrote.
    pub(super) fn read(folder: &Path, name: &str) -> Result<Self, Error> {
        let path = folder.join(format!("{name}.pem"));
        let wrong = |detail: String| Error::Fixture { path: path.clone(), detail };
        let text = super::fixtures::read(&path)?;
        let certificate =
            CertificateDer::from_pem_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let key = super::fixtures::read(&folder.join(format!("{name}-key.pem")))?;
        let key = zeroize::Zeroizing::new(String::from_utf8_lossy(&key).into_owned());
        let key = KeyPair::from_pem(&key).map_err(|e| wrong(e.to_string()))?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|e| wrong(e.to_string()))?;
        let pem = String::from_utf8_lossy(&text).into_owned();
        Ok(Self { certificate, pem, issuer })
    }
}

/// A trust domain: a root and an intermediate.
#[derive(Debug)]
pub struct Domain {
    name: TrustDomain,
    root: Signer,
    intermediate: Signer,
}

impl Domain {
    /// A trust domain that follows every rule.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn new(name: TrustDomain) -> Result<Self, Error> {
        Self::shaped(name, |_| {}, |_| {})
    }

    /// A trust domain whose root or intermediate is changed before it is signed.
    ///
    /// # Errors
    /// The changed parameters cannot be written as a certificate.
    pub fn shaped(
        name: TrustDomain,
        root: impl FnOnce(&mut CertificateParams),
        intermediate: impl FnOnce(&mut CertificateParams),
    ) -> Result<Self, Error> {
        let mut params = authority(&format!("{name} root"), &name)?;
        root(&mut params);
        let root = Signer::root(params)?;
        let mut params = authority(&format!("{name} intermediate"), &name)?;
        intermediate(&mut params);
        let intermediate = root.below(params)?;
        Ok(Self { name, root, intermediate })
    }

    /// Its name.
    pub fn name(&self) -> &TrustDomain {
        &self.name
    }

    /// Its root.
    pub fn root(&self) -> &Signer {
        &self.root
    }

    /// Its intermediate.
    pub fn intermediate(&self) -> &Signer {
        &self.intermediate
    }

    /// Its bundle: the root alone.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.name.clone(), vec![self.root.certificate.clone()])
    }

    /// A leaf that follows every rule, for this path.
    ///
    /// # Errors
    /// The path has bytes that no certificate can carry.
    pub fn leaf(&self, path: &str) -> Result<CertificateParams, Error> {
        leaf(&format!("spiffe://{}{path}", self.name))
    }

    /// Signed by the intermediate: leaf and intermediate.
    ///
    /// # Errors
    /// The parameters cannot be written as a certificate.
    pub fn sign(&self, params: &CertificateParams) -> Result<Credential, Error> {
        let below = [self.intermediate.certificate.clone()];
        Ok(self.intermediate.sign(params)?.followed_by(below))
    }

    /// Signed by another intermediate that this root signed first, after a change.
    ///
    /// # Errors
    /// The parameters cannot be written as a certificate.
    pub fn sign_below(
        &self,
        change: impl FnOnce(&mut CertificateParams),
        params: &CertificateParams,
    ) -> Result<Credential, Error> {
        let mut above = authority(&format!("{} another intermediate", self.name), &self.name)?;
        change(&mut above);
        let above = self.root.below(above)?;
        Ok(above.sign(params)?.followed_by([above.certificate]))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        self.root.write(folder, &format!("{}-root", self.name))?;
        self.intermediate.write(folder, &format!("{}-intermediate", self.name))
    }

    pub(super) fn read(folder: &Path, name: TrustDomain) -> Result<Self, Error> {
        let root = Signer::read(folder, &format!("{name}-root"))?;
        let intermediate = Signer::read(folder, &format!("{name}-intermediate"))?;
        Ok(Self { name, root, intermediate })
    }
}

/// A leaf that follows every rule: valid for an hour, since a minute ago.
///
/// # Errors
/// The ID has bytes that no certificate can carry.
pub fn leaf(id: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)?];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::minutes(1);
    params.not_after = now + Duration::hours(1);
    Ok(params)
}

/// An authority that follows every rule.
///
/// # Errors
/// The name has bytes that no certificate can carry.
pub fn authority(name: &str, domain: &TrustDomain) -> Result<CertificateParams, Error> {
    let mut params = leaf(&format!("spiffe://{domain}"))?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages.clear();
    Ok(params)
}

/// A URI name.
///
/// # Errors
/// It is not ASCII.
pub fn uri(text: &str) -> Result<SanType, Error> {
    Ok(SanType::URI(Ia5String::try_from(text)?))
}

/// The extension of names, byte by byte: for names that no library writes. The tag of a URI is 6, of a DNS name 2.
pub fn names(critical: bool, names: &[(u8, &[u8])]) -> CustomExtension {
    let entries: Vec<u8> = names.iter().flat_map(|(tag, name)| der(0x80 | tag, name)).collect();
    extension(&[2, 5, 29, 17], critical, der(0x30, &entries))
}

/// Any extension.
pub fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

/// Name constraints that permit URIs of one host only.
pub(super) fn only_uris_of(host: &str) -> CustomExtension {
    let subtree = der(0x30, &der(0x86, host.as_bytes()));
    extension(&[2, 5, 29, 30], true, der(0x30, &der(0xa0, &subtree)))
}

/// Tag, length, content.
pub(super) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut encoded = vec![tag];
    match u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes() {
        [0, 0, 0, short] if short < 0x80 => encoded.push(short),
        [0, 0, 0, one] => encoded.extend([0x81, one]),
        [0, 0, high, low] => encoded.extend([0x82, high, low]),
        [_, one, two, three] => encoded.extend([0x83, one, two, three]),
    }
    encoded.extend_from_slice(content);
    encoded
}

fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}
