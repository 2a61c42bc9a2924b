//! `Authority`: the keeper of a trust domain's root. Signs intermediates for itself and short-lived SVIDs for workloads.
//!
//! A served chain is as short as can be: the leaf and one intermediate, the root left out. Each certificate more would cost
//! both sides of every handshake bytes and a signature check; the one intermediate lets the root's key rest.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::key::KeyPair;
use super::{Error, JwtIssuer};
use crate::identity::{SpiffeId, Svid, TrustBundle, TrustDomain};
use crate::rt::Clock;
use crate::rt::crypto::rand::{SecureRandom, SystemRandom};

/// How long an SVID lives when nobody says otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);

const DAY: i64 = 86_400;
const ROOT_SECONDS: i64 = 3650 * DAY;
const INTERMEDIATE_SECONDS: i64 = 90 * DAY;
/// An intermediate is replaced at two thirds of its life: every leaf it signed ends long before it does.
const RENEW_INTERMEDIATE_AFTER: i64 = 60 * DAY;
/// Clocks of workloads may lag behind ours.
const BACKDATED_SECONDS: i64 = 30;
pub(super) const MAX_TTL: Duration = Duration::from_secs(86_400);

const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root-key.pem";
/// Certificate and key in one file, so that both are replaced at once.
const INTERMEDIATE: &str = "intermediate.pem";

/// A trust domain's authority: ECDSA P-256 throughout.
///
/// ```
/// # use wardgate::issuer::{Authority, DEFAULT_TTL};
/// # use wardgate::rt::Clock;
/// let authority = Authority::in_memory("shop.example".parse().unwrap(), Clock::system()).unwrap();
/// let web = "spiffe://shop.example/web".parse().unwrap();
/// let svid = authority.issue(&web, DEFAULT_TTL, &[]).unwrap();
/// assert_eq!((&svid.id, svid.chain.len()), (&web, 2));
/// ```
pub struct Authority {
    domain: TrustDomain,
    clock: Clock,
    /// Where the keys are kept; nowhere when the authority lives in memory.
    directory: Option<PathBuf>,
    root: Signer,
    intermediate: ArcSwap<Signer>,
    jwt: JwtIssuer,
    /// Held while an intermediate is replaced, so that it happens once.
    replacing: Mutex<()>,
}

/// A signing certificate with its key.
struct Signer {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_before: i64,
    not_after: i64,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("domain", &self.domain)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes an authority that is gone when it is dropped.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn in_memory(domain: TrustDomain, clock: Clock) -> Result<Self, Error> {
        let now = clock.now();
        let root = Signer::root(&domain, now)?;
        let intermediate = Signer::intermediate(&domain, &root, now)?;
        let jwt = JwtIssuer::in_memory(domain.clone(), clock.clone())?;
        Ok(Self {
            domain,
            clock,
            directory: None,
            jwt,
            root,
            intermediate: ArcSwap::from_pointee(intermediate),
            replacing: Mutex::default(),
        })
    }

    /// Makes an authority and keeps it in `directory`, which is made when it is missing. Key files have mode 0600.
    ///
    /// # Errors
    /// One of the files exists already (then nothing is changed), or cannot be written.
    pub fn create(domain: TrustDomain, directory: &Path, clock: Clock) -> Result<Self, Error> {
        for name in [ROOT, ROOT_KEY, INTERMEDIATE] {
            let path = directory.join(name);
            if path.symlink_metadata().is_ok() {
                return Err(Error::Exists { path });
            }
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| Error::Write { path: directory.to_owned(), source })?;
        let jwt = JwtIssuer::open(domain.clone(), directory, clock.clone())?;
        let made =
            Self { directory: Some(directory.to_owned()), jwt, ..Self::in_memory(domain, clock)? };
        let intermediate = made.intermediate.load();
        let mut written = Vec::new();
        for (name, text) in [
            (ROOT_KEY, made.root.key_pem()),
            (ROOT, made.root.certificate_pem()),
            (INTERMEDIATE, intermediate.pair_pem()),
        ] {
            let path = directory.join(name);
            if let Err(source) = write_new(&path, text.as_bytes(), mode_of(name)) {
                // Only our own halves of an authority are taken away again.
                for path in written {
                    let _ = std::fs::remove_file(path);
                }
                return Err(Error::Write { path, source });
            }
            written.push(path);
        }
        drop(intermediate);
        made.jwt.tend()?;
        Ok(made)
    }

