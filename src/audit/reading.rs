//! `LogReader`: the records of a log in order, from file to file, never half a line.
//!
//! The writer puts a full file aside under another name and begins the next; it puts a damaged one aside and goes on behind the
//! last record that holds; somebody may take files away. So a place is told by the first record of its file and an offset, and a
//! file that is open here is known by its inode.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::cursor::Cursor;
use super::destination::Line;
use super::selection::Selection;
use crate::observe::{LineFacts, log_files, read_line};

/// Bytes that one read asks for.
const CHUNK: usize = 128 << 10;
/// Longer lines are none of ours.
const MAX_LINE: usize = 16 << 20;
/// Bytes that are looked at for one portion, when few of the records in them are wanted.
const MAX_LOOKED_AT: usize = 8 << 20;
/// How much of a file's end is searched for its last record.
const TAIL: u64 = 256 << 10;

/// How much one portion may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

/// Some records, and what was met on the way to them.
#[derive(Debug, Default)]
pub(super) struct Portion {
    pub(super) records: Vec<Line>,
    /// The place behind each of them.
    pub(super) places: Vec<Cursor>,
    /// When the first of them happened, RFC 3339.
    pub(super) first_time: Option<String>,
    /// The place behind all that was read, wanted or not.
    pub(super) end: Option<Cursor>,
    /// There may be more at once.
    pub(super) is_full: bool,
    /// Records that are not there any more: their file is gone, or their lines are.
    pub(super) missing: u64,
    /// Lines that are not what was written.
    pub(super) damaged: u64,
    /// Another log than the one that was followed before.
    pub(super) is_another_log: bool,
}

/// Where a log is read.
pub(super) struct LogReader {
    log: PathBuf,
    /// What was read last.
    last: Option<Cursor>,
    open: Option<OpenFile>,
    /// Records up to this number were handed over before, though the place is not known.
    skip_to: u64,
    /// Begin behind what is there.
    from_now: bool,
    is_another_log: bool,
}

struct OpenFile {
    file: File,
    inode: (u64, u64),
    /// The hash of its first record, as soon as that was read.
    first: Option<String>,
    /// Where `rest` begins in the file.
    offset: u64,
    /// What was read and not handed out: the part from `used` on.
    rest: Vec<u8>,
    used: usize,
    /// Up to where `rest` was searched for a line's end.
    searched: usize,
}

impl OpenFile {
    fn at(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let found = file.metadata()?;
        Ok(Self {
            file,
            inode: (found.dev(), found.ino()),
            first: None,
            offset: 0,
            rest: Vec::new(),
            used: 0,
            searched: 0,
        })
    }

    fn go_to(&mut self, offset: u64, first: &str) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        (self.offset, self.first) = (offset, Some(first.to_owned()));
        Ok(())
    }

    /// Reads on; how many bytes that were.
    fn fill(&mut self) -> io::Result<usize> {
        self.rest.drain(..self.used);
        self.offset += self.used as u64;
        self.searched -= self.used;
        self.used = 0;
        let chunk = u64::try_from(CHUNK).unwrap_or(u64::MAX);
        (&mut self.file).take(chunk).read_to_end(&mut self.rest)
    }

    /// The next line without its end, if a whole one was read.
    fn line(&mut self) -> Option<std::ops::Range<usize>> {
        let found = memchr::memchr(b'\n', &self.rest[self.searched..]);
        let Some(end) = found.map(|at| self.searched + at) else {
            self.searched = self.rest.len();
            return None;
        };
        let line = self.used..end;
        (self.used, self.searched) = (end + 1, end + 1);
        Some(line)
    }

    /// Where the next line begins.
    fn place(&self) -> u64 {
        self.offset + self.used as u64
    }
}

