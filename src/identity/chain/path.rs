//! From a leaf to an authority of its trust domain: RFC 5280 path validation, and the rules for the authorities on the way.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use crate::rt::crypto::certificates as algorithm;
use crate::rt::crypto::digest::{SHA256, digest};
use rustls_pki_types::{
    CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime,
};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::leaf::{Leaf, serial_text};
use super::standing::{IssuedBy, Standing};
use super::{Flaw, Purpose};
use crate::identity::revocation_list::{Subject, may_sign_lists};
use crate::identity::{DenyList, RevocationLists, SpiffeId, TrustBundle, TrustDomain};

/// What may sign certificates: SHA-2 only, RSA from 2048 bits (48).
pub(in crate::identity) static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
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

/// One trust domain's roots: what webpki builds on, beside it what webpki does not judge of a root, and the domain's lists.
#[derive(Debug)]
pub(super) struct Anchors {
    domain: TrustDomain,
    /// See [`TrustBundle::revision`].
    pub(super) revision: Arc<str>,
    anchors: Vec<TrustAnchor<'static>>,
    roots: Vec<Root>,
    standing: Standing,
}

/// What a root says of itself.
#[derive(Debug)]
struct Root {
    not_before: i64,
    not_after: i64,
    /// How many intermediates may stand below it.
    path_length: Option<u32>,
    key: SubjectPublicKeyInfoDer<'static>,
    signs_lists: bool,
}

/// When and under which conditions a path is judged.
#[derive(Clone, Copy)]
pub(super) struct Conditions<'a> {
    /// Seconds since 1970.
    pub(super) now: i64,
    /// Seconds that a certificate may be used before its time (40).
    pub(super) leeway: i64,
    /// Who is refused at once.
    pub(super) denied: &'a DenyList,
}

impl Anchors {
    /// Parses a bundle's roots. One that cannot serve as a trust anchor is left out.
    pub(super) fn of(bundle: &TrustBundle, lists: &RevocationLists) -> Self {
        let mut found = Self {
            domain: bundle.domain.clone(),
            revision: bundle.revision().into(),
            anchors: Vec::new(),
            roots: Vec::new(),
            standing: Standing::of(&bundle.domain, lists),
        };
        for root in &bundle.roots {
            let Ok(anchor) = webpki::anchor_from_trusted_cert(root) else { continue };
            let Ok((_, certificate)) = X509Certificate::from_der(root) else { continue };
            let Ok(constraints) = certificate.basic_constraints() else { continue };
            found.anchors.push(anchor.to_owned());
            found.roots.push(Root {
                not_before: certificate.validity().not_before.timestamp(),
                not_after: certificate.validity().not_after.timestamp(),
                path_length: constraints.and_then(|found| found.value.path_len_constraint),
                key: SubjectPublicKeyInfoDer::from(certificate.public_key().raw.to_vec()),
                signs_lists: may_sign_lists(&certificate),
            });
        }
        found
    }

    /// Nobody can vouch for a chain.
    pub(super) fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Do revocation lists say who is good?
    pub(super) fn minds_lists(&self) -> bool {
        !self.standing.is_silent()
    }