    /// Opens the authority that [`Authority::create`] left in `directory`. Nothing is changed, except that an intermediate
    /// that is due is replaced when the next SVID is issued.
    ///
    /// # Errors
    /// A file is missing, damaged, does not belong to the others, or its key is readable for everybody; the root expired.
    pub fn open(directory: &Path, clock: Clock) -> Result<Self, Error> {
        let root = Signer::read(directory, ROOT, ROOT_KEY)?;
        let intermediate = Signer::read(directory, INTERMEDIATE, INTERMEDIATE)?;
        let damaged = |name: &str, detail: &str| Error::Damaged {
            path: directory.join(name),
            detail: detail.into(),
        };
        let domain = domain_of(&root.certificate)
            .ok_or_else(|| damaged(ROOT, "it names no trust domain"))?;
        if root.not_after < clock.now() {
            return Err(Error::RootExpired { domain });
        }
        if !is_signed_by(&root.certificate, &root.certificate) {
            return Err(damaged(ROOT, "it is not a self-signed root"));
        }
        if !is_signed_by(&intermediate.certificate, &root.certificate) {
            return Err(damaged(INTERMEDIATE, "the root beside it did not sign it"));
        }
        let jwt = JwtIssuer::open(domain.clone(), directory, clock.clone())?;
        Ok(Self {
            domain,
            clock,
            directory: Some(directory.to_owned()),
            jwt,
            root,
            intermediate: ArcSwap::from_pointee(intermediate),
            replacing: Mutex::default(),
        })
    }

    /// The trust domain that it speaks for.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The clock that its certificates follow.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The issuer of JWT-SVIDs, whose keys are kept beside the authority's.
    pub fn jwt(&self) -> &JwtIssuer {
        &self.jwt
    }

    /// What others need to verify its SVIDs: the root, and the keys for JWT-SVIDs.
    pub fn bundle(&self) -> TrustBundle {
        let roots = vec![self.root.certificate.clone()];
        let jwt_authorities = self.jwt.authorities();
        TrustBundle { jwt_authorities, ..TrustBundle::new(self.domain.clone(), roots) }
    }

    /// Issues an SVID with a fresh key.
    ///
    /// It lives for `ttl` from now (at most until its intermediate ends) and is valid since 30 s ago.
    ///
    /// # Errors
    /// `id` is of another trust domain or has no path, `ttl` is not between 1 s and 24 h, a DNS name is none, or the system
    /// gives no random numbers.
    pub fn issue(&self, id: &SpiffeId, ttl: Duration, dns_names: &[String]) -> Result<Svid, Error> {
        let key = KeyPair::generate()?;
        let chain = self.sign(id, ttl, dns_names, &key)?;
        Ok(Svid::new(chain, key.into())?)
    }

    /// Issues a chain for somebody else's key, given as SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// As [`Authority::issue`]; the key cannot be read.
    pub fn certify(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        dns_names: &[String],
        public_key: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let key = SubjectPublicKeyInfo::from_der(public_key).map_err(|_| Error::PublicKey)?;
        self.sign(id, ttl, dns_names, &key)
    }

    fn sign(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        dns_names: &[String],
        key: &impl PublicKeyData,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        if id.trust_domain_name() != self.domain.as_str() {
            return Err(Error::OtherDomain { id: id.clone(), domain: self.domain.clone() });
        }
        if id.path().is_empty() {
            return Err(Error::NoPath { id: id.clone() });
        }
        if ttl < Duration::from_secs(1) || ttl > MAX_TTL {
            return Err(Error::Lifetime { seconds: ttl.as_secs() });
        }
        let now = self.clock.now();
        let intermediate = self.intermediate(now)?;
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);

        let mut names = vec![uri(id)?];
        for name in dns_names {
            let wrong = || Error::DnsName { name: name.clone() };
            if !is_dns_name(name) {
                return Err(wrong());
            }
            names.push(SanType::DnsName(name.as_str().try_into().map_err(|_| wrong())?));
        }
        let mut params = params(now, (now + ttl).min(intermediate.not_after))?;
        // No subject: the URI name says all, and the extension is critical then.
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(key, &intermediate.issuer)?;
        Ok(vec![leaf.der().clone(), intermediate.certificate.clone()])
    }

    /// The intermediate that signs now; replaced when it is due.
    fn intermediate(&self, now: i64) -> Result<Arc<Signer>, Error> {
        let current = self.intermediate.load_full();
        if !current.is_due(now) {
            return Ok(current);
        }
        let _one_at_a_time = self.replacing.lock();
        let current = self.intermediate.load_full();
        if !current.is_due(now) {
            return Ok(current);
        }
        if self.root.not_after <= now {
            return Err(Error::RootExpired { domain: self.domain.clone() });
        }
        let next = Signer::intermediate(&self.domain, &self.root, now)?;
        if let Some(directory) = &self.directory
            && let Err(error) = next.replace(directory)
        {
            // On disk stays what was there; a restart makes another. Workloads must not suffer from a full disk.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "the new intermediate is only in memory");
        }
        tracing::info!(domain = %self.domain, not_after = next.not_after, "new intermediate");
        let next = Arc::new(next);
        self.intermediate.store(next.clone());
        Ok(next)
    }
}

