//! `Policy`: all policies of one workload, compiled; `Standing`: what one caller can meet of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::action::{Action, Facts, RouteFacts};
use super::decision::{Clause, Decision, Near, Outcome, Reason, RuleName, RuleRef};
use super::index::{ByCaller, ByRoute, Group};
use super::path::Readings;
use super::rule::{Rule, Selector, parse_pattern};
use crate::identity::{Peer, SpiffeId};
use crate::model::{Id, IdentityPolicy, Invalid, Kind, Mode, PolicyAction, Rejected, Revision};

/// The policies that one workload enforces, compiled. Immutable; replaced as a whole.
///
/// A decision takes a [`Standing`], which is worked out once for a connection, and an [`Action`]:
/// ```
/// # use wardgate::{identity::SpiffeId, model::{Id, IdentityPolicy}, policy::{Action, Policy, Reason}};
/// let text = serde_json::json!({"action": "allow", "rules": [
///     {"from": {"principals": ["spiffe://shop/web"]}, "to": {"methods": ["GET"], "paths": ["/invoices/{id}"]}}]});
/// let allow: IdentityPolicy = serde_json::from_value(text).unwrap();
/// let (id, me) = (Id::parse("billing-read").unwrap(), "spiffe://shop/billing".parse().unwrap());
/// let (policy, rejected) = Policy::compile([(&id, 7, &allow)], &me);
/// assert!(rejected.is_empty());
///
/// let web: SpiffeId = "spiffe://shop/web".parse().unwrap();
/// let standing = policy.standing_of(Some(&web));
/// let request = |method| Action::http(15006, method, "billing", "/invoices/7");
/// assert!(policy.decide(&standing, &request("GET")).is_allowed());
/// let refused = policy.decide(&standing, &request("DELETE"));
/// assert_eq!(refused.outcome.reason(), Some(Reason::NoRule));
/// ```
#[derive(Debug)]
pub struct Policy {
    /// Which compilation this is: a standing belongs to one.
    version: u64,
    pub(super) policies: Box<[Stated]>,
    pub(super) rules: Box<[Rule]>,
    by_caller: ByCaller,
    /// The enforced policies, and the watched ones.
    enforced: ByRoute,
    watched: ByRoute,
    /// Enforced allow policies that are broken: they admit nobody, and are named when nobody else admits.
    broken_allow: Box<[RuleRef]>,
    /// The standings of callers that were here already. Peers that connect again, and all of them at a new revision of the
    /// policy, share theirs.
    standings: Mutex<HashMap<SpiffeId, Arc<Met>>>,
    nobody: Arc<Met>,
    asks: Asks,
}

/// Which facts the rules look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Asks {
    fields: bool,
    query: bool,
    token: bool,
    time: bool,
    lot: bool,
    method: bool,
}

/// What is kept of a policy beside its rules.
#[derive(Debug)]
pub(super) struct Stated {
    pub(super) id: Id,
    pub(super) revision: Revision,
    pub(super) mode: Mode,
    pub(super) selector: Selector,
    /// The policy's text is not valid; its one rule stands for all of it.
    pub(super) broken: bool,
}

/// The rules that one caller can meet.
#[derive(Debug, Default)]
struct Met {
    deny: Group,
    allow: Group,
    watched_deny: Group,
    watched_allow: Group,
}

/// What one caller can meet of a policy: worked out once for a connection and a revision of the policy.
#[derive(Clone, Debug)]
pub struct Standing {
    version: u64,
    caller: Option<SpiffeId>,
    met: Arc<Met>,
}

impl Standing {
    /// No rule can ever allow anything to this caller.
    pub fn is_hopeless(&self) -> bool {
        self.met.allow.is_empty()
    }

    /// Was it worked out for this compilation of the policy? An older one still decides rightly, but slower.
    pub fn is_of(&self, policy: &Policy) -> bool {
        self.version == policy.version
    }
}

/// How many callers' standings are kept.
const STANDINGS: usize = 4096;
/// How many rules are compared to find the nearest one.
const NEAR: usize = 256;
/// The rule of a policy that is broken as a whole.
const WHOLE: &str = "(the whole policy)";

