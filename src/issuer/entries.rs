//! Registration entries: what a caller's attestation must show, and the identity it gets then. No I/O.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::authority::MAX_TTL;
use super::{DEFAULT_TTL, Error, Selector};
use crate::identity::{SpiffeId, TrustDomain};
use crate::model::Workload;

/// What a client of the Workload API need not accept more of (rule 107).
const MAX_HINT: usize = 1024;

/// One entry, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationEntry {
    /// The identity that is issued.
    pub spiffe_id: SpiffeId,
    /// All of these must be shown.
    pub selectors: BTreeSet<Selector>,
    /// How long an SVID lives.
    pub ttl: Duration,
    /// DNS names that the SVID also bears.
    pub dns_names: Vec<String>,
    /// What tells this identity from others of the same caller; empty when nothing does.
    pub hint: String,
    /// Other trust domains whose bundles the workload gets.
    pub federates_with: BTreeSet<TrustDomain>,
}

impl RegistrationEntry {
    /// Checks a declared entry for an issuer of `domain`.
    ///
    /// # Errors
    /// Names the field: an ID that is none, has no path or is of another trust domain, no selector or one that is not known, a
    /// hint of more than 1024 bytes, a name in `federates_with` that is no other trust domain's.
    pub fn new(workload: &Workload, domain: &TrustDomain) -> Result<Self, Error> {
        let wrong = |field, detail: String| Error::Entry { field, detail };
        let text = &workload.spiffe_id;
        let spiffe_id: SpiffeId =
            text.parse().map_err(|cause| wrong("spiffe_id", format!("{text:?} {cause}")))?;
        if spiffe_id.trust_domain_name() != domain.as_str() {
            let detail = format!("{spiffe_id} is not in the issuer's trust domain {domain}");
            return Err(wrong("spiffe_id", detail));
        }
        if spiffe_id.path().is_empty() {
            return Err(wrong("spiffe_id", format!("{spiffe_id} has no path")));
        }
        if workload.selectors.is_empty() {
            return Err(wrong("selectors", "none given; everybody would have the identity".into()));
        }
        let selectors = workload.selectors.iter().map(|text| text.parse());
        let ttl = workload.ttl.map_or(DEFAULT_TTL, |seconds| Duration::from_secs(seconds.into()));
        if ttl.is_zero() || ttl > MAX_TTL {
            return Err(wrong("ttl", format!("{} s: expected 1 s to 24 h", ttl.as_secs())));
        }
        let hint = workload.hint.clone().unwrap_or_default();
        if hint.len() > MAX_HINT {
            let detail = format!("{} bytes: expected at most {MAX_HINT}", hint.len());
            return Err(wrong("hint", detail));
        }
        let mut federates_with = BTreeSet::new();
        for name in &workload.federates_with {
            let other: TrustDomain = name
                .parse()
                .map_err(|cause| wrong("federates_with", format!("{name:?}: {cause}")))?;
            if other == *domain {
                let detail = format!("{name} is the issuer's own trust domain");
                return Err(wrong("federates_with", detail));
            }
            federates_with.insert(other);
        }
        Ok(Self {
            spiffe_id,
            selectors: selectors.collect::<Result<_, _>>()?,
            ttl,
            dns_names: workload.dns_names.clone(),
            hint,
            federates_with,
        })
    }

    /// What a proof gives by itself, without a declared entry.
    pub(super) fn granted(spiffe_id: SpiffeId, ttl: Duration, dns_names: Vec<String>) -> Self {
        let (hint, federates_with) = (String::new(), BTreeSet::new());
        Self { spiffe_id, selectors: BTreeSet::new(), ttl, dns_names, hint, federates_with }
    }

    /// Does an attestation show all that this entry asks for?
    pub fn admits(&self, shown: &BTreeSet<Selector>) -> bool {
        self.selectors.is_subset(shown)
    }
}

/// All entries of an issuer, in a stable order: a caller's first identity is its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    all: Vec<Arc<RegistrationEntry>>,
    ask_for_programs: bool,
}

impl Entries {
    /// Every identity of a caller that showed `shown`.
    pub fn matching(&self, shown: &BTreeSet<Selector>) -> Vec<Arc<RegistrationEntry>> {
        self.all.iter().filter(|entry| entry.admits(shown)).cloned().collect()
    }

