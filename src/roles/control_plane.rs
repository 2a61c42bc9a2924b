//! Control plane: store, Admin API, and publisher wired together.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::admin_door;
use super::catalog::{Catalog, KeeperTrial, feed_rules};
use super::collection::{self, may_ship, open_archive};
use super::error::Error;
use super::feed;
use super::process::Shared;
use super::reach::{self, Reach};
use super::sealing::{chosen_store, sealed, sealing_ring};
use super::settings::{ControlSettings, Settings};
use super::trust::follow_store;
use crate::audit::Collector;
use crate::control::access::AdminKeys;
use crate::control::canary::Canaries;
use crate::control::history::RememberedPast;
use crate::control::{self, AuditTrail, ControlPlane, DataPlaneState};
use crate::federation::Federation;
use crate::identity::{SpiffeId, SpiffePattern, TrustDomain};
use crate::model::{Redacted, Rejected};
use crate::observe::{self, AuditLane, MetricKind, Registry};
use crate::rt::{Clock, Drain, Live, Sockets, Tasks};
use crate::store::memory::Memory;
use crate::store::{self, Store};
use crate::sync::canary::{Course, Figures, Phase};
use crate::sync::fleet::{Fleet, Presence};
use crate::sync::publisher::{self, Publisher};
use crate::sync::scope;

/// How long a store's file may still be in use when we take over from another process.
const LET_GO_WITHIN: Duration = Duration::from_secs(10);

/// A running control plane.
pub struct ControlPlaneRole {
    admin: SocketAddr,
    feed: SocketAddr,
    generated_key: Option<Redacted<String>>,
    publisher: Publisher,
    canaries: Option<Canaries>,
    reach: Live<Reach>,
    store: Arc<dyn Store>,
    collector: Option<Collector>,
    drain: Drain,
    tasks: Tasks,
}

/// Who may ask the feed for what.
#[derive(Clone, Debug)]
pub struct FeedRules {
    /// Who may ask for an ingress' configuration.
    pub ingress: Vec<SpiffePattern>,
    /// Who may ask for an issuer's registration entries.
    pub issuer: Vec<SpiffePattern>,
    /// Whose workloads' sidecars may ask: another trust domain's learn nothing here, whatever we trust them for.
    pub domain: TrustDomain,
}

impl FeedRules {
    /// From the settings; Wardgate's own parts when they say nothing.
    ///
    /// # Errors
    /// A pattern is none.
    pub fn of(
        settings: &Settings,
        control: &ControlSettings,
    ) -> Result<Self, super::settings::Error> {
        let pattern = |text: &String| {
            text.parse::<SpiffePattern>().map_err(|error| super::settings::Error::Setting {
                field: "control.ingress_ids",
                problem: format!("{text:?}: {error}"),
            })
        };
        let ingress = match &*control.ingress_ids {
            [] => vec![SpiffePattern::exactly(&settings.own_id("ingress")?)],
            ids => ids.iter().map(pattern).collect::<Result<_, _>>()?,
        };
        let issuer = vec![SpiffePattern::exactly(&settings.own_id("issuer")?)];
        Ok(Self { ingress, issuer, domain: settings.trust_domain()? })
    }

    fn allow(&self, id: &str, role: scope::Role) -> bool {
        let Ok(id) = id.parse::<SpiffeId>() else { return false };
        let any = |patterns: &[SpiffePattern]| patterns.iter().any(|pattern| pattern.matches(&id));
        match role {
            // Everybody may ask for what concerns itself.
            scope::Role::Sidecar => {
                id.trust_domain_name() == self.domain.as_str()
                    && !super::data_plane::is_own_part(&id)
            }
            scope::Role::Ingress => any(&self.ingress),
            scope::Role::Issuer => any(&self.issuer),
        }
    }

    /// May somebody of this ID hand over its decision log? Whoever may have a feed of some role.
    fn may_ship(&self, id: &str) -> bool {
        [scope::Role::Sidecar, scope::Role::Ingress, scope::Role::Issuer]
            .into_iter()
            .any(|role| self.allow(id, role))
    }
}

