//! What an operator says of an authority and of the certificates that are wanted.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Error;

/// Obtains public certificates by ACME (RFC 8555) and renews them when a third of their life is left.
///
/// The names must lead to this ingress: an authority asks on port 80 (`http-01`) or 443 (`tls-alpn-01`) of each.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcmeSettings {
    /// The authority's directory.
    #[serde(default = "default_directory")]
    pub directory: String,
    /// Where the authority reaches people: `mailto:` addresses.
    #[serde(default)]
    pub contacts: Vec<String>,
    /// The operator agrees to the authority's terms of service. Without it there is no account.
    pub agree_to_terms: bool,
    /// The certificates that are wanted, each with its names.
    pub certificates: Vec<DomainsSettings>,
    /// The challenges that may be used, the preferred one first; those for which a door is open when not given,
    /// `tls-alpn-01` first.
    #[serde(default)]
    pub challenges: Option<Vec<ChallengeKind>>,
    /// Who vouches for the directory's TLS: a PEM file; the system's authorities when not given.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// An account with the authority's owner to which ours is bound, where the authority asks for one.
    #[serde(default)]
    pub external_account: Option<ExternalAccountSettings>,
    /// Seconds until a failed order is tried again; doubled each time, up to six hours.
    #[serde(default = "default_retry_seconds")]
    #[schemars(range(min = 1))]
    pub retry_seconds: u64,
    /// Where account and certificates are kept; `acme` in `state_dir` when not given. Ingresses that share this folder share
    /// account and certificates, and answer for one another's challenges.
    #[serde(default)]
    pub folder: Option<PathBuf>,
}

/// One certificate.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DomainsSettings {
    /// Its names; exact ones, since wildcards take a challenge over DNS.
    pub domains: Vec<String>,
}

/// How an authority sees that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ChallengeKind {
    /// A file over plain HTTP (RFC 8555 section 8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// A certificate over TLS (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl ChallengeKind {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

/// An account elsewhere (RFC 8555 section 7.3.4).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccountSettings {
    /// The key's id, as the authority's owner gave it.
    pub key_id: String,
    /// A file with the key, in base64 or base64url.
    pub key_file: PathBuf,
}

fn default_directory() -> String {
    "https://acme-v02.api.letsencrypt.org/directory".into()
}

const fn default_retry_seconds() -> u64 {
    60
}

/// What was judged of the settings.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) challenges: Vec<ChallengeKind>,
    /// The names of each certificate, in lower case.
    pub(super) certificates: Vec<Vec<String>>,
}

impl AcmeSettings {
    /// Makes sense of the settings, by the doors that the ingress has: plain HTTP, and TLS.
    pub(super) fn plan(&self, http: bool, https: bool) -> Result<Plan, Error> {
        let wrong =
            |field, problem: &str| Err(Error::Setting { field, problem: problem.to_owned() });
        if !self.agree_to_terms {
            return wrong(
                "agree_to_terms",
                "the authority's terms must be agreed to; expected true",
            );
        }
        if !self.directory.starts_with("https://") {
            return wrong("directory", "expected an https:// URL");
        }
        if let Some(contact) = self.contacts.iter().find(|one| !one.starts_with("mailto:")) {
            return wrong("contacts", &format!("{contact:?}: expected mailto: and an address"));
        }
        if self.retry_seconds == 0 {
            return wrong("retry_seconds", "expected at least 1");
        }
        if self.certificates.is_empty() {
            return wrong("certificates", "at least one is expected");
        }
        let mut known = HashSet::new();
        let mut certificates = Vec::new();
        for certificate in &self.certificates {
            if certificate.domains.is_empty() {
                return wrong("certificates", "domains: at least one name is expected");
            }
            let mut domains = Vec::new();
            for name in &certificate.domains {
                let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                if let Some(problem) = no_domain(&name) {
                    return wrong("certificates", &format!("domains: {name:?}: {problem}"));
                }
                if !known.insert(name.clone()) {
                    return wrong("certificates", &format!("domains: {name:?} is there twice"));
                }
                domains.push(name);
            }
            certificates.push(domains);
        }
        let has_door = |kind: ChallengeKind| match kind {
            ChallengeKind::Http01 => http,
            ChallengeKind::TlsAlpn01 => https,
        };
        let challenges = match &self.challenges {
            Some(asked) => {
                if let Some(kind) = asked.iter().find(|kind| !has_door(**kind)) {
                    let problem =
                        format!("{} needs a door that ingress does not open", kind.name());
                    return wrong("challenges", &problem);
                }
                asked.clone()
            }
            None => {
                let mut all = vec![ChallengeKind::TlsAlpn01, ChallengeKind::Http01];
                all.retain(|kind| has_door(*kind));
                all
            }
        };
        if challenges.is_empty() {
            return wrong("challenges", "at least one is expected, and a door for it");
        }
        Ok(Plan { challenges, certificates })
    }

