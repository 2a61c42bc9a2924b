//! `Fixtures`: the trust domains that the cases are signed with, in a folder that the operator of a proxy configures it from.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, KeyIdMethod,
    RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::forge::only_uris_of;
use super::{Credential, Domain, Error, Signer, authority};
use crate::identity::{BundleDocument, BundleMap, Svid, TrustBundle, TrustDomain};

/// The trust domain of the proxy under test.
pub(super) const OWN: &str = "conformance.test";
/// A trust domain that the proxy federates with.
pub(super) const FEDERATED: &str = "federated.test";
/// Another one, whose name looks like an address.
pub(super) const NUMERIC: &str = "192.0.2.7";
/// The serial number that the revocation lists name.
const REVOKED: [u8; 4] = [0x0b, 0xad, 0x0b, 0xad];
/// How long the fixtures can be used.
const DAYS: i64 = 90;

/// Trust domains, good and odd authorities, and an SVID for the proxy under test.
#[derive(Debug)]
pub struct Fixtures {
    folder: PathBuf,
    /// The proxy's own trust domain.
    pub own: Domain,
    /// A trust domain that it federates with.
    pub federated: Domain,
    /// Another one, whose name looks like an address.
    pub numeric: Domain,
    /// A root of the proxy's own trust domain that allows no intermediate below it.
    pub short_root: Signer,
    /// A root of the proxy's own trust domain that may sign only for hosts of another name.
    pub constrained_root: Signer,
    /// A root of the proxy's own trust domain that has expired.
    pub expired_root: Signer,
    /// An intermediate of the proxy's own trust domain that its root revoked.
    pub revoked_intermediate: Signer,
}

