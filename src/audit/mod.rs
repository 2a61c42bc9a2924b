//! What becomes of the decision log: it is followed from file to file, handed on, collected at the control plane, and asked.
//!
//! `observe` writes the log; this room only reads it. It is a door: it defines nothing itself.

mod destination;
pub mod learn;
mod record;
mod seen;

pub use destination::{Destination, Line, Undelivered};
pub use record::{Nearest, Record, Source, Target, WouldBe, unix_millis};
pub use seen::{Lines, Outcome, Seen};
