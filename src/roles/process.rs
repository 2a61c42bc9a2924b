//! A process: the roles of its settings, started in order, drained in reverse.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use super::collection::Shipper;
use super::connections::Connections;
use super::control_api;
use super::control_plane::{ControlPlaneRole, listen};
use super::data_plane::{DataPlaneRole, Plan};
use super::error::Error;
use super::facts::{self, Facts, Plane};
use super::feed::FeedConnect;
use super::feeding::{Feeding, policy_keys, show_refused};
use super::identities::Identities;
use super::issuer::{IssuerRole, authority};
use super::settings::{self, ControlPlaneSettings, IdentitySettings, Role, Settings};
use super::settings_file::SettingsFile;
use super::trust::federation;
use super::warnings::WarningSettings;
use crate::acme::Reports;
use crate::audit::{Follower, OutputBoard, Outputs};
use crate::federation::{Board, Federation, Reach};
use crate::identity::{
    FileSource, IdentitySource, JwtBundleSource, Refresh, TrustBundle, WorkloadApiSource,
};
use crate::issuer::{Authority, DEFAULT_TTL, EnrolSettings, EnrolSource, IssuerSource};
use crate::model::{Listeners, Redacted};
use crate::observe::{
    AuditLog, AuditSettings, Gate, IdentityRecord, MetricKind, Posture, Readiness, Registry,
    WardgateMetrics, router,
};
use crate::pipeline::{CacheZones, Entry};
use crate::rt::{Clock, Live, Publisher, Sockets, Tasks, causes};
use crate::snapshot::{Freshness, RouterSettings};
use crate::sync::Feed;
use crate::sync::canary::Counts;
use crate::sync::file::{FileFeed, FileStatus, process_environment};
use crate::sync::last_good::{LastGood, Pen, Saved};
use crate::sync::scope;
use crate::sync::subscriber::{self, Subscriber};

/// For what comes after the data planes at an end.
const LAST_SECONDS: Duration = Duration::from_secs(5);

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
    /// How it stands with certificates by ACME.
    pub acme: Reports,
    /// How it stands with declared trust domains.
    pub board: Board,
    /// How it stands with the outputs of the decision log.
    pub outputs: OutputBoard,
    /// The plugins of this build.
    pub plugins: &'static [Entry],
    /// How requests find their routes.
    pub router: RouterSettings,
    /// Where plugins store answers.
    pub zones: CacheZones,
    /// Asks the source of the identity that was opened last for newer bundles.
    pub refresh: Refresh,
    /// The listening sockets.
    pub sockets: Sockets,
    /// What last good copies are written with.
    pub pen: Pen,
    /// What runs here.
    pub facts: Facts,
}

impl Shared {
    /// Opens the decision log and prepares the rest. With `sockets` that are shut, another process still has the log and the
    /// last good copies, until [`Running`] takes them over.
    ///
    /// # Errors
    /// The log's file cannot be used.
    pub fn open(settings: &Settings, role: &str, sockets: Sockets) -> Result<Self, Error> {
        let zones = settings.cache_zones()?;
        let (file, stdout) = (Some(settings.audit_file()), settings.audit.stdout);
        let audit = AuditSettings::of(file, stdout, &settings.decision_log);
        let posture = Posture {
            role: role.to_owned(),
            spiffe_id: None,
            facts: vec![
                ("trust_domain", settings.trust_domain.clone()),
                ("policy_default", "deny".to_owned()),
                ("crypto_provider", crate::rt::crypto::LIBRARY.to_owned()),
                (
                    "svid_rules",
                    if settings.verification.strict { "strict" } else { "lenient" }.to_owned(),
                ),
                ("allows", log_name(&settings.decision_log.allows)),
                ("when_full", log_name(&settings.decision_log.when_full)),
                ("redacted", settings.decision_log.redact.summary()),
            ],
        };
        let pen = Pen::default();
        let audit = if sockets.is_open() {
            AuditLog::open(audit, &posture)?
        } else {
            pen.lay_down();
            AuditLog::open_later(audit, &posture)?
        };
        let registry = Registry::new();
        let metrics = WardgateMetrics::new(&registry);
        metrics.watch_audit(&audit);
        let identities = Identities::new(&registry, Clock::system());
        Ok(Self {
            audit,
            acme: Reports::default(),
            board: Board::new(&registry),
            outputs: OutputBoard::new(&registry),
            registry,
            metrics,
            readiness: Readiness::new(),
            identities,
            plugins: crate::plugins::ALL,
            router: settings.router,
            zones,
            refresh: Refresh::default(),
            sockets,
            pen,
            facts: Facts::default(),
        })
    }
}

