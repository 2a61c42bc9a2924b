//! The commands of `wardgate policy`.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::validate;

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
    }
}
