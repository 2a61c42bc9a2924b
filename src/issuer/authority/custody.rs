//! Where the authority's private keys are: a trait, with files as its implementation for production.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::super::Error;
use super::super::key::KeyPair;
use super::files::{CLOSED, Files};
use super::passphrase::Passphrase;

/// Keeps the private keys of an authority's roots and intermediates, under names such as `root-1f2e3d4c`.
///
/// A key need never enter the process: what is given out is an [`AuthorityKey`], which signs. So a hardware module or a key
/// service can stand behind this trait.
pub trait KeyCustody: fmt::Debug + Send + Sync {
    /// Makes a key that can sign certificates, and keeps it: when this returns, a crash does not lose it. A key of that name
    /// that is there already is replaced (it was left behind by a crash; names are random).
    ///
    /// # Errors
    /// The key cannot be made or kept.
    fn generate(&self, name: &str) -> Result<AuthorityKey, Error>;

    /// The key of this name.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    fn open(&self, name: &str) -> Result<AuthorityKey, Error>;

    /// Takes the key away for ever; one that is not there is gone already.
    ///
    /// # Errors
    /// It is still there.
    fn destroy(&self, name: &str) -> Result<(), Error>;
}

/// A private key that signs, wherever it is.
#[derive(Clone)]
pub struct AuthorityKey(Arc<dyn SigningKey + Send + Sync>);

impl AuthorityKey {
    /// A key behind rcgen's trait for signers. One that lies elsewhere answers `sign` with what its holder says, or with
    /// [`rcgen::Error::RemoteKeyError`].
    pub fn new(key: impl SigningKey + Send + Sync + 'static) -> Self {
        Self(Arc::new(key))
    }

    fn local(pair: KeyPair) -> Self {
        Self::new(pair)
    }
}

impl fmt::Debug for AuthorityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthorityKey")
    }
}

impl PublicKeyData for AuthorityKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for AuthorityKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// Keys in files beside the certificates, `<name>-key.pem` with mode 0600: ECDSA P-256 as PKCS#8, under a passphrase where
/// there is one.
#[derive(Debug)]
pub struct FileCustody {
    files: Arc<Files>,
    passphrase: Option<Passphrase>,
}

impl FileCustody {
    /// Keys in `directory`. With a passphrase, new keys are encrypted; what is there already stays as it is and is read either
    /// way.
    pub fn new(directory: &std::path::Path, passphrase: Option<Passphrase>) -> Self {
        Self::on(Arc::new(Files::directory(directory)), passphrase)
    }

    /// Are new keys encrypted?
    pub fn is_encrypting(&self) -> bool {
        self.passphrase.is_some()
    }

    pub(super) fn on(files: Arc<Files>, passphrase: Option<Passphrase>) -> Self {
        Self { files, passphrase }
    }
}

/// The file of a key.
pub(super) fn key_file(name: &str) -> String {
    format!("{name}-key.pem")
}

impl KeyCustody for FileCustody {
    fn generate(&self, name: &str) -> Result<AuthorityKey, Error> {
        let pair = KeyPair::generate()?;
        let text = match &self.passphrase {
            None => Zeroizing::new(pair.serialize_pem()),
            Some(passphrase) => Zeroizing::new(passphrase.seal(pair.serialized_der())?),
        };
        self.files.write(&key_file(name), text.as_bytes(), CLOSED)?;
        Ok(AuthorityKey::local(pair))
    }

    fn open(&self, name: &str) -> Result<AuthorityKey, Error> {
        let file = key_file(name);
        let damaged =
            |detail: &str| Error::Damaged { path: self.files.path(&file), detail: detail.into() };
        if self.files.is_open_to_all(&file)? {
            return Err(Error::KeyReadable { path: self.files.path(&file) });
        }
        let text = Zeroizing::new(self.files.read(&file)?);
        let key = if Passphrase::is_sealed(&text) {
            let Some(passphrase) = &self.passphrase else {
                return Err(Error::PassphraseMissing { path: self.files.path(&file) });
            };
            let opened = passphrase.open(&text).map_err(damaged)?;
            let opened =
                opened.ok_or_else(|| Error::Passphrase { path: self.files.path(&file) })?;
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(opened.to_vec()));
            Zeroizing::new(key)
        } else {
            if self.passphrase.is_some() {
                tracing::warn!(
                    file = %self.files.path(&file).display(),
                    "a passphrase is set, but this key was made without one and is not encrypted"
                );
            }
            let key = PrivateKeyDer::from_pem_slice(&text).ok();
            Zeroizing::new(key.ok_or_else(|| damaged("expected one private key as PEM"))?)
        };
        let pair =
            KeyPair::try_from(&*key).map_err(|_| damaged("expected one private key as PEM"))?;
        Ok(AuthorityKey::local(pair))
    }

    fn destroy(&self, name: &str) -> Result<(), Error> {
        self.files.remove(&key_file(name))
    }
}

/// Keys that end with the process.
#[derive(Debug, Default)]
pub(super) struct MemoryCustody {
    keys: Mutex<HashMap<String, AuthorityKey>>,
}

impl KeyCustody for MemoryCustody {
    fn generate(&self, name: &str) -> Result<AuthorityKey, Error> {
        let key = AuthorityKey::local(KeyPair::generate()?);
        self.keys.lock().insert(name.to_owned(), key.clone());
        Ok(key)
    }

    fn open(&self, name: &str) -> Result<AuthorityKey, Error> {
        let found = self.keys.lock().get(name).cloned();
        found.ok_or_else(|| Error::Damaged {
            path: key_file(name).into(),
            detail: "there is no such key".into(),
        })
    }

    fn destroy(&self, name: &str) -> Result<(), Error> {
        self.keys.lock().remove(name);
        Ok(())
    }
}
