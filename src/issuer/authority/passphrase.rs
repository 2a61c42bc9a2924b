//! Private keys under a passphrase: PBKDF2-HMAC-SHA256 makes the key of AES-256-GCM, which seals the PKCS#8.
//!
//! ```text
//! -----BEGIN WARDGATE ENCRYPTED PRIVATE KEY-----
//! Kdf: PBKDF2-HMAC-SHA256
//! Iterations: 600000
//! Salt: 3b41..        16 bytes, hexadecimal
//! Cipher: AES-256-GCM
//! Nonce: 90aa..       12 bytes, hexadecimal
//!
//! MIGH..              ciphertext and tag, base64
//! -----END WARDGATE ENCRYPTED PRIVATE KEY-----
//! ```
//! The five header lines, each with its line feed, are the additional data: whoever changes one changes the tag.

use std::fmt;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::rt::crypto::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use crate::rt::crypto::pbkdf2;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::super::Error;
use super::certificate::random;

/// The environment's place for a passphrase where no file is named.
const VARIABLE: &str = "WARDGATE_CA_PASSPHRASE";
/// What OWASP asks of PBKDF2-HMAC-SHA256.
const ITERATIONS: u32 = 600_000;
/// A file that asks for more is not ours, and would keep a start busy for minutes.
const MAX_ITERATIONS: u32 = 10_000_000;
const BEGIN: &str = "-----BEGIN WARDGATE ENCRYPTED PRIVATE KEY-----";
const END: &str = "-----END WARDGATE ENCRYPTED PRIVATE KEY-----";
const SALT_LENGTH: usize = 16;

/// What opens an authority's private keys. Wiped when dropped; never shown.
pub struct Passphrase {
    text: Zeroizing<String>,
    /// The key that was made last: the files of one authority share their salt, so that it is made once.
    made: Mutex<Option<Made>>,
}

struct Made {
    salt: [u8; SALT_LENGTH],
    iterations: u32,
    key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

impl Passphrase {
    /// A passphrase; spaces and line ends around it do not count.
    ///
    /// # Errors
    /// It is empty.
    pub fn new(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Error::PassphraseSource { detail: "it is empty".into() });
        }
        Ok(Self { text: Zeroizing::new(text.to_owned()), made: Mutex::default() })
    }

    /// The passphrase in `file`, or in the environment's `WARDGATE_CA_PASSPHRASE` when no file is given; none when there is
    /// neither.
    ///
    /// # Errors
    /// The file cannot be read, everybody may read it, or there is nothing in it.
    pub fn find(file: Option<&Path>) -> Result<Option<Self>, Error> {
        let Some(path) = file else {
            let Ok(text) = std::env::var(VARIABLE) else { return Ok(None) };
            return Self::new(&Zeroizing::new(text)).map(Some);
        };
        let unusable = |why: &dyn fmt::Display| Error::PassphraseSource {
            detail: format!("{}: {why}", path.display()),
        };
        let found = std::fs::metadata(path).map_err(|error| unusable(&error))?;
        if found.mode() & 0o007 != 0 {
            return Err(unusable(&"everybody may read it; expected mode 0600"));
        }
        let text = std::fs::read_to_string(path).map_err(|error| unusable(&error))?;
        let text = Zeroizing::new(text);
        Self::new(&text).map(Some).map_err(|_| unusable(&"it is empty"))
    }

    /// Is this text a key under a passphrase?
    pub(super) fn is_sealed(text: &[u8]) -> bool {
        text.trim_ascii_start().starts_with(BEGIN.as_bytes())
    }

    /// A private key (PKCS#8, DER) as the text of a file.
    pub(super) fn seal(&self, private: &[u8]) -> Result<String, Error> {
        let kept = self.made.lock().as_ref().map(|made| (made.salt, made.iterations));
        let (salt, iterations) = match kept {
            Some(kept) => kept,
            None => (random::<SALT_LENGTH>()?, ITERATIONS),
        };
        let nonce = random::<NONCE_LEN>()?;
        let header = header(iterations, &salt, &nonce);
        let mut sealed = Zeroizing::new(private.to_vec());
        self.key(&salt, iterations)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(header.as_bytes()),
                &mut *sealed,
            )
            .map_err(|_| Error::Random)?;
        let encoded = STANDARD.encode(&*sealed);
        let lines: Vec<&str> = encoded
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
            .collect();
        Ok(format!("{BEGIN}\n{header}\n{}\n{END}\n", lines.join("\n")))
    }

    /// The private key in such a text; `Ok(None)` when the passphrase is another one, or the text was changed.
    ///
    /// # Errors
    /// The text is not of this form; what was expected.
    pub(super) fn open(&self, text: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, &'static str> {
        const FORM: &str = "it is not an encrypted key of this form";
        let text = std::str::from_utf8(text).map_err(|_| FORM)?.trim();
        let inner = text.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END)).ok_or(FORM)?;
        let (head, body) = inner.trim_start().split_once("\n\n").ok_or(FORM)?;
        let field = |name: &str| {
            let mut lines = head.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).ok_or(FORM)
        };
        if field("Kdf")? != "PBKDF2-HMAC-SHA256" || field("Cipher")? != "AES-256-GCM" {
            return Err("expected Kdf PBKDF2-HMAC-SHA256 and Cipher AES-256-GCM");
        }
        let iterations: u32 = field("Iterations")?.parse().map_err(|_| FORM)?;
        if !(ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
            return Err("expected 600000 to 10000000 iterations");
        }
        let mut salt = [0; SALT_LENGTH];
        hex::decode_to_slice(field("Salt")?, &mut salt).map_err(|_| FORM)?;
        let mut nonce = [0; NONCE_LEN];
        hex::decode_to_slice(field("Nonce")?, &mut nonce).map_err(|_| FORM)?;
        let encoded: String = body.split_ascii_whitespace().collect();
        let mut sealed = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| FORM)?);
        let header = header(iterations, &salt, &nonce);
        let opened = self.key(&salt, iterations).open_in_place(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(header.as_bytes()),
            &mut sealed,
        );
        Ok(opened.ok().map(|clear| Zeroizing::new(clear.to_vec())))
    }

    fn key(&self, salt: &[u8; SALT_LENGTH], iterations: u32) -> LessSafeKey {
        let mut made = self.made.lock();
        let bytes = match &*made {
            Some(made) if made.salt == *salt && made.iterations == iterations => made.key.clone(),
            _ => {
                let mut key = Zeroizing::new([0; 32]);
                let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
                let text = self.text.as_bytes();
                pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, text, &mut *key);
                *made = Some(Made { salt: *salt, iterations, key: key.clone() });
                key
            }
        };
        let key = UnboundKey::new(&AES_256_GCM, &*bytes).expect("the length is right");
        LessSafeKey::new(key)
    }
}

