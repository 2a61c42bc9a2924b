//! `RevocationList`: a certificate revocation list (RFC 5280, section 5), parsed once and asked often.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm,
    SubjectPublicKeyInfoDer,
};
use webpki::{CertRevocationList, OwnedCertRevocationList, RawPublicKeyEntity};
use x509_parser::asn1_rs::Any;
use x509_parser::extensions::DistributionPointName;
use x509_parser::prelude::{
    CertificateRevocationList, FromDer, GeneralName, ParsedExtension, X509Certificate,
};

use super::chain::ALGORITHMS;
use super::{Error, TrustBundle};

/// What a list says and who says it. That a list is parsed does not make it true: its issuer's signature is asked for with
/// [`RevocationList::is_signed_by`], and by the verifier for each authority on a path.
///
/// Version 2 lists with a nextUpdate are taken. Delta lists, indirect lists, lists of only some reasons and lists with critical
/// extensions that are not understood are refused: to read them half would be to miss revocations.
#[derive(Debug)]
pub struct RevocationList {
    der: CertificateRevocationListDer<'static>,
    list: CertRevocationList<'static>,
    issuer: String,
    number: Option<String>,
    this_update: i64,
    next_update: i64,
    entries: usize,
    scope: Scope,
    signed: Signed,
}

/// Of which certificates of its issuer a list speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scope {
    leaves: bool,
    authorities: bool,
    /// It is one of several parts, told apart by their distribution points.
    part: bool,
}

/// Where in the DER the signature is and what it is about.
#[derive(Debug)]
struct Signed {
    message: std::ops::Range<usize>,
    algorithm: Vec<u8>,
    signature: Vec<u8>,
}

/// A certificate whose standing is asked for.
pub(super) struct Subject<'a> {
    /// The certificate.
    pub(super) der: &'a [u8],
    /// Its serial number as DER has it.
    pub(super) serial: &'a [u8],
    /// It is an authority's.
    pub(super) is_authority: bool,
}

/// Where a list comes from, as far as a bundle can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListOrigin {
    /// One of its roots signed it.
    Root,
    /// It bears a root's name and not its signature.
    Forged,
    /// It is by an authority that the bundle does not have: an intermediate, which only a peer's chain shows.
    Unknown,
}

/// Two lists are one when they are the same to the byte.
impl PartialEq for RevocationList {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for RevocationList {}

impl RevocationList {
    /// Bytes of one list that are read; a larger one is refused.
    pub const MAX_BYTES: usize = 16 * 1024 * 1024;

    /// Reads one list.
    ///
    /// # Errors
    /// It is not DER of a revocation list, bytes trail, or it is of a kind that is not taken.
    pub fn from_der(der: CertificateRevocationListDer<'static>) -> Result<Self, Error> {
        let wrong = |detail: &str| Error::RevocationList { detail: detail.into() };
        if der.len() > Self::MAX_BYTES {
            return Err(wrong("it is larger than 16 MiB"));
        }
        // webpki first: the stricter reader, and the one that has the last word on what is in the list.
        let list = OwnedCertRevocationList::from_der(&der).map_err(refused)?;
        let (rest, parsed) = CertificateRevocationList::from_der(&der)
            .map_err(|_| wrong("it is not a revocation list"))?;
        if !rest.is_empty() {
            return Err(wrong("bytes after its end"));
        }
        let next_update = parsed.next_update().ok_or_else(|| wrong("it has no nextUpdate"))?;
        let scope = scope(&parsed).ok_or_else(|| wrong("its distribution point is malformed"))?;
        let signed = signed(&der, &parsed).ok_or_else(|| wrong("its signature is malformed"))?;
        Ok(Self {
            issuer: parsed.issuer().to_string(),
            number: parsed.crl_number().map(|number| number.to_str_radix(16)),
            this_update: parsed.last_update().timestamp(),
            next_update: next_update.timestamp(),
            entries: parsed.iter_revoked_certificates().count(),
            list: list.into(),
            scope,
            signed,
            der,
        })
    }