/// All that the status port serves.
pub(super) fn status(shared: &Shared) -> axum::Router {
    let identities = shared.identities.clone();
    let identity = axum::routing::get(async move || axum::Json(identities.status()));
    let acme = shared.acme.clone();
    let certificates = async move || axum::Json(json!({ "certificates": acme.all() }));
    let board = shared.board.clone();
    let reports = async move || axum::Json(json!({ "trust_domains": board.reports() }));
    router(&shared.readiness, &shared.registry)
        .route("/identity", identity)
        .route("/acme", axum::routing::get(certificates))
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
    /// Where the doors of its data planes listen whose bytes are passed on unread, by name.
    pub relays: Vec<(String, SocketAddr)>,
    /// Where its status port listens.
    pub status: Option<SocketAddr>,
    /// Where its control API listens.
    pub control_api: Option<SocketAddr>,
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
    pub(super) shared: Shared,
    pub(super) settings: Settings,
    /// Where the settings came from, and what of it is in force.
    pub(super) file: Option<SettingsFile>,
    pub(super) asked: Option<Role>,
    pub(super) warnings: Publisher<WarningSettings>,
    pub(super) roles: Vec<Role>,
    pub(super) data_planes: Vec<DataPlaneRole>,
    pub(super) control: Option<ControlPlaneRole>,
    /// Whose identity the control plane has.
    pub(super) control_trust: Option<Federation>,
    issuer: Option<IssuerRole>,
    /// As whom the decision log goes to a control plane.
    pub(super) shipper: Option<Shipper>,
    /// Hands the decision log to the archive.
    pub(super) collecting: Option<Follower>,
    connections: Connections,
    /// The identity that came first, which outputs of the decision log present.
    pub(super) own: Option<Live<crate::identity::Identity>>,
    /// What follows the decision log while this process owns it.
    pub(super) outputs: Outputs,
    feeding: Feeding,
    _identities: Vec<Box<dyn IdentitySource>>,
    _tasks: Tasks,
}

impl Running {
    /// Starts the roles of the settings: issuer, control plane, then data planes. `sockets` are those that were handed to the
    /// process.
    ///
    /// # Errors
    /// One of them cannot start; the error says which setting or address is meant.
    pub async fn start(
        settings: &Settings,
        asked: Option<Role>,
        sockets: Sockets,
    ) -> Result<Self, Error> {
        let mut running = Self::prepared(settings, asked, sockets)?;
        let authority = running.start_issuer().await?;
        if running.roles.contains(&Role::Control) {
            running.start_control(authority.as_ref()).await?;
        }
        running.start_data_planes(authority.as_ref()).await?;
        running.start_outputs()?;
        running.start_collecting();
        running.forget_unused_sockets();
        running.has_begun();
        Ok(running)
    }

    /// Everything stands: the decision log says what listens where, and may delete what is too old by its settings.
    pub(super) fn has_begun(&self) {
        let listeners = self.shared.facts.listeners();
        self.shared.audit.note_posture(vec![("listeners", listeners)]);
        self.shared.audit.begin_retention();
    }

