//! `Turning`: when time alone changes what rules say. A connection that was let in within a span of time must not outlive it.

use std::collections::HashSet;

use super::rule::Rule;
use super::times::Window;

/// A condition may compute anything from the time: what was decided by one is decided again so often.
const CONDITIONS_SECONDS: i64 = 10;

/// All that rules ask of the time, each once.
#[derive(Debug, Default)]
pub(super) struct Turning {
    windows: Box<[Window]>,
    has_conditions: bool,
}

impl Turning {
    pub(super) fn of(rules: &[Rule]) -> Self {
        let when = || rules.iter().filter_map(|rule| rule.when.as_deref());
        let mut known = HashSet::new();
        let all = when().flat_map(|when| when.times.iter().chain(&when.not_times));
        Self {
            windows: all.filter(|window| known.insert(window.text())).cloned().collect(),
            has_conditions: when().any(|when| when.condition_asks_time()),
        }
    }

    pub(super) fn turns(&self, before: i64, now: i64) -> bool {
        let tenth = |at: i64| at.div_euclid(CONDITIONS_SECONDS);
        (self.has_conditions && tenth(before) != tenth(now))
            || self.windows.iter().any(|window| window.holds(before) != window.holds(now))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::identity::SpiffeId;
    use crate::model::{Id, IdentityPolicy};
    use crate::policy::Policy;

    #[test]
    fn rules_turn_when_a_span_of_time_begins_or_ends_and_conditions_every_ten_seconds() {
        let me: SpiffeId = "spiffe://shop/billing".parse().unwrap();
        let compiled = |when: serde_json::Value| {
            let text = json!({"action": "allow", "rules": [{"when": when}, {"when": when}]});
            let policy: IdentityPolicy = serde_json::from_value(text).unwrap();
            let id = Id::parse("p").unwrap();
            let (policy, rejected) = Policy::compile([(&id, 1, &policy)], &me);
            assert!(rejected.is_empty(), "{rejected:?}");
            policy
        };
        // 1970-01-01 was a Thursday.
        let (nine, ten) = (9 * 3600, 10 * 3600);
        let office =
            compiled(json!({"times": [{"days": ["thu"], "from": "09:00", "until": "10:00"}]}));
        assert_eq!(office.turning.windows.len(), 1, "what two rules ask is looked at once");
        assert!(office.asks_time());
        assert!(office.turns(nine - 1, nine) && office.turns(ten - 1, ten));
        assert!(!office.turns(nine, ten - 1) && !office.turns(ten, ten + 3600));
        // A clock that was set back, and a machine that slept over the end.
        assert!(office.turns(ten, nine) && office.turns(nine, 86_400));
        let until = compiled(json!({"not_times": [{"not_after": "1970-01-01T00:00:07Z"}]}));
        assert!(until.turns(6, 7) && !until.turns(7, 8));
        let condition = compiled(json!({"cel": "request.time.getHours() < 9"}));
        assert!(condition.turns(9, 10) && !condition.turns(10, 19));
        let nothing = compiled(json!({"headers": [{"name": "x", "present": true}]}));
        assert!(!nothing.asks_time() && !nothing.turns(0, 100_000));
    }
}
