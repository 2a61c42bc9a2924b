//! How a [`Policy`] decides: deny wins, nothing is allowed by default, and what is only watched is told beside it.

use std::cell::Cell;

use super::action::{Action, Facts, RouteFacts, Token};
use super::decision::{Clause, Decision, Near, Outcome, Reason, RuleName, RuleRef};
use super::index::Group;
use super::path::Readings;
use super::policy_set::{Met, Policy, Standing, Stated, index};
use super::rule::{Holding, LOTS, Rule};
use crate::model::{Mode, PolicyAction};

/// How many rules are compared to find the nearest one.
const NEAR: usize = 256;

/// Which of its two sides a rule shows, by the connection's lot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Deciding,
    Watched,
}

/// What was found among the rules of a group.
#[derive(Default)]
struct Scan {
    /// The first that holds.
    certain: Option<u32>,
    /// The first of which only the token is missing; sought no further than `certain`.
    pending: Option<u32>,
}

impl Policy {
    /// Decides where everything is refused that no rule allows: towards workloads.
    pub fn decide(&self, standing: &Standing, action: &Action<'_>) -> Decision {
        let mut anew = None;
        let met = self.current(standing, &mut anew);
        let facts = Facts::of(action, standing.caller.as_ref());
        self.decided(met, &facts)
    }

    /// Decides at a public door: a request is refused only where a policy selects its route and no rule allows it.
    pub fn decide_public(&self, standing: &Standing, action: &Action<'_>) -> Decision {
        let facts = Facts::of(action, standing.caller.as_ref());
        let open = Decision { outcome: Outcome::Allow(None), would_be: None, awaits_token: false };
        let is_governed = self.by_route.governs(&facts, &self.policies);
        if !is_governed && !self.by_route.watches(&facts, &self.policies) {
            return open;
        }
        let mut anew = None;
        let met = self.current(standing, &mut anew);
        if is_governed {
            return self.decided(met, &facts);
        }
        let deny = self.scan(&met.watched_deny, &facts, Side::Watched);
        if let Some(rule) = deny.certain {
            return Decision { would_be: Some(self.refused_by(rule, &facts)), ..open };
        }
        let allow = self.scan(&met.watched_allow, &facts, Side::Watched);
        let would_be = match allow.certain.or(allow.pending) {
            Some(_) => None,
            None => Some(Outcome::Deny(Reason::NoRule, None)),
        };
        let only_pending = allow.certain.is_none() && allow.pending.is_some();
        let awaits_token = would_be.is_none() && (deny.pending.is_some() || only_pending);
        Decision { would_be, awaits_token, ..open }
    }

    /// Does a policy that decides for all connections select this route? Public routes that none selects are open.
    pub fn governs(&self, route: RouteFacts<'_>) -> bool {
        let action = Action::http(0, "", "", "").on_route(Some(route));
        let action = Action { lot: LOTS - 1, ..action };
        self.by_route.governs(&Facts::of(&action, None), &self.policies)
    }

    fn decided(&self, met: &Met, facts: &Facts<'_>) -> Decision {
        let deny = self.scan(&met.deny, facts, Side::Deciding);
        if let Some(rule) = deny.certain {
            // What a deny rule refused stays refused, whatever is allowed beside it.
            let outcome = self.refused_by(rule, facts);
            return Decision { outcome, would_be: None, awaits_token: false };
        }
        let allow = self.scan(&met.allow, facts, Side::Deciding);
        let (outcome, awaits_token) = match (allow.certain, allow.pending) {
            (Some(rule), _) => (Outcome::Allow(Some(RuleRef(rule))), deny.pending.is_some()),
            (None, Some(rule)) => (Outcome::Allow(Some(RuleRef(rule))), true),
            (None, None) => (self.refused(met, facts), false),
        };
        let decision = Decision { outcome, would_be: None, awaits_token };
        if met.watched_deny.is_empty() && met.watched_allow.is_empty() {
            return decision;
        }
        let deny = self.scan(&met.watched_deny, facts, Side::Watched);
        match (outcome.is_allowed(), deny.certain) {
            (true, Some(rule)) => {
                Decision { would_be: Some(self.refused_by(rule, facts)), ..decision }
            }
            (true, None) => {
                Decision { awaits_token: awaits_token || deny.pending.is_some(), ..decision }
            }
            (false, Some(_)) => decision,
            (false, None) => {
                let allow = self.scan(&met.watched_allow, facts, Side::Watched);
                let rule = allow.certain.or(allow.pending);
                Decision { would_be: rule.map(|at| Outcome::Allow(Some(RuleRef(at)))), ..decision }
            }
        }
    }

    /// The first rule of the group that holds, on this side of its mode.
    fn scan(&self, group: &Group, facts: &Facts<'_>, side: Side) -> Scan {
        if group.is_empty() {
            return Scan::default();
        }
        let pending = Cell::new(None);
        let certain = group.first(facts, |at| {
            let rule = &self.rules[at as usize];
            if rule.decides(facts.lot) != (side == Side::Deciding)
                || !self.stated(rule).selector.selects(facts, rule.action)
            {
                return false;
            }
            match rule.holds(facts) {
                Holding::Yes => true,
                Holding::No => false,
                Holding::Pending => {
                    pending.set(pending.get().into_iter().chain([at]).min());
                    false
                }
            }
        });
        Scan { certain, pending: pending.get() }
    }

