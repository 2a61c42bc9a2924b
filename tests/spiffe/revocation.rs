//! Revocation lists (111, and item 81 of the attacks on TLS) and the deny list (item 93).

use rcgen::{
    CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CrlScope, KeyIdMethod, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use time::{Duration, OffsetDateTime};
use wardgate::conformance::{Domain, Signer};
use wardgate::identity::{
    DenyList, Flaw, Purpose, RevocationList, RevocationLists, RevocationMode, Revocations,
};

use crate::{Judge, domain};

const SERIAL: [u8; 3] = [0xfe, 0x01, 0x02];

/// A list of a signer, by default current and with one revoked serial number.
struct List<'a> {
    signer: &'a Signer,
    revoked: Vec<Vec<u8>>,
    made: i64,
    next: i64,
    point: Option<CrlIssuingDistributionPoint>,
}

impl<'a> List<'a> {
    fn of(signer: &'a Signer) -> Self {
        Self { signer, revoked: Vec::new(), made: -60, next: 3600, point: None }
    }

    fn revoking(mut self, serial: &[u8]) -> Self {
        self.revoked.push(serial.to_vec());
        self
    }

    fn expired(mut self) -> Self {
        (self.made, self.next) = (-7200, -3600);
        self
    }

    fn at(mut self, address: &str, scope: Option<CrlScope>) -> Self {
        let distribution_point = CrlDistributionPoint { uris: vec![address.to_owned()] };
        self.point = Some(CrlIssuingDistributionPoint { distribution_point, scope });
        self
    }

    fn der(&self) -> CertificateRevocationListDer<'static> {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &Vec<u8>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now - Duration::hours(1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now + Duration::seconds(self.made),
            next_update: now + Duration::seconds(self.next),
            crl_number: SerialNumber::from(7_u64),
            issuing_distribution_point: self.point.clone(),
            revoked_certs: self.revoked.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(self.signer.issuer()).unwrap().into()
    }
}

fn judged(
    domain: &Domain,
    mode: RevocationMode,
    lists: impl IntoIterator<Item = CertificateRevocationListDer<'static>>,
) -> Judge {
    let lists = RevocationLists { mode, lists: lists.into_iter().collect() };
    let by_domain = [(domain.name().clone(), lists)].into();
    Judge::with([domain.bundle()], Revocations { by_domain, ..Revocations::default() })
}

fn leaf_with(
    domain: &Domain,
    change: impl FnOnce(&mut CertificateParams),
) -> Vec<CertificateDer<'static>> {
    let mut params = domain.leaf("/web").unwrap();
    params.serial_number = Some(SerialNumber::from_slice(&SERIAL));
    change(&mut params);
    domain.sign(&params).unwrap().chain
}

