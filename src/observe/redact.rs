//! What of a record is not written down, and the proof of it that stands in its place.
//!
//! Redaction comes before hashing: the chain and its seals cover what stands in the file. Beside what was left out stands its
//! HMAC, so that who has the key can check a claim later ([`Redaction::proofs`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::json::Fields;
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::crypto::hmac;

/// What becomes of the paths of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PathRedaction {
    /// They are written as received.
    #[default]
    Keep,
    /// The template that matched is written (`/invoices/{id}`), as the rule or the route has it, and the HMAC of the whole.
    Template,
    /// Only their HMAC is written.
    Hmac,
}

/// What becomes of addresses of callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AddressRedaction {
    /// They are written as they are.
    #[default]
    Keep,
    /// The network is written (/24 of IPv4, /64 of IPv6), and the HMAC of the address.
    Prefix,
    /// Only their HMAC is written.
    Hmac,
}

/// What becomes of who called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalRedaction {
    /// SPIFFE IDs and what tells their certificates apart are written as they are.
    #[default]
    Keep,
    /// Only their HMACs are written, and the trust domain.
    Hmac,
}

/// Settings of what the decision log leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedactSettings {
    /// Paths of requests.
    #[serde(default)]
    pub paths: PathRedaction,
    /// Addresses of callers, and of balancers that introduced them.
    #[serde(default)]
    pub addresses: AddressRedaction,
    /// SPIFFE IDs of callers, serial numbers and hashes of their certificates, subjects of their tokens.
    #[serde(default)]
    pub principals: PrincipalRedaction,
    /// A file with the key of the HMACs: at least 32 bytes as hexadecimal digits (`openssl rand -hex 32`). Needed as soon as
    /// anything is redacted.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Keys of their own for callers of these trust domains: trust domain to file.
    #[serde(default)]
    pub tenant_key_files: BTreeMap<String, PathBuf>,
}

impl RedactSettings {
    /// What is left out, in a line: `paths principals`, or `nothing`.
    pub fn summary(&self) -> String {
        if (self.paths, self.addresses, self.principals) == Default::default() {
            return "nothing".to_owned();
        }
        let paths = (self.paths != PathRedaction::Keep).then_some("paths");
        let addresses = (self.addresses != AddressRedaction::Keep).then_some("addresses");
        let principals = (self.principals != PrincipalRedaction::Keep).then_some("principals");
        [paths, addresses, principals].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// A header that is logged.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LoggedHeader {
    /// By name; its value stands as its HMAC.
    Name(String),
    /// By name, and whether its value is written as it is.
    Chosen(ChosenHeader),
}

/// A header that is logged, with what becomes of its value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChosenHeader {
    /// Its name.
    pub name: String,
    /// Write its value as it is.
    #[serde(default)]
    pub keep: bool,
}

impl LoggedHeader {
    fn chosen(&self) -> (&str, bool) {
        match self {
            Self::Name(name) => (name, false),
            Self::Chosen(ChosenHeader { name, keep }) => (name, *keep),
        }
    }
}

/// Headers whose very purpose is to be secret.
const NEVER: [&str; 6] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "x-api-key",
    "x-wardgate-admin-key",
];

/// A key of HMACs, and the name that records know it by.
#[derive(Clone, Debug)]
struct Key {
    key: hmac::Key,
    name: String,
}

impl Key {
    fn read(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_path_buf(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        let bytes = hex::decode(text.trim()).ok().filter(|bytes| bytes.len() >= 32);
        let bytes = bytes.ok_or_else(|| Error::Key { path: path.to_path_buf() })?;
        Ok(Self::of(&bytes))
    }

    fn of(bytes: &[u8]) -> Self {
        let name = hex::encode(&digest(&SHA256, bytes).as_ref()[..4]);
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, bytes), name }
    }

    /// `HMAC-SHA256(key, "wardgate-redact-v1\n" ‖ kind ‖ "\n" ‖ value)`: the same value of two kinds is not the same.
    fn proof(&self, kind: &str, value: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [b"wardgate-redact-v1\n".as_slice(), kind.as_bytes(), b"\n", value] {
            context.update(part);
        }
        let mut proof = [0; 32];
        proof.copy_from_slice(context.sign().as_ref());
        proof
    }
}

