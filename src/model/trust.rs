//! Whom we trust beyond our own trust domain (`trust_domains`), and whom no longer (`revocations`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Id, Labels};

/// What is declared about a trust domain (`trust_domains`); the resource's id is the trust domain's name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [
    {"required": ["bundle"]}, {"required": ["endpoint"]}, {"required": ["revocation"]}
]))]
pub struct DomainTrust {
    /// The trust domain's name; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = "^[a-z0-9._-]+$"))]
    pub id: Option<Id>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub desc: Option<String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The domain's authorities: PEM with root certificates, or a SPIFFE bundle document, as text or as an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleText>,
    /// Where the domain's authorities are published, in place of `bundle`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<BundleEndpoint>,
    /// Seconds between two fetches, in place of what the document says (`spiffe_refresh_hint`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 86400))]
    pub refresh_hint: Option<u32>,
    /// What the domain's authorities have revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<DomainRevocation>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}

/// A bundle within a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected PEM text, or a SPIFFE bundle document")]
pub enum BundleText {
    /// PEM, or the text of a bundle document.
    Text(String),
    /// A bundle document.
    Document(Map<String, Value>),
}

impl BundleText {
    /// As text.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Document(document) => Value::Object(document.clone()).to_string(),
        }
    }
}

/// How the server at a bundle endpoint is known (SPIFFE Federation, section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndpointProfile {
    /// By the public name in its URL.
    HttpsWeb,
    /// By the SPIFFE ID of its certificate.
    HttpsSpiffe,
}

/// Where a trust domain publishes its bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BundleEndpoint {
    /// An `https` URL without user information.
    #[schemars(length(min = 9, max = 2048))]
    pub url: String,
    /// How the server is known.
    pub profile: EndpointProfile,
    /// With `https_spiffe`: exactly who answers there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub spiffe_id: Option<String>,
    /// The domain's bundle until the first one is fetched. An endpoint with `https_spiffe` whose server is of the very domain
    /// needs it: the first fetch is verified with it. Changing it begins anew: what was fetched before is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleText>,
    /// With `https_web`: the authorities (PEM) that may vouch for the server, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1_048_576))]
    pub ca: Option<String>,
    /// Follow redirects, at most three.
    #[serde(default = "yes")]
    pub allow_redirects: bool,
    /// The endpoint, or what it redirects to, may have a private or loopback address.
    #[serde(default)]
    pub allow_private: bool,
}

const fn yes() -> bool {
    true
}

/// What revocation lists mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RevocationStrictness {
    /// Lists are not looked at.
    Off,
    /// What a list revokes is refused; an absent or outdated list lets pass.
    #[default]
    Soft,
    /// Refused is also whatever no current list speaks for.
    Hard,
}

/// Where a trust domain's revocation lists are, and what they mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DomainRevocation {
    /// What lists mean.
    #[serde(default)]
    pub mode: RevocationStrictness,
    /// Revocation lists as PEM (`X509 CRL`), in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 1_048_576)))]
    pub lists: Vec<String>,
    /// Files (PEM or DER) on the data plane's host, looked at each second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 2, max = 4096), regex(pattern = "^/")))]
    pub files: Vec<String>,
    /// `http` or `https` URLs (PEM or DER), fetched again well before the list ends. The lists are signed, so that plain http
    /// will do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 8, max = 2048)))]
    pub urls: Vec<String>,
    /// Seconds after which a list is outdated, counted from its thisUpdate, whatever its nextUpdate says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub max_age: Option<u32>,
    /// The URLs may have private or loopback addresses.
    #[serde(default)]
    pub allow_private: bool,
}

/// Somebody who is refused at once (`revocations`): by certificate, by key, or by name. What is given refuses each by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [
    {"required": ["serial", "trust_domain"]}, {"required": ["spki_sha256"]}, {"required": ["spiffe_id"]}
], "dependencies" = {"serial": ["trust_domain"], "trust_domain": ["serial"]}))]
pub struct Revocation {
    /// Its id; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub desc: Option<String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// A certificate's serial number, hexadecimal; colons may stand between the bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[0-9a-fA-F]+(:[0-9a-fA-F]{2})*$"))]
    pub serial: Option<String>,
    /// Whose authority gave the serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub trust_domain: Option<String>,
    /// SHA-256 of a public key (SubjectPublicKeyInfo), 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub spki_sha256: Option<String>,
    /// A SPIFFE ID, whatever certificate bears it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub spiffe_id: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub reason: Option<String>,
    /// Seconds since 1970 from which on nobody is refused by it any more; never when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub expires_at: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}
