//! Sidecar and ingress: identity, feed, keeper and proxy wired together.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::error::Error;
use super::identities::Certificates;
use super::process::Shared;
use super::settings;
use super::stapling::{self, Stapling};
use crate::federation::Federation;
use crate::identity::{Identity, SpiffeId};
use crate::model::{Body, Change, Id, Kind, Listeners, Rejected, Resource, Ssl};
use crate::mtls::{
    Acceptor, Connector, Proofs, PublicAcceptor, PublicCertificate, PublicCertificates,
    public_server_config,
};
use crate::observe::{ConfigRecord, Gate};
use crate::proxy::{
    DataPlane, Door, DoorSecurity, Introductions, Limits, Parts, ProxyMetrics, Senders,
};
use crate::rt::{Live, Publisher, Tasks, causes};
use crate::snapshot::{Keeper, Snapshot};
use crate::sync::{Applied, Feed};
use crate::upstream::{
    Connect, Discovery, DiscoverySettings, DnsSettings, HealthReport, Resolver, Roster,
    UpstreamSettings,
};

/// What a data plane is to be.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The sidecar's mTLS door.
    pub inbound: Option<SocketAddr>,
    /// The sidecar's plain door for its workload.
    pub outbound: Option<SocketAddr>,
    /// The ingress' plain door.
    pub http: Option<SocketAddr>,
    /// The ingress' TLS door.
    pub https: Option<SocketAddr>,
    /// How OCSP answers are fetched for its public certificates; none are when not given.
    pub stapling: Option<Stapling>,
    /// The workload behind the inbound door, see [`settings::SidecarSettings::app`].
    pub app: Option<String>,
    /// Threads.
    pub workers: usize,
    /// The registries that know the nodes of services.
    pub discovery: DiscoverySettings,
    /// Upstreams' `checks` are not carried out.
    pub without_checks: bool,
    /// How the names of nodes are resolved.
    pub dns: DnsSettings,
    /// What holds for all upstreams.
    pub upstreams: UpstreamSettings,
    /// How much of everything is allowed.
    pub limits: Limits,
    /// Who may introduce connections: at `inbound` or `http`, and at `outbound` or `https`.
    pub introductions: [Option<Arc<Introductions>>; 2],
    /// Who may speak for others in fields of a request.
    pub senders: Arc<Senders>,
}

/// A running data plane with all that keeps it current.
pub struct DataPlaneRole {
    plane: DataPlane,
    snapshot: Live<Snapshot>,
    discovery: Discovery,
    roster: Roster,
    _tasks: Tasks,
}

/// The id of the route that the setting `sidecar.app` stands for.
const APP_ROUTE: &str = "sidecar.app";

