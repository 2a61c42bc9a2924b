//! What becomes of the decision log: it is followed from file to file, handed on, collected at the control plane, and asked.
//!
//! `observe` writes the log; this room only reads it. It is a door: it defines nothing itself.

mod board;
mod cursor;
mod destination;
mod follower;
#[cfg(test)]
mod follower_tests;
mod reading;
mod selection;

pub use board::{OutputBoard, OutputReport};
pub use destination::{Destination, Line, Undelivered};
pub use follower::{Batch, Follower, Following};
pub use selection::Selection;
