//! `wardgate audit`: check a decision log, look at its end.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::archive::{self, Compared, QueryArgs};
use super::audit_export::ExportArgs;
use super::audit_match::{self, MatchArgs};
use super::central::{self, usual_log};
use super::client::Admin;
use super::identity::{read_bundle, trust_domain};
use super::text::{field, safe};
use crate::audit::{Filter, Outcome};
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
    Query(Box<QueryArgs>),
    /// Print a log in the words of OCSF or ECS.
    Export(ExportArgs),
    /// Find what somebody claims in a redacted log, by its HMAC.
    ///
    /// Settings may leave paths, addresses and principals out of the decision log (decision_log.redact). What was left out
    /// leaves its HMAC. Who has the key can check whether a value stands there, and nobody else can.
    ///
    /// $ wardgate audit match --key audit.key --value /patients/4711 .wardgate/audit.jsonl
    #[command(verbatim_doc_comment)]
    Match(MatchArgs),
}

#[derive(Args, Debug)]
struct VerifyArgs {
    /// The log's files, oldest first [default: the environment's WARDGATE_AUDIT; else, without --admin, .wardgate/audit.jsonl]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The Admin API of a control plane. Without files its archive is verified, chain by chain; with files, that they have all that it
    /// has countersigned: http://127.0.0.1:9180
    #[arg(long, env = "WARDGATE_ADMIN", value_name = "URL")]
    admin: Option<String>,
    /// The Admin API's key.
    #[arg(long, env = "WARDGATE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
    /// Of the archive, only the logs of this SPIFFE ID (* at its end stands for anything), or of what its path ends with.
    #[arg(long, value_name = "ID")]
    origin: Option<String>,
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
    /// The log [default: the environment's WARDGATE_AUDIT; else, without --admin, .wardgate/audit.jsonl]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The Admin API of a control plane, whose archive is shown when no log is named: http://127.0.0.1:9180
    #[arg(long, env = "WARDGATE_ADMIN", value_name = "URL")]
    admin: Option<String>,
    /// The Admin API's key.
    #[arg(long, env = "WARDGATE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
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
pub(super) async fn run(
    args: &AuditArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    match &args.command {
        AuditCommand::Verify(args) => run_verify(args, out).await,
        AuditCommand::Tail(args) => run_tail(args, out).await,
        AuditCommand::Query(args) => archive::query(args, out).await,
        AuditCommand::Export(args) => super::audit_export::run(args, out),
        AuditCommand::Match(args) => audit_match::run(args, out),
    }
}

/// Does the environment name a log? Then that one is meant, whichever control plane it names beside it.
fn names_log() -> bool {
    std::env::var_os("WARDGATE_AUDIT").is_some()
}

async fn run_verify(args: &VerifyArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let key = args.key.as_deref().unwrap_or_default();
    let admin = args.admin.as_deref().map(|url| Admin::new(url, key)).transpose()?;
    if let (Some(admin), [], false) = (&admin, &*args.files, names_log()) {
        return archive::verify_archive(admin, args.origin.as_deref(), args.output, out).await;
    }
    let named = match &*args.files {
        [] => vec![usual_log()],
        files => files.to_vec(),
    };
    let files: Vec<PathBuf> = match args.rotated {
        true => named.iter().flat_map(|file| log_files(file)).collect(),
        false => named,
    };
    // First: what the archive has by now, the log must have.
    let archive = match &admin {
        Some(admin) => Some(archive::Archive::as_it_is(admin).await?),
        None => None,
    };
    let bundle = match (&args.bundle, &args.trust_domain) {
        (Some(file), Some(domain)) => Some(read_bundle(file, domain.clone())?),
        _ => None,
    };
    let expected = Expected { hash: args.expect.as_deref(), bundle: bundle.clone() };
    let report = verify(&files, expected)?;
    let compared = match archive {
        Some(archive) => Some(archive.compare(&files, bundle).await?),
        None => None,
    };
    let fits = compared.as_ref().is_none_or(|compared| compared.findings.is_empty());
    match args.output {
        Output::Json => {
            let mut text = serde_json::to_value(&report)?;
            if let Some(compared) = &compared {
                text["archive"] = compared.to_json();
            }
            writeln!(out, "{}", serde_json::to_string_pretty(&text)?)?;
        }
        Output::Text => print_report(&report, compared.as_ref(), out)?,
    }
    Ok(if report.is_sound() && fits { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_report(
    report: &VerifyReport,
    compared: Option<&Compared>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
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
            safe(&retired.file),
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
    let archived = compared.map(|compared| &*compared.findings).unwrap_or_default();
    for (code, what) in archived {
        writeln!(out, "{} [{code}]", safe(what))?;
    }
    if !report.is_sound() || !archived.is_empty() {
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
    if let Some((seq, time)) = &report.countersigned.up_to {
        let by: Vec<String> = report.countersigned.by.iter().map(|by| safe(by)).collect();
        let good = report.countersigned.good;
        writeln!(
            out,
            "countersigned: {good} times by {}; up to record {seq}, at {}",
            by.join(", "),
            safe(time)
        )?;
    }
    if let Some(Compared { chain: Some(chain), countersigned, .. }) = compared {
        writeln!(
            out,
            "archive: the same up to record {}, {countersigned} seals of it countersigned",
            chain.head_seq
        )?;
    }
    if let Some(hash) = report.files.iter().rev().find_map(|file| file.last_hash.as_ref()) {
        writeln!(out, "last hash: {hash}")?;
    }
    writeln!(out, "result: the chain is whole")
}

async fn run_tail(args: &TailArgs, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    if let (Some(url), None, false) = (&args.admin, &args.file, names_log()) {
        let admin = Admin::new(url, args.key.as_deref().unwrap_or_default())?;
        return tail_archive(&admin, args, out).await;
    }
    let file = args.file.clone().unwrap_or_else(usual_log);
    let open = || File::open(&file).with_context(|| format!("cannot read {}", file.display()));
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
    follow_from(&file, reader, |line| {
        match line.and_then(|line| summary(line, args.denied)) {
            Some(text) => writeln!(out, "{text}")?,
            None => out.flush()?,
        }
        Ok(true)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The newest records of the archive, and what comes.
async fn tail_archive(
    admin: &Admin,
    args: &TailArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let filter = Filter { outcome: args.denied.then_some(Outcome::Deny), ..Filter::default() };
    let mut next = central::ask(admin, "tail").await?["next"].as_u64().unwrap_or(0);
    let mut lines = match args.lines {
        0 => Vec::new(),
        lines => central::fetch(admin, &filter, "newest", lines).await?,
    };
    lines.reverse();
    for line in lines {
        writeln!(out, "{}", summary(&line, false).unwrap_or_default())?;
    }
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        out.flush()?;
        let query = filter.query();
        let path = format!("tail?lines=true&limit=1000&wait=5&after={next}&{query}");
        let answer = central::ask(admin, &path).await?;
        next = answer["next"].as_u64().unwrap_or(next);
        for line in central::answered(&answer) {
            writeln!(out, "{}", summary(line, false).unwrap_or_default())?;
        }
    }
}

/// The lines that come into a log from now on, until `see` wants no more. It is given none now and then, when there was nothing.
pub(super) fn follow(
    log: &Path,
    see: impl FnMut(Option<&str>) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let open = File::open(log).with_context(|| format!("cannot read {}", log.display()));
    let mut reader = BufReader::new(open?);
    reader.seek(std::io::SeekFrom::End(0))?;
    follow_from(log, reader, see)
}

fn follow_from(
    log: &Path,
    mut reader: BufReader<File>,
    mut see: impl FnMut(Option<&str>) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut half = String::new();
    loop {
        if !see(None)? {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_millis(200));
        while reader.read_line(&mut half)? > 0 {
            // A line may come in pieces.
            if !half.ends_with('\n') {
                break;
            }
            if !see(Some(half.trim_end_matches('\n')))? {
                return Ok(());
            }
            half.clear();
        }
        if was_rotated(log, &mut reader)? {
            let open = File::open(log).with_context(|| format!("cannot read {}", log.display()));
            reader = BufReader::new(open?);
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
pub(super) fn summary(line: &str, only_denied: bool) -> Option<String> {
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

    fn answer(line: &Line, out: &mut Vec<u8>) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(run(&line.args, out))
    }

    fn run_line(line: &[&str]) -> (String, bool) {
        let line = Line::try_parse_from([&["audit"], line].concat()).unwrap();
        let mut out = Vec::new();
        let code = answer(&line, &mut out).unwrap();
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
            answer(&line, &mut Vec::new()).unwrap_err().to_string(),
            "cannot read the log /nowhere/audit.jsonl"
        );
        std::fs::remove_dir_all(folder).unwrap();
    }
}