impl Signer {
    fn root(domain: &TrustDomain, now: i64) -> Result<Self, Error> {
        let params = signing(domain, "root", now, now + ROOT_SECONDS, 1)?;
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self::new(certificate, &params.clone(), Issuer::new(params, key)))
    }

    fn intermediate(domain: &TrustDomain, root: &Self, now: i64) -> Result<Self, Error> {
        let until = (now + INTERMEDIATE_SECONDS).min(root.not_after);
        let params = signing(domain, "intermediate", now, until, 0)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &root.issuer)?.der().clone();
        Ok(Self::new(certificate, &params.clone(), Issuer::new(params, key)))
    }

    fn new(
        certificate: CertificateDer<'static>,
        params: &CertificateParams,
        issuer: Issuer<'static, KeyPair>,
    ) -> Self {
        let (not_before, not_after) =
            (params.not_before.unix_timestamp(), params.not_after.unix_timestamp());
        Self { certificate, issuer, not_before, not_after }
    }

    fn is_due(&self, now: i64) -> bool {
        let life = self.not_after - self.not_before;
        now >= self.not_before + RENEW_INTERMEDIATE_AFTER.min(life * 2 / 3)
    }

    /// A signing certificate and its key from their files; the key must belong to the certificate.
    fn read(directory: &Path, certificate_name: &str, key_name: &str) -> Result<Self, Error> {
        let (path, key_path) = (directory.join(certificate_name), directory.join(key_name));
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
        };
        let damaged = |path: &Path, detail: &str| Error::Damaged {
            path: path.to_owned(),
            detail: detail.into(),
        };
        let text = read(&path)?;
        let certificate = CertificateDer::from_pem_slice(&text)
            .map_err(|_| damaged(&path, "expected one certificate as PEM"))?;
        let seen = std::fs::metadata(&key_path)
            .map_err(|source| Error::Read { path: key_path.clone(), source })?;
        if seen.permissions().mode() & 0o007 != 0 {
            return Err(Error::KeyReadable { path: key_path });
        }
        let text = Zeroizing::new(read(&key_path)?);
        let key = PrivateKeyDer::from_pem_slice(&text).ok().map(Zeroizing::new);
        let key = key.and_then(|key| KeyPair::try_from(&*key).ok());
        let key = key.ok_or_else(|| damaged(&key_path, "expected one private key as PEM"))?;

        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|_| damaged(&path, "its content is not a certificate"))?;
        if !parsed.is_ca() {
            return Err(damaged(&path, "it is not a signing certificate"));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(damaged(&key_path, "it belongs to another certificate"));
        }
        let (not_before, not_after) =
            (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| damaged(&path, "its content is not a signing certificate"))?;
        Ok(Self { certificate, issuer, not_before, not_after })
    }

    /// Puts this intermediate in the place of the one on disk.
    fn replace(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join(INTERMEDIATE);
        let fresh = directory.join(format!("{INTERMEDIATE}.new"));
        let failed = |source| Error::Write { path: path.clone(), source };
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        write_new(&fresh, self.pair_pem().as_bytes(), mode_of(INTERMEDIATE)).map_err(failed)?;
        std::fs::rename(&fresh, &path).map_err(failed)
    }

    fn pair_pem(&self) -> Zeroizing<String> {
        Zeroizing::new([self.certificate_pem().as_str(), self.key_pem().as_str()].concat())
    }

    fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    fn certificate_pem(&self) -> Zeroizing<String> {
        let domain = domain_of(&self.certificate);
        let domain = domain.expect("made with the trust domain's ID, and read only with one");
        Zeroizing::new(TrustBundle::new(domain, vec![self.certificate.clone()]).to_pem())
    }
}

