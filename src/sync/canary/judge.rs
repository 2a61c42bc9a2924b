//! Is what the canaries show worse than what was to be expected? Pure.

use std::time::Duration;

use super::report::{Counts, Span};
use super::settings::{CanarySettings, Rise};

/// How long canaries may take to answer what they were sent, beyond the time for which they are watched.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What all control planes have seen together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    /// Since the candidate is tried.
    pub(crate) elapsed: Duration,
    /// The canaries that there are or were.
    pub(crate) canaries: u32,
    /// Those that lost their connection for good, or restarted again and again.
    pub(crate) lost: Vec<String>,
    /// Those that have not answered yet, although they are connected.
    pub(crate) unanswered: u32,
    /// The first that refuses what it did not refuse before, and what.
    pub(crate) refused: Option<(String, String)>,
    /// What the canaries counted.
    pub(crate) span: Span,
    /// How many others there are, and how many were lost among them.
    pub(crate) others: u32,
    pub(crate) others_lost: u32,
    /// What the others counted.
    pub(crate) rest: Span,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is too early to tell.
    Wait,
    /// The others get it; the sentence tells on what ground.
    Pass(String),
    /// Back to what was before, and why.
    Stop(String),
}

/// Part of a whole.
#[derive(Clone, Copy)]
struct Part {
    of: u64,
    part: u64,
}

impl Part {
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    fn percent(self) -> f64 {
        if self.of == 0 { 0.0 } else { self.part as f64 * 100.0 / self.of as f64 }
    }
}

pub(crate) fn judge(seen: &Evidence, settings: &CanarySettings) -> Verdict {
    if let Some((who, what)) = &seen.refused {
        return Verdict::Stop(format!("{who} refuses {what}"));
    }
    if let Some(why) = too_many_lost(seen, settings) {
        return Verdict::Stop(why);
    }
    let denied = |counts: Counts| Part { of: counts.decided, part: counts.denied };
    let failed = |counts: Counts| Part { of: counts.requests, part: counts.failed };
    let rises = [
        risen("denials", "decisions", denied, settings.denied, seen, settings.min_samples),
        risen(
            "failures (500 and above)",
            "requests",
            failed,
            settings.failed,
            seen,
            settings.min_samples,
        ),
    ];
    if let Some(why) = rises.into_iter().flatten().next() {
        return Verdict::Stop(why);
    }
    if seen.elapsed < settings.watched() {
        return Verdict::Wait;
    }
    if seen.canaries == 0 {
        return Verdict::Stop("no canary is connected".into());
    }
    if seen.unanswered > 0 {
        return match seen.elapsed < settings.watched() + ANSWER_WITHIN {
            true => Verdict::Wait,
            false => Verdict::Stop(format!(
                "{} of {} canaries have not answered it",
                seen.unanswered, seen.canaries
            )),
        };
    }
    let Counts { decided, requests, .. } = seen.span.since;
    Verdict::Pass(format!(
        "{} canaries showed no rise in {decided} decisions and {requests} requests",
        seen.canaries
    ))
}

fn too_many_lost(seen: &Evidence, settings: &CanarySettings) -> Option<String> {
    let lost = u32::try_from(seen.lost.len()).unwrap_or(u32::MAX);
    let (canaries, others) = (u64::from(seen.canaries), u64::from(seen.others));
    // As many of the others: then it is not the candidate's doing.
    let as_all = others > 0
        && seen.others_lost > 0
        && u64::from(lost) * others <= u64::from(seen.others_lost) * canaries;
    if lost <= settings.lost || as_all {
        return None;
    }
    let names = seen.lost.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    Some(format!("{lost} of {canaries} canaries are gone, or restart again and again: {names}"))
}

