//! The archive judges itself: is each chain what came, and does each countersignature hold?

use std::collections::HashMap;

use redb::{ReadableDatabase, ReadableTable};
use serde::{Deserialize, Serialize};

use super::archive::Archive;
use super::error::ArchiveError;
use super::query::Reading;
use super::tables::{Alarm, COUNTERSIGNATURES, ChainFacts, FINDINGS, Names};
use crate::observe::{ChainLine, Countersignature, Seals};

/// Something that is wrong with a chain of the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveFinding {
    /// The record's number in its chain.
    pub seq: u64,
    /// `changed`, `removed`, `broken_link`, `bad_seal`, `bad_countersignature`, `head_missing`.
    pub code: String,
    /// A sentence.
    pub what: String,
}

/// What was found of one chain, or of a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainReport {
    /// The chain.
    pub facts: ChainFacts,
    /// Records that were read.
    pub records: u64,
    /// Seals that hold.
    pub seals: u64,
    /// Countersignatures that hold.
    pub countersigned: u64,
    /// What is wrong; the first hundred.
    pub findings: Vec<ArchiveFinding>,
    /// The last record that was read; it goes on behind it.
    pub next: Option<u64>,
    /// The hash of the last record that was read.
    pub last_hash: Option<String>,
}

/// More findings than this are not listed.
const MAX_FINDINGS: usize = 100;

impl Archive {
    /// Reads a part of a chain, from behind the record `after` on, and judges it. Gaps that were found when the records came are told
    /// by [`Archive::alarms`] and not again. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or there is no such chain.
    pub fn verify(&self, chain: u32, after: u64, most: u64) -> Result<ChainReport, ArchiveError> {
        let inner = &*self.inner;
        let no_chain = || ArchiveError::Question(format!("there is no chain {chain}"));
        let reading = Reading::begin(inner)?;
        let facts = self.chain(chain).ok_or_else(no_chain)?;
        let gaps = self.gaps(chain)?;
        let signed = reading.transaction.open_table(COUNTERSIGNATURES);
        let signed = signed.map_err(|e| inner.failed(e))?;
        let mut report = ChainReport {
            facts,
            records: 0,
            seals: 0,
            countersigned: 0,
            findings: Vec::new(),
            next: None,
            last_hash: None,
        };
        let mut judge = Judge { seals: Seals::new(), chains: HashMap::new(), before: None };
        if after > 0 {
            judge.before = self.stored(&reading, chain, after)?.and_then(|(_, line)| {
                let line = ChainLine::read(line.as_bytes()).ok()?;
                Some((line.seq, line.hash))
            });
        }
        for segment in reading.segments.keys() {
            let places = reading.transaction.open_table(Names::of(*segment).places());
            let places = places.map_err(|e| inner.failed(e))?;
            let mine = places.range((chain, after.saturating_add(1))..=(chain, u64::MAX));
            for row in mine.map_err(|e| inner.failed(e))? {
                let (place, number) = row.map_err(|e| inner.failed(e))?;
                let (_, seq) = place.value();
                if report.records >= most {
                    report.next = judge.before.map(|(seq, _)| seq);
                    return Ok(report);
                }
                report.records += 1;
                let Some((_, _, line)) = reading.record(*segment, number.value())? else {
                    report.find(seq, "removed", format!("record {seq} is not there"));
                    continue;
                };
                let made = signed.get((chain, seq)).map_err(|e| inner.failed(e))?;
                let made = made.map(|json| serde_json::from_slice(json.value()));
                judge.line(self, seq, &line, made, &gaps, &mut report);
            }
        }
        report.last_hash = judge.before.map(|(_, hash)| hex::encode(hash));
        let head = judge.before.map(|(seq, hash)| (seq, hex::encode(hash)));
        let facts = &report.facts;
        // What came meanwhile is not in this state of the file.
        let is_short = head.as_ref().is_none_or(|(seq, _)| *seq < facts.head_seq)
            && self.chain(chain).is_some_and(|now| now.head_seq == facts.head_seq)
            && facts.head_seq >= facts.kept_from;
        if is_short {
            let seq = facts.head_seq;
            let what = format!("the chain should end with record {seq}, and does not");
            report.find(seq, "head_missing", what);
        }
        Ok(report)
    }

    /// A stored record: its number in the archive, and its line.
    fn stored(
        &self,
        reading: &Reading<'_>,
        chain: u32,
        seq: u64,
    ) -> Result<Option<(u64, String)>, ArchiveError> {
        let inner = &*self.inner;
        for segment in reading.segments.keys().rev() {
            let places = reading.transaction.open_table(Names::of(*segment).places());
            let places = places.map_err(|e| inner.failed(e))?;
            let number = places.get((chain, seq)).map_err(|e| inner.failed(e))?;
            if let Some(number) = number.map(|number| number.value()) {
                let record = reading.record(*segment, number)?;
                return Ok(record.map(|(_, _, line)| (number, line)));
            }
        }
        Ok(None)
    }

