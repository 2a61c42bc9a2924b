//! Sidecar and ingress: identity, feed, keeper and proxy wired together.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;

use super::error::Error;
use super::process::Shared;
use super::settings;
use super::stapling::{self, Stapling};
use crate::acme::{AcmeSettings, Obtained, Renewal};
use crate::federation::Federation;
use crate::identity::{Identity, SpiffeId};
use crate::model::{
    Body, Change, Id, Kind, Labels, Listeners, Rejected, Resource, Ssl, SslType, Status, Strictness,
};
use crate::mtls::{Acceptor, Challenges, Connector, EdgeAcceptor, EdgeTls, Proofs, Sites};
use crate::observe::{ConfigRecord, Gate, MetricKind};
use crate::policy::PolicyKeys;
use crate::proxy::{
    DataPlane, Door, DoorSecurity, Introductions, Limits, Parts, PassthroughDoor, ProxyMetrics,
    Senders, TcpDoor,
};
use crate::rt::{Live, Publisher, Tasks, causes, unix_seconds};
use crate::secrets::{ResolvedFeed, Safe, SecretSettings};
use crate::snapshot::{Freshness, Keeper, Snapshot};
use crate::sync::{Applied, Feed};
use crate::upstream::{
    Connect, Discovery, DiscoverySettings, DnsSettings, Resolver, Roster, UpstreamSettings,
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
    /// What TLS offers to public clients.
    pub tls: Arc<EdgeTls>,
    /// How public certificates are obtained, and where they are kept when the settings name no folder.
    pub acme: Option<(AcmeSettings, PathBuf)>,
    /// How OCSP answers are fetched for its public certificates; none are when not given.
    pub stapling: Option<Stapling>,
    /// The workload behind the inbound door, see [`settings::SidecarSettings::app`].
    pub app: Option<String>,
    /// TCP applications behind the sidecar.
    pub tcp: Vec<TcpDoor>,
    /// Where the ingress passes TLS through.
    pub passthrough: Vec<PassthroughDoor>,
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
    /// What is known about secrets that resources refer to.
    pub secrets: SecretSettings,
    /// Whether the feed still hears from where the configuration comes from.
    pub freshness: Arc<Freshness>,
    /// Whose identity policies count; everybody's when there are none.
    pub policy_keys: PolicyKeys,
}

/// A running data plane with all that keeps it current.
pub struct DataPlaneRole {
    plane: DataPlane,
    snapshot: Live<Snapshot>,
    discovery: Discovery,
    roster: Roster,
    configuration: Live<Configuration>,
    keeper: Arc<Mutex<Keeper>>,
    _tasks: Tasks,
}

/// What of the configuration is in force.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// The store's revision; 0 before the first one.
    pub revision: u64,
    /// How many resources it has.
    pub resources: usize,
    /// When it came into force, in seconds since 1970.
    pub applied_at: Option<i64>,
    /// What is refused, each with its reason.
    pub refused: Vec<Rejected>,
}

