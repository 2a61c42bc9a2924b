//! `Policy`: all policies of one workload, compiled; `Standing`: what one caller can meet of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::decision::RuleRef;
use super::index::{ByCaller, ByRoute, Group};
use super::rule::{Frame, LOTS, Rule, check_mode, decides_below, parse_pattern};
use super::selector::Selector;
use super::turning::Turning;
use crate::identity::{Peer, SpiffeId, TrustDomain};
use crate::model::{Id, IdentityPolicy, Invalid, Kind, Mode, PolicyAction, Rejected, Revision};

/// The policies that one workload enforces, compiled. Immutable; replaced as a whole.
///
/// A decision takes a [`Standing`], which is worked out once for a connection, and an [`Action`](super::Action):
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
    pub(super) by_route: ByRoute,
    /// Enforced allow policies that are broken: they admit nobody, and are named when nobody else admits.
    pub(super) broken_allow: Box<[RuleRef]>,
    /// The standings of callers that were here already. Peers that connect again, and all of them at a new revision of the
    /// policy, share theirs.
    standings: Mutex<HashMap<SpiffeId, Arc<Met>>>,
    nobody: Arc<Met>,
    pub(super) asks: Asks,
    pub(super) turning: Turning,
}

/// Which facts the rules look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asks {
    fields: bool,
    query: bool,
    pub(super) token: bool,
    time: bool,
    lot: bool,
    method: bool,
}

impl Asks {
    fn of(rules: &[Rule]) -> Self {
        let when = || rules.iter().filter_map(|rule| rule.when.as_deref());
        Self {
            fields: when().any(|when| when.asks_fields())
                || rules.iter().any(|rule| rule.to.asks_fields()),
            query: when().any(|when| when.asks_query()),
            token: when().any(|when| when.asks_token()),
            time: when().any(|when| when.asks_time()),
            lot: rules.iter().any(|rule| matches!(rule.mode, Mode::Canary(_))),
            method: rules.iter().any(|rule| {
                let condition = rule.when.as_ref().is_some_and(|when| when.condition_asks_http());
                rule.to.asks_method() || condition
            }),
        }
    }
}

/// What is kept of a policy beside its rules.
#[derive(Debug)]
pub(super) struct Stated {
    pub(super) id: Id,
    pub(super) revision: Revision,
    pub(super) selector: Selector,
    /// One of its rules decides for lots below.
    pub(super) decides_below: u8,
    /// One of its rules is only watched for lots from here on.
    pub(super) watched_from: u8,
    /// The policy's text is not valid; its one rule stands for all of it.
    pub(super) broken: bool,
}

/// The rules that one caller can meet. A rule in canary mode stands among those that decide and among the watched.
#[derive(Debug, Default)]
pub(super) struct Met {
    pub(super) deny: Group,
    pub(super) allow: Group,
    pub(super) watched_deny: Group,
    pub(super) watched_allow: Group,
}

