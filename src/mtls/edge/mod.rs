//! TLS towards public clients: certificates by server name, client certificates, and the challenges of an authority.
//! A door: it defines nothing itself.

mod acceptor;
mod challenges;
mod clients;
mod settings;
mod site;
mod sites;
#[cfg(test)]
mod tests;

pub use acceptor::{EdgeAcceptor, EdgeSession};
pub use challenges::Challenges;
pub use clients::ClientRule;
pub use settings::{EdgeTls, EdgeTlsSettings};
pub use site::Site;
pub(super) use site::is_name;
pub use sites::Sites;
pub(super) use sites::folded;
