//! Collection: the records of all data planes at the control plane, checked, countersigned, kept and asked.
//!
//! It is a door: it defines nothing itself.

mod archive;
mod collector;
mod error;
mod filter;
mod intake;
mod query;
mod retire;
mod service;
mod settings;
mod shipping;
mod tables;
#[cfg(test)]
mod tests;
mod verify;

pub use archive::Archive;
pub use collector::Collector;
pub use error::ArchiveError;
pub use filter::{FILTERS, Filter, duration, names};
pub use intake::{Origin, Taken};
pub use query::{Archived, Callers, Cursor, Order, Page, Reach, WhoDid};
pub use service::{MayShip, ShippedBy, records_service};
pub use settings::ArchiveSettings;
pub use shipping::{Dial, OwnLog, Shipping};
pub use tables::{Alarm, ChainFacts};
pub use verify::{ArchiveFinding, ChainReport};
