//! A process: the roles of its settings, started in order, drained in reverse.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::connections::Connections;
use super::control_plane::{ControlPlaneRole, listen};
use super::data_plane::{DataPlaneRole, Plan};
use super::error::Error;
use super::feed::FeedConnect;
use super::identities::Identities;
use super::issuer::{IssuerRole, authority};
use super::settings::{self, IdentitySettings, Role, Settings};
use super::trust::federation;
use crate::federation::{Board, Federation, Reach};
use crate::identity::{FileSource, IdentitySource, JwtBundleSource, Refresh, WorkloadApiSource};
use crate::issuer::{Authority, DEFAULT_TTL, EnrolSettings, EnrolSource, IssuerSource};
use crate::model::{Listeners, Redacted};
use crate::observe::{
    AuditLog, AuditSettings, Gate, IdentityRecord, Posture, Readiness, Registry, WardgateMetrics,
    router,
};
use crate::pipeline::Entry;
use crate::rt::{Clock, Live, Tasks, causes};
use crate::snapshot::RouterSettings;
use crate::sync::Feed;
use crate::sync::file::{FileFeed, process_environment};
use crate::sync::last_good::{LastGood, Saved};
use crate::sync::scope;
use crate::sync::subscriber::{self, Subscriber};

/// What all roles of a process share.
#[derive(Clone)]
pub struct Shared {
    /// The decision log.
    pub audit: AuditLog,
    /// Metrics.
    pub registry: Registry,
    /// Wardgate's own metrics.
    pub metrics: WardgateMetrics,
    /// Readiness.
    pub readiness: Readiness,
    /// Our identities and public certificates.
    pub identities: Identities,
    /// How it stands with declared trust domains.
    pub board: Board,
    /// The plugins of this build.
    pub plugins: &'static [Entry],
    /// How requests find their routes.
    pub router: RouterSettings,
    /// Asks the source of the identity that was opened last for newer bundles.
    pub refresh: Refresh,
}

impl Shared {
    /// Opens the decision log and prepares the rest.
    ///
    /// # Errors
    /// The log's file cannot be used.
    pub fn open(settings: &Settings, role: &str) -> Result<Self, Error> {
        let audit = AuditSettings {
            path: Some(settings.audit_file()),
            stdout: settings.audit.stdout,
            ..AuditSettings::default()
        };
        let posture = Posture {
            role: role.to_owned(),
            spiffe_id: None,
            facts: vec![
                ("trust_domain", settings.trust_domain.clone()),
                ("policy_default", "deny".to_owned()),
                ("crypto_provider", crate::rt::crypto::LIBRARY.to_owned()),
            ],
        };
        let audit = AuditLog::open(audit, &posture)?;
        let registry = Registry::new();
        let metrics = WardgateMetrics::new(&registry);
        metrics.watch_audit(&audit);
        let identities = Identities::new(&registry, Clock::system());
        Ok(Self {
            audit,
            board: Board::new(&registry),
            registry,
            metrics,
            readiness: Readiness::new(),
            identities,
            plugins: crate::plugins::ALL,
            router: settings.router,
            refresh: Refresh::default(),
        })
    }
}

/// All that the status port serves.
pub(super) fn status(shared: &Shared) -> axum::Router {
    let identities = shared.identities.clone();
    let identity = axum::routing::get(async move || axum::Json(identities.status()));
    let board = shared.board.clone();
    let reports = async move || axum::Json(json!({ "trust_domains": board.reports() }));
    router(&shared.readiness, &shared.registry)
        .route("/identity", identity)
        .route("/federation", axum::routing::get(reports))
}

/// The identity that the settings name.
///
/// # Errors
/// The source gives no valid identity in its time, or the settings make no sense.
pub async fn identity_source(
    settings: &Settings,
    part: &str,
    issuer: Option<&Arc<Authority>>,
) -> Result<Box<dyn IdentitySource>, Error> {
    let missing =
        |problem: &str| settings::Error::Setting { field: "identity", problem: problem.into() };
    match &settings.identity {
        Some(IdentitySettings::WorkloadApi(workload_api)) => {
            let source = WorkloadApiSource::start(workload_api.clone(), Clock::system()).await?;
            Ok(Box::new(JwtBundleSource::over(Box::new(source), workload_api).await?))
        }
        Some(IdentitySettings::Files(files)) => {
            Ok(Box::new(FileSource::start(files.clone(), Clock::system()).await?))
        }
        Some(IdentitySettings::Enrol(enrol)) => {
            let state = enrolled_file(settings, part);
            let (enrol, domain) = (EnrolSettings::clone(enrol), settings.trust_domain()?);
            Ok(Box::new(EnrolSource::start(enrol, domain, &state, Clock::system()).await?))
        }
        Some(IdentitySettings::Issuer { spiffe_id }) => {
            let Some(authority) = issuer else {
                return Err(missing("source issuer needs role issuer in the same process").into());
            };
            let id = match spiffe_id {
                None => settings.own_id(part)?,
                Some(text) => text
                    .parse()
                    .map_err(|error| missing(&format!("spiffe_id {text:?}: {error}")))?,
            };
            let federated = Live::fixed(crate::identity::TrustBundles::default());
            Ok(Box::new(IssuerSource::start(authority.clone(), id, DEFAULT_TTL, federated)?))
        }
        None => {
            Err(missing("missing; expected source: workload_api, files, enrol or issuer").into())
        }
    }
}