/// Redaction as it is in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Redaction {
    pub(super) paths: PathRedaction,
    addresses: AddressRedaction,
    pub(super) principals: PrincipalRedaction,
    key: Option<Key>,
    tenants: Vec<(String, Key)>,
    headers: Vec<(String, bool)>,
}

/// Whose key a record's HMACs are made with: the place in [`Redaction::tenants`], or everybody's.
pub(super) type Tenant = Option<usize>;

impl Redaction {
    /// Nothing is left out.
    pub(super) const KEEP: Self = Self {
        paths: PathRedaction::Keep,
        addresses: AddressRedaction::Keep,
        principals: PrincipalRedaction::Keep,
        key: None,
        tenants: Vec::new(),
        headers: Vec::new(),
    };

    /// Judges settings without reading a key.
    pub(super) fn check(settings: &RedactSettings, headers: &[LoggedHeader]) -> Result<(), Error> {
        Self::chosen(settings, headers).map(drop)
    }

    /// The headers that are logged, if the settings can be.
    fn chosen(
        settings: &RedactSettings,
        headers: &[LoggedHeader],
    ) -> Result<Vec<(String, bool)>, Error> {
        let setting = |field: &'static str, problem: String| Error::Setting { field, problem };
        let mut chosen = Vec::new();
        for header in headers {
            let (name, keep) = header.chosen();
            let name = name.to_ascii_lowercase();
            let is_name = !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
            if !is_name {
                return Err(setting(
                    "decision_log.headers",
                    format!("{name:?} is no header's name"),
                ));
            }
            if keep && NEVER.contains(&&*name) {
                let problem = format!("{name} is a secret; it can be logged by its HMAC alone");
                return Err(setting("decision_log.headers", problem));
            }
            chosen.push((name, keep));
        }
        let needs_key = settings.paths != PathRedaction::Keep
            || settings.addresses != AddressRedaction::Keep
            || settings.principals != PrincipalRedaction::Keep
            || chosen.iter().any(|(_, keep)| !keep);
        if needs_key && settings.key_file.is_none() {
            let problem = "missing; expected a file with 64 or more hexadecimal digits, as `openssl rand -hex 32` makes them, \
                 because something is redacted";
            return Err(setting("decision_log.redact.key_file", problem.to_owned()));
        }
        Ok(chosen)
    }

    pub(super) fn new(settings: &RedactSettings, headers: &[LoggedHeader]) -> Result<Self, Error> {
        let chosen = Self::chosen(settings, headers)?;
        let key = settings.key_file.as_deref().map(Key::read).transpose()?;
        let tenants = settings.tenant_key_files.iter();
        let tenants = tenants.map(|(domain, file)| Ok((domain.clone(), Key::read(file)?)));
        Ok(Self {
            paths: settings.paths,
            addresses: settings.addresses,
            principals: settings.principals,
            key,
            tenants: tenants.collect::<Result<_, Error>>()?,
            headers: chosen,
        })
    }

    /// The key for callers of a trust domain.
    pub(super) fn tenant(&self, trust_domain: Option<&str>) -> Tenant {
        let domain = trust_domain?;
        self.tenants.iter().position(|(name, _)| name == domain)
    }

    fn key(&self, tenant: Tenant) -> Option<&Key> {
        tenant.and_then(|at| self.tenants.get(at).map(|(_, key)| key)).or(self.key.as_ref())
    }

    /// Names the key, where there is anything to be checked with one.
    pub(super) fn write_key(&self, tenant: Tenant, fields: &mut Fields<'_>) {
        fields.some_text("hmac_key", self.key(tenant).map(|key| key.name.as_str()));
    }

    /// Writes the HMAC of a value that is left out.
    fn hide(
        &self,
        tenant: Tenant,
        fields: &mut Fields<'_>,
        key: &'static str,
        kind: &str,
        value: &[u8],
    ) {
        if let Some(with) = self.key(tenant) {
            fields.hex(key, &with.proof(kind, value));
        }
    }