/// The id of the route that the setting `sidecar.app` stands for.
pub(super) const APP_ROUTE: &str = "sidecar.app";

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
        let mut keeper = keeper
            .with_router(shared.router)
            .with_cache_zones(shared.zones.clone())
            .with_roster(roster.clone())
            .with_freshness(plan.freshness.clone())
            .with_policy_keys(plan.policy_keys.clone())
            .with_edge(plan.tls.clone());
        let clock = shared.identities.clock().clone();
        let safe = Safe::new(&plan.secrets, &shared.registry, clock);
        let known = safe.clone();
        keeper = keeper.with_secrets(Arc::new(move |reference| known.clear(reference)));
        let feed = Box::new(ResolvedFeed::new(feed, safe));
        let own: Vec<Change> =
            plan.app.as_deref().map(app_route).transpose()?.into_iter().collect();
        let first = keeper.apply(own, 0);
        let (publisher, snapshot) = Publisher::of(first.snapshot);
        let (sites, in_use) = Publisher::new(Sites::default());
        shared.identities.watch_sites(in_use.clone());
        let (told, configuration) = Publisher::new(Configuration::default());
        let keeper = Arc::new(Mutex::new(keeper));

        let gate = shared.readiness.gate("config", "no configuration yet");
        let mut tasks = Tasks::new();
        let challenges = plan.acme.is_some().then(Challenges::default);
        let (obtains, obtained) = mpsc::channel(16);
        if let Some((settings, folder)) = &plan.acme {
            let doors = (plan.http.is_some(), plan.https.is_some());
            let told = (challenges.clone().unwrap_or_default(), shared.acme.clone());
            let clock = shared.identities.clock().clone();
            let renewal = Renewal::new(settings, folder, doors, told, &shared.registry, clock);
            let renewal = renewal.map_err(|error| settings::Error::Setting {
                field: "ingress.acme",
                problem: causes(&error),
            })?;
            tasks.add(renewal.run(obtains));
        }
        let keeping = Keeping {
            obtained,
            keeper: keeper.clone(),
            told,
            feed,
            federation,
            publisher,
            sites,
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
            tasks.add(stapling::run(settings, in_use.clone(), shared.registry.clone(), clock));
        }

        let doors = doors(plan, identity.as_ref(), in_use, challenges.clone());
        let plane = DataPlane::start(&Parts {
            doors,
            snapshot: snapshot.clone(),
            connect,
            identity,
            refresh: shared.refresh.clone(),
            challenges,
            audit: shared.audit.clone(),
            metrics: ProxyMetrics::new(&shared.registry),
            limits: plan.limits,
            senders: plan.senders.clone(),
            sockets: shared.sockets.clone(),
            workers: plan.workers,
        })?;
        show_modes(&plane, &snapshot, shared);
        Ok(Self { plane, snapshot, discovery, roster, configuration, keeper, _tasks: tasks })
    }

    /// Where a door listens.
    pub fn address(&self, door: Listeners) -> Option<SocketAddr> {
        self.plane.address(door)
    }

    /// Where all doors listen.
    pub fn addresses(&self) -> &[(Listeners, SocketAddr)] {
        self.plane.addresses()
    }

    /// Where the doors listen whose bytes are passed on unread, by name.
    pub fn relays(&self) -> &[(String, SocketAddr)] {
        self.plane.relays()
    }

    /// The ports at which callers prove who they are, or may.
    pub(super) fn mesh_ports(&self) -> Vec<u16> {
        mesh_ports(&self.plane)
    }

    /// What its connections rest on, by worker.
    pub fn proofs(&self) -> impl Iterator<Item = Arc<Proofs>> + '_ {
        self.plane.proofs()
    }

    /// What outlives revisions of its upstreams, the states of their nodes above all.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The configuration in force.
    pub fn snapshot(&self) -> Live<Snapshot> {
        self.snapshot.clone()
    }

    /// The registries that it follows, and what is known of their services.
    pub fn discovery(&self) -> &Discovery {
        &self.discovery
    }

    /// What of the configuration is in force.
    pub fn configuration(&self) -> Live<Configuration> {
        self.configuration.clone()
    }

    /// What is declared, compiled.
    pub(super) fn keeper(&self) -> Arc<Mutex<Keeper>> {
        self.keeper.clone()
    }

    /// Stops accepting, lets exchanges finish, at most `within`; `false` when some were cut off.
    pub async fn drain(self, within: Duration) -> bool {
        self.plane.drain(within).await
    }
}

fn mesh_ports(plane: &DataPlane) -> Vec<u16> {
    let inbound = plane.addresses().iter().filter(|(door, _)| *door == Listeners::Inbound);
    let tcp = plane.relays().iter().filter(|(name, _)| name.starts_with("tcp:"));
    let addresses = inbound.map(|(_, address)| address).chain(tcp.map(|(_, address)| address));
    addresses.map(SocketAddr::port).collect()
}

const MODE: &str = "wardgate_identity_mode";

/// How strictly each door asks for identity, as a metric.
fn show_modes(plane: &DataPlane, snapshot: &Live<Snapshot>, shared: &Shared) {
    let help =
        "How strictly the door at a port asks for identity: 2 strict, 1 permissive, 0 observe.";
    shared.registry.describe(MODE, MetricKind::Gauge, help);
    for port in mesh_ports(plane) {
        let (snapshot, label) = (snapshot.clone(), port.to_string());
        let value = move || match snapshot.load().modes.at(port) {
            Strictness::Strict => 2.0,
            Strictness::Permissive => 1.0,
            Strictness::Observe => 0.0,
        };
        shared.registry.computed(MODE, &[("port", &label)], MetricKind::Gauge, value);
    }
}

fn doors(
    plan: &Plan,
    identity: Option<&Live<Identity>>,
    sites: Live<Sites>,
    challenges: Option<Challenges>,
) -> Vec<Door> {
    let mut doors = Vec::new();
    let [first, second] = &plan.introductions;
    let mut open = |name: &'static str,
                    listener,
                    address: Option<SocketAddr>,
                    security,
                    introductions: &Option<_>| {
        let introductions = introductions.clone();
        doors.extend(address.map(|address| Door {
            name: name.into(),
            relay_to: None,
            listener,
            address,
            security,
            introductions,
        }));
    };
    if let Some(identity) = identity {
        let acceptor = Acceptor::new(identity.clone());
        open("inbound", Listeners::Inbound, plan.inbound, DoorSecurity::Mesh(acceptor), first);
    }
    open("outbound", Listeners::Outbound, plan.outbound, DoorSecurity::Plain, second);
    open("http", Listeners::Ingress, plan.http, DoorSecurity::Plain, first);
    let public = DoorSecurity::Public(EdgeAcceptor::new(sites, plan.tls.clone(), challenges));
    open("https", Listeners::Ingress, plan.https, public, second);
    if let Some(identity) = identity {
        let acceptor = Acceptor::of_bytes(identity.clone());
        doors.extend(plan.tcp.iter().map(|tcp| Door {
            name: tcp.name.clone().into(),
            listener: Listeners::Inbound,
            address: tcp.listen,
            security: DoorSecurity::Mesh(acceptor.clone()),
            relay_to: Some(tcp.to.clone()),
            introductions: tcp.introductions.clone(),
        }));
    }
    doors.extend(plan.passthrough.iter().map(|passthrough| Door {
        name: "passthrough".into(),
        listener: Listeners::Ingress,
        address: passthrough.listen,
        security: DoorSecurity::Through(passthrough.routes.clone()),
        relay_to: None,
        introductions: passthrough.introductions.clone(),
    }));
    doors
}