#[test]
fn each_situation_in_each_mode() {
    let a = domain("a.test");
    let other = domain("a.test");
    let (root, intermediate) = (a.root(), a.intermediate());
    let chain = leaf_with(&a, |_| {});
    let above = serial(intermediate.certificate());
    let good = || vec![List::of(root).der(), List::of(intermediate).der()];
    let with_root = |list: List<'_>| vec![List::of(root).der(), list.der()];
    let damaged = |list: &List<'_>| {
        let mut der = list.der().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        CertificateRevocationListDer::from(der)
    };
    let revoking = || List::of(intermediate).revoking(&SERIAL);
    // In the order: off, soft, hard.
    let situations = [
        ("111 current lists that name nobody", good(), ["ok", "ok", "ok"]),
        ("81 a revoked leaf", with_root(revoking()), ["ok", "revoked", "revoked"]),
        (
            "81 a revoked leaf, the list is out of date",
            with_root(revoking().expired()),
            ["ok", "revoked", "revoked"],
        ),
        (
            "81 a revoked leaf, a newer list beside the old one",
            vec![List::of(root).der(), List::of(intermediate).expired().der(), revoking().der()],
            ["ok", "revoked", "revoked"],
        ),
        (
            "81 a revoked intermediate",
            vec![List::of(root).revoking(&above).der(), List::of(intermediate).der()],
            ["ok", "authority_revoked", "authority_revoked"],
        ),
        ("81 no list at all", vec![], ["ok", "ok", "revocation_unknown"]),
        (
            "81 no list of the intermediate",
            vec![List::of(root).der()],
            ["ok", "ok", "revocation_unknown"],
        ),
        (
            "81 no list of the root",
            vec![List::of(intermediate).der()],
            ["ok", "ok", "revocation_unknown"],
        ),
        (
            "81 an expired list",
            with_root(List::of(intermediate).expired()),
            ["ok", "ok", "revocation_expired"],
        ),
        (
            "81 an expired list of the root",
            vec![List::of(root).expired().der(), List::of(intermediate).der()],
            ["ok", "ok", "revocation_expired"],
        ),
        (
            "81 an expired list and a current one",
            vec![
                List::of(root).der(),
                List::of(intermediate).expired().der(),
                List::of(intermediate).der(),
            ],
            ["ok", "ok", "ok"],
        ),
        (
            "81 a list of the future",
            with_root({
                let mut list = List::of(intermediate);
                list.made = 600;
                list
            }),
            ["ok", "ok", "revocation_expired"],
        ),
        (
            "81 a list by another CA",
            with_root(List::of(other.root()).revoking(&SERIAL)),
            ["ok", "ok", "revocation_unknown"],
        ),
        (
            "81 a list by another CA of the same name",
            with_root(List::of(other.intermediate()).revoking(&SERIAL)),
            ["ok", "ok", "revocation_unknown"],
        ),
        (
            "81 a list by another CA of the same name does not hide the right one",
            vec![List::of(root).der(), List::of(other.intermediate()).der(), revoking().der()],
            ["ok", "revoked", "revoked"],
        ),
        (
            "81 nor does it make the right one fail",
            vec![List::of(other.root()).der(), List::of(other.intermediate()).der()]
                .into_iter()
                .chain(good())
                .collect(),
            ["ok", "ok", "ok"],
        ),
        (
            "81 a list with a wrong signature",
            vec![List::of(root).der(), damaged(&revoking())],
            ["ok", "ok", "revocation_unknown"],
        ),
        (
            "81 a malformed list is discarded alone",
            vec![vec![0x30, 0x03, 1, 2, 3].into()].into_iter().chain(good()).collect(),
            ["ok", "ok", "ok"],
        ),
        (
            "81 the serial number on the root's list is another certificate's",
            vec![List::of(root).revoking(&SERIAL).der(), List::of(intermediate).der()],
            ["ok", "ok", "ok"],
        ),
    ];
    for (situation, lists, expected) in situations {
        let modes = [RevocationMode::Off, RevocationMode::Soft, RevocationMode::Hard];
        for (mode, expected) in modes.into_iter().zip(expected) {
            for purpose in [Purpose::Client, Purpose::Server] {
                let judge = judged(&a, mode, lists.clone());
                // Twice: what was found out about a list's signature is remembered.
                for _ in 0..2 {
                    let code = judge.code_as(&chain, purpose);
                    assert_eq!(code, expected, "{situation}, {mode:?}, {purpose}");
                }
            }
        }
    }
}

#[test]
fn a_trust_domain_without_a_word_about_revocation_is_judged_softly() {
    let a = domain("a.test");
    let chain = leaf_with(&a, |_| {});
    assert_eq!(Judge::of([a.bundle()]).code(&chain), "ok", "111");
    assert_eq!(Revocations::default().by_domain.get(a.name()), None);
    assert_eq!(RevocationMode::default(), RevocationMode::Soft, "111");
}

#[test]
fn the_lists_of_one_trust_domain_say_nothing_about_another() {
    let (a, b) = (domain("a.test"), domain("b.test"));
    let chain = leaf_with(&a, |_| {});
    let list = List::of(a.intermediate()).revoking(&SERIAL).der();
    let lists = RevocationLists { mode: RevocationMode::Hard, lists: vec![list] };
    let by_domain = [(b.name().clone(), lists)].into();
    let revocation = Revocations { by_domain, ..Revocations::default() };
    assert_eq!(Judge::with([a.bundle(), b.bundle()], revocation).code(&chain), "ok", "111");
}

