//! What a process is told once at its start: one YAML file, strict; `docs/settings.md` is written from these types.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::control_api::ControlApiSettings;
use super::settings_file::SettingsFile;
use super::stapling::Stapling;
use super::warnings::WarningSettings;
use crate::acme::AcmeSettings;
use crate::audit::{ArchiveSettings, InvalidOutput, OutputSettings};
use crate::control::access::{self, KeySettings};
use crate::control::history::HistorySettings;
use crate::control::standalone::StandaloneSettings;
use crate::federation::EndpointSettings;
use crate::identity::{FileSettings, Rules, SpiffeId, TrustDomain, WorkloadApiSettings};
use crate::issuer::{EnrolSettings, JwtSettings, KubernetesSettings};
use crate::model::Workload;
use crate::mtls::{EdgeTls, EdgeTlsSettings};
use crate::observe::{DecisionLogSettings, LogSettings};
use crate::pipeline::{CacheSettings, CacheZones};
use crate::proxy::{
    Introductions, InvalidLimit, LimitSettings, PassthroughDoor, PassthroughSettings, ProofLimits,
    ProxyProtocolSettings, RealIpSettings, Senders, TcpDoor, TcpSettings,
};
use crate::secrets::SecretSettings;
use crate::snapshot::RouterSettings;
use crate::store;
use crate::store::sealed::SealingSettings;
use crate::sync::canary::CanarySettings;
use crate::sync::file::process_environment;
use crate::upstream::{DiscoverySettings, DnsSettings, UpstreamSettings};

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not there or not readable.
    #[error("cannot read the settings file {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It wants an environment variable that is not set.
    #[error(
        "the settings file {path}: the environment variable {name} is not set, and ${{{{{name}}}}} has no default"
    )]
    Variable {
        /// Which file.
        path: PathBuf,
        /// Which variable.
        name: String,
    },
    /// It is not YAML of this shape; the sentence names line and field.
    #[error("the settings file {path} is not valid: {detail}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        detail: String,
    },
    /// A setting contradicts another one, or is missing.
    #[error("setting {field}: {problem}")]
    Setting {
        /// The setting's name, with dots.
        field: &'static str,
        /// What is wrong, and what is expected.
        problem: String,
    },
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Beside one workload: mTLS in, mTLS out.
    Sidecar,
    /// At the edge: public clients in, mTLS towards workloads.
    Ingress,
    /// Admin API, store, feed.
    Control,
    /// Issues identities over the SPIFFE Workload API.
    Issuer,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sidecar => "sidecar",
            Self::Ingress => "ingress",
            Self::Control => "control",
            Self::Issuer => "issuer",
        })
    }
}

