//! Who may do what to whom: rules compiled to an index by caller, decisions that name their rule, and explanations.
//!
//! Deny wins; what no rule allows is denied. This room does no I/O. It is a door: it defines nothing itself.

mod action;
mod callers;
mod captures;
mod cases;
mod circumstances;
mod claims;
mod condition;
mod deciding;
mod decision;
mod explain;
mod export;
mod files;
mod host;
mod import;
mod index;
mod modes;
mod networks;
mod path;
mod policy_set;
mod query;
pub mod questions;
mod rule;
mod rule_hash;
mod selector;
mod signed;
mod targets;
mod times;
mod turning;
mod values;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tables;

pub use action::{Action, Content, Fields, NoFields, Request, RouteFacts, Token};
pub use cases::{Case, Expected, PolicyTest, Trial, TrialReport, UnreachedRule, try_cases};
pub use decision::{Clause, Decision, Near, Outcome, Reason, RuleName, RuleRef};
pub use explain::{Explanation, Failure, TriedRule};
pub use export::{Cedar, export_cedar};
pub use files::{Declared, Flaw, Place, Placed};
pub use import::{Difference, Import, ImportOptions, Weight, import_istio, import_linkerd};
pub use modes::{Modes, check_mode};
pub use path::other_readings;
pub use policy_set::{Policy, Standing, check};
pub use signed::{PolicyKeys, PolicySigner, SignedSet};
