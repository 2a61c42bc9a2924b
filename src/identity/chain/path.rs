//! From a leaf to an authority of its trust domain: RFC 5280 path validation, and the rules for the authorities on the way.

use std::cell::{Cell, RefCell};

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, ring as algorithm};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::leaf::Leaf;
use super::{Flaw, Purpose};
use crate::identity::{SpiffeId, TrustBundle};

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

/// One trust domain's roots: what webpki builds on, and beside it what webpki does not judge of a root.
#[derive(Debug, Default)]
pub(super) struct Anchors {
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

impl Anchors {
    /// Parses a bundle's roots. One that cannot serve as a trust anchor is left out.
    pub(super) fn of(bundle: &TrustBundle) -> Self {
        let mut found = Self::default();
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
        found
    }

    /// Nobody can vouch for a chain.
    pub(super) fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// RFC 5280 path validation (36, 39, 42, 43, 46 to 48) and the rules for intermediates (44, 45). Tells when the first
    /// certificate of the path expires.
    pub(super) fn path(
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
