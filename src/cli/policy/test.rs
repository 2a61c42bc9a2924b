//! `wardgate policy test`: cases kept beside the policies, tried on the engine that enforces.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, ValueEnum};

use super::files::sound_policies;
use crate::cli::paint::Paint;
use crate::policy::{Trial, TrialReport, try_cases};

#[derive(Args, Debug)]
#[command(after_help = "\
Cases stand in files *.test.yaml beside the policies, or in documents with `kind: policy_test`:

  to: spiffe://shop/billing
  cases:
  - name: web reads invoices, nobody writes them
    as: spiffe://shop/web
    request: GET http://billing/invoices/7
    expect: { outcome: allow, rule: billing-read/web-reads-invoices }

Example:
  wardgate policy test -f policies/
  wardgate policy test -f policies/ -o junit > report.xml

Exit codes: 0 all as expected, 1 a case that is not, or a file with a mistake.")]
pub(super) struct TestArgs {
    /// Policies and cases: files, or folders of *.yaml, *.yml and *.json; - is the standard input.
    #[arg(short, long = "file", value_name = "PATH", default_value = ".")]
    file: Vec<PathBuf>,
    /// A rule that no case reaches is a failure as well.
    #[arg(long)]
    strict: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: TestOutput,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum TestOutput {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// For build servers.
    Junit,
}

/// Runs `wardgate policy test`. Exit code 1: a case did not come out as expected.
pub(super) fn run(args: &TestArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let declared = sound_policies(&args.file)?;
    if declared.cases.is_empty() {
        anyhow::bail!(
            "no cases: they stand in *.test.yaml, or in documents with kind: policy_test"
        );
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.ok().and_then(|now| i64::try_from(now.as_secs()).ok()).unwrap_or(0);
    let report = try_cases(&declared, now);
    match args.output {
        TestOutput::Text => print(&report, out)?,
        TestOutput::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        TestOutput::Junit => print_junit(&report, out)?,
    }
    let failed = report.failures() > 0 || (args.strict && !report.unreached.is_empty());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(report: &TrialReport, out: &mut dyn Write) -> std::io::Result<()> {
    let paint = Paint::stdout();
    for trial in report.trials.iter().filter(|trial| trial.differs.is_some()) {
        let differs = trial.differs.as_deref().unwrap_or_default();
        writeln!(out, "{} {}:{} {}", paint.bad("×"), trial.file, trial.line, trial.name)?;
        writeln!(out, "    {} → {}   {}", trial.caller, trial.to, trial.what)?;
        writeln!(out, "    {differs}, found {}", found(trial))?;
        for line in trace(trial) {
            writeln!(out, "      {}", paint.faint(&line))?;
        }
    }
    for rule in &report.unreached {
        let (policy, name) = (&rule.policy, &rule.rule);
        let sign = paint.warn("!");
        writeln!(out, "{sign} {}:{} no case reaches {policy}/{name}", rule.file, rule.line)?;
    }
    let failed = report.failures();
    let sign = if failed == 0 { paint.good("✓") } else { paint.bad("×") };
    writeln!(
        out,
        "{sign} {} cases, {failed} failed, {} rules that no case reaches",
        report.trials.len(),
        report.unreached.len()
    )
}

fn found(trial: &Trial) -> String {
    let mut found = trial.outcome.to_owned();
    if let Some(reason) = trial.reason {
        found += &format!(" ({reason})");
    }
    if let Some(rule) = &trial.rule {
        found += &format!(" by {rule}");
    }
    if let Some(would_be) = trial.would_be {
        found += &format!(", would be {would_be}");
    }
    found
}

/// Each rule that was looked at, and what of it did not hold.
fn trace(trial: &Trial) -> Vec<String> {
    let lines = trial.tried.iter().map(|tried| {
        let action = serde_json::to_value(tried.action).unwrap_or_default();
        let action = action.as_str().unwrap_or_default();
        let name = format!("{action} {}/{}", tried.policy, tried.rule);
        match &tried.failed {
            None => format!("{name}: holds"),
            Some(failure) => {
                let wanted = failure.wanted.join(", ");
                format!("{name}: {} wants {wanted}; found {}", failure.clause, failure.found)
            }
        }
    });
    match lines.len() {
        0 => vec!["no policy selects this workload".to_owned()],
        _ => lines.collect(),
    }
}

fn print_junit(report: &TrialReport, out: &mut dyn Write) -> std::io::Result<()> {
    let (tests, failures) = (report.trials.len(), report.failures());
    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
    writeln!(out, "<testsuites tests=\"{tests}\" failures=\"{failures}\">")?;
    writeln!(out, "<testsuite name=\"policy\" tests=\"{tests}\" failures=\"{failures}\">")?;
    for trial in &report.trials {
        let name = xml(&format!("{} [{} {}]", trial.name, trial.caller, trial.what));
        let file = xml(&trial.file);
        write!(
            out,
            "<testcase classname=\"{file}\" file=\"{file}\" line=\"{}\" name=\"{name}\"",
            trial.line
        )?;
        match &trial.differs {
            None => writeln!(out, "/>")?,
            Some(differs) => {
                let message = xml(&format!("{differs}, found {}", found(trial)));
                let lines = xml(&trace(trial).join("\n"));
                writeln!(out, "><failure message=\"{message}\">{lines}</failure></testcase>")?;
            }
        }
    }
    if !report.unreached.is_empty() {
        writeln!(out, "<system-err>")?;
        for rule in &report.unreached {
            writeln!(out, "{}", xml(&format!("no case reaches {}/{}", rule.policy, rule.rule)))?;
        }
        writeln!(out, "</system-err>")?;
    }
    writeln!(out, "</testsuite>\n</testsuites>")
}

/// What XML 1.0 may hold, escaped.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(char),
            char if char.is_control() || matches!(char, '\u{fffe}' | '\u{ffff}') => {
                escaped.push('\u{fffd}');
            }
            char => escaped.push(char),
        }
    }
    escaped
}
