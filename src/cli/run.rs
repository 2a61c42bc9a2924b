//! `wardgate run`: starts roles, and does what the process is asked by signals until it ends.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;

use crate::observe::AuditLog;
use crate::roles::{Predecessor, Program, Role, Running, SettingsFile, Successor, stay};
use crate::rt::signals::{Asked, Signals};
use crate::rt::{Sockets, systemd};
use crate::sync::file::process_environment;

/// Start a role with a settings file
///
/// SIGTERM and SIGINT drain it: it is not ready at once, takes new connections for drain_grace_seconds, and gives those under
/// way drain_seconds; a second one ends it at once. SIGHUP reads the settings again. SIGUSR2 starts the program anew, hands the
/// listening sockets over, and drains.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example settings of a sidecar that takes its identity from SPIRE or our issuer:

  role: sidecar
  trust_domain: example.org
  state_dir: /var/lib/wardgate
  identity: { source: workload_api, socket: unix:/run/spire/sockets/agent.sock }
  control_plane: { address: control.example.org:9185 }
  sidecar: { app: http://127.0.0.1:8080 }
  status: 0.0.0.0:15020

Exit codes: 0 drained, 1 could not start, 128 and the signal's number when it was asked to end a second time.")]
pub(super) struct RunArgs {
    /// The settings file
    #[arg(short = 'c', long = "config", value_name = "FILE", env = "WARDGATE_CONFIG")]
    config: PathBuf,
    /// Which role; wins over the settings file
    #[arg(long, value_name = "ROLE", value_parser = role)]
    role: Option<Role>,
    /// Write logs as JSON lines
    #[arg(long)]
    pub(super) json_logs: bool,
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "sidecar" => Ok(Role::Sidecar),
        "ingress" => Ok(Role::Ingress),
        "control" => Ok(Role::Control),
        "issuer" => Ok(Role::Issuer),
        other => Err(format!("{other:?}: expected sidecar, ingress, control or issuer")),
    }
}

/// How a second request to end is answered, and by which exit code.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// After so long a process that got ready has done what only a start does.
const SETTLED: Duration = Duration::from_millis(500);

pub(super) async fn run(
    args: &RunArgs,
    sockets: Sockets,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let program = Program::of_this_process();
    // Before the start: a signal that comes meanwhile must not end us by itself.
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let mut lifeline = None;
    let starting = async {
        match Predecessor::find()? {
            None => {
                let file = settings(args)?;
                let start = Running::start(&file.settings, args.role, sockets);
                let running = Box::pin(start).await?;
                Ok::<_, anyhow::Error>((running, file))
            }
            Some((mut predecessor, sockets)) => {
                lifeline = predecessor.lifeline();
                let replaced = async {
                    let file = settings(args)?;
                    let role = args.role;
                    let taken = Running::take_over(&file.settings, role, &predecessor, sockets);
                    let running = Box::pin(taken).await?;
                    Ok::<_, crate::roles::Error>((running, file))
                };
                Ok(Box::pin(replaced).await.inspect_err(|error| predecessor.failed(error))?)
            }
        }
    };
    let (mut running, file) = tokio::select! {
        started = Box::pin(starting) => started?,
        signal = signals.end() => return Ok(ended_by(signal)),
    };
    running.follow(file);
    tell(&running, out)?;
    Box::pin(serve(running, &program, lifeline, signals, out)).await
}

/// Reads the settings file, and logs as it says.
fn settings(args: &RunArgs) -> Result<SettingsFile, crate::roles::Error> {
    let file = SettingsFile::read(&args.config, &process_environment())?;
    file.settings.check(args.role)?;
    if let Err(problem) = file.settings.log.put_into_force() {
        tracing::error!("the setting log.filter is not in force: {problem}");
    }
    Ok(file)
}

fn tell(running: &Running, out: &mut impl Write) -> std::io::Result<()> {
    for (door, address) in &running.doors {
        writeln!(out, "{} listens on {address}", format!("{door:?}").to_lowercase())?;
    }
    for (name, address) in &running.relays {
        writeln!(out, "{name} listens on {address}")?;
    }
    for (name, address) in [
        ("status", running.status),
        ("control_api", running.control_api),
        ("admin", running.admin),
        ("feed", running.feed),
        ("bundle", running.bundle),
        ("enrolment", running.enrolment),
    ] {
        if let Some(address) = address {
            writeln!(out, "{name} listens on {address}")?;
        }
    }
    if let Some(key) = &running.generated_key {
        writeln!(out, "admin key (shown once, only its hash is kept): {}", key.reveal())?;
    }
    out.flush()
}

