//! The cryptographic library of this build, chosen once: ring, or AWS-LC with the cargo feature `aws-lc` (and its FIPS module
//! with `fips`).
//!
//! Digests, random numbers, sealing, signatures, the judging of certificates and the provider of TLS are taken from here; no
//! other file names a library. The two have the same interface but for a few constructors; those have a function here.

use std::sync::{Arc, OnceLock};

#[cfg(feature = "aws-lc")]
use rustls::crypto::aws_lc_rs as tls_library;
#[cfg(not(feature = "aws-lc"))]
use rustls::crypto::ring as tls_library;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::ProducesTickets;
use rustls::sign::SigningKey;
use rustls_pki_types::PrivateKeyDer;
use tls_library::cipher_suite as suite;
use tls_library::kx_group as group;

#[cfg(feature = "aws-lc")]
pub use aws_lc_rs::{aead, digest, hmac, pbkdf2, rand, signature};
#[cfg(not(feature = "aws-lc"))]
pub use ring::{aead, digest, hmac, pbkdf2, rand, signature};

/// The library's algorithms for signatures in certificates.
#[cfg(feature = "aws-lc")]
pub use webpki::aws_lc_rs as certificates;
/// The library's algorithms for signatures in certificates.
#[cfg(not(feature = "aws-lc"))]
pub use webpki::ring as certificates;

/// What the decision log, `check` and metrics call the library of this build.
pub const LIBRARY: &str = if cfg!(feature = "fips") {
    "aws-lc-fips"
} else if cfg!(feature = "aws-lc") {
    "aws-lc"
} else {
    "ring"
};

/// Is the library what the build promises? To be asked before anything else: a build for FIPS must not work with less.
///
/// # Errors
/// This is a build for FIPS, and its module is not in FIPS mode or TLS would use something outside of it.
pub fn check() -> Result<(), NotFips> {
    #[cfg(feature = "fips")]
    if aws_lc_rs::try_fips_mode().is_err() || !tls_provider().fips() {
        return Err(NotFips);
    }
    Ok(())
}

/// A build for FIPS that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this build is for FIPS, but its cryptographic module is not in FIPS mode")]
pub struct NotFips;

/// The key exchanges, the best first. Only AWS-LC has the hybrid one, which a recording of today's traffic does not give to a
/// quantum computer of tomorrow.
const GROUPS: &[&dyn SupportedKxGroup] = &[
    #[cfg(feature = "aws-lc")]
    group::X25519MLKEM768,
    group::X25519,
    group::SECP256R1,
    group::SECP384R1,
];

/// The provider of every TLS connection of the program: AES-128-GCM first (the cheapest where the processor has AES), and the
/// key exchanges of this build. With `fips` what the module does not approve is left out.
pub fn tls_provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let build = || {
        let suites = [
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ];
        let approved = |is_fips: bool| !cfg!(feature = "fips") || is_fips;
        Arc::new(CryptoProvider {
            cipher_suites: suites.into_iter().filter(|suite| approved(suite.fips())).collect(),
            kx_groups: GROUPS.iter().copied().filter(|group| approved(group.fips())).collect(),
            ..tls_library::default_provider()
        })
    };
    PROVIDER.get_or_init(build).clone()
}

/// A private key that signs handshakes. The key is read where it lies: no copy is left behind that nobody wipes.
///
/// # Errors
/// The key is damaged or of a kind that the library does not know.
pub fn tls_signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    tls_library::sign::any_supported_type(key)
}

/// What encrypts the session tickets of public listeners.
///
/// # Errors
/// The system has no random numbers.
pub fn tls_ticketer() -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    tls_library::Ticketer::new()
}

/// A key that signs with ECDSA, from PKCS#8.
///
/// # Errors
/// The key is damaged, or of another kind than `algorithm` asks for.
pub fn ecdsa_key(
    algorithm: &'static signature::EcdsaSigningAlgorithm,
    pkcs8: &[u8],
) -> Result<signature::EcdsaKeyPair, KeyRejected> {
    #[cfg(feature = "aws-lc")]
    let key = signature::EcdsaKeyPair::from_pkcs8(algorithm, pkcs8);
    #[cfg(not(feature = "aws-lc"))]
    let key = signature::EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, &rand::SystemRandom::new());
    key.map_err(|_| KeyRejected)
}

/// How signatures with P-521 and SHA-512 are verified (ES512), where the library can: ring cannot.
pub fn p521() -> Option<&'static dyn signature::VerificationAlgorithm> {
    #[cfg(feature = "aws-lc")]
    let known: Option<&'static dyn signature::VerificationAlgorithm> =
        Some(&signature::ECDSA_P521_SHA512_FIXED);
    #[cfg(not(feature = "aws-lc"))]
    let known = None;
    known
}

/// A private key cannot be used. Why is not said: the reason could tell of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the private key is damaged or of another kind")]
pub struct KeyRejected;

/// Which algorithm protects the records of a TLS connection.
pub type RecordAlgorithm = &'static aead::Algorithm;

/// Seals the records of one direction of a TLS 1.3 connection (RFC 8446 section 5.2).
pub enum RecordSealingKey {
    /// AWS-LC's own key for this, which sees to it that no nonce comes twice; its FIPS module approves of no other.
    #[cfg(feature = "aws-lc")]
    Tls(aead::TlsRecordSealingKey),
    /// Any other.
    Plain(aead::LessSafeKey),
}