impl DataPlaneRole {
    /// Opens the doors at once: until the first configuration is there, everything is refused.
    ///
    /// The identity is that of `federation`, to which goes whatever the feed declares about trust.
    ///
    /// # Errors
    /// A setting makes no sense, or a door cannot be opened; the error names it.
    pub fn start(
        plan: &Plan,
        federation: Option<Federation>,
        feed: Box<dyn Feed>,
        shared: &Shared,
    ) -> Result<Self, Error> {
        let identity = federation.as_ref().map(Federation::identity);
        let me = identity.as_ref().map(|identity| identity.load().id().clone());
        let connect = Connect::new(identity.clone().map(Connector::new));
        let discovery = Discovery::new(&plan.discovery)?;
        let mut roster = Roster::attending()
            .with_names(Resolver::new(&plan.dns)?)
            .with_public_roots(plan.upstreams.public_roots()?)
            .with_discovery(discovery.clone())
            .probing(connect.clone());
        if plan.without_checks {
            roster = roster.without_checks();
        }
        roster.show(&shared.registry);
        let keeper = Keeper::new(shared.plugins, me, shared.registry.clone());
        let mut keeper = keeper.with_router(shared.router).with_roster(roster.clone());
        let own: Vec<Change> =
            plan.app.as_deref().map(app_route).transpose()?.into_iter().collect();
        let first = keeper.apply(own, 0);
        let (publisher, snapshot) = Publisher::of(first.snapshot);
        let (tls, public) = Publisher::new(None);
        let (certificates, in_use) = Publisher::new(Certificates::default());
        shared.identities.watch_certificates(in_use.clone());

        let gate = shared.readiness.gate("config", "no configuration yet");
        let mut tasks = Tasks::new();
        let keeping = Keeping {
            keeper,
            feed,
            federation,
            publisher,
            tls,
            certificates,
            certificates_by_resource: Vec::new(),
            gate,
            shared: shared.clone(),
            held: HashSet::new(),
            refused: BTreeMap::new(),
        };
        tasks.add(keeping.run());
        tasks.add(roster.clone().run());
        tasks.add(discovery.clone().run());
        if let Some(settings) = plan.stapling {
            let clock = shared.identities.clock().clone();
            tasks.add(stapling::run(settings, in_use, shared.registry.clone(), clock));
        }

        let doors = doors(plan, identity.as_ref(), public);
        let plane = DataPlane::start(&Parts {
            doors,
            snapshot: snapshot.clone(),
            connect,
            identity,
            refresh: shared.refresh.clone(),
            audit: shared.audit.clone(),
            metrics: ProxyMetrics::new(&shared.registry),
            limits: plan.limits,
            senders: plan.senders.clone(),
            workers: plan.workers,
        })?;
        Ok(Self { plane, snapshot, discovery, roster, _tasks: tasks })
    }

    /// Where a door listens.
    pub fn address(&self, door: Listeners) -> Option<SocketAddr> {
        self.plane.address(door)
    }

    /// Where all doors listen.
    pub fn addresses(&self) -> &[(Listeners, SocketAddr)] {
        self.plane.addresses()
    }

    /// What its connections rest on, by worker.
    pub fn proofs(&self) -> impl Iterator<Item = Arc<Proofs>> + '_ {
        self.plane.proofs()
    }

    /// The upstreams that are checked, and how their nodes are, as APISIX's `/v1/healthcheck` tells it.
    pub fn health(&self) -> Vec<HealthReport> {
        self.roster.health()
    }

    /// The configuration in force.
    pub fn snapshot(&self) -> Live<Snapshot> {
        self.snapshot.clone()
    }

    /// The registries that it follows, and what is known of their services.
    pub fn discovery(&self) -> &Discovery {
        &self.discovery
    }

    /// Stops accepting, lets exchanges finish, at most `within`; `false` when some were cut off.
    pub async fn drain(self, within: Duration) -> bool {
        self.plane.drain(within).await
    }
}

fn doors(
    plan: &Plan,
    identity: Option<&Live<Identity>>,
    public: Live<Option<Arc<rustls::ServerConfig>>>,
) -> Vec<Door> {
    let mut doors = Vec::new();
    let [first, second] = &plan.introductions;
    let mut open = |listener, address: Option<SocketAddr>, security, introductions: &Option<_>| {
        let introductions = introductions.clone();
        doors.extend(address.map(|address| Door { listener, address, security, introductions }));
    };
    if let Some(identity) = identity {
        let acceptor = Acceptor::new(identity.clone());
        open(Listeners::Inbound, plan.inbound, DoorSecurity::Mesh(acceptor), first);
    }
    open(Listeners::Outbound, plan.outbound, DoorSecurity::Plain, second);
    open(Listeners::Ingress, plan.http, DoorSecurity::Plain, first);
    let public = DoorSecurity::Public(PublicAcceptor::new(public));
    open(Listeners::Ingress, plan.https, public, second);
    doors
}