    /// What tells a principal: an ID, a serial number, the hash of a key. `keys`: its field, and that of its HMAC.
    pub(super) fn principal(
        &self,
        tenant: Tenant,
        fields: &mut Fields<'_>,
        keys: (&'static str, &'static str),
        value: Option<&str>,
    ) {
        let Some(value) = value else { return };
        match self.principals {
            PrincipalRedaction::Keep => fields.text(keys.0, value),
            PrincipalRedaction::Hmac => {
                self.hide(tenant, fields, keys.1, "principal", value.as_bytes());
            }
        }
    }

    /// An address with its port.
    pub(super) fn socket(
        &self,
        tenant: Tenant,
        fields: &mut Fields<'_>,
        keys: (&'static str, &'static str, &'static str),
        address: SocketAddr,
    ) {
        match self.addresses {
            AddressRedaction::Keep => fields.shown(keys.0, &address),
            AddressRedaction::Prefix | AddressRedaction::Hmac => {
                self.ip(tenant, fields, keys, address.ip());
            }
        }
    }

    /// An address without a port. `keys`: its field, that of its network, and that of its HMAC.
    pub(super) fn ip(
        &self,
        tenant: Tenant,
        fields: &mut Fields<'_>,
        keys: (&'static str, &'static str, &'static str),
        address: IpAddr,
    ) {
        let address = address.to_canonical();
        if self.addresses == AddressRedaction::Keep {
            return fields.shown(keys.0, &address);
        }
        if self.addresses == AddressRedaction::Prefix {
            fields.shown(keys.1, &network(address));
        }
        self.hide(tenant, fields, keys.2, "address", address.to_string().as_bytes());
    }

    /// A request's path.
    pub(super) fn path(
        &self,
        tenant: Tenant,
        fields: &mut Fields<'_>,
        path: &[u8],
        template: Option<&str>,
    ) {
        match self.paths {
            PathRedaction::Keep => {
                fields.bytes("path", "path_b64", path);
                fields.some_text("template", template);
            }
            PathRedaction::Template => {
                // The shape of a path is a guess, and what it takes for a name of a kind may be somebody's.
                fields.some_text("template", template);
                self.hide(tenant, fields, "path_hmac", "path", path);
            }
            PathRedaction::Hmac => self.hide(tenant, fields, "path_hmac", "path", path),
        }
    }

    /// A sentence that may quote whoever is spoken of.
    pub(super) fn sentence(&self, fields: &mut Fields<'_>, sentence: Option<&str>) {
        let may_tell =
            self.principals == PrincipalRedaction::Keep && self.addresses == AddressRedaction::Keep;
        let Some(sentence) = sentence else { return };
        if may_tell {
            fields.text("detail", sentence);
        } else {
            self.hide(None, fields, "detail_hmac", "detail", sentence.as_bytes());
        }
    }

    /// The headers that are logged.
    pub(super) fn headers(
        &self,
        tenant: Tenant,
        fields: &mut Fields<'_>,
        head: &dyn super::RequestHead,
    ) {
        for (keep, key) in [(true, "headers"), (false, "headers_hmac")] {
            if !self.headers.iter().any(|(name, kept)| *kept == keep && head.first(name).is_some())
            {
                continue;
            }
            fields.object(key, |fields| {
                for (name, _) in self.headers.iter().filter(|(_, kept)| *kept == keep) {
                    match (head.first(name), self.key(tenant)) {
                        (Some(value), _) if keep => fields.named(name, value),
                        (Some(value), Some(with)) => {
                            fields.named_hex(name, &with.proof(&format!("header:{name}"), value));
                        }
                        _ => {}
                    }
                }
            });
        }
    }
}

/// Fields of an address: itself, its network, its HMAC.
pub(super) const ADDRESS: (&str, &str, &str) = ("addr", "addr_prefix", "addr_hmac");
/// The same of who introduced a connection.
pub(super) const VIA: (&str, &str, &str) = ("via", "via_prefix", "via_hmac");
/// The same of the caller that a trusted sender names.
pub(super) const CALLER: (&str, &str, &str) = ("caller", "caller_prefix", "caller_hmac");

fn network(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{}/64", std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// The HMACs that a value may stand in a redacted log as, each with the kind of value that it would be: `path`, `address`,
/// `principal`, `detail`, and `header:<name>` of each of `headers`.
///
/// # Errors
/// The key's file cannot be read, or holds no key.
pub fn redaction_proofs(
    key_file: &Path,
    value: &str,
    headers: &[String],
) -> Result<Vec<(String, String)>, Error> {
    let key = Key::read(key_file)?;
    let kinds = ["path", "address", "principal", "detail"].map(str::to_owned).into_iter();
    let headers = headers.iter().map(|name| format!("header:{}", name.to_ascii_lowercase()));
    let of = |kind: String| {
        let proof = hex::encode(key.proof(&kind, value.as_bytes()));
        (kind, proof)
    };
    Ok(kinds.chain(headers).map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redaction(settings: &RedactSettings) -> Redaction {
        Redaction {
            key: Some(Key::of(&[7; 32])),
            tenants: vec![("b.test".to_owned(), Key::of(&[8; 32]))],
            ..Redaction {
                paths: settings.paths,
                addresses: settings.addresses,
                principals: settings.principals,
                ..Redaction::default()
            }
        }
    }

    fn written(write: impl FnOnce(&mut Fields<'_>)) -> serde_json::Value {
        let mut out = b"{".to_vec();
        write(&mut Fields::first(&mut out));
        out.push(b'}');
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn what_is_left_out_leaves_a_proof_that_only_the_key_can_check() {
        let all = redaction(&RedactSettings {
            paths: PathRedaction::Template,
            addresses: AddressRedaction::Prefix,
            principals: PrincipalRedaction::Hmac,
            ..RedactSettings::default()
        });
        let record = written(|fields| {
            all.path(None, fields, b"/invoices/4711", Some("/invoices/*"));
            all.socket(None, fields, ADDRESS, "10.1.2.3:99".parse().unwrap());
            all.principal(None, fields, ("spiffe_id", "spiffe_id_hmac"), Some("spiffe://a/web"));
            all.sentence(fields, Some("spiffe://a/web is not trusted"));
        });
        assert_eq!(record["template"], "/invoices/*");
        assert_eq!(record["addr_prefix"], "10.1.2.0/24");
        let text = record.to_string();
        for secret in ["4711", "10.1.2.3", "web"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let proof = hex::encode(Key::of(&[7; 32]).proof("path", b"/invoices/4711"));
        assert_eq!(record["path_hmac"], proof);
        assert_ne!(hex::encode(Key::of(&[7; 32]).proof("address", b"/invoices/4711")), proof);
        // Another tenant's callers are another key's.
        let theirs =
            written(|fields| all.path(all.tenant(Some("b.test")), fields, b"/invoices/4711", None));
        assert_ne!(theirs["path_hmac"], proof);
        assert_eq!(all.tenant(Some("a.test")), None);
    }

    #[test]
    fn nothing_is_redacted_without_a_key_and_no_secret_header_is_logged_as_it_is() {
        let hidden = RedactSettings { paths: PathRedaction::Hmac, ..RedactSettings::default() };
        let error = Redaction::new(&hidden, &[]).unwrap_err().to_string();
        assert!(error.contains("decision_log.redact.key_file"), "{error}");
        let plain = RedactSettings::default();
        let kept =
            |name: &str| LoggedHeader::Chosen(ChosenHeader { name: name.to_owned(), keep: true });
        let error = Redaction::new(&plain, &[kept("Cookie")]).unwrap_err().to_string();
        assert!(error.contains("cookie is a secret"), "{error}");
        assert!(Redaction::new(&plain, &[kept("user-agent")]).is_ok());
        assert!(Redaction::new(&plain, &[LoggedHeader::Name("user-agent".into())]).is_err());
    }
}
