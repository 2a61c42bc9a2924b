//! The retry budget: how many further attempts may be under way beside the requests. No I/O.

use crate::model::RetryBudget;

/// May one more attempt begin, when `retrying` are under way beside `requests`?
pub(super) fn allows(budget: RetryBudget, requests: u32, retrying: u32) -> bool {
    let share = u64::from(requests) * u64::from(budget.percent) / 100;
    u64::from(retrying) < share.max(u64::from(budget.min_concurrency))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_attempts_are_a_share_of_the_requests_or_a_few() {
        let budget = RetryBudget { percent: 20, min_concurrency: 3 };
        for (requests, retrying, allowed) in [
            (1, 0, true),
            (1, 2, true),
            (1, 3, false),
            (15, 3, false),
            (20, 3, true),
            (20, 4, false),
            (1000, 199, true),
            (1000, 200, false),
        ] {
            assert_eq!(allows(budget, requests, retrying), allowed, "{retrying} of {requests}");
        }
        let none = RetryBudget { percent: 0, min_concurrency: 0 };
        assert!(!allows(none, 1000, 0));
        let all = RetryBudget { percent: 100, min_concurrency: 0 };
        assert!(allows(all, u32::MAX, u32::MAX - 1) && !allows(all, 1, 1));
    }
}
