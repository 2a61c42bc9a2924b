//! `wardgate store`: backups, moving from one store to another, and the keys that seal.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::audit::Output;
use super::client::Admin;
use crate::model::Kind;
use crate::roles::{Settings as ProcessSettings, chosen_store, sealed, sealing_ring};
use crate::store::DEFAULT_PREFIX;
use crate::store::embedded::Embedded;
use crate::store::etcd::{self, Etcd};
use crate::store::image::{Image, Resealed, is_under, write_file};
use crate::store::sealed::{Lock, SealingKey, SealingRing};
use crate::store::settings::Settings;

/// Back up the store of a control plane, restore it, move it, change the keys that seal it
#[derive(Args, Debug)]
#[command(after_help = "\
A PLACE is a control plane's settings file (*.yaml), a database file, or etcd as http://host:2379[,http://host:2379].

Examples:
  wardgate store backup state.backup --admin http://127.0.0.1:9180     while the control plane runs
  wardgate store restore state.backup --store control.yaml             after it has stopped
  wardgate store migrate --from store.redb --to http://127.0.0.1:2379
  wardgate store new-key new.key && wardgate store rotate-key --admin http://127.0.0.1:9180

Exit codes: 0 done, 1 failed or a problem found, 2 wrong use.")]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Write all that a store holds into a file; secrets in it stay sealed
    Backup(BackupArgs),
    /// Fill a store from a backup, whose every line is checked before
    Restore(RestoreArgs),
    /// Bring everything from one store into another: ids, times, revisions, history
    Migrate(MigrateArgs),
    /// Seal everything anew that is not sealed with the first key of the settings
    RotateKey(RotateArgs),
    /// Make a new sealing key and its file
    NewKey(NewKeyArgs),
}

/// A control plane that runs.
#[derive(Args, Debug)]
struct Running {
    /// The Admin API of the control plane that has the store open
    #[arg(long, env = "WARDGATE_ADMIN", value_name = "URL")]
    admin: Option<String>,
    /// The Admin API's key
    #[arg(long, env = "WARDGATE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
}

impl Running {
    fn admin(&self) -> anyhow::Result<Option<Admin>> {
        let key = self.key.as_deref().unwrap_or_default();
        self.admin.as_deref().map(|url| Admin::new(url, key)).transpose()
    }
}

#[derive(Args, Debug)]
struct BackupArgs {
    /// The file to write; one that is there is replaced
    file: PathBuf,
    /// The store, when no control plane has it open
    #[arg(long, value_name = "PLACE")]
    store: Option<String>,
    /// What all keys start with, where PLACE is no settings file
    #[arg(long, default_value = DEFAULT_PREFIX)]
    prefix: String,
    #[command(flatten)]
    running: Running,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Debug)]
struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// The store to fill. No control plane may have it open
    #[arg(long, value_name = "PLACE")]
    store: String,
    /// Replace what is there
    #[arg(long)]
    overwrite: bool,
    /// Check everything and write nothing
    #[arg(long)]
    dry_run: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Debug)]
struct MigrateArgs {
    /// Where everything is
    #[arg(long, value_name = "PLACE")]
    from: String,
    /// Where it is to go
    #[arg(long, value_name = "PLACE")]
    to: String,
    /// What all keys start with, where PLACE is no settings file
    #[arg(long, default_value = DEFAULT_PREFIX)]
    prefix: String,
    /// Replace what is there
    #[arg(long)]
    overwrite: bool,
    /// Look and tell, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Seal secrets anew: open them with the keys of --from and seal them with those of --to, both of them settings files.
    /// Without it they stay as they are, and both need the same keys
    #[arg(long)]
    reseal: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Debug)]
#[command(after_help = "\
The way: make a key with `wardgate store new-key`, put it first in control.sealing.keys, restart each control plane, run this, and take
the old key out of the settings.")]
struct RotateArgs {
    /// A control plane's settings file, when none has the store open
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    #[command(flatten)]
    running: Running,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Debug)]
struct NewKeyArgs {
    /// The file to make; one that is there is left as it is
    file: PathBuf,
}

