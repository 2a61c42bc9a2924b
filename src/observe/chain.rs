//! The chain of an audit log: what a line's hash covers, and whether a file still is what was written.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::countersign::{self, CountersignJudge, Countersigned};
use super::error::Error;
use super::seal::{Place, Seal, SealJudge};
use crate::identity::TrustBundle;
use crate::rt::crypto::digest::{Context, SHA256};

/// A hash, or what stands in its place before the first record.
pub(super) type Hash = [u8; 32];

/// How a line ends: `,"hash":"<64 digits>"}`.
const HASH_KEY: &[u8] = b",\"hash\":\"";
const HASH_END: &[u8] = b"\"}";
const HASH_TAIL: usize = HASH_KEY.len() + 64 + HASH_END.len();
/// Longer lines are none of ours.
const MAX_LINE: u64 = 16 << 20;
/// How much of a file's end is searched for the last record that holds.
const TAIL: u64 = 4 << 20;
/// More findings than this are counted, not listed.
const MAX_FINDINGS: usize = 100;

/// SHA-256 of the previous hash's 32 bytes, followed by the line without its hash field and line end.
///
/// `line` is open: `{"seq":1, ... ,"prev":"..."`, without the closing brace.
pub(super) fn hash(prev: &Hash, line: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(prev);
    context.update(line);
    context.update(b"}");
    let mut hash = Hash::default();
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Closes a line: adds its hash, the brace and the line end. `from` is where the line begins.
pub(super) fn seal(prev: &Hash, out: &mut Vec<u8>, from: usize) -> Hash {
    let hash = hash(prev, &out[from..]);
    out.extend_from_slice(HASH_KEY);
    push_hex(&hash, out);
    out.extend_from_slice(HASH_END);
    out.push(b'\n');
    hash
}

pub(super) fn push_hex(hash: &Hash, out: &mut Vec<u8>) {
    let mut text = [0; 64];
    if hex::encode_to_slice(hash, &mut text).is_ok() {
        out.extend_from_slice(&text);
    }
}

#[derive(Deserialize)]
pub(super) struct Head {
    pub(super) seq: u64,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) time: String,
    #[serde(default)]
    pub(super) boot_id: String,
    #[serde(default)]
    pub(super) event: Option<String>,
    prev: String,
    hash: String,
    #[serde(default)]
    lost: Option<u64>,
    #[serde(default)]
    damaged: Option<Value>,
    /// The first record of a file says so.
    #[serde(default)]
    opens: bool,
    #[serde(default)]
    outcome: Option<String>,
    /// A file that was deleted because its time was over.
    #[serde(default)]
    retired: Option<RetiredFile>,
}

#[derive(Deserialize)]
struct RetiredFile {
    file: String,
    #[serde(default)]
    records: u64,
    #[serde(default)]
    last_hash: String,
}

/// A file that the log deleted by its own settings, and says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retired {
    /// Its name.
    pub file: String,
    /// How many records stood in it.
    pub records: u64,
    /// The hash of its last one.
    pub last_hash: String,
    /// The record that tells.
    pub by_seq: u64,
}

pub(super) struct Line {
    pub(super) head: Head,
    pub(super) prev: Hash,
    pub(super) hash: Hash,
    /// The hash fits the content and `prev`.
    pub(super) holds: bool,
}

/// Reads one line, without its line end.
pub(super) fn parse(line: &[u8]) -> Result<Line, String> {
    let head: Head = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let digits = |name: &str, text: &str| {
        let mut hash = Hash::default();
        match hex::decode_to_slice(text, &mut hash) {
            Ok(()) => Ok(hash),
            Err(_) => Err(format!("\"{name}\" is not 64 hexadecimal digits")),
        }
    };
    let (prev, stored) = (digits("prev", &head.prev)?, digits("hash", &head.hash)?);
    let at = line.len().checked_sub(HASH_TAIL).ok_or("it is too short")?;
    let tail = &line[at..];
    if !tail.starts_with(HASH_KEY) || !tail.ends_with(HASH_END) {
        return Err("\"hash\" is not its last field".into());
    }
    let holds = hash(&prev, &line[..at]) == stored && head.hash == hex::encode(stored);
    Ok(Line { head, prev, hash: stored, holds })
}

