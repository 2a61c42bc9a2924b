//! What is kept of an authority: the account, and the certificates with their keys. Files of mode 0600, each put into its place
//! at once.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use instant_acme::AccountCredentials;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Error;
use crate::rt::crypto::digest::{SHA256, digest};

/// The folder of one authority.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

/// An account with the authority, and what it knows of us.
#[derive(Serialize, Deserialize)]
pub(super) struct KeptAccount {
    pub(super) contacts: Vec<String>,
    pub(super) credentials: AccountCredentials,
}

/// A chain and its private key, as PEM.
#[derive(PartialEq)]
pub(super) struct Pair {
    pub(super) chain: String,
    pub(super) key: Zeroizing<String>,
}

/// An answer that some ingress of this folder wants given.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Shown {
    Http { token: String, key_authorization: String },
    Tls { domain: String, digest: [u8; 32] },
}

const KEY: &str = "-----BEGIN PRIVATE KEY-----";
const ANSWERS: &str = "answers";
/// No order takes so long.
const STALE: Duration = Duration::from_secs(3600);

impl Folder {
    /// That of the authority with this directory, below `root`: what one authority gave is nothing to another one.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn open(root: &Path, directory: &str) -> Result<Self, Error> {
        let path = root.join(short_hash(directory));
        for path in [path.clone(), path.join(ANSWERS)] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| Error::File { path, source })?;
        }
        // Of somebody who ended in the midst of an order.
        for file in fs::read_dir(path.join(ANSWERS)).into_iter().flatten().flatten() {
            let age = file.metadata().and_then(|about| about.modified()).map(|at| at.elapsed());
            if age.is_ok_and(|age| age.is_ok_and(|age| age > STALE)) {
                let _ = fs::remove_file(file.path());
            }
        }
        Ok(Self { path })
    }

    fn account_file(&self) -> PathBuf {
        self.path.join("account.json")
    }

    fn pair_file(&self, domains: &[String]) -> PathBuf {
        self.path.join(format!("{}.pem", short_hash(&domains.join(" "))))
    }

    /// The account, if there is one.
    pub(super) fn account(&self) -> Result<Option<KeptAccount>, Error> {
        let path = self.account_file();
        let Some(text) = read(&path)? else { return Ok(None) };
        let account = serde_json::from_str(&text)
            .map_err(|error| Error::File { path, source: io::Error::other(error) })?;
        Ok(Some(account))
    }

    pub(super) fn keep_account(&self, account: &KeptAccount) -> Result<(), Error> {
        let text = serde_json::to_string(account).map(Zeroizing::new);
        let path = self.account_file();
        match text {
            Ok(text) => keep(&path, text.as_bytes()),
            Err(error) => Err(Error::File { path, source: io::Error::other(error) }),
        }
    }

    /// The authority does not know it any more.
    pub(super) fn forget_account(&self) {
        let _ = fs::remove_file(self.account_file());
    }

    /// What was obtained for these names, if anything.
    pub(super) fn pair(&self, domains: &[String]) -> Result<Option<Pair>, Error> {
        let Some(text) = read(&self.pair_file(domains))? else { return Ok(None) };
        let at = text.find(KEY).unwrap_or(text.len());
        let (chain, key) = text.split_at(at);
        Ok(Some(Pair { chain: chain.to_owned(), key: Zeroizing::new(key.to_owned()) }))
    }

    pub(super) fn keep_pair(&self, domains: &[String], pair: &Pair) -> Result<(), Error> {
        let text = Zeroizing::new(format!("{}\n{}", pair.chain.trim_end(), *pair.key));
        keep(&self.pair_file(domains), text.as_bytes())
    }

    /// The turn to talk to the authority, which of those that share the folder one has at a time; `None` when it is another's.
    pub(super) fn turn(&self) -> Result<Option<Turn>, Error> {
        let path = self.path.join("turn");
        let open = || {
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(Some(Turn(file))),
                Err(error) if error == rustix::io::Errno::WOULDBLOCK => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        open().map_err(|source: io::Error| Error::File { path: path.clone(), source })
    }

    /// Wants this answer given by all that share the folder, until what is returned is dropped.
    pub(super) fn show(&self, shown: &Shown) -> Result<Showing, Error> {
        let text = serde_json::to_string(shown).unwrap_or_default();
        let path = self.path.join(ANSWERS).join(short_hash(&text));
        keep(&path, text.as_bytes())?;
        Ok(Showing(path))
    }

    /// The answers that are wanted now. What cannot be read is none: somebody may be writing or removing it.
    pub(super) fn shown(&self) -> Vec<Shown> {
        let files = fs::read_dir(self.path.join(ANSWERS)).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.filter_map(|text| serde_json::from_str(&text).ok()).collect()
    }
}

/// A turn to talk to the authority; dropping it lets the next one.
pub(super) struct Turn(#[expect(dead_code, reason = "the lock is the file's")] File);

/// An answer that is given; dropping it ends that.
pub(super) struct Showing(PathBuf);

impl Drop for Showing {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

pub(super) fn short_hash(text: &str) -> String {
    hex::encode(&digest(&SHA256, text.as_bytes()).as_ref()[..12])
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

fn keep(path: &Path, content: &[u8]) -> Result<(), Error> {
    let written = || {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}.new", uuid::Uuid::new_v4()));
        let fresh = PathBuf::from(fresh);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        let put = file
            .write_all(content)
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&fresh, path));
        if put.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        put
    };
    written().map_err(|source| Error::File { path: path.to_owned(), source })
}
