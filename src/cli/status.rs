//! `wardgate status`, `wardgate upgrade`, `wardgate reload`: what runs in a process, and having it renewed.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::client::send;
use super::paint::Paint;
use super::text::field;
use crate::roles::Settings;

/// Which process: by its status port, or by its number.
#[derive(Args, Debug)]
pub(super) struct Place {
    /// The settings file of the process, which names its status port
    #[arg(short = 'c', long = "config", value_name = "FILE", env = "WARDGATE_CONFIG")]
    config: Option<PathBuf>,
    /// The status port of the process, as 127.0.0.1:15020
    #[arg(long, value_name = "ADDRESS")]
    at: Option<String>,
}

impl Place {
    fn address(&self) -> anyhow::Result<Option<String>> {
        match (&self.at, &self.config) {
            (Some(at), _) => Ok(Some(at.clone())),
            (None, Some(path)) => Ok(Settings::read(path)?.status.map(|status| status.to_string())),
            (None, None) => Ok(None),
        }
    }
}

/// What runs in a process: version, listeners, configuration, feed, identities, what is refused
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate status -c /etc/wardgate/sidecar.yaml
  wardgate status --at 127.0.0.1:15020 -o json")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    place: Place,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Replace a process by a new one of the program that lies in its place, without losing a connection
///
/// The new process takes the listening sockets over; the old one drains. When the new one does not come up, the old one goes
/// on as before, and this tells why.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  install wardgate-new /usr/bin/wardgate && wardgate upgrade -c /etc/wardgate/sidecar.yaml
  wardgate upgrade --pid 4711                   without a status port: asks, and does not wait")]
pub(super) struct UpgradeArgs {
    #[command(flatten)]
    place: Place,
    /// The number of the process, where it has no status port
    #[arg(long, value_name = "PID", conflicts_with_all = ["config", "at"])]
    pid: Option<i32>,
    /// Seconds to wait for the outcome
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    wait: u64,
}

/// Have a process read its settings file again, and tell what came of it
#[derive(Args, Debug)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    place: Place,
    /// The number of the process, where it has no status port
    #[arg(long, value_name = "PID", conflicts_with_all = ["config", "at"])]
    pid: Option<i32>,
}

async fn ask(address: &str) -> anyhow::Result<Value> {
    let answer = send(address, address, "GET", "/status/process", &[], None).await?;
    if answer.status != 200 {
        bail!("{address} answers {}: is it the status port of a wardgate?", answer.status);
    }
    answer.json()
}

const NO_PLACE: &str = "which process? Name its settings file (-c FILE) or its status port (--at)";
const NO_PORT: &str = "the settings have no status port";

pub(super) async fn status(args: &StatusArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let Some(address) = args.place.address()? else {
        bail!(if args.place.config.is_some() { NO_PORT } else { NO_PLACE });
    };
    let told = ask(&address).await?;
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&told)?)?,
        Output::Table => print(&told, out)?,
    }
    let is_ready = told["state"] == "ready";
    Ok(if is_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rows<'v>(told: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    told[name].as_array().into_iter().flatten()
}

fn text(value: &Value, pointer: &str) -> String {
    field(value, pointer).unwrap_or_else(|| "-".to_owned())
}

