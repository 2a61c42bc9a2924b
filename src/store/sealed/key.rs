//! The keys that seal: envelopes, and several keys at once while one takes the place of another.
//!
//! A sealed text is `wardgate-sealed-2:<key>:<data>`. `<key>` names the sealing key (the first half of a digest, no secret).
//! `<data>` is base64 of a data key that the sealing key has sealed, and of the text that the data key has sealed: each writing of
//! each text has a data key of its own, so no two texts share a key and nonces, and a sealing key sees nothing but data keys.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::apisix::Keyring;
use crate::rt::crypto::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::crypto::rand::{SecureRandom, SystemRandom};
use crate::store::Error;

/// What every sealed text starts with, whatever its version.
const MARK: &str = "wardgate-sealed-";
/// Sealed by the key itself, as versions before envelopes did. Still opened.
const DIRECT: &str = "wardgate-sealed-1:";
/// In an envelope.
const ENVELOPE: &str = "wardgate-sealed-2:";
/// Bytes of a key.
const KEY_LEN: usize = 32;
/// Bytes of a sealed data key: nonce, key, tag.
const WRAPPED_LEN: usize = NONCE_LEN + KEY_LEN + 16;

/// Is the text sealed?
pub fn is_sealed(text: &str) -> bool {
    text.starts_with(MARK)
}

/// A key that seals. All control planes of one store must have the same.
pub struct SealingKey {
    key: LessSafeKey,
    id: String,
}

impl SealingKey {
    /// A key of 256 bits.
    pub fn new(bytes: &[u8; KEY_LEN]) -> Self {
        let named = [&b"wardgate sealing key"[..], bytes].concat();
        let named = Zeroizing::new(named);
        Self { key: aes(bytes), id: hex::encode(&digest(&SHA256, &named).as_ref()[..6]) }
    }

    /// Its name: says which key it is, and nothing about it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Reads a key as it is written in files and variables: 32 bytes in base64.
    ///
    /// # Errors
    /// The text is something else; the sentence says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bytes = STANDARD.decode(text.trim()).map(Zeroizing::new).ok();
        match bytes.as_deref().and_then(|bytes| <&[u8; KEY_LEN]>::try_from(bytes.as_slice()).ok()) {
            Some(bytes) => Ok(Self::new(bytes)),
            None => Err("expected 32 bytes in base64".into()),
        }
    }

    /// Reads the key from a file (base64, readable by its owner alone), or makes key and file when there is none.
    ///
    /// # Errors
    /// The file cannot be read or made, or holds something else; then it is left as it is.
    pub fn open(path: &Path) -> Result<Self, Error> {
        match Self::read(path) {
            Err(Error::File { .. }) if matches!(path.try_exists(), Ok(false)) => Self::create(path),
            read => read,
        }
    }

    /// Reads the key from a file that is there.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = |why: io::Error| Error::File { path: path.to_owned(), why: why.to_string() };
        let text = Zeroizing::new(fs::read_to_string(path).map_err(file)?);
        Self::parse(&text).map_err(|why| Error::Damaged { path: path.to_owned(), why })
    }

    /// Makes a new key and its file, which must not be there.
    ///
    /// # Errors
    /// The file is there, or cannot be made.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = |why: &dyn std::fmt::Display| Error::File {
            path: path.to_owned(),
            why: why.to_string(),
        };
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        SystemRandom::new()
            .fill(&mut bytes[..])
            .map_err(|_| file(&"the system gives no random bytes"))?;
        let text = Zeroizing::new(STANDARD.encode(&bytes[..]) + "\n");
        save(path, &text).map_err(|error| file(&error))?;
        // Another process may have been faster.
        Self::read(path)
    }

    fn seal(&self, place: &str, text: &str) -> Option<String> {
        let mut data_key = Zeroizing::new([0; KEY_LEN]);
        SystemRandom::new().fill(&mut data_key[..]).ok()?;
        let mut whole = encrypt(&self.key, self.id.as_bytes(), &data_key[..])?;
        whole.append(&mut encrypt(&aes(&data_key), place.as_bytes(), text.as_bytes())?);
        Some(format!("{ENVELOPE}{}:{}", self.id, STANDARD.encode(whole)))
    }

    fn unseal(&self, place: &str, text: &str) -> Option<String> {
        let clear = if let Some(direct) = text.strip_prefix(DIRECT) {
            let mut whole = STANDARD.decode(direct).ok()?;
            decrypt(&self.key, place.as_bytes(), &mut whole)?
        } else {
            let (_, data) = text.strip_prefix(ENVELOPE)?.split_once(':')?;
            let mut whole = STANDARD.decode(data).ok()?;
            let (wrapped, sealed) = whole.split_at_mut_checked(WRAPPED_LEN)?;
            let data_key = decrypt(&self.key, self.id.as_bytes(), wrapped)?;
            let data_key = <&[u8; KEY_LEN]>::try_from(data_key.as_slice()).ok()?;
            decrypt(&aes(data_key), place.as_bytes(), sealed)?
        };
        std::str::from_utf8(&clear).ok().map(str::to_owned)
    }
}

