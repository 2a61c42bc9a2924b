//! `SigningKey`: a key of ours that signs tokens (RFC 7515), where a server wants us to prove who we are.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::SignatureScheme;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use zeroize::Zeroizing;

use super::jose::Algorithm;
use crate::pipeline::{Invalid, Redacted};
use crate::rt::crypto::{hmac, tls_signing_key};

/// A key and the one algorithm that it signs with.
pub(super) struct SigningKey {
    algorithm: Algorithm,
    material: Material,
}

enum Material {
    Shared(hmac::Key),
    Private(Box<dyn rustls::sign::Signer>),
}

impl SigningKey {
    /// A secret that both sides share.
    pub(super) fn shared(algorithm: Algorithm, secret: &str) -> Option<Self> {
        let key = hmac::Key::new(algorithm.hmac()?, secret.as_bytes());
        Some(Self { algorithm, material: Material::Shared(key) })
    }

    /// A private key as PEM: PKCS #8, PKCS #1 or SEC 1.
    pub(super) fn private(algorithm: Algorithm, pem: &str) -> Result<Self, Invalid> {
        let wrong =
            || Invalid::new(format!("expected a private key as PEM for {}", algorithm.name()));
        let scheme = match algorithm {
            Algorithm::Rs256 => SignatureScheme::RSA_PKCS1_SHA256,
            Algorithm::Rs512 => SignatureScheme::RSA_PKCS1_SHA512,
            Algorithm::Ps256 => SignatureScheme::RSA_PSS_SHA256,
            Algorithm::Es256 => SignatureScheme::ECDSA_NISTP256_SHA256,
            Algorithm::Es512 => SignatureScheme::ECDSA_NISTP521_SHA512,
            _ => return Err(wrong()),
        };
        let key = PrivateKeyDer::from_pem_slice(pem.trim().as_bytes()).map_err(|_| wrong())?;
        let key = tls_signing_key(&Zeroizing::new(key)).map_err(|_| wrong())?;
        let signer = key.choose_scheme(&[scheme]).ok_or_else(wrong)?;
        Ok(Self { algorithm, material: Material::Private(signer) })
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// A token with this header and these claims. `None`: the library does not sign.
    pub(super) fn token(&self, header: &Value, claims: &Value) -> Option<Redacted<String>> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = match &self.material {
            Material::Shared(key) => hmac::sign(key, signed.as_bytes()).as_ref().to_vec(),
            Material::Private(signer) => {
                let signature = signer.sign(signed.as_bytes()).ok()?;
                match self.algorithm {
                    Algorithm::Es256 => fixed(&signature, 32)?,
                    Algorithm::Es512 => fixed(&signature, 66)?,
                    _ => signature,
                }
            }
        };
        Some(Redacted::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
    }
}

/// Both numbers of an ECDSA signature side by side, as tokens have them (RFC 7518, section 3.4): TLS has them in DER.
fn fixed(der: &[u8], size: usize) -> Option<Vec<u8>> {
    use x509_parser::der_parser::der::parse_der_sequence;
    let (_, sequence) = parse_der_sequence(der).ok()?;
    let numbers = sequence.as_sequence().ok()?;
    let [r, s] = numbers.as_slice() else { return None };
    let mut both = Vec::with_capacity(2 * size);
    for number in [r, s] {
        let bytes = number.as_slice().ok()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let bytes = &bytes[zeros..];
        both.resize(both.len() + size.checked_sub(bytes.len())?, 0);
        both.extend_from_slice(bytes);
    }
    Some(both)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::auth::jose::{Token, VerifyingKey};
    use serde_json::json;

    #[test]
    fn what_is_signed_is_verified_with_the_other_half() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let private = SigningKey::private(Algorithm::Es256, &pair.serialize_pem()).unwrap();
        let public = VerifyingKey::from_pem(&pair.public_key_pem()).unwrap();
        let shared = SigningKey::shared(Algorithm::Hs512, "secret").unwrap();
        let secret = VerifyingKey::secret(b"secret".to_vec());
        // Often enough that numbers with a zero in front are among them.
        for (key, verifies, times) in [(&private, &public, 300), (&shared, &secret, 1)] {
            let header = json!({ "alg": key.algorithm().name() });
            for number in 0..times {
                let text = key.token(&header, &json!({ "n": number })).unwrap();
                let token = Token::read(text.reveal()).unwrap();
                assert!(token.is_signed_by(verifies, key.algorithm()), "{number}");
            }
        }
    }

    #[test]
    fn a_key_of_another_kind_is_none() {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for algorithm in [Algorithm::Rs256, Algorithm::Es512, Algorithm::Hs256, Algorithm::EdDsa] {
            assert!(SigningKey::private(algorithm, &pem).is_err(), "{}", algorithm.name());
        }
        assert!(SigningKey::private(Algorithm::Es256, "nothing").is_err());
        assert!(SigningKey::shared(Algorithm::Rs256, "secret").is_none());
    }
}