/// May this policy stand? What [`Policy::compile`] would reject, this refuses with the same sentence.
///
/// # Errors
/// The sentence names the field and what was expected.
pub fn check(policy: &IdentityPolicy) -> Result<(), Invalid> {
    selects(policy, None)?;
    rules(0, policy).map(drop)
}

/// Is the policy about this workload? `None` only checks the patterns.
fn selects(policy: &IdentityPolicy, me: Option<&SpiffeId>) -> Result<bool, Invalid> {
    let workloads = &policy.selector.workloads;
    let mut found = workloads.is_empty();
    for (at, text) in workloads.iter().enumerate() {
        let pattern = parse_pattern(text)
            .map_err(|error| Invalid(format!("selector.workloads[{at}]: {error}")))?;
        found |= me.is_some_and(|me| pattern.matches(me));
    }
    Ok(found)
}

fn rules(policy: u32, text: &IdentityPolicy) -> Result<Vec<Rule>, Invalid> {
    if text.rules.is_empty() {
        return Err(Invalid::new("rules: at least one rule is expected"));
    }
    if let Mode::Canary(_) = text.mode {
        return Err(Invalid::new("mode: canary is not supported yet"));
    }
    let mut rules: Vec<Rule> = Vec::with_capacity(text.rules.len());
    let mut names = std::collections::HashSet::new();
    for (at, rule) in text.rules.iter().enumerate() {
        let rule = Rule::compile(policy, at, text.action, rule)?;
        if !names.insert(rule.name.clone()) {
            return Err(Invalid(format!(
                "rules[{at}].name: \"{}\" names another rule of this policy already",
                rule.name
            )));
        }
        rules.push(rule);
    }
    Ok(rules)
}