/// One process' settings. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What the process does; `--role` on the command line wins.
    #[serde(default)]
    pub role: Option<Role>,
    /// Several roles in one process, in place of `role`.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// The trust domain that this process belongs to.
    pub trust_domain: String,
    /// Where state is kept: last good configuration, admin key, issuer's authority, embedded store.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// The process' name in the control plane's list; the host's name when not given.
    #[serde(default)]
    pub node: Option<String>,
    /// Where the process' own identity comes from.
    #[serde(default)]
    pub identity: Option<IdentitySettings>,
    /// Where configuration comes from.
    #[serde(default)]
    pub control_plane: Option<ControlPlaneSettings>,
    /// Configuration from a file in place of a control plane: YAML with a last line `#END`, or JSON.
    #[serde(default)]
    pub resources: Option<PathBuf>,
    /// Files with the public keys (PEM, Ed25519 or P-256) of those who may write identity policies. With any, a data plane takes
    /// only policies that one of them has signed with `wardgate policy sign` (docs/safety.md).
    #[serde(default)]
    pub policy_keys: Vec<PathBuf>,
    /// Settings of role sidecar.
    #[serde(default)]
    pub sidecar: Option<SidecarSettings>,
    /// Settings of role ingress.
    #[serde(default)]
    pub ingress: Option<IngressSettings>,
    /// Settings of role control.
    #[serde(default)]
    pub control: Option<ControlSettings>,
    /// Settings of role issuer.
    #[serde(default)]
    pub issuer: Option<IssuerSettings>,
    /// Health, readiness, metrics and what runs here; not opened when not given. APISIX has it at 127.0.0.1:7085.
    #[serde(default)]
    pub status: Option<SocketAddr>,
    /// How requests find their routes. The same for control plane and data planes.
    #[serde(default)]
    pub router: RouterSettings,
    /// APISIX's control API; not opened when not given.
    #[serde(default)]
    pub control_api: Option<ControlApiSettings>,
    /// What is logged to standard error.
    #[serde(default)]
    pub log: LogSettings,
    /// The decision log.
    #[serde(default)]
    pub audit: AuditSettings,
    /// What the decision log says, how long it is kept, and what is left out of it.
    #[serde(default)]
    pub decision_log: DecisionLogSettings,
    /// When to warn that a certificate ends.
    #[serde(default)]
    pub warnings: WarningSettings,
    /// Threads that carry traffic; as many as there are cores when not given.
    #[serde(default)]
    pub workers: Option<usize>,
    /// Seconds that connections get to finish when the process is asked to end.
    #[serde(default = "default_drain_seconds")]
    pub drain_seconds: u64,
    /// Seconds that new connections are still taken after the process was asked to end, while it says that it is not ready:
    /// the time that a load balancer or Kubernetes needs to send its traffic elsewhere.
    #[serde(default)]
    pub drain_grace_seconds: u64,
    /// Seconds that a new process gets to be ready when it takes over from this one (`wardgate upgrade`).
    #[serde(default = "default_upgrade_seconds")]
    pub upgrade_seconds: u64,
    /// What ends connections that have lost their proof, and how fast.
    #[serde(default)]
    pub proof: ProofSettings,
    /// How exactly the SVIDs of peers are judged where SPIFFE's specifications leave it open.
    #[serde(default)]
    pub verification: VerificationSettings,
    /// The registries that know the nodes of services, for roles sidecar and ingress.
    #[serde(default)]
    pub discovery: DiscoverySettings,
    /// Upstreams' `checks` are read and not carried out: every node counts as healthy (docs/health.md).
    #[serde(default)]
    pub disable_upstream_healthcheck: bool,
    /// How the names of upstreams' nodes are resolved, for roles sidecar and ingress.
    #[serde(default)]
    pub dns: DnsSettings,
    /// What holds for all upstreams, for roles sidecar and ingress.
    #[serde(default)]
    pub upstreams: UpstreamSettings,
    /// How much of everything a data plane allows.
    #[serde(default)]
    pub limits: LimitSettings,
    /// Where plugins store answers of upstreams. The same for control plane and data planes.
    #[serde(default)]
    pub proxy_cache: CacheSettings,
    /// Secrets that resources refer to (`$secret://`, `$env://`), for roles sidecar and ingress.
    #[serde(default)]
    pub secrets: SecretSettings,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/wardgate".into()
}

const fn default_drain_seconds() -> u64 {
    30
}

const fn default_upgrade_seconds() -> u64 {
    60
}

/// Where the process' own identity comes from.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "source", rename_all = "snake_case", deny_unknown_fields)]
pub enum IdentitySettings {
    /// The SPIFFE Workload API: SPIRE's agent, or our issuer.
    WorkloadApi(WorkloadApiSettings),
    /// Files that something else rotates.
    Files(FileSettings),
    /// An issuer on another machine, by a join token or a Kubernetes token.
    Enrol(Box<EnrolSettings>),
    /// The issuer in this very process (role issuer).
    Issuer {
        /// The identity to take; `spiffe://<trust domain>/wardgate/<role>` when not given.
        #[serde(default)]
        spiffe_id: Option<String>,
    },
}

/// The control plane's feed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlPlaneSettings {
    /// `host:port` of the feed.
    #[serde(default)]
    pub address: Option<String>,
    /// In place of `address`: several control planes over one store. A data plane begins with one by chance, and is with another
    /// within two seconds when its own dies.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Whom we expect there; `spiffe://<trust domain>/wardgate/control` when not given.
    #[serde(default)]
    pub spiffe_id: Option<String>,
    /// A data plane that dies three times within so many seconds after it took a revision begins with the last one that it lived
    /// with, and takes no other until there is a newer one; 0: never (docs/safety.md).
    #[serde(default = "default_crash_guard_seconds")]
    pub crash_guard_seconds: u32,
    /// What this data plane is, for canary pushes that choose by label: `{canary: "yes"}` (`control.canary.labels`, docs/safety.md).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