    /// Do the settings make sense, for an ingress with these doors?
    ///
    /// # Errors
    /// One does not; the error names it.
    pub fn check(&self, http: bool, https: bool) -> Result<(), Error> {
        self.plan(http, https).map(drop)
    }
}

fn no_domain(name: &str) -> Option<&'static str> {
    let byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(byte);
    if name.contains('*') {
        return Some("a wildcard takes the challenge dns-01, which this version does not have");
    }
    if name.parse::<IpAddr>().is_ok() {
        return Some("expected a name, not an address");
    }
    (name.len() > 253 || !name.split('.').all(label)).then_some("this is no domain name")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(more: &Value, http: bool, https: bool) -> Result<Plan, String> {
        let mut all =
            json!({ "agree_to_terms": true, "certificates": [{ "domains": ["A.example."] }] });
        for (name, value) in more.as_object().unwrap() {
            all[name] = value.clone();
        }
        let settings: AcmeSettings = serde_json::from_value(all).map_err(|e| e.to_string())?;
        settings.plan(http, https).map_err(|error| error.to_string())
    }

    #[test]
    fn challenges_follow_the_doors_and_names_are_folded() {
        use ChallengeKind::{Http01, TlsAlpn01};
        let both = plan(&json!({}), true, true).unwrap();
        assert_eq!(both.challenges, [TlsAlpn01, Http01]);
        assert_eq!(both.certificates, [["a.example"]]);
        assert_eq!(plan(&json!({}), true, false).unwrap().challenges, [Http01]);
        let asked = plan(&json!({ "challenges": ["http-01"] }), true, true).unwrap();
        assert_eq!(asked.challenges, [Http01]);
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (more, sentence) in [
            (json!({ "agree_to_terms": false }), "agree_to_terms"),
            (json!({ "directory": "http://a/dir" }), "directory"),
            (json!({ "contacts": ["ops@a.example"] }), "contacts"),
            (json!({ "certificates": [] }), "certificates"),
            (json!({ "certificates": [{ "domains": [] }] }), "at least one name"),
            (json!({ "certificates": [{ "domains": ["*.a.example"] }] }), "dns-01"),
            (json!({ "certificates": [{ "domains": ["127.0.0.1"] }] }), "not an address"),
            (json!({ "certificates": [{ "domains": ["a b"] }] }), "no domain name"),
            (json!({ "certificates": [{ "domains": ["a", "A."] }] }), "twice"),
            (json!({ "challenges": [] }), "challenges"),
            (json!({ "challenges": ["tls-alpn-01"] }), "tls-alpn-01 needs a door"),
            (json!({ "challenges": ["dns-01"] }), "dns-01"),
            (json!({ "retry_seconds": 0 }), "retry_seconds"),
            (json!({ "email": "a" }), "email"),
        ] {
            let refused = plan(&more, true, false).unwrap_err();
            assert!(refused.contains(sentence), "{more}: {refused}");
        }
        assert!(plan(&json!({}), false, false).unwrap_err().contains("challenges"));
    }
}