/// What one line of a log says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineFacts {
    /// Its number in the chain.
    pub seq: u64,
    /// The record's type, as `decision`.
    pub kind: String,
    /// When it happened, RFC 3339.
    pub time: String,
    /// `allow` or `deny`, if the record has an outcome.
    pub outcome: Option<String>,
    /// The hash of the record before, 64 digits.
    pub prev: String,
    /// Its own hash, 64 digits.
    pub hash: String,
    /// The hash fits the content.
    pub holds: bool,
}

/// Reads one line of a log by itself, without its line end.
///
/// # Errors
/// The line is no record; the sentence says why.
pub fn read_line(line: &[u8]) -> Result<LineFacts, String> {
    let Line { head, holds, .. } = parse(line)?;
    let Head { seq, kind, time, outcome, prev, hash, .. } = head;
    Ok(LineFacts { seq, kind, time, outcome, prev, hash, holds })
}

/// Where a chain stands: the last record's number and hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) hash: Hash,
}

/// What the end of a log looks like.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing was written yet.
    Empty,
    /// The last line holds.
    Sound(Link),
    /// The last line does not hold: torn by a crash, or changed. The last record before it that holds, if one was found.
    Damaged { last: Option<Link>, bytes: u64, why: String },
}

/// Looks at the end of a log, to go on from there. Changes nothing.
pub(super) fn tail(file: &mut File) -> io::Result<Tail> {
    let length = file.seek(SeekFrom::End(0))?;
    if length == 0 {
        return Ok(Tail::Empty);
    }
    let start = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.take(TAIL).read_to_end(&mut end)?;
    let mut rest = end.as_slice();
    let mut why = None;
    loop {
        let (line, complete) = match rest.strip_suffix(b"\n") {
            Some(closed) => (closed, true),
            None => (rest, false),
        };
        let from = memchr::memrchr(b'\n', line).map_or(0, |at| at + 1);
        // The first piece may be the end of a longer line.
        let whole = from > 0 || start == 0;
        let fault = match parse(&line[from..]) {
            _ if !complete => "it has no line end".to_string(),
            Ok(found) if found.holds => {
                let link = Link { seq: found.head.seq, hash: found.hash };
                let bytes = (end.len() - rest.len()) as u64;
                return Ok(match why {
                    None => Tail::Sound(link),
                    Some(why) => Tail::Damaged { last: Some(link), bytes, why },
                });
            }
            Ok(_) => "its content does not fit its hash".to_string(),
            Err(error) => error,
        };
        why.get_or_insert(fault);
        if !whole || from == 0 {
            let why = why.unwrap_or_default();
            return Ok(Tail::Damaged { last: None, bytes: length, why });
        }
        rest = &rest[..from];
    }
}

/// How the line of a record begins.
pub(super) fn beginning(seq: u64) -> String {
    format!("{{\"seq\":{seq},")
}

/// Something that is wrong with a log, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: u64,
    /// The record's number, if it can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// A stable code: `changed`, `not_a_record`, `removed`, `inserted`, `reordered`, `broken_link`, `torn`, `empty`, `bad_seal`, `bad_countersignature`, `expected_hash_missing`,
    /// `not_sealed`.
    pub code: &'static str,
    /// One sentence.
    pub what: String,
}

/// A torn end that a later record tells about itself: the writer crashed, went on and said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Acknowledged {
    /// The file with the torn end.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: u64,
    /// The `loss` record that tells.
    pub by_seq: u64,
}

/// What was read of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// The file.
    pub file: PathBuf,
    /// Lines that are records.
    pub records: u64,
    /// The first record's number and time.
    pub first: Option<(u64, String)>,
    /// The last record's number and time.
    pub last: Option<(u64, String)>,
    /// The first record's `prev`: all zeros begin a chain.
    pub first_prev: Option<String>,
    /// The last record's hash. Whoever notes it elsewhere can later prove that nothing before it was cut off.
    pub last_hash: Option<String>,
}

