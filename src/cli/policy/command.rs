//! The commands of `wardgate policy`.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{coverage, diff, export, history, import, lint, replay, sign, suggest, test, validate};

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
    /// What is odd about policies: shadowed, contradictory, over-wide or idle rules
    Lint(lint::LintArgs),
    /// What callers gain and lose when policies change, by meaning
    Diff(diff::DiffArgs),
    /// Try the cases that are kept beside the policies, on the engine that enforces
    Test(test::TestArgs),
    /// Bring policies in from another mesh, with a report of each difference in meaning
    Import(import::ImportArgs),
    /// Hand policies on in the language of another engine
    Export(export::ExportArgs),
    /// What would other policies have decided about what really happened?
    Replay(replay::ReplayArgs),
    /// Write the least rules that allow what was allowed, with the evidence
    Suggest(suggest::SuggestArgs),
    /// Which rules, and which entries of them, were used?
    Coverage(coverage::CoverageArgs),
    /// Who changed which policy when
    History(history::HistoryArgs),
    /// Put policies back to what they were
    Rollback(history::RollbackArgs),
    /// Sign a set of policies, for data planes that take no others
    Sign(sign::SignArgs),
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
        PolicyCommand::Lint(args) => lint::run(args, out).await,
        PolicyCommand::Diff(args) => diff::run(args, out).await,
        PolicyCommand::Test(args) => test::run(args, out),
        PolicyCommand::Import(args) => import::run(args, out),
        PolicyCommand::Export(args) => export::run(args, out),
        PolicyCommand::Replay(args) => replay::run(args, out).await,
        PolicyCommand::Suggest(args) => suggest::run(args, out),
        PolicyCommand::Coverage(args) => coverage::run(args, out).await,
        PolicyCommand::History(args) => history::history(args, out).await,
        PolicyCommand::Rollback(args) => history::rollback(args, out).await,
        PolicyCommand::Sign(args) => sign::run(args, out),
    }
}
