//! The command tree, and running a command to its exit code.

use std::ffi::OsStr;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use super::{
    admin_key, audit, canary, check, config, conformance, demo, dev, explain, identity, policy,
    questions, run, schema, status, store, tap, who_did,
};
use crate::observe::{LogFormat, start_logging};
use crate::rt::{Sockets, memory, systemd};

/// An mTLS-centric zero-trust sidecar gateway.
///
/// Beside each workload it terminates and originates mTLS with SPIFFE identities, decides by identity who may call what,
/// and proves it in a decision log. At the edge it is an ingress with Apache APISIX's Admin API.
#[derive(Debug, Parser)]
#[command(name = "wardgate", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "\
First steps:
  wardgate demo                                 see one allowed and two refused calls, in one process
  wardgate dev --to http://127.0.0.1:8000       put a sidecar and an ingress before your own application
  wardgate run --role sidecar -c sidecar.yaml   start a role with its settings
  wardgate apply -f config/ --dry-run           what would these files change at the control plane?
  wardgate explain denial d-…                   why was this refused?

Environment:
  WARDGATE_LOG     what to log, as info or wardgate=debug
  WARDGATE_ADMIN   the Admin API for commands that ask it, as http://127.0.0.1:9180
  WARDGATE_KEY     its key
  WARDGATE_IDENTITY
                   the folder of an identity (svid.pem, key.pem, bundle.pem) for an Admin API over mTLS
  WARDGATE_ADMIN_CA
                   authorities (PEM) for an Admin API with a certificate of a public name
  WARDGATE_AUDIT   the decision log for commands that read it
  WARDGATE_ALLOW_CORE_DUMPS
                   1 opens the process' memory to debuggers and core files, private keys with it
  NO_COLOR         plain output

