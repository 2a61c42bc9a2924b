//! `wardgate audit`: check a decision log, look at its end.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::audit_export::ExportArgs;
use super::audit_match::{self, MatchArgs};
use super::identity::{read_bundle, trust_domain};
use super::text::field;
use crate::identity::TrustDomain;
use crate::observe::{Expected, VerifyReport, log_files, verify};

/// Where the log is when nothing else is said.
pub(super) const DEFAULT_LOG: &str = ".wardgate/audit.jsonl";

/// Check a decision log or look at its end.
#[derive(Args, Debug)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check that no line of a log was changed, removed, inserted or moved.
    ///
    /// Each record bears the hash of the record before it. The files of one log are given from the oldest to the newest, or
    /// found with --rotated. Records cut off at the end leave no trace in the file itself: note the last hash that this
    /// command prints somewhere else, and give it back with --expect later.
    Verify(VerifyArgs),
    /// Print the last records for people, and follow new ones.
    Tail(TailArgs),
    /// Print a log in the words of OCSF or ECS.
    Export(ExportArgs),
    /// Find what somebody claims in a redacted log, by its HMAC.
    ///
    /// Settings may leave paths, addresses and principals out of the decision log (decision_log.redact). What was left out
    /// leaves its HMAC. Who has the key can check whether a value stands there, and nobody else can.
    ///
    ///     wardgate audit match --key audit.key --value /patients/4711 .wardgate/audit.jsonl
    #[command(verbatim_doc_comment)]
    Match(MatchArgs),
}

#[derive(Args, Debug)]
struct VerifyArgs {
    /// The log's files, oldest first.
    #[arg(env = "WARDGATE_AUDIT", default_value = DEFAULT_LOG, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Also check the files that were rotated from FILE, before it.
    #[arg(long)]
    rotated: bool,
    /// A hash noted earlier, which must still be in the chain.
    #[arg(long, value_name = "HASH")]
    expect: Option<String>,
    /// The trust bundle of whoever wrote the log: PEM with root certificates, or a SPIFFE bundle document. There must be seals
    /// then, each by an SVID that the bundle vouches for at the time of the seal.
    #[arg(long, value_name = "FILE", requires = "trust_domain")]
    bundle: Option<PathBuf>,
    /// Whose bundle it is.
    #[arg(long, value_name = "NAME", requires = "bundle", value_parser = trust_domain)]
    trust_domain: Option<TrustDomain>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Debug)]
struct TailArgs {
    /// The log.
    #[arg(env = "WARDGATE_AUDIT", default_value = DEFAULT_LOG, value_name = "FILE")]
    file: PathBuf,
    /// How many records.
    #[arg(short = 'n', long, default_value_t = 10)]
    lines: usize,
    /// Only refusals.
    #[arg(long)]
    denied: bool,
    /// Wait for more, until interrupted.
    #[arg(short, long)]
    follow: bool,
}

/// How a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Runs `wardgate audit`. Exit code 1: the log is not what was written.
///
/// # Errors
/// A file cannot be read, or `out` cannot be written.
pub(super) fn run(args: &AuditArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match &args.command {
        AuditCommand::Verify(args) => run_verify(args, out),
        AuditCommand::Tail(args) => run_tail(args, out),
        AuditCommand::Export(args) => super::audit_export::run(args, out),
        AuditCommand::Match(args) => audit_match::run(args, out),
    }
}