    /// Reads what a file or an answer holds: PEM with one list or more, or the DER of one.
    ///
    /// # Errors
    /// There is no list, or one of them cannot be read.
    pub fn read(content: &[u8]) -> Result<Vec<Self>, Error> {
        let expected = "at least one revocation list";
        // DER begins with the tag of a SEQUENCE.
        if content.first() == Some(&0x30) {
            let der = CertificateRevocationListDer::from(content.to_vec());
            return Ok(vec![Self::from_der(der)?]);
        }
        let found = CertificateRevocationListDer::pem_slice_iter(content)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Error::Pem { expected, found: error.to_string() })?;
        if found.is_empty() {
            return Err(Error::Pem { expected, found: "none".into() });
        }
        found.into_iter().map(Self::from_der).collect()
    }

    /// The list as it came.
    pub fn der(&self) -> &CertificateRevocationListDer<'static> {
        &self.der
    }

    /// Its issuer's name. Escape it before a terminal sees it: it may be anything.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// cRLNumber, hexadecimal: grows with each list of the issuer.
    pub fn number(&self) -> Option<&str> {
        self.number.as_deref()
    }

    /// When it was made, seconds since 1970.
    pub fn this_update(&self) -> i64 {
        self.this_update
    }

    /// When the next one is there at the latest, seconds since 1970: from then on this one is out of date.
    pub fn next_update(&self) -> i64 {
        self.next_update
    }

    /// How many certificates it revokes.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Is it neither of the future nor out of date?
    pub fn is_current(&self, now: i64) -> bool {
        (self.this_update..self.next_update).contains(&now)
    }

    /// Did this authority issue the list? Its name is the list's issuer, it may sign lists, and the signature is its own.
    pub fn is_signed_by(&self, authority: &CertificateDer<'_>) -> bool {
        let Ok((_, parsed)) = X509Certificate::from_der(authority) else { return false };
        let Ok(anchor) = webpki::anchor_from_trusted_cert(authority) else { return false };
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
        *anchor.subject == *self.issuer_der()
            && may_sign_lists(&parsed)
            && self.is_signed_with(&key)
    }

    /// What a bundle says about where it comes from.
    pub fn origin(&self, bundle: &TrustBundle) -> ListOrigin {
        // Roots that follow one another may have the same name.
        if bundle.roots.iter().any(|root| self.is_signed_by(root)) {
            return ListOrigin::Root;
        }
        let has_its_name = |root: &CertificateDer<'_>| {
            webpki::anchor_from_trusted_cert(root)
                .is_ok_and(|anchor| *anchor.subject == *self.issuer_der())
        };
        match bundle.roots.iter().any(has_its_name) {
            true => ListOrigin::Forged,
            false => ListOrigin::Unknown,
        }
    }

    /// Does it name this certificate? `serial` is the serial number in lower-case hexadecimal, without leading zeros.
    pub fn revokes(&self, serial: &str) -> bool {
        let Ok(bytes) = hex::decode(serial) else { return false };
        // DER puts a zero before a number whose first bit is set.
        let signed = [&[0], bytes.as_slice()].concat();
        self.names(if bytes.first().is_some_and(|byte| *byte >= 0x80) { &signed } else { &bytes })
    }

    /// The issuer's name as DER, without the outer tag and length.
    pub(super) fn issuer_der(&self) -> &[u8] {
        self.list.issuer()
    }

    /// Does it name this serial number, given as DER has it?
    pub(super) fn names(&self, serial: &[u8]) -> bool {
        // An error means an entry that cannot be read; such lists were refused when they came.
        !matches!(self.list.find_serial(serial), Ok(None))
    }

    /// Would it name this certificate if it were revoked? Only the issuer is asked elsewhere.
    ///
    /// A part of a list speaks for certificates that point to this part, and for those that point nowhere.
    pub(super) fn covers(&self, subject: &Subject<'_>) -> bool {
        let kind = if subject.is_authority { self.scope.authorities } else { self.scope.leaves };
        kind && (!self.scope.part || self.is_named_by(subject.der))
    }

    fn is_named_by(&self, certificate: &[u8]) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
        let Ok((_, list)) = CertificateRevocationList::from_der(&self.der) else { return false };
        let own =
            list.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::IssuingDistributionPoint(point) => {
                    point.distribution_point.as_ref()
                }
                _ => None,
            });
        let own: Vec<&str> = own.into_iter().flat_map(addresses).collect();
        let mut points_somewhere = false;
        for extension in certificate.extensions() {
            let ParsedExtension::CRLDistributionPoints(points) = extension.parsed_extension()
            else {
                continue;
            };
            points_somewhere = true;
            for point in points.iter() {
                // Another issuer's list, or one of some reasons: not what this list is.
                if point.crl_issuer.is_some() || point.reasons.is_some() {
                    continue;
                }
                let names = point.distribution_point.as_ref();
                if names.into_iter().flat_map(addresses).any(|name| own.contains(&name)) {
                    return true;
                }
            }
        }
        !points_somewhere
    }

    /// Is the signature by this key?
    pub(super) fn is_signed_with(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let Ok(key) = RawPublicKeyEntity::try_from(key) else { return false };
        let message = &self.der[self.signed.message.clone()];
        let fits = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
            algorithm.signature_alg_id().as_ref() == self.signed.algorithm
        };
        ALGORITHMS.iter().filter(fits).any(|algorithm| {
            key.verify_signature(*algorithm, message, &self.signed.signature).is_ok()
        })
    }
}

