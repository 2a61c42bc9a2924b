//! `wardgate audit export`: a decision log in the words of others.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::audit::{Format, Here};

/// Print a log in the words of OCSF or ECS, one JSON object a line
///
/// The same tables as those of the outputs of a running process. A line that is no record is named on standard error and left
/// out, and the exit code is 1 then; what stands in the log is not judged here: see `wardgate audit verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate audit export --format ocsf .wardgate/audit.jsonl >audit.ocsf.jsonl
  grep '\"outcome\":\"deny\"' .wardgate/audit.jsonl | wardgate audit export --format ecs")]
pub(super) struct ExportArgs {
    /// The files, oldest first; standard input when none is named, or for `-`.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// In whose words.
    #[arg(long, value_enum)]
    format: Words,
    /// Only records that tell of a refusal.
    #[arg(long)]
    denied: bool,
    /// The name of the process that wrote the log, as records in other words have a field for.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Words {
    /// The log's own lines.
    Wardgate,
    /// The Open Cybersecurity Schema Framework.
    Ocsf,
    /// The Elastic Common Schema.
    Ecs,
}

/// Runs `wardgate audit export`. Exit code 1: there were lines that are no records.
///
/// # Errors
/// A file cannot be read, or `out` cannot be written.
pub(super) fn run(args: &ExportArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let standard_input = [PathBuf::from("-")];
    let files = if args.files.is_empty() { &standard_input[..] } else { &args.files[..] };
    let mut is_whole = true;
    for file in files {
        let name = file.display().to_string();
        let mut reader: Box<dyn BufRead> = if name == "-" {
            Box::new(BufReader::new(std::io::stdin()))
        } else {
            let opened = File::open(file).with_context(|| format!("cannot read {name}"))?;
            Box::new(BufReader::new(opened))
        };
        is_whole &= export(args, &name, &mut *reader, out)?;
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn export(
    args: &ExportArgs,
    name: &str,
    reader: &mut dyn BufRead,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let format = match args.format {
        Words::Wardgate => Format::Wardgate,
        Words::Ocsf => Format::Ocsf,
        Words::Ecs => Format::Ecs,
    };
    let here = Here { node: args.node.clone() };
    let (mut line, mut number, mut is_whole) = (Vec::new(), 0_u64, true);
    loop {
        line.clear();
        number += 1;
        if reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read {name}"))? == 0
        {
            return Ok(is_whole);
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        let record: Value = match serde_json::from_str(text) {
            Ok(record @ Value::Object(_)) => record,
            _ => {
                let _ = writeln!(std::io::stderr(), "{name}:{number}: this line is no record");
                is_whole = false;
                continue;
            }
        };
        if args.denied && record["outcome"] != "deny" {
            continue;
        }
        writeln!(out, "{}", format.tell(text, &here)?)?;
    }
}