/// The route that `sidecar.app` stands for: whatever is allowed and matches no other inbound route goes to the workload.
fn app_route(app: &str) -> Result<Change, settings::Error> {
    let invalid = || settings::Error::Setting {
        field: "sidecar.app",
        problem: format!("expected http://host:port or grpc://host:port, got {app:?}"),
    };
    let (scheme, place) = app.split_once("://").ok_or_else(invalid)?;
    let place = place.trim_end_matches('/');
    let has_port = place
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !matches!(scheme, "http" | "grpc") || !has_port {
        return Err(invalid());
    }
    let value = json!({
        "uri": "/*",
        "priority": i64::from(i32::MIN),
        "enable_websocket": true,
        "workload_selector": {"listener": "inbound"},
        "upstream": {"scheme": scheme, "nodes": {place: 1}},
    });
    let id = Id::parse(APP_ROUTE).map_err(|_| invalid())?;
    let body = Body::parse(Kind::Routes, &value).map_err(|_| invalid())?;
    Ok(Change::Put(Resource { kind: Kind::Routes, id, revision: 0, body }))
}

/// Takes batches from the feed, compiles them, and puts them into force.
struct Keeping {
    keeper: Keeper,
    feed: Box<dyn Feed>,
    /// What is declared about trust goes here; nowhere without an identity.
    federation: Option<Federation>,
    publisher: Publisher<Snapshot>,
    tls: Publisher<Option<Arc<rustls::ServerConfig>>>,
    certificates: Publisher<Certificates>,
    /// With the resource as the snapshot has it: one that did not change keeps its certificate, and what was stapled to it.
    certificates_by_resource: Vec<(Arc<Ssl>, Arc<PublicCertificate>)>,
    gate: Gate,
    shared: Shared,
    /// What the feed has given us: a full state says by silence what is gone.
    held: HashSet<(Kind, Id)>,
    refused: BTreeMap<(Kind, Id), Rejected>,
}

impl Keeping {
    async fn run(mut self) {
        loop {
            let batch = self.feed.next().await;
            // Before the rest: whom we trust no longer must not pass by what is declared with it.
            let distrusted = self.federation.as_ref().map_or_else(Vec::new, |federation| {
                federation.declare(&batch.changes, &batch.unreadable, batch.complete)
            });
            let mut changes = batch.changes;
            let named: HashSet<(Kind, Id)> = changes
                .iter()
                .map(|change| match change {
                    Change::Put(resource) => (resource.kind, resource.id.clone()),
                    Change::Delete(kind, id) => (*kind, id.clone()),
                })
                .chain(batch.unreadable.iter().map(|rejected| (rejected.kind, rejected.id.clone())))
                .collect();
            if batch.complete {
                let gone = self.held.difference(&named).cloned();
                changes.extend(gone.map(|(kind, id)| Change::Delete(kind, id)));
            }
            changes.extend(self.keeper.stand_ins(&batch.unreadable));
            for change in &changes {
                match change {
                    Change::Put(resource) => {
                        self.held.insert((resource.kind, resource.id.clone()));
                    }
                    Change::Delete(kind, id) => {
                        self.held.remove(&(*kind, id.clone()));
                    }
                }
            }
            let count = changes.len();
            let touched: Vec<(Kind, Id)> = changes
                .iter()
                .map(|change| match change {
                    Change::Put(resource) => (resource.kind, resource.id.clone()),
                    Change::Delete(kind, id) => (*kind, id.clone()),
                })
                .collect();
            let mut applied = self.keeper.apply(changes, batch.revision);
            stand_ins_aside(&mut applied.rejected, &batch.unreadable);
            applied.rejected.extend(distrusted);
            for key in touched {
                self.refused.remove(&key);
            }
            for rejected in applied.rejected.iter().chain(&batch.unreadable) {
                tracing::warn!(
                    kind = %rejected.kind, id = %rejected.id, revision = rejected.revision,
                    "refused, the version before stays in force: {}", rejected.reason
                );
                self.refused.insert((rejected.kind, rejected.id.clone()), rejected.clone());
            }
            self.publish_certificates(&applied.snapshot);
            self.publisher.set_arc(applied.snapshot);
            self.note(batch.revision, count);
            self.gate.open();
            self.feed.applied(Applied {
                revision: batch.revision,
                rejected: self.refused.values().cloned().collect(),
                restored: Vec::new(),
            });
        }
    }

