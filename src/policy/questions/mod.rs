//! Questions about policies, answered by the rules that are enforced: who can, what can, can it, what differs, what is odd.
//! No I/O. A door: it defines nothing itself.

mod callers;
mod can_i;
mod captures;
mod conditions;
mod difference;
mod engine;
mod instances;
mod lines;
mod lint;
mod overlap;
mod parts;
mod policies;
mod scene;
mod shape;
mod supposed;
mod target;
mod variants;
mod what_can;
mod who_can;

#[cfg(test)]
mod properties;

pub use can_i::{CanI, Failed, Tried, Verdict, WouldBe};
pub use difference::{Change, Decided, Difference, Example};
pub use lint::{Finding, Severity, Surroundings};
pub use policies::{Policies, Stated, Via};
pub use scene::Scene;
pub use supposed::{Supposed, Walked, ask, scene};
pub use target::{Target, TargetRoute};
pub use what_can::{Abilities, Permit, WhatCan};
pub use who_can::{Allowed, Broken, Denial, Grant, Watched, WhoCan};