fn print(told: &Value, out: &mut impl Write) -> anyhow::Result<()> {
    let paint = Paint::stdout();
    let roles: Vec<String> = rows(told, "roles").filter_map(|role| field(role, "")).collect();
    writeln!(
        out,
        "{} {} {}, process {}, up {} s",
        paint.bold("wardgate"),
        text(told, "/version"),
        roles.join(" and "),
        text(told, "/pid"),
        text(told, "/uptime_seconds")
    )?;
    let state = text(told, "/state");
    let shown = if state == "ready" { paint.good(&state) } else { paint.bad(&state) };
    writeln!(out, "{:<14} {shown}", "state")?;
    for reason in rows(told, "waiting_for") {
        writeln!(out, "{:<14}   {}", "", text(reason, ""))?;
    }
    for listener in rows(told, "listeners") {
        let (name, address) = (text(listener, "/name"), text(listener, "/address"));
        writeln!(out, "{:<14} {name:<12} {address}", "listener")?;
    }
    for plane in rows(told, "configuration") {
        let count = rows(plane, "refused").count();
        writeln!(
            out,
            "{:<14} {:<12} revision {}, {} resources, {count} refused",
            "configuration",
            text(plane, "/part"),
            text(plane, "/revision"),
            text(plane, "/resources")
        )?;
        for one in rows(plane, "refused") {
            let (kind, id) = (text(one, "/kind"), text(one, "/id"));
            writeln!(
                out,
                "{:<14}   {} {}",
                "",
                paint.bad(&format!("{kind}/{id}")),
                text(one, "/reason")
            )?;
        }
    }
    for plane in rows(told, "configuration") {
        for door in rows(plane, "identity_modes").filter(|door| door["mode"] != "strict") {
            let mode = text(door, "/mode");
            let warning = paint.warn(&format!("{mode} at port {}", text(door, "/port")));
            writeln!(out, "{:<14} {:<12} {warning}", "identity mode", text(plane, "/part"))?;
        }
    }
    for feed in rows(told, "feeds") {
        let part = text(feed, "/part");
        let how = match (feed["control_plane"].is_string(), feed["connected"] == true) {
            (false, _) if feed["good"] == false => format!(
                "file {}, {} {}",
                text(feed, "/file"),
                paint.bad("the version before is in force:"),
                text(feed, "/error")
            ),
            (false, _) => {
                format!("file {}, {} left out", text(feed, "/file"), text(feed, "/left_out"))
            }
            (true, true) => format!("{} connected", text(feed, "/control_plane")),
            (true, false) => format!(
                "{} {} {}",
                text(feed, "/control_plane"),
                paint.bad("not connected"),
                text(feed, "/error")
            ),
        };
        writeln!(out, "{:<14} {part:<12} {how}", "feed")?;
        if let Some(held_off) = held_off(feed) {
            writeln!(out, "{:<14}   {}", "", paint.bad(&held_off))?;
        }
    }
    for identity in rows(told, "identities") {
        writeln!(
            out,
            "{:<14} {} lasts {} s; first ends its {}",
            "identity",
            text(identity, "/spiffe_id"),
            text(identity, "/budget_seconds"),
            text(identity, "/fails_first")
        )?;
    }
    if told["store"]["reachable"] == false {
        let since = text(told, "/store/since");
        let lost = paint.bad(&format!("does not answer since {since}:"));
        let error = text(told, "/store/error");
        writeln!(out, "{:<14} {lost} {error}; data planes are fed what was read", "store")?;
    }
    if let Some(canary) = told.get("canary") {
        let how = super::canary::told(canary);
        let how = if canary["phase"] == "stopped" { paint.bad(&how) } else { how };
        writeln!(out, "{:<14} {how}", "canary")?;
    }
    for plane in rows(&told["data_planes"], "connected") {
        writeln!(
            out,
            "{:<14} {} {} applied {}",
            "data plane",
            text(plane, "/spiffe_id"),
            text(plane, "/node"),
            text(plane, "/applied")
        )?;
    }
    let (written, lost) = (text(told, "/decision_log/written"), text(told, "/decision_log/lost"));
    writeln!(out, "{:<14} {written} records written, {lost} lost", "decision log")?;
    let last = &told["settings"]["last"];
    if let Some(error) = field(last, "/error") {
        writeln!(out, "{:<14} {} {error}", "settings", paint.bad("not taken:"))?;
    }
    for name in rows(last, "needs_upgrade") {
        let name = text(name, "");
        writeln!(out, "{:<14} {name} comes into force with wardgate upgrade", "settings")?;
    }
    if let Some(error) = field(told, "/upgrade/last_failure/error") {
        writeln!(out, "{:<14} {} {error}", "upgrade", paint.bad("failed:"))?;
    }
    Ok(())
}

fn pid_of(told: &Value) -> anyhow::Result<i32> {
    let pid = told["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.context("the process does not tell its number")
}

fn signal(pid: i32, signal: Signal) -> anyhow::Result<()> {
    let Some(process) = Pid::from_raw(pid) else { bail!("{pid} is no process") };
    kill_process(process, signal).with_context(|| {
        format!("process {pid} cannot be asked (is it on this machine, and yours?)")
    })
}

pub(super) async fn upgrade(args: &UpgradeArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    if let Some(pid) = args.pid {
        signal(pid, Signal::USR2)?;
        writeln!(out, "process {pid} was asked; its log tells the outcome")?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(address) = args.place.address()? else {
        bail!(if args.place.config.is_some() { NO_PORT } else { NO_PLACE });
    };
    let before = ask(&address).await?;
    let pid = pid_of(&before)?;
    signal(pid, Signal::USR2)?;
    let until = tokio::time::Instant::now() + Duration::from_secs(args.wait);
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Between the two nobody may answer for a moment.
        let Ok(now) = ask(&address).await else { continue };
        let successor = pid_of(&now)?;
        if successor != pid {
            writeln!(
                out,
                "process {successor} ({}) has taken over from {pid} ({})",
                text(&now, "/version"),
                text(&before, "/version")
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        if now["upgrade"]["failed"].as_u64() > before["upgrade"]["failed"].as_u64() {
            let why = text(&now, "/upgrade/last_failure/error");
            bail!("process {pid} goes on: {why}");
        }
    }
    bail!("process {pid} was not replaced within {} s", args.wait)
}

pub(super) async fn reload(args: &ReloadArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    if let Some(pid) = args.pid {
        signal(pid, Signal::HUP)?;
        writeln!(out, "process {pid} was asked; its log tells the outcome")?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(address) = args.place.address()? else {
        bail!(if args.place.config.is_some() { NO_PORT } else { NO_PLACE });
    };
    let before = ask(&address).await?;
    signal(pid_of(&before)?, Signal::HUP)?;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = ask(&address).await?;
        if now["settings"]["reads"].as_u64() <= before["settings"]["reads"].as_u64() {
            continue;
        }
        let last = &now["settings"]["last"];
        if let Some(error) = field(last, "/error") {
            bail!("the settings stay as they are: {error}");
        }
        for name in rows(last, "applied") {
            writeln!(out, "{} is in force", text(name, ""))?;
        }
        for name in rows(last, "needs_upgrade") {
            writeln!(out, "{} comes into force with wardgate upgrade", text(name, ""))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    bail!("the process did not read its settings within 10 s")
}

/// What a feed does not take because the process died with it.
pub(super) fn held_off(feed: &Value) -> Option<String> {
    let held_off = feed.get("held_off").filter(|held_off| held_off.is_object())?;
    Some(format!(
        "CRASH LOOP: revision {} is held off, the process died {} times with it; revision {} is in force",
        held_off["revision"], held_off["deaths"], held_off["in_force"]
    ))
}