const fn default_crash_guard_seconds() -> u32 {
    60
}

impl ControlPlaneSettings {
    /// Where control planes are: at least one, none twice.
    ///
    /// # Errors
    /// Both fields are given, or neither; an address is none, or is there twice.
    pub fn places(&self) -> Result<&[String], Error> {
        let wrong = |field, problem: String| Err(Error::Setting { field, problem });
        let (field, places) = match (&self.address, &*self.addresses) {
            (Some(_), [_, ..]) => {
                let problem = "give either address or addresses".to_owned();
                return wrong("control_plane.addresses", problem);
            }
            (None, []) => {
                let problem = "missing; expected host:port of a control plane's feed".to_owned();
                return wrong("control_plane.address", problem);
            }
            (Some(address), []) => ("control_plane.address", std::slice::from_ref(address)),
            (None, addresses) => ("control_plane.addresses", addresses),
        };
        let is_place = |text: &str| {
            let parts = text.rsplit_once(':');
            parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        for (at, place) in places.iter().enumerate() {
            if !is_place(place) {
                return wrong(field, format!("expected host:port, got {place:?}"));
            }
            if places[..at].contains(place) {
                return wrong(field, format!("{place:?} is there twice"));
            }
        }
        Ok(places)
    }
}

/// Settings of role sidecar.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SidecarSettings {
    /// The workload: `http://host:port`, or `grpc://host:port` for one that speaks HTTP/2 without TLS.
    /// Requests that are allowed and match no inbound route go there.
    #[serde(default)]
    pub app: Option<String>,
    /// Where peers reach the workload over mTLS.
    #[serde(default = "default_inbound")]
    pub inbound: SocketAddr,
    /// Where the workload sends its own calls.
    #[serde(default = "default_outbound")]
    pub outbound: SocketAddr,
    /// Where the PROXY protocol is spoken to us; nowhere when not given.
    #[serde(default)]
    pub proxy_protocol: SidecarProxyProtocol,
    /// TCP applications beside the one that speaks HTTP.
    #[serde(default)]
    pub tcp: Vec<TcpSettings>,
}

/// The PROXY protocol at a sidecar's doors. It tells for whom a connection is, and never who it is: that is the handshake's.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SidecarProxyProtocol {
    /// At `inbound`.
    pub inbound: Option<ProxyProtocolSettings>,
    /// At `outbound`.
    pub outbound: Option<ProxyProtocolSettings>,
}

impl SidecarProxyProtocol {
    /// As the doors `inbound` and `outbound` take them.
    ///
    /// # Errors
    /// The sentence names the setting.
    pub fn introductions(&self) -> Result<[Option<Arc<Introductions>>; 2], Error> {
        Ok([
            introductions("sidecar.proxy_protocol.inbound", self.inbound.as_ref())?,
            introductions("sidecar.proxy_protocol.outbound", self.outbound.as_ref())?,
        ])
    }
}

/// The PROXY protocol at an ingress' doors.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IngressProxyProtocol {
    /// At `http`.
    pub http: Option<ProxyProtocolSettings>,
    /// At `https`.
    pub https: Option<ProxyProtocolSettings>,
}

impl IngressProxyProtocol {
    /// As the doors `http` and `https` take them.
    ///
    /// # Errors
    /// The sentence names the setting.
    pub fn introductions(&self) -> Result<[Option<Arc<Introductions>>; 2], Error> {
        Ok([
            introductions("ingress.proxy_protocol.http", self.http.as_ref())?,
            introductions("ingress.proxy_protocol.https", self.https.as_ref())?,
        ])
    }
}

fn introductions(
    field: &'static str,
    settings: Option<&ProxyProtocolSettings>,
) -> Result<Option<Arc<Introductions>>, Error> {
    let Some(settings) = settings else { return Ok(None) };
    let parsed = settings.parse();
    parsed
        .map(|introductions| Some(Arc::new(introductions)))
        .map_err(|error| Error::Setting { field, problem: error.to_string() })
}

