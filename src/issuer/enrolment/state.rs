//! What an enrolled workload keeps on disk: its key, its SVID and what belongs to them, in one file for its owner alone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::client::Enrolled;
use super::message::TrustNews;
use crate::identity::{Svid, TrustDomain};
use crate::issuer::Error;

/// Where it is kept.
#[derive(Clone, Debug)]
pub(super) struct StateFile {
    path: PathBuf,
}

/// What is kept.
#[derive(Debug)]
pub(super) enum State {
    /// A key that an identity was asked for. The answer may have been lost: a join token is good for this key only.
    Asked(Zeroizing<PrivateKeyDer<'static>>),
    /// An identity.
    Enrolled {
        /// Where trust began when it was given.
        beginning: String,
        /// The identity.
        enrolled: Box<Enrolled>,
    },
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// PKCS#8, base64.
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<WrittenIdentity>,
}

impl Drop for Written {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenIdentity {
    beginning: String,
    /// PEM, leaf first.
    chain: String,
    lifetime_seconds: u64,
    /// Base64.
    ticket: String,
    trust: TrustNews,
}

impl StateFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The identity that is there; nothing is changed.
    pub(super) fn look(&self, domain: &TrustDomain) -> Result<Option<Box<Enrolled>>, Error> {
        match self.read()?.map(|text| parse(&text, domain)) {
            Some(Ok(State::Enrolled { enrolled, .. })) => Ok(Some(enrolled)),
            Some(Ok(State::Asked(_))) | None => Ok(None),
            Some(Err(detail)) => Err(Error::Damaged { path: self.path.clone(), detail }),
        }
    }

    /// Reads what is there; `None` when nothing is. What is damaged is reported, put aside and not used.
    pub(super) fn load(&self, domain: &TrustDomain) -> Result<Option<State>, Error> {
        let Some(text) = self.read()? else { return Ok(None) };
        match parse(&text, domain) {
            Ok(state) => Ok(Some(state)),
            Err(detail) => {
                let aside = self.path.with_extension("damaged");
                tracing::error!(path = %self.path.display(), aside = %aside.display(), detail, "the kept identity is damaged; enrolling anew");
                std::fs::rename(&self.path, &aside)
                    .map_err(|source| Error::Write { path: self.path.clone(), source })?;
                Ok(None)
            }
        }
    }

    fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let failed = |source| Error::Read { path: self.path.clone(), source };
        let text = match std::fs::read(&self.path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let seen = std::fs::metadata(&self.path).map_err(failed)?;
        if seen.permissions().mode() & 0o007 != 0 {
            return Err(Error::KeyReadable { path: self.path.clone() });
        }
        Ok(Some(text))
    }

    /// Puts a key in the file's place before an identity is asked for.
    pub(super) fn save_asked(&self, key: &PrivateKeyDer<'static>) -> Result<(), Error> {
        self.save(&Written { key: STANDARD.encode(key.secret_der()), identity: None })
    }

    /// Puts an identity in the file's place.
    pub(super) fn save_enrolled(&self, beginning: &str, enrolled: &Enrolled) -> Result<(), Error> {
        let identity = WrittenIdentity {
            beginning: beginning.to_owned(),
            chain: enrolled.svid.chain_pem(),
            lifetime_seconds: enrolled.lifetime.as_secs(),
            ticket: STANDARD.encode(&enrolled.ticket),
            trust: enrolled.trust.clone(),
        };
        let key = STANDARD.encode(enrolled.svid.key.secret_der());
        self.save(&Written { key, identity: Some(identity) })
    }

    fn save(&self, written: &Written) -> Result<(), Error> {
        let failed = |source| Error::Write { path: self.path.clone(), source };
        let text =
            Zeroizing::new(serde_json::to_vec(written).map_err(io::Error::other).map_err(failed)?);
        replace(&self.path, &text).map_err(failed)
    }
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

fn parse(text: &[u8], domain: &TrustDomain) -> Result<State, String> {
    let mut written: Written = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let key = STANDARD.decode(written.key.as_bytes()).map_err(|_| "its key")?;
    let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key).into();
    let key = Zeroizing::new(key);
    let Some(identity) = written.identity.take() else {
        rcgen::KeyPair::try_from(&*key).map_err(|_| "its key")?;
        return Ok(State::Asked(key));
    };
    let chain = rustls_pki_types::CertificateDer::pem_slice_iter(identity.chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| "its chain")?;
    let svid = Svid::new(chain, key.clone_key()).map_err(|error| error.report())?;
    identity.trust.trust(domain).map_err(|error| error.to_string())?;
    let enrolled = Box::new(Enrolled {
        svid,
        lifetime: Duration::from_secs(identity.lifetime_seconds),
        ticket: STANDARD.decode(&identity.ticket).map_err(|_| "its ticket")?,
        trust: identity.trust,
    });
    Ok(State::Enrolled { beginning: identity.beginning, enrolled })
}
