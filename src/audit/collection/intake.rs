//! How records come in: each line is looked at by itself, then put behind the one that it is chained to, or refused.
//!
//! What is stored never changes. A record that differs from the one stored under its number is refused; a chain that goes on from
//! another past than the stored one is kept as a chain of its own. Each of these is an alarm, told once.

use bytes::Bytes;
use redb::{ReadableTable, Table, WriteTransaction};
use rustls_pki_types::CertificateDer;
use tokio::sync::oneshot;

use super::archive::{Inner, State};
use super::error::ArchiveError;
use super::tables::{
    Alarm, CHAINS, COUNTERS, COUNTERSIGNATURES, ChainFacts, FINDINGS, IndexKey, Names, RecordRow,
    SEGMENTS, Segment, TOLD, Value, key, values,
};
use crate::audit::record::{Record, time_text, unix_millis as unix_millis_of};
use crate::identity::Trust;
use crate::observe::{ChainLine, CollectionRecord, Countersignature, GoodSeal, Seals};
use crate::rt::unix_millis;

/// Chains of one origin and node. More would be somebody who fills the archive.
const MAX_CHAINS: usize = 64;
/// Findings of one chain that are kept; more are counted.
const MAX_FINDINGS: u64 = 1000;
/// What a record costs beside its line: its row, its place and its index keys.
const RECORD_BYTES: u64 = 96;
const KEY_BYTES: u64 = 40;

/// Whose log it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The SPIFFE ID that the handshake proved.
    pub spiffe_id: String,
    /// The node that the data plane names.
    pub node: String,
}

/// What became of some lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// So many from the first are on the disk; those that were there already count.
    pub stored: usize,
    /// The next one will never be taken, and why.
    pub refused: Option<String>,
    /// The newest seal among them, countersigned.
    pub countersignature: Option<Countersignature>,
}

/// A line that was looked at by itself.
pub(super) enum Prepared {
    Good(Box<Good>),
    Bad(String),
}

pub(super) struct Good {
    line: Bytes,
    link: ChainLine,
    time: u64,
    values: Vec<Value>,
    /// The judgement of a seal.
    seal: Option<Result<GoodSeal, String>>,
}

/// Lines that wait for the next commit.
pub(super) struct Job {
    pub(super) origin: Origin,
    pub(super) lines: Vec<Prepared>,
    pub(super) answer: oneshot::Sender<Result<Taken, ArchiveError>>,
}

impl Inner {
    /// Looks at each line by itself: hash, content, and of seals signature and certificates.
    pub(super) fn prepare(
        &self,
        origin: &Origin,
        lines: Vec<Bytes>,
        trust: Option<&Trust>,
    ) -> Vec<Prepared> {
        let mut seals = Seals::new();
        lines.into_iter().map(|line| self.look_at(origin, line, &mut seals, trust)).collect()
    }

    fn look_at(
        &self,
        origin: &Origin,
        line: Bytes,
        seals: &mut Seals,
        trust: Option<&Trust>,
    ) -> Prepared {
        let link = match ChainLine::read(&line) {
            Ok(link) => link,
            Err(why) => return Prepared::Bad(format!("it is no record of a chain: {why}")),
        };
        // A newer version may write what this one cannot read: it is kept all the same.
        let record = std::str::from_utf8(&line).ok().and_then(Record::parse);
        let seal = link.is_seal().then(|| {
            if let Some(sha256) = Seals::names_certificate(&line)
                && let Some(chain) = self.certificates(&sha256)
            {
                seals.know(&sha256, chain);
            }
            let good = seals.judge(&line, &link, trust)?;
            if good.spiffe_id != origin.spiffe_id {
                return Err(format!("it is the seal of {}", good.spiffe_id));
            }
            Ok(good)
        });
        let time = unix_millis_of(&link.time).unwrap_or_default();
        let values = values(&origin.spiffe_id, &link.kind, record.as_ref());
        Prepared::Good(Box::new(Good { line, link, time, values, seal }))
    }

