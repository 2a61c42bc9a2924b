//! Sites and client rules by themselves; with real clients: `tests/gateway/tls_edge.rs`, `tests/gateway/client_certificates.rs`.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};

use super::{ClientRule, EdgeTls, Site, Sites};
use crate::model::{Id, Ssl, SslClient};

fn self_signed(names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn compile(id: &str, value: Value) -> Result<Arc<Site>, String> {
    let ssl: Ssl = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let site = Site::compile(&Id::parse(id).unwrap(), &ssl, &EdgeTls::default(), None);
    site.map(Arc::new).map_err(|error| error.to_string())
}

fn site(id: &str, names: &[&str]) -> Arc<Site> {
    let (cert, key) = self_signed(&["x.test"]);
    compile(id, json!({ "snis": names, "cert": cert, "key": key })).unwrap()
}

#[test]
fn a_site_is_found_exact_first_then_by_one_label_then_for_any() {
    let mut sites = Sites::default();
    for one in [
        site("exact", &["Www.Shop.test", "shop.test."]),
        site("wild", &["*.shop.test"]),
        site("any", &["*"]),
    ] {
        sites.insert(&one);
    }
    let longest = "a".repeat(300);
    for (name, id) in [
        ("www.shop.test", "exact"),
        ("WWW.SHOP.TEST.", "exact"),
        ("shop.test", "exact"),
        ("x.shop.test", "wild"),
        ("X.Shop.test", "wild"),
        ("a.b.shop.test", "any"),
        ("elsewhere.test", "any"),
        (".shop.test", "any"),
        ("*.shop.test", "any"),
        ("*", "any"),
        ("", "any"),
        ("sh\u{f6}p.test", "any"),
        (&longest, "any"),
    ] {
        assert_eq!(sites.find(name).map(|site| site.id()), Some(id), "{name}");
    }
    sites.remove("any");
    for name in ["a.b.shop.test", "elsewhere.test", "", "*", &longest] {
        assert!(sites.find(name).is_none(), "{name}");
    }
    assert!(sites.any().is_none());
}

#[test]
fn of_several_sites_for_one_name_the_first_id_answers_and_what_is_declared_goes_before_what_was_obtained()
 {
    let mut sites = Sites::default();
    for id in ["b", "acme.shop.test", "a", "c"] {
        sites.insert(&site(id, &["shop.test", "shop.test", "SHOP.test"]));
    }
    for id in ["a", "b", "c", "acme.shop.test"] {
        assert_eq!(sites.find("shop.test").map(|site| site.id()), Some(id));
        sites.remove(id);
    }
    assert!(sites.find("shop.test").is_none() && sites.is_empty());
    // A resource that gives a name up leaves it to the next one.
    sites.insert(&site("a", &["shop.test"]));
    sites.insert(&site("b", &["shop.test"]));
    let before = sites.clone();
    sites.insert(&site("a", &["other.test"]));
    assert_eq!(sites.find("shop.test").map(|site| site.id()), Some("b"));
    assert_eq!(sites.find("other.test").map(|site| site.id()), Some("a"));
    assert_eq!(before.find("shop.test").map(|site| site.id()), Some("a"), "versions stay");
    assert_eq!(sites.certificates().count(), 2);
}

#[test]
fn a_site_covers_what_its_certificates_say_and_not_what_it_is_configured_for() {
    let (cert, key) = self_signed(&["shop.test", "*.api.test", "127.0.0.1", "::1"]);
    let site = compile("1", json!({ "sni": "named.test", "cert": cert, "key": key })).unwrap();
    for (host, covered) in [
        ("shop.test", true),
        ("v1.api.test", true),
        ("api.test", false),
        ("a.v1.api.test", false),
        ("named.test", false),
        ("127.0.0.1", true),
        ("[::1]", true),
        ("127.0.0.2", false),
        ("[::2]", false),
    ] {
        assert_eq!(site.covers(host), covered, "{host}");
    }
}

#[test]
fn what_cannot_be_served_is_refused_with_the_field_that_is_wrong() {
    let (cert, key) = self_signed(&["a.test"]);
    let (other, other_key) = self_signed(&["b.test"]);
    let with = |more: Value| {
        let mut value = json!({ "sni": "a.test", "cert": cert, "key": key });
        for (name, field) in more.as_object().unwrap() {
            value[name] = field.clone();
        }
        compile("1", value).map(|_| ()).unwrap_err()
    };
    for (more, sentence) in [
        (json!({ "key": other_key }), "key and certificate"),
        (json!({ "certs": [other] }), "mismatched number of certs and keys"),
        (json!({ "certs": [other], "keys": [key] }), "key and certificate"),
        (json!({ "ssl_protocols": ["TLSv1.1"] }), "ssl_protocols: TLSv1.1 is not spoken"),
        (json!({ "ssl_protocols": [] }), "ssl_protocols: at least one"),
        (json!({ "client": { "ca": "nothing" } }), "client.ca: no PEM certificate"),
        (
            json!({ "client": { "ca": cert, "skip_mtls_uri_regex": ["("] } }),
            "client.skip_mtls_uri_regex",
        ),
        (json!({ "sni": "a.*.test" }), "is no server name"),
    ] {
        let refused = with(more);
        assert!(refused.contains(sentence), "{refused}\nwanted: {sentence}");
    }
}

/// An authority, and who stands below it.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params
    }

    fn root(name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn below(&self, name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, usage: ExtendedKeyUsagePurpose) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "client");
        params.extended_key_usages = vec![usage];
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
    }

    fn der(&self) -> CertificateDer<'static> {
        use rustls_pki_types::pem::PemObject as _;
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }
}

