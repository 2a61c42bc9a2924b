//! A secret manager as it is declared, ready to be asked.

use super::Error;
use super::aws::Aws;
use super::environment::Environment;
use super::fetched::Fetched;
use super::gcp::Gcp;
use super::transport::Transport;
use super::vault::Vault;
use crate::model::SecretManager;
use crate::rt::Clock;

pub(super) enum Manager {
    Vault(Vault),
    Aws(Aws),
    Gcp(Gcp),
}

/// What managers are asked with.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) environment: Environment,
    pub(super) transport: Transport,
    pub(super) clock: Clock,
}

impl Manager {
    pub(super) fn new(declared: &SecretManager) -> Self {
        match declared {
            SecretManager::Vault(vault) => Self::Vault(Vault::new(vault.clone())),
            SecretManager::Aws(aws) => Self::Aws(Aws::new(aws.clone())),
            SecretManager::Gcp(gcp) => Self::Gcp(Gcp::new(gcp.as_ref().clone())),
        }
    }

    /// Asks for one secret.
    pub(super) async fn fetch(&self, path: &str, means: &Means) -> Result<Fetched, Error> {
        let Means { environment, transport, clock } = means;
        match self {
            Self::Vault(vault) => vault.fetch(path, environment, transport).await,
            Self::Aws(aws) => aws.fetch(path, environment, transport, clock).await,
            Self::Gcp(gcp) => gcp.fetch(path, environment, transport, clock).await,
        }
    }
}
