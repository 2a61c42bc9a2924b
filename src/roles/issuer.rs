//! Issuer: authority, attestation, registration entries and the Workload API wired together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::control_plane::listen;
use super::error::Error;
use super::settings::{IssuerSettings, Settings};
use crate::identity::{Identity, TrustBundles, TrustDomain};
use crate::issuer::{
    Authority, Enrolment, EnrolmentParts, Entries, RegistrationEntry, WorkloadApi,
};
use crate::model::{Body, Change, Id, Kind, Rejected, Workload};
use crate::observe::AuditLane;
use crate::rt::{Clock, Drain, Live, Publisher, Tasks};
use crate::sync::{Applied, Feed};

/// A running issuer.
pub struct IssuerRole {
    enrolment: Option<SocketAddr>,
    drain: Drain,
    tasks: Tasks,
}

/// Opens the authority in `directory`, or makes it there when the directory holds none.
///
/// # Errors
/// It is damaged, belongs to another trust domain, or cannot be written; nothing is overwritten.
pub fn authority(domain: &TrustDomain, directory: &Path) -> Result<Arc<Authority>, Error> {
    let exists = directory.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    let authority = match exists {
        true => Authority::open(directory, Clock::system())?,
        false => Authority::create(domain.clone(), directory, Clock::system())?,
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
    /// Serves the Workload API, and enrolment where the settings name a listener: that needs the issuer's own `identity`.
    /// Entries come from the settings, and from `feed` where there is one.
    ///
    /// # Errors
    /// An entry or a cluster of the settings is not valid, or the socket or the listener cannot be taken.
    pub fn start(
        settings: &Settings,
        issuer: &IssuerSettings,
        (authority, folder): (&Arc<Authority>, &Path),
        feed: Option<Box<dyn Feed>>,
        identity: Option<Live<Identity>>,
        audit: &AuditLane,
    ) -> Result<Self, Error> {
        let domain = settings.trust_domain()?;
        let own = issuer
            .entries
            .iter()
            .map(|workload| RegistrationEntry::new(workload, &domain))
            .collect::<Result<Vec<_>, _>>()?;
        let (publisher, entries) = Publisher::new(own.iter().cloned().collect::<Entries>());
        let federated = Live::fixed(TrustBundles::default());
        let api = WorkloadApi::bind(&issuer.socket, authority.clone(), entries.clone(), federated)?;
        let drain = Drain::new();
        let mut tasks = Tasks::new();
        let mut enrolment = None;
        if let (Some(address), Some(identity)) = (issuer.listen, identity) {
            let parts = EnrolmentParts {
                authority: authority.clone(),
                directory: folder.to_owned(),
                entries,
                identity,
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
            tasks.add(follow(feed, own, domain, publisher));
        }
        Ok(Self { enrolment, drain, tasks })
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

/// Keeps the entries of the control plane beside those of the settings.
async fn follow(
    mut feed: Box<dyn Feed>,
    own: Vec<RegistrationEntry>,
    domain: TrustDomain,
    publisher: Publisher<Entries>,
) {
    let mut held: BTreeMap<Id, RegistrationEntry> = BTreeMap::new();
    let mut refused: BTreeMap<Id, Rejected> = BTreeMap::new();
    loop {
        let batch = feed.next().await;
        if batch.complete {
            let named = |id: &Id| {
                let put = batch
                    .changes
                    .iter()
                    .any(|change| matches!(change, Change::Put(resource) if resource.id == *id));
                put || batch.unreadable.iter().any(|rejected| rejected.id == *id)
            };
            held.retain(|id, _| named(id));
        }
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
        let rejected = refused.values().cloned().chain(batch.unreadable).collect();
        feed.applied(Applied { revision: batch.revision, rejected, restored: Vec::new() });
    }
}

fn entry(workload: &Workload, domain: &TrustDomain) -> Result<RegistrationEntry, String> {
    RegistrationEntry::new(workload, domain).map_err(|error| error.to_string())
}