impl LogReader {
    /// Reads behind `cursor`; without one from the oldest record on, or `from_now` on.
    pub(super) fn new(log: &Path, cursor: Option<Cursor>, from_now: bool) -> Self {
        let from_now = from_now && cursor.is_none();
        let log = log.to_owned();
        Self { log, last: cursor, open: None, skip_to: 0, from_now, is_another_log: false }
    }

    /// The next records that are wanted. Empty, and not full: there are none yet. Blocks the thread.
    pub(super) fn read(&mut self, limits: Limits, wanted: &Selection) -> io::Result<Portion> {
        let mut portion = Portion::default();
        if self.open.is_none() && !self.locate()? {
            return Ok(portion);
        }
        portion.is_another_log = std::mem::take(&mut self.is_another_log);
        let mut room = Room { limits, bytes: 0, looked_at: 0, damaged: 0 };
        while !portion.is_full {
            self.take_lines(&mut portion, &mut room, wanted);
            let Some(open) = &mut self.open else { break };
            if portion.is_full || open.fill()? > 0 {
                continue;
            }
            if !self.is_over()? {
                break;
            }
            // What was written between that read and the end of the file.
            let Some(open) = &mut self.open else { break };
            if open.fill()? > 0 {
                continue;
            }
            let is_torn = open.used < open.rest.len();
            if !self.go_on_in_the_next_file()? {
                break;
            }
            portion.damaged += u64::from(is_torn);
        }
        portion.end = self.last.clone();
        Ok(portion)
    }

    fn take_lines(&mut self, portion: &mut Portion, room: &mut Room, wanted: &Selection) {
        let Some(open) = &mut self.open else { return };
        while let Some(range) = open.line() {
            let (start, length) = (range.start, range.len());
            let Some((facts, text)) = judged(&open.rest[range]) else {
                (portion.damaged, room.damaged) = (portion.damaged + 1, room.damaged + 1);
                continue;
            };
            let first = open.first.get_or_insert_with(|| facts.hash.clone());
            if facts.seq <= self.skip_to {
                continue;
            }
            let is_wanted = wanted.admits(&facts);
            if is_wanted && room.is_too_small_for(length, portion) {
                // It is the first of the next portion.
                (open.used, open.searched) = (start, start);
                portion.is_full = true;
                return;
            }
            self.skip_to = 0;
            if let Some(last) = &self.last {
                let gap = facts.seq.saturating_sub(last.seq + 1);
                portion.missing += gap.saturating_sub(std::mem::take(&mut room.damaged));
            }
            let place = Cursor {
                file: first.clone(),
                offset: open.offset + (start + length + 1) as u64,
                seq: facts.seq,
                hash: facts.hash,
            };
            if is_wanted {
                room.bytes += length;
                portion.first_time.get_or_insert(facts.time);
                portion.records.push(Line { seq: facts.seq, text: text.into() });
                portion.places.push(place.clone());
            }
            self.last = Some(place);
            room.looked_at += length;
            if room.looked_at >= MAX_LOOKED_AT {
                portion.is_full = true;
                return;
            }
        }
        if open.rest.len() - open.used > MAX_LINE {
            portion.damaged += 1;
            (open.used, open.searched) = (open.rest.len(), open.rest.len());
        }
    }

    /// Does the writer write elsewhere now?
    fn is_over(&mut self) -> io::Result<bool> {
        let Some(open) = &mut self.open else { return Ok(false) };
        let there = match std::fs::metadata(&self.log) {
            Ok(there) => there,
            // It was moved away; the writer begins another one soon, and may still write into this one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if (there.dev(), there.ino()) != open.inode {
            return Ok(true);
        }
        if there.len() < open.place() {
            tracing::warn!(file = %self.log.display(), "the decision log was cut off; it is read from its beginning");
            *open = OpenFile::at(&self.log)?;
        }
        Ok(false)
    }