impl Fixtures {
    /// Makes fixtures and writes them into a folder, which is made as well.
    ///
    /// # Errors
    /// The folder has fixtures already, or it cannot be written.
    pub fn create(folder: &Path) -> Result<Self, Error> {
        let keys = folder.join("authorities");
        if keys.exists() {
            return Err(Error::Exists { path: keys });
        }
        make_folder(folder, 0o755)?;
        make_folder(&keys, 0o700)?;
        make_folder(&folder.join("target"), 0o700)?;

        let domain = |name: &str| Domain::shaped(domain_name(name)?, long_lived, long_lived);
        let own = domain(OWN)?;
        let odd = |name: &str, change: fn(&mut CertificateParams)| {
            let mut params = authority(&format!("{OWN} {name}"), own.name())?;
            long_lived(&mut params);
            change(&mut params);
            Signer::root(params)
        };
        let mut revoked = authority(&format!("{OWN} revoked intermediate"), own.name())?;
        long_lived(&mut revoked);
        revoked.serial_number = Some(SerialNumber::from_slice(&REVOKED));
        let made = Self {
            short_root: odd("root without intermediates", |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            })?,
            constrained_root: odd("root for another name", |p| {
                p.custom_extensions.push(only_uris_of("elsewhere.test"));
            })?,
            expired_root: odd("expired root", |p| {
                p.not_before -= time::Duration::days(2);
                p.not_after = p.not_before + time::Duration::days(1);
            })?,
            revoked_intermediate: own.root().below(revoked)?,
            federated: domain(FEDERATED)?,
            numeric: domain(NUMERIC)?,
            own,
            folder: folder.to_owned(),
        };
        for domain in [&made.own, &made.federated, &made.numeric] {
            domain.write(&keys)?;
        }
        for (name, signer) in made.odd() {
            signer.write(&keys, name)?;
        }
        made.write_trust()?;
        made.write_target()?;
        Ok(made)
    }

    /// Reads the fixtures that [`Fixtures::create`] wrote.
    ///
    /// # Errors
    /// A file is missing or damaged; the error names it.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let keys = folder.join("authorities");
        let domain = |name: &str| Domain::read(&keys, domain_name(name)?);
        Ok(Self {
            own: domain(OWN)?,
            federated: domain(FEDERATED)?,
            numeric: domain(NUMERIC)?,
            short_root: Signer::read(&keys, "short-root")?,
            constrained_root: Signer::read(&keys, "constrained-root")?,
            expired_root: Signer::read(&keys, "expired-root")?,
            revoked_intermediate: Signer::read(&keys, "revoked-intermediate")?,
            folder: folder.to_owned(),
        })
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The roots of the proxy's own trust domain: the good one, and the odd ones that some cases need.
    pub fn own_bundle(&self) -> TrustBundle {
        let roots = [self.own.root(), &self.short_root, &self.constrained_root, &self.expired_root];
        let roots = roots.map(|root| root.certificate().clone());
        TrustBundle::new(self.own.name().clone(), roots.to_vec())
    }

    /// All bundles that the proxy under test must have.
    pub fn bundles(&self) -> [TrustBundle; 3] {
        [self.own_bundle(), self.federated.bundle(), self.numeric.bundle()]
    }

    /// The revocation lists of the proxy's own trust domain, as PEM: by its root and by its intermediate.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn revocation_lists(&self) -> Result<String, Error> {
        let now = OffsetDateTime::now_utc();
        let list = |signer: &Signer, number: u64| {
            let revoked = RevokedCertParams {
                serial_number: SerialNumber::from_slice(&REVOKED),
                revocation_time: now - time::Duration::hours(1),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            };
            let params = CertificateRevocationListParams {
                this_update: now - time::Duration::hours(1),
                next_update: now + time::Duration::days(DAYS),
                crl_number: SerialNumber::from(number),
                issuing_distribution_point: None,
                revoked_certs: vec![revoked],
                key_identifier_method: KeyIdMethod::Sha256,
            };
            Ok::<_, Error>(params.signed_by(signer.issuer())?.pem()?)
        };
        Ok(list(self.own.root(), 1)? + &list(self.own.intermediate(), 2)?)
    }

    /// A leaf of the proxy's own trust domain that its intermediate revoked.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn revoked(&self) -> Result<Credential, Error> {
        let mut params = self.own.leaf("/revoked")?;
        params.serial_number = Some(SerialNumber::from_slice(&REVOKED));
        self.own.sign(&params)
    }

    fn odd(&self) -> [(&'static str, &Signer); 4] {
        [
            ("short-root", &self.short_root),
            ("constrained-root", &self.constrained_root),
            ("expired-root", &self.expired_root),
            ("revoked-intermediate", &self.revoked_intermediate),
        ]
    }

    /// The bundles in each form that proxies read, and the revocation lists.
    fn write_trust(&self) -> Result<(), Error> {
        let mut documents = Vec::new();
        for bundle in self.bundles() {
            let path = |ending: &str| self.folder.join(format!("{}.{ending}", bundle.domain));
            write(&path("pem"), bundle.to_pem().as_bytes(), 0o644)?;
            let document = BundleDocument {
                bundle: bundle.clone(),
                sequence: Some(1),
                refresh_after: Duration::from_secs(300),
            };
            write(&path("json"), pretty(&document.to_json()?).as_bytes(), 0o644)?;
            documents.push(document);
        }
        let map: BundleMap = documents.into_iter().collect();
        let map = pretty(&map.to_json()?);
        write(&self.folder.join("bundle-map.json"), map.as_bytes(), 0o644)?;
        let lists = self.revocation_lists()?;
        write(&self.folder.join("conformance.test-crl.pem"), lists.as_bytes(), 0o644)
    }

    /// The SVID of the proxy under test.
    fn write_target(&self) -> Result<(), Error> {
        let mut params = self.own.leaf("/target")?;
        long_lived(&mut params);
        let Credential { chain, key } = self.own.sign(&params)?;
        let svid = Svid::new(chain, key)?;
        let target = self.folder.join("target");
        write(&target.join("key.pem"), svid.key_pem().as_bytes(), 0o600)?;
        write(&target.join("svid.pem"), svid.chain_pem().as_bytes(), 0o644)
    }

    /// Certificates of this run that a case needs beside its own: none is kept.
    pub(super) fn intermediate(&self) -> CertificateDer<'static> {
        self.own.intermediate().certificate().clone()
    }
}

pub(super) fn domain_name(name: &str) -> Result<TrustDomain, Error> {
    let wrong = |_| crate::identity::Error::TrustDomain { name: name.to_owned() };
    Ok(name.parse().map_err(wrong)?)
}

fn long_lived(params: &mut CertificateParams) {
    params.not_after = params.not_before + time::Duration::days(DAYS);
}

fn pretty(document: &serde_json::Value) -> String {
    format!("{document:#}\n")
}

fn make_folder(path: &Path, mode: u32) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Writes a file that is not there yet.
pub(super) fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    opened
        .and_then(|mut file| file.write_all(content))
        .map_err(|source| Error::File { path: path.to_owned(), source })
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })
}
