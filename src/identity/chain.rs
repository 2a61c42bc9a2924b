//! Is this chain an X.509-SVID that a bundle of ours vouches for? The rules of the X509-SVID specification and of RFC 5280.
//!
//! Both ends of every handshake and every identity of our own pass through here. The numbers beside the checks are those
//! of docs/spiffe-conformance.md. No I/O; the time comes in by argument.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, ring as algorithm};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::spiffe_id::Error as InvalidSpiffeId;
use super::{Peer, SpiffeId, Trust, TrustDomain};

/// Certificates that a peer may send, bytes of one, bytes of all, and names in the leaf (49).
const MAX_CERTIFICATES: usize = 6;
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;
const MAX_CHAIN_BYTES: usize = 64 * 1024;
const MAX_NAMES: usize = 32;

/// What may sign certificates: SHA-2 only, RSA from 2048 bits (48).
static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithm::ECDSA_P256_SHA256,
    algorithm::ECDSA_P384_SHA384,
    algorithm::ECDSA_P256_SHA384,
    algorithm::ECDSA_P384_SHA256,
    algorithm::ED25519,
    algorithm::RSA_PKCS1_2048_8192_SHA256,
    algorithm::RSA_PKCS1_2048_8192_SHA384,
    algorithm::RSA_PKCS1_2048_8192_SHA512,
    algorithm::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithm::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithm::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// What is wrong with a certificate chain. Each variant is one rule, and [`Flaw::code`] its stable name in records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// There is no certificate at all.
    #[error("there is no certificate")]
    NoCertificate,
    /// Rule 49.
    #[error("the chain has {found} certificates, at most 6 are read")]
    TooManyCertificates {
        /// How many there are.
        found: usize,
    },
    /// Rule 49.
    #[error("a certificate of {bytes} bytes is too large, at most 16384 are read")]
    CertificateTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Rule 49.
    #[error("the chain of {bytes} bytes is too large, at most 65536 are read")]
    ChainTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Rule 49.
    #[error("the certificate has {found} names, at most 32 are read")]
    TooManyNames {
        /// How many subject alternative names there are.
        found: usize,
    },
    /// Not DER, trailing bytes, a malformed extension, or the same extension twice.
    #[error("the certificate is malformed: {detail}")]
    Malformed {
        /// Which part of it.
        detail: &'static str,
    },
    /// Rule 22: common names and DNS names are not identities.
    #[error("the certificate has no URI name, so it bears no SPIFFE ID")]
    NoUriName,
    /// Rule 23, also when all are equal.
    #[error("the certificate has {found} URI names, expected exactly one")]
    SeveralUriNames {
        /// How many URI names there are.
        found: usize,
    },
    /// Rule 24.
    #[error("the certificate's URI name is not a SPIFFE ID: {0}")]
    NotSpiffe(InvalidSpiffeId),
    /// Rule 26.
    #[error("the SPIFFE ID has no path: it names a trust domain, not a workload")]
    NoPath,
    /// Rules 27 and 30.
    #[error("the certificate belongs to an authority (cA is true), not to a workload")]
    Authority,
    /// Rule 28.
    #[error("the leaf's key usage allows signing certificates")]
    SignsCertificates,
    /// Rule 29.
    #[error("the leaf's key usage allows signing revocation lists")]
    SignsRevocations,
    /// Rule 31.
    #[error("the leaf has no key usage extension")]
    NoKeyUsage,
    /// Rule 32.
    #[error("the leaf's key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// Rule 34.
    #[error("the extended key usage does not allow {needed}")]
    Purpose {
        /// `client authentication` or `server authentication`.
        needed: Purpose,
    },
    /// Rule 37.
    #[error("the certificate expired")]
    Expired,
    /// Rule 38.
    #[error("the certificate is not yet valid")]
    NotYetValid,
    /// Rule 39: an intermediate's time is over, or the root's.
    #[error("an authority in the chain expired")]
    AuthorityExpired,
    /// As [`Flaw::NotYetValid`], for an authority.
    #[error("an authority in the chain is not yet valid")]
    AuthorityNotYetValid,
    /// Rule 52, and 57 when the bundle has no authority left.
    #[error("no trust bundle for trust domain {domain}")]
    NoBundle {
        /// The presented trust domain.
        domain: TrustDomain,
    },
    /// Rules 36, 51 and 53: nobody in the bundle of the presented trust domain vouches for it.
    #[error("no authority of the presented trust domain signed the chain")]
    UnknownAuthority,
    /// Rule 36: an issuer's name fits, its signature does not.
    #[error("a signature in the chain is wrong")]
    BadSignature,
    /// Rule 36: a certificate that may not sign has signed.
    #[error("an issuer in the chain is not an authority")]
    NotAnAuthority,
    /// Rule 36: an authority's pathLen is exceeded.
    #[error("the chain is longer than an authority in it allows")]
    PathLength,
    /// Rule 44.
    #[error("an intermediate bears a workload's SPIFFE ID")]
    AuthorityIdPath,
    /// Rule 45.
    #[error("an intermediate bears another trust domain than the leaf")]
    AuthorityOtherDomain,
    /// Rule 46.
    #[error("the names violate an authority's name constraints, or these cannot be evaluated")]
    NameConstraint,
    /// Rule 47.
    #[error("a certificate has a critical extension that is not understood")]
    CriticalExtension,
    /// Rule 48.
    #[error("a signature algorithm in the chain is not accepted")]
    Algorithm,
    /// Too many candidate paths; the search was ended.
    #[error("finding a path through the chain costs too much")]
    PathTooCostly,
    /// Everything else that path validation may say.
    #[error("path validation failed: {0}")]
    Path(webpki::Error),
}

