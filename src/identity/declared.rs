//! What operators declare about trust domains and about who is no longer trusted, parsed (`trust_domains`, `revocations`).
//!
//! The trust domain is the resource's id and never comes out of a document (SPIFFE Federation; rule 76).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{DenyList, RevocationList, RevocationMode, SpiffeId, TrustBundle, TrustDomain};
use crate::model::{
    BundleEndpoint, DomainRevocation, DomainTrust, EndpointProfile, Revocation,
    RevocationStrictness,
};

/// A field of a resource that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct WrongField {
    /// The field, with dots: `endpoint.url`.
    pub field: &'static str,
    /// What is wrong, and what is expected.
    pub why: String,
}

fn wrong(field: &'static str, why: impl fmt::Display) -> WrongField {
    WrongField { field, why: why.to_string() }
}

/// What is declared about a trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredDomain {
    /// Whose.
    pub domain: TrustDomain,
    /// Where its bundle comes from; nowhere when only its revocation is declared.
    pub origin: Option<BundleOrigin>,
    /// Between two fetches, in place of what the document says.
    pub refresh_every: Option<Duration>,
    /// What its authorities have revoked.
    pub revocation: Option<DeclaredRevocation>,
}

/// Where a declared trust domain's bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleOrigin {
    /// It stands in the resource.
    Given(TrustBundle),
    /// It is fetched.
    Endpoint(Box<Endpoint>),
}

/// A bundle endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https`, without user information (78).
    pub url: Uri,
    /// How its server is known (77).
    pub server: EndpointServer,
    /// The domain's bundle until the first one was fetched.
    pub initial: Option<TrustBundle>,
    /// Follow redirects.
    pub allow_redirects: bool,
    /// Private addresses may be asked.
    pub allow_private: bool,
}

/// How a bundle endpoint's server is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointServer {
    /// By the name in the URL, for which one of these authorities vouches; one of the system's when none are given (79).
    Web {
        /// The authorities.
        authorities: Option<Vec<CertificateDer<'static>>>,
    },
    /// By exactly this SPIFFE ID (80).
    Spiffe {
        /// Who answers there.
        id: SpiffeId,
    },
}

/// Where a trust domain's revocation lists come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredRevocation {
    /// What they mean.
    pub mode: RevocationMode,
    /// Lists that stand in the resource.
    pub lists: Vec<DatedList>,
    /// Files on this host.
    pub files: Vec<PathBuf>,
    /// URLs: `http` or `https`.
    pub urls: Vec<Uri>,
    /// A list is outdated so long after its thisUpdate.
    pub max_age: Option<Duration>,
    /// The URLs may have private addresses.
    pub allow_private: bool,
}

/// A revocation list that could be read, with its times. Nobody has checked its signature yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatedList {
    /// The list.
    pub der: CertificateRevocationListDer<'static>,
    /// When it was made, seconds since 1970.
    pub this_update: i64,
    /// When the next one is due.
    pub next_update: i64,
}

impl DatedList {
    /// All lists that bytes hold, as [`RevocationList::read`].
    ///
    /// # Errors
    /// There is none, or one of them cannot be read: then none is taken. The sentence says why.
    pub fn read(content: &[u8]) -> Result<Vec<Self>, String> {
        let lists = RevocationList::read(content).map_err(|error| error.report())?;
        let dated = |list: &RevocationList| Self {
            der: list.der().clone(),
            this_update: list.this_update(),
            next_update: list.next_update(),
        };
        Ok(lists.iter().map(dated).collect())
    }

    /// May it still be counted on at `now`, if it may be so old?
    pub fn is_younger_than(&self, max_age: Option<Duration>, now: i64) -> bool {
        max_age.is_none_or(|max| {
            let max = i64::try_from(max.as_secs()).unwrap_or(i64::MAX);
            now <= self.this_update.saturating_add(max)
        })
    }
}

