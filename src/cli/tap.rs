//! `wardgate tap`: decisions as they are made, one line each.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::audit::{Output, follow};
use super::central::{Where, answered, ask};
use super::client::Admin;
use super::text::safe;
use crate::audit::{Filter, Outcome, Record};

/// Decisions as they are made, one line each, until interrupted
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  wardgate tap --verdict denied --to billing
  10:44:02.113 DENY  spiffe://shop.test/cart → spiffe://shop.test/billing  DELETE /invoices/7  403  no_rule  d-5f2k8m0qrt  nearest billing-read:1 (methods)

With --admin it shows the decisions of all data planes that hand their log to that control plane, some moments later; without it those
of the local log.")]
pub(super) struct TapArgs {
    /// Only what was allowed, or only what was refused
    #[arg(long, value_enum)]
    verdict: Option<Verdict>,
    /// Who calls: a SPIFFE ID (* at its end stands for anything), or the end of its path
    #[arg(long, value_name = "ID")]
    from: Option<String>,
    /// Whom it calls
    #[arg(long, value_name = "SERVICE")]
    to: Option<String>,
    /// How the path begins
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// Lines a second at most; what is left out is counted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_rps: Option<u32>,
    /// End after so many lines
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<u64>,
    #[command(flatten)]
    place: Where,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Verdict {
    Allowed,
    Denied,
}

/// Runs `wardgate tap`.
///
/// # Errors
/// The log or the Admin API cannot be read, or `out` cannot be written.
pub(super) async fn run(args: &TapArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let filter = Filter {
        src: args.from.clone(),
        dst: args.to.clone(),
        path_prefix: args.path.clone(),
        outcome: args.verdict.map(|verdict| match verdict {
            Verdict::Allowed => Outcome::Allow,
            Verdict::Denied => Outcome::Deny,
        }),
        ..Filter::default()
    };
    let mut tap = Tap {
        filter,
        as_json: args.output == Output::Json,
        pace: args.max_rps.map(Pace::new),
        left: args.lines,
        out,
    };
    match args.place.central()? {
        Some(admin) => tap.central(&admin).await?,
        None => tap.local(&args.place.log())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How many lines a second.
struct Pace {
    most: u32,
    since: Instant,
    shown: u32,
    left_out: u64,
}

impl Pace {
    fn new(most: u32) -> Self {
        Self { most, since: Instant::now(), shown: 0, left_out: 0 }
    }

    /// May one more line be shown? And how many were left out in the second before, when that has just ended.
    fn admits(&mut self, now: Instant) -> (bool, u64) {
        let mut told = 0;
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            told = std::mem::take(&mut self.left_out);
            (self.since, self.shown) = (now, 0);
        }
        if self.shown < self.most {
            self.shown += 1;
            return (true, told);
        }
        self.left_out += 1;
        (false, told)
    }
}

struct Tap<'o> {
    filter: Filter,
    as_json: bool,
    pace: Option<Pace>,
    left: Option<u64>,
    out: &'o mut (dyn Write + Send),
}

impl Tap<'_> {
    async fn central(&mut self, admin: &Admin) -> anyhow::Result<()> {
        // Connections that were refused at their handshake are decisions as well: types are chosen here.
        let query = self.filter.query();
        let mut next = ask(admin, "tail").await?["next"].as_u64().unwrap_or(0);
        loop {
            let path = format!("tail?lines=true&limit=1000&wait=5&after={next}&{query}");
            let answer = ask(admin, &path).await?;
            next = answer["next"].as_u64().unwrap_or(next);
            for line in answered(&answer) {
                if !self.show(line)? {
                    return Ok(());
                }
            }
            self.out.flush()?;
        }
    }

    fn local(&mut self, log: &Path) -> anyhow::Result<()> {
        follow(log, |line| {
            let Some(line) = line else {
                self.out.flush()?;
                return Ok(true);
            };
            let fits = Record::parse(line).is_some_and(|record| self.filter.takes(None, &record));
            if fits { self.show(line) } else { Ok(true) }
        })
    }