    /// RFC 5280 path validation (36, 39, 42, 43, 46 to 48), the rules for intermediates (44, 45), and whether a certificate of
    /// the path was revoked or denied. Tells when the first certificate of the path expires.
    pub(super) fn path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        facts: &Leaf,
        conditions: Conditions<'_>,
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
            let earliest = self.check_path(path, facts, conditions).map_err(|flaw| {
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
                judged_at(facts, intermediates, conditions),
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
        conditions: Conditions<'_>,
    ) -> Result<i64, Flaw> {
        let mut earliest = facts.not_after;
        let mut length = 0;
        for authority in path.intermediate_certificates() {
            earliest = earliest.min(check_intermediate(&authority.der(), &facts.id)?);
            length += 1;
        }
        let chosen = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));
        let root = chosen.map(|at| &self.roots[at]).ok_or(Flaw::UnknownAuthority)?;
        if root.path_length.is_some_and(|limit| length > limit) {
            return Err(Flaw::PathLength);
        }
        if conditions.now.saturating_add(conditions.leeway) < root.not_before {
            return Err(Flaw::AuthorityNotYetValid);
        }
        if conditions.now > root.not_after {
            return Err(Flaw::AuthorityExpired);
        }
        self.check_denied(path, root, conditions.denied)?;
        if self.minds_lists() {
            self.check_standing(path, root, conditions.now)?;
        }
        Ok(earliest.min(root.not_after))
    }

    /// The deny list, for the authorities; the leaf was looked for before.
    fn check_denied(
        &self,
        path: &webpki::VerifiedPath<'_>,
        root: &Root,
        denied: &DenyList,
    ) -> Result<(), Flaw> {
        if !denied.serials.is_empty() {
            for authority in path.intermediate_certificates() {
                let serial = serial_text(authority.serial());
                if denied.serials.contains(&(self.domain.clone(), serial)) {
                    return Err(Flaw::DeniedSerial);
                }
            }
        }
        if !denied.keys.is_empty() {
            let is_denied = |key: &[u8]| denied.keys.contains(&hex::encode(digest(&SHA256, key)));
            let mut authorities = path.intermediate_certificates();
            if is_denied(&root.key)
                || authorities.any(|authority| is_denied(&authority.subject_public_key_info()))
            {
                return Err(Flaw::DeniedKey);
            }
        }
        Ok(())
    }

    /// The revocation lists, for the whole path from the root down.
    fn check_standing(
        &self,
        path: &webpki::VerifiedPath<'_>,
        root: &Root,
        now: i64,
    ) -> Result<(), Flaw> {
        let mut name = path.anchor().subject.as_ref().to_vec();
        let mut key = root.key.clone();
        let mut signs_lists = root.signs_lists;
        // The first is the leaf's issuer, so that the walk from the root goes backwards.
        for authority in path.intermediate_certificates().rev() {
            let der = authority.der();
            let subject = Subject { der: &der, serial: authority.serial(), is_authority: true };
            let issuer = IssuedBy { name: &name, key: &key, signs_lists };
            self.standing.check(&subject, &issuer, now)?;
            name = authority.subject().to_vec();
            key = authority.subject_public_key_info();
            signs_lists = match X509Certificate::from_der(&der) {
                Ok((_, parsed)) => may_sign_lists(&parsed),
                Err(_) => false,
            };
        }
        let leaf = path.end_entity();
        let der = leaf.der();
        let subject = Subject { der: &der, serial: leaf.serial(), is_authority: false };
        self.standing.check(&subject, &IssuedBy { name: &name, key: &key, signs_lists }, now)
    }
}

/// The time that webpki judges by: now, or as much later as the leeway must reach for a certificate that is about to begin.
///
/// webpki has one time for the beginning and the end of validity. The later time makes it stricter about the end, never laxer.
fn judged_at(
    facts: &Leaf,
    intermediates: &[CertificateDer<'_>],
    conditions: Conditions<'_>,
) -> UnixTime {
    let mut time = conditions.now;
    if conditions.leeway > 0 {
        let latest = conditions.now.saturating_add(conditions.leeway);
        let beginnings = intermediates.iter().filter_map(|der| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            Some(certificate.validity().not_before.timestamp())
        });
        for beginning in beginnings.chain([facts.not_before]) {
            if beginning <= latest {
                time = time.max(beginning);
            }
        }
    }
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(time).unwrap_or(0)))
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
                    check_authority_id(uri, leaf)?;
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

/// Rules 44 and 45. URIs of other schemes are nobody's identity; only a SPIFFE ID binds an authority to a trust domain.
fn check_authority_id(uri: &str, leaf: &SpiffeId) -> Result<(), Flaw> {
    let scheme = uri.get(..7).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("spiffe:") {
        return Ok(());
    }
    // The specification's own example of a root ends with a slash (Trust Domain and Bundle, appendix A).
    let bare = match uri.strip_suffix('/') {
        Some(bare) if bare.matches('/').count() == 2 => bare,
        _ => uri,
    };
    let id: SpiffeId = bare.parse().map_err(Flaw::AuthorityId)?;
    if !id.path().is_empty() {
        return Err(Flaw::AuthorityIdPath);
    }
    if id.trust_domain_name() != leaf.trust_domain_name() {
        return Err(Flaw::AuthorityOtherDomain);
    }
    Ok(())
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