/// The route that `sidecar.app` stands for: whatever is allowed and matches no other inbound route goes to the workload.
pub(super) fn app_route(app: &str) -> Result<Change, settings::Error> {
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

/// The `ssl` resource that an obtained certificate stands for. The feed knows nothing of it, and takes nothing of it away.
fn certificate(obtained: &Obtained, revision: u64) -> Option<Change> {
    let id = Id::parse(&obtained.id).ok()?;
    let ssl = Ssl {
        id: Some(id.clone()),
        desc: None,
        labels: Labels::new(),
        ssl_type: SslType::Server,
        cert: obtained.chain.clone(),
        key: obtained.key.clone(),
        certs: Vec::new(),
        keys: Vec::new(),
        sni: None,
        snis: Some(obtained.domains.clone()),
        client: None,
        ssl_protocols: None,
        status: Status::Enabled,
        create_time: None,
        update_time: None,
    };
    Some(Change::Put(Resource { kind: Kind::Ssls, id, revision, body: Body::Ssl(Box::new(ssl)) }))
}

/// Takes batches from the feed, compiles them, and puts them into force.
struct Keeping {
    /// Shared with whoever looks at it, which is seldom.
    keeper: Arc<Mutex<Keeper>>,
    told: Publisher<Configuration>,
    /// Certificates that an authority has given.
    obtained: mpsc::Receiver<Obtained>,
    feed: Box<dyn Feed>,
    /// What is declared about trust goes here; nowhere without an identity.
    federation: Option<Federation>,
    publisher: Publisher<Snapshot>,
    sites: Publisher<Sites>,
    gate: Gate,
    shared: Shared,
    /// What the feed has given us: a full state says by silence what is gone.
    held: HashSet<(Kind, Id)>,
    refused: BTreeMap<(Kind, Id), Rejected>,
}

impl Keeping {
    async fn run(mut self) {
        loop {
            let batch = tokio::select! {
                batch = self.feed.next() => batch,
                Some(obtained) = self.obtained.recv() => {
                    self.take(&obtained);
                    continue;
                }
            };
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
            changes.extend(self.keeper.lock().stand_ins(&batch.unreadable));
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
            let mut applied = self.keeper.lock().apply(changes, batch.revision);
            stand_ins_aside(&mut applied.rejected, &batch.unreadable);
            applied.rejected.extend(distrusted);
            for key in touched.iter().chain(&applied.restored) {
                self.refused.remove(key);
            }
            for rejected in applied.rejected.iter().chain(&batch.unreadable) {
                tracing::warn!(
                    kind = %rejected.kind, id = %rejected.id, revision = rejected.revision,
                    "refused, the version before stays in force: {}", rejected.reason
                );
                self.refused.insert((rejected.kind, rejected.id.clone()), rejected.clone());
            }
            self.publish(applied.snapshot);
            self.note(batch.revision, count);
            self.told.set(Configuration {
                revision: batch.revision,
                resources: self.held.len(),
                applied_at: Some(unix_seconds()),
                refused: self.refused.values().cloned().collect(),
            });
            self.gate.open();
            self.feed.applied(Applied {
                revision: batch.revision,
                rejected: self.refused.values().cloned().collect(),
                restored: applied.restored,
            });
        }
    }

    fn publish(&self, snapshot: Arc<Snapshot>) {
        if !Arc::ptr_eq(&self.sites.live().load(), &snapshot.sites) {
            self.sites.set_arc(snapshot.sites.clone());
        }
        self.publisher.set_arc(snapshot);
    }

    /// A certificate that an authority has given is served as if it had been declared.
    fn take(&mut self, obtained: &Obtained) {
        let revision = self.keeper.lock().current().revision;
        let change = certificate(obtained, revision);
        let applied = self.keeper.lock().apply(change.into_iter().collect(), revision);
        for rejected in &applied.rejected {
            tracing::error!(
                id = %rejected.id,
                "an obtained certificate cannot be served: {}", rejected.reason
            );
        }
        self.publish(applied.snapshot);
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
