//! `wardgate apply` and `wardgate diff`: files, compared with what a control plane has, and written there in one revision.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::files::Gathered;
use crate::cli::admin::AdminArgs;
use crate::cli::audit::Output;
use crate::cli::client::Admin;
use crate::cli::text::safe;

/// What a difference ends with.
const DIFFERS: u8 = 4;

/// Which files, and as whom.
#[derive(Args, Debug)]
pub(super) struct SetArgs {
    /// Files, or folders of *.yaml, *.yml and *.json; - is the standard input
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    file: Vec<PathBuf>,
    /// Who applies: its resources bear the label wardgate.io/owner
    #[arg(long, env = "WARDGATE_OWNER", value_name = "NAME")]
    pub(super) owner: Option<String>,
    /// Change what another owner wrote, and own it from then on
    #[arg(long)]
    take_over: bool,
    /// More than half of a kind may be deleted
    #[arg(long)]
    allow_shrink: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Output,
}

/// Write files to a control plane: all of it in one revision, or nothing
///
/// The control plane works out what differs, judges all of it together, compiles it with the data plane's code, and writes it in one
/// revision. What another owner wrote is left alone.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate apply -f config/ --dry-run                    tell only
  wardgate apply -f config/ --owner shop --prune         and remove what `shop` wrote and no longer says
  wardgate dump --admin http://old:9180 | wardgate apply -f -

Files have the kinds as lists, as APISIX's apisix.yaml (routes: [...], #END may stand at the end), ADC's adc.yaml, or one resource a
document with its kind (kind: route). ${{NAME}} is the environment variable NAME.

Exit codes: 0 applied, or as it was already; 1 refused, and then nothing was written.")]
pub(in crate::cli) struct ApplyArgs {
    #[command(flatten)]
    set: SetArgs,
    /// Tell what would change, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove what this owner wrote and the files no longer say
    #[arg(long, requires = "owner")]
    prune: bool,
    /// Let a store that takes little at once (etcd: 128 operations) have it in several revisions
    #[arg(long)]
    split: bool,
    /// Wait so many seconds until all connected data planes have answered
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=60))]
    wait: Option<u64>,
}

/// Compare files with what a control plane has
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate diff -f config/
  wardgate diff -f config/ --owner shop --prune -o json

Exit codes: 0 nothing differs, 4 something does, 1 it cannot be told.")]
pub(in crate::cli) struct DiffArgs {
    #[command(flatten)]
    set: SetArgs,
    /// Also what would be removed, as apply --prune does it
    #[arg(long, requires = "owner")]
    prune: bool,
}

/// What is asked of the control plane.
#[derive(Clone, Copy, Default)]
pub(super) struct Asked {
    pub(super) prune: bool,
    pub(super) split: bool,
    pub(super) wait: Option<u64>,
}

/// What the control plane said.
pub(super) struct Told {
    pub(super) is_refused: bool,
    pub(super) applied: Option<bool>,
    pub(super) refusing: Option<String>,
    pub(super) body: Value,
}

impl SetArgs {
    /// Reads the files and asks: `what` is `apply` or `diff`.
    pub(super) async fn ask(&self, what: &str, asked: Asked) -> anyhow::Result<(Gathered, Told)> {
        let gathered = Gathered::read(&self.file)?;
        let told = self.send(what, &gathered, asked, &self.admin.open()?).await?;
        Ok((gathered, told))
    }

    async fn send(
        &self,
        what: &str,
        gathered: &Gathered,
        asked: Asked,
        admin: &Admin,
    ) -> anyhow::Result<Told> {
        let mut query = Vec::new();
        if let Some(owner) = &self.owner {
            query.push(format!("owner={}", utf8_percent_encode(owner, NON_ALPHANUMERIC)));
        }
        let flags = [
            ("prune", asked.prune),
            ("split", asked.split),
            ("take_over", self.take_over),
            ("allow_shrink", self.allow_shrink),
        ];
        query.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| format!("{name}=true")));
        if let Some(seconds) = asked.wait {
            query.push(format!("wait=applied&timeout={seconds}"));
        }
        let path = format!("/configs/{what}?{}", query.join("&"));
        let set = Value::Object(gathered.set.clone());
        let answer = admin.call_long("POST", &path, Some(&set)).await?;
        let body = answer.json().unwrap_or_default();
        let applied = answer.header("x-wardgate-applied").map(|applied| applied == "true");
        let refusing = answer.header("x-wardgate-refused").map(str::to_owned);
        match answer.status {
            200..300 => Ok(Told { is_refused: false, applied, refusing, body }),
            400 | 409 => Ok(Told { is_refused: true, applied, refusing, body }),
            status => {
                let why = ["error_msg", "description", "message"];
                let why = why.into_iter().find_map(|field| body[field].as_str());
                bail!(
                    "the Admin API refused {path} with {status}: {}",
                    why.unwrap_or("without a reason")
                )
            }
        }
    }
}

