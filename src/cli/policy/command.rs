//! The commands of `wardgate policy`.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{export, import, test, validate};

/// Work on policies in files and at the control plane.
#[derive(Args, Debug)]
pub(in crate::cli) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Read policy files as strictly as the Admin API does
    Validate(validate::ValidateArgs),
    /// Try the cases that are kept beside the policies, on the engine that enforces
    Test(test::TestArgs),
    /// Bring policies in from another mesh, with a report of each difference in meaning
    Import(import::ImportArgs),
    /// Hand policies on in the language of another engine
    Export(export::ExportArgs),
}

/// Runs `wardgate policy`.
///
/// # Errors
/// A file or a server cannot be read, or `out` cannot be written.
pub(in crate::cli) async fn run(
    args: &PolicyArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    match &args.command {
        PolicyCommand::Validate(args) => validate::run(args, out),
        PolicyCommand::Test(args) => test::run(args, out),
        PolicyCommand::Import(args) => import::run(args, out),
        PolicyCommand::Export(args) => export::run(args, out),
    }
}