#[test]
fn an_authority_that_may_not_sign_lists_has_signed_none() {
    let a = domain("a.test");
    // It could sign the list before its certificate lost the right.
    let chain = leaf_with(&a, |_| {});
    let list = List::of(a.intermediate()).revoking(&SERIAL).der();
    let mut params = wardgate::conformance::authority("a.test intermediate", a.name()).unwrap();
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = rcgen::SubjectPublicKeyInfo::from_der(&spki(a.intermediate().certificate())).unwrap();
    let without = a.root().certify(&params, &key).unwrap();
    let judge = judged(&a, RevocationMode::Soft, [list.clone()]);
    assert_eq!(judge.code(&chain), "revoked", "81 the one that may");
    let chain = [chain[0].clone(), without.clone()];
    assert_eq!(judge.code(&chain), "ok", "81 a list by who may not sign one is no list");
    let list = RevocationList::from_der(list).unwrap();
    assert!(list.is_signed_by(a.intermediate().certificate()), "111");
    assert!(!list.is_signed_by(&without), "111");
}

#[test]
fn parts_of_a_list_speak_for_the_certificates_that_point_to_them() {
    let a = domain("a.test");
    let (one, two) = ("http://crl.test/1", "http://crl.test/2");
    let pointing = |to: &[&[&str]]| {
        let points = to.iter().map(|uris| CrlDistributionPoint {
            uris: uris.iter().map(|&uri| uri.to_owned()).collect(),
        });
        let points: Vec<_> = points.collect();
        leaf_with(&a, |p| p.crl_distribution_points = points)
    };
    let hard =
        |list: List<'_>| judged(&a, RevocationMode::Hard, [List::of(a.root()).der(), list.der()]);
    let part = |address| List::of(a.intermediate()).at(address, None);
    let users = |address| List::of(a.intermediate()).at(address, Some(CrlScope::UserCertsOnly));
    let authorities = |address| List::of(a.intermediate()).at(address, Some(CrlScope::CaCertsOnly));
    let rules = [
        ("81 a leaf that points nowhere", pointing(&[]), part(one), "ok"),
        ("81 its own part", pointing(&[&[one]]), part(one), "ok"),
        ("81 another part", pointing(&[&[two]]), part(one), "revocation_unknown"),
        ("81 the second of two points", pointing(&[&[two], &[one]]), part(one), "ok"),
        ("81 the second address of a point", pointing(&[&[two, one]]), part(one), "ok"),
        (
            "81 a whole list for who points to a part",
            pointing(&[&[two]]),
            List::of(a.intermediate()),
            "ok",
        ),
        ("81 a part for leaves", pointing(&[&[one]]), users(one), "ok"),
        ("81 a part for authorities", pointing(&[&[one]]), authorities(one), "revocation_unknown"),
        ("81 revoked in its part", pointing(&[&[one]]), part(one).revoking(&SERIAL), "revoked"),
        (
            "81 revoked in the second of two points",
            pointing(&[&[two], &[one]]),
            part(one).revoking(&SERIAL),
            "revoked",
        ),
        (
            "81 revoked in a part that it does not point to",
            pointing(&[&[two]]),
            part(one).revoking(&SERIAL),
            "revoked",
        ),
    ];
    for (rule, chain, list, expected) in rules {
        assert_eq!(hard(list).code(&chain), expected, "{rule}");
    }
}

#[test]
fn what_a_list_says_can_be_asked() {
    let a = domain("a.test");
    let list = List::of(a.intermediate()).revoking(&SERIAL).revoking(&[0x05]);
    let read = RevocationList::from_der(list.der()).unwrap();
    assert_eq!(
        (read.issuer(), read.number(), read.entries()),
        ("CN=a.test intermediate", Some("7"), 2)
    );
    assert!(read.revokes("fe0102") && read.revokes("05") && !read.revokes("fe"), "111");
    assert!(!read.revokes("not hexadecimal"));
    let (from, until) = (read.this_update(), read.next_update());
    assert_eq!(until - from, 3660);
    for (now, current) in [(from - 1, false), (from, true), (until - 1, true), (until, false)] {
        assert_eq!(read.is_current(now), current, "111 {}", now - from);
    }
    assert!(read.is_signed_by(a.intermediate().certificate()), "111");
    assert!(!read.is_signed_by(a.root().certificate()), "111 another name");
    let renamed = domain("a.test");
    assert!(!read.is_signed_by(renamed.intermediate().certificate()), "111 another key");
}

