//! What a run found: a row for each case, and what they come to.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Case, Expectation, Level};

/// What the other end did with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It took it: a request came through.
    Accepted(String),
    /// It refused it, and how.
    Refused(String),
    /// Neither can be said, and why.
    Unclear(String),
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Accepted(how) => write!(f, "accepted: {how}"),
            Self::Refused(how) => write!(f, "refused: {how}"),
            Self::Unclear(why) => write!(f, "unclear: {why}"),
        }
    }
}

/// What a row comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The rule was held.
    Held,
    /// It was broken.
    Broken,
    /// It could not be told.
    Unclear,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Broken => "BROKEN",
            Self::Unclear => "unclear",
        }
    }
}

/// One case at one side of the proxy.
#[derive(Clone, Debug)]
pub struct Row {
    /// `inbound` or `outbound`.
    pub side: &'static str,
    /// The case.
    pub case: &'static Case,
    /// What was seen.
    pub seen: Seen,
}

impl Row {
    /// Expected and seen, compared.
    pub fn verdict(&self) -> Verdict {
        match (self.case.expects, &self.seen) {
            (_, Seen::Unclear(_)) => Verdict::Unclear,
            (Expectation::Accepted, Seen::Accepted(_))
            | (Expectation::Refused, Seen::Refused(_)) => Verdict::Held,
            _ => Verdict::Broken,
        }
    }
}

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The rows, in the order in which they were made.
    pub rows: Vec<Row>,
}

/// Rows of one level, by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    held: usize,
    broken: usize,
    unclear: usize,
}

impl Report {
    /// A MUST was broken, or could not be told.
    pub fn failed(&self) -> bool {
        let count = self.count(Level::Must);
        count.broken + count.unclear > 0
    }

    fn count(&self, level: Level) -> Count {
        let mut count = Count::default();
        for row in self.rows.iter().filter(|row| row.case.level == level) {
            match row.verdict() {
                Verdict::Held => count.held += 1,
                Verdict::Broken => count.broken += 1,
                Verdict::Unclear => count.unclear += 1,
            }
        }
        count
    }

    /// The table and the summary, for people. What the other end said is escaped.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let line = |text: &mut String, columns: [&str; 7]| {
            let [id, level, side, verdict, what, expected, seen] = columns;
            let _ = writeln!(
                text,
                "{id:<5} {level:<1}  {side:<8}  {verdict:<7}  {what:<62}  {expected:<8}  {seen}"
            );
        };
        line(&mut text, ["case", " ", "side", "verdict", "what is presented", "expected", "seen"]);
        for row in &self.rows {
            let seen = row.seen.to_string().escape_debug().to_string();
            let columns = [
                row.case.id,
                letter(row.case.level),
                row.side,
                row.verdict().name(),
                row.case.what,
                expected(row.case.expects),
                &seen,
            ];
            line(&mut text, columns);
        }
        text.push('\n');
        for (level, name) in LEVELS {
            let Count { held, broken, unclear } = self.count(level);
            let all = held + broken + unclear;
            let _ = writeln!(
                text,
                "{name:<7} {held} of {all} held, {broken} broken, {unclear} unclear"
            );
        }
        text
    }

    /// The same for machines.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let (seen, detail) = match &row.seen {
                Seen::Accepted(detail) => ("accepted", detail),
                Seen::Refused(detail) => ("refused", detail),
                Seen::Unclear(detail) => ("unclear", detail),
            };
            json!({
                "case": row.case.id, "rule": row.case.rule, "level": letter(row.case.level),
                "side": row.side, "what": row.case.what, "expected": expected(row.case.expects),
                "seen": seen, "detail": detail, "verdict": row.verdict().name().to_lowercase(),
            })
        });
        let rows: Vec<Value> = rows.collect();
        let mut summary = serde_json::Map::new();
        for (level, name) in LEVELS {
            let Count { held, broken, unclear } = self.count(level);
            let count = json!({ "held": held, "broken": broken, "unclear": unclear });
            summary.insert(name.to_lowercase(), count);
        }
        json!({ "passed": !self.failed(), "summary": summary, "rows": rows })
    }
}

const LEVELS: [(Level, &str); 3] =
    [(Level::Must, "MUST"), (Level::Should, "SHOULD"), (Level::Own, "own")];

fn letter(level: Level) -> &'static str {
    match level {
        Level::Must => "M",
        Level::Should => "S",
        Level::Own => "O",
    }
}

fn expected(expectation: Expectation) -> &'static str {
    match expectation {
        Expectation::Accepted => "accepted",
        Expectation::Refused => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::CASES;

    #[test]
    fn a_broken_must_fails_the_run_and_a_broken_should_does_not() {
        let must = CASES.iter().find(|case| case.id == "23a").unwrap();
        let should = CASES.iter().find(|case| case.id == "45a").unwrap();
        let row = |case, seen| Row { side: "inbound", case, seen };
        let refused = || Seen::Refused("alert".into());
        let report = |rows| Report { rows };
        assert!(!report(vec![row(must, refused())]).failed());
        assert!(!report(vec![row(should, Seen::Accepted("200".into()))]).failed());
        assert!(report(vec![row(must, Seen::Accepted("200".into()))]).failed());
        assert!(
            report(vec![row(must, Seen::Unclear("?".into()))]).failed(),
            "not told is not held"
        );

        let text = report(vec![row(must, Seen::Accepted("\u{1b}[2J".into()))]).text();
        assert!(text.contains("BROKEN") && text.contains("0 of 1 held, 1 broken"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        let json = report(vec![row(must, refused())]).json();
        assert_eq!((&json["passed"], &json["rows"][0]["rule"]), (&json!(true), &json!(23)));
    }
}