    /// A chain of certificates that was shown before.
    pub(super) fn certificates(&self, sha256: &str) -> Option<Vec<CertificateDer<'static>>> {
        use base64::Engine;
        use redb::ReadableDatabase;
        let transaction = self.database.begin_read().ok()?;
        let segments: Vec<u32> = self.state.lock().segments.keys().rev().copied().collect();
        let texts = segments.into_iter().find_map(|segment| {
            let table = transaction.open_table(Names::of(segment).certificates()).ok()?;
            serde_json::from_slice::<Vec<String>>(table.get(sha256).ok()??.value()).ok()
        })?;
        let engine = base64::engine::general_purpose::STANDARD;
        texts.iter().map(|text| Some(CertificateDer::from(engine.decode(text).ok()?))).collect()
    }

    /// Takes what waits into one commit and answers each. Blocks.
    pub(super) fn take(&self, jobs: Vec<Job>) {
        match self.write(&jobs) {
            Ok(taken) => {
                for (job, taken) in jobs.into_iter().zip(taken) {
                    // Who does not wait any more asks again.
                    let _ = job.answer.send(Ok(taken));
                }
            }
            Err(error) => {
                tracing::error!(%error, "records cannot be archived; data planes keep them");
                let text = error.to_string();
                for job in jobs {
                    let again = ArchiveError::File { path: self.path.clone(), why: text.clone() };
                    let _ = job.answer.send(Err(again));
                }
            }
        }
    }

    fn write(&self, jobs: &[Job]) -> Result<Vec<Taken>, ArchiveError> {
        let now = unix_millis();
        let (number, mut segment) = self.current_segment(now);
        let names = Names::of(number);
        let mut transaction = self.database.begin_write().map_err(|e| self.failed(e))?;
        // A crash leaves a file that opens at once, however large.
        transaction.set_quick_repair(true);
        let (taken, work) = {
            let mut work = Work {
                inner: self,
                now,
                transaction: &transaction,
                current: number,
                records: transaction.open_table(names.records()).map_err(|e| self.failed(e))?,
                index: transaction.open_table(names.index()).map_err(|e| self.failed(e))?,
                places: transaction.open_table(names.places()).map_err(|e| self.failed(e))?,
                certificates: transaction
                    .open_table(names.certificates())
                    .map_err(|e| self.failed(e))?,
                segment: &mut segment,
                chains: Vec::new(),
                next_chain: self.state.lock().next_chain,
                alarms: Vec::new(),
                taken: 0,
            };
            let mut taken = Vec::with_capacity(jobs.len());
            for job in jobs {
                taken.push(work.take(job)?);
            }
            (taken, work.finish())
        };
        let Finished { chains, next_chain, alarms, taken: count } = work;
        let alarms = self.write_alarms(&transaction, alarms, &chains)?;
        self.write_state(&transaction, number, &segment, &chains, next_chain)?;
        transaction.commit().map_err(|e| self.failed(e))?;
        {
            let mut state = self.state.lock();
            state.next_record = segment.end;
            state.next_chain = next_chain;
            state.next_finding += alarms.len() as u64;
            state.segments.insert(number, segment);
            for facts in chains {
                state.add(facts);
            }
        }
        self.newest.send_replace(segment.end);
        if let Some(metrics) = &self.metrics {
            metrics.records.add(count);
            metrics.alarms.add(alarms.len() as u64);
        }
        self.show_bytes();
        for alarm in &alarms {
            self.tell(alarm);
        }
        Ok(taken)
    }

    /// The segment that takes what comes: the newest, or a new one when that is full or old.
    fn current_segment(&self, now: u64) -> (u32, Segment) {
        let state = self.state.lock();
        let settings = &self.settings;
        match state.segments.last_key_value() {
            Some((number, segment))
                if segment.bytes < settings.segment_bytes()
                    && now.saturating_sub(segment.begun) < settings.segment_millis() =>
            {
                (*number, *segment)
            }
            Some((number, _)) => (number + 1, Segment::begin(state.next_record, now)),
            None => (1, Segment::begin(state.next_record, now)),
        }
    }

    fn write_state(
        &self,
        transaction: &WriteTransaction,
        number: u32,
        segment: &Segment,
        chains: &[ChainFacts],
        next_chain: u32,
    ) -> Result<(), ArchiveError> {
        let mut segments = transaction.open_table(SEGMENTS).map_err(|e| self.failed(e))?;
        segments.insert(number, segment.row()).map_err(|e| self.failed(e))?;
        let mut counters = transaction.open_table(COUNTERS).map_err(|e| self.failed(e))?;
        counters.insert("next_record", segment.end).map_err(|e| self.failed(e))?;
        counters.insert("next_chain", u64::from(next_chain)).map_err(|e| self.failed(e))?;
        let mut table = transaction.open_table(CHAINS).map_err(|e| self.failed(e))?;
        let known = |facts: &ChainFacts| {
            self.state.lock().chains.get(&facts.chain).is_some_and(|known| known == facts)
        };
        for facts in chains.iter().filter(|facts| !known(facts)) {
            let json = self.json(facts)?;
            table.insert(facts.chain, &*json).map_err(|e| self.failed(e))?;
        }
        Ok(())
    }

    pub(super) fn json(&self, value: &impl serde::Serialize) -> Result<Vec<u8>, ArchiveError> {
        let damaged = |error: serde_json::Error| ArchiveError::Damaged {
            path: self.path.clone(),
            why: error.to_string(),
        };
        serde_json::to_vec(value).map_err(damaged)
    }

    /// Writes what was not told before, and returns that.
    fn write_alarms(
        &self,
        transaction: &WriteTransaction,
        alarms: Vec<Alarm>,
        chains: &[ChainFacts],
    ) -> Result<Vec<Alarm>, ArchiveError> {
        let mut fresh = Vec::new();
        if alarms.is_empty() {
            return Ok(fresh);
        }
        let mut told = transaction.open_table(TOLD).map_err(|e| self.failed(e))?;
        let mut findings = transaction.open_table(FINDINGS).map_err(|e| self.failed(e))?;
        let next = self.state.lock().next_finding;
        for alarm in alarms {
            let about = alarm.about();
            let of_chain = chains.iter().find(|facts| Some(facts.chain) == alarm.chain);
            let is_many = of_chain.is_some_and(|facts| facts.findings > MAX_FINDINGS);
            if is_many || told.get(&*about).map_err(|e| self.failed(e))?.is_some() {
                continue;
            }
            told.insert(&*about, ()).map_err(|e| self.failed(e))?;
            let json = self.json(&alarm)?;
            findings.insert(next + fresh.len() as u64, &*json).map_err(|e| self.failed(e))?;
            fresh.push(alarm);
        }
        drop((told, findings));
        let mut counters = transaction.open_table(COUNTERS).map_err(|e| self.failed(e))?;
        counters.insert("next_finding", next + fresh.len() as u64).map_err(|e| self.failed(e))?;
        Ok(fresh)
    }

    fn tell(&self, alarm: &Alarm) {
        let Alarm { origin, node, code, seq, to_seq, what, .. } = alarm;
        tracing::error!(
            origin,
            node,
            code,
            seq,
            "a collected decision log is not what was written: {what}"
        );
        if let Some(lane) = &self.lane {
            // What is lost here is counted in the log itself.
            let _ = lane.collection(&CollectionRecord {
                event: "alarm",
                code: Some(code),
                origin: Some(origin),
                node: Some(node),
                seqs: Some((*seq, *to_seq)),
                records: None,
                detail: Some(what),
            });
        }
    }
}