#[test]
fn lists_are_read_from_pem_and_der_and_what_is_none_is_discarded_alone() {
    let a = domain("a.test");
    let (one, two) = (List::of(a.root()).der(), List::of(a.intermediate()).der());
    let pem = |der: &[u8]| {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN X509 CRL-----\n{body}\n-----END X509 CRL-----\n")
    };
    let mut lists = RevocationLists::default();
    let added = lists.add((pem(&one) + &pem(&two)).as_bytes()).unwrap();
    assert_eq!((added.len(), &lists.lists), (2, &vec![one.clone(), two.clone()]), "111");
    assert_eq!(lists.add(&one).unwrap()[0].issuer(), "CN=a.test root", "111 DER");
    for wrong in [&b""[..], b"hello", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"] {
        assert!(lists.add(wrong).is_err(), "111 {wrong:?}");
    }
    assert_eq!(lists.lists.len(), 3, "111 nothing was added");

    let mut lists = RevocationLists::default();
    let mut trailing = two.to_vec();
    trailing.push(0);
    let malformed = [vec![], trailing, a.root().certificate().to_vec()].map(Into::into);
    let [empty, trailing, certificate] = malformed;
    let discarded = lists.add_each([one.clone(), empty, two.clone(), trailing, certificate]);
    assert_eq!(lists.lists, [one, two], "111 the good ones");
    let positions: Vec<usize> = discarded.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, [2, 4, 5], "111 the others by position");
    let reason = discarded[0].1.to_string();
    assert!(reason.contains("revocation list cannot be used"), "111 {reason}");
}

/// A list whose extensions are exchanged: what rcgen does not write. It is not signed again.
fn reshaped(list: &[u8], extension: &[u8]) -> CertificateRevocationListDer<'static> {
    let (_, outer, _) = tlv(list);
    let (_, tbs, after) = tlv(outer);
    let mut parts = Vec::new();
    let mut rest = tbs;
    while !rest.is_empty() {
        let (tag, content, next) = tlv(rest);
        match tag {
            0xa0 => {
                let (_, old, _) = tlv(content);
                parts.extend(der(0xa0, &der(0x30, &[old, extension].concat())));
            }
            _ => parts.extend(&rest[..rest.len() - next.len()]),
        }
        rest = next;
    }
    der(0x30, &[der(0x30, &parts), after.to_vec()].concat()).into()
}

#[test]
fn lists_of_kinds_that_are_not_taken_say_which_kind_they_are() {
    let a = domain("a.test");
    let plain = List::of(a.intermediate()).der();
    let extension = |oid: &[u8], critical: bool, content: &[u8]| {
        let flag = if critical { vec![1, 1, 0xff] } else { vec![] };
        der(0x30, &[der(6, oid), flag, der(4, content)].concat())
    };
    // id-ce-deltaCRLIndicator, id-ce-issuingDistributionPoint
    let delta = extension(&[0x55, 0x1d, 27], true, &[2, 1, 1]);
    let point = |more: &[u8]| {
        let name = der(0xa0, &der(0xa0, &der(0x86, b"http://crl.test/1")));
        extension(&[0x55, 0x1d, 28], true, &der(0x30, &[&name, more].concat()))
    };
    let rules = [
        ("81 a delta list", reshaped(&plain, &delta), "delta"),
        ("81 an indirect list", reshaped(&plain, &point(&[0x84, 1, 0xff])), "indirect"),
        ("81 some reasons", reshaped(&plain, &point(&[0x83, 2, 7, 0x80])), "some reasons"),
        (
            "81 an unknown critical extension",
            reshaped(&plain, &extension(&[0x2b, 6, 1, 4, 1, 0x63], true, &[5, 0])),
            "critical extension",
        ),
    ];
    for (rule, list, says) in rules {
        let error = RevocationList::from_der(list.clone()).unwrap_err().to_string();
        assert!(error.contains(says), "{rule}: {error}");
        let chain = leaf_with(&a, |_| {});
        let lists = || [List::of(a.root()).der(), list.clone()];
        assert_eq!(judged(&a, RevocationMode::Soft, lists()).code(&chain), "ok", "{rule}");
        let hard = judged(&a, RevocationMode::Hard, lists());
        assert_eq!(hard.code(&chain), "revocation_unknown", "{rule}");
    }
    let unknown = extension(&[0x2b, 6, 1, 4, 1, 0x63], false, &[5, 0]);
    assert!(RevocationList::from_der(reshaped(&plain, &unknown)).is_ok(), "81 not critical");
    assert!(RevocationList::from_der(reshaped(&plain, &[])).is_ok(), "the surgery itself is sound");
}

