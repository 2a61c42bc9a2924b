//! Everything in one process: issuer, control plane, sidecars and ingress, joined over real sockets as they would be apart.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::control_plane::{ControlPlaneRole, listen};
use super::data_plane::{DataPlaneRole, Plan};
use super::error::Error;
use super::feed::FeedConnect;
use super::process::{Shared, last_good};
use super::settings::{ControlSettings, Settings};
use super::trust::federation;
use crate::audit::{ArchiveSettings, Follower};
use crate::control::history::HistorySettings;
use crate::federation::Reach;
use crate::identity::{Identity, IdentitySource, SpiffeId, TrustBundles};
use crate::issuer::{Authority, DEFAULT_TTL, IssuerSource, Upkeep};
use crate::model::Listeners;
use crate::rt::{Clock, Live, Sockets, Tasks};
use crate::store;
use crate::store::sealed::SealingSettings;
use crate::sync::scope;
use crate::sync::subscriber::{self, Subscriber};

/// A loopback address with a port; 0 takes a free one.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// What an embedded world is to be.
#[derive(Clone, Debug)]
pub struct World {
    /// Its trust domain.
    pub trust_domain: String,
    /// Where its state is kept.
    pub state_dir: PathBuf,
    /// Keep the issuer's authority there as well; else it lives as long as the process.
    pub keep_authority: bool,
    /// The Admin API's port.
    pub admin_port: u16,
    /// The status port, or none.
    pub status_port: Option<u16>,
}

/// Everything in one process.
pub struct Embedded {
    /// The issuer.
    pub authority: Arc<Authority>,
    /// The control plane.
    pub control: ControlPlaneRole,
    /// What all parts share.
    pub shared: Shared,
    /// Where the status port listens.
    pub status: Option<SocketAddr>,
    settings: Settings,
    /// Hands the decision log to the archive.
    collecting: Option<Follower>,
    planes: Vec<DataPlaneRole>,
    identities: Vec<IssuerSource>,
    _tasks: Tasks,
}

impl Embedded {
    /// Starts issuer and control plane.
    ///
    /// # Errors
    /// The state cannot be used, or a port is taken; the error names it.
    pub async fn start(world: &World) -> Result<Self, Error> {
        let mut settings = Settings::embedded(&world.trust_domain, &world.state_dir);
        settings.control = Some(ControlSettings {
            admin: loopback(world.admin_port),
            feed: loopback(0),
            store: Some(store::settings::Settings::in_file(world.state_dir.join("store.redb"))),
            keys: Vec::new(),
            hosts: Vec::new(),
            access: crate::control::access::Settings::default(),
            sealing_key: None,
            sealing: SealingSettings::default(),
            ingress_ids: Vec::new(),
            audit: ArchiveSettings::default(),
            history: HistorySettings::default(),
            standalone: None,
            canary: None,
        });
        let shared = Shared::open(&settings, "embedded", Sockets::new())?;
        let domain = settings.trust_domain()?;
        let authority = match world.keep_authority {
            true => super::issuer::authority(&domain, &world.state_dir.join("authority"), None)?,
            false => Arc::new(Authority::in_memory(domain, Clock::system())?),
        };
        let mut identities = Vec::new();
        let own = issue(&authority, settings.own_id("control")?, &mut identities)?;
        let own = federation(&settings, "control", Reach::OwnDomain, own, &shared);
        let control = match &settings.control {
            Some(control) => ControlPlaneRole::start(&settings, control, &own, &shared).await?,
            None => unreachable!("set above"),
        };
        shared.identities.watch(own.identity());
        let mut tasks = Tasks::new();
        tasks.add(authority.clone().keep(Upkeep::default()));
        tasks.add(super::warnings::watch(Live::fixed(settings.warnings.clone()), shared.clone()));
        let collector = control.collector();
        let identity = own.identity();
        let collecting = collector.map(|collector| {
            super::collection::follow_own(&settings, collector, &identity, &shared)
        });
        let mut status = None;
        if let Some(port) = world.status_port {
            let (listener, bound) = listen(&shared.sockets, "status", loopback(port))?;
            let app = super::process::status(&shared);
            tasks.add(async move {
                if let Err(error) = axum::serve(listener, app).await {
                    tracing::error!(%error, "the status port ended");
                }
            });
            status = Some(bound);
        }
        Ok(Self {
            authority,
            control,
            shared,
            status,
            settings,
            collecting,
            planes: Vec::new(),
            identities,
            _tasks: tasks,
        })
    }