/// An authority without a key usage may do everything (RFC 5280, section 4.2.1.3).
pub(super) fn may_sign_lists(authority: &X509Certificate<'_>) -> bool {
    match authority.key_usage() {
        Ok(Some(usage)) => usage.value.crl_sign(),
        Ok(None) => true,
        Err(_) => false,
    }
}

fn refused(error: webpki::Error) -> Error {
    use webpki::Error as E;
    let detail = match error {
        E::UnsupportedDeltaCrl => "it is a delta list, which is not taken".to_owned(),
        E::UnsupportedIndirectCrl => "it is an indirect list, which is not taken".to_owned(),
        E::UnsupportedRevocationReasonsPartitioning => {
            "it is a list of some reasons only, which is not taken".to_owned()
        }
        E::UnsupportedCrlVersion => "it is not of version 2".to_owned(),
        E::UnsupportedCriticalExtension => {
            "it has a critical extension that is not understood".to_owned()
        }
        other => format!("it is malformed ({other})"),
    };
    Error::RevocationList { detail }
}

fn scope(list: &CertificateRevocationList<'_>) -> Option<Scope> {
    let mut scope = Scope { leaves: true, authorities: true, part: false };
    for extension in list.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::IssuingDistributionPoint(point) => {
                scope = Scope {
                    leaves: !point.only_contains_ca_certs,
                    authorities: !point.only_contains_user_certs,
                    part: point.distribution_point.is_some(),
                };
            }
            ParsedExtension::ParseError { .. } => return None,
            _ => {}
        }
    }
    Some(scope)
}

fn signed(der: &[u8], list: &CertificateRevocationList<'_>) -> Option<Signed> {
    // CertificateList ::= SEQUENCE { tbsCertList, signatureAlgorithm, signature }
    let message = list.tbs_cert_list.as_ref();
    let from = message.as_ptr().addr().checked_sub(der.as_ptr().addr())?;
    let message = from..from + message.len();
    let (_, algorithm) = Any::from_der(der.get(message.end..)?).ok()?;
    if list.signature_value.unused_bits != 0 {
        return None;
    }
    Some(Signed {
        message,
        algorithm: algorithm.data.to_vec(),
        signature: list.signature_value.data.to_vec(),
    })
}

fn addresses<'a>(name: &'a DistributionPointName<'a>) -> impl Iterator<Item = &'a str> {
    let names = match name {
        DistributionPointName::FullName(names) => names.as_slice(),
        DistributionPointName::NameRelativeToCRLIssuer(_) => &[],
    };
    names.iter().filter_map(|name| match name {
        GeneralName::URI(address) => Some(*address),
        _ => None,
    })
}
