//! Kinds, resources and their changes.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Consumer, ConsumerGroup, Credential, DomainTrust, GlobalRule, Id, IdentityMode, IdentityPolicy,
    PluginConfig, Proto, Revision, Revocation, Route, SecretManager, Service, Ssl, StreamRoute,
    Upstream, Workload,
};

/// Everything that an operator can declare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the kinds' own names")]
pub enum Kind {
    Routes,
    Services,
    Upstreams,
    Consumers,
    Credentials,
    ConsumerGroups,
    PluginConfigs,
    GlobalRules,
    PluginMetadata,
    Ssls,
    Secrets,
    Protos,
    StreamRoutes,
    IdentityPolicies,
    IdentityModes,
    Workloads,
    TrustDomains,
    Revocations,
}

impl Kind {
    /// All kinds, referenced ones before those that refer to them.
    pub const ALL: [Self; 18] = [
        Self::TrustDomains,
        Self::Revocations,
        Self::Workloads,
        Self::IdentityModes,
        Self::IdentityPolicies,
        Self::Secrets,
        Self::Ssls,
        Self::Protos,
        Self::PluginMetadata,
        Self::Upstreams,
        Self::PluginConfigs,
        Self::ConsumerGroups,
        Self::Consumers,
        Self::Credentials,
        Self::Services,
        Self::Routes,
        Self::StreamRoutes,
        Self::GlobalRules,
    ];