    /// An identity of the world, kept current.
    ///
    /// # Errors
    /// The authority refuses it: another trust domain, for one.
    pub fn identity(&mut self, id: SpiffeId) -> Result<Live<Identity>, Error> {
        let identity = issue(&self.authority, id, &mut self.identities)?;
        self.shared.identities.watch(identity.clone());
        Ok(identity)
    }

    /// The ID of a workload: `spiffe://<trust domain>/<name>`.
    ///
    /// # Errors
    /// The name does not fit a SPIFFE ID.
    pub fn workload_id(&self, name: &str) -> Result<SpiffeId, Error> {
        let named = self.settings.trust_domain()?.workload(&format!("/{name}"));
        named.map_err(|error| {
            super::settings::Error::Setting {
                field: "workload",
                problem: format!("{name:?}: {error}"),
            }
            .into()
        })
    }

    /// Starts a sidecar beside a workload.
    ///
    /// # Errors
    /// The application's address makes no sense, or a port is taken.
    pub fn sidecar(&mut self, name: &str, plan: &Plan) -> Result<&DataPlaneRole, Error> {
        let id = self.workload_id(name)?;
        self.data_plane(name, id, scope::Role::Sidecar, plan)
    }

    /// Starts the ingress.
    ///
    /// # Errors
    /// A port is taken.
    pub fn ingress(&mut self, plan: &Plan) -> Result<&DataPlaneRole, Error> {
        let id = self.settings.own_id("ingress")?;
        self.data_plane("ingress", id, scope::Role::Ingress, plan)
    }

    fn data_plane(
        &mut self,
        name: &str,
        id: SpiffeId,
        role: scope::Role,
        plan: &Plan,
    ) -> Result<&DataPlaneRole, Error> {
        let source = self.identity(id)?;
        let federation = federation(&self.settings, name, Reach::Everywhere, source, &self.shared);
        let identity = federation.identity();
        let expected = self.settings.own_id("control")?;
        let connect = FeedConnect::new(&[self.control.feed().to_string()], identity, &expected);
        let last_good = last_good(&self.settings, name, &self.shared.pen);
        let feed = Subscriber::start(subscriber::Settings::new(role, name), connect, last_good);
        let plan = Plan { workers: plan.workers.max(1), ..plan.clone() };
        let plane = DataPlaneRole::start(&plan, Some(federation), Box::new(feed), &self.shared)?;
        let at = self.planes.len();
        self.planes.push(plane);
        Ok(&self.planes[at])
    }

    /// Waits until every data plane runs the store's newest revision; `false` when that takes too long.
    pub async fn converged(&self, revision: u64, within: Duration) -> bool {
        let expected = self.planes.len();
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let state = self.control.publisher().wait_applied(revision, left).await;
            if state.has_applied(revision) && state.data_planes.len() >= expected {
                return true;
            }
            if left.is_zero() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where a data plane's door listens: the first one that has such a door.
    pub fn address(&self, door: Listeners) -> Option<SocketAddr> {
        self.planes.iter().find_map(|plane| plane.address(door))
    }

    /// Lets everything finish and writes what is left of the decision log.
    pub async fn drain(self, within: Duration) -> bool {
        let mut clean = true;
        for plane in self.planes {
            clean &= plane.drain(within).await;
        }
        drop(self.collecting);
        clean &= self.control.drain(within).await;
        let audit = self.shared.audit.clone();
        let flushed =
            tokio::task::spawn_blocking(move || audit.flush(Duration::from_secs(5))).await;
        clean & matches!(flushed, Ok(Ok(())))
    }
}

fn issue(
    authority: &Arc<Authority>,
    id: SpiffeId,
    identities: &mut Vec<IssuerSource>,
) -> Result<Live<Identity>, Error> {
    let federated = Live::fixed(TrustBundles::default());
    let source = IssuerSource::start(authority.clone(), id, DEFAULT_TTL, federated)?;
    let identity = source.identity();
    identities.push(source);
    Ok(identity)
}