    /// A deny rule held: why?
    fn refused_by(&self, rule: u32, facts: &Facts<'_>) -> Outcome {
        let found = &self.rules[rule as usize];
        let is_http = facts.http.is_some();
        let unclear_path = || matches!(facts.readings(), Readings::Unclear);
        let unclear = || found.when.as_ref().and_then(|when| when.unclear(facts));
        let reason = if self.stated(found).broken {
            Reason::BrokenPolicy
        } else if facts.caller.is_none() && found.from.asks_identity() {
            Reason::NoIdentity
        } else if found.to.asks_path() && is_http && unclear_path() {
            Reason::AmbiguousPath
        } else {
            unclear().unwrap_or(Reason::DeniedByRule)
        };
        Outcome::Deny(reason, Some(RuleRef(rule)))
    }

    /// Nothing refused and nothing allowed: why?
    #[cold]
    fn refused(&self, met: &Met, facts: &Facts<'_>) -> Outcome {
        let about = |rule: &Rule| self.stated(rule).selector.selects(facts, PolicyAction::Allow);
        let broken = self.broken_allow.iter().find(|rule| {
            let rule = &self.rules[rule.0 as usize];
            rule.decides(facts.lot) && about(rule)
        });
        if let Some(rule) = broken {
            return Outcome::Deny(Reason::BrokenPolicy, Some(*rule));
        }
        if facts.caller.is_none() && met.allow.is_empty() {
            return Outcome::Deny(Reason::NoIdentity, None);
        }
        let split = facts.http.is_some() && facts.plain_path().is_none();
        let upgrade = facts.http.is_some_and(|http| http.upgrade.is_some());
        let no_token = self.asks.token && matches!(facts.token(), Token::Absent);
        if !(split || upgrade || no_token) {
            return Outcome::Deny(Reason::NoRule, None);
        }
        // A rule that would hold but for this one thing.
        let one_thing = |at: &u32| {
            let rule = &self.rules[*at as usize];
            if !(rule.decides(facts.lot) && about(rule)) {
                return None;
            }
            let reason = match rule.failed(facts).as_slice() {
                [Clause::Claims] if no_token => Reason::NoToken,
                [Clause::Upgrades] if upgrade => Reason::UpgradeNotAllowed,
                // It would hold for one reading of the path, but not for all.
                [Clause::Paths | Clause::NotPaths | Clause::Grpc | Clause::NotGrpc]
                    if split
                        && rule
                            .to
                            .fails_by_path(facts, PolicyAction::Deny, rule.captures.as_deref())
                            .is_none() =>
                {
                    Reason::AmbiguousPath
                }
                _ => return None,
            };
            Some(Outcome::Deny(reason, Some(RuleRef(*at))))
        };
        let found = met.allow.all().iter().take(NEAR).find_map(one_thing);
        found.unwrap_or(Outcome::Deny(Reason::NoRule, None))
    }

    /// The name of a rule that this policy's decision pointed at.
    pub fn rule(&self, rule: RuleRef) -> Option<RuleName<'_>> {
        let rule = self.rules.get(rule.0 as usize)?;
        let Stated { id, revision, .. } = self.stated(rule);
        Some(RuleName {
            policy: id,
            rule: &rule.name,
            revision: *revision,
            hash: &rule.hash,
            is_canary: matches!(rule.mode, Mode::Canary(_)),
        })
    }

    /// The allow rule that came nearest to matching: what an operator would change first.
    ///
    /// Rules that mean this caller come before all others. Of very many rules only the first 256 are compared.
    pub fn nearest(&self, standing: &Standing, action: &Action<'_>) -> Option<Near> {
        let mut anew = None;
        let met = self.current(standing, &mut anew);
        let facts = Facts::of(action, standing.caller.as_ref());
        let near = self.nearest_of(met.allow.all().iter().copied(), &facts);
        near.or_else(|| self.nearest_of(0..index(self.rules.len()), &facts))
    }

    fn nearest_of(&self, rules: impl Iterator<Item = u32>, facts: &Facts<'_>) -> Option<Near> {
        let allows = |at: &u32| {
            let rule = &self.rules[*at as usize];
            let is_broken = self.stated(rule).broken;
            rule.action == PolicyAction::Allow && rule.decides(facts.lot) && !is_broken
        };
        let near = rules.filter(allows).take(NEAR).filter_map(|at| {
            let failed = self.failed(&self.rules[at as usize], facts);
            let first = *failed.first()?;
            let distance: u32 = failed.iter().map(|clause| clause.weight()).sum();
            Some((distance, Near { rule: RuleRef(at), clause: first }))
        });
        near.min_by_key(|(distance, near)| (*distance, near.rule)).map(|(_, near)| near)
    }

    /// All parts of a rule that do not hold, the most telling first: who, where, what, when.
    pub(super) fn failed(&self, rule: &Rule, facts: &Facts<'_>) -> smallvec::SmallVec<[Clause; 8]> {
        let mut failed = rule.failed(facts);
        if !self.stated(rule).selector.selects(facts, rule.action) {
            failed.push(Clause::Selector);
        }
        failed.sort_by_key(|clause| std::cmp::Reverse(clause.weight()));
        failed
    }
}