/// Where a part that enrolled keeps its identity.
pub(super) fn enrolled_file(settings: &Settings, part: &str) -> PathBuf {
    settings.state_dir.join(format!("enrolled-{part}.json"))
}

/// A process at work.
pub struct Running {
    /// Where the doors of its data planes listen.
    pub doors: Vec<(Listeners, SocketAddr)>,
    /// Where its status port listens.
    pub status: Option<SocketAddr>,
    /// Where its Admin API listens.
    pub admin: Option<SocketAddr>,
    /// Where its feed listens.
    pub feed: Option<SocketAddr>,
    /// Where its bundle endpoint listens.
    pub bundle: Option<SocketAddr>,
    /// Where workloads enrol.
    pub enrolment: Option<SocketAddr>,
    /// The admin key that this start generated.
    pub generated_key: Option<Redacted<String>>,
    shared: Shared,
    data_planes: Vec<DataPlaneRole>,
    control: Option<ControlPlaneRole>,
    issuer: Option<IssuerRole>,
    connections: Connections,
    _identities: Vec<Box<dyn IdentitySource>>,
    _tasks: Tasks,
    drain_within: Duration,
}

impl Running {
    /// Starts the roles of the settings: issuer, control plane, then data planes.
    ///
    /// # Errors
    /// One of them cannot start; the error says which setting or address is meant.
    pub async fn start(settings: &Settings, asked: Option<Role>) -> Result<Self, Error> {
        let roles = settings.roles(asked)?;
        let names: Vec<String> = roles.iter().map(ToString::to_string).collect();
        let shared = Shared::open(settings, &names.join(" "))?;
        let mut running = Self {
            doors: Vec::new(),
            status: None,
            admin: None,
            feed: None,
            bundle: None,
            enrolment: None,
            generated_key: None,
            shared,
            data_planes: Vec::new(),
            control: None,
            issuer: None,
            connections: Connections::default(),
            _identities: Vec::new(),
            _tasks: Tasks::new(),
            drain_within: Duration::from_secs(settings.drain_seconds),
        };
        running
            ._tasks
            .add(super::warnings::watch(settings.warnings.clone(), running.shared.clone()));
        // First: a probe that asks early shall hear what is missing, not a refused connection.
        running.open_status(settings)?;
        let authority = running.start_issuer(settings, &roles).await?;
        if roles.contains(&Role::Control) {
            running.start_control(settings, authority.as_ref()).await?;
        }
        for role in [Role::Sidecar, Role::Ingress] {
            if roles.contains(&role) {
                running.start_data_plane(settings, role, authority.as_ref()).await?;
            }
        }
        Ok(running)
    }

