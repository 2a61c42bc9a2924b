//! `Seen`: one decision of the past, in types; and decisions from the files of a log, one after another.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::record::{Record, WouldBe};
use crate::observe::{Error, log_files};

/// Longer lines are none of ours.
const MAX_LINE: u64 = 16 << 20;

/// How it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Allowed.
    Allow,
    /// Refused.
    Deny,
}

/// A decision that the log tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who called, as the handshake proved it; `None`: a caller without an identity.
    pub src: Option<String>,
    /// The workload that was called.
    pub dst: Option<String>,
    /// The port of the listener that was called.
    pub port: u16,
    /// The method; `None` for a connection at layer 4.
    pub method: Option<String>,
    /// The authority as received; empty at layer 4.
    pub host: String,
    /// The path as received, without the query; empty at layer 4.
    pub path: String,
    /// Method, host and path are the very bytes that were received. Without it some were no text and show as U+FFFD.
    pub is_exact: bool,
    /// `http/1.1`, `h2`, `tcp`.
    pub protocol: String,
    /// The route that matched.
    pub route: Option<String>,
    /// The connection's other end.
    pub source: Option<IpAddr>,
    /// The caller that a trusted sender named, if it did.
    pub remote: Option<IpAddr>,
    /// What was decided.
    pub outcome: Outcome,
    /// Why it was refused.
    pub reason: Option<String>,
    /// What decided: `enforce`, `plugin`, ...
    pub mode: String,
    /// The policy whose rule decided.
    pub policy: Option<String>,
    /// The rule that decided.
    pub rule: Option<String>,
    /// What observed policies would have decided, where it differs.
    pub would_be: Option<WouldBe>,
    /// What the refused caller was told.
    pub denial: Option<String>,
    /// How many requests the record stands for: allowed ones are aggregated.
    pub count: u64,
    /// When, in milliseconds since 1970; of aggregated ones when the record was written.
    pub time: u64,
}

impl Seen {
    /// Reads a line of a log; `None` when it is no decision.
    ///
    /// ```
    /// use wardgate::audit::{Outcome, Seen};
    /// let line = r#"{"seq":7,"time":"2026-11-21T12:00:00.001Z","type":"decision","src":{"spiffe_id":"spiffe://shop/web","addr":"10.0.0.1:1"},
    ///     "dst":{"spiffe_id":"spiffe://shop/billing","port":15006},"protocol":"h2","method":"GET","host":"billing","path":"/x","outcome":"allow"}"#;
    /// let seen = Seen::parse(line).unwrap();
    /// assert_eq!((seen.src.as_deref(), seen.outcome, seen.count), (Some("spiffe://shop/web"), Outcome::Allow, 1));
    /// assert_eq!(Seen::parse(r#"{"seq":1,"time":"2026-11-21T12:00:00.001Z","type":"posture"}"#), None);
    /// ```
    pub fn parse(line: &str) -> Option<Self> {
        Self::of(Record::parse(line)?)
    }

    /// The same for a record that was read already.
    pub fn of(record: Record) -> Option<Self> {
        if record.kind != "decision" {
            return None;
        }
        let outcome = match record.outcome.as_deref()? {
            "allow" => Outcome::Allow,
            "deny" => Outcome::Deny,
            _ => return None,
        };
        Some(Self {
            is_exact: record.is_exact(),
            count: record.count(),
            time: record.unix_millis(),
            source: record.src.addr.map(|address| address.ip()),
            src: record.src.spiffe_id,
            dst: record.dst.spiffe_id,
            port: record.dst.port.unwrap_or_default(),
            method: record.method,
            host: record.host.unwrap_or_default(),
            path: record.path.unwrap_or_default(),
            protocol: record.protocol.unwrap_or_default(),
            route: record.route_id,
            remote: record.caller,
            outcome,
            reason: record.reason,
            mode: record.mode.unwrap_or_default(),
            policy: record.policy_id,
            rule: record.rule,
            would_be: record.would_be,
            denial: record.denial_id,
        })
    }
}

/// The lines of a log from the oldest to the newest, one in memory at a time. What is no whole line is passed over: whether a log
/// is what was written, `verify` tells.
#[derive(Debug)]
pub struct Lines {
    files: VecDeque<PathBuf>,
    open: Option<(PathBuf, BufReader<File>)>,
}

