//! Roles: the one room that knows all others, and wires them together. A door: it defines nothing itself.

mod admin_door;
mod catalog;
mod collection;
mod connections;
mod control_api;
mod control_plane;
mod data_plane;
mod embedded;
mod error;
mod facts;
mod feed;
mod feeding;
mod identities;
mod inspection;
mod issuer;
mod keeper;
mod offline;
mod outputs;
mod places;
mod process;
mod proved;
mod questions;
mod reach;
mod reload;
mod sealing;
mod settings;
mod settings_file;
mod stapling;
mod trust;
mod upgrade;
mod validate;
mod warnings;

pub use crate::control::access::{generate as generate_admin_key, hash as hash_admin_key};
pub use crate::issuer::{
    Authority, Enrolled, Error as AuthorityError, Evidence, FileCustody, Finding as IssuedFinding,
    Issued, IssuerClient, JoinTokens, KeyCustody, Passphrase, Phase, Proof, Reason, Records, Step,
    TokenId, TokenOrder, issuer_id, new_key,
};
pub use control_api::ControlApiSettings;
pub use control_plane::{ControlPlaneRole, FeedRules};
pub use data_plane::{Configuration, DataPlaneRole, Plan};
pub use embedded::{Embedded, World, loopback};
pub use error::Error;
pub use facts::{Facts, Reload};
pub use identities::Identities;
pub use inspection::{Finding, Grade, inspect};
pub use issuer::{IssuerRole, authority};
pub use keeper::stay;
pub use offline::judge_offline;
pub use process::{Running, Shared, identity_source};
pub use questions::walk;
pub use sealing::{chosen_store, sealed, sealing_ring};
pub use settings::{
    AuditSettings, ControlPlaneSettings, ControlSettings, IdentitySettings, IngressSettings,
    IssuerSettings, ProofSettings, Role, RootRotationSettings, Settings, ShipSetting,
    SidecarSettings,
};
pub use settings_file::SettingsFile;
pub use stapling::Stapling;
pub use upgrade::{Heir, Predecessor, Program, Successor, UpgradeError};
pub use warnings::{LifePart, TimeLeft, WarningSettings};
