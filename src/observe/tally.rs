//! `Tally`: decisions that are the same but for their time are counted, and told in one record when their window ends.
//!
//! Each lane has its own, under the lane's lock. Counting one more is a look-up by a key that is written into memory that is
//! there already: no allocation, no formatting. The first of its kind in a window has a record of its own at once.

use std::collections::HashMap;

use super::decision::DecisionRecord;
use super::denial::DenialId;
use super::json::Fields;
use super::lane::{Frame, push_frame};
use super::record::Type;
use super::redact::Redaction;
use super::settings::Allows;

/// How decisions are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counting {
    /// What becomes of allowed ones.
    pub(super) allows: Allows,
    /// How long they are counted before a record tells of them, in milliseconds.
    pub(super) window: u64,
    /// So many refusals of a kind have a record of their own, in a minute.
    pub(super) single_denies: u32,
    /// So many kinds are told apart, of what is allowed and of what is refused.
    pub(super) kinds: usize,
}

/// How long a number of single refusals holds, in milliseconds.
const MINUTE: u64 = 60_000;

/// What is to be done with a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It has a record of its own.
    Single,
    /// It is counted, or nobody wants to know.
    Counted,
}

/// Decisions of one kind.
#[derive(Debug, Default)]
struct Kind {
    /// What the record of all of them says.
    shared: Vec<u8>,
    /// A window is open until then.
    until: Option<u64>,
    count: u64,
    first: u64,
    last: u64,
    /// Refusals with a record of their own, in the minute that ends then.
    singles: u32,
    minute: u64,
    denial: Option<DenialId>,
    /// When it was met the last time.
    met: u64,
}

/// The decisions of one lane that are counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    kinds: [HashMap<Box<[u8]>, Kind, foldhash::fast::RandomState>; 2],
    /// Where a key is written.
    key: Vec<u8>,
    /// When the next window ends.
    due: Option<u64>,
    /// There was no place for another kind.
    crowded: bool,
}

impl Tally {
    /// Counts a decision, or says that it has a record of its own.
    pub(super) fn note(
        &mut self,
        record: &DecisionRecord<'_>,
        now: u64,
        counting: &Counting,
        redaction: &Redaction,
    ) -> Noted {
        if record.must_stand {
            return Noted::Single;
        }
        let is_plain = record.allowed && record.would_be.is_none() && record.mode == "enforce";
        match counting.allows {
            Allows::Each if record.allowed => return Noted::Single,
            Allows::None if is_plain => return Noted::Counted,
            Allows::Each | Allows::None | Allows::Aggregated => {}
        }
        let kinds = &mut self.kinds[usize::from(record.allowed)];
        record.write_key(true, &mut self.key);
        if let Some(kind) = kinds.get_mut(&*self.key) {
            return kind.meet(record, now, counting, &mut self.due);
        }
        // Where half of the room is taken, paths are told apart no longer: who asks for many must not push out who asks for few.
        let shaped = kinds.len() < counting.kinds / 2;
        if !shaped {
            record.write_key(false, &mut self.key);
            if let Some(kind) = kinds.get_mut(&*self.key) {
                return kind.meet(record, now, counting, &mut self.due);
            }
            if kinds.len() >= counting.kinds {
                self.crowded = true;
                be_due(&mut self.due, now);
                return Noted::Single;
            }
        }
        let mut shared = Vec::with_capacity(512);
        record.write_shared(shaped, &mut Fields::first(&mut shared), redaction);
        let mut kind = Kind { shared, ..Kind::default() };
        let noted = kind.meet(record, now, counting, &mut self.due);
        kinds.insert(self.key.as_slice().into(), kind);
        noted
    }

    /// When there is something to do next.
    pub(super) const fn due(&self) -> Option<u64> {
        self.due
    }

    /// Is anything counted that no record tells of?
    pub(super) fn is_empty(&self) -> bool {
        self.kinds.iter().all(|kinds| kinds.values().all(|kind| kind.count == 0))
    }

    /// Ends windows whose time is over, or all of them, and appends a record of each that has counted something.
    pub(super) fn end_windows(&mut self, now: u64, all: bool, out: &mut Vec<u8>) {
        if !all && self.due.is_none_or(|due| now < due) {
            return;
        }
        self.due = None;
        let mut body = Vec::new();
        for kinds in &mut self.kinds {
            for kind in kinds.values_mut() {
                match kind.until {
                    Some(until) if all || until <= now => {
                        kind.until = None;
                        if kind.count > 0 {
                            kind.write(&mut body);
                            let frame = Frame {
                                kind: Type::Decision as u8,
                                unix_millis: kind.last,
                                body: &body,
                            };
                            push_frame(out, &frame);
                            kind.count = 0;
                        }
                    }
                    Some(until) => be_due(&mut self.due, until),
                    None => {}
                }
            }
            // A kind that is met again soon finds its place; one that nobody meets gives it up.
            let crowded = self.crowded;
            kinds.retain(|_, kind| {
                kind.until.is_some()
                    || (now < kind.minute && kind.singles > 1)
                    || (!crowded && now < kind.met.saturating_add(MINUTE))
            });
        }
        self.crowded = false;
    }
}

