//! Canary pushes: a change goes to some data planes first, they are watched, and it goes on to the others or back.
//!
//! What is decided lies in the store beside the resources (`<prefix>-canary/`), so that all control planes over it do the same:
//! [`Record`] is written with compare-and-set by whichever of them is first. What each of them sees of its data planes is a
//! [`Report`]; `judge` decides on all of them. [`Course`] is the task that does it.

mod choice;
mod course;
mod judge;
mod past;
mod record;
mod report;
mod settings;

pub use self::choice::Concerned;
pub(crate) use self::course::known;
pub use self::course::{Course, Figures, skipping, state_key};
pub(crate) use self::past::{Known, as_of, is_exempt};
pub use self::past::{Past, Remembered};
pub use self::record::{Phase, Record, Superseded};
pub use self::report::{Canary, Counts, Report, Span};
pub use self::settings::{CanarySettings, Rise};
