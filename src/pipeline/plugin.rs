//! `Plugin`, and `Entry`: a plugin as a row of the table, its types erased.

use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Build, Hooks, Ready};
use crate::model::Invalid;

/// A policy that an operator attaches to routes by name.
pub trait Plugin: Sized + 'static {
    /// As APISIX spells it.
    const NAME: &'static str;
    /// Higher runs earlier in a phase; APISIX's number.
    const PRIORITY: i32;
    /// Settings as an operator would write them, for the documentation; they compile.
    const EXAMPLE: &'static str;
    /// What the operator may set; the schema comes from here.
    type Config: DeserializeOwned + JsonSchema;

    /// Turns settings into hooks, once per revision of the resource that carries them. Does no I/O.
    ///
    /// # Errors
    /// The settings contradict each other; the sentence names the field.
    fn compile(config: Self::Config, build: &Build<'_>) -> Result<Hooks, Invalid>;
}

/// What a consumer carries for an auth plugin, where the plugin makes it ready for use once a revision: a key that is parsed, a
/// password that is hashed.
pub trait Credential: DeserializeOwned + JsonSchema + 'static {
    /// What the plugin gets of it from [`Directory::ready`](super::Directory::ready).
    type Ready: Send + Sync + 'static;

    /// Judges the credential and makes it ready.
    ///
    /// # Errors
    /// Nobody could be known by it; the sentence names the field.
    fn ready(self) -> Result<Self::Ready, Invalid>;
}

/// Judges settings without using them.
pub type Check = fn(&Value) -> Result<(), Invalid>;

/// Judges a credential and makes it ready for use.
pub type MakeReady = fn(&Value) -> Result<Ready, Invalid>;

/// A plugin as a row of the table.
#[derive(Clone, Copy)]
pub struct Entry {
    /// As APISIX spells it.
    pub name: &'static str,
    /// Higher runs earlier in a phase.
    pub priority: i32,
    /// Settings as an operator would write them, as JSON; they compile.
    pub example: &'static str,
    /// The schema of its settings.
    pub schema: fn() -> Schema,
    /// Parses and compiles settings.
    pub compile: fn(&Value, &Build<'_>) -> Result<Hooks, Invalid>,
    /// The schema of what a consumer or credential carries; an auth plugin has one.
    pub credential: Option<fn() -> Schema>,
    /// Judges what a consumer or credential carries.
    pub check_credential: Option<Check>,
    /// Makes what a consumer or credential carries ready for use.
    pub ready_credential: Option<MakeReady>,
    /// Which field of a credential must be unique among all consumers.
    pub credential_key: Option<&'static str>,
    /// That field is a SPIFFE pattern: the consumer is found by the IDs that it means.
    pub credential_is_pattern: bool,
    /// The plugin by whose credentials it finds consumers, when it has none of its own.
    pub credential_of: Option<&'static str>,
    /// It finds consumers, by its own credentials or otherwise.
    pub authenticates: bool,
    /// The schema of its gateway-wide metadata.
    pub metadata: Option<fn() -> Schema>,
    /// Judges its gateway-wide metadata.
    pub check_metadata: Option<Check>,
    /// The plugin whose gateway-wide metadata it is given, when it has none of its own.
    pub metadata_of: Option<&'static str>,
    /// Among the global rules it stands back where the route has it too (APISIX's `run_policy`).
    pub prefers_route: bool,
}

impl Entry {
    /// The row of a plugin.
    pub const fn of<P: Plugin>() -> Self {
        Self {
            name: P::NAME,
            priority: P::PRIORITY,
            example: P::EXAMPLE,
            schema: schema_of::<P::Config>,
            compile: |value, build| P::compile(parse(value)?, build),
            credential: None,
            check_credential: None,
            ready_credential: None,
            credential_key: None,
            credential_is_pattern: false,
            credential_of: None,
            authenticates: false,
            metadata: None,
            check_metadata: None,
            metadata_of: None,
            prefers_route: false,
        }
    }

    /// Among the global rules the plugin stands back where the route has it too.
    #[must_use]
    pub const fn preferring_route(self) -> Self {
        Self { prefers_route: true, ..self }
    }

    /// The plugin authenticates consumers; `C` is what they carry, and `key` its field that is unique among them.
    #[must_use]
    pub const fn credential<C: DeserializeOwned + JsonSchema + 'static>(
        self,
        key: &'static str,
    ) -> Self {
        Self {
            credential: Some(schema_of::<C>),
            check_credential: Some(|value| parse::<C>(value).map(drop)),
            credential_key: Some(key),
            authenticates: true,
            ..self
        }
    }

    /// As [`Entry::credential`], made ready for use once a revision.
    #[must_use]
    pub const fn ready_credential<C: Credential>(self, key: &'static str) -> Self {
        Self {
            check_credential: Some(|value| parse::<C>(value)?.ready().map(drop)),
            ready_credential: Some(|value| {
                let ready: Ready = Arc::new(parse::<C>(value)?.ready()?);
                Ok(ready)
            }),
            ..self.credential::<C>(key)
        }
    }

    /// As [`Entry::credential`], where the field is a SPIFFE pattern.
    #[must_use]
    pub const fn credential_by_identity<C: DeserializeOwned + JsonSchema + 'static>(
        self,
        key: &'static str,
    ) -> Self {
        Self { credential_is_pattern: true, ..self.credential::<C>(key) }
    }

    /// The plugin finds consumers by the credentials of another one.
    #[must_use]
    pub const fn finding_by(self, plugin: &'static str) -> Self {
        Self { credential_of: Some(plugin), authenticates: true, ..self }
    }

    /// The plugin finds consumers without credentials of its own.
    #[must_use]
    pub const fn authenticating(self) -> Self {
        Self { authenticates: true, ..self }
    }

    /// The plugin is given the gateway-wide metadata of another one.
    #[must_use]
    pub const fn with_metadata_of(self, plugin: &'static str) -> Self {
        Self { metadata_of: Some(plugin), ..self }
    }

    /// The plugin has gateway-wide metadata of type `M`.
    #[must_use]
    pub const fn metadata<M: DeserializeOwned + JsonSchema + 'static>(self) -> Self {
        Self {
            metadata: Some(schema_of::<M>),
            check_metadata: Some(|value| parse::<M>(value).map(drop)),
            ..self
        }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({} {})", self.name, self.priority)
    }
}

fn schema_of<T: JsonSchema>() -> Schema {
    SchemaGenerator::default().into_root_schema_for::<T>()
}

fn parse<T: DeserializeOwned>(value: &Value) -> Result<T, Invalid> {
    // Serde would read a list as the fields in their order.
    if !value.is_object() {
        return Err(Invalid::new("an object is expected"));
    }
    T::deserialize(value).map_err(|error| Invalid::new(error.to_string()))
}
