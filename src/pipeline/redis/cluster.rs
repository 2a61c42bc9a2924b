//! `Cluster`: servers that share the keys among them, and who has which.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::answer::Answer;
use super::error::Error;
use super::server::{Access, Server};

type Place = (String, u16);

/// A cluster, known by some of its nodes.
#[derive(Debug)]
pub struct Cluster {
    seeds: Vec<Place>,
    access: Access,
    known: Mutex<Known>,
}

/// What is known of the cluster by now.
#[derive(Debug, Default)]
struct Known {
    servers: HashMap<Place, Arc<Server>>,
    /// The last slot of each range, in rising order, and who has it.
    ranges: Vec<(u16, u16, Place)>,
}

/// How often a question is sent on before something is wrong.
const MAX_HOPS: usize = 5;
/// A cluster that moves for ever must not fill memory.
const MAX_SERVERS: usize = 1024;

impl Cluster {
    /// The cluster to which these nodes belong. Nothing is connected yet.
    pub fn new(seeds: Vec<Place>, access: Access) -> Self {
        Self { seeds, access, known: Mutex::default() }
    }

    /// Asks the node that has the key.
    pub(super) async fn ask(&self, key: &[u8], parts: &[&[u8]]) -> Result<Answer, Error> {
        let slot = slot_of(key);
        let mut place = match self.place_of(slot) {
            Some(place) => place,
            None => {
                self.learn().await?;
                let unknown = || Error::Nobody(format!("no node has slot {slot}"));
                self.place_of(slot).ok_or_else(unknown)?
            }
        };
        let mut asking = false;
        for _ in 0..MAX_HOPS {
            let first: Option<&[&[u8]]> = asking.then_some(&[b"ASKING"]);
            match self.server(&place).ask_first(first, parts).await {
                Err(why) if matches!(why.kind(), "MOVED" | "ASK") => {
                    asking = why.kind() == "ASK";
                    let Some(to) = moved_to(&why, &place) else { return Err(why) };
                    if !asking {
                        self.note(slot, &to);
                    }
                    place = to;
                }
                Err(why) => {
                    if why.is_elsewhere() {
                        // Whoever took over is known when the next one asks.
                        self.known.lock().ranges.clear();
                    }
                    return Err(why);
                }
                answered => return answered,
            }
        }
        Err(Error::Nobody(format!("slot {slot} moves about")))
    }

    fn place_of(&self, slot: u16) -> Option<Place> {
        let known = self.known.lock();
        let at = known.ranges.partition_point(|(_, last, _)| *last < slot);
        let (first, _, place) = known.ranges.get(at)?;
        (*first <= slot).then(|| place.clone())
    }

    fn server(&self, place: &Place) -> Arc<Server> {
        let mut known = self.known.lock();
        if known.servers.len() > MAX_SERVERS {
            known.servers.clear();
        }
        let made = || Arc::new(Server::new(place.0.clone(), place.1, self.access.clone()));
        known.servers.entry(place.clone()).or_insert_with(made).clone()
    }

    /// One slot is elsewhere; the rest will be learnt when it is met.
    fn note(&self, slot: u16, place: &Place) {
        let mut known = self.known.lock();
        let at = known.ranges.partition_point(|(_, last, _)| *last < slot);
        let Some((first, last, old)) = known.ranges.get(at).cloned() else { return };
        if first > slot {
            return;
        }
        let mut parts = Vec::with_capacity(3);
        if first < slot {
            parts.push((first, slot - 1, old.clone()));
        }
        parts.push((slot, slot, place.clone()));
        if slot < last {
            parts.push((slot + 1, last, old));
        }
        known.ranges.splice(at..=at, parts);
    }

    /// Asks whoever answers first who has what.
    async fn learn(&self) -> Result<(), Error> {
        let mut why = Error::Nobody("the cluster has no nodes".to_owned());
        let known: Vec<Place> = self.known.lock().servers.keys().cloned().collect();
        for place in self.seeds.iter().chain(&known) {
            match self.server(place).ask(&[b"CLUSTER", b"SLOTS"]).await {
                Ok(answer) => {
                    let ranges = ranges(&answer, place);
                    if !ranges.is_empty() {
                        self.known.lock().ranges = ranges;
                        return Ok(());
                    }
                    why = Error::Nobody(format!("{}:{} knows no slots", place.0, place.1));
                }
                Err(error) => why = error,
            }
        }
        Err(why)
    }
}