#[test]
fn damaged_lists_never_panic_and_never_speak() {
    let a = domain("a.test");
    let good = List::of(a.intermediate()).revoking(&SERIAL).der();
    let chain = leaf_with(&a, |_| {});
    let mut seed = fastrand::Rng::with_seed(11);
    for _ in 0..1500 {
        let mut der = good.to_vec();
        for _ in 0..seed.usize(1..4) {
            let at = seed.usize(..der.len());
            der[at] = seed.u8(..);
        }
        der.truncate(seed.usize(der.len() / 2..=der.len()));
        if der == good.as_ref() {
            continue;
        }
        let list = CertificateRevocationListDer::from(der);
        let judge = judged(&a, RevocationMode::Hard, [List::of(a.root()).der(), list]);
        assert_eq!(judge.code(&chain), "revocation_unknown", "81 a damaged list was believed");
    }
}

/// webpki checks lists as well. Where its way and ours must agree (one list for each authority), they do.
#[test]
fn webpki_comes_to_the_same_verdict_about_the_same_lists() {
    let a = domain("a.test");
    let chain = leaf_with(&a, |_| {});
    let above = serial(a.intermediate().certificate());
    for revoked_leaf in [false, true] {
        for revoked_intermediate in [false, true] {
            for with_root in [false, true] {
                let mut list = List::of(a.intermediate());
                if revoked_leaf {
                    list = list.revoking(&SERIAL);
                }
                let mut upper = List::of(a.root());
                if revoked_intermediate {
                    upper = upper.revoking(&above);
                }
                let mut lists = vec![list.der()];
                if with_root {
                    lists.push(upper.der());
                }
                let ours = judged(&a, RevocationMode::Hard, lists.clone()).code(&chain);
                let theirs = by_webpki(&a, &chain, &lists);
                let what = (revoked_leaf, revoked_intermediate, with_root);
                assert_eq!(ours == "ok", theirs.is_ok(), "111 {what:?}: {ours}, {theirs:?}");
            }
        }
    }
}

