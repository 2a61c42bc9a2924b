//! The cases: one certificate each, the rule that it is about, and what the rule expects of whoever verifies it.
//!
//! Numbers are those of docs/spiffe-conformance.md; a letter tells the cases of one rule apart. Ids are stable.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
};
use time::Duration;

use super::fixtures::{FEDERATED, NUMERIC, OWN, domain_name};
use super::forge::only_uris_of;
use super::{Credential, Domain, Error, Fixtures, Signer, authority, extension, leaf, names, uri};

/// How binding a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The specification says MUST.
    Must,
    /// It says SHOULD.
    Should,
    /// Wardgate's own rule, which goes further.
    Own,
}

/// What the rule expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// The peer is taken.
    Accepted,
    /// The peer is refused before its request reaches anybody.
    Refused,
}

/// On which side of the proxy a case makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The certificate is a client's and a server's.
    Both,
    /// A client presents it to the proxy's inbound listener.
    Inbound,
    /// A server presents it to the proxy's outbound connection, which expects `spiffe://conformance.test/server`.
    Outbound,
}

/// What a proxy must have for a case to make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Nothing but bundles.
    Bundles,
    /// The revocation lists of the fixtures as well.
    Revocation,
}

/// One certificate and the rule about it.
pub struct Case {
    /// The rule's number and a letter.
    pub id: &'static str,
    /// The rule's number.
    pub rule: u8,
    /// How binding the rule is.
    pub level: Level,
    /// What is special about the certificate.
    pub what: &'static str,
    /// What the rule expects.
    pub expects: Expectation,
    /// Where it makes sense.
    pub side: Side,
    /// What the proxy must have.
    pub needs: Feature,
    make: Make,
}

type Make = fn(&Fixtures, &str) -> Result<Credential, Error>;

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case")
            .field("id", &self.id)
            .field("what", &self.what)
            .finish_non_exhaustive()
    }
}

impl Case {
    /// What a client presents.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn client(&self, fixtures: &Fixtures) -> Result<Credential, Error> {
        (self.make)(fixtures, "/web")
    }

    /// What a server presents that is expected to be `spiffe://conformance.test/server`.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn server(&self, fixtures: &Fixtures) -> Result<Credential, Error> {
        (self.make)(fixtures, "/server")
    }

    /// Is it about clients?
    pub fn is_inbound(&self) -> bool {
        self.side != Outbound
    }

    /// Is it about servers?
    pub fn is_outbound(&self) -> bool {
        self.side != Inbound
    }
}

const fn case(
    id: &'static str,
    level: Level,
    expects: Expectation,
    side: Side,
    what: &'static str,
    make: Make,
) -> Case {
    let needs = Feature::Bundles;
    Case { id, rule: number(id), level, what, expects, side, needs, make }
}

const fn with_lists(mut case: Case) -> Case {
    case.needs = Feature::Revocation;
    case
}

/// The digits of an id.
const fn number(id: &str) -> u8 {
    let bytes = id.as_bytes();
    let (mut at, mut found) = (0, 0);
    while at < bytes.len() && bytes[at].is_ascii_digit() {
        found = found * 10 + (bytes[at] - b'0');
        at += 1;
    }
    found
}

/// Signed by the own trust domain's intermediate, after a change.
fn changed(
    fixtures: &Fixtures,
    path: &str,
    change: impl FnOnce(&mut CertificateParams) -> Result<(), Error>,
) -> Result<Credential, Error> {
    let mut params = fixtures.own.leaf(path)?;
    change(&mut params)?;
    fixtures.own.sign(&params)
}

/// A leaf whose one name is this URI, byte by byte.
fn named(fixtures: &Fixtures, name: impl AsRef<[u8]>) -> Result<Credential, Error> {
    changed(fixtures, "/replaced", |params| {
        params.subject_alt_names.clear();
        params.custom_extensions.push(names(true, &[(6, name.as_ref())]));
        Ok(())
    })
}