/// One commit under way.
struct Work<'w> {
    inner: &'w Inner,
    now: u64,
    transaction: &'w WriteTransaction,
    current: u32,
    records: Table<'w, u64, RecordRow<'static>>,
    index: Table<'w, &'static IndexKey, ()>,
    places: Table<'w, (u32, u64), u64>,
    certificates: Table<'w, &'static str, &'static [u8]>,
    segment: &'w mut Segment,
    /// Chains that this commit changes.
    chains: Vec<ChainFacts>,
    next_chain: u32,
    alarms: Vec<Alarm>,
    taken: u64,
}

/// What a commit changes beside its tables.
struct Finished {
    chains: Vec<ChainFacts>,
    next_chain: u32,
    alarms: Vec<Alarm>,
    taken: u64,
}

/// Where a line belongs.
enum Belongs {
    /// Behind the newest record of this chain, at this place of `chains`.
    Next(usize),
    /// It is there already.
    Known,
    /// Nowhere, for this reason.
    Refused(String),
}

impl Work<'_> {
    fn finish(self) -> Finished {
        let Self { chains, next_chain, alarms, taken, .. } = self;
        Finished { chains, next_chain, alarms, taken }
    }

    fn take(&mut self, job: &Job) -> Result<Taken, ArchiveError> {
        self.bring(&job.origin);
        let mut taken = Taken::default();
        let mut last = None;
        for line in &job.lines {
            let good = match line {
                Prepared::Good(good) => good,
                Prepared::Bad(why) => {
                    let seq = last.map_or(0, |seq| seq + 1);
                    self.alarm(&job.origin, None, "unreadable", (seq, seq), why.clone());
                    taken.refused = Some(why.clone());
                    break;
                }
            };
            last = Some(good.link.seq);
            match self.place(&job.origin, &good.link)? {
                Belongs::Known => taken.stored += 1,
                Belongs::Refused(why) => {
                    taken.refused = Some(why);
                    break;
                }
                Belongs::Next(at) => {
                    self.store(at, good)?;
                    taken.stored += 1;
                    if let Some(judged) = &good.seal
                        && let Some(made) = self.seal(at, good, judged)?
                    {
                        taken.countersignature = Some(made);
                    }
                }
            }
        }
        Ok(taken)
    }

    /// The chains of this origin, among those that are changed.
    fn bring(&mut self, origin: &Origin) {
        let state: &State = &self.inner.state.lock();
        let key = (origin.spiffe_id.clone(), origin.node.clone());
        for chain in state.of_origin.get(&key).into_iter().flatten() {
            if let Some(facts) = state.chains.get(chain)
                && !self.chains.iter().any(|known| known.chain == *chain)
            {
                self.chains.push(facts.clone());
            }
        }
    }

    fn place(&mut self, origin: &Origin, link: &ChainLine) -> Result<Belongs, ArchiveError> {
        let (prev, hash) = (hex::encode(link.prev), hex::encode(link.hash));
        let mine: Vec<usize> = (0..self.chains.len())
            .rev()
            .filter(|at| {
                let facts = &self.chains[*at];
                facts.origin == origin.spiffe_id && facts.node == origin.node
            })
            .collect();
        let follows =
            |facts: &ChainFacts| facts.head_seq + 1 == link.seq && facts.head_hash == prev;
        if let Some(at) = mine.iter().find(|at| follows(&self.chains[**at])) {
            return Ok(Belongs::Next(*at));
        }
        let mut differs = None;
        for at in &mine {
            let ChainFacts { chain, first_seq, first_hash, kept_from, head_seq, .. } =
                &self.chains[*at];
            if link.seq < *first_seq || link.seq > *head_seq {
                continue;
            }
            let stored = match link.seq {
                seq if seq == *first_seq => Some(first_hash.clone()),
                // Its records are gone: what was once taken is not asked for again.
                seq if seq < *kept_from => Some(hash.clone()),
                seq => self.stored_hash(*chain, seq)?,
            };
            match stored {
                Some(stored) if stored == hash => return Ok(Belongs::Known),
                // It came behind a gap.
                None => {}
                Some(_) => differs = differs.or(Some(*at)),
            }
        }
        let begins = link.prev == [0; 32];
        let (alarm, departs_from) = match (mine.first(), differs) {
            (None, _) => (None, None),
            (Some(_), Some(at)) if !begins => {
                let chain = self.chains[at].chain;
                let why = format!(
                    "record {} is not the one that was stored under this number: the log was rewritten",
                    link.seq
                );
                let seqs = (link.seq, link.seq);
                self.alarm(origin, Some(chain), "rewritten", seqs, why.clone());
                return Ok(Belongs::Refused(why));
            }
            (Some(newest), _) if begins => {
                let facts = &self.chains[*newest];
                let what = format!(
                    "a new log was begun; the one before ended with record {}",
                    facts.head_seq
                );
                (Some(("begun_anew", (link.seq, link.seq), what)), Some(facts.chain))
            }
            (Some(newest), _) => {
                let before = mine.iter().filter(|at| self.chains[**at].head_seq < link.seq);
                let nearest = before.max_by_key(|at| self.chains[**at].head_seq);
                let at = *nearest.unwrap_or(newest);
                let (chain, head) = (self.chains[at].chain, self.chains[at].head_seq);
                if head + 1 < link.seq {
                    let what = format!("records {} to {} never came", head + 1, link.seq - 1);
                    self.alarm(origin, Some(chain), "gap", (head + 1, link.seq - 1), what);
                    return Ok(Belongs::Next(at));
                }
                let what = format!(
                    "record {} follows another record {head} than the one that was stored: the log was rewritten",
                    link.seq
                );
                (Some(("rewritten", (link.seq, link.seq), what)), Some(chain))
            }
        };
        if mine.len() >= MAX_CHAINS {
            let why = format!("there are {MAX_CHAINS} chains of this origin and node already");
            self.alarm(origin, None, "too_many_chains", (0, 0), why.clone());
            return Ok(Belongs::Refused(why));
        }
        if let Some((code, seqs, what)) = alarm {
            self.alarm(origin, departs_from, code, seqs, what);
        }
        let chain = self.next_chain;
        self.next_chain += 1;
        self.chains.push(ChainFacts {
            chain,
            origin: origin.spiffe_id.clone(),
            node: origin.node.clone(),
            first_seq: link.seq,
            first_hash: hash.clone(),
            kept_from: link.seq,
            head_seq: link.seq,
            head_hash: hash,
            first_time: link.time.clone(),
            head_time: link.time.clone(),
            records: 0,
            sealed: 0,
            countersigned: 0,
            departs_from,
            findings: 0,
        });
        Ok(Belongs::Next(self.chains.len() - 1))
    }

    /// The hash of a stored record.
    fn stored_hash(&self, chain: u32, seq: u64) -> Result<Option<String>, ArchiveError> {
        let fail = |error: redb::Error| self.inner.failed(error);
        let of = |row: Option<redb::AccessGuard<'_, RecordRow<'static>>>| {
            let line = row?.value().3.to_vec();
            Some(hex::encode(ChainLine::read(&line).ok()?.hash))
        };
        if let Some(number) = self.places.get((chain, seq)).map_err(|e| fail(e.into()))? {
            return Ok(of(self.records.get(number.value()).map_err(|e| fail(e.into()))?));
        }
        let older: Vec<u32> = self.inner.state.lock().segments.keys().rev().copied().collect();
        for segment in older.into_iter().filter(|segment| *segment != self.current) {
            let names = Names::of(segment);
            let places = self.transaction.open_table(names.places());
            let places = places.map_err(|e| fail(e.into()))?;
            let Some(number) = places.get((chain, seq)).map_err(|e| fail(e.into()))? else {
                continue;
            };
            let records = self.transaction.open_table(names.records());
            let records = records.map_err(|e| fail(e.into()))?;
            return Ok(of(records.get(number.value()).map_err(|e| fail(e.into()))?));
        }
        Ok(None)
    }

    fn store(&mut self, at: usize, good: &Good) -> Result<(), ArchiveError> {
        let inner = self.inner;
        let number = self.segment.end;
        let Good { line, link, time, values, .. } = good;
        let facts = &mut self.chains[at];
        facts.head_seq = link.seq;
        facts.head_hash = hex::encode(link.hash);
        facts.head_time.clone_from(&link.time);
        facts.records += 1;
        self.records
            .insert(number, (facts.chain, link.seq, *time, &**line))
            .map_err(|e| inner.failed(e))?;
        self.places.insert((facts.chain, link.seq), number).map_err(|e| inner.failed(e))?;
        for value in values {
            self.index.insert(&key(value, *time, number), ()).map_err(|e| inner.failed(e))?;
        }
        let segment = &mut *self.segment;
        segment.end += 1;
        segment.bytes += line.len() as u64 + RECORD_BYTES + KEY_BYTES * values.len() as u64;
        segment.earliest = segment.earliest.min(*time);
        segment.latest = segment.latest.max(*time);
        self.taken += 1;
        Ok(())
    }

    /// A seal was stored: countersigned when it holds, alarmed when not.
    fn seal(
        &mut self,
        at: usize,
        good: &Good,
        judged: &Result<GoodSeal, String>,
    ) -> Result<Option<Countersignature>, ArchiveError> {
        let link = &good.link;
        let origin = {
            let facts = &self.chains[at];
            Origin { spiffe_id: facts.origin.clone(), node: facts.node.clone() }
        };
        let by = match judged {
            Ok(by) => by,
            Err(why) => {
                let chain = self.chains[at].chain;
                let what = format!("record {} is no good seal: {why}", link.seq);
                self.alarm(&origin, Some(chain), "bad_seal", (link.seq, link.seq), what);
                return Ok(None);
            }
        };
        let encode = |chain: &[CertificateDer<'static>]| {
            use base64::Engine;
            let engine = base64::engine::general_purpose::STANDARD;
            chain.iter().map(|der| engine.encode(der)).collect::<Vec<String>>()
        };
        let (inner, certificates, segment) =
            (self.inner, &mut self.certificates, &mut *self.segment);
        let mut keep = |sha256: &str, texts: &[String]| -> Result<(), ArchiveError> {
            if certificates.get(sha256).map_err(|e| inner.failed(e))?.is_none() {
                let json = inner.json(&texts)?;
                certificates.insert(sha256, &*json).map_err(|e| inner.failed(e))?;
                segment.bytes += (json.len() + sha256.len()) as u64;
            }
            Ok(())
        };
        keep(&by.certificate_sha256, &encode(&by.chain))?;
        self.chains[at].sealed = link.seq;
        let mut signer = self.inner.signer.lock();
        let Some(made) = signer.as_mut().and_then(|signer| signer.sign(&origin.spiffe_id, link))
        else {
            return Ok(None);
        };
        // Our own log: a signature of ours over a seal of ours adds nothing.
        if made.spiffe_id == made.origin {
            return Ok(None);
        }
        keep(&made.certificate_sha256, &made.certificates)?;
        let bare = Countersignature { certificates: Vec::new(), ..made.clone() };
        let json = self.inner.json(&bare)?;
        let mut table =
            self.transaction.open_table(COUNTERSIGNATURES).map_err(|e| inner.failed(e))?;
        table.insert((self.chains[at].chain, link.seq), &*json).map_err(|e| inner.failed(e))?;
        self.segment.bytes += json.len() as u64 + 16;
        self.chains[at].countersigned = link.seq;
        Ok(Some(made))
    }

    fn alarm(
        &mut self,
        origin: &Origin,
        chain: Option<u32>,
        code: &str,
        (seq, to_seq): (u64, u64),
        what: String,
    ) {
        if let Some(facts) = self.chains.iter_mut().find(|facts| Some(facts.chain) == chain) {
            facts.findings += 1;
        }
        self.alarms.push(Alarm {
            time: time_text(self.now),
            origin: origin.spiffe_id.clone(),
            node: origin.node.clone(),
            chain,
            code: code.to_owned(),
            seq,
            to_seq,
            what,
        });
    }
}
