//! Kubernetes: projected service-account tokens, validated by the API server or by its published keys. A door: it defines
//! nothing itself.

mod api_server;
mod attestor;
mod keys;
mod review;
mod settings;
#[cfg(test)]
mod tests;
mod token;

pub use attestor::KubernetesAttestor;
pub use settings::{KubernetesMode, KubernetesSettings};
