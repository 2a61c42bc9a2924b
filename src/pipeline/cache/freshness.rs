//! What `Cache-Control` and its like say (RFC 9111, RFC 5861), and how long an answer is fresh. No clock: the time is an argument.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use time::macros::format_description;

use crate::pipeline::Head;

/// The directives of a message's `Cache-Control`. Of one that is there twice the stricter one counts; a number that cannot be read is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Directives {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) private: bool,
    pub(super) public: bool,
    /// `must-revalidate` or `proxy-revalidate`.
    pub(super) must_revalidate: bool,
    pub(super) only_if_cached: bool,
    pub(super) max_age: Option<u64>,
    pub(super) shared_max_age: Option<u64>,
    pub(super) min_fresh: Option<u64>,
    /// How stale it may be; any age when no number is given.
    pub(super) max_stale: Option<u64>,
    pub(super) while_revalidate: Option<u64>,
    pub(super) if_error: Option<u64>,
}

impl Directives {
    /// Those of a head.
    pub(super) fn of(head: &Head) -> Self {
        let mut found = Self::default();
        let mut any = false;
        for line in head.all("cache-control") {
            any = true;
            for directive in pieces(line) {
                found.add(directive);
            }
        }
        // Of HTTP/1.0, and only where there is nothing newer (RFC 9111 section 5.4).
        if !any && head.all("pragma").any(|line| pieces(line).any(|one| is(one, "no-cache"))) {
            found.no_cache = true;
        }
        found
    }

    fn add(&mut self, directive: &[u8]) {
        let split = memchr::memchr(b'=', directive);
        let (name, value) = match split {
            Some(at) => (directive[..at].trim_ascii(), Some(directive[at + 1..].trim_ascii())),
            None => (directive, None),
        };
        let least = |kept: &mut Option<u64>| {
            let seconds = seconds(value.unwrap_or_default());
            *kept = Some(kept.map_or(seconds, |kept| kept.min(seconds)));
        };
        match name {
            // With a list of fields they speak of these alone; to take them for the whole is always lawful.
            name if is(name, "no-store") => self.no_store = true,
            name if is(name, "no-cache") => self.no_cache = true,
            name if is(name, "private") => self.private = true,
            name if is(name, "public") => self.public = true,
            name if is(name, "must-revalidate") || is(name, "proxy-revalidate") => {
                self.must_revalidate = true;
            }
            name if is(name, "only-if-cached") => self.only_if_cached = true,
            name if is(name, "max-age") => least(&mut self.max_age),
            name if is(name, "s-maxage") => least(&mut self.shared_max_age),
            name if is(name, "min-fresh") => {
                let seconds = seconds(value.unwrap_or_default());
                self.min_fresh = Some(self.min_fresh.map_or(seconds, |kept| kept.max(seconds)));
            }
            name if is(name, "max-stale") => {
                let most = value.map_or(u64::MAX, seconds);
                self.max_stale = Some(self.max_stale.map_or(most, |kept| kept.min(most)));
            }
            name if is(name, "stale-while-revalidate") => least(&mut self.while_revalidate),
            name if is(name, "stale-if-error") => least(&mut self.if_error),
            _ => {}
        }
    }
}

fn is(name: &[u8], wanted: &str) -> bool {
    name.eq_ignore_ascii_case(wanted.as_bytes())
}

/// The members of a list: a comma within quotes parts nothing.
pub(super) fn pieces(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut quoted, mut escaped) = (false, false);
        let end = text.iter().position(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b',' if !quoted => return true,
                _ => {}
            }
            false
        });
        rest = end.map(|end| &text[end + 1..]);
        Some(text[..end.unwrap_or(text.len())].trim_ascii())
    })
    .filter(|piece| !piece.is_empty())
}

/// Delta seconds (RFC 9111 section 1.2.2): what is too large is as large as can be, what is no number is none.
fn seconds(value: &[u8]) -> u64 {
    let value =
        value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    // 68 years are for ever, and sums of such numbers do not overflow.
    number.unwrap_or(u64::MAX).min(1 << 31)
}