impl From<InvalidOutput> for Error {
    fn from(error: InvalidOutput) -> Self {
        Self::Setting { field: "audit.outputs", problem: error.to_string() }
    }
}

impl From<InvalidLimit> for Error {
    fn from(InvalidLimit { field, problem }: InvalidLimit) -> Self {
        Self::Setting { field, problem }
    }
}

fn default_inbound() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 15006))
}

fn default_outbound() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 15001))
}

/// Settings of role ingress.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IngressSettings {
    /// Plain HTTP; `null` opens none.
    #[serde(default = "default_http")]
    pub http: Option<SocketAddr>,
    /// HTTPS with the certificates of the `ssls` resources; `null` opens none.
    #[serde(default = "default_https")]
    pub https: Option<SocketAddr>,
    /// What TLS offers to public clients.
    #[serde(default)]
    pub tls: EdgeTlsSettings,
    /// Obtains certificates by ACME; none are when not given.
    #[serde(default)]
    pub acme: Option<AcmeSettings>,
    /// Fetches what the issuers of these certificates say of them (OCSP), and shows it in handshakes. Asked are the responders
    /// that a certificate names, over plain HTTP, as is usual: the answers are signed.
    #[serde(default = "default_ocsp_stapling")]
    pub ocsp_stapling: bool,
    /// Asks responders at private addresses as well: for an authority of one's own.
    #[serde(default)]
    pub ocsp_private_addresses: bool,
    /// Where the PROXY protocol is spoken to us; nowhere when not given.
    #[serde(default)]
    pub proxy_protocol: IngressProxyProtocol,
    /// Where TLS is passed through to servers that terminate it themselves.
    #[serde(default)]
    pub passthrough: Vec<PassthroughSettings>,
    /// Addresses and networks of the proxies before us whose `X-Forwarded-For`, `-Proto`, `-Host`, `-Port` and `Forwarded` are
    /// believed; what anybody else says there is taken off. When not given, nobody's `-Proto`, `-Host`, `-Port` and `Forwarded`
    /// are, and `X-Forwarded-For` is continued whoever began it.
    #[serde(default)]
    pub trusted_addresses: Option<Vec<String>>,
    /// Where the caller's address is taken from; from the connection when not given.
    #[serde(default)]
    pub real_ip: Option<RealIpSettings>,
}

impl SidecarSettings {
    /// The TCP applications.
    ///
    /// # Errors
    /// The sentence names the setting.
    pub fn tcp_doors(&self) -> Result<Vec<TcpDoor>, Error> {
        TcpSettings::parse(&self.tcp)
            .map_err(|error| Error::Setting { field: "sidecar.tcp", problem: error.to_string() })
    }
}

impl IngressSettings {
    /// Where TLS is passed through.
    ///
    /// # Errors
    /// The sentence names the setting.
    pub fn passthrough_doors(&self) -> Result<Vec<PassthroughDoor>, Error> {
        PassthroughSettings::parse(&self.passthrough).map_err(|error| Error::Setting {
            field: "ingress.passthrough",
            problem: error.to_string(),
        })
    }

    /// Who may speak for others.
    ///
    /// # Errors
    /// The sentence names the setting.
    pub fn senders(&self) -> Result<Arc<Senders>, Error> {
        let trusted = self.trusted_addresses.as_deref();
        Senders::parse(trusted, self.real_ip.as_ref())
            .map(Arc::new)
            .map_err(|error| Error::Setting { field: "ingress", problem: error.to_string() })
    }

    /// What TLS offers to public clients.
    ///
    /// # Errors
    /// A setting asks for what is not spoken; the error names it.
    pub fn edge(&self) -> Result<EdgeTls, Error> {
        EdgeTls::new(&self.tls)
            .map_err(|error| Error::Setting { field: "ingress.tls", problem: error.to_string() })
    }

    /// How OCSP answers are fetched, if they are.
    pub fn stapling(&self) -> Option<Stapling> {
        self.ocsp_stapling.then_some(Stapling { private_addresses: self.ocsp_private_addresses })
    }
}

