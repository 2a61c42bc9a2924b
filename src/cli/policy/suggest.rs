//! `wardgate policy suggest`: the rules that would be enough for what really happened.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::past::{PastArgs, moment};
use super::replay;
use crate::audit::learn::{SuggestedPolicy, suggest};
use crate::cli::audit::Output;

#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  wardgate policy suggest --log .wardgate/audit.jsonl --since 7d --out suggested/
  wardgate policy replay -f suggested/ --since 7d

Written is the least that allows what was allowed: who, which methods, which paths (identifiers in them become
{id}). Callers without an identity get no rule; they are listed.

Exit codes: 0 the suggestion allows all that was allowed and nothing that was refused, 4 it does not: see the list.")]
pub(super) struct SuggestArgs {
    #[command(flatten)]
    past: PastArgs,
    /// Write one file for each policy into this folder; nothing is overwritten.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate policy suggest`. Exit code 4: something that happened is not covered, or more than that would be allowed.
pub(super) fn run(args: &SuggestArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let observations = args.past.read(&[])?;
    let found = suggest(&observations, args.past.ingresses());
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        for one in &found.policies {
            let path = folder.join(format!("{}.yaml", one.id));
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)
                .with_context(|| format!("cannot write {}", path.display()))?;
            file.write_all(yaml(one)?.as_bytes())?;
        }
    }
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?,
        Output::Text => {
            for one in found.policies.iter().filter(|_| args.out.is_none()) {
                writeln!(out, "---\n{}", yaml(one)?)?;
            }
            let proof = &found.proof;
            writeln!(
                out,
                "# proof: {} of {} requests would be decided as they were",
                proof.same, proof.requests
            )?;
            let mut lists = Vec::new();
            replay::print(
                &mut lists,
                "refused by these policies, and was allowed",
                &found.uncovered,
            )?;
            replay::print(
                &mut lists,
                "allowed by these policies, and was refused",
                &proof.newly_allowed,
            )?;
            // What is printed is YAML as a whole.
            for line in String::from_utf8_lossy(&lists).lines() {
                writeln!(out, "# {line}")?;
            }
        }
    }
    let proof = &found.proof;
    let is_proved = proof.newly_denied.is_empty() && proof.newly_allowed.is_empty();
    Ok(if is_proved { ExitCode::SUCCESS } else { ExitCode::from(4) })
}

/// The policy as a file, the evidence for its rules above it.
fn yaml(one: &SuggestedPolicy) -> anyhow::Result<String> {
    let mut text = format!(
        "# Suggested from what {} was asked for.\n",
        one.policy.selector.workloads.join(", ")
    );
    for rule in &one.evidence {
        let evidence = rule.evidence;
        text.push_str(&format!(
            "#   {}: {} requests, {} paths, from {} to {}\n",
            rule.rule,
            evidence.count,
            rule.paths,
            moment(evidence.first),
            moment(evidence.last)
        ));
    }
    text.push_str(&serde_saphyr::to_string(&one.policy).context("cannot write YAML")?);
    Ok(text)
}
