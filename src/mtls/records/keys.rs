//! `Sealer` and `Opener`: the key of one direction of a connection, with the number of its next record.

use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{Iv, Nonce};

use crate::rt::crypto::{
    KeyRejected, RecordAlgorithm, RecordOpeningKey, RecordRefused, RecordSealingKey, aead,
};

/// `type`, `legacy_record_version` and `length` (RFC 8446 section 5.1).
pub(super) const HEADER: usize = 5;
/// Behind the content: its type, and the tag of each of the three algorithms.
pub(super) const TRAILER: usize = 1 + 16;
/// The largest content of a record.
pub(super) const MAX_CONTENT: usize = 1 << 14;
/// The largest sealed record, without its header (section 5.2).
pub(super) const MAX_SEALED: usize = MAX_CONTENT + 256;
/// The type that every sealed record shows.
pub(super) const APPLICATION_DATA: u8 = 23;

/// What rustls says of one direction: the next record's number, and its secrets.
pub(super) type Secrets = (u64, ConnectionTrafficSecrets);

fn parts(
    secrets: ConnectionTrafficSecrets,
) -> Result<(RecordAlgorithm, rustls::crypto::cipher::AeadKey, Iv), KeyRejected> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => Ok((&aead::AES_128_GCM, key, iv)),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => Ok((&aead::AES_256_GCM, key, iv)),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            Ok((&aead::CHACHA20_POLY1305, key, iv))
        }
        _ => Err(KeyRejected),
    }
}

/// Seals what we send.
pub(super) struct Sealer {
    key: RecordSealingKey,
    iv: Iv,
    next: u64,
}

impl Sealer {
    /// Of a key that has sealed nothing: what AWS-LC's keys want, and what the mesh has, since its servers give no tickets.
    pub(super) fn new((next, secrets): Secrets) -> Result<Self, KeyRejected> {
        if next != 0 {
            return Err(KeyRejected);
        }
        let (algorithm, key, iv) = parts(secrets)?;
        Ok(Self { key: RecordSealingKey::new(algorithm, key.as_ref())?, iv, next })
    }

    /// How many records bear this key, or the number of the next one.
    pub(super) const fn sealed(&self) -> u64 {
        self.next
    }

    /// Appends a record with `content`, of at most [`MAX_CONTENT`] bytes.
    pub(super) fn seal(
        &mut self,
        kind: u8,
        content: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), RecordRefused> {
        let length = u16::try_from(content.len() + TRAILER).map_err(|_| RecordRefused)?;
        let [high, low] = length.to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        out.extend_from_slice(&header);
        let from = out.len();
        out.extend_from_slice(content);
        out.push(kind);
        let nonce = Nonce::new(&self.iv, self.next).0;
        self.next = self.next.checked_add(1).ok_or(RecordRefused)?;
        let tag = self.key.seal(nonce, header, &mut out[from..])?;
        out.extend_from_slice(&tag);
        Ok(())
    }
}

/// Opens what the peer sends.
pub(super) struct Opener {
    key: RecordOpeningKey,
    iv: Iv,
    next: u64,
}

impl Opener {
    pub(super) fn new((next, secrets): Secrets) -> Result<Self, KeyRejected> {
        let (algorithm, key, iv) = parts(secrets)?;
        Ok(Self { key: RecordOpeningKey::new(algorithm, key.as_ref())?, iv, next })
    }

    /// Opens the record whose sealed part lies from `from` to the end of `within`, and moves what was in it, padding and type
    /// included, to the front.
    pub(super) fn open<'a>(
        &mut self,
        header: [u8; HEADER],
        within: &'a mut [u8],
        from: usize,
    ) -> Result<&'a mut [u8], RecordRefused> {
        let nonce = Nonce::new(&self.iv, self.next).0;
        self.next = self.next.checked_add(1).ok_or(RecordRefused)?;
        self.key.open(nonce, header, within, from)
    }
}