impl ControlPlaneRole {
    /// Opens the store and both listeners. The store need not answer yet. The identity is that of `federation`, to which goes
    /// whatever the store declares about trust.
    ///
    /// # Errors
    /// The store's file or an address cannot be used.
    pub async fn start(
        settings: &Settings,
        control: &ControlSettings,
        federation: &Federation,
        shared: &Shared,
    ) -> Result<Self, Error> {
        admin_door::check(control)?;
        let identity = &federation.identity();
        // What comes whole rests in memory, under whatever prefix.
        let chosen = chosen_store(settings, control);
        let state_dir: &Path = &settings.state_dir;
        std::fs::create_dir_all(state_dir)
            .map_err(|source| Error::State { path: state_dir.into(), source })?;
        // Secrets rest sealed; readers of the store see them open.
        let ring = sealing_ring(settings, control)?;
        let patience = if shared.sockets.is_open() { Duration::ZERO } else { LET_GO_WITHIN };
        let store: Arc<dyn Store> = match &control.standalone {
            Some(_) => Arc::new(Memory::new()),
            None => sealed(open(&chosen, patience).await?, ring, &chosen.prefix),
        };
        let (keys, generated_key) = AdminKeys::open(&control.keys, state_dir)?;

        let mut tasks = Tasks::new();
        let collector =
            open_archive(settings, control, identity, shared, patience, &mut tasks).await?;
        let rules = FeedRules::of(settings, control)?;
        let ships = rules.clone();
        let (feed_rules, prefix) = (feed_rules(shared.plugins), chosen.prefix.as_str());
        let authorize: publisher::Authorize = Arc::new(move |id, role| rules.allow(id, role));
        let publisher = match &control.canary {
            None => Publisher::new(feed_rules, authorize),
            Some(canary) => {
                let past = Arc::new(RememberedPast::new(store.clone(), prefix));
                Publisher::with_canaries(feed_rules, authorize, (canary, prefix), past)
            }
        };
        show_feed(&shared.registry, &publisher);
        let drain = Drain::new();
        // A store of one's own has no other control planes.
        let is_shared = control.standalone.is_none() && chosen.etcd.is_some();
        let fleet = is_shared.then(|| Fleet::new(&settings.node_name()));
        if let Some(fleet) = fleet.clone() {
            let (store, prefix) = (store.clone(), prefix.to_owned());
            tasks.add(fleet.run(store, prefix, publisher.clone(), drain.guard()));
        }
        let reach = reach::watch(
            (store.clone(), prefix),
            publisher.clone(),
            (&shared.readiness, &shared.registry),
            drain.guard(),
            &mut tasks,
        );
        let course = control.canary.as_ref().map(|canary| {
            let place = (store.clone(), prefix);
            Course::new(place, canary.clone(), publisher.clone(), fleet.clone())
        });
        let canaries = course.as_ref().map(Course::figures);
        if let Some(canaries) = &canaries {
            show_canaries(&shared.registry, canaries);
        }
        if let Some(course) = course {
            tasks.add(course.run(drain.guard()));
        }
        let parts = control::Parts {
            store: store.clone(),
            prefix: chosen.prefix.clone(),
            keys,
            hosts: control.hosts.clone(),
            access: control.access.clone(),
            catalog: Arc::new(Catalog {
                table: shared.plugins,
                registry: shared.registry.clone(),
                zones: shared.zones.clone(),
            }),
            trial: Arc::new(KeeperTrial {
                table: shared.plugins,
                router: shared.router,
                domain: settings.trust_domain()?,
                registry: shared.registry.clone(),
                zones: shared.zones.clone(),
            }),
            audit: Arc::new(Trail(shared.audit.control().clone())),
            convergence: Some(Arc::new(Planes(publisher.clone(), fleet))),
            archive: collector.as_ref().map(|collector| collector.archive().clone()),
            clock: Clock::system(),
            history: control.history.clone(),
            standalone: control.standalone.clone(),
            canaries: canaries.clone(),
        };
        let admin_api = ControlPlane::new(parts)?;
        let (admin_listener, admin) = listen(&shared.sockets, "admin", control.admin)?;
        let (feed_listener, feed) = listen(&shared.sockets, "feed", control.feed)?;

        let tls = control.access.tls.as_ref();
        admin_door::serve(
            admin_api.clone(),
            admin_listener,
            tls,
            identity,
            drain.guard(),
            &mut tasks,
        )?;
        follow_store(&store, &chosen.prefix, federation, &mut tasks);
        let (following, followed, prefix) = (publisher.clone(), store.clone(), chosen.prefix);
        let guard = drain.guard();
        tasks.add(async move {
            // Until there is a configuration, data planes keep the one that they have.
            admin_api.has_configuration().await;
            if let Err(error) = following.follow(&*followed, &prefix, guard).await {
                tracing::error!(%error, "the feed no longer follows the store");
            }
        });
        let lane = shared.audit.control().clone();
        let incoming = feed::accept(feed_listener, identity, lane, drain.guard(), &mut tasks);
        let may_ship = may_ship(move |id| ships.may_ship(id));
        let records = collection::routes(collector.as_ref(), may_ship, drain.guard());
        let (serving, guard) = (publisher.clone(), drain.guard());
        tasks.add(async move {
            if let Err(error) = serving.serve_beside(records, incoming, guard).await {
                tracing::error!(%error, "the feed ended");
            }
        });
        Ok(Self {
            admin,
            feed,
            generated_key,
            publisher,
            canaries,
            reach,
            store,
            collector,
            drain,
            tasks,
        })
    }