fn run_verify(args: &VerifyArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let files = match args.rotated {
        true => args.files.iter().flat_map(|file| log_files(file)).collect(),
        false => args.files.clone(),
    };
    let bundle = match (&args.bundle, &args.trust_domain) {
        (Some(file), Some(domain)) => Some(read_bundle(file, domain.clone())?),
        _ => None,
    };
    let report = verify(&files, Expected { hash: args.expect.as_deref(), bundle })?;
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        Output::Text => print_report(&report, out)?,
    }
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_report(report: &VerifyReport, out: &mut dyn Write) -> std::io::Result<()> {
    for file in &report.files {
        let name = file.file.display();
        let (Some(first), Some(last)) = (&file.first, &file.last) else {
            writeln!(out, "{name}: no record")?;
            continue;
        };
        let records = match file.records {
            1 => "1 record".to_string(),
            records => format!("{records} records"),
        };
        writeln!(
            out,
            "{name}: {records}, number {} to {}, {} to {}",
            first.0, last.0, first.1, last.1
        )?;
    }
    for finding in &report.findings {
        writeln!(
            out,
            "{}:{}: {} [{}]",
            finding.file.display(),
            finding.line,
            finding.what,
            finding.code
        )?;
    }
    if report.more_findings > 0 {
        writeln!(out, "and {} more", report.more_findings)?;
    }
    for known in &report.acknowledged {
        let (file, line) = (known.file.display(), known.line);
        writeln!(
            out,
            "note: {file}:{line} was torn by a crash; record {} tells of it",
            known.by_seq
        )?;
    }
    for retired in &report.retired {
        writeln!(
            out,
            "note: {} with {} records was deleted by the settings; record {} tells of it",
            super::text::safe(&retired.file),
            retired.records,
            retired.by_seq
        )?;
    }
    if report.lost > 0 {
        writeln!(
            out,
            "note: the log itself says that {} records were dropped for want of room",
            report.lost
        )?;
    }
    if !report.is_sound() {
        return writeln!(out, "result: NOT what was written");
    }
    if let Some(first) =
        report.files.iter().find_map(|file| file.first.as_ref()).filter(|first| first.0 > 1)
    {
        let what = match report.begins_behind_retired {
            true => "were in files that were deleted by the settings, and the log says so",
            false => "are in earlier files, which were not checked",
        };
        writeln!(out, "note: records 1 to {} {what}", first.0 - 1)?;
    }
    if report.seals > 0 {
        let by: Vec<&str> = report.sealed_by.iter().map(String::as_str).collect();
        writeln!(
            out,
            "seals: {} by {}; {} records behind the last",
            report.seals,
            by.join(", "),
            report.unsealed
        )?;
    }
    if let Some(hash) = report.files.iter().rev().find_map(|file| file.last_hash.as_ref()) {
        writeln!(out, "last hash: {hash}")?;
    }
    writeln!(out, "result: the chain is whole")
}

fn run_tail(args: &TailArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let open =
        || File::open(&args.file).with_context(|| format!("cannot read {}", args.file.display()));
    let mut reader = BufReader::new(open()?);
    let mut last = std::collections::VecDeque::new();
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        if let Some(text) = summary(&line, args.denied) {
            last.push_back(text);
            if last.len() > args.lines {
                last.pop_front();
            }
        }
        line.clear();
    }
    for text in last {
        writeln!(out, "{text}")?;
    }
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    let mut half = String::new();
    loop {
        out.flush()?;
        std::thread::park_timeout(Duration::from_millis(200));
        while reader.read_line(&mut half)? > 0 {
            // A line may come in pieces.
            if !half.ends_with('\n') {
                break;
            }
            if let Some(text) = summary(&half, args.denied) {
                writeln!(out, "{text}")?;
            }
            half.clear();
        }
        if was_rotated(&args.file, &mut reader)? {
            reader = BufReader::new(open()?);
            half.clear();
        }
    }
}

/// The file at the path is another one now, and ours is read to its end.
fn was_rotated(path: &Path, reader: &mut BufReader<File>) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let Ok(there) = std::fs::metadata(path) else { return Ok(false) };
    let ours = reader.get_ref().metadata()?;
    let read = reader.stream_position()?;
    Ok((there.dev(), there.ino()) != (ours.dev(), ours.ino()) && read >= ours.len())
}