    fn go_on_in_the_next_file(&mut self) -> io::Result<bool> {
        // The log may be put aside between the look at the folder and the opening.
        for _ in 0..5 {
            let files = self.files();
            let own = self.open.as_ref().map(|open| open.inode);
            let at = files.iter().position(|(_, inode)| Some(*inode) == own);
            let next = match at {
                Some(at) => files.get(at + 1),
                None => self.first_behind(&files)?,
            };
            let Some((path, inode)) = next else { return Ok(false) };
            match OpenFile::at(path) {
                Ok(opened) if opened.inode == *inode => {
                    self.open = Some(opened);
                    return Ok(true);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// The first of these files that begins behind what was read last: for when its own file is not there any more.
    fn first_behind<'f>(&self, files: &'f [Found]) -> io::Result<Option<&'f Found>> {
        let last = self.last.as_ref().map_or(0, |last| last.seq);
        for found in files {
            let first = first_of(&OpenFile::at(&found.0)?.file)?;
            if first.is_some_and(|first| first.seq > last) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The files of the log that are there, oldest first, with their inodes.
    fn files(&self) -> Vec<Found> {
        let found = |path: PathBuf| {
            let there = std::fs::metadata(&path).ok()?;
            Some((path, (there.dev(), there.ino())))
        };
        log_files(&self.log).into_iter().filter_map(found).collect()
    }

    /// Opens the file to begin in. `false` when there is none yet.
    fn locate(&mut self) -> io::Result<bool> {
        let mut files = Vec::new();
        for (path, _) in self.files() {
            let open = OpenFile::at(&path)?;
            let first = first_of(&open.file)?;
            files.push((open, first));
        }
        if files.is_empty() {
            return Ok(false);
        }
        self.open = match &self.last {
            None if self.from_now => {
                files.pop().map(|(open, first)| self.behind_the_end(open, first)).transpose()?
            }
            None => Some(files.swap_remove(0).0),
            Some(last) => Some(self.resume(&last.clone(), files)?),
        };
        Ok(self.open.is_some())
    }

    fn behind_the_end(
        &mut self,
        mut open: OpenFile,
        first: Option<LineFacts>,
    ) -> io::Result<OpenFile> {
        self.from_now = false;
        if let (Some(first), Some((last, offset))) = (first, last_of(&open.file)?) {
            open.go_to(offset, &first.hash)?;
            self.last = Some(Cursor { file: first.hash, offset, seq: last.seq, hash: last.hash });
        }
        Ok(open)
    }

    /// Goes on behind a place, as well as what is there allows it.
    fn resume(
        &mut self,
        last: &Cursor,
        mut files: Vec<(OpenFile, Option<LineFacts>)>,
    ) -> io::Result<OpenFile> {
        let is_its_own =
            |first: &Option<LineFacts>| first.as_ref().is_some_and(|first| first.hash == last.file);
        if let Some(at) = files.iter().rposition(|(_, first)| is_its_own(first)) {
            let mut open = files.swap_remove(at).0;
            if ends_with(&open.file, last.offset, &last.hash)? {
                open.go_to(last.offset, &last.file)?;
            } else {
                tracing::warn!(
                    seq = last.seq,
                    "the decision log's file is not what it was; it is searched for what comes behind the last record"
                );
                self.skip_to = last.seq;
            }
            return Ok(open);
        }
        let begins_before =
            |first: &Option<LineFacts>| first.as_ref().is_some_and(|first| first.seq <= last.seq);
        let Some(at) = files.iter().rposition(|(_, first)| begins_before(first)) else {
            // All that is there comes later; what is missing is told by the numbers.
            return Ok(files.swap_remove(0).0);
        };
        let (candidate, first) = &files[at];
        let first = first.as_ref().map(|first| first.hash.clone()).unwrap_or_default();
        let (found, newest) = search(&candidate.file, &last.hash)?;
        if let Some(offset) = found {
            let mut open = files.swap_remove(at).0;
            open.go_to(offset, &first)?;
            return Ok(open);
        }
        if newest < last.seq && at + 1 < files.len() {
            return Ok(files.swap_remove(at + 1).0);
        }
        (self.last, self.is_another_log) = (None, true);
        Ok(files.swap_remove(0).0)
    }
}

/// A file of the log, and its inode.
type Found = (PathBuf, (u64, u64));

/// What a portion has used of its limits.
struct Room {
    limits: Limits,
    bytes: usize,
    looked_at: usize,
    /// Damaged lines since the last good one.
    damaged: u64,
}

impl Room {
    fn is_too_small_for(&self, length: usize, portion: &Portion) -> bool {
        let count = portion.records.len();
        count >= self.limits.records || (count > 0 && self.bytes + length > self.limits.bytes)
    }
}

/// A line, if it is what was written.
fn judged(line: &[u8]) -> Option<(LineFacts, &str)> {
    let facts = read_line(line).ok().filter(|facts| facts.holds)?;
    Some((facts, std::str::from_utf8(line).ok()?))
}

/// What the first line says, if it is a whole record.
fn first_of(file: &File) -> io::Result<Option<LineFacts>> {
    let mut text = Vec::new();
    loop {
        let from = text.len();
        text.resize(from + 4096, 0);
        let read = file.read_at(&mut text[from..], from as u64)?;
        text.truncate(from + read);
        if let Some(end) = memchr::memchr(b'\n', &text[from..]) {
            return Ok(judged(&text[..from + end]).map(|(facts, _)| facts));
        }
        if read == 0 || text.len() > MAX_LINE {
            return Ok(None);
        }
    }
}

/// What the last whole line says, and where it ends.
fn last_of(file: &File) -> io::Result<Option<(LineFacts, u64)>> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL);
    let mut text = vec![0; usize::try_from(length - start).unwrap_or_default()];
    let read = read_full_at(file, &mut text, start)?;
    text.truncate(read);
    let Some(end) = memchr::memrchr(b'\n', &text) else { return Ok(None) };
    let from = memchr::memrchr(b'\n', &text[..end]).map_or(0, |at| at + 1);
    let facts = judged(&text[from..end]).map(|(facts, _)| facts);
    Ok(facts.map(|facts| (facts, start + end as u64 + 1)))
}

/// The newest record of a log that was written whole.
pub(super) fn newest(log: &Path) -> io::Result<Option<u64>> {
    match File::open(log) {
        Ok(file) => Ok(last_of(&file)?.map(|(facts, _)| facts.seq)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Does the record with this hash end at `offset`?
fn ends_with(file: &File, offset: u64, hash: &str) -> io::Result<bool> {
    let expected = format!("\"hash\":\"{hash}\"}}\n");
    let Some(from) = offset.checked_sub(expected.len() as u64) else { return Ok(false) };
    let mut found = vec![0; expected.len()];
    let read = read_full_at(file, &mut found, from)?;
    Ok(found[..read] == *expected.as_bytes())
}

/// Where the record with this hash ends, if the file has it; and the number of the last record that was looked at.
fn search(file: &File, hash: &str) -> io::Result<(Option<u64>, u64)> {
    let expected = format!("\"hash\":\"{hash}\"}}\n");
    let finder = memchr::memmem::Finder::new(&expected);
    let mut text: Vec<u8> = Vec::new();
    let mut at = 0;
    loop {
        let from = text.len();
        text.resize(from + CHUNK, 0);
        let read = read_full_at(file, &mut text[from..], at + from as u64)?;
        text.truncate(from + read);
        if let Some(found) = finder.find(&text) {
            return Ok((Some(at + (found + expected.len()) as u64), 0));
        }
        if read == 0 {
            let newest = last_of(file)?.map_or(0, |(facts, _)| facts.seq);
            return Ok((None, newest));
        }
        // The end may be the beginning of what is looked for.
        let done = text.len().saturating_sub(expected.len());
        text.drain(..done);
        at += done as u64;
    }
}

fn read_full_at(file: &File, into: &mut [u8], from: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], from + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
