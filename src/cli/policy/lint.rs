//! `wardgate policy lint`: what is odd about policies.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::cli::audit::Output;
use crate::cli::policy::read_policies;
use crate::cli::questions::SubjectArgs;
use crate::cli::text::safe;
use crate::policy::questions::{Finding, Severity};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate policy lint -f policies/
  wardgate policy lint --strict --admin http://127.0.0.1:9180 --key $WARDGATE_KEY

Exit codes: 0 no error, 1 errors, or warnings with --strict. The codes are in docs/questions.md.")]
pub(super) struct LintArgs {
    /// Warnings count as errors
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    subject: SubjectArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate policy lint`.
pub(super) async fn run(args: &LintArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let mut findings: Vec<Finding> = Vec::new();
    // Mistakes in files are findings as any other.
    let (_, flaws) = read_policies(args.subject.files())?;
    for flaw in &flaws {
        findings.push(Finding {
            code: "WG1001".into(),
            severity: Severity::Error,
            policy: None,
            rule: None,
            sentence: flaw.to_string(),
            fix: "correct the file".into(),
        });
    }
    if flaws.is_empty() {
        let answer = args.subject.ask("lint", &json!({})).await?;
        findings = serde_json::from_value(answer["findings"].clone())?;
    }
    let count = |severity: Severity| findings.iter().filter(|one| one.severity == severity).count();
    let (errors, warnings, notes) =
        (count(Severity::Error), count(Severity::Warning), count(Severity::Note));
    match args.output {
        Output::Json => {
            let text = serde_json::to_string_pretty(&json!({ "findings": findings }))?;
            writeln!(out, "{text}")?;
        }
        Output::Text => {
            for Finding { code, severity, policy, rule, sentence, fix } in &findings {
                let severity = match severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                    Severity::Note => "note",
                };
                let rule = rule.as_ref().map(|rule| format!(":{rule}")).unwrap_or_default();
                let place = policy.as_ref().map(|policy| format!("policy/{policy}{rule}  "));
                let place = place.unwrap_or_default();
                writeln!(out, "{code} {severity:<7}  {}{}", safe(&place), safe(sentence))?;
                writeln!(out, "    fix: {}", safe(fix))?;
            }
            writeln!(out, "{errors} errors, {warnings} warnings, {notes} notes")?;
        }
    }
    let failed = errors > 0 || (args.strict && warnings > 0);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