    fn open_status(&mut self, settings: &Settings) -> Result<(), Error> {
        let Some(address) = settings.status else { return Ok(()) };
        let (listener, bound) = listen(address)?;
        let mut app = status(&self.shared);
        if settings.proof.list_connections {
            if !address.ip().is_loopback() {
                let problem = "needs a status port on loopback: it tells who is connected to whom";
                return Err(missing("proof.list_connections", problem).into());
            }
            app = app.merge(self.connections.router());
        }
        self._tasks.add(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "the status port ended");
            }
        });
        self.status = Some(bound);
        Ok(())
    }

    async fn start_issuer(
        &mut self,
        settings: &Settings,
        roles: &[Role],
    ) -> Result<Option<Arc<Authority>>, Error> {
        if !roles.contains(&Role::Issuer) {
            return Ok(None);
        }
        let Some(issuer) = &settings.issuer else {
            return Err(missing("issuer", "missing; role issuer needs issuer.socket").into());
        };
        let folder =
            issuer.authority.clone().unwrap_or_else(|| settings.state_dir.join("authority"));
        let passphrase = issuer.passphrase_file.as_deref();
        let authority = authority(&settings.trust_domain()?, &folder, passphrase)?;
        let id = settings.own_id("issuer")?;
        let federated = Live::fixed(crate::identity::TrustBundles::default());
        let source = IssuerSource::start(authority.clone(), id, DEFAULT_TTL, federated)?;
        let trust =
            federation(settings, "issuer", Reach::Everywhere, source.identity(), &self.shared);
        self.shared.audit.seal_as(trust.identity());
        self._identities.push(Box::new(source));
        let feed = match &settings.control_plane {
            Some(_) => {
                self.shared.identities.watch(trust.identity());
                Some(feed(settings, scope::Role::Issuer, "issuer", Some(&trust.identity()))?)
            }
            None => None,
        };
        let audit = self.shared.audit.control();
        let role = IssuerRole::start(settings, issuer, (&authority, &folder), &trust, feed, audit)?;
        self.bundle = role.bundle();
        self.enrolment = role.enrolment();
        self.issuer = Some(role);
        Ok(Some(authority))
    }

    async fn start_control(
        &mut self,
        settings: &Settings,
        issuer: Option<&Arc<Authority>>,
    ) -> Result<(), Error> {
        let Some(control) = &settings.control else {
            return Err(missing("control", "missing; role control needs its settings").into());
        };
        let trust = self.identity(settings, "control", Reach::OwnDomain, issuer).await?;
        let role = ControlPlaneRole::start(settings, control, &trust, &self.shared).await?;
        self.admin = Some(role.admin());
        self.feed = Some(role.feed());
        self.generated_key = role.generated_key().cloned();
        self.control = Some(role);
        Ok(())
    }

    async fn identity(
        &mut self,
        settings: &Settings,
        part: &str,
        reach: Reach,
        issuer: Option<&Arc<Authority>>,
    ) -> Result<Federation, Error> {
        let gate = self.shared.readiness.gate("identity", "no identity yet");
        let source = identity_source(settings, part, issuer).await?;
        self.shared.refresh = source.refresh();
        let trust = federation(settings, part, reach, source.identity(), &self.shared);
        self._identities.push(source);
        self.watch(&trust.identity(), gate);
        Ok(trust)
    }

    /// Every identity that comes into use stands in the decision log; one that was taken away makes the process not ready.
    fn watch(&mut self, identity: &Live<crate::identity::Identity>, gate: Gate) {
        let mut identity = identity.clone();
        self.shared.identities.watch(identity.clone());
        self.shared.audit.seal_as(identity.clone());
        let lane = self.shared.audit.control().clone();
        self._tasks.add(async move {
            let mut before: Option<Arc<crate::identity::Identity>> = None;
            loop {
                let now = identity.load();
                if now.is_withdrawn() {
                    gate.shut("our identity was taken away by its source");
                } else {
                    gate.open();
                }
                let event = match &before {
                    None => "first",
                    Some(_) if now.is_withdrawn() => "withdrawn",
                    Some(before) if before.is_withdrawn() => "restored",
                    Some(before) if before.svid.serial != now.svid.serial => "rotated",
                    Some(_) => "bundle_changed",
                };
                let domains: Vec<&str> =
                    now.trust.bundles.iter().map(|bundle| bundle.domain.as_str()).collect();
                let _ = lane.identity(&IdentityRecord {
                    event,
                    spiffe_id: now.id().as_str(),
                    serial: Some(&now.svid.serial),
                    not_after: Some(now.svid.not_after),
                    trust_domains: Some(&domains.join(" ")),
                    detail: None,
                });
                tracing::info!(id = %now.id(), serial = %now.svid.serial, event, "identity in use");
                before = Some(now);
                if !identity.changed().await {
                    return;
                }
            }
        });
    }

    async fn start_data_plane(
        &mut self,
        settings: &Settings,
        role: Role,
        issuer: Option<&Arc<Authority>>,
    ) -> Result<(), Error> {
        let limits = settings.limits.limits(settings.proof.limits()?);
        let limits = limits.map_err(settings::Error::from)?;
        let discovery = settings.discovery.clone();
        let (dns, upstreams) = (settings.dns.clone(), settings.upstreams.clone());
        let (workers, without_checks) =
            (settings.worker_count(), settings.disable_upstream_healthcheck);
        let mut plan =
            Plan { workers, limits, dns, upstreams, discovery, without_checks, ..Plan::default() };
        let (part, feed_role) = match role {
            Role::Ingress => ("ingress", scope::Role::Ingress),
            Role::Sidecar | Role::Control | Role::Issuer => ("sidecar", scope::Role::Sidecar),
        };
        match role {
            Role::Ingress => {
                let Some(ingress) = &settings.ingress else {
                    return Err(
                        missing("ingress", "missing; role ingress needs its settings").into()
                    );
                };
                (plan.http, plan.https) = (ingress.http, ingress.https);
                plan.stapling = ingress.stapling();
                plan.introductions = ingress.proxy_protocol.introductions()?;
                plan.senders = ingress.senders()?;
            }
            Role::Sidecar | Role::Control | Role::Issuer => {
                let Some(sidecar) = &settings.sidecar else {
                    return Err(
                        missing("sidecar", "missing; role sidecar needs its settings").into()
                    );
                };
                plan.inbound = Some(sidecar.inbound);
                plan.outbound = Some(sidecar.outbound);
                plan.app.clone_from(&sidecar.app);
                plan.introductions = sidecar.proxy_protocol.introductions()?;
            }
        }
        // An ingress may do without an SVID; a sidecar is nothing without one.
        let trust = match (role, &settings.identity) {
            (Role::Ingress, None) => None,
            _ => Some(self.identity(settings, part, Reach::Everywhere, issuer).await?),
        };
        let identity = trust.as_ref().map(Federation::identity);
        let feed = feed(settings, feed_role, part, identity.as_ref())?;
        let role = DataPlaneRole::start(&plan, trust, feed, &self.shared)?;
        self.doors.extend_from_slice(role.addresses());
        self.connections.add(role.proofs());
        self.data_planes.push(role);
        Ok(())
    }

    /// What the process is waiting for before it is ready.
    pub fn readiness(&self) -> &Readiness {
        &self.shared.readiness
    }

    /// Lets everything finish, data planes first, and writes what is left of the decision log. `false` when something was
    /// cut off.
    pub async fn drain(self) -> bool {
        let mut clean = true;
        for plane in self.data_planes {
            clean &= plane.drain(self.drain_within).await;
        }
        if let Some(control) = self.control {
            clean &= control.drain(self.drain_within).await;
        }
        if let Some(issuer) = self.issuer {
            clean &= issuer.drain(Duration::from_secs(5)).await;
        }
        let audit = self.shared.audit.clone();
        let flushed =
            tokio::task::spawn_blocking(move || audit.flush(Duration::from_secs(5))).await;
        clean & matches!(flushed, Ok(Ok(())))
    }
}