/// What all our certificates share: validity and a random serial number of 16 bytes.
fn params(now: i64, not_after: i64) -> Result<CertificateParams, Error> {
    let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Error::Random);
    let mut serial = random::<16>()?;
    // Positive and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = time(now - BACKDATED_SECONDS)?;
    params.not_after = time(not_after)?;
    params.serial_number = Some(serial.to_vec().into());
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A signing certificate: bears the trust domain's ID, may sign certificates and revocation lists.
fn signing(
    domain: &TrustDomain,
    rank: &str,
    now: i64,
    not_after: i64,
    path_length: u8,
) -> Result<CertificateParams, Error> {
    let mut params = params(now, not_after)?;
    // The random part tells authorities of the same name apart, which keeps path building short.
    let name = format!("{domain} {rank} {}", hex::encode(random::<4>()?));
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![uri(&domain.id())?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
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

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

/// The trust domain that a signing certificate names.
fn domain_of(certificate: &[u8]) -> Option<TrustDomain> {
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

fn is_signed_by(certificate: &[u8], signer: &[u8]) -> bool {
    let parse = |der| X509Certificate::from_der(der).map(|(_, parsed)| parsed).ok();
    match (parse(certificate), parse(signer)) {
        (Some(certificate), Some(signer)) => {
            certificate.issuer().as_raw() == signer.subject().as_raw()
                && certificate.verify_signature(Some(signer.public_key())).is_ok()
        }
        _ => false,
    }
}

fn mode_of(name: &str) -> u32 {
    if name == ROOT { 0o644 } else { 0o600 }
}

/// Writes a file that must not exist yet, through to the disk.
pub(super) fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::UnixTime;

    use super::*;
    use crate::identity::forge::Folder;
    use crate::identity::{Presented, Purpose, Trust, TrustBundles};

    const ID: &str = "spiffe://a.test/ns/x/sa/web";

    fn domain() -> TrustDomain {
        "a.test".parse().unwrap()
    }

    fn verify(authority: &Authority, svid: &Svid, now: i64) -> Result<(), &'static str> {
        let bundles: TrustBundles = [authority.bundle()].into_iter().collect();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.try_into().unwrap()));
        for purpose in [Purpose::Client, Purpose::Server] {
            Trust::from(bundles.clone())
                .verifier()
                .verify(&svid.chain[0], &svid.chain[1..], purpose, now, &mut Presented::default())
                .map_err(|flaw| flaw.code())?;
        }
        Ok(())
    }

    #[test]
    fn an_svid_is_what_the_specification_asks_for() {
        let clock = Clock::fixed(1_800_000_000);
        let authority = Authority::in_memory(domain(), clock.clone()).unwrap();
        let names = ["web.x.svc".to_owned()];
        let svid = authority.issue(&ID.parse().unwrap(), DEFAULT_TTL, &names).unwrap();
        assert_eq!(svid.chain.len(), 2, "leaf and intermediate");
        assert_eq!(svid.serial.len(), 32, "16 random bytes");
        assert_eq!(svid.not_before, clock.now() - 30);
        assert_eq!(svid.not_after, clock.now() + 3600);
        verify(&authority, &svid, clock.now()).unwrap();
        assert_eq!(verify(&authority, &svid, clock.now() + 3601), Err("expired"));

        let (_, leaf) = X509Certificate::from_der(&svid.chain[0]).unwrap();
        assert!(!leaf.is_ca());
        assert!(leaf.subject_alternative_name().unwrap().unwrap().critical);
        assert!(leaf.key_usage().unwrap().unwrap().critical);
        let (_, intermediate) = X509Certificate::from_der(&svid.chain[1]).unwrap();
        let constraints = intermediate.basic_constraints().unwrap().unwrap();
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let other = authority.issue(&ID.parse().unwrap(), DEFAULT_TTL, &[]).unwrap();
        assert_ne!(other.serial, svid.serial);
    }

    #[test]
    fn what_must_not_be_issued_is_refused() {
        let authority = Authority::in_memory(domain(), Clock::system()).unwrap();
        let refused = |id: &str, seconds, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let ttl = Duration::from_secs(seconds);
            authority.issue(&id.parse().unwrap(), ttl, &names).unwrap_err().to_string()
        };
        assert!(refused("spiffe://b.test/web", 60, &[]).contains("not in trust domain a.test"));
        assert!(refused("spiffe://a.test", 60, &[]).contains("has no path"));
        assert!(refused(ID, 0, &[]).contains("lifetime of 0 s"));
        assert!(refused(ID, 90_000, &[]).contains("lifetime of 90000 s"));
        for name in ["", "a b", "-a", "a..b", "*.a", "ä"] {
            assert!(refused(ID, 60, &[name]).contains("is not a DNS name"), "{name}");
        }
        let error = authority.certify(&ID.parse().unwrap(), DEFAULT_TTL, &[], b"key").unwrap_err();
        assert!(matches!(error, Error::PublicKey));
    }

    #[test]
    fn somebody_elses_key_is_certified_without_seeing_its_private_half() {
        let authority = Authority::in_memory(domain(), Clock::system()).unwrap();
        let key = KeyPair::generate().unwrap();
        let spki = key.subject_public_key_info();
        let chain = authority.certify(&ID.parse().unwrap(), DEFAULT_TTL, &[], &spki).unwrap();
        let svid = Svid::new(chain, key.into()).unwrap();
        verify(&authority, &svid, Clock::system().now()).unwrap();
    }

    #[test]
    fn the_intermediate_is_replaced_at_two_thirds_and_old_svids_stay_good() {
        let folder = Folder::new();
        let clock = Clock::fixed(1_800_000_000);
        let authority = Authority::create(domain(), folder.path(), clock.clone()).unwrap();
        let issue =
            |authority: &Authority| authority.issue(&ID.parse().unwrap(), MAX_TTL, &[]).unwrap();
        let first = issue(&authority);
        clock.advance(59 * DAY);
        assert_eq!(issue(&authority).chain[1], first.chain[1]);
        let last = issue(&authority);
        clock.advance(DAY);
        let next = issue(&authority);
        assert_ne!(next.chain[1], first.chain[1]);
        verify(&authority, &next, clock.now()).unwrap();
        verify(&authority, &last, clock.now()).unwrap();
        // The new one is on disk.
        let again = Authority::open(folder.path(), clock).unwrap();
        assert_eq!(issue(&again).chain[1], next.chain[1]);
        assert_eq!(again.bundle(), authority.bundle());
    }

    #[test]
    fn an_authority_is_kept_on_disk_with_closed_keys_and_never_overwritten() {
        let folder = Folder::new();
        let directory = folder.path().join("certs");
        let made = Authority::create(domain(), &directory, Clock::system()).unwrap();
        for name in [ROOT_KEY, INTERMEDIATE] {
            let mode = std::fs::metadata(directory.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let opened = Authority::open(&directory, Clock::system()).unwrap();
        assert_eq!((opened.domain(), opened.bundle()), (made.domain(), made.bundle()));
        let svid = opened.issue(&ID.parse().unwrap(), DEFAULT_TTL, &[]).unwrap();
        verify(&made, &svid, Clock::system().now()).unwrap();

        let before = std::fs::read(directory.join(ROOT)).unwrap();
        let again = Authority::create(domain(), &directory, Clock::system()).unwrap_err();
        assert!(again.to_string().ends_with("an authority is never overwritten"));
        assert_eq!(std::fs::read(directory.join(ROOT)).unwrap(), before);
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_damaged_authority_is_named_and_left_as_it_is() {
        let folder = Folder::new();
        let path = |name: &str| folder.path().join(name);
        Authority::create(domain(), folder.path(), Clock::system()).unwrap();
        let others = Folder::new();
        Authority::create("b.test".parse().unwrap(), others.path(), Clock::system()).unwrap();
        let other = |name: &str| std::fs::read(others.path().join(name)).unwrap();
        let open = || Authority::open(folder.path(), Clock::system()).unwrap_err().to_string();
        for (name, content, says) in [
            (ROOT, b"hello".to_vec(), "expected one certificate"),
            (ROOT_KEY, b"hello".to_vec(), "expected one private key"),
            (ROOT_KEY, other(ROOT_KEY), "root-key.pem is damaged: it belongs to another"),
            (INTERMEDIATE, other(ROOT), "intermediate.pem is damaged: expected one private key"),
            (INTERMEDIATE, other(INTERMEDIATE), "the root beside it did not sign it"),
        ] {
            let good = std::fs::read(path(name)).unwrap();
            std::fs::write(path(name), &content).unwrap();
            assert!(open().contains(says), "{name}: {}", open());
            assert_eq!(std::fs::read(path(name)).unwrap(), content, "{name} was changed");
            std::fs::write(path(name), good).unwrap();
        }
        std::fs::set_permissions(path(ROOT_KEY), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(open().contains("everybody may read the private key"));
        std::fs::remove_file(path(ROOT)).unwrap();
        assert!(open().contains("cannot read"));
    }
}