    /// All that is there before the first role.
    pub(super) fn prepared(
        settings: &Settings,
        asked: Option<Role>,
        sockets: Sockets,
    ) -> Result<Self, Error> {
        settings.check(asked)?;
        let roles = settings.roles(asked)?;
        let names: Vec<String> = roles.iter().map(ToString::to_string).collect();
        let shared = Shared::open(settings, &names.join(" "), sockets)?;
        let (warnings, warned) = Publisher::new(settings.warnings.clone());
        let mut running = Self {
            doors: Vec::new(),
            relays: Vec::new(),
            status: None,
            control_api: None,
            admin: None,
            feed: None,
            bundle: None,
            enrolment: None,
            generated_key: None,
            shared,
            settings: settings.clone(),
            file: None,
            asked,
            warnings,
            roles,
            data_planes: Vec::new(),
            control: None,
            control_trust: None,
            issuer: None,
            shipper: None,
            collecting: None,
            connections: Connections::default(),
            own: None,
            outputs: Outputs::default(),
            feeding: Feeding::default(),
            _identities: Vec::new(),
            _tasks: Tasks::new(),
        };
        running._tasks.add(super::warnings::watch(warned, running.shared.clone()));
        if running.shared.audit.is_required() {
            let gate = running.shared.readiness.gate("audit", UNWRITTEN);
            running._tasks.add(show_writing(running.shared.audit.writing(), gate));
        }
        // First: a probe that asks early shall hear what is missing, not a refused connection.
        running.open_status(&names)?;
        running.open_control_api()?;
        Ok(running)
    }

    /// Sockets that were handed to us and that no setting names.
    pub(super) fn forget_unused_sockets(&self) {
        for name in self.shared.sockets.forget_unused() {
            tracing::warn!(name, "a listening socket was handed to this process and is not used");
        }
    }

    fn open_status(&mut self, roles: &[String]) -> Result<(), Error> {
        let settings = &self.settings;
        let Some(address) = settings.status else { return Ok(()) };
        let (listener, bound) = listen(&self.shared.sockets, "status", address)?;
        let mut app = status(&self.shared).merge(facts::router(&self.shared, settings, roles));
        if settings.proof.list_connections {
            if !address.ip().is_loopback() {
                let problem = "needs a status port on loopback: it tells who is connected to whom";
                return Err(missing("proof.list_connections", problem).into());
            }
            app = app.merge(self.connections.router());
        }
        let (opened, left) = (self.shared.sockets.opened(), self.shared.sockets.left());
        self._tasks.add(async move {
            opened.await;
            crate::control::serve::serve(listener, app, left).await;
        });
        self.status = Some(bound);
        self.shared.facts.listens("status", &bound);
        Ok(())
    }

    fn open_control_api(&mut self) -> Result<(), Error> {
        let Some(settings) = &self.settings.control_api else { return Ok(()) };
        settings.check()?;
        let (listener, bound) = listen(&self.shared.sockets, "control_api", settings.listen)?;
        let Shared { facts, plugins, sockets, .. } = &self.shared;
        let app = control_api::router(facts, plugins);
        let (opened, left) = (sockets.opened(), sockets.left());
        self._tasks.add(async move {
            opened.await;
            crate::control::serve::serve(listener, app, left).await;
        });
        self.control_api = Some(bound);
        self.shared.facts.listens("control_api", &bound);
        Ok(())
    }

    /// Follows the file that the settings came from: [`Running::reload`] reads it again.
    pub fn follow(&mut self, file: SettingsFile) {
        self.file = Some(file);
    }

    /// What runs here.
    pub fn facts(&self) -> &Facts {
        &self.shared.facts
    }

    pub(super) async fn start_issuer(&mut self) -> Result<Option<Arc<Authority>>, Error> {
        if !self.roles.contains(&Role::Issuer) {
            return Ok(None);
        }
        let settings = &self.settings.clone();
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
        self.own.get_or_insert_with(|| trust.identity());
        self._identities.push(Box::new(source));
        let feed = match &settings.control_plane {
            Some(_) => {
                self.shared.identities.watch(trust.identity());
                let identity = trust.identity();
                self.ships_as(&identity)?;
                let told = ("issuer", &self.shared, &mut self.feeding, &Arc::default());
                Some(feed(settings, scope::Role::Issuer, Some(&identity), told)?)
            }
            None => None,
        };
        let role =
            IssuerRole::start(settings, issuer, (&authority, &folder), &trust, feed, &self.shared)?;
        self.bundle = role.bundle();
        self.enrolment = role.enrolment();
        self.shared.facts.listens("workload", &issuer.socket.display());
        for (name, address) in [("bundle", self.bundle), ("enrolment", self.enrolment)] {
            if let Some(address) = address {
                self.shared.facts.listens(name, &address);
            }
        }
        self.issuer = Some(role);
        Ok(Some(authority))
    }

