//! `wardgate admin`: admin keys made, listed, rotated and revoked.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::admin::{AdminArgs, ask};
use super::audit::Output;
use crate::roles::{generate_admin_key, hash_admin_key};

/// Who may administer: make, list, rotate and revoke admin keys
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate admin key create deploy --role operator --label team=shop
  wardgate admin key rotate deploy --grace 600
  wardgate admin key revoke deploy
  wardgate admin whoami

A key is shown once, when it is made; the control plane keeps its hash.")]
pub(super) struct AdminCommandArgs {
    #[command(subcommand)]
    verb: AdminVerb,
}

#[derive(Subcommand, Debug)]
enum AdminVerb {
    /// Admin keys
    #[command(subcommand)]
    Key(KeyVerb),
    /// Who we are to the Admin API, and what we may do
    Whoami {
        #[command(flatten)]
        admin: AdminArgs,
        /// How it is printed
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Subcommand, Debug)]
enum KeyVerb {
    /// Make a key; it is shown once
    #[command(after_help = "\
Examples:
  wardgate admin key create dashboard --role viewer
  wardgate admin key create ci --role operator --kind routes --kind upstreams --id-prefix shop- --expires-in 86400")]
    Create(CreateArgs),
    /// All keys, without the keys themselves
    List {
        #[command(flatten)]
        admin: AdminArgs,
        /// How it is printed
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Replace a key by a new one; the old one is good for a while
    Rotate {
        /// Whose
        name: String,
        /// Seconds for which the old key is good as well
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        grace: u64,
        #[command(flatten)]
        admin: AdminArgs,
        /// How it is printed
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Take a key back, at once
    Revoke {
        /// Whose
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Make a key for the settings file, without asking anybody: control.keys with its sha256
    Generate {
        /// How it is printed
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Whose it is, as records name it
    name: String,
    /// What its holder may do
    #[arg(long, value_enum)]
    role: RoleName,
    /// Of these kinds alone (routes, upstreams, ...); may be given several times
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
    /// Of resources that bear this label alone; may be given several times
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Of resources whose ids begin so
    #[arg(long, value_name = "PREFIX")]
    id_prefix: Option<String>,
    /// Seconds after which it is no key any more
    #[arg(long, value_name = "SECONDS")]
    expires_in: Option<u64>,
    #[command(flatten)]
    admin: AdminArgs,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleName {
    /// Everything
    Admin,
    /// Reads, and writes policies, identities, trust, certificates, secret managers, consumers
    Security,
    /// Reads, and writes routes, services, upstreams, plugins, consumers
    Operator,
    /// Reads
    Viewer,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

/// Runs `wardgate admin`.
///
/// # Errors
/// The Admin API cannot be asked, or refuses.
pub(super) async fn run(
    args: &AdminCommandArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    match &args.verb {
        AdminVerb::Whoami { admin, output } => {
            let answer = ask(&admin.open()?, "GET", "/access/whoami", None).await?;
            print(out, *output, &answer, |out| {
                writeln!(out, "{}", row(&answer))?;
                Ok(())
            })?;
        }
        AdminVerb::Key(verb) => key(verb, out).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn key(verb: &KeyVerb, out: &mut (dyn Write + Send)) -> anyhow::Result<()> {
    match verb {
        KeyVerb::Create(args) => {
            let body = wanted(args);
            let answer = ask(&args.admin.open()?, "POST", "/access/keys", Some(&body)).await?;
            made(out, args.output, &answer)
        }
        KeyVerb::Rotate { name, grace, admin, output } => {
            let path = format!("/access/keys/{}/rotate", segment(name)?);
            let body = json!({ "grace": grace });
            let answer = ask(&admin.open()?, "POST", &path, Some(&body)).await?;
            made(out, *output, &answer)
        }
        KeyVerb::Revoke { name, admin } => {
            let path = format!("/access/keys/{}", segment(name)?);
            ask(&admin.open()?, "DELETE", &path, None).await?;
            writeln!(out, "Revoked {name}")?;
            Ok(())
        }
        KeyVerb::List { admin, output } => {
            let answer = ask(&admin.open()?, "GET", "/access/keys", None).await?;
            print(out, *output, &answer, |out| {
                for key in answer["list"].as_array().into_iter().flatten() {
                    writeln!(out, "{}", row(key))?;
                }
                Ok(())
            })
        }
        KeyVerb::Generate { output } => {
            let key = generate_admin_key()?;
            let answer = json!({ "key": key, "sha256": hex::encode(hash_admin_key(&key)) });
            print(out, *output, &answer, |out| {
                writeln!(out, "key     {key}")?;
                writeln!(out, "sha256  {}", answer["sha256"].as_str().unwrap_or_default())?;
                writeln!(
                    out,
                    "\nSettings: control.keys: [{{ name: NAME, sha256: SHA256, role: viewer }}]"
                )?;
                Ok(())
            })
        }
    }
}

fn wanted(args: &CreateArgs) -> Value {
    let mut scope = Map::new();
    if !args.kinds.is_empty() {
        scope.insert("kinds".into(), json!(args.kinds));
    }
    if !args.labels.is_empty() {
        let labels: Map<String, Value> =
            args.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        scope.insert("labels".into(), labels.into());
    }
    if let Some(prefix) = &args.id_prefix {
        scope.insert("id_prefix".into(), json!(prefix));
    }
    let role = args.role.to_possible_value().map(|role| role.get_name().to_owned());
    let mut wanted = json!({ "name": args.name, "role": role, "scope": scope });
    if let Some(seconds) = args.expires_in {
        wanted["expires_in"] = json!(seconds);
    }
    wanted
}

/// A name as a part of a path.
fn segment(name: &str) -> anyhow::Result<&str> {
    let lawful = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@');
    match !name.is_empty() && name.bytes().all(lawful) {
        true => Ok(name),
        false => bail!("{name:?} is no name of a key: expected some of a-z A-Z 0-9 - _ . @"),
    }
}

fn made(out: &mut (dyn Write + Send), output: Output, answer: &Value) -> anyhow::Result<()> {
    print(out, output, answer, |out| {
        writeln!(out, "{}", row(answer))?;
        writeln!(out, "\n  {}\n", answer["key"].as_str().unwrap_or_default())?;
        writeln!(out, "This is the only time that the key is shown: export it as WARDGATE_KEY.")?;
        Ok(())
    })
}

fn print(
    out: &mut (dyn Write + Send),
    output: Output,
    answer: &Value,
    text: impl FnOnce(&mut (dyn Write + Send)) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    match output {
        Output::Text => text(out),
        Output::Json => Ok(writeln!(out, "{}", serde_json::to_string_pretty(answer)?)?),
    }
}

/// One key on a line.
fn row(key: &Value) -> String {
    let text = |field: &str| key[field].as_str().unwrap_or_default();
    let mut line = format!("{:<24} {:<9}", text("name"), text("role"));
    let scope = key["scope"].as_object();
    if scope.is_none_or(Map::is_empty) {
        line += " everything";
    }
    for (field, value) in scope.into_iter().flatten() {
        line += &format!(" {field}={value}");
    }
    for field in ["kept", "expires", "previous_until"] {
        match &key[field] {
            Value::Null => {}
            Value::String(value) => line += &format!("  {field}: {value}"),
            value => line += &format!("  {field}: {value}"),
        }
    }
    line
}
