//! `wardgate audit match`: does what somebody claims stand in a redacted log?

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::audit::{DEFAULT_LOG, Output};
use super::text::field;
use crate::observe::{log_files, redaction_proofs};

/// Longer lines are none of ours.
const MAX_LINE: u64 = 16 << 20;

#[derive(Args, Debug)]
pub(super) struct MatchArgs {
    /// The key that the log was redacted with: the file of decision_log.redact.key_file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// What is claimed: a path, an address, a SPIFFE ID, a serial number, a header's value.
    #[arg(long, value_name = "TEXT")]
    value: String,
    /// Look for it as the value of this header as well.
    #[arg(long, value_name = "NAME")]
    header: Vec<String>,
    /// The log.
    #[arg(env = "WARDGATE_AUDIT", default_value = DEFAULT_LOG, value_name = "FILE")]
    file: PathBuf,
    /// Also look into the files that were rotated from FILE.
    #[arg(long)]
    rotated: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate audit match`. Exit code 1: the value stands nowhere.
///
/// # Errors
/// The key or a file cannot be read, or `out` cannot be written.
pub(super) fn run(args: &MatchArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let proofs = redaction_proofs(&args.key, &args.value, &args.header)?;
    let proofs: Vec<(&str, &str)> = proofs.iter().map(|(k, p)| (&**k, &**p)).collect();
    let files = if args.rotated { log_files(&args.file) } else { vec![args.file.clone()] };
    let mut found = 0_usize;
    for file in files {
        let open = std::fs::File::open(&file);
        let open = open.with_context(|| format!("cannot read {}", file.display()))?;
        let mut reader = BufReader::new(open);
        let mut line = Vec::new();
        while reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? > 0 {
            if let Ok(record) = serde_json::from_slice::<Value>(&line) {
                let mut places = BTreeSet::new();
                search("", &record, &proofs, &mut places);
                if !places.is_empty() {
                    found += 1;
                    print(args.output, &record, &places, out)?;
                }
            }
            line.clear();
        }
    }
    if found == 0 && args.output == Output::Text {
        writeln!(out, "no record bears it under this key")?;
    }
    Ok(if found > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The fields whose text is one of the proofs, each with the kind of value that it is.
fn search(at: &str, value: &Value, proofs: &[(&str, &str)], places: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                search(&format!("{at}/{name}"), value, proofs, places);
            }
        }
        Value::String(text)
            if at.contains("_hmac") && proofs.iter().any(|(_, proof)| proof == text) =>
        {
            places.insert(at.trim_start_matches('/').replace('/', "."));
        }
        _ => {}
    }
}

fn print(
    output: Output,
    record: &Value,
    places: &BTreeSet<String>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let fields: Vec<&str> = places.iter().map(String::as_str).collect();
    match output {
        Output::Json => {
            let line = json!({ "seq": record["seq"], "time": record["time"], "fields": fields, "record": record });
            writeln!(out, "{line}")
        }
        Output::Text => {
            let get = |pointer| field(record, pointer).unwrap_or_default();
            let fields = super::text::safe(&fields.join(", "));
            let (seq, time, kind) = (get("/seq"), get("/time"), get("/type"));
            writeln!(out, "record {seq}  {time}  {kind} {}  as {fields}", get("/outcome"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{
        AuditLog, AuditSettings, DecisionRecord, EndsFacts, PathRedaction, Posture,
        PrincipalRedaction, RedactSettings,
    };

    #[test]
    fn a_claim_is_found_in_a_redacted_log_by_who_has_the_key() {
        let folder = std::env::temp_dir().join(format!("wardgate-match-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, key, other) =
            (folder.join("audit.jsonl"), folder.join("key"), folder.join("other"));
        std::fs::write(&key, "ab".repeat(32)).unwrap();
        std::fs::write(&other, "cd".repeat(32)).unwrap();
        let redact = RedactSettings {
            paths: PathRedaction::Hmac,
            principals: PrincipalRedaction::Hmac,
            key_file: Some(key.clone()),
            ..RedactSettings::default()
        };
        let settings =
            AuditSettings { path: Some(path.clone()), redact, ..AuditSettings::default() };
        let audit = AuditLog::open(settings, &Posture::default()).unwrap();
        let caller = "127.0.0.1:1".parse().unwrap();
        let ends = audit.control().ends(&EndsFacts {
            src_spiffe_id: Some("spiffe://shop/web"),
            ..EndsFacts::of(1, caller, 15006)
        });
        let record = DecisionRecord {
            method: b"GET",
            path: b"/patients/4711",
            ..DecisionRecord::of(&ends, true)
        };
        audit.control().decision(&record).unwrap();
        drop(audit);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("4711") && !text.contains("shop/web"), "{text}");

        let look = |key: &PathBuf, value: &str| {
            let args = MatchArgs {
                key: key.clone(),
                value: value.to_owned(),
                header: Vec::new(),
                file: path.clone(),
                rotated: false,
                output: Output::Text,
            };
            let mut out = Vec::new();
            run(&args, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let found = look(&key, "/patients/4711");
        assert!(found.starts_with("record 2 ") && found.ends_with("as path_hmac\n"), "{found}");
        assert!(look(&key, "spiffe://shop/web").contains("as src.spiffe_id_hmac"));
        for (key, value) in [(&key, "/patients/4712"), (&other, "/patients/4711")] {
            assert_eq!(look(key, value), "no record bears it under this key\n");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