impl Flaw {
    /// The stable name of the rule, for records and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::TooManyCertificates { .. } => "too_many_certificates",
            Self::CertificateTooLarge { .. } => "certificate_too_large",
            Self::ChainTooLarge { .. } => "chain_too_large",
            Self::TooManyNames { .. } => "too_many_names",
            Self::Malformed { .. } => "malformed_certificate",
            Self::NoUriName => "no_uri_name",
            Self::SeveralUriNames { .. } => "several_uri_names",
            Self::NotSpiffe(_) => "not_a_spiffe_id",
            Self::NoPath => "spiffe_id_without_path",
            Self::Authority => "authority_as_leaf",
            Self::SignsCertificates => "leaf_signs_certificates",
            Self::SignsRevocations => "leaf_signs_revocations",
            Self::NoKeyUsage => "no_key_usage",
            Self::NoDigitalSignature => "no_digital_signature",
            Self::Purpose { .. } => "wrong_extended_key_usage",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::AuthorityExpired => "authority_expired",
            Self::AuthorityNotYetValid => "authority_not_yet_valid",
            Self::NoBundle { .. } => "unknown_trust_domain",
            Self::UnknownAuthority => "unknown_authority",
            Self::BadSignature => "bad_signature",
            Self::NotAnAuthority => "issuer_not_authority",
            Self::PathLength => "path_length",
            Self::AuthorityIdPath => "authority_id_with_path",
            Self::AuthorityOtherDomain => "authority_of_other_domain",
            Self::NameConstraint => "name_constraint",
            Self::CriticalExtension => "critical_extension",
            Self::Algorithm => "signature_algorithm",
            Self::PathTooCostly => "path_too_costly",
            Self::Path(_) => "path_validation",
        }
    }
}

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
}

/// What a leaf says about itself, after the rules that need no authority: 22 to 35 and 49.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) id: SpiffeId,
    pub(super) serial: String,
    pub(super) spki_sha256: String,
    pub(super) public_key: Vec<u8>,
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    /// Server and client authentication; `None` without the extension, which allows both (35).
    purposes: Option<(bool, bool)>,
}

impl Leaf {
    /// Reads a leaf. What it shows goes into `presented` as soon as it is known, also when a later rule refuses it.
    pub(super) fn read(der: &[u8], presented: &mut Presented) -> Result<Self, Flaw> {
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
        for (at, extension) in certificate.extensions().iter().enumerate() {
            if certificate.extensions()[..at].iter().any(|other| other.oid == extension.oid) {
                return Err(malformed("the same extension twice"));
            }
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
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
                ParsedExtension::KeyUsage(found) => usage = Some(found),
                ParsedExtension::ExtendedKeyUsage(found) => {
                    purposes = Some((found.server_auth, found.client_auth));
                }
                ParsedExtension::BasicConstraints(found) => is_authority = found.ca,
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
            public_key: spki.subject_public_key.data.to_vec(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            purposes,
        })
    }