fn header(iterations: u32, salt: &[u8], nonce: &[u8]) -> String {
    let (salt, nonce) = (hex::encode(salt), hex::encode(nonce));
    format!(
        "Kdf: PBKDF2-HMAC-SHA256\nIterations: {iterations}\nSalt: {salt}\nCipher: AES-256-GCM\nNonce: {nonce}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_with_its_passphrase_alone_and_every_change_is_noticed() {
        let passphrase = Passphrase::new("correct horse\n").unwrap();
        let text = passphrase.seal(b"private").unwrap();
        assert!(Passphrase::is_sealed(text.as_bytes()));
        let other = Passphrase::new("correct horse").unwrap();
        assert_eq!(&**other.open(text.as_bytes()).unwrap().unwrap(), b"private");
        let again = passphrase.seal(b"private").unwrap();
        assert_ne!(again, text, "a nonce is used once");
        let salt =
            |text: &str| text.lines().find(|line| line.starts_with("Salt")).unwrap().to_owned();
        assert_eq!(salt(&again), salt(&text), "one salt, so that a start derives once");

        assert!(Passphrase::new("wrong").unwrap().open(text.as_bytes()).unwrap().is_none());
        let more = text.replace("600000", "600001");
        assert!(other.open(more.as_bytes()).unwrap().is_none(), "the header is bound in");
        for (bad, says) in [
            (text.replace("600000", "1000"), "iterations"),
            (text.replace("600000", "4000000000"), "iterations"),
            (text.replace("AES-256-GCM", "ROT13"), "Cipher"),
            (text.replace("Salt: ", "Salt: zz"), "form"),
            (text.replace("Nonce", "Once"), "form"),
            (text.replace("-----END", "----END"), "form"),
        ] {
            assert!(other.open(bad.as_bytes()).unwrap_err().contains(says), "{bad}");
        }
        assert_eq!(format!("{passphrase:?}"), "Passphrase");
        assert!(Passphrase::new(" \n").is_err());
    }
}