/// Signed by another intermediate of the own trust domain, which was changed.
fn below(
    fixtures: &Fixtures,
    path: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> Result<Credential, Error> {
    fixtures.own.sign_below(change, &fixtures.own.leaf(path)?)
}

/// Signed by an intermediate below this root.
fn below_root(fixtures: &Fixtures, root: &Signer, path: &str) -> Result<Credential, Error> {
    let params = authority(&format!("{OWN} intermediate of another root"), fixtures.own.name())?;
    let intermediate = root.below(params)?;
    let signed = intermediate.sign(&fixtures.own.leaf(path)?)?;
    Ok(signed.followed_by([intermediate.certificate().clone()]))
}

/// A trust domain that nobody knows.
fn stranger(name: &str) -> Result<Domain, Error> {
    Domain::new(domain_name(name)?)
}

fn unknown(critical: bool) -> rcgen::CustomExtension {
    extension(&[1, 3, 6, 1, 4, 1, 99_999, 1], critical, vec![5, 0])
}

fn id_of_length(bytes: usize) -> String {
    let start = format!("spiffe://{OWN}/");
    let rest = "a".repeat(bytes - start.len());
    start + &rest
}

use Expectation::{Accepted, Refused};
use Level::{Must, Own, Should};
use Side::{Both, Inbound, Outbound};

/// All cases, in the order of their numbers. The first is the one without a flaw.
pub static CASES: &[Case] = &[
    case("0a", Must, Accepted, Both, "a good X.509-SVID", |f, path| f.own.sign(&f.own.leaf(path)?)),
    case("1a", Must, Accepted, Inbound, "the scheme in upper case", |f, _| {
        named(f, format!("SPIFFE://{OWN}/web"))
    }),
    case("1b", Must, Refused, Inbound, "a scheme that only begins as spiffe", |f, _| {
        named(f, format!("spiffex://{OWN}/web"))
    }),
    case("2a", Must, Refused, Inbound, "an empty trust domain", |f, path| {
        named(f, format!("spiffe://{path}"))
    }),
    case("3a", Must, Refused, Both, "a query", |f, path| {
        named(f, format!("spiffe://{OWN}{path}?x=1"))
    }),
    case("4a", Must, Refused, Both, "a fragment", |f, path| {
        named(f, format!("spiffe://{OWN}{path}#x"))
    }),
    case("5a", Must, Refused, Both, "a user name", |f, path| {
        named(f, format!("spiffe://me@{OWN}{path}"))
    }),
    case("6a", Must, Refused, Both, "a port", |f, path| {
        named(f, format!("spiffe://{OWN}:8443{path}"))
    }),
    case("6b", Must, Refused, Both, "a colon without a port", |f, path| {
        named(f, format!("spiffe://{OWN}:{path}"))
    }),
    case("7a", Must, Refused, Both, "upper case in the trust domain", |f, path| {
        named(f, format!("spiffe://{}{path}", OWN.to_uppercase()))
    }),
    case("7b", Must, Refused, Inbound, "a byte that no trust domain has", |f, path| {
        named(f, format!("spiffe://{OWN}!{path}"))
    }),
    case("8a", Must, Refused, Both, "percent-encoding in the trust domain", |f, path| {
        named(f, format!("spiffe://conformance%2etest{path}"))
    }),
    case("9a", Must, Refused, Inbound, "an IPv6 address as trust domain", |f, path| {
        named(f, format!("spiffe://[2001:db8::7]{path}"))
    }),
    case(
        "9b",
        Must,
        Accepted,
        Inbound,
        "a trust domain that looks like an IPv4 address",
        |f, path| f.numeric.sign(&f.numeric.leaf(path)?),
    ),
    case("10a", Must, Refused, Inbound, "an address does not stand for a name", |f, path| {
        f.own.sign(&leaf(&format!("spiffe://{NUMERIC}{path}"))?)
    }),
    case("11a", Must, Refused, Inbound, "a space in the path", |f, path| {
        named(f, format!("spiffe://{OWN}{path} x"))
    }),
    case("11b", Must, Refused, Inbound, "a tilde in the path", |f, path| {
        named(f, format!("spiffe://{OWN}{path}~x"))
    }),
    case("12a", Must, Refused, Both, "percent-encoding in the path", |f, path| {
        let encoded = path.replace("we", "w%65").replace("se", "s%65");
        named(f, format!("spiffe://{OWN}{encoded}"))
    }),
    case("13a", Must, Refused, Both, "an empty segment", |f, path| {
        named(f, format!("spiffe://{OWN}/{path}"))
    }),
    case("14a", Must, Refused, Both, "a dot segment", |f, path| {
        named(f, format!("spiffe://{OWN}/.{path}"))
    }),
    case("14b", Must, Refused, Both, "a double-dot segment", |f, path| {
        named(f, format!("spiffe://{OWN}/x/..{path}"))
    }),
    case("15a", Must, Refused, Both, "a slash at the end", |f, path| {
        named(f, format!("spiffe://{OWN}{path}/"))
    }),
    case("16a", Must, Refused, Outbound, "the expected path in upper case", |f, path| {
        f.own.sign(&f.own.leaf(&path.to_uppercase())?)
    }),
    case("17a", Must, Accepted, Inbound, "an ID of 2048 bytes", |f, _| {
        named(f, id_of_length(2048))
    }),
    case("18a", Own, Refused, Inbound, "an ID of 2049 bytes", |f, _| named(f, id_of_length(2049))),
    case("19a", Must, Refused, Inbound, "a trust domain of 256 bytes", |f, path| {
        named(f, format!("spiffe://{}{path}", "d".repeat(256)))
    }),
    case("20a", Own, Refused, Both, "a NUL and more behind the ID", |f, path| {
        named(f, format!("spiffe://{OWN}{path}\0.elsewhere.test"))
    }),
    case("20b", Own, Refused, Both, "a line end behind the ID", |f, path| {
        named(f, format!("spiffe://{OWN}{path}\n"))
    }),
    case("20c", Own, Refused, Inbound, "a byte that is not ASCII", |f, path| {
        named(f, [format!("spiffe://{OWN}{path}").as_bytes(), &[0xe4]].concat())
    }),
    case("21a", Own, Refused, Outbound, "an ID that only begins as the expected one", |f, path| {
        f.own.sign(&f.own.leaf(&format!("{path}-2"))?)
    }),
    case("21b", Own, Refused, Outbound, "the expected ID with more segments", |f, path| {
        f.own.sign(&f.own.leaf(&format!("{path}/x"))?)
    }),
    case("22a", Must, Refused, Both, "no names at all", |f, path| {
        changed(f, path, |p| {
            p.subject_alt_names.clear();
            Ok(())
        })
    }),
    case("22b", Must, Refused, Both, "a DNS name only", |f, path| {
        changed(f, path, |p| {
            p.subject_alt_names = vec![SanType::DnsName("web.conformance.test".try_into()?)];
            Ok(())
        })
    }),
    case("22c", Must, Refused, Both, "the SPIFFE ID as common name", |f, path| {
        changed(f, path, |p| {
            p.subject_alt_names.clear();
            p.distinguished_name.push(DnType::CommonName, format!("spiffe://{OWN}{path}"));
            Ok(())
        })
    }),
    case("22d", Must, Refused, Both, "the SPIFFE ID as a DNS name", |f, path| {
        changed(f, path, |p| {
            let id = format!("spiffe://{OWN}{path}");
            p.subject_alt_names.clear();
            p.custom_extensions.push(names(true, &[(2, id.as_bytes())]));
            Ok(())
        })
    }),
    case("22e", Must, Refused, Inbound, "no certificate", |_, _| Credential::none()),
    case("23a", Must, Refused, Both, "two SPIFFE IDs", |f, path| {
        changed(f, path, |p| {
            p.subject_alt_names.push(uri(&format!("spiffe://{OWN}/other"))?);
            Ok(())
        })
    }),
    case("23b", Must, Refused, Both, "another SPIFFE ID before", |f, path| {
        changed(f, path, |p| {
            p.subject_alt_names.insert(0, uri(&format!("spiffe://{OWN}/other"))?);
            Ok(())
        })
    }),
    case("23c", Must, Refused, Both, "the same SPIFFE ID twice", |f, path| {
        changed(f, path, |p| {
            p.subject_alt_names.push(uri(&format!("spiffe://{OWN}{path}"))?);
            Ok(())
        })
    }),
    case("23d", Must, Refused, Both, "a SPIFFE ID and another URI", |f, path| {
        changed(f, path, |p| {
            p.subject_alt_names.push(uri("https://conformance.test/web")?);
            Ok(())
        })
    }),
    case("24a", Must, Refused, Both, "a URI that is no SPIFFE ID", |f, path| {
        named(f, format!("https://{OWN}{path}"))
    }),
    case("25a", Must, Accepted, Both, "a DNS name beside the SPIFFE ID", |f, path| {
        changed(f, path, |p| {
            p.subject_alt_names.push(SanType::DnsName("web.conformance.test".try_into()?));
            Ok(())
        })
    }),
    case("26a", Must, Refused, Both, "a SPIFFE ID without a path", |f, _| {
        named(f, format!("spiffe://{OWN}"))
    }),
    case("26b", Must, Refused, Both, "a slash for a path", |f, _| {
        named(f, format!("spiffe://{OWN}/"))
    }),
    case("27a", Must, Accepted, Both, "no basic constraints", |f, path| {
        changed(f, path, |p| {
            p.is_ca = IsCa::NoCa;
            Ok(())
        })
    }),
    case("27b", Must, Refused, Both, "cA true on a leaf", |f, path| {
        changed(f, path, |p| {
            p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Ok(())
        })
    }),
    case("28a", Must, Refused, Both, "keyCertSign on a leaf", |f, path| {
        changed(f, path, |p| {
            p.key_usages.push(KeyUsagePurpose::KeyCertSign);
            Ok(())
        })
    }),
    case("29a", Must, Refused, Both, "cRLSign on a leaf", |f, path| {
        changed(f, path, |p| {
            p.key_usages.push(KeyUsagePurpose::CrlSign);
            Ok(())
        })
    }),
    case("30a", Must, Refused, Both, "an authority presents itself", |f, _| {
        Ok(f.own.intermediate().itself())
    }),
    case(
        "30b",
        Must,
        Refused,
        Both,
        "an authority with a workload's ID presents itself",
        |f, path| {
            let mut params = authority("a workload that is an authority", f.own.name())?;
            params.subject_alt_names = vec![uri(&format!("spiffe://{OWN}{path}"))?];
            params.key_usages.push(KeyUsagePurpose::DigitalSignature);
            f.own.sign(&params)
        },
    ),
    case("31a", Must, Refused, Both, "no key usage", |f, path| {
        changed(f, path, |p| {
            p.key_usages.clear();
            Ok(())
        })
    }),
    case("32a", Must, Refused, Both, "key usage without digitalSignature", |f, path| {
        changed(f, path, |p| {
            p.key_usages = vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement];
            Ok(())
        })
    }),
    case(
        "34a",
        Must,
        Refused,
        Inbound,
        "extended key usage for servers only, as client",
        |f, path| {
            changed(f, path, |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                Ok(())
            })
        },
    ),
    case(
        "34b",
        Must,
        Refused,
        Outbound,
        "extended key usage for clients only, as server",
        |f, path| {
            changed(f, path, |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                Ok(())
            })
        },
    ),
    case("34c", Must, Refused, Both, "extended key usage for something else", |f, path| {
        changed(f, path, |p| {
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            Ok(())
        })
    }),
    case("35a", Must, Accepted, Both, "no extended key usage", |f, path| {
        changed(f, path, |p| {
            p.extended_key_usages.clear();
            Ok(())
        })
    }),
    case("36a", Must, Refused, Both, "signed by itself", |f, path| {
        let mut params = f.own.leaf(path)?;
        params.distinguished_name.push(DnType::CommonName, "nobody");
        Ok(Signer::root(params)?.itself())
    }),
    case(
        "36b",
        Must,
        Refused,
        Both,
        "a forged signature in the name of the intermediate",
        |f, path| {
            let impostor = stranger(OWN)?;
            let forged = impostor.intermediate().sign(&f.own.leaf(path)?)?;
            Ok(forged.followed_by([f.intermediate()]))
        },
    ),
    case("36c", Must, Refused, Both, "signed by another leaf", |f, path| {
        let mut middle = f.own.leaf("/middle")?;
        middle.distinguished_name.push(DnType::CommonName, "a leaf");
        let middle = f.own.intermediate().below(middle)?;
        let signed = middle.sign(&f.own.leaf(path)?)?;
        Ok(signed.followed_by([middle.certificate().clone(), f.intermediate()]))
    }),
    case("36d", Must, Refused, Both, "an intermediate without basic constraints", |f, path| {
        below(f, path, |p| p.is_ca = IsCa::NoCa)
    }),
    case("36e", Must, Refused, Both, "an intermediate without keyCertSign", |f, path| {
        below(f, path, |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature])
    }),
    case("36f", Must, Refused, Both, "longer than an intermediate's pathLen allows", |f, path| {
        let mut params = authority("an intermediate without others below", f.own.name())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let upper = f.own.root().below(params)?;
        let lower = upper.below(authority("one below nevertheless", f.own.name())?)?;
        let signed = lower.sign(&f.own.leaf(path)?)?;
        Ok(signed.followed_by([lower.certificate().clone(), upper.certificate().clone()]))
    }),
    case("36g", Must, Refused, Both, "longer than the root's pathLen allows", |f, path| {
        below_root(f, &f.short_root, path)
    }),
    case("37a", Must, Refused, Both, "an expired leaf", |f, path| {
        changed(f, path, |p| {
            p.not_before -= Duration::hours(2);
            p.not_after = p.not_before + Duration::hours(1);
            Ok(())
        })
    }),
    case("38a", Must, Refused, Both, "a leaf of the future", |f, path| {
        changed(f, path, |p| {
            p.not_before += Duration::minutes(30);
            Ok(())
        })
    }),
    case("39a", Must, Refused, Both, "an expired intermediate", |f, path| {
        below(f, path, |p| {
            p.not_before -= Duration::hours(2);
            p.not_after = p.not_before + Duration::hours(1);
        })
    }),
    case("39b", Must, Refused, Both, "an intermediate of the future", |f, path| {
        below(f, path, |p| p.not_before += Duration::minutes(30))
    }),
    case("39c", Must, Refused, Both, "an expired root", |f, path| {
        below_root(f, &f.expired_root, path)
    }),
    case("42a", Must, Refused, Both, "the intermediate is missing", |f, path| {
        f.own.intermediate().sign(&f.own.leaf(path)?)
    }),
    case("42b", Must, Refused, Both, "a root of the same name comes with the chain", |f, path| {
        let impostor = stranger(OWN)?;
        let signed = impostor.sign(&f.own.leaf(path)?)?;
        Ok(signed.followed_by([impostor.root().certificate().clone()]))
    }),
    case("43a", Must, Accepted, Both, "the root is presented as well", |f, path| {
        let signed = f.own.sign(&f.own.leaf(path)?)?;
        Ok(signed.followed_by([f.own.root().certificate().clone()]))
    }),
    case("44a", Must, Refused, Both, "a path in an intermediate's ID", |f, path| {
        let id = uri(&format!("spiffe://{OWN}/ca"))?;
        below(f, path, |p| p.subject_alt_names = vec![id])
    }),
    case("45a", Should, Refused, Both, "an intermediate of another trust domain", |f, path| {
        let id = uri(&format!("spiffe://{FEDERATED}"))?;
        below(f, path, |p| p.subject_alt_names = vec![id])
    }),
    case("45b", Should, Accepted, Both, "an intermediate without an ID", |f, path| {
        below(f, path, |p| p.subject_alt_names.clear())
    }),
    case("46a", Must, Refused, Both, "an intermediate for URIs of another host", |f, path| {
        below(f, path, |p| p.custom_extensions.push(only_uris_of("elsewhere.test")))
    }),
    case("46b", Must, Refused, Both, "a root for URIs of another host", |f, path| {
        below_root(f, &f.constrained_root, path)
    }),
    case("47a", Own, Refused, Both, "an unknown critical extension of the leaf", |f, path| {
        changed(f, path, |p| {
            p.custom_extensions.push(unknown(true));
            Ok(())
        })
    }),
    case(
        "47b",
        Own,
        Refused,
        Both,
        "an unknown critical extension of an intermediate",
        |f, path| below(f, path, |p| p.custom_extensions.push(unknown(true))),
    ),
    case("47c", Must, Accepted, Both, "an unknown extension that is not critical", |f, path| {
        changed(f, path, |p| {
            p.custom_extensions.push(unknown(false));
            Ok(())
        })
    }),
    case("48a", Own, Accepted, Both, "a key on P-384", |f, path| {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?;
        let signed = f.own.intermediate().sign_with(&f.own.leaf(path)?, &key)?;
        Ok(signed.followed_by([f.intermediate()]))
    }),
    case("48b", Own, Accepted, Both, "an Ed25519 key", |f, path| {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let signed = f.own.intermediate().sign_with(&f.own.leaf(path)?, &key)?;
        Ok(signed.followed_by([f.intermediate()]))
    }),
    case("49a", Own, Refused, Both, "a chain of eight certificates", |f, path| {
        let signed = f.own.sign(&f.own.leaf(path)?)?;
        Ok(signed.followed_by(vec![f.intermediate(); 6]))
    }),
    case("49b", Own, Refused, Both, "a certificate of 17 KiB", |f, path| {
        changed(f, path, |p| {
            let oid = [1, 3, 6, 1, 4, 1, 99_999, 2];
            p.custom_extensions.push(extension(&oid, false, vec![0; 17 * 1024]));
            Ok(())
        })
    }),
    case("49c", Own, Refused, Both, "forty names", |f, path| {
        changed(f, path, |p| {
            for n in 0..40 {
                let name = format!("n{n}.conformance.test");
                p.subject_alt_names.push(SanType::DnsName(name.try_into()?));
            }
            Ok(())
        })
    }),
    case("51a", Must, Accepted, Inbound, "an SVID of a federated trust domain", |f, path| {
        f.federated.sign(&f.federated.leaf(path)?)
    }),
    case(
        "51b",
        Must,
        Refused,
        Outbound,
        "an SVID of a federated trust domain in place of ours",
        |f, path| f.federated.sign(&f.federated.leaf(path)?),
    ),
    case("52a", Must, Refused, Both, "a trust domain without a bundle", |_, path| {
        let stranger = stranger("stranger.test")?;
        stranger.sign(&stranger.leaf(path)?)
    }),
    case(
        "53a",
        Must,
        Refused,
        Both,
        "a federated authority signs for our trust domain",
        |f, path| f.federated.sign(&f.own.leaf(path)?),
    ),
    case(
        "53b",
        Must,
        Refused,
        Inbound,
        "our authority signs for a federated trust domain",
        |f, path| f.own.sign(&f.federated.leaf(path)?),
    ),
    case(
        "53c",
        Must,
        Refused,
        Both,
        "a federated authority signs for ours, our intermediate beside",
        |f, path| Ok(f.federated.sign(&f.own.leaf(path)?)?.followed_by([f.intermediate()])),
    ),
    case(
        "53d",
        Must,
        Refused,
        Both,
        "a federated root signs an intermediate with our ID",
        |f, path| {
            let mut params = authority(&format!("{OWN} intermediate"), f.own.name())?;
            params.subject_alt_names = vec![uri(&format!("spiffe://{OWN}"))?];
            let crossed = f.federated.root().below(params)?;
            let signed = crossed.sign(&f.own.leaf(path)?)?;
            Ok(signed.followed_by([crossed.certificate().clone()]))
        },
    ),
    with_lists(case("111a", Own, Refused, Inbound, "a revoked leaf", |f, _| f.revoked())),
    with_lists(case("111b", Own, Refused, Both, "a leaf of a revoked intermediate", |f, path| {
        let signed = f.revoked_intermediate.sign(&f.own.leaf(path)?)?;
        Ok(signed.followed_by([f.revoked_intermediate.certificate().clone()]))
    })),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_order_and_unique_and_begin_with_the_rule() {
        let order: Vec<(u8, &str)> = CASES.iter().map(|case| (case.rule, case.id)).collect();
        assert!(order.is_sorted_by(|one, other| one < other), "{order:?}");
        assert_eq!((CASES[0].id, number("111b")), ("0a", 111));
    }
}