    /// Rules 34 and 35.
    pub(super) fn allows(&self, needed: Purpose) -> Result<(), Flaw> {
        let allowed = match (self.purposes, needed) {
            (None, _) => true,
            (Some((server, _)), Purpose::Server) => server,
            (Some((_, client)), Purpose::Client) => client,
        };
        if allowed { Ok(()) } else { Err(Flaw::Purpose { needed }) }
    }

    /// Rules 37 and 38, without leeway (40).
    pub(super) fn is_current(&self, now: i64) -> Result<(), Flaw> {
        if now < self.not_before {
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
pub(super) fn check_sizes<'a>(
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

/// A trust, compiled: the authorities parsed once, each usable for its own trust domain only (51 to 54).
#[derive(Debug)]
pub struct ChainVerifier {
    by_domain: HashMap<TrustDomain, Anchors>,
}

/// One trust domain's roots: what webpki builds on, and beside it what webpki does not judge of a root.
#[derive(Debug, Default)]
struct Anchors {
    anchors: Vec<TrustAnchor<'static>>,
    limits: Vec<Limits>,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    not_before: i64,
    not_after: i64,
    /// How many intermediates may stand below the root.
    path_length: Option<u32>,
}

impl ChainVerifier {
    /// Parses the bundles' authorities. One that cannot serve as a trust anchor is left out; a bundle without a usable one
    /// vouches for nobody (57, 58).
    pub fn new(trust: &Trust) -> Self {
        let by_domain = trust.bundles.iter().map(|bundle| {
            let mut found = Anchors::default();
            for root in &bundle.roots {
                let Ok(anchor) = webpki::anchor_from_trusted_cert(root) else { continue };
                let Ok((_, certificate)) = X509Certificate::from_der(root) else { continue };
                let Ok(constraints) = certificate.basic_constraints() else { continue };
                found.anchors.push(anchor.to_owned());
                found.limits.push(Limits {
                    not_before: certificate.validity().not_before.timestamp(),
                    not_after: certificate.validity().not_after.timestamp(),
                    path_length: constraints.and_then(|found| found.value.path_len_constraint),
                });
            }
            (bundle.domain.clone(), found)
        });
        Self { by_domain: by_domain.collect() }
    }

    /// Verifies a presented chain for one direction of a connection.
    ///
    /// What the leaf shows goes into `presented` in any case.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
        presented: &mut Presented,
    ) -> Result<Peer, Flaw> {
        check_sizes(std::iter::once(leaf).chain(intermediates))?;
        let sha256 = hex::encode(digest(&SHA256, leaf));
        presented.sha256 = Some(sha256.clone());
        let facts = Leaf::read(leaf, presented)?;
        facts.allows(purpose)?;
        facts.is_current(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))?;

        let domain = facts.id.trust_domain();
        let roots = match self.by_domain.get(&domain) {
            Some(roots) if !roots.anchors.is_empty() => roots,
            _ => return Err(Flaw::NoBundle { domain }),
        };
        let not_after = roots.path(leaf, intermediates, purpose, now, &facts)?;
        Ok(Peer {
            id: facts.id,
            serial: facts.serial,
            spki_sha256: facts.spki_sha256,
            sha256,
            not_after,
            purpose,
            chain: std::iter::once(leaf)
                .chain(intermediates)
                .map(|one| one.clone().into_owned())
                .collect(),
        })
    }

    /// Would the handshake that proved `peer` succeed now?
    ///
    /// # Errors
    /// The first rule that is broken by now.
    pub fn again(&self, peer: &Peer, now: UnixTime) -> Result<(), Flaw> {
        let (leaf, intermediates) = peer.chain.split_first().ok_or(Flaw::NoCertificate)?;
        self.verify(leaf, intermediates, peer.purpose, now, &mut Presented::default()).map(|_| ())
    }
}

impl Anchors {
    /// RFC 5280 path validation (36, 39, 42, 43, 46 to 48) and the rules for intermediates (44, 45). Tells when the first
    /// certificate of the path expires.
    fn path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
        facts: &Leaf,
    ) -> Result<i64, Flaw> {
        let entity = EndEntityCert::try_from(leaf).map_err(flaw_of)?;
        let usage = match purpose {
            Purpose::Client => KeyUsage::client_auth(),
            Purpose::Server => KeyUsage::server_auth(),
        };
        // webpki looks for another path when this closure refuses one, so that the flaw is remembered beside it.
        let refused = RefCell::new(None);
        let not_after = Cell::new(facts.not_after);
        let judge = |path: &webpki::VerifiedPath<'_>| {
            let earliest = self.check_path(path, facts, now).map_err(|flaw| {
                refused.borrow_mut().get_or_insert(flaw);
                webpki::Error::UnknownIssuer
            })?;
            not_after.set(earliest);
            Ok(())
        };
        entity
            .verify_for_usage(
                ALGORITHMS,
                &self.anchors,
                intermediates,
                now,
                usage,
                None,
                Some(&judge),
            )
            .map_err(|error| refused.borrow_mut().take().unwrap_or_else(|| flaw_of(error)))?;
        Ok(not_after.get())
    }

    /// What webpki leaves to us of a path that it found. Tells when the first certificate of the path expires.
    fn check_path(
        &self,
        path: &webpki::VerifiedPath<'_>,
        facts: &Leaf,
        now: UnixTime,
    ) -> Result<i64, Flaw> {
        let mut earliest = facts.not_after;
        let mut length = 0;
        for authority in path.intermediate_certificates() {
            earliest = earliest.min(check_intermediate(&authority.der(), &facts.id)?);
            length += 1;
        }
        let chosen = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));
        let root = chosen.map(|at| self.limits[at]).ok_or(Flaw::UnknownAuthority)?;
        if root.path_length.is_some_and(|limit| length > limit) {
            return Err(Flaw::PathLength);
        }
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < root.not_before {
            return Err(Flaw::AuthorityNotYetValid);
        }
        if now > root.not_after {
            return Err(Flaw::AuthorityExpired);
        }
        Ok(earliest.min(root.not_after))
    }
}