    pub(super) async fn start_control(
        &mut self,
        issuer: Option<&Arc<Authority>>,
    ) -> Result<(), Error> {
        self.prepare_control(issuer).await?;
        self.open_control().await
    }

    /// What a control plane needs before its store.
    pub(super) async fn prepare_control(
        &mut self,
        issuer: Option<&Arc<Authority>>,
    ) -> Result<(), Error> {
        if self.settings.control.is_none() {
            return Err(missing("control", "missing; role control needs its settings").into());
        }
        self.control_trust = Some(self.identity("control", Reach::OwnDomain, issuer).await?);
        Ok(())
    }

    /// Opens the store and serves it, once it was prepared.
    pub(super) async fn open_control(&mut self) -> Result<(), Error> {
        let (Some(control), Some(trust)) = (&self.settings.control, &self.control_trust) else {
            return Ok(());
        };
        let role = ControlPlaneRole::start(&self.settings, control, trust, &self.shared).await?;
        self.admin = Some(role.admin());
        self.feed = Some(role.feed());
        self.generated_key = role.generated_key().cloned();
        let told = (role.reach().clone(), role.canaries().cloned());
        self.shared.facts.publishes(role.publisher().clone(), told);
        self.shared.facts.listens("admin", &role.admin());
        self.shared.facts.listens("feed", &role.feed());
        self.control = Some(role);
        Ok(())
    }

    async fn identity(
        &mut self,
        part: &str,
        reach: Reach,
        issuer: Option<&Arc<Authority>>,
    ) -> Result<Federation, Error> {
        let gate = self.shared.readiness.gate("identity", "no identity yet");
        let source = identity_source(&self.settings, part, issuer).await?;
        self.shared.refresh = source.refresh();
        let trust = federation(&self.settings, part, reach, source.identity(), &self.shared);
        self._identities.push(source);
        self.watch(&trust.identity(), gate);
        Ok(trust)
    }

