//! What references to secrets stand for: HashiCorp Vault, AWS Secrets Manager, Google Secret Manager and the environment are asked
//! beside traffic, and what they say is kept, for a keeper to put it into what it compiles. A door: it defines nothing itself.

mod aws;
mod doubts;
mod environment;
mod error;
mod feed;
mod fetched;
mod gcp;
mod manager;
mod safe;
mod settings;
mod signature;
#[cfg(test)]
mod tests;
mod transport;
mod vault;

pub use doubts::doubts;
pub use error::Error;
pub use feed::ResolvedFeed;
pub use safe::Safe;
pub use settings::SecretSettings;
