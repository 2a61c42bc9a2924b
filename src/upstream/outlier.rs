//! Outlier detection: when an endpoint is taken out for what requests find of it, and for how long. No I/O.

use std::time::Duration;

use super::cluster_state::seconds;
use crate::model::{Invalid, OutlierDetection};

/// Outlier detection as it is compiled.
#[derive(Clone, Debug)]
pub(super) struct Outlier {
    /// 0 when a row of failures says nothing.
    pub(super) consecutive: u32,
    min_success_rate: Option<u8>,
    request_volume: u32,
    pub(super) interval: Duration,
    base: Duration,
    max: Duration,
    max_percent: u8,
}

impl Outlier {
    /// # Errors
    /// The sentence names the field.
    pub(super) fn compile(declared: &OutlierDetection) -> Result<Self, Invalid> {
        let field = |name: &str| format!("outlier_detection.{name}");
        let wrong = |name: &str, why: String| {
            Err(Invalid(format!("resilience.outlier_detection.{name}: {why}")))
        };
        if declared.consecutive_5xx == 0 && declared.min_success_rate.is_none() {
            return wrong(
                "consecutive_5xx",
                "0 and no min_success_rate: nothing is detected".into(),
            );
        }
        if let Some(rate) = declared.min_success_rate
            && !(1..=100).contains(&rate)
        {
            return wrong("min_success_rate", format!("expected 1 to 100 percent, got {rate}"));
        }
        if declared.request_volume == 0 {
            return wrong("request_volume", "expected 1 or more, got 0".into());
        }
        if declared.max_ejection_percent > 100 {
            let got = declared.max_ejection_percent;
            return wrong("max_ejection_percent", format!("expected 0 to 100, got {got}"));
        }
        let base = seconds(&field("base_ejection_time"), declared.base_ejection_time)?;
        let max = seconds(&field("max_ejection_time"), declared.max_ejection_time)?;
        if max < base {
            return wrong("max_ejection_time", "is shorter than base_ejection_time".into());
        }
        Ok(Self {
            consecutive: declared.consecutive_5xx,
            min_success_rate: declared.min_success_rate,
            request_volume: declared.request_volume,
            interval: seconds(&field("interval"), declared.interval)?,
            base,
            max,
            max_percent: declared.max_ejection_percent,
        })
    }

    /// Are the requests of an interval counted?
    pub(super) fn counts_volume(&self) -> bool {
        self.min_success_rate.is_some()
    }

    /// Did so many failures of the requests of an interval make an outlier?
    pub(super) fn is_outlier(&self, requests: u32, failed: u32) -> bool {
        self.min_success_rate.is_some_and(|rate| {
            requests >= self.request_volume && success_rate(requests, failed) < f64::from(rate)
        })
    }

    /// How long an endpoint is out that is so for this many times of late.
    pub(super) fn ejection_time(&self, times: u32) -> Duration {
        self.base.saturating_mul(times).min(self.max)
    }

    /// How many of the endpoints may be out at once. The only one never is: there would be nobody.
    pub(super) fn max_ejected(&self, total: usize) -> usize {
        match (total, self.max_percent) {
            (0 | 1, _) | (_, 0) => 0,
            (total, percent) => (total * usize::from(percent) / 100).max(1),
        }
    }
}

/// Percent that succeeded; 100 of none.
pub(super) fn success_rate(requests: u32, failed: u32) -> f64 {
    match requests {
        0 => 100.0,
        _ => 100.0 * f64::from(requests.saturating_sub(failed)) / f64::from(requests),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn outlier(value: Value) -> Result<Outlier, Invalid> {
        Outlier::compile(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn the_time_out_grows_with_each_time_up_to_a_bound() {
        let outlier = outlier(json!({"base_ejection_time": 30, "max_ejection_time": 100})).unwrap();
        let times = [1, 2, 3, 4, 1000].map(|times| outlier.ejection_time(times).as_secs());
        assert_eq!(times, [30, 60, 90, 100, 100]);
    }

    #[test]
    fn one_may_be_out_of_several_and_never_the_only_one() {
        for (percent, total, out) in [
            (10, 0, 0),
            (100, 1, 0),
            (10, 2, 1),
            (10, 9, 1),
            (10, 30, 3),
            (50, 3, 1),
            (100, 3, 3),
            (0, 30, 0),
        ] {
            let outlier = outlier(json!({"max_ejection_percent": percent})).unwrap();
            assert_eq!(outlier.max_ejected(total), out, "{percent}% of {total}");
        }
    }

    #[test]
    fn a_success_rate_says_something_only_about_enough_requests() {
        let outlier = outlier(json!({"min_success_rate": 90, "request_volume": 20})).unwrap();
        for (requests, failed, is_outlier) in
            [(0, 0, false), (19, 19, false), (20, 2, false), (20, 3, true), (1000, 100, false)]
        {
            assert_eq!(outlier.is_outlier(requests, failed), is_outlier, "{failed} of {requests}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (value, sentence) in [
            (json!({"consecutive_5xx": 0}), "resilience.outlier_detection.consecutive_5xx: 0 and"),
            (json!({"interval": 0}), "resilience.outlier_detection.interval: expected seconds"),
            (
                json!({"max_ejection_time": 1}),
                "resilience.outlier_detection.max_ejection_time: is shorter",
            ),
            (json!({"min_success_rate": 0}), "resilience.outlier_detection.min_success_rate: exp"),
            (json!({"request_volume": 0}), "resilience.outlier_detection.request_volume: expected"),
        ] {
            let error = outlier(value.clone()).unwrap_err().0;
            assert!(error.starts_with(sentence), "{value}: {error}");
        }
    }
}