fn missing(field: &'static str, problem: &str) -> settings::Error {
    settings::Error::Setting { field, problem: problem.to_owned() }
}

/// Where configuration comes from: a file, or the control plane's feed with a last good copy on disk.
fn feed(
    settings: &Settings,
    role: scope::Role,
    part: &str,
    identity: Option<&Live<crate::identity::Identity>>,
) -> Result<Box<dyn Feed>, Error> {
    match (&settings.resources, &settings.control_plane) {
        (Some(_), Some(_)) => {
            Err(missing("resources", "give either resources or control_plane").into())
        }
        (Some(path), None) => Ok(Box::new(standalone(path)?)),
        (None, None) => Err(missing(
            "control_plane",
            "missing; expected control_plane.address, or a resources file",
        )
        .into()),
        (None, Some(control)) => {
            let Some(identity) = identity else {
                return Err(
                    missing("identity", "missing; the feed is mTLS and needs an identity").into()
                );
            };
            let expected = match &control.spiffe_id {
                None => settings.own_id("control")?,
                Some(text) => text.parse().map_err(|error| {
                    missing("control_plane.spiffe_id", &format!("{text:?}: {error}"))
                })?,
            };
            let connect = FeedConnect::new(&control.address, identity.clone(), &expected);
            let last_good = last_good(settings, part);
            let told = subscriber::Settings::new(role, settings.node_name());
            Ok(Box::new(Subscriber::start(told, connect, last_good)))
        }
    }
}

/// Configuration from a file.
pub(super) fn standalone(path: &Path) -> Result<FileFeed, crate::sync::file::Error> {
    FileFeed::open(path, process_environment())
}

/// The last good copy; a damaged one is reported, left as it is, and not used.
pub(super) fn last_good(settings: &Settings, part: &str) -> Option<(LastGood, Option<Saved>)> {
    let path = settings.state_dir.join(format!("last-good-{part}"));
    match LastGood::open(&path, part) {
        Ok((place, saved)) => {
            if let Some(error) = place.damage() {
                tracing::error!("{error}");
            }
            Some((place, saved))
        }
        Err(error) => {
            tracing::error!("{}", causes(&error));
            None
        }
    }
}