    /// Does an entry ask for the hash of a program, which costs more than other selectors?
    pub fn ask_for_programs(&self) -> bool {
        self.ask_for_programs
    }

    /// These without the ones that give an identity in `denied`.
    #[must_use]
    pub fn without(&self, denied: &BTreeSet<SpiffeId>) -> Self {
        let is_free = |entry: &&Arc<RegistrationEntry>| !denied.contains(&entry.spiffe_id);
        Self {
            all: self.all.iter().filter(is_free).cloned().collect(),
            ask_for_programs: self.ask_for_programs,
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Nobody gets an identity.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl FromIterator<RegistrationEntry> for Entries {
    fn from_iter<I: IntoIterator<Item = RegistrationEntry>>(entries: I) -> Self {
        let all: Vec<_> = entries.into_iter().map(Arc::new).collect();
        let mut selectors = all.iter().flat_map(|entry| &entry.selectors);
        let ask_for_programs = selectors.any(|one| matches!(one, Selector::UnixSha256(_)));
        Self { all, ask_for_programs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, selectors: &[&str]) -> Result<RegistrationEntry, Error> {
        let declared = serde_json::json!({ "spiffe_id": id, "selectors": selectors });
        let workload = serde_json::from_value(declared).unwrap();
        RegistrationEntry::new(&workload, &"a.test".parse().unwrap())
    }

    #[test]
    fn a_caller_gets_every_entry_whose_selectors_it_shows_in_full() {
        let both = ["unix:uid:1000", "unix:path:/usr/bin/web"];
        let entries: Entries = [
            entry("spiffe://a.test/user", &["unix:uid:1000"]).unwrap(),
            entry("spiffe://a.test/web", &both).unwrap(),
            entry("spiffe://a.test/root", &["unix:uid:0"]).unwrap(),
        ]
        .into_iter()
        .collect();
        let of = |shown: &[&str]| {
            let shown = shown.iter().map(|text| text.parse().unwrap()).collect();
            let ids = entries.matching(&shown);
            ids.iter().map(|entry| entry.spiffe_id.path().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of(&["unix:uid:1000", "unix:gid:1000"]), ["/user"]);
        assert_eq!(of(&["unix:uid:1000", "unix:path:/usr/bin/web"]), ["/user", "/web"]);
        assert_eq!(of(&["unix:path:/usr/bin/web"]), Vec::<String>::new());
        assert_eq!(of(&[]), Vec::<String>::new());
    }

    #[test]
    fn entries_that_would_give_away_too_much_are_refused_by_field() {
        let refused = |id: &str, selectors: &[&str]| entry(id, selectors).unwrap_err().to_string();
        let uid = ["unix:uid:1"];
        assert!(
            refused("spiffe://b.test/web", &uid).contains("spiffe_id of the registration entry")
        );
        assert!(refused("spiffe://a.test", &uid).contains("has no path"));
        assert!(refused("web", &uid).contains("does not start with spiffe://"));
        assert!(refused("spiffe://a.test/web", &[]).contains("everybody would have"));
        for bad in ["uid:1", "unix:uid:x", "unix:uid:-1", "unix:path:web", "k8s:pod:x", "unix:uid:"]
        {
            assert!(refused("spiffe://a.test/web", &[bad]).contains("selectors"), "{bad}");
        }
        let declared = |name: &str, value: serde_json::Value| {
            let mut declared =
                serde_json::json!({ "spiffe_id": "spiffe://a.test/web", "selectors": uid });
            declared[name] = value;
            let workload = serde_json::from_value(declared).unwrap();
            RegistrationEntry::new(&workload, &"a.test".parse().unwrap())
        };
        for (field, value) in [
            ("hint", "x".repeat(1025).into()),
            ("federates_with", serde_json::json!(["a.test"])),
            ("federates_with", serde_json::json!(["B.test"])),
            ("federates_with", serde_json::json!(["spiffe://b.test"])),
        ] {
            let error = declared(field, value).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        let unknown = declared("federates_with", serde_json::json!(["b.test"])).unwrap();
        assert_eq!(unknown.federates_with.len(), 1, "it may become known later");
    }
}