    /// The hash of a stored record, if it is there. Blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn hash_of(&self, chain: u32, seq: u64) -> Result<Option<String>, ArchiveError> {
        let reading = Reading::begin(&self.inner)?;
        let line = self.stored(&reading, chain, seq)?;
        Ok(line
            .and_then(|(_, line)| Some(hex::encode(ChainLine::read(line.as_bytes()).ok()?.hash))))
    }

    /// The countersignatures of a chain behind this record, without their certificates, at most so many. Blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn countersignatures(
        &self,
        chain: u32,
        after: u64,
        most: usize,
    ) -> Result<Vec<Countersignature>, ArchiveError> {
        let inner = &*self.inner;
        let transaction = inner.database.begin_read().map_err(|e| inner.failed(e))?;
        let table = transaction.open_table(COUNTERSIGNATURES).map_err(|e| inner.failed(e))?;
        let mine = table.range((chain, after.saturating_add(1))..=(chain, u64::MAX));
        let mut found = Vec::new();
        for row in mine.map_err(|e| inner.failed(e))?.take(most) {
            let (_, json) = row.map_err(|e| inner.failed(e))?;
            let damaged = |error: serde_json::Error| ArchiveError::Damaged {
                path: inner.path.clone(),
                why: error.to_string(),
            };
            found.push(serde_json::from_slice(json.value()).map_err(damaged)?);
        }
        Ok(found)
    }

    /// The certificates with this leaf, base64 of DER, leaf first. Blocks.
    pub fn certificates(&self, sha256: &str) -> Option<Vec<String>> {
        use base64::Engine;
        let engine = base64::engine::general_purpose::STANDARD;
        let chain = self.inner.certificates(sha256)?;
        Some(chain.iter().map(|der| engine.encode(der)).collect())
    }

    /// What was found wrong when records came, the newest first, at most so many. Blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn alarms(&self, most: usize) -> Result<Vec<Alarm>, ArchiveError> {
        let inner = &*self.inner;
        let transaction = inner.database.begin_read().map_err(|e| inner.failed(e))?;
        let table = transaction.open_table(FINDINGS).map_err(|e| inner.failed(e))?;
        let mut found = Vec::new();
        for row in table.iter().map_err(|e| inner.failed(e))?.rev().take(most) {
            let (_, json) = row.map_err(|e| inner.failed(e))?;
            found.extend(serde_json::from_slice(json.value()).ok());
        }
        Ok(found)
    }

    /// What never came of a chain.
    fn gaps(&self, chain: u32) -> Result<Vec<(u64, u64)>, ArchiveError> {
        let alarms = self.alarms(usize::MAX)?;
        let of_chain = alarms.into_iter().filter(|alarm| alarm.chain == Some(chain));
        let gaps = of_chain.filter(|alarm| alarm.code == "gap");
        Ok(gaps.map(|alarm| (alarm.seq, alarm.to_seq)).collect())
    }
}

impl ChainReport {
    fn find(&mut self, seq: u64, code: &str, what: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(ArchiveFinding { seq, code: code.to_owned(), what });
        }
    }
}

struct Judge {
    seals: Seals,
    /// Certificates of countersigners, base64 of DER.
    chains: HashMap<String, Vec<String>>,
    before: Option<(u64, [u8; 32])>,
}

impl Judge {
    fn line(
        &mut self,
        archive: &Archive,
        seq: u64,
        line: &str,
        made: Option<Result<Countersignature, serde_json::Error>>,
        gaps: &[(u64, u64)],
        report: &mut ChainReport,
    ) {
        let link = match ChainLine::read(line.as_bytes()) {
            Ok(link) if link.seq == seq => link,
            Ok(link) => {
                let what = format!("record {} lies in the place of record {seq}", link.seq);
                report.find(seq, "changed", what);
                self.before = None;
                return;
            }
            Err(why) => {
                report.find(seq, "changed", format!("record {seq} is not what came: {why}"));
                self.before = None;
                return;
            }
        };
        if let Some((before, hash)) = self.before {
            if before + 1 < seq && !gaps.contains(&(before + 1, seq - 1)) {
                let what = format!("records {} to {} were removed", before + 1, seq - 1);
                report.find(seq, "removed", what);
            } else if before + 1 == seq && link.prev != hash {
                let what = format!("record {seq} does not follow record {before}");
                report.find(seq, "broken_link", what);
            }
        }
        self.before = Some((seq, link.hash));
        if link.is_seal() {
            if let Some(sha256) = Seals::names_certificate(line.as_bytes())
                && let Some(chain) = archive.inner.certificates(&sha256)
            {
                self.seals.know(&sha256, chain);
            }
            match self.seals.judge(line.as_bytes(), &link, None) {
                Ok(_) => report.seals += 1,
                Err(why) => report.find(seq, "bad_seal", format!("record {seq}: {why}")),
            }
        }
        match made {
            None => {}
            Some(Err(error)) => report.find(seq, "bad_countersignature", error.to_string()),
            Some(Ok(mut made)) => {
                if !self.chains.contains_key(&made.certificate_sha256)
                    && let Some(chain) = archive.certificates(&made.certificate_sha256)
                {
                    self.chains.insert(made.certificate_sha256.clone(), chain);
                }
                let chain = self.chains.get(&made.certificate_sha256);
                made.certificates = chain.cloned().unwrap_or_default();
                let judged = match made.hash == hex::encode(link.hash) {
                    true => made.check(None),
                    false => Err("it was made for another record".to_owned()),
                };
                match judged {
                    Ok(()) => report.countersigned += 1,
                    Err(why) => {
                        let what = format!("the countersignature of record {seq}: {why}");
                        report.find(seq, "bad_countersignature", what);
                    }
                }
            }
        }
    }
}