impl DeclaredDomain {
    /// Reads what is declared about `domain`, the resource's id (76).
    ///
    /// # Errors
    /// The first field that makes no sense.
    pub fn new(domain: TrustDomain, declared: &DomainTrust) -> Result<Self, WrongField> {
        let origin = match (&declared.bundle, &declared.endpoint) {
            (Some(_), Some(_)) => {
                let why = "give either bundle or endpoint; a first bundle for an endpoint is endpoint.bundle";
                return Err(wrong("bundle", why));
            }
            (Some(text), None) => {
                let bundle = bundle("bundle", &domain, &text.text())?;
                Some(BundleOrigin::Given(bundle))
            }
            (None, Some(declared)) => {
                Some(BundleOrigin::Endpoint(Box::new(endpoint(&domain, declared)?)))
            }
            (None, None) => None,
        };
        if declared.refresh_hint.is_some() && declared.endpoint.is_none() {
            return Err(wrong("refresh_hint", "nothing is fetched without an endpoint"));
        }
        // The schema says so too; what comes past it is judged here.
        if declared.refresh_hint.is_some_and(|seconds| !(10..=86_400).contains(&seconds)) {
            return Err(wrong("refresh_hint", "expected 10 to 86400 seconds"));
        }
        let revocation = declared.revocation.as_ref().map(revocation).transpose()?;
        if origin.is_none() && revocation.is_none() {
            return Err(wrong("bundle", "give bundle, endpoint or revocation"));
        }
        let refresh_every = declared.refresh_hint.map(|hint| Duration::from_secs(hint.into()));
        Ok(Self { domain, origin, refresh_every, revocation })
    }

    /// As it may be declared where `own` is our own trust domain: its bundle comes from our identity's source.
    ///
    /// # Errors
    /// It declares a bundle for our own trust domain.
    pub fn for_us(self, own: &TrustDomain) -> Result<Self, WrongField> {
        let field = match &self.origin {
            Some(BundleOrigin::Given(_)) => "bundle",
            Some(BundleOrigin::Endpoint(_)) => "endpoint",
            None => return Ok(self),
        };
        if self.domain != *own {
            return Ok(self);
        }
        let why = "our own trust domain's bundle comes from where our identity comes from: declare its revocation alone";
        Err(wrong(field, why))
    }

    /// The endpoint, when there is one.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        match &self.origin {
            Some(BundleOrigin::Endpoint(endpoint)) => Some(endpoint),
            Some(BundleOrigin::Given(_)) | None => None,
        }
    }

    /// The trust domain whose bundle verifies the endpoint's server, when that is another one (82).
    pub fn rests_on(&self) -> Option<TrustDomain> {
        match &self.endpoint()?.server {
            EndpointServer::Spiffe { id } => {
                Some(id.trust_domain()).filter(|domain| *domain != self.domain)
            }
            EndpointServer::Web { .. } => None,
        }
    }
}

fn bundle(
    field: &'static str,
    domain: &TrustDomain,
    text: &str,
) -> Result<TrustBundle, WrongField> {
    let bundle = TrustBundle::from_text(domain.clone(), text.as_bytes())
        .map_err(|error| wrong(field, error.report()))?;
    if bundle.roots.is_empty() && bundle.jwt_authorities.is_empty() {
        let why = "it has no usable authority; to trust nobody of the domain, delete the resource";
        return Err(wrong(field, why));
    }
    Ok(bundle)
}

/// A URL to fetch from: its scheme is one of `schemes`, it has a host, no user information and no fragment (78).
///
/// # Errors
/// What is wrong with it.
pub fn fetchable(text: &str, schemes: &[&str]) -> Result<Uri, String> {
    let expected = schemes.join(" or ");
    let uri: Uri = text.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
    if uri.scheme_str().is_none_or(|scheme| !schemes.contains(&scheme)) {
        return Err(format!("{text:?}: the scheme must be {expected}"));
    }
    let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
        return Err(format!("{text:?} names no host"));
    };
    if authority.as_str().contains('@') {
        return Err("a URL with user information is refused".into());
    }
    if text.contains('#') {
        return Err(format!("{text:?}: a fragment means nothing here"));
    }
    // `host:` parses, and means nothing.
    if authority.port_u16().is_none() && authority.as_str().len() != authority.host().len() {
        return Err(format!("{text:?}: the port is 1 to 65535"));
    }
    Ok(uri)
}