/// The answer to `CLUSTER SLOTS`: lists of first, last, master, replicas.
fn ranges(answer: &Answer, asked: &Place) -> Vec<(u16, u16, Place)> {
    let Answer::List(rows) = answer else { return Vec::new() };
    let range = |row: &Answer| {
        let Answer::List(row) = row else { return None };
        let [Answer::Number(first), Answer::Number(last), Answer::List(master), ..] =
            row.as_slice()
        else {
            return None;
        };
        let [host, Answer::Number(port), ..] = master.as_slice() else { return None };
        // A node that does not know its own address yet leaves it out: it is where it was asked.
        let host = match host {
            Answer::Text(host) if !host.is_empty() && host != "?" => host.clone(),
            _ => asked.0.clone(),
        };
        let number = |number: &i64| u16::try_from(*number).ok();
        Some((number(first)?, number(last)?, (host, number(port)?)))
    };
    let mut ranges: Vec<_> = rows.iter().filter_map(range).collect();
    ranges.sort_unstable();
    ranges
}

/// `MOVED 3999 127.0.0.1:6381`; without a host it is the one that was asked.
fn moved_to(why: &Error, asked: &Place) -> Option<Place> {
    let Error::Refused { words, .. } = why else { return None };
    let (host, port) = words.split(' ').nth(2)?.rsplit_once(':')?;
    let host = if host.is_empty() { &asked.0 } else { host };
    Some((host.to_owned(), port.parse().ok()?))
}

/// The slot of a key, by the part of it within braces where it has one.
/// ```
/// # use wardgate::pipeline::redis_slot;
/// assert_eq!(redis_slot(b"123456789"), 0x31c3 % 16384);
/// assert_eq!(redis_slot(b"a{x}b"), redis_slot(b"x"));
/// ```
pub fn slot_of(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let length = memchr::memchr(b'}', &key[open + 1..]).filter(|length| *length > 0)?;
        Some(&key[open + 1..open + 1 + length])
    });
    crc16(tag.unwrap_or(key)) % 16384
}

/// CRC-16/XMODEM, as the cluster's specification has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        let mixed = crc ^ (u16::from(*byte) << 8);
        (0..8).fold(mixed, |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        let within = std::time::Duration::from_secs(1);
        Access { user: None, password: None, database: 0, tls: None, within, keep: within, most: 1 }
    }

    #[test]
    fn slots_are_found_and_move_one_by_one() {
        let node =
            |port: u16| Answer::List(vec![Answer::Text("h".into()), Answer::Number(port.into())]);
        let row = |first, last, port| {
            Answer::List(vec![Answer::Number(first), Answer::Number(last), node(port)])
        };
        let nowhere = Answer::List(vec![
            Answer::Number(101),
            Answer::Number(200),
            Answer::List(vec![Answer::Nothing, Answer::Number(9)]),
        ]);
        let answer = Answer::List(vec![row(300, 400, 2), row(0, 100, 1), nowhere]);
        let cluster = Cluster::new(Vec::new(), access());
        cluster.known.lock().ranges = ranges(&answer, &("asked".into(), 7));
        let place = |slot| cluster.place_of(slot).map(|(host, port)| format!("{host}:{port}"));
        for (slot, at) in [
            (0, Some("h:1")),
            (100, Some("h:1")),
            (150, Some("asked:9")),
            (250, None),
            (300, Some("h:2")),
            (401, None),
        ] {
            assert_eq!(place(slot).as_deref(), at, "{slot}");
        }
        let why = Error::Refused { server: "s".into(), words: "MOVED 50 n:3".into() };
        cluster.note(50, &moved_to(&why, &("asked".into(), 7)).unwrap());
        for (slot, at) in [(49, "h:1"), (50, "n:3"), (51, "h:1"), (100, "h:1")] {
            assert_eq!(place(slot).as_deref(), Some(at), "{slot}");
        }
        cluster.note(250, &("x".into(), 1));
        assert_eq!(place(250), None);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{}foo"), slot_of(b"{}foo"));
        assert_ne!(slot_of(b"{}foo"), slot_of(b""));
    }
}