    /// The kind's name on every wire. A credential lives below its consumer, see [`Kind::split_key`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Services => "services",
            Self::Upstreams => "upstreams",
            Self::Consumers => "consumers",
            Self::Credentials => "credentials",
            Self::ConsumerGroups => "consumer_groups",
            Self::PluginConfigs => "plugin_configs",
            Self::GlobalRules => "global_rules",
            Self::PluginMetadata => "plugin_metadata",
            Self::Ssls => "ssls",
            Self::Secrets => "secrets",
            Self::Protos => "protos",
            Self::StreamRoutes => "stream_routes",
            Self::IdentityPolicies => "identity_policies",
            Self::IdentityModes => "identity_modes",
            Self::Workloads => "workloads",
            Self::TrustDomains => "trust_domains",
            Self::Revocations => "revocations",
        }
    }

    /// One of them, as error messages say it.
    pub const fn singular(self) -> &'static str {
        match self {
            Self::Routes => "route",
            Self::Services => "service",
            Self::Upstreams => "upstream",
            Self::Consumers => "consumer",
            Self::Credentials => "credential",
            Self::ConsumerGroups => "consumer group",
            Self::PluginConfigs => "plugin config",
            Self::GlobalRules => "global rule",
            Self::PluginMetadata => "plugin_metadata",
            Self::Ssls => "ssl",
            Self::Secrets => "secret",
            Self::Protos => "proto",
            Self::StreamRoutes => "stream route",
            Self::IdentityPolicies => "identity policy",
            Self::IdentityModes => "identity mode",
            Self::Workloads => "workload",
            Self::TrustDomains => "trust domain",
            Self::Revocations => "revocation",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The key below the store's prefix, as APISIX lays it out: `/routes/1`, `/consumers/bob/credentials/one`.
    pub fn key(self, id: &Id) -> String {
        match self {
            Self::Credentials => format!("/consumers/{id}"),
            _ => format!("/{}/{id}", self.name()),
        }
    }

    /// Reads a key below the store's prefix; `None` for placeholders and whatever else lives there.
    /// ```
    /// # use wardgate::model::Kind;
    /// let (kind, id) = Kind::split_key("/consumers/bob/credentials/one").unwrap();
    /// assert_eq!((kind, id.as_str()), (Kind::Credentials, "bob/credentials/one"));
    /// assert!(Kind::split_key("/routes/").is_none());
    /// ```
    pub fn split_key(key: &str) -> Option<(Self, Id)> {
        let (folder, rest) = key.strip_prefix('/')?.split_once('/')?;
        let kind = match Self::named(folder)? {
            Self::Consumers if rest.contains("/credentials/") => Self::Credentials,
            Self::Credentials => return None,
            kind => kind,
        };
        // A manager's id has two parts, and no other kind's has.
        if rest.contains('/') != matches!(kind, Self::Secrets | Self::Credentials) {
            return None;
        }
        Some((kind, Id::parse(rest).ok()?))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a resource cannot be what it says. The sentence names the field and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    /// An error with this sentence.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

/// A declared resource, parsed by its kind.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "one variant a kind")]
pub enum Body {
    Route(Box<Route>),
    Service(Box<Service>),
    Upstream(Box<Upstream>),
    Consumer(Box<Consumer>),
    Credential(Box<Credential>),
    ConsumerGroup(Box<ConsumerGroup>),
    PluginConfig(Box<PluginConfig>),
    GlobalRule(Box<GlobalRule>),
    PluginMetadata(Value),
    Ssl(Box<Ssl>),
    Secret(Box<SecretManager>),
    Proto(Box<Proto>),
    StreamRoute(Box<StreamRoute>),
    IdentityPolicy(Box<IdentityPolicy>),
    IdentityMode(Box<IdentityMode>),
    Workload(Box<Workload>),
    TrustDomain(Box<DomainTrust>),
    Revocation(Box<Revocation>),
}

impl Body {
    /// Parses what the store or a feed holds.
    ///
    /// # Errors
    /// The value is not of the kind's shape; the sentence says where and why.
    pub fn parse(kind: Kind, value: &Value) -> Result<Self, Invalid> {
        fn of<T: DeserializeOwned>(value: &Value) -> Result<Box<T>, Invalid> {
            T::deserialize(value).map(Box::new).map_err(|error| Invalid(error.to_string()))
        }
        Ok(match kind {
            Kind::Routes => Self::Route(of(value)?),
            Kind::Services => Self::Service(of(value)?),
            Kind::Upstreams => Self::Upstream(of(value)?),
            Kind::Consumers => Self::Consumer(of(value)?),
            Kind::Credentials => Self::Credential(of(value)?),
            Kind::ConsumerGroups => Self::ConsumerGroup(of(value)?),
            Kind::PluginConfigs => Self::PluginConfig(of(value)?),
            Kind::GlobalRules => Self::GlobalRule(of(value)?),
            Kind::PluginMetadata => {
                // APISIX writes the plugin's name beside the settings; no plugin knows that field.
                let mut settings = value.clone();
                if let Some(settings) = settings.as_object_mut() {
                    settings.shift_remove("id");
                }
                Self::PluginMetadata(settings)
            }
            Kind::Ssls => Self::Ssl(of(value)?),
            Kind::Secrets => Self::Secret(of(value)?),
            Kind::Protos => Self::Proto(of(value)?),
            Kind::StreamRoutes => Self::StreamRoute(of(value)?),
            Kind::IdentityPolicies => Self::IdentityPolicy(of(value)?),
            Kind::IdentityModes => Self::IdentityMode(of(value)?),
            Kind::Workloads => Self::Workload(of(value)?),
            Kind::TrustDomains => Self::TrustDomain(of(value)?),
            Kind::Revocations => Self::Revocation(of(value)?),
        })
    }
}

/// One declared resource at one revision.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: Id,
    /// The store's revision that wrote it last (etcd's mod_revision).
    pub revision: Revision,
    /// What it says.
    pub body: Body,
}

/// A change to the declared state.
#[derive(Clone, Debug)]
pub enum Change {
    /// The resource is new or different.
    Put(Resource),
    /// The resource is gone.
    Delete(Kind, Id),
}

/// A resource that a data plane did not take, and why. Its previous version stays in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: Id,
    /// The revision that was refused.
    pub revision: Revision,
    /// The sentence for the operator.
    pub reason: String,
}