fn endpoint(domain: &TrustDomain, declared: &BundleEndpoint) -> Result<Endpoint, WrongField> {
    let url = fetchable(&declared.url, &["https"]).map_err(|why| wrong("endpoint.url", why))?;
    let initial = declared
        .bundle
        .as_ref()
        .map(|text| bundle("endpoint.bundle", domain, &text.text()))
        .transpose()?;
    let server = match (declared.profile, &declared.spiffe_id) {
        (EndpointProfile::HttpsWeb, Some(_)) => {
            return Err(wrong("endpoint.spiffe_id", "it has a meaning with profile https_spiffe"));
        }
        (EndpointProfile::HttpsWeb, None) => EndpointServer::Web {
            authorities: declared.ca.as_deref().map(authorities).transpose()?,
        },
        (EndpointProfile::HttpsSpiffe, None) => {
            let why = "missing: with profile https_spiffe it says exactly who answers";
            return Err(wrong("endpoint.spiffe_id", why));
        }
        (EndpointProfile::HttpsSpiffe, Some(text)) => {
            if declared.ca.is_some() {
                return Err(wrong("endpoint.ca", "it has a meaning with profile https_web"));
            }
            let id: SpiffeId = text.parse().map_err(|error| {
                wrong("endpoint.spiffe_id", format!("{text:?} is not a SPIFFE ID: {error}"))
            })?;
            if id.path().is_empty() {
                return Err(wrong("endpoint.spiffe_id", "a server's SPIFFE ID has a path"));
            }
            match (id.trust_domain() == *domain, &initial) {
                (true, None) => {
                    let why = "missing: the server is of the very domain, so the first fetch is verified with it";
                    return Err(wrong("endpoint.bundle", why));
                }
                (false, Some(_)) => {
                    let why = format!(
                        "the server is of trust domain {}: declare that one, its bundle verifies the server",
                        id.trust_domain()
                    );
                    return Err(wrong("endpoint.bundle", why));
                }
                _ => {}
            }
            EndpointServer::Spiffe { id }
        }
    };
    let BundleEndpoint { allow_redirects, allow_private, .. } = *declared;
    Ok(Endpoint { url, server, initial, allow_redirects, allow_private })
}

fn authorities(pem: &str) -> Result<Vec<CertificateDer<'static>>, WrongField> {
    let found: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| wrong("endpoint.ca", format!("damaged PEM: {error}")))?;
    if found.is_empty() {
        return Err(wrong("endpoint.ca", "expected PEM with at least one certificate, found none"));
    }
    match found.iter().position(|der| !matches!(X509Certificate::from_der(der), Ok(([], _)))) {
        Some(at) => Err(wrong("endpoint.ca", format!("certificate {} is none", at + 1))),
        None => Ok(found),
    }
}

fn revocation(declared: &DomainRevocation) -> Result<DeclaredRevocation, WrongField> {
    let mut lists = Vec::new();
    for (at, text) in declared.lists.iter().enumerate() {
        let found = DatedList::read(text.as_bytes())
            .map_err(|why| wrong("revocation.lists", format!("item {}: {why}", at + 1)))?;
        lists.extend(found);
    }
    let files: Vec<PathBuf> = declared.files.iter().map(PathBuf::from).collect();
    if let Some(path) = files.iter().find(|path| !path.is_absolute()) {
        let why = format!("{} is not an absolute path", path.display());
        return Err(wrong("revocation.files", why));
    }
    let urls = declared.urls.iter().map(|text| fetchable(text, &["http", "https"]));
    let urls = urls.collect::<Result<_, _>>().map_err(|why| wrong("revocation.urls", why))?;
    Ok(DeclaredRevocation {
        mode: match declared.mode {
            RevocationStrictness::Off => RevocationMode::Off,
            RevocationStrictness::Soft => RevocationMode::Soft,
            RevocationStrictness::Hard => RevocationMode::Hard,
        },
        lists,
        files,
        urls,
        max_age: declared.max_age.map(|seconds| Duration::from_secs(seconds.into())),
        allow_private: declared.allow_private,
    })
}