/// One record in one line; `None` for what is not asked for.
fn summary(line: &str, only_denied: bool) -> Option<String> {
    let Ok(record) = serde_json::from_str::<Value>(line) else {
        return (!only_denied)
            .then(|| "(a line that is no record: see wardgate audit verify)".into());
    };
    let get = |pointer: &str| field(&record, pointer);
    let outcome = get("/outcome");
    if only_denied && outcome.as_deref() != Some("deny") {
        return None;
    }
    let kind = get("/type").unwrap_or_default();
    let word = match (kind.as_str(), outcome.as_deref()) {
        ("decision", Some("allow")) => "ALLOW".to_string(),
        ("decision", _) => "DENY".to_string(),
        ("handshake_refused", _) => "REFUSED".to_string(),
        _ => kind.to_uppercase(),
    };
    let mut text = format!("{} {word:<8}", get("/time").unwrap_or_default());
    let mut add = |part: Option<String>| {
        if let Some(part) = part.filter(|part| !part.is_empty()) {
            text.push_str("  ");
            text.push_str(&part);
        }
    };
    let hidden = |pointer: &str| {
        let start = get(pointer)?.chars().take(8).collect::<String>();
        Some(format!("hmac:{start}"))
    };
    let src = get("/src/spiffe_id")
        .or_else(|| {
            let domain = get("/src/trust_domain")?;
            Some(format!("{} of {domain}", hidden("/src/spiffe_id_hmac")?))
        })
        .or_else(|| get("/src/presented_id").map(|id| format!("claims {id}")))
        .or_else(|| get("/src/addr"))
        .or_else(|| get("/src/addr_prefix"))
        .or_else(|| hidden("/src/addr_hmac"));
    let dst = get("/dst/spiffe_id").or_else(|| get("/dst/port").map(|port| format!("port {port}")));
    add(match (src, dst) {
        (Some(src), Some(dst)) => Some(format!("{src} -> {dst}")),
        (src, dst) => src.or(dst),
    });
    let path = get("/path").or_else(|| get("/template")).or_else(|| hidden("/path_hmac"));
    add(get("/method").map(|method| format!("{method} {}", path.unwrap_or_default())));
    add(get("/count").map(|count| format!("{count} times")));
    for pointer in [
        "/status",
        "/event",
        "/spiffe_id",
        "/proof",
        "/revision",
        "/reason",
        "/detail",
        "/denial_id",
    ] {
        add(get(pointer));
    }
    add(get("/policy_id").map(|policy| format!("by {policy}:{}", get("/rule").unwrap_or_default())));
    add(get("/nearest/policy_id").map(|policy| {
        let rule = get("/nearest/rule").unwrap_or_default();
        format!("nearest {policy}:{rule} ({})", get("/nearest/clause").unwrap_or_default())
    }));
    add(get("/lost").map(|lost| format!("{lost} records were dropped")));
    add(get("/would_be/outcome").map(|outcome| format!("would be: {outcome}")));
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{AuditLog, AuditSettings, DecisionRecord, DenialId, EndsFacts, Posture};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: AuditArgs,
    }

    fn run_line(line: &[&str]) -> (String, bool) {
        let line = Line::try_parse_from([&["audit"], line].concat()).unwrap();
        let mut out = Vec::new();
        let code = run(&line.args, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS))
    }

    #[test]
    fn verify_says_what_it_checked_and_where_something_is_wrong() {
        let folder =
            std::env::temp_dir().join(format!("wardgate-cli-audit-{}", std::process::id()));
        let path = folder.join("audit.jsonl");
        let settings = AuditSettings { path: Some(path.clone()), ..AuditSettings::default() };
        let audit = AuditLog::open(settings, &Posture::default()).unwrap();
        let ends = audit.control().ends(&EndsFacts {
            src_spiffe_id: Some("spiffe://shop/web"),
            dst_spiffe_id: Some("spiffe://shop/billing"),
            ..EndsFacts::of(1, "127.0.0.1:1".parse().unwrap(), 15006)
        });
        for allowed in [true, false] {
            let denial_id = (!allowed).then(DenialId::new);
            let record = DecisionRecord {
                method: b"GET",
                path: b"/\x1b[2J",
                denial_id,
                ..DecisionRecord::of(&ends, allowed)
            };
            audit.control().decision(&record).unwrap();
        }
        drop(audit);
        let file = path.to_str().unwrap();
        let (text, sound) = run_line(&["verify", file]);
        assert!(sound && text.contains("3 records, number 1 to 3"), "{text}");
        assert!(
            text.contains("last hash: ") && text.ends_with("result: the chain is whole\n"),
            "{text}"
        );

        let (text, _) = run_line(&["tail", file, "--denied"]);
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.contains("DENY      spiffe://shop/web -> spiffe://shop/billing  GET /\\u{1b}[2J"),
            "{text}"
        );
        assert_eq!(run_line(&["tail", file, "-n", "2"]).0.lines().count(), 2);

        let content = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, content.replace("\"outcome\":\"deny\"", "\"outcome\":\"allow\""))
            .unwrap();
        let (text, sound) = run_line(&["verify", file]);
        assert!(!sound);
        let expected =
            format!("{file}:3: record 3 was changed: its content does not fit its hash [changed]");
        assert!(text.contains(&expected), "{text}");
        assert!(text.ends_with("result: NOT what was written\n"));
        let (text, sound) = run_line(&["verify", "-o", "json", file]);
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&report["findings"][0]["line"], sound), (&3.into(), false));
        let line = Line::try_parse_from(["audit", "verify", "/nowhere/audit.jsonl"]).unwrap();
        assert_eq!(
            run(&line.args, &mut Vec::new()).unwrap_err().to_string(),
            "cannot read the log /nowhere/audit.jsonl"
        );
        std::fs::remove_dir_all(folder).unwrap();
    }
}