fn by_webpki(
    domain: &Domain,
    chain: &[CertificateDer<'_>],
    lists: &[CertificateRevocationListDer<'_>],
) -> Result<(), webpki::Error> {
    let root = domain.root().certificate().clone();
    let anchors = [webpki::anchor_from_trusted_cert(&root)?];
    let parsed: Vec<webpki::CertRevocationList<'_>> = lists
        .iter()
        .map(|list| webpki::OwnedCertRevocationList::from_der(list).map(Into::into))
        .collect::<Result<_, _>>()?;
    let lists: Vec<&webpki::CertRevocationList<'_>> = parsed.iter().collect();
    let options = webpki::RevocationOptionsBuilder::new(&lists).unwrap().build();
    webpki::EndEntityCert::try_from(&chain[0])?
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &chain[1..],
            UnixTime::now(),
            webpki::KeyUsage::client_auth(),
            Some(options),
            None,
        )
        .map(|_| ())
}

#[test]
fn whoever_is_denied_is_refused_at_once_in_every_mode() {
    let a = domain("a.test");
    let b = domain("b.test");
    let chain = leaf_with(&a, |_| {});
    let peer = Judge::of([a.bundle()]).judge(&chain, Purpose::Client).unwrap();
    let hash = |der: &[u8]| hex::encode(ring::digest::digest(&ring::digest::SHA256, &spki(der)));
    let authority = a.intermediate().certificate();
    let nobody = DenyList::default();
    let serial_of = |domain: &Domain, text: &str| DenyList {
        serials: [(domain.name().clone(), text.to_owned())].into(),
        ..DenyList::default()
    };
    let key_of = |key: String| DenyList { keys: [key].into(), ..DenyList::default() };
    let id_of = |id: &str| DenyList { ids: [id.parse().unwrap()].into(), ..DenyList::default() };
    let rules = [
        ("93 nobody", nobody, "ok"),
        ("93 its serial number", serial_of(&a, "fe0102"), "denied_serial"),
        ("93 its serial number in another trust domain", serial_of(&b, "fe0102"), "ok"),
        ("93 another serial number", serial_of(&a, "fe01"), "ok"),
        ("93 its key", key_of(peer.spki_sha256.clone()), "denied_key"),
        ("93 another key", key_of("00".repeat(32)), "ok"),
        ("93 its ID", id_of("spiffe://a.test/web"), "denied_id"),
        ("93 an ID above it", id_of("spiffe://a.test/we"), "ok"),
        (
            "93 the intermediate's serial number",
            serial_of(&a, hex::encode(serial(authority)).trim_start_matches("00")),
            "denied_serial",
        ),
        ("93 the intermediate's key", key_of(hash(authority)), "denied_key"),
        ("93 the root's key", key_of(hash(a.root().certificate())), "denied_key"),
    ];
    for (rule, denied, expected) in rules {
        for mode in [RevocationMode::Off, RevocationMode::Soft] {
            let lists = RevocationLists { mode, ..RevocationLists::default() };
            let by_domain = [(a.name().clone(), lists)].into();
            let denied = denied.clone();
            let judge = Judge::with([a.bundle()], Revocations { by_domain, denied });
            assert_eq!(judge.code(&chain), expected, "{rule}, {mode:?}");
            let again = judge.trust.verifier().again(&peer, UnixTime::now());
            let code = again.as_ref().map_or_else(Flaw::code, |()| "ok");
            assert_eq!(code, expected, "{rule}: a live connection");
        }
    }
}

#[test]
fn a_live_connection_is_asked_for_again_with_new_lists() {
    let a = domain("a.test");
    let chain = leaf_with(&a, |_| {});
    let before = judged(&a, RevocationMode::Soft, []);
    let peer = before.judge(&chain, Purpose::Server).unwrap();
    let again = |judge: &Judge| {
        let verdict = judge.trust.verifier().again(&peer, UnixTime::now());
        verdict.map_err(|flaw| flaw.code())
    };
    assert_eq!(again(&before), Ok(()), "111");
    let list = List::of(a.intermediate()).revoking(&SERIAL).der();
    assert_eq!(again(&judged(&a, RevocationMode::Soft, [list])), Err("revoked"), "111");
    assert_eq!(again(&judged(&a, RevocationMode::Hard, [])), Err("revocation_unknown"), "111");
}

/// The serial number as DER has it.
fn serial(der: &[u8]) -> Vec<u8> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    X509Certificate::from_der(der).unwrap().1.raw_serial().to_vec()
}

fn spki(der: &[u8]) -> Vec<u8> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    X509Certificate::from_der(der).unwrap().1.public_key().raw.to_vec()
}

/// Tag, content, and what follows.
fn tlv(bytes: &[u8]) -> (u8, &[u8], &[u8]) {
    let (tag, first) = (bytes[0], usize::from(bytes[1]));
    let (length, start) = match first {
        0..0x80 => (first, 2),
        _ => {
            let count = first - 0x80;
            let digits = &bytes[2..2 + count];
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), 2 + count)
        }
    };
    (tag, &bytes[start..start + length], &bytes[start + length..])
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head = match content.len() {
        0..0x80 => vec![tag, length[1]],
        0x80..0x100 => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    [head, content.to_vec()].concat()
}