/// Rules 44 and 45, and that a key usage, when there is one, lets it sign certificates. Returns its notAfter.
fn check_intermediate(der: &[u8], leaf: &SpiffeId) -> Result<i64, Flaw> {
    let malformed = |detail| Flaw::Malformed { detail };
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| malformed("an intermediate"))?;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::KeyUsage(usage) if !usage.key_cert_sign() => {
                return Err(Flaw::NotAnAuthority);
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    let GeneralName::URI(uri) = name else { continue };
                    // Other URIs are nobody's identity; only a SPIFFE ID binds an authority to a trust domain.
                    let Ok(id) = uri.parse::<SpiffeId>() else { continue };
                    if !id.path().is_empty() {
                        return Err(Flaw::AuthorityIdPath);
                    }
                    if id.trust_domain_name() != leaf.trust_domain_name() {
                        return Err(Flaw::AuthorityOtherDomain);
                    }
                }
            }
            ParsedExtension::ParseError { .. } => {
                return Err(malformed("an intermediate's extension"));
            }
            _ => {}
        }
    }
    Ok(certificate.validity().not_after.timestamp())
}

/// webpki's words in ours. The leaf's own time was judged before, so that a wrong time is an intermediate's.
fn flaw_of(error: webpki::Error) -> Flaw {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => Flaw::AuthorityExpired,
        E::CertNotValidYet { .. } => Flaw::AuthorityNotYetValid,
        E::UnknownIssuer => Flaw::UnknownAuthority,
        E::InvalidSignatureForPublicKey => Flaw::BadSignature,
        E::EndEntityUsedAsCa => Flaw::NotAnAuthority,
        E::CaUsedAsEndEntity => Flaw::Authority,
        E::PathLenConstraintViolated => Flaw::PathLength,
        E::NameConstraintViolation
        | E::MalformedNameConstraint
        | E::InvalidNetworkMaskConstraint
        | E::UnsupportedNameType => Flaw::NameConstraint,
        E::UnsupportedCriticalExtension => Flaw::CriticalExtension,
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | E::SignatureAlgorithmMismatch => Flaw::Algorithm,
        E::MaximumNameConstraintComparisonsExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded => Flaw::PathTooCostly,
        E::BadDer | E::BadDerTime | E::MalformedExtensions | E::TrailingData(_) => {
            Flaw::Malformed { detail: "its encoding" }
        }
        other => Flaw::Path(other),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose,
        IsCa, KeyUsagePurpose, OtherNameValue, SanType,
    };

    use super::*;
    use crate::identity::TrustBundles;
    use crate::identity::forge::{Forge, authority, dns, leaf, uri};
    use crate::rt::unix_seconds;

    const ID: &str = "spiffe://a.test/web";

    fn at(seconds: i64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds.try_into().unwrap()))
    }

    fn judge(
        bundles: &TrustBundles,
        chain: &[CertificateDer<'_>],
        purpose: Purpose,
        now: i64,
    ) -> Result<Peer, Flaw> {
        let mut presented = Presented::default();
        Trust::from(bundles.clone()).verifier().verify(
            &chain[0],
            &chain[1..],
            purpose,
            at(now),
            &mut presented,
        )
    }

    /// The verdict's code over a chain, as client, now: `ok` or the flaw's code.
    fn code(bundles: &TrustBundles, chain: &[CertificateDer<'_>]) -> &'static str {
        match judge(bundles, chain, Purpose::Client, unix_seconds()) {
            Ok(_) => "ok",
            Err(flaw) => flaw.code(),
        }
    }

    #[test]
    fn each_rule_about_the_leaf_refuses_by_its_own_name() {
        let a = Forge::new("a.test");
        type Change = fn(&mut CertificateParams);
        let rules: &[(&str, Change, &str)] = &[
            ("the good one", |_| {}, "ok"),
            ("22 no URI name", |p| p.subject_alt_names.clear(), "no_uri_name"),
            ("22 DNS name only", |p| p.subject_alt_names = vec![dns("web.a.test")], "no_uri_name"),
            (
                "73 common name only",
                |p| {
                    p.subject_alt_names.clear();
                    p.distinguished_name.push(DnType::CommonName, ID);
                },
                "no_uri_name",
            ),
            ("74 as a DNS name", |p| p.subject_alt_names = vec![dns(ID)], "no_uri_name"),
            (
                "74 as an other name",
                |p| {
                    let value = OtherNameValue::Utf8String(ID.into());
                    p.subject_alt_names = vec![SanType::OtherName((vec![1, 2, 3], value))];
                },
                "no_uri_name",
            ),
            (
                "23 two SPIFFE IDs",
                |p| p.subject_alt_names.push(uri("spiffe://a.test/other")),
                "several_uri_names",
            ),
            ("23 equal twice", |p| p.subject_alt_names.push(uri(ID)), "several_uri_names"),
            (
                "23 a SPIFFE ID and another URI",
                |p| p.subject_alt_names.push(uri("https://a.test/web")),
                "several_uri_names",
            ),
            (
                "24 https",
                |p| p.subject_alt_names = vec![uri("https://a.test/web")],
                "not_a_spiffe_id",
            ),
            (
                "75 trailing newline",
                |p| p.subject_alt_names = vec![uri("spiffe://a.test/web\n")],
                "not_a_spiffe_id",
            ),
            (
                "75 NUL",
                |p| p.subject_alt_names = vec![uri("spiffe://a.test/web\0.evil")],
                "not_a_spiffe_id",
            ),
            (
                "7 upper case",
                |p| p.subject_alt_names = vec![uri("spiffe://A.test/web")],
                "not_a_spiffe_id",
            ),
            ("25 DNS beside it", |p| p.subject_alt_names.push(dns("web.a.test")), "ok"),
            (
                "26 no path",
                |p| p.subject_alt_names = vec![uri("spiffe://a.test")],
                "spiffe_id_without_path",
            ),
            (
                "26 a slash for a path",
                |p| p.subject_alt_names = vec![uri("spiffe://a.test/")],
                "not_a_spiffe_id",
            ),
            ("27 cA absent", |p| p.is_ca = IsCa::NoCa, "ok"),
            (
                "27 cA true",
                |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
                "authority_as_leaf",
            ),
            (
                "28 keyCertSign",
                |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
                "leaf_signs_certificates",
            ),
            (
                "29 cRLSign",
                |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
                "leaf_signs_revocations",
            ),
            ("31 no key usage", |p| p.key_usages.clear(), "no_key_usage"),
            (
                "32 no digitalSignature",
                |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
                "no_digital_signature",
            ),
            (
                "34 server only, as client",
                |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
                "wrong_extended_key_usage",
            ),
            (
                "34 anyExtendedKeyUsage is none of the two",
                |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any],
                "wrong_extended_key_usage",
            ),
            ("35 no extended key usage", |p| p.extended_key_usages.clear(), "ok"),
            ("37 expired", |p| p.not_after = p.not_before + time::Duration::seconds(1), "expired"),
            (
                "38 not yet valid",
                |p| p.not_before = p.not_after - time::Duration::seconds(60),
                "not_yet_valid",
            ),
            (
                "47 unknown critical extension",
                |p| {
                    let mut unknown = CustomExtension::from_oid_content(
                        &[1, 3, 6, 1, 4, 1, 99999, 1],
                        vec![5, 0],
                    );
                    unknown.set_criticality(true);
                    p.custom_extensions.push(unknown);
                },
                "critical_extension",
            ),
            (
                "47 unknown extension that is not critical",
                |p| {
                    let oid = [1, 3, 6, 1, 4, 1, 99999, 1];
                    p.custom_extensions.push(CustomExtension::from_oid_content(&oid, vec![5, 0]));
                },
                "ok",
            ),
            (
                "23 a second extension of names",
                |p| {
                    let second = vec![0x30, 0x03, 0x86, 0x01, b'x'];
                    let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], second);
                    p.custom_extensions.push(names);
                },
                "malformed_certificate",
            ),
            (
                "49 many names",
                |p| p.subject_alt_names.extend((0..40).map(|n| dns(&format!("n{n}.a.test")))),
                "too_many_names",
            ),
            (
                "49 a large certificate",
                |p| {
                    let oid = [1, 3, 6, 1, 4, 1, 99999, 2];
                    let filler = CustomExtension::from_oid_content(&oid, vec![0; 17_000]);
                    p.custom_extensions.push(filler);
                },
                "certificate_too_large",
            ),
        ];
        for (rule, change, expected) in rules {
            let mut params = leaf(ID);
            change(&mut params);
            assert_eq!(code(&a.bundles(), &a.sign(&params).chain), *expected, "{rule}");
        }
    }

    #[test]
    fn rule_34_asks_for_the_direction_of_the_connection() {
        let a = Forge::new("a.test");
        let mut params = leaf(ID);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let chain = a.sign(&params).chain;
        assert!(judge(&a.bundles(), &chain, Purpose::Server, unix_seconds()).is_ok());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let chain = a.sign(&params).chain;
        let refused = judge(&a.bundles(), &chain, Purpose::Server, unix_seconds()).unwrap_err();
        assert_eq!(refused, Flaw::Purpose { needed: Purpose::Server });
    }

    #[test]
    fn rule_37_and_38_are_exact_to_the_second() {
        let a = Forge::new("a.test");
        let chain = a.sign(&leaf(ID)).chain;
        let facts = Leaf::read(&chain[0], &mut Presented::default()).unwrap();
        let code = |now| match judge(&a.bundles(), &chain, Purpose::Client, now) {
            Ok(_) => "ok",
            Err(flaw) => flaw.code(),
        };
        assert_eq!(code(facts.not_before - 1), "not_yet_valid");
        assert_eq!(code(facts.not_before), "ok");
        assert_eq!(code(facts.not_after), "ok");
        assert_eq!(code(facts.not_after + 1), "expired");
    }

    #[test]
    fn rules_36_to_48_are_about_the_chain() {
        let a = Forge::new("a.test");
        let signed = a.sign(&leaf(ID)).chain;
        let bundles = a.bundles();

        assert_eq!(
            code(&bundles, &signed[..1]),
            "unknown_authority",
            "42 the intermediate is missing"
        );
        let with_root = [signed[0].clone(), signed[1].clone(), a.root.clone()];
        assert_eq!(code(&bundles, &with_root), "ok", "43 the presented root is ignored");
        assert_eq!(code(&bundles, &a.sign_by_root(&leaf(ID)).chain), "ok", "36 signed by the root");
        let own = crate::identity::TrustBundle { roots: vec![], ..a.bundle() };
        let none: TrustBundles = [own].into_iter().collect();
        assert_eq!(
            code(&none, &with_root),
            "unknown_trust_domain",
            "42, 57 a bundle without roots"
        );

        // An impostor with the intermediate's name and another key.
        let impostor = Forge::new("a.test");
        let forged = [impostor.sign(&leaf(ID)).chain[0].clone(), signed[1].clone()];
        assert_eq!(code(&bundles, &forged), "bad_signature", "36 a signature");

        let many = vec![signed[1].clone(); 6];
        let long: Vec<_> = std::iter::once(signed[0].clone()).chain(many).collect();
        assert_eq!(code(&bundles, &long), "too_many_certificates", "49");

        type Change = fn(&mut CertificateParams);
        let no_change: Change = |_| {};
        let uri_constraint: Change = |p| {
            // permittedSubtrees with one URI: host a.test.
            let der = b"\x30\x0c\xa0\x0a\x30\x08\x86\x06a.test".to_vec();
            let mut constraint = CustomExtension::from_oid_content(&[2, 5, 29, 30], der);
            constraint.set_criticality(true);
            p.custom_extensions.push(constraint);
        };
        let rules: &[(&str, Change, Change, &str)] = &[
            (
                "39 expired intermediate",
                no_change,
                |p| p.not_after = p.not_before + time::Duration::seconds(1),
                "authority_expired",
            ),
            (
                "39 intermediate of the future",
                no_change,
                |p| p.not_before = p.not_after - time::Duration::seconds(1),
                "authority_not_yet_valid",
            ),
            (
                "39 expired root",
                |p| p.not_after = p.not_before + time::Duration::seconds(1),
                no_change,
                "authority_expired",
            ),
            (
                "36 pathLen of the root",
                |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
                no_change,
                "path_length",
            ),
            (
                "36 a leaf signs",
                no_change,
                |p| p.is_ca = IsCa::ExplicitNoCa,
                "issuer_not_authority",
            ),
            (
                "36 an authority without keyCertSign",
                no_change,
                |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature],
                "issuer_not_authority",
            ),
            (
                "44 a path in an authority's ID",
                no_change,
                |p| p.subject_alt_names = vec![uri("spiffe://a.test/ca")],
                "authority_id_with_path",
            ),
            (
                "45 an authority of another domain",
                no_change,
                |p| p.subject_alt_names = vec![uri("spiffe://b.test")],
                "authority_of_other_domain",
            ),
            ("45 an authority without ID", no_change, |p| p.subject_alt_names.clear(), "ok"),
            ("46 URI constraint on the root", uri_constraint, no_change, "name_constraint"),
            ("46 URI constraint on the intermediate", no_change, uri_constraint, "name_constraint"),
            (
                "47 critical extension of an intermediate",
                no_change,
                |p| {
                    let oid = [1, 3, 6, 1, 4, 1, 99999, 1];
                    let mut unknown = CustomExtension::from_oid_content(&oid, vec![5, 0]);
                    unknown.set_criticality(true);
                    p.custom_extensions.push(unknown);
                },
                "critical_extension",
            ),
        ];
        for (rule, root, intermediate, expected) in rules {
            let shaped = Forge::shaped("a.test", root, intermediate);
            let chain = shaped.sign(&leaf(ID)).chain;
            assert_eq!(code(&shaped.bundles(), &chain), *expected, "{rule}");
        }
    }

    #[test]
    fn rules_51_to_54_a_bundle_speaks_for_its_own_domain_only() {
        let (a, b) = (Forge::new("a.test"), Forge::new("b.test"));
        let both: TrustBundles = [a.bundle(), b.bundle()].into_iter().collect();
        for purpose in [Purpose::Client, Purpose::Server] {
            let verdict = |bundles: &TrustBundles, chain: &[CertificateDer<'_>]| match judge(
                bundles,
                chain,
                purpose,
                unix_seconds(),
            ) {
                Ok(_) => "ok",
                Err(flaw) => flaw.code(),
            };
            assert_eq!(verdict(&both, &a.sign(&leaf(ID)).chain), "ok");
            assert_eq!(verdict(&both, &b.sign(&leaf("spiffe://b.test/web")).chain), "ok");
            assert_eq!(
                verdict(&b.bundles(), &a.sign(&leaf(ID)).chain),
                "unknown_trust_domain",
                "52"
            );
            let mut crossed = b.sign(&leaf(ID)).chain;
            // Not even when the authority pretends to no trust domain.
            assert_eq!(verdict(&both, &crossed), "unknown_authority", "53 b signs for a");
            crossed[1] = a.intermediate.clone();
            assert_eq!(verdict(&both, &crossed), "unknown_authority", "53 with a's intermediate");
            let foreign = a.sign(&leaf("spiffe://b.test/web")).chain;
            assert_eq!(verdict(&both, &foreign), "unknown_authority", "53 a signs for b");
        }
    }

    #[test]
    fn a_peer_bears_the_facts_of_its_leaf_and_the_first_end_of_its_path() {
        let soon = time::OffsetDateTime::now_utc() + time::Duration::minutes(5);
        let a = Forge::shaped("a.test", |_| {}, |p| p.not_after = soon);
        let mut params = leaf(ID);
        params.serial_number = Some(vec![0x00, 0xfe, 0x01].into());
        let chain = a.sign(&params).chain;
        let peer = judge(&a.bundles(), &chain, Purpose::Client, unix_seconds()).unwrap();
        assert_eq!((peer.id.as_str(), peer.serial.as_str()), (ID, "fe01"));
        assert_eq!(peer.not_after, soon.unix_timestamp());
        assert_eq!(peer.sha256, hex::encode(digest(&SHA256, &chain[0])));
        assert_eq!(peer.spki_sha256.len(), 64);
    }

    #[test]
    fn a_refused_leaf_leaves_what_it_showed_and_nothing_that_could_forge_a_log_line() {
        let a = Forge::new("a.test");
        let chain = a.sign(&leaf("spiffe://b.test/x\n{\"forged\":1}")).chain;
        let mut presented = Presented::default();
        let verifier = ChainVerifier::new(&a.bundles().into());
        let now = at(unix_seconds());
        let refused = verifier.verify(&chain[0], &chain[1..], Purpose::Client, now, &mut presented);
        assert_eq!(refused.unwrap_err().code(), "not_a_spiffe_id");
        assert_eq!(presented.id.unwrap(), r#"spiffe://b.test/x\n{\"forged\":1}"#);
        assert!(presented.serial.is_some() && presented.sha256.is_some());
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused_without_panic() {
        let a = Forge::new("a.test");
        let good = a.sign(&leaf(ID)).chain;
        let mut seed = fastrand::Rng::with_seed(7);
        for _ in 0..3000 {
            let mut der = good[0].to_vec();
            for _ in 0..seed.usize(1..4) {
                let at = seed.usize(..der.len());
                der[at] = seed.u8(..);
            }
            der.truncate(seed.usize(1..=der.len()));
            let changed = der != good[0].as_ref();
            let chain = [CertificateDer::from(der), good[1].clone()];
            let accepted = code(&a.bundles(), &chain) == "ok";
            assert!(!(accepted && changed), "a changed certificate was accepted");
        }
        let mut trailing = good[0].to_vec();
        trailing.push(0);
        let chain = [CertificateDer::from(trailing), good[1].clone()];
        assert_eq!(code(&a.bundles(), &chain), "malformed_certificate");
    }

    #[test]
    fn an_authority_that_presents_itself_is_refused() {
        let a = Forge::new("a.test");
        let chain = [a.intermediate.clone()];
        assert_eq!(code(&a.bundles(), &chain), "authority_as_leaf", "30");
        let mut ca = authority("a workload that is an authority", "a.test");
        ca.subject_alt_names = vec![uri(ID)];
        assert_eq!(code(&a.bundles(), &a.sign(&ca).chain), "authority_as_leaf", "30");
    }
}