fn rule(ca: &str, depth: u32, skips: Option<&[&str]>) -> ClientRule {
    let skip_mtls_uri_regex = skips.map(|skips| skips.iter().map(|&one| one.to_owned()).collect());
    ClientRule::compile(&SslClient { ca: ca.to_owned(), depth, skip_mtls_uri_regex }).unwrap()
}

#[test]
fn a_client_is_judged_by_its_chain_and_how_deep_that_is() {
    let root = Authority::root("root");
    let (one, stranger) = (root.below("one"), Authority::root("stranger"));
    let two = one.below("two");
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    let judge = |rule: &ClientRule, leaf: &CertificateDer<'_>, above: &[CertificateDer<'_>]| {
        rule.judge(leaf, above, UnixTime::now()).map_err(|refusal| refusal.code())
    };
    let above = [two.der(), one.der()];
    for (depth, from_root, from_one, from_two) in [
        (0, Ok(()), Err("client_too_deep"), Err("client_too_deep")),
        (1, Ok(()), Ok(()), Err("client_too_deep")),
        (2, Ok(()), Ok(()), Ok(())),
    ] {
        let rule = rule(&root.certificate, depth, None);
        for (authority, expected) in [(&root, from_root), (&one, from_one), (&two, from_two)] {
            let leaf = authority.leaf(client.clone());
            assert_eq!(judge(&rule, &leaf, &above), expected, "depth {depth}");
        }
    }
    let rule = rule(&root.certificate, 1, None);
    let leaf = two.leaf(client.clone());
    assert_eq!(judge(&rule, &stranger.leaf(client), &[]), Err("untrusted_client"));
    assert_eq!(judge(&rule, &leaf, &[]), Err("untrusted_client"), "its authorities are missing");
    let server = root.leaf(ExtendedKeyUsagePurpose::ServerAuth);
    assert_eq!(judge(&rule, &server, &[]), Err("untrusted_client"), "a server's certificate");
    // Whatever stands in `ca` is an anchor.
    let anchored = self::rule(&two.certificate, 0, None);
    assert_eq!(judge(&anchored, &leaf, &[]), Ok(()));
}

#[test]
fn paths_are_skipped_as_they_are_routed_and_never_when_they_could_be_read_otherwise() {
    let (cert, _) = self_signed(&["ca.test"]);
    let rule = rule(&cert, 1, Some(&["^/public/", "/health$"]));
    for (path, skipped) in [
        ("/public/a", true),
        ("/x/health", true),
        ("/public", false),
        ("/private", false),
        ("/public/%2e%2e/private", false),
        ("/public/..\\private", false),
        ("/public/..;/private", false),
    ] {
        assert_eq!(rule.skips(path.as_bytes()), skipped, "{path}");
    }
    assert!(!self::rule(&cert, 1, None).skips(b"/public/a"));
}
