//! What APISIX has encrypted, read: `data_encryption` with AES-CBC. Nothing is written that way.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, KeyIvInit};
use aes::{Aes128, Aes256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// APISIX's `data_encryption.keyring`: each key is tried.
#[derive(Default)]
pub struct Keyring(Vec<Zeroizing<Vec<u8>>>);

impl Keyring {
    /// The keys as APISIX's settings have them: texts of 16 or 32 bytes.
    ///
    /// # Errors
    /// A key has another length; the sentence says which one.
    pub fn new<'k>(keys: impl IntoIterator<Item = &'k str>) -> Result<Self, String> {
        let read = |(index, key): (usize, &str)| match key.len() {
            16 | 32 => Ok(Zeroizing::new(key.as_bytes().to_vec())),
            other => Err(format!("key {} has {other} bytes, expected 16 or 32", index + 1)),
        };
        keys.into_iter().enumerate().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// The clear text of a field; `None` when it is not encrypted with a key of this ring.
    ///
    /// AES-CBC with PKCS#7 and no authentication cannot tell for certain: base64 of whole blocks that ends in good padding and is
    /// UTF-8 counts as encrypted, as in APISIX.
    pub(super) fn open(&self, text: &str) -> Option<String> {
        // PEM is never base64 as a whole; most other texts are not either.
        if self.0.is_empty() || text.is_empty() {
            return None;
        }
        let data =
            STANDARD.decode(text).ok().filter(|data| !data.is_empty() && data.len() % 16 == 0)?;
        self.0.iter().find_map(|key| {
            let mut data = Zeroizing::new(data.clone());
            // The IV is the key, as APISIX has it.
            let iv = key.get(..16)?;
            let clear = match key.len() {
                16 => cbc::Decryptor::<Aes128>::new_from_slices(key, iv)
                    .ok()?
                    .decrypt_padded::<Pkcs7>(&mut data),
                _ => cbc::Decryptor::<Aes256>::new_from_slices(key, iv)
                    .ok()?
                    .decrypt_padded::<Pkcs7>(&mut data),
            };
            std::str::from_utf8(clear.ok()?).ok().map(str::to_owned)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with OpenSSL: `openssl enc -aes-128-cbc -K <key in hex> -iv <its first 16 bytes in hex> -base64 -A`.
    #[test]
    fn what_apisix_has_encrypted_is_read_and_other_texts_are_left() {
        let ring = Keyring::new(["edd1c9f0985e76a2", "qeddd145sfvddff3"]).unwrap();
        assert_eq!(ring.open("4y+JvURBE6ZwRbbgaryrhg==").as_deref(), Some("auth-one"));
        assert_eq!(
            ring.open("OiidFmm9Dk5vhubz3ftZdR/Piws/tg/kDIoYmoUTTIZiLUhYbRfeNgORx00hLXDx")
                .as_deref(),
            Some("a text that is longer than one block")
        );
        let long = Keyring::new(["0123456789abcdef0123456789abcdef"]).unwrap();
        assert_eq!(long.open("jMinfe2nNUgjwW02ZBFULg==").as_deref(), Some("auth-one"));
        for clear in ["auth-one", "", "-----BEGIN PRIVATE KEY-----", "AAAAAAAAAAAAAAAAAAAAAA=="] {
            assert_eq!(ring.open(clear), None, "{clear}");
        }
        assert!(Keyring::new(["short"]).err().unwrap().contains("5 bytes, expected 16 or 32"));
        assert_eq!(Keyring::default().open("4y+JvURBE6ZwRbbgaryrhg=="), None);
    }
}
