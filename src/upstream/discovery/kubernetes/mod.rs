//! Kubernetes: the endpoints of services, listed once and watched from there on. A door: it defines nothing itself.

mod cluster;
mod objects;
mod registry;
mod settings;

pub(super) use registry::{Kubernetes, check_name};
pub(super) use settings::KubernetesSettings;
