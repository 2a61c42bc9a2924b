//! Questions to the archive: pages of records in the order of time, what is new, and who called whom.
//!
//! Each reads one state of the file beside the writer. How much one question may look at is bounded; a cursor goes on.

use std::collections::{BTreeMap, BinaryHeap};

use redb::{ReadTransaction, ReadableDatabase};
use serde::Serialize;

use super::archive::{Archive, Inner};
use super::error::ArchiveError;
use super::filter::{Filter, is_whole};
use super::tables::{Field, IndexKey, Names, RecordRow, Segment, Value, key, place, value};
use crate::audit::record::{Record, time_text};
use crate::audit::seen::{Outcome, Seen};

/// A record as the archive has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archived {
    /// Its number in the archive: the order in which records came.
    pub number: u64,
    /// Its chain ([`Archive::chains`]).
    pub chain: u32,
    /// Whose log it stood in.
    pub origin: String,
    /// On which node.
    pub node: String,
    /// The line, byte for byte, without its line end.
    pub line: String,
}

/// In which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The newest first.
    #[default]
    Newest,
    /// The oldest first.
    Oldest,
}

/// Where a page ended: time and number of the last record that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    time: u64,
    number: u64,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.time, self.number)
    }
}

impl std::str::FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('-').and_then(|(time, number)| {
            Some(Self { time: time.parse().ok()?, number: number.parse().ok()? })
        });
        parts.ok_or_else(|| format!("cursor: {text:?}; expected what an answer had there"))
    }
}

/// How much one question may cost.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// Records in the answer.
    pub records: usize,
    /// Records that are looked at.
    pub examined: u64,
    /// Bytes of lines in the answer.
    pub bytes: usize,
}

impl Default for Reach {
    fn default() -> Self {
        Self { records: 100, examined: 50_000, bytes: 8 << 20 }
    }
}

/// A part of an answer.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The records.
    pub records: Vec<Archived>,
    /// Where it goes on; none at the end.
    pub cursor: Option<Cursor>,
    /// Records that were looked at.
    pub examined: u64,
}

/// Who called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Callers {
    /// The identity; none for callers without one.
    pub spiffe_id: Option<String>,
    /// Requests that were allowed.
    pub allowed: u64,
    /// Requests that were refused.
    pub denied: u64,
    /// The earliest one: RFC 3339.
    pub first: String,
    /// The latest one.
    pub last: String,
}

/// Who called a service.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WhoDid {
    /// The callers, the latest first.
    pub callers: Vec<Callers>,
    /// Records that were looked at.
    pub examined: u64,
    /// All records of the time were looked at, and all callers are named.
    pub is_complete: bool,
}

/// Callers that one answer names.
const MAX_CALLERS: usize = 10_000;

impl WhoDid {
    /// Counts decisions, from wherever they come.
    pub fn count(decisions: impl Iterator<Item = Seen>) -> Self {
        let mut counting = Counting::default();
        for seen in decisions {
            counting.add(&seen);
        }
        counting.finish(true)
    }
}

#[derive(Default)]
struct Counting {
    callers: BTreeMap<Option<String>, (u64, u64, u64, u64)>,
    examined: u64,
    overflow: bool,
}

impl Counting {
    fn add(&mut self, seen: &Seen) {
        self.examined += 1;
        if self.callers.len() >= MAX_CALLERS && !self.callers.contains_key(&seen.src) {
            self.overflow = true;
            return;
        }
        let (allowed, denied, first, last) =
            self.callers.entry(seen.src.clone()).or_insert((0, 0, u64::MAX, 0));
        match seen.outcome {
            Outcome::Allow => *allowed += seen.count,
            Outcome::Deny => *denied += seen.count,
        }
        *first = (*first).min(seen.time);
        *last = (*last).max(seen.time);
    }

    fn finish(self, is_complete: bool) -> WhoDid {
        let mut rows: Vec<_> = self.callers.into_iter().collect();
        rows.sort_by_key(|(id, (.., last))| (std::cmp::Reverse(*last), id.clone()));
        let callers = rows.into_iter().map(|(spiffe_id, (allowed, denied, first, last))| Callers {
            spiffe_id,
            allowed,
            denied,
            first: time_text(first),
            last: time_text(last),
        });
        WhoDid {
            callers: callers.collect(),
            examined: self.examined,
            is_complete: is_complete && !self.overflow,
        }
    }
}

