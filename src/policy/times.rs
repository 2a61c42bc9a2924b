//! Spans of time: days of the week and times of day in somebody's zone, and moments.

use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::rule::Wrong;
use crate::model::TimeWindow;

const DAY: i64 = 86_400;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// The time zone database that is built in, whatever the machine has.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// One entry of `times` or `not_times`.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// A bit for each day, Monday first.
    days: u8,
    /// Seconds of the day; `until` may lie before `from`: of the next day.
    from: i64,
    until: i64,
    zone: Zone,
    /// Seconds since 1970.
    not_before: Option<i64>,
    not_after: Option<i64>,
    text: Box<str>,
}

#[derive(Clone, Debug)]
enum Zone {
    /// No day and no time of day is asked for.
    None,
    /// Seconds east of UTC.
    Offset(i64),
    Named(TimeZone),
}

impl Window {
    pub(super) fn compile(field: &str, window: &TimeWindow) -> Result<Self, Wrong> {
        let TimeWindow { days, from, until, zone, not_before, not_after } = window;
        let wrong = |part: &str, why: String| Wrong::new(format!("{field}.{part}"), why);
        let asks_day = !days.is_empty() || from.is_some() || until.is_some();
        if !asks_day && not_before.is_none() && not_after.is_none() {
            let what = "asks nothing: days, from, until, not_before or not_after is expected";
            return Err(Wrong::new(field, what));
        }
        if zone.is_some() && !asks_day {
            let why = "says whose days and times of day are meant, and none is given";
            return Err(wrong("zone", why.into()));
        }
        let mut mask = if days.is_empty() { 0x7f } else { 0 };
        for (at, day) in days.iter().enumerate() {
            let found = DAYS.iter().position(|name| name == day).ok_or_else(|| {
                wrong(
                    &format!("days[{at}]"),
                    format!("\"{}\" is no day; days are {}", day.escape_debug(), DAYS.join(", ")),
                )
            })?;
            mask |= 1 << found;
        }
        let clock = |part: &str, text: &Option<String>, otherwise: i64| match text {
            Some(text) => time_of_day(text).map_err(|why| wrong(part, why)),
            None => Ok(otherwise),
        };
        let (start, end) = (clock("from", from, 0)?, clock("until", until, DAY)?);
        if start == DAY {
            return Err(wrong("from", "is 00:00 to 23:59".into()));
        }
        if start == end || end == 0 {
            let why = "is the same moment as from; for the whole day leave both out";
            return Err(wrong("until", why.into()));
        }
        let moment = |part: &str, text: &Option<String>| match text {
            Some(text) => moment(text).map(Some).map_err(|why| wrong(part, why)),
            None => Ok(None),
        };
        let earliest = moment("not_before", not_before)?;
        let latest = moment("not_after", not_after)?;
        if latest.is_some() && earliest >= latest {
            return Err(wrong("not_after", "is not after not_before: this is never".into()));
        }
        let zone = match (asks_day, zone) {
            (false, _) => Zone::None,
            (true, None) => Zone::Offset(0),
            (true, Some(text)) => self::zone(text).map_err(|why| wrong("zone", why))?,
        };
        let text = serde_json::to_string(window).unwrap_or_default().into();
        let (from, until) = (start, end);
        Ok(Self { days: mask, from, until, zone, not_before: earliest, not_after: latest, text })
    }

    /// As it was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Is this moment within? `None` for a moment that no calendar has.
    pub(super) fn holds(&self, unix_seconds: i64) -> Option<bool> {
        let is_early = self.not_before.is_some_and(|earliest| unix_seconds < earliest);
        if is_early || self.not_after.is_some_and(|latest| unix_seconds >= latest) {
            return Some(false);
        }
        let offset = match &self.zone {
            Zone::None => return Some(true),
            Zone::Offset(seconds) => *seconds,
            Zone::Named(zone) => {
                zone.to_offset(Timestamp::from_second(unix_seconds).ok()?).seconds().into()
            }
        };
        let local = unix_seconds.checked_add(offset)?;
        let (day, second) = (local.div_euclid(DAY), local.rem_euclid(DAY));
        // The first day of 1970 was a Thursday.
        let on = |day: i64| self.days & (1 << (day + 3).rem_euclid(7)) != 0;
        Some(if self.from < self.until {
            on(day) && (self.from..self.until).contains(&second)
        } else {
            // The days are those on which it begins.
            (on(day) && second >= self.from) || (on(day - 1) && second < self.until)
        })
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// `HH:MM` in seconds; 24:00 is the day's end.
fn time_of_day(text: &str) -> Result<i64, String> {
    let expected = || format!("\"{}\" is no time of day, as 09:00 or 23:59", text.escape_debug());
    let two = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<i64>().ok()).flatten()
    };
    let (hours, minutes) = text.split_once(':').ok_or_else(expected)?;
    match (two(hours), two(minutes)) {
        (Some(24), Some(0)) => Ok(DAY),
        (Some(hours @ 0..24), Some(minutes @ 0..60)) => Ok(hours * 3600 + minutes * 60),
        _ => Err(expected()),
    }
}

fn moment(text: &str) -> Result<i64, String> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        format!("\"{}\" is no moment as in RFC 3339, as 2026-03-01T08:00:00Z", text.escape_debug())
    })?;
    match parsed.nanosecond() {
        0 => Ok(parsed.unix_timestamp()),
        _ => Err(format!("\"{}\" has parts of a second", text.escape_debug())),
    }
}