const fn default_ocsp_stapling() -> bool {
    true
}

#[expect(clippy::unnecessary_wraps, reason = "the setting itself is optional")]
fn default_http() -> Option<SocketAddr> {
    Some(SocketAddr::from(([0, 0, 0, 0], 9080)))
}

#[expect(clippy::unnecessary_wraps, reason = "the setting itself is optional")]
fn default_https() -> Option<SocketAddr> {
    Some(SocketAddr::from(([0, 0, 0, 0], 9443)))
}

/// Settings of role control.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlSettings {
    /// The Admin API. It speaks plain HTTP on loopback; elsewhere it needs `access.tls`.
    #[serde(default = "default_admin")]
    pub admin: SocketAddr,
    /// The feed for data planes, over mTLS.
    #[serde(default = "default_feed")]
    pub feed: SocketAddr,
    /// Where the declared state lives; an embedded file in `state_dir` when not given.
    #[serde(default)]
    pub store: Option<store::settings::Settings>,
    /// Admin keys beside the generated one.
    #[serde(default)]
    pub keys: Vec<KeySettings>,
    /// The key that seals private keys in the store; `sealing.key` in `state_dir` when not given, made at the first start.
    /// Control planes that share a store share this file.
    #[serde(default)]
    pub sealing_key: Option<PathBuf>,
    /// The keys that seal secrets in the store, when they are not in one file.
    #[serde(default)]
    pub sealing: SealingSettings,
    /// Names, beside `localhost` and plain addresses, under which the Admin API may be called. A web page that rebinds its own
    /// name to this address does not get through.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Who reaches the Admin API, and how.
    #[serde(default)]
    pub access: access::Settings,
    /// SPIFFE ID patterns of data planes that may ask for an ingress' configuration;
    /// `spiffe://<trust domain>/wardgate/ingress` when not given.
    #[serde(default)]
    pub ingress_ids: Vec<String>,
    /// The archive of all decision logs.
    #[serde(default)]
    pub audit: ArchiveSettings,
    /// How much of the past of resources is kept.
    #[serde(default)]
    pub history: HistorySettings,
    /// The configuration comes whole, by `PUT /apisix/admin/configs`, and rests in memory, in place of `store`: APISIX's API-driven
    /// standalone mode, for ADC's `apisix-standalone` backend and the APISIX ingress controller. `{}` turns it on.
    #[serde(default)]
    pub standalone: Option<StandaloneSettings>,
    /// Changes go to some data planes first, and to the others when these refuse and fail no more than before; not done when not
    /// given. `{}` turns it on.
    #[serde(default)]
    pub canary: Option<CanarySettings>,
}

fn default_admin() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9180))
}

fn default_feed() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 9185))
}

/// Whether a process hands its decision log to the control plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShipSetting {
    /// When there is a control plane: `control_plane`, or role control in the same process.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Settings of role issuer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuerSettings {
    /// Where the Workload API is served.
    pub socket: PathBuf,
    /// Where workloads on other machines enrol; not opened when not given.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Kubernetes clusters whose service accounts may enrol.
    #[serde(default)]
    pub kubernetes: Vec<KubernetesSettings>,
    /// The authority's folder; `authority` in `state_dir` when not given. Made at the first start.
    #[serde(default)]
    pub authority: Option<PathBuf>,
    /// Registration entries beside those of the control plane.
    #[serde(default)]
    pub entries: Vec<Workload>,
    /// A file with the passphrase of the authority's private keys, readable by its owner alone; the environment's
    /// `WARDGATE_CA_PASSPHRASE` when not given. With neither, new keys are kept in files of mode 0600 without encryption.
    #[serde(default)]
    pub passphrase_file: Option<PathBuf>,
    /// Seconds that a revocation list holds, 60 to 2592000; it is signed anew at half of that.
    #[serde(default = "default_list_seconds")]
    pub crl_seconds: u64,
    /// When the root is replaced by itself; by `wardgate identity rotate-root` alone when not given.
    #[serde(default)]
    pub root_rotation: Option<RootRotationSettings>,
    /// Publishes our trust domain's bundle for others; not opened when not given.
    #[serde(default)]
    pub bundle_endpoint: Option<EndpointSettings>,
    /// How JWT-SVIDs are issued.
    #[serde(default)]
    pub jwt: JwtSettings,
}