/// Something is to be done at that time, if not before.
fn be_due(due: &mut Option<u64>, at: u64) {
    *due = Some(due.map_or(at, |due| due.min(at)));
}

impl Kind {
    /// One more of them.
    fn meet(
        &mut self,
        record: &DecisionRecord<'_>,
        now: u64,
        counting: &Counting,
        due: &mut Option<u64>,
    ) -> Noted {
        self.met = now;
        if record.allowed {
            if self.until.is_none() {
                let until = now + counting.window;
                self.until = Some(until);
                be_due(due, until);
                return Noted::Single;
            }
        } else {
            if now >= self.minute {
                (self.singles, self.minute) = (0, now + MINUTE);
            }
            self.singles = self.singles.saturating_add(1);
            if self.singles <= counting.single_denies {
                return Noted::Single;
            }
        }
        if self.count == 0 {
            self.first = now;
            be_due(due, *self.until.get_or_insert(now + counting.window));
        }
        self.count += 1;
        self.last = now;
        self.denial = record.denial_id;
        Noted::Counted
    }

    fn write(&self, body: &mut Vec<u8>) {
        body.clear();
        let mut fields = Fields::first(body);
        fields.raw(&self.shared);
        if let Some(denial) = &self.denial {
            fields.text("denial_id", denial.as_str());
        }
        fields.flag("aggregated", true);
        fields.number("count", self.count);
        fields.time("first", self.first);
        fields.time("last", self.last);
    }
}

#[cfg(test)]
mod tests {
    use super::super::decision::WouldBe;
    use super::super::ends::{Ends, EndsFacts};
    use super::super::lane::frames;
    use super::*;

    const COUNTING: Counting =
        Counting { allows: Allows::Aggregated, window: 10_000, single_denies: 3, kinds: 8 };

    fn ends(conn_id: u64, port: u16) -> Ends {
        let facts = EndsFacts {
            src_spiffe_id: Some("spiffe://shop/web"),
            ..EndsFacts::of(conn_id, ([10, 0, 0, 1], port).into(), 15006)
        };
        Ends::new(&facts, &Redaction::KEEP)
    }