    /// Every identity that comes into use stands in the decision log; one that was taken away makes the process not ready.
    fn watch(&mut self, identity: &Live<crate::identity::Identity>, gate: Gate) {
        let mut identity = identity.clone();
        self.shared.identities.watch(identity.clone());
        self.shared.audit.seal_as(identity.clone());
        self.own.get_or_insert_with(|| identity.clone());
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
                let revisions: Vec<String> =
                    now.trust.bundles.iter().map(TrustBundle::revision).collect();
                let _ = lane.identity(&IdentityRecord {
                    event,
                    spiffe_id: now.id().as_str(),
                    serial: Some(&now.svid.serial),
                    not_after: Some(now.svid.not_after),
                    trust_domains: Some(&domains.join(" ")),
                    bundle_revisions: Some(&revisions.join(" ")),
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

    pub(super) async fn start_data_planes(
        &mut self,
        issuer: Option<&Arc<Authority>>,
    ) -> Result<(), Error> {
        for role in [Role::Sidecar, Role::Ingress] {
            if self.roles.contains(&role) {
                self.start_data_plane(role, issuer).await?;
            }
        }
        Ok(())
    }

    async fn start_data_plane(
        &mut self,
        role: Role,
        issuer: Option<&Arc<Authority>>,
    ) -> Result<(), Error> {
        let settings = &self.settings.clone();
        let limits = settings.limits.limits(settings.proof.limits()?);
        let limits = limits.map_err(settings::Error::from)?;
        let discovery = settings.discovery.clone();
        let (dns, upstreams) = (settings.dns.clone(), settings.upstreams.clone());
        let (workers, without_checks) =
            (settings.worker_count(), settings.disable_upstream_healthcheck);
        let mut plan =
            Plan { workers, limits, dns, upstreams, discovery, without_checks, ..Plan::default() };
        plan.secrets = settings.secrets.clone();
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
                plan.passthrough = ingress.passthrough_doors()?;
                plan.tls = Arc::new(ingress.edge()?);
                plan.acme =
                    ingress.acme.clone().map(|acme| (acme, settings.state_dir.join("acme")));
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
                plan.tcp = sidecar.tcp_doors()?;
                plan.introductions = sidecar.proxy_protocol.introductions()?;
            }
        }
        // An ingress may do without an SVID; a sidecar is nothing without one.
        let trust = match (role, &settings.identity) {
            (Role::Ingress, None) => None,
            _ => Some(self.identity(part, Reach::Everywhere, issuer).await?),
        };
        let identity = trust.as_ref().map(Federation::identity);
        plan.policy_keys = policy_keys(settings)?;
        let told = (part, &self.shared, &mut self.feeding, &plan.freshness);
        let feed = feed(settings, feed_role, identity.as_ref(), told)?;
        if let Some(identity) = &identity {
            self.ships_as(identity)?;
        }
        let role = DataPlaneRole::start(&plan, trust, feed, &self.shared)?;
        self.doors.extend_from_slice(role.addresses());
        for (door, address) in role.addresses() {
            let name = match door {
                Listeners::Inbound => "inbound",
                Listeners::Outbound => "outbound",
                Listeners::Ingress => "ingress",
            };
            self.shared.facts.listens(name, address);
        }
        for (name, address) in role.relays() {
            self.shared.facts.listens(name, address);
        }
        self.relays.extend_from_slice(role.relays());
        let mesh_ports = role.mesh_ports();
        let (configuration, keeper) = (role.configuration(), role.keeper());
        show_refused(part, &configuration, &self.shared);
        let (roster, discovery) = (role.roster().clone(), role.discovery().clone());
        self.shared.facts.has_plane(Plane {
            part,
            configuration,
            keeper,
            roster,
            discovery,
            mesh_ports,
        });
        self.connections.add(role.proofs());
        self.data_planes.push(role);
        Ok(())
    }

    /// What the process is waiting for before it is ready.
    pub fn readiness(&self) -> &Readiness {
        &self.shared.readiness
    }

    /// Not ready any more, and why: whoever sends traffic here shall send it elsewhere.
    pub fn leave(&self, reason: &str) {
        self.feeding.end();
        self.shared.readiness.gate("draining", reason);
    }

    /// How long connections are still taken after [`Running::leave`].
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.settings.drain_grace_seconds)
    }

    /// Lets everything finish, data planes first, and writes what is left of the decision log. `false` when something was
    /// cut off. The data planes have the time of the settings, and what comes after them what is left of it, but some seconds.
    pub async fn drain(mut self) -> bool {
        self.leave("the process was asked to end");
        self.shared.sockets.release();
        let until = Instant::now() + Duration::from_secs(self.settings.drain_seconds);
        let left = || until.saturating_duration_since(Instant::now());
        let planes = std::mem::take(&mut self.data_planes);
        let planes = planes.into_iter().map(|plane| plane.drain(left()));
        let mut clean = join_all(planes).await.into_iter().all(|clean| clean);
        let audit = self.shared.audit.clone();
        let _ = tokio::task::spawn_blocking(move || audit.flush(LAST_SECONDS)).await;
        let _ = self.stop_collecting().await;
        if let Some(control) = self.control {
            clean &= control.drain(left().max(LAST_SECONDS)).await;
        }
        if let Some(issuer) = self.issuer {
            clean &= issuer.drain(LAST_SECONDS).await;
        }
        let audit = self.shared.audit.clone();
        let flushed = tokio::task::spawn_blocking(move || audit.flush(LAST_SECONDS)).await;
        // The files stay for the next start.
        let _ = self.outputs.finish(LAST_SECONDS).await;
        clean & matches!(flushed, Ok(Ok(())))
    }

    /// The decision log, for an end without a drain.
    pub fn log(&self) -> AuditLog {
        self.shared.audit.clone()
    }
}

/// Why a process that must record everything is not ready.
const UNWRITTEN: &str = "the decision log cannot be written";

/// Who has to refuse what cannot be recorded gets no traffic while that is so.
async fn show_writing(mut writing: Live<bool>, gate: Gate) {
    loop {
        match *writing.load() {
            true => gate.open(),
            false => gate.shut(UNWRITTEN),
        }
        if !writing.changed().await {
            return;
        }
    }
}

/// A setting's value, as its file has it.
fn log_name(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|name| Some(name.as_str()?.to_owned()))
        .unwrap_or_default()
}

pub(super) fn missing(field: &'static str, problem: &str) -> settings::Error {
    settings::Error::Setting { field, problem: problem.to_owned() }
}