impl Policy {
    /// Compiles the policies that select `me`.
    ///
    /// A policy that is not valid is named in the result. Who has its previous version passes that one instead ([`check`]
    /// tells beforehand). Passed as it is, it holds against everybody whom it may select: a broken deny policy refuses all,
    /// a broken allow policy admits nobody. If its workload patterns cannot be read, it is taken to select `me`.
    pub fn compile<'a>(
        policies: impl IntoIterator<Item = (&'a Id, Revision, &'a IdentityPolicy)>,
        me: &SpiffeId,
    ) -> (Self, Vec<Rejected>) {
        static VERSION: AtomicU64 = AtomicU64::new(1);
        let mut sorted: Vec<_> = policies.into_iter().collect();
        // The order decides which of several matching rules is named, and must not depend on the caller.
        sorted.sort_by_key(|(id, ..)| *id);

        let mut rejected = Vec::new();
        let (mut stated, mut all, mut broken_allow) = (Vec::new(), Vec::new(), Vec::new());
        for (id, revision, text) in sorted {
            let policy = index(stated.len());
            let compiled = match selects(text, Some(me)) {
                Ok(false) => rules(policy, text).map(|_| None),
                Ok(true) => rules(policy, text).map(Some),
                Err(error) => Err(error),
            };
            let broken = compiled.is_err();
            match compiled {
                Ok(None) => continue,
                Ok(Some(mut rules)) => all.append(&mut rules),
                Err(Invalid(reason)) => {
                    let kind = Kind::IdentityPolicies;
                    rejected.push(Rejected { kind, id: id.clone(), revision, reason });
                    if selects(text, Some(me)) == Ok(false) {
                        continue;
                    }
                    if text.action == PolicyAction::Allow && text.mode == Mode::Enforce {
                        broken_allow.push(RuleRef(index(all.len())));
                    }
                    all.push(Rule {
                        policy,
                        name: WHOLE.into(),
                        action: text.action,
                        from: Default::default(),
                        to: Default::default(),
                    });
                }
            }
            let selector = Selector::of(&text.selector);
            stated.push(Stated { id: id.clone(), revision, mode: text.mode, selector, broken });
        }

        let mut by_caller = ByCaller::default();
        for (at, rule) in all.iter().enumerate() {
            let stated: &Stated = &stated[rule.policy as usize];
            if !(stated.broken && rule.action == PolicyAction::Allow) {
                by_caller.add(index(at), rule);
            }
        }
        let (mut enforced, mut watched) = (ByRoute::default(), ByRoute::default());
        for (at, stated) in stated.iter().enumerate() {
            match stated.mode {
                Mode::Enforce => enforced.add(index(at), &stated.selector),
                Mode::Observe | Mode::Canary(_) => watched.add(index(at), &stated.selector),
            }
        }
        let mut policy = Self {
            version: VERSION.fetch_add(1, Ordering::Relaxed),
            policies: stated.into(),
            rules: all.into(),
            by_caller,
            enforced,
            watched,
            broken_allow: broken_allow.into(),
            standings: Mutex::default(),
            nobody: Arc::default(),
            asks: Asks::default(),
        };
        policy.nobody = Arc::new(policy.meet(None));
        (policy, rejected)
    }

    /// Does a rule look at header fields? Where none does, an action needs none.
    pub fn asks_fields(&self) -> bool {
        self.asks.fields
    }

    /// Does a rule look at the query?
    pub fn asks_query(&self) -> bool {
        self.asks.query
    }

    /// Does a rule look at the caller's token? Where none does, no decision awaits one.
    pub fn asks_token(&self) -> bool {
        self.asks.token
    }

    /// Does a rule look at the time?
    pub fn asks_time(&self) -> bool {
        self.asks.time
    }

    /// Is a rule in canary mode? Where none is, the connection's lot decides nothing.
    pub fn asks_lot(&self) -> bool {
        self.asks.lot
    }

    /// Does a rule look at the method? Then fields that would override it behind us must go.
    pub fn asks_method(&self) -> bool {
        self.asks.method
    }

    /// How many rules select this workload.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// What the peer of a connection can meet; `None` for a caller without identity.
    pub fn standing(&self, peer: Option<&Peer>) -> Standing {
        self.standing_of(peer.map(|peer| &peer.id))
    }

    /// As [`Policy::standing`], for an ID that is only supposed.
    pub fn standing_of(&self, caller: Option<&SpiffeId>) -> Standing {
        Standing { version: self.version, caller: caller.cloned(), met: self.met(caller) }
    }

    fn met(&self, caller: Option<&SpiffeId>) -> Arc<Met> {
        let Some(id) = caller else { return self.nobody.clone() };
        if let Some(met) = self.standings.lock().get(id) {
            return met.clone();
        }
        let met = Arc::new(self.meet(caller));
        let mut standings = self.standings.lock();
        if standings.len() >= STANDINGS {
            standings.clear();
        }
        standings.insert(id.clone(), met.clone());
        met
    }

    fn meet(&self, caller: Option<&SpiffeId>) -> Met {
        let (mut deny, mut allow) = (Vec::new(), Vec::new());
        let (mut watched_deny, mut watched_allow) = (Vec::new(), Vec::new());
        for at in self.by_caller.candidates(caller) {
            let rule = &self.rules[at as usize];
            if rule.from.fails(caller, rule.action).is_some() {
                continue;
            }
            match (self.stated(rule).mode, rule.action) {
                (Mode::Enforce, PolicyAction::Deny) => deny.push(at),
                (Mode::Enforce, PolicyAction::Allow) => allow.push(at),
                (Mode::Observe | Mode::Canary(_), PolicyAction::Deny) => watched_deny.push(at),
                (Mode::Observe | Mode::Canary(_), PolicyAction::Allow) => watched_allow.push(at),
            }
        }
        let group = |list| Group::new(list, &self.rules, &self.policies);
        Met {
            deny: group(deny),
            allow: group(allow),
            watched_deny: group(watched_deny),
            watched_allow: group(watched_allow),
        }
    }

    pub(super) fn stated(&self, rule: &Rule) -> &Stated {
        &self.policies[rule.policy as usize]
    }

    /// Decides where everything is refused that no rule allows: towards workloads.
    pub fn decide(&self, standing: &Standing, action: &Action<'_>) -> Decision {
        let mut anew = None;
        let met = self.current(standing, &mut anew);
        let facts = Facts::of(action);
        let outcome = self.outcome(met, standing.caller.as_ref(), &facts);
        Decision {
            outcome,
            would_be: self.would_be(met, standing.caller.as_ref(), &facts, outcome),
            awaits_token: false,
        }
    }

    /// Decides at a public door: a request is refused only where a policy selects its route and no rule allows it.
    pub fn decide_public(&self, standing: &Standing, action: &Action<'_>) -> Decision {
        let facts = Facts::of(action);
        if self.enforced.selects(&facts, &self.policies) {
            return self.decide(standing, action);
        }
        let outcome = Outcome::Allow(None);
        if !self.watched.selects(&facts, &self.policies) {
            return Decision { outcome, would_be: None, awaits_token: false };
        }
        let mut anew = None;
        let met = self.current(standing, &mut anew);
        let caller = standing.caller.as_ref();
        let would_be = match self.first(&met.watched_deny, &facts, PolicyAction::Deny) {
            Some(rule) => Some(self.refused_by(rule, caller, &facts)),
            None => match self.first(&met.watched_allow, &facts, PolicyAction::Allow) {
                Some(_) => None,
                None => Some(Outcome::Deny(Reason::NoRule, None)),
            },
        };
        Decision { outcome, would_be, awaits_token: false }
    }

    /// Does an enforced policy select this route? Public routes that none selects are open.
    pub fn governs(&self, route: RouteFacts<'_>) -> bool {
        let action = Action::http(0, "", "", "").on_route(Some(route));
        self.enforced.selects(&Facts::of(&action), &self.policies)
    }

    /// The standing's rules, worked out anew when it is of another compilation.
    fn current<'a>(&self, standing: &'a Standing, anew: &'a mut Option<Arc<Met>>) -> &'a Met {
        if standing.is_of(self) {
            return &standing.met;
        }
        anew.insert(self.met(standing.caller.as_ref()))
    }

    fn outcome(&self, met: &Met, caller: Option<&SpiffeId>, facts: &Facts<'_>) -> Outcome {
        if let Some(rule) = self.first(&met.deny, facts, PolicyAction::Deny) {
            return self.refused_by(rule, caller, facts);
        }
        if let Some(rule) = self.first(&met.allow, facts, PolicyAction::Allow) {
            return Outcome::Allow(Some(RuleRef(rule)));
        }
        self.refused(met, caller, facts)
    }

    fn would_be(
        &self,
        met: &Met,
        caller: Option<&SpiffeId>,
        facts: &Facts<'_>,
        outcome: Outcome,
    ) -> Option<Outcome> {
        if met.watched_deny.is_empty() && met.watched_allow.is_empty() {
            return None;
        }
        let refused = || self.first(&met.watched_deny, facts, PolicyAction::Deny);
        if outcome.is_allowed() {
            return refused().map(|rule| self.refused_by(rule, caller, facts));
        }
        // What a deny rule refused stays refused, whatever is allowed beside it.
        if self.first(&met.deny, facts, PolicyAction::Deny).is_some() || refused().is_some() {
            return None;
        }
        let allowed = self.first(&met.watched_allow, facts, PolicyAction::Allow)?;
        Some(Outcome::Allow(Some(RuleRef(allowed))))
    }

    /// The first rule of the group that holds.
    fn first(&self, group: &Group, facts: &Facts<'_>, action: PolicyAction) -> Option<u32> {
        if group.is_empty() {
            return None;
        }
        group.first(facts, |at| {
            let rule = &self.rules[at as usize];
            self.stated(rule).selector.selects(facts, action)
                && rule.to.fails(facts, action).is_none()
        })
    }

    /// A deny rule held: why?
    fn refused_by(&self, rule: u32, caller: Option<&SpiffeId>, facts: &Facts<'_>) -> Outcome {
        let found = &self.rules[rule as usize];
        let unclear = || matches!(facts.readings(), Readings::Unclear);
        let reason = if self.stated(found).broken {
            Reason::BrokenPolicy
        } else if caller.is_none() && found.from.asks_identity() {
            Reason::NoIdentity
        } else if found.to.asks_path() && facts.http.is_some() && unclear() {
            Reason::AmbiguousPath
        } else {
            Reason::DeniedByRule
        };
        Outcome::Deny(reason, Some(RuleRef(rule)))
    }

    /// Nothing refused and nothing allowed: why?
    #[cold]
    fn refused(&self, met: &Met, caller: Option<&SpiffeId>, facts: &Facts<'_>) -> Outcome {
        let about = |rule: &Rule| self.stated(rule).selector.selects(facts, PolicyAction::Allow);
        let broken = self.broken_allow.iter().find(|rule| about(&self.rules[rule.0 as usize]));
        if let Some(rule) = broken {
            return Outcome::Deny(Reason::BrokenPolicy, Some(*rule));
        }
        if caller.is_none() && met.allow.is_empty() {
            return Outcome::Deny(Reason::NoIdentity, None);
        }
        // A rule that would hold for one reading of the path, but not for all.
        let split = facts.http.is_some() && facts.plain_path().is_none();
        let holds_for_one = |at: &u32| {
            let rule = &self.rules[*at as usize];
            rule.to.asks_path()
                && rule.to.fails_beside_paths(facts, PolicyAction::Allow).is_none()
                && rule.to.fails_by_path(facts, PolicyAction::Deny).is_none()
                && about(rule)
        };
        let ambiguous =
            split.then(|| met.allow.all().iter().take(NEAR).find(|at| holds_for_one(at)));
        match ambiguous.flatten() {
            Some(rule) => Outcome::Deny(Reason::AmbiguousPath, Some(RuleRef(*rule))),
            None => Outcome::Deny(Reason::NoRule, None),
        }
    }

    /// The name of a rule that this policy's decision pointed at.
    pub fn rule(&self, rule: RuleRef) -> Option<RuleName<'_>> {
        let rule = self.rules.get(rule.0 as usize)?;
        let Stated { id, revision, .. } = self.stated(rule);
        Some(RuleName { policy: id, rule: &rule.name, revision: *revision })
    }

    /// The allow rule that came nearest to matching: what an operator would change first.
    ///
    /// Rules that mean this caller come before all others. Of very many rules only the first 256 are compared.
    pub fn nearest(&self, standing: &Standing, action: &Action<'_>) -> Option<Near> {
        let mut anew = None;
        let met = self.current(standing, &mut anew);
        let facts = Facts::of(action);
        let caller = standing.caller.as_ref();
        let near = self.nearest_of(met.allow.all().iter().copied(), caller, &facts);
        near.or_else(|| self.nearest_of(0..index(self.rules.len()), caller, &facts))
    }

    fn nearest_of(
        &self,
        rules: impl Iterator<Item = u32>,
        caller: Option<&SpiffeId>,
        facts: &Facts<'_>,
    ) -> Option<Near> {
        let allows = |at: &u32| {
            let rule = &self.rules[*at as usize];
            let stated = self.stated(rule);
            rule.action == PolicyAction::Allow && stated.mode == Mode::Enforce && !stated.broken
        };
        let near = rules.filter(allows).take(NEAR).filter_map(|at| {
            let failed = self.failed(&self.rules[at as usize], caller, facts);
            let first = *failed.first()?;
            let distance: u32 = failed.iter().map(|clause| clause.weight()).sum();
            Some((distance, Near { rule: RuleRef(at), clause: first }))
        });
        near.min_by_key(|(distance, near)| (*distance, near.rule)).map(|(_, near)| near)
    }

    /// All parts of a rule that do not hold, in the order of their weight for this caller: who, where, what.
    pub(super) fn failed(
        &self,
        rule: &Rule,
        caller: Option<&SpiffeId>,
        facts: &Facts<'_>,
    ) -> smallvec::SmallVec<[Clause; 4]> {
        let mut failed = smallvec::SmallVec::new();
        failed.extend(rule.from.fails(caller, rule.action));
        if !self.stated(rule).selector.selects(facts, rule.action) {
            failed.push(Clause::Selector);
        }
        failed.extend(rule.to.fails_beside_paths(facts, rule.action));
        failed.extend(rule.to.fails_by_path(facts, rule.action));
        failed
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).expect("a policy has fewer than 2^32 rules")
}
