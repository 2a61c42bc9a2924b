//! The public key that is to be certified: taken from a certificate request, whose names and wishes count for nothing.

use crate::rt::crypto::digest::{SHA256, digest};
use rcgen::{CertificateParams, DistinguishedName};
use rustls_pki_types::PrivateKeyDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::Zeroizing;

use crate::issuer::Error;
use crate::issuer::key::KeyPair;

const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// RSA keys outside of these sizes are weak, or make every handshake slow.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// A public key whose owner proved the private half.
#[derive(Debug)]
pub(super) struct RequestedKey {
    /// SubjectPublicKeyInfo, DER.
    pub(super) spki: Vec<u8>,
    /// Its SHA-256, lower-case hexadecimal.
    pub(super) sha256: String,
}

impl RequestedKey {
    /// Reads a PKCS#10 request (RFC 2986).
    ///
    /// # Errors
    /// What is wrong, for the caller: it is no request, its signature does not hold, or nobody should use such a key.
    pub(super) fn of(request: &[u8]) -> Result<Self, &'static str> {
        if request.len() > MAX_REQUEST_BYTES {
            return Err("the certificate request is longer than 16384 bytes");
        }
        let Ok(([], parsed)) = X509CertificationRequest::from_der(request) else {
            return Err("expected a certificate request (PKCS#10, DER)");
        };
        let key = &parsed.certification_request_info.subject_pki;
        if !is_strong(key) {
            return Err(
                "the key is not supported: expected ECDSA P-256 or P-384, Ed25519, or RSA with 2048 to 4096 bits",
            );
        }
        parsed.verify_signature().map_err(
            |_| "the certificate request's signature does not hold: the key is not proved",
        )?;
        Ok(Self { spki: key.raw.to_vec(), sha256: hex::encode(digest(&SHA256, key.raw)) })
    }
}

fn is_strong(key: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = || key.algorithm.parameters.as_ref()?.as_oid().ok().map(|oid| oid.to_id_string());
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => RSA_BITS.contains(&bits(rsa.modulus)),
        Ok(PublicKey::EC(_)) => {
            matches!(curve().as_deref(), Some("1.2.840.10045.3.1.7" | "1.3.132.0.34"))
        }
        // x509-parser has no name for Ed25519.
        Ok(PublicKey::Unknown(bytes)) => {
            key.algorithm.algorithm.to_id_string() == "1.3.101.112" && bytes.len() == 32
        }
        _ => false,
    }
}

fn bits(modulus: &[u8]) -> usize {
    let significant = modulus.iter().skip_while(|byte| **byte == 0);
    let leading = significant.clone().next().map_or(0, |byte| byte.leading_zeros() as usize);
    (significant.count() * 8).saturating_sub(leading)
}

/// A new private key (ECDSA P-256), PKCS#8.
///
/// # Errors
/// The system gives no random numbers.
pub fn new_key() -> Result<Zeroizing<PrivateKeyDer<'static>>, Error> {
    Ok(Zeroizing::new(KeyPair::generate()?.into()))
}

