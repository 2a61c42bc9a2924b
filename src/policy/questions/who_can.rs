//! `who_can`: everybody who may do something at a workload, as sets of callers, each with the rule that admits it, the conditions
//! that have to hold besides, and what deny rules take away.

use serde::{Deserialize, Serialize};

use super::super::Policy;
use super::callers::{ByShape, Callers};
use super::conditions::conditions;
use super::parts::{Parts, take_apart, take_selector_apart};
use super::policies::{Policies, Stated, Via};
use super::shape::Shape;
use super::target::Target;
use super::variants::{Variant, variants};
use crate::identity::SpiffeId;
use crate::model::{Id, IdentityPolicy, Mode, PolicyAction, PolicyRule};

/// The question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhoCan {
    /// The workload that is called.
    pub workload: String,
    /// What is asked of it.
    #[serde(default)]
    pub target: Target,
}

/// The answer: whoever is in `who` of a grant, not in its `but`, and not in an exception of it, may do it, if the conditions hold.
/// Nobody else may.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allowed {
    /// The workload.
    pub workload: String,
    /// What was asked.
    pub target: Target,
    /// Who may.
    pub grants: Vec<Grant>,
    /// What deny rules take away; grants name them by their place in this list.
    pub denials: Vec<Denial>,
    /// Rules that would allow it, of which deny rules leave nothing.
    pub overruled: Vec<Via>,
    /// Rules that only observe; they decide nothing.
    pub watched: Vec<Watched>,
    /// Policies that are not valid: they allow nobody, and refuse everybody where they deny.
    pub broken: Vec<Broken>,
}

/// Whom one rule admits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// IDs and patterns of IDs; `anybody of NAME`: of a trust domain; `anybody with an identity`; `anybody without an identity`;
    /// `anybody`.
    pub who: Vec<String>,
    /// Who is meant by `who` and not admitted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub but: Vec<String>,
    /// The rule.
    pub via: Via,
    /// What has to hold besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
    /// Which of the answer's denials concern it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<usize>,
}

/// Whom one deny rule refuses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Denial {
    /// As in [`Grant::who`].
    pub who: Vec<String>,
    /// Who is meant by `who` and not refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub but: Vec<String>,
    /// The rule.
    pub via: Via,
    /// It refuses only where these hold, or cannot be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
}

/// What a rule that only observes would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    /// As in [`Grant::who`].
    pub who: Vec<String>,
    /// Who is meant by `who` and not concerned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub but: Vec<String>,
    /// The rule.
    pub via: Via,
    /// What has to hold besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
}

/// A policy that is not valid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Broken {
    /// The policy.
    pub via: Via,
    /// What is wrong with it.
    pub why: String,
}

/// A rule that may hold for the target, and what of it is open.
pub(super) struct Candidate<'a> {
    pub(super) stated: &'a Stated,
    /// The rule's place in its policy.
    pub(super) at: usize,
    pub(super) mode: Mode,
    pub(super) callers: Callers,
    pub(super) conditions: Vec<String>,
    /// What the conditions say, as the engine judges it.
    #[cfg(test)]
    pub(super) open: (crate::model::PolicySelector, PolicyRule),
}

/// So many rules before are looked at for one that asks the same.
const ALIKE: usize = 8;

impl Policies {
    /// Who may do this at the workload? Decided by the same rules that the workload enforces.
    pub fn who_can(&self, workload: &SpiffeId, target: &Target) -> Allowed {
        let (candidates, broken) = self.candidates(workload, target);
        let (mut allows, mut denies, mut watched) = (Vec::new(), Vec::new(), Vec::new());
        for candidate in candidates {
            match (candidate.mode, candidate.stated.text.action) {
                (Mode::Observe, _) => watched.push(Watched {
                    who: candidate.callers.texts(),
                    but: texts(&candidate.callers.but),
                    via: candidate.stated.rule(candidate.at),
                    conditions: candidate.conditions,
                }),
                (_, PolicyAction::Allow) => allows.push(candidate),
                (_, PolicyAction::Deny) => denies.push(candidate),
            }
        }
        let refuses_all = |broken: &Stated| {
            let via = broken.whole();
            via.action == PolicyAction::Deny && via.mode != Mode::Observe
        };
        let mut answer = Allowed {
            workload: workload.to_string(),
            target: target.clone(),
            grants: Vec::new(),
            denials: Vec::new(),
            overruled: Vec::new(),
            watched,
            broken: broken.iter().map(|stated| stated.as_broken()).collect(),
        };
        if broken.iter().any(|broken| refuses_all(broken)) {
            answer.overruled = allows.iter().map(|one| one.stated.rule(one.at)).collect();
            return answer;
        }
        subtract(&allows, &denies, &mut answer);
        answer
    }

