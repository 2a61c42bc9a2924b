//! `Flaw`: what may be wrong with a certificate chain, each with its stable name.

use super::Purpose;
use crate::identity::TrustDomain;
use crate::identity::spiffe_id::Error as InvalidSpiffeId;

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
    /// Rule 33, in strict mode.
    #[error("the leaf's key usage is not marked critical, as strict mode asks")]
    KeyUsageNotCritical,
    /// Rule 41, in strict mode.
    #[error("the subject is empty and the names are not marked critical, as strict mode asks")]
    NamesNotCritical,
    /// Rule 44: an authority's URI begins as a SPIFFE ID and is none.
    #[error("an intermediate's URI name is not a SPIFFE ID: {0}")]
    AuthorityId(InvalidSpiffeId),
    /// An authentic revocation list names the leaf.
    #[error("the certificate was revoked")]
    Revoked,
    /// An authentic revocation list names an intermediate.
    #[error("an authority in the chain was revoked")]
    AuthorityRevoked,
    /// Mode hard: no authentic revocation list speaks for a certificate of the chain.
    #[error(
        "no revocation list speaks for a certificate of the chain, and the trust domain asks for one"
    )]
    RevocationUnknown,
    /// Mode hard: every list that speaks for a certificate of the chain is out of date or of the future.
    #[error("the revocation list for a certificate of the chain is out of date")]
    RevocationExpired,
    /// The deny list has the serial number of a certificate of the chain.
    #[error("the deny list names a serial number in the chain")]
    DeniedSerial,
    /// The deny list has the public key of a certificate of the chain, or of its root.
    #[error("the deny list names a public key in the chain")]
    DeniedKey,
    /// The deny list has the SPIFFE ID.
    #[error("the deny list names the SPIFFE ID")]
    DeniedId,
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
            Self::KeyUsageNotCritical => "key_usage_not_critical",
            Self::NamesNotCritical => "names_not_critical",
            Self::AuthorityId(_) => "authority_id_invalid",
            Self::Revoked => "revoked",
            Self::AuthorityRevoked => "authority_revoked",
            Self::RevocationUnknown => "revocation_unknown",
            Self::RevocationExpired => "revocation_expired",
            Self::DeniedSerial => "denied_serial",
            Self::DeniedKey => "denied_key",
            Self::DeniedId => "denied_id",
            Self::PathTooCostly => "path_too_costly",
            Self::Path(_) => "path_validation",
        }
    }
}
