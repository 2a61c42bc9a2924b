//! The plugin table as the offices see it: what the Admin API and the feed's scopes ask of plugins, and the trial of a write.

use std::sync::Arc;

use serde_json::Value;

use crate::control::{PluginCatalog, PluginFacts, PluginPart, Trial};
use crate::identity::{DeclaredDomain, Denial, SpiffeId, SpiffePattern, TrustDomain};
use crate::issuer::RegistrationEntry;
use crate::model::{Body, Change, DomainTrust, Id, Invalid, Kind, Rejected, Resource};
use crate::observe::Registry;
use crate::pipeline::{Build, CacheZones, Entry, Kept, NoTargets};
use crate::policy::questions::{Supposed, Walked};
use crate::snapshot::{Keeper, RouterSettings};
use crate::sync::scope::{Pattern, Rules};

/// The plugin table for the Admin API.
pub(super) struct Catalog {
    pub(super) table: &'static [Entry],
    pub(super) registry: Registry,
    /// Where plugins store answers.
    pub(super) zones: CacheZones,
}

impl Catalog {
    fn entry(&self, name: &str) -> Option<&'static Entry> {
        self.table.iter().find(|entry| entry.name == name)
    }
}

impl PluginCatalog for Catalog {
    fn plugins(&self) -> Vec<PluginFacts> {
        let facts = |entry: &Entry| PluginFacts {
            name: entry.name.to_owned(),
            priority: entry.priority,
            schema: (entry.schema)().to_value(),
            credential: entry.credential.map(|schema| schema().to_value()),
            metadata: entry.metadata.map(|schema| schema().to_value()),
        };
        self.table.iter().map(facts).collect()
    }

    fn check(&self, plugin: &str, part: PluginPart, config: &Value) -> Result<(), String> {
        let entry = self.entry(plugin).ok_or_else(|| format!("unknown plugin [{plugin}]"))?;
        let judged = match part {
            PluginPart::Config => {
                let owner = Id::parse("trial")?;
                let build = Build {
                    kind: Kind::Routes,
                    owner: &owner,
                    plugin: entry.name,
                    metadata: None,
                    targets: &NoTargets,
                    part: "",
                    metrics: &self.registry,
                    kept: &Kept::default().with_zones(self.zones.clone()),
                };
                (entry.compile)(config, &build).map(drop)
            }
            PluginPart::Credential => entry.check_credential.map_or(Ok(()), |check| check(config)),
            PluginPart::Metadata => entry.check_metadata.map_or(Ok(()), |check| check(config)),
        };
        judged.map_err(|Invalid(why)| why)
    }
}

/// Tries writes with the data plane's own compiler.
pub(super) struct KeeperTrial {
    pub(super) table: &'static [Entry],
    pub(super) router: RouterSettings,
    /// Whose identities the issuer can give.
    pub(super) domain: TrustDomain,
    pub(super) registry: Registry,
    /// Where plugins store answers.
    pub(super) zones: CacheZones,
}

impl Trial for KeeperTrial {
    fn check(&self, candidate: &Resource, referred: &[Resource]) -> Result<(), Invalid> {
        // Data planes know nothing of registration entries: the issuer does.
        if let Body::Workload(workload) = &candidate.body {
            let entry = RegistrationEntry::new(workload, &self.domain);
            return entry.map(drop).map_err(|error| Invalid(error.to_string()));
        }
        match &candidate.body {
            Body::TrustDomain(declared) => {
                return self.trust_domain(&candidate.id, declared, referred);
            }
            Body::Revocation(declared) => {
                let denial = Denial::new(declared);
                return denial.map(drop).map_err(|error| Invalid(error.to_string()));
            }
            _ => {}
        }
        let keeper = Keeper::new(self.table, None, self.registry.clone());
        let keeper = keeper.with_router(self.router).with_cache_zones(self.zones.clone());
        let mut keeper = keeper.trusting_references();
        keeper.apply(referred.iter().cloned().map(Change::Put).collect(), 0);
        keeper.trial(&Change::Put(candidate.clone()))
    }

    fn check_whole(&self, kept: Vec<Resource>, changed: Vec<Resource>) -> Vec<Rejected> {
        let rejected = |resource: &Resource, reason: String| {
            let Resource { kind, id, revision, .. } = resource.clone();
            Rejected { kind, id, revision, reason }
        };
        let mut found = Vec::new();
        let of_offices = |resource: &Resource| {
            matches!(resource.body, Body::Workload(_) | Body::TrustDomain(_) | Body::Revocation(_))
        };
        let all = || kept.iter().chain(&changed);
        let domains: Vec<Resource> =
            all().filter(|one| one.kind == Kind::TrustDomains).cloned().collect();
        for resource in all().filter(|one| of_offices(one)) {
            if let Err(Invalid(why)) = self.check(resource, &domains) {
                found.push(rejected(resource, why));
            }
        }
        let keeper = Keeper::new(self.table, None, self.registry.clone());
        let keeper = keeper.with_router(self.router).with_cache_zones(self.zones.clone());
        let mut keeper = keeper.trusting_references();
        let puts = all().filter(|one| !of_offices(one)).cloned().map(Change::Put);
        found.extend(keeper.apply(puts.collect(), 0).rejected);
        // What a data plane puts up with and an operator should not write.
        for resource in changed.iter().filter(|one| !of_offices(one)) {
            let is_known =
                found.iter().any(|one| (one.kind, &one.id) == (resource.kind, &resource.id));
            if !is_known && let Err(Invalid(why)) = keeper.trial(&Change::Put(resource.clone())) {
                found.push(rejected(resource, why));
            }
        }
        found
    }

    fn walk(
        &self,
        resources: &[Resource],
        workload: &SpiffeId,
        supposed: &Supposed,
    ) -> Option<Walked> {
        Some(super::questions::walk_with(self.table, self.router, resources, workload, supposed))
    }
}

impl KeeperTrial {
    fn trust_domain(
        &self,
        id: &Id,
        declared: &DomainTrust,
        referred: &[Resource],
    ) -> Result<(), Invalid> {
        let domain: TrustDomain =
            id.as_str().parse().map_err(|error| Invalid(format!("id: {error}")))?;
        let declared = DeclaredDomain::new(domain, declared)
            .and_then(|declared| declared.for_us(&self.domain))
            .map_err(|error| Invalid(error.to_string()))?;
        match declared.rests_on() {
            Some(other)
                if other != self.domain
                    && !referred.iter().any(|resource| resource.id.as_str() == other.as_str()) =>
            {
                Err(Invalid(format!(
                    "endpoint.spiffe_id: the server is of trust domain {other}, which is not declared: its bundle verifies the server"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// What the feed's scopes cannot know by themselves.
pub(super) fn feed_rules(table: &'static [Entry]) -> Rules {
    Rules {
        pattern: Arc::new(|text| {
            let pattern: SpiffePattern =
                text.parse().map_err(|error| format!("{text:?}: {error}"))?;
            Ok(match pattern.exact() {
                Some(id) => Pattern::Exactly(id.as_str().into()),
                None => Pattern::Meets(Arc::new(move |id| {
                    id.parse().is_ok_and(|id| pattern.matches(&id))
                })),
            })
        }),
        auth_plugins: table
            .iter()
            .filter(|entry| entry.authenticates && entry.credential_of.is_none())
            .map(|entry| entry.name.into())
            .collect(),
        borrowers: table
            .iter()
            .filter_map(|entry| Some((entry.name.into(), entry.credential_of?.into())))
            .collect(),
    }
}