    /// Where the Admin API listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where the feed listens.
    pub fn feed(&self) -> SocketAddr {
        self.feed
    }

    /// The admin key that this very start generated; nobody can read it again.
    pub fn generated_key(&self) -> Option<&Redacted<String>> {
        self.generated_key.as_ref()
    }

    /// The feed's publisher.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Whether the store answers.
    pub(super) fn reach(&self) -> &Live<Reach> {
        &self.reach
    }

    /// How canary pushes stand, where there are any.
    pub fn canaries(&self) -> Option<&Canaries> {
        self.canaries.as_ref()
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Where records of decision logs go in, if they are archived.
    pub fn collector(&self) -> Option<&Collector> {
        self.collector.as_ref()
    }

    /// Ends streams and lets requests finish.
    pub async fn drain(self, within: Duration) -> bool {
        let clean = self.drain.drain(within).await;
        drop(self.tasks);
        clean
    }
}

/// Opens the store. The process that hands over to us may need a moment to let go of its file.
async fn open(
    chosen: &store::settings::Settings,
    patience: Duration,
) -> Result<Arc<dyn Store>, store::Error> {
    let until = tokio::time::Instant::now() + patience;
    loop {
        match chosen.open().await {
            Err(store::Error::InUse { .. }) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => return opened,
        }
    }
}

/// Opens a listener of the control side.
pub(super) fn listen(
    sockets: &Sockets,
    name: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Socket { what: "cannot use the listener at", address, source };
    let socket = sockets.one(name, address)?;
    let bound = socket.local_addr().map_err(failed)?;
    Ok((TcpListener::from_std(socket).map_err(failed)?, bound))
}

/// How far the data planes are, as metrics: how many there are, how many lag behind what was published, and what they refuse.
fn show_feed(registry: &Registry, publisher: &Publisher) {
    const PLANES: &str = "wardgate_feed_data_planes";
    const BEHIND: &str = "wardgate_feed_data_planes_behind";
    const REFUSED: &str = "wardgate_feed_refused_resources";
    const UNREADABLE: &str = "wardgate_feed_unreadable_resources";
    let gauge = MetricKind::Gauge;
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    registry.describe(PLANES, gauge, "Data planes that are connected to the feed.");
    registry.describe(
        BEHIND,
        gauge,
        "Connected data planes that have not answered the newest revision.",
    );
    registry.describe(
        REFUSED,
        gauge,
        "Resources that a connected data plane refuses, by data plane.",
    );
    registry.describe(UNREADABLE, gauge, "Resources of the store that cannot be read.");
    let seen = publisher.clone();
    registry.computed(PLANES, &[], gauge, move || number(seen.convergence().data_planes.len()));
    let seen = publisher.clone();
    registry.computed(BEHIND, &[], gauge, move || {
        let state = seen.convergence();
        number(state.data_planes.iter().filter(|plane| plane.applied < state.revision).count())
    });
    let seen = publisher.clone();
    registry.gathered(REFUSED, gauge, move |row| {
        for plane in
            seen.convergence().data_planes.iter().filter(|plane| !plane.rejected.is_empty())
        {
            let labels = [("spiffe_id", &*plane.spiffe_id), ("node", plane.node.as_str())];
            row(&labels, number(plane.rejected.len()));
        }
    });
    let seen = publisher.clone();
    registry.computed(UNREADABLE, &[], gauge, move || number(seen.convergence().unreadable.len()));
}

/// How canary pushes stand, as metrics.
fn show_canaries(registry: &Registry, canaries: &Canaries) {
    const PHASE: &str = "wardgate_canary_phase";
    const REVISION: &str = "wardgate_canary_revision";
    const CANARIES: &str = "wardgate_canary_data_planes";
    let gauge = MetricKind::Gauge;
    let help =
        "How the newest change stands: 0 everybody has it, 1 canaries try it, 2 it was stopped.";
    registry.describe(PHASE, gauge, help);
    registry.describe(REVISION, gauge, "The revision that is tried or was stopped; 0 for none.");
    registry.describe(CANARIES, gauge, "Connected data planes that try a change.");
    let phase = |figures: &Figures| figures.record.as_ref().map(|record| record.phase);
    let seen = canaries.clone();
    registry.computed(PHASE, &[], gauge, move || match phase(&seen.load()) {
        None | Some(Phase::Passed) => 0.0,
        Some(Phase::Trying) => 1.0,
        Some(Phase::Stopped) => 2.0,
    });
    let seen = canaries.clone();
    registry.computed(REVISION, &[], gauge, move || {
        let figures = seen.load();
        let open = figures.record.as_ref().filter(|record| record.phase != Phase::Passed);
        #[expect(clippy::cast_precision_loss, reason = "a metric's value")]
        let revision = open.map_or(0, |record| record.candidate) as f64;
        revision
    });
    let seen = canaries.clone();
    registry.computed(CANARIES, &[], gauge, move || {
        f64::from(u32::try_from(seen.load().report.canaries.len()).unwrap_or(u32::MAX))
    });
}

/// Admin calls go into the decision log.
struct Trail(AuditLane);

impl AuditTrail for Trail {
    fn admin(&self, record: &control::AdminRecord<'_>) {
        // What is lost here is counted in the log itself.
        let _ = self.0.admin(&observe::AdminRecord {
            principal: record.principal,
            src_addr: Some(record.client),
            method: record.method,
            path: record.path.as_bytes(),
            status: record.status,
            revision: record.revision,
            body_sha256: record.digest.as_deref(),
            diff_sha256: record.difference.as_deref(),
            reason: record.reason.as_deref(),
        });
    }
}

/// The publisher's view of the data planes, for the Admin API.
struct Planes(Publisher, Option<Fleet>);

impl control::Convergence for Planes {
    fn data_planes(&self) -> Vec<DataPlaneState> {
        let state = |plane: publisher::DataPlane| DataPlaneState {
            id: format!("{} {}", plane.spiffe_id, plane.node),
            connected: true,
            applied: plane.applied,
            beside: plane.beside,
            rejected: plane.rejected,
        };
        self.0.convergence().data_planes.into_iter().map(state).collect()
    }

    fn elsewhere(&self) -> Vec<Presence> {
        self.1.as_ref().map(Fleet::others).unwrap_or_default()
    }

    fn unreadable(&self) -> Vec<Rejected> {
        self.0.convergence().unreadable
    }
}