/// Runs `wardgate store`.
///
/// # Errors
/// A store or a file cannot be used; the error names it.
pub(super) async fn run(
    args: &StoreArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    match &args.command {
        StoreCommand::Backup(args) => backup(args, out).await,
        StoreCommand::Restore(args) => restore(args, out).await,
        StoreCommand::Migrate(args) => migrate(args, out).await,
        StoreCommand::RotateKey(args) => rotate(args, out).await,
        StoreCommand::NewKey(args) => {
            let key = SealingKey::create(&args.file)?;
            writeln!(out, "key {} in {}", key.id(), args.file.display())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A store that a command works with.
struct Place {
    name: String,
    store: Settings,
    /// The settings file that names the store and its keys.
    process: Option<ProcessSettings>,
}

impl Place {
    fn read(text: &str, prefix: &str) -> anyhow::Result<Self> {
        let name = text.to_owned();
        if text.ends_with(".yaml") || text.ends_with(".yml") {
            let process = ProcessSettings::read(Path::new(text))?;
            let control = process.control.as_ref();
            let control = control.with_context(|| format!("{text} has no block `control`"))?;
            let store = chosen_store(&process, control);
            return Ok(Self { name, store, process: Some(process) });
        }
        let mut store = Settings::in_file(text);
        if text.starts_with("http://") || text.starts_with("https://") {
            (store.file, store.etcd) = (None, Some(etcd::Settings::plain(text.split(','))));
        }
        prefix.clone_into(&mut store.prefix);
        Ok(Self { name, store, process: None })
    }

    fn prefix(&self) -> &str {
        &self.store.prefix
    }

    async fn image(&self) -> anyhow::Result<Image> {
        if let Some(path) = self.store.file.as_ref().filter(|path| !path.exists()) {
            bail!("there is no store at {}", path.display());
        }
        let opened = self.store.open().await.with_context(|| in_use(&self.name))?;
        let mut image = opened.image(self.prefix()).await?;
        image.entries.retain(|entry| is_under(self.prefix(), &entry.key));
        Ok(image)
    }

    /// Entries that are there.
    async fn count(&self) -> anyhow::Result<usize> {
        match &self.store.file {
            Some(path) if !path.exists() => Ok(0),
            _ => Ok(self.image().await?.entries.len()),
        }
    }

    /// Tells by how many the revisions are later.
    async fn fill(&self, image: Image, overwrite: bool) -> anyhow::Result<u64> {
        match (&self.store.file, &self.store.etcd) {
            (Some(path), None) => {
                Embedded::restore(path, image, overwrite).await?;
                Ok(0)
            }
            (None, Some(etcd)) => {
                Ok(Etcd::new(etcd)?.restore(self.prefix(), &image, overwrite).await?)
            }
            _ => bail!("{}: give exactly one of file and etcd", self.name),
        }
    }

    fn ring(&self) -> anyhow::Result<SealingRing> {
        let process = self.process.as_ref();
        match process.and_then(|process| process.control.as_ref().map(|control| (process, control)))
        {
            Some((process, control)) => Ok(sealing_ring(process, control)?),
            None => bail!(
                "{}: secrets are sealed anew with the keys of settings files; expected *.yaml",
                self.name
            ),
        }
    }
}

fn in_use(name: &str) -> String {
    format!("{name} cannot be opened; ask a control plane that runs with --admin")
}

async fn backup(args: &BackupArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let (bytes, image) = match (&args.store, args.running.admin()?) {
        (Some(place), _) => {
            let place = Place::read(place, &args.prefix)?;
            let image = place.image().await?;
            (image.to_bytes(place.prefix())?, image)
        }
        (None, Some(admin)) => {
            let answer = admin.call("POST", "/store/backup", Some(&json!({}))).await?;
            if answer.status != 200 {
                bail!("the Admin API refused: {}", String::from_utf8_lossy(&answer.body).trim());
            }
            let (image, _) = Image::from_bytes(&answer.body)
                .map_err(|why| anyhow::anyhow!("the answer is no image: {why}"))?;
            (answer.body.to_vec(), image)
        }
        (None, None) => bail!("say which store: --store PLACE, or --admin URL of one that is open"),
    };
    write_file(&args.file, &bytes)?;
    for key in &image.skipped {
        tell(args.output, out, &format!("left out, not JSON: {key}"))?;
    }
    let told =
        json!({"file": args.file, "entries": image.entries.len(), "revision": image.revision});
    let text = format!(
        "{} entries at revision {} in {}",
        image.entries.len(),
        image.revision,
        args.file.display()
    );
    finish(args.output, out, &told, &text)
}

async fn restore(args: &RestoreArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let (image, prefix) = Image::read(&args.file)?;
    let place = Place::read(&args.store, &prefix)?;
    if place.prefix() != prefix {
        bail!(
            "the backup's keys start with {prefix}, and those of {} with {}: secrets are sealed to their keys",
            place.name,
            place.prefix()
        );
    }
    if let Some(entry) = image.entries.iter().find(|entry| !is_under(&prefix, &entry.key)) {
        bail!("the backup has a key outside of its prefix: {}", entry.key);
    }
    if place.process.is_some() {
        // A backup whose secrets no key here opens is found now and not when it is needed.
        let lock = Lock::new(place.ring()?, &prefix);
        let closed = closed(&image, &lock);
        if let Some(key) = closed.first() {
            bail!(
                "the keys of {} do not open the secrets of {} entries, {key} among them",
                place.name,
                closed.len()
            );
        }
    }
    let there = place.count().await?;
    if there > 0 && !args.overwrite {
        bail!("{} holds {there} entries; --overwrite replaces them", place.name);
    }
    bring(image, &place, args.overwrite, args.dry_run, args.output, out).await
}

async fn migrate(args: &MigrateArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let from = Place::read(&args.from, &args.prefix)?;
    let to = Place::read(&args.to, &args.prefix)?;
    let mut image = from.image().await?;
    let there = to.count().await?;
    if there > 0 && !args.overwrite {
        bail!("{} holds {there} entries; --overwrite replaces them", to.name);
    }
    let renamed = from.prefix() != to.prefix();
    let sealed_entries =
        image.entries.iter().filter(|entry| entry.text.contains("\"wardgate-sealed-"));
    if renamed && !args.reseal && sealed_entries.count() > 0 {
        bail!(
            "the prefix changes from {} to {}, and secrets are sealed to their keys: use --reseal",
            from.prefix(),
            to.prefix()
        );
    }
    let locks = match args.reseal {
        true => Some((Lock::new(from.ring()?, from.prefix()), Lock::new(to.ring()?, to.prefix()))),
        false => None,
    };
    for entry in &mut image.entries {
        let key = match entry.key.strip_prefix(from.prefix()) {
            Some(rest) => format!("{}{rest}", to.prefix()),
            None => entry.key.clone(),
        };
        if let Some((opens, seals)) = &locks
            && Kind::split_key(key.strip_prefix(to.prefix()).unwrap_or_default()).is_some()
        {
            let mut value: Value = serde_json::from_str(&entry.text)?;
            if opens.open(&entry.key, &mut value) > 0 {
                bail!("the keys of {} do not open {}; nothing was written", from.name, entry.key);
            }
            let sealed = seals.seal(&key, &value)?;
            if sealed != value {
                entry.text = sealed.to_string();
            }
        }
        entry.key = key;
    }
    image.entries.sort_by(|one, other| one.key.cmp(&other.key));
    for key in &image.skipped {
        tell(args.output, out, &format!("left out, not JSON: {key}"))?;
    }
    bring(image, &to, args.overwrite, args.dry_run, args.output, out).await
}

/// Writes, unless it is only to be told what would be written.
async fn bring(
    image: Image,
    to: &Place,
    overwrite: bool,
    dry_run: bool,
    output: Output,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let (entries, revision) = (image.entries.len(), image.revision);
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for entry in &image.entries {
        let rest = entry.key.strip_prefix(to.prefix()).unwrap_or(&entry.key);
        let kind =
            Kind::split_key(rest).map_or_else(|| "others".to_owned(), |(kind, _)| kind.to_string());
        *kinds.entry(kind).or_default() += 1;
    }
    let later = if dry_run { 0 } else { to.fill(image, overwrite).await? };
    let told = json!({
        "entries": entries, "revision": revision, "kinds": kinds, "written": !dry_run, "revisions_later_by": later,
    });
    let kinds = kinds.iter().map(|(kind, count)| format!("  {kind} {count}\n")).collect::<String>();
    let done = if dry_run { "would be written to" } else { "written to" };
    let mut text = format!("{kinds}{entries} entries at revision {revision} {done} {}", to.name);
    if later > 0 {
        text.push_str(&format!("; all revisions are later by {later}, for etcd was beyond them"));
    }
    finish(output, out, &told, &text)
}

async fn rotate(args: &RotateArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let done = match (&args.store, args.running.admin()?) {
        (Some(file), _) => {
            let place = Place::read(&file.display().to_string(), DEFAULT_PREFIX)?;
            let ring = place.ring()?;
            let inner = place.store.open().await.with_context(|| in_use(&place.name))?;
            sealed(inner, ring, place.prefix()).reseal().await?
        }
        (None, Some(admin)) => {
            let answer = admin.call("POST", "/store/reseal", Some(&json!({}))).await?;
            if answer.status != 200 {
                bail!("the Admin API refused: {}", String::from_utf8_lossy(&answer.body).trim());
            }
            let told = answer.json()?;
            let closed = told["closed"].as_array().into_iter().flatten();
            Resealed {
                sealed: told["sealed"]
                    .as_u64()
                    .and_then(|count| usize::try_from(count).ok())
                    .unwrap_or(0),
                closed: closed.filter_map(Value::as_str).map(str::to_owned).collect(),
            }
        }
        (None, None) => bail!("say which store: --store FILE, or --admin URL of one that is open"),
    };
    for key in &done.closed {
        tell(args.output, out, &format!("no key opens the secrets of {key}"))?;
    }
    let told = json!({"sealed": done.sealed, "closed": done.closed});
    finish(args.output, out, &told, &format!("{} entries sealed anew", done.sealed))?;
    Ok(if done.closed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The entries with secrets that the lock does not open.
fn closed(image: &Image, lock: &Lock) -> Vec<String> {
    let mut closed = Vec::new();
    for entry in image.entries.iter().filter(|entry| entry.text.contains("wardgate-sealed-")) {
        let Ok(mut value) = serde_json::from_str::<Value>(&entry.text) else { continue };
        if lock.open(&entry.key, &mut value) > 0 {
            closed.push(entry.key.clone());
        }
    }
    closed
}

fn tell(output: Output, out: &mut (dyn Write + Send), text: &str) -> std::io::Result<()> {
    match output {
        Output::Text => writeln!(out, "{text}"),
        Output::Json => Ok(()),
    }
}

fn finish(
    output: Output,
    out: &mut (dyn Write + Send),
    told: &Value,
    text: &str,
) -> anyhow::Result<ExitCode> {
    match output {
        Output::Text => writeln!(out, "{text}")?,
        Output::Json => writeln!(out, "{told}")?,
    }
    Ok(ExitCode::SUCCESS)
}