impl Lines {
    /// The lines of a log with those of the files that were rotated from it.
    pub fn of(log: &Path) -> Self {
        Self::from_files(log_files(log))
    }

    /// The lines of these files, in this order.
    pub fn from_files(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { files: files.into_iter().collect(), open: None }
    }

    /// The decisions among them.
    pub fn seen(self) -> impl Iterator<Item = Result<Seen, Error>> {
        self.filter_map(|line| match line {
            Ok(line) => Seen::parse(&line).map(Ok),
            Err(error) => Some(Err(error)),
        })
    }
}

impl Iterator for Lines {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((path, reader)) = &mut self.open else {
                let path = self.files.pop_front()?;
                match File::open(&path) {
                    Ok(file) => self.open = Some((path, BufReader::new(file))),
                    Err(source) => return Some(Err(Error::Read { path, source })),
                }
                continue;
            };
            let mut line = Vec::new();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => self.open = None,
                Ok(_) => {
                    let Some(text) = line.strip_suffix(b"\n") else { continue };
                    if let Ok(text) = std::str::from_utf8(text) {
                        return Some(Ok(text.to_owned()));
                    }
                }
                Err(source) => {
                    let error = Error::Read { path: std::mem::take(path), source };
                    self.open = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{
        Allows, AuditLog, AuditSettings, DecisionRecord, DenialId, EndsFacts, Posture,
    };

    #[test]
    fn decisions_come_from_the_files_of_a_log_in_their_order_and_nothing_else_does() {
        let folder = std::env::temp_dir().join(format!("wardgate-seen-{}", std::process::id()));
        let path = folder.join("audit.jsonl");
        let settings = AuditSettings {
            path: Some(path.clone()),
            rotate_bytes: 1500,
            allows: Allows::Each,
            ..AuditSettings::default()
        };
        let audit = AuditLog::open(settings, &Posture::default()).unwrap();
        let ends = audit.control().ends(&EndsFacts {
            src_spiffe_id: Some("spiffe://shop/web"),
            dst_spiffe_id: Some("spiffe://shop/billing"),
            ..EndsFacts::of(1, "10.1.2.3:4000".parse().unwrap(), 15006)
        });
        for at in 0..10_u8 {
            let path = format!("/{at}\u{0}");
            let mut bytes = path.clone().into_bytes();
            if at == 9 {
                bytes.push(0xff);
            }
            let denial_id = (at % 2 == 1).then(DenialId::new);
            let record = DecisionRecord {
                method: b"GET",
                host: b"billing",
                path: &bytes,
                route_id: Some("r"),
                policy_id: Some("p"),
                rule: Some("1"),
                denial_id,
                reason: denial_id.map(|_| "no_rule"),
                caller: Some("192.0.2.1:0".parse().unwrap()),
                ..DecisionRecord::of(&ends, denial_id.is_none())
            };
            audit.control().decision(&record).unwrap();
            audit.flush(std::time::Duration::from_secs(20)).unwrap();
        }
        drop(audit);
        assert!(log_files(&path).len() > 2);
        // A torn line is no decision, and no error either.
        let mut torn = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut torn, b"{\"seq\":99,\"type\":\"decision\"").unwrap();

        let seen: Vec<Seen> = Lines::of(&path).seen().map(Result::unwrap).collect();
        assert_eq!(seen.len(), 10);
        for (at, seen) in seen.iter().enumerate() {
            assert!(seen.path.starts_with(&format!("/{at}\u{0}")), "{seen:?}");
            assert_eq!(seen.is_exact, at != 9);
            assert_eq!(seen.outcome == Outcome::Deny, at % 2 == 1);
            assert_eq!(seen.denial.is_some(), at % 2 == 1);
            assert_eq!((seen.port, seen.count), (15006, 1));
            assert_eq!(seen.source, Some("10.1.2.3".parse().unwrap()));
            assert_eq!(seen.remote, Some("192.0.2.1".parse().unwrap()));
            assert!(seen.time > 1_700_000_000_000);
        }
        let missing = Lines::of(&folder.join("other.jsonl")).next().unwrap();
        assert!(matches!(missing, Err(Error::Read { .. })));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