/// What ends connections that have lost their proof, and how fast. See `docs/proof.md`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProofSettings {
    /// Seconds for what is under way when trust or permission is taken away (bundle, revocation list, deny list, policy, our
    /// own identity); then it is cut off. 0 cuts it off at once.
    pub drain_within_seconds: f64,
    /// Seconds for what is under way when a certificate is over or a connection too old.
    pub expiry_drain_within_seconds: f64,
    /// The age in seconds at which an mTLS connection between workloads is ended, up to a tenth earlier so that not all end at
    /// once. 0: as old as its certificates.
    pub max_age_seconds: u64,
    /// The same for connections from callers without an identity, at an ingress. 0: as old as they like.
    pub public_max_age_seconds: u64,
    /// Serves `GET /connections` on the status port: who is connected to whom, and until when. Needs a status port on loopback.
    pub list_connections: bool,
}

impl Default for ProofSettings {
    fn default() -> Self {
        let limits = ProofLimits::default();
        Self {
            drain_within_seconds: limits.drain_within.as_secs_f64(),
            expiry_drain_within_seconds: limits.expiry_drain_within.as_secs_f64(),
            max_age_seconds: limits.max_age.unwrap_or_default().as_secs(),
            public_max_age_seconds: limits.public_max_age.unwrap_or_default().as_secs(),
            list_connections: false,
        }
    }
}

impl ProofSettings {
    /// As the data plane takes it.
    ///
    /// # Errors
    /// A time is negative, or longer than a day.
    pub fn limits(&self) -> Result<ProofLimits, Error> {
        let bound = |field, seconds: f64| match seconds {
            0.0..=86_400.0 => Ok(Duration::from_secs_f64(seconds)),
            _ => Err(Error::Setting { field, problem: format!("{seconds}; expected 0 to 86400") }),
        };
        let age = |seconds| (seconds > 0).then(|| Duration::from_secs(seconds));
        Ok(ProofLimits {
            drain_within: bound("proof.drain_within_seconds", self.drain_within_seconds)?,
            expiry_drain_within: bound(
                "proof.expiry_drain_within_seconds",
                self.expiry_drain_within_seconds,
            )?,
            max_age: age(self.max_age_seconds),
            public_max_age: age(self.public_max_age_seconds),
        })
    }
}

/// How exactly the SVIDs of peers are judged. See `docs/spiffe-conformance.md`.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VerificationSettings {
    /// Refuses what the specification asks of issuers and not of verifiers: a key usage that is not critical, a name extension
    /// that is not critical beside an empty subject.
    pub strict: bool,
    /// Seconds that a certificate may be used before its notBefore, 0 to 60: for clocks that differ. There is no leeway after
    /// notAfter.
    #[schemars(range(max = 60))]
    pub not_before_leeway_seconds: u8,
}

impl VerificationSettings {
    /// As the verifier takes it.
    pub fn rules(self) -> Rules {
        Rules { strict: self.strict, not_before_leeway: self.not_before_leeway_seconds }
    }

    pub(super) fn check(self) -> Result<(), Error> {
        match self.not_before_leeway_seconds {
            0..=60 => Ok(()),
            seconds => Err(Error::Setting {
                field: "verification.not_before_leeway_seconds",
                problem: format!("{seconds}; expected 0 to 60"),
            }),
        }
    }
}

const fn default_list_seconds() -> u64 {
    86_400
}

/// When an issuer's root is replaced by itself.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RootRotationSettings {
    /// Seconds that a root signs before the next one is prepared, at least 10.
    pub every_seconds: u64,
    /// Seconds that a new root is in the bundle before it signs, and the former one at least after that. When not given: 300, or
    /// half of the longest SVID's life where that is more. The former root stays in any case as long as a live SVID chains to it.
    #[serde(default)]
    pub overlap_seconds: Option<u64>,
}