fn risen(
    what: &str,
    of: &str,
    part: impl Fn(Counts) -> Part,
    rise: Rise,
    seen: &Evidence,
    min_samples: u64,
) -> Option<String> {
    let now = part(seen.span.since);
    if now.of < min_samples {
        return None;
    }
    let (before, rest_before, rest_now) =
        (part(seen.span.before), part(seen.rest.before), part(seen.rest.since));
    let rest_rise = match rest_before.of.min(rest_now.of) < min_samples {
        true => 0.0,
        false => (rest_now.percent() - rest_before.percent()).max(0.0),
    };
    // Who had nothing to do before is measured by the others, if these had.
    let expected = match before.of >= min_samples {
        true => before.percent() + rest_rise,
        false if rest_now.of >= min_samples => rest_now.percent(),
        false => before.percent(),
    };
    let percent = now.percent();
    (percent > expected + rise.points && percent > expected * rise.times).then(|| {
        format!(
            "{what} rose to {percent:.1} % of {} {of} at the canaries; {expected:.1} % was to be expected",
            now.of
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denying(decided: u64, denied: u64) -> Counts {
        Counts { decided, denied, requests: decided, failed: 0 }
    }

    fn failing(requests: u64, failed: u64) -> Counts {
        Counts { decided: requests, denied: 0, requests, failed }
    }

    fn seen(before: Counts, since: Counts, rest_before: Counts, rest_since: Counts) -> Evidence {
        Evidence {
            elapsed: Duration::from_secs(5),
            canaries: 2,
            others: 18,
            span: Span { before, since },
            rest: Span { before: rest_before, since: rest_since },
            ..Evidence::default()
        }
    }

    fn stops(seen: &Evidence) -> bool {
        matches!(judge(seen, &CanarySettings::default()), Verdict::Stop(_))
    }

    #[test]
    fn what_the_canaries_count_is_held_against_what_they_and_the_others_had() {
        let none = Counts::default();
        // 50 samples at least; denials may rise by 2 points or half as much again, failures by one point or half.
        for (name, before, since, rest_before, rest_since, stop) in [
            ("everything is denied", denying(500, 0), denying(60, 60), none, none, true),
            ("three requests prove nothing", denying(500, 0), denying(3, 3), none, none, false),
            ("49 prove nothing", denying(500, 0), denying(49, 49), none, none, false),
            ("50 do", denying(500, 0), denying(50, 50), none, none, true),
            ("as before", denying(500, 50), denying(100, 10), none, none, false),
            ("2 points are allowed", denying(1000, 0), denying(100, 2), none, none, false),
            ("3 points of nothing are not", denying(1000, 0), denying(100, 3), none, none, true),
            (
                "3 points of 20 are less than half",
                denying(1000, 200),
                denying(100, 23),
                none,
                none,
                false,
            ),
            ("20 points of 20 are twice", denying(1000, 200), denying(100, 40), none, none, true),
            (
                "everybody has more",
                denying(500, 0),
                denying(100, 30),
                denying(5000, 0),
                denying(900, 270),
                false,
            ),
            (
                "more than everybody",
                denying(500, 0),
                denying(100, 80),
                denying(5000, 0),
                denying(900, 270),
                true,
            ),
            (
                "idle before, as the others",
                denying(0, 0),
                denying(100, 30),
                denying(5000, 1500),
                denying(900, 270),
                false,
            ),
            (
                "idle before, unlike the others",
                denying(3, 0),
                denying(100, 30),
                denying(5000, 0),
                denying(900, 0),
                true,
            ),
            (
                "the others are of another kind",
                denying(500, 0),
                denying(100, 30),
                denying(5000, 2500),
                denying(900, 450),
                true,
            ),
            ("fewer denials", denying(500, 400), denying(100, 0), none, none, false),
            ("5xx", failing(1000, 0), failing(200, 10), none, none, true),
            ("a 5xx among many", failing(1000, 0), failing(200, 1), none, none, false),
            (
                "5xx everywhere",
                failing(1000, 0),
                failing(200, 100),
                failing(9000, 0),
                failing(1800, 900),
                false,
            ),
        ] {
            let evidence = seen(before, since, rest_before, rest_since);
            assert_eq!(
                stops(&evidence),
                stop,
                "{name}: {:?}",
                judge(&evidence, &CanarySettings::default())
            );
        }
    }

    #[test]
    fn what_is_refused_or_lost_stops_it_at_once() {
        let quiet =
            || seen(Counts::default(), Counts::default(), Counts::default(), Counts::default());
        assert!(!stops(&quiet()));
        let refusal = Some(("cart 1".to_owned(), "routes/7: no".to_owned()));
        assert!(stops(&Evidence { refused: refusal, ..quiet() }));
        let lost = |lost: usize, others_lost: u32| Evidence {
            lost: vec!["cart 1".to_owned(); lost],
            others_lost,
            ..quiet()
        };
        assert!(stops(&lost(1, 0)));
        assert!(stops(&lost(2, 9)), "all canaries, and half of the others");
        assert!(!stops(&lost(1, 9)), "half of the canaries, and half of the others");
        let patient = CanarySettings { lost: 1, ..CanarySettings::default() };
        assert_eq!(judge(&lost(1, 0), &patient), Verdict::Wait);
    }

    #[test]
    fn it_passes_when_the_time_is_over_and_all_have_answered() {
        let settings = CanarySettings::default();
        let mut evidence =
            seen(denying(500, 5), denying(100, 1), Counts::default(), Counts::default());
        assert_eq!(judge(&evidence, &settings), Verdict::Wait);
        evidence.elapsed = settings.watched();
        assert!(matches!(judge(&evidence, &settings), Verdict::Pass(_)));
        evidence.canaries = 0;
        assert!(matches!(judge(&evidence, &settings), Verdict::Stop(_)), "nobody has tried it");
        evidence.canaries = 2;
        evidence.unanswered = 1;
        assert_eq!(judge(&evidence, &settings), Verdict::Wait);
        evidence.elapsed += ANSWER_WITHIN;
        assert!(matches!(judge(&evidence, &settings), Verdict::Stop(_)));
    }
}