    /// Shows a record, if it is a decision; `false` when enough were shown.
    fn show(&mut self, line: &str) -> anyhow::Result<bool> {
        let Some(record) = Record::parse(line) else { return Ok(true) };
        if !matches!(&*record.kind, "decision" | "handshake_refused") {
            return Ok(true);
        }
        if let Some(pace) = &mut self.pace {
            let (is_shown, left_out) = pace.admits(Instant::now());
            if left_out > 0 && !self.as_json {
                writeln!(self.out, "… {left_out} more")?;
            }
            if !is_shown {
                return Ok(true);
            }
        }
        match self.as_json {
            true => writeln!(self.out, "{line}")?,
            false => writeln!(self.out, "{}", in_one_line(&record))?,
        }
        self.left = self.left.map(|left| left.saturating_sub(1));
        Ok(self.left != Some(0))
    }
}

/// A decision for people.
fn in_one_line(record: &Record) -> String {
    let time = record.time.split_once('T').map_or(&*record.time, |(_, time)| time);
    let word = if record.outcome.as_deref() == Some("allow") { "ALLOW" } else { "DENY " };
    let src = match (&record.src.spiffe_id, record.src.addr) {
        (Some(id), _) => safe(id),
        (None, Some(address)) => format!("{} (no certificate that counts)", address.ip()),
        (None, None) => "(no identity)".to_owned(),
    };
    let dst = match (&record.dst.spiffe_id, record.dst.port) {
        (Some(id), _) => safe(id),
        (None, Some(port)) => format!("port {port}"),
        (None, None) => "?".to_owned(),
    };
    let mut text = format!("{} {word} {src} → {dst}", safe(time.trim_end_matches('Z')));
    let mut add = |part: Option<String>| {
        if let Some(part) = part {
            text.push_str("  ");
            text.push_str(&part);
        }
    };
    match (&record.method, &*record.kind) {
        (Some(method), _) => {
            let path = safe(record.path.as_deref().unwrap_or_default());
            add(Some(format!("{} {path}", safe(method))));
        }
        (None, "handshake_refused") => add(Some("TLS".to_owned())),
        (None, _) => add(record.protocol.as_deref().map(safe)),
    }
    add(record.status.map(|status| status.to_string()));
    add(record.count.filter(|count| *count > 1).map(|count| format!("×{count}")));
    add(record.reason.as_deref().map(safe));
    add(record.denial_id.as_deref().map(safe));
    add(record.policy_id.as_deref().map(|policy| {
        format!("by {}:{}", safe(policy), safe(record.rule.as_deref().unwrap_or_default()))
    }));
    add(record.nearest.as_ref().map(|nearest| {
        let (policy, rule) = (safe(&nearest.policy_id), safe(&nearest.rule));
        format!("nearest {policy}:{rule} ({})", safe(&nearest.clause))
    }));
    add(record.would_be.as_ref().map(|would_be| format!("would be: {}", safe(&would_be.outcome))));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_one_line_that_no_caller_can_break() {
        let line = r#"{"seq":3,"time":"2026-11-21T10:44:02.113Z","type":"decision","src":{"spiffe_id":"spiffe://acme/cart","addr":"10.0.0.1:2"},
            "dst":{"spiffe_id":"spiffe://acme/billing","port":1},"method":"DELETE","path":"/in\u001b[2Jvoices","status":403,"outcome":"deny",
            "reason":"no_rule","denial_id":"d-5f2k","nearest":{"policy_id":"billing-read","rule":"3","clause":"methods"}}"#;
        let record = Record::parse(line).unwrap();
        assert_eq!(
            in_one_line(&record),
            "10:44:02.113 DENY  spiffe://acme/cart → spiffe://acme/billing  DELETE /in\\u{1b}[2Jvoices  403  no_rule  d-5f2k  \
             nearest billing-read:3 (methods)"
        );
    }

    #[test]
    fn lines_above_the_pace_are_counted() {
        let mut pace = Pace::new(2);
        let now = pace.since;
        let shown: Vec<_> = (0..5).map(|_| pace.admits(now)).collect();
        assert_eq!(shown, [(true, 0), (true, 0), (false, 0), (false, 0), (false, 0)]);
        assert_eq!(pace.admits(now + Duration::from_secs(1)), (true, 3));
    }
}
