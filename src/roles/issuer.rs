//! Issuer: authority, attestation, registration entries and the Workload API wired together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::control_plane::listen;
use super::error::Error;
use super::settings::{IssuerSettings, Settings};
use super::trust::foreign_bundles;
use crate::federation::{BundleEndpoint, Federation};
use crate::identity::{Identity, TrustDomain};
use crate::issuer::{
    Authority, Enrolment, EnrolmentParts, Entries, FileCustody, Passphrase, RegistrationEntry,
    RotationPolicy, Upkeep, WorkloadApi,
};
use crate::model::{Body, Change, Id, Kind, Rejected, Workload};
use crate::observe::AuditLane;
use crate::rt::{Clock, Drain, Live, Publisher, Tasks};
use crate::sync::{Applied, Feed};

/// A running issuer.
pub struct IssuerRole {
    bundle: Option<SocketAddr>,
    enrolment: Option<SocketAddr>,
    drain: Drain,
    tasks: Tasks,
}

/// Opens the authority in `directory`, or makes it there when the directory holds none. The passphrase of its private keys is in
/// `passphrase_file`, or in the environment.
///
/// # Errors
/// It is damaged, belongs to another trust domain, or cannot be written; nothing is overwritten. The passphrase cannot be used,
/// or does not open the keys.
pub fn authority(
    domain: &TrustDomain,
    directory: &Path,
    passphrase_file: Option<&Path>,
) -> Result<Arc<Authority>, Error> {
    let exists = directory.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    let passphrase = Passphrase::find(passphrase_file)?;
    let custody = Arc::new(FileCustody::new(directory, passphrase));
    let authority = match exists {
        true => Authority::open_with(directory, custody, Clock::system())?,
        false => Authority::create_with(domain.clone(), directory, custody, Clock::system())?,
    };
    if authority.domain() != domain {
        return Err(super::settings::Error::Setting {
            field: "trust_domain",
            problem: format!(
                "{domain} is not what the authority in {} speaks for: {}",
                directory.display(),
                authority.domain()
            ),
        }
        .into());
    }
    Ok(Arc::new(authority))
}

impl IssuerRole {
    /// Serves the Workload API, and the bundle endpoint and enrolment where the settings have them. Entries come from the
    /// settings, and from `feed` where there is one; what the feed declares about trust goes to `trust`, whose identity is the
    /// issuer's own.
    ///
    /// # Errors
    /// An entry, a cluster or another one of the settings is not valid, or the socket or a listener cannot be taken.
    pub fn start(
        settings: &Settings,
        issuer: &IssuerSettings,
        (authority, folder): (&Arc<Authority>, &Path),
        trust: &Federation,
        feed: Option<Box<dyn Feed>>,
        audit: &AuditLane,
    ) -> Result<Self, Error> {
        let domain = settings.trust_domain()?;
        let own = issuer
            .entries
            .iter()
            .map(|workload| RegistrationEntry::new(workload, &domain))
            .collect::<Result<Vec<_>, _>>()?;
        issuer
            .jwt
            .check()
            .map_err(|problem| super::settings::Error::Setting { field: "issuer.jwt", problem })?;
        authority.jwt().configure(issuer.jwt);
        let (publisher, declared) = Publisher::new(own.iter().cloned().collect::<Entries>());
        let upkeep = upkeep(issuer)?;
        let drain = Drain::new();
        let mut tasks = Tasks::new();
        let entries = undenied(declared, trust.identity(), &mut tasks);
        let bundle = publish(settings, issuer, authority, trust, &drain, &mut tasks)?;
        let federated = foreign_bundles(trust.identity(), &mut tasks);
        let api = WorkloadApi::bind(&issuer.socket, authority.clone(), entries.clone(), federated)?;
        tasks.add(authority.clone().keep(upkeep));
        let mut enrolment = None;
        if let Some(address) = issuer.listen {
            let parts = EnrolmentParts {
                authority: authority.clone(),
                directory: folder.to_owned(),
                entries,
                identity: trust.identity(),
                kubernetes: issuer.kubernetes.clone(),
                audit: audit.clone(),
            };
            let (listener, bound) = listen(address)?;
            let served = Enrolment::new(listener, parts, drain.guard())?;
            enrolment = Some(bound);
            tasks.add(async move {
                if let Err(error) = served.serve().await {
                    tracing::error!(%error, "enrolment ended");
                }
            });
        } else if !issuer.kubernetes.is_empty() {
            return Err(super::settings::Error::Setting {
                field: "issuer.kubernetes",
                problem: "given without issuer.listen: nobody could enrol".into(),
            }
            .into());
        }
        let guard = drain.guard();
        tasks.add(async move {
            if let Err(error) = api.serve(guard).await {
                tracing::error!(%error, "the Workload API ended");
            }
        });
        if let Some(feed) = feed {
            tasks.add(follow(feed, own, domain, trust.clone(), publisher));
        }
        Ok(Self { bundle, enrolment, drain, tasks })
    }

    /// Where the bundle endpoint listens.
    pub fn bundle(&self) -> Option<SocketAddr> {
        self.bundle
    }

    /// Where workloads on other machines enrol.
    pub fn enrolment(&self) -> Option<SocketAddr> {
        self.enrolment
    }

    /// Ends the streams and removes the socket.
    pub async fn drain(self, within: Duration) -> bool {
        let clean = self.drain.drain(within).await;
        drop(self.tasks);
        clean
    }
}