    fn told(tally: &mut Tally, now: u64, all: bool) -> Vec<serde_json::Value> {
        let mut out = Vec::new();
        tally.end_windows(now, all, &mut out);
        let parse = |frame: Frame<'_>| {
            let text = [b"{", frame.body, b"}"].concat();
            serde_json::from_slice(&text).unwrap()
        };
        frames(&out).map(parse).collect()
    }

    fn note(tally: &mut Tally, record: &DecisionRecord<'_>, now: u64) -> Noted {
        tally.note(record, now, &COUNTING, &Redaction::KEEP)
    }

    #[test]
    fn the_first_of_a_window_has_its_record_and_the_rest_are_one() {
        let mut tally = Tally::default();
        let (one, other) = (ends(1, 1000), ends(2, 2000));
        let get = |ends, path| DecisionRecord {
            method: b"GET",
            path,
            rule: Some("read"),
            ..DecisionRecord::of(ends, true)
        };
        assert_eq!(note(&mut tally, &get(&one, b"/i/1"), 1_000), Noted::Single);
        assert_eq!(note(&mut tally, &get(&one, b"/i/2"), 2_000), Noted::Counted);
        // Another connection of the same caller, and another one of the same things.
        assert_eq!(note(&mut tally, &get(&other, b"/i/3"), 3_000), Noted::Counted);
        assert_eq!(note(&mut tally, &get(&other, b"/other"), 3_000), Noted::Single);
        let put = DecisionRecord { method: b"PUT", ..get(&one, b"/i/1") };
        assert_eq!(note(&mut tally, &put, 3_000), Noted::Single);
        let must = DecisionRecord { must_stand: true, ..get(&one, b"/i/1") };
        assert_eq!(note(&mut tally, &must, 3_000), Noted::Single);

        assert_eq!(tally.due(), Some(11_000));
        assert!(told(&mut tally, 10_999, false).is_empty());
        let records = told(&mut tally, 11_000, false);
        let [record] = &records[..] else { panic!("{records:#?}") };
        assert_eq!(record["count"], 2);
        assert_eq!(record["template"], "/i/{id}");
        assert_eq!(
            (&record["first"], &record["last"]),
            (&"1970-01-01T00:00:02.000Z".into(), &"1970-01-01T00:00:03.000Z".into())
        );
        assert_eq!(record["src"]["addr"], "10.0.0.1");
        assert_eq!((record.get("conn_id"), &record["path"]), (None, &"/i/1".into()));
        assert!(tally.is_empty());
        // The next one begins a window anew.
        assert_eq!(note(&mut tally, &get(&one, b"/i/4"), 12_000), Noted::Single);
        assert_eq!(note(&mut tally, &get(&one, b"/i/5"), 12_001), Noted::Counted);
        assert_eq!(told(&mut tally, 12_002, true)[0]["count"], 1);
    }

    #[test]
    fn where_nobody_wants_to_know_what_is_allowed_the_rest_stands_all_the_same() {
        let counting = Counting { allows: Allows::None, ..COUNTING };
        let ends = ends(1, 1000);
        let allow = DecisionRecord { method: b"GET", ..DecisionRecord::of(&ends, true) };
        let would_be = WouldBe { allowed: false, reason: None, rule: Some(("p", "r")) };
        for (record, expected) in [
            (allow, Noted::Counted),
            (DecisionRecord { must_stand: true, ..allow }, Noted::Single),
            (DecisionRecord { would_be: Some(would_be), ..allow }, Noted::Single),
            (DecisionRecord { mode: "permissive", ..allow }, Noted::Single),
            (DecisionRecord { allowed: false, ..allow }, Noted::Single),
        ] {
            let mut tally = Tally::default();
            assert_eq!(tally.note(&record, 1, &counting, &Redaction::KEEP), expected, "{record:?}");
            assert_eq!(told(&mut tally, 2, true).len(), 0);
        }
    }

    #[test]
    fn refusals_are_counted_only_beyond_their_number_in_a_minute_and_none_is_lost() {
        let mut tally = Tally::default();
        let ends = ends(1, 1000);
        let denial = DenialId::new();
        let deny = DecisionRecord {
            reason: Some("no_rule"),
            denial_id: Some(denial),
            ..DecisionRecord::of(&ends, false)
        };
        let noted: Vec<Noted> = (0..5).map(|at| note(&mut tally, &deny, at)).collect();
        use Noted::{Counted, Single};
        assert_eq!(noted, [Single, Single, Single, Counted, Counted]);
        let records = told(&mut tally, 20_000, false);
        assert_eq!(
            (&records[0]["count"], &records[0]["denial_id"]),
            (&2.into(), &denial.as_str().into())
        );
        assert_eq!(note(&mut tally, &deny, 30_000), Counted, "the minute is not over");
        assert_eq!(note(&mut tally, &deny, 61_000), Single);
        assert_eq!(told(&mut tally, 61_000, false)[0]["count"], 1);
    }

    #[test]
    fn kinds_beyond_the_room_are_written_singly_and_who_asks_for_many_paths_is_one_kind() {
        let mut tally = Tally::default();
        let ends = ends(1, 1000);
        let ask = |tally: &mut Tally, host: &str, path: &str| {
            let record = DecisionRecord {
                method: b"GET",
                host: host.as_bytes(),
                path: path.as_bytes(),
                ..DecisionRecord::of(&ends, true)
            };
            note(tally, &record, 1)
        };
        let asked = |tally: &mut Tally, from: u8, to: u8| {
            let paths = (from..to).map(|at| format!("/{}", char::from(b'a' + at)));
            paths.map(|path| ask(tally, "a", &path)).filter(|it| *it == Noted::Single).count()
        };
        // Four paths have their place, the fifth stands for all others.
        assert_eq!(asked(&mut tally, 0, 20), 5);
        assert_eq!(ask(&mut tally, "a", "/a"), Noted::Counted, "what has a place keeps it");
        let singles = (0..20).map(|at| ask(&mut tally, &format!("h{at}"), "/"));
        assert_eq!(singles.filter(|it| *it == Noted::Single).count(), 20);
        assert_eq!(ask(&mut tally, "h0", "/"), Noted::Counted);
        assert_eq!(ask(&mut tally, "h19", "/"), Noted::Single, "there is no room");
        assert_eq!(
            told(&mut tally, 20_000, false)
                .iter()
                .map(|it| it["count"].as_u64().unwrap())
                .sum::<u64>(),
            17
        );
    }
}
