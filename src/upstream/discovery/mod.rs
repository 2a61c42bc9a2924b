//! Service discovery: registries that know the nodes of services, followed beside requests. A door: it defines nothing itself.
//!
//! Each registry has one file and one task for the whole process, however many upstreams name its services. What it learns it
//! writes on its board, where each service that an upstream names has a live list of nodes. Whatever happens to the
//! registry, the last good list stays.

mod blocking;
mod board;
mod client;
mod consul;
mod consul_kv;
mod contact;
mod dns;
mod dump;
mod error;
mod eureka;
mod kubernetes;
mod nacos;
mod registries;
mod service;
mod settings;

pub use error::Error;
pub use registries::Discovery;
pub(super) use registries::source;
pub use settings::Settings;
