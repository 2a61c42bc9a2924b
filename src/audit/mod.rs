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
mod http;
pub mod learn;
mod mapping;
mod otlp;
mod outputs;
mod reading;
mod record;
mod remote;
mod seen;
mod selection;
mod settings;
mod syslog;
mod web;

// OpenTelemetry's messages for logs. tests/codegen.rs holds it to proto/otlp.proto.
#[rustfmt::skip]
#[path = "generated/otlp.rs"]
#[allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths, dead_code, clippy::all,
    clippy::semicolon_if_nothing_returned, clippy::wildcard_imports, clippy::missing_errors_doc, reason = "generated")]
mod otlp_proto;

pub use board::{OutputBoard, OutputReport};
pub use collection::{
    Alarm, Archive, ArchiveError, ArchiveFinding, ArchiveSettings, Archived, Callers, ChainFacts,
    ChainReport, Collector, Cursor, Dial, FILTERS, Filter, MayShip, Order, Origin, OwnLog, Page,
    Reach, ShippedBy, Shipping, Taken, WhoDid, duration, names, records_service,
};
pub use destination::{Destination, Line, Undelivered};
pub use follower::{Batch, Follower, Following, Kept};
pub use mapping::{Format, Here, Severity};
pub use outputs::{OutputPlace, Outputs};
pub use record::{Nearest, Record, Source, Target, WouldBe, time_text, unix_millis};
pub use seen::{Lines, Outcome, Seen};
pub use selection::Selection;
pub use settings::{
    BatchSettings, Begin, Body, HeaderFile, HeaderSettings, HttpSettings, InvalidOutput,
    OtlpProtocol, OtlpSettings, OutputSettings, OutputTls, SyslogSettings,
};
pub use syslog::Facility;