/// What `audit verify` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// The files, in the order given.
    pub files: Vec<FileReport>,
    /// What is wrong. Empty: the chain is whole.
    pub findings: Vec<Finding>,
    /// Findings beyond the first hundred.
    pub more_findings: u64,
    /// Torn ends that the log itself tells about.
    pub acknowledged: Vec<Acknowledged>,
    /// Files that the log itself says were deleted.
    pub retired: Vec<Retired>,
    /// The first file goes on where a retired one ended: what is missing before it was deleted knowingly.
    pub begins_behind_retired: bool,
    /// Records that the log itself says were dropped.
    pub lost: u64,
    /// Seals that hold.
    pub seals: u64,
    /// The SPIFFE IDs that sealed.
    pub sealed_by: BTreeSet<String>,
    /// Records behind the last seal that holds: nobody has signed for them yet.
    pub unsealed: u64,
    /// What others have signed for.
    pub countersigned: Countersigned,
}

/// What a log must show beside being whole.
#[derive(Debug, Default)]
pub struct Expected<'e> {
    /// A hash that was noted before: it must still be in the chain.
    pub hash: Option<&'e str>,
    /// There must be seals, by SVIDs that this bundle vouches for at the time of each seal.
    pub bundle: Option<TrustBundle>,
}

impl VerifyReport {
    /// Is the chain whole?
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    fn find(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }
}

/// Checks a log, given as its files from the oldest to the newest. They must be one chain.
///
/// # Errors
/// A file cannot be read. What is wrong with its content is in the report.
pub fn verify(files: &[PathBuf], expected: Expected<'_>) -> Result<VerifyReport, Error> {
    let mut report = VerifyReport::default();
    let Expected { hash, bundle } = expected;
    let wants_seals = bundle.is_some();
    let countersigned = CountersignJudge::new(bundle.clone());
    let mut at = Position {
        countersigned,
        expected_found: hash.is_none(),
        seals: SealJudge::new(bundle),
        ..Position::default()
    };
    for path in files {
        let read = |source| Error::Read { path: path.clone(), source };
        let file = File::open(path).map_err(read)?;
        verify_file(path, &mut BufReader::new(file), hash, &mut at, &mut report).map_err(read)?;
    }
    if let Some(torn) = at.torn.take() {
        report.find(torn);
    }
    let first_prev = report.files.first().and_then(|file| file.first_prev.as_deref());
    report.begins_behind_retired =
        report.retired.iter().any(|retired| Some(retired.last_hash.as_str()) == first_prev);
    let mut missing = Vec::new();
    if let (false, Some(hash)) = (at.expected_found, hash) {
        let what = format!("no record has the hash {hash}: the log was cut off or begun anew");
        missing.push(("expected_hash_missing", what));
    }
    if wants_seals && report.seals == 0 {
        let what = "no record is sealed by an SVID that the bundle vouches for".to_owned();
        missing.push(("not_sealed", what));
    }
    let end = report.files.last().map(|file| (file.file.clone(), file.records));
    if let Some((file, line)) = end {
        for (code, what) in missing {
            report.find(Finding { file: file.clone(), line, seq: None, code, what });
        }
    }
    Ok(report)
}

/// Where verification stands between two lines.
#[derive(Default)]
struct Position {
    /// The last record that was taken as a link of the chain.
    link: Option<Link>,
    /// After a line that is no record: the next one's `prev` cannot be checked.
    adrift: bool,
    /// Numbers that were reported missing.
    missing: Vec<(u64, u64)>,
    /// A torn end, until the next line tells whether the log knows of it.
    torn: Option<Finding>,
    expected_found: bool,
    seals: SealJudge,
    countersigned: CountersignJudge,
}