/// The care for the authority that the settings ask for.
fn upkeep(issuer: &IssuerSettings) -> Result<Upkeep, Error> {
    let wrong = |field, problem: &str| super::settings::Error::Setting {
        field,
        problem: problem.to_owned(),
    };
    if !(60..=30 * 86_400).contains(&issuer.crl_seconds) {
        return Err(wrong("issuer.crl_seconds", "expected 60 to 2592000").into());
    }
    let mut rotation = None;
    if let Some(settings) = &issuer.root_rotation {
        let every = Duration::from_secs(settings.every_seconds);
        let overlap = settings.overlap_seconds.map(Duration::from_secs);
        let field = "issuer.root_rotation.every_seconds";
        if settings.every_seconds < 10 {
            return Err(wrong(field, "expected at least 10").into());
        }
        if overlap.is_some_and(|overlap| overlap * 2 > every) {
            return Err(wrong(field, "expected at least twice overlap_seconds").into());
        }
        rotation = Some(RotationPolicy { every, overlap });
    }
    Ok(Upkeep { list_lifetime: Duration::from_secs(issuer.crl_seconds), rotation })
}

/// Opens the bundle endpoint of the settings.
fn publish(
    settings: &Settings,
    issuer: &IssuerSettings,
    authority: &Arc<Authority>,
    trust: &Federation,
    drain: &Drain,
    tasks: &mut Tasks,
) -> Result<Option<SocketAddr>, Error> {
    let Some(endpoint) = &issuer.bundle_endpoint else { return Ok(None) };
    let current = authority.clone();
    let endpoint = BundleEndpoint::bind(
        endpoint,
        move || current.bundle(),
        trust.identity(),
        settings.state_dir.join("bundle-endpoint"),
        Clock::system(),
    )?;
    let address = endpoint.address();
    tasks.add(endpoint.serve(drain.guard()));
    Ok(Some(address))
}

/// The entries without those whose identity is on the deny list: whom everybody refuses gets no SVID either.
fn undenied(
    mut declared: Live<Entries>,
    mut identity: Live<Identity>,
    tasks: &mut Tasks,
) -> Live<Entries> {
    let judged = |declared: &Live<Entries>, identity: &Live<Identity>| {
        declared.load().without(&identity.load().trust.revocation.denied.ids)
    };
    let (publisher, live) = Publisher::new(judged(&declared, &identity));
    tasks.add(async move {
        loop {
            let next = judged(&declared, &identity);
            if next != *publisher.live().load() {
                publisher.set(next);
            }
            // One of them may be final already.
            let changed = tokio::select! {
                true = declared.changed() => true,
                true = identity.changed() => true,
                else => false,
            };
            if !changed {
                return;
            }
        }
    });
    live
}

/// Keeps the entries of the control plane beside those of the settings.
async fn follow(
    mut feed: Box<dyn Feed>,
    own: Vec<RegistrationEntry>,
    domain: TrustDomain,
    trust: Federation,
    publisher: Publisher<Entries>,
) {
    let mut held: BTreeMap<Id, RegistrationEntry> = BTreeMap::new();
    let mut refused: BTreeMap<Id, Rejected> = BTreeMap::new();
    let mut refused_trust: BTreeMap<(Kind, Id), Rejected> = BTreeMap::new();
    loop {
        let batch = feed.next().await;
        let distrusted = trust.declare(&batch.changes, &batch.unreadable, batch.complete);
        if batch.complete {
            let named = |id: &Id| {
                let put = batch.changes.iter().any(|change| {
                    matches!(change, Change::Put(resource)
                        if resource.kind == Kind::Workloads && resource.id == *id)
                });
                let is_it =
                    |rejected: &Rejected| rejected.kind == Kind::Workloads && rejected.id == *id;
                put || batch.unreadable.iter().any(is_it)
            };
            held.retain(|id, _| named(id));
        }
        let touched: Vec<(Kind, Id)> = batch
            .changes
            .iter()
            .map(|change| match change {
                Change::Put(resource) => (resource.kind, resource.id.clone()),
                Change::Delete(kind, id) => (*kind, id.clone()),
            })
            .collect();
        for change in batch.changes {
            match change {
                Change::Delete(Kind::Workloads, id) => {
                    held.remove(&id);
                    refused.remove(&id);
                }
                Change::Put(resource) => {
                    let Body::Workload(workload) = &resource.body else { continue };
                    refused.remove(&resource.id);
                    match entry(workload, &domain) {
                        Ok(entry) => drop(held.insert(resource.id, entry)),
                        Err(reason) => {
                            let rejected = Rejected {
                                kind: Kind::Workloads,
                                id: resource.id.clone(),
                                revision: resource.revision,
                                reason,
                            };
                            refused.insert(resource.id, rejected);
                        }
                    }
                }
                Change::Delete(..) => {}
            }
        }
        publisher.set(own.iter().cloned().chain(held.values().cloned()).collect());
        for change in &touched {
            refused_trust.remove(change);
        }
        for rejected in distrusted {
            refused_trust.insert((rejected.kind, rejected.id.clone()), rejected);
        }
        let refused = refused.values().chain(refused_trust.values()).cloned();
        let rejected = refused.chain(batch.unreadable).collect();
        feed.applied(Applied { revision: batch.revision, rejected, restored: Vec::new() });
    }
}

fn entry(workload: &Workload, domain: &TrustDomain) -> Result<RegistrationEntry, String> {
    RegistrationEntry::new(workload, domain).map_err(|error| error.to_string())
}
