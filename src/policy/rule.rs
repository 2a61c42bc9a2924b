//! Compiled rules: who, what and when, and whether a rule holds.
//!
//! Where an input can be taken in two ways, or is absent, an allow rule does not hold and a deny rule does.

use std::fmt::Display;

use super::action::Facts;
use super::callers::Callers;
use super::captures::Captures;
use super::circumstances::{Circumstances, Sources};
use super::decision::Clause;
use super::rule_hash;
use super::targets::Targets;
use crate::identity::{SpiffePattern, TrustDomain};
use crate::model::{Invalid, Mode, PolicyAction, PolicyRule};

/// One rule of one policy.
#[derive(Debug)]
pub(super) struct Rule {
    /// Index of its policy.
    pub(super) policy: u32,
    pub(super) name: Box<str>,
    /// What it says; see [`rule_hash::of`].
    pub(super) hash: Box<str>,
    pub(super) action: PolicyAction,
    pub(super) mode: Mode,
    pub(super) from: Callers,
    pub(super) to: Targets,
    pub(super) sources: Option<Box<Sources>>,
    pub(super) when: Option<Box<Circumstances>>,
    pub(super) captures: Option<Box<Captures>>,
}

/// Does a rule hold?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holding {
    No,
    /// Everything but what it asks of a token that is awaited.
    Pending,
    Yes,
}

/// What a rule is compiled for.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    /// Index of the policy.
    pub(super) policy: u32,
    pub(super) action: PolicyAction,
    /// The policy's mode.
    pub(super) mode: Mode,
    /// The workload's own trust domain; `None` where rules are only checked.
    pub(super) own: Option<&'a TrustDomain>,
}

impl Rule {
    /// `at`: the rule's place in its policy.
    pub(super) fn compile(frame: Frame<'_>, at: usize, rule: &PolicyRule) -> Result<Self, Invalid> {
        Self::parts(frame, at, rule).map_err(|wrong| Invalid(format!("rules[{at}].{wrong}")))
    }

    fn parts(frame: Frame<'_>, at: usize, rule: &PolicyRule) -> Result<Self, Wrong> {
        let name = match &rule.name {
            Some(name) if name.is_empty() || name.chars().count() > 256 => {
                return Err(Wrong::new("name", "has 1 to 256 characters"));
            }
            Some(name) if name.chars().any(char::is_control) => {
                return Err(Wrong::new("name", "has no control characters"));
            }
            Some(name) => name.as_str().into(),
            None => (at + 1).to_string().into(),
        };
        if let Some(mode) = rule.mode {
            check_mode(mode).map_err(|why| Wrong::new("mode", why))?;
        }
        let (from, sources) = match &rule.from {
            Some(from) => (Callers::compile(from, frame.own)?, Sources::compile(from)?),
            None => Default::default(),
        };
        let to = rule.to.as_ref().map_or(Ok(Targets::default()), Targets::compile)?;
        let when = Circumstances::compile(rule.from.as_ref(), rule.when.as_ref())?;
        let captures =
            Captures::of(&from, &to).map_err(|why| Wrong::new("from.principals", why))?;
        let mode = rule.mode.unwrap_or(frame.mode);
        Ok(Self {
            policy: frame.policy,
            name,
            hash: rule_hash::of(frame.action, mode, rule),
            action: frame.action,
            mode,
            from,
            to,
            sources,
            when,
            captures: captures.map(Box::new),
        })
    }

    /// A rule without parts, which holds for everything.
    pub(super) fn whole(frame: Frame<'_>, name: &str) -> Self {
        Self {
            policy: frame.policy,
            name: name.into(),
            hash: rule_hash::of(frame.action, frame.mode, &PolicyRule::default()),
            action: frame.action,
            mode: frame.mode,
            from: Callers::default(),
            to: Targets::default(),
            sources: None,
            when: None,
            captures: None,
        }
    }

    /// Does the rule hold for what is asked? Whether it means the caller was found out before.
    pub(super) fn holds(&self, facts: &Facts<'_>) -> Holding {
        let captures = self.captures.as_deref();
        if self.to.fails_beside_paths(facts, self.action, captures).is_some()
            || self.to.fails_by_path(facts, self.action, captures).is_some()
            || self.fails_by_captures(facts).is_some()
            || self.fails_by_source(facts).is_some()
        {
            return Holding::No;
        }
        let Some(when) = &self.when else { return Holding::Yes };
        match when.fails(facts, self.action) {
            Some(_) => Holding::No,
            None => when.hold(facts, self.action).unwrap_or(Holding::No),
        }
    }

    /// All parts that do not hold: who, what, when. Of the parts that belong together the first.
    pub(super) fn failed(&self, facts: &Facts<'_>) -> smallvec::SmallVec<[Clause; 8]> {
        let mut failed = smallvec::SmallVec::new();
        let captures = self.captures.as_deref();
        failed.extend(self.from.fails(facts.caller, self.action));
        failed.extend(self.to.fails_beside_paths(facts, self.action, captures));
        failed.extend(self.to.fails_by_path(facts, self.action, captures));
        if failed.is_empty() {
            failed.extend(self.fails_by_captures(facts));
        }
        failed.extend(self.fails_by_source(facts));
        if let Some(when) = &self.when {
            failed.extend(when.fails(facts, self.action));
            // Conditions cost most: they are asked only where all else holds.
            if failed.is_empty() {
                failed.extend(when.hold(facts, self.action).err());
            }
        }
        failed
    }

    fn fails_by_captures(&self, facts: &Facts<'_>) -> Option<Clause> {
        let captures = self.captures.as_ref()?;
        let holds = captures.hold(&self.from, &self.to, facts, self.action);
        (!holds).then_some(Clause::Captures)
    }

    fn fails_by_source(&self, facts: &Facts<'_>) -> Option<Clause> {
        self.sources.as_ref()?.fails(facts, self.action)
    }

    /// Does it decide for a connection of this lot? Otherwise it is only watched.
    pub(super) fn decides(&self, lot: u8) -> bool {
        lot < decides_below(self.mode)
    }
}

/// Lots are 0 to 99.
pub(super) const LOTS: u8 = 100;

/// A rule of this mode decides for lots below.
pub(super) fn decides_below(mode: Mode) -> u8 {
    match mode {
        Mode::Enforce => LOTS,
        Mode::Observe => 0,
        Mode::Canary(percent) => percent,
    }
}

/// May this mode be meant?
pub(super) fn check_mode(mode: Mode) -> Result<(), String> {
    match mode {
        Mode::Canary(percent @ (0 | 100..)) => Err(format!(
            "canary is 1 to 99 in a hundred connections, not {percent}; \
             to decide for none write \"observe\", for all \"enforce\""
        )),
        Mode::Enforce | Mode::Observe | Mode::Canary(_) => Ok(()),
    }
}

/// A field of a rule that cannot be meant, and why.
#[derive(Debug)]
pub(super) struct Wrong {
    field: String,
    why: String,
}

impl Wrong {
    pub(super) fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }
}

impl Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

/// Parses all entries of a list; the error names the entry.
pub(super) fn each<T>(
    field: &str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Box<[T]>, Wrong> {
    let texts = texts.iter().enumerate();
    texts
        .map(|(at, text)| parse(text).map_err(|why| Wrong::new(format!("{field}[{at}]"), why)))
        .collect()
}

pub(super) fn parse_pattern(text: &str) -> Result<SpiffePattern, String> {
    text.parse::<SpiffePattern>().map_err(|error| format!("\"{}\" {error}", text.escape_debug()))
}