/// Serves until the end.
async fn serve(
    mut running: Running,
    program: &Program,
    lifeline: Option<UnixStream>,
    mut signals: Signals,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let readiness = running.readiness().clone();
    let mut ready = std::pin::pin!(readiness.ready());
    let mut is_ready = false;
    let mut settled = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    let mut is_settled = true;
    let mut orphaned = std::pin::pin!(orphaned(lifeline.as_ref()));
    loop {
        let asked = tokio::select! {
            biased;
            asked = signals.next() => asked,
            () = &mut orphaned => {
                tracing::warn!("the process that was started first is gone");
                Asked::End(Signal::TERM)
            }
            () = &mut ready, if !is_ready => {
                is_ready = true;
                systemd::notify("READY=1\nSTATUS=ready");
                writeln!(out, "ready")?;
                out.flush()?;
                settled.as_mut().reset(tokio::time::Instant::now() + SETTLED);
                is_settled = false;
                continue;
            }
            () = &mut settled, if !is_settled => {
                is_settled = true;
                crate::rt::memory::give_back_code();
                continue;
            }
        };
        match asked {
            Asked::End(_) => return Box::pin(end(running, &mut signals, out)).await,
            Asked::Reload => {
                systemd::notify(&systemd::reloading());
                let reload = running.reload().await;
                let status =
                    if reload.error.is_some() { "the settings were not taken" } else { "ready" };
                systemd::notify(&format!("READY=1\nSTATUS={status}"));
            }
            Asked::Upgrade => {
                tracing::info!("a new process is started to take over");
                let heir = tokio::select! {
                    heir = running.raise(program, lifeline.as_ref()) => heir,
                    _ = signals.end() => return Box::pin(end(running, &mut signals, out)).await,
                };
                let handed = match heir {
                    Ok(heir) => running.hand_over(heir).await,
                    Err(error) => Err(error),
                };
                match handed {
                    Ok(successor) => {
                        return Box::pin(leave(running, successor, &mut signals, out)).await;
                    }
                    Err(error) => {
                        let why = crate::rt::causes(&error);
                        tracing::error!("not replaced, this process goes on: {why}");
                        running.facts().not_upgraded(why);
                    }
                }
            }
        }
    }
}

/// Waits until the process is gone that whoever started us watches; for ever when it is this one.
async fn orphaned(lifeline: Option<&UnixStream>) {
    let stream = lifeline.and_then(|stream| {
        let stream = stream.try_clone().ok()?;
        stream.set_nonblocking(true).ok()?;
        tokio::net::UnixStream::from_std(stream).ok()
    });
    match stream {
        Some(mut stream) => drop(stream.read(&mut [0]).await),
        None => std::future::pending().await,
    }
}

/// Drains and ends.
async fn end(
    running: Running,
    signals: &mut Signals,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let log = running.log();
    systemd::notify("STOPPING=1\nSTATUS=draining");
    running.leave("the process was asked to end");
    let grace = running.grace();
    if !grace.is_zero() {
        tracing::info!(seconds = grace.as_secs(), "not ready any more; doors close later");
        tokio::select! {
            () = tokio::time::sleep(grace) => {}
            signal = signals.end() => return at_once(&log, signal),
        }
    }
    tracing::info!("draining");
    let clean = tokio::select! {
        clean = running.drain() => clean,
        signal = signals.end() => return at_once(&log, signal),
    };
    writeln!(out, "{}", if clean { "stopped" } else { "stopped; some connections were cut off" })?;
    Ok(ExitCode::SUCCESS)
}

/// Drains after another process has taken over, and stays where it is this one that is watched.
async fn leave(
    running: Running,
    successor: Successor,
    signals: &mut Signals,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let (log, pid) = (running.log(), successor.pid());
    tracing::info!(pid, "a new process has taken over; draining");
    writeln!(out, "process {pid} has taken over")?;
    out.flush()?;
    if successor.is_announced() {
        systemd::notify(&format!("MAINPID={pid}"));
    }
    let (clean, signal) = tokio::select! {
        clean = running.drain() => (clean, None),
        signal = signals.end() => (false, Some(signal)),
    };
    writeln!(out, "{}", if clean { "drained" } else { "drained; some connections were cut off" })?;
    out.flush()?;
    match signal {
        _ if successor.leaves_us() => {
            drop(log);
            Ok(ExitCode::from(stay(successor, signals, signal).await))
        }
        Some(signal) => at_once(&log, signal),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Ends without waiting for anything but the decision log.
fn at_once(log: &AuditLog, signal: Signal) -> anyhow::Result<ExitCode> {
    tracing::warn!("asked to end a second time: cut off");
    if log.flush(LAST_WRITE).is_err() {
        tracing::error!("the end of the decision log could not be written");
    }
    std::process::exit(128 + signal.as_raw())
}

fn ended_by(signal: Signal) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX))
}