/// The keys of one store: the first one seals, all of them open.
pub struct SealingRing {
    keys: Vec<SealingKey>,
    apisix: Keyring,
}

impl From<SealingKey> for SealingRing {
    fn from(key: SealingKey) -> Self {
        Self { keys: vec![key], apisix: Keyring::default() }
    }
}

impl SealingRing {
    /// Seals with `first`, opens with it and `others`.
    pub fn new(first: SealingKey, others: impl IntoIterator<Item = SealingKey>) -> Self {
        let keys = std::iter::once(first).chain(others).collect();
        Self { keys, apisix: Keyring::default() }
    }

    /// Reads what APISIX has encrypted with these keys as well.
    #[must_use]
    pub fn reading(self, apisix: Keyring) -> Self {
        Self { apisix, ..self }
    }

    /// Seals a text for one place.
    pub(super) fn seal(&self, place: &str, text: &str) -> Result<String, Error> {
        self.keys[0]
            .seal(place, text)
            .ok_or_else(|| Error::Refused("a secret cannot be sealed".into()))
    }

    /// The clear text of what is encrypted, by us or by APISIX; `None` for a clear text.
    ///
    /// # Errors
    /// It was sealed for another place, or with a key that is not here.
    pub(super) fn open(&self, place: &str, text: &str) -> Result<Option<String>, Closed> {
        if !is_sealed(text) {
            return Ok(self.apisix.open(text));
        }
        let named = text.strip_prefix(ENVELOPE).and_then(|rest| rest.split_once(':'));
        let mut fitting = self.keys.iter().filter(|key| named.is_none_or(|(id, _)| id == key.id));
        fitting.find_map(|key| key.unseal(place, text)).map(Some).ok_or(Closed)
    }

    /// Is the text sealed as this ring seals now?
    pub(super) fn is_current(&self, text: &str) -> bool {
        let rest = text.strip_prefix(ENVELOPE).and_then(|rest| rest.split_once(':'));
        rest.is_some_and(|(id, _)| id == self.keys[0].id)
    }
}

/// A sealed text that no key here opens.
#[derive(Debug)]
pub(super) struct Closed;

fn aes(bytes: &[u8; KEY_LEN]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("the length is right"))
}

/// Nonce, then what is encrypted and its tag.
fn encrypt(key: &LessSafeKey, bound: &[u8], clear: &[u8]) -> Option<Vec<u8>> {
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).ok()?;
    // With room for the tag: growing would leave a copy of the clear text behind.
    let mut sealed = Vec::with_capacity(clear.len() + AES_256_GCM.tag_len());
    sealed.extend_from_slice(clear);
    let nonce_used = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce_used, Aad::from(bound), &mut sealed).ok()?;
    let mut whole = nonce.to_vec();
    whole.append(&mut sealed);
    Some(whole)
}

fn decrypt(key: &LessSafeKey, bound: &[u8], whole: &mut [u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = whole.split_at_mut_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let clear = key.open_in_place(nonce, Aad::from(bound), sealed).ok()?;
    let copied = Zeroizing::new(clear.to_vec());
    zeroize::Zeroize::zeroize(clear);
    Some(copied)
}

/// A new file that only its owner reads; another process' file is not overwritten.
fn save(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&new, path));
    let removed = fs::remove_file(&new);
    written.and(removed)
}