/// Runs `wardgate apply`. Exit code 1: refused.
///
/// # Errors
/// A file cannot be read, or nobody answers.
pub(in crate::cli) async fn apply(
    args: &ApplyArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let what = if args.dry_run { "diff" } else { "apply" };
    let asked = Asked {
        prune: args.prune,
        split: args.split && !args.dry_run,
        wait: args.wait.filter(|_| !args.dry_run),
    };
    let (gathered, told) = args.set.ask(what, asked).await?;
    match args.set.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&told.body)?)?,
        Output::Text => {
            print(&gathered, &told, out)?;
            end(&told, args.dry_run, out)?;
        }
    }
    // Not applied in the time that was given counts as not done.
    let is_done = !told.is_refused && told.applied != Some(false) && told.refusing.is_none();
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs `wardgate diff`. Exit code 4: something differs.
///
/// # Errors
/// A file cannot be read, or nobody answers.
pub(in crate::cli) async fn diff(
    args: &DiffArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let asked = Asked { prune: args.prune, ..Asked::default() };
    let (gathered, told) = args.set.ask("diff", asked).await?;
    match args.set.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&told.body)?)?,
        Output::Text => print(&gathered, &told, out)?,
    }
    Ok(match told.is_refused {
        true => ExitCode::FAILURE,
        false if differs(&told.body) => DIFFERS.into(),
        false => ExitCode::SUCCESS,
    })
}

/// Would anything change?
pub(super) fn differs(body: &Value) -> bool {
    ["created", "updated", "deleted", "conflicts"].iter().any(|list| count(body, list) > 0)
}

fn count(body: &Value, list: &str) -> usize {
    body[list].as_array().map_or(0, Vec::len)
}

fn items<'a>(body: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    body[list].as_array().into_iter().flatten()
}

fn named(one: &Value) -> String {
    let text = |field: &str| safe(one[field].as_str().unwrap_or("?"));
    format!("{}/{}", text("kind"), text("id"))
}

/// What would change, or what is wrong with the files.
pub(super) fn print(
    gathered: &Gathered,
    told: &Told,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<()> {
    let body = &told.body;
    for one in items(body, "created") {
        writeln!(out, "+ {}", named(one))?;
    }
    for one in items(body, "updated") {
        writeln!(out, "~ {}", named(one))?;
        for change in items(one, "changes") {
            writeln!(out, "    {}", change_line(change))?;
        }
    }
    for one in items(body, "deleted") {
        writeln!(out, "- {}", named(one))?;
    }
    for one in items(body, "conflicts") {
        let owner = safe(one["owner"].as_str().unwrap_or("?"));
        writeln!(out, "! {} belongs to {owner} (--take-over changes it)", named(one))?;
    }
    for one in items(body, "shrinks") {
        let kind = safe(one["kind"].as_str().unwrap_or("?"));
        writeln!(
            out,
            "! {} of {} {kind} would be deleted (--allow-shrink says that it is meant)",
            one["deleted"], one["of"]
        )?;
    }
    print_errors(gathered, body, out)?;
    if body.get("unchanged").is_some() {
        let [created, updated, deleted] =
            ["created", "updated", "deleted"].map(|list| count(body, list));
        writeln!(
            out,
            "{created} created, {updated} updated, {deleted} deleted, {} unchanged",
            body["unchanged"]
        )?;
    }
    Ok(())
}

/// Each mistake with the file that it stands in.
pub(super) fn print_errors(
    gathered: &Gathered,
    body: &Value,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<()> {
    for one in items(body, "errors") {
        let text = |field: &str| one[field].as_str().map(safe);
        let list = one["resource_type"].as_str().unwrap_or("?");
        let index = one["index"].as_u64().and_then(|index| usize::try_from(index).ok());
        let file = index.and_then(|index| gathered.origin(list, index));
        let file = file.map(|file| format!("{}: ", safe(file))).unwrap_or_default();
        let id = text("resource_id").map(|id| format!("/{id}")).unwrap_or_default();
        let error = text("error").unwrap_or_default();
        writeln!(out, "{file}{}{id}: {error}", safe(list))?;
    }
    Ok(())
}

fn change_line(change: &Value) -> String {
    let path = safe(change["path"].as_str().unwrap_or("?"));
    if change["op"] == "more" {
        return format!("and {} more", change["count"]);
    }
    if change["secret"] == true {
        return format!("{path}: (secret)");
    }
    let side = |name: &str| change.get(name).map(|value| safe(&value.to_string()));
    match (side("before"), side("after")) {
        (Some(before), Some(after)) => format!("{path}: {before} → {after}"),
        (None, Some(after)) => format!("{path}: + {after}"),
        (Some(before), None) => format!("{path}: - {before}"),
        (None, None) => path,
    }
}

fn end(told: &Told, dry_run: bool, out: &mut (dyn Write + Send)) -> anyhow::Result<()> {
    let body = &told.body;
    if told.is_refused {
        let why = safe(body["error_msg"].as_str().unwrap_or("refused"));
        writeln!(out, "nothing was written: {why}")?;
    } else if dry_run {
        writeln!(out, "nothing was written (--dry-run)")?;
    } else if body["commits"] == 0 {
        writeln!(out, "nothing to do")?;
    } else if body["commits"] == 1 {
        writeln!(out, "written as revision {}", body["revision"])?;
    } else {
        writeln!(out, "written in {} revisions up to {}", body["commits"], body["revision"])?;
    }
    match told.applied {
        Some(true) => writeln!(out, "all connected data planes have answered")?,
        Some(false) => writeln!(out, "not all data planes have answered in time")?,
        None => {}
    }
    if let Some(count) = &told.refusing {
        writeln!(
            out,
            "{} data planes refuse some of it: see GET /apisix/admin/revisions/{}",
            safe(count),
            body["revision"]
        )?;
    }
    Ok(())
}
