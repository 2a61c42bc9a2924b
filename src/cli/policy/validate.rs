//! `wardgate policy validate`: policy files, read as strictly as the Admin API does.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::files::read_policies;
use crate::cli::audit::Output;

#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  wardgate policy validate -f policies/
  policies/billing.yaml:7: rules[0].from: unknown field `principal`, expected one of …

Exit codes: 0 all can be used, 1 mistakes.")]
pub(super) struct ValidateArgs {
    /// Files, or folders of *.yaml, *.yml and *.json; - is the standard input.
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    file: Vec<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate policy validate`. Exit code 1: mistakes.
pub(super) fn run(args: &ValidateArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let (declared, flaws) = read_policies(&args.file)?;
    let (policies, modes) = (declared.policies.len(), declared.modes.len());
    match args.output {
        Output::Json => {
            let mistakes: Vec<_> = flaws
                .iter()
                .map(|flaw| {
                    let (file, line) = (&flaw.place.file, flaw.place.line);
                    json!({"file": file, "line": line, "sentence": flaw.sentence})
                })
                .collect();
            let report = json!({"policies": policies, "modes": modes, "mistakes": mistakes});
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        }
        Output::Text => {
            for flaw in &flaws {
                writeln!(out, "{flaw}")?;
            }
            writeln!(out, "{policies} policies, {modes} modes, {} mistakes", flaws.len())?;
        }
    }
    Ok(if flaws.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