/// Settings of the decision log.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditSettings {
    /// The file; `audit.jsonl` in `state_dir` when not given.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// Writes every record to standard output as well.
    #[serde(default)]
    pub stdout: bool,
    /// Where records are handed on to. They are taken from the file, which is there in any case (docs/audit-outputs.md).
    #[serde(default)]
    pub outputs: Vec<OutputSettings>,
    /// Whether records go to the control plane's archive (docs/audit-collection.md).
    #[serde(default)]
    pub ship: ShipSetting,
}

impl Settings {
    /// Reads and checks a settings file.
    ///
    /// # Errors
    /// The file cannot be read, is not of this shape, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Ok(SettingsFile::read(path, &process_environment())?.settings)
    }

    /// The settings of an embedded mode: nothing but a trust domain and a place for state.
    pub fn embedded(trust_domain: &str, state_dir: &Path) -> Self {
        Self {
            role: None,
            roles: Vec::new(),
            trust_domain: trust_domain.to_owned(),
            state_dir: state_dir.to_owned(),
            node: None,
            identity: None,
            control_plane: None,
            policy_keys: Vec::new(),
            resources: None,
            sidecar: None,
            ingress: None,
            control: None,
            issuer: None,
            status: None,
            router: RouterSettings::default(),
            control_api: None,
            log: LogSettings::default(),
            audit: AuditSettings::default(),
            decision_log: DecisionLogSettings::default(),
            warnings: WarningSettings::default(),
            workers: Some(1),
            drain_seconds: 5,
            drain_grace_seconds: 0,
            upgrade_seconds: default_upgrade_seconds(),
            proof: ProofSettings::default(),
            verification: VerificationSettings::default(),
            discovery: DiscoverySettings::default(),
            disable_upstream_healthcheck: false,
            dns: DnsSettings::default(),
            upstreams: UpstreamSettings::default(),
            limits: LimitSettings::default(),
            proxy_cache: CacheSettings::default(),
            secrets: SecretSettings::default(),
        }
    }

    /// The trust domain.
    ///
    /// # Errors
    /// The name is none.
    pub fn trust_domain(&self) -> Result<TrustDomain, Error> {
        self.trust_domain.parse().map_err(|error| Error::Setting {
            field: "trust_domain",
            problem: format!("{:?}: {error}", self.trust_domain),
        })
    }

    /// The identity of one of Wardgate's own parts: `spiffe://<trust domain>/wardgate/<part>`.
    ///
    /// # Errors
    /// The trust domain's name is none.
    pub fn own_id(&self, part: &str) -> Result<SpiffeId, Error> {
        self.trust_domain()?
            .workload(&format!("/wardgate/{part}"))
            .map_err(|error| Error::Setting { field: "trust_domain", problem: error.to_string() })
    }

    /// The roles that the process starts.
    ///
    /// # Errors
    /// None is named, or both `role` and `roles` are.
    pub fn roles(&self, asked: Option<Role>) -> Result<Vec<Role>, Error> {
        match (asked, self.role, &*self.roles) {
            (Some(asked), _, _) => Ok(vec![asked]),
            (None, Some(role), []) => Ok(vec![role]),
            (None, None, [_, ..]) => Ok(self.roles.clone()),
            (None, None, []) => Err(Error::Setting {
                field: "role",
                problem: "missing; expected sidecar, ingress, control or issuer".into(),
            }),
            (None, Some(_), _) => {
                Err(Error::Setting { field: "roles", problem: "give either role or roles".into() })
            }
        }
    }

    /// Where plugins store answers of upstreams.
    ///
    /// # Errors
    /// A zone cannot be; the error names its field.
    pub fn cache_zones(&self) -> Result<CacheZones, Error> {
        let zones = self.proxy_cache.zones(&self.state_dir.join("cache"));
        zones.map_err(|error| Error::Setting { field: "proxy_cache", problem: error.to_string() })
    }

    /// Where the decision log is.
    pub fn audit_file(&self) -> PathBuf {
        self.audit.file.clone().unwrap_or_else(|| self.state_dir.join("audit.jsonl"))
    }

    /// The process' name in the control plane's list.
    pub fn node_name(&self) -> String {
        let system = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.node.clone().unwrap_or_else(system)
    }

    /// Threads that carry traffic.
    pub fn worker_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.workers.unwrap_or_else(cores).max(1)
    }
}
