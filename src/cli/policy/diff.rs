//! `wardgate policy diff`: what callers gain and lose, each claim with a request that was decided both ways.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::admin::{AdminArgs, ask};
use crate::cli::audit::Output;
use crate::cli::policy::sound_policies;
use crate::cli::questions::declared_scene;
use crate::cli::text::safe;
use crate::policy::questions::{Change, Difference, Example, Target};
use crate::rt::Clock;

/// What a difference ends with.
const DIFFERS: u8 = 4;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate policy diff policies-main/ policies/            two files or folders
  wardgate policy diff policies/ --against live            what would change at the control plane
  wardgate policy diff --from 1041 --against live          what has changed there since revision 1041

Exit codes: 0 both decide alike, 4 they differ, 1 it cannot be told.")]
pub(super) struct DiffArgs {
    /// The old policies, a file or folder; with --against live: the new ones
    one: Option<PathBuf>,
    /// The new policies, a file or folder
    other: Option<PathBuf>,
    /// Compare with what a control plane has now
    #[arg(long, value_parser = ["live"], value_name = "live", conflicts_with = "other")]
    against: Option<String>,
    /// What a control plane had at that revision or time is the old side
    #[arg(long, value_name = "WHEN", conflicts_with = "one", requires = "against")]
    from: Option<String>,
    /// By meaning; that is how it always compares
    #[arg(long)]
    semantic: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate policy diff`.
pub(super) async fn run(args: &DiffArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let difference: Difference = match (&args.one, &args.other, &args.against, &args.from) {
        (Some(old), Some(new), ..) => {
            let (old, _) = declared_scene(std::slice::from_ref(old))?;
            let (new, _) = declared_scene(std::slice::from_ref(new))?;
            let routes = new.around.routes.or(old.around.routes);
            old.policies.difference(&new.policies, routes.as_deref(), Clock::system().now())
        }
        (Some(new), None, Some(_), _) => {
            let question = json!({ "new": texts(new)? });
            serde_json::from_value(live(args, &question).await?)?
        }
        (None, None, Some(_), Some(at)) => {
            serde_json::from_value(live(args, &json!({ "old_at": at })).await?)?
        }
        _ => bail!(
            "nothing to compare: give OLD and NEW, or NEW with --against live, or --from WHEN --against live"
        ),
    };
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&difference)?)?,
        Output::Text => print(&difference, out)?,
    }
    Ok(if difference.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

async fn live(args: &DiffArgs, question: &Value) -> anyhow::Result<Value> {
    ask(&args.admin.open()?, "POST", "/questions/diff", Some(question)).await
}

fn texts(path: &Path) -> anyhow::Result<Vec<Value>> {
    let declared = sound_policies(&[path.to_path_buf()])?;
    let texts = declared.policies.into_iter().map(|placed| {
        let mut text = serde_json::to_value(&placed.body)?;
        text["id"] = json!(placed.id);
        Ok(text)
    });
    texts.collect()
}

fn print(difference: &Difference, out: &mut dyn Write) -> std::io::Result<()> {
    for (sign, changes) in [("+ gains", &difference.gained), ("- loses", &difference.lost)] {
        for change in changes {
            print_change(sign, change, out)?;
        }
    }
    let Difference { gained, lost, not_compared } = difference;
    for text in not_compared {
        writeln!(out, "not compared: {}", safe(text))?;
    }
    match difference.is_empty() {
        true => writeln!(out, "both decide alike"),
        false => writeln!(out, "{} gained, {} lost", gained.len(), lost.len()),
    }
}

fn print_change(sign: &str, change: &Change, out: &mut dyn Write) -> std::io::Result<()> {
    let Change { workloads, workloads_but, who, who_but, what, example } = change;
    let set = |list: &[String], but: &[String], all: &str| {
        let list = if list.is_empty() { all.to_owned() } else { list.join(", ") };
        let but =
            if but.is_empty() { String::new() } else { format!(" but not {}", but.join(", ")) };
        safe(&format!("{list}{but}"))
    };
    writeln!(out, "{sign}: {}", set(who, who_but, "anybody"))?;
    writeln!(out, "    at    {}", set(workloads, workloads_but, "all workloads"))?;
    writeln!(out, "    what  {}", set(what, &[], "everything"))?;
    let Example { workload: _, identity, target, old, new } = example;
    let Target { method, path, host, connection, .. } = target;
    let request = match connection {
        true => format!("a connection to port {}", target.port.unwrap_or_default()),
        false => format!(
            "{} {} (host {})",
            method.as_deref().unwrap_or("?"),
            path.as_deref().unwrap_or("?"),
            host.as_deref().unwrap_or("?")
        ),
    };
    let decided = |one: &crate::policy::questions::Decided| {
        let by = one.rule.as_ref().map(|via| format!(" by {via}")).unwrap_or_default();
        format!("{}{by}", if one.allowed { "allowed" } else { "refused" })
    };
    let who = identity.as_deref().unwrap_or("nobody");
    let line = format!("{who}: {request}: {}, then {}", decided(old), decided(new));
    writeln!(out, "    as in {}", safe(&line))
}