fn verify_file(
    path: &Path,
    reader: &mut impl BufRead,
    expected: Option<&str>,
    at: &mut Position,
    report: &mut VerifyReport,
) -> io::Result<()> {
    let mut of_file = FileReport {
        file: path.to_path_buf(),
        records: 0,
        first: None,
        last: None,
        first_prev: None,
        last_hash: None,
    };
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        reader.take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() && number > 0 {
            break;
        }
        number += 1;
        let finding = |seq: Option<u64>, code, what: String| Finding {
            file: path.to_path_buf(),
            line: number,
            seq,
            code,
            what,
        };
        if line.is_empty() {
            let what = "the file is empty: its records were removed".to_string();
            report.find(finding(None, "empty", what));
            break;
        }
        let Some(text) = line.strip_suffix(b"\n") else {
            let what = format!("the last line is torn: {} bytes without a line end", line.len());
            at.torn = Some(finding(None, "torn", what));
            break;
        };
        let found = match parse(text) {
            Ok(found) => found,
            Err(why) => {
                if let Some(torn) = at.torn.take() {
                    report.find(torn);
                }
                report.find(finding(
                    None,
                    "not_a_record",
                    format!("this line is no record: {why}"),
                ));
                at.adrift = true;
                continue;
            }
        };
        let seq = found.head.seq;
        if let Some(torn) = at.torn.take() {
            // The next record of the chain tells of the torn end: a crash, not somebody's hand.
            let knows = found.head.kind == "loss" && found.head.damaged.is_some() && found.holds;
            let follows = at.link.is_none_or(|link| link.hash == found.prev);
            if knows && follows {
                let Finding { file, line, .. } = torn;
                report.acknowledged.push(Acknowledged { file, line, by_seq: seq });
            } else {
                report.find(torn);
            }
        }
        if number == 1 && !found.head.opens {
            let what =
                format!("record {seq} does not open a file: what stood before it was removed");
            report.find(finding(Some(seq), "removed", what));
        }
        report.unsealed += 1;
        let is_countersigned = found.head.event.as_deref() == Some(countersign::EVENT);
        if found.head.kind == "seal" && found.holds && is_countersigned {
            if let Err(why) = at.countersigned.take(text, &mut report.countersigned) {
                let what = format!("record {seq} is no good countersignature: {why}");
                report.find(finding(Some(seq), "bad_countersignature", what));
            }
        } else if found.head.kind == "seal" && found.holds {
            at.countersigned.covers(seq, &found.head.hash);
            match judge_seal(text, &found.head, &mut at.seals) {
                Ok(by) => {
                    report.seals += 1;
                    report.unsealed = 0;
                    report.sealed_by.insert(by);
                }
                Err(why) => {
                    let what = format!("record {seq} is no good seal: {why}");
                    report.find(finding(Some(seq), "bad_seal", what));
                }
            }
        }
        let judged = judge(&found, at);
        if let Some((code, what)) = judged {
            report.find(finding(Some(seq), code, what));
        }
        at.expected_found |= found.holds && expected == Some(found.head.hash.as_str());
        of_file.records += 1;
        report.lost += found.head.lost.unwrap_or_default();
        if let Some(RetiredFile { file, records, last_hash }) =
            found.head.retired.filter(|_| found.holds)
        {
            report.retired.push(Retired { file, records, last_hash, by_seq: seq });
        }
        of_file.first.get_or_insert_with(|| (seq, found.head.time.clone()));
        of_file.first_prev.get_or_insert(found.head.prev);
        of_file.last = Some((seq, found.head.time));
        of_file.last_hash = Some(found.head.hash);
    }
    report.files.push(of_file);
    Ok(())
}

/// Who sealed, if the seal is good.
fn judge_seal(line: &[u8], head: &Head, judge: &mut SealJudge) -> Result<String, String> {
    let seal: Seal = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let place = Place { boot_id: &head.boot_id, seq: head.seq, time: &head.time, prev: &head.prev };
    let time = OffsetDateTime::parse(&head.time, &Rfc3339).ok();
    judge.judge(&seal, place, time.map(OffsetDateTime::unix_timestamp))?;
    Ok(seal.spiffe_id)
}

/// What is wrong with this record at this place; moves the position on.
fn judge(found: &Line, at: &mut Position) -> Option<(&'static str, String)> {
    let seq = found.head.seq;
    let here = Link { seq, hash: found.hash };
    if !found.holds {
        // Its stored hash is what the next line was chained to.
        at.link = Some(here);
        at.adrift = false;
        return Some((
            "changed",
            format!("record {seq} was changed: its content does not fit its hash"),
        ));
    }
    let Some(link) = at.link else {
        at.link = Some(here);
        at.adrift = false;
        return None;
    };
    if std::mem::take(&mut at.adrift) && seq > link.seq {
        at.link = Some(here);
        return None;
    }
    let next = link.seq + 1;
    if seq == next && found.prev == link.hash {
        at.link = Some(here);
        return None;
    }
    let verdict = if seq > next {
        at.missing.push((next, seq));
        let records = match seq - next {
            1 => format!("record {next} is missing"),
            _ => format!("records {next} to {} are missing", seq - 1),
        };
        at.link = Some(here);
        ("removed", format!("{records} before this line"))
    } else if seq < next && at.missing.iter().any(|(from, to)| (*from..*to).contains(&seq)) {
        (
            "reordered",
            format!("record {seq} stands behind record {}: lines were reordered", link.seq),
        )
    } else if seq < next {
        let what = format!(
            "record {seq} stands behind record {}: this line or that one was inserted",
            link.seq
        );
        ("inserted", what)
    } else {
        at.link = Some(here);
        (
            "broken_link",
            format!("record {seq} does not follow the line before it: one of them was replaced"),
        )
    };
    Some(verdict)
}