/// A certificate request for `key`: its public half, and the proof of the private one. It names nobody.
///
/// # Errors
/// The key cannot sign.
pub fn certificate_request(key: &PrivateKeyDer<'static>) -> Result<Vec<u8>, Error> {
    let pair = KeyPair::try_from(key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&pair)?.der().to_vec())
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{
        BasicConstraints, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
        PublicKeyData, SanType,
    };

    use super::*;

    // Requests with good signatures, made once with openssl.
    const RSA_1024: &str = "MIIBPzCBqQIBADAAMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCuGTpFD8ihX9UKq9ziT5Xs8amst7zB7NMYYIcWqcix/q4z\
        ZG913tEW6k2RyJWkyXRG34yPyPk6FPTMs9vCn/3/fKOqnzuo6EMv66IZlPNbuT0dZF1KLg2NfWO00BMjXIX2xQbL2A30/2LJnFM2\
        LvHQO0vOOXD1sDx6RTkQl5puUwIDAQABoAAwDQYJKoZIhvcNAQELBQADgYEAjfOO48OKDqfc/sjp8EKpHxAplmHU00vdUV1j24Zs\
        xz6wR8Su3naIHFFUdyLVkmHytJr8i0UxX4oZe/ZYL2GtkmngEOxLDn32uSqnUvVx7Vf6TVziev99knpvXxAyKUrW1SN+WkAVjNYq\
        lK7A/nJed23ZdDRVaryqeMesLMjTQMo=";
    const SECP256K1: &str = "MIG2MF8CAQAwADBWMBAGByqGSM49AgEGBSuBBAAKA0IABIOGLJGSRMBtcemXP6rdIadctuqIRB/XD0XIfJ3zKBc5mlq7K5frl6Qv\
        7LfPsCA+k9pkgb3vhKnRWDBKvHBYgvegADAKBggqhkjOPQQDAgNHADBEAiAFzcSjTUp9iaTcfvmBdlbxFJG6FQ3GpHaOt8olwqrE\
        lwIgTs+LwXmZTgKwU4WtWx/BkfsLNUug66FFGFUB1z1XfzY=";
    const SECP521R1: &str = "MIIBQzCBpQIBADAAMIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQBxlGqojuOYaPb/beUTgrNPaUI3kJAVrQ9maZxw/dle+bJnMRp\
        QpZQwmVLETWFR16f2nOyBBK59TUZ6xTx3hrQu44Ai2yQuD0kEATEdtQj7EblGcH5vb3gzZGaWq/bZsR0qSHhsEQNMITU1ScEca0y\
        hRGEM+djb758vsJARrZ9uNQkHFCgADAKBggqhkjOPQQDAgOBjAAwgYgCQgDcZZfOu9KvzY+xFfslHlsTVwJKPwTETYP2o00Qxa91\
        xFmvHTZyoLtp0nECj01KtMKcaqLNSMrYwwacWiYlp7/2TwJCATCaHQVWrzFeiObi4wk/uO+fi4iSg/ObEsX3mYHoUmGIA+/OpxiU\
        S4X7IBQIDNXUZF0i2SRMZl2YwIH6obECaMer";

    #[test]
    fn a_request_proves_its_key_and_nothing_else_counts() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let pair = KeyPair::generate_for(algorithm).unwrap();
            let mut wishes = CertificateParams::new(["admin.shop.test".into()]).unwrap();
            let uri = "spiffe://a.test/wardgate/control".try_into().unwrap();
            wishes.subject_alt_names.push(SanType::URI(uri));
            wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            wishes.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let request = wishes.serialize_request(&pair).unwrap();
            let key = RequestedKey::of(request.der()).unwrap();
            assert_eq!(key.spki, pair.subject_public_key_info());
            assert_eq!(key.sha256, hex::encode(digest(&SHA256, &key.spki)));
        }
    }

    #[test]
    fn our_own_requests_are_such_requests() {
        let key = new_key().unwrap();
        let request = certificate_request(&key).unwrap();
        RequestedKey::of(&request).unwrap();
        assert!(RequestedKey::of(&[&request[..], &[0]].concat()).is_err(), "bytes trail");
        for at in [request.len() - 1, request.len() / 2] {
            let mut damaged = request.clone();
            damaged[at] ^= 1;
            RequestedKey::of(&damaged).unwrap_err();
        }
        for bad in [&b""[..], b"hello", &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0; 20_000]] {
            RequestedKey::of(bad).unwrap_err();
        }
    }

    #[test]
    fn the_signature_of_another_key_proves_nothing() {
        let (mine, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let request = CertificateParams::default().serialize_request(&mine).unwrap().der().to_vec();
        let (mine, other) = (mine.public_key_raw().to_vec(), other.public_key_raw().to_vec());
        let at = request.windows(mine.len()).position(|window| window == mine).unwrap();
        let mut stolen = request;
        stolen[at..at + other.len()].copy_from_slice(&other);
        assert!(RequestedKey::of(&stolen).unwrap_err().contains("signature"));
    }

    #[test]
    fn weak_and_unknown_keys_are_refused_by_name() {
        for request in [RSA_1024, SECP256K1, SECP521R1] {
            let der = STANDARD.decode(request).unwrap();
            let refused = RequestedKey::of(&der).unwrap_err();
            assert!(refused.contains("RSA with 2048 to 4096 bits"), "{refused}");
        }
    }

    #[test]
    fn the_size_of_an_rsa_key_is_that_of_its_number() {
        assert_eq!(bits(&[0, 0x80, 0]), 16);
        assert_eq!(bits(&[1, 0]), 9);
        assert_eq!(bits(&[]), 0);
        assert_eq!(bits(&[0, 0]), 0);
    }
}
