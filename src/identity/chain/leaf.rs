//! What a presented certificate says about itself: the rules that need no authority.

use crate::rt::crypto::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::Flaw;
use crate::identity::SpiffeId;

/// Certificates that a peer may send, bytes of one, bytes of all, and names in the leaf (49).
const MAX_CERTIFICATES: usize = 6;
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;
const MAX_CHAIN_BYTES: usize = 64 * 1024;
const MAX_NAMES: usize = 32;
/// Longer names of an authority's key are not for records.
const MAX_KEY_IDENTIFIER: usize = 64;

/// What a presented certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The peer opened the connection.
    Client,
    /// The peer accepted the connection.
    Server,
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "client authentication",
            Self::Server => "server authentication",
        })
    }
}

/// What a refused peer showed, for the record of the refusal. Nothing of it is proved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presented {
    /// The first URI name, escaped and cut to 256 characters: it may be anything.
    pub id: Option<String>,
    /// The leaf's serial number, lower-case hexadecimal.
    pub serial: Option<String>,
    /// SHA-256 of the leaf certificate, lower-case hexadecimal.
    pub sha256: Option<String>,
    /// The key that signed it, as its authority key identifier names it, lower-case hexadecimal.
    pub issuer_ski: Option<String>,
}

/// What a leaf says about itself, after the rules that need no authority: 22 to 35 and 49.
#[derive(Clone, Debug)]
pub(in crate::identity) struct Leaf {
    pub(in crate::identity) id: SpiffeId,
    pub(in crate::identity) serial: String,
    pub(in crate::identity) spki_sha256: String,
    /// See [`Presented::issuer_ski`].
    pub(in crate::identity) issuer_ski: Option<String>,
    pub(in crate::identity) public_key: Vec<u8>,
    pub(in crate::identity) not_before: i64,
    pub(in crate::identity) not_after: i64,
    /// What strict mode refuses (33, 41).
    pub(super) lax: Option<Flaw>,
    /// Server and client authentication; `None` without the extension, which allows both (35).
    purposes: Option<(bool, bool)>,
}

impl Leaf {
    /// Reads a leaf. What it shows goes into `presented` as soon as it is known, also when a later rule refuses it.
    pub(in crate::identity) fn read(der: &[u8], presented: &mut Presented) -> Result<Self, Flaw> {
        let malformed = |detail| Flaw::Malformed { detail };
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| malformed("not an X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(malformed("bytes after its end"));
        }
        let serial = serial_text(certificate.raw_serial());
        presented.serial = Some(serial.clone());
        let mut uris: Vec<&str> = Vec::new();
        let mut usage = None;
        let mut purposes = None;
        let mut is_authority = false;
        let mut lax = None;
        for (at, extension) in certificate.extensions().iter().enumerate() {
            if certificate.extensions()[..at].iter().any(|other| other.oid == extension.oid) {
                return Err(malformed("the same extension twice"));
            }
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    if !extension.critical && certificate.subject().iter().next().is_none() {
                        lax.get_or_insert(Flaw::NamesNotCritical);
                    }
                    let found = names.general_names.len();
                    if found > MAX_NAMES {
                        return Err(Flaw::TooManyNames { found });
                    }
                    for name in &names.general_names {
                        match name {
                            GeneralName::URI(uri) => uris.push(uri),
                            GeneralName::Invalid(..) => return Err(malformed("a name")),
                            // DNS names, addresses and the like are allowed and never an identity (25).
                            _ => {}
                        }
                    }
                }
                ParsedExtension::KeyUsage(found) => {
                    usage = Some(found);
                    if !extension.critical {
                        lax.get_or_insert(Flaw::KeyUsageNotCritical);
                    }
                }
                ParsedExtension::ExtendedKeyUsage(found) => {
                    purposes = Some((found.server_auth, found.client_auth));
                }
                ParsedExtension::BasicConstraints(found) => is_authority = found.ca,
                ParsedExtension::AuthorityKeyIdentifier(found) => {
                    presented.issuer_ski = found
                        .key_identifier
                        .as_ref()
                        .filter(|key| key.0.len() <= MAX_KEY_IDENTIFIER)
                        .map(|key| hex::encode(key.0));
                }
                ParsedExtension::ParseError { .. } => return Err(malformed("an extension")),
                _ => {}
            }
        }
        if let Some(uri) = uris.first() {
            presented.id =
                Some(uri.chars().take(256).collect::<String>().escape_default().collect());
        }
        let id: SpiffeId = match uris[..] {
            [] => return Err(Flaw::NoUriName),
            [uri] => uri.parse().map_err(Flaw::NotSpiffe)?,
            _ => return Err(Flaw::SeveralUriNames { found: uris.len() }),
        };
        if is_authority {
            return Err(Flaw::Authority);
        }
        if id.path().is_empty() {
            return Err(Flaw::NoPath);
        }
        let usage = usage.ok_or(Flaw::NoKeyUsage)?;
        if usage.key_cert_sign() {
            return Err(Flaw::SignsCertificates);
        }
        if usage.crl_sign() {
            return Err(Flaw::SignsRevocations);
        }
        if !usage.digital_signature() {
            return Err(Flaw::NoDigitalSignature);
        }
        let spki = certificate.public_key();
        Ok(Self {
            id,
            serial,
            spki_sha256: hex::encode(digest(&SHA256, spki.raw)),
            issuer_ski: presented.issuer_ski.clone(),
            public_key: spki.subject_public_key.data.to_vec(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            lax,
            purposes,
        })
    }

    /// Rules 34 and 35.
    pub(in crate::identity) fn allows(&self, needed: Purpose) -> Result<(), Flaw> {
        let allowed = match (self.purposes, needed) {
            (None, _) => true,
            (Some((server, _)), Purpose::Server) => server,
            (Some((_, client)), Purpose::Client) => client,
        };
        if allowed { Ok(()) } else { Err(Flaw::Purpose { needed }) }
    }

    /// Rules 37, 38 and 40: `leeway` seconds before its time, and none after it.
    pub(in crate::identity) fn is_current(&self, now: i64, leeway: i64) -> Result<(), Flaw> {
        if now.saturating_add(leeway) < self.not_before {
            return Err(Flaw::NotYetValid);
        }
        if now > self.not_after {
            return Err(Flaw::Expired);
        }
        Ok(())
    }
}

/// A serial number in lower-case hexadecimal, without the sign byte that DER may need.
pub(super) fn serial_text(raw: &[u8]) -> String {
    let digits = match raw {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    hex::encode(digits)
}

/// The sizes of rule 49, before any byte is parsed.
pub(in crate::identity) fn check_sizes<'a>(
    chain: impl Iterator<Item = &'a CertificateDer<'a>>,
) -> Result<(), Flaw> {
    let (mut found, mut bytes) = (0, 0);
    for certificate in chain {
        found += 1;
        bytes += certificate.len();
        if certificate.len() > MAX_CERTIFICATE_BYTES {
            return Err(Flaw::CertificateTooLarge { bytes: certificate.len() });
        }
    }
    if found > MAX_CERTIFICATES {
        return Err(Flaw::TooManyCertificates { found });
    }
    if bytes > MAX_CHAIN_BYTES {
        return Err(Flaw::ChainTooLarge { bytes });
    }
    Ok(())
}