    /// The rules that may hold for the target, by policy and place, and the policies that are not valid.
    pub(super) fn candidates(
        &self,
        workload: &SpiffeId,
        target: &Target,
    ) -> (Vec<Candidate<'_>>, Vec<&Stated>) {
        let known = target.known();
        let (mut found, mut settled, mut broken) = (Vec::new(), Vec::new(), Vec::new());
        // For each candidate, the place of its settled part among those that the engine judges.
        let (mut places, mut judged) = (Vec::new(), 0);
        for stated in self.about(workload) {
            if stated.broken.is_some() {
                broken.push(stated);
                continue;
            }
            let text = &stated.text;
            let mut rules: Vec<PolicyRule> = Vec::new();
            let (known_selector, open_selector) = take_selector_apart(&text.selector, known);
            for (at, rule) in text.rules.iter().enumerate() {
                if surely_fails(text.action, rule, target) {
                    continue;
                }
                let own = workload.trust_domain_name();
                let mode = rule.mode.unwrap_or(text.mode);
                for variant in variants(rule, text.action, target, own) {
                    let Variant { rule, known, callers, besides } = variant;
                    let Parts { settled, open } = take_apart(rule, known);
                    // Rules beside each other often ask the same of what is known.
                    let same = rules.iter().rev().take(ALIKE).position(|rule| *rule == settled);
                    let place = same.map_or(rules.len(), |back| rules.len() - 1 - back);
                    if same.is_none() {
                        rules.push(settled);
                    }
                    places.push(judged + place);
                    let mut conditions = conditions(&open_selector, &open, mode);
                    conditions.extend(besides);
                    found.push(Candidate {
                        stated,
                        at,
                        mode,
                        callers,
                        conditions,
                        #[cfg(test)]
                        open: (open_selector.clone(), open),
                    });
                }
            }
            judged += rules.len();
            if !rules.is_empty() {
                let settled_text = IdentityPolicy {
                    id: None,
                    name: None,
                    desc: None,
                    labels: Default::default(),
                    selector: known_selector,
                    action: text.action,
                    mode: Mode::Enforce,
                    rules,
                    signature: None,
                    create_time: None,
                    update_time: None,
                };
                settled.push((&stated.id, settled_text));
            }
        }
        let held = held(&settled, workload, target);
        debug_assert_eq!(held.len(), judged, "every part was judged");
        let mut places = places.into_iter();
        // What was not judged, which cannot be, counts as what may hold.
        found.retain(|_| places.next().and_then(|at| held.get(at).copied()).unwrap_or(true));
        (found, broken)
    }
}

impl Stated {
    pub(super) fn as_broken(&self) -> Broken {
        Broken { via: self.whole(), why: self.broken.clone().unwrap_or_default() }
    }
}

/// Which of the rules hold for what is known: the engine says so.
fn held(settled: &[(&Id, IdentityPolicy)], workload: &SpiffeId, target: &Target) -> Vec<bool> {
    let (engine, rejected) =
        Policy::compile(settled.iter().map(|(id, text)| (*id, 0, text)), workload);
    debug_assert!(rejected.is_empty(), "a part of a valid rule is valid: {rejected:?}");
    let fields = target.fields();
    engine.held(None, &target.action(&fields))
}

