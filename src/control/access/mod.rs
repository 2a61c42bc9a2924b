//! Who may administer, and what they may touch: keys and SPIFFE IDs with roles and scopes, and how often anybody may ask.

mod keys;
mod limits;
mod role;
mod settings;
mod stored;

pub use keys::{AdminKeys, Error, KeySettings, generate, hash};
pub(super) use limits::{Limits, Pressure};
pub use role::{Principal, Role, Scope};
pub(super) use settings::{Network, Peers, networks};
pub use settings::{PeerSettings, Settings, TlsSettings};
pub(super) use stored::{Previous, StoredKey, StoredKeys};
