//! The authority's own certificates and the leaves that they sign: how they look, and reading them back.

use std::sync::Arc;

use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::crypto::rand::{SecureRandom, SystemRandom};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::super::Error;
use super::custody::AuthorityKey;
use crate::identity::{SpiffeId, TrustDomain};

pub(super) const DAY: i64 = 86_400;
pub(super) const ROOT_SECONDS: i64 = 3650 * DAY;
pub(super) const INTERMEDIATE_SECONDS: i64 = 90 * DAY;
/// Clocks of workloads may lag behind ours.
pub(super) const BACKDATED_SECONDS: i64 = 30;
pub(in super::super) const MAX_TTL: std::time::Duration = std::time::Duration::from_secs(86_400);

/// A certificate that signs, with its key.
pub(super) struct Signer {
    pub(super) name: String,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) issuer: Issuer<'static, AuthorityKey>,
    pub(super) facts: Facts,
}

/// What a signing certificate says about itself.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    /// Lower-case hexadecimal.
    pub(super) serial: String,
    /// The key's bits alone, as a key shows them.
    pub(super) public_bits: Vec<u8>,
    pub(super) key_id: Option<Vec<u8>>,
    pub(super) is_authority: bool,
    pub(super) signs_lists: bool,
}

impl Facts {
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let ([], parsed) = X509Certificate::from_der(der).ok()? else { return None };
        let usage = parsed.key_usage().ok()?.map(|usage| usage.value);
        let key_id =
            parsed.iter_extensions().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        Some(Self {
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            serial: hex::encode(parsed.serial.to_bytes_be()),
            public_bits: parsed.public_key().subject_public_key.data.to_vec(),
            key_id,
            is_authority: parsed.is_ca() && usage.is_none_or(|usage| usage.key_cert_sign()),
            signs_lists: usage.is_none_or(|usage| usage.crl_sign()),
        })
    }
}

impl Signer {
    /// A signing certificate that was made just now.
    fn made(
        name: &str,
        certificate: CertificateDer<'static>,
        key: AuthorityKey,
    ) -> Result<Self, Error> {
        Self::new(name, certificate, key)?.ok_or(Error::PublicKey)
    }

    /// `None` when the certificate is no authority's, or the key is another's.
    pub(super) fn new(
        name: &str,
        certificate: CertificateDer<'static>,
        key: AuthorityKey,
    ) -> Result<Option<Self>, Error> {
        let Some(facts) = Facts::read(&certificate) else { return Ok(None) };
        if !facts.is_authority || facts.public_bits != key.der_bytes() {
            return Ok(None);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Some(Self { name: name.to_owned(), certificate, issuer, facts }))
    }

    /// A self-signed root.
    pub(super) fn root(
        name: &str,
        domain: &TrustDomain,
        key: AuthorityKey,
        now: i64,
    ) -> Result<Self, Error> {
        let params = signing(domain, name, now, now + ROOT_SECONDS, 1)?;
        let certificate = params.self_signed(&key)?.der().clone();
        Self::made(name, certificate, key)
    }

    /// An intermediate that `root` signs; it does not outlive it.
    pub(super) fn intermediate(
        name: &str,
        domain: &TrustDomain,
        root: &Self,
        key: AuthorityKey,
        now: i64,
    ) -> Result<Self, Error> {
        let until = (now + INTERMEDIATE_SECONDS).min(root.facts.not_after);
        if until <= now {
            return Err(Error::RootExpired { domain: domain.clone() });
        }
        let params = signing(domain, name, now, until, 0)?;
        let certificate = params.signed_by(&key, &root.issuer)?.der().clone();
        Self::made(name, certificate, key)
    }

    /// A workload's certificate.
    pub(super) fn leaf(
        &self,
        id: &SpiffeId,
        dns_names: &[String],
        key: &impl PublicKeyData,
        now: i64,
        not_after: i64,
    ) -> Result<(CertificateDer<'static>, String), Error> {
        let mut names = vec![uri(id)?];
        for name in dns_names {
            let wrong = || Error::DnsName { name: name.clone() };
            if !is_dns_name(name) {
                return Err(wrong());
            }
            names.push(SanType::DnsName(name.as_str().try_into().map_err(|_| wrong())?));
        }
        let (mut params, serial) = params(now, not_after)?;
        // No subject: the URI name says all, and the extension is critical then.
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok((params.signed_by(key, &self.issuer)?.der().clone(), serial))
    }
}