/// The record of a denial, from a log and the files that were rotated from it; the newest is searched first.
///
/// # Errors
/// A file cannot be read. A log that does not exist is an error as well.
pub fn find_denial(log: &Path, id: &str) -> Result<Option<Value>, Error> {
    let mut files = vec![log.to_path_buf()];
    files.extend(rotated(log).into_iter().rev().map(|(_, path)| path));
    let needle = memchr::memmem::Finder::new(id.as_bytes());
    for path in files {
        let read = |source| Error::Read { path: path.clone(), source };
        let mut reader = BufReader::new(File::open(&path).map_err(read)?);
        let mut line = Vec::new();
        let mut found = None;
        loop {
            line.clear();
            if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(read)? == 0 {
                break;
            }
            if needle.find(&line).is_none() {
                continue;
            }
            let Ok(record) = serde_json::from_slice::<Value>(&line) else { continue };
            if record["denial_id"] == id {
                found = Some(record);
            }
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The name of the file that the log becomes when it is rotated: `audit.jsonl` becomes `audit-000007.jsonl`.
pub(super) fn rotated_name(log: &Path, number: u64) -> PathBuf {
    let stem = log.file_stem().unwrap_or_default().to_string_lossy();
    let extension = log.extension().map(|text| format!(".{}", text.to_string_lossy()));
    log.with_file_name(format!("{stem}-{number:06}{}", extension.unwrap_or_default()))
}

/// The number of the file that this one continues, as its first record names it.
pub(super) fn continued(log: &Path) -> Option<u64> {
    #[derive(Deserialize)]
    struct First {
        continues: Option<String>,
        damaged: Option<Broken>,
    }
    #[derive(Deserialize)]
    struct Broken {
        file: String,
    }
    let mut line = Vec::new();
    BufReader::new(File::open(log).ok()?).take(MAX_LINE).read_until(b'\n', &mut line).ok()?;
    let First { continues, damaged } = serde_json::from_slice(&line).ok()?;
    let before = continues.or(damaged.map(|damaged| damaged.file))?;
    number_of(log, &log.with_file_name(before))
}

/// The number of a file's first record.
pub(super) fn first_seq(path: &Path) -> Option<u64> {
    let mut line = Vec::new();
    BufReader::new(File::open(path).ok()?).take(MAX_LINE).read_until(b'\n', &mut line).ok()?;
    Some(parse(line.strip_suffix(b"\n")?).ok()?.head.seq)
}

/// The number of a file that was rotated from this log.
fn number_of(log: &Path, rotated: &Path) -> Option<u64> {
    let stem = log.file_stem()?.to_str()?;
    let name = rotated.file_stem()?.to_str()?;
    let number: u64 = name.strip_prefix(stem)?.strip_prefix('-')?.parse().ok()?;
    (rotated_name(log, number) == rotated).then_some(number)
}

/// The files of a log from the oldest to the newest: those that were rotated from it, and the log itself.
pub fn log_files(log: &Path) -> Vec<PathBuf> {
    let older = rotated(log).into_iter().map(|(_, path)| path);
    older.chain([log.to_path_buf()]).collect()
}

/// The files that were rotated from this log, oldest first.
pub(super) fn rotated(log: &Path) -> Vec<(u64, PathBuf)> {
    let folder = match log.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = log.with_file_name(entry.ok()?.file_name());
            Some((number_of(log, &path)?, path))
        })
        .collect();
    found.sort();
    found
}