    /// The public certificates are made anew only when one of them changed: sessions are resumed within one configuration.
    fn publish_certificates(&mut self, snapshot: &Snapshot) {
        let before = self.publisher.live().load();
        let changed = !Arc::ptr_eq(&before.certificates, &snapshot.certificates);
        if !changed && self.tls.live().load().is_some() {
            return;
        }
        let held = std::mem::take(&mut self.certificates_by_resource);
        let before: HashMap<*const Ssl, Arc<PublicCertificate>> =
            held.iter().map(|(ssl, made)| (Arc::as_ptr(ssl), made.clone())).collect();
        for ssl in snapshot.certificates.iter() {
            let made = before.get(&Arc::as_ptr(ssl)).cloned().or_else(|| certificate(ssl));
            self.certificates_by_resource.extend(made.map(|made| (ssl.clone(), made)));
        }
        let certificates: Certificates =
            self.certificates_by_resource.iter().map(|(_, made)| made.clone()).collect();
        self.certificates.set(certificates.clone());
        let certificates: PublicCertificates = certificates.into_iter().collect();
        match public_server_config(Arc::new(certificates)) {
            Ok(config) => self.tls.set(Some(config)),
            Err(error) => {
                tracing::error!("the public certificates cannot be used: {}", causes(&error));
            }
        }
    }

    fn note(&self, revision: u64, count: usize) {
        self.shared.metrics.config_revision.set(revision_value(revision));
        let lane = self.shared.audit.control();
        let applied = ConfigRecord {
            event: "applied",
            revision,
            changes: Some(count as u64),
            kind: None,
            id: None,
            reason: None,
        };
        // What is lost here is counted in the log itself.
        let _ = lane.config(&applied);
        for rejected in self.refused.values() {
            let _ = lane.config(&ConfigRecord {
                event: "refused",
                revision: rejected.revision,
                changes: None,
                kind: Some(rejected.kind.name()),
                id: Some(rejected.id.as_str()),
                reason: Some(&rejected.reason),
            });
        }
        tracing::info!(
            revision,
            changes = count,
            refused = self.refused.len(),
            "configuration applied"
        );
    }
}

/// A certificate that cannot be served is left out, and named.
fn certificate(ssl: &Ssl) -> Option<Arc<PublicCertificate>> {
    let names: Vec<&str> = ssl.names().iter().collect();
    let key = ssl.key.reveal().as_bytes();
    match PublicCertificate::from_pem(&names, ssl.cert.as_bytes(), key) {
        Ok(made) => Some(Arc::new(made.of_resource(ssl.id.as_ref().map(Id::as_str)))),
        Err(error) => {
            tracing::warn!(?names, "{}", causes(&error));
            None
        }
    }
}

/// Why a stand-in is not in order is nobody's concern: the resource that it stands in for is named already.
pub(super) fn stand_ins_aside(rejected: &mut Vec<Rejected>, unreadable: &[Rejected]) {
    rejected.retain(|one| {
        !unreadable.iter().any(|other| (other.kind, &other.id) == (one.kind, &one.id))
    });
}

#[expect(clippy::cast_precision_loss, reason = "a metric's value")]
fn revision_value(revision: u64) -> f64 {
    revision as f64
}

/// The identity of one of Wardgate's own parts is not for workloads; tells whether `id` is one.
pub(super) fn is_own_part(id: &SpiffeId) -> bool {
    id.path().starts_with("/wardgate/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_is_named_by_scheme_host_and_port() {
        for good in ["http://127.0.0.1:8080", "grpc://[::1]:50051", "http://app:80/"] {
            assert!(app_route(good).is_ok(), "{good}");
        }
        for bad in ["127.0.0.1:8080", "https://a:1", "http://a", "http://:80", "http://a:b"] {
            let error = app_route(bad).unwrap_err().to_string();
            assert!(error.contains("sidecar.app") && error.contains(bad), "{error}");
        }
    }
}