/// Where configuration comes from: a file, or the control plane's feed with a last good copy on disk.
fn feed(
    settings: &Settings,
    role: scope::Role,
    identity: Option<&Live<crate::identity::Identity>>,
    (part, shared, feeding, freshness): (&str, &Shared, &mut Feeding, &Arc<Freshness>),
) -> Result<Box<dyn Feed>, Error> {
    match (&settings.resources, &settings.control_plane) {
        (Some(_), Some(_)) => {
            Err(missing("resources", "give either resources or control_plane").into())
        }
        (Some(path), None) => {
            let feed = standalone(path)?;
            show_file(&shared.registry, part, &feed.status());
            feeding.follow_file(part, (path.clone(), feed.status()), freshness, shared);
            Ok(Box::new(feed))
        }
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
            let expected = control_id(settings, control)?;
            let connect = FeedConnect::new(control.places()?, identity.clone(), &expected);
            let last_good = last_good(settings, part, &shared.pen);
            let last_good = feeding.guarded(control.crash_guard_seconds, last_good);
            let told = subscriber::Settings::new(role, settings.node_name());
            let told = told.with_others(connect.places().count() - 1);
            let told = told.with_counts(control.labels.clone(), counts(&shared.registry));
            let places = connect.places().clone();
            let subscriber = Subscriber::start(told, connect, last_good);
            let source = (places, subscriber.status());
            feeding.follow_control_plane(part, source, freshness, shared);
            Ok(Box::new(subscriber))
        }
    }
}

/// What this process has counted: a control plane may ask for it while it tries something here.
fn counts(registry: &Registry) -> subscriber::Count {
    let registry = registry.clone();
    Arc::new(move || {
        let denied = registry.sum("wardgate_decisions_total", "outcome=\"deny\"");
        let refused = registry.sum("wardgate_handshakes_refused_total", "");
        Counts {
            decided: registry.sum("wardgate_decisions_total", "") + refused,
            denied: denied + refused,
            requests: registry.sum("wardgate_requests_total", ""),
            failed: registry.sum("wardgate_requests_failed_total", ""),
        }
    })
}

/// Whom we expect as control plane.
pub(super) fn control_id(
    settings: &Settings,
    control: &ControlPlaneSettings,
) -> Result<crate::identity::SpiffeId, settings::Error> {
    match &control.spiffe_id {
        None => settings.own_id("control"),
        Some(text) => text
            .parse()
            .map_err(|error| missing("control_plane.spiffe_id", &format!("{text:?}: {error}"))),
    }
}

/// Configuration from a file.
pub(super) fn standalone(path: &Path) -> Result<FileFeed, crate::sync::file::Error> {
    FileFeed::open(path, process_environment())
}

/// Whether a resources file can be used is seen from outside.
fn show_file(registry: &Registry, part: &str, status: &Live<FileStatus>) {
    const GOOD: &str = "wardgate_resources_file_good";
    const LEFT_OUT: &str = "wardgate_resources_file_left_out";
    let gauge = MetricKind::Gauge;
    let help = "1 when the resources file could be used as it is now, 0 when the version before is in force.";
    registry.describe(GOOD, gauge, help);
    registry.describe(LEFT_OUT, gauge, "Items of the resources file that cannot be used.");
    let now = status.clone();
    let good = move || if now.load().error.is_none() { 1.0 } else { 0.0 };
    registry.computed(GOOD, &[("part", part)], gauge, good);
    let now = status.clone();
    let left_out = move || f64::from(u32::try_from(now.load().left_out).unwrap_or(u32::MAX));
    registry.computed(LEFT_OUT, &[("part", part)], gauge, left_out);
}

/// The last good copy; a damaged one is reported, left as it is, and not used.
pub(super) fn last_good(
    settings: &Settings,
    part: &str,
    pen: &Pen,
) -> Option<(LastGood, Option<Saved>)> {
    let path = settings.state_dir.join(format!("last-good-{part}"));
    match LastGood::open(&path, part) {
        Ok((place, saved)) => {
            if let Some(error) = place.damage() {
                tracing::error!("{error}");
            }
            Some((place.with_pen(pen), saved))
        }
        Err(error) => {
            tracing::error!("{}", causes(&error));
            None
        }
    }
}