/// One entry of the deny list: whatever it names is refused, each by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denial {
    /// A certificate, by the domain whose authority numbered it.
    pub serial: Option<(TrustDomain, String)>,
    /// A public key: SHA-256, lower-case hexadecimal.
    pub key: Option<String>,
    /// A name.
    pub id: Option<SpiffeId>,
    /// Seconds since 1970 from which on it refuses nobody.
    pub expires_at: Option<i64>,
}

impl Denial {
    /// Reads an entry.
    ///
    /// # Errors
    /// The first field that makes no sense.
    pub fn new(declared: &Revocation) -> Result<Self, WrongField> {
        let denial = Self {
            serial: serial(declared)?,
            key: declared.spki_sha256.as_deref().map(key).transpose()?,
            id: declared.spiffe_id.as_deref().map(denied_id).transpose()?,
            expires_at: declared.expires_at,
        };
        match (&denial.serial, &denial.key, &denial.id) {
            (None, None, None) => {
                Err(wrong("serial", "give serial with trust_domain, spki_sha256 or spiffe_id"))
            }
            _ => Ok(denial),
        }
    }

    /// What of a damaged entry can be read.
    pub fn readable_part(declared: &Revocation) -> Self {
        Self {
            serial: serial(declared).unwrap_or_default(),
            key: declared.spki_sha256.as_deref().and_then(|text| key(text).ok()),
            id: declared.spiffe_id.as_deref().and_then(|text| denied_id(text).ok()),
            expires_at: None,
        }
    }

    /// Does it still refuse at `now`?
    pub fn holds_at(&self, now: i64) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }

    /// Adds it to the deny list.
    pub fn add_to(&self, denied: &mut DenyList) {
        denied.serials.extend(self.serial.clone());
        denied.keys.extend(self.key.clone());
        denied.ids.extend(self.id.clone());
    }
}

fn serial(declared: &Revocation) -> Result<Option<(TrustDomain, String)>, WrongField> {
    let (serial, domain) = match (&declared.serial, &declared.trust_domain) {
        (None, None) => return Ok(None),
        (Some(_), None) => {
            return Err(wrong("trust_domain", "missing: whose authority gave the serial number?"));
        }
        (None, Some(_)) => {
            return Err(wrong("serial", "missing: trust_domain says whose serial number is meant"));
        }
        (Some(serial), Some(domain)) => (serial, domain),
    };
    let domain = domain.parse::<TrustDomain>().map_err(|why| {
        wrong("trust_domain", format!("{domain:?} is not a trust domain's name: {why}"))
    })?;
    match serial_number(serial) {
        Some(serial) => Ok(Some((domain, serial))),
        None => {
            Err(wrong("serial", format!("{serial:?} is not hexadecimal: expected 1f:a0 or 1fa0")))
        }
    }
}

/// A serial number as certificates are compared by: lower case, no colons, no leading zero bytes.
pub fn serial_number(text: &str) -> Option<String> {
    let mut digits: String = text.chars().filter(|c| *c != ':').collect();
    if digits.is_empty() || digits.len() > 128 {
        return None;
    }
    if digits.len() % 2 == 1 {
        digits.insert(0, '0');
    }
    let bytes = hex::decode(&digits).ok()?;
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1);
    Some(hex::encode(&bytes[first..]))
}

fn key(text: &str) -> Result<String, WrongField> {
    match hex::decode(text) {
        Ok(bytes) if bytes.len() == 32 => Ok(hex::encode(bytes)),
        _ => Err(wrong("spki_sha256", format!("{text:?} is not 64 hexadecimal digits"))),
    }
}