fn zone(text: &str) -> Result<Zone, String> {
    if text == "UTC" {
        return Ok(Zone::Offset(0));
    }
    let shown = text.escape_debug();
    if let Some(offset) = text.strip_prefix(['+', '-']) {
        let seconds = time_of_day(offset).ok().filter(|seconds| *seconds <= 14 * 3600);
        let seconds = seconds.ok_or_else(|| {
            format!("\"{shown}\" is no offset: it is -14:00 to +14:00, with two digits each")
        })?;
        return Ok(Zone::Offset(if text.starts_with('-') { -seconds } else { seconds }));
    }
    let found = ZONES.get(text).map_err(|_| {
        format!("\"{shown}\" is no time zone: UTC, an offset as +02:00, or a name as Europe/Berlin")
    })?;
    match found.iana_name() {
        Some(name) if name != text => Err(format!("\"{shown}\" is written {name}")),
        _ => Ok(Zone::Named(found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(text: serde_json::Value) -> Result<Window, String> {
        let window: TimeWindow = serde_json::from_value(text).unwrap();
        Window::compile("w", &window).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn a_window_has_days_times_of_day_and_moments() {
        let office = serde_json::json!({"days": ["mon", "fri"], "from": "09:00", "until": "17:30"});
        let night = serde_json::json!({"days": ["fri"], "from": "22:00", "until": "06:00"});
        let berlin =
            serde_json::json!({"from": "09:00", "until": "10:00", "zone": "Europe/Berlin"});
        let east = serde_json::json!({"days": ["tue"], "zone": "+05:30"});
        let evening = serde_json::json!({"from": "18:00"});
        let year = serde_json::json!({"not_before": "2026-01-01T00:00:00Z", "not_after": "2026-12-31T23:00:00+01:00"});
        for (text, moment, expected) in [
            // 2026-03-02 is a Monday.
            (&office, "2026-03-02T09:00:00Z", true),
            (&office, "2026-03-02T08:59:59Z", false),
            (&office, "2026-03-02T17:29:59Z", true),
            (&office, "2026-03-02T17:30:00Z", false),
            (&office, "2026-03-03T12:00:00Z", false),
            (&office, "2026-03-06T12:00:00Z", true),
            (&night, "2026-03-06T22:00:00Z", true),
            (&night, "2026-03-07T05:59:59Z", true),
            (&night, "2026-03-07T06:00:00Z", false),
            (&night, "2026-03-06T05:00:00Z", false),
            (&night, "2026-03-07T23:00:00Z", false),
            // Winter time, and summer time from 29 March on.
            (&berlin, "2026-03-28T08:30:00Z", true),
            (&berlin, "2026-03-28T07:30:00Z", false),
            (&berlin, "2026-03-30T07:30:00Z", true),
            (&berlin, "2026-03-30T08:30:00Z", false),
            (&berlin, "2060-07-01T07:30:00Z", true),
            (&east, "2026-03-02T18:30:00Z", true),
            (&east, "2026-03-02T18:29:59Z", false),
            (&east, "2026-03-03T18:30:00Z", false),
            (&evening, "2026-03-02T18:00:00Z", true),
            (&evening, "2026-03-02T23:59:59Z", true),
            (&evening, "2026-03-02T00:00:00Z", false),
            (&office, "1969-12-29T10:00:00Z", true),
            (&year, "2025-12-31T23:59:59Z", false),
            (&year, "2026-01-01T00:00:00Z", true),
            (&year, "2026-12-31T21:59:59Z", true),
            (&year, "2026-12-31T22:00:00Z", false),
        ] {
            let at = super::moment(moment).unwrap();
            assert_eq!(window(text.clone()).unwrap().holds(at), Some(expected), "{text} {moment}");
        }
        assert_eq!(window(berlin).unwrap().holds(i64::MAX), None);
    }

    #[test]
    fn a_window_that_cannot_be_meant_is_refused() {
        use serde_json::json;
        for (text, expected) in [
            (json!({}), "w: asks nothing"),
            (json!({"zone": "UTC"}), "w: asks nothing"),
            (
                json!({"zone": "UTC", "not_after": "2026-03-01T00:00:00Z"}),
                "w.zone: says whose days",
            ),
            (json!({"days": ["mon", "Tue"]}), "w.days[1]: \"Tue\" is no day; days are mon, tue"),
            (json!({"from": "9:00"}), "w.from: \"9:00\" is no time of day, as 09:00"),
            (json!({"from": "24:00"}), "w.from: is 00:00 to 23:59"),
            (json!({"until": "24:01"}), "w.until: \"24:01\" is no time"),
            (json!({"until": "00:00"}), "w.until: is the same moment"),
            (json!({"from": "08:00", "until": "08:00"}), "w.until: is the same moment"),
            (json!({"days": ["mon"], "zone": "+15:00"}), "w.zone: \"+15:00\" is no offset"),
            (json!({"days": ["mon"], "zone": "+2"}), "w.zone: \"+2\" is no offset"),
            (json!({"days": ["mon"], "zone": "CEST"}), "w.zone: \"CEST\" is no time zone: UTC,"),
            (
                json!({"days": ["mon"], "zone": "europe/berlin"}),
                "w.zone: \"europe/berlin\" is written Europe/Berlin",
            ),
            (json!({"not_before": "2026-03-01"}), "w.not_before: \"2026-03-01\" is no moment"),
            (
                json!({"not_after": "2026-03-01T00:00:00.5Z"}),
                "w.not_after: \"2026-03-01T00:00:00.5Z\" has parts",
            ),
            (
                json!({"not_before": "2026-03-01T00:00:00Z", "not_after": "2026-03-01T00:00:00Z"}),
                "w.not_after: is not after not_before",
            ),
        ] {
            let sentence = window(text).unwrap_err();
            assert!(sentence.starts_with(expected), "{sentence}\n{expected}");
        }
    }
}