/// Opens the records of one direction of a TLS 1.3 connection.
pub enum RecordOpeningKey {
    /// AWS-LC's own key for this.
    #[cfg(feature = "aws-lc")]
    Tls(aead::TlsRecordOpeningKey),
    /// Any other.
    Plain(aead::LessSafeKey),
}

fn plain_key(algorithm: RecordAlgorithm, key: &[u8]) -> Result<aead::LessSafeKey, KeyRejected> {
    let key = aead::UnboundKey::new(algorithm, key).map_err(|_| KeyRejected)?;
    Ok(aead::LessSafeKey::new(key))
}

impl RecordSealingKey {
    /// With a key as long as the algorithm wants it.
    ///
    /// # Errors
    /// It has another length.
    pub fn new(algorithm: RecordAlgorithm, key: &[u8]) -> Result<Self, KeyRejected> {
        #[cfg(feature = "aws-lc")]
        if algorithm != &aead::CHACHA20_POLY1305 {
            let key = aead::TlsRecordSealingKey::new(algorithm, aead::TlsProtocolId::TLS13, key);
            return key.map(|key| Self::Tls(key)).map_err(|_| KeyRejected);
        }
        plain_key(algorithm, key).map(Self::Plain)
    }

    /// Encrypts `in_out` in its place; the tag comes behind it. No two records of a key have one `nonce`.
    ///
    /// # Errors
    /// The library refuses: the record is too long, or the nonce does not follow.
    pub fn seal(
        &mut self,
        nonce: [u8; 12],
        header: [u8; 5],
        in_out: &mut [u8],
    ) -> Result<[u8; 16], RecordRefused> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let header = aead::Aad::from(header);
        let tag = match self {
            #[cfg(feature = "aws-lc")]
            Self::Tls(key) => key.seal_in_place_separate_tag(nonce, header, in_out),
            Self::Plain(key) => key.seal_in_place_separate_tag(nonce, header, in_out),
        };
        tag.ok().and_then(|tag| tag.as_ref().try_into().ok()).ok_or(RecordRefused)
    }
}

impl RecordOpeningKey {
    /// With a key as long as the algorithm wants it.
    ///
    /// # Errors
    /// It has another length.
    pub fn new(algorithm: RecordAlgorithm, key: &[u8]) -> Result<Self, KeyRejected> {
        #[cfg(feature = "aws-lc")]
        if algorithm != &aead::CHACHA20_POLY1305 {
            let key = aead::TlsRecordOpeningKey::new(algorithm, aead::TlsProtocolId::TLS13, key);
            return key.map(|key| Self::Tls(key)).map_err(|_| KeyRejected);
        }
        plain_key(algorithm, key).map(Self::Plain)
    }

    /// Decrypts what lies from `from` to the end of `in_out`, its tag last, and moves it to the front.
    ///
    /// # Errors
    /// It was not sealed with this key, nonce and header. What lies in `in_out` then is nothing.
    pub fn open<'a>(
        &self,
        nonce: [u8; 12],
        header: [u8; 5],
        in_out: &'a mut [u8],
        from: usize,
    ) -> Result<&'a mut [u8], RecordRefused> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let header = aead::Aad::from(header);
        let opened = match self {
            #[cfg(feature = "aws-lc")]
            Self::Tls(key) => key.open_within(nonce, header, in_out, from..),
            Self::Plain(key) => key.open_within(nonce, header, in_out, from..),
        };
        opened.map_err(|_| RecordRefused)
    }
}

/// A record that cannot be sealed, or is not what it claims to be. Why is not said: it could help to forge one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record is not authentic")]
pub struct RecordRefused;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tls_offers_is_what_the_build_promises() {
        let provider = tls_provider();
        let groups: Vec<_> =
            provider.kx_groups.iter().filter_map(|group| group.name().as_str()).collect();
        let classic = ["X25519", "secp256r1", "secp384r1"];
        match LIBRARY {
            "ring" => assert_eq!(groups, classic),
            "aws-lc" => assert_eq!((groups[0], &groups[1..]), ("X25519MLKEM768", &classic[..])),
            _ => {
                assert_eq!(groups[0], "X25519MLKEM768");
                assert!(!groups.contains(&"X25519"), "not approved alone: {groups:?}");
                assert!(provider.fips());
            }
        }
        let first = provider.cipher_suites[0].suite();
        assert_eq!(first, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(check(), Ok(()));
    }

    #[test]
    fn a_key_signs_whatever_the_library() {
        use signature::{
            ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, UnparsedPublicKey,
        };
        let pair = rcgen::KeyPair::generate().unwrap();
        let key = ecdsa_key(&ECDSA_P256_SHA256_ASN1_SIGNING, pair.serialized_der()).unwrap();
        let signed = key.sign(&rand::SystemRandom::new(), b"it").unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key_raw());
        assert!(public.verify(b"it", signed.as_ref()).is_ok());
        assert!(ecdsa_key(&ECDSA_P256_SHA256_ASN1_SIGNING, b"no key").is_err());
    }
}
