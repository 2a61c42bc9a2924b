//! `wardgate policy sign`: a set of policies, signed with its author's key.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::files::sound_policies;
use crate::policy::PolicySigner;
use crate::rt::unix_seconds;

#[derive(Args, Debug)]
#[command(after_help = "\
Data planes with the setting policy_keys take signed policies only, as whole sets, and none that is older than the one
in force: whoever can write to the store cannot write policies.

Example:
  openssl genpkey -algorithm ed25519 -out author.pem
  openssl pkey -in author.pem -pubout -out author.pub.pem   # goes to the data planes: policy_keys
  wardgate policy sign -f policies/ --key author.pem --out signed.json
  wardgate apply -f signed.json

Sign and write whole sets: a policy that is left out of a set that has others for the same workloads is missed.

Exit codes: 0 signed, 1 a file or the key cannot be used.")]
pub(super) struct SignArgs {
    /// Files, or folders of *.yaml, *.yml and *.json; - is the standard input.
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    file: Vec<PathBuf>,
    /// The private key: PEM, PKCS#8, Ed25519 or P-256.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The set's number, higher than that of any set before; the seconds since 1970 when not given.
    #[arg(long, value_name = "NUMBER")]
    number: Option<u64>,
    /// Where the signed set is written, as resources; the standard output when not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs `wardgate policy sign`.
pub(super) fn run(args: &SignArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let declared = sound_policies(&args.file)?;
    if declared.policies.is_empty() {
        bail!("there is no policy to sign");
    }
    let key = || format!("cannot use the key {}", args.key.display());
    let pem = std::fs::read(&args.key).with_context(key)?;
    let signer = PolicySigner::from_pem(&pem).with_context(key)?;
    let number = match args.number {
        Some(number) => number,
        None => u64::try_from(unix_seconds()).context("the clock is before 1970")?,
    };
    let policies = declared.policies.into_iter().map(|placed| (placed.id, placed.body));
    let mut policies: BTreeMap<_, _> = policies.collect();
    signer.sign(&mut policies, number)?;
    let with_id = |(id, mut policy): (_, crate::model::IdentityPolicy)| {
        policy.id = Some(id);
        serde_json::to_value(policy)
    };
    let policies: Vec<Value> = policies.into_iter().map(with_id).collect::<Result<_, _>>()?;
    let modes = declared.modes.into_iter().map(|placed| serde_json::to_value(placed.body));
    let modes: Vec<Value> = modes.collect::<Result<_, _>>()?;
    let count = policies.len();
    let mut set = json!({ "identity_policies": policies });
    if !modes.is_empty() {
        set["identity_modes"] = modes.into();
    }
    let text = serde_json::to_string_pretty(&set)?;
    match &args.out {
        None => writeln!(out, "{text}")?,
        Some(path) => {
            std::fs::write(path, format!("{text}\n"))
                .with_context(|| format!("cannot write {}", path.display()))?;
            writeln!(
                out,
                "signed {count} policies as set {number} with key {}: {}",
                signer.name(),
                path.display()
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
