//! Who may do what to whom: rules compiled to an index by caller, decisions that name their rule, and explanations.
//!
//! Deny wins; what no rule allows is denied. This room does no I/O. It is a door: it defines nothing itself.

mod action;
#[expect(dead_code, reason = "rules do not end with conditions yet")]
mod condition;
mod decision;
mod explain;
mod host;
mod index;
mod path;
mod policy_set;
pub mod questions;
mod rule;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tables;

pub use action::{Action, Content, Fields, NoFields, Request, RouteFacts, Token};
pub use decision::{Clause, Decision, Near, Outcome, Reason, RuleName, RuleRef};
pub use explain::{Explanation, Failure, TriedRule};
pub use policy_set::{Policy, Standing, check};
