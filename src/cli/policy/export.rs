//! `wardgate policy export`: policies in the language of another engine.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::files::sound_policies;
use crate::policy::export_cedar;

#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    #[command(subcommand)]
    to: ExportTo,
}

#[derive(Debug, Subcommand)]
enum ExportTo {
    /// Cedar's policies, and the schema that they are valid under
    #[command(after_help = "\
Example:
  wardgate policy export cedar -f policies/ --out cedar/
  writes cedar/policies.cedar and cedar/wardgate.cedarschema

What Cedar cannot say is told on the standard error, and left out in the safe direction.
Exit codes: 0 done, 1 a mistake, or with --strict: something means another thing in Cedar.")]
    Cedar(CedarArgs),
}

#[derive(Args, Debug)]
struct CedarArgs {
    /// Policies: files, or folders of *.yaml, *.yml and *.json; - is the standard input.
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    file: Vec<PathBuf>,
    /// A folder for policies.cedar and wardgate.cedarschema; the policies go to the standard output otherwise.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Fail when anything means another thing in Cedar.
    #[arg(long)]
    strict: bool,
}

/// Runs `wardgate policy export`.
pub(super) fn run(args: &ExportArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let ExportTo::Cedar(args) = &args.to;
    let declared = sound_policies(&args.file)?;
    let cedar = export_cedar(declared.policies.iter().map(|placed| (&placed.id, &placed.body)));
    match &args.out {
        Some(folder) => {
            let cannot = || format!("cannot write into {}", folder.display());
            std::fs::create_dir_all(folder).with_context(cannot)?;
            std::fs::write(folder.join("policies.cedar"), &cedar.policies).with_context(cannot)?;
            std::fs::write(folder.join("wardgate.cedarschema"), &cedar.schema)
                .with_context(cannot)?;
        }
        None => out.write_all(cedar.policies.as_bytes())?,
    }
    let mut told = std::io::stderr().lock();
    for difference in &cedar.differences {
        writeln!(told, "{difference}")?;
    }
    let failed = args.strict && !cedar.differences.is_empty();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
