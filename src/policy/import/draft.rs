//! `Draft`: one of our rules while it is put together, and what could not be said.

use super::wildcard::none_of;
use crate::model::{From, PolicyAction, PolicyRule, To, ValueMatch, When};

/// A rule that is being put together.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) action: PolicyAction,
    pub(super) from: From,
    pub(super) to: To,
    pub(super) when: When,
    /// Conditions in CEL, all of which must hold.
    cel: Vec<String>,
    /// A part that our language cannot say: field and reason.
    pub(super) unsaid: Vec<(String, String)>,
    /// Something that is said otherwise: field and sentence.
    pub(super) notes: Vec<(String, String)>,
    /// Something that is refused beside what was: field and sentence.
    pub(super) stricter: Vec<(String, String)>,
    /// Nothing can ever match.
    pub(super) never: bool,
}

impl Draft {
    pub(super) fn new(name: String, action: PolicyAction) -> Self {
        Self {
            name,
            action,
            from: From::default(),
            to: To::default(),
            when: When::default(),
            cel: Vec::new(),
            unsaid: Vec::new(),
            notes: Vec::new(),
            stricter: Vec::new(),
            never: false,
        }
    }

    pub(super) fn allows(&self) -> bool {
        self.action == PolicyAction::Allow
    }

    pub(super) fn require(&mut self, condition: String) {
        if !self.cel.contains(&condition) {
            self.cel.push(condition);
        }
    }

    pub(super) fn forbid(&mut self, subject: &str, texts: &[String]) {
        self.require(none_of(subject, texts));
    }

    pub(super) fn cannot_say(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.unsaid.push((field.into(), why.into()));
    }

    pub(super) fn note(&mut self, field: impl Into<String>, sentence: impl Into<String>) {
        self.notes.push((field.into(), sentence.into()));
    }

    pub(super) fn refuses_more(&mut self, field: impl Into<String>, sentence: impl Into<String>) {
        self.stricter.push((field.into(), sentence.into()));
    }

    pub(super) fn claim(&mut self, claim: ValueMatch) {
        self.from.claims.push(claim);
    }

    /// The rule; `None` when it is left out: it can never match, or allows by something that cannot be said.
    pub(super) fn rule(self) -> Option<PolicyRule> {
        if self.never || (self.allows() && !self.unsaid.is_empty()) {
            return None;
        }
        let mut when = self.when;
        when.cel = (!self.cel.is_empty()).then(|| self.cel.join(" && "));
        Some(PolicyRule {
            name: Some(self.name),
            mode: None,
            from: (self.from != From::default()).then_some(self.from),
            to: (self.to != To::default()).then_some(self.to),
            when: (when != When::default()).then_some(when),
        })
    }
}
