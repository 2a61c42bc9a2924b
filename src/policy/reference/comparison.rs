//! The compiled index against the reference.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::generators::{Asked, Known, asked, policies, token};
use super::{Candidates, decide, governs};
use crate::identity::SpiffeId;
use crate::model::{Id, IdentityPolicy, PolicyAction};
use crate::policy::{Decision, Outcome, Policy, Reason};

/// So many cases, unless `WARDGATE_POLICY_CASES` asks for another number.
const CASES: u32 = 20_000;

#[test]
fn the_index_decides_as_the_reference_does() {
    let cases = std::env::var("WARDGATE_POLICY_CASES")
        .map_or(CASES, |text| text.parse().expect("WARDGATE_POLICY_CASES is a number"));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(
        &(policies(), asked(), proptest::collection::vec(token(), 1..4)),
        |(policies, asked, tokens)| {
            let me: SpiffeId = "spiffe://a/me".parse().unwrap();
            let texts = policies.iter().map(|(id, policy)| (id, 1, policy));
            let (compiled, rejected) = Policy::compile(texts, &me);
            prop_assert!(rejected.is_empty(), "{:?}", rejected);
            let decision = towards_a_workload(&compiled, &policies, &me, &asked)?;
            at_a_public_door(&compiled, &policies, &me, &asked)?;
            explained(&compiled, &asked, decision)?;
            with_tokens(&compiled, &asked, decision, &tokens)
        },
    );
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn towards_a_workload(
    compiled: &Policy,
    policies: &[(Id, IdentityPolicy)],
    me: &SpiffeId,
    asked: &Asked,
) -> Result<Decision, TestCaseError> {
    let standing = compiled.standing_of(asked.caller.as_ref());
    let decision = compiled.decide(&standing, &asked.action());
    let expected = decide(policies, me, asked, Candidates::Deciding);
    prop_assert_eq!(decision.is_allowed(), expected.allowed, "{:?}", decision);
    let would_be = decide(policies, me, asked, Candidates::All);
    let found = decision.would_be.map_or(decision.is_allowed(), Outcome::is_allowed);
    prop_assert_eq!(found, would_be.allowed, "would be: {:?}", decision);
    prop_assert!(decision.would_be.is_none_or(|o| o.is_allowed() != decision.is_allowed()));
    // A refusal may name the rule that would have allowed it but for one thing; the reference does not look for it.
    let but_for = [Reason::AmbiguousPath, Reason::NoToken, Reason::UpgradeNotAllowed].map(Some);
    if expected.rule.is_some() || !but_for.contains(&decision.outcome.reason()) {
        let rule = decision.outcome.rule().and_then(|rule| compiled.rule(rule));
        let rule = rule.map(|rule| (rule.policy.to_string(), rule.rule.parse().unwrap()));
        prop_assert_eq!(rule, expected.rule, "{:?}", decision);
    }
    // What is watched awaits the token as well, as long as it can still turn the answer.
    let turns = would_be.allowed && would_be.awaits_token;
    let awaits = expected.allowed && (expected.awaits_token || turns);
    prop_assert_eq!(decision.awaits_token, awaits, "{:?}", decision);
    if standing.is_hopeless() {
        prop_assert!(!decision.is_allowed());
    }
    Ok(decision)
}

fn at_a_public_door(
    compiled: &Policy,
    policies: &[(Id, IdentityPolicy)],
    me: &SpiffeId,
    asked: &Asked,
) -> Result<(), TestCaseError> {
    let standing = compiled.standing_of(asked.caller.as_ref());
    let decision = compiled.decide_public(&standing, &asked.action());
    if governs(policies, me, asked, Candidates::Deciding) {
        prop_assert_eq!(decision, compiled.decide(&standing, &asked.action()));
        return Ok(());
    }
    prop_assert_eq!(decision.outcome, Outcome::Allow(None));
    let is_watched = governs(policies, me, asked, Candidates::Watched);
    let would_be = decide(policies, me, asked, Candidates::Watched);
    prop_assert_eq!(decision.would_be.is_none(), would_be.allowed || !is_watched);
    prop_assert_eq!(decision.awaits_token, is_watched && would_be.awaits_token);
    Ok(())
}

fn explained(compiled: &Policy, asked: &Asked, decision: Decision) -> Result<(), TestCaseError> {
    let explained = compiled.explain(asked.caller.as_ref(), &asked.action());
    prop_assert_eq!(explained.decision, decision);
    let awaited = matches!(&asked.http, Ok(http) if matches!(http.token, Known::Awaited));
    for tried in &explained.tried {
        if decision.is_allowed() && tried.mode == crate::model::Mode::Enforce && !awaited {
            let denies = tried.action == PolicyAction::Deny;
            prop_assert!(!(denies && tried.failed.is_none()), "{:?}", tried);
        }
    }
    Ok(())
}

/// What does not await the token is not changed by any; what was refused stays refused.
fn with_tokens(
    compiled: &Policy,
    asked: &Asked,
    decision: Decision,
    tokens: &[Known],
) -> Result<(), TestCaseError> {
    if !matches!(&asked.http, Ok(http) if matches!(http.token, Known::Awaited)) {
        prop_assert!(!decision.awaits_token);
        return Ok(());
    }
    let standing = compiled.standing_of(asked.caller.as_ref());
    for token in tokens {
        let mut asked = asked.clone();
        if let Ok(http) = &mut asked.http {
            http.token = token.clone();
        }
        let known = compiled.decide(&standing, &asked.action());
        prop_assert!(!known.awaits_token);
        if !decision.is_allowed() {
            prop_assert!(!known.is_allowed(), "{:?} {:?}", decision, known);
        } else if !decision.awaits_token {
            prop_assert!(known.is_allowed(), "{:?} {:?}", decision, known);
            prop_assert_eq!(known.would_be.is_none(), decision.would_be.is_none());
        }
    }
    Ok(())
}