/// What all our certificates share: validity and a random serial number of 16 bytes, which is returned in hexadecimal.
fn params(now: i64, not_after: i64) -> Result<(CertificateParams, String), Error> {
    let mut serial = random::<16>()?;
    // Positive and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = moment(now - BACKDATED_SECONDS)?;
    params.not_after = moment(not_after)?;
    params.serial_number = Some(serial.to_vec().into());
    params.use_authority_key_identifier_extension = true;
    Ok((params, hex::encode(serial)))
}

/// A signing certificate: bears the trust domain's ID, may sign certificates and revocation lists.
fn signing(
    domain: &TrustDomain,
    name: &str,
    now: i64,
    not_after: i64,
    path_length: u8,
) -> Result<CertificateParams, Error> {
    let (mut params, _) = params(now, not_after)?;
    describe(&mut params, domain, name, path_length)?;
    Ok(params)
}

/// What an authority asks for upstream.
pub(super) fn requested(domain: &TrustDomain, name: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    describe(&mut params, domain, name, 0)?;
    Ok(params)
}

fn describe(
    params: &mut CertificateParams,
    domain: &TrustDomain,
    name: &str,
    path_length: u8,
) -> Result<(), Error> {
    // The random part of the name tells authorities of the same domain apart, which keeps path building short.
    let common_name = format!("{domain} {}", name.replace('-', " "));
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = vec![uri(&domain.id())?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(())
}

/// A name that no other root or intermediate has: `root-1f2e3d4c`.
pub(super) fn fresh_name(rank: &str) -> Result<String, Error> {
    Ok(format!("{rank}-{}", hex::encode(random::<4>()?)))
}

pub(super) fn moment(seconds: i64) -> Result<OffsetDateTime, Error> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Error::Moment { seconds })
}

fn uri(id: &SpiffeId) -> Result<SanType, Error> {
    Ok(SanType::URI(id.as_str().try_into()?))
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(label)
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

/// SHA-256, lower-case hexadecimal.
pub(super) fn fingerprint(der: &[u8]) -> String {
    hex::encode(digest(&SHA256, der))
}

/// The trust domain that a signing certificate names.
pub(super) fn domain_of(certificate: &[u8]) -> Option<TrustDomain> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => {
            let id: SpiffeId = uri.parse().ok()?;
            id.path().is_empty().then(|| id.trust_domain())
        }
        _ => None,
    })
}

pub(super) fn is_signed_by(certificate: &[u8], signer: &[u8]) -> bool {
    let parse = |der| X509Certificate::from_der(der).map(|(_, parsed)| parsed).ok();
    match (parse(certificate), parse(signer)) {
        (Some(certificate), Some(signer)) => {
            certificate.issuer().as_raw() == signer.subject().as_raw()
                && certificate.verify_signature(Some(signer.public_key())).is_ok()
        }
        _ => false,
    }
}

/// A root of the bundle.
pub(super) struct Root {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) facts: Facts,
    /// Nothing for one whose key is kept elsewhere.
    pub(super) signer: Option<Signer>,
}

/// An intermediate with the rest of the chain that is served with its leaves.
pub(super) struct Intermediate {
    pub(super) signer: Signer,
    /// Itself and what comes between it and the root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) root: String,
    /// When the first of chain and root ends: no leaf lives longer.
    pub(super) not_after: i64,
}

impl Intermediate {
    pub(super) fn new(
        signer: Signer,
        chain: Vec<CertificateDer<'static>>,
        root: &str,
        root_ends: i64,
    ) -> Option<Arc<Self>> {
        let mut not_after = root_ends;
        for certificate in &chain {
            not_after = not_after.min(Facts::read(certificate)?.not_after);
        }
        Some(Arc::new(Self { signer, chain, root: root.to_owned(), not_after }))
    }

    /// Our own are replaced at two thirds of their life: every leaf that one signed ends long before it does.
    pub(super) fn is_due(&self, now: i64) -> bool {
        let facts = &self.signer.facts;
        now >= facts.not_before + (facts.not_after - facts.not_before) * 2 / 3
    }
}
