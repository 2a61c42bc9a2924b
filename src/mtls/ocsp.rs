//! OCSP (RFC 6960) for public certificates: the question about one, and what an answer says. No I/O; the time comes in by
//! argument.
//!
//! An answer is stapled to handshakes, where the client judges it. We judge it first, so that a responder that is broken or
//! captured cannot make us show what clients refuse.

use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use time::{Date, Month, PrimitiveDateTime, Time};
use webpki::RawPublicKeyEntity;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::provider;
use crate::rt::crypto::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// Why an OCSP answer is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not an OCSP response, or not one of the basic type.
    #[error("the answer is malformed: {0}")]
    Malformed(&'static str),
    /// The responder says that it cannot answer.
    #[error("the responder refuses with status {0} (RFC 6960, 4.2.1)")]
    Refused(u8),
    /// It speaks of other certificates.
    #[error("the answer is about another certificate")]
    OtherCertificate,
    /// Neither the issuer nor somebody that it delegated to has signed it.
    #[error("the answer is not signed by the certificate's issuer or its delegate")]
    Signature,
    /// It is not of this time.
    #[error(
        "the answer is of another time: it holds from {this_update} to {next_update} (seconds since 1970)"
    )]
    NotCurrent {
        /// From when it holds.
        this_update: i64,
        /// Until when it holds.
        next_update: i64,
    },
    /// The issuer has revoked the certificate.
    #[error("the issuer has revoked the certificate")]
    Revoked,
    /// The responder does not know the certificate.
    #[error("the responder does not know the certificate")]
    Unknown,
}

/// What one asks an OCSP responder about a certificate, and whom.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where responders are, from the certificate: `http` URLs.
    pub responders: Vec<String>,
    request: Vec<u8>,
    certificate_id: CertificateId,
    issuer: CertificateDer<'static>,
}

/// CertID: who is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CertificateId {
    name_hash: Vec<u8>,
    key_hash: Vec<u8>,
    serial: Vec<u8>,
}

/// An answer that may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The whole OCSP response, as it is stapled.
    pub der: Vec<u8>,
    /// From when it holds, seconds since 1970.
    pub this_update: i64,
    /// Until when it holds, seconds since 1970.
    pub next_update: i64,
}

/// A responder's clock may be ahead of ours.
const AHEAD: i64 = 300;
/// How long an answer holds that does not say how long: newer ones are always there.
const UNSAID: i64 = 3600;
/// Bytes of an answer that are read; they go into every handshake.
pub const MAX_ANSWER_BYTES: usize = 32 * 1024;

/// SHA-1 with its NULL. It names a certificate here and proves nothing; responders know no other (RFC 5019).
const SHA1: [u8; 11] = [0x30, 9, 6, 5, 0x2b, 0x0e, 3, 2, 0x1a, 5, 0];
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];

/// Does the certificate demand that an answer is stapled (RFC 7633)?
pub(super) fn must_staple(leaf: &[u8]) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return false };
    let feature =
        parsed.extensions().iter().find(|one| one.oid.to_id_string() == "1.3.6.1.5.5.7.1.24");
    feature.is_some_and(|one| {
        let mut list = Der(one.value);
        let Some(mut features) = list.take(0x30).map(Der) else { return false };
        std::iter::from_fn(|| features.take(2)).any(|number| number == [5])
    })
}