Exit codes: 0 done, 1 failed or a problem found, 2 wrong use.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See it work: issuer, control plane, two sidecars and an ingress in this process, three calls, their outcomes
    Demo(demo::DemoArgs),
    /// Put a sidecar and an ingress before an application that runs already, with the Admin API live
    Dev(dev::DevArgs),
    /// Start a role: sidecar, ingress, control, issuer
    Run(run::RunArgs),
    /// What runs in a process
    Status(status::StatusArgs),
    /// Replace a running process by a new one without losing a connection
    Upgrade(status::UpgradeArgs),
    /// Have a running process read its settings again
    Reload(status::ReloadArgs),
    /// Is everything in order? Settings, identity, feed, policy, certificates
    Check(check::CheckArgs),
    Apply(config::ApplyArgs),
    Diff(config::DiffArgs),
    Dump(config::DumpArgs),
    Validate(config::ValidateArgs),
    Sync(config::SyncArgs),
    History(config::HistoryArgs),
    Rollback(config::RollbackArgs),
    /// Explain a decision
    Explain(explain::ExplainArgs),
    /// Who may do something at a workload: all identities, with the rules that admit them
    WhoCan(questions::WhoCanArgs),
    /// Everything that an identity may do, everywhere
    WhatCan(questions::WhatCanArgs),
    /// May an identity do something? Exit code 3: no
    CanI(questions::CanIArgs),
    /// Policies: read files strictly, test them, bring them in from elsewhere, hand them on
    Policy(policy::PolicyArgs),
    /// Check a decision log, look at its end, find records in it
    Audit(audit::AuditArgs),
    WhoDid(who_did::WhoDidArgs),
    Tap(tap::TapArgs),
    /// Who may administer: make, list, rotate and revoke admin keys
    Admin(admin_key::AdminCommandArgs),
    Canary(canary::CanaryArgs),
    Store(store::StoreArgs),
    /// Make an authority, issue identities from it, look into certificates
    Identity(identity::IdentityArgs),
    /// Present bad certificates to a proxy, this one or any other, and tell which rules it breaks
    Conformance(conformance::ConformanceArgs),
    /// Print a JSON Schema for editors: of the settings file, of policies, of their cases
    Schema(schema::SchemaArgs),
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  wardgate completion bash > /etc/bash_completion.d/wardgate"
    )]
    Completion {
        /// Which shell
        shell: Shell,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            let mut err = std::io::stderr().lock();
            let _ = writeln!(err, "error: {error}");
            for cause in error.chain().skip(1) {
                let _ = writeln!(err, "  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    // Before anything else opens a descriptor.
    let given = matches!(command, Command::Run(_)).then(systemd::listening_sockets);
    crate::rt::crypto::check()?;
    close_memory(std::env::var_os(ALLOW_CORE_DUMPS).as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let out = &mut std::io::stdout();
    match command {
        Command::Demo(args) => {
            start_logging(LogFormat::Text, quiet().as_deref())?;
            runtime.block_on(demo::run(&args))
        }
        Command::Dev(args) => {
            start_logging(LogFormat::Text, quiet().as_deref())?;
            runtime.block_on(dev::run(&args))
        }
        Command::Run(args) => {
            let format = if args.json_logs { LogFormat::Json } else { LogFormat::Text };
            start_logging(format, None)?;
            let (given, others) = given.unwrap_or_default();
            for name in others {
                tracing::warn!(name, "what the service manager handed over is no listening socket");
            }
            let sockets = Sockets::given(given);
            runtime.block_on(run::run(&args, sockets, out))
        }
        Command::Status(args) => runtime.block_on(status::status(&args, out)),
        Command::Upgrade(args) => runtime.block_on(status::upgrade(&args, out)),
        Command::Reload(args) => runtime.block_on(status::reload(&args, out)),
        Command::Check(args) => {
            start_logging(LogFormat::Text, Some("off"))?;
            runtime.block_on(check::run(&args, out))
        }
        Command::Apply(args) => runtime.block_on(config::apply(&args, out)),
        Command::Diff(args) => runtime.block_on(config::diff(&args, out)),
        Command::Dump(args) => runtime.block_on(config::dump(&args, out)),
        Command::Validate(args) => runtime.block_on(config::validate(&args, out)),
        Command::Sync(args) => runtime.block_on(config::sync(&args, out)),
        Command::History(args) => runtime.block_on(config::history(&args, out)),
        Command::Rollback(args) => runtime.block_on(config::rollback(&args, out)),
        Command::Explain(args) => runtime.block_on(explain::run(&args, out)),
        Command::WhoCan(args) => runtime.block_on(questions::who_can(&args, out)),
        Command::WhatCan(args) => runtime.block_on(questions::what_can(&args, out)),
        Command::CanI(args) => runtime.block_on(questions::can_i(&args, out)),
        Command::Policy(args) => runtime.block_on(policy::run(&args, out)),
        Command::Audit(args) => runtime.block_on(audit::run(&args, out)),
        Command::WhoDid(args) => runtime.block_on(who_did::run(&args, out)),
        Command::Tap(args) => runtime.block_on(tap::run(&args, out)),
        Command::Admin(args) => runtime.block_on(admin_key::run(&args, out)),
        Command::Canary(args) => runtime.block_on(canary::run(&args, out)),
        Command::Store(args) => runtime.block_on(store::run(&args, out)),
        Command::Identity(args) => identity::run(args),
        Command::Conformance(args) => {
            start_logging(LogFormat::Text, Some(&conformance_logs()))?;
            runtime.block_on(conformance::run(&args, out))
        }
        Command::Schema(args) => schema::run(&args, out),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "wardgate", out);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Opens our memory to debuggers and core files. For finding a fault; `check` shows it.
const ALLOW_CORE_DUMPS: &str = "WARDGATE_ALLOW_CORE_DUMPS";

/// Before any key is in it.
fn close_memory(allowed: Option<&OsStr>) -> anyhow::Result<()> {
    match allowed.map(OsStr::as_encoded_bytes) {
        None | Some(b"" | b"0" | b"false") => memory::close().with_context(|| {
            format!(
                "cannot close this process' memory to others ({ALLOW_CORE_DUMPS}=1 goes without)"
            )
        }),
        Some(b"1" | b"true") => Ok(()),
        Some(_) => bail!("{ALLOW_CORE_DUMPS}: expected 1 or 0"),
    }
}

/// The embedded modes talk to a person: logs only when asked for, or when something is wrong.
fn quiet() -> Option<String> {
    Some(std::env::var("WARDGATE_LOG").unwrap_or_else(|_| "error".to_owned()))
}

/// A run makes a proxy refuse a hundred times; the report tells of it, so that the log need not.
fn conformance_logs() -> String {
    std::env::var("WARDGATE_LOG").unwrap_or_else(|_| "off".to_owned())
}

/// Waits for SIGTERM or Ctrl-C.
pub(super) async fn asked_to_end() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Arguments::command().debug_assert();
    }
}