/// What one caller can meet of a policy: worked out once for a connection and a revision of the policy.
#[derive(Clone, Debug)]
pub struct Standing {
    version: u64,
    pub(super) caller: Option<SpiffeId>,
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
/// The rule of a policy that is broken as a whole.
const WHOLE: &str = "(the whole policy)";

/// May this policy stand? What [`Policy::compile`] would reject, this refuses with the same sentence.
///
/// # Errors
/// The sentence names the field and what was expected.
pub fn check(policy: &IdentityPolicy) -> Result<(), Invalid> {
    selects(policy, None)?;
    rules(0, policy, None).map(drop)
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

fn rules(
    policy: u32,
    text: &IdentityPolicy,
    own: Option<&TrustDomain>,
) -> Result<Vec<Rule>, Invalid> {
    if text.rules.is_empty() {
        return Err(Invalid::new("rules: at least one rule is expected"));
    }
    check_mode(text.mode).map_err(|why| Invalid(format!("mode: {why}")))?;
    let frame = Frame { policy, action: text.action, mode: text.mode, own };
    let mut rules: Vec<Rule> = Vec::with_capacity(text.rules.len());
    let mut names = std::collections::HashSet::new();
    for (at, rule) in text.rules.iter().enumerate() {
        let rule = Rule::compile(frame, at, rule)?;
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

/// The mode of a policy that is broken as a whole: the strictest that it may have been meant to have.
pub(super) fn strictest(text: &IdentityPolicy) -> Mode {
    let modes = text.rules.iter().filter_map(|rule| rule.mode).chain([text.mode]);
    let modes = modes.map(|mode| if check_mode(mode).is_ok() { mode } else { Mode::Enforce });
    modes.max_by_key(|mode| decides_below(*mode)).unwrap_or_default()
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

        let own = me.trust_domain();
        let mut rejected = Vec::new();
        let (mut stated, mut all, mut broken_allow) = (Vec::new(), Vec::new(), Vec::new());
        for (id, revision, text) in sorted {
            let policy = index(stated.len());
            let compiled = match selects(text, Some(me)) {
                Ok(false) => rules(policy, text, Some(&own)).map(|_| None),
                Ok(true) => rules(policy, text, Some(&own)).map(Some),
                Err(error) => Err(error),
            };
            let broken = compiled.is_err();
            let first = all.len();
            match compiled {
                Ok(None) => continue,
                Ok(Some(mut rules)) => all.append(&mut rules),
                Err(Invalid(reason)) => {
                    let kind = Kind::IdentityPolicies;
                    rejected.push(Rejected { kind, id: id.clone(), revision, reason });
                    if selects(text, Some(me)) == Ok(false) {
                        continue;
                    }
                    let mode = strictest(text);
                    if text.action == PolicyAction::Allow && mode != Mode::Observe {
                        broken_allow.push(RuleRef(index(all.len())));
                    }
                    let frame = Frame { policy, action: text.action, mode, own: None };
                    all.push(Rule::whole(frame, WHOLE));
                }
            }
            let bounds = all[first..].iter().map(|rule: &Rule| decides_below(rule.mode));
            stated.push(Stated {
                id: id.clone(),
                revision,
                selector: Selector::of(&text.selector),
                decides_below: bounds.clone().max().unwrap_or(0),
                watched_from: bounds.min().unwrap_or(LOTS),
                broken,
            });
        }

        let mut by_caller = ByCaller::default();
        for (at, rule) in all.iter().enumerate() {
            let stated: &Stated = &stated[rule.policy as usize];
            if !(stated.broken && rule.action == PolicyAction::Allow) {
                by_caller.add(index(at), rule);
            }
        }
        let mut by_route = ByRoute::default();
        for (at, stated) in stated.iter().enumerate() {
            by_route.add(index(at), stated);
        }
        let asks = Asks::of(&all);
        let turning = Turning::of(&all);
        let mut policy = Self {
            version: VERSION.fetch_add(1, Ordering::Relaxed),
            policies: stated.into(),
            rules: all.into(),
            by_caller,
            by_route,
            broken_allow: broken_allow.into(),
            standings: Mutex::default(),
            nobody: Arc::default(),
            asks,
            turning,
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

    /// May what a rule says of the time be another thing at `now` than it was at `before`, in seconds since 1970? What was
    /// decided before is to be decided again then. Of conditions that ask the time it is supposed every ten seconds.
    pub fn turns(&self, before: i64, now: i64) -> bool {
        self.turning.turns(before, now)
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
            let (deciding, watched) = match rule.action {
                PolicyAction::Deny => (&mut deny, &mut watched_deny),
                PolicyAction::Allow => (&mut allow, &mut watched_allow),
            };
            if rule.mode != Mode::Observe {
                deciding.push(at);
            }
            if rule.mode != Mode::Enforce {
                watched.push(at);
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

    /// The standing's rules, worked out anew when it is of another compilation.
    pub(super) fn current<'a>(
        &self,
        standing: &'a Standing,
        anew: &'a mut Option<Arc<Met>>,
    ) -> &'a Met {
        if standing.is_of(self) {
            return &standing.met;
        }
        anew.insert(self.met(standing.caller.as_ref()))
    }
}

pub(super) fn index(at: usize) -> u32 {
    u32::try_from(at).expect("a policy has fewer than 2^32 rules")
}