impl Question {
    /// The question about the first certificate of a chain. `None` when the certificate names no responder that is asked over
    /// HTTP, or the chain lacks its issuer.
    pub fn about(chain: &[CertificateDer<'static>]) -> Option<Self> {
        let [leaf, issuer, ..] = chain else { return None };
        let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
        let (_, parsed) = X509Certificate::from_der(issuer).ok()?;
        if leaf.issuer().as_raw() != parsed.subject().as_raw() {
            return None;
        }
        let mut responders = Vec::new();
        for extension in leaf.extensions() {
            let ParsedExtension::AuthorityInfoAccess(access) = extension.parsed_extension() else {
                continue;
            };
            for one in &access.accessdescs {
                let is_ocsp = one.access_method.to_id_string() == "1.3.6.1.5.5.7.48.1";
                if let (true, GeneralName::URI(url)) = (is_ocsp, &one.access_location)
                    && url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"))
                {
                    responders.push((*url).to_owned());
                }
            }
        }
        if responders.is_empty() {
            return None;
        }
        let sha1 = |bytes: &[u8]| digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec();
        let certificate_id = CertificateId {
            name_hash: sha1(parsed.subject().as_raw()),
            key_hash: sha1(&parsed.public_key().subject_public_key.data),
            serial: leaf.raw_serial().to_vec(),
        };
        let request = certificate_id.request();
        Some(Self { responders, request, certificate_id, issuer: issuer.clone() })
    }

    /// The request as it is sent: `application/ocsp-request`, without a nonce, since the answer is for many.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Judges an answer.
    ///
    /// # Errors
    /// It cannot be stapled; also when it says that the certificate is revoked.
    pub fn answered(&self, der: Vec<u8>, now: i64) -> Result<Answer, Error> {
        let basic = basic_response(&der)?;
        let malformed = |what| move || Error::Malformed(what);
        let mut response = Der(basic).whole(0x30).ok_or_else(malformed("the basic response"))?;
        let (signed, data) = response.take_whole(0x30).ok_or_else(malformed("its data"))?;
        let algorithm = response.take(0x30).ok_or_else(malformed("its algorithm"))?;
        let signature = response.take(3).and_then(|bits| bits.strip_prefix(&[0]));
        let signature = signature.ok_or_else(malformed("its signature"))?;
        let certificates = match response.take(0xa0) {
            Some(list) => Der(list).whole(0x30).ok_or_else(malformed("its certificates"))?,
            None => Der(&[]),
        };
        if !response.0.is_empty() {
            return Err(Error::Malformed("bytes after its end"));
        }
        if !self.is_authentic(signed, algorithm, signature, certificates, now) {
            return Err(Error::Signature);
        }
        let (status, this_update, next_update) = self.single(Der(data))?;
        match status {
            Status::Good => {}
            Status::Revoked => return Err(Error::Revoked),
            Status::Unknown => return Err(Error::Unknown),
        }
        let next_update = next_update.unwrap_or(this_update + UNSAID);
        if this_update > now + AHEAD || next_update <= now {
            return Err(Error::NotCurrent { this_update, next_update });
        }
        Ok(Answer { der, this_update, next_update })
    }

    /// What the response data say of our certificate.
    fn single(&self, mut data: Der<'_>) -> Result<(Status, i64, Option<i64>), Error> {
        let malformed = |what| move || Error::Malformed(what);
        data.take(0xa0); // version
        let responder = data.take(0xa1).or_else(|| data.take(0xa2));
        responder.ok_or_else(malformed("its responder"))?;
        data.take(0x18).ok_or_else(malformed("its time"))?;
        let mut singles = Der(data.take(0x30).ok_or_else(malformed("its list"))?);
        while let Some(single) = singles.take(0x30) {
            let mut single = Der(single);
            let id = single.take(0x30).ok_or_else(malformed("a certificate's id"))?;
            if !self.certificate_id.is(id) {
                continue;
            }
            let status = match single.take_any().ok_or_else(malformed("a status"))? {
                (0x80, _) => Status::Good,
                (0xa1, _) => Status::Revoked,
                (0x82, _) => Status::Unknown,
                _ => return Err(Error::Malformed("a status")),
            };
            let time = |text: Option<&[u8]>| text.and_then(seconds);
            let this_update = time(single.take(0x18)).ok_or_else(malformed("thisUpdate"))?;
            let next_update = match single.take(0xa0) {
                None => None,
                Some(inner) => {
                    Some(time(Der(inner).take(0x18)).ok_or_else(malformed("nextUpdate"))?)
                }
            };
            return Ok((status, this_update, next_update));
        }
        Err(Error::OtherCertificate)
    }

    /// Is it signed by the issuer, or by a responder whose certificate the issuer signed for just this?
    fn is_authentic(
        &self,
        signed: &[u8],
        algorithm: &[u8],
        signature: &[u8],
        mut certificates: Der<'_>,
        now: i64,
    ) -> bool {
        let Ok((_, issuer)) = X509Certificate::from_der(&self.issuer) else { return false };
        if is_signed_with(issuer.public_key().raw, signed, algorithm, signature) {
            return true;
        }
        while let Some((der, _)) = certificates.take_whole(0x30) {
            let Ok((_, delegate)) = X509Certificate::from_der(der) else { continue };
            let usage = delegate.extended_key_usage().ok().flatten();
            let may = usage.is_some_and(|usage| usage.value.ocsp_signing);
            let validity = delegate.validity();
            let is_current =
                validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp();
            if may
                && is_current
                && delegate.issuer().as_raw() == issuer.subject().as_raw()
                && delegate.verify_signature(Some(issuer.public_key())).is_ok()
                && is_signed_with(delegate.public_key().raw, signed, algorithm, signature)
            {
                return true;
            }
        }
        false
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Good,
    Revoked,
    Unknown,
}

fn is_signed_with(key: &[u8], message: &[u8], algorithm: &[u8], signature: &[u8]) -> bool {
    let key = SubjectPublicKeyInfoDer::from(key);
    let Ok(key) = RawPublicKeyEntity::try_from(&key) else { return false };
    let known = provider().signature_verification_algorithms.all;
    let fitting = known.iter().filter(|one| one.signature_alg_id().as_ref() == algorithm);
    fitting.into_iter().any(|one| key.verify_signature(*one, message, signature).is_ok())
}

/// The basic response within an OCSP response.
fn basic_response(der: &[u8]) -> Result<&[u8], Error> {
    let malformed = |what| move || Error::Malformed(what);
    let mut response = Der(der).whole(0x30).ok_or_else(malformed("not an OCSP response"))?;
    match response.take(0x0a).ok_or_else(malformed("no status"))? {
        [0] => {}
        [status] => return Err(Error::Refused(*status)),
        _ => return Err(Error::Malformed("its status")),
    }
    let bytes = response.take(0xa0).ok_or_else(malformed("no content"))?;
    let mut bytes = Der(bytes).whole(0x30).ok_or_else(malformed("its content"))?;
    if bytes.take(6) != Some(BASIC) {
        return Err(Error::Malformed("not of the basic type"));
    }
    bytes.take(4).ok_or_else(malformed("its content"))
}

impl CertificateId {
    fn der(&self) -> Vec<u8> {
        let parts =
            [SHA1.to_vec(), tlv(4, &self.name_hash), tlv(4, &self.key_hash), tlv(2, &self.serial)];
        tlv(0x30, &parts.concat())
    }

    fn request(&self) -> Vec<u8> {
        // OCSPRequest { TBSRequest { requestList { Request { CertID } } } }
        (0..4).fold(self.der(), |inner, _| tlv(0x30, &inner))
    }

    /// Is it this CertID's content?
    fn is(&self, content: &[u8]) -> bool {
        let own = self.der();
        Der(&own).take(0x30) == Some(content) || self.is_without_null(content)
    }

    /// Some responders leave out the NULL behind the algorithm.
    fn is_without_null(&self, content: &[u8]) -> bool {
        let mut id = Der(content);
        let fits = |found: Option<&[u8]>, own: &[u8]| found == Some(own);
        fits(id.take(0x30), &SHA1[2..9])
            && fits(id.take(4), &self.name_hash)
            && fits(id.take(4), &self.key_hash)
            && fits(id.take(2), &self.serial)
            && id.0.is_empty()
    }
}

/// `YYYYMMDDhhmmssZ`, the one form that RFC 5280 allows here.
fn seconds(text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z").filter(|digits| digits.len() == 14)?;
    let number = |range: std::ops::Range<usize>| -> Option<u16> {
        let part = digits.get(range).filter(|part| part.iter().all(u8::is_ascii_digit))?;
        std::str::from_utf8(part).ok()?.parse().ok()
    };
    let small = |range| u8::try_from(number(range)?).ok();
    let month = Month::try_from(small(4..6)?).ok()?;
    let date = Date::from_calendar_date(number(0..4)?.into(), month, small(6..8)?).ok()?;
    let time = Time::from_hms(small(8..10)?, small(10..12)?, small(12..14)?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp())
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=127 => out.push(short.to_le_bytes()[0]),
        long => {
            let bytes = long.to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            out.push(0x80 | (bytes.len() - zeros).to_le_bytes()[0]);
            out.extend_from_slice(&bytes[zeros..]);
        }
    }
    out.extend_from_slice(content);
    out
}

/// What is left of a piece of DER: elements of one-byte tags and definite, minimal lengths.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element as (tag, whole, content).
    fn next(&self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, header) = match *first {
            short @ 0..=127 => (usize::from(short), 2),
            count @ 0x81..=0x84 => {
                let count = usize::from(count & 0x7f);
                let bytes = rest.get(..count)?;
                let length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                if bytes[0] == 0 || length < 128 {
                    return None;
                }
                (length, 2 + count)
            }
            _ => return None,
        };
        let whole = self.0.get(..header.checked_add(length)?)?;
        Some((*tag, whole, &whole[header..]))
    }

    fn take_any(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, whole, content) = self.next()?;
        self.0 = &self.0[whole.len()..];
        Some((tag, content))
    }

    /// The next element as (whole, content), if it has this tag.
    fn take_whole(&mut self, wanted: u8) -> Option<(&'a [u8], &'a [u8])> {
        let (tag, whole, content) = self.next()?;
        if tag != wanted {
            return None;
        }
        self.0 = &self.0[whole.len()..];
        Some((whole, content))
    }

    fn take(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.take_whole(wanted).map(|(_, content)| content)
    }

    /// The content of the one element that this is.
    fn whole(mut self, wanted: u8) -> Option<Self> {
        let content = self.take(wanted)?;
        self.0.is_empty().then_some(Self(content))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa,
        Issuer, KeyPair, SigningKey,
    };

    use super::*;
    use crate::rt::unix_seconds;

    const URL: &str = "http://ocsp.example/here";

    /// An authority that answers, and a certificate of it.
    struct World {
        key: KeyPair,
        params: CertificateParams,
        chain: Vec<CertificateDer<'static>>,
    }

    fn access(url: &str) -> CustomExtension {
        let method = tlv(6, &[0x2b, 6, 1, 5, 5, 7, 0x30, 1]);
        let one = tlv(0x30, &[method, tlv(0x86, url.as_bytes())].concat());
        CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], tlv(0x30, &one))
    }

    impl World {
        fn new(extensions: Vec<CustomExtension>) -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let root = params.self_signed(&key).unwrap();
            let issuer = Issuer::from_params(&params, &key);
            let mut leaf = CertificateParams::new(["shop.example".to_owned()]).unwrap();
            leaf.custom_extensions = extensions;
            let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
            let chain = vec![leaf.der().clone(), root.der().clone()];
            Self { key, params, chain }
        }

        fn question(&self) -> Question {
            Question::about(&self.chain).unwrap()
        }

        fn delegate(&self, usages: Vec<ExtendedKeyUsagePurpose>) -> (KeyPair, Vec<u8>) {
            let mut params = CertificateParams::default();
            params.extended_key_usages = usages;
            let key = KeyPair::generate().unwrap();
            let issuer = Issuer::from_params(&self.params, &self.key);
            let made = params.signed_by(&key, &issuer).unwrap();
            (key, made.der().to_vec())
        }
    }

    fn time_text(seconds: i64) -> Vec<u8> {
        let at = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        let (date, time) = (at.date(), at.time());
        format!(
            "{:04}{:02}{:02}{:02}{:02}{:02}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            time.hour(),
            time.minute(),
            time.second()
        )
        .into_bytes()
    }

    fn respond(
        id: &[u8],
        status: &[u8],
        this: i64,
        next: Option<i64>,
        key: &KeyPair,
        certificates: &[Vec<u8>],
    ) -> Vec<u8> {
        let mut single = [id.to_vec(), status.to_vec(), tlv(0x18, &time_text(this))].concat();
        if let Some(next) = next {
            single.extend(tlv(0xa0, &tlv(0x18, &time_text(next))));
        }
        let data = [
            tlv(0xa2, &tlv(4, b"key")),
            tlv(0x18, &time_text(this)),
            tlv(0x30, &tlv(0x30, &single)),
        ]
        .concat();
        let data = tlv(0x30, &data);
        let signature = [vec![0], key.sign(&data).unwrap()].concat();
        // ecdsa-with-SHA256
        let algorithm = tlv(0x30, &tlv(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]));
        let mut basic = [data, algorithm, tlv(3, &signature)].concat();
        if !certificates.is_empty() {
            basic.extend(tlv(0xa0, &tlv(0x30, &certificates.concat())));
        }
        let content = [tlv(6, BASIC), tlv(4, &tlv(0x30, &basic))].concat();
        tlv(0x30, &[tlv(0x0a, &[0]), tlv(0xa0, &tlv(0x30, &content))].concat())
    }

    const GOOD: &[u8] = &[0x80, 0];

    #[test]
    fn an_answer_of_the_issuer_or_its_delegate_is_taken_and_no_other() {
        let world = World::new(vec![access(URL)]);
        let question = world.question();
        assert_eq!(question.responders, [URL]);
        let (now, id) = (unix_seconds(), question.certificate_id.der());
        let until = Some(now + 3600);
        let ask = |der: Vec<u8>| question.answered(der, now);

        let good = ask(respond(&id, GOOD, now - 60, until, &world.key, &[])).unwrap();
        assert_eq!((good.this_update, good.next_update), (now - 60, now + 3600));
        let without = ask(respond(&id, GOOD, now - 60, None, &world.key, &[])).unwrap();
        assert_eq!(without.next_update, now - 60 + UNSAID);

        let (key, certificate) = world.delegate(vec![ExtendedKeyUsagePurpose::OcspSigning]);
        ask(respond(&id, GOOD, now, until, &key, std::slice::from_ref(&certificate))).unwrap();
        let stranger = KeyPair::generate().unwrap();
        for (what, key, certificates) in [
            ("nobody's key", &stranger, vec![]),
            ("a delegate's certificate with another key", &stranger, vec![certificate]),
        ] {
            let answer = ask(respond(&id, GOOD, now, until, key, &certificates));
            assert_eq!(answer, Err(Error::Signature), "{what}");
        }
        let (key, certificate) = world.delegate(vec![ExtendedKeyUsagePurpose::ServerAuth]);
        let answer = ask(respond(&id, GOOD, now, until, &key, &[certificate]));
        assert_eq!(answer, Err(Error::Signature), "a server of the same authority");
        let other = World::new(vec![access(URL)]);
        let (key, certificate) = other.delegate(vec![ExtendedKeyUsagePurpose::OcspSigning]);
        let answer = ask(respond(&id, GOOD, now, until, &key, &[certificate]));
        assert_eq!(answer, Err(Error::Signature), "another authority's delegate");
    }

    #[test]
    fn an_answer_must_be_good_current_and_about_this_certificate() {
        let world = World::new(vec![access(URL)]);
        let question = world.question();
        let (now, id) = (unix_seconds(), question.certificate_id.der());
        let answer = |status: &[u8], this, next| {
            question.answered(respond(&id, status, this, Some(next), &world.key, &[]), now)
        };
        let revoked = tlv(0xa1, &tlv(0x18, &time_text(now - 9)));
        assert_eq!(answer(&revoked, now, now + 60), Err(Error::Revoked));
        assert_eq!(answer(&[0x82, 0], now, now + 60), Err(Error::Unknown));
        assert!(matches!(answer(GOOD, now - 90, now), Err(Error::NotCurrent { .. })));
        assert!(matches!(answer(GOOD, now + 900, now + 999), Err(Error::NotCurrent { .. })));
        assert!(answer(GOOD, now + 60, now + 999).is_ok(), "a clock a little ahead");

        let mut other = question.certificate_id.clone();
        other.serial[0] ^= 1;
        let about = respond(&other.der(), GOOD, now, Some(now + 60), &world.key, &[]);
        assert_eq!(question.answered(about, now), Err(Error::OtherCertificate));
        let refusal = tlv(0x30, &tlv(0x0a, &[6]));
        assert_eq!(question.answered(refusal, now), Err(Error::Refused(6)));
    }

    #[test]
    fn damaged_answers_are_errors_whatever_the_damage() {
        let world = World::new(vec![access(URL)]);
        let question = world.question();
        let (now, id) = (unix_seconds(), question.certificate_id.der());
        let good = respond(&id, GOOD, now, Some(now + 60), &world.key, &[]);
        for at in 0..good.len() {
            assert!(question.answered(good[..at].to_vec(), now).is_err(), "cut at {at}");
            for bit in [1, 0x80] {
                let mut damaged = good.clone();
                damaged[at] ^= bit;
                assert!(question.answered(damaged, now).is_err(), "byte {at} changed");
            }
        }
        assert!(question.answered([good, vec![0]].concat(), now).is_err(), "a byte more");
    }

    #[test]
    fn who_names_no_responder_is_not_asked_about() {
        assert!(Question::about(&World::new(vec![]).chain).is_none());
        assert!(Question::about(&World::new(vec![access("https://ocsp.example")]).chain).is_none());
        let world = World::new(vec![access(URL)]);
        assert!(Question::about(&world.chain[..1]).is_none(), "the issuer is missing");
        assert!(!must_staple(&world.chain[0]));
        let feature = CustomExtension::from_oid_content(
            &[1, 3, 6, 1, 5, 5, 7, 1, 24],
            tlv(0x30, &tlv(2, &[5])),
        );
        assert!(must_staple(&World::new(vec![feature]).chain[0]));
    }
}
