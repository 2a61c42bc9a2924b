//! What routes match and what policy judges are readings of one path: whatever a path looks like and however the process reads
//! paths, no route is found by a reading that policy has not judged.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::model::{Id, IdentityPolicy};
use crate::pipeline::PathRules;
use crate::policy::{Action, Policy};

/// May anybody ask for `path`, by these rules of one policy each?
fn is_allowed(rules: &[(&str, &str)], path: &str) -> bool {
    let policies: Vec<(Id, IdentityPolicy)> = rules
        .iter()
        .map(|(action, template)| {
            let rule: Value = json!({"action": action, "rules": [{"to": {"paths": [template]}}]});
            (Id::parse(action).unwrap(), serde_json::from_value(rule).unwrap())
        })
        .collect();
    let me = "spiffe://shop/cart".parse().unwrap();
    let all = policies.iter().map(|(id, policy)| (id, 1, policy));
    let (policy, rejected) = Policy::compile(all, &me);
    assert!(rejected.is_empty(), "{rules:?}: {rejected:?}");
    let caller = "spiffe://shop/web".parse().unwrap();
    let action = Action::http(1, "GET", "h", path);
    policy.decide(&policy.standing_of(Some(&caller)), &action).is_allowed()
}

/// The template that means this path and no other, but for segments that no literal can say.
fn template(path: &str) -> String {
    let structural = |c: char| matches!(c, '%' | ';' | '\\' | '?' | '#' | '*' | '{' | '}');
    let segments = path.split('/').skip(1).enumerate().map(|(at, segment)| {
        match segment.contains(structural) || matches!(segment, "." | "..") {
            true => format!("{{s{at}}}"),
            false => segment.to_owned(),
        }
    });
    format!("/{}", segments.collect::<Vec<_>>().join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_500))]

    #[test]
    fn a_route_is_found_by_no_reading_that_policy_has_not_judged(
        raw in "/([ab]|\\.|/|;|;v=1|%2[eE]|%2[fF]|%3B|%5C|%61|%25|2F|2e|\\\\|%20|%3F){0,9}",
        delete_tail_slash in any::<bool>(),
        like_servlet in any::<bool>(),
        keep_encoded_slash in any::<bool>(),
    ) {
        let rules = PathRules { delete_tail_slash, like_servlet, keep_encoded_slash };
        let Some(matched) = rules.matched(&raw) else { return Ok(()) };
        let matched = std::str::from_utf8(&matched).unwrap();
        let means = template(matched);
        // What is refused for the reading that found the route is refused for the request.
        let refused = !is_allowed(&[("allow", "/**"), ("deny", &means)], &raw);
        prop_assert!(refused, "{raw} is matched as {matched}, and {means} is denied");
        // What is allowed below a path alone is not matched as something elsewhere.
        for below in ["/a", "/b", "/a/b"] {
            if is_allowed(&[("allow", &format!("{below}/**"))], &raw) {
                let inside = matched == below || matched.starts_with(&format!("{below}/"));
                prop_assert!(inside, "{raw} is allowed below {below} and matched as {matched}");
            }
        }
    }
}