fn denied_id(text: &str) -> Result<SpiffeId, WrongField> {
    text.parse().map_err(|why| wrong("spiffe_id", format!("{text:?} is not a SPIFFE ID: {why}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::identity::BundleDocument;
    use crate::identity::forge::Forge;

    fn declared(value: &Value) -> Result<DeclaredDomain, String> {
        let declared: DomainTrust =
            serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
        DeclaredDomain::new("b.test".parse().unwrap(), &declared).map_err(|error| error.to_string())
    }

    #[test]
    fn rules_76_to_82_decide_what_may_be_declared() {
        let (b, c) = (Forge::new("b.test"), Forge::new("c.test"));
        let pem = b.bundle().to_pem();
        let spiffe = json!({
            "url": "https://b.example/bundle", "profile": "https_spiffe",
            "spiffe_id": "spiffe://b.test/server", "bundle": pem,
        });
        let with = |changes: Value| {
            let mut endpoint = spiffe.clone();
            for (name, value) in changes.as_object().unwrap() {
                match value {
                    Value::Null => drop(endpoint.as_object_mut().unwrap().remove(name)),
                    _ => endpoint[name] = value.clone(),
                }
            }
            json!({ "endpoint": endpoint })
        };
        let web = json!({"profile": "https_web", "spiffe_id": null, "bundle": null});
        for (rule, value) in [
            ("76 PEM", json!({"bundle": pem})),
            ("77 https_spiffe", with(json!({}))),
            ("77 https_web", with(web)),
            (
                "79 with authorities",
                with(json!({"profile": "https_web", "spiffe_id": null, "ca": c.bundle().to_pem()})),
            ),
            (
                "82 another domain's server",
                with(json!({"spiffe_id": "spiffe://c.test/server", "bundle": null})),
            ),
            (
                "revocation alone",
                json!({"revocation": {"mode": "hard", "files": ["/crl.pem"], "urls": ["http://a/crl"]}}),
            ),
        ] {
            declared(&value).unwrap_or_else(|error| panic!("{rule}: {error}"));
        }
        for (rule, value, says) in [
            ("76 both", json!({"bundle": pem, "endpoint": spiffe}), "bundle: give either"),
            ("76 neither", json!({}), "bundle: give bundle, endpoint or revocation"),
            ("76 no certificate", json!({"bundle": "hello"}), "bundle: expected PEM"),
            (
                "76 an empty document",
                json!({"bundle": {"keys": []}}),
                "bundle: it has no usable authority",
            ),
            ("77 a profile that is none", with(json!({"profile": "https"})), "unknown variant"),
            (
                "78 http",
                with(json!({"url": "http://b.example/"})),
                "endpoint.url: \"http://b.example/\": the scheme must be https",
            ),
            (
                "78 user information",
                with(json!({"url": "https://me:pw@b.example/"})),
                "endpoint.url: a URL with user information",
            ),
            (
                "78 empty user information",
                with(json!({"url": "https://@b.example/"})),
                "endpoint.url: ",
            ),
            ("78 no host", with(json!({"url": "https:///x"})), "endpoint.url: "),
            ("78 no URL", with(json!({"url": "b.example"})), "endpoint.url: "),
            (
                "78 a fragment",
                with(json!({"url": "https://b.example/#x"})),
                "a fragment means nothing",
            ),
            (
                "78 a port that is none",
                with(json!({"url": "https://b.example:99999/"})),
                "endpoint.url: ",
            ),
            (
                "79 authorities that are none",
                with(json!({"profile": "https_web", "spiffe_id": null, "bundle": null, "ca": "x"})),
                "endpoint.ca: ",
            ),
            (
                "79 an ID for the web",
                with(json!({"profile": "https_web"})),
                "endpoint.spiffe_id: it has a meaning",
            ),
            ("80 no ID", with(json!({"spiffe_id": null})), "endpoint.spiffe_id: missing"),
            (
                "80 not an ID",
                with(json!({"spiffe_id": "b.test"})),
                "endpoint.spiffe_id: \"b.test\" is not",
            ),
            (
                "80 a domain's ID",
                with(json!({"spiffe_id": "spiffe://b.test"})),
                "endpoint.spiffe_id: a server's",
            ),
            ("80 authorities for https_spiffe", with(json!({"ca": pem})), "endpoint.ca: "),
            ("81 no first bundle", with(json!({"bundle": null})), "endpoint.bundle: missing"),
            (
                "82 a bundle of its own",
                with(json!({"spiffe_id": "spiffe://c.test/s"})),
                "endpoint.bundle: the server is of trust domain c.test",
            ),
            (
                "a hint without an endpoint",
                json!({"bundle": pem, "refresh_hint": 60}),
                "refresh_hint: nothing is fetched",
            ),
            (
                "70 a hint that is too short",
                json!({"endpoint": spiffe, "refresh_hint": 9}),
                "refresh_hint: expected 10",
            ),
            (
                "a list that is none",
                json!({"revocation": {"lists": ["x"]}}),
                "revocation.lists: item 1: ",
            ),
            (
                "a relative path",
                json!({"revocation": {"files": ["crl.pem"]}}),
                "revocation.files: crl.pem",
            ),
            (
                "a URL of another kind",
                json!({"revocation": {"urls": ["ldap://a/b"]}}),
                "revocation.urls: ",
            ),
            ("an unknown field", json!({"bundle": pem, "trust": "all"}), "unknown field"),
        ] {
            let error = declared(&value).expect_err(rule);
            assert!(error.contains(says), "{rule}: {error}");
        }
    }

    #[test]
    fn rule_76_a_document_is_of_the_domain_that_the_resource_names() {
        let forge = Forge::new("elsewhere.test");
        let document = BundleDocument {
            bundle: forge.bundle(),
            sequence: Some(1),
            refresh_after: Duration::from_secs(60),
        };
        for bundle in [document.to_json().unwrap(), document.to_json().unwrap().to_string().into()]
        {
            let domain = declared(&json!({ "bundle": bundle })).unwrap();
            let Some(BundleOrigin::Given(bundle)) = domain.origin else { panic!("a bundle") };
            assert_eq!(bundle.domain.as_str(), "b.test");
            assert_eq!(bundle.roots, forge.bundle().roots);
        }
    }

    #[test]
    fn a_revocation_names_certificates_keys_or_ids() {
        let read = |value: Value| {
            let declared: Revocation =
                serde_json::from_value(value).map_err(|error| error.to_string())?;
            Denial::new(&declared).map_err(|error| error.to_string())
        };
        let key = "AB".repeat(32);
        let all = read(json!({
            "serial": "00:0A:ff", "trust_domain": "b.test", "spki_sha256": key,
            "spiffe_id": "spiffe://b.test/x", "reason": "lost", "expires_at": 100,
        }))
        .unwrap();
        assert_eq!(all.serial, Some(("b.test".parse().unwrap(), "0aff".into())));
        assert_eq!(all.key, Some("ab".repeat(32)));
        assert!(all.holds_at(99) && !all.holds_at(100));
        for (value, says) in [
            (json!({}), "serial: give serial"),
            (json!({"serial": "1"}), "trust_domain: missing"),
            (json!({"trust_domain": "b.test", "spki_sha256": key}), "serial: missing"),
            (json!({"serial": "xyz", "trust_domain": "b.test"}), "serial: \"xyz\""),
            (json!({"serial": "1", "trust_domain": "B"}), "trust_domain: \"B\""),
            (json!({"spki_sha256": "ab"}), "spki_sha256: \"ab\""),
            (json!({"spiffe_id": "b.test/x"}), "spiffe_id: \"b.test/x\""),
            (json!({"spiffeid": "spiffe://b.test/x"}), "unknown field"),
        ] {
            let error = read(value.clone()).unwrap_err();
            assert!(error.contains(says), "{value}: {error}");
        }
        for (text, number) in [("1", "01"), ("0", "00"), ("00ff", "ff"), ("1F:a0", "1fa0")] {
            assert_eq!(serial_number(text).as_deref(), Some(number));
        }
    }
}
