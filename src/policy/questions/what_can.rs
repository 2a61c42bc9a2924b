//! `what_can`: everything that one identity may do, at every workload that policies are about.

use serde::{Deserialize, Serialize};

use super::callers::Callers;
use super::captures::bound_by;
use super::conditions::conditions;
use super::overlap::{may_overlap, selectors_meet, share_a_workload};
use super::policies::{Policies, Stated, Via};
use super::who_can::Broken;
use crate::identity::SpiffeId;
use crate::model::{From, Mode, PolicyAction, PolicyRule, PolicySelector, To};

/// The question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhatCan {
    /// The caller.
    pub identity: String,
}

/// The answer: the caller may do what a permit says, unless a refusal that it names says so too. It may do nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Abilities {
    /// The caller.
    pub identity: String,
    /// What it may do.
    pub permits: Vec<Permit>,
    /// What deny rules refuse it; permits name them by their place in this list.
    pub refusals: Vec<Permit>,
    /// Policies that are not valid: they allow nothing, and refuse everything where they deny.
    pub broken: Vec<Broken>,
}

/// What one rule says about the caller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Permit {
    /// At which workloads: IDs and patterns; empty: at all.
    pub workloads: Vec<String>,
    /// What: methods, path templates, hosts, ports and the rest, as the rule says it. Nothing: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<To>,
    /// What has to hold besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
    /// The rule.
    pub via: Via,
    /// Which of the answer's refusals may concern it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<usize>,
}

/// A rule that is about the caller.
pub(super) struct About<'a> {
    pub(super) stated: &'a Stated,
    /// The rule without who calls.
    pub(super) rule: PolicyRule,
    /// Only at workloads of the caller's trust domain, or only at others.
    #[cfg(test)]
    pub(super) at_own: Option<bool>,
    pub(super) permit: Permit,
}

impl Policies {
    /// What may this identity do, and where?
    pub fn what_can(&self, identity: &SpiffeId) -> Abilities {
        let (allows, denies) = self.about_caller(identity);
        let broken = self.iter().filter(|stated| stated.broken.is_some());
        Abilities {
            identity: identity.to_string(),
            permits: allows.into_iter().map(|about| about.permit).collect(),
            refusals: denies.into_iter().map(|about| about.permit).collect(),
            broken: broken.map(Stated::as_broken).collect(),
        }
    }

    /// The allow rules and the deny rules that are about the caller.
    pub(super) fn about_caller(&self, identity: &SpiffeId) -> (Vec<About<'_>>, Vec<About<'_>>) {
        let (mut allows, mut denies) = (Vec::new(), Vec::new());
        for stated in self.iter().filter(|stated| stated.broken.is_none()) {
            for (at, rule) in stated.text.rules.iter().enumerate() {
                let via = stated.rule(at);
                let list = match (via.mode, via.action) {
                    (Mode::Observe, _) => continue,
                    (_, PolicyAction::Allow) => &mut allows,
                    (_, PolicyAction::Deny) => &mut denies,
                };
                let bound = bound_by(rule, identity);
                list.extend(bound.iter().filter_map(|rule| about(stated, rule, &via, identity)));
            }
        }
        for allow in &mut allows {
            let concerns = |deny: &About<'_>| {
                share_a_workload(allow.stated, deny.stated)
                    && selectors_meet(&allow.stated.text.selector, &deny.stated.text.selector)
                    && may_overlap(&allow.rule, &deny.rule)
            };
            let met = denies.iter().enumerate().filter(|(_, deny)| concerns(deny));
            allow.permit.except = met.map(|(at, _)| at).collect();
        }
        (allows, denies)
    }
}

/// What the rule says of the caller, if it is about it.
fn about<'a>(
    stated: &'a Stated,
    rule: &PolicyRule,
    via: &Via,
    identity: &SpiffeId,
) -> Option<About<'a>> {
    let own = identity.trust_domain_name();
    // Namespaces mean the workload's own trust domain, which may be the caller's or another.
    let means = |domain: &str| {
        Callers::of(rule.from.as_ref(), stated.text.action, domain).holds(Some(identity))
    };
    let at_own = match (means(own), means("")) {
        (false, false) => return None,
        (true, true) => None,
        (here, _) => Some(here),
    };
    let selector = &stated.text.selector;
    let mut without = rule.clone();
    without.from = without.from.map(circumstances).filter(|from| *from != From::default());
    let mut besides = PolicyRule { to: None, ..without.clone() };
    besides.name = None;
    let by_route = PolicySelector { workloads: Vec::new(), ..selector.clone() };
    let mut conditions = conditions(&by_route, &besides, via.mode);
    conditions.extend(at_own.map(|here| match here {
        true => format!("at workloads of {own}"),
        false => format!("at workloads of other trust domains than {own}"),
    }));
    let permit = Permit {
        workloads: selector.workloads.clone(),
        to: without.to.clone(),
        conditions,
        via: via.clone(),
        except: Vec::new(),
    };
    Some(About {
        stated,
        rule: without,
        #[cfg(test)]
        at_own,
        permit,
    })
}

/// What of `from` is not about an identity.
fn circumstances(from: From) -> From {
    let From {
        principals: _,
        not_principals: _,
        trust_domains: _,
        not_trust_domains: _,
        namespaces: _,
        not_namespaces: _,
        service_accounts: _,
        not_service_accounts: _,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
        claims,
    } = from;
    From {
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
        claims,
        ..From::default()
    }
}
