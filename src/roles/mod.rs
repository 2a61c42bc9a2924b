//! Roles: the one room that knows all others, and wires them together. A door: it defines nothing itself.

mod catalog;
mod control_plane;
mod data_plane;
mod embedded;
mod error;
mod feed;
mod inspection;
mod issuer;
mod process;
mod settings;

pub use crate::issuer::{
    Authority, Enrolled, Error as IssuerError, IssuerClient, JoinTokens, Proof, TokenId,
    TokenOrder, issuer_id, new_key,
};
pub use control_plane::{ControlPlaneRole, FeedRules};
pub use data_plane::{DataPlaneRole, Plan};
pub use embedded::{Embedded, World, loopback};
pub use error::Error;
pub use inspection::{Finding, Grade, inspect};
pub use issuer::{IssuerRole, authority};
pub use process::{Running, Shared, identity_source};
pub use settings::{
    AuditSettings, ControlPlaneSettings, ControlSettings, IdentitySettings, IngressSettings,
    IssuerSettings, Role, Settings, SidecarSettings,
};
