//! Certificates for tests: good ones, and each bad one that a rule is about.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use super::{Identity, Svid, TrustBundle, TrustBundles, TrustDomain};

/// A trust domain with a root and an intermediate.
pub(crate) struct Forge {
    pub(crate) domain: TrustDomain,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    root_issuer: Issuer<'static, KeyPair>,
}

impl Forge {
    pub(crate) fn new(domain: &str) -> Self {
        Self::shaped(domain, |_| {}, |_| {})
    }

    /// A trust domain whose root or intermediate is changed before it is signed.
    pub(crate) fn shaped(
        domain: &str,
        root: impl FnOnce(&mut CertificateParams),
        intermediate: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = authority(&format!("{domain} root"), domain);
        root(&mut params);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let root_issuer = Issuer::new(params, key);
        let mut params = authority(&format!("{domain} intermediate"), domain);
        intermediate(&mut params);
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &root_issuer).unwrap();
        Self {
            domain: domain.parse().unwrap(),
            root: root.der().clone(),
            intermediate: signed.der().clone(),
            issuer: Issuer::new(params, key),
            root_issuer,
        }
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.domain.clone(), vec![self.root.clone()])
    }

    pub(crate) fn bundles(&self) -> TrustBundles {
        [self.bundle()].into_iter().collect()
    }

    /// Signs with the intermediate: leaf and intermediate, and the leaf's key.
    pub(crate) fn sign(&self, params: &CertificateParams) -> Signed {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Signed { chain: vec![leaf, self.intermediate.clone()], key }
    }

    /// Signs with the root: the leaf alone.
    pub(crate) fn sign_by_root(&self, params: &CertificateParams) -> Signed {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.root_issuer).unwrap().der().clone();
        Signed { chain: vec![leaf], key }
    }

    /// A revocation list of the root as PEM; it lives for a day from `seconds_ago`.
    pub(crate) fn list_by_root(&self, number: u64, seconds_ago: i64) -> String {
        let this_update = OffsetDateTime::now_utc() - Duration::seconds(seconds_ago);
        let params = CertificateRevocationListParams {
            this_update,
            next_update: this_update + Duration::days(1),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.root_issuer).unwrap().pem().unwrap()
    }

    pub(crate) fn svid(&self, path: &str) -> Svid {
        let id = format!("spiffe://{}{path}", self.domain);
        let Signed { chain, key } = self.sign(&leaf(&id));
        Svid::new(chain, key.into()).unwrap()
    }

    /// An identity of this trust domain that also trusts `others`.
    pub(crate) fn identity(&self, path: &str, others: &[&Self]) -> Identity {
        let all = others.iter().copied().chain([self]);
        Identity::new(self.svid(path), all.map(Self::bundle).collect::<TrustBundles>())
    }
}

impl Forge {
    /// A revocation list of these serial numbers, signed by the root.
    pub(crate) fn revocation_list(&self, serials: &[u64]) -> Vec<u8> {
        Self::list_of(&self.root_issuer, serials)
    }

    /// The same, signed by the intermediate.
    pub(crate) fn revocation_list_by_intermediate(&self, serials: &[u64]) -> Vec<u8> {
        Self::list_of(&self.issuer, serials)
    }

    fn list_of(signer: &Issuer<'static, KeyPair>, serials: &[u64]) -> Vec<u8> {
        let now = OffsetDateTime::now_utc();
        let revoked = serials.iter().map(|serial| rcgen::RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: now - Duration::minutes(1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now - Duration::minutes(1),
            next_update: now + Duration::hours(1),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(signer).unwrap().der().to_vec()
    }
}

pub(crate) struct Signed {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

impl Signed {
    /// An SVID that no rule of ours has seen: what a hostile peer presents.
    pub(crate) fn unchecked(self) -> Svid {
        Svid {
            id: "spiffe://forged.test/unchecked".parse().unwrap(),
            chain: self.chain,
            key: PrivateKeyDer::from(self.key),
            serial: String::new(),
            not_before: 0,
            not_after: i64::MAX,
        }
    }
}

/// A leaf that follows every rule.
pub(crate) fn leaf(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::minutes(1);
    params.not_after = now + Duration::hours(1);
    params
}

/// An authority that follows every rule.
pub(crate) fn authority(name: &str, domain: &str) -> CertificateParams {
    let mut params = leaf(&format!("spiffe://{domain}"));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages.clear();
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// A folder of its own for a test, gone afterwards.
pub(crate) struct Folder(std::path::PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let name = format!("wardgate-test-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