/// An HTTP date in any of its three forms (RFC 9110 section 5.6.7), as seconds since 1970.
pub(super) fn date(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if let Some(text) = text.strip_suffix("GMT") {
        if let Ok(date) = OffsetDateTime::parse(&format!("{text}+0000"), &Rfc2822) {
            return Some(date.unix_timestamp());
        }
        let obsolete = format_description!(
            "[weekday], [day]-[month repr:short]-[year repr:last_two] [hour]:[minute]:[second]"
        );
        return short_year(text.trim(), obsolete);
    }
    let asctime = format_description!(
        "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] [year]"
    );
    time::PrimitiveDateTime::parse(text, asctime)
        .ok()
        .map(|date| date.assume_utc().unix_timestamp())
}

/// RFC 850's dates have two digits for the year: from 1970 to 2069, as everybody reads them.
fn short_year(
    text: &str,
    format: &[time::format_description::BorrowedFormatItem<'_>],
) -> Option<i64> {
    let mut parsed = time::parsing::Parsed::new();
    parsed.parse_items(text.as_bytes(), format).ok()?;
    let year = i32::from(parsed.year_last_two()?);
    let year = if year < 70 { 2000 + year } else { 1900 + year };
    let date = time::Date::from_calendar_date(year, parsed.month()?, parsed.day()?.get()).ok()?;
    let time = time::Time::from_hms(parsed.hour_24()?, parsed.minute()?, parsed.second()?).ok()?;
    Some(time::PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp())
}

/// How long a stored answer may be used, from when it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Freshness {
    /// When it was stored or found unchanged, in milliseconds since 1970.
    pub(super) since: u64,
    /// How old it was then, in seconds.
    pub(super) age: u64,
    /// Until what age it is fresh, in seconds.
    pub(super) lifetime: u64,
    /// Seconds beyond that it may be used while it is asked for anew.
    pub(super) while_revalidate: u64,
    /// Seconds beyond that it may be used when asking anew fails.
    pub(super) if_error: u64,
    /// It is never used stale, whatever a caller says.
    pub(super) is_strict: bool,
}

impl Freshness {
    /// Of an answer with this head that came at `now` (milliseconds since 1970), `delay` after it was asked for.
    ///
    /// Without `heeds`, what the upstream says of freshness counts for nothing, and `ttl` alone holds.
    pub(super) fn of(head: &Head, heeds: bool, ttl: u64, now: u64, delay: Duration) -> Self {
        let fixed = Self {
            since: now,
            age: 0,
            lifetime: ttl,
            while_revalidate: 0,
            if_error: 0,
            is_strict: false,
        };
        if !heeds {
            return fixed;
        }
        let said = Directives::of(head);
        let seconds_now = i64::try_from(now / 1000).unwrap_or(i64::MAX);
        let sent = head.value("date").and_then(date);
        let expires = || -> Option<u64> {
            let value = head.value("expires")?;
            // What is no date has expired (RFC 9111 section 5.3).
            let until = date(value).unwrap_or(0);
            Some(u64::try_from(until - sent.unwrap_or(seconds_now)).unwrap_or(0))
        };
        let explicit = said.shared_max_age.or(said.max_age).or_else(expires);
        let is_strict = said.no_cache || said.must_revalidate || said.shared_max_age.is_some();
        let stale = |allowed: Option<u64>| if is_strict { 0 } else { allowed.unwrap_or(0) };
        let told = head.value("age").map_or(0, seconds) + delay.as_secs();
        let apparent = sent.map_or(0, |sent| u64::try_from(seconds_now - sent).unwrap_or(0));
        Self {
            // What the operator's own number is about begins here.
            age: if explicit.is_some() { told.max(apparent) } else { 0 },
            lifetime: if said.no_cache { 0 } else { explicit.unwrap_or(ttl) },
            while_revalidate: stale(said.while_revalidate),
            if_error: stale(said.if_error),
            is_strict,
            ..fixed
        }
    }

    /// How old it is, in seconds.
    pub(super) fn age_at(&self, now: u64) -> u64 {
        self.age + now.saturating_sub(self.since) / 1000
    }

    /// For how many seconds more it is fresh.
    pub(super) fn left_at(&self, now: u64) -> Option<u64> {
        let age = self.age_at(now);
        // It is fresh up to its last millisecond and not in it.
        (age < self.lifetime).then(|| self.lifetime - age)
    }

    /// Since how many seconds it is stale.
    pub(super) fn stale_at(&self, now: u64) -> u64 {
        self.age_at(now).saturating_sub(self.lifetime)
    }
}
