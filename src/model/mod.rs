//! What an operator declares: kinds, resources and their changes, as JSON on every wire.
//!
//! This room knows no socket, no TLS and no HTTP library. It is a door: it defines nothing itself.

mod closed;
mod consumer;
mod discovery;
mod health;
mod identity_mode;
mod meta;
mod plugin_set;
mod policy;
mod proto;
mod references;
mod resilience;
mod resource;
mod route;
mod schema;
mod secret;
mod secret_manager;
mod stream_route;
mod trust;
mod upstream;
mod workload;

pub use consumer::{Consumer, ConsumerGroup, Credential};
pub use discovery::{DiscoveryArgs, DiscoveryType};
pub use health::{
    ActiveCheck, ActiveHealthy, ActiveUnhealthy, CheckType, Checks, PassiveCheck, PassiveHealthy,
    PassiveUnhealthy,
};
pub use identity_mode::{IdentityMode, Strictness};
pub use meta::{Id, Labels, Redacted, Revision, Timeout};
pub use plugin_set::{GlobalRule, PluginConfig, PluginMeta, PluginSet, PluginSettings};
pub use policy::{
    From, IdentityPolicy, Mode, PolicyAction, PolicyRule, PolicySelector, PolicySignature,
    TimeWindow, To, ValueMatch, When,
};
pub use proto::Proto;
pub use references::{Borne, Replace};
pub use resilience::{Hedging, OutlierDetection, Resilience, RetryBudget, UpstreamLimits};
pub use resource::{Body, Change, Invalid, Kind, Rejected, Resource};
pub use route::{
    Listeners, Method, OneOrMany, Recording, Route, Service, Status, WorkloadSelector,
};
pub use schema::{plain, schema_of};
pub use secret::{Ssl, SslClient, SslType, TlsVersion};
pub use secret_manager::{
    AwsSecrets, GcpAccount, GcpSecrets, ManagerType, SecretManager, SecretReference, VaultSecrets,
    Verified,
};
pub use stream_route::{StreamLogger, StreamProtocol, StreamRoute, StreamScheme, StreamUpstream};
pub use trust::{
    BundleEndpoint, BundleText, DomainRevocation, DomainTrust, EndpointProfile, Revocation,
    RevocationStrictness,
};
pub use upstream::{
    Balance, HashOn, KeepalivePool, Node, Nodes, PassHost, ProxyProtocol, Scheme, Upstream,
    UpstreamIdentity, UpstreamTls,
};
pub use workload::Workload;