impl Archive {
    /// A page of the records that fit, in the order of their time. Blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn page(
        &self,
        filter: &Filter,
        order: Order,
        cursor: Option<Cursor>,
        reach: Reach,
    ) -> Result<Page, ArchiveError> {
        let reading = Reading::begin(&self.inner)?;
        let mut page = Page::default();
        let mut bytes = 0;
        let mut walk = reading.walk(filter, order, cursor)?;
        while let Some((at, segment)) = walk.next(&reading)? {
            page.examined += 1;
            if let Some(archived) = reading.fitting(filter, segment, at.number)? {
                bytes += archived.line.len();
                page.records.push(archived);
            }
            let is_full = page.records.len() >= reach.records || bytes >= reach.bytes;
            if is_full || page.examined >= reach.examined {
                page.cursor = Some(at);
                break;
            }
        }
        Ok(page)
    }

    /// The records behind this number that fit, in the order in which they came, and the number to go on from. Blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn behind(
        &self,
        number: u64,
        filter: &Filter,
        reach: Reach,
    ) -> Result<(Vec<Archived>, u64), ArchiveError> {
        let reading = Reading::begin(&self.inner)?;
        let (mut found, mut at, mut bytes, mut examined) = (Vec::new(), number, 0, 0);
        for (segment, facts) in reading.segments.iter().filter(|(_, facts)| facts.end > number + 1)
        {
            for number in facts.first.max(at + 1)..facts.end {
                at = number;
                examined += 1;
                if let Some(archived) = reading.fitting(filter, *segment, number)? {
                    bytes += archived.line.len();
                    found.push(archived);
                }
                if found.len() >= reach.records
                    || bytes >= reach.bytes
                    || examined >= reach.examined
                {
                    return Ok((found, at));
                }
            }
        }
        Ok((found, at))
    }

    /// All decisions that fit, the oldest first, read page by page. Blocks.
    pub fn seen(&self, filter: Filter) -> impl Iterator<Item = Result<Seen, ArchiveError>> + use<> {
        let filter = Filter { kind: Some("decision".into()), ..filter };
        let archive = self.clone();
        let mut next = Some(None);
        let pages = std::iter::from_fn(move || {
            let cursor = next.take()?;
            let reach = Reach { records: 1000, ..Reach::default() };
            match archive.page(&filter, Order::Oldest, cursor, reach) {
                Ok(page) => {
                    next = page.cursor.map(Some);
                    let seen = page.records.into_iter();
                    let seen = seen.filter_map(|archived| Seen::parse(&archived.line)).map(Ok);
                    Some(seen.collect::<Vec<_>>())
                }
                Err(error) => Some(vec![Err(error)]),
            }
        });
        pages.flatten()
    }

    /// Which identities called whom the filter names, looking at no more than so many records. Blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn who_did(&self, filter: &Filter, examined: u64) -> Result<WhoDid, ArchiveError> {
        let filter = Filter { kind: Some("decision".into()), ..filter.clone() };
        let reading = Reading::begin(&self.inner)?;
        let mut counting = Counting::default();
        let mut walk = reading.walk(&filter, Order::Newest, None)?;
        let mut looked = 0;
        while let Some((at, segment)) = walk.next(&reading)? {
            if looked >= examined {
                return Ok(counting.finish(false));
            }
            looked += 1;
            if let Some(archived) = reading.fitting(&filter, segment, at.number)?
                && let Some(seen) = Seen::parse(&archived.line)
            {
                counting.add(&seen);
            }
        }
        let mut answer = counting.finish(true);
        answer.examined = looked;
        Ok(answer)
    }
}

/// One state of the file.
pub(super) struct Reading<'a> {
    pub(super) inner: &'a Inner,
    pub(super) transaction: ReadTransaction,
    pub(super) segments: BTreeMap<u32, Segment>,
    records: parking_lot::Mutex<BTreeMap<u32, redb::ReadOnlyTable<u64, RecordRow<'static>>>>,
}

impl<'a> Reading<'a> {
    pub(super) fn begin(inner: &'a Inner) -> Result<Self, ArchiveError> {
        let transaction = inner.database.begin_read().map_err(|e| inner.failed(e))?;
        // What the transaction sees, and not what another commit has changed meanwhile.
        let table = transaction.open_table(super::tables::SEGMENTS);
        let table = table.map_err(|e| inner.failed(e))?;
        let mut segments = BTreeMap::new();
        for row in redb::ReadableTable::iter(&table).map_err(|e| inner.failed(e))? {
            let (segment, row) = row.map_err(|e| inner.failed(e))?;
            segments.insert(segment.value(), Segment::of(row.value()));
        }
        Ok(Self { inner, transaction, segments, records: parking_lot::Mutex::default() })
    }

