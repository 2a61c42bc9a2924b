//! What an enrolled workload keeps on disk: its key, its SVID and what belongs to them, in one file for its owner alone; and
//! the key that it asks for, since an answer may get lost and a join token is good for one key.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::client::Enrolled;
use super::key::new_key;
use super::message::TrustNews;
use crate::identity::{Svid, TrustDomain};
use crate::issuer::Error;

/// Where it is kept.
#[derive(Clone, Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// Beside it: the key that a first identity is being asked for.
    asked: PathBuf,
}

/// An identity on disk.
#[derive(Debug)]
pub(super) struct Kept {
    /// Where trust began when it was given.
    pub(super) beginning: String,
    /// The identity.
    pub(super) enrolled: Enrolled,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// PKCS#8, base64.
    key: String,
    beginning: String,
    /// PEM, leaf first.
    chain: String,
    lifetime_seconds: u64,
    /// Base64.
    ticket: String,
    trust: TrustNews,
}

impl Drop for Written {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl StateFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { asked: path.with_extension("asked"), path }
    }

    /// The identity that is there; nothing is changed.
    pub(super) fn look(&self, domain: &TrustDomain) -> Result<Option<Kept>, Error> {
        let Some(text) = read(&self.path)? else { return Ok(None) };
        let damaged = |detail| Error::Damaged { path: self.path.clone(), detail };
        parse(&text, domain).map(Some).map_err(damaged)
    }

    /// The identity that is there. What is damaged is reported, put aside and not used.
    pub(super) fn load(&self, domain: &TrustDomain) -> Result<Option<Kept>, Error> {
        match self.look(domain) {
            Err(Error::Damaged { detail, .. }) => {
                let aside = self.path.with_extension("damaged");
                tracing::error!(
                    path = %self.path.display(), aside = %aside.display(), detail,
                    "the kept identity is damaged; enrolling anew"
                );
                std::fs::rename(&self.path, &aside)
                    .map_err(|source| Error::Write { path: self.path.clone(), source })?;
                Ok(None)
            }
            found => found,
        }
    }

    /// The key that was asked for before, or a new one; on disk when this returns.
    pub(super) fn asking(&self) -> Result<Zeroizing<PrivateKeyDer<'static>>, Error> {
        if let Some(key) = read(&self.asked)? {
            let key = Zeroizing::new(PrivatePkcs8KeyDer::from(key.to_vec()).into());
            if rcgen::KeyPair::try_from(&*key).is_ok() {
                return Ok(key);
            }
        }
        let key = new_key()?;
        replace(&self.asked, key.secret_der())
            .map_err(|source| Error::Write { path: self.asked.clone(), source })?;
        Ok(key)
    }

    /// Puts an identity in the file's place. What was asked for has been answered then.
    pub(super) fn save(&self, beginning: &str, enrolled: &Enrolled) -> Result<(), Error> {
        let written = Written {
            key: STANDARD.encode(enrolled.svid.key.secret_der()),
            beginning: beginning.to_owned(),
            chain: enrolled.svid.chain_pem(),
            lifetime_seconds: enrolled.lifetime.as_secs(),
            ticket: STANDARD.encode(&enrolled.ticket),
            trust: enrolled.trust.clone(),
        };
        let failed = |source| Error::Write { path: self.path.clone(), source };
        let text = serde_json::to_vec(&written).map_err(io::Error::other).map_err(failed)?;
        replace(&self.path, &Zeroizing::new(text)).map_err(failed)?;
        match std::fs::remove_file(&self.asked) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Write { path: self.asked.clone(), source })
            }
            _ => Ok(()),
        }
    }
}

/// A file with a key, which must not be for everybody; `None` when it is not there.
fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let text = match std::fs::read(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let seen = std::fs::metadata(path).map_err(failed)?;
    if seen.permissions().mode() & 0o007 != 0 {
        return Err(Error::KeyReadable { path: path.to_owned() });
    }
    Ok(Some(text))
}

/// At once, so that a crash leaves the old content or the new one, and through to the disk.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(directory) = directory {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    directory.map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn parse(text: &[u8], domain: &TrustDomain) -> Result<Kept, String> {
    let mut written: Written = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let key = STANDARD.decode(written.key.as_bytes()).map_err(|_| "its key")?;
    let chain = CertificateDer::pem_slice_iter(written.chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| "its chain")?;
    let svid =
        Svid::new(chain, PrivatePkcs8KeyDer::from(key).into()).map_err(|error| error.report())?;
    let trust = std::mem::take(&mut written.trust);
    trust.trust(domain).map_err(|error| error.to_string())?;
    let enrolled = Enrolled {
        svid,
        lifetime: Duration::from_secs(written.lifetime_seconds),
        ticket: STANDARD.decode(&written.ticket).map_err(|_| "its ticket")?,
        trust,
    };
    Ok(Kept { beginning: std::mem::take(&mut written.beginning), enrolled })
}
