//! What becomes of the decision log: it is followed from file to file, handed on, collected at the control plane, and asked.
//!
//! `observe` writes the log; this room only reads it. It is a door: it defines nothing itself.

mod board;
mod collection;
mod cursor;
mod destination;
mod follower;
#[cfg(test)]
mod follower_tests;
mod generated;
pub mod learn;
mod reading;
mod record;
mod seen;
mod selection;

pub use board::{OutputBoard, OutputReport};
pub use collection::{
    Alarm, Archive, ArchiveError, ArchiveFinding, ArchiveSettings, Archived, Callers, ChainFacts,
    ChainReport, Collector, Cursor, Dial, FILTERS, Filter, MayShip, Order, Origin, OwnLog, Page,
    Reach, ShippedBy, Shipping, Taken, WhoDid, duration, names, records_service,
};
pub use destination::{Destination, Line, Undelivered};
pub use follower::{Batch, Follower, Following};
pub use record::{Nearest, Record, Source, Target, WouldBe, time_text, unix_millis};
pub use seen::{Lines, Outcome, Seen};
pub use selection::Selection;