/// Does it fail for a reason that its text shows? Spares the engine most rules; it would say the same.
fn surely_fails(action: PolicyAction, rule: &PolicyRule, target: &Target) -> bool {
    let Some(to) = &rule.to else { return false };
    if let Some(method) = target.method.as_ref().filter(|_| !target.connection) {
        let means = |one: &String| match action {
            PolicyAction::Allow => one == method,
            PolicyAction::Deny => one.eq_ignore_ascii_case(method),
        };
        if !to.methods.is_empty() && !to.methods.iter().any(means) {
            return true;
        }
    }
    let Some(path) = target.path.as_ref().filter(|_| !target.connection) else { return false };
    if to.paths.is_empty() || to.ignore_case || !is_simple(path) {
        return false;
    }
    let first = |path: &str| path.split('/').nth(1).unwrap_or_default().to_owned();
    let wanted = first(path);
    to.paths.iter().all(|template| is_simple(template) && first(template) != wanted)
}

/// Reads as it stands, and its first segment means only itself.
fn is_simple(path: &str) -> bool {
    let first = path.split('/').nth(1).unwrap_or_default();
    path.starts_with('/')
        && !first.is_empty()
        && first.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && path.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/' | b'{' | b'}' | b'*')
        })
        && !path.contains("//")
}

pub(super) fn texts(shapes: &[Shape]) -> Vec<String> {
    shapes.iter().map(ToString::to_string).collect()
}

/// Writes down whom the allow rules admit, without whom the deny rules refuse.
fn subtract(allows: &[Candidate<'_>], denies: &[Candidate<'_>], answer: &mut Allowed) {
    let mut index = ByShape::default();
    for (at, deny) in denies.iter().enumerate() {
        index.add(u32::try_from(at).unwrap_or(u32::MAX), &deny.callers);
    }
    // Whoever has no identity meets every deny rule.
    let refuses_nobody: Vec<usize> =
        (0..denies.len()).filter(|at| denies[*at].callers.nobody).collect();
    let nobody_refused = refuses_nobody.iter().any(|at| denies[*at].conditions.is_empty());
    // Places in `denials` of the denies that take something away.
    let mut placed: Vec<Option<usize>> = vec![None; denies.len()];
    for allow in allows {
        let mut callers = allow.callers.clone();
        let mut met: Vec<usize> = Vec::new();
        let mut kept = Vec::new();
        for shape in std::mem::take(&mut callers.any_of) {
            let near = index.near(&shape);
            if near.is_empty() && callers.but.is_empty() {
                kept.push(shape);
                continue;
            }
            let alone =
                Callers { any_of: vec![shape.clone()], but: callers.but.clone(), nobody: false };
            let near: Vec<usize> = near
                .into_iter()
                .map(|at| at as usize)
                .filter(|at| alone.meets(&denies[*at].callers))
                .collect();
            // What is refused without a condition and without an exclusion of its own.
            let gone: Vec<&Shape> = near
                .iter()
                .map(|at| &denies[*at])
                .filter(|deny| deny.conditions.is_empty() && deny.callers.but.is_empty())
                .flat_map(|deny| &deny.callers.any_of)
                .collect();
            if alone.left_of(&gone).is_some() {
                kept.push(shape);
                met.extend(near);
            }
        }
        callers.any_of = kept;
        callers.nobody &= !nobody_refused;
        if callers.nobody {
            met.extend(&refuses_nobody);
        }
        callers.but.retain(|out| callers.any_of.iter().any(|shape| shape.meet(out).is_some()));
        if callers.any_of.is_empty() && !callers.nobody {
            answer.overruled.push(allow.stated.rule(allow.at));
            continue;
        }
        met.sort_unstable();
        met.dedup();
        let except = met.into_iter().map(|at| {
            *placed[at].get_or_insert_with(|| {
                let deny = &denies[at];
                answer.denials.push(Denial {
                    who: deny.callers.texts(),
                    but: texts(&deny.callers.but),
                    via: deny.stated.rule(deny.at),
                    conditions: deny.conditions.clone(),
                });
                answer.denials.len() - 1
            })
        });
        let except = except.collect();
        answer.grants.push(Grant {
            who: callers.texts(),
            but: texts(&callers.but),
            via: allow.stated.rule(allow.at),
            conditions: allow.conditions.clone(),
            except,
        });
    }
}
