//! Decisions before and after the auth plugins of a route have looked at the caller's token.

use super::rows::request;
use super::*;
use crate::policy::Token;

/// The decision as text, with a mark when it has to be asked again.
fn stage(world: &World, token: Token<'_>) -> String {
    let policy = world.policy();
    let action = request(|request| request.token = token);
    let decision = policy.decide(&policy.standing_of(Some(&id(WEB))), &action);
    let would = decision.would_be.map(|outcome| format!(" would {}", said(&policy, outcome)));
    let awaits = if decision.awaits_token { " awaits" } else { "" };
    said(&policy, decision.outcome) + &would.unwrap_or_default() + awaits
}

#[test]
fn a_rule_that_asks_for_claims_is_decided_once_more_with_the_token() {
    let admin = json!({"from": {"claims": [{"name": "role", "values": ["admin"]}]}});
    let elsewhere = json!({"from": {"claims": [{"name": "role", "values": ["admin"]}]}, "to": {"paths": ["/x"]}});
    let policy = |action: &str, mode: &str, rule: &Value| json!({"action": action, "mode": mode, "rules": [rule]});
    let allow = |rule: &Value| policy("allow", "enforce", rule);
    let deny = |rule: &Value| policy("deny", "enforce", rule);
    let all = json!({});
    // What is decided while the token is awaited, without one, and with the role of an admin and of a user.
    for (policies, awaited, absent, fits, other) in [
        (
            vec![("a", allow(&admin))],
            "allow a 1 awaits",
            "deny no_token a 1",
            "allow a 1",
            "deny no_rule",
        ),
        (
            vec![("a", allow(&all)), ("d", deny(&admin))],
            "allow a 1 awaits",
            "deny no_token d 1",
            "deny denied_by_rule d 1",
            "allow a 1",
        ),
        // Nothing that the token tells could change it.
        (
            vec![("a", allow(&admin)), ("b", allow(&all))],
            "allow b 1",
            "allow b 1",
            "allow a 1",
            "allow b 1",
        ),
        (
            vec![("a", allow(&admin)), ("d", deny(&all))],
            "deny denied_by_rule d 1",
            "deny denied_by_rule d 1",
            "deny denied_by_rule d 1",
            "deny denied_by_rule d 1",
        ),
        (
            vec![("d", deny(&admin))],
            "deny no_rule",
            "deny no_token d 1",
            "deny denied_by_rule d 1",
            "deny no_rule",
        ),
        // Its other parts do not hold.
        (
            vec![("a", allow(&elsewhere))],
            "deny no_rule",
            "deny no_rule",
            "deny no_rule",
            "deny no_rule",
        ),
        (
            vec![("a", allow(&all)), ("d", deny(&elsewhere))],
            "allow a 1",
            "allow a 1",
            "allow a 1",
            "allow a 1",
        ),
        // Both ask.
        (
            vec![("a", allow(&admin)), ("d", deny(&admin))],
            "allow a 1 awaits",
            "deny no_token d 1",
            "deny denied_by_rule d 1",
            "deny no_rule",
        ),
        // What is watched.
        (
            vec![("a", allow(&all)), ("w", policy("deny", "observe", &admin))],
            "allow a 1 awaits",
            "allow a 1 would deny no_token w 1",
            "allow a 1 would deny denied_by_rule w 1",
            "allow a 1",
        ),
        (
            vec![("w", policy("allow", "observe", &admin))],
            "deny no_rule would allow w 1",
            "deny no_rule",
            "deny no_rule would allow w 1",
            "deny no_rule",
        ),
        (
            vec![("a", allow(&admin)), ("w", policy("deny", "observe", &all))],
            "allow a 1 would deny denied_by_rule w 1 awaits",
            "deny no_token a 1",
            "allow a 1 would deny denied_by_rule w 1",
            "deny no_rule",
        ),
    ] {
        let world = World::new(&policies);
        assert!(world.policy().asks_token());
        let claims = |role: &str| json!({"role": role}).as_object().unwrap().clone();
        let (admin, user) = (claims("admin"), claims("user"));
        assert_eq!(stage(&world, Token::Awaited), awaited, "{policies:?}");
        assert_eq!(stage(&world, Token::Absent), absent, "{policies:?}");
        assert_eq!(stage(&world, Token::Verified(&admin)), fits, "{policies:?}");
        assert_eq!(stage(&world, Token::Verified(&user)), other, "{policies:?}");
    }
}

#[test]
fn at_a_public_door_what_is_watched_awaits_the_token_too() {
    let watched = json!({"action": "allow", "mode": "observe",
        "rules": [{"from": {"claims": [{"name": "role", "values": ["admin"]}]}}]});
    let policy = World::new(&[("w", watched)]).policy();
    let ask = |token| {
        let action = request(|request| request.token = token);
        policy.decide_public(&policy.standing_of(None), &action)
    };
    let awaited = ask(Token::Awaited);
    assert!(awaited.is_allowed() && awaited.would_be.is_none() && awaited.awaits_token);
    let absent = ask(Token::Absent);
    assert_eq!(absent.would_be, Some(Outcome::Deny(Reason::NoRule, None)));
    assert!(absent.is_allowed() && !absent.awaits_token);
}