    /// One record: chain, number in it, line.
    pub(super) fn record(
        &self,
        segment: u32,
        number: u64,
    ) -> Result<Option<(u32, u64, String)>, ArchiveError> {
        let inner = self.inner;
        let mut tables = self.records.lock();
        let table = match tables.entry(segment) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(free) => {
                let table = self.transaction.open_table(Names::of(segment).records());
                free.insert(table.map_err(|e| inner.failed(e))?)
            }
        };
        let row = table.get(number).map_err(|e| inner.failed(e))?;
        Ok(row.map(|row| {
            let (chain, seq, _, line) = row.value();
            (chain, seq, String::from_utf8_lossy(line).into_owned())
        }))
    }

    fn fitting(
        &self,
        filter: &Filter,
        segment: u32,
        number: u64,
    ) -> Result<Option<Archived>, ArchiveError> {
        let Some((chain, _, line)) = self.record(segment, number)? else { return Ok(None) };
        let record = Record::parse(&line);
        let (origin, node) = {
            let state = self.inner.state.lock();
            let facts = state.chains.get(&chain);
            facts.map_or_else(Default::default, |facts| (facts.origin.clone(), facts.node.clone()))
        };
        let fits = match &record {
            Some(record) => filter.takes(Some((&origin, &node)), record),
            // What this version cannot read is shown to whoever asks for everything.
            None => *filter == Filter::default(),
        };
        Ok(fits.then_some(Archived { number, chain, origin, node, line }))
    }

    fn walk(
        &self,
        filter: &Filter,
        order: Order,
        cursor: Option<Cursor>,
    ) -> Result<Walk, ArchiveError> {
        let inner = self.inner;
        let value = best(filter);
        let (from, to) = (filter.from.unwrap_or(0), filter.to.unwrap_or(u64::MAX));
        let mut walk = Walk { order, ranges: BTreeMap::new(), heads: BinaryHeap::new() };
        if from >= to {
            return Ok(walk);
        }
        let (mut low, mut high) = (key(&value, from, 0), key(&value, to, 0));
        if filter.to.is_none() {
            high = key(&value, u64::MAX, u64::MAX);
        }
        if let Some(Cursor { time, number }) = cursor {
            match order {
                Order::Newest => high = high.min(key(&value, time, number)),
                Order::Oldest => low = low.max(key(&value, time, number.saturating_add(1))),
            }
        }
        if low >= high {
            return Ok(walk);
        }
        for (number, segment) in &self.segments {
            if segment.latest < from || segment.earliest >= to {
                continue;
            }
            let table = self.transaction.open_table(Names::of(*number).index());
            let table = table.map_err(|e| inner.failed(e))?;
            let range = table.range::<&IndexKey>(&low..&high).map_err(|e| inner.failed(e))?;
            walk.ranges.insert(*number, range);
            walk.advance(*number, self)?;
        }
        Ok(walk)
    }
}

/// The keys of one value over all segments, in the order of time.
struct Walk {
    order: Order,
    ranges: BTreeMap<u32, redb::Range<'static, &'static IndexKey, ()>>,
    /// The next of each segment; the first in the order of the walk is the greatest.
    heads: BinaryHeap<(i128, i128, u32)>,
}

impl Walk {
    fn advance(&mut self, segment: u32, reading: &Reading<'_>) -> Result<(), ArchiveError> {
        let Some(range) = self.ranges.get_mut(&segment) else { return Ok(()) };
        let next = match self.order {
            Order::Newest => range.next_back(),
            Order::Oldest => range.next(),
        };
        let Some(next) = next else { return Ok(()) };
        let (key, _) = next.map_err(|e| reading.inner.failed(e))?;
        let (time, number) = place(key.value());
        let sign = if self.order == Order::Newest { 1 } else { -1 };
        self.heads.push((sign * i128::from(time), sign * i128::from(number), segment));
        Ok(())
    }

    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<(Cursor, u32)>, ArchiveError> {
        let Some((time, number, segment)) = self.heads.pop() else { return Ok(None) };
        self.advance(segment, reading)?;
        let plain = |number: i128| u64::try_from(number.abs()).unwrap_or_default();
        Ok(Some((Cursor { time: plain(time), number: plain(number) }, segment)))
    }
}

/// The value by whose keys the filter's records are found with the fewest looks.
fn best(filter: &Filter) -> Value {
    let whole = |id: &Option<String>| id.clone().filter(|id| is_whole(id));
    let kind = filter.kind.clone().filter(|kind| kind != "decision");
    let denied = (filter.outcome == Some(Outcome::Deny)).then(String::new);
    let all = [
        (Field::Denial, filter.denial.clone()),
        (Field::Kind, kind),
        (Field::Src, whole(&filter.src)),
        (Field::Reason, filter.reason.clone()),
        (Field::Route, filter.route.clone()),
        (Field::Dst, whole(&filter.dst)),
        (Field::Denied, denied),
        (Field::Origin, whole(&filter.origin)),
    ];
    let found = all.into_iter().find_map(|(field, text)| Some((field, text?)));
    found.map_or_else(|| value(Field::Time, ""), |(field, text)| value(field, &text))
}
